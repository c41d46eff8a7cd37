"""Pre-training step: this project against the PyTorch reference, on the CPU.

Both sides run forward, backward, clipping by the global norm and an Adam update
in float32 with dropout 0.1, on the same tokens, with the same activation and
the same number of threads. The reference is `BertForPreTraining` of Hugging
Face transformers with `sdpa` attention and the fused `AdamW`; its labels are
-100 outside of the masked positions. Each side has a process of its own, as its
user would start it; the two take turns.

A busy machine slows the reference down more than us, because its threads wait
for each other at every operation. So the table has a column "others", the share
of the cores' time that other processes took: where it is not small, the ratio
says little.

--compare=equal has rows of 128 tokens without padding on both sides. With
--compare=packed both train on the same examples of a text cut into documents
as long as Wikipedia's (wikipedia.py): we with several to a row of 512, the
reference with each padded to 512 in a row of its own. Then only tokens that
are no padding count.

  python experiments/bench/train.py --size=4x512 --rounds=5
  python experiments/bench/train.py --size=4x512 --compare=packed

Prints a table of tokens/s per round and, as the last line, a summary as JSON.
Needs torch and transformers beside the package.
"""

import argparse
import json
import os
from pathlib import Path
import statistics
import sys
import tempfile
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from experiments.bench import prepare as bench_prepare
from experiments.bench import sides as sides_lib

# (num_layers, hidden_size, num_heads, batch_size)
SIZES = {
  "2x128": (2, 128, 2, 4),  # to try the script, not to report
  "4x512": (4, 512, 8, 16),
  "base": (12, 768, 12, 8),
}
VOCAB_SIZE, LENGTH, NUM_MASKED, MAX_LEN = 30522, 128, 20, 512
# Packed: sequences a row at most, and batches of which one is chosen.
MAX_SEQUENCES, NUM_CANDIDATES = 8, 64
# Ours to theirs: the same function, each side's own fastest form of it.
ACTIVATIONS = {"gelu_erf": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def parse_args(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--size", choices=SIZES, default="4x512")
  parser.add_argument("--compare", choices=("equal", "packed"), default="equal")
  parser.add_argument(
    "--input", default=bench_prepare.INPUT, help="text of --compare=packed"
  )
  parser.add_argument("--vocab", default=bench_prepare.VOCAB)
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
  parser.add_argument("--side", choices=("ours", "hf"), help=argparse.SUPPRESS)
  parser.add_argument("--batch", help=argparse.SUPPRESS)  # a file
  args = parser.parse_args(argv)
  if args.rounds < 1 or args.steps < 1:
    parser.error(
      f"--rounds={args.rounds} --steps={args.steps}: both must be at least 1"
    )
  return args


def equal_batch(batch_size):
  """Returns numpy inputs of which every token is real, by batch key."""
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
  batch = {name: value.astype(np.int32) for name, value in batch.items()}
  ones = np.ones(batch["masked_ids"].shape, np.float32)
  return batch | {"masked_weights": ones, "weight": ones[:, 0]}


def packed_batch(args, num_rows, folder):
  """Returns a packed batch of the training split, as training gets it.

  It is that one of the first, whose sequences padded would be useful to a
  share nearest to that of all examples.
  """
  from bert_jax.data import batching
  from bert_jax.data.store import indexes
  from bert_jax.data.store import records
  from experiments.bench import packing

  text, vocab, _ = bench_prepare.default_corpus(args.input, args.vocab, folder)
  data = packing.make_data(text, vocab, folder, [("pairs", MAX_LEN)])
  settings = packing.make_config("", data, "pairs", MAX_LEN, MAX_SEQUENCES).data
  batches = batching.PretrainBatches(
    settings, "train", seed=0, batch_size=num_rows, num_steps=NUM_CANDIDATES
  )
  name = records.examples_name(settings)
  histogram = indexes.LengthIndex(data, name, "train").histogram
  wanted = (histogram @ np.arange(MAX_LEN + 1)) / histogram.sum() / MAX_LEN

  def distance(batch):
    return abs(batch["input_mask"].sum() / batch["weight"].sum() / MAX_LEN
               - wanted)  # fmt: skip

  batch = min((batches[i] for i in range(NUM_CANDIDATES)), key=distance)
  count = int(batch["weight"].sum())
  print(
    f"{num_rows} rows of {MAX_LEN} hold {count} sequences, "
    f"{batch['input_mask'].mean():.1%} useful; padded "
    f"{batch['input_mask'].sum() / count / MAX_LEN:.1%}, of all examples "
    f"{wanted:.1%}"
  )
  return batch


def fields_of(batch):
  """Returns inputs and labels [B, L] of a batch by the names of the reference.

  Args:
    batch: by batch key, packed or not.
  """
  labels = np.full(batch["input_ids"].shape, -100)
  row, slot = np.nonzero(batch["masked_weights"])
  labels[row, batch["masked_positions"][row, slot]] = batch["masked_ids"][
    row, slot
  ]
  return {
    "input_ids": batch["input_ids"],
    "attention_mask": batch["input_mask"],
    "token_type_ids": batch["segment_ids"],
    "labels": labels,
  }


def one_a_row(batch):
  """Returns what the reference takes: each sequence in a row, with labels.

  Args:
    batch: by batch key, packed or not.
  """
  fields = fields_of(batch)
  if "sequence_ids" not in batch:
    return fields | {"next_sentence_label": batch["nsp_label"]}
  row, slot = np.nonzero(batch["weight"])
  own = batch["sequence_ids"][row] == slot[:, None] + 1  # [N, L]
  sequence, column = np.nonzero(own)
  source = (row[sequence], column)
  place = (sequence, batch["positions"][source])
  found = {}
  for name, value in fields.items():
    found[name] = np.full(own.shape, -100 if name == "labels" else 0)
    found[name][place] = value[source]
  return found | {"next_sentence_label": batch["nsp_label"][row, slot]}


def make_ours(args, batch):
  """Returns a function that runs one step of this project and its loss."""
  from configs import base

  config = base.get_config()
  num_layers, hidden_size, num_heads, _ = SIZES[args.size]
  config.model.num_layers = num_layers
  config.model.hidden_size = hidden_size
  config.model.num_heads = num_heads
  config.model.mlp_dim = 4 * hidden_size
  config.model.hidden_act = args.hidden_act
  return sides_lib.pretraining_step(config, batch)


def make_reference(args, batch):
  """Returns a function that runs one step of the reference and its loss."""
  import torch
  import transformers

  torch.set_num_threads(args.threads)
  torch.manual_seed(0)
  num_layers, hidden_size, num_heads, _ = SIZES[args.size]
  # Its types lack keys that it takes.
  make_config: Any = transformers.BertConfig
  model = transformers.BertForPreTraining(
    make_config(
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
  inputs = {
    name: torch.tensor(value, dtype=torch.long)
    for name, value in one_a_row(batch).items()
  }

  return lambda: sides_lib.torch_step(model, optimizer, inputs)


def main(argv=None):
  argv = sys.argv[1:] if argv is None else list(argv)
  args = parse_args(argv)
  os.environ["JAX_PLATFORMS"] = "cpu"
  flags = f"{os.environ.get('XLA_FLAGS', '')} {args.xla_flags}".strip()
  if args.side:
    os.environ["XLA_FLAGS"] = flags
    sides_lib.limit_threads(args.threads)
    with np.load(args.batch) as batch:
      return sides_lib.serve(SIDES[args.side](args, dict(batch)))
  batch_size = SIZES[args.size][-1]
  with tempfile.TemporaryDirectory() as folder:
    if args.compare == "packed":
      batch = packed_batch(args, batch_size // 2, folder)
    else:
      batch = equal_batch(batch_size)
    path = os.path.join(folder, "batch.npz")
    np.savez(path, **batch)
    return compare(args, [*argv, f"--batch={path}"], flags, batch)


def compare(args, argv, flags, batch):
  """Lets the two sides take turns on a batch and prints what they did."""
  sides = sides_lib.start(__file__, argv, ("ours", "hf"))
  num_tokens = int(batch["input_mask"].sum())
  table: dict[str, list[float]] = {
    name: [] for name in ("ours", "hf", "ratio", "others")
  }
  rows, length = batch["input_ids"].shape
  print(
    f"size {args.size}, {rows} x {length} tokens, {args.hidden_act}, "
    f"{args.threads} threads; {'useful ' * (num_tokens < rows * length)}"
    "tokens/s"
  )
  print("round".rjust(8), *(name.rjust(9) for name in table))

  def show(title, ours, theirs, ratio, others):
    print(
      f"{title:>8} {ours:>9.0f} {theirs:>9.0f} {ratio:>9.2f} {others:>9.0%}",
      flush=True,
    )

  for i in range(args.rounds):
    shares = []
    for name, side in sides.items():
      secs, share = side.measure(args.steps)
      table[name].append(num_tokens / statistics.median(secs))
      shares.append(share)
    table["ratio"].append(table["ours"][-1] / table["hf"][-1])
    table["others"].append(max(0.0, *shares))
    show(str(i), *(column[-1] for column in table.values()))
  for side in sides.values():
    side.close()
  summary: dict[str, dict[str, float]] = {}
  for statistic in (statistics.median, min, max):
    values = [statistic(column) for column in table.values()]
    show(statistic.__name__, *values)
    for name, value in zip(table, values, strict=True):
      summary.setdefault(name, {})[statistic.__name__] = round(value, 3)
  print(
    json.dumps(
      {k: v for k, v in vars(args).items() if k not in HIDDEN}
      | {"xla_flags": flags, "unit": "useful tokens/s"}
      | summary
    )
  )
  return None


SIDES = {"ours": make_ours, "hf": make_reference}
# Arguments that say nothing about what was measured.
HIDDEN = ("side", "batch", "input", "vocab")

if __name__ == "__main__":
  main()
