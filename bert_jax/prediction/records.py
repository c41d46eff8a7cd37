"""Reads and writes JSON lines, in files or the standard streams."""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import json
import os
import sys
from typing import Any, BinaryIO

from bert_jax.data import compression
from bert_jax.data import rows
from bert_jax.kinds import answers
from bert_jax.runtime import files


def parse_lines(lines: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
  """Yields ("line N", JSON value or RecordError) for each line with content."""
  for number, line in enumerate(lines, 1):
    content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    if not content.strip():
      continue
    value: Any
    try:
      value = json.loads(content.decode("utf-8"))
      if isinstance(value, dict):
        _check_id(value.get("id"))
    except json.JSONDecodeError as error:
      value = answers.RecordError(
        f"{error.msg} at column {error.colno}; wanted a JSON object"
      )
    except answers.RecordError as error:
      value = error
    except (ValueError, RecursionError) as error:
      value = answers.RecordError(f"{error}; wanted a JSON object")
    yield f"line {number}", value


def of_texts(texts: Iterable[str]) -> list[bytes]:
  """Returns one line for each text, as `parse_lines` reads it."""
  return [to_line({"text": text}) for text in texts]


def to_line(record: Mapping[str, Any]) -> bytes:
  """Returns a record as one line of JSON in UTF-8."""
  line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
  # Half a character in an id becomes the escape that JSON has for it.
  return line.encode("utf-8", "backslashreplace")


def _check_id(value: Any) -> None:
  """Raises RecordError if an id cannot be written as JSON.

  Python also reads NaN, Infinity and numbers too large for it, such as 1e999,
  none of which JSON has.
  """
  try:
    json.dumps(value, allow_nan=False)
  except (ValueError, RecursionError) as error:
    raise answers.RecordError(
      f"its id cannot be written as JSON: {error}; wanted strings and finite "
      "numbers"
    ) from error


def is_one_file(source: str | list[bytes], target: str) -> bool:
  """Returns whether a source and a target are the same existing file."""
  if isinstance(source, list) or "-" in (source, target):
    return False
  if files.is_remote(source) or files.is_remote(target):
    return files.real(source) == files.real(target)
  there = files.is_file(source) and files.is_file(target)
  return there and os.path.samefile(source, target)


@contextlib.contextmanager
def reading(
  source: str | list[bytes],
) -> Iterator[tuple[Iterable[bytes], int | None]]:
  """Opens the lines of a file, or of standard input for "-" and "".

  Lines that are given as a list are yielded as they are.

  Yields:
    The lines, and the size of the file in bytes if it is known.
  """
  if isinstance(source, list):
    yield source, None
    return
  if source in ("", "-"):
    if sys.stdin is None:
      raise answers.PredictError("standard input is closed; give --input=FILE")
    yield sys.stdin.buffer, None
    return
  if files.is_folder(source):
    raise answers.PredictError(f"--input={source} is a folder; name a file")
  if compression.ending(source):
    yield _unpacked(source), None
    return
  with files.reading(source) as f:
    yield f, files.size(source) if files.is_file(source) else None


def _unpacked(path: str) -> Iterator[bytes]:
  """Yields the lines of a compressed file."""
  with contextlib.ExitStack() as stack:
    with compression.naming(path):
      stream = stack.enter_context(compression.open_text(path))
    for _, line in rows.raw_lines(stream, path):
      yield line


@contextlib.contextmanager
def writing(target: str) -> Iterator[BinaryIO]:
  """Opens a file that appears once it is complete, or standard output."""
  if target in ("", "-"):
    if sys.__stdout__ is None:
      raise answers.PredictError(
        "standard output is closed; give --output=FILE"
      )
    sys.stdout.flush()
    yield sys.stdout.buffer
    return
  with files.writing(target) as f:
    yield f
