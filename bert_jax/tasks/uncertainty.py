"""What a difference of scores is worth: bootstrap intervals, McNemar's test."""

from collections.abc import Callable, Mapping

import numpy as np

LEVEL = 0.95  # of all intervals


def bootstrap(
  score: Callable[[np.ndarray], Mapping[str, float]],
  num_examples: int,
  num_samples: int,
  seed: int = 0,
) -> dict[str, tuple[float, float]]:
  """Returns an interval for each score of a split, by percentiles.

  Args:
    score: returns the scores of some examples, which may repeat, by number.
    num_examples: the number of examples.
    num_samples: how often the examples are drawn, with replacement.
    seed: the seed of the draws.

  Returns:
    Name of the score -> (low, high), which hold it with 95 %.

  Source: Efron and Tibshirani, An introduction to the bootstrap, chapter 13.
  """
  rng = np.random.default_rng(seed)
  found: dict[str, list[float]] = {}
  for _ in range(num_samples):
    drawn = rng.integers(0, num_examples, num_examples)
    for name, value in score(drawn).items():
      found.setdefault(name, []).append(value)
  tail = 100 * (1 - LEVEL) / 2
  return {
    name: tuple(np.percentile(values, [tail, 100 - tail]).tolist())
    for name, values in found.items()
  }


def mcnemar(only_first: int, only_second: int) -> float:
  """Returns the exact two-sided p-value of McNemar's test.

  It is the probability of a difference as large as this if both models were
  equally likely to be the one that is right.

  Args:
    only_first: the number of examples that only the first model gets right.
    only_second: the same for the second.

  Example:
    >>> round(mcnemar(9, 1), 4)
    0.0215
  """
  from scipy import stats  # slow to import

  total = only_first + only_second
  return float(stats.binomtest(only_first, total).pvalue) if total else 1.0
