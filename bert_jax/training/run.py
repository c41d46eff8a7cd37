"""A run while it trains: its checkpoints, its log and its bad steps."""

from collections.abc import Iterator, Sequence
import contextlib
import logging
import math
import os
from typing import Any, NoReturn

import jax
import optax

from bert_jax.data import batching
from bert_jax.models import params as param_trees
from bert_jax.runtime import checkpoint
from bert_jax.runtime import early_stopping
from bert_jax.runtime import files
from bert_jax.runtime import goodput
from bert_jax.runtime import hosts
from bert_jax.runtime import local_steps
from bert_jax.runtime import locks
from bert_jax.runtime import metrics_log
from bert_jax.runtime import resume
from bert_jax.runtime import runs
from bert_jax.runtime import trackers
from bert_jax.runtime import watchdog
from bert_jax.training import averages
from bert_jax.training import confusion
from bert_jax.training import meeting
from bert_jax.training import meter as meter_lib
from bert_jax.training import probes
from bert_jax.training import session
from bert_jax.training import steps
from bert_jax.training import terminal

_log = logging.getLogger(__name__)


class DivergedError(RuntimeError):
  """The loss or a gradient became NaN or infinite, or the loss had a spike."""

  exit_status = 1


class Run:
  """The run that the training loop trains.

  Attributes:
    session: the session of the run.
    job: the job to train.
    config: the whole configuration.
    mesh: the mesh of devices.
    total_steps: the last step.
    epoch_steps: the steps of an epoch.
    batches: the batches of this host, by step.
    batch_place: the sharding of a batch on the mesh.
    workdir: the folder of the run.
    profile_folder: the folder that profiles are written to; the workdir.
    checkpoints: the checkpoints of the workdir, once the run is open.
    probes: what measures the worth of the encoder to tasks.
    mean_loss: the mean loss of the steps since the last line of the log.
  """

  checkpoints: checkpoint.Checkpoints

  def __init__(self, opened: session.Session):
    """Opens nothing yet."""
    self.session = opened
    self.workdir = self.profile_folder = opened.workdir
    self.job, self.config, self.mesh = opened.job, opened.config, opened.mesh
    self.total_steps = opened.total_steps
    self.batches: batching.Batches = opened.batches
    self.batch_place = opened.batch_place
    self.epoch_steps = opened.batches.epoch_steps
    self.mean_loss = averages.MeanLoss()
    self.probes = probes.Prober(self.job, self.mesh)
    self._norm = jax.jit(optax.tree.norm)
    # Lines of the log, which early stopping looks at; None = it did not yet.
    self._evaluations: list[dict[str, float]] | None = None
    self._values: dict[str, float] = {}
    self._written: metrics_log.MetricsLog | None = None
    self._ledger: goodput.Ledger | None = None
    self._clock: goodput.Clock | None = None
    self._trackers: trackers.Trackers | None = None
    self._local: local_steps.LocalSteps | None = None
    self._step = 0

  @contextlib.contextmanager
  def open(self) -> Iterator[None]:
    """A context in which the run has its workdir for itself.

    Leaving it waits for unfinished writes and closes the files.
    """
    files.make_folders(self.workdir)
    with (
      meeting.lock(self.workdir),
      self.session.open_local_steps() as self._local,
    ):
      self.checkpoints = self.session.checkpoints()
      try:
        with contextlib.closing(self.checkpoints):
          try:
            yield
          finally:
            if self._clock:  # closing waits for saves that are under way
              self._clock.switch("saves")
            if self._written:
              self._written.close()
      finally:
        if self._ledger:
          self._ledger.write(self._step)
        if self._trackers:
          self._trackers.close()

  def restore(self, before: int | None = None) -> tuple[int, steps.TrainState]:
    """Returns the step to go on from, and its state; see `Session.restore`."""
    local = self._local if before is None else None
    start, state, self.mean_loss = self.session.restore(
      self.checkpoints, before, local
    )
    return start, state

  def begin(
    self,
    start: int,
    clock: goodput.Clock,
    meter: meter_lib.Meter | None = None,
    num_runs: int = 1,
  ) -> meter_lib.Meter:
    """Writes run.json and the vocabulary, and opens the log, on the first host.

    Args:
      start: the step from which the run is resumed. Later steps are removed
        from the log.
      clock: the clock of this session.
      meter: the meter of several runs; None means one for this run alone.
      num_runs: the number of runs that share the devices.

    Returns:
      The meter of the speed, which also shows the lines of the log.
    """
    opened = self.session
    self._clock = clock
    self._meter = meter or meter_lib.Meter(
      start, self.total_steps, self.mesh, opened.job.step_flops, clock
    )
    if meter is None:
      self._meter.say(self._start_lines())
    if start:
      _log.info("going on from step %d of %s", start, self.workdir)
      if other := resume.other_code(self.workdir, opened.run):
        _log.warning(
          "%s: %s; to get the same bits, use the version that it began with",
          self.workdir,
          other,
        )
    if jax.process_index() == 0:
      opened.job.tokenizer.save(os.path.join(self.workdir, "vocab"))
      facts = opened.run | {"checksums_since": start + 1}
      if changed := resume.changes(self.workdir, opened.run):
        for key, (old, new) in changed.items():
          self._meter.say(f"from step {start} on, {key} is {new}, not {old}")
        facts["changes"] = [{"step": start, "config": changed}]
      runs.write_run(self.workdir, facts)
      self._written = metrics_log.MetricsLog(
        self.workdir,
        start,
        self.config.train.tensorboard,
        opened.run["config"],
        opened.metrics,
      )
      names = self.config.train.get("trackers", ())
      self._trackers = trackers.Trackers(
        names, self.workdir, opened.run["config"]
      )
      num_chips = self.mesh.devices.size / num_runs
      self._ledger = goodput.Ledger(self.workdir, start, num_chips, clock)
      self._step = start
    if self._local:
      self._local.begin()
    return self._meter

  def _start_lines(self) -> str:
    """Returns what the terminal shows of the run before its first step."""
    is_trained = self.job.is_trained
    sizes = {
      path: x.size
      for path, x in param_trees.flatten(self.session.abstract.params).items()
    }
    trained = None
    if is_trained:
      trained = sum(size for path, size in sizes.items() if is_trained(path))
    return terminal.start_lines(
      self.config,
      self.workdir,
      sum(sizes.values()),
      self.session.batches.epoch_steps,
      trained,
    )

  def train_step(self) -> Any:
    """Returns the jitted step: (state, batch) -> (state, metrics)."""
    return self.session.train_step()

  def evaluate(self, params: Any) -> dict[str, float]:
    """Returns the value of every metric, by the key eval/NAME."""
    return self.session.evaluator(params)

  def probes_at(self, step: int) -> bool:
    """Returns whether the encoder is probed after a step."""
    return self.probes.is_due(step)

  def probe(self, step: int, params: Any) -> None:
    """Probes the encoder, and writes and shows the scores."""
    init = jax.jit(
      lambda rng: self.session.init_state(rng).params,
      out_shardings=self.session.place.params,
    )
    row = self.probes(params, lambda: init(self.session.rngs[0]))
    self.report(step, row)

  def has_probes(self, start: int) -> bool:
    """Returns whether the log had the probes of this step when it opened."""
    return self._has(start, "probe/")

  def has_evaluation(self, start: int) -> bool:
    """Returns whether the log had an evaluation of this step when it opened."""
    return self._has(start, "eval/")

  def _has(self, start: int, prefix: str) -> bool:
    return hosts.from_first(
      self._written is not None and self._written.has(start, prefix)
    )

  def stops_early(self, step: int) -> bool:
    """Returns whether the evaluations up to a step end the run.

    Args:
      step: the number of updates; at first, those of the sessions before.
    """
    train = self.config.train
    if not (train.patience or train.get("stop_at", "")):  # older runs lack it
      return False
    if self._evaluations is None:  # before the first step of this session
      self._evaluations = []
      if step and jax.process_index() == 0:
        rows = metrics_log.read_metrics(self.workdir)
        self._evaluations = [row for row in rows if row["step"] <= step]
    stop = early_stopping.stop_step(self._evaluations, self.config)
    return hosts.from_first(stop is not None and stop <= step)

  def end(self) -> None:
    """Shows the last and the best evaluation, and the next command."""
    if jax.process_index() == 0:  # whose log is closed
      found = self.job.confusions(self.session.evaluator)
      confusion.write(self.workdir, self._step, found)
      self._meter.say(terminal.end_lines(self.config, self.workdir))

  def note(self, step: int) -> None:
    """Notes that a step begins, in case it is the last that is heard of."""
    watchdog.note("training", step)
    self._step = step
    if self._ledger:
      self._ledger.note(step - 1)

  def report(self, step: int, row: dict[str, float]) -> None:
    """Writes a line of metrics and shows it, on the first host.

    Nothing is written if there are none, because evaluation is off.
    """
    if self._evaluations is not None:
      self._evaluations.append({"step": step, **row})
    if self._written and row:
      self._written.write(step, row)
      if self._trackers:
        self._trackers.write(step, row)
      self._meter.show(self.workdir, step, row)

  def log(self, step: int, speed: dict[str, float]) -> None:
    """Writes the train/ metrics of the newest step that was checked.

    train/loss is the mean over the steps since the last line, without skipped
    steps. If all were skipped, the line has no train/loss.

    Args:
      step: the number of updates.
      speed: further metrics for the line, from `Meter.speed`.
    """
    self.checkpoints.check()
    values, mean = dict(self._values), self.mean_loss.take()
    if mean is None:
      del values["loss"]
    else:
      values["loss"] = mean
    row = {f"train/{k}": v for k, v in values.items()} | speed
    if self._ledger:
      row |= self._ledger.spent().metrics()
      self._ledger.write(step)
    self.report(step, row)

  def save(
    self,
    step: int,
    state: steps.TrainState,
    evaluation: dict[str, float],
    always: bool = True,
  ) -> None:
    """Saves a state.

    Args:
      step: the number of updates.
      state: the state after these updates.
      evaluation: the metrics of that state; {} if it was not evaluated.
      always: False means to save it only if its evaluation is the best so far.
    """
    watchdog.note("saving", step)
    self._sync()
    if self._local and always:
      self._local.finish()
    save = self.checkpoints.save if always else self.checkpoints.save_if_best
    rest = session.rest_of(state, self.mean_loss)
    save(step, state.params, rest, evaluation)
    self._step = step
    if self._ledger:
      self._ledger.write(step)

  def saves_locally(self, step: int) -> bool:
    """Returns whether a state is saved to local disks, if it is not saved."""
    return self._local is not None and self._local.is_due(step)

  def save_locally(self, step: int, state: steps.TrainState) -> None:
    """Saves a state to the disks of the machines; see `local_steps`."""
    assert self._local
    watchdog.note("saving locally", step)
    self._sync()
    self._local.save(
      step,
      {"params": state.params, "rest": session.rest_of(state, self.mean_loss)},
      self.checkpoints.committed_step(),
    )
    self._step = step

  def _sync(self) -> None:
    """Has others see all lines, before a step is saved after them."""
    locks.check(self.workdir)
    if self._written:  # a killed run goes on from the step
      self._written.sync()
    if self._ledger:
      self._ledger.sync()

  def look(self, found: Sequence[tuple[int, Any]], params: Any) -> None:
    """Checks the steps since the last check; see `check`.

    Args:
      found: (step, metrics) of each of these steps, on the host.
      params: the parameters after the newest step.
    """
    self.check(found, float(jax.device_get(self._norm(params))))

  def check(
    self, found: Sequence[tuple[int, dict[str, Any]]], param_norm: float
  ) -> None:
    """Checks the steps since the last check, and keeps the newest for the log.

    Metrics that are NaN or infinite are not logged, and neither are those that
    only the guard needs. The losses of good steps are added up.

    Args:
      found: (step, metrics) of each of these steps.
      param_norm: the norm of the parameters after the newest step. The loss of
        that step belongs to the parameters before it.

    Raises:
      DivergedError: a step was bad, or the norm is NaN or infinite.
    """
    values: dict[str, float] = {}
    for step, metrics in found:
      values = {k: float(v) for k, v in metrics.items()}
      if values.pop("bad_step"):
        self._refuse(step, values)
      else:
        self.mean_loss.add(values["loss"])
      del values["mean_loss"]
    if self.config.train.on_bad_step == "stop":
      values.pop("skipped_steps", None)
    values["param_norm"] = param_norm
    if not math.isfinite(param_norm):
      self._stop(f"train/param_norm is {param_norm} at step {step}", "")
    self._values = {
      k: v for k, v in values.items() if k == "loss" or math.isfinite(v)
    }

  def _refuse(self, step: int, values: dict[str, float]) -> None:
    """Records a bad step, and stops or skips it as the config says."""
    settings = self.config.train
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
          "examples": self.session.batches.examples(step - 1),
        },
      )
    which = (
      f"{self.workdir}/bad_steps.jsonl lists its examples; bert-jax train "
      f"--replay_step={step} --workdir={self.workdir} computes it again. "
    )
    if not skips:
      self._stop(
        reason,
        which + "The same command with --config.train.on_bad_step=skip goes on "
        "without it. ",
      )
    if values["skipped_steps"] > settings.max_skipped_steps:
      self._stop(
        f"{reason}; this is one more than train.max_skipped_steps="
        f"{settings.max_skipped_steps}, which may be skipped",
        which + "Raise that number to go on. ",
      )
    _log.warning("%s; skipped", reason)

  def _stop(self, reason: str, what_to_do: str) -> NoReturn:
    saved = self.checkpoints.latest_step()
    last = (
      f"The last checkpoint, step {saved}, is sound. "
      if saved
      else "There is no checkpoint before it. "
    )
    raise DivergedError(
      f"{reason}; stopped. {last}{what_to_do}Or lower optim.learning_rate, "
      "raise optim.warmup_rate or set optim.clip_norm, with another --workdir "
      f"than {self.workdir}"
    )
