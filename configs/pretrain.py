"""Pre-training on MLM and NSP.

  bert-jax train --config=configs/pretrain.py:size=base,seq_len=128 \
    --config.data.dir=DATA --workdir=RUN

The paper's recipe: 256 rows of 512 tokens, 1M steps, Adam at 1e-4, 10k steps of
warm-up, weight decay 0.01, dropout 0.1; the first 90 % of the steps at length
128 (section 3.1 and appendix A.2).
"""

from bert_jax.configs import base


def get_config(text=None):
  """Arguments: family, size, seq_len, total_steps.

  The families are the files in bert_jax/models/families; each lists its sizes.
  """
  args = base.arguments(
    text, family="bert", size="base", seq_len=128, total_steps=1_000_000
  )
  c = base.get_config()
  base.set_size(c, args.size, args.family)
  c.data.seq_len = args.seq_len
  c.train.total_steps = args.total_steps
  return c
