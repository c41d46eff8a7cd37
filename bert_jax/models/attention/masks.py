"""Which key a query may see: packed sequences, and padding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Added to the scores of keys that may not be seen. Finite, so that a row
# without any visible key yields a softmax and not NaN.
MASKED_SCORE = -10000.0


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


def see_sequence(input_mask, sequence_ids, takes_bias):
  """Returns a mask by which a token sees its whole sequence.

  Args:
    input_mask: [B, L] int, 1 = real token, 0 = padding.
    sequence_ids: [B, L] int; None: a row is one sequence.
    takes_bias: the attention program wants the mask written out.

  Returns:
    `attention_bias`, or the same as `Visible`.
  """
  if takes_bias:
    return attention_bias(input_mask, sequence_ids)
  return Visible(attention_bias(input_mask), sequence_ids)


# `model.attention_pattern` -> a function like `see_sequence`.
PATTERNS = {"full": see_sequence}
