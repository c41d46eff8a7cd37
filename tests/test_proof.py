"""Tests of experiments/proof: no copies, chosen rates, what is clear."""

import pathlib
import random

import pytest

from experiments.proof import plateau
from experiments.proof import table
from experiments.proof import text
from experiments.proof import tune


def test_sentences_of_development_and_test_files_are_left_out(tmp_path):
  (tmp_path / "glue").mkdir()
  long = "one two three four five six seven eight nine ten"
  (tmp_path / "glue" / "dev.tsv").write_text(f"1\t{long}\n0\tgood film indeed!")
  (tmp_path / "emerging.test.annotated").write_text(
    "Where\tO\nis\tO\nthe\tO\nTower\tB-location\n\nOh\tO\n\n"
  )
  (tmp_path / "glue" / "train.tsv").write_text("1\tkept as it is, of course\n")
  files = text.evaluated_files([str(tmp_path)])
  assert [path.name for path in files] == ["emerging.test.annotated", "dev.tsv"]
  keys = text.evaluated_keys(files)
  lines = [
    "He said: two three Four five six, seven eight nine eleven.\n",
    "Two three four five six seven.\n",
    "\n",
    "Where is the tower?\n",
    "Good film indeed.\n",  # too short to be a copy
    "Kept as it is, of course.\n",
  ]
  kept, dropped = text.without_copies(lines, keys)
  assert dropped == 2 and kept == [lines[1], "\n", *lines[4:]]


def test_every_second_document_is_taken():
  lines = ["a\n", "b\n", "\n", "c\n", "\n", "d\n"]
  assert list(text.every(lines, 2)) == ["a\n", "b\n", "\n", "d\n"]
  assert list(text.every(lines, 1)) == lines


def test_a_block_is_followed_by_a_copy_with_fewer_words(monkeypatch):
  monkeypatch.setattr(text, "_DOUBLED_RATE", 1.0)
  sentences = [" ".join(f"w{i}x{j}" for j in range(9)) for i in range(40)]
  lines = [*(s + "\n" for s in sentences[:20]), "\n", *sentences[20:]]
  found = list(text.doubled(lines, random.Random(0)))
  assert found.count("\n") == 2 and found[-1] == "\n"
  kept = [line.strip() for line in found if line.strip()]
  # Every sentence once as it was, in order, and every copy of its words.
  assert [
    line for line in dict.fromkeys(kept) if line in sentences
  ] == sentences
  words = [set(line.split()) for line in kept if line not in sentences]
  assert words and all(
    any(w <= set(s.split()) for s in sentences) for w in words
  )
  assert len(kept) <= 2 * len(sentences)


def _row(score, seed, rate, fresh=False, count=1000, task="sst2"):
  return {
    "task": task,
    "seed": seed,
    "metrics": {"eval/accuracy": score},
    "config": {
      "init_from": "runs/encoder",
      "init_random": fresh,
      "task": {"max_train_examples": count},
      "optim": {"learning_rate": rate},
    },
  }


def test_the_rate_is_chosen_on_seeds_of_its_own():
  rows = [
    _row(0.70, 100, 1e-4), _row(0.74, 101, 1e-4),
    _row(0.80, 100, 3e-4), _row(0.60, 101, 3e-4),
    _row(0.99, 0, 1e-3),  # not a seed of the choice
    _row(0.55, 100, 1e-3, fresh=True),
  ]  # fmt: skip
  assert tune.chosen_rates(rows) == {
    ("sst2-1k", False): 1e-4,
    ("sst2-1k", True): 1e-3,
  }


def test_a_gain_is_clear_if_every_seed_is_above_every_fresh_one():
  rows = [
    *(_row(0.70 + seed / 100, seed, 1e-4) for seed in tune.SEEDS),
    *(_row(0.65 + seed / 100, seed, 1e-4, True) for seed in tune.SEEDS),
    *(_row(0.70, seed, 1e-4, count=8000) for seed in tune.SEEDS),
    *(_row(0.70, seed, 1e-4, True, count=8000) for seed in tune.SEEDS),
    _row(0.1, 100, 1e-4),  # a seed of the choice
  ]
  page = table.page(rows)
  assert (
    "| sst2-1k | accuracy | encoder | 5 | 72.0 (70.0 to 74.0) | +5.0" in page
  )
  (small,) = [x for x in page.splitlines() if "| sst2-1k" in x and "+" in x]
  (large,) = [x for x in page.splitlines() if "| sst2-8k" in x and "+" in x]
  assert small.endswith("clear |") and "clear" not in large
  low, high = table.interval([72.0] * 5, [67.0] * 5)
  assert low == high == pytest.approx(5.0)


def test_the_sweeps_describe_trials():
  config = tune.get_config("tasks=rte+sst2-1k,rate=1e-4,seeds=2,fresh=false")
  names = [trial.name for trial in config.trials]
  assert len(names) == 4 and "sst2-1k-trained-0.0001-1" in names
  with pytest.raises(ValueError, match="rte2"):
    tune.get_config("tasks=rte2")
  assert len(plateau.get_config("pairs=x").trials) == 1 + len(plateau.VARIANTS)
  assert pathlib.Path(text.__file__).parent.joinpath("README.md").exists()
