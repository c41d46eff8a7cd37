"""Locks of folders and of jobs, which end with the process that holds them.

A lock is a lock of the operating system on a file, in which the holder writes
its name. It ends with the process, however that ends. Folders of buckets have
locks that expire, see `bucket_locks`.
"""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import functools
import hashlib
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from typing import IO

from bert_jax.runtime import bucket_appends
from bert_jax.runtime import bucket_cache
from bert_jax.runtime import bucket_locks
from bert_jax.runtime import errors
from bert_jax.runtime import files

_log = logging.getLogger(__name__)


class LockedError(errors.UserError):
  """Another process works in the folder."""


def leave_buckets(secs: float = 10.0) -> None:
  """Uploads what was appended, and releases locks; this process is to end.

  Args:
    secs: how long to try.
  """
  if "google.cloud.storage" not in sys.modules:
    return
  thread = threading.Thread(target=_leave_buckets, args=[secs], daemon=True)
  thread.start()
  thread.join(secs)


def _leave_buckets(secs: float) -> None:
  bucket_appends.sync_all(secs)
  bucket_locks.release_all()


@contextlib.contextmanager
def lock(folder: str, name: str = "") -> Iterator[None]:
  """A context in which no other process of this machine may have a folder.

  The folder of a bucket is had by one process of all machines.

  Args:
    folder: the folder of a run, of a sweep or of prepared data.
    name: the flag that gives the folder, such as "--workdir".

  Raises:
    LockedError: another process uses the folder.
    OSError: the folder cannot be written to.
  """
  if files.is_remote(folder):
    own = f"{process_name(os.getpid())} {_started(os.getpid())}"
    with contextlib.ExitStack() as stack:
      try:
        stack.enter_context(bucket_locks.lock(folder, own, _is_alive))
      except bucket_locks.HeldError as error:
        raise _locked(folder, name, str(error)) from error
      yield
    return
  path = os.path.join(folder, ".lock")
  with open_lock(path) as file:
    try:
      take_lock(file)
    except BlockingIOError as error:
      raise _locked(folder, name, file.read()) from error
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


def _locked(folder: str, name: str, holder: str) -> LockedError:
  return LockedError(
    f"{name}{'=' if name else ''}{folder} is in use by "
    f"{describe_process(holder)}; wait for it, stop it, or give another folder"
  )


def check(folder: str) -> None:
  """Ends this process if it has lost the lock of a folder of a bucket."""
  if files.is_remote(folder):
    bucket_locks.check(folder)


@contextlib.contextmanager
def claim(path: str) -> Iterator[IO[str] | None]:
  """Locks a file; a process that inherits the open file keeps the lock.

  In place of one in a bucket, a file of this machine is locked.

  Yields:
    The empty file, for the name of that process; None if it cannot be locked.
  """
  with open_lock(_claimed(path)) as file:
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
  if files.is_remote(path) and os.path.basename(path) == ".lock":
    return bucket_locks.holder(os.path.dirname(path), _is_alive)
  path = _claimed(path)
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


def _claimed(path: str) -> str:
  """Returns the local file to lock in place of one of a bucket."""
  if not files.is_remote(path):
    return path
  folder = os.path.join(bucket_cache.folder(), ".claims")
  os.makedirs(folder, mode=0o700, exist_ok=True)
  return os.path.join(folder, hashlib.sha256(path.encode()).hexdigest())


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
  is_here = machine == _machine() or machine.startswith(f"{_machine()} ")
  return int(pid) if pid.isdecimal() and is_here else None


def _is_alive(name: str) -> bool | None:
  """Returns whether the process of a lock is alive; None = it is not known.

  Args:
    name: the result of `process_name`, and when the process started.
  """
  pid = pid_of(name)
  if pid is None:
    return None
  return _started(pid) == name.rpartition(" ")[2]


def _started(pid: int) -> str:
  """Returns when a process started; "" if it has ended or that is not known.

  The number of a process is given to another one after a while.
  """
  try:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
      fields = f.read().rpartition(")")[2].split()
  except OSError:
    return ""
  return "" if fields[0] in "ZX" else fields[19]


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
