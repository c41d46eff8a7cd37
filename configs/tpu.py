"""Pre-training on a TPU slice: bfloat16, fused attention, batches that fill it.

  bert-jax --mode=plan --config=configs/tpu.py:size=large,chip=v5e,devices=16 \
    --topology=v5e:4x4

The rows that a device computes at once, and how many times before the devices
exchange gradients, are what plans found to be fast (experiments/plan). The step
is then some thousand rows, for which the paper's Adam is not meant: above 1,024
rows the optimizer is LAMB, with learning rate and warm-up from the number of
rows as in table 4 of arXiv 1904.00962, and as many sequences in all as the
paper's million steps of 256.
"""

from bert_jax.configs import base

# Tokens that a device computes at once: of models up to base, and of larger.
TOKENS = {
  "v4": (16_384, 16_384),
  "v5e": (16_384, 8_192),
  "v5p": (65_536, 32_768),
  "v6e": (32_768, 16_384),
  "tpu7x": (65_536, 32_768),
}
MAX_STEP_TOKENS = 2**21  # micro-batches grow a step up to this


def get_config(text=None):
  """Arguments.

  Args:
    text: of size (see configs/base.py SIZES), seq_len, chip and devices (what
      jax counts), rows (that a device computes at once) and micro_batches,
      where 0 is the choice of this file.
  """
  args = base.arguments(
    text,
    size="base",
    seq_len=128,
    chip="v5e",
    devices=16,
    rows=0,
    micro_batches=0,
  )
  if args.chip not in TOKENS:
    raise ValueError(f"chip={args.chip}: use one of {', '.join(TOKENS)}")
  if (
    min(args.devices, args.seq_len) < 1
    or min(args.rows, args.micro_batches) < 0
  ):
    raise ValueError("devices and seq_len are 1 or more, the others 0 or more")
  c = base.get_config()
  base.set_size(c, args.size)
  c.model.dtype = "bfloat16"
  c.model.attention = "fused_qkv" if args.chip == "v6e" else "fused"
  is_large = c.model.hidden_size > 768
  tokens = TOKENS[args.chip][is_large]
  rows = args.devices * (args.rows or max(tokens // args.seq_len, 1))
  parts = args.micro_batches or min(
    8, max(MAX_STEP_TOKENS // (rows * args.seq_len), 1)
  )
  c.data.seq_len = args.seq_len
  c.data.batch_size = rows * parts
  c.data.num_threads = 8
  c.optim.num_micro_batches = parts
  c.train.total_steps = max(256_000_000 // c.data.batch_size, 1)
  base.fit_large_batch(c)
  return c
