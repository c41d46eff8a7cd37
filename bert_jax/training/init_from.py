"""The weights that a training starts from, in the tree of its model."""

import logging
from typing import Any

import jax

from bert_jax.training import jobs

_log = logging.getLogger(__name__)


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
