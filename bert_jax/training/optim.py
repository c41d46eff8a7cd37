"""The optimizers and the learning-rate schedules.

An optimizer is one optax chain:

  clip by the global norm -> the transformations of its row -> * -learning rate

The transformations of a row find a direction and add weight decay to it. All
arithmetic and all moments are float32. To add an optimizer or a schedule, add a
row to `OPTIMIZERS` or to `SCHEDULES`.
"""

from collections.abc import Callable
import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.runtime import settings

Tree = Any

# Biases, that of the vocabulary included, and both parameters of a layer norm.
_NO_DECAY = re.compile(r"norm|(^|/)bias$")


def make_optimizer(
  config: settings.Optim,
  total_steps: int,
  learning_rate: jax.Array | None = None,
) -> tuple[optax.GradientTransformationExtraArgs, optax.Schedule]:
  """Returns the optimizer of `config.optim` and its learning rate.

  `OPTIMIZERS` and `SCHEDULES` say what each name means. Weight decay is added
  to the direction before the learning rate. It applies to kernels and
  embeddings; see `decay_mask`.

  Differs from BERT: this clips the mean gradient of the global batch. The
  original clips the gradient of each replica, and on TPU sums the replicas
  (optimization.py:71-74).

  Args:
    config: The group `optim`, whose numbers `settings.check` has checked.
    total_steps: The number of steps of the run, where the schedule ends.
    learning_rate: The highest learning rate, a scalar array; None means that of
      the config.

  Raises:
    ValueError: If a name is unknown, or numbers do not fit each other.

  Example:
    >>> import types
    >>> config = types.SimpleNamespace(
    ...   name="bert_adam",
    ...   learning_rate=1e-4,
    ...   schedule="bert",
    ...   warmup_rate=0.1,
    ...   cooldown_rate=0.0,
    ...   weight_decay=0.01,
    ...   b1=0.9,
    ...   b2=0.999,
    ...   eps=1e-6,
    ...   clip_norm=1.0,
    ... )
    >>> tx, schedule = make_optimizer(config, total_steps=100)
    >>> opt_state = tx.init({"kernel": jnp.ones([2, 3])})
    >>> f"{schedule(5):.1e}"
    '5.0e-05'

  Source: google-research/bert optimization.py:25-151.
  """
  _check_config(config)
  schedule = make_schedule(
    config.schedule,
    config.learning_rate if learning_rate is None else learning_rate,
    int(config.warmup_rate * total_steps),
    total_steps,
    int(config.cooldown_rate * total_steps),
  )
  steps = []
  if config.clip_norm:
    steps.append(clip_by_global_norm(config.clip_norm))
  steps += OPTIMIZERS[config.name].make_steps(config)
  steps.append(optax.scale_by_learning_rate(schedule))
  return _in_float32(optax.chain(*steps)), schedule


def freeze(
  optimizer: optax.GradientTransformationExtraArgs,
  is_trained: Callable[[str], bool] | None,
) -> optax.GradientTransformationExtraArgs:
  """Returns an optimizer that leaves some parameters as they are.

  Args:
    optimizer: that of the other parameters.
    is_trained: the path of a parameter -> whether it is trained. The others
      have no moments. None means that all are trained.
  """
  if is_trained is None:
    return optimizer

  def labels(params: Tree) -> Tree:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: "trained" if is_trained(_name(path)) else "frozen", params
    )

  return optax.partition(
    {"trained": optimizer, "frozen": optax.set_to_zero()}, labels
  )


def at_first_step(opt_state: Tree) -> Tree:
  """Returns the state of an optimizer with its schedule at the first step.

  The moments stay, and so do the counts that correct their bias.
  """

  def restart(state: Any) -> Any:
    if isinstance(state, optax.ScaleByScheduleState):
      return jax.tree.map(lambda count: count * 0, state)
    return state

  return jax.tree.map(
    restart,
    opt_state,
    is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState),
  )


def make_schedule(
  name: str,
  learning_rate: float | jax.Array,
  warmup_steps: int,
  total_steps: int,
  cooldown_steps: int = 0,
) -> optax.Schedule:
  """Returns the learning rate as a function of the number of steps taken.

  Every schedule rises linearly from 0 at the first step, towards the peak at
  `warmup_steps`. From there on, its row of `SCHEDULES` decides.

  Args:
    name: A key of `SCHEDULES`.
    learning_rate: The peak.
    warmup_steps: The length of the rise; 0 means no warm-up.
    total_steps: The step where the fall ends; the rate stays constant after it.
    cooldown_steps: The length of the fall of a trapezoid.
  """
  decay = SCHEDULES[name](warmup_steps, total_steps, cooldown_steps)

  def schedule(count: jax.typing.ArrayLike) -> jax.Array:
    step = jnp.minimum(jnp.asarray(count, jnp.float32), total_steps)
    warmup = step / max(warmup_steps, 1)
    return learning_rate * jnp.where(step < warmup_steps, warmup, decay(step))

  return schedule


def clip_by_global_norm(clip_norm: float) -> optax.GradientTransformation:
  """Scales a gradient down to a norm over all parameters, if it is larger.

  optax.clip_by_global_norm selects over each array, which keeps XLA from fusing
  it into the update. On a CPU that costs a copy of the gradient and 1.7 times
  the time (30M parameters, two cores).

  Args:
    clip_norm: The largest norm that is left as it is, above 0.
  """

  def update(
    grads: Tree, state: optax.EmptyState, params: Tree = None
  ) -> tuple[Tree, optax.EmptyState]:
    del params
    scale = jnp.minimum(1.0, clip_norm / optax.tree.norm(grads))
    return jax.tree.map(lambda g: g * scale, grads), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


class ScaleByBertAdamState(NamedTuple):
  """The moving averages of the gradient and of its square."""

  mu: Tree
  nu: Tree


def scale_by_adam(
  b1: float, b2: float, eps: float, corrects_bias: bool
) -> optax.GradientTransformationExtraArgs:
  """Returns Adam's direction mu / (sqrt(nu) + eps).

  Both averages start at 0. Without bias correction, the first directions are
  therefore (1 - b1) / sqrt(1 - b2), about 3.2, times as large as with it.

  The update also takes `rows`, [N] int32. A gradient [N, D] of a parameter
  [V, D] is then the gradient of these rows, and that of all other rows is 0:
  the numbers are the same, without an array of mostly zeros. If `rows` names a
  row twice, one place has all of its gradient and the other has 0.

  Args:
    b1: The decay rate of the average of gradients.
    b2: The decay rate of the average of their squares.
    eps: The number that is added to the root.
    corrects_bias: Whether to divide the averages by the values that they would
      have for gradients of 1.

  Source: google-research/bert optimization.py:119-133; arXiv 1412.6980.
  """

  def init(params: Tree) -> Any:
    mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    if not corrects_bias:
      return ScaleByBertAdamState(mu, nu)
    return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

  def update(
    grads: Tree, state: Any, params: Tree = None, *, rows: Any = None, **_: Any
  ) -> tuple[Tree, Any]:
    del params

    def average(rate: float, old: jax.Array, new: jax.Array) -> jax.Array:
      if new.shape == old.shape:
        return rate * old + (1 - rate) * new
      return (rate * old).at[rows].add((1 - rate) * new)

    mu = jax.tree.map(lambda m, g: average(b1, m, g), state.mu, grads)
    nu = jax.tree.map(lambda v, g: average(b2, v, g * g), state.nu, grads)
    if not corrects_bias:
      updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
      return updates, ScaleByBertAdamState(mu, nu)
    count = optax.safe_increment(state.count)
    c1, c2 = (1 - jnp.float32(b) ** count for b in (b1, b2))
    updates = jax.tree.map(
      lambda m, v: (m / c1) / (jnp.sqrt(v / c2) + eps), mu, nu
    )
    return updates, optax.ScaleByAdamState(count, mu, nu)

  return optax.GradientTransformationExtraArgs(init, update)


def scale_by_trust_ratio() -> optax.GradientTransformation:
  """Scales the update of each matrix to the norm of its parameter.

  The ratio |parameter| / |update| is 1 if one of the two is 0, and the updates
  of layer norms and biases stay as they are. Scanned layers, those under
  "layers", are stacked on axis 0 and have a ratio each, so that scanned and
  unrolled models train alike.

  Source: arXiv 1904.00962, algorithm 2; layer norms and biases have no ratio in
  the MLPerf reference either.
  """

  def update(
    updates: Tree, state: optax.EmptyState, params: Tree = None
  ) -> tuple[Tree, optax.EmptyState]:
    return jax.tree_util.tree_map_with_path(scale, updates, params), state

  def scale(path: Any, update: jax.Array, param: jax.Array) -> jax.Array:
    name = _name(path)
    if _NO_DECAY.search(name):
      return update
    axes = _own_axes(name, param.ndim)
    param_norm = jnp.sqrt(jnp.sum(param**2, axis=axes, keepdims=True))
    update_norm = jnp.sqrt(jnp.sum(update**2, axis=axes, keepdims=True))
    usable = (param_norm > 0) & (update_norm > 0)
    ratio = param_norm / jnp.where(usable, update_norm, 1.0)
    return update * jnp.where(usable, ratio, 1.0)

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def scale_by_stable_adam(
  b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformationExtraArgs:
  """Returns a transformation to AdamW updates that are scaled down if large.

  The updates point along the gradient: `optax.scale_by_learning_rate`, which
  follows in the chain, turns the sign.

  The update of an array is too large if its squared gradients g^2 grow faster
  than their moving average v. With RMS = sqrt(mean(g^2 / max(v, eps^2))) over
  the array, where v has bias correction, the sum of direction and weight decay
  is divided by max(1, RMS). The parameters of scanned layers, whose path has
  the part "layers", are stacked on axis 0; each layer has an RMS of its own.

  Args:
    b1: The decay rate of the average of gradients.
    b2: The decay rate of the average of their squares.
    eps: The number that is added to the root.
    weight_decay: The factor of the parameter; see `decay_mask`.

  Source: arXiv 2304.13013, algorithm 2.
  """
  adam = scale_by_adam(b1, b2, eps, corrects_bias=True)
  decay = optax.add_decayed_weights(weight_decay, decay_mask)

  def update(
    grads: Tree, state: Any, params: Tree = None, **_: Any
  ) -> tuple[Tree, Any]:
    updates, state = adam.update(grads, state, params)
    updates, _ = decay.update(updates, decay.init(params), params)
    correction = 1 - jnp.float32(b2) ** state.count

    def scale(path: Any, update: jax.Array, grad: jax.Array, nu: jax.Array):
      squares = grad**2 / jnp.maximum(nu / correction, eps**2)
      axes = _own_axes(_name(path), grad.ndim)
      rms = jnp.sqrt(jnp.mean(squares, axis=axes, keepdims=True))
      return update / jnp.maximum(1.0, rms)

    scaled = jax.tree_util.tree_map_with_path(scale, updates, grads, state.nu)
    return scaled, state

  return optax.GradientTransformationExtraArgs(adam.init, update)


def _own_axes(name: str, ndim: int) -> tuple[int, ...]:
  """Returns the axes of an array within a layer; scanned layers have axis 0."""
  return tuple(range(1 if "layers" in name.split("/") else 0, ndim))


def muon(
  b1: float, b2: float, eps: float
) -> optax.GradientTransformationExtraArgs:
  """Returns Muon's direction for the matrices, and AdamW's for the rest.

  The moving average of the gradient of a kernel, with Nesterov's step, is
  brought close to an orthogonal matrix. It is then scaled to a root mean square
  of 0.2, about that of AdamW's direction, so that learning rates and weight
  decay carry over. Query, key and value are matrices [D, N * H], the output of
  attention [N * H, D], and scanned layers have a matrix each. Embeddings,
  biases, layer norms and the outputs of a task follow AdamW, also with the step
  of Nesterov.

  Args:
    b1: The decay rate of the average of gradients.
    b2: The decay rate of the average of their squares, for AdamW.
    eps: The number that is added to a denominator.

  Source: arXiv 2502.16982, section 2.2; optax.contrib.muon.
  """
  inner = optax.contrib.muon(
    -1.0,  # the direction itself: later steps apply the learning rate
    beta=b1,
    eps=eps,
    adam_b1=b1,
    adam_b2=b2,
    ns_coeffs=_NEWTON_SCHULZ,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=lambda params: (
      jax.tree_util.tree_map_with_path(_matrix_axes, params)
    ),
  )

  def put(coefficients: Any, state: Any) -> Any:
    """Puts the coefficients of Newton and Schulz into the state, or None.

    The state that is kept holds no constants.
    """
    return jax.tree.map(
      lambda s: s._replace(ns_coeffs=coefficients) if _is_muon(s) else s,
      state,
      is_leaf=_is_muon,
    )

  def update(
    grads: Tree, state: Any, params: Tree = None, **_: Any
  ) -> tuple[Tree, Any]:
    state = put(jnp.asarray(_NEWTON_SCHULZ), state)
    updates, state = inner.update(grads, state, params)
    return updates, put(None, state)

  return optax.GradientTransformationExtraArgs(
    lambda params: put(None, inner.init(params)), update
  )


# The coefficients of one iteration: of X, (X X^T) X and (X X^T)^2 X.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def _is_muon(state: Any) -> bool:
  return isinstance(state, optax.contrib.MuonState)


_MATRIX = re.compile(r"(?<!^task)(?<!^nsp)(?<!^rtd)/kernel$")


def _matrix_axes(
  path: Any, param: jax.Array
) -> optax.contrib.MuonDimensionNumbers | None:
  """Returns the axes of a matrix's rows and columns; None for another array."""
  name = _name(path)
  axes = _own_axes(name, param.ndim)
  if not _MATRIX.search(name) or len(axes) < 2:
    return None
  rows = len(axes) - 1 if name.endswith("/out/kernel") else 1
  return optax.contrib.MuonDimensionNumbers(axes[:rows], axes[rows:])


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """A row of `OPTIMIZERS`.

  Attributes:
    make_steps: config.optim -> the transformations from the clipped gradient to
      the direction with weight decay.
    takes_rows: whether the update takes `rows`, see `scale_by_adam`. The step
      may then pass the gradient of the word table for the words of a batch.
  """

  make_steps: Callable[[Any], list[Any]]
  takes_rows: bool


def _adam_steps(config: settings.Optim, corrects_bias: bool) -> list[Any]:
  return [
    scale_by_adam(config.b1, config.b2, config.eps, corrects_bias),
    optax.add_decayed_weights(config.weight_decay, decay_mask),
  ]


OPTIMIZERS = {
  # Adam without bias correction, as in the original code.
  "bert_adam": Optimizer(lambda c: _adam_steps(c, False), takes_rows=True),
  # Adam with bias correction (arXiv 1711.05101).
  "adamw": Optimizer(lambda c: _adam_steps(c, True), takes_rows=True),
  # AdamW for large batches; the update of each matrix is scaled to the norm of
  # the parameter (arXiv 1904.00962).
  "lamb": Optimizer(
    lambda c: [*_adam_steps(c, True), scale_by_trust_ratio()], takes_rows=True
  ),
  # AdamW with the update of each array clipped by its root mean square.
  "stable_adamw": Optimizer(
    lambda c: [scale_by_stable_adam(c.b1, c.b2, c.eps, c.weight_decay)],
    takes_rows=False,
  ),
  # The sign of a moving average (arXiv 2302.06675), without eps.
  "lion": Optimizer(
    lambda c: [
      optax.scale_by_lion(c.b1, c.b2),
      optax.add_decayed_weights(c.weight_decay, decay_mask),
    ],
    takes_rows=False,
  ),
  # Orthogonalised momentum for the matrices (arXiv 2502.16982).
  "muon": Optimizer(
    lambda c: [
      muon(c.b1, c.b2, c.eps),
      optax.add_decayed_weights(c.weight_decay, decay_mask),
    ],
    takes_rows=False,
  ),
}

# Name -> a function (steps of the warm-up, of the whole run, of the cool-down),
# which returns a function: a step after the warm-up -> a share of the peak.
SCHEDULES: dict[str, Callable[..., Callable[[jax.Array], jax.Array]]] = {
  # A line that falls from the peak *at step 0* to 0 at the last step, so that
  # the rate drops by 10% at the end of a warm-up of 10% of the steps. Source:
  # google-research/bert optimization.py:29-54.
  "bert": lambda warmup, total, cooldown: lambda step: 1 - step / total,
  # A line from the peak at the end of the warm-up to 0 at the last step.
  "linear": lambda warmup, total, cooldown: (
    lambda step: (total - step) / max(total - warmup, 1)
  ),
  # Half a period of a cosine between the same two points.
  "cosine": lambda warmup, total, cooldown: (
    lambda step: (
      0.5 + 0.5 * jnp.cos(jnp.pi * (step - warmup) / max(total - warmup, 1))
    )
  ),
  # The peak throughout.
  "constant": lambda warmup, total, cooldown: jnp.ones_like,
  # The peak until the cool-down, then the share 1 - sqrt(x) of it, where x is
  # the part of the cool-down that is over (arXiv 2405.18392, section 3).
  "trapezoid": lambda warmup, total, cooldown: (
    lambda step: (
      1 - jnp.sqrt(jnp.maximum(step - (total - cooldown), 0) / max(cooldown, 1))
    )
  ),
}


@dataclasses.dataclass(frozen=True)
class Places:
  """What the place of a parameter in the model means for its training.

  The depth of the embeddings is 0, that of layer i is i + 1, and that of all
  behind the last layer is L + 1. A step of the optimizer is multiplied by
  layer_decay^(L + 1 - depth), and outside of the encoder by head_rate.

  Attributes:
    num_layers: L, the layers that have parameters of their own.
    config: the group `optim`.

  Source of the layer-wise rates: Clark et al., arXiv:2003.10555, appendix A; of
  the unfreezing: Howard and Ruder, arXiv:1801.06146, section 3.3.
  """

  num_layers: int
  config: settings.Optim

  @property
  def is_default(self) -> bool:
    """Whether all parameters are trained alike."""
    return not self._freezes and (
      self.config.layer_decay == self.config.head_rate == 1
    )

  @property
  def _freezes(self) -> bool:
    c = self.config
    return bool(c.frozen_layers or c.frozen_embeddings or c.unfreeze_steps)

  def check(self) -> None:
    """Raises ValueError if there are fewer layers than are to be frozen."""
    if self.config.frozen_layers > self.num_layers:
      raise ValueError(
        f"optim.frozen_layers={self.config.frozen_layers}, but the model has "
        f"{self.num_layers} layers with parameters of their own"
      )

  def mask(self, grads: Tree, step: jax.Array) -> Tree:
    """Returns the gradients with 0 for what is not trained at a step."""
    if not self._freezes:
      return grads

    def keep(path: Any, grad: jax.Array) -> jax.Array:
      if (is_trained := self._is_trained(_name(path), step)) is None:
        return grad
      if is_trained is False:  # XLA then leaves the whole gradient out
        return jnp.zeros_like(grad)
      return jnp.where(_like(is_trained, grad), grad, jnp.zeros_like(grad))

    return jax.tree_util.tree_map_with_path(keep, grads)

  def scale(self, updates: Tree, step: jax.Array) -> Tree:
    """Returns the updates of a step of the optimizer, as they are applied."""

    def scaled(path: Any, update: jax.Array) -> jax.Array:
      name = _name(path)
      rate = self._rate(name)
      is_trained = self._is_trained(name, step)
      if is_trained is not None:
        rate = jnp.where(is_trained, rate, 0.0)
      return update * _like(rate, update).astype(update.dtype)

    return jax.tree_util.tree_map_with_path(scaled, updates)

  def _depth(self, name: str) -> Any:
    """Returns the depth of a parameter; [L] of stacked layers."""
    parts = name.split("/")
    if "layers" in parts:
      return np.arange(1, self.num_layers + 1)
    if match := _LAYER.search(name):
      return int(match[1]) + 1
    is_behind = parts[:2] in (["encoder", "pooler"], ["encoder", "final_norm"])
    return self.num_layers + 1 if is_behind or parts[0] != "encoder" else 0

  def _rate(self, name: str) -> Any:
    c = self.config
    rate = c.layer_decay ** (self.num_layers + 1 - self._depth(name))
    return rate if name.startswith("encoder/") else rate * c.head_rate

  def _is_trained(self, name: str, step: jax.Array) -> Any:
    """Returns whether a parameter is trained; None = always, False = never."""
    c = self.config
    depth = self._depth(name)
    never = (depth >= 1) & (depth <= c.frozen_layers)
    never |= (depth == 0) & c.frozen_embeddings
    since = c.unfreeze_steps * (self.num_layers + 1 - depth)
    if np.all(never):
      return False
    if not np.any(never) and not np.any(since):
      return None
    return jnp.logical_and(~np.asarray(never), step >= since)


_LAYER = re.compile(r"(?:^|/)layer_(\d+)/")


def places_of(config: settings.Config) -> Places | None:
  """Returns how training depends on the place of parameters; None = not at all.

  Args:
    config: the whole configuration, with the shape of the model.

  Raises:
    ValueError: there are fewer layers than are to be frozen.
  """
  model = config.model
  places = Places(model.get("layer_groups") or model.num_layers, config.optim)
  places.check()
  return None if places.is_default else places


def _like(value: Any, array: jax.Array) -> jax.Array:
  """Returns a number, or one a stacked layer, in a shape that broadcasts."""
  value = jnp.asarray(value)
  return value.reshape(value.shape + (1,) * (array.ndim - value.ndim))


def decay_mask(params: Tree) -> Tree:
  """Returns a tree of bools: whether weight decay applies to a parameter.

  It applies to kernels and embeddings, but not to biases and layer norms.

  Example:
    >>> decay_mask({"mlp": {"kernel": 0, "bias": 0}, "norm": {"scale": 0}})
    {'mlp': {'bias': False, 'kernel': True}, 'norm': {'scale': False}}

  Source: google-research/bert optimization.py:64, 178-186.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: not _NO_DECAY.search(_name(path)), params
  )


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _in_float32(
  inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
  """Keeps moments and updates in float32, whatever the parameters' dtype."""

  def cast(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

  def update(
    grads: Tree, state: Tree, params: Tree = None, **extra: Any
  ) -> tuple[Tree, Tree]:
    return inner.update(cast(grads), state, cast(params), **extra)

  return optax.GradientTransformationExtraArgs(
    lambda p: inner.init(cast(p)), update
  )


def _check_config(config: settings.Optim) -> None:
  """Raises ValueError for what `settings.check`, key by key, lets through."""
  for key, choices in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
    if getattr(config, key) not in choices:
      raise ValueError(
        f"optim.{key}={getattr(config, key)!r} is unknown; use one of"
        f" {', '.join(choices)}"
      )
  for key, is_right, wanted in (
    ("b1", config.b1 < 1, "below 1; BERT uses 0.9"),
    ("b2", config.b2 < 1, "below 1; BERT uses 0.999"),
    ("eps", config.eps > 0, "above 0; BERT uses 1e-6"),
  ):
    if not is_right:
      raise ValueError(
        f"optim.{key}={getattr(config, key)}; it must be {wanted}"
      )
  if (config.schedule == "trapezoid") != (config.cooldown_rate > 0):
    raise ValueError(
      f"optim.cooldown_rate={config.cooldown_rate} with optim.schedule="
      f"{config.schedule}; the schedule trapezoid needs a cool-down, such as "
      "0.1, and the others have none: set it to 0.0"
    )
  if config.cooldown_rate > 1 - config.warmup_rate:
    raise ValueError(
      f"optim.warmup_rate={config.warmup_rate} and optim.cooldown_rate="
      f"{config.cooldown_rate} are shares of one run; lower them to at most 1 "
      "together"
    )
