"""Estimates the costs that the compiler leaves out: kernels and exchanges.

- `count_program` counts the matrix multiplications of a traced program, and the
  work of its Pallas kernels, whose code it reads.
- `Network` predicts the seconds of an exchange between devices, from its bytes
  and the links.
- `timeline` predicts the seconds of a step, in which exchanges overlap with
  other work.

All of these are estimates; a plan states what they assume (remarks.py).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import itertools
import math
import re
from typing import Any

from bert_jax.planning import hlo
from bert_jax.planning import schedules
from bert_jax.runtime import chips

# The share of a unit's peak that a Pallas kernel is assumed to reach, on padded
# sizes. The compiler itself assumes the same share of the memory bandwidth.
MATRIX_EFFICIENCY = 0.7
VECTOR_EFFICIENCY = 0.5
MEMORY_EFFICIENCY = 0.8
# Seconds that a step of a kernel's grid takes in addition to its work.
# Source: docs.jax.dev/en/latest/pallas/tpu/pipelining.html.
GRID_STEP_SECS = 0.35e-6
# Vector operations per element of an operation; 1 if it is not listed. For long
# chains of float operations, integer operations and exponentials on v5e and v6e
# the compiler estimates 4 to 8, 4 to 5 and 2 to 4 per cycle and register. With
# VECTOR_EFFICIENCY these weights amount to 2, 2 and 1.
_VECTOR_WEIGHTS = {
  name: weight
  for weight, names in {
    2: "exp exp2 log log1p tanh erf rsqrt sqrt logistic div pow",
    4: "transpose rev sort cumsum",
    0: "reshape broadcast_in_dim squeeze expand_dims iota slice concatenate"
    " copy stop_gradient program_id num_programs multiple_of"
    " bitcast_convert_type",
    16: "prng_random_bits random_bits threefry2x32",
  }.items()
  for name in names.split()
}

# Seconds of a hop between neighbouring chips, and of a message between slices.
# Source: jax-ml.github.io/scaling-book/sharding (hops, about 1 us). The time of
# a message over Ethernet is an assumption.
HOP_SECS = 1e-6
DCN_SECS = 50e-6


# --- traced programs ---------------------------------------------------------


@dataclasses.dataclass
class KernelCost:
  """The work of one call of a Pallas kernel on one device.

  Attributes:
    name: the name of the kernel.
    results: the types of its results, as HLO writes them.
    flops: FLOPs of its matrix multiplications, without padding.
    matrix_flops: the same, with the sizes padded to the matrix unit.
    vector_ops: element operations, padded to the vector registers.
    bytes: bytes that are moved between memory and chip.
    grid_steps: the number of steps of its grid.
    cycles: the cycles that the compiler has scheduled for a call on one core
      (schedules.py); None if they are not known.
  """

  name: str
  results: tuple[str, ...]
  flops: float = 0
  matrix_flops: float = 0
  vector_ops: float = 0
  bytes: float = 0
  grid_steps: int = 1
  cycles: float | None = None

  def secs(self, chip: chips.Chip) -> float:
    """Returns the seconds of a call.

    They are those of its schedule or of its traffic, whichever takes longer;
    without a schedule they are assumed.
    """
    if self.cycles is None:
      return self.assumed_secs(chip)
    return max(self.cycles / chip.clock_hz, self._memory_secs(chip))

  def assumed_secs(self, chip: chips.Chip) -> float:
    """Returns the seconds of a call by its code: those of the slowest unit."""
    work = max(
      self.matrix_flops / (chip.peak_flops * MATRIX_EFFICIENCY),
      self.vector_ops / (chip.vector_ops * VECTOR_EFFICIENCY),
      self._memory_secs(chip),
    )
    return work + self.grid_secs(chip)

  def grid_secs(self, chip: chips.Chip) -> float:
    """Returns the seconds that the steps of the grid are assumed to add."""
    return self.grid_steps * GRID_STEP_SECS / chip.num_cores

  def _memory_secs(self, chip: chips.Chip) -> float:
    return self.bytes / (chip.hbm_bandwidth * MEMORY_EFFICIENCY)


@dataclasses.dataclass
class ProgramCount:
  """The work of a traced program on all devices.

  Attributes:
    matmul_flops: FLOPs of matrix multiplications, including kernels and
      recomputation.
    kernels: its Pallas kernels, each once.
  """

  matmul_flops: float = 0
  kernels: list[KernelCost] = dataclasses.field(default_factory=list)


def count_program(jaxpr: Any, mxu_width: int = 128) -> ProgramCount:
  """Counts the work of a traced program.

  The body of a scan counts as often as it runs. Of several branches the
  costliest counts, and of `jax.lax.platform_dependent` the branch of a TPU.

  Args:
    jaxpr: `jax.jit(f).trace(...).jaxpr`.
    mxu_width: rows and columns of the matrix unit that kernels run on.
  """
  count = ProgramCount()
  _walk(_open(jaxpr), 1, count, mxu_width)
  return count


def _open(jaxpr: Any) -> Any:
  """Returns a jaxpr without its constants, whether it is closed or not."""
  return jaxpr if hasattr(jaxpr, "eqns") else jaxpr.jaxpr


def _inner(eqn: Any) -> Iterator[Any]:
  """Yields the jaxprs among an equation's parameters."""
  for value in eqn.params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if hasattr(item, "eqns") or hasattr(item, "jaxpr"):
        yield _open(item)


def _walk(jaxpr: Any, times: float, count: ProgramCount, width: int) -> None:
  chosen: dict[Any, int] = {}  # variable -> branch that a TPU takes
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    if name == "platform_index":
      chosen[eqn.outvars[0]] = _tpu_branch(params["platforms"])
      continue
    if eqn.outvars and eqn.invars and name in ("convert_element_type", "clamp"):
      for variable in eqn.invars:
        if not hasattr(variable, "val") and variable in chosen:
          chosen[eqn.outvars[0]] = chosen[variable]
    if name == "dot_general":
      count.matmul_flops += times * _dot_flops(eqn)[0]
    elif name == "pallas_call":
      kernel = _kernel(eqn, width)
      count.matmul_flops += times * kernel.flops
      same = (kernel.name, kernel.results)
      if same not in [(k.name, k.results) for k in count.kernels]:
        count.kernels.append(kernel)
    elif name == "cond":
      branches, index = params["branches"], eqn.invars[0]
      if not hasattr(index, "val") and index in chosen:
        branches = branches[chosen[index] : chosen[index] + 1]
      counts = []
      for branch in branches:
        counts.append(ProgramCount(kernels=count.kernels))
        _walk(_open(branch), times, counts[-1], width)
      count.matmul_flops += max(c.matmul_flops for c in counts)
    else:
      more = times
      if name == "scan":
        more *= params["length"]
      elif name == "shard_map":  # written for one device
        sizes = dict(params["mesh"].shape)
        axes = params.get("manual_axes", sizes)
        more *= math.prod(sizes[axis] for axis in axes)
      for inner in _inner(eqn):
        _walk(inner, more, count, width)


def _tpu_branch(platforms: Sequence[Sequence[str] | None]) -> int:
  """Returns the index of the branch that platform_dependent takes on a TPU."""
  named = [i for i, p in enumerate(platforms) if p is not None and "tpu" in p]
  return named[0] if named else list(platforms).index(None)


def _dot_flops(eqn: Any, width: int = 1) -> tuple[float, float]:
  """Returns the FLOPs of a dot_general, without and with padding to a unit."""
  (contracted, _), (batched, _) = eqn.params["dimension_numbers"]
  lhs, rhs = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
  batch = math.prod(lhs[i] for i in batched)
  k = math.prod(lhs[i] for i in contracted)
  m = math.prod(lhs) // max(batch * k, 1)
  n = math.prod(rhs) // max(batch * k, 1)
  padded = _pad(m, 8 if width > 1 else 1) * _pad(n, width) * _pad(k, width)
  return 2.0 * batch * m * n * k, 2.0 * batch * padded


def _pad(size: int, unit: int) -> int:
  """Returns the smallest multiple of a unit that holds a size."""
  return -(-size // unit) * unit


def _kernel(eqn: Any, width: int) -> KernelCost:
  params = eqn.params
  info = params.get("name_and_src_info")
  name = getattr(info, "name", None) or str(params.get("name") or "pallas_call")
  mapping = params["grid_mapping"]
  steps = math.prod(int(size) for size in mapping.grid)
  cost = KernelCost(
    name=name,
    results=tuple(_hlo_type(v.aval) for v in eqn.outvars),
    grid_steps=steps,
  )
  _walk_kernel(_open(params["jaxpr"]), steps, cost, width)
  cost.bytes = _block_bytes(eqn, mapping)
  return cost


_HLO_TYPES = {"bool": "pred", "bfloat16": "bf16", "float32": "f32"} | {
  f"{'u' * (sign == 'u')}int{bits}": f"{sign}{bits}"
  for sign in "su"
  for bits in (4, 8, 16, 32, 64)
}


def _hlo_type(aval: Any) -> str:
  dtype = str(aval.dtype)
  dims = ",".join(str(size) for size in aval.shape)
  return f"{_HLO_TYPES.get(dtype, dtype)}[{dims}]"


class _Values:
  """Numbers the values of a program, equal computations with equal numbers.

  A compiler computes equal values once. So a kernel that repeats a mask for
  every head does not pay for it every time.
  """

  def __init__(self):
    self._numbers: dict[Any, int] = {}
    self.fresh = itertools.count()

  def of(self, names: dict[Any, int], variable: Any) -> Any:
    """Returns the number of a variable, or the value of a literal."""
    if hasattr(variable, "val"):
      return str(variable.val), str(variable.aval)
    return names.setdefault(variable, next(self.fresh))

  def computed(self, eqn: Any, given: tuple[Any, ...]) -> tuple[int, bool]:
    """Returns the number of an equation's result, and whether it is new."""
    if eqn.effects or not eqn.invars and eqn.primitive.name != "iota":
      return next(self.fresh), True
    key = (eqn.primitive.name, str(eqn.params), given)
    known = key in self._numbers
    return self._numbers.setdefault(key, next(self.fresh)), not known


_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call")


def _walk_kernel(
  jaxpr: Any,
  times: float,
  cost: KernelCost,
  width: int,
  values: _Values | None = None,
  given: Sequence[Any] = (),
) -> list[Any]:
  """Adds the work of a kernel's body to its cost.

  Args:
    jaxpr: the body.
    times: how often the body runs.
    cost: the cost to add to.
    width: rows and columns of the matrix unit.
    values: the values computed before, if the body is part of another body.
    given: the numbers of the body's arguments among these values.

  Returns:
    The numbers of the body's results.
  """
  values = values or _Values()
  names = dict(zip(jaxpr.invars, given, strict=False))
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    numbers = tuple(values.of(names, v) for v in eqn.invars)
    inner = list(_inner(eqn))
    if name in _CALLS and len(inner) == 1:
      results = _walk_kernel(inner[0], times, cost, width, values, numbers)
      names |= dict(zip(eqn.outvars, results, strict=True))
      continue
    if name == "cond":
      costs = []
      for branch in eqn.params["branches"]:
        costs.append(KernelCost("", ()))
        _walk_kernel(_open(branch), times, costs[-1], width)
      for field in ("flops", "matrix_flops", "vector_ops"):
        most = max(getattr(c, field) for c in costs)
        setattr(cost, field, getattr(cost, field) + most)
      continue
    if inner:
      more = times * (eqn.params["length"] if name == "scan" else 1)
      for body in inner:
        _walk_kernel(body, more, cost, width)
      continue
    number, is_new = values.computed(eqn, numbers)
    if len(eqn.outvars) == 1:
      names[eqn.outvars[0]] = number
    if not is_new:
      continue
    if name == "dot_general":
      flops, padded = _dot_flops(eqn, width)
      cost.flops += times * flops
      cost.matrix_flops += times * padded
      continue
    reads = name.startswith(("reduce_", "argm")) or not eqn.outvars
    avals = [v.aval for v in (eqn.invars if reads else eqn.outvars)]
    elements = max((_padded_size(a) for a in avals), default=0)
    cost.vector_ops += times * elements * _VECTOR_WEIGHTS.get(name, 1)
  return [values.of(names, v) for v in jaxpr.outvars]


def _padded_size(aval: Any) -> int:
  """Returns the elements of an array padded to registers; 0 for scalars."""
  shape = getattr(aval, "shape", ())
  if not shape or math.prod(shape) == 1:
    return 0
  rows = shape[-2] if len(shape) > 1 else 1
  return math.prod(shape[:-2]) * _pad(rows, 8) * _pad(shape[-1], 128)


def _block_bytes(eqn: Any, mapping: Any) -> float:
  """Returns the bytes that the blocks of arguments and results move.

  A block is moved only at a step at which its place differs from the step
  before. So the innermost dimensions of the grid that the place does not depend
  on do not count.
  """
  total = 0.0
  for block in mapping.block_mappings:
    array = getattr(block, "array_aval", None) or block.array_shape_dtype
    size = math.prod(_block_size(dim) for dim in block.block_shape)
    depends = _dependencies(_open(block.index_map_jaxpr))
    used = [i for i in range(len(mapping.grid)) if i in depends]
    outer = mapping.grid[: used[-1] + 1] if used else ()
    moves = math.prod(int(n) for n in outer)
    total += moves * size * array.dtype.itemsize
  return total


def _block_size(dim: Any) -> int:
  if isinstance(dim, int):
    return dim
  return int(getattr(dim, "block_size", None) or 1)


def _dependencies(jaxpr: Any) -> set[int]:
  """Returns the indices of the arguments that a jaxpr's results depend on."""
  depends = {var: {i} for i, var in enumerate(jaxpr.invars)}

  def of(variables: Iterable[Any]) -> set[int]:
    known = [v for v in variables if not hasattr(v, "val")]  # no literals
    return set().union(*(depends.get(v, set()) for v in known))

  for eqn in jaxpr.eqns:
    depends |= dict.fromkeys(eqn.outvars, of(eqn.invars))
  return of(jaxpr.outvars)


def kernel_cost(
  call: hlo.Instruction, kernels: Sequence[KernelCost]
) -> tuple[KernelCost, bool]:
  """Returns the cost of a kernel's call in a compiled program.

  Args:
    call: an instruction of kind "pallas".
    kernels: the kernels of the traced program, from `count_program`.

  Returns:
    The cost, and whether the kernel's code was found. If not, the cost is the
    kernel's own estimate; if it has none, its operands and results pass through
    memory once.
  """
  results = tuple(re.findall(r"\w+\[[\d,]*\]", call.shape))
  if found := [k for k in kernels if k.results == results]:
    return min(found, key=lambda k: k.name != call.kernel), True
  moved = float(call.result_bytes + call.operand_bytes)
  flops = call.cost.get("flops", 0)
  cost = KernelCost(
    name=call.kernel,
    results=results,
    flops=flops,
    matrix_flops=flops,
    vector_ops=4 * call.cost.get("transcendentals", 0),
    bytes=call.cost.get("bytes_accessed", 0) or moved,
  )
  return cost, False


def add_schedules(
  costs_of_calls: Mapping[str, tuple[KernelCost, bool]],
  program: hlo.Program,
  texts: Mapping[str, str],
  num_cores: int,
) -> dict[str, tuple[KernelCost, bool]]:
  """Adds the scheduled cycles to the costs of kernels.

  The compiler schedules equal kernels once, so a call without a schedule of its
  own has that of a call of the same kernel with the same types.

  Args:
    costs_of_calls: the result of `kernel_cost` for each call, by its name.
    program: the compiled program.
    texts: the schedules, from `schedules.read`.
    num_cores: the cores that share the steps of a grid.
  """
  found: dict[tuple, float | None] = {}
  keys = {
    call.name: (call.kernel, call.shape, call.operand_shapes)
    for call in program.pallas_calls
  }
  for name, key in keys.items():
    if name in texts and found.get(key) is None:
      steps = -(-costs_of_calls[name][0].grid_steps // num_cores)
      found[key] = schedules.cycles(texts[name], steps)
  return {
    name: (dataclasses.replace(cost, cycles=found.get(keys[name])), known)
    for name, (cost, known) in costs_of_calls.items()
  }


def describe_kernels(
  program: hlo.Program,
  kernels: Mapping[str, tuple[KernelCost, bool]],
  chip: chips.Chip,
) -> list[dict[str, Any]]:
  """Returns rows about the Pallas kernels of a program, for a plan.

  Equal calls of a kernel share a row.

  Args:
    program: the compiled program.
    kernels: the result of `kernel_cost` for each call, by the call's name.
    chip: the facts of one device.
  """
  table: dict[tuple, dict[str, Any]] = {}
  for call in program.pallas_calls:
    cost, known = kernels[call.name]
    row = table.setdefault(
      (call.kernel, call.shape, call.part, call.phase),
      {
        "name": call.kernel,
        "part": call.part,
        "phase": call.phase,
        "runs": 0,
        "secs_per_run": cost.secs(chip),
        "assumed_secs_per_run": cost.assumed_secs(chip),
        "scheduled_cycles": cost.cycles,
        "matmul_flops": cost.flops,
        "matmul_flops_padded": cost.matrix_flops,
        "vector_ops": cost.vector_ops,
        "bytes": cost.bytes,
        "grid_steps": cost.grid_steps,
        "code_found": known,
      },
    )
    row["runs"] += call.count
  return list(table.values())


# --- exchanges ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Network:
  """The links between the devices of a mesh.

  Attributes:
    chip: the facts of one device (`Chip.per_device`).
    shape: the number of chips of a slice along each dimension.
    coords: the coordinates of the chip of each device of one slice, in the
      order of the mesh.
    num_slices: the number of slices.
  """

  chip: chips.Chip
  shape: tuple[int, ...]
  coords: tuple[tuple[int, ...], ...]
  num_slices: int = 1

  def secs(self, exchange: hlo.Collective) -> float:
    """Returns the seconds of one exchange that shares the links with no other.

    Args:
      exchange: an exchange of a compiled program.
    """
    if exchange.over_dcn:
      sent = exchange.bytes_sent(self.num_slices)
      return DCN_SECS + sent / self.chip.dcn_bandwidth
    sent = exchange.bytes_sent(len(self.coords))
    if not sent:
      return 0.0
    if exchange.kind == "collective-permute":
      return self._permute_secs(exchange, sent)
    group = exchange.groups[0] if exchange.groups else range(len(self.coords))
    spans = self._spans([self.coords[i % len(self.coords)] for i in group])
    if not spans:  # cores of one chip
      return sent / (self.chip.hbm_bandwidth / 2)
    links = sum(links / shared for _, links, shared in spans)
    slow_down = 1.0
    if "all-to-all" in exchange.kind:  # data passes through other chips
      slow_down = max(size / (4 if n > 1 else 3) for size, n, _ in spans)
    rounds = 2 if exchange.kind == "all-reduce" else 1
    hops = sum((size - 1) / n for size, n, _ in spans)
    return rounds * hops * HOP_SECS + sent * max(slow_down, 1) / (
      links * self.chip.link_bandwidth
    )

  def _permute_secs(self, exchange: hlo.Collective, sent: float) -> float:
    """Returns the seconds of the longest path, whose chips all pass data on."""
    far = 0
    for source, target in exchange.groups:
      a, b = (self.coords[i % len(self.coords)] for i in (source, target))
      far = max(far, sum(map(self._distance, self.shape, a, b)))
    return far * HOP_SECS + sent * max(far, 1) / self.chip.link_bandwidth

  def _distance(self, size: int, a: int, b: int) -> int:
    if self._is_ring(size):
      return min((a - b) % size, (b - a) % size)
    return abs(a - b)

  def _is_ring(self, size: int) -> bool:
    return size > 2 and size % self.chip.wrap == 0

  def _spans(
    self, places: Sequence[tuple[int, ...]]
  ) -> list[tuple[int, int, float]]:
    """Describes how a group of devices lies along the dimensions it spans.

    Args:
      places: the coordinates of the group's chips.

    Returns:
      For each dimension: the number of chips, the links over which a chip can
      send at once (2 on a ring), and the number of groups that share the links
      because their chips alternate.
    """
    spans = []
    for dim, size in enumerate(self.shape):
      values = sorted({place[dim] for place in places})
      if len(values) > 1:
        whole = len(values) == size and self._is_ring(size)
        reach = values[-1] - values[0] + 1
        spans.append((len(values), 2 if whole else 1, reach / len(values)))
    return spans


# --- time --------------------------------------------------------------------


@dataclasses.dataclass
class Times:
  """Seconds of a step on one device.

  Attributes:
    compute: the work that the compiler estimates.
    starved: what the work takes longer, because memory cannot feed it.
    kernels: the Pallas kernels.
    exposed: waiting for exchanges that do not overlap with other work.
    hidden: exchanges that overlap with other work.
  """

  compute: float = 0.0
  starved: float = 0.0
  kernels: float = 0.0
  exposed: float = 0.0
  hidden: float = 0.0

  @property
  def step(self) -> float:
    """Seconds of the whole step."""
    return self.compute + self.starved + self.kernels + self.exposed

  def add(self, other: "Times", runs: int = 1) -> None:
    """Adds the times of another part, which runs some number of times."""
    for field in dataclasses.fields(self):
      mine, theirs = (getattr(x, field.name) for x in (self, other))
      setattr(self, field.name, mine + runs * theirs)


def timeline(
  schedule: Iterable[hlo.Step],
  clock_hz: float,
  kernel_secs: Callable[[hlo.Instruction], float],
  exchange_secs: Callable[[hlo.Collective], float],
  bandwidth: float = math.inf,
) -> Times:
  """Predicts the times of a schedule.

  Work is done in the order of the schedule. An exchange begins where the
  compiler starts it, but after the earlier exchanges on the same network, and
  the device waits for it where the compiler waits. An exchange that is not
  split into a start and an end overlaps with nothing. No exchange lasts from
  one run of a loop to the next.

  Args:
    schedule: the schedule, from `hlo.parse`.
    clock_hz: cycles per second.
    kernel_secs: returns the seconds of a call of a Pallas kernel.
    exchange_secs: returns the seconds of one run of an exchange.
    bandwidth: bytes per second between memory and the chip. What would need
      more at its estimated cycles takes the time of its bytes.
  """
  times = Times()
  now = 0.0
  free = {False: 0.0, True: 0.0}  # over_dcn -> when that network is free
  ends: dict[int, tuple[float, float]] = {}

  def begin(exchange: hlo.Collective) -> None:
    secs = exchange_secs(exchange)
    start = max(now, free[exchange.over_dcn])
    free[exchange.over_dcn] = start + secs
    ends[id(exchange)] = start + secs, secs

  for step in schedule:
    if step.starts is not None and step.starts is not step.waits:
      begin(step.starts)
    if step.body is not None:
      part = timeline(
        step.body, clock_hz, kernel_secs, exchange_secs, bandwidth
      )
      times.add(part, step.runs)
      now += step.runs * part.step
    elif step.instruction.kind == "pallas":
      secs = kernel_secs(step.instruction)
      times.kernels += secs
      now += secs
    else:
      secs = step.instruction.cycles / clock_hz
      starved = max(step.instruction.moved_bytes / bandwidth - secs, 0.0)
      times.compute += secs
      times.starved += starved
      now += secs + starved
    if step.starts is not None and step.starts is step.waits:
      begin(step.starts)
    if step.waits is not None and id(step.waits) in ends:
      end, secs = ends.pop(id(step.waits))
      wait = max(end - now, 0.0)
      times.exposed += wait
      times.hidden += secs - wait if secs - wait > 1e-12 else 0.0
      now += wait
  return times
