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


@dataclasses.dataclass(frozen=True)
class Count:
  """An option of a request that is a number from 1 on.

  Attributes:
    default: its value if a request does not give it.
    most: the largest value.
  """

  default: int
  most: int


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
    record_fields: the fields that a record of a request to a server may have,
      beside its id; () means that the kind is not served.
    example: a record, for the page of a server.
    listed_field: the field with a list of texts of which each makes a sequence;
      "" means that a record makes one.
    request_options: name -> what a request to a server may set beside records.
    pair_rank: how well the kind is suited to score how relevant a text is to a
      query; of a model, the kind with the highest does. 0 = not at all.
  """

  name: ClassVar[str]
  parts: tuple[str, ...]
  kind: kind_lib.Kind
  levels: dict[str, str]
  in_documents: bool = False
  two_texts = False
  fields: tuple[str, ...] = ("text", "text_b")

  record_fields: ClassVar[tuple[str, ...]] = ()
  example: ClassVar[Mapping[str, Any]] = {"text": "Paris is in France."}
  listed_field: ClassVar[str] = ""
  request_options: ClassVar[Mapping[str, Count]] = {}
  pair_rank: ClassVar[int] = 0

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

  @property
  def reads_long_texts(self) -> bool:
    """Whether predict.long_texts has an effect."""
    return False

  @property
  def long_texts(self) -> str:
    """How texts that are longer than a row are read; see task.long_texts."""
    return windows.CUT

  def pair(self, text: str, text_b: str | None) -> EncodedText:
    """Returns a text or a pair, read as fine-tuning reads it."""
    texts, length = self._encode_texts(text, text_b), self.context.seq_len
    if self.long_texts == windows.CUT:
      return EncodedText(
        *task_features.build_sequence(self.tokenizer, texts, length)
      )
    settings = self.context.of_task(("doc_stride",))
    stride = settings.get("doc_stride", windows.STRIDE)
    found, is_cut = windows.sequences(
      self.tokenizer, texts, length, stride, self.long_texts
    )
    return EncodedText(*found[0], is_cut, tuple(found[1:]))

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

  # --- options of one call or request ---

  @classmethod
  def program_options(
    cls, options: Mapping[str, Any], pretrained: "weights.Pretrained"
  ) -> dict[str, Any]:
    """Returns the keys of the group `predict` for which a program is made.

    Calls with options that differ little then share a program.

    Args:
      options: the keys that a call asks for.
      pretrained: the model.
    """
    del pretrained
    return dict(options)

  @classmethod
  def narrow(
    cls, answer: dict[str, Any], options: Mapping[str, Any]
  ) -> dict[str, Any]:
    """Returns the part of a program's answer that a call asks for."""
    del options
    return answer

  # --- serving ---

  @classmethod
  def serving_options(
    cls, pretrained: "weights.Pretrained", predict: settings.Predict
  ) -> list[dict[str, Any]]:
    """Returns the keys of the group `predict` with which a server asks.

    Args:
      pretrained: the model.
      predict: the group as the user sets it.

    Returns:
      Several sets, of which the first that the model can do is used.
    """
    del pretrained, predict
    return [{}]

  @property
  def vector(self) -> str:
    """The field of an answer with the one vector of a text; "" = none."""
    return ""

  def relevance_label(self, label: Any) -> str:
    """Returns the label whose probability is the relevance of a text.

    Args:
      label: the label that a request names, or None.

    Raises:
      RecordError: There is no such label.
    """
    if label is not None:
      raise RecordError(f"label is for classify, not for {self.name}")
    return ""

  def scoring_records(
    self, query: str, documents: Sequence[str]
  ) -> list[dict[str, Any]]:
    """Returns the records whose answers say how relevant documents are."""
    return [{"text": query, "text_b": text} for text in documents]

  def relevances(
    self, found: Sequence[Mapping[str, Any]], label: str
  ) -> list[float]:
    """Returns how relevant each document is.

    Args:
      found: the answers to `scoring_records`.
      label: what `relevance_label` returned.
    """
    raise NotImplementedError

  # --- programs without this package ---

  def unpacked(
    self, params: Any, ids: jax.Array, mask: jax.Array, types: jax.Array
  ) -> dict[str, jax.Array]:
    """Computes the outputs of an exported program, one sequence a row.

    Args:
      params: the parameters.
      ids: [B, L] int32.
      mask: [B, L], 1 for tokens and 0 for padding.
      types: [B, L], the segment ids.
    """
    raise NotImplementedError

  @property
  def token_outputs(self) -> tuple[str, ...]:
    """The outputs of `unpacked` that have a row for each token."""
    return ()

  @property
  def transformers_class(self) -> str:
    """The class of transformers that such a model has; "" if none has it."""
    return ""

  def of_transformers(self, found: Any, mask: Any) -> dict[str, Any]:
    """Returns the outputs of `unpacked` from those of that class.

    Args:
      found: what the class of transformers returns.
      mask: [B, L], a tensor of torch.

    Returns:
      name -> a tensor, or a tuple of tensors, which become its last axis.
    """
    del mask
    return {"logits": found.logits}

  def for_transformers(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the inputs [B, L] in the shape that that class takes."""
    return dict(inputs)


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

  @property
  def long_texts(self) -> str:
    if not self.reads_long_texts:
      return windows.CUT
    settings = self.context.of_task(("long_texts",))
    return settings.get("long_texts", windows.CUT)

  @property
  def reads_long_texts(self):
    return "long_texts" in self.kind.feature_settings

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

  def unpacked(self, params, ids, mask, types):
    given = {
      "input_ids": ids,
      "input_mask": mask,
      "segment_ids": types,
      "cls_positions": jnp.zeros((ids.shape[0], 1), jnp.int32),
    }
    logits = self._model.apply({"params": params}, **given)
    return {"logits": logits[:, 0] if self.kind.pooled else logits}

  @property
  def token_outputs(self):
    return () if self.kind.pooled else ("logits",)

  @property
  def transformers_class(self):
    name = self.kind.head.hf_class
    return f"Auto{name.replace('For', 'ModelFor', 1)}" if name else ""


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
