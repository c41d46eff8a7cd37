"""What the terminal shows of a training: its start, its log and its end."""

from collections.abc import Iterable, Mapping
import math
import os
from typing import Any

from bert_jax.runtime import goodput
from bert_jax.runtime import metrics_log
from bert_jax.runtime.settings import Config

_WIDTH = 80
# Metrics that are in metrics.jsonl and not shown, since others say the same.
_HIDDEN = {"param_norm", "tokens_per_sec"}
# Name of a metric -> how it is shown.
_SHOWN = {
  "learning_rate": "lr {}",
  "steps_per_sec": "{} steps/s",
  "useful_tokens_per_sec": "{} useful tokens/s",
}

# Group of the metrics of a line -> what the line is called.
_GROUPS = {"eval": " evaluation", "probe": " probes"}


def number(value: float) -> str:
  """Returns a number with four digits, or more if it is a large integer."""
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def log_line(step: int, row: Mapping[str, float], run: str = "") -> str:
  """Returns the metrics of a step in a line or more of 80 columns, loss first.

  Args:
    step: the number of updates.
    row: the metrics, by names such as train/loss and eval/loss.
    run: the name of the run, if several are shown.
  """
  names = {key: key.partition("/")[2] for key in row}
  groups = {key.partition("/")[0] for key in row}
  what = "".join(text for group, text in _GROUPS.items() if group in groups)
  head = f"{run} step {step}{what}:".strip()
  items = [
    _SHOWN.get(name, f"{name} {{}}").format(number(row[key]))
    for key, name in sorted(
      names.items(), key=lambda pair: (pair[1] != "loss", "loss" not in pair[1])
    )
    if name not in _HIDDEN and not key.startswith("goodput/")
  ]
  return _fill(head, items)


def _fill(head: str, items: Iterable[str]) -> str:
  """Joins items by two spaces; lines after the first are indented."""
  lines = [head]
  for item in items:
    if len(lines[-1]) + 2 + len(item) > _WIDTH:
      lines.append("   ")
    lines[-1] += f" {item}" if lines[-1] == head else f"  {item}"
  return "\n".join(lines)


def model_words(config: Config | Mapping[str, Any]) -> str:
  """Returns the size of a model, such as "12 layers of 768, ...".

  Args:
    config: the whole configuration, or that of a run.json.
  """
  model = config["model"]
  return (
    f"{model['num_layers']} layers of {model['hidden_size']}, vocabulary of "
    f"{model['vocab_size']:,}"
  )


def batch_words(config: Config | Mapping[str, Any]) -> str:
  """Returns the size of a batch, such as "256 rows of 128 tokens".

  Args:
    config: the whole configuration, or that of a run.json.
  """
  data = config["data"]
  rows = "examples" if config["objective"] == "task" else "rows"
  return f"{data['batch_size']:,} {rows} of {data['seq_len']} tokens"


def start_lines(
  config: Config,
  workdir: str,
  num_parameters: int,
  epoch_steps: float,
  num_trained: int | None = None,
) -> str:
  """Returns what is about to be trained, on what, and what is saved where.

  Args:
    config: the whole configuration.
    workdir: the folder of the run.
    num_parameters: the parameters of the model and its heads.
    epoch_steps: the number of steps of one epoch.
    num_trained: how many of the parameters are trained; None means all.
  """
  data, keys = config.data, config.checkpoint
  source = data.dir if config.objective != "task" else config.task.name
  start = config.init_from or "random weights"
  if config.init_from and config.init_random:
    start = f"random weights in the shape of {config.init_from}"
  saves = [f"every {keys.every_steps:,} steps"] if keys.every_steps else []
  saves += [f"the best {keys.best_metric}"] if keys.best_metric else []
  trained = ""
  if num_trained is not None:
    share = num_trained / num_parameters
    trained = f", of which {num_trained:,} ({share:.2%}) are trained"
  lines = {
    "model": f"{model_words(config)}: {num_parameters:,} parameters, from "
    f"{start}{trained}",
    "data": f"{source}, {number(epoch_steps)} steps an epoch of "
    f"{batch_words(config)}",
    "saves": f"{workdir}: {', '.join([*saves, 'the last step'])}",
  }
  return "\n".join(f"{name:<8}{text}" for name, text in lines.items())


def time_left(num_steps: float, steps_per_sec: float) -> str:
  """Returns about how long the rest of a training takes, in words."""
  secs = num_steps / steps_per_sec
  for unit, length in (("hours", 3600), ("minutes", 60)):
    if secs >= 2 * length:
      return f"about {secs / length:.1f} {unit} to go, without evaluations"
  return f"about {secs:.0f} seconds to go, without evaluations"


def end_lines(config: Config, workdir: str) -> str:
  """Returns the results, where the time went, and the next command."""
  name = config.checkpoint.best_metric or "eval/loss"
  rows = metrics_log.read_metrics(workdir)
  scored = {
    row["step"]: row[name]
    for row in rows
    if math.isfinite(row.get(name, math.nan))
  }
  lines = []
  if scored:
    keys = config.checkpoint
    choose = max if keys.best_metric and keys.best_mode == "max" else min
    best = choose(scored, key=lambda step: scored[step])
    last = max(scored)
    lines.append(
      f"{name} {number(scored[last])} at step {last:,}, the best is "
      f"{number(scored[best])} at step {best:,}"
    )
    if 0 in scored and last:
      lines.append(f"before training it was {number(scored[0])}")
  if spent := goodput.read(workdir):
    lines.append(f"time: {spent.describe()}")
  lines.append(f"metrics in {os.path.join(workdir, 'metrics.jsonl')}")
  lines.append(f"next: bert-jax evaluate --workdir={workdir}")
  return "\n".join(lines)
