"""Reads the data in a pickle without running anything in it.

A pickle is a program for a stack machine, and the real machine imports modules
and calls functions. This one only builds data: numbers, texts, lists, tuples,
dicts, sets and namespaces. A global name is data, too, until it is called, and
only the few calls in a table of the caller are known. Every other name is
refused.

Source: the opcodes are described in Python's Lib/pickletools.py, whose parser
is used here.
"""

from collections.abc import Callable, Mapping
import dataclasses
import pickletools
from typing import Any, BinaryIO

# (module, name) of a function -> what replaces a call of it.
Calls = Mapping[tuple[str, str], Callable[..., Any]]

_SCALARS = (str, bytes, int, float, bool, type(None))


class PickleError(ValueError):
  """A pickle is damaged, or asks for more than data."""


@dataclasses.dataclass(frozen=True)
class Global:
  """A name in a module, which is not looked up."""

  module: str
  name: str

  def __str__(self) -> str:
    return f"{self.module}.{self.name}"


class Namespace(dict[str, Any]):
  """The attributes of an `argparse.Namespace`."""


class _Mark:
  """The place on the stack where a group of items begins."""


_MARK = _Mark()
_NEW_NAMESPACE = Global("argparse", "Namespace")
_OBJECT = (Global("builtins", "object"), Global("__builtin__", "object"))


def _dict(*args: Any) -> dict[Any, Any]:
  if not args:
    return {}
  [pairs] = args
  result: dict[Any, Any] = {}
  for pair in pairs.items() if isinstance(pairs, dict) else pairs:
    key, value = pair
    result[_key(key)] = value
  return result


def _members(kind: Callable[[Any], Any]) -> Callable[..., Any]:
  return lambda items=(): kind([_key(item) for item in _items(items)])


def _items(items: Any) -> Any:
  """Returns a container; a long text would fill the memory with characters."""
  if type(items) not in (list, tuple, set, frozenset):
    raise PickleError(f"it makes a list of a {type(items).__name__}")
  return items


def _encode(text: str, encoding: str) -> bytes:
  if encoding not in ("latin1", "latin-1"):
    raise PickleError("it encodes a text as something else than latin1")
  return text.encode("latin1")


def _reconstruct(cls: Any, base: Any, state: Any) -> Any:
  if cls != _NEW_NAMESPACE or base not in _OBJECT or state is not None:
    raise PickleError(f"it makes an object of {cls if _is_name(cls) else '?'}")
  return Namespace()


def _bytearray(content: Any = b"", *encoding: Any) -> bytes:
  if encoding:
    return _encode(content, *encoding)
  if type(content) is not bytes:  # a number would be a size
    raise PickleError("it makes bytes of something else")
  return content


# Functions of the builtins.
_BUILTINS: Calls = {
  ("", "dict"): _dict,
  ("", "set"): _members(set),
  ("", "frozenset"): _members(frozenset),
  ("", "list"): lambda items=(): list(_items(items)),
  ("", "tuple"): lambda items=(): tuple(_items(items)),
  ("", "bytearray"): _bytearray,
}
# Calls that make plain data; older names of a module are those of Python 2.
_PLAIN: Calls = {
  ("collections", "OrderedDict"): _dict,
  ("copyreg", "_reconstructor"): _reconstruct,
  ("copy_reg", "_reconstructor"): _reconstruct,
  ("_codecs", "encode"): _encode,
  **{
    (module, name): function
    for module in ("builtins", "__builtin__")
    for (_, name), function in _BUILTINS.items()
  },
}
# Names that may be mentioned, but not called.
_QUIET = frozenset({_NEW_NAMESPACE, *_OBJECT})


def _is_name(value: Any) -> bool:
  return isinstance(value, Global)


def _key(value: Any) -> Any:
  """Returns a key of a dict; others may take for ever to hash."""
  parts = value if type(value) is tuple else (value,)
  if not all(type(part) in _SCALARS or _is_name(part) for part in parts):
    raise PickleError(f"a key is a {type(value).__name__}")
  return value


def load(
  file: BinaryIO,
  calls: Calls,
  names: frozenset[tuple[str, str]] = frozenset(),
  persistent: Callable[[Any], Any] | None = None,
) -> Any:
  """Reads one pickle; the file is then at its end.

  Args:
    file: the file, at the start of the pickle.
    calls: the calls that the file may make, beside those of plain data.
    names: (module, name) of globals that it may mention.
    persistent: persistent id -> the object; None if there are none.

  Returns:
    Data of plain containers, and what `calls` and `persistent` return.

  Raises:
    PickleError: the pickle is damaged, or names a global that is not known; the
      message has the name.
  """
  try:
    return _Machine({**_PLAIN, **calls}, names, persistent).run(file)
  except PickleError:
    raise
  except Exception as error:  # damaged bytes raise a dozen unrelated types
    raise PickleError(
      f"its pickle is damaged ({type(error).__name__}: {error!s:.100})"
    ) from None


class _Machine:
  """The stack machine; one method for each group of opcodes."""

  def __init__(self, calls, names, persistent):
    self._calls: Calls = calls
    self._names = names
    self._persistent = persistent
    self._stack: list[Any] = []
    self._memo: dict[int, Any] = {}

  def run(self, file: BinaryIO) -> Any:
    for opcode, arg, _ in pickletools.genops(file):
      name = opcode.name
      if name == "STOP":
        return self._stack.pop()
      if name in _VALUES:
        self._stack.append(arg)
      elif name in _CONSTANTS:
        self._stack.append(_CONSTANTS[name]())
      elif name in _FUNCTIONS:
        _FUNCTIONS[name](self, arg)
      elif name not in ("PROTO", "FRAME"):
        raise PickleError(
          f"its pickle has the opcode {name}, which this program does not run"
        )
    raise PickleError("its pickle has no end")

  def _pop_mark(self) -> list[Any]:
    """Removes the items above the last mark, and returns them."""
    for at in range(len(self._stack) - 1, -1, -1):
      if self._stack[at] is _MARK:
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items
    raise PickleError("its pickle lacks a mark")

  def _global(self, arg: str | None) -> None:
    if arg is None:  # STACK_GLOBAL
      name, module = self._stack.pop(), self._stack.pop()
    else:
      module, _, name = arg.partition(" ")
    if type(module) is not str or type(name) is not str:
      raise PickleError("the name of a global is not text")
    found = Global(module, name)
    known = (module, name) in self._calls or (module, name) in self._names
    if not known and found not in _QUIET:
      raise PickleError(
        f"its pickle names {module:.100}.{name:.100}, which could run code; "
        "only tensors and plain containers are read. If you trust the file, "
        "save its tensors as safetensors with the program that wrote it"
      )
    self._stack.append(found)

  def _reduce(self, arg: Any) -> None:
    args, function = self._stack.pop(), self._stack.pop()
    if not _is_name(function) or type(args) is not tuple:
      raise PickleError("its pickle calls something that is not a function")
    key = (function.module, function.name)
    if function == _NEW_NAMESPACE and not args:
      self._stack.append(Namespace())
    elif key in self._calls:
      self._stack.append(self._calls[key](*args))
    else:
      raise PickleError(f"its pickle calls {function}, which is not a function")

  def _build(self, arg: Any) -> None:
    state, target = self._stack.pop(), self._stack[-1]
    if type(target) is Namespace and type(state) is dict:
      target.update((str(_key(k)), v) for k, v in state.items())
    # An OrderedDict may have attributes, such as the versions of modules.
    elif not (type(target) is dict and type(state) is dict):
      raise PickleError(
        f"its pickle sets attributes of a {type(target).__name__}"
      )

  def _append(self, arg: Any) -> None:
    item = self._stack.pop()
    self._extend([item])

  def _appends(self, arg: Any) -> None:
    self._extend(self._pop_mark())

  def _extend(self, items: list[Any]) -> None:
    target = self._stack[-1]
    if type(target) is not list:
      raise PickleError(f"its pickle appends to a {type(target).__name__}")
    target += items

  def _add_items(self, arg: Any) -> None:
    items = self._pop_mark()
    target = self._stack[-1]
    if type(target) is not set:
      raise PickleError(f"its pickle adds to a {type(target).__name__}")
    target.update(map(_key, items))

  def _set_item(self, arg: Any) -> None:
    value, key = self._stack.pop(), self._stack.pop()
    self._update([key, value])

  def _set_items(self, arg: Any) -> None:
    self._update(self._pop_mark())

  def _update(self, items: list[Any]) -> None:
    target = self._stack[-1]
    if type(target) is not dict or len(items) % 2:
      raise PickleError(f"its pickle sets items of a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
      target[_key(key)] = value

  def _dict_of_mark(self, arg: Any) -> None:
    items = self._pop_mark()
    self._stack.append({})
    self._update(items)

  def _list_of_mark(self, arg: Any) -> None:
    items = self._pop_mark()
    self._stack.append(items)

  def _tuple_of_mark(self, arg: Any) -> None:
    items = self._pop_mark()
    self._stack.append(tuple(items))

  def _frozenset_of_mark(self, arg: Any) -> None:
    items = self._pop_mark()
    self._stack.append(frozenset(map(_key, items)))

  def _tuple(self, count: int) -> None:
    items = [self._stack.pop() for _ in range(count)]
    self._stack.append(tuple(reversed(items)))

  def _get(self, arg: Any) -> None:
    self._stack.append(self._memo[int(arg)])

  def _put(self, arg: Any) -> None:
    self._memo[int(arg)] = self._stack[-1]

  def _memoize(self, arg: Any) -> None:
    self._memo[len(self._memo)] = self._stack[-1]

  def _persist(self, arg: Any) -> None:
    if self._persistent is None:
      raise PickleError("its pickle refers to an object outside of it")
    self._stack.append(self._persistent(self._stack.pop()))

  def _duplicate(self, arg: Any) -> None:
    self._stack.append(self._stack[-1])

  def _pop(self, arg: Any) -> None:
    self._stack.pop()

  def _drop_mark(self, arg: Any) -> None:
    self._pop_mark()


# Opcodes that push their argument.
_VALUES = frozenset({
  "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT",
  "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE",
  "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
})  # fmt: skip
# Opcodes that push a new value.
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
  "NONE": lambda: None,
  "NEWTRUE": lambda: True,
  "NEWFALSE": lambda: False,
  "EMPTY_DICT": dict,
  "EMPTY_LIST": list,
  "EMPTY_TUPLE": tuple,
  "EMPTY_SET": set,
  "MARK": lambda: _MARK,
}
_FUNCTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
  "GLOBAL": _Machine._global,
  "STACK_GLOBAL": _Machine._global,
  "REDUCE": _Machine._reduce,
  "NEWOBJ": _Machine._reduce,
  "BUILD": _Machine._build,
  "APPEND": _Machine._append,
  "APPENDS": _Machine._appends,
  "ADDITEMS": _Machine._add_items,
  "SETITEM": _Machine._set_item,
  "SETITEMS": _Machine._set_items,
  "DICT": _Machine._dict_of_mark,
  "LIST": _Machine._list_of_mark,
  "TUPLE": _Machine._tuple_of_mark,
  "FROZENSET": _Machine._frozenset_of_mark,
  "TUPLE1": lambda machine, _: machine._tuple(1),
  "TUPLE2": lambda machine, _: machine._tuple(2),
  "TUPLE3": lambda machine, _: machine._tuple(3),
  **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine._get),
  **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine._put),
  "MEMOIZE": _Machine._memoize,
  "BINPERSID": _Machine._persist,
  "DUP": _Machine._duplicate,
  "POP": _Machine._pop,
  "POP_MARK": _Machine._drop_mark,
}
