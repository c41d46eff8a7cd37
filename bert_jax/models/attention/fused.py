"""Self-attention as one TPU kernel that keeps whole score matrices on chip.

BERT's rows are short: the scores of a head, [L, L], fit into the vector memory
of a TensorCore up to a thousand tokens, so nothing has to be cut along the
keys. The kernel reads query, key and value as the projections leave them,
[B, L, D] each with heads side by side, or [B, L, 3 D] as one projection leaves
all three, writes the context likewise, and the gradients like what it read: no
transposes, no scores and no dropout mask in main memory.

Heads narrower than the 128 lanes of a register share them. Where a product sums
over lanes, those of the neighbours are set to zero on one side; where it yields
them, they are left out of the result. That costs the matrix unit nothing: it is
128 wide in any case.

The backward kernel computes the scores again. Its residuals are query, key,
value and context alone.
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


def _head_masks(sizes, length):
  """Of each head of a tile, which of the lanes [L, tile] are its own.

  Returns:
    A list of bool arrays; [None] where a tile is one head.
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
  """Sets all lanes to zero but those of one head."""
  return x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype))


def _own_lanes(parts, masks):
  """Puts arrays [L, tile] together: of each, the lanes of its head."""
  whole, *others = parts
  for part, mask in zip(others, masks[1:], strict=True):
    whole = jnp.where(mask, part, whole)
  return whole


def _exponentials(query, key, bias):
  """exp(scores - their maximum), float32 [L, L], and 1 / their sums [L, 1].

  The query is scaled already. What the product of both is used for can often
  be divided by the sums later, when it is [L, H].
  """
  scores = _dot(query, key, 1, 1) + bias
  scores = jnp.exp(scores - jnp.max(scores, -1, keepdims=True))
  return scores, 1.0 / jnp.sum(scores, -1, keepdims=True)


def _dropper(words_ref, sizes, head):
  """Returns what sets dropped scores of a head to zero; it does not scale.

  Args:
    words_ref: the key's two words, and how many rows and heads lie before
      those of this device.
    sizes: what is static.
    head: uint32, of this grid step.
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
  """Yields (lanes to read, numbers of the heads in there) of a grid step."""
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
    # pick lanes from what all heads yield is more work for the registers here.
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
  """How many lanes, that is heads, one step of the grid takes."""
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
    kernel: of one row and one group.
    name: of the kernel, in the compiled program.
    sizes: what is static.
    words: uint32 [4], see `_dropper`.
    bias: float32 [B, 1, L], of the keys.
    ids: int32 [B, 1, L] sequence ids, or None.
    qkv: three [B, L, D], or one [B, L, 3 D].
    arrays: [B, L, D] each, that the kernel takes after these.
    outs: what it returns. Of [B, ..., D] each group of heads writes its lanes;
      of [B, ..., 3 D] the groups of a row write theirs one after the other.
    num_products: products of [L, L] and [L, H] a head, for the estimate.
    interpret: as plain operations, on any machine.
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
  """The context [B, L, D], by the kernel; see `_call`."""
  rows, length, width = qkv[0].shape
  width = width * len(qkv) // 3
  out = jax.ShapeDtypeStruct((rows, length, width), qkv[0].dtype)
  return _call(
    _forward_kernel, "attention_forward", sizes, words, bias, ids,
    qkv, (), [out], 2, interpret,
  )[0]  # fmt: skip


def kernel_backward(sizes, qkv, bias, ids, words, out, grad, interpret=False):
  """The gradients of `qkv`, and their sums over each row in float32.

  Returns:
    Two tuples as long as `qkv`, of arrays like those and of [B, 1, D] or
    [B, 1, 3 D].
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
  """Runs a kernel on every device, on its rows and its heads.

  Without a mesh set by `jax.set_mesh` there is one device.

  Args:
    kernel: `kernel_forward` or `kernel_backward`.
    sizes: what is static.

  Returns:
    A function of (qkv, bias, ids, words, *arrays), where `qkv` is that of
    `attend`, and so are both results of the backward kernel.
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
  """The same, as operations that every machine has."""
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

  On a TPU by the kernels of this file; elsewhere by `plain.attend`, with
  the scores computed again for the gradient. The dropout mask is the same.

  Args:
    qkv: query, key and value, heads side by side: a tuple of three [B, L, D],
      or, where no mesh cuts the heads, of one [B, L, 3 D].
    biases: as many vectors [D] or [3 D], which have been added to `qkv` under
      `stop_gradient`: the kernel adds up their gradients while it has them on
      chip, where another pass would read all of those of `qkv` again.
    visible: `masks.Visible`.
    rng: typed key of the dropout; not used, and may be None, at rate 0.
    rate: dropout rate of the probabilities, a Python float.
    head_dim: H; D is N * H.

  Returns:
    [B, L, D] in the dtype of `qkv`. The softmax is float32 throughout.

  Raises:
    ValueError: the kernel does not take these sizes, or not on this mesh.

  Source: Vaswani et al. 2017, equation 1; to keep the scores on chip, Dao et
  al. 2022, arXiv:2205.14135, here without tiles.
  """
  rows, length, width = qkv[0].shape
  width = width * len(qkv) // 3
  mesh = jax.sharding.get_abstract_mesh()
  num_parts = 1 if mesh.empty else mesh.shape[_HEAD_AXIS]
  if len(qkv) == 1 and num_parts > 1:
    raise ValueError(
      f"query, key and value in one array need whole heads, but mesh.tensor="
      f"{num_parts} cuts them; use model.attention=fused"
    )
  check_shapes(length, width // num_parts, head_dim)
  sizes = Sizes(head_dim, rate, (rows, width // head_dim, length, length))
  words = dropout.key_words(rng) if rate else jnp.zeros(2, jnp.uint32)
  ids = visible.sequence_ids
  return _attend(
    sizes, qkv, biases, visible.key_bias[:, 0],
    None if ids is None else ids[:, None], words,
  )  # fmt: skip
