"""Tests of runtime/mlperf.py, of train.stop_at, and of configs/mlperf.py."""

import json
import re

import pytest

from bert_jax.runtime import early_stopping
from bert_jax.runtime import mlperf
from bert_jax.runtime import trackers
from configs import mlperf as recipe


def write_log(folder, rows):
  """Logs evaluations by (step, accuracy); returns the parsed lines."""
  config = recipe.get_config("batch_size=1536").to_dict()
  log = mlperf.Log(str(folder), config)
  for step, accuracy in rows:
    log.write(step, {"train/loss": 1.0})
    log.write(step, {"eval/mlm_accuracy": accuracy})
  log.finish()
  return parse((folder / mlperf.FILE).read_text())


def parse(text):
  """The lines of a log, by the documented format."""
  found = []
  for line in text.splitlines():
    match = re.fullmatch(r":::MLLOG (\{.*\})", line)
    event = json.loads(match[1])
    assert list(event) == [
      "namespace", "time_ms", "event_type", "key", "value", "metadata"
    ]  # fmt: skip
    assert isinstance(event["time_ms"], int)
    assert {"file", "lineno"} <= event["metadata"].keys()
    found.append(event)
  return found


def test_a_run_that_reaches_its_goal(tmp_path):
  events = write_log(tmp_path, [(97, 0.5), (194, 0.721), (200, 0.8)])
  keys = [e["key"] for e in events]
  last = keys[keys.index("run_start") :]
  block = ["block_start", "block_stop"]
  evaluation = ["eval_start", "eval_accuracy", "eval_stop"]
  assert last == [
    "run_start", *(block + evaluation) * 2, "run_stop"
  ]  # fmt: skip
  end = events[-1]["metadata"]
  assert (end["status"], end["samples_count"]) == ("success", 194 * 1536)
  accuracy = [e for e in events if e["key"] == "eval_accuracy"]
  assert [e["value"] for e in accuracy] == [0.5, 0.721]
  assert [e["metadata"]["epoch_num"] for e in accuracy] == [
    97 * 1536, 194 * 1536
  ]  # fmt: skip
  values = {e["key"]: e["value"] for e in events}
  assert values["global_batch_size"] == 1536
  assert values["opt_lamb_beta_1"] == 0.66
  assert values["eval_samples"] == 10_000
  assert values["submission_division"] == "open"


def test_a_run_that_does_not_is_aborted_and_none_is_resumed(tmp_path):
  events = write_log(tmp_path, [(97, 0.5)])
  assert events[-1]["metadata"]["status"] == "aborted"
  with pytest.raises(mlperf.MlperfError, match="resumed"):
    write_log(tmp_path, [])


@pytest.mark.slow
def test_the_official_checker_takes_the_log(tmp_path, monkeypatch, capsys):
  checker = pytest.importorskip(
    "mlperf_logging.compliance_checker.mlp_compliance"
  )
  monkeypatch.setenv("MLPERF_SUBMISSION_DIVISION", "closed")
  write_log(tmp_path, [(97, 0.5), (194, 0.721)])
  path = str(tmp_path / mlperf.FILE)
  main = checker.make_checker("training", "5.0.0", False, False)
  valid, *_ = checker.main(path, "training_5.0.0/common.yaml", main)
  assert valid, capsys.readouterr()


def test_the_tracker_writes_the_log_without_a_package(tmp_path):
  trackers.check(["mlperf"])
  config = recipe.get_config("batch_size=256").to_dict()
  found = trackers.Trackers(["mlperf"], str(tmp_path), config)
  found.write(5, {"eval/mlm_accuracy": 0.9})
  found.close()
  events = parse((tmp_path / mlperf.FILE).read_text())
  assert events[-1]["metadata"]["status"] == "success"


def test_the_recipe_evaluates_as_often_as_the_reference():
  published = {256: 150_000, 1536: 150_000, 3072: 175_000, 4096: 175_000}
  for batch_size, samples in published.items():
    assert recipe.eval_samples(batch_size) == samples
    config = recipe.get_config(f"batch_size={batch_size}")
    assert config.eval.every_steps * batch_size <= samples
  with pytest.raises(ValueError, match="batch_size=100 .*256, 448"):
    recipe.get_config("batch_size=100")


# --- train.stop_at ---


def stop(rows, goal, patience=0):
  config = {
    "train": {"stop_at": goal, "patience": patience},
    "checkpoint": {"best_metric": "eval/a", "best_mode": "max"},
  }
  return early_stopping.stop_step(rows, config)


def test_a_run_ends_at_its_goal_or_when_patience_ends():
  rows = [{"step": i, "eval/a": x} for i, x in enumerate((0.1, 0.3, 0.2, 0.7))]
  assert stop(rows, "eval/a>=0.3") == 1
  assert stop(rows, "eval/a >= 0.7") == 3
  assert stop(rows, "eval/a<=0.1") == 0
  assert stop(rows, "eval/a>=0.9") is None
  assert stop(rows, "eval/b>=0") is None
  assert stop(rows, "eval/a>=0.7", patience=1) == 2
  assert stop(rows, "") is None


@pytest.mark.parametrize("goal", ["0.72", "eval/a", "eval/a>0.7", "eval/a>=."])
def test_a_goal_that_is_none_is_refused(goal):
  with pytest.raises(ValueError, match="train.stop_at=.*wanted a metric"):
    early_stopping.goal_of(goal)


def test_a_goal_of_a_metric_that_evaluations_lack_is_refused():
  early_stopping.check_goal("", ["eval/loss"])
  early_stopping.check_goal("eval/loss<=2", ["eval/loss"])
  with pytest.raises(ValueError, match="eval/los;.*has eval/loss"):
    early_stopping.check_goal("eval/los<=2", ["eval/loss"])


def test_a_goal_needs_evaluations():
  config = recipe.get_config()
  early_stopping.check(config)
  config.eval.every_steps = 0
  with pytest.raises(ValueError, match="stop_at.*only one"):
    early_stopping.check(config)
