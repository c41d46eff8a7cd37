"""Weights of one format to another, with what was left behind named."""

import dataclasses
from typing import Any

from bert_jax.runtime.settings import Config
from bert_jax.weights import task_heads
from bert_jax.weights import weights


def convert(config: Config, source: str, target: str) -> weights.Pretrained:
  """Reads a model in any format and writes it in another.

  Args:
    config: the group `convert` is read.
    source: a Hugging Face directory, an original checkpoint or a workdir.
    target: the folder to write; it must be new or empty.

  Returns:
    What was read.

  Raises:
    weights.WeightsError: it cannot be read, or not be written in that format;
      nothing was written.
  """
  pretrained = _settled(weights.read(source), config.convert)
  weights.write(pretrained, target, config.convert.to)
  tensors = sum(1 for _ in _leaves(pretrained.params))
  values = sum(array.size for array in _leaves(pretrained.params))
  print(f"read     {source} ({pretrained.format})")
  print(f"wrote    {target} ({config.convert.to})")
  print(f"tensors  {tensors}, {values:,} values: {_parts(pretrained)}")
  for what, names in (
    ("dropped", pretrained.ignored),
    ("missing", pretrained.missing),
  ):
    print(f"{what:8} {', '.join(names) or 'nothing'}")
  return pretrained


def _settled(pretrained: weights.Pretrained, settings: Any):
  """The model, its head named or taken out as the settings say."""
  if not settings.drop_head and not settings.kind:
    return pretrained
  given = f"convert.kind={settings.kind!r}, drop_head={settings.drop_head}"
  if settings.drop_head and settings.kind:
    raise weights.WeightsError(f"{given}: give one of them")
  if "task" not in pretrained.params:
    raise weights.WeightsError(f"{given}: the model has no head of a task")
  if settings.drop_head:
    params = dict(pretrained.params)
    names = tuple(f"task/{name}" for name in sorted(params.pop("task")))
    refused = {k: v for k, v in pretrained.refused.items() if k != "task"}
    return dataclasses.replace(
      pretrained, params=params, kind=None, labels=(),
      ignored=pretrained.ignored + names, refused=refused,
    )  # fmt: skip
  if why := pretrained.refused.get("task"):
    raise weights.WeightsError(
      f"convert.kind={settings.kind!r}, but {why}; give "
      "--config.convert.drop_head=True to leave the head out"
    )
  if pretrained.kind not in (None, settings.kind):
    raise weights.WeightsError(
      f"convert.kind={settings.kind!r}, but the model says that its head is "
      f"for {pretrained.kind}; leave convert.kind out"
    )
  head = task_heads.HEADS.get(settings.kind)  # writing refuses an unknown one
  labels = pretrained.labels if head and head.has_names else ()
  return dataclasses.replace(pretrained, kind=settings.kind, labels=labels)


def _leaves(tree: Any):
  if isinstance(tree, dict):
    for child in tree.values():
      yield from _leaves(child)
  else:
    yield tree


def _parts(pretrained: weights.Pretrained) -> str:
  """The encoder and heads that there are."""
  head = f" ({pretrained.kind})" if pretrained.kind else ""
  names: list[str] = [
    n for n in ("encoder", "mlm", "nsp") if n in pretrained.params
  ]
  if "task" in pretrained.params:
    names.append(f"task{head}")
  return ", ".join(names)
