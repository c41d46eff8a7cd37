"""An installed package works in any folder: configs by name, and one's own."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.support import tiny_run

ROOT = pathlib.Path(__file__).parents[1]

MINE = """\
from bert_jax.configs import base


def get_config(text=None):
  c = base.get_config()
  base.set_size(c, "tiny")
  c.model.vocab_size = 40
  c.model.max_len = 16
  c.data.seq_len = 16
  c.data.batch_size = 8
  c.prepare.vocab_size = 40
  c.prepare.held_out_rate = 0.2
  c.train.total_steps = 2
  c.eval.max_examples = 16
  return c
"""
MY_SWEEP = """\
from bert_jax.sweeps import sweep


def get_config(text=None):
  return sweep.make(
    sweep.trial(f"{text}:size=tiny", {"seed": seed}) for seed in (0, 1)
  )
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The path of a wheel that is built from a copy of the clone."""
  source = tmp_path_factory.mktemp("source") / "clone"
  ours = ("bert_jax", "configs", "experiments")
  for name in ours:
    shutil.copytree(
      ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
    )
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  folder = tmp_path_factory.mktemp("wheel")
  subprocess.run(
    [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
     "--no-build-isolation", f"--wheel-dir={folder}", str(source)],
    check=True,
  )  # fmt: skip
  (path,) = folder.glob("*.whl")
  return path


class Installed:
  """An installed bert-jax, run in a folder of its own."""

  def __init__(self, program, environ, folder):
    self.program, self.environ, self.folder = program, environ, folder

  def __call__(self, *args, status=0):
    done = subprocess.run(
      [*self.program, *map(str, args)],
      cwd=self.folder,
      env=self.environ,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def beside(wheel, tmp_path):
  """The wheel, installed into a folder before the packages of this clone."""
  target = tmp_path / "site"
  subprocess.run(
    [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
     f"--target={target}", str(wheel)],
    check=True,
  )  # fmt: skip
  folder = tmp_path / "work"
  folder.mkdir()
  environ = os.environ | {"PYTHONPATH": str(target), "XLA_FLAGS": ""}
  return Installed([sys.executable, "-m", "bert_jax.main"], environ, folder)


def check_short_way(run):
  """From text to an answer, by shipped configs and configs of one's own."""
  rows = (" ".join(tiny_run.WORDS[i:] + tiny_run.WORDS[:i]) for i in range(6))
  text = "\n".join(f"{row}.\n{row} {row}.\n" for row in list(rows) * 12)
  (run.folder / "text.txt").write_text(text)
  (run.folder / "mine.py").write_text(MINE)
  data = ("--input=text.txt", "--output=data")
  run("prepare", "--config=mine.py", *data)
  run("train", "--config=mine.py", "--config.data.dir=data", "--workdir=run")
  assert "step 2" in run("train", "--workdir=run")
  word = tiny_run.WORDS[0]
  answer = run("predict", "--workdir=run", f"--text={word} [MASK]")
  assert len(json.loads(answer.splitlines()[0])["masks"][0]) == 5
  answer = run("predict", "--config=predict:kind=embed,from=run", "--text=a")
  assert "pooled" in answer


def test_shipped_configs_are_found_by_name_from_any_folder(beside):
  listed = beside("configs")
  for name in ("pretrain ", "finetune ", "predict ", "glue "):
    assert f"\n{name}" in listed
  beside("configs", "--copy=finetune", "my.py")
  assert "exists" in beside("configs", "--copy=finetune", "my.py", status=2)
  (beside.folder / "sweep.py").write_text(MY_SWEEP)
  for config in ("sweep.py:pretrain", "sweep.py:configs/pretrain.py"):
    listed = beside(
      "sweep", f"--config={config}", "--workdir=runs", "--dry_run"
    )
    assert "seed=1" in listed
  said = beside("train", "--config=my.py:task=mrpc,lr=2e-5", status=2)
  assert "--workdir" in said


def test_a_package_without_clone_trains_and_predicts(beside):
  check_short_way(beside)


@pytest.mark.slow
@pytest.mark.parametrize("python", ["python3.11", "python3.13"])
def test_a_fresh_environment_trains_and_predicts(python, wheel, tmp_path):
  """With nothing but what the wheel itself asks the registry for."""
  if not shutil.which(python):
    pytest.skip(f"{python} is not here")
  folder = tmp_path / "environment"
  subprocess.run([python, "-m", "venv", str(folder)], check=True)
  subprocess.run(
    [folder / "bin" / "pip", "install", "--quiet", str(wheel)], check=True
  )
  work = tmp_path / "work"
  work.mkdir()
  hidden = ("PYTHONPATH", "XLA_FLAGS", "VIRTUAL_ENV")
  environ = {k: v for k, v in os.environ.items() if k not in hidden}
  run = Installed([folder / "bin" / "bert-jax"], environ, work)
  assert f"Python {python.removeprefix('python')}" in run("--version")
  check_short_way(run)
