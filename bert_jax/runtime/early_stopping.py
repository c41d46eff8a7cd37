"""Early stopping, decided by the evaluations that a run has logged.

The decision is a function of metrics.jsonl and the config alone, so that a run
that is resumed stops at the same step.
"""

from collections.abc import Iterable, Mapping, Sequence
import math
import re
from typing import Any


def stop_step(
  rows: Sequence[Mapping[str, float]], config: Mapping[str, Any] | Any
) -> int | None:
  """Returns the step at which a run stops before its last one, or None.

  Args:
    rows: the lines of metrics.jsonl, in their order.
    config: the whole configuration, or that of a run.json.

  Example:
    >>> rows = [{"step": i, "eval/f1": x} for i, x in enumerate([5, 6, 6, 4])]
    >>> config = {
    ...   "train": {"patience": 2},
    ...   "checkpoint": {"best_metric": "eval/f1", "best_mode": "max"},
    ... }
    >>> stop_step(rows, config)
    3
  """
  found = (_reached(rows, config), _exhausted(rows, config))
  return min((step for step in found if step is not None), default=None)


_GOAL = re.compile(r"(eval/[\w./-]+)\s*(>=|<=)\s*([-+.\deE]+)")


def goal_of(text: str) -> tuple[str, str, float]:
  """Returns the metric, the comparison and the number of `train.stop_at`.

  Args:
    text: such as "eval/mlm_accuracy>=0.72".

  Raises:
    ValueError: The text is no such goal.
  """
  match = _GOAL.fullmatch(text.strip())
  try:
    if match:
      return match[1], match[2], float(match[3])
  except ValueError:
    pass
  raise ValueError(
    f"train.stop_at={text!r:.100}; wanted a metric of the evaluation, >= or <=,"
    ' and a number, such as "eval/mlm_accuracy>=0.72"'
  )


def is_reached(row: Mapping[str, float], text: str) -> bool:
  """Returns whether a line of metrics has the result of `train.stop_at`."""
  name, comparison, goal = goal_of(text)
  value = row.get(name, math.nan)
  return value >= goal if comparison == ">=" else value <= goal


def check_goal(text: str, metrics: Sequence[str]) -> None:
  """Checks that evaluations have the metric of `train.stop_at`.

  Args:
    text: the value of the key; "" is right.
    metrics: the names of the metrics of an evaluation.

  Raises:
    ValueError: they have not.
  """
  if text and (name := goal_of(text)[0]) not in metrics:
    raise ValueError(
      f"train.stop_at={text}: there is no metric {name}; an evaluation of this "
      f"run has {', '.join(sorted(metrics))}"
    )


def _reached(
  rows: Iterable[Mapping[str, float]], config: Mapping[str, Any] | Any
) -> int | None:
  """Returns the first step whose evaluation reaches `train.stop_at`."""
  text = config["train"].get("stop_at", "")
  if not text:
    return None
  return next((int(row["step"]) for row in rows if is_reached(row, text)), None)


def _exhausted(
  rows: Iterable[Mapping[str, float]], config: Mapping[str, Any] | Any
) -> int | None:
  """Returns the step at which `train.patience` ends, or None."""
  patience = config["train"].get("patience", 0)
  name = config["checkpoint"]["best_metric"]
  if not patience or not name:
    return None
  sign = -1 if config["checkpoint"]["best_mode"] == "max" else 1
  best = math.inf
  num_worse = 0
  for row in rows:
    if name not in row:
      continue
    value = sign * row[name]
    num_worse = 0 if value < best else num_worse + 1
    best = min(best, value) if not math.isnan(value) else best
    if num_worse >= patience:
      return int(row["step"])
  return None


def best_step(
  rows: Iterable[Mapping[str, float]], config: Mapping[str, Any] | Any
) -> int | None:
  """Returns the step with the best evaluation of a run that may stop early.

  Of equal evaluations it is the first, as of the steps that are saved.

  Args:
    rows: the lines of metrics.jsonl.
    config: the whole configuration, or that of a run.json.

  Returns:
    The step; None if the run has no patience, or no evaluation that is finite.
  """
  name = config["checkpoint"]["best_metric"]
  if not config["train"].get("patience", 0) or not name:
    return None
  sign = -1 if config["checkpoint"]["best_mode"] == "max" else 1
  values = [
    (sign * row[name], int(row["step"]))
    for row in rows
    if math.isfinite(row.get(name, math.nan))
  ]
  return min(values)[1] if values else None


def check(config: Any) -> None:
  """Raises ValueError if early stopping lacks what it needs.

  Args:
    config: the whole configuration.
  """
  every = config.eval.every_steps or config.eval.every_epochs
  if config.eval.every_steps and config.eval.every_epochs:
    raise ValueError(
      f"eval.every_steps={config.eval.every_steps} and eval.every_epochs="
      f"{config.eval.every_epochs}: give one of them, and 0 for the other"
    )
  if goal := config.train.stop_at:
    goal_of(goal)
    if not every:
      raise ValueError(
        f"train.stop_at={goal} looks at evaluations, but there is only one, at "
        "the end; set eval.every_steps, or eval.every_epochs=1"
      )
  patience = config.train.patience
  if not patience:
    return
  if not every:
    raise ValueError(
      f"train.patience={patience} counts evaluations, but there is only one, "
      "at the end; set eval.every_epochs=1, or eval.every_steps"
    )
  if not config.checkpoint.best_metric:
    raise ValueError(
      f"train.patience={patience} needs a metric that can become better; set "
      "checkpoint.best_metric, such as eval/accuracy, with "
      "checkpoint.best_mode=max, or eval/loss with min"
    )


def evaluation_steps(config: Any, epoch_steps: float) -> int:
  """Returns the steps from one evaluation to the next; 0 = only at the end.

  Args:
    config: the group `eval`.
    epoch_steps: the steps of an epoch, which need not be whole.
  """
  if not config.every_epochs:
    return config.every_steps
  return max(1, round(config.every_epochs * epoch_steps))
