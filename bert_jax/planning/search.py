"""The largest batch that fits a device, found in a few compilations."""

from collections.abc import Callable, Mapping
from typing import Any

# Compilations that a search for the largest batch takes at most.
MOST_COMPILES = 6


def largest_batch(
  measure: Callable[[int], tuple[int, bool]],
  known: dict[int, tuple[int, bool]],
  state: int,
  available: int,
  unit: int,
) -> dict[str, int | None]:
  """Finds the largest batch that fits, to within a sixteenth if it can.

  Memory grows in a line with the rows, nearly: two sizes say where the line
  meets what there is; compiling there says whether it was right.

  Args:
    measure: compiles for a batch size, in rows over all devices. Returns the
      bytes that a device needs, and whether they fit.
    known: batch size -> what `measure` returns, of the sizes that were
      compiled before; is filled.
    state: bytes that every size takes.
    available: bytes there are.
    unit: sizes are multiples of it.

  Returns:
    Of the sizes that were compiled: `largest_batch_size`, the largest that
    fits, and `smallest_batch_too_large`; None where there was none.
  """
  for _ in range(MOST_COMPILES):
    size = next_batch(known, state, available, unit)
    if size is None:
      break
    known[size] = measure(size)
  low, high = _bounds(known)
  return {"largest_batch_size": low, "smallest_batch_too_large": high}


def _bounds(known: Mapping[int, tuple[int, bool]]) -> tuple[Any, Any]:
  """The largest size that fits and the smallest that does not, or None."""
  fits = [size for size, (_, does_fit) in known.items() if does_fit]
  fails = set(known) - set(fits)
  return max(fits, default=None), min(fails, default=None)


def next_batch(
  known: Mapping[int, tuple[int, bool]], state: int, available: int, unit: int
) -> int | None:
  """Returns the next size to try in the search for the largest batch.

  Args:
    known: batch size -> bytes a device that it takes, and whether they fit.
    state: bytes that every size takes.
    available: bytes there are.
    unit: sizes are multiples of it.

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
  if not low + close <= size < high:  # the line was wrong: halve what is left
    size = (low + high) // 2 // unit * unit
  return max(size, unit) if low < size < high else None
