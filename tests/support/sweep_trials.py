"""Trials of sweeps, and a program that stands for the launcher."""

import pathlib
import sys

import pytest

from bert_jax.sweeps import sweep

ROOT = pathlib.Path(__file__).parents[2]

# Stands for the launcher: reads what it is to do from the trial's seed, and
# leaves what a training would leave.
FAKE = """
import json, os, sys, time
args = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:])
workdir, seed = args["workdir"], int(args["config.seed"])
with open(os.path.join(os.path.dirname(workdir), "calls"), "a") as f:
  f.write(f"{seed} ")
if seed == 8:
  time.sleep(1)
before = os.path.exists(os.path.join(workdir, "run.json"))
sys.path.insert(0, os.getcwd())
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from configs import base
config = base.get_config()
config.seed = seed
run = {"config": settings.plain(config), "data_hash": "0", "total_steps": 7}
runs.write_run(workdir, run)
if seed == 3 and not before:
  sys.exit(75)  # preempted once
if seed == 5:
  sys.exit("it cannot be")
if seed == 8:
  import signal
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  open(os.path.join(os.path.dirname(workdir), "waits"), "w").close()
  time.sleep(60)
if seed in (6, 7):
  while not os.path.exists(os.path.join(os.path.dirname(workdir), "go")):
    time.sleep(0.02)
  if seed == 6 and not before:
    sys.exit("died")
os.makedirs(os.path.join(workdir, "checkpoints", "7"))
with open(os.path.join(workdir, "metrics.jsonl"), "w") as f:
  f.write(json.dumps({"step": 7, "eval/loss": 1.0}) + "\\n")
"""


@pytest.fixture
def launcher(tmp_path):
  path = tmp_path / "fake.py"
  path.write_text(FAKE)
  return [sys.executable, str(path)]


def seeds(*numbers, workdir):
  config = sweep.make(
    sweep.trial("configs/base.py", {"seed": n}) for n in numbers
  )
  return sweep.read_trials(config, str(workdir))


def calls(workdir):
  return [int(n) for n in (workdir / "calls").read_text().split()]


def trials_of_tasks(workdir, **settings):
  config = sweep.make(
    sweep.trial(
      f"configs/finetune.py:task={task}",
      {"seed": seed, "optim.learning_rate": rate, "data.one_row_len": True}
      | settings,
    )
    for seed in (0, 1)
    for task in ("mrpc", "rte")
    for rate in (2e-5, 3e-5)
  )
  return sweep.read_trials(config, str(workdir))
