"""Places arrays on the devices: the mesh, the sharding rules, the batch.

The mesh has three axes, in this order. An axis of size 1 costs nothing.

  data    copies of the model, each with its own rows of the batch
  fsdp    shards the rows of the batch, and the parameters, which are gathered
          when they are used
  tensor  shards the heads, the MLP and the vocabulary, but not the rows

Several slices, which only a slow network connects, hold whole copies of the
model each: the axis in front, "data" or "seed", goes over the slices first, so
that the other axes stay inside of one. TPUs say which slice they belong to; of
other devices mesh.num_slices says it, and a slice is a group of processes.

If several models train together (members.py), there is one more axis in front:

  seed    independent models

A rule is `(regex, axes)`. The first rule whose regex is found in the path of a
parameter (`encoder/layers/mlp/in/kernel`) applies to it. `axes` names the mesh
axes that shard the *trailing* dimensions, so that rules never shard the leading
layer axis of scanned layers. The paths of the optimizer's moments end like
those of the parameters, so the rules place the whole train state. The moments
may also be sharded over "data" (`spread`), along any dimension, but not over
several slices.

The compiler derives the rest from the sharding of the state, the sharding of
the batch, and `constrain_batch` on activations. Without `constrain_batch` it
may choose to gather the batch rather than the parameters.
"""

from collections.abc import Sequence
import itertools
import math
import re
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.experimental import multihost_utils
import numpy as np

from bert_jax.runtime import settings

P = jax.sharding.PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
SEED_AXIS = "seed"
BATCH_AXES = ("data", "fsdp")

# One entry per trailing dimension: not sharded, or sharded over one or several
# mesh axes.
Axes = tuple[str | tuple[str, ...] | None, ...]
Rules = Sequence[tuple[str, Axes]]
Tree = Any


def make_mesh(
  data: int,
  fsdp: int,
  tensor: int,
  devices: Sequence[Any] | None = None,
  seed: int | None = None,
  num_slices: int = 0,
) -> jax.sharding.Mesh:
  """Returns a mesh with the axes ("data", "fsdp", "tensor").

  The axes are of type Auto, so the compiler places whatever is not constrained.
  Devices are ordered so that neighbours on an axis are neighbours on the chip
  network where that is possible. If there are several TPU slices, which only
  the slow data-centre network connects, each holds whole copies of the model.

  Args:
    data: the size of the "data" axis; -1 = all remaining devices.
    fsdp: the size of the "fsdp" axis, or -1.
    tensor: the size of the "tensor" axis, or -1. Only one size may be -1.
    devices: the devices to use, all of them; None = `jax.devices()`.
    seed: the size of an additional axis "seed" in front; None = no such axis.
    num_slices: how many slices the devices belong to; 0 = as many as they say,
      or else one.

  Raises:
    ValueError: the product of the sizes is not the number of devices, the
      number of slices is wrong, or a copy of the model would lie on several
      slices.

  Example:
    >>> make_mesh(data=-1, fsdp=1, tensor=1).axis_names
    ('data', 'fsdp', 'tensor')
  """
  devices = list(jax.devices() if devices is None else devices)
  axes: tuple[str, ...] = MESH_AXES
  wanted: tuple[int, ...] = (data, fsdp, tensor)
  if seed is not None:
    axes, wanted = (SEED_AXIS, *axes), (seed, *wanted)
  sizes = _fill_mesh_sizes(axes, wanted, len(devices))
  slices = _slices(devices, num_slices)
  first, *rest = sizes
  if first % len(slices):
    kind = "TPU slices" if devices[0].platform == "tpu" else "slices"
    raise ValueError(
      f"the devices belong to {len(slices)} {kind}, but mesh.{axes[0]}="
      f"{first} is not divisible by {len(slices)}: only whole copies of the "
      f"model may lie on different slices; set mesh.{axes[0]} to a multiple "
      "of the slices"
    )
  grid = np.concatenate(
    [
      mesh_utils.create_device_mesh(
        (first // len(slices), *rest), inside, allow_split_physical_axes=True
      )
      for inside in slices
    ]
  )
  auto = (jax.sharding.AxisType.Auto,) * len(axes)
  return jax.sharding.Mesh(grid, axes, axis_types=auto)


def _slices(devices: Sequence[Any], num_slices: int) -> list[list[Any]]:
  """Returns the devices of each slice.

  Args:
    devices: the devices of all slices.
    num_slices: see `make_mesh`.

  Raises:
    ValueError: the devices belong to another number of slices, or a process
      would belong to several.
  """
  found: dict[int, list[Any]] = {}
  if devices[0].platform == "tpu":
    for one in devices:
      found.setdefault(getattr(one, "slice_index", 0), []).append(one)
    if num_slices not in (0, len(found)):
      raise ValueError(
        f"mesh.num_slices={num_slices}, but the TPUs belong to {len(found)} "
        f"slices; use {len(found)}, or 0 for as many as there are"
      )
    return [found[index] for index in sorted(found)]
  if num_slices < 2:
    return [list(devices)]
  for one in devices:
    found.setdefault(one.process_index, []).append(one)
  hosts = [found[index] for index in sorted(found)]
  if len(hosts) > 1 and len(hosts) % num_slices:
    raise ValueError(
      f"mesh.num_slices={num_slices} does not divide the {len(hosts)} processes"
      " of the job; each slice has the same number of processes"
    )
  if len(hosts) == 1:  # for trying it out: a slice is some of the devices
    hosts = [[one] for one in devices]
  if len(hosts) % num_slices:
    raise ValueError(
      f"mesh.num_slices={num_slices} does not divide the {len(hosts)} devices"
    )
  size = len(hosts) // num_slices
  groups = (hosts[i : i + size] for i in range(0, len(hosts), size))
  return [[one for host in group for one in host] for group in groups]


def connect(mesh: jax.sharding.Mesh) -> None:
  """Connects the processes along every combination of the mesh axes.

  If CPUs of several processes compute together, the first exchange within a
  group of processes connects them, and fails after 30 seconds. Later exchanges
  wait without limit. So the first one must happen when all processes are
  present, and not after compiling, which takes some processes longer.
  """
  multihost_utils.sync_global_devices("connect")
  axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
  for size in range(1, len(axes) + 1):
    for group in itertools.combinations(axes, size):
      exchange = jax.shard_map(
        lambda group=group: jax.lax.psum(jax.lax.axis_index(group), group),
        mesh=mesh,
        in_specs=(),
        out_specs=P(),
        check_vma=False,
      )
      jax.block_until_ready(jax.jit(exchange)())


def _fill_mesh_sizes(
  axes: Sequence[str], sizes: Sequence[int], num_devices: int
) -> tuple[int, ...]:
  """Returns the sizes, with -1 replaced by the number of remaining devices."""
  num_free = sizes.count(-1)
  known = math.prod(n for n in sizes if n != -1)
  fits = num_free <= 1 and all(n == -1 or n > 0 for n in sizes)
  if not fits or num_devices % known or (not num_free and known < num_devices):
    given = " x ".join(f"{a}={n}" for a, n in zip(axes, sizes, strict=True))
    raise ValueError(
      f"mesh {given} does not fit the {num_devices} devices: the product of "
      f"its sizes must be {num_devices}; change them, or set one size to -1 for"
      " the remaining devices"
    )
  return tuple(num_devices // known if n == -1 else n for n in sizes)


def constrain_batch(x: jax.Array) -> jax.Array:
  """Shards the first dimension of an activation over the batch axes.

  Call it after the embedding and after every layer. If "fsdp" shards the
  parameters, the compiler may otherwise replicate the batch and sum activations
  of all rows over the devices, which needs many times the memory.

  Args:
    x: [B, ...], at least one dimension.

  Returns:
    x with a sharding constraint. It is unchanged if no mesh is set by
    `jax.set_mesh`, if the mesh lacks these axes or they are manual
    (`jax.shard_map`), or if x is a concrete array outside of `jit`.
  """
  if not isinstance(x, jax.core.Tracer):
    return x
  mesh = jax.sharding.get_abstract_mesh()
  auto = jax.sharding.AxisType.Auto
  is_auto = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  if any(is_auto.get(axis) != auto for axis in BATCH_AXES):
    return x
  spec = P(BATCH_AXES, *(None,) * (x.ndim - 1))
  return jax.lax.with_sharding_constraint(x, spec)


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  """Returns the sharding of a [B, ...] array: rows over "data" and "fsdp"."""
  return jax.sharding.NamedSharding(mesh, P(BATCH_AXES))


def of_members(place: Tree, mesh: jax.sharding.Mesh) -> Tree:
  """Returns the shardings of the arrays of several models, stacked on axis 0.

  Args:
    place: the shardings of the arrays of one model.
    mesh: a mesh with the axis "seed".
  """
  return jax.tree.map(
    lambda one: jax.sharding.NamedSharding(mesh, P(SEED_AXIS, *one.spec)), place
  )


def check_batch_size(
  batch_size: int, mesh: jax.sharding.Mesh, num_micro_batches: int = 1
) -> None:
  """Checks that every device gets the same number of rows.

  Args:
    batch_size: the number of rows B of the global batch.
    mesh: the mesh, from `make_mesh`.
    num_micro_batches: into how many parts the rows of a device are split.

  Raises:
    ValueError: the rows are not divisible; names the nearest sizes that are.
  """
  sizes = {axis: mesh.shape[axis] for axis in BATCH_AXES}
  num_groups = math.prod(sizes.values())
  unit = num_groups * num_micro_batches
  if batch_size > 0 and batch_size % unit == 0:
    return
  tensor = mesh.shape["tensor"]
  what = f"{num_groups} devices"
  if tensor > 1:
    what = f"{num_groups} groups of {tensor} devices"
  if num_micro_batches > 1:
    what += f" x {num_micro_batches} micro-batches"
  where = " x ".join(
    f"{axis}={n}" for axis, n in sizes.items() if n > 1 or axis == "data"
  )
  lower = batch_size // unit * unit
  near = f"{lower} or {lower + unit}" if lower > 0 else f"{unit}"
  raise ValueError(
    f"batch_size={batch_size} is not divisible by {what} (mesh {where});"
    f" use {near}"
  )


def local_rows(place: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
  """Returns the rows of the global batch that this process's devices hold.

  Args:
    place: the sharding of the batch.
    batch_size: the number of rows B of the global batch.
  """
  slices = place.addressable_devices_indices_map((batch_size,)).values()
  return np.unique(
    np.concatenate([np.arange(batch_size)[rows] for rows in slices if rows])
  )


def put_global_batch(batch: Tree, sharding: jax.sharding.NamedSharding) -> Tree:
  """Assembles global arrays from the rows of each process.

  Every process calls this with its own rows, and no data is sent between hosts.
  If the "tensor" axis spans processes, these must pass equal rows.

  Args:
    batch: a tree of numpy arrays [rows of this process, ...].
    sharding: the sharding of the batch, from `batch_sharding`.

  Returns:
    The tree with global arrays [B, ...].
  """
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    batch,
  )


def state_sharding(
  abstract_tree: Tree,
  mesh: jax.sharding.Mesh,
  rules: Rules,
  spread: str = "",
  num_slices: int = 1,
) -> Tree:
  """Returns the shardings of parameters, or of a whole train state, by rules.

  Args:
    abstract_tree: a tree whose leaves have a shape: parameters, or a train
      state of step, parameters and optimizer state (see `jax.eval_shape`).
    mesh: the mesh, from `make_mesh`.
    rules: `(regex, axes)` pairs; see the top of this file. `axes` has an entry
      for each trailing dimension: None, an axis, or a tuple of axes.
    spread: a regex. Arrays in whose path it is found are also sharded over
      "data", if one of their dimensions is divisible, so that each copy of the
      model holds a share of them. "" = no arrays.
    num_slices: the slices that "data" goes over. Arrays are not spread over
      several, so that no parameters have to cross between them.

  Returns:
    The tree with a `NamedSharding` in place of each leaf. Scalars need no rule;
    they are replicated.

  Raises:
    ValueError: a rule is malformed, names an axis twice, names an axis that the
      mesh lacks, or has more entries than a parameter has dimensions; no rule
      applies to a parameter; or a dimension is not divisible by its axes.

  Example:
    >>> mesh = make_mesh(data=-1, fsdp=1, tensor=1)
    >>> params = {"mlp": {"kernel": jax.ShapeDtypeStruct((4, 8), "float32")}}
    >>> rules = ((r"mlp/kernel$", ("fsdp", "tensor")),)
    >>> state_sharding(params, mesh, rules)["mlp"]["kernel"].spec
    P('fsdp', 'tensor')
  """
  for rule in rules:
    _check_rule(rule, mesh)
  lost: list[str] = []
  inside = _inside_slices(mesh, num_slices)

  def place(path: Any, leaf: Any) -> jax.sharding.NamedSharding | None:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    shape, spec = tuple(leaf.shape), P()
    if shape:
      rule = next((rule for rule in rules if re.search(rule[0], name)), None)
      if rule is None:
        lost.append(name)
        return None
      spec = _leaf_spec(name, shape, mesh, rule)
    if spread and re.search(spread, name):
      return jax.sharding.NamedSharding(inside, _spread(spec, shape, inside))
    return jax.sharding.NamedSharding(mesh, spec)

  placed = jax.tree_util.tree_map_with_path(place, abstract_tree)
  if lost:
    raise ValueError(
      f"no sharding rule applies to {', '.join(lost)}; add to mesh.rules a pair"
      " of a regex that is found in the path, and an axis name or None for each"
      " dimension"
    )
  return placed


def place_state(
  abstract_state: Tree, mesh: jax.sharding.Mesh, config: settings.Mesh
) -> Tree:
  """Returns the shardings of a train state by the rules of a config.

  Args:
    abstract_state: a tree with the paths "params/...", "opt_state/..." and
      perhaps "average/...".
    mesh: the mesh, from `make_mesh`.
    config: the group `mesh`.

  Returns:
    The result of `state_sharding`.
  """
  spread = "^(opt_state|average)/" if config.spread_optimizer else ""
  slices = _slices(list(mesh.devices.flat), config.num_slices)
  num_slices = 1 if SEED_AXIS in mesh.shape else len(slices)
  return state_sharding(abstract_state, mesh, config.rules, spread, num_slices)


def _inside_slices(
  mesh: jax.sharding.Mesh, num_slices: int
) -> jax.sharding.Mesh:
  """Returns a mesh of the same devices whose axis "data" stays in a slice."""
  if num_slices == 1:
    return mesh
  data, *rest = mesh.devices.shape
  return jax.sharding.Mesh(
    mesh.devices.reshape(num_slices, data // num_slices, *rest),
    ("slice", *mesh.axis_names),
    axis_types=(jax.sharding.AxisType.Auto,) * (1 + len(mesh.axis_names)),
  )


def _check_rule(rule: tuple[str, Any], mesh: jax.sharding.Mesh) -> None:
  """Raises ValueError if a rule cannot be correct for any parameter."""
  regex, axes = rule
  if isinstance(axes, str):
    raise ValueError(
      f"sharding rule {rule!r}: the axes must be a tuple with one entry per"
      f" dimension; write ({axes!r},)"
    )
  try:
    re.compile(regex)
  except re.error as e:
    raise ValueError(f"sharding rule {rule!r}: bad regex: {e}") from e
  flat = [axis for entry in axes for axis in _axes_of(entry)]
  for axis in flat:
    if axis not in mesh.shape:
      raise ValueError(
        f"sharding rule {rule!r} names the mesh axis {axis!r}; the mesh has"
        f" {', '.join(mesh.axis_names)}"
      )
    if flat.count(axis) > 1:
      raise ValueError(
        f"sharding rule {rule!r} names the mesh axis {axis!r} twice; an axis"
        " can shard only one dimension of an array: put None for the other"
      )


def _axes_of(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  if entry is None:
    return ()
  return (entry,) if isinstance(entry, str) else tuple(entry)


def _leaf_spec(
  name: str,
  shape: tuple[int, ...],
  mesh: jax.sharding.Mesh,
  rule: tuple[str, Axes],
) -> jax.sharding.PartitionSpec:
  """Returns the spec of one array by the rule that applies to it."""
  _, axes = rule
  if len(axes) > len(shape):
    raise ValueError(
      f"sharding rule {rule!r} has {len(axes)} axes, but {name} has the shape"
      f" {shape}; give at most {len(shape)}, or put a more specific rule before"
      " it"
    )
  first = len(shape) - len(axes)
  for dim, entry in zip(shape[first:], axes, strict=True):
    size = math.prod(mesh.shape[axis] for axis in _axes_of(entry))
    if dim % size:
      raise ValueError(
        f"{name} has the shape {shape}, and {dim} is not divisible by the"
        f" mesh axis {entry!r} of size {size} (sharding rule {rule!r});"
        " change the mesh or the model size, or put None in the rule"
      )
  entries = (tuple(x) if isinstance(x, list) else x for x in axes)
  return P(*(None,) * first, *entries)


def _spread(
  spec: jax.sharding.PartitionSpec, shape: tuple[int, ...], mesh
) -> jax.sharding.PartitionSpec:
  """Shards an array also over "data", along its longest whole dimension.

  The shards of the last dimension are a multiple of the 128 lanes of a TPU's
  register.
  """
  if any("data" in _axes_of(entry) for entry in spec):
    return spec
  # An axis of size 1 leaves its dimension whole.
  entries = [
    entry if math.prod(mesh.shape[a] for a in _axes_of(entry)) > 1 else None
    for entry in spec
  ]
  entries += [None] * (len(shape) - len(spec))
  units = [1] * (len(shape) - 1) + [128]
  free = [
    i
    for i, (entry, size) in enumerate(zip(entries, shape, strict=False))
    if entry is None and size % (mesh.shape["data"] * units[i]) == 0
  ]
  if free:
    entries[max(free, key=lambda i: shape[i])] = "data"
  return P(*entries)
