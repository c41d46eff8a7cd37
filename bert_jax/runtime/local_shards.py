"""The part of a state that the devices of one process hold, as one file.

A file is: a line that names the format, the size and the CRC-32 of the header,
the header in JSON, and the bytes of the pieces, one after the other. A piece is
the part of an array that one or more devices of the process hold. The header
contains the CRC-32 of each piece, so that damage of any byte is found.

Files of this format are for the next session of the same run, and not for
exchange: they live on the disks of the machines that compute.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import json
import struct
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.runtime import errors
from bert_jax.runtime import files

_MAGIC = b"bert_jax local step 1\n"
_SIZES = struct.Struct("<QI")  # the size of the header, and its CRC-32


class DamageError(errors.UserError):
  """A file is not what was written."""


@dataclasses.dataclass(frozen=True)
class Header:
  """The facts at the beginning of a file, before its arrays.

  Attributes:
    run: the identity of the run.
    session: the identity of the session that wrote it. Files of different
      sessions are never parts of one step, because a run may have been resumed
      with other settings in between.
    step: the number of updates.
    process: the number of the process whose part it is.
    digest: the digest of the layout of the part; see `digest`.
    sizes: the bytes of each piece.
    sums: the CRC-32 of each piece.
  """

  run: str
  session: str
  step: int
  process: int
  digest: str
  sizes: list[int]
  sums: list[int]


def _bounds(index: Any, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
  """Returns the start and the end of each axis of a part of an array."""
  return tuple(
    part.indices(size)[:2] for part, size in zip(index, shape, strict=True)
  )


def _leaves(tree: Any) -> list[tuple[str, Any]]:
  return [
    (jax.tree_util.keystr(path), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]


def digest(tree: Any, process: int) -> str:
  """Returns a digest of which parts of which arrays a process holds.

  Processes that hold the same parts, such as those of plain data parallelism,
  have the same digest: the file of one serves the other.

  Args:
    tree: arrays of jax, or their shapes with shardings.
    process: the number of the process.
  """
  found = []
  for name, x in _leaves(tree):
    parts = {
      _bounds(index, x.shape)
      for device, index in x.sharding.devices_indices_map(x.shape).items()
      if device.process_index == process
    }
    found.append([name, str(x.dtype), x.shape, sorted(parts)])
  return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:32]


def take(tree: Any) -> list[np.ndarray]:
  """Copies the pieces of this process to the host, in the order of a file.

  Args:
    tree: arrays of jax, which may be donated afterwards.
  """
  parts = [piece for _, x in _leaves(tree) for piece in _pieces(x)]
  for piece in parts:
    piece.copy_to_host_async()
  return [np.array(piece) for piece in parts]  # on a CPU, it would be a view


def _pieces(x: jax.Array) -> list[jax.Array]:
  """Returns the different parts of an array on devices of this process."""
  found: dict[Any, jax.Array] = {}
  for shard in x.addressable_shards:
    found.setdefault(_bounds(shard.index, x.shape), shard.data)
  return [found[bounds] for bounds in sorted(found)]


def place(wanted: Any, pieces: Sequence[np.ndarray]) -> Any:
  """Puts pieces on the devices of this process.

  Args:
    wanted: a tree of jax.ShapeDtypeStruct with shardings.
    pieces: what `take` returned for arrays of the same layout.

  Returns:
    The tree of arrays.
  """
  rest = iter(pieces)

  def build(x):
    devices = x.sharding.addressable_devices_indices_map(x.shape)
    parts = {d: _bounds(index, x.shape) for d, index in devices.items()}
    own = {bounds: next(rest) for bounds in sorted(set(parts.values()))}
    # Two devices must not share the memory of one array: it is donated.
    arrays = [
      jax.device_put(own[bounds], device, may_alias=False)
      for device, bounds in parts.items()
    ]
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, arrays)

  return jax.tree.map(build, wanted)


def read_pieces(path: str, header: Header, wanted: Any) -> list[np.ndarray]:
  """Reads the pieces of a file, and compares them with their sums.

  Args:
    path: the file.
    header: its header.
    wanted: a tree of jax.ShapeDtypeStruct with shardings, of the same digest.

  Raises:
    DamageError: a byte is not what was written.
    OSError: the file cannot be read.
  """
  shapes = []
  for _, x in _leaves(wanted):
    devices = x.sharding.addressable_devices_indices_map(x.shape)
    for bounds in sorted({_bounds(i, x.shape) for i in devices.values()}):
      shapes.append(([end - start for start, end in bounds], x.dtype))
  return [
    np.frombuffer(data, jnp.dtype(dtype)).reshape(shape)
    for data, (shape, dtype) in zip(
      _read_parts(path, header), shapes, strict=True
    )
  ]


def write(path: str, header: Header, pieces: Sequence[np.ndarray]) -> None:
  """Writes a file, atomically.

  Args:
    path: the file.
    header: its header, whose sizes and sums are not filled in yet.
    pieces: from `take`.
  """
  views = [
    np.ascontiguousarray(x).reshape(-1).view(np.uint8).data for x in pieces
  ]
  header = dataclasses.replace(
    header, sizes=[len(x) for x in views], sums=[zlib.crc32(x) for x in views]
  )
  text = json.dumps(dataclasses.asdict(header)).encode()
  with files.writing(path) as f:
    f.write(_MAGIC + _SIZES.pack(len(text), zlib.crc32(text)) + text)
    for view in views:
      f.write(view)


def read_header(path: str) -> Header:
  """Reads the header of a file.

  Raises:
    DamageError: it is not what was written.
    OSError: the file cannot be read.
  """
  with files.reading(path) as f:
    return _header_of(path, f)


def _header_of(path: str, file: Any) -> Header:
  try:
    if file.read(len(_MAGIC)) != _MAGIC:
      raise ValueError("it is of another format")
    size, total = _SIZES.unpack(file.read(_SIZES.size))
    text = file.read(min(size, files.size(path)))
    if zlib.crc32(text) != total:
      raise ValueError("its header is not what was written")
    return Header(**json.loads(text))
  except (ValueError, TypeError, struct.error) as error:
    raise DamageError(f"{path} is damaged: {error}") from error


def check(path: str) -> Header:
  """Reads a whole file, compares its sums, and returns its header.

  Raises:
    DamageError: a byte is not what was written.
    OSError: the file cannot be read.
  """
  header = read_header(path)
  for _ in _read_parts(path, header):
    pass
  return header


def _read_parts(path: str, header: Header) -> Iterator[bytes]:
  with files.reading(path) as f:
    _header_of(path, f)
    for i, (size, total) in enumerate(
      zip(header.sizes, header.sums, strict=True)
    ):
      data = f.read(size)
      if len(data) != size or zlib.crc32(data) != total:
        raise DamageError(f"{path} is damaged: piece {i} is not what was saved")
      yield data
    if f.read(1):
      raise DamageError(f"{path} is damaged: it is too long")
