"""What attention programs without a bias share: segments, and where they run.

Every token has a segment id and sees only its own segment. Each packed sequence
is a segment, and so is the padding of a row, because a row of padding would
otherwise divide by zero. The outputs for padding are not used.
"""

import jax
import jax.numpy as jnp

from bert_jax.models.attention import masks
from bert_jax.models.attention import plain


def segment_ids(visible: masks.Visible) -> jax.Array:
  """Returns the number of each token's segment: int32 [B, L], 0 = padding."""
  seen = visible.key_bias[:, 0, 0] == 0.0
  if visible.sequence_ids is None:
    return seen.astype(jnp.int32)
  return jnp.where(seen, visible.sequence_ids, 0)


def is_for(*platforms: str) -> bool:
  """Returns whether the traced program is for a platform, perhaps planned.

  Args:
    *platforms: names that jax gives to the platform, such as "tpu".
  """
  mesh = jax.sharding.get_abstract_mesh()
  device = None if mesh.empty else mesh.abstract_device
  if device is None:
    return jax.default_backend() in platforms
  return device.platform in platforms


def attend_plain(query, key, value, visible, is_causal=False):
  """Returns attention within segments by plain operations.

  Args:
    query: [B, N, L, H].
    key: [B, N, L, H].
    value: [B, N, L, H].
    visible: the mask; padding sees only padding.
    is_causal: whether a token sees only those before it, and itself.
  """
  ids = segment_ids(visible)
  same = ids[:, None, :, None] == ids[:, None, None, :]
  if is_causal:
    same &= jnp.tril(jnp.ones(same.shape[-2:], bool))[None, None]
  bias = jnp.where(same, 0.0, masks.MASKED_SCORE)
  return plain.attend(query, key, value, bias, None, 0.0)
