"""Checkpoints, written by Orbax; parameters and other state are separate.

WORKDIR/checkpoints/STEP   the newest steps, from which a run can be resumed
WORKDIR/best/STEP          the best step by a metric, if the run names a metric
WORKDIR/damaged/STEP       steps that could not be read, set aside

A step also holds the checksums of its arrays (checksums.py). Every reader of a
step, or of its parameters alone, compares them with what it has read.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
import contextlib
import functools
import glob
import itertools
import logging
import math
import operator
import os
import re
import sys
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from bert_jax.runtime import checksums
from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import hosts
from bert_jax.runtime import peers
from bert_jax.runtime import saved_steps

_log = logging.getLogger(__name__)

# Status codes of storage that cannot be read for the moment. They do not mean
# that a checkpoint is damaged.
_NO_DAMAGE = (
  "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED"
)  # fmt: skip


MARKS = saved_steps.MARKS


class CheckpointError(errors.UserError):
  """A checkpoint is missing or damaged."""


class SaveError(OSError):
  """A checkpoint cannot be written; earlier ones are unchanged."""


def _glob_below(self: Any, pattern: str) -> Iterator[Any]:
  """Finds what matches a pattern below a path, which is not a pattern itself.

  Orbax uses `epath.Path.glob` to list what every process has written of an
  array. The original takes the path for a part of the pattern. Below a folder
  with brackets in its name it finds nothing, and Orbax saves a step without
  data.
  """
  if "://" in os.fspath(self):
    return _glob_with_path(self, pattern)
  found = glob.glob(pattern, root_dir=os.fspath(self))
  return (self / name for name in found)


_PATH_CLASS: Any = type(epath.Path("/"))
_glob_with_path = _PATH_CLASS.glob
_PATH_CLASS.glob = _glob_below

# Orbax cuts an array that several devices hold into slices, one for each device
# to write. For a small array that costs more than it saves, since each slice is
# a program to compile. Smaller slices than this, in bytes, are not made.
_MIN_SLICE_BYTES = 1 << 20


def _register_arrays() -> None:
  """Has Orbax write arrays by `_MIN_SLICE_BYTES`, without a warning of that."""

  def is_news(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR

  logger = logging.getLogger("absl")
  logger.addFilter(is_news)
  ocp.type_handlers.register_type_handler(
    jax.Array,
    ocp.type_handlers.ArrayHandler(
      min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES
    ),
    override=True,
  )
  logger.removeFilter(is_news)


_register_arrays()


def check_path(path: str) -> None:
  """Refuses a path below which no checkpoint can be written.

  Tensorstore takes a backslash for a slash and writes to another folder. The
  paths of Orbax (epath) turn every "gs:/" into "gs://", even in the path of a
  folder named "logs:".

  Args:
    path: the path of a workdir or of a step; it may be relative.

  Raises:
    CheckpointError: the path cannot be used.
  """
  whole = files.absolute(path)
  if files.is_remote(path):
    whole = whole.removeprefix("gs:")
  for text, name in (
    ("\\", "a backslash"),
    ("gs:/", 'a folder whose name ends in "gs:"'),
  ):
    if text in f"{whole}/":
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
    metrics: the names of the metrics that an evaluation reports.

  Raises:
    ValueError: the metric that decides on the best step is not evaluated.
  """
  if settings.best_metric and settings.best_metric not in metrics:
    raise ValueError(
      f"checkpoint.best_metric={settings.best_metric!r} is not evaluated; use "
      f'one of {", ".join(metrics)}, or "" to keep no best'
    )


def _items(params: Any, rest: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the parts of a step that are kept apart, by name.

  The average of the parameters has a part of its own, so that it can be read
  instead of them.
  """
  rest = dict(rest)
  average = rest.pop("average", None)
  items = {"params": params, "rest": rest}
  return items if average is None else items | {"average": average}


class _Folder:
  """The steps in a folder of a workdir; saving goes on in the background.

  Attributes:
    path: the absolute path of the folder.
    manager: the folder's manager of Orbax.
  """

  def __init__(self, workdir: str, name: str, **options: Any):
    """Opens the folder, and creates it if necessary.

    Args:
      workdir: the folder of the run.
      name: the name of the folder in it.
      **options: which steps Orbax keeps.

    Raises:
      CheckpointError: the metadata of a step is damaged.
    """
    self.path = files.absolute(os.path.join(workdir, name))
    self.manager = _open_manager(self.path, **options)
    self._unchecked: list[str] = []  # the folders of steps that were saved

  def write(self, step: int, params: Any, rest: Any, **options: Any) -> None:
    """Begins to write a step, once the one before is on disk."""
    self.finish()
    parts = _items(params, rest)
    saved = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
    items = ocp.args.Composite(
      **saved, sums=ocp.args.JsonSave(checksums.sums(**parts))
    )
    with self._telling():
      if not self.manager.save(step, args=items, **options):
        raise SaveError(
          f"step {step} is not saved: {self.path} has step "
          f"{self.manager.latest_step()}; move it away"
        )
    self._unchecked.append(os.path.join(self.path, str(step)))

  def finish(self) -> None:
    """Waits until all steps are on disk, and checks that they are.

    Raises:
      SaveError: a step could not be written, or is not there.
    """
    saved, self._unchecked = self._unchecked, []
    with self._telling():
      self.manager.wait_until_finished()
    for path in saved:
      if problem := checksums.find_missing(path):
        raise SaveError(
          f"{path} was saved, but cannot be read back: {problem}. Give another "
          "--workdir, on another disk if this one is unreliable"
        )

  def close(self) -> None:
    """Waits until all steps are on disk, and closes the folder."""
    with self._telling(), contextlib.closing(self.manager):
      self.finish()

  def keep_only(self, kept: Collection[int | None]) -> None:
    """Removes other steps, as Orbax could not because the run was killed."""
    others = set(self.manager.all_steps()).difference(kept)
    if jax.process_index() == 0:
      for step in others:
        files.delete_folder(os.path.join(self.path, str(step)), MARKS)
    _wait_for_all(f"tidied {self.path}")
    if others:
      self.manager.reload()

  @contextlib.contextmanager
  def _telling(self) -> Iterator[None]:
    """Turns any error of Orbax about a save into a SaveError of one line."""
    try:
      yield
    except SaveError:
      raise
    except Exception as error:  # tensorstore's and orbax's have no base
      saved = max(saved_steps.steps_in(self.path), default=None)
      last = (
        f"The last one there is step {saved}"
        if saved
        else "No step is saved there yet"
      )
      raise SaveError(
        f"no checkpoint can be written to {self.path}: {_cause(error)}. {last};"
        " once this is fixed, the same command continues the run"
      ) from error


class Checkpoints:
  """The checkpoints of one workdir; saving goes on in the background."""

  def __init__(
    self, workdir: str, *, keep: int, best_metric: str, best_mode: str
  ):
    """Opens the folders, and creates them if necessary.

    Args:
      workdir: the folder of the run.
      keep: how many of the newest steps to keep.
      best_metric: the metric that decides which step is the best; "" = keep no
        best step.
      best_mode: "min" or "max", whichever value of the metric is the best.
    """
    _tell_once()
    self._keep, self._best_metric = keep, best_metric
    self._newest = _Folder(workdir, "checkpoints", max_to_keep=keep)
    self._folders = [self._newest]
    self._best, self._best_is_tidy = None, False
    if not best_metric:
      return
    _check_metrics(workdir, best_metric)
    self._best = _Folder(
      workdir,
      "best",
      max_to_keep=1,
      best_fn=lambda metrics: metrics[best_metric],
      best_mode=best_mode,
      keep_checkpoints_without_metrics=False,
    )
    self._folders.append(self._best)
    self._is_better = operator.lt if best_mode == "min" else operator.gt
    # Orbax itself knows the metrics of a step only once it is on disk.
    self._best_value = math.inf if best_mode == "min" else -math.inf
    if (step := self._best.manager.best_step()) is not None:
      self._best_value = self._best.manager.metrics(step)[best_metric]

  def save(
    self, step: int, params: Any, rest: Any, metrics: Mapping[str, float]
  ) -> None:
    """Saves a step, also as the best step if its metric is the best.

    When this returns, the best step is on disk. The newest step is still being
    written in the background.

    Args:
      step: the number of updates.
      params: the parameters, a tree of arrays.
      rest: the rest of the state, by key.
      metrics: the metrics of an evaluation at this step; {} if there was none.

    Raises:
      SaveError: this step, or one before it, cannot be written.
    """
    self.save_if_best(step, params, rest, metrics)
    if self._best:
      # In this order, so that a run that is killed in between saves the best
      # step again.
      self._best.finish()
    if step not in self._newest.manager.all_steps():
      self._newest.write(step, params, rest)

  def save_if_best(
    self, step: int, params: Any, rest: Any, metrics: Mapping[str, float]
  ) -> None:
    """Saves a step if it is the best so far; arguments as those of `save`."""
    if not self._best or not metrics:
      return
    self._tidy_best()
    value = metrics[self._best_metric]
    if not math.isfinite(value) or not self._is_better(value, self._best_value):
      return
    if step not in self._best.manager.all_steps():
      self._best_value = value
      # A run that was killed may be at a step before the best one.
      self._best.write(step, params, rest, metrics=dict(metrics), force=True)

  def steps(self, before: int | None = None) -> list[int]:
    """Returns all steps that are saved; with `before`, the earlier ones."""
    steps = sorted(self._newest.manager.all_steps())
    return [step for step in steps if before is None or step < before]

  def latest_step(self, before: int | None = None) -> int | None:
    """Returns the newest step of `steps`, or None."""
    return max(self.steps(before), default=None)

  def drop_after(self, step: int) -> None:
    """Removes the steps after one that a run goes back to."""
    self._newest.keep_only(self.steps(step + 1))

  def set_aside(self, step: int) -> None:
    """Moves a damaged step from WORKDIR/checkpoints to WORKDIR/damaged."""
    folder = self._newest.path
    if jax.process_index() == 0:
      target = os.path.join(os.path.dirname(folder), "damaged")
      files.make_folders(target)
      numbers = itertools.chain([""], map("-{}".format, itertools.count(1)))
      paths = (os.path.join(target, f"{step}{x}") for x in numbers)
      free = next(path for path in paths if not files.exists(path))
      files.move_folder(os.path.join(folder, str(step)), free, MARKS)
    _wait_for_all(f"damaged {step}")
    self._newest.manager.reload()

  def wait(self) -> None:
    """Waits until all steps are on disk.

    Raises:
      SaveError: a step cannot be written.
    """
    for folder in self._folders:
      folder.finish()

  def restore_newest(
    self, params: Any, rest: Any, before: int | None = None
  ) -> tuple[int, Any, Any]:
    """Reads the newest step that is sound, and sets damaged newer ones aside.

    Args:
      params: a tree of jax.ShapeDtypeStruct with shardings.
      rest: the same for the rest of the state, by key.
      before: only steps before this one are read, and none is set aside.

    Returns:
      The step, the parameters and the rest. Keys that a step of an earlier
      release does not have are left out of the rest.

    Raises:
      CheckpointError: no step can be read. Nothing was set aside.
    """
    found, problems = self.find_sound(params, rest, before)
    if found is None:
      raise CheckpointError(
        f"no checkpoint of {self._newest.path} can be read: "
        f"{'; '.join(problems.values())}. Put a copy back, or give another "
        "--workdir to start anew"
      )
    for bad, reason in problems.items():
      _log.warning("%s; going on from step %d instead", reason, found[0])
      if before is None:
        self.set_aside(bad)
    if before is None:
      self.tidy()
    return found

  def tidy(self) -> None:
    """Removes steps that Orbax could not remove because the run was killed."""
    self._newest.keep_only(self.steps()[-self._keep :])
    self._tidy_best()

  def committed_step(self) -> int:
    """Returns the newest complete step; 0 = none, or one is being written."""
    if self._newest.manager.is_saving_in_progress():
      return 0
    return self.latest_step() or 0

  def _tidy_best(self) -> None:
    """Removes all but one best step, before this session saves another."""
    if self._best and not self._best_is_tidy:
      self._best.keep_only([self._best.manager.best_step()])
      self._best_is_tidy = True

  def find_sound(
    self, params: Any, rest: Any, before: int | None = None
  ) -> tuple[tuple[int, Any, Any] | None, dict[int, str]]:
    """Reads the newest step that is sound; changes nothing on disk.

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
      folder = os.path.join(self._newest.path, str(step))
      parts = _items(params, rest)

      def read(step=step, folder=folder, parts=parts):
        parts["rest"] = checksums.saved_part(folder, parts["rest"])
        items = ocp.args.Composite(
          **{k: ocp.args.StandardRestore(part) for k, part in parts.items()}
        )
        return self._newest.manager.restore(step, args=items)

      try:
        found = _read_sound(folder, read)
        state = dict(found["rest"])
        if "average" in parts:
          state["average"] = found["average"]
        return (step, found["params"], state), problems
      except CheckpointError as error:
        problems[step] = str(error)
    return None, problems

  def check(self) -> None:
    """Raises SaveError if the last save has failed; does not wait."""
    for folder in self._folders:
      if not folder.manager.is_saving_in_progress():
        folder.finish()

  def close(self) -> None:
    """Waits until all steps are on disk, and closes the folders.

    Raises:
      SaveError: a step cannot be written.
    """
    with contextlib.ExitStack() as stack:
      for folder in self._folders:
        stack.callback(folder.close)


def _wait_for_all(what: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def _cause(error: Exception) -> str:
  code = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's
  if code:
    return os.strerror(int(code[1]))
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return errors.first_line(error)


@functools.cache
def _tell_once() -> None:
  """Keeps errors that are also raised out of the logs, unless --verbosity=1.

  When a save fails, Orbax logs a stack trace for every array, and tensorstore
  prints one for every answer that Orbax no longer expects.
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
  folder: str, read: Callable[[], Mapping[str, Any]], *, alone: bool = False
) -> Mapping[str, Any]:
  """Reads parts of a step, and compares them with the saved checksums.

  Args:
    folder: the folder of the step.
    read: a function () -> {"params": tree, ...}.
    alone: whether only this process reads, without the other processes.

  Returns:
    The result of `read`.

  Raises:
    CheckpointError: the step cannot be read, or differs from what was saved.
      All processes that read raise it.
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
    reason = "another process could not read it; see its log"
    if problem:
      reason = errors.first_line(problem)
    raise CheckpointError(
      f"checkpoint {folder} cannot be read: {reason}"
    ) from problem
  # All hosts compute the sums, though only the first compares them.
  values = checksums.sums(**found)
  damage = ""
  if not several or jax.process_index() == 0:
    damage = checksums.find_damage(folder, values)
  if not _all_agree(not damage, several):
    damage = damage or "process 0 found it damaged; see its log"
    raise CheckpointError(f"checkpoint {folder} is damaged: {damage}")
  return found


def _all_agree(is_good: bool, several: bool) -> bool:
  """Returns whether all processes find a step good, if there are several."""
  if not several:
    return is_good
  return bool(multihost_utils.process_allgather(np.int32(is_good)).all())


def _is_no_damage(error: Exception) -> bool:
  """Returns whether an error says nothing about damage of a checkpoint."""
  no_damage = (PermissionError, MemoryError, TimeoutError, *files.UNREADABLE)
  if isinstance(error, no_damage) or _is_of_network(error):
    return True
  return any(code in str(error) for code in _NO_DAMAGE)


def _is_of_network(error: BaseException | None) -> bool:
  """Returns whether a library of buckets raised an error, or its cause."""
  while error is not None:
    library = type(error).__module__.partition(".")[0]
    if library in ("aiohttp", "gcsfs", "requests", "google"):
      return not isinstance(error, FileNotFoundError)
    error = error.__cause__
  return False


def _check_metrics(workdir: str, name: str) -> None:
  """Checks the metrics of the best steps, which Orbax reads when it opens them.

  Raises:
    CheckpointError: the metrics of a step cannot be read, or lack this metric.
  """
  folder = files.absolute(os.path.join(workdir, "best"))
  for step in saved_steps.steps_in(folder):
    path = os.path.join(folder, str(step))
    try:
      saved_steps.read_metric(path, name)
    except FileNotFoundError:
      continue  # the run was killed while it removed the step
    except files.ODD_JSON as error:
      raise CheckpointError(
        f"the metrics of {path} are damaged, or have no {name}: {error!r:.200};"
        " put a copy back, or move that folder away to do without that best "
        "step"
      ) from error


def _meet(*, key: str, timeout_ms: int) -> None:
  """Waits for the other hosts, unless a save has failed here.

  Orbax calls this barrier even after a save that failed, and then waits ten
  minutes for hosts that wait for this one. Therefore no code may save a step
  while it handles an exception.
  """
  error = sys.exception()
  if isinstance(error, Exception):
    failure = SaveError(f"no checkpoint can be written: {_cause(error)}")
    failure.__cause__ = error
    peers.leave(failure)
  ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _open_manager(folder: str, **options: Any) -> ocp.CheckpointManager:
  """Opens a folder of steps with Orbax; arguments as those of `_Folder`."""
  check_path(folder)
  if files.is_remote(folder):
    files.prepare_libraries()
  try:
    return ocp.CheckpointManager(
      folder,
      options=ocp.CheckpointManagerOptions(
        cleanup_tmp_directories=True,
        # If a folder could not be created in the background, the threads that
        # wait for it would keep the process from ending for minutes.
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
      f"{folder} cannot be opened: {errors.first_line(error)}; move the "
      "step away whose _CHECKPOINT_METADATA is damaged"
    ) from error


def restore_params(
  workdir: str, params: Any, checkpoint: str = "", is_average: bool = False
) -> tuple[int, Any]:
  """Reads only the parameters of a run, which may still be training.

  Args:
    workdir: the folder of the run.
    params: a tree of jax.ShapeDtypeStruct with shardings.
    checkpoint: which step, as for `saved_steps.choose`.
    is_average: see `read_params`.

  Returns:
    The step and the parameters.

  Raises:
    CheckpointError: there is no such step, or its shapes differ.
  """
  read = functools.partial(read_params, wanted=params, is_average=is_average)
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

  Each process may see another state of a run that is still training.

  Args:
    workdir: the folder of the run.
    checkpoint: as for `saved_steps.choose`.

  Raises:
    saved_steps.StepError: a process does not find the step. All raise it.
  """
  try:
    chosen = saved_steps.choose(workdir, checkpoint)
    folder = os.path.relpath(chosen.path, files.absolute(workdir))
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
  path = os.path.join(files.absolute(workdir), folder)
  return saved_steps.SavedStep(path, step, reason)


def read_params(
  folder: str, wanted: Any = None, is_average: bool = False
) -> Any:
  """Reads the parameters of a step, and compares them with their checksums.

  Args:
    folder: the folder of the step, such as WORKDIR/checkpoints/STEP.
    wanted: a tree of jax.ShapeDtypeStruct with shardings, the same on all
      hosts. None = read all parameters of the step, on this host only.
    is_average: whether to read their average instead (optim.average_decay).

  Returns:
    A tree like `wanted`, or nested dicts of numpy arrays.

  Raises:
    CheckpointError: there is no such step, its shapes differ, or it is damaged.
  """
  folder = files.absolute(folder)
  check_path(folder)
  name = "average" if is_average else "params"
  path = os.path.join(folder, name)
  if is_average and not files.is_folder(path):
    raise CheckpointError(
      f"{folder} has no average of the parameters, which a run keeps with "
      "optim.average_decay; read the parameters themselves, with "
      "eval.average=False or convert.weights=last"
    )

  def read():
    if not files.is_folder(path):
      raise ValueError(f"{path} does not exist")
    if wanted is not None:
      with ocp.StandardCheckpointer() as checkpointer:
        return {name: checkpointer.restore(path, wanted)}
    args = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
      checksums.shapes_of(path),
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
      return {name: checkpointer.restore(path, restore_args=args)}

  try:
    return _read_sound(folder, read, alone=wanted is None)[name]
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


def read_rest(folder: str, wanted: Mapping[str, Any]) -> Any:
  """Reads what a step keeps beside the parameters.

  Args:
    folder: the folder of the step, such as WORKDIR/checkpoints/STEP.
    wanted: trees of jax.ShapeDtypeStruct with shardings, by key.

  Raises:
    CheckpointError: the step has none, it is damaged, or its shapes differ.
  """
  folder = files.absolute(folder)
  path = os.path.join(folder, "rest")

  def read():
    if not files.is_folder(path):
      raise ValueError(f"{path} does not exist")
    with ocp.StandardCheckpointer() as checkpointer:
      part = _items(None, wanted)["rest"]
      part = checksums.saved_part(folder, part)
      return {"rest": checkpointer.restore(path, part)}

  return _read_sound(folder, read)["rest"]


def write_params(workdir: str, params: Any) -> None:
  """Writes imported parameters as step 0 of a workdir.

  Args:
    workdir: the folder of a new run.
    params: nested dicts of numpy arrays.

  Raises:
    SaveError: the step cannot be written.
  """
  saved = Checkpoints(workdir, keep=1, best_metric="", best_mode="min")
  with contextlib.closing(saved):
    saved.save(0, params, {"step": np.zeros((), np.int32)}, {})
