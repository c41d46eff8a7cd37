"""The base of the kinds of tasks: features, a head, decoding and scores.

A kind of task reads examples of one class of tasks/spec.py. Predictions of a
whole split are scored on the host. Scores are from 0 to 1 (correlations from
-1), except for questions, whose scores are in percent.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import copy
import dataclasses
import logging
from typing import Any, Self

from flax import linen as nn
import jax
import numpy as np

from bert_jax.data import batch_keys
from bert_jax.data import task_batches
from bert_jax.data.tokenizers import interface
from bert_jax.kinds import kind
from bert_jax.kinds import losses as losses_lib
from bert_jax.models import families
from bert_jax.models import heads
from bert_jax.models.config import ModelConfig
from bert_jax.runtime import files
from bert_jax.tasks import features as task_features
from bert_jax.tasks import own
from bert_jax.tasks import spec
from bert_jax.weights import task_heads

_log = logging.getLogger(__name__)

# The keys of the group `task` that change the loss of training.
LOSS_SETTINGS = ("class_weights", "label_smoothing", "focal_gamma")

# (task, predictions, right answers) -> score.
Score = Callable[[spec.Task, list[Any], list[Any]], float]


@dataclasses.dataclass(frozen=True)
class OfExamples:
  """A metric of whole examples, such as one over the groups they belong to.

  Attributes:
    score: (examples, predictions) -> score.
  """

  score: Callable[[Sequence[Any], Sequence[Any]], float]


class TaskKind(kind.Kind):
  """The base of the kinds of tasks.

  Attributes:
    labels: the batch keys of the labels.
    pooled: whether the head reads [CLS] of every sequence, and not all tokens.
    head: the head in weights/task_heads.py; a kind of another package sets it.
    scores: metric -> the function that computes it.
    forms: FORM of task.name=my-FORM -> the form of own data of this kind.
    feature_settings: the keys of the group `task` that `make_features` takes.
    decode_settings: the keys of the group `task` that `decode` takes.
    loss_settings: the keys of the group `task`, of `LOSS_SETTINGS`, that the
      loss of training honours.
    loss_options: their values.
    own_settings: the keys of the group `task` that only some kinds honour, and
      this one does, beyond those above.
    num_choices: the number of sequences of an example if no data tells it.
    counts_choices: whether batches have the number of choices of each example
      even if all examples have as many.
  """

  labels = batch_keys.Labels({"label": ("BG", np.int32)})
  pooled = True
  scores: Mapping[str, Score | OfExamples] = {}
  forms: Mapping[str, own.Form] = {}
  feature_settings: tuple[str, ...] = ()
  decode_settings: tuple[str, ...] = ()
  loss_settings: tuple[str, ...] = ()
  loss_options = losses_lib.PLAIN
  own_settings: tuple[str, ...] = ()
  num_choices = 1
  counts_choices = False
  head: task_heads.TaskHead

  def __init__(self):
    if self.pooled:
      self.inputs = (*self.inputs, "cls_positions")
    if not hasattr(self, "head"):
      self.head = task_heads.HEADS[self.name]

  # --- The model and its loss ---

  def make_model(self, config: ModelConfig, num_labels: int = 0) -> nn.Module:
    return heads.TaskModel(
      config,
      self.head.width or num_labels,
      self.pooled,
      self.head.role,
    )

  def needs(self, path: str, config: ModelConfig) -> bool:
    steps = families.get_family(config.family).heads[self.head.role]
    return "pooler" in steps or not path.startswith("encoder/pooler/")

  def batch_shapes(self, config: Any, num_labels: int = 1) -> batch_keys.Shapes:
    return task_batches.task_shapes(
      self.labels,
      config.data.batch_size,
      config.data.seq_len * self.num_choices,
      1,
      self.num_choices,
      num_labels,
    )

  def loss(
    self,
    outputs: jax.Array,
    batch: kind.Batch,
    options: losses_lib.Options = losses_lib.PLAIN,
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of the losses of a batch, and its weight.

    Args:
      outputs: [B, S, K] of sequences, or [B, L, K] of tokens.
      batch: the batch, with labels.
      options: what the loss of training has beyond the plain one.
    """
    raise NotImplementedError

  def losses(self, outputs: Any, batch: kind.Batch) -> kind.Sums:
    return {"task_loss": self.loss(outputs, batch, self.loss_options)}

  def metrics(self, outputs: Any, batch: kind.Batch) -> kind.Sums:
    return {"task_loss": self.loss(outputs, batch)}

  def weights(self, batch: kind.Batch) -> dict[str, jax.Array]:
    weight = batch["weight"]
    if self.loss_options.class_weights:
      weight = weight * self.loss_options.of_labels(batch["label"])
    return {"task_loss": weight.sum()}

  def with_loss(self, options: losses_lib.Options) -> Self:
    """Returns the same kind with another loss of training."""
    found = copy.copy(self)
    found.loss_options = options
    return found

  def balanced_weights(self, label: np.ndarray, num_labels: int) -> np.ndarray:
    """Returns the weights [K] with which every label counts the same.

    A label that no example has weighs nothing.

    Args:
      label: the labels of the features to train on, as in `Features`.
      num_labels: K.
    """
    counts = np.bincount(label[label >= 0], minlength=num_labels)
    present = counts > 0
    weights = counts.sum() / (present.sum() * np.maximum(counts, 1))
    return np.where(present, weights, 0.0)

  def facts(self, task: spec.Task) -> dict[str, Any]:
    """Returns what run.json says of the model, for readers of the weights."""
    labels = task.labels if self.head.has_names else ()
    return {"task": {"kind": task.kind, "labels": list(labels)}}

  # --- From examples to features ---

  def make_features(
    self,
    task: spec.Task,
    examples: Sequence[Any],
    tokenizer: interface.Tokenizer,
    *,
    seq_len: int,
    **options: Any,
  ) -> task_features.Features:
    """Turns examples into features.

    Args:
      task: the task, with its labels.
      examples: the examples of one split.
      tokenizer: the tokenizer, whose special tokens are used.
      seq_len: L, the most tokens of a sequence, with special tokens.
      **options: the settings in `feature_settings`.

    Returns:
      The features in the order of the examples; the units of an example follow
      one another.

    Raises:
      spec.TaskError: There are no examples, only some of them have labels, or
        `seq_len` leaves no room for text.
    """
    if not examples:
      raise spec.TaskError(f"task {task.name}: no examples to make features of")
    if seq_len < 5:
      raise spec.TaskError(
        f"seq_len={seq_len} leaves no room for text besides special tokens; use"
        " 128, or 384 for questions"
      )
    return self._features(task, examples, tokenizer, seq_len, **options)

  def _features(
    self, task, examples, tokenizer, seq_len
  ) -> task_features.Features:
    """Makes a sequence of every text, pair of texts or choice.

    Examples with fewer choices than others are filled up with sequences
    without tokens, which the loss and the decoding leave out.
    """
    groups = [example.pairs for example in examples]
    counts = np.array([len(pairs) for pairs in groups], np.int32)
    has_labels = spec.have_labels(task, examples)
    keys = dict(self.labels.keys)
    is_counted = self.counts_choices or counts.min() < counts.max()
    if is_counted:
      keys["num_choices"] = ("BG", np.int32)
    return task_features.Features(
      **task_features.grouped_sequences(groups, tokenizer, seq_len),
      example=np.arange(len(examples), dtype=np.int32),
      label=self._label_array(task, examples) if has_labels else None,
      num_choices=int(counts.max()),
      counts=counts if is_counted else None,
      labels=dataclasses.replace(self.labels, keys=keys),
    )

  def _label_array(self, task, examples) -> np.ndarray:
    """Returns the labels of examples that have one each."""
    del task
    _, dtype = self.labels.keys["label"]
    return np.array([example.label for example in examples], dtype)

  # --- From outputs to predictions ---

  def check_options(self, task: spec.Task, **options: Any) -> None:
    """Checks the settings of `decode` before anything is computed.

    Args:
      task: the task.
      **options: the settings in `decode_settings` that are known.

    Raises:
      spec.TaskError: A setting does not fit the task.
    """

  def decode(
    self,
    task: spec.Task,
    features: task_features.Features,
    outputs: Any,
    **options: Any,
  ) -> list[Any]:
    """Turns the outputs of a model into one prediction for each example.

    Args:
      task: the task.
      features: the features from which the outputs were computed.
      outputs: [M, K] of the sequences, or [T, K] of the tokens of the features.
      **options: the settings in `decode_settings`, checked by `check_options`.

    Raises:
      spec.TaskError: The outputs do not have the shape that the features want,
        or are not finite.
    """
    array = np.asarray(outputs, np.float64)
    count = len(features.lengths if self.pooled else features.token_ids)
    wanted = (count, self.head.width or len(task.labels))
    if array.shape != wanted:
      raise spec.TaskError(
        f"task {task.name}: outputs of shape {array.shape}, wanted {wanted} for"
        " these features"
      )
    check_finite(task, array)
    return self._decode(task, features, array, **options)

  def _decode(self, task, features, outputs, **options) -> list[Any]:
    raise NotImplementedError

  # --- From predictions to scores ---

  def score(
    self,
    task: spec.Task,
    predictions: Sequence[Any],
    examples: Sequence[Any],
  ) -> dict[str, float]:
    """Returns the metrics of a task over a whole split.

    A metric that is not defined, such as the correlation of constants, is 0.0
    and logs a warning.

    Args:
      task: the task, whose metrics are computed.
      predictions: the prediction of `decode` for each example.
      examples: the examples, with labels.

    Raises:
      spec.TaskError: The examples have no labels, or their number differs from
        that of the predictions.
    """
    if len(predictions) != len(examples) or not examples:
      raise spec.TaskError(
        f"task {task.name}: {len(predictions)} predictions for {len(examples)}"
        " examples; wanted one for each, and at least one"
      )
    if not spec.have_labels(task, examples):
      raise spec.TaskError(
        f"task {task.name}: these examples have no labels, so there is nothing"
        " to score; write their predictions, or evaluate on"
        f" {', '.join(task.eval_splits) or 'a split with labels'}"
      )
    return self._score(task, predictions, examples)

  def _score(self, task, predictions, examples) -> dict[str, float]:
    guess, right = self._columns(task, predictions, examples)

    def value(score: Score | OfExamples) -> float:
      if isinstance(score, OfExamples):
        return float(score.score(examples, predictions))
      return float(score(task, guess, right))

    return {name: value(self.scores[name]) for name in task.metrics}

  def _columns(self, task, predictions, examples) -> tuple[list, list]:
    """Returns the predictions and the labels as the metrics take them."""
    del task
    return [p.label for p in predictions], [e.label for e in examples]

  def most_frequent(self, examples: Sequence[Any]) -> float | None:
    """Returns the accuracy of always predicting the most frequent label.

    Returns None for kinds other than classification.
    """
    del examples
    return None

  def degenerate(
    self, task: spec.Task, predictions: Sequence[Any], examples: Sequence[Any]
  ) -> str:
    """Returns what shows that a model learned nothing, or "".

    Args:
      task: the task.
      predictions: the prediction of `decode` for each example.
      examples: the examples of a split, with labels.
    """
    del task, predictions, examples
    return ""

  def tables(
    self, task: spec.Task, examples: Sequence[Any], predictions: Sequence[Any]
  ) -> str:
    """Returns scores by label and a confusion matrix as text; "" if none fit.

    Args:
      task: the task.
      examples: the examples of a split, with labels.
      predictions: the prediction of `decode` for each example.
    """
    del task, examples, predictions
    return ""

  def confusion(
    self, task: spec.Task, examples: Sequence[Any], predictions: Sequence[Any]
  ) -> np.ndarray | None:
    """Returns how often each label was predicted for each right label.

    Args:
      task: the task, with its labels.
      examples: the examples of a split, with labels.
      predictions: the prediction of `decode` for each example.

    Returns:
      [K, K] counts, a row a right label; None for kinds without one label for
      each answer.
    """
    del task, examples, predictions
    return None

  def mistakes(
    self, task: spec.Task, examples: Sequence[Any], predictions: Sequence[Any]
  ) -> list[dict[str, Any]] | None:
    """Returns a record for every wrong prediction, the most confident first.

    Returns None for kinds without one probability for each answer.
    """
    del task, examples, predictions
    return None

  # --- Predictions as files ---

  def row(self, task: spec.Task, prediction: Any) -> dict[str, Any]:
    """Returns the fields of a prediction in a file of predictions."""
    raise NotImplementedError

  def gold(self, task: spec.Task, example: Any) -> Any:
    """Returns the label of an example as files of predictions spell it."""
    del task
    return example.label

  def write_predictions(
    self,
    task: spec.Task,
    examples: Sequence[Any],
    predictions: Sequence[Any],
    stem: str,
  ) -> list[str]:
    """Writes predictions as JSON lines, one for each example.

    Args:
      task: the task.
      examples: the examples of a split.
      predictions: the prediction of `decode` for each example.
      stem: the path of the file without its extension.

    Returns:
      The paths of the files that were written.
    """
    path = f"{stem}.jsonl"
    # Half of a surrogate pair, which JSON can hold, cannot be encoded in UTF-8.
    with files.writing(path, "w", errors="replace") as f:
      for example, prediction in zip(examples, predictions, strict=True):
        row = {"id": example.id, **self.row(task, prediction)}
        if example.is_labelled:
          row["gold"] = self.gold(task, example)
        f.write(files.to_json(row, ensure_ascii=False) + "\n")
    return [path]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """A context in which no score that is not defined is warned of."""
  _log.disabled = True
  try:
    yield
  finally:
    _log.disabled = False


def check_finite(task: spec.Task, outputs: np.ndarray) -> None:
  """Raises TaskError if outputs of a model are NaN or infinite."""
  if not np.isfinite(outputs).all():
    raise spec.TaskError(
      f"task {task.name}: {np.sum(~np.isfinite(outputs))} of {outputs.size}"
      " outputs are not finite, so the model has diverged; lower the learning"
      " rate"
    )


def without_filling(
  features: task_features.Features, groups: np.ndarray
) -> list[np.ndarray]:
  """Returns what each example has of an array [N, C, ...] of its choices."""
  if features.counts is None:
    return list(groups)
  counts = features.counts.tolist()
  return [x[:count] for x, count in zip(groups, counts, strict=True)]


def undefined(task: spec.Task, metric: str, reason: str) -> float:
  """Logs that a metric is not defined; returns the 0.0 that it counts as."""
  _log.warning(
    "task %s: %s is not defined (%s) and counts as 0.0",
    task.name, metric, reason,
  )  # fmt: skip
  return 0.0
