"""Fine-tuning: a task's examples, batches and scores.

The other job is in pretraining.py; both look the same to train.py.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import hashlib
import logging
import os
from typing import Any

import jax
import numpy as np

from bert_jax import tasks
from bert_jax.data import task_batches
from bert_jax.data.tokenizers import interface
from bert_jax.kinds import losses
from bert_jax.kinds import table
from bert_jax.kinds import task_kind
from bert_jax.kinds import windows
from bert_jax.models import adapters
from bert_jax.models import flops
from bert_jax.models import heads
from bert_jax.models.attention import programs
from bert_jax.runtime import files
from bert_jax.runtime import settings
from bert_jax.runtime import sharding
from bert_jax.runtime import streams
from bert_jax.runtime.settings import Config
from bert_jax.tasks import dev_split
from bert_jax.tasks import features as task_features
from bert_jax.tasks import own
from bert_jax.tasks import spec
from bert_jax.tasks import uncertainty
from bert_jax.training import metrics
from bert_jax.training import steps
from bert_jax.training.job import Evaluator
from bert_jax.training.job import Job
from bert_jax.training.job import unstack_models

_log = logging.getLogger(__name__)

# The number of positions that one device computes in the time that it takes to
# compile a shape: on a CPU as timed (6 layers x 384, two cores), elsewhere for
# 40 s at 100,000 positions a second.
_SHAPE_PRICE = {"cpu": 1e4}
# The number of steps of a plan that counts epochs and reads no examples. In the
# compiled step it is only a constant of the learning rate.
UNKNOWN_STEPS = 1000


class FineTuning(Job):
  """A task, its splits and the model for it.

  Attributes:
    task: the row of facts about the task.
  """

  objective: task_kind.TaskKind

  def __init__(self, config: Config, tokenizer: interface.Tokenizer | None):
    """Checks what can be checked without reading examples.

    Args:
      config: the whole configuration, with the shape of the model.
      tokenizer: the tokenizer whose ids the model knows; None means that no
        examples will be read, see `jobs.open_job`.

    Raises:
      ValueError: the task's files or the model's sizes do not fit.
    """
    for key in _LISTS:
      config.task[key] = _split_words(config.task[key])
    self.task = get_task(config.task)
    super().__init__(config, table.of_task(self.task), len(self.task.labels))
    self._tokenizer = tokenizer
    model = self.model.config
    heads.check_role(model, self.objective.head.role)
    unit = programs.program_of(model).row_unit if config.data.pack else 1
    programs.check(model, -(-config.data.seq_len // unit) * unit)
    if tokenizer and tokenizer.vocab_size > model.vocab_size:
      raise ValueError(
        f"the vocabulary has {tokenizer.vocab_size} pieces, model.vocab_size="
        f"{model.vocab_size}; give --config.task.vocab of the weights"
      )
    self._check_length()
    unknown = {k for k, v in config.task.files.items() if v}
    unknown -= set(self.task.splits)
    if unknown:
      raise spec.TaskError(
        f"task.files.{min(unknown)} is given, but task {self.task.name} has "
        f"the splits {', '.join(self.task.splits)}; put its files into "
        "task.dir under their official names"
      )
    if config.task.name.startswith("my-"):
      # The run's record has what its files decided.
      config.task.labels = self.task.file_labels or self.task.labels
      for key in own.DECIDED:
        if key in config.task:  # older runs lack it
          config.task[key] = getattr(self.task, key)
    self._splits: dict[str, Split] = {}
    dev_split.check(config.task)
    temperature = config.task.get("temperature", 1.0)  # older runs lack it
    if temperature != 1 and "temperature" not in self.objective.decode_settings:
      raise spec.TaskError(
        f"task.temperature={temperature} has no effect on kind "
        f"{self.objective.name}; leave it out"
      )
    self._check_own_settings()
    self.objective = self.objective.with_loss(self._loss_options())
    if options := adapters.options_of(config.optim):
      self.model = adapters.Adapted(self.model, options)
    self.objective.check_options(self.task, **self._decode_options)

  def _check_own_settings(self) -> None:
    """Raises TaskError if a key has a value and no effect on the kind."""
    every = {k for one in table.TASK_KINDS.values() for k in one.own_settings}
    for name in sorted(every - set(self.objective.own_settings)):
      if name not in self.config.task:  # older runs lack it
        continue
      value = self.config.task[name]
      if isinstance(value, list):
        value = tuple(value)
      if value != settings.KEYS[f"task.{name}"].default:
        raise spec.TaskError(
          f"task.{name}={value} has no effect on kind {self.objective.name}; "
          "leave it out"
        )

  @property
  def is_trained(self):
    if isinstance(self.model, adapters.Adapted):
      return self.model.is_trained
    return super().is_trained

  @property
  def _decode_options(self) -> dict[str, Any]:
    """The settings that decoding takes."""
    return {k: self.config.task[k] for k in self.objective.decode_settings}

  def _loss_options(self) -> losses.Options:
    """Returns what the loss of training has beyond the plain one.

    Raises:
      spec.TaskError: the kind does not honour a key, or the weights do not fit
        the labels.
    """
    settings, kind = self.config.task, self.objective
    for key in task_kind.LOSS_SETTINGS:
      if settings[key] and key not in kind.loss_settings:
        raise spec.TaskError(
          f"task.{key}={settings[key]} has no effect on the loss of kind "
          f"{kind.name}; leave it out"
        )
    if settings.long_texts != windows.CUT:
      if "long_texts" not in kind.feature_settings:
        raise spec.TaskError(
          f"task.long_texts={settings.long_texts} has no effect on kind "
          f"{kind.name}; leave it out"
        )
    weights = tuple(settings.class_weights)
    return losses.Options(
      class_weights=self._class_weights(weights) if weights else None,
      smoothing=settings.label_smoothing,
      gamma=settings.focal_gamma,
    )

  def _class_weights(self, given: tuple[str, ...]) -> Callable[[], np.ndarray]:
    """Returns a function that returns the weight of each label [K]."""
    labels = self.task.labels

    @functools.cache
    def balanced() -> np.ndarray:
      if self._tokenizer is None:  # a plan reads no examples
        return np.ones(len(labels))
      label = self._train_split().features.label
      assert label is not None
      found = self.objective.balanced_weights(label, len(labels))
      _log.info(
        "task.class_weights: %s",
        ", ".join(f"{x} {w:.3g}" for x, w in zip(labels, found, strict=True)),
      )
      return found

    if given == ("balanced",):
      return balanced
    try:
      values = np.array([float(x) for x in given])
    except ValueError:
      values = np.array([np.nan])
    is_right = np.isfinite(values).all() and (values >= 0).all()
    if not is_right or len(values) != len(labels) or not values.any():
      raise spec.TaskError(
        f"task.class_weights={','.join(map(str, given)):.200}; give balanced, "
        f"or a number from 0 for each of the {len(labels)} labels "
        f"{', '.join(labels):.300}"
      )
    return lambda: values

  @property
  def tokenizer(self) -> interface.Tokenizer:
    """The tokenizer whose ids the model knows."""
    assert self._tokenizer is not None
    return self._tokenizer

  @functools.cached_property
  def total_steps(self) -> int:
    """`train.total_steps`, or the steps of `train.num_epochs` epochs.

    Source: google-research/bert run_classifier.py:860-863.
    """
    if not self.config.train.num_epochs:
      return self.config.train.total_steps
    if self._tokenizer is None:
      return UNKNOWN_STEPS
    count = len(self._train_split().examples)
    size = self.config.data.batch_size
    return max(1, int(count / size * self.config.train.num_epochs))

  def split(self, name: str) -> "Split":
    """Returns a split, which is read once.

    Args:
      name: the name of a split of the task; or TASK:SPLIT for another task
        that has no training data and is predicted by a model of this one, such
        as ax:test by a model of MNLI.

    Raises:
      spec.TaskError: the task has no such split, or its files are missing.
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
          f"{name}: a model of {self.task.name} does not predict {other}"
        )
    files_given = (
      {} if other else {k: v for k, v in settings.files.items() if v}
    )
    if not other and name in (task.train_split, self._dev_name):
      examples = self._divided(name != task.train_split)
    else:
      examples = tasks.read_examples(
        task, settings.dir or "", name_there, files=files_given
      )
    if name == task.train_split and settings.both_orders:
      examples = spec.in_both_orders(task, examples)
    features = self.objective.make_features(
      task,
      examples,
      self.tokenizer,
      seq_len=self.config.data.seq_len,
      **{name: settings[name] for name in self.objective.feature_settings},
    )
    if (cut := features.cut) and cut.num_cut:
      _log.warning(
        "%s: %s; %s", name, cut, cut.advice(self.model.config.max_len)
      )
    types = self.model.config.type_vocab_size
    if types and features.segment_ids.max() >= types:
      raise spec.TaskError(
        f"task {task.name} has pairs of texts, but the model has "
        f"{types} token type (model.type_vocab_size), so it cannot tell them "
        "apart; start from weights with two, or train with "
        "--config.model.type_vocab_size=2"
      )
    return Split(task, name_there, examples, features)

  @property
  def _dev_name(self) -> str:
    """The split that is made from training examples, or ""."""
    return self.task.eval_splits[0] if dev_split.is_on(self.config.task) else ""

  def _divided(self, is_dev: bool) -> list[Any]:
    """Returns the examples to train on, or those of them to evaluate.

    Args:
      is_dev: whether the latter are wanted.
    """
    settings, task = self.config.task, self.task
    read = functools.partial(
      tasks.read_examples,
      task,
      settings.dir or "",
      task.train_split,
      max_examples=settings.max_train_examples,
      files={k: v for k, v in settings.files.items() if v},
    )
    if not self._dev_name:
      return read()
    parts = dev_split.divide(task, read(learns=False), settings)
    if is_dev:
      return parts[1]
    _log.info(
      "trains on %d of the training examples and evaluates %d",
      *map(len, parts),
    )
    return tasks.learned(task, parts[0])

  def remarks(self):
    """Returns what truncation leaves out of the splits read so far."""
    cuts = {name: split.features.cut for name, split in self._splits.items()}
    return [
      f"{name}: {cut}; {cut.advice(self.model.config.max_len)}"
      for name, cut in cuts.items()
      if cut and cut.num_cut
    ]

  def decode(self, split: "Split", outputs: np.ndarray) -> list:
    """Turns the outputs of the model into one prediction an example."""
    return self.objective.decode(
      split.task, split.features, outputs, **self._decode_options
    )

  @property
  def eval_splits(self) -> tuple[str, ...]:
    """The splits with labels that an evaluation reports."""
    given = tuple(self.config.task.eval_splits)
    return given or (
      (dev,) if (dev := self._dev_name) else self.task.eval_splits
    )

  @functools.cached_property
  def data_hash(self) -> str:
    """The hash of the features of the training split."""
    return _hash(self._train_split().features).hexdigest()

  def read_hashes(self) -> dict[str, str]:
    """Returns a hash of the features and examples of each split read so far."""
    found = {}
    for name, split in sorted(self._splits.items()):
      digest = _hash(split.features)
      for example in split.examples:
        digest.update(repr(example).encode())
      found[name] = digest.hexdigest()
    return found

  def _train_split(self) -> "Split":
    """Returns the split with the examples to train on.

    Raises:
      spec.TaskError: the task has no training split, or it has no labels.
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
    """The kind and the labels of the head, for readers of the weights."""
    return self.objective.facts(self.task)

  def batches(self, mesh, seed=None):
    config = self.config
    place = sharding.batch_sharding(mesh)
    devices = mesh.devices.flat
    num_groups = mesh.shape["data"] * mesh.shape["fsdp"]
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
      multiple=num_groups * config.optim.num_micro_batches,
      # The row length at which attention takes as long as the 12 D^2 weights of
      # a layer, as timed on a CPU.
      attention_len=2.5 * config.model.hidden_size,
      shape_price=_SHAPE_PRICE.get(devices[0].platform, 4e6) * len(devices),
      local_rows=lambda count: sharding.local_rows(place, count),
    )

  def evaluator(self, mesh, num_members=0):
    for name in self.eval_splits:
      if self.split(name).features.label is None:
        raise spec.TaskError(
          f"task {self.task.name}: the split {name} has no labels to score; "
          f"predict it with --config.task.predict_splits=\"('{name}',)\""
        )
    for name in self.config.task.predict_splits:
      self.split(name)
    return TaskEvaluator(self, mesh, num_members)

  def step_flops(self, batch, attended=None, all_positions=False, near=None):
    rows, length = batch["input_ids"].shape
    starts = batch.get("cls_positions", np.zeros([rows, 1]))
    return flops.task_step_flops(
      self.config.model,
      rows * jax.process_count(),
      length,
      self.objective.head.role,
      num_sequences=starts.shape[1],
      **self.seen_pairs(batch, attended, near),
      all_positions=all_positions,
    )

  def intervals(self, evaluator):
    num_samples = self.config.eval.get("bootstrap", 0)  # older runs lack it
    if not num_samples:
      return {}
    found: dict[str, float] = {}
    for name, predictions in evaluator.predicted.items():
      split = self.split(name)
      units = spec.units(split.examples)

      def score(drawn, split=split, predictions=predictions, units=units):
        chosen = [units[i] for i in drawn]
        return self.objective.score(
          split.task,
          [predictions[i] for unit in chosen for i in unit],
          _as_new(split.examples, chosen),
        )

      prefix = "eval/" if name == self.eval_splits[0] else f"eval/{name}/"
      with task_kind.quiet():
        ranges = uncertainty.bootstrap(score, len(units), num_samples)
      for metric, (low, high) in ranges.items():
        if metric.endswith(("total", "_thresh")):  # counts and settings
          continue
        found[f"{prefix}{metric}_low"] = low
        found[f"{prefix}{metric}_high"] = high
    return found

  def explain(self, evaluator, path):
    folder, file = os.path.split(path)
    stem = os.path.splitext(file)[0]
    stem = "errors" if stem == "evaluation" else f"{stem}.errors"
    written = []
    for name, predictions in evaluator.predicted.items():
      split = self.split(name)
      facts = (split.task, split.examples, predictions)
      if text := self.objective.tables(*facts):
        print(f"\n{split.task.name}, {name}:\n{streams.printable(text)}\n")
      mistakes = self.objective.mistakes(*facts)
      if mistakes is not None:
        end = "" if name == self.eval_splits[0] else f"-{name}"
        written.append(os.path.join(folder, f"{stem}{end}.jsonl"))
        with files.writing(written[-1], "w", errors="replace") as f:
          for record in mistakes:
            f.write(files.to_json(record, ensure_ascii=False) + "\n")
    return written

  def confusions(self, evaluator):
    found = {}
    for name, predictions in evaluator.predicted.items():
      split = self.split(name)
      counts = self.objective.confusion(split.task, split.examples, predictions)
      if counts is not None:
        labels = list(map(str, split.task.labels))
        found[name] = {"labels": labels, "counts": counts.tolist()}
    return found

  def write_predictions(self, evaluator, params, workdir):
    """Writes what the model predicts for the splits of `task.predict_splits`.

    The folder predictions/ of the workdir gets TASK-SPLIT.jsonl with one
    example a line. Questions also get the original's three files, in the folder
    TASK-SPLIT, and the test splits of GLUE and SuperGLUE the file that the
    server of the benchmark takes.

    Raises:
      spec.TaskError: the task has no such split.
    """
    splits = [self.split(name) for name in self.config.task.predict_splits]
    written: list[str] = []
    for split in splits:
      predictions = evaluator.predict(params, split)
      if not jax.process_index():
        written += self.write_split(split, predictions, workdir)
    return written

  def write_split(
    self, split: "Split", predictions: Sequence[Any], workdir: str
  ) -> list[str]:
    """Writes the predictions for a split; see `write_predictions`.

    Args:
      split: the split.
      predictions: one for each of its examples.
      workdir: the folder whose folder predictions/ gets the files.

    Returns:
      The paths of the files.
    """
    folder = os.path.join(workdir, "predictions")
    task, examples = split.task, split.examples
    files.make_folders(folder)
    stem = os.path.join(folder, f"{task.name}-{split.name}")
    written = self.objective.write_predictions(
      task, examples, predictions, stem
    )
    if split.name in task.submission:
      path = os.path.join(folder, task.submission[split.name])
      assert task.submit is not None, task.name
      files.write_text(path, task.submit(task, examples, predictions))
      written.append(path)
    return written


def _as_new(
  examples: Sequence[Any], drawn: Iterable[Sequence[int]]
) -> list[Any]:
  """Returns drawn units of examples, each with an id of its own.

  Scores by id or by group would count a unit that was drawn twice once.
  """
  found = []
  for number, unit in enumerate(drawn):
    for i in unit:
      name = str(number)
      grouped = isinstance(examples[i], spec.GroupedExample)
      others = {"group": name} if grouped else {}
      found.append(dataclasses.replace(examples[i], id=name, **others))
  return found


def _hash(features: Any) -> Any:
  """Returns a digest of the tokens and labels of a split."""
  digest = hashlib.sha256()
  for array in (features.token_ids, features.offsets, features.label):
    if array is not None:
      digest.update(np.ascontiguousarray(array).tobytes())
  return digest


# Keys of the group `task` that are lists of words.
_LISTS = (
  "text", "labels", "columns", "eval_splits", "predict_splits", "class_weights",
)  # fmt: skip


_split_words = own.split_words


def get_task(settings: Any) -> spec.Task:
  """Returns the row of facts about a task.

  Args:
    settings: the group `task` of a config. The name "my-FORM" stands for the
      user's own data, in a form of tasks/own.py.

  Raises:
    spec.TaskError: no task has this name; the message lists the known ones.
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
      labels_file=settings.get("labels_file", ""),
      **{k: settings[k] for k in own.SETTINGS if k in settings},
    )
  if settings.name not in tasks.TASKS:
    raise spec.TaskError(
      f"task.name={settings.name!r} is not known; use one of "
      f"{', '.join(tasks.TASKS)}, or my-FORM with FORM one of "
      f"{', '.join(table.FORMS)}"
    )
  answers = settings.get("train_answers", "one")
  return dataclasses.replace(tasks.TASKS[settings.name], train_answers=answers)


@dataclasses.dataclass(frozen=True)
class Split:
  """The examples of a split and their features.

  Attributes:
    task: the task that the examples belong to.
    name: the name of the split.
    examples: the examples, in the order of their file.
    features: the features of these examples.
  """

  task: spec.Task
  name: str
  examples: list
  features: task_features.Features


class TaskEvaluator(Evaluator):
  """Predicts whole splits and scores the predictions."""

  _job: FineTuning

  def __init__(
    self, job: FineTuning, mesh: jax.sharding.Mesh, num_members: int
  ):
    """Prepares the evaluation; see `Job.evaluator`."""
    step = steps.make_predict_step(job.model, job.objective)
    if num_members:
      step = jax.vmap(
        step, in_axes=(0, None), spmd_axis_name=sharding.SEED_AXIS
      )
    super().__init__(job, mesh, step)
    self._num_members = num_members
    # Name of a split -> the last predictions of the first model.
    self.predicted: dict[str, list] = {}
    # Name of a split -> what was last said of its predictions.
    self._remarks: dict[str, str] = {}

  def names(self, params: Any) -> list[str]:
    del params
    return [
      f"{self._prefix(split)}{name}"
      for split in self._job.eval_splits
      for name in ("loss", *self._job.split(split).task.metrics)
    ]

  def _prefix(self, split: str) -> str:
    """Returns eval/ for the first split, eval/SPLIT/ for the others."""
    return "eval/" if split == self._job.eval_splits[0] else f"eval/{split}/"

  def __call__(self, params: Any) -> dict[str, float]:
    """Returns eval/NAME of every metric of every split with labels."""
    return self.evaluate_all(params)[0]

  def evaluate_all(self, params: Any) -> list[dict[str, float]]:
    """Returns the same for each of the models whose parameters are stacked."""
    every: list[dict[str, float]] = [{} for _ in range(self._num_members or 1)]
    for name in self._job.eval_splits:
      split = self._job.split(name)
      predicted = self._predict_all(params, split)
      self.predicted[name] = predicted[0][0]
      for values, (predictions, totals) in zip(every, predicted, strict=True):
        found = self._job.objective.score(
          split.task, predictions, split.examples
        )
        found["loss"] = metrics.finish(totals)["task_loss"]
        remark = self._job.objective.degenerate(
          split.task, predictions, split.examples
        )
        if remark and self._remarks.get(name) != remark:
          _log.warning("%s: %s", name, remark)
        self._remarks[name] = remark
        values |= {self._prefix(name) + k: v for k, v in found.items()}
    return [dict(sorted(values.items())) for values in every]

  def predict(self, params: Any, split: Split) -> list:
    """Returns a prediction for every example of a split; see its kind.

    Args:
      params: the parameters of the model.
      split: a split with or without labels.
    """
    return self._predict_all(params, split)[0][0]

  def outputs(self, params: Any, split: Split) -> np.ndarray:
    """Returns what `decode` turns into the predictions for a split.

    Args:
      params: the parameters of the model.
      split: a split with or without labels.
    """
    return self._outputs_all(params, split)[0][0]

  def _predict_all(
    self, params: Any, split: Split
  ) -> list[tuple[list, metrics.Totals]]:
    """Returns the predictions of each model, and its loss as (sum, weight).

    Without labels, the loss is {}.
    """
    return [
      (self._job.decode(split, outputs), total)
      for outputs, total in self._outputs_all(params, split)
    ]

  def _outputs_all(
    self, params: Any, split: Split
  ) -> list[tuple[np.ndarray, metrics.Totals]]:
    """Returns the outputs of each model, and its loss as (sum, weight)."""
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
    outputs: list[list] = [[] for _ in range(self._num_members or 1)]
    totals: list[metrics.Totals] = [{} for _ in outputs]
    for found in self._run(split.name, rows, params):
      parts = [found]
      if self._num_members:
        parts = list(unstack_models(found, self._num_members))
      for k, (output, sums) in enumerate(parts):
        outputs[k].append(output)
        totals[k] = metrics.add(totals[k], sums)
    return [
      (rows.collect(own), total)
      for own, total in zip(outputs, totals, strict=True)
    ]
