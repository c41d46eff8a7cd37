"""Checkpoints: parameters and the rest of the state, kept apart, by Orbax.

WORKDIR/checkpoints/STEP   the newest few, to go on from
WORKDIR/best/STEP          the best by a metric, where the run names one
"""

from collections.abc import Collection, Mapping
import logging
import math
import os
from typing import Any

import orbax.checkpoint as ocp

_log = logging.getLogger(__name__)


class CheckpointError(ValueError):
  """A checkpoint is missing or damaged."""


def check_settings(settings: Any, metrics: Collection[str]) -> None:
  """Checks the `checkpoint` group of a config.

  Args:
    settings: the group.
    metrics: names that an evaluation reports.

  Raises:
    ValueError: a value cannot be.
  """
  if settings.keep < 1:
    raise ValueError(f"checkpoint.keep={settings.keep}; it must be 1 or more")
  if settings.best_mode not in ("min", "max"):
    raise ValueError(
      f"checkpoint.best_mode={settings.best_mode!r}; use min or max"
    )
  if settings.best_metric and settings.best_metric not in metrics:
    raise ValueError(
      f"checkpoint.best_metric={settings.best_metric!r} is not evaluated; use "
      f'one of {", ".join(metrics)}, or "" to keep no best'
    )


class Checkpoints:
  """The checkpoints of one workdir; saving goes on in the background."""

  def __init__(
    self, workdir: str, *, keep: int, best_metric: str, best_mode: str
  ):
    """Opens (and creates) the folders.

    Args:
      workdir: of the run.
      keep: how many of the newest to keep.
      best_metric: name of the metric that decides the best; "" = keep no best.
      best_mode: "min" or "max".
    """
    self._newest = _manager(workdir, "checkpoints", max_to_keep=keep)
    self._best_metric, self._best_mode = best_metric, best_mode
    self._best = None
    if best_metric:
      self._best = _manager(
        workdir,
        "best",
        max_to_keep=1,
        best_fn=lambda metrics: metrics[best_metric],
        best_mode=best_mode,
        keep_checkpoints_without_metrics=False,
      )
    # Kept here: Orbax knows the metrics of a step only once it is on disk.
    self._best_value: float | None = None
    if self._best and (step := self._best.best_step()) is not None:
      self._best_value = self._best.metrics(step)[best_metric]

  def save(
    self, step: int, params: Any, rest: Any, metrics: Mapping[str, float]
  ) -> None:
    """Saves a step; also as the best where its metric says so.

    Args:
      step: updates made.
      params: tree of arrays.
      rest: what else the state has.
      metrics: of an evaluation at this step; empty = there was none.
    """
    # The best first: a run that is killed in between computes this step again.
    self.save_if_best(step, params, rest, metrics)
    if step not in self._newest.all_steps():
      self._newest.save(step, args=_items(params, rest))

  def save_if_best(
    self, step: int, params: Any, rest: Any, metrics: Mapping[str, float]
  ) -> None:
    """Saves a step as the best, where it is; arguments as those of save."""
    if not self._best or not metrics:
      return
    value = metrics[self._best_metric]
    if self._is_best(value) and step not in self._best.all_steps():
      self._best_value = value
      self._best.save(
        step,
        args=_items(params, rest),
        metrics=dict(metrics),
        force=True,  # also before a step that was the best, after a kill
      )

  def _is_best(self, value: float) -> bool:
    if not math.isfinite(value):
      return False
    if self._best_value is None:
      return True
    sign = 1 if self._best_mode == "min" else -1
    return sign * value < sign * self._best_value

  def latest_step(self) -> int | None:
    """The newest step saved, or None."""
    return self._newest.latest_step()

  def restore(self, step: int, params: Any, rest: Any) -> tuple[Any, Any]:
    """Reads a step.

    Args:
      step: which one.
      params: tree of jax.ShapeDtypeStruct with shardings.
      rest: the same for what else the state has.

    Raises:
      CheckpointError: it cannot be read as that.
    """
    try:
      found = self._newest.restore(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardRestore(params),
          rest=ocp.args.StandardRestore(rest),
        ),
      )
    except (ValueError, KeyError, OSError, TypeError) as error:
      raise CheckpointError(
        f"checkpoint {step} in {self._newest.directory} cannot be read: "
        f"{error}; delete its folder to go on from the one before"
      ) from error
    return found.params, found.rest

  def close(self) -> None:
    """Waits until all is on disk."""
    for manager in filter(None, (self._newest, self._best)):
      manager.wait_until_finished()
      manager.close()


def _items(params: Any, rest: Any) -> ocp.args.Composite:
  return ocp.args.Composite(
    params=ocp.args.StandardSave(params), rest=ocp.args.StandardSave(rest)
  )


def _manager(workdir: str, name: str, **options) -> ocp.CheckpointManager:
  return ocp.CheckpointManager(
    os.path.abspath(os.path.join(workdir, name)),
    options=ocp.CheckpointManagerOptions(
      cleanup_tmp_directories=True, **options
    ),
  )


def exists(workdir: str) -> bool:
  """Whether a run can go on from its workdir."""
  folder = os.path.join(workdir, "checkpoints")
  return os.path.isdir(folder) and bool(ocp.utils.checkpoint_steps(folder))


def restore_params(
  workdir: str, params: Any, *, best: bool = False
) -> tuple[int, Any]:
  """Reads the parameters alone of a finished or running run.

  Args:
    workdir: of the run.
    params: tree of jax.ShapeDtypeStruct with shardings.
    best: of the best checkpoint, not of the newest.

  Returns:
    The step and the parameters.

  Raises:
    CheckpointError: there is none, or it does not fit.
  """
  folder = os.path.abspath(
    os.path.join(workdir, "best" if best else "checkpoints")
  )
  steps = ocp.utils.checkpoint_steps(folder) if os.path.isdir(folder) else []
  if not steps:
    raise CheckpointError(
      f"{folder} holds no checkpoint; train with --mode=train "
      f"--workdir={workdir}"
    )
  step = max(steps)
  _log.info("reading the parameters of step %d from %s", step, folder)
  with ocp.StandardCheckpointer() as checkpointer:
    try:
      return step, checkpointer.restore(
        os.path.join(folder, str(step), "params"), params
      )
    except (ValueError, KeyError, OSError, TypeError) as error:
      raise CheckpointError(
        f"{folder}/{step} cannot be read: {error}"
      ) from error
