"""Fine-tuning from Python: the training of `bert-jax train`, and its model.

tuned = bert_jax.fine_tune(
  "bert-base-uncased",
  [{"text": "a fine film", "label": "good"}, ...],
  validation="dev.csv",
  workdir="RUN",
)
print(tuned.metrics["eval/accuracy"])
print(tuned.model.classify(["what a day"])[0].label)
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import os
from typing import Any

from bert_jax import tasks
from bert_jax.kinds import answers
from bert_jax.kinds import table
from bert_jax.prediction import model as model_lib
from bert_jax.runtime import config_files
from bert_jax.runtime import files
from bert_jax.runtime import metrics_log
from bert_jax.runtime import saved_steps
from bert_jax.runtime import settings
from bert_jax.tasks import spec
from bert_jax.training import train

# A file of rows, or the rows.
Rows = str | os.PathLike[str] | Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class FineTuned:
  """A finished fine-tuning.

  Attributes:
    model: the trained model, at the best step if the run keeps one.
    metrics: the metrics of that step, such as "eval/accuracy"; {} if it was
      not evaluated.
    workdir: the folder of the run.
  """

  model: model_lib.Model
  metrics: Mapping[str, float]
  workdir: str


def fine_tune(
  model: str | os.PathLike[str],
  train_rows: Rows | None = None,
  validation: Rows | None = None,
  *,
  workdir: str | os.PathLike[str],
  task: str = "classify",
  data: str | os.PathLike[str] = "",
  text: Sequence[str] | str = (),
  label: str = "label",
  epochs: float | None = None,
  learning_rate: float | None = None,
  batch_size: int | None = None,
  seq_len: int | None = None,
  seed: int = 0,
  settings: Mapping[str, Any] | None = None,
) -> FineTuned:
  """Fine-tunes a model on rows with labels.

  It trains as `bert-jax train --config=finetune` does, with checkpoints in
  `workdir`: after an interruption, the same call goes on. The recipe is that of
  the task in configs/finetune.py, unless an argument changes it.

  Args:
    model: the weights to start from: a Hugging Face or Flax folder, the name of
      a model of the hub, a TF1 checkpoint or a workdir.
    train_rows: the training data: a file that `bert-jax train` reads (CSV,
      JSON lines, Parquet, ...), or a list of dicts with these columns.
    validation: the data that is evaluated on, likewise.
    workdir: the folder of the run.
    task: "classify", "pairs", "regress", "multi_label", "tag", "span",
      "choice", "embed", "similarity" or "rerank" for rows of your own; or
      the name of a benchmark, such as "mrpc".
    data: the folder of a benchmark, which has its files in their official
      layout. For rows of your own, the folder of the files train and dev, of
      which those that `train_rows` or `validation` give are not read.
    text: rows of your own: the columns of the text. By default, "text"; of
      pairs, "text" and "text_b"; of tags, "words"; of spans, "question" and
      "context"; of choices, "text" and "choices"; to embed or rerank, "query",
      "positive" and those that begin with "negative".
    label: rows of your own: the column of the label.
    epochs: how often every row is trained on.
    learning_rate: the highest learning rate.
    batch_size: the rows of a step.
    seq_len: the most tokens of a text; longer texts are cut.
    seed: the seed of the order of rows, dropout and new weights.
    settings: more keys of the config and their values, such as
      {"optim.warmup_rate": 0.2}; docs/config.md lists the keys.

  Returns:
    The trained model, its metrics and its folder.

  Raises:
    ValueError: An argument, the data or the weights cannot be used; nothing was
      trained.
    training.run.DivergedError: The loss became NaN or infinite.
  """
  workdir = os.fspath(workdir)
  config = _make_config(model, task, seed)
  sets: dict[str, Any] = {
    "task.dir": os.fspath(data) or None,
    "train.num_epochs": None if epochs is None else float(epochs),
    "optim.learning_rate": learning_rate,
    "data.batch_size": batch_size,
    "data.seq_len": seq_len,
  }
  given = {"train": train_rows, "validation": validation}
  if config.task.name.startswith("my-"):
    if data and all(rows is not None for rows in given.values()):
      raise answers.PredictError(
        f"data={os.fspath(data)!r} would not be read, since train_rows and "
        "validation are given; give the folder or the rows"
      )
    _, form = table.FORMS[config.task.name.removeprefix("my-")]
    columns = (text,) if isinstance(text, str) else tuple(text)
    sets["task.text"] = columns or form.columns
    sets["task.label"] = label
  else:
    _check_benchmark(task, given, text, label)
  given_keys = {key: value for key, value in sets.items() if value is not None}
  changes = given_keys | dict(settings or {})
  model_lib.set_keys(config, changes)  # before a file is written
  contents = {split: _content(rows, split) for split, rows in given.items()}
  paths: dict[str, Any] = {
    f"task.files.{split}": _as_file(rows, split, contents[split], workdir)
    for split, rows in given.items()
    if rows is not None
  }
  model_lib.set_keys(config, paths | changes)
  train.train(config, workdir)
  step = saved_steps.choose(workdir).step
  metrics = metrics_log.scores_at(metrics_log.read_metrics(workdir), step)
  return FineTuned(model_lib.load(workdir), metrics, workdir)


def _make_config(
  model: str | os.PathLike[str], task: str, seed: int
) -> settings.Config:
  """Returns the config of a task, with the recipe of its kind.

  Raises:
    answers.PredictError: There is no such task.
  """
  if task not in tasks.TASKS and task not in table.FORMS:
    raise answers.PredictError(
      f"task={task!r} is not known; for rows of your own give one of "
      f"{', '.join(table.FORMS)}, for a benchmark one of "
      f"{', '.join(tasks.TASKS)}"
    )
  name = task if task in tasks.TASKS else f"my-{task}"
  config = config_files.load("finetune", f"task={name}")
  config.init_from = os.fspath(model)
  config.seed = seed
  return config


def _check_benchmark(
  task: str,
  rows: Mapping[str, Rows | None],
  text: Sequence[str] | str,
  label: str,
) -> None:
  """Raises PredictError for what only rows of one's own have."""
  if any(given is not None for given in rows.values()):
    raise answers.PredictError(
      f"task={task!r} is a benchmark, which has files of its own; give `data`, "
      "their folder, and no rows"
    )
  other = "" if label == "label" else label
  for name, value in (("text", text), ("label", other)):
    if value:
      raise answers.PredictError(
        f"{name}={value!r:.60}: task={task!r} is a benchmark, whose columns "
        f"are known; leave {name} out"
      )


def _content(rows: Rows | None, split: str) -> bytes | None:
  """Returns rows as lines of JSON; None if they are a file or not given.

  Raises:
    spec.TaskError: They are no rows, or hold what no file can.
  """
  if rows is None or isinstance(rows, str | os.PathLike):
    return None
  listed = list(rows)
  if not listed:
    raise spec.TaskError(f"{split} has no rows; give one or more")
  for number, row in enumerate(listed):
    if not isinstance(row, Mapping):
      raise spec.TaskError(
        f"row {number} of {split} is {row!r:.60}; give a dict, such as "
        '{"text": "a text", "label": "a label"}'
      )
  try:
    lines = [files.to_json(dict(row), ensure_ascii=False) for row in listed]
  except (TypeError, ValueError) as error:
    raise spec.TaskError(
      f"the rows of {split} hold a value that JSON has no form for: {error}; "
      "give texts, numbers and lists"
    ) from error
  for number, line in enumerate(lines):
    try:
      line.encode("utf-8")
    except UnicodeEncodeError as error:
      raise spec.TaskError(
        f"row {number} of {split} has half a character (one half of a "
        f"surrogate pair): {listed[number]!r:.200}; mend or leave out this text"
      ) from error
  return ("\n".join(lines) + "\n").encode("utf-8")


def _as_file(
  rows: Rows, split: str, content: bytes | None, workdir: str
) -> str:
  """Returns the file of some rows, which it writes if they have a content.

  The name of the file tells what is in it, so that a run that goes on does not
  find other rows.
  """
  if content is None:
    assert isinstance(rows, str | os.PathLike)
    return os.fspath(rows)
  digest = hashlib.sha256(content).hexdigest()[:12]
  folder = os.path.join(workdir, "data")
  files.make_folders(folder)
  path = os.path.join(folder, f"{split}-{digest}.jsonl")
  if not files.exists(path):
    files.write_bytes(path, content)
  return path
