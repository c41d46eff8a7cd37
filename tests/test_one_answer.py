"""One run, one answer: evaluate and predict say the same of the same text.

Every run here is trained on texts that are longer than `data.seq_len`, which is
shorter than `model.max_len`, and keeps a best step that is not its newest.
"""

import json
import os
import pathlib
import types

import jax
import ml_collections
import numpy as np
import pytest

from bert_jax import main
from bert_jax import modes
from bert_jax import tasks
from bert_jax import weights
from bert_jax.kinds import answers
from bert_jax.prediction import predict
from bert_jax.prediction import settings
from bert_jax.runtime import checkpoint
from bert_jax.runtime import errors
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps
from bert_jax.training import evaluate
from bert_jax.training import finetuning
from bert_jax.training import train
from bert_jax.weights import workdir as workdirs
from configs import finetune
from configs import predict as predict_config
from tests.support import launching
from tests.support import small_tasks

ROOT = pathlib.Path(__file__).parents[1]
SEQ_LEN = 8
CHANGES = {
  "model__max_len": 32,
  "data__seq_len": SEQ_LEN,
  "task__max_query_len": 3,
  "task__doc_stride": 2,
  "task__predict_splits": ("validation",),
  "train__num_epochs": 2.0,
  "eval__every_steps": 4,
  "checkpoint__every_steps": 4,
  "checkpoint__keep": 2,
  # The worst loss is that of the first evaluation, so the best is not last.
  "checkpoint__best_metric": "eval/loss",
  "checkpoint__best_mode": "max",
}

# Form of own data: changes of the config.
OWN = {
  "classify": {},
  "pairs": {},
  "regress": {},
  "tag": {},
  "choice": {},
  "span": {"task__n_best": 3},
  "span without null": {"task__has_null": False, "task__max_answer_len": 2},
}
# Benchmark: form, and changes of the config.
BENCHMARKS = {
  "sst2": ("classify", {}),
  "mrpc": ("pairs", {}),
  "stsb": ("regress", {}),
  "swag": ("choice", {}),
  "conll2003": ("tag", {"task__context": "document"}),
  "squad_v1": ("span", {}),
  "squad_v2": ("span", {}),
}


def launch(mode, *args):
  """Runs a mode as the launcher does, in this process."""
  main.MODES[mode].run(launching.parse(mode, *args))


def read_lines(path):
  with open(path, encoding="utf-8") as f:
    return [json.loads(line) for line in f]


def write_lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_squad(rows):
  """SQuAD's JSON of rows of small_tasks; every third has no answer in 2.0."""
  paragraphs = []
  for i, row in enumerate(rows):
    answer = {
      "text": row["label"],
      "answer_start": row["context"].index(row["label"]),
    }
    question = {"id": str(i), "question": row["text"], "answers": [answer]}
    paragraphs.append({"context": row["context"], "qas": [question]})
  return {"data": [{"title": "t", "paragraphs": paragraphs}]}


def write_benchmark(folder, name, form):
  """Files of a benchmark, and where they are: split -> path."""
  paths = {}
  for split, count, seed in (("train", 96, 0), ("validation", 40, 1)):
    rows = list(small_tasks.lines(form, count, seed))
    task = tasks.TASKS[name]
    if form == "span":
      path = folder / f"{split}.json"
      path.write_text(json.dumps(make_squad(rows)))
    elif form == "tag":
      path = folder / f"{split}.txt"
      texts = []
      for i, row in enumerate(rows):
        tags = [tag.replace("X", "LOC") for tag in row["label"]]
        lines = map(" x x ".join, zip(row["text"], tags, strict=True))
        texts += ["-DOCSTART- -X- -X- O\n"] * (i % 3 == 0)
        texts.append("\n".join(lines) + "\n")
      path.write_text("\n".join(texts))
    else:
      path = folder / f"{split}.jsonl"
      if form == "choice":
        rows = [
          {"sent1": row["text"], "sent2": "tree sun", "label": row["label"]}
          | {f"ending{i}": row["ab"[i % 2]] + " hill" * i for i in range(4)}
          for row in rows
        ]
      else:
        values = {"sun": "1", "moon": "0"}
        rows = [
          dict(
            zip(
              task.text,
              (row["text"], row.get("other", "hill sun tree")),
              strict=False,
            )
          )
          | {task.label: values.get(row["label"], str(row["label"]))}
          for row in rows
        ]
      write_lines(path, rows)
    paths[split] = str(path)
  return paths


def make_run(folder, name, **changes):
  """Trains on a task; returns the config and the workdir."""
  if name in BENCHMARKS:
    form, more = BENCHMARKS[name]
    config = small_tasks.make_config(folder, form)
    config.task.update(
      name=name, text=(), label="", eval_splits=("validation",)
    )
    config.task.files.update(write_benchmark(folder, name, form))
  else:
    form, more = name.split()[0], OWN[name]
    config = small_tasks.make_config(folder, form)
    if form == "span":  # every third question has no answer
      for split in ("train", "validation") if name == "span" else ():
        path = folder / f"{split}.jsonl"
        rows = read_lines(path)
        write_lines(
          path,
          [r | ({} if i % 3 else {"label": ""}) for i, r in enumerate(rows)],
        )
  changes = CHANGES | more | changes
  config.update_from_flattened_dict(
    {key.replace("__", "."): value for key, value in changes.items()}
  )
  workdir = str(folder / "run")
  train.train(config, workdir)
  newest = saved_steps.choose(workdir, "newest").step
  assert saved_steps.choose(workdir).step < newest
  return config, workdir


def records_of(config):
  """The validation split as predict is given it."""
  config = config.copy_and_resolve_references()
  for key in finetuning._LISTS:
    config.task[key] = finetuning._split_words(config.task[key])
  task = finetuning.get_task(config.task)
  files = {k: v for k, v in config.task.files.items() if v}
  examples = tasks.read_examples(
    task, config.task.dir, "validation", files=files
  )
  make = {
    "classify": lambda e: {"text": e.text_a, "text_b": e.text_b},
    "regress": lambda e: {"text": e.text_a, "text_b": e.text_b},
    "tag": lambda e: {"words": list(e.words), "document": e.document},
    "choice": lambda e: {
      "text": e.pairs[0][0],
      "choices": [second for _, second in e.pairs],
    },
    "span": lambda e: {"question": e.question, "context": e.context},
  }[task.kind]
  return [{"id": example.id} | make(example) for example in examples]


def evaluated(config, workdir, *args):
  """What evaluate predicts: id -> label or answer, and the numbers."""
  launch("evaluate", f"--workdir={workdir}", *args)
  stem = os.path.join(workdir, "predictions", f"{config.task.name}-validation")
  found = {}
  for row in read_lines(f"{stem}.jsonl"):
    if "answer" in row:
      with open(f"{stem}/nbest_predictions.json") as f:
        nbest = json.load(f)[row["id"]]
      best = next(c for c in nbest if c["text"] == row["answer"])
      found[row["id"]] = row["answer"], [best["probability"]]
    elif "tags" in row:
      found[row["id"]] = row["tags"], []
    elif "score" in row:
      found[row["id"]] = None, [row["score"]]
    else:
      scores = row["probabilities"]
      scores = scores.values() if isinstance(scores, dict) else scores
      found[row["id"]] = row.get("label", row.get("choice")), list(scores)
  return found


def predicted(folder, records, *args):
  """The same of predict."""
  source, target = folder / "in.jsonl", folder / "out.jsonl"
  write_lines(source, records)
  launch("predict", f"--input={source}", f"--output={target}", *args)
  found = {}
  for row in read_lines(target):
    assert "error" not in row, row
    answer = next(
      (row[key] for key in ("answer", "labels", "label", "choice")
       if key in row), None,
    )  # fmt: skip
    scores = row.get("scores", [row["score"]] if "score" in row else [])
    scores = scores.values() if isinstance(scores, dict) else scores
    found[row["id"]] = answer, list(scores)
  return found


def assert_one_answer(got, want):
  assert got.keys() == want.keys()
  for name, (answer, numbers) in want.items():
    assert got[name][0] == answer, name
    np.testing.assert_allclose(got[name][1], numbers, atol=1e-5, err_msg=name)


def from_run(workdir, *args):
  return [f"--config={ROOT}/configs/predict.py:from={workdir}", *args]


def check_run(folder, name):
  config, workdir = make_run(folder, name)
  records = records_of(config)
  want = evaluated(config, workdir)
  if name in ("span", "squad_v2"):  # half of the questions have no answer
    (path,) = pathlib.Path(workdir, "predictions").glob("*.jsonl")
    odds = [row["null_odds"] for row in read_lines(path)]
    run = runs.read_run(workdir)
    run["config"]["task"]["null_threshold"] = float(np.median(odds))
    runs.write_run(workdir, run)
    want = evaluated(config, workdir)
    answers = [answer for answer, _ in want.values()]
    assert 0 < answers.count("") < len(answers)
  # Not all answers are the same.
  answers = [json.dumps(value) for value in want.values()]
  assert len(set(answers)) > 1
  assert_one_answer(predicted(folder, records, f"--workdir={workdir}"), want)
  assert_one_answer(predicted(folder, records, *from_run(workdir)), want)
  return config, workdir, records, want


QUICK = ("span",)  # the others are slow tests


@pytest.mark.parametrize("name", QUICK)
def test_evaluate_and_predict_give_one_answer(name, tmp_path):
  _, workdir, records, want = check_run(tmp_path, name)
  if name == "pairs":
    # Of another step it is another answer, and again one.
    newest = predicted(
      tmp_path, records, f"--workdir={workdir}", "--checkpoint=newest"
    )
    with pytest.raises(AssertionError):
      assert_one_answer(newest, want)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", [name for name in (*OWN, *BENCHMARKS) if name not in QUICK]
)
def test_evaluate_and_predict_give_one_answer_in_every_form(name, tmp_path):
  config, workdir, records, want = check_run(tmp_path, name)
  base = f"--config={ROOT}/configs/base.py"
  for other in (
    # Another config than the run's changes nothing that is not named.
    [base, f"--workdir={workdir}"],
    [base, f"--config.predict.model={workdir}", "--config.seed=3"],
  ):
    assert_one_answer(predicted(tmp_path, records, *other), want)
  # Rows of one sequence each.
  run = runs.read_run(workdir)
  run["config"]["data"]["pack"] = False
  runs.write_run(workdir, run)
  assert_one_answer(evaluated(config, workdir), want)
  run["config"]["data"]["pack"] = True
  runs.write_run(workdir, run)
  # Any step of the run.
  for step in ("newest", saved_steps.choose(workdir, "newest").step, "best"):
    flag = f"--checkpoint={step}"
    want = evaluated(config, workdir, flag)
    got = predicted(tmp_path, records, f"--workdir={workdir}", flag)
    assert_one_answer(got, want)
  # Our own format carries what the run says; the run need not be there.
  converted = tmp_path / "converted"
  launch(
    "convert",
    f"--config={ROOT}/configs/convert.py:to=bert_jax",
    f"--input={workdir}",
    f"--output={converted}",
  )
  os.rename(workdir, f"{workdir}-gone")
  assert_one_answer(predicted(tmp_path, records, *from_run(converted)), want)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("attention", ["plain", "fused", "splash"])
def test_the_arithmetic_is_that_of_the_run(attention, dtype, tmp_path):
  config, workdir = make_run(
    tmp_path, "classify", model__attention=attention, model__dtype=dtype,
    model__hidden_size=128, model__num_heads=2,
  )  # fmt: skip
  given = predict_config.get_config()
  predictor = predict.Predictor.load(workdir, given)
  model = predictor._answerer.context.model
  assert (model.attention, model.dtype) == (attention, dtype)
  want = evaluated(config, workdir)
  got = predicted(tmp_path, records_of(config), *from_run(workdir))
  if dtype == "float32":
    assert_one_answer(got, want)


@pytest.mark.slow
def test_questions_without_an_answer(tmp_path):
  """A run on questions of which none has an answer predicts none."""
  context = (
    "The bridge was built in 1894 by engineers from Leeds and it opened to "
    "trams in 1896. The toll was two pence."
  )
  questions = (
    "Who painted it?", "When did it close?", "How long is it?",
    "What does it weigh?", "Who was the mayor?", "How many lamps?",
    "Which king came?", "What colour is it?",
  ) * 4  # fmt: skip
  asked = [
    {"id": str(i), "question": text, "answers": [], "is_impossible": True}
    for i, text in enumerate(questions)
  ]
  paragraphs = [{"context": context, "qas": asked}]
  data = {"version": "v2.0", "data": [{"title": "b", "paragraphs": paragraphs}]}
  file = tmp_path / "questions.json"
  file.write_text(json.dumps(data))
  config = small_tasks.make_config(tmp_path, "span")
  config.update_from_flattened_dict(
    {key.replace("__", "."): value for key, value in CHANGES.items()}
  )
  config.task.files.train = config.task.files.validation = str(file)
  config.checkpoint.best_metric = ""
  config.eval.every_steps = 0
  config.train.num_epochs = 20.0
  workdir = str(tmp_path / "run")
  train.train(config, workdir)
  want = evaluated(config, workdir)
  assert {answer for answer, _ in want.values()} == {""}
  record = {"id": "0", "question": questions[0], "context": context}
  for args in ([f"--workdir={workdir}"], from_run(workdir)):
    assert predicted(tmp_path, [record], *args)["0"][0] == ""
  # What the command line says wins, by either name.
  for key in ("predict.allow_null", "task.has_null"):
    args = from_run(workdir, f"--config.{key}=False")
    assert predicted(tmp_path, [record], *args)["0"][0] != ""
  for key in ("predict.null_threshold", "task.null_threshold"):
    args = from_run(workdir, f"--config.{key}=1e9")
    assert predicted(tmp_path, [record], *args)["0"][0] != ""


# --- what a run says ---------------------------------------------------------


def settings_of(run, config=None, given=()):
  """What predict decides, of a run.json's config."""
  folder = run["folder"]
  folder.mkdir(exist_ok=True)
  record = {"data_hash": "", "config": run["config"], "task": None}
  runs.write_run(str(folder), record)
  found = workdirs.read_settings(str(folder / "checkpoints" / "1"))
  own = {**found.pretrained.settings, "data.seq_len": found.pretrained.seq_len}
  config = config or predict_config.get_config()
  return settings.read(config, own, given)


@pytest.mark.parametrize(
  ("name", "own", "want"),
  [
    ("my-span", True, True),
    ("my-span", False, False),
    ("squad_v1", True, False),
    ("squad_v2", False, True),
  ],
)
def test_a_record_of_an_older_release_is_read_as_evaluation_reads_it(
  name, own, want, tmp_path
):
  """Older records have values for predict's own keys, which nobody chose."""
  config = small_tasks.make_config(tmp_path, "span").to_dict()
  config["model"]["dtype"] = "bfloat16"
  config["task"] |= {"name": name, "has_null": own, "null_threshold": 1.5}
  config["predict"] |= {"allow_null": not want, "null_threshold": 0.0}
  run = {"folder": tmp_path / "run", "config": json.loads(json.dumps(config))}
  of_run = ml_collections.ConfigDict(run["config"])
  for given in (of_run, predict_config.get_config(), finetune.get_config()):
    found = settings_of(run, given)
    assert found["task.has_null"] == want
    assert found["task.null_threshold"] == 1.5
    assert found["data.seq_len"] == config["data"]["seq_len"]
  found = settings_of(run, of_run, {"predict.allow_null"})
  assert found["task.has_null"] is not want


@pytest.mark.parametrize(
  ("key", "value", "name"),
  [
    ("predict.seq_len", 16, "data.seq_len"),
    ("predict.allow_null", False, "task.has_null"),
    ("predict.null_threshold", 0.0, "task.null_threshold"),
    ("task.has_null", False, "task.has_null"),
    ("task.n_best", 3, "task.n_best"),
  ],
)
def test_what_a_config_file_sets_wins_over_the_run(key, value, name, tmp_path):
  """The launcher honours it, as the Python API does."""
  file = tmp_path / "mine.py"
  file.write_text(
    "from configs import predict\n\n\ndef get_config():\n"
    f"  c = predict.get_config()\n  c.{key} = {value!r}\n  return c\n"
  )
  of_run = small_tasks.make_config(tmp_path, "span").to_dict()
  of_run["data"]["seq_len"] = 8
  of_run["task"] |= {"has_null": True, "null_threshold": 1.5, "n_best": 7}
  run = {"folder": tmp_path / "run", "config": json.loads(json.dumps(of_run))}

  def found(*args):
    values = launching.parse("predict", f"--config={file}", *args)
    given = modes._given_keys(values)
    return settings_of(run, values.config, given)[name]

  assert found() == value
  if key == "predict.null_threshold":  # the command line comes first
    assert found("--config.task.null_threshold=2.5") == 2.5


def test_a_config_of_a_training_does_not_win_over_the_run():
  config = finetune.get_config("task=squad_v2")
  assert settings.asked_in(config) == []
  config.predict.seq_len = 64
  assert settings.asked_in(config) == ["predict.seq_len"]
  assert settings.asked_in(predict_config.get_config()) == []


def test_weights_of_others_have_the_defaults_or_what_a_config_says():
  assert settings.read(predict_config.get_config(), {}, ()) == {}
  config = finetune.get_config("task=squad_v2")
  config.task.null_threshold = 2.0
  found = settings.read(config, {}, ())
  assert found["task.has_null"] is True
  assert found["task.null_threshold"] == 2.0
  assert (found["data.seq_len"], found["task.n_best"]) == (384, 20)
  found = settings.read(finetune.get_config("task=squad_v1"), {}, ())
  assert found["task.has_null"] is False


def test_settings_that_find_no_answer_are_refused():
  config = predict_config.get_config()
  config.task.n_best = 0
  with pytest.raises(ValueError, match="task.n_best=0"):
    predict.Predictor.load("nowhere", config)


def test_masked_words_are_filled_at_the_length_of_the_run(finished_run):
  """Length and step are those by which the run is evaluated."""
  c, workdir = finished_run.config, finished_run.workdir
  predictor = predict.Predictor.load(workdir, predict_config.get_config())
  assert predictor._answerer.context.seq_len == c.data.seq_len
  best = saved_steps.choose(workdir).path
  assert os.path.basename(os.path.dirname(best)) == "best"
  want = weights.read(best).params
  got = weights.read(workdir).params
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_the_longest_text_is_that_of_the_run_unless_another_is_given(
  finished_run,
):
  config = predict_config.get_config()
  text = {"text": "[MASK] " * 8}
  short = dict(weights.read(finished_run.workdir).__dict__, seq_len=8)
  pretrained = weights.Pretrained(**short)
  (got,) = predict.Predictor(pretrained, config, "M")([text])
  assert "8" in got["error"] and "predict.seq_len" in got["error"]
  config.predict.seq_len = 16
  (got,) = predict.Predictor(pretrained, config, "M")([text])
  assert len(got["masks"]) == 8


# --- documents ---------------------------------------------------------------


def test_a_document_is_computed_in_one_window(monkeypatch):
  monkeypatch.setattr(predict, "_WINDOW_LINES", 2)
  numbers = [1, 1, 1, 2, 3, 3, 3, 3, 4]

  def windows(in_documents):
    kind = types.SimpleNamespace(
      in_documents=in_documents,
      size=lambda example: 1,
      record_of=lambda record, is_table: record,
      parse=lambda record: [types.SimpleNamespace(document=record["n"])],
    )
    lines = [
      predict._parse(kind, str(i), {"n": n}, False)
      for i, n in enumerate(numbers)
    ]
    found = predict._windows(kind, lines, 32_000)
    return [[e.document for e in window.examples] for window in found]

  assert windows(False) == [[1, 1], [1, 2], [3, 3], [3, 3], [4]]
  assert windows(True) == [[1, 1, 1], [2, 3, 3, 3, 3], [4]]


def windows_of(lines, in_documents=True):
  """Windows of (document, "" or an error) of some lines, None in error."""

  def parse(record):
    if record["n"] is None:
      raise answers.RecordError("bad")
    return [types.SimpleNamespace(document=record["n"])]

  kind = types.SimpleNamespace(
    in_documents=in_documents,
    size=lambda example: 1,
    record_of=lambda record, is_table: record,
    parse=parse,
  )
  parsed = (
    predict._parse(kind, f"line {i}", {"n": n}, False)
    for i, n in enumerate(lines)
  )
  for window in predict._windows(kind, parsed, 32_000):
    yield [line.error or line.examples[0].document for line in window.lines]


def test_a_bad_line_does_not_cut_a_document(monkeypatch):
  monkeypatch.setattr(predict, "_WINDOW_LINES", 2)
  found = [
    ["-" if isinstance(x, str) else x for x in window]
    for window in windows_of([1, None, 1, None, None, 1, 2, None, None, None])
  ]
  assert found == [[1, "-", 1, "-", "-", 1], [2, "-", "-", "-"]]
  # Without a good line there is no document to keep together.
  assert [len(w) for w in windows_of([None] * 5 + [1, 1])] == [2, 2, 3]


def test_a_document_that_is_too_long_is_refused_whole(monkeypatch):
  monkeypatch.setattr(predict, "_WINDOW_LINES", 2)
  monkeypatch.setattr(predict, "_DOCUMENT_LINES", 4)
  (first, *rest) = windows_of([0, 1, 1, None, 1, 1, 1, 1, 2, 2, 2, 2])
  assert first[0] == 0
  lines = [line for window in [first[1:], *rest] for line in window]
  assert lines[7:] == [2, 2, 2, 2]  # four lines are not too many
  for i, line in enumerate(lines[:7], 1):
    assert line == f"line {i}: bad" if i == 3 else f"line {i}: its" in line
    assert i == 3 or ("4 lines" in line and "document" in line)


def test_lines_in_error_after_a_document_are_not_held_for_ever(monkeypatch):
  monkeypatch.setattr(predict, "_WINDOW_LINES", 2)
  monkeypatch.setattr(predict, "_DOCUMENT_LINES", 4)
  found = list(windows_of([1, 1, *[None] * 20]))
  assert found[0][:2] == [1, 1]
  assert max(map(len, found)) <= 5


# --- which step --------------------------------------------------------------


@pytest.fixture
def workdir(tmp_path):
  """A workdir whose steps are folders with nothing in them."""
  for folder, steps in (("checkpoints", (4, 6, 10)), ("best", (2, 4))):
    for step in steps:
      (tmp_path / folder / str(step)).mkdir(parents=True)
  for step, value in ((2, 1.0), (4, 3.0)):
    metrics = tmp_path / "best" / str(step) / "metrics"
    metrics.mkdir()
    (metrics / "metrics").write_text(json.dumps({"eval/loss": value}))
  (tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp-1").mkdir()
  return tmp_path


def set_best(workdir, metric, mode="min"):
  config = {"checkpoint": {"best_metric": metric, "best_mode": mode}}
  runs.write_run(str(workdir), {"data_hash": "", "config": config})


@pytest.mark.parametrize(
  ("metric", "mode", "asked", "want"),
  [
    ("eval/loss", "min", "", "best/2"),
    ("eval/loss", "max", "", "best/4"),
    ("eval/loss", "min", "best", "best/2"),
    ("eval/loss", "min", "newest", "checkpoints/10"),
    ("eval/loss", "min", "6", "checkpoints/6"),
    ("eval/loss", "min", "4", "checkpoints/4"),
    ("eval/loss", "min", "2", "best/2"),
    # The values of the metric cannot be read: later ones were better.
    ("eval/f1", "max", "", "best/4"),
    # A run that went on without a best has outgrown it.
    ("", "min", "", "checkpoints/10"),
    ("", "min", "best", "best/4"),
  ],
)
def test_the_best_stands_for_a_run_else_the_newest(
  metric, mode, asked, want, workdir
):
  set_best(workdir, metric, mode)
  chosen = saved_steps.choose(str(workdir), asked)
  assert chosen.path == str(workdir / want)
  assert chosen.step == int(want.split("/")[1])
  if metric == "eval/loss" and asked in ("", "best"):
    assert metric in chosen.reason


@pytest.mark.parametrize("checkpoint", ["", "best"])
def test_the_log_names_the_newest_step_where_the_best_is_read(
  workdir, caplog, checkpoint
):
  """As a path that `init_from` and `convert` take."""
  set_best(workdir, "eval/loss")
  caplog.set_level("INFO", logger="bert_jax")
  saved_steps.read(str(workdir), checkpoint, str)
  newest = workdir / "checkpoints" / "10"
  assert "step 2 " in caplog.text and str(newest) in caplog.text
  for step in newest.parent.iterdir():
    if not step.name.startswith("12."):
      step.rename(workdir / f"gone-{step.name}")
  (newest.parent / "2").mkdir()  # the best is the newest
  assert "newest" not in saved_steps.choose(str(workdir), checkpoint).reason


def test_a_step_that_is_not_there_lists_those_that_are(workdir):
  with pytest.raises(saved_steps.StepError, match="4, 6, 10, best holds 2, 4"):
    saved_steps.choose(str(workdir), "7")
  for asked in ("", "newest", "best"):
    with pytest.raises(saved_steps.StepError, match="none|holds no checkpoint"):
      saved_steps.choose(str(workdir / "none"), asked)
  for asked in ("last", "-1", "1.5", "²", " 4"):
    with pytest.raises(saved_steps.StepError, match="is not best, newest or"):
      saved_steps.choose(str(workdir), asked)


def test_a_step_that_goes_while_it_is_read_is_chosen_anew(workdir):
  set_best(workdir, "eval/loss")
  seen = []

  def read_step(path):
    seen.append(os.path.relpath(path, workdir))
    if len(seen) == 1:  # the run has found a better one
      (workdir / "best" / "8" / "metrics").mkdir(parents=True)
      os.rename(workdir / "best" / "2", workdir / "gone")
      os.rename(workdir / "best" / "4", workdir / "gone-too")
      raise ValueError("a file is gone")
    return "read"

  chosen, found = saved_steps.read(str(workdir), "", read_step)
  assert (found, chosen.step, seen) == ("read", 8, ["best/2", "best/8"])

  def damaged(path):
    seen.append(path)
    raise ValueError("damaged")

  del seen[:]
  with pytest.raises(ValueError, match="damaged"):
    saved_steps.read(str(workdir), "", damaged)
  assert len(seen) == 1  # what is there and damaged is not read again


def test_all_processes_of_a_job_read_the_step_that_the_first_chose(
  workdir, monkeypatch
):
  """A run that still trains may look different to each of them."""
  set_best(workdir, "eval/loss")
  choice = {}
  for first in (True, False):
    monkeypatch.setattr(
      checkpoint.hosts,
      "decide",
      lambda mine, judge, first=first: (
        [choice.setdefault("first", mine)]
        if first
        else json.loads(json.dumps(judge([choice["first"], mine])))
      ),
    )
    chosen = checkpoint._choose_together(str(workdir), "")
    assert (chosen.path, chosen.step) == (str(workdir / "best" / "2"), 2)
    if first:  # by the time that the other one looks
      os.rename(workdir / "best" / "2", workdir / "gone")


@pytest.mark.parametrize("process", [0, 1])
def test_what_one_process_cannot_find_is_said_by_all(
  process, workdir, monkeypatch
):
  good = ["checkpoints/10", 10, "the newest", ""]
  bad = ["", 0, "", "--checkpoint=7: it holds 4, 6, 10"]
  values = [bad, good] if process == 0 else [good, bad]
  monkeypatch.setattr(
    checkpoint.hosts, "decide", lambda mine, judge: judge(values)
  )
  with pytest.raises(saved_steps.StepError, match="it holds 4, 6, 10") as error:
    checkpoint._choose_together(str(workdir), "")
  assert ("process 1" in str(error.value)) == (process == 1)


def test_every_setting_of_a_run_can_be_left_to_it():
  config = predict_config.get_config()
  for key in weights.SETTINGS:
    group, name = key.split(".")
    assert config[group][name] in (None, ""), key


@pytest.mark.parametrize(
  "args",
  [
    ("--mode=evaluate", "--workdir=W", "--checkpoint=last"),
    ("--mode=predict", "--workdir=W", "--checkpoint=-3"),
    ("--mode=report", "--input=W", "--output=V", "--checkpoint=best"),
  ],
)
def test_a_checkpoint_that_cannot_be_meant_is_a_usage_error(
  args, monkeypatch, capsys, tmp_path
):
  values = launching.parse(*args)
  monkeypatch.setattr(main, "FLAGS", values)
  monkeypatch.chdir(tmp_path)
  assert main.main(["bert-jax"]) == errors.USAGE
  assert "--checkpoint" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_a_step_of_a_run_is_evaluated(finished_run, tmp_path):
  """By --checkpoint, and as weights of a new workdir."""
  run, step = (
    finished_run.workdir,
    saved_steps.choose(finished_run.workdir).step,
  )
  assert step < 8 or step == 8
  output = tmp_path / "scores.json"

  def scores():
    return json.loads(output.read_text())

  launch("evaluate", f"--workdir={run}", f"--output={output}")
  want = scores()
  assert want.pop("step") == step
  for args in (["--checkpoint=best"], [f"--checkpoint={step}"]):
    launch("evaluate", f"--workdir={run}", f"--output={output}", *args)
    assert scores() == {"step": step} | want
  config = finished_run.config.copy_and_resolve_references()
  config.init_from = f"{run}/best/{step}"
  got = evaluate.evaluate(config, str(tmp_path / "new"), str(output))
  assert got == pytest.approx(want)
  with pytest.raises(ValueError, match=f"--workdir=.* --checkpoint={step} "):
    evaluate.evaluate(config, f"{run}/best/{step}", str(output))
  for mode in ("evaluate", "predict", "train"):
    with pytest.raises(ValueError, match=f"{run}, with --checkpoint={step}"):
      launch(
        mode,
        f"--workdir={run}/best/{step}",
        *([f"--config={ROOT}/configs/demo.py"] if mode == "train" else []),
      )
  with pytest.raises(checkpoint.CheckpointError, match="checkpoints holds"):
    launch("evaluate", f"--workdir={run}", "--checkpoint=7")
