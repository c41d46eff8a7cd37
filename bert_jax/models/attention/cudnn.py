"""Self-attention by cuDNN on NVIDIA GPUs, through jax's dot-product attention.

cuDNN's flash attention keeps no scores in memory. jax gives access to a part of
it, so this program lacks what the others have:

- It has no dropout of attention probabilities: `jax.nn.dot_product_attention`
  has no such argument, and cuDNN's own dropout would need a seed that is fixed
  when the program is compiled, so that every step dropped the same ones.
- It takes bfloat16 and float16 only, and heads of a multiple of 8 that are at
  most 128 wide, or 256 on Hopper and later.
- It takes a mask, or the length of each row, but no segment ids. Rows of one
  sequence give their length, so that padding costs nothing. The mask of packed
  rows is an array [B, 1, L, L], which cuDNN adds to the scores.
- It has no window to both sides. Local layers cut the row into blocks, as
  `plain.attend_window` does, and each block is a row with a mask. With a mask,
  it takes an even number of tokens only.

On any other machine, `plain` computes the same. None of this has run on a GPU.

Source: jax 0.10.2, jax/_src/nn/functions.py (`dot_product_attention`) and
jax/_src/cudnn/fused_attention_stablehlo.py (`check_layout`,
`check_is_flash_attention`).
"""

import functools

import jax
import jax.numpy as jnp

from bert_jax.models.attention import masks
from bert_jax.models.attention import plain
from bert_jax.models.attention import segments
from bert_jax.models.config import ModelConfig
from bert_jax.runtime import sharding

P = jax.sharding.PartitionSpec

DTYPES = ("bfloat16", "float16")
_HEADS = P(sharding.BATCH_AXES, "tensor")
_ROWS = P(sharding.BATCH_AXES)
_HEAD_UNIT = 8
_ROW_UNIT = 2
_MAX_HEAD = 256
_LAST_HEAD_BEFORE_HOPPER = 128


def check_config(config: ModelConfig, length: int) -> None:
  """Raises ValueError for a model or rows that cuDNN does not take.

  Args:
    config: the config of the model.
    length: L.
  """
  if config.dtype not in DTYPES:
    raise ValueError(
      f"model.attention=cudnn computes in {' or '.join(DTYPES)}, but "
      f"model.dtype={config.dtype}; use --config.model.dtype=bfloat16, or "
      "model.attention=plain"
    )
  if config.head_dim % _HEAD_UNIT or config.head_dim > _MAX_HEAD:
    raise ValueError(
      f"model.attention=cudnn takes heads of a multiple of {_HEAD_UNIT} up to "
      f"{_MAX_HEAD} (up to {_LAST_HEAD_BEFORE_HOPPER} before Hopper), not "
      f"{config.head_dim}; change model.num_heads, or use "
      "model.attention=plain"
    )
  if length % _ROW_UNIT:
    raise ValueError(
      "model.attention=cudnn takes rows of an even number of tokens, not "
      f"{length}; use rows of {length + 1} (data.seq_len, in prediction "
      "model.max_len), or model.attention=plain"
    )


def _attend_flash(query, key, value, implementation, **options):
  """Calls jax's attention with heads in the order of this project.

  Args:
    query: [B, N, L, H].
    key: [B, N, K, H].
    value: [B, N, K, H].
    implementation: "cudnn", or "xla", which computes the same on any machine.
    **options: further arguments.

  Returns:
    [B, N, L, H].

  Raises:
    ValueError: jax refuses the device or its cuDNN.
  """
  query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  try:
    context = jax.nn.dot_product_attention(
      query, key, value, implementation=implementation, **options
    )
  except (NotImplementedError, RuntimeError) as error:
    raise ValueError(
      f"model.attention=cudnn cannot be used on this machine: {error}; use "
      "model.attention=plain"
    ) from error
  return jnp.swapaxes(context, 1, 2)


def flash(query, key, value, visible, implementation="cudnn"):
  """Returns the context of all heads; see `attend`."""
  if visible.sequence_ids is None:
    seen = visible.key_bias[:, 0, 0] == 0.0
    # A row of padding alone sees its first token, so that nothing is NaN.
    lengths = jnp.maximum(jnp.sum(seen, -1, dtype=jnp.int32), 1)
    return _attend_flash(
      query, key, value, implementation,
      query_seq_lengths=lengths, key_value_seq_lengths=lengths,
    )  # fmt: skip
  ids = segments.segment_ids(visible)
  mask = ids[:, None, :, None] == ids[:, None, None, :]
  return _attend_flash(query, key, value, implementation, mask=mask)


def flash_window(query, key, value, visible, radius, implementation="cudnn"):
  """Returns the context of all heads; see `attend_window`."""

  def attend_block(query, key, value, bias, rng, rate):
    del rng, rate
    shape = (*bias.shape[:2], query.shape[2], key.shape[2])
    bias = jnp.broadcast_to(bias, shape).astype(query.dtype)
    return _attend_flash(query, key, value, implementation, bias=bias)

  window = masks.Window(visible)
  return plain.attend_window(
    query, key, value, window, None, 0.0, radius, attend_block, _ROW_UNIT
  )


def _for_gpu() -> bool:
  """Returns whether the traced program is for an NVIDIA GPU."""
  return segments.is_for("gpu", "cuda")


def _over_mesh(kernel, query, key, value, visible):
  """Runs a kernel on every device for its rows and its heads."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return kernel(query, key, value, visible)
  rows = jax.tree.map(lambda _: _ROWS, visible)
  return jax.shard_map(
    kernel,
    mesh=mesh,
    in_specs=(_HEADS, _HEADS, _HEADS, rows),
    out_specs=_HEADS,
    check_vma=False,
  )(query, key, value, visible)


def attend(query, key, value, visible):
  """Returns softmax(query key / sqrt(H)) value within each sequence.

  The results of queries at padded positions are zero or those of padding.

  Args:
    query: [B, N, L, H].
    key: [B, N, L, H].
    value: [B, N, L, H].
    visible: the mask. Without sequence ids, the tokens of a row stand before
      its padding.

  Returns:
    [B, N, L, H] in the dtype of `query`. The softmax is float32 throughout.

  Source: Dao et al. 2022, arXiv:2205.14135.
  """
  if not _for_gpu():
    return segments.attend_plain(query, key, value, visible)
  return _over_mesh(flash, query, key, value, visible)


def attend_window(query, key, value, window, radius):
  """Returns `attend` for tokens that see only near tokens.

  Args:
    query: [B, N, L, H].
    key: [B, N, L, H].
    value: [B, N, L, H].
    window: `masks.Window`.
    radius: the longest distance that is visible, in tokens.
  """
  if not _for_gpu():
    return plain.attend_window(query, key, value, window, None, 0.0, radius)
  kernel = functools.partial(flash_window, radius=radius)
  return _over_mesh(kernel, query, key, value, window.visible)
