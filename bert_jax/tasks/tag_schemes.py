"""Schemes by which tags mark chunks of words, such as named entities.

A tag of a chunk is a letter, and the type of the chunk after a hyphen. The
letter says where in its chunk the word stands:

  IOB1, IOB2  I within; B first, in IOB1 only next to a chunk of the same type
  BIOES       also E last, S alone (BMES: M for I)
  BILOU       also L last, U alone

O is a word outside of all chunks. Chunks of one type alone may be written by
the letter alone. Tags of any other form, such as parts of speech, are plain:
each is about its word alone.

All schemes are read as IOB2, in which every chunk begins with B.

Source: https://aclanthology.org/W95-0107, https://aclanthology.org/W09-1119
"""

from collections.abc import Iterable, Sequence
import re

from bert_jax.tasks import spec

SCHEMES = ("auto", "chunks", "plain")

_TYPED = re.compile(r"[BIESLUM]-.+", re.S)
_FIRST = frozenset("BSU")
_LAST = frozenset("ELSU")
# The letters of each scheme, for tags without types.
_BARE = ("BIO", "BIOES", "BILOU", "BMESO")
# Tags that were meant as chunks, but are written in another form.
_MISSPELLED = re.compile(r"[biesloum][-_:].+|[BIESLUM][_:].+", re.S)


class SchemeError(spec.TaskError):
  """Tags are of no scheme, or of several.

  Attributes:
    tag: the tag that does not fit.
    source: where the tags come from, as the message says it.
  """

  def __init__(self, tag: str, source: str, problem: str):
    super().__init__(f"{source}: {problem}")
    self.tag, self.source, self._problem = tag, source, problem

  def at(self, place: str) -> "SchemeError":
    """Returns the same error, which names another place."""
    return SchemeError(self.tag, place, self._problem)


def parse(tag: str) -> tuple[str, str]:
  """Returns the letter of a tag of a chunk, and the type, which may be ""."""
  letter, _, type = tag.partition("-")
  return letter, type


def is_iob(tag: str) -> bool:
  """Returns whether a tag is O, B, I, B-TYPE or I-TYPE."""
  return tag in ("O", "B", "I") or tag[:2] in ("B-", "I-") and len(tag) > 2


def scheme_of(tags: Iterable[str], source: str) -> str:
  """Returns "chunks" or "plain", which different tags can only be.

  Args:
    tags: all tags of a file, or the labels of a task.
    source: where they come from, for errors.

  Raises:
    SchemeError: Some tags are of chunks and others are not.
  """
  found = [tag for tag in dict.fromkeys(tags) if tag != "O"]
  typed = [tag for tag in found if _TYPED.fullmatch(tag)]
  others = [tag for tag in found if not _TYPED.fullmatch(tag)]
  advice = "; if tags are not chunks, set task.tag_scheme=plain"
  if typed and others:
    raise SchemeError(
      others[0],
      source,
      f"{typed[0]!r} is the tag of a chunk, but {others[0]!r} is not; wanted O,"
      f" and B-TYPE or I-TYPE, in IOB, BIOES or BILOU{advice}",
    )
  if typed:
    return "chunks"
  wrong = [tag for tag in others if _MISSPELLED.fullmatch(tag)]
  if wrong and len(wrong) == len(others):
    raise SchemeError(
      wrong[0],
      source,
      f"the tag {wrong[0]!r} looks like that of a chunk; write it as B-TYPE or"
      f" I-TYPE{advice}",
    )
  is_bare = others and any(set(others) <= set(letters) for letters in _BARE)
  if is_bare and ("B" in others or others == ["I"]):
    return "chunks"
  return "plain"


def is_chunked(labels: Sequence[str]) -> bool:
  """Returns whether labels are tags of chunks, in any of the schemes."""
  try:
    return scheme_of(labels, "") == "chunks"
  except spec.TaskError:
    return False


def to_iob2(tags: Sequence[str], where: Sequence[str]) -> tuple[str, ...]:
  """Returns the tags of a sentence in IOB2, from any of the schemes.

  A chunk that ends without E or L, or goes on without a beginning, is read as
  it stands: a word within a chunk of another type begins a new chunk.

  Args:
    tags: a tag for each word.
    where: "PATH:LINE" of each tag, for errors.

  Raises:
    spec.TaskError: A tag is not one of a chunk.

  Example:
    >>> to_iob2(["S-A", "B-A", "E-A", "I-A"], ["f:1", "f:2", "f:3", "f:4"])
    ('B-A', 'B-A', 'I-A', 'B-A')
  """
  result = []
  open_type: str | None = None  # of the chunk that may go on
  for tag, place in zip(tags, where, strict=True):
    if tag == "O":
      result.append(tag)
      open_type = None
      continue
    letter, type = parse(tag)
    if letter not in tuple("BIESLUM") or (("-" in tag) != bool(type)):
      raise spec.TaskError(
        f"{place}: tag {tag!r} is not known; wanted O, or a letter of IOB,"
        " BIOES or BILOU with the type of the chunk, such as B-TYPE; if tags"
        " are not chunks, set task.tag_scheme=plain"
      )
    is_first = letter in _FIRST or type != open_type
    result.append(("B" if is_first else "I") + (f"-{type}" if type else ""))
    open_type = None if letter in _LAST else type
  return tuple(result)


def iob_labels(labels: Sequence[str]) -> tuple[str, ...]:
  """Returns the labels in IOB2 of tags of any scheme, in their order.

  Labels that are IOB already are left as they are.
  """
  if all(map(is_iob, labels)):
    return tuple(labels)
  types = dict.fromkeys(parse(tag)[1] for tag in labels if tag != "O")
  pairs = (
    f"{letter}-{type}" if type else letter for type in types for letter in "BI"
  )
  return ("O", *pairs)


def chunks(tags: Sequence[str]) -> list[tuple[str, int, int]]:
  """Returns (type, first word, word after the last) of each chunk.

  Args:
    tags: the tags of a sentence in any of the schemes.

  Example:
    >>> chunks(["B-A", "I-A", "O", "S-B"])
    [('A', 0, 2), ('B', 3, 4)]
  """
  found: list[tuple[str, int, int]] = []
  plain = to_iob2(tags, [""] * len(tags))
  for at, tag in enumerate(plain):
    letter, type = parse(tag)
    if letter == "B":
      found.append((type, at, at + 1))
    elif letter == "I":
      type, start, _ = found[-1]
      found[-1] = (type, start, at + 1)
  return found
