"""Tests of prediction/tables.py: rows in, the same rows and answers out."""

import csv
import gzip
import json
import types

import pytest

from bert_jax.kinds import answers
from bert_jax.prediction import records
from bert_jax.prediction import tables
from bert_jax.tasks import tables as task_tables

TABLE = '\ufeffid,"text ",label\r\n1,"a, ""b""\nc",x\r\n2\r\n3,d,\r\n'
ANSWERS = [
  {"label": "x", "scores": {"x": 0.75, "y": 0.25}, "truncated": True},
  {"error": "line 4: 1 columns"},
  {"label": "y", "scores": {"x": 0.5, "y": 0.5}},
]


def answer(source, target, given=ANSWERS):
  table = tables.Table(str(source))
  with tables.writing(table, str(target)) as write:
    records = []
    for (_, record), found in zip(table.numbered(), given, strict=True):
      records.append(record)
      write(found)
  return records


@pytest.fixture
def source(tmp_path):
  path = tmp_path / "in.csv"
  path.write_bytes(TABLE.encode())
  return path


def test_a_csv_file_keeps_its_columns(source, tmp_path):
  first, broken, last = answer(source, tmp_path / "out.csv")
  assert first == {"id": "1", "text": 'a, "b"\nc', "label": "x"}
  assert isinstance(broken, answers.RecordError)
  assert last["text"] == "d"
  with open(tmp_path / "out.csv", newline="") as f:
    rows = list(csv.DictReader(f))
  assert list(rows[0]) == [
    "id", "text", "label", "predicted_label", "scores.x", "scores.y",
    "truncated", "error",
  ]  # fmt: skip
  assert rows[0]["text"] == 'a, "b"\nc'
  assert [row["predicted_label"] for row in rows] == ["x", "", "y"]
  assert rows[0]["truncated"] == "True" and rows[0]["scores.x"] == "0.75"
  assert [row["id"] for row in rows] == ["1", "", "3"]
  assert rows[1]["error"] == "line 4: 1 columns"


def test_rows_that_fail_before_any_answer_wait_for_the_columns(
  source, tmp_path
):
  given = [ANSWERS[1], ANSWERS[1], ANSWERS[0]]
  answer(source, tmp_path / "out.csv", given)
  with open(tmp_path / "out.csv", newline="") as f:
    rows = list(csv.DictReader(f))
  assert [bool(row["error"]) for row in rows] == [True, True, False]
  answer(source, tmp_path / "none.csv", [ANSWERS[1]] * 3)
  with open(tmp_path / "none.csv", newline="") as f:
    assert list(next(csv.DictReader(f)))[:3] == ["id", "text", "label"]


def test_the_ending_of_the_output_decides_its_format(source, tmp_path):
  answer(source, tmp_path / "out.jsonl")
  written = (tmp_path / "out.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in written]
  assert rows[0]["predicted_label"] == "x" and rows[0]["label"] == "x"
  assert rows[0]["scores"] == {"x": 0.75, "y": 0.25}
  answer(source, tmp_path / "out.tsv")
  found = task_tables.read_rows(str(tmp_path / "out.tsv"))
  assert len(found) == 3 and found[0][1]["text"] == 'a, "b" c'


def test_parquet_keeps_types(source, tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet")
  import pyarrow

  rows = [{"n": 1, "text": "a", "tags": ["x"]}, {"n": 2, "text": "b"}]
  path = str(tmp_path / "in.parquet")
  parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  answer(path, tmp_path / "out.parquet", [ANSWERS[0], ANSWERS[1]])
  found = parquet.read_table(str(tmp_path / "out.parquet")).to_pylist()
  assert [row["n"] for row in found] == [1, 2]
  assert found[0]["tags"] == ["x"] and found[0]["label"] == "x"
  assert [row["truncated"] for row in found] == [True, None]
  assert [row["error"] for row in found] == [None, "line 4: 1 columns"]


def test_json_lines_and_streams_are_no_tables():
  assert tables.is_table("a.csv") and tables.is_table("a.parquet")
  assert not tables.is_table("a.jsonl") and not tables.is_table("-")
  assert not tables.is_table([b"{}"])


def test_a_json_file_is_a_table_if_it_holds_an_array(tmp_path):
  lines, array = tmp_path / "lines.json", tmp_path / "array.json"
  lines.write_text('{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n')
  array.write_text('[{"id": 1, "text": "a"}]')
  assert tables.is_table(str(array)) and not tables.is_table(str(lines))
  packed = tmp_path / "lines.jsonl.gz"
  packed.write_bytes(gzip.compress(lines.read_bytes()))
  for path in (lines, packed):
    with records.reading(str(path)) as (found, _):
      assert list(found) == lines.read_bytes().splitlines(keepends=True)


def test_a_value_that_is_nested_too_deeply_is_an_error_of_its_row(tmp_path):
  path = tmp_path / "a.json"
  deep = "[" * 200 + "]" * 200
  path.write_text(f'[{{"text": "a", "x": {deep}}}, {{"text": "b", "x": [[]]}}]')
  (_, bad), (_, good) = tables.Table(str(path)).numbered()
  assert "`x`" in str(bad) and good == {"text": "b", "x": [[]]}


@pytest.mark.parametrize(
  ("source", "target", "message"),
  [
    ("a.csv", "b.csv.gz", r"not written as \.gz"),
    ("a.jsonl", "b.jsonl.zst", r"not written as \.zst"),
    ("a.jsonl", "b.parquet", "JSON lines"),
    ("-", "b.csv", "JSON lines"),
  ],
)
def test_an_output_of_another_format_is_refused(source, target, message):
  with pytest.raises(answers.PredictError, match=message):
    tables.check_target(source, target)
  tables.check_target(source, "b.jsonl")
  tables.check_target("a.csv", "b.tsv")


def test_a_label_named_error_does_not_hold_rows_back(source, tmp_path):
  answers_given = [{"label": "x", "scores": {"error": 0.5}}] * 2
  answers_given += [{"error": "line 4"}]
  answer(source, tmp_path / "out.csv", answers_given)
  with open(tmp_path / "out.csv", newline="") as f:
    assert [row["scores.error"] for row in csv.DictReader(f)] == [
      "0.5", "0.5", ""
    ]  # fmt: skip


@pytest.mark.parametrize("values", [(1, "a"), ("a", 1)])
def test_a_column_of_two_types_needs_json_lines(tmp_path, values):
  pytest.importorskip("pyarrow")
  path = tmp_path / "in.json"
  path.write_text(json.dumps([{"text": "a", "n": x} for x in values]))
  with pytest.raises(answers.PredictError, match="jsonl"):
    answer(path, tmp_path / "out.parquet", ANSWERS[:1] * 2)
  assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("name", ["out.csv", "out.tsv"])
def test_an_error_while_writing_keeps_its_message(source, tmp_path, name):
  given = [ANSWERS[0], {"other": 1}, ANSWERS[2]]
  with pytest.raises(answers.PredictError, match="'other'.*jsonl"):
    answer(source, tmp_path / name, given)
  assert not (tmp_path / name).exists()


def test_rows_are_records_by_the_columns_of_the_training():
  class Mine(answers.Answerer):
    def __init__(self, *text):
      self.context = types.SimpleNamespace(settings={"task.text": text})

  def texts(one, row, **kwargs):
    found = one.record_of(row, **kwargs)
    return found["text"], found.get("text_b")

  pair = {"text": "a", "other": "b"}
  assert texts(Mine("text", "other"), pair) == ("a", "b")
  assert texts(Mine("text", "other"), {"text": "c", "text_b": "d"}) == (
    "c", "d"
  )  # fmt: skip
  joined = Mine("{subject}: {body}")
  ticket = {"subject": "Hi", "body": "x", "text": "t"}
  assert texts(joined, ticket, is_table=True) == ("Hi: x", None)
  assert texts(joined, ticket) == ("t", None)
  alone = {"body": "a", "text_b": "by chance"}
  assert texts(Mine("body"), alone, is_table=True) == ("a", None)
  assert texts(Mine(), {"text": "a", "text_b": ""}, is_table=True) == (
    "a", None
  )  # fmt: skip
  with pytest.raises(answers.RecordError, match="no column other, only"):
    Mine("text", "other").record_of({"text": "a", "othr": "b"}, is_table=True)
  with pytest.raises(answers.RecordError, match="no column body, subject"):
    joined.record_of({"title": "a"}, is_table=True)
  with pytest.raises(answers.RecordError, match="body is None"):
    joined.record_of({"subject": "a", "body": None}, is_table=True)
