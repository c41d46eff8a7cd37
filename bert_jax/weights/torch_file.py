"""Reads files that `torch.save` wrote, without torch and without running code.

There are two layouts. The older one is a run of pickles (a magic number, a
version, facts about the machine, the object, the keys of the storages),
followed by the storages. The newer one is a zip archive of data.pkl, which is a
pickle of the object, and of one file for each storage, data/0, data/1, ...

A tensor is a view of a storage: an offset, sizes and strides. All of these are
checked before an array is made.

Source: pytorch/pytorch, torch/serialization.py and torch/_utils.py
"""

from collections.abc import Callable, Mapping
import dataclasses
import io
import math
import os
import struct
from typing import Any, BinaryIO
import zipfile
import zlib

import ml_dtypes
import numpy as np

from bert_jax.runtime import files
from bert_jax.weights import pickled

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
# Name of a class of storages -> the dtype of its elements.
_STORAGES: Mapping[str, np.dtype] = {
  name + "Storage": np.dtype(dtype)
  for name, dtype in {
    "Float": np.float32, "Double": np.float64, "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16, "Long": np.int64, "Int": np.int32,
    "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_,
    "ComplexFloat": np.complex64, "ComplexDouble": np.complex128,
    "Untyped": np.uint8,
  }.items()
}  # fmt: skip
# Name of a dtype of torch -> the dtype here.
_DTYPES: Mapping[str, np.dtype] = {
  name: np.dtype(dtype)
  for name, dtype in {
    "float32": np.float32, "float64": np.float64, "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16, "int64": np.int64, "int32": np.int32,
    "int16": np.int16, "int8": np.int8, "uint8": np.uint8, "bool": np.bool_,
    "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
    "complex64": np.complex64, "complex128": np.complex128,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
  }.items()
}  # fmt: skip
_NAMES = frozenset(
  {("torch", name) for name in (*_STORAGES, *_DTYPES)}
  | {("torch.storage", "UntypedStorage"), ("torch.storage", "TypedStorage")}
)
# Keys under which programs store the parameters among other things.
_STATES = ("model", "state_dict", "model_state_dict", "module", "state")
_MAX_STATES = 4  # the dicts that may lie in each other
# The most dimensions of a tensor.
_MAX_DIMS = 64


class TorchFileError(ValueError):
  """A file is not one of `torch.save`, is damaged, or asks for code."""


@dataclasses.dataclass(frozen=True)
class _Storage:
  """A run of elements in the file.

  Attributes:
    key: its name.
    dtype: the dtype of its elements.
    numel: the number of its elements.
    start: its first element in the storage that the file has.
  """

  key: str
  dtype: np.dtype
  numel: int
  start: int = 0


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A view of a storage, whose elements are not read yet."""

  storage: _Storage
  dtype: np.dtype
  offset: int
  size: tuple[int, ...]
  stride: tuple[int, ...]


def read(path: str | os.PathLike[str]) -> Any:
  """Reads a file that `torch.save` wrote.

  Args:
    path: the file.

  Returns:
    The saved object: plain containers with numpy arrays in the places of
    tensors. An `argparse.Namespace` is a dict of its attributes.

  Raises:
    TorchFileError: the file is damaged, or has more than tensors and plain
      containers; the message names what it has.
  """
  with files.reading(os.fspath(path)) as file:
    return _read(file, path)


def _read(file: BinaryIO, path: str | os.PathLike[str]) -> Any:
  """Reads an open file of either layout."""
  try:
    start = file.read(4)
    file.seek(0)
    if start == b"PK\x03\x04":
      return _read_zip(file)
    return _read_legacy(file)
  except (pickled.PickleError, TorchFileError) as error:
    raise TorchFileError(f"{os.fspath(path)}: {error}") from None
  except (
    zipfile.BadZipFile, struct.error, EOFError, NotImplementedError,
    RuntimeError, ValueError, LookupError, TypeError, OverflowError, OSError,
    zlib.error, AttributeError, MemoryError,
  ) as error:  # fmt: skip
    raise TorchFileError(
      f"{os.fspath(path)}: it is damaged ({error!s:.200})"
    ) from None


def read_state(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads the parameters in a file, which may lie under a key of their own.

  Args:
    path: the file.

  Returns:
    Name -> array. Values that are not tensors are left out.

  Raises:
    TorchFileError: as for `read`, or the file has no parameters.
  """
  return state_of(read(path), path)


def state_of(
  content: Any, path: str | os.PathLike[str]
) -> dict[str, np.ndarray]:
  """Returns the parameters in what `read` has returned; see `read_state`."""
  found = content
  for _ in range(_MAX_STATES):
    if not isinstance(found, dict):
      break
    inner = [found[key] for key in _STATES if isinstance(found.get(key), dict)]
    if inner:
      found = inner[0]
      continue
    arrays = {
      name: value
      for name, value in found.items()
      if isinstance(value, np.ndarray) and isinstance(name, str)
    }
    if arrays:
      return arrays
    break
  keys = (
    ", ".join(str(key) for key in list(content)[:8])
    if isinstance(content, dict)
    else f"a {type(content).__name__}"
  )
  raise TorchFileError(
    f"{os.fspath(path)} has no dict of tensors, neither as a whole nor under "
    f"{', '.join(_STATES)}; it has {keys or 'nothing'}"
  )


# --- the pickle --------------------------------------------------------------


def _is_count(value: Any) -> bool:
  return type(value) is int and 0 <= value < 2**63


def _counts(value: Any, what: str) -> tuple[int, ...]:
  if type(value) not in (tuple, list) or len(value) > _MAX_DIMS:
    raise TorchFileError(f"a tensor's {what} is not a short list of numbers")
  if not all(map(_is_count, value)):
    raise TorchFileError(f"a tensor's {what} is not made of counts")
  return tuple(value)


def _rebuild_tensor(
  storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
) -> _Tensor:
  """Checks the view that a tensor is, and returns it."""
  if not isinstance(storage, _Storage):
    raise TorchFileError("a tensor has no storage")
  size, stride = _counts(size, "size"), _counts(stride, "stride")
  if not _is_count(offset) or len(size) != len(stride):
    raise TorchFileError("a tensor's offset, size and stride do not fit")
  count = math.prod(size)
  last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  if count and offset + last >= storage.numel:
    raise TorchFileError(
      f"a tensor ends at element {offset + last} of a storage of "
      f"{storage.numel}"
    )
  if count > storage.numel:
    raise TorchFileError(
      f"a tensor has {count} elements, which share the {storage.numel} of its "
      "storage; save it with .contiguous()"
    )
  return _Tensor(storage, storage.dtype, offset, size, stride)


def _rebuild_tensor_v3(
  storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any,
  hooks: Any, dtype: Any, *rest: Any,
) -> _Tensor:  # fmt: skip
  """Does the same for a storage of bytes, whose dtype is the tensor's."""
  if not isinstance(storage, _Storage) or not isinstance(dtype, pickled.Global):
    raise TorchFileError("a tensor has no storage or no dtype")
  if dtype.name not in _DTYPES:
    raise TorchFileError(f"a tensor has the dtype {dtype}, which is not read")
  typed = _DTYPES[dtype.name]
  if storage.start % typed.itemsize:
    raise TorchFileError("a storage begins within an element")
  size_of = typed.itemsize // storage.dtype.itemsize or 1
  view = dataclasses.replace(
    storage,
    dtype=typed,
    numel=storage.numel // size_of,
    start=storage.start // size_of,
  )
  return _rebuild_tensor(view, offset, size, stride)


def _device(*args: Any) -> str:
  """Returns the name of a device."""
  if not all(type(arg) in (str, int) for arg in args):
    raise TorchFileError("a device is not a name and a number")
  return ":".join(map(str, args))


def _size(*args: Any) -> tuple[Any, ...]:
  return tuple(args[0]) if args else ()


_CALLS: pickled.Calls = {
  ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
  ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
  ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
  ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
  ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *rest: data,
  ("torch", "Size"): _size,
  ("torch", "device"): _device,
}


def _storage_of(pid: Any) -> _Storage:
  """Returns the storage that a persistent id names."""
  if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
    kind = pid[0] if type(pid) is tuple and pid and type(pid[0]) is str else "?"
    raise TorchFileError(
      f"its pickle refers to a {kind:.60} outside of it; only storages are read"
    )
  _, kind, key, _, numel, *view = pid
  name = kind.name if isinstance(kind, pickled.Global) else "?"
  if name not in _STORAGES:
    raise TorchFileError(f"a storage is a {name:.60}, which is not read")
  if type(key) is not str or not _is_count(numel):
    raise TorchFileError("a storage has no key or no size")
  storage = _Storage(key, _STORAGES[name], numel)
  if view and view[0] is not None:
    if type(view[0]) is not tuple or len(view[0]) != 3:
      raise TorchFileError("a view of a storage is damaged")
    _, start, size = view[0]
    if not (_is_count(start) and _is_count(size)) or start + size > numel:
      raise TorchFileError(
        f"a view ends after the {numel} elements of its storage"
      )
    storage = dataclasses.replace(storage, numel=size, start=start)
  return storage


def _load(file: BinaryIO) -> Any:
  return pickled.load(file, _CALLS, _NAMES, _storage_of)


def _filled(content: Any, array_of: Callable[[_Tensor], np.ndarray]) -> Any:
  """Replaces the tensors in plain containers; shared parts stay shared."""
  done: dict[int, Any] = {}
  kept = []  # so that no id is used again

  def fill(value: Any) -> Any:
    if isinstance(value, _Tensor):
      if id(value) not in done:
        done[id(value)] = array_of(value)
        kept.append(value)
      return done[id(value)]
    if type(value) not in (dict, pickled.Namespace, list, tuple):
      return value
    if id(value) in done:
      return done[id(value)]
    kept.append(value)
    if isinstance(value, dict):
      made: Any = {}
      done[id(value)] = made
      made.update((key, fill(item)) for key, item in value.items())
    elif type(value) is list:
      made = []
      done[id(value)] = made
      made += map(fill, value)
    else:
      made = tuple(map(fill, value))
      done[id(value)] = made
    return made

  try:
    return fill(content)
  except RecursionError:
    raise TorchFileError("its containers are nested too deeply") from None


def _view(tensor: _Tensor, content: bytearray, is_little: bool) -> np.ndarray:
  """Returns the array of a tensor.

  Args:
    tensor: the view.
    content: the bytes of the whole storage.
    is_little: whether they are little-endian.
  """
  dtype = tensor.dtype
  # numpy takes any byte as a bool, and not every byte is one.
  raw = np.dtype(np.uint8) if dtype == np.bool_ else dtype
  elements: np.ndarray = np.frombuffer(content, raw)
  if not is_little and raw.itemsize > 1:
    elements = np.frombuffer(
      elements.view(np.uint8).reshape(-1, raw.itemsize)[:, ::-1].tobytes(), raw
    )
  storage = tensor.storage
  elements = elements[storage.start : storage.start + storage.numel]
  if not math.prod(tensor.size):
    return np.zeros(tensor.size, dtype)
  last = sum(
    (n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True)
  )
  if tensor.offset + last >= len(elements):
    raise TorchFileError(
      f"a tensor ends at element {tensor.offset + last} of a storage of "
      f"{len(elements)}"
    )
  array = np.lib.stride_tricks.as_strided(
    elements[tensor.offset :],
    tensor.size,
    [step * raw.itemsize for step in tensor.stride],
  )
  if dtype == np.bool_:
    return array != 0
  return np.ascontiguousarray(array).reshape(tensor.size)


# --- the two layouts ---------------------------------------------------------


def _read_zip(file: BinaryIO) -> Any:
  """Reads the newer layout."""
  with zipfile.ZipFile(file) as archive:
    entries = {info.filename: info for info in archive.infolist()}
    roots = [
      name.removesuffix("data.pkl")
      for name in entries
      if name.endswith("/data.pkl") or name == "data.pkl"
    ]
    if len(roots) != 1:
      raise TorchFileError(f"it is a zip archive with {len(roots)} data.pkl")
    [root] = roots
    if root + "constants.pkl" in entries:
      raise TorchFileError(
        "it is TorchScript, a program with its weights; save the state dict of "
        "the model"
      )
    total = os.fstat(file.fileno()).st_size

    def bytes_of(name: str) -> bytes:
      info = entries.get(name)
      if info is None:
        raise TorchFileError(f"it lacks {name:.100}")
      if info.compress_type != zipfile.ZIP_STORED or info.file_size > total:
        raise TorchFileError(
          f"{name:.100} is compressed, or larger than the file"
        )
      return archive.read(info)

    order = entries.get(root + "byteorder")
    is_little = order is None or bytes_of(root + "byteorder") == b"little"
    content = _load(io.BytesIO(bytes_of(root + "data.pkl")))
    storages: dict[str, bytearray] = {}

    def array_of(tensor: _Tensor) -> np.ndarray:
      storage = tensor.storage
      if storage.key not in storages:
        name = f"{root}data/{storage.key}"
        wanted = (storage.start + storage.numel) * storage.dtype.itemsize
        size = entries[name].file_size if name in entries else -1
        if size < wanted:
          raise TorchFileError(
            f"{name:.100} has {size} bytes; its tensors need {wanted}"
          )
        storages[storage.key] = bytearray(bytes_of(name))
      return _view(tensor, storages[storage.key], is_little)

    return _filled(content, array_of)


def _read_legacy(file: BinaryIO) -> Any:
  """Reads the older layout."""
  try:
    magic = pickled.load(file, {})
  except pickled.PickleError:
    magic = None
  if magic != _MAGIC:
    raise TorchFileError(
      "it is not a file of torch.save: it is neither a zip archive nor begins "
      "with the number of the older layout"
    )
  if pickled.load(file, {}) != _PROTOCOL:
    raise TorchFileError(f"its version is not {_PROTOCOL}")
  facts = pickled.load(file, {})
  is_little = not isinstance(facts, dict) or facts.get("little_endian", True)
  sizes: dict[str, tuple[np.dtype, int]] = {}

  def storage_of(pid: Any) -> _Storage:
    storage = _storage_of(pid)
    entry = (storage.dtype, pid[4])
    if sizes.setdefault(storage.key, entry) != entry:
      raise TorchFileError(f"storage {storage.key:.60} has two sizes")
    return storage

  content = pickled.load(file, _CALLS, _NAMES, storage_of)
  keys = pickled.load(file, {})
  # Containers could take for ever to print.
  is_list = type(keys) is list and all(type(k) in (str, int) for k in keys)
  if not is_list or {*map(str, keys)} != sizes.keys():
    raise TorchFileError("its list of storages does not fit its tensors")
  end = os.fstat(file.fileno()).st_size
  storages: dict[str, bytearray] = {}
  for key in map(str, keys):
    dtype, numel = sizes[key]
    (stated,) = struct.unpack("<q" if is_little else ">q", file.read(8))
    size = numel * dtype.itemsize
    if stated != numel or size > end - file.tell():
      raise TorchFileError(
        f"storage {key:.60} has {stated} elements where {numel} are wanted, or "
        "is truncated"
      )
    storages[key] = bytearray(file.read(size))
  return _filled(
    content,
    lambda tensor: _view(tensor, storages[tensor.storage.key], is_little),
  )
