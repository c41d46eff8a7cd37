"""Reads the parts of a SentencePiece model that another program needs.

A .model file is a message of Protocol Buffers. Only the fields that a unigram
model is made of are read, and nothing else of the file counts.

Source: google/sentencepiece, src/sentencepiece_model.proto
"""

from collections.abc import Iterator
import dataclasses
import struct

# Types of pieces.
CONTROL, USER_DEFINED = 3, 4
_UNIGRAM = 1
_MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "character"}


@dataclasses.dataclass(frozen=True)
class Piece:
  """One piece: its spelling, its log-probability and its type."""

  text: str
  score: float = 0.0
  type: int = 1


@dataclasses.dataclass(frozen=True)
class Model:
  """A unigram model.

  Attributes:
    pieces: the pieces by id.
    unk_id: the id of the unknown piece.
    charsmap: the rules of its normalisation, compiled; b"" if it has none.
  """

  pieces: tuple[Piece, ...]
  unk_id: int
  charsmap: bytes


def read(content: bytes, source: str) -> Model:
  """Reads the content of a .model file.

  Args:
    content: the bytes of the file.
    source: its path, for errors.

  Raises:
    ValueError: it is damaged, or is not a unigram model.
  """
  try:
    return _read(content)
  except (UnicodeDecodeError, struct.error, IndexError, ValueError) as error:
    raise ValueError(
      f"{source} is not a SentencePiece unigram model that can be used: "
      f"{error!s:.200}"
    ) from None


def _read(content: bytes) -> Model:
  pieces: list[Piece] = []
  unk_id, charsmap, model_type = 0, b"", _UNIGRAM
  for field, value in _fields(content):
    if field == 1:
      pieces.append(_piece(_message(value)))
    elif field == 2:  # the settings of training
      settings = dict(_fields(_message(value)))
      unk_id = _number(settings.get(40, unk_id))
      model_type = _number(settings.get(3, model_type))
      if settings.get(35):
        raise ValueError(
          "it writes unknown characters as bytes (byte_fallback), which this "
          "program does not do; give a tokenizer.json"
        )
    elif field == 3:  # the settings of normalisation
      settings = dict(_fields(_message(value)))
      charsmap = _message(settings.get(2, charsmap))
  if model_type != _UNIGRAM:
    kind = _MODEL_TYPES.get(model_type, str(model_type))
    raise ValueError(f"its type is {kind}; wanted unigram")
  if not 0 <= unk_id < len(pieces):
    raise ValueError(
      f"it has {len(pieces)} pieces, and the unknown one has the id {unk_id}"
    )
  return Model(tuple(pieces), unk_id, charsmap)


def _piece(content: bytes) -> Piece:
  fields = dict(_fields(content))
  score = fields.get(2, b"\0\0\0\0")
  if not isinstance(score, bytes) or len(score) != 4:
    raise ValueError("a score is not a number")
  return Piece(
    _message(fields.get(1, b"")).decode("utf-8"),
    struct.unpack("<f", score)[0],
    _number(fields.get(3, 1)),
  )


def _message(value: int | bytes) -> bytes:
  if not isinstance(value, bytes):
    raise ValueError("a field has another type")
  return value


def _number(value: int | bytes) -> int:
  if not isinstance(value, int):
    raise ValueError("a field has another type")
  return value


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
  """Yields (number, value) of the fields of a message."""
  at = 0
  while at < len(content):
    key, at = _varint(content, at)
    kind = key & 7
    value: int | bytes
    if kind == 0:
      value, at = _varint(content, at)
    else:
      if kind == 2:
        size, at = _varint(content, at)
      elif kind in (1, 5):
        size = 8 if kind == 1 else 4
      else:
        raise ValueError(f"there is no field of type {kind}")
      value = content[at : at + size]
      if len(value) != size:
        raise ValueError("it is truncated")
      at += size
    yield key >> 3, value


def _varint(content: bytes, at: int) -> tuple[int, int]:
  """Returns the number at a position, and the position after it."""
  value = 0
  for shift in range(0, 70, 7):
    byte = content[at]
    at += 1
    value |= (byte & 127) << shift
    if byte < 128:
      return value, at
  raise ValueError("a number has too many bytes")
