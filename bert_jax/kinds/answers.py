"""What a trained model is asked, and what it answers: the base of prediction.

An `Answerer` turns a record into sequences for the model, and the model's
outputs into a record. Those of tasks decode just as evaluation does.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data.tokenizers import interface
from bert_jax.kinds import kind as kind_lib
from bert_jax.kinds import task_kind
from bert_jax.models.config import ModelConfig
from bert_jax.runtime import errors
from bert_jax.tasks import features as task_features
from bert_jax.tasks import spec

if TYPE_CHECKING:  # its libraries are slow to import
  from bert_jax import weights

Outputs = dict[str, np.ndarray]


class PredictError(errors.UserError):
  """The model or the settings do not allow what is asked for."""


class RecordError(ValueError):
  """A line of the input cannot be used; the others can."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """How outputs become predictions.

  Attributes:
    kind: of prediction; "" = what the model is for.
    seq_len: tokens a sequence has at most; None = as many as the model takes.
    predict: the group `predict` of a config.
    task: the settings of the group `task` that are known; those that are not
      have the defaults of the functions that take them.
  """

  kind: str
  seq_len: int | None
  predict: Mapping[str, Any]
  task: Mapping[str, Any]

  def options(self, names: Sequence[str]) -> dict[str, Any]:
    """Returns those of some settings of tasks that are known."""
    return {name: self.task[name] for name in names if name in self.task}


@dataclasses.dataclass(frozen=True)
class EncodedText:
  """A text or a pair of texts as the encoder reads it.

  Attributes:
    ids: with special tokens.
    types: the token type of each.
    truncated: whether tokens were lost to the length.
  """

  ids: list[int]
  types: list[int]
  truncated: bool = False


@dataclasses.dataclass(frozen=True)
class Context:
  """The settings, model and tokenizer that an answerer is built from.

  Attributes:
    settings: see `Settings`.
    seq_len: tokens a sequence has at most.
    model: shape and arithmetic.
    tokenizer: the vocabulary.
    pretrained: the weights, which the parameters come from.
    name: where they were read.
  """

  settings: Settings
  seq_len: int
  model: ModelConfig
  tokenizer: interface.Tokenizer
  pretrained: "weights.Pretrained"
  name: str


@dataclasses.dataclass
class Window:
  """Lines that are computed together.

  Attributes:
    entries: for each line what is copied to its answer, and how many examples
      it has or what is wrong with it.
    examples: of the good lines, one after the other.
    size: tokens that they have, about.
    features: of the examples.
  """

  entries: list[tuple[dict, int | RecordError]]
  examples: list[Any]
  size: int = 0
  features: Any = None


class Answerer:
  """From a record to examples, and from the model's outputs to a record.

  Attributes:
    name: as `predict.kind` spells it.
    needs: parts of the parameters without which it cannot work.
    kind: of training, whose model is run.
    levels: output -> what has one: "sequence", "token" or "mask".
    in_documents: whether neighbouring examples with one `document` must be
      computed together.
    two_texts: whether every record holds two texts that the model must tell
      apart.
  """

  name: ClassVar[str]
  needs: tuple[str, ...]
  kind: kind_lib.Kind
  levels: dict[str, str]
  in_documents: bool = False
  two_texts = False

  def __init__(self, context: Context):
    if self.two_texts and context.model.type_vocab_size < 2:
      raise PredictError(
        f"{context.name} has one token type (type_vocab_size=1), so it cannot "
        f"tell the two texts of predict.kind={self.name} apart; "
        "give a model with two"
      )
    self.context = context
    self.tokenizer = context.tokenizer
    self.settings = context.settings
    self._model = self.make_model()

  def make_model(self) -> Any:
    """Returns the module that `step` runs."""
    return self.kind.make_model(self.context.model)

  def init_params(self) -> Any:
    """Returns parameters of the model; only their shapes are read."""
    row = jnp.zeros((1, 8), jnp.int32)
    inputs = dict.fromkeys(self.kind.inputs, row)
    return self._model.init(jax.random.key(0), **inputs)["params"]

  def parse(self, record: Mapping[str, Any]) -> list[Any]:
    """Returns the examples of a record, nearly always one.

    Raises:
      RecordError: a field is missing or of another type.
    """
    text, text_b = text_of(record, "text"), None
    if record.get("text_b") is not None:
      text_b = text_of(record, "text_b")
    return [self.pair(text, text_b)]

  def size(self, example: Any) -> int:
    """Returns the number of tokens of an example, about."""
    return len(example.ids)

  def pair(self, text: str, text_b: str | None) -> EncodedText:
    """Returns a text or a pair as one sequence, cut as fine-tuning cuts it."""
    if text_b is not None and self.context.model.type_vocab_size < 2:
      raise RecordError(
        f"it is a pair of texts, but {self.context.name} has one token type "
        "(type_vocab_size=1), so it cannot tell them apart; give one text"
      )
    texts = [self.tokenizer.encode(x) for x in (text, text_b) if x is not None]
    return EncodedText(
      *task_features.build_sequence(self.tokenizer, texts, self.context.seq_len)
    )

  def features(self, examples: Sequence[Any]) -> task_features.Features:
    """Returns the features of examples; one unit an example, or several."""
    return task_features.Features(
      token_ids=np.array([i for e in examples for i in e.ids], np.int32),
      segment_ids=np.array([i for e in examples for i in e.types], np.int8),
      offsets=task_features.offsets_of([len(e.ids) for e in examples]),
      example=np.arange(len(examples), dtype=np.int32),
      label=None,
    )

  def step(self, params: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Computes the outputs of a batch of packed rows; to be jitted."""
    return {"logits": self.kind.apply(self._model, params, batch)}

  def results(
    self, window: Window, outputs: Sequence[Outputs]
  ) -> Iterator[dict]:
    """Yields what is written for each good line of a window.

    Args:
      window: with its features.
      outputs: of each unit of the features.
    """
    for example, output in zip(window.examples, outputs, strict=True):
      yield self.result(example, output) | _cut(example)

  def result(self, example: Any, output: Outputs) -> dict:
    """Returns the answer for one sequence."""
    raise NotImplementedError


class TaskAnswerer(Answerer):
  """Predictions of a task's head, decoded as evaluation decodes them."""

  kind: task_kind.TaskKind
  needs: tuple[str, ...] = ("task", "pooler")

  def __init__(self, context: Context):
    size = context.pretrained.params["task"]["bias"].size
    given = context.pretrained.labels
    labels = given or tuple(f"LABEL_{i}" for i in range(size))
    if size != (wanted := self.kind.head.width or size):
      raise PredictError(
        f"{context.name} has a head with {size} outputs, which cannot "
        f"{self.name}: that has {wanted}; give another --config.predict.kind"
      )
    settings = context.settings
    self.levels = {"logits": "sequence" if self.kind.pooled else "token"}
    self._num_outputs = size
    self._task = spec.Task(
      name=self.name, kind=self.kind.name, text=(), labels=labels,
      metrics=("loss",), main_metric="loss", train_split="", eval_splits=(),
      test_splits=(), source="", files={}, read=lambda task, path, split: [],
      has_null=bool(settings.task.get("has_null")),
    )  # fmt: skip
    self._options = settings.options(self.kind.decode_settings)
    self.kind.check_options(self._task, **self._options)
    super().__init__(context)

  def make_model(self) -> Any:
    return self.kind.make_model(self.context.model, self._num_outputs)

  def features(self, examples: Sequence[Any]) -> task_features.Features:
    if isinstance(examples[0], EncodedText):
      made = super().features(examples)
      return dataclasses.replace(made, labels=self.kind.labels)
    return self.kind.make_features(
      self._task,
      examples,
      self.tokenizer,
      seq_len=self.context.seq_len,
      **self.settings.options(self.kind.feature_settings),
    )

  def results(
    self, window: Window, outputs: Sequence[Outputs]
  ) -> Iterator[dict]:
    flat = np.concatenate([output["logits"] for output in outputs])
    if self.kind.pooled:
      flat = flat.reshape(len(outputs), -1)
    predictions = self.kind.decode(
      self._task, window.features, flat, **self._options
    )
    for example, prediction in zip(window.examples, predictions, strict=True):
      yield self.answer(example, prediction) | _cut(example)

  def answer(self, example: Any, prediction: Any) -> dict:
    """Returns what is written for one decoded prediction."""
    del example
    said = self.kind.row(self._task, prediction)
    names = {"probabilities": "scores"}
    return {names.get(key, key): value for key, value in said.items()}


def _cut(example: Any) -> dict[str, bool]:
  """Returns the field that says that a text was cut, if it was."""
  return {"truncated": True} if getattr(example, "truncated", False) else {}


def text_of(record: Mapping[str, Any], name: str) -> str:
  """Returns a field of a record that must be text."""
  if name not in record:
    raise RecordError(f"it has no field {name!r}, only {list(record)}")
  return _checked(record[name], f"its {name}")


def texts_of(record: Mapping[str, Any], name: str) -> list[str]:
  """Returns a field of a record that must be a list of texts."""
  value = record.get(name)
  if not isinstance(value, list | tuple):
    raise RecordError(f"its {name} is {value!r:.60}; wanted a list of texts")
  return [_checked(x, f"one of its {name}") for x in value]


def _checked(value: Any, what: str) -> str:
  if not isinstance(value, str):
    raise RecordError(f"{what} is {value!r:.60}; wanted text")
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    raise RecordError(f"{what} has half a character (a surrogate)") from error
  return value
