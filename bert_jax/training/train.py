"""Trains a model: the loop, from top to bottom."""

from collections.abc import Sequence
import contextlib
import dataclasses
import logging
import math
import os
import time
from typing import Any, NoReturn

import jax
import numpy as np
from rich import progress

from bert_jax.data import batching
from bert_jax.models import flops
from bert_jax.runtime import bars
from bert_jax.runtime import checkpoint
from bert_jax.runtime import hosts
from bert_jax.runtime import metrics_log
from bert_jax.runtime import preemption
from bert_jax.runtime import profiling
from bert_jax.runtime import resume
from bert_jax.runtime import runs
from bert_jax.runtime import sharding
from bert_jax.runtime import watchdog
from bert_jax.runtime.settings import Config
from bert_jax.training import averages
from bert_jax.training import jobs
from bert_jax.training import meeting
from bert_jax.training import members
from bert_jax.training import session
from bert_jax.training import steps

_log = logging.getLogger(__name__)

# Steps that may be under way on the devices before the host waits.
_STEPS_AHEAD = 2


class DivergedError(RuntimeError):
  """The loss or a gradient became NaN or infinite, or the loss a spike."""

  exit_status = 1


def train(config: Config, workdir: str) -> dict[str, float]:
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
    preemption.PreemptedError: a signal told it to stop (SIGTERM, SIGINT or
      SIGHUP); the last step is saved.
  """
  meeting.meet("train", config, [workdir])
  # The mesh, the model and the data; whatever does not fit is found here.
  return _train(members.Alone(session.open_session(config, workdir)))[0]


def train_together(
  config: Config, wanted: Sequence[members.Member]
) -> list[dict[str, float]]:
  """Trains models that differ in seed and learning rate in one program.

  Each has a workdir, which afterwards is as if it had been trained alone.

  Args:
    config: the whole configuration, but for what differs.
    wanted: which models.

  Returns:
    The final metrics of each run, one dict per run.

  Raises:
    ValueError: as `train`, or they cannot be trained together.
    DivergedError: one of them did; the last checkpoints of all are sound.
    preemption.PreemptedError: a signal told it to stop (SIGTERM, SIGINT or
      SIGHUP); the last step is saved.
  """
  facts = {"members": [[x.seed, x.learning_rate] for x in wanted]}
  meeting.meet("train", config, [x.workdir for x in wanted], **facts)
  return _train(members.Together(members.open_members(config, wanted)))


def _train(group: members.Group) -> list[dict[str, float]]:
  runs = group.runs
  config, mesh, total = runs[0].config, runs[0].mesh, runs[0].total_steps
  for run in runs:
    os.makedirs(run.workdir, exist_ok=True)

  # The state: from the newest checkpoint, from the weights of `init_from`, or
  # fresh. Whatever happens, what is being written is finished and closed.
  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    # Left last: a signal does not interrupt the end of a save either.
    notice = stack.enter_context(preemption.Notice())
    stack.enter_context(hosts.watching(config.train.max_stall_secs))
    checkpoints = []
    for run in runs:
      stack.enter_context(meeting.lock(run.workdir))
      opened = run.checkpoints()
      stack.enter_context(contextlib.closing(opened))
      checkpoints.append(opened)
    start, state, mean_losses = group.restore(checkpoints)
    if start >= total:
      for run in runs:
        _log.info("%s is trained already: step %d", run.workdir, start)
      return [{} for _ in runs]

    # The record of each run, by the first host.
    meter = Meter(runs[0].job, mesh, start, len(runs))
    recorders = [
      stack.enter_context(contextlib.closing(Recorder(*own, meter)))
      for own in zip(runs, checkpoints, mean_losses, strict=True)
    ]
    for recorder in recorders:
      recorder.begin(start)

    # The step, compiled once, and who looks after it.
    stack.enter_context(hosts.leaving_if_broken())
    train_step, norms = group.train_step(), group.norms()
    profile = profiling.Profile(
      config.train.profile_steps, runs[0].workdir, meter.paused
    )
    stack.enter_context(contextlib.closing(profile))
    pending = Pending()
    notice.listen()
    clock = preemption.SaveClock(config.checkpoint.max_lost_secs, start)
    if start and _due(start, config.eval.every_steps):
      _catch_up(group, recorders, start, state)
    evaluations: list[dict[str, float]] = [{} for _ in runs]

    # The loop.
    with bars.showing(meter.bar):
      for step, batch in enumerate(
        batching.prefetch(
          group.batches,
          start,
          num_threads=config.data.num_threads,
          buffer_size=config.data.prefetch_batches,
        ),
        start + 1,
      ):
        watchdog.note("training", step)
        profile.start(step, state)
        device_batch = sharding.put_global_batch(batch, group.place)
        state, metrics = train_step(state, device_batch)
        profile.stop(step, state)
        pending.add(step, metrics)
        meter.count(group.parts(batch), metrics)
        last = step == total
        stops = not last and notice.stops_at(step)
        logs = last or _due(step, config.train.log_every_steps)
        evaluates = last or _due(step, config.eval.every_steps)
        evaluates = evaluates and not stops
        saves = last or _due(step, config.checkpoint.every_steps)
        saves = saves or stops or clock.is_due(step)
        if logs or evaluates or saves:
          found = [(i, group.parts(x)) for i, x in pending.take()]
          found_norms = group.parts(jax.device_get(norms(state.params)))
          for k, recorder in enumerate(recorders):
            own_steps = [(i, parts[k]) for i, parts in found]
            recorder.check(own_steps, float(found_norms[k]))
        if logs:
          speed = meter.speed()
          for recorder in recorders:
            recorder.log(step, speed)
          clock.plan(step)
        if evaluates or saves:
          with meter.paused():
            evaluations = [{} for _ in runs]
            if evaluates:
              evaluations = group.evaluate(state.params)
              for recorder, values in zip(recorders, evaluations, strict=True):
                recorder.report(step, values)
            _save(group, recorders, step, state, evaluations, saves)
          if saves:
            clock.saved(step)
        if stops:
          raise preemption.PreemptedError(
            f"stopped after step {step} of {total}, which is saved in "
            f"{', '.join(run.workdir for run in runs)}; the same command goes "
            "on from there"
          )

  return evaluations


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def _save(
  group: members.Group,
  recorders: "Sequence[Recorder]",
  step: int,
  state: steps.TrainState,
  evaluations: Sequence[dict[str, float]],
  always: bool,
) -> None:
  """Saves a state; without `always`, only where its evaluation says best."""
  watchdog.note("saving", step)
  if len(recorders) > 1:
    # None is two saves ahead of another: all keep the step to go back to.
    for recorder in recorders:
      recorder.checkpoints.wait()
  for recorder, own, values in zip(
    recorders, group.split(state), evaluations, strict=True
  ):
    save = recorder.checkpoints.save
    if not always:
      save = recorder.checkpoints.save_if_best
    mesh: Any = getattr(own.step.sharding, "mesh")  # noqa: B009
    with jax.set_mesh(mesh):
      rest = session.rest_of(own, recorder.mean_loss)
      save(step, own.params, rest, values)
    del own  # on the devices there may be no room for two


def _catch_up(
  group: members.Group,
  recorders: "Sequence[Recorder]",
  start: int,
  state: steps.TrainState,
) -> None:
  """Does the evaluation that a run left to the next, being told to stop."""
  # The first host has the log.
  done = hosts.from_first([x.has_evaluation(start) for x in recorders])
  if all(done):
    return
  evaluations = group.evaluate(state.params)
  # Saved before it is logged: killed in between, the next does it again.
  _save(group, recorders, start, state, evaluations, True)
  for recorder, values, is_done in zip(
    recorders, evaluations, done, strict=True
  ):
    if not is_done:
      recorder.report(start, values)


class Pending:
  """Metrics of steps that nobody has looked at yet."""

  def __init__(self) -> None:
    self._steps: list[tuple[int, steps.Metrics]] = []

  def add(self, step: int, metrics: steps.Metrics) -> None:
    """Adds a step's; waits for the device if it is too far behind."""
    self._steps.append((step, metrics))
    if len(self._steps) > _STEPS_AHEAD:
      jax.block_until_ready(self._steps[-1 - _STEPS_AHEAD][1])

  def take(self) -> list[tuple[int, Any]]:
    """Returns all of them, on the host, and forgets them."""
    found = [(step, jax.device_get(metrics)) for step, metrics in self._steps]
    self._steps = []
    return found


class Recorder:
  """Looks at the steps of one run, and writes them down.

  Attributes:
    checkpoints: of the run.
    mean_loss: of the steps since the last line of the log.
  """

  def __init__(
    self,
    run: session.Session,
    checkpoints: checkpoint.Checkpoints,
    mean_loss: averages.MeanLoss,
    meter: "Meter",
  ):
    """Writes nothing yet.

    Args:
      run: what is trained.
      checkpoints: of its workdir.
      mean_loss: of the steps before the first that were not logged yet.
      meter: shows what was found.
    """
    self.checkpoints, self.mean_loss = checkpoints, mean_loss
    self._run, self._meter = run, meter
    self._values: dict[str, float] = {}
    self._written: metrics_log.MetricsLog | None = None

  def begin(self, start: int) -> None:
    """Writes what is known before the first step, on the first host.

    Args:
      start: the step that the run goes on from; what the log says of later
        ones is dropped.
    """
    run, workdir = self._run, self._run.workdir
    if start:
      _log.info("going on from step %d of %s", start, workdir)
      if other := resume.other_code(workdir, run.run):
        _log.warning(
          "%s: %s; to go on to the bit, use what it was begun with",
          workdir,
          other,
        )
    if jax.process_index() == 0:
      run.job.tokenizer.save(os.path.join(workdir, "vocab"))
      runs.write_run(workdir, run.run | {"checksums_since": start + 1})
      self._written = metrics_log.MetricsLog(
        workdir,
        start,
        run.config.train.tensorboard,
        run.run["config"],
        run.metrics,
      )

  def close(self) -> None:
    """Flushes what was written."""
    if self._written:
      self._written.close()

  def report(self, step: int, row: dict[str, float]) -> None:
    """Writes a line of metrics, and shows it."""
    if self._written:
      self._written.write(step, row)
      self._meter.show(self._run.workdir, step, row)

  def log(self, step: int, speed: dict[str, float]) -> None:
    """Writes the train/ metrics of the step that was last looked at.

    train/loss is the mean over the steps since the last line, without those
    that were skipped. Where all were, the line has none.
    """
    self.checkpoints.check()
    values, mean = dict(self._values), self.mean_loss.take()
    if mean is None:
      del values["loss"]
    else:
      values["loss"] = mean
    row = {f"train/{k}": v for k, v in values.items()}
    self.report(step, row | speed)

  def has_evaluation(self, start: int) -> bool:
    """Whether the log, on the first host, has that of the step it began at."""
    return self._written is not None and self._written.has(start, "eval/")

  def check(
    self, found: Sequence[tuple[int, dict[str, Any]]], param_norm: float
  ) -> None:
    """Looks at all steps since the last look, and keeps the newest to log.

    Metrics that are NaN or infinite are left out of the log, and so are those
    that only the guard needs. The losses of good steps are summed up.

    Args:
      found: (step, metrics) of them.
      param_norm: of the parameters that the newest step left. Its own loss was
        that of the parameters before.

    Raises:
      DivergedError: a step was bad, or a norm is no finite number.
    """
    values: dict[str, float] = {}
    for step, metrics in found:
      values = {k: float(v) for k, v in metrics.items()}
      if values.pop("bad_step"):
        self._refuse(step, values)
      else:
        self.mean_loss.add(values["loss"])
      del values["mean_loss"]
    if self._run.config.train.on_bad_step == "stop":
      values.pop("skipped_steps", None)
    values["param_norm"] = param_norm
    if not math.isfinite(param_norm):
      self._stop(f"train/param_norm is {param_norm} at step {step}", "")
    self._values = {
      k: v for k, v in values.items() if k == "loss" or math.isfinite(v)
    }

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
    if self._written:
      self._written.write_bad_step(
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
      f"--mode=train --replay_step={step} --workdir={self._run.workdir} looks "
      "into it. "
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
    saved, workdir = self.checkpoints.latest_step(), self._run.workdir
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
  num_runs: int

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

  def count(
    self, batches: Sequence[batching.Batch], metrics: steps.Metrics
  ) -> None:
    """Counts a step; the first, which compiles, only starts the clock.

    Args:
      batches: of each of the runs.
      metrics: of the step.
    """
    self.bar.advance(self._line)
    if self._since is None:
      jax.block_until_ready(metrics)
      self._restart(time.monotonic())
      return
    self._steps += 1
    # Of this host's rows; all hosts have as many.
    count = jax.process_count()
    for batch in batches:
      self._useful += int(np.sum(batch["input_mask"])) * count
      self._positions += batch["input_mask"].size * count
      self._flops += self.job.step_flops(batch)

  def paused(self):
    """A context whose time does not count as training."""
    return _Pause(self)

  def add_pause(self, secs: float) -> None:
    """Leaves out some seconds."""
    self._pause += secs

  def speed(self) -> dict[str, float]:
    """Metrics of a run's speed since the last call.

    Tokens are those of one run, the share of the devices' peak that of all.
    """
    row: dict[str, float] = {}
    now = time.monotonic()
    if self._steps:
      secs = now - (self._since or now) - self._pause
      row["train/tokens_per_sec"] = self._positions / secs / self.num_runs
      row["train/useful_tokens_per_sec"] = self._useful / secs / self.num_runs
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
    return row

  def show(self, workdir: str, step: int, row: dict[str, float]) -> None:
    """Prints a line of a run's metrics."""
    text = "  ".join(
      f"{k} {v:,.0f}" if v >= 1000 else f"{k} {v:.4g}" for k, v in row.items()
    )
    name = (
      f"{os.path.basename(workdir.rstrip('/'))} " if self.num_runs > 1 else ""
    )
    self.bar.console.print(f"{name}step {step}: {text}", highlight=False)


class _Pause:
  """Tells a meter how long its block took."""

  def __init__(self, meter: Meter):
    self._meter = meter

  def __enter__(self):
    self._start = time.monotonic()

  def __exit__(self, *error):
    self._meter.add_pause(time.monotonic() - self._start)
