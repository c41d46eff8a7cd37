"""The mean of the weights of several steps of a run.

Steps at the end of a training lie around a point that is better than each of
them (arXiv 1803.05407).
"""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

import numpy as np

from bert_jax.models import params as param_trees
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps
from bert_jax.weights import folders
from bert_jax.weights.pretrained import Pretrained
from bert_jax.weights.pretrained import WeightsError


def read(workdir: str, count: int) -> Pretrained:
  """Reads the mean of the newest steps of a run.

  Args:
    workdir: the folder of the run.
    count: how many steps to average, 1 or more.

  Raises:
    WeightsError: it is no run, or it keeps fewer steps.
  """
  folder = os.path.join(workdir, "checkpoints")
  steps = saved_steps.steps_in(folder) if runs.exists(workdir) else []
  if len(steps) < count:
    raise WeightsError(
      f"convert.average_last={count}: {workdir} keeps {len(steps)} steps "
      f"({', '.join(map(str, steps)) or 'none'}); give a smaller number, or "
      f"train with --config.checkpoint.keep={count}"
    )
  chosen = sorted(steps)[-count:]
  sums: dict[str, np.ndarray] = {}
  found = None
  for step in chosen:
    found = folders.read(os.path.join(folder, str(step)))
    for path, array in param_trees.flatten(found.params).items():
      sums[path] = sums.get(path, 0.0) + array.astype(np.float64)
  assert found is not None
  return dataclasses.replace(found, params=_mean(sums, found, count))


def _mean(sums: Mapping[str, Any], like: Pretrained, count: int) -> Any:
  """Returns sums divided by their number, in the dtypes of a model."""
  dtypes = {k: v.dtype for k, v in param_trees.flatten(like.params).items()}
  return param_trees.nest(
    {path: (sums[path] / count).astype(dtypes[path]) for path in sums}
  )
