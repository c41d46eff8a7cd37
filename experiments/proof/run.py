"""Shows that pre-training pays, from an empty folder, in one command.

  python -m experiments.proof.run --workdir=runs/proof --data=DATA \
    --text=novels.txt:2,reviews.txt,sotu.txt

DATA has the folders glue and ner/wnut17 with the official files; the texts have
a sentence in each line and a blank line between documents. The same command
continues what was stopped: a stage that is done is not done again, and the
training and the sweeps resume. Stages, of which `--stages` takes some:

  text      gather the text; leave out what occurs in development or test files
  prepare   learn a vocabulary, make examples
  train     pre-train the encoder of configs/small.py, probed on the way
  choose    try learning rates of fine-tuning on two seeds
  tune      fine-tune five other seeds at the best of them, and the fresh twin
  minilm    the same five seeds from MiniLM, whose folder --minilm names
  table     RESULTS/results.jsonl and table.md
"""

import argparse
import os
from pathlib import Path
import subprocess
import sys

from experiments.proof import table
from experiments.proof import text
from experiments.proof import tune

MINILM_RATE = 5e-5
PROBES = {
  "probe.every_steps": 1000,
  "probe.similarity": "stsb",
  "probe.linear": "sst2",
  "probe.finetune": "sst2,stsb",
  "probe.max_train_examples": 1000,
  "probe.num_epochs": 5.0,
  "probe.learning_rate": 3e-4,
}


def launch(*arguments: str) -> None:
  """Runs the launcher in a process of its own, and shows the command.

  Raises:
    SystemExit: the command failed or was stopped; it has its exit status.
  """
  print("\n$ bert-jax " + " ".join(arguments), flush=True)
  done = subprocess.run([sys.executable, "-m", "bert_jax.main", *arguments])
  if done.returncode:
    raise SystemExit(done.returncode)


class Stages:
  """The stages, each of which can be called again."""

  def __init__(self, args: argparse.Namespace):
    self._args = args
    self._folder = Path(args.workdir)

  def _path(self, name: str) -> str:
    return str(self._folder / name)

  def text(self) -> None:
    """Gathers the text."""
    if not os.path.exists(self._path("text/counts.json")):
      args = self._args
      folders = [f"{args.data}/glue", f"{args.data}/ner/wnut17"]
      text.gather(args.text.split(","), folders, self._path("text"))

  def prepare(self) -> None:
    """Prepares examples; a folder that is whole is left as it is."""
    if os.path.exists(self._path("data/examples")):
      return
    held_out = self._path("text/held_out.txt")
    inputs = sorted(self._folder.glob("text/*.txt"))
    launch(
      "prepare", "--config=small",
      "--input=" + ",".join(str(p) for p in inputs if str(p) != held_out),
      f"--config.prepare.held_out_input={held_out}",
      "--config.prepare.held_out_rate=0.0",
      f"--output={self._path('data')}",
    )  # fmt: skip

  def train(self) -> None:
    """Pre-trains, with probes."""
    args = self._args
    launch(
      "train", f"--config=small:{args.size},total_steps={args.steps}",
      f"--config.data.dir={self._path('data')}",
      f"--config.probe.dir={args.data}/glue",
      *(f"--config.{key}={value}" for key, value in PROBES.items()),
      "--config.checkpoint.keep=4",
      f"--workdir={self._path('encoder')}",
    )  # fmt: skip

  def _sweep(self, folder: str, records: str, more: str) -> None:
    args = self._args
    launch(
      "sweep",
      f"--config=experiments/proof/tune.py:data={args.data},"
      f"tasks={args.tasks},{more}",
      f"--workdir={self._path(folder)}", f"--output={records}",
      "--retry_failed",
    )  # fmt: skip

  def choose(self) -> None:
    """Tries the learning rates."""
    records = self._path("choose/records")
    self._sweep("choose", records, f"from={self._path('encoder')}")

  def tune(self) -> None:
    """Fine-tunes at the chosen rates."""
    more = f"from={self._path('encoder')},chosen={self._path('choose/records')}"
    self._sweep("tuned", self._args.results, more)

  def minilm(self) -> None:
    """Fine-tunes MiniLM, for comparison."""
    more = f"from={self._args.minilm},fresh=false,rate={MINILM_RATE}"
    self._sweep("minilm", self._args.results, more)

  def table(self) -> None:
    """Writes the table."""
    table.main([f"--results={self._args.results}"])


STAGES = ("text", "prepare", "train", "choose", "tune", "minilm", "table")


def main(argv: list[str] | None = None) -> None:
  """Runs the stages in their order."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--data", required=True)
  parser.add_argument("--text", default="")
  parser.add_argument("--minilm", default="runs/minilm")
  parser.add_argument("--size", default="layers=4,hidden=256")
  parser.add_argument("--steps", type=int, default=20_000)
  parser.add_argument("--tasks", default="+".join(tune.TASKS))
  parser.add_argument("--results", default="experiments/proof")
  parser.add_argument("--stages", default=",".join(STAGES))
  args = parser.parse_args(argv)
  stages = args.stages.split(",")
  if unknown := set(stages) - set(STAGES):
    parser.error(
      f"--stages: {min(unknown)} is not known; use {','.join(STAGES)}"
    )
  if "text" in stages and not args.text:
    parser.error("the stage text needs --text=FILE,FILE")
  for name in STAGES:
    if name in stages:
      getattr(Stages(args), name)()


if __name__ == "__main__":
  main()
