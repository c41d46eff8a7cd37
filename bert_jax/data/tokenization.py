"""Text to ids and back: BERT's WordPiece, and SentencePiece beside it.

WordPiece ids are those of the original rules on any Unicode text, as Python's
own `unicodedata` defines the characters. The normaliser of the Rust
`tokenizers` library is close but has another final sigma and another Unicode
version, so splitting text into words is done here, and only the greedy match
of one word against the vocabulary is left to that library. Words repeat, so
the answers are kept in bounded dictionaries and most text never gets further
than a look-up.

  tokenizer = load_tokenizer("uncased_L-12_H-768_A-12/vocab.txt")
  ids = tokenizer.encode("A sentence without [CLS] and [SEP].")

No method adds special tokens: what surrounds a sentence is decided where
examples are made.
"""

import abc
import collections
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import operator
import os
import pathlib
import random
import re
from typing import Any, TypeVar
import unicodedata

import numpy as np
import sentencepiece
import tokenizers

from bert_jax.data import added_tokens
from bert_jax.data import hf_tokenizer
from bert_jax.data import templates
from bert_jax.runtime import files

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_INPUT_CHARS_PER_WORD = 200

_VOCAB_FILE = "vocab.txt"
_MODEL_FILE = "sentencepiece.model"
_SETTINGS_FILE = "tokenizer.json"
_ADDED = "added_tokens"  # its key for tokens that were added

# Bounds of the dictionaries: some 60 MB when full, and a chunk longer than
# this (a Chinese paragraph, a URL) is unlikely to come twice.
_MAX_CACHED = 2**18
_MAX_CACHED_CHARS = 64

# Pieces that stand for something other than their own characters.
_BRACKETED = re.compile(r"\[.*\]|<.*>", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORD_START = "\u2581"  # SentencePiece's mark of a word's first piece

Path = str | os.PathLike[str]

# Ids; for each its first character and the one after its last.
Encoding = tuple[list[int], list[int], list[int]]


class Tokenizer(abc.ABC):
  """A vocabulary together with the rules that cut text into its pieces.

  Attributes:
    kind: "wordpiece" or "sentencepiece".
    vocab_size: number of pieces, V.
    pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special tokens.
    lower_case: whether text is lower-cased and loses its accents; None for
      SentencePiece, whose model file carries its own normalisation.
    template: how sequences are put together for the models of this vocabulary.
  """

  kind: str
  lower_case: bool | None
  template: templates.Template = templates.CLS_SEP

  def __init__(self, pieces: Sequence[str], special_ids: Sequence[int]):
    self._pieces = tuple(pieces)
    self._ids = {piece: i for i, piece in enumerate(self._pieces)}
    self.vocab_size = len(self._pieces)
    self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
      special_ids
    )
    self._special_ids = frozenset(special_ids)

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, without special tokens."""

  @abc.abstractmethod
  def encode_with_offsets(self, text: str) -> Encoding:
    """Returns the ids of `text`, and which characters each stands for.

    The ids are those of `encode`. Both columns of characters grow with the
    tokens; text[start:end] of a token has no spaces around it.

    Args:
      text: as it stands in a file, before any normalisation.

    Returns:
      ids, starts and ends, of equal length.
    """

  @abc.abstractmethod
  def decode(self, ids: Iterable[int]) -> str:
    """Returns readable text: pieces joined to words, padding left out.

    Not an inverse of `encode`: what normalisation took away stays away.

    Args:
      ids: token ids; special tokens other than [PAD] appear by name.
    """

  @abc.abstractmethod
  def continues_word(self) -> np.ndarray:
    """Returns [V] bool: the piece continues the word of the piece before it.

    Whole-word masking groups pieces by this. Special tokens are False.
    """

  @abc.abstractmethod
  def save(self, directory: Path) -> None:
    """Writes what `load_tokenizer(directory)` needs to give the same ids."""

  @abc.abstractmethod
  def _content(self) -> bytes:
    """Everything that decides ids."""

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256, in hex, of the vocabulary and every setting that changes ids.

    Equal fingerprints give equal ids.
    """
    return hashlib.sha256(self._content()).hexdigest()

  def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
    """Returns `encode` of every text, in order."""
    if isinstance(texts, str):
      raise TypeError(
        "encode_batch wants many texts; encode takes a single one"
      )
    return [self.encode(text) for text in texts]

  def tokenize(self, text: str) -> list[str]:
    """Returns the pieces of `text`, without special tokens."""
    return [self._pieces[i] for i in self.encode(text)]

  def token(self, id: int) -> str:
    """Returns the piece with this id; ValueError when there is none."""
    index = operator.index(id)
    if not 0 <= index < self.vocab_size:
      raise ValueError(
        f"id {index} is not in this vocabulary of {self.vocab_size} pieces;"
        f" ids run from 0 to {self.vocab_size - 1}"
      )
    return self._pieces[index]

  def id(self, token: str) -> int:
    """Returns the id of this exact piece; ValueError when there is none."""
    try:
      return self._ids[token]
    except KeyError:
      raise ValueError(
        f"{token!r} is not a piece of this {self.kind} vocabulary of"
        f" {self.vocab_size}; encode() cuts text that is not one piece"
      ) from None

  def _write_settings(self, directory: pathlib.Path, **settings: Any) -> None:
    settings = {"kind": self.kind, **settings, "fingerprint": self.fingerprint}
    text = json.dumps(settings, indent=2) + "\n"
    files.write_text(str(directory / _SETTINGS_FILE), text)

  def __repr__(self) -> str:
    return (
      f"{type(self).__name__}(vocab_size={self.vocab_size},"
      f" lower_case={self.lower_case}, fingerprint={self.fingerprint[:12]})"
    )


# ---------------------------------------------------------------------------
# Text to words
# ---------------------------------------------------------------------------

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class _Memo(dict[_Key, _Value]):
  """A dictionary that computes what it lacks, and stops growing when full."""

  def __init__(
    self,
    compute: Callable[[_Key], _Value],
    *,
    is_kept: Callable[[_Key], bool] = lambda key: True,
  ):
    super().__init__()
    self._compute = compute
    self._is_kept = is_kept

  def __missing__(self, key: _Key) -> _Value:
    value = self._compute(key)
    if len(self) < _MAX_CACHED and self._is_kept(key):
      self[key] = value
    return value


def _is_short(text: str) -> bool:
  return len(text) <= _MAX_CACHED_CHARS


# str.split() breaks at these control characters; BERT drops them, which joins
# what stands on either side.
_SPLITTING_CONTROLS = re.compile("[\x0b\x0c\x1c-\x1f\x85]")


def _chunks(text: str) -> list[str]:
  """Cuts text at the whitespace that ends a word under BERT's rules.

  str.split() breaks at Zs, which BERT turns into spaces, at tab, line feed and
  carriage return, and at U+2028 and U+2029, which BERT's cleaning leaves alone
  and its own str.split() then breaks at.
  """
  # Text of plain characters and spaces, nearly all there is, skips the search.
  if not text.isprintable():
    text = _SPLITTING_CONTROLS.sub("", text)
  return text.split()


# What `_chunks` makes of a text, in the text as it was; the controls are still
# in it, and cleaning a chunk drops them.
_CHUNK = re.compile(r"[\S\x0b\x0c\x1c-\x1f\x85]+")


# The blocks BERT calls CJK ideographs. Not Hangul, Hiragana or Katakana, which
# are written with spaces or treated as words like any other.
_CJK_RANGES = (
  (0x4E00, 0x9FFF),
  (0x3400, 0x4DBF),
  (0x20000, 0x2A6DF),
  (0x2A700, 0x2B73F),
  (0x2B740, 0x2B81F),
  (0x2B820, 0x2CEAF),
  (0xF900, 0xFAFF),
  (0x2F800, 0x2FA1F),
)


def _clean_char(code: int) -> str:
  """What cleaning makes of a character: dropped, set apart, or itself."""
  char = chr(code)
  if char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cf"):
    return ""
  if any(first <= code <= last for first, last in _CJK_RANGES):
    return f" {char} "
  return char


def _set_punctuation_apart(code: int) -> str:
  """Spaces around punctuation: all ASCII symbols, and Unicode's P* elsewhere.

  ASCII has the exception because "$", "+", "^" and the like are symbols to
  Unicode and should still not stick to words.
  """
  char = chr(code)
  is_ascii_symbol = 33 <= code <= 126 and not char.isalnum()
  if is_ascii_symbol or unicodedata.category(char).startswith("P"):
    return f" {char} "
  return char


def _drop_mark_or_set_apart(code: int) -> str:
  """As `_set_punctuation_apart`, and drops accents (Mn) of decomposed text."""
  if unicodedata.category(chr(code)) == "Mn":
    return ""
  return _set_punctuation_apart(code)


def _normalize_char(code: int, lower_case: bool) -> str:
  """What a character becomes in normalised text, which is not cut yet."""
  char = chr(code)
  if char in "\t\n\r\u2028\u2029" or unicodedata.category(char) == "Zs":
    return " "
  text = _clean_char(code)
  if lower_case:
    text = "".join(
      c
      for c in unicodedata.normalize("NFD", text.lower())
      if unicodedata.category(c) != "Mn"
    )
  return text


class _WordSplitter:
  """Cuts a chunk of text, without whitespace, into words and punctuation.

  The order is the original's: clean, set ideographs apart, then per token
  lower-case, decompose, drop accents and set punctuation apart. Lower-casing a
  whole chunk equals lower-casing its tokens: a space ends the context that
  decides a final sigma, and no combining mark moves across it.

  Source: google-research/bert tokenization.py:161-284
  """

  def __init__(self, lower_case: bool):
    self._lower_case = lower_case
    self._clean = _Memo(_clean_char)
    self._set_apart = _Memo(
      _drop_mark_or_set_apart if lower_case else _set_punctuation_apart
    )

  def __call__(self, chunk: str) -> list[str]:
    if chunk.isascii() and chunk.isalnum():
      return [chunk.lower() if self._lower_case else chunk]
    text = chunk.translate(self._clean)
    if self._lower_case:
      text = unicodedata.normalize("NFD", text.lower())
    return text.translate(self._set_apart).split()

  def sources(self, chunk: str) -> tuple[list[int], list[int]]:
    """Where the characters of the words of a chunk come from.

    One character may become several (a syllable of Hangul) or none (a control,
    an accent). An accent that was dropped counts to what it stood on.

    Args:
      chunk: as it stood in the text.

    Returns:
      For each character of the words, one after the other: the first character
      of the chunk that it stands for, and the one after the last.
    """
    starts: list[int] = []
    ends: list[int] = []
    for at, char in enumerate(chunk):
      text = char.translate(self._clean)
      if self._lower_case:
        text = unicodedata.normalize("NFD", text.lower())
      count = len("".join(text.translate(self._set_apart).split()))
      if not count and starts and unicodedata.combining(char):
        first = starts[-1]
        for i in range(len(starts) - 1, -1, -1):
          if starts[i] != first:
            break
          ends[i] = at + 1
      starts += [at] * count
      ends += [at + 1] * count
    return starts, ends


# ---------------------------------------------------------------------------
# WordPiece
# ---------------------------------------------------------------------------


class WordPieceTokenizer(Tokenizer):
  """BERT's own tokenizer: words, then the longest piece first.

  Args:
    pieces: the vocabulary, id by position. Pieces that continue a word begin
      with "##"; the five special tokens must be among them.
    lower_case: lower-case and drop accents; both belong together in BERT, and
      a cased vocabulary keeps both. None: decided by the vocabulary. A flag
      that contradicts the vocabulary is refused, for that mistake costs
      accuracy without an error anywhere.
    max_input_chars_per_word: a longer word becomes [UNK]. 200 in the original
      since November 2018, 100 before that and in Hugging Face's tokenizers.
    added: tokens that are matched in the text itself, before it is cut into
      words. One that is a piece, too, has the id of that piece; the others
      follow the pieces, in this order.
    source: what errors call the vocabulary, such as a file name.

  Attributes:
    added: as given.

  Raises:
    ValueError: a special token missing, a piece twice, a contradicted
      `lower_case`, or an added token that cannot be one.

  Example:
    >>> tokenizer = WordPieceTokenizer(
    ...   [*SPECIAL_TOKENS, "walk", "##ed", "!"], lower_case=True
    ... )
    >>> tokenizer.encode("Walked!")
    [5, 6, 7]
    >>> tokenizer.tokenize("walk away")
    ['walk', '[UNK]']

  Source: section 3, "Input/Output Representations";
    google-research/bert tokenization.py
  """

  kind = "wordpiece"
  lower_case: bool

  def __init__(
    self,
    pieces: Sequence[str],
    *,
    lower_case: bool | None = None,
    max_input_chars_per_word: int = MAX_INPUT_CHARS_PER_WORD,
    added: Sequence[added_tokens.AddedToken] = (),
    source: str = "the vocabulary",
  ):
    if not 1 <= max_input_chars_per_word < 1 << 31:
      raise ValueError(
        f"{source}: max_input_chars_per_word={max_input_chars_per_word} cannot"
        " be; below 1 every word is [UNK], and the original has"
        f" {MAX_INPUT_CHARS_PER_WORD}"
      )
    _check_pieces(pieces, source)
    self.lower_case = _resolve_lower_case(pieces, lower_case, source)
    self.max_input_chars_per_word = max_input_chars_per_word
    self.added = tuple(added)
    self._words = tuple(pieces)  # without what was added
    known = set(pieces)
    beyond = [t.content for t in self.added if t.content not in known]
    super().__init__(
      [*pieces, *beyond], [pieces.index(name) for name in SPECIAL_TOKENS]
    )
    _check_added(self.added, source)
    self._added_ids = {t: self._ids[t.content] for t in self.added}
    # These neither continue a word nor are continued.
    self._apart = self._special_ids.union(self._added_ids.values())

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`: of its words, the longest piece first."""
    lookup = self._chunk_ids.__getitem__
    if not self.added:
      # The one hot line of the host: a look-up a word.
      return list(itertools.chain.from_iterable(map(lookup, _chunks(text))))
    ids: list[int] = []
    for id, start, end in self._find_added(text):
      if id is None:
        words = map(lookup, _chunks(text[start:end]))
        ids += itertools.chain.from_iterable(words)
      else:
        ids.append(id)
    return ids

  def encode_with_offsets(self, text: str) -> Encoding:
    """Returns the ids of `text`, and which characters each stands for."""
    encoding: Encoding = ([], [], [])
    if not self.added:
      self._add_words(_CHUNK.finditer(text), encoding)
      return encoding
    for id, first, last in self._find_added(text):
      if id is None:
        self._add_words(_CHUNK.finditer(text, first, last), encoding)
      else:
        for column, value in zip(encoding, (id, first, last), strict=True):
          column.append(value)
    return encoding

  def _add_words(
    self, matches: Iterable[re.Match[str]], encoding: Encoding
  ) -> None:
    """Adds the ids of chunks of a text, and their characters."""
    ids, starts, ends = encoding
    for match in matches:
      at = match.start()
      chunk_ids, chunk_starts, chunk_ends = self._chunk_offsets[match.group()]
      ids += chunk_ids
      starts += [at + start for start in chunk_starts]
      ends += [at + end for end in chunk_ends]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns words with spaces between them, punctuation being words."""
    words: list[str] = []
    follows_word = False  # "##x" after a special token stays as it is
    for i in ids:
      piece = self.token(i)
      if i == self.pad_id:
        continue
      if follows_word and piece.startswith("##"):
        words[-1] += piece[2:]
      else:
        words.append(piece)
      follows_word = i not in self._apart
    return " ".join(words)

  def continues_word(self) -> np.ndarray:
    """Returns [V] bool: the pieces that begin with "##"."""
    return np.array(
      [
        piece.startswith("##") and i not in self._apart
        for i, piece in enumerate(self._pieces)
      ]
    )

  def save(self, directory: Path) -> None:
    """Writes vocab.txt, without added tokens, and tokenizer.json."""
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    self.write_pieces(folder / _VOCAB_FILE)
    self._write_settings(folder, **self._settings())

  def write_pieces(self, path: Path) -> None:
    """Writes a vocab.txt: one piece a line, without added tokens."""
    text = "".join(piece + "\n" for piece in self._words)
    files.write_text(str(path), text)

  def added_ids(self) -> dict[added_tokens.AddedToken, int]:
    """Returns the id of each added token."""
    return dict(self._added_ids)

  def _content(self) -> bytes:
    content = [self.kind, self._settings(), self._words]
    return json.dumps(content).encode("utf-8")

  def _settings(self) -> dict[str, Any]:
    settings: dict[str, Any] = {
      "lower_case": self.lower_case,
      "max_input_chars_per_word": self.max_input_chars_per_word,
    }
    if self.added:  # without them a vocabulary keeps its old fingerprint
      settings[_ADDED] = [dataclasses.asdict(token) for token in self.added]
    return settings

  def __reduce__(self):
    # The dictionaries and the Rust object are rebuilt where they are needed.
    build = functools.partial(
      WordPieceTokenizer,
      lower_case=self.lower_case,
      max_input_chars_per_word=self.max_input_chars_per_word,
      added=self.added,
    )
    return build, (self._words,)

  @functools.cached_property
  def _find_added(self) -> added_tokens.Finder:
    """What cuts a text at the added tokens in it."""
    normalize = functools.partial(_normalize_char, lower_case=self.lower_case)
    return added_tokens.Finder(self._added_ids, _Memo(normalize))

  @functools.cached_property
  def _chunk_ids(self) -> _Memo[str, tuple[int, ...]]:
    """The ids of a chunk of text without whitespace."""
    split = _WordSplitter(self.lower_case)
    # Chunks without spaces, as in Chinese, rarely repeat; their words do.
    word_ids = _Memo(self._match, is_kept=_is_short)

    def chunk_ids(chunk: str) -> tuple[int, ...]:
      words = map(word_ids.__getitem__, split(chunk))
      return tuple(itertools.chain.from_iterable(words))

    return _Memo(chunk_ids, is_kept=_is_short)

  @functools.cached_property
  def _chunk_offsets(self) -> _Memo[str, Encoding]:
    """The ids of a chunk of text, and their characters within it."""
    split = _WordSplitter(self.lower_case)

    def chunk_offsets(chunk: str) -> Encoding:
      source_starts, source_ends = split.sources(chunk)
      ids: list[int] = []
      starts: list[int] = []
      ends: list[int] = []
      at = 0
      for word in split(chunk):
        rest = len(word)
        for i in self._match(word):
          piece = self._pieces[i]
          size = len(piece) - 2 if rest < len(word) else len(piece)
          if i == self.unk_id:  # stands for the whole word
            size = rest
          ids.append(i)
          starts.append(source_starts[at])
          ends.append(source_ends[at + size - 1])
          at += size
          rest -= size
      return ids, starts, ends

    return _Memo(chunk_offsets, is_kept=_is_short)

  @functools.cached_property
  def _matcher(self) -> tokenizers.models.WordPiece:
    return tokenizers.models.WordPiece(
      {piece: i for i, piece in enumerate(self._words)},
      unk_token="[UNK]",
      max_input_chars_per_word=self.max_input_chars_per_word,
    )

  def _match(self, word: str) -> tuple[int, ...]:
    """Greedy longest match of one word; [UNK] when any part is not found."""
    if not word.isascii() and _SURROGATE.search(word):
      # Half of a surrogate pair: in no UTF-8 file, so in no vocabulary.
      return (self.unk_id,)
    return tuple([token.id for token in self._matcher.tokenize(word)])


def _check_pieces(pieces: Sequence[str], source: str) -> None:
  """Refuses a vocabulary that would give wrong ids or no ids at all.

  Differs from BERT: where a piece stands twice the original takes the later
  line in silence, and it finds out about a missing special token when it
  comes to need one.
  """
  if not pieces:
    raise ValueError(f"{source} is empty; wanted one piece a line")
  first_line: dict[str, int] = {}
  for line, piece in enumerate(pieces, 1):
    if piece != _piece_of_line(piece) or not piece:
      raise ValueError(
        f"{source}, line {line}: {piece!r:.60} is blank or has whitespace"
        " around it; wanted one piece a line (remove empty lines, also at the"
        " end)"
      )
    if _SURROGATE.search(piece):
      raise ValueError(
        f"{source}, line {line}: {piece!r:.60} has half of a surrogate pair,"
        " which no UTF-8 file can hold; remove it"
      )
    if piece in first_line:
      raise ValueError(
        f"{source}, line {line}: piece {piece!r:.60} stands already on line"
        f" {first_line[piece]}; an id must be one piece, so change one of them"
      )
    first_line[piece] = line
  missing = [name for name in SPECIAL_TOKENS if name not in first_line]
  if missing:
    raise ValueError(
      f"{source} ({len(pieces)} pieces, the first is {pieces[0]!r:.60}) lacks"
      f" {', '.join(missing)}; BERT needs {' '.join(SPECIAL_TOKENS)}, each on a"
      " line of its own"
    )


def _check_added(added: Sequence[added_tokens.AddedToken], source: str) -> None:
  """Refuses added tokens that no text can give or that mean something else."""
  seen = set()
  for token in added:
    if token.content in SPECIAL_TOKENS:
      raise ValueError(
        f"{source}: {token.content} cannot be an added token; a text that "
        "spells it is text here"
      )
    if token.content in seen:
      raise ValueError(
        f"{source}: the added token {token.content!r:.60} is there twice; "
        "leave one out"
      )
    if _SURROGATE.search(token.content):
      raise ValueError(
        f"{source}: the added token {token.content!r:.60} has half of a "
        "surrogate pair, which no UTF-8 file can hold; remove it"
      )
    seen.add(token.content)


def _resolve_lower_case(
  pieces: Iterable[str], lower_case: bool | None, source: str
) -> bool:
  """Decides casing by the pieces, and refuses a flag they contradict.

  A vocabulary is cased when more than one in a thousand of its pieces with
  cased letters changes under lower-casing. Not "any": released uncased
  vocabularies hold "<S>" and letters that only a later Unicode version knows
  to be capitals, and people put a few names into the unused slots. Such a one
  may be used either way.
  """
  words = [piece for piece in pieces if not _BRACKETED.fullmatch(piece)]
  upper = [word for word in words if word != word.lower()]
  lower = [word for word in words if word == word.lower() != word.upper()]
  is_cased = 1000 * len(upper) > len(upper) + len(lower)
  if lower_case is None:
    return not is_cased
  if lower_case and is_cased:
    raise ValueError(
      f"lower_case=True, but {source} is cased: {len(upper)} pieces have"
      f" upper-case letters ({_examples(upper)}) and could never be used; pass"
      " lower_case=False, or take the uncased vocabulary"
    )
  if not lower_case and lower and not upper:
    raise ValueError(
      f"lower_case=False, but {source} is uncased: none of its"
      f" {len(lower)} pieces with letters ({_examples(lower)}) has an"
      " upper-case one, so every capital would become [UNK]; pass"
      " lower_case=True, or take the cased vocabulary"
    )
  return lower_case


def _examples(pieces: Sequence[str]) -> str:
  longest = sorted(pieces, key=len, reverse=True)[:4]
  return ", ".join(f"{piece!r:.60}" for piece in longest)


def _piece_of_line(line: str) -> str:
  """A line of a vocabulary file without the whitespace around it.

  The original strips every line. Where only "" or "##" would be left (the
  Chinese vocabulary has U+2028 on a line, and "##" with U+2028 on another),
  the line is kept as it is: neither form can match any text, and two such
  lines stay two pieces.

  Source: google-research/bert tokenization.py:121-133
  """
  line = line.strip(" \t\r\n")
  piece = line.strip()
  return line if piece in ("", "##") else piece


def _read_pieces(path: pathlib.Path) -> list[str]:
  content = path.read_bytes()
  try:
    text = content.decode("utf-8")
  except UnicodeDecodeError as error:
    line = content.count(b"\n", 0, error.start) + 1
    raise ValueError(
      f"{path}, line {line}: byte {content[error.start]:#04x} is not UTF-8;"
      " wanted a text file with one piece a line (a .model file is"
      " SentencePiece and must keep that ending)"
    ) from None
  for char, name in (("\0", "a NUL byte"), ("\ufeff", "a byte order mark")):
    if char in text:
      line = text.count("\n", 0, text.index(char)) + 1
      raise ValueError(
        f"{path}, line {line}: has {name}; save it as plain UTF-8 text with"
        " one piece a line"
      )
  # Not splitlines(): U+2028 and U+0085 do not end a line of a vocabulary.
  lines = text.split("\n")
  if not lines[-1]:
    lines.pop()  # what follows the last line feed
  return [_piece_of_line(line) for line in lines]


# ---------------------------------------------------------------------------
# SentencePiece
# ---------------------------------------------------------------------------


class SentencePieceTokenizer(Tokenizer):
  """A SentencePiece model with BERT's special tokens.

  For languages without spaces between words, or for text that must come back
  exactly. The model file holds vocabulary, normalisation and scores.

  Args:
    model: content of a .model file. [CLS], [SEP] and [MASK] must be control
      symbols, which no text can produce; padding and the unknown token are
      taken from the model, whatever they are called.
    source: what errors call the model, such as a file name.

  Raises:
    ValueError: not a model, or special tokens that are missing or that typed
      text could produce.

  Example:
    >>> tokenizer = load_tokenizer("sentencepiece.model")  # doctest: +SKIP
    >>> tokenizer.tokenize("Hello world")  # doctest: +SKIP
    ['\u2581Hello', '\u2581world']

  Source: https://aclanthology.org/D18-2012; ALBERT, arXiv 1909.11942
  """

  kind = "sentencepiece"
  lower_case: None = None

  def __init__(self, model: bytes, *, source: str = "the model"):
    self._model = bytes(model)
    try:
      if not self._model:
        raise RuntimeError("no content")
      processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
      size = processor.get_piece_size()
      pieces = [processor.id_to_piece(i) for i in range(size)]
    except (RuntimeError, UnicodeDecodeError) as error:
      raise ValueError(
        f"{source} is not a SentencePiece model ({error}); wanted the .model"
        " file that training wrote"
      ) from None
    super().__init__(pieces, _special_ids(processor, pieces, source))
    self._processor = processor

  def encode(self, text: str) -> list[int]:
    """Returns the ids of the model's best segmentation of `text`."""
    if not text.isascii():
      text = _SURROGATE.sub("\ufffd", text)  # the library takes only UTF-8
    return self._processor.encode(text)

  def encode_with_offsets(self, text: str) -> Encoding:
    """Returns the ids of `text`, and which characters each stands for."""
    clean = _SURROGATE.sub("\ufffd", text)
    parsed = self._processor.encode(clean, return_type="offset_mapping")
    starts: list[int] = []
    ends: list[int] = []
    for start, end in parsed["offsets"]:
      while start < end and text[start].isspace():
        start += 1  # the mark of a word's start stands for the space before
      while start < end and text[end - 1].isspace():
        end -= 1
      starts.append(start)
      ends.append(end)
    ids = parsed["ids"]
    return ids, starts, ends

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text that the pieces spell."""
    words: list[str] = []
    named = self._special_ids
    for is_special, run in itertools.groupby(ids, key=named.__contains__):
      run_ids = [int(i) for i in run]
      pieces = [self.token(i) for i in run_ids if i != self.pad_id]
      words += pieces if is_special else [self._processor.decode(run_ids)]
    return " ".join(words)

  def continues_word(self) -> np.ndarray:
    """Returns [V] bool: the pieces without the mark of a word's start."""
    is_apart = (
      self._processor.is_control,
      self._processor.is_unknown,
      self._processor.is_unused,
    )
    return np.array(
      [
        not piece.startswith(_WORD_START)
        and i not in self._special_ids
        and not any(check(i) for check in is_apart)
        for i, piece in enumerate(self._pieces)
      ]
    )

  def save(self, directory: Path) -> None:
    """Writes sentencepiece.model and tokenizer.json."""
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_bytes(str(folder / _MODEL_FILE), self._model)
    self._write_settings(folder, lower_case=None, max_input_chars_per_word=None)

  def _content(self) -> bytes:
    return self.kind.encode("utf-8") + b"\n" + self._model

  def __reduce__(self):
    return SentencePieceTokenizer, (self._model,)


def _special_ids(
  processor: Any, pieces: Sequence[str], source: str
) -> list[int]:
  """Ids of pad, unk, cls, sep, mask; refuses a model that cannot be BERT's."""
  how = (
    "; train with bert_jax.data.tokenization.train_sentencepiece, or pass"
    " pad_id=0, unk_id=1, bos_id=-1, eos_id=-1,"
    " control_symbols=['[CLS]','[SEP]','[MASK]'] to SentencePieceTrainer"
  )
  named = {
    "a padding symbol ([PAD])": processor.pad_id(),
    "an unknown symbol ([UNK])": processor.unk_id(),
  }
  for name in ("[CLS]", "[SEP]", "[MASK]"):
    named[name] = pieces.index(name) if name in pieces else -1
  missing = [name for name, i in named.items() if i < 0]
  if missing:
    raise ValueError(
      f"{source} ({len(pieces)} pieces) lacks {', '.join(missing)}{how}"
    )
  ids = list(named.values())
  typed = [
    pieces[i]
    for i in ids
    if not processor.is_unknown(i) and i in processor.encode(pieces[i])
  ]
  if typed:
    raise ValueError(
      f"{source}: text that spells {', '.join(typed):.200} would become that"
      f" special token, because it is not a control symbol{how}"
    )
  return ids


# ---------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------


def load_tokenizer(
  path: Path,
  *,
  lower_case: bool | None = None,
  max_input_chars_per_word: int | None = None,
) -> Tokenizer:
  """Reads a tokenizer: a saved directory, a vocab.txt or a .model file.

  Only text, JSON and SentencePiece's own format are read; nothing is
  unpickled and nothing is executed.

  Args:
    path: directory written by `save`, directory of a released checkpoint
      (with vocab.txt, or as Hugging Face writes one: what its files say is
      checked, and added tokens are read), a bare vocabulary file, or a .model
      file.
    lower_case: WordPiece only. None: as saved, else decided by the vocabulary.
    max_input_chars_per_word: WordPiece only. None: as saved, or as the files
      of a Hugging Face directory say, else 200.

  Returns:
    A `WordPieceTokenizer` or a `SentencePieceTokenizer`.

  Raises:
    ValueError: a bad vocabulary, a setting that contradicts it, or a
      vocabulary that was changed after it was saved.
    FileNotFoundError: nothing to read at `path`.
  """
  path = pathlib.Path(path)
  saved: dict[str, Any] = {}
  file = path
  if path.is_dir():
    saved = _read_settings(path / _SETTINGS_FILE)
    if not saved and _is_hugging_faces(path):
      return load_hugging_faces(
        path,
        hf_tokenizer.read(path),
        lower_case=lower_case,
        max_input_chars_per_word=max_input_chars_per_word,
      )
    file = _vocabulary_file(path, saved)
  elif not path.exists():
    raise FileNotFoundError(
      f"{path} does not exist; wanted a vocab.txt, a .model file or a directory"
      " that holds one"
    )
  files.check_readable(str(file))
  asked = {
    "lower_case": lower_case,
    "max_input_chars_per_word": max_input_chars_per_word,
  }
  settings = _agreed_settings(asked, saved, file)
  tokenizer: Tokenizer
  if file.suffix == ".model":
    tokenizer = SentencePieceTokenizer(file.read_bytes(), source=str(file))
  else:
    tokenizer = WordPieceTokenizer(
      _read_pieces(file), source=str(file), **settings
    )
  if saved and saved["fingerprint"] != tokenizer.fingerprint:
    raise ValueError(
      f"{file} is not the vocabulary that {path / _SETTINGS_FILE} was saved"
      f" with: fingerprint {tokenizer.fingerprint[:12]}, wanted"
      f" {saved['fingerprint'][:12]}; restore the file, or delete"
      f" {_SETTINGS_FILE} if the change was meant"
    )
  return tokenizer


def _agreed_settings(
  asked: dict[str, Any], saved: dict[str, Any], file: pathlib.Path
) -> dict[str, Any]:
  """What is asked for and what was saved, refused where they contradict."""
  asked = {name: value for name, value in asked.items() if value is not None}
  if asked and file.suffix == ".model":
    raise ValueError(
      f"{', '.join(asked)} given for {file}, but a SentencePiece model carries"
      " its own normalisation; leave it unset"
    )
  for name, value in asked.items():
    if saved and saved[name] != value:
      raise ValueError(
        f"{name}={value}, but {file} was saved with {name}={saved[name]} (in"
        f" {_SETTINGS_FILE}); leave it unset, or make a new vocabulary"
      )
  names = ("lower_case", "max_input_chars_per_word")
  added = [added_tokens.AddedToken(**token) for token in saved.get(_ADDED, ())]
  kept = {"added": added} if added else {}
  return {name: saved[name] for name in names if saved} | kept | asked


def _is_hugging_faces(folder: pathlib.Path) -> bool:
  """Whether a folder that `save` did not write is a Hugging Face one."""
  names = (hf_tokenizer.CONFIG, hf_tokenizer.WHOLE)
  return not (folder / _MODEL_FILE).exists() and any(
    (folder / name).exists() for name in names
  )


def load_hugging_faces(
  folder: Path,
  settings: hf_tokenizer.Settings,
  *,
  lower_case: bool | None = None,
  max_input_chars_per_word: int | None = None,
) -> WordPieceTokenizer:
  """Makes the tokenizer of a Hugging Face folder.

  Args:
    folder: with vocab.txt, or a tokenizer.json that holds the vocabulary.
    settings: what its files say.
    lower_case: None: as they say, else decided by the vocabulary.
    max_input_chars_per_word: None: as they say, else 200.

  Raises:
    ValueError: as `load_tokenizer`, or files that disagree.
    FileNotFoundError: it has no vocabulary.
  """
  file = pathlib.Path(folder) / _VOCAB_FILE
  whole = pathlib.Path(folder) / _SETTINGS_FILE
  pieces = settings.pieces
  if file.exists():
    listed = _read_pieces(file)
    if pieces is not None:
      _check_equal(listed, pieces, file, whole)
    pieces = tuple(listed)
  else:
    file = whole
  if pieces is None:
    raise FileNotFoundError(f"{folder} holds no {_VOCAB_FILE}")

  def agreed(name, asked):
    said = getattr(settings, name)
    if None not in (asked, said) and asked != said:
      raise ValueError(
        f"{name}={asked}, but the files of {folder} say {said}; leave it "
        "unset, or give that"
      )
    return said if asked is None else asked

  limit = agreed("max_input_chars_per_word", max_input_chars_per_word)
  return WordPieceTokenizer(
    pieces,
    lower_case=agreed("lower_case", lower_case),
    max_input_chars_per_word=(
      MAX_INPUT_CHARS_PER_WORD if limit is None else limit
    ),
    added=_placed(settings.added, pieces, str(folder)),
    source=str(file),
  )


def _check_equal(
  listed: Sequence[str], pieces: Sequence[str], file: Path, whole: Path
) -> None:
  """Refuses two vocabularies in one folder that differ."""
  for i, (one, other) in enumerate(itertools.zip_longest(listed, pieces)):
    if one is None or other is None or one != _piece_of_line(other):
      raise ValueError(
        f"{file} and {whole} differ: id {i} is {one!r:.60} in one and "
        f"{other!r:.60} in the other; remove the file that is not the model's"
      )


def _placed(
  added: Iterable[tuple[int | None, added_tokens.AddedToken]],
  pieces: Sequence[str],
  source: str,
) -> list[added_tokens.AddedToken]:
  """Added tokens in the order of their ids, which must leave no hole."""
  ids = {piece: i for i, piece in enumerate(pieces)}
  following = len(pieces)
  placed = []
  for id, token in added:
    known = ids.get(token.content)
    wanted = following if known is None else known
    if id is not None and id != wanted:
      what = (
        f"the next id is {wanted}: ids must follow the vocabulary without a "
        "hole"
        if known is None and id >= len(pieces)
        else f"in the vocabulary that is {pieces[id]!r:.60}"
        if id < len(pieces)
        else f"the vocabulary has it as {known}"
      )
      raise ValueError(
        f"{source}: the added token {token.content!r:.60} has the id {id}, but "
        f"{what}; correct the files"
      )
    following += known is None
    placed.append(token)
  return placed


def _vocabulary_file(
  directory: pathlib.Path, saved: dict[str, Any]
) -> pathlib.Path:
  """The one vocabulary file of a directory."""
  names = [_VOCAB_FILE, _MODEL_FILE]
  if saved:
    names = [_VOCAB_FILE if saved["kind"] == "wordpiece" else _MODEL_FILE]
  found = [directory / name for name in names if (directory / name).exists()]
  if not found:
    raise FileNotFoundError(f"{directory} holds no {' or '.join(names)}")
  if len(found) > 1:
    raise ValueError(
      f"{directory} holds both {_VOCAB_FILE} and {_MODEL_FILE}; pass the path"
      " of the one that is meant"
    )
  return found[0]


def _read_settings(path: pathlib.Path) -> dict[str, Any]:
  """Reads what `save` wrote; {} when the directory was not written by it."""
  if not path.exists():
    return {}
  try:
    settings = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not JSON: {error}") from None
  if isinstance(settings, dict) and "model" in settings:
    return {}  # a Hugging Face checkpoint has another file of this name
  wanted = {"kind", "lower_case", "max_input_chars_per_word", "fingerprint"}
  if not isinstance(settings, dict) or set(settings) - {_ADDED} != wanted:
    raise ValueError(
      f"{path} was not written by Tokenizer.save: wanted the keys"
      f" {', '.join(sorted(wanted))}; delete it to load the vocabulary alone"
    )
  if settings["kind"] not in ("wordpiece", "sentencepiece"):
    raise ValueError(
      f"{path}: kind={settings['kind']!r:.60}; wanted wordpiece or"
      " sentencepiece"
    )
  is_word_piece = settings["kind"] == "wordpiece"
  for name, wanted_type in (
    ("lower_case", bool if is_word_piece else type(None)),
    ("max_input_chars_per_word", int if is_word_piece else type(None)),
    ("fingerprint", str),
  ):
    if type(settings[name]) is not wanted_type:
      raise ValueError(
        f"{path}: {name}={settings[name]!r:.60} is damaged; restore the file,"
        " or delete it to load the vocabulary alone"
      )
  if _ADDED in settings:
    try:
      for token in settings[_ADDED]:
        added_tokens.AddedToken(**token)
    except (TypeError, ValueError) as error:
      raise ValueError(
        f"{path}: {_ADDED} is damaged ({error}); restore the file"
      ) from None
  return settings


# ---------------------------------------------------------------------------
# Learning a vocabulary
# ---------------------------------------------------------------------------


def train_wordpiece(
  texts: Iterable[str],
  vocab_size: int,
  lower_case: bool,
  *,
  min_frequency: int = 2,
  limit_alphabet: int = 1000,
) -> WordPieceTokenizer:
  """Learns a WordPiece vocabulary; the same text gives the same vocabulary.

  Words are those of `WordPieceTokenizer`, so every piece learned can occur.
  The order of `texts` does not matter, only how often each word comes.

  The authors never released their learner. This one merges the most frequent
  pair first, as the `tokenizers` library does. That library numbers single
  characters in the order of a randomised hash table and breaks ties by these
  numbers; here they are numbered beforehand, which makes it reproducible.

  Args:
    texts: lines or documents, read once.
    vocab_size: number of pieces to learn, special tokens included.
    lower_case: lower-case and drop accents, here and in the result.
    min_frequency: pairs rarer than this are not merged.
    limit_alphabet: number of distinct characters to keep, the most frequent;
      a word with any other becomes [UNK].

  Returns:
    A tokenizer whose ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK].

  Raises:
    ValueError: the text cannot give exactly `vocab_size` pieces.

  Example:
    >>> tokenizer = train_wordpiece(["low lower lowest"] * 2, 24, True)
    >>> tokenizer.tokenize("Lowest")
    ['lowest']
  """
  counts = _count_words(texts, lower_case)
  alphabet = _frequent_characters(counts, limit_alphabet)
  known = {w: n for w, n in sorted(counts.items()) if alphabet.issuperset(w)}
  _resolve_lower_case(alphabet, lower_case, "the text to learn from")
  inner = {char for word in known for char in word[1:]}
  first = [*SPECIAL_TOKENS, *sorted(alphabet)]
  first += ["##" + char for char in sorted(inner)]
  if not known or vocab_size < len(first):
    raise ValueError(
      f"vocab_size={vocab_size} cannot hold the {len(SPECIAL_TOKENS)} special"
      f" tokens and {len(first) - len(SPECIAL_TOKENS)} single characters of"
      f" this text of {len(known)} distinct words; use at least {len(first)}"
      " or lower limit_alphabet, and check that the text is not empty"
    )
  pieces = _merge_pairs(known, first, vocab_size, min_frequency)
  if len(pieces) != vocab_size:
    raise ValueError(
      f"vocab_size={vocab_size}, but this text gives only {len(pieces)} pieces"
      f" with min_frequency={min_frequency}; lower vocab_size to {len(pieces)}"
      " or give more text"
    )
  return WordPieceTokenizer(pieces, lower_case=lower_case)


def _merge_pairs(
  counts: dict[str, int],
  first: list[str],
  vocab_size: int,
  min_frequency: int,
) -> list[str]:
  """Grows the pieces `first` by merging pairs, up to `vocab_size` of them."""
  learner = tokenizers.Tokenizer(tokenizers.models.WordPiece())
  learner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  trainer = tokenizers.trainers.WordPieceTrainer(
    vocab_size=vocab_size,
    min_frequency=min_frequency,
    special_tokens=first,  # numbers them in this order
    show_progress=False,
  )
  learner.train_from_iterator(_repeat_words(counts), trainer)
  ids = learner.get_vocab()
  return sorted(ids, key=ids.__getitem__)


def _count_words(
  texts: Iterable[str], lower_case: bool
) -> collections.Counter[str]:
  """How often each word occurs that could become anything but [UNK]."""
  chunks: collections.Counter[str] = collections.Counter()
  for text in texts:
    chunks.update(_chunks(text))
  split = _WordSplitter(lower_case)
  words: collections.Counter[str] = collections.Counter()
  for chunk, count in chunks.items():
    for word in split(chunk):
      if len(word) <= MAX_INPUT_CHARS_PER_WORD and not _SURROGATE.search(word):
        words[word] += count
  return words


def _frequent_characters(
  counts: collections.Counter[str], limit: int
) -> set[str]:
  """The `limit` most frequent characters; of equals, the lower code point."""
  characters: collections.Counter[str] = collections.Counter()
  for word, count in counts.items():
    for char in word:
      characters[char] += count
  ranked = sorted(characters, key=lambda char: (-characters[char], char))
  return set(ranked[:limit])


def _repeat_words(
  counts: dict[str, int], per_text: int = 1000
) -> Iterator[str]:
  """Texts that hold every word as often as counted."""
  for word, count in counts.items():
    full, rest = divmod(count, per_text)
    yield from itertools.repeat(" ".join([word] * per_text), full)
    yield " ".join([word] * rest)


def train_sentencepiece(
  texts: Iterable[str],
  vocab_size: int,
  lower_case: bool = False,
  *,
  model_type: str = "unigram",
  input_sentence_size: int = 1_000_000,
) -> SentencePieceTokenizer:
  """Learns a SentencePiece model; the same text gives the same model.

  Args:
    texts: lines, read once. SentencePiece leaves out lines longer than 4192
      bytes.
    vocab_size: number of pieces to learn, special tokens included.
    lower_case: fold case in the model's own normalisation (NFKC either way).
    model_type: "unigram" or "bpe".
    input_sentence_size: learn from a random sample of so many lines, drawn
      with a fixed seed and held in memory; the unigram learner takes minutes
      for each million.

  Returns:
    A tokenizer whose ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK].

  Raises:
    ValueError: the text cannot give exactly `vocab_size` pieces, or an
      unknown `model_type`.

  Source: https://aclanthology.org/D18-2012
  """
  if model_type not in ("unigram", "bpe"):
    raise ValueError(f"model_type={model_type!r}; wanted unigram or bpe")
  pad, unk, *control = SPECIAL_TOKENS
  model = io.BytesIO()
  # The library's own sample differs between processes.
  sentences = _sample(_sentences(texts), input_sentence_size)
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(sentences),
      model_writer=model,
      vocab_size=vocab_size,
      model_type=model_type,
      normalization_rule_name="nmt_nfkc_cf" if lower_case else "nmt_nfkc",
      num_threads=16,  # a part of the result: sums are made per thread
      pad_id=0,
      unk_id=1,
      bos_id=-1,
      eos_id=-1,
      pad_piece=pad,
      unk_piece=unk,
      control_symbols=control,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ValueError(_explain_training(str(error), vocab_size)) from error
  return SentencePieceTokenizer(model.getvalue())


def _sentences(texts: Iterable[str]) -> Iterator[str]:
  """Lines in a form that the library accepts, blank ones left out."""
  for text in texts:
    text = _SURROGATE.sub("\ufffd", text).replace("\n", " ").strip()
    if text:
      yield text


def _sample(texts: Iterable[str], size: int) -> list[str]:
  """At most `size` texts, each with the same chance, in their order."""
  rng = random.Random(0)
  sample: list[tuple[int, str]] = []
  for number, text in enumerate(texts):
    if number < size:
      sample.append((number, text))
    elif (slot := rng.randrange(number + 1)) < size:
      sample[slot] = (number, text)
  return [text for _, text in sorted(sample)]


def _explain_training(message: str, vocab_size: int) -> str:
  """Says what size the text allows, where SentencePiece says it."""
  if found := re.search(r"value <= (\d+)", message):
    return (
      f"vocab_size={vocab_size}, but this text gives at most {found[1]} pieces;"
      f" lower vocab_size to {found[1]} or give more text"
    )
  if found := re.search(r"required_chars\. (\d+) vs (\d+)", message):
    return (
      f"vocab_size={vocab_size} cannot hold the special tokens and single"
      f" characters of this text; use at least {found[2]}"
    )
  if "sentences_.empty()" in message:
    return "there is no text to learn from: every line is blank or too long"
  return f"SentencePiece could not learn {vocab_size} pieces: {message}"
