"""The demo: a small encoder on the docstrings of Python and installed packages.

`bert-jax demo` gathers the text and runs everything. What learns most in a few
minutes: ModernBERT's blocks, whose rotations make near words easy to find, the
optimizer Muon, short rows, and masked words as the only objective.
"""

from bert_jax.configs import base


def get_config(text=None):
  """Argument: total_steps."""
  args = base.arguments(text, total_steps=1700)
  c = base.get_config()
  base.set_size(c, "base", "modernbert")
  c.model.update(num_layers=2, hidden_size=128, num_heads=2, mlp_dim=256)
  c.data.dir = "runs/demo/data"
  c.data.seq_len = 64
  c.data.batch_size = 32
  c.data.dupe_factor = 1
  c.prepare.vocab_size = 4000
  c.prepare.held_out_rate = 0.0
  c.prepare.unit_bytes = 2_000_000
  c.model.max_len = 64
  c.model.dropout_rate = 0.0
  c.model.attention_dropout_rate = 0.0
  c.optim.name = "muon"
  c.optim.learning_rate = 8e-3
  c.optim.b1 = 0.95
  c.optim.b2 = 0.98
  c.optim.warmup_rate = 0.1
  c.train.total_steps = args.total_steps
  c.train.log_every_steps = 100
  c.eval.every_steps = 425
  c.eval.batch_size = 64
  c.eval.max_examples = 512
  c.checkpoint.every_steps = 850
  return c
