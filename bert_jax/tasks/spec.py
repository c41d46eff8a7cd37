"""Defines fine-tuning tasks and their examples.

A `Task` names its kind, its labels in the order of their ids, its metrics and
its files. It holds everything that differs between two tasks of one kind;
bert_jax/kinds holds what differs between kinds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from typing import Any, TypeAlias

from bert_jax.runtime import errors


class TaskError(errors.UserError):
  """The data or the settings of a task cannot be used."""

  def __init__(self, message: str):
    if len(message) > 1000:  # It quotes the data; its two ends are enough.
      message = f"{message[:700]} ... {message[-200:]}"
    super().__init__(message)


class _Labelled:
  """An example whose label is None if it is not known."""

  __slots__ = ()
  label: Any

  @property
  def is_labelled(self) -> bool:
    """Whether the right answer is known."""
    return self.label is not None


@dataclasses.dataclass(frozen=True, slots=True)
class PairExample(_Labelled):
  """A text or a pair of texts, with a label.

  Attributes:
    id: the id in the file (GLUE's `index`), or else the number of the row.
    text_a: the first text.
    text_b: the second text; None if the task has one text.
    label: an index into `Task.labels`, several of them, or a score; None if it
      is not known.
  """

  id: str
  text_a: str
  text_b: str | None
  label: int | float | tuple[int, ...] | None

  @property
  def pairs(self) -> tuple[tuple[str, str | None], ...]:
    """The text or pair as the only one, as `ChoiceExample` has several."""
    return ((self.text_a, self.text_b),)


@dataclasses.dataclass(frozen=True, slots=True)
class GroupedExample(PairExample):
  """A pair of texts whose prediction is scored with those of its group.

  A group holds, for example, all answers to a question.

  Attributes:
    group: what the examples of a group share.
    candidate: the answer that the example stands for, if its text is scored.
    golds: the right answers of the group; () if they are not known.
  """

  group: str = ""
  candidate: str = ""
  golds: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceExample(_Labelled):
  """Several pairs of texts, one of which is right; kind "choice".

  Attributes:
    id: the id in the file, or else the number of the row.
    pairs: C pairs, which the encoder reads one at a time.
    label: the index of the right pair; None if it is not known.
  """

  id: str
  pairs: tuple[tuple[str, str], ...]
  label: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class TagExample:
  """A sentence with a tag for each word; kind "tag".

  Attributes:
    id: the number of the sentence in the file.
    words: the words of the sentence.
    labels: the tag of each word, in IOB2 if tags are chunks; None if they are
      not known.
    document: the number of the document that the sentence belongs to.
    offsets: the range of characters of each word in the text that was split
      into these words; None if the words were given.
  """

  id: str
  words: tuple[str, ...]
  labels: tuple[str, ...] | None
  document: int
  offsets: tuple[tuple[int, int], ...] | None = dataclasses.field(
    default=None, repr=False
  )

  @property
  def is_labelled(self) -> bool:
    """Whether the right answer is known."""
    return self.labels is not None


@dataclasses.dataclass(frozen=True, slots=True)
class SpanExample:
  """A question about a text; kind "span".

  Attributes:
    id: the id of the question.
    question: the question.
    context: the text that holds the answer.
    answers: (text, index of its first character in `context`) for each person
      who answered; () if `is_impossible` or if no answer is known.
    is_impossible: whether the context is known not to hold an answer.
  """

  id: str
  question: str
  context: str
  answers: tuple[tuple[str, int], ...]
  is_impossible: bool

  @property
  def is_labelled(self) -> bool:
    """Whether the right answer is known."""
    return bool(self.answers) or self.is_impossible


Example: TypeAlias = PairExample | ChoiceExample | TagExample | SpanExample


def in_both_orders(task: "Task", examples: Sequence[Any]) -> list[Any]:
  """Returns each example, followed by the same with its texts swapped.

  Args:
    task: the task, for errors.
    examples: examples that have two texts each.

  Raises:
    TaskError: The examples are not pairs of texts.

  Source: google-research/electra, finetune/classification/
  classification_tasks.py, double_unordered.
  """
  result = []
  for example in examples:
    if not isinstance(example, PairExample) or example.text_b is None:
      raise TaskError(
        f"task.both_orders=True, but an example of task {task.name} is not a "
        "pair of texts; set it to False"
      )
    result += [
      example,
      dataclasses.replace(
        example, text_a=example.text_b, text_b=example.text_a
      ),
    ]
  return result


def units(examples: Sequence[Any]) -> list[list[int]]:
  """Returns the indices of the examples that are scored together.

  Each group of `GroupedExample` is a unit, and so is each other example.
  """
  found: dict[Any, list[int]] = {}
  for index, example in enumerate(examples):
    is_grouped = isinstance(example, GroupedExample)
    key = (example.group,) if is_grouped else index
    found.setdefault(key, []).append(index)
  return list(found.values())


def without_label(example: Any) -> Any:
  """Returns an example as if its right answer were not known."""
  if isinstance(example, SpanExample):
    return dataclasses.replace(example, answers=(), is_impossible=False)
  name = "labels" if isinstance(example, TagExample) else "label"
  return dataclasses.replace(example, **{name: None})


@dataclasses.dataclass(frozen=True)
class Task:
  """The facts of a task.

  Attributes:
    name: the name in configs, in lower case.
    kind: the name of the kind of task, see bert_jax/kinds.
    read: (task, path, split) -> the examples of a file.
    metrics: the names of its metrics, among the scores of its kind.
    main: the metric by which models are compared; "" means the first.
    text: the columns of the texts in the order in which the encoder reads them,
      if the reader of the files wants them.
    label: the column of the label, or "".
    labels: the labels as files and predictions spell them, in the order of
      their ids; () if labels have no names.
    columns: the names of the columns, for files without a header line.
    label_separator: the separator of several labels in one column.
    has_null: whether questions may have no answer (kind "span").
    file_labels: the labels in the order of the numbers that stand for them in
      files; () if no numbers do.
    missing_labels: what to do with a row without a label outside of the test
      splits: "error", or "drop".
    tag_scheme: "chunks" if tags mark chunks of words, in a scheme of
      tag_schemes.py; "plain" if each tag is about its word alone; "auto" for
      own data whose labels are not read yet (kind "tag").
    word_split: how a text is split into words, see words.py (kind "tag").
    first_choice: the number of the first choice in files (kind "choice").
    train_answers: which answers to a question are learned, if it has several:
      "one" refuses them, or "first", "most_frequent", "all" (kind "span").
    train_split: the name of the split to train on, or "" without one.
    eval_splits: the splits with labels to evaluate on.
    test_splits: the splits whose labels may be missing.
    files: split -> possible names of its file; the first that exists is read.
    folders: the names of the benchmark's own folder, which are tried after
      the given folder itself.
    read_record: (task, split, where, id, record) -> the example of a TFDS
      record, or None to leave the record out; `where` names the record in
      errors.
    tfds: the name of the TFDS builder, or "".
    tfds_splits: split -> the name that TFDS gives it, where it differs.
    tfds_labels: the labels in the order of TFDS's ids, if that differs.
    percent: the factor that turns its scores into percent.
    submission: split -> the name of its file on the benchmark's server.
    submit: (task, examples, predictions) -> the text of such a file; None if
      `submission` is empty.
    trained_as: the task whose model is evaluated on this one; "" means itself.
  """

  name: str
  kind: str
  read: Callable[["Task", str, str], list[Any]]
  metrics: tuple[str, ...]
  main: str = ""
  text: tuple[str, ...] = ()
  label: str = ""
  labels: tuple[str, ...] = ()
  columns: tuple[str, ...] = ()
  label_separator: str = ","
  has_null: bool = False
  file_labels: tuple[str, ...] = ()
  missing_labels: str = "error"
  tag_scheme: str = "chunks"
  word_split: str = "spaces"
  first_choice: int = 0
  train_answers: str = "one"
  train_split: str = "train"
  eval_splits: tuple[str, ...] = ("validation",)
  test_splits: tuple[str, ...] = ("test",)
  files: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  folders: tuple[str, ...] = ()
  read_record: Callable[..., Any] | None = None
  tfds: str = ""
  tfds_splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
  tfds_labels: tuple[str, ...] = ()
  percent: float = 100.0
  submission: Mapping[str, str] = dataclasses.field(default_factory=dict)
  submit: Callable[["Task", Sequence[Any], Sequence[Any]], str] | None = None
  trained_as: str = ""

  @property
  def main_metric(self) -> str:
    """The name of the metric by which models are compared, without "eval/"."""
    return self.main or self.metrics[0]

  @property
  def splits(self) -> tuple[str, ...]:
    """All splits: for training, evaluation and test."""
    train = (self.train_split,) if self.train_split else ()
    return train + self.eval_splits + self.test_splits


def label_id(task: Task, text: str, where: str) -> int:
  """Returns the id of a label.

  Args:
    task: the task, whose labels are known.
    text: the label as a file spells it.
    where: the file and line, for the error.

  Raises:
    TaskError: The task has no such label; the message lists its labels.
  """
  try:
    return task.labels.index(text)
  except ValueError:
    raise TaskError(
      f"{where}: label {text!r} is not known to task {task.name}; known:"
      f" {', '.join(task.labels)}"
    ) from None


def have_labels(task: Task, examples: Sequence[Example]) -> bool:
  """Returns whether the examples of a split have labels.

  Raises:
    TaskError: Some examples have a label and others do not.
  """
  known = [example.is_labelled for example in examples]
  if any(known) and not all(known):
    bad = examples[known.index(False)]
    raise TaskError(
      f"task {task.name}: example {bad.id} has no label, but others of its"
      " split have one; label all of them or none"
    )
  return all(known)


def distinct_labels(texts: Iterable[str]) -> tuple[str, ...]:
  """Returns labels without repeats, sorted; numbers by their value."""
  found = set(texts)
  try:
    return tuple(sorted(found, key=float))
  except ValueError:
    return tuple(sorted(found))
