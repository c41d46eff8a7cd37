"""Draws the loss curves of runs as a PNG.

python experiments/curves.py RUN [RUN ...] --output=FILE.png
"""

import argparse
import os

import matplotlib

from bert_jax import run_log

matplotlib.use("Agg")  # no screen
import matplotlib.pyplot as plt


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("runs", nargs="+", metavar="RUN")
  parser.add_argument("--output", required=True)
  args = parser.parse_args()
  figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
  for i, run in enumerate(args.runs):
    rows = run_log.read_metrics(run)
    label = os.path.basename(os.path.normpath(run))
    color = f"C{i}"
    for key, alpha, name in (
      ("train/mlm_loss", 0.3, f"{label}, training"),
      ("eval/mlm_loss", 1.0, f"{label}, held out"),
    ):
      points = [(r["step"], r[key]) for r in rows if key in r]
      left.plot(*zip(*points, strict=True), color, alpha=alpha, label=name)
    for key, style in (("mlm_accuracy", "-"), ("nsp_accuracy", "--")):
      points = [
        (r["step"], r[f"eval/{key}"]) for r in rows if f"eval/{key}" in r
      ]
      if points:
        right.plot(
          *zip(*points, strict=True), color + style, label=f"{label}, {key}"
        )
  last = next(r for r in reversed(rows) if "eval/unigram_loss" in r)
  left.axhline(last["eval/unigram_loss"], color="gray", ls=":", label="unigram")
  right.axhline(
    last["eval/most_frequent_token_accuracy"],
    color="gray",
    ls=":",
    label="most frequent token",
  )
  left.set(xlabel="step", ylabel="MLM loss, nats", title="Loss")
  right.set(xlabel="step", title="Held-out accuracy", ylim=(0, 1))
  for axes in (left, right):
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
  figure.tight_layout()
  figure.savefig(args.output, dpi=110)
  print(f"drew {args.output}")


if __name__ == "__main__":
  main()
