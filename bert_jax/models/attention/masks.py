"""Attention masks for packed sequences and padding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# This is added to the scores of masked keys. It is finite, because the softmax
# of a row without a visible key would otherwise be NaN.
MASKED_SCORE = -10000.0


def attention_bias(input_mask, sequence_ids=None):
  """Returns the bias that gives masked keys no weight.

  Only keys are masked. Queries at padded positions are computed, but not used.

  Args:
    input_mask: [B, L] int, 1 = real token, 0 = padding.
    sequence_ids: [B, L] int, the number of the packed sequence that a token
      belongs to; tokens then see only their own sequence. None: each row is one
      sequence.

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
  """A mask for attention programs that need no bias [B, N, L, L].

  Attributes:
    key_bias: float32 [B, 1, 1, L], `attention_bias` of the mask alone.
    sequence_ids: [B, L] int32; None: each row is one sequence.
  """

  key_bias: jax.Array
  sequence_ids: jax.Array | None


class Window(NamedTuple):
  """A mask by which a token sees only the near tokens of its sequence.

  Attributes:
    visible: what a token would see without the window.
  """

  visible: Visible


class Before(NamedTuple):
  """A mask by which a token sees itself and what is before it in its sequence.

  Attributes:
    visible: what a token would see in both directions.
  """

  visible: Visible


def causal_bias(visible, queries=None):
  """Returns the bias by which a token sees nothing behind it.

  Args:
    visible: `Visible`, what it would see in both directions.
    queries: [B, Q] int32, the positions of the queries; None: all.

  Returns:
    float32 [B, 1, Q, L].
  """
  keys = jnp.arange(visible.key_bias.shape[-1], dtype=jnp.int32)
  if queries is None:
    rows = visible.key_bias.shape[0]
    queries = jnp.broadcast_to(keys[None], (rows, keys.size))
  both = bias_of_queries(visible, queries)
  is_seen = keys[None, None] <= queries[:, :, None]  # [B, Q, L]
  return jnp.where(is_seen[:, None], both, MASKED_SCORE)


def window_bias(window, radius, queries=None):
  """Returns the bias that a window stands for.

  Args:
    window: `Window`.
    radius: the longest distance that is visible, in tokens.
    queries: [B, Q] int32, the positions of the queries; None: all.

  Returns:
    float32 [B, 1, Q, L].
  """
  key_bias, ids = window.visible
  keys = jnp.arange(key_bias.shape[-1], dtype=jnp.int32)
  if queries is None:
    queries = keys[None]
  near = jnp.abs(queries[:, :, None] - keys[None, None]) <= radius
  if ids is not None:
    own = ids
    if queries.shape[0] == ids.shape[0]:
      own = jnp.take_along_axis(ids, queries, axis=1)
    near &= own[:, :, None] == ids[:, None, :]
  return jnp.where(near[:, None], key_bias, MASKED_SCORE)


def bias_of_queries(bias, positions):
  """Returns the bias for some of the queries.

  Args:
    bias: the bias of all queries, from `attention_bias`, or `Visible`, or
      `Before`.
    positions: [B, Q] int32, the positions of these queries.

  Returns:
    float32 [B, 1, 1, L] or [B, 1, Q, L].
  """
  if isinstance(bias, Before):
    return causal_bias(bias.visible, positions)
  if isinstance(bias, Visible):
    key_bias, ids = bias
    if ids is None:
      return key_bias
    own = jnp.take_along_axis(ids, positions, axis=1)
    same = (own[:, :, None] == ids[:, None, :])[:, None]
    return jnp.where(same, key_bias, MASKED_SCORE)
  if bias.shape[2] == 1:
    return bias
  if bias.shape[0] != positions.shape[0]:  # the same bias for all rows
    bias = jnp.broadcast_to(bias, (positions.shape[0], *bias.shape[1:]))
  return jnp.take_along_axis(bias, positions[:, None, :, None], axis=2)


def see_sequence(input_mask, sequence_ids, takes_bias):
  """Returns a mask by which a token sees its whole sequence.

  Args:
    input_mask: [B, L] int, 1 = real token, 0 = padding.
    sequence_ids: [B, L] int; None: each row is one sequence.
    takes_bias: whether the attention program needs a bias.

  Returns:
    The `attention_bias`, or the same mask as `Visible`.
  """
  if takes_bias:
    return attention_bias(input_mask, sequence_ids)
  return Visible(attention_bias(input_mask), sequence_ids)


def see_window(input_mask, sequence_ids, takes_bias):
  """Returns a `Window` on the sequence; see `see_sequence`."""
  del takes_bias
  return Window(Visible(attention_bias(input_mask), sequence_ids))


def see_before(input_mask, sequence_ids, takes_bias):
  """Returns a mask that hides what is behind a token; see `see_sequence`."""
  visible = Visible(attention_bias(input_mask), sequence_ids)
  return causal_bias(visible) if takes_bias else Before(visible)


# Name of a pattern -> a function like `see_sequence`. Of the layers of
# `model.attention_pattern=local`, some have the pattern "full".
PATTERNS = {"full": see_sequence, "local": see_window, "causal": see_before}
