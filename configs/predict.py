"""A trained model on new text, one JSON object a line.

  bert-jax --mode=predict --config=configs/predict.py:kind=embed,from=DIR \
    --input=LINES.jsonl --output=OUT.jsonl

DIR is a Hugging Face or Flax directory, an original TensorFlow checkpoint or
the workdir of a run. bert_jax/prediction/predict.py lists the fields of each
kind.

Keys that are not set here are as the run of the weights says in its run.json,
so that it predicts what it is evaluated by; --config.task.n_best=5 changes one.
"""

import ml_collections

from bert_jax.configs import base

# Weights of others say nothing of these; they then are as configs/base.py has
# them.
AS_THE_RUN_SAYS = {
  "model": ("dtype", "attention"),
  "task": ("context", "max_query_len", "doc_stride", "n_best")
  + (
    "max_answer_len",
    "has_null",
    "null_threshold",
    "thresholds",
    "temperature",
    "long_texts",
    "text",
    "word_split",
  ),
}


def get_config(text=None):
  """Arguments: kind, from (weights), fields (of embed, joined by +)."""
  args = base.arguments(text, kind="", fields="", **{"from": ""})
  c = base.get_config()
  for group, names in AS_THE_RUN_SAYS.items():
    for name in names:
      of_type = ml_collections.config_dict.placeholder(type(c[group][name]))
      c[group][name] = of_type
  c.predict.kind = args.kind
  if args["from"]:
    c.predict.model = args["from"]
  if args.fields:
    c.predict.fields = tuple(args.fields.split("+"))
  return c
