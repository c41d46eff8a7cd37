"""Reads which devices exchange with each other in a collective."""

import re

import numpy as np

from bert_jax.planning.hlo_text import HloError

Groups = tuple[tuple[int, ...], ...]


def parse_groups(rest: str) -> Groups:
  """Reads the device groups of a collective from its attributes.

  HLO has several notations: lists; `[2,2]<=[4]` and `[2,2]<=[2,2]T(1,0)`, an
  enumeration that is reshaped and transposed; and `mesh['a'=2,'b'=2] {'b'}`,
  the devices that differ along the axes in braces. The last one may also list
  the devices of its mesh: `device_ids=([2,2]T(1,0))`.

  Args:
    rest: the attributes after the operands of the instruction.

  Returns:
    Groups of indices, or the (source, target) pairs of a collective-permute; ()
    if all devices are one group.

  Raises:
    HloError: the groups have another notation.

  Example:
    >>> parse_groups("replica_groups=[2,2]<=[2,2]T(1,0)")
    ((0, 2), (1, 3))
  """
  if match := re.search(
    r"(?:source_target_pairs|replica_groups)=\{((?:\{[^}]*\},?\s*)*)\}", rest
  ):
    lists = re.findall(r"\{([^}]*)\}", match[1])
    return tuple(tuple(_ints(group)) for group in lists)
  if match := re.search(
    r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest
  ):
    return _rows(_device_ids(match[2]), _ints(match[1])[-1])
  if match := re.search(
    r"replica_groups=(?:@\w+|mesh)\[([^\]]*)\]"
    r"(?:,\s*device_ids=\(([^{]*)\))?\s*\{([^}]*)\}",
    rest,
  ):
    axes = [(n, int(s)) for n, s in re.findall(r"'([^']+)'=(\d+)", match[1])]
    return _mesh_groups(axes, _device_ids(match[2] or ""), match[3])
  if match := re.search(r"replica_groups=.{0,80}", rest):
    raise HloError(f"unknown notation of device groups: {match[0]}")
  return ()


def _ints(text: str) -> list[int]:
  return [int(x) for x in re.findall(r"\d+", text)]


def _rows(ids: np.ndarray, width: int) -> Groups:
  return tuple(map(tuple, ids.reshape(-1, width).tolist()))


def _device_ids(text: str) -> np.ndarray:
  """Reads the order of the devices of a mesh; an empty text means all.

  Args:
    text: a list, or an enumeration that is reshaped and transposed, such as
      `[4,2]T(1,0)`.
  """
  match = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text.strip())
  if match is None:
    return np.array(_ints(text), int)
  shape = _ints(match[1])
  order = _ints(match[2]) if match[2] else range(len(shape))
  return np.arange(np.prod(shape)).reshape(shape).transpose(order).ravel()


def _mesh_groups(
  axes: list[tuple[str, int]], ids: np.ndarray, named: str
) -> Groups:
  """Makes groups along axes of a mesh, or along parts of axes.

  `'x':(2)4` names a part of the axis x: for an axis of size 8 there are 2
  groups of 4 members, and the members are 8 / (2 * 4) apart.

  Args:
    axes: the names and sizes of the axes.
    ids: the devices of the mesh in their order; empty = all.
    named: the axes, or parts of axes, along which the groups lie.
  """
  # Every named axis is split into three: before, inside and after the part.
  wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named)
  parts = {name: (int(before or 1), size) for name, before, size in wanted}
  shape: list[int] = []
  inside: list[int] = []
  for name, size in axes:
    if name not in parts:
      shape.append(size)
      continue
    before, members = parts[name]
    count = int(members) if members else size
    inside.append(len(shape) + 1)
    shape.extend((before, count, size // (before * count)))
  if not len(ids):
    ids = np.arange(np.prod(shape))
  grid = np.moveaxis(ids.reshape(shape), inside, range(-len(inside), 0))
  return _rows(grid, int(np.prod([shape[i] for i in inside])))
