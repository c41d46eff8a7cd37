"""Ends a process of a job of several that has stopped making progress.

Code that makes progress calls `note`. A thread checks whether the last note has
become too old. In a process without a watchdog, notes cost nothing.
"""

from collections.abc import Callable
import threading
import time

# How often the thread looks within the allowed time.
_LOOKS = 20
_LONGEST_LOOK_SECS = 5.0


class Watchdog:
  """A context in which progress has to be noted.

  Attributes:
    max_secs: the longest allowed time without a note; 0 = no limit.
  """

  def __init__(
    self,
    max_secs: float,
    on_stall: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts nothing yet.

    Args:
      max_secs: see the class.
      on_stall: is called, in the thread of the watchdog, with a sentence that
        says what made no progress for how long, and what to do about it.
      clock: returns the time in seconds.
    """
    self.max_secs = max_secs
    self._on_stall, self._clock = on_stall, clock
    # One tuple, which is replaced as a whole: no lock is needed.
    self._noted: tuple[str, int | None, float] = ("starting", None, clock())
    self._stopped = threading.Event()

  def __enter__(self) -> "Watchdog":
    global _current
    _current = self
    if self.max_secs:
      threading.Thread(target=self._run, name="watchdog", daemon=True).start()
    return self

  def __exit__(self, *error: object) -> None:
    global _current
    _current = None
    self._stopped.set()

  def note(self, what: str, step: int | None = None) -> None:
    """Notes that the process makes progress.

    Args:
      what: the work from now on, such as "evaluating".
      step: the number of updates; None = as in the last note.
    """
    step = self._noted[1] if step is None else step
    self._noted = (what, step, self._clock())

  def look(self) -> bool:
    """Calls `on_stall` if the last note is too old; returns whether it did."""
    what, step, noted = self._noted
    secs = self._clock() - noted
    if not self.max_secs or secs <= self.max_secs:
      return False
    where = "" if step is None else f" at step {step}"
    self._on_stall(
      f"no progress for {secs:.0f} s while {what}{where}, which is more than "
      f"train.max_stall_secs={self.max_secs:g}; if that can take longer, raise "
      "train.max_stall_secs (0 = no limit)"
    )
    return True

  def _run(self) -> None:
    pause = min(self.max_secs / _LOOKS, _LONGEST_LOOK_SECS)
    while not self._stopped.wait(pause):
      if self.look():
        return


_current: Watchdog | None = None


def note(what: str, step: int | None = None) -> None:
  """Notes that this process makes progress; see `Watchdog.note`."""
  if _current is not None:
    _current.note(what, step)
