"""Imports point down: every module of bert_jax has a floor and keeps to it."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "bert_jax"

# From the top floor to the ground. A room (a subpackage) is named as a whole.
FLOORS = (
  {"main"},
  {"train", "plan", "evaluate", "predict", "prepare", "convert", "replay"}
  | {"doctor", "sweep", "results", "report", "engines"},
  {"members"},
  {"session"},
  {"jobs"},
  {"pretraining", "finetuning", "kinds"},
  {"steps"},
  {"objectives"},
  {"weights"},
  {"models", "tasks"},
  {"tokenization", "hf_tokenizer", "added_tokens", "pairing", "masking"}
  | {"packing", "metrics", "flops"}
  | {"batching", "losses", "optim", "sharding", "checkpoint", "records"}
  | {"saved_steps"}
  | {"task_batches", "tf_checkpoint", "corpus", "run_log", "bert_jax"}
  | {"tpu", "profiling", "compile_cache"}
  | {"hosts", "watchdog", "preemption", "bars", "completion"}
  | {"bounds", "signals", "streams"},
  {"files"},
)
# Imports within a floor: nothing but these, and modules of one room.
SIDEWAYS = {
  "train": {"evaluate"},
  "doctor": {"sweep"},
  "engines": {"sweep"},
  "results": {"sweep"},
  "report": {"results", "sweep"},
  "batching": {"masking", "packing", "records", "tokenization"},
  "checkpoint": {"hosts", "run_log", "saved_steps"},
  "hf_tokenizer": {"added_tokens"},
  "hosts": {"watchdog"},
  "saved_steps": {"run_log"},
  "task_batches": {"batching", "packing"},
  "tokenization": {"added_tokens", "hf_tokenizer"},
  "flops": {"tpu.chips"},
  "preemption": {"signals"},
}
# They run in the many processes that prepare data, which must start fast and
# must not claim the accelerator.
HOST_ONLY = {"tokenization", "pairing", "masking", "packing", "metrics"} | {
  "flops", "corpus", "records", "prepare", "tasks", "tpu", "files"
} | {"bounds", "signals", "streams"}  # fmt: skip
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex", "grain"}
# Feeding has no use for jax itself; grain imports it.
JAX_OF = dict.fromkeys(HOST_ONLY, JAX) | {"batching": JAX - {"grain"}}
NEVER = {"configs", "experiments", "tests"}


def imports_of(source: str) -> set[str]:
  """Returns the dotted names that a module imports, wherever it does so."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      origin = "." * node.level + (node.module or "")
      names |= {f"{origin}.{alias.name}" for alias in node.names}
  return names


def read_package(package: pathlib.Path) -> dict[str, set[str]]:
  """Returns the imports of every module; modules are named from the package."""
  modules = {}
  for path in sorted(package.rglob("*.py")):
    parts = path.relative_to(package.parent).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    modules[".".join(parts[1:]) or "bert_jax"] = imports_of(path.read_text())
  return modules


def own_module(name: str, modules) -> str | None:
  """Returns which of our modules a dotted import names, None if not ours."""
  parts = name.split(".")
  if parts[0] != "bert_jax":
    return None
  inside = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
  return next((name for name in inside if name in modules), "bert_jax")


def room_of(module: str) -> str:
  return module.split(".")[0]


def floor_of(module: str) -> int | None:
  """Counts floors from the top, 0; None for a module without a floor."""
  floors = (i for i, names in enumerate(FLOORS) if room_of(module) in names)
  return next(floors, None)


def way_to(banned: set[str], module: str, modules) -> list[str] | None:
  """Returns the shortest chain of imports from a module to a banned package."""
  chains, seen = [[module]], {module}
  for chain in chains:  # grows while it is walked: breadth first
    for name in sorted(modules[chain[-1]]):
      if name.split(".")[0] in banned:
        return [*chain, name]
      below = own_module(name, modules)
      if below is not None and below not in seen:
        seen.add(below)
        chains.append([*chain, below])
  return None


def problems(modules: dict[str, set[str]]) -> list[str]:
  """Returns what is wrong with the imports of a package, and what to do."""
  found = []
  for module, names in modules.items():
    floor = floor_of(module)
    if floor is None:
      found.append(f"{module} has no floor: give it one in FLOORS")
      continue
    for name in sorted(names):
      if name.startswith("."):
        found.append(f"{module} imports {name}: write it from bert_jax on")
      if name.split(".")[0] in NEVER:
        found.append(f"{module} imports {name}: the package must not")
      below = own_module(name, modules)
      if below is None or floor_of(below) is None:
        continue
      same_room = room_of(module) == room_of(below)
      allowed = same_room or below in SIDEWAYS.get(module, ())
      if floor_of(below) < floor or (floor_of(below) == floor and not allowed):
        found.append(
          f"{module} imports {below}, which is not on a lower floor: "
          "move what it needs down, or list the pair in SIDEWAYS"
        )
    chain = way_to(JAX_OF.get(room_of(module), set()), module, modules)
    if chain:
      found.append(f"{module} is host-only, but: {' -> '.join(chain)}")
  return found


def test_imports_point_down():
  modules = read_package(PACKAGE)
  assert modules
  assert not problems(modules), "\n".join(["", *problems(modules)])


@pytest.mark.parametrize(
  ("module", "imported", "message"),
  [
    ("losses", "bert_jax.steps.TrainState", "losses imports steps"),
    ("losses", "bert_jax.optim", "losses imports optim"),
    ("models.bert", "bert_jax.tasks.spec", "models.bert imports tasks.spec"),
    ("evaluate", "bert_jax.train", "evaluate imports train"),
    ("pairing", "jax.numpy", "pairing is host-only, but: pairing -> jax"),
    ("prepare", "bert_jax.losses", "prepare -> losses -> jax.numpy"),
    ("prepare", "bert_jax.batching", "prepare -> batching -> grain"),
    ("batching", "optax", "batching is host-only, but: batching -> optax"),
    ("tasks.spec", "flax.linen", "tasks.spec is host-only"),
    ("train", "configs.base", "the package must not"),
    ("models.bert", ".heads", "write it from bert_jax on"),
    ("helpers", "os", "helpers has no floor: give it one in FLOORS"),
  ],
)
def test_the_checker_finds_a_bad_import(module, imported, message):
  good = {
    "train": {"bert_jax.evaluate.evaluate", "bert_jax.steps"},
    "evaluate": {"bert_jax.models.bert"},
    "prepare": {"bert_jax.pairing", "bert_jax.__version__"},
    "steps": {"bert_jax.losses", "jax"},
    "models.bert": {"bert_jax.models.heads.MlmHead", "flax.linen"},
    "models.heads": set(),
    "tasks.spec": {"dataclasses"},
    "batching": {"bert_jax.masking", "grain"},
    "losses": {"jax.numpy"},
    "bert_jax": set(),
  } | {name: {"numpy"} for name in ("optim", "pairing", "masking")}
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
  modules = [m for m in read_package(PACKAGE) if room_of(m) in HOST_ONLY]
  lines = [f"import bert_jax.{module}" for module in modules]
  loaded = f"print(*sorted(set(sys.modules) & {JAX}))"
  program = "\n".join(["import sys", *lines, loaded])
  result = subprocess.run(
    [sys.executable, "-c", program],
    cwd=PACKAGE.parent, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  assert result.stdout.strip() == "", f"{modules} load {result.stdout}"
