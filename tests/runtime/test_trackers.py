"""Tests of trackers.py: metrics go to services, which never stop a run."""

import importlib.util
import json
import os
import time

import pytest

from bert_jax.runtime import settings
from bert_jax.runtime import trackers
from configs import base


@pytest.fixture
def fake(monkeypatch):
  """A tracker "fake" that keeps what it gets; `odd` makes it fail."""
  calls, odd = [], {}

  def open_(workdir, run_id, config):
    calls.append(("open", run_id, config))
    if "open" in odd:
      raise odd["open"]

    def log(step, row):
      if step == odd.get("step"):
        raise ConnectionError("no\nnetwork")
      calls.append((step, row))

    def finish():
      calls.append("finish")
      if "finish" in odd:
        raise odd["finish"]

    return trackers.Opened(run_id or "id-1", log, finish)

  row = trackers.Tracker("json", "fake", open_)
  monkeypatch.setitem(trackers.TRACKERS, "fake", row)
  return calls, odd


def test_metrics_arrive_in_order_and_a_resumed_run_keeps_its_id(fake, tmp_path):
  calls, _ = fake
  for steps in ((1, 2), (3,)):
    sent = trackers.Trackers(["fake"], str(tmp_path), {"seed": 5})
    for step in steps:
      sent.write(step, {"train/loss": step / 2})
    sent.close()
  assert calls == [
    ("open", "", {"seed": 5}), (1, {"train/loss": 0.5}),
    (2, {"train/loss": 1.0}), "finish",
    ("open", "id-1", {"seed": 5}), (3, {"train/loss": 1.5}), "finish",
  ]  # fmt: skip
  assert json.loads((tmp_path / "trackers.json").read_text()) == {
    "fake": "id-1"
  }


@pytest.mark.parametrize("what", ["open", "step"])
def test_a_tracker_that_fails_is_said_once_and_stops_nothing(
  fake, tmp_path, caplog, what
):
  calls, odd = fake
  odd[what] = OSError("no key") if what == "open" else 2
  sent = trackers.Trackers(["fake"], str(tmp_path), {})
  for step in range(1, 9):
    sent.write(step, {"train/loss": 0.0})
  sent.close()
  assert caplog.text.count("goes on without it") == 1
  assert len(calls) == (1 if what == "open" else 2)


def test_a_tracker_that_fails_at_its_end_is_not_waited_for(
  fake, tmp_path, caplog
):
  _, odd = fake
  odd["finish"] = OSError("no network")
  sent = trackers.Trackers(["fake"], str(tmp_path), {})
  sent.write(1, {})
  sent.close()
  assert "goes on without it" in caplog.text
  assert "giving up" not in caplog.text


def test_a_tracker_that_hangs_is_given_up(fake, tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(trackers, "_MOST_SECS_TO_END", 0.05)
  row = trackers.Tracker("json", "fake", lambda *args: time.sleep(1))
  monkeypatch.setitem(trackers.TRACKERS, "fake", row)
  sent = trackers.Trackers(["fake"], str(tmp_path), {})
  begun = time.monotonic()
  sent.write(1, {})
  sent.close()
  assert time.monotonic() - begun < 0.9
  assert "giving up" in caplog.text


def test_what_is_not_known_or_not_installed_is_refused(monkeypatch):
  trackers.check(())
  with pytest.raises(ValueError, match="'comet'.*wandb, mlflow"):
    trackers.check(("comet",))
  row = trackers.Tracker("no_such_package", "extra", print)
  monkeypatch.setitem(trackers.TRACKERS, "none", row)
  with pytest.raises(ValueError, match=r"pip install 'bert_jax\[extra\]'"):
    trackers.check(["none"])


def _send(name, tmp_path):
  config = settings.plain(base.get_config())
  for step in (1, 2):  # two sessions
    sent = trackers.Trackers([name], str(tmp_path), config)
    sent.write(step, {"train/loss": 1 / step})
    sent.close()


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="no mlflow")
def test_mlflow_keeps_metrics_and_settings(tmp_path, monkeypatch, caplog):
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
  import mlflow

  _send("mlflow", tmp_path)
  assert "goes on without it" not in caplog.text
  run_id = json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
  client = mlflow.MlflowClient(f"file:{tmp_path}/mlruns")
  found = client.get_metric_history(run_id, "train/loss")
  assert [(point.step, point.value) for point in found] == [(1, 1.0), (2, 0.5)]
  run = client.get_run(run_id)
  assert run.data.params["optim.learning_rate"] == "0.0001"
  assert run.info.status == "FINISHED"
  assert run.info.run_name == tmp_path.name


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="no wandb")
def test_wandb_writes_its_files_into_the_workdir_offline(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.setenv("WANDB_MODE", "offline")
  _send("wandb", tmp_path)
  assert "goes on without it" not in caplog.text
  run_id = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
  records = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
  assert len(records) == 2  # one for each session
  assert not os.path.exists(tmp_path / "mlruns")
