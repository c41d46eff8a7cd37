"""Watches the other processes of a job, and ends this one where one fails.

Where a process fails, it says so in the key-value store of jax's coordination
service and ends with its own status. The others find that within seconds; each
prints one line with the cause and ends with PeerError.exit_status, and does so
after the one that failed.

A process that was killed says nothing, and neither does one that is stopped or
whose host is gone. The others find out in one of two ways. Collectives between
CPUs break at once if a process ends. If they do not, jax notices after
HEARTBEAT_SECS that a process sends no heartbeat, and aborts all others; it does
so at once where process 0, in which the coordination service runs, has ended.
"""

import atexit
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import ctypes
import faulthandler
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from bert_jax.runtime import errors
from bert_jax.runtime import locks
from bert_jax.runtime import watchdog

# jax ends the whole job if it hears no heartbeat of a process for this long.
HEARTBEAT_SECS = 60
_POLL_SECS = 1.0  # between looks at whether another process has failed
_ANSWER_SECS = 3.0  # for all to answer, after one has failed
_SILENT_SECS = 10.0  # without a sign of life: suspicious, if jax gives up
# An engine of jobs, such as Kubernetes, goes by the process that ends first: if
# that is one that lost a peer, it starts the job again. So where a process has
# failed by itself, the others end after it. That takes at most the seconds that
# it lingers (`linger`) and those of `locks.leave_buckets`;
_FAILING_SECS = 17.0
# its host then needs some seconds to report it. If process 0 was that process,
# there are 6 seconds until jax's abort goes on (`catch_aborts`).
_REPORT_SECS = 3.0
_SHOWN = 10  # processes that a message names at most

PREFIX = "bert_jax/"  # of keys in the store
_MONITORED = f"{PREFIX}monitor/"
# Texts in errors of collectives, of barriers and of the coordination service if
# a connection broke or a process did not come.
_BROKEN = re.compile(
  r"gloo|nccl|connection (closed|reset|refused)|socket closed|broken pipe"
  r"|coordination service|heartbeat|barrier|DEADLINE_EXCEEDED|UNAVAILABLE",
  re.IGNORECASE,
)
# Paths, quoted text and file names in an error, which may contain any word.
_NAMES = re.compile(
  r"""(?<!\w)"[^"\n]*"(?!\w)|(?<!\w)'[^'\n]*'(?!\w)|\S*[/\\]\S*"""
)


# Statuses that ask for a restart, in a `trouble` that a process reports.
_NOT_FINAL = (errors.PEER_LOST, errors.SAVED)


class PeerError(RuntimeError):
  """Another process of the job died, stood still or did not come."""

  exit_status = errors.PEER_LOST


def service() -> Any:
  """Returns the connection to jax's coordination service.

  jax has no public API for the store of keys and values; this is the one place
  that knows where it is (jax 0.10). It has `client` with key_value_set,
  key_value_dir_get and blocking_key_value_get, `coordinator_address`,
  `process_id` and `num_processes`.
  """
  from jax._src import distributed

  return distributed.global_state


def are_several() -> bool:
  """Returns whether this process was connected to others."""
  if "jax" not in sys.modules:  # a mode that computes nothing
    return False
  return service().client is not None and service().num_processes > 1


# Held by the thread that ends this process: only one prints a line.
_ending = threading.Lock()
_hurry = threading.Event()  # set if that thread may wait no longer


def _end(
  text: str,
  status: int,
  secs: float = 0.0,
  first: Callable[[], Any] = bool,
  last: Callable[[], Any] = bool,
) -> NoReturn:
  """Prints a line at once and as one piece, waits, and ends this process.

  Args:
    text: the line.
    status: the exit status.
    secs: how long to wait.
    first: what to do before the wait.
    last: what to do at the very end.
  """
  _ending.acquire()
  sys.stdout.flush()
  os.write(2, f"bert-jax: {text}\n".encode())
  first()
  _hurry.wait(secs)
  locks.leave_buckets()
  last()
  os._exit(status)


class _Monitor:
  """Finds out, in a thread, whether another process has failed.

  It uses these keys below _MONITORED: `beat/I` is a sign of life of process I.
  `silent` lists the processes of which process 0 has not seen one for a while.
  `trouble/I` says that process I is failing, and why, with its exit status.
  `here/I` is the answer of process I to any `trouble`. `gone/I` says that
  process I ends in this moment, after it failed by itself.
  """

  current: "_Monitor | None" = None

  def __init__(self) -> None:
    job = service()
    self.store, self.address = job.client, job.coordinator_address
    self.index, self.count = job.process_id, job.num_processes
    self.is_ending = threading.Event()  # this process ends as it should
    self._contact = time.monotonic()  # the last answer of process 0
    self._silent: list[int] = []  # processes without a recent sign of life
    # The process that failed by itself, with a final status.
    self._failed: int | None = None
    self._beats: dict[int, tuple[str, float]] = {}

  def run(self) -> None:
    """Looks again and again, until this process ends."""
    for number in itertools.count():
      with contextlib.suppress(Exception):  # process 0 cannot be reached
        if self._look(number):
          break
      if self.is_ending.wait(_POLL_SECS):
        return
    # The main thread may be about to find its own error, or to end well.
    if not self.is_ending.wait(_ANSWER_SECS):
      self.end(self.verdict("it failed"))

  def _look(self, number: int) -> bool:
    """Gives a sign of life; returns whether another process has failed."""
    self._set(f"beat/{self.index}", str(number))
    rows = self._rows()
    self._contact = time.monotonic()
    if self.index == 0:
      self._watch_beats(rows)
    else:
      self._silent = json.loads(rows.get("silent", "[]"))
    if not any(key.startswith("trouble/") for key in rows):
      return False
    self._set(f"here/{self.index}", "")
    return True

  def _watch_beats(self, rows: Mapping[str, str]) -> None:
    now = time.monotonic()
    for i in range(1, self.count):
      beat = rows.get(f"beat/{i}", "")
      if self._beats.get(i, (None,))[0] != beat:
        self._beats[i] = (beat, now)
    self._silent = [
      i for i, (_, since) in self._beats.items() if now - since > _SILENT_SECS
    ]
    self._set("silent", json.dumps(self._silent))

  def _set(self, key: str, value: str) -> None:
    self.store.key_value_set(_MONITORED + key, value, allow_overwrite=True)

  def _rows(self) -> dict[str, str]:
    rows = self.store.key_value_dir_get(_MONITORED)
    return {key.removeprefix(_MONITORED): value for key, value in rows}

  def _rows_in_time(self) -> dict[str, str] | None:
    """Returns what all have said; None if process 0 does not answer."""
    found: list[dict[str, str]] = []
    is_read = _within(2, lambda: found.append(self._rows()))
    return found[0] if is_read else None

  def post(self, reason: str, is_own: bool, status: int) -> bool:
    """Tells the others that this process fails; returns whether that worked.

    Args:
      reason: why it fails.
      is_own: False if the reason is another process.
      status: its exit status.
    """
    # In a thread, because process 0 may stand still and never answer.
    text = json.dumps({"reason": reason, "is_own": is_own, "status": status})
    return _within(2, lambda: self._set(f"trouble/{self.index}", text))

  def verdict(self, reason: str) -> str:
    """Says which process has failed, after asking all of them.

    Args:
      reason: what this process knows about it.
    """
    rows = self._rows_in_time()
    if rows is None:
      return _gone([0])
    trouble = {
      int(key.removeprefix("trouble/")): json.loads(text)
      for key, text in rows.items()
      if key.startswith("trouble/")
    }
    for i, known in sorted(trouble.items()):
      if known["is_own"] and i != self.index:
        is_final = known.get("status") not in _NOT_FINAL
        self._failed = i if is_final else None
        return f"process {i} failed: {known['reason']}"
    answered = {int(key[5:]) for key in rows if key.startswith("here/")}
    missing = set(range(self.count)) - answered - set(trouble) - {self.index}
    if missing:
      return _gone(sorted(missing))
    reasons = [known["reason"] for known in trouble.values()] or [reason]
    return f"a connection between the processes broke: {reasons[0]}"

  def suspect(self) -> str:
    """Says which process has probably failed, without asking; "" = none."""
    if self.index:
      if time.monotonic() - self._contact > _SILENT_SECS:
        return _gone([0])
      host, _, port = self.address.rpartition(":")
      try:
        socket.create_connection((host.strip("[]"), int(port)), 2).close()
      except OSError:
        return _gone([0])
    others = [i for i in self._silent if i != self.index]
    return _gone(others) if others else ""

  def end(self, cause: str, is_first: bool = False) -> NoReturn:
    """Ends this process because another process has failed.

    Args:
      cause: what has happened.
      is_first: whether the others do not know it yet.
    """
    _end(
      f"process {self.index} of {self.count} stops because {cause}. Restart "
      "this job with the same command, or with another number of processes; it "
      "goes on from its last checkpoint",
      PeerError.exit_status,
      self.linger(2 * _POLL_SECS + _ANSWER_SECS if is_first else _POLL_SECS),
      first=self.outlive,
    )

  def outlive(self) -> None:
    """Waits until the process that failed by itself, if any, has ended."""
    if self._failed is None:
      return
    begin = time.monotonic()
    while time.monotonic() - begin < _FAILING_SECS:
      rows = self._rows_in_time()
      if rows is None:  # process 0 has ended
        break
      if f"gone/{self._failed}" in rows or _hurry.wait(_POLL_SECS / 2):
        break
    _hurry.wait(_REPORT_SECS)

  def say_goodbye(self) -> None:
    """Tells the others that this process ends now."""
    _within(1, lambda: self._set(f"gone/{self.index}", ""))

  def linger(self, secs: float) -> float:
    """Returns for how many seconds this process must outlive its last line.

    The store is in process 0, which therefore ends after the others have read
    there what happened.
    """
    return secs + 1 if self.index == 0 else 0


def _gone(indices: Sequence[int]) -> str:
  """Returns a sentence about processes that do not answer."""
  names = ", ".join(f"process {i}" for i in indices[:_SHOWN])
  verb = "were killed, are" if len(indices) > 1 else "was killed, is"
  return f"{names} {verb} stopped or cannot be reached"


def _within(secs: float, act: Callable[[], Any]) -> bool:
  """Calls a function in a thread; returns whether it succeeded in time."""
  done = threading.Event()

  def run() -> None:
    with contextlib.suppress(Exception):
      act()
      done.set()

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  thread.join(secs)
  return done.is_set()


def begin_watch() -> None:
  """Starts to watch the other processes, from now until this process ends."""
  _Monitor.current = monitor = _Monitor()
  looking = threading.Thread(target=monitor.run, name="monitor", daemon=True)
  looking.start()

  def stop() -> None:
    # jax closes the store after this; it must not be used then.
    monitor.is_ending.set()
    looking.join(_ANSWER_SECS)

  atexit.register(stop)
  show = sys.excepthook

  def hook(kind: Any, error: BaseException, trace: Any) -> None:
    show(kind, error, trace)
    # This process cannot end as usual, because the others wait for it.
    if not isinstance(error, KeyboardInterrupt):
      leave(error)

  sys.excepthook = hook


def catch_aborts(not_met: str) -> None:
  """Turns an abort by jax's coordination service into an exit with a message.

  jax offers no other way: a `missed_heartbeat_callback` written in Python
  cannot be called (jax 0.10). The thread that aborts is one of C++ and must run
  no Python: a thread that asks for the GIL while the interpreter is being
  finalized is unwound by Python, and C++ does not allow that. So it runs two
  functions of C in turn. `faulthandler` writes to a pipe, and hands the signal
  on to the handler before its own. This one is `sleep`, whose argument, the
  number of the signal, makes 6 seconds. In that time a thread of Python, which
  waits at the other end of the pipe, ends the process. An abort for another
  reason than a lost process goes on afterwards.

  Args:
    not_met: what to say if that happens before the processes have met.
  """
  library = ctypes.CDLL(None)
  library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  faulthandler.disable()
  library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))
  reader, writer = os.pipe()
  faulthandler.enable(writer, all_threads=False)

  def wait() -> None:
    os.read(reader, 1)
    if _ending.locked():  # perhaps waiting for process 0, which is gone now
      time.sleep(_REPORT_SECS)
      _hurry.set()
    monitor = _Monitor.current
    if monitor is None:
      _end(not_met, PeerError.exit_status)
    cause = monitor.suspect()
    if monitor.is_ending.is_set():
      cause = cause or "another process did not end in order"
    if cause:
      monitor.end(cause)

  threading.Thread(target=wait, name="aborts", daemon=True).start()


def watching(max_secs: float) -> contextlib.AbstractContextManager[Any]:
  """A context in which a job of several processes must make progress.

  Args:
    max_secs: the longest time between two calls of watchdog.note, after which
      this process ends; 0 = no limit.
  """
  if not are_several():
    return contextlib.nullcontext()
  return watchdog.Watchdog(max_secs, _stalled)


@contextlib.contextmanager
def leaving_if_broken() -> Iterator[None]:
  """A context that ends this process at once if another process is gone.

  Otherwise whatever is closed outside of it, such as checkpoints that are being
  written, could wait for that process for minutes.
  """
  try:
    yield
  except Exception as error:
    if are_several() and is_of_peer(error):
      leave(error)
    raise


def _stalled(what: str) -> None:
  """Ends this process, which has made no progress."""
  monitor = _Monitor.current
  if monitor is None:
    text = f"{what}. Restart this job with the same command"
    _end(text, PeerError.exit_status)
  monitor.post(what, is_own=True, status=PeerError.exit_status)
  suspect = monitor.suspect()
  monitor.end(what + (f" ({suspect})" if suspect else ""), is_first=True)


def must_leave(error: BaseException) -> bool:
  """Returns whether an error must end this process of several at once.

  That is so if perhaps this process alone met it. All processes meet an error
  of training, such as a divergence, and a bug is to be traced.
  """
  is_ours = isinstance(error, ValueError | OSError | PeerError)
  jax = sys.modules.get("jax")  # the launcher asks without importing it
  of_jax = jax is not None and isinstance(error, jax.errors.JaxRuntimeError)
  return are_several() and (is_ours or of_jax)


def leave(error: BaseException, status: int = 1) -> NoReturn:
  """Ends this process of several, without waiting for the others.

  It cannot end as usual: the others may be dead, or wait for this one.

  Args:
    error: why. If all processes raise it, its class says so by
      `is_known_to_all`.
    status: to exit with, unless the class of the error has an `exit_status`;
      PeerError's counts if another process has failed.
  """
  reason = " ".join(str(error).split())[:500]
  if not isinstance(error, ValueError | OSError | RuntimeError):
    reason = f"{type(error).__name__}: {reason}"
  status = getattr(error, "exit_status", status)
  monitor = _Monitor.current
  if monitor is None:  # the caller connected the processes in another way
    _end(reason, status)
  if getattr(error, "is_known_to_all", False):
    _end(reason, status, monitor.linger(_POLL_SECS))
  if is_of_peer(error):
    if monitor.post(reason, is_own=False, status=PeerError.exit_status):
      time.sleep(_POLL_SECS + _ANSWER_SECS)
    monitor.end(monitor.verdict(reason))
  monitor.post(reason, is_own=True, status=status)
  _end(
    f"process {monitor.index} of {monitor.count} failed: {reason}",
    status,
    monitor.linger(2 * _POLL_SECS + _ANSWER_SECS),
    last=monitor.say_goodbye,
  )


def is_of_peer(error: BaseException) -> bool:
  """Returns whether an error means that another process may be gone."""
  if isinstance(error, PeerError):
    return True
  cause: BaseException | None = error
  while cause is not None:
    text = _NAMES.sub(" ", str(cause))
    if _may_be_of_jax(type(cause)) and _BROKEN.search(text):
      return True
    hidden = None if cause.__suppress_context__ else cause.__context__
    cause = cause.__cause__ or hidden
  return False


def _may_be_of_jax(kind: type[BaseException]) -> bool:
  """Returns whether jax or Orbax may raise this class for a lost process.

  A collective that breaks may be a plain ValueError, and a barrier a plain
  RuntimeError. Subclasses of other packages, such as a JSON error, and errors
  of the system are never about another process.
  """
  package = kind.__module__.partition(".")[0]
  return kind in (ValueError, RuntimeError) or package in (
    "jax", "jaxlib", "orbax"
  )  # fmt: skip
