"""Divides the training examples of a task into parts to train on and to score.

The division depends on the examples and a seed alone. Each part has the same
share of every label, and what belongs together stays together: equal texts, and
the questions on one text, whose answers the model would otherwise have seen.
"""

from collections.abc import Callable, Sequence
import hashlib
from typing import Any

from bert_jax.tasks import spec


def check(config: Any) -> None:
  """Raises TaskError if the settings do not fit each other.

  Args:
    config: the group `task` of a config.
  """
  if not (config.dev_rate or config.num_folds):
    if config.fold or config.dev_seed:
      name = "fold" if config.fold else "dev_seed"
      raise spec.TaskError(
        f"task.{name}={config[name]} has no effect without task.num_folds or "
        "task.dev_rate; leave it out"
      )
    return
  if config.dev_rate and config.num_folds:
    raise spec.TaskError(
      f"task.dev_rate={config.dev_rate} and task.num_folds={config.num_folds} "
      "both choose the examples to evaluate; give one of them"
    )
  if config.dev_rate == 1 or config.num_folds == 1:
    raise spec.TaskError(
      f"task.dev_rate={config.dev_rate}, task.num_folds={config.num_folds}: no "
      "example is left to train on; give a rate below 1, or 2 folds or more"
    )
  if config.num_folds and config.fold >= config.num_folds:
    raise spec.TaskError(
      f"task.fold={config.fold}; with task.num_folds={config.num_folds} it "
      f"must be from 0 to {config.num_folds - 1}"
    )
  if config.files.validation:
    raise spec.TaskError(
      f"task.files.validation={config.files.validation}, but task.dev_rate or "
      "task.num_folds evaluates training examples; leave one of them out"
    )


def is_on(config: Any) -> bool:
  """Returns whether training examples are evaluated.

  Args:
    config: the group `task` of a config.
  """
  return bool(config.dev_rate or config.num_folds)


def divide(
  task: spec.Task, examples: Sequence[Any], config: Any
) -> tuple[list[Any], list[Any]]:
  """Returns the examples to train on, and those to evaluate, in their order.

  Args:
    task: the task.
    examples: the examples of the training file.
    config: the group `task` of a config.

  Raises:
    spec.TaskError: one of the parts would be empty.
  """
  is_dev = _rule(config)
  groups: dict[str, list[Any]] = {}
  for example in examples:
    groups.setdefault(_group(example), []).append(example)

  def order(group: str) -> tuple[str, bytes]:
    text = f"{config.dev_seed}/{group}"
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return _stratum(groups[group][0]), digest

  # Counted through all labels, so that each part also has the right size.
  held_out = {
    group
    for i, group in enumerate(sorted(groups, key=order))
    if is_dev(i, len(groups))
  }
  parts: tuple[list[Any], list[Any]] = ([], [])
  for example in examples:
    parts[_group(example) in held_out].append(example)
  if not all(parts):
    which = "evaluate" if parts[0] else "train on"
    raise spec.TaskError(
      f"task {task.name}: no example is left to {which}: the training file has "
      f"{len(groups)} different texts, task.dev_rate={config.dev_rate}, "
      f"task.num_folds={config.num_folds}"
    )
  return parts


def _rule(config: Any) -> Callable[[int, int], bool]:
  """Returns a function: place of a text, number of texts -> is it held out."""
  if config.num_folds:
    return lambda i, total: i % config.num_folds == config.fold

  def is_dev(i: int, total: int) -> bool:
    wanted = max(1, round(config.dev_rate * total))
    return (i + 1) * wanted // total > i * wanted // total

  return is_dev


def _group(example: Any) -> str:
  """Returns what examples share that must stay together."""
  if isinstance(example, spec.SpanExample):
    return example.context
  if isinstance(example, spec.TagExample):
    return repr(example.words)
  if isinstance(example, spec.GroupedExample):
    return example.text_a
  return repr(example.pairs)


def _stratum(example: Any) -> str:
  """Returns what each part should have the same share of."""
  if isinstance(example, spec.SpanExample):
    return ""
  if isinstance(example, spec.TagExample):
    return repr(sorted(set(example.labels or ())))
  is_score = isinstance(example.label, float)
  return "" if is_score else repr(example.label)
