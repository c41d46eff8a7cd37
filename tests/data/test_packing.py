"""Tests of packing.py."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from bert_jax.data import packing

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=60)


@given(lengths=LENGTHS, spare=st.integers(0, 30), slots=st.integers(1, 6))
def test_units_do_not_overlap_and_every_row_holds_them(lengths, spare, slots):
  row_len = max(lengths) + spare
  layout = packing.pack(np.array(lengths), row_len, slots)
  taken = np.zeros((layout.num_rows, row_len), int)
  for row, start, length in zip(layout.row, layout.start, lengths, strict=True):
    assert start + length <= row_len
    taken[row, start : start + length] += 1
  assert taken.max() == 1
  assert taken.sum() == sum(lengths)
  for row in range(layout.num_rows):
    mine = layout.row == row
    assert sorted(layout.slot[mine]) == list(range(mine.sum()))
    assert 1 <= mine.sum() <= slots


@given(lengths=LENGTHS)
def test_rows_are_at_most_a_unit_more_than_twice_the_tokens(lengths):
  # Two rows that are both at most half full would have been one.
  row_len = max(lengths)
  layout = packing.pack(np.array(lengths), row_len)
  assert layout.num_rows <= 1 + 2 * sum(lengths) / row_len


def test_a_layout_by_hand():
  layout = packing.pack(np.array([2, 6, 3, 5, 1]), 8)
  # 6 opens row 0; 5 opens row 1; 3 fills row 1; 2 fills row 0; 1 opens row 2.
  assert layout.row.tolist() == [0, 0, 1, 1, 2]
  assert layout.start.tolist() == [6, 0, 5, 0, 0]
  assert layout.slot.tolist() == [1, 0, 1, 0, 0]
  assert layout.num_rows == 3


@given(lengths=LENGTHS, spare=st.integers(0, 30), slots=st.integers(1, 6))
def test_patterns_take_as_many_rows_as_a_layout_and_hold_all(
  lengths, spare, slots
):
  row_len = max(lengths) + spare
  histogram = np.bincount(lengths)
  patterns = packing.pack_histogram(histogram, row_len, slots)
  layout = packing.pack(np.array(lengths), row_len, slots)
  assert patterns.num_rows == layout.num_rows
  assert patterns.num_sequences == len(lengths)
  assert patterns.num_tokens == sum(lengths)
  found, ranks = patterns.find(np.arange(patterns.num_rows))
  assert found.shape == (patterns.num_rows, slots)
  assert found.sum(1).max() <= row_len
  assert (found[:, 0] > 0).all()
  # Every sequence of every length once.
  used = found > 0
  pairs = sorted(zip(found[used].tolist(), ranks[used].tolist(), strict=True))
  wanted = [(n, i) for n, count in enumerate(histogram) for i in range(count)]
  assert pairs == wanted


def test_patterns_by_hand():
  # 2 of 6, 1 of 5, 5 of 2, 1 of 1; rows of 8 that take 3.
  patterns = packing.pack_histogram(np.array([0, 1, 5, 0, 0, 1, 2]), 8, 3)
  rows = zip(patterns.lengths.tolist(), patterns.counts.tolist(), strict=True)
  assert list(rows) == [([6, 2, 0], 2), ([5, 2, 1], 1), ([2, 2, 0], 1)]
  lengths, ranks = patterns.find(np.array([3, 1, 2]))
  assert lengths.tolist() == [[2, 2, 0], [6, 2, 0], [5, 2, 1]]
  assert ranks[lengths > 0].tolist() == [0, 4, 1, 2, 0, 3, 0]


def test_hundreds_of_millions_are_laid_out_as_fast_as_thousands():
  rng = np.random.default_rng(0)
  histogram = np.concatenate([[0] * 5, rng.integers(0, 800_000, 508)])
  patterns = packing.pack_histogram(histogram, 512, 8)
  assert patterns.num_sequences == histogram.sum() > 2e8
  assert len(patterns.counts) < 2_000
  places = rng.integers(0, patterns.num_rows, 1_000)
  lengths, ranks = patterns.find(places)
  assert (ranks[lengths > 0] < histogram[lengths[lengths > 0]]).all()


def test_no_sequences_fill_no_rows():
  patterns = packing.pack_histogram(np.zeros(9, int), 8, 2)
  assert (patterns.num_rows, patterns.num_sequences) == (0, 0)


@pytest.mark.parametrize("lengths", [[9], [3, 0]])
def test_a_histogram_that_does_not_fit_is_refused(lengths):
  with pytest.raises(ValueError, match="sequences of 1 to 8 tokens"):
    packing.pack_histogram(np.bincount(lengths), 8, 4)


@pytest.mark.parametrize("lengths", [[9], [3, 0]])
def test_a_unit_that_cannot_lie_in_a_row_is_refused(lengths):
  with pytest.raises(ValueError, match="sequences of 1 to 8 tokens"):
    packing.pack(np.array(lengths), 8)


def test_sentences_of_real_lengths_leave_little_empty():
  rng = np.random.default_rng(0)
  lengths = np.clip(rng.lognormal(2.5, 0.6, 5_000).astype(int), 3, 64)
  layout = packing.pack(lengths, 64)
  assert lengths.sum() / (layout.num_rows * 64) > 0.97


INF = np.inf
SHAPE_COSTS = np.array(
  [
    [3, 3, 3, INF],
    [2, INF, INF, INF],
    [9, 9, 9, 9],
    [12, 12, 12, 12],
    [INF, INF, INF, 8],
  ]
)


@pytest.mark.parametrize(
  ("price", "chosen"),
  [
    (100, [2]),  # the cheaper of two that take all batches
    (18, [2]),  # shape 0 spares 18, no more than its price
    (17, [2, 0]),
    (0.5, [2, 0, 1, 4]),  # shapes 1 and 4 spare 1 each: the first comes first
  ],
)
def test_shapes_by_hand(price, chosen):
  assert packing.choose_shapes(SHAPE_COSTS, price) == chosen


@given(
  sizes=st.lists(st.integers(1, 30), min_size=1, max_size=40),
  price=st.integers(0, 100),
)
def test_more_shapes_are_never_dearer_with_their_price(sizes, price):
  need = np.array(sizes)
  shapes = np.unique(need)[:, None]
  costs = np.where(need <= shapes, shapes, np.inf)
  chosen = packing.choose_shapes(costs, price)
  total = costs[chosen].min(axis=0).sum() + price * (len(chosen) - 1)
  assert need.sum() <= total <= need.max() * len(need)
  assert len(set(chosen)) == len(chosen)
