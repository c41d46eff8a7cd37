"""What parts of a program cost that no compiler estimates: kernels, exchanges.

Three things, all of them estimates to be stated with what they assume:

- `count_program`: matrix multiplications of a traced program, and the work of
  its Pallas kernels, read from their own code.
- `Network`: seconds of an exchange between devices, from bytes and links.
- `timeline`: seconds of a step, where exchanges hide behind other work.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import itertools
import math
import re
from typing import Any

from bert_jax.planning import hlo
from bert_jax.runtime import chips

# What part of a unit's peak a Pallas kernel is taken to reach, over the padded
# sizes that the unit works on. Memory: what the compiler itself counts with.
MATRIX_EFFICIENCY = 0.7
VECTOR_EFFICIENCY = 0.5
MEMORY_EFFICIENCY = 0.8
# Seconds that a step of a kernel's grid takes beside its work.
# Source: docs.jax.dev/en/latest/pallas/tpu/pipelining.html.
GRID_STEP_SECS = 0.35e-6
# Vector operations that one element of an operation takes; 1 if not listed.
# For long chains of float and integer operations and of exponentials on v5e and
# v6e the compiler estimates 4 to 8, 4 to 5 and 2 to 4 a cycle and register;
# at VECTOR_EFFICIENCY it is 2, 2 and 1 here.
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
# Source: jax-ml.github.io/scaling-book/sharding (hops, about 1 us); a message
# over Ethernet: an assumption.
HOP_SECS = 1e-6
DCN_SECS = 50e-6


# --- traced programs ---------------------------------------------------------


@dataclasses.dataclass
class KernelCost:
  """Work of one call of a Pallas kernel on one device.

  Attributes:
    name: of the kernel.
    results: types of its results, as HLO writes them.
    flops: of its matrix multiplications, as written.
    matrix_flops: the same, with the sizes padded to the matrix unit.
    vector_ops: element operations, padded to the vector registers.
    bytes: moved between memory and chip.
    grid_steps: steps of its grid.
  """

  name: str
  results: tuple[str, ...]
  flops: float = 0
  matrix_flops: float = 0
  vector_ops: float = 0
  bytes: float = 0
  grid_steps: int = 1

  def secs(self, chip: chips.Chip) -> float:
    """Seconds of a call: the slowest unit, at the efficiencies above."""
    work = max(
      self.matrix_flops / (chip.peak_flops * MATRIX_EFFICIENCY),
      self.vector_ops / (chip.vector_ops * VECTOR_EFFICIENCY),
      self.bytes / (chip.hbm_bandwidth * MEMORY_EFFICIENCY),
    )
    return work + self.grid_steps * GRID_STEP_SECS / chip.num_cores


@dataclasses.dataclass
class ProgramCount:
  """What a traced program computes on all devices.

  Attributes:
    matmul_flops: FLOPs of matrix multiplications, those of kernels included,
      recomputation included.
    kernels: its Pallas kernels, each once.
  """

  matmul_flops: float = 0
  kernels: list[KernelCost] = dataclasses.field(default_factory=list)


def count_program(jaxpr: Any, mxu_width: int = 128) -> ProgramCount:
  """Counts the work of a program as it was traced.

  Args:
    jaxpr: `jax.jit(f).trace(...).jaxpr`. Scans are multiplied out; of branches
      the costliest counts, of `jax.lax.platform_dependent` that of a TPU.
    mxu_width: rows and columns of the matrix unit that kernels run on.
  """
  count = ProgramCount()
  _walk(_open(jaxpr), 1, count, mxu_width)
  return count


def _open(jaxpr: Any) -> Any:
  """A jaxpr, of a closed one or not."""
  return jaxpr if hasattr(jaxpr, "eqns") else jaxpr.jaxpr


def _inner(eqn: Any) -> Iterator[Any]:
  """The jaxprs among an equation's parameters."""
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
  """Which branch of jax.lax.platform_dependent is for a TPU."""
  named = [i for i, p in enumerate(platforms) if p is not None and "tpu" in p]
  return named[0] if named else list(platforms).index(None)


def _dot_flops(eqn: Any, width: int = 1) -> tuple[float, float]:
  """FLOPs of a dot_general: as written, and padded to a matrix unit."""
  (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = eqn.params[
    "dimension_numbers"
  ]
  lhs, rhs = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
  batch = math.prod(lhs[i] for i in lhs_batch)
  k = math.prod(lhs[i] for i in lhs_contract)
  m = math.prod(lhs) // max(batch * k, 1)
  n = math.prod(rhs) // max(batch * k, 1)
  del rhs_contract, rhs_batch

  def pad(size, unit):
    return -(-size // unit) * unit

  padded = pad(m, 8 if width > 1 else 1) * pad(n, width) * pad(k, width)
  return 2.0 * batch * m * n * k, 2.0 * batch * padded


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
  """Numbers of values: what is computed twice from the same has one number.

  Compilers compute it once; kernels that repeat a mask for every head do not
  pay for it every time.
  """

  def __init__(self):
    self._numbers: dict[Any, int] = {}
    self.fresh = itertools.count()

  def of(self, names: dict[Any, int], variable: Any) -> Any:
    """The number of a variable, or the value of a literal."""
    if hasattr(variable, "val"):
      return str(variable.val), str(variable.aval)
    return names.setdefault(variable, next(self.fresh))

  def computed(self, eqn: Any, given: tuple[Any, ...]) -> tuple[int, bool]:
    """The number of an equation's result, and whether it is a new one."""
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
  """Adds the work of a kernel's body, run some times.

  Args:
    jaxpr: of the body.
    times: runs.
    cost: to add to.
    width: of the matrix unit.
    values: computed before, for a body that is a part of another.
    given: numbers of its arguments among these.

  Returns:
    The numbers of its results.
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
    more = times * (eqn.params["length"] if name == "scan" else 1)
    for body in inner:
      _walk_kernel(body, more, cost, width)
    if inner:
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
  """Elements of an array in registers of 8 x 128; 0 for scalars."""
  shape = getattr(aval, "shape", ())
  if not shape or math.prod(shape) == 1:
    return 0
  rows = shape[-2] if len(shape) > 1 else 1
  padded = (-(-rows // 8) * 8) * (-(-shape[-1] // 128) * 128)
  return math.prod(shape[:-2]) * padded


def _block_bytes(eqn: Any, mapping: Any) -> float:
  """Bytes that the blocks of a kernel's arguments and results move.

  A block is moved again only where its place differs from the step before, so
  not over the innermost dimensions of the grid that it does not depend on.
  """
  total = 0.0
  for block in mapping.block_mappings:
    array = getattr(block, "array_aval", None) or block.array_shape_dtype
    size = math.prod(_block_size(dim) for dim in block.block_shape)
    index_map = _open(block.index_map_jaxpr)
    depends = _dependencies(index_map)
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
  """Which arguments of a jaxpr its results depend on."""
  depends = {var: {i} for i, var in enumerate(jaxpr.invars)}

  def of(variables: Iterable[Any]) -> set[int]:
    known = [v for v in variables if not hasattr(v, "val")]  # no literals
    return set().union(*(depends.get(v, set()) for v in known))

  for eqn in jaxpr.eqns:
    found = of(eqn.invars)
    depends |= dict.fromkeys(eqn.outvars, found)
  return of(jaxpr.outvars)


def kernel_cost(
  call: hlo.Instruction, kernels: Sequence[KernelCost]
) -> tuple[KernelCost, bool]:
  """What a call of a kernel in a compiled program costs.

  Args:
    call: of kind "pallas".
    kernels: of `count_program`.

  Returns:
    The cost, and whether the kernel's code was found. If not, the cost is what
    the kernel says of itself, and if it says nothing, its operands and results
    that pass through memory once.
  """
  results = tuple(re.findall(r"\w+\[[\d,]*\]", call.shape))
  for fits in (
    lambda k: k.name == call.kernel and k.results == results,
    lambda k: k.results == results,
  ):
    if found := next(filter(fits, kernels), None):
      return found, True
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


def describe_kernels(
  program: hlo.Program,
  kernels: Mapping[str, tuple[KernelCost, bool]],
  chip: chips.Chip,
) -> list[dict[str, Any]]:
  """The Pallas kernels of a program; equal calls are one entry."""
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
  """Links between the devices of a mesh.

  Attributes:
    chip: of one device (`Chip.per_device`).
    shape: chips of a slice along each dimension.
    coords: place of the chip of each device of one slice, in the order of the
      mesh.
    num_slices: slices.
  """

  chip: chips.Chip
  shape: tuple[int, ...]
  coords: tuple[tuple[int, ...], ...]
  num_slices: int = 1

  def secs(self, exchange: hlo.Collective) -> float:
    """Seconds of one run of an exchange that has the links for itself."""
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
    links = sum(span.links / span.shared for span in spans)
    slow_down = 1.0
    if "all-to-all" in exchange.kind:  # data passes through others
      slow_down = max(s.size / (4 if s.links > 1 else 3) for s in spans)
    rounds = 2 if exchange.kind == "all-reduce" else 1
    hops = sum((s.size - 1) / s.links for s in spans)
    return rounds * hops * HOP_SECS + sent * max(slow_down, 1) / (
      links * self.chip.link_bandwidth
    )

  def _permute_secs(self, exchange: hlo.Collective, sent: float) -> float:
    """The longest way decides: data passes through all chips on it."""
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

  def _spans(self, places: Sequence[tuple[int, ...]]) -> list["_Span"]:
    spans = []
    for dim, size in enumerate(self.shape):
      values = sorted({place[dim] for place in places})
      if len(values) > 1:
        whole = len(values) == size and self._is_ring(size)
        reach = values[-1] - values[0] + 1
        spans.append(_Span(len(values), 2 if whole else 1, reach / len(values)))
    return spans


@dataclasses.dataclass(frozen=True)
class _Span:
  """How a group of devices lies along one dimension of the network.

  Attributes:
    size: chips of the group.
    links: that a chip can send over at once: 2 on a ring.
    shared: groups that share the links, where they lie in turns.
  """

  size: int
  links: int
  shared: float


# --- time --------------------------------------------------------------------


@dataclasses.dataclass
class Times:
  """Seconds of a step on one device.

  Attributes:
    compute: of what the compiler estimates.
    kernels: of Pallas kernels.
    exposed: waiting for exchanges that nothing hides.
    hidden: of exchanges, behind other work.
  """

  compute: float = 0.0
  kernels: float = 0.0
  exposed: float = 0.0
  hidden: float = 0.0

  @property
  def step(self) -> float:
    """Of the whole step."""
    return self.compute + self.kernels + self.exposed

  def add(self, other: "Times", runs: int = 1) -> None:
    """Adds another part, run some times."""
    for field in dataclasses.fields(self):
      mine, theirs = (getattr(x, field.name) for x in (self, other))
      setattr(self, field.name, mine + runs * theirs)


def timeline(
  schedule: Iterable[hlo.Step],
  clock_hz: float,
  kernel_secs: Callable[[hlo.Instruction], float],
  exchange_secs: Callable[[hlo.Collective], float],
) -> Times:
  """Runs through a schedule.

  Work is done in the order of the schedule. An exchange begins where the
  compiler starts it, after those before it on the same network, and is waited
  for where the compiler waits; one that is not split into a start and an end
  hides behind nothing. Nothing is carried from one run of a loop to the next.

  Args:
    schedule: of `hlo.parse`.
    clock_hz: cycles per second.
    kernel_secs: of a call of a Pallas kernel.
    exchange_secs: of one run of an exchange.
  """
  times = Times()
  now = 0.0
  free = {False: 0.0, True: 0.0}  # over_dcn -> when the network is free
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
      part = timeline(step.body, clock_hz, kernel_secs, exchange_secs)
      times.add(part, step.runs)
      now += step.runs * part.step
    elif step.instruction.kind == "pallas":
      secs = kernel_secs(step.instruction)
      times.kernels += secs
      now += secs
    else:
      secs = step.instruction.cycles / clock_hz
      times.compute += secs
      now += secs
    if step.starts is not None and step.starts is step.waits:
      begin(step.starts)
    if step.waits is not None and id(step.waits) in ends:
      end, secs = ends.pop(id(step.waits))
      wait = max(end - now, 0.0)
      times.exposed += wait
      times.hidden += secs - wait if secs - wait > 1e-12 else 0.0
      now += wait
  return times
