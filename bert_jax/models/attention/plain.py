"""Self-attention by plain operations, for every machine.

The gradient is written by hand and equals that of automatic differentiation. So
every matmul of the backward pass reads and writes arrays in the order in which
they lie in memory, and the dropout mask is computed again instead of stored.
"""

import functools
import math

import jax
import jax.numpy as jnp

from bert_jax.models.dropout import dropout


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
