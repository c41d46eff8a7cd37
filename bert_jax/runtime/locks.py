"""Locks of folders and of jobs, which end with the process that holds them.

A lock is a lock of the operating system on a file, in which the holder writes
its name. It ends with the process, however that ends.
"""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import functools
import logging
import os
import socket
import tempfile
import time
from typing import IO

from bert_jax.runtime import errors
from bert_jax.runtime import files

_log = logging.getLogger(__name__)


class LockedError(errors.UserError):
  """Another process of this machine works in the folder."""


@contextlib.contextmanager
def lock(folder: str, name: str = "") -> Iterator[None]:
  """A context in which no other process of this machine may have a folder.

  Args:
    folder: the folder of a run, of a sweep or of prepared data.
    name: the flag that gives the folder, such as "--workdir".

  Raises:
    LockedError: another process uses the folder.
    OSError: the folder cannot be written to.
  """
  path = os.path.join(folder, ".lock")
  with open_lock(path) as file:
    try:
      take_lock(file)
    except BlockingIOError as error:
      holder = describe_process(file.read())
      raise LockedError(
        f"{name}{'=' if name else ''}{folder} is in use by {holder}; wait for "
        "it, stop it, or give another folder"
      ) from error
    except OSError as error:  # a file system without locks
      _log.warning("%s cannot be locked (%s): start no second job", path, error)
    else:
      with files.naming(path):
        file.truncate(0)
        file.write(process_name(os.getpid()))
        file.flush()
    # A folder that cannot be written to fails here, not after an hour of work.
    tempfile.TemporaryFile(dir=folder).close()
    yield


@contextlib.contextmanager
def claim(path: str) -> Iterator[IO[str] | None]:
  """Locks a file; a process that inherits the open file keeps the lock.

  Yields:
    The empty file, for the name of that process; None if it cannot be locked.
  """
  with open_lock(path) as file:
    try:
      take_lock(file)
    except OSError:  # a file system without locks, or another has it
      yield None
      return
    file.truncate(0)
    yield file


def holder(path: str) -> str | None:
  """Returns the process that holds the lock on a file.

  Returns:
    A name for `pid_of`; "" = the name is unknown; None = no process holds it.

  Raises:
    OSError: the file is a symbolic link.
  """
  try:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    file = open(os.open(path, flags), encoding="utf-8", errors="replace")
  except OSError as error:
    if error.errno == errno.ELOOP:
      raise
    return None  # no such file, or it is not ours to read
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return file.read(1000).strip()
    except OSError:  # a file system without locks
      pass
  return None


def open_lock(path: str) -> IO[str]:
  """Opens a text file to be locked, and creates it if it is missing.

  A symbolic link is not followed, because the lock's holder writes its name to
  the file, and a link might point to a file that must not be overwritten.

  Raises:
    OSError: the file cannot be opened; the error names it.
  """
  flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
  with files.naming(path):
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
  return open(descriptor, "r+", encoding="utf-8")


def take_lock(file: IO[str], secs: float = 1.0) -> None:
  """Locks a file for this process alone.

  It waits a little, because a process that asks whether the file is locked
  holds a lock for an instant.

  Args:
    file: from `open_lock`.
    secs: how long to wait for another process.

  Raises:
    BlockingIOError: another process holds the lock.
    OSError: the file system has no locks.
  """
  give_up = time.monotonic() + secs
  while True:
    try:
      return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      if time.monotonic() > give_up:
        raise
    time.sleep(0.02)


def process_name(pid: int) -> str:
  """Returns the name of a process of this machine, for lock files.

  Processes of two containers or machines that share a file system may have the
  same number. So the name also contains the host, its boot and the namespace of
  process numbers.

  Args:
    pid: the number of the process.
  """
  return f"{pid} {_machine()}"


def pid_of(name: str) -> int | None:
  """Returns the number of a process, if this process can send it signals.

  Args:
    name: the content of a lock file, such as the result of `process_name`.

  Returns:
    The number, or None if the process belongs to another machine or container,
    or the name does not say to which.
  """
  pid, _, machine = name.partition(" ")
  return int(pid) if pid.isdecimal() and machine == _machine() else None


def describe_process(name: str) -> str:
  """Describes a process in words, such as "process 17 on host a"."""
  pid, *machine = name.split()[:2] or [""]
  if not pid.isdecimal():
    return "a process whose number is not known"
  return f"process {pid} on host {machine[0]}" if machine else f"process {pid}"


@functools.cache
def _machine() -> str:
  boot, namespace = "-", "-"
  with contextlib.suppress(OSError):  # no Linux
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as f:
      boot = f.read().strip()
    namespace = os.readlink("/proc/self/ns/pid")
  return f"{socket.gethostname()} {boot} {namespace}"
