"""Tests of results.py and report.py: what is recorded, and what is said."""

import json
import os
import pathlib
from xml.etree import ElementTree

import markdown_it
import numpy as np
import pytest

from bert_jax import tasks
from bert_jax.runtime import metrics_log
from bert_jax.runtime import runs
from bert_jax.sweeps import report
from bert_jax.sweeps import results
from tests.support import launching
from tests.support import stopped_run
from tests.support.sweep_folders import make_row
from tests.support.sweep_folders import make_trials
from tests.support.sweep_folders import write

launch = launching.launch


@pytest.fixture
def trials(finished_run, tmp_path):
  return make_trials(finished_run, tmp_path)


def test_only_finished_runs_are_recorded_and_only_once(
  trials, finished_run, tmp_path
):
  (done, _), workdir = trials[0], trials[1]
  folder = str(tmp_path / "study")
  assert results.record(trials[0], workdir, folder, "the command") == 1
  before = (tmp_path / "study" / "results.jsonl").read_bytes()
  (row,) = results.read(folder)
  run = runs.read_run(finished_run.workdir)
  for key in ("commit", "data_hash", "seed", "config"):
    assert row[key] == run[key]
  assert row["hardware"] == "8 x cpu" and row["task"] == "mlm_nsp"
  assert row["seconds"] > 0 and row["steps"] == 8 and row["trial"] == done.name
  assert row["metrics"] == finished_run.result
  assert [step for step, _ in row["curves"]["train/loss"]] == [
    r["step"]
    for r in metrics_log.read_metrics(finished_run.workdir)
    if "train/loss" in r
  ]
  assert results.record(trials[0], workdir, folder, "the command") == 0
  assert (tmp_path / "study" / "results.jsonl").read_bytes() == before
  # Nor is one whose last step is not saved, or not evaluated.
  last = pathlib.Path(done.workdir, "checkpoints", "8")
  last.rename(tmp_path / "8")
  assert done.state() == "begun"
  assert results.record(trials[0], workdir, str(tmp_path / "none"), "") == 0
  (tmp_path / "8").rename(last)
  log = os.path.join(done.workdir, "metrics.jsonl")
  with open(log) as f:
    lines = f.readlines()
  with open(log, "w") as f:
    f.writelines(line for line in lines if "eval/" not in line)
  assert results.record(trials[0], workdir, str(tmp_path / "none"), "") == 0


def test_a_run_that_stopped_early_is_recorded_by_its_best_evaluation(
  trials, finished_run
):
  done = trials[0][0]
  stopped_run.make(finished_run.workdir, done.workdir)
  row = results.row_of(done, None)
  assert row["metrics"] == {"eval/loss": 1.0}
  assert row["steps"] == 8
  assert [step for step, _ in row["curves"]["eval/loss"]] == [2, 4, 6, 8]


def test_lines_are_named_by_the_arguments_that_differ(tmp_path):
  rows = []
  for start in ("a", "b"):
    row = make_row("rte", 0, 60.0)
    path = f"configs/finetune.py:task=rte,from=runs/{start}"
    rows.append(row | {"settings": row["settings"] | {"config": path}})
  write(tmp_path / "x", rows, [])
  lines = report.lines_of(results.read(str(tmp_path / "x")))
  assert [line.label for line in lines] == ["from runs=a", "from runs=b"]


def test_curves_of_own_tasks_are_in_per_cent_too():
  row = make_row("my-pairs", 0, 80.0)
  row["metrics"] = {"eval/accuracy": 0.8}
  (line,) = report.lines_of([row])
  assert line.values == (80.0,)
  assert report._metric(line.task, row["metrics"])[1] == 100.0


@pytest.mark.parametrize(("task", "there"), [("rte", 1), ("my-pairs", 0)])
def test_columns_of_the_paper_are_for_its_tasks(task, there, tmp_path):
  row = make_row(task, 0, 80.0)
  row["metrics"] = {"eval/accuracy": 0.8}
  write(tmp_path / "x", [row], [])
  report.report(str(tmp_path / "x"), str(tmp_path / "out"))
  text = (tmp_path / "out" / "report.md").read_text()
  (head,) = [line for line in text.splitlines() if line.startswith("| task")]
  assert head.count("| the paper's |") == there
  assert "| s a run |" in head


def test_settings_of_the_same_last_word_keep_their_columns():
  rows = []
  for train, test in ((16, 8), (16, 16), (32, 8)):
    sizes = {"data.batch_size": train, "eval.batch_size": test, "x.runs": train}
    row = make_row("rte", 0, 60.0, settings=sizes)
    rows.append(row)
  lines = report.lines_of(rows)
  found = [report.cells(line, False) for line in lines]
  assert [
    (c["data.batch_size"], c["eval.batch_size"], c["x.runs"]) for c in found
  ] == [("16", "16", "16"), ("16", "8", "16"), ("32", "8", "32")]
  assert {c["runs"] for c in found} == {"1"}
  assert all(set(report.HEADINGS) < set(c) for c in found)


def test_runs_of_one_line_differ_by_their_seed(tmp_path, capsys):
  """Median, mean, deviation, and the best by dev, by hand."""
  rows = [make_row("rte", s, v) for s, v in enumerate((60.0, 70.0, 62.0))]
  rows += [make_row("rte", s, v, rate=3e-5) for s, v in enumerate((65.0, 64.0))]
  rows[0]["most_frequent"] = 0.6  # and its accuracy is that
  rows[0]["metrics"]["eval/accuracy"] = 0.6
  write(tmp_path / "x", rows, [{"trial": r["trial"]} for r in rows[:1]])
  lines = report.lines_of(results.read(str(tmp_path / "x")))
  slow, fast = sorted(lines, key=lambda line: len(line.values))
  assert fast.values == pytest.approx((60, 70, 62))
  assert (fast.degenerate, slow.degenerate) == (1, 0)
  row = report.cells(fast, False)
  assert row["median"] == "62.00" and row["mean"] == "64.00"
  assert row["std"] == "5.29" and (row["min"], row["max"]) == ("60.00", "70.00")
  assert row["minus the paper's"].startswith("-2.4 [")  # the paper's is 66.4
  assert report.best_lines(lines) == {("rte", slow.label)}
  paths = report.report(str(tmp_path / "x"), str(tmp_path / "out"))
  page = (tmp_path / "out" / "report.html").read_text()
  assert [os.path.basename(p) for p in paths] == ["report.md", "report.html"]
  assert page.count("<tr") == 3 and "data:image/png;base64," in page
  assert "http" not in page.replace("http-equiv", "")  # self-contained
  assert "5 runs of 1" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_narrow_terminal_is_shown_fewer_columns_and_no_number_cut(
  tmp_path, capsys, monkeypatch, columns
):
  rates = (1.2345e-5, 1e-3)
  write(tmp_path / "x", [make_row("mrpc", 0, 81.22, rate=r) for r in rates])
  monkeypatch.setenv("COLUMNS", str(columns))
  monkeypatch.setenv("FORCE_COLOR", "1")  # taken for a terminal
  report.report(str(tmp_path / "x"), str(tmp_path / "out"))
  said = capsys.readouterr().out.splitlines()
  assert any("1.2345e-05" in line and "81.22" in line for line in said)
  assert ("metric" in said[0]) == (columns == 200)


def test_what_is_missing_is_named_with_the_command(tmp_path, capsys):
  rows = [make_row("mrpc", 0, 80.0)]
  planned = [{"trial": rows[0]["trial"]}, {"trial": "task=mrpc,<b>,seed=1"}]
  write(tmp_path / "x", rows, planned)
  report.report(str(tmp_path / "x"), str(tmp_path / "out"))
  text = (tmp_path / "out" / "report.md").read_text()
  assert "Missing, 1:\n\n- task=mrpc,\\<b\\>,seed=1" in text
  assert "bert-jax --mode=sweep" in text
  page = (tmp_path / "out" / "report.html").read_text()
  assert "task=mrpc,&lt;b&gt;,seed=1" in page
  assert "missing: 1" in capsys.readouterr().out


def test_the_papers_number_is_compared_with_the_same_metric(tmp_path):
  row = make_row("mrpc", 0, 88.0)
  row["metrics"]["eval/accuracy"] = 0.8
  (line,) = report.lines_of([row])
  assert (line.metric, line.values) == ("f1", (88.0,))
  said = report.cells(line, False)
  assert said["minus the paper's"] == "-6.7"
  assert said["the paper's"] == "accuracy 86.7, dev, table 5"
  for task, (metric, _, _) in report.PAPER.items():
    assert metric in tasks.TASKS[task].metrics


def test_the_newest_run_of_a_trial_counts():
  old, new = make_row("rte", 0, 60.0), make_row("rte", 0, 70.0)
  new["commit"] = "b" * 40
  (line,) = report.lines_of([old, new])
  assert line.values == pytest.approx((70.0,))


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
  generator = np.random.default_rng(0)
  covered, widths = 0, []
  for _ in range(60):
    low, high = report.interval(generator.normal(3.0, 1.0, 40), 1.0)
    covered += low < 2.0 < high
    widths.append(high - low)
  assert covered > 0.85 * 60
  np.testing.assert_allclose(np.mean(widths), 2 * 1.96 / 40**0.5, rtol=0.1)
  assert report.interval([5.0, 5.0], 1.0) == (4.0, 4.0)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (None, "holds no results.jsonl; bert-jax sweep"),
    ("", "holds no result yet"),
    ("{", "is damaged: line 1: "),
    ('{"id": 1}\n', "line 1: it has no .*metrics, .*seed, .*settings, "),
    ("3\n", "line 1: it is not a JSON object"),
    ("[" * 200_000 + "\n", "is damaged: line 1: "),
  ],
)
def test_results_that_cannot_be_read_are_refused(
  tmp_path, launch, text, message
):
  if text is not None:
    (tmp_path / "results.jsonl").write_text(text)
  with pytest.raises(results.ResultsError, match=message):
    report.report(str(tmp_path), str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()
  args = (f"--input={tmp_path}", f"--output={tmp_path / 'out'}")
  assert launch("--mode=report", *args) == 2


BAD_VALUES = (
  None, True, 0, -1, 10**400, 1.5, "x", "", [], {}, [1], ["x"], {"x": 1},
  {"x": "y"}, {"x": None}, [[1, 2]], [None], {"x": [[1]]}, {"x": [["a", "b"]]},
  {"x": [1, 2]}, {"x": {"y": 1}}, {"eval/accuracy": 1},
  {"eval/accuracy": float("inf")}, {"eval/accuracy": float("nan")},
)  # fmt: skip


@pytest.mark.parametrize("key", sorted(make_row("rte", 0, 60.0)))
def test_a_damaged_line_is_told_or_reported_without_a_traceback(
  tmp_path, key, monkeypatch
):
  """Whatever stands there; each line of two, as runs are put together."""
  monkeypatch.setattr(report, "_plots", lambda lines: [])  # slow; see below
  rows = [make_row("rte", seed, 60.0) for seed in (0, 1)]
  told = 0
  for value in (*BAD_VALUES, ...):
    damaged = dict(rows[0])
    if value is ...:
      del damaged[key]
    else:
      damaged[key] = value
    write(tmp_path / "x", [damaged, rows[1]])
    try:
      report.report(str(tmp_path / "x"), str(tmp_path / "out"))
    except results.ResultsError as error:
      assert "results.jsonl" in str(error)
      told += 1
  assert told or key in ("commit", "config", "data_hash", "steps")


@pytest.mark.parametrize("value", [[], [[1, 2]], [[1, float("nan")]]])
def test_odd_curves_are_drawn(tmp_path, value):
  row = make_row("rte", 0, 60.0)
  row["curves"] = {"train/loss": value, "eval/accuracy": [[1, 2.0]] * 2}
  write(tmp_path / "x", [row])
  assert report.report(str(tmp_path / "x"), str(tmp_path / "out"))


@pytest.mark.parametrize(
  "text",
  [
    "{", "3", "[]", "null", "[" * 200_000, '{"command": 1, "trials": []}',
    '{"command": "", "trials": [1]}', '{"command": "", "trials": {}}',
    '{"command": "", "trials": [{"trial": null}]}',
  ],
)  # fmt: skip
def test_damaged_plans_of_a_sweep_are_told(tmp_path, text):
  write(tmp_path / "x", [make_row("rte", 0, 60.0)])
  (tmp_path / "x" / "trials.json").write_text(text)
  with pytest.raises(results.ResultsError, match=r"trials\.json is damaged"):
    report.report(str(tmp_path / "x"), str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()


ODD = "a|b<i>`c` _d_ *e* [f](g) \\ & # ~~h~~\n| k |"


def test_names_cannot_change_the_layout_of_a_page(tmp_path):
  """Neither of Markdown nor of HTML."""
  settings = {"optim.learning_rate": ODD, "config": "c.py"}
  rows = [
    make_row(ODD, 0, 0.6, settings=settings, hardware=ODD),
    make_row("rte", 0, 60.0),
  ]
  for row in rows:
    row["metrics"] = {"eval/accuracy": 0.6}
  folder = tmp_path / "x_y"
  write(folder, rows, [{"trial": f"{ODD}{i}"} for i in range(2)])
  planned = {"command": f"a\n```\n# b {ODD}", "trials": [{"trial": ODD}]}
  (folder / "trials.json").write_text(json.dumps(planned))
  report.report(str(folder), str(tmp_path / "out"))
  text = (tmp_path / "out" / "report.md").read_text()
  parser = markdown_it.MarkdownIt().enable(["table", "strikethrough"])
  root = ElementTree.fromstring(f"<page>{parser.render(text)}</page>")
  tags = [element.tag for element in root.iter()]
  assert not {"i", "em", "strong", "a", "h2", "del"} & set(tags)
  assert tags.count("h1") == tags.count("table") == tags.count("code") == 1
  lengths = {len(row) for row in root.iter("tr")}
  assert len(lengths) == 1 and tags.count("tr") == 3
  line = " ".join(ODD.splitlines())
  cells = ["".join(cell.itertext()) for cell in root.iter("td")]
  assert cells.count(line) == 3
  assert [e.text for e in root.iter("li")] == [line]
  (code,) = root.iter("code")
  assert code.text.strip() == planned["command"]


@pytest.mark.parametrize(
  "given",
  [
    ["--num_parallel=4", "--retry_failed", "--verbosity=1"],
    ["--num_parallel", "4", "-v", "1", "--noretry_failed"],
  ],
)
def test_the_recorded_command_has_no_flags_of_how_it_was_run(given):
  kept = ["--mode=sweep", "--config", "4", "--workdir=runs/4"]
  assert results.command_of([*kept[:3], *given, kept[3]]) == (
    "bert-jax --mode=sweep --config 4 --workdir=runs/4 --retry_failed"
  )
