"""The settings of a prediction: those of the user and those of the run.

A model predicts with the settings that its run was evaluated with, so that
predictions and evaluation agree, unless the user asks for others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bert_jax import tasks
from bert_jax import weights
from bert_jax.kinds import answers
from bert_jax.runtime import settings
from bert_jax.runtime.settings import Config

# Settings of a run -> their other names, in the group `predict`.
_IN_PREDICT = {
  "data.seq_len": "predict.seq_len",
  "task.has_null": "predict.allow_null",
  "task.null_threshold": "predict.null_threshold",
  "task.long_texts": "predict.long_texts",
}
_OF_RUN = tuple(key for key in weights.SETTINGS if key != "task.name")
_NEEDED = (
  "kind", "batch_tokens", "top_k", "fields", "layers", "concat_last", "decimals"
)  # fmt: skip


def _flatten(config: Config) -> dict[str, Any]:
  """Returns the values of a config by their keys; None if they are not set."""
  flat = settings.flatten(config)
  for name in ("predict.seq_len", "predict.long_texts"):
    flat[name] = flat.get(name) or None
  return flat


def asked_in(config: Config) -> list[str]:
  """Returns the settings of prediction that a config file sets for every run.

  The keys of the group `predict` that have another name in the run are not set
  unless the user sets them. Other keys count only in a config that leaves some
  of them to the run, as configs/predict.py does. A config of a training has a
  value for each of them, which is not meant for other runs.

  Args:
    config: the whole configuration.

  Returns:
    Keys, such as "predict.seq_len".
  """
  flat = _flatten(config)
  is_of_training = all(flat.get(key, "") is not None for key in _OF_RUN)
  keys = (*_IN_PREDICT.values(), *(() if is_of_training else _OF_RUN))
  return [key for key in keys if flat.get(key) is not None]


def _value(values: Mapping[str, Any], key: str) -> Any:
  """Returns the value of a key of a config or a run; None if it is not set."""
  task = values.get("task.name")
  if key == "task.has_null" and task in tasks.TASKS:
    return tasks.TASKS[task].has_null  # The key is only about own data.
  return values.get(key)


def read(
  config: Config,
  own: Mapping[str, Any] | None = None,
  given: Sequence[str] | None = None,
) -> dict[str, Any]:
  """Returns the settings of a prediction that the run may also have.

  A value that the user asks for comes first, then that of the run, then that of
  the config. A config without `task.name` has no such values, except in the
  group `predict`, `model.dtype` and `model.attention`.

  Args:
    config: the whole configuration.
    own: the settings of the run of the weights, key -> value.
    given: the keys that the user sets, most important first. None means the
      keys of the group `predict`, and those without another name there.

  Returns:
    Key of the run, such as "data.seq_len" -> value, if there is one.

  Raises:
    answers.PredictError: The config lacks a key.
  """
  flat = _flatten(config)
  if missing := [n for n in _NEEDED if f"predict.{n}" not in flat]:
    raise answers.PredictError(
      f"the config has no predict.{missing[0]}: it belongs to an older run; "
      "give --config=predict:from=RUN"
    )
  found = {}
  for key in (*_OF_RUN, "data.seq_len"):
    names = [_IN_PREDICT[key], key] if key in _IN_PREDICT else [key]
    asked = names[:1] if given is None else [k for k in given if k in names]
    others = names if flat.get("task.name") else names[:1]
    values = [
      *(_value(flat, name) for name in asked),
      _value(own or {}, key),
      *(_value(flat, name) for name in others),
    ]
    found[key] = next((value for value in values if value is not None), None)
  return {key: value for key, value in found.items() if value is not None}
