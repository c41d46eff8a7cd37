"""Weights from one format to another.

bert-jax --mode=convert --config=configs/convert.py:to=huggingface \
    --input=RUN --output=DIR
"""

from bert_jax.configs import base


def get_config(text=None):
  """Arguments: to (bert_jax, huggingface, flax or tf1), kind, drop_head."""
  args = base.arguments(text, to="bert_jax", kind="", drop_head=False)
  c = base.get_config()
  c.convert.to = args.to
  c.convert.kind = args.kind
  c.convert.drop_head = args.drop_head
  return c
