"""The heads on the encoder, and the models that they make with it."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models import families
from bert_jax.models import hooks
from bert_jax.models import layers
from bert_jax.models import lstm
from bert_jax.models import params as param_trees
from bert_jax.models.config import ModelConfig
from bert_jax.models.dropout import Dropout
from bert_jax.models.encoder import Encoder
from bert_jax.models.families.family import SEQUENCE_ROLES
from bert_jax.runtime import traces


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
      word_table: [V, E], the word embedding, which is the decoder, too, if
        `config.tied_words`.

    Returns:
      float32 [B, P, V].

    Source: google-research/bert run_pretraining.py:240-285.
    """
    cfg = self.config
    x = hidden
    if cfg.mlm_head == "transform":
      width, has_bias = cfg.embedding_width, cfg.head_bias
      x = layers.Dense(cfg, width, has_bias=has_bias, name="dense")(x)
      x = layers.ACTIVATIONS[cfg.head_act or cfg.hidden_act](x)
      x = layers.NORMS[cfg.norm](cfg, name="norm")(x)
    if not cfg.tied_words:
      word_table = self.param(
        "decoder",
        layers.kernel_init(cfg),
        (cfg.vocab_size, x.shape[-1]),
        layers.storage_dtype(cfg),
      )
    if cfg.mlm_bias:
      bias = layers.bias(self, (cfg.vocab_size,))
    else:
      bias = jnp.zeros(word_table.shape[:1], word_table.dtype)
    return vocab_logits(x, word_table, bias)


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
    return _score(self, x)


def _score(module, x):
  """Returns the scores of a module with `config` and `num_outputs`."""
  kernel = layers.kernel(
    module, (module.config.hidden_size, module.num_outputs)
  )
  bias = layers.bias(module, (module.num_outputs,))
  logits = jax.lax.dot_general(
    x,
    kernel.astype(x.dtype),
    (((x.ndim - 1,), (0,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  return logits + layers.last_axis(logits, bias)


def mean_of_sequences(x, sequence_ids, num_sequences):
  """Returns the mean over the tokens of each sequence.

  Args:
    x: [B, L, D].
    sequence_ids: [B, L] int32, the number of the sequence of each token, from 1
      on; 0 = padding.
    num_sequences: S.

  Returns:
    float32 [B, S, D]; zeros where a row has fewer sequences.
  """
  numbers = jnp.arange(1, num_sequences + 1)[None, :, None]
  members = (sequence_ids[:, None, :] == numbers).astype(jnp.float32)
  total = jnp.einsum("BSL,BLD->BSD", members, x.astype(jnp.float32))
  return total / jnp.maximum(members.sum(-1, keepdims=True), 1.0)


def last_of_sequences(sequence_ids, num_sequences):
  """Returns the position of the last token of each sequence.

  Args:
    sequence_ids: [B, L] int32, the number of the sequence of each token, from 1
      on; 0 = padding.
    num_sequences: S.

  Returns:
    int32 [B, S]; 0 where a row has fewer sequences.
  """
  numbers = jnp.arange(1, num_sequences + 1)[None, :, None]
  at = jnp.arange(sequence_ids.shape[1], dtype=jnp.int32)[None, None]
  return jnp.max(jnp.where(sequence_ids[:, None] == numbers, at, 0), axis=-1)


def sentence_vectors(x, pooling, sequence_ids, cls_positions):
  """Returns one vector for each sequence.

  Args:
    x: [B, L, D].
    pooling: "mean" of the tokens, or "cls", that of the first token.
    sequence_ids: [B, L] int32; see `mean_of_sequences`.
    cls_positions: [B, S] int32, where the sequences of a row begin.

  Returns:
    float32 [B, S, D].
  """
  if pooling == "mean":
    return mean_of_sequences(x, sequence_ids, cls_positions.shape[1])
  return layers.gather_positions(x, cls_positions).astype(jnp.float32)


def unit_vectors(x):
  """Divides vectors [..., D] by their length; zeros stay zeros."""
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  # The root has no gradient at 0, which slots without a sequence have.
  norm = jnp.sqrt(jnp.where(square > 0, square, 1.0))
  return x / jnp.maximum(norm, 1e-12)


class SentenceModel(nn.Module):
  """The encoder, whose vectors of tokens become one vector of each sequence.

  Attributes:
    config: a `ModelConfig`.
    pooling: see `sentence_vectors`.
  """

  config: ModelConfig
  pooling: str

  def setup(self):
    self.encoder = Encoder(self.config)

  @property
  def hooks(self):
    """How a training step handles the parameters."""
    return hooks.EncoderHooks(self, scores_words=False)

  def __call__(
    self,
    input_ids,
    input_mask,
    segment_ids,
    cls_positions,
    *,
    positions=None,
    sequence_ids=None,
    deterministic=True,
  ):
    """Returns the vectors of all sequences, float32 [B, S, D].

    Args:
      input_ids: [B, L] int32; see `Encoder` for this and the others.
      input_mask: [B, L] int32.
      segment_ids: [B, L] int32.
      cls_positions: [B, S] int32, where the sequences of a row begin.
      positions: [B, L] int32 or None.
      sequence_ids: [B, L] int32 or None.
      deterministic: False switches dropout on; needs the rng "dropout".
    """
    x, _ = self.encoder(
      input_ids,
      input_mask,
      segment_ids,
      positions=positions,
      sequence_ids=sequence_ids,
      deterministic=deterministic,
    )
    numbers = input_mask if sequence_ids is None else sequence_ids
    return sentence_vectors(x, self.pooling, numbers, cls_positions)


class TaskHead(nn.Module):
  """A `LinearHead` behind the steps that a family has there.

  Attributes:
    config: a `ModelConfig`.
    num_outputs: K.
    steps: what is done to a vector before the last dense layer, in order:
      "pooler" (that of the encoder), "dropout", "input_dropout" (dropout if
      `config.dropout_places` has "head_input"), "dense", "norm", "act" (that of
      the head of masked words), "hidden_act" (that of the encoder), or the name
      of an activation.
  """

  config: ModelConfig
  num_outputs: int
  steps: tuple[str, ...] = ()

  def setup(self):
    self.lstm = [
      lstm.BiLstm(self.config) for _ in range(self.config.head_lstm_layers)
    ]

  def read(self, x, sequence_ids):
    """Passes hidden states through the LSTM, if the model has one.

    Args:
      x: [B, L, D].
      sequence_ids: [B, L] int32, the number of each token's sequence.

    Returns:
      [B, L, D].
    """
    for layer in self.lstm:
      x = layer(x, sequence_ids)
    return x

  @nn.compact
  def __call__(self, x, pool=None, drop=None, late=None):
    """Maps [..., D] to float32 [..., K].

    Args:
      x: [..., D].
      pool: the pooler of the encoder.
      drop: the dropout of the model.
      late: a function to apply before the last dense layer, or None.
    """
    cfg = self.config
    for step in self.steps:
      if step == "pooler":
        x = pool(x)
      elif step == "dropout":
        x = drop(x)
      elif step == "input_dropout":
        x = drop(x) if "head_input" in cfg.dropout_places else x
      elif step == "dense":
        dense = layers.Dense(
          cfg, cfg.hidden_size, has_bias=cfg.head_bias, name="dense"
        )
        x = dense(x)
      elif step == "norm":
        x = layers.NORMS[cfg.norm](cfg, name="norm")(x)
      else:
        named = {
          "act": cfg.head_act or cfg.hidden_act, "hidden_act": cfg.hidden_act
        }  # fmt: skip
        x = layers.ACTIVATIONS[named.get(step, step)](x)
    return _score(self, x if late is None else late(x))


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
    if self.config.pooler:
      self.nsp = LinearHead(self.config, 2)

  @property
  def hooks(self):
    """How a training step handles the parameters."""
    return hooks.EncoderHooks(
      self, scores_words=True, is_tied=self.config.tied_words
    )

  def __call__(
    self,
    input_ids,
    input_mask,
    segment_ids,
    masked_positions=None,
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
      masked_positions: [B, P] int32, the positions to predict; None: all, in a
        row with one sequence or without the next sentence.
      positions: [B, L] int32 or None.
      sequence_ids: [B, L] int32 or None.
      cls_positions: [B, S] int32, where the sequences of a packed row begin.
        None: each row is one sequence.
      deterministic: False switches dropout on; needs the rng "dropout".

    Returns:
      (mlm_logits float32 [B, P, V], nsp_logits float32 [B, 2]); nsp_logits are
      [B, S, 2] with `cls_positions`, and None if the model has no pooler.
    """
    only = masked_positions
    has_nsp = self.config.pooler
    if has_nsp and cls_positions is not None:
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
    if has_nsp and cls_positions is not None:
      num_masked = masked_positions.shape[1]
      pooled = self.encoder.pool(hidden[:, num_masked:])  # [B, S, D]
      hidden = hidden[:, :num_masked]
    word_table = self.encoder.embeddings.word.embedding
    if self.has_variable("output", "word_table"):
      word_table = self.get_variable("output", "word_table")
    words = self.mlm(hidden, word_table)
    return words, self.nsp(pooled) if has_nsp else None


def check_role(config: ModelConfig, role: str) -> None:
  """Raises ValueError if a model lacks what the head of a task reads.

  Args:
    config: the config of the model.
    role: which of the heads of the family the task has.
  """
  is_causal = config.attention_pattern == "causal"
  reads_first = role in SEQUENCE_ROLES and config.pooling == "first"
  if is_causal and reads_first:
    raise ValueError(
      f"model.attention_pattern=causal with model.pooling=first: the {role} "
      "head would read the first token, which sees only itself; set "
      "model.pooling=last, or with weights to start from "
      "init_changes=model.pooling=last"
    )
  if not _can_have(config, role):
    raise ValueError(
      f"model.pooler=False, but the {role} head of model.family="
      f"{config.family} reads the pooler; set model.pooler=True, which gives "
      "the model a new one"
    )


def _can_have(config: ModelConfig, role: str) -> bool:
  steps = families.get_family(config.family).heads[role]
  return config.pooler or "pooler" not in steps


class TaskModel(nn.Module):
  """The encoder with the head of a task.

  Attributes:
    config: a `ModelConfig`.
    num_outputs: K; 1 for a number or a choice, 2 for a span.
    pooled: whether the head reads the pooled [CLS] of every sequence instead of
      all tokens.
    role: which of the heads of the family this is, a key of `Family.heads`.

  Source: BERT paper, section 4 and figure 4; google-research/bert
  run_classifier.py:574-616, run_squad.py:557-600.
  """

  config: ModelConfig
  num_outputs: int
  pooled: bool
  role: str

  def setup(self):
    steps = families.get_family(self.config.family).heads[self.role]
    self.encoder = Encoder(self.config)
    self.task = TaskHead(self.config, self.num_outputs, steps)
    self.dropout = Dropout(self.config.dropout_rate)

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
    pooling = self.config.pooling
    reads_mean = self.pooled and pooling in ("mean", "late")
    numbers = input_mask if sequence_ids is None else sequence_ids
    only = cls_positions if self.pooled and not reads_mean else None
    if only is not None and pooling == "last":
      only = last_of_sequences(numbers, cls_positions.shape[1])
    has_lstm = self.config.head_lstm_layers > 0
    x, _ = self.encoder(
      input_ids,
      input_mask,
      segment_ids,
      positions=positions,
      sequence_ids=sequence_ids,
      deterministic=deterministic,
      only_positions=None if has_lstm else only,
    )
    if has_lstm:
      x = self.task.read(x, numbers)
      x = x if only is None else layers.gather_positions(x, only)

    def mean(x):
      found = mean_of_sequences(x, numbers, cls_positions.shape[1])
      return found.astype(x.dtype)

    def drop(x):
      return self.dropout(x, deterministic=deterministic)

    late = mean if reads_mean and pooling == "late" else None
    x = mean(x) if reads_mean and late is None else x
    return self.task(x, self.encoder.pool, drop, late)


class DiscriminatorModel(nn.Module):
  """The encoder with a head that says of each token whether it was replaced.

  Attributes:
    config: a `ModelConfig`, of a family with such a head.

  Source: Clark et al. 2020, arXiv:2003.10555, section 2.
  """

  config: ModelConfig

  def setup(self):
    steps = families.get_family(self.config.family).discriminator
    self.encoder = Encoder(self.config)
    self.rtd = TaskHead(self.config, 1, steps)

  def __call__(self, input_ids, input_mask, segment_ids, **kwargs):
    """Returns float32 [B, L], above 0 where a token seems to be replaced.

    Args:
      input_ids: [B, L] int32; see `Encoder` for this and the others.
      input_mask: [B, L] int32.
      segment_ids: [B, L] int32.
      **kwargs: more arguments of `Encoder`.
    """
    x, _ = self.encoder(input_ids, input_mask, segment_ids, **kwargs)
    return self.rtd(x)[..., 0]


def param_shapes(
  model: Mapping[str, Any], num_labels: int, role: str = "sequence"
) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every parameter that a model may have.

  Args:
    model: family, sizes and switches, as in the config group `model`.
    num_labels: K, the width of the head of its task.
    role: which of the heads of the family the task has.

  Returns:
    Path -> shape, with unrolled layers, and with all heads and the pooler.
  """
  config = ModelConfig(**model)
  count = config.num_own_layers
  # The first layer may lack a norm; all others are alike.
  few = dataclasses.replace(
    config,
    num_layers=min(count, 2),
    layer_groups=0,
    scan_layers=False,
    attention="plain",
  )
  shapes = _shapes_of_few_layers(few, num_labels, role)
  return {
    path.replace(f"encoder/layer_{min(i, 1)}/", f"encoder/layer_{i}/"): shape
    for i in range(count)
    for path, shape in shapes.items()
    if path.startswith(f"encoder/layer_{min(i, 1)}/")
    or (i == 0 and not path.startswith("encoder/layer_"))
  }


@functools.lru_cache(maxsize=64)
def _shapes_of_few_layers(
  config: ModelConfig, num_labels: int, role: str
) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of the parameters of a model with few layers."""
  facts = {
    "model": dataclasses.asdict(config), "num_labels": num_labels, "role": role
  }  # fmt: skip
  found = traces.shapes(
    facts, lambda: _trace_few_layers(config, num_labels, role)
  )
  return {path: one.shape for path, one in found.items()}


def _trace_few_layers(
  config: ModelConfig, num_labels: int, role: str
) -> dict[str, jax.ShapeDtypeStruct]:
  """Finds what `_shapes_of_few_layers` returns by tracing the models."""
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  rng = jax.ShapeDtypeStruct((2,), jnp.uint32)
  flat: dict[str, Any] = {}
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
    models: list[tuple[nn.Module, int]] = [(PreTrainingModel(config), 4)]
    if _can_have(config, role):
      models.append((TaskModel(config, num_labels, True, role), 4))
    if families.get_family(config.family).discriminator:
      models.append((DiscriminatorModel(config), 3))
    for model, count in models:
      with layers.shapes_only():
        tree = jax.eval_shape(
          lambda *inputs, model=model: model.init(*inputs), rng, *[ids] * count
        )
      flat |= param_trees.flatten(tree["params"])
  # Each kernel before its bias, because errors name the first misfit.
  paths = sorted(flat, key=lambda p: (p.rpartition("/")[0], p.endswith("bias")))
  return {path: flat[path] for path in paths}
