"""The same fine-tuning in another library: Hugging Face's BERT, under torch.

  python -m experiments.minilm.reference --data=DATA --seeds=3 mrpc cola

For each task and seed, the weights of runs/minilm (`make minilm`) are trained
by the recipe of run.py and scored on the whole development set. A trial that is
done is not run again: its record is in reference/ beside this file. The table
of run.py shows both.

Of ours are the token ids, the order of the examples, the settings and the
scores. Model, dropout and gradients are the library's, and the optimizer of the
original is written out again. The gradients of a batch are added up over parts
of like lengths, each padded to its longest: the same sum for less time.
Needs torch and transformers beside the package.
"""

import argparse
import importlib.metadata
import json
import os
from pathlib import Path
import sys
import time
from typing import Any

import numpy as np
import torch
import transformers

from bert_jax.data import orders
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.training import jobs
from configs import finetune
from experiments.minilm import run as ours

HERE = Path(__file__).parent
# Of a batch: its gradients are added up over so many.
NUM_PARTS = 4
PACKAGES = ("torch", "transformers", "numpy", "scikit-learn", "tokenizers")


class BertAdam(torch.optim.Optimizer):
  """Adam of the original code: no bias correction, decay beside the direction.

  Source: google-research/bert optimization.py:119-151.
  """

  def __init__(self, params, *, b1, b2, eps):
    super().__init__(params, {"lr": 0.0, "b1": b1, "b2": b2, "eps": eps})

  @torch.no_grad()
  def step(self, closure=None):
    assert closure is None  # the loss is not computed again
    for group in self.param_groups:
      for param in group["params"]:
        state = self.state[param]
        if not state:
          state["mean"] = torch.zeros_like(param)
          state["square"] = torch.zeros_like(param)
        mean, square = state["mean"], state["square"]
        mean.lerp_(param.grad, 1 - group["b1"])
        square.mul_(group["b2"])
        square.addcmul_(param.grad, param.grad, value=1 - group["b2"])
        # param - lr * (mean / (sqrt(square) + eps) + weight_decay * param)
        param.mul_(1 - group["lr"] * group["weight_decay"])
        param.addcdiv_(
          mean, square.sqrt().add_(group["eps"]), value=-group["lr"]
        )


def learning_rate(step, total_steps, peak, warmup_rate):
  """The original's, with its jump; see google-research/bert optimization.py."""
  warmup_steps = int(warmup_rate * total_steps)
  if step < warmup_steps:
    return peak * step / warmup_steps
  return peak * (1 - step / total_steps)


def make_model(config, num_labels):
  """The library's classifier; what the weights lack is drawn as we draw it."""
  # Its types say nothing of `output_loading_info`.
  library: Any = transformers.BertForSequenceClassification
  model, found = library.from_pretrained(
    config.init_from,
    num_labels=num_labels,
    hidden_dropout_prob=config.model.dropout_rate,
    attention_probs_dropout_prob=config.model.attention_dropout_rate,
    output_loading_info=True,
  )
  missing = set(found["missing_keys"])
  if missing - {"classifier.weight", "classifier.bias"}:
    raise SystemExit(f"{config.init_from} has no {', '.join(sorted(missing))}")
  if missing:
    stddev = config.model.init_stddev
    torch.nn.init.trunc_normal_(
      model.classifier.weight, std=stddev, a=-2 * stddev, b=2 * stddev
    )
    torch.nn.init.zeros_(model.classifier.bias)
  return model


def make_optimizer(model, settings):
  """Decay of all but biases and LayerNorms."""
  groups: dict[bool, list] = {True: [], False: []}
  for name, param in model.named_parameters():
    groups["bias" not in name and "LayerNorm" not in name].append(param)
  return BertAdam(
    [
      {"params": groups[True], "weight_decay": settings.weight_decay},
      {"params": groups[False], "weight_decay": 0.0},
    ],
    b1=settings.b1,
    b2=settings.b2,
    eps=settings.eps,
  )


def make_batch(features, units, pad_id):
  """Rows of some examples, padded to the longest: the model's inputs."""
  spans = [features.offsets[unit : unit + 2] for unit in units]
  shape = (len(units), max(end - start for start, end in spans))
  ids = np.full(shape, pad_id, np.int64)
  mask, segments = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
  for row, (start, end) in enumerate(spans):
    ids[row, : end - start] = features.token_ids[start:end]
    segments[row, : end - start] = features.segment_ids[start:end]
    mask[row, : end - start] = 1
  labels = features.label[units]
  kind = np.float32 if labels.dtype.kind == "f" else np.int64
  arrays = {
    "input_ids": ids, "attention_mask": mask, "token_type_ids": segments,
    "labels": np.asarray(labels, kind),
  }  # fmt: skip
  return {name: torch.from_numpy(array) for name, array in arrays.items()}


def parts(features, units):
  """Cuts the examples of a batch into parts of like lengths."""
  shortest_first = units[np.argsort(features.lengths[units], kind="stable")]
  return np.array_split(shortest_first, min(NUM_PARTS, len(units)))


def train(job, num_steps=None):
  """Trains on a job's examples in its order.

  Args:
    job: of a task that classifies or scores.
    num_steps: stop after so many of its steps; None = all.

  Returns:
    The model, and the loss of every step.
  """
  config, settings = job.config, job.config.optim
  torch.manual_seed(config.seed)
  model = make_model(config, job.objective.head.width or len(job.task.labels))
  optimizer = make_optimizer(model, settings)
  features = job.split(job.task.train_split).features
  order = orders.Order(len(features), config.seed)
  losses = []
  model.train()
  for step in range(job.total_steps if num_steps is None else num_steps):
    size = config.data.batch_size
    units, _ = order(step * size + np.arange(size))
    for group in optimizer.param_groups:
      group["lr"] = learning_rate(
        step, job.total_steps, settings.learning_rate, settings.warmup_rate
      )
    optimizer.zero_grad()
    losses.append(0.0)
    for part in parts(features, units):
      batch = make_batch(features, part, job.tokenizer.pad_id)
      loss = model(**batch).loss * (len(part) / size)
      loss.backward()
      losses[-1] += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    optimizer.step()
    if (step + 1) % 50 == 0:
      mean = np.mean(losses[-50:])
      print(f"step {step + 1} of {job.total_steps}: {mean:.4f}", flush=True)
  return model, losses


def evaluate(job, model):
  """The metrics of a task over every example of its development set."""
  split = job.split(job.eval_splits[0])
  features = split.features
  model.eval()
  outputs, total = [], 0.0
  with torch.no_grad():
    for start in range(0, len(features), 32):
      units = np.arange(start, min(start + 32, len(features)))
      batch = make_batch(features, units, job.tokenizer.pad_id)
      result = model(**batch)
      outputs.append(result.logits.numpy())
      total += result.loss.item() * len(units)
  predictions = job.objective.decode(
    job.task, features, np.concatenate(outputs)
  )
  found = job.objective.score(job.task, predictions, split.examples)
  found["loss"] = total / len(features)
  return {f"eval/{name}": value for name, value in found.items()}


def run_trial(task, seed, data):
  """Trains and evaluates; returns the record."""
  config = finetune.get_config(f"task={task},from={ours.WEIGHTS}")
  config.update_from_flattened_dict(ours.settings(task, seed, data))
  job, _ = jobs.open_job(config, "")
  start = time.monotonic()
  model, _ = train(job)
  secs = time.monotonic() - start
  commit, dirty = runs.commit()
  return {
    "task": task, "seed": seed, "final": evaluate(job, model),
    "train_secs": secs, "total_steps": job.total_steps,
    "parts_of_a_batch": NUM_PARTS,
    "run": {
      "argv": ["python", "-m", "experiments.minilm.reference", *sys.argv[1:]],
      "commit": commit, "dirty": dirty, "data_hash": job.data_hash,
      "config": settings.plain(job.config),
      "threads": torch.get_num_threads(),
      "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
    },
  }  # fmt: skip


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
    "tasks", nargs="+", choices=["cola", "mrpc", "rte", "stsb"]
  )
  parser.add_argument("--data", default="data")
  parser.add_argument("--seeds", type=int, default=1)
  args = parser.parse_args(argv)
  for seed in range(args.seeds):
    for task in args.tasks:
      path = HERE / "reference" / f"{task}-{seed}.json"
      if path.exists():
        continue
      print(f"== {path.stem}", flush=True)
      record = run_trial(task, seed, args.data)
      path.parent.mkdir(exist_ok=True)
      path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
      print(json.dumps(record["final"], sort_keys=True), flush=True)
  return os.EX_OK


if __name__ == "__main__":
  sys.exit(main())
