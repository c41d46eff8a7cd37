"""Who imports whom in the package."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[2] / "bert_jax"
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex", "grain"}
# Feeding has no use for jax itself; grain imports it.
MAY_IMPORT = dict.fromkeys(
  ("data.batching", "data.mixtures", "data.orders", "data.task_batches"),
  {"grain"},
)


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


def way_to(banned, start: str, goes_to) -> list[str] | None:
  """Returns the shortest chain from a module to a name in `banned`.

  Args:
    banned: a function (name) -> True at the end of a chain.
    start: a module.
    goes_to: a function (module) -> the names that it imports, in order.
  """
  chains, seen = [[start]], {start}
  for chain in chains:  # grows while it is walked: breadth first
    for name in goes_to(chain[-1]):
      if banned(name):
        return [*chain, name]
      if name not in seen:
        seen.add(name)
        chains.append([*chain, name])
  return None


def way_to_jax(module: str, modules) -> list[str] | None:
  """Returns the shortest chain of imports from a module to a name in JAX."""
  banned = JAX - MAY_IMPORT.get(module, set())

  def goes_to(name):
    imports = modules.get(name, ())
    ours = {own_module(n, modules) for n in imports} - {None, "bert_jax"}
    others = {n.split(".")[0] for n in imports} - {"bert_jax"}
    return sorted(others & banned) + sorted(ours)

  return way_to(lambda name: name in banned, module, goes_to)
