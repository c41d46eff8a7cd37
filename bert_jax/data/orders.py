"""Which examples stand in which row, at every step and in every epoch.

An order is a function of the row's place in the whole training, counted over
all steps: (seed, place) -> examples. Nothing needs to be stored, and any host
can ask for any place. An epoch is one pass over all examples, each in one row;
the next epoch may begin in the middle of a batch.
"""

import dataclasses

from grain.experimental import index_shuffle
import numpy as np

from bert_jax.data import masking
from bert_jax.data import packing
from bert_jax.data.store import indexes

# Evaluation uses one choice of masks and of examples, whatever the run's seed,
# so that numbers of different runs compare.
EVAL_SEED = 0
_ROUNDS = 6  # of the Feistel network: enough also where it has few bits


@dataclasses.dataclass(frozen=True)
class Order:
  """Which example stands in which row, for ever: epochs of permutations.

  Attributes:
    num_examples: of the split.
    seed: of the permutations; every epoch has its own.
  """

  num_examples: int
  seed: int

  def __call__(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The examples at global places [M]: (example ids [M], epochs [M])."""
    epochs, offsets = np.divmod(places, self.num_examples)
    seeds = masking.hash_uniform(self.seed, epochs) >> np.uint64(32)
    ids = [
      index_shuffle(index=i, max_index=self.num_examples - 1, seed=s, rounds=4)
      for i, s in zip(offsets.tolist(), seeds.tolist(), strict=True)
    ]
    return np.array(ids, np.int64), epochs


@dataclasses.dataclass(frozen=True)
class PackedOrder:
  """Which examples share which row, for ever: epochs of permutations.

  In an epoch the rows of all patterns are permuted, and so are the examples of
  each length; to know one row takes no other.

  Attributes:
    patterns: the rows of an epoch.
    index: of the examples by length.
    seed: of the permutations; every epoch has its own.
  """

  patterns: packing.Patterns
  index: indexes.LengthIndex
  seed: int

  def __call__(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows at global places [M].

    Returns:
      Example ids [M, S], -1 = no more in the row, and epochs [M].
    """
    num_rows = self.patterns.num_rows
    epochs, offsets = np.divmod(places, num_rows)
    keys = masking.hash_uniform(self.seed, epochs)
    rows = permute(offsets, np.full(len(places), num_rows), keys)
    lengths, ranks = self.patterns.find(rows)
    ids = np.full(lengths.shape, -1, np.int64)
    used = lengths > 0
    lengths, ranks = lengths[used], ranks[used]
    epoch = np.broadcast_to(epochs[:, None], used.shape)[used]
    keys = masking.hash_uniform(self.seed, epoch, lengths)
    ranks = permute(ranks, self.index.histogram[lengths], keys)
    ids[used] = self.index.find(lengths, ranks)
    return ids, epochs


def permute(
  places: np.ndarray, sizes: np.ndarray, keys: np.ndarray
) -> np.ndarray:
  """Where permutations of 0 .. size - 1, one a key, send places.

  A Feistel network over the next power of four, walked until it comes back
  below the size; for few places in each of many small sets, where grain's
  index_shuffle walks through 2^16 numbers.

  Args:
    places: [M] of 0 .. size - 1.
    sizes: [M] integers, 1 or more.
    keys: [M] uint64.

  Returns:
    [M] of 0 .. size - 1.

  Source: Black, Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002.
  """
  half = np.searchsorted(4 ** np.arange(31, dtype=np.int64), sizes)
  found, walking = places.copy(), np.arange(len(places))
  while len(walking):
    bits, key = half[walking], keys[walking]
    low = (1 << bits) - 1
    left, right = found[walking] >> bits, found[walking] & low
    for i in range(_ROUNDS):
      mixed = masking.hash_uniform(key, i, right)
      left, right = right, left ^ (mixed.astype(np.int64) & low)
    found[walking] = (left << bits) | right
    walking = walking[found[walking] >= sizes[walking]]
  return found


@dataclasses.dataclass(frozen=True)
class ListedRows:
  """The rows of one epoch, written out: ids [R, S], -1 = no more in a row."""

  ids: np.ndarray

  def __call__(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return self.ids[places], np.zeros_like(places)
