"""WordPiece, the tokenizer of BERT itself.

This module cuts text into words; the Rust `tokenizers` library does only the
greedy match of one word against the vocabulary.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
import json
import logging
import pathlib
import re
from typing import Any, Self

import numpy as np
import tokenizers

from bert_jax.data.tokenizers import added_tokens
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import word_rules
from bert_jax.runtime import files

_log = logging.getLogger(__name__)

MAX_INPUT_CHARS_PER_WORD = 200
# Keys of tokenizer.json that most vocabularies lack, so that they keep their
# old fingerprints.
ADDED = "added_tokens"
STRIP_ACCENTS = "strip_accents"

_HALF_A_PAIR = (
  "has half of a surrogate pair, which no UTF-8 file can hold; remove it"
)
# The share of unknown words above which a warning is given.
_DROPPED_SHARE = 0.005
# Pieces that do not stand for their own characters.
_BRACKETED = re.compile(r"\[.*\]|<.*>", re.DOTALL)


class WordPieceTokenizer(interface.Tokenizer):
  """BERT's own tokenizer: words, then the longest piece first.

  Args:
    pieces: the vocabulary; the position of a piece is its id. Pieces that
      continue a word begin with "##". The five special tokens must be included.
    lower_case: whether text is lower-cased and loses its accents. None means
      that the vocabulary decides. A value that contradicts the vocabulary is
      refused, because it would lower the accuracy without any error.
    strip_accents: whether text loses its accents and the vowel signs of Indic
      scripts. None means as `lower_case`, like the original.
    max_input_chars_per_word: a longer word becomes [UNK]. It is 200 in the
      original since November 2018, and 100 before that and in Hugging Face's
      tokenizers.
    added: tokens that are matched in the text itself, before it is cut into
      words. An added token that is also a piece has the id of that piece; the
      ids of the others follow those of the pieces, in this order.
    source: the name of the vocabulary in errors, such as a file name.

  Attributes:
    added: the added tokens, as given.
    added_ids: the id of each added token.

  Raises:
    ValueError: a special token is missing, a piece occurs twice, the vocabulary
      contradicts `lower_case`, or an added token could not be found in a text.

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
  file_name = "vocab.txt"
  settings = {"lower_case": bool, "max_input_chars_per_word": int}
  lower_case: bool

  def __init__(
    self,
    pieces: Sequence[str],
    *,
    lower_case: bool | None = None,
    strip_accents: bool | None = None,
    max_input_chars_per_word: int = MAX_INPUT_CHARS_PER_WORD,
    added: Sequence[added_tokens.AddedToken] = (),
    source: str = "the vocabulary",
  ):
    if not 1 <= max_input_chars_per_word < 1 << 31:
      raise ValueError(
        f"{source}: max_input_chars_per_word={max_input_chars_per_word} is out"
        f" of range; use 1 or more, such as {MAX_INPUT_CHARS_PER_WORD}"
      )
    _check_pieces(pieces, source)
    self.lower_case = resolve_lower_case(pieces, lower_case, source)
    self.strip_accents = (
      self.lower_case if strip_accents is None else strip_accents
    )
    self.max_input_chars_per_word = max_input_chars_per_word
    self.added = tuple(added)
    self._words = tuple(pieces)  # without the added tokens
    known = set(pieces)
    beyond = [t.content for t in self.added if t.content not in known]
    super().__init__(
      [*pieces, *beyond],
      [pieces.index(name) for name in interface.SPECIAL_TOKENS],
    )
    _check_added(self.added, source)
    self.added_ids = {t: self._ids[t.content] for t in self.added}
    # Tokens that neither continue a word nor are continued.
    self._apart = self.special_ids.union(self.added_ids.values())

  @property
  def words(self) -> frozenset[str]:
    """The pieces, without the tokens that are only added to them."""
    return frozenset(self._words)

  @classmethod
  def learn(
    cls,
    texts: Iterable[str],
    vocab_size: int,
    lower_case: bool,
    *,
    strip_accents: bool | None = None,
    min_frequency: int = 2,
    limit_alphabet: int = 1000,
  ) -> Self:
    """Learns a WordPiece vocabulary; the same text gives the same vocabulary.

    Words are cut as by this class, so that every learned piece can occur. The
    result depends on the frequencies of words, but not on the order of `texts`.

    The authors of BERT did not release their learner. This one merges the most
    frequent pair first, as the `tokenizers` library does. That library numbers
    single characters in the order of a randomised hash table and breaks ties by
    these numbers. Here they are numbered beforehand, so that the result is
    reproducible.

    Args:
      texts: lines or documents, read once.
      vocab_size: the number of pieces to learn, special tokens included.
      lower_case: whether learning and the learned tokenizer lower-case text.
      strip_accents: whether they drop accents; None = as `lower_case`.
      min_frequency: the least frequency of a pair that is merged.
      limit_alphabet: the number of characters to keep, the most frequent ones.
        A word with any other character becomes [UNK].

    Returns:
      A tokenizer whose ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK].

    Raises:
      ValueError: the text cannot give exactly `vocab_size` pieces.

    Example:
      >>> tokenizer = WordPieceTokenizer.learn(
      ...   ["low lower lowest"] * 2, 24, True
      ... )
      >>> tokenizer.tokenize("Lowest")
      ['lowest']
    """
    counts = _count_words(texts, lower_case, strip_accents)
    alphabet = _frequent_characters(counts, limit_alphabet)
    known = {w: n for w, n in sorted(counts.items()) if alphabet.issuperset(w)}
    resolve_lower_case(alphabet, lower_case, "the text to learn from")
    inner = {char for word in known for char in word[1:]}
    first = [*interface.SPECIAL_TOKENS, *sorted(alphabet)]
    first += ["##" + char for char in sorted(inner)]
    dropped = _dropped(counts, known, len(alphabet))
    if dropped:
      _log.warning("%s", dropped)
    if not known or vocab_size < len(first):
      special = len(interface.SPECIAL_TOKENS)
      raise ValueError(
        f"vocab_size={vocab_size} cannot hold the {special} special"
        f" tokens and {len(first) - special} single characters of"
        f" this text of {len(known)} distinct words; use at least {len(first)}"
        f" or lower limit_alphabet={limit_alphabet} (prepare.alphabet_size),"
        " and check that the text is not empty"
      )
    pieces = _merge_pairs(known, first, vocab_size, min_frequency)
    if len(pieces) != vocab_size:
      raise ValueError(
        f"vocab_size={vocab_size}, but this text gives only {len(pieces)}"
        f" pieces with min_frequency={min_frequency}; lower vocab_size to"
        f" {len(pieces)} or give more text{dropped and f'. But {dropped}'}"
      )
    return cls(pieces, lower_case=lower_case, strip_accents=strip_accents)

  @classmethod
  def read(cls, file: pathlib.Path, **settings: Any) -> Self:
    """Reads a vocab.txt, one piece a line; see `interface.Tokenizer.read`."""
    return cls(read_pieces(file), source=str(file), **settings)

  def encode(self, text: str) -> list[int]:
    """Returns the ids of the words of `text`, the longest piece first."""
    lookup = self._chunk_ids.__getitem__
    if not self.added:
      # This line takes most of the time: one look-up for each word.
      return list(
        itertools.chain.from_iterable(map(lookup, word_rules.chunks(text)))
      )
    ids: list[int] = []
    for id, start, end in self._find_added(text):
      if id is None:
        words = map(lookup, word_rules.chunks(text[start:end]))
        ids += itertools.chain.from_iterable(words)
      else:
        ids.append(id)
    return ids

  def encode_with_offsets(self, text: str) -> interface.Encoding:
    """Returns the ids of `text`, and the characters that each stands for."""
    ids: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    for id, first, last in self._find_added(text):
      if id is not None:
        ids.append(id)
        starts.append(first)
        ends.append(last)
        continue
      for chunk in word_rules.CHUNK.finditer(text, first, last):
        at = chunk.start()
        chunk_ids, chunk_starts, chunk_ends = self._chunk_offsets[chunk.group()]
        ids += chunk_ids
        starts += [at + start for start in chunk_starts]
        ends += [at + end for end in chunk_ends]
    return ids, starts, ends

  def decode(self, ids: Iterable[int]) -> str:
    """Returns words with spaces between them; punctuation counts as words."""
    words: list[str] = []
    follows_word = False  # "##x" after a special token keeps its "##"
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

  def with_added(
    self, added: Sequence[added_tokens.AddedToken]
  ) -> "WordPieceTokenizer":
    """Returns the same tokenizer with other added tokens."""
    return self._with(self._words, added)

  def with_renamed(self, names: Mapping[str, str]) -> "WordPieceTokenizer":
    """Returns the same tokenizer with other spellings of some pieces.

    Args:
      names: old piece -> new piece.
    """
    words = [names.get(piece, piece) for piece in self._words]
    return self._with(words, self.added)

  def _with(
    self, words: Sequence[str], added: Sequence[added_tokens.AddedToken]
  ) -> "WordPieceTokenizer":
    found = WordPieceTokenizer(
      words,
      lower_case=self.lower_case,
      strip_accents=self.strip_accents,
      max_input_chars_per_word=self.max_input_chars_per_word,
      added=added,
    )
    found.template = self.template
    return found

  def write_vocabulary(self, path: interface.Path) -> None:
    """Writes vocab.txt: one piece a line, in the order of the ids.

    Tokens that tokenizer.json adds to the vocabulary are left out.
    """
    text = "".join(piece + "\n" for piece in self._words)
    files.write_text(str(path), text)

  def meaning(self) -> tuple[Any, ...]:
    return self.lower_case, self._pieces, self.added, None

  def _content(self) -> bytes:
    content = [self.kind, self._saved_settings(), self._words]
    return json.dumps(content).encode("utf-8")

  def _saved_settings(self) -> dict[str, Any]:
    settings: dict[str, Any] = {
      "lower_case": self.lower_case,
      "max_input_chars_per_word": self.max_input_chars_per_word,
    }
    if self.strip_accents != self.lower_case:
      settings[STRIP_ACCENTS] = self.strip_accents
    if self.added:
      settings[ADDED] = [dataclasses.asdict(token) for token in self.added]
    return settings

  def __reduce__(self):
    # Another process rebuilds the dictionaries and the Rust object.
    build = functools.partial(
      WordPieceTokenizer,
      lower_case=self.lower_case,
      strip_accents=self.strip_accents,
      max_input_chars_per_word=self.max_input_chars_per_word,
      added=self.added,
    )
    return build, (self._words,)

  @functools.cached_property
  def _find_added(self) -> added_tokens.Finder:
    """Cuts a text at the added tokens in it."""
    normalize = functools.partial(
      word_rules.normalize_char,
      lower_case=self.lower_case,
      strip_accents=self.strip_accents,
    )
    return added_tokens.Finder(self.added_ids, word_rules.Memo(normalize))

  @functools.cached_property
  def _chunk_ids(self) -> word_rules.Memo[str, tuple[int, ...]]:
    """Chunk of text without whitespace -> its ids."""
    split = word_rules.WordSplitter(self.lower_case, self.strip_accents)
    # Chunks of languages without spaces rarely repeat, but their words do.
    word_ids = word_rules.Memo(self._match)

    def chunk_ids(chunk: str) -> tuple[int, ...]:
      words = map(word_ids.__getitem__, split(chunk))
      return tuple(itertools.chain.from_iterable(words))

    return word_rules.Memo(chunk_ids)

  @functools.cached_property
  def _chunk_offsets(self) -> word_rules.Memo[str, interface.Encoding]:
    """Chunk of text -> its ids, and the characters that each stands for."""
    split = word_rules.WordSplitter(self.lower_case, self.strip_accents)

    def chunk_offsets(chunk: str) -> interface.Encoding:
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
          if i == self.unk_id:  # [UNK] stands for the whole word
            size = rest
          ids.append(i)
          starts.append(source_starts[at])
          ends.append(source_ends[at + size - 1])
          at += size
          rest -= size
      return ids, starts, ends

    return word_rules.Memo(chunk_offsets)

  @functools.cached_property
  def _matcher(self) -> tokenizers.models.WordPiece:
    return tokenizers.models.WordPiece(
      {piece: i for i, piece in enumerate(self._words)},
      unk_token="[UNK]",
      max_input_chars_per_word=self.max_input_chars_per_word,
    )

  def _match(self, word: str) -> tuple[int, ...]:
    """Returns the ids of a word, the longest piece first, or that of [UNK]."""
    if not word.isascii() and interface.SURROGATE.search(word):
      # No vocabulary can hold half of a surrogate pair.
      return (self.unk_id,)
    return tuple([token.id for token in self._matcher.tokenize(word)])


def _check_pieces(pieces: Sequence[str], source: str) -> None:
  """Raises ValueError for a vocabulary that would give wrong ids or none.

  The original BERT takes the later line if a piece occurs twice, and notices
  that a special token is missing only when it needs the token.
  """
  if not pieces:
    raise ValueError(f"{source} is empty; wanted one piece a line")
  first_line: dict[str, int] = {}
  for line, piece in enumerate(pieces, 1):
    if piece != piece_of_line(piece) or not piece:
      problem = (
        "is blank or has whitespace around it; wanted one piece a line (remove"
        " empty lines, also at the end)"
      )
    elif interface.SURROGATE.search(piece):
      problem = _HALF_A_PAIR
    elif piece in first_line:
      problem = (
        f"is also on line {first_line[piece]}; all pieces must differ, so"
        " change one of them"
      )
    else:
      first_line[piece] = line
      continue
    raise ValueError(f"{source}, line {line}: piece {piece!r:.60} {problem}")
  missing = [
    name for name in interface.SPECIAL_TOKENS if name not in first_line
  ]
  if missing:
    raise ValueError(
      f"{source} ({len(pieces)} pieces, the first is {pieces[0]!r:.60}) lacks"
      f" {', '.join(missing)}; BERT needs"
      f" {' '.join(interface.SPECIAL_TOKENS)}, each on a line of its own"
    )


def _check_added(added: Sequence[added_tokens.AddedToken], source: str) -> None:
  """Raises ValueError for an added token that could not be found in a text."""
  seen = set()
  for content in [token.content for token in added]:
    if content in interface.SPECIAL_TOKENS:
      problem = "is a special token, which is never matched in a text"
    elif content in seen:
      problem = "occurs twice; remove one of them"
    elif interface.SURROGATE.search(content):
      problem = _HALF_A_PAIR
    else:
      seen.add(content)
      continue
    raise ValueError(f"{source}: the added token {content!r:.60} {problem}")


def resolve_lower_case(
  pieces: Iterable[str], lower_case: bool | None, source: str
) -> bool:
  """Returns whether text is lower-cased, as given or as the pieces suggest.

  A vocabulary is cased if lower-casing changes more than one in a thousand of
  its pieces with cased letters. A few such pieces are no proof: released
  uncased vocabularies hold "<S>" and letters that only a later Unicode version
  classifies as capitals, and users put names into unused slots. Such a
  vocabulary may be used with either value.

  Args:
    pieces: the vocabulary.
    lower_case: the given value; None means that the vocabulary decides.
    source: the name of the vocabulary in errors.

  Raises:
    ValueError: the pieces contradict `lower_case`.
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
      f" upper-case letters ({_examples(upper)}) and could never occur; pass"
      " lower_case=False, or use the uncased vocabulary"
    )
  if not lower_case and lower and not upper:
    raise ValueError(
      f"lower_case=False, but {source} is uncased: none of its"
      f" {len(lower)} pieces with letters ({_examples(lower)}) has an"
      " upper-case one, so every capital would become [UNK]; pass"
      " lower_case=True, or use the cased vocabulary"
    )
  return lower_case


def _examples(pieces: Sequence[str]) -> str:
  longest = sorted(pieces, key=len, reverse=True)[:4]
  return ", ".join(f"{piece!r:.60}" for piece in longest)


def piece_of_line(line: str) -> str:
  """Returns a line of a vocabulary file without the whitespace around it.

  The original strips every line. A line of which only "" or "##" would be left
  is not stripped: the Chinese vocabulary has U+2028 on one line, and "##" with
  U+2028 on another. Neither form can match any text, and two such lines remain
  two pieces.

  Source: google-research/bert tokenization.py:121-133
  """
  line = line.strip(" \t\r\n")
  piece = line.strip()
  return line if piece in ("", "##") else piece


def read_pieces(path: pathlib.Path) -> list[str]:
  """Reads a vocabulary file.

  Raises:
    ValueError: a line is not plain UTF-8 text; the message names the line.
  """
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
    lines.pop()  # the empty text after the last line feed
  return [piece_of_line(line) for line in lines]


def _merge_pairs(
  counts: dict[str, int], first: list[str], vocab_size: int, min_frequency: int
) -> list[str]:
  """Returns `vocab_size` pieces: `first`, and then the merged pairs."""
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
  texts: Iterable[str], lower_case: bool, strip_accents: bool | None = None
) -> collections.Counter[str]:
  """Counts the words of texts, except those that always become [UNK]."""
  chunks: collections.Counter[str] = collections.Counter()
  for text in texts:
    chunks.update(word_rules.chunks(text))
  split = word_rules.WordSplitter(lower_case, strip_accents)
  words: collections.Counter[str] = collections.Counter()
  for chunk, count in chunks.items():
    for word in split(chunk):
      is_short = len(word) <= MAX_INPUT_CHARS_PER_WORD
      if is_short and not interface.SURROGATE.search(word):
        words[word] += count
  return words


def _dropped(
  counts: collections.Counter[str], known: dict[str, int], num_kept: int
) -> str:
  """Returns a message about words with characters that are not kept, or "".

  Args:
    counts: the frequency of each word.
    known: the words of which every character is kept.
    num_kept: the number of these characters.
  """
  total, kept = counts.total(), sum(known.values())
  if kept >= (1 - _DROPPED_SHARE) * total:
    return ""
  num_characters = len({char for word in counts for char in word})
  return (
    f"the text has {num_characters:,} different characters, of which the "
    f"{num_kept:,} most frequent are kept, so that {1 - kept / total:.1%} of "
    "its words become [UNK]; raise prepare.alphabet_size (limit_alphabet) to "
    f"keep more, up to {num_characters:,}"
  )


def _frequent_characters(
  counts: collections.Counter[str], limit: int
) -> set[str]:
  """Returns the most frequent characters; ties go to the lower code point."""
  characters: collections.Counter[str] = collections.Counter()
  for word, count in counts.items():
    for char in word:
      characters[char] += count
  ranked = sorted(characters, key=lambda char: (-characters[char], char))
  return set(ranked[:limit])


def _repeat_words(
  counts: dict[str, int], per_text: int = 1000
) -> Iterator[str]:
  """Yields texts in which every word occurs as often as counted."""
  for word, count in counts.items():
    full, rest = divmod(count, per_text)
    yield from itertools.repeat(" ".join([word] * per_text), full)
    yield " ".join([word] * rest)
