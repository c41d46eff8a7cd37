"""RoBERTa's recipe: full sentences, large batches, masked words alone.

  bert-jax prepare --config=roberta --input=TEXT --output=DATA
  bert-jax train --config=roberta --config.data.dir=DATA --workdir=RUN

The settings are those of arXiv 1907.11692, table 9. docs/howto/recipes.md lists
what differs from BERT's.
"""

from bert_jax.configs import base

# size: the highest learning rate, and the steps of warm-up.
RECIPES = {"base": (6e-4, 24_000), "large": (4e-4, 30_000)}


def get_config(text=None):
  """Arguments: family, one of its sizes, steps and batch_size."""
  args = base.arguments(
    text, family="roberta", size="base", steps=500_000, batch_size=8192
  )
  c = base.get_config()
  base.set_size(c, args.size, args.family)
  rate, warmup = RECIPES.get(args.size, RECIPES["base"])
  c.objective = "mlm"
  c.data.pairing = "full_sentences"
  c.data.dupe_factor = 1
  c.data.seq_len = 512
  c.data.batch_size = args.batch_size
  c.prepare.vocab_kind = "byte_bpe"
  c.prepare.special_tokens = "roberta"
  c.prepare.vocab_size = 50265
  c.optim.name = "adamw"
  c.optim.learning_rate = rate
  c.optim.b2 = 0.98
  c.optim.clip_norm = 0.0
  c.optim.schedule = "linear"
  c.optim.warmup_rate = warmup / 500_000
  c.train.total_steps = args.steps
  return c
