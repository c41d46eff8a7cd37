"""A run that takes seconds: its words and its config."""

from configs import base

WORDS = (
  "sun moon star sky rain wind snow hill lake tree bird fish stone road house"
  " door"
).split()


def tiny_config(folder=None):
  """The config of a run on the data of the fixture `prepared`."""
  c = base.get_config()
  c.model.vocab_size = 32
  c.model.num_layers = 1
  c.model.hidden_size = 32
  c.model.num_heads = 4
  c.model.mlp_dim = 64
  c.model.max_len = 16
  c.data.dir = folder
  c.data.seq_len = 16
  c.data.batch_size = 16
  c.data.dupe_factor = 4
  c.prepare.held_out_rate = 0.2
  c.prepare.num_workers = 1
  c.optim.learning_rate = 1e-2
  c.optim.warmup_rate = 0.1
  c.train.total_steps = 8
  c.train.log_every_steps = 1
  c.eval.every_steps = 2
  c.eval.batch_size = 16
  c.checkpoint.every_steps = 2
  c.checkpoint.keep = 2
  return c
