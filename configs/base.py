"""Where every config file starts: all keys with their defaults, and sizes.

docs/config.md lists the keys, and bert_jax/runtime/settings.py defines them.
The other files of this folder start from here and change values, never keys,
so a mistyped `--config.group.key` is an error in all of them.
"""

import ml_collections

from bert_jax.runtime import settings

SHARDING_RULES = settings.SHARDING_RULES

# name: (num_layers, hidden_size, num_heads). The MLP is 4 x hidden_size wide.
# tiny .. medium and every "L_H" are the 24 released small models
# (arXiv:1908.08962, table 1); base and large are the paper's (section 3).
SIZES = (
  {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
  }
  | {
    f"L{layers}_H{hidden}": (layers, hidden, hidden // 64)
    for layers in (2, 4, 6, 8, 10, 12)
    for hidden in (128, 256, 512, 768)
  }
  | {
    # The rest of the paper's size ablation (table 6).
    "L3_H768": (3, 768, 12),
    "L6_H768_A3": (6, 768, 3),
    "L12_H1024": (12, 1024, 16),
    # 1.3 billion parameters.
    "L24_H2048": (24, 2048, 32),
  }
)


def set_size(config: ml_collections.ConfigDict, size: str) -> None:
  """Sets the encoder's shape to a named size."""
  if size not in SIZES:
    raise ValueError(f"size={size} is not known; use one of {', '.join(SIZES)}")
  layers, hidden, heads = SIZES[size]
  config.model.num_layers = layers
  config.model.hidden_size = hidden
  config.model.num_heads = heads
  config.model.mlp_dim = 4 * hidden


def arguments(text: str | None, **defaults):
  """Parses what follows the colon in `--config=configs/X.py:key=value,...`.

  Args:
    text: the part after the colon, or None.
    **defaults: every argument the file takes, with its default; the default's
      type is the argument's type.

  Returns:
    The defaults as a ConfigDict, with the values given in `text` put in.
  """
  args = ml_collections.ConfigDict(defaults)
  for pair in filter(None, (text or "").split(",")):
    key, sep, value = pair.partition("=")
    if not sep or key not in args:
      raise ValueError(
        f"config argument {pair!r} is not known; "
        f"use key=value with a key of {', '.join(defaults)}"
      )
    kind = type(defaults[key])
    if kind is bool:
      if value.lower() not in ("true", "false"):
        raise ValueError(f"config argument {pair!r}: use true or false")
      args[key] = value.lower() == "true"
    else:
      try:
        args[key] = kind(value)
      except ValueError as error:
        raise ValueError(
          f"config argument {pair!r}: {value!r} is no {kind.__name__}"
        ) from error
  return args


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """BERT-base, pre-training at length 128, as the paper did it."""
  arguments(text)
  return settings.make_config()
