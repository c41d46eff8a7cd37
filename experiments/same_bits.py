r"""Compares what two commits compute, to the bit, on this machine.

  python -m experiments.same_bits OLD NEW
  python -m experiments.same_bits HEAD . --only=prepare,packed
  python -m experiments.same_bits OLD NEW --but=train/loss

OLD and NEW are commits, or "." for the working tree as it is. Each runs the
same jobs by its own launcher, in the same Python environment:

  prepare   several forms of prepared data, of Python's help pages: their bytes
  pretrain  pre-training on pairs, evaluated
  packed    pre-training on packed rows, and what one of its batches holds
  tasks     six forms of own data: fine-tune, evaluate, predict
  mrpc      MRPC from MiniLM (needs --weights and --glue)

Jobs after `prepare` read the data that OLD has prepared, so that a change of
preparing is shown once, and NEW is seen to open the data of an earlier commit.

Compared are the bytes of prepared data, every number of metrics.jsonl but for
those of speed, every array of every checkpoint, the batch of a step, and all
predictions. What only one side has is listed: it is a difference unless
--but names it. The exit status is 0 if nothing differs, 1 otherwise.

What a commit has computed is kept in --folder and not computed again; "." is
always computed anew.
"""

import argparse
from collections.abc import Callable, Iterator
import hashlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
from typing import Any

from absl import logging
import numpy as np
import orbax.checkpoint as ocp

from experiments import help_pages

ROOT = pathlib.Path(__file__).parents[1]
# Metrics of the machine and the hour, not of what was computed.
SPEED = (
  "train/mfu", "train/steps_per_sec", "train/tokens_per_sec",
  "train/useful_tokens_per_sec",
)  # fmt: skip
WORDS = "sun moon star sky rain wind snow hill lake tree bird fish".split()
# Form of a task of one's own: the columns of its text.
FORMS = {
  "classify": "text",
  "pairs": "text,other",
  "regress": "text",
  "tag": "text",
  "choice": "text,a,b",
  "span": "text,context",
}
# Form: what a line of predict's input is made of.
ASKED: dict[str, Callable[[dict], dict]] = {
  "classify": lambda x: {"text": x["text"]},
  "pairs": lambda x: {"text": x["text"], "text_b": x["other"]},
  "regress": lambda x: {"text": x["text"]},
  "tag": lambda x: {"words": x["text"]},
  "choice": lambda x: {"text": x["text"], "choices": [x["a"], x["b"]]},
  "span": lambda x: {"question": x["text"], "context": x["context"]},
}


class Side:
  """A commit, the tree it is in, and the folder of what it has computed."""

  def __init__(
    self, name: str, folder: pathlib.Path, source: "Side | None" = None
  ):
    """Checks a commit out.

    Args:
      name: a commit or ".".
      folder: where the results of all commits are kept.
      source: the side whose prepared data is trained on; None: this one.
    """
    self.name, self.source = name, source or self
    if name == ".":
      self.tree, self.folder = ROOT, folder / "working-tree"
      shutil.rmtree(self.folder, ignore_errors=True)
    else:
      commit = _git("rev-parse", "--verify", f"{name}^{{commit}}")
      self.tree, self.folder = folder / commit / "tree", folder / commit / "out"
      if not self.tree.exists():
        _git("worktree", "prune")
        _git("worktree", "add", "--detach", str(self.tree), commit)
    self.folder.mkdir(parents=True, exist_ok=True)

  def folder_of(self, job: str) -> pathlib.Path:
    """Returns the folder of what a job has left."""
    if job == "prepare" or self.source is self:
      return self.folder / job
    return self.folder / f"{job}-from-{self.source.folder.parent.name[:12]}"

  def data(self) -> pathlib.Path:
    """Returns a copy of the prepared pairs, which training may add to."""
    copy = self.folder_of("data")
    if not copy.exists():
      shutil.copytree(self.source.folder_of("prepare") / "pairs", copy)
    return copy

  def run(self, module: str, *args: str) -> None:
    """Runs a module of the commit; ends this program if it fails."""
    command = [sys.executable, "-m", module, *args]
    # An installed package must not stand in for that of the commit.
    path = os.environ | {"PYTHONPATH": str(self.tree)}
    done = subprocess.run(
      command, cwd=self.tree, env=path, capture_output=True, text=True
    )
    if done.returncode:
      sys.exit(
        f"{self.name}: {' '.join(command)} ended with status "
        f"{done.returncode}:\n{done.stderr[-3000:]}"
      )

  def launch(self, mode: str, *args: str) -> None:
    """Runs a mode of the commit's launcher."""
    cache = () if mode == "prepare" else ("--compile_cache=off",)
    self.run("bert_jax.main", f"--mode={mode}", *cache, *args)


def _git(*args: str) -> str:
  done = subprocess.run(
    ("git", "-C", str(ROOT), *args), capture_output=True, text=True
  )
  if done.returncode:
    sys.exit(done.stderr.strip())
  return done.stdout.strip()


# --- jobs --------------------------------------------------------------------


def prepare(side: Side, out: pathlib.Path, args: argparse.Namespace) -> None:
  """Prepared data of several forms, all of Python's help pages."""
  pages = "\n\n\n".join(help_pages.pages()) + "\n"
  text, records = out / "pages.txt", out / "pages.jsonl"
  text.write_text(pages, encoding="utf-8")
  with open(records, "w", encoding="utf-8") as f:
    for page in pages.split("\n\n\n"):
      f.write(json.dumps({"text": page}) + "\n")
  flags = (
    "--config=configs/pretrain.py:size=tiny,seq_len=64",
    "--config.prepare.vocab_size=1500",
    "--config.prepare.held_out_rate=0.1",
    "--config.prepare.num_workers=2",
    "--config.data.dupe_factor=2",
  )
  for name, source, changes in (
    ("pairs", text, ("prepare.format=paragraphs",)),
    ("runs", text, ("prepare.format=paragraphs",
                    "data.pairing=full_sentences")),
    ("cased", records, ("prepare.format=jsonl", "prepare.lower_case=False",
                        "data.examples_seed=7")),
    ("pieces", text, ("prepare.format=paragraphs",
                      "prepare.vocab_kind=sentencepiece")),
  ):  # fmt: skip
    side.launch(
      "prepare",
      *flags,
      *(f"--config.{change}" for change in changes),
      f"--input={source}",
      f"--output={out / name}",
    )


def pretrain(side: Side, out: pathlib.Path, args: argparse.Namespace) -> None:
  """A short pre-training on pairs, its evaluation and a few masks."""
  run = out / "run"
  side.launch(
    "train",
    "--config=configs/pretrain.py:size=tiny,seq_len=64,total_steps=60",
    f"--config.data.dir={side.data()}",
    "--config.data.batch_size=16",
    "--config.data.dupe_factor=2",
    "--config.model.vocab_size=1500",
    "--config.optim.learning_rate=1e-3",
    "--config.optim.warmup_rate=0.1",
    "--config.train.log_every_steps=1",
    "--config.train.tensorboard=False",
    "--config.eval.every_steps=30",
    "--config.eval.batch_size=16",
    "--config.checkpoint.every_steps=30",
    f"--workdir={run}",
  )
  side.launch("evaluate", f"--workdir={run}")
  lines = [{"text": "The [MASK] of a list is [MASK]."}]
  _predict(side, out / "filled.jsonl", lines, f"--workdir={run}")


def packed(side: Side, out: pathlib.Path, args: argparse.Namespace) -> None:
  """Pre-training on packed rows with dropout, and a look into one step."""
  run = out / "run"
  side.launch(
    "train",
    "--config=configs/pretrain.py:size=tiny,seq_len=64,total_steps=24",
    f"--config.data.dir={side.data()}",
    "--config.data.max_sequences=8",
    "--config.data.batch_size=8",
    "--config.data.dupe_factor=2",
    "--config.model.vocab_size=1500",
    "--config.optim.learning_rate=1e-3",
    "--config.optim.warmup_rate=0.2",
    "--config.train.log_every_steps=1",
    "--config.train.tensorboard=False",
    "--config.eval.every_steps=12",
    "--config.eval.batch_size=16",
    "--config.checkpoint.every_steps=8",
    f"--workdir={run}",
  )
  side.launch(
    "train",
    f"--workdir={run}",
    "--replay_step=20",
    f"--output={out / 'replay.json'}",
  )
  _predict(
    side,
    out / "filled.jsonl",
    [{"text": "The [MASK] of a list is [MASK]."}, {"text": "a [MASK] b"}],
    f"--config=configs/predict.py:kind=fill-mask,from={run}",
  )
  _predict(
    side,
    out / "embedded.jsonl",
    [{"text": "A class has methods."}, {"text": "a b", "text_b": "c"}],
    f"--config=configs/predict.py:kind=embed,from={run}",
    "--config.predict.decimals=0",
    "--config.predict.concat_last=2",
  )


def tasks(side: Side, out: pathlib.Path, args: argparse.Namespace) -> None:
  """A few epochs of a task of every kind, on made data."""
  for form, columns in FORMS.items():
    folder = out / form
    folder.mkdir()
    for split, count, seed in (("train", 96, 0), ("dev", 40, 1)):
      with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as f:
        f.writelines(json.dumps(x) + "\n" for x in _examples(form, count, seed))
    run = folder / "run"
    shape = side.folder_of("packed") / "run"
    flags = (
      f"--config=configs/finetune.py:task=my-{form},from={shape}",
      f"--config.task.dir={folder}",
      f"--config.task.files.train={folder / 'train.jsonl'}",
      f"--config.task.files.validation={folder / 'dev.jsonl'}",
      f"--config.task.text={columns}",
      "--config.task.label=label",
      "--config.task.max_query_len=8",
      "--config.data.seq_len=32",
      "--config.data.batch_size=16",
      "--config.train.num_epochs=2",
      "--config.train.log_every_steps=1",
      "--config.train.tensorboard=False",
      "--config.optim.learning_rate=1e-3",
      f"--workdir={run}",
    )
    side.launch("train", *flags)
    side.launch("evaluate", *flags, "--config.task.predict_splits=validation,")
    asked = [ASKED[form](x) for x in _examples(form, 40, 1)]
    _predict(side, folder / "answers.jsonl", asked, f"--workdir={run}")


def mrpc(side: Side, out: pathlib.Path, args: argparse.Namespace) -> None:
  """Twenty steps of MRPC from real weights, the test split predicted."""
  flags = (
    f"--config=configs/finetune.py:task=mrpc,from={args.weights}",
    f"--config.task.dir={args.glue}",
    "--config.task.max_train_examples=640",
    "--config.train.num_epochs=1",
    "--config.train.log_every_steps=1",
    "--config.train.tensorboard=False",
    f"--workdir={out / 'run'}",
  )
  side.launch("train", *flags)
  side.launch("evaluate", *flags, "--config.task.predict_splits=test,")
  _predict(
    side,
    out / "embedded.jsonl",
    [{"text": "A man is eating food."}, {"text": "He ate.", "text_b": "Yes."}],
    f"--config=configs/predict.py:kind=embed,from={args.weights}",
    "--config.predict.decimals=0",
  )


JOBS = {
  "prepare": prepare,
  "pretrain": pretrain,
  "packed": packed,
  "tasks": tasks,
  "mrpc": mrpc,
}
# What a job reads of others, which therefore run before it.
NEEDS = {"pretrain": ["prepare"], "packed": ["prepare"]}
NEEDS["tasks"] = [*NEEDS["packed"], "packed"]


def _examples(form: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
  """Made examples of a form, from which a small model could learn a rule."""
  rng = random.Random(seed)
  for _ in range(count):
    text = [rng.choice(WORDS[2:]) for _ in range(rng.randrange(2, 12))]
    special = rng.choice(WORDS[:2])
    text.insert(rng.randrange(len(text)), special)
    line, is_sun = " ".join(text), special == WORDS[0]
    by_form: dict[str, dict[str, Any]] = {
      "classify": {"text": line, "label": special},
      "pairs": {"text": line, "other": text[-1], "label": special},
      "regress": {"text": line, "label": float(is_sun)},
      "tag": {
        "text": text,
        "label": ["B-X" if w in WORDS[:2] else "O" for w in text],
      },
      "choice": {
        "text": line, "a": text[-1], "b": text[0], "label": int(is_sun)
      },
      "span": {"text": "which one", "context": line, "label": special},
    }  # fmt: skip
    yield by_form[form]


def _predict(
  side: Side, target: pathlib.Path, asked: list[dict], *flags: str
) -> None:
  lines = target.with_suffix(".in")
  lines.write_text("".join(json.dumps(x) + "\n" for x in asked))
  side.launch("predict", *flags, f"--input={lines}", f"--output={target}")


# --- what a job has left -----------------------------------------------------


def evidence(folder: pathlib.Path) -> dict[str, str]:
  """Reads all that a job computed.

  Args:
    folder: that the job wrote.

  Returns:
    {name of a file, a metric at a step or an array: its value or its hash}.
  """
  found: dict[str, str] = {}
  for path in sorted(folder.rglob("*")):
    name = str(path.relative_to(folder))
    parts = path.relative_to(folder).parts
    if {"checkpoints", "best"} & set(parts[:-1]):
      is_step = parts[-2] in ("checkpoints", "best") and path.name.isdecimal()
      found |= _arrays(path, name) if is_step else {}
    elif path.name in ("metrics.jsonl", "evaluation.json", "replay.json"):
      found |= _numbers(path, name)
    elif path.is_file() and _is_data(path):
      found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
  return found


def _is_data(path: pathlib.Path) -> bool:
  """Returns True for a file of results, False for a record of the machine."""
  if path.suffix == ".json" or path.name == "goodput.jsonl":
    return "predictions" in path.parts
  return path.suffix in (
    ".array_record", ".jsonl", ".model", ".npy", ".tsv", ".txt"
  )  # fmt: skip


def _arrays(step: pathlib.Path, name: str) -> dict[str, str]:
  """Hashes of the arrays of a checkpoint, read without our own code."""
  found = {}
  with ocp.PyTreeCheckpointer() as checkpointer:
    for item in ("params", "rest"):
      if not (step / item).is_dir():
        continue
      tree = checkpointer.metadata(step / item).item_metadata.tree
      args = ocp.checkpoint_utils.construct_restore_args(tree)
      args = _as_numpy(args)
      flat = _flatten(checkpointer.restore(step / item, restore_args=args))
      for path, array in flat.items():
        array = np.asarray(array)
        text = f"{array.dtype} {array.shape} ".encode() + array.tobytes()
        found[f"{name}/{item}/{path}"] = hashlib.sha256(text).hexdigest()
  return found


def _as_numpy(tree: Any) -> Any:
  if isinstance(tree, dict):
    return {key: _as_numpy(x) for key, x in tree.items()}
  if isinstance(tree, list | tuple):
    return type(tree)(_as_numpy(x) for x in tree)
  return ocp.RestoreArgs(restore_type=np.ndarray)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
  if isinstance(tree, dict):
    items: Any = tree.items()
  elif isinstance(tree, list | tuple):
    items = enumerate(tree)
  else:
    return {prefix.removesuffix("/"): tree}
  found: dict[str, Any] = {}
  for key, value in items:
    found |= _flatten(value, f"{prefix}{key}/")
  return found


def _numbers(path: pathlib.Path, name: str) -> dict[str, str]:
  """The values in a file of JSON, by step where it has a line a step."""
  text = path.read_text(encoding="utf-8")
  parts = text.splitlines() if path.suffix == ".jsonl" else [text]
  return {
    f"{name}:{row['step']}:{key}": json.dumps(value, sort_keys=True)
    for row in map(json.loads, parts)
    for key, value in row.items()
    if key not in SPEED and not key.startswith("goodput/")
  }


def compare(
  old: dict[str, str], new: dict[str, str], but: tuple[str, ...]
) -> tuple[int, list[str]]:
  """Compares what two sides have left.

  Args:
    old: from `evidence`.
    new: the same.
    but: parts of names that are left out.

  Returns:
    How many items were compared, and a line for each that differs.
  """
  names = [
    name
    for name in sorted(old.keys() | new.keys())
    if not any(part in name for part in but)
  ]
  lines = []
  for name in names:
    a, b = old.get(name), new.get(name)
    if a is None or b is None:
      lines.append(f"{name}: only {'NEW' if a is None else 'OLD'} has it")
    elif a != b:
      lines.append(f"{name}: {a:.40} in OLD, {b:.40} in NEW")
  return len(names), lines


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("old")
  parser.add_argument("new")
  parser.add_argument("--only", default="", help="jobs, joined by commas")
  parser.add_argument("--but", default="", help="parts of names to leave out")
  parser.add_argument("--weights", default=str(ROOT / "runs" / "minilm"))
  parser.add_argument("--glue", default=str(ROOT.parent / "shared/data/glue"))
  parser.add_argument("--folder", default=str(ROOT / "runs" / "same_bits"))
  args = parser.parse_args()
  logging.set_verbosity(logging.ERROR)  # of Orbax, which looks for more files
  wanted = [name for name in args.only.split(",") if name] or list(JOBS)
  if unknown := set(wanted) - set(JOBS):
    sys.exit(f"--only={args.only}: {unknown} is not among {', '.join(JOBS)}")
  if "mrpc" in wanted and not (
    pathlib.Path(args.weights).exists() and pathlib.Path(args.glue).exists()
  ):
    if args.only:
      sys.exit(f"mrpc needs {args.weights} (make minilm) and {args.glue}")
    wanted.remove("mrpc")
    print(f"mrpc      skipped: {args.weights} or {args.glue} is missing")
  folder = pathlib.Path(args.folder).resolve()
  old_side = Side(args.old, folder)
  sides = [old_side, Side(args.new, folder, old_side)]
  but = tuple(part for part in args.but.split(",") if part)
  differs = False
  for job in JOBS:
    if job not in wanted and not any(job in NEEDS.get(w, ()) for w in wanted):
      continue
    for side in sides:
      out = side.folder_of(job)
      done = out.with_name(f"{out.name}.done")
      if done.exists():
        continue
      shutil.rmtree(out, ignore_errors=True)
      out.mkdir()
      JOBS[job](side, out, args)
      done.touch()
    old, new = (evidence(side.folder_of(job)) for side in sides)
    count, lines = compare(old, new, but)
    differs |= bool(lines) or not count
    print(f"{job:9} {count} items, {len(lines)} differ", flush=True)
    for line in lines[:20]:
      print(f"  {line}")
  sys.exit(1 if differs else 0)


if __name__ == "__main__":
  main()
