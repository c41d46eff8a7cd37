"""Scores the predictions of all folds of a cross-validation together.

  python -m experiments.folds.pool runs/folds

The argument is the workdir of a sweep by experiments/folds/sweep.py. Every
model predicts the part that it was not trained on.
"""

from collections.abc import Sequence
import pathlib
import sys
from typing import Any

import jax
import ml_collections

from bert_jax.runtime import checkpoint
from bert_jax.runtime import runs
from bert_jax.runtime import sharding
from bert_jax.training import evaluate
from bert_jax.training import jobs


def pool(workdirs: Sequence[str]) -> dict[str, float]:
  """Returns the scores of the parts that runs evaluate, as one split.

  Args:
    workdirs: the workdirs of the runs, one for each fold.

  Raises:
    ValueError: a fold is missing or given twice.
  """
  predictions: list[Any] = []
  examples: list[Any] = []
  found = []
  for workdir in workdirs:
    config: Any = ml_collections.ConfigDict(runs.read_run(workdir)["config"])
    found.append((config.task.fold, config.task.num_folds))
    job: Any = jobs.open_job(config, workdir)[0]
    axes = job.config.mesh
    mesh = sharding.make_mesh(axes.data, axes.fsdp, axes.tensor)
    wanted = evaluate.wanted_params(job, mesh)
    _, params = checkpoint.restore_params(workdir, wanted, "")
    split = job.split(job.eval_splits[0])
    with jax.set_mesh(mesh):
      predictions += job.evaluator(mesh).predict(params, split)
    examples += split.examples
  if sorted(found) != [(i, len(found)) for i in range(len(found))]:
    raise ValueError(f"the folds are {sorted(found)}; give each fold once")
  return job.objective.score(split.task, predictions, examples)


def main(folder: str) -> None:
  """Prints the scores of the runs below a folder."""
  paths = sorted(pathlib.Path(folder).glob("*/run.json"))
  if not paths:
    raise ValueError(f"{folder} holds no runs")
  for name, value in pool([str(path.parent) for path in paths]).items():
    print(f"{name:36} {value:.4f}")


if __name__ == "__main__":
  main(sys.argv[1])
