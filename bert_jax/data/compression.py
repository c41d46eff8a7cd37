"""Opens files of text, compressed or not, as a stream of bytes.

A file's last ending says how it is compressed. Files in which a carriage return
alone ends a line, as on old Macs, are read as if a line feed did.
"""

import bz2
from collections.abc import Callable, Iterator, Mapping
import contextlib
import gzip
import io
import lzma
import os
from typing import Any, BinaryIO, cast
import zlib

from bert_jax.runtime import errors
from bert_jax.runtime import files

# The exceptions that Python's decompressors raise for damaged input.
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)

# The bytes from the start of a file that decide how its lines end.
HEAD_BYTES = 1 << 16
# The part of a file that is read to estimate how much text it holds.
_RATE_BYTES = 1 << 18


def shorten(message: str) -> str:
  """Returns a message that quotes data, at most some 1000 characters of it."""
  if len(message) <= 1000:
    return message
  return f"{message[:700]} ... {message[-200:]}"


class UnreadableError(errors.UserError):
  """A file is damaged, or needs a package that is not installed."""

  def __init__(self, message: str):
    super().__init__(shorten(message))


class _Zstandard(io.RawIOBase):
  """The content of a .zst file, which pyarrow decompresses."""

  def __init__(self, raw: BinaryIO):
    super().__init__()
    self._arrow = import_arrow("a .zst file")
    self._stream = self._arrow.CompressedInputStream(raw, "zstd")

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    try:
      data = self._stream.read(len(buffer))
    except self._arrow.ArrowException as error:
      raise OSError(str(error)) from error
    buffer[: len(data)] = data
    return len(data)


class _LineFeeds(io.RawIOBase):
  """A stream in which every carriage return became a line feed."""

  def __init__(self, stream: BinaryIO):
    super().__init__()
    self._stream = stream

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    data = self._stream.read(len(buffer)).replace(b"\r", b"\n")
    buffer[: len(data)] = data
    return len(data)


def _buffered(raw: io.RawIOBase) -> BinaryIO:
  return io.BufferedReader(raw, HEAD_BYTES)


# Ending -> a function that opens the content of such a file.
OPENERS: Mapping[str, Callable[[BinaryIO], BinaryIO]] = {
  ".gz": lambda raw: cast(BinaryIO, gzip.open(raw)),
  ".bz2": lambda raw: cast(BinaryIO, bz2.open(raw)),
  ".xz": lambda raw: cast(BinaryIO, lzma.open(raw, format=lzma.FORMAT_XZ)),
  ".zst": lambda raw: _buffered(_Zstandard(raw)),
}


def import_arrow(reader: str) -> Any:
  """Returns the package pyarrow, which is slow to import.

  Args:
    reader: what needs it, for the error, such as "a .zst file".

  Raises:
    UnreadableError: pyarrow is not installed.
  """
  try:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet
  except ImportError as error:
    raise UnreadableError(
      f"{reader} is read by pyarrow, which cannot be imported ({error}); "
      "run pip install pyarrow"
    ) from error
  return pyarrow


def ending(path: str) -> str:
  """Returns the ending by which a file is compressed, or ""."""
  found = os.path.splitext(path)[1].lower()
  return found if found in OPENERS else ""


def strip_ending(path: str) -> str:
  """Returns a path without the ending by which the file is compressed."""
  return path[: len(path) - len(ending(path))]


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
  """Turns an error of reading a file into an UnreadableError that names it."""
  try:
    yield
  except FileNotFoundError as error:
    raise UnreadableError(f"{path} does not exist") from error
  except READ_ERRORS as error:
    raise UnreadableError(
      f"{path} breaks off or is damaged: {error}; fetch or make it again"
    ) from error


@contextlib.contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO]:
  """Opens the content of a file, decompressed as its ending says.

  Errors of reading the stream are not translated; see `naming`.

  Args:
    path: the file.
  """
  with files.reading(path) as raw:
    opener = OPENERS.get(ending(path))
    if opener is None:
      yield raw
    else:
      with opener(raw) as f:  # closing it would leave `raw` open
        yield f


def read_head(path: str) -> bytes:
  """Returns the first 64 KiB of the content of a file.

  Raises:
    UnreadableError: the file cannot be read.
  """
  with naming(path), open_bytes(path) as f:
    return f.read(HEAD_BYTES)


def ends_lines_by_cr(head: bytes) -> bool:
  """Returns whether a carriage return alone ends the lines of a text."""
  return b"\r" in head[:-1] and b"\n" not in head


@contextlib.contextmanager
def open_text(path: str) -> Iterator[BinaryIO]:
  """Opens the content of a text file as bytes whose lines end in a line feed.

  Args:
    path: the file, as for `open_bytes`.
  """
  by_cr = ends_lines_by_cr(read_head(path))
  with open_bytes(path) as f:
    yield _buffered(_LineFeeds(f)) if by_cr else f


def text_rate(path: str) -> float:
  """Estimates the bytes of text per compressed byte from the first 256 KiB.

  Args:
    path: a compressed file.

  Raises:
    UnreadableError: the file is damaged.
  """
  if ending(path) == ".gz":  # the exact length of what was unpacked
    with files.reading(path) as f:
      head = f.read(_RATE_BYTES)
    unpacker = zlib.decompressobj(wbits=31)  # gzip
    with naming(path):
      text = unpacker.decompress(head, 8 * _RATE_BYTES)
    rest = len(unpacker.unused_data) + len(unpacker.unconsumed_tail)
    return max(1.0, len(text) / (len(head) - rest))
  with naming(path), files.reading(path) as raw:
    with OPENERS[ending(path)](raw) as f:
      size = len(f.read(8 * _RATE_BYTES))
      return max(1.0, size / max(raw.tell(), 1))
