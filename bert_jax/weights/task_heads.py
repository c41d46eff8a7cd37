"""The heads of the kinds of tasks, as files of weights describe them.

Readers and writers of weights know the kinds only from this table. A kind in
bert_jax/kinds takes the row that has its name.
"""

from collections.abc import Collection, Mapping
import dataclasses
from typing import Any

# The part of the parameters of a head that only its own kind knows: a kind of
# another package, whose head has no hf_class. Only a workdir can hold it.
OWN = "head"


@dataclasses.dataclass(frozen=True)
class TaskHead:
  """The head of a kind of task.

  Attributes:
    name: the name of the kind.
    hf_class: the class of transformers with this head, without the name of the
      family in front, such as "ForTokenClassification"; "" if there is none.
    problem_type: the problem_type in config.json; None if transformers has no
      name for the kind.
    is_implied: whether a config.json without problem_type may mean this kind.
    width: K, the number of outputs; None means the number of labels.
    has_names: whether the outputs are labels with names.
    role: which of the heads of a family it is, a key of `Family.heads`.
  """

  name: str
  hf_class: str = ""
  problem_type: str | None = None
  is_implied: bool = True
  width: int | None = None
  has_names: bool = False
  role: str = "sequence"

  def fits(self, problem_type: str | None, num_outputs: int) -> bool:
    """Returns whether a problem_type in config.json may mean this head."""
    if self.problem_type is None:
      return True
    is_this = problem_type == self.problem_type
    is_this |= problem_type is None and self.is_implied
    return is_this and self.width in (None, num_outputs)


# Name of the kind -> its head.
HEADS: dict[str, TaskHead] = {
  head.name: head
  for head in (
    TaskHead(
      "classify",
      "ForSequenceClassification",
      "single_label_classification",
      has_names=True,
    ),
    TaskHead(
      "multi_label",
      "ForSequenceClassification",
      "multi_label_classification",
      is_implied=False,
      has_names=True,
    ),
    TaskHead("regress", "ForSequenceClassification", "regression", width=1),
    TaskHead("choice", "ForMultipleChoice", width=1, role="choice"),
    TaskHead("tag", "ForTokenClassification", has_names=True, role="token"),
    TaskHead("span", "ForQuestionAnswering", width=2, role="span"),
  )
}


def _public() -> list[TaskHead]:
  """Returns the heads that other formats than a workdir may hold."""
  return [head for head in HEADS.values() if head.hf_class]


def role_of(kind: str | None) -> str | None:
  """Returns the role of the head of a kind of task, or None."""
  return HEADS[kind].role if kind in HEADS else None


def kind_of_roles(roles: Collection[str], kind: str | None) -> str | None:
  """Returns the kind of a head by the names of its parameters.

  Args:
    roles: the roles that the head may have by these names.
    kind: the kind that the settings name, or None.

  Returns:
    The kind that the settings name if the names allow it; else the only kind
    that has the only role; else None.
  """
  if role_of(kind) in roles:
    return kind
  able = [head.name for head in _public() if head.role in roles]
  return able[0] if len(able) == 1 else None


def of_config(
  config: Mapping[str, Any], num_outputs: int, hf_class: str
) -> tuple[str | None, str]:
  """Returns the kind of task that a config.json of transformers is for.

  Args:
    config: the content of the file.
    num_outputs: K of the head.
    hf_class: the beginning of the family's class names, such as "Bert".

  Returns:
    The name of the kind, or None if the file does not say it; and why the head
    cannot be used, or "".
  """
  problem = config.get("problem_type")
  # A head with a fixed number of outputs is tried first.
  heads = sorted(_public(), key=lambda head: head.width is None)
  fitting = [head for head in heads if head.fits(problem, num_outputs)]
  for name in map(str, config.get("architectures") or ()):
    plain = name.removeprefix("Flax").removeprefix("TF")
    for head in fitting:
      if plain == hf_class + head.hf_class:
        return head.name, ""
  if problem is None or any(h.problem_type == problem for h in fitting):
    return None, ""
  return None, (
    f"problem_type is {problem!r:.60} with {num_outputs} outputs; a head of "
    "this program gives labels, or one number"
  )
