"""The first commands of the tutorial, as a new user types them."""

import json
import os
import pathlib
import re
import subprocess
import sys

from bert_jax.runtime import metrics_log

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
