"""Records the results of finished trials: DIR/results.jsonl, a line per run.

Only finished runs are recorded. The lines are sorted, and each run has one, so
that recording again changes nothing. The file trials.json beside it lists the
trials of the sweep, so that a report can name the trials without results.
"""

from collections.abc import Mapping, Sequence
import json
import logging
import math
import os
import shlex
from typing import Any

import numpy as np

from bert_jax import tasks
from bert_jax.data.store import manifests
from bert_jax.runtime import early_stopping
from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import metrics_log
from bert_jax.runtime import runs
from bert_jax.sweeps import running
from bert_jax.sweeps import sweep

_log = logging.getLogger(__name__)


def _is_number(value: Any) -> bool:
  """Returns True for a JSON number that a float can hold, NaN and infinity."""
  return type(value) is float or (type(value) is int and abs(value) < 1 << 63)


def _is_point(value: Any) -> bool:
  return manifests.has_form(value, [_is_number]) and len(value) == 2


def _is_setting(value: Any) -> bool:
  values = value if isinstance(value, list) else [value]
  return not any(isinstance(x, dict | list) for x in values)


def _or_null(form: Any) -> Any:
  return lambda value: value is None or form(value)


def _dict_of(form: Any) -> Any:
  """Returns the form of a dict with any keys, whose values have a form."""
  return lambda value: (
    isinstance(value, dict)
    and all(manifests.has_form(x, form) for x in value.values())
  )


def _are_settings(value: Any) -> bool:
  is_dict = _dict_of(_is_setting)(value)
  return is_dict and manifests.is_text(value.get("config", ""))


_TEXT = (manifests.is_text, "a text")
_NUMBER_OR_NULL = (_or_null(_is_number), "a number or null")
# The keys of a line. Each has the form of its value (manifests.has_form), and a
# description of the form.
_ROW: dict[str, tuple[Any, str]] = {
  "id": _TEXT,
  "trial": _TEXT,
  "task": _TEXT,
  "seed": (lambda value: type(value) is int, "an integer"),
  "metrics": (_dict_of(_is_number), "an object of numbers"),
  "settings": (_are_settings, "an object of texts, numbers and lists"),
  "commits": ([_or_null(manifests.is_text)], "a list of commits"),
  "dirty": (_or_null(lambda x: isinstance(x, bool)), "true, false or null"),
  "finished": _TEXT,
  "hardware": _TEXT,
  "seconds": (_is_number, "a number"),
  "useful_tokens_per_sec": _NUMBER_OR_NULL,
  "most_frequent": _NUMBER_OR_NULL,
  "curves": (
    _dict_of([_is_point]), "an object of lists of points (step, value)"
  ),
}  # fmt: skip
_PLANNED = {
  "command": manifests.is_text,
  "trials": [{"trial": manifests.is_text}],
}
_CURVE_POINTS = 100  # of a curve that is kept
_CURVES = ("train/loss", "eval/loss", "eval/mlm_loss")


class ResultsError(errors.UserError):
  """The results cannot be read."""


# Flags that change how a sweep is run, but not its trials; and whether a flag
# has a value.
_WAYS = {
  "num_parallel": True, "num_together": True, "engine": True,
  "verbosity": True, "v": True, "retry_failed": False, "noretry_failed": False,
}  # fmt: skip


def command_of(arguments: Sequence[str]) -> str:
  """Returns the command that runs a sweep again, including failed trials.

  Args:
    arguments: the arguments with which the launcher was started.
  """
  kept, rest = [], iter(arguments)
  for argument in rest:
    name, equals, _ = argument.lstrip("-").partition("=")
    if not argument.startswith("-") or name not in _WAYS:
      kept.append(argument)
    elif _WAYS[name] and not equals:
      next(rest, None)  # the value is the next argument
  return shlex.join(["bert-jax", *kept, "--retry_failed"])


def record(
  trials: Sequence[sweep.Trial], workdir: str, folder: str, command: str
) -> int:
  """Adds the results of finished trials to a folder.

  Args:
    trials: all trials of a sweep.
    workdir: the folder of the sweep.
    folder: the folder of results.jsonl and trials.json.
    command: the command that runs the sweep.

  Returns:
    The number of new lines.
  """
  path = os.path.join(folder, "results.jsonl")
  there = read(folder) if files.exists(path) else []
  rows = {row["id"]: row for row in there}
  before = len(rows)
  secs = running.Journal(workdir).seconds()
  for one in trials:
    if not one.is_done() or (key := _id(one)) in rows:
      continue
    if (row := row_of(one, secs.get(one.name)))["metrics"]:
      rows[key] = row | {"id": key}
    else:
      _log.warning(
        "%s has no evaluation, so it is not recorded; prepare its data with "
        "prepare.held_out_rate above 0 to compare trials",
        one.workdir,
      )
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
  path = os.path.join(folder, "trials.json")
  files.write_json(path, planned, indent=1, sort_keys=True)
  return len(rows) - before


def _id(one: sweep.Trial) -> str:
  """Returns a hash that identifies a run, independent of the trial's name."""
  run = runs.read_run(one.workdir)
  facts = [run["config"], run["data_hash"], run["commit"]]
  return files.json_hash(facts)[:16]


def row_of(one: sweep.Trial, seconds: float | None) -> dict[str, Any]:
  """Returns the line of a finished trial, without its "id".

  Args:
    one: a trial that is done.
    seconds: how long it ran, including start-up; None = the time of its steps.
      Trials that were trained together share the time.
  """
  run = runs.read_run(one.workdir)
  rows = metrics_log.read_metrics(one.workdir)
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
    "steps": early_stopping.stop_step(rows, config) or run["total_steps"],
    "together": run.get("together", 1),
    "useful_tokens_per_sec": float(np.median(useful)) if useful else None,
    "metrics": _scores(rows, config),
    "most_frequent": most_frequent(one),
    "curves": {name: curve for name in drawn if (curve := _curve(rows, name))},
  }


def _scores(rows: Sequence[Mapping], config: Mapping) -> dict[str, float]:
  """Returns the metrics eval/NAME that stand for a run.

  They are those of the best evaluation, whose step is kept, if the run may stop
  early: it stops because the later ones are worse. Else they are the last.
  """
  evaluated = [r["step"] for r in rows if any(k.startswith("eval/") for k in r)]
  step = early_stopping.best_step(rows, config)
  if step is None:
    step = evaluated[-1] if evaluated else 0
  return metrics_log.scores_at(rows, step)


def _curve(rows: Sequence[Mapping], name: str) -> list[list[float]]:
  """Returns points (step, value) of a metric, at most _CURVE_POINTS of them."""
  points = [[r["step"], r[name]] for r in rows if name in r]
  if len(points) > _CURVE_POINTS:
    chosen = np.linspace(0, len(points) - 1, _CURVE_POINTS).round().astype(int)
    points = [points[i] for i in chosen]
  return points


def most_frequent(one: sweep.Trial) -> float | None:
  """Returns the accuracy of always predicting the most frequent label.

  A run that is not more accurate did not learn its task.

  Returns:
    The accuracy, or None if the trial does not train a classifier.
  """
  from bert_jax.training import jobs  # loads jax

  config = one.load_config()
  if config.objective != "task":
    return None
  job: Any = jobs.open_job(config, "")[0]  # a job of fine-tuning
  split = job.split(job.task.eval_splits[0])
  return job.objective.most_frequent(split.examples)


def read(folder: str) -> list[dict[str, Any]]:
  """Returns the lines of the results.jsonl of a folder.

  Raises:
    ResultsError: the file is missing or damaged.
  """
  path = os.path.join(folder, "results.jsonl")
  rows: list[dict[str, Any]] = []
  files.check_readable(path)
  try:
    with files.reading(path, "r") as f:
      for line in f:
        rows.append(_parse_row(line))
  except FileNotFoundError as error:
    raise ResultsError(
      f"{folder} holds no results.jsonl; bert-jax sweep --output={folder} "
      "writes it from finished runs"
    ) from error
  except (ValueError, RecursionError, OSError) as error:
    raise ResultsError(
      f"{path} is damaged: line {len(rows) + 1}: {error}; remove that line, or "
      f"record the sweep again with bert-jax sweep --output={folder}"
    ) from error
  return rows


def _parse_row(line: str) -> dict[str, Any]:
  """Reads a line, which must have the keys of _ROW with values of their forms.

  JSON has no NaN, so metrics that were NaN are null there.
  """
  row = json.loads(line)
  if not isinstance(row, dict):
    raise ValueError("it is not a JSON object")
  if missing := sorted(_ROW.keys() - row.keys()):
    raise ValueError(f"it has no {', '.join(missing)}")
  if isinstance(metrics := row["metrics"], dict):
    row["metrics"] = {
      k: math.nan if v is None else v for k, v in metrics.items()
    }
  for key, (form, wanted) in _ROW.items():
    if not manifests.has_form(row[key], form):
      raise ValueError(f"{key} is {row[key]!r:.60}; it must be {wanted}")
  return row


def read_planned(folder: str) -> dict[str, Any]:
  """Returns the content of trials.json; without a file, there are no trials.

  Raises:
    ResultsError: the file is damaged.
  """
  path = os.path.join(folder, "trials.json")
  files.check_readable(path)
  try:
    planned = files.read_json(path, {"command": "", "trials": []})
    if not manifests.has_form(planned, _PLANNED):
      raise ValueError("it has no command, or no trials with names")
  except (ValueError, OSError) as error:
    raise ResultsError(f"{path} is damaged: {error}") from error
  return planned
