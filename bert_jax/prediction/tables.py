"""Tables to predict: their rows in, and the same rows with the answers out.

A row keeps all of its columns. The fields of the answer come after them; one
whose name a column has already gets the prefix "predicted_".
"""

import collections
from collections.abc import Callable, Iterator, Mapping
import contextlib
import csv
import io
import itertools
import json
import os
from typing import Any

from bert_jax.data import compression
from bert_jax.data import rows
from bert_jax.kinds import answers
from bert_jax.prediction import records
from bert_jax.runtime import files

_JSON_LINES = "JSON lines"
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_COLUMNAR = (".parquet", ".pq", ".arrow", ".feather")
_BATCH_ROWS = 1024  # the rows of a Parquet file that are written at once
_MOST_LEVELS = 100  # of lists and objects within each other
# Fields that only some answers have; their columns are in every table.
_RARE: Mapping[str, type] = {"truncated": bool, "error": str}

# Takes the answer to each row.
Write = Callable[[Mapping[str, Any]], None]


def is_table(source: str | list[bytes]) -> bool:
  """Returns whether a source is a file of rows that are not JSON lines."""
  if isinstance(source, list):
    return False
  found = rows.format_of(source)
  if found is rows.FORMATS["JSON"]:
    return files.is_file(source) and rows.is_json_array(source)
  return found is not None and found.has_names and found.name != _JSON_LINES


def check_target(source: str | list[bytes], target: str) -> None:
  """Raises PredictError if answers are not written in the format of a target.

  Args:
    source: the input, as for `predict.predict`.
    target: the file to write, or "-" or "".
  """
  if packed := compression.ending(target):
    raise answers.PredictError(
      f"--output={target}: answers are not written as {packed}; leave that "
      "ending out, and compress the file afterwards"
    )
  ending = os.path.splitext(target)[1].lower()
  if ending in (*_SEPARATORS, *_COLUMNAR) and not is_table(source):
    raise answers.PredictError(
      f"--output={target}: the input has no columns, so its answers are JSON "
      "lines; let --output end in .jsonl, or give a table as --input"
    )


class Table:
  """Reads a table, and keeps each row until its answer is there.

  Attributes:
    path: the file.
  """

  def __init__(self, path: str):
    """Prepares to read; the file is opened by `numbered`."""
    self.path = path
    self._waiting: collections.deque[Mapping[str, Any]] = collections.deque()

  def numbered(self) -> Iterator[tuple[str, Any]]:
    """Yields (the place, the row, or a RecordError) for each row."""
    broken: list[str] = []
    source = rows.read(self.path, on_broken=broken.append)
    for row in itertools.chain(source, [None]):
      for message in broken:
        where, _, problem = message.partition(": ")
        self._waiting.append({})
        yield where, answers.RecordError(problem)
      broken.clear()
      if row is None:
        return
      where, given = row
      fields = {name.strip(): value for name, value in given.items()}
      if deep := [name for name, value in fields.items() if _is_deep(value)]:
        self._waiting.append({})
        yield (
          where,
          answers.RecordError(
            f"`{deep[0]}` has lists or objects within each other, more than "
            f"{_MOST_LEVELS} levels deep; give fewer"
          ),
        )
        continue
      self._waiting.append(fields)
      yield where, fields

  def join(self, answer: Mapping[str, Any]) -> tuple[dict, dict]:
    """Returns the oldest row that has no answer yet, and its answer.

    Args:
      answer: the answer to this row.
    """
    row = dict(self._waiting.popleft())
    names = {key: f"predicted_{key}" if key in row else key for key in answer}
    return row, {names[key]: value for key, value in answer.items()}


@contextlib.contextmanager
def writing(table: Table, target: str) -> Iterator[Write]:
  """Yields a function that writes the answer to the next row of a table.

  The ending of the target decides its format: CSV, TSV, Parquet, Arrow, or
  else JSON lines.

  Args:
    table: the table whose rows are answered.
    target: the file to write, which appears only when it is complete; "-" or ""
      for standard output.
  """
  ending = os.path.splitext(target)[1].lower()
  with records.writing(target) as out:
    if ending in _SEPARATORS:
      text = io.TextIOWrapper(out, encoding="utf-8", newline="")
      cells = _Cells(text, _SEPARATORS[ending])
      yield lambda answer: cells.add(*table.join(answer))
      cells.close()
      text.flush()
      text.detach()
    elif ending in _COLUMNAR:
      batches = _Batches(out, is_parquet=ending in _COLUMNAR[:2])
      yield lambda answer: batches.add(*table.join(answer))
      batches.close()
    else:

      def write(answer: Mapping[str, Any]) -> None:
        row, found = table.join(answer)
        out.write(records.to_line(_plain(row) | found))

      yield write
    out.flush()


def _is_deep(value: Any, levels: int = _MOST_LEVELS) -> bool:
  """Returns whether a value is nested deeper than can be written for sure."""
  if isinstance(value, Mapping):
    value = list(value.values())
  if not isinstance(value, (list, tuple)):
    return False
  return not levels or any(_is_deep(one, levels - 1) for one in value)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a row whose values JSON has: dates and the like become text."""
  return json.loads(
    json.dumps(files.without_nan(row), default=str, ensure_ascii=False)
  )


def _flat(answer: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an answer with a column for each label, and JSON for lists."""
  found: dict[str, Any] = {}
  for name, value in answer.items():
    if isinstance(value, Mapping):
      found |= {f"{name}.{key}": inner for key, inner in value.items()}
    elif isinstance(value, list | tuple):
      found[name] = json.dumps(value, ensure_ascii=False)
    else:
      found[name] = value
  return found


class _Ordered:
  """Puts the answers into the same columns in all rows.

  The columns are known once a row was answered. Rows before it, which could
  not be used, wait for it.
  """

  def __init__(self) -> None:
    self._names: dict[str, type] | None = None
    self._held: list[tuple[dict, dict]] = []

  def add(self, row: dict, answer: dict) -> None:
    """Adds a row and its answer."""
    answer = _flat(answer)
    is_failed = "error" in answer or "predicted_error" in answer
    self._held.append((row, answer))
    if self._names is None and is_failed:
      return
    self.release()

  def release(self) -> None:
    """Writes the rows that wait."""
    for row, answer in self._held:
      if self._names is None:
        self._names = self._columns()
      empty = dict.fromkeys(self._names)
      self.write(empty | _known(row, empty) | _known(answer, empty))
    self._held = []

  def _columns(self) -> dict[str, type]:
    """Returns the columns of the file and of the answers, in order."""
    row = max((row for row, _ in self._held), key=len)
    _, answer = self._held[-1]
    rare = {
      f"predicted_{name}" if name in row else name: kind
      for name, kind in _RARE.items()  # Python 3.12.1 confuses a `type` here
    }
    names = {name: object for name in row}
    names |= {n: type(x) for n, x in answer.items() if n not in rare}
    self.start(names | rare)
    return names | rare

  def start(self, names: Mapping[str, type]) -> None:
    """Begins the file."""
    raise NotImplementedError

  def write(self, values: Mapping[str, Any]) -> None:
    """Writes a row."""
    raise NotImplementedError


def _known(values: Mapping[str, Any], names: Mapping[str, Any]) -> dict:
  """Returns the values, all of which must have a column."""
  for name in values:
    if name not in names:
      raise answers.PredictError(
        f"a row has a field {name!r} that the rows before it lack; write the"
        " answers to a .jsonl file, in which rows may differ"
      )
  return dict(values)


class _Cells(_Ordered):
  """Writes a CSV or TSV file."""

  def __init__(self, out: Any, separator: str):
    super().__init__()
    self._separator = separator
    self._writer = csv.writer(out, delimiter=separator, lineterminator="\n")
    self._out = out

  def start(self, names):
    self._put(names)

  def write(self, values):
    self._put(values.values())

  def _put(self, values: Any) -> None:
    cells = ["" if value is None else _cell(value) for value in values]
    if self._separator == ",":
      self._writer.writerow(cells)
      return
    # A quote is an ordinary character in a TSV file, so text that would break
    # the row has spaces in the place of tabs and line ends.
    plain = (" ".join(cell.split("\t")) for cell in cells)
    joined = (" ".join(cell.splitlines()) for cell in plain)
    self._out.write("\t".join(joined) + "\n")

  def close(self) -> None:
    self.release()


def _cell(value: Any) -> str:
  if isinstance(value, Mapping | list):
    return json.dumps(value, ensure_ascii=False, default=str)
  text = str(value)
  return text.encode("utf-8", "replace").decode("utf-8")


class _Batches(_Ordered):
  """Writes a Parquet or Arrow file."""

  def __init__(self, out: Any, is_parquet: bool):
    super().__init__()
    self._arrow = compression.import_arrow("a table of columns")
    self._out, self._is_parquet = out, is_parquet
    self._rows: list[Mapping[str, Any]] = []
    self._types: Mapping[str, type] = {}
    self._schema: Any = None
    self._writer: Any = None

  def start(self, names):
    self._types = names

  def write(self, values):
    self._rows.append(values)
    if len(self._rows) == _BATCH_ROWS:
      self._put()

  def _put(self) -> None:
    arrow = self._arrow
    try:
      if self._writer is None:
        self._schema = self._schema_of(self._rows)
        open_writer = (
          arrow.parquet.ParquetWriter
          if self._is_parquet
          else arrow.ipc.new_file
        )
        self._writer = open_writer(self._out, self._schema)
      found = arrow.Table.from_pylist(list(self._rows), schema=self._schema)
    except (arrow.ArrowException, TypeError, ValueError) as error:
      raise answers.PredictError(
        f"a row has values of another type than the rows before it: {error};"
        " write the answers to a .jsonl file"
      ) from error
    self._writer.write_table(found)
    self._rows = []

  def _schema_of(self, first: list[Mapping[str, Any]]) -> Any:
    """Returns the schema; columns without any value so far hold text."""
    arrow = self._arrow
    plain = {bool: arrow.bool_(), str: arrow.string(), float: arrow.float64()}
    found = arrow.Table.from_pylist(first).schema
    return arrow.schema(
      arrow.field(
        field.name,
        plain.get(self._types.get(field.name, object), field.type)
        if not arrow.types.is_null(field.type)
        else plain.get(self._types.get(field.name, str), arrow.string()),
      )
      for field in found
    )

  def close(self) -> None:
    self.release()
    if self._rows:
      self._put()
    if self._writer is not None:
      self._writer.close()
