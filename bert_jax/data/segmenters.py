"""The words of Chinese, which has no spaces between words.

BERT's rules set every Chinese character apart, so that its pieces do not say
where words begin. A segmenter says it: `bert-jax prepare` marks the tokens that
continue a word, and whole-word masking reads these marks. The ids do not
change. Whole words of Chinese BERT are masked in this way.

Source: Cui et al., Pre-training with whole word masking for Chinese BERT,
arXiv:1906.08101, whose words are those of another segmenter, LTP.
"""

from collections.abc import Callable, Iterable
import dataclasses
import functools
import hashlib
import logging
import re
import warnings

import numpy as np

from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import word_rules
from bert_jax.runtime import errors
from bert_jax.runtime import files

JIEBA = "jieba"
SPACES = "spaces"
KEY = "prepare.segmenter"
# Texts whose second one some tokenizers encode as if a space was before it.
_PROBE = ["\u6211\u4eec a", "\u6211\u4eec a"]


class SegmenterError(errors.UserError):
  """A segmenter is not installed, or cannot be used."""


@dataclasses.dataclass(frozen=True)
class Segmenter:
  """Cuts text into words.

  Attributes:
    record: what decides the words: a name with a version, or with a hash.
    cut: returns the words of a text, spaces between them included; joined
      they are the text.
  """

  record: str
  cut: Callable[[str], Iterable[str]]


def load(name: str) -> Segmenter:
  """Loads a segmenter.

  Args:
    name: "jieba"; "spaces", for text in which words have spaces between them;
      or the path of a text file with a word on each line.

  Raises:
    SegmenterError: it is not installed, or the file cannot be used.
  """
  if name == JIEBA:
    return _load_jieba()
  if name == SPACES:
    return Segmenter(SPACES, functools.partial(re.findall, r"\s+|\S+"))
  return _load_words(name)


def _load_jieba() -> Segmenter:
  try:
    with warnings.catch_warnings():  # of escapes that Python no longer allows
      warnings.simplefilter("ignore")
      import jieba
  except ImportError as error:
    raise SegmenterError(
      f"{KEY}={JIEBA} needs the package of that name: pip install "
      "'bert_jax[chinese]'"
    ) from error
  jieba.setLogLevel(logging.WARNING)
  # An instance of our own has no words that other code has added.
  return Segmenter(f"{JIEBA} {jieba.__version__}", jieba.Tokenizer().lcut)


def _load_words(path: str) -> Segmenter:
  """Returns a segmenter by the words of a file.

  From left to right, the longest word of the list that fits is taken; a
  character that begins none is a word of its own.

  Args:
    path: a text file in UTF-8, a word on each line. Lines may be empty, or
      comments that begin with "#".
  """
  if not files.is_file(path):
    raise SegmenterError(
      f"{KEY}={path}: there is no such file; it must be {JIEBA}, {SPACES} or "
      "the path of a text file with a word on each line"
    )
  content = files.read_bytes(path)
  try:
    lines = content.decode("utf-8-sig").splitlines()
  except UnicodeDecodeError as error:
    number = content.count(b"\n", 0, error.start) + 1
    raise SegmenterError(
      f"{path}, line {number}: this is not UTF-8; write the list of words again"
      " in UTF-8"
    ) from error
  words = set()
  for number, line in enumerate(lines, start=1):
    word = line.strip()
    if not word or word.startswith("#"):
      continue
    if len(word.split()) > 1:
      raise SegmenterError(
        f"{path}, line {number}: {word!r:.60} has spaces in it; put one word on"
        " each line, without its frequency or other columns"
      )
    words.add(word)
  longest = max(map(len, words), default=0)
  if longest < 2:
    raise SegmenterError(f"{path} has no word of several characters")
  digest = hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()
  cut = functools.partial(_longest_words, words, longest)
  return Segmenter(f"words {digest}", cut)


def _longest_words(words: set[str], longest: int, text: str) -> list[str]:
  """Cuts a text into the longest words of a set, from left to right.

  Args:
    words: the set.
    longest: the characters of the longest of them.
    text: the text.
  """
  found = []
  at = 0
  while at < len(text):
    size = min(longest, len(text) - at)
    while size > 1 and text[at : at + size] not in words:
      size -= 1
    found.append(text[at : at + size])
    at += size
  return found


def check(tokenizer: interface.Tokenizer) -> None:
  """Raises SegmenterError if a tokenizer's pieces cannot be put into words."""
  alone = [tokenizer.encode_with_offsets(text)[0] for text in _PROBE]
  if tokenizer.encode_sentences(_PROBE) != alone:
    raise SegmenterError(
      f"{KEY}: the pieces of this vocabulary contain the spaces before them, "
      "so that they cannot be put into words; use a WordPiece or SentencePiece "
      "vocabulary, or leave the key out"
    )
  tokenizer.continues_word()  # it raises if no piece says where a word begins


class WordMarker:
  """Encodes text, and marks the tokens that continue a word.

  Attributes:
    num_chinese: the Chinese tokens so far.
    num_joined: how many of them continue a word.
  """

  def __init__(self, segmenter: Segmenter, tokenizer: interface.Tokenizer):
    self.num_chinese = 0
    self.num_joined = 0
    self._segmenter = segmenter
    self._tokenizer = tokenizer
    self._continues_word = tokenizer.continues_word()

  def encode(self, text: str) -> tuple[list[int], list[bool]]:
    """Returns the ids of a text, and whether each continues a word.

    A Chinese token continues a word if the token before is Chinese and begins
    in the same word. For other tokens the vocabulary decides.

    Args:
      text: the text.

    Raises:
      SegmenterError: the words of the segmenter are not the text.
    """
    ids, starts, _ = self._tokenizer.encode_with_offsets(text)
    marks = self._continues_word[ids].tolist()
    is_chinese = [
      word_rules.is_ideograph(text[start : start + 1]) for start in starts
    ]
    if not any(is_chinese):
      return ids, marks
    word = self._word_numbers(text)[starts].tolist()
    for i in range(len(ids)):
      after_chinese = i > 0 and is_chinese[i - 1]
      if is_chinese[i]:
        marks[i] = after_chinese and word[i] == word[i - 1]
        self.num_joined += marks[i]
      elif after_chinese:
        marks[i] = False
    self.num_chinese += sum(is_chinese)
    return ids, marks

  def _word_numbers(self, text: str) -> np.ndarray:
    """Returns the number of the word of each character, and of the end."""
    words = list(self._segmenter.cut(text))
    if "".join(words) != text:
      raise SegmenterError(
        f"{self._segmenter.record} changed the text {text!r:.60}, so that its "
        f"words cannot be found in it; use another {KEY}"
      )
    sizes = [*map(len, words), 1]
    return np.repeat(np.arange(len(sizes)), sizes)
