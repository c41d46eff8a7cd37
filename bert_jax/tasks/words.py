"""Splits a text into words, with their places, as the data of a tagger does.

A tagger reads words. Its training data may have words that are already split;
text to predict is then split in the same manner, which is found out from the
words. The manners:

  spaces       words are what stands between spaces
  punctuation  also, punctuation marks around a word are words of their own
  characters   every character is a word, as usual for Chinese
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import functools
import re
import unicodedata

Place = tuple[int, int]

_SPACES = re.compile(r"\S+")
# Marks that belong to the word if there are letters on both sides of them.
_INNER = frozenset("-'\u2019.,:/@&+_%")
# How many of 100 words may be long for words to be single characters.
_MOST_LONG = 5
# Marks that stand at the end of a word in running text.
_CLOSING = frozenset(',;:!?")]')


@functools.lru_cache(4096)
def _category(character: str) -> str:
  return unicodedata.category(character)


def _is_mark(character: str) -> bool:
  """Returns whether a character is a punctuation mark or a symbol."""
  return _category(character)[0] in "PS"


def _by_spaces(text: str) -> Iterator[Place]:
  for match in _SPACES.finditer(text):
    yield match.span()


def _by_punctuation(text: str) -> Iterator[Place]:
  for start, end in _by_spaces(text):
    at = start
    while at < end:
      stop = at + 1
      if not _is_mark(text[at]):
        while stop < end and (
          not _is_mark(text[stop])
          or (
            text[stop] in _INNER
            and stop + 1 < end
            and not _is_mark(text[stop + 1])
          )
        ):
          stop += 1
      yield at, stop
      at = stop


def _by_characters(text: str) -> Iterator[Place]:
  for start, end in _by_spaces(text):
    at = start
    while at < end:
      stop = at + 1
      # A vowel sign or an accent belongs to the letter before it.
      while stop < end and _category(text[stop])[0] == "M":
        stop += 1
      yield at, stop
      at = stop


SPLITS: Mapping[str, Callable[[str], Iterator[Place]]] = {
  "spaces": _by_spaces,
  "punctuation": _by_punctuation,
  "characters": _by_characters,
}


def places(text: str, split: str) -> list[Place]:
  """Returns the half-open range of characters of each word of a text.

  Args:
    text: the text.
    split: what separates words: "spaces"; "punctuation", where each mark of
      punctuation is a word too; or "characters", where each one is a word.

  Example:
    >>> places("Hi, you", "punctuation")
    [(0, 2), (2, 3), (4, 7)]
  """
  return list(SPLITS[split](text))


def split_of(words: Iterable[str]) -> str:
  """Returns how a text was split, of which these are the words.

  Args:
    words: the words of many sentences.
  """
  num_words = num_long = num_marks = num_closed = 0
  for word in words:
    num_words += 1
    if len(word) > 1:
      num_long += 1
      num_closed += word[-1] in _CLOSING and not all(map(_is_mark, word))
    elif word:
      num_marks += _is_mark(word)
  if num_words and 100 * num_long <= _MOST_LONG * num_words:
    return "characters"
  return "punctuation" if num_marks > num_closed else "spaces"


def best_split(texts: Iterable[tuple[str, Iterable[Place]]]) -> str:
  """Returns the split whose words agree best with spans of characters.

  Args:
    texts: texts, each with the ranges of characters that spans mark.

  Returns:
    "punctuation", unless most spans begin or end within its words, as in a
    language that is written without spaces.
  """
  total = misplaced = 0
  for text, spans in texts:
    found = places(text, "punctuation")
    starts, ends = {start for start, _ in found}, {end for _, end in found}
    for start, end in spans:
      total += 1
      misplaced += start not in starts or end not in ends
  return "characters" if 2 * misplaced > total else "punctuation"
