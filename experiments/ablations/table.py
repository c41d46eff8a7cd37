"""What the encoders of pretrain.py came to, side by side.

  python -m experiments.ablations.table --evaluations=runs/ablations/same-masks

Takes evaluation.json of each encoder from that folder into encoders.json of the
results' folder, this one unless `--results` names another, and writes table.md
from it, encoders/results.jsonl of the pre-training and results.jsonl of the
fine-tuning. Of the learning rates of an encoder and a task the one with the
highest median on the development set counts, and that set is the one shown.
"""

import argparse
import json
from pathlib import Path

from bert_jax.sweeps import report
from bert_jax.sweeps import results
from bert_jax.sweeps import sweep
from experiments.ablations import pretrain

HERE = Path(__file__).parent
ENCODERS = (*pretrain.VARIANTS, "fresh")


def encoder_of(line):
  """The name of the encoder that runs started from."""
  facts = sweep.facts_of(line.rows[0]["settings"]["config"], {})
  return "fresh" if facts["random"] == "true" else Path(facts["from"]).name


def chosen(lines):
  """(task, encoder) -> its line of the better learning rate."""
  found: dict[tuple[str, str], report.Line] = {}
  for line in lines:
    key = line.task, encoder_of(line)
    if key not in found or line.median > found[key].median:
      found[key] = line
  return found


def table(evaluations, pretraining, lines) -> str:
  """The page, in Markdown.

  Args:
    evaluations: encoder -> its metrics under the same masks.
    pretraining: encoder -> its metrics at the end of pre-training.
    lines: of the report on fine-tuning.
  """
  text = [
    "<!-- Made by: python -m experiments.ablations.table -->",
    "",
    "Held-out text, all with masks of 80/10/10; NSP as trained:",
    "",
    "| encoder | MLM loss | MLM accuracy | NSP accuracy |",
    "|---|---|---|---|",
  ]
  for name, metrics in evaluations.items():
    nsp = pretraining[name].get("eval/nsp_accuracy")
    cells = (
      name,
      f"{metrics['eval/mlm_loss']:.2f}",
      f"{100 * metrics['eval/mlm_accuracy']:.1f} %",
      "-" if nsp is None else f"{100 * nsp:.1f} %",
    )
    text.append(f"| {' | '.join(cells)} |")
  found = chosen(lines)
  text += [
    "",
    "Development sets: median (least to greatest) of the seeds at the learning "
    "rate with the highest median; in brackets the rate, and how many runs are "
    "no better than always the same answer:",
    "",
    f"| task | metric | {' | '.join(ENCODERS)} |",
    f"|---|---|{'---|' * len(ENCODERS)}",
  ]
  for task in dict.fromkeys(task for task, _ in found):
    metric = next(line.metric for (t, _), line in found.items() if t == task)
    scores = [
      _cell(found[task, name]) if (task, name) in found else "-"
      for name in ENCODERS
    ]
    text.append(f"| {' | '.join((task, metric, *scores))} |")
  return "\n".join([*text, ""])


def _cell(line):
  rate = line.rows[0]["settings"]["optim.learning_rate"]
  low, high = min(line.values), max(line.values)
  bad = f", {line.degenerate} of {len(line.values)}" * bool(line.degenerate)
  return f"{line.median:.1f} ({low:.1f} to {high:.1f}) [{rate}{bad}]"


def page(folder) -> str:
  """The table of the records in a folder."""
  pretraining = results.read(str(folder / "encoders"))
  return table(
    json.loads((folder / "encoders.json").read_text()),
    {row["trial"]: row["metrics"] for row in pretraining},
    report.lines_of(results.read(str(folder))),
  )


def main(argv=None):
  """Writes encoders.json, where it is asked to, and table.md."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--evaluations", help="folder of an evaluation each")
  parser.add_argument("--results", default=HERE, help="folder of the records")
  args = parser.parse_args(argv)
  folder = Path(args.results)
  if args.evaluations:
    found = {
      name: json.loads(
        (Path(args.evaluations) / name / "evaluation.json").read_text()
      )
      for name in pretrain.VARIANTS
    }
    (folder / "encoders.json").write_text(json.dumps(found, indent=1) + "\n")
  (folder / "table.md").write_text(page(folder))


if __name__ == "__main__":
  main()
