"""Reads and writes messages of Protocol Buffers without their schema.

Source: protobuf.dev/programming-guides/encoding
"""

from typing import Any, TypeVar

_Value = TypeVar("_Value", int, bytes)
# Number of a field -> its values, in the order of the bytes.
Fields = dict[int, list[Any]]


class ProtobufError(ValueError):
  """The bytes are not a message."""


def varint(data: bytes, at: int) -> tuple[int, int]:
  """Reads a varint; returns its value and the offset after it."""
  value = 0
  for i in range(10):
    if at + i >= len(data):
      raise ProtobufError("a number runs past its end")
    byte = data[at + i]
    value |= (byte & 0x7F) << 7 * i
    if byte < 0x80:
      if value >= 1 << 64:
        break
      return value, at + i + 1
  raise ProtobufError("a number has more than 64 bits")


def to_varint(value: int) -> bytes:
  """Encodes a number from 0."""
  out = bytearray()
  while value >= 0x80:
    out.append(value & 0x7F | 0x80)
    value >>= 7
  out.append(value)
  return bytes(out)


def fields(message: Any) -> Fields:
  """Parses a message.

  Raises:
    ProtobufError: it is damaged, or a number.
  """
  if not isinstance(message, bytes):
    raise ProtobufError("a number stands where a message was wanted")
  found: Fields = {}
  at = 0
  while at < len(message):
    tag, at = varint(message, at)
    number, wire = tag >> 3, tag & 7
    value: int | bytes
    if wire == 0:
      value, at = varint(message, at)
    elif wire in (1, 2, 5):
      size = {1: 8, 5: 4}.get(wire, 0)
      if wire == 2:
        size, at = varint(message, at)
      if size > len(message) - at:
        raise ProtobufError("a field runs past the end of its message")
      value = message[at : at + size]
      at += size
    else:
      raise ProtobufError(f"a field has the unknown wire type {wire}")
    found.setdefault(number, []).append(value)
  return found


def last(fields: Fields, number: int, default: _Value) -> _Value:
  """Returns the last value of a field, or the default if it has none.

  Raises:
    ProtobufError: the value and the default have different types.
  """
  value = fields.get(number, [default])[-1]
  if type(value) is not type(default):
    raise ProtobufError(
      f"field {number} of a message is {type(value).__name__}, not "
      f"{type(default).__name__}"
    )
  return value


def field(number: int, value: int | bytes) -> bytes:
  """Encodes a varint or bytes field; proto3 leaves out a varint of 0."""
  if isinstance(value, int):
    return to_varint(number << 3) + to_varint(value) if value else b""
  return to_varint(number << 3 | 2) + to_varint(len(value)) + value
