"""A student with the head of masked words, beside the teacher it learns from.

Source: Sanh et al. 2019, arXiv:1910.01108; Jiao et al. 2020, arXiv:1909.10351,
for what is compared layer by layer.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models import hooks
from bert_jax.models import layers
from bert_jax.models.config import ModelConfig
from bert_jax.models.encoder import Encoder
from bert_jax.models.heads import MlmHead

TEACHER = "teacher"
# Outputs of the layers that student and teacher can be compared by.
LAYERWISE = ("embedding", "hidden", "attention")


def layer_map(num_layers: int, teacher_layers: int) -> tuple[int, ...]:
  """Returns the layer of the teacher that each layer of a student learns from.

  Layers count from 1, and the last learns from the last.

  Example:
    >>> layer_map(4, 12)
    (3, 6, 9, 12)
  """
  return tuple(
    max(1, round((i + 1) * teacher_layers / num_layers))
    for i in range(num_layers)
  )


def attention_maps(maps: Mapping[str, Any], config: ModelConfig) -> Any:
  """Returns the probabilities of attention of all layers, [layers, B, N, L, L].

  Args:
    maps: the collection "maps" of an encoder.
    config: the config of the encoder, whose layers may share parameters.
  """
  taken: dict[int, int] = {}
  found = []
  for plan in config.layer_plans:
    number = taken.get(plan.params, 0)
    taken[plan.params] = number + 1
    found.append(maps[f"layer_{plan.params}"]["attention"]["probs"][number])
  return jnp.stack(found)


class Fits(nn.Module):
  """Projections of a student's hidden states to the width of its teacher.

  They are learned with the student and are no part of it.

  Attributes:
    config: the `ModelConfig` of the student.
    width: the width of the teacher.
  """

  config: ModelConfig
  width: int

  def setup(self):
    self.embedding = layers.Dense(self.config, self.width)
    self.hidden = layers.Dense(self.config, self.width)


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
    """Returns what an `Encoder` returns."""
    return self.encoder(*inputs, **kwargs)

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
    layerwise: which of `LAYERWISE` are compared, too. The probabilities of
      attention are in the collection "maps" of both encoders.
  """

  config: ModelConfig
  teacher_config: ModelConfig
  at_masks: bool
  layerwise: tuple[str, ...] = ()

  def setup(self):
    self.encoder = Encoder(self.config)
    self.mlm = MlmHead(self.config)
    self.teacher = Teacher(self.teacher_config)
    width = self.teacher_config.hidden_size
    states = {"embedding", "hidden"} & set(self.layerwise)
    if states and width != self.config.hidden_size:
      self.fits = Fits(self.config, width)

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
      the student's and the teacher's scores where they are compared, their
      hidden states [B, L, D], and what else is compared: "hidden" or
      "embedding" -> both hidden states [layers, B, L, D] of the same width).
    """
    inputs = (input_ids, input_mask, segment_ids)
    states = {"embedding", "hidden"} & set(self.layerwise)
    if states:
      kwargs["return_layers"] = True
    hidden, _, *ours = self.encoder(
      *inputs, deterministic=deterministic, **kwargs
    )
    found_by_teacher = self.teacher(*inputs, deterministic=True, **kwargs)
    theirs, _, *others = jax.lax.stop_gradient(found_by_teacher)
    compared = self._compared(*ours, *others) if states else {}
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
    return found, words, their_words, hidden, theirs, compared

  def _compared(self, ours, theirs):
    """Returns the hidden states that are compared, by name.

    Args:
      ours: [layers + 1, B, L, D] of the student, the embeddings first.
      theirs: those of the teacher.
    """
    chosen = layer_map(len(ours) - 1, len(theirs) - 1)
    parts = {
      "embedding": (ours[:1], theirs[:1]),
      "hidden": (ours[1:], theirs[jnp.array(chosen)]),
    }
    has_fits = self.config.hidden_size != self.teacher_config.hidden_size
    return {
      name: (getattr(self.fits, name)(x) if has_fits else x, y)
      for name, (x, y) in parts.items()
      if name in self.layerwise
    }
