"""Recipes side by side at small scale: equal tokens, and equal seconds.

  python -m experiments.proof.recipes --workdir=runs/recipes --data=DATA \
    --text=novels.txt --steps=8000

BERT, RoBERTa's recipe, ELECTRA and ModernBERT's blocks pre-train at one size on
the same text, with the same vocabulary and the same tokens in a step: first for
the same number of steps, and then for the seconds that BERT took. Each encoder
is fine-tuned on four tasks with five seeds, at the learning rate that is best
on two other seeds. DATA has the folder glue with the official files. The same
command continues what was stopped. Stages, of which `--stages` takes some:

  prepare   learn a vocabulary, make the examples of both pairings
  tokens    pre-train every recipe for --steps steps
  seconds   pre-train the others for as long as BERT took
  choose    try learning rates of fine-tuning on two seeds
  tune      fine-tune five other seeds at the best of them
  table     WORKDIR/results.jsonl and recipes.md, whatever came out

Seconds only compare on a machine that does nothing else.
"""

import argparse
import collections
import json
from pathlib import Path
import statistics
from typing import Any

from bert_jax import tasks as task_rows
from bert_jax.sweeps import results
from experiments.proof import run
from experiments.proof import table
from experiments.proof import tune

# Name: the blocks of configs/small.py, and what differs from it.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
  # Two segments and the next sentence, 15 % masks that are drawn once.
  "bert": ("bert", {
    "objective": "mlm_nsp", "data.pairing": "pairs", "data.mask_rate": 0.15,
    "model.pooler": True, "optim.b2": 0.999, "optim.schedule": "linear",
    "optim.cooldown_rate": 0.0,
  }),
  # Full sentences, no next sentence, other masks in each epoch.
  "roberta": ("bert", {
    "data.dupe_factor": 1, "data.mask_rate": 0.15, "optim.b2": 0.98,
    "optim.schedule": "linear",
    "optim.cooldown_rate": 0.0,
  }),
  "electra": ("bert", {
    "objective": "rtd", "model.family": "electra", "data.dupe_factor": 1,
    "data.mask_rate": 0.15, "data.mask_token_rate": 0.85,
    "data.random_token_rate": 0.0, "generator.width_rate": 0.5,
    "optim.b2": 0.999, "optim.schedule": "linear",
    "optim.cooldown_rate": 0.0,
  }),
  "modernbert": ("modernbert", {
    "data.dupe_factor": 1, "data.mask_rate": 0.3, "eval.mask_rate": 0.15,
    "optim.name": "stable_adamw", "optim.b1": 0.9, "optim.b2": 0.98,
    "optim.learning_rate": 2e-3,
  }),
}  # fmt: skip
BUDGETS = ("tokens", "seconds")
TASKS = ("stsb", "sst2-8k", "mrpc", "cola")
# A second run for fewer steps than this share more or less would tell nothing.
_SAME = 0.02


def settings_of(name: str) -> list[str]:
  """Returns the flags of what a recipe changes."""
  return [f"--config.{k}={v}" for k, v in RECIPES[name][1].items()]


def secs_of(workdir: Path) -> float:
  """Returns the seconds of the steps of a run, without what is around them.

  They are the number of steps by the median of their speed, so that a
  stop, an evaluation or a compilation does not count.
  """
  text = (workdir / "metrics.jsonl").read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  key = "train/steps_per_sec"
  speed = statistics.median(row[key] for row in rows if key in row)
  return max(row["step"] for row in rows) / speed


class Stages:
  """The stages, each of which can be called again."""

  def __init__(self, args: argparse.Namespace):
    self._args, self._folder = args, Path(args.workdir)
    self.recipes = args.recipes.split("+")

  def _encoder(self, budget: str, name: str) -> Path:
    return self._folder / budget / name

  def prepare(self) -> None:
    """Prepares the examples of both pairings from one store."""
    names = {"pairs": "bert", "full_sentences": "roberta"}
    folder = self._folder / "data"
    for pairing, name in names.items():
      is_new = not (folder / "manifest.json").exists()
      run.launch(
        "prepare", "--config=small",
        *([f"--input={self._args.text}"] if is_new else []),
        f"--config.prepare.vocab_size={self._args.vocab_size}",
        *(x for x in settings_of(name) if ".data." in x),
        f"--config.data.pairing={pairing}",
        f"--output={folder}",
      )  # fmt: skip

  def _train(self, budget: str, name: str, steps: int) -> None:
    blocks, _ = RECIPES[name]
    run.launch(
      "train",
      f"--config=small:blocks={blocks},{self._args.size},total_steps={steps}",
      f"--config.data.dir={self._folder / 'data'}",
      *settings_of(name),
      f"--workdir={self._encoder(budget, name)}",
    )

  def tokens(self) -> None:
    """Pre-trains every recipe for the same steps."""
    for name in self.recipes:
      self._train("tokens", name, self._args.steps)

  def _steps_for_seconds(self, name: str) -> int:
    """Returns the steps that a recipe makes while BERT makes its own."""
    own = secs_of(self._encoder("tokens", name))
    return round(
      self._args.steps * secs_of(self._encoder("tokens", "bert")) / own
    )

  def seconds(self) -> None:
    """Pre-trains the others for as long as BERT took."""
    for name in self.recipes:
      steps = self._steps_for_seconds(name)
      if abs(steps / self._args.steps - 1) > _SAME:
        self._train("seconds", name, steps)

  def _encoders(self) -> list[tuple[str, str]]:
    """Returns (budget, recipe) of all encoders that there are."""
    return [
      (budget, name)
      for budget in BUDGETS
      for name in self.recipes
      if (self._encoder(budget, name) / "run.json").exists()
    ]

  def _sweep(self, budget: str, name: str, stage: str, more: str) -> None:
    args = self._args
    encoder = self._encoder(budget, name)
    records = self._folder / stage / budget / name
    run.launch(
      "sweep",
      f"--config=experiments/proof/tune.py:data={args.data},"
      f"tasks={args.tasks},fresh=false,from={encoder},seeds={args.seeds}"
      f"{more}",
      f"--workdir={records / 'runs'}", f"--output={records}", "--retry_failed",
    )  # fmt: skip

  def choose(self) -> None:
    """Tries the learning rates."""
    for budget, name in self._encoders():
      self._sweep(budget, name, "choose", "")

  def tune(self) -> None:
    """Fine-tunes at the chosen rates."""
    for budget, name in self._encoders():
      chosen = self._folder / "choose" / budget / name
      self._sweep(budget, name, "tuned", f",chosen={chosen}")

  def table(self) -> None:
    """Writes what came out."""
    found = {
      (budget, name): results.read(str(self._folder / "tuned" / budget / name))
      for budget, name in self._encoders()
    }
    steps = {}
    for budget, name in found:
      config = json.loads(
        (self._encoder(budget, name) / "run.json").read_text()
      )["config"]
      secs = secs_of(self._encoder(budget, name))
      steps[budget, name] = (config["train"]["total_steps"], secs)
    path = self._folder / "recipes.md"
    path.write_text(page(found, steps, self._args.tasks.split("+")))
    print(path.read_text())


def page(
  found: dict[tuple[str, str], list[Any]],
  steps: dict[tuple[str, str], tuple[int, float]],
  tasks: list[str],
) -> str:
  """Returns the table in Markdown.

  Args:
    found: (budget, recipe) -> lines of results.jsonl.
    steps: (budget, recipe) -> the steps of pre-training, and their seconds.
    tasks: names of tune.TASKS.
  """
  metrics = [
    f"{name} ({task_rows.TASKS[tune.TASKS[name][0]].main_metric})"
    for name in tasks
  ]
  lines = [
    "<!-- Made by: python -m experiments.proof.recipes --stages=table -->",
    "",
    "Development sets: median of the seeds (least to greatest). A recipe that "
    "took as long as BERT has no second run.",
    "",
    f"| equal | recipe | steps | seconds | {' | '.join(metrics)} |",
    "|---|---|---:|---:|" + "---:|" * len(tasks),
  ]
  for (budget, name), rows in found.items():
    values: dict[str, list[float]] = collections.defaultdict(list)
    for row in rows:
      if row["seed"] in tune.SEEDS:
        values[tune.key_of(row)[0]].append(100 * tune.score_of(row))
    count, secs = steps[budget, name]
    cells = [budget, name, f"{count:,}", f"{secs:,.0f}"]
    cells += [
      table.describe_scores(values[task]) if values[task] else ""
      for task in tasks
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join([*lines, ""])


STAGES = ("prepare", "tokens", "seconds", "choose", "tune", "table")


def main(argv: list[str] | None = None) -> None:
  """Runs the stages in their order."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--data", required=True)
  parser.add_argument("--text", default="")
  parser.add_argument("--size", default="layers=4,hidden=256")
  parser.add_argument("--vocab_size", type=int, default=8192)
  parser.add_argument("--steps", type=int, default=8000)
  parser.add_argument("--seeds", type=int, default=len(tune.SEEDS))
  parser.add_argument("--tasks", default="+".join(TASKS))
  parser.add_argument("--recipes", default="+".join(RECIPES))
  parser.add_argument("--stages", default=",".join(STAGES))
  args = parser.parse_args(argv)
  stages = args.stages.split(",")
  for given, known in (
    (stages, STAGES),
    (args.recipes.split("+"), RECIPES),
    (args.tasks.split("+"), tune.TASKS),
  ):
    if unknown := set(given) - set(known):
      parser.error(f"{min(unknown)} is not known; use some of {list(known)}")
  if "prepare" in stages and not args.text:
    parser.error("the stage prepare needs --text=FILE,FILE")
  if "seconds" in stages and "bert" not in args.recipes.split("+"):
    parser.error("the stage seconds compares with bert; add it to --recipes")
  for name in STAGES:
    if name in stages:
      getattr(Stages(args), name)()


if __name__ == "__main__":
  main()
