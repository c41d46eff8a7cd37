"""Every file of configs/ loads, and has the keys of configs/base.py."""

import ast
import collections
import importlib
import io
import pathlib
import re
import tokenize

import ml_collections
import pytest

from tests import test_layering

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
BASE = CONFIGS / "base.py"
NAMES = sorted(path.stem for path in CONFIGS.glob("[!_]*.py"))


def get_config(name: str):
  return importlib.import_module(f"configs.{name}").get_config


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> set[str]:
  """Returns the dotted names of all values; an empty group counts as one."""
  names = set()
  for key in config:
    value = config[key]
    if isinstance(value, ml_collections.ConfigDict) and len(value):
      names |= leaves(value, f"{prefix}{key}.")
    else:
      names.add(prefix + key)
  return names


def assigned_keys(source: str) -> list[tuple[str, int, int]]:
  """Returns (name, first line, last line) of the keys set in get_config.

  Both ways of writing it are read: `group.key = value`, and `key=value` or
  `"key": value` inside a call or a dict. Groups are left out.
  """
  functions = [n for n in ast.parse(source).body if hasattr(n, "name")]
  (function,) = (n for n in functions if n.name == "get_config")
  found = []
  for node in ast.walk(function):
    if isinstance(node, ast.Assign):
      targets = [t for t in node.targets if isinstance(t, ast.Attribute)]
      pairs = [(t.attr, node.value, t) for t in targets]
    elif isinstance(node, ast.Call):
      pairs = [(k.arg, k.value, k) for k in node.keywords if k.arg]
    elif isinstance(node, ast.Dict):
      keys = zip(node.keys, node.values, strict=True)
      keys = [(k, v) for k, v in keys if isinstance(k, ast.Constant)]
      pairs = [(k.value, value, k) for k, value in keys]
    else:
      continue
    for name, value, where in pairs:
      if "ConfigDict(" not in ast.unparse(value):
        found.append((name, where.lineno, value.end_lineno))
  return found


def keys_without_comment(source: str) -> list[tuple[str, int]]:
  """Returns (name, line) of keys with no comment beside them or above."""
  tokens = tokenize.generate_tokens(io.StringIO(source).readline)
  comments = {t.start[0]: t for t in tokens if t.type == tokenize.COMMENT}
  alone = {n for n, t in comments.items() if t.line.lstrip().startswith("#")}
  return [
    (name, first)
    for name, first, last in sorted(assigned_keys(source), key=lambda k: k[1])
    if first - 1 not in alone
    and not any(line in comments for line in range(first, last + 1))
  ]


def test_there_are_configs():
  assert "base" in NAMES, f"{BASE} is missing"


@pytest.mark.parametrize("name", NAMES)
def test_config_has_exactly_the_keys_of_base(name):
  config, base = get_config(name)(), get_config("base")()
  assert leaves(config) - leaves(base) == set(), "not in base.py"
  assert leaves(base) - leaves(config) == set(), "missing"


@pytest.mark.parametrize("name", NAMES)
def test_config_keeps_the_types_of_base(name):
  """A flag parses its value by the type of the default."""
  config, base = get_config(name)(), get_config("base")()
  for key in leaves(base):
    group, _, leaf = key.rpartition(".")
    both = [c[group] if group else c for c in (config, base)]
    kinds = [c.get_type(leaf) for c in both]
    assert kinds[0] == kinds[1], key


@pytest.mark.parametrize("name", NAMES)
def test_config_takes_every_named_size(name):
  if not re.search(r"\bsize\b", get_config(name).__doc__ or ""):
    pytest.skip(f"configs/{name}.py documents no argument `size`")
  for size in importlib.import_module("configs.base").SIZES:
    config = get_config(name)(f"size={size}")
    assert config.model.hidden_size % config.model.num_heads == 0, size
    assert leaves(config) == leaves(get_config("base")())


@pytest.mark.parametrize("name", NAMES)
def test_config_refuses_an_unknown_argument(name):
  with pytest.raises(ValueError, match="no_such_argument"):
    get_config(name)("no_such_argument=1")


@pytest.mark.parametrize("name", NAMES)
def test_config_says_what_it_is(name):
  assert importlib.import_module(f"configs.{name}").__doc__
  assert get_config(name).__doc__


def test_every_key_of_base_has_a_comment():
  source = BASE.read_text()
  keys = [name.rpartition(".")[2] for name in leaves(get_config("base")())]
  written = collections.Counter(name for name, _, _ in assigned_keys(source))
  for name, times in collections.Counter(keys).items():
    assert written[name] >= times, f"{name}: where is it given its value?"
  bare = [key for key in keys_without_comment(source) if key[0] in keys]
  assert not bare, f"say meaning, unit and source of (key, line): {bare}"


def test_a_key_without_a_comment_is_found():
  source = (
    "def get_config():\n"
    "  c.a = 1  # steps\n"
    "  c.b = 2\n"
    "  # of the batch\n"
    "  c.c = 3\n"
    "  c.d = ConfigDict(dict(\n"
    "    e=1,\n"
    "    f=2,  # rows\n"
    "  ))\n"
    "  c.g = ConfigDict({'h': 1})\n"
  )
  assert keys_without_comment(source) == [("b", 3), ("e", 7), ("h", 10)]


def test_configs_import_nothing_that_imports_jax():
  package = test_layering.read_package(test_layering.PACKAGE)
  for path in CONFIGS.glob("*.py"):
    imports = test_layering.imports_of(path.read_text())
    modules = {**package, f"configs.{path.stem}": imports}
    chain = test_layering.way_to_jax(f"configs.{path.stem}", modules)
    assert chain is None, " -> ".join(chain)
