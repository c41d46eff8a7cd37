"""Tests of costs.py: what is left to run, and what it is to cost."""

import json

import pytest

from bert_jax.runtime import metrics_log
from bert_jax.runtime import settings
from configs import base
from tests.support import launching
from tests.support import sweep_trials

launch = launching.launch
ROOT = sweep_trials.ROOT


@pytest.mark.slow
def test_real_trials_run_and_the_next_ones_cost_is_predicted(
  tmp_path, finished_run, launch, capsys, monkeypatch
):
  monkeypatch.chdir(ROOT)
  (tmp_path / "study").mkdir()
  path = tmp_path / "study" / "sweep.py"
  changes = {
    k: v
    for k, v in settings.flatten(settings.plain(finished_run.config)).items()
    if v != settings.flatten(settings.plain(base.get_config())).get(k)
    and k != "mesh.rules"
  }
  path.write_text(
    "from bert_jax.sweeps import sweep\n"
    "def get_config(count='1'):\n"
    f"  settings = {changes!r}\n"
    "  return sweep.make(\n"
    "    sweep.trial('configs/base.py', settings | {'seed': seed})\n"
    "    for seed in range(int(count)))\n"
  )
  args = ("--mode=sweep", f"--workdir={tmp_path / 'runs'}")
  assert launch(*args, f"--config={path}:2", "--num_parallel=2") == 0
  done = [tmp_path / "runs" / f"seed={seed}" for seed in (0, 1)]
  assert all(metrics_log.read_metrics(str(d))[-1]["step"] == 8 for d in done)
  capsys.readouterr()
  assert launch(*args, f"--config={path}:3", "--dry_run") == 0
  text = " ".join(capsys.readouterr().out.split())
  assert "3 trials: 2 done, 1 new" in text
  assert "8 steps," in text and "at the speed of the 2 trials done" in text
  assert not (tmp_path / "runs" / "seed=2").exists()
  assert json.loads((done[0] / "run.json").read_text())["seed"] == 0
