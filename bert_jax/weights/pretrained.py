"""Holds a model that was read from a folder, or that is to be written."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import os
from typing import Any

import numpy as np

from bert_jax.data.tokenizers import interface
from bert_jax.models import families
from bert_jax.models import params as param_trees
from bert_jax.models.config import ModelConfig
from bert_jax.runtime import errors
from bert_jax.runtime import settings
from bert_jax.weights import task_heads

# Keys of a run's config, beside the shape of the model and data.seq_len, that
# its predictions depend on.
SETTINGS = (
  "model.dtype", "model.attention", "task.name", "task.context",
  "task.max_query_len", "task.doc_stride", "task.n_best",
  "task.max_answer_len", "task.has_null", "task.null_threshold",
  "task.thresholds",
)  # fmt: skip


class WeightsError(errors.UserError):
  """Weights are missing, damaged, or do not fit."""


@dataclasses.dataclass
class Pretrained:
  """A model read from a folder, or to be written to one.

  Attributes:
    format: one of `families.FORMATS`; where it came from.
    model: `config.MODEL_KEYS`, and those of `config.SWITCHES` that the folder
      or the family sets.
    params: nested dict of numpy arrays, our tree with layers unrolled.
    kind: of the task of its head, a key of `task_heads.HEADS`; None: no
      head, or one whose task the folder does not tell.
    labels: of its head, in order; () where they have no names.
    tokenizer: None where the folder has no vocabulary.
    lower_case: whether text is lower-cased; None where nothing says so.
    ignored: names of tensors in the file that have no place in our tree.
    missing: paths of a full encoder that the file does not have.
    seq_len: tokens that a sequence has at most where the model was trained or
      is meant to be used; None where nothing says so.
    settings: values of the keys in SETTINGS that the run used, as far as the
      folder says them.
    refused: head ("mlm", "task") -> why it cannot be used as it is: "mlm" is
      then not among the parameters, "task" is, without a kind.
    family: a key of `families.FAMILIES`.
  """

  format: str
  model: dict[str, Any]
  params: dict[str, Any]
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

  @property
  def shape(self) -> dict[str, Any]:
    """All keys of the config group `model` that weights decide, with values.

    Switches that neither the folder nor the family sets have BERT's values.
    """
    config = ModelConfig(**{**self.model, "family": self.family})
    return {key: getattr(config, key) for key in settings.SHAPE_KEYS}

  @property
  def num_outputs(self) -> int:
    """The number K of outputs of the head of its task."""
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
      WeightsError: says which of them do not.
    """
    if self.kind is not None:
      self._check_task()
    tokenizer, rows = self.tokenizer, self.model["vocab_size"]
    if tokenizer is not None and tokenizer.vocab_size > rows:
      raise WeightsError(
        f"its vocabulary has {tokenizer.vocab_size} pieces, but the word table "
        f"{rows} rows; they belong to different models"
      )

  def _check_task(self) -> None:
    if self.kind not in task_heads.HEADS:
      raise WeightsError(
        f"kind {self.kind!r:.100} is not one of {', '.join(task_heads.HEADS)}"
      )
    if "task" not in self.params:
      raise WeightsError(f"kind is {self.kind}, but there is no head of a task")
    head = task_heads.HEADS[self.kind]
    wanted = head.width or len(self.labels) or self.num_outputs
    if wanted != self.num_outputs:
      raise WeightsError(
        f"the head has {self.num_outputs} outputs, but a {self.kind} task with "
        f"labels {list(self.labels)} has {wanted}"
      )


@dataclasses.dataclass
class FolderSettings:
  """The settings that a folder holds beside its weights.

  Attributes:
    family: that the model is of.
    model: as in `Pretrained`.
    kind: (K, the head is that of a span) -> kind, or None.
    labels: names of the outputs; () where they have none.
    tokenizer: None where the folder has no vocabulary.
    lower_case: whether text is lower-cased; None where nothing says so.
    seq_len: as in `Pretrained`.
    settings: as in `Pretrained`.
    tied: the head of masked words shares the word table.
    refused_task: K -> why the head of the task cannot be used; "" where it can.
  """

  family: families.Family
  model: dict[str, Any]
  kind: Callable[[int, str | None], str | None]
  labels: tuple[str, ...]
  tokenizer: interface.Tokenizer | None
  lower_case: bool | None = None
  seq_len: int | None = None
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  tied: bool = True
  refused_task: Callable[[int], str] = lambda num_labels: ""


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
  """Turns any error about a file into a WeightsError that names the file."""
  try:
    yield
  except Exception as error:  # readers of other packages, on damaged bytes
    if isinstance(error, FileNotFoundError) and not os.path.exists(path):
      raise WeightsError(f"{path} does not exist") from error
    text = str(error)
    odd = (LookupError, TypeError, AttributeError, RecursionError)
    if isinstance(error, odd) or not text:
      text = f"it is damaged, or laid out in another way: {error!r:.300}"
    text = f"{text:.1000}"
    raise WeightsError(text if path in text else f"{path}: {text}") from error


def check_arrays(flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns a flat tree; raises ValueError if a leaf is not a numpy array."""
  for name, array in flat.items():
    if not isinstance(array, np.ndarray):
      raise ValueError(f"{name} is a {type(array).__name__}, not an array")
  return dict(flat)


def checked_length(settings: Mapping[str, Any]) -> int | None:
  """Returns `seq_len` of our settings, checked; None if it is not set."""
  length = settings.get("seq_len")
  if length is not None and (type(length) is not int or length < 3):
    raise ValueError(f"seq_len is {length!r:.100}; wanted 3 or more")
  return length
