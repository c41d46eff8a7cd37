"""The order of examples: a deterministic map from batch position to example.

A position counts the rows of all batches from the start of training, and an
order maps (seed, position) to the examples of that row. Nothing needs to be
stored, and any host can ask for any position. An epoch is one pass over all
examples, each in one row; the next epoch may begin in the middle of a batch.
"""

import dataclasses

import numpy as np

from bert_jax.data import masking
from bert_jax.data import packing
from bert_jax.data.store import indexes

# Evaluation uses one choice of masks and of examples, whatever the run's seed,
# so that numbers of different runs compare.
EVAL_SEED = 0
# Rounds of the Feistel network, enough even if the network has few bits.
_ROUNDS = 6


@dataclasses.dataclass(frozen=True)
class Order:
  """Deterministic map from position to example, with one example per row.

  Every epoch is a permutation of all examples.

  Attributes:
    num_examples: the number of examples of the split.
    seed: the seed of the permutations; every epoch has its own permutation.
  """

  num_examples: int
  seed: int

  @property
  def num_rows(self) -> int:
    """The number of rows of an epoch."""
    return self.num_examples

  def __call__(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns example ids [M] and epochs [M] for global positions [M]."""
    from grain.experimental import index_shuffle  # slow to import

    epochs, offsets = np.divmod(places, self.num_examples)
    seeds = masking.hash_uniform(self.seed, epochs) >> np.uint64(32)
    ids = [
      index_shuffle(index=i, max_index=self.num_examples - 1, seed=s, rounds=4)
      for i, s in zip(offsets.tolist(), seeds.tolist(), strict=True)
    ]
    return np.array(ids, np.int64), epochs


@dataclasses.dataclass(frozen=True)
class PackedOrder:
  """Deterministic map from position to the examples that share a row.

  In every epoch the rows of all patterns are permuted, and so are the examples
  of each length. A row can be computed without computing any other row.

  Attributes:
    patterns: the lengths that share a row, for all rows of an epoch.
    index: finds the examples of a length.
    seed: the seed of the permutations; every epoch has its own permutation.
  """

  patterns: packing.Patterns
  index: indexes.LengthIndex
  seed: int

  @property
  def num_rows(self) -> int:
    """The number of rows of an epoch."""
    return self.patterns.num_rows

  def __call__(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples of the rows at global positions [M].

    Returns:
      Example ids [M, S], where -1 marks an unused slot, and epochs [M].
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
  """Applies a random permutation of 0 .. size - 1 to each place.

  A Feistel network permutes the numbers below the next power of four, and is
  applied again until its result is below the size (cycle walking). This suits a
  few places in each of many small sets, for which grain's index_shuffle would
  walk through 2^16 numbers.

  Args:
    places: [M] integers from 0 to size - 1.
    sizes: [M] integers, 1 or more.
    keys: [M] uint64; each key selects a permutation.

  Returns:
    [M] the permuted places, from 0 to size - 1.

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
