"""Batches of several prepared texts, in given proportions.

Which text a row comes from is a function of (seed, position), as everything
about batches. In every block of 1,024 rows each text has the same number of
rows, in an order of its own, so that the row of a text at any position is known
without counting from the start.
"""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from bert_jax.data import batch_keys
from bert_jax.data import batching
from bert_jax.data import masking
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.runtime import files

BLOCK = 1024
_SOURCE = 4  # masking.py draws random numbers for the purposes 1 to 3


def folders(data: Any) -> list[str]:
  """Returns the prepared folders that a config's `data` group reads."""
  return [data.dir, *data.mixture]


def of_folder(data: Any, folder: str) -> Any:
  """Returns a `data` group that reads one folder alone."""
  one = data.copy_and_resolve_references()
  one.update(dir=folder, mixture=(), mixture_weights=())
  return one


def name_of(data: Any, folder: str) -> str:
  """Returns a short name of a folder, for metrics; unique in a mixture."""
  known = folders(data)
  name = os.path.basename(os.path.normpath(folder))
  same = [
    one for one in known if os.path.basename(os.path.normpath(one)) == name
  ]
  return name if len(same) == 1 else f"{name}{known.index(folder)}"


def data_hash(data: Any) -> str:
  """Returns the hash that identifies the examples that are read."""
  hashes = []
  for folder in folders(data):
    name = records.examples_name(data)
    path = os.path.join(folder, "examples", name, "manifest.json")
    hashes.append(files.file_hash(path))
  return hashes[0] if len(hashes) == 1 else files.json_hash({"mixture": hashes})


@dataclasses.dataclass(frozen=True)
class Source:
  """A text of a mixture.

  Attributes:
    folder: its prepared folder.
    num_tokens: the tokens of its training text.
    rows: how many of 1,024 rows it has.
  """

  folder: str
  num_tokens: int
  rows: int


def sources(data: Any) -> list[Source]:
  """Returns the texts of a mixture with their shares.

  A weight that is not given is the number of tokens. All weights are raised to
  the power `data.mixture_power`, and rounded to whole rows of a block.

  Args:
    data: the `data` group of a config.

  Raises:
    records.DataError: a folder is no prepared data, has no text to train on, or
      has another vocabulary than the first.
    ValueError: the weights do not fit the folders.
  """
  given = data.mixture_weights
  if given and len(given) != len(folders(data)):
    raise ValueError(
      f"data.mixture_weights={list(given)} has {len(given)} numbers for the "
      f"{len(folders(data))} folders {', '.join(folders(data))} (data.dir, and "
      "those of data.mixture); give one for each"
    )
  counts, wanted = [], None
  for folder in folders(data):
    manifest = manifests.read_manifest(folder)
    wanted = wanted or manifest["settings"]["vocab"]
    if manifest["settings"]["vocab"] != wanted:
      raise records.DataError(
        f"{folder} was prepared with another vocabulary than {data.dir}; "
        f"prepare it again with --config.prepare.vocab={data.dir}/vocab"
      )
    counts.append(manifest["totals"]["train"]["tokens"])
    if not counts[-1]:
      raise records.DataError(
        f"{folder} of data.mixture has no text to train on; leave it out"
      )
  weights = np.array(given or counts, np.float64) ** data.mixture_power
  rows = _whole_rows(weights / weights.sum())
  for folder, weight, count in zip(folders(data), weights, rows, strict=True):
    if count < 1:
      raise ValueError(
        f"{folder} has the weight {weight:g} of {weights.sum():g} in the "
        f"mixture, less than a row of {BLOCK}; raise its weight, lower "
        "data.mixture_power, or leave it out"
      )
  return [
    Source(*facts) for facts in zip(folders(data), counts, rows, strict=True)
  ]


def _whole_rows(shares: np.ndarray) -> list[int]:
  """Returns the rows of a block of each text, by largest remainders."""
  exact = shares * BLOCK
  rows = np.floor(exact).astype(int)
  order = np.argsort(-(exact - rows), kind="stable")
  rows[order[: BLOCK - rows.sum()]] += 1
  return rows.tolist()


def choose(
  places: np.ndarray, rows: Sequence[int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the text of each position, and the position in that text's order.

  Args:
    places: [M] positions in the order of all rows.
    rows: the rows of a block of each text.
    seed: the seed of the order.

  Returns:
    Numbers of texts [M], and positions [M].
  """
  blocks, offsets = np.divmod(places, BLOCK)
  texts, own = np.empty_like(places), np.empty_like(places)
  in_order = np.repeat(np.arange(len(rows)), rows)
  for block in np.unique(blocks):
    keys = masking.hash_uniform(seed, block, np.arange(BLOCK), _SOURCE)
    chosen = in_order[np.argsort(np.argsort(keys, kind="stable"))]
    ranks = np.empty(BLOCK, np.int64)
    for text, count in enumerate(rows):
      ranks[chosen == text] = block * count + np.arange(count)
    here = blocks == block
    texts[here], own[here] = chosen[offsets[here]], ranks[offsets[here]]
  return texts, own


class MixedBatches:
  """Batches of several texts, indexed by the step: `batches[step]`."""

  def __init__(self, data: Any, *, seed: int, **options: Any):
    """Opens the prepared data.

    Args:
      data: the `data` group of a config, with a mixture.
      seed: the seed of the order, of the texts and of the masks.
      **options: batch_size, num_steps and rows of `PretrainBatches`.

    Raises:
      ValueError: see `sources`; or the data of a text cannot be read.
    """
    self.sources = sources(data)
    self._seed = seed
    self._each = [
      batching.PretrainBatches(
        of_folder(data, one.folder), "train", seed=seed, **options
      )
      for one in self.sources
    ]
    counts = [one.num_examples for one in self._each]
    self._first_example = np.cumsum([0, *counts[:-1]]).tolist()

  def __len__(self) -> int:
    return len(self._each[0])

  @property
  def epoch_steps(self) -> float:
    """The number of steps that have as many rows as all texts together."""
    return sum(one.epoch_steps for one in self._each)

  def _split(self, places: np.ndarray) -> Any:
    """Yields (number of a text, indices of its rows, its positions)."""
    rows = [one.rows for one in self.sources]
    texts, own = choose(places, rows, self._seed)
    for text in range(len(rows)):
      here = np.flatnonzero(texts == text)
      if len(here):
        yield text, here, own[here]

  def examples(self, step: int) -> list[list[int]]:
    """Returns the example numbers of a step, over all hosts, row by row.

    The examples of a text have the numbers that follow those of the text
    before.
    """
    places = self._each[0].places(step)
    found: list[list[int]] = [[] for _ in places]
    for text, here, own in self._split(places):
      first = self._first_example[text]
      for i, row in zip(here, self._each[text].examples_at(own), strict=True):
        found[i] = [first + example for example in row]
    return found

  def __getitem__(self, step: int) -> batch_keys.Batch:
    places = self._each[0].own_places(step)
    batch: batch_keys.Batch = {}
    for text, here, own in self._split(places):
      part = self._each[text].rows_at(own)
      for key, value in part.items():
        if key not in batch:
          batch[key] = np.zeros((len(places), *value.shape[1:]), value.dtype)
        batch[key][here] = value
    return batch
