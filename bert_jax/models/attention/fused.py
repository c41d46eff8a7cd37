"""Self-attention as one TPU kernel that keeps whole score matrices on chip.

BERT's rows are short: up to a thousand tokens, the scores of a head, [L, L],
fit into the vector memory of a TensorCore, so the keys need no blocks. The
kernel reads query, key and value in the layout of the projections: three arrays
[B, L, D] with heads side by side, or one array [B, L, 3 D]. It writes the
context, and the gradients, in the same layout. Main memory holds no transposed
arrays, no scores and no dropout mask.

Heads that are narrower than the 128 lanes of a register share a register. If a
product sums over lanes, the lanes of the other heads are set to zero in one
operand; if it yields them, they are left out of the result. This takes the
matrix unit no longer, because it is 128 wide anyway.

The backward kernel computes the scores again. Its only residuals are query,
key, value and context.
"""

import dataclasses
import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from bert_jax.models import dropout
from bert_jax.models.attention import plain
from bert_jax.models.attention.masks import MASKED_SCORE

P = jax.sharding.PartitionSpec

LANES = 128
MAX_LEN = 1024  # scores of 4 MB
_VMEM_BYTES = 64 * 2**20
# The largest number of elements of an array in one step of the grid. Larger
# blocks are not faster, and the compiler unrolls all heads of a block.
_BLOCK_SIZE = 2**17
_BATCH_AXES = ("data", "fsdp")
_HEAD_AXIS = "tensor"


def check_shapes(length: int, hidden_size: int, head_dim: int) -> None:
  """Raises ValueError for sizes that the kernel does not take.

  Args:
    length: L.
    hidden_size: D on each device.
    head_dim: H.
  """
  if length % LANES or length > MAX_LEN:
    raise ValueError(
      f"model.attention=fused takes rows of a multiple of {LANES} tokens up to "
      f"{MAX_LEN}, not {length}; use rows of "
      f"{min(-(-length // LANES) * LANES, MAX_LEN)} (data.seq_len, in "
      "prediction model.max_len), or model.attention=plain"
    )
  if LANES % head_dim and head_dim % LANES:
    raise ValueError(
      f"model.attention=fused takes heads of a width that divides {LANES} or "
      f"is a multiple of it, not {head_dim}; change model.num_heads, or use "
      "model.attention=plain"
    )
  if hidden_size % max(LANES, head_dim):
    raise ValueError(
      "model.attention=fused takes a hidden size on each device that is a "
      f"multiple of {max(LANES, head_dim)}, not {hidden_size}; use "
      "model.attention=plain, or split the heads over fewer devices"
    )


@dataclasses.dataclass(frozen=True)
class Sizes:
  """The constants of the compiled kernels.

  Attributes:
    head_dim: H.
    rate: the dropout rate of the probabilities.
    shape: (B, N, L, L), the shape of the scores over all devices.
  """

  head_dim: int
  rate: float
  shape: tuple[int, int, int, int]

  @property
  def tile(self) -> int:
    """The number of lanes that are read together: one head, or several."""
    return max(LANES, self.head_dim)


def _dot(a, b, a_dim, b_dim):
  """Returns the float32 product of two matrices over one dimension of each."""
  return jax.lax.dot_general(
    a,
    b,
    (((a_dim,), (b_dim,)), ((), ())),
    preferred_element_type=jnp.float32,
  )


def _visible_bias(bias_ref, ids_ref, length):
  """Returns the bias of the scores of one row: [1, L] or [L, L]."""
  bias = bias_ref[0]  # [1, L]
  if ids_ref is None:
    return bias
  keys = jnp.broadcast_to(ids_ref[0], (length, length))
  return jnp.where(keys == keys.T, bias, jnp.minimum(bias, MASKED_SCORE))


def _head_masks(sizes, length):
  """Returns a bool array [L, tile] for each head of a tile: its own lanes.

  It is [None] if a tile is one head.
  """
  count = sizes.tile // sizes.head_dim
  if count == 1:
    return [None]
  lane = jax.lax.broadcasted_iota(jnp.int32, (length, sizes.tile), 1)
  edges = [lane >= i * sizes.head_dim for i in range(1, count)]
  last = [~edge for edge in edges] + [None]
  return [
    a if b is None else b if a is None else a & b
    for a, b in zip([None, *edges], last, strict=True)
  ]


def _only_head(x, mask):
  """Sets all lanes to zero except those of one head."""
  return x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype))


def _own_lanes(parts, masks):
  """Joins arrays [L, tile], of which each gives the lanes of its head."""
  whole, *others = parts
  for part, mask in zip(others, masks[1:], strict=True):
    whole = jnp.where(mask, part, whole)
  return whole


def _exponentials(query, key, bias):
  """Returns exp(scores - maximum), float32 [L, L], and 1 / its sums [L, 1].

  The query is scaled already. The product of both is the probabilities, but it
  is often cheaper to multiply by the second later, when the result is [L, H].
  """
  scores = _dot(query, key, 1, 1) + bias
  scores = jnp.exp(scores - jnp.max(scores, -1, keepdims=True))
  return scores, 1.0 / jnp.sum(scores, -1, keepdims=True)


def _dropper(words_ref, sizes, head):
  """Returns a function that sets dropped scores to zero, without scaling.

  Args:
    words_ref: the two words of the key, and the numbers of rows and of heads
      that precede those of this device.
    sizes: the constants of the kernel.
    head: uint32, the head in this grid step.
  """
  if not sizes.rate:
    return lambda x: x
  row = words_ref[2] + jnp.uint32(pl.program_id(0))
  bits = dropout.random_bits_of_head(
    (words_ref[0], words_ref[1]), row, words_ref[3] + head, sizes.shape
  )
  keep = bits >= dropout.threshold(sizes.rate)
  return lambda x: jnp.where(keep, x, 0.0)


def _tiles(sizes, lanes):
  """Yields (lanes to read, numbers of their heads) for a grid step."""
  per_tile = sizes.tile // sizes.head_dim
  first = pl.program_id(1) * (lanes // sizes.head_dim)
  for tile in range(lanes // sizes.tile):
    yield (
      pl.ds(tile * sizes.tile, sizes.tile),
      [jnp.uint32(first + tile * per_tile + i) for i in range(per_tile)],
    )


def _forward_kernel(sizes, words_ref, bias_ref, ids_ref, q_ref, k_ref, v_ref,
                    out_ref):  # fmt: skip
  length, lanes = q_ref.shape[1:]
  dtype = q_ref.dtype
  bias = _visible_bias(bias_ref, ids_ref, length)
  masks = _head_masks(sizes, length)
  scale = jnp.asarray(1.0 / math.sqrt(sizes.head_dim), dtype)
  for part, heads in _tiles(sizes, lanes):
    query = q_ref[0, :, part] * scale
    key, value = k_ref[0, :, part], v_ref[0, :, part]
    outs = []
    for head, mask in zip(heads, masks, strict=True):
      exps, share = _exponentials(_only_head(query, mask), key, bias)
      dropped = _dropper(words_ref, sizes, head)(exps).astype(dtype)
      outs.append(_dot(dropped, value, 1, 0) * (share / (1.0 - sizes.rate)))
    out_ref[0, :, part] = _own_lanes(outs, masks).astype(dtype)


def _backward_kernel(sizes, words_ref, bias_ref, ids_ref, q_ref, k_ref, v_ref,
                     out_ref, grad_ref, *result_refs):  # fmt: skip
  # With p the probabilities, m the mask, 0 or 1, and s = 1 / (1 - rate):
  # dv = s (m p)' grad, and the scores' gradient is s p (m grad v' - inner / s),
  # where inner = sum_k s m p (grad v') = grad . out. The factor s is applied to
  # the results, which are smaller.
  length, lanes = q_ref.shape[1:]
  dtype = q_ref.dtype
  bias = _visible_bias(bias_ref, ids_ref, length)
  masks = _head_masks(sizes, length)
  scale = 1.0 / math.sqrt(sizes.head_dim)
  factor = 1.0 / (1.0 - sizes.rate)
  for part, heads in _tiles(sizes, lanes):
    query = q_ref[0, :, part] * jnp.asarray(scale, dtype)
    key, value = k_ref[0, :, part], v_ref[0, :, part]
    grad = grad_ref[0, :, part]
    inners = grad.astype(jnp.float32) * out_ref[0, :, part].astype(jnp.float32)
    inners *= 1.0 / factor
    # Sums over heads, each of which leaves the lanes of the others zero. To
    # select lanes from the results of all heads would need more registers.
    sums: list[jax.Array] = []
    for head, mask in zip(heads, masks, strict=True):
      one_query, one_grad = _only_head(query, mask), _only_head(grad, mask)
      exps, share = _exponentials(one_query, key, bias)
      probs = exps * share
      drop = _dropper(words_ref, sizes, head)
      dv = _dot(drop(probs).astype(dtype), one_grad, 0, 0)
      inner = jnp.sum(_only_head(inners, mask), -1, keepdims=True)
      grad_probs = drop(_dot(one_grad, value, 1, 1))
      ds = (probs * (grad_probs - inner)).astype(dtype)
      dq = _dot(ds, _only_head(key, mask), 1, 0)
      dk = _dot(ds, one_query, 0, 0)
      found = [dq, dk, dv]
      sums = (
        [a + b for a, b in zip(sums, found, strict=True)] if sums else found
      )
    dq, dk, dv = sums
    results = (dq * (scale * factor), dk * factor, dv * factor)
    for i, result in enumerate(results):
      if len(result_refs) == 6:  # three gradients and three sums
        result_ref, sum_ref = result_refs[i], result_refs[3 + i]
        here = part
      else:  # one of each, for all heads
        result_ref, sum_ref = result_refs
        column = i * (sum_ref.shape[2] // 3) + pl.program_id(1) * lanes
        column = pl.multiple_of(column + part.start, LANES)
        here = pl.ds(column, sizes.tile)
      result_ref[0, :, here] = result.astype(dtype)
      sum_ref[0, :, here] = jnp.sum(result, 0, keepdims=True)


def _block_lanes(sizes, length, width):
  """Returns the number of lanes, and so of heads, in a step of the grid."""
  fits = [
    lanes
    for lanes in range(sizes.tile, width + 1, sizes.tile)
    if width % lanes == 0 and length * lanes <= _BLOCK_SIZE
  ]
  return max(fits, default=sizes.tile)


def _call(kernel, name, sizes, words, bias, ids, qkv, arrays, outs,
          num_products, interpret):  # fmt: skip
  """Runs a kernel over the rows and groups of heads of one device.

  Args:
    kernel: the kernel for one row and one group.
    name: the name of the kernel in the compiled program.
    sizes: the constants of the kernel.
    words: uint32 [4], see `_dropper`.
    bias: float32 [B, 1, L], the bias of the keys.
    ids: int32 [B, 1, L] sequence ids, or None.
    qkv: three arrays [B, L, D], or one [B, L, 3 D].
    arrays: arrays [B, L, D] that the kernel takes after these.
    outs: the shapes of the results. Each group of heads writes its lanes of
      [B, ..., D]; the groups of a row write those of [B, ..., 3 D] one after
      the other.
    num_products: the number of products of [L, L] and [L, H] for each head, for
      the cost estimate.
    interpret: whether to run the kernel as plain operations, on any machine.
  """
  rows, length, width = qkv[0].shape
  width = width * len(qkv) // 3
  lanes = _block_lanes(sizes, length, width)
  groups = width // lanes

  def part(shape, i=0):
    return pl.BlockSpec(
      (1, shape[1], lanes), lambda b, g: (b, 0, i * groups + g)
    )

  def whole(shape):
    return pl.BlockSpec((1, *shape[1:]), lambda b, g: (b, 0, 0))

  scores = rows * (width // sizes.head_dim) * length * length
  extra = [bias] if ids is None else [bias, ids]
  in_order = any(out.shape[2] != width for out in outs)

  def body(words_ref, bias_ref, *refs):
    if ids is None:
      refs = (None, *refs)
    kernel(sizes, words_ref, bias_ref, *refs)

  return pl.pallas_call(
    body,
    grid=(rows, groups),
    in_specs=[
      pl.BlockSpec(memory_space=pltpu.SMEM),
      *[whole(x.shape) for x in extra],
      *[part(qkv[0].shape, i if len(qkv) == 1 else 0) for i in range(3)],
      *[part(x.shape) for x in arrays],
    ],
    out_specs=[(whole if in_order else part)(x.shape) for x in outs],
    out_shape=outs,
    cost_estimate=pl.CostEstimate(
      flops=num_products * 2 * scores * sizes.head_dim,
      transcendentals=scores,
      bytes_accessed=sum(
        x.size * x.dtype.itemsize for x in (*qkv, *arrays, *outs)
      ),
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary" if in_order else "parallel"),
      vmem_limit_bytes=_VMEM_BYTES,
    ),
    interpret=interpret,
    name=name,
  )(words, *extra, *(qkv if len(qkv) == 3 else 3 * qkv), *arrays)


def kernel_forward(sizes, qkv, bias, ids, words, interpret=False):
  """Returns the context [B, L, D] that the kernel computes; see `_call`."""
  rows, length, width = qkv[0].shape
  width = width * len(qkv) // 3
  out = jax.ShapeDtypeStruct((rows, length, width), qkv[0].dtype)
  return _call(
    _forward_kernel, "attention_forward", sizes, words, bias, ids,
    qkv, (), [out], 2, interpret,
  )[0]  # fmt: skip


def kernel_backward(sizes, qkv, bias, ids, words, out, grad, interpret=False):
  """Returns the gradients of `qkv`, and their float32 sums over each row.

  Returns:
    Two tuples as long as `qkv`: arrays of the same shapes, and arrays [B, 1, D]
    or [B, 1, 3 D].
  """
  outs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in qkv]
  outs += [
    jax.ShapeDtypeStruct((x.shape[0], 1, x.shape[2]), jnp.float32) for x in qkv
  ]
  results = _call(
    _backward_kernel, "attention_backward", sizes, words, bias, ids,
    qkv, (out, grad), outs, 5, interpret,
  )  # fmt: skip
  return tuple(results[: len(qkv)]), tuple(results[len(qkv) :])


def _over_mesh(kernel, sizes):
  """Runs a kernel on every device for its rows and its heads.

  Without a mesh set by `jax.set_mesh`, it runs on one device.

  Args:
    kernel: `kernel_forward` or `kernel_backward`.
    sizes: the constants of the kernel.

  Returns:
    A function of (qkv, bias, ids, words, *arrays). `qkv`, and both results of
    the backward kernel, have the form of `qkv` in `attend`.
  """
  mesh = jax.sharding.get_abstract_mesh()

  def run(qkv, bias, ids, words, *arrays):
    if mesh.empty:
      return kernel(sizes, qkv, bias, ids, jnp.pad(words, (0, 2)), *arrays)

    def local(qkv, bias, ids, words, *arrays):
      heads = sum(x.shape[2] for x in qkv) // 3 // sizes.head_dim
      row = jax.lax.axis_index(_BATCH_AXES) * bias.shape[0]
      head = jax.lax.axis_index(_HEAD_AXIS) * heads
      places = jnp.stack([row, head]).astype(jnp.uint32)
      words = jnp.concatenate([words, places])
      return kernel(sizes, qkv, bias, ids, words, *arrays)

    wide = P(_BATCH_AXES, None, _HEAD_AXIS)
    row = P(_BATCH_AXES)
    return jax.shard_map(
      local,
      mesh=mesh,
      in_specs=((wide,) * len(qkv), row, None if ids is None else row, P(),
                *(wide for _ in arrays)),
      out_specs=((wide,) * len(qkv),) * 2 if arrays else wide,
      check_vma=False,
    )(qkv, bias, ids, words, *arrays)  # fmt: skip

  return run


def _plain(sizes, qkv, bias, ids, words):
  """Returns the same context by plain operations."""
  query, key, value = jnp.split(qkv[0], 3, axis=-1) if len(qkv) == 1 else qkv

  def split(x):  # [B, L, D] -> [B, N, L, H]
    return jnp.swapaxes(x.reshape(*x.shape[:2], -1, sizes.head_dim), 1, 2)

  bias = bias[:, None]  # [B, 1, 1, L]
  if ids is not None:
    same = ids == jnp.swapaxes(ids, 1, 2)  # [B, L, L]
    bias = jnp.where(same[:, None], bias, jnp.minimum(bias, MASKED_SCORE))
  context = plain.attend(
    split(query), split(key), split(value), bias, words, sizes.rate
  )
  return jnp.swapaxes(context, 1, 2).reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(sizes, qkv, added, bias, ids, words):
  del added
  return jax.lax.platform_dependent(
    qkv, bias, ids, words,
    tpu=_over_mesh(kernel_forward, sizes),
    default=functools.partial(_plain, sizes),
  )  # fmt: skip


def _attend_forward(sizes, qkv, added, *args):
  out = _attend(sizes, qkv, added, *args)
  return out, (qkv, *args, out, added)


def _attend_backward(sizes, residuals, grad):
  def by_plain(qkv, bias, ids, words, out, grad):
    del out
    vjp = jax.vjp(lambda x: _plain(sizes, x, bias, ids, words), qkv)[1]
    (grads,) = vjp(grad)
    sums = (jnp.sum(x, 1, dtype=jnp.float32, keepdims=True) for x in grads)
    return grads, tuple(sums)

  *residuals, added = residuals
  grads, sums = jax.lax.platform_dependent(
    *residuals,
    grad,
    tpu=_over_mesh(kernel_backward, sizes),
    default=by_plain,
  )
  sums = tuple(
    jnp.sum(x, (0, 1)).astype(b.dtype) for x, b in zip(sums, added, strict=True)
  )
  return grads, sums, jnp.zeros_like(residuals[1]), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def attend(qkv, biases, visible, rng, rate, head_dim):
  """Returns dropout(softmax(query key / sqrt(H) + bias)) value.

  On a TPU the kernels of this file compute it. Elsewhere `plain.attend` does,
  and computes the scores again for the gradient. The dropout mask is the same.

  Args:
    qkv: query, key and value with heads side by side: a tuple of three arrays
      [B, L, D], or of one array [B, L, 3 D] if no mesh splits the heads.
    biases: as many vectors [D] or [3 D], which were added to `qkv` under
      `stop_gradient`. The kernel sums the gradients of `qkv` for them while
      these are on chip; a separate pass would have to read them again.
    visible: `masks.Visible`.
    rng: the typed key of the dropout; may be None at rate 0.
    rate: the dropout rate of the probabilities, a Python float.
    head_dim: H; D is N * H.

  Returns:
    [B, L, D] in the dtype of `qkv`. The softmax is float32 throughout.

  Raises:
    ValueError: the kernel does not take these sizes on this mesh.

  Source: Vaswani et al. 2017, equation 1; scores on chip as in Dao et al. 2022,
  arXiv:2205.14135, but without tiles.
  """
  rows, length, width = qkv[0].shape
  width = width * len(qkv) // 3
  mesh = jax.sharding.get_abstract_mesh()
  num_parts = 1 if mesh.empty else mesh.shape[_HEAD_AXIS]
  if len(qkv) == 1 and num_parts > 1:
    raise ValueError(
      "query, key and value in one array need all heads on one device, but "
      f"mesh.tensor={num_parts} splits them; use model.attention=fused"
    )
  check_shapes(length, width // num_parts, head_dim)
  sizes = Sizes(head_dim, rate, (rows, width // head_dim, length, length))
  words = dropout.key_words(rng) if rate else jnp.zeros(2, jnp.uint32)
  ids = visible.sequence_ids
  return _attend(
    sizes, qkv, biases, visible.key_bias[:, 0],
    None if ids is None else ids[:, None], words,
  )  # fmt: skip
