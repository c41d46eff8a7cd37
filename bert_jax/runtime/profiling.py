"""A trace of some training steps, for TensorBoard's profiler.

  profile = Profile((10, 15), workdir)
  for step in ...:
    profile.start(step, state)
    state = train_step(state)
    profile.stop(step, state)

The folder is WORKDIR/profile; `tensorboard --logdir=WORKDIR` finds it there.
"""

from collections.abc import Callable, Sequence
import contextlib
import logging
import os
import shutil
import tempfile
from typing import Any

import jax

from bert_jax.runtime import files

_log = logging.getLogger(__name__)

FOLDER = "profile"
# The name by which the profiler finds the annotation of a training step.
STEP_NAME = "train"


def check_steps(steps: Sequence[int], total: int) -> None:
  """Raises ValueError for steps that a run of `total` steps does not have."""
  are_two = len(steps) == 2 and all(type(step) is int for step in steps)
  if steps and not (are_two and 1 <= steps[0] <= steps[1] <= total):
    raise ValueError(
      f"train.profile_steps={tuple(steps)}; give the first and the last step "
      f"of the trace, from 1 to {total}, such as "
      "--config.train.profile_steps='(10,15)', or () for no trace"
    )


class Profile:
  """Starts a trace before the first step asked for, stops it after the last.

  Devices finish what they were doing before the trace begins, and the last
  step before it ends, so that the trace holds whole steps and no others.
  Evaluations and checkpoints between these steps are part of it. A run that is
  resumed between the two steps traces the remaining ones; a run that is resumed
  after the last step traces nothing.
  """

  def __init__(
    self,
    steps: Sequence[int],
    workdir: str,
    paused: Callable[[], Any] = contextlib.nullcontext,
  ):
    """Sets which steps to trace.

    Args:
      steps: the first and the last step, counted from 1; () = no trace.
      workdir: the folder of the run.
      paused: returns a context in which the profiler starts and writes.
    """
    self._first, self._last = steps or (0, -1)
    self._folder = os.path.join(workdir, FOLDER)
    self._paused = paused
    self._tracing = False
    self._annotation: Any = None

  def start(self, step: int, state: Any) -> None:
    """Begins a step; `state` is the result of the step before it."""
    if not self._first <= step <= self._last:
      return
    if not self._tracing:
      jax.block_until_ready(state)
      with self._paused():
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it slows the host down
        options.session_id = f"steps_{step}_{self._last}"
        options.raise_error_on_start_failure = True
        self._target = self._folder
        if files.is_remote(self._folder):  # where the profiler cannot write
          self._target = tempfile.mkdtemp(prefix="bert_jax")
        jax.profiler.start_trace(self._target, profiler_options=options)
      self._tracing = True
    self._annotation = jax.profiler.StepTraceAnnotation(
      STEP_NAME, step_num=step
    )
    self._annotation.__enter__()

  def stop(self, step: int, state: Any) -> None:
    """Ends a step; `state` is its result."""
    if not self._tracing:
      return
    if step == self._last:
      jax.block_until_ready(state)
    self._annotation.__exit__(None, None, None)
    if step == self._last:
      self.close()

  def close(self) -> None:
    """Writes the trace, if one is under way."""
    if self._tracing:
      self._tracing = False
      with self._paused():
        jax.profiler.stop_trace()
        if self._target != self._folder:
          files.upload_folder(self._target, self._folder)
          shutil.rmtree(self._target)
      _log.info("wrote a trace to %s", self._folder)
