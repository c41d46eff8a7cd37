"""Small encoders of equal size and text that differ in blocks and optimizer.

  bert-jax sweep --config=experiments/proof/blocks.py:data=DATA \
    --workdir=runs/proof/blocks

2 layers x 128, 4,096 tokens a step. experiments/LOG.md shows what they learn,
and what a classifier or a comparison of sentences gains from them.
"""

from typing import Any

from bert_jax.configs import base
from bert_jax.sweeps import sweep

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
  "modern-muon": ("modernbert", {}),
  "bert-adamw": ("bert", {"optim.learning_rate": 2e-3}),
  "bert-muon": ("bert", {"optim.name": "muon", "optim.b1": 0.95,
                         "optim.learning_rate": 8e-3}),
  "modern-adamw": ("modernbert", {"optim.name": "adamw", "optim.b1": 0.9,
                                  "optim.learning_rate": 2e-3}),
}  # fmt: skip


def get_config(text=None):
  """Arguments: data (prepared with configs/small.py), steps."""
  args = base.arguments(text, data="runs/proof/data", steps=1500)
  return sweep.make(
    sweep.trial(
      f"configs/small.py:blocks={blocks},layers=2,hidden=128,"
      f"total_steps={args.steps}",
      {"data.dir": args.data, "optim.warmup_rate": 0.1, **settings},
      name=name,
    )
    for name, (blocks, settings) in VARIANTS.items()
  )
