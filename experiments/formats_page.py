"""Writes docs/reference/formats.md, the page of all formats of text files.

python -m experiments.formats_page

Every line of the table was tried: a sound file is read, a file whose end is
damaged gives its first row before the error, and the error names the place.
"""

from collections.abc import Callable, Mapping
import io
import json
import pathlib
import tempfile
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from bert_jax.data import compression
from bert_jax.data import rows

PATH = pathlib.Path(__file__).parents[1] / "docs" / "reference" / "formats.md"
_HEAD = """\
# Formats of text files

The ending of a file decides its format, in `prepare`, in your own tasks and
wherever else rows are read. An ending such as `.gz` may follow. This page is
made by `python -m experiments.formats_page` (`experiments/formats_page.py`),
which tries every line of the table.

* **read**: a sound file gives its rows.
* **streamed**: a file is read row by row, so that it may be larger than the
  memory. The first row of a file with a damaged end is given before the error.
* **an error names**: the place of a row that cannot be read.

"""
_TAIL = """
All text is UTF-8, with or without a byte order mark, and its lines end in LF,
in CR LF or, in all of the file, in CR. A folder stands for its files, without
those whose names begin with a dot or an underscore, such as `_SUCCESS`; a
message lists these.

`prepare` takes each row of a table, and each JSON object, as a document; its
text is the field `prepare.text_key`. A null text is left out, and the number of
these is printed. A file with another ending, and `.txt`, has the format that
`prepare.format` names: a sentence or a paragraph a line, or any of the formats
above.
"""
_ROWS = [{"text": f"text {i}", "n": i} for i in range(2000)]


def _parquet(damaged: bool) -> bytes:
  sink = io.BytesIO()
  table = pyarrow.Table.from_pylist(_ROWS)
  pyarrow.parquet.write_table(table, sink, row_group_size=1000)
  return _broken_off(sink.getvalue(), 0.75) if damaged else sink.getvalue()


def _arrow(damaged: bool) -> bytes:
  sink, table = io.BytesIO(), pyarrow.Table.from_pylist(_ROWS)
  with pyarrow.ipc.new_stream(sink, table.schema) as writer:
    writer.write_table(table, max_chunksize=500)
  data = sink.getvalue()
  return data[: len(data) * 3 // 4] if damaged else data


def _broken_off(data: bytes, at: float) -> bytes:
  """Returns Parquet whose pages are zero from a place on."""
  footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
  start = int(footer * at)
  return data[:start] + bytes(footer - start) + data[footer:]


def _lines(
  make: Callable[[Mapping[str, Any]], str], head: str, bad: str
) -> Any:
  def content(damaged: bool) -> bytes:
    lines = [head] * bool(head) + [make(row) for row in _ROWS]
    return "\n".join([*lines, bad] if damaged else [*lines, ""]).encode()

  return content


def _json(damaged: bool) -> bytes:
  text = "[\n" + ",\n".join(map(json.dumps, _ROWS))
  return (text + (",\n{" if damaged else "\n]\n")).encode()


# Format -> (whether it is damaged) -> the content of a file.
_CONTENT: Mapping[str, Callable[[bool], bytes]] = {
  "JSON lines": _lines(json.dumps, "", '{"text": '),
  "JSON": _json,
  "CSV": _lines(lambda r: f'"{r["text"]}",{r["n"]}', "text,n", '"a'),
  "TSV": _lines(lambda r: f"{r['text']}\t{r['n']}", "text\tn", "a"),
  "Parquet": _parquet,
  "Arrow": _arrow,
}


def _text(damaged: bool) -> bytes:
  return b"text 0\n" * 2000 + (b"\xff\n" if damaged else b"")


def try_format(format: rows.Format, folder: str) -> tuple[str, str, str]:
  """Returns what the page says of a format, by trying it.

  Args:
    format: the format.
    folder: an empty folder.
  """
  content = _CONTENT.get(format.name, _text)
  path = pathlib.Path(folder) / f"a{format.endings[0]}"
  path.write_bytes(content(False))
  is_read = len(list(rows.read(str(path)))) == len(_ROWS)
  path.write_bytes(content(True))
  first, message = [], ""
  try:
    for _, row in rows.read(str(path)):
      first.append(row["text"])
  except compression.UnreadableError as error:
    message = str(error)
  place = message.replace(str(path), "FILE").split(" ")[0].rstrip(":")
  line = "the file and the line" if place.startswith("FILE:") else "the file"
  if not format.is_text and place == "FILE":
    line = "the file; the row, if a value is wrong"
  is_streamed = bool(message) and first[:1] == ["text 0"]
  return _word(is_read), _word(is_streamed), line


def _word(value: bool) -> str:
  return "yes" if value else "no"


def page() -> str:
  """Returns the text of the page."""
  lines = ["| format | endings | read | streamed | an error names |"]
  lines.append("|---|---|---|---|---|")
  for format in rows.FORMATS.values():
    with tempfile.TemporaryDirectory() as folder:
      facts = try_format(format, folder)
    endings = " ".join(f"`{ending}`" for ending in format.endings)
    packed = " ".join(f"`{ending}`" for ending in compression.OPENERS)
    if format.is_text:
      endings += f", and {packed} after it"
    lines.append(f"| {format.name} | {endings} | {' | '.join(facts)} |")
  return _HEAD + "\n".join(lines) + "\n" + _TAIL


if __name__ == "__main__":
  PATH.write_text(page())
