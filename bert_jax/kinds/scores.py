"""From a model's outputs to predictions, and from these to scores.

Scores are fractions from 0 to 1 (correlations from -1) but for questions,
where exact and F1 are in percent, as the official scripts print them.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import logging
from typing import Any

import numpy as np
from scipy import stats
import seqeval.metrics
import sklearn.metrics

from bert_jax.tasks import features as features_lib
from bert_jax.tasks import spec
from bert_jax.tasks import squad

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class ClassPrediction:
  """A label, or a choice, and how likely each is.

  Attributes:
    label: place in `Task.labels`, or of the choice.
    probabilities: one a label or choice; they add up to 1.
  """

  label: int
  probabilities: tuple[float, ...]


# --- Outputs to predictions ---


def decode(
  task: spec.Task,
  features: features_lib.Features,
  outputs: Any,
  **options: Any,
) -> list[Any]:
  """Turns a model's outputs into one prediction an example.

  Args:
    task: decides the kind.
    features: that the outputs are of.
    outputs: [N, K] logits (classify), [N, 1] scores (regress), [N, C] logits
      (choice), [T, K] logits of every token (tag), or the pair of [T] start
      and [T] end logits (span).
    **options: of squad.decode (span).

  Returns:
    ClassPrediction (classify, choice), float (regress), a tuple with the tag
    of every word (tag), squad.SpanPrediction (span).

  Raises:
    spec.TaskError: another shape than the features', or a value that is not
      finite.
  """
  sizes = {
    "classify": (len(features), task.num_outputs),
    "regress": (len(features), 1),
    "choice": (len(features), features.num_choices),
    "tag": (len(features.token_ids), task.num_outputs),
    "span": (2, len(features.token_ids)),
  }
  array = np.asarray(outputs, np.float64)
  if array.shape != sizes[task.kind]:
    raise spec.TaskError(
      f"task {task.name}: outputs of shape {array.shape}, wanted"
      f" {sizes[task.kind]} for these features"
    )
  if not np.isfinite(array).all():
    raise spec.TaskError(
      f"task {task.name}: {np.sum(~np.isfinite(array))} of {array.size} outputs"
      " are not finite, so the model has diverged; lower the learning rate"
    )
  if task.kind == "span":
    start, end = array
    return squad.decode(features, start, end, has_null=task.has_null, **options)
  return _DECODERS[task.kind](task, features, array)


def _decode_classes(task, features, logits) -> list[ClassPrediction]:
  del task, features
  weights = np.exp(logits - logits.max(axis=1, keepdims=True))
  probabilities = weights / weights.sum(axis=1, keepdims=True)
  return [
    ClassPrediction(label, tuple(row))
    for label, row in zip(
      logits.argmax(axis=1).tolist(), probabilities.tolist(), strict=True
    )
  ]


def _decode_scores(task, features, outputs) -> list[float]:
  del task, features
  return outputs[:, 0].tolist()


def _decode_tags(task, features, logits) -> list[tuple[str, ...]]:
  """The tags of all pieces of a sentence, joined again."""
  best = logits.argmax(axis=1)
  owners = np.repeat(features.example, features.lengths)
  is_word = features.words != features_lib.IGNORED
  tags: list[dict[int, str]] = [{} for _ in range(features.num_examples)]
  for owner, word, label in zip(
    owners[is_word].tolist(),
    features.words[is_word].tolist(),
    best[is_word].tolist(),
    strict=True,
  ):
    tags[owner][word] = task.labels[label]
  return [tuple(found[word] for word in range(len(found))) for found in tags]


_DECODERS: dict[str, Callable[..., list[Any]]] = {
  "classify": _decode_classes,
  "choice": _decode_classes,
  "regress": _decode_scores,
  "tag": _decode_tags,
}


# --- Predictions to scores ---


def score(
  task: spec.Task, predictions: Sequence[Any], examples: Sequence[Any]
) -> dict[str, float]:
  """The metrics of a task over a whole split.

  A metric that is not defined is 0.0 and logs a warning: the correlation of
  constants, F1 where nothing is positive.

  Args:
    task: names the metrics.
    predictions: of `decode`, one an example.
    examples: with labels.

  Returns:
    Metric -> value, for all of task.metrics: fractions, but percent for the
    exact and f1 of questions. Questions that may have no answer add the keys
    of squad.evaluate_v2, where best_exact and best_f1 are over the best
    answers whatever the threshold was.

  Raises:
    spec.TaskError: examples without labels, or another number of them.
  """
  if len(predictions) != len(examples) or not examples:
    raise spec.TaskError(
      f"task {task.name}: {len(predictions)} predictions for {len(examples)}"
      " examples; wanted one each"
    )
  if not spec.have_labels(task, examples):
    raise spec.TaskError(
      f"task {task.name}: these examples have no labels, so there is nothing"
      " to score; write their predictions, or evaluate on"
      f" {', '.join(task.eval_splits) or 'a split with labels'}"
    )
  if task.kind == "span":
    return _span_scores(task, predictions, examples)
  return {
    name: float(METRICS[name](task, *_columns(task, predictions, examples)))
    for name in task.metrics
  }


def _columns(task, predictions, examples) -> tuple[list[Any], list[Any]]:
  """What was predicted and what is right."""
  if task.kind == "tag":
    for guess, example in zip(predictions, examples, strict=True):
      if len(guess) != len(example.words):
        raise spec.TaskError(
          f"task {task.name}: {len(guess)} tags for the {len(example.words)}"
          f" words of sentence {example.id}"
        )
    return [list(p) for p in predictions], [list(e.labels) for e in examples]
  right = [example.label for example in examples]
  if task.kind == "regress":
    return list(predictions), right
  return [p.label for p in predictions], right


def _accuracy(task, guess, right) -> float:
  if task.kind == "tag":
    return seqeval.metrics.accuracy_score(right, guess)
  return sklearn.metrics.accuracy_score(right, guess)


def _f1(task, guess, right) -> float:
  """F1 of the second label, which is the positive one of two."""
  if 1 not in guess and 1 not in right:
    _warn(task, "f1", f"no example is {task.labels[1]!r}, nor predicted so")
  return sklearn.metrics.f1_score(
    [label == 1 for label in right],
    [label == 1 for label in guess],
    zero_division=0.0,
  )


def _macro_f1(task, guess, right) -> float:
  """The mean of F1 over all labels that occur."""
  del task
  return sklearn.metrics.f1_score(
    right, guess, average="macro", zero_division=0.0
  )


def _matthews(task, guess, right) -> float:
  if len(set(guess)) == 1 or len(set(right)) == 1:
    _warn(task, "matthews", "the labels or the predictions are all the same")
    return 0.0
  return sklearn.metrics.matthews_corrcoef(right, guess)


def _correlation(
  name: str, function: Callable[..., Any]
) -> Callable[..., float]:
  def correlate(task, guess, right) -> float:
    if len(set(guess)) == 1 or len(set(right)) == 1:
      _warn(task, name, "the scores or the predictions are all the same")
      return 0.0
    return function(guess, right).statistic

  return correlate


def _entities(function: Callable[..., Any]) -> Callable[..., float]:
  """Precision, recall or F1 of whole entities, as conlleval counts them."""

  def count(task, guess, right) -> float:
    if all(tag == "O" for tags in (*right, *guess) for tag in tags):
      _warn(task, function.__name__, "there is no entity, nor one predicted")
    return function(right, guess, zero_division=0)

  return count


def _warn(task: spec.Task, metric: str, reason: str) -> None:
  _log.warning(
    "task %s: %s is not defined (%s) and counts as 0.0",
    task.name, metric, reason,
  )  # fmt: skip


METRICS: Mapping[str, Callable[..., float]] = {
  "accuracy": _accuracy,
  "f1": _f1,
  "macro_f1": _macro_f1,
  "matthews": _matthews,
  "pearson": _correlation("pearson", stats.pearsonr),
  "spearman": _correlation("spearman", stats.spearmanr),
  "entity_f1": _entities(seqeval.metrics.f1_score),
  "precision": _entities(seqeval.metrics.precision_score),
  "recall": _entities(seqeval.metrics.recall_score),
}


def _span_scores(task, predictions, examples) -> dict[str, float]:
  golds = squad.golds_of(examples)
  texts = {e.id: p.text for e, p in zip(examples, predictions, strict=True)}
  if not task.has_null:
    result = squad.evaluate_v1(golds, texts)
    return {"exact": result["exact_match"], "f1": result["f1"]}
  odds = {e.id: p.null_odds for e, p in zip(examples, predictions, strict=True)}
  if any(value is None for value in odds.values()):
    return squad.evaluate_v2(golds, texts)
  best_texts = {
    e.id: p.best_text for e, p in zip(examples, predictions, strict=True)
  }
  best = squad.evaluate_v2(golds, best_texts, odds)
  return squad.evaluate_v2(golds, texts) | {
    name: value for name, value in best.items() if name.startswith("best_")
  }
