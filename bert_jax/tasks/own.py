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
    spec.TaskError: a wrong number of columns, or labels that are neither given
      nor in a training file.
  """
  least, most = form.num_texts
  if len(text) < least or (most and len(text) > most):
    raise spec.TaskError(
      f"task {name}: {len(text)} text columns ({', '.join(text) or 'none'}),"
      f" wanted {least}" + (f" to {most}" if most != least else "")
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
  return dataclasses.replace(task, labels=found)


def find_train(folder: str) -> str:
  """The training file in a folder of own data; "" where there is none."""
  for ending in _ENDINGS:
    path = os.path.join(folder, f"train{ending}")
    if os.path.exists(path):
      return path
  return ""


def optional_label(
  task: spec.Task,
  row: Mapping[str, Any],
  where: str,
  split: str,
  missing: tuple[Any, ...] = (None, ""),
) -> Any:
  """Returns the label of a row; None where a test split has none.

  Args:
    task: names the column.
    row: of a file.
    where: file and line, for errors.
    split: that the file is.
    missing: what a column without a label holds.
  """
  if split in task.test_splits and row.get(task.label) in missing:
    return None
  return tables.field(row, task.label, where)


def read_pairs(
  task: spec.Task,
  path: str,
  split: str,
  columns: Sequence[str] = (),
  parse: Callable[..., Any] = lambda task, value, where: glue.parse_label(
    task,
    str(value),
    where,  # JSON has numbers and truth values too
  ),
  missing: tuple[Any, ...] = (None, ""),
) -> list[spec.PairExample]:
  """Reads texts or pairs of texts with a label each.

  Args:
    task: names the columns.
    path: of the file.
    split: that it is.
    columns: names of all columns, for files without a header line.
    parse: (task, value, PATH:LINE) -> label.
    missing: what a column without a label holds.
  """
  examples = []
  for number, (where, row) in enumerate(tables.read_rows(path, columns)):
    texts = [tables.text_field(row, name, where) for name in task.text]
    value = optional_label(task, row, where, split, missing)
    label = None if value is None else parse(task, value, where)
    second = texts[1] if len(texts) > 1 else None
    examples.append(spec.PairExample(str(number), texts[0], second, label))
  return examples


def read_choices(task, path, split, columns) -> list[spec.ChoiceExample]:
  """Reads a text and its choices, of which one fits."""

  def pairs_of(row, where):
    first, *choices = (
      tables.text_field(row, name, where) for name in task.text
    )
    return tuple((first, second) for second in choices)

  return choice.make_reader(pairs_of, names=columns)(task, path, split)


def _is_table(path: str) -> bool:
  ending = os.path.splitext(path)[1].lower()
  return ending in (".tsv", ".csv", *tables.JSON_LINES)


def read_tags(task, path, split, columns) -> list[spec.TagExample]:
  """Reads sentences with a tag for each word."""
  if not _is_table(path):
    return ner.make_reader()(task, path, split)
  examples = []
  for number, (where, row) in enumerate(tables.read_rows(path, columns)):
    words = _list(tables.field(row, task.text[0], where), where)
    value = optional_label(task, row, where, split)
    labels = None
    if value is not None:
      tags = _list(value, where)
      if len(tags) != len(words):
        raise spec.TaskError(
          f"{where}: {len(tags)} tags for {len(words)} words"
        )
      labels = ner.to_iob2(tags, "auto", [where] * len(words))
      for tag in labels if task.labels else ():
        spec.label_id(task, tag, where)
    examples.append(spec.TagExample(str(number), tuple(words), labels, number))
  return examples


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
  question_column, context_column = task.text
  examples = []
  for number, (where, row) in enumerate(tables.read_rows(path, columns)):
    context = tables.text_field(row, context_column, where)
    # No text means that there is no answer.
    answer = optional_label(task, row, where, split, missing=(None,))
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
    examples.append(
      spec.SpanExample(
        str(row.get("id", number)),
        tables.text_field(row, question_column, where),
        context,
        answers,
        is_impossible=answer is not None and not answers,
      )
    )
  return examples


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
