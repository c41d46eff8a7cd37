"""Tests of models/fused_attention.py: the kernels, as plain operations."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models import dropout
from bert_jax.models.attention import fused as fused_attention
from bert_jax.models.attention import masks
from bert_jax.models.attention import plain
from bert_jax.runtime import sharding
from tests.support import breadth

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
  visible = masks.Visible(
    masks.attention_bias((ids > 0).astype(jnp.int32)),
    ids if packed else None,
  )
  return arrays, visible


def _plain(query, key, value, visible, rng, rate, head_dim):
  """`plain.attend` with heads side by side."""
  ids = visible.sequence_ids
  bias = visible.key_bias
  if ids is not None:
    bias = masks.attention_bias((ids > 0).astype(jnp.int32), ids)

  def split(x):
    return jnp.swapaxes(x.reshape(*x.shape[:2], -1, head_dim), 1, 2)

  out = plain.attend(split(query), split(key), split(value), bias, rng, rate)
  return jnp.swapaxes(out, 1, 2).reshape(query.shape)


def _kernels(arrays, visible, rng, rate, head_dim, joined=False):
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
  qkv = (jnp.concatenate(inputs, -1),) if joined else tuple(inputs)
  out = fused_attention.kernel_forward(sizes, qkv, *rest, interpret=True)
  grads, sums = fused_attention.kernel_backward(
    sizes, qkv, *rest, out, grad, interpret=True
  )
  for x, total in zip(grads, sums, strict=True):
    exact = grad.dtype == jnp.float32
    np.testing.assert_allclose(
      total[:, 0], x.astype(jnp.float32).sum(1), atol=1e-4 if exact else 0.2
    )
  return out, *(jnp.split(grads[0], 3, -1) if joined else grads)


@pytest.mark.parametrize(
  ("head_dim", "packed", "rate", "joined"),
  breadth.slow_but(
    itertools.product(
      (32, 64, 128, 256), (False, True), (0.0, 0.1), (False, True)
    ),
    lambda head_dim, packed, rate, joined: (
      head_dim == 64 or (packed and rate and joined)
    ),
  ),
)
def test_kernels_equal_plain_attention(head_dim, packed, rate, joined):
  arrays, visible = _case(head_dim, packed)
  rng = jax.random.key(5)
  found = _kernels(arrays, visible, rng, rate, head_dim, joined)

  def plain(*inputs):
    return _plain(*inputs, visible, rng, rate, head_dim)

  out, vjp = jax.vjp(plain, *arrays[:3])
  for got, wanted in zip(found, (out, *vjp(arrays[3])), strict=True):
    np.testing.assert_allclose(got, wanted, atol=2e-6)


@pytest.mark.parametrize("joined", [False, True])
def test_rows_of_several_blocks_equal_plain_attention(joined):
  arrays, visible = _case(64, True, length=1024)
  sizes = fused_attention.Sizes(64, 0.0, (B, N, 1024, 1024))
  assert fused_attention._block_lanes(sizes, 1024, N * 64) < N * 64
  rng = jax.random.key(0)
  first, seen = jax.tree.map(lambda x: x[:1], (arrays, visible))
  found = _kernels(first, seen, rng, 0.0, 64, joined)

  def plain(*inputs):
    return _plain(*inputs, seen, rng, 0.0, 64)

  out, vjp = jax.vjp(plain, *first[:3])
  for got, wanted in zip(found, (out, *vjp(first[3])), strict=True):
    np.testing.assert_allclose(got, wanted, atol=5e-6)


@pytest.mark.slow
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
    # Rounding is as often up as down: no factor is common to all.
    wide = got.astype(jnp.float32)
    assert abs(jnp.vdot(wide, right) / jnp.vdot(right, right) - 1) < 5e-4
    error = jnp.abs(wide - right).mean()
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
  whole = sizes[2] == 1
  qkv = (jnp.concatenate(arrays[:3], -1),) if whole else tuple(arrays[:3])
  run = functools.partial(fused_attention._over_mesh, sizes=static)
  forward = functools.partial(fused_attention.kernel_forward, interpret=True)
  backward = functools.partial(fused_attention.kernel_backward, interpret=True)
  with jax.set_mesh(mesh):
    out = jax.jit(run(forward))(qkv, *rest)
    grads, sums = jax.jit(run(backward))(qkv, *rest, out, arrays[3])
  for x, total in zip(grads, sums, strict=True):
    np.testing.assert_allclose(total[:, 0], x.sum(1), atol=1e-4)
  grads = jnp.split(grads[0], 3, -1) if whole else grads
  for got, right in zip((out, *grads), wanted, strict=True):
    np.testing.assert_allclose(got, right, atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("joined", [False, True])
def test_attend_on_this_machine_equals_plain_attention(joined, packed, rate):
  arrays, visible = _case(64, packed)
  rng = jax.random.key(7)

  biases = [jnp.arange(i, N * 64.0 + i) * 1e-3 for i in range(3)]

  def fused(inputs, biases):
    stopped = jax.lax.stop_gradient(biases)
    qkv = [x + b[None, None] for x, b in zip(inputs, stopped, strict=True)]
    if joined:
      qkv, biases = [jnp.concatenate(qkv, -1)], [jnp.concatenate(biases)]
    return fused_attention.attend(
      tuple(qkv), tuple(biases), visible, rng, rate, 64
    )

  def plain(inputs, biases):
    qkv = (x + b[None, None] for x, b in zip(inputs, biases, strict=True))
    return _plain(*qkv, visible, rng, rate, 64)

  out, vjp = jax.vjp(jax.jit(fused), arrays[:3], biases)
  wanted, plain_vjp = jax.vjp(jax.jit(plain), arrays[:3], biases)
  np.testing.assert_allclose(out, wanted, atol=1e-6)
  found, right = (jax.tree.leaves(f(arrays[3])) for f in (vjp, plain_vjp))
  for got, one in zip(found, right, strict=True):
    np.testing.assert_allclose(got, one, atol=1e-6 if got.ndim == 3 else 1e-4)


@pytest.mark.parametrize(
  ("length", "hidden", "head_dim", "wanted"),
  [
    (96, 256, 64, "use rows of 128 .data.seq_len"),
    (2048, 256, 64, "up to 1024"),
    (128, 240, 48, "width that divides 128"),
    (128, 192, 64, "multiple of 128, not 192"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(length, hidden, head_dim, wanted):
  x = jnp.zeros((1, length, hidden))
  visible = masks.Visible(jnp.zeros((1, 1, 1, length)), None)
  with pytest.raises(ValueError, match=wanted):
    fused_attention.attend((x, x, x), (), visible, None, 0.0, head_dim)


def test_one_projection_of_cut_heads_is_refused():
  x = jnp.zeros((2, 128, 3 * 256))
  visible = masks.Visible(jnp.zeros((2, 1, 1, 128)), None)
  mesh = sharding.make_mesh(1, 1, 2, devices=jax.devices()[:2])
  with (
    jax.set_mesh(mesh),
    pytest.raises(ValueError, match="need all heads on one device.*tensor=2"),
  ):
    fused_attention.attend((x,), (x[0, 0],), visible, None, 0.0, 64)
