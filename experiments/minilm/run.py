"""Fine-tunes a small pre-trained encoder, and a fresh one beside it.

  python -m experiments.minilm.run --data=DATA --seeds=3 rte mrpc cola stsb
  python -m experiments.minilm.run --table

The first form runs the trials that are not done yet, one after the other: for
each task and seed from the weights of runs/minilm (`make minilm`) and from
fresh ones of the same shape. The second writes results.md from the records of
finished runs, which it keeps in runs/ beside this file, and from those that
reference.py keeps in reference/.
"""

import argparse
import json
import os
from pathlib import Path
import shutil
import statistics
import subprocess
import sys

from bert_jax.runtime import metrics_log

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
_BY_SPEED = "train_secs_by_median_speed"


def trial_name(task, start, seed):
  return f"{task}-{start}-{seed}"


def settings(task, seed, data):
  """What a trial changes in configs/finetune.py: keys and values."""
  folder, special = TRIALS[task]
  changes = {
    "task.dir": f"{data}/{folder}",
    "seed": seed,
    "optim.learning_rate": 5e-5,
  } | special
  if task in FILES:
    train, validation = FILES[task]
    changes |= {
      "task.files.train": f"{data}/{folder}/{train}",
      "task.files.validation": f"{data}/{folder}/{validation}",
      "task.eval_splits": ("validation",),
    }
  return changes


def command(task, start, seed, data):
  """The launcher's command of a trial."""
  arguments = f"task={task},from={WEIGHTS},random={start == 'random'}"
  return [
    sys.executable, "-m", "bert_jax.main", "--mode=train",
    f"--config=configs/finetune.py:{arguments.lower()}",
    f"--workdir=runs/finetune/{trial_name(task, start, seed)}",
    *(f"--config.{k}={v}" for k, v in settings(task, seed, data).items()),
  ]  # fmt: skip


def keep(task, start, seed):
  """Copies the record of a finished run beside this file."""
  name = trial_name(task, start, seed)
  (HERE / "runs").mkdir(exist_ok=True)
  workdir = Path("runs/finetune") / name
  run = json.loads((workdir / "run.json").read_text())
  rows = metrics_log.read_metrics(str(workdir))
  final = [row for row in rows if any(k.startswith("eval/") for k in row)][-1]
  speed = [r["train/useful_tokens_per_sec"] for r in rows
           if "train/useful_tokens_per_sec" in r]  # fmt: skip
  kept = {
    "task": task, "start": start, "seed": seed, "final": final,
    "useful_tokens_per_sec": statistics.median(speed) if speed else None,
    "train_secs": metrics_log.train_secs(rows),
    "losses": [(r["step"], r["train/loss"]) for r in rows if "train/loss" in r],
    "run": run,
  }  # fmt: skip
  (HERE / "runs" / f"{name}.json").write_text(
    json.dumps(kept, indent=1, sort_keys=True) + "\n"
  )
  shutil.rmtree(workdir / "checkpoints")  # a record is kept, not the weights


def read_records(folder):
  """The records of a folder: (task, start) -> records, of every seed."""
  records: dict[tuple[str, str], list[dict]] = {}
  for path in sorted(folder.glob("*.json")):
    record = json.loads(path.read_text())
    key = (record["task"], record.get("start", "minilm"))
    records.setdefault(key, []).append(record)
  return records


def table(folder=HERE):
  """The Markdown table of all records in a folder's runs/ and reference/."""
  from bert_jax import tasks

  records = read_records(folder / "runs")
  # Title of a column -> (task -> its records).
  columns = {
    "MiniLM weights: median (min to max)": {
      task: records.get((task, "minilm"), []) for task in TRIALS
    },
    "fresh weights": {
      task: records.get((task, "random"), []) for task in TRIALS
    },
  }
  if reference := read_records(folder / "reference"):
    columns["HF torch, same recipe: median (min to max)"] = {
      task: reference.get((task, "minilm"), []) for task in TRIALS
    }
  lines = [
    "<!-- Made by: python -m experiments.minilm.run --table -->",
    "",
    f"| task | metric | {' | '.join(columns)} | seeds | minutes |",
    "|---|---|" + "---|" * len(columns) + "---|---|",
  ]
  for task in TRIALS:
    scale = tasks.TASKS[task].percent
    found = [column[task] for column in columns.values()]
    if not any(found):
      continue
    for metric in tasks.TASKS[task].metrics:
      cells = [
        _cell([r["final"][f"eval/{metric}"] * scale for r in column])
        for column in found
      ]
      seeds = " / ".join(str(len(column)) for column in found)
      minutes = " / ".join(map(_minutes, found))
      lines.append(
        f"| {task} | {metric} | {' | '.join(cells)} | {seeds} | {minutes} |"
      )
  lines += [
    "",
    "Minutes are those of the training steps, the median of the runs that "
    "logged them (~: by the run's median tokens/s), on cores that did other "
    "work, too: no comparison.",
  ]
  return "\n".join(lines) + "\n"


def _minutes(records):
  """Median minutes of training; "?" where no run knows it."""
  known = [r["train_secs"] for r in records if "train_secs" in r]
  # Early records have no times; theirs are tokens by the median speed.
  by_speed = [r[_BY_SPEED] for r in records if _BY_SPEED in r]
  if not known + by_speed:
    return "?" if records else "-"
  about = "" if known else "~"
  return f"{about}{statistics.median(known or by_speed) / 60:.0f}"


def _cell(values):
  if not values:
    return "not run"
  median = statistics.median(values)
  return f"{median:.1f} ({min(values):.1f} to {max(values):.1f})"


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("tasks", nargs="*", choices=[*TRIALS, []])
  parser.add_argument("--data", default="data")
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
