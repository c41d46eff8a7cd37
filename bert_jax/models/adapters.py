"""LoRA: narrow matrices that are trained beside kernels that stay as they are.

The kernel [I, O] of a target has two adapters, lora_a [I, R] and lora_b [R, O],
and the model computes with

  kernel + alpha / R * lora_a @ lora_b

lora_b is 0 at first, so that training starts from the model as it is. The sum
is computed once a step, before the model; so every family, kind and attention
program can have adapters, and a model whose adapters are merged gives the same
numbers. It also means that a step takes about as long as one that trains all
parameters. What adapters save is the memory of moments and gradients.

Source: Hu et al., arXiv:2106.09685, section 4.1. Dropout of whole inputs of the
adapters, for all tokens alike: Lin et al., arXiv:2404.09610.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.models import params as param_trees
from bert_jax.models.hooks import PlainHooks
from bert_jax.runtime import settings

Tree = Any

NAMES = ("lora_a", "lora_b")
ALL = "all"


@dataclasses.dataclass(frozen=True)
class Target:
  """A kernel that may have adapters.

  Attributes:
    module: the end of the path of its module.
    num_inputs: how many of its axes are inputs; the axes before these belong to
      stacked layers, and the axes after them are outputs.
    num_outputs: how many of its axes are outputs.
  """

  module: str
  num_inputs: int = 1
  num_outputs: int = 1


# A word of optim.lora_targets -> its kernel.
TARGETS = {
  "query": Target("attention/query", num_outputs=2),
  "key": Target("attention/key", num_outputs=2),
  "value": Target("attention/value", num_outputs=2),
  "attention_out": Target("attention/out", num_inputs=2),
  "mlp_in": Target("mlp/in"),
  "mlp_gate": Target("mlp/gate"),
  "mlp_out": Target("mlp/out"),
}


@dataclasses.dataclass(frozen=True)
class Options:
  """The keys optim.lora_* of a config.

  Attributes:
    rank: R, from 1.
    alpha: the factor of the adapters, before it is divided by the rank.
    targets: words of `TARGETS`, or "all".
    dropout_rate: the share of inputs that a training step leaves out.
    trains_norms: whether the norms of the encoder are trained, too.
  """

  rank: int
  alpha: float = 16.0
  targets: tuple[str, ...] = ("query", "value")
  dropout_rate: float = 0.0
  trains_norms: bool = False

  @property
  def scale(self) -> float:
    """The factor of the product of a pair of adapters."""
    return self.alpha / self.rank

  def check(self) -> None:
    """Raises ValueError if a value is out of range."""
    known = (*TARGETS, ALL)
    unknown = [name for name in self.targets if name not in known]
    if unknown or not self.targets:
      raise ValueError(
        f"optim.lora_targets={','.join(self.targets)!r}; give one or more of "
        f"{', '.join(known)}"
      )
    if self.dropout_rate >= 1:
      raise ValueError(
        f"optim.lora_dropout_rate={self.dropout_rate} leaves nothing to "
        "train; it must be below 1, such as 0.1"
      )


def options_of(config: settings.Optim) -> Options | None:
  """Returns the options of a config; None if it trains without adapters.

  Args:
    config: the group `optim`; that of older runs lacks the keys.
  """
  if not config.get("lora_rank", 0):
    return None
  words = [w for x in config.lora_targets for w in x.split(",") if w]
  return Options(
    config.lora_rank,
    config.lora_alpha,
    tuple(dict.fromkeys(words)),
    config.lora_dropout_rate,
    config.lora_norms,
  )


def is_adapter(path: str) -> bool:
  """Returns whether a path is that of an adapter."""
  return path.rpartition("/")[2] in NAMES


def _target_of(path: str) -> str:
  """Returns the word for a kernel of the encoder; "" for other parameters."""
  module, _, name = path.rpartition("/")
  if not path.startswith("encoder/layer") or name != "kernel":
    return ""
  for word, target in TARGETS.items():
    if module.endswith(f"/{target.module}"):
      return word
  return ""


def _sides(word: str, shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
  """Returns the stacked axes, the inputs and the outputs of a kernel."""
  target, shape = TARGETS[word], tuple(shape)
  end = len(shape) - target.num_outputs
  start = end - target.num_inputs
  return shape[:start], shape[start:end], shape[end:]


def add(params: Tree, options: Options, rng: jax.Array) -> Tree:
  """Returns the parameters of a model with adapters beside their kernels.

  Args:
    params: the nested parameters.
    options: which kernels have adapters of which rank.
    rng: the key of the random values of lora_a, which are uniform within
      1 / sqrt(inputs), as in the code of the paper.

  Raises:
    ValueError: the model lacks a target, or the rank is too large for one.
  """
  flat = param_trees.flatten(params)
  words = {path: word for path in flat if (word := _target_of(path))}
  wanted = tuple(words.values()) if ALL in options.targets else options.targets
  if lacking := [w for w in wanted if w not in words.values()]:
    have = ", ".join(w for w in TARGETS if w in words.values())
    raise ValueError(
      f"optim.lora_targets has {', '.join(lacking)}, which this model lacks; "
      f"it has {have}"
    )
  chosen = [path for path in sorted(words) if words[path] in wanted]
  for number, path in enumerate(chosen):
    kernel = flat[path]
    stacked, inputs, outputs = _sides(words[path], kernel.shape)
    sizes = math.prod(inputs), math.prod(outputs)
    if options.rank > min(sizes):
      raise ValueError(
        f"optim.lora_rank={options.rank} is more than the smaller side of "
        f"{path}, a matrix of {sizes[0]} x {sizes[1]}; give a smaller rank, or "
        "optim.lora_rank=0 to train all parameters"
      )
    bound = 1 / math.sqrt(sizes[0])
    module = path.rpartition("/")[0]
    flat[f"{module}/lora_a"] = jax.random.uniform(
      jax.random.fold_in(rng, number),
      (*stacked, sizes[0], options.rank),
      kernel.dtype,
      -bound,
      bound,
    )
    flat[f"{module}/lora_b"] = jnp.zeros(
      (*stacked, options.rank, sizes[1]), kernel.dtype
    )
  return param_trees.nest(flat)


def _merge(
  flat: Mapping[str, Any],
  scale: float | np.floating,
  multiply: Callable[[Any, Any], Any],
  keep: Callable[[str, Any], Any] = lambda path, a: a,
) -> dict[str, Any]:
  """Returns flat parameters without adapters, which are added to kernels.

  Args:
    flat: path -> array.
    scale: the factor of the product of a pair.
    multiply: the product of two stacks of matrices in float32.
    keep: the path and the value of a lora_a -> the value to use.
  """
  merged = {k: x for k, x in flat.items() if not is_adapter(k)}
  for path in flat:
    module, _, name = path.rpartition("/")
    if name != "lora_a":
      continue
    kernel = merged[f"{module}/kernel"]
    a, b = (
      x.astype(np.float32)
      for x in (keep(path, flat[path]), flat[f"{module}/lora_b"])
    )
    change = scale * multiply(a, b).reshape(kernel.shape)
    total = kernel.astype(np.float32) + change
    merged[f"{module}/kernel"] = total.astype(kernel.dtype)
  return merged


def merge_flat(flat: Mapping[str, Any], scale: float) -> dict[str, Any]:
  """Merges adapters on the host, for readers of saved parameters.

  Args:
    flat: path -> numpy array, layers stacked or not.
    scale: `Options.scale`.
  """
  return _merge(flat, np.float32(scale), np.matmul)


@dataclasses.dataclass(frozen=True)
class Adapted:
  """A model with adapters; training and evaluation use it like the model.

  Attributes:
    inner: the model without adapters.
    options: its adapters.
  """

  inner: Any
  options: Options

  @property
  def config(self) -> Any:
    """The config of the model."""
    return self.inner.config

  @property
  def hooks(self) -> PlainHooks:
    """How a training step handles the parameters; see models/hooks.py."""
    return PlainHooks()

  def is_trained(self, path: str) -> bool:
    """Returns whether a parameter is trained: adapters, head and pooler.

    The pooler stands between the encoder and the head of a task, and is fresh
    if the weights have none.
    """
    if is_adapter(path) or not path.startswith("encoder/"):
      return True
    if path.startswith("encoder/pooler/"):
      return True
    is_norm = "norm" in path.split("/")[-2]
    return is_norm and self.options.trains_norms

  def init(self, rng: jax.Array, *args: Any, **kwargs: Any) -> Tree:
    """Returns fresh parameters with adapters, as a module does."""
    params = self.inner.init(rng, *args, **kwargs)["params"]
    own = jax.random.fold_in(rng, _STREAM)
    return {"params": add(params, self.options, own)}

  def apply(self, variables: Tree, *args: Any, **kwargs: Any) -> Any:
    """Runs the model with merged adapters; see `nn.Module.apply`."""
    deterministic = kwargs.get("deterministic", True)
    rngs = kwargs.get("rngs") or {}
    key = None if deterministic else rngs.get("dropout")
    params = self.merge(variables["params"], key)
    hooks = self.inner.hooks
    # The form in which the gradients of a step are computed fastest.
    params = hooks.for_apply(hooks.for_gradients(params))
    return self.inner.apply(variables | {"params": params}, *args, **kwargs)

  def merge(self, params: Tree, rng: jax.Array | None = None) -> Tree:
    """Returns the parameters of the model without adapters.

    Only those that are trained have a gradient.

    Args:
      params: parameters from `init`.
      rng: the key of dropout; None = without dropout.
    """
    rate = self.options.dropout_rate
    flat = {
      path: x if self.is_trained(path) else jax.lax.stop_gradient(x)
      for path, x in param_trees.flatten(params).items()
    }
    numbers = {p: i for i, p in enumerate(sorted(flat)) if is_adapter(p)}

    def keep(path: str, a: jax.Array) -> jax.Array:
      if rng is None or not rate:
        return a
      key = jax.random.fold_in(rng, _STREAM + numbers[path])
      is_kept = jax.random.bernoulli(key, 1 - rate, (*a.shape[:-1], 1))
      return jnp.where(is_kept, a / (1 - rate), 0.0).astype(a.dtype)

    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
      return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    return param_trees.nest(_merge(flat, self.options.scale, multiply, keep))


# Folded into keys of the model, so that adapters have random numbers of their
# own.
_STREAM = 0x10_0A
