"""Tests of masking.py."""

import numpy as np
import pytest
from scipy import stats

from bert_jax.data import masking

PAD, CLS, SEP, MASK = 0, 2, 3, 4
VOCAB = 50


def rows(batch, length, seed=0, lengths=None):
  """Rows [CLS] text [SEP] with padding: ids, candidates, lengths."""
  rng = np.random.default_rng(seed)
  if lengths is None:
    lengths = rng.integers(3, length + 1, batch)
  columns = np.arange(length)[None, :]
  end = np.asarray(lengths)[:, None]
  text = (columns > 0) & (columns < end - 1)
  ids = np.where(text, rng.integers(5, VOCAB, (batch, length)), PAD)
  ids[:, 0] = CLS
  ids[columns == end - 1] = SEP
  return ids.astype(np.int32), text, np.asarray(lengths)


def mask(ids, candidates, lengths, example_ids=None, epochs=None, **kwargs):
  batch, length = ids.shape
  settings = dict(seed=7, slots=-(-length * 15 // 100), vocab_size=VOCAB,
                  mask_id=MASK)  # fmt: skip
  return masking.mask_batch(
    ids,
    candidates,
    lengths,
    np.arange(batch) if example_ids is None else example_ids,
    np.zeros(batch, np.int64) if epochs is None else epochs,
    **settings | kwargs,
  )


def chosen_of(positions, weights, shape):
  """[B, L] bool: the positions in use."""
  result = np.zeros(shape, bool)
  used = weights > 0
  result[np.nonzero(used)[0], positions[used]] = True
  return result


def test_a_row_by_hand():
  # Seven tokens at 30 %: 2.1, so two of the five between [CLS] and [SEP].
  ids = np.array([[CLS, 11, 12, 13, 14, 15, SEP, PAD]])
  candidates = (ids > SEP) & (ids != PAD)
  key = int(masking.hash_uniform(7, 1, 9))
  order = [int(masking.hash_uniform(key, i, 1)) for i in range(1, 6)]
  expected = sorted(np.argsort(order)[:2] + 1)
  masked, positions, originals, weights = mask(
    ids, candidates, np.array([7]), np.array([9]), np.array([1]),
    slots=4, mask_rate=0.3, mask_token_rate=1.0, random_token_rate=0.0,
  )  # fmt: skip
  assert positions.tolist() == [[*expected, 0, 0]]
  assert originals.tolist() == [[*ids[0, expected], 0, 0]]
  assert weights.tolist() == [[1, 1, 0, 0]]
  ids[0, expected] = MASK
  assert masked.tolist() == ids.tolist()
  types = [x.dtype for x in (masked, positions, originals, weights)]
  assert types == [np.int32, np.int32, np.int32, np.float32]


@pytest.mark.parametrize(
  "length, rate, slots, expected",
  [
    (128, 0.15, 20, 19),  # 19.2
    (10, 0.15, 20, 2),  # 1.5: to even, so up
    (30, 0.15, 20, 4),  # 4.5: to even, so down
    (50, 0.15, 20, 8),  # 7.5: to even, so up
    (3, 0.15, 20, 1),  # 0.45: at least one
    (512, 0.15, 20, 20),  # 76.8, but no more than there are slots
    (512, 0.15, 80, 77),
  ],
)
def test_num_to_predict_of_the_original(length, rate, slots, expected):
  assert masking.num_to_predict(np.array([length]), rate, slots) == [expected]
  # The original's own line.
  assert expected == min(slots, max(1, int(round(length * rate))))


def test_slots_are_what_the_rate_asks_or_what_is_set():
  assert masking.num_slots(128, 0.15, 0) == 20
  assert masking.num_slots(512, 0.15, 0) == 77
  assert masking.num_slots(512, 0.15, 80) == 80


@pytest.mark.parametrize("whole_word", [False, True])
def test_every_row_predicts_as_many_as_asked_and_no_special_token(whole_word):
  ids, candidates, lengths = rows(400, 64)
  # Words of one piece alone: then whole words reach the number exactly.
  words = np.zeros(VOCAB, bool) if whole_word else None
  masked, positions, originals, weights = mask(
    ids, candidates, lengths, continues_word=words
  )
  wanted = np.minimum(np.maximum(1, np.rint(lengths * 0.15)), 10)
  np.testing.assert_array_equal(weights.sum(1), wanted)
  chosen = chosen_of(positions, weights, ids.shape)
  assert not (chosen & ~candidates).any()
  np.testing.assert_array_equal(masked[~chosen], ids[~chosen])
  unused = weights == 0
  assert not positions[unused].any() and not originals[unused].any()


def test_positions_are_in_order_and_differ():
  ids, candidates, lengths = rows(200, 64)
  _, positions, _, weights = mask(ids, candidates, lengths)
  for row, used in zip(positions, weights > 0, strict=True):
    assert (np.diff(row[used]) > 0).all()
    assert used[: used.sum()].all()  # slots in use come first


def test_masked_ids_restore_the_row():
  ids, candidates, lengths = rows(200, 64)
  masked, positions, originals, weights = mask(ids, candidates, lengths)
  row, slot = np.nonzero(weights)
  masked[row, positions[row, slot]] = originals[row, slot]
  np.testing.assert_array_equal(masked, ids)


def test_the_input_is_left_alone():
  ids, candidates, lengths = rows(8, 64)
  before = ids.copy()
  mask(ids, candidates, lengths)
  np.testing.assert_array_equal(ids, before)


def test_a_row_with_too_few_candidates_predicts_those_and_no_more():
  ids = np.array([[CLS, SEP, SEP, PAD], [CLS, 9, SEP, PAD]])
  masked, positions, originals, weights = mask(
    ids, ids > 4, np.array([3, 3]), slots=3, mask_rate=0.9
  )
  assert weights.tolist() == [[0, 0, 0], [1, 0, 0]]
  assert positions[1, 0] == 1 and originals[1, 0] == 9
  np.testing.assert_array_equal(masked[0], ids[0])


def test_more_slots_than_tokens():
  ids, candidates, lengths = rows(4, 8)
  _, positions, _, weights = mask(ids, candidates, lengths, slots=20)
  assert positions.shape == weights.shape == (4, 20)
  np.testing.assert_array_equal(weights.sum(1), 1)


@pytest.fixture(scope="module", params=[False, True], ids=["pieces", "words"])
def many(request):
  """2,000 full rows of 512, masked: over 150,000 chosen tokens."""
  ids, candidates, lengths = rows(2_000, 512, lengths=[512] * 2_000)
  words = np.arange(VOCAB) % 3 == 0 if request.param else None
  masked = mask(ids, candidates, lengths, slots=77, continues_word=words)
  return ids, *masked


def test_80_10_10(many):
  ids, masked, positions, originals, weights = many
  used = weights > 0
  now = np.take_along_axis(masked, positions, 1)[used]
  was = originals[used]
  assert len(was) >= 100_000
  counts = [(now == MASK).sum(), ((now != MASK) & (now != was)).sum(),
            (now == was).sum()]  # fmt: skip
  # Of the random tokens one in V is [MASK] and one in V the same again.
  rates = np.array([0.8 + 0.1 / VOCAB, 0.1 - 0.2 / VOCAB, 0.1 + 0.1 / VOCAB])
  assert stats.chisquare(counts, len(was) * rates).pvalue > 0.001


def test_random_tokens_come_from_the_whole_vocabulary(many):
  ids, masked, positions, originals, weights = many
  used = weights > 0
  now = np.take_along_axis(masked, positions, 1)[used]
  was = originals[used]
  other = now[(now != was) & (now != MASK)]
  expected = np.full(VOCAB, 0.0)
  for token, count in zip(*np.unique(was, return_counts=True), strict=True):
    # Seen as replaced by any token but itself and [MASK].
    share = np.full(VOCAB, count / VOCAB)
    share[[token, MASK]] = 0
    expected += share
  counts = np.bincount(other, minlength=VOCAB)
  keep = expected > 0
  assert keep.sum() == VOCAB - 1 and not counts[~keep].any()
  expected *= counts.sum() / expected.sum()
  assert stats.chisquare(counts[keep], expected[keep]).pvalue > 0.001


def test_all_random_tokens_are_uniform():
  ids, candidates, lengths = rows(500, 512, lengths=[512] * 500)
  masked, positions, _, weights = mask(
    ids, candidates, lengths, slots=77,
    mask_token_rate=0.0, random_token_rate=1.0,
  )  # fmt: skip
  now = np.take_along_axis(masked, positions, 1)[weights > 0]
  counts = np.bincount(now, minlength=VOCAB)
  assert len(counts) == VOCAB
  assert stats.chisquare(counts).pvalue > 0.001


def test_positions_are_uniform():
  ids, candidates, lengths = rows(2_000, 512, lengths=[512] * 2_000)
  _, positions, _, weights = mask(ids, candidates, lengths, slots=77)
  counts = np.bincount(positions[weights > 0], minlength=512)
  assert not counts[[0, 511]].any()
  # Drawn without replacement, so a little less spread than chi-square's.
  assert stats.chisquare(counts[1:511]).pvalue > 0.001


def test_neighbours_are_chosen_independently():
  ids, candidates, lengths = rows(2_000, 512, lengths=[512] * 2_000)
  _, positions, _, weights = mask(ids, candidates, lengths, slots=77)
  chosen = chosen_of(positions, weights, ids.shape)[:, 1:511]
  pairs = (chosen[:, 1:] & chosen[:, :-1]).sum()
  expected = chosen.sum(1)[0] * (chosen.sum(1)[0] - 1) / 510 * len(chosen)
  assert pairs == pytest.approx(expected, rel=0.02)


def test_other_rates_are_followed():
  ids, candidates, lengths = rows(300, 128, lengths=[128] * 300)
  masked, positions, originals, weights = mask(
    ids, candidates, lengths, slots=60, mask_rate=0.4,
    mask_token_rate=0.5, random_token_rate=0.0,
  )  # fmt: skip
  assert (weights.sum(1) == 51).all()  # 51.2
  now = np.take_along_axis(masked, positions, 1)
  share = (now == MASK)[weights > 0]
  assert stats.binomtest(int(share.sum()), len(share), 0.5).pvalue > 0.001
  kept = (now == originals) & (weights > 0)
  np.testing.assert_array_equal(kept.sum(1) + (now == MASK).sum(1), 51)


@pytest.fixture(scope="module")
def case():
  """Rows of many lengths, a third of the pieces continue words, masked."""
  ids, candidates, lengths = rows(500, 128, seed=3)
  continues = np.arange(VOCAB) % 3 == 0
  result = mask(ids, candidates, lengths, continues_word=continues)
  return ids, candidates, lengths, continues, result


class TestWholeWords:
  def words(self, ids, candidates, continues):
    """Words of a row as lists of positions; pieces in order."""
    result = []
    for i in np.flatnonzero(candidates):
      joins = continues[ids[i]] and result and result[-1][-1] == i - 1
      if joins:
        result[-1].append(i)
      else:
        result.append([i])
    return result

  def test_words_are_chosen_whole_and_never_too_many_pieces(self, case):
    ids, candidates, lengths, continues, (_, positions, _, weights) = case
    chosen = chosen_of(positions, weights, ids.shape)
    wanted = masking.num_to_predict(lengths, 0.15, 20)
    assert (chosen.sum(1) <= wanted).all()
    for row in range(len(ids)):
      words = self.words(ids[row], candidates[row], continues)
      assert all(len(set(chosen[row, word])) == 1 for word in words)
      # What is left is too small for any word that was not chosen.
      left = wanted[row] - chosen[row].sum()
      assert all(len(w) > left for w in words if not chosen[row, w[0]])

  def test_most_rows_predict_as_many_as_asked(self, case):
    _, _, lengths, _, (_, _, _, weights) = case
    wanted = masking.num_to_predict(lengths, 0.15, 20)
    assert (weights.sum(1) == wanted).mean() > 0.9

  def test_pieces_draw_their_replacement_one_by_one(self, case):
    ids, candidates, _, continues, (masked, positions, _, weights) = case
    chosen = chosen_of(positions, weights, ids.shape)
    mixed = 0
    for row in range(len(ids)):
      for word in self.words(ids[row], candidates[row], continues):
        if chosen[row, word[0]] and len(word) > 1:
          mixed += len(set(masked[row, word] == MASK)) == 2
    assert mixed > 50

  def test_a_piece_after_a_separator_begins_a_word(self):
    # B begins with a piece that continues a word cut off by truncation.
    ids = np.array([[CLS, 10, SEP, 11, SEP]])
    continues = np.arange(VOCAB) == 11
    for example in range(40):
      _, positions, _, weights = mask(
        ids, ids > 4, np.array([5]), np.array([example]), slots=1,
        continues_word=continues,
      )  # fmt: skip
      assert weights.sum() == 1 and positions[0, 0] in (1, 3)

  def test_a_word_longer_than_asked_is_passed_over(self):
    ids = np.array([[CLS, 10, 11, 11, 11, 12, SEP]])  # one of four, one of one
    continues = np.arange(VOCAB) == 11
    for example in range(20):
      _, positions, _, weights = mask(
        ids, ids > 4, np.array([7]), np.array([example]), slots=2,
        mask_rate=0.3, continues_word=continues,
      )  # fmt: skip
      assert positions.tolist() == [[5, 0]] and weights.tolist() == [[1, 0]]


@pytest.mark.parametrize("words", [None, np.arange(VOCAB) % 3 == 0])
def test_a_row_is_masked_alike_whatever_the_rows_beside_it(words):
  ids, candidates, lengths = rows(64, 64)
  examples = np.random.default_rng(1).integers(0, 10**12, 64)
  epochs = np.arange(64) % 5
  whole = mask(ids, candidates, lengths, examples, epochs, continues_word=words)
  pick = np.random.default_rng(2).permutation(64)[:23]
  part = mask(
    ids[pick], candidates[pick], lengths[pick], examples[pick], epochs[pick],
    continues_word=words,
  )  # fmt: skip
  for all_rows, some in zip(whole, part, strict=True):
    np.testing.assert_array_equal(all_rows[pick], some)


def test_epochs_examples_and_seeds_each_give_other_masks():
  ids, candidates, lengths = rows(1, 512, lengths=[512])
  ids, candidates = ids.repeat(64, 0), candidates.repeat(64, 0)
  lengths = lengths.repeat(64)
  same, running = np.zeros(64, np.int64), np.arange(64)

  def overlap(**change):
    base = dict(example_ids=same, epochs=same)
    _, positions, _, weights = mask(
      ids, candidates, lengths, slots=77, **base | change
    )
    return chosen_of(positions, weights, ids.shape)

  first = overlap()
  assert (first == first[0]).all()  # static: one epoch, one choice
  for change in (dict(epochs=running), dict(example_ids=running)):
    chosen = overlap(**change)
    share = (chosen[1:] & chosen[:-1]).sum() / chosen[1:].sum()
    assert share == pytest.approx(77 / 510, abs=0.02)
  other = overlap(seed=8)
  share = (other[0] & first[0]).sum() / 77
  assert share < 0.35


class TestHashUniform:
  def test_bits_are_fair(self):
    bits = np.unpackbits(
      masking.hash_uniform(0, np.arange(4096)).view(np.uint8)
    ).reshape(4096, 64)
    z = (bits.sum(0, dtype=np.int64) - 2048) / 32
    assert np.abs(z).max() < 4.5
    assert stats.chi2.sf((z**2).sum(), 64) > 0.001

  @pytest.mark.parametrize("key", [0, 1, 2])
  def test_each_bit_of_each_key_changes_half_of_the_result(self, key):
    rng = np.random.default_rng(key)
    keys = rng.integers(0, 2**40, (3, 2048)).astype(np.uint64)
    before = masking.hash_uniform(*keys)
    for bit in range(40):
      changed = keys.copy()
      changed[key] ^= np.uint64(1 << bit)
      flips = np.bitwise_count(before ^ masking.hash_uniform(*changed))
      assert flips.mean() == pytest.approx(32, abs=0.5)  # sd .09

  def test_neighbouring_keys_are_independent(self):
    grid = masking.hash_uniform(np.arange(300)[:, None], np.arange(300))
    unit = (grid >> np.uint64(11)) * 2.0**-53
    above = np.triu_indices(300, 1)
    for x, y in (
      (unit[1:], unit[:-1]),
      (unit[:, 1:], unit[:, :-1]),
      (unit[above], unit.T[above]),
    ):
      table = np.histogram2d(x.ravel(), y.ravel(), 8, [[0, 1], [0, 1]])[0]
      assert stats.chisquare(table.ravel()).pvalue > 0.001

  def test_order_and_number_of_keys_matter(self):
    values = [
      int(masking.hash_uniform(*keys))
      for keys in ((1, 2), (2, 1), (1,), (1, 0), (0, 1), (0,), (0, 0), (-1,))
    ]
    assert len(set(values)) == len(values)

  def test_no_two_of_many_are_equal(self):
    values = masking.hash_uniform(5, np.arange(1000)[:, None], np.arange(1000))
    assert len(np.unique(values)) == 10**6


# -- slots of rows that sequences share ----------------------------------------


def most_to_predict(length, count, rate, slots):
  """By trying: the largest sum over up to `count` lengths that fit."""
  if count == 0 or length < masking.SHORTEST:
    return 0
  return max(
    masking.num_to_predict(np.array([n]), rate, slots)[0]
    + most_to_predict(length - n, count - 1, rate, slots)
    for n in range(masking.SHORTEST, length + 1)
  )


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.3, 1.0])
@pytest.mark.parametrize("slots", [2, 20])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_packed_slots_are_the_most_that_sequences_of_a_row_need(
  rate, slots, count
):
  for length in (8, 13, 16):
    found = masking.num_packed_slots(length, count, rate, slots)
    assert found == most_to_predict(length, count, rate, slots)


@pytest.mark.parametrize("length, count, wanted", [(512, 8, 81), (128, 2, 20)])
def test_packed_slots_by_hand(length, count, wanted):
  # 512: seven of 3 tokens, one to predict each, and one of 491: 73.65 -> 74.
  # 128: one of 3 and one of 125: 18.75 -> 19.
  slots = masking.num_slots(length, 0.15, 0)
  assert masking.num_packed_slots(length, count, 0.15, slots) == wanted


def test_packed_slots_hold_any_row():
  rng = np.random.default_rng(0)
  slots = masking.num_slots(512, 0.15, 0)
  most = masking.num_packed_slots(512, 8, 0.15, slots)
  for _ in range(2_000):
    parts = np.diff(np.sort(rng.integers(0, 513, 9)))
    parts = parts[parts >= masking.SHORTEST]
    assert masking.num_to_predict(parts, 0.15, slots).sum() <= most
