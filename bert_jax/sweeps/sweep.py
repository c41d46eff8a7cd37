"""Describes a sweep: a grid or a list of trials, each with its own workdir.

A sweep is a config file in plain Python whose get_config returns
`sweep.make(trials)`:

  from bert_jax.sweeps import sweep

  def get_config():
    return sweep.make(
      sweep.trial(
        f"configs/finetune.py:task={task},from=runs/base",
        {"optim.learning_rate": rate, "seed": seed},
      )
      for task in ("mrpc", "rte")
      for rate in (5e-5, 3e-5)
      for seed in range(5)
    )

The name of a trial consists of its seed and of the settings that differ between
the trials. Only the content of the workdirs decides which trials are done. So a
sweep continues where it stopped, and a sweep to which seeds or values were
added runs only the new trials.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import os
import re
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags

from bert_jax.runtime import config_files
from bert_jax.runtime import early_stopping
from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import metrics_log
from bert_jax.runtime import resume
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps
from bert_jax.runtime import settings

_NAME_CHARS = 120
# A run may move its data folder, but other data make another trial.
_DATA_KEYS = {
  "data.dir", "task.dir",
  "task.files.train", "task.files.validation", "task.files.test",
}  # fmt: skip


class SweepError(errors.UserError):
  """A sweep, or one of its trials, cannot be run as its config describes it."""


def trial(
  config: str, settings: Mapping[str, Any] | None = None, name: str = ""
) -> dict:
  """Describes one trial of a sweep, for `make`.

  Args:
    config: the value of --config, such as "configs/finetune.py:task=mrpc".
    settings: the values of --config.KEY=VALUE, by key.
    name: the name of the workdir; "" = use the settings that differ from those
      of other trials.

  Raises:
    SweepError: the name cannot be the name of a folder.
  """
  if name and not re.fullmatch(r"[\w=+-][\w=.,+-]*", name):
    raise SweepError(
      f"the name {name!r} of a trial cannot be the name of a folder; use only "
      "letters, digits and =.,+-_"
    )
  text = json.dumps(dict(settings or {}))
  return {"config": config, "settings": text, "name": name}


def make(
  trials: Iterable[dict],
  slurm: Mapping[str, Any] | None = None,
  xpk: Mapping[str, Any] | None = None,
  gke: Mapping[str, Any] | None = None,
) -> ml_collections.ConfigDict:
  """Makes the config of a sweep.

  Args:
    trials: the trials, from `trial`.
    slurm: settings of submitit, for --engine=slurm.
    xpk: options of `xpk workload create`, for --engine=xpk.
    gke: topology, num_slices and settings of launching/gke.py, for
      --engine=gke.
  """
  config = ml_collections.ConfigDict()
  config.trials = tuple(ml_collections.ConfigDict(t) for t in trials)
  config.engines = json.dumps(
    {"slurm": slurm or {}, "xpk": xpk or {}, "gke": gke or {}}
  )
  return config


def engine_settings(config: Any, engine: str) -> dict[str, Any]:
  """Returns the settings for an engine in the config of a sweep.

  Raises:
    SweepError: the engine runs no trials.
  """
  found = json.loads(config.engines)
  if engine not in found:
    raise SweepError(
      f"the trials of a sweep cannot be sent to --engine={engine}; use one of "
      f"{', '.join(found)}, or --engine=commands"
    )
  return found[engine]


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
  """One training of a sweep.

  Attributes:
    name: the settings that differ from other trials; also the folder's name.
    config: the value of --config.
    settings: the values of --config.KEY=VALUE, by key.
    workdir: the folder of the run.
  """

  name: str
  config: str
  settings: Mapping[str, Any]
  workdir: str

  def arguments(self) -> list[str]:
    """Returns the arguments with which the launcher runs the trial."""
    return [
      "--mode=train",
      f"--config={self.config}",
      *(f"--config.{k}={_flag(v)}" for k, v in self.settings.items()),
      f"--workdir={self.workdir}",
    ]

  def program(self) -> tuple[str, ...]:
    """Returns the arguments except seed, learning rate and workdir.

    One program can train the trials for which they are equal.
    """
    same = re.compile(r"--(config\.(seed|optim\.learning_rate)|workdir)=")
    return tuple(a for a in self.arguments() if not same.match(a))

  def member(self) -> str:
    """Returns the argument that adds the trial to a program of several."""
    config = self.load_config()
    return (
      f"--member={self.workdir}:seed={config.seed},"
      f"optim.learning_rate={config.optim.learning_rate}"
    )

  def load_config(self) -> ml_collections.ConfigDict:
    """Returns the whole configuration, read as the launcher reads it.

    Raises:
      SweepError: the file does not exist, or a key or value is wrong.
    """
    values = flags.FlagValues()
    try:
      config = f"--config={config_files.resolve(self.config)}"
      argv = ["bert-jax", config, *self.arguments()[2:-1]]
      config_flags.DEFINE_config_file(
        "config", None, flag_values=values, sys_argv=argv
      )
      values(argv)
      settings.check(values.config)  # `values.config` reads the file
      settings.check_names(values.config)
      return values.config
    except Exception as error:  # a config file may raise any error
      lines = str(error).strip().splitlines() or [repr(error)]
      raise SweepError(f"trial {self.name}: {lines[-1]}") from error

  def saved_steps(self) -> set[int]:
    """Returns the steps of the trial's checkpoints."""
    return set(saved_steps.steps_in(os.path.join(self.workdir, "checkpoints")))

  def is_done(self) -> bool:
    """Returns whether the workdir holds this training, finished."""
    return self.state() == "done"

  def state(self) -> str:
    """Returns the state of the training: "new", "begun" or "done".

    Raises:
      SweepError: the workdir holds another run.
    """
    if not runs.exists(self.workdir):
      return "new"
    run = runs.read_run(self.workdir)
    wanted = settings.plain(self.load_config())
    fixed = {*settings.names("weights", "run"), *_DATA_KEYS}
    # Pre-trained weights decide the shape of the model, and the data decide
    # the labels that the config does not list.
    if wanted.get("init_from"):
      fixed = {key for key in fixed if not key.startswith("model.")}
    if wanted.get("model", {}).get("vocab_size") is None:
      fixed -= {"model.vocab_size"}  # it follows the data
    if not wanted.get("task", {}).get("labels"):
      fixed -= {"task.labels", "task.tag_scheme"}
    if differs := resume.differences(run["config"], wanted, fixed):
      raise SweepError(
        f"{self.workdir} holds another run than that of trial {self.name} "
        f"({'; '.join(differs)}); give another --workdir"
      )
    try:
      rows = metrics_log.read_metrics(self.workdir)
    except runs.RunError:  # a kill cut off the last line; training repairs it
      return "begun"
    total = run.get("total_steps")
    if (stop := early_stopping.stop_step(rows, run["config"])) is not None:
      total = stop
    # Training saves its last step at the very end.
    if total not in self.saved_steps():
      return "begun"
    group = "eval/" if _evaluates(run["config"]) else "train/"
    last = [r["step"] for r in rows if any(k.startswith(group) for k in r)]
    return "done" if last and last[-1] == total else "begun"


def _evaluates(config: Mapping[str, Any]) -> bool:
  """Returns whether a training evaluates; without held-out text it does not.

  Args:
    config: the configuration of a run, as run.json has it.
  """
  from bert_jax.data import summary  # its tokenizers are slow to import

  folder = config.get("data", {}).get("dir")
  if config.get("objective") == "task" or not folder:
    return True
  is_there = files.exists(os.path.join(folder, "manifest.json"))
  return not is_there or summary.has_held_out(folder)


def _flag(value: Any) -> str:
  return str(tuple(value)) if isinstance(value, list) else str(value)


def read_trials(config: Any, workdir: str) -> list[Trial]:
  """Returns the trials of a sweep, after checking them.

  Args:
    config: the config of the sweep, from `make`.
    workdir: the folder of the sweep; each trial has a folder in it.

  Raises:
    SweepError: there are no trials, two trials are equal, or the config of a
      trial cannot be read.
  """
  if "trials" not in config or not len(config.trials):
    raise SweepError(
      "the config does not describe a sweep: its get_config must return "
      "bert_jax.sweeps.sweep.make(...) with at least one trial"
    )
  given = [(t.config, json.loads(t.settings)) for t in config.trials]
  facts = [facts_of(config, settings) for config, settings in given]
  for i, one in enumerate(facts):
    if one in facts[:i]:
      raise SweepError(
        f"trials {facts.index(one)} and {i} are the same: {given[i][0]}, "
        f"{given[i][1]}; remove one of them"
      )
  names = [
    t.get("name") or made
    for t, made in zip(config.trials, _names(facts), strict=True)
  ]
  if len(set(names)) < len(names):
    raise SweepError(
      f"two trials have the same name, so give them others: "
      f"{', '.join(sorted(names))}"
    )
  trials = [
    Trial(name, config, settings, os.path.join(workdir, name))
    for name, (config, settings) in zip(names, given, strict=True)
  ]
  for checked in trials:
    checked.load_config()
  return trials


def facts_of(config: str, settings: Mapping[str, Any]) -> dict[str, str]:
  """Returns the arguments of a trial's config and its settings, by name.

  Example:
    >>> facts_of("configs/finetune.py:task=rte,from=runs/a", {"seed": 1})
    {'config': 'finetune', 'task': 'rte', 'from': 'runs/a', 'seed': '1'}
  """
  path, _, arguments = config.partition(":")
  facts = {"config": os.path.splitext(os.path.basename(path))[0]}
  for pair in filter(None, arguments.split(",")):
    name, _, value = pair.partition("=")
    facts[name] = value
  return facts | {key: _flag(value) for key, value in settings.items()}


def _names(facts: Sequence[Mapping[str, str]]) -> list[str]:
  """Makes the names of trials from the facts that differ between them.

  The seed is always part of a name, because seeds may be added later.
  """
  keys = list(dict.fromkeys(key for one in facts for key in one))
  differing = [
    k for k in keys if len({one.get(k) for one in facts}) > 1 or k == "seed"
  ]
  last = [key.rpartition(".")[2] for key in differing]
  parts: list[list[str]] = [[] for _ in facts]
  for key, word in zip(differing, last, strict=True):
    # Keys and paths are shortened to their last part if it is unique.
    label = word if last.count(word) == 1 else key
    values = {one[key] for one in facts if key in one}
    tails = {os.path.basename(value.rstrip("/")) for value in values}
    short = len(tails) == len(values)
    for one, own in zip(facts, parts, strict=True):
      if key in one:
        value = one[key].rstrip("/")
        own.append(f"{label}={os.path.basename(value) if short else value}")
  names = [
    re.sub(r"[^\w=.,+-]+", "-", ",".join(own)).strip("-") or "trial"
    for own in parts
  ]
  return [
    name
    if len(name) <= _NAME_CHARS and names.count(name) == 1
    else f"{name[: _NAME_CHARS - 7]}-{files.json_hash(one)[:6]}"
    for name, one in zip(names, facts, strict=True)
  ]
