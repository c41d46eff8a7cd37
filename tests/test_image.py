"""Tests of the Dockerfile, which no builder has to be at hand for."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LINES = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()


def instructions(name):
  return [x.split(" ", 1)[1] for x in LINES if x.startswith(f"{name} ")]


def test_a_linter_finds_nothing_in_the_dockerfile():
  beside = pathlib.Path(sys.executable).parent / "hadolint"
  program = str(beside) if beside.exists() else shutil.which("hadolint")
  if not program:
    pytest.skip("hadolint is not installed")
  done = subprocess.run(
    [program, "Dockerfile"], cwd=ROOT, capture_output=True, text=True,
    check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr


def test_what_an_image_copies_is_there_and_reaches_the_builder():
  passed = (ROOT / ".dockerignore").read_text().splitlines()
  assert passed.index("*") < passed.index("!bert_jax")
  for copied in instructions("COPY"):
    *sources, _ = copied.split()
    for source in sources:
      assert list(ROOT.glob(source)), source
      assert f"!{source}" in passed, source


def test_the_extras_of_the_image_exist():
  (extras,) = [x[7:] for x in instructions("ARG") if x.startswith("EXTRAS=")]
  setup = (ROOT / "setup.py").read_text()
  assert all(f'"{extra}": [' in setup for extra in extras.split(","))


def test_the_last_user_is_not_root():
  (user,) = instructions("USER")
  assert int(user) >= 1000


def test_an_image_has_no_secrets():
  text = "\n".join(LINES).lower()
  assert not re.search(r"token|password|secret=|credential|\.json", text)


def test_the_python_of_the_image_is_one_that_is_tested():
  (default,) = [x for x in instructions("ARG") if x.startswith("PYTHON=")]
  setup = (ROOT / "setup.py").read_text()
  assert f"Programming Language :: Python :: {default[7:]}" in setup
