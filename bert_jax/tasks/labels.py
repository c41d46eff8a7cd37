"""Reads the labels of a user's own files, and says what seems wrong with them.

Labels are trimmed. A number is the same label however it is spelled, so that 1
and 1.0 are one label. What can only be a mistake is an error that names the
lines and what may have been meant.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import logging
import math
import re
from typing import Any

from bert_jax.tasks import spec
from bert_jax.tasks import tables

_log = logging.getLogger(__name__)

_SHOWN = 8  # the lines that a message lists
# More different numbers with fractions than this are scores and not classes.
_MOST_NUMBERS = 20
# More different labels than this, in more than half of the rows, are texts.
_MOST_LABELS = 50
_SEPARATORS = re.compile(r"[,;|]")


def lines(places: Sequence[str], total: int = 0) -> str:
  """Returns "lines 3, 9 and 40 more" of places such as "PATH:LINE".

  Args:
    places: the places, of which the first are listed.
    total: the number of places, if there are more than are given.
  """
  total = max(total, len(places))
  shown = [place.rpartition(":")[2] for place in places[:_SHOWN]]
  numbers = [place.strip().removeprefix("row ") for place in shown]
  noun = "row" if shown[0].strip() != numbers[0] else "line"
  text = f"{noun}{'s' if total > 1 else ''} {', '.join(numbers)}"
  more = total - len(numbers)
  return f"{text} and {more:,} more" if more else text


def is_missing(value: Any) -> bool:
  """Returns whether the value of a column says that there is no label."""
  if isinstance(value, float):
    return math.isnan(value)
  return value is None or (isinstance(value, str) and not value.strip())


def is_minus_one(task: spec.Task, value: Any) -> bool:
  """Returns whether a value is -1, which many files to predict have as label.

  A task that has -1 among its labels means that label.
  """
  text = str(value).strip()
  is_label = any(_number(label) == -1 for label in task.labels)
  return text in ("-1", "-1.0") and not is_label


def spelled(value: Any, where: str, column: str) -> str:
  """Returns the label in a column as text, trimmed.

  Raises:
    spec.TaskError: The value holds several labels.
  """
  text = value.strip() if isinstance(value, str) else str(value)
  is_list = isinstance(value, list | dict)
  if is_list or (text[:1] == "[" and text[-1:] == "]"):
    raise spec.TaskError(
      f"{where}: {column} is {text[:60]}, a list and not one label; if a text"
      " may have several labels, use task=my-multi_label"
    )
  return text


def _number(text: str) -> float | None:
  """Returns the number that a label spells, or None for a word."""
  try:
    value = float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) else None


def _key(text: str) -> Any:
  """Returns what is the same for two spellings of one number."""
  number = _number(text)
  return text if number is None else number


def label_id(task: spec.Task, value: Any, where: str) -> int:
  """Returns the id of the label in a column of an own file.

  Args:
    task: the task, whose labels are known.
    value: the value of the column.
    where: the file and line, for the error.

  Raises:
    spec.TaskError: The task has no such label; the message lists its labels.
  """
  text = spelled(value, where, task.label)
  if text in task.labels:
    return task.labels.index(text)
  number = _number(text)
  if number is not None:
    for id, label in enumerate(task.labels):
      if _number(label) == number:
        return id
    if task.file_labels and number in range(len(task.file_labels)):
      return task.labels.index(task.file_labels[int(number)])
  twins = [x for x in task.labels if x.casefold() == text.casefold()]
  try:
    return spec.label_id(task, text, where)
  except spec.TaskError as error:
    if not twins:
      raise
    raise spec.TaskError(f"{error}; {twins[0]!r} may be meant") from None


def score(task: spec.Task, value: Any, where: str) -> float:
  """Returns the score in a column.

  Raises:
    spec.TaskError: The value is not a finite number.
  """
  del task
  try:
    number = float(str(value))
  except ValueError:
    number = math.nan
  if not math.isfinite(number):
    raise spec.TaskError(f"{where}: score {value!r} is not a finite number")
  return number


def numbered(labels: Sequence[str]) -> tuple[str, ...]:
  """Returns the labels if numbers can stand for them, as in some data sets."""
  is_clear = all(_number(label) is None for label in labels)
  return tuple(labels) if is_clear else ()


@dataclasses.dataclass
class _Seen:
  """Where a label was seen: the first places, and how often."""

  places: list[str]
  count: int = 0

  def add(self, where: str) -> None:
    self.count += 1
    if len(self.places) < _SHOWN:
      self.places.append(where)

  def __str__(self) -> str:
    return lines(self.places, self.count)


def count_labels(values: Iterable[tuple[str, str]]) -> dict[str, _Seen]:
  """Counts labels.

  Args:
    values: (the place, the label) for each label of a file.
  """
  found: dict[str, _Seen] = {}
  for where, text in values:
    found.setdefault(text, _Seen([])).add(where)
  return found


def values(task: spec.Task, path: str) -> Iterable[tuple[str, Any]]:
  """Yields (place, value of the label's column); rows without one are left out.

  Raises:
    spec.TaskError: No row has the column.
  """
  lacking: list[tuple[str, Mapping[str, Any]]] = []
  found = False
  for where, row in tables.iter_rows(path, task.columns):
    if task.label not in row:
      lacking = lacking or [(where, row)]
      continue
    found = True
    if not is_missing(row[task.label]):
      yield where, row[task.label]
  if not found and lacking:
    where, row = lacking[0]
    tables.field(row, task.label, where)


def of_classes(task: spec.Task, path: str) -> tuple[str, ...]:
  """Returns the labels in a training file with one label in each row.

  Raises:
    spec.TaskError: The column does not look like labels of one class each.
  """
  found = count_labels(
    (where, spelled(value, where, task.label))
    for where, value in values(task, path)
  )
  _check_scores(task, path, found)
  _check_joined(task, path, found)
  labels = _merge_numbers(path, found)
  warn_of_twins(path, found)
  return check_count(task, spec.distinct_labels(labels), path)


def check_count(
  task: spec.Task, labels: tuple[str, ...], source: str
) -> tuple[str, ...]:
  """Returns labels, of which there must be two or more.

  Args:
    task: the task.
    labels: the labels.
    source: the file or the key that they come from.
  """
  if len(labels) == 1:
    raise spec.TaskError(
      f"{source}: every label of task {task.name} is {labels[0]!r}, so there is"
      " nothing to learn; is task.label the right column? If other labels exist"
      " but this file has none of them, list all in task.labels"
    )
  return labels


def _check_scores(
  task: spec.Task, path: str, found: Mapping[str, _Seen]
) -> None:
  """Raises an error for scores, and for texts, in the place of labels."""
  numbers = [_number(label) for label in found]
  has_fractions = any(x is not None and x % 1 for x in numbers)
  if len(found) > _MOST_NUMBERS and has_fractions and None not in numbers:
    first = next(iter(found.values()))
    raise spec.TaskError(
      f"{path}: column {task.label!r} has {len(found)} different numbers"
      f" ({', '.join(list(found)[:4])}, ..., from {first.places[0]}); if these"
      " are scores, use task=my-regress; if each is a class, list them in"
      " task.labels"
    )
  count = sum(seen.count for seen in found.values())
  if len(found) > max(_MOST_LABELS, count / 2):
    raise spec.TaskError(
      f"{path}: column {task.label!r} has {len(found)} different labels in"
      f" {count} rows ({', '.join(repr(x)[:40] for x in list(found)[:3])},"
      " ...); is task.label the right column? If each is a class, list them in"
      " task.labels"
    )


def _check_joined(
  task: spec.Task, path: str, found: Mapping[str, _Seen]
) -> None:
  """Raises an error for labels that consist of other labels of the file."""
  for label, seen in found.items():
    parts = [part.strip() for part in _SEPARATORS.split(label)]
    if len(parts) > 1 and all(part in found for part in parts):
      raise spec.TaskError(
        f"{path}, {seen}: the label {label!r} consists of other labels of the"
        " file; if a text may have several labels, use task=my-multi_label; if"
        " this is one label, list all in task.labels"
      )


def _merge_numbers(path: str, found: Mapping[str, _Seen]) -> list[str]:
  """Returns the labels, with the shortest of the spellings of each number."""
  spellings: dict[Any, list[str]] = {}
  for label in found:
    spellings.setdefault(_key(label), []).append(label)
  for same in spellings.values():
    if len(same) > 1:
      same.sort(key=lambda label: (len(label), label))
      _log.warning(
        "%s: %s are read as one label, %s", path,
        ", ".join(f"{label} ({found[label]})" for label in same), same[0],
      )  # fmt: skip
  return [same[0] for same in spellings.values()]


def warn_of_twins(path: str, found: Mapping[str, _Seen]) -> None:
  """Logs labels that differ only in capitals or in the spaces within them."""
  spellings: dict[str, list[str]] = {}
  for label in found:
    plain = " ".join(label.casefold().split())
    spellings.setdefault(plain, []).append(label)
  for same in spellings.values():
    if len(same) > 1:
      _log.warning(
        "%s: the labels %s differ only in capitals or spaces, and are %d"
        " different labels; correct the file if one is meant", path,
        ", ".join(f"{label!r} ({found[label]})" for label in same), len(same),
      )  # fmt: skip


def complete_classes(task: spec.Task, path: str) -> spec.Task:
  """Returns a task with its labels: the given ones, or those of a file."""
  if task.labels:
    check_count(task, task.labels, "task.labels")
    return dataclasses.replace(task, file_labels=numbered(task.labels))
  return dataclasses.replace(task, labels=of_classes(task, path))


def read_file(path: str) -> tuple[str, ...]:
  """Returns the labels in a file with one label on each line."""
  found = [line.strip() for line in tables.read_lines(path)]
  return tuple(label for label in found if label)


def check_given(task: spec.Task) -> None:
  """Raises an error if a label is given twice."""
  for label in task.labels:
    if task.labels.count(label) > 1:
      raise spec.TaskError(
        f"task {task.name}: the label {label!r} is given"
        f" {task.labels.count(label)} times; give each label once"
      )


def refuse_missing(task: spec.Task, places: Sequence[str], total: int) -> None:
  """Raises an error, or logs, that rows of a split have no label.

  Args:
    task: the task, which says which of the two.
    places: the places of these rows.
    total: the number of all rows.
  """
  if not places:
    return
  path = places[0].rpartition(":")[0]
  said = f"{path}, {lines(places)}: no {task.label!r} in {len(places)} of"
  if task.missing_labels != "drop" or len(places) == total:
    raise spec.TaskError(
      f"{said} {total} rows; add the labels, or leave these rows out with"
      " task.missing_labels=drop"
    )
  _log.warning("%s %d rows, which are left out", said, total)


def hide_if_partial(examples: list[Any], path: str) -> list[Any]:
  """Returns examples, none of which has a label unless all of them have one.

  Only files to predict have some labels; they are predicted and not scored.
  """
  known = sum(example.is_labelled for example in examples)
  if known in (0, len(examples)):
    return examples
  _log.warning(
    "%s: %d of %d rows have no label, so the file is predicted and not scored",
    path, len(examples) - known, len(examples),
  )  # fmt: skip
  return [spec.without_label(example) for example in examples]
