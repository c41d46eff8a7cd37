"""Multi-label classification: any number of labels for a text or a pair.

The probability of each label is the sigmoid of its output. A label is given if
its probability is above a threshold, which is either the same for all labels or
different for each.
"""

import dataclasses
from typing import Any

import numpy as np

from bert_jax.data import batch_keys
from bert_jax.kinds import answers
from bert_jax.kinds import calibration
from bert_jax.kinds import losses
from bert_jax.kinds import task_kind
from bert_jax.kinds import windows
from bert_jax.tasks import labels as label_lib
from bert_jax.tasks import own
from bert_jax.tasks import spec


@dataclasses.dataclass(frozen=True, slots=True)
class LabelsPrediction:
  """The labels of a text.

  Attributes:
    labels: the given labels as ascending indices into `Task.labels`.
    probabilities: the probability of each label of the task, 0 to 1.
  """

  labels: tuple[int, ...]
  probabilities: tuple[float, ...]


# --- Own data ---


def _names(task: spec.Task, value: Any, where: str) -> list[str]:
  """Returns the labels of a row: a list, or text with separators.

  Text in brackets is a list, as other programs write lists into CSV.

  Raises:
    spec.TaskError: The value is neither, or an item is not a label.
  """
  if isinstance(value, str):
    text, separator, quotes = value.strip(), task.label_separator, ""
    if text[:1] == "[" and text[-1:] == "]":
      text, separator, quotes = text[1:-1], ",", "'\""
    parts = (part.strip() for part in text.split(separator))
    value = [part.strip(quotes) if quotes else part for part in parts if part]
  if not isinstance(value, list):
    raise spec.TaskError(
      f"{where}: {task.label} is {value!r:.60}; wanted a list of labels, or"
      f" text with {task.label_separator!r} between the labels"
    )
  for name in value:
    if not isinstance(name, str | int):  # a bool is an int
      raise spec.TaskError(
        f"{where}: {task.label} has {name!r:.60} among its labels; wanted"
        " texts, whole numbers or truth values"
      )
  return [str(name).strip() for name in value]


def _parse(task: spec.Task, value: Any, where: str) -> tuple[int, ...]:
  names = set(_names(task, value, where))
  ids = (label_lib.label_id(task, name, where) for name in names)
  return tuple(sorted(set(ids)))


# An empty text means no label. Only without the column they are not known.
_read_rows = own.make_reader(
  own.pair_maker(_parse), is_missing=lambda value: value is None
)


def _read(task, path, split) -> list[spec.PairExample]:
  """Reads texts with labels; a test file in which all are empty has none."""
  examples = _read_rows(task, path, split)
  if split in task.test_splits and not any(e.label for e in examples):
    return [spec.without_label(example) for example in examples]
  return examples


def _complete(task: spec.Task, path: str) -> spec.Task:
  if task.labels:
    file_labels = label_lib.numbered(task.labels)
    return dataclasses.replace(task, file_labels=file_labels)
  found = label_lib.count_labels(
    (where, name)
    for where, value in label_lib.values(task, path)
    for name in _names(task, value, where)
  )
  label_lib.warn_of_twins(path, found)
  return dataclasses.replace(task, labels=spec.distinct_labels(found))


# --- Metrics ---


def _indicators(task, rows) -> np.ndarray:
  """Returns [N, K] booleans: whether each of N tuples has each label."""
  found = np.zeros((len(rows), len(task.labels)), bool)
  for place, labels in zip(found, rows, strict=True):
    place[list(labels)] = True
  return found


def _f1(average: str) -> task_kind.Score:
  """Makes F1 over all decisions ("micro"), or its mean over labels ("macro").

  The mean leaves out labels that neither an example nor a prediction has.
  """

  def f1(task, guess, right) -> float:
    given = _indicators(task, [p.labels for p in guess])
    gold = _indicators(task, right)
    # F1 = 2 * hits / (given + gold), here for each label.
    hits = 2 * np.sum(given & gold, axis=0)
    total = given.sum(axis=0) + gold.sum(axis=0)
    if not total.any():
      return task_kind.undefined(
        task, f"{average}_f1", "no example and no prediction has a label"
      )
    if average == "micro":
      return hits.sum() / total.sum()
    return np.mean(hits[total > 0] / total[total > 0])

  return f1


def _average_precision(task, guess, right) -> float:
  """Returns the mean over labels of the area under precision and recall.

  The mean leaves out labels that no example has.
  """
  import sklearn.metrics

  gold = _indicators(task, right)
  known = gold.any(axis=0)
  if not known.any():
    return task_kind.undefined(
      task, "average_precision", "no example has a label"
    )
  probabilities = np.array([p.probabilities for p in guess])
  return sklearn.metrics.average_precision_score(
    gold[:, known], probabilities[:, known], average="macro"
  )


# --- The kind ---


class MultiLabel(windows.TextKind):
  """Gives a text or a pair of texts any number of labels."""

  name = "multi_label"
  labels = batch_keys.Labels({"label": ("BGK", np.float32)})
  scores = {
    "micro_f1": _f1("micro"),
    "macro_f1": _f1("macro"),
    "average_precision": _average_precision,
  }
  forms = {"multi_label": own.Form(scores, (1, 2), _read, _complete)}
  decode_settings = ("thresholds", "long_texts")

  loss_settings = task_kind.LOSS_SETTINGS

  def loss(self, outputs, batch, options=losses.PLAIN):
    """Returns the sum of the cross-entropies of all labels, and its weight."""
    weights = batch["weight"][..., None]
    return losses.sigmoid_cross_entropy(
      outputs, batch["label"], weights, options
    )

  def weights(self, batch):
    return {"task_loss": batch["weight"].sum() * batch["label"].shape[-1]}

  def balanced_weights(self, label, num_labels):
    """Returns how many texts lack each label, for each that has it [K]."""
    counts = label.sum(axis=0)
    return (len(label) - counts) / np.maximum(counts, 1)

  def degenerate(self, task, predictions, examples):
    if any(p.labels for p in predictions) or not any(e.label for e in examples):
      return ""
    return f"none of {len(examples)} texts gets any label"

  def _label_array(self, task, examples):
    labels = [example.label for example in examples]
    return _indicators(task, labels).astype(np.float32)

  def check_options(self, task, thresholds=(0.5,), **options):
    fits = len(thresholds) in (1, len(task.labels))
    if not fits or not all(0 <= x <= 1 for x in thresholds):
      raise spec.TaskError(
        f"task.thresholds={tuple(thresholds)}; give one number from 0 to 1, or"
        f" one for each of the {len(task.labels)} labels"
      )

  def _decode(
    self,
    task,
    features,
    outputs,
    thresholds=(0.5,),
    long_texts=windows.CUT,
    **options,
  ):
    from scipy import special  # slow to import

    outputs = windows.pool(features, outputs, long_texts)
    least = np.asarray(thresholds, np.float64)
    return [
      LabelsPrediction(
        tuple(np.flatnonzero(row > least).tolist()), tuple(row.tolist())
      )
      for row in special.expit(outputs)
    ]

  def _columns(self, task, predictions, examples):
    return list(predictions), [e.label for e in examples]

  def tables(self, task, examples, predictions):
    """Returns the threshold of each label that has its best F1 here."""
    if len(examples) < calibration.LEAST_EXAMPLES:
      return ""
    probabilities = np.array([p.probabilities for p in predictions])
    gold = _indicators(task, [e.label for e in examples])
    best = [
      calibration.best_threshold(*column)
      for column in zip(probabilities.T, gold.T, strict=True)
    ]
    return (
      "the thresholds that give each label its best F1 here: "
      f"--config.task.thresholds={','.join(f'{x:.3g}' for x in best)}"
    )

  def row(self, task, prediction):
    return {
      "labels": [task.labels[i] for i in prediction.labels],
      "probabilities": dict(
        zip(task.labels, prediction.probabilities, strict=True)
      ),
    }

  def gold(self, task, example):
    return [task.labels[i] for i in example.label]


MULTI_LABEL = MultiLabel()


class Answerer(answers.TaskAnswerer):
  """Gives the labels above their thresholds and the probabilities of all."""

  name = "multi_label"
  kind = MULTI_LABEL
  record_fields = ("text", "text_b")
