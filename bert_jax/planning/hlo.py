"""Reads the text of a compiled program: what runs, how often, how long.

  python -m bert_jax.planning.hlo FILE [--top=25]

The text is that of `compiled.as_text()`. A program for a TPU carries the
compiler's own estimate of the cycles of every instruction that it schedules;
one for a CPU has none, and everything else here works on it too.

The scheduled level is the entry computation, the bodies of its `while` loops
and whatever these call. What a fusion holds is not scheduled: an estimate
inside of it is part of the fusion's own and is not counted. The body of a loop
counts as often as it runs; of the branches of a conditional the costliest one
counts.

A Pallas kernel (`tpu_custom_call`) has no estimate: see `Instruction.cost`.
"""

import argparse
import collections
from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import itertools
import json
import math
import re
import sys

from bert_jax.runtime import errors

COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
MATMULS = ("convolution", "dot", "ragged-dot")
PALLAS_TARGET = "tpu_custom_call"

PARTS = (
  "attention",
  "mlp",
  "layer_norm",
  "dropout",
  "embedding",
  "vocabulary",
  "optimizer",
  "scan",
  "other",
)
FORWARD, BACKWARD, RECOMPUTED = "forward", "backward", "recomputed"

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([0-9,<=]*)\]")
_COMPUTATION = re.compile(r"(ENTRY )?%?([^\s(]+) \(.*->.*\{\s*$")
_END = re.compile(r"\}(, execution_thread=.*)?\s*")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([^\s=]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w-]*)\(")
_OPERAND = re.compile(
  r"%([^\s,(){}]+)|(?<![\w\]}])([A-Za-z_][\w.-]*)(?=[,)]|$)"
)
_CYCLES = re.compile(r'"estimated_cycles":"?(-?\d+)')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_TRIPS = re.compile(r'known_trip_count\\?"?:\s*\{\\?"n\\?":\\?"?(\d+)')
_CALLED = re.compile(
  r"\b(calls|to_apply|body|condition|true_computation|false_computation)"
  r"=%?([^\s,})]+)"
)
_COPIES = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
# How a program for several slices hands data to the network between them.
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]+)"')
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_ASYNC_START = 'custom_call_target="AsyncCollectiveStart"'
_INDEX = re.compile(r"\bindex=(\d+)")

# Searched in the path of names from the first to the last; the first that is
# found says which part of the model an instruction belongs to. A gradient that
# no module holds is that of the loss, which is over the vocabulary. What no
# gradient is taken of is the optimizer. Scanned layers keep what the backward
# pass needs in stacked arrays: "scan" is reading and writing these alone.
# Random bits are "dropout" wherever they are drawn.
_PART_RULES = tuple(
  (re.compile(pattern), part)
  for pattern, part in (
    (
      r"dropout|random_bits|threefry|rng_bit|random_seed|random_wrap",
      "dropout",
    ),
    (r"norm(/|$)|layer_norm", "layer_norm"),
    (r"embeddings?(/|$)", "embedding"),
    (r"(^|/)mlm(/|$)|vocab|cross_entropy|log_softmax|logsumexp", "vocabulary"),
    (r"(^|/)attention(/|$)|splash|flash", "attention"),
    (r"(^|/)mlp(/|$)", "mlp"),
    (r"(^|/)optim", "optimizer"),
    (r"^(while|[^/]*loss)?/", "vocabulary"),
    (r"/(jit\()?dynamic_(update_)?(index_in_dim|slice)", "scan"),
  )
)


class HloError(errors.UserError):
  """The text is not that of a compiled program."""


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One scheduled instruction.

  Attributes:
    name: as in the text, without %.
    opcode: of HLO: "fusion", "convolution", "copy-start", "custom-call" ...
    kind: "matmul" (also a fusion around one), "fusion", "collective", "copy",
      "pallas", "custom-call", "loop" or "other".
    shape: type of the result, as in the text, without layouts.
    result_bytes: of the result, padding of tiles not counted.
    operand_shapes: types of the operands, without layouts.
    op_name: path of names of the program that it comes from; of a fusion
      without one, that of what it holds.
    cycles: the compiler's estimate of one run; 0 where it makes none.
    count: runs a step.
    custom_call_target: "" for all but custom calls.
    cost: what a Pallas kernel says of itself: "flops", "transcendentals" and
      "bytes_accessed" of one run; {} if it says nothing.
    kernel: name of the Pallas kernel, or "".
    num_matmuls: matrix multiplications that it holds.
  """

  name: str
  opcode: str
  kind: str
  shape: str
  result_bytes: int
  operand_shapes: tuple[str, ...]
  op_name: str
  cycles: int
  count: int
  custom_call_target: str = ""
  cost: Mapping[str, float] = dataclasses.field(default_factory=dict)
  kernel: str = ""
  num_matmuls: int = 0

  @property
  def operand_bytes(self) -> int:
    """Of all operands."""
    return sum(map(shape_bytes, self.operand_shapes))

  @property
  def total_cycles(self) -> int:
    """Estimated cycles of all runs of a step."""
    return self.cycles * self.count

  @property
  def part(self) -> str:
    """One of PARTS."""
    return part_of(self.op_name)

  @property
  def phase(self) -> str:
    """FORWARD, BACKWARD or RECOMPUTED: forward again, in the backward pass."""
    return phase_of(self.op_name)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One exchange between devices, however many instructions it is spread over.

  Attributes:
    name: of its first instruction.
    kind: one of COLLECTIVES.
    shape: type of what each device puts in.
    operand_bytes: of that.
    groups: device groups that exchange with each other, as indices into the
      devices of the mesh in their order; of a collective-permute its
      (source, target) pairs; () if the text does not say (all with all).
    count: runs a step.
    is_async: it starts, other work is scheduled, and it is waited for.
    op_name: as of an instruction.
    over_dcn: between slices, over the data-centre network; each device
      exchanges with those in its place in the other slices.
    schedule: the computation it is scheduled in, and the places of its first
      and last instruction there.
  """

  name: str
  kind: str
  shape: str
  operand_bytes: int
  groups: tuple[tuple[int, ...], ...]
  count: int
  is_async: bool
  op_name: str
  schedule: tuple[str, int, int]
  over_dcn: bool = False

  @property
  def group_size(self) -> int:
    """Devices that exchange with each other; 0 if the text does not say."""
    return max((len(group) for group in self.groups), default=0)

  def bytes_sent(self, num_devices: int) -> float:
    """Bytes that a device sends in one run, at the least.

    Args:
      num_devices: of the mesh, for groups that the text leaves out; of an
        exchange over DCN the number of slices.
    """
    n = self.group_size or num_devices
    if self.kind == "collective-permute":
      moves = any(a != b for a, b in self.groups) or not self.groups
      return self.operand_bytes if moves else 0
    if n < 2:
      return 0
    return self.operand_bytes * {
      "all-reduce": 2 * (n - 1) / n,  # reduce-scatter, then all-gather
      "all-gather": n - 1,
      "collective-broadcast": 1,
    }.get(self.kind, (n - 1) / n)


@dataclasses.dataclass(frozen=True)
class Step:
  """A place in a schedule: an instruction, and the loop body that it runs.

  Attributes:
    instruction: what stands there.
    body: the schedule that it runs, None for all but loops and calls.
    runs: how often it runs the body.
    starts: the collective that begins here.
    waits: the collective that must be finished here.
  """

  instruction: Instruction
  body: "tuple[Step, ...] | None" = None
  runs: int = 1
  starts: Collective | None = None
  waits: Collective | None = None


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program.

  Attributes:
    schedule: of the entry computation.
    collectives: all of them, each once.
    unknown_loops: loops whose number of runs was not found; counted as 1.
  """

  schedule: tuple[Step, ...]
  collectives: tuple[Collective, ...]
  unknown_loops: tuple[str, ...]

  @property
  def instructions(self) -> list[Instruction]:
    """The scheduled instructions, those in loops with their `count`."""
    return list(_flatten(self.schedule))

  @property
  def cycles(self) -> int:
    """Estimated cycles of a step; see the top of this file."""
    return sum(i.total_cycles for i in self.instructions)

  @property
  def pallas_calls(self) -> list[Instruction]:
    """Calls of Pallas kernels, which are not part of `cycles`."""
    return [i for i in self.instructions if i.kind == "pallas"]


def _flatten(schedule: Iterable[Step]) -> Iterator[Instruction]:
  for step in schedule:
    yield step.instruction
    if step.body is not None:
      yield from _flatten(step.body)


# --- where an instruction comes from -----------------------------------------


def _strip_transforms(op_name: str) -> str:
  """`jit(f)/transpose(jvp(Model))/a/b` -> `Model/a/b`."""
  parts = []
  for part in op_name.split("/"):
    inner = re.sub(r"^(?:(?:transpose|jvp|vmap|remat|checkpoint)\()+", "", part)
    parts.append(inner.rstrip(")") if inner != part else part)
  return "/".join(parts[1:] if parts[0].startswith("jit(") else parts)


def part_of(op_name: str) -> str:
  """Says which part of the model a path of names belongs to: one of PARTS.

  Example:
    >>> part_of("jit(train_step)/jvp(Model)/encoder/layer_0/mlp/in/dot_general")
    'mlp'
    >>> part_of("jit(train_step)/mul")
    'optimizer'
  """
  path = _strip_transforms(op_name)
  for rule, part in _PART_RULES:
    if rule.search(path):
      return part
  if "jvp(" in op_name or not op_name.startswith("jit("):
    return "other"
  return "optimizer"


def phase_of(op_name: str) -> str:
  """Says in which pass an instruction runs: forward, backward, recomputed.

  Example:
    >>> phase_of("jit(train_step)/transpose(jvp(Model))/encoder/layer_0/mlp")
    'backward'
  """
  if re.search(r"\brematted_computation\b|\bremat\b(?!.*transpose)", op_name):
    return RECOMPUTED
  return BACKWARD if "transpose(" in op_name else FORWARD


def cycles_by_part(
  instructions: Iterable[Instruction],
) -> dict[str, dict[str, int]]:
  """Adds up estimated cycles: part -> phase -> cycles a step.

  The phases of the optimizer are one: "forward".
  """
  totals: dict[str, dict[str, int]] = {part: {} for part in PARTS}
  for i in instructions:
    phases = totals[i.part]
    phases[i.phase] = phases.get(i.phase, 0) + i.total_cycles
  return {
    part: phases for part, phases in totals.items() if any(phases.values())
  }


# --- the text ----------------------------------------------------------------


@dataclasses.dataclass
class _Line:
  """One instruction as written."""

  name: str
  opcode: str
  type: str
  operands: list[str]
  rest: str  # attributes
  text: str  # between the parentheses
  is_root: bool


class _Text:
  """The computations of a program."""

  def __init__(self, text: str):
    self.computations: dict[str, list[_Line]] = {}
    self.entry = ""
    current: list[_Line] | None = None
    pending: list[str] = []  # an instruction may go over several lines

    def flush():
      if pending and current is not None:
        line = "\n".join(pending)
        match = _INSTRUCTION.match(line)
        if match and (parsed := _parse_line(line, match)):
          current.append(parsed)
      pending.clear()

    for line in text.splitlines():
      if current is None:
        if match := _COMPUTATION.match(line):
          current = self.computations.setdefault(match[2], [])
          if match[1]:
            self.entry = match[2]
      elif _END.fullmatch(line):
        flush()
        current = None
      elif _INSTRUCTION.match(line):
        flush()
        pending.append(line)
      else:
        pending.append(line)
    if not self.entry:
      raise HloError(
        "this is not the text of a compiled program: it has no ENTRY "
        "computation; write the file with compiled.as_text()"
      )
    self.by_name = {
      name: {line.name: line for line in lines}
      for name, lines in self.computations.items()
    }

  def called(self, line: _Line) -> dict[str, str]:
    """Attribute -> computation that an instruction calls."""
    found = {key: name for key, name in _CALLED.findall(line.rest)}
    return {k: n for k, n in found.items() if n in self.computations}

  def inside(self, name: str) -> Iterator[_Line]:
    """The instructions of a computation and of those that it calls."""
    seen, stack = set(), [name]
    while stack:
      name = stack.pop()
      if name in seen:
        continue
      seen.add(name)
      for line in self.computations[name]:
        yield line
        stack.extend(self.called(line).values())


def _parse_line(line: str, match: re.Match) -> _Line | None:
  start = match.end()
  end = _balanced(line, start) if line[start] == "(" else line.index(" ", start)
  opcode = _OPCODE.match(line, end)
  if opcode is None:
    return None
  close = _balanced(line, opcode.end() - 1)
  inside = line[opcode.end() : close - 1]
  operands = [a or b for a, b in _OPERAND.findall(inside)]
  return _Line(
    match[2],
    opcode[1],
    line[start:end],
    operands,
    line[close:],
    inside,
    bool(match[1]),
  )


def _balanced(text: str, start: int) -> int:
  """Where the parenthesis that opens at `start` is closed, plus 1."""
  depth = 0
  for found in re.compile(r"[()]").finditer(text, start):
    depth += 1 if found[0] == "(" else -1
    if not depth:
      return found.end()
  raise HloError(f"a parenthesis is not closed: {text[:200]}")


def shape_bytes(shape: str) -> int:
  """Returns the bytes of a type as HLO writes it; tuples are added up.

  Example:
    >>> shape_bytes("(bf16[128,768]{1,0:T(8,128)(2,1)}, u32[])")
    196612
  """
  bits = 0
  for dtype, dims in _ARRAY.findall(shape):
    size = _BITS.get(dtype)
    if size is None:
      digits = re.match(r"(?:[a-z]+)(\d+)", dtype)
      size = int(digits[1]) if digits else 0
    sizes = [int(d) for d in re.findall(r"\d+", dims)]
    bits += math.prod(sizes) * size
  return -(-bits // 8)


def _plain_shape(shape: str) -> str:
  """A type without layouts and comments."""
  return re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", shape)


# --- loops -------------------------------------------------------------------


def _trip_count(text: _Text, scope: str, line: _Line) -> int | None:
  """How often a `while` runs its body; None if it cannot be told.

  The compiler writes it down where it knows, but drops the note when it later
  rewrites the loop. Then it is read off a loop that counts from a constant up
  to a constant in constant steps.
  """
  if match := _TRIPS.search(line.rest):
    return int(match[1])
  called = text.called(line)
  if not {"body", "condition"} <= set(called):
    return None
  compare = _root(text, called["condition"])
  if compare is None:
    return None
  compare, operands = _with_operands(text, called["condition"], compare)
  direction = re.search(r"direction=(\w+)", compare.rest)
  if compare.opcode != "compare" or direction is None:
    return None
  first, bound = (_initial(text, scope, line, source) for source in operands)
  kind, place = operands[0]
  if kind != "element" or first is None or bound is None:
    return None
  step = _increment(text, called["body"], place)
  if not step:
    return None
  count = {
    "LT": -(-(bound - first) // step),
    "LE": (bound - first) // step + 1,
    "GT": -(-(bound - first) // step),
    "GE": (bound - first) // step + 1,
    "NE": (bound - first) // step,
  }.get(direction[1])
  return None if count is None else max(count, 0)


def _root(text: _Text, scope: str) -> _Line | None:
  """What a computation returns, behind copies."""
  line = next((i for i in text.computations[scope] if i.is_root), None)
  return _behind_copies(text, scope, line)


def _behind_copies(text: _Text, scope: str, line: _Line | None) -> _Line | None:
  while line is not None and line.opcode in _COPIES:
    line = text.by_name[scope].get(line.operands[0])
  return line


def _with_operands(
  text: _Text, scope: str, line: _Line
) -> tuple[_Line, list[tuple[str, int]]]:
  """An instruction, or the root of a fusion, and where its operands come from.

  The sources are ("constant", value), ("element", i of the parameter of the
  computation) or ("unknown", 0).
  """
  inner = text.called(line).get("calls") if line.opcode == "fusion" else None
  root = _root(text, inner) if inner else None
  if inner is None or root is None:
    return line, [_source(text, scope, name) for name in line.operands]
  sources = []
  for name in root.operands:
    value = _behind_copies(text, inner, text.by_name[inner].get(name))
    if value is not None and value.opcode == "parameter":
      outer = line.operands[int(value.text)]
      sources.append(_source(text, scope, outer))
    else:
      sources.append(_source(text, inner, name))
  return root, sources


def _source(text: _Text, scope: str, name: str) -> tuple[str, int]:
  """Where a scalar comes from, as in `_with_operands`."""
  names = text.by_name[scope]
  line = _behind_copies(text, scope, names.get(name))
  if line is None:
    return "unknown", 0
  if line.opcode == "constant":
    value = re.fullmatch(r"-?\d+", line.text.strip())
    return ("constant", int(value[0])) if value else ("unknown", 0)
  if line.opcode == "get-tuple-element":
    source, index = names.get(line.operands[0]), _INDEX.search(line.rest)
    if source is not None and source.opcode == "parameter" and index:
      return "element", int(index[1])
  return "unknown", 0


def _initial(
  text: _Text, scope: str, loop: _Line, source: tuple[str, int]
) -> int | None:
  """The value of a source before the first run of a loop."""
  kind, value = source
  if kind == "constant":
    return value
  if kind != "element" or not loop.operands:
    return None
  names = text.by_name[scope]
  given = _behind_copies(text, scope, names.get(loop.operands[0]))
  if given is None or given.opcode != "tuple" or value >= len(given.operands):
    return None
  kind, value = _source(text, scope, given.operands[value])
  return value if kind == "constant" else None


def _increment(text: _Text, body: str, index: int) -> int | None:
  """What a loop adds to an element of its tuple in each run."""
  root = _root(text, body)
  if root is None or root.opcode != "tuple" or index >= len(root.operands):
    return None
  line = text.by_name[body].get(root.operands[index])
  line = _behind_copies(text, body, line)
  if line is None:
    return None
  add, values = _with_operands(text, body, line)
  if add.opcode != "add" or ("element", index) not in values:
    return None
  return next((v for kind, v in values if kind == "constant"), None)


# --- device groups -----------------------------------------------------------


def parse_groups(rest: str) -> tuple[tuple[int, ...], ...]:
  """Reads the device groups of a collective from its attributes.

  Four ways to write them are known: lists, `[2,2]<=[4]` and
  `[2,2]<=[2,2]T(1,0)` (an enumeration, reshaped and transposed), and
  `mesh['a'=2,'b'=2] {'b'}` (the devices that differ in the axes named), which
  may name the devices of its mesh, `device_ids=([2,2]T(1,0))`.

  Args:
    rest: what follows the operands of the instruction.

  Returns:
    Groups of indices, or of a collective-permute (source, target) pairs; () for
    one group of all.

  Raises:
    HloError: they are written in another way.

  Example:
    >>> parse_groups("replica_groups=[2,2]<=[2,2]T(1,0)")
    ((0, 2), (1, 3))
  """
  if match := re.search(r"source_target_pairs=\{((?:\{[^}]*\},?)*)\}", rest):
    return _lists(match[1])
  if match := re.search(r"replica_groups=\{((?:\{[^}]*\},?\s*)*)\}", rest):
    return _lists(match[1])
  match = re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest
  )
  if match:
    shape, source = _ints(match[1]), _ints(match[2])
    order = _ints(match[3]) if match[3] else list(range(len(source)))
    flat = _transposed(source, order)
    width = shape[-1]
    return tuple(tuple(flat[i : i + width]) for i in range(0, len(flat), width))
  match = re.search(
    r"replica_groups=(?:@\w+|mesh)\[([^\]]*)\]"
    r"(?:,\s*device_ids=\(([^{]*)\))?\s*\{([^}]*)\}",
    rest,
  )
  if match:
    axes = [(n, int(s)) for n, s in re.findall(r"'([^']+)'=(\d+)", match[1])]
    return _mesh_groups(axes, _device_ids(match[2] or ""), match[3])
  if match := re.search(r"replica_groups=.{0,80}", rest):
    raise HloError(f"these device groups cannot be read: {match[0]}")
  return ()


def _device_ids(text: str) -> list[int]:
  """The devices of a mesh in its order: a list, or `[4,4]T(1,0)`; [] = all.

  The second is an enumeration, reshaped and transposed.
  """
  if match := re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text.strip()):
    shape = _ints(match[1])
    order = _ints(match[2]) if match[2] else list(range(len(shape)))
    return _transposed(shape, order)
  return _ints(text)


def _ints(text: str) -> list[int]:
  return [int(x) for x in re.findall(r"\d+", text)]


def _lists(text: str) -> tuple[tuple[int, ...], ...]:
  return tuple(tuple(_ints(g)) for g in re.findall(r"\{([^}]*)\}", text))


def _transposed(shape: list[int], order: list[int]) -> list[int]:
  """arange(prod(shape)).reshape(shape).transpose(order).ravel()."""
  strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
  ranges = [range(shape[i]) for i in order]
  return [
    sum(k * strides[i] for k, i in zip(place, order, strict=True))
    for place in itertools.product(*ranges)
  ]


def _mesh_groups(
  axes: list[tuple[str, int]], ids: list[int], named: str
) -> tuple[tuple[int, ...], ...]:
  """Groups along axes of a mesh; `'x':(2)4` is the part of x that ...

  Of an axis of size 8, `'x':(2)4` is 4 members, each 8 / (2 * 4) apart, of
  which there are 2 groups.
  """
  # Split every axis of which a part is named into three.
  wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named)
  parts = {name: (int(before or 1), size) for name, before, size in wanted}
  shape: list[int] = []
  inside: list[int] = []
  for name, size in axes:
    if name not in parts:
      shape.append(size)
      continue
    before, members = parts[name]
    count = int(members) if members else size
    inside.append(len(shape) + 1)
    shape.extend((before, count, size // (before * count)))
  order = [i for i in range(len(shape)) if i not in inside] + inside
  flat = _transposed(shape, order)
  if ids:
    flat = [ids[i] for i in flat]
  width = math.prod(shape[i] for i in inside)
  return tuple(tuple(flat[i : i + width]) for i in range(0, len(flat), width))


# --- the schedule ------------------------------------------------------------


def parse(text: str) -> Program:
  """Reads a compiled program.

  Args:
    text: of `compiled.as_text()`.

  Raises:
    HloError: it is something else.
  """
  return _Reader(_Text(text)).read()


def _scopes_of_starts(text: _Text) -> dict[str, set[str]]:
  """Channel of a collective -> the computations in which it is started."""
  channels: dict[int, str] = {}  # id of a start -> channel that it starts
  for name, lines in text.computations.items():
    for line in lines:
      if _ASYNC_START not in line.rest:
        continue
      for operand in line.operands:
        started = text.by_name[name].get(operand)
        if started and (found := _CHANNEL.search(started.rest)):
          channels[id(line)] = found[1]
  scopes: dict[str, set[str]] = {}
  for scope, lines in text.computations.items():
    for line in lines:
      if called := text.called(line).get("calls"):
        for inner in text.inside(called):
          if id(inner) in channels:
            scopes.setdefault(channels[id(inner)], set()).add(scope)
  return scopes


class _Reader:
  """Walks the schedule from the entry computation."""

  def __init__(self, text: _Text):
    self._text = text
    self._scopes = _scopes_of_starts(text)
    self._collectives: list[Collective] = []
    self._unknown: list[str] = []

  def read(self) -> Program:
    schedule = self._schedule(self._text.entry, 1)
    return Program(schedule, tuple(self._collectives), tuple(self._unknown))

  def _schedule(self, scope: str, count: int) -> tuple[Step, ...]:
    lines = self._text.computations[scope]
    collectives = self._find_collectives(scope, count)
    starts = {c.schedule[1]: c for c in collectives}
    waits = {c.schedule[2]: c for c in collectives}
    self._collectives += collectives
    steps = []
    for place, line in enumerate(lines):
      if line.opcode in ("parameter", "constant", "get-tuple-element", "tuple"):
        continue
      called = self._text.called(line)
      body, runs = None, 1
      if line.opcode == "while" and "body" in called:
        trips = _trip_count(self._text, scope, line)
        if trips is None:
          self._unknown.append(line.name)
        runs = 1 if trips is None else trips
        body = self._schedule(called["body"], count * runs)
      elif line.opcode == "conditional":
        body = self._costliest(line, called, count)
      elif line.opcode == "call" and "to_apply" in called:
        body = self._schedule(called["to_apply"], count)
      elif line.opcode == "async-start" and "calls" in called:
        if place not in starts:  # not a collective: work on another unit
          body = self._schedule(called["calls"], count)
      instruction = self._instruction(scope, line, count)
      steps.append(
        Step(instruction, body, runs, starts.get(place), waits.get(place))
      )
    return tuple(steps)

  def _costliest(self, line: _Line, called: Mapping[str, str], count: int):
    names = [n for key, n in called.items() if key.endswith("_computation")]
    if match := _BRANCHES.search(line.rest):
      names += [name.strip().lstrip("%") for name in match[1].split(",")]
    found = []
    for name in names:
      before = len(self._collectives), len(self._unknown)
      schedule = self._schedule(name, count)
      added = self._collectives[before[0] :], self._unknown[before[1] :]
      del self._collectives[before[0] :], self._unknown[before[1] :]
      found.append((schedule, added))
    if not found:
      return None
    schedule, (collectives, unknown) = max(
      found, key=lambda f: sum(i.total_cycles for i in _flatten(f[0]))
    )
    self._collectives += collectives
    self._unknown += unknown
    return schedule

  def _instruction(self, scope: str, line: _Line, count: int) -> Instruction:
    called = self._text.called(line)
    inner = (
      list(self._text.inside(called["calls"])) if "calls" in called else []
    )
    num_matmuls = sum(i.opcode in MATMULS for i in [line, *inner])
    match = _OP_NAME.search(line.rest)
    op_name = match[1] if match else ""
    if inner:
      op_name = _name_inside(inner, op_name)
    target = _TARGET.search(line.rest)
    cycles = _CYCLES.search(line.rest)
    names = self._text.by_name[scope]
    kind = _kind(line, target[1] if target else "", num_matmuls)
    return Instruction(
      name=line.name,
      opcode=line.opcode,
      kind=kind,
      shape=_plain_shape(line.type),
      result_bytes=shape_bytes(line.type),
      operand_shapes=tuple(
        _plain_shape(names[o].type) for o in line.operands if o in names
      ),
      op_name=op_name,
      cycles=max(int(cycles[1]), 0) if cycles else 0,
      count=count,
      custom_call_target=target[1] if target else "",
      cost=_cost_estimate(line.rest) if kind == "pallas" else {},
      kernel=_kernel_name(line, op_name) if kind == "pallas" else "",
      num_matmuls=num_matmuls,
    )

  def _find_collectives(self, scope: str, count: int) -> list[Collective]:
    """The collectives of one schedule, each once.

    One that is spread over a start, matmuls that carry it on and an end is
    written into each of these fusions, with one channel. Where these matmuls
    are in a loop between start and end, it is no exchange of the loop.
    """
    lines = self._text.computations[scope]
    names = self._text.by_name[scope]
    found: dict[str, list] = {}  # key -> [first place, last place, line, kind]
    starts: dict[str, str] = {}  # instruction -> key
    for place, line in enumerate(lines):
      kind = _collective_kind(line.opcode)
      if line.opcode in ("send", "recv-done"):
        transfer = _MEGASCALE.search(line.rest)
        if line.opcode == "send" and transfer:
          kind = transfer[1].lower().replace("_", "-")
          key = f"dcn {_rendezvous(line)}"
          found[key] = [place, place, line, kind, names]
        elif line.opcode == "recv-done" and line.operands[0] in names:
          key = f"dcn {_rendezvous(names[line.operands[0]])}"
          if key in found:
            found[key][1] = place
      elif kind and not line.opcode.endswith(("-done", "-update")):
        key = f"{line.name}"
        found[key] = [place, place, line, kind, names]
        starts[line.name] = key
      elif line.opcode.endswith(("-done", "-update")):
        if line.operands and line.operands[0] in starts:
          key = starts[line.operands[0]]
          starts[line.name] = key
          found[key][1] = place
      elif line.opcode in ("fusion", "async-start"):
        called = self._text.called(line).get("calls")
        if called is None:
          continue
        for inner in self._text.inside(called):
          kind = _collective_kind(inner.opcode)
          if not kind:
            continue
          if called.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
          channel = _CHANNEL.search(inner.rest)
          chained = "async_collective_fusion_config" in inner.rest
          key = line.name
          if channel and chained:
            key = f"#{channel[1]}"
            scopes = self._scopes.get(channel[1])
            if scopes and scope not in scopes:
              continue
          if key in found:
            found[key][1] = place
          else:
            home = next(
              table
              for table in self._text.by_name.values()
              if table.get(inner.name) is inner
            )
            if not _OP_NAME.search(inner.rest):
              home_line = dataclasses.replace(
                inner, rest=f"{inner.rest} {line.rest}"
              )
            else:
              home_line = inner
            found[key] = [place, place, home_line, kind, home]
          starts[line.name] = key
    result = []
    for first, last, line, kind, table in found.values():
      operands = [table[o].type for o in line.operands if o in table]
      operands = [o for o in operands if "token[]" not in o]
      shape = " ".join(_plain_shape(o) for o in operands)
      match = _OP_NAME.search(line.rest)
      result.append(
        Collective(
          name=line.name,
          kind=kind,
          shape=shape,
          operand_bytes=sum(map(shape_bytes, operands)),
          groups=parse_groups(line.rest),
          count=count,
          is_async=last > first,
          op_name=match[1] if match else "",
          schedule=(scope, first, last),
          over_dcn=line.opcode == "send",
        )
      )
    return result


def _rendezvous(line: _Line) -> str:
  match = _RENDEZVOUS.search(line.rest)
  return match[1] if match else line.name


def _collective_kind(opcode: str) -> str:
  base = re.sub(r"-(start|done|update)$", "", opcode)
  return base if base in COLLECTIVES else ""


def _kind(line: _Line, target: str, num_matmuls: int) -> str:
  if target == PALLAS_TARGET:
    return "pallas"
  if _collective_kind(line.opcode):
    return "collective"
  if line.opcode in MATMULS or num_matmuls:
    return "matmul"
  if line.opcode == "fusion":
    return "fusion"
  if line.opcode in ("while", "conditional", "call"):
    return "loop"
  if line.opcode == "custom-call":
    return "custom-call"
  copies = ("copy", "slice-start", "slice-done", "dynamic-slice-start")
  return "copy" if line.opcode.startswith(copies) else "other"


_FREE = ("parameter", "constant", "broadcast", "bitcast", "tuple", "iota")


def _name_inside(inner: list[_Line], own: str) -> str:
  """The op_name that a fusion is known by.

  Of one around a matrix multiplication it is that of the largest of these. Of
  others it is the compiler's, that of the last instruction; but where random
  bits are most of what is computed, theirs, and where that says nothing, that
  of the part that computes the most elements.
  """
  matmuls: dict[str, int] = {}
  parts: dict[str, collections.Counter[str]] = {}
  for line in inner:
    match = _OP_NAME.search(line.rest)
    if not match or line.opcode in _FREE:
      continue
    array = _ARRAY.search(line.type)
    sizes = re.findall(r"\d+", array[2]) if array else ()
    elements = math.prod(map(int, sizes))
    if line.opcode in MATMULS:
      matmuls[match[1]] = max(matmuls.get(match[1], 0), elements)
    elif (part := part_of(match[1])) not in ("scan", "other"):
      parts.setdefault(part, collections.Counter())[match[1]] += elements
  if matmuls:
    return max(matmuls, key=lambda name: matmuls[name])
  if not parts:
    return own
  totals = {part: names.total() for part, names in parts.items()}
  largest = max(totals, key=lambda part: totals[part])
  if part_of(own) in ("scan", "other") or (
    largest == "dropout" and 2 * totals[largest] > sum(totals.values())
  ):
    return parts[largest].most_common(1)[0][0]
  return own


def _cost_estimate(rest: str) -> dict[str, float]:
  """The cost estimate of a Pallas kernel, from its backend_config."""
  match = re.search(r'\\?"cost_estimate\\?":\s*(\{[^{}]*\})', rest)
  if not match:
    return {}
  raw = json.loads(match[1].replace('\\"', '"'))
  return {name: float(value) for name, value in raw.items()}


def _kernel_name(line: _Line, op_name: str) -> str:
  match = re.search(r'\bkernel_name\\?"?[:=]\s*\\?"([^"\\]+)', line.rest)
  if match:
    return match[1]
  return re.sub(r"[.\d]+$", "", line.name) or op_name


# --- the command -------------------------------------------------------------


def report(program: Program, top: int = 25) -> str:
  """A table of cycles by part, and the costliest instructions."""
  instructions = program.instructions
  total = max(program.cycles, 1)
  lines = [f"{'part':<12}{'cycles':>14}{'share':>8}  by pass"]
  parts = cycles_by_part(instructions)
  for part in sorted(parts, key=lambda p: -sum(parts[p].values())):
    cycles = sum(parts[part].values())
    phases = ", ".join(f"{k} {v:,}" for k, v in parts[part].items() if v)
    lines.append(f"{part:<12}{cycles:>14,}{cycles / total:>8.1%}  {phases}")
  lines.append(f"{'all':<12}{program.cycles:>14,}")
  kinds: collections.Counter[str] = collections.Counter()
  for i in instructions:
    kinds[i.kind] += i.total_cycles
  lines.append(
    "by kind: " + ", ".join(f"{k} {v:,}" for k, v in kinds.most_common() if v)
  )
  lines += ["", f"{'cycles':>12}{'runs':>5} {'kind':<11} result, name, from"]
  for i in sorted(instructions, key=lambda i: -i.total_cycles)[:top]:
    shape = i.shape if len(i.shape) < 60 else i.shape[:57] + "..."
    lines.append(
      f"{i.total_cycles:>12,}{i.count:>5} {i.kind:<11} {shape} {i.name}\n"
      f"{'':>30}{i.part} {i.phase}: {_strip_transforms(i.op_name)}"
    )
  if program.pallas_calls:
    lines += ["", "Pallas kernels, not counted above:"]
  for i in program.pallas_calls:
    cost = ", ".join(f"{k} {v:.3g}" for k, v in i.cost.items()) or "no estimate"
    lines.append(f"  {i.count} x {i.kernel} {i.shape}: {cost} [{i.phase}]")
  if program.collectives:
    lines += ["", "collectives, their time not counted above:"]
  for c in sorted(
    program.collectives, key=lambda c: -c.operand_bytes * c.count
  )[:top]:
    how = "async" if c.is_async else "sync"
    where = f"groups of {c.group_size or 'all'}"
    where = "between slices" if c.over_dcn else where
    lines.append(
      f"  {c.count} x {c.kind} of {c.shape} ({c.operand_bytes:,} bytes), "
      f"{where}, {how}: "
      f"{_strip_transforms(c.op_name)}"
    )
  if program.unknown_loops:
    lines += [
      "",
      "loops whose number of runs is not known, counted once: "
      + ", ".join(program.unknown_loops),
    ]
  return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
  """Prints the report of a file."""
  parser = argparse.ArgumentParser(prog="python -m bert_jax.planning.hlo")
  parser.add_argument("file", help="text of compiled.as_text()")
  parser.add_argument("--top", type=int, default=25, help="instructions shown")
  args = parser.parse_args(argv)
  try:
    with open(args.file, encoding="utf-8") as file:
      print(report(parse(file.read()), args.top))
  except (OSError, HloError) as error:
    print(f"{args.file}: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
