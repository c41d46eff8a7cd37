"""Verifies the checksums of the files of prepared data."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import contextlib
import logging
import os
import time

import numpy as np

from bert_jax.data.store import indexes
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.runtime import files

_log = logging.getLogger(__name__)

_VERIFIED = ".verified.json"
_HASH_THREADS = 16  # more threads would only wait for the disk
_REPORT_SECS = 3.0  # the time between lines of progress


def verify(
  folder: str, name: str, split: str, mode: str, packed: bool = False
) -> None:
  """Verifies the checksums of all files that the batches of a split read.

  Without this, a damaged record would be an error only when it is read, perhaps
  days into a run. Files that were verified are recorded in the folder, if it is
  writable, with their path, size, mtime and ctime, so that the next start does
  not read them again. Every process of a run verifies the files itself, because
  two hosts may see different files.

  Args:
    folder: DATA.
    name: the name of the examples.
    split: one of records.SPLITS.
    mode: "once" verifies files that are not recorded as verified, "always" all
      files, and "never" none.
    packed: whether the batches also read the order by length.

  Raises:
    DataError: a file is missing, or differs from its manifest.
  """
  if mode == "never":
    return
  _check_counts(folder)
  note = os.path.join(files.cache_folder(folder), _VERIFIED)
  known = _read_verified(note) if mode == "once" else {}
  suffixes = ("array_record", *records.TABLES, records.WORDS)
  wanted = table_hashes(folder, split, suffixes)
  wanted |= _example_hashes(folder, name, split, packed)
  try:
    _copy_all(wanted)
  except files.NoRoomError as error:
    _log.warning("%s; so the checksums are not compared", error)
    return
  entries = {path: _entry(path, digest) for path, digest in wanted.items()}
  good = {}
  try:
    unknown = [p for p, (key, e) in entries.items() if known.get(key) != e]
    for path, found in _hash_files(unknown, folder):
      if found != wanted[path] and files.is_remote(path):
        files.forget_copy(path)  # it may be damaged, and not the object
        found = files.file_hash(path)
        entries[path] = _entry(path, wanted[path])
      if found != wanted[path]:
        raise records.DataError(
          f"{path} is damaged: its sha256 is {found}, but the manifest says "
          f"{wanted[path]}; put the file back, or delete it and run "
          "bert-jax prepare again with the same --config and --input"
        )
      key, entry = entries[path]
      good[key] = entry
  finally:
    if good:
      with contextlib.suppress(OSError):  # if read-only, it verifies each time
        records.write_json(note, _read_verified(note) | good)


def _copy_all(paths: Iterable[str]) -> None:
  """Makes local copies of files of a bucket, many at a time."""
  with contextlib.suppress(FileNotFoundError):
    files.local_files(list(paths))


def _entry(path: str, digest: str) -> tuple[str, list]:
  """Returns the record of a verified file: its path; its stamps and SHA-256."""
  try:
    stamps = files.stamps(path)
  except OSError as error:
    raise records.DataError(
      f"{path} is missing; run bert-jax prepare again ({error.strerror})"
    ) from error
  return files.real(path), [*stamps, digest]


def _read_verified(path: str) -> dict[str, list]:
  """Reads the record of verified files; {} if it is missing or damaged."""
  try:
    known = records.read_json(path)
  except (OSError, records.DataError):
    return {}
  return known if isinstance(known, dict) else {}


def table_hashes(
  folder: str, split: str, suffixes: Sequence[str] = records.TABLES
) -> dict[str, str]:
  """Returns path -> SHA-256 of files of the token store with some suffixes."""
  tokens = os.path.join(folder, "tokens")
  return {
    records.shard_path(tokens, split, row["shard"], suffix): digest
    for row in manifests.read_manifest(folder)["shards"][split]
    for suffix, digest in row["sha256"].items()
    if suffix in suffixes
  }


def _example_hashes(
  folder: str, name: str, split: str, packed: bool
) -> dict[str, str]:
  """Returns path -> SHA-256 of the examples and, if packed, their lengths."""
  target = records.examples_folder(folder, name)
  parts = [(target, manifests.read_manifest(target), "array_record")]
  wanted = {}
  if packed:
    lengths = records.lengths_folder(folder, name)
    manifest = indexes.check_lengths(folder, name)
    parts.append((lengths, manifest, "npy"))
    wanted[os.path.join(lengths, f"{split}.npy")] = manifest["sha256"][split]
  for target, manifest, suffix in parts:
    rows = manifest["shards"][split]
    paths = records.shard_paths(target, split, rows, suffix)
    hashes = [row["sha256"] for row in rows]
    wanted |= dict(zip(paths, hashes, strict=True))
  return wanted


def _hash_files(paths: Sequence[str], folder: str) -> Iterator[tuple[str, str]]:
  """Yields (path, SHA-256) in order; threads read ahead."""
  total, done = sum(map(files.size, paths)), 0
  said = time.monotonic()
  pool = futures.ThreadPoolExecutor(min(_HASH_THREADS, os.cpu_count() or 1))
  try:
    waiting = [pool.submit(files.file_hash, path) for path in paths]
    for path, future in zip(paths, waiting, strict=True):
      try:
        yield path, future.result()
      except OSError as error:
        raise records.DataError(f"{path} cannot be read: {error}") from error
      done += files.size(path)
      if time.monotonic() - said > _REPORT_SECS:
        said = time.monotonic()
        _log.info(
          "checking %s: %.2f of %.2f GB", folder, done / 1e9, total / 1e9
        )
  finally:
    pool.shutdown(cancel_futures=True)


def _check_counts(folder: str) -> None:
  """Checks the counts of ids, which have no checksum, by their sum.

  The sum is known: text contains no special token except [UNK], and special
  tokens are not counted.
  """
  manifest = manifests.read_manifest(folder)
  for split, totals in manifest["totals"].items():
    path = os.path.join(folder, "tokens", f"{split}.counts.npy")
    counts = records.read_array(path, np.int64, 1)
    num_ids = manifest["vocab_size"]
    total = totals["tokens"] - totals["unknown"]
    is_right = len(counts) == num_ids and int(counts.sum()) == total
    if not is_right or counts.min(initial=0) < 0:
      raise records.DataError(
        f"{path} is damaged: {len(counts)} counts that add up to "
        f"{counts.sum()}, but the manifest says {num_ids} and {total}; delete "
        "the folder tokens and run bert-jax prepare again with the same "
        "--config and --input"
      )
