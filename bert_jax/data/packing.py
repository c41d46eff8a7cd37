"""Packing: which sequences share a row, and where in it each begins.

Text is short and rows are long: on most tasks a row padded to the longest
sequence is half empty or worse. Several sequences in one row, kept apart by
their `sequence_ids`, waste almost nothing, and every row has one static shape.

`pack` lays out some sequences. `pack_histogram` lays out any number of them:
it only counts how many rows hold which lengths, so it takes as long for
hundreds of millions of sequences as for thousands, and which sequence of a
length stands where is decided when a row is asked for.
"""

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


@dataclasses.dataclass(frozen=True)
class Patterns:
  """How many rows hold sequences of which lengths.

  The rows of pattern 0 come first, then those of pattern 1, and so on. All
  sequences of one length are numbered from 0 through in the same order, so
  that each is in exactly one row.

  Attributes:
    lengths: [K, S] of the sequences in a row, longest first; 0 = no more.
    counts: [K] rows of the pattern.
  """

  lengths: np.ndarray
  counts: np.ndarray

  @property
  def num_rows(self) -> int:
    """Rows of all patterns."""
    return int(self.counts.sum())

  @property
  def num_sequences(self) -> int:
    """Sequences in them."""
    return int((self.counts * (self.lengths > 0).sum(1)).sum())

  @property
  def num_tokens(self) -> int:
    """Tokens of these."""
    return int((self.counts * self.lengths.sum(1)).sum())

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    """[K] number of the row after the last of each pattern."""
    return np.cumsum(self.counts)

  @functools.cached_property
  def _ranks(self) -> np.ndarray:
    """[K, S] number, among those of its length, of a first row's sequence."""
    ranks = np.zeros_like(self.lengths)
    used = np.zeros(int(self.lengths.max(initial=0)) + 1, np.int64)
    for slot in range(self.lengths.shape[1]):
      for pattern, length in enumerate(self.lengths[:, slot].tolist()):
        ranks[pattern, slot] = used[length]
        used[length] += self.counts[pattern]
    return ranks

  def find(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What some rows hold.

    Args:
      rows: [M] of 0 .. num_rows - 1.

    Returns:
      [M, S] lengths, 0 = no sequence, and [M, S] the number of each sequence
      among those of its length.
    """
    pattern = np.searchsorted(self._ends, rows, side="right")
    within = rows - (self._ends - self.counts)[pattern]
    return self.lengths[pattern], self._ranks[pattern] + within[:, None]


def pack_histogram(
  histogram: np.ndarray, row_len: int, max_slots: int
) -> Patterns:
  """Puts sequences, of which only lengths are known, into few rows.

  Best-fit decreasing, as `pack` does it, but for all sequences of a length at
  once: rows that hold the same lengths are one entry with a count.

  Args:
    histogram: [N] how many sequences have 0, 1, ... N - 1 tokens.
    row_len: L, positions of a row.
    max_slots: S, sequences a row takes at most.

  Returns:
    The patterns, those with the longest sequences first.

  Raises:
    ValueError: a sequence is longer than a row, or empty.

  Source: Krell et al., arXiv:2107.02027, section 3.2 (longest-pack-first
  histogram-packing in their code).
  """
  histogram = np.asarray(histogram, np.int64)
  found = np.flatnonzero(histogram)
  if len(found) and (found[-1] > row_len or found[0] < 1):
    raise ValueError(
      f"a sequence has {found[-1]} tokens, the shortest {found[0]}; rows take "
      f"1 to {row_len}"
    )
  full: list[tuple[tuple[int, ...], int]] = []
  # space left -> (lengths in the row, how many such rows) that take more.
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
      # A row takes as many as fit; the last one maybe fewer.
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
        if lengths:  # rows that were there before and took none
          put(lengths, count - whole - bool(left))
        left = 0
  full += [entry for entries in by_space for entry in entries]
  full.sort(reverse=True)
  table = np.zeros((len(full), max_slots), np.int64)
  for row, (lengths, _) in enumerate(full):
    table[row, : len(lengths)] = lengths
  return Patterns(table, np.array([n for _, n in full], np.int64))


def one_a_row(lengths: np.ndarray) -> Layout:
  """The layout that packs nothing: unit i is row i."""
  zeros = np.zeros(len(lengths), np.int64)
  return Layout(np.arange(len(lengths)), zeros, zeros, len(lengths))


def choose_shapes(costs: np.ndarray, price: float) -> list[int]:
  """Chooses a few of many shapes that batches are filled up to.

  Every shape is a program to compile, so few; but a batch filled up to the
  largest ever needed computes rows of nothing. First comes the cheapest that
  takes all batches, then, one at a time, the one that saves most, as long as it
  saves more than its price.

  Args:
    costs: [K, N] of computing each of N batches in each of K shapes; inf where
      the batch does not fit. One shape at least takes all batches.
    price: of one more shape, in the unit of the costs.

  Returns:
    Rows of `costs`, in the order in which they were chosen.

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


def attended(sequence_ids: np.ndarray | None) -> float | None:
  """Pairs of tokens of a row, on average, that see each other.

  Args:
    sequence_ids: [B, L] of packed rows; None: rows are one sequence.

  Returns:
    The sum of the squares of the lengths of a row's sequences; None for None.
  """
  if sequence_ids is None:
    return None
  num_rows, count = len(sequence_ids), int(sequence_ids.max()) + 1
  cells = np.arange(num_rows)[:, None] * count + sequence_ids
  lengths = np.bincount(cells.ravel(), minlength=num_rows * count)
  squares = np.square(lengths.reshape(num_rows, count)[:, 1:])  # no padding
  return float(squares.sum() / num_rows)
