"""Classification of a text or a pair of texts (BERT paper, section 4.1)."""

import collections
from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np

from bert_jax.kinds import answers
from bert_jax.kinds import calibration
from bert_jax.kinds import losses
from bert_jax.kinds import task_kind
from bert_jax.kinds import windows
from bert_jax.tasks import groups
from bert_jax.tasks import labels as label_lib
from bert_jax.tasks import own
from bert_jax.tasks import spec


@dataclasses.dataclass(frozen=True, slots=True)
class ClassPrediction:
  """The most likely label or choice, and the probabilities of all.

  Attributes:
    label: an index into `Task.labels`, or the index of the choice.
    probabilities: the probability of each label or choice; their sum is 1.
  """

  label: int
  probabilities: tuple[float, ...]


def most_likely(logits: np.ndarray) -> list[ClassPrediction]:
  """Returns the prediction for each row of [N, K] logits."""
  weights = np.exp(logits - logits.max(axis=1, keepdims=True))
  probabilities = weights / weights.sum(axis=1, keepdims=True)
  return [
    ClassPrediction(label, tuple(row))
    for label, row in zip(
      logits.argmax(axis=1).tolist(), probabilities.tolist(), strict=True
    )
  ]


# --- Metrics; scikit-learn is slow to import ---


def accuracy(task, guess, right) -> float:
  """Returns the share of correct predictions."""
  import sklearn.metrics

  del task
  return sklearn.metrics.accuracy_score(right, guess)


def _f1(task, guess, right) -> float:
  """Returns F1 of the second of two labels, which is the positive one."""
  import sklearn.metrics

  if 1 not in guess and 1 not in right:
    reason = f"no example and no prediction is {task.labels[1]!r}"
    return task_kind.undefined(task, "f1", reason)
  return sklearn.metrics.f1_score(right, guess, zero_division=0.0)


def _macro_f1(task, guess, right) -> float:
  """Returns the mean of F1 over all labels that occur."""
  import sklearn.metrics

  del task
  return sklearn.metrics.f1_score(
    right, guess, average="macro", zero_division=0.0
  )


def _matthews(task, guess, right) -> float:
  import sklearn.metrics

  if len(set(guess)) == 1 or len(set(right)) == 1:
    return task_kind.undefined(
      task, "matthews", "the labels or the predictions are all the same"
    )
  return sklearn.metrics.matthews_corrcoef(right, guess)


def wrong_labels(
  kind: task_kind.TaskKind,
  task: spec.Task,
  examples: Sequence[Any],
  predictions: Sequence[ClassPrediction],
) -> list[dict[str, Any]]:
  """Returns a record for each wrong label or choice, most confident first.

  A record has the id and the texts of the example, the right answer (`gold`),
  the answer of the model (`predicted`) and its probability.
  """
  pairs = zip(examples, predictions, strict=True)
  wrong = [(e, p) for e, p in pairs if p.label != e.label]
  wrong.sort(key=lambda pair: -pair[1].probabilities[pair[1].label])
  records = []
  for example, prediction in wrong:
    (text, other), *more = example.pairs
    record = {"id": example.id, "text": text}
    if more:
      record["choices"] = [second for _, second in example.pairs]
    elif other is not None:
      record["text_b"] = other
    (predicted, *_) = kind.row(task, prediction).values()
    records.append(
      record
      | {
        "gold": kind.gold(task, example),
        "predicted": predicted,
        "probability": prediction.probabilities[prediction.label],
      }
    )
  return records


# With fewer examples, equal predictions may well be right.
_FEW_EXAMPLES = 10


def same_labels(
  predictions: Sequence[ClassPrediction],
  examples: Sequence[Any],
  name: Callable[[int], Any],
) -> str:
  """Returns that all predictions are the same though labels differ, or "".

  Args:
    predictions: one for each example.
    examples: the examples, with labels.
    name: label -> its name.
  """
  guesses = {p.label for p in predictions}
  counts = collections.Counter(e.label for e in examples)
  if len(guesses) > 1 or len(counts) < 2 or len(examples) < _FEW_EXAMPLES:
    return ""
  (label, most), *_ = counts.most_common(1)
  return (
    f"all {len(examples)} predictions are {name(guesses.pop())!r}; always "
    f"{name(label)!r}, the most frequent label, would be right for "
    f"{most / len(examples):.1%}"
  )


def count_pairs(
  num_labels: int, guess: Sequence[int], right: Sequence[int]
) -> np.ndarray:
  """Returns [K, K] counts: how often each label was predicted for each."""
  counts = np.zeros((num_labels, num_labels), np.int64)
  np.add.at(counts, (np.asarray(right, int), np.asarray(guess, int)), 1)
  return counts


_MOST_COLUMNS = 12  # a confusion matrix with more does not fit a screen


def class_tables(
  names: Sequence[str], guess: Sequence[int], right: Sequence[int]
) -> str:
  """Returns precision, recall and F1 of each label, and a confusion matrix.

  The matrix is left out if there are many labels.
  """
  import sklearn.metrics

  ids = list(range(len(names)))
  scores = sklearn.metrics.precision_recall_fscore_support(
    right, guess, labels=ids, zero_division=0.0
  )
  width = max(map(len, (*names, "label")))
  lines = [f"{'label':<{width}}  precision  recall     F1  examples"]
  for name, precision, recall, f1, support in zip(names, *scores, strict=True):
    lines.append(
      f"{name:<{width}}  {precision:9.3f}  {recall:6.3f}  {f1:5.3f}  "
      f"{support:8,d}"
    )
  if len(names) <= _MOST_COLUMNS:
    counts = sklearn.metrics.confusion_matrix(right, guess, labels=ids)
    cell = max(6, *map(len, names))
    head = "  ".join(f"{name:>{cell}}" for name in names)
    lines += ["", f"{'right, down; predicted, across':<{width}}"]
    lines.append(f"{'':<{width}}  {head}")
    for name, row in zip(names, counts.tolist(), strict=True):
      cells = "  ".join(f"{count:>{cell},d}" for count in row)
      lines.append(f"{name:<{width}}  {cells}")
  return "\n".join(lines)


class Classify(windows.TextKind):
  """Gives a text or a pair of texts one label."""

  name = "classify"
  scores = {
    "accuracy": accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "all_right": task_kind.OfExamples(groups.all_right),
    "same_answer": task_kind.OfExamples(groups.same_answer),
    "best_exact": task_kind.OfExamples(groups.best_exact),
    "best_f1": task_kind.OfExamples(groups.best_f1),
  }
  forms = {
    form: own.Form(
      ("accuracy", "macro_f1"),
      (len(columns), len(columns)),
      own.read_classes,
      label_lib.complete_classes,
      columns,
    )
    for form, columns in (("classify", ("text",)), ("pairs", own.PAIR))
  }

  loss_settings = task_kind.LOSS_SETTINGS
  decode_settings = ("temperature", "long_texts")

  def loss(self, outputs, batch, options=losses.PLAIN):
    return losses.class_cross_entropy(
      outputs, batch["label"], batch["weight"], options
    )

  def _decode(
    self,
    task,
    features,
    outputs,
    temperature=1.0,
    long_texts=windows.CUT,
    **options,
  ):
    pooled = windows.pool(features, outputs, long_texts)
    return most_likely(pooled / temperature)

  def most_frequent(self, examples: Sequence[Any]) -> float | None:
    counts = collections.Counter(e.label for e in examples)
    return max(counts.values()) / sum(counts.values())

  def degenerate(self, task, predictions, examples):
    return same_labels(predictions, examples, task.labels.__getitem__)

  def row(self, task, prediction):
    return {
      "label": task.labels[prediction.label],
      "probabilities": dict(
        zip(task.labels, prediction.probabilities, strict=True)
      ),
    }

  def gold(self, task, example):
    return task.labels[example.label]

  def tables(self, task, examples, predictions):
    guess, right = self._columns(task, predictions, examples)
    probabilities = np.array([p.probabilities for p in predictions])
    remark = calibration.describe(probabilities, np.array(right))
    table = class_tables(task.labels, guess, right)
    return f"{table}\n\n{remark}" if remark else table

  def confusion(self, task, examples, predictions):
    guess, right = self._columns(task, predictions, examples)
    return count_pairs(len(task.labels), guess, right)

  def mistakes(self, task, examples, predictions):
    return wrong_labels(self, task, examples, predictions)


CLASSIFY = Classify()


class Answerer(answers.TaskAnswerer):
  """Gives a text or a pair its label and the probability of each label."""

  name = "classify"
  kind = CLASSIFY
  record_fields = ("text", "text_b")
  pair_rank = 2

  def relevance_label(self, label):
    labels = self.labels
    if label is None and len(labels) != 2:
      raise answers.RecordError(
        f"the model has {len(labels)} labels; name the one that means relevant "
        f"as label, one of {', '.join(labels)}"
      )
    chosen = labels[1] if label is None else label
    if chosen not in labels:
      raise answers.RecordError(
        f"label is {chosen!r:.60}; wanted one of {', '.join(labels)}"
      )
    return chosen

  def relevances(self, found, label):
    return [answer["scores"][label] for answer in found]
