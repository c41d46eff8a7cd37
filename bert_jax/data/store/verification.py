"""Checks that the files of prepared data are as they were written."""

from collections.abc import Iterator, Sequence
from concurrent import futures
import contextlib
import logging
import os
import time

import numpy as np

from bert_jax.data.store import indexes
from bert_jax.data.store import manifests
from bert_jax.data.store import records

_log = logging.getLogger(__name__)

VERIFY = ("once", "always", "never")

_VERIFIED = ".verified.json"
_HASH_THREADS = 16  # at most; more only wait for the disk
_REPORT_SECS = 3.0  # between lines that say how far a check is


def verify(
  folder: str, name: str, split: str, mode: str, packed: bool = False
) -> None:
  """Checks all files that batches of a split are made of.

  A damaged record is an error only when it is read, perhaps days into a run;
  this finds it at the start. What was found good is noted in the folder, if it
  can be written, by path, size and the times of the last change of content and
  of its inode, so that the next start need not read it again. Every process of
  a run checks for itself: no host sees through another's eyes.

  Args:
    folder: DATA.
    name: of the examples.
    split: one of records.SPLITS.
    mode: "once": what is not noted as good; "always": everything; "never".
    packed: the order by length is read, too.

  Raises:
    DataError: a file is missing, or is not what its manifest says.
    ValueError: no such mode.
  """
  if mode not in VERIFY:
    raise ValueError(
      f"data.verify={mode!r} is not known; use one of {', '.join(VERIFY)}"
    )
  if mode == "never":
    return
  _check_counts(folder)
  note = os.path.join(folder, _VERIFIED)
  known = _read_verified(note) if mode == "once" else {}
  wanted = _wanted_hashes(folder, name, split)
  if packed:
    wanted |= _lengths_hashes(folder, name, split)
  entries = {path: _entry(path, digest) for path, digest in wanted.items()}
  good = {}
  try:
    unknown = [p for p, (key, e) in entries.items() if known.get(key) != e]
    for path, found in _hash_files(unknown, folder):
      if found != wanted[path]:
        raise records.DataError(
          f"{path} is damaged: its sha256 is {found}, but the manifest says "
          f"{wanted[path]}; put the file back, or delete it and run "
          "--mode=prepare again with the same --config and --input"
        )
      key, entry = entries[path]
      good[key] = entry
  finally:
    if good:
      with contextlib.suppress(OSError):  # not ours to write: check again
        records.write_json(note, _read_verified(note) | good)


def _entry(path: str, digest: str) -> tuple[str, list]:
  """What is noted of a good file: under its full path, stamps and SHA-256."""
  try:
    stat = os.stat(path)
  except OSError as error:
    raise records.DataError(
      f"{path} is missing; run --mode=prepare again ({error.strerror})"
    ) from error
  # Of a copy that has the times of the original only the last one differs.
  stamps = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
  return os.path.realpath(path), [*stamps, digest]


def _read_verified(path: str) -> dict[str, list]:
  """The files noted as good; none if there is no such note, or no sound one."""
  try:
    known = records.read_json(path)
  except (OSError, records.DataError):
    return {}
  return known if isinstance(known, dict) else {}


def _wanted_hashes(folder: str, name: str, split: str) -> dict[str, str]:
  """Path -> SHA-256 of the token and example files of a split."""
  tokens = os.path.join(folder, "tokens")
  examples = os.path.join(folder, "examples", name)
  wanted = {}
  for s in manifests.read_manifest(folder)["shards"][split]:
    for suffix, digest in s["sha256"].items():
      wanted[records.shard_path(tokens, split, s["shard"], suffix)] = digest
  for s in manifests.read_manifest(examples)["shards"][split]:
    path = records.shard_path(examples, split, s["shard"], "array_record")
    wanted[path] = s["sha256"]
  return wanted


def _lengths_hashes(folder: str, name: str, split: str) -> dict[str, str]:
  """Path -> SHA-256 of the files of the order by length."""
  target = records.lengths_folder(folder, name)
  manifest = indexes.check_lengths(folder, name)
  return {
    os.path.join(target, f"{split}.npy"): manifest["sha256"][split],
    **{
      records.shard_path(target, split, s["shard"], "npy"): s["sha256"]
      for s in manifest["shards"][split]
    },
  }


def _hash_files(paths: Sequence[str], folder: str) -> Iterator[tuple[str, str]]:
  """Yields (path, SHA-256) in order; threads read ahead."""
  total, done = sum(map(os.path.getsize, paths)), 0
  said = time.monotonic()
  pool = futures.ThreadPoolExecutor(min(_HASH_THREADS, os.cpu_count() or 1))
  try:
    waiting = [pool.submit(records.file_hash, path) for path in paths]
    for path, future in zip(paths, waiting, strict=True):
      try:
        yield path, future.result()
      except OSError as error:
        raise records.DataError(f"{path} cannot be read: {error}") from error
      done += os.path.getsize(path)
      if time.monotonic() - said > _REPORT_SECS:
        said = time.monotonic()
        _log.info(
          "checking %s: %.2f of %.2f GB", folder, done / 1e9, total / 1e9
        )
  finally:
    pool.shutdown(cancel_futures=True)


def _check_counts(folder: str) -> None:
  """Checks the counts of ids, which have no hash, by what they add up to.

  Text never becomes a special token other than [UNK], and special tokens are
  not counted: the sum is known.
  """
  manifest = manifests.read_manifest(folder)
  for split, totals in manifest["totals"].items():
    path = os.path.join(folder, "tokens", f"{split}.counts.npy")
    counts = records.read_array(path, np.int64, 1)
    found = (len(counts), int(counts.sum()), int(counts.min(initial=0)) >= 0)
    wanted = (
      manifest["vocab_size"],
      totals["tokens"] - totals["unknown"],
      True,
    )
    if found != wanted:
      raise records.DataError(
        f"{path} is damaged: {found[0]} counts that add up to {found[1]}, but "
        f"the manifest says {wanted[0]} and {wanted[1]}; delete the folder "
        "tokens and run --mode=prepare again with the same --config and --input"
      )
