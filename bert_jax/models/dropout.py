"""Dropout whose mask is a hash of (key, position of the element).

This is a counter-based generator: the bits of an element depend only on the key
and on the index of the element in the global array. This has three advantages.
The mask does not depend on the sharding, because every device hashes the global
index. It is never stored, because a few integer operations and a comparison are
cheaper than a read from memory; the backward pass computes it again. And it
fuses into the loop that uses it, while `jax.random.bernoulli` writes its bits
to memory first.

The hash has two finaliser rounds of 32 bits over the index, each after a word
of the key. It is not cryptographic. Tests check the properties that dropout
needs: the rate, and no correlation between neighbours, rows, keys, steps and
calls.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp

_UINT32 = 2**32
_COUNTER_SIZE = 2**32  # the number of values of a 32-bit counter


def _mix(bits, key_word):
  """One invertible round on uint32: multiply, xor the key, fold the top down.

  The multipliers and shifts are those of the `lowbias32` finaliser.
  """
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
  bits = bits ^ key_word
  bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
  return bits ^ (bits >> 16)


def key_words(rng):
  """Reduces a key to two words, which replace it everywhere in this file.

  Args:
    rng: a typed PRNG key of any implementation, or two such words.

  Returns:
    uint32 [2].
  """
  if rng.dtype == jnp.uint32:
    return rng
  words = jax.random.key_data(rng).astype(jnp.uint32).reshape(-1)
  first, second = words[0], words[1]
  for i in range(2, words.shape[0], 2):  # rbg keys have four words
    first = _mix(first ^ words[i], words[i + 1])
    second = _mix(second ^ words[i + 1], words[i])
  # Keys of one seed may share a word. This makes each word depend on both.
  return jnp.stack(
    [_mix(first, second), _mix(second ^ jnp.uint32(0x9E3779B9), first)]
  )


def _counters(shape):
  """Splits the index of every element into (outer, inner) 32-bit counters.

  `inner` numbers the elements of as many trailing axes as fit into 32 bits, and
  `outer` those of the axes before them. `outer` is None if the whole array
  fits.
  """
  split, inner_size = len(shape), 1
  while split > 0 and inner_size * shape[split - 1] <= _COUNTER_SIZE:
    split -= 1
    inner_size *= shape[split]
  if math.prod(shape[:split]) > _COUNTER_SIZE:
    raise ValueError(
      f"dropout cannot number the elements of an array of shape {shape}: "
      "its leading and its trailing axes must each hold at most 2**32 "
      "elements; split or reshape the array"
    )

  def count(axes):
    total, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(axes):
      index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
      total = total + index * jnp.uint32(stride % _UINT32)
      stride *= shape[axis]
    return total

  inner = count(range(split, len(shape)))
  return (count(range(split)) if split else None), inner


def random_bits(rng, shape):
  """Returns uniform uint32 bits, one word for every element of `shape`.

  Args:
    rng: a typed PRNG key of any implementation, or its `key_words`.
    shape: the shape of the result, a tuple of ints. Two counters number the
      elements of arrays larger than 2**32; the counter of the leading axes is
      hashed into the key.

  Returns:
    uint32 array of shape `shape`, a pure function of `rng` and the index.
  """
  first, second = key_words(rng)
  outer, inner = _counters(tuple(shape))
  if outer is not None:
    first, second = _mix(outer ^ first, second), _mix(outer ^ second, first)
  return _mix(inner ^ first, second)


def random_bits_of_head(words, row, head, shape):
  """Returns `random_bits(words, shape)[row, head]` without the other bits.

  Args:
    words: two uint32 scalars, from `key_words`.
    row: uint32 scalar, below B.
    head: uint32 scalar, below N.
    shape: (B, N, Q, K), the shape of all scores.

  Returns:
    uint32 [Q, K].
  """
  _, num_heads, *scores = shape
  first, second = words
  size = math.prod(scores)
  counter = head * jnp.uint32(size)
  if math.prod(shape) <= _COUNTER_SIZE:
    counter = counter + row * jnp.uint32(num_heads * size % _UINT32)
  elif num_heads * size <= _COUNTER_SIZE:
    first, second = _mix(row ^ first, second), _mix(row ^ second, first)
  else:
    raise ValueError(f"the scores of one row of {shape} exceed 2**32 elements")
  place = _counters(tuple(scores))[1]
  return _mix((place + counter) ^ first, second)


def dropout(rng, x, rate):
  """Sets elements to zero with probability `rate`, and scales up the others.

  Args:
    rng: a typed PRNG key of any implementation, or its `key_words`.
    x: array of any shape and float dtype.
    rate: the probability that an element is dropped, a Python float in [0, 1).

  Returns:
    An array like `x`, with the same expectation.

  Raises:
    ValueError: if `rate` is outside [0, 1).

  Example:
    >>> dropout(jax.random.key(0), jnp.ones(4), 0.0).tolist()
    [1.0, 1.0, 1.0, 1.0]

  Source: Srivastava et al. 2014; rates of section A.2 of the BERT paper.
  """
  if not 0.0 <= rate < 1.0:
    raise ValueError(
      f"dropout rate={rate} is not a probability below 1; use 0.0 to switch "
      "dropout off"
    )
  if rate == 0.0:
    return x
  keep = random_bits(rng, x.shape) >= threshold(rate)
  scale = jnp.asarray(1.0 / (1.0 - rate), x.dtype)
  return jnp.where(keep, x * scale, jnp.zeros((), x.dtype))


def threshold(rate):
  """Returns the smallest uint32 bits with which an element is kept."""
  return jnp.uint32(round(rate * _UINT32))


class Dropout(nn.Module):
  """`dropout` with the key taken from the "dropout" stream of the module.

  Attributes:
    rate: the probability that an element is dropped.
  """

  rate: float

  @nn.compact
  def __call__(self, x, *, deterministic):
    if deterministic or self.rate == 0.0:
      return x
    return dropout(self.make_rng("dropout"), x, self.rate)
