"""Scores a model on a whole held-out split, whatever the batch and the mesh."""

import json
import logging
import os
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import batching
from bert_jax import checkpoint
from bert_jax import metrics
from bert_jax import objectives
from bert_jax import records
from bert_jax import run_log
from bert_jax import sharding
from bert_jax import steps
from bert_jax.models import bert

_log = logging.getLogger(__name__)


def check_model_fits(config: Any) -> bert.ModelConfig:
  """The checked model config, if the prepared data fits the model.

  Raises:
    ValueError: the model is impossible, or its tables are too small.
  """
  model_config = bert.ModelConfig.from_config(config.model)
  if config.data.seq_len > model_config.max_len:
    raise ValueError(
      f"data.seq_len={config.data.seq_len} is longer than model.max_len="
      f"{model_config.max_len}; lower the one or raise the other"
    )
  if not config.data.dir:
    raise records.DataError(
      "data.dir is not set; give --config.data.dir=DATA, a folder made by "
      "--mode=prepare"
    )
  if config.objective == "mlm_nsp" and config.data.pairing != "pairs":
    raise ValueError(
      f"objective=mlm_nsp needs data.pairing=pairs, not {config.data.pairing}: "
      "there is no next sentence to predict; set --config.objective=mlm"
    )
  vocab_size = records.read_manifest(config.data.dir)["vocab_size"]
  if vocab_size > model_config.vocab_size:
    raise ValueError(
      f"{config.data.dir} has a vocabulary of {vocab_size}, model.vocab_size="
      f"{model_config.vocab_size}; set --config.model.vocab_size={vocab_size}"
    )
  return model_config


def local_rows(
  batch_place: jax.sharding.Sharding, batch_size: int
) -> np.ndarray:
  """Which rows of the global batch the devices of this process hold."""
  slices = batch_place.addressable_devices_indices_map((batch_size,)).values()
  return np.unique(
    np.concatenate([np.arange(batch_size)[place] for place in slices if place])
  )


def unigram_log_probs(folder: str, size: int) -> np.ndarray:
  """Log-probabilities [size] of tokens in the training text, one added."""
  path = os.path.join(folder, "tokens", "train.counts.npy")
  try:
    counts = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise records.DataError(f"{path} cannot be read: {error}") from error
  padded = np.ones(size) + np.pad(counts, (0, size - len(counts)))
  return np.log(padded / padded.sum()).astype(np.float32)


class Evaluator:
  """Held-out evaluation, ready to be called again and again."""

  def __init__(
    self,
    config: Any,
    mesh: jax.sharding.Mesh,
    model: nn.Module,
    objective: objectives.Objective,
  ):
    """Opens the held-out split.

    Args:
      config: the whole configuration.
      mesh: that the parameters live on.
      model: of the objective.
      objective: what to report.

    Raises:
      ValueError: the batch does not fit the mesh, or there is no such data.
    """
    sharding.check_batch_size(config.eval.batch_size, mesh)
    self._mesh = mesh
    self._place = sharding.batch_sharding(mesh)
    self._batches = batching.PretrainBatches(
      config.data,
      "validation",
      seed=batching.EVAL_SEED,
      batch_size=config.eval.batch_size,
      max_examples=config.eval.max_examples,
      rows=local_rows(self._place, config.eval.batch_size),
    )
    self._threads = config.data.num_threads
    self._buffer = config.data.prefetch_batches
    self._unigram = unigram_log_probs(config.data.dir, config.model.vocab_size)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    self._step = jax.jit(
      steps.make_eval_step(model, objective), out_shardings=everywhere
    )
    self._terms = objective.weights

  def names(self, params: Any) -> list[str]:
    """The keys of what a call returns, without computing it.

    Args:
      params: the parameters, or their shapes.
    """
    batch = jax.tree.map(jnp.asarray, self._batches[0])
    with jax.set_mesh(self._mesh):
      sums = jax.eval_shape(self._step, params, batch, self._unigram)
    return sorted(f"eval/{name}" for name in (*sums, "loss", "mlm_perplexity"))

  def __call__(self, params: Any) -> dict[str, float]:
    """Returns eval/NAME of every metric, over the global split."""
    totals: metrics.Totals = {}
    log_probs = jnp.asarray(self._unigram)
    for batch in batching.prefetch(
      self._batches, 0, num_threads=self._threads, buffer_size=self._buffer
    ):
      device_batch = sharding.put_global_batch(batch, self._place)
      sums = jax.device_get(self._step(params, device_batch, log_probs))
      totals = metrics.add(totals, sums)
    means = metrics.finish(totals)
    terms = self._terms(jax.tree.map(jnp.asarray, batch))
    means["loss"] = sum(means[name] for name in terms)
    means["mlm_perplexity"] = metrics.perplexity(means["mlm_loss"])
    return {f"eval/{name}": means[name] for name in sorted(means)}


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
  model_config = check_model_fits(config)
  objective = objectives.get_objective(config.objective)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp,
                            config.mesh.tensor)  # fmt: skip
  run = run_log.describe(config, data_hash(config), list(mesh.devices.flat))
  run_log.check_workdir(workdir, run)
  model = objective.make_model(model_config)
  evaluator = Evaluator(config, mesh, model, objective)
  step, params = load_params(config, workdir, mesh, model, objective)
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
  return values


def data_hash(config: Any) -> str:
  """Hash of the manifest of the examples a config reads."""
  return run_log.file_hash(
    os.path.join(
      config.data.dir,
      "examples",
      records.examples_name(config.data),
      "manifest.json",
    )
  )


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
