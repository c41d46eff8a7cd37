"""The weights that a training starts from, fitted into its model."""

import logging
from typing import Any

import jax
import numpy as np

from bert_jax.models import families
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
    if names:
      _log.info("%s: these %s: %s", source, what, ", ".join(sorted(names)))
  return tree


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
    value = np.broadcast_to(value.astype(old.dtype), old.shape)
    return place_array(value, old.sharding)

  return jax.tree.map(place, fresh, values)
