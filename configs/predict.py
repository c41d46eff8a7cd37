"""A trained model on new text, one JSON object a line.

  bert-jax --mode=predict --config=configs/predict.py:kind=embed,from=DIR \
    --input=LINES.jsonl --output=OUT.jsonl

DIR is a Hugging Face or Flax directory, an original TensorFlow checkpoint or
the workdir of a run. bert_jax/predict.py lists the fields of each kind.
"""

from configs import base


def get_config(text=None):
  """Arguments: kind, from (weights), fields (of embed, joined by +)."""
  args = base.arguments(text, kind="", fields="", **{"from": ""})
  c = base.get_config()
  c.predict.kind = args.kind
  if args["from"]:
    c.predict.model = args["from"]
  if args.fields:
    c.predict.fields = tuple(args.fields.split("+"))
  return c
