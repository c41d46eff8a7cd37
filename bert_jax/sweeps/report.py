"""Reports the results of a sweep in Markdown, and as an HTML page with plots.

All numbers come from results.jsonl and trials.json (results.py). Runs that
differ only in their seed share a line of the table.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import html
import itertools
import json
import math
import os
import re
import statistics
from typing import Any

import numpy as np
from rich import console as rich_console
from rich import markup
from rich import measure
from rich import table as rich_table
from scipy import stats

from bert_jax import tasks
from bert_jax.runtime import files
from bert_jax.sweeps import pages
from bert_jax.sweeps import results
from bert_jax.sweeps import sweep

# Scores of BERT-base (arXiv 1810.04805v2): those of the development set if the
# paper has them, else those of the test set.
PAPER = {
  "mnli": ("accuracy", 84.4, "dev, table 5"),
  "qnli": ("accuracy", 88.4, "dev, table 5"),
  "mrpc": ("accuracy", 86.7, "dev, table 5"),
  "sst2": ("accuracy", 92.7, "dev, table 5"),
  "squad_v1": ("f1", 88.5, "dev, table 2"),
  "swag": ("accuracy", 81.6, "dev, table 4"),
  "conll2003": ("entity_f1", 96.4, "dev, table 7"),
  "cola": ("matthews", 52.1, "test, table 1"),
  "stsb": ("spearman", 85.8, "test, table 1"),
  "rte": ("accuracy", 66.4, "test, table 1"),
}
_RESAMPLES = 9_999
_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of the table: runs that differ only in their seed.

  Attributes:
    task: the name of the task.
    settings: (name, value) of the settings that differ between lines, in the
      same order for all lines.
    metric: the name of the main metric.
    values: the metric of each run, in per cent.
    degenerate: how many runs are not better than a constant answer.
    rows: the rows of results.jsonl.
  """

  task: str
  settings: tuple[tuple[str, str], ...]
  metric: str
  values: tuple[float, ...]
  degenerate: int
  rows: tuple[Mapping[str, Any], ...]

  @property
  def median(self) -> float:
    """The median of the main metric over the runs."""
    return statistics.median(self.values)

  @property
  def label(self) -> str:
    """The settings as one text."""
    return ", ".join(f"{k}={v}" for k, v in self.settings if v) or "all"


def lines_of(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
  """Groups the rows of results.jsonl into lines of the table.

  If a trial was run at several commits, only its newest run counts.

  Raises:
    results.ResultsError: a run lacks the main metric of its task.
  """
  groups: dict[tuple[str, str], dict[Any, Mapping]] = {}
  for row in rows:
    settings = {k: v for k, v in row["settings"].items() if k != "seed"}
    key = (row["task"], json.dumps(settings, sort_keys=True))
    groups.setdefault(key, {})[row["seed"]] = row
  all_settings = _differing(
    [
      sweep.facts_of(settings.pop("config", ""), settings)
      for settings in (json.loads(text) for _, text in groups)
    ]
  )
  found = []
  for ((task, _), runs), differing in zip(
    groups.items(), all_settings, strict=True
  ):
    metric, scale = _metric(task, next(iter(runs.values()))["metrics"])
    chosen = tuple(runs.values())
    for row in chosen:
      if f"eval/{metric}" not in row["metrics"]:
        raise results.ResultsError(
          f"results.jsonl: the run {row['id']} of trial {row['trial']} lacks "
          f"eval/{metric}, the main metric of task {task}; remove that line"
        )
    values = tuple(r["metrics"][f"eval/{metric}"] * scale for r in chosen)
    bad = sum(
      _is_degenerate(r, v / scale) for r, v in zip(chosen, values, strict=True)
    )
    found.append(Line(task, differing, metric, values, bad, chosen))
  return sorted(found, key=lambda line: (line.task, line.label))


def _metric(task: str, metrics: Mapping[str, float]) -> tuple[str, float]:
  """Returns the main metric of a task, and its factor to per cent."""
  if task in tasks.TASKS:
    known = tasks.TASKS[task]
    return known.main_metric, known.percent
  for name in ("accuracy", "f1", "micro_f1", "mlm_accuracy"):
    if f"eval/{name}" in metrics:
      return name, 100.0
  return "loss", 1.0


def _is_degenerate(row: Mapping[str, Any], value: float) -> bool:
  accuracy = row["metrics"].get("eval/accuracy")
  floor = row.get("most_frequent")
  if floor is not None and accuracy is not None:
    return accuracy <= floor
  return value == 0.0 or not np.isfinite(value)


def _differing(
  settings: Sequence[Mapping[str, Any]],
) -> list[tuple[tuple[str, str], ...]]:
  """Returns (name, value) of the settings that differ, without the task.

  A setting that a line lacks has the value "".
  """
  keys = sorted({key for one in settings for key in one} - {"task"})
  found = {key: [one.get(key, "") for one in settings] for key in keys}
  found = {
    key: values
    for key, values in found.items()
    if len({json.dumps(value) for value in values}) > 1
  }
  last = [key.rpartition(".")[2] for key in found]
  names, columns = [], []
  for key, word in zip(found, last, strict=True):
    folder, column = _without_common_folder([str(v) for v in found[key]])
    name = word if last.count(word) == 1 and word not in HEADINGS else key
    names.append(" ".join(filter(None, (name, folder))))
    columns.append(column)
  rows = zip(*columns, strict=True) if columns else [()] * len(settings)
  return [tuple(zip(names, row, strict=True)) for row in rows]


def _without_common_folder(paths: list[str]) -> tuple[str, list[str]]:
  """Splits paths into their common folder ("" = they differ) and the rest."""
  folders = {os.path.dirname(path) for path in paths}
  if len(folders) > 1 or not all(folders):
    return "", paths
  return folders.pop(), [os.path.basename(path) for path in paths]


def interval(values: Sequence[float], offset: float) -> tuple[float, float]:
  """Returns the 95 % bootstrap interval of the mean of runs minus a number.

  Args:
    values: the metric of two runs or more.
    offset: the number, which is assumed to be exact.

  Returns:
    The ends of the interval; NaN if a value is NaN or infinite.
  """
  array = np.asarray(values) - offset
  if not np.isfinite(array).all():
    return math.nan, math.nan
  if np.ptp(array) == 0:
    return float(array[0]), float(array[0])
  found = stats.bootstrap(
    (array,),
    np.mean,
    n_resamples=_RESAMPLES,
    confidence_level=_LEVEL,
    method="percentile",
    rng=np.random.default_rng(0),
  ).confidence_interval
  return float(found.low), float(found.high)


HEADINGS = (
  "task", "metric", "median", "mean", "std", "min", "max", "runs",
  "degenerate", "best by dev", "minus the paper's", "the paper's", "s a run",
  "useful tokens/s", "hardware",
)  # fmt: skip


def cells(line: Line, is_best: bool) -> dict[str, str]:
  """Returns the texts of a row of the table, by its headings.

  Args:
    line: the line of the table.
    is_best: whether its settings are the best of its task.
  """
  values = line.values
  spread = "-"
  if len(values) > 1:
    is_finite = np.isfinite(values).all()
    spread = f"{statistics.stdev(values) if is_finite else math.nan:.2f}"
  speeds = [r["useful_tokens_per_sec"] for r in line.rows]
  known = [s for s in speeds if s]
  secs = statistics.median(r["seconds"] for r in line.rows)
  shown = (
    line.metric,
    f"{line.median:.2f}",
    f"{statistics.mean(values):.2f}",
    spread,
    f"{min(values):.2f}",
    f"{max(values):.2f}",
    str(len(values)),
    str(line.degenerate),
    "best" if is_best else "",
    _difference(line),
    "{} {}, {}".format(*PAPER[line.task]) if line.task in PAPER else "-",
    f"{secs:,.0f}",
    f"{statistics.median(known):,.0f}" if known else "-",
    ", ".join(sorted({r["hardware"] for r in line.rows})),
  )
  own = {"task": line.task} | dict(line.settings)
  return own | dict(zip(HEADINGS[1:], shown, strict=True))


def _difference(line: Line) -> str:
  metric, number, _ = PAPER.get(line.task, ("", 0.0, ""))
  scale = _metric(line.task, {})[1]
  found = [r["metrics"].get(f"eval/{metric}") for r in line.rows]
  values = [v * scale for v in found if v is not None]
  if not values:
    return "-"
  text = f"{statistics.mean(values) - number:+.1f}"
  if len(values) > 1:
    low, high = interval(values, number)
    text += f" [{low:+.1f}, {high:+.1f}]"
  return text


def best_lines(lines: Sequence[Line]) -> set[tuple[str, str]]:
  """Returns (task, label) of the line with the best median of each task.

  Args:
    lines: the lines, which `lines_of` has sorted by task.
  """
  by_task = itertools.groupby(lines, lambda line: line.task)
  best = (
    max(same, key=lambda x: -x.median if x.metric == "loss" else x.median)
    for _, same in by_task
  )
  return {(line.task, line.label) for line in best}


def _plots(lines: Sequence[Line]) -> list[tuple[str, bytes]]:
  """Draws the learning curves of each task; returns (caption, PNG)."""
  plt = pages.pyplot()
  plots = []
  for task in dict.fromkeys(line.task for line in lines):
    chosen = [line for line in lines if line.task == task]
    names = {"train/loss": "training loss"}
    _, scale = _metric(task, chosen[0].rows[0]["metrics"])
    metric = f"eval/{chosen[0].metric}"
    points = [r["curves"].get(metric, ()) for one in chosen for r in one.rows]
    if any(len(curve) > 1 for curve in points):
      names[metric] = f"{chosen[0].metric}, dev"
    figure, panels = plt.subplots(
      1, len(names), figsize=(10, 3.6), layout="constrained", squeeze=False
    )
    for axes, (name, what) in zip(panels[0], names.items(), strict=True):
      for line in chosen:
        _draw(
          axes,
          [r["curves"].get(name) for r in line.rows],
          line.label,
          scale if name == metric else 1.0,
        )
      axes.set(xlabel="step", ylabel=what, title=task)
    if panels[0][0].lines:
      handles, labels = panels[0][0].get_legend_handles_labels()
      figure.set_figheight(3.6 + 0.16 * len(labels))  # inches
      figure.legend(
        handles, labels, loc="outside lower center", fontsize="x-small"
      )
    caption = f"{task}: {' and '.join(names.values())}, median and range"
    plots.append((caption, pages.png_of(figure, 110)))
  return plots


def _draw(
  axes, points: Sequence[Sequence | None], label: str, scale: float
) -> None:
  """Draws the median of runs at every step, and their range."""
  curves = [np.asarray(c, float) * (1.0, scale) for c in points if c]
  if not curves:
    return
  steps = curves[0][:, 0]
  values = np.stack([np.interp(steps, c[:, 0], c[:, 1]) for c in curves])
  marker = "." if len(steps) < pages.FEW_POINTS else ""
  (drawn,) = axes.plot(steps, np.median(values, 0), label=label, marker=marker)
  axes.fill_between(
    steps, values.min(0), values.max(0), alpha=0.2, color=drawn.get_color()
  )


_NOTE = (
  "Numbers are in per cent, of the development set. The best settings of a "
  "task are those with the highest median there, so that this number is "
  "optimistic; the first of several equal ones is chosen. A run is degenerate "
  "if it is not better than a constant answer. The paper's numbers are those "
  "of BERT-base. Brackets contain a 95 % bootstrap interval of the difference "
  "between the mean and the paper's number, which is assumed to be exact."
)


def report(folder: str, output: str) -> list[str]:
  """Writes OUTPUT/report.md and report.html, and prints the table.

  Args:
    folder: the folder of results.jsonl and trials.json.
    output: the folder to write to.

  Returns:
    The paths of both files.

  Raises:
    results.ResultsError: there are no results, or they are damaged.
  """
  rows = results.read(folder)
  if not rows:
    raise results.ResultsError(f"{folder}/results.jsonl holds no result yet")
  lines = lines_of(rows)
  best = best_lines(lines)
  table = [cells(line, (line.task, line.label) in best) for line in lines]
  if not any(line.task in PAPER for line in lines):
    for row in table:
      del row["minus the paper's"], row["the paper's"]
  planned = results.read_planned(folder)
  there = {row["trial"] for row in rows}
  names = [trial["trial"] for trial in planned["trials"]]
  lost = [name for name in names if name not in there]
  commits = {
    str(commit)[:10] + ("+" if r["dirty"] else "")
    for r in rows
    for commit in r["commits"]
  }
  facts = (
    f"{len(rows)} runs of {len(names) or len(rows)}; commits "
    f"{', '.join(sorted(commits))} (+: with changes)."
  )
  page = (facts, table, lost, planned["command"])
  title = os.path.basename(files.absolute(folder))
  files.make_folder(output)
  paths = [os.path.join(output, f"report.{end}") for end in ("md", "html")]
  files.write_text(paths[0], _markdown(title, *page))
  files.write_text(paths[1], _html(title, *page, _plots(lines)))
  _print(*page)
  return paths


# Characters that Markdown takes for markup. An underscore within a word and a
# bracket that does not end the text of a link are not among them.
_MARKUP = re.compile(r"[\\`*|<>&#~]|(?<!\w)_|_(?!\w)|\](?=[(\[:])")


def _plain(text: str) -> str:
  """Returns text on one line, escaped so that Markdown shows it as it is."""
  return _MARKUP.sub(r"\\\g<0>", " ".join(text.splitlines()))


def _markdown(title, facts, table, lost, command) -> str:
  def row(texts):
    return f"| {' | '.join(map(_plain, texts))} |"

  rules = "|---" * len(table[0]) + "|"
  rows = [row(table[0]), rules, *(row(cells.values()) for cells in table)]
  parts = [f"# {_plain(title)}", _plain(facts), _NOTE, "\n".join(rows)]
  if lost:
    names = "\n".join(f"- {_plain(name)}" for name in lost)
    ticks = max(map(len, re.findall("`+", command)), default=0) + 1
    fence = "`" * max(ticks, 3)  # longer than any fence in the command
    parts.append(f"Missing, {len(lost)}:\n\n{names}")
    parts.append(f"{fence}sh\n{command}\n{fence}")
  return "\n\n".join(parts) + "\n"


def _html(title, facts, table, lost, command, plots) -> str:
  def row(texts):
    inner = "".join(
      f"<td{' class=number' if text[:1] in '+-0123456789' and text else ''}>"
      f"{html.escape(text)}</td>"
      for text in texts.values()
    )
    best = " class=best" if texts["best by dev"] else ""
    return f"<tr{best}>{inner}</tr>"

  headings = "".join(f"<th>{html.escape(text)}</th>" for text in table[0])

  parts = [
    f"<p>{html.escape(facts)}</p><p>{html.escape(_NOTE)}</p>",
    f"<table><tr>{headings}</tr>",
    *(row(texts) for texts in table),
    "</table>",
  ]
  if lost:
    items = "".join(f"<li>{html.escape(name)}</li>" for name in lost)
    parts.append(
      f"<h2>Missing: {len(lost)}</h2><ul>{items}</ul>"
      f"<pre>{html.escape(command)}</pre>"
    )
  parts += [pages.figure(png, caption) for caption, png in plots]
  return pages.page(title, parts)


def _print(facts, table, lost, command) -> None:
  out = rich_console.Console(highlight=False)
  if not out.is_terminal:  # nothing is cut in a file or a pipe
    out = rich_console.Console(highlight=False, width=200)
  narrow = ("minus the paper's", "s a run")  # these and what follows are cut
  shown = itertools.takewhile(lambda h: h not in narrow, table[0])
  headings, unlimited = list(shown), out.options.update_width(10_000)
  for heading in ("", "metric", "mean", "std", "runs", "degenerate"):
    if heading:
      headings.remove(heading)
    grid = rich_table.Table(*headings, box=None, pad_edge=False)
    for row in table:
      grid.add_row(*(markup.escape(row[x]) for x in headings))
    if measure.Measurement.get(out, unlimited, grid).maximum <= out.width:
      break
  out.print(grid)
  out.print(markup.escape(facts))
  if lost:
    out.print(markup.escape(f"missing: {len(lost)}, by {command}"))
