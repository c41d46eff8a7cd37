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
  """A form of own data.

  Attributes:
    kind: one of spec.KINDS.
    num_texts: how many text columns it has: the least, and the most (0 = any).
    metrics: the first is the main one.
    read: (task, path, split, columns) -> examples.
  """

  kind: str
  num_texts: tuple[int, int]
  metrics: tuple[str, ...]
  read: Callable[..., list[Any]]


def make_task(
  form: str,
  *,
  text: Sequence[str],
  label: str,
  labels: Sequence[str] = (),
  train_path: str = "",
  columns: Sequence[str] = (),
  has_null: bool = True,
  name: str = "own",
) -> spec.Task:
  """Makes the row of a task on own files.

  Args:
    form: a key of FORMS: "classify" (one text), "pairs" (two), "regress" (one
      or two, a number), "tag", "span", "choice".
    text: columns of the text, by form: the text; both texts; the words (a
      list in JSON lines, or parted by spaces; not used for CoNLL files);
      question and context; the context and each choice.
    label: column of the label: a label, a number, the tags (as the words), the
      answer ("" = none), or the number of the right choice from 0.
    labels: in the order of the ids; () = those of the training file, sorted.
    train_path: the training file, where `labels` is ().
    columns: names of the columns, for files without a header line.
    has_null: questions may have no answer (span).
    name: of the task.

  Returns:
    A task with the splits train, validation and test. Its files lie under
    these names in a folder, or are named one by one.

  Raises:
    spec.TaskError: an unknown form, a wrong number of columns, or labels that
      are neither given nor in a training file.
  """
  if form not in FORMS:
    raise spec.TaskError(
      f"form={form!r} of the task {name}; use one of {', '.join(FORMS)}"
    )
  facts = FORMS[form]
  least, most = facts.num_texts
  if len(text) < least or (most and len(text) > most):
    raise spec.TaskError(
      f"task {name}, form {form}: {len(text)} text columns"
      f" ({', '.join(text) or 'none'}), wanted {least}"
      + (f" to {most}" if most != least else "")
    )
  splits = _SPLITS | {"test": ("test",)}
  task = spec.Task(
    name=name,
    kind=facts.kind,
    text=tuple(text),
    labels=tuple(labels),
    metrics=facts.metrics,
    main_metric=facts.metrics[0],
    train_split="train",
    eval_splits=("validation",),
    test_splits=("test",),
    source="",
    files={
      split: tuple(stem + ending for stem in stems for ending in _ENDINGS)
      for split, stems in splits.items()
    },
    read=functools.partial(_read, form, tuple(columns)),
    label=label,
    has_null=has_null and facts.kind == "span",
  )
  if facts.kind in _LABELS_OF and not labels:
    found = _LABELS_OF[facts.kind](task, train_path, tuple(columns))
    task = dataclasses.replace(task, labels=found)
  return task


def find_train(folder: str) -> str:
  """The training file in a folder of own data; "" where there is none."""
  for ending in _ENDINGS:
    path = os.path.join(folder, f"train{ending}")
    if os.path.exists(path):
      return path
  return ""


def _read(
  form: str, columns: Sequence[str], task: spec.Task, path: str, split: str
) -> list[Any]:
  return FORMS[form].read(task, path, split, columns)


def _optional(
  task: spec.Task, row: Mapping[str, Any], where: str, split: str
) -> Any:
  """The label of a row; None where a test split has none.

  No text is no label, but for questions, where it means no answer.
  """
  missing = (None,) if task.kind == "span" else (None, "")
  if split in task.test_splits and row.get(task.label) in missing:
    return None
  return tables.field(row, task.label, where)


def _label_text(value: Any) -> str:
  """A label as text; JSON has numbers and truth values too."""
  return value if isinstance(value, str) else str(value)


def _read_pairs(task, path, split, columns) -> list[spec.PairExample]:
  examples = []
  for number, (where, row) in enumerate(tables.read_rows(path, columns)):
    texts = [tables.text_field(row, name, where) for name in task.text]
    value = _optional(task, row, where, split)
    label = None
    if value is not None:
      label = glue.parse_label(task, _label_text(value), where)
    second = texts[1] if len(texts) > 1 else None
    examples.append(spec.PairExample(str(number), texts[0], second, label))
  return examples


def _read_choices(task, path, split, columns) -> list[spec.ChoiceExample]:
  def pairs_of(row, where):
    first, *choices = (
      tables.text_field(row, name, where) for name in task.text
    )
    return tuple((first, second) for second in choices)

  return choice.make_reader(pairs_of, names=columns)(task, path, split)


def _is_table(path: str) -> bool:
  ending = os.path.splitext(path)[1].lower()
  return ending in (".tsv", ".csv", *tables.JSON_LINES)


def _read_tags(task, path, split, columns) -> list[spec.TagExample]:
  if not _is_table(path):
    return ner.make_reader()(task, path, split)
  examples = []
  for number, (where, row) in enumerate(tables.read_rows(path, columns)):
    words = _list(tables.field(row, task.text[0], where), where)
    value = _optional(task, row, where, split)
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


def _read_spans(task, path, split, columns) -> list[spec.SpanExample]:
  if path.lower().endswith(".json"):
    return qa.make_reader(strict=True)(task, path, split)
  question_column, context_column = task.text
  examples = []
  for number, (where, row) in enumerate(tables.read_rows(path, columns)):
    context = tables.text_field(row, context_column, where)
    answer = _optional(task, row, where, split)
    answers: tuple[tuple[str, int], ...] = ()
    if answer == "" and not task.has_null:
      raise spec.TaskError(
        f"{where}: no answer; set has_null where questions may have none"
      )
    if answer:
      found = qa.locate(_label_text(answer), _start(row, where), context)
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


def _need_training_file(task: spec.Task, path: str) -> None:
  if not path:
    raise spec.TaskError(
      f"task {task.name}: its labels are not known; give labels, or the"
      " training file to take them from"
    )


def _class_labels(task, path, columns) -> tuple[str, ...]:
  _need_training_file(task, path)
  return spec.distinct_labels(
    _label_text(tables.field(row, task.label, where))
    for where, row in tables.read_rows(path, columns)
  )


def _tag_labels(task, path, columns) -> tuple[str, ...]:
  _need_training_file(task, path)
  examples = _read_tags(task, path, task.train_split, columns)
  return ner.tag_labels(tag for e in examples for tag in e.labels or ())


# Kinds whose labels have names, and how these are found in a training file.
_LABELS_OF: dict[str, Callable[..., tuple[str, ...]]] = {
  "classify": _class_labels,
  "tag": _tag_labels,
}

FORMS = {
  "classify": Form("classify", (1, 1), ("accuracy", "macro_f1"), _read_pairs),
  "pairs": Form("classify", (2, 2), ("accuracy", "macro_f1"), _read_pairs),
  "regress": Form("regress", (1, 2), ("pearson", "spearman"), _read_pairs),
  "tag": Form(
    "tag",
    (1, 1),
    ("entity_f1", "precision", "recall", "accuracy"),
    _read_tags,
  ),
  "span": Form("span", (2, 2), ("f1", "exact"), _read_spans),
  "choice": Form("choice", (3, 0), ("accuracy",), _read_choices),
}
