"""The answers that the Python API returns: a frozen dataclass for each text.

They hold the same values as the lines that `bert-jax predict` writes. The
vectors of `Embedding` are numpy arrays and are not rounded.

Shapes: L tokens of the text, D hidden, N layers that were asked for.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Self

import numpy as np

from bert_jax.runtime import settings


class Result:
  """The base of all answers."""

  @classmethod
  def of(cls, answer: Mapping[str, Any]) -> Self:
    """Returns the answer that a line of `bert-jax predict` would hold."""
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(
      **{k: settings.as_tuple(x) for k, x in answer.items() if k in names}
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
  """A token for a gap.

  Attributes:
    token: the token as the vocabulary spells it.
    id: the id of the token.
    score: the probability of the token, 0 to 1.
  """

  token: str
  id: int
  score: float


@dataclasses.dataclass(frozen=True)
class FilledMasks(Result):
  """The best tokens for each [MASK] of a text.

  Attributes:
    masks: for each [MASK] the tokens, the most likely first.
  """

  masks: tuple[tuple[Token, ...], ...]

  @classmethod
  def of(cls, answer):
    return cls(
      tuple(tuple(Token(**x) for x in best) for best in answer["masks"])
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Embedding(Result):
  """The vectors of a text or a pair of texts.

  What was not asked for, and `pooled` of a model without a pooler, is None.

  Attributes:
    tokens: [L] the tokens as text, with special tokens.
    pooled: [D] the output of the pooler on [CLS].
    mean: [D] the mean over all tokens, [CLS] and [SEP] included.
    layers: [N, L, D] the outputs of the layers that were asked for, in order.
    sentence: [D] the vector by modules.json of a sentence-transformers folder.
    truncated: whether the text was too long and was cut.
  """

  tokens: np.ndarray | None = None
  pooled: np.ndarray | None = None
  mean: np.ndarray | None = None
  layers: np.ndarray | None = None
  sentence: np.ndarray | None = None
  truncated: bool = False

  @classmethod
  def of(cls, answer):
    found = dict(answer)
    if "tokens" in found:
      found["tokens"] = np.array(found["tokens"])
    if "layers" in found:
      found["layers"] = np.stack(list(found["layers"].values()))
    return super().of(found)


@dataclasses.dataclass(frozen=True)
class Classification(Result):
  """The label of a text or a pair of texts.

  Attributes:
    label: the most likely label.
    scores: label -> its probability; the sum is 1.
    truncated: whether the text was too long and was cut.
  """

  label: str
  scores: Mapping[str, float]
  truncated: bool = False


@dataclasses.dataclass(frozen=True)
class Labels(Result):
  """Any number of labels of a text or a pair of texts.

  Attributes:
    labels: the labels above their thresholds.
    scores: label -> its probability, 0 to 1 each.
    truncated: whether the text was too long and was cut.
  """

  labels: tuple[str, ...]
  scores: Mapping[str, float]
  truncated: bool = False


@dataclasses.dataclass(frozen=True)
class Regression(Result):
  """The score of a text or a pair of texts.

  Attributes:
    score: the number that the model was trained to give.
    truncated: whether the text was too long and was cut.
  """

  score: float
  truncated: bool = False


@dataclasses.dataclass(frozen=True)
class Answer(Result):
  """The part of a text that answers a question.

  Attributes:
    answer: the text; "" if the question has no answer in it.
    start: the first character in the context; -1 without an answer.
    end: the one after the last; -1 without an answer.
    score: the probability among the answers that were considered.
    truncated: whether a part of the context was not read.
  """

  answer: str
  start: int
  end: int
  score: float
  truncated: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Entity:
  """A chunk of words with one type, such as a name.

  Attributes:
    type: the type, such as "PER".
    text: the words.
    first_word: the index of the first word.
    end_word: the index after the last word.
    score: the mean probability of the tags of the words.
    start: the first character in the text; None if words were given.
    end: the character after the last.
  """

  type: str
  text: str
  first_word: int
  end_word: int
  score: float
  start: int | None = None
  end: int | None = None


@dataclasses.dataclass(frozen=True)
class Tags(Result):
  """The tags of the words of a text.

  Attributes:
    words: the words.
    labels: the tag of each word.
    entities: the chunks that the tags mark; None if they mark no chunks.
    truncated: whether a word was too long and was cut.
  """

  words: tuple[str, ...]
  labels: tuple[str, ...]
  entities: tuple[Entity, ...] | None = None
  truncated: bool = False

  @classmethod
  def of(cls, answer):
    found = dict(answer)
    if "entities" in found:
      found["entities"] = [Entity(**one) for one in found["entities"]]
    return super().of(found)


@dataclasses.dataclass(frozen=True)
class Choice(Result):
  """The text that goes best with another text.

  Attributes:
    choice: the index of the text.
    scores: the probability of each text.
    truncated: whether a text was too long and was cut.
  """

  choice: int
  scores: tuple[float, ...]
  truncated: bool = False


# Kind of prediction -> the class of its answers.
RESULTS: dict[str, type[Result]] = {
  "fill-mask": FilledMasks,
  "embed": Embedding,
  "classify": Classification,
  "multi_label": Labels,
  "regress": Regression,
  "answer": Answer,
  "tag": Tags,
  "choose": Choice,
}
