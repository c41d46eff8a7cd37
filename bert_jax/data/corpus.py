"""Reads raw text as documents, each a list of sentences, in bounded memory.

A corpus is cut into units: stretches of a file that begin and end between two
documents. A compressed file is one unit, because it can be read only from its
start; its documents are cut into parts while they are read. The cuts depend
only on the files and on `unit_bytes`, so that the result of a unit or a part
does not depend on the process that makes it.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import glob
import gzip
import hashlib
import itertools
import json
import math
import os
import re
from typing import Any
import zlib

from etils import epath
import sentencex

from bert_jax.runtime import errors
from bert_jax.runtime import files

# Longer lines and documents are cut, so that no input can fill the memory.
MAX_LINE_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 1 << 24
# The splitter takes quadratic time for text with quotes that are not closed.
_MAX_PARAGRAPH_CHARS = 1 << 14
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_TFDS_UNIT_RECORDS = 5_000

# The part of an input that is read to estimate how much text it holds.
_RATE_BYTES = 1 << 18
_RATE_RECORDS = 64
_HASH_BYTES = 1 << 20  # the size of one read

# Format -> the number of blank lines in a row that end a document.
_BLANK_LINES = {"sentences": 1, "paragraphs": 2}


class CorpusError(errors.UserError):
  """The text cannot be read."""


@dataclasses.dataclass(frozen=True)
class Unit:
  """A stretch of one input.

  Attributes:
    path: the file, or `tfds:NAME:SPLIT`.
    start: the first byte of a text file, or the first TFDS record.
    end: the byte or record after the last one; -1 means the end of the file,
      for compressed files, which cannot be cut.
    size: the size for progress: bytes of text, or compressed bytes or records
      if the size of the text is not known.
    part_bytes: the bytes of text after which a part of the unit ends, if the
      unit itself cannot be cut; 0 means that the unit is one part.
    held_out: whether all of its documents are kept for evaluation.
  """

  path: str
  start: int
  end: int
  size: int
  part_bytes: int = 0
  held_out: bool = False


class Reading:
  """Counts and hashes the bytes that were read of a unit."""

  def __init__(self):
    self._hash = hashlib.sha256()
    self.num_bytes = 0

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
    _check_text(path)
    size = epath.Path(path).stat().length
    if path.endswith(".gz"):
      units.append(Unit(path, 0, -1, size, unit_bytes))
    else:
      cuts = _cuts(path, size, text_format, unit_bytes)
      units += [Unit(path, a, b, b - a) for a, b in itertools.pairwise(cuts)]
  return units


def _expand(pattern: str) -> list[str]:
  """Returns the files of a glob, of a folder, or the path itself."""
  if problem := files.scheme_problem("--input", pattern):
    raise CorpusError(problem)
  files.check_readable(pattern)
  path = epath.Path(pattern)
  if path.is_dir():
    found = [str(p) for p in path.iterdir() if p.is_file()]
  elif path.exists():  # even if its name contains the characters of a glob
    found = [pattern]
  elif any(c in pattern for c in "*?["):
    found = [p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)]
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
    yield
  except (OSError, EOFError, zlib.error) as error:
    raise CorpusError(f"{path} breaks off or is damaged: {error}") from error


@contextlib.contextmanager
def _open(path: str) -> Iterator[Any]:
  """Opens a file for reading bytes; .gz is decompressed."""
  with epath.Path(path).open("rb") as raw:
    if path.endswith(".gz"):
      with gzip.open(raw) as f:  # closing it would leave `raw` open
        yield f
    else:
      yield raw


def _check_text(path: str) -> None:
  """Raises CorpusError for a file that is empty or not text."""
  with _naming(path), _open(path) as f:
    head = f.read(1 << 16)
  if not head.strip():
    raise CorpusError(f"{path} is empty; leave it out or fill it")
  if b"\0" in head:
    raise CorpusError(
      f"{path} holds zero bytes, so it is not UTF-8 text (perhaps binary, or "
      "UTF-16); convert it, for example with iconv -t UTF-8"
    )


def _cuts(path: str, size: int, text_format: str, step: int) -> list[int]:
  """Returns byte positions between documents, one after each `step` bytes."""
  cuts = [0]
  with _open(path) as f:
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


def _skip_to_blank(f, count: int) -> None:
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
    text_key: the field that holds the text, for the formats "jsonl" and "tfds".
    language: the language of the sentence splitter, such as "en", for all
      formats except "sentences".
    digest: a Reading or hashlib object that gets the bytes read, or None.

  Raises:
    CorpusError: the text is not UTF-8, or a record has no text; the message
      names the file and the byte.
  """
  digest = digest or hashlib.sha256()
  if text_format == "tfds":
    texts: Iterator[str] = _tfds_texts(unit, text_key, digest)
  elif text_format == "jsonl":
    texts = _json_texts(unit, text_key, digest)
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
  digest = hashlib.sha256()
  if text_format == "tfds":
    for _ in _tfds_texts(unit, text_key, digest):
      pass
    return digest.hexdigest()
  with _naming(unit.path), _open(unit.path) as f:
    f.seek(unit.start)
    left = unit.end - unit.start if unit.end >= 0 else math.inf
    while left and (block := f.read(int(min(left, _HASH_BYTES)))):
      digest.update(block)
      left -= len(block)
  return digest.hexdigest()


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
      rates[path] = _gzip_rate(path) if path.endswith(".gz") else 1
  return [round(u.size * rates[u.path]) for u in units]


def _gzip_rate(path: str) -> float:
  """Estimates the bytes of text per compressed byte from the first 256 KiB."""
  with epath.Path(path).open("rb") as f:
    head = f.read(_RATE_BYTES)
  unpacker = zlib.decompressobj(wbits=31)  # gzip
  with _naming(path):
    text = unpacker.decompress(head, 8 * _RATE_BYTES)
  rest = len(unpacker.unused_data) + len(unpacker.unconsumed_tail)
  return max(1.0, len(text) / (len(head) - rest))


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
  with _open(unit.path) as f:
    f.seek(unit.start)
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
          f"{unit.path}: byte {at + error.start} is not UTF-8; convert the "
          "file, or drop such bytes with iconv -c -t UTF-8"
        ) from error
      yield at, text
      at += len(line)


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
    held += line
    if not line.endswith("\n") and len(held) < MAX_DOCUMENT_BYTES:
      continue  # a piece of a long line, or the last one
    if held.strip():
      yield _json_text(held, unit.path, start, text_key)
    held = ""
  if held.strip():
    yield _json_text(held, unit.path, start, text_key)


def _json_text(line: str, path: str, at: int, text_key: str) -> str:
  try:
    record = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise CorpusError(f"{path}: the line at byte {at}: {error}") from error
  text = record.get(text_key) if isinstance(record, dict) else None
  if not isinstance(text, str):
    raise CorpusError(
      f"{path}: the line at byte {at} has no text under {text_key!r}; name "
      "the field with --config.prepare.text_key"
    )
  return _LONE_SURROGATE.sub("\ufffd", text)  # JSON may hold half a pair


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
      f"{path} is damaged, or is not prepared TFDS data: {error!r:.500}; "
      "prepare it again"
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
    features = epath.Path(folder) / "features.json"
    for name in _class_names(json.loads(features.read_bytes())):
      if not name.startswith("tensorflow_datasets."):  # it would be imported
        raise CorpusError(
          f"{features} names {name!r:.100}, which is not a feature of TFDS; "
          "such data is not read, because it would run code"
        )
    return tfds.builder_from_directory(folder)


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
  folder = epath.Path(name)
  if (folder / "dataset_info.json").exists():
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
