"""Tests of replay.py: a step of a run, computed again."""

import json
import os

import numpy as np
import pytest

from bert_jax.data import batching
from bert_jax.runtime import metrics_log
from bert_jax.training import replay
from tests.support import launching

launch = launching.launch


def logged(run, step):
  return next(
    row
    for row in metrics_log.read_metrics(run.workdir)
    if row["step"] == step and "train/loss" in row
  )


@pytest.mark.parametrize("step", [1, 2, 8])
def test_a_step_computed_again_is_the_one_that_was_logged(
  finished_run, tmp_path, step
):
  """From the start, where no checkpoint before it is kept, and from one."""
  path = tmp_path / "replay.json"
  config = finished_run.config
  before = sorted(os.listdir(finished_run.workdir))
  found = replay.replay(config, finished_run.workdir, step, str(path))
  assert json.loads(path.read_text()) == found
  assert sorted(os.listdir(finished_run.workdir)) == before
  row = logged(finished_run, step)
  for name in ("loss", "mlm_loss", "nsp_loss", "grad_norm", "learning_rate"):
    assert found["metrics"][name] == row[f"train/{name}"]
  norms = [p["grad_norm"] for p in found["parameters"]]
  np.testing.assert_allclose(
    np.linalg.norm(norms), row["train/grad_norm"], rtol=1e-5
  )
  assert norms == sorted(norms, reverse=True)
  batches = batching.PretrainBatches(
    config.data, "train", seed=config.seed, batch_size=16, num_steps=8
  )
  examples = batches.examples(step - 1)
  assert sorted(r["row"] for r in found["rows"]) == list(range(16))
  assert all(r["examples"] == examples[r["row"]] for r in found["rows"])
  assert all("[CLS]" in r["tokens"] for r in found["rows"])


def test_the_row_and_the_parameters_that_are_no_numbers_come_first(
  finished_run, tmp_path, monkeypatch, capsys
):
  prefetch = batching.prefetch

  def poisoned(batches, start, **kwargs):
    for i, batch in enumerate(prefetch(batches, start, **kwargs), start + 1):
      if i == 7:
        weights = batch["masked_weights"].copy()
        weights[11] *= np.nan
        batch = batch | {"masked_weights": weights}
      yield batch

  monkeypatch.setattr(batching, "prefetch", poisoned)
  path = str(tmp_path / "replay.json")
  found = replay.replay(finished_run.config, finished_run.workdir, 7, path)
  assert found["metrics"]["loss"] == "nan"
  assert found["rows"][0]["row"] == 11
  assert found["rows"][0]["loss"] == "nan"
  assert all(isinstance(r["loss"], float) for r in found["rows"][1:])
  assert found["parameters"][0]["grad_norm"] == "nan"
  assert found["examples"][11] == found["rows"][0]["examples"]
  assert f"examples {found['rows'][0]['examples']}" in capsys.readouterr().out


@pytest.mark.parametrize("step", [0, 9])
def test_there_is_no_such_step(finished_run, step):
  with pytest.raises(replay.ReplayError, match="has the steps 1 to 8"):
    replay.replay(finished_run.config, finished_run.workdir, step, None)


@pytest.mark.slow
def test_the_launcher_replays_with_the_config_of_the_run(
  finished_run, tmp_path, launch
):
  path = tmp_path / "replay.json"
  status = launch(
    "--mode=train", f"--workdir={finished_run.workdir}", "--replay_step=8",
    f"--output={path}",
  )  # fmt: skip
  assert status == 0
  row = logged(finished_run, 8)
  found = json.loads(path.read_text())["metrics"]["loss"]
  np.testing.assert_allclose(found, row["train/loss"], rtol=1e-5)
