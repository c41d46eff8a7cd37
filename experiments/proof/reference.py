"""Rules out a fault: PyTorch trains the same encoder from the same batches.

  python -m experiments.proof.reference --data=runs/proof/data --steps=1000 \
    --workdir=runs/proof/reference

2 layers x 128 of BERT's blocks. Both sides begin with the same weights, see the
same masked rows in the same order, and use AdamW with the same learning rates.
WORKDIR/losses.jsonl has the mean losses of every 50 steps, and WORKDIR/ours and
WORKDIR/theirs are what was learned, to be fine-tuned with tune.py. Needs the
extra `reference`.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from bert_jax import weights
from bert_jax.data import batching
from bert_jax.runtime import metrics_log
from bert_jax.training import optim
from bert_jax.training import session
from configs import small
from experiments.bench import train as bench_train

_EVERY = 50
_CHANGES = {
  "optim.learning_rate": 2e-3,
  "optim.schedule": "linear",
  "optim.cooldown_rate": 0.0,
  "optim.warmup_rate": 0.1,
  "model.pooling": "first",
  "data.batch_size": 16,
  "train.log_every_steps": _EVERY,
}


def make_config(data: str, steps: int) -> Any:
  """Returns the config of both sides."""
  config = small.get_config(
    f"blocks=bert,layers=2,hidden=128,total_steps={steps}"
  )
  for name, value in _CHANGES.items():
    group, key = name.split(".")
    config[group][key] = value
  config.data.dir = data
  return config


def train_ours(data: str, steps: int, workdir: str) -> None:
  """Runs or resumes the training by this project."""
  subprocess.run(
    [
      sys.executable, "-m", "bert_jax.main", "train",
      f"--config=small:blocks=bert,layers=2,hidden=128,total_steps={steps}",
      *(f"--config.{key}={value}" for key, value in _CHANGES.items()),
      f"--config.data.dir={data}", f"--workdir={workdir}",
    ],
    check=True,
  )  # fmt: skip


def write_start(config: Any, ours: str, target: str) -> None:
  """Writes the weights that our run began with in the format of transformers.

  Args:
    config: the config of the run.
    ours: the workdir of the run, which says the shape and has the vocabulary.
    target: the folder to write.
  """
  opened = session.open_session(config, target + ".unused")
  with jax.set_mesh(opened.mesh):
    params = jax.device_get(opened.fresh_state().params)
  found = weights.read(ours)
  found = dataclasses.replace(found, params=dict(params))
  shutil.rmtree(target, ignore_errors=True)
  weights.write(found, target, "huggingface")


def train_theirs(config: Any, start: str, target: str) -> list[float]:
  """Trains the model of transformers; returns the loss of every step."""
  import torch
  import transformers

  torch.set_num_threads(2)
  model = transformers.BertForMaskedLM.from_pretrained(
    start, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
  )
  plain = [
    p for n, p in model.named_parameters() if "LayerNorm" in n or "bias" in n
  ]
  ids = {id(p) for p in plain}
  groups = [
    {"params": plain, "weight_decay": 0.0},
    {
      "params": [p for p in model.parameters() if id(p) not in ids],
      "weight_decay": config.optim.weight_decay,
    },
  ]
  optimizer = torch.optim.AdamW(
    groups,
    betas=(config.optim.b1, config.optim.b2),
    eps=config.optim.eps,
  )
  steps = config.train.total_steps
  _, schedule = optim.make_optimizer(config.optim, steps)
  batches = batching.PretrainBatches(
    config.data, "train", seed=config.seed,
    batch_size=config.data.batch_size, num_steps=steps,
  )  # fmt: skip
  losses = []
  model.train()
  for step in range(steps):
    for group in optimizer.param_groups:
      group["lr"] = float(schedule(step))
    loss = model(**_inputs(batches[step])).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
    optimizer.step()
    losses.append(loss.item())
    if (step + 1) % _EVERY == 0:
      print(step + 1, statistics.mean(losses[-_EVERY:]), flush=True)
  shutil.copytree(start, target, dirs_exist_ok=True)
  model.save_pretrained(target, safe_serialization=True)
  return losses


def _inputs(batch: dict[str, np.ndarray]) -> dict[str, Any]:
  """Returns a batch as the model of transformers takes it."""
  import torch

  fields = bench_train.fields_of(batch)
  return {k: torch.tensor(v, dtype=torch.long) for k, v in fields.items()}


def main(argv: list[str] | None = None) -> None:
  """Trains both sides, and writes the losses side by side."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data", required=True)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--steps", type=int, default=1000)
  args = parser.parse_args(argv)
  ours, start, theirs = (
    os.path.join(args.workdir, name) for name in ("ours", "start", "theirs")
  )
  config = make_config(args.data, args.steps)
  train_ours(args.data, args.steps, ours)
  write_start(config, ours, start)
  losses = train_theirs(config, start, theirs)
  rows = []
  for row in metrics_log.read_metrics(ours):
    if "train/loss" in row:
      end = row["step"]
      mean = statistics.mean(losses[max(end - _EVERY, 0) : end])
      rows.append({"step": end, "ours": row["train/loss"], "theirs": mean})
  with open(os.path.join(args.workdir, "losses.jsonl"), "w") as f:
    f.writelines(json.dumps(row) + "\n" for row in rows)
  print(json.dumps(rows[-1]))


if __name__ == "__main__":
  main()
