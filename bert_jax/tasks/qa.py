"""SQuAD 1.1 and 2.0: questions on a text, answered by a stretch of it.

Source: https://aclanthology.org/D16-1264, https://aclanthology.org/P18-2124
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import logging
import re
from typing import Any

from bert_jax.tasks import spec
from bert_jax.tasks import tables

_log = logging.getLogger(__name__)

# Of the questions to train on, the share whose answer may not be there: the
# official files have a few. More, and the file is not what it should be.
_MAX_LOST_RATE = 0.01


def locate(text: str, start: int, context: str) -> tuple[str, int] | None:
  """An answer as it stands in its context.

  Offsets in the wild are a few characters off, and spaces differ. As in the
  original, the answer is looked for in the words that it is said to stand in.

  Args:
    text: the answer.
    start: where it is said to begin; below 0 = anywhere, the first time.
    context: the text.

  Returns:
    The characters of the context and where they begin, or None.

  Example:
    >>> locate("John  Smith", 5, "was (John Smith)")
    ('John Smith', 5)

  Source: google-research/bert run_squad.py:277-290
  """
  words = text.split()
  if not words:
    return None
  if start >= 0 and context[start : start + len(text)] == text:
    return text, start
  begin, end = 0, len(context)
  if start >= 0:
    begin = min(start, len(context))
    end = min(start + len(text), len(context))
    while begin and not context[begin - 1].isspace():
      begin -= 1
    while end < len(context) and not context[end].isspace():
      end += 1
  pattern = re.compile(r"\s+".join(map(re.escape, words)))
  found = pattern.search(context, begin, end)
  return (found.group(), found.start()) if found else None


def make_reader(
  strict: bool = False,
) -> Callable[[spec.Task, str, str], list[spec.SpanExample]]:
  """Makes the reader of SQuAD's JSON.

  An answer that cannot be found in its context can be scored but not learned.
  In the training split such a question is left out, and their number logged,
  as in the original; elsewhere the answer is kept for its text. A file with
  more than a hundredth of them to train on is refused.

  Args:
    strict: refuse a file with any such answer.
  """

  def read(task: spec.Task, path: str, split: str) -> list[spec.SpanExample]:
    found: list[spec.SpanExample] = []
    lost: list[str] = []  # what is wrong with them
    count = 0
    for where, context, question in _questions(path):
      example = _example(task, context, question, where)
      count += 1
      if answer := _unplaced(example):
        message = (
          f"{where}: answer {answer[0]!r} is not in its context at character"
          f" {answer[1]}; correct answer_start or the text"
        )
        if strict:
          raise spec.TaskError(message)
        lost.append(message)
      placed = _place(task, split, example, where)
      if placed is not None:
        found.append(placed)
    if not count:
      raise spec.TaskError(f"{path}: no questions")
    if split == task.train_split and len(lost) > _MAX_LOST_RATE * count:
      raise spec.TaskError(
        f"{lost[0]} ({len(lost)} of {count} questions of the file have "
        "none there)"
      )
    if lost and split != task.train_split:
      _log.warning(
        "%s: of %d of %d questions an answer is not in the context; it is"
        " scored by its text (first: %s)", path, len(lost), count, lost[0],
      )  # fmt: skip
    elif lost:
      _log.warning(
        "%s: left out %d of %d questions, whose answer is not in the context"
        " (first: %s)", path, len(lost), count, lost[0],
      )  # fmt: skip
    return found

  return read


def _unplaced(example: spec.SpanExample) -> tuple[str, int] | None:
  """The first answer that is not in the context, or None."""
  return next(
    (a for a in example.answers if not locate(*a, example.context)), None
  )


def _place(
  task: spec.Task, split: str, example: spec.SpanExample, where: str
) -> spec.SpanExample | None:
  """The example with its answers as they stand in the context.

  None where it is to train on, and its answer is not there.
  """
  found = [locate(*answer, example.context) for answer in example.answers]
  if split == task.train_split and not example.is_impossible:
    if len(found) != 1:
      raise spec.TaskError(
        f"{where}: {len(found)} answers; a question to train on has one, or"
        " is_impossible where the task allows it"
      )
    if not found[0]:
      return None
  answers = zip(found, example.answers, strict=True)
  return dataclasses.replace(
    example, answers=tuple(placed or answer for placed, answer in answers)
  )


def _questions(path: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
  """("PATH: question ID", context, question) of a file."""
  content = tables.read_json(path)
  try:
    for article in content["data"]:
      for paragraph in article["paragraphs"]:
        for question in paragraph["qas"]:
          yield (
            f"{path}: question {question['id']}",
            paragraph["context"],
            question,
          )
  except (KeyError, TypeError) as error:
    raise spec.TaskError(
      f"{path} is not laid out as SQuAD: {error!r:.300}; wanted data,"
      " paragraphs, context, qas, id, question, answers"
    ) from error


def _example(
  task: spec.Task, context: str, question: Mapping[str, Any], where: str
) -> spec.SpanExample:
  """A question with its answers as the file has them."""
  if not isinstance(context, str):
    raise spec.TaskError(f"{where}: context is {context!r}; wanted text")
  is_impossible = bool(question.get("is_impossible", False))
  if is_impossible and not task.has_null:
    raise spec.TaskError(
      f"{where} has no answer, which task {task.name} does not allow; use"
      " squad_v2, or has_null for own data"
    )
  try:
    answers = tuple(
      (str(answer["text"]), int(answer["answer_start"]))
      for answer in ([] if is_impossible else question.get("answers", []))
    )
    return spec.SpanExample(
      str(question["id"]),
      str(question["question"]),
      context,
      answers,
      is_impossible,
    )
  except (KeyError, TypeError, ValueError, OverflowError) as error:
    raise spec.TaskError(
      f"{where}: {error!r:.300}; wanted question, and answers with text and"
      " answer_start"
    ) from error


def _record(
  task: spec.Task, split: str, number: int, record: Mapping[str, Any]
) -> spec.SpanExample | None:
  """A question of TFDS; None as in `_place`."""
  where = f"{task.tfds}, record {number}"
  context = tables.text_field(record, "context", where)
  answers = tables.field(record, "answers", where)
  known = zip(answers["text"], answers["answer_start"], strict=True)
  question = {
    "id": tables.text_field(record, "id", where),
    "question": tables.text_field(record, "question", where),
    "is_impossible": bool(record.get("is_impossible", False)),
    "answers": [
      {
        "text": text.decode("utf-8") if isinstance(text, bytes) else str(text),
        "answer_start": int(start),
      }
      for text, start in known
    ],
  }
  example = _example(task, context, question, where)
  return _place(task, split, example, where)


_FACTS: dict[str, Any] = {
  "kind": "span",
  "text": ("question", "context"),
  "labels": (),
  "metrics": ("exact", "f1"),
  "main_metric": "f1",
  "percent": 1.0,
  "train_split": "train",
  "eval_splits": ("validation",),
  "test_splits": (),
  "read": make_reader(),
  "read_record": _record,
  "folders": ("squad", "SQuAD", "squad1", "squad2"),
}

ROWS = tuple(
  spec.Task(
    name=f"squad_v{version[0]}",
    has_null=version == "2.0",
    source=source,
    files={
      "train": (f"train-v{version}.json",),
      "validation": (f"dev-v{version}.json",),
    },
    tfds=f"squad/v{version}",
    **_FACTS,
  )
  for version, source in (
    ("1.1", "https://aclanthology.org/D16-1264"),
    ("2.0", "https://aclanthology.org/P18-2124"),
  )
)
