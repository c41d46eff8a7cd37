"""Fine-tunes the encoders of pretrain.py, and a fresh one, on small tasks.

  bert-jax --mode=sweep --config=experiments/ablations/sweep.py:data=GLUE \
    --workdir=runs/ablations/tuned --output=experiments/ablations \
    --num_together=6

A trial has its encoder, learning rate and seed; six of a task are one program.
"""

from bert_jax.configs import base
from bert_jax.sweeps import sweep
from experiments.ablations import pretrain

TASKS = "rte+mrpc+cola+stsb"
LEARNING_RATES = (1e-4, 3e-4)


def get_config(text=None):
  """Arguments: data (a folder a task, as GLUE comes), from, tasks, seeds."""
  args = base.arguments(
    text,
    data="data/glue",
    tasks=TASKS,
    seeds=3,
    **{"from": "runs/ablations/pretrained"},
  )
  starts = {name: (name, "false") for name in pretrain.VARIANTS}
  starts["fresh"] = ("nsp", "true")
  return sweep.make(
    sweep.trial(
      f"configs/finetune.py:task={task},from={args['from']}/{name},"
      f"random={random}",
      {
        "task.dir": args.data,
        "optim.learning_rate": rate,
        "data.one_row_len": True,
        "seed": seed,
      },
    )
    for task in args.tasks.split("+")
    for name, random in starts.values()
    for rate in LEARNING_RATES
    for seed in range(args.seeds)
  )
