"""Every file of configs/ loads, and has the keys of configs/base.py."""

import importlib
import pathlib
import re

import ml_collections
import pytest

from tests.support import import_graph

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


def test_configs_import_nothing_that_imports_jax():
  package = import_graph.read_package(import_graph.PACKAGE)
  for path in CONFIGS.glob("*.py"):
    imports = import_graph.imports_of(path.read_text())
    modules = {**package, f"configs.{path.stem}": imports}
    chain = import_graph.way_to_jax(f"configs.{path.stem}", modules)
    assert chain is None, " -> ".join(chain)


@pytest.mark.parametrize("name", ["cramming", "mosaicbert"])
@pytest.mark.parametrize("devices", [1, 8])
def test_a_device_computes_its_rows_in_equal_parts_that_fit(name, devices):
  config = get_config(name)(f"devices={devices}")
  assert config.model.dtype == "bfloat16"
  unit = devices * config.optim.num_micro_batches
  sizes = [*config.data.batch_warmup_sizes, config.data.batch_size]
  assert [size % unit for size in sizes] == [0] * len(sizes)
  assert max(sizes) == get_config(name)().data.batch_size
  # Of larger parts there would be too few, or more than 16,384 tokens.
  assert max(sizes) * config.data.seq_len == unit * 16_384
  with pytest.raises(ValueError, match="devices=7.*in equal parts of 896 rows"):
    get_config(name)("devices=7")
