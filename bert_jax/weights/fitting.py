"""Fits weights into the parameter tree of a model."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bert_jax.models import params as param_trees
from bert_jax.models.config import ModelConfig
from bert_jax.weights.pretrained import WeightsError


def _misfit(
  path: str, given: Mapping[str, Any], model: Mapping[str, Any], offset: int
) -> WeightsError:
  """Returns the error for a wrong shape; its message says what to change."""
  shapes = [list(tree[path].shape) for tree in (given, model)]
  ours, theirs = (param_trees.sizes_of(tree, offset) for tree in (given, model))
  if path.startswith("task/"):
    how = (
      f"the head has {shapes[0][-1]} outputs, the task needs {shapes[1][-1]}: "
      "to train a new head, remove this one with bert-jax convert "
      "--config.convert.drop_head=True"
    )
  else:
    how = "set " + ", ".join(
      f"model.{key}={size} (it is {theirs[key]})"
      for key, size in ours.items()
      if theirs.get(key, size) != size
    )
  return WeightsError(
    f"{path} has shape {shapes[0]} in the weights, but {shapes[1]} in the "
    f"model; {how}"
  )


def fit(
  params: Mapping[str, Any],
  wanted: Mapping[str, Any],
  config: ModelConfig | None = None,
  *,
  copy: bool = True,
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
  """Fits weights into the parameter tree of a model.

  Args:
    params: the nested weights, layers unrolled, as in `Pretrained.params`.
    wanted: the nested tree of the model, layers unrolled or scanned. Its leaves
      have .shape and .dtype, such as jax.ShapeDtypeStruct.
    config: the config of the model, by which errors name the right key where
      shapes do not say it: of layers that share parameters, and of a position
      table with rows before the first position.
    copy: whether the arrays are copied also if their dtype stays.

  Returns:
    A tree like `wanted`, with arrays of the same dtypes and None for each
    parameter that the weights lack; the paths of these parameters; and the
    paths of weights that the model has no place for.

  Raises:
    WeightsError: a shape or the number of layers differs.
  """
  given, model = param_trees.flatten(params), param_trees.flatten(wanted)
  layers, wanted_layers = (
    param_trees.num_layers(given),
    param_trees.num_layers(model),
  )
  if layers and wanted_layers and layers != wanted_layers:
    own, key = "", "num_layers"
    if config is not None and config.layer_groups:
      own, key = " with parameters of their own", "layer_groups"
    raise WeightsError(
      f"the weights have {layers} layers{own}, the model {wanted_layers}; set "
      f"model.{key}={layers}"
    )
  if any(path.startswith("encoder/layers/") for path in model):
    given = param_trees.stack(given)
  merged: dict[str, np.ndarray | None] = {}
  for path, leaf in model.items():
    array = given.get(path)
    if array is not None and array.shape != tuple(leaf.shape):
      offset = config.position_offset if config is not None else 0
      raise _misfit(path, given, model, offset)
    merged[path] = (
      None if array is None else array.astype(leaf.dtype, copy=copy)
    )
  added = tuple(path for path, array in merged.items() if array is None)
  dropped = tuple(path for path in given if path not in model)
  return param_trees.nest(merged), added, dropped
