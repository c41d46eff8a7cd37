"""The train state, and its pure functions: initialise, train, evaluate.

The random numbers of a step are a function of (seed, step), so the state holds
no random key.
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
from bert_jax.training import optim
from bert_jax.training.job import Job

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# A loss is compared with a decayed mean, in which a loss counts half after 34
# steps, and which is not used before it holds 20 losses.
_MEAN_DECAY = 0.98
_LEAST_STEPS = 20


@flax.struct.dataclass
class Guard:
  """Statistics that tell whether a step's loss is bad. All are scalars.

  Attributes:
    total: the decayed sum of the losses of good steps, float32.
    weight: the same sum with ones instead of losses, float32.
    skipped: the number of bad steps so far, int32.
  """

  total: jax.Array
  weight: jax.Array
  skipped: jax.Array

  @classmethod
  def fresh(cls) -> "Guard":
    """Returns the guard of a run before its first step."""
    # Separate arrays, because the step donates the memory of each.
    dtypes = (jnp.float32, jnp.float32, jnp.int32)
    return cls(*(jnp.zeros((), dtype) for dtype in dtypes))

  def is_bad(
    self, loss: jax.Array, grad_norm: jax.Array, spike_factor: float
  ) -> jax.Array:
    """Returns whether a step is bad: NaN, infinity or a spike of the loss.

    Args:
      loss: the loss of the step.
      grad_norm: the norm of its gradient.
      spike_factor: how many times the mean a loss may be; 0 = no limit.
    """
    bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
    if spike_factor:
      known = self.weight >= 1 - _MEAN_DECAY**_LEAST_STEPS
      bad |= known & (loss * self.weight > spike_factor * self.total)
    return bad

  def after(self, bad: jax.Array, loss: jax.Array) -> "Guard":
    """Returns the guard after a step with this loss."""
    new = 1 - _MEAN_DECAY
    return Guard(
      jnp.where(bad, self.total, _MEAN_DECAY * self.total + new * loss),
      jnp.where(bad, self.weight, _MEAN_DECAY * self.weight + new),
      self.skipped + bad,
    )


@flax.struct.dataclass
class TrainState:
  """All arrays that training changes.

  Attributes:
    step: the number of steps made, int32 scalar.
    params: the parameters, in model.param_dtype.
    opt_state: the moments and counts of the optimizer.
    guard: the statistics that find bad steps.
    average: the decayed mean of the parameters after each step, float32, if
      optim.average_decay asks for it; zeros before the first step. While every
      step was skipped, it has the parameters that the training started from.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  guard: Guard
  average: Any = None

  def judged(self, by_average: bool, step: int) -> Any:
    """Returns the parameters to evaluate.

    Args:
      by_average: whether they are the average (eval.average).
      step: the number of steps made; before the first there is no average.
    """
    if not by_average or not step:
      return self.params
    return jax.tree.map(
      lambda mean, x: mean.astype(x.dtype), self.average, self.params
    )


def init_state(
  model: nn.Module,
  objective: kind.Kind,
  optimizer: optax.GradientTransformation,
  rng: jax.Array,
  batch: Batch,
  has_average: bool = False,
) -> TrainState:
  """Returns a fresh state; call it under jit with the state's shardings.

  Args:
    model: the module to initialise.
    objective: the kind of the training.
    optimizer: the optimizer, from `optim.make_optimizer`.
    rng: the key of the initialisation.
    batch: any batch; only its shapes matter, and one row is enough.
    has_average: whether the state has an average of the parameters.
  """
  inputs: dict[str, Any] = objective.arguments(batch)
  params = model.init(rng, **inputs)["params"]
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    guard=Guard.fresh(),
    average=_zeros_like(params) if has_average else None,
  )


def _zeros_like(params: Any) -> Any:
  return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)


def _averaged(average: Any, params: Any, count: jax.Array, decay: float) -> Any:
  """Returns the decayed mean of parameters with one more step in it.

  The decay rises from 0 to `decay` as count / (count + 10), so that the mean
  does not remember where the training started.

  Args:
    average: the mean so far, float32.
    params: the parameters after the step.
    count: the number of steps before this one that were not skipped.
    decay: the share of the mean so far, in the long run.
  """
  steps = count.astype(jnp.float32)
  new = 1 - jnp.minimum(decay, steps / (steps + 10))

  def mix(mean: jax.Array, x: jax.Array) -> jax.Array:
    mean = jnp.where(count == 0, 0.0, mean)
    return mean + new * (x.astype(jnp.float32) - mean)

  return jax.tree.map(mix, average, params)


def _part(x, count):
  """Returns the rows of each of k parts: [B, ...] -> [k, B / k, ...]."""
  return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)


def _joined(x):
  """Undoes `_part`: [k, B / k, ...] -> [B, ...]."""
  return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def _sum_over_parts(compute, variables, batch, rng, *, count):
  """Returns the sum of a function over the parts of a batch.

  Args:
    compute: (variables, rows, rng) -> a tree of arrays.
    variables: the same for all parts.
    batch: arrays [B, ...].
    rng: the key from which each part derives its own.
    count: the number of parts k; row i belongs to part i mod k.
  """

  def add(total, i_and_rows):
    i, rows = i_and_rows
    out = compute(variables, rows, jax.random.fold_in(rng, i))
    return jax.tree.map(jnp.add, total, out), None

  parts = jax.tree.map(functools.partial(_part, count=count), batch)
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
  """Returns (params, batch, step) -> (loss, its terms, gradients, extra).

  With micro-batches the gradient is that of the whole batch: each term of the
  loss is divided by its weight in the whole batch before gradients are added.
  Consecutive rows go to different micro-batches, so that every row stays on its
  device. `extra` holds keyword arguments for the optimizer's update.

  Args:
    model: a module that takes objective.inputs and a `dropout` rng, and has
      `hooks`.
    objective: the kind of the training, which gives losses and their weights.
    rng: the key of dropout, into which the step is folded.
    num_micro_batches: k; k > 1 computes B / k rows at a time.
    sparse_words: whether to compute the gradient of the word table for the
      words of the batch alone, if the model only looks words up and the batch
      has few. All other rows have the gradient 0, so the numbers are the same.
      It is ignored on several devices.
    place: the shardings of the parameters. Gradients keep them until they are
      summed: if the moments are sharded further, the compiler would otherwise
      send some gradients several times, and those of every micro-batch.

  Source: BERT paper, appendix A.2.
  """
  hooks = model.hooks
  is_cut = place is not None and jax.tree.leaves(place)[0].mesh.size > 1

  def gradients(params, batch, step):
    loss_of = functools.partial(_loss, objective, objective.weights(batch))
    flat = hooks.for_gradients(params)
    key = jax.random.fold_in(rng, step)
    if num_micro_batches > 1 or is_cut:
      compute = jax.value_and_grad(
        functools.partial(loss_of, model), has_aux=True
      )
      if num_micro_batches > 1 and objective.reads_batch:
        compute = functools.partial(
          _with_cached_outputs, objective, model, num_micro_batches
        )
      elif num_micro_batches > 1:
        compute = functools.partial(
          _sum_over_parts, compute, count=num_micro_batches
        )
      return *_of_parts(compute, model, flat, batch, key, place), {}
    few = hooks.of_words(flat, batch["input_ids"]) if sparse_words else None
    if few is None:
      return *_of_batch(loss_of, model, flat, batch, key), {}
    small, rows, places = few
    found = _of_batch(loss_of, small, rows, batch | {"input_ids": places}, key)
    return *found, {"rows": batch["input_ids"].reshape(-1)}

  return gradients


def _loss(objective, weights, model, variables, batch, rng):
  """Returns the loss and its terms.

  Args:
    objective: the kind of the training.
    weights: the weight of each term in the whole batch.
    model: the module.
    variables: the parameters in the form of `hooks.for_gradients`, and those of
      `hooks.second_use` or None.
    batch: arrays [B, ...], or a part of the batch.
    rng: the key of dropout.
  """
  outputs = _outputs(objective, model, variables, batch, rng)
  return _of_outputs(objective, weights, outputs, batch)


def _outputs(objective, model, variables, batch, rng):
  """Returns the outputs of a model in training; see `_loss`."""
  params, second = variables
  return objective.apply(
    model,
    model.hooks.for_apply(params),
    batch,
    second,
    deterministic=False,
    rngs={"dropout": rng},
  )


def _of_outputs(objective, weights, outputs, batch):
  """Returns the loss of outputs, and its terms."""
  terms = {
    name: losses.mean(total, weights[name])
    for name, (total, _) in objective.losses(outputs, batch).items()
  }
  return objective.total(terms), terms


def _of_batch(loss_of, model, params, batch, rng):
  """Returns loss, terms and gradients of a whole batch on one device."""
  compute = jax.value_and_grad(functools.partial(loss_of, model), has_aux=True)
  (loss, terms), (grads, _) = compute((params, None), batch, rng)
  return loss, terms, model.hooks.as_stored(grads)


def _with_cached_outputs(objective, model, count, variables, batch, rng):
  """Returns ((loss, terms), gradients) of a loss of a whole batch, in parts.

  The parts are computed twice. The first time gives the outputs of all rows,
  from which the loss and its gradient by the outputs follow; the second time
  carries that gradient on to the parameters. So only one part at a time is kept
  for the backward pass, and the gradient is that of the whole batch.

  Args:
    objective: the kind of the training.
    model: the module.
    count: the number of parts k; row i belongs to part i mod k.
    variables: see `_loss`.
    batch: arrays [B, ...].
    rng: the key from which each part derives its own.

  Source: Gao et al. 2021, arXiv:2101.06983.
  """
  outputs_of = functools.partial(_outputs, objective, model)

  def forward(_, i_and_rows):
    i, rows = i_and_rows
    return None, outputs_of(variables, rows, jax.random.fold_in(rng, i))

  parts = jax.tree.map(functools.partial(_part, count=count), batch)
  _, stacked = jax.lax.scan(forward, None, (jnp.arange(count), parts))
  outputs = jax.tree.map(_joined, stacked)
  weights = objective.weights(batch)
  loss_of = functools.partial(_of_outputs, objective, weights)
  compute = jax.value_and_grad(loss_of, has_aux=True)
  found, gradient = compute(outputs, batch)

  def backward(variables, rows_and_gradient, rng):
    rows, gradient = rows_and_gradient
    _, pull = jax.vjp(lambda x: outputs_of(x, rows, rng), variables)
    return pull(gradient)[0]

  summed = _sum_over_parts(
    backward, variables, (batch, gradient), rng, count=count
  )
  return found, summed


def _of_parts(compute, model, params, batch, rng, place):
  """Returns loss, terms and gradients of a batch in parts, on any mesh.

  A parameter that the model uses twice has two gradients, and each of them is
  summed over the devices once, after the last part.

  Args:
    compute: (variables, batch, rng) -> ((loss, terms), gradients); see `_loss`.
    model: the module.
    params: the parameters in the form of `hooks.for_gradients`.
    batch: arrays [B, ...].
    rng: the key of dropout.
    place: see `make_gradients`.
  """
  hooks = model.hooks
  variables = (params, hooks.second_use(params))
  (loss, terms), (grads, second) = compute(variables, batch, rng)
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
  places: optim.Places | None = None,
  average_decay: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns (state, batch) -> (state, metrics), to be jitted.

  Args:
    gradients: the function from `make_gradients`.
    optimizer: the optimizer of the parameters.
    schedule: step -> learning rate, for the log.
    skip_bad: whether a bad step leaves parameters and moments unchanged. It
      still counts as a step: the learning rate and the data go on.
    spike_factor: see `Guard.is_bad`.
    places: see `optim.places_of`; None means that all parameters are trained
      alike.
    average_decay: see `_averaged`; 0 = the state has no average.

  Returns:
    The step. Its metrics are float32 scalars: loss, each of its terms,
    grad_norm and learning_rate; and from the guard bad_step (0 or 1), mean_loss
    before the step, and skipped_steps so far.
  """

  def train_step(state, batch):
    loss, terms, grads, extra = gradients(state.params, batch, state.step)
    if places:
      grads = places.mask(grads, state.step)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.params, **extra
    )
    if places:
      updates = places.scale(updates, state.step)
    params = optax.apply_updates(state.params, updates)
    bad = state.guard.is_bad(loss, grad_norm, spike_factor)
    guard = state.guard.after(bad, loss)
    if skip_bad:

      def keep(old, new):  # counts of steps go on
        counts = jnp.issubdtype(old.dtype, jnp.integer)
        return new if counts else jnp.where(bad, old, new)

      params = jax.tree.map(keep, state.params, params)
      opt_state = jax.tree.map(keep, state.opt_state, opt_state)
    average = state.average
    if average_decay:
      count = state.step - state.guard.skipped
      average = _averaged(average, params, count, average_decay)
      if skip_bad:
        stays = bad & (count > 0)
        average = jax.tree.map(
          lambda old, new: jnp.where(stays, old, new), state.average, average
        )
    metrics = terms | {
      "loss": loss,
      "grad_norm": grad_norm,
      "learning_rate": schedule(state.step),
      "bad_step": bad.astype(jnp.float32),
      "mean_loss": losses.mean(state.guard.total, state.guard.weight),
      "skipped_steps": guard.skipped.astype(jnp.float32),
    }
    step = state.step + 1
    return TrainState(step, params, opt_state, guard, average), metrics

  return train_step


def _make_job_step(
  job: Job,
  optimizer: optax.GradientTransformationExtraArgs,
  schedule: optax.Schedule,
  rng: jax.Array,
  place: Any,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns the step of a job; the arguments are those of `jit_train_step`."""
  config = job.config
  gradients = make_gradients(
    job.model,
    job.objective,
    rng,
    config.optim.num_micro_batches,
    sparse_words=optim.OPTIMIZERS[config.optim.name].takes_rows,
    place=place.params,
  )
  return make_train_step(
    gradients,
    optimizer,
    schedule,
    skip_bad=config.train.on_bad_step == "skip",
    spike_factor=config.train.spike_factor,
    places=optim.places_of(config),
    average_decay=config.optim.get("average_decay", 0.0),
  )


def jit_train_step(
  job: Job,
  optimizer: optax.GradientTransformationExtraArgs,
  schedule: optax.Schedule,
  rng: jax.Array,
  place: Any,
) -> Any:
  """Returns the step as it is compiled, for training and for plans alike.

  Args:
    job: the model, its objective and the config.
    optimizer: the optimizer of the parameters.
    schedule: step -> learning rate.
    rng: the key of dropout.
    place: the shardings of the train state, from `sharding.place_state`.

  Returns:
    The jitted step, which donates the memory of the state that it is given.
  """
  mesh = place.step.mesh
  everywhere = jax.sharding.NamedSharding(mesh, sharding.P())
  return jax.jit(
    _make_job_step(job, optimizer, schedule, rng, place),
    donate_argnums=0,
    in_shardings=(place, sharding.batch_sharding(mesh)),
    out_shardings=(place, everywhere),
  )


def jit_members_step(
  job: Job,
  make_optimizer: Callable[[jax.Array], tuple[Any, optax.Schedule]],
  place: Any,
) -> Any:
  """Returns the step of K models, which differ in seed and learning rate.

  Args:
    job: the job of one of the models.
    make_optimizer: the highest learning rate, a scalar array -> the same as
      `optim.make_optimizer`.
    place: the shardings of the train state of one model, on a mesh with the
      axis "seed".

  Returns:
    The jitted step: (states, batches, keys of dropout [K], learning rates [K])
    -> (states, metrics), all stacked on axis 0. It donates the states' memory.
  """

  def train_step(state, batch, rng, learning_rate):
    optimizer, schedule = make_optimizer(learning_rate)
    return _make_job_step(job, optimizer, schedule, rng, place)(state, batch)

  mesh = place.step.mesh
  rows = sharding.batch_sharding(mesh)
  everywhere = jax.sharding.NamedSharding(mesh, sharding.P())
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
  model: nn.Module, objective: pretraining.Mlm
) -> Callable[[Any, Batch, jax.Array], kind.Sums]:
  """Returns (params, batch, unigram log-probabilities [V]) -> sums.

  The sums are (sum, weight) pairs over the global batch: the metrics of the
  objective, and those of the unigram baseline on the same positions.
  """

  def eval_step(params, batch, log_probs):
    outputs = objective.apply(model, params, batch, deterministic=True)
    unigram = pretraining.unigram_metrics(*objective.targets(batch), log_probs)
    return objective.metrics(outputs, batch) | unigram

  return eval_step


def make_predict_step(
  model: nn.Module, objective: kind.Kind
) -> Callable[[Any, Batch], tuple[Any, kind.Sums]]:
  """Returns (params, batch) -> (outputs, sums).

  The outputs are those of the model for every row, padding rows included, and
  without dropout. The sums map the name of a metric of the objective to (sum,
  weight), to be added over batches before one is divided by the other; {} if
  the batch has no labels. The function is not jitted.
  """

  def predict_step(params, batch):
    outputs = objective.apply(model, params, batch, deterministic=True)
    has_labels = "weight" in batch
    return outputs, objective.metrics(outputs, batch) if has_labels else {}

  return predict_step
