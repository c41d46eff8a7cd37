"""Tasks on a user's own files: TSV, CSV, JSON lines, CoNLL or SQuAD's JSON.

task = table.make_task("pairs", text=("question", "reply"), label="fits",
                       train_path="train.csv")
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import os
from typing import Any

from bert_jax.tasks import choice
from bert_jax.tasks import glue
from bert_jax.tasks import ner
from bert_jax.tasks import qa
from bert_jax.tasks import spec
from bert_jax.tasks import tables

# Split -> the names of its file, without their endings.
_SPLITS = {
  "train": ("train",),
  "validation": ("validation", "dev", "val"),
  "test": ("test",),
}
_ENDINGS = (".tsv", ".csv", ".jsonl", ".json", ".conll", ".txt")


@dataclasses.dataclass(frozen=True)
class Form:
  """A form of own data, which belongs to a kind of task.

  Attributes:
    metrics: the metrics, of which the first is the main one.
    num_texts: the least and the most columns of text; 0 means any number.
    read: (task, path, split) -> examples.
    labels_of: (task, path) -> the labels of a training file; None if labels
      have no names.
  """

  metrics: Iterable[str]
  num_texts: tuple[int, int]
  read: Callable[[spec.Task, str, str], list[Any]]
  labels_of: Callable[[spec.Task, str], tuple[str, ...]] | None = None


def make_task(
  kind: str,
  form: Form,
  *,
  text: Sequence[str],
  label: str,
  labels: Sequence[str] = (),
  train_path: str = "",
  columns: Sequence[str] = (),
  has_null: bool = True,
  label_separator: str = ",",
  name: str = "own",
) -> spec.Task:
  """Makes a task on own files.

  Args:
    kind: the name of the kind of task.
    form: the form of the data.
    text: the columns of the text. By the form: the text; both texts; the words
      (a list in JSON lines, or with spaces between; not used for CoNLL files);
      the question and the context; the context and each choice.
    label: the column of the label. By the form: a label, a list of labels, a
      number, the tags (written as the words are), the answer ("" for none), or
      the index of the right choice from 0.
    labels: the labels in the order of their ids; () means the labels of the
      training file, sorted.
    train_path: the training file, which is read if `labels` is ().
    columns: the names of the columns, for files without a header line.
    has_null: whether questions may have no answer.
    label_separator: the separator of several labels in one column.
    name: the name of the task.

  Returns:
    A task with the splits train, validation and test. Its files have these
    names in a folder, or are given one by one.

  Raises:
    spec.TaskError: The number of columns is wrong, the separator is empty, or
      the labels are neither given nor in a training file.
  """
  least, most = form.num_texts
  if len(text) < least or (most and len(text) > most):
    raise spec.TaskError(
      f"task {name}: {len(text)} text columns ({', '.join(text) or 'none'}),"
      f" wanted {least}{f' to {most}' if most != least else ''}; task.text "
      "names them"
    )
  if not label_separator:
    raise spec.TaskError(
      f"task {name}: task.label_separator is empty; give the separator of"
      ' several labels in one column, such as ","'
    )
  task = spec.Task(
    name=name,
    kind=kind,
    read=form.read,
    metrics=tuple(form.metrics),
    text=tuple(text),
    label=label,
    labels=tuple(labels),
    columns=tuple(columns),
    label_separator=label_separator,
    has_null=has_null,
    files={
      split: tuple(stem + ending for stem in stems for ending in _ENDINGS)
      for split, stems in _SPLITS.items()
    },
  )
  if form.labels_of is None or labels:
    return task
  if not train_path:
    raise spec.TaskError(
      f"task {name}: its labels are not known; give labels, or a training file"
      " with labels"
    )
  found = form.labels_of(task, train_path)
  if not found:
    raise spec.TaskError(
      f"task {name}: no row of {train_path} has a label in its column"
      f" {label!r}; give labels, or another file or column"
    )
  return dataclasses.replace(task, labels=found)


def find_train(folder: str) -> str:
  """Returns the training file in a folder of own data, or "" without one."""
  for ending in _ENDINGS:
    path = os.path.join(folder, f"train{ending}")
    if os.path.exists(path):
      return path
  return ""


read_pairs = tables.make_reader(glue.pair_maker(glue.parse_label))


read_choices = choice.make_reader(choice.column_pairs)


def read_tags(task, path, split) -> list[spec.TagExample]:
  """Reads sentences with a tag for each word."""
  ending = os.path.splitext(path)[1].lower()
  is_table = ending in (".tsv", ".csv", *tables.JSON_LINES)
  read = tables.make_reader(_tag_example) if is_table else ner.make_reader()
  return read(task, path, split)


def _tag_example(task, split, where, id, row) -> spec.TagExample:
  words = _list(tables.field(row, task.text[0], where), where)
  labels = tables.label_field(task, row, split, where)
  if labels is not None:
    labels = _tags(task, labels, len(words), where)
  # Each row is a document of its own.
  return spec.TagExample(id, tuple(words), labels, int(id))


def _tags(task, value, num_words, where) -> tuple[str, ...]:
  tags = _list(value, where)
  if len(tags) != num_words:
    raise spec.TaskError(f"{where}: {len(tags)} tags for {num_words} words")
  return ner.parse_tags(task, tags, [where] * num_words)


def _list(value: Any, where: str) -> list[str]:
  """Returns words or tags, which are a list or a text with spaces between."""
  found = value.split() if isinstance(value, str) else value
  if (
    not isinstance(found, list)
    or not found
    or not all(isinstance(item, str) for item in found)
  ):
    raise spec.TaskError(
      f"{where}: {value!r}; wanted words, as a list or with spaces between"
    )
  return found


def read_spans(task, path, split) -> list[spec.SpanExample]:
  """Reads questions about a text that holds the answer."""
  is_squad = path.lower().endswith(".json")
  read = (
    qa.make_reader(strict=True)
    if is_squad
    else tables.make_reader(_span_example, "id")
  )
  return read(task, path, split)


def _span_example(task, split, where, id, row) -> spec.SpanExample:
  question_column, context_column = task.text
  context = tables.text_field(row, context_column, where)
  # An empty text means that there is no answer.
  answer = tables.label_field(task, row, split, where, missing=(None,))
  answers: tuple[tuple[str, int], ...] = ()
  if answer == "" and not task.has_null:
    raise spec.TaskError(
      f"{where}: no answer; set task.has_null if questions may have none"
    )
  if answer:
    found = qa.locate(str(answer), _start(row, where), context)
    if found is None:
      raise spec.TaskError(
        f"{where}: answer {answer!r} is not in its {context_column}; an"
        " answer must be a part of that text"
      )
    answers = (found,)
  question = tables.text_field(row, question_column, where)
  is_impossible = answer is not None and not answers
  return spec.SpanExample(id, question, context, answers, is_impossible)


def _start(row: Mapping[str, Any], where: str) -> int:
  """Returns the index at which an answer begins; -1 if the row has none."""
  value = row.get("answer_start", "")
  try:
    return int(value) if value not in ("", None) else -1
  except (TypeError, ValueError, OverflowError):
    raise spec.TaskError(
      f"{where}: answer_start is {value!r}; wanted the index of a character"
    ) from None


def class_labels(task: spec.Task, path: str) -> tuple[str, ...]:
  """Returns the labels in a training file with one label in each row."""
  return spec.distinct_labels(
    str(tables.field(row, task.label, where))
    for where, row in tables.read_rows(path, task.columns)
  )


def tag_labels(task: spec.Task, path: str) -> tuple[str, ...]:
  """Returns the tags in a training file with a tag for each word."""
  examples = read_tags(task, path, task.train_split)
  return ner.tag_labels(tag for e in examples for tag in e.labels or ())
