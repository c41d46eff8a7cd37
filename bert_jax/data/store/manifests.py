"""Reads the manifests of prepared data and checks that they are complete."""

import os
import re
from typing import Any

from bert_jax.data.store import records


def read_manifest(folder: str) -> Any:
  """Reads the manifest of a folder of prepared data.

  Raises:
    DataError: the manifest does not exist, or another version wrote it.
  """
  path = os.path.join(folder, "manifest.json")
  try:
    manifest = records.read_json(path)
  except OSError as error:
    raise records.DataError(
      f"{folder} holds no prepared data (no manifest.json); make it with "
      f"bert-jax prepare --output={folder} --input=TEXT"
    ) from error
  if (
    not isinstance(manifest, dict) or manifest.get("version") != records.VERSION
  ):
    raise records.DataError(
      f"{path} does not have version {records.VERSION}, which this release "
      "reads; run bert-jax prepare into an empty folder"
    )
  if not any(has_form(manifest, form) for form in _MANIFESTS):
    raise records.DataError(
      f"{path} is damaged: a key is missing or has a value of the wrong type; "
      "put a copy back, or run bert-jax prepare into an empty folder"
    )
  return manifest


def is_count(value: Any) -> bool:
  """Returns True for a non-negative integer below 2**48."""
  return type(value) is int and 0 <= value < 1 << 48


def is_text(value: Any) -> bool:
  """Returns True for a string."""
  return isinstance(value, str)


def _is_shard(value: Any) -> bool:
  is_part = isinstance(value, str) and re.fullmatch(r"\d{5,}-\d{5,}", value)
  return bool(is_part) or is_count(value)


def each_split(form: Any) -> dict:
  """Returns the form of a dict that has a value of `form` for each split.

  Forms are for `has_form`.
  """
  return dict.fromkeys(records.SPLITS, form)


# The keys that the row of a shard must have in the manifests of tokens,
# examples and lengths, and then the keys of these manifests.
TOKENS_ROW = {
  "shard": _is_shard,
  "documents": is_count,
  "tokens": is_count,
  "records": is_count,
  "sha256": dict.fromkeys(("array_record", *records.TABLES), is_text),
}
EXAMPLES_ROW = {"shard": _is_shard, "examples": is_count, "sha256": is_text}
# The words of text that a segmenter cut.
WORDS = {"chinese_tokens": is_count, "joined_tokens": is_count}
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
  """Returns whether parsed JSON has the keys and value types of a form.

  Args:
    value: parsed JSON.
    form: a dict of the keys that are required and their forms; or a list with
      the form of each element; or a function that returns whether a value is
      right.
  """
  if isinstance(form, dict):
    return isinstance(value, dict) and all(
      key in value and has_form(value[key], inner)
      for key, inner in form.items()
    )
  if isinstance(form, list):
    return isinstance(value, list) and all(has_form(x, form[0]) for x in value)
  return form(value)
