"""Results of sweeps that nobody ran."""

import json
import pathlib
import shutil

from bert_jax.runtime import settings
from bert_jax.sweeps import report
from bert_jax.sweeps import sweep
from configs import base

ROOT = pathlib.Path(__file__).parents[2]


def make_trials(finished_run, tmp_path):
  """Two trials of pre-training, the first of which is done; their workdir."""
  plain = settings.flatten(settings.plain(finished_run.config))
  default = settings.flatten(settings.plain(base.get_config()))
  changes = {
    k: v for k, v in plain.items() if v != default[k] and k != "mesh.rules"
  }
  workdir = tmp_path / "runs"
  config = sweep.make(
    sweep.trial("configs/base.py", changes | {"seed": seed})
    for seed in (finished_run.config.seed, 7)
  )
  found = sweep.read_trials(config, str(workdir))
  shutil.copytree(finished_run.workdir, found[0].workdir)
  return found, str(workdir)


def make_row(task, seed, value, rate=5e-5, **changes):
  metric, scale = report._metric(task, {})
  return {
    "id": f"{task}{seed}{rate}",
    "trial": f"task={task},rate={rate},seed={seed}",
    "task": task, "seed": seed,
    "settings": {"optim.learning_rate": rate, "seed": seed, "config": "c.py"},
    "config": {}, "commit": "a" * 40, "dirty": False, "data_hash": "0",
    "hardware": "1 x cpu", "seconds": 60.0, "steps": 9,
    "useful_tokens_per_sec": 1000.0, "most_frequent": None,
    "metrics": {f"eval/{metric}": value / scale},
    "commits": ["a" * 40], "finished": "2026-01-01",
    "curves": {"train/loss": [[1, 2.0], [9, 1.0]]},
  } | changes  # fmt: skip


def write(folder, rows, planned=()):
  folder.mkdir(exist_ok=True)
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "results.jsonl").write_text(text)
  if planned:
    trials = {"command": "bert-jax --mode=sweep", "trials": list(planned)}
    (folder / "trials.json").write_text(json.dumps(trials))
