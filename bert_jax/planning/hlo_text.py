"""Parses the text of a compiled program into computations and instructions."""

from collections.abc import Iterator
import dataclasses
import math
import re

from bert_jax.runtime import errors

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}
ARRAY = re.compile(r"\b([a-z]\w*)\[([0-9,<=]*)\]")
# An array with its layout, and the mark of a memory that is not the main one.
_PLACED = re.compile(r"\b([a-z]\w*)\[([0-9,<=]*)\](\{[^{}]*\})?")
_OTHER_MEMORY = re.compile(r"S\([1-9]\d*\)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([^\s(]+) \(.*->.*\{\s*$")
_END = re.compile(r"\}(, execution_thread=.*)?\s*")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([^\s=]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w-]*)\(")
_OPERAND = re.compile(
  r"%([^\s,(){}]+)|(?<![\w\]}])([A-Za-z_][\w.-]*)(?=[,)]|$)"
)
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CALLED = re.compile(
  r"\b(calls|to_apply|body|condition|true_computation|false_computation)"
  r"=%?([^\s,})]+)"
)


class HloError(errors.UserError):
  """The text is not that of a compiled program."""


@dataclasses.dataclass
class Line:
  """One instruction of the text.

  Attributes:
    name: the name, without %.
    opcode: the opcode of HLO.
    type: the type of the result.
    operands: the names of the operands, instructions of the same computation.
    rest: the attributes after the operands.
    text: the text between the parentheses of the operands.
    is_root: whether it is the result of its computation.
    names: all instructions of its computation by name, in their order.
  """

  name: str
  opcode: str
  type: str
  operands: list[str]
  rest: str
  text: str
  is_root: bool
  names: "dict[str, Line]"

  @property
  def op_name(self) -> str:
    """The path of names in the traced program, or ""."""
    match = _OP_NAME.search(self.rest)
    return match[1] if match else ""

  @property
  def operand_types(self) -> list[str]:
    """The types of the operands that are instructions."""
    return [self.names[o].type for o in self.operands if o in self.names]


class Text:
  """The computations of a program.

  Attributes:
    computations: the instructions of each computation, by name, in their order.
    entry: the name of the computation that the program starts with.
  """

  def __init__(self, text: str):
    """Reads the text of `compiled.as_text()`.

    Raises:
      HloError: the text is not that of a compiled program.
    """
    self.computations: dict[str, dict[str, Line]] = {}
    self.entry = ""
    current: dict[str, Line] | None = None
    pending: list[str] = []  # the lines of an instruction, which may be several
    for line in text.splitlines():
      if current is None:
        if match := _COMPUTATION.match(line):
          current = self.computations.setdefault(match[2], {})
          if match[1]:
            self.entry = match[2]
        continue
      ends = _END.fullmatch(line)
      if ends or _INSTRUCTION.match(line):
        _add_line("\n".join(pending), current)
        pending = []
      if ends:
        current = None
      else:
        pending.append(line)
    if not self.entry:
      raise HloError(
        "this is not the text of a compiled program: it has no ENTRY "
        "computation; write the file with compiled.as_text()"
      )

  def called(self, line: Line) -> dict[str, str]:
    """Returns the computations that an instruction calls, by attribute."""
    found = _CALLED.findall(line.rest)
    return {key: name for key, name in found if name in self.computations}

  def inside(self, name: str) -> Iterator[Line]:
    """Yields the instructions of a computation and of those that it calls."""
    seen, stack = set(), [name]
    while stack:
      name = stack.pop()
      if name in seen:
        continue
      seen.add(name)
      for line in self.computations[name].values():
        yield line
        stack.extend(self.called(line).values())


def _add_line(line: str, names: dict[str, Line]) -> None:
  """Parses an instruction, and adds it to those of its computation."""
  match = _INSTRUCTION.match(line)
  if match is None:
    return
  start = match.end()
  end = _balanced(line, start) if line[start] == "(" else line.index(" ", start)
  opcode = _OPCODE.match(line, end)
  if opcode is None:
    return
  close = _balanced(line, opcode.end() - 1)
  inside = line[opcode.end() : close - 1]
  operands = [a or b for a, b in _OPERAND.findall(inside)]
  names[match[2]] = Line(
    match[2],
    opcode[1],
    line[start:end],
    operands,
    line[close:],
    inside,
    bool(match[1]),
    names,
  )


def _balanced(text: str, start: int) -> int:
  """Returns the position after the parenthesis that closes the one at start."""
  depth = 0
  for found in re.compile(r"[()]").finditer(text, start):
    depth += 1 if found[0] == "(" else -1
    if not depth:
      return found.end()
  raise HloError(f"a parenthesis is never closed: {text[:200]}")


def shape_bytes(shape: str) -> int:
  """Returns the bytes of a type of HLO; those of a tuple are added up.

  Example:
    >>> shape_bytes("(bf16[128,768]{1,0:T(8,128)(2,1)}, u32[])")
    196612
  """
  bits = 0
  for dtype, dims in ARRAY.findall(shape):
    size = _BITS.get(dtype)
    if size is None:
      digits = re.match(r"[a-z]+(\d+)", dtype)
      size = int(digits[1]) if digits else 0
    bits += math.prod(map(int, re.findall(r"\d+", dims))) * size
  return -(-bits // 8)


def memory_bytes(shape: str) -> int:
  """Returns the bytes of a type that lie in main memory.

  The compiler names any other memory of an array in its layout.

  Example:
    >>> memory_bytes("(f32[8]{0:T(128)S(1)}, f32[2]{0:T(128)})")
    8
  """
  return sum(
    shape_bytes(f"{dtype}[{dims}]")
    for dtype, dims, layout in _PLACED.findall(shape)
    if not _OTHER_MEMORY.search(layout)
  )


def plain_shape(shape: str) -> str:
  """Returns a type without layouts and comments."""
  return re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", shape)
