"""The token store and the examples on disk.

Text is tokenised once. Its ids lie in ArrayRecord files, RECORD_TOKENS a
record, one stream a shard, a [SEP] after each document; all shards of a split
make one address space. An example is no copy of tokens but two spans of that
space (EXAMPLE), so another length or another pairing costs a few bytes.

  DATA/manifest.json                       counts, settings, hashes
  DATA/vocab/                              the vocabulary
  DATA/tokens/SPLIT-00000.array_record     token ids
  DATA/tokens/SPLIT-00000.boundaries.npy   where each sentence starts and ends
  DATA/tokens/SPLIT-00000.documents.npy    where in these a document starts
  DATA/tokens/SPLIT.counts.npy             how often each id occurs
  DATA/examples/NAME/manifest.json         the same for one pairing and length
  DATA/examples/NAME/SPLIT-00000.array_record
  DATA/examples/NAME/lengths/manifest.json the same for the order by length
  DATA/examples/NAME/lengths/SPLIT.npy     [shards, L + 1] examples by length
  DATA/examples/NAME/lengths/SPLIT-00000.npy  numbers of a shard's examples,
                                           the shortest first
  DATA/.verified.json                      which files were found as written

A unit of text that could not be cut, such as a compressed file, makes several
shards: SPLIT-00000, SPLIT-00000-00001, SPLIT-00000-00002.
"""

import bisect
from collections.abc import Iterator, Sequence
from concurrent import futures
import contextlib
import functools
import hashlib
import itertools
import json
import logging
import os
import re
import time
import types
from typing import Any

from array_record.python import array_record_data_source
from array_record.python import array_record_module
import numpy as np

from bert_jax.runtime import files

_log = logging.getLogger(__name__)

VERSION = 1
RECORD_TOKENS = 256
SPLITS = ("train", "validation")
VERIFY = ("once", "always", "never")

# The number of a unit, or its number and that of a later part as text.
Shard = int | str

# Token spans of the two segments; lengths in tokens; a full-sentence row has
# b_length 0. Starts count tokens from the start of the split's address space.
EXAMPLE = np.dtype(
  [
    ("a_start", "<i8"),
    ("b_start", "<i8"),
    ("a_length", "<i4"),
    ("b_length", "<i4"),
    ("is_random", "<i4"),
  ]
)

# What the reader of ArrayRecord raises for a damaged file.
_READ_ERRORS = (RuntimeError, ValueError, OSError, IndexError)
_WRITER_OPTIONS = "group_size:1,uncompressed"

_VERIFIED = ".verified.json"
_HASH_THREADS = 16  # at most; more only wait for the disk
_REPORT_SECS = 3.0  # between lines that say how far a check is


class DataError(ValueError):
  """Prepared data is missing, damaged or does not fit."""


def write_json(path: str, value: Any) -> None:
  """Writes JSON in one piece, keys in order, a newline at the end."""
  with files.writing(path, "w") as f:
    json.dump(value, f, indent=1, sort_keys=True, ensure_ascii=False)
    f.write("\n")


def read_json(path: str) -> Any:
  """Reads JSON; a damaged file is a DataError that names it."""
  try:
    with open(path, encoding="utf-8") as f:
      return json.load(f)
  except FileNotFoundError:
    raise
  except (ValueError, RecursionError, OSError) as error:
    raise DataError(f"{path} is damaged: {error}") from error


def file_hash(path: str) -> str:
  """SHA-256 of a file, in hexadecimal."""
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def write_array(path: str, array: np.ndarray) -> None:
  """Writes a .npy file in one piece."""
  with files.writing(path) as f:
    # Into a real file numpy writes by itself, and says nothing of the cause
    # where it cannot.
    file: Any = types.SimpleNamespace(write=f.write)
    np.save(file, array, allow_pickle=False)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Names the file in an error of ArrayRecord's writer."""
  try:
    yield
  except RuntimeError as error:
    raise OSError(f"{path} cannot be written: {error}") from error


class RecordWriter:
  """Writes an ArrayRecord file in one piece; the same records, same bytes."""

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
  """The smallest unsigned integer that holds every id, little-endian."""
  return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class TokenWriter:
  """Writes one shard of the token store, a document at a time."""

  def __init__(self, path: str, vocab_size: int, sep_id: int):
    self._writer = RecordWriter(path)
    self._dtype = token_dtype(vocab_size)
    self._sep_id = sep_id
    self._held: list[int] = []
    self._boundaries: list[np.ndarray] = []
    self._documents = [0]
    self.counts = np.zeros(vocab_size, np.int64)
    self.num_tokens = 0

  def __enter__(self):
    return self

  def __exit__(self, *error):
    if error[0] is None:
      padding = -len(self._held) % RECORD_TOKENS
      self._held.extend([0] * padding)
      self._flush()
      self.counts[0] -= padding
    return self._writer.__exit__(*error)

  def add(self, sentences: Sequence[Sequence[int]]) -> None:
    """Adds a document, a list of sentences that are non-empty id lists."""
    lengths = [0, *map(len, sentences)]
    boundaries = np.cumsum(lengths, dtype=np.int64) + self.num_tokens
    self._boundaries.append(boundaries)
    self._documents.append(self._documents[-1] + len(boundaries))
    self._held.extend(itertools.chain.from_iterable(sentences))
    self._held.append(self._sep_id)
    self.num_tokens = int(boundaries[-1]) + 1
    if len(self._held) >= 1 << 16:
      self._flush()

  def _flush(self) -> None:
    whole = len(self._held) // RECORD_TOKENS * RECORD_TOKENS
    block = np.array(self._held[:whole], self._dtype)
    del self._held[:whole]
    self._writer.write_rows(block.reshape(-1, RECORD_TOKENS))
    self.counts += np.bincount(block, minlength=len(self.counts))

  @property
  def num_records(self) -> int:
    """Records the shard has when it is closed."""
    return -(-self.num_tokens // RECORD_TOKENS)

  @property
  def documents(self) -> np.ndarray:
    """Where in `boundaries` each document starts, and their number."""
    return np.array(self._documents, np.int64)

  @property
  def boundaries(self) -> np.ndarray:
    """Of each document: where its sentences start, and where it ends."""
    return np.concatenate([np.zeros(0, np.int64), *self._boundaries])


def examples_name(data: Any) -> str:
  """Folder name of the examples that a config's `data` group asks for."""
  name = f"{data.pairing}-{data.seq_len}-dupe{data.dupe_factor}"
  if data.pairing == "pairs":
    name += f"-short{data.short_seq_rate:g}"
  return f"{name}-seed{data.examples_seed}"


def shard_of_part(unit: int, part: int) -> Shard:
  """The shard that part 0, 1, ... of a unit makes: 7, "00007-00001", ..."""
  return f"{unit:05d}-{part:05d}" if part else unit


def shard_name(shard: Shard) -> str:
  """The shard as file names have it: "00007" or "00007-00001"."""
  return f"{shard:05d}" if isinstance(shard, int) else shard


def shard_path(folder: str, split: str, shard: Shard, suffix: str) -> str:
  """`folder/SPLIT-00007.suffix`."""
  return os.path.join(folder, f"{split}-{shard_name(shard)}.{suffix}")


class Records:
  """Random access to the records of some ArrayRecord files, by block.

  Reading many records in one call is two orders of magnitude faster than one
  by one.
  """

  def __init__(self, paths: Sequence[str], count: int):
    """Opens the files.

    Args:
      paths: the files, in order.
      count: records that the manifest says they hold.

    Raises:
      DataError: a file is missing or damaged, or the count differs.
    """
    for path in paths:
      if not os.path.exists(path):
        raise DataError(f"{path} is missing; run --mode=prepare again")
    try:
      self._source = array_record_data_source.ArrayRecordDataSource(list(paths))
      found = len(self._source)
    except _READ_ERRORS as error:
      bad = next((p for p in paths if not _is_readable(p)), paths[0])
      raise DataError(
        f"{bad} is damaged: {error}; delete it and run --mode=prepare again "
        "with the same --input"
      ) from error
    if found != count:
      raise DataError(
        f"{os.path.dirname(paths[0])}: {found} records, but its manifest says"
        f" {count}; delete the folder and run --mode=prepare again"
      )
    self._folder = os.path.dirname(paths[0])
    self._paths = list(paths)

  def __len__(self) -> int:
    return len(self._source)

  def read(self, keys: np.ndarray, dtype: np.dtype, width: int) -> np.ndarray:
    """Reads records as rows.

    Args:
      keys: [M] record numbers.
      dtype: of the items of a record.
      width: items a record holds.

    Returns:
      [M, width] of dtype.

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
        "--mode=prepare again with the same --input"
      ) from error
    if any(len(row) != size for row in rows):
      bad = next(
        k for k, r in zip(keys.tolist(), rows, strict=True) if len(r) != size
      )
      raise DataError(
        f"{self._folder}: record {bad} does not have {size} bytes; delete the"
        " file and run --mode=prepare again"
      )
    return np.frombuffer(b"".join(rows), dtype).reshape(len(keys), width)

  def _file_of_damage(self, keys: list[int]) -> str:
    """The file with the first of the records that cannot be read."""
    for key in keys:
      try:
        self._source.__getitems__([key])
      except _READ_ERRORS:
        break
    for path in self._paths:
      count = len(array_record_data_source.ArrayRecordDataSource([path]))
      if 0 <= key < count:
        return path
      key -= count
    return self._folder  # no such record: what asked for it is damaged


def _is_readable(path: str) -> bool:
  try:
    return len(array_record_data_source.ArrayRecordDataSource([path])) >= 0
  except _READ_ERRORS:
    return False


class TokenStore:
  """The tokens of one split, addressed as one long array."""

  def __init__(self, folder: str, split: str):
    """Opens a split of prepared data.

    Args:
      folder: DATA, with a manifest.json.
      split: one of SPLITS.
    """
    self._folder = folder
    self.manifest = read_manifest(folder)
    self.dtype = token_dtype(self.manifest["vocab_size"])
    shards = self.manifest["shards"][split]
    tokens = os.path.join(folder, "tokens")
    self._records = Records(
      [shard_path(tokens, split, s["shard"], "array_record") for s in shards],
      sum(s["records"] for s in shards),
    )

  def read_spans(
    self, starts: np.ndarray, lengths: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Reads spans of tokens in one block.

    Args:
      starts: [M] first token of each span.
      lengths: [M] tokens of each span; 0 reads nothing.

    Returns:
      A flat array of ids, and [M] where in it each span starts.
    """
    first = starts // RECORD_TOKENS
    count = np.where(
      lengths > 0, (starts + lengths - 1) // RECORD_TOKENS - first + 1, 0
    )
    slots = np.cumsum(count) - count
    keys = np.repeat(first - slots, count) + np.arange(count.sum())
    if len(keys) and not 0 <= keys.min() <= keys.max() < len(self._records):
      raise DataError(
        f"{self._folder}: an example is damaged: it has tokens {starts.min()} "
        f"to {(starts + lengths).max()}, but there are "
        f"{len(self._records) * RECORD_TOKENS}; prepare the data again"
      )
    tokens = self._records.read(keys, self.dtype, RECORD_TOKENS)
    return tokens.reshape(-1), slots * RECORD_TOKENS + starts % RECORD_TOKENS


class DocumentTable:
  """Sentence boundaries of every document of a split, mapped from disk."""

  def __init__(self, folder: str, split: str, shards: Sequence[dict]):
    """Maps the tables.

    Args:
      folder: DATA/tokens.
      split: one of SPLITS.
      shards: the manifest's rows: shard, records, documents.

    Raises:
      DataError: a table is missing, or not of so many documents.
    """
    self._bases = (
      np.cumsum([0] + [s["records"] for s in shards])[:-1] * RECORD_TOKENS
    ).tolist()
    self._ends = np.cumsum([s["documents"] for s in shards]).tolist()
    self._boundaries, self._documents = [], []
    for s in shards:
      path = functools.partial(shard_path, folder, split, s["shard"])
      self._boundaries.append(read_array(path("boundaries.npy"), np.int64, 1))
      documents = read_array(path("documents.npy"), np.int64, 1)
      if len(documents) != s["documents"] + 1:
        raise DataError(
          f"{path('documents.npy')} has {len(documents) - 1} documents, the "
          f"manifest says {s['documents']}; put a copy of both back, or run "
          "--mode=prepare into an empty folder"
        )
      self._documents.append(documents)

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def shard(self, index: int) -> tuple[int, int]:
    """Numbers of the first document of a shard and of the one after its last.

    Args:
      index: place of the shard in the list.
    """
    return self._ends[index - 1] if index else 0, self._ends[index]

  def boundaries(self, document: int) -> np.ndarray:
    """Boundaries [sentences + 1] of a document, in the split's addresses."""
    shard = bisect.bisect_right(self._ends, document)
    first = self._ends[shard - 1] if shard else 0
    table = self._documents[shard]
    start, end = table[document - first], table[document - first + 1]
    return self._boundaries[shard][start:end] + self._bases[shard]


def read_array(path: str, dtype: Any, ndim: int) -> np.ndarray:
  """A .npy file of known type and dimensions, mapped, never unpickled.

  Raises:
    DataError: it is missing, damaged or of another kind.
  """
  try:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
  except Exception as error:  # of numpy's header: a dozen, which have no base
    raise DataError(
      f"{path} is missing or damaged: {error!s:.500}; prepare the data again"
    ) from error
  if array.ndim != ndim or array.dtype != dtype:
    raise DataError(f"{path} is damaged: {array.dtype!s:.200}{array.shape}")
  return np.asarray(array)


class ExampleStore:
  """The examples of one split under one name."""

  def __init__(self, folder: str, name: str, split: str):
    """Opens DATA/examples/NAME."""
    self.manifest = read_manifest(os.path.join(folder, "examples", name))
    shards = self.manifest["shards"][split]
    if not shards:
      raise DataError(
        f"{folder}: no {split} examples under {name}; raise "
        "prepare.held_out_rate or give more text"
      )
    self._records = Records(
      [
        shard_path(
          os.path.join(folder, "examples", name),
          split,
          s["shard"],
          "array_record",
        )
        for s in shards
      ],
      sum(s["examples"] for s in shards),
    )

  def __len__(self) -> int:
    return len(self._records)

  def read(self, ids: np.ndarray) -> np.ndarray:
    """Reads examples [M] of dtype EXAMPLE by their numbers [M]."""
    return self._records.read(ids, EXAMPLE, 1)[:, 0]


def example_lengths(examples: np.ndarray) -> np.ndarray:
  """Tokens [M] of examples [M], with [CLS] and one or two [SEP]."""
  a_length, b_length = (
    examples[name].astype(np.int64) for name in ("a_length", "b_length")
  )
  return a_length + 2 + np.where(b_length > 0, b_length + 1, 0)


def lengths_folder(folder: str, name: str) -> str:
  """DATA/examples/NAME/lengths."""
  return os.path.join(folder, "examples", name, "lengths")


def read_length_counts(folder: str, name: str, split: str) -> np.ndarray:
  """How many examples of each shard have 0, 1, .. L tokens: [shards, L + 1].

  Args:
    folder: DATA.
    name: of the examples.
    split: one of SPLITS.

  Raises:
    DataError: it is missing, damaged or of other examples.
  """
  manifest = read_manifest(os.path.join(folder, "examples", name))
  path = os.path.join(lengths_folder(folder, name), f"{split}.npy")
  table = read_array(path, np.int64, 2)
  sizes = [s["examples"] for s in manifest["shards"][split]]
  if (
    table.shape != (len(sizes), manifest["settings"]["seq_len"] + 1)
    or table.min(initial=0) < 0
    or table[:, 0].any()
    or table.sum(1).tolist() != sizes
  ):
    raise DataError(f"{path} is damaged; {_DELETE_LENGTHS}")
  return table


class LengthIndex:
  """Finds the examples of a length: the third of 40 tokens, and so on.

  Attributes:
    histogram: [L + 1] examples of 0, 1, ... L tokens.
  """

  def __init__(self, folder: str, name: str, split: str):
    """Opens the order by length of a split.

    Args:
      folder: DATA.
      name: of the examples.
      split: one of SPLITS.

    Raises:
      DataError: it is missing, damaged or of other examples.
    """
    target = lengths_folder(folder, name)
    check_lengths(folder, name)
    shards = read_manifest(os.path.join(folder, "examples", name))["shards"]
    paths = [
      shard_path(target, split, s["shard"], "npy") for s in shards[split]
    ]
    table = read_length_counts(folder, name, split)
    sizes = [s["examples"] for s in shards[split]]
    self._ids = [read_array(path, np.uint32, 1) for path in paths]
    if [len(ids) for ids in self._ids] != sizes:
      raise DataError(
        f"{target}: the files of {split} do not have as many numbers as there "
        f"are examples; {_DELETE_LENGTHS}"
      )
    self._first = np.cumsum([0, *sizes])[:-1]  # example of each shard
    self.histogram = table.sum(0)
    self._starts = np.cumsum(self.histogram) - self.histogram
    # In the order of (length, shard): how many examples up to the end of each.
    self._ends = np.cumsum(table.T)
    self._num_shards = len(table)
    # [shards, L + 1] place of the first of a length in its shard's order.
    self._within = np.cumsum(table, axis=1) - table

  def find(self, lengths: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Numbers of examples.

    Args:
      lengths: [M] tokens.
      ranks: [M] which one of those of that length, from 0 on.

    Returns:
      [M] example numbers.
    """
    places = self._starts[lengths] + ranks
    cell = np.searchsorted(self._ends, places, side="right")
    shards = cell % self._num_shards
    within = places - np.where(cell > 0, self._ends[cell - 1], 0)
    within += self._within[shards, lengths]
    found = np.zeros(len(places), np.int64)
    for shard in np.unique(shards).tolist():
      mine = shards == shard
      found[mine] = self._first[shard] + self._ids[shard][within[mine]]
    return found


_DELETE_LENGTHS = (
  "delete that folder and run --mode=prepare again with the same --config and "
  "no --input"
)


def check_lengths(folder: str, name: str) -> Any:
  """The manifest of the order by length.

  Raises:
    DataError: it was not made, or of other examples.
  """
  target = lengths_folder(folder, name)
  if not os.path.exists(os.path.join(target, "manifest.json")):
    raise DataError(
      f"{target} is not there: these examples were prepared by a release that "
      "did not pack them; run --mode=prepare again with the same --config and "
      "no --input, which adds it, or set --config.data.max_sequences=1"
    )
  manifest = read_manifest(target)
  examples = os.path.join(folder, "examples", name, "manifest.json")
  if manifest["examples"] != file_hash(examples):
    raise DataError(
      f"{target} was made of other examples than are there now; "
      f"{_DELETE_LENGTHS}"
    )
  return manifest


@functools.cache
def _manifest_text(path: str, stamp: tuple[int, int, int]) -> Any:
  del stamp  # only so that a changed file is read anew
  return read_json(path)


def read_manifest(folder: str) -> Any:
  """The manifest of prepared data.

  Raises:
    DataError: there is none, or another version wrote it.
  """
  path = os.path.join(folder, "manifest.json")
  try:
    stat = os.stat(path)
  except OSError as error:
    raise DataError(
      f"{folder} holds no prepared data (no manifest.json); make it with "
      f"--mode=prepare --output={folder} --input=TEXT"
    ) from error
  stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
  manifest = _manifest_text(path, stamp)
  if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
    raise DataError(
      f"{path} is not of version {VERSION}, which this release reads; run "
      "--mode=prepare into an empty folder"
    )
  if not any(has_form(manifest, form) for form in _MANIFESTS):
    raise DataError(
      f"{path} is damaged: a key is missing or has another kind of value; put "
      "a copy back, or run --mode=prepare into an empty folder"
    )
  return manifest


def is_count(value: Any) -> bool:
  """Whether JSON is a number of things."""
  return type(value) is int and 0 <= value < 1 << 48


def is_text(value: Any) -> bool:
  """Whether JSON is a text."""
  return isinstance(value, str)


def _is_shard(value: Any) -> bool:
  is_part = isinstance(value, str) and re.fullmatch(r"\d{5,}-\d{5,}", value)
  return bool(is_part) or is_count(value)


def each_split(form: Any) -> dict:
  """The form that has one for each split."""
  return dict.fromkeys(SPLITS, form)


# What is read of a shard's row in the manifest of the tokens, of examples, and
# of their lengths; then of these manifests.
TOKENS_ROW = {
  "shard": _is_shard,
  "documents": is_count,
  "tokens": is_count,
  "records": is_count,
  "sha256": dict.fromkeys(
    ("array_record", "boundaries.npy", "documents.npy"), is_text
  ),
}
EXAMPLES_ROW = {"shard": _is_shard, "examples": is_count, "sha256": is_text}
LENGTHS_ROW = {"shard": _is_shard, "sha256": is_text}
_MANIFESTS: tuple[dict, ...] = (
  {
    "settings": {"vocab": is_text},
    "vocab_size": is_count,
    "totals": each_split(
      dict.fromkeys(("documents", "sentences", "tokens", "unknown"), is_count)
    ),
    "shards": each_split([TOKENS_ROW]),
  },
  {
    "settings": {"tokens": is_text, "seq_len": is_count},
    "totals": each_split(dict.fromkeys(("examples", "tokens"), is_count)),
    "shards": each_split([EXAMPLES_ROW]),
  },
  {
    "examples": is_text,
    "sha256": each_split(is_text),
    "shards": each_split([LENGTHS_ROW]),
  },
)


def has_form(value: Any, form: Any) -> bool:
  """Whether JSON has the keys of a form, and values of their kinds.

  Args:
    value: as read.
    form: a dict of forms, a list of one form, or a function that judges.
  """
  if isinstance(form, dict):
    return isinstance(value, dict) and all(
      key in value and has_form(value[key], inner)
      for key, inner in form.items()
    )
  if isinstance(form, list):
    return isinstance(value, list) and all(has_form(x, form[0]) for x in value)
  return form(value)


def verify(
  folder: str, name: str, split: str, mode: str, packed: bool = False
) -> None:
  """Checks all files that batches of a split are made of.

  A damaged record is an error only when it is read, perhaps days into a run;
  this finds it at the start. What was found good is noted in the folder, if it
  can be written, by path, size and the times of the last change of content and
  of its inode, so that the next start need not read it again. Every process of
  a run checks for itself: no host sees through another's eyes.

  Args:
    folder: DATA.
    name: of the examples.
    split: one of SPLITS.
    mode: "once": what is not noted as good; "always": everything; "never".
    packed: the order by length is read, too.

  Raises:
    DataError: a file is missing, or is not what its manifest says.
    ValueError: no such mode.
  """
  if mode not in VERIFY:
    raise ValueError(
      f"data.verify={mode!r} is not known; use one of {', '.join(VERIFY)}"
    )
  if mode == "never":
    return
  _check_counts(folder)
  note = os.path.join(folder, _VERIFIED)
  known = _read_verified(note) if mode == "once" else {}
  wanted = _wanted_hashes(folder, name, split)
  if packed:
    wanted |= _lengths_hashes(folder, name, split)
  entries = {path: _entry(path, digest) for path, digest in wanted.items()}
  good = {}
  try:
    unknown = [p for p, (key, e) in entries.items() if known.get(key) != e]
    for path, found in _hash_files(unknown, folder):
      if found != wanted[path]:
        raise DataError(
          f"{path} is damaged: its sha256 is {found}, but the manifest says "
          f"{wanted[path]}; put the file back, or delete it and run "
          "--mode=prepare again with the same --config and --input"
        )
      key, entry = entries[path]
      good[key] = entry
  finally:
    if good:
      with contextlib.suppress(OSError):  # not ours to write: check again
        write_json(note, _read_verified(note) | good)


def _entry(path: str, digest: str) -> tuple[str, list]:
  """What is noted of a good file: under its full path, stamps and SHA-256."""
  try:
    stat = os.stat(path)
  except OSError as error:
    raise DataError(
      f"{path} is missing; run --mode=prepare again ({error.strerror})"
    ) from error
  # Of a copy that has the times of the original only the last one differs.
  stamps = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
  return os.path.realpath(path), [*stamps, digest]


def _read_verified(path: str) -> dict[str, list]:
  """The files noted as good; none if there is no such note, or no sound one."""
  try:
    known = read_json(path)
  except (OSError, DataError):
    return {}
  return known if isinstance(known, dict) else {}


def _wanted_hashes(folder: str, name: str, split: str) -> dict[str, str]:
  """Path -> SHA-256 of the token and example files of a split."""
  tokens = os.path.join(folder, "tokens")
  examples = os.path.join(folder, "examples", name)
  wanted = {}
  for s in read_manifest(folder)["shards"][split]:
    for suffix, digest in s["sha256"].items():
      wanted[shard_path(tokens, split, s["shard"], suffix)] = digest
  for s in read_manifest(examples)["shards"][split]:
    path = shard_path(examples, split, s["shard"], "array_record")
    wanted[path] = s["sha256"]
  return wanted


def _lengths_hashes(folder: str, name: str, split: str) -> dict[str, str]:
  """Path -> SHA-256 of the files of the order by length."""
  target = lengths_folder(folder, name)
  manifest = check_lengths(folder, name)
  return {
    os.path.join(target, f"{split}.npy"): manifest["sha256"][split],
    **{
      shard_path(target, split, s["shard"], "npy"): s["sha256"]
      for s in manifest["shards"][split]
    },
  }


def _hash_files(paths: Sequence[str], folder: str) -> Iterator[tuple[str, str]]:
  """Yields (path, SHA-256) in order; threads read ahead."""
  total, done = sum(map(os.path.getsize, paths)), 0
  said = time.monotonic()
  pool = futures.ThreadPoolExecutor(min(_HASH_THREADS, os.cpu_count() or 1))
  try:
    waiting = [pool.submit(file_hash, path) for path in paths]
    for path, future in zip(paths, waiting, strict=True):
      try:
        yield path, future.result()
      except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
      done += os.path.getsize(path)
      if time.monotonic() - said > _REPORT_SECS:
        said = time.monotonic()
        _log.info(
          "checking %s: %.2f of %.2f GB", folder, done / 1e9, total / 1e9
        )
  finally:
    pool.shutdown(cancel_futures=True)


def _check_counts(folder: str) -> None:
  """Checks the counts of ids, which have no hash, by what they add up to.

  Text never becomes a special token other than [UNK], and special tokens are
  not counted: the sum is known.
  """
  manifest = read_manifest(folder)
  for split, totals in manifest["totals"].items():
    path = os.path.join(folder, "tokens", f"{split}.counts.npy")
    counts = read_array(path, np.int64, 1)
    found = (len(counts), int(counts.sum()), int(counts.min(initial=0)) >= 0)
    wanted = (
      manifest["vocab_size"],
      totals["tokens"] - totals["unknown"],
      True,
    )
    if found != wanted:
      raise DataError(
        f"{path} is damaged: {found[0]} counts that add up to {found[1]}, but "
        f"the manifest says {wanted[0]} and {wanted[1]}; delete the folder "
        "tokens and run --mode=prepare again with the same --config and --input"
      )
