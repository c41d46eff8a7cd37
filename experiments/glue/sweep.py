"""The paper's grid for GLUE: four learning rates, and as many seeds as asked.

  bert-jax --mode=sweep --workdir=runs/glue \
    --config=experiments/glue/sweep.py:from=WEIGHTS,data=DATA,seeds=5

WEIGHTS as for configs/finetune.py; DATA has a folder a task, as GLUE comes. The
learning rate is chosen on the development set (section 4.1), so one seed a rate
chooses, and more seeds show the spread. `tasks=mrpc+rte` takes some only.
`together=true` has what --num_together=K needs: K trials of a task, of other
rates and seeds, in one program. `dtype=bfloat16` is for TPUs.
"""

from typing import Any

from bert_jax.configs import base
from bert_jax.sweeps import sweep

TASKS = "cola+sst2+mrpc+stsb+qqp+mnli+qnli+rte+wnli"
LEARNING_RATES = (5e-5, 4e-5, 3e-5, 2e-5)


def get_config(text=None):
  """Arguments: from, data, tasks, seeds, random, together, dtype, lstm.

  `lstm` is the number of layers of a BiLSTM under the head, as in table 5.
  """
  args = base.arguments(
    text,
    data="data/glue",
    tasks=TASKS,
    seeds=1,
    random=False,
    together=False,
    dtype="float32",
    lstm=0,
    **{"from": ""},
  )
  more: dict[str, Any] = {}
  if args.together:
    more["data.one_row_len"] = True
  if args.lstm:
    more["init_changes"] = [f"model.head_lstm_layers={args.lstm}"]
  config = "configs/finetune.py:task={},from={},random={}"
  return sweep.make(
    sweep.trial(
      config.format(task, args["from"], str(args.random).lower()),
      {
        "task.dir": args.data,
        "model.dtype": args.dtype,
        "optim.learning_rate": rate,
        "seed": seed,
      }
      | more,
    )
    for task in args.tasks.split("+")
    for rate in LEARNING_RATES
    for seed in range(args.seeds)
  )
