"""A learning curve: the score by the number of training examples.

  bert-jax sweep --workdir=runs/curve --output=runs/curve-results \
    --config=learning_curve:task=mrpc,from=WEIGHTS,data=DATA

Each size is trained with several seeds. A model that still improves from the
last size but one to the last would gain from more labels.
"""

from bert_jax.configs import base
from bert_jax.sweeps import sweep


def get_config(text=None):
  """Arguments: task, from (weights), sizes (joined by +), seeds, data.

  Own data are `train` and `validation`, files, and their texts: `columns`,
  joined by +, and `label`. A size is the number of examples from the start of
  the training file; 0 = all.
  """
  args = base.arguments(
    text, task="mrpc", sizes="100+200+400+800+0", seeds=3, data="", train="",
    validation="", columns="", label="label", **{"from": ""},
  )  # fmt: skip
  settings = {"task.dir": args.data} if args.data else {}
  if args.task.startswith("my-"):
    settings |= {
      "task.files.train": args.train,
      "task.files.validation": args.validation,
      "task.text": args.columns.replace("+", ","),
      "task.label": args.label,
    }
  return sweep.make(
    sweep.trial(
      f"configs/finetune.py:task={args.task},from={args['from']},seed={seed}",
      settings | {"task.max_train_examples": int(size)},
    )
    for size in args.sizes.split("+")
    for seed in range(args.seeds)
  )
