"""A training run before its first step: what can be refused is refused here."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import logging
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.data import batching
from bert_jax.models.attention import programs
from bert_jax.runtime import bounds
from bert_jax.runtime import checkpoint
from bert_jax.runtime import hosts
from bert_jax.runtime import profiling
from bert_jax.runtime import run_log
from bert_jax.runtime import sharding
from bert_jax.runtime import watchdog
from bert_jax.training import jobs
from bert_jax.training import optim
from bert_jax.training import steps

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class MeanLoss:
  """The mean of the losses of steps, summed up one by one in float64.

  A checkpoint keeps its bits, so that a run that goes on logs what one that was
  never interrupted logs.

  Attributes:
    total: sum of the losses.
    count: how many steps they are of.
  """

  total: float = 0.0
  count: int = 0

  def add(self, loss: float) -> None:
    """Adds the loss of a step."""
    self.total += loss
    self.count += 1

  def take(self) -> float | None:
    """Returns the mean and starts anew; None if no step was added."""
    mean = self.total / self.count if self.count else None
    self.total, self.count = 0.0, 0
    return mean

  def bits(self) -> np.ndarray:
    """The sum's two halves and the count, uint32 [3]."""
    halves = np.array([self.total], "<f8").view("<u4")
    return np.append(halves, self.count).astype(np.uint32)

  @classmethod
  def from_bits(cls, bits: Any) -> "MeanLoss":
    """Reads what `bits` returns.

    Args:
      bits: uint32 [3]; None = the checkpoint predates this sum, which then
        starts at 0.
    """
    if bits is None:
      return cls()
    low, high, count = np.asarray(bits).astype("<u4")
    total = np.array([low, high], "<u4").view("<f8")
    return cls(float(total[0]), int(count))


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

  config: Any
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
      state = state.replace(params=place_params(state.params, self.imported))
    return state

  def restore(
    self, checkpoints: checkpoint.Checkpoints, before: int | None = None
  ) -> tuple[int, steps.TrainState, MeanLoss]:
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
      return 0, self.fresh_state(), MeanLoss()
    wanted = self._placed()
    step, params, rest = checkpoints.restore_newest(
      wanted.params, rest_of(wanted, None), before
    )
    if "guard" not in rest:  # of a run begun before there was one
      rest["guard"] = jax.device_put(steps.Guard.fresh(), self.place.guard)
    mean_loss = MeanLoss.from_bits(rest.pop("train_loss", None))
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


@contextlib.contextmanager
def lock(workdir: str) -> Iterator[None]:
  """A context in which no other job has the workdir.

  Raises:
    run_log.RunError: another has it; on every host.
  """
  with contextlib.ExitStack() as stack:
    refused: Exception | None = None
    if jax.process_index() == 0:
      try:
        stack.enter_context(run_log.lock(workdir))
      except (run_log.RunError, OSError) as error:
        refused = error
    reason = hosts.from_first(str(refused) if refused else "")
    if refused is not None:
      raise refused
    if reason:
      raise run_log.RunError(
        f"process 0 could not lock --workdir={workdir}: {reason}"
      )
    yield


def rest_of(
  state: steps.TrainState, mean_loss: MeanLoss | None
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


def meet(mode: str, config: Any, workdirs: Sequence[str], **more: Any) -> None:
  """Checks, before anything is read, that all processes run the same.

  Does nothing for a process alone. What hosts.PER_HOST_KEYS names may differ.

  Args:
    mode: of the launcher.
    config: the whole configuration.
    workdirs: of the runs, which need not exist yet.
    **more: facts that must be equal, too, as JSON has them.

  Raises:
    hosts.DifferError: they differ, or do not share a workdir.
    OSError: process 0 cannot write to a workdir.
  """
  if not hosts.are_several():
    return
  commit, dirty = run_log.commit()
  settings = run_log.flatten(run_log.plain(config))
  hosts.compare(
    hosts.facts_of_process()
    | {"mode": mode, "code": run_log.code_hash()}
    | {"commit": commit, "dirty": dirty}
    | {
      name: value
      for name, value in settings.items()
      if not name.startswith(hosts.PER_HOST_KEYS)
    }
    | more
  )
  for workdir in workdirs:
    # An evaluation need not write there.
    hosts.check_shared(workdir, must_write=mode == "train")


def meet_opened(
  job: jobs.Job,
  pretrained: Any,
  mesh: jax.sharding.Mesh,
  more: Mapping[str, Any],
) -> None:
  """Checks that all processes have read the same; see `meet`.

  Args:
    job: that was opened.
    pretrained: weights to start from, or None.
    mesh: of all devices. The processes are connected along it afterwards.
    more: facts that must be equal, too, as JSON has them.

  Raises:
    hosts.DifferError: they differ.
  """
  if not hosts.are_several():
    return
  config = run_log.plain(job.config)
  hosts.compare(
    run_log.flatten(config["model"], "model.")
    | run_log.flatten(job.read_hashes(), "data.")
    | {
      "vocabulary": job.tokenizer.fingerprint,
      "weights": _hash(pretrained.params) if pretrained else None,
    }
    | dict(more)
  )
  if mesh.devices.flat[0].platform == "cpu":
    sharding.connect(mesh)


def _hash(tree: Any) -> str:
  """Hash of arrays on the host, for equality alone."""
  digest = hashlib.blake2b(digest_size=16)
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(x)
    digest.update(f"{jax.tree_util.keystr(path)} {array.shape}".encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def open_session(
  config: Any, workdir: str, seed_axis: int | None = None
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
  check_settings(config)
  checkpoint.check_path(workdir)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp,
                            config.mesh.tensor, seed=seed_axis)  # fmt: skip
  check_memory(config, mesh)
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
  imported = fit_weights(job, pretrained, abstract.params)
  run = run_log.describe(config, job.data_hash, list(mesh.devices.flat))
  facts = job.facts | {"total_steps": job.total_steps}
  meet_opened(job, pretrained, mesh, facts | {"metrics": metrics})
  run |= facts
  run_log.check_workdir(workdir, run)
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


def check_settings(config: Any) -> None:
  """Raises ValueError if a training setting is out of range."""
  bounds.check(config)
  for key in ("max_query_len", "doc_stride", "n_best", "max_answer_len"):
    if config.task[key] is None:  # as in configs/predict.py
      raise ValueError(f"task.{key} is not set; training needs a number")
  if not config.train.num_epochs and config.train.total_steps < 1:
    raise ValueError(  # tasks may count epochs instead
      f"train.total_steps={config.train.total_steps}; it must be 1 or more"
    )
  if config.data.mask_token_rate + config.data.random_token_rate > 1:
    raise ValueError(
      "data.mask_token_rate and data.random_token_rate add up to more than 1"
    )
  if config.train.on_bad_step not in ("stop", "skip"):
    raise ValueError(
      f"train.on_bad_step={config.train.on_bad_step!r}; use stop or skip"
    )
  if 0 < config.train.spike_factor <= 1:
    raise ValueError(
      f"train.spike_factor={config.train.spike_factor} calls every other loss "
      "a spike; use 2 or more, or 0 for none"
    )


def check_memory(config: Any, mesh: jax.sharding.Mesh) -> None:
  """Refuses what no arrangement could fit into the memory of the devices.

  What counts is the least that a step holds, evenly cut over all devices: the
  parameters with both moments, and one layer's hidden states of a micro-batch.

  Args:
    config: the whole configuration.
    mesh: of devices of this job.

  Raises:
    ValueError: it does not fit; says how much there is.
  """
  available = _memory(mesh)
  if available is None or config.init_from:  # which says the model's shape
    return
  model = config.model
  size = jnp.dtype(model.param_dtype).itemsize
  state = 3 * size * bounds.num_parameters(model)
  hidden = 0
  if config.objective != "task":  # whose sequences share rows
    tokens = config.data.batch_size * config.data.seq_len
    width = jnp.dtype(model.dtype).itemsize * model.hidden_size
    hidden = tokens * width // config.optim.num_micro_batches
  if state + hidden > available:
    raise ValueError(
      f"this training needs {(state + hidden) / 1e9:,.0f} GB or more, and its "
      f"{mesh.devices.size} devices have {available / 1e9:,.0f} GB: parameters "
      f"and moments take {state / 1e9:,.0f} GB, the hidden states of a layer "
      f"{hidden / 1e9:,.0f} GB; lower model.num_layers, model.hidden_size or "
      "data.batch_size, or raise optim.num_micro_batches"
    )


def _memory(mesh: jax.sharding.Mesh) -> int | None:
  """Bytes of all devices of a mesh together; None = not known."""
  device = mesh.local_devices[0]
  if device.platform == "cpu":  # those of a process share its machine's
    processes = len({d.process_index for d in mesh.devices.flat})
    return processes * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  limit = (device.memory_stats() or {}).get("bytes_limit")
  return limit and limit * mesh.devices.size


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
  elif "task" in given:
    _log.info("%s: its head is trained on, too, %s", source, head)
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
