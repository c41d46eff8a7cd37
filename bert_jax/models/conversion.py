"""Tensors of any format to our parameters, and back.

A tree of parameters is flat here: path with "/" -> numpy array, layers
unrolled. What the tensors are called is the family's; what shapes they have is
the model's. No file is read; `weights/` reads and writes them.
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

# Tensors of the encoder that hold positions, which are not learned.
BUFFERS = ("position_ids", "token_type_ids")
_FLOATS = frozenset(
  map(np.dtype, ("float16", "float32", "float64", ml_dtypes.bfloat16))
)


@dataclasses.dataclass(frozen=True)
class Converted:
  """The result of `to_ours`.

  Attributes:
    params: path -> array, layers unrolled.
    is_span: whether the head of its task is that of spans; None: no head.
    untied: why the head of masked words was left out: the name of a tensor
      that is not the word table, or "" where it was not.
    ignored: names of tensors that have no place here.
    missing: paths of a full encoder that are not there.
  """

  params: dict[str, np.ndarray]
  is_span: bool | None
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
    family: that the tensors are of.
    format: one of `families.FORMATS`.
    tensors: name -> array; names with or without the prefix of the encoder.
    model: sizes, as in the config group `model`.
    tied: whether the settings let the head of masked words share the word
      table. A head that does not is left out: ours always does.

  Returns:
    The parameters, and what was left over.

  Raises:
    ConvertError: a tensor is missing, is there twice, has another shape than
      the sizes make it, or is a part of an encoder that is not here.
  """
  names = family.names_in(format)
  _check_layers(names, tensors, model["num_layers"])
  found = _by_canonical_name(names, tensors)
  is_span, num_labels = _task_head(names, found, tensors)
  shapes = heads.param_shapes(model, num_labels)
  wanted = {
    path: place
    for path in shapes
    if (place := names.of(path, bool(is_span))) is not None
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
        f"there is no {name}, which a {family.hf_class} of these settings has; "
        "the file is not whole, or of another kind of model"
      )
    used.add(name)
    array = _as_matrix(found[name], tensors[found[name]], is_transposed,
                       _flat_shape(format, path, shapes[path]))  # fmt: skip
    params[path] = np.ascontiguousarray(array).reshape(shapes[path])
  ignored = tuple(n for n in tensors if names.canonical(n) not in used)
  _check_encoder(family, names, ignored)
  return Converted(
    params=params,
    is_span=is_span,
    untied=untied,
    ignored=ignored,
    missing=tuple(
      path for path in wanted if _part_of(path) == POOLER and POOLER in left_out
    ),
  )


def check(
  family: Family, params: Mapping[str, np.ndarray], model: Mapping[str, Any]
) -> None:
  """Checks that a flat tree is a whole model of these sizes.

  Raises:
    ConvertError: says which parameter is missing, unknown or misshaped.
  """
  found = to_ours(family, OWN, params, model)
  if found.ignored:
    raise ConvertError(
      f"{', '.join(sorted(found.ignored))} are no parameters of a "
      f"{family.hf_class}"
    )


def from_ours(
  family: Family,
  format: str,
  params: Mapping[str, np.ndarray],
  model: Mapping[str, Any],
  kind: str | None,
) -> dict[str, np.ndarray]:
  """Converts our parameters to the tensors of a format.

  A bare encoder gets the names of transformers' bare model: no prefix.

  Args:
    family: that the model is of.
    format: one of `families.FORMATS`.
    params: path -> array, layers unrolled.
    model: sizes, as in the config group `model`.
    kind: of the task of its head; None: no head.

  Returns:
    Name -> array.

  Raises:
    ConvertError: as `check`; or the family has no name for a parameter.
  """
  check(family, params, model)
  names = family.names_in(format)
  is_bare = names.from_classes and not any(
    _part_of(path) in OPTIONAL[1:] for path in params
  )
  tensors = {}
  for path, array in params.items():
    place = names.of(path, kind == "span")
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
  """The shape in a format: others have heads and what is in one as one axis."""
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
  """Checks one tensor, and turns it to a shape if it lies transposed."""
  wanted = shape[::-1] if is_transposed else shape
  if array.shape != wanted:
    raise ConvertError(
      f"{name} has shape {list(array.shape)}, but the sizes of the settings "
      f"make it {list(wanted)}; they belong to another model"
    )
  if array.dtype not in _FLOATS:
    raise ConvertError(
      f"{name} is {array.dtype}; weights are "
      f"{', '.join(sorted(d.name for d in _FLOATS))}"
    )
  return array.T if is_transposed else array


def _by_canonical_name(names: Names, given: Collection[str]) -> dict[str, str]:
  """Canonical name -> the name given."""
  found: dict[str, str] = {}
  for name in given:
    other = found.setdefault(names.canonical(name), name)
    if other != name:
      raise ConvertError(
        f"{other} and {name} are two names of one parameter; leave one out"
      )
  for copy, path, _ in names.copies:
    place = names.of(path)
    # A copy of the word table may be another table, so that it is no stand-in.
    if copy in found and place and not path.startswith("encoder/"):
      found.setdefault(place[0], found[copy])
  return found


def _check_layers(names: Names, given: Collection[str], layers: int) -> None:
  """Refuses more layers or fewer than the settings say."""
  if layers > len(given):
    raise ConvertError(
      f"the settings have {layers} layers, but there are {len(given)} tensors"
    )
  for name in given:
    number = names.layer_of(name)
    if number is not None and number >= layers:
      raise ConvertError(
        f"{name} is of layer {number}, but the settings have {layers} layers "
        "(counted from 0); correct num_hidden_layers"
      )


def _part_of(path: str) -> str:
  """Which of `OPTIONAL` a parameter belongs to, or "encoder"."""
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
  """Refuses tensors of the encoder that would change what it computes."""
  for name in ignored:
    if (
      names.from_classes
      and names.is_of_encoder(names.canonical(name))
      and not name.endswith(BUFFERS)
    ):
      raise ConvertError(
        f"{name} is a part of the encoder that a {family.hf_class} does not "
        "have here, so its outputs would be others; take it out of the file "
        "where the encoder is meant to be used without it"
      )


def _task_head(
  names: Names, found: Mapping[str, str], tensors: Mapping[str, np.ndarray]
) -> tuple[bool | None, int]:
  """Whether the head of the task is that of spans, and its K."""
  heads_found = {}
  for is_span in (True, False):  # where both have one name, it is not told
    place = names.of("task/bias", is_span)
    if place and place[0] in found:
      shape = tensors[found[place[0]]].shape
      heads_found[place[0]] = is_span, shape[0] if shape else 0
  if len(heads_found) > 1:
    raise ConvertError(
      "it has a head for spans and another one; keep one of them"
    )
  return next(iter(heads_found.values()), (None, 1))
