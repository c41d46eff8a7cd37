"""Trains a model: the loop, from top to bottom."""

import contextlib
import dataclasses
import logging
import math
import os
import time
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils
import numpy as np
import optax
from rich import progress

from bert_jax import batching
from bert_jax import checkpoint
from bert_jax import flops
from bert_jax import jobs
from bert_jax import preemption
from bert_jax import profiling
from bert_jax import run_log
from bert_jax import session
from bert_jax import sharding
from bert_jax import steps

_log = logging.getLogger(__name__)

# Steps that may be under way on the devices before the host waits.
_STEPS_AHEAD = 2


class DivergedError(RuntimeError):
  """A loss or gradient is no number any more."""


def train(config: Any, workdir: str) -> dict[str, float]:
  """Runs, or goes on with, the training that a config describes.

  Args:
    config: the whole configuration (configs/base.py).
    workdir: where run.json, metrics.jsonl and checkpoints go.

  Returns:
    The metrics of the last evaluation; {} if the run was finished before.

  Raises:
    ValueError: config, data or workdir do not fit; nothing was changed.
    DivergedError: a loss is NaN, infinite or a spike; the last checkpoint is
      sound.
    preemption.PreemptedError: SIGTERM came; the last step is saved.
  """
  # The mesh, the model and the data; whatever does not fit is found here.
  run = session.open_session(config, workdir)
  config, mesh, total = run.config, run.mesh, run.total_steps
  os.makedirs(workdir, exist_ok=True)

  # The state: from the newest checkpoint, from the weights of `init_from`, or
  # fresh. Whatever happens, what is being written is finished and closed.
  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    stack.enter_context(session.lock(workdir))
    checkpoints = run.checkpoints()
    stack.enter_context(contextlib.closing(checkpoints))
    start, state = run.restore(checkpoints)
    if start >= total:
      _log.info("%s is trained already: step %d", workdir, start)
      return {}
    if start:
      _log.info("going on from step %d of %s", start, workdir)
      if other := run_log.other_code(workdir, run.run):
        _log.warning(
          "%s: %s; to go on to the bit, use what it was begun with",
          workdir,
          other,
        )

    # The record of the run, by the first host.
    log = None
    if jax.process_index() == 0:
      run.job.tokenizer.save(os.path.join(workdir, "vocab"))
      run_log.write_run(workdir, run.run)
      log = run_log.MetricsLog(workdir, start, config.train.tensorboard)
      stack.enter_context(contextlib.closing(log))

    # The step, compiled once, and who looks after it.
    train_step = run.train_step()
    place = sharding.batch_sharding(mesh)
    param_norm = jax.jit(optax.tree.norm)
    meter = Meter(run.job, mesh, start)
    profile = profiling.Profile(
      config.train.profile_steps, workdir, meter.paused
    )
    stack.enter_context(contextlib.closing(profile))
    pending = Pending(run, checkpoints, log)
    notice = stack.enter_context(preemption.Notice())
    clock = preemption.SaveClock(config.checkpoint.max_lost_secs, start)
    keeper = Keeper(run.evaluator, checkpoints, meter, log, clock)
    keeper.catch_up(start, state, config.eval.every_steps)
    evaluation: dict[str, float] = {}

    # The loop.
    with meter.bar:
      for step, batch in enumerate(
        batching.prefetch(
          run.batches,
          start,
          num_threads=config.data.num_threads,
          buffer_size=config.data.prefetch_batches,
        ),
        start + 1,
      ):
        profile.start(step, state)
        device_batch = sharding.put_global_batch(batch, place)
        state, metrics = train_step(state, device_batch)
        profile.stop(step, state)
        pending.add(step, metrics)
        meter.count(batch, metrics)
        last = step == total
        stops = not last and notice.stops_at(step)
        logs = last or _due(step, config.train.log_every_steps)
        evaluates = last or _due(step, config.eval.every_steps)
        evaluates = evaluates and not stops
        saves = last or _due(step, config.checkpoint.every_steps)
        saves = saves or stops or clock.is_due(step)
        if logs or evaluates or saves:
          values = pending.check(param_norm(state.params))
        if logs:
          checkpoints.check()
          meter.log(step, values, log)
          clock.plan(step)
        if evaluates or saves:
          with meter.paused():
            evaluation = keeper.evaluate(step, state) if evaluates else {}
            keeper.save(step, state, evaluation, only_best=not saves)
        if stops:
          raise preemption.PreemptedError(
            f"stopped after step {step} of {total}, which is saved in "
            f"{workdir}; the same command goes on from there"
          )

  return evaluation


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


@dataclasses.dataclass
class Keeper:
  """Evaluates and saves the states of a run.

  Attributes:
    evaluator: of the job.
    checkpoints: of the workdir.
    meter: reports what was found.
    log: of metrics, on the first host.
    clock: is told of what is saved.
  """

  evaluator: Any
  checkpoints: checkpoint.Checkpoints
  meter: "Meter"
  log: run_log.MetricsLog | None
  clock: preemption.SaveClock

  def evaluate(self, step: int, state: steps.TrainState) -> dict[str, float]:
    """Returns, and logs, what the evaluation of a state finds."""
    found = self.evaluator(state.params)
    self.meter.report(step, found, self.log)
    return found

  def save(
    self,
    step: int,
    state: steps.TrainState,
    evaluation: dict[str, float],
    only_best: bool = False,
  ) -> None:
    """Saves a state; with `only_best`, only if the evaluation says best."""
    rest = session.rest_of(state)
    if only_best:
      self.checkpoints.save_if_best(step, state.params, rest, evaluation)
      return
    self.checkpoints.save(step, state.params, rest, evaluation)
    self.clock.saved(step)

  def catch_up(self, start: int, state: steps.TrainState, every: int) -> None:
    """Does the evaluation that a run left to the next, being told to stop."""
    if not start or not _due(start, every):
      return
    done = np.int32(self.log is not None and self.log.has(start, "eval/"))
    if jax.process_count() > 1:  # the first host has the log
      done = multihost_utils.broadcast_one_to_all(done)
    if not done:
      evaluation = self.evaluator(state.params)
      # Saved before it is logged: killed in between, the next does it again.
      self.save(start, state, evaluation)
      self.meter.report(start, evaluation, self.log)


class Pending:
  """Metrics of steps that nobody has looked at yet."""

  def __init__(
    self,
    run: session.Session,
    checkpoints: checkpoint.Checkpoints,
    log: run_log.MetricsLog | None,
  ):
    """Notes nothing yet.

    Args:
      run: what is trained.
      checkpoints: of the workdir.
      log: gets the bad steps, on the first host.
    """
    self._run, self._checkpoints, self._log = run, checkpoints, log
    self._steps: list[tuple[int, steps.Metrics]] = []

  def add(self, step: int, metrics: steps.Metrics) -> None:
    """Adds a step's; waits for the device if it is too far behind."""
    self._steps.append((step, metrics))
    if len(self._steps) > _STEPS_AHEAD:
      jax.block_until_ready(self._steps[-1 - _STEPS_AHEAD][1])

  def check(self, param_norm: jax.Array) -> dict[str, float]:
    """Returns the newest step's metrics and param_norm, after a look at all.

    What is no number is left out, and so is what only the guard needs.

    Args:
      param_norm: of the parameters that the newest step left. Its own loss was
        that of the parameters before.

    Raises:
      DivergedError: a step was bad, or a norm is no finite number.
    """
    settings = self._run.config.train
    values: dict[str, float] = {}
    for step, metrics in self._steps:
      values = {k: float(v) for k, v in jax.device_get(metrics).items()}
      if values.pop("bad_step"):
        self._refuse(step, values)
      del values["mean_loss"]
    if settings.on_bad_step == "stop":
      values.pop("skipped_steps", None)
    values["param_norm"] = float(param_norm)
    if not math.isfinite(values["param_norm"]):
      self._stop(
        f"train/param_norm is {values['param_norm']} at step {step}", ""
      )
    self._steps = []
    return {k: v for k, v in values.items() if math.isfinite(v)}

  def _refuse(self, step: int, values: dict[str, float]) -> None:
    """Writes a bad step down, and stops or goes on as the config says."""
    settings = self._run.config.train
    skips = settings.on_bad_step == "skip"
    odd = [k for k in ("loss", "grad_norm") if not math.isfinite(values[k])]
    if odd:
      reason = f"train/{odd[0]} is {values[odd[0]]} at step {step}"
    else:
      reason = (
        f"train/loss is {values['loss']:.4g} at step {step}, more than "
        f"{settings.spike_factor:g} times the mean of {values['mean_loss']:.4g}"
      )
    if self._log:
      self._log.write_bad_step(
        step,
        {
          "reason": reason,
          "action": "skipped" if skips else "stopped",
          **{k: v if math.isfinite(v) else None for k, v in values.items()},
          "examples": self._run.batches.examples(step - 1),
        },
      )
    which = (
      f"Which examples it had is in {self._run.workdir}/bad_steps.jsonl; "
      f"--replay_step={step} with the same command looks into it. "
    )
    if not skips:
      self._stop(
        reason,
        which + "The same command with --config.train.on_bad_step=skip goes on "
        "without it. ",
      )
    if values["skipped_steps"] > settings.max_skipped_steps:
      self._stop(
        f"{reason}; it is one more than train.max_skipped_steps="
        f"{settings.max_skipped_steps} that may be skipped",
        which + "Raise that number to go on. ",
      )
    _log.warning("%s; skipped", reason)

  def _stop(self, reason: str, what_to_do: str) -> NoReturn:
    saved, workdir = self._checkpoints.latest_step(), self._run.workdir
    raise DivergedError(
      f"{reason}; stopped. "
      + (
        f"The last checkpoint, step {saved}, is sound. "
        if saved
        else "There is no checkpoint before it. "
      )
      + what_to_do
      + "Or lower optim.learning_rate, raise optim.warmup_rate or set "
      f"optim.clip_norm, with another --workdir than {workdir}"
    )


@dataclasses.dataclass
class Meter:
  """Speed, the progress bar and the log lines."""

  job: jobs.Job
  mesh: jax.sharding.Mesh
  start: int

  def __post_init__(self):
    self.bar = progress.Progress(
      progress.TextColumn("{task.description}"),
      progress.BarColumn(),
      progress.MofNCompleteColumn(),
      progress.TimeRemainingColumn(),
      disable=jax.process_index() != 0,
    )
    self._line = self.bar.add_task(
      "train", total=self.job.total_steps, completed=self.start
    )
    self._restart(None)

  def _restart(self, since: float | None) -> None:
    self._since = since
    self._steps = self._useful = self._positions = self._flops = 0
    self._pause = 0.0

  def count(self, batch: batching.Batch, metrics: steps.Metrics) -> None:
    """Counts a step; the first, which compiles, only starts the clock."""
    self.bar.advance(self._line)
    if self._since is None:
      jax.block_until_ready(metrics)
      self._restart(time.monotonic())
      return
    self._steps += 1
    # Of this host's rows; all hosts have as many.
    hosts = jax.process_count()
    self._useful += int(np.sum(batch["input_mask"])) * hosts
    self._positions += batch["input_mask"].size * hosts
    self._flops += self.job.step_flops(batch)

  def paused(self):
    """A context whose time does not count as training."""
    return _Pause(self)

  def add_pause(self, secs: float) -> None:
    """Leaves out some seconds."""
    self._pause += secs

  def log(self, step: int, values: dict[str, float], log) -> None:
    """Writes a line of train/ metrics."""
    row = {f"train/{k}": v for k, v in values.items()}
    now = time.monotonic()
    if self._steps:
      secs = now - (self._since or now) - self._pause
      row["train/tokens_per_sec"] = self._positions / secs
      row["train/useful_tokens_per_sec"] = self._useful / secs
      row["train/steps_per_sec"] = self._steps / secs
      devices = self.mesh.devices.flat
      mfu = flops.mfu(
        self._flops,
        secs,
        self.mesh.devices.size,
        devices[0].device_kind,
      )
      if mfu is not None:
        row["train/mfu"] = mfu
    self._restart(now)
    self.report(step, row, log)

  def report(self, step: int, row: dict[str, float], log) -> None:
    """Writes a line to the log and the console."""
    if not log:
      return
    log.write(step, row)
    text = "  ".join(
      f"{k} {v:,.0f}" if v >= 1000 else f"{k} {v:.4g}" for k, v in row.items()
    )
    self.bar.console.print(f"step {step}: {text}", highlight=False)


class _Pause:
  """Tells a meter how long its block took."""

  def __init__(self, meter: Meter):
    self._meter = meter

  def __enter__(self):
    self._start = time.monotonic()

  def __exit__(self, *error):
    self._meter.add_pause(time.monotonic() - self._start)
