"""Probes saved steps of pre-trained encoders, without training them further.

  python -m experiments.proof.probe --data=DATA/glue --output=probes.jsonl \
    --linear=sst2 --similarity=stsb --finetune=sst2 RUN RUN ...

Each RUN gives a line for its newest checkpoint, or for `--step`: held-out loss
and accuracy, the scores of the probes with their baselines, and
how much better the encoder predicts a masked word that stands elsewhere in its
row, too: `copied_gain` is the loss of the other masked words minus that of
these, in nats, above what the frequencies of the words explain.
"""

import argparse
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data import batching
from bert_jax.data import orders
from bert_jax.runtime import checkpoint
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps
from bert_jax.runtime import settings
from bert_jax.training import pretraining
from bert_jax.training import probes
from bert_jax.training import session

_NUM_ROWS = 512


def copying(job: Any, params: Any) -> dict[str, float]:
  """Returns the losses of masked words that do and do not occur elsewhere.

  Words among the 200 most frequent are left out, since they occur in every row.
  Each loss is compared with that of the frequencies alone.

  Args:
    job: the pre-training.
    params: its parameters.
  """
  config = job.config
  batches = batching.PretrainBatches(
    config.data, "validation", seed=orders.EVAL_SEED, batch_size=32,
    max_examples=_NUM_ROWS,
  )  # fmt: skip
  unigram = pretraining.unigram_log_probs(
    config.data.dir, config.model.vocab_size
  )
  frequent = np.argsort(-unigram)[:200]
  apply = jax.jit(lambda params, batch: _losses(job, params, batch))
  gains: dict[bool, list[float]] = {True: [], False: []}
  for index in range(len(batches)):
    batch = batches[index]
    losses = np.asarray(apply(params, batch))
    for row, column in np.argwhere(batch["masked_weights"] > 0):
      word = batch["masked_ids"][row, column]
      if word in frequent:
        continue
      visible = batch["input_ids"][row].copy()
      visible[batch["masked_positions"][row, column]] = 0
      gain = -unigram[word] - losses[row, column]
      gains[bool((visible == word).any())].append(gain)
  return {
    "gain_seen_words": float(np.mean(gains[True])),
    "gain_unseen_words": float(np.mean(gains[False])),
    "copied_gain": float(np.mean(gains[True]) - np.mean(gains[False])),
    "share_seen": len(gains[True]) / (len(gains[True]) + len(gains[False])),
  }


def _losses(job, params, batch):
  logits = job.objective.apply(job.model, params, batch, deterministic=True)[0]
  log_probs = jax.nn.log_softmax(logits)
  picked = jnp.take_along_axis(log_probs, batch["masked_ids"][..., None], -1)
  return -picked[..., 0]


def probe(workdir: str, step: int, args: argparse.Namespace) -> dict[str, Any]:
  """Returns the line about a saved step of a run."""
  config = settings.unflatten(
    settings.flatten(settings.make_config().to_dict())
    | settings.flatten(runs.read_run(workdir)["config"])
  )
  config.probe.update(
    every_steps=1,
    dir=args.data,
    similarity=tuple(filter(None, args.similarity.split(","))),
    linear=tuple(filter(None, args.linear.split(","))),
    finetune=tuple(filter(None, args.finetune.split(","))),
    max_train_examples=args.max_train_examples,
    num_epochs=args.num_epochs,
    learning_rate=args.learning_rate,
  )
  opened = session.open_session(config, os.path.join(workdir, "probed"))
  steps = saved_steps.steps_in(os.path.join(workdir, "checkpoints"))
  chosen = step or max(steps)
  with jax.set_mesh(opened.mesh):
    fresh = opened.fresh_state().params
    wanted = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      fresh,
    )
    _, params = checkpoint.restore_params(workdir, wanted, str(chosen))
    prober = probes.Prober(opened.job, opened.mesh)
    row = {"run": os.path.basename(workdir.rstrip("/")), "step": chosen}
    row |= opened.evaluator(params)
    row |= copying(opened.job, params)
    return row | prober(params, lambda: fresh)


def main(argv: list[str] | None = None) -> None:
  """Writes a line for each run."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("runs", nargs="+")
  parser.add_argument("--data", required=True, help="folder of the tasks")
  parser.add_argument("--output", required=True, help="file to add lines to")
  parser.add_argument("--step", type=int, default=0, help="0 = the newest")
  parser.add_argument("--similarity", default="stsb")
  parser.add_argument("--linear", default="sst2")
  parser.add_argument("--finetune", default="")
  parser.add_argument("--max_train_examples", type=int, default=8000)
  parser.add_argument("--num_epochs", type=float, default=3.0)
  parser.add_argument("--learning_rate", type=float, default=3e-4)
  args = parser.parse_args(argv)
  for workdir in args.runs:
    row = probe(workdir, args.step, args)
    print(json.dumps(row, indent=1), flush=True)
    with open(args.output, "a", encoding="utf-8") as f:
      f.write(json.dumps(row) + "\n")


if __name__ == "__main__":
  main()
