"""A training run before its first step: what can be refused is refused here."""

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
class Session:
  """What training consists of. Nothing is compiled or written yet.

  Attributes:
    config: the whole configuration, with the shape of the model.
    workdir: of the run.
    mesh: of devices.
    job: what is trained.
    batches: of training, by step.
    evaluator: of the job.
    optimizer: of the parameters.
    schedule: step -> learning rate.
    abstract: shapes of the train state.
    place: its shardings.
    imported: parameters to start from, None in it where they start fresh; or
      None.
    run: what run.json is to say.
    metrics: names of what an evaluation finds.
  """

  config: Config
  workdir: str
  mesh: jax.sharding.Mesh
  job: jobs.Job
  batches: batching.TrainBatches
  evaluator: jobs.Evaluator
  optimizer: optax.GradientTransformationExtraArgs
  schedule: optax.Schedule
  abstract: steps.TrainState
  place: Any
  imported: Any
  run: dict[str, Any]
  metrics: list[str]

  @property
  def total_steps(self) -> int:
    """Steps of the training."""
    return self.job.total_steps

  @property
  def rngs(self) -> tuple[jax.Array, jax.Array]:
    """The keys of initialisation and of dropout."""
    init, dropout = jax.random.split(jax.random.key(self.config.seed))
    return init, dropout

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
    job, rng = self.job, self.rngs[0]

    def init(batch):
      return steps.init_state(
        job.model, job.objective, self.optimizer, rng, batch
      )

    state = jax.jit(init, out_shardings=self.place)(_row(self.batches))
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
    return checkpoints.find_sound(wanted.params, rest_of(wanted, None))

  def _placed(self) -> steps.TrainState:
    """Shapes and shardings of the state in one tree."""
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      self.abstract,
      self.place,
    )

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


def rest_of(
  state: steps.TrainState, mean_loss: averages.MeanLoss | None
) -> dict[str, Any]:
  """Returns what a checkpoint keeps beside the parameters.

  Args:
    state: of the training: arrays, or their shapes with shardings.
    mean_loss: of the same run; None where `state` has shapes.
  """
  place = state.step.sharding  # replicated
  if mean_loss is None:
    bits: Any = jax.ShapeDtypeStruct((3,), jnp.uint32, sharding=place)
  else:
    values = mean_loss.bits()
    bits = jax.make_array_from_callback((3,), place, lambda i: values[i])
  return {
    "step": state.step,
    "opt_state": state.opt_state,
    "guard": state.guard,
    "train_loss": bits,
  }


def _row(batches: batching.Batches) -> dict[str, jax.Array]:
  return {k: jnp.asarray(v[:1]) for k, v in batches[0].items()}


def open_session(
  config: Config, workdir: str, seed_axis: int | None = None
) -> Session:
  """Makes what a config describes, and finds what does not fit.

  Args:
    config: the whole configuration (configs/base.py).
    workdir: of the run, which need not exist yet.
    seed_axis: size of the mesh axis of models that train together; None = the
      run trains one, alone.

  Raises:
    ValueError: config, data, weights or workdir do not fit; nothing was
      changed.
  """
  checks.check_settings(config)
  checkpoint.check_path(workdir)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp,
                            config.mesh.tensor, seed=seed_axis)  # fmt: skip
  checks.check_memory(config, mesh)
  programs.check_parts(config.model.attention, mesh.shape["tensor"])
  if config.objective != "task":  # which fills its rows up by itself
    sharding.check_batch_size(
      config.data.batch_size, mesh, config.optim.num_micro_batches
    )
  job, pretrained = jobs.open_job(config, workdir)
  config = job.config
  profiling.check_steps(config.train.profile_steps, job.total_steps)
  optimizer, schedule = optim.make_optimizer(config.optim, job.total_steps)
  batches, evaluator = job.batches(mesh), job.evaluator(mesh)
  abstract = jax.eval_shape(
    lambda row: steps.init_state(
      job.model, job.objective, optimizer, jax.random.key(0), row
    ),
    _row(batches),
  )
  metrics = evaluator.names(abstract.params)
  checkpoint.check_settings(config.checkpoint, metrics)
  imported = init_from.fit_weights(job, pretrained, abstract.params)
  run = runs.describe(config, job.data_hash, list(mesh.devices.flat))
  facts = job.facts | {"total_steps": job.total_steps}
  meeting.meet_opened(job, pretrained, mesh, facts | {"metrics": metrics})
  run |= facts
  resume.check_workdir(workdir, run)
  return Session(
    config=config,
    workdir=workdir,
    mesh=mesh,
    job=job,
    batches=batches,
    evaluator=evaluator,
    optimizer=optimizer,
    schedule=schedule,
    abstract=abstract,
    place=sharding.place_state(abstract, mesh, config.mesh),
    imported=imported,
    run=run,
    metrics=metrics,
  )
