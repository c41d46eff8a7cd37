"""Checkpoints: parameters and the rest of the state, kept apart, by Orbax.

WORKDIR/checkpoints/STEP   the newest few, to go on from
WORKDIR/best/STEP          the best by a metric, where the run names one
WORKDIR/damaged/STEP       what could not be read, set aside

Beside the arrays a step has their checksums (checksums.py). Whoever reads a
step, all of it or only its parameters, compares them with what was read.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
import contextlib
import functools
import glob
import itertools
import json
import logging
import math
import os
import re
import shutil
import sys
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from bert_jax.runtime import checksums
from bert_jax.runtime import hosts
from bert_jax.runtime import peers
from bert_jax.runtime import saved_steps

_log = logging.getLogger(__name__)

# Status codes of storage that cannot be read now. They do not mean that the
# checkpoint in it is damaged.
_NO_DAMAGE = (
  "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED"
)  # fmt: skip


class CheckpointError(ValueError):
  """A checkpoint is missing or damaged."""


class SaveError(OSError):
  """A checkpoint cannot be written; those before are as they were."""


def _glob_below(self: Any, pattern: str) -> Iterator[Any]:
  """Finds what matches a pattern below a path, which itself is no pattern.

  Orbax lists by `epath.Path.glob` what every process has written of an array.
  The original takes the path for a part of the pattern: below a folder whose
  name has brackets it finds nothing, and Orbax then saves a step without data.
  """
  if "://" in os.fspath(self):
    return _glob_with_path(self, pattern)
  found = glob.glob(pattern, root_dir=os.fspath(self))
  return (self / name for name in found)


_PATH_CLASS: Any = type(epath.Path("/"))
_glob_with_path = _PATH_CLASS.glob
_PATH_CLASS.glob = _glob_below


def check_path(path: str) -> None:
  """Refuses a path below which no checkpoint can be written.

  Tensorstore takes a backslash for a slash, and writes to another folder. The
  paths that Orbax uses (epath) turn every "gs:/" into "gs://", also that of a
  folder named "logs:".

  Args:
    path: of a workdir, or of a step in one; relative ones are completed.

  Raises:
    CheckpointError: the path has such characters.
  """
  whole = os.path.abspath(path)
  for is_there, name in (
    ("\\" in whole, "a backslash"),
    ("gs:/" in f"{whole}/", 'a folder whose name ends in "gs:"'),
  ):
    if is_there:
      raise CheckpointError(
        f"{whole!r}: checkpoints cannot be kept below {name}; rename the "
        "folder, or give another path"
      )
  try:
    whole.encode()
  except UnicodeEncodeError as error:
    raise CheckpointError(
      f"{whole!r} is not UTF-8, so that no checkpoint can be kept below it; "
      "rename the folder, or give another path"
    ) from error


def check_settings(settings: Any, metrics: Collection[str]) -> None:
  """Checks the `checkpoint` group of a config.

  Args:
    settings: the group.
    metrics: names that an evaluation reports.

  Raises:
    ValueError: a value cannot be.
  """
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
    _tell_once()
    # Folders of steps that were saved and have not been looked at yet.
    self._unseen: list[str] = []
    self._newest = _manager(workdir, "checkpoints", max_to_keep=keep)
    self._keep, self._best_is_tidy = keep, False
    self._best_metric, self._best_mode = best_metric, best_mode
    self._best = None
    if best_metric:
      _check_metrics(workdir, best_metric)
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

    The best is on disk when this returns; the newest is written meanwhile.

    Args:
      step: updates made.
      params: tree of arrays.
      rest: what else the state has.
      metrics: of an evaluation at this step; empty = there was none.

    Raises:
      SaveError: this step, or one before, cannot be written.
    """
    self.save_if_best(step, params, rest, metrics)
    if self._best:
      # Only then this: a run that is killed in between makes the best again.
      self._finish(self._best)
    if step not in self._newest.all_steps():
      self._write(self._newest, step, params, rest)

  def save_if_best(
    self, step: int, params: Any, rest: Any, metrics: Mapping[str, float]
  ) -> None:
    """Saves a step as the best, where it is; arguments as those of save."""
    if not self._best or not metrics:
      return
    self._tidy_best()
    value = metrics[self._best_metric]
    if self._is_best(value) and step not in self._best.all_steps():
      self._best_value = value
      # By force: also before a step that was the best, after a kill.
      self._write(
        self._best, step, params, rest, metrics=dict(metrics), force=True
      )

  def _write(
    self,
    manager: ocp.CheckpointManager,
    step: int,
    params: Any,
    rest: Any,
    **options: Any,
  ) -> None:
    """Begins to write a step, once the one before is on disk."""
    self._finish(manager)
    items = ocp.args.Composite(
      params=ocp.args.StandardSave(params),
      rest=ocp.args.StandardSave(rest),
      sums=ocp.args.JsonSave(checksums.sums(params=params, rest=rest)),
    )
    with _telling(manager):
      if not manager.save(step, args=items, **options):
        raise SaveError(
          f"step {step} is not saved: {manager.directory} has step "
          f"{manager.latest_step()}; move it away"
        )
    self._unseen.append(os.path.join(manager.directory, str(step)))

  def _is_best(self, value: float) -> bool:
    if not math.isfinite(value):
      return False
    if self._best_value is None:
      return True
    sign = 1 if self._best_mode == "min" else -1
    return sign * value < sign * self._best_value

  def steps(self, before: int | None = None) -> list[int]:
    """Returns all steps that are saved; with `before`, the earlier ones."""
    steps = sorted(self._newest.all_steps())
    return [step for step in steps if before is None or step < before]

  def latest_step(self, before: int | None = None) -> int | None:
    """Returns the newest step of `steps`, or None."""
    return max(self.steps(before), default=None)

  def drop_after(self, step: int) -> None:
    """Removes what was saved after a step that a run goes back to."""
    _remove_others(self._newest, self.steps(step + 1))

  def set_aside(self, step: int) -> None:
    """Moves a damaged step from WORKDIR/checkpoints to WORKDIR/damaged."""
    folder = str(self._newest.directory)
    if jax.process_index() == 0:
      target = os.path.join(os.path.dirname(folder), "damaged")
      os.makedirs(target, exist_ok=True)
      numbers = itertools.chain([""], map("-{}".format, itertools.count(1)))
      paths = (os.path.join(target, f"{step}{x}") for x in numbers)
      free = next(path for path in paths if not os.path.exists(path))
      os.rename(os.path.join(folder, str(step)), free)
    _wait_for_all(f"damaged {step}")
    self._newest.reload()

  def wait(self) -> None:
    """Waits until all that is being saved is on disk.

    Raises:
      SaveError: it cannot be written.
    """
    for manager in self._managers():
      self._finish(manager)

  def _finish(self, manager: ocp.CheckpointManager) -> None:
    """Waits until a manager's saves are on disk, and looks whether they are.

    Raises:
      SaveError: a step could not be written, or it is not there.
    """
    folder = str(manager.directory)
    saved = [path for path in self._unseen if os.path.dirname(path) == folder]
    self._unseen = [path for path in self._unseen if path not in saved]
    with _telling(manager):
      manager.wait_until_finished()
    for path in saved:
      if problem := checksums.find_missing(path):
        raise SaveError(
          f"{path} was saved, but cannot be read back: {problem}. Give another "
          "--workdir, on another disk if this one is unreliable"
        )

  def restore_newest(
    self, params: Any, rest: Any, before: int | None = None
  ) -> tuple[int, Any, Any]:
    """Reads the newest step that is sound, and sets newer ones aside.

    Args:
      params: tree of jax.ShapeDtypeStruct with shardings.
      rest: the same for what else the state has.
      before: a step; only earlier ones are looked at, and none is set aside.

    Returns:
      The step, the parameters and the rest, without what the step is too old
      to have.

    Raises:
      CheckpointError: there are steps, and none can be read as that. Nothing
        was set aside.
    """
    folder = str(self._newest.directory)
    found, problems = self.find_sound(params, rest, before)
    if found is None:
      raise CheckpointError(
        f"no checkpoint of {folder} can be read: "
        f"{'; '.join(problems.values())}. Put a copy back, or give another "
        "--workdir to start anew"
      )
    for bad, reason in problems.items():
      _log.warning("%s; going on from step %d instead", reason, found[0])
      if before is None:
        self.set_aside(bad)
    if before is None:
      _remove_others(self._newest, self.steps()[-self._keep :])
      self._tidy_best()
    return found

  def _tidy_best(self) -> None:
    """Leaves one best, before this session saves another."""
    if self._best and not self._best_is_tidy:
      _remove_others(self._best, [self._best.best_step()])
      self._best_is_tidy = True

  def find_sound(
    self, params: Any, rest: Any, before: int | None = None
  ) -> tuple[tuple[int, Any, Any] | None, dict[int, str]]:
    """Reads the newest step that is sound, and changes nothing.

    Args:
      params: as for restore_newest.
      rest: as for restore_newest.
      before: as for restore_newest.

    Returns:
      The step, the parameters and the rest, or None if no step is sound; and
      what is wrong with newer ones, by step.
    """
    problems: dict[int, str] = {}
    for step in reversed(self.steps(before)):
      folder = os.path.join(str(self._newest.directory), str(step))
      items = ocp.args.Composite(
        params=ocp.args.StandardRestore(params),
        rest=ocp.args.StandardRestore(checksums.saved_part(folder, rest)),
      )

      def read(step=step, items=items):
        found = self._newest.restore(step, args=items)
        return {"params": found.params, "rest": found.rest}

      try:
        found = _read_sound(folder, read)
        return (step, found["params"], found["rest"]), problems
      except CheckpointError as error:
        problems[step] = str(error)
    return None, problems

  def check(self) -> None:
    """Raises SaveError if the last save has failed; waits for none."""
    for manager in self._managers():
      if not manager.is_saving_in_progress():
        self._finish(manager)

  def close(self) -> None:
    """Waits until all is on disk.

    Raises:
      SaveError: it cannot be written.
    """
    with contextlib.ExitStack() as stack:
      for manager in self._managers():
        stack.enter_context(_telling(manager))
        stack.callback(manager.close)
        stack.callback(self._finish, manager)

  def _managers(self) -> list[ocp.CheckpointManager]:
    return [m for m in (self._newest, self._best) if m]


def _remove_others(
  manager: ocp.CheckpointManager, kept: Collection[int | None]
) -> None:
  """Removes the steps that a kill kept Orbax from removing."""
  others = set(manager.all_steps()).difference(kept)
  if jax.process_index() == 0:
    for step in others:
      shutil.rmtree(os.path.join(manager.directory, str(step)))
  _wait_for_all(f"tidied {manager.directory}")
  if others:
    manager.reload()


def _wait_for_all(what: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def _telling(manager: ocp.CheckpointManager) -> Iterator[None]:
  """Says in a line what Orbax raises for a save, be it an earlier one."""
  try:
    yield
  except SaveError:
    raise
  except Exception as error:  # tensorstore's and orbax's have no base
    folder = str(manager.directory)
    saved = max(saved_steps.steps_in(folder), default=None)
    last = f"The last one there is step {saved}" if saved else "There is none"
    raise SaveError(
      f"no checkpoint can be written to {folder}: {_cause(error)}. {last}; "
      "once that is mended, the same command goes on"
    ) from error


def _cause(error: Exception) -> str:
  code = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's
  if code:
    return os.strerror(int(code[1]))
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return checksums.first_line(error)


@functools.cache
def _tell_once() -> None:
  """Keeps out of the logs what is raised as well, unless --verbosity=1.

  Of a save that fails Orbax logs a stack trace for every array, and tensorstore
  prints one for every answer that Orbax no longer waits for.
  """
  print_trace = sys.unraisablehook

  def is_news(record: logging.LogRecord) -> bool:
    if record.levelno < logging.ERROR or _log.isEnabledFor(logging.DEBUG):
      return True
    by_orbax = f"{os.sep}orbax{os.sep}" in record.pathname
    return not by_orbax and "exception was never retrieved" not in record.msg

  def hook(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
      print_trace(unraisable)

  for logger in ("absl", "asyncio"):
    logging.getLogger(logger).addFilter(is_news)
  sys.unraisablehook = hook


def _read_sound(
  folder: str, read: Callable[[], dict[str, Any]], *, alone: bool = False
) -> dict[str, Any]:
  """Reads parts of a step, and compares them with the recorded checksums.

  Args:
    folder: of the step.
    read: a function () -> {"params": tree, ...}.
    alone: whether this process reads by itself, and the others know nothing
      of it.

  Returns:
    What was read.

  Raises:
    CheckpointError: it cannot be read, or is not what was saved; on every
      host.
  """
  found, problem = None, None
  try:
    found = read()
  except Exception as error:  # tensorstore's and orbax's errors have no base
    if _is_no_damage(error):
      raise
    problem = error
  several = jax.process_count() > 1 and not alone
  if not _all_agree(found is not None, several) or found is None:
    reason = "another host says so"
    if problem:
      reason = checksums.first_line(problem)
    raise CheckpointError(
      f"checkpoint {folder} cannot be read: {reason}"
    ) from problem
  values = checksums.sums(
    **found
  )  # by all hosts, whatever the first then reads
  damage = ""
  if not several or jax.process_index() == 0:
    damage = checksums.find_damage(folder, values)
  if not _all_agree(not damage, several):
    damage = damage or "process 0 says so; see its log"
    raise CheckpointError(f"checkpoint {folder} is damaged: {damage}")
  return found


def _all_agree(is_good: bool, several: bool) -> bool:
  """Returns whether all processes find a step good, if there are several."""
  if not several:
    return is_good
  return bool(multihost_utils.process_allgather(np.int32(is_good)).all())


def _is_no_damage(error: Exception) -> bool:
  """Whether a checkpoint may well be sound that could not be read."""
  if isinstance(error, PermissionError | MemoryError | TimeoutError):
    return True
  return any(code in str(error) for code in _NO_DAMAGE)


def _check_metrics(workdir: str, name: str) -> None:
  """Checks what was noted of the best steps, which Orbax reads at the start.

  Raises:
    CheckpointError: a step lacks the metric, or it cannot be read.
  """
  folder = os.path.abspath(os.path.join(workdir, "best"))
  for step in saved_steps.steps_in(folder):
    path = os.path.join(folder, str(step), "metrics", "metrics")
    try:
      with open(path, encoding="utf-8") as file:
        value = json.load(file)[name]
      if not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r:.60}")
    except FileNotFoundError:
      continue  # a kill, while the step was removed
    except (
      OSError, ValueError, LookupError, TypeError, RecursionError
    ) as error:  # fmt: skip
      raise CheckpointError(
        f"{path} is damaged, or has no {name}: {error!r:.200}; put a copy back,"
        f" or move {folder}/{step} away and do without that best step"
      ) from error


def _meet(*, key: str, timeout_ms: int) -> None:
  """Waits for the other hosts, unless a save has failed here.

  Orbax, whose barrier this is, has one after a save that failed, too, and then
  waits ten minutes for hosts that themselves wait for this one. Nothing may be
  saved while an exception is handled.
  """
  error = sys.exception()
  if isinstance(error, Exception):
    failure = SaveError(f"no checkpoint can be written: {_cause(error)}")
    failure.__cause__ = error
    peers.leave(failure)
  ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _manager(workdir: str, name: str, **options) -> ocp.CheckpointManager:
  """Opens a folder of steps.

  Raises:
    CheckpointError: what Orbax noted of a step is damaged.
  """
  folder = os.path.abspath(os.path.join(workdir, name))
  check_path(folder)
  try:
    return ocp.CheckpointManager(
      folder,
      options=ocp.CheckpointManagerOptions(
        cleanup_tmp_directories=True,
        # Where a folder cannot be made in the background, those who wait for
        # it keep the process from ending for minutes.
        async_options=ocp.AsyncOptions(
          create_directories_asynchronously=False,
          barrier_sync_fn=_meet if jax.process_count() > 1 else None,
        ),
        **options,
      ),
    )
  except Exception as error:  # orbax's errors have no base
    if isinstance(error, OSError) or _is_no_damage(error):
      raise
    raise CheckpointError(
      f"{folder} cannot be opened: {checksums.first_line(error)}; move the "
      "step away whose _CHECKPOINT_METADATA is damaged"
    ) from error


def exists(workdir: str) -> bool:
  """Whether a run can go on from its workdir."""
  folder = os.path.join(workdir, "checkpoints")
  return bool(saved_steps.steps_in(folder))


def restore_params(
  workdir: str, params: Any, checkpoint: str = ""
) -> tuple[int, Any]:
  """Reads the parameters alone of a finished or running run.

  Args:
    workdir: of the run.
    params: tree of jax.ShapeDtypeStruct with shardings.
    checkpoint: which step, as for `saved_steps.choose`.

  Returns:
    The step and the parameters.

  Raises:
    CheckpointError: there is none, or it does not fit.
  """

  def read(path: str) -> Any:
    return read_params(path, params)

  try:
    if jax.process_count() > 1:
      chosen = _choose_together(workdir, checkpoint)
      return chosen.step, read(chosen.path)
    chosen, found = saved_steps.read(workdir, checkpoint, read)
  except saved_steps.StepError as error:
    raise CheckpointError(str(error)) from error
  return chosen.step, found


def _choose_together(workdir: str, checkpoint: str) -> saved_steps.SavedStep:
  """Chooses a step on process 0, for all processes of the job.

  A run that still trains may look different to each of them.

  Args:
    workdir: of the run.
    checkpoint: as for `saved_steps.choose`.

  Raises:
    saved_steps.StepError: on every process, what one of them could not find.
  """
  try:
    chosen = saved_steps.choose(workdir, checkpoint)
    folder = os.path.relpath(chosen.path, os.path.abspath(workdir))
    mine: list[Any] = [folder, chosen.step, chosen.reason, ""]
  except saved_steps.StepError as error:
    mine = ["", 0, "", str(error)]
  choices = hosts.decide(mine, list)
  for i, (*_, problem) in enumerate(choices):
    if problem and i:
      problem = (
        f"process {i} does not see what process 0 sees, so give a folder that "
        f"all processes share: {problem}"
      )
    if problem:
      raise saved_steps.StepError(problem)
  folder, step, reason, _ = choices[0]
  _log.info("reading step %d of %s, %s", step, workdir, reason)
  path = os.path.join(os.path.abspath(workdir), folder)
  return saved_steps.SavedStep(path, step, reason)


def read_params(folder: str, wanted: Any = None) -> Any:
  """Reads the parameters of a step, and compares them with their checksums.

  Args:
    folder: of the step: WORKDIR/checkpoints/STEP or WORKDIR/best/STEP.
    wanted: tree of jax.ShapeDtypeStruct with shardings, the same on all hosts;
      None = whatever is there, on this host alone.

  Returns:
    A tree like `wanted`, or nested dicts of numpy arrays.

  Raises:
    CheckpointError: there is none, it does not fit, or it is damaged.
  """
  folder = os.path.abspath(folder)
  check_path(folder)
  path = os.path.join(folder, "params")

  def read():
    if not os.path.isdir(path):
      raise ValueError(f"{path} does not exist")
    if wanted is not None:
      with ocp.StandardCheckpointer() as checkpointer:
        return {"params": checkpointer.restore(path, wanted)}
    args = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
      checksums.shapes_of(path),
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
      return {"params": checkpointer.restore(path, restore_args=args)}

  try:
    return _read_sound(folder, read, alone=wanted is None)["params"]
  except CheckpointError as error:
    parent = os.path.dirname(folder)
    others = [
      os.path.join(parent, str(step))
      for step in saved_steps.steps_in(parent)
      if str(step) != os.path.basename(folder)
    ]
    other = f", such as {others[-1]}" if others else ""
    raise CheckpointError(
      f"{error}. Put a copy of it back, or give another step{other}"
    ) from error


def write_params(workdir: str, params: Any) -> None:
  """Writes parameters that were not trained here, as step 0 of a workdir.

  Args:
    workdir: of a new run.
    params: nested dicts of numpy arrays.

  Raises:
    SaveError: they cannot be written.
  """
  saved = Checkpoints(workdir, keep=1, best_metric="", best_mode="min")
  with contextlib.closing(saved):
    saved.save(0, params, {"step": np.zeros((), np.int32)}, {})
