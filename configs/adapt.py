"""Goes on training a model on your own text, and writes it as it came.

  bert-jax train --config=adapt:from=DIR --input=TEXT --workdir=RUN

DIR is a model in any format, or its name on the hub. The text is prepared with
the model's own tokenizer, a part of it is held out, and the model is evaluated
on that part before and after. RUN/export then holds the adapted model in the
format of DIR. docs/howto/adapt.md explains the settings.
"""

from bert_jax.configs import base


def get_config(text=None):
  """Arguments: from (weights), epochs, steps, seq_len, batch_size, lr, seed.

  Also mask_rate. steps=0 trains for `epochs` passes over the text.
  """
  args = base.arguments(
    text,
    epochs=3.0,
    steps=0,
    seq_len=256,
    batch_size=32,
    lr=5e-5,
    mask_rate=0.15,
    seed=0,
    **{"from": ""},
  )
  c = base.get_config()
  if args["from"]:
    c.init_from = args["from"]
  c.seed = args.seed
  c.objective = "mlm"
  c.data.pairing = "documents"
  c.data.dupe_factor = 1
  c.data.short_seq_rate = 0.0
  c.data.seq_len = args.seq_len
  c.data.batch_size = args.batch_size
  c.data.mask_rate = args.mask_rate
  c.data.max_sequences = 8
  c.prepare.held_out_rate = 0.02
  c.optim.name = "adamw"
  c.optim.learning_rate = args.lr
  c.optim.b2 = 0.98
  c.optim.schedule = "trapezoid"
  c.optim.warmup_rate = 0.06
  c.optim.cooldown_rate = 0.5
  c.train.num_epochs = 0.0 if args.steps else args.epochs
  c.train.total_steps = args.steps
  c.train.log_every_steps = 20
  c.train.export = "same"
  c.eval.at_start = True
  c.eval.every_steps = 0
  c.eval.batch_size = 32
  c.eval.max_examples = 2_000
  c.eval.mask_rate = 0.15
  c.checkpoint.every_steps = 500
  c.checkpoint.keep = 1
  c.checkpoint.best_metric = ""
  return c
