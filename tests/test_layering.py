"""Imports point down: rooms are layered, and no room has a circle inside."""

import subprocess
import sys

import pytest

from tests.support.import_graph import JAX
from tests.support.import_graph import MAY_IMPORT
from tests.support.import_graph import PACKAGE
from tests.support.import_graph import imports_of
from tests.support.import_graph import own_module
from tests.support.import_graph import read_package
from tests.support.import_graph import way_to
from tests.support.import_graph import way_to_jax

# From the ground up: a room imports rooms before it, and itself.
ROOMS = (
  "runtime", "data", "models", "weights", "tasks", "kinds", "training",
  "prediction", "launching", "sweeps", "planning",
)  # fmt: skip
# They may import every room; no room imports them.
FLAT = ("bert_jax", "command_line", "configs", "demo", "main", "modes")
MOST_FLAT_FILES = 6
# Modules and rooms that run in the many processes that prepare data, which must
# start fast and must not claim the accelerator, or that only compute numbers.
HOST_ONLY = (
  "data", "tasks", "models.flops", "runtime.chips", "planning.hlo",
  "planning.costs", "training.metrics", "launching",
)  # fmt: skip
# `bert_jax.configs` alone names them, for type checkers.
NEVER = {"configs", "experiments", "tests"}


def room_of(module: str) -> str:
  return module.split(".")[0]


def is_host_only(module: str) -> bool:
  return any(f"{module}.".startswith(f"{name}.") for name in HOST_ONLY)


def problems(modules: dict[str, set[str]]) -> list[str]:
  """Returns what is wrong with the imports of a package, and what to do."""
  found = []
  below = {
    module: sorted({own_module(name, modules) for name in names} - {None})
    for module, names in modules.items()
  }
  for module, names in modules.items():
    room = room_of(module)
    for name in sorted(names):
      if name.startswith("."):
        found.append(f"{module} imports {name}: write it from bert_jax on")
      if name.split(".")[0] in NEVER and module != "configs":
        found.append(f"{module} imports {name}: the package must not")
    if module not in FLAT and room not in ROOMS:
      found.append(f"{module} is in no room: move it into one of {ROOMS}")
    if room in ROOMS:
      higher = (*ROOMS[ROOMS.index(room) + 1 :], *FLAT[1:])
      found += [
        f"{module} imports {other}, which is in a higher room: move what it "
        "needs down"
        for other in below[module]
        if room_of(other) in higher
      ]

    def inside(name, room=room):
      return [n for n in below.get(name, ()) if room_of(n) == room]

    circle = way_to(lambda n, start=module: n == start, module, inside)
    if circle:
      found.append(f"{room} has a circle: {' -> '.join(circle)}")
    chain = way_to_jax(module, modules) if is_host_only(module) else None
    if chain:
      found.append(f"{module} is host-only, but: {' -> '.join(chain)}")
  return found


def test_imports_point_down_and_in_no_circle():
  modules = read_package(PACKAGE)
  assert modules
  assert not problems(modules), "\n".join(["", *problems(modules)])


def test_few_files_lie_flat():
  flat = sorted(path.name for path in PACKAGE.glob("*.py"))
  assert len(flat) <= MOST_FLAT_FILES, flat


@pytest.mark.parametrize(
  ("module", "imported", "message"),
  [
    ("kinds.losses", "bert_jax.training.steps.f", "kinds.losses imports"),
    ("models.encoder", "bert_jax.tasks.spec", "models.encoder imports tasks"),
    ("runtime.files", "bert_jax.main", "runtime.files imports main"),
    ("models.heads", "bert_jax.models.encoder", "models has a circle"),
    ("data.pairing", "jax.numpy", "host-only, but: data.pairing -> jax"),
    ("data.prepare", "bert_jax.runtime.hosts", "runtime.hosts -> jax"),
    ("data.prepare", "bert_jax.data.batching", "data.batching -> grain"),
    ("data.batching", "optax", "host-only, but: data.batching -> optax"),
    ("tasks.spec", "flax.linen", "tasks.spec is host-only"),
    ("training.train", "configs.base", "the package must not"),
    ("models.encoder", ".heads", "write it from bert_jax on"),
    ("helpers", "os", "helpers is in no room"),
  ],
)
def test_the_checker_finds_a_bad_import(module, imported, message):
  good = {
    "bert_jax": {"bert_jax.prediction.predict"},
    "main": {"bert_jax.training.train"},
    "training.train": {"bert_jax.training.steps", "bert_jax.kinds.losses"},
    "training.steps": {"jax"},
    "prediction.predict": {"bert_jax.models.encoder"},
    "data.prepare": {"bert_jax.data.pairing", "bert_jax.runtime.files"},
    "data.pairing": {"numpy"},
    "data.batching": {"grain", "numpy"},
    "runtime.files": {"os"},
    "runtime.hosts": {"jax"},
    "kinds.losses": {"jax.numpy"},
    "models.encoder": {"bert_jax.models.heads.MlmHead", "flax.linen"},
    "models.heads": set(),
    "tasks.spec": {"dataclasses"},
  }
  assert not problems(good)
  bad = {**good, module: {*good.get(module, ()), imported}}
  assert any(message in problem for problem in problems(bad)), problems(bad)


def test_the_checker_reads_every_form_of_import():
  source = (
    "import a.b as c\n"
    "from d import e, f as g\n"
    "def lazy():\n"
    "  from .h import i\n"
    "  from . import j\n"
  )
  assert imports_of(source) == {"a.b", "d.e", "d.f", ".h.i", "..j"}


def test_importing_every_host_only_module_does_not_load_jax():
  modules = [
    module
    for module in read_package(PACKAGE)
    if is_host_only(module) and module not in MAY_IMPORT
  ]
  lines = [f"import bert_jax.{module}" for module in modules]
  loaded = f"print(*sorted(set(sys.modules) & {JAX}))"
  program = "\n".join(["import sys", *lines, loaded])
  result = subprocess.run(
    [sys.executable, "-c", program],
    cwd=PACKAGE.parent, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  assert result.stdout.strip() == "", f"{modules} load {result.stdout}"
