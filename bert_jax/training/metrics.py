"""Adds up (sum, weight) pairs on the host, in float64, and divides once."""

from collections.abc import Mapping
import math
from typing import SupportsFloat

Totals = dict[str, tuple[float, float]]


def add(
  totals: Mapping[str, tuple[float, float]],
  sums: Mapping[str, tuple[SupportsFloat, SupportsFloat]],
) -> Totals:
  """Returns the totals with one more batch in them.

  Args:
    totals: The result of the last call; {} at the start.
    sums: name -> (sum, weight) of a batch: numbers or scalar arrays. A new name
      starts at 0.

  Example:
    >>> totals = add({}, {"accuracy": (3, 4)})
    >>> finish(add(totals, {"accuracy": (1, 4)}))
    {'accuracy': 0.5}
  """
  result = dict(totals)
  for name, (sum_, weight) in sums.items():
    old_sum, old_weight = result.get(name, (0.0, 0.0))
    result[name] = (old_sum + float(sum_), old_weight + float(weight))
  return result


def finish(totals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
  """Returns name -> sum / weight.

  Raises:
    ValueError: If a weight is 0, because nothing was counted.
  """
  for name, (_, weight) in totals.items():
    if weight == 0:
      raise ValueError(
        f"metric {name!r} has weight 0, so it has no value: the data has no"
        " example or position with a weight; check the data"
      )
  return {name: sum_ / weight for name, (sum_, weight) in totals.items()}


def perplexity(loss: float) -> float:
  """Returns exp(loss) of a mean loss in nats; infinite if too large."""
  try:
    return math.exp(loss)
  except OverflowError:
    return math.inf
