"""TPU slices that nobody has rented yet, opened by the compiler of TPUs."""

import dataclasses
import importlib.metadata
import math
from typing import Any

from jax.experimental import topologies

from bert_jax.planning import costs
from bert_jax.runtime import chips
from bert_jax.runtime import errors
from bert_jax.runtime.settings import Config


class PlanError(errors.UserError):
  """There is no plan for what was asked for; says why."""


@dataclasses.dataclass(frozen=True)
class Slices:
  """The devices a plan is for.

  Attributes:
    topology: of one slice.
    num_slices: how many of them.
    chip: of one device.
    devices: all of them.
    devices_per_chip: 1, or 2 where each core is a device.
  """

  topology: chips.Topology
  num_slices: int
  chip: chips.Chip
  devices: tuple[Any, ...]
  devices_per_chip: int


def open_slices(name: str, num_slices: int = 1) -> Slices:
  """Opens a topology; no TPU is needed.

  Args:
    name: such as "v5e:4x4".
    num_slices: how many of these slices.

  Raises:
    ValueError: there is no such topology.
  """
  topology = chips.parse_topology(name)
  if num_slices < 1:
    raise PlanError(f"num_slices={num_slices}; it must be 1 or more")
  options: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
  if topology.chip.name == "v4":
    # As a TPU VM sets it up: both cores of a chip are one device.
    options["chip_config_name"] = "megacore"
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=name, **options
    )
  except Exception as error:
    known = ", ".join(topology.chip.topologies)
    reason = str(error).strip().splitlines()[-1]
    raise PlanError(
      f"topology={name!r} is not one that the compiler opens ({reason}); of "
      f"{topology.chip.name} these are known: {known}"
    ) from error
  devices = tuple(found.devices)
  num_chips = num_slices * math.prod(topology.shape)
  per_chip = len(devices) // num_chips
  return Slices(
    topology,
    num_slices,
    topology.chip.per_device(per_chip),
    devices,
    per_chip,
  )


def check_compiler(config: Config, chip: str) -> None:
  """Raises PlanError for what makes the compiler itself crash.

  It takes the whole process with it, so that nothing could be said afterwards.

  Args:
    config: the whole configuration.
    chip: name of the chip.
  """
  version = importlib.metadata.version("libtpu")
  model = config.model
  if (
    (chip, version) == ("tpu7x", "0.0.42.1")
    and model.dtype == "bfloat16"
    and model.attention_dropout_rate
    and not model.scan_layers
  ):
    raise PlanError(
      f"libtpu {version} crashes (segmentation fault) where it compiles "
      "unrolled layers with dropout of attention probabilities in bfloat16 for "
      "tpu7x; "
      "use --config.model.scan_layers=True or "
      "--config.model.attention_dropout_rate=0.0"
    )


def make_network(mesh, slices: Slices) -> costs.Network:
  """The links between the devices of a mesh, in its order."""
  devices = list(mesh.devices.flat)
  first = devices[: len(devices) // slices.num_slices]
  shape = slices.topology.shape
  return costs.Network(
    slices.chip,
    shape,
    tuple(tuple(d.coords)[: len(shape)] for d in first),
    slices.num_slices,
  )
