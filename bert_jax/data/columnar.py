"""Reads Parquet and Arrow files a batch of rows at a time, by pyarrow."""

from collections.abc import Iterator, Sequence
import contextlib
from typing import Any

from bert_jax.data import compression
from bert_jax.runtime import files

_BATCH_ROWS = 1024
# Rows that are turned into Python values at once, so that long texts of one
# batch of an Arrow file do not all exist twice.
_SLICE_ROWS = 256

# The least that a file of each format begins with.
_ARROW_FILE = b"ARROW1"


class ColumnError(compression.UnreadableError):
  """A file lacks a column that was asked for."""


@contextlib.contextmanager
def _naming(path: str, format: str) -> Iterator[Any]:
  """Yields the module pyarrow, and names the file in its errors."""
  arrow = compression.import_arrow(f"{path}, a file of {format},")
  try:
    yield arrow
  except compression.UnreadableError:
    raise
  # pyarrow's own errors; names and numbers of a damaged schema.
  except (arrow.ArrowException, OSError, ValueError, LookupError) as error:
    raise compression.UnreadableError(
      f"{path} is damaged, or is not {format}: {error!s:.300}; fetch or make "
      "it again"
    ) from error


def _check_columns(path: str, names: Sequence[str], asked: Any) -> None:
  missing = [name for name in asked or () if name not in names]
  if missing:
    raise ColumnError(
      f"{path}: no column {missing[0]!r}; its columns are {', '.join(names)}"
    )


def _rows(
  batches: Iterator[Any], path: str, start: int = 0
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields ("PATH: row N", row) of record batches, numbered from 1."""
  for batch in batches:
    batch.validate(full=True)  # a damaged offset would end the process
    for first in range(0, batch.num_rows, _SLICE_ROWS):
      for row in batch.slice(first, _SLICE_ROWS).to_pylist():
        start += 1
        yield f"{path}: row {start}", row


def read_parquet(
  path: str,
  fields: Sequence[str] | None = None,
  groups: Sequence[int] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields the rows of a Parquet file.

  Args:
    path: the file.
    fields: the columns to read; None = all.
    groups: the row groups to read, counted from 0; their rows come in the
      order of this list. None = all.

  Yields:
    "PATH: row N", counted from 1 in the file, and the row.

  Raises:
    compression.UnreadableError: the file is damaged or lacks a column.
  """
  with (
    _naming(path, "Parquet") as arrow,
    files.reading(path) as raw,
  ):
    file = arrow.parquet.ParquetFile(raw)
    _check_columns(path, file.schema_arrow.names, fields)
    counts = [
      file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)
    ]
    for group in range(len(counts)) if groups is None else groups:
      batches = file.iter_batches(
        _BATCH_ROWS,
        row_groups=[group],
        columns=None if fields is None else list(fields),
        use_threads=False,
      )
      yield from _rows(batches, path, sum(counts[:group]))


def parquet_groups(path: str) -> list[int]:
  """Returns the bytes of each row group of a Parquet file, decompressed.

  Raises:
    compression.UnreadableError: the file is damaged.
  """
  with (
    _naming(path, "Parquet") as arrow,
    files.reading(path) as raw,
  ):
    data = arrow.parquet.ParquetFile(raw).metadata
    sizes = [
      data.row_group(i).total_byte_size for i in range(data.num_row_groups)
    ]
    return [max(size, 1) for size in sizes]


def _open_arrow(arrow: Any, raw: Any) -> tuple[Any, Iterator[Any]]:
  """Returns the schema and the batches of either form of Arrow's format."""
  is_file = raw.read(len(_ARROW_FILE)) == _ARROW_FILE
  raw.seek(0)
  if not is_file:
    stream = arrow.ipc.open_stream(raw)
    return stream.schema, iter(stream)
  file = arrow.ipc.open_file(raw)
  return file.schema, map(file.get_batch, range(file.num_record_batches))


def read_arrow(
  path: str, fields: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields the rows of an Arrow file: of the file format, or of a stream.

  Feather files of version 2 have the file format, and the caches of Hugging
  Face's datasets are streams.

  Args:
    path: the file.
    fields: the columns to read; None = all.

  Yields:
    "PATH: row N", counted from 1, and the row.

  Raises:
    compression.UnreadableError: the file is damaged or lacks a column.
  """
  with (
    _naming(path, "Arrow") as arrow,
    # Mapped, because a damaged length would ask for that much memory.
    arrow.memory_map(path) as raw,
  ):
    schema, batches = _open_arrow(arrow, raw)
    _check_columns(path, schema.names, fields)
    if fields is not None:
      batches = (batch.select(list(fields)) for batch in batches)
    yield from _rows(batches, path)
