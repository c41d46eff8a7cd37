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
from bert_jax.models.config import ModelConfig
from bert_jax.models.families.family import OPTIONAL
from bert_jax.models.families.family import OWN
from bert_jax.models.families.family import POOLER
from bert_jax.models.families.family import WHOLE
from bert_jax.models.families.family import ConvertError
from bert_jax.models.families.family import Family
from bert_jax.models.families.family import Names
from bert_jax.models.families.family import Part

# The last parts of the names of tensors that are constants, not parameters.
BUFFERS = ("position_ids", "token_type_ids", "inv_freq")
_SHOWN = 8  # names of tensors in a message
_FLOATS = frozenset(
  map(np.dtype, ("float16", "float32", "float64", ml_dtypes.bfloat16))
)


@dataclasses.dataclass(frozen=True)
class Converted:
  """The result of `to_ours`.

  Attributes:
    params: path -> array, layers unrolled.
    roles: the roles that the head of a task may have by its names; () if there
      is no head.
    untied: the name of a decoder that differs from the word table, for which
      the head of masked words was left out; "" if it was kept.
    ignored: the names of the tensors that were not used.
    missing: the paths of a full encoder that the tensors lack.
  """

  params: dict[str, np.ndarray]
  roles: tuple[str, ...]
  untied: str
  ignored: tuple[str, ...]
  missing: tuple[str, ...]

  @property
  def kind(self) -> str | None:
    """The role of the head if its names show one alone, else None."""
    return self.roles[0] if len(self.roles) == 1 else None


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
  model = {**model, "family": family.name}
  _check_layers(
    family, names, tensors, model.get("layer_groups") or model["num_layers"]
  )
  config = ModelConfig(**model)
  copies = names.copies if config.tied_words else ()
  found = _by_canonical_name(names, tensors)
  roles, num_labels = _task_head(family, names, model, found, tensors)
  role = roles[0] if roles else next(iter(family.heads))
  shapes = heads.param_shapes(model, num_labels, role)
  wanted = {
    path: place
    for path in shapes
    if (place := names.of(path, role)) is not None
  }
  left_out = set(OPTIONAL) - _parts_present(wanted, found, bool(roles))
  used = {name for name, _, _ in copies}
  untied = _untied_name(names, found, tensors, tied, copies)
  if untied:
    left_out.add("mlm")  # our head of masked words shares the word table
    used = set()
  kept = {k: v for k, v in wanted.items() if _part_of(k) not in left_out}
  _check_complete(family, names, kept, found)
  params = {}
  for path, (name, is_transposed) in kept.items():
    if name not in found:
      params[path] = np.zeros(shapes[path], np.float32)
      continue
    used.add(name)
    array = _as_matrix(
      found[name],
      tensors[found[name]],
      is_transposed,
      _flat_shape(format, path, shapes[path]),
      names.part_of(path),
      config.num_heads,
    )
    params[path] = np.ascontiguousarray(array).reshape(shapes[path])
  ignored = tuple(n for n in tensors if names.canonical(n) not in used)
  _check_encoder(family, names, ignored)
  return Converted(
    params=params,
    roles=roles,
    untied=untied,
    ignored=ignored,
    missing=tuple(
      path for path in wanted if _part_of(path) == POOLER and POOLER in left_out
    ),
  )


def _parts_present(
  wanted: Mapping[str, tuple[str, bool]],
  found: Collection[str],
  has_task: bool,
) -> set[str]:
  """Returns the parts of `OPTIONAL` that the tensors have.

  The heads of masked words and of tasks may share names. The names that a part
  has alone then tell.

  Args:
    wanted: our path -> (their name, whether it is transposed).
    found: the names that there are.
    has_task: whether there is the head of a task.
  """
  names: dict[str, set[str]] = {}
  for path, (name, _) in wanted.items():
    names.setdefault(_part_of(path), set()).add(name)
  shared = names.get("task", set()) & names.get("mlm", set())
  if not has_task:
    names.pop("task", None)
  if "mlm" in names:
    names["mlm"] = (names["mlm"] - shared) or names["mlm"]
  return {part for part, own in names.items() if not own.isdisjoint(found)}


def from_ours(
  family: Family,
  format: str,
  params: Mapping[str, np.ndarray],
  model: Mapping[str, Any],
  role: str | None,
) -> dict[str, np.ndarray]:
  """Converts our parameters to the tensors of a format.

  A bare encoder gets the names of transformers' bare model, without a prefix.

  Args:
    family: the family of the model.
    format: one of `families.FORMATS`.
    params: path -> array, with unrolled layers.
    model: sizes, as in the config group `model`.
    role: the role of the head of its task; None if it has no such head.

  Returns:
    Name -> array.

  Raises:
    ConvertError: see `places_of`.
  """
  places = places_of(family, format, params, model, role)
  names = family.names_in(format)
  is_bare = names.from_classes and not any(
    _part_of(path) in OPTIONAL[1:] for path in params
  )
  tensors = {}
  parts: dict[str, dict[Part, np.ndarray]] = {}
  for path, array in params.items():
    name, is_transposed = places[path]
    if is_bare:
      name = name.removeprefix(names.prefix + names.separator)
    array = array.reshape(_flat_shape(format, path, array.shape))
    array = np.ascontiguousarray(array.T if is_transposed else array)
    part = names.part_of(path)
    if part.count == 1:
      tensors[name] = array
    else:
      parts.setdefault(name, {})[part] = array
  for name, pieces in parts.items():
    order = sorted(pieces, key=lambda part: part.place)
    groups = model["num_heads"] if order[0].by_head else 1
    arrays = [pieces[part] for part in order]
    arrays = [a.reshape(groups, -1, *a.shape[1:]) for a in arrays]
    array = np.concatenate(arrays, 1)
    tensors[name] = array.reshape(-1, *array.shape[2:])
  return tensors


def places_of(
  family: Family,
  format: str,
  params: Mapping[str, np.ndarray],
  model: Mapping[str, Any],
  role: str | None,
) -> dict[str, tuple[str, bool]]:
  """Returns path -> (name, whether it is transposed) of all parameters.

  Args: see `from_ours`.

  Raises:
    ConvertError: a parameter is missing, unknown or of another shape, or has no
      name in the format.
  """
  if unknown := to_ours(family, OWN, params, model).ignored:
    raise ConvertError(
      f"a {family.hf_class} has no parameters {', '.join(sorted(unknown))}"
    )
  names = family.names_in(format)
  places = {}
  for path in params:
    place = names.of(path, role)
    if place is None:
      raise ConvertError(
        f"a {family.hf_class} in the format {format} has no place for {path}"
      )
    places[path] = place
  return places


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
  name: str,
  array: np.ndarray,
  is_transposed: bool,
  shape: tuple[int, ...],
  part: Part = WHOLE,
  num_heads: int = 1,
) -> np.ndarray:
  """Returns a tensor in a shape of ours, after a check of shape and dtype.

  Args:
    name: its name, for errors.
    array: the tensor.
    is_transposed: whether the format has it transposed.
    shape: the shape that is wanted.
    part: which part of the first axis is wanted.
    num_heads: N.
  """
  count = part.count
  wanted = shape[::-1] if is_transposed else shape
  whole = (wanted[0] * count, *wanted[1:]) if count > 1 else wanted
  if array.shape != whole:
    raise ConvertError(
      f"{name} has shape {list(array.shape)}, but by the sizes of the settings "
      f"it should be {list(whole)}; the settings belong to another model"
    )
  if array.dtype not in _FLOATS:
    raise ConvertError(
      f"{name} is {array.dtype}; weights must be one of "
      f"{', '.join(sorted(d.name for d in _FLOATS))}"
    )
  if count > 1:
    groups = num_heads if part.by_head else 1
    array = array.reshape(groups, count, -1, *array.shape[1:])
    array = array[:, part.place].reshape(wanted)
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


def _check_layers(
  family: Family, names: Names, given: Collection[str], layers: int
) -> None:
  """Raises ConvertError if the settings have another number of layers."""
  if layers > len(given):
    raise ConvertError(
      f"the settings have {layers} layers, but there are {len(given)} tensors"
    )
  keys = family.sizes.get("layer_groups") or family.sizes["num_layers"]
  key = keys if isinstance(keys, str) else keys[0]
  for name in given:
    number = names.layer_of(name)
    if number is not None and number >= layers:
      raise ConvertError(
        f"{name} belongs to layer {number}, counted from 0, but the settings "
        f"have {layers} layers with parameters of their own; correct {key}"
      )


def _part_of(path: str) -> str:
  """Returns the part of `OPTIONAL` that has this parameter, or "encoder"."""
  return next((p for p in OPTIONAL if path.startswith(f"{p}/")), "encoder")


def _untied_name(
  names: Names,
  found: Mapping[str, str],
  tensors: Mapping[str, np.ndarray],
  tied: bool,
  copies: tuple[tuple[str, str, bool], ...],
) -> str:
  """Returns the name of a decoder that differs from the word table, or ""."""
  for copy, path, is_transposed in copies:
    place = names.of(path)
    if copy in found and place and place[0] in found:
      array = tensors[found[copy]]
      array = array.T if is_transposed else array
      if not np.array_equal(array, tensors[found[place[0]]]):
        return copy
  if tied or not copies:
    return ""
  decoder, bias = copies[0][0], names.of("mlm/bias")
  has_head = bias is not None and bias[0] in found
  return decoder if has_head and decoder not in found else ""


def _check_complete(
  family: Family,
  names: Names,
  wanted: Mapping[str, tuple[str, bool]],
  found: Collection[str],
) -> None:
  """Raises ConvertError, which lists them, if tensors are missing."""
  missing = dict.fromkeys(
    name
    for path, (name, _) in wanted.items()
    if name not in found and path not in names.zeros
  )
  if missing:
    them = "it" if len(missing) == 1 else "them"
    raise ConvertError(
      f"there is no {_listed(missing)}; a {family.hf_class} with these "
      f"settings has {them}, so the file is incomplete or holds another kind "
      "of model"
    )


def _listed(names: Collection[str]) -> str:
  """Returns names with commas between them, of many the first ones."""
  more = len(names) - _SHOWN
  shown = ", ".join(list(names)[:_SHOWN])
  return f"{shown} and {more} more" if more > 0 else shown


def _check_encoder(
  family: Family, names: Names, ignored: Collection[str]
) -> None:
  """Raises ConvertError if tensors that were not used change the encoder."""
  extra = [
    name
    for name in ignored
    if names.from_classes
    and names.is_of_encoder(names.canonical(name))
    and not name.endswith(BUFFERS)
  ]
  if extra:
    are, them = (
      ("is a part", "it") if len(extra) == 1 else ("are parts", "them")
    )
    raise ConvertError(
      f"{_listed(extra)} {are} of the encoder that a {family.hf_class} does "
      f"not have here, so its outputs would differ; remove {them} from the "
      f"file if the encoder should be used without {them}"
    )


def _task_head(
  family: Family,
  names: Names,
  model: Mapping[str, Any],
  found: Mapping[str, str],
  tensors: Mapping[str, np.ndarray],
) -> tuple[tuple[str, ...], int]:
  """Returns the roles that the names of the head of a task show, and its K.

  A role whose head has more parameters than another's, all of which are there,
  counts alone.
  """
  sizes: dict[str, int] = {}  # their name of the last bias -> K
  roles: dict[str, int] = {}  # role -> number of its parameters
  for role in family.heads:
    place = names.of("task/bias", role)
    if place is None or place[0] not in found:
      continue
    shape = tensors[found[place[0]]].shape
    sizes[place[0]] = shape[0] if shape else 0
    paths = [p for p in heads.param_shapes(model, 1, role) if "task/" in p]
    named = [names.of(path, role) for path in paths]
    if all(name is not None and name[0] in found for name in named):
      roles[role] = len(paths)
  if len(sizes) > 1:
    raise ConvertError(
      f"the weights have several heads of tasks: {', '.join(sizes)}; "
      "keep one of them"
    )
  if not roles:
    return _broken_task_head(family, names, found, tensors)
  most = max(roles.values())
  chosen = tuple(role for role, count in roles.items() if count == most)
  return chosen, next(iter(sizes.values()))


def _broken_task_head(
  family: Family,
  names: Names,
  found: Mapping[str, str],
  tensors: Mapping[str, np.ndarray],
) -> tuple[tuple[str, ...], int]:
  """Returns the roles of a head of which a part is missing, and its K."""
  for role in family.heads:
    place = names.of("task/bias", role)
    if place and place[0] in found:
      shape = tensors[found[place[0]]].shape
      return (role,), shape[0] if shape else 0
  return (), 1
