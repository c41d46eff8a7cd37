"""Classification of a text or a pair of texts (BERT paper, section 4.1)."""

import collections
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from bert_jax.kinds import answers
from bert_jax.kinds import losses
from bert_jax.kinds import task_kind
from bert_jax.tasks import own


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


class Classify(task_kind.TaskKind):
  """Gives a text or a pair of texts one label."""

  name = "classify"
  scores = {
    "accuracy": accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
  }
  forms = {
    form: own.Form(
      ("accuracy", "macro_f1"),
      (num_texts, num_texts),
      own.read_pairs,
      own.class_labels,
    )
    for form, num_texts in (("classify", 1), ("pairs", 2))
  }

  def loss(self, outputs, batch):
    return losses.cross_entropy(outputs, batch["label"], batch["weight"])

  def _decode(self, task, features, outputs, **options):
    return most_likely(outputs)

  def most_frequent(self, examples: Sequence[Any]) -> float | None:
    counts = collections.Counter(e.label for e in examples)
    return max(counts.values()) / sum(counts.values())

  def row(self, task, prediction):
    return {
      "label": task.labels[prediction.label],
      "probabilities": dict(
        zip(task.labels, prediction.probabilities, strict=True)
      ),
    }

  def gold(self, task, example):
    return task.labels[example.label]


CLASSIFY = Classify()


class Answerer(answers.TaskAnswerer):
  """Gives a text or a pair its label and the probability of each label."""

  name = "classify"
  kind = CLASSIFY
