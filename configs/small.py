"""Pre-training of a small encoder on a few cores, so that it pays on tasks.

  bert-jax prepare --config=small --input=TEXT --output=DATA
  bert-jax train --config=small --config.data.dir=DATA --workdir=RUN

Rotations and norms before the sublayers, with the optimizer Muon, leave the
plateau near 6 nats, at which small encoders rest, within some hundred steps.
experiments/LOG.md has the runs that this recipe rests on. The learning rate
stays at its highest value until the last tenth of the steps, so that the
weights of any step can be fine-tuned, and `--allow_changes=train.total_steps`
makes a run longer as long as that fall has not begun.
"""

from bert_jax.configs import base

# blocks: (family, size of it, what differs from the paper's optimizer)
RECIPES = {
  "modernbert": ("modernbert", "base", ("muon", 8e-3, 0.95)),
  "bert": ("bert", "tiny", ("adamw", 1e-3, 0.9)),
}


def get_config(text=None):
  """Arguments: blocks (modernbert, bert), layers, hidden, seq_len, total_steps.

  The width of a head is 64, and that of the MLP 4 x hidden; gated MLPs, which
  have three matrices, get 8/3 x hidden, rounded to a multiple of 64.
  """
  args = base.arguments(
    text,
    blocks="modernbert",
    layers=4,
    hidden=256,
    seq_len=128,
    total_steps=40_000,
  )
  if args.blocks not in RECIPES:
    raise ValueError(
      f"blocks={args.blocks} is not known; use one of {', '.join(RECIPES)}"
    )
  family, size, (optimizer, rate, b1) = RECIPES[args.blocks]
  c = base.get_config()
  base.set_size(c, size, family)
  is_gated = c.model.feed_forward == "glu"
  c.model.update(
    num_layers=args.layers,
    hidden_size=args.hidden,
    num_heads=max(args.hidden // 64, 1),
    mlp_dim=round(args.hidden / 24) * 64 if is_gated else 4 * args.hidden,
    max_len=max(args.seq_len, 256),
    attention_pattern="full",
    pooling="mean",  # masked words teach the first token nothing
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
  )
  c.objective = "mlm"
  c.prepare.vocab_size = 8192
  c.prepare.held_out_rate = 0.01
  c.data.pairing = "full_sentences"
  c.data.seq_len = args.seq_len
  c.data.batch_size = 4096 // args.seq_len
  c.data.dupe_factor = 2
  c.data.mask_rate = 0.3
  c.optim.name = optimizer
  c.optim.learning_rate = rate
  c.optim.b1 = b1
  c.optim.b2 = 0.98
  c.optim.schedule = "trapezoid"
  c.optim.warmup_rate = 0.01
  c.optim.cooldown_rate = 0.1
  c.train.total_steps = args.total_steps
  c.train.log_every_steps = 50
  c.eval.every_steps = 500
  c.eval.batch_size = 128
  c.eval.max_examples = 1024
  c.checkpoint.every_steps = 500
  c.checkpoint.best_metric = ""
  return c
