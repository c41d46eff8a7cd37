"""Tags of words in a user's own files.

Three forms are read:

  columns  as in CoNLL: a word and its tag on each line, a blank line between
           sentences. Lines that begin with # before a sentence are comments.
  lists    tables whose columns hold the words and the tags of a sentence
  spans    JSON lines with a text, and marked spans of its characters

A number in the place of a tag is its index in `task.labels`.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
import json
import logging
import re
from typing import Any

from bert_jax.data import compression
from bert_jax.tasks import labels as label_lib
from bert_jax.tasks import ner
from bert_jax.tasks import spec
from bert_jax.tasks import tables
from bert_jax.tasks import tag_schemes
from bert_jax.tasks import words as word_lib

_log = logging.getLogger(__name__)

_DOCUMENT = "-DOCSTART-"
_BLANK = " \t\r\f\v"  # other spaces, such as U+3000, may be words
_SPACES = re.compile(f"[{_BLANK}\n]+")
CONLLU = ".conllu"
CONLLU_COLUMNS = (
  "id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps",
  "misc",
)  # fmt: skip
# The keys of a span in JSON: its type.
_TYPE_KEYS = ("label", "type", "tag", "entity", "entity_group", "class")

Span = tuple[int, int, str]


@dataclasses.dataclass(frozen=True)
class _Sentence:
  """A sentence as its file has it.

  Attributes:
    where: "PATH:LINE" of each word.
    words: the words; () if the file has a text.
    tags: the tag of each word, a text or a number; None without tags.
    document: the number of the document, or None.
    text: the text, if the file has spans.
    spans: the marked spans of the text; None without them.
    is_joined: whether the words were one text, with spaces between.
  """

  where: tuple[str, ...]
  words: tuple[str, ...] = ()
  tags: tuple[Any, ...] | None = None
  document: int | None = None
  text: str | None = None
  spans: tuple[Span, ...] | None = None
  is_joined: bool = False


# --- Files in columns ---


def _column_sentences(task: spec.Task, path: str) -> Iterator[_Sentence]:
  is_conllu = compression.strip_ending(path).lower().endswith(CONLLU)
  names = CONLLU_COLUMNS if is_conllu else task.columns
  separator, num_columns = _layout(path)
  if names:
    num_columns = len(names)
  word_at, tag_at = 0, num_columns - 1
  if names:
    word_name = "form" if is_conllu else (*task.text, names[0])[0]
    tag_name = task.label or ("upos" if is_conllu else names[-1])
    for name in (word_name, tag_name):
      if name not in names:
        raise spec.TaskError(
          f"{path}: no column {name!r}; its columns are {', '.join(names)}"
        )
    word_at, tag_at = names.index(word_name), names.index(tag_name)
  document = 0
  has_tags = num_columns > 1
  lines: list[tuple[str, list[str]]] = []

  def sentence() -> _Sentence:
    where = tuple(place for place, _ in lines)
    words = tuple(cells[word_at] for _, cells in lines)
    tags = tuple(cells[tag_at] for _, cells in lines) if has_tags else None
    return _Sentence(where, words, tags, document or None)

  for number, line in enumerate(tables.read_lines(path), 1):
    cells = _cells(line, separator)
    if not cells or cells[0] == _DOCUMENT:
      if lines:
        yield sentence()
        lines = []
      document += bool(cells)
      continue
    if not lines and line.startswith("#"):
      if is_conllu or len(cells) != num_columns:
        continue  # a comment
    if len(cells) != num_columns:
      raise spec.TaskError(
        f"{path}:{number}: {len(cells)} columns, wanted {num_columns}: a word"
        " first and its tag last, with tabs or spaces between the columns"
      )
    # In CoNLL-U, 1-2 is a word that the next two lines split, and 1.1 is
    # a word that the text lacks.
    if not is_conllu or cells[0].isdigit():
      lines.append((f"{path}:{number}", cells))
  if lines:
    yield sentence()
  tables.lacks_line_end(path)  # Logs it.


def _layout(path: str) -> tuple[str, int]:
  """Returns the separator of columns ("" means spaces) and their number."""
  has_tab: collections.Counter[bool] = collections.Counter()
  counts: dict[bool, collections.Counter[int]] = {
    True: collections.Counter(), False: collections.Counter()
  }  # fmt: skip
  fallback = ("", 1)
  for line in tables.read_lines(path):
    if not line.strip(_BLANK) or line.startswith(_DOCUMENT):
      continue
    tab = "\t" in line.rstrip("\t")
    found = ("\t" if tab else "", len(_cells(line, "\t" if tab else "")))
    if line.startswith("#"):
      fallback = found
      continue
    has_tab[tab] += 1
    counts[tab][found[1]] += 1
  if not has_tab:
    return fallback
  tab = has_tab[True] >= has_tab[False]
  return "\t" if tab else "", counts[tab].most_common(1)[0][0]


def _cells(line: str, separator: str) -> list[str]:
  """Returns the columns of a line; [] if it is blank."""
  if not line.strip(_BLANK):
    return []
  if separator:
    return [cell.strip(" ") for cell in line.rstrip("\t").split("\t")]
  line = line.strip(_BLANK).replace("\t", " ")
  return [cell for cell in line.split(" ") if cell]


# --- Tables ---


def _row_sentences(
  task: spec.Task, path: str, split: str
) -> Iterator[_Sentence]:
  is_test = split in task.test_splits
  for where, row in tables.iter_rows(path, task.columns):
    value = (
      tables.text_field(row, task.text[0], where)
      if tables.is_template(task.text[0])
      else tables.field(row, task.text[0], where)
    )
    tags = row.get(task.label)
    if not is_test and task.label not in row:
      tables.field(row, task.label, where)  # It raises the error.
    if isinstance(tags, str) and tags.lstrip()[:1] == "[":
      tags = _from_json(tags, where)
    if tags is None:
      if isinstance(value, str):
        yield _Sentence((where,), text=value)
        continue
      words = _words(value, where)
      yield _Sentence((where,) * len(words), words)
    elif isinstance(value, str) and _are_spans(tags):
      spans = _spans(tags, value, where)
      yield _Sentence((where,), text=value, spans=spans)
    else:
      given = _tags(tags, where)
      words = _words(value, where, len(given))
      if len(given) != len(words):
        raise spec.TaskError(
          f"{where}: {len(given)} tags for {len(words)} words"
        )
      yield _Sentence(
        (where,) * len(words), words, given, is_joined=isinstance(value, str)
      )


def _from_json(text: str, where: str) -> Any:
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise spec.TaskError(
      f"{where}: {text[:60]!r} is not JSON: {error}"
    ) from None


def _words(value: Any, where: str, count: int = 0) -> tuple[str, ...]:
  """Returns words, which are a list or a text with spaces between.

  Args:
    value: the list or the text.
    where: the file and line, for the error.
    count: the number of tags. Spaces of other kinds than the usual, such as
      U+3000, are words if the number is right only then.
  """
  found = value
  if isinstance(value, str):
    found = value.split()
    if len(found) != count:
      parts = [part for part in _SPACES.split(value) if part]
      found = parts if len(parts) == count else found
  if (
    not isinstance(found, list)
    or not found
    or not all(isinstance(item, str) for item in found)
  ):
    raise spec.TaskError(
      f"{where}: {value!r}; wanted words, as a list or with spaces between"
    )
  return tuple(found)


def _tags(value: Any, where: str) -> tuple[Any, ...]:
  """Returns tags, which are a list of texts or numbers, or a text."""
  found = value.split() if isinstance(value, str) else value
  if (
    not isinstance(found, list)
    or not found
    or not all(
      isinstance(item, str | int) and not isinstance(item, bool)
      for item in found
    )
  ):
    raise spec.TaskError(
      f"{where}: {value!r:.60}; wanted words, as a list or with spaces between,"
      " as tags, or spans [START, END, TYPE] of a text"
    )
  return tuple(found)


def _are_spans(value: Any) -> bool:
  return isinstance(value, list) and all(
    isinstance(item, list | dict) for item in value
  )


def _spans(items: list[Any], text: str, where: str) -> tuple[Span, ...]:
  """Returns spans of characters, in the order of the text.

  Raises:
    spec.TaskError: An item is not a span of the text, or two overlap.
  """
  found: list[Span] = []
  for item in items:
    start = end = type = None
    if isinstance(item, list) and len(item) == 3:
      start, end, type = item
    elif isinstance(item, dict):
      start, end = item.get("start"), item.get("end")
      type = next((item[key] for key in _TYPE_KEYS if key in item), None)
    if (
      not all(
        isinstance(x, int) and not isinstance(x, bool) for x in (start, end)
      )
      or not isinstance(type, str)
      or not type.strip()
    ):
      raise spec.TaskError(
        f"{where}: {item!r:.60} is not a span; wanted [START, END, TYPE], or an"
        " object with start, end and label"
      )
    assert isinstance(start, int) and isinstance(end, int)
    if not 0 <= start < end <= len(text):
      raise spec.TaskError(
        f"{where}: the span {start} to {end} is not within its text of"
        f" {len(text)} characters"
      )
    found.append((start, end, type.strip()))
  found.sort()
  for (start, end, _), (other, other_end, _) in itertools.pairwise(found):
    if other < end:
      raise spec.TaskError(
        f"{where}: the spans {start} to {end} and {other} to {other_end}"
        " overlap; a word has one tag, so keep one of them"
      )
  return tuple(found)


# --- Examples ---


def _sentences(task: spec.Task, path: str, split: str) -> Iterator[_Sentence]:
  if tables.is_table(path):
    return _row_sentences(task, path, split)
  return _column_sentences(task, path)


def read(task: spec.Task, path: str, split: str) -> list[spec.TagExample]:
  """Reads sentences with a tag for each word."""
  found = list(_sentences(task, path, split))
  if not found:
    raise spec.TaskError(f"{path} has no sentences")
  is_test = split in task.test_splits
  has_documents = any(sentence.document is not None for sentence in found)
  examples = []
  misplaced: list[str] = []
  lacking: list[str] = []
  empty: list[str] = []
  for number, sentence in enumerate(found):
    if sentence.text is not None:
      example = _from_text(task, sentence, number, misplaced)
    else:
      document = (sentence.document or 0) if has_documents else number
      example = spec.TagExample(
        str(number), sentence.words, _known_tags(task, sentence, is_test),
        document,
      )  # fmt: skip
      empty += [
        place
        for word, place in zip(sentence.words, sentence.where, strict=True)
        if not word
      ]
    if example.labels is None and not is_test:
      if not tables.is_table(path):
        raise spec.TaskError(
          f"{sentence.where[0]}: a single column, wanted a word and its tag;"
          " only a test split may lack the tags"
        )
      lacking.append(sentence.where[0])
      continue
    if not example.words:
      raise spec.TaskError(f"{sentence.where[0]}: the text has no words")
    examples.append(example)
  label_lib.refuse_missing(task, lacking, len(found))
  if misplaced:
    _log.warning(
      "%s, %s: %d spans begin or end within a word; the whole word gets the tag"
      " (task.word_split=%s says what a word is)", path,
      label_lib.lines(misplaced), len(misplaced), task.word_split,
    )  # fmt: skip
  if empty:
    _log.warning(
      "%s, %s: %d words are empty and are read as an unknown word", path,
      label_lib.lines(empty), len(empty),
    )  # fmt: skip
  return label_lib.hide_if_partial(examples, path)


def _known_tags(
  task: spec.Task, sentence: _Sentence, is_test: bool
) -> tuple[str, ...] | None:
  """Returns the tags as the task names them; None if they are not known."""
  if sentence.tags is None:
    return None
  if is_test and all(
    tag in ("", "_") or label_lib.is_minus_one(task, tag)
    for tag in sentence.tags
  ):
    return None
  tags = [
    _name(task, tag, where)
    for tag, where in zip(sentence.tags, sentence.where, strict=True)
  ]
  if task.tag_scheme != "plain":
    tags = list(tag_schemes.to_iob2(tags, sentence.where))
  if task.labels:
    for tag, where in zip(tags, sentence.where, strict=True):
      spec.label_id(task, tag, where)
  return tuple(tags)


def _name(task: spec.Task, tag: Any, where: str) -> str:
  """Returns the name of a tag, for which its number may stand."""
  text = str(tag).strip()
  if not text.isdecimal() or text in task.labels or not task.file_labels:
    return text
  if int(text) >= len(task.file_labels):
    raise spec.TaskError(
      f"{where}: the tag is the number {text}, but task.labels has"
      f" {len(task.file_labels)} tags, 0 to {len(task.file_labels) - 1}"
    )
  return task.file_labels[int(text)]


def _from_text(
  task: spec.Task, sentence: _Sentence, number: int, misplaced: list[str]
) -> spec.TagExample:
  """Splits a text into words, and gives them the tags of its spans."""
  assert sentence.text is not None
  places = word_lib.places(sentence.text, task.word_split)
  words = tuple(sentence.text[start:end] for start, end in places)
  tags: list[str] | None = None
  if sentence.spans is not None:
    where = sentence.where[0]
    tags = ["O"] * len(words)
    at = 0
    for start, end, type in sentence.spans:
      while at < len(places) and places[at][1] <= start:
        at += 1
      first = at
      while at < len(places) and places[at][0] < end:
        tags[at] = f"{'B' if at == first else 'I'}-{type}"
        at += 1
      if first == at or places[first][0] < start or places[at - 1][1] > end:
        misplaced.append(where)
    for tag in tags if task.labels else ():
      spec.label_id(task, tag, where)
  labels = tuple(tags) if tags is not None else None
  return spec.TagExample(str(number), words, labels, number, tuple(places))


# --- What the training file says ---


def complete(task: spec.Task, path: str) -> spec.Task:
  """Returns a task with its labels, scheme, split of words and metrics.

  Args:
    task: the task, whose labels may be given.
    path: the training file, or "".

  Raises:
    spec.TaskError: The tags are not all of one scheme, or there is one alone.
  """
  found: dict[str, Any] = {}
  words: list[str] = []
  is_joined = False
  texts: list[tuple[str, list[word_lib.Place]]] = []
  numbers: list[str] = []  # the places of tags that are numbers
  types: dict[str, None] = {}
  if path and not (task.labels and task.word_split != "auto"):
    for sentence in _sentences(task, path, task.train_split):
      if sentence.text is not None:
        spans = sentence.spans or ()
        texts.append((sentence.text, [(start, end) for start, end, _ in spans]))
        types |= dict.fromkeys(type for _, _, type in spans)
        continue
      words += sentence.words
      is_joined |= sentence.is_joined
      for tag, where in zip(sentence.tags or (), sentence.where, strict=False):
        text = str(tag).strip()
        if text.isdecimal() and len(numbers) < 10:
          numbers.append(where)
        found.setdefault(text, where)
  if task.word_split == "auto":
    split = "spaces"
    if texts:
      split = word_lib.best_split(texts)
    elif words and not is_joined:
      split = word_lib.split_of(words)
    task = dataclasses.replace(task, word_split=split)
  if task.labels:
    return _with_given(task)
  for type in types:
    found |= {f"{letter}-{type}": path for letter in "BI"}
  if texts:
    found.setdefault("O", path)
  if numbers and len(found) and task.tag_scheme != "plain":
    raise spec.TaskError(
      f"{numbers[0]}: the tags are numbers; list the tags in the order of their"
      " numbers in task.labels or task.labels_file, or set"
      " task.tag_scheme=plain if numbers are the tags"
    )
  return _with_found(task, found, path)


def _with_given(task: spec.Task) -> spec.Task:
  """Returns a task whose labels are given, in the order of their numbers."""
  scheme = task.tag_scheme
  if scheme == "auto":
    scheme = tag_schemes.scheme_of(task.labels, "task.labels")
  given = task.labels
  task = dataclasses.replace(
    task,
    tag_scheme=scheme,
    file_labels=label_lib.numbered(given),
    labels=tag_schemes.iob_labels(given) if scheme == "chunks" else given,
  )
  return _with_metrics(task)


def _with_found(
  task: spec.Task, found: Mapping[str, str], path: str
) -> spec.Task:
  """Returns a task with the labels that its training file has."""
  scheme = task.tag_scheme
  if scheme == "auto":
    scheme = _scheme_of_file(found, path)
  if scheme == "chunks":
    tags = tag_schemes.to_iob2(list(found), list(found.values()))
    labels = _chunk_labels(tags)
    if labels == ("O",):
      labels = ()
  else:
    labels = spec.distinct_labels(found)
    seen = label_lib.count_labels((where, tag) for tag, where in found.items())
    label_lib.warn_of_twins(path, seen)
    label_lib.check_count(task, labels, path)
  if found and not labels:
    raise spec.TaskError(
      f"{path}: every tag is O, so there is nothing to learn; is the tag in the"
      " last column, or in that of task.label?"
    )
  return _with_metrics(
    dataclasses.replace(task, tag_scheme=scheme, labels=labels)
  )


def _scheme_of_file(found: Mapping[str, str], path: str) -> str:
  try:
    return tag_schemes.scheme_of(found, path)
  except tag_schemes.SchemeError as error:
    raise error.at(found[error.tag]) from None  # its line


def _chunk_labels(tags: Sequence[str]) -> tuple[str, ...]:
  """Returns O, and B and I of each type; the types are sorted."""
  if any(tag in ("B", "I") for tag in tags):
    return ("O", "B", "I")
  return ner.tag_labels(tags)


def _with_metrics(task: spec.Task) -> spec.Task:
  """Returns a task with the metrics that its scheme has."""
  if task.tag_scheme != "plain":
    return task
  return dataclasses.replace(task, metrics=("accuracy", "macro_f1"))
