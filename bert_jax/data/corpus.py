"""Reads raw text as documents, each a list of sentences, in bounded memory.

A corpus is cut into units: stretches of a file that begin and end between two
documents. A compressed file or a table is one unit, because it can be read only
from its start; its documents are cut into parts while they are read. The cuts
depend only on the files and on `unit_bytes`, so that the result of a unit or a
part does not depend on the process that makes it.

The ending of a file decides its format if it is one of `RECORD_FORMATS`. All
other files have the format that prepare.format names.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
import re
from typing import Any

import sentencex

from bert_jax.data import columnar
from bert_jax.data import compression
from bert_jax.data import rows
from bert_jax.runtime import errors
from bert_jax.runtime import files

_log = logging.getLogger(__name__)

# Longer lines and documents are cut, so that no input can fill the memory.
MAX_LINE_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 1 << 24
# The splitter takes quadratic time for text with quotes that are not closed.
_MAX_PARAGRAPH_CHARS = 1 << 14
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_TFDS_UNIT_RECORDS = 5_000

_RATE_RECORDS = 64  # the records that are read to estimate the rest
_SHOWN = 8  # the folders that a warning lists
_HASH_BYTES = 1 << 20  # the size of one read

# Format -> the number of blank lines in a row that end a document.
_BLANK_LINES = {"sentences": 1, "paragraphs": 2}

# The formats in which a record holds a document, by the names that
# prepare.format has for them.
RECORD_FORMATS: Mapping[str, rows.Format] = {
  "jsonl": rows.FORMATS["JSON lines"],
  "json": rows.FORMATS["JSON"],
  "csv": rows.FORMATS["CSV"],
  "tsv": rows.FORMATS["TSV"],
  "parquet": rows.FORMATS["Parquet"],
  "arrow": rows.FORMATS["Arrow"],
}
_BOM = b"\xef\xbb\xbf"


class CorpusError(errors.UserError):
  """The text cannot be read."""

  def __init__(self, message: str):
    super().__init__(compression.shorten(message))


@dataclasses.dataclass(frozen=True)
class Unit:
  """A stretch of one input.

  Attributes:
    path: the file, or `tfds:NAME:SPLIT`.
    start: the first byte of a text file, TFDS record, or row group of Parquet.
    end: the byte, record or row group after the last one; -1 means the end of
      the file, for files that cannot be cut, such as compressed ones.
    size: the size for progress: bytes of text, or compressed bytes or records
      if the size of the text is not known.
    part_bytes: the bytes of text after which a part of the unit ends, if the
      unit itself cannot be cut; 0 means that the unit is one part.
    held_out: whether all of its documents are kept for evaluation.
    format: the format of the file, as prepare.format names it.
    held_out_sentences: where documents are few, the stretches of sentences that
      are kept for evaluation, as (first, end) counted over the unit.
  """

  path: str
  start: int
  end: int
  size: int
  part_bytes: int = 0
  held_out: bool = False
  format: str = ""
  held_out_sentences: tuple[tuple[int, int], ...] = ()


class Reading:
  """Counts and hashes the bytes that were read of a unit.

  Attributes:
    num_bytes: the bytes read so far.
    num_null: the records so far whose text is null, which are left out.
  """

  def __init__(self):
    self._hash = hashlib.sha256()
    self.num_bytes = 0
    self.num_null = 0

  def update(self, data: bytes) -> None:
    """Adds the next bytes that were read."""
    self._hash.update(data)
    self.num_bytes += len(data)

  def hexdigest(self) -> str:
    """Returns the SHA-256 of all bytes so far, in hexadecimal."""
    return self._hash.hexdigest()


def list_units(
  patterns: Sequence[str], text_format: str, unit_bytes: int
) -> list[Unit]:
  """Cuts the inputs into units, in the order of their sorted paths.

  Args:
    patterns: globs; `.gz` files are read through gzip. For the format "tfds":
      `NAME` or `NAME:SPLIT`, or the folder of a prepared data set.
    text_format: the value of prepare.format.
    unit_bytes: the target size of a unit.

  Returns:
    The units, which together cover every byte once.

  Raises:
    CorpusError: a pattern names no file, or a file is empty or binary.
    files.FilesError: an input is a FIFO or device.
  """
  if text_format == "tfds":
    return [u for p in patterns for u in _tfds_units(p, unit_bytes)]
  paths = sorted({p for pattern in patterns for p in _expand(pattern)})
  units = []
  for path in paths:
    format = file_format(path, text_format)
    head = _check_text(path, format)
    size = files.size(path)
    if format == "parquet":
      units += _parquet_units(path, unit_bytes)
    elif (
      compression.ending(path)
      or format not in ("jsonl", *_BLANK_LINES)
      or compression.ends_lines_by_cr(head)
    ):
      units.append(Unit(path, 0, -1, size, unit_bytes, format=format))
    else:
      cuts = _cuts(path, size, format, unit_bytes)
      units += [
        Unit(path, a, b, b - a, format=format)
        for a, b in itertools.pairwise(cuts)
      ]
  return units


def file_format(path: str, text_format: str) -> str:
  """Returns the format of a file, as prepare.format names it.

  Args:
    path: the file, whose ending decides. A .json file without an array holds
      JSON lines, which can be cut into units.
    text_format: the value of prepare.format, for files whose ending says no
      format of records.
  """
  found = rows.format_of(path)
  if found is RECORD_FORMATS["json"]:
    with _naming(path):
      return "json" if rows.is_json_array(path) else "jsonl"
  by_ending = {format.name: name for name, format in RECORD_FORMATS.items()}
  return by_ending.get(found.name if found else "", text_format)


def _parquet_units(path: str, unit_bytes: int) -> list[Unit]:
  """Returns units of whole row groups, of about `unit_bytes` each."""
  with _naming(path):
    sizes = columnar.parquet_groups(path)
  units = []
  start = size = 0
  for i, group_size in enumerate(sizes, 1):
    size += group_size
    if size >= unit_bytes or i == len(sizes):
      units.append(Unit(path, start, i, size, unit_bytes, format="parquet"))
      start, size = i, 0
  if not units:
    raise CorpusError(f"{path} holds no row")
  return units


def _expand(pattern: str) -> list[str]:
  """Returns the files of a glob, of a folder, or the path itself."""
  if problem := files.scheme_problem("--input", pattern):
    raise CorpusError(problem)
  files.check_readable(pattern)
  if files.is_folder(pattern):
    found, inner = files.entries(pattern)
    hidden = [p for p in found if os.path.basename(p).startswith((".", "_"))]
    if hidden:
      _log.warning(
        "--input=%s: not read, because their names begin with a dot or an "
        "underscore: %s",
        pattern,
        ", ".join(sorted(map(os.path.basename, hidden))),
      )
    found = [p for p in found if p not in hidden]
    if inner:
      _log.warning(
        "--input=%s: its folders are not read: %s; give them, too, or the glob "
        "%s/**/*",
        pattern,
        ", ".join(sorted(inner)[:_SHOWN]) + ", ..." * (len(inner) > _SHOWN),
        pattern.rstrip("/"),
      )
  elif files.exists(pattern):  # even if its name has characters of a glob
    found = [pattern]
  elif any(c in pattern for c in "*?["):
    found = files.glob(pattern)
    if not files.is_remote(pattern):  # where there are only files
      found = [path for path in found if files.is_file(path)]
  else:
    found = []
  if not found:
    raise CorpusError(
      f"--input={pattern} names no file; give text files, globs or folders, "
      "separated by commas"
    )
  return found


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Turns an error of reading a file into a CorpusError that names it."""
  try:
    with compression.naming(path):
      yield
  except compression.UnreadableError as error:
    hint = ""
    if isinstance(error, columnar.ColumnError):
      hint = "; name the field with --config.prepare.text_key"
    raise CorpusError(f"{error}{hint}") from error


def _check_text(path: str, format: str) -> bytes:
  """Checks the first bytes of a file, and returns them.

  Raises:
    CorpusError: the file is empty, is not text, or holds JSON but is to be read
      as plain text.
  """
  if format in RECORD_FORMATS and not RECORD_FORMATS[format].is_text:
    if files.size(path) == 0:
      raise CorpusError(f"{path} is empty; leave it out or fill it")
    return b""
  with _naming(path):
    head = compression.read_head(path)
  if not head.removeprefix(_BOM).strip():
    raise CorpusError(f"{path} is empty; leave it out or fill it")
  if b"\0" in head:
    raise CorpusError(
      f"{path} holds zero bytes, so it is not UTF-8 text (perhaps binary, or "
      "UTF-16); convert it, for example with iconv -t UTF-8"
    )
  if format in _BLANK_LINES and _is_json(head):
    raise CorpusError(
      f"{path}:1 is a JSON object, but prepare.format={format} reads plain "
      "text; set --config.prepare.format=jsonl, or rename the file to end in "
      ".jsonl"
    )
  return head


def _is_json(head: bytes) -> bool:
  """Returns whether the first line of a file is a JSON object."""
  line, end, _ = head.removeprefix(_BOM).lstrip().partition(b"\n")
  if not end and len(head) == compression.HEAD_BYTES:
    return line.startswith(b'{"')  # a line that is longer than the head
  try:
    return line.startswith(b"{") and isinstance(json.loads(line), dict)
  except (ValueError, RecursionError):
    return False


def _cuts(path: str, size: int, text_format: str, step: int) -> list[int]:
  """Returns byte positions between documents, one after each `step` bytes."""
  cuts = [0]
  with compression.open_bytes(path) as f:
    at = step
    while at < size:
      f.seek(at)
      while (line := f.readline(MAX_LINE_BYTES)) and line[-1:] != b"\n":
        pass  # skips to the end of the line that `at` is in
      if text_format != "jsonl":
        _skip_to_blank(f, _BLANK_LINES[text_format])
      if f.tell() >= size:
        break
      cuts.append(f.tell())
      at = f.tell() + step
  return cuts + [size]


def _skip_to_blank(f: Any, count: int) -> None:
  """Reads until the end of `count` blank lines in a row, or of the file."""
  blank = 0
  for line in iter(lambda: f.readline(MAX_LINE_BYTES), b""):
    blank = 0 if line.strip() else blank + 1
    if blank == count:
      return


def read_documents(
  unit: Unit, text_format: str, text_key: str, language: str, digest=None
) -> Iterator[list[str]]:
  """Yields the documents of a unit as lists of non-empty sentences.

  Args:
    unit: the unit to read.
    text_format: the value of prepare.format.
    text_key: the field that holds the text, for formats of records.
    language: the language of the sentence splitter, such as "en", for all
      formats except "sentences".
    digest: a Reading or hashlib object that gets the bytes read, or None.

  Raises:
    CorpusError: the text is not UTF-8, or a record has no text; the message
      names the file and the byte.
  """
  digest = digest or Reading()
  text_format = unit.format or text_format
  if text_format == "tfds":
    texts: Iterator[str] = _tfds_texts(unit, text_key, digest)
  elif text_format == "jsonl":
    texts = _json_texts(unit, text_key, digest)
  elif text_format in RECORD_FORMATS:
    texts = _record_texts(unit, text_key, digest)
  else:
    yield from _blank_line_documents(unit, text_format, language, digest)
    return
  for text in texts:
    for start in range(0, len(text), MAX_DOCUMENT_BYTES):
      piece = text[start : start + MAX_DOCUMENT_BYTES]
      if sentences := _split(re.split(r"\n\s*", piece), language):
        yield sentences


def hash_unit(unit: Unit, text_format: str, text_key: str) -> str:
  """Returns the SHA-256 of the text of a unit, as `Reading` computes it.

  Args:
    unit: the unit to read.
    text_format: as in read_documents.
    text_key: as in read_documents.

  Raises:
    CorpusError: the input is damaged.
  """
  digest = Reading()
  text_format = unit.format or text_format
  if text_format == "tfds":
    for _ in _tfds_texts(unit, text_key, digest):
      pass
    return digest.hexdigest()
  if text_format in RECORD_FORMATS and text_format != "jsonl":
    for _ in _record_texts(unit, text_key, digest):
      pass
    return digest.hexdigest()
  with _naming(unit.path), _open(unit) as f:
    left = unit.end - unit.start if unit.end >= 0 else math.inf
    while left and (block := f.read(int(min(left, _HASH_BYTES)))):
      digest.update(block)
      left -= len(block)
  return digest.hexdigest()


@contextlib.contextmanager
def _open(unit: Unit) -> Iterator[Any]:
  """Opens a text file at the start of a unit, decompressed."""
  if unit.end < 0:
    with compression.open_text(unit.path) as f:
      yield f
  else:
    with files.reading(unit.path) as f:
      f.seek(unit.start)
      yield f


def read_parts(
  unit: Unit, text_format: str, text_key: str, language: str, reading: Reading
) -> Iterator[Iterator[list[str]]]:
  """Yields the documents of a unit in parts of bounded size.

  A part ends after the document in which it reaches `part_bytes` of text. The
  caller must read one part to its end before it asks for the next.

  Args:
    unit: the unit to read.
    text_format: as in read_documents.
    text_key: as in read_documents.
    language: as in read_documents.
    reading: gets the bytes read.

  Raises:
    CorpusError: as in read_documents.
  """
  documents = read_documents(unit, text_format, text_key, language, reading)
  start = 0

  def part(document: list[str] | None) -> Iterator[list[str]]:
    nonlocal start
    while document is not None:
      yield document
      if 0 < unit.part_bytes <= reading.num_bytes - start:
        break
      document = next(documents, None)
    start = reading.num_bytes

  for document in documents:
    yield part(document)


def is_held_out(document: Sequence[str], rate: float, seed: int) -> bool:
  """Returns whether a document is held out for evaluation.

  This depends only on the text, so that two copies of a text are always in the
  same split.

  Args:
    document: the sentences.
    rate: the share of documents to hold out.
    seed: selects the documents.
  """
  digest = hashlib.blake2b(
    "\n".join(document).encode("utf-8", "replace"),
    digest_size=8,
    key=str(seed).encode(),
  ).digest()
  return int.from_bytes(digest, "big") < rate * 2**64


def text_sizes(
  units: Sequence[Unit], text_format: str, text_key: str
) -> list[int]:
  """Returns the bytes of text in each unit, an estimate for .gz and TFDS.

  Args:
    units: the units that list_units returned.
    text_format: the value of prepare.format.
    text_key: the field that holds the text, for the format "tfds".

  Raises:
    CorpusError: an input is damaged or lacks the field.
  """
  rates = {}
  for path in {u.path for u in units}:
    if text_format == "tfds":
      rates[path] = _tfds_rate(path, text_key)
    else:
      with _naming(path):
        is_packed = compression.ending(path)
        rates[path] = compression.text_rate(path) if is_packed else 1
  return [round(u.size * rates[u.path]) for u in units]


def _tfds_rate(path: str, text_key: str) -> float:
  """Returns the mean bytes of text in a record, over an even sample."""
  count = len(_tfds_source(path))
  places = range(0, count, -(-count // _RATE_RECORDS))
  reading = Reading()
  for i in places:
    for _ in _tfds_texts(Unit(path, i, i + 1, 1), text_key, reading):
      pass
  return reading.num_bytes / len(places)


def _split(paragraphs: Sequence[str], language: str) -> list[str]:
  return [
    sentence
    for paragraph in paragraphs
    for piece in _short(paragraph.strip())
    for s in sentencex.segment(language, piece)
    if (sentence := s.strip())
  ]


def _short(paragraph: str) -> Iterator[str]:
  """Yields pieces of a paragraph of bounded length, cut between words."""
  while len(paragraph) > _MAX_PARAGRAPH_CHARS:
    cut = paragraph.rfind(" ", 1, _MAX_PARAGRAPH_CHARS)
    cut = cut if cut > 0 else _MAX_PARAGRAPH_CHARS
    yield paragraph[:cut]
    paragraph = paragraph[cut:]
  if paragraph:
    yield paragraph


def _lines(unit: Unit, digest) -> Iterator[tuple[int, str]]:
  """Yields (byte position, line) of a unit; very long lines come in pieces."""
  with contextlib.ExitStack() as stack:
    with _naming(unit.path):
      f = stack.enter_context(_open(unit))
    at = unit.start
    while unit.end < 0 or at < unit.end:
      with _naming(unit.path):
        line = f.readline(MAX_LINE_BYTES)
        if len(line) == MAX_LINE_BYTES:  # do not cut within a character
          line += f.read(_missing_bytes(line))
      if not line:
        return
      # A unit may end within a line that is longer than MAX_LINE_BYTES.
      digest.update(line if unit.end < 0 else line[: unit.end - at])
      try:
        text = line.decode("utf-8")
      except UnicodeDecodeError as error:
        raise CorpusError(
          f"{unit.path}: byte {at + error.start} is not UTF-8 (line "
          f"{_line_number(unit.path, at)}); convert the file, or drop such "
          "bytes with iconv -c -t UTF-8"
        ) from error
      yield at, text
      at += len(line)


def _line_number(path: str, at: int) -> int:
  """Returns the number of the line that begins at a byte, from 1."""
  number = 1
  with _naming(path), compression.open_text(path) as f:
    while at > 0 and (block := f.read(min(at, _HASH_BYTES))):
      number += block.count(b"\n")
      at -= len(block)
  return number


def _missing_bytes(line: bytes) -> int:
  """Returns how many bytes the last character of a piece of UTF-8 lacks."""
  for back, byte in enumerate(reversed(line[-4:]), 1):
    if byte & 0xC0 != 0x80:  # the first byte of that character
      size = 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
      return max(size - back, 0)
  return 0


def _blank_line_documents(unit, text_format, language, digest):
  """Yields the documents of the formats "sentences" and "paragraphs"."""
  document: list[str] = []
  paragraph: list[str] = []
  blank = size = 0

  def close_paragraph():
    if paragraph:
      document.extend(_split([" ".join(paragraph)], language))
      paragraph.clear()

  for _, line in _lines(unit, digest):
    line = line.strip()
    blank = 0 if line else blank + 1
    size += len(line)
    if line:
      (document if text_format == "sentences" else paragraph).append(line)
    else:
      close_paragraph()
    if blank >= _BLANK_LINES[text_format] or size > MAX_DOCUMENT_BYTES:
      close_paragraph()
      if document:
        yield document
      document = []
      size = 0
  close_paragraph()
  if document:
    yield document


def _json_texts(unit: Unit, text_key: str, digest) -> Iterator[str]:
  """Yields the texts of a JSONL unit."""
  held, start = "", unit.start
  for at, line in _lines(unit, digest):
    start = start if held else at
    held += line if at else line.removeprefix("\ufeff")
    if not line.endswith("\n") and len(held) < MAX_DOCUMENT_BYTES:
      continue  # a piece of a long line, or the last one
    if held.strip():
      yield from _json_text(held, unit.path, start, text_key, digest)
    held = ""
  if held.strip():
    yield from _json_text(held, unit.path, start, text_key, digest)


def _json_text(
  line: str, path: str, at: int, text_key: str, digest: Any
) -> Iterator[str]:
  """Yields the text of a line of JSON, unless it is null."""

  def where() -> str:
    return f"{path}: the line at byte {at}"

  try:
    record = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise CorpusError(
      f"{where()}: {error} (line {_line_number(path, at)} of the file)"
    ) from error
  text = record.get(text_key) if isinstance(record, dict) else None
  if isinstance(record, dict) and text_key in record and text is None:
    _count_null(digest)
    return
  if not isinstance(text, str):
    raise CorpusError(
      f"{where()} has no text under {text_key!r}; name the field with "
      f"--config.prepare.text_key (line {_line_number(path, at)} of the file)"
    )
  yield _LONE_SURROGATE.sub("\ufffd", text)  # JSON may hold half a pair


def _count_null(digest: Any) -> None:
  if isinstance(digest, Reading):
    digest.num_null += 1


def _record_texts(unit: Unit, text_key: str, digest: Any) -> Iterator[str]:
  """Yields the texts of a table, a JSON array, or row groups of Parquet."""
  if unit.format == "parquet":
    groups = range(unit.start, unit.end)
    found: Iterator[rows.Row] = columnar.read_parquet(
      unit.path, [text_key], groups
    )
  elif unit.format == "arrow":
    found = columnar.read_arrow(unit.path, [text_key])
  else:
    name = RECORD_FORMATS[unit.format].name
    found = rows.read(unit.path, default=name)
  while True:
    with _naming(unit.path):
      one = next(found, None)
    if one is None:
      return
    where, row = one
    text = row.get(text_key, ())
    if text is None:
      _count_null(digest)
      continue
    if not isinstance(text, str):
      problem = (
        f"has no text under {text_key!r}, only {', '.join(map(str, row))}"
        if text == ()
        else f"has {text!r:.60} under {text_key!r}, which is not text"
      )
      raise CorpusError(
        f"{where} {problem}; name the field with --config.prepare.text_key, "
        "or let the name of a file of plain text end in .txt"
      )
    text = _LONE_SURROGATE.sub("\ufffd", text)
    digest.update(text.encode())
    yield text


@contextlib.contextmanager
def naming_tfds(path: str) -> Iterator[None]:
  """Turns any error of reading prepared TFDS data into one that names it.

  Raises:
    CorpusError: the data is damaged.
  """
  try:
    yield
  except (CorpusError, MemoryError):
    raise
  except Exception as error:  # protobuf, TFDS, ArrayRecord: unrelated types
    raise CorpusError(
      f"{path} is damaged, or was not written by TensorFlow Datasets: "
      f"{error!r:.500}; check the path, or make the data again with "
      "tfds.builder(NAME).download_and_prepare()"
    ) from error


def open_tfds(folder: str) -> Any:
  """Opens prepared TFDS data, which is read without TensorFlow.

  Args:
    folder: the folder that contains dataset_info.json.

  Raises:
    CorpusError: the data is damaged, or names code outside TFDS.
  """
  os.environ.setdefault("TFDS_NO_GCS", "1")
  import tensorflow_datasets as tfds  # slow to import: only where it is used

  with naming_tfds(folder):
    features = os.path.join(folder, "features.json")
    for name in _class_names(json.loads(files.read_bytes(features))):
      if not name.startswith("tensorflow_datasets."):  # it would be imported
        raise CorpusError(
          f"{features} names {name!r:.100}, which is not a feature of TFDS; "
          "such data is not read, because it would run code"
        )
    return tfds.builder_from_directory(files.local(folder))


def _class_names(value: Any) -> Iterator[str]:
  """Yields the Python classes that a features.json names, in any form."""
  inner = value.values() if isinstance(value, dict) else value
  for key in ("pythonClassName", "python_class_name", "type"):
    if isinstance(value, dict) and isinstance(value.get(key), str):
      yield value[key]
  for item in inner if isinstance(value, dict | list) else ():
    yield from _class_names(item)


def _tfds_source(path: str):
  """Returns the random-access source of prepared TFDS data."""
  os.environ.setdefault("TFDS_NO_GCS", "1")
  import tensorflow_datasets as tfds  # slow to import: only where it is used

  name, _, split = path.removeprefix("tfds:").rpartition(":")
  if not name or "/" in split:  # no split is given; the colon is that of gs://
    name, split = path.removeprefix("tfds:"), ""
  if files.exists(os.path.join(name, "dataset_info.json")):
    builder = open_tfds(name)
  else:
    if name.startswith("wikipedia"):
      import tensorflow_datasets.text.wikipedia
    try:
      builder = tfds.builder(name)
    except tfds.core.registered.DatasetNotFoundError as error:
      raise CorpusError(
        f"--input={path}: {name!r} is neither a data set of TFDS nor a folder "
        "with a dataset_info.json"
      ) from error
  if not builder.info.splits:
    raise CorpusError(
      f"--input={path}: the data set is not prepared in {builder.data_dir}; "
      f"run tfds build {name} --file_format=array_record, which needs "
      "TensorFlow and a network, or give the folder of prepared data"
    )
  split = split or "train"
  if split not in builder.info.splits:
    raise CorpusError(
      f"--input={path}: there is no split {split!r}; use one of "
      f"{', '.join(builder.info.splits)}"
    )
  with naming_tfds(path):
    return builder.as_data_source(split=split)


def _tfds_units(path: str, unit_bytes: int) -> list[Unit]:
  with naming_tfds(path):
    count = len(_tfds_source(path))
  if not count:
    raise CorpusError(f"--input={path} holds no record")
  return [
      Unit(path, i, min(i + _TFDS_UNIT_RECORDS, count),
           min(_TFDS_UNIT_RECORDS, count - i), unit_bytes)
      for i in range(0, count, _TFDS_UNIT_RECORDS)
  ]  # fmt: skip


def _tfds_texts(unit: Unit, text_key: str, digest) -> Iterator[str]:
  source = _tfds_source(unit.path)
  for i in range(unit.start, unit.end):
    with naming_tfds(unit.path):
      record = source[i]
    raw = record.get(text_key)
    raw = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    if not isinstance(raw, bytes):
      raise CorpusError(
        f"{unit.path}: record {i} has no text under {text_key!r}; it has "
        f"{', '.join(record)}; set --config.prepare.text_key"
      )
    digest.update(raw)
    try:
      yield raw.decode("utf-8")
    except UnicodeDecodeError as error:
      raise CorpusError(f"{unit.path}: record {i}: {error}") from error
