"""Tests of experiments/practice: the trials of its sweep, and its table."""

import json
import math

import pytest

from bert_jax.sweeps import sweep as sweeps
from experiments.practice import sweep
from experiments.practice import table

PLACES = "glue=/g,ner=/n,choice=/c,from=/w"


def test_every_change_is_trained_with_the_seeds_of_the_plain_recipe():
  trials = sweep.get_config(PLACES).trials
  assert len(trials) == 7 * 4 * 3
  assert len({one.name for one in trials}) == len(trials)
  by_name = {one.name: one for one in trials}
  early = json.loads(by_name["stsb=early_stopping=2"].settings)
  assert early["checkpoint.best_metric"] == "eval/spearman"
  plain = json.loads(by_name["stsb=plain=2"].settings)
  assert plain.items() < early.items()
  assert "seed=2" in by_name["stsb=plain=2"].config
  small = sweep.get_config("glue=/g,from=/w,tasks=rte,changes=plain,seeds=1")
  assert [one.name for one in small.trials] == ["rte=plain=0"]


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("from=/w,glue=/g", "ner is not set.*wnut17"),
    (f"{PLACES},tasks=mrpc+mnli", "tasks has mnli"),
    (f"{PLACES},changes=plain+more", "changes has more"),
  ],
)
def test_what_the_sweep_cannot_train_is_refused(text, says):
  with pytest.raises(sweeps.SweepError, match=says):
    sweep.get_config(text)


def row(task, metric, change, seed, value):
  return {
    "trial": f"{task}={change}={seed}", "metrics": {f"eval/{metric}": value},
    "seconds": 36.0,
  }  # fmt: skip


def test_the_table_has_mean_differences_with_their_intervals():
  rows = [
    row("rte", "accuracy", "plain", 0, 0.60),
    row("rte", "accuracy", "plain", 1, 0.64),
    row("rte", "accuracy", "layer_decay", 0, 0.61),
    row("rte", "accuracy", "layer_decay", 1, 0.67),
    row("cola", "matthews", "plain", 0, 0.30),
    row("cola", "matthews", "layer_decay", 0, 0.34),
    row("cola", "matthews", "layer_decay", 7, 0.99),  # without a partner
  ]
  lines = table.table_of(rows).splitlines()
  # 1 and 3 points: mean 2, standard error 1, t of one degree 12.706.
  assert lines[2] == "| rte | accuracy | 2 | 62.00 | +2.00 ± 12.71 |"
  assert lines[3] == "| cola | matthews | 1 | 30.00 | +4.00 |"
  # The means of the tasks are 2 and 4.
  assert lines[4] == "| all tasks |  |  |  | +3.00 ± 12.71 |"
  assert math.isnan(table.interval([1.0])[1])
