"""What files of weights say of the head of a task: a row for each kind."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

# Labels that transformers makes up where there are none.
_MADE_UP_LABEL = re.compile(r"LABEL_\d+")


@dataclasses.dataclass(frozen=True)
class TaskHead:
  """How others store the head of a kind of task.

  Attributes:
    hf_class: how the name of its class in transformers goes on behind the name
      of the family.
    num_outputs: K; None: one for each label.
    has_labels: its outputs have names.
    problem_type: as config.json has it; "" where the class says it all.
  """

  hf_class: str
  num_outputs: int | None
  has_labels: bool
  problem_type: str = ""


TASK_HEADS = {
  "classify": TaskHead(
    "ForSequenceClassification", None, True, "single_label_classification"
  ),
  "regress": TaskHead("ForSequenceClassification", 1, False, "regression"),
  "tag": TaskHead("ForTokenClassification", None, True),
  "span": TaskHead("ForQuestionAnswering", 2, False),
  "choice": TaskHead("ForMultipleChoice", 1, False),
}


def may_have_labels(kind: str | None) -> bool:
  """Returns whether the outputs of a kind, or of an unknown one, have names."""
  return kind is None or kind in TASK_HEADS and TASK_HEADS[kind].has_labels


def kind_of(
  config: Mapping[str, Any], hf_class: str, num_outputs: int, is_span: bool
) -> str | None:
  """Returns the kind of task that the classes in config.json are for.

  Args:
    config: the content of config.json.
    hf_class: what names of classes of the family begin with, "Bert".
    num_outputs: of the head, K.
    is_span: the tensors of the head have the names of one of a span.
  """
  if is_span:
    return "span"
  problem = config.get("problem_type")
  for name in config.get("architectures") or ():
    name = str(name).removeprefix("Flax").removeprefix("TF")
    rows = {
      kind: head
      for kind, head in TASK_HEADS.items()
      if name == hf_class + head.hf_class and kind != "span"
    }
    if not rows:
      continue
    fitting = [
      kind
      for kind, head in rows.items()
      if not head.problem_type
      or problem in (None, head.problem_type)
      and head.num_outputs in (None, num_outputs)
    ]
    # Without a problem_type one output is a number.
    exact = [k for k in fitting if rows[k].num_outputs == num_outputs]
    return next(iter(exact + fitting), None)
  return None


def refused_problem(config: Mapping[str, Any], num_outputs: int) -> str:
  """Returns why the head of a classification cannot be used; "" if it can.

  Args:
    config: of config.json, whose problem_type tells what the outputs mean.
    num_outputs: of the head, K.
  """
  problem = config.get("problem_type")
  if problem is None or any(
    problem == head.problem_type and head.num_outputs in (None, num_outputs)
    for head in TASK_HEADS.values()
  ):
    return ""
  return (
    f"problem_type is {problem!r:.60} with {num_outputs} outputs; a head here "
    "gives one label of several, or one number"
  )


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns names of labels in order of their ids; () where none were given.

  Raises:
    ValueError: config.json contradicts itself.
  """
  names = config.get("id2label") or {}
  if not isinstance(names, dict):
    raise ValueError("id2label is not an object of ids and names")
  by_id = {int(i): str(name) for i, name in names.items()}
  if sorted(by_id) != list(range(len(by_id))):
    raise ValueError(f"id2label has ids {sorted(by_id)}; wanted 0, 1, 2, ..")
  for key in ("num_labels", "_num_labels"):
    count = config.get(key)
    if names and count is not None and count != len(by_id):
      raise ValueError(
        f"{key} is {count!r:.60}, but id2label names {len(by_id)} labels; "
        "correct one of them"
      )
  labels = tuple(by_id[i] for i in range(len(by_id)))
  return () if all(map(_MADE_UP_LABEL.fullmatch, labels)) else labels
