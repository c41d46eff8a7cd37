"""A training run before its first step: what can be refused is refused here."""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bert_jax.data import batching
from bert_jax.models.attention import programs
from bert_jax.runtime import checkpoint
from bert_jax.runtime import profiling
from bert_jax.runtime import resume
from bert_jax.runtime import runs
from bert_jax.runtime import sharding
from bert_jax.runtime import watchdog
from bert_jax.runtime.settings import Config
from bert_jax.training import averages
from bert_jax.training import checks
from bert_jax.training import init_from
from bert_jax.training import jobs
from bert_jax.training import meeting
from bert_jax.training import optim
from bert_jax.training import steps

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Program:
  """What a training compiles. It takes shapes of data, and no data.

  Attributes:
    config: the whole configuration, with the shape of the model.
    mesh: of devices, which need not be here.
    job: what is trained.
    batch: shapes of a global batch.
    optimizer: of the parameters.
    schedule: step -> learning rate.
    abstract: shapes of the train state.
    place: shardings of the train state.
  """

  config: Config
  mesh: jax.sharding.Mesh
  job: jobs.Job
  batch: Mapping[str, jax.ShapeDtypeStruct]
  optimizer: optax.GradientTransformationExtraArgs
  schedule: optax.Schedule
  abstract: steps.TrainState
  place: Any

  @property
  def total_steps(self) -> int:
    """Steps of the training."""
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
    """Makes a random state of step 0; call it under `jax.jit`."""
    return _init_state(self.job, self.optimizer, self.batch, rng)

  def train_step(self) -> Any:
    """The jitted step: (state, device batch) -> (state, metrics)."""
    return steps.jit_train_step(
      self.config,
      self.job.model,
      self.job.objective,
      self.optimizer,
      self.schedule,
      self.rngs[1],
      self.mesh,
      self.place,
    )

  def trace(self) -> Any:
    """Traces the step, to be lowered and compiled; nothing is computed."""
    step = self.train_step()  # makes keys, which devices have to be here for
    with jax.set_mesh(self.mesh):
      return step.trace(self.abstract, self.batch)


@dataclasses.dataclass(frozen=True)
class Session(Program):
  """A program with all that a run of it needs. Nothing is compiled or written.

  Attributes:
    workdir: of the run.
    batches: of training, by step.
    evaluator: of the job.
    imported: parameters to start from, None in it where they start fresh; or
      None.
    run: what run.json is to say.
    metrics: names of what an evaluation finds.
  """

  workdir: str
  batches: batching.TrainBatches
  evaluator: jobs.Evaluator
  imported: Any
  run: dict[str, Any]
  metrics: list[str]

  def checkpoints(self) -> checkpoint.Checkpoints:
    """Opens those of the workdir; close them."""
    settings = self.config.checkpoint
    # Of models that train together one may be a save ahead of the others.
    least = 2 if sharding.SEED_AXIS in self.mesh.shape else 1
    return checkpoint.Checkpoints(
      self.workdir,
      keep=max(settings.keep, least),
      best_metric=settings.best_metric,
      best_mode=settings.best_mode,
    )

  def fresh_state(self) -> steps.TrainState:
    """The state at step 0: of the weights to start from, or random."""
    init = jax.jit(self.init_state, out_shardings=self.place)
    state = init(self.rngs[0])
    if self.imported is not None:
      state = state.replace(
        params=init_from.place_params(state.params, self.imported)
      )
    return state

  def restore(
    self, checkpoints: checkpoint.Checkpoints, before: int | None = None
  ) -> tuple[int, steps.TrainState, averages.MeanLoss]:
    """Reads the newest sound checkpoint onto the mesh.

    Args:
      checkpoints: of the workdir.
      before: a step; only those of earlier ones are looked at, and none that
        is damaged is set aside.

    Returns:
      The step, the state and the sum of the losses that are not logged yet;
      those of step 0 where there is no checkpoint.

    Raises:
      checkpoint.CheckpointError: there are some, and none can be read.
    """
    watchdog.note("restoring or initialising the state")
    if checkpoints.latest_step(before) is None:
      return 0, self.fresh_state(), averages.MeanLoss()
    wanted = self._placed()
    step, params, rest = checkpoints.restore_newest(
      wanted.params, rest_of(wanted, None), before
    )
    if "guard" not in rest:  # of a run begun before there was one
      rest["guard"] = jax.device_put(steps.Guard.fresh(), self.place.guard)
    mean_loss = averages.MeanLoss.from_bits(rest.pop("train_loss", None))
    return step, steps.TrainState(params=params, **rest), mean_loss

  def find_sound(
    self, checkpoints: checkpoint.Checkpoints
  ) -> tuple[int | None, dict[int, str]]:
    """The newest sound checkpoint, and what is wrong with newer ones."""
    wanted = self._placed()
    found, problems = checkpoints.find_sound(
      wanted.params, rest_of(wanted, None)
    )
    return found[0] if found else None, problems

  def _placed(self) -> steps.TrainState:
    """Shapes and shardings of the state in one tree."""
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
    state: of the training: arrays of jax or numpy, or shapes with shardings.
    mean_loss: of the same run; None where `state` has shapes.
  """
  place = getattr(state.step, "sharding", None)  # replicated; None = of numpy
  if mean_loss is None:
    bits: Any = jax.ShapeDtypeStruct((3,), jnp.uint32, sharding=place)
  else:
    values = bits = mean_loss.bits()
    if place is not None:
      bits = jax.make_array_from_callback((3,), place, lambda i: values[i])
  return {
    "step": state.step,
    "opt_state": state.opt_state,
    "guard": state.guard,
    "train_loss": bits,
  }


def open_mesh(
  config: Config,
  devices: Sequence[Any] | None = None,
  seed_axis: int | None = None,
) -> jax.sharding.Mesh:
  """Makes the mesh of a config, and checks what has to fit it.

  Args:
    config: the whole configuration.
    devices: all of them, which need not be here; None = those that are here,
      whose memory is then checked, too.
    seed_axis: size of the mesh axis of models that train together; None = the
      run trains one, alone.

  Raises:
    ValueError: the mesh, the model or the batch does not fit the devices.
  """
  axes = config.mesh
  mesh = sharding.make_mesh(
    axes.data, axes.fsdp, axes.tensor, devices, seed_axis
  )
  if devices is None:
    checks.check_memory(config, mesh)
  programs.check_parts(config.model.attention, mesh.shape["tensor"])
  if config.objective != "task":  # which fills its rows up by itself
    sharding.check_batch_size(
      config.data.batch_size, mesh, config.optim.num_micro_batches
    )
  return mesh


def open_program(
  job: jobs.Job,
  mesh: jax.sharding.Mesh,
  batch: Mapping[str, jax.ShapeDtypeStruct],
) -> Program:
  """Makes what a job compiles on a mesh.

  Args:
    job: what is trained.
    mesh: of devices, which need not be here.
    batch: shapes of a global batch.

  Raises:
    ValueError: the optimizer or a sharding rule does not fit.
  """
  config = job.config
  optimizer, schedule = optim.make_optimizer(config.optim, job.total_steps)
  abstract = jax.eval_shape(
    lambda rng: _init_state(job, optimizer, batch, rng), jax.random.key(0)
  )
  place = sharding.place_state(abstract, mesh, config.mesh)
  return Program(config, mesh, job, batch, optimizer, schedule, abstract, place)


def _init_state(job, optimizer, batch, rng) -> steps.TrainState:
  # Only the shapes of a batch matter, and one row is enough.
  row = {k: jnp.zeros((1, *x.shape[1:]), x.dtype) for k, x in batch.items()}
  return steps.init_state(job.model, job.objective, optimizer, rng, row)


def open_abstract(
  config: Config, devices: Sequence[Any], seed_axis: int | None = None
) -> Program:
  """Makes the program of a training without its data, on any devices.

  Args:
    config: the whole configuration.
    devices: all of them, which need not be here.
    seed_axis: as for `open_mesh`.

  Raises:
    ValueError: the config does not fit itself, the weights or the devices.
  """
  checks.check_settings(config)
  mesh = open_mesh(config, devices, seed_axis)
  job, _ = jobs.open_job(config, "", is_abstract=True)
  batch = job.batch_shapes()
  sharding.check_batch_size(
    batch["input_ids"].shape[0], mesh, config.optim.num_micro_batches
  )
  return open_program(job, mesh, batch)


def open_session(
  config: Config, workdir: str, seed_axis: int | None = None
) -> Session:
  """Makes what a config describes, and finds what does not fit.

  Args:
    config: the whole configuration (docs/config.md).
    workdir: of the run, which need not exist yet.
    seed_axis: as for `open_mesh`.

  Raises:
    ValueError: config, data, weights or workdir do not fit; nothing was
      changed.
  """
  checks.check_settings(config)
  checkpoint.check_path(workdir)
  mesh = open_mesh(config, seed_axis=seed_axis)
  job, pretrained = jobs.open_job(config, workdir)
  return open_with_data(
    workdir, mesh, job, pretrained, job.batches(mesh), job.evaluator(mesh)
  )


def open_with_data(
  workdir: str,
  mesh: jax.sharding.Mesh,
  job: jobs.Job,
  pretrained: Any,
  batches: batching.TrainBatches,
  evaluator: jobs.Evaluator,
) -> Session:
  """Does the last part of `open_session`, which opened the arguments."""
  config = job.config
  profiling.check_steps(config.train.profile_steps, job.total_steps)
  count = jax.process_count()  # whose rows are as many
  batch = {
    name: jax.ShapeDtypeStruct((len(x) * count, *x.shape[1:]), x.dtype)
    for name, x in batches[0].items()
  }
  program = open_program(job, mesh, batch)
  metrics = evaluator.names(program.abstract.params)
  checkpoint.check_settings(config.checkpoint, metrics)
  imported = init_from.fit_weights(job, pretrained, program.abstract.params)
  run = runs.describe(config, job.data_hash, list(mesh.devices.flat))
  facts = job.facts | {"total_steps": job.total_steps}
  meeting.meet_opened(job, pretrained, mesh, facts | {"metrics": metrics})
  run |= facts
  resume.check_workdir(workdir, run)
  return Session(
    **vars(program),
    workdir=workdir,
    batches=batches,
    evaluator=evaluator,
    imported=imported,
    run=run,
    metrics=metrics,
  )
