"""Cross-validation: a run for each of k parts of the training file.

  bert-jax sweep --workdir=runs/folds --output=runs/folds-results \
    --config=folds:task=my-classify,from=WEIGHTS,train=train.csv,columns=text

The report of the sweep has the scores of the folds. `python -m
experiments.folds.pool runs/folds` scores the predictions of all folds together,
so that every training example counts once.
"""

from bert_jax.configs import base
from bert_jax.sweeps import sweep


def get_config(text=None):
  """Arguments: task, from (weights), folds, seed, lr, epochs, seq_len.

  `data` is the folder of a task. Own data are `train`, the training file, and
  its texts: `columns`, joined by +, and `label`.
  """
  args = base.arguments(
    text, task="my-classify", folds=5, seed=0, lr=0.0, epochs=0.0, seq_len=0,
    data="", train="", columns="", label="label", **{"from": ""},
  )  # fmt: skip
  recipe = ",".join(
    f"{name}={args[name]}"
    for name in ("task", "from", "lr", "epochs", "seq_len", "seed")
  )
  settings = {"task.dir": args.data} if args.data else {}
  if args.task.startswith("my-"):
    settings |= {
      "task.files.train": args.train,
      "task.text": args.columns.replace("+", ","),
      "task.label": args.label,
    }
  return sweep.make(
    sweep.trial(
      f"configs/finetune.py:{recipe}",
      settings
      | {
        "task.num_folds": args.folds,
        "task.fold": fold,
        "task.dev_seed": args.seed,
      },
    )
    for fold in range(args.folds)
  )
