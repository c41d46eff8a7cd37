"""Where arrays live: the mesh, the rule table, the batch.

The mesh has three axes, in this order; an axis of size 1 costs nothing:

  data    a copy of the model a member, each with its own rows of the batch
  fsdp    rows of the batch too, and the parameters are cut into pieces which
          are gathered when they are used
  tensor  heads, the MLP and the vocabulary are cut, the rows are not

Where several models train together (members.py) there is one more in front:

  seed    models that have nothing to do with each other

A rule is `(regex, axes)`. The regex is searched for in the path of a parameter
(`encoder/layers/mlp/in/kernel`), the first rule that fits wins, and `axes` name
what the *trailing* dimensions are cut over: rules never cut the leading layer
axis of scanned layers. The moments of the optimizer end in the same paths, so
one table places the whole train state; they may then be cut over "data" as well
(`spread`), along any axis.

The compiler derives the rest from three facts: the sharding of the state, the
sharding of the batch, and `constrain_batch` on activations. Without the last it
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

# One entry per trailing dimension: not cut, cut over an axis, or over several.
Axes = tuple[str | tuple[str, ...] | None, ...]
Rules = Sequence[tuple[str, Axes]]
Tree = Any


def make_mesh(
  data: int,
  fsdp: int,
  tensor: int,
  devices: Sequence[Any] | None = None,
  seed: int | None = None,
) -> jax.sharding.Mesh:
  """Returns a mesh with the axes ("data", "fsdp", "tensor"), or one more.

  The axes are of type Auto, so the compiler places whatever is not constrained.
  Devices are ordered so that neighbours on an axis are neighbours on the chip
  network where that is possible. Of several TPU slices, which only the slow
  network of the data centre connects, each holds whole copies of the model.

  Args:
    data: Size of the "data" axis; -1 means all devices that are left.
    fsdp: Size of the "fsdp" axis, or -1.
    tensor: Size of the "tensor" axis, or -1. At most one size may be -1.
    devices: Devices to use, all of them. Default: `jax.devices()`.
    seed: Size of one more axis, "seed", in front; None = no such axis.

  Raises:
    ValueError: If the sizes do not multiply to the number of devices, or a copy
      of the model would lie on several slices.

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
  num_slices = len({getattr(d, "slice_index", 0) for d in devices})
  if devices[0].platform == "tpu" and num_slices > 1:
    first, *rest = sizes
    if first % num_slices:
      raise ValueError(
        f"the devices belong to {num_slices} TPU slices, which do not divide"
        f" mesh {axes[0]}={first}: only copies of the model may lie on"
        f" different slices; set {axes[0]} to a multiple of the slices"
      )
    grid = mesh_utils.create_hybrid_device_mesh(
      (first // num_slices, *rest),
      (num_slices, *(1 for _ in rest)),
      devices,
      allow_split_physical_axes=True,
    )
  else:
    grid = mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  auto = (jax.sharding.AxisType.Auto,) * len(axes)
  return jax.sharding.Mesh(grid, axes, axis_types=auto)


def connect(mesh: jax.sharding.Mesh) -> None:
  """Connects the processes of a mesh, along its axes and any group of them.

  Where CPUs of several processes compute together, the first exchange of a
  group connects it, and gives up after 30 seconds; later ones wait for as long
  as it takes. So it has to happen when all processes are there, not after
  compiling, which takes one longer than another.
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
  """Returns the sizes with the -1 replaced."""
  given = " x ".join(f"{a}={n}" for a, n in zip(axes, sizes, strict=True))
  if any(n == 0 or n < -1 for n in sizes):
    raise ValueError(f"mesh {given}: a size is at least 1, or -1 for the rest")
  num_free = sizes.count(-1)
  if num_free > 1:
    raise ValueError(f"mesh {given}: only one size may be -1; set the others")
  known = math.prod(n for n in sizes if n != -1)
  if num_free and num_devices % known:
    raise ValueError(
      f"mesh {given}: {num_devices} devices are here, which {known} does not"
      " divide; change the sizes that are not -1"
    )
  if not num_free and known != num_devices:
    raise ValueError(
      f"mesh {given} needs {known} devices, {num_devices} are here; change"
      " the sizes or let one of them be -1"
    )
  return tuple(num_devices // known if n == -1 else n for n in sizes)


def constrain_batch(x: jax.Array) -> jax.Array:
  """Pins the first dimension of an activation to the batch axes of the mesh.

  Put it after the embedding and after every layer. With parameters cut over
  "fsdp" the compiler otherwise may replicate the batch and sum activations of
  all rows over the devices, which needs many times the memory.

  Args:
    x: [B, ...], at least one dimension.

  Returns:
    x, unchanged where there is nothing to pin: no mesh set by `jax.set_mesh`,
    a mesh without these axes, axes that are manual (`jax.shard_map`), or a
    concrete array outside of `jit`.
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
  """Shardings of arrays of one model -> those of many, stacked on axis 0."""
  return jax.tree.map(
    lambda one: jax.sharding.NamedSharding(mesh, P(SEED_AXIS, *one.spec)), place
  )


def check_batch_size(
  batch_size: int, mesh: jax.sharding.Mesh, num_micro_batches: int = 1
) -> None:
  """Checks that every device gets the same number of rows.

  Args:
    batch_size: Rows of the global batch B.
    mesh: From `make_mesh`.
    num_micro_batches: Parts that a batch is computed in, one after the other.

  Raises:
    ValueError: If it does not divide; names the nearest sizes that do.
  """
  if num_micro_batches < 1:
    raise ValueError(
      f"num_micro_batches={num_micro_batches}: give 1 (off) or more"
    )
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
  """Which rows of the global batch the devices of this process hold."""
  slices = place.addressable_devices_indices_map((batch_size,)).values()
  return np.unique(
    np.concatenate([np.arange(batch_size)[rows] for rows in slices if rows])
  )


def put_global_batch(batch: Tree, sharding: jax.sharding.NamedSharding) -> Tree:
  """Assembles global arrays from the rows that each process has.

  Every process calls this with its own rows; nothing travels between hosts. If
  the "tensor" axis spans processes, those processes must pass equal rows.

  Args:
    batch: Tree of numpy arrays [rows of this process, ...].
    sharding: From `batch_sharding`.

  Returns:
    The tree with global arrays [B, ...].
  """
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    batch,
  )


def state_sharding(
  abstract_tree: Tree, mesh: jax.sharding.Mesh, rules: Rules, spread: str = ""
) -> Tree:
  """Places parameters, or a whole train state, by one table of rules.

  Args:
    abstract_tree: Tree whose leaves have a shape: parameters, or a train state
      of step, parameters and optimizer state (see `jax.eval_shape`).
    mesh: From `make_mesh`.
    rules: `(regex, axes)` pairs; see the top of this file. `axes` has an entry
      for each trailing dimension: None, an axis, or a tuple of axes.
    spread: regex of paths of arrays that are also cut over "data", where they
      have a dimension that can be: each copy of the model then holds a share.

  Returns:
    The tree with a `NamedSharding` in the place of each leaf. Scalars are
    replicated; they need no rule.

  Raises:
    ValueError: If a rule is malformed, names an axis twice, names one the mesh
      does not have or more than a parameter has dimensions; if no rule fits a
      parameter; or if a dimension is not divisible by its axes.

  Example:
    >>> mesh = make_mesh(data=-1, fsdp=1, tensor=1)
    >>> params = {"mlp": {"kernel": jax.ShapeDtypeStruct((4, 8), "float32")}}
    >>> rules = ((r"mlp/kernel$", ("fsdp", "tensor")),)
    >>> state_sharding(params, mesh, rules)["mlp"]["kernel"].spec
    P('fsdp', 'tensor')
  """
  for rule in rules:
    _check_rule(rule, mesh)
  leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract_tree)
  named = [
    (jax.tree_util.keystr(path, simple=True, separator="/"), tuple(x.shape))
    for path, x in leaves
  ]
  lost = [
    name for name, shape in named if shape and _find_rule(name, rules) is None
  ]
  if lost:
    raise ValueError(
      f"no sharding rule fits {', '.join(lost)}; add to mesh.rules a pair"
      " (regex that is found in the path, axis name or None per dimension)"
    )
  specs = [_leaf_spec(name, shape, mesh, rules) for name, shape in named]
  if spread:
    specs = [
      _spread(spec, shape, mesh) if re.search(spread, name) else spec
      for spec, (name, shape) in zip(specs, named, strict=True)
    ]
  placed = [jax.sharding.NamedSharding(mesh, spec) for spec in specs]
  return jax.tree_util.tree_unflatten(treedef, placed)


def place_state(
  abstract_state: Tree, mesh: jax.sharding.Mesh, config: settings.Mesh
) -> Tree:
  """Places a train state as a config says.

  Args:
    abstract_state: with the paths "params/..." and "opt_state/...".
    mesh: From `make_mesh`.
    config: The group `mesh`.

  Returns:
    As `state_sharding`.
  """
  spread = "^opt_state/" if config.spread_optimizer else ""
  return state_sharding(abstract_state, mesh, config.rules, spread)


def _check_rule(rule: tuple[str, Any], mesh: jax.sharding.Mesh) -> None:
  """Raises ValueError where a rule cannot be right for any parameter."""
  regex, axes = rule
  if isinstance(axes, str):
    raise ValueError(
      f"sharding rule {rule!r}: the axes are a tuple with one entry per"
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
        f"sharding rule {rule!r} names the mesh axis {axis!r} twice; one"
        " array can be cut over an axis only once: put None for one of them"
      )


def _axes_of(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  if entry is None:
    return ()
  return (entry,) if isinstance(entry, str) else tuple(entry)


def _find_rule(name: str, rules: Rules) -> tuple[str, Axes] | None:
  return next((rule for rule in rules if re.search(rule[0], name)), None)


def _leaf_spec(
  name: str,
  shape: tuple[int, ...],
  mesh: jax.sharding.Mesh,
  rules: Rules,
) -> jax.sharding.PartitionSpec:
  """Returns the spec of one array by the first rule that fits its name."""
  rule = _find_rule(name, rules)
  if not shape or rule is None:
    return P()
  _, axes = rule
  if len(axes) > len(shape):
    raise ValueError(
      f"sharding rule {rule!r} has {len(axes)} axes, but {name} has the shape"
      f" {shape}; give at most {len(shape)}, or put a narrower rule before it"
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
  entries = (_spec_entry(entry) for entry in axes)
  return P(*(None,) * first, *entries)


def _spread(
  spec: jax.sharding.PartitionSpec, shape: tuple[int, ...], mesh
) -> jax.sharding.PartitionSpec:
  """Cuts an array over "data" too, along the longest dimension left whole.

  The last one keeps a multiple of the 128 lanes of a TPU's register.
  """
  if any("data" in _axes_of(entry) for entry in spec):
    return spec
  # An axis of size 1 cuts nothing.
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


def _spec_entry(
  entry: str | tuple[str, ...] | None,
) -> str | tuple[str, ...] | None:
  return entry if entry is None or isinstance(entry, str) else tuple(entry)
