"""The models of a server, which are compiled before they are asked."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from bert_jax.kinds import answers
from bert_jax.kinds import table
from bert_jax.prediction import model as model_lib
from bert_jax.prediction import predict


def known_kinds() -> list[str]:
  """Returns the kinds of prediction that a server can answer."""
  return [k for k, one in table.ANSWERERS.items() if one.record_fields]


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
    known = [kind for kind in model.kinds if kind in known_kinds()]
    self.kinds = tuple(k for k in known if not kinds or k in kinds)
    has_unknown_head = (
      "task" in model.pretrained.params and model.pretrained.kind is None
    )
    self.default_kind = "" if has_unknown_head else self.kinds[0]
    self._predictors: dict[str, predict.Predictor] = {
      kind: model.serving_predictor(kind) for kind in self.kinds
    }

  def predictor(self, kind: str) -> predict.Predictor:
    """Returns what answers a kind, one of `kinds`."""
    return self._predictors[kind]

  def answerer(self, kind: str) -> answers.Answerer:
    """Returns what turns records into tokens and outputs into answers."""
    return self._predictors[kind].answerer

  @property
  def embedder(self) -> str:
    """The kind that gives one vector for each text; "" = the model has none."""
    return next((k for k in self.kinds if self.answerer(k).vector), "")

  @property
  def scorer(self) -> str:
    """The kind that scores pairs of texts best; "" = the model has none."""
    able = [k for k in self.kinds if self.answerer(k).pair_rank]
    return max(able, key=lambda k: self.answerer(k).pair_rank, default="")

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
