"""Tests of pairing.py, against a straight-line reading of the original."""

import itertools
import random

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import stats

from bert_jax.data import pairing

DOCUMENTS = st.lists(
  st.lists(st.integers(1, 25), min_size=1, max_size=12), min_size=1, max_size=5
)


class Draws(random.Random):
  """Whole numbers by `random()`, and one side where truncation cuts.

  Both sides of a comparison then turn the same stream into the same choices.
  """

  front = True
  target = None

  def randint(self, low, high):
    if self.target:
      return self.target
    return low + int(self.random() * (high - low + 1))

  def getrandbits(self, count):
    return (1 << count) - 1 if self.front else 0


def draws(seed, front=True, target=None):
  result = Draws(seed)
  result.front, result.target = front, target
  return result


def boundaries_of(documents):
  """Where sentences lie in one stream that has a [SEP] after each document."""
  result, at = [], 0
  for lengths in documents:
    result.append(list(itertools.accumulate(lengths, initial=at)))
    at = result[-1][-1] + 1
  return result


def choose_document(count, which, rng):
  """Another document: ten tries, then whatever the last one drew."""
  for _ in range(10):
    other = int(rng.random() * count)
    if other != which:
      break
  return other


def reference_pairs(documents, which, max_tokens, short_seq_rate, rng, front):
  """Pairs of one document, sentence by sentence, tokens in lists.

  Args:
    documents: lists of sentences, each a list of tokens.
    which: the document to cut.
    max_tokens: of a pair.
    short_seq_rate: of passes with a random target.
    rng: draws in the order of the original.
    front: whether truncation drops tokens at the front or the back.

  Source: the behaviour of create_pretraining_data.py:223-335.
  """
  sentences = documents[which]
  target = max_tokens
  if rng.random() < short_seq_rate:
    target = rng.randint(2, max_tokens)
  pairs, gathered, i = [], [], 0
  while i < len(sentences):
    gathered.append(sentences[i])
    i += 1
    if i < len(sentences) and sum(map(len, gathered)) < target:
      continue
    num_a = 1
    if len(gathered) >= 2:
      num_a = rng.randint(1, len(gathered) - 1)
    a = sum(gathered[:num_a], [])
    b = sum(gathered[num_a:], [])
    # One sentence leaves nothing for B: always random, and no coin is thrown.
    is_random = len(gathered) == 1 or rng.random() < 0.5
    if is_random:
      other = documents[choose_document(len(documents), which, rng)]
      b = []
      for sentence in other[rng.randint(0, len(other) - 1) :]:
        b += sentence
        if len(b) >= target - len(a):
          break
      i -= len(gathered) - num_a  # what A did not take is used again
    pop_tokens(a, b, max_tokens, lambda: front)
    pairs.append((a, b, int(is_random)))
    gathered = []
  return pairs


def pop_tokens(a, b, max_tokens, is_front):
  """Truncates a token at a time: of the longer, of B where none is longer."""
  while len(a) + len(b) > max_tokens:
    longer = a if len(a) > len(b) else b
    longer.pop(0 if is_front() else -1)


def our_pairs(bounds, which, max_tokens, short_seq_rate, rng):
  def other():
    return bounds[choose_document(len(bounds), which, rng)]

  return list(
    pairing.make_pairs(bounds[which], max_tokens, short_seq_rate, rng, other)
  )


@settings(max_examples=200, deadline=None)
@given(
  lengths=DOCUMENTS,
  max_tokens=st.integers(5, 60),
  short_seq_rate=st.sampled_from([0.0, 0.5, 1.0]),
  seed=st.integers(0, 2**32),
  front=st.booleans(),
)
def test_same_draws_give_the_pairs_of_the_reference(
  lengths, max_tokens, short_seq_rate, seed, front
):
  bounds = boundaries_of(lengths)
  documents = [
    [list(range(a, b)) for a, b in itertools.pairwise(bound)]
    for bound in bounds
  ]
  for which in range(len(documents)):
    args = which, max_tokens, short_seq_rate
    expected = reference_pairs(documents, *args, draws(seed, front), front)
    found = our_pairs(bounds, *args, draws(seed, front))
    assert [
      (list(range(a, a + m)), list(range(b, b + n)), is_random)
      for a, b, m, n, is_random in found
    ] == expected


@settings(max_examples=200, deadline=None)
@given(lengths=DOCUMENTS, target=st.integers(2, 80), seed=st.integers(0, 2**32))
def test_segments_are_whole_sentences_and_none_is_lost(lengths, target, seed):
  bounds = boundaries_of(lengths)
  starts = {s for bound in bounds for s in bound[:-1]}
  ends = {e for bound in bounds for e in bound[1:]}
  for which, bound in enumerate(bounds):
    # A target far below the limit: nothing is ever truncated.
    at = bound[0]
    rng = draws(seed, target=target)
    for a, b, m, n, is_random in our_pairs(bounds, which, 10_000, 1.0, rng):
      assert a == at and a + m in ends
      assert b in starts and b + n in ends and m and n
      at = a + m
      if not is_random:
        assert b == at  # B goes on where A ends
        at += n
    assert at == bound[-1]


@settings(max_examples=100, deadline=None)
@given(
  lengths=DOCUMENTS, max_tokens=st.integers(5, 60), seed=st.integers(0, 2**32)
)
def test_pairs_never_exceed_the_limit_nor_leave_a_segment_empty(
  lengths, max_tokens, seed
):
  bounds = boundaries_of(lengths)
  rng = random.Random(seed)
  for which in range(len(bounds)):
    for _, _, m, n, _ in our_pairs(bounds, which, max_tokens, 0.1, rng):
      assert m >= 1 and n >= 1 and m + n <= max_tokens


@pytest.fixture(scope="module")
def many_pairs():
  """Pairs of the same 300 documents, by us and by the reference."""
  rng = random.Random(1)
  lengths = [
    [rng.randint(1, 30) for _ in range(rng.randint(1, 14))] for _ in range(300)
  ]
  bounds = boundaries_of(lengths)
  documents = [
    [list(range(a, b)) for a, b in itertools.pairwise(bound)]
    for bound in bounds
  ]
  ours, reference = random.Random(2), random.Random(3)
  found, expected = [], []
  for _ in range(10):
    for i in range(len(bounds)):
      found += [
        (m, n, r) for _, _, m, n, r in our_pairs(bounds, i, 61, 0.1, ours)
      ]
      pairs = reference_pairs(documents, i, 61, 0.1, reference, True)
      expected += [(len(a), len(b), r) for a, b, r in pairs]
  return np.array(found), np.array(expected)


def test_more_than_half_are_random_as_often_as_in_the_reference(many_pairs):
  (ours, reference) = (pairs[:, 2] for pairs in many_pairs)
  assert len(ours) > 9_000
  assert stats.binomtest(int(ours.sum()), len(ours), 0.5).pvalue < 1e-6
  assert ours.mean() > 0.5
  table = [[x.sum(), len(x) - x.sum()] for x in (ours, reference)]
  assert stats.chi2_contingency(table).pvalue > 0.001


@pytest.mark.parametrize("segment", [0, 1])
def test_lengths_are_distributed_as_in_the_reference(many_pairs, segment):
  ours, reference = (pairs[:, segment] for pairs in many_pairs)
  edges = np.arange(0, 66, 6)
  table = [np.histogram(x, edges)[0] for x in (ours, reference)]
  table = np.array(table)[:, np.sum(table, 0) > 20]
  assert stats.chi2_contingency(table).pvalue > 0.001


def test_the_target_is_drawn_once_a_pass_and_uniformly():
  # Sentences of one token: each pair but the last is as long as the target.
  bounds = boundaries_of([[1] * 60, [1] * 60])
  max_tokens, passes, rate = 21, 8_000, 0.25
  rng = random.Random(4)
  targets = []
  for _ in range(passes):
    lengths = {m + n for _, _, m, n, _ in our_pairs(bounds, 0, 21, rate, rng)}
    targets.append(max(lengths))
    assert len(lengths - {max(lengths)}) <= 21
  counts = np.bincount(targets, minlength=max_tokens + 1)[2:]
  choices = max_tokens - 1  # 2 to max_tokens, both included
  expected = np.full(choices, passes * rate / choices)
  expected[-1] += passes * (1 - rate)
  assert stats.chisquare(counts, expected).pvalue > 0.001


def test_a_single_sentence_is_always_paired_with_random_text():
  bounds = boundaries_of([[5], [7, 7]])
  rng = random.Random(5)
  for _ in range(50):
    ((a, b, m, n, is_random),) = our_pairs(bounds, 0, 40, 0.0, rng)
    assert (a, m, is_random) == (0, 5, 1)
    assert b in (6, 13) and n == 20 - b  # to the end of the other document


def test_random_text_begins_at_every_sentence_of_another_document():
  bounds = boundaries_of([[5], [3, 4, 5]])
  rng = random.Random(6)
  starts = [our_pairs(bounds, 0, 40, 0.0, rng)[0][1] for _ in range(3_000)]
  found, counts = np.unique(starts, return_counts=True)
  # Ten coins in a row may all say the first document: it is random then too.
  same, others = counts[found == 0].sum(), counts[found > 0]
  assert same < 15 and len(others) == 3
  assert stats.chisquare(others).pvalue > 0.001


def test_truncation_keeps_the_lengths_of_popping_one_by_one():
  sizes = itertools.product(range(14), range(14), range(2, 30), (True, False))
  for a_length, b_length, max_tokens, front in sizes:
    a, b = list(range(a_length)), list(range(100, 100 + b_length))
    pop_tokens(a, b, max_tokens, lambda front=front: front)
    a_start, m, b_start, n = pairing.truncate_pair(
      0, a_length, 100, b_length, max_tokens, draws(0, front)
    )
    assert list(range(a_start, a_start + m)) == a
    assert list(range(b_start, b_start + n)) == b


def test_truncated_fronts_are_distributed_as_when_popping_one_by_one():
  ours, reference = random.Random(7), random.Random(8)
  tables = np.zeros((2, 13, 13), int)
  for _ in range(4_000):
    a, _, b, _ = pairing.truncate_pair(0, 20, 100, 14, 14, ours)
    tables[0, a, b - 100] += 1
    a, b = list(range(20)), list(range(100, 114))
    pop_tokens(a, b, 14, lambda: reference.random() < 0.5)
    tables[1, a[0], b[0] - 100] += 1
  # 20 + 14 -> 7 + 7: A loses 13, B loses 7; the sides are independent.
  for table in tables:
    for axis, lost in ((1, 13), (0, 7)):
      counts = table.sum(axis)
      expected = 4_000 * stats.binom.pmf(np.arange(len(counts)), lost, 0.5)
      keep = expected > 5
      statistic = ((counts - expected) ** 2 / np.maximum(expected, 1))[keep]
      assert stats.chi2.sf(statistic.sum(), keep.sum() - 1) > 0.001
  both = tables.reshape(2, -1)
  assert stats.chi2_contingency(both[:, both.sum(0) > 20]).pvalue > 0.001


def rows_of(documents, max_tokens):
  bounds = boundaries_of(documents)
  starts = [s for bound in bounds for s in bound[:-1]] + [bounds[-1][-1] + 1]
  first = frozenset([bound[0] for bound in bounds] + starts[-1:])
  rows = list(pairing.full_sentences(starts, first, max_tokens))
  assert all(row[1:] == (0, row[2], 0, 0) for row in rows)
  return bounds, [(start, length) for start, _, length, _, _ in rows]


@settings(max_examples=250, deadline=None)
@given(lengths=DOCUMENTS, max_tokens=st.integers(1, 40))
def test_full_sentences_hold_every_token_once_and_no_separator_outside(
  lengths, max_tokens
):
  bounds, rows = rows_of(lengths, max_tokens)
  separators = {bound[-1] for bound in bounds}
  held = [range(start, start + length) for start, length in rows]
  tokens = [t for row in held for t in row if t not in separators]
  assert tokens == [t for b in bounds for t in range(b[0], b[-1])]
  for row in held:
    assert 1 <= len(row) <= max_tokens
    assert row[0] not in separators and row[-1] not in separators


@settings(max_examples=200, deadline=None)
@given(lengths=DOCUMENTS, max_tokens=st.integers(26, 60))
def test_full_sentences_are_whole_where_they_fit(lengths, max_tokens):
  bounds, rows = rows_of(lengths, max_tokens)
  starts = {s for bound in bounds for s in bound[:-1]}
  ends = {e for bound in bounds for e in bound[1:]}
  assert all(a in starts and a + n in ends for a, n in rows)


def test_full_sentences_fill_their_rows():
  rng = random.Random(9)
  documents = [
    [rng.randint(4, 40) for _ in range(rng.randint(5, 60))] for _ in range(200)
  ]
  for max_tokens, share in ((510, 0.95), (126, 0.85)):
    _, rows = rows_of(documents, max_tokens)
    assert sum(n for _, n in rows) > share * max_tokens * len(rows)


def test_a_sentence_as_long_as_a_row_leaves_its_separator_behind_no_row():
  # 10 tokens, [SEP], then a sentence that must be cut.
  assert rows_of([[10], [25]], 10)[1] == [(0, 10), (11, 10), (21, 10), (31, 5)]
