"""Tests of experiments/ablations: which line counts, a new table."""

import json

import pytest

from bert_jax.sweeps import report
from bert_jax.sweeps import results
from experiments.ablations import pretrain
from experiments.ablations import table


def _row(encoder, rate, seed, score, random="false"):
  config = f"configs/finetune.py:task=rte,from=runs/{encoder},random={random}"
  return {
    "task": "rte",
    "seed": seed,
    "settings": {"config": config, "optim.learning_rate": rate, "seed": seed},
    "metrics": {"eval/accuracy": score},
    "most_frequent": 0.53,
  }


@pytest.fixture
def lines():
  rows = [
    _row(encoder, rate, seed, score, random)
    for encoder, random, scores in (
      ("nsp", "false", {1e-4: (0.51, 0.52, 0.60), 3e-4: (0.54, 0.55, 0.56)}),
      ("no-nsp", "false", {1e-4: (0.57, 0.58, 0.59), 3e-4: (0.5, 0.6, 0.5)}),
      ("nsp", "true", {1e-4: (0.5, 0.5, 0.5), 3e-4: (0.51, 0.51, 0.51)}),
    )
    for rate, values in scores.items()
    for seed, score in enumerate(values)
  ]
  return report.lines_of(rows)


def test_the_rate_with_the_higher_median_counts(lines):
  found = table.chosen(lines)
  assert found["rte", "nsp"].values == pytest.approx((54, 55, 56))
  assert found["rte", "no-nsp"].values == pytest.approx((57, 58, 59))
  assert found["rte", "fresh"].values == pytest.approx((51, 51, 51))


def test_the_table_shows_spread_rate_and_runs_that_learned_nothing(lines):
  evaluations = {"nsp": {"eval/mlm_loss": 4.951, "eval/mlm_accuracy": 0.2364}}
  pretraining = {"nsp": {"eval/nsp_accuracy": 0.661}}
  page = table.table(evaluations, pretraining, lines)
  assert "| nsp | 4.95 | 23.6 % | 66.1 % |" in page
  assert (
    "| rte | accuracy | 55.0 (54.0 to 56.0) [0.0003] "
    "| 58.0 (57.0 to 59.0) [0.0001] | - "
    "| 51.0 (51.0 to 51.0) [0.0003, 3 of 3] |"
  ) in page


def test_a_table_of_any_folder(tmp_path):
  evaluated = tmp_path / "evaluated"
  for i, name in enumerate(pretrain.VARIANTS):
    (evaluated / name).mkdir(parents=True)
    metrics = {"eval/mlm_loss": 4.0 + i, "eval/mlm_accuracy": 0.25}
    (evaluated / name / "evaluation.json").write_text(json.dumps(metrics))
  there = next(iter(results.read(str(table.HERE / "encoders"))))
  rows = [
    there | {"trial": name, "metrics": {"eval/nsp_accuracy": 0.6}}
    for name in pretrain.VARIANTS
  ]
  (tmp_path / "encoders").mkdir()
  for folder, found in (
    (tmp_path / "encoders", rows),
    (tmp_path, [there | _row("nsp", 1e-4, 0, 0.5)]),
  ):
    text = "".join(json.dumps(row) + "\n" for row in found)
    (folder / "results.jsonl").write_text(text)
  table.main([f"--evaluations={evaluated}", f"--results={tmp_path}"])
  text = (tmp_path / "table.md").read_text()
  assert "| masks-100 | 6.00 | 25.0 % | 60.0 % |" in text
  assert "| rte | accuracy | 50.0 (50.0 to 50.0) [0.0001, 1 of 1] |" in text


def test_the_encoders_that_make_evaluates_are_all():
  text = (table.HERE.parents[1] / "Makefile").read_text()
  assert f"for name in {' '.join(pretrain.VARIANTS)}; do" in text


def test_the_committed_table_is_that_of_the_records():
  assert (table.HERE / "table.md").read_text() == table.page(table.HERE)
