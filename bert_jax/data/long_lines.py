"""Cuts sentences that are longer than a row, so that no text is lost.

The corpus format calls every line a sentence, but the lines of many corpora are
paragraphs. Such a line is cut into its sentences, which end with a token such
as "." or "!". What is still too long is cut into pieces of equal length.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bert_jax.data.tokenizers import interface

# The last characters of sentences in Latin, Chinese, Arabic and Indic text.
_ENDS = frozenset(".!?\u2026\u3002\uff01\uff1f\uff61\u061f\u06d4\u0964\u0965")


def sentence_ends(tokenizer: interface.Tokenizer) -> np.ndarray:
  """Returns [V] bool: whether a sentence may end with a piece.

  Args:
    tokenizer: the vocabulary.
  """
  ends = np.zeros(tokenizer.vocab_size, bool)
  for i in range(tokenizer.vocab_size):
    if i not in tokenizer.special_ids:
      ends[i] = tokenizer.decode([i]).rstrip()[-1:] in _ENDS
  return ends


class Cutter:
  """Adds boundaries inside of the long sentences of a document.

  Attributes:
    limit: a sentence of so many tokens or more is cut, if the document has one
      of more than that.
  """

  def __init__(
    self,
    limit: int,
    read: Callable[[int, int], np.ndarray],
    ends: Callable[[], np.ndarray],
  ):
    """Takes the ways to read tokens.

    Args:
      limit: the most tokens of a row, without special tokens.
      read: (first token, number of tokens) -> their ids.
      ends: () -> what `sentence_ends` returns; called if a line is long.
    """
    self.limit = limit
    self._read = read
    self._ends = ends

  def num_long(self, boundaries: np.ndarray) -> int:
    """Returns the tokens in sentences that are longer than a row.

    Args:
      boundaries: the boundaries of a document, as in `pairing`.
    """
    lengths = np.diff(boundaries)
    return int(lengths[lengths > self.limit].sum())

  def __call__(self, boundaries: np.ndarray) -> tuple[Any, bool]:
    """Returns the boundaries of a document, and whether any were added.

    They are an array if none were added, and a list otherwise.

    Args:
      boundaries: the boundaries of a document, as in `pairing`.
    """
    if not self.num_long(boundaries):
      return boundaries, False
    found = [int(boundaries[0])]
    for start, end in zip(
      boundaries[:-1].tolist(), boundaries[1:].tolist(), strict=True
    ):
      if end - start >= self.limit:
        ids = self._read(start, end - start)
        inner = np.flatnonzero(self._ends()[ids[:-1]]) + start + 1
        # "..." is one end.
        inner = inner[np.diff(inner, append=end) > 1]
        for stop in [*inner.tolist(), end]:
          found += self._pieces(found[-1], stop)
      else:
        found.append(end)
    return found, True

  def _pieces(self, start: int, end: int) -> list[int]:
    """Returns the ends of pieces of a sentence, of equal lengths."""
    length = end - start
    if length < self.limit:
      return [end]
    count = -(-length // -(-self.limit // 2))
    return [start + length * i // count for i in range(1, count + 1)]
