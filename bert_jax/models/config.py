"""The shape and the arithmetic of a model, as checked data without jax.

This file lists the names that a key may have; the function or module of each
name is a row of a table in `layers.py`, `attention/programs.py` or
`encoder.py`.
"""

import dataclasses

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
ATTENTIONS = ("plain", "fused", "fused_qkv", "splash")
# Each is a key of `encoder.REMATS`.
REMATS = ("none", "full", "dots")
DTYPES = ("float32", "bfloat16", "float16")
# `model.feed_forward` -> its number of matrices [D, F] or [F, D].
FEED_FORWARD_MATRICES = {"mlp": 2}
# Switches of the encoder: key -> names, each of which is a key of a table. The
# defaults are BERT's, so that the configs of older runs, which lack the
# switches, still work.
SWITCHES = {
  "norm": ("layer_norm",),  # layers.NORMS
  "norm_place": ("post",),  # encoder.NORM_PLACES
  "positions": ("learned",),  # encoder.POSITIONS
  "feed_forward": tuple(FEED_FORWARD_MATRICES),  # encoder.FEED_FORWARDS
  "attention_pattern": ("full",),  # attention.masks.PATTERNS
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape and arithmetic of one model; the config group `model`, checked.

  Attributes:
    vocab_size: V, rows of the word embedding.
    num_layers: number of Transformer layers.
    hidden_size: D, the width of the hidden states.
    num_heads: N, the number of attention heads; divides `hidden_size`.
    mlp_dim: F, the width of the inner layer of the MLP.
    max_len: rows of the position embedding, the longest L.
    type_vocab_size: T, rows of the segment type embedding.
    hidden_act: the activation of the MLP, one of `ACTIVATIONS`.
    layer_norm_eps: the number that layer norms add to the variance.
    dropout_rate: the rate after the embeddings, the attention and the MLP.
    attention_dropout_rate: the rate on the attention probabilities.
    init_stddev: the standard deviation of fresh kernels, before truncation at
      two standard deviations.
    dtype: the dtype of the computation.
    param_dtype: the dtype of the stored parameters.
    scan_layers: whether to compile one layer and loop over stacked parameters.
    remat: what the backward pass computes again, one of `REMATS`.
    attention: the attention program, one of `ATTENTIONS`.
    family: a key of `families.FAMILIES`.
    norm: how hidden states are normalised.
    norm_place: where they are normalised, relative to a residual sum.
    positions: how a token's position is encoded.
    feed_forward: the layer after attention.
    attention_pattern: which tokens of its sequence a token sees.
  """

  vocab_size: int
  num_layers: int
  hidden_size: int
  num_heads: int
  mlp_dim: int
  max_len: int
  type_vocab_size: int
  hidden_act: str
  layer_norm_eps: float
  dropout_rate: float = 0.1
  attention_dropout_rate: float = 0.1
  init_stddev: float = 0.02
  dtype: str = "float32"
  param_dtype: str = "float32"
  scan_layers: bool = False
  remat: str = "none"
  attention: str = "plain"
  family: str = "bert"
  norm: str = "layer_norm"
  norm_place: str = "post"
  positions: str = "learned"
  feed_forward: str = "mlp"
  attention_pattern: str = "full"

  @classmethod
  def from_config(cls, config_model):
    """Builds the checked dataclass from a mapping with its keys.

    Args:
      config_model: `ml_collections.ConfigDict` or dict, the group `model`. It
        has all keys, except that the family and `SWITCHES` may be missing. A
        vocab_size of None stands for that of the original.

    Raises:
      ValueError: if a key is missing or unknown, or its value is out of range.
    """
    wanted = {field.name for field in dataclasses.fields(cls)}
    given = set(config_model.keys())
    missing = wanted - given - {"family", *SWITCHES}
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
    for name in SIZES:
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"model.{name}={value!r} is not a positive integer")
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
      *SWITCHES.items(),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f"model.{name}={getattr(self, name)!r} is unknown; choose one of "
          f"{', '.join(known)}"
        )

  @property
  def head_dim(self):
    """H, the width of one attention head."""
    return self.hidden_size // self.num_heads
