"""The layers that every part of a model consists of.

The gradients of the functions here are written by hand and equal those of
automatic differentiation. So the backward pass keeps fewer arrays, and reads
and writes them in the order in which they lie in memory.

Shapes: B batch, L length, P masked slots, D hidden, N heads, H head_dim,
V vocab, E embedding width.
"""

import contextlib
import contextvars
import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models.config import ModelConfig

_SHAPES_ONLY = contextvars.ContextVar("_SHAPES_ONLY", default=False)


def compute_dtype(config):
  """Returns the dtype in which a model computes."""
  return jnp.dtype(config.dtype)


def storage_dtype(config):
  """Returns the dtype in which the parameters of a model are stored."""
  return jnp.dtype(config.param_dtype)


@contextlib.contextmanager
def shapes_only():
  """A context in which fresh kernels and tables are zeros.

  Tracing the random numbers of a model takes as long as tracing all else, and
  `jax.eval_shape` needs none of them.
  """
  token = _SHAPES_ONLY.set(True)
  try:
    yield
  finally:
    _SHAPES_ONLY.reset(token)


def kernel_init(config):
  """Returns the initialiser of kernels and tables.

  It is a normal distribution, truncated at two standard deviations and not
  rescaled, so that its samples have 0.88 of the standard deviation
  `init_stddev`.
  """
  if _SHAPES_ONLY.get():
    return nn.initializers.zeros_init()
  return nn.initializers.truncated_normal(config.init_stddev)


def kernel(module, shape, flat_shape=None):
  """Adds the parameter "kernel" to a module that has a `config`.

  Args:
    module: a Linen module in its compact `__call__`.
    shape: the shape of the parameter.
    flat_shape: the shape in which the initial values are drawn; None means
      `shape`.
  """
  cfg = module.config

  def init(rng):
    values = kernel_init(cfg)(rng, flat_shape or shape, storage_dtype(cfg))
    return values.reshape(shape)

  return module.param("kernel", init)


def bias(module, shape):
  """Adds the parameter "bias", which is initially 0; see `kernel`."""
  zeros = nn.initializers.zeros_init()
  return module.param("bias", zeros, shape, storage_dtype(module.config))


def _gelu_erf_parts(x):
  """Returns gelu(x) and its derivative, with the exact normal distribution."""
  cdf = 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
  density = jnp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
  return x * cdf, cdf + x * density


def _gelu_tanh_parts(x):
  """Returns gelu(x) and its derivative, with the approximation by tanh."""
  c = math.sqrt(2.0 / math.pi)
  tanh = jnp.tanh(c * x * (1.0 + 0.044715 * x * x))
  slope = c * (1.0 + 3.0 * 0.044715 * x * x)
  cdf = 0.5 * (1.0 + tanh)
  return x * cdf, cdf + 0.5 * x * (1.0 - tanh * tanh) * slope


def _from_parts(parts):
  """Returns a function that keeps only its argument for the backward pass.

  Automatic differentiation would keep several arrays as large as the widest
  activation of the model. Computing them again takes less time than reading
  them back.

  Args:
    parts: float32 x -> (the value, the derivative).
  """

  @jax.custom_vjp
  def function(x):
    return parts(x.astype(jnp.float32))[0].astype(x.dtype)

  def forward(x):
    return function(x), x

  def backward(x, grad):
    if x.dtype == jnp.float32:
      # Otherwise the CPU compiler finds equal parts in both passes and keeps
      # them (a step of SST-2 takes 1.02 times as long). TPUs train in bfloat16,
      # where it is best to compute the slope inside the matmul that follows.
      x, grad = jax.lax.optimization_barrier((x, grad))
    slope = parts(x.astype(jnp.float32))[1]
    return ((grad.astype(jnp.float32) * slope).astype(x.dtype),)

  function.defvjp(forward, backward)
  return function


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x, scale, bias, epsilon):
  """Normalises the last axis to mean 0 and variance 1, then scales and shifts.

  Statistics and arithmetic are float32 for every dtype, because an epsilon of
  1e-12 vanishes in bfloat16.

  Args:
    x: [..., D].
    scale: [D].
    bias: [D].
    epsilon: the number that is added to the variance, a Python float.

  Returns:
    Array like `x`.

  Source: Ba et al. 2016, equation 3.
  """
  return _layer_norm_forward(x, scale, bias, epsilon)[0]


def rms_norm(x, scale, epsilon):
  """Divides the last axis by its root mean square, then scales it.

  Statistics and arithmetic are float32 for every dtype.

  Args:
    x: [..., D].
    scale: [D].
    epsilon: the number that is added to the mean square, a Python float.

  Source: Zhang and Sennrich 2019, arXiv:1910.07467.
  """
  wide = x.astype(jnp.float32)
  square = jnp.mean(jnp.square(wide), -1, keepdims=True)
  y = wide * jax.lax.rsqrt(square + epsilon)
  return (y * last_axis(x, scale)).astype(x.dtype)


def last_axis(x, vector):
  """Returns a vector [D] in float32, shaped to be added to x [..., D]."""
  return vector.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))


def _layer_norm_forward(x, scale, bias, epsilon):
  wide = x.astype(jnp.float32)
  mean = jnp.mean(wide, -1, keepdims=True)
  if x.dtype == jnp.bfloat16:
    # In one pass with the mean. The error by cancellation is far below the last
    # bit of x.
    variance = jnp.mean(jnp.square(wide), -1, keepdims=True) - mean * mean
    variance = jnp.maximum(variance, 0.0)
  else:
    variance = jnp.mean(jnp.square(wide - mean), -1, keepdims=True)
  rstd = jax.lax.rsqrt(variance + epsilon)
  y = (wide - mean) * rstd * last_axis(x, scale) + last_axis(x, bias)
  return y.astype(x.dtype), (x, scale, mean, rstd)


def _layer_norm_backward(epsilon, residuals, grad):
  del epsilon
  x, scale, mean, rstd = residuals
  grad = grad.astype(jnp.float32)
  normal = (x.astype(jnp.float32) - mean) * rstd
  rows = tuple(range(x.ndim - 1))
  grad_scale = jnp.sum(grad * normal, rows).astype(scale.dtype)
  grad_bias = jnp.sum(grad, rows).astype(scale.dtype)
  grad = grad * last_axis(x, scale)
  grad_x = rstd * (
    grad
    - jnp.mean(grad, -1, keepdims=True)
    - normal * jnp.mean(grad * normal, -1, keepdims=True)
  )
  grad_x = grad_x.astype(x.dtype)
  if x.dtype != jnp.float32:
    # Otherwise each consumer computes it again, which slows matmuls down.
    grad_x = jax.lax.optimization_barrier(grad_x)
  return grad_x, grad_scale, grad_bias


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table, ids, dtype):
  """Returns rows of a table in another dtype.

  The gradients of a row that is looked up often are summed in the dtype of the
  table, because in bfloat16 a sum stops growing after a few hundred terms.

  Args:
    table: [V, D].
    ids: [...] int32.
    dtype: the dtype of the result.

  Returns:
    [..., D].
  """
  return jnp.take(table, ids, axis=0).astype(dtype)


def _look_up_forward(table, ids, dtype):
  return look_up(table, ids, dtype), (table, ids)


def _look_up_backward(dtype, residuals, grad):
  del dtype
  table, ids = residuals
  return jnp.zeros_like(table).at[ids].add(grad.astype(table.dtype)), None


look_up.defvjp(_look_up_forward, _look_up_backward)


ACTIVATIONS = {
  # The original code of October 2018 used the error function, and since
  # February 2019 it uses tanh. The two differ by up to 5e-4, which shows on
  # converted weights.
  "gelu_tanh": _from_parts(_gelu_tanh_parts),
  "gelu_erf": _from_parts(_gelu_erf_parts),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "tanh": jnp.tanh,
}


@jax.custom_vjp
def dense(x, kernel, bias):
  """Returns `x @ kernel + bias`, computed in the dtype of `x`.

  The gradients of kernel and bias have the dtype in which these are stored, and
  are not rounded to the dtype of `x` first.

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
    # Cast once for both passes, because a cast inside a matmul slows it down.
    low = jax.lax.optimization_barrier(low)
  y = jax.lax.dot_general(x, low, (((x.ndim - 1,), (0,)), ((), ())))
  y = y + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + bias.shape)
  return y, (x, low, bias)


def _dense_backward(residuals, grad):
  x, kernel, bias = residuals
  # Two dimensions each, because the CPU compiler writes a transposed copy if a
  # product contracts several dimensions.
  rows, columns = x.reshape(-1, x.shape[-1]), grad.reshape(-1, bias.size)
  flat = kernel.reshape(kernel.shape[0], -1)
  grad_x = jax.lax.dot_general(columns, flat, (((1,), (1,)), ((), ())))
  # Kernel and bias are stored in the same dtype.
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


@jax.custom_vjp
def multiply(x, kernel):
  """Returns `x @ kernel`: `dense` without a bias.

  Args:
    x: [..., D].
    kernel: [D, F].
  """
  return _multiply_forward(x, kernel)[0]


def _multiply_forward(x, kernel):
  low = kernel.astype(x.dtype)
  if low.dtype != kernel.dtype:
    low = jax.lax.optimization_barrier(low)
  y = jax.lax.dot_general(x, low, (((x.ndim - 1,), (0,)), ((), ())))
  return y, (x, low, jnp.zeros((), kernel.dtype))


def _multiply_backward(residuals, grad):
  x, kernel, like = residuals
  rows = x.reshape(-1, x.shape[-1])
  columns = grad.reshape(-1, kernel.shape[1])
  grad_x = jax.lax.dot_general(columns, kernel, (((1,), (1,)), ((), ())))
  grad_kernel = jax.lax.dot_general(
    rows, columns, (((0,), (0,)), ((), ())), preferred_element_type=like.dtype
  )
  return grad_x.reshape(x.shape), grad_kernel


multiply.defvjp(_multiply_forward, _multiply_backward)


def project(x, kernel, bias=None):
  """Returns `x @ kernel + bias` for a kernel [D, ...], perhaps without bias."""
  if bias is not None:
    return dense(x, kernel, bias)
  y = multiply(x, kernel.reshape(kernel.shape[0], -1))
  return y.reshape(*x.shape[:-1], *kernel.shape[1:])


def gather_positions(x, positions):
  """Picks positions of every row: [B, L, D], [B, P] -> [B, P, D]."""
  return jnp.take_along_axis(x, positions[:, :, None], axis=1)


class Dense(nn.Module):
  """`x @ kernel + bias`.

  Attributes:
    config: a `ModelConfig`.
    features: the size of the last axis of the result.
    heads: whether the input is [..., N, H] and the kernel [N, H, features].
    has_bias: whether there is a bias.
  """

  config: ModelConfig
  features: int
  heads: bool = False
  has_bias: bool = True

  @nn.compact
  def __call__(self, x):
    shape = x.shape[-2:] if self.heads else x.shape[-1:]
    flat = (math.prod(shape), self.features)
    matrix = kernel(self, (*shape, self.features), flat).reshape(flat)
    x = x.reshape(x.shape[: x.ndim - len(shape)] + flat[:1])
    added = bias(self, (self.features,)) if self.has_bias else None
    return project(x, matrix, added)


class LayerNorm(nn.Module):
  """`layer_norm` with its parameters.

  Attributes:
    config: a `ModelConfig`.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, x):
    cfg = self.config
    shape = x.shape[-1:]
    scale = self.param(
      "scale", nn.initializers.ones_init(), shape, storage_dtype(cfg)
    )
    shift = bias(self, shape) if cfg.norm_bias else jnp.zeros_like(scale)
    return layer_norm(x, scale, shift, cfg.layer_norm_eps)


class RmsNorm(nn.Module):
  """`rms_norm` with its parameter.

  Attributes:
    config: a `ModelConfig`.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, x):
    ones = nn.initializers.ones_init()
    scale = self.param("scale", ones, x.shape[-1:], storage_dtype(self.config))
    return rms_norm(x, scale, self.config.layer_norm_eps)


# `model.norm` -> the module that normalises.
NORMS = {"layer_norm": LayerNorm, "rms_norm": RmsNorm}


def embed(config, rows):
  """Returns the embedding module of a table [rows, E]."""
  return nn.Embed(
    rows,
    config.embedding_width,
    dtype=compute_dtype(config),
    param_dtype=storage_dtype(config),
    embedding_init=kernel_init(config),
  )
