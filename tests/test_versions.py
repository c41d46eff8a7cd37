"""The versions of Python and packages that the project works with."""

import importlib.util
import pathlib
import re
import subprocess
import sys

from packaging import requirements
from packaging import specifiers
import pytest

ROOT = pathlib.Path(__file__).parents[1]
FIRST = "3.11"


def locks():
  """The lock of each version of Python."""
  found = {FIRST: ROOT / "requirements.lock"}
  for path in ROOT.glob("requirements-*.lock"):
    found[path.stem.partition("-")[2]] = path
  return found


@pytest.fixture(scope="module")
def package():
  """What setup.py gives to setuptools, and its module."""
  given = {}
  spec = importlib.util.spec_from_file_location("own_setup", ROOT / "setup.py")
  module = importlib.util.module_from_spec(spec)
  with pytest.MonkeyPatch.context() as patch:
    import setuptools

    patch.setattr(setuptools, "setup", lambda **kwargs: given.update(kwargs))
    spec.loader.exec_module(module)
  return given, module


def test_each_python_that_is_named_has_a_lock(package):
  given, _ = package
  named = re.findall(r"Python :: (3\.\d+)", "\n".join(given["classifiers"]))
  assert set(named) == set(locks())
  allowed = specifiers.SpecifierSet(given["python_requires"])
  minors = [f"3.{i}" for i in range(8, 20)]
  assert [m for m in minors if f"{m}.0" in allowed] == sorted(
    named, key=minors.index
  )


def test_a_lock_has_what_the_package_asks_for(package):
  _, module = package
  wanted = [*module.DEPENDENCIES, *module.EXTRAS["test"]]
  for version, path in locks().items():
    pins = dict(
      line.lower().replace("_", "-").split("==")
      for line in path.read_text().splitlines()
      if "==" in line
    )
    for text in wanted:
      one = requirements.Requirement(text)
      if one.marker and not one.marker.evaluate({"python_version": version}):
        continue
      name = one.name.lower().replace("_", "-")
      assert name in pins, (path.name, name)
      assert one.specifier.contains(pins[name]), (path.name, text, pins[name])


def make(*words, folder):
  done = subprocess.run(
    ["make", "-n", "--no-print-directory", f"--directory={folder}",
     f"--file={ROOT}/Makefile", *words],
    capture_output=True, text=True, check=True,
    env={"PATH": f"{pathlib.Path(sys.executable).parent}:/usr/bin:/bin"},
  )  # fmt: skip
  return done.stdout


@pytest.mark.parametrize("made", ["", "3.11", "3.12"])
def test_another_python_has_an_environment_of_its_own(tmp_path, made):
  """An environment that is there is neither used for another nor replaced."""
  for path in locks().values():
    (tmp_path / path.name).write_text("a==1\n")
  (tmp_path / "setup.py").touch()
  if made:
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "pyvenv.cfg").write_text(f"version = {made}.9\n")
  own = ".".join(map(str, sys.version_info[:2]))
  said = make("setup", f"PYTHON={sys.executable}", folder=tmp_path)
  folder = ".venv" if made in ("", own) else f".venv-{own}"
  assert f"-m venv --clear {folder}\n" in said
  assert f"-r {locks()[own].name}\n" in said
  if made:  # whatever `python3` is, the environment that is there is used
    said = make("setup", folder=tmp_path)
    assert "-m venv --clear .venv\n" in said
    assert f"-r {locks()[made].name}\n" in said
