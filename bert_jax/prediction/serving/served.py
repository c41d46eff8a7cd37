"""The models of a server, which are compiled before they are asked."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from bert_jax.kinds import answers
from bert_jax.prediction import model as model_lib
from bert_jax.prediction import predict

# The fields of a record that each kind takes; the texts come first.
RECORD_FIELDS: dict[str, tuple[str, ...]] = {
  "fill-mask": ("text",),
  "embed": ("text", "text_b"),
  "classify": ("text", "text_b"),
  "multi_label": ("text", "text_b"),
  "regress": ("text", "text_b"),
  "answer": ("question", "context"),
  "tag": ("text", "words"),
  "choose": ("text", "choices"),
}
# The most tokens for a [MASK] that a request may ask for.
MOST_TOKENS = 50
# Pooling of `embed` that has one vector for each text.
_POOLED = ("tokens", "pooled", "mean", "sentence")


@dataclasses.dataclass(frozen=True)
class Source:
  """A model to serve.

  Attributes:
    name: the name that requests use.
    path: its folder, or its name on the hub.
  """

  name: str
  path: str


class Served:
  """A model of the server.

  Attributes:
    name: the name that requests use.
    model: the model.
    kinds: the kinds of prediction that it answers.
    default_kind: the kind of a request that names none; "" if the model does
      not say what its head is for.
    vector: which vector of a text an embedding is: "sentence" if the folder
      says how it is made, else "mean".
  """

  def __init__(
    self, name: str, model: model_lib.Model, kinds: Sequence[str] = ()
  ):
    """Makes the predictors; nothing is compiled yet.

    Args:
      name: the name that requests use.
      model: the model, which serves.
      kinds: the kinds to answer; () means all that the model has parts for.

    Raises:
      answers.PredictError: The model cannot do one of the kinds.
    """
    self.name, self.model = name, model
    for kind in kinds:
      model.check_kind(kind)
    known = [kind for kind in model.kinds if kind in RECORD_FIELDS]
    self.kinds = tuple(k for k in known if not kinds or k in kinds)
    has_unknown_head = (
      "task" in model.pretrained.params and model.pretrained.kind is None
    )
    self.default_kind = "" if has_unknown_head else self.kinds[0]
    self.vector = "mean"
    self._predictors: dict[str, predict.Predictor] = {}
    for kind in self.kinds:
      self._predictors[kind] = self._make(kind)

  def _make(self, kind: str) -> predict.Predictor:
    if kind == "fill-mask":
      size = self.model.pretrained.tokenizer
      most = min(MOST_TOKENS, size.vocab_size if size else MOST_TOKENS)
      return self.model.predictor(kind, top_k=most)[0]
    if kind != "embed":
      return self.model.predictor(kind)[0]
    has_pooler = "pooler" in self.model.pretrained.params["encoder"]
    fields = [x for x in _POOLED if x != "pooled" or has_pooler]
    try:
      found, _ = self.model.predictor(kind, fields=tuple(fields))
      self.vector = "sentence"
    except answers.PredictError:  # no modules.json, or with steps of others
      fields.remove("sentence")
      found, _ = self.model.predictor(kind, fields=tuple(fields))
    return found

  def predictor(self, kind: str) -> predict.Predictor:
    """Returns what answers a kind, one of `kinds`."""
    return self._predictors[kind]

  @property
  def labels(self) -> tuple[str, ...]:
    """The labels between which a model of the kind classify decides."""
    answerer = self._predictors["classify"].answerer
    assert isinstance(answerer, answers.TaskAnswerer)
    return answerer.labels

  def compile(self, goes_on: Callable[[], bool] = lambda: True) -> int:
    """Compiles all programs; returns how many.

    Args:
      goes_on: is asked before each program; False ends the work.
    """
    return sum(one.compile_all(goes_on) for one in self._predictors.values())

  def parse(
    self, kind: str, records: Sequence[Mapping[str, Any]], name: str
  ) -> list[answers.Line]:
    """Turns records into tokens.

    Args:
      kind: one of `kinds`.
      records: the records.
      name: what the request calls them, for messages.

    Raises:
      answers.RecordError: A record cannot be used; the message names it.
    """
    named = ((f"{name}[{i}]", record) for i, record in enumerate(records))
    lines = list(self._predictors[kind].parse(named))
    if wrong := next((line.error for line in lines if line.error), ""):
      raise answers.RecordError(wrong)
    return lines


def to_json(answer: Mapping[str, Any], decimals: int) -> dict[str, Any]:
  """Returns an answer with lists in the place of arrays, rounded.

  Args:
    answer: the answer of a predictor.
    decimals: the digits after the decimal point; 0 = all.
  """

  def plain(value):
    if isinstance(value, np.ndarray):
      wide = value.astype(np.float64)
      return (wide.round(decimals) if decimals else wide).tolist()
    return value

  return {name: plain(value) for name, value in answer.items()}
