"""Tests of tasks/labels.py: labels as people write them, in own files."""

import json

import pytest

from bert_jax.kinds import table
from bert_jax.tasks import read_examples
from bert_jax.tasks import spec


def write(path, *rows):
  if path.suffix == ".jsonl":
    rows = [json.dumps(row) for row in rows]
  path.write_text("\n".join([*rows, ""]), encoding="utf-8")
  return str(path)


def classify(path, **facts):
  return table.make_task(
    "classify", text=["t"], label="y", train_path=path, **facts
  )


def read(task, path, split="train"):
  return read_examples(task, "", split, files={split: path})


def test_spaces_around_labels_and_column_names_do_not_count(tmp_path):
  path = write(tmp_path / "a.csv", " t , y", "a,pos", "b,pos ", "c, neg")
  task = classify(path)
  assert task.labels == ("neg", "pos")
  assert [e.label for e in read(task, path)] == [1, 1, 0]


def test_labels_that_differ_in_capitals_are_told_with_their_lines(
  tmp_path, caplog
):
  path = write(tmp_path / "a.csv", "t,y", "a,pos", "b,Pos", "c,neg", "d,pos")
  assert classify(path).labels == ("Pos", "neg", "pos")
  assert "'pos' (lines 2, 5)" in caplog.text
  assert "'Pos' (line 3)" in caplog.text


def test_two_spellings_of_a_number_are_one_label(tmp_path, caplog):
  path = write(tmp_path / "a.csv", "t,y", "a,1", "b,1.0", "c,0", "d,0")
  task = classify(path)
  assert task.labels == ("0", "1")
  assert [e.label for e in read(task, path)] == [1, 1, 0, 0]
  assert "1 (line 2), 1.0 (line 3)" in caplog.text
  floats = write(tmp_path / "b.jsonl", {"t": "a", "y": 1.0})
  assert read(task, floats)[0].label == 1


def test_rows_without_a_label_are_all_named_or_left_out(tmp_path, caplog):
  rows = ["t,y", "a,x", "b,", "c,z", "d,  "]
  path = write(tmp_path / "a.csv", *rows)
  with pytest.raises(
    spec.TaskError, match=r"a.csv, lines 3, 5: .* 2 of 4 .*missing_labels=drop"
  ):
    read(classify(path), path)
  examples = read(classify(path, missing_labels="drop"), path)
  assert [(e.id, e.text_a) for e in examples] == [("0", "a"), ("2", "c")]
  assert "lines 3, 5" in caplog.text
  null = write(
    tmp_path / "b.jsonl",
    {"t": "a", "y": "x"},
    {"t": "b", "y": None},
    {"t": "c"},
  )
  with pytest.raises(spec.TaskError, match="b.jsonl, lines 2, 3: "):
    read(classify(path, missing_labels="drop"), null, "train") and read(
      classify(path), null
    )


@pytest.mark.parametrize("label", ["-1", "", "-1.0"])
def test_a_file_to_predict_has_no_labels_if_they_are_minus_one(tmp_path, label):
  train = write(tmp_path / "a.csv", "t,y", "a,x", "b,z")
  path = write(tmp_path / "b.csv", "t,y", f"a,{label}", f"b,{label}")
  assert [e.label for e in read(classify(train), path, "test")] == [None, None]
  signs = write(tmp_path / "c.csv", "t,y", "a,-1", "b,1")
  assert [e.label for e in read(classify(signs), signs, "test")] == [0, 1]


def test_a_file_to_predict_with_some_labels_is_not_scored(tmp_path, caplog):
  train = write(tmp_path / "a.csv", "t,y", "a,x", "b,z")
  path = write(tmp_path / "b.csv", "t,y", "a,x", "b,-1")
  assert [e.label for e in read(classify(train), path, "test")] == [None, None]
  assert "1 of 2 rows have no label" in caplog.text


def many(value):
  return [f"a,{value(i)}" for i in range(60)]


@pytest.mark.parametrize(
  ("rows", "wanted"),
  [
    (["a,x", "b,\"['x', 'y']\""], "csv:3: .*task=my-multi_label"),
    (["a,x", "b,y", 'c,"x, y"'], "csv, line 4: .*'x, y'.*my-multi_label"),
    (["a,x", "b,x"], "every label .* is 'x'"),
    (many(lambda i: i / 7), "60 different numbers .*csv:2.*task=my-regress"),
    (many(lambda i: f"text {i}"), "60 different labels in 60 rows"),
  ],
)
def test_what_can_only_be_a_mistake_says_what_may_be_meant(
  tmp_path, rows, wanted
):
  path = write(tmp_path / "a.csv", "t,y", *rows)
  with pytest.raises(spec.TaskError, match=wanted):
    classify(path)


def test_a_list_in_json_may_mean_several_labels(tmp_path):
  path = write(tmp_path / "a.jsonl", {"t": "a", "y": ["x", "y"]})
  with pytest.raises(spec.TaskError, match="jsonl:1: .*my-multi_label"):
    classify(path)


def test_lists_in_csv_are_labels_of_a_multi_label_task(tmp_path):
  path = write(tmp_path / "a.csv", "t,y", "a,\"['x', 'y z']\"", "b,[]", "c,x")
  task = table.make_task("multi_label", text=["t"], label="y", train_path=path)
  assert task.labels == ("x", "y z")
  assert [e.label for e in read(task, path)] == [(0, 1), (), (0,)]


def test_given_labels_and_their_numbers(tmp_path):
  listed = write(tmp_path / "labels.txt", "spam", "ham ", "")
  task = classify("", labels_file=listed)
  assert task.labels == ("spam", "ham")
  path = write(tmp_path / "a.csv", "t,y", "a,1", "b,spam", "c,0")
  assert [e.label for e in read(task, path)] == [1, 0, 0]
  bad = write(tmp_path / "b.csv", "t,y", "a,2")
  with pytest.raises(spec.TaskError, match="b.csv:2: label '2' is not known"):
    read(task, bad)
  twin = write(tmp_path / "c.csv", "t,y", "a,Spam")
  with pytest.raises(spec.TaskError, match="'spam' may be meant"):
    read(task, twin)
  with pytest.raises(spec.TaskError, match="differ; give one"):
    classify("", labels=["ham", "spam"], labels_file=listed)
  with pytest.raises(spec.TaskError, match="'a' is given 2 times"):
    classify("", labels=["a", "b", " a"])


def test_minus_one_is_a_label_if_it_was_learned_however_it_is_written(
  tmp_path,
):
  task = classify(write(tmp_path / "a.csv", "t,y", "a,-1.0", "b,1.0"))
  path = write(tmp_path / "b.csv", "t,y", "a,-1", "b,1.0")
  assert [e.label for e in read(task, path, "test")] == [0, 1]


def test_scores_that_are_all_minus_one_are_none(tmp_path):
  task = table.make_task("regress", text=["t"], label="y")
  path = write(tmp_path / "a.csv", "t,y", "a,-1", "b,-1.0")
  assert [e.label for e in read(task, path, "test")] == [None, None]
  assert [e.label for e in read(task, path)] == [-1.0, -1.0]


def test_a_template_joins_columns(tmp_path):
  path = write(tmp_path / "a.csv", "subject,body,y", "Hi,how?,x", '"{a}",b,z')
  task = table.make_task(
    "classify", text=["{{{ subject }}} {body}"], label="y", train_path=path
  )
  assert [e.text_a for e in read(task, path)] == ["{Hi} how?", "{{a}} b"]
  wrong = table.make_task(
    "classify", text=["{subject} {text}"], label="y", train_path=path
  )
  with pytest.raises(spec.TaskError, match="a.csv:2: no column 'text'"):
    read(wrong, path)


def test_semicolons_long_fields_arrays_and_parquet(tmp_path):
  long = "word " * 40_000
  path = write(tmp_path / "a.csv", "t;y", f'"{long}";x', "b;z")
  first, second = read(classify(path), path)
  assert (first.text_a, second.text_a) == (long, "b")
  rows = [{"t": "a", "y": "x"}, {"t": "b", "y": "z"}]
  array = tmp_path / "a.json"
  array.write_text(json.dumps(rows, indent=2))
  parquet = pytest.importorskip("pyarrow.parquet")
  import pyarrow

  table_path = str(tmp_path / "a.parquet")
  parquet.write_table(pyarrow.Table.from_pylist(rows), table_path)
  wanted = [
    spec.PairExample("0", "a", None, 0), spec.PairExample("1", "b", None, 1)
  ]  # fmt: skip
  for given in (str(array), table_path):
    assert read(classify(given), given) == wanted
