"""Tests of tf_checkpoint.py against the format's description.

No TensorFlow here: one table is written down byte by byte, others are read by
a second reader of this file, and messages by Google's protobuf package.
"""

import random
import struct

from google.protobuf import descriptor_pb2
from google.protobuf import descriptor_pool
from google.protobuf import message_factory
import google_crc32c
import ml_dtypes
import numpy as np
import pytest

from bert_jax.weights import tf_checkpoint


def crc32c(data: bytes) -> int:
  """CRC-32C bit by bit: the reflected Castagnoli polynomial."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
  """The checksum as it is stored: 4 bytes, little-endian."""
  crc = crc32c(data)
  rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
  return struct.pack("<I", (rotated + 0xA282EAD8) % 2**32)


def index_of(prefix):
  return prefix.with_name(prefix.name + ".index")


def data_of(prefix):
  return prefix.with_name(prefix.name + ".data-00000-of-00001")


@pytest.fixture
def bundle(tmp_path):
  """A checkpoint of a few tensors: its prefix and these."""
  rng = np.random.default_rng(0)
  tensors = {
    "bert/pooler/dense/kernel": rng.normal(size=(4, 3)).astype(np.float32),
    "bert/pooler/dense/bias": rng.normal(size=3).astype(np.float32),
    "cls/predictions/output_bias": rng.normal(size=5).astype(np.float64),
    "global_step": np.array(300, np.int64),
  }
  tf_checkpoint.write(str(tmp_path / "model.ckpt"), tensors)
  return tmp_path / "model.ckpt", tensors


def test_the_checksum_of_these_tests_is_crc32c():
  assert crc32c(b"123456789") == 0xE3069283  # of the polynomial's catalogue
  assert crc32c(b"123456789") == google_crc32c.value(b"123456789")


def test_one_tensor_is_written_as_the_format_says(tmp_path):
  one = struct.pack("<f", 1.0)
  assert one == bytes.fromhex("0000803f")
  tf_checkpoint.write(str(tmp_path / "x"), {"a": np.array([1], np.float32)})
  assert data_of(tmp_path / "x").read_bytes() == one

  # BundleHeaderProto: num_shards = 1, version { producer: 1 }.
  header = bytes.fromhex("0801 1a02 0801")
  # BundleEntryProto: dtype = 1 (float), shape { dim { size: 1 } }, size = 4,
  # crc32c; shard 0 and offset 0 are not written.
  entry = bytes.fromhex("0801 1204 1202 0801 2804 35") + masked(one)
  assert len(entry) == 15
  # Entries: bytes shared with the key before, other bytes, bytes of value.
  # Then the offsets of full keys, and how many these are.
  restarts = bytes.fromhex("00000000 01000000")
  block = (
    bytes.fromhex("00 00 06") + header
    + bytes.fromhex("00 01 0f") + b"a" + entry + restarts
  )  # fmt: skip
  block += b"\0"  # not compressed
  meta = restarts + b"\0"
  # Of the block: any key from "a" on; offset 0, size 36.
  index = bytes.fromhex("00 01 02") + b"b" + bytes.fromhex("00 24")
  index += restarts + b"\0"
  # Meta block at 36 + 5 = 41, size 8; index at 41 + 13 = 54, size 14.
  footer = bytes.fromhex("29 08 36 0e") + 36 * b"\0"
  footer += bytes.fromhex("57fb808b247547db")
  table = b"".join(part + masked(part) for part in (block, meta, index))
  assert index_of(tmp_path / "x").read_bytes() == table + footer


def read_varint(data, at):
  value = shift = 0
  while True:
    value |= (data[at] & 127) << shift
    shift += 7
    at += 1
    if data[at - 1] < 128:
      return value, at


def read_block(data, offset, size):
  """Second reader of a block: entries, and that restarts are as they should."""
  body, kind = data[offset : offset + size], data[offset + size]
  assert kind == 0
  assert data[offset + size + 1 :][:4] == masked(body + b"\0")
  (count,) = struct.unpack("<I", body[-4:])
  restarts = struct.unpack(f"<{count}I", body[-4 - 4 * count : -4])
  end, at, key, entries, starts = size - 4 - 4 * count, 0, b"", [], []
  while at < end:
    start = at
    shared, at = read_varint(body, at)
    rest, at = read_varint(body, at)
    length, at = read_varint(body, at)
    if shared == 0:
      starts.append(start)
    key = key[:shared] + body[at : at + rest]
    entries.append((key, body[at + rest : at + rest + length]))
    at += rest + length
  assert set(restarts) <= set(starts) or not entries
  return entries, restarts


def messages():
  """Classes of the header and the entry, as tensor_bundle.proto has them."""
  field = descriptor_pb2.FieldDescriptorProto
  file = descriptor_pb2.FileDescriptorProto(name="bundle.proto", package="t")
  file.syntax = "proto3"

  def add(name, *fields):
    message = file.message_type.add(name=name)
    for number, (title, type_, repeated) in fields:
      message.field.add(
        name=title, number=number,
        label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
        type=field.TYPE_MESSAGE if isinstance(type_, str) else type_,
        type_name=f".t.{type_}" if isinstance(type_, str) else None,
      )  # fmt: skip

  i32, i64 = field.TYPE_INT32, field.TYPE_INT64
  add("Dim", (1, ("size", i64, False)))
  add("Shape", (2, ("dim", "Dim", True)))
  add("Version", (1, ("producer", i32, False)))
  add("Header", (1, ("num_shards", i32, False)),
      (2, ("endianness", i32, False)),
      (3, ("version", "Version", False)))  # fmt: skip
  add("Entry", (1, ("dtype", i32, False)), (2, ("shape", "Shape", False)),
      (3, ("shard_id", i32, False)), (4, ("offset", i64, False)),
      (5, ("size", i64, False)), (6, ("crc32c", field.TYPE_FIXED32, False)),
      )  # fmt: skip
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return [
    message_factory.GetMessageClass(pool.FindMessageTypeByName(f"t.{name}"))
    for name in ("Header", "Entry")
  ]


def test_many_blocks_are_read_alike_by_a_second_reader(tmp_path, monkeypatch):
  monkeypatch.setattr(tf_checkpoint, "_BLOCK_BYTES", 600)
  rng = np.random.default_rng(1)
  tensors = {
    f"bert/encoder/layer_{i}/{'x' * (i % 5)}/kernel": rng.normal(
      size=(i % 3, 2)
    ).astype(np.float32)
    for i in range(120)
  }
  prefix = tmp_path / "m"
  tf_checkpoint.write(str(prefix), tensors)
  data, values = index_of(prefix).read_bytes(), data_of(prefix).read_bytes()
  meta_at, at = read_varint(data, len(data) - 48)
  meta_size, at = read_varint(data, at)
  index_at, at = read_varint(data, at)
  index_size, at = read_varint(data, at)
  assert read_block(data, meta_at, meta_size) == ([], (0,))
  blocks, restarts = read_block(data, index_at, index_size)
  assert len(blocks) == len(restarts) > 5
  found = []
  for (limit, handle), following in zip(
    blocks, [*blocks[1:], None], strict=True
  ):
    offset, middle = read_varint(handle, 0)
    size, end = read_varint(handle, middle)
    assert end == len(handle)
    entries, restarts = read_block(data, offset, size)
    assert len(restarts) == -(-len(entries) // 16)
    assert found == [] or blocks[0][0] <= entries[0][0]
    assert entries[-1][0] <= limit
    if following:
      next_at, next_end = read_varint(following[1], 0)
      next_size, _ = read_varint(following[1], next_end)
      assert limit < read_block(data, next_at, next_size)[0][0][0]
    found += entries
  header_class, entry_class = messages()
  assert found[0][0] == b""
  header = header_class.FromString(found[0][1])
  assert (header.num_shards, header.endianness) == (1, 0)
  assert header.version.producer == 1
  assert [key.decode() for key, _ in found[1:]] == sorted(tensors)
  for key, value in found[1:]:
    entry = entry_class.FromString(value)
    assert entry.SerializeToString(deterministic=True) == value
    array = tensors[key.decode()]
    assert tuple(dim.size for dim in entry.shape.dim) == array.shape
    assert (entry.dtype, entry.shard_id) == (1, 0)
    stored = values[entry.offset : entry.offset + entry.size]
    assert stored == array.tobytes()
    assert struct.pack("<I", entry.crc32c) == masked(stored)
  got = tf_checkpoint.read(str(prefix))
  assert list(got) == sorted(tensors)
  for name, array in tensors.items():
    np.testing.assert_array_equal(got[name], array)


def test_a_block_is_listed_under_the_shortest_key(tmp_path, monkeypatch):
  monkeypatch.setattr(tf_checkpoint, "_BLOCK_BYTES", 1)
  names = ["the quick brown fox", "the who", "the who knows", "theirs", "they"]
  zeros = np.zeros(1, np.float32)
  tf_checkpoint.write(str(tmp_path / "x"), dict.fromkeys(names, zeros))
  data = index_of(tmp_path / "x").read_bytes()
  _, at = read_varint(data, len(data) - 48)
  _, at = read_varint(data, at)
  offset, at = read_varint(data, at)
  size, _ = read_varint(data, at)
  keys = [key for key, _ in read_block(data, offset, size)[0]]
  # Of the header; "r" is between "q" and "w"; a prefix is not shortened; "e"
  # follows " " but not by one; "i" and "y"; after the last.
  want = [b"", b"the r", b"the who", b"the!", b"thej", b"u"]
  assert keys == want


@pytest.mark.parametrize(
  ("dtype", "number"),
  [
    (np.float32, 1), (np.float64, 2), (np.int32, 3), (np.uint8, 4),
    (np.int16, 5), (np.int8, 6), (np.int64, 9), (np.bool_, 10),
    (ml_dtypes.bfloat16, 14), (np.uint16, 17), (np.float16, 19),
    (np.uint32, 22), (np.uint64, 23), (">f4", 1),
  ],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3)])
def test_arrays_come_back_bit_by_bit(tmp_path, dtype, number, shape):
  array = (np.arange(np.prod(shape)) % 2).reshape(shape).astype(dtype)
  tf_checkpoint.write(str(tmp_path / "x"), {"w": array, "other": array})
  got = tf_checkpoint.read(str(tmp_path / "x"), ["w"])
  assert list(got) == ["w"]
  assert got["w"].dtype == np.dtype(dtype).newbyteorder("<")
  assert got["w"].shape == shape
  np.testing.assert_array_equal(got["w"], array)
  entry = tf_checkpoint.read_index(str(tmp_path / "x"))["w"]
  assert (entry.type, entry.shape) == (number, shape)


def test_the_layout_in_memory_does_not_matter(tmp_path):
  array = np.arange(12, dtype=np.float32).reshape(3, 4)
  tf_checkpoint.write(str(tmp_path / "a"), {"w": array})
  tf_checkpoint.write(str(tmp_path / "b"), {"w": np.asfortranarray(array)})
  for of in (index_of, data_of):
    assert of(tmp_path / "a").read_bytes() == of(tmp_path / "b").read_bytes()


def test_every_truncation_of_the_index_is_an_error(bundle):
  prefix, _ = bundle
  path = index_of(prefix)
  data = path.read_bytes()
  for size in range(len(data)):
    path.write_bytes(data[:size])
    with pytest.raises(tf_checkpoint.BundleError, match="model.ckpt.index"):
      tf_checkpoint.read(str(prefix))


def test_every_flipped_byte_is_found(bundle):
  prefix, _ = bundle
  rng = random.Random(0)
  for path in (index_of(prefix), data_of(prefix)):
    data = path.read_bytes()
    for i in range(len(data)):
      for flip in (0xFF, 1 << rng.randrange(8)):
        damaged = bytearray(data)
        damaged[i] ^= flip
        path.write_bytes(damaged)
        with pytest.raises(tf_checkpoint.BundleError, match=path.name):
          tf_checkpoint.read(str(prefix))
    path.write_bytes(data)
  tf_checkpoint.read(str(prefix))


def test_without_checksums_damage_is_an_error_or_another_value(
  bundle, monkeypatch
):
  prefix, tensors = bundle
  path = index_of(prefix)
  data = path.read_bytes()
  limit = data_of(prefix).stat().st_size
  monkeypatch.setattr(tf_checkpoint, "_check_crc", lambda *args: None)
  rng = random.Random(0)
  outcomes = set()
  for i in range(len(data)):
    for value in rng.sample(range(256), 3):
      path.write_bytes(data[:i] + bytes([value]) + data[i + 1 :])
      try:
        got = tf_checkpoint.read(str(prefix))
        assert sum(array.nbytes for array in got.values()) <= limit
        outcomes.add("read")
      except tf_checkpoint.BundleError:
        outcomes.add("refused")
  assert outcomes == {"read", "refused"}


def table_with(prefix, entry, *, header="0801 1a02 0801", names=(b"w",)):
  """Writes an index with one message for some names."""
  entries = [(b"", bytes.fromhex(header)), *((name, entry) for name in names)]
  index_of(prefix).write_bytes(tf_checkpoint._to_table(entries))
  data_of(prefix).write_bytes(bytes(16))


CRC_OF_16 = masked(bytes(16)).hex()


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    # A shape of 2**40 x 2**20 with as many bytes; 10 bytes of shape (4).
    ("0801 1210 1207 08808080808020 1205 0880808001", "bytes, not"),
    ("0801 1204 1202 0804 280a", "has 10 bytes, not 16"),
    # Offset and size past the end of the file.
    ("0801 1204 1202 0804 2004 2810", "it has 16 bytes, its index wants 20"),
    ("0801 1204 1202 0804 20808080808020 2810", "index wants 1099511627792"),
    # A shape of 0 x 2**63, which has no bytes.
    ("0801 120f 1200 120b 0880808080808080808001", "cannot be read"),
    # Text; slices; data file 1 of 1; a shape that is no message.
    ("0807 1200 2810", "data type 7; only numbers"),
    ("0801 1204 1202 0804 2810 3a00", "stored in slices"),
    ("0801 1204 1202 0804 1801 2810", "data file 1 of 1"),
    ("0801 1001", "field 2 of a message is int, not bytes"),
    ("0801 12021801 2804", "unknown rank"),
    ("0801 0e", "unknown wire type 6"),
    ("08" + 10 * "ff" + "01", "more than 64 bits"),
    ("08", "runs past its end"),
    ("1205 00", "runs past the end of its message"),
  ],
)
def test_an_index_cannot_ask_for_more_than_there_is(tmp_path, entry, message):
  table_with(tmp_path / "x", bytes.fromhex(entry))
  with pytest.raises(tf_checkpoint.BundleError, match=message):
    tf_checkpoint.read(str(tmp_path / "x"))


def test_tensors_that_share_their_bytes_are_refused(tmp_path):
  entry = bytes.fromhex("0801 1204 1202 0804 2810 35" + CRC_OF_16)
  table_with(tmp_path / "x", entry)
  assert tf_checkpoint.read(str(tmp_path / "x"))["w"].shape == (4,)
  table_with(tmp_path / "x", entry, names=(b"v", b"w"))
  with pytest.raises(tf_checkpoint.BundleError, match="its index wants 32"):
    tf_checkpoint.read(str(tmp_path / "x"))


@pytest.mark.parametrize(
  ("header", "message"),
  [
    ("0801 1001", "big-endian"),
    ("0801 1a04 0802 1002", "version 2 of the format"),
    ("1a02 0801", "names no data file"),
  ],
)
def test_other_kinds_of_checkpoint_are_named(tmp_path, header, message):
  table_with(tmp_path / "x", b"", header=header)
  with pytest.raises(tf_checkpoint.BundleError, match=message):
    tf_checkpoint.read(str(tmp_path / "x"))


def test_a_compressed_index_is_named(bundle):
  prefix, _ = bundle
  path = index_of(prefix)
  data = path.read_bytes()
  # The footer's third number: where the block of blocks begins, and its size.
  _, at = read_varint(data, len(data) - 48)
  _, at = read_varint(data, at)
  offset, at = read_varint(data, at)
  size, _ = read_varint(data, at)
  block = data[offset : offset + size] + b"\1"  # snappy
  end = offset + size + 5
  path.write_bytes(data[:offset] + block + masked(block) + data[end:])
  with pytest.raises(tf_checkpoint.BundleError, match="snappy"):
    tf_checkpoint.read(str(prefix))


def test_names_out_of_order_and_endless_names_are_refused(tmp_path):
  table_with(tmp_path / "x", b"", names=(b"w", b"v"))
  with pytest.raises(tf_checkpoint.BundleError, match="not in order"):
    tf_checkpoint.read_index(str(tmp_path / "x"))
  table_with(tmp_path / "x", b"", names=(b"w" * 5000,))
  with pytest.raises(tf_checkpoint.BundleError, match="name of 5000 bytes"):
    tf_checkpoint.read_index(str(tmp_path / "x"))


def test_a_missing_file_and_a_missing_tensor_are_named(bundle):
  prefix, _ = bundle
  with pytest.raises(tf_checkpoint.BundleError, match="index has no x, y"):
    tf_checkpoint.read(str(prefix), ["y", "x", "global_step"])
  data_of(prefix).unlink()
  with pytest.raises(tf_checkpoint.BundleError, match="a checkpoint is both"):
    tf_checkpoint.read(str(prefix))
  with pytest.raises(tf_checkpoint.BundleError, match="none.index does not ex"):
    tf_checkpoint.read(str(prefix.with_name("none")))


def test_several_data_files_are_read(tmp_path):
  four = bytes.fromhex("0801 1204 1202 0804")
  for shard in range(2):
    values = np.full(4, shard, np.float32).tobytes()
    path = tmp_path / f"x.data-{shard:05d}-of-00002"
    path.write_bytes(values)
  entries = [(b"", bytes.fromhex("0802 1a02 0801"))]
  for shard in range(2):
    place = bytes.fromhex(f"18{shard:02x} 2810 35")
    crc = masked(np.full(4, shard, np.float32).tobytes())
    entries.append((b"vw"[shard : shard + 1], four + place + crc))
  (tmp_path / "x.index").write_bytes(tf_checkpoint._to_table(entries))
  got = tf_checkpoint.read(str(tmp_path / "x"))
  np.testing.assert_array_equal(got["v"], np.zeros(4))
  np.testing.assert_array_equal(got["w"], np.ones(4))


@pytest.mark.parametrize(
  "tensors",
  [
    {"": np.zeros(2)},
    {"w" * 5000: np.zeros(2)},
    {"w": np.array(["text"])},
    {"w": np.zeros(2, np.complex64)},
  ],
)
def test_what_the_format_cannot_hold_is_not_written(tmp_path, tensors):
  with pytest.raises(tf_checkpoint.BundleError):
    tf_checkpoint.write(str(tmp_path / "x"), tensors)
  assert not list(tmp_path.iterdir())
