"""Converts weights from one format to another, and lists what it leaves out."""

import dataclasses
from typing import Any

from bert_jax.models import params as param_trees
from bert_jax.models.families.family import PRETRAINING_HEADS
from bert_jax.runtime import files
from bert_jax.runtime import hub
from bert_jax.runtime.settings import Config
from bert_jax.weights import averaging
from bert_jax.weights import extending
from bert_jax.weights import folders
from bert_jax.weights import model_card
from bert_jax.weights import task_heads
from bert_jax.weights.pretrained import Pretrained
from bert_jax.weights.pretrained import WeightsError


def convert(
  config: Config, source: str, target: str, push: str = ""
) -> Pretrained:
  """Reads a model in any format and writes it in another.

  Args:
    config: the whole configuration, of which the group `convert` is read.
    source: a Hugging Face folder, an original checkpoint or a workdir.
    target: the folder to write, which must be new or empty.
    push: the name of the model of the hub that the folder is uploaded as; ""
      for none.

  Returns:
    The model that was written.

  Raises:
    WeightsError: the model cannot be read, or the format cannot hold it;
      nothing was written.
    hub.HubError: the folder cannot be uploaded. If it exists, it is whole.
  """
  if push:
    hub.check_push(push)
  count = config.convert.average_last
  which = config.convert.get("weights", "evaluated")
  if count and which != "evaluated":
    raise WeightsError(
      f"convert.average_last={count} and convert.weights={which}: give one of "
      "them"
    )
  found = (
    averaging.read(source, count)
    if count
    else folders.read(source, which=which)
  )
  pretrained = _settled(found, config.convert)
  changes = ""
  if extending.is_asked(config.convert):
    extended = extending.extend(pretrained, config.convert)
    changes = extending.describe(pretrained, extended)
    pretrained = extended
  folders.write(pretrained, target, config.convert.to)
  added = []
  if config.convert.to == "huggingface":
    added = model_card.write(pretrained, source, target, count)
  flat = param_trees.flatten(pretrained.params)
  values = sum(array.size for array in flat.values())
  print(f"read     {pretrained.source or source} ({pretrained.format})")
  print(f"wrote    {target} ({config.convert.to})")
  if added:
    print(f"added    {', '.join(added)}")
  print(f"tensors  {len(flat)}, {values:,} values: {_parts(pretrained)}")
  if changes:
    print(f"extended {changes}")
  for what, names in (
    ("dropped", pretrained.ignored),
    ("missing", pretrained.missing),
  ):
    print(f"{what:8} {', '.join(names) or 'nothing'}")
  if push:
    message = f"Converted to {config.convert.to} by bert_jax"
    pushed = hub.push(files.local(target), push, message)
    print(f"pushed   {pushed} ({hub.endpoint()})")
  return pretrained


def _settled(pretrained: Pretrained, settings: Any):
  """Gives the head of the model a kind, or removes it, as the settings ask."""
  is_refused = "task" in pretrained.refused  # writing says why
  if not settings.drop_head and (not settings.kind or is_refused):
    return pretrained
  given = f"convert.kind={settings.kind!r}, drop_head={settings.drop_head}"
  if settings.drop_head and settings.kind:
    raise WeightsError(f"{given}: give only one of them")
  if "task" not in pretrained.params:
    raise WeightsError(f"{given}: the model has no head of a task")
  if settings.drop_head:
    params = dict(pretrained.params)
    names = tuple(f"task/{name}" for name in sorted(params.pop("task")))
    refused = {k: v for k, v in pretrained.refused.items() if k != "task"}
    return dataclasses.replace(
      pretrained, params=params, kind=None, labels=(),
      ignored=pretrained.ignored + names, refused=refused,
    )  # fmt: skip
  if pretrained.kind not in (None, settings.kind):
    raise WeightsError(
      f"convert.kind={settings.kind!r}, but the model says that its head is "
      f"for {pretrained.kind}; leave convert.kind out"
    )
  head = task_heads.HEADS.get(settings.kind)  # writing refuses unknown kinds
  labels = pretrained.labels if head and head.has_names else ()
  return dataclasses.replace(pretrained, kind=settings.kind, labels=labels)


def _parts(pretrained: Pretrained) -> str:
  """Returns the names of the parts of a model: the encoder and its heads."""
  head = f"task ({pretrained.kind})" if pretrained.kind else "task"
  names = {name: name for name in ("encoder", *PRETRAINING_HEADS)}
  names["task"] = head
  return ", ".join(names[n] for n in names if n in pretrained.params)
