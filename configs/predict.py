"""A trained model on new text.

bert-jax --mode=predict --config=configs/predict.py:kind=fill-mask,from=RUN \
    --input=LINES.jsonl --output=OUT.jsonl
"""

from configs import base


def get_config(text=None):
  """Arguments: kind (fill-mask), from (the workdir of a run)."""
  args = base.arguments(text, kind="fill-mask", **{"from": ""})
  c = base.get_config()
  c.predict.kind = args.kind
  if args["from"]:
    c.predict.model = args["from"]
  return c
