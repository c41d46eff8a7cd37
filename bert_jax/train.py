"""Trains a model: the loop, from top to bottom."""

import contextlib
import dataclasses
import logging
import math
import os
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import optax
from rich import progress

from bert_jax import batching
from bert_jax import checkpoint
from bert_jax import flops
from bert_jax import jobs
from bert_jax import optim
from bert_jax import preemption
from bert_jax import profiling
from bert_jax import run_log
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
    DivergedError: a loss is NaN or infinite; the last checkpoint is sound.
    preemption.PreemptedError: SIGTERM came; the last step is saved.
  """
  # The mesh, the model and the data; whatever does not fit is found here.
  check_steps(config)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp,
                            config.mesh.tensor)  # fmt: skip
  sharding.check_heads(config.model, mesh)
  if config.objective != "task":  # which fills its rows up by itself
    sharding.check_batch_size(
      config.data.batch_size, mesh, config.optim.num_micro_batches
    )
  job, pretrained = jobs.open_job(config, workdir)
  config, model, objective = job.config, job.model, job.objective
  total = job.total_steps
  profiling.check_steps(config.train.profile_steps, total)
  optimizer, schedule = optim.make_optimizer(config.optim, total)
  place = sharding.batch_sharding(mesh)
  batches = job.batches(mesh)
  evaluator = job.evaluator(mesh)
  first_batch = batches[0]

  # What the state is made of, and where each part of it lies.
  init_rng, dropout_rng = jax.random.split(jax.random.key(config.seed))

  def init(batch):
    return steps.init_state(model, objective, optimizer, init_rng, batch)

  row = {k: jnp.asarray(v[:1]) for k, v in first_batch.items()}
  abstract = jax.eval_shape(init, row)
  state_place = sharding.place_state(abstract, mesh, config.mesh)
  checkpoint.check_settings(config.checkpoint, evaluator.names(abstract.params))
  imported = fit_weights(job, pretrained, abstract.params)

  # The record of the run.
  run = run_log.describe(config, job.data_hash, list(mesh.devices.flat))
  run |= job.facts | {"total_steps": total}
  run_log.check_workdir(workdir, run)
  os.makedirs(workdir, exist_ok=True)
  writes = jax.process_index() == 0

  # The state: from the newest checkpoint, from the weights of `init_from`, or
  # fresh. Whatever happens, what is being written is finished and closed.
  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    _lock(workdir, stack)
    checkpoints = checkpoint.Checkpoints(
      workdir,
      keep=config.checkpoint.keep,
      best_metric=config.checkpoint.best_metric,
      best_mode=config.checkpoint.best_mode,
    )
    stack.enter_context(contextlib.closing(checkpoints))
    start = checkpoints.latest_step() or 0
    if start:
      start, state = restore(checkpoints, abstract, state_place)
      if start >= total:
        _log.info("%s is trained already: step %d", workdir, start)
        return {}
      _log.info("going on from step %d of %s", start, workdir)
    else:
      state = jax.jit(init, out_shardings=state_place)(row)
      if imported is not None:
        state = state.replace(params=place_params(state.params, imported))
    if writes:
      job.tokenizer.save(os.path.join(workdir, "vocab"))
      run_log.write_run(workdir, run)
    log = None
    if writes:
      log = run_log.MetricsLog(workdir, start, config.train.tensorboard)
      stack.enter_context(contextlib.closing(log))
    # The step, compiled once.
    train_step = steps.jit_train_step(
      config,
      model,
      objective,
      optimizer,
      schedule,
      dropout_rng,
      mesh,
      state_place,
    )
    param_norm = jax.jit(optax.tree.norm)
    meter = Meter(job, mesh, start)
    profile = profiling.Profile(
      config.train.profile_steps, workdir, meter.paused
    )
    stack.enter_context(contextlib.closing(profile))
    pending = Pending(workdir, checkpoints)
    notice = stack.enter_context(preemption.Notice())
    clock = preemption.SaveClock(config.checkpoint.max_lost_secs, start)
    keeper = Keeper(evaluator, checkpoints, meter, log, clock)
    keeper.catch_up(start, state, config.eval.every_steps)
    evaluation: dict[str, float] = {}

    # The loop.
    with meter.bar:
      for step, batch in enumerate(
        batching.prefetch(
          batches,
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


def check_steps(config: Any) -> None:
  """Raises ValueError for settings of the loop that cannot be."""
  for key, value, least in (
    # Tasks may count epochs instead.
    (
      "train.total_steps",
      config.train.total_steps,
      0 if config.train.num_epochs else 1,
    ),
    ("train.num_epochs", config.train.num_epochs, 0),
    ("optim.num_micro_batches", config.optim.num_micro_batches, 1),
    ("task.max_train_examples", config.task.max_train_examples, 0),
    ("task.n_best", config.task.n_best, 1),
    ("task.max_answer_len", config.task.max_answer_len, 1),
    ("train.log_every_steps", config.train.log_every_steps, 1),
    ("eval.every_steps", config.eval.every_steps, 0),
    ("checkpoint.every_steps", config.checkpoint.every_steps, 0),
    ("checkpoint.max_lost_secs", config.checkpoint.max_lost_secs, 0),
    ("data.num_threads", config.data.num_threads, 0),
    ("data.prefetch_batches", config.data.prefetch_batches, 1),
    ("data.max_predictions", config.data.max_predictions, 0),
  ):
    if value < least:
      raise ValueError(f"{key}={value}; it must be {least} or more")
  for key in ("mask_rate", "mask_token_rate", "random_token_rate"):
    if not 0 <= config.data[key] <= 1:
      raise ValueError(f"data.{key}={config.data[key]} is no share of 0 to 1")
  if config.data.mask_token_rate + config.data.random_token_rate > 1:
    raise ValueError(
      "data.mask_token_rate and data.random_token_rate add up to more than 1"
    )


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
    rest = {"step": state.step, "opt_state": state.opt_state}
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
      evaluation = self.evaluate(start, state)
      self.save(start, state, evaluation, only_best=True)


def _lock(workdir: str, stack: contextlib.ExitStack) -> None:
  """Takes the workdir for this job; all hosts are told if it is taken."""
  refused = None
  if jax.process_index() == 0:
    try:
      stack.enter_context(run_log.lock(workdir))
    except run_log.RunError as error:
      refused = error
  if jax.process_count() > 1:
    taken = multihost_utils.broadcast_one_to_all(np.int32(refused is not None))
    if taken and refused is None:
      raise run_log.RunError(f"--workdir={workdir} is in use, says process 0")
  if refused is not None:
    raise refused


def restore(checkpoints, abstract, state_place) -> tuple[int, steps.TrainState]:
  """Reads the newest sound checkpoint into the places of a mesh."""
  wanted = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    state_place,
  )
  step, params, rest = checkpoints.restore_newest(
    wanted.params, {"step": wanted.step, "opt_state": wanted.opt_state}
  )
  return step, steps.TrainState(
    step=rest["step"], params=params, opt_state=rest["opt_state"]
  )


def fit_weights(job: jobs.Job, pretrained: Any, params: Any) -> Any:
  """The weights to start from, as the model's tree has them.

  Args:
    job: what is trained; a head is kept only if it is of the same kind and
      has the same labels.
    pretrained: weights.Pretrained, or None.
    params: the model's parameters, or their shapes.

  Returns:
    The tree, None in it where a parameter starts fresh; or None.

  Raises:
    weights.WeightsError: a shape differs.
  """
  if pretrained is None:
    return None
  given, source = dict(pretrained.params), job.config.init_from
  head = {"kind": pretrained.kind, "labels": list(pretrained.labels)}
  if "task" in given and head != job.facts.get("task"):
    del given["task"]
    _log.info("%s, not used: the head of another task, %s", source, head)
  from bert_jax import weights  # slow to import, and not always needed

  tree, added, dropped = weights.fit(given, params)
  for what, names in (("fresh", added), ("not used", dropped)):
    if names:
      _log.info("%s, %s: %s", source, what, ", ".join(sorted(names)))
  return tree


def place_params(fresh: Any, values: Any) -> Any:
  """Puts host arrays where fresh parameters lie; None keeps the fresh one."""

  def place(old, value):
    if value is None:
      return old
    value = value.astype(old.dtype)
    return jax.make_array_from_callback(
      old.shape, old.sharding, lambda index: value[index]
    )

  return jax.tree.map(place, fresh, values)


class Pending:
  """Metrics of steps that nobody has looked at yet."""

  def __init__(self, workdir: str, checkpoints: checkpoint.Checkpoints):
    self._workdir = workdir
    self._checkpoints = checkpoints
    self._steps: list[tuple[int, steps.Metrics]] = []

  def add(self, step: int, metrics: steps.Metrics) -> None:
    """Adds a step's; waits for the device if it is too far behind."""
    self._steps.append((step, metrics))
    if len(self._steps) > _STEPS_AHEAD:
      jax.block_until_ready(self._steps[-1 - _STEPS_AHEAD][1])

  def check(self, param_norm: jax.Array) -> dict[str, float]:
    """Returns the newest step's metrics and param_norm, after a look at all.

    Args:
      param_norm: of the parameters that the newest step left. Its own loss was
        that of the parameters before.

    Raises:
      DivergedError: a loss or a norm is no finite number.
    """
    values: dict[str, float] = {}
    for step, metrics in self._steps:
      values = {k: float(v) for k, v in jax.device_get(metrics).items()}
      self._check_finite(step, values, ("loss", "grad_norm"))
    values["param_norm"] = float(param_norm)
    self._check_finite(step, values, ("param_norm",))
    self._steps = []
    return values

  def _check_finite(self, step, values, names) -> None:
    for name in names:
      if not math.isfinite(values[name]):
        saved = self._checkpoints.latest_step()
        raise DivergedError(
          f"train/{name} is {values[name]} at step {step}; stopped. "
          + (
            f"The last checkpoint, step {saved}, is sound. "
            if saved
            else "There is no checkpoint before it. "
          )
          + "Lower optim.learning_rate, raise optim.warmup_rate or set "
          f"optim.clip_norm, with another --workdir than {self._workdir}"
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
