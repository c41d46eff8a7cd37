"""Tasks on a user's own files: TSV, CSV, JSON lines, CoNLL or SQuAD's JSON.

task = make_task("pairs", text=("question", "reply"), label="fits",
                 train_path="train.csv")
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import os
from typing import Any

from bert_jax.tasks import choice
from bert_jax.tasks import glue
from bert_jax.tasks import ner
from bert_jax.tasks import qa
from bert_jax.tasks import spec
from bert_jax.tasks import tables

_SPLITS = {"train": ("train",), "validation": ("validation", "dev", "val")}
_ENDINGS = (".tsv", ".csv", ".jsonl", ".json", ".conll", ".txt")


@dataclasses.dataclass(frozen=True)
class Form:
  """A form of own data; each belongs to a kind of task.

  Attributes:
    kind: of task.
    num_texts: how many text columns it has: the least, and the most (0 = any).
    metrics: the first is the main one.
    read: (task, path, split, columns) -> examples.
    labels_of: (task, path, columns) -> the labels of a training file; None
      where labels have no names.
  """

  kind: str
  num_texts: tuple[int, int]
  metrics: tuple[str, ...]
  read: Callable[..., list[Any]]
  labels_of: Callable[..., tuple[str, ...]] | None = None


def make_task(
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
  """Makes the row of a task on own files.

  Args:
    form: of the data.
    text: columns of the text, by form: the text; both texts; the words (a
      list in JSON lines, or parted by spaces; not used for CoNLL files);
      question and context; the context and each choice.
    label: column of the label: a label, a list of labels, a number, the tags
      (as the words), the answer ("" = none), or the number of the right choice
      from 0.
    labels: in the order of the ids; () = those of the training file, sorted.
    train_path: the training file, where `labels` is ().
    columns: names of the columns, for files without a header line.
    has_null: questions may have no answer.
    label_separator: what stands between several labels in one column.
    name: of the task.

  Returns:
    A task with the splits train, validation and test. Its files lie under
    these names in a folder, or are named one by one.

  Raises:
    spec.TaskError: a wrong number of columns, labels that are neither given
      nor in a training file, or no separator.
  """
  least, most = form.num_texts
  if len(text) < least or (most and len(text) > most):
    raise spec.TaskError(
      f"task {name}: {len(text)} text columns ({', '.join(text) or 'none'}),"
      f" wanted {least}" + (f" to {most}" if most != least else "")
    )
  if not label_separator:
    raise spec.TaskError(
      f"task {name}: task.label_separator is empty; give what stands between"
      ' several labels in one column, such as ","'
    )
  splits = _SPLITS | {"test": ("test",)}
  task = spec.Task(
    name=name,
    kind=form.kind,
    text=tuple(text),
    labels=tuple(labels),
    metrics=form.metrics,
    main_metric=form.metrics[0],
    train_split="train",
    eval_splits=("validation",),
    test_splits=("test",),
    source="",
    files={
      split: tuple(stem + ending for stem in stems for ending in _ENDINGS)
      for split, stems in splits.items()
    },
    read=functools.partial(form.read, columns=tuple(columns)),
    label=label,
    label_separator=label_separator,
    has_null=has_null,
  )
  if form.labels_of is None or labels:
    return task
  if not train_path:
    raise spec.TaskError(
      f"task {name}: its labels are not known; give labels, or the training"
      " file to take them from"
    )
  found = form.labels_of(task, train_path, tuple(columns))
  if not found:
    raise spec.TaskError(
      f"task {name}: no row of {train_path} has a label in its column"
      f" {label!r}; give labels, or another file or column"
    )
  return dataclasses.replace(task, labels=found)


def find_train(folder: str) -> str:
  """The training file in a folder of own data; "" where there is none."""
  for ending in _ENDINGS:
    path = os.path.join(folder, f"train{ending}")
    if os.path.exists(path):
      return path
  return ""


def pair_reader(
  parse: Callable[[spec.Task, Any, str], Any],
  missing: tuple[Any, ...] = (None, ""),
) -> Callable[..., list[spec.PairExample]]:
  """Makes a reader of texts or pairs of texts with a label each.

  Args:
    parse: (task, value of the label's column, "PATH:LINE") -> label.
    missing: the values that stand for a missing label.
  """

  def example(task, split, where, id, row):
    texts = tables.text_pair(row, task.text, where)
    label = None
    if not tables.lacks_label(task, row, split, missing):
      value = tables.field(row, task.label, where)
      label = None if value is None else parse(task, value, where)
    return spec.PairExample(id, *texts, label)

  return tables.make_reader(example)


# JSON may hold the label as a number or a truth value.
read_pairs = pair_reader(
  lambda task, value, where: glue.parse_label(task, str(value), where)
)


def _choice_pairs(task, row, where) -> tuple[tuple[str, str], ...]:
  """Pairs the first text with each of the choices."""
  first, *choices = (tables.text_field(row, name, where) for name in task.text)
  return tuple((first, second) for second in choices)


read_choices = choice.make_reader(_choice_pairs)


def _is_table(path: str) -> bool:
  ending = os.path.splitext(path)[1].lower()
  return ending in (".tsv", ".csv", *tables.JSON_LINES)


def read_tags(task, path, split, columns) -> list[spec.TagExample]:
  """Reads sentences with a tag for each word."""
  if not _is_table(path):
    return ner.make_reader()(task, path, split)
  return tables.make_reader(_tag_example)(task, path, split, columns)


def _tag_example(task, split, where, id, row) -> spec.TagExample:
  words = _list(tables.field(row, task.text[0], where), where)
  labels = None
  if not tables.lacks_label(task, row, split):
    value = tables.field(row, task.label, where)
    labels = None if value is None else _tags(task, value, len(words), where)
  # Each row is a document of its own.
  return spec.TagExample(id, tuple(words), labels, int(id))


def _tags(task, value, num_words, where) -> tuple[str, ...]:
  tags = _list(value, where)
  if len(tags) != num_words:
    raise spec.TaskError(f"{where}: {len(tags)} tags for {num_words} words")
  labels = ner.to_iob2(tags, "auto", [where] * num_words)
  for tag in labels if task.labels else ():
    spec.label_id(task, tag, where)
  return labels


def _list(value: Any, where: str) -> list[str]:
  """Words or tags: a list, or text with spaces between them."""
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


def read_spans(task, path, split, columns) -> list[spec.SpanExample]:
  """Reads questions on a text, which holds the answer."""
  if path.lower().endswith(".json"):
    return qa.make_reader(strict=True)(task, path, split)
  return tables.make_reader(_span_example, "id")(task, path, split, columns)


def _span_example(task, split, where, id, row) -> spec.SpanExample:
  question_column, context_column = task.text
  context = tables.text_field(row, context_column, where)
  answer = None
  # An empty text means that there is no answer.
  if not tables.lacks_label(task, row, split, missing=(None,)):
    answer = tables.field(row, task.label, where)
  answers: tuple[tuple[str, int], ...] = ()
  if answer == "" and not task.has_null:
    raise spec.TaskError(
      f"{where}: no answer; set has_null where questions may have none"
    )
  if answer:
    found = qa.locate(str(answer), _start(row, where), context)
    if found is None:
      raise spec.TaskError(
        f"{where}: answer {answer!r} is not in its {context_column}; an"
        " answer is a stretch of that text"
      )
    answers = (found,)
  question = tables.text_field(row, question_column, where)
  is_impossible = answer is not None and not answers
  return spec.SpanExample(id, question, context, answers, is_impossible)


def _start(row: Mapping[str, Any], where: str) -> int:
  """Where the answer is said to begin; -1 where the file does not say."""
  value = row.get("answer_start", "")
  try:
    return int(value) if value not in ("", None) else -1
  except (TypeError, ValueError, OverflowError):
    raise spec.TaskError(
      f"{where}: answer_start is {value!r}; wanted the place of a character"
    ) from None


def class_labels(task, path, columns) -> tuple[str, ...]:
  """Returns the labels in a training file with one label a row."""
  return spec.distinct_labels(
    str(tables.field(row, task.label, where))
    for where, row in tables.read_rows(path, columns)
  )


def tag_labels(task, path, columns) -> tuple[str, ...]:
  """Returns the tags in a training file with a tag a word."""
  examples = read_tags(task, path, task.train_split, columns)
  return ner.tag_labels(tag for e in examples for tag in e.labels or ())
