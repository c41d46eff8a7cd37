"""Own data of queries and passages: a right passage, and perhaps wrong ones.

A row has the columns query (or anchor) and positive, and any number of columns
whose names begin with negative; a column of negatives may hold a list.
"""

from collections.abc import Mapping, Sequence
import json
import logging
from typing import Any

from bert_jax.tasks import spec
from bert_jax.tasks import tables

_log = logging.getLogger(__name__)

_QUERIES = ("query", "anchor")
_POSITIVE = "positive"
_NEGATIVE = "negative"


def read(task: spec.Task, path: str, split: str) -> list[spec.ChoiceExample]:
  """Reads queries with their passages, the right one first.

  Args:
    task: the task; its `text` names the columns of the query, the right passage
      and the wrong ones; () means the usual names.
    path: the file.
    split: the split, which does not matter: every row has a right passage.

  Raises:
    spec.TaskError: A column is missing, or a query or a right passage is empty.
  """
  del split
  if len(task.text) == 1:
    raise spec.TaskError(
      f"task {task.name}: task.text={task.text[0]} names one column; give the "
      "columns of the query, of the right passage and of wrong ones, or leave "
      "task.text out for query,positive,negative"
    )
  examples = []
  repeated = []
  for number, (where, row) in enumerate(tables.iter_rows(path, task.columns)):
    names = task.text or _usual_names(row, where)
    query, positive = (
      _required(row, name, where) for name in (names[0], names[1])
    )
    wrong = [x for name in names[2:] for x in _texts(row, name, where)]
    kept = [x for x in dict.fromkeys(wrong) if x != positive]
    if len(kept) < len(wrong):
      repeated.append(where)
    pairs = tuple((query, passage) for passage in (positive, *kept))
    examples.append(spec.ChoiceExample(str(number), pairs, 0))
  if repeated:
    _log.warning(
      "%s: %d rows (first: %s) have a negative twice, or one that is the "
      "positive; it is left out", path, len(repeated), repeated[0],
    )  # fmt: skip
  return examples


def _usual_names(row: Mapping[str, Any], where: str) -> Sequence[str]:
  """Returns the columns of query, positive and negatives by their names."""
  queries = [name for name in _QUERIES if name in row]
  if len(queries) != 1 or _POSITIVE not in row:
    found = ", ".join(map(str, row))
    raise spec.TaskError(
      f"{where}: wanted the columns query (or anchor) and positive, and "
      f"perhaps negative, negative_2 or negatives; found {found}; name yours "
      "by task.text=QUERY,POSITIVE,NEGATIVE"
    )
  negatives = [name for name in row if str(name).startswith(_NEGATIVE)]
  return (queries[0], _POSITIVE, *negatives)


def _required(row: Mapping[str, Any], name: str, where: str) -> str:
  """Returns a text that may not be empty."""
  value = row.get(name)
  if isinstance(value, list):
    raise spec.TaskError(
      f"{where}: {name} is a list; give a row for each text, since only "
      "negatives may be several"
    )
  text = tables.text_field(row, name, where)
  if not text.strip():
    raise spec.TaskError(f"{where}: {name} is empty; give text, or no such row")
  return text


def _texts(row: Mapping[str, Any], name: str, where: str) -> list[str]:
  """Returns the texts of a column of negatives: none, one, or a list."""
  if tables.is_template(name) and name not in row:
    return [tables.text_field(row, name, where)]
  value = tables.field(row, name, where)
  if value is None:
    return []
  if isinstance(value, str) and value.lstrip()[:2] in ('["', "[]"):
    try:
      value = json.loads(value)
    except (ValueError, RecursionError):
      pass  # It is a text that begins with a bracket.
  values = value if isinstance(value, list) else [value]
  if not all(isinstance(x, str) for x in values):
    raise spec.TaskError(
      f"{where}: {name} is {value!r:.60}; wanted a text or a list of texts"
    )
  return [x for x in values if x.strip()]
