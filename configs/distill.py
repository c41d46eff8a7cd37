"""DistilBERT's recipe: a student with fewer layers learns from a teacher.

  bert-jax train --config=distill:teacher=DIR,student_layers=6 --input=TEXT \
    --workdir=RUN

The student begins with some layers of the teacher. The loss is that of arXiv
1910.01108 and of its code: the teacher's words at temperature 2, masked words,
and the cosine of the last hidden states, with the factors 5, 2 and 1.
"""

from bert_jax.configs import base

# The factors of the terms of TinyBERT's two stages.
_LAYERS = "distill.soft_weight=0.0 distill.mlm_weight=0.0"
# The projections of a student of another width stay, and so do their moments.
_WORDS = "distill.soft_weight=1.0 distill.mlm_weight=0.0"


def _set_tinybert(c, steps):
  """Compares layers instead of the last hidden states (arXiv 1909.10351)."""
  c.distill.cosine_weight = 0.0
  c.distill.embedding_weight = 1.0
  c.distill.hidden_weight = 1.0
  c.distill.attention_weight = 1.0
  if steps >= 4:
    last = steps // 4
    c.train.phases = (
      f"layers train.total_steps={steps - last} {_LAYERS}",
      f"words train.total_steps={last} {_WORDS}",
    )


def get_config(text=None):
  """Arguments: teacher, student_layers, epochs, steps, seq_len, batch_size, lr.

  Also form: distilbert or tinybert, which compares embeddings, hidden states
  and maps of attention layer by layer, and not the last hidden states. With
  `steps` it does that alone in the first three quarters, and also learns the
  teacher's words in the last one.

  steps=0 trains for `epochs` passes over the text. student_layers=0 keeps all
  layers.
  """
  args = base.arguments(
    text,
    teacher="",
    student_layers=6,
    epochs=3.0,
    steps=0,
    seq_len=512,
    batch_size=256,
    lr=5e-4,
    form="distilbert",
  )
  if args.form not in ("distilbert", "tinybert"):
    raise ValueError(f"form={args.form}; use distilbert or tinybert")
  c = base.get_config()
  c.objective = "distill"
  c.distill.teacher = args.teacher
  if args.teacher:
    c.init_from = args.teacher
  c.init_layers = args.student_layers
  c.data.pairing = "documents"
  c.data.dupe_factor = 1
  c.data.max_sequences = 8
  c.data.seq_len = args.seq_len
  c.data.batch_size = args.batch_size
  c.prepare.held_out_rate = 0.02
  c.optim.name = "adamw"
  c.optim.learning_rate = args.lr
  c.optim.b2 = 0.98
  c.optim.weight_decay = 0.0
  c.optim.clip_norm = 5.0
  c.optim.schedule = "linear"
  c.optim.warmup_rate = 0.05
  c.train.num_epochs = 0.0 if args.steps else args.epochs
  c.train.total_steps = args.steps
  c.train.export = "same"
  if args.form == "tinybert":
    _set_tinybert(c, args.steps)
  c.eval.at_start = True
  c.eval.batch_size = 32
  c.eval.max_examples = 2_000
  return c
