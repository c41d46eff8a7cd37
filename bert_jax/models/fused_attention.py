"""Self-attention as one TPU kernel that keeps whole score matrices on chip.

BERT's rows are short: the scores of a head, [L, L], fit into the vector memory
of a TensorCore up to a thousand tokens, so nothing has to be cut along the
keys. The kernel reads query, key and value as the projections leave them,
[B, L, D] with heads side by side, and writes the context likewise: no
transposes, no scores and no dropout mask in main memory.

Heads narrower than the 128 lanes of a register share them. A head is singled
out by setting the lanes of its neighbours to zero on one side of each product,
which costs the matrix unit nothing: it is 128 wide in any case.

The backward kernel computes the scores again. Its residuals are query, key and
value alone.
"""

import dataclasses
import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from bert_jax.models import attention
from bert_jax.models import dropout
from bert_jax.models.attention import MASKED_SCORE

P = jax.sharding.PartitionSpec

LANES = 128
MAX_LEN = 1024  # scores of 4 MB
_VMEM_BYTES = 64 * 2**20
# Elements of an array in one step of the grid. More would not be faster, and
# the compiler unrolls all heads of a block.
_BLOCK_SIZE = 2**17
_BATCH_AXES = ("data", "fsdp")
_HEAD_AXIS = "tensor"


def check_shapes(length: int, hidden_size: int, head_dim: int) -> None:
  """Raises ValueError for sizes that the kernel does not take."""
  if length % LANES or length > MAX_LEN:
    raise ValueError(
      f"model.attention=fused takes rows of a multiple of {LANES} tokens up to "
      f"{MAX_LEN}, not {length}; use data.seq_len="
      f"{min(-(-length // LANES) * LANES, MAX_LEN)}, or model.attention=plain"
    )
  if LANES % head_dim and head_dim % LANES:
    raise ValueError(
      f"model.attention=fused takes heads of a width that divides {LANES} or "
      f"is a multiple of it, not {head_dim}; change model.num_heads, or use "
      "model.attention=plain"
    )
  if hidden_size % max(LANES, head_dim):
    raise ValueError(
      f"model.attention=fused takes a hidden size (of each device) that is a "
      f"multiple of {max(LANES, head_dim)}, not {hidden_size}; use "
      "model.attention=plain, or cut the heads over fewer devices"
    )


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What the kernels know when they are compiled.

  Attributes:
    head_dim: H.
    rate: dropout rate of the probabilities.
    shape: (B, N, L, L), of the scores over all devices.
  """

  head_dim: int
  rate: float
  shape: tuple[int, int, int, int]

  @property
  def tile(self) -> int:
    """Lanes that are read together: one head, or several narrow ones."""
    return max(LANES, self.head_dim)


def _dot(a, b, a_dim, b_dim):
  """A product of two matrices over one dimension of each, float32."""
  return jax.lax.dot_general(
    a,
    b,
    (((a_dim,), (b_dim,)), ((), ())),
    preferred_element_type=jnp.float32,
  )


def _visible_bias(bias_ref, ids_ref, length):
  """What to add to the scores of one row: [1, L] or [L, L]."""
  bias = bias_ref[0]  # [1, L]
  if ids_ref is None:
    return bias
  keys = jnp.broadcast_to(ids_ref[0], (length, length))
  return jnp.where(keys == keys.T, bias, jnp.minimum(bias, MASKED_SCORE))


def _only_head(x, i, head_dim):
  """Sets all lanes to zero but those of one head."""
  if x.shape[-1] == head_dim:
    return x
  lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
  return jnp.where(lane // head_dim == i, x, jnp.zeros((), x.dtype))


def _softmax(query, key, bias):
  """Probabilities, float32 [L, L]; the query is scaled already."""
  scores = _dot(query, key, 1, 1) + bias
  scores = jnp.exp(scores - jnp.max(scores, -1, keepdims=True))
  return scores * (1.0 / jnp.sum(scores, -1, keepdims=True))


def _factors(words_ref, sizes, head):
  """What dropout multiplies the probabilities of a head by; None at rate 0.

  Args:
    words_ref: the key's two words, and how many rows and heads lie before
      those of this device.
    sizes: what is static.
    head: int, of this grid step.
  """
  if not sizes.rate:
    return None
  row = words_ref[2] + jnp.uint32(pl.program_id(0))
  bits = dropout.random_bits_of_head(
    (words_ref[0], words_ref[1]), row, words_ref[3] + head, sizes.shape
  )
  keep = bits >= dropout.threshold(sizes.rate)
  return jnp.where(keep, 1.0 / (1.0 - sizes.rate), 0.0)


def _heads(sizes, lanes):
  """Yields (lanes to read, which head among them, number of the head)."""
  per_tile = sizes.tile // sizes.head_dim
  first = pl.program_id(1) * (lanes // sizes.head_dim)
  for tile in range(lanes // sizes.tile):
    yield (
      pl.ds(tile * sizes.tile, sizes.tile),
      [(i, jnp.uint32(first + tile * per_tile + i)) for i in range(per_tile)],
    )


def _forward_kernel(sizes, words_ref, bias_ref, ids_ref, q_ref, k_ref, v_ref,
                    out_ref):  # fmt: skip
  length, lanes = q_ref.shape[1:]
  dtype = q_ref.dtype
  bias = _visible_bias(bias_ref, ids_ref, length)
  scale = jnp.asarray(1.0 / math.sqrt(sizes.head_dim), dtype)
  for part, heads in _heads(sizes, lanes):
    query = q_ref[0, :, part] * scale
    key, value = k_ref[0, :, part], v_ref[0, :, part]
    out = jnp.zeros((length, sizes.tile), jnp.float32)
    for i, head in heads:
      probs = _softmax(_only_head(query, i, sizes.head_dim), key, bias)
      factors = _factors(words_ref, sizes, head)
      if factors is not None:
        probs = probs * factors
      out += _dot(
        probs.astype(dtype), _only_head(value, i, sizes.head_dim), 1, 0
      )
    out_ref[0, :, part] = out.astype(dtype)


def _backward_kernel(sizes, words_ref, bias_ref, ids_ref, q_ref, k_ref, v_ref,
                     grad_ref, dq_ref, dk_ref, dv_ref):  # fmt: skip
  length, lanes = q_ref.shape[1:]
  dtype = q_ref.dtype
  bias = _visible_bias(bias_ref, ids_ref, length)
  scale = jnp.asarray(1.0 / math.sqrt(sizes.head_dim), dtype)
  for part, heads in _heads(sizes, lanes):
    query = q_ref[0, :, part] * scale
    key, value = k_ref[0, :, part], v_ref[0, :, part]
    grad = grad_ref[0, :, part]
    dq, dk, dv = (
      jnp.zeros((length, sizes.tile), jnp.float32) for _ in range(3)
    )
    for i, head in heads:
      one_query = _only_head(query, i, sizes.head_dim)
      one_grad = _only_head(grad, i, sizes.head_dim)
      probs = _softmax(one_query, key, bias)
      grad_probs = _dot(one_grad, value, 1, 1)
      factors = _factors(words_ref, sizes, head)
      dropped = probs
      if factors is not None:
        dropped = probs * factors
        grad_probs = grad_probs * factors
      dv += _dot(dropped.astype(dtype), one_grad, 0, 0)
      inner = jnp.sum(probs * grad_probs, -1, keepdims=True)
      ds = (probs * (grad_probs - inner)).astype(dtype)
      dq += _dot(ds, _only_head(key, i, sizes.head_dim), 1, 0)
      dk += _dot(ds, one_query, 0, 0)
    dq_ref[0, :, part] = (dq * scale).astype(dtype)
    dk_ref[0, :, part] = dk.astype(dtype)
    dv_ref[0, :, part] = dv.astype(dtype)


def _block_lanes(sizes, length, width):
  """How many lanes, that is heads, one step of the grid takes."""
  fits = [
    lanes
    for lanes in range(sizes.tile, width + 1, sizes.tile)
    if width % lanes == 0 and length * lanes <= _BLOCK_SIZE
  ]
  return max(fits, default=sizes.tile)


def _call(kernel, name, sizes, words, bias, ids, arrays, num_out, num_products,
          interpret):  # fmt: skip
  """Runs a kernel over the rows and groups of heads of one device.

  Args:
    kernel: of one row and one group.
    name: of the kernel, in the compiled program.
    sizes: what is static.
    words: uint32 [4], see `_factors`.
    bias: float32 [B, 1, L], of the keys.
    ids: int32 [B, 1, L] sequence ids, or None.
    arrays: [B, L, D] each.
    num_out: how many arrays of that shape it returns.
    num_products: products of [L, L] and [L, H] a head, for the estimate.
    interpret: as plain operations, on any machine.
  """
  rows, length, width = arrays[0].shape
  dtype = arrays[0].dtype
  count = len(arrays) + num_out
  lanes = _block_lanes(sizes, length, width)
  block = pl.BlockSpec((1, length, lanes), lambda b, g: (b, 0, g))
  row = pl.BlockSpec((1, 1, length), lambda b, g: (b, 0, 0))
  scores = rows * (width // sizes.head_dim) * length * length
  extra = [bias] if ids is None else [bias, ids]

  def body(words_ref, bias_ref, *refs):
    if ids is None:
      refs = (None, *refs)
    kernel(sizes, words_ref, bias_ref, *refs)

  return pl.pallas_call(
    body,
    grid=(rows, width // lanes),
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      *[row] * len(extra),
      *[block] * len(arrays),
    ],
    out_specs=[block] * num_out,
    out_shape=[jax.ShapeDtypeStruct(arrays[0].shape, dtype)] * num_out,
    cost_estimate=pl.CostEstimate(
      flops=num_products * 2 * scores * sizes.head_dim,
      transcendentals=scores,
      bytes_accessed=count * rows * length * width * dtype.itemsize,
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel"),
      vmem_limit_bytes=_VMEM_BYTES,
    ),
    interpret=interpret,
    name=name,
  )(words, *extra, *arrays)


def kernel_forward(sizes, query, key, value, bias, ids, words, interpret=False):
  """The context, by the kernel; arguments as those of `attend`."""
  return _call(
    _forward_kernel, "attention_forward", sizes, words, bias, ids,
    (query, key, value), 1, 2, interpret,
  )[0]  # fmt: skip


def kernel_backward(sizes, query, key, value, bias, ids, words, grad,
                    interpret=False):  # fmt: skip
  """The gradients of query, key and value, by the kernel."""
  return tuple(
    _call(
      _backward_kernel,
      "attention_backward",
      sizes,
      words,
      bias,
      ids,
      (query, key, value, grad),
      3,
      5,
      interpret,
    )  # fmt: skip
  )


def _over_mesh(kernel, sizes, num_out):
  """Runs a kernel on every device, on its rows and its heads.

  Without a mesh set by `jax.set_mesh` there is one device.
  """
  mesh = jax.sharding.get_abstract_mesh()

  def run(query, key, value, bias, ids, words, *grad):
    if mesh.empty:
      return kernel(
        sizes, query, key, value, bias, ids, jnp.pad(words, (0, 2)), *grad
      )

    def local(query, key, value, bias, ids, words, *grad):
      row = jax.lax.axis_index(_BATCH_AXES) * query.shape[0]
      head = jax.lax.axis_index(_HEAD_AXIS) * (query.shape[2] // sizes.head_dim)
      places = jnp.stack([row, head]).astype(jnp.uint32)
      words = jnp.concatenate([words, places])
      return kernel(sizes, query, key, value, bias, ids, words, *grad)

    wide = P(_BATCH_AXES, None, _HEAD_AXIS)
    row = P(_BATCH_AXES)
    return jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(wide, wide, wide, row, None if ids is None else row, P(),
                *(wide for _ in grad)),
      out_specs=wide if num_out == 1 else (wide,) * num_out,
      check_vma=False,
    )(query, key, value, bias, ids, words, *grad)  # fmt: skip

  return run


def _plain(sizes, query, key, value, bias, ids, words):
  """The same, as operations that every machine has."""

  def split(x):  # [B, L, D] -> [B, N, L, H]
    return jnp.swapaxes(x.reshape(*x.shape[:2], -1, sizes.head_dim), 1, 2)

  bias = bias[:, None]  # [B, 1, 1, L]
  if ids is not None:
    same = ids == jnp.swapaxes(ids, 1, 2)  # [B, L, L]
    bias = jnp.where(same[:, None], bias, jnp.minimum(bias, MASKED_SCORE))
  context = attention.attend(
    split(query), split(key), split(value), bias, words, sizes.rate
  )
  return jnp.swapaxes(context, 1, 2).reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(sizes, query, key, value, bias, ids, words):
  return jax.lax.platform_dependent(
    query, key, value, bias, ids, words,
    tpu=_over_mesh(kernel_forward, sizes, 1),
    default=functools.partial(_plain, sizes),
  )  # fmt: skip


def _attend_forward(sizes, *args):
  return _attend(sizes, *args), args


def _attend_backward(sizes, args, grad):
  def plain(query, key, value, bias, ids, words, grad):
    def function(query, key, value):
      return _plain(sizes, query, key, value, bias, ids, words)

    return jax.vjp(function, query, key, value)[1](grad)

  grads = jax.lax.platform_dependent(
    *args,
    grad,
    tpu=_over_mesh(kernel_backward, sizes, 3),
    default=plain,
  )
  return *grads, jnp.zeros_like(args[3]), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def attend(query, key, value, visible, rng, rate, head_dim):
  """Returns dropout(softmax(query key / sqrt(H) + bias)) value.

  On a TPU by the kernels of this file; elsewhere by `attention.attend`, with
  the scores computed again for the gradient. The dropout mask is the same.

  Args:
    query: [B, L, D], heads side by side.
    key: [B, L, D].
    value: [B, L, D].
    visible: `attention.Visible`.
    rng: typed key of the dropout; not used, and may be None, at rate 0.
    rate: dropout rate of the probabilities, a Python float.
    head_dim: H; D is N * H.

  Returns:
    [B, L, D] in the dtype of `query`. The softmax is float32 throughout.

  Raises:
    ValueError: the kernel does not take these sizes.

  Source: Vaswani et al. 2017, equation 1; to keep the scores on chip, Dao et
  al. 2022, arXiv:2205.14135, here without tiles.
  """
  rows, length, width = query.shape
  mesh = jax.sharding.get_abstract_mesh()
  num_parts = 1 if mesh.empty else mesh.shape[_HEAD_AXIS]
  check_shapes(length, width // num_parts, head_dim)
  sizes = Sizes(head_dim, rate, (rows, width // head_dim, length, length))
  words = dropout.key_words(rng) if rate else jnp.zeros(2, jnp.uint32)
  ids = visible.sequence_ids
  return _attend(
    sizes, query, key, value, visible.key_bias[:, 0],
    None if ids is None else ids[:, None], words,
  )  # fmt: skip
