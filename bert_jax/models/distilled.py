"""A student with the head of masked words, beside the teacher it learns from.

Source: Sanh et al. 2019, arXiv:1910.01108.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models import hooks
from bert_jax.models.config import ModelConfig
from bert_jax.models.encoder import Encoder
from bert_jax.models.heads import MlmHead

TEACHER = "teacher"


class Teacher(nn.Module):
  """An encoder with the head of masked words.

  Attributes:
    config: a `ModelConfig`.
  """

  config: ModelConfig

  def setup(self):
    self.encoder = Encoder(self.config)
    self.mlm = MlmHead(self.config)

  def __call__(self, *inputs, **kwargs):
    """Returns the hidden states [B, L, D] of an `Encoder`."""
    return self.encoder(*inputs, **kwargs)[0]

  def score(self, hidden):
    """Returns the scores of words, float32 [B, P, V], of some positions."""
    return self.mlm(hidden, self.encoder.embeddings.word.embedding)


class DistilledModel(nn.Module):
  """The student, whose parameters lie at the top, and its teacher.

  Attributes:
    config: the `ModelConfig` of the student.
    teacher_config: that of the teacher.
    at_masks: whether the words of both are compared at the masked positions
      alone, and not at all positions.
  """

  config: ModelConfig
  teacher_config: ModelConfig
  at_masks: bool

  def setup(self):
    self.encoder = Encoder(self.config)
    self.mlm = MlmHead(self.config)
    self.teacher = Teacher(self.teacher_config)

  @property
  def hooks(self):
    """How a training step handles the parameters."""
    return hooks.NestedHooks(self, {TEACHER: self.teacher_config})

  def __call__(
    self,
    input_ids,
    input_mask,
    segment_ids,
    masked_positions,
    *,
    deterministic=True,
    **kwargs,
  ):
    """Returns what both models say.

    Args:
      input_ids: [B, L] int32, masked; see `Encoder` for this and the others.
      input_mask: [B, L] int32.
      segment_ids: [B, L] int32.
      masked_positions: [B, P] int32, the positions to predict.
      deterministic: False switches the dropout of the student on.
      **kwargs: more arguments of `Encoder`.

    Returns:
      (the student's scores of words at the masked positions, float32 [B, P, V],
      the student's and the teacher's scores where they are compared, and their
      hidden states [B, L, D]).
    """
    inputs = (input_ids, input_mask, segment_ids)
    hidden, _ = self.encoder(*inputs, deterministic=deterministic, **kwargs)
    theirs = self.teacher(*inputs, deterministic=True, **kwargs)
    theirs = jax.lax.stop_gradient(theirs)
    masks = masked_positions[..., None]
    table = self.encoder.embeddings.word.embedding
    if self.at_masks:
      words = self.mlm(jnp.take_along_axis(hidden, masks, 1), table)
      their_words = self.teacher.score(jnp.take_along_axis(theirs, masks, 1))
      found = words
    else:
      words = self.mlm(hidden, table)
      their_words = self.teacher.score(theirs)
      found = jnp.take_along_axis(words, masks, 1)
    their_words = jax.lax.stop_gradient(their_words)
    return found, words, their_words, hidden, theirs
