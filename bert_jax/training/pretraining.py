"""Pre-training: its batches, and its held-out evaluation.

The other job is in finetuning.py; both look the same to train.py.
"""

import functools
import logging
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data import batching
from bert_jax.data import masking
from bert_jax.data import mixtures
from bert_jax.data import orders
from bert_jax.data import packing
from bert_jax.data import summary
from bert_jax.data.store import indexes
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.data.tokenizers import interface
from bert_jax.kinds import pretraining
from bert_jax.kinds import table
from bert_jax.models.attention import programs
from bert_jax.models.config import ModelConfig
from bert_jax.runtime import sharding
from bert_jax.runtime.settings import Config
from bert_jax.training import metrics
from bert_jax.training import steps
from bert_jax.training.job import Evaluator
from bert_jax.training.job import Job

_log = logging.getLogger(__name__)


class Pretraining(Job):
  """Masked words, and next sentences, of prepared text."""

  objective: pretraining.Mlm

  def __init__(self, config: Config, is_abstract: bool = False):
    """Checks what can be checked without reading examples.

    Args:
      config: the whole configuration.
      is_abstract: True means that data.dir may be missing; see
        `jobs.open_job`.

    Raises:
      ValueError: a key of the model is out of range, or the model does not fit
        the data.
    """
    super().__init__(config, table.of_text(config.objective))
    _check_model_fits(config, self.model.config, is_abstract)
    if config.data.dir and not is_abstract:
      self._look_at_text()
    self._check_length()
    if config.train.num_epochs and not config.data.dir:
      raise ValueError(
        f"train.num_epochs={config.train.num_epochs} needs data.dir to count "
        "the steps of an epoch; give it, or --config.train.total_steps"
      )

  def _look_at_text(self) -> None:
    """Warns of odd text, and turns the evaluation off if none is held out."""
    config = self.config
    for text in self.remarks():
      _log.warning("%s: %s", config.data.dir, text)
    if summary.has_held_out(config.data.dir):
      return
    metric = config.checkpoint.best_metric
    if metric.startswith("eval/"):
      config.checkpoint.best_metric = ""
    _log.warning(
      "%s has no held-out text, so evaluation is off: no eval/ metrics, and no "
      "best checkpoint; prepare with prepare.held_out_rate above 0, or with "
      "prepare.held_out_input, to have them",
      config.data.dir,
    )

  def remarks(self):
    data = self.config.data
    found = summary.remarks(data, data.dir) if data.dir else []
    for folder in data.mixture:
      found += [f"{folder}: {x}" for x in summary.remarks(data, folder)]
    return found

  @property
  def facts(self) -> dict[str, Any]:
    """The texts of a mixture, with their tokens and shares of the rows."""
    data = self.config.data
    if not data.mixture:
      return {}
    found = [
      {"name": mixtures.name_of(data, one.folder), "tokens": one.num_tokens,
       "rows": one.rows / mixtures.BLOCK}
      for one in mixtures.sources(data)
    ]  # fmt: skip
    return {"mixture": found}

  @functools.cached_property
  def tokenizer(self) -> interface.Tokenizer:
    """The vocabulary that the data was prepared with."""
    return batching.load_vocabulary(self.config.data.dir)

  @functools.cached_property
  def total_steps(self) -> int:
    """`train.total_steps`, or the steps of `train.num_epochs` epochs."""
    epochs = self.config.train.num_epochs
    if not epochs:
      return self.config.train.total_steps
    num_rows = self._length_counts()[1]
    return max(1, math.ceil(epochs * num_rows / self.config.data.batch_size))

  @property
  def data_hash(self) -> str:
    """The hash of the manifests of the examples that are read."""
    return mixtures.data_hash(self.config.data)

  @property
  def held_out_hash(self) -> str:
    """The same hash: the manifest lists the held-out examples, too."""
    return self.data_hash

  def read_hashes(self) -> dict[str, str]:
    return {"examples": self.data_hash}

  def batches(self, mesh, seed=None):
    config = self.config
    place = sharding.batch_sharding(mesh)
    options: dict[str, Any] = {
      "seed": config.seed if seed is None else seed,
      "batch_size": config.data.batch_size,
      "num_steps": self.total_steps,
      "rows": functools.cache(lambda size: sharding.local_rows(place, size)),
    }
    if config.data.mixture:
      return mixtures.MixedBatches(config.data, **options)
    return batching.PretrainBatches(config.data, "train", **options)

  def evaluator(self, mesh, num_members=0):
    if not summary.has_held_out(self.config.data.dir):
      return _NoEvaluator()
    return PretrainingEvaluator(self, mesh)

  def mean_row(self):
    """Returns what a row of prepared text holds on average; see `Job`.

    Packed rows are counted from the lengths of all examples, others from the
    first 65,536.
    """
    data = self.config.data
    if not data.dir:
      return None
    if data.max_sequences > 1:
      histogram, num_rows = self._length_counts()
    else:
      examples = batching.open_examples(data, "train")
      num_rows = min(len(examples), 65536)
      lengths = records.example_lengths(
        examples.read(np.arange(num_rows)), self.tokenizer.template.counts
      )
      histogram = np.bincount(lengths)
    sizes = np.arange(len(histogram), dtype=float)
    counts = (sizes, sizes**2, self.near_pairs(sizes))
    tokens, pairs, near = (float(x @ histogram / num_rows) for x in counts)
    return tokens, pairs, near

  def _length_counts(self) -> tuple[np.ndarray, int]:
    """Returns the number of examples of each length, and of rows of an epoch.

    The lengths are counted only if several examples share a row.
    """
    data = self.config.data
    histograms, num_rows = np.zeros(data.seq_len + 1), 0
    for folder in mixtures.folders(data):
      examples = batching.open_examples(
        mixtures.of_folder(data, folder), "train"
      )
      if data.max_sequences == 1:
        num_rows += len(examples)
        continue
      name = records.examples_name(data)
      histogram = indexes.LengthIndex(folder, name, "train").histogram
      patterns = packing.pack_histogram(
        histogram, data.seq_len, data.max_sequences
      )
      histograms[: len(histogram)] += histogram
      num_rows += patterns.num_rows
    return histograms, num_rows

  def step_flops(self, batch, attended=None, all_positions=False, near=None):
    data = self.config.data
    num_rows = data.batch_size
    if data.batch_warmup_sizes:  # all hosts have the same number of rows
      num_rows = len(batch["input_mask"]) * jax.process_count()
    return self.objective.step_flops(
      self.config.model,
      data,
      num_rows,
      **self.seen_pairs(batch, attended, near),
      all_positions=all_positions,
    )


class _NoEvaluator(Evaluator):
  """Stands for the evaluation where no text is held out."""

  is_off = True

  def __init__(self):
    pass

  def names(self, params: Any) -> list[str]:
    return []

  def __call__(self, params: Any) -> dict[str, float]:
    return {}


class PretrainingEvaluator(Evaluator):
  """Scores of the objective and of guessing by frequency, on held-out text."""

  def __init__(self, job: Pretraining, mesh: jax.sharding.Mesh):
    """Opens the held-out split.

    Args:
      job: the job to evaluate.
      mesh: the mesh that the parameters live on.

    Raises:
      ValueError: the batch does not fit the mesh, or there is no such data.
    """
    self._objective = job.objective
    super().__init__(
      job, mesh, steps.make_eval_step(job.model, self._objective)
    )
    config = job.config
    self._batch_size = config.eval.batch_size
    data = config.data.copy_and_resolve_references()
    data.mask_rate = config.eval.mask_rate or data.mask_rate
    self._batches = batching.PretrainBatches(
      data,
      "validation",
      seed=orders.EVAL_SEED,
      batch_size=self._batch_size,
      max_examples=config.eval.max_examples,
      rows=sharding.local_rows(self._place, self._batch_size),
    )
    self._unigram = unigram_log_probs(config.data.dir, config.model.vocab_size)
    self._others = {
      mixtures.name_of(data, folder): batching.PretrainBatches(
        mixtures.of_folder(data, folder),
        "validation",
        seed=orders.EVAL_SEED,
        batch_size=self._batch_size,
        max_examples=config.eval.max_examples,
        rows=sharding.local_rows(self._place, self._batch_size),
      )
      for folder in data.mixture
      if summary.has_held_out(folder)
    }

  def names(self, params: Any) -> list[str]:
    # The shapes of all hosts; only this one's rows are at hand.
    batch = {
      name: jax.ShapeDtypeStruct((self._batch_size, *x.shape[1:]), x.dtype)
      for name, x in self._batches[0].items()
    }
    with jax.set_mesh(self._mesh):
      sums = jax.eval_shape(self._step, params, batch, self._unigram)
    others = (f"{name}/loss" for name in self._others)
    perplexity = f"{self._objective.words}_perplexity"
    names = (*sums, "loss", perplexity, *others)
    return sorted(f"eval/{name}" for name in names)

  def _means(self, params: Any, split: str, batches: Any) -> dict[str, float]:
    """Returns the metrics of a text, by name."""
    totals: metrics.Totals = {}
    log_probs = jnp.asarray(self._unigram)
    for sums in self._run(split, batches, params, log_probs):
      totals = metrics.add(totals, sums)
    means = metrics.finish(totals)
    first = jax.tree.map(jnp.asarray, self._batches[0])
    objective = self._job.objective
    terms = objective.weights(first)
    means["loss"] = objective.total({name: means[name] for name in terms})
    return means

  def __call__(self, params: Any) -> dict[str, float]:
    means = self._means(params, "validation", self._batches)
    words = self._objective.words
    loss = means[f"{words}_loss"]
    means[f"{words}_perplexity"] = metrics.perplexity(loss)
    for name, batches in self._others.items():
      means[f"{name}/loss"] = self._means(params, name, batches)["loss"]
    return {f"eval/{name}": means[name] for name in sorted(means)}


def _check_model_fits(
  config: Config, model_config: ModelConfig, is_abstract: bool
) -> None:
  """Raises ValueError if the model does not fit the prepared data."""
  programs.check(model_config, config.data.seq_len)
  if not config.data.dir and not is_abstract:
    raise records.DataError(
      "data.dir is not set; give --config.data.dir=DATA, a folder made by "
      "bert-jax prepare"
    )
  masking.check_max_sequences(config.data)
  masking.check_ngrams(config.data)
  _check_batch_sizes(config)
  data = config.data
  if data.mixture_weights and not data.mixture:
    raise ValueError(
      f"data.mixture_weights={list(data.mixture_weights)} has no data.mixture; "
      "give the folders of the other texts, or no weights"
    )
  if data.mixture and data.dir:
    mixtures.sources(data)
  wanted = table.of_text(config.objective).pairing
  if wanted and config.data.pairing != wanted:
    raise ValueError(
      f"objective={config.objective} needs data.pairing={wanted}, not "
      f"{config.data.pairing}, whose examples it cannot learn from; set "
      "--config.objective=mlm"
    )
  if wanted and not model_config.pooler:
    raise ValueError(
      f"objective={config.objective} needs a pooler, which model.family="
      f"{model_config.family} does not have; set --config.objective=mlm"
    )
  is_of_pairs = config.data.pairing in records.PAIRINGS
  if is_of_pairs and model_config.type_vocab_size == 1:
    raise ValueError(
      f"data.pairing={config.data.pairing} gives two token types, but "
      f"model.type_vocab_size={model_config.type_vocab_size}; start from "
      "weights with two types, or prepare and train with another data.pairing "
      "and objective=mlm"
    )
  if not config.data.dir:
    return
  vocab_size = manifests.read_manifest(config.data.dir)["vocab_size"]
  if vocab_size > model_config.vocab_size:
    raise ValueError(
      f"{config.data.dir} has a vocabulary of {vocab_size}, model.vocab_size="
      f"{model_config.vocab_size}; set --config.model.vocab_size={vocab_size}"
    )


def _check_batch_sizes(config: Config) -> None:
  """Raises ValueError if the sizes of the first batches make no sense."""
  data = config.data
  sizes, num_steps = data.batch_warmup_sizes, data.batch_warmup_steps
  if num_steps < len(sizes) or (num_steps and not sizes):
    raise ValueError(
      f"data.batch_warmup_sizes={list(sizes)} and data.batch_warmup_steps="
      f"{num_steps}: give both, with a step or more for each size, or neither"
    )
  if sizes and config.train.num_epochs:
    raise ValueError(
      "data.batch_warmup_sizes needs train.total_steps; set train.num_epochs=0"
    )


def unigram_log_probs(folder: str, size: int) -> np.ndarray:
  """Returns the log-probability [size] of each token in the training text.

  One is added to every count, so that no probability is 0.

  Raises:
    records.DataError: the file of counts is missing or damaged.
  """
  path = os.path.join(folder, "tokens", "train.counts.npy")
  counts = records.read_array(path, np.int64, 1)
  if len(counts) > size or counts.min(initial=0) < 0:
    raise records.DataError(
      f"{path} is damaged: {len(counts)} counts, the least of them "
      f"{counts.min(initial=0)}; prepare the data again"
    )
  padded = np.ones(size) + np.pad(counts, (0, size - len(counts)))
  return np.log(padded / padded.sum()).astype(np.float32)
