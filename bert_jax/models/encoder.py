"""BERT: embeddings, a stack of Transformer layers, and a pooler.

Shapes: B batch, L length, P masked slots, D hidden, N heads, H head_dim,
F mlp, V vocab, T segment types.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models import layers
from bert_jax.models.attention import masks
from bert_jax.models.attention import programs
from bert_jax.models.attention.self_attention import SelfAttention
from bert_jax.models.config import ModelConfig
from bert_jax.models.dropout import Dropout
from bert_jax.runtime import sharding

# `model.remat` -> the policy of what the backward pass keeps.
REMATS = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class LearnedPositions(nn.Module):
  """A table with a vector for each position up to `max_len`.

  Attributes:
    config: a `ModelConfig`.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, positions, length):
    """Returns the vectors of positions.

    Args:
      positions: [B, L] int32; None: 0..L-1 in every row.
      length: L.

    Returns:
      [B, L, D], or [1, L, D] without `positions`.
    """
    cfg = self.config
    table = self.param(
      "embedding",
      layers.kernel_init(cfg),
      (cfg.max_len, cfg.hidden_size),
      layers.storage_dtype(cfg),
    )
    if positions is not None:
      return layers.look_up(table, positions, layers.compute_dtype(cfg))
    if length > cfg.max_len:
      raise ValueError(
        f"input_ids has length {length}, but model.max_len={cfg.max_len} "
        "positions have an embedding; shorten the input or raise max_len"
      )
    return table[:length].astype(layers.compute_dtype(cfg))[None]


# `model.positions` -> a module that is added to the embeddings.
POSITIONS = {"learned": LearnedPositions}


class Embeddings(nn.Module):
  """The normalised sum of word, position and segment type, with dropout.

  Attributes:
    config: a `ModelConfig`.

  Source: google-research/bert modeling.py:391-521.
  """

  config: ModelConfig

  def setup(self):
    cfg = self.config
    self.word = layers.embed(cfg, cfg.vocab_size)
    self.position = POSITIONS[cfg.positions](cfg)
    self.type = layers.embed(cfg, cfg.type_vocab_size)
    self.norm = layers.NORMS[cfg.norm](cfg)
    self.dropout = Dropout(cfg.dropout_rate)

  def __call__(self, input_ids, segment_ids, positions, *, deterministic):
    """Maps token ids [B, L] to [B, L, D]; see `Encoder` for the arguments."""
    cfg = self.config
    dtype = layers.compute_dtype(cfg)
    position = self.position(positions, input_ids.shape[1])
    # The table has few rows. A matmul with one-hot vectors is then faster than
    # a lookup, because its gradient is a matmul and not a scatter.
    one_hot = jax.nn.one_hot(
      segment_ids.reshape(-1), cfg.type_vocab_size, dtype=dtype
    )
    kind = one_hot @ self.type.embedding.astype(dtype)
    word = layers.look_up(self.word.embedding, input_ids, dtype)
    x = self.norm(word + kind.reshape(word.shape) + position)
    return self.dropout(x, deterministic=deterministic)


class Mlp(nn.Module):
  """Two dense layers with an activation between them: D -> F -> D.

  Attributes:
    config: a `ModelConfig`.
  """

  config: ModelConfig

  def setup(self):
    cfg = self.config
    # `in` is a keyword of Python, so `self.in` is not possible.
    setattr(self, "in", layers.Dense(cfg, cfg.mlp_dim))
    self.out = layers.Dense(cfg, cfg.hidden_size)

  def __call__(self, x):
    return self.out(
      layers.ACTIVATIONS[self.config.hidden_act](getattr(self, "in")(x))
    )


# `model.feed_forward` -> the module after attention.
FEED_FORWARDS = {"mlp": Mlp}


def _norm_behind(norm, sublayer, x, take):
  """Normalises after the residual sum, as BERT does."""
  residual = take(x)
  return norm(residual + sublayer(x, residual))


# `model.norm_place` -> a function (norm, sublayer, x, take) -> hidden states.
# `take` selects the positions of `x` [B, L, D] to compute. The sublayer maps
# (all hidden states, the selected ones) to the update of the selected ones.
NORM_PLACES = {"post": _norm_behind}


class Layer(nn.Module):
  """One Transformer layer: attention, then a feed-forward layer.

  Attributes:
    config: a `ModelConfig`.

  Source: Vaswani et al. 2017, section 3.1; google-research/bert
  modeling.py:754-891.
  """

  config: ModelConfig

  def setup(self):
    cfg = self.config
    self.attention = SelfAttention(cfg)
    self.attention_norm = layers.NORMS[cfg.norm](cfg)
    self.mlp = FEED_FORWARDS[cfg.feed_forward](cfg)
    self.mlp_norm = layers.NORMS[cfg.norm](cfg)
    self.dropout = Dropout(cfg.dropout_rate)

  def __call__(self, x, bias, deterministic, only=None):
    """Maps hidden states to hidden states.

    Args:
      x: [B, L, D].
      bias: the mask: a float32 bias, broadcastable to [B, N, L, L], or
        `masks.Visible`.
      deterministic: True switches dropout off.
      only: [B, Q], the positions to compute, which see all positions; None: all
        positions.

    Returns:
      [B, L, D], or [B, Q, D] with `only`.
    """
    add = NORM_PLACES[self.config.norm_place]
    if only is not None:
      bias = masks.bias_of_queries(bias, only)

    def take(x):
      return x if only is None else layers.gather_positions(x, only)

    def attend(x, queries):
      queries = None if only is None else queries
      y = self.attention(x, bias, deterministic=deterministic, queries=queries)
      return self.dropout(y, deterministic=deterministic)

    def feed_forward(x, _):
      return self.dropout(self.mlp(x), deterministic=deterministic)

    x = add(self.attention_norm, attend, x, take)
    x = add(self.mlp_norm, feed_forward, x, lambda x: x)
    return sharding.constrain_batch(x)


def _check_shapes(input_ids, **arrays):
  """Raises ValueError if an array has another shape than `input_ids`."""
  for name, value in arrays.items():
    if value is not None and value.shape != input_ids.shape:
      raise ValueError(
        f"{name} has shape {value.shape}, but input_ids has shape "
        f"{input_ids.shape}; both must be [batch, length]"
      )


# These are functions, because the names of methods would become parts of the
# names of operations.


def _run_unrolled(encoder, x, mask, deterministic, only, keep):
  """Runs all layers of an encoder one after the other.

  Returns:
    The last hidden states, at the positions `only` unless that is None; and
    with `keep` all hidden states [num_layers + 1, B, L, D], embeddings first.
  """
  states = [x]
  for i, layer in enumerate(encoder.layer):
    is_last = i == encoder.config.num_layers - 1
    x = layer(x, mask, deterministic, only if is_last else None)
    states.append(x)
  return x, jnp.stack(states) if keep else None


def _run_scanned(encoder, x, mask, deterministic, only, keep):
  """Does the same as `_run_unrolled` by a loop over one compiled layer."""
  run = nn.scan(
    _scan_body,
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=(nn.broadcast, nn.broadcast),
    length=encoder.config.num_layers,
  )
  last, outputs = run(encoder.layers, x, mask, deterministic)
  states = jnp.concatenate([x[None], outputs]) if keep else None
  return last if only is None else layers.gather_positions(last, only), states


def _scan_body(layer, x, bias, deterministic):
  x = layer(x, bias, deterministic)
  return x, x


class Encoder(nn.Module):
  """Maps token ids to contextual vectors.

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
      # Outside of a scan, common-subexpression elimination would undo the
      # remat.
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
    self.pooler = layers.Dense(cfg, cfg.hidden_size)

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
      positions: [B, L] int32, the position of each token in its sequence, for
        packed rows. None: 0..L-1.
      sequence_ids: [B, L] int32, the number of the packed sequence that each
        token belongs to, 0 = padding; attention stays within a sequence. None:
        each row is one sequence.
      deterministic: False switches dropout on; needs the rng "dropout".
      return_layers: True adds all hidden states to the result.
      only_positions: [B, P] int32, the only positions whose hidden states the
        caller needs. The last layer is then computed at these positions only,
        except for scanned layers, which share one program.

    Returns:
      (hidden [B, L, D], pooled [B, D]). `hidden` is [B, P, D] with
      `only_positions`, and `pooled` comes from token 0 of the row. With
      `return_layers` also layers [num_layers + 1, B, L, D], the output of the
      embeddings first and `hidden` last.

    Raises:
      ValueError: if the shapes disagree or L is longer than `max_len`.
    """
    _check_shapes(
      input_ids,
      input_mask=input_mask,
      segment_ids=segment_ids,
      positions=positions,
      sequence_ids=sequence_ids,
    )
    if return_layers and only_positions is not None:
      raise ValueError(
        "return_layers=True returns all positions, but only_positions selects "
        "some; leave one of them out"
      )
    x = self.embeddings(
      input_ids, segment_ids, positions, deterministic=deterministic
    )
    x = sharding.constrain_batch(x)
    takes_bias = programs.program_of(self.config).takes_bias
    mask = masks.PATTERNS[self.config.attention_pattern](
      input_mask, sequence_ids, takes_bias or self.is_initializing()
    )
    only = only_positions
    if only is not None:
      only = jnp.pad(only, ((0, 0), (1, 0)))  # token 0, for the pooler
    run = _run_scanned if self.config.scan_layers else _run_unrolled
    x, states = run(self, x, mask, deterministic, only, return_layers)
    pooled = self.pool(x[:, 0])
    if only is not None:
      return x[:, 1:], pooled
    if not return_layers:
      return x, pooled
    return x, pooled, states

  def pool(self, hidden):
    """Maps the hidden states [..., D] of [CLS] to vectors of the sequences.

    Source: google-research/bert modeling.py:224-232.
    """
    return jnp.tanh(self.pooler(hidden))
