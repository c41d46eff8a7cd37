"""Checksums of the arrays of a saved step, by which damage is found.

A step contains a number for each of its arrays. A change of any one element of
the array changes the number. It does not depend on the mesh that writes or
reads the step, and is equal on devices and on the host.
"""

from collections.abc import Collection, Mapping
import functools
import json
import logging
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps

_log = logging.getLogger(__name__)

# Keys of the rest of a state that were added after the checksums.
_ADDED_KEYS = frozenset({"guard", "train_loss"})
_CHUNK = 1 << 16  # elements whose checksum is computed in the processor's cache
_SPREAD = np.uint32(0x9E3779B9)  # odd, so that places stay different


def sums(**trees: Any) -> dict[str, int]:
  """Returns one number for each array, which depends on all of its bits.

  Args:
    **trees: of numpy arrays, or of jax's, over any mesh. An element of a jax
      array has 4 bytes or less.

  Returns:
    {"params/encoder/...": sum}.
  """
  found: dict[str, int] = {}
  # One program for all arrays of a mesh: several at once, each with its own
  # exchange between hosts, could deadlock.
  groups: dict[frozenset, dict[str, jax.Array]] = {}
  for name, x in _named_leaves(trees):
    found[name] = 0  # in the order of the tree
    if isinstance(x, jax.Array):
      groups.setdefault(frozenset(x.sharding.device_set), {})[name] = x
    else:
      found[name] = _sum_on_host(np.asarray(x))
  for group in groups.values():
    values = jax.device_get(_sums_on_devices(list(group.values())))
    found |= {n: int(x) for n, x in zip(group, values, strict=True)}
  return found


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
  """Returns (name, leaf), such as ("params/encoder/...", array)."""
  return [
    (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]


def _mix(bits: Any, places: Any) -> Any:
  """Mixes the bits of elements with their places, all of uint32.

  Different bits stay different (multiplication by an odd number and the shifts
  can be undone), so that one changed element always shows in a sum.
  """
  bits = bits ^ places
  bits = (bits ^ (bits >> 16)) * np.uint32(0x7FEB352D)
  bits = (bits ^ (bits >> 15)) * np.uint32(0x846CA68B)
  return bits ^ (bits >> 16)


@jax.jit
def _sums_on_devices(arrays: list[jax.Array]) -> list[jax.Array]:
  def add_up(x):
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
      place = place * size + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = _mix(bits.astype(jnp.uint32), place * _SPREAD)
    return jnp.sum(mixed, dtype=jnp.uint32)

  return [add_up(x) for x in arrays]


def _sum_on_host(x: np.ndarray) -> int:
  """Returns the checksum of an array on the host, a chunk at a time."""
  flat = np.ascontiguousarray(x).reshape(-1)
  size = min(flat.dtype.itemsize, 4)  # wider ones are taken in two halves
  flat = flat.view(f"uint{8 * size}")
  places = np.arange(_CHUNK, dtype=np.uint32) * _SPREAD
  total = 0
  for start in range(0, flat.size, _CHUNK):
    bits = flat[start : start + _CHUNK].astype(np.uint32)
    shift = np.uint32(start * int(_SPREAD) & 0xFFFFFFFF)
    mixed = _mix(bits, places[: bits.size] + shift)
    total += int(np.sum(mixed, dtype=np.uint64))
  return total & 0xFFFFFFFF


def find_damage(folder: str, found: Mapping[str, int]) -> str:
  """Describes the damaged parts of a step; "" = no part is damaged.

  Args:
    folder: the folder of the step.
    found: the checksums of the parts as they were read, from `sums`.
  """
  try:
    path = os.path.join(folder, "_CHECKPOINT_METADATA")
    with files.reading(path, "r") as file:
      items = json.load(file)["item_handlers"]
    if "sums" not in items and not files.exists(os.path.join(folder, "sums")):
      if not _predates_sums(folder, items):
        return "its checksums are gone"
      _tell_of_old(folder)
      return ""
    saved = _saved_sums(folder)
  except files.UNREADABLE:
    raise
  except files.ODD_JSON as error:
    return f"{error!r:.300}"
  read = {name.partition("/")[0] for name in found}
  names = {name for name in saved if name.partition("/")[0] in read}
  bad = sorted(
    name for name in names | set(found) if saved.get(name) != found.get(name)
  )
  if bad:
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"{bad[0]}{more} is not what was saved"
  # The sum of a number depends on nothing else.
  step = os.path.basename(folder)
  if saved.get("rest/step") != _sum_on_host(np.array(int(step), np.int32)):
    return (
      f"it is not step {step}, but a copy of another step, or another step "
      "that was renamed"
    )
  return ""


def _saved_sums(folder: str) -> dict[str, int]:
  path = os.path.join(folder, "sums", "metadata")
  with files.reading(path, "r") as file:
    return dict(json.load(file))


def _predates_sums(folder: str, items: Collection[str]) -> bool:
  """Returns whether the release that wrote a step wrote no checksums yet.

  The record of a run contains the first step with checksums, except for earlier
  releases. A state with a guard was written by a release with checksums,
  because the guard was added later.

  Args:
    folder: the folder of the step.
    items: the names of the parts of the step.
  """
  workdir = os.path.dirname(os.path.dirname(folder))
  run: dict[str, Any] = {}
  if runs.exists(workdir):
    run = runs.read_run(workdir)
  if int(os.path.basename(folder)) >= run.get("checksums_since", math.inf):
    return False
  if "rest" not in items:
    return "converted_from" in run
  return not _ADDED_KEYS & _keys_of_rest(folder)


@functools.cache
def _tell_of_old(folder: str) -> None:
  """Logs once that a step is not checked."""
  _log.info("%s predates checksums; skipping its verification", folder)


def _paths_of_rest(folder: str) -> set[str]:
  """Returns the paths of the state that a step contains beside the parameters.

  Raises:
    One of files.ODD_JSON: its metadata is damaged.
  """
  with files.reading(os.path.join(folder, "rest", "_METADATA"), "r") as file:
    keys = json.load(file)["tree_metadata"].values()
  return {"/".join(str(x["key"]) for x in key["key_metadata"]) for key in keys}


def _keys_of_rest(folder: str) -> set[str]:
  """Returns the first parts of these paths; raises as `_paths_of_rest`."""
  return {path.partition("/")[0] for path in _paths_of_rest(folder)}


def _check_frozen(folder: str, paths: Collection[str], rest: Any) -> None:
  """Raises ValueError for a step of a version before 0.3.0 with frozen parts.

  Where an optimizer has no moments, it kept one mark for a whole part of the
  model, and now keeps one for each parameter.

  Args:
    folder: the folder of the step.
    paths: its paths, from `_paths_of_rest`.
    rest: the state that is wanted.
  """

  def is_mark(x: Any) -> bool:
    return isinstance(x, tuple) and not x

  leaves = jax.tree_util.tree_leaves_with_path(rest, is_leaf=is_mark)
  for path, leaf in leaves:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    parts = name.split("/")
    above = {"/".join(parts[:count]) for count in range(1, len(parts))}
    if is_mark(leaf) and above & set(paths):
      raise ValueError(
        "a development version before 0.3.0 wrote the moments of a run with "
        "frozen parts (distillation) in another form, so the run cannot go on; "
        f"start from its weights, with --config.init_from={folder} and another "
        "--workdir (init_moments=False), or go on with that version"
      )


def saved_part(folder: str, rest: Any) -> Any:
  """Returns the keys of a state that a step of an older release contains, too.

  Args:
    folder: the folder of the step.
    rest: the state beside the parameters, by key.

  Raises:
    ValueError: see `_check_frozen`.
  """
  try:
    paths = _paths_of_rest(folder)
  except files.UNREADABLE:
    raise
  except files.ODD_JSON:
    return rest  # reading the step raises an error that says why
  _check_frozen(folder, paths, rest)
  names = {path.partition("/")[0] for path in paths}
  if not set(rest) - names <= _ADDED_KEYS:
    return rest
  return {name: value for name, value in rest.items() if name in names}


def find_missing(folder: str) -> str:
  """Describes what a step that has just been saved lacks; "" = nothing.

  Only the first host checks this, by names and metadata. Damage by a power cut
  or a bad disk is found by the checksums when the step is read.

  Args:
    folder: the folder of the step.
  """
  if jax.process_index() != 0:
    return ""
  parent, step = os.path.split(folder)
  if int(step) not in saved_steps.steps_in(parent):
    return f"{folder} is not there"
  try:
    wanted = set(_saved_sums(folder))
    shapes = {
      item: shapes_of(os.path.join(folder, item))
      for item in {"params", "rest", *(name.split("/")[0] for name in wanted)}
    }
  except Exception as error:  # tensorstore's and orbax's errors have no base
    return errors.first_line(error)
  lost = sorted(wanted ^ {name for name, _ in _named_leaves(shapes)})
  return f"it has no {', '.join(lost)}"[:500] if lost else ""


def shapes_of(path: str) -> Any:
  """Returns the shapes and types of the arrays of an item, from their metadata.

  Raises:
    Exception: the metadata cannot be read. The errors of tensorstore and Orbax
      have no common base.
  """
  with ocp.PyTreeCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(path)
  tree = getattr(metadata, "item_metadata", metadata)
  if tree is None:
    raise ValueError(f"the metadata of {path} cannot be read")
  return tree.tree
