"""Requests/s and latencies of the server, beside torch and onnxruntime.

  python -m experiments.serve.load --model=runs/minilm --secs=20

Starts a server for each side, and has locust ask it for embeddings of one
sentence each with 1, 8 and 64 clients, which wait for each answer. Prints a
table and, as the last line, a summary as JSON. The clients run on the same
cores as the server. Fails if a request failed. Needs the extras serve,
serve-test and reference.
"""

import argparse
import csv
import json
import os
from pathlib import Path
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from experiments.bench import predict as bench
from experiments.bench import prepare as bench_prepare

SIDES = ("ours", "torch", "onnx")
ROOT = Path(__file__).resolve().parents[2]
_READY_SECS = 300
_COLUMNS = {
  "requests": "Request Count",
  "failures": "Failure Count",
  "requests_per_sec": "Requests/s",
  "p50_ms": "50%",
  "p95_ms": "95%",
  "p99_ms": "99%",
}


def parse_args(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--model", default="runs/minilm", help="in HF's format")
  parser.add_argument("--input", default=bench_prepare.INPUT,
                      help="text, one sentence a line")  # fmt: skip
  parser.add_argument("--texts", type=int, default=1024, help="at random")
  parser.add_argument("--clients", default="1,8,64")
  parser.add_argument("--sides", default=",".join(SIDES))
  parser.add_argument("--secs", type=int, default=20, help="of each measure")
  args = parser.parse_args(argv)
  args.clients = [int(count) for count in args.clients.split(",")]
  args.sides = args.sides.split(",")
  if unknown := set(args.sides) - set(SIDES):
    parser.error(f"--sides has {', '.join(unknown)}; use {', '.join(SIDES)}")
  if not os.path.isdir(args.model):
    parser.error(f"--model={args.model} is not there; `make minilm` fetches it")
  return args


def free_port():
  with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    return sock.getsockname()[1]


def command_of(side, args, port, folder):
  """The command that starts a side, as a user would."""
  model = str(Path(args.model).resolve())
  if side == "ours":
    return [sys.executable, "-m", "bert_jax.main", "serve", f"--from={model}",
            f"--port={port}", "--config.serve.kinds=embed"]  # fmt: skip
  return [
    sys.executable, "-m", "experiments.serve.side", f"--side={side}",
    f"--model={model}", f"--port={port}", f"--folder={folder}",
  ]  # fmt: skip


def start(side, args, folder):
  """Starts a side; returns its process, address and seconds until ready."""
  port = free_port()
  environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  begin = time.monotonic()
  process = subprocess.Popen(
    command_of(side, args, port, folder),
    cwd=ROOT, env=environ, stdout=sys.stderr,
  )  # fmt: skip
  address = f"http://127.0.0.1:{port}"
  while time.monotonic() - begin < _READY_SECS:
    if process.poll() is not None:
      raise SystemExit(f"{side} ended with status {process.returncode}")
    try:
      urllib.request.urlopen(f"{address}/health").close()
      return process, address, time.monotonic() - begin
    except (urllib.error.URLError, ConnectionError):
      time.sleep(0.2)
  process.kill()
  raise SystemExit(f"{side} was not ready after {_READY_SECS} s")


def stop(process):
  process.send_signal(signal.SIGTERM)
  try:
    return process.wait(60)
  except subprocess.TimeoutExpired:
    process.kill()
    raise SystemExit("the server did not stop when it was told to") from None


def warm_up(address, texts):
  """Asks for each text once."""
  for text in texts:
    body = json.dumps({"input": text}).encode()
    urllib.request.urlopen(f"{address}/v1/embeddings", body).close()


def measure(address, clients, secs, folder):
  """Runs locust; returns its numbers."""
  prefix = Path(folder) / "locust"
  done = subprocess.run(
    [
      sys.executable, "-m", "locust", "-f",
      str(Path(__file__).with_name("locustfile.py")), "--headless",
      f"--users={clients}", f"--spawn-rate={clients}", f"--run-time={secs}s",
      f"--host={address}", f"--csv={prefix}", "--only-summary",
    ],
    env=os.environ | {"SERVE_TEXTS": str(Path(folder) / "texts.json")},
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  with open(f"{prefix}_stats.csv", encoding="utf-8") as f:
    rows = {row["Name"]: row for row in csv.DictReader(f)}
  row = rows["Aggregated"]
  if float(row["Failure Count"]) or not float(row["Request Count"]):
    raise SystemExit(
      f"{row['Failure Count']} of {row['Request Count']} requests failed; give "
      f"more --secs if there were none:\n{done.stderr[-2000:]}"
    )
  return {k: float(row[name]) for k, name in _COLUMNS.items()}


def main(argv=None):
  args = parse_args(argv)
  texts = bench.read_sentences(args.input)
  texts = random.Random(0).sample(texts, min(args.texts, len(texts)))
  found: dict[str, dict] = {}
  with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "texts.json").write_text(json.dumps(texts))
    print(f"{'side':<8}{'clients':>8}", *(f"{k:>17}" for k in _COLUMNS))
    for side in args.sides:
      process, address, secs = start(side, args, folder)
      found[side] = {"ready_secs": round(secs, 1)}
      print(f"{side:<8}ready after {secs:.1f} s", flush=True)
      try:
        warm_up(address, texts[:20])
        for clients in args.clients:
          numbers = measure(address, clients, args.secs, folder)
          found[side][clients] = numbers
          cells = (f"{x:>17.1f}" for x in numbers.values())
          print(f"{side:<8}{clients:>8}", *cells, flush=True)
      finally:
        stop(process)
  for side in args.sides[1:]:
    for clients in args.clients:
      ours, theirs = (
        found[name][clients]["requests_per_sec"]
        for name in (args.sides[0], side)
      )
      print(
        f"{args.sides[0]} / {side} at {clients} clients: "
        f"{ours / theirs:.2f} times the requests/s"
      )
  given = {k: v for k, v in vars(args).items() if k != "input"}
  print(json.dumps(given | {"sides": found}))


if __name__ == "__main__":
  main()
