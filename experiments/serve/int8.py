"""What 8-bit integers cost in accuracy, and save in size and time.

  python -m experiments.serve.int8 --run=runs/stsb --run=runs/sst2

For each run: the scores on its own evaluation splits with the weights as they
are and with matrices rounded to 8-bit integers; the bytes of both; and the
sentences/s of both graphs in onnxruntime, whose int8 graph also rounds the
inputs of products. Prints a table and, as the last line, a summary as JSON.
Needs the extra reference.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path
import statistics
import tempfile
import time

import numpy as np

from bert_jax import weights
from bert_jax.models import params as param_trees
from bert_jax.prediction import exporting
from bert_jax.prediction import model as model_lib
from bert_jax.prediction import quantizing
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.training import evaluate

ROWS, LENGTH = 16, 64


def rounded(found):
  """The same weights after a way through 8-bit integers, and their bytes."""
  flat = param_trees.flatten(found.params)
  small = quantizing.quantize(flat)
  back = quantizing.dequantize(small)
  params = {k: np.asarray(back[k]).astype(x.dtype) for k, x in flat.items()}
  sizes = [sum(x.nbytes for x in tree.values()) for tree in (flat, small)]
  params = param_trees.nest(params)
  return dataclasses.replace(found, params=params), sizes


def scores(config, found, folder):
  """The metrics of weights on the splits of a run."""
  source = os.path.join(folder, "weights")
  weights.write(found, source, "huggingface")
  config = config.copy_and_resolve_references()
  config.init_from = source
  config.task.vocab = ""
  return evaluate.evaluate(config, os.path.join(folder, "run"), None)


def speed(path, threads):
  """Sentences/s of a graph, on rows without padding."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads
  session = onnxruntime.InferenceSession(
    path, options, providers=["CPUExecutionProvider"]
  )
  row = np.full((ROWS, LENGTH), 5, np.int64)
  given = {
    one.name: row if one.name == "input_ids" else row * 0 + (
      one.name == "attention_mask")
    for one in session.get_inputs()
  }  # fmt: skip
  session.run(None, given)
  secs = []
  for _ in range(5):
    start = time.perf_counter()
    session.run(None, given)
    secs.append(time.perf_counter() - start)
  return ROWS / statistics.median(secs)


def measure(run, threads):
  """The numbers of one run."""
  config = settings.unflatten(settings.flatten(runs.read_run(run)["config"]))
  config.mesh.update(data=-1, fsdp=1, tensor=1)
  found = weights.read(run)
  other, sizes = rounded(found)
  result = {"bytes": dict(zip(("float32", "int8"), sizes, strict=True))}
  with tempfile.TemporaryDirectory() as folder:
    for name, one in (("float32", found), ("int8", other)):
      inner = Path(folder) / name
      inner.mkdir()
      result[name] = scores(config, one, str(inner))
      exporting.export(
        model_lib.Model(found, run), str(inner / "graph"), "onnx", weights=name
      )
      graph = inner / "graph" / exporting.GRAPH
      result[f"{name}_graph"] = {
        "bytes": graph.stat().st_size,
        "sentences_per_sec": round(speed(str(graph), threads), 1),
      }
  return result


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--run", action="append", required=True)
  parser.add_argument("--threads", type=int, default=2)
  args = parser.parse_args(argv)
  os.environ["JAX_PLATFORMS"] = "cpu"
  found = {run: measure(run, args.threads) for run in args.run}
  print(f"\n{'run':<24}{'metric':<24}{'float32':>10}{'int8':>10}")
  for run, one in found.items():
    for name, value in one["float32"].items():
      cells = f"{value:>10.4f}{one['int8'][name]:>10.4f}"
      print(f"{os.path.basename(run):<24}{name:<24}{cells}")
    for what in ("bytes", "sentences_per_sec"):
      cells = "".join(
        f"{one[f'{name}_graph'][what]:>10,}" for name in exporting.WEIGHTS
      )
      print(f"{os.path.basename(run):<24}{what + ', graph':<24}{cells}")
  print(json.dumps({"threads": args.threads, "runs": found}))


if __name__ == "__main__":
  main()
