"""ModernBERT's recipe: blocks, optimizer, masks, and three phases.

  bert-jax prepare --config=modernbert --input=TEXT --output=DATA
  bert-jax train --config=modernbert:size=base --config.data.dir=DATA \
    --workdir=RUN

The model trains on rows of 1,024 tokens with a learning rate that stays, then
on rows of 8,192 with another base of its rotations, and last with a learning
rate that falls, on data of your choice. The numbers are those of ModernBERT
(arXiv 2412.13663) and of its code; docs/howto/phases.md explains them.
"""

from bert_jax.configs import base

# size: the highest learning rates of rows of 1,024 and of 8,192 tokens.
RATES = {"base": (8e-4, 3e-4), "large": (5e-4, 5e-5)}


def get_config(text=None):
  """Arguments: family, one of its sizes, and the steps of the main phase.

  Also batch_size, seq_len, long_batch_size and long_len, the rows and their
  lengths; and decay_data, a folder of prepared data for the last phase ("" =
  the same); and mask_rates, one share of masked tokens or three, of the phases,
  with + between them, such as 0.3+0.15+0.05. The phases have the shares in the
  tokens that they have in ModernBERT-base: 1,719, 250 and 50 of 2,019.
  """
  args = base.arguments(
    text,
    family="modernbert",
    size="base",
    steps=364_000,
    batch_size=4608,
    seq_len=1024,
    long_len=8192,
    long_batch_size=72,
    decay_data="",
    mask_rates="0.3",
  )
  rates = [float(x) for x in args.mask_rates.split("+")]
  if len(rates) not in (1, 3):
    raise ValueError(
      f"mask_rates={args.mask_rates}; give one share, or three with + between "
      "them"
    )
  c = base.get_config()
  base.set_size(c, args.size, args.family)
  rate, long_rate = RATES.get(args.size, RATES["base"])
  c.objective = "mlm"
  c.model.max_len = args.long_len
  c.model.dropout_rate = c.model.attention_dropout_rate = 0.0
  c.data.pairing = "documents"
  c.data.dupe_factor = 1
  c.data.short_seq_rate = 0.0
  c.data.seq_len = args.seq_len
  c.data.batch_size = args.batch_size
  c.data.max_sequences = max(min(16, args.seq_len // 16), 1)
  c.data.mask_rate = rates[0]
  c.prepare.vocab_kind = "byte_bpe"
  c.prepare.vocab_size = 50368
  c.optim.name = "stable_adamw"
  c.optim.learning_rate = rate
  c.optim.weight_decay = 1e-5
  c.optim.b2 = 0.98
  c.optim.clip_norm = 0.0
  c.optim.schedule = "constant"
  c.optim.warmup_rate = 0.0
  c.eval.mask_rate = 0.15
  c.eval.batch_size = min(args.long_batch_size, 256)
  c.checkpoint.keep = 8
  c.checkpoint.best_metric = ""

  tokens = args.steps * args.batch_size * args.seq_len
  long_row = args.long_batch_size * args.long_len
  longer = (
    f"data.seq_len={args.long_len} data.batch_size={args.long_batch_size} "
    f"optim.learning_rate={long_rate} model.rope_theta=160000.0 "
    f"data.max_sequences={max(min(64, args.long_len // 16), 1)} "
  )
  warmup = ""
  num_steps = args.steps // 20
  # From a sixth of the rows to all of them.
  sizes = [args.batch_size * i // 6 for i in range(1, 6)]
  if args.batch_size % 6 == 0 and num_steps >= len(sizes):
    warmup = (
      f"data.batch_warmup_sizes={','.join(map(str, sizes))} "
      f"data.batch_warmup_steps={num_steps} "
    )
  data = f"data.dir={args.decay_data} " if args.decay_data else ""
  masks = [f"data.mask_rate={x} " if x != rates[0] else "" for x in rates]
  _, *later = masks if len(masks) == 3 else masks * 3
  c.model.rope_theta = c.model.local_rope_theta = 10_000.0
  c.train.total_steps = args.steps
  c.train.phases = (
    f"main optim.warmup_rate=0.002 {warmup}".strip(),
    f"longer train.total_steps={max(tokens * 250 // 1719 // long_row, 1)} "
    f"{later[0]}{longer}".strip(),
    f"decay train.total_steps={max(tokens * 50 // 1719 // long_row, 1)} "
    f"optim.schedule=trapezoid optim.cooldown_rate=1.0 "
    f"{later[1]}{data}{longer}".strip(),
  )
  return c
