"""What keys of fine-tuning change: rates by layer, bias correction, stopping.

  bert-jax sweep --workdir=runs/practice --output=runs/practice-results \
    --config=practice:from=WEIGHTS,glue=GLUE,ner=WNUT17,choice=CODAH
  python -m experiments.practice.table runs/practice-results

WEIGHTS as for configs/finetune.py; GLUE has a folder a task, WNUT17 and CODAH
have the files of these tasks. Each change is trained on the same examples and
seeds as the plain recipe, which it is compared with. A sweep that stopped goes
on where it was. `tasks`, `changes`, `seeds` and `examples` make it smaller. By
the speeds in experiments/bench/results.txt, the 84 runs take about two hours on
two cores that do nothing else.
"""

from typing import Any

from bert_jax import tasks as task_rows
from bert_jax.configs import base
from bert_jax.sweeps import sweep

# Task -> the argument that names its folder, and the tokens of a row.
TASKS = {
  "mrpc": ("glue", 96),
  "rte": ("glue", 128),
  "cola": ("glue", 64),
  "stsb": ("glue", 64),
  "sst2": ("glue", 64),
  "wnut17": ("ner", 64),
  "codah": ("choice", 64),
}
PLAIN = "plain"
# Name of a change -> its keys; METRIC stands for the main metric of the task.
CHANGES: dict[str, dict[str, Any]] = {
  PLAIN: {},
  "layer_decay": {"optim.layer_decay": 0.8},
  "bias_correction": {"optim.name": "adamw"},
  "early_stopping": {
    "eval.every_epochs": 0.5,
    "train.patience": 2,
    "checkpoint.best_metric": "METRIC",
    "checkpoint.best_mode": "max",
  },
  "all": {
    "optim.layer_decay": 0.8,
    "optim.name": "adamw",
    "eval.every_epochs": 0.5,
    "train.patience": 2,
    "checkpoint.best_metric": "METRIC",
    "checkpoint.best_mode": "max",
  },
}
# "all" takes the three together.
BY_DEFAULT = [name for name in CHANGES if name != "all"]


def get_config(text=None):
  """Arguments: from, glue, ner, choice, tasks, changes, seeds, examples, lr.

  Also `epochs`. `tasks` and `changes` are joined by +; `examples` is the number
  of training examples that a run uses, 0 for all.
  """
  args = base.arguments(
    text, glue="", ner="", choice="", tasks="+".join(TASKS),
    changes="+".join(BY_DEFAULT), seeds=3, examples=1000, lr=5e-5, epochs=3.0,
    **{"from": ""},
  )  # fmt: skip
  chosen, changes = args.tasks.split("+"), args.changes.split("+")
  for what, names, known in (
    ("tasks", chosen, TASKS), ("changes", changes, CHANGES),
  ):  # fmt: skip
    if unknown := [name for name in names if name not in known]:
      raise sweep.SweepError(
        f"{what} has {', '.join(unknown)}; it may have {', '.join(known)}"
      )
  for task in chosen:
    folder = TASKS[task][0]
    if not args[folder]:
      raise sweep.SweepError(
        f"{folder} is not set, the folder with the files of {task}; give "
        f"--config=practice:{folder}=DIR"
      )
  return sweep.make(
    _trial(task, change, seed, args)
    for task in chosen
    for change in changes
    for seed in range(args.seeds)
  )


def _trial(task, change, seed, args):
  folder, seq_len = TASKS[task]
  metric = f"eval/{task_rows.TASKS[task].main_metric}"
  keys = {
    key: metric if value == "METRIC" else value
    for key, value in CHANGES[change].items()
  }
  recipe = (
    f"task={task},from={args['from']},lr={args.lr},epochs={args.epochs},"
    f"seq_len={seq_len},seed={seed}"
  )
  return sweep.trial(
    f"configs/finetune.py:{recipe}",
    {"task.dir": args[folder], "task.max_train_examples": args.examples} | keys,
    name=f"{task}={change}={seed}",
  )
