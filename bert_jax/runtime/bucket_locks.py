"""Locks of folders in a bucket, which expire where their holder is silent.

The lock of a folder is the object `.lock` in it. Only a process that creates it
has it (generation 0), and its holder writes it again every `BEAT_SECS`, on the
generation that it wrote before. So its generation tells that the holder lives.

A lock of a process that has ended on this machine is taken over at once. Of
another machine it is taken over after `EXPIRE_SECS` without a change. Taking it
over is a write on the generation seen, so that of several only one succeeds,
and the old holder's next beat fails: it has lost the lock, and ends at once.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import json
import logging
import math
import os
import secrets
import threading
import time
from typing import NoReturn

from bert_jax.runtime import bucket_appends
from bert_jax.runtime import buckets
from bert_jax.runtime import errors

_log = logging.getLogger(__name__)

BEAT_SECS = 20.0
EXPIRE_SECS = 120.0
_POLL_SECS = 5.0
_LOOK_SECS = 2.0  # for the name of who has taken a lock over


# The name of a process -> whether it is alive; None = that is not known.
IsAlive = Callable[[str], bool | None]


class HeldError(errors.UserError):
  """Another process holds the lock; its name is the argument."""


@dataclasses.dataclass
class _Held:
  """A lock that this process holds.

  Attributes:
    path: the object.
    content: what it contains.
    generation: the number of the last write.
    at: when that was, by the clock of `_now`.
    guard: held while it is written.
  """

  path: str
  content: bytes
  generation: int
  at: float
  guard: threading.Lock = dataclasses.field(default_factory=threading.Lock)


_held: dict[str, _Held] = {}


def _now() -> float:
  """Returns seconds that also pass while the machine sleeps."""
  clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
  return time.clock_gettime(clock)


@contextlib.contextmanager
def lock(folder: str, name: str, is_alive: IsAlive) -> Iterator[None]:
  """A context in which no other process has the lock of a folder.

  Args:
    folder: the folder.
    name: the name of this process, for `is_alive` of another one.
    is_alive: whether the process of a name is alive; None = it is one of
      another machine.

  Raises:
    HeldError: another process has it, and is alive.
  """
  path = f"{buckets.normal(folder)}/.lock"
  content = json.dumps({"id": secrets.token_hex(16), "process": name}).encode()
  start = _now()  # before the write, which is when others begin to count
  written = _take(path, content, is_alive)
  held = _Held(path, content, written.generation, start)
  _held[path] = held
  ends = threading.Event()
  beats = threading.Thread(
    target=_beat_until, args=(held, ends), name="lock", daemon=True
  )
  beats.start()
  try:
    yield
  finally:
    try:
      bucket_appends.close(folder)
    finally:
      ends.set()
      _release(held)


def _release(held: _Held) -> None:
  with held.guard, contextlib.suppress(OSError, buckets.BucketError):
    if _held.pop(held.path, None):
      buckets.delete(held.path, held.generation)


def release_all() -> None:
  """Releases all locks of this process, which is about to end."""
  for held in list(_held.values()):
    _release(held)


def holder(folder: str, is_alive: IsAlive) -> str | None:
  """Returns the name of the process that has the lock of a folder, or None.

  Args:
    folder: the folder.
    is_alive: as for `lock`. A process of another machine counts as alive until
      its lock expires.
  """
  path = f"{buckets.normal(folder)}/.lock"
  found = _read(path)
  if found is None:
    return None
  there, process = found
  alive = is_alive(process)
  if alive is None:
    alive = buckets.server_time(path) - there.updated < EXPIRE_SECS
  return process if alive else None


def check(path: str) -> None:
  """Ends this process if it has lost a lock; called before what others see.

  A process that did not run for a while, such as one of a machine that was
  paused, would otherwise write where another one writes by now.

  Args:
    path: any path in a folder that was locked.
  """
  for held in list(_held.values()):
    parent = os.path.dirname(held.path)
    if path != held.path and f"{path}/".startswith(f"{parent}/"):
      while _held.get(held.path) is held and _now() - held.at > EXPIRE_SECS / 2:
        if not _beat(held):
          time.sleep(1.0)


buckets.before_writes.append(check)


def _read(path: str) -> tuple[buckets.Object, str] | None:
  """Returns the object of a lock, and the name of the process that wrote it."""
  found = buckets.find(path)
  if found is None:
    return None
  try:
    value = json.loads(buckets.read(path, found.generation))
    return found, str(value["process"])
  except FileNotFoundError:  # it was written meanwhile
    return _read(path)
  except (ValueError, LookupError, TypeError):
    return found, ""


def _take(path: str, content: bytes, is_alive: IsAlive) -> buckets.Object:
  """Writes the object of a lock, once no other process holds it."""
  seen: int | None = None
  give_up = 0.0
  while True:
    found = _read(path)
    if found is None:
      generation = 0
    else:
      there, process = found
      generation = there.generation
      if seen is None:
        age = buckets.server_time(path) - there.updated
        give_up = _now() + EXPIRE_SECS - max(age, 0.0)
        seen = generation
        alive = is_alive(process)
        if alive:
          raise HeldError(process)
        if alive is not None:
          give_up = 0.0
        elif give_up > _now():
          _log.info(
            "%s is locked by %s, which last said %.0f s ago that it is alive; "
            "waiting for up to %.0f s to see whether it still is",
            os.path.dirname(path),
            process or "an unknown process",
            max(age, 0.0),
            give_up - _now(),
          )
      elif seen != generation:
        raise HeldError(process)
      if _now() < give_up:
        time.sleep(min(_POLL_SECS, BEAT_SECS / 4))
        continue
      _log.info(
        "taking over %s from %s, which has ended",
        os.path.dirname(path), process or "an unknown process",
      )  # fmt: skip
    try:
      return buckets.put(path, content, generation)
    except buckets.ChangedError:
      seen = seen if seen is not None else -1  # another one was faster


def _beat(held: _Held) -> bool:
  """Writes the object of a lock again; returns whether that has worked."""
  with held.guard:
    if _held.get(held.path) is not held:  # it was released meanwhile
      return False
    start = _now()
    try:
      written = buckets.put(held.path, held.content, held.generation)
    except buckets.ChangedError:
      _end(held)
    except (OSError, buckets.BucketError) as error:
      _log.warning("%s", error)
      return False
    held.generation, held.at = written.generation, start
  return True


def _beat_until(held: _Held, ends: threading.Event) -> None:
  while not ends.wait(BEAT_SECS):
    _beat(held)


def _end(held: _Held) -> NoReturn:
  """Ends this process at once, because another one writes in the folder.

  The caller holds `held.guard`, for which every other thread that wants to
  write in the folder waits from now on.
  """
  held.at = -math.inf
  folder = os.path.dirname(held.path)
  holders: list[str] = []

  def look() -> None:
    if found := _read(held.path):
      holders.append(found[1])

  thread = threading.Thread(target=look, daemon=True)
  thread.start()
  thread.join(_LOOK_SECS)
  now = f"by {holders[0]}" if any(holders) else "or deleted"
  text = (
    f"bert-jax: the lock of {folder} was taken over {now}, because this "
    f"process could not renew it for {EXPIRE_SECS:.0f} s; it ends and writes "
    "nothing more\n"
  )
  os.write(2, text.encode())
  os._exit(errors.FAILED)
