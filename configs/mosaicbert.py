"""MosaicBERT's recipe: 287 million rows of 128 tokens, in bfloat16.

Eight A100 took 1.13 hours to a GLUE score of 79.6, says its paper; all rows
give 84.3, says the card of its model.

  bert-jax prepare --config=mosaicbert --input=TEXT --output=DATA
  bert-jax train --config=mosaicbert --config.data.dir=DATA --workdir=RUN

Eight chips share the rows of a step, or as many as `devices` says
(`--config=mosaicbert:devices=1`).

What it changes of BERT are switches of the family mosaic_bert (linear biases
instead of positions, gated layers) and settings: 30 % of the tokens to predict,
no next sentence, AdamW, and no dropout of attention probabilities. The text was
C4, cut at 128 tokens.

Differs from it: the learning rate falls to 0 and not to a fiftieth, and the
weight decay is that of its optimizer at the highest learning rate (1e-5 a step,
which does not shrink with the rate, is 0.02 times 5e-4).

Source: arXiv 2312.17482; mosaicml/examples examples/benchmarks/bert/yamls/main/
mosaic-bert-base-uncased.yaml
"""

from bert_jax.configs import base

ROWS = 286_720_000


def get_config(text=None):
  """Arguments: one of its sizes, batch_size, devices (what jax counts), steps.

  Steps of 0 are those of all rows.
  """
  args = base.arguments(text, size="base", batch_size=4096, steps=0, devices=8)
  c = base.get_config()
  base.set_size(c, args.size, "mosaic_bert")
  c.objective = "mlm"
  c.seed = 17
  c.model.attention_dropout_rate = 0.0
  c.data.pairing = "documents"
  c.data.dupe_factor = 1
  c.data.seq_len = 128
  c.data.mask_rate = 0.3
  c.data.batch_size = args.batch_size
  c.eval.mask_rate = 0.15
  c.eval.every_steps = 2000
  c.optim.name = "adamw"
  c.optim.learning_rate = 5e-4
  c.optim.schedule = "linear"
  c.optim.warmup_rate = 0.06
  c.optim.b2 = 0.98
  c.optim.weight_decay = 0.02
  c.optim.clip_norm = 0.0
  c.train.total_steps = args.steps or ROWS // args.batch_size
  base.fit_devices(c, args.devices)
  return c
