"""Where every config file starts: all keys with their defaults, and sizes.

docs/config.md lists the keys, and bert_jax/runtime/settings.py defines them.
The other files of this folder start from here and change values, never keys,
so a mistyped `--config.group.key` is an error in all of them.
"""

from collections.abc import Iterable
import difflib
import math

import ml_collections

from bert_jax.models import families
from bert_jax.models.families import bert
from bert_jax.runtime import settings

SHARDING_RULES = settings.SHARDING_RULES

# Name of a size of BERT -> values of keys of the group `model`.
SIZES = bert.PRESETS


def fit_large_batch(config: ml_collections.ConfigDict) -> None:
  """Sets the optimizer for a batch for which the paper's Adam is not meant.

  Above 1,024 rows it is LAMB, with a learning rate and a warm-up that depend on
  the number of rows.

  Source: You et al. 2020, arXiv:1904.00962, table 4.
  """
  rows = config.data.batch_size
  if rows > 1024:
    share = rows / 32_768
    config.optim.name = "lamb"
    config.optim.learning_rate = 5e-3 * share**0.5
    config.optim.warmup_rate = min(0.2 * share, 0.2)


# Tokens that a chip with 16 GB computes at once: of models up to base, and of
# wider ones (experiments/plan).
DEVICE_TOKENS = (16_384, 8_192)


def fit_devices(config: ml_collections.ConfigDict, devices: int) -> None:
  """Sets bfloat16, and micro-batches with which a step fits chips of 16 GB.

  Args:
    config: the config, with its model, its rows and their length.
    devices: what jax counts.

  Raises:
    ValueError: the devices cannot share the rows of a step evenly.
  """
  sizes = (*config.data.batch_warmup_sizes, config.data.batch_size)
  tokens = DEVICE_TOKENS[config.model.hidden_size > 768]
  rows = max(devices, 1) * max(tokens // config.data.seq_len, 1)
  even = math.gcd(*sizes)
  for parts in range(-(-max(sizes) // rows), even + 1):
    if devices > 0 and even % (devices * parts) == 0:
      config.model.dtype = "bfloat16"
      config.optim.num_micro_batches = parts
      return
  raise ValueError(
    f"devices={devices} cannot share steps of {', '.join(map(str, sizes))} rows"
    f" in equal parts of {rows} rows or fewer; give another number of devices, "
    "or another batch_size"
  )


def set_size(
  config: ml_collections.ConfigDict, size: str, family: str = "bert"
) -> None:
  """Sets the encoder's family, its switches, and a named size of the family.

  Only BERT and ALBERT have a head for two segments; other families pre-train on
  masked words of continuous text.
  """
  if family not in families.FAMILIES:
    raise ValueError(
      f"family={family} is not known{_guess(family, families.FAMILIES)}; use "
      f"one of {', '.join(families.FAMILIES)}"
    )
  found = families.FAMILIES[family]
  sizes = found.presets
  if size not in sizes:
    raise ValueError(
      f"size={size} is not known{_guess(size, sizes)}; use one of "
      f"{', '.join(sizes)}"
    )
  values = {**found.switches, **found.defaults, **sizes[size], "family": family}
  values.pop("vocab_size", None)  # that of the data
  config.model.update(values)
  if not any("nsp" in heads for heads in found.pretraining_classes):
    config.objective = "mlm"
    config.data.pairing = "full_sentences"


def _guess(word: str, known: Iterable[str]) -> str:
  near = difflib.get_close_matches(word, list(known), n=1)
  return f" (did you mean {near[0]}?)" if near else ""


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
        f"config argument {pair!r} is not known{_guess(key, defaults)}; use "
        f"key=value with a key of {', '.join(defaults)}"
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
          f"config argument {pair!r}: {value!r} is not of type {kind.__name__}"
        ) from error
  return args


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """BERT-base, pre-training at length 128, as the paper did it."""
  arguments(text)
  return settings.make_config()
