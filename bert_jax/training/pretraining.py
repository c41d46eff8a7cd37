"""Pre-training: what the loop trains on and is judged by.

The other job is in finetuning.py; both look the same to train.py.
"""

from collections.abc import Mapping
import functools
import os
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data import batching
from bert_jax.data import masking
from bert_jax.data import orders
from bert_jax.data import packing
from bert_jax.data.store import indexes
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.data.tokenizers import interface
from bert_jax.kinds import kind
from bert_jax.kinds import table
from bert_jax.models import flops
from bert_jax.models.attention import programs
from bert_jax.models.config import ModelConfig
from bert_jax.runtime import bars
from bert_jax.runtime import files
from bert_jax.runtime import sharding
from bert_jax.runtime import watchdog
from bert_jax.runtime.settings import Config
from bert_jax.training import metrics
from bert_jax.training import steps


class Pretraining:
  """Masked words, and next sentences, of prepared text.

  Attributes:
    config: the whole configuration.
    objective: its kind.
    model: the module.
    total_steps: of the training.
    data_hash: of the manifest of the examples.
  """

  def __init__(self, config: Config, is_abstract: bool = False):
    """Checks what can be checked without reading examples.

    Args:
      config: the whole configuration.
      is_abstract: data.dir need not be set; see `jobs.open_job`.

    Raises:
      ValueError: the model is impossible, or does not fit the data.
    """
    self.config = config
    self.objective = table.get(config.objective)
    self.model = self.objective.make_model(
      _check_model_fits(config, is_abstract)
    )
    self.total_steps = config.train.total_steps
    if config.train.num_epochs:
      raise ValueError(
        f"train.num_epochs={config.train.num_epochs} is for tasks; give "
        "--config.train.total_steps"
      )

  @functools.cached_property
  def tokenizer(self) -> interface.Tokenizer:
    """The vocabulary that the data was prepared with."""
    return batching.load_vocabulary(self.config.data.dir)

  @property
  def data_hash(self) -> str:
    """Hash of the manifest of the examples that are read."""
    return _data_hash(self.config)

  def read_hashes(self) -> dict[str, str]:
    """Hashes of what was read; see jobs.Job."""
    return {"examples": self.data_hash}

  @property
  def facts(self) -> dict[str, Any]:
    """Nothing: the config says all."""
    return {}

  def batches(
    self, mesh: jax.sharding.Mesh, seed: int | None = None
  ) -> batching.TrainBatches:
    """The training batches by step, of this host's rows.

    Args:
      mesh: that they are for.
      seed: of their order; None = that of the config.

    Raises:
      ValueError: there is no such data.
    """
    config = self.config
    size = config.data.batch_size
    return batching.PretrainBatches(
      config.data,
      "train",
      seed=config.seed if seed is None else seed,
      batch_size=size,
      num_steps=self.total_steps,
      rows=sharding.local_rows(sharding.batch_sharding(mesh), size),
    )

  def evaluator(self, mesh: jax.sharding.Mesh) -> "Evaluator":
    """The held-out evaluation on a mesh."""
    return Evaluator(self.config, mesh, self.model, self.objective)

  def write_predictions(
    self, evaluator: "Evaluator", params: Any, workdir: str
  ) -> list[str]:
    """Writes nothing: pre-training predicts masks it has made itself."""
    del evaluator, params, workdir
    return []

  def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Declares a global batch of training; see jobs.Job."""
    found = self.objective.batch_shapes(self.config)
    return {k: jax.ShapeDtypeStruct(*of_key) for k, of_key in found.items()}

  def mean_row(self) -> tuple[float, float] | None:
    """Returns what a row of prepared text holds on average; see jobs.Job.

    Packed rows are counted from the lengths of all examples, others from the
    first 65,536.
    """
    data = self.config.data
    if not data.dir:
      return None
    examples = batching.open_examples(data, "train")
    if data.max_sequences > 1:
      name = records.examples_name(data)
      histogram = indexes.LengthIndex(data.dir, name, "train").histogram
      num_rows = packing.pack_histogram(
        histogram, data.seq_len, data.max_sequences
      ).num_rows
    else:
      num_rows = min(len(examples), 65536)
      lengths = records.example_lengths(examples.read(np.arange(num_rows)))
      histogram = np.bincount(lengths)
    sizes = np.arange(len(histogram), dtype=float)
    return sizes @ histogram / num_rows, sizes**2 @ histogram / num_rows

  def step_flops(
    self,
    batch: Mapping[str, Any],
    attended: float | None = None,
    all_positions: bool = False,
  ) -> int:
    """Counts the model FLOPs of a training step; see jobs.Job."""
    data = self.config.data
    return flops.pretrain_step_flops(
      self.config.model,
      data.batch_size,
      data.seq_len,
      batching.num_masked_slots(data),
      num_sequences=data.max_sequences,
      attended=attended or packing.attended(batch.get("sequence_ids")),
      all_positions=all_positions,
    )


class Evaluator:
  """Held-out evaluation, ready to be called again and again."""

  def __init__(
    self,
    config: Config,
    mesh: jax.sharding.Mesh,
    model: nn.Module,
    objective: kind.Kind,
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
    self._batch_size = config.eval.batch_size
    self._place = sharding.batch_sharding(mesh)
    self._batches = batching.PretrainBatches(
      config.data,
      "validation",
      seed=orders.EVAL_SEED,
      batch_size=config.eval.batch_size,
      max_examples=config.eval.max_examples,
      rows=sharding.local_rows(self._place, config.eval.batch_size),
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
    # Of all hosts; only this one's rows are at hand.
    batch = {
      name: jax.ShapeDtypeStruct((self._batch_size, *x.shape[1:]), x.dtype)
      for name, x in self._batches[0].items()
    }
    with jax.set_mesh(self._mesh):
      sums = jax.eval_shape(self._step, params, batch, self._unigram)
    return sorted(f"eval/{name}" for name in (*sums, "loss", "mlm_perplexity"))

  def __call__(self, params: Any) -> dict[str, float]:
    """Returns eval/NAME of every metric, over the global split."""
    totals: metrics.Totals = {}
    log_probs = jnp.asarray(self._unigram)
    batches = batching.prefetch(
      self._batches, 0, num_threads=self._threads, buffer_size=self._buffer
    )
    for batch in bars.track(batches, "validation", len(self._batches)):
      watchdog.note("evaluating")
      device_batch = sharding.put_global_batch(batch, self._place)
      sums = jax.device_get(self._step(params, device_batch, log_probs))
      totals = metrics.add(totals, sums)
    means = metrics.finish(totals)
    terms = self._terms(jax.tree.map(jnp.asarray, batch))
    means["loss"] = sum(means[name] for name in terms)
    means["mlm_perplexity"] = metrics.perplexity(means["mlm_loss"])
    return {f"eval/{name}": means[name] for name in sorted(means)}


def _check_model_fits(config: Config, is_abstract: bool) -> ModelConfig:
  """The checked model config, if the prepared data fits the model.

  Raises:
    ValueError: the model is impossible, or its tables are too small.
  """
  model_config = ModelConfig.from_config(config.model)
  programs.check(model_config, config.data.seq_len)
  if config.data.seq_len > model_config.max_len:
    raise ValueError(
      f"data.seq_len={config.data.seq_len} is longer than model.max_len="
      f"{model_config.max_len}; lower the one or raise the other"
    )
  if not config.data.dir and not is_abstract:
    raise records.DataError(
      "data.dir is not set; give --config.data.dir=DATA, a folder made by "
      "--mode=prepare"
    )
  masking.check_max_sequences(config.data)
  if config.objective == "mlm_nsp" and config.data.pairing != "pairs":
    raise ValueError(
      f"objective=mlm_nsp needs data.pairing=pairs, not {config.data.pairing}: "
      "there is no next sentence to predict; set --config.objective=mlm"
    )
  if config.data.pairing == "pairs" and model_config.type_vocab_size < 2:
    raise ValueError(
      "data.pairing=pairs gives two token types, model.type_vocab_size="
      f"{model_config.type_vocab_size} has one; start from weights with two, "
      "or prepare and train with another data.pairing and objective=mlm"
    )
  if not config.data.dir:
    return model_config
  vocab_size = manifests.read_manifest(config.data.dir)["vocab_size"]
  if vocab_size > model_config.vocab_size:
    raise ValueError(
      f"{config.data.dir} has a vocabulary of {vocab_size}, model.vocab_size="
      f"{model_config.vocab_size}; set --config.model.vocab_size={vocab_size}"
    )
  return model_config


def unigram_log_probs(folder: str, size: int) -> np.ndarray:
  """Log-probabilities [size] of tokens in the training text, one added."""
  path = os.path.join(folder, "tokens", "train.counts.npy")
  counts = records.read_array(path, np.int64, 1)
  if len(counts) > size or counts.min(initial=0) < 0:
    raise records.DataError(
      f"{path} is damaged: {len(counts)} counts, the least of them "
      f"{counts.min(initial=0)}; prepare the data again"
    )
  padded = np.ones(size) + np.pad(counts, (0, size - len(counts)))
  return np.log(padded / padded.sum()).astype(np.float32)


def _data_hash(config: Config) -> str:
  """Hash of the manifest of the examples a config reads."""
  return files.file_hash(
    os.path.join(
      config.data.dir,
      "examples",
      records.examples_name(config.data),
      "manifest.json",
    )
  )
