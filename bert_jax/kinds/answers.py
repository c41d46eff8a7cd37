"""The base of prediction, from records to sequences and outputs to answers.

The answerers of tasks decode outputs exactly as evaluation does.
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
from bert_jax.kinds import windows
from bert_jax.models.config import ModelConfig
from bert_jax.runtime import errors
from bert_jax.runtime import settings
from bert_jax.tasks import features as task_features
from bert_jax.tasks import own
from bert_jax.tasks import spec
from bert_jax.tasks import tables

if TYPE_CHECKING:  # its libraries are slow to import
  from bert_jax import weights

Outputs = dict[str, np.ndarray]


class PredictError(errors.UserError):
  """The model or the settings do not allow the prediction that is wanted."""


class RecordError(ValueError):
  """A record cannot be used; the prediction of others goes on."""


@dataclasses.dataclass(frozen=True)
class EncodedText:
  """A text or a pair of texts as the encoder reads it.

  Attributes:
    ids: the token ids, with special tokens.
    types: the segment id of each token.
    truncated: whether a text was truncated.
    more: the ids and types of the other windows of a long text.
  """

  ids: list[int]
  types: list[int]
  truncated: bool = False
  more: tuple[tuple[list[int], list[int]], ...] = ()


@dataclasses.dataclass(frozen=True)
class Context:
  """The settings, model and tokenizer that an answerer is built from.

  Attributes:
    predict: the group `predict` of a config.
    settings: the settings that a run may have, key -> value. Those that are not
      known have the defaults of the functions that take them.
    seq_len: the most tokens of a sequence.
    model: the configuration of the model.
    tokenizer: the tokenizer of the model.
    pretrained: the weights of the model.
    name: the name of the model, for messages.
    as_arrays: whether answers hold vectors as numpy arrays, which are not
      rounded, and not as lists of numbers for JSON.
  """

  predict: settings.Predict
  settings: Mapping[str, Any]
  seq_len: int
  model: ModelConfig
  tokenizer: interface.Tokenizer
  pretrained: "weights.Pretrained"
  name: str
  as_arrays: bool = False

  def of_task(self, names: Sequence[str]) -> dict[str, Any]:
    """Returns those of some settings of the group `task` that are known."""
    keys = {name: f"task.{name}" for name in names}
    return {k: self.settings[v] for k, v in keys.items() if v in self.settings}


@dataclasses.dataclass
class Line:
  """A record that was read.

  Attributes:
    name: the name of the record, for errors.
    kept: the fields that are copied to its answer.
    examples: its examples; [] if it cannot be used.
    error: why it cannot be used, or "".
  """

  name: str
  kept: dict[str, Any]
  examples: list[Any]
  error: str = ""


class Window:
  """Lines that are computed together.

  Attributes:
    lines: the lines.
    examples: the examples of all lines.
    features: the features of the examples.
  """

  def __init__(self, lines: Sequence[Line]):
    self.lines = lines
    self.examples = [example for line in lines for example in line.examples]
    self.features: Any = None


class Answerer:
  """Turns records into examples, and outputs of the model into answers.

  Attributes:
    name: the name in `predict.kind`.
    parts: the parts of the parameters without which it cannot work.
    kind: the kind of training whose model is run.
    levels: output -> what has one: "sequence", "token" or "mask".
    in_documents: whether neighboring examples with the same `document` must be
      computed together.
    two_texts: whether every record has two texts, which the model must be able
      to tell apart.
    fields: the fields of a record that hold the texts, in the order of the
      columns of the task.
  """

  name: ClassVar[str]
  parts: tuple[str, ...]
  kind: kind_lib.Kind
  levels: dict[str, str]
  in_documents: bool = False
  two_texts = False
  fields: tuple[str, ...] = ("text", "text_b")

  def __init__(self, context: Context):
    self.context = context
    self.tokenizer = context.tokenizer
    if self.two_texts and not self._tells_texts_apart():
      raise PredictError(
        f"{context.name} has one token type (type_vocab_size=1), so it cannot "
        f"tell the two texts of predict.kind={self.name} apart; "
        "give a model with two"
      )
    self._model = self.make_model()

  def _tells_texts_apart(self) -> bool:
    """Returns whether the model has the token types of a pair of texts.

    A model without token types tells them apart by the tokens between them.
    """
    wanted = 1 + max(kind for _, kind in self.tokenizer.template.pair)
    return not 0 < self.context.model.type_vocab_size < wanted

  def make_model(self) -> Any:
    """Returns the module that `step` runs."""
    return self.kind.make_model(self.context.model)

  def init_params(self) -> Any:
    """Returns parameters of the model, of which only the shapes are used."""
    row = jnp.zeros((1, 8), jnp.int32)
    inputs = dict.fromkeys(self.kind.inputs, row)
    return self._model.init(jax.random.key(0), **inputs)["params"]

  def record_of(
    self, row: Mapping[str, Any], *, is_table: bool = False
  ) -> Mapping[str, Any]:
    """Returns a row with the columns of the training as a record.

    Args:
      row: a row of a table, or a record that may be one.
      is_table: whether it is a row of a table, in which a column of the task
        comes before a field of a record, and an empty second text is none.

    Raises:
      RecordError: A column of the task does not hold text.
    """
    texts = own.split_words(self.context.settings.get("task.text") or ())
    wanted = {c for item in texts for c in tables.columns_of(item) or [item]}
    own_fields = self.fields[: len(texts)]
    missing = sorted(wanted - row.keys())
    if not wanted or missing:
      # A model of several texts needs all of them.
      enough = all if len(texts) > 1 else any
      names = own_fields if len(texts) > 1 else self.fields
      if is_table and not enough(name in row for name in names):
        raise RecordError(
          f"it has no column {', '.join(missing or self.fields)}, only "
          f"{list(row)}; name the columns of the text by --config.task.text"
        )
      is_alone = is_table and row.get("text_b") == ""
      return {k: v for k, v in row.items() if not is_alone or k != "text_b"}
    if not is_table and all(name in row for name in own_fields):
      return row
    try:
      values = [
        tables.text_field(row, item, "it")
        if tables.is_template(item) and item not in row
        else row[item]
        for item in texts
      ]
    except spec.TaskError as error:
      raise RecordError(str(error)) from error
    # Columns of the table may have the names of fields by chance.
    rest = {k: v for k, v in row.items() if k not in self.fields}
    return rest | self.join(values)

  def join(self, values: Sequence[Any]) -> dict[str, Any]:
    """Returns the fields of a record with the values of the task's columns."""
    return dict(zip(self.fields, values, strict=False))

  def parse(self, record: Mapping[str, Any]) -> list[Any]:
    """Returns the examples of a record, of which most have one.

    Raises:
      RecordError: A field is missing or has another type.
    """
    text, text_b = text_of(record, "text"), None
    if record.get("text_b") is not None:
      text_b = text_of(record, "text_b")
    return [self.pair(text, text_b)]

  def size(self, example: Any) -> int:
    """Returns the approximate number of tokens of an example."""
    return len(example.ids) + sum(len(ids) for ids, _ in example.more)

  def pair(self, text: str, text_b: str | None) -> EncodedText:
    """Returns a text or a pair, truncated as fine-tuning truncates it."""
    texts = self._encode_texts(text, text_b)
    return EncodedText(
      *task_features.build_sequence(self.tokenizer, texts, self.context.seq_len)
    )

  def _encode_texts(self, text: str, text_b: str | None) -> list[list[int]]:
    """Returns the ids of a text, or of both texts of a pair."""
    if text_b is not None and not self._tells_texts_apart():
      raise RecordError(
        f"it is a pair of texts, but {self.context.name} has one token type "
        "(type_vocab_size=1), so it cannot tell them apart; give one text"
      )
    return [self.tokenizer.encode(x) for x in (text, text_b) if x is not None]

  def features(self, examples: Sequence[Any]) -> task_features.Features:
    """Returns the features of examples, which have one or more units each."""
    sequences = [[(e.ids, e.types), *e.more] for e in examples]
    return task_features.Features(
      **task_features.columns_of([x for own in sequences for x in own]),
      example=np.repeat(
        np.arange(len(examples), dtype=np.int32),
        [len(own) for own in sequences],
      ),
      label=None,
    )

  def step(self, params: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Computes the outputs of a batch of packed rows; to be jitted."""
    return {"logits": self.kind.apply(self._model, params, batch)}

  def results(
    self, window: Window, outputs: Sequence[Outputs]
  ) -> Iterator[dict]:
    """Yields the answer to each line of a window that has examples.

    Args:
      window: the window, with its features.
      outputs: the outputs of each unit of the features.
    """
    for example, output in zip(window.examples, outputs, strict=True):
      yield self.result(example, output) | cut_field(example)

  def result(self, example: Any, output: Outputs) -> dict:
    """Returns the answer for one sequence."""
    raise NotImplementedError


class TaskAnswerer(Answerer):
  """Answers with the head of a task, decoded as evaluation decodes it."""

  kind: task_kind.TaskKind
  parts: tuple[str, ...] = ("task", "pooler")

  def __init__(self, context: Context):
    size = context.pretrained.num_outputs
    if size != (wanted := self.kind.head.width or size):
      raise PredictError(
        f"{context.name} has a head with {size} outputs, which does not fit "
        f"predict.kind={self.name}, whose head has {wanted}; give another "
        "--config.predict.kind"
      )
    labels = tuple(f"LABEL_{i}" for i in range(size))
    self.levels = {"logits": "sequence" if self.kind.pooled else "token"}
    self._task = spec.Task(
      name=self.name,
      kind=self.kind.name,
      read=lambda task, path, split: [],
      metrics=(),
      labels=context.pretrained.labels or labels,
      has_null=bool(context.settings.get("task.has_null")),
    )
    self._options = context.of_task(self.kind.decode_settings)
    self.kind.check_options(self._task, **self._options)
    super().__init__(context)

  @property
  def labels(self) -> tuple[str, ...]:
    """The names of the outputs of the head, in their order."""
    return tuple(self._task.labels)

  def make_model(self) -> Any:
    size = self.context.pretrained.num_outputs
    return self.kind.make_model(self.context.model, size)

  def pair(self, text: str, text_b: str | None) -> EncodedText:
    settings = self.context.of_task(windows.SETTINGS)
    if (
      "long_texts" not in self.kind.feature_settings
      or settings.get("long_texts", windows.CUT) == windows.CUT
    ):
      return super().pair(text, text_b)
    found, is_cut = windows.sequences(
      self.tokenizer,
      self._encode_texts(text, text_b),
      self.context.seq_len,
      settings["doc_stride"],
    )
    return EncodedText(*found[0], is_cut, tuple(found[1:]))

  def features(self, examples: Sequence[Any]) -> task_features.Features:
    if isinstance(examples[0], EncodedText):
      return super().features(examples)
    return self.kind.make_features(
      self._task,
      examples,
      self.tokenizer,
      seq_len=self.context.seq_len,
      **self.context.of_task(self.kind.feature_settings),
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
      yield self.answer(example, prediction) | cut_field(example)

  def answer(self, example: Any, prediction: Any) -> dict:
    """Returns the answer for one decoded prediction."""
    del example
    row = self.kind.row(self._task, prediction)
    names = {"probabilities": "scores"}
    return {names.get(key, key): value for key, value in row.items()}


def cut_field(*examples: Any) -> dict[str, bool]:
  """Returns the field of an answer that tells that a text was truncated."""
  is_cut = any(getattr(e, "truncated", False) for e in examples)
  return {"truncated": True} if is_cut else {}


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
