"""Reads and writes TensorFlow 1 checkpoints without TensorFlow.

TensorFlow calls the format a "tensor bundle":

  X.index                  a sorted table: tensor name -> type, shape, place
  X.data-00000-of-00001    the tensors' bytes, one after the other

The index is a LevelDB table: blocks of sorted entries, then a block that lists
these blocks, then a footer of 48 bytes. An entry stores its key without the
prefix that it shares with the key before it. Each block and each tensor has a
CRC-32C checksum, which is verified when it is read.

Every size is compared with the size of the file before memory is allocated.

Source: tensorflow/core/util/tensor_bundle/tensor_bundle.cc,
  tensorflow/core/protobuf/tensor_bundle.proto,
  tensorflow/core/lib/io/{format,table_builder,block_builder}.cc
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import math
import os
import struct

import google_crc32c
import ml_dtypes
import numpy as np

from bert_jax.runtime import files
from bert_jax.runtime import protobuf
from bert_jax.weights.pretrained import WeightsError

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # after a block: one byte of compression, four of checksum
_BLOCK_BYTES = 262_144  # a block of this size or more takes no more entries
_RESTART_EVERY = 16  # the number of entries between two keys written in full
# No variable has a longer name; the limit bounds the memory that keys take.
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
TEXT = 7  # the data type of strings, which this module does not read


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
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _check_crc(data: bytes | np.ndarray, wanted: int, what: str) -> None:
  if _masked_crc(data) != wanted:
    raise BundleError(
      f"{what} is damaged: its checksum does not match; copy it again from "
      "the original place"
    )


# --- messages ----------------------------------------------------------------


def _shape(message: bytes) -> tuple[int, ...]:
  """Reads a TensorShapeProto."""
  fields = protobuf.fields(message)
  if protobuf.last(fields, 3, 0):
    raise BundleError("a tensor has an unknown rank")
  sizes = fields.get(2, [])
  if len(sizes) > _MAX_RANK:
    raise BundleError(f"a tensor has {len(sizes)} dimensions")
  return tuple(protobuf.last(protobuf.fields(size), 1, 0) for size in sizes)


def _entry(message: bytes) -> Entry:
  """Reads a BundleEntryProto."""
  fields = protobuf.fields(message)
  checksum = protobuf.last(fields, 6, b"\0\0\0\0")
  if len(checksum) != 4:
    raise BundleError(f"a checksum has {len(checksum)} bytes, not 4")
  return Entry(
    type=protobuf.last(fields, 1, 0),
    shape=_shape(protobuf.last(fields, 2, b"")),
    shard=protobuf.last(fields, 3, 0),
    offset=protobuf.last(fields, 4, 0),
    size=protobuf.last(fields, 5, 0),
    checksum=int.from_bytes(checksum, "little"),
    is_sliced=7 in fields,
  )


def _num_shards(message: bytes) -> int:
  """Reads a BundleHeaderProto."""
  fields = protobuf.fields(message)
  if protobuf.last(fields, 2, 0):
    raise BundleError(
      "it was written by a big-endian machine; this is not read"
    )
  if (
    version := protobuf.last(
      protobuf.fields(protobuf.last(fields, 3, b"")), 2, 0
    )
  ) > 1:
    raise BundleError(f"version {version} of the format; version 1 is read")
  if (num_shards := protobuf.last(fields, 1, 0)) < 1:
    raise BundleError("its header names no data file")
  return num_shards


# --- reading the table -------------------------------------------------------


def _block(data: bytes, handle: bytes, at: int = 0) -> tuple[bytes, int]:
  """Reads the block that a handle (offset, size) names, and checks it.

  Args:
    data: the whole table.
    handle: bytes that contain the handle.
    at: the offset of the handle in these bytes.

  Returns:
    The block, and the offset after the handle.
  """
  offset, at = protobuf.varint(handle, at)
  size, at = protobuf.varint(handle, at)
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
    raise BundleError(f"a block has the unknown compression {data[end]}")
  return data[offset:end], at


def _block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Yields the keys and values of a block."""
  if len(block) < 4:
    raise BundleError("a block has less than 4 bytes")
  restarts = int.from_bytes(block[-4:], "little")
  end = len(block) - 4 * (restarts + 1)
  if end < 0:
    raise BundleError(f"a block of {len(block)} bytes has {restarts} restarts")
  entries = block[:end]
  key, at = b"", 0
  while at < end:
    shared, at = protobuf.varint(entries, at)
    unshared, at = protobuf.varint(entries, at)
    value_size, at = protobuf.varint(entries, at)
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
      "it does not end with the mark of an index; it was cut off, or is "
      "another kind of file"
    )
  _, at = _block(data, footer)  # the empty block of metadata has a checksum
  index, at = _block(data, footer, at)
  if any(footer[at:-8]):
    raise BundleError("its footer has bytes where there should be none")
  last = None
  for _, handle in _block_entries(index):
    block, handle_end = _block(data, handle)
    if handle_end != len(handle):
      raise BundleError("a handle is followed by other bytes")
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
  """Returns the number of data files, and name -> entry."""
  path = _index_path(prefix)
  try:
    with files.reading(path) as f:
      data = f.read()
    table = _table_entries(data)
    key, header = next(table, (None, b""))
    if key != b"":
      raise BundleError("it does not begin with the header of a checkpoint")
    num_shards = _num_shards(header)
    entries = {key.decode("utf-8"): _entry(value) for key, value in table}
  except FileNotFoundError as error:
    raise BundleError(f"{path} does not exist") from error
  except (
    BundleError, protobuf.ProtobufError, UnicodeDecodeError, OSError,
  ) as error:  # fmt: skip
    raise BundleError(f"{path} cannot be read: {error}") from error
  return num_shards, entries


def read_index(prefix: str) -> dict[str, Entry]:
  """Reads which tensors a checkpoint has.

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
      f"{name} has TensorFlow's data type {entry.type}; only numbers are read"
    )
  wanted = math.prod(entry.shape) * _DTYPES[entry.type].itemsize
  if entry.size != wanted:
    raise BundleError(
      f"{name} of shape {entry.shape} has {entry.size} bytes, not {wanted}"
    )


def _read_shard(path: str, entries: Mapping[str, Entry]) -> dict:
  """Reads some tensors of one data file."""
  found = {}
  with files.reading(path) as f:
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
      _check_crc(data, entry.checksum, name)
      found[name] = data.view(_DTYPES[entry.type]).reshape(entry.shape)
  return found


def read(
  prefix: str, names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
  """Reads tensors of a checkpoint.

  Args:
    prefix: the path without ".index".
    names: the tensors to read; None means all.

  Returns:
    Name -> array, in the order of the names in the index.

  Raises:
    BundleError: the checkpoint or a tensor does not exist, is damaged, or is of
      an unsupported kind (text, slices).
  """
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
      self._data += protobuf.to_varint(number)
    self._data += key[shared:] + value
    self._key = key
    self._since_restart += 1

  @property
  def size(self) -> int:
    return len(self._data) + 4 * (len(self._restarts) + 1)

  def finish(self) -> bytes:
    numbers = [*self._restarts, len(self._restarts)]
    return bytes(self._data) + struct.pack(f"<{len(numbers)}I", *numbers)


def _between(last: bytes, following: bytes | None) -> bytes:
  """Returns a short key k with last <= k < following; None is no limit."""
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

  def write_block(builder: _BlockBuilder) -> bytes:
    contents = builder.finish()
    handle = protobuf.to_varint(len(data)) + protobuf.to_varint(len(contents))
    contents += b"\0"  # not compressed
    data.extend(contents + struct.pack("<I", _masked_crc(contents)))
    return handle

  index = _BlockBuilder(1)
  block: _BlockBuilder | None = None
  last, handle = b"", b""
  for key, value in entries:
    if block is None:
      block = _BlockBuilder(_RESTART_EVERY)
      if handle:
        index.add(_between(last, key), handle)
    block.add(key, value)
    last = key
    if block.size >= _BLOCK_BYTES:
      handle, block = write_block(block), None
  if block is not None:
    handle = write_block(block)
  footer = write_block(_BlockBuilder(_RESTART_EVERY))  # there is no metadata
  if handle:
    index.add(_between(last, None), handle)
  footer += write_block(index)
  return bytes(data + footer.ljust(40, b"\0") + struct.pack("<Q", _MAGIC))


def _entry_message(type_: int, array: np.ndarray, offset: int) -> bytes:
  """Encodes a BundleEntryProto without its checksum."""
  shape = b"".join(
    protobuf.field(2, protobuf.field(1, size)) for size in array.shape
  )
  return b"".join(
    protobuf.field(number, value)
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
    BundleError: a tensor cannot be stored.
  """
  types = {dtype: number for number, dtype in _DTYPES.items()}
  names = {name.encode("utf-8"): name for name in tensors}
  for key, name in names.items():
    dtype = tensors[name].dtype
    if not 0 < len(key) <= _MAX_KEY_BYTES:
      raise BundleError(
        f"{name!r:.100} has {len(key)} bytes; the name of a tensor has 1 to "
        f"{_MAX_KEY_BYTES}"
      )
    if dtype.newbyteorder("<") not in types:
      raise BundleError(f"{name} has dtype {dtype}, which is not written")
  entries = [(b"", bytes.fromhex("08011a020801"))]  # 1 data file, version 1
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
      entries.append((key, message + protobuf.to_varint(6 << 3 | 5) + checksum))
      offset += len(data)
    index.write(_to_table(entries))
    index.flush()
