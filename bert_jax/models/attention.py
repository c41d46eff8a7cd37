"""Multi-head self-attention, as BERT has it.

The gradients of the two functions here are written out. They are the ones that
differentiation would find; what is gained is that every matmul of the backward
pass reads and writes arrays in the order in which they already lie in memory,
and that the dropout mask is computed again, not kept.
"""

from collections.abc import Mapping
import functools
import math
from typing import TYPE_CHECKING, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models.dropout import dropout

if TYPE_CHECKING:  # bert.py imports this file
  from bert_jax.models.bert import ModelConfig

# Added to the scores of keys that may not be seen. Finite, so that a row
# without any visible key yields a softmax and not NaN.
MASKED_SCORE = -10000.0
_HEAD_MODULES = ("query", "key", "value")


def attention_bias(input_mask, sequence_ids=None):
  """Returns what to add to the scores so that hidden keys get no weight.

  Only keys are masked: a padded position still asks, but nobody hears it.

  Args:
    input_mask: [B, L] int, 1 = real token, 0 = padding.
    sequence_ids: [B, L] int, which packed sequence of the row a token belongs
      to; tokens then see their own sequence only. None: the row is one.

  Returns:
    float32 [B, 1, 1, L], or [B, 1, L, L] (queries by keys) with
    `sequence_ids`: 0 where a key is visible, -10000 where it is not.

  Example:
    >>> attention_bias(jnp.array([[1, 0]])).tolist()
    [[[[0.0, -10000.0]]]]

  Source: google-research/bert modeling.py:544-555, 709-716.
  """
  visible = (input_mask > 0)[:, None, None, :]
  if sequence_ids is not None:
    same = sequence_ids[:, :, None] == sequence_ids[:, None, :]
    visible = visible & same[:, None]
  return jnp.where(visible, 0.0, MASKED_SCORE).astype(jnp.float32)


class Visible(NamedTuple):
  """Who sees whom, for a program that does not want it written out.

  Attributes:
    key_bias: float32 [B, 1, 1, L], `attention_bias` of the mask alone.
    sequence_ids: [B, L] int32; None: the row is one sequence.
  """

  key_bias: jax.Array
  sequence_ids: jax.Array | None


def bias_of_queries(bias, positions):
  """Picks the rows of a bias that belong to some queries.

  Args:
    bias: from `attention_bias`, or `Visible`.
    positions: [B, Q] int32.

  Returns:
    float32 [B, 1, 1, L] or [B, 1, Q, L].
  """
  if isinstance(bias, Visible):
    key_bias, ids = bias
    if ids is None:
      return key_bias
    own = jnp.take_along_axis(ids, positions, axis=1)
    same = (own[:, :, None] == ids[:, None, :])[:, None]
    return jnp.where(same, key_bias, MASKED_SCORE)
  if bias.shape[2] == 1:
    return bias
  return jnp.take_along_axis(bias, positions[:, None, :, None], axis=2)


@jax.custom_vjp
def dense(x, kernel, bias):
  """Returns `x @ kernel + bias`, computed in the dtype of `x`.

  The gradients of kernel and bias come out in the dtype these are stored in,
  without a detour over the dtype of `x`.

  Args:
    x: [..., D].
    kernel: [D, ...], one or more output dimensions.
    bias: [...], the output dimensions of `kernel`.

  Returns:
    [..., ...]: the leading dimensions of `x`, then those of `bias`.
  """
  return _dense_forward(x, kernel, bias)[0]


def _dense_forward(x, kernel, bias):
  low = kernel.astype(x.dtype)
  if low.dtype != kernel.dtype:
    # Cast once for both passes; inside of a matmul the cast slows it down.
    low = jax.lax.optimization_barrier(low)
  y = jax.lax.dot_general(x, low, (((x.ndim - 1,), (0,)), ((), ())))
  y = y + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + bias.shape)
  return y, (x, low, bias)


def _dense_backward(residuals, grad):
  x, kernel, bias = residuals
  # Two dimensions each: over several contracted dimensions the CPU compiler
  # would write a transposed copy first.
  rows, columns = x.reshape(-1, x.shape[-1]), grad.reshape(-1, bias.size)
  flat = kernel.reshape(kernel.shape[0], -1)
  grad_x = jax.lax.dot_general(columns, flat, (((1,), (1,)), ((), ())))
  # Kernel and bias are stored in one dtype.
  grad_kernel = jax.lax.dot_general(
    rows, columns, (((0,), (0,)), ((), ())), preferred_element_type=bias.dtype
  )
  grad_bias = jnp.sum(columns, 0, dtype=bias.dtype)
  return (
    grad_x.reshape(x.shape),
    grad_kernel.reshape(kernel.shape),
    grad_bias.reshape(bias.shape),
  )


dense.defvjp(_dense_forward, _dense_backward)


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
    rng: typed key of the dropout; not used, and may be None, at rate 0.
    rate: dropout rate of the probabilities, a Python float.

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
  # The softmax needs sum_k probs * grad_probs for every query, which is
  # grad . context whatever the dropout: H terms in the place of K.
  inner = jnp.sum(grad.astype(f32) * context.astype(f32), -1, keepdims=True)
  grad_probs = dropout(rng, _head_dot(grad, value, 3, 3, f32), rate)
  grad_scores = (probs * (grad_probs - inner)).astype(query.dtype)
  grad_query = _head_dot(grad_scores, key, 3, 2, query.dtype) * scale
  grad_key = _head_dot(grad_scores, query * scale, 2, 2, key.dtype)
  return grad_query, grad_key, grad_value, jnp.zeros_like(bias), None


attend.defvjp(_attend_forward, _attend_backward)


def _map_attention(fn, params):
  """Applies a function to the parameters of every `SelfAttention` of a tree."""
  if not isinstance(params, Mapping):
    return params
  if "out" in params and ("query" in params or "qkv" in params):
    return fn(params)
  return {name: _map_attention(fn, value) for name, value in params.items()}


def flatten_heads(params, join):
  """Turns the projections to heads, and from them, into matrices.

  A TPU stores [D, N, H] with D innermost. Where a gradient has that shape, the
  compiler turns the long operands of the product round, not the short result.

  Args:
    params: of any model with `SelfAttention`.
    join: query, key and value become one matrix, which `SelfAttention` takes
      apart and `SelfAttention._fused` puts together again: the compiler then
      sees one from the parameters to the product, and back.

  Returns:
    The same tree with kernels [..., D, N * H] and biases [..., N * H] in the
    modules "query", "key" and "value", or, with `join`, [..., D, 3 * N * H] and
    [..., 3 * N * H] in "qkv"; and the kernel [..., N * H, D] in "out".
  """

  def merge(x, axis):
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

  def flatten(node):
    out = node["out"] | {
      "kernel": merge(node["out"]["kernel"], node["out"]["kernel"].ndim - 3)
    }
    heads = {
      name: jax.tree.map(lambda x: merge(x, x.ndim - 2), node[name])
      for name in _HEAD_MODULES
    }
    if join:
      parts = heads.values()
      heads = {"qkv": jax.tree.map(lambda *x: jnp.concatenate(x, -1), *parts)}
    return heads | {"out": out}

  return _map_attention(flatten, params)


def unflatten_heads(params, num_heads, separately=False):
  """The inverse of `flatten_heads`.

  Args:
    params: from `flatten_heads`, or gradients by these.
    num_heads: N.
    separately: the matrices are computed as such first; the compiler would
      otherwise undo what they are for.

  Returns:
    The tree with [..., D, N, H], [..., N, H] and [..., N, H, D].
  """

  def part(x, axis):
    return x.reshape(*x.shape[:axis], num_heads, -1, *x.shape[axis + 1 :])

  def unflatten(node):
    if separately:
      node = jax.tree.map(jax.lax.optimization_barrier, node)
    kernel = node["out"]["kernel"]
    out = node["out"] | {"kernel": part(kernel, kernel.ndim - 2)}
    heads = {name: node[name] for name in _HEAD_MODULES if name in node}
    if not heads:
      split = jax.tree.map(lambda x: jnp.split(x, 3, -1), node["qkv"])
      heads = {
        name: {key: parts[i] for key, parts in split.items()}
        for i, name in enumerate(_HEAD_MODULES)
      }
    return jax.tree.map(lambda x: part(x, x.ndim - 1), heads) | {"out": out}

  return _map_attention(unflatten, params)


class HeadKernel(nn.Module):
  """The parameters of one projection to heads: kernel [D, N, H], bias [N, H].

  Attributes:
    config: a `ModelConfig`.
  """

  config: "ModelConfig"

  @nn.compact
  def __call__(self):
    cfg = self.config
    heads = (cfg.num_heads, cfg.head_dim)
    flat = (cfg.hidden_size, cfg.hidden_size)
    kernel = self.param(
      "kernel",
      lambda rng, shape, dtype: cfg.kernel_init(rng, flat, dtype).reshape(
        shape
      ),
      (cfg.hidden_size, *heads),
      cfg.storage_dtype,
    )
    bias = self.param(
      "bias", nn.initializers.zeros_init(), heads, cfg.storage_dtype
    )
    return kernel, bias


class SelfAttention(nn.Module):
  """Every position attends to every visible position of its row.

  Attributes:
    config: a `ModelConfig`.
  """

  config: "ModelConfig"

  def setup(self):
    self.query = HeadKernel(self.config)
    self.key = HeadKernel(self.config)
    self.value = HeadKernel(self.config)
    self.out = self.config.dense(self.config.hidden_size, heads=True)

  def __call__(self, x, bias, *, deterministic, queries=None):
    """Maps hidden states [B, L, D] to [B, L, D].

    Args:
      x: [B, L, D] hidden states.
      bias: float32, broadcastable to [B, N, Q, L], see `attention_bias`; or
        `Visible`, which leaves it to a kernel.
      deterministic: True switches dropout off.
      queries: [B, Q, D], the hidden states that ask; None: all of `x`.

    Returns:
      [B, Q, D], before dropout, residual and LayerNorm.
    """
    cfg = self.config

    # [B, L, D] -> [B, N, L, H]. A matmul each: on a CPU one for all three takes
    # longer to put their kernels together than it spares.
    def project(x, module):
      kernel, bias = module()
      y = dense(x, kernel, bias)
      return jnp.swapaxes(y, 1, 2)

    rate = 0.0 if deterministic else cfg.attention_dropout_rate
    rng = self.make_rng("dropout") if rate else None
    by_kernel = isinstance(bias, Visible) and queries is None
    if by_kernel and cfg.attention != "splash":
      return self.out(self._fused(x, bias, rng, rate))
    query = project(x if queries is None else queries, self.query)
    key, value = project(x, self.key), project(x, self.value)
    if by_kernel:
      from bert_jax.models import splash_attention  # slow to import

      context = splash_attention.attend(query, key, value, bias)
    else:
      context = attend(query, key, value, bias, rng, rate)
    return self.out(jnp.swapaxes(context, 1, 2))  # [B, N, Q, H] -> [B, Q, D]

  def _fused(self, x, visible, rng, rate):
    """The context [B, L, N, H], by one kernel where there is one."""
    from bert_jax.models import fused_attention  # slow to import

    head_dim = self.config.head_dim
    pairs = []
    for module in (self.query, self.key, self.value):
      kernel, bias = module()
      pairs.append((kernel.reshape(x.shape[-1], -1), bias.reshape(-1)))
    if self.config.attention == "fused_qkv":
      kernels, biases = zip(*pairs, strict=True)
      pairs = [(jnp.concatenate(kernels, 1), jnp.concatenate(biases))]
    qkv = tuple(dense(x, w, jax.lax.stop_gradient(b)) for w, b in pairs)
    biases = tuple(bias for _, bias in pairs)
    context = fused_attention.attend(qkv, biases, visible, rng, rate, head_dim)
    return context.reshape(*context.shape[:2], -1, head_dim)
