"""Tags of words, such as named entities (BERT paper, section 5.3)."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
import logging
from typing import Any

import numpy as np

from bert_jax.data import batch_keys
from bert_jax.kinds import answers
from bert_jax.kinds import classify
from bert_jax.kinds import losses
from bert_jax.kinds import task_kind
from bert_jax.tasks import features as task_features
from bert_jax.tasks import own
from bert_jax.tasks import own_tags
from bert_jax.tasks import spec
from bert_jax.tasks import tag_schemes
from bert_jax.tasks import words as word_lib
from bert_jax.tasks.features import IGNORED

_log = logging.getLogger(__name__)

# The metrics of own data whose tags are chunks; own_tags.py has the others.
_ENTITY_METRICS = ("entity_f1", "precision", "recall", "accuracy")
CONTEXTS = ("sentence", "document")


# --- Metrics; seqeval is slow to import ---


def _of_seqeval(function: str, is_of_entities: bool = True) -> task_kind.Score:
  """Makes a metric from a function of seqeval.

  Args:
    function: a function of seqeval.metrics.
    is_of_entities: whether it counts whole entities, as conlleval does, and is
      not defined without any.
  """

  def count(task, guess, right) -> float:
    import seqeval.metrics

    if not is_of_entities:
      return getattr(seqeval.metrics, function)(right, guess)
    if all(tag == "O" for tags in (*right, *guess) for tag in tags):
      return task_kind.undefined(
        task, function, "no example and no prediction has an entity"
      )
    return getattr(seqeval.metrics, function)(right, guess, zero_division=0)

  return count


def _macro_f1(task, guess, right) -> float:
  """Returns the mean of F1 over all tags that occur, word by word."""
  import sklearn.metrics

  del task
  return sklearn.metrics.f1_score(
    list(itertools.chain.from_iterable(right)),
    list(itertools.chain.from_iterable(guess)),
    average="macro",
    zero_division=0.0,
  )


def _entity_table(guess, right) -> str:
  """Returns precision, recall and F1 of each type of entity."""
  import seqeval.metrics

  def is_empty(rows):
    return all(tag == "O" for tags in rows for tag in tags)

  if is_empty(guess) and is_empty(right):
    return ""
  report = seqeval.metrics.classification_report(
    right, guess, output_dict=True, zero_division=0
  )
  names = [name for name in report if not name.endswith(" avg")]
  width = max(map(len, (*names, "entity")))
  lines = [f"{'entity':<{width}}  precision  recall     F1  entities"]
  for name in names:
    row = report[name]
    lines.append(
      f"{name:<{width}}  {row['precision']:9.3f}  {row['recall']:6.3f}  "
      f"{row['f1-score']:5.3f}  {int(row['support']):8,d}"
    )
  return "\n".join(lines)


# --- Features ---


@dataclasses.dataclass
class _Row:
  """Tokens of a sentence without special tokens.

  Attributes:
    ids: the token ids.
    words: for each token the index of the word that it begins, or IGNORED.
  """

  ids: list[int]
  words: list[int]


def _encode_words(examples, tokenizer, room) -> tuple[list[_Row], list[int]]:
  """Encodes every sentence; also returns the tokens of each truncated word."""
  words = [word for example in examples for word in example.words]
  distinct = list(dict.fromkeys(words))
  ids_of = dict(zip(distinct, tokenizer.encode_words(distinct), strict=True))
  encoded = iter([ids_of[word] for word in words])
  sentences = []
  too_long = []
  for example in examples:
    sentence = _Row([], [])
    for index, ids in enumerate(itertools.islice(encoded, len(example.words))):
      if len(ids) > room:
        too_long.append(len(ids))
      ids = ids[:room] or [tokenizer.unk_id]
      sentence.ids += ids
      sentence.words += [index] + [IGNORED] * (len(ids) - 1)
    sentences.append(sentence)
  return sentences, too_long


def _cut_words(
  examples, sentences, too_long, room, seq_len
) -> task_features.Cut:
  """Describes the words that are longer than a sequence has room for."""
  lost = sum(length - room for length in too_long)
  return task_features.Cut(
    "words",
    len(too_long),
    sum(len(example.words) for example in examples),
    lost,
    sum(len(sentence.ids) for sentence in sentences) + lost,
    max(too_long, default=0) + seq_len - room,  # with special tokens
    "data.seq_len",
    seq_len,
  )


def _parts(words: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
  """Cuts a sentence between words into as few parts as fit.

  Args:
    words: as in `_Row`.
    room: the most tokens of a part.

  Yields:
    The range of tokens of each part.
  """
  start = 0
  while len(words) - start > room:
    end = start + room
    while words[end] == IGNORED:
      end -= 1
    yield start, end
    start = end
  yield start, len(words)


def _sentence_rows(sentences, room) -> Iterator[tuple[int, _Row]]:
  """Yields (index of the example, row) for each part of each sentence."""
  for owner, sentence in enumerate(sentences):
    for start, end in _parts(sentence.words, room):
      yield owner, _Row(sentence.ids[start:end], sentence.words[start:end])


def _document_rows(
  task, examples, sentences, room
) -> Iterator[tuple[int, _Row]]:
  """Yields the same, with the words around each part, which have no labels.

  Source: section 5.3, "the maximal document context provided by the data"
  """
  documents = [example.document for example in examples]
  groups = [
    list(group)
    for _, group in itertools.groupby(
      range(len(examples)), documents.__getitem__
    )
  ]
  if len(groups) == len(examples) > 1:
    raise spec.TaskError(
      f"task {task.name}: context='document', but every sentence is its own"
      " document, as in a file without -DOCSTART- lines; use"
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
        yield owner, _Row(ids[left:right], row)
      base += len(words)


def _surround(
  start: int, end: int, is_start: Sequence[bool], room: int
) -> tuple[int, int]:
  """Extends a range of tokens of a document on both sides, by whole words.

  Args:
    start: the first token of the range.
    end: the token after the last one of the range.
    is_start: for each token of the document whether it begins a word, followed
      by True.
    room: the most tokens of the extended range.

  Returns:
    The first token of the extended range, and the one after its last.
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


def _by_example(features: task_features.Features, values: list) -> list[list]:
  """Groups values of words, in the order of the features, by their example."""
  is_word = features.words != IGNORED
  owners = np.repeat(features.example, features.lengths)[is_word]
  found: list[list] = [[] for _ in range(features.num_examples)]
  # The words of an example are in their order.
  for owner, value in zip(owners.tolist(), values, strict=True):
    found[owner].append(value)
  return found


# --- The kind ---


class Tag(task_kind.TaskKind):
  """Gives every word a tag, which its first token predicts.

  A word without tokens, such as a control character, becomes [UNK]. A word that
  is longer than a whole sequence is truncated.
  """

  name = "tag"
  labels = batch_keys.Labels({"label": ("BL", np.int32)})
  pooled = False
  scores = {
    "entity_f1": _of_seqeval("f1_score"),
    "precision": _of_seqeval("precision_score"),
    "recall": _of_seqeval("recall_score"),
    "accuracy": _of_seqeval("accuracy_score", is_of_entities=False),
    "macro_f1": _macro_f1,
  }
  forms = {
    "tag": own.Form(
      _ENTITY_METRICS, (1, 1), own_tags.read, own_tags.complete, ("words",)
    )
  }
  feature_settings = ("context",)

  loss_settings = task_kind.LOSS_SETTINGS

  def loss(self, outputs, batch, options=losses.PLAIN):
    return losses.class_cross_entropy(
      outputs, batch["label"], batch["weight"], options
    )

  def degenerate(self, task, predictions, examples):
    guesses = {tag for tags in predictions for tag in tags}
    right = {tag for example in examples for tag in example.labels}
    if len(guesses) > 1 or len(right) < 2:
      return ""
    return f"all words get the tag {next(iter(guesses), '')!r}"

  def _features(self, task, examples, tokenizer, seq_len, context="sentence"):
    """Makes one sequence of each sentence, or several if it is too long.

    With context="document", the sequence is filled with the text around the
    sentence, half of it on either side; these words have no labels.
    """
    if context not in CONTEXTS:
      raise spec.TaskError(
        f"task.context={context!r}; use one of {', '.join(CONTEXTS)}"
      )
    template = tokenizer.template
    room = seq_len - template.num_special(is_pair=False)
    sentences, too_long = _encode_words(examples, tokenizer, room)
    if context == "document":
      rows = list(_document_rows(task, examples, sentences, room))
    else:
      rows = list(_sentence_rows(sentences, room))
    before, _, after = (
      [IGNORED] * len(roles) for roles in template.around(is_pair=False)
    )
    words = [[*before, *row.words, *after] for _, row in rows]
    features = task_features.Features(
      **task_features.columns_of(
        [template.build(tokenizer, row.ids) for _, row in rows]
      ),
      example=np.array([owner for owner, _ in rows], np.int32),
      label=None,
      cut=_cut_words(examples, sentences, too_long, room, seq_len),
      words=np.array(list(itertools.chain.from_iterable(words)), np.int32),
      labels=self.labels,
    )
    if not spec.have_labels(task, examples):
      return features
    ids = [
      [spec.label_id(task, x, f"sentence {e.id}") for x in e.labels]
      for e in examples
    ]
    label = [
      IGNORED if word == IGNORED else ids[owner][word]
      for (owner, _), places in zip(rows, words, strict=True)
      for word in places
    ]
    return dataclasses.replace(features, label=np.array(label, np.int32))

  def _decode(self, task, features, outputs, **options):
    """Joins the tags of all sequences of a sentence."""
    best = outputs[features.words != IGNORED].argmax(axis=1)
    return [
      tuple(task.labels[label] for label in found)
      for found in _by_example(features, best.tolist())
    ]

  def confidences(
    self, features: task_features.Features, outputs: np.ndarray
  ) -> list[list[float]]:
    """Returns the probability of the tag of each word of each example.

    Args:
      features: the features from which the outputs were computed.
      outputs: as for `decode`.
    """
    of_words = np.asarray(outputs, np.float64)[features.words != IGNORED]
    weights = np.exp(of_words - of_words.max(axis=1, keepdims=True))
    best = weights.max(axis=1) / weights.sum(axis=1)
    return _by_example(features, best.tolist())

  def _columns(self, task, predictions, examples):
    for guess, example in zip(predictions, examples, strict=True):
      if len(guess) != len(example.words):
        raise spec.TaskError(
          f"task {task.name}: {len(guess)} tags for the {len(example.words)}"
          f" words of sentence {example.id}"
        )
    return [list(p) for p in predictions], [list(e.labels) for e in examples]

  def tables(self, task, examples, predictions):
    guess, right = self._columns(task, predictions, examples)
    if tag_schemes.is_chunked(task.labels):
      return _entity_table(guess, right)
    return classify.class_tables(
      task.labels, *self._ids_of_words(task, examples, predictions)
    )

  def confusion(self, task, examples, predictions):
    columns = self._ids_of_words(task, examples, predictions)
    return classify.count_pairs(len(task.labels), *columns)

  def _ids_of_words(self, task, examples, predictions) -> tuple[list, list]:
    """Returns the ids of the predicted and of the right tags of all words."""
    guess, right = self._columns(task, predictions, examples)
    ids = {label: id for id, label in enumerate(task.labels)}
    return (
      [ids[tag] for tags in guess for tag in tags],
      [ids[tag] for tags in right for tag in tags],
    )

  def row(self, task, prediction):
    return {"tags": list(prediction)}

  def gold(self, task, example):
    return list(example.labels)


TAG = Tag()


class Answerer(answers.TaskAnswerer):
  """Gives every word its tag; long sentences are read in parts.

  If tags mark chunks, the answer also lists the entities: the type, the words
  and characters that they span, and the mean probability of their tags. A
  text is split into words as the words of the training were.

  A model that was trained with `task.context=document` reads neighboring lines
  with the same `document` as one document.
  """

  name = "tag"
  parts = ("task",)
  kind = TAG
  fields = record_fields = ("text", "words")

  def __init__(self, context: answers.Context):
    super().__init__(context)
    self.in_documents = context.settings.get("task.context") == "document"
    split = context.settings.get("task.word_split", "spaces")
    self._split = split if split in word_lib.SPLITS else "spaces"
    self._is_chunked = tag_schemes.is_chunked(self._task.labels)
    # The `document` of the last line, and its number.
    self._last: tuple[Any, int] = (None, 0)
    self._warned = False

  def join(self, values: Sequence[Any]) -> dict[str, Any]:
    return {"words" if isinstance(values[0], list) else "text": values[0]}

  def parse(self, record: Mapping[str, Any]) -> list[Any]:
    places = None
    if record.get("words") is not None:
      found = answers.texts_of(record, "words")
    else:
      text = answers.text_of(record, "text")
      places = tuple(word_lib.places(text, self._split))
      found = [text[start:end] for start, end in places]
    document = self._document(record)
    return [spec.TagExample("", tuple(found), None, document, places)]

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
    # Sentences that are their own documents have no text around them.
    documents = len({example.document for example in examples})
    in_documents = self.in_documents and documents < len(examples)
    return self.kind.make_features(
      self._task,
      examples,
      self.tokenizer,
      seq_len=self.context.seq_len,
      context="document" if in_documents else "sentence",
    )

  def results(
    self, window: answers.Window, outputs: Sequence[answers.Outputs]
  ) -> Iterator[dict]:
    found = super().results(window, outputs)
    if not self._is_chunked:
      yield from found
      return
    flat = np.concatenate([output["logits"] for output in outputs])
    confidences = self.kind.confidences(window.features, flat)
    for example, scores, result in zip(
      window.examples, confidences, found, strict=True
    ):
      yield result | {"entities": _entities(example, result["labels"], scores)}

  def answer(self, example, prediction):
    return {"words": list(example.words), "labels": list(prediction)}


def _entities(
  example: spec.TagExample, tags: Sequence[str], scores: Sequence[float]
) -> list[dict[str, Any]]:
  """Returns the chunks of a sentence.

  Args:
    example: the sentence.
    tags: the tag of each word.
    scores: the probability of each of these tags.

  Returns:
    For each chunk its type, its words as "text", the first word and the one
    after the last ("first_word", "end_word"), if the words come from a text
    also the range of its characters ("start", "end"), and "score", the mean
    of the probabilities.
  """
  found = []
  for type, first, end in tag_schemes.chunks(tags):
    entity: dict[str, Any] = {"type": type}
    entity["text"] = " ".join(example.words[first:end])
    if example.offsets is not None:
      entity["text"] = _text_between(example, first, end)
      entity["start"] = example.offsets[first][0]
      entity["end"] = example.offsets[end - 1][1]
    entity |= {"first_word": first, "end_word": end}
    entity["score"] = float(np.mean(scores[first:end]))
    found.append(entity)
  return found


def _text_between(example: spec.TagExample, first: int, end: int) -> str:
  """Returns some words as the text has them, with one space for any gap."""
  assert example.offsets is not None
  text = example.words[first]
  for at in range(first + 1, end):
    has_gap = example.offsets[at][0] > example.offsets[at - 1][1]
    text += " " * has_gap + example.words[at]
  return text
