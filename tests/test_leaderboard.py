"""Tests of experiments/leaderboard.py and of experiments/reproduce/later.py."""

import json

import pytest

from bert_jax.sweeps import sweep
from experiments import leaderboard
from experiments.reproduce import later
from experiments.reproduce import page


def test_the_table_is_that_of_the_records():
  wanted = leaderboard.text(leaderboard.entries())
  assert leaderboard.OUTPUT.read_text() == wanted, (
    "run python -m experiments.leaderboard"
  )


def result(seed, score, **config):
  return {
    "task": "cola", "seed": seed, "metrics": {"eval/matthews": score},
    "config": {"data": {"batch_size": 2, "seq_len": 4}} | config,
    "settings": {"optim.learning_rate": 1e-3, "seed": seed}, "seconds": 30,
    "hardware": "1 x cpu", "commit": "a" * 40,
  }  # fmt: skip


def test_seeds_of_one_recipe_share_a_row_with_an_interval(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(leaderboard, "HERE", tmp_path)
  folder = tmp_path / "study"
  folder.mkdir()
  rows = [result(0, 0.5), result(1, 0.52), result(2, 0.54)]
  rows.append(result(0, 0.1, init_from="runs/x"))
  path = folder / "results.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  (folder / "trials.json").write_text('{"command": "bert-jax sweep"}')
  found = list(leaderboard.of_results(path))
  lines = leaderboard.text(found).splitlines()
  (fresh,) = (line for line in lines if "| fresh |" in line)
  # Student's t: 52 +- 4.303 * 2 / sqrt(3).
  assert "eval/matthews 52.00 (47.03 to 56.97, 3 runs)" in fresh
  assert "| 90 | 1 x cpu |" in fresh
  assert "`bert-jax sweep`" in fresh
  assert any("| x |" in line and "10.00 (one run)" in line for line in lines)


def test_plans_say_that_they_are_plans():
  found = list(leaderboard.of_plans(page.HERE / "plans.json"))
  assert found
  cells = leaderboard._cells([found[0]])
  assert cells[0] == "planned"
  assert "predicted" in cells[6]
  assert "--mode=plan" in cells[-1]


# --- The papers after BERT ---


def test_the_page_of_later_papers_is_up_to_date():
  path = page.HERE / "plans.json"
  wanted = later.text(json.loads(path.read_text()))
  assert (page.HERE / "later.md").read_text() == wanted, (
    "run python -m experiments.reproduce.later"
  )


WORK = [one for row in later.rows() for one in row.work]


@pytest.mark.slow
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.key)
def test_what_is_planned_is_a_config_with_its_steps(work, monkeypatch):
  monkeypatch.chdir(page.HERE.parents[1])
  changes = dict(
    a.removeprefix("--config.").split("=", 1) for a in work.arguments[1:]
  )
  path = work.arguments[0].removeprefix("--config=")
  config = sweep.Trial("x", path, changes, "nowhere").load_config()
  assert config.train.total_steps >= work.steps
