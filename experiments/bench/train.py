"""Pre-training step: this project against the PyTorch reference, on the CPU.

Both sides run forward, backward, clipping by the global norm and an Adam update
in float32 with dropout 0.1, on the same tokens, with the same activation and
the same number of threads. The reference is `BertForPreTraining` of Hugging
Face transformers with `sdpa` attention and the fused `AdamW`; its labels are
-100 outside of the masked positions. The two take turns in one process, so that
a busy machine slows both down.

  python experiments/bench/train.py --size=4x512 --rounds=5

Prints a table of tokens/s per round and, as the last line, the same as JSON.
Needs torch and transformers beside the package.
"""

import argparse
import json
import os
from pathlib import Path
import statistics
import sys
import time

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# (num_layers, hidden_size, num_heads, batch_size)
SIZES = {
  "2x128": (2, 128, 2, 4),  # to try the script, not to report
  "4x512": (4, 512, 8, 16),
  "base": (12, 768, 12, 8),
}
VOCAB_SIZE, LENGTH, NUM_MASKED, MAX_LEN = 30522, 128, 20, 512
# Ours to theirs: the same function, each side's own fastest form of it.
ACTIVATIONS = {"gelu_erf": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def parse_args(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--size", choices=SIZES, default="4x512")
  parser.add_argument(
    "--rounds", type=int, default=5, help="turns of each side"
  )
  parser.add_argument(
    "--steps",
    type=int,
    default=3,
    help="steps in a turn; the median of them counts",
  )
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--hidden_act", choices=ACTIVATIONS, default="gelu_tanh")
  parser.add_argument("--xla_flags", default="", help="appended to XLA_FLAGS")
  args = parser.parse_args(argv)
  if args.rounds < 1 or args.steps < 1:
    parser.error(
      f"--rounds={args.rounds} --steps={args.steps}: both must be at least 1"
    )
  return args


def limit_threads(num_threads):
  """Pins the process to `num_threads` cores; XLA makes a thread per core.

  Must run before jax and torch are imported.
  """
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < num_threads:
    raise SystemExit(
      f"--threads={num_threads}, but only {len(cores)} cores "
      f"may be used here; pass --threads={len(cores)}"
    )
  os.sched_setaffinity(0, cores[:num_threads])
  os.environ["OMP_NUM_THREADS"] = str(num_threads)


def make_batch(batch_size):
  """Returns numpy inputs of which every token is real, by batch key."""
  import numpy as np

  rng = np.random.default_rng(0)
  shape = (batch_size, LENGTH)
  positions = [
    np.sort(rng.choice(LENGTH, NUM_MASKED, replace=False))
    for _ in range(batch_size)
  ]
  segments = np.repeat([[0, 1]], LENGTH // 2, axis=1)
  batch = {
    "input_ids": rng.integers(0, VOCAB_SIZE, shape),
    "input_mask": np.ones(shape),
    "segment_ids": np.repeat(segments.reshape(1, -1), batch_size, axis=0),
    "masked_positions": np.stack(positions),
    "masked_ids": rng.integers(0, VOCAB_SIZE, (batch_size, NUM_MASKED)),
    "nsp_label": rng.integers(0, 2, batch_size),
  }
  return {name: value.astype(np.int32) for name, value in batch.items()}


def make_ours(args, batch):
  """Returns a function that runs one step of this project and its loss."""
  import jax
  import jax.numpy as jnp

  from bert_jax import objectives
  from bert_jax import optim
  from bert_jax import steps
  from bert_jax.models import bert
  from configs import base

  config = base.get_config()
  num_layers, hidden_size, num_heads, batch_size = SIZES[args.size]
  config.model.num_layers = num_layers
  config.model.hidden_size = hidden_size
  config.model.num_heads = num_heads
  config.model.mlp_dim = 4 * hidden_size
  config.model.hidden_act = args.hidden_act
  objective = objectives.get_objective("mlm_nsp")
  model = objective.make_model(bert.ModelConfig.from_config(config.model))
  optimizer, schedule = optim.make_optimizer(config.optim, total_steps=1_000)
  batch = {name: jnp.asarray(value) for name, value in batch.items()}
  batch["masked_weights"] = jnp.ones(batch["masked_ids"].shape)
  batch["weight"] = jnp.ones(batch_size)
  init_rng, dropout_rng = jax.random.split(jax.random.key(0))
  state = jax.jit(
    lambda: steps.init_state(model, objective, optimizer, init_rng, batch)
  )()
  step = jax.jit(
    steps.make_train_step(model, objective, optimizer, schedule, dropout_rng),
    donate_argnums=0,
  )

  def run():
    nonlocal state
    state, metrics = step(state, batch)
    return float(metrics["loss"])

  return run


def make_reference(args, batch):
  """Returns a function that runs one step of the reference and its loss."""
  import numpy as np
  import torch
  import transformers

  torch.set_num_threads(args.threads)
  torch.manual_seed(0)
  num_layers, hidden_size, num_heads, _ = SIZES[args.size]
  model = transformers.BertForPreTraining(
    transformers.BertConfig(
      vocab_size=VOCAB_SIZE,
      num_hidden_layers=num_layers,
      hidden_size=hidden_size,
      num_attention_heads=num_heads,
      intermediate_size=4 * hidden_size,
      max_position_embeddings=MAX_LEN,
      hidden_act=ACTIVATIONS[args.hidden_act],
      hidden_dropout_prob=0.1,
      attention_probs_dropout_prob=0.1,
      attn_implementation="sdpa",
    )
  )
  model.train()
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True
  )
  labels = np.full(batch["input_ids"].shape, -100)
  np.put_along_axis(
    labels, batch["masked_positions"], batch["masked_ids"], axis=1
  )
  inputs = {
    "input_ids": batch["input_ids"],
    "attention_mask": batch["input_mask"],
    "token_type_ids": batch["segment_ids"],
    "labels": labels,
    "next_sentence_label": batch["nsp_label"],
  }
  inputs = {
    name: torch.tensor(value, dtype=torch.long)
    for name, value in inputs.items()
  }

  def run():
    optimizer.zero_grad(set_to_none=True)
    loss = model(**inputs).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()

  return run


def measure(run, num_steps):
  """Returns the median seconds of `num_steps` calls."""
  secs = []
  for _ in range(num_steps):
    start = time.perf_counter()
    run()
    secs.append(time.perf_counter() - start)
  return statistics.median(secs)


def main(argv=None):
  args = parse_args(argv)
  limit_threads(args.threads)
  os.environ["JAX_PLATFORMS"] = "cpu"
  flags = f"{os.environ.get('XLA_FLAGS', '')} {args.xla_flags}".strip()
  os.environ["XLA_FLAGS"] = flags
  batch_size = SIZES[args.size][-1]
  batch = make_batch(batch_size)
  num_tokens = batch_size * LENGTH
  sides = {"ours": make_ours(args, batch), "hf": make_reference(args, batch)}
  for run in sides.values():  # compile, warm the caches
    run(), run()

  rates = {name: [] for name in sides}
  print(
    f"size {args.size}, {batch_size} x {LENGTH} tokens, "
    f"{args.hidden_act}, {args.threads} threads; tokens/s"
  )
  print(f"{'round':>6}{'ours':>10}{'hf':>10}{'ratio':>10}")
  for i in range(args.rounds):
    for name, run in sides.items():
      rates[name].append(num_tokens / measure(run, args.steps))
    ours, theirs = rates["ours"][-1], rates["hf"][-1]
    print(
      f"{i:>6}{ours:>10.0f}{theirs:>10.0f}{ours / theirs:>10.2f}", flush=True
    )
  rates["ratio"] = [a / b for a, b in zip(*rates.values(), strict=True)]

  summary = {
    name: {
      "median": round(statistics.median(values), 3),
      "min": round(min(values), 3),
      "max": round(max(values), 3),
    }
    for name, values in rates.items()
  }
  for statistic in ("median", "min", "max"):
    ours, theirs, ratio = (summary[name][statistic] for name in rates)
    print(f"{statistic:>6}{ours:>10.0f}{theirs:>10.0f}{ratio:>10.2f}")
  print(
    json.dumps(
      {
        "size": args.size,
        "hidden_act": args.hidden_act,
        "threads": args.threads,
        "rounds": args.rounds,
        "steps": args.steps,
        "xla_flags": flags,
        "unit": "tokens/s",
        **summary,
      }
    )
  )


if __name__ == "__main__":
  main()
