"""A generator that replaces tokens, and a discriminator that finds them.

The generator fills masked positions by samples of what it expects there. The
discriminator, which is the model that is used afterwards, says of every token
whether it is the one of the text.

Sources: Clark et al. 2020, arXiv:2003.10555; He et al. 2021, arXiv:2111.09543
(the shared tables of DeBERTa-v3).
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models import families
from bert_jax.models import hooks
from bert_jax.models import layers
from bert_jax.models.config import ModelConfig
from bert_jax.models.encoder import Encoder
from bert_jax.models.heads import MlmHead
from bert_jax.models.heads import TaskHead

# Names of the parts of the parameters that only a training has: those from
# which it can go on, and also those that it reads again.
KEPT_PARTS = ("generator", "residual", "fits")
PARTS = (*KEPT_PARTS, "teacher")
WORDS = "encoder/embeddings/word/embedding"
RESIDUAL = "residual/embeddings/word/embedding"


def generator_config(config: ModelConfig, settings: Any) -> ModelConfig:
  """Returns the config of the generator of a discriminator.

  It has the same width of a head and of the embeddings, and the same ratio of
  the MLP to the hidden states.

  Args:
    config: the config of the discriminator.
    settings: the group `generator` of a config.

  Raises:
    ValueError: the family has no discriminator.
  """
  if not families.get_family(config.family).discriminator:
    able = [n for n, f in families.FAMILIES.items() if f.discriminator]
    raise ValueError(
      f"objective=rtd trains a discriminator, which model.family="
      f"{config.family} does not have; use one of {', '.join(able)}"
    )
  num_heads = max(1, round(config.num_heads * settings.width_rate))
  hidden = num_heads * (config.hidden_size // config.num_heads)
  width = config.embedding_width
  num_layers = max(1, round(config.num_layers * settings.depth_rate))
  return dataclasses.replace(
    config,
    num_layers=num_layers,
    num_heads=num_heads,
    hidden_size=hidden,
    mlp_dim=max(1, config.mlp_dim * hidden // config.hidden_size),
    embedding_size=0 if width == hidden else width,
    layer_groups=min(config.layer_groups, num_layers),
  )


class Generator(nn.Module):
  """An encoder with the head of masked words.

  Attributes:
    config: a `ModelConfig`.
  """

  config: ModelConfig

  def setup(self):
    self.encoder = Encoder(self.config)
    self.mlm = MlmHead(self.config)

  def __call__(self, *inputs, tables=None, **kwargs):
    """Returns the scores of words at `only_positions`, float32 [B, P, V].

    Args:
      *inputs: ids, mask and segments of an `Encoder`.
      tables: the `Embeddings` of another encoder, to be shared; None = its own.
      **kwargs: more arguments of an `Encoder`.
    """
    hidden, _ = self.encoder(*inputs, tables=tables, **kwargs)
    tables = self.encoder.embeddings if tables is None else tables
    return self.mlm(hidden, tables.word.embedding)


class _Words(nn.Module):
  """A table of words that begins as zeros."""

  config: ModelConfig

  def setup(self):
    cfg = self.config
    self.word = nn.Embed(
      cfg.vocab_size,
      cfg.embedding_width,
      param_dtype=layers.storage_dtype(cfg),
      embedding_init=nn.initializers.zeros_init(),
    )


class Residual(nn.Module):
  """What the word table of the discriminator adds to the generator's."""

  config: ModelConfig

  def setup(self):
    self.embeddings = _Words(self.config)


class ReplacedTokensModel(nn.Module):
  """Both models.

  Attributes:
    config: the `ModelConfig` of the discriminator.
    generator_config: that of the generator.
    sharing: "embeddings": the generator reads the tables of the discriminator,
      and both train them. "disentangled": the words of the discriminator are
      those of the generator, which it does not train, plus a table of its own.
      "none": each has its tables.
  """

  config: ModelConfig
  generator_config: ModelConfig
  sharing: str

  def setup(self):
    steps = families.get_family(self.config.family).discriminator
    self.encoder = Encoder(self.config)
    self.rtd = TaskHead(self.config, 1, steps)
    self.generator = Generator(self.generator_config)
    if self.sharing == "disentangled":
      self.residual = Residual(self.config)

  @property
  def hooks(self):
    """How a training step handles the parameters."""
    return hooks.NestedHooks(self, {"generator": self.generator_config})

  def __call__(
    self,
    input_ids,
    input_mask,
    segment_ids,
    masked_positions,
    masked_ids,
    masked_weights,
    *,
    deterministic=True,
    **kwargs,
  ):
    """Returns what both say, and which tokens were replaced.

    Args:
      input_ids: [B, L] int32, masked; see `Encoder` for this and the others.
      input_mask: [B, L] int32.
      segment_ids: [B, L] int32.
      masked_positions: [B, P] int32, the positions to fill.
      masked_ids: [B, P] int32, the tokens of the text there.
      masked_weights: [B, P] float32, 0 for an unused slot.
      deterministic: False switches dropout on; needs the rng "dropout". True
        also draws the same samples at every call.
      **kwargs: more arguments of `Encoder`.

    Returns:
      (scores of words float32 [B, P, V], scores of the discriminator float32
      [B, L], above 0 where it takes a token for replaced, and [B, L] bool
      whether it is). A sample that equals the token is no replacement.
    """
    kwargs["deterministic"] = deterministic
    shares = self.sharing == "embeddings"
    words = self.generator(
      input_ids,
      input_mask,
      segment_ids,
      tables=self.encoder.embeddings if shares else None,
      only_positions=masked_positions,
      **kwargs,
    )
    rng = jax.random.key(0) if deterministic else self.make_rng("dropout")
    noise = jax.random.gumbel(rng, words.shape, words.dtype)
    samples = jnp.argmax(jax.lax.stop_gradient(words) + noise, -1)
    samples = samples.astype(input_ids.dtype)
    # Unused slots name a position behind the row, and change nothing.
    length = input_ids.shape[1]
    places = jnp.where(masked_weights > 0, masked_positions, length)
    original = _put(input_ids, places, masked_ids)
    replaced = _put(input_ids, places, samples)
    table = None
    if self.sharing == "disentangled":
      base = self.generator.encoder.embeddings.word.embedding
      own = self.residual.embeddings.word.embedding
      table = jax.lax.stop_gradient(base) + own
    hidden, _ = self.encoder(
      replaced, input_mask, segment_ids, word_table=table, **kwargs
    )
    return words, self.rtd(hidden)[..., 0], replaced != original


def _put(ids, places, values):
  """Returns ids [B, L] with values [B, P] at places [B, P]."""
  return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(
    ids, places, values
  )
