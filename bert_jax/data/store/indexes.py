"""Gives random access to the tokens, documents and examples of one split."""

import bisect
from collections.abc import Sequence
import functools
import os
from typing import Any

import numpy as np

from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.runtime import files


class TokenStore:
  """The tokens of one split, addressed as one long array."""

  def __init__(self, folder: str, split: str):
    """Opens a split of prepared data.

    Args:
      folder: DATA.
      split: one of records.SPLITS.
    """
    self._folder = folder
    manifest = manifests.read_manifest(folder)
    self.dtype = records.token_dtype(manifest["vocab_size"])
    shards = manifest["shards"][split]
    tokens = os.path.join(folder, "tokens")
    self._records = records.Records(
      records.shard_paths(tokens, split, shards, "array_record"),
      sum(s["records"] for s in shards),
    )
    self._shards = shards
    self._path = functools.partial(records.shard_path, tokens, split)

  @functools.cached_property
  def _word_marks(self) -> list[np.ndarray]:
    """The marks of the tokens of each shard that continue a word, as bits.

    Raises:
      DataError: a shard has no marks, or another number of them.
    """
    found = []
    for shard in self._shards:
      path = self._path(shard["shard"], records.WORDS)
      marks = records.read_array(path, np.uint8, 2)
      wanted = (shard["records"], records.RECORD_TOKENS // 8)
      if marks.shape != wanted:
        raise records.DataError(
          f"{path} is damaged: its shape is {marks.shape}, not {wanted}; "
          "prepare the data again"
        )
      found.append(marks)
    return found

  def read_word_marks(
    self, starts: np.ndarray, lengths: np.ndarray
  ) -> np.ndarray:
    """Reads which tokens of spans continue a word, as a segmenter marked them.

    Args:
      starts: [M] as for `read_spans`.
      lengths: [M] as for `read_spans`.

    Returns:
      A flat array of bool, parallel to the ids of `read_spans`.
    """
    keys = self._record_numbers(starts, lengths)[0]
    ends = np.cumsum([len(marks) for marks in self._word_marks])
    shard = np.searchsorted(ends, keys, side="right")
    bits = np.zeros((len(keys), records.RECORD_TOKENS // 8), np.uint8)
    for i in np.unique(shard).tolist():
      marks = self._word_marks[i]
      here = shard == i
      bits[here] = marks[keys[here] - (ends[i] - len(marks))]
    return np.unpackbits(bits, axis=1).astype(bool).reshape(-1)

  def read_spans(
    self, starts: np.ndarray, lengths: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Reads spans of tokens in one block.

    Args:
      starts: [M] the first token of each span.
      lengths: [M] the number of tokens of each span, which may be 0.

    Returns:
      A flat array of ids, and [M] the index in it where each span starts.
    """
    keys, offsets = self._record_numbers(starts, lengths)
    tokens = self._records.read(keys, self.dtype, records.RECORD_TOKENS)
    return tokens.reshape(-1), offsets

  def _record_numbers(
    self, starts: np.ndarray, lengths: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of the records of spans, and where each span starts.

    Raises:
      DataError: a span is not within the tokens.
    """
    size = records.RECORD_TOKENS
    first = starts // size
    last = (starts + lengths - 1) // size
    count = np.where(lengths > 0, last - first + 1, 0)
    slots = np.cumsum(count) - count
    keys = np.repeat(first - slots, count) + np.arange(count.sum())
    if len(keys) and not 0 <= keys.min() <= keys.max() < len(self._records):
      raise records.DataError(
        f"{self._folder}: an example is damaged: it has tokens {starts.min()} "
        f"to {(starts + lengths).max()}, but there are "
        f"{len(self._records) * size}; prepare the data again"
      )
    return keys, slots * size + starts % size


class DocumentTable:
  """The sentence boundaries of every document of a split, mapped from disk."""

  def __init__(self, folder: str, split: str, shards: Sequence[dict]):
    """Maps the tables.

    Args:
      folder: DATA/tokens.
      split: one of records.SPLITS.
      shards: the rows of the shards in the manifest.

    Raises:
      DataError: a table is missing, or has another number of documents.
    """
    self._bases = (
      np.cumsum([0] + [s["records"] for s in shards])[:-1]
      * records.RECORD_TOKENS
    ).tolist()
    self._ends = np.cumsum([s["documents"] for s in shards]).tolist()
    self._boundaries, self._documents = [], []
    for s in shards:
      path = functools.partial(records.shard_path, folder, split, s["shard"])
      self._boundaries.append(
        records.read_array(path("boundaries.npy"), np.int64, 1)
      )
      documents = records.read_array(path("documents.npy"), np.int64, 1)
      if len(documents) != s["documents"] + 1:
        raise records.DataError(
          f"{path('documents.npy')} has {len(documents) - 1} documents, but "
          f"the manifest says {s['documents']}; put a copy of both back, or "
          "run bert-jax prepare into an empty folder"
        )
      self._documents.append(documents)

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def shard(self, index: int) -> tuple[int, int]:
    """Returns the first document of a shard and the one after its last.

    Args:
      index: the position of the shard in the list.
    """
    return self._ends[index - 1] if index else 0, self._ends[index]

  def boundaries(self, document: int) -> np.ndarray:
    """Returns the boundaries [sentences + 1] of a document, in tokens."""
    shard = bisect.bisect_right(self._ends, document)
    first = self._ends[shard - 1] if shard else 0
    table = self._documents[shard]
    start, end = table[document - first], table[document - first + 1]
    return self._boundaries[shard][start:end] + self._bases[shard]


class ExampleStore:
  """The examples of one split under one name."""

  def __init__(self, folder: str, name: str, split: str):
    """Opens DATA/examples/NAME."""
    target = records.examples_folder(folder, name)
    shards = manifests.read_manifest(target)["shards"][split]
    if not shards:
      raise records.DataError(
        f"{folder}: {name} has no {split} examples; raise "
        "prepare.held_out_rate or give more text"
      )
    self._records = records.Records(
      records.shard_paths(target, split, shards, "array_record"),
      sum(s["examples"] for s in shards),
    )

  def __len__(self) -> int:
    return len(self._records)

  def read(self, ids: np.ndarray) -> np.ndarray:
    """Reads the examples [M], of dtype records.EXAMPLE, with numbers [M]."""
    return self._records.read(ids, records.EXAMPLE, 1)[:, 0]


def read_length_counts(folder: str, name: str, split: str) -> np.ndarray:
  """Reads how many examples of each shard have 0, 1, ... L tokens.

  Args:
    folder: DATA.
    name: the name of the examples.
    split: one of records.SPLITS.

  Returns:
    [shards, L + 1].

  Raises:
    DataError: the file is missing, damaged, or belongs to other examples.
  """
  manifest = manifests.read_manifest(records.examples_folder(folder, name))
  path = os.path.join(records.lengths_folder(folder, name), f"{split}.npy")
  table = records.read_array(path, np.int64, 2)
  sizes = [s["examples"] for s in manifest["shards"][split]]
  if (
    table.shape != (len(sizes), manifest["settings"]["seq_len"] + 1)
    or table.min(initial=0) < 0
    or table[:, 0].any()
    or table.sum(1).tolist() != sizes
  ):
    raise records.DataError(f"{path} is damaged; {_DELETE_LENGTHS}")
  return table


class LengthIndex:
  """Finds examples by length, such as the third one of 40 tokens.

  Attributes:
    histogram: [L + 1] the number of examples with 0, 1, ... L tokens.
  """

  def __init__(self, folder: str, name: str, split: str):
    """Opens the order by length of a split.

    Args:
      folder: DATA.
      name: the name of the examples.
      split: one of records.SPLITS.

    Raises:
      DataError: the order is missing, damaged, or belongs to other examples.
    """
    target = records.lengths_folder(folder, name)
    shards = check_lengths(folder, name)["shards"][split]
    paths = records.shard_paths(target, split, shards, "npy")
    table = read_length_counts(folder, name, split)
    sizes = table.sum(1).tolist()
    self._ids = [records.read_array(path, np.uint32, 1) for path in paths]
    if [len(ids) for ids in self._ids] != sizes:
      raise records.DataError(
        f"{target}: the files of {split} do not have as many numbers as there "
        f"are examples; {_DELETE_LENGTHS}"
      )
    self._first = np.cumsum([0, *sizes])[:-1]  # the first example of a shard
    self.histogram = table.sum(0)
    self._starts = np.cumsum(self.histogram) - self.histogram
    # For each pair in the order of (length, shard): the number of examples up
    # to its end.
    self._ends = np.cumsum(table.T)
    self._num_shards = len(table)
    # [shards, L + 1] the place of a length's first example in a shard's order.
    self._within = np.cumsum(table, axis=1) - table

  def find(self, lengths: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Returns the numbers of examples of given lengths.

    Args:
      lengths: [M] the lengths in tokens.
      ranks: [M] the positions among the examples of that length, from 0.

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
  "delete that folder and run bert-jax prepare again with the same --config "
  "and no --input"
)


def check_lengths(folder: str, name: str) -> Any:
  """Reads the manifest of the order by length.

  Raises:
    DataError: the manifest is missing, or belongs to other examples.
  """
  target = records.lengths_folder(folder, name)
  if not files.exists(os.path.join(target, "manifest.json")):
    raise records.DataError(
      f"{target} does not exist: a release that did not pack examples prepared "
      "these; run bert-jax prepare again with the same --config and no "
      "--input, which adds it, or set --config.data.max_sequences=1"
    )
  manifest = manifests.read_manifest(target)
  examples = os.path.join(folder, "examples", name, "manifest.json")
  if manifest["examples"] != files.file_hash(examples):
    raise records.DataError(
      f"{target} was made from other examples than those there now; "
      f"{_DELETE_LENGTHS}"
    )
  return manifest
