"""Tests of tasks/tables.py: every kind of bad file is named by its line."""

import re

import pytest

from bert_jax.tasks import spec
from bert_jax.tasks import tables


def write(path, content):
  path.write_bytes(
    content.encode("utf-8") if isinstance(content, str) else content
  )
  return str(path)


def cells(rows):
  return [tuple(row.values()) for _, row in rows]


def test_tsv_takes_quotes_and_line_separators_as_text(tmp_path):
  text = 'a\tb\n"x\ty"\n\u2028z\t"\n'
  path = write(tmp_path / "a.tsv", text)
  assert cells(tables.read_rows(path)) == [('"x', 'y"'), ("\u2028z", '"')]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", ["", "\n", "\n\n"])
def test_line_ends_and_byte_order_marks_make_no_difference(
  tmp_path, end, mark, last
):
  text = (mark + "a\tb\nc\td" + last).replace("\n", end)
  rows = tables.read_rows(write(tmp_path / "a.tsv", text))
  assert rows == [(f"{tmp_path / 'a.tsv'}:2", {"a": "c", "b": "d"})]


def test_csv_reads_quoted_fields(tmp_path):
  path = write(tmp_path / "a.csv", 'a,b\r\n"x, ""y""",z\r\n')
  assert cells(tables.read_rows(path)) == [('x, "y"', "z")]


def test_json_lines_are_rows(tmp_path):
  path = write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": [2]}\n')
  assert cells(tables.read_rows(path)) == [(1,), ([2],)]


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.tsv", b"", "a.tsv is empty"),
    ("a.tsv", b"\xef\xbb\xbf\r\n \n", "a.tsv is empty"),
    ("a.tsv", b"a\tb\nc\t\xe9\n", "a.tsv:2: byte 0xe9 is not UTF-8"),
    ("a.tsv", b"a\tb\n", "a.tsv has a header but no examples"),
    ("a.tsv", b"a\tb\nc\td\ne\n", "a.tsv:3: 1 columns, wanted 2 (a, b)"),
    ("a.tsv", b"a\tb\nc\td\te\n", "a.tsv:2: 3 columns, wanted 2"),
    ("a.tsv", b"a\tb\n\nc\td\n", "a.tsv:2: 1 columns, wanted 2"),
    ("a.csv", b'a,b\nc,"d', "a.csv:2: unexpected end of data"),
    ("a.csv", b"a,b\nc\n", "a.csv:2: 1 columns, wanted 2"),
    ("a.jsonl", b'{"a": 1}\n{"a"\n', "a.jsonl:2: Expecting ':'"),
    ("a.jsonl", b"[1]\n", "a.jsonl:1: not a JSON object"),
  ],
)
def test_bad_tables_are_refused_with_file_and_line(
  tmp_path, name, content, message
):
  with pytest.raises(spec.TaskError, match=re.escape(message)):
    tables.read_rows(write(tmp_path / name, content))


def test_broken_rows_can_be_left_out(tmp_path):
  path = write(tmp_path / "a.tsv", "a\tb\nc\nd\te\n")
  assert cells(tables.read_rows(path, skip_broken=True)) == [("d", "e")]


def test_a_missing_column_and_a_field_that_is_no_text_are_named(tmp_path):
  with pytest.raises(
    spec.TaskError, match="f:3: no column 'c'; its columns are a, b"
  ):
    tables.field({"a": 1, "b": 2}, "c", "f:3")
  with pytest.raises(spec.TaskError, match="f:3: a is 1; wanted text"):
    tables.text_field({"a": 1}, "a", "f:3")


def test_a_missing_and_a_broken_off_file_are_named(tmp_path):
  with pytest.raises(spec.TaskError, match="none.json cannot be read"):
    tables.read_json(str(tmp_path / "none.json"))
  path = write(tmp_path / "a.json", '{"data": [{"title": "x"')
  with pytest.raises(spec.TaskError, match="a.json is truncated .* column 24"):
    tables.read_json(path)
