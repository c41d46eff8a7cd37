"""Tokens that were added to a vocabulary: where they stand in a text.

An added token is matched in the text itself, before it is cut into words, and
becomes one id. The rules are those of Hugging Face's `tokenizers` library:
tokens that are matched as written come first; those that are matched in
normalised text are then looked for in what lies between. Of several tokens that
begin at one place the longest is taken.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import re
import unicodedata

# What stands in a text, from one character to another: an added token's id, or
# None for text that is cut into words.
Segment = tuple[int | None, int, int]

_JOINERS = "\u200c\u200d"


@dataclasses.dataclass(frozen=True)
class AddedToken:
  """One added token, with the fields that `tokenizers` gives it.

  Attributes:
    content: how it is written.
    single_word: it is matched only where no word character touches it.
    lstrip: it takes the spaces before it. WordPiece has no use for spaces, so
      this changes no id here.
    rstrip: the same for the spaces after it.
    normalized: it is looked for in normalised text (lower-cased, without
      accents, where the tokenizer does so), and is normalised itself.
    special: it is a mark for the model and not a part of the text; decoding in
      other programs may leave it out.
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
          f"{value!r:.60}; a {wanted.__name__} was wanted"
        )
    if not self.content.strip():
      raise ValueError(
        f"an added token is {self.content!r:.60}; it must have a character "
        "that is no space"
      )


def _is_word_character(char: str) -> bool:
  """Whether a character is one of words, as regular expressions see it."""
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
    normalize: character by code point -> what it becomes in normalised text;
      what `str.translate` takes.

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
    """The segments of a text, which together are all of it."""
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
    """Where tokens stand in a text."""
    pattern, by_content = tokens
    if pattern is None:
      return
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
    """Where tokens stand in a text once that is normalised."""
    pattern, _ = self._normal
    if pattern is None:
      return
    normal = text.translate(self._normalize)
    if not pattern.search(normal):
      return
    # For each character of `normal` the one of `text` that it comes from.
    source = [
      i for i, char in enumerate(text) for _ in char.translate(self._normalize)
    ]
    for id, start, end in self._matches(self._normal, normal):
      first, last = source[start], source[end - 1]
      # One character may become several, of which a token may be a part.
      splits_first = start > 0 and source[start - 1] == first
      splits_last = end < len(source) and source[end] == last
      if not splits_first and not splits_last:
        yield id, first, last + 1


_Tokens = tuple[re.Pattern[str] | None, dict[str, AddedToken]]


def _by_content(
  tokens: Iterator[AddedToken],
  normalize: Callable[[str], str] = lambda content: content,
) -> _Tokens:
  """A pattern that matches some tokens, the longest first, and the tokens."""
  by_content: dict[str, AddedToken] = {}
  for token in tokens:
    if content := normalize(token.content):
      by_content.setdefault(content, token)
  if not by_content:
    return None, by_content
  longest_first = sorted(by_content, key=len, reverse=True)
  return re.compile("|".join(map(re.escape, longest_first))), by_content


def _segments(
  text: str, start: int, end: int, matches: Iterator[Segment]
) -> Iterator[Segment]:
  """Fills the gaps between the matches in a part of a text.

  Args:
    text: the part.
    start: where it begins in the whole.
    end: where it ends.
    matches: counted from the part's beginning.
  """
  at = start
  for id, first, last in matches:
    # Spaces at its ends belong to no token.
    while first < last and text[first].isspace():
      first += 1
    while first < last and text[last - 1].isspace():
      last -= 1
    if at < start + first:
      yield None, at, start + first
    at = start + last
    yield id, start + first, at
  if at < end:
    yield None, at, end
