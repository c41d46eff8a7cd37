"""The logs of a run in a folder and in a bucket: no row lost, none twice."""

import json
import os

from bert_jax.runtime import files
from bert_jax.runtime import goodput
from bert_jax.runtime import metrics_log


def steps(place):
  return [row["step"] for row in metrics_log.read_metrics(place)]


def test_a_resumed_run_has_each_row_once(place):
  log = metrics_log.MetricsLog(place, 0, tensorboard=False)
  for step in range(1, 6):
    log.write(step, {"train/loss": 1.0 / step})
  log.write_bad_step(2, {"reason": "a"})
  log.write_bad_step(5, {"reason": "b"})
  log.sync()
  assert steps(place) == [1, 2, 3, 4, 5]
  log.close()
  log = metrics_log.MetricsLog(place, 3, tensorboard=False)
  assert log.has(3, "train/") and not log.has(3, "eval/")
  log.write(4, {"train/loss": 0.5})
  log.close()
  assert steps(place) == [1, 2, 3, 4]
  rows = files.read_text(os.path.join(place, "bad_steps.jsonl")).splitlines()
  assert [json.loads(row)["reason"] for row in rows] == ["a"]


def test_a_row_that_a_kill_cut_off_is_dropped(place):
  path = os.path.join(place, "metrics.jsonl")
  files.write_text(path, '{"step": 1, "train/loss": 1.0}\n{"step": 2, "tra')
  log = metrics_log.MetricsLog(place, 1, tensorboard=False)
  log.write(2, {"train/loss": 0.5})
  log.close()
  assert steps(place) == [1, 2]


def test_event_files_of_tensorboard_hold_the_same(place):
  log = metrics_log.MetricsLog(place, 0, tensorboard=True)
  log.write(1, {"train/loss": 1.0})
  log.close()
  folder = os.path.join(place, "tensorboard")
  (name,) = files.list_names(folder)
  content = files.read_bytes(os.path.join(folder, name))
  assert b"brain.Event:2" in content and b"train/loss" in content


def test_the_time_of_sessions_adds_up(place):
  for start in (0, 4):
    clock = goodput.Clock()
    ledger = goodput.Ledger(place, start, 2.0, clock)
    ledger.write(start + 4)
    files.sync(place)
  rows = files.read_text(os.path.join(place, "goodput.jsonl")).splitlines()
  assert [json.loads(row)["session"] for row in rows] == [1, 1, 2, 2]
  assert goodput.read(place) is not None
