"""Everything that was run or planned here, in one table.

  python -m experiments.leaderboard        writes experiments/LEADERBOARD.md

Read are the records in this folder: each results.jsonl (of sweeps, of ablations
and of taggers), the runs of minilm/ and novels/, and the plans of plan/ and
reproduce/. Runs that differ only in their seed share a row: its score is their
mean, with the interval of Student's t that holds the mean with 95 %; a single
run has none. Tokens are those of the rows that were trained, steps times rows
times length, and are left out for tasks, whose rows differ.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
from pathlib import Path
import shlex
from typing import Any

import numpy as np

from bert_jax import tasks

HERE = Path(__file__).parent
OUTPUT = HERE / "LEADERBOARD.md"
HEAD = (
  "status", "experiment", "model", "tokens", "seconds", "hardware", "result",
  "commit", "command",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Entry:
  """One run, or one plan.

  Attributes:
    experiment: what was trained or planned, such as a task.
    model: the weights or the shape that it starts from.
    metric: the name of its score, or of what is predicted.
    value: the score.
    command: what makes it, as it is typed.
    seed: of the run; None for plans.
    tokens: that were trained, or None.
    seconds: of the run, or of a planned step; None if not recorded.
    hardware: the devices, or the slice of a plan.
    commit: the code.
    recipe: what else tells runs apart.
  """

  experiment: str
  model: str
  metric: str
  value: float
  command: str
  seed: int | None
  tokens: float | None
  seconds: float | None
  hardware: str
  commit: str
  recipe: str = ""


def main_metric(task: str, metrics: Mapping[str, float]) -> str:
  """Returns the metric that a task is compared by, or that of pre-training."""
  if task in tasks.TASKS:
    return f"eval/{tasks.TASKS[task].main_metric}"
  known = ("eval/mlm_accuracy", "eval/loss", *sorted(metrics))
  return next(name for name in known if name in metrics)


def _percent(task: str, value: float) -> float:
  return value * tasks.TASKS[task].percent if task in tasks.TASKS else value


def _name(weights: Any) -> str:
  return str(weights).rsplit("/", maxsplit=1)[-1] if weights else "fresh"


def _lines(path: Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def of_results(path: Path) -> Iterator[Entry]:
  """Yields the runs of a results.jsonl."""
  planned = path.with_name("trials.json")
  command = (
    json.loads(planned.read_text())["command"] if planned.exists() else ""
  )
  for row in _lines(path):
    config, task = row["config"], row["task"]
    name = main_metric(task, row["metrics"])
    data, is_task = config["data"], task in tasks.TASKS
    steps = row.get("steps")
    recipe = row.get("recipe") or row.get("settings", {})
    varied = {k: v for k, v in recipe.items() if k not in ("seed", "config")}
    fresh = config.get("init_random") and "fresh, shape of "
    model = _name(config.get("init_from"))
    if not is_task:
      model = row.get("trial", model)
    tokens = None
    if not is_task and steps:
      tokens = steps * data["batch_size"] * data["seq_len"]
    where = path.parent.relative_to(HERE)
    told = [
      f", {key.rpartition('.')[2]} {varied[key]}"
      for key in ("features", "optim.learning_rate")
      if key in varied
    ]
    made = command or f"python -m experiments.{where}.run (see its help)"
    yield Entry(
      f"{where}: {task}{''.join(told)}", f"{fresh or ''}{model}", name,
      _percent(task, row["metrics"][name]), made,
      row["seed"], tokens, row["seconds"], row["hardware"], row["commit"],
      json.dumps(varied, sort_keys=True),
    )  # fmt: skip


def of_minilm(folder: Path) -> Iterator[Entry]:
  """Yields the runs of minilm/runs, which are a file each."""
  for path in sorted(folder.glob("*.json")):
    row = json.loads(path.read_text())
    run, task = row["run"], row["task"]
    name = main_metric(task, row["final"])
    devices = run["devices"]
    argv = [word for word in run["argv"] if "seed=" not in word]
    yield Entry(
      f"minilm: {task}", row["start"], name,
      _percent(task, row["final"][name]), shlex.join(argv), row["seed"], None,
      row.get("train_secs_by_median_speed"),
      f"{devices['count']} x {', '.join(devices['kind'])}", run["commit"],
      "" if row["start"] == "minilm" else "fresh",
    )  # fmt: skip


def of_run(folder: Path) -> Iterator[Entry]:
  """Yields a recorded workdir of pre-training: its last evaluation."""
  run = json.loads((folder / "run.json").read_text())
  rows = [row for row in _lines(folder / "metrics.jsonl") if "eval/loss" in row]
  last, data = rows[-1], run["config"]["data"]
  devices = run["devices"]
  yield Entry(
    f"{folder.parent.name}: pre-training", folder.name, "eval/mlm_accuracy",
    last["eval/mlm_accuracy"], shlex.join(run["argv"]), run["seed"],
    last["step"] * data["batch_size"] * data["seq_len"], None,
    f"{devices['count']} x {', '.join(devices['kind'])}", run["commit"],
  )  # fmt: skip


def of_plans(path: Path) -> Iterator[Entry]:
  """Yields plans by name: of plan/table.json, or of reproduce/plans.json."""
  for name, plan in json.loads(path.read_text()).items():
    if "predicted_step_secs" not in plan:  # it did not fit, or failed
      continue
    argv = plan.get("argv")
    if argv is None:
      topology, *rest = name.split()
      argv = [*rest, f"--topology={topology}"]
    slices = [x.partition("=")[2] for x in argv if x.startswith("--topology=")]
    config = next(x for x in argv if x.startswith("--config="))
    yield Entry(
      f"{path.parent.name}: a step", config.removeprefix("--config=configs/"),
      "predicted MFU, percent", 100 * plan["predicted_mfu"],
      shlex.join(["bert-jax", "--mode=plan", *argv]), None, None,
      plan["predicted_step_secs"], slices[0], plan["commit"], name,
    )  # fmt: skip


def entries() -> list[Entry]:
  """All of them, runs before plans."""
  found: list[Entry] = []
  for path in sorted(HERE.rglob("results.jsonl")):
    found += of_results(path)
  found += of_minilm(HERE / "minilm" / "runs")
  for path in sorted((HERE / "novels").glob("*/run.json")):
    found += of_run(path.parent)
  for path in (HERE / "plan" / "table.json", HERE / "reproduce" / "plans.json"):
    found += of_plans(path)
  return found


def interval(values: list[float]) -> str:
  """Returns the mean of runs, with its interval if there are several.

  Example:
    >>> interval([50.0]), interval([50.0, 52.0, 54.0])
    ('50.00 (one run)', '52.00 (47.03 to 56.97, 3 runs)')
  """
  mean = float(np.mean(values))
  if len(values) < 2:
    return f"{mean:.2f} (one run)"
  from scipy import stats  # slow to import

  width = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
  low, high = mean - width, mean + width
  return f"{mean:.2f} ({low:.2f} to {high:.2f}, {len(values)} runs)"


def _cells(group: list[Entry]) -> list[str]:
  """Returns the cells of runs that differ only in their seed."""
  one = group[0]
  is_plan = one.seed is None
  known = [e.seconds for e in group if e.seconds is not None]
  seconds = f"{sum(known):,.0f}" if len(known) == len(group) else ""
  result = f"{one.metric} {interval([e.value for e in group])}"
  if is_plan:
    seconds = f"{one.seconds:.4f} a step"
    result = f"{one.metric} {one.value:.1f}"
  commits = dict.fromkeys(e.commit[:10] for e in group)
  return [
    "planned" if is_plan else "run", one.experiment, one.model,
    "" if one.tokens is None else f"{one.tokens:,}", seconds, one.hardware,
    result, ", ".join(commits), f"`{one.command}`",
  ]  # fmt: skip


def text(found: list[Entry]) -> str:
  """The page, in Markdown."""
  groups: dict[Any, list[Entry]] = {}
  for e in found:
    key = (e.experiment, e.model, e.metric, e.recipe, e.seed is None)
    groups.setdefault(key, []).append(e)
  rows = sorted(
    map(_cells, groups.values()),
    key=lambda c: (c[0] != "run", c[1], c[2], c[6]),
  )
  lines = [
    "# All that was run or planned",
    "",
    "Made by `python -m experiments.leaderboard` from the records of this "
    "folder. Nothing was run on a TPU: the rows that say *planned* are "
    "predictions for compiled programs, with kernels at assumed shares of "
    "the peak: none was planned again since plans read the compiler's "
    "schedules. Seconds are those of all runs of a row together, where all "
    "are known. Scores are those of development sets, accuracies of words a "
    "share; the mean of several seeds has its 95 % interval, and one run shows "
    "no spread at all.",
    "",
    f"| {' | '.join(HEAD)} |",
    "|---" * len(HEAD) + "|",
    *(f"| {' | '.join(cells)} |" for cells in rows),
    "",
  ]
  return "\n".join(lines)


def main() -> None:
  """Writes the page."""
  OUTPUT.write_text(text(entries()))


if __name__ == "__main__":
  main()
