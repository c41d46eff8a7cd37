"""Learns a vocabulary from text; the same text gives the same vocabulary."""

import collections
from collections.abc import Iterable, Iterator
import io
import itertools
import random
import re

import sentencepiece
import tokenizers

from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import sentencepiece as sentencepiece_tokenizer
from bert_jax.data.tokenizers import word_rules
from bert_jax.data.tokenizers import wordpiece


def train_wordpiece(
  texts: Iterable[str],
  vocab_size: int,
  lower_case: bool,
  *,
  min_frequency: int = 2,
  limit_alphabet: int = 1000,
) -> wordpiece.WordPieceTokenizer:
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
  wordpiece.resolve_lower_case(alphabet, lower_case, "the text to learn from")
  inner = {char for word in known for char in word[1:]}
  first = [*interface.SPECIAL_TOKENS, *sorted(alphabet)]
  first += ["##" + char for char in sorted(inner)]
  if not known or vocab_size < len(first):
    special = len(interface.SPECIAL_TOKENS)
    raise ValueError(
      f"vocab_size={vocab_size} cannot hold the {special} special"
      f" tokens and {len(first) - special} single characters of"
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
  return wordpiece.WordPieceTokenizer(pieces, lower_case=lower_case)


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
    chunks.update(word_rules.chunks(text))
  split = word_rules.WordSplitter(lower_case)
  words: collections.Counter[str] = collections.Counter()
  for chunk, count in chunks.items():
    for word in split(chunk):
      if (
        len(word) <= wordpiece.MAX_INPUT_CHARS_PER_WORD
        and not interface.SURROGATE.search(word)
      ):
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
) -> sentencepiece_tokenizer.SentencePieceTokenizer:
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
  pad, unk, *control = interface.SPECIAL_TOKENS
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
  return sentencepiece_tokenizer.SentencePieceTokenizer(model.getvalue())


def _sentences(texts: Iterable[str]) -> Iterator[str]:
  """Lines in a form that the library accepts, blank ones left out."""
  for text in texts:
    text = interface.SURROGATE.sub("\ufffd", text).replace("\n", " ").strip()
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
