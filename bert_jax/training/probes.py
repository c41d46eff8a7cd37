"""Probes: what an encoder is worth to tasks, measured while it pre-trains.

The loss of pre-training says little about tasks. Every `probe.every_steps`
steps, each probe scores the encoder on the development set of a small task:

  similarity  the cosine of the mean token vectors of two texts against the
              score that people gave them; nothing is trained
  linear      a linear classifier of the mean token vectors; the encoder is
              frozen
  finetune    a short fine-tuning of the whole encoder

A probe is a function of the parameters and of the config alone, so a resumed
run has the same values. Two baselines stand beside each score: the same probe
of the untrained weights, and always giving the most frequent label.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data import task_batches
from bert_jax.models import encoder
from bert_jax.models import families
from bert_jax.models import heads
from bert_jax.models.attention import programs
from bert_jax.runtime import errors
from bert_jax.runtime import settings
from bert_jax.runtime import sharding
from bert_jax.runtime import watchdog
from bert_jax.runtime.settings import Config
from bert_jax.tasks import own
from bert_jax.training import checks
from bert_jax.training import finetuning
from bert_jax.training import session
from bert_jax.training.job import Evaluator
from bert_jax.training.job import Job

# The longest text that a probe reads, in tokens, and the recipe of the short
# fine-tuning, as far as the group `probe` does not decide it.
_SEQ_LEN = 128
_EVAL_ROWS = 16
_RECIPE = {
  "data.batch_size": 32,
  "data.pack": True,
  "data.one_row_len": True,  # one shape to compile
  "train.total_steps": 0,
  "train.on_bad_step": "skip",
  "optim.name": "adamw",
  "optim.schedule": "linear",
  "optim.cooldown_rate": 0.0,
  "optim.warmup_rate": 0.1,
  "optim.weight_decay": 0.01,
  "optim.b1": 0.9,
  "optim.b2": 0.999,
  "optim.eps": 1e-6,
  "optim.clip_norm": 1.0,
  "optim.num_micro_batches": 1,
  "model.pooling": "mean",
}
# Keys of the pre-training that have their defaults in a probe.
_AS_BY_DEFAULT = (
  "init_random", "init_layers", "init_changes", "init_moments",
  "reinit_layers", "optim.layer_decay", "optim.head_rate",
  "optim.frozen_layers", "optim.frozen_embeddings", "optim.unfreeze_steps",
  "train.phases", "train.patience", "train.stop_at", "train.spike_factor",
  "train.export",
  *checks.FOR_TASKS, *checks.FOR_PRETRAINING,
)  # fmt: skip


class ProbeError(errors.UserError):
  """A probe cannot be run as the group `probe` describes it."""


class Prober:
  """All probes of a config, ready to be called again and again.

  Attributes:
    every_steps: the number of steps from one call to the next; 0 = never.
  """

  def __init__(self, job: Job, mesh: jax.sharding.Mesh):
    """Reads the tasks; compiles nothing yet.

    Args:
      job: the pre-training.
      mesh: the mesh that the parameters live on.

    Raises:
      ValueError: the group `probe` names no task, or one that a probe cannot
        take, or its files are missing.
    """
    config = job.config
    self._encoder_of = job.objective.encoder_of
    group = config.get("probe")  # older runs lack it
    self.every_steps = group.every_steps if group else 0
    self._probes: list[_Probe] = []
    self._constant: dict[str, float] | None = None
    if not group or not self.every_steps:
      return
    if config.objective == "task":
      raise ProbeError(
        f"probe.every_steps={self.every_steps} is for pre-training, and this "
        "run trains a task; set --config.probe.every_steps=0"
      )
    named = {kind: own.split_words(group[kind]) for kind in PROBES}
    if not any(named.values()):
      raise ProbeError(
        f"probe.every_steps={self.every_steps}, but no probe names a task; "
        "give for example --config.probe.linear=sst2, or "
        "--config.probe.every_steps=0 for no probes"
      )
    if not group.dir:
      raise ProbeError(
        "probe.dir is not set; give --config.probe.dir=DATA, a folder with the "
        "files of the tasks of the probes"
      )
    for kind, tasks in named.items():
      for task in tasks:
        own_job = finetuning.FineTuning(
          _task_config(config, task, mesh), job.tokenizer
        )
        self._probes.append(PROBES[kind](own_job, mesh))

  @property
  def names(self) -> list[str]:
    """The names of the scores, as TASK_PROBE_METRIC."""
    return [probe.name for probe in self._probes]

  def _with_encoder(self, params: Any) -> Any:
    """Returns parameters whose encoder is that of the finished model."""
    return params | {"encoder": self._encoder_of(params)}

  def is_due(self, step: int) -> bool:
    """Returns whether the encoder is probed after a step."""
    return self.every_steps > 0 and step > 0 and step % self.every_steps == 0

  def __call__(self, params: Any, untrained: Any = None) -> dict[str, float]:
    """Returns every score by probe/TASK_PROBE_METRIC, with its baselines.

    Args:
      params: the parameters of the pre-training.
      untrained: returns its parameters before the first step. Their scores are
        computed once; None leaves them out.
    """
    params = self._with_encoder(params)
    if self._constant is None:
      self._constant = self._baselines(untrained)
    return {
      f"probe/{probe.name}": probe(params) for probe in self._probes
    } | self._constant

  def _baselines(self, untrained: Any) -> dict[str, float]:
    found = {}
    params = self._with_encoder(untrained()) if untrained else None
    for probe in self._probes:
      if params is not None:
        found[f"probe/{probe.name}_untrained"] = probe(params)
      if (score := probe.most_frequent()) is not None:
        found[f"probe/{probe.name}_majority"] = score
    return found


def _task_config(config: Config, task: str, mesh: jax.sharding.Mesh) -> Any:
  """Returns the config of a task whose model has the shape of the encoder."""
  num_groups = mesh.shape["data"] * mesh.shape["fsdp"]
  group = config.probe
  made: Any = config.copy_and_resolve_references()
  values = {name: settings.KEYS[name].default for name in _AS_BY_DEFAULT}
  values |= _RECIPE | {
    "objective": "task",
    "init_from": None,
    "task.name": task,
    "task.dir": group.dir,
    "task.max_train_examples": group.max_train_examples,
    "task.eval_splits": (),
    "task.predict_splits": (),
    "eval.batch_size": -(-_EVAL_ROWS // num_groups) * num_groups,
    "data.seq_len": min(_SEQ_LEN, config.model.max_len),
    "train.num_epochs": group.num_epochs,
    "optim.learning_rate": group.learning_rate,
  }
  for name, value in values.items():
    *groups, key = name.split(".")
    target = made
    for inner in groups:
      target = target[inner]
    target[key] = value
  settings.check(made)
  return made


class _Probe:
  """The base of the probes.

  Attributes:
    name: TASK_PROBE_METRIC.
  """

  kind = ""

  def __init__(self, job: finetuning.FineTuning, mesh: jax.sharding.Mesh):
    """Reads the splits of the task.

    Args:
      job: the task, with a model that has the shape of the encoder.
      mesh: the mesh that the parameters live on.

    Raises:
      ValueError: the probe cannot take this task.
    """
    if not job.task.train_split:
      raise ProbeError(
        f"probe.{self.kind} has {job.task.name}, which has no training split; "
        f"give {job.task.trained_as}, which has one"
      )
    self._job, self._mesh = job, mesh
    self._metric = job.task.main_metric
    self.name = f"{job.task.name}_{self.kind}_{self._metric}"
    self._check()
    self._held_out = job.split(job.eval_splits[0])

  def _check(self) -> None:
    """Raises ProbeError if the probe cannot take the task."""

  def __call__(self, params: Any) -> float:
    """Returns the score of the encoder in these parameters."""
    raise NotImplementedError

  def most_frequent(self) -> float | None:
    """Returns the score of always giving one label; None for a task without."""
    labels = self._train_labels()
    if labels is None:
      return None
    always = np.zeros(
      (len(self._held_out.examples), len(self._job.task.labels))
    )
    always[:, np.bincount(labels).argmax()] = 1.0
    return self._score(always)

  def _train_labels(self) -> np.ndarray | None:
    """Returns the label [N] of each training example; None if not classes."""
    train = self._job.split(self._job.task.train_split)
    if self._job.objective.most_frequent(train.examples) is None:
      return None
    return np.array([example.label for example in train.examples])

  def _score(self, outputs: np.ndarray) -> float:
    """Returns the score of outputs [M, K] for the held-out examples."""
    job, split = self._job, self._held_out
    predictions = job.decode(split, outputs)
    found = job.objective.score(split.task, predictions, split.examples)
    return found[self._metric]


class _Similarity(_Probe):
  """The correlation of cosines with the scores of pairs of texts."""

  kind = "similarity"

  def __init__(self, job, mesh):
    super().__init__(job, mesh)
    examples = self._held_out.examples
    self._embed = _Embedder(job, mesh)
    self._sides = [
      self._features([getattr(e, side) for e in examples])
      for side in ("text_a", "text_b")
    ]

  def _check(self):
    job = self._job
    if self._metric != "spearman":
      raise ProbeError(
        f"probe.similarity has {job.task.name}, which has no scores of pairs "
        "of texts; give a task that is scored by rank correlation, such as stsb"
      )

  def _features(self, texts: Sequence[str]) -> Any:
    """Returns the features of texts that the encoder reads one at a time."""
    job, split = self._job, self._held_out
    examples = [
      dataclasses.replace(example, text_a=text, text_b=None)
      for example, text in zip(split.examples, texts, strict=True)
    ]
    return job.objective.make_features(
      job.task, examples, job.tokenizer, seq_len=job.config.data.seq_len
    )

  def __call__(self, params: Any) -> float:
    one, other = (self._embed.vectors(params, side) for side in self._sides)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines = (one * other).sum(axis=1) / np.maximum(norms, 1e-12)
    return self._score(cosines[:, None])


class _Linear(_Probe):
  """A logistic regression on the vectors of the frozen encoder."""

  kind = "linear"

  def __init__(self, job, mesh):
    super().__init__(job, mesh)
    self._embed = _Embedder(job, mesh)

  def _check(self):
    if self._train_labels() is None:
      raise ProbeError(
        f"probe.linear has {self._job.task.name}, which is not a task with one "
        "label for each text; give such a task, such as sst2, or name it in "
        "probe.finetune"
      )

  def __call__(self, params: Any) -> float:
    from sklearn import linear_model  # slow to import

    labels = self._train_labels()
    assert labels is not None
    train = self._job.split(self._job.task.train_split)
    x, held_out = (
      self._embed.vectors(params, split.features)
      for split in (train, self._held_out)
    )
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    model = linear_model.LogisticRegression(C=0.1, max_iter=1000)
    model.fit((x - mean) / scale, labels)
    outputs = np.zeros((len(held_out), len(self._job.task.labels)))
    outputs[:, model.classes_] = model.predict_proba((held_out - mean) / scale)
    return self._score(outputs)


class _Finetune(_Probe):
  """A short fine-tuning of all parameters."""

  kind = "finetune"

  def __init__(self, job, mesh):
    super().__init__(job, mesh)
    self._batches = job.batches(mesh)
    count = jax.process_count()  # all processes have the same number of rows
    shapes = {
      name: jax.ShapeDtypeStruct((len(x) * count, *x.shape[1:]), x.dtype)
      for name, x in self._batches[0].items()
    }
    self._program = session.open_program(job, mesh, shapes)
    self._evaluator = job.evaluator(mesh)
    self._init = jax.jit(
      self._program.init_state, out_shardings=self._program.place
    )
    self._step = self._program.train_step()

  def __call__(self, params: Any) -> float:
    state = self._init(self._program.rngs[0])
    started = _started_from(params, state.params, self._job.model.config.family)
    state = state.replace(params=started)
    for batch in self._job.prefetch(self._batches, 0):
      watchdog.note(f"probing {self._job.task.name}")
      placed = sharding.put_global_batch(batch, self._program.batch_place)
      state, _ = self._step(state, placed)
    return self._evaluator(state.params)[f"eval/{self._metric}"]


PROBES: dict[str, type[_Probe]] = {
  probe.kind: probe for probe in (_Similarity, _Linear, _Finetune)
}


def _started_from(params: Any, fresh: Any, family: str) -> Any:
  """Returns fresh parameters of a task with the encoder of a pre-training.

  The parts of its head that the family shares with the heads of tasks are taken
  over, too. Arrays are copied, because training reuses their memory.
  """
  given = {"encoder": params["encoder"]}
  shared = families.get_family(family).shared_head
  words = params.get("mlm", {})
  if parts := {key: words[key] for key in shared if key in words}:
    given["task"] = parts

  def take(own, theirs):
    if isinstance(own, dict):
      return {k: take(v, (theirs or {}).get(k)) for k, v in own.items()}
    fits = theirs is not None and theirs.shape == own.shape
    return jnp.copy(theirs) if fits else own

  return take(fresh, given)


class _Embedder(Evaluator):
  """Computes the mean token vector of every text or pair of texts."""

  def __init__(self, job: finetuning.FineTuning, mesh: jax.sharding.Mesh):
    model = encoder.Encoder(job.model.config)

    def step(params, batch):
      last, _ = model.apply(
        {"params": params["encoder"]},
        batch["input_ids"],
        batch["input_mask"],
        batch["segment_ids"],
        positions=batch["positions"],
        sequence_ids=batch["sequence_ids"],
      )
      slots = batch["cls_positions"].shape[1]
      return heads.mean_of_sequences(last, batch["sequence_ids"], slots)

    super().__init__(job, mesh, step)
    self._job: Any = job

  def vectors(self, params: Any, features: Any) -> np.ndarray:
    """Returns the vectors [M, D] of the sequences of the features."""
    job = self._job
    rows = task_batches.TaskSplit(
      dataclasses.replace(features, label=None),
      num_rows=job.config.eval.batch_size,
      seq_len=job.config.data.seq_len,
      pad_id=job.tokenizer.pad_id,
      length_unit=programs.program_of(job.model.config).row_unit,
      local_rows=lambda count: sharding.local_rows(self._place, count),
    )
    return rows.collect(list(self._run("probe", rows, params)))
