"""Tests of models/dropout.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models import dropout
from bert_jax.runtime import sharding

ROWS, COLUMNS = 512, 2048
SIGMAS = 5.0


def _dropped(rng, rate=0.1, shape=(ROWS, COLUMNS)):
  """Returns which elements fall, as float64 of mean 0 and variance 1."""
  out = jax.jit(dropout.dropout, static_argnums=2)(rng, jnp.ones(shape), rate)
  fell = np.asarray(out == 0, np.float64)
  return (fell - rate) / np.sqrt(rate * (1 - rate))


def _assert_uncorrelated(a, b):
  """Products of independent variables have mean 0 and variance 1."""
  z = np.mean(a * b) * np.sqrt(a.size)
  assert abs(z) < SIGMAS, z


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_rate_is_within_binomial_bounds(rate, impl):
  fell = _dropped(jax.random.key(3, impl=impl), rate)
  assert abs(np.sum(fell)) / np.sqrt(fell.size) < SIGMAS


def test_kept_elements_are_scaled_and_the_mean_stays():
  x = jnp.full((ROWS, COLUMNS), 3.0)
  out = np.asarray(dropout.dropout(jax.random.key(0), x, 0.1))
  np.testing.assert_allclose(np.unique(out), [0.0, 3.0 / 0.9], rtol=1e-6)
  np.testing.assert_allclose(out.mean(), 3.0, rtol=2e-3)


def test_rate_zero_changes_nothing_and_needs_no_key():
  x = jnp.arange(5.0)
  assert dropout.dropout(None, x, 0.0) is x


@pytest.mark.parametrize("lag", [2**i for i in range(19)])
def test_elements_at_a_distance_are_independent(lag):
  fell = _dropped(jax.random.key(1)).ravel()
  _assert_uncorrelated(fell[lag:], fell[:-lag])


@pytest.mark.parametrize("axis", [0, 1])
def test_counts_of_rows_and_columns_scatter_as_they_should(axis):
  fell = _dropped(jax.random.key(2))
  counts = fell.sum(axis) / np.sqrt(fell.shape[axis])  # mean 0, variance 1
  z = (np.mean(counts**2) - 1) / np.sqrt(2 / counts.size)
  assert abs(z) < SIGMAS, z


def test_three_neighbours_are_independent():
  fell = _dropped(jax.random.key(4), 0.5)
  for triple in (
    fell[:, 2:] * fell[:, 1:-1] * fell[:, :-2],
    fell[2:] * fell[1:-1] * fell[:-2],
  ):
    assert abs(triple.mean()) * np.sqrt(triple.size) < SIGMAS


def test_every_bit_is_fair_and_every_pair_of_bits_independent():
  words = np.asarray(dropout.random_bits(jax.random.key(5), (2**16,)))
  bits = 1.0 - 2.0 * ((words[:, None] >> np.arange(32)) & 1)  # [n, 32], +-1
  z = bits.T @ bits / np.sqrt(len(bits))
  z[np.diag_indices(32)] = bits.sum(0) / np.sqrt(len(bits))
  assert np.abs(z).max() < SIGMAS


def test_pairs_of_bytes_are_uniform():
  words = np.asarray(dropout.random_bits(jax.random.key(6), (2**21,)))
  pairs = (words[1::2] >> 24) * 256 + (words[::2] >> 24)
  count = np.bincount(pairs, minlength=2**16)
  expected = pairs.size / 2**16
  chi2 = np.sum((count - expected) ** 2) / expected
  z = (chi2 - (2**16 - 1)) / np.sqrt(2 * (2**16 - 1))
  assert abs(z) < SIGMAS, z


def test_keys_of_successive_steps_and_seeds_are_independent():
  keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(8)]
  keys += [jax.random.key(i) for i in range(4)]  # data differ in one bit
  masks = [_dropped(key, 0.5, (256, 512)) for key in keys]
  for i, a in enumerate(masks):
    for b in masks[:i]:
      _assert_uncorrelated(a, b)
      _assert_uncorrelated(a, b[::-1])
      _assert_uncorrelated(a[1:], b[:-1])


def test_masks_of_related_keys_are_no_permutations_of_each_other():
  # With the index only xor-ed into the key, keys that share their high bits
  # would give the same bits in another order.
  data = np.array([[7, 11], [6, 11], [7, 10], [11, 7]], np.uint32)
  bits = [
    set(
      np.asarray(
        dropout.random_bits(jax.random.wrap_key_data(jnp.asarray(d)), (4096,))
      ).tolist()
    )
    for d in data
  ]
  for i, a in enumerate(bits):
    for b in bits[:i]:
      assert len(a & b) < 10  # 4096^2 / 2^32 = .004 are expected


def test_two_calls_of_a_module_differ_and_steps_repeat():
  module = dropout.Dropout(0.5)
  x = jnp.ones((64, 64))

  def twice(module, x):
    return (
      module(x, deterministic=False),
      module(x, deterministic=False),
    )

  def run(seed):
    rngs = {"dropout": jax.random.key(seed)}
    return module.apply({}, x, rngs=rngs, method=twice)

  a, b = run(0)
  again = run(0)[0]
  np.testing.assert_array_equal(a, again)
  _assert_uncorrelated(np.asarray(a) - 1, np.asarray(b) - 1)
  np.testing.assert_array_equal(module.apply({}, x, deterministic=True), x)


def test_gradient_is_masked_as_the_value_is():
  rng, x = jax.random.key(0), jnp.full((32, 32), 2.0)
  out, pull = jax.vjp(lambda x: dropout.dropout(rng, x, 0.3), x)
  (grad,) = pull(jnp.ones_like(x))
  np.testing.assert_allclose(grad, out / 2.0, rtol=1e-6)


def test_mask_does_not_depend_on_the_sharding():
  rng, shape = jax.random.key(9), (16, 8, 6)
  want = dropout.random_bits(rng, shape)
  for sizes in ((8, 1, 1), (2, 2, 2), (1, 1, 8)):
    mesh = sharding.make_mesh(*sizes)
    for spec in (("data",), ("fsdp", "tensor"), (None, "tensor")):
      place = jax.sharding.NamedSharding(mesh, jax.P(*spec))
      got = jax.jit(
        lambda: dropout.random_bits(rng, shape), out_shardings=place
      )()
      np.testing.assert_array_equal(got, want)


def test_arrays_of_more_than_one_counter_repeat_nothing(monkeypatch):
  shape = (64, 16, 1024)
  whole = np.asarray(dropout.random_bits(jax.random.key(0), shape))
  monkeypatch.setattr(dropout, "_COUNTER_SIZE", 2**12)
  split = np.asarray(dropout.random_bits(jax.random.key(0), shape))
  assert (split != whole).mean() > 0.99
  # 2^20 draws of 2^32: 128 repetitions are expected.
  assert len(np.unique(split)) > split.size - 300
  rows = split.reshape(256, -1) / 2**31 - 1.0
  rows *= np.sqrt(3.0)  # variance 1
  _assert_uncorrelated(rows[1:], rows[:-1])


def test_huge_arrays_are_numbered_or_refused():
  rng = jax.random.key(0)

  def shape_of(*shape):
    return jax.eval_shape(lambda: dropout.random_bits(rng, shape)).shape

  assert shape_of(2**20, 2**20) == (2**20, 2**20)
  with pytest.raises(ValueError, match="split or reshape the array"):
    shape_of(2**20, 2**20, 2**31)


def test_bits_stay_the_same_from_version_to_version():
  # A run that is continued must go on with the same masks.
  bits = dropout.random_bits(jax.random.key(0), (4,))
  assert np.asarray(bits).tolist() == GOLDEN


GOLDEN = [2382933713, 1863352416, 3449896158, 2123490708]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_stays(dtype):
  x = jnp.ones(8, dtype)
  assert dropout.dropout(jax.random.key(0), x, 0.1).dtype == x.dtype


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_impossible_rates_are_refused(rate):
  with pytest.raises(ValueError, match="not a probability below 1"):
    dropout.dropout(jax.random.key(0), jnp.ones(2), rate)
