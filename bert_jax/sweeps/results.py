"""Results of finished trials: DIR/results.jsonl, one line per run.

Only a finished run enters. Lines are sorted, and no run has two, so that
recording again changes nothing. The file trials.json beside it lists the trials
of the sweep, from which a report tells which are missing.
"""

from collections.abc import Mapping, Sequence
import hashlib
import itertools
import json
import math
import os
import shlex
from typing import Any

import numpy as np

from bert_jax import tasks
from bert_jax.data.store import manifests
from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import metrics_log
from bert_jax.runtime import runs
from bert_jax.sweeps import running
from bert_jax.sweeps import sweep


def _is_number(value: Any) -> bool:
  """Returns whether a float holds the JSON value; also NaN and infinity."""
  return type(value) is float or (type(value) is int and abs(value) < 1 << 63)


def _are_numbers(value: Any) -> bool:
  return isinstance(value, dict) and all(map(_is_number, value.values()))


def _are_settings(value: Any) -> bool:
  if not isinstance(value, dict) or not manifests.is_text(
    value.get("config", "")
  ):
    return False
  lists = [x if isinstance(x, list) else [x] for x in value.values()]
  return not any(
    isinstance(x, dict | list) for x in itertools.chain.from_iterable(lists)
  )


def _are_curves(value: Any) -> bool:
  return isinstance(value, dict) and all(
    isinstance(curve, list)
    and all(isinstance(p, list) and len(p) == 2 for p in curve)
    and all(map(_is_number, itertools.chain(*curve)))
    for curve in value.values()
  )


def _or_null(form: Any) -> Any:
  return lambda value: value is None or form(value)


_TEXT = (manifests.is_text, "a text")
_NUMBER_OR_NULL = (_or_null(_is_number), "a number or null")
# The keys of a line: the form of each value (manifests.has_form) and its words.
_ROW: dict[str, tuple[Any, str]] = {
  "id": _TEXT,
  "trial": _TEXT,
  "task": _TEXT,
  "seed": (lambda value: type(value) is int, "an integer"),
  "metrics": (_are_numbers, "an object of numbers"),
  "settings": (_are_settings, "an object of texts, numbers and lists"),
  "commits": ([_or_null(manifests.is_text)], "a list of commits"),
  "dirty": (_or_null(lambda x: isinstance(x, bool)), "true, false or null"),
  "finished": _TEXT,
  "hardware": _TEXT,
  "seconds": (_is_number, "a number"),
  "useful_tokens_per_sec": _NUMBER_OR_NULL,
  "most_frequent": _NUMBER_OR_NULL,
  "curves": (_are_curves, "an object of lists of points (step, value)"),
}
_PLANNED = {
  "command": manifests.is_text,
  "trials": [{"trial": manifests.is_text}],
}
_CURVE_POINTS = 100  # of a curve that is kept
_CURVES = ("train/loss", "eval/loss", "eval/mlm_loss")


class ResultsError(errors.UserError):
  """The results cannot be read."""


# How often and how fast a sweep was run is no part of its command.
_WAYS = (
  "--num_parallel", "--num_together", "--retry_failed", "--engine",
  "--verbosity",
)  # fmt: skip


def command_of(arguments: Sequence[str]) -> str:
  """Returns the command that runs a sweep again, failed trials included.

  Args:
    arguments: of the launcher, as it was started.
  """
  given = [a for a in arguments if not a.startswith(_WAYS)]
  return shlex.join(["bert-jax", *given, "--retry_failed"])


def record(
  trials: Sequence[sweep.Trial], workdir: str, folder: str, command: str
) -> int:
  """Adds the results of finished trials to a folder.

  Args:
    trials: all trials of a sweep.
    workdir: the folder of the sweep.
    folder: where results.jsonl and trials.json go.
    command: the command that runs the sweep.

  Returns:
    How many lines are new.
  """
  path = os.path.join(folder, "results.jsonl")
  there = read(folder) if os.path.exists(path) else []
  rows = {row["id"]: row for row in there}
  before = len(rows)
  secs = running.Journal(workdir).seconds()
  for one in trials:
    if one.is_done() and (key := _id(one)) not in rows:
      rows[key] = row_of(one, secs.get(one.name)) | {"id": key}
  files.make_folder(folder)
  lines = [
    files.to_json(row, sort_keys=True) + "\n"
    for row in sorted(
      rows.values(), key=lambda r: (r["trial"], r["finished"], r["id"])
    )
  ]
  files.write_text(path, "".join(lines))
  planned = {
    "command": command,
    "trials": [
      {"trial": t.name, "config": t.config, "settings": dict(t.settings)}
      for t in trials
    ],
  }
  text = json.dumps(planned, indent=1, sort_keys=True) + "\n"
  files.write_text(os.path.join(folder, "trials.json"), text)
  return len(rows) - before


def _id(one: sweep.Trial) -> str:
  """Returns a hash that identifies a run, whatever its trial is called."""
  run = runs.read_run(one.workdir)
  text = json.dumps(
    [run["config"], run["data_hash"], run["commit"]], sort_keys=True
  )
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def row_of(one: sweep.Trial, seconds: float | None) -> dict[str, Any]:
  """Returns the line of a finished trial, without its "id".

  Args:
    one: a trial that is done.
    seconds: how long it ran, start-up included; None = take the time of its
      steps. Trials that were trained together share the time.
  """
  run = runs.read_run(one.workdir)
  rows = metrics_log.read_metrics(one.workdir)
  final = [r for r in rows if any(k.startswith("eval/") for k in r)][-1]
  metrics = {k: v for k, v in final.items() if k.startswith("eval/")}
  speeds = [r for r in rows if r.get("train/steps_per_sec")]
  if seconds is None:
    seconds = metrics_log.train_secs(rows) / run.get("together", 1)
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
  """Returns points (step, value) of a metric, evenly chosen if many."""
  points = [[r["step"], r[name]] for r in rows if name in r]
  if len(points) > _CURVE_POINTS:
    chosen = np.linspace(0, len(points) - 1, _CURVE_POINTS).round().astype(int)
    points = [points[i] for i in chosen]
  return points


def most_frequent(one: sweep.Trial) -> float | None:
  """Returns the accuracy of always giving the most frequent label.

  A run that is no better did not learn its task. None = the trial is not one
  of classification.
  """
  from bert_jax.training import jobs  # loads jax

  config = one.load_config()
  if config.objective != "task":
    return None
  job, _ = jobs.open_job(config, "")
  task: Any = getattr(job, "task")  # noqa: B009  (of fine-tuning jobs)
  split: Any = getattr(job, "split")(task.eval_splits[0])  # noqa: B009
  kind: Any = job.objective
  return kind.most_frequent(split.examples)


def read(folder: str) -> list[dict[str, Any]]:
  """Returns the lines of the results.jsonl of a folder.

  Raises:
    ResultsError: the file is missing or damaged.
  """
  path = os.path.join(folder, "results.jsonl")
  rows = []
  files.check_readable(path)
  try:
    with open(path, encoding="utf-8") as f:
      for number, line in enumerate(f, 1):
        try:
          rows.append(_checked_row(_with_nan(json.loads(line))))
        except (ValueError, RecursionError) as error:
          raise ValueError(f"line {number}: {error}") from error
  except FileNotFoundError as error:
    raise ResultsError(
      f"{folder} holds no results.jsonl; --mode=sweep --output={folder} writes "
      "it from runs that are finished"
    ) from error
  except (ValueError, OSError) as error:
    raise ResultsError(
      f"{path} is damaged: {error}; take that line out, or record the sweep "
      f"again with --mode=sweep --output={folder}"
    ) from error
  return rows


def _with_nan(row: Any) -> Any:
  """Turns metrics that are null back into NaN, which JSON cannot hold."""
  metrics = row.get("metrics") if isinstance(row, dict) else None
  if not isinstance(metrics, dict):
    return row
  known = {k: math.nan if v is None else v for k, v in metrics.items()}
  return row | {"metrics": known}


def _checked_row(row: Any) -> dict[str, Any]:
  """Returns a line if it has all keys of _ROW, with values of their forms."""
  if not isinstance(row, dict):
    raise ValueError("it is not a JSON object")
  if missing := sorted(_ROW.keys() - row.keys()):
    raise ValueError(f"it has no {', '.join(missing)}")
  for key, (form, wanted) in _ROW.items():
    if not manifests.has_form(row[key], form):
      raise ValueError(f"{key} is {row[key]!r:.60}; {wanted} was wanted")
  return row


def read_planned(folder: str) -> dict[str, Any]:
  """Returns the content of trials.json; no trials if there is no file."""
  path = os.path.join(folder, "trials.json")
  if not os.path.exists(path):
    return {"command": "", "trials": []}
  files.check_readable(path)
  try:
    with open(path, encoding="utf-8") as f:
      planned = json.load(f)
    if not manifests.has_form(planned, _PLANNED):
      raise ValueError("it has no command and trials with names")
  except (ValueError, RecursionError, OSError) as error:
    raise ResultsError(f"{path} is damaged: {error}") from error
  return planned
