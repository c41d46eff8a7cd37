"""Reads the files of task data: lines, tables, JSON and TFDS records.

Every error names the file and the line, and says what to change. A last line
without an end is logged, since the file may be truncated. Tables are read as
streams: only the row at hand is in memory. data/rows.py has their formats.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import itertools
import json
import logging
import os
import re
from typing import Any

from bert_jax.data import compression
from bert_jax.data import corpus
from bert_jax.data import rows
from bert_jax.runtime import files
from bert_jax.tasks import spec

_log = logging.getLogger(__name__)

_TFDS = "tfds:"
_BLOCK = 1000  # The number of records that are read at once.


def read_text(path: str) -> str:
  """Returns the text of a file.

  Raises:
    spec.TaskError: The file cannot be read, is empty or is not UTF-8.
    files.FilesError: The file is a FIFO or a device.
  """
  files.check_readable(path)
  try:
    with compression.open_bytes(path) as stream:
      content = stream.read()
  except compression.READ_ERRORS as error:
    raise spec.TaskError(f"{path} cannot be read: {error}") from error
  try:
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = content.count(b"\n", 0, error.start) + 1
    raise spec.TaskError(
      f"{path}:{line}: byte {content[error.start]:#04x} is not UTF-8; convert"
      " the file, for example with iconv -t UTF-8"
    ) from None
  if not text.strip():
    raise spec.TaskError(f"{path} is empty; wanted a file with examples")
  return text


def find_packed(path: str) -> str:
  """Returns a path, or else that of the compressed file, or "" without either.

  Example:
    >>> find_packed("train.csv")  # of a folder with train.csv.gz
    'train.csv.gz'
  """
  for ending in ("", *compression.OPENERS):
    if files.exists(path + ending):
      return path + ending
  return ""


@contextlib.contextmanager
def reading_rows() -> Iterator[None]:
  """Makes an error about a file an error about the data of a task."""
  try:
    yield
  except compression.UnreadableError as error:
    raise spec.TaskError(str(error)) from error


def read_lines(path: str) -> Iterator[str]:
  """Yields the lines of a file without line ends and trailing blank lines.

  Unlike str.splitlines(), a line separator (U+2028) counts as text.

  Raises:
    spec.TaskError: The file cannot be read, is empty or is not UTF-8.
    files.FilesError: The file is a FIFO or a device.
  """
  files.check_readable(path)
  held: list[str] = []  # lines that may be the blank end of the file
  found = False
  with reading_rows():
    for _, line in rows.read_lines(path):
      held.append(line)
      found = found or bool(line.strip())
      if found and line:
        yield from held
        held = []
  if not found:
    raise spec.TaskError(f"{path} is empty; wanted a file with examples")


def is_table(path: str) -> bool:
  """Returns whether the ending of a file says that it is a table of rows."""
  found = rows.format_of(path)
  return found is not None and found.has_names


def read_rows(
  path: str, names: Sequence[str] = (), skip_broken: bool = False
) -> list[tuple[str, Mapping[str, Any]]]:
  """Returns all rows of a table; see `iter_rows`."""
  return list(iter_rows(path, names, skip_broken))


def iter_rows(
  path: str, names: Sequence[str] = (), skip_broken: bool = False
) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Reads the rows of a table one by one; see data/rows.py for its formats.

  A file whose ending says no format of tables is read as TSV. Spaces around the
  names of columns do not count.

  Args:
    path: the file.
    names: the names of the columns, for files without a header line.
    skip_broken: whether rows with too few or too many columns are left out, and
      their number logged. A last row without a line end still raises, since the
      file is truncated.

  Yields:
    For each row "PATH:LINE" and its fields by name.

  Raises:
    spec.TaskError: A row has too few or too many columns, or there is no row.
  """
  files.check_readable(path)
  found = rows.format_of(path)
  is_text = found is None or found.is_text
  if is_text:
    next(read_lines(path))  # It raises the error about an empty file.
  broken: list[str] = []
  with reading_rows():
    source = rows.read(
      path,
      columns=names,
      on_broken=broken.append if skip_broken else None,
      as_format="" if is_table(path) else "TSV",
    )
    try:
      first = next(source)
    except rows.RowsError as error:
      if "holds no row" in str(error):
        raise spec.TaskError(f"{path} has a header but no examples") from error
      raise
    has_spaces = any(isinstance(x, str) and x != x.strip() for x in first[1])
    for where, row in itertools.chain([first], source):
      if has_spaces:
        row = {name.strip(): value for name, value in row.items()}
      yield where, row
  if is_text and found is not rows.FORMATS["JSON"]:  # that has its own end
    lacks_line_end(path)  # Logs it.
  if broken:
    _log.warning(
      "%s: left out %d rows with a wrong number of columns", path, len(broken)
    )


def lacks_line_end(path: str) -> bool:
  """Returns whether the last line of a file has no line end; logs it if so."""
  if compression.ending(path):
    return False  # A truncated file is an error of its compression.
  with files.reading(path) as stream:
    stream.seek(0, os.SEEK_END)
    stream.seek(max(0, stream.tell() - 1))
    is_cut = stream.read() not in (b"\n", b"\r")
  if is_cut:
    _log.warning(
      "%s: its last line has no line end; if the file is truncated, fetch it"
      " again",
      path,
    )
  return is_cut


def field(row: Mapping[str, Any], name: str, where: str) -> Any:
  """Returns a field of a row.

  Raises:
    spec.TaskError: There is no such column; the message lists the columns.
  """
  try:
    return row[name]
  except KeyError:
    raise spec.TaskError(
      f"{where}: no column {name!r}; its columns are {', '.join(map(str, row))}"
    ) from None


def text_field(row: Mapping[str, Any], name: str, where: str) -> str:
  """Returns a text of a row: that of a column, or of a template of columns.

  Args:
    row: the fields of the row by name.
    name: the name of a column, or a text with such names in braces. Two braces
      stand for one.
    where: the file and line, for errors.

  Example:
    >>> text_field({"a": "Hi", "b": "you"}, "{a}: {b}", "f:1")
    'Hi: you'
  """
  if name not in row and is_template(name):
    return _PART.sub(
      lambda part: (
        as_text(field(row, part[1].strip(), where), part[1], where)
        if part[1] is not None
        else part[0][0]
      ),
      name,
    )
  return as_text(field(row, name, where), name, where)


_PART = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


def is_template(name: str) -> bool:
  """Returns whether a text is a template, such as "{title}: {body}".

  Any other text is the name of one column.
  """
  return bool(columns_of(name))


def columns_of(name: str) -> list[str]:
  """Returns the columns in a template; [] if it is not a template."""
  return [part[1].strip() for part in _PART.finditer(name) if part[1]]


def as_text(value: Any, name: str, where: str) -> str:
  """Returns a text, which TFDS gives as bytes.

  Args:
    value: the text.
    name: the field that holds it, for the error.
    where: the file and line, for the error.

  Raises:
    spec.TaskError: The value is not text.
  """
  if isinstance(value, bytes):
    return value.decode("utf-8")
  if not isinstance(value, str):
    raise spec.TaskError(f"{where}: {name} is {value!r}; wanted text")
  return value


def text_pair(
  row: Mapping[str, Any], names: Sequence[str], where: str
) -> tuple[str, str | None]:
  """Returns one or two text fields of a row; None for a missing second one."""
  texts = [text_field(row, name, where) for name in names]
  return texts[0], texts[1] if len(texts) > 1 else None


def label_field(
  task: spec.Task,
  row: Mapping[str, Any],
  split: str,
  where: str,
  missing: tuple[Any, ...] = (None, ""),
) -> Any:
  """Returns the label of a row; None if a row of a test split has none.

  Args:
    task: the task, with the column of the label.
    row: the fields of the row by name.
    split: the split that the row belongs to.
    where: the file and line, for the error.
    missing: the values that stand for a missing label in test splits.
  """
  if split in task.test_splits and row.get(task.label) in missing:
    return None
  return field(row, task.label, where)


def make_reader(
  make_example: Callable[..., Any],
  id_column: str | None = None,
) -> Callable[..., list[Any]]:
  """Makes a reader of tables that turns each row into one example.

  Args:
    make_example: (task, split, "PATH:LINE", id, row) -> example.
    id_column: the column that holds the ids; rows are numbered from 0 if it is
      None or the table has no such column.

  Returns:
    A function (task, path, split) -> examples.
  """

  def read(task: spec.Task, path: str, split: str) -> list[Any]:
    examples = []
    for number, (where, row) in enumerate(iter_rows(path, task.columns)):
      id = number if id_column is None else row.get(id_column, number)
      examples.append(make_example(task, split, where, str(id), row))
    return examples

  return read


def read_json(path: str) -> Any:
  """Returns the value of a JSON file.

  Raises:
    spec.TaskError: The file is truncated or is not JSON.
  """
  text = read_text(path)
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise spec.TaskError(
      f"{path} is truncated or is not JSON: {error}; fetch it again"
    ) from None


def is_tfds(folder: str) -> bool:
  """Returns whether a location is prepared TFDS data, as in `tfds:DIR`."""
  return folder.startswith(_TFDS)


def read_records(
  task: spec.Task, location: str, split: str
) -> Iterator[Mapping[str, Any]]:
  """Yields the records of prepared TFDS data, without TensorFlow.

  Args:
    task: names the TFDS builder.
    location: `tfds:DIR`, where DIR is the folder of the prepared data set or
      the folder of all data sets ("" = ~/tensorflow_datasets).
    split: a split of the task.

  Raises:
    spec.TaskError: The data is not prepared; the message says how to do it.
    corpus.CorpusError: The data is damaged.
  """
  root = location.removeprefix(_TFDS)
  folder = _prepared_folder(task, root)
  builder = corpus.open_tfds(folder)
  name = task.tfds_splits.get(split, split)
  if name not in builder.info.splits:
    raise spec.TaskError(
      f"{location}: no split {name!r}; its splits are"
      f" {', '.join(builder.info.splits)}"
    )
  file_format = builder.info.file_format
  file_format = file_format and file_format.value
  if file_format != "array_record":
    raise spec.TaskError(
      f"{folder} is in the format {file_format}, which only TensorFlow reads;"
      f" {_how_to_prepare(task, root)}"
    )
  with corpus.naming_tfds(folder):
    source = builder.as_data_source(split=name)
    # Reading in blocks is ten times faster than reading one by one.
    for start in range(0, len(source), _BLOCK):
      yield from source.__getitems__(
        range(start, min(start + _BLOCK, len(source)))
      )


def _prepared_folder(task: spec.Task, root: str) -> str:
  """Returns the folder of the newest version of the prepared data."""
  if not task.tfds:
    raise spec.TaskError(
      f"task {task.name} has no TFDS builder; give a folder with its files"
    )
  top = os.path.expanduser(root or "~/tensorflow_datasets")
  if files.exists(os.path.join(top, "dataset_info.json")):
    return top
  pattern = os.path.join(files.escape_glob(top), task.tfds, "*")
  found = files.glob(os.path.join(pattern, "dataset_info.json"))
  if not found:
    raise spec.TaskError(
      f"{_TFDS}{root}: no prepared {task.tfds} in {top};"
      f" {_how_to_prepare(task, root)}"
    )
  return max(map(os.path.dirname, found), key=_version)


def _version(folder: str) -> list[int]:
  name = os.path.basename(folder)
  return [int(digits) for digits in re.findall(r"\d+", name)]


def _how_to_prepare(task: spec.Task, root: str) -> str:
  where = f" --data_dir={root}" if root else ""
  return (
    f"run tfds build {task.tfds} --file_format=array_record{where}, with"
    " TensorFlow and a network, or give a folder with the original files"
  )
