"""Reads the parts of a SentencePiece model that another program needs.

A .model file is a message of Protocol Buffers. Only the fields that a unigram
model is made of are read, and nothing else of the file counts.

Source: google/sentencepiece, src/sentencepiece_model.proto
"""

import dataclasses
import struct

from bert_jax.runtime import protobuf

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
  except (struct.error, ValueError) as error:
    raise ValueError(
      f"{source} is not a SentencePiece unigram model that can be used: "
      f"{error!s:.200}"
    ) from None


def _read(content: bytes) -> Model:
  message = protobuf.fields(content)
  training = protobuf.fields(protobuf.last(message, 2, b""))
  if protobuf.last(training, 35, 0):
    raise ValueError(
      "it writes unknown characters as bytes (byte_fallback), which this "
      "program does not do; give a tokenizer.json"
    )
  model_type = protobuf.last(training, 3, _UNIGRAM)
  if model_type != _UNIGRAM:
    kind = _MODEL_TYPES.get(model_type, str(model_type))
    raise ValueError(f"its type is {kind}; wanted unigram")
  pieces = tuple(map(_piece, message.get(1, ())))
  unk_id = protobuf.last(training, 40, 0)
  if not 0 <= unk_id < len(pieces):
    raise ValueError(
      f"it has {len(pieces)} pieces, and the unknown one has the id {unk_id}"
    )
  normalisation = protobuf.fields(protobuf.last(message, 3, b""))
  return Model(pieces, unk_id, protobuf.last(normalisation, 2, b""))


def _piece(content: bytes) -> Piece:
  fields = protobuf.fields(content)
  score = protobuf.last(fields, 2, b"\0\0\0\0")
  return Piece(
    protobuf.last(fields, 1, b"").decode("utf-8"),
    struct.unpack("<f", score)[0],
    protobuf.last(fields, 3, 1),
  )
