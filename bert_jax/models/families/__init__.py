"""The table of families of encoders, and the family of given weights.

To add a family, write its module beside this file and add it to `FAMILIES`.
"""

from collections.abc import Collection

from bert_jax.models.families import bert
from bert_jax.models.families.family import OWN
from bert_jax.models.families.family import ConvertError
from bert_jax.models.families.family import Family

# Value of `model.family` -> the family.
FAMILIES: dict[str, Family] = {family.name: family for family in (bert.FAMILY,)}
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


def family_of(model_type: str | None, names: Collection[str] = ()) -> Family:
  """Returns the family that weights of another program belong to.

  Args:
    model_type: the value in config.json; None if the file lacks it.
    names: the names of the tensors, which decide if model_type is None: the
      family is that whose prefix most names have, or BERT if none has any.

  Raises:
    ConvertError: no family has this model_type.
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
    f"model_type is {model_type!r:.60}, which this program does not read; it "
    f"reads {', '.join(known)}"
  )
