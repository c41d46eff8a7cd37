"""What a fine-tuning task is: one row of facts, and the shapes of examples.

A row names its kind, its labels in the order of the ids, its metrics and where
its files lie. Everything that differs between two tasks of one kind is in the
row; what differs between kinds is in bert_jax/kinds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from typing import Any, TypeAlias

from bert_jax.runtime import errors


class TaskError(errors.UserError):
  """Task data cannot be used; says where and what to change."""

  def __init__(self, message: str):
    if len(message) > 1000:  # it quotes the data: the ends say what is wrong
      message = f"{message[:700]} ... {message[-200:]}"
    super().__init__(message)


class _Labelled:
  """An example with one label, or None where it is not known."""

  __slots__ = ()
  label: Any

  @property
  def is_labelled(self) -> bool:
    """Whether the right answer is known."""
    return self.label is not None


@dataclasses.dataclass(frozen=True, slots=True)
class PairExample(_Labelled):
  """A text, or two, with a label.

  Attributes:
    id: as in the file (GLUE's `index`), else its number in the file.
    text_a: the first text.
    text_b: the second, or None where a task has one.
    label: place in `Task.labels`, several such places, or a score; None = not
      known.
  """

  id: str
  text_a: str
  text_b: str | None
  label: int | float | tuple[int, ...] | None

  @property
  def pairs(self) -> tuple[tuple[str, str | None], ...]:
    """The one text or pair, in the form that several choices have."""
    return ((self.text_a, self.text_b),)


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceExample(_Labelled):
  """Several pairs of texts of which one fits; kind "choice".

  Attributes:
    id: as in the file, else its number in the file.
    pairs: C pairs, each fed to the encoder on its own.
    label: which pair fits, or None = not known.
  """

  id: str
  pairs: tuple[tuple[str, str], ...]
  label: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class TagExample:
  """The words of a sentence, each with a tag; kind "tag".

  Attributes:
    id: number of the sentence in the file.
    words: as in the file.
    labels: a tag a word, IOB2; None = not known.
    document: number of the document that the sentence is from.
  """

  id: str
  words: tuple[str, ...]
  labels: tuple[str, ...] | None
  document: int

  @property
  def is_labelled(self) -> bool:
    """Whether the right answer is known."""
    return self.labels is not None


@dataclasses.dataclass(frozen=True, slots=True)
class SpanExample:
  """A question on a text; kind "span".

  Attributes:
    id: of the question.
    question: the question.
    context: the text that holds the answer.
    answers: (text, first character in `context`) of each person asked; ()
      where `is_impossible`, or where the answers are not known.
    is_impossible: the text is known not to answer the question.
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


@dataclasses.dataclass(frozen=True)
class Task:
  """The facts of a task.

  Attributes:
    name: lower-case, as in a config.
    kind: of task; bert_jax/kinds has what a kind needs.
    text: columns or fields of the text, in the order the encoder sees them.
    labels: as files and predictions spell them; a label's id is its place. ()
      for kinds without named labels.
    metrics: names in the scores of its kind.
    main_metric: the one that models are compared by.
    train_split: its name, or "" where the task has no training data.
    eval_splits: with labels.
    test_splits: without labels, as far as they are public.
    source: address of the paper or of the data.
    files: split -> names of its file; the first that exists is read.
    folders: names of the folder that benchmarks ship the files in, tried
      after the given folder itself.
    read: (task, path, split) -> examples of a file.
    read_record: (task, split, number, record) -> example of a TFDS record, or
      None where it is left out.
    tfds: name of the TFDS builder, or "".
    tfds_splits: our split -> TFDS's, where the names differ.
    tfds_labels: labels in the order of TFDS's ids, where these differ.
    label: column of the label, or "".
    label_separator: what stands between several labels in one column.
    has_null: questions may have no answer (kind "span").
    percent: what makes per cent of its scores.
    submission: split -> file name on the GLUE server.
    trained_as: the task whose model is evaluated; "" = this one.
  """

  name: str
  kind: str
  text: tuple[str, ...]
  labels: tuple[str, ...]
  metrics: tuple[str, ...]
  main_metric: str
  train_split: str
  eval_splits: tuple[str, ...]
  test_splits: tuple[str, ...]
  source: str
  files: Mapping[str, tuple[str, ...]]
  read: Callable[["Task", str, str], list[Any]]
  read_record: Callable[["Task", str, int, Mapping[str, Any]], Any] | None = (
    None
  )
  folders: tuple[str, ...] = ()
  tfds: str = ""
  tfds_splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
  tfds_labels: tuple[str, ...] = ()
  label: str = ""
  label_separator: str = ","
  has_null: bool = False
  percent: float = 100.0
  submission: Mapping[str, str] = dataclasses.field(default_factory=dict)
  trained_as: str = ""

  def __post_init__(self):
    if self.main_metric not in self.metrics:
      raise TaskError(
        f"task {self.name}: main_metric={self.main_metric!r} is not among its"
        f" metrics {', '.join(self.metrics)}"
      )

  @property
  def splits(self) -> tuple[str, ...]:
    """All splits: training, evaluation, test."""
    train = (self.train_split,) if self.train_split else ()
    return train + self.eval_splits + self.test_splits


def label_id(task: Task, text: str, where: str) -> int:
  """The id of a label.

  Args:
    task: whose labels are known.
    text: the label as a file spells it.
    where: file and line, for the error.

  Raises:
    TaskError: it is none of the labels; lists them.
  """
  try:
    return task.labels.index(text)
  except ValueError:
    raise TaskError(
      f"{where}: label {text!r} is not known to task {task.name}; known:"
      f" {', '.join(task.labels)}"
    ) from None


def have_labels(task: Task, examples: Sequence[Example]) -> bool:
  """Whether a split has labels.

  Raises:
    TaskError: some examples have one and others do not.
  """
  known = [example.is_labelled for example in examples]
  if any(known) and not all(known):
    bad = examples[known.index(False)]
    raise TaskError(
      f"task {task.name}: example {bad.id} has no label, others of its split"
      " have one; label all or none"
    )
  return all(known)


def distinct_labels(texts: Iterable[str]) -> tuple[str, ...]:
  """Labels of own data: sorted, numbers by their value."""
  found = set(texts)
  try:
    return tuple(sorted(found, key=float))
  except ValueError:
    return tuple(sorted(found))
