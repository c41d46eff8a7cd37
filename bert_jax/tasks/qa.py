"""SQuAD 1.1 and 2.0: questions about a text that holds the answer.

Source: https://aclanthology.org/D16-1264, https://aclanthology.org/P18-2124
"""

import collections
from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import logging
import re
from typing import Any

from bert_jax.tasks import spec
from bert_jax.tasks import tables

_log = logging.getLogger(__name__)

# The largest share of training questions whose answer may be missing from the
# context. The official files have a few of them; a file with more is wrong.
_MAX_LOST_RATE = 0.01


def locate(text: str, start: int, context: str) -> tuple[str, int] | None:
  """Finds an answer in its context.

  In real files, offsets are a few characters off and spaces differ. As in the
  original, the answer is looked for in the words at which it should be.

  Args:
    text: the answer.
    start: the index of its first character according to the file; a negative
      one means the first occurrence anywhere.
    context: the text that holds the answer.

  Returns:
    The answer as the context spells it and the index of its first character, or
    None if it is not there.

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

  An answer that is not in its context can be scored but not learned. As in the
  original, a training question with such an answer is left out and logged; in
  other splits the answer is kept for its text. A training file in which more
  than a hundredth of the questions have such an answer raises an error.

  Args:
    strict: whether any such answer raises an error.
  """

  def read(task: spec.Task, path: str, split: str) -> list[spec.SpanExample]:
    found: list[spec.SpanExample] = []
    lost: list[str] = []  # what is wrong with each such question
    with reading(path) as content:
      questions = [
        (f"{path}: question {question['id']}", paragraph["context"], question)
        for paragraph, question in questions_of(content)
      ]
    for where, context, question in questions:
      example = _example(task, context, question, where)
      unplaced = [a for a in example.answers if not locate(*a, context)]
      if unplaced:
        text, start = unplaced[0]
        lost.append(
          f"{where}: answer {text!r} is not in its context at character"
          f" {start}; correct answer_start or the text"
        )
        if strict:
          raise spec.TaskError(lost[0])
      placed = _place(task, split, example, where)
      if placed is not None:
        found.append(placed)
    if not questions:
      raise spec.TaskError(f"{path}: no questions")
    is_train = split == task.train_split
    if is_train and len(lost) > _MAX_LOST_RATE * len(questions):
      raise spec.TaskError(
        f"{lost[0]} (the answers of {len(lost)} of {len(questions)} questions"
        " are not in their contexts)"
      )
    if lost:
      _log.warning(
        "%s: the answers of %d of %d questions are not in their contexts; these"
        " questions are %s (first: %s)", path, len(lost), len(questions),
        "left out" if is_train else "scored by the text of the answer", lost[0],
      )  # fmt: skip
    return found

  return read


def _place(
  task: spec.Task, split: str, example: spec.SpanExample, where: str
) -> spec.SpanExample | None:
  """Returns the example with its answers as the context spells them.

  Returns None for a training example whose answer is not in the context.
  """
  found = [locate(*answer, example.context) for answer in example.answers]
  if split == task.train_split and not example.is_impossible:
    if not found or (len(found) > 1 and task.train_answers == "one"):
      advice = "; choose with task.train_answers=first, most_frequent or all"
      raise spec.TaskError(
        f"{where}: {len(found)} answers; a training question has one answer,"
        f" or is_impossible if the task allows it{advice if found else ''}"
      )
    known = tuple(placed for placed in found if placed)
    return dataclasses.replace(example, answers=known) if known else None
  answers = zip(found, example.answers, strict=True)
  return dataclasses.replace(
    example, answers=tuple(placed or answer for placed, answer in answers)
  )


def learned(
  task: spec.Task, example: spec.SpanExample, where: str = ""
) -> list[spec.SpanExample]:
  """Returns the training examples of a question, each with one answer at most.

  A question without an answer is one example, and stays as it is.

  Args:
    task: the task, whose `train_answers` chooses between several answers:
      "first" in the file; "most_frequent", the one that most people gave; or
      "all", which makes an example of each different answer.
    example: a question with any number of answers, which are in its context.
    where: the file, for errors.

  Raises:
    spec.TaskError: There are several answers, equal ones included, and
      `train_answers` is not set.
  """
  answers = list(example.answers)
  if len(answers) < 2:
    return [example]
  if task.train_answers == "first":
    chosen = answers[:1]
  elif task.train_answers == "most_frequent":
    counts = collections.Counter(text for text, _ in answers)
    # Of equally frequent answers, the first in the file.
    chosen = [max(answers, key=lambda answer: counts[answer[0]])]
  elif task.train_answers == "all":
    chosen = list(dict.fromkeys(answers))
  else:
    raise spec.TaskError(
      f"{f'{where}: ' if where else ''}question {example.id}: "
      f"{len(answers)} answers; a training question has one answer; choose "
      "with task.train_answers=first, most_frequent or all"
    )
  return [
    dataclasses.replace(
      example,
      id=f"{example.id}#{number}" if number else example.id,
      answers=(answer,),
    )
    for number, answer in enumerate(chosen)
  ]


@contextlib.contextmanager
def reading(path: str) -> Iterator[Any]:
  """Reads the content of a SQuAD file, whose use may raise an error.

  Raises:
    spec.TaskError: The file is not laid out as SQuAD.
  """
  content = tables.read_json(path)
  try:
    yield content
  except (KeyError, TypeError, AttributeError) as error:
    raise spec.TaskError(
      f"{path} is not laid out as SQuAD: {error!r:.300}; wanted data,"
      " paragraphs, context, qas, id, question, answers, text"
    ) from error


def questions_of(content: Any) -> Iterator[tuple[Any, Any]]:
  """Yields (paragraph, question) for each question of a SQuAD file."""
  for article in content["data"]:
    for paragraph in article["paragraphs"]:
      for question in paragraph["qas"]:
        yield paragraph, question


def _example(
  task: spec.Task, context: str, question: Mapping[str, Any], where: str
) -> spec.SpanExample:
  """Returns a question with its answers as the file spells them."""
  if not isinstance(context, str):
    raise spec.TaskError(f"{where}: context is {context!r}; wanted text")
  is_impossible = bool(question.get("is_impossible", False))
  if is_impossible and not task.has_null:
    raise spec.TaskError(
      f"{where} has no answer, which task {task.name} does not allow; use"
      " squad_v2, or set task.has_null for own data"
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


def _record(task, split, where, id, record) -> spec.SpanExample | None:
  """Reads a question of TFDS; None as for `_place`."""
  del id  # TFDS has the ids of SQuAD.
  context = tables.text_field(record, "context", where)
  answers = tables.field(record, "answers", where)
  question = {
    "id": tables.text_field(record, "id", where),
    "question": tables.text_field(record, "question", where),
    "is_impossible": record.get("is_impossible", False),
    "answers": [
      {"text": tables.as_text(text, "answers", where), "answer_start": start}
      for text, start in zip(
        answers["text"], answers["answer_start"], strict=True
      )
    ],
  }
  example = _example(task, context, question, where)
  return _place(task, split, example, where)


_FACTS: dict[str, Any] = {
  "kind": "span",
  "metrics": ("exact", "f1"),
  "main": "f1",
  "percent": 1.0,
  "test_splits": (),
  "read": make_reader(),
  "read_record": _record,
  "folders": ("squad", "SQuAD", "squad1", "squad2"),
}

ROWS = tuple(
  spec.Task(
    name=f"squad_v{version[0]}",
    has_null=version == "2.0",
    files={
      "train": (f"train-v{version}.json",),
      "validation": (f"dev-v{version}.json",),
    },
    tfds=f"squad/v{version}",
    **_FACTS,
  )
  for version in ("1.1", "2.0")
)
