"""Measures the speed of training, and limits how far the host runs ahead."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import os
import time
from typing import Any

import jax
import numpy as np
from rich import progress

from bert_jax.data import batching
from bert_jax.models import flops
from bert_jax.runtime import goodput
from bert_jax.training import steps
from bert_jax.training import terminal

# How many unfinished steps the devices may have before the host waits.
_STEPS_AHEAD = 2


class Pending:
  """The metrics of steps that have not been checked or logged yet."""

  def __init__(self) -> None:
    self._steps: list[tuple[int, steps.Metrics]] = []
    self._newest: steps.Metrics | None = None

  def is_idle(self) -> bool:
    """Returns whether the devices have finished all steps they were given."""
    return all(x.is_ready() for x in jax.tree.leaves(self._newest))

  def add(self, step: int, metrics: steps.Metrics) -> None:
    """Adds the metrics of a step; waits if the device is too far behind."""
    self._steps.append((step, metrics))
    self._newest = metrics
    if len(self._steps) > _STEPS_AHEAD:
      jax.block_until_ready(self._steps[-1 - _STEPS_AHEAD][1])

  def take(self) -> list[tuple[int, Any]]:
    """Returns (step, metrics) of all of them, on the host, and forgets them."""
    found = [(step, jax.device_get(metrics)) for step, metrics in self._steps]
    self._steps = []
    return found


class Meter:
  """Measures the speed of training, and shows its progress.

  Attributes:
    bar: the progress bar, which only the first host shows.
  """

  def __init__(
    self,
    start: int,
    total_steps: int,
    mesh: jax.sharding.Mesh,
    step_flops: Callable[[batching.Batch], int],
    clock: goodput.Clock,
    num_runs: int = 1,
  ):
    """Shows nothing yet.

    Args:
      start: the step that training goes on from.
      total_steps: the last step.
      mesh: the mesh of the devices that train.
      step_flops: batch of this host -> model FLOPs of a step of all runs.
      clock: the clock of this session.
      num_runs: the number of runs that are trained together.
    """
    self._mesh, self._step_flops = mesh, step_flops
    self._num_runs, self._clock = num_runs, clock
    self.bar = progress.Progress(
      progress.TextColumn("{task.description}"),
      progress.BarColumn(),
      progress.MofNCompleteColumn(),
      progress.TimeRemainingColumn(),
      disable=jax.process_index() != 0,
    )
    self._line = self.bar.add_task("train", total=total_steps, completed=start)
    self._begun, self._told = 0.0, False
    self._left = total_steps - start
    self._restart(None)

  def _restart(self, since: float | None) -> None:
    self._since = since
    self._steps = self._useful = self._positions = self._flops = 0
    self._pause = 0.0

  def count(self, batch: batching.Batch, metrics: steps.Metrics) -> None:
    """Counts a step; the first step, which compiles, only starts the clock.

    Args:
      batch: the rows of this host, of all runs.
      metrics: the metrics of the step, on the devices.
    """
    self.bar.advance(self._line)
    self._left -= 1
    if self._since is None:
      jax.block_until_ready(metrics)
      now = time.monotonic()
      self.say(f"the first step took {now - self._begun:.1f} s to compile")
      self._clock.switch("steps")
      self._restart(now)
      return
    self._steps += 1
    hosts = jax.process_count()  # all have the same number of rows
    self._useful += int(np.sum(batch["input_mask"])) * hosts
    self._positions += batch["input_mask"].size * hosts
    self._flops += self._step_flops(batch)

  def begin(self) -> None:
    """Starts the clock of the first step, and says that it is compiled."""
    self._begun = time.monotonic()
    self._clock.switch("compile")
    self.say("compiling the first step ...")

  def waiting(
    self, batches: Iterable[batching.Batch], is_idle: Callable[[], bool]
  ) -> Iterator[batching.Batch]:
    """Yields batches, and counts the time for which the devices wait for them.

    Args:
      batches: the batches of this host.
      is_idle: returns whether the devices have nothing to do. While they have,
        waiting for a batch costs nothing and counts as steps.
    """
    for number, batch in enumerate(batches):
      if number:  # the first one belongs to the start
        part = "data" if is_idle() else "steps"
        self._clock.switch("steps", spent_on=part)
      yield batch
      self._clock.switch("data")

  @contextlib.contextmanager
  def paused(self, part: str = "other") -> Iterator[None]:
    """A context whose time does not count as training.

    Args:
      part: the part of the run's time that it counts as; see `goodput.PARTS`.
    """
    start = time.monotonic()
    try:
      with self._clock.during(part):
        yield
    finally:
      self._pause += time.monotonic() - start

  def speed(self) -> dict[str, float]:
    """Returns metrics of the speed since the last call.

    Tokens are those of one run; the utilisation of the devices is that of all.
    """
    row: dict[str, float] = {}
    now = time.monotonic()
    if self._steps:
      secs = now - (self._since or now) - self._pause
      row["train/tokens_per_sec"] = self._positions / secs / self._num_runs
      row["train/useful_tokens_per_sec"] = self._useful / secs / self._num_runs
      row["train/steps_per_sec"] = self._steps / secs
      if not self._told and self._left:
        self.say(terminal.time_left(self._left, self._steps / secs))
      self._told = True
      devices = self._mesh.devices
      kind = devices.flat[0].device_kind
      mfu = flops.mfu(self._flops, secs, devices.size, kind)
      if mfu is not None:
        row["train/mfu"] = mfu
    self._restart(now)
    return row

  def show(self, workdir: str, step: int, row: dict[str, float]) -> None:
    """Prints the metrics of a run above the bar."""
    name = os.path.basename(workdir.rstrip("/"))
    text = terminal.log_line(step, row, name if self._num_runs > 1 else "")
    self.say(text)

  def say(self, text: str) -> None:
    """Prints a text above the bar."""
    if jax.process_index() == 0:
      self.bar.console.print(
        text, highlight=False, markup=False, emoji=False, soft_wrap=True
      )
