"""Fine-tuning tasks: their rows, and one way to read them all.

task = TASKS["mnli"]
examples = read_examples(task, "glue_data", "validation_matched")
"""

import collections
from collections.abc import Mapping, Sequence
import itertools
import logging
import os
from typing import Any

from etils import epath

from bert_jax.tasks import choice
from bert_jax.tasks import glue
from bert_jax.tasks import ner
from bert_jax.tasks import qa
from bert_jax.tasks import spec
from bert_jax.tasks import tables

_log = logging.getLogger(__name__)

TASKS: dict[str, spec.Task] = {
  row.name: row for row in glue.ROWS + qa.ROWS + choice.ROWS + ner.ROWS
}


def has_null(name: str, own: bool) -> bool:
  """Whether questions of a task may have no answer.

  Args:
    name: as `task.name` of a config has it.
    own: `task.has_null`, which is about data of one's own alone.
  """
  return TASKS[name].has_null if name in TASKS else own


def read_examples(
  task: spec.Task,
  folder: str,
  split: str,
  *,
  max_examples: int = 0,
  files: Mapping[str, str] | None = None,
) -> list[Any]:
  """Reads the examples of a split.

  Args:
    task: a row of TASKS, or an own task.
    folder: with the files as the benchmark ships them, or with its folder of
      them (`FOLDER/dev.tsv` and `FOLDER/CoLA/dev.tsv` are both found); or
      `tfds:DIR` for prepared TFDS data.
    split: one of task.splits.
    max_examples: so many from the start of the split; 0 = all.
    files: split -> path, for files that are called something else. A split
      not named here is looked for in the folder.

  Returns:
    Examples of the task's kind, in the order of the file.

  Raises:
    spec.TaskError: an unknown split, no file, or bad content; says where and
      what to change.
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
  counts = collections.Counter(questions).items()
  if twice := [id for id, count in counts if count > 1]:
    raise spec.TaskError(
      f"{path or folder}: question {twice[0]} is there twice; answers are"
      " scored by the id of their question"
    )
  return examples[:max_examples] if max_examples else examples


def _read_tfds(
  task: spec.Task, folder: str, split: str, max_examples: int
) -> list[Any]:
  records = tables.read_records(task, folder, split)
  assert task.read_record is not None, task.name
  found = []
  for number, record in enumerate(
    itertools.islice(records, max_examples or None)
  ):
    try:
      found.append(task.read_record(task, split, number, record))
    except spec.TaskError as error:
      raise spec.TaskError(f"{folder}: {error}") from error
    except (LookupError, TypeError, ValueError, OverflowError) as error:
      raise spec.TaskError(
        f"{folder}: record {number} of {split} is damaged: {error!r:.500};"
        " prepare the data again"
      ) from error
  examples = [example for example in found if example is not None]
  if len(examples) < len(found):
    _log.warning(
      "%s, %s: left out %d of %d records, empty or without their answer",
      folder, split, len(found) - len(examples), len(found),
    )  # fmt: skip
  if not examples:
    raise spec.TaskError(f"{folder}: the split {split} holds no examples")
  return examples


def find_file(task: spec.Task, folder: str, split: str) -> str:
  """The file of a split.

  Raises:
    spec.TaskError: there is none; names the places that were tried.
  """
  if not folder:
    raise spec.TaskError(
      f"task {task.name}: no folder, and no file for the split {split}; give"
      " one of them"
    )
  names: Sequence[str] = task.files.get(split, ())
  tried = [
    os.path.join(folder, inner, name)
    for inner in ("", *task.folders)
    for name in names
  ]
  for path in tried:
    if epath.Path(path).exists():
      return path
  raise spec.TaskError(
    f"task {task.name}: no file for the split {split} in {folder!r}; tried"
    f" {', '.join(tried) or 'nothing'}; give the folder, or the path of the"
    " file itself"
  )
