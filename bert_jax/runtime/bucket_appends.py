"""Files of a bucket that grow: lines are added, the whole file is uploaded.

Objects cannot be appended to, and one of them may be written about once a
second. So what is appended is kept in memory, and one thread uploads each file
that has grown, at most every `EVERY_SECS`; those of more than a megabyte, less
often. Whoever needs the lines to be there calls `sync`.

A file has one writer: the process that holds the lock of its folder.
"""

import atexit
import contextlib
import dataclasses
import logging
import os
import threading
import time

from bert_jax.runtime import buckets

_log = logging.getLogger(__name__)

EVERY_SECS = 15.0
_SECS_A_MEGABYTE = 15.0
_MOST_SECS = 300.0


@dataclasses.dataclass
class _Growing:
  """A file that grows.

  Attributes:
    content: all of it.
    uploaded: how many bytes of it are in the bucket.
    at: when they were uploaded.
    lock: held while it is uploaded.
  """

  content: bytearray
  uploaded: int
  at: float = 0.0
  lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

  def is_due(self) -> bool:
    secs = _SECS_A_MEGABYTE * len(self.content) / 1e6
    wait = min(max(EVERY_SECS, secs), _MOST_SECS)
    has_more = len(self.content) > self.uploaded
    return has_more and time.monotonic() - self.at > wait


_files: dict[str, _Growing] = {}
_lock = threading.Lock()
_thread: threading.Thread | None = None


def append(path: str, data: bytes) -> None:
  """Adds bytes at the end of an object; a thread uploads it."""
  path = buckets.normal(path)
  with _lock:
    known = _files.get(path)
  if known is None:
    try:
      there = buckets.read(path)
    except FileNotFoundError:
      there = b""
    if there and not there.endswith(b"\n"):
      there += b"\n"  # of another writer, or cut off
    known = _Growing(bytearray(there), len(there), time.monotonic())
  with _lock:
    known = _files.setdefault(path, known)
    known.content += data
    _start()


def sync(folder: str) -> None:
  """Uploads what was appended to a file, or to all files below a folder.

  Raises:
    OSError: a file cannot be written.
  """
  buckets.in_threads(lambda pair: _upload(*pair), _below(folder))


def close(folder: str) -> None:
  """Uploads what was appended below a folder, which others may write now."""
  sync(folder)
  for path, _ in _below(folder):
    forget(path)


def forget(path: str) -> None:
  """Drops what was appended to a file, which is about to be replaced."""
  with _lock:
    known = _files.pop(buckets.normal(path), None)
  if known:
    with known.lock:  # an upload under way comes before what replaces it
      known.uploaded = len(known.content)


def sync_all(secs: float) -> None:
  """Uploads all files for at most some seconds; errors are logged.

  Args:
    secs: how long to wait. The process is about to end.
  """

  def upload() -> None:
    for path, known in _below(""):
      try:
        _upload(path, known)
      except (OSError, buckets.BucketError) as error:
        _log.warning("%s", error)

  if _files:
    thread = threading.Thread(target=upload, daemon=True)
    thread.start()
    thread.join(secs)


def _below(folder: str) -> list[tuple[str, _Growing]]:
  folder = buckets.normal(folder) if folder else ""
  with _lock:
    return [
      (path, known)
      for path, known in _files.items()
      if not folder or path == folder or path.startswith(f"{folder}/")
    ]


def _upload(path: str, known: _Growing) -> None:
  with known.lock:
    content = bytes(known.content)
    if len(content) > known.uploaded:
      buckets.put(path, content)
      known.uploaded, known.at = len(content), time.monotonic()


def _start() -> None:
  """Starts the thread that uploads, unless it runs."""
  global _thread
  if _thread is None or not _thread.is_alive():
    _thread = threading.Thread(target=_run, name="appends", daemon=True)
    _thread.start()


def _run() -> None:
  while True:
    time.sleep(1.0)
    for path, known in _below(""):
      if known.is_due():
        try:
          _upload(path, known)
        except (OSError, buckets.BucketError) as error:
          known.at = time.monotonic()
          _log.warning("%s; it is tried again", error)


@atexit.register
def _end() -> None:
  with contextlib.suppress(Exception):
    sync_all(60.0)


def _after_fork() -> None:
  """A child of this process writes none of its files."""
  global _thread, _lock
  _files.clear()
  _thread, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
