"""Converts the tensors of any format to our parameters, and back.

A tree of parameters is flat here: path with "/" -> numpy array, with unrolled
layers. The family decides the names of the tensors, and the model their shapes.
This module reads no files; `weights/` reads and writes them.
"""

from collections.abc import Collection, Mapping
import dataclasses
import math
import re
from typing import Any

import ml_dtypes
import numpy as np

from bert_jax.models import heads
from bert_jax.models.families.family import OPTIONAL
from bert_jax.models.families.family import OWN
from bert_jax.models.families.family import POOLER
from bert_jax.models.families.family import ConvertError
from bert_jax.models.families.family import Family
from bert_jax.models.families.family import Names

# The last parts of the names of tensors that are constants, not parameters.
BUFFERS = ("position_ids", "token_type_ids")
_FLOATS = frozenset(
  map(np.dtype, ("float16", "float32", "float64", ml_dtypes.bfloat16))
)


@dataclasses.dataclass(frozen=True)
class Converted:
  """The result of `to_ours`.

  Attributes:
    params: path -> array, layers unrolled.
    kind: the kind of task that the name of the head shows; None if it shows no
      kind, or if there is no head.
    untied: the name of a decoder that differs from the word table, for which
      the head of masked words was left out; "" if it was kept.
    ignored: the names of the tensors that were not used.
    missing: the paths of a full encoder that the tensors lack.
  """

  params: dict[str, np.ndarray]
  kind: str | None
  untied: str
  ignored: tuple[str, ...]
  missing: tuple[str, ...]


def to_ours(
  family: Family,
  format: str,
  tensors: Mapping[str, np.ndarray],
  model: Mapping[str, Any],
  *,
  tied: bool = True,
) -> Converted:
  """Converts the tensors of a format to our parameters.

  Args:
    family: the family of the model.
    format: one of `families.FORMATS`.
    tensors: name -> array; names with or without the prefix of the encoder.
    model: sizes, as in the config group `model`.
    tied: whether the settings let the head of masked words share the word
      table. Our head always shares it, so a head that does not is left out.

  Returns:
    The parameters, and which tensors were left over.

  Raises:
    ConvertError: a tensor is missing, occurs twice, has a shape that does not
      fit the sizes, or is a part of an encoder that this program does not have.
  """
  names = family.names_in(format)
  _check_layers(names, tensors, model["num_layers"])
  found = _by_canonical_name(names, tensors)
  kind, num_labels = _task_head(names, found, tensors)
  shapes = heads.param_shapes(model, num_labels)
  wanted = {
    path: place
    for path in shapes
    if (place := names.of(path, kind)) is not None
  }
  left_out = {
    part
    for part in OPTIONAL
    if not any(
      n in found for p, (n, _) in wanted.items() if _part_of(p) == part
    )
  }
  used = {name for name, _, _ in names.copies}
  untied = _untied_name(names, found, tensors, tied)
  if untied:
    left_out.add("mlm")  # our head of masked words shares the word table
    used = set()
  params = {}
  for path, (name, is_transposed) in wanted.items():
    if _part_of(path) in left_out:
      continue
    if name not in found:
      raise ConvertError(
        f"there is no {name}, which a {family.hf_class} with these settings "
        "has; the file is incomplete, or holds another kind of model"
      )
    used.add(name)
    array = _as_matrix(found[name], tensors[found[name]], is_transposed,
                       _flat_shape(format, path, shapes[path]))  # fmt: skip
    params[path] = np.ascontiguousarray(array).reshape(shapes[path])
  ignored = tuple(n for n in tensors if names.canonical(n) not in used)
  _check_encoder(family, names, ignored)
  return Converted(
    params=params,
    kind=kind,
    untied=untied,
    ignored=ignored,
    missing=tuple(
      path for path in wanted if _part_of(path) == POOLER and POOLER in left_out
    ),
  )


def from_ours(
  family: Family,
  format: str,
  params: Mapping[str, np.ndarray],
  model: Mapping[str, Any],
  kind: str | None,
) -> dict[str, np.ndarray]:
  """Converts our parameters to the tensors of a format.

  A bare encoder gets the names of transformers' bare model, without a prefix.

  Args:
    family: the family of the model.
    format: one of `families.FORMATS`.
    params: path -> array, with unrolled layers.
    model: sizes, as in the config group `model`.
    kind: the kind of the task of its head; None if it has no such head.

  Returns:
    Name -> array.

  Raises:
    ConvertError: a parameter is missing, unknown or of another shape, or has no
      name in the format.
  """
  if unknown := to_ours(family, OWN, params, model).ignored:
    raise ConvertError(
      f"a {family.hf_class} has no parameters {', '.join(sorted(unknown))}"
    )
  names = family.names_in(format)
  is_bare = names.from_classes and not any(
    _part_of(path) in OPTIONAL[1:] for path in params
  )
  tensors = {}
  for path, array in params.items():
    place = names.of(path, kind)
    if place is None:
      raise ConvertError(
        f"a {family.hf_class} in the format {format} has no place for {path}"
      )
    name, is_transposed = place
    if is_bare:
      name = name.removeprefix(names.prefix + names.separator)
    array = array.reshape(_flat_shape(format, path, array.shape))
    tensors[name] = np.ascontiguousarray(array.T if is_transposed else array)
  return tensors


def _flat_shape(
  format: str, path: str, shape: tuple[int, ...]
) -> tuple[int, ...]:
  """Returns the shape in a format; other formats join the axes [N, H]."""
  if format == OWN:
    return shape
  if path.endswith("attention/out/kernel"):
    return (math.prod(shape[:-1]), shape[-1])
  if re.search(r"attention/(query|key|value)/kernel$", path):
    return (shape[0], math.prod(shape[1:]))
  return (math.prod(shape),) if path.endswith("/bias") else shape


def _as_matrix(
  name: str, array: np.ndarray, is_transposed: bool, shape: tuple[int, ...]
) -> np.ndarray:
  """Returns a tensor in a shape of ours, after a check of shape and dtype."""
  wanted = shape[::-1] if is_transposed else shape
  if array.shape != wanted:
    raise ConvertError(
      f"{name} has shape {list(array.shape)}, but by the sizes of the settings "
      f"it should be {list(wanted)}; the settings belong to another model"
    )
  if array.dtype not in _FLOATS:
    raise ConvertError(
      f"{name} is {array.dtype}; weights must be one of "
      f"{', '.join(sorted(d.name for d in _FLOATS))}"
    )
  return array.T if is_transposed else array


def _by_canonical_name(names: Names, given: Collection[str]) -> dict[str, str]:
  """Returns canonical name -> the given name."""
  found: dict[str, str] = {}
  for name in given:
    other = found.setdefault(names.canonical(name), name)
    if other != name:
      raise ConvertError(
        f"{other} and {name} name the same parameter; remove one of them"
      )
  for copy, path, _ in names.copies:
    place = names.of(path)
    # A copy of the word table may differ from it, so it cannot replace it.
    if copy in found and place and not path.startswith("encoder/"):
      found.setdefault(place[0], found[copy])
  return found


def _check_layers(names: Names, given: Collection[str], layers: int) -> None:
  """Raises ConvertError if the settings have another number of layers."""
  if layers > len(given):
    raise ConvertError(
      f"the settings have {layers} layers, but there are {len(given)} tensors"
    )
  for name in given:
    number = names.layer_of(name)
    if number is not None and number >= layers:
      raise ConvertError(
        f"{name} belongs to layer {number}, counted from 0, but the settings "
        f"have {layers} layers; correct num_hidden_layers"
      )


def _part_of(path: str) -> str:
  """Returns the part of `OPTIONAL` that has this parameter, or "encoder"."""
  return next((p for p in OPTIONAL if path.startswith(f"{p}/")), "encoder")


def _untied_name(
  names: Names,
  found: Mapping[str, str],
  tensors: Mapping[str, np.ndarray],
  tied: bool,
) -> str:
  """Returns the name of a decoder that differs from the word table, or ""."""
  for copy, path, is_transposed in names.copies:
    place = names.of(path)
    if copy in found and place and place[0] in found:
      array = tensors[found[copy]]
      array = array.T if is_transposed else array
      if not np.array_equal(array, tensors[found[place[0]]]):
        return copy
  if tied or not names.copies:
    return ""
  decoder, bias = names.copies[0][0], names.of("mlm/bias")
  has_head = bias is not None and bias[0] in found
  return decoder if has_head and decoder not in found else ""


def _check_encoder(
  family: Family, names: Names, ignored: Collection[str]
) -> None:
  """Raises ConvertError if a tensor that was not used changes the encoder."""
  for name in ignored:
    if (
      names.from_classes
      and names.is_of_encoder(names.canonical(name))
      and not name.endswith(BUFFERS)
    ):
      raise ConvertError(
        f"{name} is a part of the encoder that a {family.hf_class} does not "
        "have here, so its outputs would differ; remove it from the file if "
        "the encoder should be used without it"
      )


def _task_head(
  names: Names, found: Mapping[str, str], tensors: Mapping[str, np.ndarray]
) -> tuple[str | None, int]:
  """Returns the kind that the name of the head of a task shows, and its K."""
  heads_found = {}
  for kind in (*names.task_heads, None):
    place = names.of("task/bias", kind)
    if place and place[0] in found:
      shape = tensors[found[place[0]]].shape
      heads_found[place[0]] = kind, shape[0] if shape else 0
  if len(heads_found) > 1:
    raise ConvertError(
      f"the weights have several heads of tasks: {', '.join(heads_found)}; "
      "keep one of them"
    )
  return next(iter(heads_found.values()), (None, 1))
