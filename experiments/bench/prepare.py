"""Preparing data: examples/s from text to disk, and from tokens to disk.

Wall time of whole preparations, writing included: from text at two lengths,
and then, from the finished token store, what other examples cost. Medians of
some rounds; everything is written to a temporary folder.

  python experiments/bench/prepare.py --rounds=3

Prints a table and, as the last line, the same as JSON.
"""

import argparse
import contextlib
import io
import json
import os
from pathlib import Path
import random
import resource
import statistics
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bert_jax.configs import base
from bert_jax.data import corpus
from bert_jax.data import prepare
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from configs import demo as demo_config
from experiments import demo

INPUT = "data/corpus/novels.txt"
VOCAB = "data/vocab/bert-base-uncased/vocab.txt"
DUPE_FACTOR = 5
# Examples/s by length: the original's script on the same text and vocabulary,
# measured once elsewhere on such a machine, CPU time of one core, its writing
# not counted.
REFERENCE = {128: 2_780, 512: 940}
# name: (from text, changes of config.data)
RUNS: dict[str, tuple[bool, dict[str, Any]]] = {
  "text, length 128": (True, dict(seq_len=128)),
  "tokens, dupe_factor 10": (False, dict(seq_len=128, dupe_factor=10)),
  "tokens, length 512": (False, dict(seq_len=512)),
  "tokens, full sentences": (
    False,
    dict(seq_len=512, pairing="full_sentences"),
  ),
  "text, length 512": (True, dict(seq_len=512)),
}


def parse_args(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
    "--input", default=INPUT, help="text, one sentence a line"
  )
  parser.add_argument("--vocab", default=VOCAB)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument(
    "--num_workers", type=int, default=0, help="processes; 0 = one a core"
  )
  args = parser.parse_args(argv)
  if args.rounds < 1:
    parser.error(f"--rounds={args.rounds} must be at least 1")
  return args


def default_corpus(text, vocab, folder, megabytes=16):
  """The corpus and vocabulary to use: those given, or Python's help pages.

  Args:
    text: file of sentences.
    vocab: vocabulary for it.
    folder: where a corpus may be made.
    megabytes: size of that corpus.

  Returns:
    (text, vocab, whether they are those given).
  """
  if os.path.exists(text) and os.path.exists(vocab):
    return text, vocab, True
  if (text, vocab) != (INPUT, VOCAB):
    missing = vocab if os.path.exists(text) else text
    raise SystemExit(f"{missing} is missing; give --input and --vocab")
  print(
    f"{text} or {vocab} is not here: using Python's help pages, shuffled and "
    f"repeated to {megabytes} MB, with a vocabulary learned from them"
  )
  pages = os.path.join(folder, "pages.txt")
  Path(pages).write_text("\n\n\n".join(demo.help_pages()), encoding="utf-8")
  documents = [
    document
    for unit in corpus.list_units([pages], "paragraphs", 1 << 23)
    for document in corpus.read_documents(unit, "paragraphs", "", "en")
  ]
  rng = random.Random(0)
  text, size = os.path.join(folder, "text.txt"), 0
  with open(text, "w", encoding="utf-8") as f:
    while size < megabytes * 1e6:
      for document in rng.sample(documents, len(documents)):
        lines = rng.sample(document, len(document))
        size += f.write("\n".join(lines) + "\n\n")
  config = base.get_config()
  config.prepare.vocab_size = demo_config.get_config().prepare.vocab_size
  config.data.dupe_factor = 1
  learned = os.path.join(folder, "learned")
  with contextlib.redirect_stdout(io.StringIO()):
    prepare.prepare(config, [text], learned)
  return text, os.path.join(learned, "vocab"), False


def run_once(args, patterns, folder, changes):
  """Runs one preparation; returns (seconds, examples made)."""
  config = base.get_config()
  config.prepare.vocab = args.vocab
  config.prepare.num_workers = args.num_workers
  config.data.dupe_factor = DUPE_FACTOR
  config.data.update(changes)
  start = time.perf_counter()
  with contextlib.redirect_stdout(io.StringIO()):
    prepare.prepare(config, patterns, folder)
  secs = time.perf_counter() - start
  name = records.examples_name(config.data)
  manifest = manifests.read_manifest(os.path.join(folder, "examples", name))
  totals = manifest["totals"].values()
  return secs, sum(t["examples"] for t in totals)


def measure(args, folder):
  """Runs all of RUNS `rounds` times: {name: ([seconds], examples)}."""
  result: dict[str, tuple[list[float], int]] = {n: ([], 0) for n in RUNS}
  for i in range(args.rounds):
    data = ""
    for j, (name, (from_text, changes)) in enumerate(RUNS.items()):
      if from_text:
        data = os.path.join(folder, f"{i}-{j}")
      patterns = [args.input] if from_text else []
      secs, count = run_once(args, patterns, data, changes)
      result[name] = (result[name][0] + [secs], count)
      print(f"  round {i + 1}, {name}: {secs:.2f} s", flush=True)
  return result


def main(argv=None):
  args = parse_args(argv)
  load = os.getloadavg()[0]
  with tempfile.TemporaryDirectory() as folder:
    args.input, args.vocab, given = default_corpus(
      args.input, args.vocab, folder
    )
    size = os.path.getsize(args.input)
    print(
      f"{args.input}: {size / 1e6:.1f} MB, dupe_factor {DUPE_FACTOR} if not "
      f"said otherwise, {args.num_workers or os.cpu_count()} workers; load "
      f"average before the start {load:.1f}"
    )
    measured = measure(args, folder)
  has_reference = given and os.path.basename(args.input) == "novels.txt"
  rows = {}
  print(
    f"{'made from':<24}{'secs':>8}{'examples':>11}{'examples/s':>12}"
    f"{'ratio':>8}"
  )
  for name, (secs, count) in measured.items():
    median = statistics.median(secs)
    from_text, changes = RUNS[name]
    row = {
      "secs": round(median, 3),
      "examples": count,
      "examples_per_sec": round(count / median, 1),
    }
    ratio = "-"
    if from_text and has_reference:
      row["ratio"] = round(count / median / REFERENCE[changes["seq_len"]], 2)
      ratio = f"{row['ratio']:.2f}"
    rows[name] = row
    print(
      f"{name:<24}{median:>8.2f}{count:>11}{count / median:>12.0f}{ratio:>8}"
    )
  if has_reference:
    print(
      f"ratio: to {REFERENCE[128]:,} examples/s at 128 and {REFERENCE[512]:,} "
      "at 512, measured once elsewhere on such a machine for the original's "
      "script: its CPU time on one core, writing not counted"
    )
  own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
  print(
    f"peak memory: {own:.0f} MB in the main process, {worker:.0f} MB in the "
    "largest worker"
  )
  print(
    json.dumps(
      {
        "input": os.path.basename(args.input),
        "rounds": args.rounds,
        "load_average": round(load, 2),
        "main_peak_mb": round(own, 1),
        "worker_peak_mb": round(worker, 1),
        **rows,
      }
    )
  )


if __name__ == "__main__":
  main()
