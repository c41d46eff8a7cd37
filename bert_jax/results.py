"""What finished trials found: DIR/results.jsonl, a line a run.

A number enters only from a workdir whose run is finished. Lines are sorted and
none is there twice, so that recording again changes nothing. Beside it lies
trials.json, what the sweep was to run: a report tells from it what is missing.
"""

import collections
from collections.abc import Mapping, Sequence
import hashlib
import json
import math
import os
from typing import Any

import numpy as np

from bert_jax import run_log
from bert_jax import sweep
from bert_jax import tasks

# Without which a line is none.
_KEYS = {"id", "trial", "task", "seed", "metrics", "settings"}
_CURVE_POINTS = 100  # of a curve that is kept
_CURVES = ("train/loss", "eval/loss", "eval/mlm_loss")


class ResultsError(ValueError):
  """The results cannot be read."""


def record(
  trials: Sequence[sweep.Trial], workdir: str, folder: str, command: str
) -> int:
  """Writes down what the finished ones of some trials found.

  Args:
    trials: of a sweep.
    workdir: of the sweep.
    folder: gets results.jsonl and trials.json.
    command: that runs the sweep.

  Returns:
    How many lines are new.
  """
  path = os.path.join(folder, "results.jsonl")
  there = read(folder) if os.path.exists(path) else []
  rows = {row["id"]: row for row in there}
  before = len(rows)
  secs = sweep.Journal(workdir).seconds()
  for one in trials:
    if one.is_done() and (key := _id(one)) not in rows:
      rows[key] = row_of(one, secs.get(one.name)) | {"id": key}
  os.makedirs(folder, exist_ok=True)
  lines = [
    run_log.to_json(row, sort_keys=True) + "\n"
    for row in sorted(
      rows.values(), key=lambda r: (r["trial"], r["finished"], r["id"])
    )
  ]
  run_log.write_text(path, "".join(lines))
  planned = {
    "command": command,
    "trials": [
      {"trial": t.name, "config": t.config, "settings": dict(t.settings)}
      for t in trials
    ],
  }
  text = json.dumps(planned, indent=1, sort_keys=True) + "\n"
  run_log.write_text(os.path.join(folder, "trials.json"), text)
  return len(rows) - before


def _id(one: sweep.Trial) -> str:
  """What identifies a run, whatever its trial is called."""
  run = run_log.read_run(one.workdir)
  text = json.dumps(
    [run["config"], run["data_hash"], run["commit"]], sort_keys=True
  )
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def row_of(one: sweep.Trial, seconds: float | None) -> dict[str, Any]:
  """The line of a finished trial.

  Args:
    one: a trial that is done.
    seconds: that it ran, start-up included; None = what its steps took. Of
      what was trained together each has its share.
  """
  run = run_log.read_run(one.workdir)
  rows = run_log.read_metrics(one.workdir)
  final = [r for r in rows if any(k.startswith("eval/") for k in r)][-1]
  metrics = {k: v for k, v in final.items() if k.startswith("eval/")}
  speeds = [r for r in rows if r.get("train/steps_per_sec")]
  if seconds is None:
    seconds = run_log.train_secs(rows) / run.get("together", 1)
  config, devices = run["config"], run["devices"]
  useful = [r["train/useful_tokens_per_sec"] for r in speeds]
  sessions = [*run.get("sessions", []), run]
  task = config["task"]["name"] or config["objective"]
  drawn = list(_CURVES)
  if task in tasks.TASKS:
    drawn.append(f"eval/{tasks.TASKS[task].main_metric}")
  return {
    "trial": one.name,
    "task": task,
    "seed": run["seed"],
    "settings": dict(one.settings) | {"config": one.config},
    "config": config,
    "commit": run["commit"],
    "commits": list(dict.fromkeys(s.get("commit") for s in sessions)),
    "finished": run.get("resumed") or run["started"],
    "dirty": run["dirty"],
    "data_hash": run["data_hash"],
    "hardware": f"{devices['count']} x {', '.join(devices['kind'])}",
    "seconds": round(seconds, 1),
    "steps": run["total_steps"],
    "together": run.get("together", 1),
    "useful_tokens_per_sec": float(np.median(useful)) if useful else None,
    "metrics": metrics,
    "most_frequent": most_frequent(one),
    "curves": {name: curve for name in drawn if (curve := _curve(rows, name))},
  }


def _curve(rows: Sequence[Mapping], name: str) -> list[list[float]]:
  """Points (step, value), evenly chosen where they are many."""
  points = [[r["step"], r[name]] for r in rows if name in r]
  if len(points) > _CURVE_POINTS:
    chosen = np.linspace(0, len(points) - 1, _CURVE_POINTS).round().astype(int)
    points = [points[i] for i in chosen]
  return points


def most_frequent(one: sweep.Trial) -> float | None:
  """The accuracy of always giving the most frequent label; None = no such.

  A run that is no better did not learn its task.
  """
  from bert_jax import jobs  # loads jax

  config = one.load_config()
  if config.objective != "task":
    return None
  job, _ = jobs.open_job(config, "")
  task: Any = getattr(job, "task")  # noqa: B009  (of fine-tuning jobs)
  if task.kind != "classify":
    return None
  split: Any = getattr(job, "split")(task.eval_splits[0])  # noqa: B009
  counts = collections.Counter(e.label for e in split.examples)
  return max(counts.values()) / sum(counts.values())


def read(folder: str) -> list[dict[str, Any]]:
  """The lines of a results.jsonl.

  Args:
    folder: that it lies in.

  Raises:
    ResultsError: it is missing or damaged.
  """
  path = os.path.join(folder, "results.jsonl")
  rows = []
  try:
    with open(path, encoding="utf-8") as f:
      for number, line in enumerate(f, 1):
        row = json.loads(line)
        missing = _KEYS - set(row)
        if missing:
          raise ValueError(f"line {number} has no {', '.join(sorted(missing))}")
        row["metrics"] = {  # what was not finite is null
          k: math.nan if v is None else v for k, v in row["metrics"].items()
        }
        rows.append(row)
  except FileNotFoundError as error:
    raise ResultsError(
      f"{folder} holds no results.jsonl; --mode=sweep --output={folder} writes "
      "it from runs that are finished"
    ) from error
  except (ValueError, TypeError, AttributeError, OSError) as error:
    raise ResultsError(f"{path} is damaged: {error}") from error
  return rows


def read_planned(folder: str) -> dict[str, Any]:
  """trials.json, or nothing planned where it is not there."""
  path = os.path.join(folder, "trials.json")
  if not os.path.exists(path):
    return {"command": "", "trials": []}
  try:
    with open(path, encoding="utf-8") as f:
      planned = json.load(f)
    if not {"command", "trials"} <= set(planned):
      raise ValueError("it has no command and trials")
  except (ValueError, TypeError) as error:
    raise ResultsError(f"{path} is damaged: {error}") from error
  return planned
