"""Masked language modelling: which tokens to predict, and what replaces them.

The choice is a pure function of (seed, epoch, example, position). A hash of
these numbers takes the place of a random generator, so that no random state is
stored, the order of reading does not matter, and a whole batch is masked at
once.
"""

import functools
import math
from typing import Any

import numpy as np

from bert_jax.data import batch_keys

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Each purpose draws its own random numbers.
_CHOICE, _REPLACEMENT, _TOKEN = 1, 2, 3
_RUN = 5  # mixtures.py has 4
# The tokens of the shortest possible sequence: [CLS], one of text, [SEP].
SHORTEST = 3


def check_max_sequences(data: Any) -> None:
  """Raises ValueError if data.max_sequences is out of range.

  Args:
    data: the `data` group of a config.
  """
  most = data.seq_len // SHORTEST
  if not 1 <= data.max_sequences <= most:
    raise ValueError(
      f"data.max_sequences={data.max_sequences}; a row of data.seq_len="
      f"{data.seq_len} takes 1 to {most} sequences; use 1 for no packing, 8 to "
      "fill rows of 512"
    )


def check_ngrams(data: Any) -> None:
  """Raises ValueError if runs of words are asked for without words.

  Args:
    data: the `data` group of a config.
  """
  if data.mask_ngrams > 1 and not data.whole_word:
    raise ValueError(
      f"data.mask_ngrams={data.mask_ngrams} predicts runs of whole words; set "
      "data.whole_word=True, or data.mask_ngrams=1"
    )


def num_slots(seq_len: int, mask_rate: float, max_predictions: int) -> int:
  """Returns P, the masked slots of a row with one sequence.

  Args:
    seq_len: L, the tokens of a row.
    mask_rate: the share of the tokens to predict.
    max_predictions: P; 0 means as many as the rate needs.
  """
  return max_predictions or math.ceil(seq_len * mask_rate)


@functools.cache
def num_packed_slots(
  seq_len: int, max_sequences: int, mask_rate: float, slots: int
) -> int:
  """Returns P, the masked slots that any sequences sharing a row need at most.

  Each sequence rounds for itself and has at least one token to predict, so
  that several sequences may have more tokens to predict than one that fills the
  row. P is the largest sum of `num_to_predict` over lengths that fit into a
  row, found by dynamic programming. It depends on the settings only, so that
  all batches have one shape, and it is the least number that is enough.

  Args:
    seq_len: L, the tokens of a row.
    max_sequences: S, the most sequences of a row.
    mask_rate: the share of a sequence's tokens to predict.
    slots: the most tokens to predict in a sequence (`num_slots`).
  """
  lengths = np.arange(SHORTEST, seq_len + 1)
  wanted = num_to_predict(lengths, mask_rate, slots)
  # Only the shortest of the lengths with equally many to predict matters.
  counts, first = np.unique(wanted, return_index=True)
  best = np.zeros(seq_len + 1, np.int64)  # by the number of tokens in use
  for _ in range(max_sequences):
    before = best.copy()
    for count, length in zip(
      counts.tolist(), lengths[first].tolist(), strict=True
    ):
      np.maximum(best[length:], before[:-length] + count, out=best[length:])
    if (best == before).all():
      break
  return int(best[-1])


def hash_uniform(*keys: np.ndarray | int) -> np.ndarray:
  """Returns uniform 64-bit integers that depend on the keys alone.

  The keys broadcast. Each is mixed in with the finaliser of SplitMix64.

  Source: Steele, Lea, Flood, Fast splittable pseudorandom number generators,
  OOPSLA 2014.
  """
  state: np.ndarray = np.zeros((), np.uint64)
  with np.errstate(over="ignore"):
    for key in keys:
      state = (state + np.asarray(key).astype(np.uint64)) * _GOLDEN + _GOLDEN
      state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
      state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
      state = state ^ (state >> np.uint64(31))
  return state


def num_to_predict(
  lengths: np.ndarray, mask_rate: float, slots: int
) -> np.ndarray:
  """Returns how many tokens to predict in rows of given lengths.

  Args:
    lengths: [B] the tokens of each row, special tokens included.
    mask_rate: the share of the tokens to predict.
    slots: P, the most tokens to predict in a row.

  Source: google-research/bert create_pretraining_data.py:369-370; halves are
  rounded to even, as Python 3 does.
  """
  wanted = np.rint(lengths * mask_rate).astype(np.int64)
  return np.minimum(slots, np.maximum(1, wanted))


def mask_batch(
  input_ids: np.ndarray,
  candidates: np.ndarray,
  lengths: np.ndarray,
  example_ids: np.ndarray,
  epochs: np.ndarray,
  *,
  seed: int,
  slots: int,
  vocab_size: int,
  mask_id: int,
  mask_rate: float = 0.15,
  mask_token_rate: float = 0.8,
  random_token_rate: float = 0.1,
  continues_word: np.ndarray | None = None,
  word_marks: np.ndarray | None = None,
  most_words: int = 1,
) -> tuple[np.ndarray, ...]:
  """Masks a batch of rows.

  A chosen token becomes [MASK] with probability mask_token_rate, and a token
  drawn from the whole vocabulary with probability random_token_rate; otherwise
  it stays. The drawn token may be a special token, or the same token again.

  Args:
    input_ids: [B, L] token ids.
    candidates: [B, L] bool, the positions that may be chosen.
    lengths: [B] the tokens of each row, special tokens included.
    example_ids: [B] the number of each example.
    epochs: [B] the epoch of each row; always the same for static masks.
    seed: the seed of the run.
    slots: P, the most tokens to predict in a row.
    vocab_size: V.
    mask_id: the id of [MASK].
    mask_rate: the share of a row's tokens to predict.
    mask_token_rate: the share of these that become [MASK].
    random_token_rate: the share of these that become a random token.
    continues_word: [V] bool, which pieces continue a word. If it is given,
      whole words are chosen; each piece still draws its own replacement.
    word_marks: [B, L] bool, which tokens continue a word. If it is given, it
      says so in the place of `continues_word`.
    most_words: the longest run of whole words that is chosen together; a run of
      n words is drawn in proportion to 1 / n.

  Returns:
    (input_ids with replacements [B, L] int32, masked_positions [B, P] int32 in
    ascending order, masked_ids [B, P] int32, masked_weights [B, P] float32).
    Unused slots hold zeros.

  Source: google-research/bert create_pretraining_data.py:342-415.
  """
  keys = hash_uniform(seed, epochs, example_ids)
  wanted = num_to_predict(lengths, mask_rate, slots)
  wanted = np.minimum(wanted, candidates.sum(1))
  if word_marks is None and continues_word is not None:
    word_marks = continues_word[input_ids]
  chosen = _choose(keys, candidates, wanted, slots, word_marks, most_words)
  rows, positions = np.nonzero(chosen)
  original = input_ids[rows, positions]
  keys = keys[rows]
  bits = hash_uniform(keys, positions, _REPLACEMENT) >> np.uint64(11)
  share = bits * 2.0**-53  # uniform from 0 to below 1
  token = hash_uniform(keys, positions, _TOKEN) % np.uint64(vocab_size)
  is_random = share < mask_token_rate + random_token_rate
  masked = input_ids.astype(np.int32)
  masked[rows, positions] = np.where(
    share < mask_token_rate, mask_id, np.where(is_random, token, original)
  )
  return (masked, *_slots(rows, positions, original, (len(lengths), slots)))


def _choose(
  keys: np.ndarray,
  candidates: np.ndarray,
  wanted: np.ndarray,
  slots: int,
  word_marks: np.ndarray | None,
  most_words: int,
) -> np.ndarray:
  """Returns which tokens are predicted, [B, L] bool.

  Args:
    keys: [B] the random number of each row.
    candidates: [B, L] bool, the positions that may be chosen.
    wanted: [B] the number of tokens to predict in each row.
    slots: P, the largest number of them.
    word_marks: see `mask_batch`; None if single tokens are chosen.
    most_words: see `mask_batch`.
  """
  # The candidates with the lowest numbers are chosen. The low bit is dropped,
  # so that no candidate has the largest number, which marks other positions.
  columns = np.arange(candidates.shape[1], dtype=np.uint64)
  order = hash_uniform(keys[:, None], columns[None], _CHOICE) >> np.uint64(1)
  if word_marks is None:
    order = np.where(candidates, order, np.uint64(2**64 - 1))
    return _lowest(order, slots, wanted)
  runs = None
  if most_words > 1:
    runs = _draw_runs(keys[:, None], columns[None], most_words)
  return _lowest_words(order, candidates, word_marks & candidates, wanted, runs)


def _slots(
  rows: np.ndarray,
  positions: np.ndarray,
  original: np.ndarray,
  shape: tuple[int, int],
) -> list[np.ndarray]:
  """Puts the chosen tokens into the slots of their rows.

  Args:
    rows: [M] the row of each token, ascending.
    positions: [M] its position in the row, ascending within the row.
    original: [M] its id before masking.
    shape: B and P.

  Returns:
    Positions, ids and weights, [B, P] each; unused slots hold zeros.
  """
  counts = np.bincount(rows, minlength=shape[0])
  slot = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
  found = batch_keys.shapes(batch_keys.MASKED, B=shape[0], P=shape[1])
  arrays = [np.zeros(*of_key) for of_key in found.values()]
  for array, values in zip(arrays, (positions, original, 1), strict=True):
    array[rows, slot] = values
  return arrays


def _lowest(order: np.ndarray, slots: int, wanted: np.ndarray) -> np.ndarray:
  """Chooses the positions with the lowest numbers of each row.

  Args:
    order: [B, L] the numbers.
    slots: the most positions of a row.
    wanted: [B] the number of positions of each row.

  Returns:
    [B, L] bool.
  """
  batch, length = order.shape
  slots = min(slots, length)
  best = np.argpartition(order, slots - 1, axis=1)[:, :slots]
  ranks = np.argsort(np.take_along_axis(order, best, 1), axis=1)
  best = np.take_along_axis(best, ranks, 1)
  chosen = np.zeros((batch, length), bool)
  np.put_along_axis(chosen, best, np.arange(slots) < wanted[:, None], 1)
  return chosen


def _draw_runs(
  keys: np.ndarray, columns: np.ndarray, most_words: int
) -> np.ndarray:
  """Draws how many words a run has that begins at a position.

  Args:
    keys: [B, 1] the random key of each row.
    columns: [1, L] the positions.
    most_words: the most words of a run.

  Returns:
    [B, L] integers from 1 to `most_words`; n has a chance in proportion to 1/n.

  Source: arXiv:1909.11942, section 4.1.
  """
  chances = 1 / np.arange(1, most_words + 1)
  ends = np.cumsum(chances / chances.sum())[:-1]
  bits = hash_uniform(keys, columns, _RUN) >> np.uint64(11)
  return 1 + np.searchsorted(ends, bits * 2.0**-53, side="right")


def _lowest_words(
  order: np.ndarray,
  candidates: np.ndarray,
  continues: np.ndarray,
  wanted: np.ndarray,
  runs: np.ndarray | None = None,
) -> np.ndarray:
  """Chooses whole words, those whose first pieces have the lowest numbers.

  A word with more pieces than are still wanted is skipped.

  Args:
    order: [B, L] the numbers.
    candidates: [B, L] bool, the positions that may be chosen.
    continues: [B, L] bool, the positions of pieces that continue a word.
    wanted: [B] the number of positions of each row.
    runs: [B, L] how many words to choose together from each word on, or None
      for one. A run ends before a word that is chosen already, before one that
      does not follow it in the text, and before one with too many pieces.

  Returns:
    [B, L] bool.
  """
  chosen = np.zeros(order.shape, bool)
  for row in range(len(order)):
    here = np.flatnonzero(candidates[row])
    if not len(here):
      continue
    starts = ~continues[row, here]
    # A piece also starts a word if the token before it is not a candidate.
    starts[0] = True
    starts[1:] |= np.diff(here) > 1
    first = np.flatnonzero(starts)
    sizes = np.diff(np.append(first, len(here))).tolist()
    begins = here[first].tolist()
    left = int(wanted[row])
    lengths = [1] * len(begins)
    if runs is not None:
      lengths = runs[row, here[first]].tolist()
    for word in np.argsort(order[row, here[first]]).tolist():
      at = begins[word]
      for one in range(word, min(word + lengths[word], len(begins))):
        is_next = begins[one] == at and not chosen[row, at]
        if not is_next or sizes[one] > left:
          break
        at += sizes[one]
        chosen[row, begins[one] : at] = True
        left -= sizes[one]
      if not left:
        break
  return chosen
