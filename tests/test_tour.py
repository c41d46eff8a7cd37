"""The commands of tutorials, as a new user types them."""

import collections
import csv
import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest

from bert_jax import weights
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import wordpiece
from bert_jax.runtime import metrics_log
from experiments.tickets import make
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


@pytest.mark.slow
def test_the_tutorial_from_a_table_to_a_server(tmp_path):
  for name in ("uvicorn", "starlette", "prometheus_client"):
    pytest.importorskip(name)
  text = (ROOT / "docs/tutorials/tickets.md").read_text()
  commands = "\n".join(re.findall(r"^```sh$(.*?)^```$", text, re.M | re.S))
  with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
  commands = commands.replace("8000", str(port)).replace("epochs=8", "epochs=2")
  commands = commands.replace(".venv/bin/python", f"'{sys.executable}'")
  # A script has no job control.
  commands = commands.replace("kill %1", "kill $! && wait $!")
  (tmp_path / "runs").mkdir()
  small_encoder(tmp_path / "runs/minilm")
  for name in ("experiments", "configs"):
    (tmp_path / name).symlink_to(ROOT / name)
  done = _type(commands, tmp_path, count=5)
  # Both answers of the server are on one line.
  last = "{" + done.stdout.splitlines()[-1].partition("{")[2].split("}{")[-1]
  answer = json.loads(last)
  (one,) = answer["answers"]
  assert len(one["scores"]) == 12 and one["label"] in one["scores"]
  with open(tmp_path / "runs/teams/answers.csv", newline="") as f:
    assert len(list(csv.DictReader(f))) == 20
  assert (tmp_path / "runs/teams/confusion-validation.png").exists()


def test_the_tickets_are_the_same_for_everybody(tmp_path):
  made = make.tables(900, seed=0)
  assert made == make.tables(900, seed=0) != make.tables(900, seed=1)
  counts = collections.Counter(label for *_, label in made["train.csv"])
  assert len(counts) == 12 and len(made["train.csv"]) == 720
  page = (ROOT / "docs/tutorials/tickets.md").read_text()
  (most, count), *_ = counts.most_common(1)
  assert f"class, {most}, has {count} tickets" in page
  assert all(min(counts.values()) <= n for n in counts.values())
  assert "{" not in "".join(text for _, text, *_ in made["train.csv"])
