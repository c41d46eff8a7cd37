"""Pre-training in phases: one config that describes several runs in a row.

  train.phases=("main train.total_steps=9000",
                "longer train.total_steps=800 data.seq_len=1024")

Each phase is a run of its own. It has the keys of the config, but those that it
names, and starts from the last step of the phase before it: with the weights,
and with the moments of the optimizer. The last phase has the workdir itself,
and the others have WORKDIR/phases/NAME.
"""

from collections.abc import Sequence
import dataclasses
import os
import re
from typing import Any

from bert_jax.runtime import errors
from bert_jax.runtime import settings
from bert_jax.runtime.settings import Config

# The keys that no phase may have for itself.
_OF_ALL = (
  "objective",
  "init_from",
  "init_random",
  "init_changes",
  "init_moments",
  "init_layers",
  "reinit_layers",
  "train.phases",
  "train.num_epochs",
  "data.first_row",
  "optim.name",
)
# Beginnings of keys that a phase may have although a run does not keep them.
_OF_PHASE = ("data.dir", "data.mixture", "eval.", "checkpoint.")
# The keys that decide which rows of which examples a run reads.
_OF_ORDER = (
  "seed",
  "data.dir",
  "data.mixture",
  "data.mixture_weights",
  "data.mixture_power",
  "data.seq_len",
  "data.max_sequences",
  "data.pairing",
  "data.dupe_factor",
  "data.short_seq_rate",
  "data.examples_seed",
)


class PhaseError(errors.UserError):
  """The text of a phase cannot be understood."""


@dataclasses.dataclass(frozen=True)
class Phase:
  """One phase of a training.

  Attributes:
    name: the name; "" if the config has no phases.
    workdir: the folder of its run.
    config: the config of its run.
    planned: a config with the same shapes that needs no earlier phase, for
      plans and checks.
  """

  name: str
  workdir: str
  config: Config
  planned: Config


def read(config: Config, workdir: str) -> list[Phase]:
  """Returns the phases of a config, in their order; one if it names none.

  Args:
    config: the whole configuration.
    workdir: the folder of the whole training.

  Raises:
    PhaseError: a phase has no name or that of another, or names a key that does
      not exist, cannot have the value, or is the same for all phases; or it may
      stop early although another follows.
  """
  texts = config.train.phases
  if not texts:
    return [Phase("", workdir, config, config)]
  if config.objective == "task" or config.train.num_epochs:
    raise PhaseError(
      f"train.phases={list(texts)} with objective={config.objective} and "
      f"train.num_epochs={config.train.num_epochs}: phases are for "
      "pre-training, and each counts train.total_steps"
    )
  parsed = [_parse(text) for text in texts]
  names = [name for name, _ in parsed]
  if len(set(names)) < len(names):
    raise PhaseError(f"train.phases has the names {names}; give each its own")
  found: list[Phase] = []
  shape: dict[str, Any] = {}
  for i, (name, values) in enumerate(parsed):
    changes = {
      key: values.pop(key)
      for key in list(values)
      if settings.KEYS[key].scope == "weights"
    }
    shape |= changes
    one = _with(config, values | {"train.phases": ()})
    one.data.first_row = _rows_before(one, found)
    if i < len(parsed) - 1:
      one.train.export = ""
    planned = _started(one, config.init_from, shape)
    is_last = i == len(parsed) - 1
    for key, none in (("patience", "0"), ("stop_at", "")):
      if one.train[key] and not is_last:
        raise PhaseError(
          f"the phase {name!r} has train.{key}={one.train[key]}, which may end "
          "it before the step that the next phase starts from; write "
          f"train.{key}={none} into its text (the last phase may have it)"
        )
    folder = workdir if is_last else os.path.join(workdir, "phases", name)
    if found:
      last = found[-1]
      step = last.config.train.total_steps
      source = os.path.join(last.workdir, "checkpoints", str(step))
      # What changes the weights to start from is for the first phase alone.
      one.init_changes, one.init_layers = (), 0
      one.init_random, one.reinit_layers = False, 0
      one.init_moments = True
      one = _started(one, source, changes)
    else:
      one = planned
    found.append(Phase(name, folder, one, planned))
  return found


def describe(phases: Sequence[Phase]) -> list[str]:
  """Returns a line about each phase: its steps, rows and length."""
  return [
    f"phase {i} of {len(phases)}, {phase.name}: "
    f"{phase.config.train.total_steps:,} steps of "
    f"{phase.config.data.batch_size:,} rows of {phase.config.data.seq_len} "
    f"tokens, in {phase.workdir}"
    for i, phase in enumerate(phases, 1)
  ]


def changes_of(texts: Sequence[str]) -> dict[str, Any]:
  """Returns key -> value of texts such as "model.rope_theta=160000".

  Raises:
    PhaseError: there is no such key, or it cannot have the value.
  """
  return dict(_pair(word, word) for text in texts for word in text.split())


def _parse(text: str) -> tuple[str, dict[str, Any]]:
  """Returns the name of a phase and the keys that it names, with values."""
  name, *pairs = text.split() or [""]
  if not re.fullmatch(r"[A-Za-z][\w.-]*", name):
    raise PhaseError(
      f"the phase {text!r:.100} has no name; begin it with one, as in "
      '"longer train.total_steps=800 data.seq_len=1024"'
    )
  values = dict(_pair(word, text) for word in pairs)
  for key in values:
    if key in _OF_ALL or settings.KEYS[key].scope in ("session", "host"):
      if not key.startswith(_OF_PHASE):
        raise PhaseError(
          f"the phase {name!r} has {key}, which is the same for all phases; "
          "set it in the config"
        )
  return name, values


def _pair(word: str, text: str) -> tuple[str, Any]:
  """Returns the key and the value of KEY=VALUE."""
  name, equals, value = word.partition("=")
  key = settings.KEYS.get(name)
  if key is None or not equals:
    raise PhaseError(
      f"{word!r:.60} in {text!r:.100} is not KEY=VALUE: "
      f"{settings.unknown(name)}"
    )
  found: Any = value
  try:
    if key.type is tuple:
      found = tuple((key.item_type or str)(x) for x in value.split(",") if x)
    elif key.type is bool:
      found = {"true": True, "false": False}[value.lower()]
    elif key.type is not str:
      found = key.type(value)
    problem = key.problem(found)
  except (KeyError, TypeError, ValueError):
    problem = f"{name}={value!r:.60} is not of type {key.type.__name__}"
  if problem:
    raise PhaseError(f"{text!r:.100}: {problem}")
  return name, found


def _with(config: Config, values: dict[str, Any]) -> Config:
  """Returns a copy of a config with other values, by dotted name."""
  config = config.copy_and_resolve_references()
  settings.set_keys(config, values)
  return config


def _started(config: Config, source: str | None, shape: dict) -> Config:
  """Returns a config that starts from weights, with changes of their shape."""
  if source is None:
    return _with(config, shape)
  words = [f"{name}={value}" for name, value in shape.items()]
  changes = (*config.init_changes, *words)
  return _with(config, {"init_from": source, "init_changes": changes})


def _rows_before(config: Config, phases: Sequence[Phase]) -> int:
  """Returns the rows of the same order of examples that phases have used."""
  flat = settings.flatten(config)
  rows = config.data.first_row
  for phase in phases:
    before = settings.flatten(phase.config)
    if all(flat[key] == before[key] for key in _OF_ORDER):
      rows = before["data.first_row"] + num_rows(
        phase.config.data, phase.config.train.total_steps
      )
  return rows


def num_rows(data: Any, steps: int) -> int:
  """Returns the rows of the first steps of a run.

  While the batch grows, the sizes in data.batch_warmup_sizes have the same
  number of steps each; see `batch_sizes`.

  Args:
    data: the `data` group of a config.
    steps: the number of steps.
  """
  return sum(
    min(max(steps - first, 0), count) * size
    for first, count, size in batch_sizes(data)
  )


def batch_sizes(data: Any) -> list[tuple[int, int, int]]:
  """Returns (first step, number of steps, rows of a step) of each batch size.

  The last size has no end, and its number of steps is 2**62.

  Args:
    data: the `data` group of a config.
  """
  found, first = [], 0
  sizes = data.batch_warmup_sizes
  for i, size in enumerate(sizes):
    end = data.batch_warmup_steps * (i + 1) // len(sizes)
    found.append((first, end - first, size))
    first = end
  return [*found, (first, 2**62, data.batch_size)]
