"""Tests of tasks/submission.py."""

import json
import math
import zipfile

import pytest

from bert_jax.kinds import classify
from bert_jax.kinds import span
from bert_jax.kinds import table
from bert_jax.tasks import TASKS
from bert_jax.tasks import glue
from bert_jax.tasks import spec
from bert_jax.tasks import submission


def pairs(*ids, label=None):
  return [spec.PairExample(id, "a", None, label) for id in ids]


def guess(label, *probabilities):
  return classify.ClassPrediction(label, probabilities)


def test_labels_are_spelled_as_in_the_files_and_scores_are_clipped():
  three = pairs("0", "1", "2")
  tsv = submission.glue_tsv(
    TASKS["mnli"], three, [guess(0), guess(1), guess(2)]
  )
  assert tsv == (
    "index\tprediction\n0\tcontradiction\n1\tentailment\n2\tneutral\n"
  )
  assert submission.glue_tsv(
    TASKS["cola"], three[:2], [guess(1), guess(0)]
  ) == ("index\tprediction\n0\t1\n1\t0\n")
  assert submission.glue_tsv(TASKS["stsb"], three, [5.2, -0.1, 1.23456]) == (
    "index\tprediction\n0\t5.000\n1\t0.000\n2\t1.235\n"
  )


def test_predictions_that_are_not_finite_are_null_in_the_file(tmp_path):
  path = tmp_path / "predictions.jsonl"
  table.TASK_KINDS["classify"].write_predictions(
    TASKS["cola"],
    pairs("0"),
    [guess(0, math.nan, math.inf)],
    str(path.with_suffix("")),
  )
  row = json.loads(path.read_text(), parse_constant=pytest.fail)
  assert None in row["probabilities"].values()


def test_rows_are_in_the_order_of_the_file():
  shuffled = submission.glue_tsv(
    TASKS["rte"], pairs("2", "0", "1"), [guess(0), guess(1), guess(0)]
  )
  assert shuffled.split()[2:] == [
    "0", "not_entailment", "1", "entailment", "2", "entailment"
  ]  # fmt: skip
  # Numbers that are no places are left alone.
  assert submission.glue_tsv(
    TASKS["wnli"], pairs("9", "4"), [guess(0), guess(1)]
  ).split()[2:] == ["0", "0", "1", "1"]


def write_results(folder, count):
  """`count` predictions (or the right number) for every test split of GLUE.

  Returns the workdirs, one a task.
  """
  for task in glue.ROWS:
    (folder / task.name / "predictions").mkdir(parents=True)
    for file in task.submission.values():
      n = count or submission.GLUE_ROWS[file]
      prediction = 1.0 if task.kind == "regress" else guess(0)
      text = submission.glue_tsv(
        task, pairs(*map(str, range(n))), [prediction] * n
      )
      (folder / task.name / "predictions" / file).write_text(text)
  return [str(folder / task.name) for task in glue.ROWS]


def test_the_zip_has_eleven_files_of_the_right_length(tmp_path):
  path, again = str(tmp_path / "glue.zip"), str(tmp_path / "again.zip")
  runs = write_results(tmp_path, 0)
  submission.zip_runs(path, runs)
  with zipfile.ZipFile(path) as archive:
    assert set(archive.namelist()) == set(submission.GLUE_ROWS)
    for name, count in submission.GLUE_ROWS.items():
      lines = archive.read(name).decode("utf-8").split("\n")
      assert lines[0] == "index\tprediction"
      assert len(lines) == count + 2
      assert lines[-1] == ""
  submission.zip_runs(again, runs[::-1])
  with open(path, "rb") as one, open(again, "rb") as other:
    assert one.read() == other.read()


def test_missing_and_short_files_are_refused(tmp_path):
  path = tmp_path / "glue.zip"
  runs = write_results(tmp_path, 2)
  with pytest.raises(
    spec.TaskError, match="CoLA.tsv: 2 predictions, wanted 10"
  ):
    submission.zip_runs(str(path), runs)
  runs = [run for run in runs if not run.endswith("ax")]
  with pytest.raises(spec.TaskError, match="missing: AX.tsv"):
    submission.zip_runs(str(path), runs)
  assert not path.exists()
  submission.zip_runs(str(path), runs, partial=True)
  with zipfile.ZipFile(path) as archive:
    assert len(archive.namelist()) == 10


@pytest.mark.parametrize(
  ("name", "example", "prediction", "row"),
  [
    (
      "rte",
      spec.PairExample("4", "a", "b", 1),
      guess(0, 0.75, 0.25),
      {
        "id": "4",
        "label": "entailment",
        "probabilities": {"entailment": 0.75, "not_entailment": 0.25},
        "gold": "not_entailment",
      },
    ),
    (
      "stsb",
      spec.PairExample("4", "a", "b", None),
      6.5,
      {"id": "4", "score": 6.5},
    ),
    (
      "swag",
      spec.ChoiceExample("4", (("a", "b"), ("a", "c")), 1),
      guess(0, 0.5, 0.5),
      {"id": "4", "choice": 0, "probabilities": [0.5, 0.5], "gold": 1},
    ),
    (
      "wnut17",
      spec.TagExample("4", ("\u00e9", "b"), ("O", "O"), 0),
      ("B-group", "O"),
      {"id": "4", "tags": ["B-group", "O"], "gold": ["O", "O"]},
    ),
    (
      "squad_v2",
      spec.SpanExample("4", "a", "b", (), True),
      span.SpanPrediction("", "b", 1.5, ()),
      {
        "id": "4",
        "answer": "",
        "best_answer": "b",
        "null_odds": 1.5,
        "gold": [],
      },
    ),
  ],
)
def test_predictions_are_a_json_object_a_line(
  tmp_path, name, example, prediction, row
):
  path = tmp_path / "predictions.jsonl"
  table.of_task(TASKS[name]).write_predictions(
    TASKS[name], [example] * 2, [prediction] * 2, str(path.with_suffix(""))
  )
  lines = path.read_text(encoding="utf-8").splitlines()
  assert [json.loads(line) for line in lines] == [row, row]


def test_tsvs_of_workdirs_become_the_zip(tmp_path, capsys):
  zipped = tmp_path / "glue.zip"
  runs = []
  for name, rows in submission.GLUE_ROWS.items():
    folder = tmp_path / name / "predictions"
    folder.mkdir(parents=True)
    lines = ["index\tprediction", *(f"{i}\t0" for i in range(rows))]
    (folder / name).write_text("\n".join(lines) + "\n")
    runs.append(str(folder.parent))
  assert submission.main([f"--output={zipped}", *runs]) == 0
  with zipfile.ZipFile(zipped) as archive:
    assert sorted(archive.namelist()) == sorted(submission.GLUE_ROWS)
  zipped.unlink()
  assert submission.main([f"--output={zipped}", *runs[1:]]) == 2
  assert "missing: CoLA.tsv" in capsys.readouterr().err
  assert not zipped.exists()
  assert submission.main([f"--output={zipped}", "--partial", runs[0]]) == 0
  assert submission.main([f"--output={zipped}", runs[0], *runs]) == 2
