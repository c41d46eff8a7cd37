"""Sweeps whose folder is one of the file system, or of a bucket."""

import os
import pathlib
import sys

import pytest

from bert_jax.runtime import files
from bert_jax.sweeps import engines
from bert_jax.sweeps import running
from bert_jax.sweeps import sweep

ROOT = pathlib.Path(__file__).parents[2]

# Stands for the launcher: leaves what a training of 7 steps would leave.
FAKE = """
import os, sys
args = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:])
workdir, seed = args["workdir"], int(args["config.seed"])
from bert_jax.runtime import files, runs, settings
from configs import base
config = base.get_config()
config.seed = seed
print(f"seed {seed} says this", flush=True)
before = runs.exists(workdir)
run = {"config": settings.plain(config), "data_hash": "0", "total_steps": 7}
runs.write_run(workdir, run)
if seed == 3 and not before:
  sys.exit(75)  # preempted once
if seed == 5:
  sys.exit("it cannot be")
step = os.path.join(workdir, "checkpoints", "7")
files.make_folders(step)
files.write_text(os.path.join(step, "commit_success.txt"), "")
row = '{"step": 7, "eval/loss": 1.0}\\n'
files.write_text(os.path.join(workdir, "metrics.jsonl"), row)
"""


@pytest.fixture
def launcher(tmp_path, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  (tmp_path / "fake.py").write_text(FAKE)
  return [sys.executable, str(tmp_path / "fake.py")]


def test_a_sweep_runs_its_trials_and_can_be_continued(place, launcher):
  workdir = os.path.join(place, "sweep")
  config = str(ROOT / "configs" / "base.py")

  def trials(*seeds):
    made = sweep.make(sweep.trial(config, {"seed": n}) for n in seeds)
    return sweep.read_trials(made, workdir)

  with pytest.raises(running.FailedError, match="1 of 3"):
    running.run(trials(1, 3, 5), workdir, 2, launcher=launcher)
  events = [
    (row["trial"], row["event"]) for row in running.Journal(workdir).read()
  ]
  counts = {x: events.count(x) for x in events}
  assert counts == {
    ("seed=1", "started"): 1, ("seed=1", "done"): 1,
    ("seed=3", "started"): 2, ("seed=3", "preempted"): 1,
    ("seed=3", "done"): 1,
    ("seed=5", "started"): 1, ("seed=5", "failed"): 1,
  }  # fmt: skip
  log = files.read_text(os.path.join(workdir, "seed=3", "log.txt"))
  assert log == "seed 3 says this\n" * 2
  assert "it cannot be" in files.read_text(
    os.path.join(workdir, "seed=5", "log.txt")
  )
  assert [t.state() for t in trials(1, 3, 5)] == ["done", "done", "begun"]
  running.run(trials(1, 3), workdir, launcher=launcher)  # nothing is left
  assert len(running.Journal(workdir).read()) == len(events)


def test_slurm_needs_a_folder_for_its_files(monkeypatch):
  monkeypatch.setitem(sys.modules, "submitit", object())
  with pytest.raises(sweep.SweepError, match="folder"):
    engines.submit([], "gs://bucket/sweep", {})
