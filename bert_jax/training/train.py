"""Trains a model: the loop, from top to bottom."""

from collections.abc import Sequence
import contextlib
import dataclasses
import logging
from typing import Any

import jax

from bert_jax.data import batching
from bert_jax.runtime import bars
from bert_jax.runtime import early_stopping
from bert_jax.runtime import goodput
from bert_jax.runtime import peers
from bert_jax.runtime import phases
from bert_jax.runtime import preemption
from bert_jax.runtime import profiling
from bert_jax.runtime import settings
from bert_jax.runtime import sharding
from bert_jax.runtime.settings import Config
from bert_jax.training import export
from bert_jax.training import jobs
from bert_jax.training import meeting
from bert_jax.training import members
from bert_jax.training import meter as meter_lib
from bert_jax.training import run as run_lib
from bert_jax.training import session

_log = logging.getLogger(__name__)

AnyRun = run_lib.Run | members.Together


def train(
  config: Config,
  workdir: str,
  allowed: Sequence[str] = (),
  since: float | None = None,
) -> dict[str, float]:
  """Runs or resumes the training that a config describes.

  Of a training in phases, the first phase that is not finished goes on, and the
  others follow.

  Args:
    config: the whole configuration (docs/config.md).
    workdir: where run.json, metrics.jsonl and checkpoints go.
    allowed: the keys whose values may differ from those of the run that is in
      the workdir already; see `settings.check_changes`.
    since: when the process of this run began, as `time.monotonic`, for the
      record of where the time goes; None means now.

  Returns:
    The metrics of the last evaluation; {} if the run was finished before.

  Raises:
    ValueError: the config, the data or the workdir cannot be used; nothing was
      changed.
    run.DivergedError: a loss is NaN, infinite or a spike; the last checkpoint
      is sound.
    preemption.PreemptedError: a signal (SIGTERM, SIGINT or SIGHUP) stopped the
      run; its last step is saved.
  """
  settings.check_changes(allowed)
  found = phases.read(config, workdir)
  if len(found) == 1:
    return _train_one(found[0].config, found[0].workdir, allowed, since)
  found = check_phases(found)
  evaluation: dict[str, float] = {}
  for line, phase in zip(phases.describe(found), found, strict=True):
    _log.info("%s", line)
    evaluation = _train_one(phase.config, phase.workdir, allowed, since)
    since = None
  return evaluation


def check_phases(found: Sequence[phases.Phase]) -> list[phases.Phase]:
  """Checks that each phase can start after those before it.

  Args:
    found: the phases of one training.

  Returns:
    The phases, in which train.export=same is the format of the weights that the
    first of them starts from.

  Raises:
    phases.PhaseError: a phase could not start.
  """
  checked = []
  planned = found[0].planned
  for i, phase in enumerate(found):
    try:
      if i:  # the model of the phase before is carried on
        changes = phases.changes_of(phase.config.init_changes)
        jobs.check_changes(planned, changes)
      planned = session.open_abstract(phase.planned, jax.devices()).config
      if phase.config.data.dir:
        batching.open_examples(phase.config.data, "train")
    except ValueError as error:
      raise phases.PhaseError(f"the phase {phase.name}: {error}") from error
    config = phase.config.copy_and_resolve_references()
    config.train.export = planned.train.export
    checked.append(dataclasses.replace(phase, config=config))
  return checked


def _train_one(
  config: Config, workdir: str, allowed: Sequence[str], since: float | None
) -> dict[str, float]:
  """Trains one run; see `train`."""
  clock = goodput.Clock(since)
  meeting.meet("train", config, [workdir], allow_changes=sorted(allowed))
  # Opening checks that the mesh, the model and the data fit each other.
  run = run_lib.Run(session.open_session(config, workdir, allowed=allowed))
  evaluation = _train(run, clock)
  if jax.process_index() == 0:
    export.export(run.config, workdir)
  if evaluation:
    run.end()
  return evaluation


def train_together(
  config: Config,
  wanted: Sequence[members.Member],
  since: float | None = None,
) -> list[dict[str, float]]:
  """Trains models that differ in seed and learning rate in one program.

  Each model has a workdir, which afterwards is the same as if the model had
  been trained alone.

  Args:
    config: the whole configuration, without what the models differ in.
    wanted: the models.
    since: see `train`.

  Returns:
    The final metrics of each run, one dict per run.

  Raises:
    ValueError: see `train`; or the models cannot be trained together.
    run.DivergedError: a model diverged; the last checkpoints of all are sound.
    preemption.PreemptedError: a signal (SIGTERM, SIGINT or SIGHUP) stopped the
      runs; their last step is saved.
  """
  clock = goodput.Clock(since)
  facts = {"members": [[x.seed, x.learning_rate] for x in wanted]}
  meeting.meet("train", config, [x.workdir for x in wanted], **facts)
  together = members.Together(members.open_members(config, wanted))
  evaluations = _train(together, clock)
  if jax.process_index() == 0:
    for one in wanted:
      export.export(together.config, one.workdir)
  return evaluations or [{} for _ in wanted]


def _train(run: AnyRun, clock: goodput.Clock) -> Any:
  """Trains to the last step; returns its evaluation, {} if already trained."""
  config, total = run.config, run.total_steps
  eval_steps = early_stopping.evaluation_steps(config.eval, run.epoch_steps)
  with jax.set_mesh(run.mesh), contextlib.ExitStack() as stack:
    # This context exits last, so that no signal interrupts the last save.
    notice = stack.enter_context(preemption.Notice())
    stack.enter_context(peers.watching(config.train.max_stall_secs))
    stack.enter_context(run.open())
    start, state = run.restore()
    if start >= total or run.stops_early(start):
      _log.info("%s is trained already: step %d", run.workdir, start)
      return {}
    meter = run.begin(start, clock)
    stack.enter_context(peers.leaving_if_broken())
    train_step = run.train_step()
    profile = profiling.Profile(
      config.train.profile_steps, run.profile_folder, meter.paused
    )
    stack.enter_context(contextlib.closing(profile))
    pending = meter_lib.Pending()
    save_clock = preemption.SaveClock(config.checkpoint.max_lost_secs, start)
    notice.listen()

    missed = _evaluate_first(run, start, state, meter, _due(start, eval_steps))
    if missed and run.stops_early(start):
      return missed

    stack.enter_context(bars.showing(meter.bar))
    batches = run.job.prefetch(run.batches, start)
    batches = meter.waiting(batches, pending.is_idle)
    for step, batch in enumerate(batches, start + 1):
      run.note(step)
      profile.start(step, state)
      device_batch = sharding.put_global_batch(batch, run.batch_place)
      if step == start + 1:
        meter.begin()
      state, metrics = train_step(state, device_batch)
      profile.stop(step, state)
      pending.add(step, metrics)
      meter.count(batch, metrics)

      due = _due_after(step, run, eval_steps, notice, save_clock)
      if due.looks:
        run.look(pending.take(), state.params)
      if due.logs:
        run.log(step, meter.speed())
        save_clock.plan(step)
      evaluation, due = _evaluate(run, step, state, meter, due)
      _save(run, step, state, meter, due, evaluation)
      if due.saves:
        save_clock.saved(step)
      if due.stops:
        raise preemption.PreemptedError(
          f"stopped after step {step} of {total}, which is saved in "
          f"{run.workdir}; the same command goes on from there"
        )
      if due.gives_up:
        _log.info(
          "%s: stopped at step %d by train.stop_at or train.patience",
          run.workdir, step,
        )  # fmt: skip
        break
  return evaluation


@dataclasses.dataclass(frozen=True)
class Due:
  """What is due after a step of training.

  Attributes:
    stops: whether a signal ends the session here.
    logs: whether the log gets a line.
    evaluates: whether the model is evaluated.
    probes: whether the encoder is probed.
    saves: whether the state is saved. If not, an evaluation may save it as the
      best.
    saves_locally: whether the state is saved to local disks, if not `saves`.
    gives_up: whether its evaluation ends the run before its last step.
  """

  stops: bool
  logs: bool
  evaluates: bool
  probes: bool
  saves: bool
  saves_locally: bool
  gives_up: bool = False

  @property
  def looks(self) -> bool:
    """Whether the steps so far are checked, before anything tells of them."""
    tells = self.logs or self.evaluates or self.probes
    return tells or self.saves or self.saves_locally


def _due_after(
  step: int,
  run: AnyRun,
  eval_steps: int,
  notice: preemption.Notice,
  save_clock: preemption.SaveClock,
) -> Due:
  """Returns what is due after a step; all hosts call it after each step."""
  last = step == run.total_steps
  stops = not last and notice.stops_at(step)
  saves = last or _due(step, run.config.checkpoint.every_steps)
  saves = saves or stops or save_clock.is_due(step)
  return Due(
    stops=stops,
    logs=last or _due(step, run.config.train.log_every_steps),
    # A session that stops leaves these two to the next one.
    evaluates=last or (not stops and _due(step, eval_steps)),
    probes=not stops and run.probes_at(step),
    saves=saves,
    saves_locally=not saves and run.saves_locally(step),
  )


def _evaluate(
  run: AnyRun, step: int, state: Any, meter: meter_lib.Meter, due: Due
) -> tuple[Any, Due]:
  """Evaluates and probes what is due, and reports it.

  Returns:
    The metrics of the evaluation, {} if none was due; and what is due with
    these metrics: a run that they end is saved.
  """
  metrics: Any = {}
  if due.evaluates:
    with meter.paused("evaluation"):
      metrics = run.evaluate(_judged(run, step, state))
      run.report(step, metrics)
    if step < run.total_steps and run.stops_early(step):
      due = dataclasses.replace(due, saves=True, gives_up=True)
  if due.probes:
    with meter.paused("evaluation"):
      run.probe(step, _judged(run, step, state))
  return metrics, due


def _save(
  run: AnyRun,
  step: int,
  state: Any,
  meter: meter_lib.Meter,
  due: Due,
  evaluation: Any,
) -> None:
  """Saves a state where it is due, or because its evaluation is the best."""
  if due.evaluates or due.saves:
    with meter.paused("saves"):
      run.save(step, state, evaluation, always=due.saves)
  if due.saves_locally and not due.saves:
    with meter.paused("saves"):
      run.save_locally(step, state)


def _evaluate_first(
  run: AnyRun, start: int, state: Any, meter: meter_lib.Meter, is_due: bool
) -> Any:
  """Evaluates and probes what the session starts with, if that is missing.

  A run that was stopped leaves its evaluation to the next session. It is saved
  before it is logged, so that a session that is killed in between has the next
  one evaluate again.

  Args:
    run: the run.
    start: the number of steps done.
    state: the state after these steps.
    meter: the meter of the session.
    is_due: whether the step has an evaluation. Weights to start from may have
      one, too, but are not saved again.

  Returns:
    The metrics of the evaluation; {} if none was due or its line was there.
  """
  missed: Any = {}
  is_first = start == 0 and run.config.eval.at_start
  if (is_due or is_first) and not run.has_evaluation(start):
    with meter.paused("evaluation"):
      missed = run.evaluate(_judged(run, start, state))
    if is_due:
      run.save(start, state, missed)
    run.report(start, missed)
  if run.probes_at(start) and not run.has_probes(start):
    with meter.paused("evaluation"):
      run.probe(start, _judged(run, start, state))
  return missed


def _judged(run: AnyRun, step: int, state: Any) -> Any:
  """Returns the parameters of a state that are evaluated."""
  return state.judged(run.config.eval.average, step)


def _due(step: int, every: int) -> bool:
  return step > 0 and every > 0 and step % every == 0
