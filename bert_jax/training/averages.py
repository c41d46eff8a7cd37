"""The mean loss between two lines of the log."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass
class MeanLoss:
  """The mean of the losses of several steps, summed one by one in float64.

  A checkpoint keeps its bits, so that a run that was resumed logs the same
  numbers as one that was never interrupted.

  Attributes:
    total: the sum of the losses.
    count: the number of losses in it.
  """

  total: float = 0.0
  count: int = 0

  def add(self, loss: float) -> None:
    """Adds the loss of a step."""
    self.total += loss
    self.count += 1

  def take(self) -> float | None:
    """Returns the mean and starts anew; None if no step was added."""
    mean = self.total / self.count if self.count else None
    self.total, self.count = 0.0, 0
    return mean

  def bits(self) -> np.ndarray:
    """Returns the two halves of the sum and the count, uint32 [3]."""
    halves = np.array([self.total], "<f8").view("<u4")
    return np.append(halves, self.count).astype(np.uint32)

  @classmethod
  def from_bits(cls, bits: Any) -> "MeanLoss":
    """Reads what `bits` returns.

    Args:
      bits: uint32 [3]; None if the checkpoint predates this sum, which then
        starts at 0.
    """
    if bits is None:
      return cls()
    low, high, count = np.asarray(bits).astype("<u4")
    total = np.array([low, high], "<u4").view("<f8")
    return cls(float(total[0]), int(count))
