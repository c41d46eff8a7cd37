"""Draws figure 5: a task's score after so many steps of pre-training.

  python -m experiments.reproduce.figure5 --output=runs/figure5 \
    masked=runs/base-probed-128,runs/base-probed \
    left_to_right=runs/ltr-probed-128,runs/ltr-probed

Each curve is NAME=RUN[,RUN...], where each run started from the weights of the
one before it, so that its steps are counted behind theirs. The scores are those
of the probes (probe.finetune=mnli); OUTPUT gets figure5.png and figure5.md with
the same numbers.

Source: BERT paper, appendix C.1.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

from bert_jax.runtime import metrics_log

METRIC = "probe/mnli_finetune_accuracy"


def curve(workdirs: Sequence[str], metric: str) -> list[tuple[int, float]]:
  """Returns (steps of pre-training, score) of runs that follow one another.

  The first score of a later run, at its step 0, is that of the weights that it
  starts from; the run before it has this score already.

  Args:
    workdirs: the folders of the runs.
    metric: the name of the score in metrics.jsonl.

  Raises:
    SystemExit: A run has no such score.
  """
  found: dict[int, float] = {}
  before = 0
  for workdir in workdirs:
    rows = metrics_log.read_metrics(workdir)
    scores = {row["step"]: row[metric] for row in rows if metric in row}
    if not scores:
      known = sorted({x for row in rows for x in row if x.startswith("probe/")})
      raise SystemExit(
        f"{workdir} has no {metric}; it has {', '.join(known) or 'no probes'}. "
        "Train with --config.probe.every_steps=N --config.probe.finetune=mnli, "
        "or give --metric"
      )
    for step, score in scores.items():
      found.setdefault(before + step, score)
    before += max(row["step"] for row in rows)
  return sorted(found.items())


def table(curves: dict[str, list[tuple[int, float]]], metric: str) -> str:
  """Returns the numbers of all curves, a line for each number of steps."""
  steps = sorted({step for points in curves.values() for step, _ in points})
  lines = [
    f"`{metric}` in percent, by steps of pre-training.",
    "",
    f"| steps | {' | '.join(curves)} |",
    "|---" * (len(curves) + 1) + "|",
  ]
  scores = [dict(points) for points in curves.values()]
  for step in steps:
    cells = (f"{100 * s[step]:.1f}" if step in s else "" for s in scores)
    lines.append(f"| {step:,} | {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def draw(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
  """Draws the curves as the paper does: thousands of steps, percent."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(6, 4))
  for name, points in curves.items():
    steps, scores = zip(*points, strict=True)
    axes.plot(
      [step / 1000 for step in steps], [100 * x for x in scores],
      marker="o", label=name.replace("_", " "),
    )  # fmt: skip
  axes.set_xlabel("pre-training steps (thousands)")
  axes.set_ylabel("accuracy, percent")
  axes.legend()
  figure.savefig(path, dpi=150, bbox_inches="tight")
  pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the picture and the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("curves", nargs="+", metavar="NAME=RUN[,RUN...]")
  parser.add_argument("--output", required=True, help="folder to write to")
  parser.add_argument("--metric", default=METRIC)
  args = parser.parse_args(argv)
  found = {}
  for text in args.curves:
    name, _, runs = text.partition("=")
    if not name or not runs:
      raise SystemExit(f"{text}: wanted NAME=RUN[,RUN...]")
    found[name] = curve(runs.split(","), args.metric)
  folder = Path(args.output)
  folder.mkdir(parents=True, exist_ok=True)
  text = table(found, args.metric)
  (folder / "figure5.md").write_text(text)
  draw(found, folder / "figure5.png")
  sys.stdout.write(text)


if __name__ == "__main__":
  main()
