"""Tiny and mini on 100 old novels: what normal pre-training looks like.

The commands, the curves and what they show are in experiments/novels/. Both
sizes see less than an epoch or two of text, so there is no dropout (nothing to
overfit) and the learning rate is ten times the paper's.
"""

from configs import base

# size: (rows a step, steps, highest learning rate), for up to an hour each on
# two cores.
RECIPES = {
  "tiny": (32, 7_000, 2e-3),
  "mini": (8, 4_000, 1e-3),
}


def get_config(text=None):
  """Arguments: size (tiny or mini)."""
  args = base.arguments(text, size="tiny")
  if args.size not in RECIPES:
    raise ValueError(f"size={args.size}; there is {', '.join(RECIPES)}")
  c = base.get_config()
  base.set_size(c, args.size)
  c.data.batch_size, c.train.total_steps, c.optim.learning_rate = RECIPES[
    args.size
  ]
  c.prepare.vocab_size = 8192
  c.model.vocab_size = 8192
  c.model.max_len = 128
  c.model.dropout_rate = 0.0
  c.model.attention_dropout_rate = 0.0
  c.prepare.held_out_rate = 0.02
  c.data.dir = "runs/novels"
  c.data.dupe_factor = 2
  c.optim.b2 = 0.98
  c.optim.warmup_rate = 0.1
  c.train.log_every_steps = 50
  c.eval.every_steps = 250
  c.eval.batch_size = 128
  c.eval.max_examples = 2560
  c.checkpoint.every_steps = 500
  return c
