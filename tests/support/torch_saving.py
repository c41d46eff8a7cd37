"""Writes the two layouts of torch.save, also with odd or wrong content."""

import dataclasses
import io
import pickle
import struct
from typing import Any
import zipfile

import numpy as np

KINDS = {
  "float32": "Float", "float64": "Double", "float16": "Half",
  "bfloat16": "BFloat16", "int64": "Long", "int32": "Int", "int16": "Short",
  "int8": "Char", "uint8": "Byte", "bool": "Bool", "complex64": "ComplexFloat",
  "complex128": "ComplexDouble",
}  # fmt: skip


@dataclasses.dataclass
class Tensor:
  """A view of a storage."""

  storage: np.ndarray
  offset: Any
  size: Any
  stride: Any


class _Name:
  """A global of another module, which need not exist here."""

  def __init__(self, module, name):
    self.module, self.name = module, name


class _Call:
  def __init__(self, name, args):
    self.name, self.args = name, args


class _Storage:
  def __init__(self, pid):
    self.pid = pid


class _Pickler(pickle._Pickler):  # the one in Python, which can be extended
  def persistent_id(self, obj):
    return obj.pid if isinstance(obj, _Storage) else None

  def save(self, obj, save_persistent_id=True):
    if isinstance(obj, _Name):
      if self.proto < 4:
        text = f"c{obj.module}\n{obj.name}\n".encode()
        self.write(text)
      else:
        super().save(obj.module)
        super().save(obj.name)
        self.write(pickle.STACK_GLOBAL)
    elif isinstance(obj, _Call):
      self.save(obj.name)
      self.save(obj.args)
      self.write(pickle.REDUCE)
    else:
      super().save(obj, save_persistent_id)


def save(path, content, layout, protocol=2, byteorder="little", storage=None):
  """Writes a file.

  Args:
    path: of the file.
    content: containers with arrays or `Tensor`s in the places of tensors.
    layout: "zip" or "legacy".
    protocol: of the pickle.
    byteorder: of the storages, for "zip".
    storage: changes to the persistent ids: module, kind, numel or tag.
  """
  arrays: dict[int, tuple[str, np.ndarray]] = {}
  change = {} if storage is None else storage

  def tensor(value):
    array = value.storage if isinstance(value, Tensor) else value
    key, _ = arrays.setdefault(id(array), (str(len(arrays)), array))
    kind = change.get("kind", KINDS[array.dtype.name] + "Storage")
    numel = change.get("numel", array.size)
    name = _Name(change.get("module", "torch"), kind)
    pid = (change.get("tag", "storage"), name, key, "cpu", numel)
    if layout == "legacy":
      pid = (*pid, None)
    if isinstance(value, Tensor):
      view = (value.offset, value.size, value.stride)
    else:
      strides = [s // array.itemsize for s in array.strides]
      view = (0, array.shape, tuple(strides))
    args = (_Storage(pid), *view, False, _Call(_ODICT, ()))
    return _Call(_Name("torch._utils", "_rebuild_tensor_v2"), args)

  def convert(value, seen):
    if isinstance(value, np.ndarray | Tensor):
      return tensor(value)
    if id(value) in seen:
      return seen[id(value)]
    made = value
    if type(value) in (list, tuple):
      made = type(value)(convert(item, seen) for item in value)
    elif isinstance(value, dict):
      items = [(k, convert(v, seen)) for k, v in value.items()]
      made = type(value)(items)
    seen[id(value)] = made
    return made

  converted = convert(content, {})
  if layout == "zip":
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("archive/data.pkl", _dumps(converted, protocol))
      archive.writestr("archive/byteorder", byteorder)
      for key, array in arrays.values():
        swapped = array if byteorder == "little" else array.byteswap()
        archive.writestr(f"archive/data/{key}", swapped.tobytes())
      archive.writestr("archive/version", "3\n")
    return
  with open(path, "wb") as file:
    for fact in (
      0x1950A86A20F9469CFC6C, 1001,
      {"protocol_version": 1001, "little_endian": True, "type_sizes": {}},
    ):  # fmt: skip
      file.write(_dumps(fact, 2))
    file.write(_dumps(converted, protocol))
    file.write(_dumps([key for key, _ in arrays.values()], 2))
    for _, array in arrays.values():
      size = change.get("numel", array.size)
      file.write(struct.pack("<q", size) + array.tobytes())


_ODICT = _Name("collections", "OrderedDict")


def _dumps(value, protocol):
  file = io.BytesIO()
  _Pickler(file, protocol).dump(value)
  return file.getvalue()
