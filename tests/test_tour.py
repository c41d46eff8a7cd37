"""The commands of tutorials, as a new user types them."""

import csv
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from bert_jax import weights
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import wordpiece
from bert_jax.runtime import metrics_log
from tests.support import small_models

ROOT = pathlib.Path(__file__).parents[1]


def _type(commands, folder, count):
  """Runs the `count` commands of a page in a folder."""
  launcher = f"'{sys.executable}' -m bert_jax.main"
  commands = commands.replace(".venv/bin/bert-jax", launcher)
  assert commands.count(launcher) == count
  done = subprocess.run(
    ["bash", "-e", "-o", "pipefail", "-c", commands],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done


def test_the_first_run_of_the_tutorial(tmp_path):
  text = (ROOT / "docs/tutorials/pretrain.md").read_text()
  (commands,) = re.findall(
    r"^## A first run in a minute$.*?^```sh$(.*?)^```$", text, re.M | re.S
  )[:1]
  for name in ("README.md", "experiments", "configs"):
    (tmp_path / name).symlink_to(ROOT / name)
  done = _type(commands, tmp_path, count=6)
  rows = metrics_log.read_metrics(str(tmp_path / "runs/tour/run"))
  assert rows[-1]["step"] == 40
  (line,) = [x for x in done.stdout.splitlines() if x.startswith("{")]
  (mask,) = json.loads(line)["masks"]
  assert len(mask) > 1 and all(0 < guess["score"] < 1 for guess in mask)


def small_encoder(folder):
  """Writes an encoder that reads any ASCII text letter by letter."""
  letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?\"'-()"
  pieces = [*interface.SPECIAL_TOKENS, *letters, *(f"##{x}" for x in letters)]
  pretrained = small_models.make(vocab_size=len(pieces), max_len=128)
  pretrained.tokenizer = wordpiece.WordPieceTokenizer(pieces, lower_case=True)
  weights.write(pretrained, str(folder), "huggingface")


@pytest.mark.slow
def test_the_tutorial_of_a_messy_table(tmp_path):
  text = (ROOT / "docs/tutorials/support.md").read_text()
  commands = "\n".join(re.findall(r"^```sh$(.*?)^```$", text, re.M | re.S))
  (tmp_path / "runs").mkdir()
  small_encoder(tmp_path / "runs/minilm")
  (tmp_path / "docs").symlink_to(ROOT / "docs")
  done = _type(commands, tmp_path, count=5)
  shown = re.search(r"^```\n(bert-jax: .*?)^```$", text, re.M | re.S)[1]
  assert " ".join(shown.split()) in done.stderr
  assert "which are left out" in done.stderr
  assert re.search(r"train: \d+ of 58 texts .* are cut; .* raise", done.stderr)
  assert "Account  " in done.stdout  # the table of scores
  with open(tmp_path / "runs/support/answers.csv", newline="") as f:
    rows = list(csv.DictReader(f))
  asked = ROOT / "docs/tutorials/support/new.csv"
  with open(asked, newline="", encoding="utf-8-sig") as f:
    given = list(csv.DictReader(f))
  assert len(rows) == len(given) == 5
  for row, line in zip(rows, given, strict=True):
    assert [row[name.strip()] for name in line] == list(line.values())
    scores = {
      n: float(row[f"scores.{n}"]) for n in ("Account", "Billing", "Bug")
    }
    assert row["label"] == max(scores, key=scores.get) and not row["error"]
  assert (tmp_path / "runs/support/report.html").exists()
