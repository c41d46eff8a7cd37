"""Published facts of accelerators, with sources.

Figures are of a chip, as its maker publishes them; a jax device is a chip or,
on TPU v2, v3 and 7x, one of the two cores of it. TPU v4 and v5p are set up
either way; `Chip.per_device` takes how many devices a chip is.
"""

import dataclasses
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of TPU chip.

  Attributes:
    name: as in the name of a topology, "v5e" of "v5e:4x4".
    device_kinds: what jax calls its devices.
    peak_flops: dense bfloat16 FLOPs per second.
    flops_per_cycle: bfloat16 FLOPs of its matrix units in a cycle; with the
      peak this gives the clock.
    hbm_bytes: memory that programs may use; the rest of what is published, such
      as 16 GiB, the compiler keeps for itself.
    hbm_bandwidth: of it, bytes per second.
    num_cores: TensorCores.
    mxu_width: rows and columns of a matrix unit: dimensions of a matmul are
      padded to it.
    link_bandwidth: of one inter-chip link in one direction, bytes per second.
    torus_dims: dimensions of the network of links; there are two links each.
    wrap: a dimension of a slice is a ring, not a line, if it is a multiple of
      this many chips.
    dcn_bandwidth: share of a chip in the network of its host, which connects
      slices, in one direction, bytes per second.
    topologies: some that the compiler is known to open.
  """

  name: str
  device_kinds: tuple[str, ...]
  peak_flops: float
  flops_per_cycle: int
  hbm_bytes: int
  hbm_bandwidth: float
  num_cores: int
  mxu_width: int
  link_bandwidth: float
  torus_dims: int
  wrap: int
  dcn_bandwidth: float
  topologies: tuple[str, ...]

  @property
  def clock_hz(self) -> float:
    """Cycles per second of a TensorCore."""
    return self.peak_flops / self.flops_per_cycle

  @property
  def vector_ops(self) -> float:
    """Operations per second of the vector units: 8 x 128 lanes, 4 a lane.

    Source: jax-ml.github.io/scaling-book/tpus, appendix A.
    """
    return 8 * 128 * 4 * self.num_cores * self.clock_hz

  def per_device(self, devices_per_chip: int) -> "Chip":
    """Returns the chip's facts divided among its jax devices.

    Args:
      devices_per_chip: 1, or 2 where each core is a device.
    """
    n = devices_per_chip
    return dataclasses.replace(
      self,
      peak_flops=self.peak_flops / n,
      flops_per_cycle=self.flops_per_cycle // n,
      hbm_bytes=self.hbm_bytes // n,
      hbm_bandwidth=self.hbm_bandwidth / n,
      num_cores=max(self.num_cores // n, 1),
      link_bandwidth=self.link_bandwidth / n,
      dcn_bandwidth=self.dcn_bandwidth / n,
    )


# Sources: peak, bandwidth of memory, links: docs.cloud.google.com/tpu/docs/v4,
# /v5e, /v5p, /v6e, /tpu7x. Memory: what libtpu 0.0.42 says is there when a
# program runs out of it. Bandwidth of a link, as it is reached (the
# published ones are a tenth higher), and of DCN for v4 to 7x, rings: the tables
# of jax-ml.github.io/scaling-book/tpus. Matrix units: the same pages, and
# jax/_src/pallas/mosaic/tpu_info.py; for v6e and 7x, whose pages name two units
# of 256 x 256, the compiler's estimate for a large matmul is that of four, and
# its cycles are what is converted here. The clocks that follow, 0.94, 1.05,
# 1.5, 1.75, 1.75 and 2.2 GHz for v3 to 7x, are the published ones where there
# are such (v3: Norrie et al., IEEE Micro 2021; v4: Jouppi et al., ISCA 2023;
# v5e: the scaling book).
CHIPS = (
  Chip(
    name="v3",
    device_kinds=("TPU v3",),
    peak_flops=123e12,
    flops_per_cycle=2 * 2 * 2 * 128**2,
    hbm_bytes=int(30.96 * GIB),
    hbm_bandwidth=900e9,
    num_cores=2,
    mxu_width=128,
    link_bandwidth=1e11,
    torus_dims=2,
    wrap=32,
    dcn_bandwidth=3.125e9,
    topologies=("v3:2x2",),
  ),
  Chip(
    name="v4",
    device_kinds=("TPU v4",),
    peak_flops=275e12,
    flops_per_cycle=2 * 2 * 4 * 128**2,
    hbm_bytes=int(30.5 * GIB),
    hbm_bandwidth=1228e9,
    num_cores=2,
    mxu_width=128,
    link_bandwidth=4.5e10,
    torus_dims=3,
    wrap=4,
    dcn_bandwidth=6.25e9,
    topologies=("v4:2x2x1", "v4:2x2x2", "v4:4x4x4"),
  ),
  Chip(
    name="v5e",
    device_kinds=("TPU v5 lite", "TPU v5e"),
    peak_flops=197e12,
    flops_per_cycle=2 * 4 * 128**2,
    hbm_bytes=int(15.75 * GIB),
    hbm_bandwidth=819e9,
    num_cores=1,
    mxu_width=128,
    link_bandwidth=4.5e10,
    torus_dims=2,
    wrap=16,
    dcn_bandwidth=3.125e9,
    topologies=(
      "v5e:2x2",
      "v5e:2x4",
      "v5e:4x4",
      "v5e:4x8",
      "v5e:8x8",
      "v5e:16x16",
    ),  # fmt: skip
  ),
  Chip(
    name="v5p",
    device_kinds=("TPU v5", "TPU v5p"),
    peak_flops=459e12,
    flops_per_cycle=2 * 2 * 4 * 128**2,
    hbm_bytes=int(95.74 * GIB),
    hbm_bandwidth=2765e9,
    num_cores=2,
    mxu_width=128,
    link_bandwidth=9e10,
    torus_dims=3,
    wrap=4,
    dcn_bandwidth=6.25e9,
    topologies=("v5p:2x2x1", "v5p:2x4x4", "v5p:4x4x4"),
  ),
  Chip(
    name="v6e",
    device_kinds=("TPU v6 lite", "TPU v6e"),
    peak_flops=918e12,
    flops_per_cycle=2 * 4 * 256**2,
    hbm_bytes=int(31.25 * GIB),
    hbm_bandwidth=1638e9,
    num_cores=1,
    mxu_width=256,
    link_bandwidth=9e10,
    torus_dims=2,
    wrap=16,
    dcn_bandwidth=12.5e9,
    topologies=("v6e:2x2", "v6e:4x4", "v6e:8x8", "v6e:16x16"),
  ),
  Chip(
    name="tpu7x",
    device_kinds=("TPU7x",),
    peak_flops=2307e12,
    flops_per_cycle=2 * 2 * 4 * 256**2,
    hbm_bytes=int(189.5 * GIB),
    hbm_bandwidth=7380e9,
    num_cores=2,
    mxu_width=256,
    link_bandwidth=9e10,
    torus_dims=3,
    wrap=4,
    dcn_bandwidth=12.5e9,
    topologies=("tpu7x:2x2x1", "tpu7x:2x2x2", "tpu7x:4x4x4"),
  ),
)

# Dense bfloat16 FLOPs per second of one jax device, by `device_kind`.
# TPU v2, v3 and 7x have two devices a chip: half of the published number. The
# others have one, v4 and v5p by fusing two cores; a v4 or v5p that is set up
# with a device per core has half of what stands here.
# Source: as above; NVIDIA data sheets of the A100 and the H100 SXM, without
# sparsity.
PEAK_FLOPS = {
  kind: chip.peak_flops / (2 if chip.name in ("v3", "tpu7x") else 1)
  for chip in CHIPS
  for kind in chip.device_kinds
} | {
  "TPU v2": 23e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA H100 80GB HBM3": 989e12,
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of a network of chips.

  Attributes:
    name: such as "v5e:4x4".
    chip: the kind of its chips.
    shape: chips along each dimension of the network.
  """

  name: str
  chip: Chip
  shape: tuple[int, ...]


def parse_topology(name: str) -> Topology:
  """Reads the name of a topology, such as "v5e:4x4".

  Args:
    name: CHIP:SHAPE.

  Raises:
    ValueError: the chip or the shape is unknown; lists known topologies.

  Example:
    >>> parse_topology("v5e:4x4").shape
    (4, 4)
  """
  kind, _, shape = name.partition(":")
  chip = next((chip for chip in CHIPS if chip.name == kind), None)
  if chip is None or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape):
    known = ", ".join(t for chip in CHIPS for t in chip.topologies)
    raise ValueError(
      f"topology={name!r} is not known; use CHIP:SHAPE, such as {known}"
    )
  sizes = tuple(int(size) for size in shape.split("x"))
  if len(sizes) != chip.torus_dims:
    raise ValueError(
      f"topology={name!r} has {len(sizes)} dimensions, the network of {kind} "
      f"has {chip.torus_dims}; use a shape such as {chip.topologies[-1]}"
    )
  return Topology(name, chip, sizes)
