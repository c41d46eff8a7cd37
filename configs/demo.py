"""The demo: a small BERT on the docstrings of Python and installed packages.

`bert-jax demo` gathers the text and runs everything. The rows are short and the
objective is masked words alone, which learns most in a few minutes.
"""

from bert_jax.configs import base


def get_config(text=None):
  """Argument: total_steps."""
  args = base.arguments(text, total_steps=1300)
  c = base.get_config()
  base.set_size(c, "tiny")
  c.objective = "mlm"
  c.data.dir = "runs/demo/data"
  c.data.pairing = "full_sentences"
  c.data.seq_len = 64
  c.data.batch_size = 32
  c.data.dupe_factor = 1
  c.prepare.vocab_size = 2000
  c.prepare.held_out_rate = 0.0
  c.prepare.unit_bytes = 2_000_000
  c.model.vocab_size = 2000
  c.model.max_len = 64
  c.model.dropout_rate = 0.0
  c.model.attention_dropout_rate = 0.0
  c.optim.learning_rate = 2e-3
  c.optim.b2 = 0.98
  c.optim.warmup_rate = 0.1
  c.train.total_steps = args.total_steps
  c.train.log_every_steps = 100
  c.eval.every_steps = 325
  c.eval.batch_size = 64
  c.eval.max_examples = 512
  c.checkpoint.every_steps = 650
  return c
