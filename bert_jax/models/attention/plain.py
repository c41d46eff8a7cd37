"""Self-attention by plain operations, for every machine.

The gradient is written by hand and equals that of automatic differentiation. So
every matmul of the backward pass reads and writes arrays in the order in which
they lie in memory, and the dropout mask is computed again instead of stored.
"""

import functools
import math

import jax
import jax.numpy as jnp

from bert_jax.models.attention import masks
from bert_jax.models.dropout import dropout

# A shorter block would keep the matmuls small.
_LEAST_BLOCK = 32


def _head_dot(a, b, contract_a, contract_b, dtype):
  """A matmul for every row and head, the leading [B, N] of both."""
  return jax.lax.dot_general(
    a,
    b,
    (((contract_a,), (contract_b,)), ((0, 1), (0, 1))),
    preferred_element_type=dtype,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(query, key, value, bias, rng, rate):
  """Returns dropout(softmax(query key / sqrt(H) + bias)) value.

  Args:
    query: [B, N, Q, H], Q query positions.
    key: [B, N, K, H], K key positions.
    value: [B, N, K, H].
    bias: float32, broadcastable to [B, N, Q, K]; gets no gradient.
    rng: the typed key of the dropout; may be None at rate 0.
    rate: the dropout rate of the probabilities, a Python float.

  Returns:
    [B, N, Q, H] in the dtype of `query`. The softmax is float32 throughout.

  Source: Vaswani et al. 2017, equation 1; dropout as in google-research/bert
  modeling.py:720-724.
  """
  return _attend_forward(query, key, value, bias, rng, rate)[0]


def _attend_forward(query, key, value, bias, rng, rate):
  scale = 1.0 / math.sqrt(query.shape[-1])
  scores = _head_dot(query * scale, key, 3, 3, jnp.float32)
  probs = jax.nn.softmax(scores + bias).astype(query.dtype)
  context = _head_dot(dropout(rng, probs, rate), value, 3, 2, query.dtype)
  return context, (query, key, value, bias, rng, probs, context)


def _attend_backward(rate, residuals, grad):
  query, key, value, bias, rng, probs, context = residuals
  scale = 1.0 / math.sqrt(query.shape[-1])
  f32 = jnp.float32
  grad_value = _head_dot(dropout(rng, probs, rate), grad, 2, 2, value.dtype)
  # The softmax needs sum_k probs * grad_probs for every query. With or without
  # dropout this equals grad . context, which has H terms instead of K.
  inner = jnp.sum(grad.astype(f32) * context.astype(f32), -1, keepdims=True)
  grad_probs = dropout(rng, _head_dot(grad, value, 3, 3, f32), rate)
  grad_scores = (probs * (grad_probs - inner)).astype(query.dtype)
  grad_query = _head_dot(grad_scores, key, 3, 2, query.dtype) * scale
  grad_key = _head_dot(grad_scores, query * scale, 2, 2, key.dtype)
  return grad_query, grad_key, grad_value, jnp.zeros_like(bias), None


attend.defvjp(_attend_forward, _attend_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend_biased(query, key, value, bias, rng, rate):
  """Returns the same as `attend`, with a gradient of the bias, too.

  Args:
    query: [B, N, Q, H].
    key: [B, N, K, H].
    value: [B, N, K, H].
    bias: float32 [B or 1, N or 1, Q or 1, K].
    rng: the typed key of the dropout; may be None at rate 0.
    rate: the dropout rate of the probabilities, a Python float.
  """
  return _attend_forward(query, key, value, bias, rng, rate)[0]


def _attend_biased_backward(rate, residuals, grad):
  _, _, value, bias, rng, probs, context = residuals
  grads = _attend_backward(rate, residuals, grad)
  inner = jnp.sum(
    grad.astype(jnp.float32) * context.astype(jnp.float32), -1, keepdims=True
  )
  grad_probs = dropout(rng, _head_dot(grad, value, 3, 3, jnp.float32), rate)
  grad_bias = probs * (grad_probs - inner)  # [B, N, Q, K]
  axes = [i for i, n in enumerate(bias.shape) if n != grad_bias.shape[i]]
  grad_bias = jnp.sum(grad_bias, axes, keepdims=True).astype(bias.dtype)
  return (*grads[:3], grad_bias, None)


attend_biased.defvjp(_attend_forward, _attend_biased_backward)


def probabilities(query, key, bias):
  """Returns the probabilities float32 [B, N, Q, K] of `attend`, to look at.

  Args:
    query: [B, N, Q, H].
    key: [B, N, K, H].
    bias: float32, broadcastable to [B, N, Q, K].
  """
  scale = 1.0 / math.sqrt(query.shape[-1])
  scores = _head_dot(query * scale, key, 3, 3, jnp.float32)
  return jax.nn.softmax(scores + bias)


def attend_window(
  query, key, value, window, rng, rate, radius, attend=attend, unit=1
):
  """Returns `attend` for tokens that see only near tokens.

  The row is cut into blocks, of which each sees itself and its two neighbors,
  so that time and memory grow linearly with the row. A short row is one block.

  Args:
    query: [B, N, L, H].
    key: [B, N, L, H].
    value: [B, N, L, H].
    window: `masks.Window`.
    rng: the typed key of the dropout; may be None at rate 0.
    rate: the dropout rate of the probabilities, a Python float.
    radius: the longest distance that is visible, in tokens.
    attend: what attends within the blocks, with the arguments of `attend`.
    unit: blocks have a multiple of this many tokens.

  Returns:
    [B, N, L, H].

  Source: Beltagy et al. 2020, arXiv:2004.05150, section 3.1.
  """
  rows, heads, length, width = query.shape
  size = -(-max(radius, _LEAST_BLOCK) // unit) * unit
  if length <= 3 * size:
    bias = masks.window_bias(window, radius)
    return attend(query, key, value, bias, rng, rate)
  blocks = -(-length // size)
  more = blocks * size - length

  def cut(x):  # [B, N, L, H] -> [B * blocks, N, size, H]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0)))
    x = x.reshape(rows, heads, blocks, size, width)
    return jnp.moveaxis(x, 2, 1).reshape(-1, heads, size, width)

  def widen(x, axis, fill):  # blocks -> blocks with both neighbors
    x = x.reshape(rows, blocks, *x.shape[1:])
    ends = [(0, 0)] * x.ndim
    ends[1] = (1, 1)
    x = jnp.pad(x, ends, constant_values=fill)
    parts = [x[:, i : i + blocks] for i in range(3)]
    x = jnp.concatenate(parts, axis + 1)
    return x.reshape(-1, *x.shape[2:])

  key_bias, ids = window.visible
  key_bias = jnp.pad(
    key_bias[:, 0, 0], ((0, 0), (0, more)), constant_values=masks.MASKED_SCORE
  )
  key_bias = widen(key_bias.reshape(-1, size), 1, masks.MASKED_SCORE)
  at = jnp.arange(size)[:, None] + size - jnp.arange(3 * size)[None]
  near = jnp.broadcast_to(
    jnp.abs(at)[None] <= radius, (rows * blocks, size, 3 * size)
  )
  if ids is not None:
    own = jnp.pad(ids, ((0, 0), (0, more))).reshape(-1, size)
    near &= own[:, :, None] == widen(own, 1, 0)[:, None, :]
  bias = jnp.where(near, key_bias[:, None], masks.MASKED_SCORE)[:, None]
  key, value = (widen(cut(x), 2, 0) for x in (key, value))
  context = attend(cut(query), key, value, bias, rng, rate)
  context = context.reshape(rows, blocks, heads, size, width)
  context = jnp.moveaxis(context, 2, 1)
  return context.reshape(rows, heads, -1, width)[:, :, :length]
