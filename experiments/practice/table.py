"""The table of experiments/practice/sweep.py: what each change is worth.

  python -m experiments.practice.table runs/practice-results

A cell is the mean over the seeds of the difference to the plain recipe with the
same seed, in points of the main metric, and the interval of 95 % of that mean
by Student's t. The last line takes the means of the tasks as the sample. Early
stopping chooses its step on the examples that it is scored on, so its scores
are too good by an amount that this table does not know. Writes table.md beside
the results, and prints it.
"""

import argparse
import collections
import math
import os
import statistics
import sys
from typing import Any

from scipy import stats

from bert_jax import tasks
from bert_jax.runtime import files
from bert_jax.sweeps import results
from experiments.practice import sweep

LEVEL = 0.95


def scores_of(rows):
  """Returns task -> change -> seed -> the main metric in per cent."""
  found: dict[str, Any] = collections.defaultdict(
    lambda: collections.defaultdict(dict)
  )
  for row in rows:
    task, change, seed = row["trial"].split("=")
    known = tasks.TASKS[task]
    value = row["metrics"][f"eval/{known.main_metric}"] * known.percent
    found[task][change][int(seed)] = value
  return found


def interval(values):
  """Returns the mean and half the width of its interval; NaN for one value."""
  mean = statistics.fmean(values)
  if len(values) < 2:
    return mean, math.nan
  error = statistics.stdev(values) / math.sqrt(len(values))
  return mean, error * stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)


def _cell(values):
  if not values:
    return ""
  mean, half = interval(values)
  return f"{mean:+.2f}" if math.isnan(half) else f"{mean:+.2f} ± {half:.2f}"


def table_of(rows):
  """Returns the table in Markdown.

  Args:
    rows: the rows of results.jsonl.
  """
  scores = scores_of(rows)
  seen = {change for own in scores.values() for change in own}
  changes = [c for c in sweep.CHANGES if c in seen and c != sweep.PLAIN]
  lines = [["task", "metric", "seeds", sweep.PLAIN, *changes]]
  means = collections.defaultdict(list)
  for task in (name for name in sweep.TASKS if name in scores):
    plain = scores[task].get(sweep.PLAIN, {})
    base = f"{statistics.fmean(plain.values()):.2f}" if plain else ""
    cells = []
    for change in changes:
      own = scores[task].get(change, {})
      pairs = [own[s] - plain[s] for s in sorted(own) if s in plain]
      cells.append(_cell(pairs))
      if pairs:
        means[change].append(statistics.fmean(pairs))
    metric = tasks.TASKS[task].main_metric
    lines.append([task, metric, str(len(plain)), base, *cells])
  lines.append(["all tasks", "", "", "", *(_cell(means[c]) for c in changes)])
  lines.insert(1, ["---", "---", *["---:"] * (len(lines[0]) - 2)])
  return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(argv=None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("results", help="the folder with results.jsonl")
  args = parser.parse_args(argv)
  rows = results.read(args.results)
  text = table_of(rows)
  hours = sum(row["seconds"] for row in rows) / 3600
  text += f"\n{len(rows)} runs, {hours:.2f} hours of training in all.\n"
  files.write_text(os.path.join(args.results, "table.md"), text)
  sys.stdout.write(text)


if __name__ == "__main__":
  main()
