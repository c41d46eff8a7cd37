"""Opens TPU slices by the compiler of TPUs, without any TPU."""

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
  """The requested plan cannot be made; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Slices:
  """The devices that a plan is for.

  Attributes:
    topology: the topology of each slice.
    num_slices: the number of slices.
    chip: the facts of one device.
    devices: the devices of all slices.
  """

  topology: chips.Topology
  num_slices: int
  chip: chips.Chip
  devices: tuple[Any, ...]


def open_slices(name: str, num_slices: int = 1) -> Slices:
  """Opens slices of a topology; no TPU is needed.

  Args:
    name: the name of the topology, such as "v5e:4x4" or "v5litepod-16".
    num_slices: the number of slices.

  Raises:
    ValueError: the topology is unknown, or the compiler cannot open it.
  """
  topology = chips.parse_topology(name)
  if num_slices < 1:
    raise PlanError(f"num_slices={num_slices}; it must be 1 or more")
  options: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
  if topology.chip.name == "v4":
    # A TPU VM makes both cores of a chip one device.
    options["chip_config_name"] = "megacore"
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=topology.name, **options
    )
  except Exception as error:
    known = ", ".join(topology.chip.topologies)
    reason = str(error).strip().splitlines()[-1]
    raise PlanError(
      f"the compiler cannot open topology={name!r} ({reason}); known "
      f"topologies of {topology.chip.name}: {known}"
    ) from error
  devices = tuple(found.devices)
  # A device is a chip, or one of the two cores of a chip.
  per_chip = len(devices) // (num_slices * math.prod(topology.shape))
  chip = topology.chip.per_device(per_chip)
  return Slices(topology, num_slices, chip, devices)


def check_compiler(config: Config, chip: str) -> None:
  """Raises PlanError for a program on which the compiler is known to crash.

  A crash ends the whole process, so that no message could be given afterwards.

  Args:
    config: the whole configuration.
    chip: the name of the chip.
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
      f"libtpu {version} crashes (segmentation fault) when it compiles "
      "unrolled layers with dropout of attention probabilities in bfloat16 for "
      "tpu7x; use --config.model.scan_layers=True or "
      "--config.model.attention_dropout_rate=0.0"
    )


def make_network(mesh, slices: Slices) -> costs.Network:
  """Returns the network that connects the devices of a mesh.

  Args:
    mesh: a mesh of the devices of all slices.
    slices: the slices.
  """
  devices = list(mesh.devices.flat)
  first = devices[: len(devices) // slices.num_slices]
  shape = slices.topology.shape
  return costs.Network(
    slices.chip,
    shape,
    tuple(tuple(d.coords)[: len(shape)] for d in first),
    slices.num_slices,
  )
