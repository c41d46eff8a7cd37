"""Reads the text of a compiled program: its instructions, runs and cycles.

  python -m bert_jax.planning.hlo FILE [--top=25]

The file holds the text of `compiled.as_text()`. A program for a TPU contains
the compiler's estimate of the cycles of every instruction that it schedules. A
program for a CPU contains no estimates; everything else works for it, too.

Scheduled are the instructions of the entry computation, of the bodies of its
`while` loops, and of the computations that these call. The instructions inside
a fusion are not scheduled, because the estimate of the fusion includes them.
The body of a loop counts as often as it runs. Of the branches of a conditional
the costliest one counts.

The compiler makes no estimate of a Pallas kernel (`tpu_custom_call`); see
`Instruction.cost`.
"""

import argparse
import collections
from collections.abc import Iterable, Iterator, Mapping
import copy
import dataclasses
import json
import math
import re
import sys

from bert_jax.planning import hlo_groups
from bert_jax.planning import hlo_loops
from bert_jax.planning import hlo_traffic
from bert_jax.planning.hlo_text import ARRAY
from bert_jax.planning.hlo_text import HloError
from bert_jax.planning.hlo_text import Line
from bert_jax.planning.hlo_text import Text
from bert_jax.planning.hlo_text import plain_shape
from bert_jax.planning.hlo_text import shape_bytes

COLLECTIVES = (
  "all-reduce", "all-gather", "reduce-scatter", "all-to-all",
  "ragged-all-to-all", "collective-permute", "collective-broadcast",
)  # fmt: skip
MATMULS = ("convolution", "dot", "ragged-dot")
PALLAS_TARGET = "tpu_custom_call"

PARTS = (
  "attention", "mlp", "layer_norm", "dropout", "embedding", "vocabulary",
  "optimizer", "scan", "other",
)  # fmt: skip
FORWARD, BACKWARD, RECOMPUTED = "forward", "backward", "recomputed"

_CYCLES = re.compile(r'"estimated_cycles":"?(-?\d+)')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
# Attributes by which a program for several slices sends data between them.
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]+)"')
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_ASYNC_START = 'custom_call_target="AsyncCollectiveStart"'

# The first of these expressions that is found in the path of names decides to
# which part of the model an instruction belongs. A gradient outside of all
# modules belongs to the loss, which is over the vocabulary. Instructions of
# which no gradient is taken belong to the optimizer. "scan" is reading and
# writing the stacked arrays in which scanned layers keep values for the
# backward pass. Random bits count as "dropout" wherever they are drawn.
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


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One scheduled instruction.

  Attributes:
    name: the name in the text, without %.
    opcode: the opcode of HLO: "fusion", "convolution", "copy-start" ...
    kind: "matmul" (also a fusion around one), "fusion", "collective", "copy",
      "pallas", "custom-call", "loop" or "other".
    shape: the type of the result, without layouts.
    result_bytes: bytes of the result, without the padding of tiles.
    operand_shapes: the types of the operands, without layouts.
    op_name: the path of names in the traced program from which the instruction
      comes; see `_name_inside` for a fusion.
    cycles: the compiler's estimate for one run; 0 if it makes none.
    count: the number of runs in a step.
    cost: a Pallas kernel's own estimate for one run, with "flops",
      "transcendentals" and "bytes_accessed"; {} if it has none.
    kernel: the name of the Pallas kernel, or "".
    num_matmuls: the number of matrix multiplications in it.
    moved_bytes: the bytes that one run moves between main memory and the chip;
      see hlo_traffic.py. 0 for what has no estimate of its cycles, because that
      is not computed by the core, or is counted elsewhere.
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
  cost: Mapping[str, float] = dataclasses.field(default_factory=dict)
  kernel: str = ""
  num_matmuls: int = 0
  moved_bytes: int = 0

  @property
  def operand_bytes(self) -> int:
    """Bytes of all operands."""
    return sum(map(shape_bytes, self.operand_shapes))

  @property
  def total_cycles(self) -> int:
    """Estimated cycles of all runs in a step."""
    return self.cycles * self.count

  @property
  def part(self) -> str:
    """The part of the model that it belongs to, one of PARTS."""
    return part_of(self.op_name)

  @property
  def phase(self) -> str:
    """FORWARD, BACKWARD, or RECOMPUTED (forward again in the backward pass)."""
    return phase_of(self.op_name)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One exchange between devices, which may take several instructions.

  Attributes:
    name: the name of its first instruction.
    kind: one of COLLECTIVES.
    shape: the type of each device's operands.
    operand_bytes: bytes of each device's operands.
    groups: the groups of devices that exchange with each other, as indices into
      the devices of the mesh; for a collective-permute its (source, target)
      pairs; () if the text names no groups, so that all devices are one group.
    count: the number of runs in a step.
    is_async: whether other work is scheduled between its start and its end.
    op_name: as for an instruction.
    schedule: the computation in which it is scheduled, and the places of its
      first and last instruction there.
    over_dcn: whether it connects slices, over the data-centre network. Then
      each device exchanges with the devices in its place in the other slices.
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
    """The number of devices in a group; 0 if the text names no groups."""
    return max((len(group) for group in self.groups), default=0)

  def bytes_sent(self, num_devices: int) -> float:
    """Returns the smallest number of bytes that a device must send in one run.

    Args:
      num_devices: the size of a group, if the text names no groups: the devices
        of the mesh, or the number of slices for an exchange over DCN.
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
    instruction: the instruction.
    body: the schedule that a loop or a call runs; None for others.
    runs: how often the instruction runs the body.
    starts: the collective that begins here, or None.
    waits: the collective that must be finished here, or None.
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
    schedule: the schedule of the entry computation.
    collectives: all collectives, each once.
    unknown_loops: the names of loops whose number of runs was not found, and
      that count once.
  """

  schedule: tuple[Step, ...]
  collectives: tuple[Collective, ...]
  unknown_loops: tuple[str, ...]

  @property
  def instructions(self) -> list[Instruction]:
    """The scheduled instructions, including those in loops."""
    return list(_flatten(self.schedule))

  @property
  def cycles(self) -> int:
    """Estimated cycles of a step."""
    return sum(i.total_cycles for i in self.instructions)

  @property
  def pallas_calls(self) -> list[Instruction]:
    """The calls of Pallas kernels, which `cycles` does not include."""
    return [i for i in self.instructions if i.kind == "pallas"]


def _flatten(schedule: Iterable[Step]) -> Iterator[Instruction]:
  for step in schedule:
    yield step.instruction
    if step.body is not None:
      yield from _flatten(step.body)


# --- where an instruction comes from -----------------------------------------


def _strip_transforms(op_name: str) -> str:
  """Turns `jit(f)/transpose(jvp(Model))/a/b` into `Model/a/b`."""
  parts = []
  for part in op_name.split("/"):
    inner = re.sub(r"^(?:(?:transpose|jvp|vmap|remat|checkpoint)\()+", "", part)
    parts.append(inner.rstrip(")") if inner != part else part)
  return "/".join(parts[1:] if parts[0].startswith("jit(") else parts)


def part_of(op_name: str) -> str:
  """Returns the part of the model, one of PARTS, of a path of names.

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
  """Returns the pass in which an instruction runs.

  Args:
    op_name: the instruction's path of names.

  Returns:
    FORWARD, BACKWARD or RECOMPUTED.

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
  """Adds up estimated cycles: part -> phase -> cycles per step.

  The only phase of the optimizer is "forward".
  """
  totals: dict[str, dict[str, int]] = {part: {} for part in PARTS}
  for i in instructions:
    phases = totals[i.part]
    phases[i.phase] = phases.get(i.phase, 0) + i.total_cycles
  return {
    part: phases for part, phases in totals.items() if any(phases.values())
  }


# --- the schedule ------------------------------------------------------------


def parse(text: str) -> Program:
  """Reads a compiled program.

  Args:
    text: the text of `compiled.as_text()`.

  Raises:
    HloError: the text is not that of a compiled program.
  """
  return _Reader(Text(text)).read()


def _scopes_of_starts(text: Text) -> dict[str, set[str]]:
  """Returns the computations that start a collective, by its channel."""
  channels: dict[int, str] = {}  # id of a start -> channel that it starts
  for lines in text.computations.values():
    for line in lines.values():
      if _ASYNC_START not in line.rest:
        continue
      for operand in line.operands:
        started = lines.get(operand)
        if started and (found := _CHANNEL.search(started.rest)):
          channels[id(line)] = found[1]
  scopes: dict[str, set[str]] = {}
  for scope, lines in text.computations.items():
    for line in lines.values():
      if called := text.called(line).get("calls"):
        for inner in text.inside(called):
          if id(inner) in channels:
            scopes.setdefault(channels[id(inner)], set()).add(scope)
  return scopes


class _Reader:
  """Walks the schedule from the entry computation."""

  def __init__(self, text: Text):
    self._text = text
    self._scopes = _scopes_of_starts(text)
    self._collectives: list[Collective] = []
    self._unknown: list[str] = []

  def read(self) -> Program:
    schedule = self._schedule(self._text.entry, 1)
    return Program(schedule, tuple(self._collectives), tuple(self._unknown))

  def _schedule(self, scope: str, count: int) -> tuple[Step, ...]:
    collectives = self._find_collectives(scope, count)
    starts = {c.schedule[1]: c for c in collectives}
    waits = {c.schedule[2]: c for c in collectives}
    self._collectives += collectives
    steps = []
    for place, line in enumerate(self._text.computations[scope].values()):
      if line.opcode in ("parameter", "constant", "get-tuple-element", "tuple"):
        continue
      body, runs = self._body(line, count, place in starts)
      instruction = self._instruction(line, count)
      steps.append(
        Step(instruction, body, runs, starts.get(place), waits.get(place))
      )
    return tuple(steps)

  def _body(
    self, line: Line, count: int, is_exchange: bool
  ) -> tuple[tuple[Step, ...] | None, int]:
    """Returns the schedule that an instruction runs, and how often it runs."""
    called = self._text.called(line)
    if line.opcode == "while" and "body" in called:
      runs = hlo_loops.trip_count(self._text, line)
      if runs is None:
        self._unknown.append(line.name)
        runs = 1
      return self._schedule(called["body"], count * runs), runs
    if line.opcode == "conditional":
      return self._costliest(line, called, count), 1
    if line.opcode == "call" and "to_apply" in called:
      return self._schedule(called["to_apply"], count), 1
    if line.opcode == "async-start" and "calls" in called and not is_exchange:
      return self._schedule(called["calls"], count), 1  # of another unit
    return None, 1

  def _costliest(self, line: Line, called: Mapping[str, str], count: int):
    """Returns the costliest schedule among the branches of a conditional."""
    names = [n for key, n in called.items() if key.endswith("_computation")]
    if match := _BRANCHES.search(line.rest):
      names += [name.strip().lstrip("%") for name in match[1].split(",")]
    found = []
    for name in names:
      reader = copy.copy(self)
      reader._collectives, reader._unknown = [], []
      found.append((reader._schedule(name, count), reader))
    if not found:
      return None
    schedule, reader = max(
      found, key=lambda f: sum(i.total_cycles for i in _flatten(f[0]))
    )
    self._collectives += reader._collectives
    self._unknown += reader._unknown
    return schedule

  def _instruction(self, line: Line, count: int) -> Instruction:
    called = self._text.called(line).get("calls")
    inner = list(self._text.inside(called)) if called else []
    num_matmuls = sum(i.opcode in MATMULS for i in [line, *inner])
    op_name = _name_inside(inner, line.op_name) if inner else line.op_name
    target = _TARGET.search(line.rest)
    found = _CYCLES.search(line.rest)
    cycles = max(int(found[1]), 0) if found else 0
    kind = _kind(line, target[1] if target else "", num_matmuls)
    return Instruction(
      name=line.name,
      opcode=line.opcode,
      kind=kind,
      shape=plain_shape(line.type),
      result_bytes=shape_bytes(line.type),
      operand_shapes=tuple(map(plain_shape, line.operand_types)),
      op_name=op_name,
      cycles=cycles,
      count=count,
      cost=_cost_estimate(line.rest) if kind == "pallas" else {},
      kernel=_kernel_name(line, op_name) if kind == "pallas" else "",
      num_matmuls=num_matmuls,
      moved_bytes=(
        hlo_traffic.moved_bytes(self._text, line)
        if cycles and (kind in ("fusion", "matmul") or line.opcode == "copy")
        else 0
      ),
    )

  def _find_collectives(self, scope: str, count: int) -> list[Collective]:
    """Returns the collectives of one schedule, each once.

    A collective may consist of a start, matmuls that continue it and an end.
    All of these instructions have the same key.
    """
    found: dict[str, tuple[Line, str, int]] = {}  # the line, kind, first place
    last: dict[str, int] = {}
    keys: dict[str, str] = {}  # instruction -> key of its collective
    for place, line in enumerate(self._text.computations[scope].values()):
      for key, begun in self._mentions(scope, line, keys):
        if key not in found and begun:
          found[key] = (*begun, place)
        last[key] = place
    collectives = []
    for key, (line, kind, first) in found.items():
      operands = [o for o in line.operand_types if "token[]" not in o]
      collectives.append(
        Collective(
          name=line.name,
          kind=kind,
          shape=" ".join(map(plain_shape, operands)),
          operand_bytes=sum(map(shape_bytes, operands)),
          groups=hlo_groups.parse_groups(line.rest),
          count=count,
          is_async=last[key] > first,
          op_name=line.op_name,
          schedule=(scope, first, last[key]),
          over_dcn=line.opcode == "send",
        )
      )
    return collectives

  def _mentions(
    self, scope: str, line: Line, keys: dict[str, str]
  ) -> Iterator[tuple[str, tuple[Line, str] | None]]:
    """Yields the collectives that an instruction belongs to.

    Args:
      scope: the computation of the instruction.
      line: the instruction.
      keys: the keys of the collectives of earlier instructions, by the
        instruction's name. The instruction is added.

    Yields:
      The key of a collective. If it may begin here, also the instruction that
      says what is exchanged, and the kind; else None.
    """
    if line.opcode == "send":
      if transfer := _MEGASCALE.search(line.rest):
        kind = transfer[1].lower().replace("_", "-")
        yield f"dcn {_rendezvous(line)}", (line, kind)
    elif line.opcode == "recv-done":
      if source := line.names.get(line.operands[0]):
        yield f"dcn {_rendezvous(source)}", None
    elif line.opcode.endswith(("-done", "-update")):
      if line.operands and line.operands[0] in keys:
        keys[line.name] = keys[line.operands[0]]
        yield keys[line.name], None
    elif kind := _collective_kind(line.opcode):
      keys[line.name] = line.name
      yield line.name, (line, kind)
    elif line.opcode in ("fusion", "async-start"):
      for key, begun in self._in_fusion(scope, line):
        keys[line.name] = key
        yield key, begun

  def _in_fusion(
    self, scope: str, line: Line
  ) -> Iterator[tuple[str, tuple[Line, str]]]:
    """Yields the collectives of which a fusion contains a part.

    A loop between the start and the end of a collective may contain matmuls
    that continue it. The collective then does not belong to the loop.
    """
    called = self._text.called(line).get("calls")
    for inner in self._text.inside(called) if called else ():
      kind = _collective_kind(inner.opcode)
      if not kind:
        continue
      if called and called.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
      key, channel = line.name, _CHANNEL.search(inner.rest)
      if channel and "async_collective_fusion_config" in inner.rest:
        key = f"#{channel[1]}"
        if scope not in self._scopes.get(channel[1], {scope}):
          continue
      if not inner.op_name:
        inner = dataclasses.replace(inner, rest=f"{inner.rest} {line.rest}")
      yield key, (inner, kind)


def _rendezvous(line: Line) -> str:
  match = _RENDEZVOUS.search(line.rest)
  return match[1] if match else line.name


def _collective_kind(opcode: str) -> str:
  base = re.sub(r"-(start|done|update)$", "", opcode)
  return base if base in COLLECTIVES else ""


def _kind(line: Line, target: str, num_matmuls: int) -> str:
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


def _name_inside(inner: list[Line], own: str) -> str:
  """Chooses the op_name of a fusion from those of its instructions.

  A fusion that contains matrix multiplications gets the name of the largest.
  Others keep the compiler's choice, the name of the last instruction, with two
  exceptions: if most of the computed elements are random bits, it is their
  name; and if the compiler's choice names no part of the model, it is a name of
  the part that computes the most elements.

  Args:
    inner: the instructions of the fusion.
    own: the compiler's choice.
  """
  matmuls: dict[str, int] = {}
  parts: dict[str, collections.Counter[str]] = {}
  for line in inner:
    if not line.op_name or line.opcode in _FREE:
      continue
    array = ARRAY.search(line.type)
    sizes = re.findall(r"\d+", array[2]) if array else ()
    elements = math.prod(map(int, sizes))
    if line.opcode in MATMULS:
      matmuls[line.op_name] = max(matmuls.get(line.op_name, 0), elements)
    elif (part := part_of(line.op_name)) not in ("scan", "other"):
      parts.setdefault(part, collections.Counter())[line.op_name] += elements
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
  """Returns the cost estimate in the backend_config of a Pallas kernel."""
  match = re.search(r'\\?"cost_estimate\\?":\s*(\{[^{}]*\})', rest)
  if not match:
    return {}
  raw = json.loads(match[1].replace('\\"', '"'))
  return {name: float(value) for name, value in raw.items()}


def _kernel_name(line: Line, op_name: str) -> str:
  match = re.search(r'\bkernel_name\\?"?[:=]\s*\\?"([^"\\]+)', line.rest)
  if match:
    return match[1]
  return re.sub(r"[.\d]+$", "", line.name) or op_name


# --- the command -------------------------------------------------------------


def part_lines(parts: Mapping[str, Mapping[str, int]]) -> list[str]:
  """Formats cycles by part and pass, the costliest part first.

  Args:
    parts: cycles, from `cycles_by_part`.
  """
  totals = {part: sum(phases.values()) for part, phases in parts.items()}
  total = max(sum(totals.values()), 1)
  return [
    f"{part:<12}{totals[part]:>14,}{totals[part] / total:>8.1%}  "
    + ", ".join(f"{k} {v / total:.1%}" for k, v in parts[part].items() if v)
    for part in sorted(parts, key=lambda part: -totals[part])
  ]


def report(program: Program, top: int = 25) -> str:
  """Returns a table of cycles by part, and the costliest instructions.

  Args:
    program: the compiled program.
    top: how many instructions and collectives to list.
  """
  instructions = program.instructions
  lines = [f"{'part':<12}{'cycles':>14}{'share':>8}  by pass"]
  lines += part_lines(cycles_by_part(instructions))
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
    lines += ["", "Pallas kernels, not included above:"]
  for i in program.pallas_calls:
    cost = ", ".join(f"{k} {v:.3g}" for k, v in i.cost.items()) or "no estimate"
    lines.append(f"  {i.count} x {i.kernel} {i.shape}: {cost} [{i.phase}]")
  if program.collectives:
    lines += ["", "collectives, their time not included above:"]
  for c in sorted(
    program.collectives, key=lambda c: -c.operand_bytes * c.count
  )[:top]:
    how = "async" if c.is_async else "sync"
    where = f"groups of {c.group_size or 'all'}"
    where = "between slices" if c.over_dcn else where
    lines.append(
      f"  {c.count} x {c.kind} of {c.shape} ({c.operand_bytes:,} bytes), "
      f"{where}, {how}: {_strip_transforms(c.op_name)}"
    )
  if program.unknown_loops:
    lines += [
      "",
      "loops whose number of runs is unknown, counted once: "
      + ", ".join(program.unknown_loops),
    ]
  return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
  """Prints the report of a file; returns the exit status."""
  parser = argparse.ArgumentParser(prog="python -m bert_jax.planning.hlo")
  parser.add_argument("file", help="a file with the text of compiled.as_text()")
  parser.add_argument(
    "--top", type=int, default=25, help="how many instructions to list"
  )
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
