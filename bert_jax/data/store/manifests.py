"""Manifests: what prepared data must say about itself, and reading it."""

import functools
import os
import re
from typing import Any

from bert_jax.data.store import records


@functools.cache
def _manifest_text(path: str, stamp: tuple[int, int, int]) -> Any:
  del stamp  # only so that a changed file is read anew
  return records.read_json(path)


def read_manifest(folder: str) -> Any:
  """The manifest of prepared data.

  Raises:
    DataError: there is none, or another version wrote it.
  """
  path = os.path.join(folder, "manifest.json")
  try:
    stat = os.stat(path)
  except OSError as error:
    raise records.DataError(
      f"{folder} holds no prepared data (no manifest.json); make it with "
      f"--mode=prepare --output={folder} --input=TEXT"
    ) from error
  stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
  manifest = _manifest_text(path, stamp)
  if (
    not isinstance(manifest, dict) or manifest.get("version") != records.VERSION
  ):
    raise records.DataError(
      f"{path} is not of version {records.VERSION}, which this release reads;"
      " run --mode=prepare into an empty folder"
    )
  if not any(has_form(manifest, form) for form in _MANIFESTS):
    raise records.DataError(
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
  return dict.fromkeys(records.SPLITS, form)


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
