"""Packing: which sequences share a row, and where in it each begins.

Text is short and rows are long: on most tasks a row padded to the longest
sequence is half empty or worse. Several sequences in one row, kept apart by
their `sequence_ids`, waste almost nothing, and every row has one static shape.
"""

from collections.abc import Sequence
import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where units of text lie in rows.

  Attributes:
    row: [N] row of every unit.
    start: [N] its first position in the row.
    slot: [N] how many units stand before it in the row.
    num_rows: rows in use.
  """

  row: np.ndarray
  start: np.ndarray
  slot: np.ndarray
  num_rows: int


def pack(
  lengths: np.ndarray, row_len: int, max_slots: int | None = None
) -> Layout:
  """Puts units into as few rows as best-fit decreasing finds.

  The longest first, each into the fullest row that still takes it; among equal
  ones the earlier unit and the older row come first, so the layout is a
  function of the lengths alone.

  Args:
    lengths: [N] tokens of every unit, 1 or more.
    row_len: L, positions of a row.
    max_slots: units a row takes at most; None = as many as fit.

  Returns:
    The layout; rows are numbered by their longest unit, longest first.

  Raises:
    ValueError: a unit is longer than a row, or empty.

  Source: Krell et al., arXiv:2107.02027, section 3.2 packs lengths in this way.
  """
  lengths = np.asarray(lengths, np.int64)
  count = len(lengths)
  if count and (lengths.max() > row_len or lengths.min() < 1):
    raise ValueError(
      f"a sequence has {lengths.max()} tokens, the shortest {lengths.min()}; "
      f"rows take 1 to {row_len}"
    )
  row = np.zeros(count, np.int64)
  start = np.zeros(count, np.int64)
  slot = np.zeros(count, np.int64)
  # space left -> rows with just that much, the oldest last.
  by_space: list[list[int]] = [[] for _ in range(row_len + 1)]
  used: list[int] = []  # units in each row
  for unit in np.argsort(-lengths, kind="stable").tolist():
    length = int(lengths[unit])
    space = length
    while space <= row_len and not by_space[space]:
      space += 1
    if space <= row_len:
      place = by_space[space].pop()
    else:
      place, space = len(used), row_len
      used.append(0)
    row[unit], start[unit], slot[unit] = place, row_len - space, used[place]
    used[place] += 1
    if max_slots is None or used[place] < max_slots:
      by_space[space - length].append(place)
  return Layout(row, start, slot, len(used))


def one_a_row(lengths: np.ndarray) -> Layout:
  """The layout that packs nothing: unit i is row i."""
  zeros = np.zeros(len(lengths), np.int64)
  return Layout(np.arange(len(lengths)), zeros, zeros, len(lengths))


def choose_num_rows(
  counts: Sequence[int], multiple: int, max_sizes: int = 4
) -> tuple[int, ...]:
  """Chooses a few numbers of rows that batches are filled up to.

  Every shape is a program to compile, so few; but a batch filled up to the
  largest ever needed computes rows of nothing.

  Args:
    counts: rows that some batches need.
    multiple: of the rows of a batch: devices times micro-batches.
    max_sizes: how many numbers at most.

  Returns:
    Ascending numbers; each but the largest saves a twentieth of the rows.
  """
  need = -(-np.asarray(counts) // multiple) * multiple
  sizes: tuple[int, ...] = (int(need.max()),)
  total = padded_rows(need, sizes)
  while len(sizes) < max_sizes:
    candidates = [
      tuple(sorted((*sizes, size)))
      for size in np.unique(need).tolist()
      if size not in sizes
    ]
    if not candidates:
      break
    best = min(candidates, key=functools.partial(padded_rows, need))
    if padded_rows(need, best) > 0.95 * total:
      break
    sizes, total = best, padded_rows(need, best)
  return sizes


def padded_rows(
  counts: Sequence[int] | np.ndarray, sizes: Sequence[int]
) -> int:
  """Rows of all batches when each is filled up to the next of some sizes."""
  filled = np.asarray(sizes)[np.searchsorted(sizes, counts)]
  return int(filled.sum())
