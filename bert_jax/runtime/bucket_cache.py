"""Copies of a bucket's objects on the disk of this machine.

Prepared data and weights are read at random places, thousands of times. So
they are copied once, and all processes of the machine read the copy:

  CACHE/BUCKET/NAME               the content of the object
  CACHE/.notes/BUCKET/NAME.copy   its generation, size and checksum, as JSON
  CACHE/.users/PROCESS            the copies that a process uses; it is locked

CACHE is $BERT_JAX_CACHE, by default ~/.cache/bert_jax/buckets. It may use
$BERT_JAX_CACHE_GB; by default nine tenths of what is free there. Copies that no
process uses are deleted to make room, the longest unused first.

The checksum of the service is compared when an object is copied, and its
generation each time that a process asks for it.
"""

from collections.abc import Iterator, Sequence
import contextlib
import fcntl
import functools
import json
import logging
import os
import secrets
import shutil
import threading
import time

from bert_jax.runtime import buckets
from bert_jax.runtime import errors

_log = logging.getLogger(__name__)

_USERS, _NOTES = ".users", ".notes"
_SHARE = 0.9  # of the free disk that copies may use, if nobody says
_SAY_BYTES = 1 << 30  # copying more than this is told
_said = threading.Lock()


class NoRoomError(OSError):
  """The copies do not fit the part of the disk that they may use."""


def folder() -> str:
  """Returns CACHE."""
  if asked := os.environ.get("BERT_JAX_CACHE"):
    return os.path.abspath(os.path.expanduser(asked))
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return os.path.join(os.path.expanduser(home), "bert_jax", "buckets")


def place(path: str) -> str:
  """Returns where the copy of an object or folder is, if there is one."""
  bucket, name = buckets.split(buckets.normal(path))
  return os.path.join(folder(), bucket, *name.split("/"))


def copy(found: Sequence[buckets.Object]) -> list[str]:
  """Returns local copies of some objects, which are made where necessary.

  Args:
    found: the objects.

  Raises:
    NoRoomError: they do not fit.
  """
  targets = [place(one.path) for one in found]
  _use(targets)
  missing = [
    (one, target)
    for one, target in zip(found, targets, strict=True)
    if not _is_copy(target, one)
  ]
  size = sum(one.size for one, _ in missing)
  if not missing:
    return targets
  _make_room(size)
  start = time.monotonic()
  if size > _SAY_BYTES:
    _log.info("copying %.1f GB to %s", size / 1e9, folder())
  buckets.in_threads(lambda pair: _copy_one(*pair), missing)
  if size > _SAY_BYTES:
    secs = time.monotonic() - start
    _log.info("copied them in %.0f s (%.2f GB/s)", secs, size / 1e9 / secs)
  return targets


def keep(found: buckets.Object, source: str) -> None:
  """Takes a file that was just uploaded as the copy of its object.

  Args:
    found: the object.
    source: the file, which is moved, or deleted if there is no room.
  """
  target = place(found.path)
  try:
    _use([target])
    _make_room(found.size)
    with _locked(target):
      with contextlib.suppress(OSError):
        os.unlink(_note(target))
      with contextlib.suppress(OSError):
        os.unlink(target)  # a process that has it open keeps what it reads
      shutil.move(source, target)
      _write_note(target, found)
  except OSError:
    with contextlib.suppress(OSError):
      os.unlink(source)


def forget(path: str) -> None:
  """Deletes the copy of an object, because it is damaged.

  Args:
    path: the local path of the copy.
  """
  for name in (_note(path), path):
    with contextlib.suppress(OSError):
      os.unlink(name)


# --- one copy ----------------------------------------------------------------


def _note(target: str) -> str:
  """Returns the path of the note about a copy."""
  root = folder()
  name = os.path.relpath(target, root)
  return os.path.join(root, _NOTES, f"{name}.copy")


def _facts(found: buckets.Object) -> dict[str, int | str]:
  return {
    "generation": found.generation,
    "size": found.size,
    "crc32c": found.crc32c,
  }


def _is_copy(target: str, found: buckets.Object) -> bool:
  try:
    with open(_note(target), encoding="utf-8") as f:
      facts = json.load(f)
    is_copy = facts == _facts(found) and os.stat(target).st_size == found.size
  except (OSError, ValueError):
    return False
  if is_copy:
    with contextlib.suppress(OSError):
      os.utime(_note(target))  # when it was used
  return is_copy


def _write_note(target: str, found: buckets.Object) -> None:
  temporary = f"{_note(target)}.{secrets.token_hex(8)}"
  with open(temporary, "w", encoding="utf-8") as f:
    json.dump(_facts(found), f)
  os.replace(temporary, _note(target))


@contextlib.contextmanager
def _locked(target: str) -> Iterator[None]:
  """A context in which no other process makes a copy in the same place."""
  os.makedirs(os.path.dirname(target), exist_ok=True)
  os.makedirs(os.path.dirname(_note(target)), mode=0o700, exist_ok=True)
  with open(f"{_note(target)}.lock", "a") as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    yield


def _copy_one(found: buckets.Object, target: str) -> None:
  with _locked(target):
    if _is_copy(target, found):  # another process was faster
      return
    with contextlib.suppress(OSError):
      os.unlink(_note(target))
    # A process that has the old copy open keeps it. What a process that was
    # killed has left is overwritten.
    temporary = f"{_note(target)}.part"
    try:
      buckets.download(found, temporary)
      os.replace(temporary, target)
    finally:
      with contextlib.suppress(OSError):
        os.unlink(temporary)
    _write_note(target, found)


# --- room --------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _users_file(pid: int, root: str) -> int:
  """Returns this process's open, locked list of the copies that it uses."""
  users = os.path.join(root, _USERS)
  os.makedirs(users, mode=0o700, exist_ok=True)
  path = os.path.join(users, f"{pid}-{secrets.token_hex(8)}")
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if os.fstat(descriptor).st_nlink:
      return descriptor
    os.close(descriptor)  # another process took it for that of a dead one


def _use(targets: Sequence[str]) -> None:
  """Notes, until this process ends, that it uses copies."""
  text = "".join(f"{json.dumps(target)}\n" for target in targets)
  descriptor = _users_file(os.getpid(), folder())
  with _said:
    os.write(descriptor, text.encode())


def _used() -> set[str]:
  """Returns the copies that processes use; forgets processes that ended."""
  used: set[str] = set()
  users = os.path.join(folder(), _USERS)
  for name in os.listdir(users):
    path = os.path.join(users, name)
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as f:
      try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
      except BlockingIOError:
        for line in f:
          with contextlib.suppress(ValueError):
            used.add(json.loads(line))
  return used


def _make_room(size: int) -> None:
  """Deletes copies that no process uses until there is room.

  Args:
    size: the bytes that are to be added.

  Raises:
    NoRoomError: there is not enough.
  """
  root = folder()
  os.makedirs(root, mode=0o700, exist_ok=True)
  with open(os.path.join(root, ".lock"), "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    there = {}  # copy -> when it was used, and its size
    for parent, folders, names in os.walk(root):
      if parent == root:
        folders[:] = [name for name in folders if not name.startswith(".")]
        continue
      for name in names:
        path = os.path.join(parent, name)
        with contextlib.suppress(OSError):
          there[path] = (_used_at(path), os.stat(path).st_size)
    total = sum(size for _, size in there.values())
    free = shutil.disk_usage(root).free
    most = _limit() or (free + total) * _SHARE
    over = max(total + size - most, size - free)
    if over <= 0:
      return
    in_use = _used()
    for path, (_, length) in sorted(there.items(), key=lambda x: x[1][0]):
      if path not in in_use:
        forget(path)
        over -= length
      if over <= 0:
        return
  raise NoRoomError(
    f"{size / 1e9:.2f} GB do not fit the {max(most, 0) / 1e9:.2f} GB that "
    f"copies of buckets may use in {root}; set BERT_JAX_CACHE to a folder on a "
    "larger disk, or raise BERT_JAX_CACHE_GB"
  )


def _limit() -> float:
  """Returns the bytes that BERT_JAX_CACHE_GB allows; 0 = it is not set."""
  asked = os.environ.get("BERT_JAX_CACHE_GB") or "0"
  try:
    return float(asked) * 1e9
  except ValueError:
    raise errors.UserError(
      f"BERT_JAX_CACHE_GB={asked} is not a number of gigabytes, such as 50"
    ) from None


def _used_at(path: str) -> float:
  try:
    return os.stat(_note(path)).st_mtime
  except OSError:
    return os.stat(path).st_mtime
