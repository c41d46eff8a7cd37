"""Scores a model on a whole held-out split, whatever the batch and the mesh."""

import json
import logging
import os
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax import checkpoint
from bert_jax import jobs
from bert_jax import objectives
from bert_jax import run_log
from bert_jax import sharding

_log = logging.getLogger(__name__)


def evaluate(config: Any, workdir: str, output: str | None) -> dict[str, float]:
  """Evaluates the newest checkpoint of a workdir on its held-out split.

  Args:
    config: the run's configuration, evaluation settings changed at will.
    workdir: of the run.
    output: a JSON file to write; None = workdir/evaluation.json.

  Returns:
    eval/NAME of every metric.

  Raises:
    ValueError: no run, no checkpoint, or a config that does not fit it.
  """
  job, _ = jobs.open_job(config, workdir)
  config = job.config
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp,
                            config.mesh.tensor)  # fmt: skip
  # What a task was trained on need not be here to score another split.
  data_hash = None if config.objective == "task" else job.data_hash
  run = run_log.describe(config, data_hash, list(mesh.devices.flat))
  run_log.check_workdir(workdir, run, free_keys=("data.pack",))
  evaluator = job.evaluator(mesh)
  step, params = load_params(config, workdir, mesh, job.model, job.objective)
  with jax.set_mesh(mesh):
    values = evaluator(params)
  if jax.process_index() == 0:
    path = output or os.path.join(workdir, "evaluation.json")
    with open(path + ".tmp", "w", encoding="utf-8") as f:
      json.dump({"step": step} | values, f, indent=1)
      f.write("\n")
    os.replace(path + ".tmp", path)
    for name, value in values.items():
      print(f"{name:36} {value:.4f}")
    _log.info("wrote %s", path)
  with jax.set_mesh(mesh):
    for path in job.write_predictions(evaluator, params, workdir):
      _log.info("wrote %s", path)
  return values


def load_params(
  config: Any,
  workdir: str,
  mesh: jax.sharding.Mesh,
  model: nn.Module,
  objective: objectives.Objective,
  *,
  best: bool = False,
) -> tuple[int, Any]:
  """Reads the parameters of a run's checkpoint onto a mesh.

  Args:
    config: with `mesh.rules` and `data.seq_len`.
    workdir: of the run.
    mesh: where they go.
    model: whose parameters they are.
    objective: of the model.
    best: of the best checkpoint, not of the newest.

  Returns:
    The step and the parameters.
  """
  row = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  inputs = dict.fromkeys(objective.inputs, row)
  abstract = jax.eval_shape(
    lambda **kw: model.init(jax.random.key(0), **kw)["params"], **inputs
  )
  places = sharding.state_sharding(abstract, mesh, config.mesh.rules)
  wanted = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    places,
  )
  return checkpoint.restore_params(workdir, wanted, best=best)
