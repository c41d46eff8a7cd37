"""A run that stopped early, made from a finished one."""

import json
import pathlib
import shutil

LOSSES = {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.5}  # step -> eval/loss


def make(finished, workdir):
  """Copies a run of 8 steps; of 20, it stops at 8, and 4 is its best."""
  path = pathlib.Path(workdir)
  if not path.exists():
    shutil.copytree(finished, path)
  run = json.loads((path / "run.json").read_text())
  del run["sha256"]
  run["total_steps"] = 20
  run["config"]["train"]["patience"] = 2
  run["config"]["checkpoint"] |= {
    "best_metric": "eval/loss", "best_mode": "min",
  }  # fmt: skip
  (path / "run.json").write_text(json.dumps(run))
  rows = [{"step": s, "eval/loss": loss} for s, loss in LOSSES.items()]
  rows.append({"step": 8, "train/loss": 9.0})
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (path / "metrics.jsonl").write_text(text)
  shutil.rmtree(path / "best", ignore_errors=True)
  (path / "best" / "4").mkdir(parents=True)
  return str(path)
