"""BERT pre-training and fine-tuning in JAX and Flax, from text to scores.

  import bert_jax

  model = bert_jax.load("RUN")            # or a Hugging Face folder
  model.classify(["a fine film"])[0].label

The names below are loaded when they are first used, so that the import itself
takes no time. docs/howto/python.md describes them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from bert_jax.kinds.table import add_kind as add_kind
  from bert_jax.models.encoder import Encoder as Encoder
  from bert_jax.prediction.fine_tuning import FineTuned as FineTuned
  from bert_jax.prediction.fine_tuning import fine_tune as fine_tune
  from bert_jax.prediction.model import Model as Model
  from bert_jax.prediction.model import load as load

__version__ = "0.3.0"

# Name -> the module that has it.
_EXPORTS = {
  "Encoder": "bert_jax.models.encoder",
  "FineTuned": "bert_jax.prediction.fine_tuning",
  "Model": "bert_jax.prediction.model",
  "add_kind": "bert_jax.kinds.table",
  "fine_tune": "bert_jax.prediction.fine_tuning",
  "load": "bert_jax.prediction.model",
}

__all__ = [
  "Encoder",
  "FineTuned",
  "Model",
  "add_kind",
  "fine_tune",
  "load",
]


def __getattr__(name: str) -> Any:
  """Loads a name of the Python API when it is first used."""
  if name not in _EXPORTS:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  found = getattr(importlib.import_module(_EXPORTS[name]), name)
  globals()[name] = found
  return found


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
