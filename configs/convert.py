"""Weights from one format to another.

bert-jax --mode=convert --config=configs/convert.py:to=huggingface \
    --input=RUN --output=DIR
"""

from configs import base


def get_config(text=None):
  """Arguments: to (bert_jax, huggingface, flax or tf1)."""
  args = base.arguments(text, to="bert_jax")
  c = base.get_config()
  c.convert.to = args.to
  return c
