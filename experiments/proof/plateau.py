"""What moves the plateau near 6 nats: short runs that differ in one thing.

  bert-jax sweep --config=experiments/proof/plateau.py:data=DATA \
    --workdir=runs/proof/plateau --output=experiments/proof/plateau

2 layers x 128, 600 steps of 2,048 tokens. The first rows change BERT's own
blocks and optimizer; the last ones change blocks, optimizer or both. `pairs` is
the folder of the same text, prepared with data.pairing=pairs, for the row with
next sentences; without it that row is left out.
"""

from typing import Any

from bert_jax.configs import base
from bert_jax.sweeps import sweep

BERT = {"optim.learning_rate": 2e-3}
MUON = {"optim.name": "muon", "optim.b1": 0.95, "optim.learning_rate": 8e-3}
ADAMW = {"optim.name": "adamw", "optim.b1": 0.9, "optim.learning_rate": 2e-3}
PRE = {"model.norm_place": "pre"}
ROPE = {"model.positions": "none", "model.attention_positions": "rope"}

# name: (blocks of configs/small.py, what differs)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
  "bert": ("bert", BERT),
  "rate-5e-4": ("bert", {"optim.learning_rate": 5e-4}),
  "rate-4e-3": ("bert", {"optim.learning_rate": 4e-3}),
  "warmup-2": ("bert", BERT | {"optim.warmup_rate": 0.02}),
  "warmup-30": ("bert", BERT | {"optim.warmup_rate": 0.3}),
  "rows-8": ("bert", BERT | {"data.batch_size": 8}),
  "rows-32": ("bert", BERT | {"data.batch_size": 32}),
  "b2-999": ("bert", BERT | {"optim.b2": 0.999}),
  "bert-adam": ("bert", BERT | {"optim.name": "bert_adam"}),
  "init-006": ("bert", BERT | {"model.init_stddev": 0.06}),
  "masks-15": ("bert", BERT | {"data.mask_rate": 0.15}),
  "rotations": ("bert", BERT | ROPE),
  "norms-before": ("bert", BERT | PRE),
  "rotations-norms-before": ("bert", BERT | ROPE | PRE),
  "muon": ("bert", MUON),
  "muon-rotations": ("bert", MUON | ROPE),
  "modern-adamw": ("modernbert", ADAMW),
  "modern-muon": ("modernbert", MUON),
  "modern-muon-4e-3": ("modernbert", MUON | {"optim.learning_rate": 4e-3}),
  "modern-muon-16e-3": ("modernbert", MUON | {"optim.learning_rate": 1.6e-2}),
}
NEXT_SENTENCES = {"objective": "mlm_nsp", "data.pairing": "pairs"}


def get_config(text=None):
  """Arguments: data (prepared with configs/small.py), pairs, steps."""
  args = base.arguments(text, data="runs/proof/data", pairs="", steps=600)
  variants = {
    name: (blocks, {"data.dir": args.data} | settings)
    for name, (blocks, settings) in VARIANTS.items()
  }
  if args.pairs:
    settings = BERT | NEXT_SENTENCES | {"data.dir": args.pairs}
    variants["next-sentences"] = ("bert", settings)
  common = {
    "data.batch_size": 16,
    "optim.warmup_rate": 0.1,
    "eval.every_steps": args.steps // 6,
    "eval.max_examples": 512,
    "checkpoint.every_steps": args.steps // 2,
    "checkpoint.keep": 1,
  }
  return sweep.make(
    sweep.trial(
      f"configs/small.py:blocks={blocks},layers=2,hidden=128,"
      f"total_steps={args.steps}",
      common | settings,
      name=name,
    )
    for name, (blocks, settings) in variants.items()
  )
