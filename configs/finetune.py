"""Fine-tuning on a task, from pre-trained weights.

  bert-jax train --config=configs/finetune.py:task=mrpc,from=WEIGHTS \
    --config.task.dir=DATA --workdir=RUN

WEIGHTS is a Hugging Face directory, an original TensorFlow checkpoint or a
workdir; DATA holds the task's files in their official layout. The recipes are
the paper's (section 4, appendix A.3), which chose the learning rate on the
development set among 5e-5, 4e-5, 3e-5 and 2e-5. The recipe of XNLI is that of
the original's multilingual.md, which PAWS-X shares, and that of RACE is
RoBERTa's (arXiv:1907.11692, table 10). Tasks on passages have longer rows,
which are a choice of ours.
"""

from bert_jax.configs import base

# name, benchmark or kind: (batch_size, num_epochs, learning_rate, seq_len)
RECIPES = {
  "classify": (32, 3.0, 3e-5, 128),
  "regress": (32, 3.0, 3e-5, 128),
  "multi_label": (32, 3.0, 3e-5, 128),
  "span": (32, 3.0, 5e-5, 384),
  "squad_v2": (48, 2.0, 5e-5, 384),
  "choice": (16, 3.0, 2e-5, 128),
  "tag": (32, 3.0, 5e-5, 128),
  # Search and similarity: not of the paper (docs/howto/embeddings.md).
  "embed": (128, 1.0, 2e-5, 128),
  "similarity": (32, 4.0, 2e-5, 128),
  "rerank": (16, 2.0, 2e-5, 256),
  "xnli": (32, 2.0, 5e-5, 128),
  "pawsx": (32, 2.0, 5e-5, 128),
  "race": (16, 4.0, 1e-5, 512),
  "boolq": (32, 3.0, 3e-5, 256),
  "multirc": (32, 3.0, 3e-5, 512),
  "record": (32, 3.0, 3e-5, 512),
}
# Tasks of another kind than "classify".
KINDS = {
  "stsb": "regress",
  "squad_v1": "span",
  "squad_v2": "span",
  "swag": "choice",
  "hellaswag": "choice",
  "codah": "choice",
  "copa": "choice",
  "race": "choice",
  "conll2003": "tag",
  "wnut17": "tag",
  "stsb_similarity": "similarity",
}


def get_config(text=None):
  """Arguments: task, from (weights), random (shape of `from`, fresh weights).

  Also seed, and lr, epochs, seq_len and batch_size, where 0 means the value of
  the recipe. `my-KIND` names data of your own: task=my-classify, my-regress,
  my-pairs, my-multi_label, my-tag, my-span, my-choice, my-embed, my-similarity
  or my-rerank.
  """
  args = base.arguments(
    text,
    task="mrpc",
    random=False,
    lr=0.0,
    epochs=0.0,
    seq_len=0,
    batch_size=0,
    seed=0,
    **{"from": ""},
  )
  c = base.get_config()
  c.objective = "task"
  c.task.name = args.task
  if args["from"]:
    c.init_from = args["from"]
  c.init_random = args.random
  kind = KINDS.get(args.task, args.task.removeprefix("my-"))
  names = (args.task, args.task.partition("_")[0], kind, "classify")
  recipe = next(RECIPES[name] for name in names if name in RECIPES)
  batch_size, epochs, learning_rate, seq_len = recipe
  c.seed = args.seed
  c.data.batch_size = args.batch_size or batch_size
  c.data.seq_len = args.seq_len or seq_len
  c.train.num_epochs = args.epochs or epochs
  c.train.total_steps = 0
  c.train.log_every_steps = 20
  c.optim.learning_rate = args.lr or learning_rate
  c.optim.warmup_rate = 0.1
  c.eval.every_steps = 0
  c.eval.batch_size = 16
  c.checkpoint.every_steps = 0
  c.checkpoint.keep = 1
  c.checkpoint.best_metric = ""
  return c
