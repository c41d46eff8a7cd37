"""ALBERT's recipe: shared layers, order of segments, runs of words, LAMB.

  bert-jax prepare --config=albert --input=TEXT --output=DATA
  bert-jax train --config=albert --config.data.dir=DATA --workdir=RUN

The settings are those of arXiv 1909.11942 and of its code: no dropout (version
2), runs of up to three words, and 4,096 rows a step.
"""

from bert_jax.configs import base


def get_config(text=None):
  """Arguments: family, one of its sizes, steps and batch_size."""
  args = base.arguments(
    text, family="albert", size="base", steps=125_000, batch_size=4096
  )
  c = base.get_config()
  base.set_size(c, args.size, args.family)
  c.objective = "mlm_sop"
  c.model.dropout_rate = c.model.attention_dropout_rate = 0.0
  c.data.pairing = "ordered_pairs"
  c.data.seq_len = 512
  c.data.batch_size = args.batch_size
  c.data.whole_word = True
  c.data.mask_ngrams = 3
  c.prepare.vocab_kind = "sentencepiece"
  c.prepare.vocab_size = 30_000
  c.optim.name = "lamb"
  c.optim.learning_rate = 1.76e-3
  c.optim.schedule = "linear"
  c.optim.warmup_rate = 3_125 / 125_000
  c.train.total_steps = args.steps
  return c
