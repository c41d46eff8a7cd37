"""Cuts text into words and punctuation by the rules of the original BERT.

The words are those of the original rules for any Unicode text; Python's own
`unicodedata` defines the characters. The normaliser of the Rust `tokenizers`
library is not used, because it treats the final sigma differently and has
another Unicode version. Words repeat, so results are kept in bounded
dictionaries, and most text needs only a look-up.
"""

from collections.abc import Callable, Hashable
import re
from typing import TypeVar
import unicodedata

# The bounds of a dictionary, which has some 60 MB when full. A longer chunk (a
# Chinese paragraph, a URL) is unlikely to occur twice.
_MAX_CACHED = 2**18
_MAX_CACHED_CHARS = 64

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Memo(dict[_Key, _Value]):
  """A dictionary that computes missing values and keeps a bounded number."""

  def __init__(self, compute: Callable[[_Key], _Value]):
    super().__init__()
    self._compute = compute

  def __missing__(self, key: _Key) -> _Value:
    value = self._compute(key)
    is_long = isinstance(key, str) and len(key) > _MAX_CACHED_CHARS
    if len(self) < _MAX_CACHED and not is_long:
      self[key] = value
    return value


# str.split() breaks at these control characters. BERT drops them, which joins
# the text on both sides.
_SPLITTING_CONTROLS = re.compile("[\x0b\x0c\x1c-\x1f\x85]")


def chunks(text: str) -> list[str]:
  """Cuts text at the whitespace that ends a word under BERT's rules.

  str.split() breaks at the category Zs, which BERT turns into spaces; at tab,
  line feed and carriage return; and at U+2028 and U+2029, which BERT keeps when
  it cleans a text and at which its own str.split() then breaks.
  """
  # Nearly all text is printable and skips the search.
  if not text.isprintable():
    text = _SPLITTING_CONTROLS.sub("", text)
  return text.split()


# Matches the chunks of `chunks` in the original text. A match still contains
# the control characters, which cleaning drops.
CHUNK = re.compile(r"[\S\x0b\x0c\x1c-\x1f\x85]+")


# The Unicode blocks that BERT calls CJK ideographs. Hangul, Hiragana and
# Katakana are not among them; their text is cut like that of other scripts.
_CJK = re.compile(
  r"[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f"
  r"\U0002b740-\U0002b81f\U0002b820-\U0002ceaf\uf900-\ufaff"
  r"\U0002f800-\U0002fa1f]"
)


def is_ideograph(piece: str) -> bool:
  """Returns whether a piece is one Chinese character, which BERT sets apart."""
  return len(piece) == 1 and bool(_CJK.match(piece))


def has_ideograph(piece: str) -> bool:
  """Returns whether a piece has a Chinese character in it."""
  return bool(_CJK.search(piece))


def _clean_char(code: int) -> str:
  """Returns a character after cleaning: "", " x " or the character itself."""
  char = chr(code)
  if char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cf"):
    return ""
  return f" {char} " if _CJK.match(char) else char


def _set_punctuation_apart(code: int) -> str:
  """Puts spaces around punctuation: ASCII symbols and Unicode's category P*.

  Unicode calls ASCII characters such as "$", "+" and "^" symbols, but they
  should not be parts of words either.
  """
  char = chr(code)
  is_ascii_symbol = 33 <= code <= 126 and not char.isalnum()
  if is_ascii_symbol or unicodedata.category(char).startswith("P"):
    return f" {char} "
  return char


def _drop_mark_or_set_apart(code: int) -> str:
  """Does the same, and drops the accents (Mn) of decomposed text."""
  if unicodedata.category(chr(code)) == "Mn":
    return ""
  return _set_punctuation_apart(code)


def normalize_char(
  code: int, lower_case: bool, strip_accents: bool | None = None
) -> str:
  """Returns a character after normalisation, before text is cut into words."""
  char = chr(code)
  if char in "\t\n\r\u2028\u2029" or unicodedata.category(char) == "Zs":
    return " "
  text = _clean_char(code)
  if lower_case:
    text = text.lower()
  if lower_case if strip_accents is None else strip_accents:
    text = "".join(
      c
      for c in unicodedata.normalize("NFD", text)
      if unicodedata.category(c) != "Mn"
    )
  return text


class WordSplitter:
  """Cuts a chunk of text, without whitespace, into words and punctuation.

  The steps have the order of the original: clean, set ideographs apart, then
  for each token lower-case, decompose, drop accents and set punctuation apart.
  Lower-casing a whole chunk equals lower-casing its tokens, because a space
  ends the context that decides a final sigma, and no combining mark moves
  across it.

  Source: google-research/bert tokenization.py:161-284
  """

  def __init__(self, lower_case: bool, strip_accents: bool | None = None):
    """Takes the rules.

    Args:
      lower_case: whether text is lower-cased.
      strip_accents: whether combining marks (Mn) are dropped; None = as
        `lower_case`, like the original. The vowel signs of Indic scripts are
        such marks, too.
    """
    self._lower_case = lower_case
    self._strip = lower_case if strip_accents is None else strip_accents
    self._clean = Memo(_clean_char)
    self._set_apart = Memo(
      _drop_mark_or_set_apart if self._strip else _set_punctuation_apart
    )

  def __call__(self, chunk: str) -> list[str]:
    if chunk.isascii() and chunk.isalnum():
      return [chunk.lower() if self._lower_case else chunk]
    text = chunk.translate(self._clean)
    if self._lower_case:
      text = text.lower()
    if self._strip:
      text = unicodedata.normalize("NFD", text)
    return text.translate(self._set_apart).split()

  def sources(self, chunk: str) -> tuple[list[int], list[int]]:
    """Returns the positions in a chunk of the characters of its words.

    One character may become several (a syllable of Hangul) or none (a control
    character or an accent). An accent that was dropped belongs to the character
    before it.

    Args:
      chunk: the chunk before normalisation.

    Returns:
      For each character of all words: the first character of the chunk that it
      stands for, and the character after the last one.
    """
    starts: list[int] = []
    ends: list[int] = []
    for at, char in enumerate(chunk):
      count = len("".join(self(char)))
      if not count and starts and unicodedata.combining(char):
        first = starts[-1]
        for i in range(len(starts) - 1, -1, -1):
          if starts[i] != first:
            break
          ends[i] = at + 1
      starts += [at] * count
      ends += [at + 1] * count
    return starts, ends
