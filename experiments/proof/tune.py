"""Fine-tunes an encoder and its fresh twin on small tasks.

  bert-jax sweep --config=experiments/proof/tune.py:from=ENCODER,data=DATA \
    --workdir=runs/proof/choose --output=runs/proof/choose/records
  bert-jax sweep --config=experiments/proof/tune.py:from=ENCODER,data=DATA,\
chosen=runs/proof/choose/records --workdir=runs/proof/tuned

The first sweep tries the learning rates on seeds of its own. The second trains
five other seeds at the rate with the highest median of the first, for each task
and start. DATA has the folders glue and ner/wnut17. The fresh twin has the
same vocabulary, shape, labels and number of rates, and random weights.
"""

import collections
import statistics
from typing import Any

from bert_jax import tasks as task_rows
from bert_jax.configs import base
from bert_jax.sweeps import results
from bert_jax.sweeps import sweep

RATES = (1e-4, 3e-4, 1e-3)
CHOOSING_SEEDS = (100, 101)
SEEDS = (0, 1, 2, 3, 4)

# name: (task, folder of its files, number of labels or 0 for all, epochs)
TASKS: dict[str, tuple[str, str, int, float]] = {
  "sst2-1k": ("sst2", "glue", 1000, 10.0),
  "wnut17": ("wnut17", "ner/wnut17", 0, 5.0),
  "stsb": ("stsb", "glue", 0, 5.0),
  "cola": ("cola", "glue", 0, 5.0),
  "sst2-8k": ("sst2", "glue", 8000, 3.0),
  "mrpc": ("mrpc", "glue", 0, 5.0),
  "rte": ("rte", "glue", 0, 5.0),
}


def name_of(task: str, count: int) -> str:
  """Returns the name in TASKS of a task with this number of labels."""
  return next(
    name for name, row in TASKS.items() if (row[0], row[2]) == (task, count)
  )


def key_of(row: dict[str, Any]) -> tuple[str, bool]:
  """Returns (name in TASKS, is fresh) of a line of results.jsonl."""
  config = row["config"]
  count = config["task"]["max_train_examples"]
  return name_of(row["task"], count), config["init_random"]


def score_of(row: dict[str, Any]) -> float:
  """Returns the main metric of a line of results.jsonl."""
  metric = task_rows.TASKS[row["task"]].main_metric
  return row["metrics"][f"eval/{metric}"]


def chosen_rates(rows: list[Any]) -> dict[tuple[str, bool], float]:
  """Returns (name, is fresh) -> the learning rate with the highest median."""
  found: dict[Any, dict[float, list[float]]] = collections.defaultdict(
    lambda: collections.defaultdict(list)
  )
  for row in rows:
    if row["seed"] in CHOOSING_SEEDS:
      rate = row["config"]["optim"]["learning_rate"]
      found[key_of(row)][rate].append(score_of(row))
  return {
    key: max(sorted(rates), key=lambda rate: statistics.median(rates[rate]))
    for key, rates in found.items()
  }


def get_config(text=None):
  """Arguments: from, data, tasks, chosen, seeds (how many), fresh."""
  args = base.arguments(
    text,
    data="data",
    tasks="+".join(TASKS),
    chosen="",
    seeds=len(SEEDS),
    fresh=True,
    rate=0.0,
    **{"from": "runs/proof/encoder"},
  )
  rates = chosen_rates(results.read(args.chosen)) if args.chosen else {}
  names = args.tasks.split("+")
  if unknown := set(names) - TASKS.keys():
    raise ValueError(
      f"tasks={args.tasks}: {min(unknown)} is not known; use some of "
      f"{'+'.join(TASKS)}"
    )
  starts = (False, True) if args.fresh else (False,)
  trials = []
  for name in names:
    for is_fresh in starts:
      if args.rate:
        tried: tuple[float, ...] = (args.rate,)
      else:
        tried = (rates[name, is_fresh],) if args.chosen else RATES
      final = args.rate or args.chosen
      seeds = SEEDS[: args.seeds] if final else CHOOSING_SEEDS
      trials += [
        _trial(args, name, is_fresh, rate, seed)
        for rate in tried
        for seed in seeds
      ]
  return sweep.make(trials)


def _trial(args, name, is_fresh, rate, seed):
  task, folder, count, epochs = TASKS[name]
  random = str(is_fresh).lower()
  return sweep.trial(
    f"configs/finetune.py:task={task},from={args['from']},random={random}",
    {
      "task.dir": f"{args.data}/{folder}",
      "task.max_train_examples": count,
      "task.eval_splits": _eval_splits(task),
      "train.num_epochs": epochs,
      "train.tensorboard": False,
      "optim.learning_rate": rate,
      "optim.name": "adamw",
      "optim.schedule": "linear",
      "seed": seed,
    },
    name=f"{name}-{'fresh' if is_fresh else 'trained'}-{rate:g}-{seed}",
  )


def _eval_splits(task: str) -> list[str]:
  return list(task_rows.TASKS[task].eval_splits[:1])
