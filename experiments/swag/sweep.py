"""The paper's recipe for SWAG, some seeds; also for files of its kind.

  bert-jax --mode=sweep --workdir=runs/swag \
    --config=experiments/swag/sweep.py:from=WEIGHTS,data=DATA,seeds=5

WEIGHTS as for configs/finetune.py; DATA has the official CSV files. Batches of
16 for 3 epochs, learning rate 2e-5 (section 4.4). `tasks=hellaswag` or `codah`
takes those instead.
"""

from bert_jax.configs import base
from bert_jax.sweeps import sweep


def get_config(text=None):
  """Arguments: from, data, tasks, seeds, dtype."""
  args = base.arguments(
    text, data="data/swag", tasks="swag", seeds=1,
    dtype="float32", **{"from": ""},
  )  # fmt: skip
  return sweep.make(
    sweep.trial(
      f"configs/finetune.py:task={task},from={args['from']}",
      {"task.dir": args.data, "model.dtype": args.dtype, "seed": seed},
    )
    for task in args.tasks.split("+")
    for seed in range(args.seeds)
  )
