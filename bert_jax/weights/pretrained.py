"""Holds a model that was read from a folder, or that is to be written."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
from typing import Any

import numpy as np

from bert_jax.data.tokenizers import interface
from bert_jax.models import params as param_trees
from bert_jax.models.config import ModelConfig
from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import settings
from bert_jax.weights import task_heads

# The keys of a run's config that its predictions depend on, other than the
# shape of the model and data.seq_len.
SETTINGS = (
  "model.dtype", "model.attention", "task.name", "task.context",
  "task.max_query_len", "task.doc_stride", "task.n_best",
  "task.max_answer_len", "task.has_null", "task.null_threshold",
  "task.thresholds", "task.temperature", "task.long_texts", "task.text",
  "task.word_split",
)  # fmt: skip


class WeightsError(errors.UserError):
  """Weights are missing, damaged, or do not fit."""


@dataclasses.dataclass
class Pretrained:
  """A model read from a folder, or to be written to one.

  Attributes:
    format: the format that it was read from, one of `families.FORMATS`.
    model: the values of `config.MODEL_KEYS`, and of those of `config.EXTRAS`
      that the folder or the family sets.
    params: the nested dict of numpy arrays, our tree with layers unrolled.
    kind: the kind of task of the head, a key of `task_heads.HEADS`; None means
      that there is no head, or that the folder does not say its task.
    labels: the names of the head's outputs, in order; () if they have none.
    tokenizer: None if the folder has no vocabulary.
    lower_case: whether text is lower-cased; None if the folder does not say it.
    ignored: the names of tensors in the file that have no place in our tree.
    missing: the paths of parameters of a full encoder that the file lacks.
    seq_len: the most tokens of a sequence in the training or the intended use
      of the model; None if the folder does not say it.
    settings: the values of the keys in SETTINGS that the run used, as far as
      the folder says them.
    refused: head ("mlm" or "task") -> why it cannot be used. The parameters of
      "mlm" are then left out; those of "task" are kept, without a kind.
    family: a key of `families.FAMILIES`.
    sentence: how the folder of a sentence-transformers model makes the vector
      of a sentence: "mean" or "cls", then perhaps "normalize"; names of other
      steps as they stand there; () if the folder does not say it.
    source: the model of the hub that was read, as NAME@REVISION; "" for a
      folder or a file.
  """

  format: str
  model: dict[str, Any]
  params: dict[str, Any] = dataclasses.field(default_factory=dict)
  kind: str | None = None
  labels: tuple[str, ...] = ()
  tokenizer: interface.Tokenizer | None = None
  lower_case: bool | None = None
  ignored: tuple[str, ...] = ()
  missing: tuple[str, ...] = ()
  seq_len: int | None = None
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
  family: str = "bert"
  sentence: tuple[str, ...] = ()
  source: str = ""

  @property
  def shape(self) -> dict[str, Any]:
    """All keys of the config group `model` that weights decide, with values.

    Switches that neither the folder nor the family sets have BERT's values.
    """
    config = ModelConfig(**{**self.model, "family": self.family})
    return {key: getattr(config, key) for key in settings.SHAPE_KEYS}

  @property
  def num_outputs(self) -> int:
    """The number K of outputs of the task's head."""
    if "task" not in self.params:  # a head that only its own kind knows
      return task_heads.HEADS[self.kind or ""].width or len(self.labels)
    return self.params["task"]["bias"].size

  @property
  def dtype_name(self) -> str:
    """The dtype of the parameters; float32 if they have several."""
    leaves = param_trees.flatten(self.params).values()
    names = {array.dtype.name for array in leaves}
    return names.pop() if len(names) == 1 else "float32"

  def check(self) -> None:
    """Checks that the head, kind, labels and vocabulary are consistent.

    Raises:
      WeightsError: the message says which of them are not.
    """
    if self.kind is not None:
      self._check_task()
    tokenizer, rows = self.tokenizer, self.model["vocab_size"]
    if tokenizer is not None and tokenizer.vocab_size > rows:
      raise WeightsError(
        f"the vocabulary has {tokenizer.vocab_size} pieces, but the word table "
        f"has {rows} rows; they belong to different models"
      )

  def _check_task(self) -> None:
    if self.kind not in task_heads.HEADS:
      raise WeightsError(
        f"kind {self.kind!r:.100} is not one of {', '.join(task_heads.HEADS)}"
      )
    if not {"task", task_heads.OWN} & set(self.params):
      raise WeightsError(
        f"the kind is {self.kind}, but the model has no head of a task"
      )
    head = task_heads.HEADS[self.kind]
    wanted = head.width or len(self.labels) or self.num_outputs
    if wanted != self.num_outputs:
      raise WeightsError(
        f"the head has {self.num_outputs} outputs, but a {self.kind} task with "
        f"labels {list(self.labels)} has {wanted}"
      )


@dataclasses.dataclass(frozen=True)
class FolderSettings:
  """The settings that a folder holds beside its weights.

  Attributes:
    pretrained: the model without its parameters and its kind. The labels are
      those that the folder names, and `ignored` the tensors not to read.
    head: the number K of outputs of the task's head -> its kind, or None if
      the folder does not say it; and why the head cannot be used, or "".
    tied: whether the head of masked words shares the word table.
  """

  pretrained: Pretrained
  head: Callable[[int], tuple[str | None, str]]
  tied: bool = True


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
  """Turns any error about a file into a WeightsError that names the file."""
  try:
    yield
  except Exception as error:  # readers of other packages, on damaged bytes
    if isinstance(error, FileNotFoundError) and not files.exists(path):
      raise WeightsError(f"{path} does not exist") from error
    text = str(error)
    odd = (LookupError, TypeError, AttributeError, RecursionError)
    if isinstance(error, odd) or not text:
      text = f"it is damaged, or has another layout: {error!r:.300}"
    text = f"{text:.1000}"
    raise WeightsError(text if path in text else f"{path}: {text}") from error


def check_arrays(flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns a flat tree; raises ValueError if a leaf is not a numpy array."""
  for name, array in flat.items():
    if not isinstance(array, np.ndarray):
      raise ValueError(f"{name} is a {type(array).__name__}, not an array")
  return dict(flat)


def checked_length(settings: Mapping[str, Any]) -> int | None:
  """Returns `seq_len` from our own settings; None if it is not set.

  Raises:
    ValueError: it is not a whole number of 3 or more.
  """
  length = settings.get("seq_len")
  if length is not None and (type(length) is not int or length < 3):
    raise ValueError(f"seq_len is {length!r:.100}; wanted 3 or more tokens")
  return length
