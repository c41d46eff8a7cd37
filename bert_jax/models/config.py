"""The shape and the arithmetic of a model, as checked data without jax.

This file lists the names that a key may have; the function or module of each
name is a row of a table in `layers.py`, `attention/programs.py` or
`encoder.py`.
"""

import dataclasses
from typing import TYPE_CHECKING

from bert_jax.models import families
from bert_jax.runtime import settings

SIZES = (
  "vocab_size", "num_layers", "hidden_size", "num_heads", "mlp_dim", "max_len",
  "type_vocab_size",
)  # fmt: skip
# The keys that every file of weights tells of its model, beside family and
# switches.
MODEL_KEYS = (*SIZES, "hidden_act", "layer_norm_eps")
# Each is a key of `layers.ACTIVATIONS`.
ACTIVATIONS = ("gelu_tanh", "gelu_erf", "relu", "silu", "tanh")
# Each is a key of `attention.programs.PROGRAMS`.
ATTENTIONS = ("plain", "fused", "fused_qkv", "splash", "cudnn")
# Each is a key of `encoder.REMATS`.
REMATS = ("none", "full", "dots")
DTYPES = ("float32", "bfloat16", "float16")
# `model.feed_forward` -> its number of matrices [D, F] or [F, D].
FEED_FORWARD_MATRICES = {"mlp": 2, "glu": 3}
DROPOUT_PLACES = ("embeddings", "attention", "mlp", "mlp_inner", "head_input")
# Switches of the encoder: key -> names, each of which is a key of a table.
SWITCHES = {
  "norm": ("layer_norm", "rms_norm"),  # layers.NORMS
  "norm_place": ("post", "pre"),  # encoder.NORM_PLACES
  "positions": ("learned", "none"),  # encoder.POSITIONS
  # attention.positions.ROWS
  "attention_positions": (
    "none",
    "rope",
    "rope_pairs",
    "alibi",
    "t5",
    "disentangled",
  ),
  "feed_forward": tuple(FEED_FORWARD_MATRICES),  # encoder.FEED_FORWARDS
  "attention_pattern": ("full", "local", "causal"),  # attention.masks.PATTERNS
  "pooling": ("first", "last", "mean", "late"),
  "mlm_head": ("transform", "bare"),
}
# Values of `attention_positions` by which layers project a table of distances.
DISTANCE_TABLES = ("disentangled",)
# Key of the config group `model` -> its row.
_ROWS = {
  name.removeprefix("model."): key
  for name, key in settings.KEYS.items()
  if name.startswith("model.")
}
# The keys that weights decide and that the configs of older runs lack. The
# defaults are BERT's, so that these configs still work.
EXTRAS = tuple(
  name
  for name in settings.SHAPE_KEYS
  if _ROWS[name].before is not None and name != "family"
)


@dataclasses.dataclass(frozen=True)
class LayerPlan:
  """How a layer differs from the others of its encoder.

  Attributes:
    is_local: whether its attention sees only near tokens.
    has_attention_norm: whether a norm belongs to its attention.
    params: the number of the layer whose parameters it uses.
  """

  is_local: bool = False
  has_attention_norm: bool = True
  params: int = 0


if TYPE_CHECKING:
  _Fields = settings.Model
else:
  _Fields = dataclasses.make_dataclass(
    "_Fields",
    [(name, _ROWS[name].type) for name in MODEL_KEYS]
    + [
      (name, row.type, row.default)
      for name, row in _ROWS.items()
      if name not in MODEL_KEYS
    ],
    frozen=True,
  )
# By another name: a type checker knows the fields from `settings.Group`.
_dataclass = dataclasses.dataclass(frozen=True)


@_dataclass
class ModelConfig(_Fields):
  """Shape and arithmetic of one model; the config group `model`, checked.

  Its attributes are the rows of the class `Model` in runtime/settings.py, which
  explains them. Those of `MODEL_KEYS` have no default.
  """

  @classmethod
  def from_config(cls, config_model):
    """Builds the checked dataclass from a mapping with its keys.

    Args:
      config_model: `ml_collections.ConfigDict` or dict, the group `model`. It
        has all keys, except that the family and `EXTRAS` may be missing. A
        vocab_size of None stands for that of the original.

    Raises:
      ValueError: if a key is missing or unknown, or its value is out of range.
    """
    wanted = {field.name for field in dataclasses.fields(cls)}
    given = set(config_model.keys())
    missing = wanted - given - {"family", *EXTRAS}
    if missing or given - wanted:
      raise ValueError(
        f"config.model lacks {sorted(missing)} and has unknown "
        f"{sorted(given - wanted)}; its keys must be {sorted(wanted)}"
      )
    values = {name: config_model[name] for name in given}
    if values["vocab_size"] is None:
      values["vocab_size"] = settings.VOCAB_SIZE
    return cls(**values)

  def __post_init__(self):
    object.__setattr__(self, "dropout_places", tuple(self.dropout_places))
    for name, row in _ROWS.items():
      value, least = getattr(self, name), min(row.least or 0, 1)
      is_int = isinstance(value, int) and not isinstance(value, bool)
      if row.type is int and (not is_int or value < least):
        raise ValueError(f"model.{name}={value!r} is not a positive integer")
      if row.type is bool and not isinstance(value, bool):
        raise ValueError(f"model.{name}={value!r} is not True or False")
    width, heads = self.hidden_size, self.num_heads
    if width % heads:
      divisors = [n for n in range(1, width + 1) if width % n == 0]
      nearest = min(divisors, key=lambda n: abs(n - heads))
      raise ValueError(
        f"model.hidden_size={width} is not divisible by model.num_heads={heads}"
        f"; use num_heads={nearest}, or change hidden_size"
      )
    for name in ("dropout_rate", "attention_dropout_rate"):
      if not 0.0 <= getattr(self, name) < 1.0:
        raise ValueError(
          f"model.{name}={getattr(self, name)} is not a probability below 1; "
          "use 0.0 to switch it off, or 0.1 as in the paper"
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
      ("family", tuple(families.FAMILIES)),
      ("head_act", ("", *ACTIVATIONS)),
      ("conv_act", ACTIVATIONS),
      *SWITCHES.items(),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f"model.{name}={getattr(self, name)!r} is unknown; choose one of "
          f"{', '.join(known)}"
        )
    self._check_layers()
    self._check_attention()
    self._check_convolution()

  def _check_layers(self):
    """Raises ValueError for norms and layers that do not fit each other."""
    if odd := set(self.dropout_places) - set(DROPOUT_PLACES):
      raise ValueError(
        f"model.dropout_places has {', '.join(sorted(map(str, odd)))}; choose "
        f"from {', '.join(DROPOUT_PLACES)}"
      )
    if not self.first_norm and self.norm_place != "pre":
      raise ValueError(
        "model.first_norm=False needs model.norm_place=pre, where the norm of "
        "the embeddings already normalizes the input of the first layer; set "
        "first_norm=True"
      )
    is_narrow = self.embedding_width != self.hidden_size
    if self.mlm_head == "bare" and self.tied_words and is_narrow:
      raise ValueError(
        f"model.embedding_size={self.embedding_size} is not hidden_size="
        f"{self.hidden_size}, so that model.mlm_head=bare cannot use the word "
        "table as its decoder; set mlm_head=transform or tied_words=False"
      )
    if self.layer_groups > self.num_layers:
      raise ValueError(
        f"model.layer_groups={self.layer_groups} is more than model.num_layers="
        f"{self.num_layers}; set it to a smaller number, or to 0, with which "
        "every layer has its own parameters"
      )
    if self.scan_layers and (
      self.layer_groups
      or self.attention_pattern == "local"
      or not self.first_norm
      or self.conv_size
    ):
      raise ValueError(
        "model.scan_layers=True compiles one layer for all, but by "
        "model.attention_pattern, first_norm, layer_groups or conv_size these "
        "layers differ, or share parameters; set scan_layers=False"
      )

  def _check_attention(self):
    """Raises ValueError for heads and positions that do not fit."""
    if self.attention_positions.startswith("rope") and self.head_dim % 2:
      raise ValueError(
        f"model.attention_positions={self.attention_positions} rotates pairs "
        f"of dimensions, but a head has {self.head_dim}; change num_heads or "
        "hidden_size"
      )
    if (
      self.attention_pattern == "local"
      and self.attention_positions in DISTANCE_TABLES
    ):
      raise ValueError(
        f"model.attention_positions={self.attention_positions} does not work "
        "with local attention; set model.attention_pattern=full"
      )
    least = self.relative_buckets // 4
    if self.attention_positions == "t5" and self.relative_distance <= least:
      raise ValueError(
        f"model.relative_distance={self.relative_distance}, but the first "
        f"{least} distances have a bucket each (model.relative_buckets="
        f"{self.relative_buckets}); set it to more than {least}"
      )
    if self.relative_buckets % 2:
      raise ValueError(
        f"model.relative_buckets={self.relative_buckets} is odd; half of the "
        "buckets belong to each direction"
      )
    if self.num_kv_heads and self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"model.num_kv_heads={self.num_kv_heads} does not divide "
        f"model.num_heads={self.num_heads}, so that the heads of queries "
        "cannot share those of keys and values evenly; set a divisor, or 0, "
        "with which each head has its own"
      )

  def _check_convolution(self):
    """Raises ValueError for a convolution that does not fit the model."""
    if self.conv_size and self.conv_size % 2 == 0:
      raise ValueError(
        f"model.conv_size={self.conv_size} is even, so that the convolution "
        "has no middle; set it to an odd number, or to 0 for none"
      )
    if self.conv_size and self.attention_pattern == "causal":
      raise ValueError(
        f"model.conv_size={self.conv_size} lets a token see those behind it, "
        "which model.attention_pattern=causal hides; set conv_size=0"
      )
    if self.head_lstm_layers and self.hidden_size % 2:
      raise ValueError(
        f"model.head_lstm_layers={self.head_lstm_layers} reads a sequence in "
        "two directions, each with half of the width, but model.hidden_size="
        f"{self.hidden_size} is odd; make it even"
      )
    if self.hidden_size % self.conv_groups:
      raise ValueError(
        f"model.conv_groups={self.conv_groups} does not divide "
        f"model.hidden_size={self.hidden_size}; set it to a divisor"
      )

  @property
  def layer_plans(self) -> tuple[LayerPlan, ...]:
    """What is particular to each layer, in their order."""
    groups = self.layer_groups or self.num_layers
    return tuple(
      LayerPlan(
        is_local=self.attention_pattern == "local" and i % self.full_every > 0,
        has_attention_norm=self.first_norm or i > 0,
        params=i * groups // self.num_layers,
      )
      for i in range(self.num_layers)
    )

  @property
  def num_own_layers(self) -> int:
    """The number of layers that have parameters of their own."""
    return self.layer_groups or self.num_layers

  @property
  def embedding_width(self) -> int:
    """E, the width of the tables of the embeddings."""
    return self.embedding_size or self.hidden_size

  @property
  def key_heads(self) -> int:
    """The number of heads of keys and values."""
    return self.num_kv_heads or self.num_heads

  @property
  def head_dim(self):
    """H, the width of one attention head."""
    return self.hidden_size // self.num_heads
