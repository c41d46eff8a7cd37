"""Fine-tunes a small pre-trained encoder, and a fresh one beside it.

  python -m experiments.minilm.run --data=DATA --seeds=3 rte mrpc cola stsb
  python -m experiments.minilm.run --table

The first form runs the trials that are not done yet, one after the other: for
each task and seed from the weights of runs/minilm (`make minilm`) and from
fresh ones of the same shape. The second writes results.md from the records of
finished runs, which it keeps in runs/ beside this file.
"""

import argparse
import json
import os
from pathlib import Path
import shutil
import statistics
import subprocess
import sys

HERE = Path(__file__).parent
WEIGHTS = "runs/minilm"

# task: (folder of the data, further settings). The paper's batch and epochs;
# the learning rate is the highest of the four it chose from.
TRIALS: dict[str, tuple[str, dict[str, object]]] = {
  "rte": ("glue", {}),
  "mrpc": ("glue", {}),
  "cola": ("glue", {}),
  "stsb": ("glue", {}),
  "sst2": ("glue", {"task.max_train_examples": 10_000}),
  "wnut17": ("ner/wnut17", {}),
  "codah": ("swag/codah", {"data.batch_size": 16}),
  "squad_v1": ("squad", {"train.num_epochs": 2.0}),
  "squad_v2": ("squad", {"train.num_epochs": 2.0, "data.batch_size": 32}),
}
# Files that are not named as officially.
FILES = {
  "squad_v1": ("small-v1.1-train.json", "small-v1.1-dev.json"),
  "squad_v2": ("small-v2.0-train.json", "small-v2.0-dev.json"),
  "codah": ("fold_0_train.tsv", "fold_0_dev.tsv"),
}
STARTS = ("minilm", "random")


def trial_name(task, start, seed):
  return f"{task}-{start}-{seed}"


def command(task, start, seed, data):
  """The launcher's command of a trial."""
  folder, settings = TRIALS[task]
  settings = {
    "task.dir": f"{data}/{folder}",
    "seed": seed,
    "optim.learning_rate": 5e-5,
  } | settings
  if task in FILES:
    train, validation = FILES[task]
    settings |= {
      "task.files.train": f"{data}/{folder}/{train}",
      "task.files.validation": f"{data}/{folder}/{validation}",
      "task.eval_splits": "('validation',)",
    }
  arguments = f"task={task},from={WEIGHTS},random={start == 'random'}"
  return [
    sys.executable, "-m", "bert_jax.main", "--mode=train",
    f"--config=configs/finetune.py:{arguments.lower()}",
    f"--workdir=runs/finetune/{trial_name(task, start, seed)}",
    *(f"--config.{key}={value}" for key, value in settings.items()),
  ]  # fmt: skip


def keep(task, start, seed):
  """Copies the record of a finished run beside this file."""
  name = trial_name(task, start, seed)
  (HERE / "runs").mkdir(exist_ok=True)
  workdir = Path("runs/finetune") / name
  run = json.loads((workdir / "run.json").read_text())
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  final = [row for row in rows if any(k.startswith("eval/") for k in row)][-1]
  speed = [r["train/useful_tokens_per_sec"] for r in rows
           if "train/useful_tokens_per_sec" in r]  # fmt: skip
  kept = {
    "task": task, "start": start, "seed": seed, "final": final,
    "useful_tokens_per_sec": statistics.median(speed) if speed else None,
    "run": run,
  }  # fmt: skip
  (HERE / "runs" / f"{name}.json").write_text(
    json.dumps(kept, indent=1, sort_keys=True) + "\n"
  )
  shutil.rmtree(workdir / "checkpoints")  # a record is kept, not the weights


def table():
  """The Markdown table of all records."""
  from bert_jax import tasks

  records: dict[tuple[str, str], list[dict]] = {}
  for path in sorted((HERE / "runs").glob("*.json")):
    record = json.loads(path.read_text())
    records.setdefault((record["task"], record["start"]), []).append(record)
  lines = [
    "<!-- Made by: python -m experiments.minilm.run --table -->",
    "",
    "| task | metric | MiniLM weights: median (min to max) | fresh weights |"
    " seeds |",
    "|---|---|---|---|---|",
  ]
  for task in TRIALS:
    metrics = tasks.TASKS[task].metrics
    for metric in metrics:
      cells, seeds = [], []
      for start in STARTS:
        found = records.get((task, start), [])
        values = [r["final"][f"eval/{metric}"] for r in found]
        seeds.append(str(len(values)))
        scale = 1 if tasks.TASKS[task].kind == "span" else 100
        values = [v * scale for v in values]
        cells.append(
          f"{statistics.median(values):.1f} ({min(values):.1f} to"
          f" {max(values):.1f})"
          if values
          else "not run"
        )
      if seeds != ["0", "0"]:
        lines.append(
          f"| {task} | {metric} | {' | '.join(cells)} | {' / '.join(seeds)} |"
        )
  return "\n".join(lines) + "\n"


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("tasks", nargs="*", choices=[*TRIALS, []])
  parser.add_argument("--data", default="../shared/data")
  parser.add_argument("--seeds", type=int, default=1)
  parser.add_argument("--starts", default=",".join(STARTS))
  parser.add_argument("--table", action="store_true")
  args = parser.parse_args(argv)
  for seed in range(args.seeds):
    for start in args.starts.split(","):
      for task in args.tasks:
        name = trial_name(task, start, seed)
        if (HERE / "runs" / f"{name}.json").exists():
          continue
        print(f"== {name}", flush=True)
        subprocess.run(command(task, start, seed, args.data), check=True)
        keep(task, start, seed)
  if args.table:
    (HERE / "results.md").write_text(table())
    print(table(), end="")
  return os.EX_OK


if __name__ == "__main__":
  sys.exit(main())
