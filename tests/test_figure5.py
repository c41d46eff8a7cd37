"""Tests of experiments/reproduce/figure5.py."""

import json

import pytest

from experiments.reproduce import figure5


def write_run(folder, rows):
  folder.mkdir()
  lines = (json.dumps(row) + "\n" for row in rows)
  (folder / "metrics.jsonl").write_text("".join(lines))
  return str(folder)


def test_a_later_run_counts_its_steps_behind_the_first(tmp_path, capsys):
  name = figure5.METRIC
  first = write_run(
    tmp_path / "a",
    [
      {"step": 10, name: 0.5},
      {"step": 15, "train/loss": 1.0},
      {"step": 20, name: 0.75},
    ],
  )
  second = write_run(
    tmp_path / "b", [{"step": 0, name: 0.7}, {"step": 5, name: 0.8}]
  )
  assert figure5.curve([first, second], name) == [
    (10, 0.5), (20, 0.75), (25, 0.8)
  ]  # fmt: skip
  out = tmp_path / "out"
  figure5.main([f"--output={out}", f"both={first},{second}", f"one={first}"])
  text = capsys.readouterr().out
  assert "| 20 | 75.0 | 75.0 |" in text
  assert "| 25 | 80.0 |  |" in text
  assert (out / "figure5.png").read_bytes()[:4] == b"\x89PNG"
  with pytest.raises(SystemExit, match="has no probe/other; it has probe/mnli"):
    figure5.curve([first], "probe/other")
