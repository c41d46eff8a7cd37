"""Fine-tuning: a task's examples, batches and scores.

The other job is in pretraining.py; both look the same to train.py.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import os
from typing import Any

import jax
import numpy as np

from bert_jax import tasks
from bert_jax.data import batching
from bert_jax.data import packing
from bert_jax.data import task_batches
from bert_jax.data.tokenizers import interface
from bert_jax.kinds import table
from bert_jax.models import flops
from bert_jax.models.attention import programs
from bert_jax.models.config import ModelConfig
from bert_jax.runtime import bars
from bert_jax.runtime import files
from bert_jax.runtime import sharding
from bert_jax.runtime import watchdog
from bert_jax.runtime.settings import Config
from bert_jax.tasks import features as task_features
from bert_jax.tasks import own
from bert_jax.tasks import spec
from bert_jax.tasks import submission
from bert_jax.training import metrics
from bert_jax.training import steps

# Positions that one device computes while a shape is compiled: on a CPU as
# timed (6 layers x 384, two cores), elsewhere as 40 s and 100,000 a second.
_SHAPE_PRICE = {"cpu": 1e4}
# Of a training by epochs where no examples say how many steps these are: of
# what is compiled it is a constant of the learning rate.
_UNKNOWN_STEPS = 1000


class FineTuning:
  """A task, its splits and the model for it.

  Attributes:
    config: the whole configuration.
    task: the row of facts.
    objective: its kind.
    model: the module.
    total_steps: of the training.
  """

  def __init__(self, config: Config, tokenizer: interface.Tokenizer | None):
    """Checks what can be checked without reading examples.

    Args:
      config: the whole configuration, with the shape of the model.
      tokenizer: whose ids the model knows; None = no examples will be read,
        see `jobs.open_job`.

    Raises:
      ValueError: the task's files or the model's sizes do not fit.
    """
    self.config, self._tokenizer = config, tokenizer
    for key in _LISTS:
      config.task[key] = _split_words(config.task[key])
    model_config = ModelConfig.from_config(config.model)
    if config.data.seq_len > model_config.max_len:
      raise ValueError(
        f"data.seq_len={config.data.seq_len} is longer than model.max_len="
        f"{model_config.max_len}; lower it"
      )
    unit = programs.program_of(model_config).row_unit if config.data.pack else 1
    programs.check(model_config, -(-config.data.seq_len // unit) * unit)
    if tokenizer and tokenizer.vocab_size > model_config.vocab_size:
      raise ValueError(
        f"the vocabulary has {tokenizer.vocab_size} pieces, model.vocab_size="
        f"{model_config.vocab_size}; give --config.task.vocab of the weights"
      )
    if config.data.batch_size < 1 or config.train.num_epochs < 0:
      raise ValueError(
        f"data.batch_size={config.data.batch_size} and train.num_epochs="
        f"{config.train.num_epochs}: they must be at least 1 and 0"
      )
    if bool(config.train.num_epochs) == bool(config.train.total_steps):
      raise ValueError(
        f"train.num_epochs={config.train.num_epochs} and train.total_steps="
        f"{config.train.total_steps}: give one of them, and 0 for the other"
      )
    self.task = get_task(config.task)
    unknown = {k for k, v in config.task.files.items() if v}
    unknown -= set(self.task.splits)
    if unknown:
      raise spec.TaskError(
        f"task.files.{min(unknown)} is given, but task {self.task.name} has "
        f"the splits {', '.join(self.task.splits)}; put its files into "
        "task.dir under their official names"
      )
    if config.task.name.startswith("my-"):
      config.task.labels = self.task.labels  # the run's record has them
    self._splits: dict[str, Split] = {}
    self.objective = table.of_task(self.task)
    self.objective.check_options(self.task, **self.decode_options)
    self.model = self.objective.make_model(
      model_config, num_labels=len(self.task.labels)
    )

  @property
  def decode_options(self) -> dict[str, Any]:
    """The settings that decoding takes."""
    return {k: self.config.task[k] for k in self.objective.decode_settings}

  @property
  def tokenizer(self) -> interface.Tokenizer:
    """The vocabulary."""
    assert self._tokenizer is not None
    return self._tokenizer

  @functools.cached_property
  def total_steps(self) -> int:
    """Of `train.total_steps`, or of `train.num_epochs` over the examples.

    Source: google-research/bert run_classifier.py:860-863.
    """
    if not self.config.train.num_epochs:
      return self.config.train.total_steps
    if self._tokenizer is None:
      return _UNKNOWN_STEPS
    count = len(self._train_split().examples)
    size = self.config.data.batch_size
    return max(1, int(count / size * self.config.train.num_epochs))

  def split(self, name: str) -> "Split":
    """A split, read once.

    Args:
      name: of a split of the task, or TASK:SPLIT of a task without training
        data that is judged by a model of this one (AX by MNLI's).

    Raises:
      spec.TaskError: there is no such split, or its files are not there.
    """
    if name not in self._splits:
      self._splits[name] = self._read(name)
    return self._splits[name]

  def _read(self, name: str) -> "Split":
    settings, task = self.config.task, self.task
    other, _, name_there = name.rpartition(":")
    if other:
      task = tasks.TASKS.get(other, task)
      if task.trained_as != self.task.name:
        raise spec.TaskError(
          f"{name}: {other} is no task that a model of {self.task.name} judges"
        )
    is_train = name == task.train_split
    examples = tasks.read_examples(
      task,
      settings.dir or "",
      name_there,
      max_examples=settings.max_train_examples if is_train else 0,
      files={} if other else {k: v for k, v in settings.files.items() if v},
    )
    features = self.objective.make_features(
      task,
      examples,
      self.tokenizer,
      seq_len=self.config.data.seq_len,
      **{name: settings[name] for name in self.objective.feature_settings},
    )
    types = self.model.config.type_vocab_size
    if features.segment_ids.max() >= types:
      raise spec.TaskError(
        f"task {task.name} has pairs of texts, but the model has "
        f"{types} token type (model.type_vocab_size), so it cannot tell them "
        "apart; start from weights with two, or train with "
        "--config.model.type_vocab_size=2"
      )
    return Split(task, name_there, examples, features)

  @property
  def eval_splits(self) -> tuple[str, ...]:
    """Splits with labels that evaluation reports."""
    return tuple(self.config.task.eval_splits) or self.task.eval_splits

  @functools.cached_property
  def data_hash(self) -> str:
    """Hash of the features of the training split."""
    return _hash(self._train_split().features).hexdigest()

  def read_hashes(self) -> dict[str, str]:
    """Hashes of the features and the examples of every split read so far."""
    found = {}
    for name, split in sorted(self._splits.items()):
      digest = _hash(split.features)
      for example in split.examples:
        digest.update(repr(example).encode())
      found[name] = digest.hexdigest()
    return found

  def _train_split(self) -> "Split":
    """The split with the examples to train on.

    Raises:
      spec.TaskError: there is none, or it has no labels.
    """
    task = self.task
    if not task.train_split:
      raise spec.TaskError(
        f"task {task.name} has no training split; train {task.trained_as} and "
        f"evaluate that with --config.task.predict_splits=\"('{task.name}:"
        f"{task.splits[0]}',)\""
      )
    split = self.split(task.train_split)
    if split.features.label is None:
      raise spec.TaskError(
        f"task {task.name}: its training examples have no labels"
      )
    return split

  @property
  def facts(self) -> dict[str, Any]:
    """The kind and the labels of the head, for whoever reads the weights."""
    labels = self.task.labels if self.objective.head.has_names else ()
    return {"task": {"kind": self.task.kind, "labels": list(labels)}}

  def batches(
    self, mesh: jax.sharding.Mesh, seed: int | None = None
  ) -> task_batches.TaskBatches:
    """The training batches by step, of this host's rows.

    Args:
      mesh: that they are for.
      seed: of their order; None = that of the config.
    """
    config = self.config
    place = sharding.batch_sharding(mesh)
    devices = mesh.devices.flat
    return task_batches.TaskBatches(
      self._train_split().features,
      seed=config.seed if seed is None else seed,
      batch_size=config.data.batch_size,
      num_steps=self.total_steps,
      seq_len=config.data.seq_len,
      pad_id=self.tokenizer.pad_id,
      pack=config.data.pack,
      one_row_len=config.data.one_row_len,
      length_unit=programs.program_of(self.model.config).row_unit,
      multiple=num_groups(mesh) * config.optim.num_micro_batches,
      # Scores and softmax of L keys against 12 D^2 weights, as timed on a CPU.
      attention_len=2.5 * config.model.hidden_size,
      shape_price=_SHAPE_PRICE.get(devices[0].platform, 4e6) * len(devices),
      local_rows=lambda count: sharding.local_rows(place, count),
    )

  def evaluator(self, mesh: jax.sharding.Mesh) -> "TaskEvaluator":
    """The evaluation of all examples of the splits with labels.

    Raises:
      spec.TaskError: a split is not there, or one to score has no labels.
    """
    for name in self.eval_splits:
      if self.split(name).features.label is None:
        raise spec.TaskError(
          f"task {self.task.name}: the split {name} has no labels to score; "
          f"predict it with --config.task.predict_splits=\"('{name}',)\""
        )
    for name in self.config.task.predict_splits:
      self.split(name)
    return TaskEvaluator(self, mesh)

  def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Declares a global batch of training; see jobs.Job."""
    found = self.objective.batch_shapes(self.config, len(self.task.labels))
    return {k: jax.ShapeDtypeStruct(*of_key) for k, of_key in found.items()}

  def mean_row(self) -> None:
    """Returns None: the rows of a task depend on how examples are packed."""

  def step_flops(
    self,
    batch: Mapping[str, Any],
    attended: float | None = None,
    all_positions: bool = False,
  ) -> int:
    """Counts the model FLOPs of a training step; see jobs.Job."""
    rows, length = batch["input_ids"].shape
    starts = batch.get("cls_positions", np.zeros([rows, 1]))
    return flops.task_step_flops(
      self.config.model,
      rows * jax.process_count(),
      length,
      self.objective.pooled,
      num_sequences=starts.shape[1],
      attended=attended or packing.attended(batch.get("sequence_ids")),
      all_positions=all_positions,
    )

  def write_predictions(
    self, evaluator: "TaskEvaluator", params: Any, workdir: str
  ) -> list[str]:
    """Writes what the model predicts for the splits of `task.predict_splits`.

    Args:
      evaluator: of this job.
      params: of the model.
      workdir: its folder predictions/ gets TASK-SPLIT.jsonl, an example a line;
        for questions also the original's three files, in TASK-SPLIT; for GLUE's
        test splits the TSV that its server takes.

    Returns:
      The paths written.

    Raises:
      spec.TaskError: there is no such split.
    """
    splits = [self.split(name) for name in self.config.task.predict_splits]
    folder = os.path.join(workdir, "predictions")
    written = []
    for split in splits:
      predictions, _ = evaluator.predict(params, split)
      if jax.process_index():
        continue
      task, examples = split.task, split.examples
      os.makedirs(folder, exist_ok=True)
      stem = os.path.join(folder, f"{task.name}-{split.name}")
      written += self.objective.write_predictions(
        task, examples, predictions, stem
      )
      if split.name in task.submission:
        path = os.path.join(folder, task.submission[split.name])
        files.write_text(path, submission.glue_tsv(task, examples, predictions))
        written.append(path)
    return written


def _hash(features: Any) -> Any:
  """A digest of the tokens and labels of a split."""
  digest = hashlib.sha256()
  for array in (features.token_ids, features.offsets, features.label):
    if array is not None:
      digest.update(np.ascontiguousarray(array).tobytes())
  return digest


# Keys of the group `task` that are lists of words.
_LISTS = ("text", "labels", "columns", "eval_splits", "predict_splits")


def _split_words(words: Sequence[str]) -> tuple[str, ...]:
  """On a command line a list of words is one word with commas, or numbers."""
  given = [str(word) for word in words]
  if len(given) == 1 and "," in given[0]:
    given = [word.strip() for word in given[0].split(",")]
  return tuple(word for word in given if word)


def get_task(settings: Any) -> spec.Task:
  """The row of facts of a task.

  Args:
    settings: the `task` group of a config. A name "my-FORM" stands for data of
      one's own, of a form of tasks/own.py.

  Raises:
    spec.TaskError: no such task; lists those there are.
  """
  if settings.name.startswith("my-"):
    return table.make_task(
      settings.name.removeprefix("my-"),
      text=settings.text,
      label=settings.label,
      labels=settings.labels,
      train_path=settings.files.train or own.find_train(settings.dir or ""),
      columns=settings.columns,
      has_null=settings.has_null,
      label_separator=settings.label_separator,
      name=settings.name,
    )
  if settings.name not in tasks.TASKS:
    raise spec.TaskError(
      f"task.name={settings.name!r} is not known; use one of "
      f"{', '.join(tasks.TASKS)}, or my-FORM with FORM one of "
      f"{', '.join(table.FORMS)}"
    )
  return tasks.TASKS[settings.name]


@dataclasses.dataclass(frozen=True)
class Split:
  """Examples of a split and their features.

  Attributes:
    task: of the split.
    name: of the split.
    examples: as read.
    features: of these examples.
  """

  task: spec.Task
  name: str
  examples: list
  features: task_features.Features


def num_groups(mesh: jax.sharding.Mesh) -> int:
  """Parts that a batch's rows are cut into over a mesh."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


class TaskEvaluator:
  """Predicts whole splits and scores the predictions."""

  def __init__(
    self, job: FineTuning, mesh: jax.sharding.Mesh, num_members: int = 0
  ):
    """Prepares for a mesh.

    Args:
      job: what is evaluated.
      mesh: that the parameters live on.
      num_members: models whose parameters are stacked; 0 = it is one.

    Raises:
      ValueError: `eval.batch_size` does not fit the mesh.
    """
    sharding.check_batch_size(job.config.eval.batch_size, mesh)
    self._job, self._num_members = job, num_members
    self._place = sharding.batch_sharding(mesh)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step = steps.make_predict_step(job.model, job.objective)
    if num_members:
      step = jax.vmap(
        step, in_axes=(0, None), spmd_axis_name=sharding.SEED_AXIS
      )
    self._step = jax.jit(step, out_shardings=everywhere)

  def names(self, params: Any) -> list[str]:
    """The keys of what a call returns."""
    del params
    return [
      f"{self._prefix(split)}{name}"
      for split in self._job.eval_splits
      for name in ("loss", *self._job.split(split).task.metrics)
    ]

  def _prefix(self, split: str) -> str:
    """eval/ of the first split, eval/SPLIT/ of the others."""
    return "eval/" if split == self._job.eval_splits[0] else f"eval/{split}/"

  def __call__(self, params: Any) -> dict[str, float]:
    """Returns eval/NAME of every metric of every split with labels."""
    return self.evaluate_all(params)[0]

  def evaluate_all(self, params: Any) -> list[dict[str, float]]:
    """The same for each of the models whose parameters are stacked."""
    every: list[dict[str, float]] = [{} for _ in range(self._num_members or 1)]
    for name in self._job.eval_splits:
      split = self._job.split(name)
      predicted = self._predict_all(params, split)
      for values, (predictions, totals) in zip(every, predicted, strict=True):
        found = self._job.objective.score(
          split.task, predictions, split.examples
        )
        found["loss"] = metrics.finish(totals)["task_loss"]
        values |= {self._prefix(name) + k: v for k, v in found.items()}
    return [dict(sorted(values.items())) for values in every]

  def predict(self, params: Any, split: Split) -> tuple[list, metrics.Totals]:
    """Predicts every example of a split.

    Args:
      params: of the model.
      split: with labels or without.

    Returns:
      A prediction an example (see its kind), and the loss as (sum,
      weight), {} without labels.
    """
    return self._predict_all(params, split)[0]

  def _predict_all(
    self, params: Any, split: Split
  ) -> list[tuple[list, metrics.Totals]]:
    """What `predict` returns, of each of the models."""
    job, data = self._job, self._job.config.data
    rows = task_batches.TaskSplit(
      split.features,
      num_rows=job.config.eval.batch_size,
      seq_len=data.seq_len,
      pad_id=job.tokenizer.pad_id,
      pack=data.pack,
      length_unit=programs.program_of(job.model.config).row_unit,
      local_rows=lambda count: sharding.local_rows(self._place, count),
    )
    members = range(self._num_members or 1)
    outputs: list[list] = [[] for _ in members]
    totals = [metrics.add({}, {}) for _ in members]
    batches = batching.prefetch(
      rows, 0, num_threads=data.num_threads, buffer_size=data.prefetch_batches
    )
    for batch in bars.track(batches, split.name, len(rows)):
      watchdog.note(f"evaluating {split.name}")
      device_batch = sharding.put_global_batch(batch, self._place)
      found = jax.device_get(self._step(params, device_batch))
      for k in members:
        output, sums = self._part(found, k)
        outputs[k].append(output)
        totals[k] = metrics.add(totals[k], sums)
    return [
      (self._decode(split, rows.collect(outputs[k])), totals[k])
      for k in members
    ]

  def _part(self, arrays: Any, k: int) -> Any:
    """What model k has of a tree of arrays."""
    if not self._num_members:
      return arrays
    return jax.tree.map(lambda x: x[k], arrays)

  def _decode(self, split: Split, flat: np.ndarray) -> list:
    """Predictions of a split's examples from a model's outputs."""
    options = self._job.decode_options
    return self._job.objective.decode(
      split.task, split.features, flat, **options
    )
