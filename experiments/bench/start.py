"""Measures how long `bert-jax predict` takes to answer one sentence.

  make bench-start

Three programs are started in turn, in each round: jax alone (`import jax` and
one jitted operation), `predict` with an empty cache of programs (cold), and
`predict` with a full one (warm). Printed are the medians over the rounds, and
how much more than jax alone `predict` takes. Elapsed time depends on what else
the machine does; processor time (user and system) hardly does.
"""

import argparse
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
JAX_ALONE = """
import jax
jax.jit(lambda x: x + 1)(1.0).block_until_ready()
"""
# The most seconds above jax alone that a start should take.
TARGETS = {"cold": 1.5, "warm": 0.6}


def _measure(command: list[str]) -> tuple[float, float]:
  """Runs a command; returns its seconds, elapsed and of the processor."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  begun = time.perf_counter()
  subprocess.run(
    command, cwd=ROOT, check=True, capture_output=True, env=_environ()
  )
  elapsed = time.perf_counter() - begun
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  used = sum(
    getattr(after, name) - getattr(before, name)
    for name in ("ru_utime", "ru_stime")
  )
  return elapsed, used


def _environ() -> dict[str, str]:
  # Without another start of the same program; see runtime/machine.py.
  environ = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
  # Python keeps compiled modules, as it does where the package is installed.
  environ.pop("PYTHONDONTWRITEBYTECODE", None)
  return environ


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--from", dest="weights", default="runs/minilm")
  parser.add_argument("--rounds", type=int, default=7)
  args = parser.parse_args()
  found: dict[str, list[tuple[float, float]]] = {}
  with tempfile.TemporaryDirectory() as folder:
    cold, warm = (os.path.join(folder, name) for name in TARGETS)

    def predict(cache):
      return [
        sys.executable, "-m", "bert_jax.main", "predict",
        f"--config=predict:from={args.weights}", "--text=A man is eating food.",
        f"--compile_cache={cache}",
      ]  # fmt: skip

    commands = {
      "jax alone": [sys.executable, "-c", JAX_ALONE],
      "cold": predict(cold),
      "warm": predict(warm),
    }
    for command in commands.values():  # fills caches of files and programs
      _measure(command)
    for _ in range(args.rounds):
      for name, command in commands.items():
        shutil.rmtree(cold, ignore_errors=True)
        found.setdefault(name, []).append(_measure(command))
  medians = {
    name: [statistics.median(column) for column in zip(*rows, strict=True)]
    for name, rows in found.items()
  }
  base = medians["jax alone"]
  print(f"{args.rounds} rounds, medians in seconds; above: more than jax alone")
  print(f"{'':10} {'elapsed':>8} {'above':>7} {'processor':>10} {'above':>7}")
  for name, (elapsed, used) in medians.items():
    target = f"   target {TARGETS[name]}" if name in TARGETS else ""
    print(
      f"{name:10} {elapsed:8.2f} {elapsed - base[0]:7.2f} {used:10.2f} "
      f"{used - base[1]:7.2f}{target}"
    )


if __name__ == "__main__":
  main()
