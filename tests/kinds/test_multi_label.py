"""Tests of kinds/multi_label.py: any number of labels a text."""

import json
import random

import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import weights
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import wordpiece
from bert_jax.kinds import multi_label
from bert_jax.kinds import table
from bert_jax.models.config import ModelConfig
from bert_jax.prediction import predict
from bert_jax.tasks import spec
from bert_jax.training import evaluate
from bert_jax.training import finetuning
from bert_jax.training import train
from bert_jax.weights import convert
from configs import base
from configs import convert as convert_config
from configs import predict as predict_config
from tests.support import launching
from tests.support import small_tasks

KIND = multi_label.MULTI_LABEL
launch = launching.launch
TOKENIZER = wordpiece.WordPieceTokenizer(
  [*interface.SPECIAL_TOKENS, *"abcdefgh"]
)
# Right: x and y; z; none. Given: x; z and x; none.
GOLD = ((0, 1), (2,), ())
GIVEN = ((0,), (0, 2), ())
PROBABILITIES = ((0.9, 0.4, 0.1), (0.6, 0.2, 0.8), (0.3, 0.3, 0.2))


def make_task(**facts):
  facts = {"text": ["text"], "label": "labels", "labels": "xyz"} | facts
  return table.make_task("multi_label", **facts)


def examples(labels=GOLD):
  return [
    spec.PairExample(str(i), "a b", None, x) for i, x in enumerate(labels)
  ]


# --- Own data ---


def write(path, *lines):
  path.write_text("\n".join([*lines, ""]))
  return str(path)


@pytest.mark.parametrize(
  ("name", "lines", "separator"),
  [
    (
      "train.jsonl",
      ['{"t": "a", "l": ["y", "x"]}', '{"t": "b", "l": []}',
       '{"t": "c", "l": ["x", "x"]}'],
      ",",
    ),
    ("train.tsv", ["t\tl", "a\tx | y", "b\t", "c\tx"], "|"),
    ("train.csv", ["t,l", 'a,"x,y"', "b,", "c,x"], ","),
  ],
)  # fmt: skip
def test_labels_are_lists_or_text_with_a_separator(
  name, lines, separator, tmp_path
):
  path = write(tmp_path / name, *lines)
  task = make_task(
    text=["t"], label="l", labels=(), train_path=path, label_separator=separator
  )
  assert task.labels == ("x", "y")
  read = task.read(task, path, "train")
  assert [e.label for e in read] == [(0, 1), (), (0,)]
  made = KIND.make_features(task, read, TOKENIZER, seq_len=8)
  assert made.label.dtype == np.float32
  assert made.label.tolist() == [[1, 1], [0, 0], [1, 0]]


def test_what_is_no_label_is_refused(tmp_path):
  path = write(tmp_path / "a.jsonl", '{"text": "a", "labels": 3}')
  with pytest.raises(spec.TaskError, match=r"a.jsonl:1: labels is 3; wanted a"):
    make_task().read(make_task(), path, "train")
  path = write(tmp_path / "b.jsonl", '{"text": "a", "labels": ["w"]}')
  with pytest.raises(spec.TaskError, match=r"label 'w' is not known.*x, y, z"):
    make_task().read(make_task(), path, "train")


@pytest.mark.parametrize("item", ["null", "1.5", '{"a": 1}', "[]"])
def test_an_item_of_a_list_that_is_no_label_is_refused(tmp_path, item):
  path = write(
    tmp_path / "a.jsonl",
    '{"text": "a", "labels": ["x"]}',
    f'{{"text": "a", "labels": ["x", {item}]}}',
  )
  with pytest.raises(spec.TaskError, match=r"a.jsonl:2: labels has "):
    make_task().read(make_task(), path, "train")
  with pytest.raises(spec.TaskError, match=r"a.jsonl:2: labels has "):
    make_task(labels=(), train_path=path)


def test_numbers_and_truth_values_are_labels(tmp_path):
  path = write(tmp_path / "a.jsonl", '{"text": "a", "labels": [3, true]}')
  assert make_task(labels=(), train_path=path).labels == ("3", "True")


def test_a_training_file_without_any_label_is_refused(tmp_path):
  path = write(tmp_path / "a.jsonl", '{"text": "a", "labels": []}')
  with pytest.raises(spec.TaskError, match=r"a.jsonl .*'labels'"):
    make_task(labels=(), train_path=path)


def test_an_empty_separator_is_refused_by_name():
  with pytest.raises(spec.TaskError, match=r"task.label_separator is empty"):
    make_task(label_separator="")


# --- Loss, predictions and metrics ---


def test_the_loss_is_that_of_each_label_and_the_mean_over_all():
  # log 2 for each label of score 0; log(1 + e^-2) for a certain one.
  batch = {
    "label": jnp.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]]),
    "weight": jnp.array([[1.0, 1.0, 0.0]]),
  }
  outputs = jnp.array([[[0.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])
  sum_, weight = KIND.losses(outputs, batch)["task_loss"]
  np.testing.assert_allclose(sum_, 3 * np.log(2) + np.log1p(np.exp(-2)), 1e-6)
  assert weight == KIND.weights(batch)["task_loss"] == 4


@pytest.mark.parametrize(
  ("thresholds", "given"),
  [
    ((0.5,), GIVEN),
    ((0.35,), ((0, 1), (0, 2), ())),
    ((0.7, 0.35, 0.05), ((0, 1, 2), (2,), (2,))),
  ],
)
def test_labels_above_their_threshold_are_given(thresholds, given):
  made = KIND.make_features(make_task(), examples(), TOKENIZER, seq_len=8)
  odds = np.array(PROBABILITIES)
  logits = np.log(odds / (1 - odds))
  found = KIND.decode(make_task(), made, logits, thresholds=thresholds)
  assert tuple(p.labels for p in found) == given
  np.testing.assert_allclose([p.probabilities for p in found], odds)
  far = KIND.decode(make_task(), made, logits * 0 + [1e4, -1e4, 0.0])
  assert far[0].probabilities == (1.0, 0.0, 0.5)


@pytest.mark.parametrize("thresholds", [(0.5, 0.5), (1.5,), ()])
def test_thresholds_that_do_not_fit_are_refused(thresholds):
  with pytest.raises(spec.TaskError, match=r"thresholds=.*each of the 3 label"):
    KIND.check_options(make_task(), thresholds=thresholds)


def test_metrics_by_hand():
  predictions = [
    multi_label.LabelsPrediction(*pair)
    for pair in zip(GIVEN, PROBABILITIES, strict=True)
  ]
  found = KIND.score(make_task(), predictions, examples())
  # Of 3 right labels 2 are given, and 1 wrong one.
  assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 3))
  # x: 1 of 2 given is right, of 1; y: none; z: all.
  assert found["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
  # x, y and z each rank their one example first.
  assert found["average_precision"] == pytest.approx(1.0)
  swapped = [multi_label.LabelsPrediction((), p) for p in PROBABILITIES[::-1]]
  found = KIND.score(make_task(), swapped, examples())
  order = np.argsort(-np.array(PROBABILITIES[::-1]), axis=0, kind="stable")
  ranks = [
    order[:, k].tolist().index(i) + 1 for k, i in ((0, 0), (1, 0), (2, 1))
  ]
  by_label = [1 / rank for rank in ranks]
  assert found["average_precision"] == pytest.approx(np.mean(by_label))
  assert found["micro_f1"] == 0.0


def test_labels_that_no_example_has_do_not_count(caplog):
  alone = examples([(0,), (), ()])
  predictions = [multi_label.LabelsPrediction((0,), p) for p in PROBABILITIES]
  found = KIND.score(make_task(), predictions, alone)
  assert found["average_precision"] == 1.0
  found = KIND.score(make_task(), predictions, examples([()] * 3))
  assert found["average_precision"] == 0.0
  assert "counts as 0.0" in caplog.text


def score(labels, given, gold):
  made = [multi_label.LabelsPrediction(x, (0.5,) * len(labels)) for x in given]
  return KIND.score(make_task(labels=labels), made, examples(gold))


def test_f1_of_one_label_counts_that_label_alone():
  # Two of three given are right, of two; "not given" is no class of its own.
  found = score("x", [(0,), (0,), (0,), ()], [(0,), (0,), (), ()])
  assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 2))
  assert found["macro_f1"] == pytest.approx(2 * 2 / (3 + 2))


def test_the_mean_of_f1_is_over_labels_that_occur():
  # x: right; y: given, but wrong; z: neither given nor right.
  found = score("xyz", [(0,), (1,)], [(0,), ()])
  assert found["macro_f1"] == pytest.approx((1 + 0) / 2)
  assert found["micro_f1"] == pytest.approx(2 * 1 / (2 + 1))


def test_f1_without_any_label_is_not_defined(caplog):
  found = score("xyz", [(), ()], [(), ()])
  assert found["micro_f1"] == found["macro_f1"] == 0.0
  for name in ("micro_f1", "macro_f1"):
    assert f"{name} is not defined" in caplog.text


# --- From files to predictions ---


def make_config(folder):
  """A task whose labels are which of two words a text has."""
  config = small_tasks.make_config(folder, "classify")
  rng = random.Random(0)
  for split, count in (("train", 96), ("validation", 40)):
    with open(folder / f"{split}.jsonl", "w") as f:
      for _ in range(count):
        words = rng.sample(small_tasks.WORDS[:6], rng.randrange(1, 5))
        labels = [w for w in words if w in small_tasks.WORDS[:2]]
        f.write(json.dumps({"text": " ".join(words), "labels": labels}) + "\n")
  config.task.name, config.task.label = "my-multi_label", "labels"
  config.task.predict_splits = ("validation",)
  config.train.num_epochs = 16.0
  config.checkpoint.update(best_metric="eval/micro_f1", best_mode="max")
  config.eval.every_steps = 24
  return config


def test_a_wrong_number_of_thresholds_is_refused_before_training(tmp_path):
  config = make_config(tmp_path)
  config.task.thresholds = (0.1, 0.2, 0.3)
  with pytest.raises(spec.TaskError, match=r"thresholds=.*each of the 2 label"):
    finetuning.FineTuning(config, None)
  config.task.thresholds = (0.1, 0.2)
  finetuning.FineTuning(config, None)


@pytest.mark.slow
def test_a_task_from_files_to_predictions_and_to_other_formats(tmp_path):
  config, run = make_config(tmp_path), str(tmp_path / "run")
  result = train.train(config, run)
  assert result["eval/micro_f1"] > 0.95, result
  assert set(result) >= {"eval/macro_f1", "eval/average_precision", "eval/loss"}
  scores = evaluate.evaluate(config, run, None)
  assert scores["eval/micro_f1"] > 0.95
  name = "run/predictions/my-multi_label-validation.jsonl"
  lines = (tmp_path / name).read_text()
  rows = [json.loads(line) for line in lines.splitlines()]
  assert rows[0].keys() == {"id", "labels", "probabilities", "gold"}
  assert sum(r["labels"] == sorted(r["gold"]) for r in rows) >= 36

  settings = convert_config.get_config("to=huggingface")
  convert.convert(settings, run, str(tmp_path / "hf"))
  said = json.loads((tmp_path / "hf" / "config.json").read_text())
  assert said["problem_type"] == "multi_label_classification"
  assert said["architectures"] == ["BertForSequenceClassification"]
  convert.convert(
    convert_config.get_config("to=bert_jax"),
    str(tmp_path / "hf"),
    str(tmp_path / "back"),
  )
  records = [{"text": text} for text in ("sun hill", "moon sun", "sky")]
  asked = predict_config.get_config()
  answers = [
    list(predict.Predictor.load(str(tmp_path / name), asked)(records))
    for name in ("run", "hf", "back")
  ]
  assert answers[0] == answers[1] == answers[2]
  assert [x["labels"] for x in answers[0]] == [["sun"], ["moon", "sun"], []]
  assert answers[0][0]["scores"].keys() == {"moon", "sun"}
  asked.task.thresholds = (0.0, 0.5, 1.0)
  with pytest.raises(spec.TaskError, match="each of the 2 labels"):
    predict.Predictor.load(run, asked, "", ["task.thresholds"])
  asked.task.thresholds = (0.0, 1.0)
  (low,) = predict.Predictor.load(run, asked, "", ["task.thresholds"])(
    records[2:]
  )
  assert low["labels"] == ["moon"]


@pytest.mark.slow
def test_the_launcher_trains_evaluates_predicts_and_converts(tmp_path, launch):
  config, run = make_config(tmp_path), tmp_path / "run"
  text = repr(config.to_json_best_effort())
  made = tmp_path / "config.py"
  made.write_text(
    "import json\n\nimport ml_collections\n\n\ndef get_config():\n"
    f"  return ml_collections.ConfigDict(json.loads({text}))\n"
  )
  of_run = (f"--config={made}", f"--workdir={run}")
  assert not launch("--mode=train", *of_run)
  assert not launch("--mode=evaluate", *of_run)
  scores = json.loads((run / "evaluation.json").read_text())
  assert scores["eval/micro_f1"] > 0.95

  (tmp_path / "in.jsonl").write_text(
    '{"text": "sun hill"}\n{"text": "moon sun"}\n{"text": "sky"}\n'
  )
  folders = {"hf": ("huggingface", run), "back": ("bert_jax", tmp_path / "hf")}
  for name, (form, source) in folders.items():
    convert_py = f"{launching.ROOT}/configs/convert.py"
    assert not launch(
      "--mode=convert", f"--config={convert_py}:to={form}",
      f"--input={source}", f"--output={tmp_path / name}",
    )  # fmt: skip
  answers = []
  for source in (run, *(tmp_path / name for name in folders)):
    assert not launch(
      "--mode=predict",
      f"--config={launching.ROOT}/configs/predict.py:from={source}",
      f"--input={tmp_path}/in.jsonl", f"--output={tmp_path}/out.jsonl",
    )  # fmt: skip
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    answers.append([json.loads(line) for line in lines])
  assert answers[0] == answers[1] == answers[2]
  assert [x["labels"] for x in answers[0]] == [["sun"], ["moon", "sun"], []]


# --- Equal to a library ---


def test_logits_and_loss_equal_those_of_transformers(tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  config = transformers.BertConfig(
    vocab_size=TOKENIZER.vocab_size, hidden_size=16,
    num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=32, max_position_embeddings=16, num_labels=3,
    id2label={0: "x", 1: "y", 2: "z"}, label2id={"x": 0, "y": 1, "z": 2},
    problem_type="multi_label_classification",
  )  # fmt: skip
  theirs = transformers.BertForSequenceClassification(config).eval()
  theirs.save_pretrained(tmp_path / "hf")
  ours = weights.read(tmp_path / "hf")
  assert (ours.kind, ours.labels) == ("multi_label", ("x", "y", "z"))
  shape = base.get_config().model.to_dict() | ours.model
  model = KIND.make_model(ModelConfig.from_config(shape), 3)
  made = KIND.make_features(make_task(), examples(), TOKENIZER, seq_len=8)
  ids = made.token_ids.reshape(3, -1)
  mask = np.ones_like(ids)
  batch = {
    "input_ids": ids, "input_mask": mask, "segment_ids": mask * 0,
    "cls_positions": np.zeros((3, 1), np.int32),
    "label": made.label[:, None], "weight": np.ones((3, 1), np.float32),
  }  # fmt: skip
  logits = KIND.apply(model, ours.params, batch)
  with torch.no_grad():
    want = theirs(torch.tensor(ids).long(), labels=torch.tensor(made.label))
  np.testing.assert_allclose(logits[:, 0], want.logits.numpy(), atol=1e-5)
  sum_, weight = KIND.losses(logits, batch)["task_loss"]
  np.testing.assert_allclose(sum_ / weight, float(want.loss), rtol=1e-5)

  weights.write(ours, tmp_path / "written", "huggingface")
  again = transformers.BertForSequenceClassification.from_pretrained(
    tmp_path / "written"
  ).eval()
  assert again.config.problem_type == "multi_label_classification"
  with torch.no_grad():
    same = again(torch.tensor(ids).long())
  assert torch.equal(same.logits, want.logits)
