"""BERT pre-training on NVIDIA GPUs, in bfloat16.

  bert-jax train --config=configs/gpu.py:size=base,seq_len=128,devices=1 \
    --workdir=RUN --config.data.dir=DATA

Attention is cuDNN's, which has no dropout of attention probabilities; that of
the other layers stays as in the paper. `attention=plain` has both, and keeps
the scores in memory. Pack short examples with --config.data.max_sequences=8.

Above 1,024 rows in all the optimizer is LAMB, as in configs/tpu.py. The rows of
a device are an estimate for cards with 80 GB; set fewer (rows=N) on
smaller ones. Not run on a GPU so far: `make bench-gpu` measures it.
"""

from bert_jax.configs import base

# Tokens that a device computes at once: base, and large with 24 layers.
TOKENS = (65_536, 32_768)
ATTENTIONS = ("cudnn", "plain")


def get_config(text=None):
  """Arguments.

  Args:
    text: of size (see configs/base.py SIZES), seq_len, devices (what jax
      counts), rows (that a device computes at once; 0 is the choice of this
      file) and attention (cudnn or plain).
  """
  args = base.arguments(
    text, size="base", seq_len=128, devices=1, rows=0, attention="cudnn"
  )
  if args.attention not in ATTENTIONS:
    raise ValueError(
      f"attention={args.attention}: use one of {', '.join(ATTENTIONS)}"
    )
  if min(args.devices, args.seq_len) < 1 or args.rows < 0:
    raise ValueError("devices and seq_len are 1 or more, rows 0 or more")
  c = base.get_config()
  base.set_size(c, args.size)
  c.model.dtype = "bfloat16"
  c.model.attention = args.attention
  if args.attention == "cudnn":
    c.model.attention_dropout_rate = 0.0
  tokens = TOKENS[c.model.hidden_size > 768]
  c.data.seq_len = args.seq_len
  c.data.batch_size = args.devices * (
    args.rows or max(tokens // args.seq_len, 1)
  )
  c.data.num_threads = 8
  c.train.total_steps = max(256_000_000 // c.data.batch_size, 1)
  base.fit_large_batch(c)
  return c
