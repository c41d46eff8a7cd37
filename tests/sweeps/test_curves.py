"""Tests of curves.py: the report of single runs."""

import pathlib
import re
import shutil

import pytest

from bert_jax.runtime import files
from bert_jax.runtime import metrics_log
from bert_jax.sweeps import curves
from bert_jax.training import confusion
from tests.support import launching

launch = launching.launch


def test_a_run_is_reported_with_its_evaluations_and_curves(
  finished_run, tmp_path
):
  out = tmp_path / "out"
  paths = curves.report([finished_run.workdir], str(out))
  assert sorted(map(str, out.iterdir())) == sorted(paths)
  text = (out / "report.md").read_text()
  rows = metrics_log.read_metrics(finished_run.workdir)
  scored = [row for row in rows if "eval/mlm_loss" in row]
  lines = re.findall(r"^\| \d.*$", text, re.M)
  assert len(lines) == len(scored) == 4
  assert f"{scored[-1]['eval/mlm_loss']:.4g}" in lines[-1]
  assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
  assert "1 layers of 32" in text and "step 8" in text
  page = (out / "report.html").read_text()
  assert "max-width:1160px" in page and "data:image/png;base64" in page


def test_an_unfinished_run_shows_what_there_is(finished_run, tmp_path):
  run = tmp_path / "run"
  run.mkdir()
  shutil.copy(f"{finished_run.workdir}/run.json", run)
  metrics = run / "metrics.jsonl"
  metrics.write_text("")
  with pytest.raises(curves.CurvesError, match="has no line yet"):
    curves.report([str(run)], str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()
  # The last line is still being written.
  metrics.write_text('{"step": 1, "train/loss": 2.5}\n{"step": 2, "trai')
  curves.report([str(run)], str(tmp_path / "out"))
  assert "step 1;" in (tmp_path / "out" / "report.md").read_text()


def test_probes_are_drawn_and_have_a_table_of_their_own(finished_run, tmp_path):
  run = tmp_path / "run"
  run.mkdir()
  shutil.copy(f"{finished_run.workdir}/run.json", run)
  name = "probe/sst2_linear_accuracy"
  (run / "metrics.jsonl").write_text(
    '{"step": 1, "train/loss": 2.5}\n'
    f'{{"step": 2, "{name}": 0.75, "{name}_untrained": 0.5}}\n'
  )
  curves.report([str(run)], str(tmp_path / "out"))
  text = (tmp_path / "out" / "report.md").read_text()
  head = "| step | sst2_linear_accuracy | sst2_linear_accuracy_untrained |"
  assert head in text and "| 2 | 0.75 | 0.5 |" in text


def test_the_confusion_matrix_of_a_run_is_shown(finished_run, tmp_path):
  run = tmp_path / "run"
  run.mkdir()
  shutil.copy(f"{finished_run.workdir}/run.json", run)
  (run / "metrics.jsonl").write_text('{"step": 2, "train/loss": 2.5}\n')
  counts = [[5, 1], [0, 1234]]
  split = {"labels": ["<a>", "$b"], "counts": counts}
  confusion.write(str(run), 2, {"dev": split})
  assert confusion.read(str(run))["splits"]["dev"]["counts"] == counts
  paths = curves.report([str(run)], str(tmp_path / "out"))
  assert str(tmp_path / "out/confusion-dev.png") in paths
  page = (tmp_path / "out/report.html").read_text()
  assert page.count("data:image/png;base64") == 2
  assert "dev at step 2" in page and "1,239 of 1,240 are right" in page
  assert "(confusion-dev.png)" in (tmp_path / "out/report.md").read_text()


def test_a_damaged_confusion_matrix_is_refused(tmp_path):
  assert confusion.read(str(tmp_path)) == {}
  for text in ("{", "[]", '{"splits": {"a": {"labels": ["x"], "counts": []}}}'):
    (tmp_path / "confusion.json").write_text(text)
    with pytest.raises(files.FilesError, match=r"confusion.json.*evaluate"):
      confusion.read(str(tmp_path))


def test_several_runs_share_a_picture_and_have_a_table_each(
  finished_run, tmp_path
):
  other = tmp_path / "other"
  shutil.copytree(finished_run.workdir, other)
  curves.report([finished_run.workdir, str(other)], str(tmp_path / "out"))
  text = (tmp_path / "out" / "report.md").read_text()
  names = re.findall(r"^## (.*)$", text, re.M)
  assert names == [pathlib.Path(finished_run.workdir).name, "other"]


def test_the_launcher_reports_a_run_into_its_workdir(
  launch, finished_run, tmp_path, capsys
):
  run = tmp_path / "run"
  shutil.copytree(finished_run.workdir, run)
  assert launch("report", f"--input={run}") == 0
  assert (run / "report.html").exists()
  assert launch("report", f"--input={tmp_path}") == 2
  assert "holds no run" in capsys.readouterr().err
  assert launch("report") == 2
