"""Raw text -> vocabulary -> token store -> examples, on disk.

Each stage maps one function over shards. What a shard holds depends on the
text, the settings and the shard's number, never on who made it or when, so the
bytes are the same for any number of workers, after a kill, and under Beam. A
shard appears whole or not at all, and a finished shard is not made again.
"""

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import process
import contextlib
import functools
import glob
import hashlib
import itertools
import json
import logging
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import threading
import time
from typing import Any

import numpy as np
from rich import progress

from bert_jax.data import corpus
from bert_jax.data import masking
from bert_jax.data import packing
from bert_jax.data import pairing
from bert_jax.data.store import indexes
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.data.tokenizers import learn
from bert_jax.data.tokenizers import load
from bert_jax.runtime import files
from bert_jax.runtime import locks
from bert_jax.runtime import settings
from bert_jax.runtime import signals
from bert_jax.runtime.settings import Config

_log = logging.getLogger(__name__)

_PROGRESS = ".progress"  # folder of what finished shards report
_TABLES = ("boundaries.npy", "documents.npy")
# The forms of what finished shards report.
_TOKENS_ROW = dict.fromkeys(("sentences", "unknown"), manifests.is_count)
_TOKENISED = {
  "sha256": manifests.is_text,
  **manifests.each_split([manifests.TOKENS_ROW | _TOKENS_ROW]),
}
_PAIRED = manifests.EXAMPLES_ROW | dict.fromkeys(
  ("random_next", "tokens"), manifests.is_count
)
_SORTED = manifests.LENGTHS_ROW | {"counts": [manifests.is_count]}
_RANDOM_DOCUMENT_TRIES = 10  # create_pretraining_data.py:279


def prepare(config: Config, patterns: Sequence[str], folder: str) -> None:
  """Makes or completes prepared data.

  Args:
    config: the whole configuration; `prepare` and `data` are read.
    patterns: inputs (see corpus.list_units); empty = the tokens are there
      already, make only the examples that config.data asks for.
    folder: DATA, created where it is missing.

  Raises:
    corpus.CorpusError, records.DataError, ValueError: the text, what lies in
      the folder, or the settings do not fit; nothing is overwritten.
  """
  check_settings(config)
  if not patterns:
    manifests.read_manifest(folder)  # says how to make it where it is missing
  units = (
    corpus.list_units(
      patterns, config.prepare.format, config.prepare.unit_bytes
    )
    if patterns
    else []
  )
  files.make_folder(folder)
  inputs = Inputs(units, config.prepare.format, config.prepare.text_key)
  with locks.lock(folder, "--output"):
    _remove_leftovers(folder)
    start = time.monotonic()
    if units:
      _write_vocabulary(config, inputs, folder)
      _write_tokens(config, inputs, folder)
    seconds = time.monotonic() - start
    summary = _write_examples(config, folder)
    _write_lengths(config, folder)
  _report(config.data, folder, summary, seconds, time.monotonic() - start)


def check_settings(config: Config) -> None:
  """Raises ValueError if a setting of `prepare` or `data` is out of range."""
  settings.check(config)
  p, d = config.prepare, config.data
  wanted = (
      (0 <= p.held_out_rate < 1, "prepare.held_out_rate", p.held_out_rate,
       "a share from 0 to below 1"),
      (d.seq_len >= 8, "data.seq_len", d.seq_len, "8 tokens or more"),
      (1 <= d.max_sequences <= d.seq_len // masking.SHORTEST,
       "data.max_sequences", d.max_sequences,
       f"1 to {d.seq_len // masking.SHORTEST} in rows of {d.seq_len}"),
  )  # fmt: skip
  for good, key, value, need in wanted:
    if not good:
      raise ValueError(f"{key}={value!r}; it must be {need}")


def _remove_leftovers(folder: str) -> None:
  """Deletes the temporary files of ours that a kill left behind."""
  for root, parts, names in os.walk(folder):
    if root == folder:
      parts[:] = {"vocab", "tokens", "examples", _PROGRESS}.intersection(parts)
    for name in names:
      path = os.path.join(root, name)
      if files.is_temporary(name):
        files.remove_abandoned(path)
      elif re.search(r"\.\d+\.tmp$", name):  # of releases before these names
        with contextlib.suppress(FileNotFoundError):
          os.remove(path)


def _run(
  function: Callable[[dict], dict],
  jobs: list[dict],
  progress_folder: str,
  config: Config,
  title: str,
  form: dict,
) -> list[dict]:
  """Maps a function over the jobs that are not done yet, in any order.

  Each result is kept in the progress folder, so a run after a kill goes on.

  Args:
    function: a module-level function of a job; returns what is to be kept.
    jobs: dicts with at least `name` and `size`.
    progress_folder: where finished jobs report.
    config: `prepare.num_workers` and `prepare.runner` are read.
    title: of the progress bar.
    form: of a result, for manifests.has_form.

  Returns:
    The results, in the order of the jobs.

  Raises:
    records.DataError: a result that was kept is damaged.
  """
  os.makedirs(progress_folder, exist_ok=True)
  task = functools.partial(_run_job, function, progress_folder)
  done = {j["name"] for j in jobs if os.path.exists(
      os.path.join(progress_folder, j["name"] + ".json"))}  # fmt: skip
  left = [j for j in jobs if j["name"] not in done]
  if done:
    _log.info("%s: %d of %d done before", title, len(done), len(jobs))
  if config.prepare.runner == "beam":
    _run_beam(task, left, config.prepare.num_workers)
  else:
    _run_processes(task, left, config.prepare.num_workers, title)
  return [
    _read_result(os.path.join(progress_folder, j["name"] + ".json"), form)
    for j in jobs
  ]


def _read_result(path: str, form: dict) -> Any:
  """Reads what a finished job reported.

  Args:
    path: of the report.
    form: that it must have, for manifests.has_form.

  Raises:
    records.DataError: it is damaged.
  """
  result = records.read_json(path)
  if not manifests.has_form(result, form):
    raise records.DataError(f"{path} is damaged; delete it, and try again")
  return result


def _run_job(
  function: Callable[[dict], dict], progress_folder: str, job: dict
) -> int:
  """Runs one job and keeps its result; returns its size."""
  result = function(job)
  records.write_json(
    os.path.join(progress_folder, job["name"] + ".json"), result
  )
  return job["size"]


def _run_processes(task, jobs: list[dict], workers: int, title: str) -> None:
  workers = min(workers or os.cpu_count() or 1, max(len(jobs), 1))
  columns = (
    progress.TextColumn("{task.description}"),
    progress.BarColumn(),
    progress.TextColumn("{task.fields[rate]}"),
    progress.TimeRemainingColumn(),
  )
  with progress.Progress(*columns) as bar:
    total = sum(j["size"] for j in jobs)
    line = bar.add_task(title, total=total, rate="")
    start, made = time.monotonic(), 0

    def advance(size):
      nonlocal made
      made += size
      rate = made / (time.monotonic() - start)
      bar.update(line, completed=made, rate=f"{rate / 1e6:.2f} M/s")

    if workers == 1:
      for job in jobs:
        advance(task(job))
      return
    # Spawned, not forked: a fork of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(
      workers, context, _end_with_parent
    ) as pool:
      with signals.kept_from_children():
        waiting = [pool.submit(task, job) for job in jobs]
      try:
        for future in futures.as_completed(waiting):
          advance(future.result())
      except process.BrokenProcessPool as error:
        raise ChildProcessError(
          "a worker process was killed, perhaps for want of memory; the same "
          f"command goes on, in less of it with fewer than {workers} "
          "prepare.num_workers"
        ) from error
      except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _end_with_parent() -> None:
  """Ends this worker when the process that started it is killed.

  A pool's worker would otherwise wait for its next job for ever.
  """
  parent = multiprocessing.parent_process()
  if parent is None:
    return
  signals.release([signal.SIGTERM])  # by which a broken pool ends its workers

  def wait():
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def _run_beam(task, jobs: list[dict], workers: int) -> None:
  """The same jobs under Apache Beam; the files lie where every worker sees."""
  try:
    import apache_beam as beam
    from apache_beam.options import pipeline_options
  except ImportError as error:
    raise ValueError(
      "prepare.runner=beam needs the extra: pip install 'bert_jax[beam]'"
    ) from error
  options = pipeline_options.PipelineOptions(
    flags=[],
    runner=os.environ.get("BEAM_RUNNER", "DirectRunner"),
    direct_num_workers=workers or 1,
  )
  with beam.Pipeline(options=options) as pipeline:
    _ = pipeline | beam.Create(jobs) | beam.Reshuffle() | beam.Map(task)


def is_held_out(document: Sequence[str], rate: float, seed: int) -> bool:
  """Whether a document is kept for evaluation: a function of its text.

  Copies of one text thus never end up on both sides.
  """
  digest = hashlib.blake2b(
    "\n".join(document).encode("utf-8", "replace"),
    digest_size=8,
    key=str(seed).encode(),
  ).digest()
  return int.from_bytes(digest, "big") < rate * 2**64


class Inputs:
  """The units of text of a preparation, known by their content.

  Attributes:
    units: as corpus.list_units cut them.
  """

  def __init__(
    self, units: Sequence[corpus.Unit], text_format: str, text_key: str
  ):
    """Reads nothing yet.

    Args:
      units: of corpus.list_units.
      text_format: one of corpus.FORMATS.
      text_key: the field that holds the text ("tfds").
    """
    self.units = list(units)
    self._hash = functools.partial(
      corpus.hash_unit, text_format=text_format, text_key=text_key
    )
    self._known: dict[int, str] = {}

  def hashes(self, numbers: Sequence[int]) -> list[str]:
    """SHA-256 of some units, by their numbers; each is read once at most."""
    unknown = [i for i in numbers if i not in self._known]
    with futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
      found = pool.map(self._hash, [self.units[i] for i in unknown])
      self._known |= dict(zip(unknown, found, strict=True))
    return [self._known[i] for i in numbers]

  def sha256(self) -> str:
    """One SHA-256 that stands for the content of all units."""
    hashes = self.hashes(range(len(self.units)))
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


# -- vocabulary ---------------------------------------------------------------


def _write_vocabulary(config: Config, inputs: Inputs, folder: str) -> None:
  """Copies the vocabulary into DATA/vocab, or learns it there."""
  p, units = config.prepare, inputs.units
  target = os.path.join(folder, "vocab")
  done = os.path.join(target, "settings.json")
  keys = ("vocab", "vocab_kind", "vocab_size", "lower_case")
  if p.vocab:
    # A SentencePiece model carries its own normalisation.
    is_model = p.vocab.endswith(".model") or glob.glob(
      os.path.join(glob.escape(p.vocab), "*.model")
    )
    loaded = load.load_tokenizer(
      p.vocab, lower_case=None if is_model else p.lower_case
    )
    asked: dict[str, Any] = {"fingerprint": loaded.fingerprint}
  else:
    asked = {k: p[k] for k in keys} | {
      "sample_bytes": p.vocab_sample_bytes,
      "held_out": f"{p.held_out_rate:g} by {p.held_out_seed}",
      "units": _units_hash(units),
      "sha256": inputs.sha256(),
    }
  if os.path.exists(done):
    found = records.read_json(done)
    is_older = not p.vocab and isinstance(found, dict) and "sha256" not in found
    if is_older:
      del asked["sha256"]
    _check_same(found, asked, target)
    # The record of finished tokens says what text it was.
    if is_older and not os.path.exists(os.path.join(folder, "manifest.json")):
      raise records.DataError(
        f"an older release learned {target} and did not record its text (by "
        "sha256), so that this preparation cannot go on with it; delete that "
        "folder, which learns the vocabulary anew and keeps finished shards of "
        "the same text, or give another --output"
      )
    return
  if os.path.exists(target):
    raise records.DataError(
      f"{target} is there already and --mode=prepare did not make it; give "
      "another --output, or move it away"
    )
  if p.vocab:
    tokenizer = loaded
  else:
    tokenizer = _learn_vocabulary(config, units)
  with files.whole_folder(target) as whole:
    tokenizer.save(whole)
    records.write_json(os.path.join(whole, "settings.json"), asked)


def _learn_vocabulary(config: Config, units: list[corpus.Unit]):
  p = config.prepare
  _log.info("learning a %s vocabulary of %d", p.vocab_kind, p.vocab_size)
  texts = _sample_text(config, units)
  if p.vocab_kind == "wordpiece":
    return learn.train_wordpiece(
      texts, vocab_size=p.vocab_size, lower_case=p.lower_case
    )
  return learn.train_sentencepiece(
    texts, vocab_size=p.vocab_size, lower_case=p.lower_case
  )


def _sample_text(config: Config, units: list[corpus.Unit]) -> Iterator[str]:
  """Sentences from all over the text, held-out documents left out.

  Of the units that were cut, evenly spread ones are read; of every compressed
  file, which can be read only from its start, the head.
  """
  p = config.prepare
  sizes = corpus.text_sizes(units, p.format, p.text_key)
  stride = max(1, -(-sum(sizes) // p.vocab_sample_bytes))
  left = p.vocab_sample_bytes
  place = itertools.count()  # among the units that were cut
  owed = 0.0  # bytes that the compressed files up to here have yet to give
  for unit, size in zip(units, sizes, strict=True):
    is_whole = unit.end < 0
    owed += size / stride if is_whole else 0
    limit = owed if is_whole and stride > 1 else math.inf
    if limit <= 0 or (not is_whole and next(place) % stride):
      continue
    reading = corpus.Reading()
    for document in corpus.read_documents(
      unit, p.format, p.text_key, p.language, reading
    ):
      if not is_held_out(document, p.held_out_rate, p.held_out_seed):
        yield from document
        left -= sum(map(len, document))
        if left < 0:
          return
      if reading.num_bytes >= limit:
        break
    owed -= reading.num_bytes if is_whole else 0


def _units_hash(units: list[corpus.Unit]) -> str:
  """A hash of names, cuts and sizes of the inputs (not of their bytes)."""
  text = json.dumps([
      (os.path.basename(u.path), u.start, u.end, u.size)
      + ((u.part_bytes,) if u.part_bytes else ())
      for u in units
  ])  # fmt: skip
  return hashlib.sha256(text.encode()).hexdigest()


def _check_same(found: Any, asked: dict, path: str) -> None:
  """Raises DataError where a folder was made with other settings."""
  if not isinstance(found, dict):
    raise records.DataError(
      f"{path}: its settings are damaged; delete that folder to make it anew"
    )
  differs = [
    f"{k}: {found.get(k)!r} there, {asked.get(k)!r} asked"
    for k in sorted(found.keys() | asked.keys())
    if found.get(k) != asked.get(k)
  ]
  if differs:
    raise records.DataError(
      f"{path} was made with other settings ({'; '.join(differs)}); give "
      "another --output, or delete that folder to make it anew"
    )


def _is_whole(folder: str, manifest: dict, suffixes: Sequence[str]) -> bool:
  """Whether all shards of a manifest are there; a deleted one is made anew."""
  return all(
    os.path.exists(records.shard_path(folder, split, s["shard"], suffix))
    for split, rows in manifest["shards"].items()
    for s in rows
    for suffix in suffixes
  )


def _check_tables(folder: str, manifest: dict) -> None:
  """Raises DataError where the tables of sentences are not as written."""
  for split, rows in manifest["shards"].items():
    for s in rows:
      for suffix in _TABLES:
        path = records.shard_path(folder, split, s["shard"], suffix)
        if (
          not os.path.exists(path)
          or records.file_hash(path) != s["sha256"][suffix]
        ):
          raise records.DataError(
            f"{path} is missing or damaged; delete it and run --mode=prepare "
            "again with the same --input"
          )


# -- tokens -------------------------------------------------------------------


def _write_tokens(config: Config, inputs: Inputs, folder: str) -> None:
  """Tokenises every unit into one shard a split, or one a part."""
  p, units = config.prepare, inputs.units
  tokenizer = load.load_tokenizer(os.path.join(folder, "vocab"))
  settings = {
    "format": p.format,
    "held_out_rate": p.held_out_rate,
    "held_out_seed": p.held_out_seed,
    "language": "" if p.format == "sentences" else p.language,
    "text_key": p.text_key if p.format in ("jsonl", "tfds") else "",
    "units": _units_hash(units),
    "vocab": tokenizer.fingerprint,
  }
  manifest_path = os.path.join(folder, "manifest.json")
  progress_folder = os.path.join(folder, _PROGRESS, "tokens")
  if os.path.exists(manifest_path):
    manifest = manifests.read_manifest(folder)
    _check_same(manifest["settings"], settings, manifest_path)
    _check_inputs(inputs, _recorded_hashes(manifest, folder), folder)
    suffixes = ("array_record", *_TABLES)
    if _is_whole(os.path.join(folder, "tokens"), manifest, suffixes):
      _remove_progress(folder, progress_folder)
      return
  _keep_settings(progress_folder, settings)
  os.makedirs(os.path.join(folder, "tokens"), exist_ok=True)
  jobs = [
    dict(name=f"{i:05d}", shard=i, size=u.size, folder=folder, unit=vars(u))
    | settings
    for i, u in enumerate(units)
  ]
  _check_inputs(inputs, _finished_hashes(jobs, progress_folder), folder)
  results = _run(
    tokenize_unit, jobs, progress_folder, config, "tokenise", _TOKENISED
  )
  shards: dict[str, list] = {}
  special = [
    getattr(tokenizer, f"{name}_id")
    for name in ("pad", "unk", "cls", "sep", "mask")
  ]
  for split in records.SPLITS:
    shards[split] = [row for r in results for row in r[split]]
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for s in shards[split]:
      counts += records.read_array(
        records.shard_path(progress_folder, split, s["shard"], "npy"),
        np.int64,
        1,
      )
    counts[special] = 0
    records.write_array(
      os.path.join(folder, "tokens", f"{split}.counts.npy"), counts
    )
  _check_documents(shards, p.held_out_rate)
  records.write_json(
      manifest_path,
      {
          "version": records.VERSION,
          "settings": settings,
          "vocab_size": tokenizer.vocab_size,
          "inputs": [
              dict(file=os.path.basename(u.path), start=u.start, end=u.end,
                   sha256=r["sha256"])
              for u, r in zip(units, results, strict=True)
          ],
          "totals": {
              split: {
                  key: sum(s[key] for s in rows)
                  for key in ("documents", "sentences", "tokens", "unknown")
              }
              for split, rows in shards.items()
          },
          "shards": shards,
      },
  )  # fmt: skip
  _remove_progress(folder, progress_folder)


def _recorded_hashes(manifest: dict, folder: str) -> dict[int, str]:
  """The SHA-256 of the text of each unit, as the record of the tokens has it.

  Args:
    manifest: of the tokens.
    folder: DATA.

  Raises:
    records.DataError: the record does not say it.
  """
  if not manifests.has_form(
    manifest, {"inputs": [{"sha256": manifests.is_text}]}
  ):
    raise records.DataError(
      f"{folder}/manifest.json does not record the content of its inputs; give "
      "another --output, or no --input to add examples to its tokens"
    )
  return {i: row["sha256"] for i, row in enumerate(manifest["inputs"])}


def _finished_hashes(
  jobs: Sequence[dict], progress_folder: str
) -> dict[int, str]:
  """The SHA-256 of the text of each unit that is tokenised already.

  Args:
    jobs: of the token stage, one for each unit.
    progress_folder: where finished jobs report.

  Returns:
    Number of a unit -> SHA-256. Units that are still to be tokenised are left
    out.
  """
  found = {}
  for job in jobs:
    path = os.path.join(progress_folder, job["name"] + ".json")
    if os.path.exists(path):
      found[job["shard"]] = _read_result(path, _TOKENISED)["sha256"]
  return found


def _check_inputs(
  inputs: Inputs, wanted: Mapping[int, str], folder: str
) -> None:
  """Refuses text that changed since it was tokenised.

  Args:
    inputs: as they are now.
    wanted: number of a unit -> SHA-256 of the text that was tokenised.
    folder: DATA.

  Raises:
    records.DataError: the content of a unit is another; names its file.
  """
  given = {i: unit for i, unit in enumerate(inputs.units) if i in wanted}
  for i, found in zip(given, inputs.hashes(list(given)), strict=True):
    unit, digest = given[i], wanted[i]
    if found != digest:
      raise records.DataError(
        f"{unit.path} is not the text that {folder} was prepared from: its "
        f"sha256 is {found} (of the part from {unit.start} on), and it was "
        f"{digest}; put that text back, or give another --output for this one"
      )


def _keep_settings(progress_folder: str, settings: dict) -> None:
  """Notes the settings of a stage; refuses to go on with others."""
  os.makedirs(progress_folder, exist_ok=True)
  path = os.path.join(progress_folder, "settings.json")
  if os.path.exists(path):
    _check_same(
      records.read_json(path), settings, os.path.dirname(progress_folder)
    )
  else:
    records.write_json(path, settings)


def _check_documents(shards: dict[str, list], held_out_rate: float) -> None:
  counts = {k: sum(s["documents"] for s in v) for k, v in shards.items()}
  if not counts["train"]:
    raise corpus.CorpusError("the input holds no document with any token")
  if held_out_rate and not counts["validation"]:
    raise corpus.CorpusError(
      f"prepare.held_out_rate={held_out_rate} kept none of "
      f"{counts['train']} documents; raise it (or set 0 to train on all)"
    )


@functools.lru_cache(1)
def _tokenizer(folder: str, fingerprint: str):
  del fingerprint  # only so that another vocabulary is loaded anew
  return load.load_tokenizer(os.path.join(folder, "vocab"))


def tokenize_unit(job: dict) -> dict:
  """Writes one unit's shards of the token store, one a split and part.

  Args:
    job: shard, folder, unit (a corpus.Unit as a dict) and the settings of the
      token stage.

  Returns:
    For each split its rows of the manifest; and the hash of the bytes read.
  """
  unit = corpus.Unit(**job["unit"])
  reading = corpus.Reading()
  result: dict[str, Any] = {split: [] for split in records.SPLITS}
  parts = corpus.read_parts(
    unit, job["format"], job["text_key"], job["language"], reading
  )
  for part, documents in enumerate(parts):
    shard = records.shard_of_part(job["shard"], part)
    for split, row in _write_shard(job, shard, documents).items():
      result[split].append(row)
  return result | {"sha256": reading.hexdigest()}


def _write_shard(
  job: dict, shard: records.Shard, documents: Iterator[list[str]]
) -> dict[str, dict]:
  """Writes the documents of a part, one shard for each split that has some.

  Returns:
    For each such split: shard, documents, sentences, tokens, unknown, records
    and hashes.
  """
  tokenizer = _tokenizer(job["folder"], job["vocab"])
  folder = os.path.join(job["folder"], "tokens")
  paths = {
    s: functools.partial(records.shard_path, folder, s, shard)
    for s in records.SPLITS
  }
  sentences = dict.fromkeys(records.SPLITS, 0)
  with contextlib.ExitStack() as stack:
    writers = {
      s: stack.enter_context(
        records.TokenWriter(
          paths[s]("array_record"),
          tokenizer.vocab_size,
          tokenizer.sep_id,
        )
      )
      for s in records.SPLITS
    }
    for document in documents:
      ids = [i for i in tokenizer.encode_batch(document) if i]
      if ids:
        held_out = is_held_out(
          document, job["held_out_rate"], job["held_out_seed"]
        )
        split = records.SPLITS[held_out]
        sentences[split] += len(ids)
        writers[split].add(ids)
  result = {}
  for split, writer in writers.items():
    path = paths[split]
    num_documents = len(writer.documents) - 1
    if num_documents:
      records.write_array(path("boundaries.npy"), writer.boundaries)
      records.write_array(path("documents.npy"), writer.documents)
      records.write_array(
          records.shard_path(
              os.path.join(job["folder"], _PROGRESS, "tokens"),
              split, shard, "npy",
          ),
          writer.counts,
      )  # fmt: skip
      result[split] = {
        "shard": shard,
        "documents": num_documents,
        "sentences": sentences[split],
        "tokens": writer.num_tokens - num_documents,
        "unknown": int(writer.counts[tokenizer.unk_id]),
        "records": writer.num_records,
        "sha256": {
          suffix: records.file_hash(path(suffix))
          for suffix in ("array_record", *_TABLES)
        },
      }
    else:
      os.remove(path("array_record"))
  return result


# -- examples -----------------------------------------------------------------


def _write_examples(config: Config, folder: str) -> dict:
  """Writes the examples that config.data asks for; returns their manifest."""
  d = config.data
  name = records.examples_name(d)
  target = os.path.join(folder, "examples", name)
  tokens = manifests.read_manifest(folder)
  settings = {
    "pairing": d.pairing,
    "seq_len": d.seq_len,
    "dupe_factor": d.dupe_factor,
    "short_seq_rate": d.short_seq_rate if d.pairing == "pairs" else 0.0,
    "examples_seed": d.examples_seed,
    "tokens": records.file_hash(os.path.join(folder, "manifest.json")),
  }
  progress_folder = os.path.join(folder, _PROGRESS, name)
  if os.path.exists(os.path.join(target, "manifest.json")):
    manifest = manifests.read_manifest(target)
    _check_same(manifest["settings"], settings, target)
    if _is_whole(target, manifest, ("array_record",)):
      _remove_progress(folder, progress_folder)
      return manifest
  _check_tables(os.path.join(folder, "tokens"), tokens)
  for split, rows in tokens["shards"].items():
    documents = sum(s["documents"] for s in rows)
    if d.pairing == "pairs" and documents == 1:
      raise records.DataError(
        f"{folder}: one {split} document alone; random next sentences need "
        "two. Separate documents (by blank lines, see prepare.format), give "
        "more text, raise prepare.held_out_rate (into another --output), or "
        "set data.pairing=full_sentences"
      )
  _keep_settings(progress_folder, settings)
  os.makedirs(target, exist_ok=True)
  jobs = [
      dict(name=f"{split}-{records.shard_name(s['shard'])}", index=i,
           split=split, folder=folder, examples=name, size=s["tokens"])
      | settings
      for split in records.SPLITS
      for i, s in enumerate(tokens["shards"][split])
  ]  # fmt: skip
  results = _run(pair_shard, jobs, progress_folder, config, name, _PAIRED)
  shards = {
    split: [
      r for j, r in zip(jobs, results, strict=True) if j["split"] == split
    ]
    for split in records.SPLITS
  }
  manifest = {
    "version": records.VERSION,
    "settings": settings,
    "vocab": tokens["settings"]["vocab"],
    "vocab_size": tokens["vocab_size"],
    "totals": {
      split: {
        key: sum(s[key] for s in rows)
        for key in ("examples", "random_next", "tokens")
      }
      for split, rows in shards.items()
    },
    "shards": shards,
  }
  records.write_json(os.path.join(target, "manifest.json"), manifest)
  _remove_progress(folder, progress_folder)
  return manifest


def _remove_progress(folder: str, progress_folder: str) -> None:
  """Removes what a finished stage kept, all at once.

  A kill would else leave half of it, or all, for a later stage to believe.
  """
  gone = os.path.join(folder, _PROGRESS, "gone")
  shutil.rmtree(gone, ignore_errors=True)
  with contextlib.suppress(FileNotFoundError):
    os.rename(progress_folder, gone)
    shutil.rmtree(gone)
  with contextlib.suppress(OSError):
    os.rmdir(os.path.join(folder, _PROGRESS))  # where nothing else is going on


def _write_lengths(config: Config, folder: str) -> None:
  """Writes in what order the examples are by length, for packing.

  It is kept apart from the examples, which older releases wrote without it.
  """
  name = records.examples_name(config.data)
  examples = os.path.join(folder, "examples", name)
  target = records.lengths_folder(folder, name)
  progress_folder = os.path.join(folder, _PROGRESS, f"{name}.lengths")
  if os.path.exists(os.path.join(target, "manifest.json")):
    manifest = indexes.check_lengths(folder, name)
    tables = [os.path.join(target, f"{s}.npy") for s in records.SPLITS]
    if _is_whole(target, manifest, ("npy",)) and all(
      map(os.path.exists, tables)
    ):
      _remove_progress(folder, progress_folder)
      return
  digest = records.file_hash(os.path.join(examples, "manifest.json"))
  _keep_settings(progress_folder, {"examples": digest})
  os.makedirs(target, exist_ok=True)
  jobs = [
    dict(
      name=f"{split}-{records.shard_name(s['shard'])}",
      split=split,
      shard=s["shard"],
      size=s["examples"],
      examples=examples,
      target=target,
      seq_len=config.data.seq_len,
    )
    for split, rows in manifests.read_manifest(examples)["shards"].items()
    for s in rows
  ]
  title = "sort by length"
  results = _run(sort_shard, jobs, progress_folder, config, title, _SORTED)
  shards: dict[str, list] = {split: [] for split in records.SPLITS}
  counts: dict[str, list] = {split: [] for split in records.SPLITS}
  for job, result in zip(jobs, results, strict=True):
    counts[job["split"]].append(result.pop("counts"))
    shards[job["split"]].append(result)
  hashes = {}
  for split, rows in counts.items():
    path = os.path.join(target, f"{split}.npy")
    table = np.array(rows, np.int64).reshape(-1, config.data.seq_len + 1)
    records.write_array(path, table)
    hashes[split] = records.file_hash(path)
  records.write_json(
    os.path.join(target, "manifest.json"),
    {
      "version": records.VERSION,
      "examples": digest,
      "sha256": hashes,
      "shards": shards,
    },
  )
  _remove_progress(folder, progress_folder)


def sort_shard(job: dict) -> dict:
  """Writes the numbers of a shard's examples, the shortest first.

  Args:
    job: split, shard, size (its examples), seq_len, and the folders: examples
      and target.

  Returns:
    shard; counts [L + 1], how many examples have 0, 1, ... L tokens; sha256.

  Raises:
    records.DataError: an example is longer than a row.
  """
  where = (job["split"], job["shard"])
  source = records.shard_path(job["examples"], *where, "array_record")
  store = records.Records([source], job["size"])
  ids = np.arange(job["size"])
  lengths = records.example_lengths(
    np.concatenate(
      [np.zeros(0, records.EXAMPLE)]
      + [
        store.read(block, records.EXAMPLE, 1)[:, 0]
        for block in np.array_split(ids, -(-len(ids) // (1 << 16)) or 1)
        if len(block)
      ]
    )
  )
  if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= job["seq_len"]:
    raise records.DataError(
      f"{source}: an example has {lengths.max()} tokens, more than "
      f"data.seq_len={job['seq_len']}, or none; delete the file and run "
      "--mode=prepare again"
    )
  path = records.shard_path(job["target"], *where, "npy")
  order = np.argsort(lengths, kind="stable")
  records.write_array(path, order.astype(np.uint32))
  return {
    "shard": job["shard"],
    "counts": np.bincount(lengths, minlength=job["seq_len"] + 1).tolist(),
    "sha256": records.file_hash(path),
  }


@functools.lru_cache(2)
def _document_table(folder: str, split: str, tokens: str):
  del tokens  # only so that other data is read anew
  shards = manifests.read_manifest(folder)["shards"][split]
  table = indexes.DocumentTable(os.path.join(folder, "tokens"), split, shards)
  return table, [s["shard"] for s in shards]


def pair_shard(job: dict) -> dict:
  """Writes the examples whose first segment lies in one shard.

  Args:
    job: folder, split, index of the shard, examples (their name) and the
      settings of the example stage.

  Returns:
    shard, examples, random_next, tokens ([CLS], [SEP] counted), sha256.
  """
  table, numbers = _document_table(job["folder"], job["split"], job["tokens"])
  shard = numbers[job["index"]]
  path = records.shard_path(
    os.path.join(job["folder"], "examples", job["examples"]),
    job["split"],
    shard,
    "array_record",
  )
  totals = np.zeros(2, np.int64)
  with records.RecordWriter(path) as writer:
    for dupe in range(job["dupe_factor"]):
      rng = random.Random(
        f"{job['examples_seed']}/{job['split']}/{shard}/{dupe}"
      )
      rows: list[pairing.Example] = []
      for batch in _examples_of(job, table, rng, dupe):
        rows += batch
        if len(rows) >= 1 << 14:
          totals += _write_rows(writer, rows)
          rows = []
      totals += _write_rows(writer, rows)
    count = writer.count
  specials = (
    pairing.PAIR_SPECIALS if job["pairing"] == "pairs" else pairing.ROW_SPECIALS
  )
  return {
    "shard": shard,
    "examples": count,
    "random_next": int(totals[0]),
    "tokens": int(totals[1]) + count * specials,
    "sha256": records.file_hash(path),
  }


def _write_rows(writer, rows: list[pairing.Example]) -> np.ndarray:
  """Writes examples; returns how many are random, and their tokens."""
  if not rows:
    return np.zeros(2, np.int64)
  block = np.array(rows, records.EXAMPLE)
  writer.write_rows(block)
  lengths = block["a_length"].sum() + block["b_length"].sum()
  return np.array([block["is_random"].sum(), lengths])


def _examples_of(job, table, rng, dupe) -> Iterator[list[pairing.Example]]:
  """Lists of examples of one pass over a shard."""
  first, end = table.shard(job["index"])
  if first == end:
    return
  if job["pairing"] == "full_sentences":
    starts: list[int] = []
    documents = []
    for i in range(first, end):
      boundaries = table.boundaries(i).tolist()
      documents.append(boundaries[0])
      starts += boundaries[:-1]
    starts.append(boundaries[-1] + 1)
    documents.append(starts[-1])
    # Later passes begin at another sentence of the first row, so that rows
    # are cut elsewhere.
    limit = job["seq_len"] - pairing.ROW_SPECIALS
    row = bisect.bisect_right(starts, starts[0] + limit)
    skip = rng.randrange(row) if dupe else 0
    yield list(
      pairing.full_sentences(starts[skip:], frozenset(documents), limit)
    )
    return
  total = len(table)
  for i in range(first, end):

    def other(here=i):
      # Ten tries, then even the same document (create_pretraining_data.py:279).
      for _ in range(_RANDOM_DOCUMENT_TRIES):
        j = int(rng.random() * total)
        if j != here:
          break
      return table.boundaries(j)

    yield list(
      pairing.make_pairs(
        table.boundaries(i).tolist(),
        job["seq_len"] - pairing.PAIR_SPECIALS,
        job["short_seq_rate"],
        rng,
        other,
      )
    )


def _packed_share(data: Any, folder: str, split: str) -> str:
  """What packing makes of the useful share, in words; "" where there is none.

  Args:
    data: the `data` group of a config.
    folder: DATA.
    split: one of records.SPLITS.
  """
  name = records.examples_name(data)
  table = indexes.read_length_counts(folder, name, split)
  patterns = packing.pack_histogram(
    table.sum(0), data.seq_len, data.max_sequences
  )
  if data.max_sequences == 1 or not patterns.num_rows:
    return ""
  share = patterns.num_tokens / (patterns.num_rows * data.seq_len)
  return (
    f", {100 * share:.1f} % when up to {data.max_sequences} share a row "
    f"({patterns.num_rows:,} rows)"
  )


def _report(
  data: Any, folder: str, manifest: dict, token_secs: float, secs: float
) -> None:
  """Prints what was made and what to run next."""
  totals, tokens = manifest["totals"], manifests.read_manifest(folder)["totals"]
  for split in records.SPLITS:
    t, e = tokens[split], totals[split]
    if not t["documents"]:
      continue
    length = manifest["settings"]["seq_len"]
    useful = e["tokens"] / max(e["examples"] * length, 1)
    print(
      f"{split}: {t['documents']:,} documents, {t['sentences']:,} sentences,"
      f" {t['tokens']:,} tokens ({t['unknown']:,} unknown) ->"
      f" {e['examples']:,} examples of {length},"
      f" {100 * useful:.1f} % of their tokens useful"
      + _packed_share(data, folder, split)
    )
  made = sum(totals[s]["examples"] for s in records.SPLITS)
  print(
    f"{secs:.1f} s in all, {token_secs:.1f} s of it vocabulary and tokens:"
    f" {made / secs:,.0f} examples/s. Train on it with"
    f" --config.data.dir={folder}"
  )
