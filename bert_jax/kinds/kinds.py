"""Kinds of prediction: what a record asks, and what is answered.

fill-mask, embed, classify, regress, answer, tag and choose: each turns a record
into sequences for the model, and the model's outputs into a record. predict.py
has the table of their fields, and runs them.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import tasks
from bert_jax import weights
from bert_jax.data.tokenizers import interface
from bert_jax.kinds import objectives
from bert_jax.models import encoder
from bert_jax.models.config import ModelConfig
from bert_jax.models.layers import gather_positions
from bert_jax.runtime.settings import Config
from bert_jax.tasks import features as task_features
from bert_jax.tasks import spec
from bert_jax.tasks import squad

_log = logging.getLogger(__name__)

MASK = "[MASK]"
# Settings of predict that have another name in a run.
_OF_PREDICT = (
  "predict.seq_len", "predict.allow_null", "predict.null_threshold"
)  # fmt: skip
FIELDS = ("tokens", "pooled", "mean", "layers", "concat")

Outputs = dict[str, np.ndarray]


class PredictError(ValueError):
  """Something is asked for that the model or the settings do not allow."""


class RecordError(ValueError):
  """A line of the input cannot be used; the others can."""


def asked_in(config: Config) -> list[str]:
  """The settings of predict that a config file sets for every run.

  The keys of the group `predict` that have another name in the run are not set
  unless the user sets them. Other keys count only in a config that leaves some
  of them to the run, as configs/predict.py does: one of a training has a value
  for each, of which nobody knows whether it was meant for predict.

  Args:
    config: the whole configuration.

  Returns:
    Keys, such as "predict.seq_len".
  """

  def value(key):
    group, _, name = key.partition(".")
    return config.get(group, {}).get(name, "")  # "": there is no such key

  def is_set(key):
    if key == "predict.seq_len":  # 0 means that it is not set
      return bool(value(key))
    return value(key) not in (None, "")

  keys = [key for key in weights.SETTINGS if key != "task.name"]
  if all(value(key) is not None for key in keys):
    keys = []
  return [key for key in (*_OF_PREDICT, *keys) if is_set(key)]


def value_of(
  keys: Sequence[str],
  config: Config,
  own: Mapping[str, Any],
  given: Sequence[str] | None,
) -> Any:
  """The value of a setting that the run of some weights has decided already.

  What the user asked for comes first, then what the run says, then what the
  config happens to hold.

  Args:
    keys: names of the setting in a config, such as "predict.null_threshold" and
      "task.null_threshold". All but the first are settings of a task: without
      `task.name` they mean nothing, unless they are given.
    config: the whole configuration.
    own: key -> value, as the run says.
    given: keys that the user named, of which the first that is one of `keys`
      wins; None = what the first of `keys` holds, if it is not None, was asked
      for.

  Returns:
    The value; None where nothing says it.
  """

  def held(key):
    group, _, name = key.partition(".")
    value = config.get(group, {}).get(name)
    if key == "predict.seq_len":
      return value or None
    return of_benchmark(key, value, config.get("task", {}).get("name"))

  def of_benchmark(key, value, name):
    # Whether questions may have no answer is a fact of a benchmark.
    if key == "task.has_null" and name:
      return tasks.has_null(name, value)
    return value

  def first(values):
    return next((value for value in values if value is not None), None)

  asked = keys[:1] if given is None else [k for k in given if k in keys]
  of_task = bool(config.get("task", {}).get("name"))
  return first(
    [
      *(held(key) for key in asked),
      *(of_benchmark(key, own.get(key), own.get("task.name")) for key in keys),
      *(held(key) for key in (keys if of_task else keys[:1])),
    ]
  )


@dataclasses.dataclass(frozen=True)
class Settings:
  """The group `predict` of a config, and how outputs become predictions.

  Attributes are explained in configs/base.py. Those that may be None are then
  the defaults of the functions that take them.
  """

  kind: str
  seq_len: int | None
  batch_tokens: int
  top_k: int
  fields: tuple[str, ...]
  layers: tuple[int, ...]
  concat_last: int
  decimals: int
  has_null: bool
  null_threshold: float | None
  max_query_len: int | None
  doc_stride: int | None
  n_best: int | None
  max_answer_len: int | None
  context: str | None

  @classmethod
  def from_config(
    cls,
    config: Config,
    own: Mapping[str, Any] | None = None,
    given: Sequence[str] | None = None,
  ) -> "Settings":
    """Reads them out of a whole configuration and what a run says.

    Args:
      config: the whole configuration.
      own: what the run of the weights says, key -> value.
      given: as for `value_of`.

    Raises:
      PredictError: a key is not there, or a value cannot be.
    """

    def find(*keys):
      return value_of(keys, config, own or {}, given)

    names = ("kind", "batch_tokens", "top_k", "concat_last", "decimals")
    try:
      values = {name: config.predict[name] for name in names}
      # On a command line a tuple of words is one word with commas.
      values["fields"] = tuple(
        name for field in config.predict.fields for name in field.split(",")
      )
      values["layers"] = tuple(config.predict.layers)
    except (KeyError, AttributeError) as error:
      key = str(error).strip("'\"")
      raise PredictError(
        f"the config has no {key}: it is that of an older run; give "
        "--config=configs/predict.py:from=RUN"
      ) from error
    return cls(
      **values,
      seq_len=find("predict.seq_len", "data.seq_len"),
      has_null=bool(find("predict.allow_null", "task.has_null")),
      null_threshold=find("predict.null_threshold", "task.null_threshold"),
      **{
        name: find(f"task.{name}")
        for name in (
          "max_query_len", "doc_stride", "n_best", "max_answer_len", "context"
        )
      },
    )  # fmt: skip

  def __post_init__(self):
    if self.batch_tokens < 1:
      raise PredictError(
        f"predict.batch_tokens={self.batch_tokens}; it must be 1 or more"
      )
    if not 0 <= self.decimals <= 12:
      raise PredictError(
        f"predict.decimals={self.decimals}; give 1 to 12, or 0 for all"
      )
    for name in ("n_best", "max_answer_len"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise PredictError(f"task.{name}={value}; it must be 1 or more")

  def options(self, *names: str) -> dict[str, Any]:
    """Those of some settings that are not None, as keyword arguments."""
    values = {name: getattr(self, name) for name in names}
    return {name: x for name, x in values.items() if x is not None}


@dataclasses.dataclass(frozen=True)
class EncodedText:
  """A text or a pair as the encoder reads it.

  Attributes:
    ids: with [CLS] and [SEP].
    first: tokens of the first segment.
    truncated: whether tokens were lost to the length.
  """

  ids: list[int]
  first: int
  truncated: bool = False


@dataclasses.dataclass(frozen=True)
class Context:
  """What a kind is made of.

  Attributes:
    settings: as given.
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
  pretrained: weights.Pretrained
  name: str


@dataclasses.dataclass
class Window:
  """Lines that are computed together.

  Attributes:
    entries: (id or nothing, number of examples or what is wrong) of each line.
    examples: of the good lines, one after the other.
    size: tokens that they have, about.
    features: of the examples.
  """

  entries: list[tuple[dict, int | RecordError]]
  examples: list[Any]
  size: int = 0
  features: Any = None


class Kind:
  """From a record to examples, from the model's outputs to a record.

  Attributes:
    needs: parts of the parameters without which it cannot be.
    objective: of the model, a key of objectives.OBJECTIVES.
    levels: output -> what has one: "sequence", "token" or "mask".
    in_documents: whether neighbouring examples with one `document` must be
      computed together.
    two_texts: whether every record holds two texts that the model must tell
      apart.
  """

  needs: tuple[str, ...]
  objective: str
  levels: dict[str, str]
  in_documents: bool = False
  two_texts = False

  def __init__(self, context: Context):
    if self.two_texts and context.model.type_vocab_size < 2:
      raise PredictError(
        f"{context.name} has one token type (type_vocab_size=1), so it cannot "
        f"tell the two texts of predict.kind={context.settings.kind} apart; "
        "give a model with two"
      )
    self.context = context
    self.tokenizer = context.tokenizer
    self.settings = context.settings
    self._objective = objectives.get_objective(self.objective)
    self._model = self._make_model()

  def _make_model(self) -> Any:
    return self._objective.make_model(self.context.model)

  def uses(self, path: str) -> bool:
    """Whether what is predicted depends on the parameter with this path."""
    return self._objective.needs(path)

  def init_params(self) -> Any:
    """Parameters of the model; only their shapes are read."""
    row = jnp.zeros((1, 8), jnp.int32)
    inputs = dict.fromkeys(self._objective.inputs, row)
    return self._model.init(jax.random.key(0), **inputs)["params"]

  def parse(self, record: Mapping[str, Any]) -> list[Any]:
    """The examples of a record, nearly always one.

    Raises:
      RecordError: a field is missing or of a wrong kind.
    """
    text, text_b = _text(record, "text"), None
    if record.get("text_b") is not None:
      text_b = _text(record, "text_b")
    return [self.pair(text, text_b)]

  def size(self, example: Any) -> int:
    """Tokens of an example, about."""
    return len(example.ids)

  def pair(self, text: str, text_b: str | None) -> EncodedText:
    """[CLS] a [SEP] or [CLS] a [SEP] b [SEP], cut as fine-tuning cuts it."""
    if text_b is not None and self.context.model.type_vocab_size < 2:
      raise RecordError(
        f"it is a pair of texts, but {self.context.name} has one token type "
        "(type_vocab_size=1), so it cannot tell them apart; give one text"
      )
    cls, sep = self.tokenizer.cls_id, self.tokenizer.sep_id
    a = self.tokenizer.encode(text)
    b = [] if text_b is None else self.tokenizer.encode(text_b)
    room = self.context.seq_len - (2 if text_b is None else 3)
    keep_a, keep_b = task_features.truncated_lengths(len(a), len(b), room)
    ids = [cls, *a[:keep_a], sep]
    if text_b is not None:
      ids += [*b[:keep_b], sep]
    return EncodedText(ids, keep_a + 2, keep_a + keep_b < len(a) + len(b))

  def features(self, examples: Sequence[Any]) -> task_features.Features:
    """The features of examples; one unit an example, or several."""
    lengths = np.array([len(example.ids) for example in examples])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    first = np.array([example.first for example in examples])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return task_features.Features(
      token_ids=np.array([i for e in examples for i in e.ids], np.int32),
      segment_ids=(within >= np.repeat(first, lengths)).astype(np.int8),
      offsets=offsets.astype(np.int64),
      example=np.arange(len(examples), dtype=np.int32),
      label=None,
    )

  def step(self, params: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Params and a batch of packed rows to outputs; to be jitted."""
    return {"logits": self._objective.apply(self._model, params, batch)}

  def results(
    self, window: Window, outputs: Sequence[Outputs]
  ) -> Iterator[dict]:
    """What is written for each good line of a window.

    Args:
      window: with its features.
      outputs: of each unit of the features.
    """
    for example, output in zip(window.examples, outputs, strict=True):
      result = self.result(example, output)
      yield result | ({"truncated": True} if example.truncated else {})

  def result(self, example: Any, output: Outputs) -> dict:
    """The same for one sequence."""
    raise NotImplementedError


class _FillMask(Kind):
  """The best tokens for every [MASK]."""

  needs = ("mlm",)
  objective = "mlm"
  levels = {"scores": "mask", "ids": "mask"}

  def __init__(self, context: Context):
    super().__init__(context)
    top_k, size = self.settings.top_k, self.tokenizer.vocab_size
    if not 1 <= top_k <= size:
      raise PredictError(f"predict.top_k={top_k}; give 1 to {size}")

  def parse(self, record: Mapping[str, Any]) -> list[Any]:
    tokenizer, longest = self.tokenizer, self.context.seq_len
    most = self.context.model.max_len
    parts = _text(record, "text").split(MASK)
    if len(parts) < 2:
      raise RecordError(f"its text has no {MASK}; write {MASK} for each gap")
    ids = [tokenizer.cls_id]
    for i, part in enumerate(parts):
      ids += [tokenizer.mask_id] * (i > 0) + tokenizer.encode(part)
    ids.append(tokenizer.sep_id)
    if len(ids) > longest:
      raise RecordError(
        f"its text has {len(ids)} tokens, predict.seq_len is {longest}; shorten"
        f" it, or set predict.seq_len, which may be up to {most}"
      )
    return [EncodedText(ids, len(ids))]

  def step(self, params: Any, batch: dict[str, Any]) -> dict[str, Any]:
    logits, _ = self._objective.apply(self._model, params, batch)
    # The model's table may have rows that no token has.
    known = jax.nn.softmax(logits[..., : self.tokenizer.vocab_size])
    scores, ids = jax.lax.top_k(known, self.settings.top_k)
    return {"scores": scores, "ids": ids}

  def result(self, example: Any, output: Outputs) -> dict:
    return {
      "masks": [
        [
          {"token": self.tokenizer.token(i), "id": i, "score": score}
          for i, score in zip(ids, scores, strict=True)
        ]
        for ids, scores in zip(
          output["ids"].tolist(), output["scores"].tolist(), strict=True
        )
      ]
    }


class _Embed(Kind):
  """Vectors of the tokens and of the whole.

  Source: BERT paper, section 5.3, for the last layers joined.
  """

  needs = ()
  objective = "mlm"  # not read

  def __init__(self, context: Context):
    settings = context.settings
    fields = dict.fromkeys(settings.fields)
    if settings.concat_last:
      fields |= {"concat": None}
    depth = context.model.num_layers
    if unknown := fields.keys() - set(FIELDS):
      raise PredictError(
        f"predict.fields has {', '.join(sorted(unknown))}; there is: "
        f"{', '.join(FIELDS)}"
      )
    if "concat" in fields and not 1 <= settings.concat_last <= depth:
      raise PredictError(
        f"predict.concat_last={settings.concat_last}; the model has layers to "
        f"join, 1 to {depth}"
      )
    if (
      "pooled" in fields
      and "pooler" not in context.pretrained.params["encoder"]
    ):
      rest = ",".join(name for name in fields if name != "pooled")
      raise PredictError(
        f"{context.name} has no pooler, so there is no pooled; give "
        f"--config.predict.fields={rest or 'mean'}"
      )
    for layer in settings.layers:
      if not -depth - 1 <= layer <= depth:
        raise PredictError(
          f"predict.layers has {layer}; the model has 0 (the embeddings) to "
          f"{depth}, or -1 (the last) to {-depth - 1}"
        )
    self.fields = tuple(fields)
    self.layers = settings.layers if "layers" in fields else ()
    self.levels = {f"layer {layer}": "token" for layer in self.layers}
    self.levels |= {"concat": "token", "pooled": "sequence", "mean": "sequence"}
    super().__init__(context)

  def _make_model(self) -> Any:
    return encoder.Encoder(self.context.model)

  def init_params(self) -> Any:
    row = jnp.zeros((1, 8), jnp.int32)
    params = self._model.init(jax.random.key(0), row, row, row)["params"]
    return {"encoder": params}

  def step(self, params: Any, batch: dict[str, Any]) -> dict[str, Any]:
    variables = {"params": params["encoder"]}
    last, _, layers = self._model.apply(
      variables,
      batch["input_ids"],
      batch["input_mask"],
      batch["segment_ids"],
      positions=batch["positions"],
      sequence_ids=batch["sequence_ids"],
      return_layers=True,
    )
    outputs = {f"layer {layer}": layers[layer] for layer in self.layers}
    if "concat" in self.fields:
      count = self.settings.concat_last
      outputs["concat"] = jnp.concatenate(list(layers[-count:]), axis=-1)
    if "pooled" in self.fields:
      first = gather_positions(last, batch["cls_positions"])
      outputs["pooled"] = self._model.apply(variables, first, method="pool")
    if "mean" in self.fields:
      slots = batch["cls_positions"].shape[1]
      outputs["mean"] = _means(last, batch["sequence_ids"], slots)
    return {k: value.astype(jnp.float32) for k, value in outputs.items()}

  def result(self, example: Any, output: Outputs) -> dict:
    rounded = {k: self._numbers(value) for k, value in output.items()}
    found = {
      "tokens": [self.tokenizer.token(i) for i in example.ids],
      "layers": {str(k): rounded[f"layer {k}"] for k in self.layers},
    } | rounded
    return {name: found[name] for name in self.fields}

  def _numbers(self, array: np.ndarray) -> list:
    wide = array.astype(np.float64)
    places = self.settings.decimals
    return (wide.round(places) if places else wide).tolist()


def _means(x: jax.Array, sequence_ids: jax.Array, slots: int) -> jax.Array:
  """[B, L, D] -> [B, S, D], the mean over the tokens of each sequence."""
  numbers = jnp.arange(1, slots + 1)[None, :, None]
  members = (sequence_ids[:, None, :] == numbers).astype(jnp.float32)
  total = jnp.einsum("BSL,BLD->BSD", members, x.astype(jnp.float32))
  return total / jnp.maximum(members.sum(-1, keepdims=True), 1.0)


class _TaskKind(Kind):
  """What the head of a task is for; `objective` is the kind of the task."""

  needs: tuple[str, ...] = ("task", "pooler")
  levels = {"logits": "sequence"}

  def __init__(self, context: Context):
    head = context.pretrained.params["task"]["bias"].size
    given = context.pretrained.labels
    self.labels = given or tuple(f"LABEL_{i}" for i in range(head))
    wanted = {"regress": 1, "choice": 1, "span": 2}.get(self.objective, head)
    if head != wanted:
      raise PredictError(
        f"{context.name} has a head with {head} outputs, which cannot "
        f"{context.settings.kind}: that has {wanted}; give another "
        "--config.predict.kind"
      )
    self.task = spec.Task(
      name=context.settings.kind, kind=self.objective, text=(),
      labels=self.labels, metrics=("accuracy",), main_metric="accuracy",
      train_split="", eval_splits=(), test_splits=(), source="", files={},
      read=lambda task, path, split: [],
    )  # fmt: skip
    super().__init__(context)

  def _make_model(self) -> Any:
    return self._objective.make_model(
      self.context.model, num_labels=len(self.labels)
    )


class _Classify(_TaskKind):
  """A label of a text or a pair, and how likely each is."""

  objective = "classify"

  def result(self, example: Any, output: Outputs) -> dict:
    scores = _softmax(output["logits"])
    return {
      "label": self.labels[int(scores.argmax())],
      "scores": dict(zip(self.labels, scores.tolist(), strict=True)),
    }


class _Regress(_TaskKind):
  """A number for a text or a pair."""

  objective = "regress"

  def result(self, example: Any, output: Outputs) -> dict:
    return {"score": float(output["logits"][0])}


class _Choose(_TaskKind):
  """Which of some texts goes best with the first."""

  objective = "choice"
  two_texts = True

  def parse(self, record: Mapping[str, Any]) -> list[Any]:
    text, choices = _text(record, "text"), _texts(record, "choices")
    if not choices:
      raise RecordError("`choices` is empty; give at least one choice")
    return [self.pair(text, choice) for choice in choices]

  def results(
    self, window: Window, outputs: Sequence[Outputs]
  ) -> Iterator[dict]:
    end = 0
    for _, count in window.entries:
      if isinstance(count, RecordError):
        continue
      start, end = end, end + count
      scores = _softmax(
        np.concatenate([o["logits"] for o in outputs[start:end]])
      )
      result = {"choice": int(scores.argmax()), "scores": scores.tolist()}
      if any(example.truncated for example in window.examples[start:end]):
        result["truncated"] = True
      yield result


class _Tag(_TaskKind):
  """A label for every word; long sentences are read in parts.

  A model that was trained with `task.context=document` reads neighbouring lines
  whose `document` is the same as one document.
  """

  needs = ("task",)
  objective = "tag"
  levels = {"logits": "token"}

  def __init__(self, context: Context):
    super().__init__(context)
    self.in_documents = self.settings.context == "document"
    self._last: tuple[Any, int] = (None, 0)  # its `document`, and its number
    self._warned = False

  def parse(self, record: Mapping[str, Any]) -> list[Any]:
    if record.get("words") is not None:
      words = _texts(record, "words")
    else:
      words = _text(record, "text").split()
    return [spec.TagExample("", tuple(words), None, self._document(record))]

  def _document(self, record: Mapping[str, Any]) -> int:
    """The number of the document that a line belongs to."""
    name, number = record.get("document"), self._last[1]
    if name is None and self.in_documents and not self._warned:
      self._warned = True
      _log.warning(
        "%s reads each sentence within its document (task.context=document), "
        "but a line has no `document`; lines without one are read alone",
        self.context.name,
      )
    if name is None or name != self._last[0]:
      number += 1
    self._last = name, number
    return number

  def size(self, example: Any) -> int:
    return sum(map(len, example.words))

  def features(self, examples: Sequence[Any]) -> task_features.Features:
    # Sentences that are documents of their own have nothing around them.
    documents = len({example.document for example in examples})
    in_documents = self.in_documents and documents < len(examples)
    return task_features.make_features(
      self.task,
      examples,
      self.tokenizer,
      seq_len=self.context.seq_len,
      context="document" if in_documents else "sentence",
    )

  def results(
    self, window: Window, outputs: Sequence[Outputs]
  ) -> Iterator[dict]:
    features = window.features
    labels: list[list[str]] = [[] for _ in window.examples]
    for unit, output in enumerate(outputs):
      at = slice(features.offsets[unit], features.offsets[unit + 1])
      is_word = features.words[at] != task_features.IGNORED
      labels[features.example[unit]] += [
        self.labels[i] for i in output["logits"][is_word].argmax(-1)
      ]
    for example, found in zip(window.examples, labels, strict=True):
      yield {"words": list(example.words), "labels": found}


class _Answer(_TaskKind):
  """The part of a text that answers a question."""

  needs = ("task",)
  objective = "span"
  two_texts = True
  levels = {"logits": "token"}

  def parse(self, record: Mapping[str, Any]) -> list[Any]:
    question, context = _text(record, "question"), _text(record, "context")
    return [spec.SpanExample("", question, context, (), False)]

  def size(self, example: Any) -> int:
    return len(example.context)

  def features(self, examples: Sequence[Any]) -> task_features.Features:
    return task_features.make_features(
      self.task,
      examples,
      self.tokenizer,
      seq_len=self.context.seq_len,
      **self.settings.options("max_query_len", "doc_stride"),
    )

  def results(
    self, window: Window, outputs: Sequence[Outputs]
  ) -> Iterator[dict]:
    features, settings = window.features, self.settings
    start, end = np.concatenate([o["logits"] for o in outputs]).T
    found = squad.decode(
      features,
      start,
      end,
      has_null=settings.has_null,
      **settings.options("n_best", "max_answer_len", "null_threshold"),
    )
    bounds = np.searchsorted(features.example, np.arange(len(found) + 1))
    places = features.offsets[bounds]
    for i, prediction in enumerate(found):
      best = next(c for c in prediction.nbest if c.text == prediction.text)
      at = slice(places[i], places[i + 1])
      first, last = -1, -1
      if best.text:
        first, last = _characters(
          features, at, start[at], end[at], best, window.examples[i].context
        )
      yield {
        "answer": best.text,
        "start": first,
        "end": last,
        "score": best.probability,
      }


def _characters(
  features: task_features.Features,
  at: slice,
  start: np.ndarray,
  end: np.ndarray,
  best: squad.Candidate,
  context: str,
) -> tuple[int, int]:
  """Where in its context an answer stands: first character, and past the last.

  Args:
    features: of kind "span".
    at: the tokens of an example, all its windows.
    start: logits of these tokens.
    end: the same.
    best: the answer, which has the logits of its ends.
    context: that it was cut out of.
  """
  assert features.char_starts is not None
  assert features.char_ends is not None
  for i in np.flatnonzero(start == best.start_logit):
    for j in np.flatnonzero(end == best.end_logit):
      first = int(features.char_starts[at][i])
      last = int(features.char_ends[at][j])
      if 0 <= first < last and context[first:last].strip() == best.text:
        first += len(context[first:last]) - len(context[first:last].lstrip())
        return first, first + len(best.text)
  raise AssertionError(f"{best} is nowhere in its text")


def _softmax(logits: np.ndarray) -> np.ndarray:
  weight = np.exp(logits.astype(np.float64) - logits.max())
  return weight / weight.sum()


def _text(record: Mapping[str, Any], name: str) -> str:
  """A field that must be text."""
  if name not in record:
    raise RecordError(f"it has no field {name!r}, only {list(record)}")
  return _checked(record[name], f"its {name}")


def _texts(record: Mapping[str, Any], name: str) -> list[str]:
  """A field that must be a list of texts."""
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


# The most special first: what a model is for, unless another is asked for.
KINDS: dict[str, type[Kind]] = {
  "classify": _Classify,
  "regress": _Regress,
  "answer": _Answer,
  "tag": _Tag,
  "choose": _Choose,
  "fill-mask": _FillMask,
  "embed": _Embed,
}


_OF_TASKS = [name for name, kind in KINDS.items() if "task" in kind.needs]


def kinds_of(pretrained: weights.Pretrained) -> list[str]:
  """The kinds that a model has the parts for, in the order of KINDS."""
  parts = set(pretrained.params) | set(pretrained.params["encoder"])
  return [
    name
    for name, kind in KINDS.items()
    if parts.issuperset(kind.needs)
    and pretrained.refused.keys().isdisjoint(kind.needs)
    and ("task" not in kind.needs
         or pretrained.kind in (None, kind.objective))
  ]  # fmt: skip


def choose_kind(
  asked: str, pretrained: weights.Pretrained, name: str
) -> type[Kind]:
  """The kind asked for, or the one that the model is for."""
  there_are = kinds_of(pretrained)
  for head, why in pretrained.refused.items():
    wanted = [k for k, v in KINDS.items() if head in v.needs]
    if asked in wanted or (not asked and there_are[0] not in _OF_TASKS):
      raise PredictError(
        f"the head of {name} cannot be used: {why}; there is: "
        f"--config.predict.kind={', '.join(there_are)}"
      )
  if not asked:
    if "task" in pretrained.params and pretrained.kind is None:
      raise PredictError(
        f"{name} does not tell what its head is for; give "
        f"--config.predict.kind, one of {', '.join(there_are)}"
      )
    return KINDS[there_are[0]]
  if asked not in KINDS:
    raise PredictError(
      f"predict.kind={asked!r} is not known; there is: {', '.join(KINDS)}"
    )
  if asked not in there_are:
    parts = [*pretrained.params["encoder"].keys() & {"pooler"}]
    parts += [p for p in ("mlm", "nsp", "task") if p in pretrained.params]
    of_task = f" (of kind {pretrained.kind})" if pretrained.kind else ""
    raise PredictError(
      f"{name} has no head for predict.kind={asked}: on the encoder it has "
      f"{', '.join(parts) or 'nothing'}{of_task}; give one of "
      f"{', '.join(there_are)}, or other weights"
    )
  return KINDS[asked]
