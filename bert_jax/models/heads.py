"""The heads on the encoder, and the models that they make with it."""

from collections.abc import Mapping
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models import hooks
from bert_jax.models import layers
from bert_jax.models import params as param_trees
from bert_jax.models.config import ModelConfig
from bert_jax.models.dropout import Dropout
from bert_jax.models.encoder import Encoder


@jax.custom_vjp
def vocab_logits(x, table, bias):
  """Returns float32 `x @ table.T + bias`: a score for every word.

  As in `layers.dense`, the gradient of the table has the layout and the dtype
  of the table.

  Args:
    x: [B, P, D].
    table: [V, D].
    bias: [V].

  Returns:
    float32 [B, P, V].
  """
  logits = jax.lax.dot_general(
    x,
    table.astype(x.dtype),
    (((2,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  return logits + bias.astype(jnp.float32)[None, None]


def _vocab_logits_forward(x, table, bias):
  return vocab_logits(x, table, bias), (x, table, bias)


def _vocab_logits_backward(residuals, grad):
  x, table, bias = residuals
  rows, columns = x.reshape(-1, x.shape[-1]), grad.reshape(-1, bias.size)
  grad_bias = jnp.sum(columns, 0, dtype=bias.dtype)
  columns = columns.astype(x.dtype)
  grad_x = jax.lax.dot_general(
    columns, table.astype(x.dtype), (((1,), (0,)), ((), ()))
  )
  grad_table = jax.lax.dot_general(
    columns, rows, (((0,), (0,)), ((), ())), preferred_element_type=table.dtype
  )
  return grad_x.reshape(x.shape), grad_table, grad_bias


vocab_logits.defvjp(_vocab_logits_forward, _vocab_logits_backward)


class MlmHead(nn.Module):
  """Scores every word of the vocabulary at the masked positions.

  Only the masked positions go through the head. If 20 of 128 are masked, its
  matmul, the largest of the model, is a sixth of that over all positions.

  Attributes:
    config: a `ModelConfig`.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, hidden, word_table):
    """Maps hidden states to vocabulary logits.

    Args:
      hidden: [B, P, D], the output of the encoder at the masked positions.
      word_table: [V, D], the word embedding, tied with the output weights.

    Returns:
      float32 [B, P, V].

    Source: google-research/bert run_pretraining.py:240-285.
    """
    cfg = self.config
    x = layers.Dense(cfg, cfg.hidden_size, name="dense")(hidden)
    x = layers.ACTIVATIONS[cfg.hidden_act](x)
    x = layers.NORMS[cfg.norm](cfg, name="norm")(x)
    return vocab_logits(x, word_table, layers.bias(self, (cfg.vocab_size,)))


class LinearHead(nn.Module):
  """Scores of K classes: next sentence (K = 2), or the labels of a task.

  Attributes:
    config: a `ModelConfig`.
    num_outputs: K.
  """

  config: ModelConfig
  num_outputs: int

  @nn.compact
  def __call__(self, x):
    """Maps [..., D] to float32 [..., K].

    Source: google-research/bert run_pretraining.py:288-304,
    run_classifier.py:590-616, run_squad.py:575-600.
    """
    kernel = layers.kernel(self, (self.config.hidden_size, self.num_outputs))
    bias = layers.bias(self, (self.num_outputs,))
    logits = jax.lax.dot_general(
      x,
      kernel.astype(x.dtype),
      (((x.ndim - 1,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    return logits + layers.last_axis(logits, bias)


class PreTrainingModel(nn.Module):
  """The encoder with both pre-training heads.

  Attributes:
    config: a `ModelConfig`.

  Source: BERT paper, section 3.1.
  """

  config: ModelConfig

  def setup(self):
    self.encoder = Encoder(self.config)
    self.mlm = MlmHead(self.config)
    self.nsp = LinearHead(self.config, 2)

  @property
  def hooks(self):
    """How a training step handles the parameters."""
    return hooks.EncoderHooks(self, scores_words=True)

  def __call__(
    self,
    input_ids,
    input_mask,
    segment_ids,
    masked_positions,
    *,
    positions=None,
    sequence_ids=None,
    cls_positions=None,
    deterministic=True,
  ):
    """Returns the logits of both objectives.

    Args:
      input_ids: [B, L] int32; see `Encoder` for this and the others.
      input_mask: [B, L] int32.
      segment_ids: [B, L] int32.
      masked_positions: [B, P] int32, the positions to predict.
      positions: [B, L] int32 or None.
      sequence_ids: [B, L] int32 or None.
      cls_positions: [B, S] int32, where the sequences of a packed row begin.
        None: each row is one sequence.
      deterministic: False switches dropout on; needs the rng "dropout".

    Returns:
      (mlm_logits float32 [B, P, V], nsp_logits float32 [B, 2]); nsp_logits are
      [B, S, 2] with `cls_positions`.
    """
    only = masked_positions
    if cls_positions is not None:
      only = jnp.concatenate([masked_positions, cls_positions], axis=1)
    hidden, pooled = self.encoder(
      input_ids,
      input_mask,
      segment_ids,
      positions=positions,
      sequence_ids=sequence_ids,
      deterministic=deterministic,
      only_positions=only,
    )
    if cls_positions is not None:
      num_masked = masked_positions.shape[1]
      pooled = self.encoder.pool(hidden[:, num_masked:])  # [B, S, D]
      hidden = hidden[:, :num_masked]
    word_table = self.encoder.embeddings.word.embedding
    if self.has_variable("output", "word_table"):
      word_table = self.get_variable("output", "word_table")
    return self.mlm(hidden, word_table), self.nsp(pooled)


class TaskModel(nn.Module):
  """The encoder with the head of a task.

  Attributes:
    config: a `ModelConfig`.
    num_outputs: K; 1 for a number or a choice, 2 for a span.
    pooled: whether the head reads the pooled [CLS] of every sequence instead of
      all tokens.
    head_dropout: whether to apply dropout before the head, at
      `config.dropout_rate`.

  Source: BERT paper, section 4 and figure 4; google-research/bert
  run_classifier.py:574-616, run_squad.py:557-600.
  """

  config: ModelConfig
  num_outputs: int
  pooled: bool
  head_dropout: bool = True

  def setup(self):
    self.encoder = Encoder(self.config)
    self.task = LinearHead(self.config, self.num_outputs)
    self.dropout = Dropout(
      self.config.dropout_rate if self.head_dropout else 0.0
    )

  @property
  def hooks(self):
    """How a training step handles the parameters."""
    return hooks.EncoderHooks(self, scores_words=False)

  def __call__(
    self,
    input_ids,
    input_mask,
    segment_ids,
    cls_positions=None,
    *,
    positions=None,
    sequence_ids=None,
    deterministic=True,
  ):
    """Returns the scores of every sequence, or of every token.

    Args:
      input_ids: [B, L] int32; see `Encoder` for this and the others.
      input_mask: [B, L] int32.
      segment_ids: [B, L] int32.
      cls_positions: [B, S] int32, where the sequences of a row begin; only
        read if the head reads the pooled output.
      positions: [B, L] int32 or None.
      sequence_ids: [B, L] int32 or None.
      deterministic: False switches dropout on; needs the rng "dropout".

    Returns:
      float32 [B, S, K] if `pooled`, else [B, L, K].
    """
    x, _ = self.encoder(
      input_ids,
      input_mask,
      segment_ids,
      positions=positions,
      sequence_ids=sequence_ids,
      deterministic=deterministic,
      only_positions=cls_positions if self.pooled else None,
    )
    if self.pooled:
      x = self.encoder.pool(x)
    return self.task(self.dropout(x, deterministic=deterministic))


def param_shapes(
  model: Mapping[str, Any], num_labels: int
) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every parameter that a model may have.

  Args:
    model: sizes and switches, as in the config group `model`.
    num_labels: K, the width of the head of its task.

  Returns:
    Path -> shape, with unrolled layers, and with all heads and the pooler.
  """
  first = ModelConfig(**{**model, "num_layers": 1})
  shapes = _shapes_of_one_layer(first, num_labels)
  return {
    path.replace("encoder/layer_0/", f"encoder/layer_{i}/"): shape
    for i in range(model["num_layers"])
    for path, shape in shapes.items()
    if i == 0 or path.startswith("encoder/layer_0/")
  }


@functools.lru_cache(maxsize=64)
def _shapes_of_one_layer(
  config: ModelConfig, num_labels: int
) -> dict[str, tuple[int, ...]]:
  """Returns the shapes for a model with one layer; all layers are alike."""
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  rng = jax.ShapeDtypeStruct((2,), jnp.uint32)
  flat: dict[str, Any] = {}
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
    for model in (
      PreTrainingModel(config),
      TaskModel(config, num_labels, pooled=True),
    ):
      with layers.shapes_only():
        tree = jax.eval_shape(
          lambda *inputs, model=model: model.init(*inputs), rng, *[ids] * 4
        )
      flat |= param_trees.flatten(tree["params"])
  # Each kernel before its bias, because errors name the first misfit.
  paths = sorted(flat, key=lambda p: (p.rpartition("/")[0], p.endswith("bias")))
  return {path: flat[path].shape for path in paths}
