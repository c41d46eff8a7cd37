"""Opens a training run, and refuses before the first step what does not fit."""

from collections.abc import Collection, Mapping, Sequence
import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bert_jax.data import batching
from bert_jax.models.attention import programs
from bert_jax.runtime import checkpoint
from bert_jax.runtime import early_stopping
from bert_jax.runtime import local_steps
from bert_jax.runtime import profiling
from bert_jax.runtime import resume
from bert_jax.runtime import runs
from bert_jax.runtime import sharding
from bert_jax.runtime import watchdog
from bert_jax.runtime.settings import Config
from bert_jax.training import averages
from bert_jax.training import checks
from bert_jax.training import export
from bert_jax.training import init_from
from bert_jax.training import jobs
from bert_jax.training import meeting
from bert_jax.training import optim
from bert_jax.training import steps
from bert_jax.training.job import Evaluator
from bert_jax.training.job import Job


@dataclasses.dataclass(frozen=True)
class Program:
  """All that a training compiles; it holds the shapes of data, and no data.

  Attributes:
    config: the whole configuration, with the shape of the model.
    mesh: the mesh of devices, which need not belong to this machine.
    job: the job to train.
    batch: the shapes of a global batch.
    optimizer: the optimizer of the parameters.
    schedule: step -> learning rate.
    abstract: the shapes of the train state.
    place: the shardings of the train state.
  """

  config: Config
  mesh: jax.sharding.Mesh
  job: Job
  batch: Mapping[str, jax.ShapeDtypeStruct]
  optimizer: optax.GradientTransformationExtraArgs
  schedule: optax.Schedule
  abstract: steps.TrainState
  place: Any

  @property
  def total_steps(self) -> int:
    """The number of steps of the training."""
    return self.job.total_steps

  @property
  def rngs(self) -> tuple[jax.Array, jax.Array]:
    """The keys of initialisation and of dropout."""
    init, dropout = jax.random.split(jax.random.key(self.config.seed))
    return init, dropout

  @property
  def batch_place(self) -> jax.sharding.NamedSharding:
    """The sharding of every array of a batch."""
    return sharding.batch_sharding(self.mesh)

  def init_state(self, rng: jax.Array) -> steps.TrainState:
    """Returns a random state at step 0; call it under `jax.jit`."""
    return _init_state(self.job, self.optimizer, self.batch, rng)

  def train_step(self) -> Any:
    """Returns the jitted step: (state, device batch) -> (state, metrics)."""
    return steps.jit_train_step(
      self.job, self.optimizer, self.schedule, self.rngs[1], self.place
    )

  def trace(self) -> Any:
    """Traces the step for lowering and compilation; nothing is computed."""
    # The step needs random keys, which only devices of this machine can make.
    step = self.train_step()
    with jax.set_mesh(self.mesh):
      return step.trace(self.abstract, self.batch)


@dataclasses.dataclass(frozen=True)
class Session(Program):
  """A program with all that a run of it needs. Nothing is compiled or written.

  Attributes:
    workdir: the folder of the run.
    batches: the training batches, by step.
    evaluator: the held-out evaluation of the job.
    imported: the parameters to start from, with None for each parameter that
      starts fresh; or None if all start fresh.
    run: the content of run.json.
    metrics: the keys of what an evaluation returns.
  """

  workdir: str
  batches: batching.TrainBatches
  evaluator: Evaluator
  imported: Any
  run: dict[str, Any]
  metrics: list[str]

  def checkpoints(self) -> checkpoint.Checkpoints:
    """Opens the checkpoints of the workdir; the caller closes them."""
    settings = self.config.checkpoint
    # Of models that train together, one may be a save ahead of the others.
    least = 2 if sharding.SEED_AXIS in self.mesh.shape else 1
    return checkpoint.Checkpoints(
      self.workdir,
      keep=max(settings.keep, least),
      best_metric=settings.best_metric,
      best_mode=settings.best_mode,
    )

  def open_local_steps(
    self,
  ) -> contextlib.AbstractContextManager[local_steps.LocalSteps | None]:
    """A context with the steps on local disks; it has None if they are off."""
    if not getattr(self.config.checkpoint, "local_every_steps", 0):
      return contextlib.nullcontext()
    wanted = self._placed()
    return local_steps.opened(
      self.config.checkpoint,
      self.workdir,
      {"params": wanted.params, "rest": rest_of(wanted, None)},
    )

  def fresh_state(self) -> steps.TrainState:
    """Returns the state at step 0, with the weights to start from if any."""
    init = jax.jit(self.init_state, out_shardings=self.place)
    state = init(self.rngs[0])
    params = init_from.place_params(state.params, self.imported)
    state = state.replace(params=params)
    if not self.config.init_moments:
      return state
    rest = checkpoint.read_rest(
      init_from.moments_step(self.config), rest_of(self._placed(), None)
    )
    return state.replace(opt_state=optim.at_first_step(rest["opt_state"]))

  def restore(
    self,
    checkpoints: checkpoint.Checkpoints,
    before: int | None = None,
    local: local_steps.LocalSteps | None = None,
  ) -> tuple[int, steps.TrainState, averages.MeanLoss]:
    """Reads the newest sound checkpoint onto the mesh.

    Args:
      checkpoints: the checkpoints of the workdir.
      before: a step; only checkpoints of earlier steps are read, and a damaged
        one is not set aside.
      local: the steps on local disks, of which one is read if it is newer.

    Returns:
      The step, the state and the sum of the losses that are not logged yet;
      those of step 0 if the workdir has no checkpoint.

    Raises:
      checkpoint.CheckpointError: there are checkpoints, but all are damaged.
    """
    watchdog.note("restoring or initialising the state")
    latest = checkpoints.latest_step(before)
    if local and (found := local.restore(latest or 0)):
      checkpoints.tidy()
      step, state = found
      return step, *self._restored(state["params"], state["rest"])
    if latest is None:
      return 0, self.fresh_state(), averages.MeanLoss()
    wanted = self._placed()
    step, params, rest = checkpoints.restore_newest(
      wanted.params, rest_of(wanted, None), before
    )
    return step, *self._restored(params, rest)

  def _restored(
    self, params: Any, rest: dict[str, Any]
  ) -> tuple[steps.TrainState, averages.MeanLoss]:
    """Returns the state and the mean loss of what was saved."""
    if "guard" not in rest:  # an older version wrote this checkpoint
      rest["guard"] = jax.device_put(steps.Guard.fresh(), self.place.guard)
    mean_loss = averages.MeanLoss.from_bits(rest.pop("train_loss", None))
    return steps.TrainState(params=params, **rest), mean_loss

  def find_sound(
    self, checkpoints: checkpoint.Checkpoints
  ) -> tuple[int | None, dict[int, str]]:
    """Returns the newest sound step, and what is wrong with newer steps."""
    wanted = self._placed()
    found, problems = checkpoints.find_sound(
      wanted.params, rest_of(wanted, None)
    )
    return found[0] if found else None, problems

  def _placed(self) -> steps.TrainState:
    """Returns the shapes and shardings of the state in one tree."""
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      self.abstract,
      self.place,
    )


def rest_of(
  state: steps.TrainState, mean_loss: averages.MeanLoss | None
) -> dict[str, Any]:
  """Returns what a checkpoint keeps beside the parameters.

  Args:
    state: the train state: arrays of jax or numpy, or shapes with shardings.
    mean_loss: the mean loss of the same run; None if `state` has shapes.
  """
  place = getattr(state.step, "sharding", None)  # replicated; None = numpy
  bits: Any = jax.ShapeDtypeStruct((3,), jnp.uint32, sharding=place)
  if mean_loss is not None:
    bits = mean_loss.bits()
    if place is not None:
      bits = init_from.place_array(bits, place)
  rest = {
    "step": state.step,
    "opt_state": state.opt_state,
    "guard": state.guard,
    "train_loss": bits,
  }
  return rest | ({} if state.average is None else {"average": state.average})


def open_mesh(
  config: Config,
  devices: Sequence[Any] | None = None,
  seed_axis: int | None = None,
) -> jax.sharding.Mesh:
  """Makes the mesh of a config, and checks that model and batch fit it.

  Args:
    config: the whole configuration.
    devices: all devices, which need not belong to this machine. None means
      those of this job, whose memory is then checked, too.
    seed_axis: the size of the mesh axis for models that train together; None
      means that the run trains one model.

  Raises:
    ValueError: the mesh, the model or the batch does not fit the devices.
  """
  axes = config.mesh
  mesh = sharding.make_mesh(
    axes.data, axes.fsdp, axes.tensor, devices, seed_axis, axes.num_slices
  )
  if devices is None:
    checks.check_memory(config, mesh)
  programs.check_parts(config.model.attention, mesh.shape["tensor"])
  if config.objective != "task":  # the batches of a task are filled up
    for size in (*config.data.batch_warmup_sizes, config.data.batch_size):
      sharding.check_batch_size(size, mesh, config.optim.num_micro_batches)
  return mesh


def open_program(
  job: Job,
  mesh: jax.sharding.Mesh,
  batch: Mapping[str, jax.ShapeDtypeStruct],
) -> Program:
  """Makes what a job compiles on a mesh.

  Args:
    job: the job to train.
    mesh: the mesh of devices, which need not belong to this machine.
    batch: the shapes of a global batch.

  Raises:
    ValueError: a setting of the optimizer is out of range, or a sharding rule
      does not fit.
  """
  config = job.config
  optim.places_of(config)  # it raises if a key does not fit the model
  optimizer, schedule = make_optimizer(job, config)
  abstract = jax.eval_shape(
    lambda rng: _init_state(job, optimizer, batch, rng), jax.random.key(0)
  )
  place = sharding.place_state(abstract, mesh, config.mesh)
  return Program(config, mesh, job, batch, optimizer, schedule, abstract, place)


def make_optimizer(
  job: Job, config: Config, learning_rate: jax.Array | None = None
) -> tuple[optax.GradientTransformationExtraArgs, optax.Schedule]:
  """Returns the optimizer of what a job trains, and its learning rate.

  Args:
    job: the job to train.
    config: the config of the run, which may differ from that of the job in the
      learning rate.
    learning_rate: see `optim.make_optimizer`.
  """
  optimizer, schedule = optim.make_optimizer(
    config.optim, job.total_steps, learning_rate
  )
  return optim.freeze(optimizer, job.is_trained), schedule


def _init_state(job, optimizer, batch, rng) -> steps.TrainState:
  # Only the shapes of the batch matter, and one row is enough.
  row = {k: jnp.zeros((1, *x.shape[1:]), x.dtype) for k, x in batch.items()}
  has_average = bool(job.config.optim.get("average_decay", 0.0))
  return steps.init_state(
    job.model, job.objective, optimizer, rng, row, has_average
  )


def open_abstract(
  config: Config, devices: Sequence[Any], seed_axis: int | None = None
) -> Program:
  """Makes the program of a training without its data, on any devices.

  Args:
    config: the whole configuration.
    devices: all devices, which need not belong to this machine.
    seed_axis: see `open_mesh`.

  Raises:
    ValueError: the config is not valid, or does not fit the weights or the
      devices.
  """
  checks.check_settings(config)
  mesh = open_mesh(config, devices, seed_axis)
  job, _ = jobs.open_job(config, "", is_abstract=True)
  batch = job.batch_shapes()
  sharding.check_batch_size(
    batch["input_ids"].shape[0], mesh, config.optim.num_micro_batches
  )
  program = open_program(job, mesh, batch)
  export.check_model(job, program.abstract.params, is_abstract=True)
  return program


def open_session(
  config: Config,
  workdir: str,
  seed_axis: int | None = None,
  allowed: Collection[str] | None = None,
) -> Session:
  """Opens the session of a config, and checks that everything fits.

  Args:
    config: the whole configuration (docs/config.md).
    workdir: the folder of the run, which need not exist yet.
    seed_axis: see `open_mesh`.
    allowed: the keys that may differ from those of the run in the workdir;
      None means none, and that the user has no flag to name some.

  Raises:
    ValueError: the config is not valid, or config, data, weights and workdir do
      not fit each other. Nothing was changed.
  """
  checks.check_settings(config)
  checkpoint.check_path(workdir)
  mesh = open_mesh(config, seed_axis=seed_axis)
  job, pretrained = jobs.open_job(config, workdir)
  return open_with_data(
    workdir,
    mesh,
    job,
    pretrained,
    job.batches(mesh),
    job.evaluator(mesh),
    allowed,
  )


def open_with_data(
  workdir: str,
  mesh: jax.sharding.Mesh,
  job: Job,
  pretrained: Any,
  batches: batching.TrainBatches,
  evaluator: Evaluator,
  allowed: Collection[str] | None = None,
) -> Session:
  """Does the last part of `open_session`, which opens the arguments first."""
  config = job.config
  profiling.check_steps(config.train.profile_steps, job.total_steps)
  count = jax.process_count()  # all processes have the same number of rows
  batch = {
    name: jax.ShapeDtypeStruct((len(x) * count, *x.shape[1:]), x.dtype)
    for name, x in batches[0].items()
  }
  program = open_program(job, mesh, batch)
  export.check_model(job, program.abstract.params)
  metrics = evaluator.names(program.abstract.params)
  checkpoint.check_settings(config.checkpoint, metrics)
  early_stopping.check_goal(config.train.stop_at, metrics)
  if config.init_moments and pretrained is not None:
    init_from.moments_step(config)
  imported = init_from.fit_weights(job, pretrained, program.abstract.params)
  run = runs.describe(config, job.data_hash, list(mesh.devices.flat))
  facts = job.facts | {"total_steps": job.total_steps}
  meeting.meet_opened(job, pretrained, mesh, facts | {"metrics": metrics})
  run |= facts
  if pretrained is not None and pretrained.source:
    run["init_from_source"] = pretrained.source
  if pretrained is not None and config.objective != "task":
    run["sentence"] = list(pretrained.sentence)
  resume.check_workdir(workdir, run, allowed or (), allowed is not None)
  return Session(
    **vars(program),
    workdir=workdir,
    batches=batches,
    evaluator=evaluator,
    imported=imported,
    run=run,
    metrics=metrics,
  )
