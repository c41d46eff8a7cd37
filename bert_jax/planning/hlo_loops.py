"""How often a loop of a compiled program runs."""

import re

from bert_jax.planning.hlo_text import Line
from bert_jax.planning.hlo_text import Text

_TRIPS = re.compile(r'known_trip_count\\?"?:\s*\{\\?"n\\?":\\?"?(\d+)')
_COPIES = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")
_INDEX = re.compile(r"\bindex=(\d+)")

# The origin of a scalar: ("constant", its value), ("element", its index in the
# tuple that is the computation's argument), or None for any other origin.
Source = tuple[str, int] | None


def trip_count(text: Text, loop: Line) -> int | None:
  """Returns how often a `while` runs its body, or None if that is unknown.

  The compiler notes the number of runs if it knows it, but drops the note when
  it rewrites the loop. Then the number is derived, if the loop counts from one
  constant to another in constant steps.

  Args:
    text: the program.
    loop: the `while` instruction.
  """
  if match := _TRIPS.search(loop.rest):
    return int(match[1])
  called = text.called(loop)
  compare, body = (_root(text, called.get(x)) for x in ("condition", "body"))
  if compare is None or body is None:
    return None
  compare, sources = _with_sources(text, compare)
  direction = re.search(r"direction=(\w+)", compare.rest)
  if compare.opcode != "compare" or direction is None or not sources[0]:
    return None
  (kind, place), bound = sources[0], _before(loop, sources[1])
  first, step = _before(loop, sources[0]), _increment(text, body, place)
  if kind != "element" or first is None or bound is None or not step:
    return None
  if direction[1] in ("LE", "GE"):
    return max((bound - first) // step + 1, 0)
  return None if direction[1] == "EQ" else max(-(-(bound - first) // step), 0)


def _root(text: Text, computation: str | None) -> Line | None:
  """Returns the result of a computation, skipping copies; None if unknown."""
  lines = text.computations.get(computation or "", {}).values()
  return _behind_copies(next((line for line in lines if line.is_root), None))


def _behind_copies(line: Line | None) -> Line | None:
  """Follows copies back to the instruction that computed the value."""
  while line is not None and line.opcode in _COPIES:
    line = line.names.get(line.operands[0])
  return line


def _with_sources(text: Text, line: Line) -> tuple[Line, list[Source]]:
  """Returns an instruction, or the root of a fusion, and its sources."""
  inner = text.called(line).get("calls") if line.opcode == "fusion" else None
  root = _root(text, inner)
  if root is None:
    return line, [_source(line, name) for name in line.operands]
  sources = []
  for name in root.operands:
    value = _behind_copies(root.names.get(name))
    if value is not None and value.opcode == "parameter":
      sources.append(_source(line, line.operands[int(value.text)]))
    else:
      sources.append(_source(root, name))
  return root, sources


def _source(user: Line, operand: str) -> Source:
  """Returns the origin of an operand of an instruction."""
  line = _behind_copies(user.names.get(operand))
  if line is None:
    return None
  if line.opcode == "constant" and re.fullmatch(r"-?\d+", line.text.strip()):
    return "constant", int(line.text)
  if line.opcode == "get-tuple-element":
    source, index = line.names.get(line.operands[0]), _INDEX.search(line.rest)
    if source is not None and source.opcode == "parameter" and index:
      return "element", int(index[1])
  return None


def _before(loop: Line, source: Source) -> int | None:
  """Returns the value of a source before the first run of a loop."""
  if source is None or source[0] == "constant":
    return source and source[1]
  given = _behind_copies(loop.names.get(loop.operands[0]))
  if given is None or given.opcode != "tuple":
    return None
  if source[1] >= len(given.operands):
    return None
  found = _source(given, given.operands[source[1]])
  return found[1] if found and found[0] == "constant" else None


def _increment(text: Text, body: Line, index: int) -> int | None:
  """Returns the constant that each run of a loop adds to an element."""
  if body.opcode != "tuple" or index >= len(body.operands):
    return None
  line = _behind_copies(body.names.get(body.operands[index]))
  if line is None:
    return None
  add, sources = _with_sources(text, line)
  if add.opcode != "add" or ("element", index) not in sources:
    return None
  return next((s[1] for s in sources if s and s[0] == "constant"), None)
