"""BERT in a day on one chip: cramming's shape and recipe, in bfloat16.

  bert-jax prepare --config=cramming --input=TEXT --output=DATA
  bert-jax train --config=cramming --config.data.dir=DATA --workdir=RUN

More chips share the rows of a step (`--config=cramming:devices=8`).

Sixteen layers of width 768 with a norm before each sublayer, gated layers, no
biases, and the word table as the decoder; a quarter of the tokens is predicted,
and there is no dropout. Each is a switch of the encoder. The rows of a step
grow to 8,192 over the first 60 % of the steps.

The budget of a day is a number of steps here. 12,000 steps are what one v5e
would do in a day at 40 % of its peak, by arithmetic and not by a run: 6 FLOPs
for each of 94 million weights and each token of 8,192 rows of 128, and those of
the decoder; `bert-jax plan` predicts better.

Differs from it: positions are learned, where cramming has scaled sinusoids, and
the learning rate rises from 0 to its peak at three quarters of the steps, where
cramming begins at a quarter of the peak.

Source: arXiv 2212.14034; JonasGeiping/cramming cramming/config/arch/
crammed-bert.yaml and cramming/config/train/bert-o4.yaml
"""

from bert_jax.configs import base


def get_config(text=None):
  """Arguments: steps, devices (what jax counts) and batch_size.

  The last is the largest number of rows of a step.
  """
  args = base.arguments(text, steps=12_000, batch_size=8192, devices=1)
  c = base.get_config()
  base.set_size(c, "base")
  c.objective = "mlm"
  c.model.update(
    vocab_size=32_768,
    num_layers=16,
    mlp_dim=1536,  # two matrices of half of cramming's 3,072
    max_len=128,
    type_vocab_size=0,
    norm_place="pre",
    feed_forward="glu",
    hidden_act="gelu_erf",
    attention_bias=False,
    mlp_in_bias=False,
    mlp_out_bias=False,
    mlm_head="bare",
    mlm_bias=False,
    pooling="mean",
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
  )
  c.prepare.vocab_size = 32_768
  c.data.pairing = "full_sentences"
  c.data.dupe_factor = 1
  c.data.seq_len = 128
  c.data.mask_rate = 0.25
  c.data.batch_size = args.batch_size
  sizes = [args.batch_size * part // 4 for part in (1, 2, 3)]
  c.data.batch_warmup_sizes = [size for size in sizes if size]
  c.data.batch_warmup_steps = int(0.6 * args.steps)
  c.eval.mask_rate = 0.15
  c.optim.name = "adamw"
  c.optim.learning_rate = 1e-3
  c.optim.schedule = "linear"
  c.optim.warmup_rate = 0.75
  c.optim.b2 = 0.98
  c.optim.eps = 1e-12
  c.optim.clip_norm = 0.5
  c.train.total_steps = args.steps
  base.fit_devices(c, args.devices)
  return c
