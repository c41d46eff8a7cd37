"""Several models in one program: they differ in seed and learning rate.

Fine-tuning on a small task leaves most of a chip idle. K models that are
stacked on a new axis in front fill it, in a step that is compiled once; over
several devices they are dealt out along the mesh axis "seed". Each keeps its
order of examples, its dropout and its workdir, and is to float tolerance what
it is when it is trained alone.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import logging
import math
import os
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.data import batching
from bert_jax.data import task_batches
from bert_jax.runtime import checkpoint
from bert_jax.runtime import errors
from bert_jax.runtime import resume
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.runtime import sharding
from bert_jax.runtime.settings import Config
from bert_jax.training import averages
from bert_jax.training import init_from
from bert_jax.training import optim
from bert_jax.training import session
from bert_jax.training import steps

_log = logging.getLogger(__name__)


class MembersError(errors.UserError):
  """These models cannot be trained together."""


@dataclasses.dataclass(frozen=True)
class Member:
  """What is a model's own.

  Attributes:
    workdir: of its run.
    seed: of everything random.
    learning_rate: the peak.
  """

  workdir: str
  seed: int
  learning_rate: float


class Group(Protocol):
  """One run or several, as the loop of training needs them."""

  @property
  def runs(self) -> Sequence[session.Session]:
    """Its runs."""
    ...

  @property
  def batches(self) -> batching.Batches:
    """Of training, by step."""
    ...

  @property
  def place(self) -> jax.sharding.NamedSharding:
    """Where batches go."""
    ...

  def restore(
    self, checkpoints: Sequence[checkpoint.Checkpoints]
  ) -> tuple[int, steps.TrainState, list[averages.MeanLoss]]:
    """Reads the newest step that all have, or starts; as Session.restore."""
    ...

  def train_step(self) -> Any:
    """The jitted step: (state, device batch) -> (state, metrics)."""
    ...

  def norms(self) -> Any:
    """A jitted function: parameters -> norm, of each run."""
    ...

  def evaluate(self, params: Any) -> list[dict[str, float]]:
    """What an evaluation finds, of each run."""
    ...

  def split(self, state: steps.TrainState) -> Iterator[steps.TrainState]:
    """The state of each run."""
    ...

  def parts(self, arrays: Any) -> list[Any]:
    """What each run has of a tree of arrays on the host."""
    ...


class Alone:
  """A group of one."""

  def __init__(self, run: session.Session):
    """Takes a session."""
    self.runs = [run]
    self.batches: batching.Batches = run.batches
    self.place = sharding.batch_sharding(run.mesh)

  def restore(
    self, checkpoints: Sequence[checkpoint.Checkpoints]
  ) -> tuple[int, steps.TrainState, list[averages.MeanLoss]]:
    """See Group."""
    start, state, mean_loss = self.runs[0].restore(checkpoints[0])
    return start, state, [mean_loss]

  def train_step(self) -> Any:
    """See Group."""
    return self.runs[0].train_step()

  def norms(self) -> Any:
    """See Group."""
    return jax.jit(optax.tree.norm)

  def evaluate(self, params: Any) -> list[dict[str, float]]:
    """See Group."""
    return [self.runs[0].evaluator(params)]

  def split(self, state: steps.TrainState) -> Iterator[steps.TrainState]:
    """See Group."""
    yield state

  def parts(self, arrays: Any) -> list[Any]:
    """See Group."""
    return [arrays]


class Together:
  """K runs whose arrays are stacked on axis 0."""

  def __init__(self, runs: Sequence[session.Session]):
    """Takes sessions from `open_members`."""
    self.runs = runs
    self.batches: batching.Batches = StackedBatches(
      [_task_batches(run) for run in runs]
    )
    mesh = runs[0].mesh
    self.place = sharding.of_members(sharding.batch_sharding(mesh), mesh)
    self._places = sharding.of_members(runs[0].place, mesh)
    self._owners = _own_meshes(mesh)
    self._takes = [
      jax.jit(
        lambda states, k: jax.tree.map(lambda x: x[k], states),
        out_shardings=jax.tree.map(
          lambda one, own=own: jax.sharding.NamedSharding(own, one.spec),
          runs[0].place,
        ),
      )
      for own in self._owners
    ]
    from bert_jax.training import (
      finetuning,  # slow to import, and not always needed
    )

    job: Any = runs[0].job
    self._evaluator = finetuning.TaskEvaluator(job, mesh, len(runs))

  def restore(
    self, checkpoints: Sequence[checkpoint.Checkpoints]
  ) -> tuple[int, steps.TrainState, list[averages.MeanLoss]]:
    """See Group; a run that is ahead of the others goes back to their step.

    Raises:
      checkpoint.CheckpointError: some have begun, and there is no sound step
        that all have; nothing was removed.
    """
    saved = [set(opened.steps()) for opened in checkpoints]
    if not any(saved):
      return 0, self._fresh(), [averages.MeanLoss() for _ in self.runs]
    for step in sorted(set.intersection(*saved), reverse=True):
      found = self._read(checkpoints, step)
      if found is None:
        continue
      for opened in checkpoints:  # what is computed again is saved again
        opened.drop_after(step)
      states, mean_losses = zip(*found, strict=True)
      return step, self._stack(states), list(mean_losses)
    have = (
      f"{run.workdir}: {', '.join(map(str, sorted(own))) or 'none'}"
      for run, own in zip(self.runs, saved, strict=True)
    )
    raise checkpoint.CheckpointError(
      "there is no step that all members have a sound checkpoint of "
      f"({'; '.join(have)}); train those together that have one, or each alone"
    )

  def _read(
    self, checkpoints: Sequence[checkpoint.Checkpoints], step: int
  ) -> list[tuple[steps.TrainState, averages.MeanLoss]] | None:
    """What each run has saved of a step, on the host; None: one is damaged."""
    states = []
    for run, opened in zip(self.runs, checkpoints, strict=True):
      try:
        found, state, mean_loss = run.restore(opened, step + 1)
      except checkpoint.CheckpointError:
        opened.set_aside(step)
        return None
      if found != step:
        opened.set_aside(step)
        return None
      # Of K states on the devices at once there might be no room.
      states.append((jax.device_get(state), mean_loss))
      del state
    return states

  def _stack(self, states: Sequence[steps.TrainState]) -> steps.TrainState:
    def stack(place, *own):
      shape = (len(own), *own[0].shape)

      def part(index):
        return np.stack([x[index[1:]] for x in own[index[0]]])

      return jax.make_array_from_callback(shape, place, part)

    return jax.tree.map(stack, self._places, *states)

  def _fresh(self) -> steps.TrainState:
    """The states at step 0."""
    run = self.runs[0]
    row = {k: jnp.asarray(v[:1]) for k, v in run.batches[0].items()}

    def init(rng):
      return steps.init_state(
        run.job.model, run.job.objective, run.optimizer, rng, row
      )

    rngs = jnp.stack([run.rngs[0] for run in self.runs])
    state = jax.jit(jax.vmap(init), out_shardings=self._places)(rngs)
    if run.imported is None:
      return state
    count = len(self.runs)
    imported = jax.tree.map(
      lambda x: None if x is None else np.broadcast_to(x, (count, *x.shape)),
      run.imported,
      is_leaf=lambda x: x is None,
    )
    return state.replace(params=init_from.place_params(state.params, imported))

  def train_step(self) -> Any:
    """See Group."""
    run = self.runs[0]
    step = steps.jit_members_step(
      run.config,
      run.job.model,
      run.job.objective,
      functools.partial(
        optim.make_optimizer, run.config.optim, run.total_steps
      ),
      run.mesh,
      run.place,
    )
    rngs = jnp.stack([run.rngs[1] for run in self.runs])
    rates = [run.config.optim.learning_rate for run in self.runs]
    each = jax.sharding.NamedSharding(run.mesh, sharding.P(sharding.SEED_AXIS))
    rngs, rates = jax.device_put((rngs, np.array(rates, np.float32)), each)
    return lambda state, batch: step(state, batch, rngs, rates)

  def norms(self) -> Any:
    """See Group."""
    return jax.jit(jax.vmap(optax.tree.norm))

  def evaluate(self, params: Any) -> list[dict[str, float]]:
    """See Group."""
    return self._evaluator.evaluate_all(params)

  def split(self, state: steps.TrainState) -> Iterator[steps.TrainState]:
    """See Group; one at a time, each a copy on the devices that have it."""
    each = len(self.runs) // len(self._owners)
    for owner, mesh in enumerate(self._owners):
      with jax.set_mesh(mesh):
        states = jax.tree.map(
          functools.partial(_of_devices, mesh=mesh), state, self._places
        )
      for k in range(each):
        with jax.set_mesh(mesh):
          own = self._takes[owner](states, k)
        yield own
        del own

  def parts(self, arrays: Any) -> list[Any]:
    """See Group."""

    def part(k):
      return jax.tree.map(lambda x: x[k], arrays)

    return [part(k) for k in range(len(self.runs))]


def _own_meshes(mesh: jax.sharding.Mesh) -> list[jax.sharding.Mesh]:
  """The parts of a mesh along "seed", without that axis."""
  return [
    jax.sharding.Mesh(
      devices, mesh.axis_names[1:], axis_types=mesh.axis_types[1:]
    )
    for devices in mesh.devices
  ]


def _of_devices(
  x: jax.Array, place: jax.sharding.NamedSharding, mesh: jax.sharding.Mesh
) -> jax.Array:
  """What the devices of a part of a mesh have of a stacked array; no copy."""
  devices = set(mesh.devices.flat)
  shards = [s.data for s in x.addressable_shards if s.device in devices]
  return jax.make_array_from_single_device_arrays(
    (len(shards[0]), *x.shape[1:]),
    jax.sharding.NamedSharding(mesh, sharding.P(None, *place.spec[1:])),
    shards,
  )


class StackedBatches:
  """The batches of K runs by step: [K, B, ...] each."""

  def __init__(self, batches: Sequence[task_batches.TaskBatches]):
    """Takes those of each run, with rows of one length."""
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


def _task_batches(run: session.Session) -> task_batches.TaskBatches:
  assert isinstance(run.batches, task_batches.TaskBatches)
  return run.batches


def open_members(
  config: Config, wanted: Sequence[Member]
) -> list[session.Session]:
  """Opens the runs of models that are trained together.

  Args:
    config: the whole configuration, but for what differs.
    wanted: which models.

  Raises:
    ValueError: they cannot be trained together, or one of them cannot be
      trained at all; nothing was changed.
  """
  _check(config, wanted)
  # The weights to start from are read by a run that has not begun.
  by_need = sorted(wanted, key=lambda m: checkpoint.exists(m.workdir))
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
  """The session of one of some members, which shares what it can."""
  config = _config_of(first.config, member)
  total = first.total_steps
  optimizer, schedule = optim.make_optimizer(config.optim, total)
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
  """Size of the mesh axis "seed": that of the config, or the most there can be.

  Args:
    config: the group `mesh`.
    num_members: K.
    num_devices: of the mesh.

  Raises:
    MembersError: it does not divide the models.
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
  """Raises MembersError for what cannot be trained together."""
  if jax.process_count() > 1:
    raise MembersError(
      "models train together on one host; of a job of several processes each "
      "trains one model: leave --member out"
    )
  check_config(config)
  for member in wanted:
    try:
      settings.check(_config_of(config, member))
    except ValueError as error:
      raise MembersError(f"--member={member.workdir}: {error}") from error
  workdirs = [os.path.abspath(member.workdir) for member in wanted]
  if len(set(workdirs)) < len(workdirs):
    raise MembersError(f"two members have one workdir: {', '.join(workdirs)}")


def check_config(config: Config) -> None:
  """Raises MembersError for a config that cannot be trained together."""
  if config.objective != "task":
    raise MembersError(
      f"objective={config.objective}: only tasks are trained together"
    )
  if config.data.pack and not config.data.one_row_len:
    raise MembersError(
      "models train together in rows of one length, which other seeds have, "
      "too: add --config.data.one_row_len=True"
    )
