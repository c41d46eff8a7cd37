"""Reports single runs: their curves as a picture, their evaluations as a table.

All numbers come from the metrics.jsonl and run.json of the runs, which may
still be training.
"""

from collections.abc import Mapping, Sequence
import html
import os
import statistics
from typing import Any

from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import goodput
from bert_jax.runtime import metrics_log
from bert_jax.runtime import runs
from bert_jax.sweeps import matrix_pictures
from bert_jax.sweeps import pages
from bert_jax.training import confusion
from bert_jax.training import terminal

# What a score of an evaluation is compared with, drawn as a dotted line.
_BASELINES = {"unigram_loss", "most_frequent_token_accuracy"}
_LOSSES = ("mlm_loss", "loss")
# The ends of the names of what a probe is compared with.
_PROBE_BASELINES = ("_untrained", "_majority")


class CurvesError(errors.UserError):
  """A run has no metrics that could be shown."""


def report(workdirs: Sequence[str], output: str) -> list[str]:
  """Writes OUTPUT/report.md, report.html and curves.png about some runs.

  Args:
    workdirs: the folders of the runs.
    output: the folder to write to.

  Returns:
    The paths of the files.

  Raises:
    CurvesError: A run has not logged anything yet.
    runs.RunError: A folder holds no run.
  """
  facts, rows, matrices = {}, {}, {}
  for workdir in workdirs:
    name = os.path.basename(os.path.normpath(workdir))
    name = workdir if name in rows else name
    run = runs.read_run(workdir)
    rows[name] = metrics_log.read_metrics(workdir)
    if not rows[name]:
      raise CurvesError(
        f"{workdir}/metrics.jsonl has no line yet: the run has not logged "
        "anything; try again later"
      )
    facts[name] = _facts(run, rows[name])
    matrices[name] = matrix_pictures.draw(confusion.read(workdir))
    if spent := goodput.read(workdir):
      facts[name] += f" Time: {spent.describe()}."
  png = _draw(rows)
  tables = {
    name: list(filter(None, (_table(found), _table(found, "probe/"))))
    for name, found in rows.items()
  }
  files.make_folder(output)
  pictures = {"curves.png": png} | {
    _file_of(number, picture): picture.png
    for number, name in enumerate(rows)
    for picture in matrices[name]
  }
  texts = {
    "report.md": _markdown(facts, tables, matrices),
    "report.html": _html(facts, tables, png, matrices),
  }
  for name, text in texts.items():
    files.write_text(os.path.join(output, name), text)
  for name, data in pictures.items():
    files.write_bytes(os.path.join(output, name), data)
  return [os.path.join(output, name) for name in (*texts, *pictures)]


def _file_of(number: int, picture: matrix_pictures.Picture) -> str:
  """Returns the name of the file of a picture of one of the runs."""
  run = f"-{number + 1}" if number else ""
  return f"confusion{run}-{picture.split.replace(':', '-')}.png"


def _facts(run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns a sentence about what was trained, on what, and how fast."""
  rates = [
    row["train/steps_per_sec"] for row in rows if "train/steps_per_sec" in row
  ]
  speed = f", {statistics.median(rates):.2f} steps/s" if rates else ""
  devices = run["devices"]
  return (
    f"{terminal.model_words(run['config'])}; "
    f"{terminal.batch_words(run['config'])} a step; step "
    f"{rows[-1]['step']:,}; seed {run['seed']}; commit "
    f"{(run['commit'] or 'unknown')[:10]}, data {run['data_hash'][:10]}; "
    f"{devices['count']} x {', '.join(devices['kind'])}{speed}."
  )


def _scores(
  rows: Sequence[Mapping[str, Any]], group: str = "eval/"
) -> list[str]:
  """Returns the names of the scores of a group, losses first."""
  names = {key for row in rows for key in row if key.startswith(group)}
  return sorted(names, key=lambda name: ("loss" not in name, name))


def _table(
  rows: Sequence[Mapping[str, Any]], group: str = "eval/"
) -> list[list[str]]:
  """Returns the scores of a group, a row a step, below the headings."""
  names = _scores(rows, group)
  table = [["step", *(name.removeprefix(group) for name in names)]]
  for row in rows:
    values = [row.get(name) for name in names]
    if any(value is not None for value in values):
      shown = ["" if v is None else f"{v:.4g}" for v in values]
      table.append([f"{row['step']:,}", *shown])
  return table if len(table) > 1 else []


def _draw(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
  """Draws losses, scores from -1 to 1, and probes if any; returns a PNG."""
  plt = pages.pyplot()
  has_probes = any(_scores(found, "probe/") for found in rows.values())
  count = 3 if has_probes else 2
  figure, (left, right, *more) = plt.subplots(
    1, count, figsize=(5.5 * count, 4.2), layout="constrained"
  )
  for number, (run, found) in enumerate(rows.items()):
    color = f"C{number}"
    keys = {key for row in found for key in row}
    loss = next((n for n in _LOSSES if f"train/{n}" in keys), "loss")
    _plot(left, found, f"train/{loss}", f"{run}, training", color, alpha=0.4)
    _plot(left, found, f"eval/{loss}", f"{run}, held out", color)
    styles = ("-", "--", "-.")
    scores = [n.removeprefix("eval/") for n in _scores(found)]
    shown = [n for n in scores if _is_share(found, n) and n not in _BASELINES]
    for style, name in zip(styles, shown, strict=False):
      _plot(right, found, f"eval/{name}", f"{run}, {name}", color, style)
    for name in _BASELINES.intersection(scores):
      axes = left if name.endswith("loss") else right
      label = f"{run}, {name.replace('_', ' ')}"
      _plot(axes, found, f"eval/{name}", label, "gray", ":")
  left.set(xlabel="step", ylabel="loss")
  right.set(xlabel="step", ylabel="score of the held-out data")
  for axes in more:
    _draw_probes(axes, rows)
    axes.set(xlabel="step", ylabel="score of a probe")
  for axes in (left, right, *more):
    axes.grid(alpha=0.3)
    if axes.lines:
      axes.legend(fontsize=8)
    else:
      axes.text(0.5, 0.5, "nothing yet", ha="center", transform=axes.transAxes)
  return pages.png_of(figure, 105)


def _draw_probes(axes, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
  """Draws each score of the probes, and its baselines in the same color."""
  number = 0
  for run, found in rows.items():
    names = _scores(found, "probe/")
    scores = [n for n in names if not n.endswith(_PROBE_BASELINES)]
    for name in scores:
      color, label = f"C{number}", name.removeprefix("probe/")
      number += 1
      _plot(axes, found, name, f"{run}, {label}", color)
      for end, style in zip(_PROBE_BASELINES, ("--", ":"), strict=True):
        if name + end in names:
          words = f"{run}, {label}, {end.strip('_')}"
          _plot(axes, found, name + end, words, color, style, alpha=0.6)


def _is_share(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
  values = [row[f"eval/{name}"] for row in rows if f"eval/{name}" in row]
  return "loss" not in name and all(-1 <= value <= 1 for value in values)


def _plot(axes, rows, key, label, color, style="-", alpha=1.0) -> None:
  """Draws one curve, with markers where it has few points."""
  points = [(row["step"], row[key]) for row in rows if key in row]
  if points:
    marker = "." if len(points) < pages.FEW_POINTS and style != ":" else ""
    axes.plot(
      *zip(*points, strict=True),
      style,
      color=color,
      alpha=alpha,
      label=label,
      marker=marker,
    )


def _markdown(facts, tables, matrices) -> str:
  parts = ["![Curves](curves.png)"]
  for number, (name, text) in enumerate(facts.items()):
    parts += [f"## {name}", text]
    for head, *rows in tables[name]:
      lines = [head, ["---:"] * len(head), *rows]
      parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts += [
      f"![{one.caption}]({_file_of(number, one)})" for one in matrices[name]
    ]
  return "\n\n".join(parts) + "\n"


def _html(facts, tables, png, matrices) -> str:
  parts = [pages.image(png, "Loss and scores by step")]
  for name, text in facts.items():
    if len(facts) > 1:  # else the title says it
      parts.append(f"<h2>{html.escape(name)}</h2>")
    parts.append(f"<p>{html.escape(text)}</p>")
    for head, *rows in tables[name]:
      parts.append(f"<table><tr><th>{'</th><th>'.join(head)}</th></tr>")
      cell = "</td><td class=number>"
      parts += [
        f"<tr><td class=number>{cell.join(row)}</td></tr>" for row in rows
      ]
      parts.append("</table>")
    parts += [pages.figure(one.png, one.caption) for one in matrices[name]]
  return pages.page(", ".join(facts), parts)
