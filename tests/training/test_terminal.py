"""Tests of terminal.py: what a training shows."""

import json

import pytest

from bert_jax.training import terminal
from tests.support import tiny_run


def test_a_line_shows_the_loss_first_and_no_prefix():
  row = {
    "train/grad_norm": 0.88561,
    "train/learning_rate": 1.65e-3,
    "train/loss": 7.4513,
    "train/mlm_loss": 6.061,
    "train/param_norm": 32.0,
    "train/steps_per_sec": 12.667,
    "train/tokens_per_sec": 25951.2,
    "train/useful_tokens_per_sec": 24798.4,
  }
  lines = terminal.log_line(1250, row).splitlines()
  assert lines == [
    "step 1250: loss 7.451  mlm_loss 6.061  grad_norm 0.8856  lr 0.00165",
    "     12.67 steps/s  24,798 useful tokens/s",
  ]


def test_lines_are_80_columns_at_most_whatever_is_measured():
  row = {f"eval/some_metric_{i}": i / 7 for i in range(40)} | {"eval/loss": 1.0}
  text = terminal.log_line(5, row, "run-7")
  assert text.startswith("run-7 step 5 evaluation: loss 1  some_metric_0 0")
  assert max(map(len, text.splitlines())) <= 80
  for i in range(40):
    assert f"some_metric_{i} " in text


def test_the_start_says_what_is_trained_and_saved():
  config = tiny_run.tiny_config("data/here")
  text = terminal.start_lines(config, "runs/a", 12_345, 2_500.0)
  for part in (
    "1 layers of 32", "12,345 parameters", "random weights", "data/here",
    "2,500 steps an epoch of 16 rows of 16 tokens", "runs/a: every 2 steps",
    "eval/loss",
  ):  # fmt: skip
    assert part in text, part


@pytest.mark.parametrize(
  ("num_steps", "said"),
  [(50, "5 seconds"), (3_000, "5.0 minutes"), (108_000, "3.0 hours")],
)
def test_the_time_that_is_left_has_a_unit_that_fits(num_steps, said):
  assert said in terminal.time_left(num_steps, 10.0)


def test_the_end_tells_the_last_and_the_best_evaluation(tmp_path):
  config = tiny_run.tiny_config("data")
  rows = [(1, 3.0), (2, 1.5), (3, None), (4, 2.0)]
  (tmp_path / "metrics.jsonl").write_text(
    "".join(
      json.dumps({"step": step, "eval/loss": loss}) + "\n"
      for step, loss in rows
    )
  )
  text = terminal.end_lines(config, str(tmp_path))
  assert "eval/loss 2 at step 4, the best is 1.5 at step 2" in text
  assert f"bert-jax evaluate --workdir={tmp_path}" in text
