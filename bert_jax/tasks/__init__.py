"""The table of fine-tuning tasks, and the reader of all their data.

task = TASKS["mnli"]
examples = read_examples(task, "glue_data", "validation_matched")
"""

import collections
from collections.abc import Mapping, Sequence
import itertools
import logging
import os
from typing import Any

from bert_jax.tasks import choice
from bert_jax.tasks import glue
from bert_jax.tasks import languages
from bert_jax.tasks import ner
from bert_jax.tasks import qa
from bert_jax.tasks import race
from bert_jax.tasks import spec
from bert_jax.tasks import superglue
from bert_jax.tasks import tables

_log = logging.getLogger(__name__)

TASKS: dict[str, spec.Task] = {
  row.name: row
  for rows in (
    glue.ROWS,
    qa.ROWS,
    choice.ROWS,
    ner.ROWS,
    superglue.ROWS,
    languages.ROWS,
    race.ROWS,
  )
  for row in rows
}


def read_examples(
  task: spec.Task,
  folder: str,
  split: str,
  *,
  max_examples: int = 0,
  files: Mapping[str, str] | None = None,
  learns: bool = True,
) -> list[Any]:
  """Reads the examples of a split.

  Args:
    task: an entry of TASKS, or a task on own data.
    folder: a folder with the files under the benchmark's names, or with the
      benchmark's own folder (`FOLDER/dev.tsv` and `FOLDER/CoLA/dev.tsv` are
      both found); or `tfds:DIR` for prepared TFDS data.
    split: one of task.splits.
    max_examples: the number of examples to read from the start of the split; 0
      means all.
    files: split -> path, for files that have other names. Other splits are
      looked for in the folder.
    learns: False returns the examples of the training split as they are, with
      all answers to a question.

  Returns:
    The examples in the order of the file.

  Raises:
    spec.TaskError: The split is unknown, its file is missing, or its content
      cannot be used.
    corpus.CorpusError: The TFDS data is damaged.
  """
  if split not in task.splits:
    raise spec.TaskError(
      f"task {task.name} has no split {split!r}; it has"
      f" {', '.join(task.splits)}"
    )
  examples: list[Any]
  path = (files or {}).get(split, "")
  if not path and tables.is_tfds(folder):
    examples = _read_tfds(task, folder, split, max_examples)
  else:
    path = path or find_file(task, folder, split)
    examples = task.read(task, path, split)
  questions = (e.id for e in examples if isinstance(e, spec.SpanExample))
  for id, count in collections.Counter(questions).items():
    if count > 1:
      raise spec.TaskError(
        f"{path or folder}: {count} questions have the id {id}; answers are"
        " scored by the id of their question, so give each its own"
      )
  if split == task.train_split and learns:
    examples = learned(task, examples, path or folder)
  return examples[:max_examples] if max_examples else examples


def learned(
  task: spec.Task, examples: Sequence[Any], where: str = ""
) -> list[Any]:
  """Returns what is learned from examples: a question has one answer each.

  Args:
    task: the task.
    examples: examples of its training split.
    where: their file, for errors.

  Raises:
    spec.TaskError: a question has several answers, and none is chosen.
  """
  return [
    one
    for example in examples
    for one in (
      qa.learned(task, example, where)
      if isinstance(example, spec.SpanExample)
      else (example,)
    )
  ]


def _read_tfds(
  task: spec.Task, folder: str, split: str, max_examples: int
) -> list[Any]:
  records = tables.read_records(task, folder, split)
  found = []
  for number, record in enumerate(
    itertools.islice(records, max_examples or None)
  ):
    assert task.read_record is not None, task.name
    where = f"{folder}: {task.tfds}, record {number}"
    try:
      found.append(task.read_record(task, split, where, str(number), record))
    except spec.TaskError:
      raise
    except (LookupError, TypeError, ValueError, OverflowError) as error:
      raise spec.TaskError(
        f"{where} of {split} is damaged: {error!r:.500}; prepare the data again"
      ) from error
  examples = [example for example in found if example is not None]
  if len(examples) < len(found):
    _log.warning(
      "%s, %s: left out %d of %d records, which are empty or lack their answer",
      folder, split, len(found) - len(examples), len(found),
    )  # fmt: skip
  if not examples:
    raise spec.TaskError(f"{folder}: the split {split} holds no examples")
  return examples


def find_file(task: spec.Task, folder: str, split: str) -> str:
  """Returns the path of the file of a split, which may be compressed.

  Raises:
    spec.TaskError: There is no such file; the message lists the paths tried.
  """
  if not folder:
    raise spec.TaskError(
      f"task {task.name}: no folder, and no file for the split {split}; give"
      " one of them"
    )
  tried = [
    os.path.join(folder, inner, name)
    for inner in ("", *task.folders)
    for name in task.files.get(split, ())
  ]
  for path in tried:
    if found := tables.find_packed(path):
      return found
  raise spec.TaskError(
    f"task {task.name}: no file for the split {split} in {folder!r}; tried"
    f" {', '.join(tried) or 'nothing'}; give the folder, or the path of the"
    " file itself"
  )
