"""Tiny encoders that differ in one thing: NSP or not, how masks are made.

  bert-jax --mode=sweep --config=experiments/ablations/pretrain.py \
    --workdir=runs/ablations/pretrained

The recipe is that of configs/novels.py. Table 5 of the paper leaves NSP out,
table 8 puts [MASK] at every place to predict.
"""

from typing import Any

from bert_jax.configs import base
from bert_jax.sweeps import sweep

VARIANTS: dict[str, dict[str, Any]] = {
  "nsp": {},
  "no-nsp": {"objective": "mlm"},
  "masks-100": {"data.mask_token_rate": 1.0, "data.random_token_rate": 0.0},
}


def get_config(text=None):
  """Arguments: data (prepared), steps."""
  args = base.arguments(text, data="runs/ablations/data", steps=6000)
  return sweep.make(
    sweep.trial(
      "configs/novels.py:size=tiny",
      {
        "data.dir": args.data,
        "train.total_steps": args.steps,
        "eval.every_steps": max(args.steps // 12, 1),
        "checkpoint.every_steps": max(args.steps // 6, 1),
        "checkpoint.keep": 1,
        # Without NSP the loss is another.
        "checkpoint.best_metric": "",
      }
      | settings,
      name=name,
    )
    for name, settings in VARIANTS.items()
  )
