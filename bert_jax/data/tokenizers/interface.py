"""The interface of all tokenizers.

No method adds special tokens; the code that makes examples does.
"""

import abc
from collections.abc import Iterable, Mapping, Sequence
import functools
import hashlib
import operator
import os
import pathlib
import re
from typing import Any, Self

import numpy as np

from bert_jax.data import templates
from bert_jax.runtime import files

SPECIAL_TOKENS = tuple(templates.WORDPIECE.special_tokens.values())
SETTINGS_FILE = "tokenizer.json"

# Half of a surrogate pair, which no UTF-8 file can hold.
SURROGATE = re.compile("[\ud800-\udfff]")

Path = str | os.PathLike[str]

# The ids; the first character of each; the character after the last of each.
Encoding = tuple[list[int], list[int], list[int]]


class Tokenizer(abc.ABC):
  """A vocabulary together with the rules that cut text into its pieces.

  Attributes:
    kind: the name of the kind, a key of `load.KINDS`.
    file_name: the name of the vocabulary file in a saved folder.
    settings: the arguments of `read` that change ids, and their types.
    vocab_size: the number of pieces, V.
    pad_id, unk_id, cls_id, sep_id, mask_id: the ids of the special tokens.
    special_ids: the set of these ids.
    lower_case: whether text is lower-cased and loses its accents; None for
      SentencePiece, whose model file defines its own normalisation.
    template: the form of sequences that models with this tokenizer take.
    learns_bytes: whether a learned piece may be a part of a character.
  """

  kind: str
  file_name: str
  settings: Mapping[str, type] = {}
  lower_case: bool | None
  template: templates.Template = templates.CLS_SEP
  learns_bytes: bool = False

  def __init__(self, pieces: Sequence[str], special_ids: Sequence[int]):
    self._pieces = tuple(pieces)
    self._ids = {piece: i for i, piece in enumerate(self._pieces)}
    self.vocab_size = len(self._pieces)
    self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
      special_ids
    )
    self.special_ids = frozenset(special_ids)

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, without special tokens."""

  @abc.abstractmethod
  def encode_with_offsets(self, text: str) -> Encoding:
    """Returns the ids of `text`, and the characters that each id stands for.

    The ids are those of `encode`. Starts and ends never decrease from one
    token to the next, and text[start:end] has no spaces around it.

    Args:
      text: the text before any normalisation.

    Returns:
      ids, starts and ends, of equal length.
    """

  @abc.abstractmethod
  def decode(self, ids: Iterable[int]) -> str:
    """Returns readable text: pieces joined to words, without padding.

    This does not invert `encode`, because normalisation loses information.

    Args:
      ids: token ids; special tokens other than [PAD] appear by name.
    """

  @abc.abstractmethod
  def continues_word(self) -> np.ndarray:
    """Returns [V] bool: whether a piece continues the word before it.

    Whole-word masking groups pieces by this. Special tokens are False.
    """

  @classmethod
  @abc.abstractmethod
  def read(cls, file: pathlib.Path, **settings: Any) -> Self:
    """Reads a vocabulary file.

    Args:
      file: the vocabulary, in the format of this kind.
      **settings: values of keys of `settings`; the vocabulary decides those
        that are not given.

    Raises:
      ValueError: the file is not a vocabulary of this kind, or contradicts a
        setting.
    """

  @classmethod
  @abc.abstractmethod
  def learn(
    cls, texts: Iterable[str], vocab_size: int, lower_case: bool
  ) -> Self:
    """Learns a vocabulary; the same texts give the same vocabulary.

    Args:
      texts: lines or documents, read once.
      vocab_size: the number of pieces to learn, special tokens included.
      lower_case: whether learning and the learned tokenizer lower-case text.

    Returns:
      A tokenizer whose ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK].

    Raises:
      ValueError: the texts cannot give exactly `vocab_size` pieces.
    """

  @abc.abstractmethod
  def write_vocabulary(self, path: Path) -> None:
    """Writes the vocabulary as one file, in the format of `read`."""

  @abc.abstractmethod
  def _content(self) -> bytes:
    """Returns everything that decides ids, for the fingerprint."""

  def _saved_settings(self) -> dict[str, Any]:
    """Returns the settings in tokenizer.json, beside kind and fingerprint."""
    return {"lower_case": None, "max_input_chars_per_word": None}

  def save(self, directory: Path) -> None:
    """Writes a folder that `load_tokenizer` reads as the same tokenizer."""
    with files.local_output(os.fspath(directory)) as folder:
      self._save(pathlib.Path(folder))

  def _save(self, folder: pathlib.Path) -> None:
    """Writes the files of `save` to a folder of the file system."""
    self.write_vocabulary(folder / self.file_name)
    settings = {
      "kind": self.kind,
      **self._saved_settings(),
      "fingerprint": self.fingerprint,
    }
    files.write_json(str(folder / SETTINGS_FILE), settings, indent=2)

  @functools.cached_property
  def fingerprint(self) -> str:
    """The SHA-256, in hexadecimal, of everything that decides ids.

    Tokenizers with equal fingerprints give equal ids.
    """
    return hashlib.sha256(self._content()).hexdigest()

  def meaning(self) -> tuple[Any, ...]:
    """Returns what decides ids, to compare two tokenizers for equal ids.

    Other than fingerprints, those of two files that say the same in different
    ways are equal.
    """
    return self.lower_case, self._pieces, (), None

  def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
    """Returns `encode` of every text, in order."""
    if isinstance(texts, str):
      raise TypeError(
        "encode_batch takes a list of texts; use encode for a single text"
      )
    return [self.encode(text) for text in texts]

  def encode_sentences(self, sentences: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each sentence of one text, in order.

    The ids of all sentences together read as one text: where a space is a part
    of the next piece, it belongs to the sentence after it.
    """
    return self.encode_batch(sentences)

  def encode_words(self, words: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each word of texts that are given as words.

    A word has the ids that it has after a space.
    """
    return self.encode_batch(words)

  def encode_masked(self, text: str, mark: str) -> list[int]:
    """Returns the ids of a text in which a mark stands for the mask token.

    Args:
      text: the text.
      mark: the spelling of a gap in the text.
    """
    first, *others = [self.encode(part) for part in text.split(mark)]
    return first + [i for ids in others for i in (self.mask_id, *ids)]

  def tokenize(self, text: str) -> list[str]:
    """Returns the pieces of `text`, without special tokens."""
    return [self._pieces[i] for i in self.encode(text)]

  def token(self, id: int) -> str:
    """Returns the piece with this id; raises ValueError for an unknown id."""
    index = operator.index(id)
    if not 0 <= index < self.vocab_size:
      raise ValueError(
        f"id {index} is not in this vocabulary of {self.vocab_size} pieces;"
        f" ids run from 0 to {self.vocab_size - 1}"
      )
    return self._pieces[index]

  def id(self, token: str) -> int:
    """Returns the id of this exact piece; raises ValueError for others."""
    try:
      return self._ids[token]
    except KeyError:
      raise ValueError(
        f"{token!r} is not a piece of this {self.kind} vocabulary of"
        f" {self.vocab_size}; encode() cuts text that is not one piece"
      ) from None


def without_spaces(text: str, start: int, end: int) -> tuple[int, int]:
  """Returns a part of a text without the white space at its ends.

  A piece that begins a word stands for the space before it, too.

  Args:
    text: the text.
    start: the first character of the part.
    end: the character behind the part.
  """
  while start < end and text[start].isspace():
    start += 1
  while start < end and text[end - 1].isspace():
    end -= 1
  return start, end
