"""A label of every word, such as the entity it belongs to (BERT paper, 5.3)."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
import logging
from typing import Any

import numpy as np

from bert_jax.data import batch_keys
from bert_jax.kinds import answers
from bert_jax.kinds import losses
from bert_jax.kinds import task_kind
from bert_jax.tasks import features as task_features
from bert_jax.tasks import own
from bert_jax.tasks import spec
from bert_jax.tasks.features import IGNORED

_log = logging.getLogger(__name__)

CONTEXTS = ("sentence", "document")


# --- Metrics; seqeval is slow to import ---


def _of_seqeval(function: str, is_of_entities: bool = True) -> task_kind.Score:
  """Makes a metric of seqeval: of whole entities, as conlleval counts them."""

  def count(task, guess, right) -> float:
    import seqeval.metrics

    if not is_of_entities:
      return getattr(seqeval.metrics, function)(right, guess)
    if all(tag == "O" for tags in (*right, *guess) for tag in tags):
      return task_kind.undefined(
        task, function, "there is no entity, nor one predicted"
      )
    return getattr(seqeval.metrics, function)(right, guess, zero_division=0)

  return count


# --- Features ---


@dataclasses.dataclass
class _Sentence:
  """Pieces of a sentence: ids, and for each its word or IGNORED."""

  ids: list[int]
  words: list[int]


def _cut_words(examples, tokenizer, room) -> tuple[list[_Sentence], int]:
  """The pieces of every sentence, and how many words lost some of theirs."""
  words = [word for example in examples for word in example.words]
  pieces = iter(task_features.encode(tokenizer, words))
  sentences = []
  num_truncated = 0
  for example in examples:
    sentence = _Sentence([], [])
    for index, ids in enumerate(itertools.islice(pieces, len(example.words))):
      num_truncated += len(ids) > room
      ids = ids[:room] or [tokenizer.unk_id]
      sentence.ids += ids
      sentence.words += [index] + [IGNORED] * (len(ids) - 1)
    sentences.append(sentence)
  return sentences, num_truncated


def _parts(words: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
  """Cuts a sentence between words into as few parts as fit.

  Args:
    words: for each piece its word, IGNORED for all but the first.
    room: pieces that a part may have.

  Yields:
    The first piece of each part and the one after its last.
  """
  start = 0
  while len(words) - start > room:
    end = start + room
    while words[end] == IGNORED:
      end -= 1
    yield start, end
    start = end
  yield start, len(words)


def _sentence_rows(sentences, room) -> Iterator[tuple[int, _Sentence]]:
  """(example, what the encoder reads) of each part of each sentence."""
  for owner, sentence in enumerate(sentences):
    for start, end in _parts(sentence.words, room):
      yield owner, _Sentence(sentence.ids[start:end], sentence.words[start:end])


def _document_rows(
  task, examples, sentences, room
) -> Iterator[tuple[int, _Sentence]]:
  """The same, with the words around it, none of which is predicted.

  Source: section 5.3, "the maximal document context provided by the data"
  """
  groups = [
    list(group)
    for _, group in itertools.groupby(
      range(len(examples)), key=lambda i: examples[i].document
    )
  ]
  if len(groups) == len(examples) > 1:
    raise spec.TaskError(
      f"task {task.name}: context='document', but every sentence is a document"
      " of its own, as where a file has no -DOCSTART- lines; use"
      " context='sentence'"
    )
  for group in groups:
    ids = [i for owner in group for i in sentences[owner].ids]
    starts = [w != IGNORED for owner in group for w in sentences[owner].words]
    starts.append(True)
    base = 0
    for owner in group:
      words = sentences[owner].words
      for start, end in _parts(words, room):
        left, right = _surround(base + start, base + end, starts, room)
        row = [IGNORED] * (right - left)
        row[base + start - left : base + end - left] = words[start:end]
        yield owner, _Sentence(ids[left:right], row)
      base += len(words)


def _surround(
  start: int, end: int, is_start: Sequence[bool], room: int
) -> tuple[int, int]:
  """Widens a stretch of a document on both sides, by whole words.

  Args:
    start: its first piece.
    end: the piece after its last.
    is_start: for each piece of the document whether it starts a word, with
      True after the last.
    room: pieces that it may have in the end.

  Returns:
    The first piece, and the one after the last.
  """
  size = len(is_start) - 1
  spare = room - (end - start)
  right = min(size, end + max((spare + 1) // 2, spare - start))
  left = max(0, right - room)
  while not is_start[left]:
    left += 1
  while not is_start[right]:
    right -= 1
  return left, right


# --- The kind ---


class Tag(task_kind.TaskKind):
  """A label of every word, read at its first piece.

  A word that the tokenizer makes nothing of, such as a control character,
  becomes [UNK]; pieces of a word beyond the whole length are dropped.
  """

  name = "tag"
  labels = batch_keys.Labels({"label": ("BL", np.int32)})
  pooled = False
  scores = {
    "accuracy": _of_seqeval("accuracy_score", is_of_entities=False),
    "entity_f1": _of_seqeval("f1_score"),
    "precision": _of_seqeval("precision_score"),
    "recall": _of_seqeval("recall_score"),
  }
  forms = {
    "tag": own.Form(
      "tag",
      (1, 1),
      ("entity_f1", "precision", "recall", "accuracy"),
      own.read_tags,
      own.tag_labels,
    )
  }
  feature_settings = ("context",)

  def loss(self, outputs, batch):
    return losses.cross_entropy(outputs, batch["label"], batch["weight"])

  def _features(self, task, examples, tokenizer, seq_len, context="sentence"):
    """A sequence a sentence, or several for one that is too long.

    With context="document" as much of its document as fits stands around a
    sentence, half of it on either side; only its own words are labelled.
    """
    if context not in CONTEXTS:
      raise spec.TaskError(
        f"context={context!r}; use one of {', '.join(CONTEXTS)}"
      )
    template = tokenizer.template
    room = seq_len - template.num_special(is_pair=False)
    sentences, num_truncated = _cut_words(examples, tokenizer, room)
    if context == "document":
      rows = list(_document_rows(task, examples, sentences, room))
    else:
      rows = list(_sentence_rows(sentences, room))
    before, _, after = (
      [IGNORED] * len(roles) for roles in template.around(is_pair=False)
    )
    built = [template.build(tokenizer, row.ids) for _, row in rows]
    words = [[*before, *row.words, *after] for _, row in rows]
    label = None
    if spec.have_labels(task, examples):
      ids = [
        [spec.label_id(task, x, f"sentence {e.id}") for x in e.labels]
        for e in examples
      ]
      label = np.array(
        [
          IGNORED if word == IGNORED else ids[owner][word]
          for (owner, _), places in zip(rows, words, strict=True)
          for word in places
        ],
        np.int32,
      )
    return task_features.Features(
      **task_features.columns_of(built),
      example=np.array([owner for owner, _ in rows], np.int32),
      label=label,
      num_truncated=num_truncated,
      words=np.array([w for places in words for w in places], np.int32),
      labels=self.labels,
    )

  def _decode(self, task, features, outputs, **options):
    """The tags of all pieces of a sentence, joined again."""
    best = outputs.argmax(axis=1)
    owners = np.repeat(features.example, features.lengths)
    is_word = features.words != IGNORED
    tags: list[dict[int, str]] = [{} for _ in range(features.num_examples)]
    for owner, word, label in zip(
      owners[is_word].tolist(),
      features.words[is_word].tolist(),
      best[is_word].tolist(),
      strict=True,
    ):
      tags[owner][word] = task.labels[label]
    return [tuple(found[word] for word in range(len(found))) for found in tags]

  def _columns(self, task, predictions, examples):
    for guess, example in zip(predictions, examples, strict=True):
      if len(guess) != len(example.words):
        raise spec.TaskError(
          f"task {task.name}: {len(guess)} tags for the {len(example.words)}"
          f" words of sentence {example.id}"
        )
    return [list(p) for p in predictions], [list(e.labels) for e in examples]

  def row(self, task, prediction):
    return {"tags": list(prediction)}

  def gold(self, task, example):
    return list(example.labels)


TAG = Tag()


class Answerer(answers.TaskAnswerer):
  """A label for every word; long sentences are read in parts.

  A model that was trained with `task.context=document` reads neighbouring lines
  whose `document` is the same as one document.
  """

  name = "tag"
  needs = ("task",)
  kind = TAG

  def __init__(self, context: answers.Context):
    super().__init__(context)
    self.in_documents = self.settings.task.get("context") == "document"
    self._last: tuple[Any, int] = (None, 0)  # its `document`, and its number
    self._warned = False

  def parse(self, record: Mapping[str, Any]) -> list[Any]:
    if record.get("words") is not None:
      words = answers.texts_of(record, "words")
    else:
      words = answers.text_of(record, "text").split()
    return [spec.TagExample("", tuple(words), None, self._document(record))]

  def _document(self, record: Mapping[str, Any]) -> int:
    """Returns the number of the document that a line belongs to."""
    name, number = record.get("document"), self._last[1]
    if name is None and self.in_documents and not self._warned:
      self._warned = True
      _log.warning(
        "%s reads each sentence within its document (task.context=document), "
        "but a line has no `document`; lines without one are read alone",
        self.context.name,
      )
    if name is None or name != self._last[0]:
      number += 1
    self._last = name, number
    return number

  def size(self, example: Any) -> int:
    return sum(map(len, example.words))

  def features(self, examples: Sequence[Any]) -> task_features.Features:
    # Sentences that are documents of their own have nothing around them.
    documents = len({example.document for example in examples})
    in_documents = self.in_documents and documents < len(examples)
    return self.kind.make_features(
      self._task,
      examples,
      self.tokenizer,
      seq_len=self.context.seq_len,
      context="document" if in_documents else "sentence",
    )

  def answer(self, example, prediction):
    return {"words": list(example.words), "labels": list(prediction)}
