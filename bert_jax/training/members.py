"""Trains several models in one program, which differ in seed and learning rate.

Fine-tuning on a small task leaves most of a chip idle. K models, stacked on a
new first axis, fill it with a step that is compiled once. Several devices share
the models along the mesh axis "seed". Each model keeps its order of examples,
its dropout and its workdir, and equals the model that is trained alone up to
rounding.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import functools
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.data import batching
from bert_jax.runtime import checkpoint
from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import goodput
from bert_jax.runtime import resume
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps
from bert_jax.runtime import settings
from bert_jax.runtime import sharding
from bert_jax.runtime.settings import Config
from bert_jax.training import init_from
from bert_jax.training import meter as meter_lib
from bert_jax.training import run as run_lib
from bert_jax.training import session
from bert_jax.training import steps
from bert_jax.training.job import unstack_models

_log = logging.getLogger(__name__)


class MembersError(errors.UserError):
  """The given models cannot be trained together."""


@dataclasses.dataclass(frozen=True)
class Member:
  """One of the models: what distinguishes it from the others.

  Attributes:
    workdir: the folder of its run.
    seed: the seed of everything random.
    learning_rate: its highest learning rate.
  """

  workdir: str
  seed: int
  learning_rate: float


class Together:
  """K runs whose arrays are stacked on axis 0; has the methods of run.Run.

  Attributes:
    job: the job of the first run.
    config: the config of the first run. The others differ from it in seed and
      learning rate.
    mesh: the mesh of devices, with the axis "seed".
    total_steps: the last step, the same for all runs.
    epoch_steps: the steps of an epoch.
    batches: the stacked batches of all runs, by step.
    batch_place: the sharding of these batches on the mesh.
    workdir: the names of all workdirs.
    profile_folder: the workdir of the first run.
  """

  def __init__(self, opened: Sequence[session.Session]):
    """Takes sessions from `open_members`."""
    first = opened[0]
    self._first = first
    self._runs = [run_lib.Run(one) for one in opened]
    self.job, self.config, self.mesh = first.job, first.config, first.mesh
    self.total_steps, self.profile_folder = first.total_steps, first.workdir
    self.workdir = ", ".join(one.workdir for one in opened)
    self.batches: batching.Batches = StackedBatches(
      [one.batches for one in opened]
    )
    self.batch_place = sharding.of_members(first.batch_place, self.mesh)
    self.epoch_steps = first.batches.epoch_steps
    self._places = sharding.of_members(first.place, self.mesh)
    self._norms = jax.jit(jax.vmap(optax.tree.norm))
    self._evaluator: Any = self.job.evaluator(self.mesh, len(opened))

  @contextlib.contextmanager
  def open(self) -> Iterator[None]:
    """A context in which the runs have their workdirs for themselves."""
    with contextlib.ExitStack() as stack:
      for run in self._runs:
        stack.enter_context(run.open())
      yield

  def restore(self) -> tuple[int, steps.TrainState]:
    """Returns the newest step that all runs have saved, and its states.

    A run that is ahead of the others goes back to their step.

    Raises:
      checkpoint.CheckpointError: some runs have begun, and no sound step is
        saved by all of them. Nothing was removed.
    """
    saved = [set(run.checkpoints.steps()) for run in self._runs]
    if not any(saved):
      return 0, self._fresh()
    for step in sorted(set.intersection(*saved), reverse=True):
      states = [self._read(run, step) for run in self._runs]
      if None in states:
        continue
      for run in self._runs:  # what is computed again is saved again
        run.checkpoints.drop_after(step)
      return step, self._stack(states)
    have = (
      f"{run.workdir}: {', '.join(map(str, sorted(own))) or 'none'}"
      for run, own in zip(self._runs, saved, strict=True)
    )
    raise checkpoint.CheckpointError(
      "no step has an undamaged checkpoint in every workdir "
      f"({'; '.join(have)}); train only those together that share a step, or "
      "each alone"
    )

  def _read(self, run: run_lib.Run, step: int) -> steps.TrainState | None:
    """Returns the state that a run saved at a step, on the host.

    If the step is damaged, it is set aside, and the result is None.
    """
    found = None
    reason = ""
    try:
      found, state = run.restore(before=step + 1)
    except checkpoint.CheckpointError as error:
      reason = f": {error}"
    if found != step:
      _log.warning("step %d of %s is damaged%s", step, run.workdir, reason)
      run.checkpoints.set_aside(step)
      return None
    # The devices may have no room for K separate states at once.
    return jax.device_get(state)

  def _stack(self, states: Sequence[Any]) -> steps.TrainState:
    return jax.tree.map(
      lambda place, *own: init_from.place_array(np.stack(own), place),
      self._places,
      *states,
    )

  def _fresh(self) -> steps.TrainState:
    """Returns the states at step 0."""
    run = self._first
    rngs = jnp.stack([one.session.rngs[0] for one in self._runs])
    init = jax.jit(jax.vmap(run.init_state), out_shardings=self._places)
    state = init(rngs)
    params = init_from.place_params(state.params, run.imported)
    return state.replace(params=params)

  def begin(self, start: int, clock: goodput.Clock) -> meter_lib.Meter:
    """Writes run.json of each run and opens its log; see run.Run."""
    step_flops, count = self.job.step_flops, len(self._runs)

    def flops(batch):
      # Views and not copies, because this happens in every step.
      own = ({key: x[k] for key, x in batch.items()} for k in range(count))
      return sum(map(step_flops, own))

    meter = meter_lib.Meter(
      start, self.total_steps, self.mesh, flops, clock, count
    )
    for run in self._runs:
      run.begin(start, clock, meter, count)
    return meter

  def note(self, step: int) -> None:
    """Notes that a step begins; see run.Run."""
    for run in self._runs:
      run.note(step)

  def train_step(self) -> Any:
    """Returns the step: (states, batches) -> (states, metrics)."""
    run = self._first
    step = jit_step(run)
    rngs = jnp.stack([one.session.rngs[1] for one in self._runs])
    rates = [one.config.optim.learning_rate for one in self._runs]
    each = jax.sharding.NamedSharding(run.mesh, sharding.P(sharding.SEED_AXIS))
    rngs, rates = jax.device_put((rngs, np.array(rates, np.float32)), each)
    return lambda state, batch: step(state, batch, rngs, rates)

  def evaluate(self, params: Any) -> list[dict[str, float]]:
    """Returns the value of every metric, by eval/NAME, for each run."""
    return self._evaluator.evaluate_all(params)

  def saves_locally(self, step: int) -> bool:
    """Returns False: only a run that trains alone has local steps."""
    del step
    return False

  def save_locally(self, step: int, state: steps.TrainState) -> None:
    """Does nothing; see `saves_locally`."""

  def probes_at(self, step: int) -> bool:
    """Returns False: tasks, which alone train together, have no probes."""
    del step
    return False

  def has_probes(self, start: int) -> bool:
    """Returns True: members have no probes that could be missing."""
    del start
    return True

  def probe(self, step: int, params: Any) -> None:
    """Does nothing; see `probes_at`."""

  def has_evaluation(self, start: int) -> bool:
    """Returns whether all logs have the evaluation of this step."""
    return all(run.has_evaluation(start) for run in self._runs)

  def stops_early(self, step: int) -> bool:
    """Returns False: models that train together end together."""
    del step
    return False

  def report(self, step: int, rows: Sequence[dict[str, float]]) -> None:
    """Writes and shows an evaluation of each run, unless its log has it."""
    for run, row in zip(self._runs, rows, strict=True):
      if not run.has_evaluation(step):
        run.report(step, row)

  def log(self, step: int, speed: dict[str, float]) -> None:
    """Writes the train/ metrics of each run."""
    for run in self._runs:
      run.log(step, speed)

  def look(self, found: Sequence[tuple[int, Any]], params: Any) -> None:
    """Checks the steps since the last check; see run.Run."""
    norms = jax.device_get(self._norms(params))
    parts = [
      (step, list(unstack_models(metrics, len(self._runs))))
      for step, metrics in found
    ]
    for k, run in enumerate(self._runs):
      run.check([(step, own[k]) for step, own in parts], float(norms[k]))

  def save(
    self,
    step: int,
    state: steps.TrainState,
    evaluations: Sequence[dict[str, float]],
    always: bool = True,
  ) -> None:
    """Saves the state of each run; see run.Run."""
    # No run may be two saves ahead of another, because all must keep the step
    # to which they would have to go back.
    for run in self._runs:
      run.checkpoints.wait()
    # Copies, because the next step reuses the memory while Orbax writes.
    parts = unstack_models(jax.device_get(state), len(self._runs))
    for run, own, evaluation in zip(
      self._runs, parts, evaluations or [{}] * len(self._runs), strict=True
    ):
      run.save(step, own, evaluation, always)


def jit_step(run: session.Program) -> Any:
  """Jits the step of K models.

  Args:
    run: the program of one of these models.

  Returns:
    (states, batches, keys of dropout [K], learning rates [K]) -> (states,
    metrics), all stacked on axis 0.
  """
  make_optimizer = functools.partial(
    session.make_optimizer, run.job, run.config
  )
  return steps.jit_members_step(run.job, make_optimizer, run.place)


@dataclasses.dataclass(frozen=True)
class StackedProgram(session.Program):
  """All that the training of K models compiles: state and batch are stacked.

  Attributes:
    one: the program of one of the models.
    num_members: the number of models, K.
  """

  one: session.Program
  num_members: int

  @property
  def batch_place(self) -> jax.sharding.NamedSharding:
    """The sharding of every array of a batch."""
    return sharding.of_members(self.one.batch_place, self.mesh)

  def train_step(self) -> Any:
    """See `jit_step`."""
    return jit_step(self.one)

  def trace(self) -> Any:
    """Traces the step for lowering and compilation; nothing is computed."""
    count = self.num_members
    rngs = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
    rates = jax.ShapeDtypeStruct((count,), jnp.float32)
    with jax.set_mesh(self.mesh):
      return self.train_step().trace(self.abstract, self.batch, rngs, rates)


def open_abstract(
  config: Config, devices: Sequence[Any], num_members: int
) -> StackedProgram:
  """Makes the program of K models without their data; see session.py.

  Args:
    config: the whole configuration, without what the models differ in.
    devices: all devices, which need not belong to this machine.
    num_members: the number of models, K.

  Raises:
    ValueError: see `session.open_abstract`; or the models cannot be trained
      together.
  """
  settings.check_together(config)
  size = seed_axis(config.mesh, num_members, len(devices))
  one = session.open_abstract(config, devices, size)
  abstract, batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((num_members, *x.shape), x.dtype),
    (one.abstract, one.batch),
  )
  stacked = vars(one) | {
    "abstract": abstract,
    "batch": batch,
    "place": sharding.of_members(one.place, one.mesh),
  }
  return StackedProgram(**stacked, one=one, num_members=num_members)


class StackedBatches:
  """The batches of K runs by step; each array is [K, B, ...]."""

  def __init__(self, batches: Sequence[Any]):
    """Takes the task_batches.TaskBatches of each run, all of one row length."""
    self._batches = batches

  def __len__(self) -> int:
    return len(self._batches[0])

  def __getitem__(self, step: int) -> batching.Batch:
    parts = [batches[step] for batches in self._batches]
    most = max(len(part["input_ids"]) for part in parts)
    filled = [
      batches.fill_up(part, most)
      for batches, part in zip(self._batches, parts, strict=True)
    ]
    return {name: np.stack([p[name] for p in filled]) for name in filled[0]}


def open_members(
  config: Config, wanted: Sequence[Member]
) -> list[session.Session]:
  """Opens the runs of models that are trained together.

  Args:
    config: the whole configuration, without what the models differ in.
    wanted: the models.

  Raises:
    ValueError: the models cannot be trained together, or the config of one is
      not valid. Nothing was changed.
  """
  _check(config, wanted)
  # Only a run that has not begun reads the weights to start from.
  by_need = sorted(wanted, key=lambda m: saved_steps.exists(m.workdir, True))
  size = seed_axis(config.mesh, len(wanted), jax.device_count())
  first = session.open_session(
    _config_of(config, by_need[0]), by_need[0].workdir, size
  )
  return [_open(first, member, len(wanted)) for member in wanted]


def _config_of(config: Config, member: Member) -> Any:
  own = config.copy_and_resolve_references()
  own.seed, own.optim.learning_rate = member.seed, member.learning_rate
  return own


def _open(
  first: session.Session, member: Member, count: int
) -> session.Session:
  """Returns the session of a member, which shares what it can with `first`."""
  config = _config_of(first.config, member)
  optimizer, schedule = session.make_optimizer(first.job, config)
  devices = list(first.mesh.devices.flat)
  run = first.run | runs.describe(config, first.job.data_hash, devices)
  run["together"] = count
  resume.check_workdir(member.workdir, run)
  return dataclasses.replace(
    first,
    config=config,
    workdir=member.workdir,
    batches=first.job.batches(first.mesh, config.seed),
    optimizer=optimizer,
    schedule=schedule,
    run=run,
  )


def seed_axis(config: settings.Mesh, num_members: int, num_devices: int) -> int:
  """Returns the size of the mesh axis "seed".

  It is that of the config, or, if that is 0, the largest possible one.

  Args:
    config: the group `mesh`.
    num_members: the number of models, K.
    num_devices: the number of devices of the mesh.

  Raises:
    MembersError: the size does not divide K.
  """
  if config.seed:
    if num_members % config.seed:
      raise MembersError(
        f"mesh.seed={config.seed} does not divide {num_members} models; use 0 "
        "to have it chosen"
      )
    return config.seed
  taken = config.fsdp * config.tensor * max(config.data, 1)
  return math.gcd(num_members, max(num_devices // taken, 1))


def _check(config: Config, wanted: Sequence[Member]) -> None:
  """Raises MembersError if the models cannot be trained together."""
  if jax.process_count() > 1:
    raise MembersError(
      "models are trained together in one process only, and this job has "
      "several; leave --member out, and train each model in a job of its own"
    )
  settings.check_together(config)
  for member in wanted:
    try:
      settings.check(_config_of(config, member))
    except ValueError as error:
      raise MembersError(f"--member={member.workdir}: {error}") from error
  workdirs = [files.absolute(member.workdir) for member in wanted]
  if len(set(workdirs)) < len(workdirs):
    raise MembersError(f"two members have one workdir: {', '.join(workdirs)}")
