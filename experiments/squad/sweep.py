"""The paper's recipes for SQuAD 1.1 and 2.0, some seeds each.

  bert-jax --mode=sweep --workdir=runs/squad \
    --config=experiments/squad/sweep.py:from=WEIGHTS,data=DATA,seeds=5

WEIGHTS as for configs/finetune.py; DATA has the official JSON files. Batches of
32 for 3 epochs, of 48 for 2 with 2.0; learning rate 5e-5 (sections 4.2, 4.3).
"""

from bert_jax.configs import base
from bert_jax.sweeps import sweep


def get_config(text=None):
  """Arguments: from, data, tasks, seeds, dtype, lstm (layers of a BiLSTM)."""
  args = base.arguments(
    text, data="data/squad", tasks="squad_v1+squad_v2", seeds=1,
    dtype="float32", lstm=0, **{"from": ""},
  )  # fmt: skip
  more = {"init_changes": [f"model.head_lstm_layers={args.lstm}"]}
  return sweep.make(
    sweep.trial(
      f"configs/finetune.py:task={task},from={args['from']}",
      {"task.dir": args.data, "model.dtype": args.dtype, "seed": seed}
      | (more if args.lstm else {}),
    )
    for task in args.tasks.split("+")
    for seed in range(args.seeds)
  )
