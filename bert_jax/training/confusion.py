"""Which labels a model takes for which: a file beside the scores of a run."""

from collections.abc import Mapping
import json
import os
from typing import Any

from bert_jax.runtime import files

_FILE = "confusion.json"


def write(workdir: str, step: int, splits: Mapping[str, Any]) -> str:
  """Writes WORKDIR/confusion.json, if there is anything to write.

  Args:
    workdir: the folder of the run.
    step: the step of the weights that were evaluated.
    splits: what `Job.confusions` returns.

  Returns:
    The path, or "".
  """
  if not splits:
    return ""
  path = os.path.join(workdir, _FILE)
  files.write_json(path, {"step": step, "splits": dict(splits)})
  return path


def read(workdir: str) -> dict[str, Any]:
  """Returns the content of WORKDIR/confusion.json; {} if there is none.

  The file has "step" and "splits": the name of each split -> "labels", and
  "counts", a row for each right label and a column for each predicted one.

  Raises:
    files.FilesError: The file is damaged.
  """
  path = os.path.join(workdir, _FILE)
  if not files.exists(path):
    return {}
  try:
    found = json.loads(files.read_bytes(path))
    for split in found["splits"].values():
      size = len(split["labels"])
      if [len(row) for row in split["counts"]] != [size] * size:
        raise ValueError(f"it has {size} labels and other counts")
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise files.FilesError(
      f"{path} is damaged: {error}; remove it, or write it again with bert-jax "
      "evaluate"
    ) from error
  return found
