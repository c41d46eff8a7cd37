"""Lines that are longer than a row keep their rest."""

import random

from hypothesis import given
from hypothesis import strategies as st
import numpy as np

from bert_jax.data import long_lines
from bert_jax.data import pairing

LIMIT = 20
# Ids 8 and 9 end sentences.
ENDS = np.arange(10) >= 8


def _cutter(tokens):
  return long_lines.Cutter(
    LIMIT, lambda start, count: tokens[start : start + count], lambda: ENDS
  )


def test_a_line_is_cut_at_its_sentences_and_then_into_equal_pieces():
  tokens = np.ones(100, np.int64)
  tokens[[4, 10, 11, 14, 29]] = 9  # two ends in a row are one
  boundaries = np.array([0, 30, 40, 70])
  found, was_cut = _cutter(tokens)(boundaries)
  assert was_cut
  assert found == [0, 5, 12, 15, 30, 40, 50, 60, 70]
  assert _cutter(tokens).num_long(boundaries) == 60


def test_a_document_without_long_lines_keeps_its_boundaries():
  boundaries = np.array([3, 23, 24])
  found, was_cut = _cutter(None)(boundaries)
  assert found is boundaries and not was_cut


@given(
  lengths=st.lists(st.integers(1, 90), min_size=1, max_size=8).filter(
    lambda x: max(x) > LIMIT
  ),
  short_rate=st.sampled_from((0.0, 0.5, 1.0)),
  seed=st.integers(0, 2**32),
)
def test_every_token_is_in_one_example_once(lengths, short_rate, seed):
  rng = random.Random(seed)
  tokens = np.array([rng.choice((1, 1, 1, 1, 1, 9)) for _ in range(800)])
  boundaries = np.cumsum([7, *lengths])
  found, was_cut = _cutter(tokens)(boundaries)
  assert was_cut and set(boundaries) <= set(found)
  assert 0 < np.diff(found).min() <= np.diff(found).max() < LIMIT
  other = [700, 703, 790]
  examples = list(
    pairing.make_pairs(found, LIMIT, short_rate, rng, lambda: other, True)
  )
  covered = []
  for a, b, a_length, b_length, is_random in examples:
    assert a_length > 0 and b_length > 0 and a_length + b_length <= LIMIT
    covered += range(a, a + a_length)
    if is_random:
      assert b in other
    else:
      assert b == a + a_length
      covered += range(b, b + b_length)
  assert covered == list(range(boundaries[0], boundaries[-1]))
