"""BERT by the rules of MLPerf Training 5.0, the last round that has it.

  bert-jax train --workdir=RUN --config.data.dir=DATA \
    --config=configs/mlperf.py:batch_size=4096,from=CKPT/model.ckpt-28252

BERT-large goes on from the published step 28,252 with rows of 512 tokens, 76
predictions in each, and LAMB, until the accuracy of masked words on 10,000
samples is 0.72. The settings of each batch size are those of the reference
convergence points, of which those with a warm-up that starts before step 0 are
left out; an evaluation comes every floor(0.05 (230.23 B + 3e6) / 25,000) times
25,000 samples. The log is WORKDIR/mlperf.log.

Differs from the rules: the data is prepared by this program from the text of
the reference, so that the examples, and the 10,000 of the evaluation, are
others than those of the reference's files. A log is therefore no result of
MLPerf, and it says "open" for the division.

Source: mlcommons/training language_model/tensorflow/bert/README.md;
  mlcommons/logging rcp_checker/training_5.0.0/rcps_bert.json
"""

from bert_jax.configs import base

TARGET = 0.72
# batch size: (learning rate, steps, warm-up steps, b1, b2, samples to converge)
POINTS = {
  256: (3.5e-4, 13_700, 0, 0.9, 0.999, 2_552_704),
  448: (4.25e-4, 6_700, 0, 0.9, 0.999, 2_410_630),
  1536: (2e-3, 2_254, 0, 0.66, 0.996, 2_777_588),
  3072: (2e-3, 1_141, 100, 0.66, 0.998, 2_768_215),
  4096: (2.4e-3, 855, 0, 0.66, 0.998, 2_843_443),
  4608: (3.5e-3, 700, 0, 0.62, 0.9, 2_794_752),
}


def eval_samples(batch_size: int) -> int:
  """Returns the samples from one evaluation to the next."""
  return int(0.05 * (230.23 * batch_size + 3_000_000) / 25_000) * 25_000


def get_config(text=None):
  """Arguments: batch_size, one of `POINTS`; from, the published checkpoint."""
  args = base.arguments(text, batch_size=4096, **{"from": ""})
  if args.batch_size not in POINTS:
    raise ValueError(
      f"batch_size={args.batch_size} is no reference convergence point; use "
      f"one of {', '.join(map(str, POINTS))}"
    )
  rate, steps, warmup, b1, b2, _ = POINTS[args.batch_size]
  c = base.get_config()
  base.set_size(c, "large")
  if args["from"]:
    c.init_from = args["from"]
  c.seed = 12345
  c.data.seq_len = 512
  c.data.max_predictions = 76
  c.data.dupe_factor = 10
  c.data.batch_size = args.batch_size
  c.model.dtype = "bfloat16"
  c.optim.name = "lamb"
  c.optim.learning_rate = rate
  c.optim.warmup_rate = warmup / steps
  c.optim.b1, c.optim.b2, c.optim.eps = b1, b2, 1e-6
  c.optim.weight_decay = 0.01
  c.train.total_steps = steps
  c.train.stop_at = f"eval/mlm_accuracy>={TARGET}"
  c.train.trackers = ("mlperf",)
  c.train.log_every_steps = 10
  c.eval.every_steps = max(1, eval_samples(args.batch_size) // args.batch_size)
  c.eval.max_examples = 10_000
  c.eval.batch_size = 1_000
  c.checkpoint.every_steps = 0
  c.checkpoint.best_metric = ""
  return c
