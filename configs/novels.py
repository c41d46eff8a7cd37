"""Tiny and mini on 100 old novels: what normal pre-training looks like.

The commands, the curves and what they show are in experiments/novels/. Both
sizes see less than an epoch or two of text, so there is no dropout (nothing to
overfit) and the learning rate is ten to twenty times the paper's.
"""

from bert_jax.configs import base

# size: (rows a step, steps, highest learning rate), for about an hour each on
# two cores. Other sizes take the recipe of mini.
RECIPES = {
  "tiny": (32, 7_000, 2e-3),
  "mini": (8, 4_000, 1e-3),
}


def get_config(text=None):
  """Arguments: size (tiny, mini or another of configs/base.py SIZES)."""
  args = base.arguments(text, size="tiny")
  c = base.get_config()
  base.set_size(c, args.size)
  rows, steps, learning_rate = RECIPES.get(args.size, RECIPES["mini"])
  c.data.batch_size = rows
  c.train.total_steps = steps
  c.optim.learning_rate = learning_rate
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
