"""Writes table.md: encoders beside their fresh twins, from results.jsonl.

python -m experiments.proof.table --results=experiments/proof
"""

import argparse
import collections
from pathlib import Path
import statistics
from typing import Any

import numpy as np

from bert_jax import tasks
from bert_jax.sweeps import results
from experiments.proof import tune

HERE = Path(__file__).parent
_RESAMPLES = 10_000


def is_clear(trained: list[float], fresh: list[float]) -> bool:
  """Returns whether every pre-trained seed is above every fresh seed."""
  return min(trained) > max(fresh)


def interval(trained: list[float], fresh: list[float]) -> tuple[float, float]:
  """Returns the 95 % bootstrap interval of the difference of the medians."""
  rng = np.random.default_rng(0)
  one, other = (
    np.median(rng.choice(x, (_RESAMPLES, len(x))), axis=1)
    for x in (np.array(trained), np.array(fresh))
  )
  low, high = np.percentile(one - other, [2.5, 97.5])
  return float(low), float(high)


def scores(rows: list[Any]) -> dict[str, dict[str, list[float]]]:
  """Returns task -> start -> main metrics in per cent, of the final seeds.

  A start is the last part of init_from, and "fresh" for random weights in the
  shape of the encoder that most runs of the task start from.
  """
  found: dict[str, dict[str, list[float]]] = collections.defaultdict(
    lambda: collections.defaultdict(list)
  )
  for row in sorted(rows, key=lambda row: row["seed"]):
    if row["seed"] in tune.SEEDS:
      name, is_fresh = tune.key_of(row)
      start = Path(row["config"]["init_from"]).name
      key = f"{start}, fresh" if is_fresh else start
      found[name][key].append(100 * tune.score_of(row))
  return found


def page(rows: list[Any]) -> str:
  """Returns the table in Markdown."""
  found = scores(rows)
  lines = [
    "<!-- Made by: python -m experiments.proof.table -->",
    "",
    "Development sets: median of the seeds (least to greatest). The gain is "
    "the difference of the medians, with its 95 % bootstrap interval; it is "
    "*clear* if every pre-trained seed is above every fresh one.",
    "",
    "| task | metric | start | seeds | score | gain over its fresh twin |",
    "|---|---|---|---:|---:|---:|",
  ]
  for name in (task for task in tune.TASKS if task in found):
    metric = tasks.TASKS[tune.TASKS[name][0]].main_metric
    for start, values in found[name].items():
      fresh = found[name].get(f"{start}, fresh", [])
      cells = (
        name, metric, start, str(len(values)), describe_scores(values)
      )  # fmt: skip
      lines.append(f"| {' | '.join(cells)} | {_gain(values, fresh)} |")
  return "\n".join([*lines, ""])


def describe_scores(values: list[float]) -> str:
  """Returns the median of scores, with the least and the greatest."""
  return (
    f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
  )


def _gain(values: list[float], fresh: list[float]) -> str:
  if not fresh:
    return ""
  low, high = interval(values, fresh)
  gain = statistics.median(values) - statistics.median(fresh)
  clear = ", clear" if is_clear(values, fresh) else ""
  return f"{gain:+.1f} ({low:+.1f} to {high:+.1f}){clear}"


def main(argv: list[str] | None = None) -> None:
  """Writes the table beside the results."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--results", default=str(HERE))
  args = parser.parse_args(argv)
  rows = results.read(args.results)
  path = Path(args.results, "table.md")
  path.write_text(page(rows))
  print(path.read_text())


if __name__ == "__main__":
  main()
