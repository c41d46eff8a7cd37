"""Tests of finetuning.py and jobs.py: tasks from files to scores."""

import dataclasses
import functools
import itertools
import json
import os

import jax
import ml_collections
import numpy as np
import pytest

from bert_jax import tasks
from bert_jax import weights
from bert_jax.data import orders
from bert_jax.runtime import metrics_log
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.runtime import sharding
from bert_jax.training import evaluate
from bert_jax.training import finetuning
from bert_jax.training import jobs
from bert_jax.training import optim
from bert_jax.training import steps
from bert_jax.training import train
from configs import finetune
from tests.support import breadth
from tests.support import run_checks
from tests.support import small_tasks


@pytest.fixture
def make_config(tmp_path):
  """A function (form) -> config of a run on data of that form, on disk."""
  return functools.partial(small_tasks.make_config, tmp_path)


def _params(workdir):
  return weights.read(workdir).params


def assert_equal_trees(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  ("form", "metric", "least"),
  breadth.slow_but(
    [
      ("classify", "eval/accuracy", 0.95),
      ("pairs", "eval/accuracy", 0.95),
      ("regress", "eval/pearson", 0.9),
      ("tag", "eval/entity_f1", 0.95),
      ("choice", "eval/accuracy", 0.95),
      ("span", "eval/f1", 95.0),
    ],
    lambda form, metric, least: form == "pairs",
  ),
)
def test_a_rule_of_the_words_is_learned(
  form, metric, least, make_config, tmp_path
):
  config = make_config(form)
  result = train.train(config, str(tmp_path / "run"))
  assert result[metric] >= least, result
  run = runs.read_run(str(tmp_path / "run"))
  assert run["config"]["task"]["name"] == f"my-{form}"
  # What evaluation finds later is what training found at its end.
  again = evaluate.evaluate(config, str(tmp_path / "run"), None)
  for name, value in result.items():
    np.testing.assert_allclose(again[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
  ("given", "wanted"),
  [
    (("no,yes",), ("no", "yes")),
    (("no", "yes"), ("no", "yes")),
    ((0, 1), ("0", "1")),
    ((1,), ("1",)),
    (("a, b,",), ("a", "b")),
    ((), ()),
  ],
)
def test_lists_of_words_as_a_command_line_has_them(given, wanted):
  assert finetuning._split_words(given) == wanted


@pytest.mark.parametrize(
  ("form", "format"),
  breadth.slow_but(
    itertools.product(("classify", "span"), ("huggingface", "tf1", "bert_jax")),
    lambda form, format: (form == "span") == (format == "tf1"),
  ),
)
def test_weights_trained_elsewhere_are_evaluated_as_they_are(
  form, format, make_config, tmp_path
):
  """The same scores from every format, also with labels in another order."""
  config = make_config(form, train__num_epochs=3.0)
  want = train.train(config, str(tmp_path / "run"))
  found = weights.read(str(tmp_path / "run"))
  if form == "classify":
    assert found.labels == ("moon", "sun")
    head = jax.tree.map(lambda x: x[..., ::-1].copy(), found.params["task"])
    found = dataclasses.replace(
      found, labels=("sun", "moon"), params=found.params | {"task": head}
    )
  source = str(tmp_path / "given")
  weights.write(found, source, format)
  config.init_from, config.task.vocab = source, ""
  got = evaluate.evaluate(config, str(tmp_path / "new"), None)
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
  written = json.loads((tmp_path / "new" / "evaluation.json").read_text())
  assert written.pop("weights") == source
  assert written.pop("task") == f"my-{form}"
  assert written.pop("commit") == runs.commit()[0]
  del written["dirty"]
  assert written == got | {"step": 0}
  # A run without a checkpoint is no new workdir.
  os.mkdir(tmp_path / "begun")
  (tmp_path / "begun" / "checkpoints").mkdir()
  with pytest.raises(ValueError, match="begun"):
    evaluate.evaluate(config, str(tmp_path / "begun"), None)
  if format == "bert_jax":
    with pytest.raises(ValueError, match="holds converted weights, not a run"):
      evaluate.evaluate(config, source, None)


def test_weights_without_the_head_of_the_task_are_not_evaluated(
  make_config, tmp_path
):
  config = make_config("classify", train__num_epochs=1.0)
  train.train(config, str(tmp_path / "run"))
  found = weights.read(str(tmp_path / "run"))
  other = dataclasses.replace(found, labels=("rain", "sun"))
  params = {k: v for k, v in found.params.items() if k != "task"}
  bare = dataclasses.replace(found, params=params, kind=None, labels=())
  config.task.vocab = ""
  unknown = dataclasses.replace(found)
  for given, message in (
    (unknown, "does not say what its head is for; write it out by"),
    (other, r"is for classify with labels \['rain', 'sun'\], the task is"),
    (bare, "has no task/bias, task/kernel: it can be trained"),
  ):
    config.init_from = str(tmp_path / str(len(list(tmp_path.iterdir()))))
    weights.write(given, config.init_from, "huggingface")
    if given is unknown:
      path = os.path.join(config.init_from, "config.json")
      with open(path) as f:
        settings = json.load(f)
      with open(path, "w") as f:
        json.dump(settings | {"architectures": None}, f)
    with pytest.raises(ValueError, match=message):
      evaluate.evaluate(config, str(tmp_path / "new"), None)
  config.init_random = True
  with pytest.raises(ValueError, match="init_random=True leaves nothing"):
    evaluate.evaluate(config, str(tmp_path / "new"), None)
  assert not (tmp_path / "new").exists()


def test_scores_do_not_depend_on_rows_packing_or_mesh(make_config, tmp_path):
  config = make_config(train__num_epochs=1.0)
  workdir = str(tmp_path / "run")
  train.train(config, workdir)
  want = evaluate.evaluate(config, workdir, None)
  config.task.predict_splits = ("validation",)
  path = os.path.join(workdir, "predictions", "my-classify-validation.jsonl")
  predictions = []
  for pack, batch_size, mesh in (
    (True, 8, (8, 1, 1)),
    (True, 4, (1, 4, 2)),
    (False, 16, (2, 1, 4)),
  ):
    config.data.pack, config.eval.batch_size = pack, batch_size
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = mesh
    got = evaluate.evaluate(config, workdir, None)
    for name, value in want.items():
      np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=name)
    with open(path) as f:
      predictions.append([json.loads(line) for line in f])
  assert len(predictions[0]) == 40
  wrong = [x["id"] for x in predictions[-1] if x["label"] != x["gold"]]
  with open(os.path.join(workdir, "errors.jsonl")) as f:
    mistakes = [json.loads(line) for line in f]
  assert sorted(x["id"] for x in mistakes) == sorted(wrong)
  sure = [x["probability"] for x in mistakes]
  assert sure == sorted(sure, reverse=True)
  for other in predictions[1:]:
    for a, b in zip(predictions[0], other, strict=True):
      assert (a["label"], a["gold"]) == (b["label"], b["gold"])
      for label, probability in a["probabilities"].items():
        assert abs(b["probabilities"][label] - probability) < 1e-4


def test_stopped_and_resumed_is_bit_equal(make_config, tmp_path):
  config = make_config(
    train__num_epochs=2.0, checkpoint__every_steps=5,
    model__dropout_rate=0.1, model__attention_dropout_rate=0.1,
  )  # fmt: skip
  whole, parts = run_checks.train_whole_and_in_parts(config, tmp_path)
  assert metrics_log.read_metrics(whole)[-1]["step"] == 12  # 2 x 96 / 16
  assert_equal_trees(_params(whole), _params(parts))


def test_training_starts_from_the_weights_that_are_named(make_config, tmp_path):
  first = str(tmp_path / "first")
  train.train(make_config(train__num_epochs=1.0), first)
  config = make_config("regress", train__num_epochs=1.0)
  config.init_from = first
  config.task.vocab = ""  # that of the weights
  config.model.num_layers = 7  # the weights decide
  config.optim.learning_rate = 0.0
  second, fresh = str(tmp_path / "second"), str(tmp_path / "fresh")
  train.train(config, second)
  before, after = _params(first), _params(second)
  assert_equal_trees(before["encoder"], after["encoder"])
  assert before["task"]["kernel"].shape == (32, 2)
  assert after["task"]["kernel"].shape == (32, 1)
  assert runs.read_run(second)["config"]["model"]["num_layers"] == 1
  config.init_random = True
  train.train(config, fresh)
  config.init_random = False
  assert np.any(
    _params(fresh)["encoder"]["pooler"]["kernel"]
    != before["encoder"]["pooler"]["kernel"]
  )
  # A workdir is all that is needed later, wherever the first one went.
  os.rename(first, first + "-gone")
  assert "eval/pearson" in evaluate.evaluate(config, second, None)


@pytest.mark.slow
def test_a_run_that_never_saved_starts_from_its_weights_again(
  make_config, tmp_path
):
  first, run = str(tmp_path / "first"), str(tmp_path / "run")
  train.train(make_config(train__num_epochs=1.0), first)
  config = make_config("regress", train__num_epochs=1.0)
  config.init_from, config.task.vocab = first, ""
  config.optim.learning_rate = 0.0
  run_checks.train_until(config, run, 1)
  assert os.path.exists(os.path.join(run, "run.json"))
  train.train(config, run)
  assert_equal_trees(_params(run)["encoder"], _params(first)["encoder"])


@pytest.mark.slow
def test_a_head_is_not_taken_for_that_of_other_labels(make_config, tmp_path):
  first, run = str(tmp_path / "first"), str(tmp_path / "run")
  train.train(make_config(train__num_epochs=1.0), first)
  heads = []
  for labels in (("moon", "sun"), ("sun", "moon")):
    config = make_config(train__num_epochs=1.0, task__labels=labels)
    config.init_from, config.task.vocab = first, ""
    config.optim.learning_rate = 0.0
    train.train(config, run + labels[0])
    heads.append(_params(run + labels[0])["task"]["kernel"])
  np.testing.assert_array_equal(heads[0], _params(first)["task"]["kernel"])
  assert np.any(heads[1] != heads[0])


def test_other_data_is_scored_without_the_training_file(make_config, tmp_path):
  config = make_config(train__num_epochs=4.0)
  workdir = str(tmp_path / "run")
  train.train(config, workdir)
  with open(tmp_path / "other.jsonl", "w") as f:
    for line in small_tasks.lines("classify", 10, seed=5):
      f.write(json.dumps(line) + "\n")
  os.remove(tmp_path / "train.jsonl")
  config = ml_collections.ConfigDict(runs.read_run(workdir)["config"])
  config.task.files.train = ""
  config.task.files.test = str(tmp_path / "other.jsonl")
  config.task.eval_splits = ["test"]
  found = evaluate.evaluate(config, workdir, None)
  assert {"eval/accuracy", "eval/loss"} <= set(found)
  assert 0 <= found["eval/accuracy"] <= 1


@pytest.mark.slow
def test_a_finished_task_goes_on_with_more_epochs_if_they_are_named(
  make_config, tmp_path
):
  run = str(tmp_path / "run")
  train.train(make_config(train__num_epochs=0.5), run)
  longer = make_config(train__num_epochs=1.0)
  with pytest.raises(runs.RunError, match="allow_changes=train.num_epochs"):
    train.train(longer, run)
  train.train(longer, run, ["train.num_epochs"])
  assert metrics_log.read_metrics(run)[-1]["step"] == 6
  (change,) = runs.read_run(run)["changes"]
  assert change == {"step": 3, "config": {"train.num_epochs": [0.5, 1.0]}}


def test_the_head_and_its_labels_are_kept_with_the_weights(
  make_config, tmp_path
):
  train.train(make_config(train__num_epochs=1.0), str(tmp_path / "run"))
  found = weights.read(str(tmp_path / "run"))
  assert found.kind == "classify"
  assert found.labels == ("moon", "sun")
  assert found.tokenizer.vocab_size == len(small_tasks.VOCAB)


@pytest.mark.slow
def test_micro_batches_are_one_batch(make_config, tmp_path):
  """Whatever their own weights are: rows hold one to several sequences."""
  logs = []
  for parts in (1, 2):
    config = make_config(
      train__num_epochs=1.0, train__log_every_steps=1,
      optim__num_micro_batches=parts, optim__learning_rate=1e-4,
      mesh__data=1, mesh__fsdp=1, mesh__tensor=8,
    )  # fmt: skip
    train.train(config, str(tmp_path / str(parts)))
    logs.append(metrics_log.read_metrics(str(tmp_path / str(parts))))
  for one, two in zip(*logs, strict=True):
    for key in ("train/loss", "train/grad_norm", "eval/loss"):
      if key in one:
        np.testing.assert_allclose(two[key], one[key], rtol=1e-4, err_msg=key)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"task__name": "mnly"}, "'mnly' is not known; use one of cola, sst2"),
    ({"task__name": ""}, "is not known; use one of"),
    ({"task__vocab": ""}, "there is no vocabulary"),
    ({"data__seq_len": 64}, "data.seq_len=64 is longer than model.max_len=16"),
    ({"model__vocab_size": 4}, "the vocabulary has 16 pieces"),
    ({"task__label": "gold"}, r"train.jsonl:1.*gold"),
    ({"task__labels": ("sun", "rain")}, r"train.jsonl:\d+: label 'moon'"),
    ({"task__files__train": "none.jsonl"}, "none.jsonl"),
    ({"task__eval_splits": ("dev",)}, "no split 'dev'"),
    ({"data__batch_size": 0}, "data.batch_size=0"),
    ({"train__total_steps": 9}, "give one of them, and 0 for the other"),
    ({"optim__num_micro_batches": 0}, "num_micro_batches=0; it must be 1"),
    ({"task__n_best": 0}, "task.n_best=0; it must be 1"),
    (
      {"task__name": "ax", "task__files__train": ""},
      r"no training split; train mnli.*ax:test",
    ),
    (
      {"task__name": "mnli", "task__files__validation": "x.tsv"},
      "task.files.train is given, but task mnli has the splits train, val"
      "|task.files.validation is given, but task mnli has the splits",
    ),
    ({"task__eval_splits": ("test",)}, "the split test has no labels to score"),
    ({"checkpoint__best_metric": "eval/f2"}, "eval/f2.*eval/accuracy"),
  ],
)
def test_what_does_not_fit_is_refused_before_a_workdir(
  changes, message, make_config, tmp_path
):
  config = make_config(**changes)
  with pytest.raises((ValueError, OSError), match=message):
    train.train(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_a_vocabulary_of_other_weights_does_not_fit_prepared_data(
  finished_run, make_config, tmp_path
):
  train.train(make_config(train__num_epochs=1.0), str(tmp_path / "run"))
  config = finished_run.config.copy_and_resolve_references()
  config.init_from = str(tmp_path / "run")
  with pytest.raises(ValueError, match="prepared with another vocabulary"):
    jobs.open_job(config, str(tmp_path / "other"))


def test_pre_training_goes_on_from_converted_weights(finished_run, tmp_path):
  """A second phase; the longest word of the two tokenizers differs."""
  weights.write(
    weights.read(finished_run.workdir), tmp_path / "hf", "huggingface"
  )
  settings = tmp_path / "hf" / "tokenizer_config.json"
  told = json.loads(settings.read_text())
  told.pop("max_input_chars_per_word", None)
  settings.write_text(json.dumps(told))
  config = finished_run.config.copy_and_resolve_references()
  config.init_from = str(tmp_path / "hf")
  config.optim.learning_rate = 0.0
  config.train.total_steps = 1
  train.train(config, str(tmp_path / "run"))
  before, after = _params(finished_run.workdir), _params(str(tmp_path / "run"))
  assert_equal_trees(before, after)


def test_every_task_has_the_recipe_of_its_kind():
  for name, task in tasks.TASKS.items():
    assert finetune.KINDS.get(name, "classify") == task.kind, name


@pytest.mark.slow
def test_losses_and_gradients_follow_the_reference_step_by_step(
  make_config, tmp_path
):
  """Packed rows here, padded rows in torch: one trajectory."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  config = make_config("pairs", train__num_epochs=4.0)
  config.optim.update(name="adamw", schedule="constant", warmup_rate=0.0)
  config.optim.learning_rate = 1e-3
  config.model.hidden_act = "gelu_erf"
  job, _ = jobs.open_job(config, "")
  mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  batches = job.batches(mesh)
  optimizer, schedule = optim.make_optimizer(config.optim, 100)
  init_rng, dropout_rng = jax.random.split(jax.random.key(0))
  state = jax.jit(
    lambda batch: steps.init_state(
      job.model, job.objective, optimizer, init_rng, batch
    )
  )(batches[0])
  step = jax.jit(
    steps.make_train_step(
      steps.make_gradients(job.model, job.objective, dropout_rng),
      optimizer,
      schedule,
    )
  )
  host = jax.tree.map(np.asarray, state.params)
  shape = {k: config.model[k] for k in settings.SHAPE_KEYS}
  weights.write(
    weights.Pretrained(
      "bert_jax", shape, host, "classify", job.task.labels, job.tokenizer
    ),
    tmp_path / "hf",
    "huggingface",
  )
  model = transformers.BertForSequenceClassification.from_pretrained(
    tmp_path / "hf"
  )
  model.eval()  # no dropout
  excluded = [
    p for n, p in model.named_parameters() if "bias" in n or "No" in n
  ]
  decayed = [
    p for n, p in model.named_parameters() if not ("bias" in n or "No" in n)
  ]
  adam = torch.optim.AdamW(
    [
      {"params": decayed, "weight_decay": config.optim.weight_decay},
      {"params": excluded, "weight_decay": 0.0},
    ],
    lr=1e-3, eps=config.optim.eps,
  )  # fmt: skip
  features = job.split("train").features
  order = orders.Order(len(features), config.seed)
  for number in range(8):
    state, metrics = step(state, batches[number])
    units, _ = order(number * 16 + np.arange(16))
    ids, mask, segments = (np.zeros((16, 16), np.int64) for _ in range(3))
    for row, unit in enumerate(units):
      start, end = features.offsets[unit : unit + 2]
      ids[row, : end - start] = features.token_ids[start:end]
      mask[row, : end - start] = 1
      segments[row, : end - start] = features.segment_ids[start:end]
    adam.zero_grad()
    loss = model(
      input_ids=torch.tensor(ids),
      attention_mask=torch.tensor(mask),
      token_type_ids=torch.tensor(segments),
      labels=torch.tensor(features.label[units], dtype=torch.long),
    ).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adam.step()
    np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=2e-4)
    np.testing.assert_allclose(metrics["grad_norm"], norm.item(), rtol=2e-3)
