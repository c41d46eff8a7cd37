"""The table of families of encoders, and the family of given weights.

To add a family, write its module beside this file, with its families in the
tuple FAMILIES, and add the module to `FAMILIES` here. A family that differs
from another in names alone belongs into the module of the other.
"""

from collections.abc import Collection
from typing import Any

from bert_jax.models.families import albert
from bert_jax.models.families import bert
from bert_jax.models.families import deberta
from bert_jax.models.families import distilbert
from bert_jax.models.families import electra
from bert_jax.models.families import eurobert
from bert_jax.models.families import gte
from bert_jax.models.families import modernbert
from bert_jax.models.families import mosaic_bert
from bert_jax.models.families import mpnet
from bert_jax.models.families import neobert
from bert_jax.models.families import nomic_bert
from bert_jax.models.families import roberta
from bert_jax.models.families.family import OWN
from bert_jax.models.families.family import ConvertError
from bert_jax.models.families.family import Family

# Value of `model.family` -> the family.
FAMILIES: dict[str, Family] = {
  family.name: family
  for module in (
    bert, roberta, modernbert, distilbert, albert, electra, mpnet, nomic_bert,
    gte, eurobert, neobert, mosaic_bert, deberta,
  )
  for family in module.FAMILIES
}  # fmt: skip
# model_type -> why models of this type are not read.
_LEFT_OUT = {
  "xlnet": (
    "its attention compares distances and segments by parameters that no layer "
    "of this encoder has, and its heads read the last token of a text"
  )
}
# The formats in which weights are read and written.
FORMATS = ("huggingface", "flax", "tf1", OWN)


def get_family(name: str) -> Family:
  """Returns the family of this name.

  Raises:
    ConvertError: no family has this name.
  """
  if name not in FAMILIES:
    raise ConvertError(
      f"model.family={name!r:.60} is unknown; choose one of "
      f"{', '.join(FAMILIES)}"
    )
  return FAMILIES[name]


def family_of(
  model_type: str | None, names: Collection[str] = (), auto_map: Any = None
) -> Family:
  """Returns the family that weights of another program belong to.

  Args:
    model_type: the value in config.json; None if the file lacks it.
    names: the names of the tensors, which decide if model_type is None: the
      family is that whose prefix most names have, or BERT if none has any.
    auto_map: the value in config.json. Of several families with a model_type,
      it is the one whose remote code this names, or else the first.

  Raises:
    ConvertError: no family has this model_type.
  """
  if model_type is None:

    def count(family: Family) -> int:
      prefixes = {n.prefix + n.separator for n in family.names.values()}
      return sum(name.startswith(tuple(prefixes)) for name in names)

    return max(FAMILIES.values(), key=count)
  able = [f for f in FAMILIES.values() if model_type in f.model_types]
  if able:
    return next((f for f in able if f.knows_code(auto_map)), able[0])
  known = dict.fromkeys(
    name for family in FAMILIES.values() for name in family.model_types
  )
  why = _LEFT_OUT.get(model_type, "")
  raise ConvertError(
    f"model_type is {model_type!r:.60}, which this program does not read"
    f"{why and f' ({why})'}; it reads {', '.join(known)}"
  )
