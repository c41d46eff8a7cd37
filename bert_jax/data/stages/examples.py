"""Makes pre-training examples from the token store, one job for each shard."""

import bisect
from collections.abc import Iterator
import functools
import os
import random
from typing import Any

import numpy as np

from bert_jax.data import long_lines
from bert_jax.data import pairing
from bert_jax.data.stages import stage
from bert_jax.data.store import indexes
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.data.store import verification
from bert_jax.data.tokenizers import load
from bert_jax.runtime import files
from bert_jax.runtime.settings import Config

_TOTALS = ("examples", "random_next", "tokens")
# Of examples whose long lines were split; older ones cut off their rest.
_TEXT_TOTALS = ("cut_tokens", "long_tokens")
_REPORT = manifests.EXAMPLES_ROW | dict.fromkeys(_TOTALS, manifests.is_count)
_RANDOM_DOCUMENT_TRIES = 10  # create_pretraining_data.py:279


def write(config: Config, folder: str) -> None:
  """Writes the examples that config.data asks for.

  Args:
    config: the configuration, of which `data` and `prepare` are read.
    folder: DATA, which has tokens.

  Raises:
    records.DataError: there are too few documents, a table is damaged, or
      examples that are there were made with other settings.
  """
  d = config.data
  name = records.examples_name(d)
  tokens = manifests.read_manifest(folder)
  settings = {
    "pairing": d.pairing,
    "seq_len": d.seq_len,
    "dupe_factor": d.dupe_factor,
    "short_seq_rate": (
      d.short_seq_rate if d.pairing in records.PAIRINGS else 0.0
    ),
    "examples_seed": d.examples_seed,
    "long_lines": "split",
    "tokens": files.file_hash(os.path.join(folder, "manifest.json")),
  }
  target = records.examples_folder(folder, name)
  work = stage.Stage(config.prepare, folder, name, target, "array_record")
  path = os.path.join(target, "manifest.json")
  if files.exists(path):
    manifest = manifests.read_manifest(target)
    if "long_lines" not in manifest["settings"]:  # of an older release
      del settings["long_lines"]
    stage.check_same(manifest["settings"], settings, target)
    if work.is_whole(manifest):
      work.end()
      return
  _check_tokens(folder, tokens, d.pairing)
  work.begin(settings)
  special = special_counts(folder)
  jobs = stage.shard_jobs(
    tokens["shards"], "tokens", folder=folder, target=target, special=special,
    **settings,
  )  # fmt: skip
  shards = work.run_by_split(pair_shard, jobs, name, _REPORT)
  work.end(
    path,
    settings=settings,
    vocab=tokens["settings"]["vocab"],
    vocab_size=tokens["vocab_size"],
    totals=stage.sum_rows(
      shards, _TOTALS + (_TEXT_TOTALS if "long_lines" in settings else ())
    ),
    shards=shards,
  )


def _check_tokens(folder: str, manifest: dict, kind: str) -> None:
  """Raises DataError if the token store cannot give examples."""
  for split, rows in manifest["shards"].items():
    for path, digest in verification.table_hashes(folder, split).items():
      if not files.exists(path) or files.file_hash(path) != digest:
        raise records.DataError(
          f"{path} is missing or damaged; delete it and run bert-jax prepare "
          "again with the same --input"
        )
    if kind == "pairs" and sum(s["documents"] for s in rows) == 1:
      raise records.DataError(
        f"{folder} has one {split} document; random next sentences need two. "
        "Separate documents (by blank lines, see prepare.format), give more "
        "text, raise prepare.held_out_rate (into another --output), or set "
        "data.pairing=full_sentences"
      )


def special_counts(folder: str) -> tuple[int, int]:
  """Returns how many special tokens a sequence of prepared data has.

  Args:
    folder: DATA, which has a vocabulary.

  Returns:
    The number for one text, and for two.

  Raises:
    records.DataError: sequences of this vocabulary have too few of them.
  """
  tokenizer = load.load_tokenizer(os.path.join(folder, "vocab"))
  counts = tokenizer.template.counts
  if min(counts) < 2 or tokenizer.mask_id < 0:
    raise records.DataError(
      f"{folder}/vocab: a sequence of this vocabulary has {counts[0]} special "
      f"tokens, and its mask token has the id {tokenizer.mask_id}; "
      "pre-training needs two special tokens and a mask token"
    )
  return counts


def _num_special(job: dict) -> int:
  """Returns how many tokens of an example are special tokens."""
  return job["special"][job["pairing"] in records.PAIRINGS]


@functools.lru_cache(1)
def _sentence_ends(folder: str, tokens: str) -> np.ndarray:
  del tokens  # it is an argument so that the cache forgets other data
  return long_lines.sentence_ends(
    load.load_tokenizer(os.path.join(folder, "vocab"))
  )


@functools.lru_cache(2)
def _token_store(folder: str, split: str, tokens: str) -> indexes.TokenStore:
  del tokens  # as above
  return indexes.TokenStore(folder, split)


def _make_cutter(job: dict) -> long_lines.Cutter:
  """Returns what cuts the long lines of a split."""
  where = (job["folder"], job["split"], job["tokens"])

  def read(start: int, length: int) -> np.ndarray:
    tokens, at = _token_store(*where).read_spans(
      np.array([start]), np.array([length])
    )
    return tokens[at[0] : at[0] + length]

  return long_lines.Cutter(
    job["seq_len"] - _num_special(job),
    read,
    lambda: _sentence_ends(job["folder"], job["tokens"]),
  )


@functools.lru_cache(2)
def _document_table(folder: str, split: str, tokens: str):
  del tokens  # it is an argument so that the cache forgets other data
  shards = manifests.read_manifest(folder)["shards"][split]
  return indexes.DocumentTable(os.path.join(folder, "tokens"), split, shards)


def pair_shard(job: dict) -> dict:
  """Writes the examples whose first segment lies in one shard.

  Args:
    job: a job from stage.shard_jobs, with folder (DATA), target and the
      settings of the example stage.

  Returns:
    A dict of shard, examples, random_next, tokens (special tokens included),
    long_tokens (of lines longer than a row), cut_tokens (those in no example,
    over all passes) and sha256.
  """
  table = _document_table(job["folder"], job["split"], job["tokens"])
  where = (job["target"], job["split"], job["shard"])
  path = records.shard_path(*where, "array_record")
  totals = np.zeros(2, np.int64)
  documents = _Documents(job, table)
  with records.RecordWriter(path) as writer:
    for dupe in range(job["dupe_factor"]):
      rng = random.Random(
        f"{job['examples_seed']}/{job['split']}/{job['shard']}/{dupe}"
      )
      rows: list[pairing.Example] = []
      for batch in _examples_of(job, documents, rng, dupe):
        rows += batch
        if len(rows) >= 1 << 14:
          totals += _write_rows(writer, rows)
          rows = []
      totals += _write_rows(writer, rows)
  return {
    "shard": job["shard"],
    "examples": writer.count,
    "random_next": int(totals[0]),
    "tokens": int(totals[1]) + writer.count * _num_special(job),
    "sha256": files.file_hash(path),
    **(documents.report(job) if "long_lines" in job else {}),
  }


class _Documents:
  """The documents of a split, with their long lines cut.

  Attributes:
    table: the boundaries of all documents.
    cut_tokens: tokens of the documents that are in no example, over all passes.
  """

  def __init__(self, job: dict, table: indexes.DocumentTable):
    self.table = table
    self.cut_tokens = 0
    self._cutter = _make_cutter(job)
    cut = self._cutter if "long_lines" in job else lambda x: (x, False)
    self._cut = functools.lru_cache(1 << 10)(lambda i: cut(table.boundaries(i)))

  def boundaries(self, document: int) -> tuple[Any, bool]:
    """Returns the boundaries of a document, and whether long lines were cut."""
    return self._cut(document)

  def report(self, job: dict) -> dict[str, int]:
    """Returns the tokens that were cut off, and those of long lines."""
    numbers = range(*self.table.shard(job["index"]))
    num_long = self._cutter.num_long
    return {
      "cut_tokens": self.cut_tokens,
      "long_tokens": sum(num_long(self.table.boundaries(i)) for i in numbers),
    }


def _write_rows(writer, rows: list[pairing.Example]) -> np.ndarray:
  """Writes examples; returns how many are random, and the tokens of all."""
  block = np.array(rows, records.EXAMPLE)
  writer.write_rows(block)
  lengths = block["a_length"].sum() + block["b_length"].sum()
  return np.array([block["is_random"].sum(), lengths])


def _examples_of(
  job: dict, documents: _Documents, rng: random.Random, dupe: int
) -> Iterator[list[pairing.Example]]:
  """Yields lists of the examples of one pass over a shard."""
  table = documents.table
  first, end = table.shard(job["index"])
  if first == end:
    return
  if job["pairing"] == "full_sentences":
    yield _full_sentences(job, table, range(first, end), rng, dupe)
    return
  if job["pairing"] == "documents":
    for i in range(first, end):
      yield _full_document(job, table.boundaries(i).tolist(), rng, dupe)
    return
  if job["pairing"] == "ordered_pairs":
    for i in range(first, end):
      yield _ordered_pairs(job, documents, i, rng)
    return
  total = len(table)
  for i in range(first, end):

    def other(here=i):
      # After the last try it may be the same document.
      for _ in range(_RANDOM_DOCUMENT_TRIES):
        j = int(rng.random() * total)
        if j != here:
          break
      return documents.boundaries(j)[0]

    boundaries, was_cut = documents.boundaries(i)
    if isinstance(boundaries, np.ndarray):
      boundaries = boundaries.tolist()
    found = list(
      pairing.make_pairs(
        boundaries,
        job["seq_len"] - _num_special(job),
        job["short_seq_rate"],
        rng,
        other,
        keep_all=was_cut,
      )
    )
    documents.cut_tokens += boundaries[-1] - boundaries[0]
    for _, _, a_length, b_length, is_random in found:
      documents.cut_tokens -= a_length + (0 if is_random else b_length)
    yield found


def _full_sentences(job, table, numbers, rng, dupe) -> list[pairing.Example]:
  """Returns the examples of full sentences of some documents."""
  starts: list[int] = []
  documents = []
  for i in numbers:
    boundaries = table.boundaries(i).tolist()
    documents.append(boundaries[0])
    starts += boundaries[:-1]
  starts.append(boundaries[-1] + 1)
  documents.append(starts[-1])
  # Later passes begin at another sentence of the first row, so that the rows
  # have other boundaries.
  limit = job["seq_len"] - _num_special(job)
  row = bisect.bisect_right(starts, starts[0] + limit)
  skip = rng.randrange(row) if dupe else 0
  return list(
    pairing.full_sentences(starts[skip:], frozenset(documents), limit)
  )


def _full_document(
  job: dict, boundaries: list[int], rng: random.Random, dupe: int
) -> list[pairing.Example]:
  """Returns the examples of one document, which together hold all of it.

  In later passes, the first example ends at another sentence, so that the
  others have other boundaries.
  """
  limit = job["seq_len"] - _num_special(job)
  starts = boundaries[:-1]
  end = boundaries[-1] + 1  # behind the [SEP] that ends the document
  first = rng.randrange(len(starts)) if dupe else 0
  found: list[pairing.Example] = []
  if first:
    found += pairing.full_sentences(starts[: first + 1], frozenset(), limit)
  rest = [*starts[first:], end]
  found += pairing.full_sentences(rest, frozenset([end]), limit)
  return [example for example in found if example[2]]


def _ordered_pairs(
  job: dict, documents: _Documents, number: int, rng: random.Random
) -> list[pairing.Example]:
  """Returns the examples of one document in order or swapped."""
  boundaries = [int(x) for x in documents.boundaries(number)[0]]
  found = list(
    pairing.ordered_pairs(
      boundaries,
      job["seq_len"] - _num_special(job),
      job["short_seq_rate"],
      rng,
    )
  )
  documents.cut_tokens += boundaries[-1] - boundaries[0]
  documents.cut_tokens -= sum(a + b for _, _, a, b, _ in found)
  return found
