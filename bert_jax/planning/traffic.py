"""Describes what the devices of a mesh send to each other in a step."""

import math
from typing import Any

import numpy as np

from bert_jax.planning import costs
from bert_jax.planning import hlo


def mesh_axes_of(exchange: hlo.Collective, mesh) -> str:
  """Names the axes of a mesh that an exchange goes over.

  These are the axes along which the devices of a group differ.

  Args:
    exchange: an exchange of a compiled program.
    mesh: the mesh of the program.

  Returns:
    The names, such as "data" or "data+fsdp"; "none" if every group has one
    device.
  """
  sizes = tuple(mesh.shape.values())
  if exchange.over_dcn:
    return "data"
  group = exchange.groups[0] if exchange.groups else range(math.prod(sizes))
  if exchange.kind == "collective-permute":
    group = next((g for g in exchange.groups if g[0] != g[1]), (0,))

  places = np.unravel_index(list(group), sizes)  # an array for each axis
  differ = (
    axis
    for axis, indices in zip(mesh.axis_names, places, strict=True)
    if np.ptp(indices)
  )
  return "+".join(differ) or "none"


def describe_exchanges(
  program: hlo.Program, mesh, network: costs.Network
) -> list[dict[str, Any]]:
  """Adds up the exchanges between devices by kind, axes and links.

  Args:
    program: the compiled program.
    mesh: the mesh of the program.
    network: the links between the devices of the mesh.

  Returns:
    A row for each combination, the one with the most bytes first. Per step it
    has the number of runs, the bytes that a device sends, the predicted
    seconds, and the number of runs that the compiler has split so that they
    overlap with other work.
  """
  table: dict[tuple[str, str, str], dict[str, Any]] = {}
  for exchange in program.collectives:
    links = "DCN" if exchange.over_dcn else "ICI"
    key = (exchange.kind, mesh_axes_of(exchange, mesh), links)
    row = table.setdefault(
      key,
      dict(zip(("kind", "mesh_axes", "links"), key, strict=True))
      | {"count": 0, "bytes_sent": 0.0, "secs": 0.0, "async_count": 0},
    )
    parties = network.num_slices if exchange.over_dcn else len(network.coords)
    row["count"] += exchange.count
    row["async_count"] += exchange.count * exchange.is_async
    row["bytes_sent"] += exchange.count * exchange.bytes_sent(parties)
    row["secs"] += exchange.count * network.secs(exchange)
  return sorted(table.values(), key=lambda row: -row["bytes_sent"])
