"""A left-to-right language model, as in the paper's ablation (table 5).

  bert-jax train --config=configs/left_to_right.py:size=base \
    --config.data.dir=DATA --workdir=RUN

Every token is predicted from those before it. There is no next sentence and no
mask; the prepared data is that of configs/pretrain.py. A head of a task reads
the last token, which alone has seen all others. To fine-tune with a
bidirectional LSTM on top, as the paper also does, add
`--config.init_changes=model.head_lstm_layers=1`.

Of the programs of attention, plain and splash can hide what is behind a token;
splash has no dropout of attention probabilities.
"""

from bert_jax.configs import base
from bert_jax.configs import pretrain


def get_config(text=None):
  """Arguments: size, seq_len, total_steps."""
  args = base.arguments(text, size="base", seq_len=128, total_steps=1_000_000)
  c = pretrain.get_config(
    ",".join(f"{name}={args[name]}" for name in args.keys())
  )
  c.objective = "ltr"
  c.model.attention_pattern = "causal"
  c.model.pooling = "last"
  c.data.mask_token_rate = 0.0
  c.data.random_token_rate = 0.0
  return c
