"""Feeding: tokens/s from disk to batches of numpy arrays, masking included.

The batches come from `batching.prefetch`, as in training. Positions are B * L a
batch; useful tokens are those that are no padding. Medians of some rounds.

  python experiments/bench/data.py --rounds=5
  python experiments/bench/data.py --data=DATA   # prepared data with pairs
  python experiments/bench/data.py --bucket=gs://BUCKET/X   # from there, too

With --bucket, the data are copied there first, and each round reads them from
both places, in turn. The local copies that training makes of a bucket's shards
are in an empty folder at first, so that the table also has what that costs.

Prints a table and, as the last line, the same as JSON.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
from pathlib import Path
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bert_jax.configs import base
from bert_jax.data import batching
from bert_jax.data import prepare
from bert_jax.data.store import records
from bert_jax.runtime import files
from experiments.bench import prepare as bench_prepare

LENGTHS = (512, 128)


def parse_args(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--data", help="prepared data; made if not given")
  parser.add_argument("--bucket", help="a folder of a bucket to write to")
  parser.add_argument("--input", default=bench_prepare.INPUT)
  parser.add_argument("--vocab", default=bench_prepare.VOCAB)
  parser.add_argument("--batch_size", type=int, default=256)
  parser.add_argument("--num_threads", type=int, default=2)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=20, help="batches a round")
  args = parser.parse_args(argv)
  for name in ("batch_size", "rounds", "steps"):
    if getattr(args, name) < 1:
      parser.error(f"--{name}={getattr(args, name)} must be at least 1")
  return args


def make_data(args, folder):
  """Prepares pairs of both lengths from the text."""
  text, vocab, _ = bench_prepare.default_corpus(args.input, args.vocab, folder)
  data = os.path.join(folder, "data")
  config = base.get_config()
  config.prepare.vocab = vocab
  config.data.dupe_factor = 1
  patterns = [text]
  for length in LENGTHS:
    config.data.seq_len = length
    with contextlib.redirect_stdout(io.StringIO()):
      prepare.prepare(config, patterns, data)
    patterns = []
  return data


def find_settings(folder):
  """{length: config.data} for the pairs that a folder holds."""
  found = {}
  for path in sorted(files.glob(f"{folder}/examples/*/manifest.json")):
    settings = records.read_json(path)["settings"]
    if settings["pairing"] == "pairs":
      data = base.get_config().data
      data.dir = folder
      for key in ("pairing", "seq_len", "dupe_factor", "short_seq_rate",
                  "examples_seed"):  # fmt: skip
        data[key] = settings[key]
      found[data.seq_len] = data
  if not found:
    raise SystemExit(f"--data={folder} holds no examples of pairs")
  return found


def run_once(args, data, seed):
  """Makes `steps` batches; returns (positions/s, useful tokens/s)."""
  warm_up = 2
  batches = batching.PretrainBatches(
    data,
    "train",
    seed=seed,
    batch_size=args.batch_size,
    # More than are taken, so that the threads never run out of work.
    num_steps=warm_up + args.steps + data.prefetch_batches + args.num_threads,
  )
  stream = batching.prefetch(
    batches,
    0,
    num_threads=args.num_threads,
    buffer_size=data.prefetch_batches,
  )
  for _ in range(warm_up + data.prefetch_batches):  # what was made ahead
    next(stream)
  useful, count = 0, 0
  start = time.perf_counter()
  for batch in stream:
    useful += int(batch["input_mask"].sum())
    count += 1
  secs = time.perf_counter() - start
  return count * args.batch_size * data.seq_len / secs, useful / secs


def measure(args, folders):
  """Returns {row name: {unit: [rate of each round]}}.

  Args:
    args: of the command line.
    folders: {suffix of the names of rows: folder of prepared data}.
  """
  rows: dict[str, dict[str, list[float]]] = {}
  settings = {suffix: find_settings(x) for suffix, x in folders.items()}
  for round_ in range(args.rounds):
    # Neither place is always the first.
    order = list(folders)[:: -1 if round_ % 2 else 1]
    for length, whole_word, suffix in itertools.product(
      settings[""], (False, True), order
    ):
      data = settings[suffix][length]
      data.whole_word = whole_word
      name = f"length {length}{', whole words' if whole_word else ''}{suffix}"
      positions, useful = run_once(args, data, seed=round_)
      row = rows.setdefault(name, {"positions": [], "useful": []})
      row["positions"].append(positions)
      row["useful"].append(useful)
  return rows


def read_again(folder):
  """Has the system hold files as it holds those that it has read from a disk.

  How fast files in memory are read depends on how they were written.
  """
  for path in Path(folder).rglob("*"):
    if path.is_file():
      with path.open("rb+") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
          os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.read()


def copy_secs(folder):
  """Returns (seconds, bytes) of copying prepared data of a bucket."""
  start = time.perf_counter()
  copy = files.local(folder)
  secs = time.perf_counter() - start
  return secs, sum(map(files.size, files.walk(copy)))


def main(argv=None):
  args = parse_args(argv)
  load = os.getloadavg()[0]
  with tempfile.TemporaryDirectory() as folder:
    folders = {"": args.data or make_data(args, folder)}
    copied = None
    if args.bucket:
      os.environ["BERT_JAX_CACHE"] = os.path.join(folder, "copies")
      files.upload_folder(folders[""], args.bucket)
      folders[", bucket"] = args.bucket
      copied = copy_secs(args.bucket)
      for one in (folders[""], files.local(args.bucket)):
        read_again(one)
    rows = measure(args, folders)
  print(
    f"{args.batch_size} rows a batch, {args.num_threads} threads, "
    f"{args.rounds} rounds of {args.steps} batches; load average before the "
    f"start {load:.1f}"
  )
  print(f"{'tokens/s':<34}{'positions':>12}{'useful':>12}{'lowest':>12}")
  summary = {}
  if copied:
    secs, size = copied
    summary["first copy"] = {"secs": round(secs, 2), "bytes": size}
    print(f"first copy of {size / 1e6:.1f} MB: {secs:.2f} s")
  for name, row in rows.items():
    medians = {k: round(statistics.median(v)) for k, v in row.items()}
    lowest = round(min(row["positions"]))
    summary[name] = medians | {"lowest_positions": lowest}
    print(
      f"{name:<34}{medians['positions']:>12,}{medians['useful']:>12,}"
      f"{lowest:>12,}"
    )
  print(
    json.dumps(
      {
        "batch_size": args.batch_size,
        "num_threads": args.num_threads,
        "rounds": args.rounds,
        "steps": args.steps,
        "load_average": round(load, 2),
        "unit": "tokens/s",
        **summary,
      }
    )
  )


if __name__ == "__main__":
  main()
