"""The train state, and the jitted functions of it: initialise, train, evaluate.

Pure: arrays in, arrays out. What is random in a step is a function of (seed,
step), so nothing random is part of the state.
"""

from collections.abc import Callable
import functools
from typing import Any

import flax
from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from bert_jax.kinds import kind
from bert_jax.kinds import losses
from bert_jax.kinds import pretraining
from bert_jax.runtime import sharding
from bert_jax.runtime.settings import Config
from bert_jax.training import optim

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# The mean that a loss is held against forgets a half in 34 steps, and is held
# against nothing before it knows of 20.
_MEAN_DECAY = 0.98
_LEAST_STEPS = 20


@flax.struct.dataclass
class Guard:
  """Statistics that tell whether a step's loss is bad. All are scalars.

  Attributes:
    total: decayed sum of the losses of good steps, float32.
    weight: the same sum of ones, float32.
    skipped: steps that changed nothing, int32.
  """

  total: jax.Array
  weight: jax.Array
  skipped: jax.Array

  @classmethod
  def fresh(cls) -> "Guard":
    """That of a run before its first step."""
    # An array each: a step takes their memory, of each once.
    kinds = (jnp.float32, jnp.float32, jnp.int32)
    return cls(*(jnp.zeros((), kind) for kind in kinds))

  def is_bad(
    self, loss: jax.Array, grad_norm: jax.Array, spike_factor: float
  ) -> jax.Array:
    """Whether a step is bad: no finite numbers, or a loss out of proportion.

    Args:
      loss: of the step.
      grad_norm: of the step.
      spike_factor: a loss above so many times the mean is bad; 0 = none is.
    """
    bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
    if spike_factor:
      known = self.weight >= 1 - _MEAN_DECAY**_LEAST_STEPS
      bad |= known & (loss * self.weight > spike_factor * self.total)
    return bad

  def after(self, bad: jax.Array, loss: jax.Array) -> "Guard":
    """The guard after a step."""
    new = 1 - _MEAN_DECAY
    return Guard(
      jnp.where(bad, self.total, _MEAN_DECAY * self.total + new * loss),
      jnp.where(bad, self.weight, _MEAN_DECAY * self.weight + new),
      self.skipped + bad,
    )


@flax.struct.dataclass
class TrainState:
  """All that training changes.

  Attributes:
    step: number of steps made, int32 scalar.
    params: parameters, in model.param_dtype.
    opt_state: the optimizer's moments and counts.
    guard: knows bad steps.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  guard: Guard


def init_state(
  model: nn.Module,
  objective: kind.Kind,
  optimizer: optax.GradientTransformation,
  rng: jax.Array,
  batch: Batch,
) -> TrainState:
  """A fresh state; call it under jit with the state's shardings.

  Args:
    model: to initialise.
    objective: its kind.
    optimizer: from optim.make_optimizer.
    rng: key of the initialisation.
    batch: any batch; only shapes matter, one row is enough.
  """
  inputs: dict[str, Any] = objective.arguments(batch)
  params = model.init(rng, **inputs)["params"]
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    guard=Guard.fresh(),
  )


def _sum_over_parts(compute, variables, batch, count, rng):
  """Adds up what a function finds for each of the parts of a batch.

  Args:
    compute: (variables, rows, rng) -> a tree of arrays.
    variables: the same for all parts.
    batch: [B, ...] each.
    count: k; row i belongs to part i mod k.
    rng: key, from which each part gets its own.
  """

  def part(x):  # [B, ...] -> [k, B / k, ...]
    return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

  def add(total, i_and_rows):
    i, rows = i_and_rows
    out = compute(variables, rows, jax.random.fold_in(rng, i))
    return jax.tree.map(jnp.add, total, out), None

  parts = jax.tree.map(part, batch)
  first = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(compute, variables, first, rng),
  )
  return jax.lax.scan(add, zeros, (jnp.arange(count), parts))[0]


def make_gradients(
  model: nn.Module,
  objective: kind.Kind,
  rng: jax.Array,
  num_micro_batches: int = 1,
  sparse_words: bool = False,
  place: Any = None,
) -> Callable[..., tuple[jax.Array, Metrics, Any, dict[str, Any]]]:
  """Returns (params, batch, step) -> (loss, terms of it, gradients, extra).

  With micro-batches the gradient is that of the whole batch: each term of the
  loss is divided by its weight in the whole batch before gradients are added.
  Rows are dealt out to the micro-batches in turns, so none leaves its device.
  `extra` goes to the optimizer's update.

  Args:
    model: takes objective.inputs and a `dropout` rng, and has `hooks`.
    objective: losses and their weights.
    rng: key that dropout is derived from, with the step folded in.
    num_micro_batches: k; k > 1 computes B / k rows at a time.
    sparse_words: where the model only looks words up, the gradient of the word
      table is 0 but for those of the batch. They alone are then computed,
      unless they are many; the numbers are the same. For one device.
    place: shardings of the parameters, which gradients keep until they are
      whole: moments that are cut further would have the compiler send some of
      them several times, and those of every micro-batch.

  Source: BERT paper, appendix A.2; accumulation as users asked of the original.
  """
  hooks = model.hooks
  is_cut = place is not None and jax.tree.leaves(place)[0].mesh.size > 1

  def gradients(params, batch, step):
    loss_of = functools.partial(_loss, objective, objective.weights(batch))
    flat = hooks.for_gradients(params)
    few = extra = None
    if num_micro_batches == 1 and not is_cut and sparse_words:
      few = hooks.of_words(flat, batch["input_ids"])
    key = jax.random.fold_in(rng, step)
    if num_micro_batches > 1 or is_cut:
      found = _of_parts(
        loss_of, model, flat, batch, key, num_micro_batches, place
      )
    elif few is not None:
      small, rows, places = few
      extra = {"rows": batch["input_ids"].reshape(-1)}
      found = _of_batch(
        loss_of, small, rows, batch | {"input_ids": places}, key
      )
    else:
      found = _of_batch(loss_of, model, flat, batch, key)
    loss, terms, grads = found
    return loss, terms, grads, extra or {}

  return gradients


def _loss(objective, weights, model, variables, batch, rng):
  """Returns the loss and its terms.

  Args:
    objective: losses of a batch.
    weights: of each term, in the whole batch.
    model: the module.
    variables: (parameters in the form of `hooks.for_gradients`, those of
      `hooks.second_use` or None).
    batch: [B, ...] each, or a part of the batch.
    rng: key of dropout.
  """
  params, second = variables
  outputs = objective.apply(
    model,
    model.hooks.for_apply(params),
    batch,
    second,
    deterministic=False,
    rngs={"dropout": rng},
  )
  terms = {
    name: losses.mean(total, weights[name])
    for name, (total, _) in objective.losses(outputs, batch).items()
  }
  return sum(terms.values()), terms


def _of_batch(loss_of, model, params, batch, rng):
  """Returns loss, terms and gradients of a batch at once, on one device."""
  compute = jax.value_and_grad(functools.partial(loss_of, model), has_aux=True)
  (loss, terms), (grads, _) = compute((params, None), batch, rng)
  return loss, terms, model.hooks.as_stored(grads)


def _of_parts(loss_of, model, params, batch, rng, count, place):
  """Returns loss, terms and gradients of a batch in parts, on any mesh.

  A parameter that is used twice has two gradients, each of which is summed over
  the devices once, after the last part.
  """
  hooks = model.hooks
  variables = (params, hooks.second_use(params))
  compute = jax.value_and_grad(functools.partial(loss_of, model), has_aux=True)
  if count > 1:
    found = _sum_over_parts(compute, variables, batch, count, rng)
  else:
    found = compute(variables, batch, rng)
  (loss, terms), (grads, second) = found
  grads = hooks.as_stored(grads)
  if place is not None:
    grads, second = jax.lax.with_sharding_constraint(
      (grads, second), (place, hooks.second_use(place))
    )
  return loss, terms, hooks.tie(grads, second)


def make_train_step(
  gradients: Callable,
  optimizer: optax.GradientTransformationExtraArgs,
  schedule: optax.Schedule,
  skip_bad: bool = False,
  spike_factor: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns (state, batch) -> (state, metrics), to be jitted.

  Args:
    gradients: from `make_gradients`.
    optimizer: of the parameters.
    schedule: step -> learning rate, for the log.
    skip_bad: a bad step leaves parameters and moments as they are. It counts as
      a step all the same: the learning rate and the data go on.
    spike_factor: see `Guard.is_bad`.

  Returns:
    The step. Its metrics are float32 scalars: loss, each term of it, grad_norm,
    learning_rate; of the guard bad_step (0 or 1), mean_loss before the step,
    and skipped_steps so far.
  """

  def train_step(state, batch):
    loss, terms, grads, extra = gradients(state.params, batch, state.step)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.params, **extra
    )
    params = optax.apply_updates(state.params, updates)
    bad = state.guard.is_bad(loss, grad_norm, spike_factor)
    guard = state.guard.after(bad, loss)
    if skip_bad:

      def keep(old, new):  # counts of steps go on
        counts = jnp.issubdtype(old.dtype, jnp.integer)
        return new if counts else jnp.where(bad, old, new)

      params = jax.tree.map(keep, state.params, params)
      opt_state = jax.tree.map(keep, state.opt_state, opt_state)
    metrics = terms | {
      "loss": loss,
      "grad_norm": grad_norm,
      "learning_rate": schedule(state.step),
      "bad_step": bad.astype(jnp.float32),
      "mean_loss": losses.mean(state.guard.total, state.guard.weight),
      "skipped_steps": guard.skipped.astype(jnp.float32),
    }
    return TrainState(state.step + 1, params, opt_state, guard), metrics

  return train_step


def _make_step(
  config: Config,
  model: nn.Module,
  objective: kind.Kind,
  optimizer: optax.GradientTransformationExtraArgs,
  schedule: optax.Schedule,
  rng: jax.Array,
  mesh: jax.sharding.Mesh,
  place: Any,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """The step that a config describes; arguments as of `jit_train_step`."""
  gradients = make_gradients(
    model,
    objective,
    rng,
    config.optim.num_micro_batches,
    sparse_words=mesh.size == 1
    and optim.OPTIMIZERS[config.optim.name].takes_rows,
    place=place.params,
  )
  return make_train_step(
    gradients,
    optimizer,
    schedule,
    skip_bad=config.train.on_bad_step == "skip",
    spike_factor=config.train.spike_factor,
  )


def jit_train_step(
  config: Config,
  model: nn.Module,
  objective: kind.Kind,
  optimizer: optax.GradientTransformationExtraArgs,
  schedule: optax.Schedule,
  rng: jax.Array,
  mesh: jax.sharding.Mesh,
  place: Any,
) -> Any:
  """The step as it is compiled, for training and for plans alike.

  Args:
    config: the whole configuration.
    model: as for `make_gradients`.
    objective: losses and their weights.
    optimizer: of the parameters.
    schedule: step -> learning rate.
    rng: key of dropout.
    mesh: that it runs on.
    place: shardings of the train state, from `sharding.place_state`.

  Returns:
    The jitted step; it takes the memory of the state that it is given.
  """
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return jax.jit(
    _make_step(config, model, objective, optimizer, schedule, rng, mesh, place),
    donate_argnums=0,
    in_shardings=(place, sharding.batch_sharding(mesh)),
    out_shardings=(place, everywhere),
  )


def jit_members_step(
  config: Config,
  model: nn.Module,
  objective: kind.Kind,
  make_optimizer: Callable[[jax.Array], tuple[Any, optax.Schedule]],
  mesh: jax.sharding.Mesh,
  place: Any,
) -> Any:
  """The step of K models at once, which differ in seed and learning rate.

  Args:
    config: the whole configuration, but for these two.
    model: as for `make_gradients`.
    objective: losses and their weights.
    make_optimizer: peak of the learning rate, a scalar array -> as
      `optim.make_optimizer`.
    mesh: with the axis "seed", which the models are dealt out over.
    place: shardings of the train state of one of them.

  Returns:
    The jitted step: (states, batches, keys of dropout [K], learning rates [K])
    -> (states, metrics), all stacked on axis 0. It takes the states' memory.
  """

  def train_step(state, batch, rng, learning_rate):
    optimizer, schedule = make_optimizer(learning_rate)
    step = _make_step(
      config, model, objective, optimizer, schedule, rng, mesh, place
    )
    return step(state, batch)

  rows = sharding.batch_sharding(mesh)
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  states, batches, each = (
    sharding.of_members(x, mesh) for x in (place, rows, everywhere)
  )
  return jax.jit(
    jax.vmap(train_step, spmd_axis_name=sharding.SEED_AXIS),
    donate_argnums=0,
    in_shardings=(states, batches, each, each),
    out_shardings=(states, everywhere),
  )


def make_eval_step(
  model: nn.Module, objective: kind.Kind
) -> Callable[[Any, Batch, jax.Array], kind.Sums]:
  """Returns (params, batch, unigram log-probabilities [V]) -> sums.

  The sums are (sum, weight) pairs over the global batch: the objective's
  metrics and the baseline on the same positions.
  """

  def eval_step(params, batch, log_probs):
    outputs = objective.apply(model, params, batch, deterministic=True)
    return objective.metrics(outputs, batch) | pretraining.unigram_metrics(
      batch, log_probs
    )

  return eval_step


def make_predict_step(
  model: nn.Module, objective: kind.Kind
) -> Callable[[Any, Batch], tuple[Any, kind.Sums]]:
  """Returns (params, batch) -> (outputs, sums).

  The outputs are the model's, of every row; the sums are the objective's
  metrics, {} where the batch has no labels.
  """

  def predict_step(params, batch):
    outputs = objective.apply(model, params, batch, deterministic=True)
    has_labels = "weight" in batch
    return outputs, objective.metrics(outputs, batch) if has_labels else {}

  return predict_step
