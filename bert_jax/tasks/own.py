"""Tasks on a user's own files: TSV, CSV, JSON, CoNLL or SQuAD's JSON.

task = table.make_task("pairs", text=("question", "reply"), label="fits",
                       train_path="train.csv")
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import json
import logging
import os
import re
from typing import Any

from bert_jax.data import compression
from bert_jax.tasks import choice
from bert_jax.tasks import labels as label_lib
from bert_jax.tasks import qa
from bert_jax.tasks import spec
from bert_jax.tasks import tables

_log = logging.getLogger(__name__)

# Split -> the names of its file, without their endings.
_SPLITS = {
  "train": ("train",),
  "validation": ("validation", "dev", "val"),
  "test": ("test",),
}
# The keys of the group `task` that are attributes of a task on own files.
SETTINGS = (
  "missing_labels", "tag_scheme", "word_split", "first_choice", "train_answers"
)  # fmt: skip
# Those of them that the files decide, if the config says "auto".
DECIDED = ("tag_scheme", "word_split")
_ENDINGS = (
  ".tsv", ".csv", ".jsonl", ".json", ".conll", ".conllu", ".txt", ".parquet",
  ".arrow",
)  # fmt: skip

# The usual columns of a pair of texts.
PAIR = ("text", "text_b")


@dataclasses.dataclass(frozen=True)
class Form:
  """A form of own data, which belongs to a kind of task.

  Attributes:
    metrics: the metrics, of which the first is the main one.
    num_texts: the least and the most columns of text; 0 means any number.
    read: (task, path, split) -> examples.
    complete: (task, path of the training file or "") -> the task with its
      labels and what else the files decide; None if labels have no names.
    columns: the usual columns of the text; () if they are found by their names.
  """

  metrics: Iterable[str]
  num_texts: tuple[int, int]
  read: Callable[[spec.Task, str, str], list[Any]]
  complete: Callable[[spec.Task, str], spec.Task] | None = None
  columns: tuple[str, ...] = ("text",)


def make_task(
  kind: str,
  form: Form,
  *,
  text: Sequence[str],
  label: str,
  labels: Sequence[str] = (),
  labels_file: str = "",
  train_path: str = "",
  columns: Sequence[str] = (),
  has_null: bool = True,
  label_separator: str = ",",
  name: str = "own",
  **facts: Any,
) -> spec.Task:
  """Makes a task on own files.

  Args:
    kind: the name of the kind of task.
    form: the form of the data.
    text: the columns of the text, or templates of columns such as
      "{subject}: {body}". By the form: the text; both texts; the words (a list
      in JSON, or with spaces between; not used for CoNLL files); the question
      and the context; the context and each choice, or all choices in a list.
    label: the column of the label. By the form: a label, a list of labels, a
      number, the tags (written as the words are, or spans of the text), the
      answer ("" for none) or a list of answers, or the right choice.
    labels: the labels in the order of their ids; () means the labels of the
      training file, sorted.
    labels_file: a file with these labels, one on each line; "" without one.
    train_path: the training file, which is read if `labels` is ().
    columns: the names of the columns, for files without a header line.
    has_null: whether questions may have no answer.
    label_separator: the separator of several labels in one column.
    name: the name of the task.
    **facts: further attributes of the task.

  Returns:
    A task with the splits train, validation and test. Its files have these
    names in a folder, or are given one by one.

  Raises:
    spec.TaskError: The number of columns is wrong, the separator is empty, or
      the labels are neither given nor in a training file.
  """
  _check_texts(name, form, text)
  if not label_separator:
    raise spec.TaskError(
      f"task {name}: task.label_separator is empty; give the separator of"
      ' several labels in one column, such as ","'
    )
  labels = _labels_of(labels, labels_file)
  facts = {"tag_scheme": "auto", "word_split": "auto"} | facts
  task = spec.Task(
    name=name,
    kind=kind,
    read=form.read,
    metrics=tuple(form.metrics),
    text=tuple(text),
    label=label,
    labels=labels,
    columns=tuple(columns),
    label_separator=label_separator,
    has_null=has_null,
    files={
      split: tuple(stem + ending for stem in stems for ending in _ENDINGS)
      for split, stems in _SPLITS.items()
    },
    **facts,
  )
  label_lib.check_given(task)
  if form.complete is None:
    return task
  if not labels and not train_path:
    raise spec.TaskError(
      f"task {name}: its labels are not known; give labels, or a training file"
      " with labels"
    )
  task = form.complete(task, train_path)
  if not task.labels:
    raise spec.TaskError(
      f"task {name}: no row of {train_path} has a label in its column"
      f" {label!r}; give labels, or another file or column"
    )
  return task


def _check_texts(name: str, form: Form, text: Sequence[str]) -> None:
  """Raises TaskError if a form takes another number of text columns."""
  least, most = form.num_texts
  if len(text) < least or (most and len(text) > most):
    raise spec.TaskError(
      f"task {name}: {len(text)} text columns ({', '.join(text) or 'none'}),"
      f" wanted {least}"
      + ("" if most == least else f" to {most}" if most else " or more")
      + "; task.text names them"
      + (
        "; to join columns to one text, give a template such as"
        f' task.text="{" ".join(f"{{{x}}}" for x in text)}"'
        if most and len(text) > most
        else ""
      )
    )


def _labels_of(given: Sequence[str], path: str) -> tuple[str, ...]:
  """Returns the labels of a task; () if neither they nor a file are given.

  Args:
    given: the labels.
    path: a file with one label on each line; "" without one.

  Raises:
    spec.TaskError: Both are given, and differ.
  """
  labels = tuple(str(x).strip() for x in given)
  if path:
    listed = label_lib.read_file(path)
    if labels and labels != listed:
      raise spec.TaskError(
        f"task.labels ({', '.join(labels)}) and task.labels_file={path}"
        f" ({', '.join(listed)}) differ; give one of them"
      )
    return listed
  return labels


def split_words(words: Sequence[Any]) -> tuple[str, ...]:
  """Returns a list of words, also of one text with commas, or of numbers.

  A command line gives lists in these forms. In a template of columns, a comma
  before a space is a part of the template.

  Example:
    >>> split_words(["{a}, {b},c"])
    ('{a}, {b}', 'c')
  """
  given = [str(word) for word in words]
  if len(given) == 1 and "," in given[0]:
    comma = r",(?!\s)" if tables.is_template(given[0]) else ","
    given = [word.strip() for word in re.split(comma, given[0])]
  return tuple(word for word in given if word)


def find_train(folder: str) -> str:
  """Returns the training file in a folder of own data, or "" without one."""
  for ending in _ENDINGS:
    if path := tables.find_packed(os.path.join(folder, f"train{ending}")):
      return path
  return ""


def make_reader(
  make_example: Callable[..., Any],
  *,
  id_column: str | None = None,
  is_missing: Callable[[Any], bool] = label_lib.is_missing,
  minus_one: bool = True,
) -> Callable[[spec.Task, str, str], list[Any]]:
  """Makes a reader of own tables that turns each row into one example.

  Rows without a label are an error that names all of them, unless the task
  leaves them out. In a test split they are predicted, and then no row is
  scored.

  Args:
    make_example: (task, row, value of the label's column or None, id,
      "PATH:LINE") -> example.
    id_column: the column that holds the ids; rows are numbered from 0 if it is
      None or the table has no such column.
    is_missing: whether a value of the label's column means no label.
    minus_one: whether -1 means the same in a file to predict, unless it is a
      label of the task.

  Returns:
    A function (task, path, split) -> examples.
  """

  def read(task: spec.Task, path: str, split: str) -> list[Any]:
    is_test = split in task.test_splits
    examples: list[Any] = []
    lacking: list[str] = []
    without_column: list[tuple[str, Mapping[str, Any]]] = []
    empty: list[str] = []
    count = 0
    for number, (where, row) in enumerate(tables.iter_rows(path, task.columns)):
      count += 1
      value = row.get(task.label)
      if task.label not in row:
        without_column = without_column or [(where, row)]
      if is_test and (
        is_missing(value) or (minus_one and label_lib.is_minus_one(task, value))
      ):
        value = None
      elif not is_test and (task.label not in row or is_missing(value)):
        lacking.append(where)
        continue
      id = number if id_column is None else row.get(id_column, number)
      example = make_example(task, row, value, str(id), where)
      if any(text is not None and not text.strip() for text in _texts(example)):
        empty.append(where)
      examples.append(example)
    if without_column and not is_test and len(lacking) == count:
      where, row = without_column[0]
      tables.field(row, task.label, where)  # It raises the error.
    label_lib.refuse_missing(task, lacking, count)
    if empty:
      _log.warning(
        "%s, %s: %d of %d rows have an empty text", path,
        label_lib.lines(empty), len(empty), count,
      )  # fmt: skip
    return label_lib.hide_if_partial(examples, path)

  return read


def _texts(example: Any) -> Iterable[str | None]:
  """Returns the texts of an example."""
  if isinstance(example, spec.SpanExample):
    return example.question, example.context
  return [text for pair in example.pairs for text in pair]


# --- Texts and pairs ---


def pair_maker(
  parse: Callable[[spec.Task, Any, str], Any],
) -> Callable[..., spec.PairExample]:
  """Makes a function that turns a row into a text or pair with a label.

  Args:
    parse: (task, value of the label's column, "PATH:LINE") -> label.
  """

  def example(task, row, value, id, where):
    texts = tables.text_pair(row, task.text, where)
    label = None if value is None else parse(task, value, where)
    return spec.PairExample(id, *texts, label)

  return example


read_classes = make_reader(pair_maker(label_lib.label_id))


_read_scores = make_reader(pair_maker(label_lib.score), minus_one=False)


def read_scores(task, path, split) -> list[spec.PairExample]:
  """Reads texts with a score; a test file in which all are -1 has none."""
  examples = _read_scores(task, path, split)
  if split in task.test_splits and {e.label for e in examples} == {-1.0}:
    _log.warning("%s: every score is -1, which is read as no score", path)
    return [spec.without_label(example) for example in examples]
  return examples


# --- Choices ---


def _choice_example(task, row, value, id, where) -> spec.ChoiceExample:
  first = tables.text_field(row, task.text[0], where)
  names: Sequence[str] = ()
  if len(task.text) > 2:
    found = [row.get(name, name) for name in task.text[1:]]
    texts = [
      tables.text_field(row, name, where)
      if given is not None or tables.is_template(name)
      else ""
      for name, given in zip(task.text[1:], found, strict=True)
    ]
  else:
    texts, names = listed(tables.field(row, task.text[1], where), where)
  label = None
  if value is not None:
    label = choice.own_label(task, value, texts, names, where)
  # Rows with fewer choices leave the last columns empty.
  kept = [i for i, text in enumerate(texts) if text.strip()]
  if len(kept) < 2:
    raise spec.TaskError(
      f"{where}: {len(kept)} choices with text; wanted two or more"
    )
  if label is None:
    without_rest(texts, where)  # a prediction names a choice by its number
  elif label not in kept:
    raise spec.TaskError(
      f"{where}: label {value!r} names a choice whose text is empty"
    )
  else:
    label = kept.index(label)
  return spec.ChoiceExample(id, tuple((first, texts[i]) for i in kept), label)


def without_rest(texts: Sequence[str], where: str) -> list[str]:
  """Returns the choices of a row without the empty ones at its end.

  Choices keep their numbers, because predictions name a choice by its number.

  Args:
    texts: the text of each choice.
    where: the file and line, for the error.

  Raises:
    spec.TaskError: An empty choice has others after it.
  """
  kept = [i for i, text in enumerate(texts) if text.strip()]
  if kept != list(range(len(kept))):
    empty = next(i for i, text in enumerate(texts) if not text.strip())
    raise spec.TaskError(
      f"{where}: choice {empty} (from 0) is empty, but later ones are not; give"
      " the choices of a row one after another, the empty ones last"
    )
  return list(texts[: len(kept)])


def _from_json(value: Any, starts: tuple[str, ...]) -> Any:
  """Returns what a text of JSON holds; any other value as it is.

  Args:
    value: the value of a column.
    starts: how a text of JSON begins. A text that begins so, but is no JSON,
      is returned as it is, too.
  """
  if not isinstance(value, str) or not value.strip().startswith(starts):
    return value
  try:
    return json.loads(value)
  except (ValueError, RecursionError):
    return value


def listed(value: Any, where: str) -> tuple[list[str], list[str]]:
  """Returns the texts of choices in one column, and their names if given."""
  value = _from_json(value, ("",))
  names: Any = []
  if isinstance(value, dict):
    names, value = value.get("label", []), value.get("text")
  elif isinstance(value, list) and all(isinstance(x, dict) for x in value):
    names = [x.get("label") for x in value]
    value = [x.get("text") for x in value]
    names = [] if None in names else names
  if (
    not isinstance(value, list)
    or not isinstance(names, list)
    or not all(isinstance(x, str) for x in [*value, *names])
    or len(names) not in (0, len(value))
  ):
    raise spec.TaskError(
      f"{where}: the choices are {value!r:.60}; wanted a list of texts, or"
      " objects with text and label, or a column for each choice"
    )
  return value, names


read_choices = make_reader(_choice_example)


# --- Questions ---


def read_spans(task, path, split) -> list[spec.SpanExample]:
  """Reads questions about a text that holds the answer."""
  name = compression.strip_ending(path).lower()
  if name.endswith(".json") and not _has_rows(path):
    return qa.make_reader(strict=True)(task, path, split)
  examples = _read_span_rows(task, path, split)
  if split in task.test_splits and not any(e.answers for e in examples):
    # A column of answers that are all empty is one to fill in.
    return [spec.without_label(example) for example in examples]
  cut = [e for e in examples if any(_is_in_word(a, e) for a in e.answers)]
  if cut:
    _log.warning(
      "%s: %d of %d answers begin or end within a word (first: %r of question"
      " %s); the pieces of the word that they share a character with are"
      " learned", path, len(cut), len(examples), cut[0].answers[0][0],
      cut[0].id,
    )  # fmt: skip
  return examples


def _has_rows(path: str) -> bool:
  """Returns whether a JSON file has questions as rows, and not SQuAD's."""
  try:
    lines = tables.read_lines(path)
    start = next((line for line in lines if line.strip()), "")
  except spec.TaskError:  # also a line longer than any row may be
    return False
  try:
    row = json.loads(start)
  except (ValueError, RecursionError):
    return start.lstrip().startswith("[")
  return isinstance(row, list) or (isinstance(row, dict) and "data" not in row)


def _is_in_word(answer: tuple[str, int], example: spec.SpanExample) -> bool:
  """Returns whether an answer begins or ends within a word."""
  text, start = answer
  around = example.context[max(0, start - 1) : start + len(text) + 1]
  before = around[:1] if start else ""
  after = around[len(before) + len(text) :]
  return (
    (before + text[:1]).isalnum()
    and bool(before)
    or ((text[-1:] + after).isalnum() and bool(after))
  )


def _span_example(task, row, value, id, where) -> spec.SpanExample:
  question_column, context_column = task.text
  context = tables.text_field(row, context_column, where)
  given = [] if value is None else _answers(value, row, where)
  if value is not None and not given and not task.has_null:
    raise spec.TaskError(
      f"{where}: no answer; set task.has_null if questions may have none"
    )
  answers: list[tuple[str, int]] = []
  for text, start in given:
    found = _locate(text, start, context)
    if found is None:
      raise spec.TaskError(
        f"{where}: answer {text!r} is not in its {context_column}; an"
        " answer must be a part of that text"
      )
    answers.append(found)
  question = tables.text_field(row, question_column, where)
  is_impossible = value is not None and not answers
  return spec.SpanExample(id, question, context, tuple(answers), is_impossible)


_read_span_rows = make_reader(
  _span_example,
  id_column="id",
  is_missing=lambda value: value is None,
  minus_one=False,
)


def _locate(text: str, start: int, context: str) -> tuple[str, int] | None:
  """Finds an answer; without a place, first among the whole words."""
  if start < 0 and text.split():
    pattern = r"\s+".join(map(re.escape, text.split()))
    found = re.search(rf"(?<!\w){pattern}(?!\w)", context)
    if found:
      return found.group(), found.start()
  return qa.locate(text, start, context)


def _answers(
  value: Any, row: Mapping[str, Any], where: str
) -> list[tuple[str, int]]:
  """Returns (text, place or -1) of each answer in the column of answers.

  The column holds an answer, whose place may be in the column answer_start; a
  list of answers; or answers as SQuAD has them, in an object or in a list.
  """
  value = _from_json(value, ("[]", '["', "[{", '{"'))
  starts: Any = None
  if isinstance(value, dict):
    value, starts = value.get("text"), value.get("answer_start")
    value = [value] if isinstance(value, str) else value
  elif isinstance(value, list) and any(isinstance(x, dict) for x in value):
    objects = [x if isinstance(x, dict) else {} for x in value]
    value = [x.get("text") for x in objects]
    starts = [x.get("answer_start", -1) for x in objects]
  elif not isinstance(value, list):
    value, starts = [str(value)], [row.get("answer_start", "")]
  if starts is None:
    starts = row.get("answer_start")
  starts = _starts(starts, len(value or ()), where)
  if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
    raise spec.TaskError(
      f"{where}: the answers are {value!r:.60}; wanted a text, a list of texts,"
      " or objects with text and answer_start"
    )
  return [
    (text, _start(start, where))
    for text, start in zip(value, starts, strict=True)
    if text
  ]


def _starts(value: Any, count: int, where: str) -> list[Any]:
  """Returns where each answer begins, as given; -1 where it is not given.

  Args:
    value: the value of answer_start: a list, or a list in JSON; or a number, if
      there is one answer; None or "" if it is not given.
    count: the number of answers.
    where: the file and line, for the error.

  Raises:
    spec.TaskError: There are more or fewer of them than answers.
  """
  value = _from_json(value, ("[",))
  if value in (None, "", []) or not count:
    return [-1] * count
  found = value if isinstance(value, list) else [value]
  if len(found) != count:
    raise spec.TaskError(
      f"{where}: answer_start is {value!r:.60} for {count} answers; give a"
      " place for each answer, or leave the column out"
    )
  return found


def _start(value: Any, where: str) -> int:
  """Returns the index at which an answer begins; -1 if it is not given."""
  try:
    return int(value) if value not in ("", None) else -1
  except (TypeError, ValueError, OverflowError):
    raise spec.TaskError(
      f"{where}: answer_start is {value!r}; wanted the index of a character"
    ) from None
