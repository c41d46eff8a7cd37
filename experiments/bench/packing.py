"""Packing: what share of the tokens of a row is text, padded and packed.

The text is cut into documents as long as Wikipedia's (wikipedia.py), prepared
at two lengths in both pairings, and laid out for several values of
data.max_sequences. The share is that of a whole epoch of the training split;
the last columns take it from some batches, as training gets them, and say how
many masked slots a row has, and what share of these is in use.

  python experiments/bench/packing.py
  python experiments/bench/packing.py --data=DATA   # cut and prepared before

Prints tables and, as the last line, the same as JSON.
"""

import argparse
import contextlib
import io
import json
import os
from pathlib import Path
import sys
import tempfile
import time

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from bert_jax.configs import base
from bert_jax.data import batching
from bert_jax.data import packing
from bert_jax.data import prepare
from bert_jax.data.store import indexes
from bert_jax.data.store import records
from experiments.bench import prepare as bench_prepare
from experiments.bench import wikipedia

KINDS = [(k, n) for k in ("pairs", "full_sentences") for n in (512, 128)]
SEQUENCES = (1, 2, 4, 8, 12, 16)
# Of BERT's examples on Wikipedia: tokens -> share of at most as many tokens;
# see wikipedia.py.
PUBLISHED = {36: 0.05, 48: 0.1, 84: 0.25, 204: 0.5, 484: 0.75, 511: 0.766}
PUBLISHED_MEAN = 255.8


def parse_args(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--data", help="prepared data; made if not given")
  parser.add_argument("--input", default=bench_prepare.INPUT)
  parser.add_argument("--vocab", default=bench_prepare.VOCAB)
  parser.add_argument("--seed", type=int, default=0, help="of the cuts")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument(
    "--steps", type=int, default=20, help="batches to look at"
  )
  args = parser.parse_args(argv)
  if args.batch_size < 1 or args.steps < 1:
    parser.error(
      f"--batch_size={args.batch_size} --steps={args.steps}: both must be at "
      "least 1"
    )
  return args


def make_config(vocab, folder, pairing="pairs", seq_len=512, max_sequences=1):
  """A config of examples of one pass over the text."""
  config = base.get_config()
  config.prepare.vocab = vocab
  config.data.dir = folder
  config.data.dupe_factor = 1
  config.data.pairing = pairing
  config.data.seq_len = seq_len
  config.data.max_sequences = max_sequences
  return config


def make_data(text, vocab, folder, kinds=KINDS, seed=0):
  """Cuts a text and prepares it in all kinds; returns the data's folder."""
  cut = os.path.join(folder, "wikipedia.txt")
  wikipedia.write(text, cut, seed)
  data = os.path.join(folder, "data")
  patterns = [cut]
  for pairing, length in kinds:
    config = make_config(vocab, data, pairing, length)
    with contextlib.redirect_stdout(io.StringIO()):
      prepare.prepare(config, patterns, data)
    patterns = []
  return data


def share_of_epoch(index, seq_len, max_sequences):
  """What a whole epoch comes to: share, rows, sequences of a row, seconds."""
  start = time.perf_counter()
  patterns = packing.pack_histogram(index.histogram, seq_len, max_sequences)
  secs = time.perf_counter() - start
  return {
    "useful": patterns.num_tokens / (patterns.num_rows * seq_len),
    "rows": patterns.num_rows,
    "sequences_a_row": patterns.num_sequences / patterns.num_rows,
    "layout_secs": secs,
  }


def share_of_batches(args, data):
  """The same share, and that of masked slots, of batches as training has."""
  batches = batching.PretrainBatches(
    data, "train", seed=1, batch_size=args.batch_size, num_steps=args.steps
  )
  made = [batches[step] for step in range(args.steps)]
  return {
    "useful_in_batches": float(np.mean([b["input_mask"] for b in made])),
    "slots": made[0]["masked_weights"].shape[1],
    "slots_in_use": float(np.mean([b["masked_weights"] for b in made])),
  }


def compare_lengths(index):
  """The lengths of the examples beside those published of Wikipedia's."""
  shares = np.cumsum(index.histogram) / index.histogram.sum()
  lengths = np.arange(len(shares))
  mean = float((index.histogram * lengths).sum() / index.histogram.sum())
  print(
    f"pairs of 512: {index.histogram.sum():,} examples, {mean:.1f} tokens on "
    f"average (Wikipedia: {PUBLISHED_MEAN})"
  )
  print("  at most ... tokens", *(f"{n:>6}" for n in PUBLISHED))
  print("  here              ", *(f"{shares[n]:6.1%}" for n in PUBLISHED))
  print("  Wikipedia         ", *(f"{v:6.1%}" for v in PUBLISHED.values()))
  distance = max(abs(shares[n] - v) for n, v in PUBLISHED.items())
  print(f"  largest distance of these: {distance:.3f}")
  return {"mean": round(mean, 1), "distance": round(float(distance), 3)}


def main(argv=None):
  args = parse_args(argv)
  summary = {"seed": args.seed}
  with tempfile.TemporaryDirectory() as folder:
    data = args.data
    if not data:
      text, vocab, _ = bench_prepare.default_corpus(
        args.input, args.vocab, folder
      )
      data = make_data(text, vocab, folder, seed=args.seed)
    first = records.examples_name(make_config("", data).data)
    index = indexes.LengthIndex(data, first, "train")
    summary["lengths"] = compare_lengths(index)
    header = ("useful", "rows", "seq/row", "secs", "batches", "slots", "used")
    for pairing, length in KINDS:
      print(f"\n{pairing} of {length}; a row takes at most ... sequences")
      print(f"{'':>6}", *(f"{name:>9}" for name in header))
      for count in SEQUENCES:
        settings = make_config("", data, pairing, length, count).data
        name = records.examples_name(settings)
        index = indexes.LengthIndex(data, name, "train")
        row = share_of_epoch(index, length, count)
        row |= share_of_batches(args, settings)
        print(
          f"{count:>6} {row['useful']:>9.1%} {row['rows']:>9,}"
          f" {row['sequences_a_row']:>9.2f} {row['layout_secs']:>9.3f}"
          f" {row['useful_in_batches']:>9.1%} {row['slots']:>9}"
          f" {row['slots_in_use']:>9.1%}"
        )
        summary[f"{pairing} {length} x{count}"] = {
          k: round(v, 4) for k, v in row.items()
        }
  print(json.dumps(summary))


if __name__ == "__main__":
  main()
