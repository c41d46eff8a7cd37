"""Tasks that choose one of four endings: SWAG, HellaSwag and CODAH.

Source: section 4.4; https://aclanthology.org/D18-1009,
  https://aclanthology.org/P19-1472, https://aclanthology.org/W19-2008
"""

from collections.abc import Callable, Mapping, Sequence
import math
import operator
from typing import Any

from bert_jax.tasks import spec
from bert_jax.tasks import tables

# (task, row, "PATH:LINE") -> the pairs of texts, one for each choice.
_Pairs = Callable[[Any, Mapping[str, Any], str], tuple[tuple[str, str], ...]]


def choice_label(value: Any, num_choices: int, where: str) -> int:
  """Returns the index of the right choice, from 0.

  Raises:
    spec.TaskError: The label is not an integer, or not one of the choices.
  """
  try:
    # int() would read 1.7 as 1, too.
    label = int(value, 10) if isinstance(value, str) else operator.index(value)
  except (TypeError, ValueError, OverflowError):
    label = -1
  if isinstance(value, bool) or not 0 <= label < num_choices:
    raise spec.TaskError(
      f"{where}: label {value!r} is not known; the {num_choices} choices are"
      f" numbered 0 to {num_choices - 1}"
    )
  return label


def own_label(
  task: spec.Task,
  value: Any,
  texts: Sequence[str],
  names: Sequence[str],
  where: str,
) -> int:
  """Returns the index of the right choice in a user's own file, from 0.

  Args:
    task: the task, which says what number the first choice has.
    value: the label: the name of a choice, its letter from A, its number, or
      its whole text.
    texts: the text of each choice.
    names: the name of each choice; () without names.
    where: the file and line, for the error.

  Raises:
    spec.TaskError: The label is none of these.
  """
  text = str(value).strip()
  if text in names:
    return list(names).index(text)
  letter = ord(text.upper()) - ord("A") if len(text) == 1 else -1
  if 0 <= letter < len(texts):
    return letter
  first = task.first_choice
  try:
    number = float(text)  # 1.0, as a spreadsheet writes 1 in some columns
  except ValueError:
    number = math.nan
  if not isinstance(value, bool) and number.is_integer():
    if 0 <= number - first < len(texts):
      return int(number) - first
    advice = ""
    if number == len(texts):
      advice = "; if the first has the number 1, set task.first_choice=1"
    raise spec.TaskError(
      f"{where}: label {value!r} is not known; the {len(texts)} choices are"
      f" numbered {first} to {first + len(texts) - 1}{advice}"
    )
  if text and list(texts).count(text) == 1:
    return list(texts).index(text)
  last = chr(ord("A") + min(len(texts), 26) - 1)
  raise spec.TaskError(
    f"{where}: label {value!r} is not known; the {len(texts)} choices are"
    f" numbered {first} to {first + len(texts) - 1}, or A to {last}"
  )


def make_reader(
  pairs_of: _Pairs, id_column: str = ""
) -> Callable[..., list[spec.ChoiceExample]]:
  """Makes the reader of a task's files: CSV, TSV or JSON lines.

  Args:
    pairs_of: (task, row, "PATH:LINE") -> pairs of texts.
    id_column: the column that holds the ids; without it, rows are numbered
      from 0.
  """

  def example(task, split, where, id, row):
    pairs = pairs_of(task, row, where)
    label = tables.label_field(task, row, split, where)
    if label is not None:
      label = choice_label(label, len(pairs), where)
    return spec.ChoiceExample(id, pairs, label)

  return tables.make_reader(example, id_column)


def column_pairs(task, row, where) -> tuple[tuple[str, str], ...]:
  """Pairs the text in the first column with the text in each other column."""
  first, *choices = (tables.text_field(row, name, where) for name in task.text)
  return tuple((first, second) for second in choices)


def _swag_pairs(task, row, where) -> tuple[tuple[str, str], ...]:
  """Pairs the first sentence with each completion of the second."""
  (first, start), *ends = column_pairs(task, row, where)
  return tuple((first, f"{start} {end}") for _, end in ends)


def _hellaswag_pairs(task, row, where) -> tuple[tuple[str, str], ...]:
  """Pairs the full sentences of the context with each completed rest."""
  first = tables.text_field(row, "ctx_a", where)
  start = tables.text_field(row, "ctx_b", where)
  ends = tables.field(row, "endings", where)
  if not isinstance(ends, list) or not all(isinstance(e, str) for e in ends):
    raise spec.TaskError(f"{where}: endings is {ends!r}; wanted texts")
  return tuple((first, f"{start} {end}".strip()) for end in ends)


def _hellaswag_record(task, split, where, id, record) -> spec.ChoiceExample:
  """Pairs the context, which TFDS joins into one text, with each ending."""
  context = tables.text_field(record, "context", where)
  endings = tables.field(record, "endings", where)
  ends = [tables.as_text(end, "endings", where) for end in endings]
  label = int(tables.field(record, "label", where))
  return spec.ChoiceExample(
    id,
    tuple((context, end) for end in ends),
    None if label < 0 else choice_label(label, len(ends), where),
  )


_CODAH_TEXT = ("prompt", "choice0", "choice1", "choice2", "choice3")

_FACTS: dict[str, Any] = {"kind": "choice", "metrics": ("accuracy",)}

ROWS = (
  spec.Task(
    name="swag",
    text=("sent1", "sent2", "ending0", "ending1", "ending2", "ending3"),
    label="label",
    files={
      "train": ("train.csv", "train.jsonl"),
      "validation": ("val.csv", "val.jsonl"),
      "test": ("test.csv", "test.jsonl"),
    },
    folders=("swag", "SWAG", "data"),
    read=make_reader(_swag_pairs),
    **_FACTS,
  ),
  spec.Task(
    name="hellaswag",
    label="label",
    files={
      "train": ("hellaswag_train.jsonl", "train.jsonl"),
      "validation": ("hellaswag_val.jsonl", "val.jsonl"),
      "test": ("hellaswag_test.jsonl", "test.jsonl"),
    },
    folders=("hellaswag", "data"),
    read=make_reader(_hellaswag_pairs, "ind"),
    tfds="hellaswag",
    read_record=_hellaswag_record,
    **_FACTS,
  ),
  spec.Task(
    name="codah",
    text=_CODAH_TEXT,
    label="answer",
    files={
      "train": ("fold_0_train.tsv", "train.tsv"),
      "validation": ("fold_0_dev.tsv", "dev.tsv"),
      "test": ("fold_0_test.tsv", "test.tsv"),
    },
    folders=("codah", "fold_0"),
    read=make_reader(column_pairs),
    columns=("category", *_CODAH_TEXT, "answer"),
    # Its test split has labels: each fold holds some of the same questions.
    eval_splits=("validation", "test"),
    test_splits=(),
    **_FACTS,
  ),
)
