"""Published facts about accelerators, with their sources.

The figures describe a whole chip, as its maker publishes them. A jax device is
a chip or, on TPU v2, v3 and 7x, one of the two cores of a chip. TPU v4 and v5p
can be set up either way; `Chip.per_device` divides a chip among its devices.
"""

import dataclasses
import math
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of TPU chip.

  Attributes:
    name: the name in a topology, such as "v5e" in "v5e:4x4".
    device_kinds: the names that jax gives to its devices.
    peak_flops: dense bfloat16 FLOPs per second.
    num_cores: the number of TensorCores.
    num_mxus: the number of matrix units of a TensorCore.
    mxu_width: rows and columns of a matrix unit; the dimensions of a matmul are
      padded to a multiple of it.
    hbm_bytes: the memory that programs may use; the compiler reserves the rest
      of the published size.
    hbm_bandwidth: bytes per second between that memory and the chip.
    link_bandwidth: bytes per second of one inter-chip link in one direction.
    torus_dims: dimensions of the network of links; each has two links per chip.
    wrap: a dimension of a slice is a ring, not a line, if its length is a
      multiple of this many chips.
    dcn_bandwidth: bytes per second in one direction that a chip gets of the
      network of its host, which connects slices.
    topologies: some topologies that the compiler is known to open.
    slice_name: what Google Cloud calls a slice, before the number of its units,
      such as "v5litepod" in v5litepod-16.
    slice_units: how many of these units a chip is; older names count cores.
    gke_accelerator: the label of its nodes in GKE
      (cloud.google.com/gke-tpu-accelerator); see `Topology.gke_accelerator`.
    gke_machine: the machines of its hosts in GKE, before the number of chips.
    vm_version: the runtime version of its TPU VMs; "" for a chip that is
      offered by GKE alone.
    max_chips: the number of chips of its largest slice.
  """

  name: str
  device_kinds: tuple[str, ...]
  peak_flops: float
  num_cores: int
  num_mxus: int
  mxu_width: int
  hbm_bytes: int
  hbm_bandwidth: float
  link_bandwidth: float
  torus_dims: int
  wrap: int
  dcn_bandwidth: float
  topologies: tuple[str, ...]
  slice_name: str
  slice_units: int
  gke_accelerator: str
  gke_machine: str
  vm_version: str
  max_chips: int

  @property
  def clock_hz(self) -> float:
    """Cycles per second of a TensorCore."""
    flops_per_cycle = 2 * self.num_cores * self.num_mxus * self.mxu_width**2
    return self.peak_flops / flops_per_cycle

  @property
  def vector_ops(self) -> float:
    """Operations per second of the vector units.

    A core has 8 x 128 lanes, each with 4 operations per cycle.

    Source: jax-ml.github.io/scaling-book/tpus, appendix A.
    """
    return 8 * 128 * 4 * self.num_cores * self.clock_hz

  def per_device(self, devices_per_chip: int) -> "Chip":
    """Returns the chip's facts divided among its jax devices.

    Args:
      devices_per_chip: 1, or 2 if each core is a device.
    """
    n = devices_per_chip
    return dataclasses.replace(
      self,
      peak_flops=self.peak_flops / n,
      num_cores=self.num_cores // n,
      hbm_bytes=self.hbm_bytes // n,
      hbm_bandwidth=self.hbm_bandwidth / n,
      link_bandwidth=self.link_bandwidth / n,
      dcn_bandwidth=self.dcn_bandwidth / n,
    )


# Sources. Peak, memory bandwidth and links: docs.cloud.google.com/tpu/docs/v3,
# /v4, /v5e, /v5p, /v6e, /tpu7x, except for the bandwidth of v4, which the page
# rounds to 1,200 GB/s and tpu_info.py (below) to 1,230. Of v5e, versions of the
# page have 819 GB/s and 800 GiB/s; of v5p, tpu_info.py has 2,460 GB/s. Memory:
# the size that libtpu 0.0.42 reports when a program runs out of it. Link
# bandwidth as measured (the published values are a tenth higher), DCN bandwidth
# for v4 to 7x, and rings: the tables of jax-ml.github.io/scaling-book/tpus.
# Matrix units: the same pages, and jax/_src/pallas/mosaic/tpu_info.py. The
# pages of v6e and 7x name two units of 256 x 256 per core, but the compiler
# estimates the cycles of a large matmul as if there were four; the table says
# four, because it converts these cycles. The resulting clocks are 0.94, 1.05,
# 1.5, 1.75, 1.75 and 2.2 GHz for v3 to 7x. They equal the published clocks
# where there are any (v3: Norrie et al., IEEE Micro 2021; v4: Jouppi et al.,
# ISCA 2023; v5e: the scaling book). Names, labels and sizes of slices: the
# table of xpk 1.16, which a test compares (core/system_characteristics.py), and
# docs.cloud.google.com/tpu/docs/runtimes; of v3, which xpk lacks:
# docs.cloud.google.com/kubernetes-engine/docs/concepts.
CHIPS = (
  # name, device kinds, peak FLOP/s, cores, matrix units per core, their width,
  # HBM bytes, HBM bytes/s,
  # link bytes/s, dimensions, chips of a ring, DCN bytes/s, topologies,
  # name and units of a slice, GKE's label and machine, runtime version of VMs,
  # chips of the largest slice
  Chip(
    "v3", ("TPU v3",), 123e12, 2, 2, 128, int(30.96 * GIB), 900e9,
    1e11, 2, 32, 3.125e9, ("v3:2x2",),
    "v3", 2, "tpu-v3-slice", "ct3-hightpu", "tpu-ubuntu2204-base", 1024,
  ),
  Chip(
    "v4", ("TPU v4",), 275e12, 2, 4, 128, int(30.5 * GIB), 1228e9,
    4.5e10, 3, 4, 6.25e9, ("v4:2x2x1", "v4:2x2x2", "v4:4x4x4"),
    "v4", 2, "tpu-v4-podslice", "ct4p-hightpu", "tpu-ubuntu2204-base", 4096,
  ),
  Chip(
    "v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 1, 4, 128,
    int(15.75 * GIB), 819e9, 4.5e10, 2, 16, 3.125e9,
    ("v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:16x16"),
    "v5litepod", 1, "tpu-v5-lite-podslice", "ct5lp-hightpu",
    "v2-alpha-tpuv5-lite", 256,
  ),
  Chip(
    "v5p", ("TPU v5", "TPU v5p"), 459e12, 2, 4, 128, int(95.74 * GIB), 2765e9,
    9e10, 3, 4, 6.25e9, ("v5p:2x2x1", "v5p:2x4x4", "v5p:4x4x4"),
    "v5p", 2, "tpu-v5p-slice", "ct5p-hightpu", "v2-alpha-tpuv5", 8960,
  ),
  Chip(
    "v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 1, 4, 256,
    int(31.25 * GIB), 1638e9, 9e10, 2, 16, 12.5e9,
    ("v6e:2x2", "v6e:4x4", "v6e:8x8", "v6e:16x16"),
    "v6e", 1, "tpu-v6e-slice", "ct6e-standard", "v2-alpha-tpuv6e", 256,
  ),
  Chip(
    "tpu7x", ("TPU7x",), 2307e12, 2, 4, 256, int(189.5 * GIB), 7380e9,
    9e10, 3, 4, 12.5e9, ("tpu7x:2x2x1", "tpu7x:2x2x2", "tpu7x:4x4x4"),
    "tpu7x", 2, "tpu7x", "tpu7x-standard", "", 9216,
  ),
)  # fmt: skip

# Dense bfloat16 FLOPs per second of NVIDIA GPUs, accumulated in float32, by the
# name that jax and nvidia-smi give to the card. Cards before Ampere have no
# bfloat16. Data sheets mostly print the figure with sparsity, twice as much.
# They do not say how sums are kept; some take the 362 of L40S for float16 sums,
# and half of it for float32.
# Source: NVIDIA's data sheets of A10, A100, H100 NVL, L4 and L40S, and its
# white papers on the architectures Hopper (H100 SXM and PCIe, table 1), GA102
# (RTX A6000, table 3; RTX 3090, table 9) and Ada (RTX 4090, appendix A), all
# read in quotations. B200 (HGX, 1,000 W) and H200, which equals the H100 SXM,
# were read in tables that others made of their data sheets.
GPU_PEAKS = {
  "NVIDIA A10": 125e12,
  "NVIDIA A100-PCIE-40GB": 312e12,
  "NVIDIA A100 80GB PCIe": 312e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA B200": 2250e12,
  "NVIDIA GeForce RTX 3090": 71e12,
  "NVIDIA GeForce RTX 4090": 165.2e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H100 NVL": 835e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H200": 989e12,
  "NVIDIA L4": 121e12,
  "NVIDIA L40S": 362e12,
  "NVIDIA RTX A6000": 154.8e12,
}

# Chips of which each core is a device of jax.
TWO_DEVICES = ("v2", "v3", "tpu7x")

# Dense bfloat16 FLOPs per second of one jax device, by `device_kind`. A chip of
# TPU v2, v3 or 7x has two devices, so its devices have half of the published
# number. The others have one device per chip, v4 and v5p by fusing two cores; a
# v4 or v5p that is set up with a device per core has half of what is listed.
# Source: as above, and GPU_PEAKS; of TPU v2, tpu_info.py.
PEAK_FLOPS = {
  kind: chip.peak_flops / (2 if chip.name in TWO_DEVICES else 1)
  for chip in CHIPS
  for kind in chip.device_kinds
} | {"TPU v2": 23e12, **GPU_PEAKS}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of a network of chips.

  Attributes:
    name: such as "v5e:4x4".
    chip: the kind of its chips.
    shape: the number of chips along each dimension of the network.
  """

  name: str
  chip: Chip
  shape: tuple[int, ...]

  @property
  def num_chips(self) -> int:
    """The number of chips of the slice."""
    return math.prod(self.shape)

  @property
  def sides(self) -> str:
    """The shape as text, such as "4x4"."""
    return "x".join(map(str, self.shape))

  @property
  def chips_per_host(self) -> int:
    """The chips of a host.

    Hosts of eight chips, which v5e and v6e also have, are not used.
    """
    return min(self.num_chips, _HOST_CHIPS)

  @property
  def num_hosts(self) -> int:
    """The number of hosts of the slice."""
    return self.num_chips // self.chips_per_host

  @property
  def gke_accelerator(self) -> str:
    """The label of the slice's nodes in GKE.

    Source: docs.cloud.google.com/kubernetes-engine/docs/concepts/tpus.
    """
    if self.num_hosts == 1:
      return _SINGLE_HOST_LABELS.get(self.chip.name, self.chip.gke_accelerator)
    return self.chip.gke_accelerator

  @property
  def slice_name(self) -> str:
    """What Google Cloud calls the slice, such as "v5litepod-16"."""
    return f"{self.chip.slice_name}-{self.num_chips * self.chip.slice_units}"

  def why_not_offered(self) -> str:
    """Returns why no slice of this shape can be had; "" if one can be had.

    The compiler opens more shapes than Google Cloud has slices.
    """
    if self.num_chips > self.chip.max_chips:
      return (
        f"the largest slice of {self.chip.name} has {self.chip.max_chips:,}"
      )
    if self.chip.torus_dims == 2:
      known = _FLAT_SHAPES
    else:
      known = _SMALL_SHAPES
      is_cube = all(side % 4 == 0 for side in self.shape)
      if is_cube and list(self.shape) == sorted(self.shape):
        return ""
    if self.shape in known:
      return ""
    named = ", ".join("x".join(map(str, shape)) for shape in known)
    more = (
      ""
      if self.chip.torus_dims == 2
      else (", and multiples of 4 that do not decrease, such as 4x4x8")
    )
    return f"slices of {self.chip.name} have the shapes {named}{more}"


# Names of slices by another name than that of the chip.
# Source: docs.cloud.google.com/tpu/docs/v2, /v3, /v4, /v5e, /v5p, /v6e.
_SLICES = {c.name: c for c in CHIPS} | {c.slice_name: c for c in CHIPS}

# The shapes of slices that can be had of chips in a network of two dimensions.
# Source: xpk, as above; a single host also has 1, 4 or 8 chips.
_FLAT_SHAPES: tuple[tuple[int, ...], ...] = (
  (1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16),
)  # fmt: skip
# Of three dimensions, the shapes smaller than a cube of 4x4x4 chips; larger
# ones are made of such cubes, and their sides do not decrease.
_SMALL_SHAPES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
# GKE's label of nodes that are a slice by themselves, where it is another one.
_SINGLE_HOST_LABELS = {"v3": "tpu-v3-device"}
_HOST_CHIPS = 4  # chips of a host, of a slice with more than one chip


def _shape_of_slice(name: str) -> str:
  """Returns CHIP:SHAPE for the name of a slice such as "v5litepod-16".

  A slice of 2**k chips has the most even shape whose sides are powers of two.
  Other names are returned as they are.
  """
  kind, _, count = name.partition("-")
  if kind not in _SLICES or not re.fullmatch(r"[1-9]\d{0,6}", count):
    return name
  chip = _SLICES[kind]
  num_chips, rest = divmod(int(count), chip.slice_units)
  if rest or num_chips & (num_chips - 1):
    return name
  dims = chip.torus_dims
  log2 = num_chips.bit_length() - 1
  sides = sorted(2 ** ((log2 + i) // dims) for i in range(dims))
  if sides[0] == 1:  # 2x2x1, as the pages write it
    sides.reverse()
  return f"{chip.name}:{'x'.join(map(str, sides))}"


def parse_topology(name: str) -> Topology:
  """Reads the name of a topology, such as "v5e:4x4".

  Args:
    name: CHIP:SHAPE, or the name of a slice in Google Cloud, such as v5e-16 or
      v5litepod-16 for v5e:4x4. Those of v3, v4 and v5p count cores: v4-16 has
      8 chips, which are v4:2x2x2.

  Raises:
    ValueError: the chip or the shape is unknown; the message lists known
      topologies.

  Example:
    >>> parse_topology("v5e:4x4").shape
    (4, 4)
  """
  given, name = name, _shape_of_slice(name)
  kind, _, shape = name.partition(":")
  chip = next((chip for chip in CHIPS if chip.name == kind), None)
  if chip is None or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape):
    known = ", ".join(t for chip in CHIPS for t in chip.topologies)
    raise ValueError(
      f"topology={given!r} is unknown; use CHIP:SHAPE, such as {known}, or the "
      "name of a slice, such as v5litepod-16"
    )
  sizes = tuple(int(size) for size in shape.split("x"))
  if len(sizes) != chip.torus_dims:
    raise ValueError(
      f"topology={name!r} has {len(sizes)} dimensions, but the network of "
      f"{kind} has {chip.torus_dims}; use a shape such as {chip.topologies[-1]}"
    )
  return Topology(name, chip, sizes)
