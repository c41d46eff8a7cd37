"""Chooses the text that is held out for evaluation.

As a rule whole documents are held out, and each decides for itself, by a hash
of its text. Where documents are too few for that, stretches of sentences are
held out instead. Which of the two is done is decided before any text is
tokenised.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
import logging
import math

from bert_jax.data import corpus
from bert_jax.runtime import settings

_log = logging.getLogger(__name__)

# What the manifest of tokens says of a text without enough documents.
BY_SENTENCES = "sentences"

# A stretch is long enough for some examples, and short beside a chapter.
_STRETCH_SENTENCES = 16
# The sentences that are held out at least, if they are an eighth of the text
# at most.
_LEAST_SENTENCES = 64


class Splitter:
  """Divides the documents of one unit between training and evaluation.

  The documents must be given in their order.
  """

  def __init__(self, unit: corpus.Unit, rate: float, seed: int):
    """Takes the rule.

    Args:
      unit: the unit.
      rate: the share of documents to hold out.
      seed: selects the documents.
    """
    self._unit = unit
    self._rate = rate
    self._seed = seed
    self._next = 0  # the number of the next document's first sentence

  def __call__(
    self, document: Sequence[str]
  ) -> Iterator[tuple[bool, Sequence[str]]]:
    """Yields (whether it is held out, sentences) for the parts of a document.

    Args:
      document: the sentences.
    """
    unit = self._unit
    if unit.held_out or not unit.held_out_sentences:
      yield (
        unit.held_out or corpus.is_held_out(document, self._rate, self._seed),
        document,
      )
      return
    start, self._next = self._next, self._next + len(document)
    at = 0
    for first, end in unit.held_out_sentences:
      first, end = (
        min(max(x - start, at), len(document)) for x in (first, end)
      )
      if first < end:
        if at < first:
          yield False, document[at:first]
        yield True, document[first:end]
        at = end
    if at < len(document):
      yield False, document[at:]


def choose(
  units: Sequence[corpus.Unit],
  prepare: settings.Prepare,
  needed: int,
  by_sentences: bool | None = None,
) -> list[corpus.Unit]:
  """Decides how text is held out, by reading as much of it as that needs.

  Args:
    units: the units of the input.
    prepare: the `prepare` group of the config.
    needed: the documents that a split must have for examples: 2 for pairs.
    by_sentences: how existing tokens were divided; None = decide.

  Returns:
    The units. If stretches of sentences are held out, they say so.

  Raises:
    corpus.CorpusError: the text cannot be read, or is too short to be divided.
  """
  units = list(units)
  rate, seed = prepare.held_out_rate, prepare.held_out_seed
  has_own = any(unit.held_out for unit in units)
  if by_sentences is False:
    return units
  if not rate or has_own:
    if by_sentences is None:
      _check_documents(units, prepare, needed)
    return units
  counts, documents = [], [0, 0]
  for unit in units:
    sentences = 0
    for document in corpus.read_documents(
      unit, prepare.format, prepare.text_key, prepare.language
    ):
      sentences += len(document)
      documents[corpus.is_held_out(document, rate, seed)] += 1
      if not by_sentences and min(documents) >= needed:
        return units
    counts.append(sentences)
  if units and not sum(documents):
    raise corpus.CorpusError("the input holds no document with any sentence")
  stretches = _stretches(sum(counts), rate)
  chosen = sum(end - first for first, end in stretches)
  _log.warning(
    "prepare.held_out_rate=%g would hold out %d of %d documents, too few to "
    "evaluate on; held out %d of %d sentences instead, in %d stretches",
    rate,
    documents[1],
    sum(documents),
    chosen,
    sum(counts),
    len(stretches),
  )
  start = 0
  for i, count in enumerate(counts):
    inside = [
      (max(first - start, 0), min(end - start, count))
      for first, end in stretches
      if first < start + count and end > start
    ]
    units[i] = dataclasses.replace(
      # A unit without any stretch of its own has an empty one.
      units[i],
      held_out_sentences=tuple(inside) or ((0, 0),),
    )
    start += count
  return units


def _check_documents(
  units: Sequence[corpus.Unit], prepare: settings.Prepare, needed: int
) -> None:
  """Raises CorpusError if a split has one document where examples need two.

  Args:
    units: the units, which are not divided by sentences.
    prepare: the `prepare` group of the config.
    needed: as for `choose`.
  """
  rate, seed = prepare.held_out_rate, prepare.held_out_seed
  for is_own, name in ((True, "prepare.held_out_input"), (False, "--input")):
    found = (
      1
      for unit in units
      if unit.held_out == is_own
      for document in corpus.read_documents(
        unit, prepare.format, prepare.text_key, prepare.language
      )
      if is_own or not corpus.is_held_out(document, rate, seed)
    )
    if 0 < sum(itertools.islice(found, needed)) < needed:
      raise corpus.CorpusError(
        f"{name} has one document; random next sentences need two. Separate "
        "documents by blank lines (see prepare.format), give more text, or set "
        "--config.data.pairing=full_sentences and train with "
        "--config.objective=mlm. A single --input is divided if "
        "prepare.held_out_rate is above 0 and prepare.held_out_input is not set"
      )


def _stretches(total: int, rate: float) -> list[tuple[int, int]]:
  """Returns evenly spread stretches of sentences, as (first, end).

  Args:
    total: the number of sentences.
    rate: the share to hold out; short texts give more.

  Raises:
    corpus.CorpusError: there are too few sentences.
  """
  wanted = max(rate * total, min(_LEAST_SENTENCES, total / 8))
  count = max(2, math.ceil(wanted / _STRETCH_SENTENCES))
  size = min(max(1, round(wanted / count)), total // (2 * count))
  if size < 1:
    raise corpus.CorpusError(
      f"the input holds {total} sentences, too few to hold some out; give more "
      "text. If a line is a paragraph, set --config.prepare.format=paragraphs. "
      "To train on all of it, without an evaluation, set "
      "--config.prepare.held_out_rate=0 and "
      "--config.data.pairing=full_sentences, and train with "
      "--config.objective=mlm"
    )
  firsts = [
    (2 * i + 1) * total // (2 * count) - size // 2 for i in range(count)
  ]
  return [(first, first + size) for first in firsts]
