"""Packing: which sequences share a row, and where in the row each begins.

Most texts are shorter than a row, and on most tasks at least half of a row that
is padded to the longest sequence is padding. Packing several sequences into one
row, kept apart by their `sequence_ids`, wastes almost nothing, and all rows
still have one static shape.

`pack` lays out a list of sequences. `pack_histogram` only counts how many rows
hold which lengths, so it is as fast for hundreds of millions of sequences as
for thousands; which sequence of a length goes where is decided when a row is
read.
"""

from collections.abc import Callable
import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
  """The positions of units of text in rows.

  Attributes:
    row: [N] the row of every unit.
    start: [N] the first position of the unit in its row.
    slot: [N] the number of units before it in its row.
    num_rows: the number of rows in use.
  """

  row: np.ndarray
  start: np.ndarray
  slot: np.ndarray
  num_rows: int

  def part(self, first: int, count: int) -> tuple[np.ndarray, "Layout"]:
    """Returns the units [M] in `count` rows from row `first` on.

    Their layout, in which row `first` is row 0, is returned, too.
    """
    inside = (self.row >= first) & (self.row < first + count)
    units = np.flatnonzero(inside)
    return units, Layout(
      self.row[units] - first, self.start[units], self.slot[units], count
    )


def _check_lengths(lengths: np.ndarray, row_len: int) -> None:
  """Raises ValueError if a sequence is empty or longer than a row."""
  if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= row_len:
    raise ValueError(
      f"the longest sequence has {lengths.max()} tokens and the shortest "
      f"{lengths.min()}; a row takes sequences of 1 to {row_len} tokens"
    )


def pack(
  lengths: np.ndarray, row_len: int, max_slots: int | None = None
) -> Layout:
  """Packs units into few rows by best-fit decreasing.

  The longest unit comes first, and each goes into the fullest row that still
  has room for it. Ties go to the earlier unit and the older row, so the layout
  depends on the lengths alone.

  Args:
    lengths: [N] the number of tokens of every unit, 1 or more.
    row_len: L, the length of a row in tokens.
    max_slots: the most units a row may hold; None means as many as fit.

  Returns:
    The layout; rows are numbered by their longest unit, longest first.

  Raises:
    ValueError: A unit is empty or longer than a row.

  Source: Krell et al., arXiv:2107.02027, section 3.2 packs lengths in this way.
  """
  lengths = np.asarray(lengths, np.int64)
  _check_lengths(lengths, row_len)
  count = len(lengths)
  row = np.zeros(count, np.int64)
  start = np.zeros(count, np.int64)
  slot = np.zeros(count, np.int64)
  # Space left in a row -> the rows with that much space, the oldest last.
  by_space: list[list[int]] = [[] for _ in range(row_len + 1)]
  used: list[int] = []  # the number of units in each row
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


@dataclasses.dataclass(frozen=True)
class Patterns:
  """Which lengths share a row, and how many rows hold the same lengths.

  The rows of pattern 0 come first, then those of pattern 1, and so on. The
  sequences of one length are numbered from 0 in the same order, so that each is
  in exactly one row.

  Attributes:
    lengths: [K, S] the lengths of the sequences in a row of each pattern,
      longest first; 0 marks an unused slot.
    counts: [K] the number of rows of each pattern.
  """

  lengths: np.ndarray
  counts: np.ndarray

  @property
  def num_rows(self) -> int:
    """The number of rows of all patterns."""
    return int(self.counts.sum())

  @property
  def num_sequences(self) -> int:
    """The number of sequences in all rows."""
    return int((self.counts * (self.lengths > 0).sum(1)).sum())

  @property
  def num_tokens(self) -> int:
    """The number of tokens in all rows."""
    return int((self.counts * self.lengths.sum(1)).sum())

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    """[K] the number of the row after the last row of each pattern."""
    return np.cumsum(self.counts)

  @functools.cached_property
  def _ranks(self) -> np.ndarray:
    """[K, S] for the first row of each pattern, the sequences' numbers.

    A sequence is numbered among the sequences of its length.
    """
    ranks = np.zeros_like(self.lengths)
    used = np.zeros(int(self.lengths.max(initial=0)) + 1, np.int64)
    for slot in range(self.lengths.shape[1]):
      for pattern, length in enumerate(self.lengths[:, slot].tolist()):
        ranks[pattern, slot] = used[length]
        used[length] += self.counts[pattern]
    return ranks

  def find(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which sequences some rows hold.

    Args:
      rows: [M] row numbers from 0 to num_rows - 1.

    Returns:
      [M, S] lengths, where 0 marks an unused slot, and [M, S] the number of
      each sequence among the sequences of its length.
    """
    pattern = np.searchsorted(self._ends, rows, side="right")
    within = rows - (self._ends - self.counts)[pattern]
    return self.lengths[pattern], self._ranks[pattern] + within[:, None]


def pack_histogram(
  histogram: np.ndarray, row_len: int, max_slots: int
) -> Patterns:
  """Packs sequences into few rows, given only how many have which length.

  This is best-fit decreasing, as in `pack`, but for all sequences of one length
  at once: rows that hold the same lengths are one entry with a count.

  Args:
    histogram: [N] the number of sequences with 0, 1, ... N - 1 tokens.
    row_len: L, the length of a row in tokens.
    max_slots: S, the most sequences a row may hold.

  Returns:
    The patterns, those with the longest sequences first.

  Raises:
    ValueError: A sequence is empty or longer than a row.

  Source: Krell et al., arXiv:2107.02027, section 3.2 (longest-pack-first
  histogram-packing in their code).
  """
  histogram = np.asarray(histogram, np.int64)
  found = np.flatnonzero(histogram)
  _check_lengths(found, row_len)
  full: list[tuple[tuple[int, ...], int]] = []
  # Space left in a row -> (lengths in the row, the number of such rows), for
  # rows that have room for more sequences.
  by_space: list[list[tuple[tuple[int, ...], int]]] = [
    [] for _ in range(row_len + 1)
  ]

  def put(lengths: tuple[int, ...], count: int) -> None:
    space = row_len - sum(lengths)
    if count:
      taken = space == 0 or len(lengths) == max_slots
      (full if taken else by_space[space]).append((lengths, count))

  for length in found[::-1].tolist():
    left, space = int(histogram[length]), length
    while left:
      while space <= row_len and not by_space[space]:
        space += 1
      # A row takes as many as fit; the last row may take fewer.
      if space <= row_len:
        lengths, count = by_space[space].pop()
      else:
        lengths, count, space = (), left, row_len
      times = min(space // length, max_slots - len(lengths))
      whole = min(count, left // times)
      put((*lengths, *[length] * times), whole)
      left -= whole * times
      if whole < count:
        put((*lengths, *[length] * left), bool(left))
        if lengths:  # older rows that took none of these sequences
          put(lengths, count - whole - bool(left))
        left = 0
  full += [entry for entries in by_space for entry in entries]
  full.sort(reverse=True)
  table = np.zeros((len(full), max_slots), np.int64)
  for row, (lengths, _) in enumerate(full):
    table[row, : len(lengths)] = lengths
  return Patterns(table, np.array([n for _, n in full], np.int64))


def one_a_row(lengths: np.ndarray) -> Layout:
  """Returns the layout without packing, in which unit i fills row i."""
  zeros = np.zeros(len(lengths), np.int64)
  return Layout(np.arange(len(lengths)), zeros, zeros, len(lengths))


def choose_shapes(costs: np.ndarray, price: float) -> list[int]:
  """Chooses a few of many shapes that batches are padded to.

  Every shape must be compiled, so there should be few; but a batch that is
  padded to the largest shape computes empty rows. The cheapest shape that holds
  all batches is chosen first. Then the shape that saves most is added, one at a
  time, as long as it saves more than its price.

  Args:
    costs: [K, N] the cost of computing each of N batches in each of K shapes;
      inf if the batch does not fit. At least one shape holds all batches.
    price: the cost of one more shape, in the unit of `costs`.

  Returns:
    The chosen rows of `costs`, in the order in which they were chosen.

  Example:
    >>> costs = np.array([[3.0, 3.0, np.inf], [9.0, 9.0, 9.0]])
    >>> choose_shapes(costs, 5.0), choose_shapes(costs, 12.0)
    ([1, 0], [1])
  """
  chosen = [int(np.argmin(costs.sum(axis=1)))]
  while True:
    lowest = costs[chosen].min(axis=0)
    totals = np.minimum(costs, lowest).sum(axis=1)
    best = int(np.argmin(totals))
    if lowest.sum() - totals[best] <= price:
      return chosen
    chosen.append(best)


def attended(
  sequence_ids: np.ndarray | None,
  pairs: Callable[[np.ndarray], np.ndarray] = np.square,
) -> float | None:
  """Returns how many pairs of tokens of a row attend to each other, on average.

  Args:
    sequence_ids: [B, L] the sequence of each token of packed rows; None if
      every row holds one sequence.
    pairs: returns the pairs of sequences of some lengths; by default all see
      all.

  Returns:
    The mean over rows of the sum of the pairs of its sequences, which are the
    squares of their lengths by default; None if `sequence_ids` is None.
  """
  if sequence_ids is None:
    return None
  num_rows, count = len(sequence_ids), int(sequence_ids.max()) + 1
  cells = np.arange(num_rows)[:, None] * count + sequence_ids
  lengths = np.bincount(cells.ravel(), minlength=num_rows * count)
  found = pairs(lengths.reshape(num_rows, count)[:, 1:])  # no padding
  return float(found.sum() / num_rows)
