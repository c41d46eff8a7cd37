"""The settings of a prediction: those of the user and those of the run.

A model predicts with the settings that its run was evaluated with, so that
predictions and evaluation agree, unless the user asks for others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bert_jax import tasks
from bert_jax import weights
from bert_jax.kinds import answers
from bert_jax.kinds import table
from bert_jax.runtime.settings import Config

# Settings of a task that have a name of their own in the group `predict`.
_OWN_NAMES = {
  "has_null": "predict.allow_null",
  "null_threshold": "predict.null_threshold",
}
_OF_PREDICT = ("predict.seq_len", *_OWN_NAMES.values())
_NEEDED = (
  "kind", "batch_tokens", "top_k", "fields", "layers", "concat_last", "decimals"
)  # fmt: skip


def asked_in(config: Config) -> list[str]:
  """Returns the settings of prediction that a config file sets for every run.

  The keys of the group `predict` that have another name in the run are not set
  unless the user sets them. Other keys count only in a config that leaves some
  of them to the run, as configs/predict.py does: one of a training has a value
  for each, of which nobody knows whether it was meant for predict.

  Args:
    config: the whole configuration.

  Returns:
    Keys, such as "predict.seq_len".
  """

  def value(key):
    group, _, name = key.partition(".")
    return config.get(group, {}).get(name, "")  # "": there is no such key

  def is_set(key):
    if key == "predict.seq_len":  # 0 means that it is not set
      return bool(value(key))
    return value(key) not in (None, "")

  keys = [key for key in weights.SETTINGS if key != "task.name"]
  if all(value(key) is not None for key in keys):
    keys = []
  return [key for key in (*_OF_PREDICT, *keys) if is_set(key)]


def value_of(
  keys: Sequence[str],
  config: Config,
  own: Mapping[str, Any],
  given: Sequence[str] | None,
) -> Any:
  """Returns the value of a setting that the run of the weights also has.

  A value that the user asked for comes first, then that of the run, then that
  of the config.

  Args:
    keys: the names of the setting in a config, for example
      "predict.null_threshold" and "task.null_threshold". All but the first are
      settings of a task: they are ignored without `task.name`, unless they are
      in `given`.
    config: the whole configuration.
    own: the settings of the run, key -> value.
    given: the keys that the user set, of which the first that is one of `keys`
      wins; None means that the user set the first of `keys`, unless its value
      is None.

  Returns:
    The value; None if the setting has none anywhere.
  """

  def held(key):
    group, _, name = key.partition(".")
    value = config.get(group, {}).get(name)
    if key == "predict.seq_len":
      return value or None
    return of_benchmark(key, value, config.get("task", {}).get("name"))

  def of_benchmark(key, value, name):
    # Whether questions may have no answer is a fact of a benchmark.
    if key == "task.has_null" and name:
      return tasks.has_null(name, value)
    return value

  def first(values):
    return next((value for value in values if value is not None), None)

  asked = keys[:1] if given is None else [k for k in given if k in keys]
  of_task = bool(config.get("task", {}).get("name"))
  return first(
    [
      *(held(key) for key in asked),
      *(of_benchmark(key, own.get(key), own.get("task.name")) for key in keys),
      *(held(key) for key in (keys if of_task else keys[:1])),
    ]
  )


def read(
  config: Config,
  own: Mapping[str, Any] | None = None,
  given: Sequence[str] | None = None,
) -> answers.Settings:
  """Reads the settings from a whole configuration and those of a run.

  Args:
    config: the whole configuration.
    own: the settings of the run of the weights, key -> value.
    given: as for `value_of`.

  Raises:
    answers.PredictError: A key is missing.
  """

  def find(*keys):
    return value_of(keys, config, own or {}, given)

  predict = config.get("predict", {})
  if missing := [name for name in _NEEDED if name not in predict]:
    raise answers.PredictError(
      f"the config has no predict.{missing[0]}: it belongs to an older run; "
      "give --config=configs/predict.py:from=RUN"
    )
  of_task = {
    name: find(*filter(None, (_OWN_NAMES.get(name), f"task.{name}")))
    for kind in table.TASK_KINDS.values()
    for name in ("has_null", *kind.feature_settings, *kind.decode_settings)
  }
  return answers.Settings(
    kind=predict["kind"],
    seq_len=find("predict.seq_len", "data.seq_len"),
    predict=dict(predict.items()),
    task={name: x for name, x in of_task.items() if x is not None},
  )
