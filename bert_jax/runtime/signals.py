"""Signals that stop a process: the first lets it save, the second ends it.

SIGTERM (a machine that is taken away), SIGINT (Ctrl-C) and SIGHUP (a closed
terminal) are treated alike. Whoever has something to save listens (`Listener`)
and stops in its own time. Where nobody listens, the launcher ends with status
130. A signal that the process was started to ignore, as `nohup` asks for,
stays ignored.

Python runs its handlers between bytecodes only, so a compilation of ten minutes
would delay them. The launcher therefore also has a thread (`guard`) that the
operating system tells about each signal at once.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import os
import select
import signal
import sys
import threading
import time
from types import FrameType
from types import TracebackType
from typing import Any, NoReturn

from bert_jax.runtime import errors

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# How long an interrupted process may take to tidy up.
_GRACE_SECS = 3.0
# A terminal that closes sends SIGHUP twice, and some supervisors send SIGTERM
# and SIGHUP: so soon after each other they count once.
_SAME_SECS = 1.0
# A wrapper that passes Ctrl-C on sends a second SIGINT at once; users do not.
_SAME_INTERRUPT_SECS = 0.3


class Interrupted(KeyboardInterrupt):
  """The process was told to stop while nobody listened."""


class Listener:
  """A context that notes the first signal instead of dying from it.

  It listens from `listen` on until it is left; then the handlers from before
  are back. The second signal ends a guarded process at once, and elsewhere, as
  in a notebook, does what it would do without this context. In another thread
  than the main one, where Python allows no handlers, nothing is noted.

  Attributes:
    given: name of the first signal; "" = none has come.
    then: what the process does about it, for the message.
  """

  def __init__(self, then: str):
    """Does not listen yet.

    Args:
      then: completes "told to stop (SIGINT): ".
    """
    self.given = ""
    self.then = then
    self._forwards = False
    self._before: dict[int, Any] = {}
    self._outer: Listener | None = None

  def listen(self, forwards: bool = False) -> None:
    """Notes signals from now on.

    Args:
      forwards: a library listens for SIGTERM, too; every signal is passed on
        to it as SIGTERM. See `keeping_handler`.
    """
    if threading.current_thread() is not threading.main_thread():
      return
    self._forwards = forwards
    if _guard is not None:
      self._outer, _guard.listener = _guard.listener, self
      return
    for number in STOPPING:
      theirs = forwards and number == signal.SIGTERM and _theirs is None
      if not theirs and _is_heard(number):
        self._before[number] = signal.signal(number, self._handle)

  def note(self, number: int) -> None:
    """Notes a signal."""
    self.given = self.given or signal.Signals(number).name
    if not self._forwards:
      return
    if _theirs is not None:
      _theirs(signal.SIGTERM)
    elif number != signal.SIGTERM:
      signal.raise_signal(signal.SIGTERM)

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del frame
    self._restore()
    self.note(number)

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def __enter__(self) -> "Listener":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if _guard is not None and _guard.listener is self:
      _guard.listener = self._outer
    self._restore()


_theirs: Callable[[int], Any] | None = None  # a library's handler of SIGTERM


@contextlib.contextmanager
def keeping_handler() -> Iterator[None]:
  """A context in which a library may replace the handler of SIGTERM.

  Afterwards the handler from before is back, so that signals are counted as the
  top of this file says. A `Listener` that forwards calls the library's handler.
  """
  global _theirs
  before = signal.getsignal(signal.SIGTERM)
  if threading.current_thread() is not threading.main_thread() or (
    before in (signal.SIG_IGN, None)
  ):
    yield
    return
  import ctypes

  # Handlers of the C library, which Python's own `signal` knows nothing of.
  exchange = ctypes.CDLL(None).signal
  exchange.argtypes = (ctypes.c_int, ctypes.c_void_p)
  exchange.restype = ctypes.c_void_p
  ours = exchange(signal.SIGTERM, None)
  exchange(signal.SIGTERM, ours)
  try:
    yield
  finally:
    theirs = exchange(signal.SIGTERM, ours)
    signal.signal(signal.SIGTERM, before)  # with the flags that Python sets
    if theirs and theirs != ours:
      _theirs = ctypes.CFUNCTYPE(None, ctypes.c_int)(theirs)


def _is_heard(number: int) -> bool:
  """Whether a signal is neither ignored nor handled outside of Python."""
  return signal.getsignal(number) not in (signal.SIG_IGN, None)


class _Guard:
  """The handlers and the thread of a guarded process.

  Attributes:
    listener: who notes a signal; None = it interrupts the process.
    interrupted: name of the signal that did; "" = none.
    is_ending: the work is done and its status known; one signal changes
      nothing any more.
    left: what an interrupted process leaves behind, for the message.
    status: exit status of an interrupted process.
  """

  def __init__(self) -> None:
    self.listener: Listener | None = None
    self.interrupted = ""
    self.is_ending = False
    self.left = "nothing was saved"
    self.status = errors.INTERRUPTED
    self._reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    for number in STOPPING:
      if _is_heard(number):
        signal.signal(number, self._handle)
    usual = sys.unraisablehook

    def quiet(unraisable: Any) -> None:
      # Raised where Python cannot pass it on; the thread ends the process.
      if not issubclass(unraisable.exc_type, Interrupted):
        usual(unraisable)

    sys.unraisablehook = quiet
    threading.Thread(target=self._watch, daemon=True).start()

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del frame
    if self.listener is not None:
      self.listener.note(number)
    elif not self.is_ending and not self.interrupted:
      self.interrupted = signal.Signals(number).name
      raise Interrupted(self.interrupted)

  def _watch(self) -> None:
    """Counts signals as they arrive, whatever the main thread is busy with."""
    first: float | None = None
    name, deadline = "", None
    while True:
      wait = None if deadline is None else max(deadline - time.monotonic(), 0)
      if not select.select([self._reads], [], [], wait)[0]:
        if not (self.listener and self.listener.given):
          self.end(name)  # it could not tidy up in time
        deadline = None
        continue
      for number in os.read(self._reads, 64):
        if number not in STOPPING:
          continue
        now = time.monotonic()
        if first is not None:
          is_key = number == signal.SIGINT
          if now - first > (_SAME_INTERRUPT_SECS if is_key else _SAME_SECS):
            say("told to stop again: ended at once")
            os._exit(errors.INTERRUPTED)
          continue
        first, name = now, signal.Signals(number).name
        listener = self.listener
        if listener is not None:
          say(
            f"told to stop ({name}): {listener.then}; a second signal ends "
            "this process at once"
          )
        elif not self.is_ending:
          deadline = now + _GRACE_SECS

  def end(self, name: str) -> NoReturn:
    """Ends an interrupted process, without waiting for anybody."""
    say(f"interrupted ({name}); {self.left}")
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(Exception):
        stream.flush()
    os._exit(self.status)


_guard: _Guard | None = None


def guard() -> None:
  """Has signals end this process as the top of this file says.

  For the launcher: they are its process's own. Call it in the main thread.
  """
  global _guard
  if _guard is None:
    _guard = _Guard()
  release()


def leaves(left: str, status: int = errors.INTERRUPTED) -> None:
  """Says what an interruption leaves behind.

  Args:
    left: completes its message.
    status: exit status of the process that is interrupted.
  """
  if _guard is not None:
    _guard.left, _guard.status = left, status


def end_if_interrupted() -> None:
  """Ends the process if a signal has interrupted it; see `leaves`."""
  if _guard is not None and _guard.interrupted:
    _guard.end(_guard.interrupted)


def finish() -> None:
  """Notes that the exit status is known: what is left is to end."""
  if _guard is not None:
    _guard.is_ending = True


def hold(numbers: Iterable[int] = STOPPING) -> None:
  """Keeps signals back until `release`, also for a program started instead."""
  signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def release(numbers: Iterable[int] = STOPPING) -> None:
  """Lets signals through again, those that were kept back first."""
  signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
  """A context whose new processes never see Ctrl-C or a closed terminal.

  Their parent is told as well, and ends them.
  """
  numbers = (signal.SIGINT, signal.SIGHUP)
  before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def say(message: str) -> None:
  """Prints a line on standard error, from any thread and at any moment."""
  with contextlib.suppress(OSError):
    os.write(2, f"bert-jax: {message}\n".encode())
