"""When to save: at a preemption notice, and before too much work is at risk.

A machine that is about to be taken away says so by SIGTERM, a user by Ctrl-C.
`Notice` notes it; the loop then saves after the step under way, the same step
on every host, and stops. On several hosts `jax.distributed` agrees on the step;
every signal is passed on to it, once there is a state to save.
"""

import logging
import time
from types import TracebackType

import jax
from jax.experimental import multihost_utils
import numpy as np

from bert_jax.runtime import errors
from bert_jax.runtime import signals

_log = logging.getLogger(__name__)

# Share of the time until the next save is due that steps are planned for, where
# all hosts must agree on the step beforehand.
_CAUTION = 0.9


class PreemptedError(RuntimeError):
  """The run was told to stop; what it has done is saved."""

  exit_status = errors.SAVED


class Notice:
  """A context that notes a signal to stop instead of dying from it.

  It notes them from `listen` on until it is left; see `signals.Listener`.
  """

  def __init__(self) -> None:
    self._listener = signals.Listener("saving after the step under way")
    self._calls = 0

  def listen(self) -> None:
    """Notes signals from now on: there is a state to save."""
    self._listener.listen(forwards=jax.process_count() > 1)

  def __enter__(self) -> "Notice":
    self._listener.__enter__()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._listener.__exit__(kind, error, trace)

  def stops_at(self, step: int) -> bool:
    """Whether to save and stop after this step; call it after every step."""
    self._calls += 1
    stops = bool(self._listener.given)
    if jax.process_count() > 1:
      # Counted from 1 in every session: a notice that came before the first
      # call names the first.
      stops = multihost_utils.reached_preemption_sync_point(self._calls)
    if stops:
      name = self._listener.given or "SIGTERM"
      _log.info("told to stop (%s); saving step %d", name, step)
    return stops


class SaveClock:
  """Says when the work since the last save has become some seconds' worth.

  On several hosts all must save at the same step, and clocks differ. There the
  first host plans the step from the speed so far, whenever `plan` is called.
  """

  def __init__(self, max_secs: float, step: int):
    """Starts the clock.

    Args:
      max_secs: of work that may be lost; 0 = any.
      step: that the run starts from.
    """
    self._max_secs = max_secs
    self._planned: int | None = None
    self._first = (step, time.monotonic())
    self._saved = time.monotonic()

  def saved(self, step: int) -> None:
    """Notes that a step was saved; all hosts call it at the same step."""
    self._saved = time.monotonic()
    self._planned = None
    self.plan(step)

  def plan(self, step: int) -> None:
    """Agrees with the other hosts on when to save; all call it at a step."""
    if not self._max_secs or jax.process_count() == 1:
      return
    now = time.monotonic()
    speed = (step - self._first[0]) / max(now - self._first[1], 1e-6)
    left = max(self._max_secs - (now - self._saved), 0.0) * _CAUTION
    planned = np.int64(step + max(int(speed * left), 1))
    self._planned = int(multihost_utils.broadcast_one_to_all(planned))

  def is_due(self, step: int) -> bool:
    """Whether to save after this step."""
    if not self._max_secs:
      return False
    if jax.process_count() == 1:
      return time.monotonic() - self._saved >= self._max_secs
    return self._planned is not None and step >= self._planned
