"""Intervals, McNemar's test and the comparison of two files of predictions."""

import json

import numpy as np
import pytest

from bert_jax.tasks import compare
from bert_jax.tasks import uncertainty


def test_mcnemar_by_hand():
  # 2 (C(10, 0) + C(10, 1)) / 2^10 = 22 / 1024
  assert uncertainty.mcnemar(9, 1) == pytest.approx(22 / 1024)
  assert uncertainty.mcnemar(1, 9) == pytest.approx(22 / 1024)
  assert uncertainty.mcnemar(0, 0) == uncertainty.mcnemar(3, 3) == 1.0


def test_a_bootstrap_interval_of_a_mean_is_that_of_theory():
  rng = np.random.default_rng(0)
  right = rng.random(400) < 0.8
  low, high = uncertainty.bootstrap(
    lambda drawn: {"accuracy": right[drawn].mean()}, 400, 2000
  )["accuracy"]
  mean = right.mean()
  width = 1.96 * np.sqrt(mean * (1 - mean) / 400)
  assert low == pytest.approx(mean - width, abs=0.006)
  assert high == pytest.approx(mean + width, abs=0.006)


def write(path, answers, gold="aabbab", **more):
  lines = [
    json.dumps({"id": i, "label": answer, "gold": right} | more)
    for i, (answer, right) in enumerate(zip(answers, gold, strict=True))
  ]
  path.write_text("\n".join(lines) + "\n")
  return str(path)


def test_two_runs_are_compared_by_hand(tmp_path):
  first = write(tmp_path / "a", "aabbbb")  # one wrong
  second = write(tmp_path / "b", "aaaaab")  # two wrong
  found = compare.compare(first, second)
  assert found["examples"] == 6
  assert found["first"] == pytest.approx(5 / 6)
  assert found["second"] == pytest.approx(4 / 6)
  assert (found["only_first"], found["only_second"]) == (2, 1)
  assert found["difference"] == pytest.approx(1 / 6)
  assert found["low"] < 1 / 6 < found["high"]
  assert found["p_value"] == 1.0


def test_a_comparison_is_printed(tmp_path, capsys):
  paths = [write(tmp_path / "a", "aabbab"), write(tmp_path / "b", "bbaaba")]
  assert compare.main(paths) == 0
  said = capsys.readouterr().out
  assert "accuracy 1.0000" in said and "p = 0.0312" in said
  assert compare.main(paths[:1]) == 2
  assert compare.main([paths[0], str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(
  ("content", "says"),
  [
    ("", "is empty"),
    ("{", "line 1 is not JSON"),
    ('{"id": 1, "label": "a"}\n', "line 1 .*`gold`"),
    ('{"id": 1, "score": 0.5, "gold": 0.5}\n', "line 1 .*`gold`"),
    ("[1]\n", "line 1 .*`gold`"),
    ("5\n", "bad, line 1 .*`gold`"),
    ("null\n", "bad, line 1 .*`gold`"),
    ("[" * 100_000, "bad, line 1 is not JSON"),
    (b'{"label": "\xff"}\n', "bad, line 1 is not UTF-8"),
    (b'\xff\xfe{\x00"\x00\n\x00', "bad, line 1 is not UTF-8"),
    ('{"id": 7, "label": "a", "gold": "a"}\n', "same examples"),
  ],
)
def test_files_that_cannot_be_compared_are_refused(tmp_path, content, says):
  path = tmp_path / "bad"
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(compare.CompareError, match=says):
    compare.compare(str(path), write(tmp_path / "a", "aabbab"))
