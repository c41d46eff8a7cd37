"""SentencePiece: one model file defines vocabulary and normalisation."""

from collections.abc import Iterable, Iterator, Sequence
import io
import itertools
import pathlib
import random
import re
from typing import Any, Self

import numpy as np
import sentencepiece

from bert_jax.data.tokenizers import interface
from bert_jax.runtime import files

_WORD_START = "\u2581"  # SentencePiece's mark of a word's first piece


class SentencePieceTokenizer(interface.Tokenizer):
  """A SentencePiece model with BERT's special tokens.

  It suits languages without spaces between words, and text that decoding must
  restore exactly. The model file holds vocabulary, normalisation and scores.

  Args:
    model: the content of a .model file. [CLS], [SEP] and [MASK] must be control
      symbols, which no text can produce. The padding and unknown tokens of the
      model are used, whatever their spelling.
    source: the name of the model in errors, such as a file name.

  Raises:
    ValueError: it is not a model, or a special token is missing or could be
      produced by text.

  Example:
    >>> tokenizer = load_tokenizer("sentencepiece.model")  # doctest: +SKIP
    >>> tokenizer.tokenize("Hello world")  # doctest: +SKIP
    ['\u2581Hello', '\u2581world']

  Source: https://aclanthology.org/D18-2012; ALBERT, arXiv 1909.11942
  """

  kind = "sentencepiece"
  file_name = "sentencepiece.model"
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

  @classmethod
  def learn(
    cls,
    texts: Iterable[str],
    vocab_size: int,
    lower_case: bool = False,
    *,
    input_sentence_size: int = 1_000_000,
  ) -> Self:
    """Learns a SentencePiece model; the same text gives the same model.

    Args:
      texts: lines, read once. SentencePiece ignores lines longer than 4192
        bytes.
      vocab_size: the number of pieces to learn, special tokens included.
      lower_case: whether the model's normalisation, NFKC, also folds case.
      input_sentence_size: the size of the random sample of lines to learn from,
        which is drawn with a fixed seed and held in memory. Learning takes
        minutes for each million lines.

    Returns:
      A tokenizer whose ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK].

    Raises:
      ValueError: the text cannot give exactly `vocab_size` pieces.

    Source: https://aclanthology.org/D18-2012
    """
    pad, unk, *control = interface.SPECIAL_TOKENS
    model = io.BytesIO()
    # The library's own sample differs between processes.
    sentences = _sample(_sentences(texts), input_sentence_size)
    try:
      sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc_cf" if lower_case else "nmt_nfkc",
        num_threads=16,  # changes the result, because each thread has a sum
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
    return cls(model.getvalue())

  @classmethod
  def read(cls, file: pathlib.Path, **settings: Any) -> Self:
    """Reads a .model file, which takes no settings."""
    return cls(file.read_bytes(), source=str(file), **settings)

  def encode(self, text: str) -> list[int]:
    """Returns the ids of the model's best segmentation of `text`."""
    if not text.isascii():
      # The library takes only UTF-8.
      text = interface.SURROGATE.sub("\ufffd", text)
    return self._processor.encode(text)

  def encode_with_offsets(self, text: str) -> interface.Encoding:
    """Returns the ids of `text`, and the characters that each stands for."""
    clean = interface.SURROGATE.sub("\ufffd", text)
    parsed = self._processor.encode(clean, return_type="offset_mapping")
    starts: list[int] = []
    ends: list[int] = []
    for start, end in parsed["offsets"]:
      start, end = interface.without_spaces(text, start, end)
      starts.append(start)
      ends.append(end)
    ids = parsed["ids"]
    return ids, starts, ends

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text that the pieces spell."""
    words: list[str] = []
    named = self.special_ids
    for is_special, run in itertools.groupby(ids, key=named.__contains__):
      run_ids = [int(i) for i in run]
      pieces = [self.token(i) for i in run_ids if i != self.pad_id]
      words += pieces if is_special else [self._processor.decode(run_ids)]
    return " ".join(words)

  def continues_word(self) -> np.ndarray:
    """Returns [V] bool: whether a piece lacks "▁", which starts a word.

    Special tokens are False.
    """
    p = self._processor
    return np.array(
      [
        not piece.startswith(_WORD_START)
        and i not in self.special_ids
        and not (p.is_control(i) or p.is_unknown(i) or p.is_unused(i))
        for i, piece in enumerate(self._pieces)
      ]
    )

  def write_vocabulary(self, path: interface.Path) -> None:
    """Writes the model file."""
    files.write_bytes(str(path), self._model)

  def _content(self) -> bytes:
    return self.kind.encode("utf-8") + b"\n" + self._model

  def __reduce__(self):
    return SentencePieceTokenizer, (self._model,)


def _special_ids(
  processor: Any, pieces: Sequence[str], source: str
) -> list[int]:
  """Returns the ids of the special tokens.

  Raises:
    ValueError: a special token is missing, or text can produce it.
  """
  how = (
    "; learn one with bert_jax.data.tokenizers, or pass"
    " pad_id=0, unk_id=1, bos_id=-1, eos_id=-1,"
    " control_symbols=['[CLS]','[SEP]','[MASK]'] to SentencePieceTrainer"
  )
  named = {
    "a padding symbol ([PAD])": processor.pad_id(),
    "an unknown symbol ([UNK])": processor.unk_id(),
  }
  for name in interface.SPECIAL_TOKENS[2:]:
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


def _sentences(texts: Iterable[str]) -> Iterator[str]:
  """Yields lines in a form that the library accepts, without blank ones."""
  for text in texts:
    text = interface.SURROGATE.sub("\ufffd", text).replace("\n", " ").strip()
    if text:
      yield text


def _sample(texts: Iterable[str], size: int) -> list[str]:
  """Draws at most `size` texts uniformly, and keeps their order."""
  rng = random.Random(0)
  sample: list[tuple[int, str]] = []
  for number, text in enumerate(texts):
    if number < size:
      sample.append((number, text))
    elif (slot := rng.randrange(number + 1)) < size:
      sample[slot] = (number, text)
  return [text for _, text in sorted(sample)]


def _explain_training(message: str, vocab_size: int) -> str:
  """Rewords an error of SentencePiece to say which size the text allows."""
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
