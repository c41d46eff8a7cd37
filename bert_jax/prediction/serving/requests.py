"""What a server is asked: routes as rows, and the checks of their bodies."""

import base64
from collections.abc import Iterator, Mapping, Sequence
import json
import math
import re
from typing import Any

import numpy as np

from bert_jax.kinds import answers
from bert_jax.kinds import table
from bert_jax.prediction.serving import served

# Half of a surrogate pair, as text and as JSON spells it.
_HALF = re.compile("[\ud800-\udfff]")
_SPELLED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


class RequestError(Exception):
  """A request cannot be answered.

  Attributes:
    status: the HTTP status.
    code: a word for programs.
    param: the field of the body that is wrong, or None.
  """

  def __init__(
    self, status: int, message: str, code: str, param: str | None = None
  ):
    """Stores what the answer to the request will say."""
    super().__init__(message)
    self.status, self.code, self.param = status, code, param

  def body(self) -> dict[str, Any]:
    """Returns the body of the answer, as clients of OpenAI read it."""
    kind = "invalid_request_error" if self.status < 500 else "server_error"
    return {
      "error": {
        "message": str(self),
        "type": kind,
        "param": self.param,
        "code": self.code,
      }
    }


def bad(message: str, param: str | None = None) -> RequestError:
  """Returns the error of status 400, for a body that cannot be used."""
  return RequestError(400, message, "invalid_request", param)


def parse_json(data: bytes) -> dict[str, Any]:
  """Returns the object in a body, whose parts an answer may repeat.

  Raises:
    RequestError: It is not JSON, or not an object, or has a number or half a
      character that no answer can hold.
  """
  try:
    body = json.loads(
      data.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite
    )
    if isinstance(body, dict) and _SPELLED_HALF.search(data):
      _check_characters(body)
  except RecursionError as error:
    raise bad("the body is nested too deeply") from error
  except ValueError as error:
    raise bad(f"the body is not JSON: {error}") from error
  if not isinstance(body, dict):
    raise bad(f"the body is {body!r:.60}; wanted a JSON object")
  return body


def _no_constant(name: str) -> None:
  raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
  value = float(digits)
  if not math.isfinite(value):
    raise ValueError(f"{digits:.60} is too large a number")
  return value


def _check_characters(body: Mapping[str, Any]) -> None:
  """Raises RequestError if UTF-8 cannot encode a text in a body."""
  try:
    json.dumps(body, ensure_ascii=False).encode("utf-8")
  except UnicodeEncodeError as error:
    for field, value in body.items():
      for place, text in ((field, field), *_texts_in(value, field)):
        if _HALF.search(text):
          name = f"{place!r:.80}"[1:-1]  # it may be the half itself
          param = None if _HALF.search(field) else field
          raise bad(
            f"{name} has half a character (one half of a surrogate pair): "
            f"{text!r:.60}",
            param,
          ) from error


def _texts_in(value: Any, place: str) -> Iterator[tuple[str, str]]:
  """Yields (where it is, the text) of every text and name in a value."""
  if isinstance(value, str):
    yield place, value
  elif isinstance(value, list):
    for number, one in enumerate(value):
      yield from _texts_in(one, f"{place}[{number}]")
  elif isinstance(value, dict):
    for name, one in value.items():
      yield place, name
      yield from _texts_in(one, f"{place}.{name}")


def check_fields(
  body: Mapping[str, Any], needed: Sequence[str], others: Sequence[str]
) -> None:
  """Raises RequestError if a body lacks a field or has an unknown one."""
  for name in needed:
    if name not in body:
      raise bad(f"the body has no {name!r}; see /openapi.json", name)
  for name in body:
    if name not in (*needed, *others):
      raise bad(
        f"there is no field {name!r}; the fields are "
        f"{', '.join((*needed, *others))}",
        name,
      )


def choice_of(
  body: Mapping[str, Any], name: str, choices: Sequence[Any]
) -> Any:
  """Returns a field that has one of a few values, by default the first."""
  value = body.get(name)
  value = choices[0] if value is None else value
  if value not in choices:
    raise bad(
      f"{name} is {value!r:.60}; wanted one of {', '.join(map(str, choices))}",
      name,
    )
  return value


def count_of(
  body: Mapping[str, Any], name: str, default: int, most: int
) -> int:
  """Returns a field that is a number from 1 on."""
  value = body.get(name)
  value = default if value is None else value
  is_whole = isinstance(value, int) and not isinstance(value, bool)
  if not is_whole or not 1 <= value <= most:
    raise bad(f"{name} is {value!r:.60}; wanted 1 to {most}", name)
  return value


def listed(value: Any, name: str, most: int, what: str) -> list[Any]:
  """Returns a list with items.

  Args:
    value: the value of the field.
    name: the name of the field.
    most: the most items.
    what: what the items are, for the message.

  Raises:
    RequestError: It is no list, is empty or has too many items.
  """
  if not isinstance(value, list):
    raise bad(f"{name} is {value!r:.60}; wanted a list of {what}", name)
  if not value:
    raise bad(f"{name} is empty; give one or more {what}", name)
  if len(value) > most:
    raise RequestError(
      413,
      f"{name} has {len(value)} {what}; a request may have {most}",
      "too_many_items",
      name,
    )
  return value


def input_texts(value: Any, most: int) -> list[str]:
  """Returns the texts of the `input` of /v1/embeddings.

  Raises:
    RequestError: It has no texts, or token ids, whose meaning depends on a
      tokenizer that the client chose.
  """
  texts = [value] if isinstance(value, str) else value
  texts = listed(texts, "input", most, "texts")
  first = texts[0]
  if isinstance(first, int | list) and not isinstance(first, bool):
    raise bad(
      "input has token ids, which belong to the tokenizer of another model; "
      "send text (in LangChain: check_embedding_ctx_length=False)",
      "input",
    )
  for number, text in enumerate(texts):
    if not isinstance(text, str):
      raise bad(f"input[{number}] is {text!r:.60}; wanted text", "input")
  return texts


def encode_vector(vector: np.ndarray, encoding: str) -> str | list[float]:
  """Returns a vector as OpenAI's clients read it.

  Args:
    vector: float32 [D].
    encoding: "float" for a list, "base64" for the bytes of little-endian
      float32.
  """
  if encoding == "float":
    return vector.astype(np.float64).tolist()
  return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def options_of(
  answerer: answers.Answerer, body: Mapping[str, Any]
) -> dict[str, int]:
  """Returns the options of /predict for the kind that a request asks for.

  Raises:
    RequestError: An option is out of range, or is for another kind.
  """
  for name, kinds in options_of_all().items():
    option = table.ANSWERERS[kinds[0]].request_options[name]
    count_of(body, name, option.default, option.most)
    if name in body and name not in answerer.request_options:
      raise bad(
        f"{name} is for {', '.join(kinds)}, not for {answerer.name}", name
      )
  return {
    name: count_of(body, name, option.default, option.most)
    for name, option in answerer.request_options.items()
  }


def options_of_all() -> dict[str, list[str]]:
  """Returns the options of /predict, each with the kinds that it is for."""
  found: dict[str, list[str]] = {}
  for kind, one in table.ANSWERERS.items():
    for name in one.request_options:
      found.setdefault(name, []).append(kind)
  return found


def records_of(
  answerer: answers.Answerer, body: Mapping[str, Any], most: int
) -> list[Mapping[str, Any]]:
  """Returns the records of /predict.

  Raises:
    RequestError: The list is empty or too long, or a record has an unknown
      field.
  """
  records = listed(body["records"], "records", most, "records")
  known = (*answerer.record_fields, "id")
  for number, record in enumerate(records):
    if not isinstance(record, dict):
      raise bad(
        f"records[{number}] is {record!r:.60}; wanted an object", "records"
      )
    if unknown := [name for name in record if name not in known]:
      raise bad(
        f"records[{number}] has the field {unknown[0]!r}; a record of "
        f"{answerer.name} has {', '.join(known)}",
        "records",
      )
    if not isinstance(record.get("id"), str | int | float | None):
      raise bad(
        f"records[{number}]: its id is {record['id']!r:.60}; wanted text or a "
        "number",
        "records",
      )
  if field := answerer.listed_field:
    given = [record.get(field) for record in records]
    total = sum(len(x) for x in given if isinstance(x, list))
    if total > most:
      raise RequestError(
        413, f"records have {total} {field}; a request may have {most}",
        "too_many_items", "records",
      )  # fmt: skip
  return records


# --- relevance of documents to a query ---


def scorer_of(model: served.Served) -> str:
  """Returns the kind by which a model scores pairs.

  Raises:
    RequestError: It has none.
  """
  if kind := model.scorer:
    return kind
  ranks = {k: one.pair_rank for k, one in table.ANSWERERS.items()}
  able = sorted((k for k in ranks if ranks[k]), key=lambda k: -ranks[k])
  raise bad(
    f"{model.name} scores no pairs; /rerank needs a model of the kind "
    f"{', '.join(able)}",
    "model",
  )


def relevance_label(answerer: answers.Answerer, body: Mapping[str, Any]) -> str:
  """Returns the label whose probability is the relevance of a document.

  Raises:
    RequestError: There is no such label.
  """
  try:
    return answerer.relevance_label(body.get("label"))
  except answers.RecordError as error:
    raise bad(str(error), "label") from error


def num_tokens(lines: Sequence[answers.Line]) -> int:
  """Returns the number of tokens of texts that were parsed."""
  return sum(
    len(getattr(example, "ids", ()))
    for line in lines
    for example in line.examples
  )
