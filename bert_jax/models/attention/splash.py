"""Self-attention by the splash kernel of JAX, for rows of any length.

The kernel reads the keys block by block and keeps running sums, so that its
memory on chip does not grow with the row. It therefore takes longer rows than
`fused`, which keeps whole score matrices. It has no dropout of attention
probabilities; a config with both is refused.

segments.py decides which tokens see each other.
"""

import math
from typing import Any

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as splash
import jax.numpy as jnp

from bert_jax.models.attention import masks
from bert_jax.models.attention import plain
from bert_jax.models.attention import segments
from bert_jax.runtime import sharding

P = jax.sharding.PartitionSpec

LANES = 128
# The largest number of queries or keys in a block, which fits on chip with
# heads of width 256.
_MAX_BLOCK = 512
# Up to this many blocks in a row, the backward pass computes the scores once.
# It then writes a gradient of the queries for each block of keys, and adds
# these up. For more blocks, it computes the scores twice and writes one
# gradient.
_MAX_FUSED_BLOCKS = 2
_HEADS = P(sharding.BATCH_AXES, "tensor")
_ROWS = P(sharding.BATCH_AXES)


def check_shapes(length: int) -> None:
  """Raises ValueError for rows that the kernel does not take."""
  if length % LANES:
    raise ValueError(
      f"model.attention=splash takes rows of a multiple of {LANES} tokens, not "
      f"{length}; use rows of {-(-length // LANES) * LANES} (data.seq_len, in "
      "prediction model.max_len), or model.attention=plain"
    )


segment_ids = segments.segment_ids


def _block(length: int, radius: int | None = None) -> int:
  """Returns the longest block of whole registers that divides a row.

  Blocks for a window are not much longer than it: a block is computed whole.
  """
  longest = min(length, _MAX_BLOCK)
  if radius is not None:
    longest = min(longest, -(-2 * radius // LANES) * LANES)
  sizes = range(LANES, longest + 1, LANES)
  return max(size for size in sizes if length % size == 0)


def kernel(
  query, key, value, ids, interpret=False, radius=None, is_causal=False
):
  """Returns the context that the kernel computes on one device.

  Args:
    query: [B, N, L, H].
    key: [B, N, L, H].
    value: [B, N, L, H].
    ids: the result of `segment_ids`.
    interpret: whether to run the kernel as plain operations, on any machine.
    radius: the longest distance that is visible, in tokens; None: any. Blocks
      that cannot see each other are skipped.
    is_causal: whether a token sees nothing behind it; without a radius.

  Returns:
    [B, N, L, H] in the dtype of `query`.
  """
  num_heads, length, head_dim = query.shape[1:]
  block = _block(length, radius)
  fused = length // block <= _MAX_FUSED_BLOCKS
  shape = (length, length)
  mask: Any = splash.FullMask(shape)
  if radius is not None and radius < length:
    mask = splash.LocalMask(shape, (radius, radius), 0)
  if is_causal:
    mask = splash.CausalMask(shape)
  masks = [mask] * num_heads
  attend_row = splash.make_splash_mha(
    splash.MultiHeadMask(masks),
    block_sizes=splash.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=None if fused else block,
      block_kv_dq=None if fused else block,
      use_fused_bwd_kernel=fused,
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )

  def of_row(query, key, value, ids):
    return attend_row(query, key, value, splash.SegmentIds(ids, ids))

  query = query * jnp.asarray(1.0 / math.sqrt(head_dim), query.dtype)
  return jax.vmap(of_row)(query, key, value, ids).astype(query.dtype)


def _over_mesh(query, key, value, ids, **options):
  """Runs the kernel on every device for its rows and its heads."""

  def local(query, key, value, ids):
    return kernel(query, key, value, ids, **options)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return local(query, key, value, ids)
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(_HEADS, _HEADS, _HEADS, _ROWS),
    out_specs=_HEADS,
    check_vma=False,
  )(query, key, value, ids)


def _for_tpu() -> bool:
  """Returns whether the traced program is for a TPU, perhaps only planned."""
  return segments.is_for("tpu")


def attend(query, key, value, visible, radius=None, is_causal=False):
  """Returns softmax(query key / sqrt(H)) value within each segment.

  On a TPU the kernel computes it, elsewhere `plain.attend`.

  Args:
    query: [B, N, L, H].
    key: [B, N, L, H].
    value: [B, N, L, H].
    visible: the mask; padding sees only padding.
    radius: the longest distance that is visible, in tokens; None: any.
    is_causal: whether a token sees nothing behind it; without a radius.

  Returns:
    [B, N, L, H] in the dtype of `query`. The softmax is float32 throughout.

  Raises:
    ValueError: the kernel does not take rows of this length.

  Source: Dao et al. 2022, arXiv:2205.14135; jax.experimental.pallas.ops.tpu.
  """
  check_shapes(query.shape[2])
  ids = segment_ids(visible)
  if _for_tpu():
    return _over_mesh(
      query, key, value, ids, radius=radius, is_causal=is_causal
    )
  if radius is not None:
    window = masks.Window(masks.Visible(visible.key_bias, ids))
    return plain.attend_window(query, key, value, window, None, 0.0, radius)
  return segments.attend_plain(query, key, value, visible, is_causal)
