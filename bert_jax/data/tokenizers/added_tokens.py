"""Finds the tokens that were added to a vocabulary in a text.

An added token is matched in the text itself, before it is cut into words, and
becomes one id. The rules are those of Hugging Face's `tokenizers` library:
tokens without `normalized` are matched first; the others are then matched in
the normalised text between these. If several tokens match at one position, the
longest one is taken.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import re
import unicodedata

from bert_jax.data.tokenizers import interface

# (id, start, end): the id of an added token, or None for text that is cut into
# words; its first character; and the character after its last.
Segment = tuple[int | None, int, int]

_JOINERS = "\u200c\u200d"


@dataclasses.dataclass(frozen=True)
class AddedToken:
  """One added token, with the fields that `tokenizers` gives it.

  Attributes:
    content: its spelling.
    single_word: whether it is matched only if no word character is next to it.
    lstrip: whether it includes the spaces before it. WordPiece ignores spaces,
      so that this changes no id.
    rstrip: whether it includes the spaces after it.
    normalized: whether its normalised spelling is matched in normalised text,
      which is lower-cased and without accents if the tokenizer does so.
    special: whether it is a mark for the model and not a part of the text. When
      they decode, other programs may omit it.
  """

  content: str
  single_word: bool = False
  lstrip: bool = False
  rstrip: bool = False
  normalized: bool = True
  special: bool = False

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      wanted = str if field.name == "content" else bool
      if type(value) is not wanted:
        raise ValueError(
          f"the added token {self.content!r:.60} has {field.name}="
          f"{value!r:.60}; wanted {wanted.__name__}. Correct added_tokens of "
          "tokenizer.json, or of tokenizer_config.json"
        )
    if not self.content.strip():
      raise ValueError(
        f"an added token is {self.content!r:.60}; it must have a character "
        "that is not a space"
      )


def _is_word_character(char: str) -> bool:
  """Returns whether regular expressions count a character as part of a word."""
  category = unicodedata.category(char)
  return (
    category[0] in "LM"
    or category in ("Nd", "Nl", "Pc")
    or char in _JOINERS
    or "\u24b6" <= char <= "\u24e9"  # letters in circles are alphabetic
  )


class Finder:
  """Cuts a text at the added tokens in it.

  Args:
    ids: added token -> id.
    normalize: code point of a character -> its normalised text, as
      `str.translate` takes it.

  Example:
    >>> find = Finder({AddedToken("<e>"): 7}, {})
    >>> find("a <e> b")
    [(None, 0, 2), (7, 2, 5), (None, 5, 7)]
  """

  def __init__(
    self, ids: Mapping[AddedToken, int], normalize: Mapping[int, str]
  ):
    self._ids = ids
    self._normalize = normalize
    self._raw = _by_content(token for token in ids if not token.normalized)
    self._normal = _by_content(
      (token for token in ids if token.normalized),
      lambda content: content.translate(normalize),
    )

  def __call__(self, text: str) -> list[Segment]:
    """Returns the segments of a text, which together are the whole text."""
    segments: list[Segment] = []
    for id, start, end in _segments(
      text, 0, len(text), self._matches(self._raw, text)
    ):
      if id is None:
        part = text[start:end]
        segments += _segments(part, start, end, self._normal_matches(part))
      else:
        segments.append((id, start, end))
    return segments

  def _matches(self, tokens: "_Tokens", text: str) -> Iterator[Segment]:
    """Yields the matches of tokens in a text."""
    pattern, by_content = tokens
    for match in pattern.finditer(text):
      token = by_content[match.group()]
      start, end = match.span()
      if token.single_word and (
        (start and _is_word_character(text[start - 1]))
        or (end < len(text) and _is_word_character(text[end]))
      ):
        continue
      yield self._ids[token], start, end

  def _normal_matches(self, text: str) -> Iterator[Segment]:
    """Yields the matches of tokens in a text after normalising it."""
    pattern, by_content = self._normal
    if not by_content:
      return
    normal = text.translate(self._normalize)
    if not pattern.search(normal):
      return
    # The index in `text` of the source of each character of `normal`.
    source = [
      i for i, char in enumerate(text) for _ in char.translate(self._normalize)
    ]
    for id, start, end in self._matches(self._normal, normal):
      first, last = source[start], source[end - 1]
      # One character may become several; a match must contain all of them.
      splits_first = start > 0 and source[start - 1] == first
      splits_last = end < len(source) and source[end] == last
      if not splits_first and not splits_last:
        yield id, first, last + 1


_Tokens = tuple[re.Pattern[str], dict[str, AddedToken]]


def _by_content(
  tokens: Iterator[AddedToken],
  normalize: Callable[[str], str] = lambda content: content,
) -> _Tokens:
  """Returns a pattern that prefers the longest token, and spelling -> token."""
  by_content: dict[str, AddedToken] = {}
  for token in tokens:
    if content := normalize(token.content):
      by_content.setdefault(content, token)
  longest_first = sorted(by_content, key=len, reverse=True)
  pattern = "|".join(map(re.escape, longest_first)) or "(?!)"  # matches nothing
  return re.compile(pattern), by_content


def _segments(
  text: str, start: int, end: int, matches: Iterator[Segment]
) -> Iterator[Segment]:
  """Yields the matches in a part of a text, and the text between them.

  Args:
    text: the part.
    start: the position in the whole text where the part begins.
    end: the position where it ends.
    matches: the matches, with positions from the beginning of the part.
  """
  at = start
  for id, first, last in matches:
    # A token does not include the spaces at its ends.
    first, last = interface.without_spaces(text, first, last)
    if at < start + first:
      yield None, at, start + first
    at = start + last
    yield id, start + first, at
  if at < end:
    yield None, at, end
