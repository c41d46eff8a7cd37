"""Finds documents that repeat another one, before they are tokenised.

A document is kept if it is the first of its kind in the order of the inputs, so
that the result depends on the text alone. Nothing is remembered between
preparations: a preparation that was killed looks again.
"""

from collections.abc import Callable, Sequence
import hashlib
import os
from typing import Any, NamedTuple

import numpy as np

from bert_jax.data import corpus
from bert_jax.data.stages import inputs as inputs_lib
from bert_jax.data.stages import workers
from bert_jax.data.store import records
from bert_jax.runtime import files
from bert_jax.runtime import settings

# Near duplicates share this much of their runs of words, by the estimate of
# MinHash with so many permutations.
_SIMILARITY = 0.8
# The index misses some candidates near its threshold, so it has a lower one.
_PROPOSED = 0.7
_NUM_PERMUTATIONS = 128
_RUN_WORDS = 5


def find(
  prepare: settings.Prepare, inputs: inputs_lib.Inputs, folder: str
) -> list[list[int]]:
  """Returns the numbers of the documents of each unit that repeat others.

  Args:
    prepare: the `prepare` group of the config.
    inputs: the text.
    folder: a folder for what the workers write, which is deleted at the end.

  Raises:
    corpus.CorpusError: the text cannot be read.
    ValueError: near duplicates are asked for and datasketch is not installed.
  """
  if prepare.duplicates == "keep":
    return [[] for _ in inputs.units]
  is_new = _KINDS[prepare.duplicates]()
  files.make_folders(folder)
  jobs: list[dict[str, Any]] = [
    {
      "name": f"{i:05d}", "size": unit.size, "unit": vars(unit),
      "folder": folder, "kind": prepare.duplicates, "format": prepare.format,
      "text_key": prepare.text_key, "language": prepare.language,
    }
    for i, unit in enumerate(inputs.units)
  ]  # fmt: skip
  workers.run(
    look_at_unit, jobs, prepare.runner, prepare.num_workers, "compare"
  )
  found = []
  for job in jobs:
    marks = records.read_array(_path_of(job), _MARKS[job["kind"]].dtype, 2)
    found.append([i for i, mark in enumerate(marks) if not is_new(mark)])
  files.delete_folder(folder)
  return found


def look_at_unit(job: dict[str, Any]) -> int:
  """Writes the marks of the documents of a unit; returns its size."""
  marker = _MARKS[job["kind"]]
  documents = corpus.read_documents(
    corpus.Unit(**job["unit"]), job["format"], job["text_key"], job["language"]
  )
  marks = [marker.mark(document) for document in documents]
  array = np.array(marks, marker.dtype).reshape(len(marks), -1)
  records.write_array(_path_of(job), array)
  return job["size"]


def _path_of(job: dict[str, Any]) -> str:
  return os.path.join(job["folder"], f"{job['name']}.npy")


class _Marker(NamedTuple):
  """A function from a document to what is compared, and the dtype of that."""

  mark: Callable[[Sequence[str]], np.ndarray]
  dtype: Any


def _words(document: Sequence[str]) -> list[str]:
  """Returns the words of a document, whatever their case and the spaces."""
  return " ".join(document).casefold().split()


def _exact_mark(document: Sequence[str]) -> np.ndarray:
  """Returns a hash of the words, uint8 [16]."""
  text = " ".join(_words(document)).encode("utf-8", "replace")
  return np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), np.uint8)


def _near_mark(document: Sequence[str]) -> np.ndarray:
  """Returns the MinHash of the runs of words, uint64 [128]."""
  import datasketch

  words = _words(document)
  count = max(len(words) - _RUN_WORDS + 1, 1)
  runs = {" ".join(words[i : i + _RUN_WORDS]) for i in range(count)}
  sketch = datasketch.MinHash(_NUM_PERMUTATIONS)
  sketch.update_batch([run.encode("utf-8", "replace") for run in sorted(runs)])
  return np.asarray(sketch.hashvalues, np.uint64)


def _by_equality() -> Callable[[np.ndarray], bool]:
  """Returns a function that tells whether a mark is met for the first time."""
  known: set[bytes] = set()

  def is_new(mark: np.ndarray) -> bool:
    value = mark.tobytes()
    if value in known:
      return False
    known.add(value)
    return True

  return is_new


def _by_similarity() -> Callable[[np.ndarray], bool]:
  """Returns a function that tells whether no similar mark was met before."""
  try:
    import datasketch
  except ImportError as error:
    raise ValueError(
      "prepare.duplicates=drop_near needs the extra: pip install "
      "'bert_jax[dedup]'; or drop only equal documents: "
      "--config.prepare.duplicates=drop_equal"
    ) from error
  index = datasketch.MinHashLSH(threshold=_PROPOSED, num_perm=_NUM_PERMUTATIONS)
  kept: list[np.ndarray] = []

  def is_new(mark: np.ndarray) -> bool:
    sketch = datasketch.MinHash(_NUM_PERMUTATIONS)
    sketch.hashvalues = mark
    # The index proposes candidates; the estimate decides.
    for number in index.query(sketch):
      if (kept[number] == mark).mean() >= _SIMILARITY:
        return False
    index.insert(len(kept), sketch)
    kept.append(mark)
    return True

  return is_new


# Value of prepare.duplicates -> what is compared, and how.
_MARKS = {
  "drop_equal": _Marker(_exact_mark, np.uint8),
  "drop_near": _Marker(_near_mark, np.uint64),
}
_KINDS = {"drop_equal": _by_equality, "drop_near": _by_similarity}
