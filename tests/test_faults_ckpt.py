"""Real processes: kills below a folder of an odd name, and one flipped bit."""

import random
import shutil
import signal
import sys

import pytest

from tests.support import corpora
from tests.support import fault_runs

pytestmark = pytest.mark.slow

KILLS = max(fault_runs.KILLS // 10, 3)
LOGGED = 7  # steps; no save but the last lies at a line of the log
SETTINGS = {"train__log_every_steps": LOGGED}
PHASES = {"mid-step": 5, "evaluating": 1, "saving": 3, "ending": 1}


@pytest.fixture(scope="module")
def straight(tmp_path_factory, prepared):
  """The workdir of a run that nothing happened to, with all it saved."""
  workdir = tmp_path_factory.mktemp("straight") / "run"
  changes = {"checkpoint__keep": 1000, "checkpoint__every_steps": 10}
  args = fault_runs.train_command(prepared, workdir, **SETTINGS | changes)
  status, said = fault_runs.run(args)
  assert status == 0, said
  return workdir


def test_a_run_below_brackets_that_is_killed_ends_as_if_never_killed(
  tmp_path, prepared, straight
):
  """Its log, too, whose lines are means over steps before and after a kill."""
  killer = fault_runs.Killer(
    PHASES,
    frozenset({"mid-step", "evaluating", "saving"}),
    random.Random(fault_runs.SEED),
  )
  while killer.kills.total() < KILLS:
    folder = tmp_path / "a[a]*?"
    workdir = folder / "run"
    args = fault_runs.train_command(prepared, workdir, **SETTINGS)
    status = None
    while status != 0:
      watched = fault_runs.Training(workdir)
      strike = fault_runs.kill if killer.kills.total() < KILLS else None
      process = fault_runs.start(args, tmp_path / "said")
      status = killer.watch(process, watched.phase, strike)
      said = (tmp_path / "said").read_text()
      assert status in (0, -signal.SIGKILL), said
      assert "damaged" not in said, said
    fault_runs.assert_same_run(workdir, straight)
    shutil.rmtree(folder)
    killer.report("training below brackets")


@pytest.fixture
def flipped(tmp_path, straight):
  """A copy of the run; in the largest file of its newest step a bit differs."""
  workdir = tmp_path / "run"
  step = f"checkpoints/{fault_runs.TOTAL}"
  shutil.copytree(straight / step, workdir / step)
  shutil.copytree(straight / "vocab", workdir / "vocab")
  for name in ("run.json", "metrics.jsonl"):
    shutil.copy(straight / name, workdir / name)
  path = max(
    (p for p in (workdir / step / "params").rglob("*") if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  return workdir


@pytest.mark.parametrize(
  "mode", ["predict", "convert", "init_from", "evaluate"]
)
def test_one_flipped_bit_is_one_line_and_nothing_is_written(
  mode, flipped, tmp_path, prepared
):
  lines, new = tmp_path / "lines.jsonl", tmp_path / "new"
  lines.write_text('{"text": "sun [MASK] sun"}\n')
  start = [sys.executable, "-m", "bert_jax.main"]
  args = {
    "predict": [
      *start, "--mode=predict", f"--workdir={flipped}", f"--input={lines}",
      f"--output={new}",
    ],
    "convert": [
      *start, "--mode=convert", "--config=configs/convert.py",
      f"--input={flipped}", f"--output={new}",
    ],
    "evaluate": [*start, "--mode=evaluate", f"--workdir={flipped}"],
    "init_from": fault_runs.train_command(
      prepared, new, f"--config.init_from={flipped}"
    ),
  }[mode]  # fmt: skip
  before = corpora.tree(flipped)
  status, said = fault_runs.run(args)
  assert status in (1, 2), said
  fault_runs.assert_told(said, f"checkpoints/{fault_runs.TOTAL} is damaged")
  assert corpora.tree(flipped) == before
  assert not new.exists()
