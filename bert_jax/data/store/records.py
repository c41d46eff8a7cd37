"""The format of prepared data: the token store and the examples on disk.

Text is tokenised once. The ids of a shard are one stream in an ArrayRecord
file, RECORD_TOKENS in each record, with a [SEP] after each document. All shards
of a split form one address space. An example does not copy tokens; it is two
spans of that space (EXAMPLE), so that another length or pairing costs little.

  DATA/manifest.json                       counts, settings, hashes
  DATA/vocab/                              the vocabulary
  DATA/tokens/SPLIT-00000.array_record     token ids
  DATA/tokens/SPLIT-00000.boundaries.npy   where each sentence starts and ends
  DATA/tokens/SPLIT-00000.documents.npy    where in that table a document starts
  DATA/tokens/SPLIT-00000.words.npy        which tokens continue a word, a bit
                                           each; only if a segmenter says it
  DATA/tokens/SPLIT.counts.npy             how often each id occurs
  DATA/examples/NAME/manifest.json         the manifest of the examples
  DATA/examples/NAME/SPLIT-00000.array_record
  DATA/examples/NAME/lengths/manifest.json the manifest of the order by length
  DATA/examples/NAME/lengths/SPLIT.npy     [shards, L + 1] examples by length
  DATA/examples/NAME/lengths/SPLIT-00000.npy  numbers of a shard's examples,
                                           the shortest first
  DATA/.verified.json                      files whose checksums were verified

A unit of text that could not be cut, such as a compressed file, has several
shards: SPLIT-00000, SPLIT-00000-00001, SPLIT-00000-00002.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import functools
import itertools
import json
import logging
import os
import types
from typing import Any

from array_record.python import array_record_data_source
from array_record.python import array_record_module
import numpy as np

from bert_jax.data import templates
from bert_jax.runtime import errors
from bert_jax.runtime import files

VERSION = 1
RECORD_TOKENS = 256
SPLITS = ("train", "validation")
# The tables beside the tokens of a shard.
TABLES = ("boundaries.npy", "documents.npy")
# A table that a shard has if a segmenter cut its text into words.
WORDS = "words.npy"

# The number of a unit (int), or of a unit and one of its later parts (text).
Shard = int | str

# The spans of the two segments, in tokens. Starts count from the start of the
# split's address space. An example of full sentences has b_length 0.
EXAMPLE = np.dtype(
  [
    ("a_start", "<i8"),
    ("b_start", "<i8"),
    ("a_length", "<i4"),
    ("b_length", "<i4"),
    ("is_random", "<i4"),
  ]
)

# The exceptions that ArrayRecord's reader raises for a damaged file.
_READ_ERRORS = (RuntimeError, ValueError, OSError, IndexError)
_WRITER_OPTIONS = "group_size:1,uncompressed"


_log = logging.getLogger(__name__)


class DataError(errors.UserError):
  """Prepared data is missing, damaged, or was made with other settings."""


def write_json(path: str, value: Any) -> None:
  """Writes JSON atomically, with sorted keys and a newline at the end."""
  with files.writing(path, "w") as f:
    json.dump(value, f, indent=1, sort_keys=True, ensure_ascii=False)
    f.write("\n")


def read_json(path: str) -> Any:
  """Reads a JSON file.

  Raises:
    DataError: the file is damaged or cannot be read.
    FileNotFoundError: there is no such file.
  """
  try:
    with files.reading(path, "r") as f:
      return json.load(f)
  except FileNotFoundError:
    raise
  except (ValueError, RecursionError, OSError) as error:
    raise DataError(f"{path} is damaged: {error}") from error


def write_array(path: str, array: np.ndarray) -> None:
  """Writes a .npy file atomically."""
  with files.writing(path) as f:
    # numpy would write to a real file without Python, and its error would not
    # say why writing failed.
    file: Any = types.SimpleNamespace(write=f.write)
    np.save(file, array, allow_pickle=False)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Turns an error of ArrayRecord's writer into one that names the file.

  Raises:
    OSError: the write failed.
  """
  try:
    yield
  except RuntimeError as error:
    raise OSError(f"{path} cannot be written: {error}") from error


class RecordWriter:
  """Writes an ArrayRecord file atomically.

  Equal records give equal bytes.
  """

  def __init__(self, path: str):
    self._stack = contextlib.ExitStack()
    temporary = self._stack.enter_context(files.replacing(path))
    self._path = path
    with _naming(path):
      self._writer = array_record_module.ArrayRecordWriter(
        temporary, _WRITER_OPTIONS
      )
    self.count = 0  # records written

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._stack.callback(self._close)
    return self._stack.__exit__(*error)

  def _close(self) -> None:
    with _naming(self._path):
      self._writer.close()

  def write_rows(self, rows: np.ndarray) -> None:
    """Writes each row (first axis) as a record."""
    data = rows.tobytes()
    size = len(data) // max(len(rows), 1)
    with _naming(self._path):
      for i in range(0, len(data), size or 1):
        self._writer.write(data[i : i + size])
    self.count += len(rows)


def token_dtype(vocab_size: int) -> np.dtype:
  """Returns the smallest little-endian unsigned type that holds every id."""
  return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class TokenWriter:
  """Writes one shard of the token store, a document at a time.

  A shard without documents leaves no file.

  Attributes:
    counts: [V] how often each id was written.
    num_documents: the number of documents written.
  """

  def __init__(
    self,
    folder: str,
    split: str,
    shard: Shard,
    vocab_size: int,
    sep_id: int,
    has_words: bool = False,
  ):
    """Opens the files of a shard.

    Args:
      folder: DATA/tokens.
      split: one of SPLITS.
      shard: the shard.
      vocab_size: V.
      sep_id: the id that ends a document.
      has_words: whether `add` also gets which tokens continue a word.
    """
    self._shard = shard
    self._tables = (*TABLES, WORDS) if has_words else TABLES
    self._marks: list[np.ndarray] = []
    self._path = functools.partial(shard_path, folder, split, shard)
    self._writer = RecordWriter(self._path("array_record"))
    self._dtype = token_dtype(vocab_size)
    self._sep_id = sep_id
    self._held: list[int] = []
    self._boundaries: list[np.ndarray] = []
    self._documents = [0]
    self._num_tokens = 0
    self.counts = np.zeros(vocab_size, np.int64)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    if error[0] is None:
      padding = -len(self._held) % RECORD_TOKENS
      self._held.extend([0] * padding)
      self._flush()
      self.counts[0] -= padding
    self._writer.__exit__(*error)
    if error[0] is None and self.num_documents:
      write_array(self._path(TABLES[0]), np.concatenate(self._boundaries))
      write_array(self._path(TABLES[1]), np.array(self._documents, np.int64))
      if WORDS in self._tables:
        write_array(self._path(WORDS), self._pack_marks())
    elif error[0] is None:
      files.delete(self._path("array_record"))

  @property
  def num_documents(self) -> int:
    return len(self._boundaries)

  def add(
    self,
    sentences: Sequence[Sequence[int]],
    marks: Sequence[Sequence[bool]] = (),
  ) -> None:
    """Adds a document.

    Args:
      sentences: the ids of each sentence.
      marks: for each of them, whether it continues a word; only with has_words.
    """
    if WORDS in self._tables:
      flat = itertools.chain(*marks, (False,))  # [SEP] continues none
      self._marks.append(np.fromiter(flat, bool))
    lengths = [0, *map(len, sentences)]
    boundaries = np.cumsum(lengths, dtype=np.int64) + self._num_tokens
    self._boundaries.append(boundaries)
    self._documents.append(self._documents[-1] + len(boundaries))
    self._held.extend(itertools.chain.from_iterable(sentences))
    self._held.append(self._sep_id)
    self._num_tokens = int(boundaries[-1]) + 1
    if len(self._held) >= 1 << 16:
      self._flush()

  def _flush(self) -> None:
    whole = len(self._held) // RECORD_TOKENS * RECORD_TOKENS
    block = np.array(self._held[:whole], self._dtype)
    del self._held[:whole]
    self._writer.write_rows(block.reshape(-1, RECORD_TOKENS))
    self.counts += np.bincount(block, minlength=len(self.counts))

  def row(self) -> dict[str, Any]:
    """Returns the row of the closed shard in the manifest."""
    return {
      "shard": self._shard,
      "documents": self.num_documents,
      "sentences": self._documents[-1] - self.num_documents,
      "tokens": self._num_tokens - self.num_documents,
      "records": self._writer.count,
      "sha256": {
        x: files.file_hash(self._path(x))
        for x in ("array_record", *self._tables)
      },
    }

  def _pack_marks(self) -> np.ndarray:
    """Returns the marks of all tokens [records, RECORD_TOKENS / 8] as bits."""
    marks = np.concatenate(self._marks)
    marks = np.pad(marks, (0, -len(marks) % RECORD_TOKENS))
    return np.packbits(marks.reshape(-1, RECORD_TOKENS), axis=1)


# Values of data.pairing whose examples have two segments.
PAIRINGS = ("pairs", "ordered_pairs")


def examples_name(data: Any) -> str:
  """Returns the folder name of the examples that `config.data` asks for."""
  name = f"{data.pairing}-{data.seq_len}-dupe{data.dupe_factor}"
  if data.pairing in PAIRINGS:
    name += f"-short{data.short_seq_rate:g}"
  return f"{name}-seed{data.examples_seed}"


def shard_of_part(unit: int, part: int) -> Shard:
  """Returns the shard of a part of a unit: 7 for part 0, then "00007-00001"."""
  return f"{unit:05d}-{part:05d}" if part else unit


def shard_name(shard: Shard) -> str:
  """Returns a shard as in file names: "00007" or "00007-00001"."""
  return f"{shard:05d}" if isinstance(shard, int) else shard


def shard_path(folder: str, split: str, shard: Shard, suffix: str) -> str:
  """Returns the path `folder/SPLIT-00007.suffix`."""
  return os.path.join(folder, f"{split}-{shard_name(shard)}.{suffix}")


def shard_paths(
  folder: str, split: str, rows: Iterable[dict], suffix: str
) -> list[str]:
  """Returns the paths of the shards in the rows of a manifest."""
  return [shard_path(folder, split, row["shard"], suffix) for row in rows]


def examples_folder(folder: str, name: str) -> str:
  """Returns the path DATA/examples/NAME."""
  return os.path.join(folder, "examples", name)


def lengths_folder(folder: str, name: str) -> str:
  """Returns the path DATA/examples/NAME/lengths."""
  return os.path.join(folder, "examples", name, "lengths")


class Records:
  """Random access to the records of several ArrayRecord files.

  Reading many records in one call is two orders of magnitude faster than
  reading them one by one.
  """

  def __init__(self, paths: Sequence[str], count: int):
    """Opens the files.

    Args:
      paths: the files, in order.
      count: the number of records in the manifest.

    Raises:
      DataError: a file is missing or damaged, or the number differs.
    """
    for path in files.missing(paths)[:1]:
      raise DataError(f"{path} is missing; run bert-jax prepare again")
    self._paths = dict(zip(_readable(paths), paths, strict=True))
    try:
      self._source = array_record_data_source.ArrayRecordDataSource(
        list(self._paths)
      )
      found = len(self._source)
    except _READ_ERRORS as error:
      broken = (p for p in self._paths if not _is_readable(p))
      bad = self._paths.get(next(broken, ""), paths[0])
      raise DataError(
        f"{bad} is damaged: {error}; delete it and run bert-jax prepare again "
        "with the same --input"
      ) from error
    if found != count:
      raise DataError(
        f"{os.path.dirname(paths[0])} has {found} records, but its manifest "
        f"says {count}; delete the folder and run bert-jax prepare again"
      )
    self._folder = os.path.dirname(paths[0])

  def __len__(self) -> int:
    return len(self._source)

  def read(self, keys: np.ndarray, dtype: np.dtype, width: int) -> np.ndarray:
    """Reads records as rows.

    Args:
      keys: [M] the numbers of the records.
      dtype: the dtype of the items of a record.
      width: the number of items of a record.

    Returns:
      [M, width] of this dtype.

    Raises:
      DataError: a record is damaged; the message names the records read.
    """
    size = dtype.itemsize * width
    try:
      rows = self._source.__getitems__(keys.tolist())
    except _READ_ERRORS as error:
      raise DataError(
        f"{self._file_of_damage(keys.tolist())}: a record among {keys.min()}.."
        f"{keys.max()} is damaged: {error}; delete the file and run "
        "bert-jax prepare again with the same --input"
      ) from error
    wrong = [i for i, row in enumerate(rows) if len(row) != size]
    if wrong:
      raise DataError(
        f"{self._folder}: record {keys[wrong[0]]} does not have {size} bytes; "
        "delete the file and run bert-jax prepare again"
      )
    return np.frombuffer(b"".join(rows), dtype).reshape(len(keys), width)

  def _file_of_damage(self, keys: list[int]) -> str:
    """Returns the file of the first of these records that cannot be read."""
    for key in keys:
      try:
        self._source.__getitems__([key])
      except _READ_ERRORS:
        break
    for path, name in self._paths.items():
      count = len(array_record_data_source.ArrayRecordDataSource([path]))
      if 0 <= key < count:
        return name
      key -= count
    return self._folder  # no file has such a record: its number is damaged


def _readable(paths: Sequence[str]) -> list[str]:
  """Returns paths that ArrayRecord reads fast: local copies, if they fit."""
  try:
    return files.local_files(paths)
  except files.NoRoomError as error:
    _log.warning(
      "%s. Until then each record is a request to the bucket, which is slow",
      error,
    )
    return list(paths)


def _is_readable(path: str) -> bool:
  try:
    return len(array_record_data_source.ArrayRecordDataSource([path])) >= 0
  except _READ_ERRORS:
    return False


def read_array(path: str, dtype: Any, ndim: int) -> np.ndarray:
  """Maps a .npy file; nothing is unpickled.

  Args:
    path: the file.
    dtype: the dtype that it must have.
    ndim: the number of dimensions that it must have.

  Raises:
    DataError: the file is missing or damaged, or has another dtype or number of
      dimensions.
  """
  try:
    array = np.load(files.local(path), mmap_mode="r", allow_pickle=False)
  except Exception as error:  # numpy raises a dozen unrelated types
    raise DataError(
      f"{path} is missing or damaged: {error!s:.500}; prepare the data again"
    ) from error
  if array.ndim != ndim or array.dtype != dtype:
    raise DataError(
      f"{path} is damaged: it has {array.ndim} dimensions of "
      f"{array.dtype!s:.200}, not {ndim} of {np.dtype(dtype)}"
    )
  return np.asarray(array)


def example_lengths(
  examples: np.ndarray, special: tuple[int, int] = templates.CLS_SEP.counts
) -> np.ndarray:
  """Returns the lengths [M] of examples [M], special tokens included.

  Args:
    examples: [M] rows of EXAMPLE.
    special: the special tokens of a sequence of one text, and of one of two.
  """
  a_length, b_length = (
    examples[name].astype(np.int64) for name in ("a_length", "b_length")
  )
  count = np.where(b_length > 0, special[1], special[0])
  return a_length + np.maximum(b_length, 0) + count


def read_lengths(
  read: Callable[[np.ndarray], np.ndarray],
  ids: np.ndarray,
  special: tuple[int, int] = templates.CLS_SEP.counts,
) -> np.ndarray:
  """Reads the lengths [M] in tokens of the examples with numbers `ids` [M].

  Args:
    read: returns the examples with given numbers.
    ids: the numbers.
    special: as for `example_lengths`.
  """
  blocks = [
    example_lengths(read(ids[i : i + 65536]), special)
    for i in range(0, len(ids), 65536)
  ]
  return np.concatenate([np.zeros(0, np.int64), *blocks])
