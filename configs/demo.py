"""The two-minute run on a laptop; experiments/demo.py makes its text.

Python's own help pages: 65 thousand words, so the model is small, the rows are
short and every page is seen many times.
"""

from bert_jax.configs import base


def get_config(text=None):
  """No arguments."""
  base.arguments(text)
  c = base.get_config()
  base.set_size(c, "tiny")
  c.data.dir = "runs/demo/data"
  c.data.seq_len = 64
  c.data.batch_size = 32
  c.data.dupe_factor = 20
  c.prepare.format = "paragraphs"
  c.prepare.vocab_size = 2000
  c.prepare.held_out_rate = 0.15
  c.prepare.unit_bytes = 100_000
  c.model.vocab_size = 2000
  c.model.max_len = 64
  c.model.dropout_rate = 0.0
  c.model.attention_dropout_rate = 0.0
  c.optim.learning_rate = 2e-3
  c.optim.b2 = 0.98
  c.optim.warmup_rate = 0.1
  c.train.total_steps = 1200
  c.train.log_every_steps = 50
  c.eval.every_steps = 250
  c.eval.batch_size = 64
  c.eval.max_examples = 512
  c.checkpoint.every_steps = 500
  return c
