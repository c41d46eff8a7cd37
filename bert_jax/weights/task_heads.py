"""The heads of tasks, as files of weights know them.

Readers and writers of weights know the kinds from here alone, and so do the
kinds themselves: one of that name in bert_jax/kinds takes its row.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class TaskHead:
  """The head of a kind of task.

  Attributes:
    name: of the kind.
    hf_class: the class of transformers with this head, without the name of the
      family of models in front, such as "ForTokenClassification".
    problem_type: of config.json; None = transformers has no name for the kind.
    is_implied: a config.json without problem_type may mean this kind.
    width: K, outputs of the head; None = the number of labels.
    has_names: the outputs are labels with names.
  """

  name: str
  hf_class: str
  problem_type: str | None = None
  is_implied: bool = True
  width: int | None = None
  has_names: bool = False

  @property
  def has_config_labels(self) -> bool:
    """Whether a config.json names the outputs."""
    return self.has_names or self.problem_type is not None

  def fits(self, problem_type: str | None, num_outputs: int) -> bool:
    """Returns whether a config.json with a problem_type may mean this head."""
    if self.problem_type is None:
      return True
    is_this = problem_type == self.problem_type
    is_this |= problem_type is None and self.is_implied
    return is_this and self.width in (None, num_outputs)


# By the name of the kind.
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
    TaskHead("choice", "ForMultipleChoice", width=1),
    TaskHead("tag", "ForTokenClassification", has_names=True),
    TaskHead("span", "ForQuestionAnswering", width=2),
  )
}


def of_config(
  config: Mapping[str, Any], num_outputs: int, hf_class: str
) -> str | None:
  """Returns the kind of task that a config.json of transformers is for.

  Args:
    config: of the file.
    num_outputs: K of the head.
    hf_class: what the names of the family's classes begin with, such as "Bert".

  Returns:
    The name of the kind; None where the file does not tell.
  """
  # A head of one output is more special than one of any number.
  heads = sorted(HEADS.values(), key=lambda head: head.width is None)
  for name in map(str, config.get("architectures") or ()):
    plain = name.removeprefix("Flax").removeprefix("TF")
    for head in heads:
      if plain == hf_class + head.hf_class and head.fits(
        config.get("problem_type"), num_outputs
      ):
        return head.name
  return None
