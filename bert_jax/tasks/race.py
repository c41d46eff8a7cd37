"""RACE: questions on texts of English examinations, with four answers.

The folders train, dev and test hold the folders middle and high, with a JSON
file for each text. The splits of one of the two schools are there by name, as
in `task.eval_splits=test_middle,test_high`.

Source: https://aclanthology.org/D17-1082
"""

from collections.abc import Mapping
import os
import re
from typing import Any

from bert_jax.runtime import files
from bert_jax.tasks import choice
from bert_jax.tasks import spec
from bert_jax.tasks import tables

_BLANK = re.compile("_+")  # where the answer belongs in a cloze question
_LISTS = ("questions", "options", "answers")


def _joined(question: str, option: str) -> str:
  """Returns a question with an answer: in its blank, or behind it."""
  joined, count = _BLANK.subn(lambda _: option, question, count=1)
  return joined if count else f"{question} {option}"


def _questions(path: str, content: Any) -> list[spec.ChoiceExample]:
  """Returns the questions of one text."""
  if not isinstance(content, Mapping):
    raise spec.TaskError(f"{path} is not a JSON object, as a text of RACE is")
  article = tables.text_field(content, "article", path)
  columns = [tables.field(content, name, path) for name in _LISTS]
  if not all(isinstance(x, list) for x in columns) or (
    len({len(x) for x in columns}) > 1
  ):
    raise spec.TaskError(
      f"{path}: {', '.join(_LISTS)} are not lists of one length"
    )
  name = "/".join(path.split("/")[-2:]).removesuffix(".txt")
  found = []
  for number, (asked, options, answer) in enumerate(zip(*columns, strict=True)):
    where = f"{path}: question {number + 1}"
    question = tables.as_text(asked, "the question", where)
    if not isinstance(options, list) or len(options) < 2:
      raise spec.TaskError(
        f"{where}: options is {options!r:.60}; wanted a list"
      )
    texts = [tables.as_text(option, "an option", where) for option in options]
    letters = [chr(ord("A") + i) for i in range(len(texts))]
    if answer not in letters:
      raise spec.TaskError(
        f"{where}: answer {answer!r:.60} is not known; wanted"
        f" {', '.join(letters)}"
      )
    pairs = tuple((article, _joined(question, text)) for text in texts)
    label = choice.choice_label(letters.index(answer), len(texts), where)
    found.append(spec.ChoiceExample(f"{name}/{number}", pairs, label))
  return found


def _number(path: str) -> tuple[str, int, str]:
  """Orders the files of a folder by their numbers."""
  folder, name = os.path.split(path)
  digits = name.split(".")[0]
  return folder, int(digits) if digits.isdecimal() else 0, name


def read(task: spec.Task, path: str, split: str) -> list[spec.ChoiceExample]:
  """Reads all texts in a folder, in the order of their numbers."""
  del split
  if not files.is_folder(path):
    raise spec.TaskError(f"{path} is not a folder; task {task.name} reads one")
  texts = sorted(
    (name for name in files.walk(path) if name.endswith(".txt")), key=_number
  )
  found = [
    example
    for name in texts
    for example in _questions(name, tables.read_json(name))
  ]
  if not found:
    raise spec.TaskError(f"{path} holds no file *.txt with questions")
  return found


_SCHOOLS = ("middle", "high")

ROWS = (
  spec.Task(
    name="race",
    kind="choice",
    metrics=("accuracy",),
    read=read,
    files={"train": ("train",), "validation": ("dev",), "test": ("test",)}
    | {
      f"{split}_{school}": (f"{folder}/{school}",)
      for split, folder in (("validation", "dev"), ("test", "test"))
      for school in _SCHOOLS
    },
    folders=("RACE", "race"),
    # All splits have labels.
    eval_splits=("validation", "test"),
    test_splits=tuple(
      f"{split}_{school}"
      for split in ("validation", "test")
      for school in _SCHOOLS
    ),
  ),
)
