"""Checkpoints: parameters and the rest of the state, kept apart, by Orbax.

WORKDIR/checkpoints/STEP   the newest few, to go on from
WORKDIR/best/STEP          the best by a metric, where the run names one
WORKDIR/damaged/STEP       what could not be read, set aside

Beside the arrays a step has their checksums: one number for every array, which
a change of any one element changes. Whoever reads a step, all of it or only its
parameters, compares them with what was read, whatever mesh wrote the step and
whatever mesh reads it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
import contextlib
import functools
import glob
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
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from bert_jax.runtime import errors
from bert_jax.runtime import hosts
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps

_log = logging.getLogger(__name__)

# Keys of the rest of a state that came after the checksums.
_ADDED_KEYS = frozenset({"guard", "train_loss"})
_CHUNK = 1 << 16  # elements whose checksum is computed in the processor's cache


# Status codes of storage that cannot be read now. They do not mean that the
# checkpoint in it is damaged.
_NO_DAMAGE = (
  "RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED"
)  # fmt: skip


class CheckpointError(errors.UserError):
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
      self._finish(self._newest)
      items = _items(params, rest)
      with _telling(self._newest):
        if not self._newest.save(step, args=items):
          raise SaveError(
            f"step {step} is not saved: {self._newest.directory} has step "
            f"{self.latest_step()}; move it away"
          )
      self._unseen.append(os.path.join(self._newest.directory, str(step)))

  def save_if_best(
    self, step: int, params: Any, rest: Any, metrics: Mapping[str, float]
  ) -> None:
    """Saves a step as the best, where it is; arguments as those of save."""
    if not self._best or not metrics:
      return
    self._tidy_best()
    value = metrics[self._best_metric]
    if self._is_best(value) and step not in self._best.all_steps():
      self._finish(self._best)
      self._best_value = value
      items = _items(params, rest)
      with _telling(self._best):
        self._best.save(
          step,
          args=items,
          metrics=dict(metrics),
          force=True,  # also before a step that was the best, after a kill
        )
      self._unseen.append(os.path.join(self._best.directory, str(step)))

  def _is_best(self, value: float) -> bool:
    if not math.isfinite(value):
      return False
    if self._best_value is None:
      return True
    sign = 1 if self._best_mode == "min" else -1
    return sign * value < sign * self._best_value

  def latest_step(self, before: int | None = None) -> int | None:
    """The newest step saved, or None; with `before`, of the earlier ones."""
    return max(self._steps(before), default=None)

  def steps(self) -> list[int]:
    """All that are saved."""
    return sorted(self._steps(None))

  def drop_after(self, step: int) -> None:
    """Removes what was saved after a step that a run goes back to."""
    _remove_others(self._newest, self._steps(step + 1))

  def set_aside(self, step: int) -> None:
    """Moves a damaged step to WORKDIR/damaged."""
    folder = str(self._newest.directory)
    _log.warning("step %d of %s is damaged", step, folder)
    _set_aside(folder, step)
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
      if problem := _missing(path):
        raise SaveError(
          f"{path} was saved, but cannot be read back: {problem}. Give another "
          "--workdir, on another disk if this one is unreliable"
        )

  def _steps(self, before: int | None) -> list[int]:
    steps = self._newest.all_steps()
    return [step for step in steps if before is None or step < before]

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
    problems, found = self._find_sound(params, rest, before)
    if found is None:
      raise CheckpointError(
        f"no checkpoint of {folder} can be read: "
        f"{'; '.join(problems.values())}. Put a copy back, or give another "
        "--workdir to start anew"
      )
    for bad, reason in problems.items():
      _log.warning("%s; going on from step %d instead", reason, found[0])
      if before is None:
        _set_aside(folder, bad)
    if before is None:
      if problems:
        self._newest.reload()
      _remove_others(self._newest, sorted(self._steps(None))[-self._keep :])
      self._tidy_best()
    return found

  def _tidy_best(self) -> None:
    """Leaves one best, before this session saves another."""
    if self._best and not self._best_is_tidy:
      _remove_others(self._best, [self._best.best_step()])
      self._best_is_tidy = True

  def find_sound(
    self, params: Any, rest: Any
  ) -> tuple[int | None, dict[int, str]]:
    """Reads the newest step that is sound, and changes nothing.

    Args:
      params: as for restore_newest.
      rest: as for restore_newest.

    Returns:
      The step, or None if there is none, and what is wrong with newer ones.
    """
    problems, found = self._find_sound(params, rest, None)
    return found[0] if found else None, problems

  def _find_sound(
    self, params: Any, rest: Any, before: int | None
  ) -> tuple[dict[int, str], tuple[int, Any, Any] | None]:
    problems: dict[int, str] = {}
    for step in sorted(self._steps(before), reverse=True):
      try:
        return problems, (step, *self._restore(step, params, rest))
      except CheckpointError as error:
        problems[step] = str(error)
    return problems, None

  def _restore(self, step: int, params: Any, rest: Any) -> tuple[Any, Any]:
    folder = os.path.join(str(self._newest.directory), str(step))

    def read():
      found = self._newest.restore(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardRestore(params),
          rest=ocp.args.StandardRestore(_saved_part(folder, rest)),
        ),
      )
      return {"params": found.params, "rest": found.rest}

    found = _read_sound(folder, read)
    return found["params"], found["rest"]

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
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"tidied {manager.directory}")
  if others:
    manager.reload()


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
  return _first_line(error)


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


def _items(params: Any, rest: Any) -> ocp.args.Composite:
  return ocp.args.Composite(
    params=ocp.args.StandardSave(params),
    rest=ocp.args.StandardSave(rest),
    sums=ocp.args.JsonSave(sums(params=params, rest=rest)),
  )


@jax.jit
def _sums(arrays: list[jax.Array]) -> list[jax.Array]:
  return [_sum(x) for x in arrays]


def _sum(x: jax.Array) -> jax.Array:
  wide = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
  index = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    index = index * size + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
  # Different bits stay different (multiplication by an odd number and the
  # shifts can be undone), so one changed element always shows in the sum.
  bits = wide.astype(jnp.uint32) ^ (index * jnp.uint32(0x9E3779B9))
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
  bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
  return jnp.sum(bits ^ (bits >> 16), dtype=jnp.uint32)


def _sum_on_host(x: np.ndarray) -> int:
  """The checksum of `_sum`, of an array on the host."""
  flat = np.ascontiguousarray(x).reshape(-1)
  size = min(flat.dtype.itemsize, 4)  # wider ones are taken in two halves
  flat = flat.view(f"uint{8 * size}")
  places = np.arange(_CHUNK, dtype=np.uint32) * np.uint32(0x9E3779B9)
  total = 0
  for start in range(0, flat.size, _CHUNK):
    bits = flat[start : start + _CHUNK].astype(np.uint32)
    shift = np.uint32(start * 0x9E3779B9 & 0xFFFFFFFF)
    bits ^= places[: bits.size] + shift
    bits ^= bits >> 16
    bits *= np.uint32(0x7FEB352D)
    bits ^= bits >> 15
    bits *= np.uint32(0x846CA68B)
    bits ^= bits >> 16
    total += int(np.sum(bits, dtype=np.uint64))
  return total & 0xFFFFFFFF


def sums(**trees: Any) -> dict[str, int]:
  """One number for each array, which depends on all of its bits.

  Args:
    **trees: of numpy arrays, or of jax's, over any mesh. An element of a jax
      array has 4 bytes or less.

  Returns:
    {"params/encoder/...": sum}.
  """
  paths = jax.tree_util.tree_leaves_with_path(trees)
  found: dict[str, int] = {}
  # One program for all arrays of a mesh: several at once, each with its own
  # exchange between hosts, may wait for each other for ever.
  groups: dict[frozenset, dict[str, jax.Array]] = {}
  for path, x in paths:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    found[name] = 0  # in the order of the tree
    if isinstance(x, jax.Array):
      groups.setdefault(frozenset(x.sharding.device_set), {})[name] = x
    else:
      found[name] = _sum_on_host(np.asarray(x))
  for group in groups.values():
    values = jax.device_get(_sums(list(group.values())))
    found |= {n: int(x) for n, x in zip(group, values, strict=True)}
  return found


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
  if not (alone or _on_all_hosts(found is not None)) or found is None:
    reason = _first_line(problem) if problem else "another host says so"
    raise CheckpointError(
      f"checkpoint {folder} cannot be read: {reason}"
    ) from problem
  values = sums(**found)  # by all hosts, whatever the first then reads
  damage = _damage(folder, values) if alone or jax.process_index() == 0 else ""
  if not (not damage if alone else _on_all_hosts(not damage)):
    damage = damage or "process 0 says so; see its log"
    raise CheckpointError(f"checkpoint {folder} is damaged: {damage}")
  return found


def _damage(folder: str, found: Mapping[str, int]) -> str:
  """Says what is wrong with parts of a step that have these sums, or "".

  Args:
    folder: of the step.
    found: of whole items, as `sums` returns it.
  """
  try:
    with open(os.path.join(folder, "_CHECKPOINT_METADATA")) as file:
      items = json.load(file)["item_handlers"]
    if "sums" not in items and not os.path.exists(os.path.join(folder, "sums")):
      if not _predates_sums(folder, items):
        return "its checksums are gone"
      _tell_of_old(folder)
      return ""
    path = os.path.join(folder, "sums", "metadata")
    with open(path, encoding="utf-8") as file:
      saved = dict(json.load(file))
  except (
    OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError
  ) as error:  # fmt: skip
    return f"{error!r:.300}"
  read = {name.partition("/")[0] for name in found}
  names = {name for name in saved if name.partition("/")[0] in read}
  bad = sorted(
    name for name in names | set(found) if saved.get(name) != found.get(name)
  )
  if bad:
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"{bad[0]}{more} is not what was saved"
  # The sum of a number depends on nothing else.
  step = os.path.basename(folder)
  wanted = _sum_on_host(np.array(int(step), np.int32))
  if saved.get("rest/step") != wanted:
    return (
      f"it is not of step {step}, but a copy of another step, or another one "
      "that was renamed"
    )
  return ""


def _predates_sums(folder: str, items: Collection[str]) -> bool:
  """Whether a step without checksums is of a release that wrote none.

  Records of runs say since which step there are checksums. Those of earlier
  releases do not; but a state with a guard, which came later than checksums,
  is of a release that wrote them.

  Args:
    folder: of the step.
    items: names of what was saved.
  """
  workdir = os.path.dirname(os.path.dirname(folder))
  run: dict[str, Any] = {}
  if os.path.exists(os.path.join(workdir, "run.json")):
    run = runs.read_run(workdir)
  if int(os.path.basename(folder)) >= run.get("checksums_since", math.inf):
    return False
  if "rest" not in items:
    return "converted_from" in run
  return not _ADDED_KEYS & _keys_of_rest(folder)


@functools.cache
def _tell_of_old(folder: str) -> None:
  """Logs once that a step is not checked."""
  _log.info("%s predates checksums; skipping its verification", folder)


def _keys_of_rest(folder: str) -> set[str]:
  """The keys of what a step has beside its parameters.

  Raises:
    OSError, ValueError, LookupError, TypeError, AttributeError or
      RecursionError: its metadata is damaged.
  """
  with open(os.path.join(folder, "rest", "_METADATA")) as file:
    keys = json.load(file)["tree_metadata"].values()
  return {key["key_metadata"][0]["key"] for key in keys}


def _missing(folder: str) -> str:
  """Says what a step that has just been saved lacks, or "".

  Only the first host looks, at names and metadata: a cut in the power or a bad
  disk is found by the checksums, when the step is read.

  Args:
    folder: of the step.
  """
  if jax.process_index() != 0:
    return ""
  if int(os.path.basename(folder)) not in saved_steps.steps_in(
    os.path.dirname(folder)
  ):
    return f"{folder} is not there"
  try:
    with open(os.path.join(folder, "sums", "metadata")) as file:
      wanted = set(json.load(file))
    found: set[str] = set()
    for item in ("params", "rest"):
      shapes = _tree_of(os.path.join(folder, item))
      for path, _ in jax.tree_util.tree_leaves_with_path({item: shapes}):
        found.add(jax.tree_util.keystr(path, simple=True, separator="/"))
  except Exception as error:  # tensorstore's and orbax's errors have no base
    return _first_line(error)
  lost = sorted(wanted ^ found)
  return f"it has no {', '.join(lost)}"[:500] if lost else ""


def _tree_of(path: str) -> Any:
  """Shapes and types of the arrays of an item, by their own metadata.

  Raises:
    ValueError: there is none; tensorstore and Orbax raise other errors.
  """
  with ocp.PyTreeCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(path)
  tree = getattr(metadata, "item_metadata", metadata)
  if tree is None:
    raise ValueError(f"the metadata of {path} cannot be read")
  return tree.tree


def _on_all_hosts(is_good: bool) -> bool:
  if jax.process_count() == 1:
    return is_good
  return bool(multihost_utils.process_allgather(np.int32(is_good)).all())


def _set_aside(folder: str, step: int) -> None:
  """Moves a step from WORKDIR/checkpoints to WORKDIR/damaged."""
  if jax.process_index() == 0:
    target = os.path.join(os.path.dirname(folder), "damaged")
    os.makedirs(target, exist_ok=True)
    number = 0
    while os.path.exists(
      path := os.path.join(target, f"{step}{f'-{number}' if number else ''}")
    ):
      number += 1
    os.rename(os.path.join(folder, str(step)), path)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"damaged {step}")


def _saved_part(folder: str, rest: Any) -> Any:
  """What a step has of the rest of a state, which has grown since the first."""
  try:
    names = _keys_of_rest(folder)
  except (
    OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError
  ):  # fmt: skip
    return rest  # reading it will say what is wrong
  if not set(rest) - names <= _ADDED_KEYS:
    return rest
  return {name: value for name, value in rest.items() if name in names}


def _is_no_damage(error: Exception) -> bool:
  """Whether a checkpoint may well be sound that could not be read."""
  if isinstance(error, PermissionError | MemoryError | TimeoutError):
    return True
  return any(code in str(error) for code in _NO_DAMAGE)


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [repr(error)])[0][:500]


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
    hosts.leave(failure)
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
      f"{folder} cannot be opened: {_first_line(error)}; move the step away "
      "whose _CHECKPOINT_METADATA is damaged"
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
  folder, step, reason, problem = hosts.decide(mine, _first_choice)
  if problem:
    raise saved_steps.StepError(problem)
  _log.info("reading step %d of %s, %s", step, workdir, reason)
  path = os.path.join(os.path.abspath(workdir), folder)
  return saved_steps.SavedStep(path, step, reason)


def _first_choice(choices: list[list[Any]]) -> list[Any]:
  """The choice of process 0, or what another process could not find."""
  for i, (*_, problem) in enumerate(choices):
    if problem and i:
      problem = (
        f"process {i} does not see what process 0 sees, so give a folder that "
        f"all processes share: {problem}"
      )
    if problem:
      return ["", 0, "", problem]
  return choices[0]


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
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _tree_of(path)
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
