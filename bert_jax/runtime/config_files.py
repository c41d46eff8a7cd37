"""Finds the config files that --config names, shipped ones by their short name.

The package ships two kinds of config files: configs of one run, in the folder
`configs`, and sweeps, as `experiments/NAME/sweep.py`. A clone has both folders
beside the package; an installed package carries copies of them.
"""

import ast
import difflib
import importlib.util
import os
import pathlib
import shutil
import sys
from typing import Any

from bert_jax.runtime import errors

_PACKAGE = pathlib.Path(__file__).parents[1]
_COPIES = _PACKAGE / "shipped"
# The folder that has `configs` and `experiments` in it.
ROOT = _COPIES if _COPIES.is_dir() else _PACKAGE.parent


class ConfigFileError(errors.UserError):
  """There is no config file of that name, or it cannot be copied."""


def shipped() -> dict[str, pathlib.Path]:
  """Returns the path of every shipped config file, by its short name.

  `configs/pretrain.py` is called pretrain, `experiments/glue/sweep.py` is
  called glue.
  """
  runs = {path.stem: path for path in sorted(ROOT.glob("configs/[a-z]*.py"))}
  sweeps = sorted(ROOT.glob("experiments/*/sweep.py"))
  return runs | {path.parent.name: path for path in sweeps}


def resolve(value: str) -> str:
  """Returns a value of --config with the path of its file in place of a name.

  The file's folder, or the one above it that holds a folder `configs`, is put
  on the path on which Python looks for modules, so that config files can import
  each other.

  Args:
    value: NAME, NAME:ARGUMENTS, FILE.py or FILE.py:ARGUMENTS. A path of a clone
      such as configs/pretrain.py also finds the copy in an installed package.

  Raises:
    ConfigFileError: No file has this name; the message names similar ones.
  """
  name, colon, arguments = value.partition(":")
  if not name.endswith(".py"):
    path = shipped().get(name)
    if path is None:
      raise ConfigFileError(f"--config={value}: {_unknown(name)}")
  else:
    path = pathlib.Path(name)
    if not path.exists() and (ROOT / name).exists():
      path = ROOT / name
  if not path.is_file():
    raise ConfigFileError(
      f"--config={value}: the file {path} does not exist. The shipped configs "
      f"are {', '.join(shipped())}; `bert-jax configs` describes them"
    )
  _let_import(path)
  return f"{path}{colon}{arguments}"


def load(name: str, arguments: str = "") -> Any:
  """Returns the config that a shipped config file makes.

  Args:
    name: the short name of the file, such as "predict".
    arguments: its arguments, as after the colon of --config=NAME:ARGUMENTS.
  """
  path = resolve(name)
  spec = importlib.util.spec_from_file_location(f"_shipped_{name}", path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arguments)


def _unknown(name: str) -> str:
  near = difflib.get_close_matches(os.path.basename(name), shipped(), n=1)
  guess = f" Did you mean {near[0]}?" if near else ""
  return (
    f"there is no shipped config {name!r}.{guess} The shipped configs are "
    f"{', '.join(shipped())}; the path of a file of your own ends in .py"
  )


def _let_import(path: pathlib.Path) -> None:
  """Lets a config file import `configs` and `experiments` of its clone."""
  for folder in path.absolute().parents[1:]:
    if (folder / "configs").is_dir() and str(folder) not in sys.path:
      sys.path.append(str(folder))
      break
  if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


def describe() -> str:
  """Returns a text that lists the shipped configs with their arguments."""
  lines = []
  for name, path in shipped().items():
    summary, arguments = _docs(path.read_text(encoding="utf-8"))
    lines += [f"{name:<10} {summary}", f"{'':<10} {arguments}"]
  return "\n".join(lines)


def _docs(source: str) -> tuple[str, str]:
  """Returns the first line of a config file's docstring, and its arguments."""
  module = ast.parse(source)
  summary = (ast.get_docstring(module) or "").partition("\n")[0]
  arguments = ""
  for node in ast.walk(module):
    if (
      isinstance(node, ast.Call)
      and ast.unparse(node.func).rpartition(".")[2] == "arguments"
    ):
      found = []
      for keyword in node.keywords:
        if keyword.arg:
          found.append(f"{keyword.arg}={_shown(keyword.value)}")
        elif isinstance(keyword.value, ast.Dict):  # **{"from": ""}
          pairs = zip(keyword.value.keys, keyword.value.values, strict=True)
          found += [f"{k.value}={_shown(v)}" for k, v in pairs]  # type: ignore[union-attr]
      arguments = ", ".join(found)
  return summary, f"Arguments: {arguments or 'none'}"


def _shown(node: ast.expr) -> str:
  """Returns the default of an argument; "..." if it is computed."""
  if isinstance(node, ast.Constant):
    return "" if node.value == "" else str(node.value)
  return "..."


def copy(name: str, target: str) -> None:
  """Copies a shipped config file to a new file, for the user to edit.

  Raises:
    ConfigFileError: There is no such config, or the target exists.
  """
  if name not in shipped():
    raise ConfigFileError(f"--copy={name}: {_unknown(name)}")
  if not target.endswith(".py"):
    raise ConfigFileError(f"{target}: the name of the copy must end in .py")
  try:
    with open(target, "x", encoding="utf-8") as f, open(shipped()[name]) as s:
      shutil.copyfileobj(s, f)
  except FileExistsError as error:
    raise ConfigFileError(
      f"{target} exists and is not overwritten; choose another name"
    ) from error
