"""Rows of every format, compressed and damaged, with the places in errors."""

import bz2
import csv
import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest

from bert_jax.data import compression
from bert_jax.data import rows
from experiments import formats_page

ROWS = [
  {"text": 'He said "no",\tand left.', "label": "a"},
  {"text": "Zwei\u2028Zeilen", "label": "b"},
  {"text": "third", "label": "a"},
]
PLAIN = [
  {"text": "One, two.", "label": "a"},
  {"text": "Zwei\u2028Zeilen", "label": "b"},
]


def _zstd(data: bytes) -> bytes:
  return pyarrow.Codec("zstd").compress(data, asbytes=True)


COMPRESSED = {
  "": lambda data: data,
  ".gz": gzip.compress,
  ".bz2": bz2.compress,
  ".xz": lzma.compress,
  ".zst": _zstd,
}


def _csv(path, content, newline="\n"):
  with open(path, "w", encoding="utf-8", newline="") as f:
    writer = csv.DictWriter(f, ["text", "label"], lineterminator=newline)
    writer.writeheader()
    writer.writerows(content)


def _read(path, **options):
  return list(rows.read(str(path), **options))


@pytest.mark.parametrize("packed", COMPRESSED)
def test_every_text_format_is_read_through_every_compression(tmp_path, packed):
  lines = "".join(json.dumps(row) + "\n" for row in PLAIN)
  tsv = "text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in PLAIN)
  _csv(tmp_path / "plain", PLAIN)
  contents = {
    "jsonl": (lines.encode(), (1, 2)),
    "json": (json.dumps(PLAIN, indent=1).encode(), (2, 6)),
    "csv": ((tmp_path / "plain").read_bytes(), (2, 3)),
    "tsv": (tsv.encode(), (2, 3)),
  }
  for ending, (data, numbers) in contents.items():
    path = tmp_path / f"rows.{ending}{packed}"
    path.write_bytes(COMPRESSED[packed](data))
    wanted = [
      (f"{path}:{n}", row) for n, row in zip(numbers, PLAIN, strict=True)
    ]
    assert _read(path) == wanted, ending
    half = COMPRESSED[packed](data * 50)
    half = half[: len(half) // 2]
    if packed:
      path.write_bytes(half)
      with pytest.raises(compression.UnreadableError, match=path.name):
        _read(path)


def test_columnar_files_are_read_a_batch_at_a_time(tmp_path):
  content = [{"text": f"text {i}", "n": [i, None]} for i in range(5000)]
  table = pyarrow.Table.from_pylist(content)
  paths = [
    tmp_path / name for name in ("a.parquet", "a.arrow", "b.arrow", "a.feather")
  ]
  pyarrow.parquet.write_table(table, paths[0], row_group_size=700)
  with pyarrow.ipc.new_stream(paths[1], table.schema) as writer:
    writer.write_table(table, max_chunksize=900)
  for path in paths[2:]:
    with pyarrow.ipc.new_file(path, table.schema) as writer:
      writer.write_table(table, max_chunksize=900)
  for path in paths:
    found = _read(path)
    assert [row for _, row in found] == content
    assert found[4999][0] == f"{path}: row 5000"
    found = _read(path, fields=["text"])
    assert [row for _, row in found] == [{"text": r["text"]} for r in content]
    with pytest.raises(compression.UnreadableError, match=r"'body'.*text, n"):
      _read(path, fields=["body"])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(compression.UnreadableError, match=path.name):
      _read(path)
    path.write_bytes(b"no such file")
    with pytest.raises(compression.UnreadableError, match=path.name):
      _read(path)


def test_line_ends_and_the_byte_order_mark_are_no_text(tmp_path):
  for end in ("\n", "\r\n", "\r"):
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.txt"):
      path = tmp_path / name
      if name == "a.csv":
        _csv(path, PLAIN, end)
        text = path.read_bytes().decode()
      elif name == "a.tsv":
        text = end.join(["text\tlabel", *(f"{r['text']}\tb" for r in PLAIN)])
      elif name == "a.jsonl":
        text = end.join(json.dumps(r) for r in PLAIN)
      else:
        text = end.join(r["text"] for r in PLAIN)
      path.write_bytes(b"\xef\xbb\xbf" + text.encode() + end.encode())
      found = _read(path)
      assert [r["text"] for _, r in found] == [r["text"] for r in PLAIN]
      first = 1 if name in ("a.jsonl", "a.txt") else 2
      assert found[1][0] == f"{path}:{first + 1}", (name, end)


def test_a_field_of_csv_may_be_long_and_may_hold_lines(tmp_path):
  path = tmp_path / "a.csv"
  content = [
    {"text": "x" * 300_000, "label": "a"},
    {"text": "one\ntwo\r\nthree", "label": "b"},
    {"text": "", "label": "c"},
  ]
  _csv(path, content)
  assert [row for _, row in _read(path)] == content
  assert [where for where, _ in _read(path)] == [
    f"{path}:{n}" for n in (2, 3, 6)
  ]


def test_a_json_array_is_read_an_object_at_a_time(tmp_path):
  path = tmp_path / "a.json"
  content = [{"text": "y" * (i * 37), "n": {"a": [i, "]"]}} for i in range(500)]
  path.write_text("[\n" + ",\n".join(map(json.dumps, content)) + "\n]\n")
  found = _read(path)
  assert [row for _, row in found] == content
  assert found[499][0] == f"{path}:501"
  path.write_text("[]")
  with pytest.raises(rows.RowsError, match="no row"):
    _read(path)


@pytest.mark.parametrize(
  ("name", "content", "line"),
  [
    ("a.jsonl", b'{"a": 1}\n\n{"a": 2\n', 3),
    ("a.jsonl", b'{"a": 1}\n[1]\n', 2),
    ("a.json", b'[{"a": 1},\n{"a" 2}]', 2),
    ("a.json", b'[{"a": 1},\n 3]', 2),
    ("a.json", b'[{"a": 1},\n{"a": 2}', 2),
    ("a.json", b'[{"a": 1}\n{"a": 2}]', 2),
    ("a.json", b'[{"a": 1}]\nx', 2),
    ("a.csv", b'a,b\n1,2\n"3,4\n', 3),
    ("a.csv", b"a,b\n1,2\n3\n", 3),
    ("a.csv", b"a,a\n1,2\n", 1),
    ("a.tsv", b"a\tb\n1\t2\n3\n", 3),
    ("a.tsv", b"a\tb\n1\t\xff\n", 2),
    ("a.txt", "abc\n".encode("utf-16"), 1),
  ],
)
def test_an_error_names_the_line(tmp_path, name, content, line):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(rows.RowsError, match=rf"{name}:{line}: "):
    _read(path)


def test_broken_rows_can_be_left_out_but_not_a_truncated_one(tmp_path):
  path = tmp_path / "a.tsv"
  path.write_text("a\tb\n1\n2\t3\n4\t5\t6\n7\t8\n")
  broken = []
  found = _read(path, on_broken=broken.append)
  assert [row["a"] for _, row in found] == ["2", "7"]
  assert [text.split(": ")[0] for text in broken] == [f"{path}:2", f"{path}:4"]
  path.write_text("a\tb\n2\t3\n4")
  with pytest.raises(rows.RowsError, match=":3: 1 columns"):
    _read(path, on_broken=broken.append)


def test_the_ending_decides_the_format(tmp_path):
  assert rows.format_of("x/A.CSV.GZ") is rows.FORMATS["CSV"]
  assert rows.format_of("x/a.gz") is rows.format_of("part-0") is None
  path = tmp_path / "part-0"
  path.write_text('{"a": 1}\n')
  with pytest.raises(rows.RowsError, match=r"\.parquet"):
    _read(path)
  assert _read(path, default="JSON lines") == [(f"{path}:1", {"a": 1})]
  path = tmp_path / "a.parquet.gz"
  path.write_bytes(b"1")
  with pytest.raises(rows.RowsError, match="unpack"):
    _read(path)
  (tmp_path / "a.csv").mkdir()
  with pytest.raises(rows.RowsError, match="folder"):
    _read(tmp_path / "a.csv")
  with pytest.raises(
    compression.UnreadableError, match=r"b\.csv does not exist"
  ):
    _read(tmp_path / "b.csv")


def test_rows_are_not_all_read_before_the_first_is_given(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("a,b\n1,2\n" + "x,y\n" * 100_000 + "broken\n")
  assert next(rows.read(str(path)))[1] == {"a": "1", "b": "2"}


def test_the_page_of_formats_is_what_trying_them_gives():
  text = formats_page.page()
  assert formats_page.PATH.read_text() == text, (
    "run python -m experiments.formats_page"
  )
  table = [line for line in text.splitlines() if line.startswith("| ")][1:]
  assert len(table) == len(rows.FORMATS)
  assert all("| yes | yes |" in line for line in table)
