"""The commands of the tutorials, as a new user types them."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from bert_jax import weights
from bert_jax.data.tokenizers import interface
from bert_jax.runtime import metrics_log
from tests.support import small_models

ROOT = pathlib.Path(__file__).parents[1]


def test_the_first_run_of_the_tutorial(tmp_path):
  text = (ROOT / "docs/tutorials/pretrain.md").read_text()
  (commands,) = re.findall(
    r"^## A first run in a minute$.*?^```sh$(.*?)^```$", text, re.M | re.S
  )[:1]
  for name in ("README.md", "experiments", "configs"):
    (tmp_path / name).symlink_to(ROOT / name)
  launcher = f"'{sys.executable}' -m bert_jax.main"
  commands = commands.replace(".venv/bin/bert-jax", launcher)
  assert commands.count(launcher) == 6
  done = subprocess.run(
    ["bash", "-e", "-o", "pipefail", "-c", commands],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  rows = metrics_log.read_metrics(str(tmp_path / "runs/tour/run"))
  assert rows[-1]["step"] == 40
  (line,) = [x for x in done.stdout.splitlines() if x.startswith("{")]
  (mask,) = json.loads(line)["masks"]
  assert len(mask) > 1 and all(0 < guess["score"] < 1 for guess in mask)


@pytest.fixture
def clone(tmp_path):
  """A folder with stand-ins: a tiny runs/minilm, files of MRPC and RTE."""
  pretrained = small_models.make(vocab_size=20, max_len=512)
  assert interface.SPECIAL_TOKENS[0] == small_models.PIECES[0]
  weights.write(pretrained, tmp_path / "runs/minilm", "huggingface")
  pairs = [("walk the", "walk !", 1), ("the !", "walked", 0)] * 20
  heads = {
    "MRPC": ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
    "RTE": ("index", "sentence1", "sentence2", "label"),
  }
  for name, head in heads.items():
    folder = tmp_path / "glue_data" / name
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
      rows = [head]
      for i, (a, b, label) in enumerate(pairs):
        rows.append(
          (label, i, i, a, b)
          if name == "MRPC"
          else (i, a, b, ("entailment", "not_entailment")[label])
        )
      if split == "test":
        head_of_test = ("index", *head[1:]) if name == "MRPC" else head[:3]
        rows = [head_of_test, *(row[: len(head_of_test)] for row in rows[1:])]
      text = "".join("\t".join(map(str, row)) + "\n" for row in rows)
      (folder / f"{split}.tsv").write_text(text)
  for split in ("train", "dev"):
    lines = [
      {"premise": a, "claim": b, "verdict": str(label)} for a, b, label in pairs
    ]
    (tmp_path / f"{split}.jsonl").write_text(
      "".join(json.dumps(line) + "\n" for line in lines)
    )
  for name in ("experiments", "configs"):
    (tmp_path / name).symlink_to(ROOT / name)
  return tmp_path


@pytest.mark.slow
def test_fine_tuning_as_in_the_tutorial(clone):
  text = (ROOT / "docs/tutorials/finetune.md").read_text()
  commands = re.findall(r"^```sh$(.*?)^```$", text, re.M | re.S)[1]
  launcher = f"'{sys.executable}' -m bert_jax.main"
  commands = commands.replace(".venv/bin/bert-jax", launcher)
  done = subprocess.run(
    ["bash", "-e", "-o", "pipefail", "-c", commands],
    cwd=clone,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  found = [str(p.relative_to(clone)) for p in clone.rglob("*") if p.is_file()]
  assert "runs/mrpc/predictions/MRPC.tsv" in found, sorted(
    f for f in found if "checkpoints" not in f
  )
