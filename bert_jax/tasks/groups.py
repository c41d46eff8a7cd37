"""Scores of examples that belong together, such as the answers to a question.

All are from 0 to 1, and each group counts the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

from bert_jax.tasks import answer_scores
from bert_jax.tasks import spec


def all_right(
  examples: Sequence[spec.GroupedExample], predictions: Sequence[Any]
) -> float:
  """Returns the share of groups in which every prediction is right.

  Args:
    examples: the examples, with labels.
    predictions: one for each example, with a `label`.

  Source: https://aclanthology.org/N18-1023 (MultiRC's exact match)
  """
  return _mean(
    examples,
    lambda unit: all(predictions[i].label == examples[i].label for i in unit),
  )


def same_answer(
  examples: Sequence[spec.GroupedExample], predictions: Sequence[Any]
) -> float:
  """Returns the share of groups in which all predictions are the same.

  The groups of Winogender are pairs that differ in the gender of a pronoun, so
  that this is their gender parity score.

  Args:
    examples: the examples.
    predictions: one for each example, with a `label`.

  Source: https://arxiv.org/abs/1905.00537, section 3.4
  """
  return _mean(
    examples, lambda unit: len({predictions[i].label for i in unit}) == 1
  )


def best_candidates(
  examples: Sequence[spec.GroupedExample], predictions: Sequence[Any]
) -> dict[str, spec.GroupedExample]:
  """Returns the most likely example of each group, the first of equal ones.

  Args:
    examples: the examples.
    predictions: one for each example, whose second probability is that of the
      candidate being right.

  Returns:
    group -> example, in the order of the groups.
  """
  return {
    examples[unit[0]].group: examples[
      max(unit, key=lambda i: predictions[i].probabilities[1])
    ]
    for unit in spec.units(examples)
  }


def best_exact(
  examples: Sequence[spec.GroupedExample], predictions: Sequence[Any]
) -> float:
  """Returns the share of groups whose most likely candidate is a right answer.

  Texts are compared as SQuAD 1.1 does it.

  Args:
    examples: the examples, with `golds`.
    predictions: see `best_candidates`.

  Source: https://arxiv.org/abs/1810.12885
  """
  return _of_texts(examples, predictions, answer_scores.exact_score)


def best_f1(
  examples: Sequence[spec.GroupedExample], predictions: Sequence[Any]
) -> float:
  """Returns the mean F1 of the words of the most likely candidates.

  Args:
    examples: the examples, with `golds`.
    predictions: see `best_candidates`.

  Source: https://arxiv.org/abs/1810.12885
  """
  return _of_texts(
    examples,
    predictions,
    lambda text, gold: answer_scores.f1_score(
      text, gold, empty_equals_empty=False
    ),
  )


def _of_texts(
  examples: Sequence[spec.GroupedExample],
  predictions: Sequence[Any],
  compare: Callable[[str, str], float],
) -> float:
  best = best_candidates(examples, predictions).values()
  return sum(
    max((compare(e.candidate, gold) for gold in e.golds), default=0.0)
    for e in best
  ) / len(best)


def _mean(
  examples: Sequence[spec.GroupedExample],
  is_good: Callable[[list[int]], bool],
) -> float:
  units = spec.units(examples)
  return sum(map(is_good, units)) / len(units)
