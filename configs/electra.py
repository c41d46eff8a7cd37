"""ELECTRA's recipe: a small generator replaces tokens, the model finds them.

  bert-jax prepare --config=electra --input=TEXT --output=DATA
  bert-jax train --config=electra --config.data.dir=DATA --workdir=RUN

RUN is then fine-tuned as any other model, which uses the discriminator. The
settings are those of arXiv 2003.10555 and of its code; family=deberta-v2 takes
the disentangled tables of DeBERTa-v3 (arXiv 2111.09543).
"""

from bert_jax.configs import base

# Beginning of the name: width of the generator, rate, rows, length, steps.
RECIPES = {
  "small": (1 / 4, 5e-4, 128, 128, 1_000_000),
  "base": (1 / 3, 2e-4, 256, 512, 766_000),
  "large": (1 / 4, 2e-4, 2048, 512, 400_000),
}


def get_config(text=None):
  """Arguments: family, one of its sizes, and steps, where 0 = the recipe's."""
  args = base.arguments(text, family="electra", size="small", steps=0)
  c = base.get_config()
  base.set_size(c, args.size, args.family)
  width, rate, rows, length, steps = RECIPES.get(args.size, RECIPES["base"])
  c.objective = "rtd"
  c.generator.width_rate = width
  if args.family != "electra":  # as DeBERTa-v3: as wide, and half as deep
    c.generator.width_rate, c.generator.depth_rate = 1.0, 0.5
    c.generator.sharing = "disentangled"
  c.data.pairing = "full_sentences"
  c.data.dupe_factor = 1
  c.data.seq_len = length
  c.data.batch_size = rows
  c.data.mask_rate = 0.25 if args.size == "large" else 0.15
  c.data.mask_token_rate = 0.85
  c.data.random_token_rate = 0.0
  c.optim.name = "adamw"
  c.optim.learning_rate = rate
  c.optim.schedule = "linear"
  c.train.total_steps = args.steps or steps
  c.optim.warmup_rate = min(10_000 / c.train.total_steps, 0.1)
  c.checkpoint.best_metric = "eval/rtd_loss"
  return c
