"""Tests of packing.py."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from bert_jax import packing

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


@pytest.mark.parametrize("lengths", [[9], [3, 0]])
def test_a_unit_that_cannot_lie_in_a_row_is_refused(lengths):
  with pytest.raises(ValueError, match="rows take 1 to 8"):
    packing.pack(np.array(lengths), 8)


def test_sentences_of_real_lengths_leave_little_empty():
  rng = np.random.default_rng(0)
  lengths = np.clip(rng.lognormal(2.5, 0.6, 5_000).astype(int), 3, 64)
  layout = packing.pack(lengths, 64)
  assert lengths.sum() / (layout.num_rows * 64) > 0.97


@pytest.mark.parametrize(
  ("counts", "multiple", "sizes"),
  [
    ([3, 3, 3, 9], 1, (3, 9)),  # 18 rows; one size would compute 36
    ([3, 3, 6, 6, 9], 1, (3, 6, 9)),
    ([8, 9, 9, 9], 1, (9,)),  # two sizes would save 1 of 36
    ([3, 3, 3, 9], 8, (8, 16)),
    ([5], 4, (8,)),
  ],
)
def test_row_counts_by_hand(counts, multiple, sizes):
  assert packing.choose_num_rows(counts, multiple) == sizes
