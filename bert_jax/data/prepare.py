"""Prepares data: raw text -> vocabulary -> token store -> examples, on disk.

Each stage maps one function over shards. The content of a shard depends only on
the text, the settings and the shard's number, so that the bytes are the same
for any number of workers, after a kill, and under Beam. Shards are written
atomically, and a finished shard is not made again.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import logging
import os
import re
import time
from typing import Any

from bert_jax.data import corpus
from bert_jax.data import held_out
from bert_jax.data import masking
from bert_jax.data import packing
from bert_jax.data import segmenters
from bert_jax.data import summary
from bert_jax.data.stages import examples
from bert_jax.data.stages import inputs as inputs_lib
from bert_jax.data.stages import lengths
from bert_jax.data.stages import stage
from bert_jax.data.stages import tokens
from bert_jax.data.stages import vocabulary
from bert_jax.data.store import indexes
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.data.tokenizers import load
from bert_jax.data.tokenizers import word_rules
from bert_jax.runtime import files
from bert_jax.runtime import locks
from bert_jax.runtime import settings
from bert_jax.runtime.settings import Config

_log = logging.getLogger(__name__)

_LOOKED_AT_UNITS, _CHARS_OF_UNIT = 20, 10_000


def prepare(config: Config, patterns: Sequence[str], folder: str) -> None:
  """Makes or completes prepared data.

  Args:
    config: the configuration, of which `prepare` and `data` are read.
    patterns: the inputs, as for corpus.list_units. If there are none, the
      folder must have tokens, and only the examples that config.data asks for
      are made.
    folder: DATA, which is created if it does not exist.

  Raises:
    corpus.CorpusError: the text cannot be read.
    records.DataError: the folder has other data; nothing is overwritten.
    ValueError: a setting is out of range.
  """
  check_settings(config)
  if not patterns:
    # Its error says how to make the data.
    settings_there = manifests.read_manifest(folder)["settings"]
    _check_segmenter(config.prepare.segmenter, settings_there, folder)
  inputs = inputs_lib.Inputs(config.prepare, patterns)
  inputs.units = held_out.choose(
    inputs.units,
    config.prepare,
    needed=2 if config.data.pairing == "pairs" else 1,
    by_sentences=_is_held_out_by_sentences(folder),
  )
  if patterns and config.data.whole_word and not config.prepare.segmenter:
    _look_for_chinese(_beginnings(config.prepare, inputs.units))
  files.make_folder(folder)
  with locks.lock(folder, "--output"):
    _remove_leftovers(folder)
    start = time.monotonic()
    if patterns:
      vocabulary.write(config.prepare, inputs, folder)
      tokens.write(config.prepare, inputs, folder)
    token_secs = time.monotonic() - start
    examples.write(config, folder)
    lengths.write(config, folder)
  _report(config.data, folder, token_secs, time.monotonic() - start)


def _is_held_out_by_sentences(folder: str) -> bool | None:
  """Returns how the tokens in a folder were divided; None if it has none."""
  if not files.exists(os.path.join(folder, "manifest.json")):
    return None
  found = manifests.read_manifest(folder)["settings"].get("held_out_by")
  return found == held_out.BY_SENTENCES


def _check_segmenter(name: str, found: dict, folder: str) -> None:
  """Raises DataError if tokens that are there have the words of another one.

  Args:
    name: prepare.segmenter; "" asks for none.
    found: the settings of the tokens.
    folder: DATA.
  """
  there = found.get("segmenter", "none")
  if name and (asked := segmenters.load(name).record) != there:
    raise records.DataError(
      f"{folder} was prepared with the segmenter {there}, and {segmenters.KEY}="
      f"{name} is {asked}; leave the key out, or prepare the text again with "
      "another --output"
    )


def _beginnings(
  prepare: settings.Prepare, units: list[corpus.Unit]
) -> Iterator[str]:
  """Yields the first sentences of some units from all over the text."""
  units = [unit for unit in units if not unit.held_out]
  for unit in units[:: -(-len(units) // _LOOKED_AT_UNITS) or 1]:
    left = _CHARS_OF_UNIT
    for sentence in vocabulary.sample_text(prepare, [unit]):
      yield sentence
      left -= len(sentence)
      if left < 0:
        break


def _look_for_chinese(sentences: Iterable[str]) -> None:
  """Raises ValueError if text has words that nothing divides.

  Training would refuse the data; this says so before the work is done. Text
  of which Chinese is a small part is left to that check, which counts tokens.

  Args:
    sentences: sentences from all over the text.
  """
  num_chars = num_chinese = num_words = 0
  for sentence in sentences:
    num_chars += len(sentence)
    chinese = sum(map(word_rules.has_ideograph, sentence))
    num_chinese += chinese
    num_words += 0 if chinese else len(sentence.split())
  if num_chinese > num_words:
    raise ValueError(
      f"data.whole_word=True, but {num_chinese:,} of {num_chars:,} characters "
      "from all over the text are Chinese, and nothing says where their words "
      f"begin; add --config.{segmenters.KEY}=jieba (or a list of words), or "
      "set --config.data.whole_word=False"
    )


def check_settings(config: Config) -> None:
  """Raises ValueError if a setting of `prepare` or `data` is out of range."""
  settings.check(config)
  p, d = config.prepare, config.data
  wanted = (
      (p.held_out_rate < 1, "prepare.held_out_rate", p.held_out_rate,
       "a share from 0 to below 1"),
      (d.seq_len >= 8, "data.seq_len", d.seq_len, "8 tokens or more"),
  )  # fmt: skip
  for good, key, value, need in wanted:
    if not good:
      raise ValueError(f"{key}={value!r}; it must be {need}")
  masking.check_max_sequences(d)
  if p.segmenter:
    segmenters.load(p.segmenter)  # an error comes before any work
    if not p.vocab and load.LEARNED[p.vocab_kind].learns_bytes:
      raise ValueError(
        f"{segmenters.KEY}={p.segmenter}: pieces of a byte-level BPE "
        "may be parts of a Chinese character, which cannot be put into words; "
        "use wordpiece or sentencepiece, or leave the segmenter out"
      )


def _remove_leftovers(folder: str) -> None:
  """Deletes the temporary files that a killed preparation left."""
  if files.is_remote(folder):  # where only that leaves something
    return files.remove_unfinished(os.path.join(folder, "vocab"))
  ours = {"vocab", "tokens", "examples", stage.PROGRESS}
  for root, parts, names in os.walk(folder):
    if root == folder:
      parts[:] = ours.intersection(parts)
    for name in names:
      path = os.path.join(root, name)
      if files.is_temporary(name):
        files.remove_abandoned(path)
      elif re.search(r"\.\d+\.tmp$", name):  # the names of older releases
        with contextlib.suppress(FileNotFoundError):
          os.remove(path)


def _report(data: Any, folder: str, token_secs: float, secs: float) -> None:
  """Prints what was made and what to run next."""
  name = records.examples_name(data)
  target = records.examples_folder(folder, name)
  totals = manifests.read_manifest(target)["totals"]
  for text in summary.remarks(data, folder):
    _log.warning("%s", text)
  for split, t in manifests.read_manifest(folder)["totals"].items():
    e = totals[split]
    if not t["documents"]:
      continue
    useful = e["tokens"] / max(e["examples"] * data.seq_len, 1)
    packed = ""
    patterns = packing.pack_histogram(
      indexes.read_length_counts(folder, name, split).sum(0),
      data.seq_len,
      data.max_sequences,
    )
    if data.max_sequences > 1 and patterns.num_rows:
      share = patterns.num_tokens / (patterns.num_rows * data.seq_len)
      packed = (
        f", {100 * share:.1f} % when up to {data.max_sequences} share a row "
        f"({patterns.num_rows:,} rows)"
      )
    cut = summary.cut_share(t, e, data.dupe_factor)
    lost = "" if cut is None else f", {100 * cut:.1f} % of the text cut off"
    print(
      f"{split}: {t['documents']:,} documents, {t['sentences']:,} sentences,"
      f" {t['tokens']:,} tokens ({t['unknown']:,} unknown) ->"
      f" {e['examples']:,} examples of {data.seq_len},"
      f" {100 * useful:.1f} % of their tokens useful{packed}"
      f"{lost}"
    )
  made = sum(e["examples"] for e in totals.values())
  print(
    f"{secs:.1f} s in all, {token_secs:.1f} s of it vocabulary and tokens:"
    f" {made / secs:,.0f} examples/s. Train on it with"
    f" --config.data.dir={folder}"
  )
