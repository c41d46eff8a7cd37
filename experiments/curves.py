"""Draws the loss curves of runs as a PNG.

python experiments/curves.py RUN [RUN ...] --output=FILE.png
"""

import argparse
import os
import statistics

import matplotlib

from bert_jax.runtime import metrics_log
from bert_jax.runtime import runs

matplotlib.use("Agg")  # no screen
import matplotlib.pyplot as plt

COLUMNS = {
  "held-out MLM loss, nats": "eval/mlm_loss",
  "perplexity": "eval/mlm_perplexity",
  "MLM accuracy": "eval/mlm_accuracy",
  "NSP accuracy": "eval/nsp_accuracy",
  "unigram loss": "eval/unigram_loss",
  "most frequent token": "eval/most_frequent_token_accuracy",
}


def table(run: str) -> list[str]:
  """The evaluations of a run, as lines of Markdown."""
  record, rows = runs.read_run(run), metrics_log.read_metrics(run)
  model, data = record["config"]["model"], record["config"]["data"]
  rate = [r["train/steps_per_sec"] for r in rows if "train/steps_per_sec" in r]
  every = record["config"]["train"]["log_every_steps"]
  devices = record["devices"]
  lines = [
    f"## {os.path.basename(os.path.normpath(run))}",
    "",
    f"{model['num_layers']} layers x {model['hidden_size']}, vocabulary"
    f" {model['vocab_size']:,}; {data['batch_size']} rows of {data['seq_len']}"
    f" tokens a step; commit {(record['commit'] or 'unknown')[:10]}, data"
    f" {record['data_hash'][:10]}, seed {record['seed']};"
    f" {devices['count']} x {', '.join(devices['kind'])},"
    f" {sum(every / r for r in rate) / 60:.0f} minutes of training steps,"
    f" median {statistics.median(rate):.2f} steps/s.",
    "",
    "| step | tokens seen | " + " | ".join(COLUMNS) + " |",
    "|---:" * (len(COLUMNS) + 2) + "|",
  ]
  for row in rows:
    if "eval/mlm_loss" in row:
      tokens = row["step"] * data["batch_size"] * data["seq_len"] / 1e6
      cells = [f"{row[key]:.3f}" for key in COLUMNS.values()]
      lines.append(
        f"| {row['step']:,} | {tokens:.1f} M | " + " | ".join(cells) + " |"
      )
  return [*lines, ""]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("runs", nargs="+", metavar="RUN")
  parser.add_argument("--output", required=True, help="the PNG")
  parser.add_argument("--table", help="a Markdown file of the evaluations")
  args = parser.parse_args()
  figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
  for i, run in enumerate(args.runs):
    rows = metrics_log.read_metrics(run)
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
  if args.table:
    with open(args.table, "w", encoding="utf-8") as f:
      f.write("\n".join(line for run in args.runs for line in table(run)))
    print(f"wrote {args.table}")


if __name__ == "__main__":
  main()
