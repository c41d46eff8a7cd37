"""Training steps and embeddings on an NVIDIA GPU, against torch on it.

  python experiments/bench/gpu.py                 everything, under 8 minutes
  python experiments/bench/gpu.py --cases=packed_512
  python experiments/bench/gpu.py --dry_run       tiny sizes, on the CPU

Both sides compute in bfloat16 and keep parameters and moments in float32, with
dropout 0.1 everywhere but in attention, where cuDNN has none through jax. The
reference is `BertForPreTraining` of Hugging Face transformers with `sdpa`,
autocast, `torch.compile` and the fused AdamW. A case is one of

  equal_128, equal_512     rows without padding, the same on both sides
  packed_128, packed_512   the same sequences: ours several to a row, theirs
                           each padded in a row of its own. Their lengths have
                           the quantiles that are published of BERT's examples
                           of Wikipedia (wikipedia.py), drawn with a seed
  embed                    text in, vectors out, with the same random weights;
                           the reference sorts its sentences by length

Each side is a process of its own, and the two take turns. MFU is the model
FLOPs of the sequences (bert_jax/models/flops.py), the same for both sides, over
the card's peak. What the time does not allow is left out and named.

Prints a table and, as the last line, all figures as JSON, also into --output.
Needs the extra `cuda`, torch and transformers. It was not run on a card so far.
"""

import argparse
from concurrent import futures
import contextlib
import json
import os
from pathlib import Path
import statistics
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from experiments.bench import sides as sides_lib
from experiments.bench import train as bench_train

VOCAB_SIZE, MAX_SEQUENCES, MASK_RATE = 30522, 8, 0.15
# Case -> (rows of ours, tokens of a row, whether several sequences share one).
TRAINING = {
  "equal_512": (64, 512, False),
  "packed_512": (64, 512, True),
  "equal_128": (256, 128, False),
  "packed_128": (256, 128, True),
}
CASES = (*TRAINING, "embed")
SIDES = ("ours", "torch")
# The share of examples that are shorter than a length, of pairs of up to 512.
# Source: the counts behind figure 1 of Krell et al., arXiv:2107.02027.
QUANTILES = ((0, 5), (0.05, 36), (0.25, 84), (0.5, 204), (0.75, 484),
             (0.766, 512), (1, 512))  # fmt: skip
NUM_TEXTS, MAX_WORDS = 4096, 200


def parse_args(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--size", default="base", help="base or large")
  parser.add_argument("--cases", default=",".join(CASES))
  parser.add_argument("--sides", default=",".join(SIDES))
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--steps", type=int, default=10, help="steps in a turn")
  parser.add_argument(
    "--budget_secs",
    type=int,
    default=450,
    help="no case begins that would not end by then",
  )
  parser.add_argument("--attention", default="cudnn", help="model.attention")
  parser.add_argument("--output", default="", help="a file for the figures")
  parser.add_argument("--dry_run", action="store_true",
                      help="tiny sizes, which also run on a CPU")  # fmt: skip
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  for name, known in (("cases", CASES), ("sides", SIDES)):
    chosen = getattr(args, name).split(",")
    if unknown := set(chosen) - set(known):
      parser.error(
        f"--{name}={','.join(sorted(unknown))}: use some of {','.join(known)}"
      )
    setattr(args, name, chosen)
  if min(args.rounds, args.steps, args.budget_secs) < 1:
    parser.error("--rounds, --steps and --budget_secs must be at least 1")
  if args.dry_run:
    args.size, args.rounds, args.steps = "tiny", 1, 1
  return args


# --- batches -----------------------------------------------------------------


def draw_lengths(count, longest, rng):
  """Returns lengths of sequences, cut at the length of a row."""
  shares, lengths = zip(*QUANTILES, strict=True)
  drawn = np.interp(rng.random(count), shares, lengths)
  return np.minimum(np.rint(drawn), longest).astype(int)


def pack(lengths, length, num_rows):
  """Puts sequences into rows, the longest first, each where it fits best.

  Args:
    lengths: of the sequences.
    length: L.
    num_rows: how many rows there are; what fits into none is left out.

  Returns:
    A list of lengths for each row.
  """
  rows: list[list[int]] = [[] for _ in range(num_rows)]
  free = np.full(num_rows, length)
  for size in sorted(map(int, lengths), reverse=True):
    open_rows = [
      i
      for i in range(num_rows)
      if size <= free[i] and len(rows[i]) < MAX_SEQUENCES
    ]
    if open_rows:
      best = min(open_rows, key=lambda i: free[i])
      rows[best].append(size)
      free[best] -= size
  return rows


def num_masked(length):
  """Returns how many tokens of a sequence are predicted."""
  return max(int(length * MASK_RATE), 1)


def make_config(args, case):
  """Returns the configuration of ours for a case of training."""
  from configs import gpu

  rows, length, packed = sizes_of(args, case)
  config = gpu.get_config(
    f"size={args.size},seq_len={length},rows={rows},attention={args.attention}"
  )
  config.model.attention_dropout_rate = 0.0
  config.model.vocab_size = VOCAB_SIZE
  config.data.mask_rate = MASK_RATE
  config.data.max_predictions = 0
  config.data.max_sequences = MAX_SEQUENCES if packed else 1
  return config


def sizes_of(args, case):
  """Returns the rows of ours, their tokens, and whether they are shared."""
  rows, length, packed = TRAINING[case]
  return (
    (4, min(length, 64), packed) if args.dry_run else (rows, length, packed)
  )


def make_batch(args, case):
  """Returns a batch of random tokens by batch key, numpy."""
  from bert_jax.data import batching

  data = make_config(args, case).data
  num_rows, length, packed = sizes_of(args, case)
  rng = np.random.default_rng(0)
  rows = [[length]] * num_rows
  if packed:
    drawn = draw_lengths(MAX_SEQUENCES * num_rows, length, rng)
    if args.dry_run:  # short rows, which would be full of one sequence each
      drawn = np.maximum(drawn // 4, 5)
    fits = np.cumsum(drawn) <= num_rows * length
    rows = pack(drawn[fits], length, num_rows)
  shapes = batching.pretraining_shapes(data, num_rows)
  batch = {key: np.zeros(*shape) for key, shape in shapes.items()}
  slots = batch["masked_ids"].shape[1]
  for row, sizes in enumerate(rows):
    masked = []
    for number, size in enumerate(sizes):
      start = sum(sizes[:number])
      place = slice(start, start + size)
      batch["input_ids"][row, place] = rng.integers(5, VOCAB_SIZE, size)
      batch["input_mask"][row, place] = 1
      batch["segment_ids"][row, place] = np.arange(size) >= size // 2
      chosen = rng.choice(size, num_masked(size), replace=False)
      masked += list(start + chosen)
      if packed:
        batch["sequence_ids"][row, place] = number + 1
        batch["positions"][row, place] = np.arange(size)
        batch["cls_positions"][row, number] = start
        batch["nsp_label"][row, number] = rng.integers(2)
        batch["weight"][row, number] = 1
    assert len(masked) <= slots, (len(masked), slots)
    masked.sort()
    batch["masked_positions"][row, : len(masked)] = masked
    batch["masked_ids"][row, : len(masked)] = rng.integers(
      5, VOCAB_SIZE, len(masked)
    )
    batch["masked_weights"][row, : len(masked)] = 1
  if not packed:
    batch["nsp_label"][:] = rng.integers(0, 2, num_rows)
    batch["weight"][:] = 1
  return batch


def needed_flops(args, case, batch):
  """Returns the model FLOPs of a step, of the sequences alone.

  Every row counts as what it holds: padding needs nothing.
  """
  from bert_jax.models import flops

  config = make_config(args, case)
  ids = batch.get("sequence_ids", batch["input_mask"])
  lengths = [
    int(count)
    for row in ids
    for count in np.unique(row[row > 0], return_counts=True)[1]
  ]
  return sum(
    lengths.count(length)
    * flops.pretrain_step_flops(config.model, 1, length, num_masked(length))
    for length in set(lengths)
  )


# --- ours --------------------------------------------------------------------


def train_ours(args, case, batch):
  """Returns a function that runs one step of this project."""
  config = make_config(args, case)
  return sides_lib.pretraining_step(config, batch, "unsafe_rbg")


def embed_ours(args):
  """Returns a function that embeds all texts by this project."""
  from bert_jax.prediction import predict
  from configs import predict as predict_config

  config = predict_config.get_config("kind=embed,fields=mean")
  config.model.dtype = "bfloat16"
  config.model.attention = args.attention
  config.predict.batch_tokens = 2048 if args.dry_run else 65_536
  predictor = predict.Predictor.load(os.path.join(args.folder, "hf"), config)
  texts = read_texts(args)
  return lambda: sum(1 for _ in predictor({"text": text} for text in texts))


# --- the reference -----------------------------------------------------------


def _bert_config(args):
  """Returns the reference's config of the same model."""
  import transformers

  from configs import base

  config = base.get_config()
  base.set_size(config, args.size)
  make: Any = transformers.BertConfig  # its types lack keys that it takes
  return make(
    vocab_size=VOCAB_SIZE,
    num_hidden_layers=config.model.num_layers,
    hidden_size=config.model.hidden_size,
    num_attention_heads=config.model.num_heads,
    intermediate_size=config.model.mlp_dim,
    hidden_act="gelu",
    attention_probs_dropout_prob=0.0,
    attn_implementation="sdpa",
  )


def _torch_device():
  import torch

  return "cuda" if torch.cuda.is_available() else "cpu"


def train_torch(args, case, batch):
  """Returns a function that runs one step of the reference."""
  import torch
  import transformers

  torch.manual_seed(0)
  torch.set_float32_matmul_precision("high")
  device = _torch_device()
  model: Any = transformers.BertForPreTraining(_bert_config(args)).to(device)
  model.train()
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01, fused=True
  )
  inputs = {
    name: torch.tensor(value, dtype=torch.long, device=device)
    for name, value in bench_train.one_a_row(batch).items()
  }
  if case.startswith("equal"):
    del inputs["attention_mask"]  # nothing is padding: its fastest attention
  forward: Any = model if args.dry_run else torch.compile(model)

  def run():
    optimizer.zero_grad(set_to_none=True)
    # Many CPUs compute bfloat16 slowly.
    with torch.autocast(device, torch.bfloat16, enabled=not args.dry_run):
      loss = forward(**inputs).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()

  return run


def embed_torch(args):
  """Returns a function that embeds all texts by the reference."""
  import torch
  import transformers

  folder = os.path.join(args.folder, "hf")
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  device, texts = _torch_device(), read_texts(args)
  model: Any = transformers.BertModel.from_pretrained(
    folder,
    attn_implementation="sdpa",
    add_pooling_layer=False,
    dtype=torch.bfloat16,
  )
  model = model.to(device).eval()
  forward: Any = model if args.dry_run else torch.compile(model, dynamic=True)

  def run():
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    with torch.inference_mode():
      for start in range(0, len(order), 256):
        chosen = [texts[i] for i in order[start : start + 256]]
        fields = tokenizer(
          chosen, padding=True, truncation=True, return_tensors="pt"
        ).to(device)
        hidden = forward(**fields).last_hidden_state
        mask = fields["attention_mask"][..., None].to(hidden.dtype)
        ((hidden * mask).sum(1) / mask.sum(1)).float().cpu().numpy()
    return len(order)

  return run


# --- texts and weights of the case `embed` -----------------------------------


def write_model(args):
  """Writes random weights, a vocabulary and texts for `embed`."""
  import torch
  import transformers

  folder = Path(args.folder) / "hf"
  folder.mkdir(parents=True)
  torch.manual_seed(0)
  transformers.BertModel(_bert_config(args)).save_pretrained(folder)
  words = [f"w{i}" for i in range(VOCAB_SIZE - 5)]
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  (folder / "vocab.txt").write_text("\n".join([*special, *words]) + "\n")
  (folder / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 512})
  )
  rng = np.random.default_rng(0)
  count = 16 if args.dry_run else NUM_TEXTS
  lengths = np.minimum(draw_lengths(count, 512, rng) // 2, MAX_WORDS) + 1
  texts = [
    " ".join(rng.choice(words, size)) for size in lengths
  ]  # fmt: skip
  (Path(args.folder) / "texts.txt").write_text("\n".join(texts))


def read_texts(args):
  """Returns the texts that `write_model` has written."""
  return (Path(args.folder) / "texts.txt").read_text().split("\n")


# --- turns -------------------------------------------------------------------


def serve(args):
  """Runs one side of one case until the other process is done."""
  if args.case == "embed":
    run = embed_ours(args) if args.side == "ours" else embed_torch(args)
    return sides_lib.serve(run)
  with np.load(os.path.join(args.folder, "batch.npz")) as found:
    batch = dict(found)
  make = train_ours if args.side == "ours" else train_torch
  return sides_lib.serve(make(args, args.case, batch))


def run_case(args, argv, case):
  """Lets the sides take turns; returns their figures."""
  argv = [*argv, f"--case={case}", f"--folder={args.folder}"]
  if case == "embed":
    write_model(args)
    work, flops = len(read_texts(args)), None
  else:
    batch = make_batch(args, case)
    np.savez(os.path.join(args.folder, "batch.npz"), **batch)
    work, flops = (
      int(batch["input_mask"].sum()),
      needed_flops(args, case, batch),
    )
  # Both processes are on the card at once, so neither takes all its memory.
  environ = dict(os.environ) | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"}
  secs: dict[str, list[float]] = {name: [] for name in args.sides}
  with contextlib.ExitStack() as stack:
    # They compile at the same time, and are timed one after the other.
    with futures.ThreadPoolExecutor() as pool:
      started = pool.map(
        lambda name: sides_lib.Side(__file__, name, argv, environ), args.sides
      )
      sides = dict(zip(args.sides, started, strict=True))
    for side in sides.values():
      stack.callback(side.close)
    for _ in range(args.rounds):
      for name, side in sides.items():
        secs[name].append(statistics.median(side.measure(args.steps)[0]))
  peak = peak_flops()
  found: dict[str, Any] = {"case": case, "work": work}
  for name, values in secs.items():
    middle = statistics.median(values)
    found[name] = {
      "per_sec": work / middle,
      "secs": values,
      "mfu": flops / middle / peak if flops and peak else None,
    }
  if len(secs) == 2:
    found["ratio"] = found["ours"]["per_sec"] / found["torch"]["per_sec"]
  return found


def card():
  """Returns the name of the card, as NVIDIA's tool gives it; "" without one."""
  import shutil
  import subprocess

  if not shutil.which("nvidia-smi"):
    return ""
  command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  return done.stdout.split("\n")[0].strip() if done.returncode == 0 else ""


def peak_flops():
  """Returns the peak of the card in bfloat16; None if it is not listed."""
  from bert_jax.runtime import chips

  return chips.PEAK_FLOPS.get(card())


def show(found):
  """Prints the figures of a case."""
  unit = "texts/s" if found["case"] == "embed" else "tokens/s"
  parts = []
  for name in SIDES:
    if name in found:
      mfu = found[name]["mfu"]
      parts.append(
        f"{name} {found[name]['per_sec']:,.0f} {unit}"
        + (f", MFU {mfu:.1%}" if mfu else "")
      )
  ratio = f"; {found['ratio']:.2f} times" if "ratio" in found else ""
  print(f"{found['case']:>11}: {'; '.join(parts)}{ratio}", flush=True)


def main(argv=None):
  argv = sys.argv[1:] if argv is None else list(argv)
  args = parse_args(argv)
  if args.side:
    return serve(args)
  if not card() and not args.dry_run:
    print(
      "no NVIDIA GPU was found (nvidia-smi); --dry_run tries the script on the "
      "CPU",
      file=sys.stderr,
    )
    return 2
  print(f"{card() or 'CPU, a dry run: the figures say nothing'}; {args.size}")
  begin, longest = time.monotonic(), 0.0
  results: list[dict[str, Any]] = []
  left_out: list[str] = []
  for case in args.cases:
    now = time.monotonic() - begin
    if results and now + longest > args.budget_secs:
      left_out.append(case)
      continue
    with tempfile.TemporaryDirectory() as args.folder:
      results.append(run_case(args, argv, case))
    show(results[-1])
    longest = max(longest, time.monotonic() - begin - now)
  if left_out:
    print(f"left out, because the time was up: {', '.join(left_out)}")
  summary = {
    "card": card(),
    "size": args.size,
    "attention": args.attention,
    "dry_run": args.dry_run,
    "peak_flops": peak_flops(),
    "secs": round(time.monotonic() - begin, 1),
    "left_out": left_out,
    "cases": results,
  }
  print(json.dumps(summary))
  if args.output:
    Path(args.output).write_text(json.dumps(summary, indent=1) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main())
