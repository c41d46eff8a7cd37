"""Finds the largest batch that fits a device, in a few compilations."""

from collections.abc import Callable, Mapping
from typing import Any

MOST_COMPILES = 6  # compilations of one search


def largest_batch(
  measure: Callable[[int], tuple[int, bool]],
  known: dict[int, tuple[int, bool]],
  state: int,
  available: int,
  unit: int,
) -> dict[str, int | None]:
  """Finds the largest batch that fits, to within a sixteenth if possible.

  The needed memory is nearly a linear function of the rows. So two sizes
  predict the size that fills the memory, and compiling for this size tests the
  prediction.

  Args:
    measure: compiles for a batch size, in rows over all devices. It returns the
      bytes that a device needs, and whether they fit.
    known: the results of `measure` by batch size, for sizes that were compiled
      before; new results are added.
    state: the bytes that every batch size needs.
    available: the bytes that a device has.
    unit: every batch size is a multiple of this.

  Returns:
    `largest_batch_size`, the largest compiled size that fits, and
    `smallest_batch_too_large`, the smallest that does not; None if there is no
    such size.
  """
  for _ in range(MOST_COMPILES):
    size = next_batch(known, state, available, unit)
    if size is None:
      break
    known[size] = measure(size)
  low, high = _bounds(known)
  return {"largest_batch_size": low, "smallest_batch_too_large": high}


def _bounds(known: Mapping[int, tuple[int, bool]]) -> tuple[Any, Any]:
  """Returns the largest size that fits and the smallest that does not."""
  fits = [size for size, (_, does_fit) in known.items() if does_fit]
  fails = set(known) - set(fits)
  return max(fits, default=None), min(fails, default=None)


def next_batch(
  known: Mapping[int, tuple[int, bool]], state: int, available: int, unit: int
) -> int | None:
  """Returns the next size to try in the search for the largest batch.

  Args:
    known: the bytes that a device needs, and whether they fit, by batch size.
    state: the bytes that every batch size needs.
    available: the bytes that a device has.
    unit: every batch size is a multiple of this.

  Returns:
    A size between the largest that fits and the smallest that does not; None if
    these are close enough.
  """
  largest, high = _bounds(known)
  low = largest or 0
  close = max(unit, low // 16 // unit * unit)
  if high is not None and high - low <= close:
    return None
  points = {size: needed for size, (needed, _) in known.items()}
  a, *others = sorted(points, key=lambda b: abs(points[b] - available))
  if others:
    slope = (points[a] - points[others[0]]) / (a - others[0])
  else:
    slope = (points[a] - state) / a
  guess = a + (0.985 * available - points[a]) / max(slope, 1.0)
  size = int(guess // unit) * unit
  if high is None:
    size = min(size, 16 * a)
    return size if not largest or size - low > close else None
  if not low + close <= size < high:  # the prediction was wrong: use bisection
    size = (low + high) // 2 // unit * unit
  return max(size, unit) if low < size < high else None
