"""Copies the vocabulary of prepared data, or learns it."""

from collections.abc import Collection, Iterator
import inspect
import itertools
import logging
import math
import os
from typing import Any
import unicodedata

from bert_jax.data import corpus
from bert_jax.data import held_out
from bert_jax.data.stages import inputs as inputs_lib
from bert_jax.data.stages import stage
from bert_jax.data.store import records
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import load
from bert_jax.runtime import files
from bert_jax.runtime import settings

_log = logging.getLogger(__name__)

# The scripts from Devanagari to Myanmar, whose vowel signs are combining marks.
_BRAHMIC = ("\u0900", "\u109f")
_SIGNS_SHARE = 0.005
_LOOKED_AT_CHARS = 200_000

_ALPHABET_SIZE = settings.KEYS["prepare.alphabet_size"].default


def write(
  prepare: settings.Prepare, inputs: inputs_lib.Inputs, folder: str
) -> None:
  """Copies the vocabulary `prepare.vocab` into DATA/vocab, or learns one.

  Nothing is written if DATA/vocab already holds what these settings ask for: a
  vocabulary that was copied is compared by its contents, one that was learned
  by the settings and the hash of the text that it was learned from.

  Args:
    prepare: the `prepare` group of the config.
    inputs: the text to learn from.
    folder: the folder of the prepared data, DATA above.

  Raises:
    records.DataError: DATA/vocab exists and holds another vocabulary.
  """
  target = os.path.join(folder, "vocab")
  done = os.path.join(target, "settings.json")
  _check_unused(prepare)
  given: interface.Tokenizer | None = None
  if prepare.vocab:
    # A SentencePiece model and a pipeline define their own normalisation.
    is_model = (
      prepare.vocab.endswith(".model")
      or files.glob(os.path.join(files.escape_glob(prepare.vocab), "*.model"))
      or load.is_pipeline(prepare.vocab)
    )
    given = load.load_tokenizer(
      prepare.vocab,
      lower_case=None if is_model else prepare.lower_case,
      strip_accents=prepare.strip_accents,
    )
    asked: dict[str, Any] = {"fingerprint": given.fingerprint}
  else:
    keys = ("vocab", "vocab_kind", "vocab_size", "lower_case")
    asked = {k: getattr(prepare, k) for k in keys} | {
      "sample_bytes": prepare.vocab_sample_bytes,
      "held_out": f"{prepare.held_out_rate:g} by {prepare.held_out_seed}",
      "units": inputs.cuts_hash(),
      "sha256": inputs.sha256(),
    }
    if prepare.strip_accents is not None:
      asked["strip_accents"] = prepare.strip_accents
    if prepare.alphabet_size != _ALPHABET_SIZE:  # older folders lack it
      asked["alphabet_size"] = prepare.alphabet_size
    if "special_tokens" in _learner(prepare)[1]:
      asked["special_tokens"] = prepare.special_tokens
  if files.exists(done):
    _check_older(done, asked, folder)
    return
  if files.exists(target):
    raise records.DataError(
      f"{target} exists, but bert-jax prepare did not make it; give another "
      "--output, or move that folder away"
    )
  strips = getattr(given or prepare, "strip_accents", None)
  if strips is None and not given and "strip_accents" in _learner(prepare)[1]:
    strips = prepare.lower_case
  if strips:  # before learning, which may fail because the signs are gone
    _look_for_vowel_signs(sample_text(prepare, inputs.units))
  tokenizer = given or _learn(prepare, inputs.units)
  with files.whole_folder(target) as whole:
    tokenizer.save(whole)
    records.write_json(os.path.join(whole, "settings.json"), asked)


def _check_older(done: str, asked: dict[str, Any], folder: str) -> None:
  """Raises DataError if an existing vocabulary is not the one asked for.

  Older releases did not record the text that a vocabulary was learned from. In
  this case the manifest of the tokens must identify it.
  """
  found = records.read_json(done)
  target = os.path.dirname(done)
  is_older = isinstance(found, dict) and "sha256" in asked.keys() - found.keys()
  if is_older:
    del asked["sha256"]
  stage.check_same(found, asked, target)
  if is_older and not files.exists(os.path.join(folder, "manifest.json")):
    raise records.DataError(
      f"an older release learned {target} and did not record its text (by "
      "sha256), so this preparation cannot continue with it; delete that "
      "folder to learn the vocabulary again, which keeps finished shards of "
      "the same text, or give another --output"
    )


def _learner(prepare: settings.Prepare) -> tuple[Any, Collection[str]]:
  """Returns what learns a kind of vocabulary, and the options that it takes."""
  learn = load.LEARNED[prepare.vocab_kind].learn
  return learn, inspect.signature(learn).parameters


def _learn(prepare: settings.Prepare, units: list[corpus.Unit]):
  _log.info(
    "learning a %s vocabulary of %d", prepare.vocab_kind, prepare.vocab_size
  )
  options: dict[str, Any] = {}
  learn, takes = _learner(prepare)
  if "special_tokens" in takes:
    options["special_tokens"] = prepare.special_tokens
  if "limit_alphabet" in takes:
    options["limit_alphabet"] = prepare.alphabet_size
  elif prepare.alphabet_size != _ALPHABET_SIZE:
    raise ValueError(
      f"prepare.alphabet_size={prepare.alphabet_size}: learning a "
      f"{prepare.vocab_kind} vocabulary has no such limit; leave it out"
    )
  if "strip_accents" in takes:
    options["strip_accents"] = prepare.strip_accents
  elif prepare.strip_accents is not None:
    raise ValueError(
      f"prepare.strip_accents={prepare.strip_accents} is for "
      "prepare.vocab_kind=wordpiece; leave it out"
    )
  return learn(
    sample_text(prepare, units),
    vocab_size=prepare.vocab_size,
    lower_case=prepare.lower_case,
    **options,
  )


def _check_unused(prepare: settings.Prepare) -> None:
  """Raises ValueError for settings that would have no effect."""
  if prepare.vocab:
    for name in ("alphabet_size", "special_tokens"):
      key = f"prepare.{name}"
      if (value := getattr(prepare, name)) != settings.KEYS[key].default:
        raise ValueError(
          f"{key}={value} is for a vocabulary that is learned, but "
          f"prepare.vocab={prepare.vocab} is given; leave one of them out"
        )
    return
  default = settings.KEYS["prepare.special_tokens"].default
  takes_tokens = "special_tokens" in _learner(prepare)[1]
  if prepare.special_tokens != default and not takes_tokens:
    raise ValueError(
      f"prepare.special_tokens={prepare.special_tokens!r}, but a vocabulary of "
      f"prepare.vocab_kind={prepare.vocab_kind!r} is learned with those of "
      "BERT; leave it out, or set prepare.vocab_kind=byte_bpe"
    )


def _look_for_vowel_signs(sentences: Iterator[str]) -> None:
  """Warns if stripping accents takes the vowel signs of a script.

  Args:
    sentences: the text, of which the start is looked at.
  """
  size = num_signs = 0
  for sentence in sentences:
    size += len(sentence)
    num_signs += sum(
      _BRAHMIC[0] <= char <= _BRAHMIC[1] and unicodedata.category(char) == "Mn"
      for char in sentence
    )
    if size > _LOOKED_AT_CHARS:
      break
  if num_signs > _SIGNS_SHARE * size:
    _log.warning(
      "%.1f %% of the characters are vowel signs and other marks of their "
      "words, and they are stripped as accents; keep them with "
      "--config.prepare.strip_accents=False, or with lower_case=False",
      100 * num_signs / size,
    )


def sample_text(
  prepare: settings.Prepare, units: list[corpus.Unit]
) -> Iterator[str]:
  """Yields sentences from all over the text, without held-out documents.

  Evenly spread units of text files are read, and the beginning of every
  compressed file, because it can be read only from its start.
  """
  units = [unit for unit in units if not unit.held_out]
  sizes = corpus.text_sizes(units, prepare.format, prepare.text_key)
  stride = max(1, -(-sum(sizes) // prepare.vocab_sample_bytes))
  left = prepare.vocab_sample_bytes
  place = itertools.count()  # numbers the units of files that were cut
  owed = 0.0  # the bytes still to read from the compressed files so far
  for unit, size in zip(units, sizes, strict=True):
    is_whole = unit.end < 0
    owed += size / stride if is_whole else 0
    limit = owed if is_whole and stride > 1 else math.inf
    if limit <= 0 or (not is_whole and next(place) % stride):
      continue
    reading = corpus.Reading()
    split = held_out.Splitter(
      unit, prepare.held_out_rate, prepare.held_out_seed
    )
    for document in corpus.read_documents(
      unit, prepare.format, prepare.text_key, prepare.language, reading
    ):
      for is_held_out, part in split(document):
        if not is_held_out:
          yield from part
          left -= sum(map(len, part))
          if left < 0:
            return
      if reading.num_bytes >= limit:
        break
    owed -= reading.num_bytes if is_whole else 0
