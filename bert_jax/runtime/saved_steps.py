"""Lists the saved steps of a run, and chooses the one that represents the run.

WORKDIR/checkpoints/STEP   the newest steps
WORKDIR/best/STEP          the best step by a metric, if the run keeps one

Evaluation, prediction, conversion and `init_from` all use `choose`, so that
they read the same model. This module does not import jax.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import json
import logging
import math
import os
import re
from typing import Any, TypeVar

from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import runs

_log = logging.getLogger(__name__)

_NEWEST, _BEST = "checkpoints", "best"  # folders of a workdir
_STEP = re.compile("0|[1-9][0-9]*")
# What Orbax writes last into a step of a bucket, where nothing is renamed.
MARKS = ("commit_success.txt",)

T = TypeVar("T")


class StepError(errors.UserError):
  """A run has no saved step, or not the requested one."""


@dataclasses.dataclass(frozen=True)
class SavedStep:
  """A step of a run that is on disk.

  Attributes:
    path: the absolute path of its folder.
    step: its number.
    reason: why it was chosen, such as "the best by eval/loss". If the best step
      was chosen and is not the newest, it also names the newest.
  """

  path: str
  step: int
  reason: str


def check(checkpoint: str) -> None:
  """Raises StepError unless it is "", "best", "newest" or a step."""
  if checkpoint not in ("", "best", "newest") and not (
    checkpoint.isascii() and checkpoint.isdecimal()
  ):
    raise StepError(
      f"--checkpoint={checkpoint} is not best, newest or the number of a step"
    )


def exists(workdir: str, to_resume: bool = False) -> bool:
  """Returns whether a workdir holds any saved step.

  Args:
    workdir: any folder, which need not exist.
    to_resume: whether only steps from which training can be resumed count.
  """
  folders = (_NEWEST,) if to_resume else (_NEWEST, _BEST)
  return any(_steps(workdir, folder) for folder in folders)


def newest_common(workdirs: Sequence[str]) -> int | None:
  """Returns the newest step that all of some runs have, or None."""
  found = [set(_steps(workdir, _NEWEST)) for workdir in workdirs]
  return max(set.intersection(*found), default=None) if found else None


def run_of(path: str) -> str | None:
  """Returns the workdir of a path to a step; None for any other path."""
  parent, name = os.path.split(files.absolute(path))
  workdir, folder = os.path.split(parent)
  if not name.isdecimal() or folder not in (_NEWEST, _BEST):
    return None
  return workdir if runs.exists(workdir) else None


def refuse_step(workdir: str) -> None:
  """Raises StepError if the value of --workdir is a path to a step."""
  if run := run_of(workdir):
    step = os.path.basename(files.absolute(workdir))
    raise StepError(
      f"--workdir={workdir} is a step of a run; give --workdir={run}, with "
      f"--checkpoint={step} to evaluate or predict with this step"
    )


def choose(workdir: str, checkpoint: str = "") -> SavedStep:
  """Chooses the step that represents a run.

  Args:
    workdir: the folder of the run, which may still be training.
    checkpoint: "best", "newest" or the number of a step; "" = the best step if
      the run keeps one, else the newest.

  Raises:
    StepError: there is no such step; the message lists the saved steps.
  """
  check(checkpoint)
  newest, best = _steps(workdir, _NEWEST), _steps(workdir, _BEST)
  if checkpoint.isdecimal():
    step = int(checkpoint)
    if step not in (*newest, *best):
      raise StepError(
        f"--checkpoint={checkpoint}: {workdir} does not hold this step. "
        f"checkpoints holds {_listed(newest)}, best holds {_listed(best)}"
      )
    folder = _NEWEST if step in newest else _BEST
    return _saved(workdir, folder, step, "as --checkpoint says")
  metric, mode = _best_by(workdir) if best else (None, "min")
  # A run that was resumed without a best metric no longer updates its best
  # step, so that its newest step may be better.
  if checkpoint == "best" or (not checkpoint and best and metric != ""):
    if not best:
      raise StepError(
        f"--checkpoint=best: {workdir} keeps no best step; give "
        f"--checkpoint=newest, or a step of checkpoints: {_listed(newest)}"
      )
    reason = f"the best by {metric}" if metric else "the best"
    step = _best_of(workdir, best, metric, mode)
    if newest and newest[-1] != step:
      path = _saved(workdir, _NEWEST, newest[-1], "").path
      reason += f"; the newest is step {newest[-1]} ({path})"
    return _saved(workdir, _BEST, step, reason)
  if not newest:
    also = f"; best holds {_listed(best)}" if best else ""
    raise StepError(
      f"{os.path.join(workdir, _NEWEST)} holds no checkpoint{also}; train with "
      f"bert-jax train --workdir={workdir}, or give another folder"
    )
  return _saved(workdir, _NEWEST, max(newest), "the newest")


def read(
  workdir: str, checkpoint: str, read_step: Callable[[str], T]
) -> tuple[SavedStep, T]:
  """Chooses and reads a step of a run that may still be training.

  The run removes steps as it saves newer ones. If the chosen step is gone
  before it has been read, another one is chosen, once.

  Args:
    workdir: the folder of the run.
    checkpoint: as for `choose`.
    read_step: reads the folder of a step, and raises ValueError on failure.

  Returns:
    The step that was read, and what `read_step` returned for it.
  """
  chosen = choose(workdir, checkpoint)
  _log.info("reading step %d of %s, %s", chosen.step, workdir, chosen.reason)
  try:
    return chosen, read_step(chosen.path)
  except ValueError:
    again = choose(workdir, checkpoint)
    if again.path == chosen.path:
      raise
  _log.info(
    "step %d was removed meanwhile; reading step %d, %s",
    chosen.step, again.step, again.reason,
  )  # fmt: skip
  return again, read_step(again.path)


def _saved(workdir: str, folder: str, step: int, reason: str) -> SavedStep:
  path = os.path.join(files.absolute(workdir), folder, str(step))
  return SavedStep(path, step, reason)


def steps_in(folder: str) -> list[int]:
  """Returns the steps in a folder of checkpoints, in ascending order.

  Only a step that is completely written has a number as its name.
  """
  if files.is_remote(folder):
    return _complete_in(folder)
  try:
    with os.scandir(folder) as entries:
      return sorted(
        int(entry.name)
        for entry in entries
        if _STEP.fullmatch(entry.name) and entry.is_dir()
      )
  except (FileNotFoundError, NotADirectoryError):
    return []


def _complete_in(folder: str) -> list[int]:
  """Returns the steps in a folder of a bucket, in ascending order."""
  try:
    names = [n for n in files.list_names(folder) if _STEP.fullmatch(n)]
  except FileNotFoundError:
    return []
  marks = [os.path.join(folder, name, MARKS[0]) for name in names]
  missing = set(files.missing(marks))
  return sorted(
    int(name)
    for name, mark in zip(names, marks, strict=True)
    if mark not in missing
  )


def _steps(workdir: str, folder: str) -> list[int]:
  return steps_in(os.path.join(workdir, folder))


def _best_by(workdir: str) -> tuple[str | None, str]:
  """Returns the metric ("" = keep no best step) and the mode of a run."""
  if not runs.exists(workdir):
    return None, "min"
  settings = runs.read_run(workdir)["config"].get("checkpoint")
  if not isinstance(settings, dict):
    return None, "min"
  return settings.get("best_metric"), settings.get("best_mode", "min")


def _best_of(
  workdir: str, steps: list[int], metric: str | None, mode: str
) -> int:
  """Returns the best of several steps, which a killed run may have left.

  If the values of the metric cannot be read, the last step counts as the best,
  because a step is saved there only if it is better than those before it.
  """
  values: dict[int, float] = {}
  for step in steps:
    with contextlib.suppress(*files.ODD_JSON):
      value = read_metric(os.path.join(workdir, _BEST, str(step)), metric)
      if math.isfinite(value):
        values[step] = value if mode == "max" else -value
  return max(values, key=lambda step: (values[step], step), default=max(steps))


def read_metric(folder: str, name: str | None) -> float:
  """Reads a metric that was saved with a best step.

  Args:
    folder: the folder of the step.
    name: the name of the metric.

  Raises:
    FileNotFoundError: the step has no metrics.
    Exception: one of files.ODD_JSON, because they are damaged or lack this one.
  """
  path = os.path.join(folder, "metrics", "metrics")
  with files.reading(path, "r") as f:
    value: Any = json.load(f)[name]
  if not isinstance(value, int | float):
    raise ValueError(f"{name} is {value!r:.60}")
  return value


def _listed(steps: list[int]) -> str:
  return ", ".join(map(str, steps)) or "none"
