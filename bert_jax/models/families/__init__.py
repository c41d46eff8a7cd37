"""The families of encoders there are, and which of them some weights are of.

To add one, write its module beside this file and give it a row.
"""

from collections.abc import Collection

from bert_jax.models.families import bert
from bert_jax.models.families.family import OWN
from bert_jax.models.families.family import ConvertError
from bert_jax.models.families.family import Family

# Value of `model.family` -> the family.
FAMILIES: dict[str, Family] = {family.name: family for family in (bert.FAMILY,)}
# Formats that weights are read and written in.
FORMATS = ("huggingface", "flax", "tf1", OWN)


def get_family(name: str) -> Family:
  """Returns the family that a config names.

  Raises:
    ConvertError: no family has this name.
  """
  if name not in FAMILIES:
    raise ConvertError(
      f"model.family={name!r:.60} is unknown; choose one of "
      f"{', '.join(FAMILIES)}"
    )
  return FAMILIES[name]


def family_of(model_type: str | None, names: Collection[str] = ()) -> Family:
  """Returns the family that weights of another program belong to.

  Args:
    model_type: as config.json has it; None: the file does not say it.
    names: of the tensors, which decide where there is no model_type: the
      family whose prefix most of them have, or BERT if none has any.

  Raises:
    ConvertError: model_type is that of no family.
  """
  if model_type is None:

    def count(family: Family) -> int:
      prefixes = {n.prefix + n.separator for n in family.names.values()}
      return sum(name.startswith(tuple(prefixes)) for name in names)

    return max(FAMILIES.values(), key=count)
  for family in FAMILIES.values():
    if model_type in family.model_types:
      return family
  known = [name for family in FAMILIES.values() for name in family.model_types]
  raise ConvertError(
    f"model_type is {model_type!r:.60}, which is none of the families that "
    f"this program reads: {', '.join(known)}"
  )
