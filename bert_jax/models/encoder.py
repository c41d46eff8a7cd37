"""An encoder: embeddings, a stack of Transformer layers, and a pooler.

The switches of a `ModelConfig` decide what kind of encoder it is; without any,
it is BERT.

Shapes: B batch, L length, P masked slots, D hidden, N heads, H head_dim,
F mlp, V vocab, T segment types, E embedding width.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models import layers
from bert_jax.models.attention import masks
from bert_jax.models.attention import positions as relative_positions
from bert_jax.models.attention import programs
from bert_jax.models.attention.self_attention import SelfAttention
from bert_jax.models.config import LayerPlan
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
      [B, L, E], or [1, L, E] without `positions`.
    """
    cfg = self.config
    first = cfg.position_offset
    table = self.param(
      "embedding",
      layers.kernel_init(cfg),
      (cfg.max_len + first, cfg.embedding_width),
      layers.storage_dtype(cfg),
    )
    if positions is not None:
      positions = positions + first if first else positions
      return layers.look_up(table, positions, layers.compute_dtype(cfg))
    table = table[first : first + length]
    return table.astype(layers.compute_dtype(cfg))[None]


# `model.positions` -> a module that is added to the embeddings; None: nothing.
POSITIONS = {"learned": LearnedPositions, "none": None}


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
    position = POSITIONS[cfg.positions]
    self.position = position(cfg) if position else None
    if cfg.type_vocab_size:
      self.type = layers.embed(cfg, cfg.type_vocab_size)
    if cfg.embedding_norm:
      self.norm = layers.NORMS[cfg.norm](cfg)
    if cfg.embedding_size:
      self.projection = layers.Dense(cfg, cfg.hidden_size)
    self.dropout = Dropout(cfg.dropout_rate)

  def __call__(
    self,
    input_ids,
    segment_ids,
    positions,
    *,
    deterministic,
    tables=None,
    word_table=None,
  ):
    """Maps token ids [B, L] to [B, L, D].

    Args:
      input_ids: [B, L] int32; see `Encoder` for this and the others.
      segment_ids: [B, L] int32.
      positions: [B, L] int32 or None.
      deterministic: False switches dropout on.
      tables: the `Embeddings` whose tables and norm are used; None = these.
      word_table: [V, E], a table of words in place of theirs, or None.
    """
    cfg = self.config
    tables = self if tables is None else tables
    if word_table is None:
      word_table = tables.word.embedding
    dtype = layers.compute_dtype(cfg)
    x = layers.look_up(word_table, input_ids, dtype)
    if cfg.type_vocab_size:
      # The table has few rows. A matmul with one-hot vectors is then faster
      # than a lookup, because its gradient is a matmul and not a scatter.
      one_hot = jax.nn.one_hot(
        segment_ids.reshape(-1), cfg.type_vocab_size, dtype=dtype
      )
      kind = one_hot @ tables.type.embedding.astype(dtype)
      x = x + kind.reshape(x.shape)
    if tables.position is not None:
      x = x + tables.position(positions, input_ids.shape[1])
    x = tables.norm(x) if cfg.embedding_norm else x
    if "embeddings" in cfg.dropout_places:
      x = self.dropout(x, deterministic=deterministic)
    return self.projection(x) if cfg.embedding_size else x


class Mlp(nn.Module):
  """Two dense layers with an activation between them: D -> F -> D.

  Attributes:
    config: a `ModelConfig`.
  """

  config: ModelConfig

  def setup(self):
    cfg = self.config
    # `in` is a keyword of Python, so `self.in` is not possible.
    dense = layers.Dense(cfg, cfg.mlp_dim, has_bias=cfg.mlp_in_bias)
    setattr(self, "in", dense)
    self.out = layers.Dense(cfg, cfg.hidden_size, has_bias=cfg.mlp_out_bias)
    self.dropout = Dropout(cfg.dropout_rate)

  def __call__(self, x, deterministic):
    cfg = self.config
    x = layers.ACTIVATIONS[cfg.hidden_act](getattr(self, "in")(x))
    if "mlp_inner" in cfg.dropout_places:
      x = self.dropout(x, deterministic=deterministic)
    return self.out(x)


class GatedMlp(Mlp):
  """An `Mlp` whose inner layer is multiplied by another dense layer.

  Attributes:
    config: a `ModelConfig`.

  Source: Shazeer 2020, arXiv:2002.05202.
  """

  def setup(self):
    super().setup()
    cfg = self.config
    self.gate = layers.Dense(cfg, cfg.mlp_dim, has_bias=cfg.mlp_in_bias)

  def __call__(self, x, deterministic):
    cfg = self.config
    gate = layers.ACTIVATIONS[cfg.hidden_act](self.gate(x))
    x = gate * getattr(self, "in")(x)
    if "mlp_inner" in cfg.dropout_places:
      x = self.dropout(x, deterministic=deterministic)
    return self.out(x)


# `model.feed_forward` -> the module after attention.
FEED_FORWARDS = {"mlp": Mlp, "glu": GatedMlp}


def _norm_behind(norm, sublayer, x, take):
  """Normalises after the residual sum, as BERT does."""
  residual = take(x)
  return norm(residual + sublayer(x, residual))


def _norm_before(norm, sublayer, x, take):
  """Normalises the input of the sublayer.

  Source: Xiong et al. 2020, arXiv:2002.04745.
  """
  normal = norm(x)
  return take(x) + sublayer(normal, take(normal))


# `model.norm_place` -> a function (norm, sublayer, x, take) -> hidden states.
# `take` selects the positions of `x` [B, L, D] to compute. The sublayer maps
# (all hidden states, the selected ones) to the update of the selected ones.
NORM_PLACES = {"post": _norm_behind, "pre": _norm_before}


class Layer(nn.Module):
  """One Transformer layer: attention, then a feed-forward layer.

  Attributes:
    config: a `ModelConfig`.
    plan: what is particular to this layer.

  Source: Vaswani et al. 2017, section 3.1; google-research/bert
  modeling.py:754-891.
  """

  config: ModelConfig
  plan: LayerPlan = LayerPlan()

  def setup(self):
    cfg = self.config
    self.attention = SelfAttention(cfg)
    if self.plan.has_attention_norm:
      self.attention_norm = layers.NORMS[cfg.norm](cfg)
    self.mlp = FEED_FORWARDS[cfg.feed_forward](cfg)
    self.mlp_norm = layers.NORMS[cfg.norm](cfg)
    self.dropout = Dropout(cfg.dropout_rate)

  def __call__(self, x, bias, deterministic, only=None, turns=None):
    """Maps hidden states to hidden states.

    Args:
      x: [B, L, D].
      bias: the mask: a float32 bias, broadcastable to [B, N, L, L], or
        `masks.Visible`, `masks.Window` or `masks.Before`.
      deterministic: True switches dropout off.
      only: [B, Q], the positions to compute, which see all positions; None: all
        positions.
      turns: the rotations of all positions, from `positions.rotation`, or the
        vectors and rows of a table of distances, or None.

    Returns:
      [B, L, D], or [B, Q, D] with `only`.
    """
    cfg = self.config
    add = NORM_PLACES[cfg.norm_place]
    of_queries = turns
    if only is not None:
      bias = (
        masks.window_bias(bias, cfg.local_radius, only)
        if isinstance(bias, masks.Window)
        else masks.bias_of_queries(bias, only)
      )
      of_queries = relative_positions.of_queries(cfg, turns, only)

    def take(x):
      return x if only is None else layers.gather_positions(x, only)

    def drop(place, x):
      if place not in cfg.dropout_places:
        return x
      return self.dropout(x, deterministic=deterministic)

    def attend(x, queries):
      queries = None if only is None else queries
      y = self.attention(
        x,
        bias,
        deterministic=deterministic,
        queries=queries,
        turns=None if turns is None else (of_queries, turns),
      )
      return drop("attention", y)

    def feed_forward(x, _):
      return drop("mlp", self.mlp(x, deterministic))

    def same(x):
      return x

    first = self.attention_norm if self.plan.has_attention_norm else same
    x = add(first, attend, x, take)
    x = add(self.mlp_norm, feed_forward, x, same)
    return sharding.constrain_batch(x)


class Convolution(nn.Module):
  """A convolution of the embeddings that is added to the first layer's result.

  Each sequence is convolved alone: beyond its ends there are zeros.

  Attributes:
    config: a `ModelConfig`.

  Source: He et al. 2021, arXiv:2006.03654, section A.6; microsoft/DeBERTa.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, x, added, ids, deterministic):
    """Returns norm(added + act(convolution(x))).

    Args:
      x: [B, L, D], the output of the embeddings.
      added: [B, L, D], the output of the first layer.
      ids: [B, L] int32, the number of each token's sequence, 0 = padding.
      deterministic: True switches dropout off.

    Returns:
      [B, L, D].
    """
    cfg = self.config
    size, groups = cfg.conv_size, cfg.conv_groups
    width, half = cfg.hidden_size // groups, size // 2
    kernel = layers.kernel(
      self, (size, width, cfg.hidden_size), (size * width, cfg.hidden_size)
    )
    bias = layers.bias(self, (cfg.hidden_size,))
    ends = ((0, 0), (half, half))
    wide, numbers = jnp.pad(x, (*ends, (0, 0))), jnp.pad(ids, ends)
    taps = []
    for i in range(size):
      near = numbers[:, i : i + x.shape[1]]
      is_seen = (near == ids) & (ids > 0)
      tap = wide[:, i : i + x.shape[1]] * is_seen[..., None].astype(x.dtype)
      taps.append(tap.reshape(*x.shape[:2], groups, width))
    # [B, L, G, size * D / G] and [size * D / G, D], a product for each group.
    joined = jnp.concatenate(taps, -1)
    parts = jnp.split(kernel.reshape(size * width, -1), groups, -1)
    outs = [layers.multiply(joined[:, :, i], p) for i, p in enumerate(parts)]
    y = jnp.concatenate(outs, -1) + bias.astype(x.dtype)[None, None]
    y = y * (ids > 0)[..., None].astype(x.dtype)
    y = Dropout(cfg.dropout_rate, name="dropout")(
      y, deterministic=deterministic
    )
    y = added + layers.ACTIVATIONS[cfg.conv_act](y)
    return layers.NORMS[cfg.norm](cfg, name="norm")(y)


# These are functions, because the names of methods would become parts of the
# names of operations.


def _check_inputs(
  cfg, input_ids, positions, only_positions, return_layers, **arrays
):
  """Raises ValueError if an encoder cannot take its arguments."""
  for name, value in (arrays | {"positions": positions}).items():
    if value is not None and value.shape != input_ids.shape:
      raise ValueError(
        f"{name} has shape {value.shape}, but input_ids has shape "
        f"{input_ids.shape}; both must be [batch, length]"
      )
  if return_layers and only_positions is not None:
    raise ValueError(
      "return_layers=True returns all positions, but only_positions selects "
      "some; leave one of them out"
    )
  length = input_ids.shape[1]
  if positions is None and length > cfg.max_len:
    raise ValueError(
      f"input_ids has length {length}, but model.max_len={cfg.max_len} "
      "positions have an embedding; shorten the input or raise max_len"
    )


def _masks_and_turns(
  encoder, input_mask, sequence_ids, positions, deterministic
):
  """Returns what attention gets beside the hidden states.

  Returns:
    Whether a layer is local -> its mask; and the same for the rotations, or
    for a table of distances, or None if the model has neither.
  """
  cfg, length = encoder.config, input_mask.shape[1]
  takes_bias = programs.program_of(cfg).takes_bias or encoder.is_initializing()
  of_far = "causal" if cfg.attention_pattern == "causal" else "full"
  mask = {
    is_local: masks.PATTERNS["local" if is_local else of_far](
      input_mask, sequence_ids, takes_bias
    )
    for is_local in sorted({plan.is_local for plan in cfg.layer_plans})
  }
  row = relative_positions.row_of(cfg.attention_positions)
  if row.bias:
    bias = encoder.relative(length)
    mask = {
      is_local: bias
      + (masks.window_bias(one, cfg.local_radius) if is_local else one)
      for is_local, one in mask.items()
    }
  turns = relative_positions.rotations(cfg, positions, length)
  if row.table:
    turns = dict.fromkeys(mask, encoder.relative(length, deterministic))
  return mask, turns


def _run_unrolled(encoder, x, mask, turns, deterministic, only, keep, ids):
  """Runs all layers of an encoder one after the other.

  Returns:
    The last hidden states, at the positions `only` unless that is None; and
    with `keep` all hidden states [num_layers + 1, B, L, D], embeddings first.
  """
  states = [x]
  plans = encoder.config.layer_plans
  for i, plan in enumerate(plans):
    convolve = encoder.config.conv_size and i == 0
    is_last = i == len(plans) - 1
    x = encoder.layer[plan.params](
      x,
      mask[plan.is_local],
      deterministic,
      only if is_last and not convolve else None,
      turns and turns[plan.is_local],
    )
    if convolve:
      x = encoder.conv(states[0], x, ids, deterministic)
      if is_last and only is not None:
        x = layers.gather_positions(x, only)
    states.append(x)
  return x, states if keep else None


def _run_scanned(encoder, x, mask, turns, deterministic, only, keep, ids):
  """Does the same as `_run_unrolled` by a loop over one compiled layer."""
  del ids  # no scanned model has a convolution
  run = nn.scan(
    _scan_body,
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
    length=encoder.config.num_layers,
  )
  is_local = encoder.config.layer_plans[0].is_local
  last, outputs = run(
    encoder.layers, x, mask[is_local], deterministic, turns and turns[is_local]
  )
  states = [x, *outputs] if keep else None
  return last if only is None else layers.gather_positions(last, only), states


def _scan_body(layer, x, bias, deterministic, turns):
  x = layer(x, bias, deterministic, None, turns)
  return x, x


def _computed_positions(cfg, only_positions):
  """Returns the positions that the last layer computes, or None for all."""
  if only_positions is None or not cfg.pooler:
    return only_positions
  return jnp.pad(only_positions, ((0, 0), (1, 0)))  # token 0, for the pooler


def _sequence_numbers(input_mask, sequence_ids):
  """Returns the number of each token's sequence [B, L], 0 = padding."""
  if sequence_ids is None:
    return input_mask
  return sequence_ids * (input_mask > 0)


def _results(x, pooled, states, only_positions):
  """Returns what a call of the encoder returns."""
  if only_positions is not None:
    return x if pooled is None else x[:, 1:], pooled
  if states is None:
    return x, pooled
  return x, pooled, jnp.stack([*states[:-1], x])


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
    plans = cfg.layer_plans
    if cfg.scan_layers:
      self.layers = layer(cfg, plans[0])
    else:
      own = {plan.params: plan for plan in reversed(plans)}
      self.layer = [layer(cfg, own[i]) for i in range(cfg.num_own_layers)]
    if cfg.conv_size:
      self.conv = Convolution(cfg)
    if cfg.norm_place == "pre":
      self.final_norm = layers.NORMS[cfg.norm](cfg)
    row = relative_positions.row_of(cfg.attention_positions)
    if relative := row.bias or row.table:
      self.relative = relative(cfg)
    if cfg.pooler:
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
    tables=None,
    word_table=None,
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
      tables: the `Embeddings` of another encoder to read, or None.
      word_table: [V, E], a table of words in place of the own one, or None.

    Returns:
      (hidden [B, L, D], pooled [B, D]). `hidden` is [B, P, D] with
      `only_positions`, and `pooled` comes from token 0 of the row; it is None
      if the model has no pooler. With `return_layers` also layers [num_layers +
      1, B, L, D], the output of the embeddings first and `hidden` last.

    Raises:
      ValueError: if the shapes disagree or L is longer than `max_len`.
    """
    cfg = self.config
    _check_inputs(
      cfg,
      input_ids,
      positions,
      only_positions,
      return_layers,
      input_mask=input_mask,
      segment_ids=segment_ids,
      sequence_ids=sequence_ids,
    )
    x = self.embeddings(
      input_ids,
      segment_ids,
      positions,
      deterministic=deterministic,
      tables=tables,
      word_table=word_table,
    )
    x = sharding.constrain_batch(x)
    mask, turns = _masks_and_turns(
      self, input_mask, sequence_ids, positions, deterministic
    )
    only = _computed_positions(cfg, only_positions)
    ids = _sequence_numbers(input_mask, sequence_ids)
    run = _run_scanned if cfg.scan_layers else _run_unrolled
    x, states = run(
      self, x, mask, turns, deterministic, only, return_layers, ids
    )
    if cfg.norm_place == "pre":
      x = self.final_norm(x)
    pooled = self.pool(x[:, 0]) if cfg.pooler else None
    return _results(x, pooled, states, only_positions)

  def pool(self, hidden):
    """Maps the hidden states [..., D] of [CLS] to vectors of the sequences.

    Source: google-research/bert modeling.py:224-232.
    """
    return jnp.tanh(self.pooler(hidden))
