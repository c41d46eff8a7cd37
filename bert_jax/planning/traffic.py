"""What the devices of a mesh send to each other in a compiled step."""

import math
from typing import Any

from bert_jax.planning import costs
from bert_jax.planning import hlo


def mesh_axes_of(exchange: hlo.Collective, mesh) -> str:
  """The axes of the mesh that devices of a group differ in: "data", "fsdp"."""
  sizes = tuple(mesh.shape.values())
  if exchange.over_dcn:
    return "data"
  group = exchange.groups[0] if exchange.groups else range(math.prod(sizes))
  if exchange.kind == "collective-permute":
    group = next((g for g in exchange.groups if g[0] != g[1]), (0,))

  def place(i):
    found = []
    for size in reversed(sizes):
      i, rest = divmod(i, size)
      found.append(rest)
    return tuple(reversed(found))

  places = [place(i) for i in group]
  differ = [
    axis
    for k, axis in enumerate(mesh.axis_names)
    if len({p[k] for p in places}) > 1
  ]
  return "+".join(differ) or "none"


def describe_exchanges(
  program: hlo.Program, mesh, network: costs.Network
) -> list[dict[str, Any]]:
  """Exchanges between devices by kind, axes and links, the largest first."""
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
