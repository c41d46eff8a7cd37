"""Tests of models/fused_attention.py: the kernels, as plain operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import sharding
from bert_jax.models import attention
from bert_jax.models import dropout
from bert_jax.models import fused_attention

B, L, N = 4, 128, 4


@functools.cache
def _case(head_dim, packed, dtype="float32", length=L):
  """Query, key, value, a gradient, and who sees whom."""
  rng = np.random.default_rng(head_dim + packed)
  arrays = [
    jnp.asarray(rng.normal(size=(B, length, N * head_dim)), dtype)
    for _ in range(4)
  ]
  # Descending, so that the padding, 0, is last.
  ids = np.sort(rng.integers(0, 4, (B, length)))[:, ::-1]
  ids = jnp.asarray(ids.copy(), jnp.int32)
  visible = attention.Visible(
    attention.attention_bias((ids > 0).astype(jnp.int32)),
    ids if packed else None,
  )
  return arrays, visible


def _plain(query, key, value, visible, rng, rate, head_dim):
  """`attention.attend` with heads side by side."""
  ids = visible.sequence_ids
  bias = visible.key_bias
  if ids is not None:
    bias = attention.attention_bias((ids > 0).astype(jnp.int32), ids)

  def split(x):
    return jnp.swapaxes(x.reshape(*x.shape[:2], -1, head_dim), 1, 2)

  out = attention.attend(
    split(query), split(key), split(value), bias, rng, rate
  )
  return jnp.swapaxes(out, 1, 2).reshape(query.shape)


def _kernels(arrays, visible, rng, rate, head_dim):
  """What both kernels return: the context and three gradients."""
  *inputs, grad = arrays
  rows, length, width = grad.shape
  sizes = fused_attention.Sizes(
    head_dim, rate, (rows, width // head_dim, length, length)
  )
  ids = visible.sequence_ids
  rest = (
    visible.key_bias[:, 0],
    None if ids is None else ids[:, None],
    jnp.pad(dropout.key_words(rng), (0, 2)),
  )
  out = fused_attention.kernel_forward(sizes, *inputs, *rest, interpret=True)
  return out, *fused_attention.kernel_backward(
    sizes, *inputs, *rest, grad, interpret=True
  )


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("head_dim", [32, 64, 128, 256])
def test_kernels_equal_plain_attention(head_dim, packed, rate):
  arrays, visible = _case(head_dim, packed)
  rng = jax.random.key(5)
  found = _kernels(arrays, visible, rng, rate, head_dim)

  def plain(*inputs):
    return _plain(*inputs, visible, rng, rate, head_dim)

  out, vjp = jax.vjp(plain, *arrays[:3])
  for got, wanted in zip(found, (out, *vjp(arrays[3])), strict=True):
    np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_rows_of_several_blocks_equal_plain_attention():
  arrays, visible = _case(64, True, length=1024)
  sizes = fused_attention.Sizes(64, 0.0, (B, N, 1024, 1024))
  assert fused_attention._block_lanes(sizes, 1024, N * 64) < N * 64
  rng = jax.random.key(0)
  first = jax.tree.map(lambda x: x[:1], (arrays, visible))
  found = _kernels(*first, rng, 0.0, 64)
  wanted = _plain(*arrays[:3], visible, rng, 0.0, 64)
  np.testing.assert_allclose(found[0], wanted[:1], atol=2e-6)


def test_bfloat16_kernels_are_as_near_to_float32_as_plain_attention_is():
  arrays, visible = _case(64, True, "bfloat16")
  rng = jax.random.key(1)
  exact = [x.astype(jnp.float32) for x in arrays]
  wanted = _kernels(exact, visible, rng, 0.1, 64)
  found = _kernels(arrays, visible, rng, 0.1, 64)

  def plain(*inputs):
    return _plain(*inputs, visible, rng, 0.1, 64)

  out, vjp = jax.vjp(plain, *arrays[:3])
  for got, other, right in zip(
    found, (out, *vjp(arrays[3])), wanted, strict=True
  ):
    error = jnp.abs(got.astype(jnp.float32) - right).mean()
    assert error <= 1.2 * jnp.abs(other.astype(jnp.float32) - right).mean()
    assert error < 0.01 * jnp.abs(right).max()


@pytest.mark.parametrize("sizes", [(4, 1, 1), (1, 2, 2), (2, 1, 2)])
def test_kernels_on_a_mesh_equal_those_on_one_device(sizes):
  arrays, visible = _case(64, True)
  rng = jax.random.key(2)
  wanted = _kernels(arrays, visible, rng, 0.1, 64)
  mesh = sharding.make_mesh(*sizes, devices=jax.devices()[:4])
  static = fused_attention.Sizes(64, 0.1, (B, N, L, L))
  rest = (visible.key_bias[:, 0], visible.sequence_ids[:, None],
          dropout.key_words(rng))  # fmt: skip
  run = functools.partial(fused_attention._over_mesh, sizes=static)
  forward = functools.partial(fused_attention.kernel_forward, interpret=True)
  backward = functools.partial(fused_attention.kernel_backward, interpret=True)
  with jax.set_mesh(mesh):
    out = jax.jit(run(forward, num_out=1))(*arrays[:3], *rest)
    grads = jax.jit(run(backward, num_out=3))(*arrays[:3], *rest, arrays[3])
  for got, right in zip((out, *grads), wanted, strict=True):
    np.testing.assert_allclose(got, right, atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("packed", [False, True])
def test_attend_on_this_machine_equals_plain_attention(packed, rate):
  arrays, visible = _case(64, packed)
  rng = jax.random.key(7)

  def fused(*inputs):
    return fused_attention.attend(*inputs, visible, rng, rate, 64)

  def plain(*inputs):
    return _plain(*inputs, visible, rng, rate, 64)

  out, vjp = jax.vjp(jax.jit(fused), *arrays[:3])
  wanted, plain_vjp = jax.vjp(jax.jit(plain), *arrays[:3])
  np.testing.assert_allclose(out, wanted, atol=1e-6)
  for got, right in zip(vjp(arrays[3]), plain_vjp(arrays[3]), strict=True):
    np.testing.assert_allclose(got, right, atol=1e-6)


@pytest.mark.parametrize(
  ("length", "hidden", "head_dim", "wanted"),
  [
    (96, 256, 64, "data.seq_len=128"),
    (2048, 256, 64, "up to 1024"),
    (128, 240, 48, "width that divides 128"),
    (128, 192, 64, "multiple of 128, not 192"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(length, hidden, head_dim, wanted):
  x = jnp.zeros((1, length, hidden))
  visible = attention.Visible(jnp.zeros((1, 1, 1, length)), None)
  with pytest.raises(ValueError, match=wanted):
    fused_attention.attend(x, x, x, visible, None, 0.0, head_dim)
