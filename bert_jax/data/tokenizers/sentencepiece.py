"""SentencePiece: one model file that holds vocabulary and normalisation."""

from collections.abc import Iterable, Sequence
import itertools
import pathlib
from typing import Any

import numpy as np
import sentencepiece

from bert_jax.data.tokenizers import interface
from bert_jax.runtime import files

MODEL_FILE = "sentencepiece.model"
_WORD_START = "\u2581"  # SentencePiece's mark of a word's first piece


class SentencePieceTokenizer(interface.Tokenizer):
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
      text = interface.SURROGATE.sub(
        "\ufffd", text
      )  # the library takes only UTF-8
    return self._processor.encode(text)

  def encode_with_offsets(self, text: str) -> interface.Encoding:
    """Returns the ids of `text`, and which characters each stands for."""
    clean = interface.SURROGATE.sub("\ufffd", text)
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

  def save(self, directory: interface.Path) -> None:
    """Writes sentencepiece.model and tokenizer.json."""
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_bytes(str(folder / MODEL_FILE), self._model)
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
    "; learn one with bert_jax.data.tokenizers, or pass"
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
