"""Compiled programs kept on disk, so that a second start need not compile.

A program read back is the machine code that was compiled before, so results
are bit-equal. Programs are kept in a folder of the user, not in that of a run,
because they are executed, and runs are passed on to other people.

XLA's key of a program for the CPU does not say which CPU it is for, so each
kind has a folder of its own; a home may be shared by different machines.

Source: docs.jax.dev, "Persistent compilation cache".
"""

import collections
from collections.abc import Iterator
import contextlib
import hashlib
import logging
import os
import pathlib
import platform
from typing import Any

import filelock
import jax
from jax.experimental.compilation_cache import compilation_cache

from bert_jax.runtime import files

_log = logging.getLogger(__name__)

AUTO, OFF = "auto", "off"
MAX_BYTES = 2 << 30  # above this, the least recently used programs go
# A program that compiles faster than this is not kept: reading it would hardly
# be faster.
MIN_COMPILE_SECS = 0.1
_LOCK_SECS = 10
_COUNTS: collections.Counter[str] = collections.Counter()
_REQUEST = "/jax/compilation_cache/compile_requests_use_cache"
_HIT = "/jax/compilation_cache/cache_hits"
_own_folder = ""


def enable(asked: str, on_cpu: bool) -> str | None:
  """Makes jax keep compiled programs; call it before anything is compiled.

  Args:
    asked: "auto", "off" or a folder, also of a bucket. With "auto", a folder
      that jax is already configured with, for example by
      JAX_COMPILATION_CACHE_DIR, is kept.
    on_cpu: whether the CPU computes, not an accelerator.

  Returns:
    The folder, or None if no program is kept.

  Raises:
    ValueError: `asked` is empty or a path such as s3://bucket/folder.
  """
  if not asked or ("://" in asked and not files.is_remote(asked)):
    raise ValueError(
      f"--compile_cache={asked} is not a folder; give a folder, also of a "
      "bucket (gs://BUCKET/FOLDER), auto or off"
    )
  global _own_folder
  _own_folder = ""
  if asked == OFF:
    jax.config.update("jax_enable_compilation_cache", False)
    return None
  if not _COUNTS:
    _COUNTS[_REQUEST] = 0
    jax.monitoring.register_event_listener(_count)
  settings: Any = jax.config  # its attributes are made at run time
  known = settings.jax_compilation_cache_dir
  if asked == AUTO and known:
    return known
  if files.is_remote(asked):
    # Without a limit: keeping one needs a lock, which buckets do not have.
    return _use(os.path.join(files.absolute(asked), cpu_name()), -1)
  folder = choose_folder(asked, on_cpu)
  if folder is None:
    return None
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    drop_unfinished(folder)
  except OSError as error:
    _log.warning("%s; compiled programs are not kept", error)
    return None
  _own_folder = _use(str(folder), MAX_BYTES)
  return _own_folder


def own_folder() -> str:
  """Returns the folder of programs if it is this user's own, else "".

  It is "" before `enable`, for buckets, and where jax was configured by others.
  """
  return _own_folder


def _use(folder: str, max_bytes: int) -> str:
  """Has jax keep programs in a folder; returns it."""
  if files.is_remote(folder):
    files.prepare_libraries()
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_compilation_cache_max_size", max_bytes)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    jax.config.update(
      "jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECS
    )
  return folder


def _count(event: str, **_) -> None:
  _COUNTS[event] += 1


def count(*, was_read: bool) -> None:
  """Counts a program that was read or compiled without jax's cache."""
  _COUNTS.update([_REQUEST, _HIT] if was_read else [_REQUEST])


@contextlib.contextmanager
def bypassed() -> Iterator[None]:
  """A context in which jax neither reads nor keeps compiled programs."""
  settings: Any = jax.config  # its attributes are made at run time
  enabled = settings.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()  # jax looks at its settings only once
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()


def summary() -> str:
  """Returns how many programs were read and compiled since `enable`."""
  read = _COUNTS[_HIT]
  return f"programs: {read} read, {_COUNTS[_REQUEST] - read} compiled"


def choose_folder(asked: str, on_cpu: bool) -> pathlib.Path | None:
  """Returns the folder of compiled programs; None = they are not kept.

  Args:
    asked: "auto" or a folder.
    on_cpu: whether the CPU computes, not an accelerator.
  """
  if asked != AUTO:
    folder = pathlib.Path(asked).expanduser().absolute()
  elif on_cpu and rejects_own_programs():
    return None
  else:
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = pathlib.Path(caches).expanduser() / "bert_jax" / "programs"
  return folder / cpu_name()


def cpu_name(cpuinfo: str = "/proc/cpuinfo") -> str:
  """Returns a name that two CPUs share only if their instructions are equal."""
  features = platform.processor()
  try:
    with open(cpuinfo, encoding="utf-8", errors="replace") as file:
      for line in file:
        if line.split(":")[0].strip() in ("flags", "Features"):
          features = " ".join(sorted(line.split(":")[1].split()))
          break
  except OSError:  # not Linux
    pass
  digest = hashlib.sha256(features.encode()).hexdigest()[:12]
  return f"{platform.machine()}-{digest}"


def rejects_own_programs(
  report: str = "/sys/devices/system/cpu/vulnerabilities/gather_data_sampling",
) -> bool:
  """Returns whether XLA refuses to read what it compiled on this very CPU.

  On CPUs whose gather instructions were made slow for security, the compiler
  avoids them and records that with the program. When it reads the program, it
  takes the record for an instruction that the CPU lacks. It then compiles every
  program again, with an error message for each.

  Args:
    report: the file in which Linux says whether the CPU is one of them.

  Source: github.com/jax-ml/jax/issues/38445.
  """
  try:
    return not pathlib.Path(report).read_text().startswith("Not affected")
  except OSError:  # no such CPU, or no such kernel
    return False


def drop_unfinished(folder: pathlib.Path) -> None:
  """Deletes programs that a kill left half written; jax fails to read them.

  jax writes a program, then when it was last used, both under a lock.
  """
  try:
    with filelock.FileLock(folder / ".lockfile").acquire(timeout=_LOCK_SECS):
      for path in folder.glob("*-cache"):
        used = path.with_name(path.name.removesuffix("-cache") + "-atime")
        if not used.exists() or used.stat().st_size != 8:
          path.unlink()
          used.unlink(missing_ok=True)
  except filelock.Timeout:
    _log.warning("%s is locked; its unfinished programs are kept", folder)
