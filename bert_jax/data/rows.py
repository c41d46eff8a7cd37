"""Reads the rows of a file: text, tables, JSON, Parquet or Arrow.

  for where, row in rows.read("reviews.csv.gz"):
    print(where, row["text"])  # reviews.csv.gz:2 A film ...

The ending of a file decides its format, after an ending such as .gz that says
how it is compressed. Rows are read one after another, so that a file may be
larger than the memory. Every error names the file and the line or the row.

Text is UTF-8 with or without a byte order mark, and its lines end in LF, CR LF
or, in all of the file, CR. A quote is an ordinary character in a TSV file, and
quotes a field in a CSV file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import csv
import dataclasses
import itertools
import json
import os
import re
from typing import Any, BinaryIO, TypeAlias

from bert_jax.data import columnar
from bert_jax.data import compression
from bert_jax.runtime import files

# No line, field or JSON value may be longer, so that no input, such as a quote
# that is never closed, can fill the memory.
MAX_BYTES = 1 << 26

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_SPACE = re.compile(r"[ \t\r\n]*")
_BLOCK = 1 << 16  # the size of one read of a JSON array
_SEPARATORS = (",", ";", "\t", "|")  # of CSV files

# "PATH:LINE" or "PATH: row N", and the fields of the row by name.
Row: TypeAlias = tuple[str, Mapping[str, Any]]


class RowsError(compression.UnreadableError):
  """A file cannot be read as rows."""


@dataclasses.dataclass(frozen=True)
class _Options:
  """What a caller of `read` asks for; see there."""

  columns: Sequence[str] = ()
  fields: Sequence[str] | None = None
  on_broken: Callable[[str], None] | None = None


@dataclasses.dataclass(frozen=True)
class Format:
  """A format of rows.

  Attributes:
    name: the name of the format.
    endings: the endings of its files, the usual one first.
    read: (path, options) -> the rows.
    is_text: whether a file may be compressed, and its rows have line numbers.
    has_names: whether the fields of a row have names of the file's own.
  """

  name: str
  endings: tuple[str, ...]
  read: Callable[[str, _Options], Iterator[Row]]
  is_text: bool = True
  has_names: bool = True


def format_of(path: str) -> Format | None:
  """Returns the format that the ending of a file says; None = it says none.

  Example:
    >>> format_of("data/train.csv.gz").name
    'CSV'
  """
  name = compression.strip_ending(path)
  return _BY_ENDING.get(os.path.splitext(name)[1].lower())


def read(
  path: str,
  *,
  columns: Sequence[str] = (),
  fields: Sequence[str] | None = None,
  on_broken: Callable[[str], None] | None = None,
  default: str = "",
  as_format: str = "",
) -> Iterator[Row]:
  """Yields the rows of a file.

  Args:
    path: the file, whose ending decides the format.
    columns: the names of the columns of a CSV or TSV file without a header.
    fields: Parquet and Arrow: the columns to read; None = all. In other formats
      all fields are read.
    on_broken: CSV and TSV: gets the message about a row that has too few or too
      many columns, which is then left out; None = raise it. A last row without
      a line end always raises, because the file may be truncated.
    default: the name of the format of a file whose ending says none; "" = such
      a file is an error.
    as_format: the name of the format, whatever the ending says; "" = that of
      the ending.

  Yields:
    "PATH:LINE" (Parquet and Arrow: "PATH: row N", counted from 1), and the
    fields by name. The fields of a CSV or TSV file are texts; a line of a text
    file is under "text".

  Raises:
    RowsError: the file is empty, or a row is not of the format.
    compression.UnreadableError: the file is missing or damaged. It is the base
      class of RowsError.
    files.FilesError: the file is a FIFO or a device.
  """
  files.check_readable(path)
  found = FORMATS.get(as_format) or format_of(path) or FORMATS.get(default)
  if found is None:
    raise RowsError(
      f"{path}: its ending says no format; rename it to end in "
      f"{', '.join(sorted(_BY_ENDING))}"
    )
  if not found.is_text and (packed := compression.ending(path)):
    raise RowsError(
      f"{path}: {found.name} is compressed inside, and is not read through "
      f"{packed}; unpack the file"
    )
  if files.is_folder(path):
    raise RowsError(f"{path} is a folder; name a file")
  rows = found.read(path, _Options(columns, fields, on_broken))
  first = next(rows, None)
  if first is None:
    raise RowsError(f"{path} holds no row; wanted a file with examples")
  yield first
  yield from rows


# --- lines -------------------------------------------------------------------


def decode(raw: bytes, where: str) -> str:
  """Decodes UTF-8.

  Args:
    raw: the bytes of a line.
    where: the file and line, for the error.

  Raises:
    RowsError: the bytes are not UTF-8.
  """
  try:
    return raw.decode("utf-8")
  except UnicodeDecodeError as error:
    source = "UTF-16 -t UTF-8" if raw.startswith(_UTF16) else "LATIN1 -t UTF-8"
    raise RowsError(
      f"{where}: byte {raw[error.start]:#04x} is not UTF-8; convert the file, "
      f"for example with iconv -f {source}"
    ) from None


def raw_lines(stream: BinaryIO, path: str) -> Iterator[tuple[int, bytes]]:
  """Yields (number from 1, line with its end) of a stream, without a BOM.

  Args:
    stream: the content of a file.
    path: the file, for the errors.

  Raises:
    RowsError: a line is longer than `MAX_BYTES`.
    compression.UnreadableError: the file is damaged.
  """
  for number in itertools.count(1):
    with compression.naming(path):
      line = stream.readline(MAX_BYTES + 1)
    if not line:
      return
    if len(line) > MAX_BYTES:
      raise RowsError(
        f"{path}:{number}: a line of more than {MAX_BYTES >> 20} MiB; is it "
        "text, and are its line ends LF or CR?"
      )
    yield number, line.removeprefix(_BOM) if number == 1 else line


def read_lines(path: str) -> Iterator[tuple[int, str]]:
  """Yields (number from 1, line without its end) of a text file.

  Unlike str.splitlines(), a line separator (U+2028) counts as text.

  Raises:
    RowsError: a line is not UTF-8.
    compression.UnreadableError: the file is damaged.
  """
  for number, line in _whole_lines(path):
    yield number, line.removesuffix("\n").removesuffix("\r")


def _whole_lines(path: str) -> Iterator[tuple[int, str]]:
  """Yields (number from 1, line with its end) of a text file."""
  with contextlib.ExitStack() as stack:
    with compression.naming(path):
      stream = stack.enter_context(compression.open_text(path))
    for number, line in raw_lines(stream, path):
      yield number, decode(line, f"{path}:{number}")


def _read_text(path: str, options: _Options) -> Iterator[Row]:
  del options
  for number, line in read_lines(path):
    if line.strip():
      yield f"{path}:{number}", {"text": line}


# --- tables ------------------------------------------------------------------


def _read_table(
  cells: Callable[[str], Iterator[tuple[int, list[str], bool]]],
) -> Callable[[str, _Options], Iterator[Row]]:
  """Makes a reader of tables.

  Args:
    cells: path -> (line, fields, whether the line has an end) for each row.
  """

  def read(path: str, options: _Options) -> Iterator[Row]:
    names = list(options.columns)
    for line, row, has_end in cells(path):
      if not names:
        names = row
        _check_header(names, f"{path}:{line}")
        continue
      if len(row) == len(names):
        yield f"{path}:{line}", dict(zip(names, row, strict=True))
        continue
      message = (
        f"{path}:{line}: {len(row)} columns, wanted {len(names)}"
        f" ({', '.join(names)}); is there a separator or a line break in a "
        "text, or is the file truncated?"
      )
      if options.on_broken is None or not has_end:
        raise RowsError(message)
      options.on_broken(message)

  return read


def _check_header(names: Sequence[str], where: str) -> None:
  """Raises RowsError for a header in which a name occurs twice."""
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise RowsError(
      f"{where}: the header has {twice[0]!r} twice; rename one of the columns, "
      "or give the names of all columns if the file has no header"
    )


def _tsv_cells(path: str) -> Iterator[tuple[int, list[str], bool]]:
  blank: int | None = None
  for number, line in _whole_lines(path):
    text = line.removesuffix("\n").removesuffix("\r")
    if not text:  # blank lines at the end are no rows
      blank = blank or number
      continue
    if blank is not None:
      yield blank, [""], True
      blank = None
    yield number, text.split("\t"), line.endswith("\n")


def _separator(header: str) -> str:
  """Returns the separator of a CSV file, a comma if its first line has one.

  Spreadsheets write semicolons where a comma separates decimals.

  Example:
    >>> _separator('text;"label, or none"')
    ';'
  """
  plain = re.sub(r'"[^"]*"?', "", header)
  return "," if "," in plain else max(_SEPARATORS, key=plain.count)


def _csv_cells(path: str) -> Iterator[tuple[int, list[str], bool]]:
  last = ""

  def lines() -> Iterator[str]:
    nonlocal last
    for _, whole in _whole_lines(path):
      has_more_ends = "\r" in whole[:-2]
      for line in _LINE.findall(whole) if has_more_ends else (whole,):
        last = line
        yield line

  csv.field_size_limit(MAX_BYTES)
  first = next((x for _, x in _whole_lines(path) if x.strip()), "")
  reader = csv.reader(lines(), strict=True, delimiter=_separator(first))
  while True:
    start = reader.line_num + 1
    try:
      row = next(reader, None)
    except csv.Error as error:
      raise RowsError(
        f"{path}:{start}: {error}; the row ends on line {reader.line_num}; is "
        "a quote not closed?"
      ) from None
    if row is None:
      return
    if row:
      yield start, row, last.endswith(("\n", "\r"))


# --- JSON --------------------------------------------------------------------


def parse_object(text: str, where: str) -> Mapping[str, Any]:
  """Returns a JSON object.

  Args:
    text: a line of JSON.
    where: the file and line, for the error.

  Raises:
    RowsError: the text is not a JSON object.
  """
  try:
    row = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise RowsError(
      f"{where}: {error}; wanted one JSON object on each line"
    ) from None
  return _check_object(row, where)


def _check_object(row: Any, where: str) -> Mapping[str, Any]:
  if not isinstance(row, dict):
    raise RowsError(f"{where}: not a JSON object, but {row!r:.60}")
  return row


def _read_json_lines(path: str, options: _Options) -> Iterator[Row]:
  del options
  for number, line in read_lines(path):
    if line.strip():
      where = f"{path}:{number}"
      yield where, parse_object(line, where)


def is_json_array(path: str) -> bool:
  """Returns whether a JSON file holds an array, and not an object on each line.

  Args:
    path: the file, which may be compressed.

  Raises:
    compression.UnreadableError: the file is missing or damaged.
  """
  head = compression.read_head(path)
  return head.removeprefix(_BOM).lstrip()[:1] == b"["


def _read_json(path: str, options: _Options) -> Iterator[Row]:
  """Reads an array of objects, or else an object on each line."""
  if is_json_array(path):
    yield from _read_json_array(path)
  else:
    yield from _read_json_lines(path, options)


class _Buffer:
  """The part of a JSON text that is in memory, and where it is in the file."""

  def __init__(self, path: str):
    self.path = path
    self.text = ""
    self.at = 0
    self._line = 1  # of the start of `text`
    self._lines = _whole_lines(path)
    self.is_end = False

  @property
  def where(self) -> str:
    return f"{self.path}:{self._line + self.text.count(chr(10), 0, self.at)}"

  def drop(self) -> None:
    """Forgets what was read."""
    self._line += self.text.count("\n", 0, self.at)
    self.text = self.text[self.at :]
    self.at = 0

  def grow(self) -> None:
    """Reads as much again as there is, so that the work stays linear."""
    wanted = max(_BLOCK, len(self.text))
    parts, size = [self.text], 0
    while size < wanted:
      found = next(self._lines, None)
      if found is None:
        self.is_end = True
        break
      parts.append(found[1])
      size += len(found[1])
    self.text = "".join(parts)

  def skip_space(self) -> str:
    """Skips white space, and returns the character after it without reading it.

    At the end of the text this is "".
    """
    while True:
      self.at = _SPACE.match(self.text, self.at).end()  # type: ignore
      if self.at < len(self.text) or self.is_end:
        return self.text[self.at : self.at + 1]
      self.drop()
      self.grow()

  def error(self, problem: str) -> RowsError:
    return RowsError(
      f"{self.where}: {problem}; wanted an array of JSON objects, or one "
      "object on each line"
    )


def _read_json_array(path: str) -> Iterator[Row]:
  """Yields the objects of a JSON array, one in memory at a time."""
  buffer = _Buffer(path)
  decoder = json.JSONDecoder()
  buffer.skip_space()
  buffer.at += 1  # the bracket
  if buffer.skip_space() == "]":
    buffer.at += 1
  else:
    while True:
      buffer.skip_space()
      value = _parse_value(buffer, decoder)
      where = buffer.where
      yield where, _check_object(value[0], where)
      buffer.at = value[1]
      if len(buffer.text) > 2 * _BLOCK and buffer.at > len(buffer.text) // 2:
        buffer.drop()
      mark = buffer.skip_space()
      if mark not in (",", "]"):
        raise buffer.error(
          f"{mark!r} after an object" if mark else "the file breaks off"
        )
      buffer.at += 1
      if mark == "]":
        break
  if rest := buffer.skip_space():
    raise buffer.error(f"{rest!r} after the end of the array")


def _parse_value(buffer: _Buffer, decoder: json.JSONDecoder) -> tuple[Any, int]:
  """Returns the JSON value at the buffer's place, and where it ends."""
  while True:
    try:
      value, end = decoder.raw_decode(buffer.text, buffer.at)
      # A number at the end of the buffer may go on behind it.
      if end < len(buffer.text) or buffer.is_end:
        return value, end
    except (ValueError, RecursionError) as error:
      if buffer.is_end or len(buffer.text) - buffer.at > MAX_BYTES:
        raise buffer.error(str(error)) from None
      if isinstance(error, json.JSONDecodeError):
        # An error well before the end of the buffer is not a missing rest.
        is_open = error.msg.startswith("Unterminated string")
        if not is_open and error.pos < len(buffer.text) - 64:
          raise buffer.error(str(error)) from None
      else:
        raise buffer.error(str(error)) from None
    buffer.drop()
    buffer.grow()


# --- formats -----------------------------------------------------------------


def _read_columnar(
  read: Callable[..., Iterator[Row]],
) -> Callable[[str, _Options], Iterator[Row]]:
  return lambda path, options: read(path, options.fields)


FORMATS: Mapping[str, Format] = {
  format.name: format
  for format in (
    Format("text", (".txt", ".text"), _read_text, has_names=False),
    Format("JSON lines", (".jsonl", ".ndjson"), _read_json_lines),
    Format("JSON", (".json",), _read_json),
    Format("CSV", (".csv",), _read_table(_csv_cells)),
    Format("TSV", (".tsv", ".tab"), _read_table(_tsv_cells)),
    Format(
      "Parquet",
      (".parquet", ".pq"),
      _read_columnar(columnar.read_parquet),
      is_text=False,
    ),
    Format(
      "Arrow",
      (".arrow", ".feather"),
      _read_columnar(columnar.read_arrow),
      is_text=False,
    ),
  )
}
_BY_ENDING: Mapping[str, Format] = {
  ending: format for format in FORMATS.values() for ending in format.endings
}
