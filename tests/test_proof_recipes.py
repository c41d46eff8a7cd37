"""Tests of experiments/proof/recipes.py: steps of equal seconds, the table."""

import json

import jax
import pytest

from bert_jax.training import session
from configs import small
from experiments.proof import recipes
from experiments.proof import tune


def _row(score, seed):
  return {
    "task": "cola",
    "seed": seed,
    "metrics": {"eval/matthews": score},
    "config": {"init_random": False, "task": {"max_train_examples": 0}},
  }


def test_the_steps_of_equal_seconds_follow_the_speed(tmp_path):
  for name, speeds in (("bert", [1.0, 2.0, 9.0]), ("electra", [1.0])):
    folder = tmp_path / "tokens" / name
    folder.mkdir(parents=True)
    rows = [
      {"step": 100 * (i + 1), "train/steps_per_sec": speed}
      for i, speed in enumerate(speeds)
    ]
    rows.append({"step": 300, "eval/loss": 1.0})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
  assert recipes.secs_of(tmp_path / "tokens/bert") == 150
  args = type("Args", (), {
    "workdir": str(tmp_path), "recipes": "bert+electra", "steps": 300,
  })  # fmt: skip
  stages = recipes.Stages(args)
  assert stages._steps_for_seconds("bert") == 300
  assert stages._steps_for_seconds("electra") == 150


def test_the_table_has_the_final_seeds_of_each_encoder():
  rows = [_row(0.1, 0), _row(0.3, 1), _row(0.2, 2), _row(0.9, 100)]
  assert 100 in tune.CHOOSING_SEEDS
  found = recipes.page(
    {("tokens", "bert"): rows}, {("tokens", "bert"): (300, 150.0)}, ["cola"]
  )
  last = found.strip().splitlines()[-1]
  assert last == "| tokens | bert | 300 | 150 | 20.0 (10.0 to 30.0) |"


def test_every_change_of_a_recipe_is_a_key():
  for name in recipes.RECIPES:
    assert all(
      flag.startswith("--config.") for flag in recipes.settings_of(name)
    )
  assert set(recipes.TASKS) <= set(tune.TASKS)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_is_a_config_that_opens(name, prepared):
  blocks, changes = recipes.RECIPES[name]
  config = small.get_config(
    f"blocks={blocks},layers=1,hidden=64,seq_len=16,total_steps=20"
  )
  config.data.dir = prepared
  config.update_from_flattened_dict(changes)
  program = session.open_abstract(config, jax.devices()[:1])
  assert program.total_steps == 20
