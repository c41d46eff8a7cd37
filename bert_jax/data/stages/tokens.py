"""Makes the token store from text, one job for each unit.

A job writes one shard for each split and each part of the unit.
"""

from collections.abc import Callable, Iterable
import contextlib
import functools
import itertools
import logging
import os
from typing import Any

import numpy as np

from bert_jax.data import corpus
from bert_jax.data import held_out
from bert_jax.data import segmenters
from bert_jax.data.stages import duplicates
from bert_jax.data.stages import inputs as inputs_lib
from bert_jax.data.stages import stage
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import load
from bert_jax.runtime import files
from bert_jax.runtime import settings

_log = logging.getLogger(__name__)

_TOTALS = ("documents", "sentences", "tokens", "unknown")
# The form of the report of a finished job.
_REPORT = {
  "sha256": manifests.is_text,
  **manifests.each_split(
    [manifests.TOKENS_ROW | dict.fromkeys(_TOTALS, manifests.is_count)]
  ),
}
# That of a job whose text a segmenter cut into words.
_WORDS_REPORT = _REPORT | {"words": manifests.WORDS}


def write(
  prepare: settings.Prepare, inputs: inputs_lib.Inputs, folder: str
) -> None:
  """Tokenises every unit.

  Args:
    prepare: the `prepare` group of the config.
    inputs: the text.
    folder: DATA, which has a vocabulary.

  Raises:
    corpus.CorpusError: the text cannot be read, or there is too little of it.
    records.DataError: tokens that are there were made from other text or with
      other settings.
  """
  tokenizer = load.load_tokenizer(os.path.join(folder, "vocab"))
  asked = _settings(prepare, inputs, tokenizer)
  suffixes, form = ["array_record", *records.TABLES], _REPORT
  if prepare.segmenter:
    segmenters.check(tokenizer)
    suffixes.append(records.WORDS)
    form = _WORDS_REPORT
  target = os.path.join(folder, "tokens")
  work = stage.Stage(prepare, folder, "tokens", target, *suffixes)
  manifest_path = os.path.join(folder, "manifest.json")
  if files.exists(manifest_path):
    manifest = manifests.read_manifest(folder)
    stage.check_same(manifest["settings"], asked, manifest_path)
    inputs.check(_recorded_hashes(manifest, folder), folder)
    if work.is_whole(manifest):
      work.end()
      return
  work.begin(asked)
  jobs = [
    dict(
      name=f"{i:05d}",
      shard=i,
      size=u.size,
      folder=folder,
      unit=vars(u),
      cut_by=prepare.segmenter,
    )
    | asked
    for i, u in enumerate(inputs.units)
  ]
  done = work.finished(jobs, form)
  inputs.check({int(k): v["sha256"] for k, v in done.items()}, folder)
  marks = os.path.join(folder, stage.PROGRESS, "duplicates")
  dropped = duplicates.find(prepare, inputs, marks)
  for job, numbers in zip(jobs, dropped, strict=True):
    job["dropped"] = numbers
  results = work.run(tokenize_unit, jobs, "tokenise", form)
  shards = {s: [row for r in results for row in r[s]] for s in records.SPLITS}
  _write_counts(work, shards, tokenizer)
  totals = stage.sum_rows(shards, _TOTALS)
  _check_documents(totals, prepare.held_out_rate)
  if num_null := sum(report.get("null_texts", 0) for report in results):
    _log.warning("left out %d records whose text is null", num_null)
  work.end(
      manifest_path,
      settings=asked,
      **_counts(prepare, results, dropped),
      vocab_size=tokenizer.vocab_size,
      inputs=[
          dict(file=os.path.basename(u.path), start=u.start, end=u.end,
               sha256=r["sha256"])
          for u, r in zip(inputs.units, results, strict=True)
      ],
      totals=totals,
      shards=shards,
  )  # fmt: skip


def _settings(
  prepare: settings.Prepare,
  inputs: inputs_lib.Inputs,
  tokenizer: interface.Tokenizer,
) -> dict[str, Any]:
  """Returns what the tokens depend on, as the manifest records it."""
  has_records = {"tfds", *corpus.RECORD_FORMATS}.intersection(inputs.formats)
  asked = {
    "format": "+".join(inputs.formats) or prepare.format,
    "held_out_rate": prepare.held_out_rate,
    "held_out_seed": prepare.held_out_seed,
    "language": "" if inputs.formats == ["sentences"] else prepare.language,
    "text_key": prepare.text_key if has_records else "",
    "units": inputs.cuts_hash(),
    "vocab": tokenizer.fingerprint,
  }
  if any(unit.held_out_sentences for unit in inputs.units):
    asked["held_out_by"] = held_out.BY_SENTENCES
  if prepare.segmenter:
    asked["segmenter"] = segmenters.load(prepare.segmenter).record
  if prepare.duplicates != "keep":
    asked["duplicates"] = prepare.duplicates
  return asked


def _counts(
  prepare: settings.Prepare, results: list[dict], dropped: list[list[int]]
) -> dict[str, Any]:
  """Returns the counts that the manifest has for some settings alone.

  Args:
    prepare: the `prepare` group of the config.
    results: the reports of `tokenize_unit`.
    dropped: the numbers of the documents of each unit that were left out.
  """
  more: dict[str, Any] = {}
  if prepare.segmenter:
    more["words"] = {
      key: sum(report["words"][key] for report in results)
      for key in manifests.WORDS
    }
  if prepare.duplicates != "keep":
    more["dropped_documents"] = sum(map(len, dropped))
    _log.info("dropped %d repeated documents", more["dropped_documents"])
  return more


def _recorded_hashes(manifest: dict, folder: str) -> dict[int, str]:
  """Returns number of a unit -> SHA-256 of the text that was tokenised.

  Raises:
    records.DataError: the manifest does not record it.
  """
  form = {"inputs": [{"sha256": manifests.is_text}]}
  if not manifests.has_form(manifest, form):
    raise records.DataError(
      f"{folder}/manifest.json does not record the content of its inputs; give "
      "another --output, or no --input to add examples to its tokens"
    )
  return {i: row["sha256"] for i, row in enumerate(manifest["inputs"])}


def _write_counts(work: stage.Stage, shards: dict, tokenizer) -> None:
  """Writes how often each id occurs in a split, 0 for special tokens."""
  for split, rows in shards.items():
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for path in records.shard_paths(work.progress, split, rows, "npy"):
      counts += records.read_array(path, np.int64, 1)
    counts[list(tokenizer.special_ids)] = 0
    path = os.path.join(work.target, f"{split}.counts.npy")
    records.write_array(path, counts)


def _check_documents(totals: dict[str, dict], held_out_rate: float) -> None:
  num_train = totals["train"]["documents"]
  if not num_train:
    raise corpus.CorpusError("the input holds no document with any token")
  if held_out_rate and not totals["validation"]["documents"]:
    raise corpus.CorpusError(
      f"prepare.held_out_rate={held_out_rate} held out none of {num_train} "
      "documents with any token; raise it, or set 0 to train on all without an "
      "evaluation"
    )


@functools.lru_cache(1)
def _tokenizer(folder: str, fingerprint: str):
  del fingerprint  # it is an argument so that the cache forgets other ones
  return load.load_tokenizer(os.path.join(folder, "vocab"))


@functools.lru_cache(1)
def _segmenter(name: str, record: str) -> segmenters.Segmenter:
  """Loads the segmenter of a job.

  Args:
    name: prepare.segmenter.
    record: what it was when the preparation began.
  """
  segmenter = segmenters.load(name)
  if segmenter.record != record:
    raise segmenters.SegmenterError(
      f"{segmenters.KEY}={name} is now {segmenter.record}, and was {record} "
      "when this preparation began; start it again"
    )
  return segmenter


def _encoder(
  job: dict,
) -> tuple[Callable[..., tuple], segmenters.WordMarker | None]:
  """Returns what encodes the sentences of a document.

  Args:
    job: as for `tokenize_unit`.

  Returns:
    A function that returns, of the sentences that have tokens, the ids and, if
    a segmenter cuts the text into words, the marks, as `TokenWriter.add` takes
    them; and what counts the words.
  """
  tokenizer = _tokenizer(job["folder"], job["vocab"])
  if "segmenter" not in job:
    return lambda sentences: (
      [ids for ids in tokenizer.encode_sentences(sentences) if ids],
    ), None
  segmenter = _segmenter(job["cut_by"], job["segmenter"])
  marker = segmenters.WordMarker(segmenter, tokenizer)

  def encode(sentences: list[str]) -> tuple:
    found = [x for x in map(marker.encode, sentences) if x[0]]
    return [ids for ids, _ in found], [marks for _, marks in found]

  return encode, marker


def tokenize_unit(job: dict) -> dict:
  """Writes the shards of one unit of text.

  Args:
    job: a dict of shard, folder, unit (a corpus.Unit as a dict), dropped (the
      numbers of its documents to leave out) and the settings of the stage.

  Returns:
    split -> the rows of its shards in the manifest; and the SHA-256 of the
    bytes read, under "sha256".
  """
  reading = corpus.Reading()
  unit = corpus.Unit(**job["unit"])
  split = held_out.Splitter(unit, job["held_out_rate"], job["held_out_seed"])
  result: dict[str, Any] = {split: [] for split in records.SPLITS}
  parts = corpus.read_parts(
    unit, job["format"], job["text_key"], job["language"], reading
  )
  encode, marker = _encoder(job)
  numbers = itertools.count()  # of the documents of the unit
  for part, documents in enumerate(parts):
    shard = records.shard_of_part(job["shard"], part)
    numbered = zip(numbers, documents, strict=False)
    for name, row in _write_shard(job, shard, numbered, split, encode).items():
      result[name].append(row)
  if marker:
    result["words"] = {
      "chinese_tokens": marker.num_chinese,
      "joined_tokens": marker.num_joined,
    }
  return result | {
    "sha256": reading.hexdigest(),
    "null_texts": reading.num_null,
  }


def _write_shard(
  job: dict,
  shard: records.Shard,
  documents: Iterable[tuple[int, list[str]]],
  divide: held_out.Splitter,
  encode: Callable[..., tuple],
) -> dict[str, dict]:
  """Writes the documents of a part, one shard for each split that has some.

  Args:
    job: as for `tokenize_unit`.
    shard: the shard to write.
    documents: number in the unit and sentences of each document.
    divide: divides them between the splits.
    encode: from `_encoder`.

  Returns:
    split -> the row of its shard in the manifest.
  """
  tokenizer = _tokenizer(job["folder"], job["vocab"])
  dropped = frozenset(job["dropped"])
  folder = os.path.join(job["folder"], "tokens")
  with contextlib.ExitStack() as stack:
    writers = {
      split: stack.enter_context(
        records.TokenWriter(
          folder,
          split,
          shard,
          tokenizer.vocab_size,
          tokenizer.sep_id,
          has_words="segmenter" in job,
        )
      )
      for split in records.SPLITS
    }
    for number, document in documents:
      for is_held_out, sentences in divide(document):
        if number in dropped:
          continue
        encoded = encode(sentences)
        if encoded[0]:
          writers[records.SPLITS[is_held_out]].add(*encoded)
  rows = {}
  for split, writer in writers.items():
    if writer.num_documents:
      progress = os.path.join(job["folder"], stage.PROGRESS, "tokens")
      path = records.shard_path(progress, split, shard, "npy")
      records.write_array(path, writer.counts)
      unknown = int(writer.counts[tokenizer.unk_id])
      rows[split] = writer.row() | {"unknown": unknown}
  return rows
