"""What tracing found out, kept on disk, so that a second start need not trace.

jax keeps compiled programs, but it finds one by the program that it would
compile, and so it first runs the Python code of the model. For a small model
this takes longer than the rest of a start. Kept here, beside jax's programs:

shapes    the shape and dtype of each parameter of a model
programs  what jax compiled for a batch of one shape, on the CPU

An entry is named by the hash of all that it depends on: the facts that the
caller gives, the files of this package, the versions of the libraries, jax's
settings and the devices. If there is no such entry, or it cannot be read, it is
made again. A program that is read back is the machine code that was compiled
before, so results are bit-equal; it is kept only if it has just shown that.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import hashlib
import itertools
import json
import logging
import os
import platform
import struct
import sys
import time
from typing import Any

import jax
from jax.experimental import serialize_executable

from bert_jax.runtime import compile_cache
from bert_jax.runtime import files

_log = logging.getLogger(__name__)

# Above this, the entries that were not read for the longest time go.
MAX_BYTES = 256 << 20
_PACKAGE = os.path.dirname(os.path.dirname(__file__))
# When this process began to read the package.
_BEGIN_NS = time.time_ns()
# Variables that change how a program is compiled begin with one of these.
_VARIABLES = ("XLA_", "LIBTPU_", "TPU_", "JAX_", "OMP_")
# Settings of jax with one of these words say where programs are kept.
_NO_FACTS = ("cache", "CACHE")


def of_package(*objects: Any) -> bool:
  """Returns whether the classes of all objects are of this package.

  The code of others is not a part of the names of entries, so what it computes
  must not be kept.
  """
  return all(
    type(one).__module__.startswith(f"{__package__.partition('.')[0]}.")
    for one in objects
  )


def shapes(
  facts: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a flat tree, which are read or found by tracing.

  Args:
    facts: all that the shapes depend on, as JSON can hold it.
    make: returns the flat tree: path -> an object with .shape and .dtype.
  """
  entry = _entry("shapes", facts, with_devices=False)
  if (content := _read(entry)) is not None:
    try:
      return {
        path: jax.ShapeDtypeStruct(tuple(sizes), dtype)
        for path, (sizes, dtype) in json.loads(content).items()
      }
    except (ValueError, TypeError, AttributeError):
      _log.debug("%s is damaged; it is made again", entry)
  made = make()
  found = {path: (tuple(x.shape), str(x.dtype)) for path, x in made.items()}
  _write(entry, json.dumps(found).encode())
  return {path: jax.ShapeDtypeStruct(*one) for path, one in found.items()}


class Program:
  """A function under jit, whose compiled programs outlive the process."""

  def __init__(
    self, function: Callable[..., Any], facts: Mapping[str, Any] | None
  ):
    """Prepares a program; nothing is traced yet.

    Args:
      function: function(params, batch), which is traced when no program is
        kept for a batch of that shape.
      facts: all that the function depends on besides the shapes of its
        arguments, as JSON can hold it. None: its programs are not kept.
    """
    self._jitted = jax.jit(function)
    self._facts = facts
    self._compiled: dict[Any, Callable[..., Any]] = {}

  def __call__(self, params: Any, batch: Mapping[str, Any]) -> Any:
    """Computes the function.

    Args:
      params: the tree of parameters, whose shapes and places are the same in
        all calls.
      batch: name -> array.
    """
    if self._facts is None or not _folder() or not _is_on_one_cpu():
      return self._jitted(params, batch)
    key = tuple((name, x.shape, str(x.dtype)) for name, x in batch.items())
    if key not in self._compiled:
      self._compiled[key] = self._make(params, batch)
    return self._compiled[key](params, batch)

  def _make(self, params: Any, batch: Mapping[str, Any]) -> Callable[..., Any]:
    """Reads the program for such a batch, or compiles and keeps it."""
    arguments = {
      jax.tree_util.keystr(path): (x.shape, str(x.dtype), repr(x.sharding))
      for path, x in jax.tree_util.tree_leaves_with_path((params, batch))
    }
    facts = {**self._facts, "arguments": arguments}  # type: ignore[dict-item]
    entry = _entry("programs", facts, with_devices=True)
    if (content := _read(entry)) is not None:
      try:
        found = _load(content, batch)
        compile_cache.count(was_read=True)
        return found
      except Exception as error:  # of another build, or damaged: any error
        _log.debug("%s cannot be read (%s); it is made again", entry, error)
    lowered = self._jitted.lower(params, batch)
    # A program that jax read from its own cache cannot be serialized again.
    with compile_cache.bypassed():
      compiled = lowered.compile()
    compile_cache.count(was_read=False)
    try:
      content = _to_bytes(compiled)
      again = _load(content, batch)(params, batch)
      if _bytes_of(again) == _bytes_of(compiled(params, batch)):
        _write(entry, content)
    except Exception as error:  # jax promises no type
      _log.debug("the program is not kept: %s", error)
    return compiled


# The sizes of the two trees, which stand before the program.
_SIZES = struct.Struct("<2Q")


def _to_bytes(compiled: Any) -> bytes:
  """Returns a compiled program with the trees of its arguments and outputs."""
  program, *trees = serialize_executable.serialize(compiled)
  parts = [tree.serialize_using_proto() for tree in trees]
  return b"".join((_SIZES.pack(*map(len, parts)), *parts, program))


def _load(content: bytes, batch: Mapping[str, jax.Array]) -> Any:
  """Returns the program that was written, for the devices of a batch.

  It is machine code, so only a file of this user may be given.
  """
  first, second = _SIZES.unpack_from(content)
  ends = [_SIZES.size, _SIZES.size + first, _SIZES.size + first + second]
  inputs, outputs = (
    jax.tree_util.PyTreeDef.deserialize_using_proto(
      jax.tree_util.default_registry, content[start:end]
    )
    for start, end in itertools.pairwise(ends)
  )
  return serialize_executable.deserialize_and_load(
    content[ends[-1] :], inputs, outputs, execution_devices=_devices_of(batch)
  )


def _bytes_of(outputs: Any) -> list[bytes]:
  return [x.tobytes() for x in jax.tree.leaves(jax.device_get(outputs))]


def _devices_of(batch: Mapping[str, jax.Array]) -> list[jax.Device]:
  """Returns the devices that a batch lies on, in the order of their mesh."""
  place = next(iter(batch.values())).sharding
  if isinstance(place, jax.sharding.NamedSharding):
    return list(place.mesh.devices.flat)
  return sorted(place.device_set, key=lambda device: device.id)


def _is_on_one_cpu() -> bool:
  """Returns whether one process computes on the CPU.

  On accelerators, where a start takes long for other reasons, jax alone keeps
  programs.
  """
  return jax.default_backend() == "cpu" and jax.process_count() == 1


# --- entries -----------------------------------------------------------------


def _folder() -> str:
  """Returns the folder of the entries; "" if none are kept."""
  own = compile_cache.own_folder()
  return os.path.join(own, "traces") if own and _is_code_of_files() else ""


def _entry(kind: str, facts: Mapping[str, Any], *, with_devices: bool) -> str:
  """Returns the path of an entry; "" if none are kept."""
  folder = _folder()
  if not folder:
    return ""
  known = {"facts": facts, "code": _code()}
  if with_devices:
    known["machine"] = _machine()
  return os.path.join(folder, f"{files.json_hash(known)}.{kind}")


@functools.cache
def _code() -> list[Any]:
  """Returns what tells the code apart: this package's, and versions."""
  import flax
  import jaxlib
  import numpy as np

  digest = hashlib.sha256()
  for path in _sources():
    digest.update(f"{path} {files.stamps(path)}\n".encode())
  versions = [
    jax.__version__, jaxlib.__version__, flax.__version__, np.__version__,
    sys.version,
  ]  # fmt: skip
  return [digest.hexdigest(), *versions]


def _sources() -> Iterator[str]:
  """Yields the paths of this package's modules."""
  for parent, folders, names in os.walk(_PACKAGE):
    folders[:] = sorted(name for name in folders if name != "__pycache__")
    for name in sorted(n for n in names if n.endswith(".py")):
      yield os.path.join(parent, name)


@functools.cache
def _is_code_of_files() -> bool:
  """Returns whether no module was changed since this process has read it."""
  return all(max(files.stamps(path)[1:]) < _BEGIN_NS for path in _sources())


def _machine() -> dict[str, Any]:
  """Returns what compilation depends on besides the code."""
  devices = jax.devices()
  variables = {
    name: value
    for name, value in os.environ.items()
    if name.startswith(_VARIABLES) and not _is_of_cache(name)
  }
  settings = {
    name: repr(value)
    for name, value in jax.config.values.items()
    if not _is_of_cache(name)
  }
  return {
    "cpu": compile_cache.cpu_name(),
    "system": platform.platform(),
    "cores": _num_cores(),
    "devices": [(d.platform, d.device_kind, d.id) for d in devices],
    "runtime": devices[0].client.platform_version,
    "processes": jax.process_count(),
    "variables": variables,
    "settings": settings,
  }


def _num_cores() -> int | None:
  """Returns how many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):  # not on every system
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def _is_of_cache(name: str) -> bool:
  return any(word in name for word in _NO_FACTS)


def _read(entry: str) -> bytes | None:
  """Returns the content of an entry; None if this user has not written it."""
  if not entry:
    return None
  try:
    with files.reading(entry) as f:
      if os.fstat(f.fileno()).st_uid != os.getuid():
        return None
      content = f.read()
    os.utime(entry)
    return content
  except OSError:
    return None


def _write(entry: str, content: bytes) -> None:
  """Writes an entry, and deletes old ones if there are too many."""
  if not entry:
    return
  folder = os.path.dirname(entry)
  try:
    files.make_folders(folder)
    files.write_bytes(entry, content)
    found = []
    for name in files.list_names(folder):
      path = os.path.join(folder, name)
      size, read_at, _ = files.stamps(path)
      found.append((path, size, read_at))
    for path in _oldest_above(found):
      files.delete(path)
  except OSError as error:
    _log.debug("%s is not kept: %s", entry, error)


def _oldest_above(
  entries: Sequence[tuple[str, int, int]], limit: int = MAX_BYTES
) -> list[str]:
  """Returns the entries to delete, so that the rest is small enough.

  Args:
    entries: (path, bytes, when it was last read) of each.
    limit: the most bytes that may stay.
  """
  total, gone = sum(size for _, size, _ in entries), []
  for path, size, _ in sorted(entries, key=lambda one: one[2]):
    if total <= limit:
      break
    gone.append(path)
    total -= size
  return gone
