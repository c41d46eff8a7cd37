"""Named entities: the grid that the paper fine-tunes over, five seeds.

  bert-jax --mode=sweep --workdir=runs/ner \
    --config=experiments/ner/sweep.py:from=WEIGHTS,data=DATA,task=conll2003

WEIGHTS as for configs/finetune.py, of a cased model; DATA has the files in
CoNLL format. The paper gives each sentence the maximal context of its document
(section 5.3), here rows of 512 tokens (`seq_len` where the encoder takes
fewer); batch sizes 16 and 32, learning rates 5e-5, 3e-5 and 2e-5, and 2 to 4
epochs (appendix A.3); scores are means of five seeds.
"""

from bert_jax.configs import base
from bert_jax.sweeps import sweep

BATCH_SIZES = (16, 32)
LEARNING_RATES = (5e-5, 3e-5, 2e-5)
EPOCHS = (2.0, 3.0, 4.0)


def get_config(text=None):
  """Arguments: from, data, task, seeds, context, seq_len, dtype."""
  args = base.arguments(
    text, data="data/ner", task="conll2003", seeds=5, context="document",
    seq_len=512, dtype="float32", **{"from": ""},
  )  # fmt: skip
  return sweep.make(
    sweep.trial(
      f"configs/finetune.py:task={args.task},from={args['from']}",
      {
        "task.dir": args.data,
        "task.context": args.context,
        "data.seq_len": args.seq_len,
        "model.dtype": args.dtype,
        "data.batch_size": size,
        "optim.learning_rate": rate,
        "train.num_epochs": epochs,
        "seed": seed,
      },
    )
    for size in BATCH_SIZES
    for rate in LEARNING_RATES
    for epochs in EPOCHS
    for seed in range(args.seeds)
  )
