"""When a run stops before its last step."""

import math

import pytest

from bert_jax.runtime import early_stopping
from configs import base


def rows(*values, name="eval/f1"):
  return [{"step": 10 * i, name: x} for i, x in enumerate(values, 1)]


def settings(patience, mode="max", name="eval/f1"):
  return {
    "train": {"patience": patience},
    "checkpoint": {"best_metric": name, "best_mode": mode},
  }


@pytest.mark.parametrize(
  ("values", "patience", "mode", "step"),
  [
    ((1, 2, 3, 4), 1, "max", None),
    ((1, 2, 2, 3), 1, "max", 30),  # as good is not better
    ((1, 2, 1, 3, 2, 2), 2, "max", 60),
    ((4, 3, 3, 3), 2, "min", 40),
    ((4, 3, 2, 3), 2, "min", None),
    ((3, math.nan, math.nan, 4), 2, "max", 30),
    ((math.nan, math.nan), 2, "min", 20),
    ((1, 0, 0, 0), 0, "max", None),
    ((), 1, "max", None),
  ],
)
def test_a_run_stops_after_so_many_evaluations_without_a_better_one(
  values, patience, mode, step
):
  found = early_stopping.stop_step(rows(*values), settings(patience, mode))
  assert found == step


def test_other_lines_of_the_log_do_not_count():
  log = [{"step": 5, "train/loss": 1.0}, *rows(3), {"step": 11}, *rows(2)]
  assert early_stopping.stop_step(log, settings(2)) is None
  assert early_stopping.stop_step(log, settings(1)) == 10


def test_older_runs_do_not_stop():
  run = {"train": {}, "checkpoint": {"best_metric": "x", "best_mode": "min"}}
  assert early_stopping.stop_step(rows(1, 2, 3, name="x"), run) is None


def test_epochs_become_whole_steps():
  config = base.get_config().eval
  config.update(every_steps=7)
  assert early_stopping.evaluation_steps(config, 12.5) == 7
  config.update(every_steps=0, every_epochs=1.0)
  assert early_stopping.evaluation_steps(config, 12.6) == 13
  config.every_epochs = 0.01
  assert early_stopping.evaluation_steps(config, 12.5) == 1


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"eval.every_epochs": 1.0}, "eval.every_steps=10000 and eval.every_ep"),
    ({"train.patience": 2, "eval.every_steps": 0}, "eval.every_epochs=1"),
    ({"train.patience": 2, "checkpoint.best_metric": ""}, "best_metric"),
  ],
)
def test_settings_that_do_not_fit_are_refused(changes, says):
  config = base.get_config()
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=says):
    early_stopping.check(config)


@pytest.mark.parametrize(
  ("values", "patience", "mode", "step"),
  [
    ((1, 3, 3, 2), 2, "max", 20),  # the first of equal ones, as it is saved
    ((1, 3, 3, 2), 2, "min", 10),
    ((math.nan, 2, math.inf), 1, "max", 20),
    ((math.nan,), 1, "max", None),
    ((1, 2), 0, "max", None),
  ],
)
def test_the_best_step_of_a_run_with_patience(values, patience, mode, step):
  found = early_stopping.best_step(rows(*values), settings(patience, mode))
  assert found == step
