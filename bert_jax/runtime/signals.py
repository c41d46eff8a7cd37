"""Signals that stop a process: the first lets it save, the second ends it.

SIGTERM (the machine is taken away), SIGINT (Ctrl-C) and SIGHUP (the terminal is
closed) have the same effect. Code that has something to save uses a `Listener`,
and stops when it has saved. Without a listener, the launcher ends with status
130. A signal that the process was started to ignore, for example by `nohup`,
stays ignored.

Python runs signal handlers only between bytecodes, so a compilation of ten
minutes would delay them. The launcher therefore also has a thread (`guard`)
that the operating system informs of each signal at once.
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
from typing import Any, NoReturn, Self

from bert_jax.runtime import errors

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# How long an interrupted process may take to clean up.
_GRACE_SECS = 3.0
# A terminal that closes sends SIGHUP twice, and some supervisors send SIGTERM
# and SIGHUP. Signals within this time count as one.
_SAME_SECS = 1.0
# A wrapper that passes Ctrl-C on sends a second SIGINT at once. A user takes
# longer than this.
_SAME_INTERRUPT_SECS = 0.3


class Interrupted(KeyboardInterrupt):
  """The process was told to stop while there was no listener."""


class Listener:
  """A context in which the first signal does not end the process.

  It listens from the call of `listen` to the end of the context, which restores
  the earlier handlers. A second signal ends a guarded process at once. In other
  processes, such as a notebook, it has its usual effect. Outside of the main
  thread Python allows no handlers, so that signals are not noticed there.

  Attributes:
    given: the name of the first signal; "" if there was none.
    then: how the process reacts to the signal, for the message.
  """

  def __init__(self, then: str):
    """Stores the text of the message; see `listen`.

    Args:
      then: the rest of the message "told to stop (SIGINT): ...".
    """
    self.given = ""
    self.then = then
    self._forwards = False
    self._before: dict[int, Any] = {}
    self._outer: Listener | None = None

  def listen(self, forwards: bool = False) -> None:
    """Notes signals to stop from now on, which then do not end the process.

    `given` is the name of the first one. Outside of the main thread, nothing
    changes.

    Args:
      forwards: whether to pass every signal on, as SIGTERM, to a library that
        also handles SIGTERM. See `keeping_handler`.
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
    """Stores the name of the first signal, and passes signals on."""
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

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    if _guard is not None and _guard.listener is self:
      _guard.listener = self._outer
    self._restore()


_theirs: Callable[[int], Any] | None = None  # a library's handler of SIGTERM


@contextlib.contextmanager
def keeping_handler() -> Iterator[None]:
  """A context in which a library may replace the handler of SIGTERM.

  The end of the context restores the earlier handler, so that this module
  counts the signals. A `Listener` that forwards calls the library's handler.
  """
  global _theirs
  before = signal.getsignal(signal.SIGTERM)
  if threading.current_thread() is not threading.main_thread() or (
    before in (signal.SIG_IGN, None)
  ):
    yield
    return
  import ctypes

  # Python's `signal` does not know handlers that C code has set.
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
  """Returns whether a signal is neither ignored nor handled outside Python."""
  return signal.getsignal(number) not in (signal.SIG_IGN, None)


class _Guard:
  """The handlers and the thread of a guarded process.

  Attributes:
    listener: the listener that gets a signal; None = a signal interrupts the
      process.
    interrupted: the name of the signal that interrupted the process; "" = it
      was not interrupted.
    is_ending: whether the work is done and the exit status is known. Then a
      single signal has no effect.
    left: what an interrupted process leaves behind, for the message.
    status: the exit status of an interrupted process.
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
      # Python cannot propagate this exception; the thread ends the process.
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
    """Counts signals when they arrive, even if the main thread is busy."""
    first: float | None = None
    name, deadline = "", None
    while True:
      wait = None if deadline is None else max(deadline - time.monotonic(), 0)
      if not select.select([self._reads], [], [], wait)[0]:
        if not (self.listener and self.listener.given):
          self.end(name)  # the process did not clean up in time
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
    """Ends an interrupted process, without waiting for other threads."""
    say(f"interrupted ({name}); {self.left}")
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(Exception):
        stream.flush()
    os._exit(self.status)


_guard: _Guard | None = None


def guard() -> None:
  """Makes signals end this process; see the top of this file.

  Only the launcher may call it, in the main thread, because it changes the
  whole process.
  """
  global _guard
  if _guard is None:
    _guard = _Guard()
  release()


def leaves(left: str, status: int = errors.INTERRUPTED) -> None:
  """Sets the message and the exit status of an interruption.

  Args:
    left: the end of the message: what the process leaves behind.
    status: the exit status.
  """
  if _guard is not None:
    _guard.left, _guard.status = left, status


def end_if_interrupted() -> None:
  """Ends the process if a signal has interrupted it; see `leaves`."""
  if _guard is not None and _guard.interrupted:
    _guard.end(_guard.interrupted)


def finish() -> None:
  """Says that the exit status is known, so that a signal has no effect."""
  if _guard is not None:
    _guard.is_ending = True


def hold(numbers: Iterable[int] = STOPPING) -> None:
  """Blocks signals until `release`, also across an exec."""
  signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def release(numbers: Iterable[int] = STOPPING) -> None:
  """Unblocks signals; those that came in between are delivered now."""
  signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
  """A context whose new processes do not get Ctrl-C or a closed terminal.

  Their parent gets these signals, and ends them.
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
