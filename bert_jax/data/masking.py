"""Masked language modelling: which tokens to predict, and what stands there.

The choice is a pure function of (seed, epoch, example, position): a hash of
these numbers replaces a generator, so nothing random is stored, no order of
reading matters and a whole batch is masked at once.
"""

import functools
import math

import numpy as np

from bert_jax.data import batch_keys

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# Purposes that draw their own numbers.
_CHOICE, _REPLACEMENT, _TOKEN = 1, 2, 3
# Tokens of the shortest sequence there is: [CLS], one of text, [SEP].
SHORTEST = 3


def num_slots(seq_len: int, mask_rate: float, max_predictions: int) -> int:
  """Masked slots P of a row: max_predictions, or 0 for what the rate asks."""
  return max_predictions or math.ceil(seq_len * mask_rate)


@functools.cache
def num_packed_slots(
  seq_len: int, max_sequences: int, mask_rate: float, slots: int
) -> int:
  """Masked slots P that suffice for any sequences that share a row.

  Each sequence rounds for itself and has at least one token to predict, so
  that together they may have more than one sequence as long as the row. This
  is the largest sum of `num_to_predict` over lengths that fit, found by
  dynamic programming: a function of the settings, not of the data, so that one
  program does for every batch, and reached by some row, so no slot too many.

  Args:
    seq_len: L, tokens of a row.
    max_sequences: S, sequences in it at most.
    mask_rate: share of a sequence's tokens to predict.
    slots: the most tokens to predict in a sequence (`num_slots`).
  """
  lengths = np.arange(SHORTEST, seq_len + 1)
  wanted = num_to_predict(lengths, mask_rate, slots)
  # Of sequences with as many to predict, only the shortest matters.
  counts, first = np.unique(wanted, return_index=True)
  best = np.zeros(seq_len + 1, np.int64)  # [t]: the most in t tokens
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
  """Uniform 64-bit integers, a function of the keys, which broadcast.

  Each key is mixed in with the finaliser of SplitMix64.

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
  """Tokens to predict in rows of given lengths ([CLS] and [SEP] counted).

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
) -> tuple[np.ndarray, ...]:
  """Masks a batch of rows.

  Of the chosen tokens, mask_token_rate become [MASK], random_token_rate a token
  drawn from the whole vocabulary (special ones included, and it may be the same
  one), the rest stay.

  Args:
    input_ids: [B, L] token ids.
    candidates: [B, L] bool, the positions that may be chosen.
    lengths: [B] tokens of each row, special ones counted.
    example_ids: [B] number of the example.
    epochs: [B] the epoch; the same everywhere for static masks.
    seed: of the run.
    slots: P, the most tokens to predict in a row.
    vocab_size: V.
    mask_id: the id of [MASK].
    mask_rate: share of a row's tokens to predict.
    mask_token_rate: see above.
    random_token_rate: see above.
    continues_word: [V] bool, which pieces continue a word; given, whole words
      are chosen (each piece still draws its own replacement).

  Returns:
    (input_ids with replacements [B, L] int32, masked_positions [B, P] int32 in
    ascending order, masked_ids [B, P] int32, masked_weights [B, P] float32);
    unused slots hold zeros.

  Source: google-research/bert create_pretraining_data.py:342-415.
  """
  keys = hash_uniform(seed, epochs, example_ids)
  wanted = num_to_predict(lengths, mask_rate, slots)
  wanted = np.minimum(wanted, candidates.sum(1))
  order = _random_order(keys, input_ids.shape[1])
  if continues_word is None:
    order = np.where(candidates, order, np.uint64(2**64 - 1))
    chosen = _lowest(order, slots, wanted)
  else:
    chosen = _lowest_words(
      order, candidates, continues_word[input_ids] & candidates, wanted
    )
  rows, positions = np.nonzero(chosen)
  original = input_ids[rows, positions]
  masked = input_ids.astype(np.int32)
  masked[rows, positions] = _replacements(
    keys[rows],
    positions,
    original,
    mask_id,
    vocab_size,
    mask_token_rate,
    random_token_rate,
  )
  return (masked, *_slots(rows, positions, original, (len(lengths), slots)))


def _random_order(keys: np.ndarray, length: int) -> np.ndarray:
  """Draws what decides which tokens are chosen: the lowest of a row.

  Args:
    keys: [B] of the rows.
    length: L.

  Returns:
    [B, L] uint64. The low bit is given up, so that no candidate ties with the
    largest number, which stands for a position that is no candidate.
  """
  columns = np.arange(length, dtype=np.uint64)
  return hash_uniform(keys[:, None], columns[None], _CHOICE) >> np.uint64(1)


def _replacements(
  keys: np.ndarray,
  positions: np.ndarray,
  original: np.ndarray,
  mask_id: int,
  vocab_size: int,
  mask_token_rate: float,
  random_token_rate: float,
) -> np.ndarray:
  """Draws what stands at the chosen places, all of them [M].

  Args:
    keys: of the row of each place.
    positions: in the row.
    original: the token that stands there.
    mask_id: the id of [MASK].
    vocab_size: V.
    mask_token_rate: share of the tokens that become [MASK].
    random_token_rate: share that become a random token.
  """
  share = (hash_uniform(keys, positions, _REPLACEMENT) >> np.uint64(11)) * (
    2.0**-53
  )
  token = hash_uniform(keys, positions, _TOKEN) % np.uint64(vocab_size)
  is_random = share < mask_token_rate + random_token_rate
  return np.where(
    share < mask_token_rate, mask_id, np.where(is_random, token, original)
  )


def _slots(
  rows: np.ndarray,
  positions: np.ndarray,
  original: np.ndarray,
  shape: tuple[int, int],
) -> list[np.ndarray]:
  """Lays the chosen places [M] out in the slots of their rows.

  Args:
    rows: of each place, ascending.
    positions: in the row, ascending within it.
    original: the token that stood there.
    shape: B, P.

  Returns:
    Positions, tokens and weights, [B, P] each; unused slots hold zeros.
  """
  counts = np.bincount(rows, minlength=shape[0])
  slot = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
  found = batch_keys.shapes(batch_keys.MASKED, B=shape[0], P=shape[1])
  arrays = [np.zeros(*of_key) for of_key in found.values()]
  for array, values in zip(arrays, (positions, original, 1), strict=True):
    array[rows, slot] = values
  return arrays


def _lowest(order: np.ndarray, slots: int, wanted: np.ndarray) -> np.ndarray:
  """[B, L] bool: the `wanted` positions of each row lowest in `order`."""
  batch, length = order.shape
  slots = min(slots, length)
  best = np.argpartition(order, slots - 1, axis=1)[:, :slots]
  ranks = np.argsort(np.take_along_axis(order, best, 1), axis=1)
  best = np.take_along_axis(best, ranks, 1)
  chosen = np.zeros((batch, length), bool)
  np.put_along_axis(chosen, best, np.arange(slots) < wanted[:, None], 1)
  return chosen


def _lowest_words(
  order: np.ndarray,
  candidates: np.ndarray,
  continues: np.ndarray,
  wanted: np.ndarray,
) -> np.ndarray:
  """[B, L] bool: whole words, in the order of their first pieces.

  A word that would overshoot is passed over, a smaller one may follow.
  """
  chosen = np.zeros(order.shape, bool)
  for row in range(len(order)):
    here = np.flatnonzero(candidates[row])
    if not len(here):
      continue
    starts = ~continues[row, here]
    # A piece also starts a word where the token before it is no candidate.
    starts[0] = True
    starts[1:] |= np.diff(here) > 1
    first = np.flatnonzero(starts)
    sizes = np.diff(np.append(first, len(here))).tolist()
    begins = here[first].tolist()
    left = int(wanted[row])
    for word in np.argsort(order[row, here[first]]).tolist():
      if sizes[word] <= left:
        chosen[row, begins[word] : begins[word] + sizes[word]] = True
        left -= sizes[word]
        if not left:
          break
  return chosen
