"""Tests of checksums.py: every change of an array shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.runtime import checksums
from bert_jax.runtime import sharding


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_a_sum_changes_with_any_bit_and_any_two_elements_swapped(dtype):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.integers(0, 9, (5, 3, 4)), dtype)
  (want,) = checksums.sums(x=x).values()
  flat = np.asarray(x).reshape(-1)
  for _ in range(100):
    changed = flat.copy().view(f"uint{8 * flat.dtype.itemsize}")
    if rng.random() < 0.5:
      bit = int(rng.integers(8 * flat.dtype.itemsize))
      changed[rng.integers(60)] ^= changed.dtype.type(1 << bit)
    else:
      i, j = rng.integers(60, size=2)
      changed[[i, j]] = changed[[j, i]]
    y = jnp.asarray(changed.view(flat.dtype).reshape(x.shape))
    (got,) = checksums.sums(x=y).values()
    assert (got == want) == np.array_equal(changed, flat.view(changed.dtype))


def test_sums_are_those_of_any_mesh():
  x = jnp.arange(64.0).reshape(8, 8)
  place = jax.sharding.NamedSharding(
    sharding.make_mesh(2, 2, 2), sharding.P(("data", "fsdp"), "tensor")
  )
  assert checksums.sums(x=jax.device_put(x, place)) == checksums.sums(x=x)
