"""Seeds of one task in one program against one run after another.

  python experiments/bench/together.py --task=rte --data=DATA --model=DIR

The same commands that a user types, each way with an empty cache of compiled
programs: start-up, compiling, training and the evaluation after the last step
are all in the time. One run after another may use what the first has compiled.
Prints a line a way and, as the last line, a summary as JSON.
"""

import argparse
import json
from pathlib import Path
import subprocess
import sys
import tempfile
import time

ROOT = Path(__file__).resolve().parents[2]


def parse_args(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--task", default="rte")
  parser.add_argument("--data", default="data/glue")
  parser.add_argument("--model", default="runs/minilm")
  parser.add_argument("--seeds", type=int, default=4)
  parser.add_argument("--epochs", type=float, default=3.0)
  return parser.parse_args(argv)


def launch(args, cache, *more):
  """Trains, and waits for it."""
  command = [
    sys.executable,
    "-m",
    "bert_jax.main",
    "--mode=train",
    f"--config=configs/finetune.py:task={args.task},from={args.model}",
    f"--config.task.dir={args.data}",
    f"--config.train.num_epochs={args.epochs}",
    "--config.data.one_row_len=True",
    f"--compile_cache={cache}",
    *more,
  ]
  subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def scores_of(folder, seeds):
  """The last evaluation of each run."""
  found = []
  for seed in seeds:
    lines = (folder / str(seed) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    found.append([r for r in rows if "eval/loss" in r][-1])
  return found


def main(argv=None):
  args = parse_args(argv)
  seeds, secs, losses = range(args.seeds), {}, {}
  with tempfile.TemporaryDirectory() as temporary:
    for way in ("alone", "together"):
      folder, cache = Path(temporary) / way, Path(temporary) / f"cache-{way}"
      start = time.monotonic()
      if way == "alone":
        for seed in seeds:
          workdir = f"--workdir={folder / str(seed)}"
          launch(args, cache, f"--config.seed={seed}", workdir)
      else:
        members = (f"--member={folder / str(s)}:seed={s}" for s in seeds)
        launch(args, cache, *members)
      secs[way] = round(time.monotonic() - start, 1)
      losses[way] = [row["eval/loss"] for row in scores_of(folder, seeds)]
      print(f"{way:9} {secs[way]:8.1f} s, losses {losses[way]}", flush=True)
  print(
    json.dumps(
      {
        "task": args.task,
        "seeds": args.seeds,
        "epochs": args.epochs,
        "seconds": secs,
        "times_faster": round(secs["alone"] / secs["together"], 3),
        "eval_losses": losses,
      }
    )
  )


if __name__ == "__main__":
  main()
