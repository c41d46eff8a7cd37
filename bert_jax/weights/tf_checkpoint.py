"""Reads and writes TensorFlow 1 checkpoints without TensorFlow.

TensorFlow calls the format a "tensor bundle":

  X.index                  a sorted table: tensor name -> type, shape, place
  X.data-00000-of-00001    the tensors' bytes, one after the other

The index is a LevelDB table: blocks of sorted entries, then a block that lists
these blocks, then a footer of 48 bytes. An entry stores its key without the
prefix that it shares with the key before. Each block and each tensor has a
CRC-32C checksum, which is verified if the package google_crc32c is installed.

Every size is compared with the size of the file before memory is allocated.

Source: tensorflow/core/util/tensor_bundle/tensor_bundle.cc,
  tensorflow/core/protobuf/tensor_bundle.proto,
  tensorflow/core/lib/io/{format,table_builder,block_builder}.cc
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import logging
import math
import os
import struct

import ml_dtypes
import numpy as np

from bert_jax.runtime import files
from bert_jax.weights.pretrained import WeightsError

# Without this package, reading skips the checksums and writing is refused.
_crc32c: Callable[[bytes | np.ndarray], int] | None = None
try:
  import google_crc32c

  _crc32c = google_crc32c.value
except ImportError:
  pass

_log = logging.getLogger(__name__)

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # after a block: its compression, its checksum
_BLOCK_BYTES = 262_144  # a block is closed once it has as many
_RESTART_EVERY = 16  # entries, after which a key is written in full
# Longer than any name of a variable; bounds what shared prefixes grow to.
_MAX_KEY_BYTES = 4096
_MAX_RANK = 32

# DataType of tensorflow/core/framework/types.proto, little-endian on disk.
_DTYPES = {
  1: np.dtype("<f4"),
  2: np.dtype("<f8"),
  3: np.dtype("<i4"),
  4: np.dtype("u1"),
  5: np.dtype("<i2"),
  6: np.dtype("i1"),
  9: np.dtype("<i8"),
  10: np.dtype("?"),
  14: np.dtype(ml_dtypes.bfloat16),
  17: np.dtype("<u2"),
  19: np.dtype("<f2"),
  22: np.dtype("<u4"),
  23: np.dtype("<u8"),
}
TEXT = 7  # the data type of strings, which are not read


class BundleError(WeightsError):
  """The checkpoint is missing, damaged or of an unsupported kind."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """One tensor as the index describes it.

  Attributes:
    type: the number of its type in TensorFlow's DataType.
    shape: the shape of the tensor.
    shard: the number of the data file that holds it.
    offset: where its first byte is in that file.
    size: its length in bytes.
    checksum: the masked CRC-32C of these bytes.
    is_sliced: whether it is stored in pieces, each of which has an entry.
  """

  type: int
  shape: tuple[int, ...]
  shard: int
  offset: int
  size: int
  checksum: int
  is_sliced: bool


# --- checksums ---------------------------------------------------------------


def _masked_crc(data: bytes | np.ndarray) -> int:
  """Returns the CRC-32C, rotated right by 15 bits, plus a constant."""
  if _crc32c is None:
    raise BundleError(
      "writing a TensorFlow checkpoint needs checksums; pip install "
      "google-crc32c"
    )
  crc = _crc32c(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _check_crc(data: bytes | np.ndarray, wanted: int, what: str) -> None:
  if _crc32c is not None and _masked_crc(data) != wanted:
    raise BundleError(
      f"{what} is damaged: its checksum does not match; copy it again from "
      "where it came"
    )


# --- numbers and messages ----------------------------------------------------


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """Reads a varint; returns its value and the offset behind it."""
  value = 0
  for i in range(10):
    if at + i >= len(data):
      raise BundleError("a number runs past its end")
    byte = data[at + i]
    value |= (byte & 0x7F) << 7 * i
    if byte < 0x80:
      if value >= 1 << 64:
        break
      return value, at + i + 1
  raise BundleError("a number has more than 64 bits")


def _to_varint(value: int) -> bytes:
  out = bytearray()
  while value >= 0x80:
    out.append(value & 0x7F | 0x80)
    value >>= 7
  out.append(value)
  return bytes(out)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
  """Yields the number and the value of every field of a protocol buffer."""
  at = 0
  while at < len(message):
    tag, at = _varint(message, at)
    number, wire = tag >> 3, tag & 7
    value: int | bytes
    if wire == 0:
      value, at = _varint(message, at)
    elif wire in (1, 2, 5):
      size = {1: 8, 5: 4}.get(wire, 0)
      if wire == 2:
        size, at = _varint(message, at)
      if size > len(message) - at:
        raise BundleError("a field runs past the end of its message")
      value = message[at : at + size]
      at += size
    else:
      raise BundleError(f"a field has the unknown wire type {wire}")
    yield number, value


def _int(value: int | bytes) -> int:
  if not isinstance(value, int):
    raise BundleError("a number was wanted, and something else is there")
  return value


def _bytes(value: int | bytes) -> bytes:
  if not isinstance(value, bytes):
    raise BundleError("a message was wanted, and a number is there")
  return value


def _shape(message: bytes) -> tuple[int, ...]:
  """Reads a TensorShapeProto."""
  shape = []
  for number, value in _fields(message):
    if number == 2:
      sizes = [_int(v) for n, v in _fields(_bytes(value)) if n == 1]
      shape.append(sizes[-1] if sizes else 0)
    elif number == 3 and value:
      raise BundleError("a tensor of unknown rank")
  if len(shape) > _MAX_RANK:
    raise BundleError(f"a tensor of {len(shape)} dimensions")
  return tuple(shape)


def _entry(message: bytes) -> Entry:
  """Reads a BundleEntryProto."""
  numbers = {1: 0, 3: 0, 4: 0, 5: 0}
  shape: tuple[int, ...] = ()
  checksum, is_sliced = 0, False
  for number, value in _fields(message):
    if number in numbers:
      numbers[number] = _int(value)
    elif number == 2:
      shape = _shape(_bytes(value))
    elif number == 6:
      if len(_bytes(value)) != 4:
        raise BundleError("a checksum that is not of 4 bytes")
      checksum = int.from_bytes(_bytes(value), "little")
    elif number == 7:
      is_sliced = True
  return Entry(
    type=numbers[1],
    shape=shape,
    shard=numbers[3],
    offset=numbers[4],
    size=numbers[5],
    checksum=checksum,
    is_sliced=is_sliced,
  )


def _num_shards(message: bytes) -> int:
  """Reads a BundleHeaderProto."""
  num_shards = 0
  for number, value in _fields(message):
    if number == 1:
      num_shards = _int(value)
    elif number == 2 and value:
      raise BundleError("tensors of a big-endian machine are not read")
    elif number == 3:
      for version_number, version in _fields(_bytes(value)):
        if version_number == 2 and (least := _int(version)) > 1:
          raise BundleError(f"version {least} of the format; 1 is read")
  if num_shards < 1:
    raise BundleError("its header names no data file")
  return num_shards


# --- reading the table -------------------------------------------------------


def _block(data: bytes, handle: bytes, at: int = 0) -> tuple[bytes, int]:
  """Reads the block that a handle (offset, size) names, and checks it.

  Args:
    data: the whole table.
    handle: bytes with the handle.
    at: where in these.

  Returns:
    The block and where the handle ends.
  """
  offset, at = _varint(handle, at)
  size, at = _varint(handle, at)
  end = offset + size
  if end + _TRAILER_BYTES + _FOOTER_BYTES > len(data):
    raise BundleError(f"a block at {offset} of {size} bytes lies outside of it")
  checksum = int.from_bytes(data[end + 1 : end + _TRAILER_BYTES], "little")
  _check_crc(data[offset : end + 1], checksum, f"its block at {offset}")
  if data[end] == 1:
    raise BundleError(
      "its blocks are compressed (snappy), which is not read; load and save it "
      "with TensorFlow 1.2 or later, which does not compress them"
    )
  if data[end]:
    raise BundleError(f"a block is compressed in an unknown way ({data[end]})")
  return data[offset:end], at


def _block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Yields the keys and values of a block."""
  if len(block) < 4:
    raise BundleError("a block of less than 4 bytes")
  restarts = int.from_bytes(block[-4:], "little")
  end = len(block) - 4 * (restarts + 1)
  if end < 0:
    raise BundleError(f"a block of {len(block)} bytes with {restarts} restarts")
  entries = block[:end]
  key, at = b"", 0
  while at < end:
    shared, at = _varint(entries, at)
    unshared, at = _varint(entries, at)
    value_size, at = _varint(entries, at)
    if shared > len(key) or unshared + value_size > end - at:
      raise BundleError("an entry runs past the end of its block")
    if shared + unshared > _MAX_KEY_BYTES:
      raise BundleError(f"a name of {shared + unshared} bytes")
    key = key[:shared] + entries[at : at + unshared]
    at += unshared
    yield key, entries[at : at + value_size]
    at += value_size


def _table_entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Yields the keys and values of a table, in order."""
  if len(data) < _FOOTER_BYTES:
    raise BundleError(f"it has {len(data)} bytes, less than a footer")
  footer = data[-_FOOTER_BYTES:]
  if int.from_bytes(footer[-8:], "little") != _MAGIC:
    raise BundleError(
      "it does not end as the index of a checkpoint does: it was cut off, or "
      "is another kind of file"
    )
  _, at = _block(data, footer)  # of meta data: there is none, but its checksum
  index, at = _block(data, footer, at)
  if any(footer[at:-8]):
    raise BundleError("its footer has bytes where there should be none")
  last = None
  for _, handle in _block_entries(index):
    block, handle_end = _block(data, handle)
    if handle_end != len(handle):
      raise BundleError("a handle has bytes left over")
    for key, value in _block_entries(block):
      if last is not None and key <= last:
        raise BundleError("its names are not in order")
      last = key
      yield key, value


def _index_path(prefix: str) -> str:
  return f"{prefix}.index"


def _data_path(prefix: str, shard: int, num_shards: int) -> str:
  return f"{prefix}.data-{shard:05d}-of-{num_shards:05d}"


def _read_index(prefix: str) -> tuple[int, dict[str, Entry]]:
  """Returns the number of data files and the entries."""
  path = _index_path(prefix)
  try:
    with open(path, "rb") as f:
      data = f.read()
    table = _table_entries(data)
    key, header = next(table, (None, b""))
    if key != b"":
      raise BundleError("it does not begin with the header of a checkpoint")
    num_shards = _num_shards(header)
    entries = {key.decode("utf-8"): _entry(value) for key, value in table}
  except FileNotFoundError as error:
    raise BundleError(f"{path} does not exist") from error
  except (BundleError, UnicodeDecodeError, OSError) as error:
    raise BundleError(f"{path} cannot be read: {error}") from error
  return num_shards, entries


def read_index(prefix: str) -> dict[str, Entry]:
  """Reads what tensors a checkpoint has.

  Args:
    prefix: the path without ".index".

  Returns:
    Name -> entry, in the order of the names.

  Raises:
    BundleError: the checkpoint does not exist or is damaged.
  """
  return _read_index(prefix)[1]


# --- reading tensors ---------------------------------------------------------


def _check_entry(name: str, entry: Entry) -> None:
  """Raises BundleError if a tensor cannot be read, before it is allocated."""
  if entry.is_sliced:
    raise BundleError(
      f"{name} is stored in slices (a partitioned variable); save it from a "
      "graph without a partitioner"
    )
  if entry.type not in _DTYPES:
    raise BundleError(
      f"{name} has TensorFlow's data type {entry.type}; numbers are read"
    )
  wanted = math.prod(entry.shape) * _DTYPES[entry.type].itemsize
  if entry.size != wanted:
    raise BundleError(
      f"{name} of shape {entry.shape} has {entry.size} bytes, not {wanted}"
    )


def _read_shard(path: str, entries: Mapping[str, Entry]) -> dict:
  """Reads some tensors of one data file."""
  found = {}
  with open(path, "rb") as f:
    file_size = os.fstat(f.fileno()).st_size
    total = sum(entry.size for entry in entries.values())
    ends = [entry.offset + entry.size for entry in entries.values()]
    if max(ends) > file_size or total > file_size:
      raise BundleError(
        f"it has {file_size} bytes, its index wants {max(*ends, total)}: it "
        "was cut off, or belongs to another index"
      )
    for name, entry in entries.items():
      f.seek(entry.offset)
      data = np.fromfile(f, np.uint8, entry.size)
      if data.size != entry.size:
        raise BundleError(f"it ends within {name}")
      _check_crc(data, entry.checksum, name)
      found[name] = data.view(_DTYPES[entry.type]).reshape(entry.shape)
  return found


def read(
  prefix: str, names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
  """Reads tensors of a checkpoint.

  Args:
    prefix: the path without ".index".
    names: which ones; None: all.

  Returns:
    Name -> array, in the order of the names in the index.

  Raises:
    BundleError: the checkpoint or a tensor does not exist, is damaged, or is of
      an unsupported kind (text, slices).
  """
  if _crc32c is None:
    _log.warning(
      "%s is read without looking at its checksums: google_crc32c is not "
      "installed", prefix,
    )  # fmt: skip
  num_shards, entries = _read_index(prefix)
  chosen = set(entries if names is None else names)
  if missing := sorted(chosen - entries.keys()):
    raise BundleError(f"{_index_path(prefix)} has no {', '.join(missing)}")
  shards: dict[int, dict[str, Entry]] = {}
  for name in filter(chosen.__contains__, entries):
    shards.setdefault(entries[name].shard, {})[name] = entries[name]
  found: dict[str, np.ndarray] = {}
  for shard, wanted in shards.items():
    path = _index_path(prefix)
    try:
      if shard >= num_shards:
        raise BundleError(f"data file {shard} of {num_shards}")
      for name, entry in wanted.items():
        _check_entry(name, entry)
      path = _data_path(prefix, shard, num_shards)
      found |= _read_shard(path, wanted)
    except FileNotFoundError as error:
      raise BundleError(
        f"{path} does not exist, but {_index_path(prefix)} names it; a "
        "checkpoint is both files"
      ) from error
    except (ValueError, OverflowError, OSError) as error:
      raise BundleError(f"{path} cannot be read: {error}") from error
  return {name: found[name] for name in entries if name in found}


# --- writing -----------------------------------------------------------------


class _BlockBuilder:
  """Builds one block of a table, entry by entry."""

  def __init__(self, restart_every: int):
    self._restart_every = restart_every
    self._data = bytearray()
    self._restarts = [0]
    self._since_restart = 0
    self._key = b""

  def add(self, key: bytes, value: bytes) -> None:
    shared = 0
    if self._since_restart < self._restart_every:
      shared = len(os.path.commonprefix([self._key, key]))
    else:
      self._restarts.append(len(self._data))
      self._since_restart = 0
    for number in (shared, len(key) - shared, len(value)):
      self._data += _to_varint(number)
    self._data += key[shared:] + value
    self._key = key
    self._since_restart += 1

  @property
  def size(self) -> int:
    return len(self._data) + 4 * (len(self._restarts) + 1)

  @property
  def is_empty(self) -> bool:
    return not self._data

  def finish(self) -> bytes:
    numbers = [*self._restarts, len(self._restarts)]
    return bytes(self._data) + struct.pack(f"<{len(numbers)}I", *numbers)


def _between(last: bytes, following: bytes | None) -> bytes:
  """Returns a short key k, last <= k < following (None: no upper limit)."""
  if following is None:
    for i, byte in enumerate(last):
      if byte != 0xFF:
        return last[:i] + bytes([byte + 1])
    return last
  i = len(os.path.commonprefix([last, following]))
  if i < min(len(last), len(following)) and last[i] + 1 < following[i]:
    return last[:i] + bytes([last[i] + 1])
  return last


def _to_table(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
  """Returns the bytes of a table of sorted keys and their values."""
  data = bytearray()

  def write_block(contents: bytes) -> bytes:
    handle = _to_varint(len(data)) + _to_varint(len(contents))
    contents += b"\0"  # not compressed
    data.extend(contents + struct.pack("<I", _masked_crc(contents)))
    return handle

  index = _BlockBuilder(1)
  block = _BlockBuilder(_RESTART_EVERY)
  last = b""
  handle: bytes | None = None
  for key, value in entries:
    if handle is not None:
      index.add(_between(last, key), handle)
      handle = None
    block.add(key, value)
    last = key
    if block.size >= _BLOCK_BYTES:
      handle = write_block(block.finish())
      block = _BlockBuilder(_RESTART_EVERY)
  if not block.is_empty:
    handle = write_block(block.finish())
  footer = write_block(_BlockBuilder(_RESTART_EVERY).finish())  # no meta data
  if handle is not None:
    index.add(_between(last, None), handle)
  footer += write_block(index.finish())
  return bytes(data + footer.ljust(40, b"\0") + struct.pack("<Q", _MAGIC))


def _field(number: int, value: int | bytes) -> bytes:
  """Encodes a varint or bytes field; proto3 leaves out a varint of 0."""
  if isinstance(value, int):
    return _to_varint(number << 3) + _to_varint(value) if value else b""
  return _to_varint(number << 3 | 2) + _to_varint(len(value)) + value


def _entry_message(type_: int, array: np.ndarray, offset: int) -> bytes:
  """Encodes a BundleEntryProto without its checksum."""
  shape = b"".join(_field(2, _field(1, size)) for size in array.shape)
  return b"".join(
    _field(number, value)
    for number, value in (
      (1, type_),
      (2, shape),
      (4, offset),
      (5, array.nbytes),
    )
  )


def write(prefix: str, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a checkpoint with the same bytes that TensorFlow would write.

  Args:
    prefix: the path without ".index".
    tensors: name -> array.

  Raises:
    BundleError: google_crc32c is not installed, or a tensor cannot be stored.
  """
  types = {dtype: number for number, dtype in _DTYPES.items()}
  names = {name.encode("utf-8"): name for name in tensors}
  for key, name in names.items():
    dtype = tensors[name].dtype
    if not 0 < len(key) <= _MAX_KEY_BYTES:
      raise BundleError(f"{name!r} cannot be the name of a tensor")
    if dtype.newbyteorder("<") not in types:
      raise BundleError(f"{name} has dtype {dtype}, which is not written")
  entries = [(b"", bytes.fromhex("08011a020801"))]  # 1 data file, version 1
  _masked_crc(b"")  # says what is missing before a file is opened
  offset = 0
  with (
    files.writing(_index_path(prefix)) as index,  # has its name last
    files.writing(_data_path(prefix, 0, 1)) as f,
  ):
    for key, name in sorted(names.items()):
      array = tensors[name]
      dtype = array.dtype.newbyteorder("<")
      data = np.ascontiguousarray(array, dtype).tobytes()
      f.write(data)
      message = _entry_message(types[dtype], array, offset)
      checksum = struct.pack("<I", _masked_crc(data))
      entries.append((key, message + _to_varint(6 << 3 | 5) + checksum))
      offset += len(data)
    index.write(_to_table(entries))
    index.flush()
