"""The weights that a training starts from, fitted into its model."""

import dataclasses
import logging
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.models import adapters
from bert_jax.models import families
from bert_jax.models import params as param_trees
from bert_jax.models.replaced_tokens import PARTS
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps
from bert_jax.runtime.settings import Config
from bert_jax.training.job import Job

_log = logging.getLogger(__name__)


def fit_weights(job: Job, pretrained: Any, params: Any) -> Any:
  """Fits the weights to start from into the tree of the model.

  Args:
    job: the job to train. The head of the weights is kept only if its kind and
      labels are those of the job.
    pretrained: weights.Pretrained, or None.
    params: the parameters of the model, or their shapes.

  Returns:
    The tree, with None for each parameter that starts fresh; None without
    `pretrained`.

  Raises:
    weights.WeightsError: a shape differs.
  """
  start = job.objective.start(
    None if pretrained is None else dict(pretrained.params)
  )
  if start is None:
    return None
  given = {k: v for k, v in start.items() if k in params or k not in PARTS}
  source = job.config.init_from or "the weights"
  if pretrained is not None:
    _take_head(job, pretrained, given)
  from bert_jax import weights  # slow to import, and not always needed

  tree, added, dropped = weights.fit(given, params, job.model.config)
  for what, names in (("start fresh", added), ("are not used", dropped)):
    names = tuple(name for name in names if not adapters.is_adapter(name))
    if names:
      _log.info("%s: these %s: %s", source, what, ", ".join(sorted(names)))
  return _without_top(tree, job.config.reinit_layers, source)


def _take_head(job: Job, pretrained: Any, given: dict[str, Any]) -> None:
  """Removes the head of another task, and adds what the task's head shares.

  Args:
    job: the job to train.
    pretrained: weights.Pretrained.
    given: its parameters, which are changed.
  """
  source = job.config.init_from
  head = {"kind": pretrained.kind, "labels": list(pretrained.labels)}
  if "task" in given and head != job.facts.get("task"):
    del given["task"]
    _log.info("%s: its head is for another task, so it is not used: %s",
              source, head)  # fmt: skip
  elif "task" in given:
    _log.info("%s: training continues its head, too: %s", source, head)
  if job.facts.get("task") and "task" not in given and "mlm" in given:
    shared = families.get_family(pretrained.family).shared_head
    if parts := {k: given["mlm"][k] for k in shared if k in given["mlm"]}:
      given["task"] = parts


@dataclasses.dataclass(frozen=True)
class LowerLayers:
  """Stacked layers of which the top ones start fresh.

  Attributes:
    value: [L, ...] the parameter of all layers.
    count: how many of the lowest are taken.
  """

  value: np.ndarray
  count: int


def _without_top(tree: Any, num_fresh: int, source: str) -> Any:
  """Returns a tree in which the top layers and the pooler start fresh.

  Args:
    tree: the parameters, from `weights.fit`.
    num_fresh: how many of the top layers start fresh; 0 leaves all as they are.
    source: the weights, for errors.

  Raises:
    ValueError: there are fewer layers.
  """
  if not num_fresh:
    return tree
  flat = param_trees.flatten(tree)
  count = param_trees.num_layers(flat) - num_fresh
  if count < 0:
    raise ValueError(
      f"reinit_layers={num_fresh}, but {source} has {count + num_fresh} layers "
      "with parameters of their own"
    )
  for path, value in flat.items():
    layer = re.match(r"encoder/layer_(\d+)/", path)
    is_fresh = path.startswith("encoder/pooler/")
    if is_fresh or (layer and int(layer[1]) >= count):
      flat[path] = None
    elif path.startswith("encoder/layers/") and value is not None:
      flat[path] = LowerLayers(value, count)
  _log.info(
    "%s: the top %d layers and the pooler start fresh", source, num_fresh
  )
  return param_trees.nest(flat)


def moments_step(config: Config) -> str:
  """Returns the folder of the saved step with the moments to start from.

  Raises:
    ValueError: init_from is no run of ours, or one with another optimizer.
  """
  source = config.init_from
  workdir = source and (saved_steps.run_of(source) or source)
  if not workdir or not runs.exists(workdir) or config.init_random:
    raise ValueError(
      f"init_moments=True with init_from={source!r} and init_random="
      f"{config.init_random}: moments are read from a run of this program; "
      "give init_from=RUN or RUN/checkpoints/STEP, or init_moments=False"
    )
  run = runs.read_run(workdir)
  if "converted_from" in run:
    raise ValueError(
      f"init_moments=True: {source} was converted, which keeps no moments; set "
      "it to False"
    )
  there = run["config"]["optim"]["name"]
  if there != config.optim.name:
    raise ValueError(
      f"init_moments=True: {source} was trained with optim.name={there}, whose "
      f"moments are not those of {config.optim.name}; use the same optimizer, "
      "or init_moments=False"
    )
  if workdir != source:
    return source
  return saved_steps.choose(workdir).path


def place_array(value: np.ndarray, place: jax.sharding.Sharding) -> jax.Array:
  """Returns a jax array; each process passes the whole host array."""
  return jax.make_array_from_callback(
    value.shape, place, lambda index: value[index]
  )


def place_params(fresh: Any, values: Any) -> Any:
  """Replaces fresh parameters by host arrays.

  Args:
    fresh: a tree of arrays, or of shapes with dtypes and shardings.
    values: a tree like it, with None for each parameter that stays as it is;
      None if all do. Each array is broadcast to the shape of the parameter.
  """
  if values is None:
    return fresh

  def place(old, value):
    if value is None:
      return old
    if isinstance(value, LowerLayers):
      whole = place(old, value.value)
      index = np.arange(len(value.value)).reshape(
        -1, *(1,) * (value.value.ndim - 1)
      )
      return jnp.where(index < value.count, whole, old)
    value = np.broadcast_to(value.astype(old.dtype), old.shape)
    return place_array(value, old.sharding)

  return jax.tree.map(place, fresh, values)
