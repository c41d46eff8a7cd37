"""Computes one step of a run again, and shows its batch and its gradients.

The run is not changed. The state before the step is that of the newest
checkpoint before it, from which the steps in between are computed again.
"""

import contextlib
import logging
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data import batching
from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import peers
from bert_jax.runtime import resume
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.runtime import sharding
from bert_jax.runtime import watchdog
from bert_jax.runtime.settings import Config
from bert_jax.training import meeting
from bert_jax.training import session
from bert_jax.training import steps

_log = logging.getLogger(__name__)

_SHOWN = 5  # the number of rows, and of parameters, that are printed


class ReplayError(errors.UserError):
  """The run or the step to compute again does not exist."""


def replay(config: Config, workdir: str, step: int, output: str | None) -> dict:
  """Computes a step of a run again, and writes its parts to a file.

  Args:
    config: the configuration of the run.
    workdir: the folder of the run.
    step: the step to compute again; the first step is 1.
    output: the JSON file to write; None means workdir/replay-STEP.json.

  Returns:
    The content of the file, in which NaN and infinity are text:
    `metrics`: the metrics of the step.
    `examples`: the examples of its batch.
    `rows`, highest loss first: the loss of each row without dropout, its
    examples (null for tasks, whose rows hold several) and its text.
    `parameters`, highest gradient first: the norm of each parameter and of its
    gradient.

  Raises:
    ValueError: the run has no such step, or the workdir holds a run of another
      config.
  """
  meeting.meet("replay", config, [workdir], step=step)
  if not runs.exists(workdir):
    raise ReplayError(f"{workdir} holds no run (no run.json) to replay")
  if output and jax.process_index() == 0:
    files.check_writable(output)
  changed = resume.changes_after(runs.read_run(workdir), step)
  settings.set_keys(config, changed)
  run = session.open_session(config, workdir, allowed=changed)
  if not 1 <= step <= run.total_steps:
    raise ReplayError(
      f"--replay_step={step}: the run has the steps 1 to {run.total_steps}"
    )
  stall = config.train.get("max_stall_secs", 0)  # older runs lack the key
  with jax.set_mesh(run.mesh), peers.watching(stall):
    state, batch = _state_before(run, step)
    device_batch = sharding.put_global_batch(batch, run.batch_place)
    found = {
      "step": step,
      "examples": run.batches.examples(step - 1),
      "parameters": _look_at_parameters(run, state, device_batch),
      "rows": _look_at_rows(run, state, device_batch, step),
    }
    _, metrics = run.train_step()(state, device_batch)
    found["metrics"] = {k: _number(v) for k, v in metrics.items()}
  if jax.process_index() == 0:
    path = output or os.path.join(workdir, f"replay-{step}.json")
    files.write_json(path, found, indent=1)
    _show(found)
    _log.info("wrote %s", path)
  return found


def _state_before(
  run: session.Session, step: int
) -> tuple[steps.TrainState, batching.Batch]:
  """Returns the state before a step, and this host's rows of its batch."""
  with meeting.lock(run.workdir):
    with contextlib.closing(run.checkpoints()) as checkpoints:
      start, state, _ = run.restore(checkpoints, before=step)
  if start + 1 < step:
    _log.info("computing the steps %d to %d again", start + 1, step - 1)
  train_step = run.train_step()
  batches = run.job.prefetch(run.batches, start)
  for i in range(start + 1, step):
    watchdog.note("computing steps again", i)
    batch = sharding.put_global_batch(next(batches), run.batch_place)
    state, metrics = train_step(state, batch)
    jax.block_until_ready(metrics)
  return state, next(batches)


def _look_at_parameters(
  run: session.Session, state: steps.TrainState, batch: steps.Batch
) -> list[dict[str, Any]]:
  """Returns the norm of every parameter and gradient, highest or NaN first."""
  gradients = steps.make_gradients(
    run.job.model,
    run.job.objective,
    run.rngs[1],
    run.config.optim.num_micro_batches,
    place=run.place.params,
  )

  @jax.jit
  def norms(state, batch):
    grads = gradients(state.params, batch, state.step)[2]
    return [
      jax.tree.map(jnp.linalg.norm, jax.tree.map(jnp.ravel, tree))
      for tree in (state.params, grads)
    ]

  params, grads = jax.device_get(norms(state, batch))
  named = jax.tree_util.tree_leaves_with_path(params)
  rows = [
    {
      "name": jax.tree_util.keystr(path, simple=True, separator="/"),
      "norm": _number(norm),
      "grad_norm": _number(grad),
    }
    for (path, norm), grad in zip(named, jax.tree.leaves(grads), strict=True)
  ]
  return sorted(rows, key=lambda row: _oddness(row["grad_norm"]), reverse=True)


def _look_at_rows(
  run: session.Session, state: steps.TrainState, batch: steps.Batch, step: int
) -> list[dict[str, Any]]:
  """Returns loss, examples and text of every row, highest or NaN first."""
  objective, model = run.job.objective, run.job.model

  def compute(params, batch):
    outputs = objective.apply(model, params, batch, deterministic=True)

    def loss_of(outputs, row):
      outputs, row = jax.tree.map(lambda x: x[None], (outputs, row))
      terms = objective.losses(outputs, row)
      return objective.total(
        {k: total / jnp.maximum(w, 1e-9) for k, (total, w) in terms.items()}
      )

    return jax.vmap(loss_of)(outputs, batch), batch["input_ids"]

  everywhere = jax.sharding.NamedSharding(run.mesh, sharding.P())
  found = jax.jit(compute, out_shardings=everywhere)(state.params, batch)
  row_losses, input_ids = jax.device_get(found)
  examples = run.batches.examples(step - 1)
  token, pad = run.job.tokenizer.token, run.job.tokenizer.pad_id
  rows = [
    {
      "row": i,
      "loss": _number(loss),
      # The rows of a task hold several examples each; `examples` has them all.
      "examples": examples[i] if len(examples) == len(row_losses) else None,
      "tokens": " ".join(token(int(x)) for x in ids if x != pad),
    }
    for i, (loss, ids) in enumerate(zip(row_losses, input_ids, strict=True))
  ]
  return sorted(rows, key=lambda row: _oddness(row["loss"]), reverse=True)


def _number(x: Any) -> float | str:
  """Returns a number for JSON; NaN and infinity, which JSON lacks, as text."""
  value = float(np.asarray(x))
  return value if math.isfinite(value) else str(value)


def _oddness(x: float | str) -> float:
  return math.inf if isinstance(x, str) else x


def _show(found: dict[str, Any]) -> None:
  print(f"step {found['step']}")
  for name, value in sorted(found["metrics"].items()):
    print(f"  {name:28} {value}")
  print("rows, worst first:")
  for row in found["rows"][:_SHOWN]:
    print(f"  loss {row['loss']}  examples {row['examples']}")
    print(f"    {row['tokens'][:200]}")
  print("parameters, by the norm of their gradient:")
  for row in found["parameters"][:_SHOWN]:
    print(f"  {row['grad_norm']}  {row['name']}, whose norm is {row['norm']}")
