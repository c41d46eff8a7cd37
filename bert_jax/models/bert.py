"""BERT: embeddings, a stack of Transformer layers, and a pooler.

Shapes: B batch, L length, P masked slots, D hidden, N heads, H head_dim,
F mlp, V vocab, T segment types.
"""

import dataclasses
import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models import attention
from bert_jax.models import heads
from bert_jax.models.dropout import Dropout
from bert_jax.runtime import sharding

# --- pieces with their gradients written out ---------------------------------


def _gelu_erf_parts(x):
  """Returns gelu(x) and its derivative: the Gaussian's own distribution."""
  cdf = 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
  density = jnp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
  return x * cdf, cdf + x * density


def _gelu_tanh_parts(x):
  """Returns gelu(x) and its derivative: the approximation through tanh."""
  c = math.sqrt(2.0 / math.pi)
  tanh = jnp.tanh(c * x * (1.0 + 0.044715 * x * x))
  slope = c * (1.0 + 3.0 * 0.044715 * x * x)
  cdf = 0.5 * (1.0 + tanh)
  return x * cdf, cdf + 0.5 * x * (1.0 - tanh * tanh) * slope


def _from_parts(parts):
  """Makes a function that keeps only its argument for the backward pass.

  Differentiation would keep several arrays as large as the widest activation
  of the model; to compute them again costs less than to read them back.
  """

  @jax.custom_vjp
  def function(x):
    return parts(x.astype(jnp.float32))[0].astype(x.dtype)

  def forward(x):
    return function(x), x

  def backward(x, grad):
    if x.dtype == jnp.float32:
      # Or the CPU compiler finds parts of both passes equal and keeps them (a
      # step of SST-2: 1.02 times). TPUs train in bfloat16, where the slope is
      # best computed inside of the matmul behind it.
      x, grad = jax.lax.optimization_barrier((x, grad))
    slope = parts(x.astype(jnp.float32))[1]
    return ((grad.astype(jnp.float32) * slope).astype(x.dtype),)

  function.defvjp(forward, backward)
  return function


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x, scale, bias, epsilon):
  """Normalises the last axis to mean 0 and variance 1, then scale and bias.

  Statistics and arithmetic are float32 whatever the dtype: in bfloat16 an
  epsilon of 1e-12 is nothing.

  Args:
    x: [..., D].
    scale: [D].
    bias: [D].
    epsilon: added to the variance, a Python float.

  Returns:
    Array like `x`.

  Source: Ba et al. 2016, equation 3.
  """
  return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _last_axis(x, vector):
  return vector.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))


def _layer_norm_forward(x, scale, bias, epsilon):
  wide = x.astype(jnp.float32)
  mean = jnp.mean(wide, -1, keepdims=True)
  if x.dtype == jnp.bfloat16:
    # In one pass with the mean; what cancels is far below the last bit of x.
    variance = jnp.mean(jnp.square(wide), -1, keepdims=True) - mean * mean
    variance = jnp.maximum(variance, 0.0)
  else:
    variance = jnp.mean(jnp.square(wide - mean), -1, keepdims=True)
  rstd = jax.lax.rsqrt(variance + epsilon)
  y = (wide - mean) * rstd * _last_axis(x, scale) + _last_axis(x, bias)
  return y.astype(x.dtype), (x, scale, mean, rstd)


def _layer_norm_backward(epsilon, residuals, grad):
  del epsilon
  x, scale, mean, rstd = residuals
  grad = grad.astype(jnp.float32)
  normal = (x.astype(jnp.float32) - mean) * rstd
  rows = tuple(range(x.ndim - 1))
  grad_scale = jnp.sum(grad * normal, rows).astype(scale.dtype)
  grad_bias = jnp.sum(grad, rows).astype(scale.dtype)
  grad = grad * _last_axis(x, scale)
  grad_x = rstd * (
    grad
    - jnp.mean(grad, -1, keepdims=True)
    - normal * jnp.mean(grad * normal, -1, keepdims=True)
  )
  grad_x = grad_x.astype(x.dtype)
  if x.dtype != jnp.float32:
    # Its consumers would each compute it again, and slow matmuls down with it.
    grad_x = jax.lax.optimization_barrier(grad_x)
  return grad_x, grad_scale, grad_bias


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table, ids, dtype):
  """Returns rows of a table in another dtype.

  The gradients of a row that is looked up often are summed in the dtype of the
  table: in bfloat16 the sum would stop growing after a few hundred.

  Args:
    table: [V, D].
    ids: [...] int32.
    dtype: of the result.

  Returns:
    [..., D].
  """
  return jnp.take(table, ids, axis=0).astype(dtype)


def _look_up_forward(table, ids, dtype):
  return look_up(table, ids, dtype), (table, ids)


def _look_up_backward(dtype, residuals, grad):
  del dtype
  table, ids = residuals
  return jnp.zeros_like(table).at[ids].add(grad.astype(table.dtype)), None


look_up.defvjp(_look_up_forward, _look_up_backward)

ACTIVATIONS = {
  # The October 2018 code used the error function; the public code since
  # February 2019 uses the tanh form. The two differ by up to 5e-4, enough to
  # notice on converted weights.
  "gelu_tanh": _from_parts(_gelu_tanh_parts),
  "gelu_erf": _from_parts(_gelu_erf_parts),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "tanh": jnp.tanh,
}
DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("plain", "fused", "fused_qkv", "splash")
REMATS = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape and arithmetic of one model; the config group `model`, checked.

  Attributes:
    vocab_size: V, rows of the word embedding.
    num_layers: number of Transformer layers.
    hidden_size: D, width of the hidden states.
    num_heads: N, attention heads; divides `hidden_size`.
    mlp_dim: F, width of the inner layer of the MLP.
    max_len: rows of the position embedding, the longest L.
    type_vocab_size: T, rows of the segment type embedding.
    hidden_act: a key of `ACTIVATIONS`.
    dropout_rate: after the embeddings, the attention and the MLP.
    attention_dropout_rate: on the attention probabilities.
    layer_norm_eps: added to the variance.
    init_stddev: standard deviation before truncation at two of them.
    dtype: computes.
    param_dtype: is stored.
    scan_layers: one compiled layer, looped over stacked parameters.
    remat: what the backward pass computes again, a key of `REMATS`.
    attention: implementation of attention, one of `ATTENTIONS`.
  """

  vocab_size: int
  num_layers: int
  hidden_size: int
  num_heads: int
  mlp_dim: int
  max_len: int
  type_vocab_size: int
  hidden_act: str
  dropout_rate: float
  attention_dropout_rate: float
  layer_norm_eps: float
  init_stddev: float
  dtype: str
  param_dtype: str
  scan_layers: bool
  remat: str
  attention: str

  @classmethod
  def from_config(cls, config_model):
    """Builds the checked dataclass from a mapping with exactly its keys.

    Args:
      config_model: `ml_collections.ConfigDict` or dict, the group `model`.

    Returns:
      A `ModelConfig`.

    Raises:
      ValueError: if a key is missing, unknown or has an impossible value.
    """
    wanted = {field.name for field in dataclasses.fields(cls)}
    given = set(config_model.keys())
    if wanted != given:
      raise ValueError(
        f"config.model lacks {sorted(wanted - given)} and has unknown "
        f"{sorted(given - wanted)}; its keys must be {sorted(wanted)}"
      )
    return cls(**{name: config_model[name] for name in wanted})

  def __post_init__(self):
    for name in (
      "vocab_size",
      "num_layers",
      "hidden_size",
      "num_heads",
      "mlp_dim",
      "max_len",
      "type_vocab_size",
    ):
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"model.{name}={value!r} is not a positive integer")
    if self.hidden_size % self.num_heads:
      fits = [
        n for n in range(1, self.hidden_size + 1) if self.hidden_size % n == 0
      ]
      near = sorted(fits, key=lambda n: abs(n - self.num_heads))[:3]
      raise ValueError(
        f"model.hidden_size={self.hidden_size} is not divisible by "
        f"model.num_heads={self.num_heads}; use num_heads in "
        f"{sorted(near)}, or change hidden_size"
      )
    for name in ("dropout_rate", "attention_dropout_rate"):
      if not 0.0 <= getattr(self, name) < 1.0:
        raise ValueError(
          f"model.{name}={getattr(self, name)} is not a probability below "
          "1; use 0.0 to switch it off, 0.1 for the paper's value"
        )
    for name in ("layer_norm_eps", "init_stddev"):
      if not getattr(self, name) > 0.0:
        raise ValueError(
          f"model.{name}={getattr(self, name)} is not positive; BERT uses "
          "layer_norm_eps=1e-12 and init_stddev=0.02"
        )
    for name, known in (
      ("hidden_act", ACTIVATIONS),
      ("dtype", DTYPES),
      ("param_dtype", DTYPES),
      ("remat", REMATS),
      ("attention", ATTENTIONS),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f"model.{name}={getattr(self, name)!r} is unknown; choose one of "
          f"{', '.join(known)}"
        )
    if self.attention == "splash" and self.attention_dropout_rate:
      raise ValueError(
        "model.attention=splash has no dropout of attention probabilities, "
        f"but model.attention_dropout_rate={self.attention_dropout_rate}; set "
        "that to 0.0, which gives up a part of the paper's regularisation, or "
        "use model.attention=fused or plain, which have it"
      )

  def check_row_len(self, length):
    """Raises ValueError if the attention program takes no rows of a length."""
    if self.attention == "splash":
      from bert_jax.models import splash_attention  # slow to import

      splash_attention.check_shapes(length)
    elif self.attention != "plain":
      from bert_jax.models import fused_attention  # slow to import

      fused_attention.check_shapes(length, self.hidden_size, self.head_dim)

  @property
  def row_len_unit(self):
    """What the lengths of rows are best a multiple of."""
    return 8 if self.attention == "plain" else 128

  @property
  def head_dim(self):
    return self.hidden_size // self.num_heads

  @property
  def compute_dtype(self):
    return jnp.dtype(self.dtype)

  @property
  def storage_dtype(self):
    return jnp.dtype(self.param_dtype)

  @property
  def activation(self):
    return ACTIVATIONS[self.hidden_act]

  @property
  def kernel_init(self):
    """Truncated at two standard deviations, not rescaled: std is .88 of it."""
    return nn.initializers.truncated_normal(self.init_stddev)

  def dense(self, features, *, heads=False, **kwargs):
    """A dense layer; with `heads` its input is [..., N, H], not [..., D]."""
    return Dense(self, features, heads, **kwargs)

  def layer_norm(self, **kwargs):
    """A LayerNorm over the last axis."""
    return LayerNorm(self, **kwargs)

  def embed(self, rows):
    """An embedding table with `rows` rows of width D."""
    return nn.Embed(
      rows,
      self.hidden_size,
      dtype=self.compute_dtype,
      param_dtype=self.storage_dtype,
      embedding_init=self.kernel_init,
    )


class Dense(nn.Module):
  """`x @ kernel + bias`.

  Attributes:
    config: a `ModelConfig`.
    features: size of the last axis of the result.
    heads: the input is [..., N, H] and the kernel [N, H, features].
  """

  config: ModelConfig
  features: int
  heads: bool

  @nn.compact
  def __call__(self, x):
    cfg = self.config
    shape = x.shape[-2:] if self.heads else x.shape[-1:]
    flat = (math.prod(shape), self.features)
    kernel = self.param(
      "kernel",
      lambda rng: cfg.kernel_init(rng, flat, cfg.storage_dtype).reshape(
        *shape, self.features
      ),
    )
    bias = self.param(
      "bias", nn.initializers.zeros_init(), (self.features,), cfg.storage_dtype
    )
    x = x.reshape(x.shape[: x.ndim - len(shape)] + flat[:1])
    return attention.dense(x, kernel.reshape(flat), bias)


class LayerNorm(nn.Module):
  """`layer_norm` with its parameters.

  Attributes:
    config: a `ModelConfig`.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, x):
    cfg = self.config
    shape = x.shape[-1:]
    scale = self.param(
      "scale", nn.initializers.ones_init(), shape, cfg.storage_dtype
    )
    bias = self.param(
      "bias", nn.initializers.zeros_init(), shape, cfg.storage_dtype
    )
    return layer_norm(x, scale, bias, cfg.layer_norm_eps)


class Embeddings(nn.Module):
  """Sum of word, position and segment type, normalised, with dropout.

  Attributes:
    config: a `ModelConfig`.

  Source: google-research/bert modeling.py:391-521.
  """

  config: ModelConfig

  def setup(self):
    cfg = self.config
    self.word = cfg.embed(cfg.vocab_size)
    self.position = cfg.embed(cfg.max_len)
    self.type = cfg.embed(cfg.type_vocab_size)
    self.norm = cfg.layer_norm()
    self.dropout = Dropout(cfg.dropout_rate)

  def __call__(self, input_ids, segment_ids, positions, *, deterministic):
    """Maps token ids [B, L] to [B, L, D]; see `Encoder` for the arguments."""
    cfg = self.config
    length = input_ids.shape[1]
    if positions is None and length > cfg.max_len:
      raise ValueError(
        f"input_ids has length {length}, but model.max_len={cfg.max_len} "
        "positions have an embedding; shorten the input or raise max_len"
      )
    if positions is None:
      position = self.position.embedding[:length].astype(cfg.compute_dtype)
      position = position[None]  # [1, L, D]
    else:
      position = look_up(
        self.position.embedding, positions, cfg.compute_dtype
      )  # [B, L, D]
    # Few rows: a matmul, whose transpose is a matmul and not a scatter.
    one_hot = jax.nn.one_hot(
      segment_ids.reshape(-1), cfg.type_vocab_size, dtype=cfg.compute_dtype
    )
    kind = one_hot @ self.type.embedding.astype(cfg.compute_dtype)
    word = look_up(self.word.embedding, input_ids, cfg.compute_dtype)
    x = self.norm(word + kind.reshape(word.shape) + position)
    return self.dropout(x, deterministic=deterministic)


class Mlp(nn.Module):
  """Two dense layers with an activation between: D -> F -> D.

  Attributes:
    config: a `ModelConfig`.
  """

  config: ModelConfig

  def setup(self):
    cfg = self.config
    # `in` is a keyword, so that the two cannot be plain attributes.
    setattr(self, "in", cfg.dense(cfg.mlp_dim))
    self.out = cfg.dense(cfg.hidden_size)

  def __call__(self, x):
    return self.out(self.config.activation(getattr(self, "in")(x)))


class Layer(nn.Module):
  """One Transformer layer, normalised after each residual sum.

  Attributes:
    config: a `ModelConfig`.

  Source: Vaswani et al. 2017, section 3.1; google-research/bert
  modeling.py:754-891.
  """

  config: ModelConfig

  def setup(self):
    cfg = self.config
    self.attention = attention.SelfAttention(cfg)
    self.attention_norm = cfg.layer_norm()
    self.mlp = Mlp(cfg)
    self.mlp_norm = cfg.layer_norm()
    self.dropout = Dropout(cfg.dropout_rate)

  def __call__(self, x, bias, deterministic, only=None):
    """Maps hidden states to hidden states.

    Args:
      x: [B, L, D].
      bias: float32, broadcastable to [B, N, L, L], from `attention_bias`; or
        `attention.Visible`.
      deterministic: True switches dropout off.
      only: [B, Q] positions to compute; None: all. These see all positions.

    Returns:
      [B, L, D], or [B, Q, D] with `only`.
    """
    if only is None:
      y = self.attention(x, bias, deterministic=deterministic)
    else:
      queries = heads.gather_positions(x, only)
      bias = attention.bias_of_queries(bias, only)
      y = self.attention(x, bias, deterministic=deterministic, queries=queries)
      x = queries
    x = self.attention_norm(x + self.dropout(y, deterministic=deterministic))
    y = self.mlp(x)
    x = self.mlp_norm(x + self.dropout(y, deterministic=deterministic))
    return sharding.constrain_batch(x)


def _scan_body(layer, x, bias, deterministic):
  x = layer(x, bias, deterministic)
  return x, x


class Encoder(nn.Module):
  """Token ids to contextual vectors.

  Attributes:
    config: a `ModelConfig`.

  Example:
    variables = Encoder(config).init(rng, input_ids, input_mask, segment_ids)
    hidden, pooled = Encoder(config).apply(
        variables, input_ids, input_mask, segment_ids)

  Source: BERT paper, section 3; google-research/bert modeling.py:107-232.
  """

  config: ModelConfig

  def setup(self):
    cfg = self.config
    self.embeddings = Embeddings(cfg)
    layer = Layer
    if REMATS[cfg.remat] is not None:
      # CSE must be prevented outside of a scan, or XLA undoes the remat.
      layer = nn.remat(
        Layer,
        policy=REMATS[cfg.remat],
        static_argnums=(3,),
        prevent_cse=not cfg.scan_layers,
      )
    if cfg.scan_layers:
      self.layers = layer(cfg)
    else:
      self.layer = [layer(cfg) for _ in range(cfg.num_layers)]
    self.pooler = cfg.dense(cfg.hidden_size)

  def __call__(
    self,
    input_ids,
    input_mask,
    segment_ids,
    *,
    positions=None,
    sequence_ids=None,
    deterministic=True,
    return_layers=False,
    only_positions=None,
  ):
    """Encodes a batch of rows.

    Args:
      input_ids: [B, L] int32 token ids.
      input_mask: [B, L] int32, 1 = real token, 0 = padding.
      segment_ids: [B, L] int32, 0 = first segment, 1 = second.
      positions: [B, L] int32, position of a token in its sequence, for packed
        rows. None: 0..L-1.
      sequence_ids: [B, L] int32, which packed sequence of the row a token
        belongs to, 0 = padding; attention stays within a sequence. None: one
        sequence to a row.
      deterministic: False switches dropout on; needs the rng "dropout".
      return_layers: True adds all hidden states to the result.
      only_positions: [B, P] int32, the only positions whose hidden states the
        caller reads. The last layer is then not computed elsewhere (but in
        the scanned form, where all layers are one program).

    Returns:
      (hidden [B, L, D], pooled [B, D]), with `only_positions` hidden
      [B, P, D]; with `return_layers` also layers [num_layers + 1, B, L, D], the
      output of the embeddings first and `hidden` last. `pooled` is from token
      0 of the row.

    Raises:
      ValueError: if the shapes disagree or L is longer than `max_len`.
    """
    given = {
      "input_mask": input_mask,
      "segment_ids": segment_ids,
      "positions": positions,
      "sequence_ids": sequence_ids,
    }
    for name, value in given.items():
      if value is not None and value.shape != input_ids.shape:
        raise ValueError(
          f"{name} has shape {value.shape}, but input_ids has shape "
          f"{input_ids.shape}; both must be [batch, length]"
        )
    if return_layers and only_positions is not None:
      raise ValueError(
        "return_layers=True gives all positions, but only_positions asks for "
        "some; leave one of them out"
      )
    x = self.embeddings(
      input_ids, segment_ids, positions, deterministic=deterministic
    )
    x = sharding.constrain_batch(x)
    if self.config.attention == "plain" or self.is_initializing():
      bias = attention.attention_bias(input_mask, sequence_ids)
    else:
      bias = attention.Visible(
        attention.attention_bias(input_mask), sequence_ids
      )
    only = only_positions
    if only is not None:
      only = jnp.pad(only, ((0, 0), (1, 0)))  # the pooler reads token 0
    layers = [x]
    if self.config.scan_layers:
      run = nn.scan(
        _scan_body,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, nn.broadcast),
        length=self.config.num_layers,
      )
      x, outputs = run(self.layers, x, bias, deterministic)
      layers.extend(outputs if return_layers else ())
      x = x if only is None else heads.gather_positions(x, only)
    else:
      for i, layer in enumerate(self.layer):
        is_last = i == self.config.num_layers - 1
        x = layer(x, bias, deterministic, only if is_last else None)
        layers.append(x)
    pooled = self.pool(x[:, 0])
    if only is not None:
      return x[:, 1:], pooled
    if not return_layers:
      return x, pooled
    return x, pooled, jnp.stack(layers)

  def pool(self, hidden):
    """What stands for a sequence: the hidden states [..., D] of its [CLS].

    Source: google-research/bert modeling.py:224-232.
    """
    return jnp.tanh(self.pooler(hidden))


class PreTrainingModel(nn.Module):
  """The encoder with both pre-training heads.

  Attributes:
    config: a `ModelConfig`.

  Source: BERT paper, section 3.1.
  """

  config: ModelConfig

  def setup(self):
    self.encoder = Encoder(self.config)
    self.mlm = heads.MlmHead(self.config)
    self.nsp = heads.LinearHead(self.config, 2)

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
      input_ids: [B, L] int32; this and the rest as in `Encoder`.
      input_mask: [B, L] int32.
      segment_ids: [B, L] int32.
      masked_positions: [B, P] int32, the positions to predict.
      positions: [B, L] int32 or None.
      sequence_ids: [B, L] int32 or None.
      cls_positions: [B, S] int32, where the sequences of a packed row begin;
        None: a row is one sequence.
      deterministic: False switches dropout on; needs the rng "dropout".

    Returns:
      (mlm_logits float32 [B, P, V], nsp_logits float32 [B, 2]), with
      `cls_positions` nsp_logits [B, S, 2].
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
    return self.mlm(hidden, None, word_table), self.nsp(pooled)


class TaskModel(nn.Module):
  """The encoder with the head of a task.

  Attributes:
    config: a `ModelConfig`.
    num_outputs: K; 1 of a number or a choice, 2 of a span.
    pooled: the head reads the pooled [CLS] of every sequence, not all tokens.
    head_dropout: dropout before the head, at `config.dropout_rate`.

  Source: BERT paper, section 4 and figure 4; google-research/bert
  run_classifier.py:574-616, run_squad.py:557-600.
  """

  config: ModelConfig
  num_outputs: int
  pooled: bool
  head_dropout: bool = True

  def setup(self):
    self.encoder = Encoder(self.config)
    self.task = heads.LinearHead(self.config, self.num_outputs)
    self.dropout = Dropout(
      self.config.dropout_rate if self.head_dropout else 0.0
    )

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
      input_ids: [B, L] int32; this and the rest as in `Encoder`.
      input_mask: [B, L] int32.
      segment_ids: [B, L] int32.
      cls_positions: [B, S] int32, where the sequences of a row begin; not
        read unless the head reads the pooled output.
      positions: [B, L] int32 or None.
      sequence_ids: [B, L] int32 or None.
      deterministic: False switches dropout on; needs the rng "dropout".

    Returns:
      float32 [B, S, K] with `pooled`, else [B, L, K].
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


def word_table(params):
  """Returns the word embedding [V, D] of any model with an `Encoder`."""
  return params["encoder"]["embeddings"]["word"]["embedding"]


def _with_word_table(params, table):
  encoder = params["encoder"]
  embeddings = encoder["embeddings"] | {"word": {"embedding": table}}
  return params | {"encoder": encoder | {"embeddings": embeddings}}


def tie_gradients(grads, output):
  """Adds the gradient of the table that scores words to that of the words.

  Args:
    grads: of the parameters.
    output: {"word_table": [V, D]}, its gradient in the "output" variables of a
      `PreTrainingModel`; or {}.

  Returns:
    The gradient of the parameters when both uses of the table are one.
  """
  if not output:
    return grads
  return _with_word_table(grads, word_table(grads) + output["word_table"])


def only_words(model, params, input_ids):
  """The same model with a word table that has the words of a batch, no others.

  What differentiation by the small table gives is the gradient of these rows
  of the whole one: a word that occurs twice is looked up in one place.

  Args:
    model: a `TaskModel`, whose word table is looked up and nothing else.
    params: of the model.
    input_ids: [B, L] int32.

  Returns:
    The model and its parameters with a table [B * L, D], a row for every token
    of the batch; and the places [B, L] of its words in there.
  """
  ids = input_ids.reshape(-1)
  table = word_table(params)
  order = jnp.arange(ids.size, dtype=jnp.int32)
  first = jnp.full(len(table), ids.size, jnp.int32).at[ids].min(order)
  return (
    model.clone(config=dataclasses.replace(model.config, vocab_size=ids.size)),
    _with_word_table(params, table[ids]),
    first[ids].reshape(input_ids.shape),
  )


def stack_layers(params):
  """Converts parameters from one tree per layer to the scanned form.

  Args:
    params: parameters of any model with an `Encoder` at any depth: a dict with
      keys "layer_0", "layer_1", ... becomes one with "layers", whose leaves
      have a leading axis [num_layers].

  Returns:
    A new tree; leaves outside of the layers are passed on unchanged.

  Example:
    >>> stack_layers(
    ...   {"layer_0": {"b": jnp.ones(2)}, "layer_1": {"b": jnp.ones(2)}}
    ... )["layers"]["b"].shape
    (2, 2)
  """
  if not isinstance(params, dict):
    return params
  names = [name for name in params if name.startswith("layer_")]
  result = {
    name: stack_layers(value)
    for name, value in params.items()
    if name not in names
  }
  if names:
    names.sort(key=lambda name: int(name.removeprefix("layer_")))
    result["layers"] = jax.tree.map(
      lambda *leaves: jnp.stack(leaves), *[params[name] for name in names]
    )
  return result


def unstack_layers(params):
  """Converts parameters from the scanned form to one tree per layer.

  Args:
    params: as `stack_layers` returns them.

  Returns:
    A new tree: the inverse of `stack_layers`.

  Example:
    >>> sorted(unstack_layers({"layers": {"b": jnp.ones((2, 3))}}))
    ['layer_0', 'layer_1']
  """
  if not isinstance(params, dict):
    return params
  result = {
    name: unstack_layers(value)
    for name, value in params.items()
    if name != "layers"
  }
  if "layers" in params:
    stacked = params["layers"]
    for i in range(jax.tree.leaves(stacked)[0].shape[0]):
      result[f"layer_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
  return result
