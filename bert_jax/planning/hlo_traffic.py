"""How many bytes an instruction moves between main memory and the chip."""

from bert_jax.planning.hlo_text import Line
from bert_jax.planning.hlo_text import Text
from bert_jax.planning.hlo_text import memory_bytes
from bert_jax.planning.hlo_text import shape_bytes

_SLICES = ("dynamic-slice", "slice", "gather")
_SAME = ("bitcast", "reshape")
# The index of the operand that is written into operand 0, which stays in place.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}


def moved_bytes(text: Text, line: Line) -> int:
  """Returns the bytes that one run of an instruction must move.

  Each operand is read once and each result written once. Of an array from which
  only slices are read, the slices count; of one that is updated in place, the
  update. Arrays that lie on the chip do not count, nor does the padding of
  tiles, so the true number is rather larger.

  Args:
    text: the program.
    line: the instruction.
  """
  called = text.called(line).get("calls")
  if line.opcode != "fusion" or called is None:
    return _of_operation(line)
  lines = text.computations[called].values()
  given = {int(x.text): x for x in lines if x.opcode == "parameter"}
  total = 0
  for i, name in enumerate(line.operands):
    if name not in line.names:
      continue
    whole = memory_bytes(line.names[name].type)
    if whole and i in given:
      whole = min(whole, _read(given[i]))
    total += whole
  if memory_bytes(line.type):
    root = next((x for x in lines if x.is_root), None)
    total += min(memory_bytes(line.type), _written(root))
  return total


def _of_operation(line: Line) -> int:
  """Returns the bytes of an instruction that is no fusion."""
  result = memory_bytes(line.type)
  if line.opcode in _SLICES:
    return 2 * result
  if line.opcode in _UPDATES and len(line.operands) > _UPDATES[line.opcode]:
    update = line.names.get(line.operands[_UPDATES[line.opcode]])
    return 2 * min(result, shape_bytes(update.type) if update else result)
  return result + sum(map(memory_bytes, line.operand_types))


def _read(value: Line) -> int:
  """Returns the bytes of a value that the instructions of its fusion read."""
  total = 0
  for user in value.names.values():
    if value.name not in user.operands:
      continue
    if user.opcode in _SLICES and user.operands[0] == value.name:
      total += shape_bytes(user.type)
    elif user.opcode in _SAME:
      total += _read(user) if not user.is_root else shape_bytes(user.type)
    elif user.opcode in _UPDATES and user.operands[0] == value.name:
      continue
    else:
      return shape_bytes(value.type)
  return total


def _written(root: Line | None) -> int:
  """Returns the bytes that the root of a fusion writes."""
  if root is None:
    return 0
  if root.opcode == "tuple":
    return sum(_written(root.names.get(name)) for name in root.operands)
  if root.opcode in _SAME and root.operands[0] in root.names:
    return _written(root.names[root.operands[0]])
  if root.opcode in _UPDATES and len(root.operands) > _UPDATES[root.opcode]:
    update = root.names.get(root.operands[_UPDATES[root.opcode]])
    return shape_bytes(update.type if update else root.type)
  return shape_bytes(root.type)
