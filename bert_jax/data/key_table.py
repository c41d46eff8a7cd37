"""Which keys of another program's settings are accepted, read or ignored.

A file that transformers wrote has dozens of keys. A table divides them into
three groups: keys that may have only certain values, because any other value
would change what is computed; keys that code reads; and keys that change
nothing in this program. A key in none of these groups is unknown and is logged.
"""

from collections.abc import Mapping
import dataclasses
import json
import logging
from typing import Any

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class KeyTable:
  """The keys of one kind of file.

  Attributes:
    only: key -> the values that are accepted. A file may set a key to None,
      which means that it is not set.
    read: the keys that code reads.
    ignored: the keys that change nothing in this program.
    effect: the noun that messages use for what other values would change.
    advice: the text that messages add after the accepted values.
    remedies: key -> the advice of messages if a key has no accepted value.
  """

  only: Mapping[str, tuple[Any, ...]]
  read: frozenset[str]
  ignored: frozenset[str]
  effect: str
  advice: str = ""
  remedies: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def extended(
    self,
    only: Mapping[str, tuple[Any, ...]] | None = None,
    read: frozenset[str] = frozenset(),
    ignored: frozenset[str] = frozenset(),
    remedies: Mapping[str, str] | None = None,
  ) -> "KeyTable":
    """Returns this table with more keys."""
    return dataclasses.replace(
      self,
      only={**self.only, **(only or {})},
      read=self.read | read,
      ignored=self.ignored | ignored,
      remedies={**self.remedies, **(remedies or {})},
    )

  def check(self, config: Mapping[str, Any]) -> None:
    """Raises ValueError if a key of `only` has another value.

    Args:
      config: the content of the file. A special token may be an object, whose
        field "content" is then compared.
    """
    for key, accepted in self.only.items():
      value = config.get(key)
      if isinstance(value, dict) and "content" in value:
        value = value["content"]
      if value is not None and value not in accepted:
        raise ValueError(self.refusal(key, value, accepted))

  def refusal(self, key: str, value: Any, accepted: tuple[Any, ...]) -> str:
    """Returns why a value is refused, and what would be accepted."""
    wanted = ", ".join(json.dumps(x) for x in accepted if x not in (None, {}))
    remedy = f"it accepts {wanted}{self.advice}"
    if not wanted:
      remedy = self.remedies.get(
        key, "remove the key to use the model without it"
      )
    return (
      f"{key} is {value!r:.100}, which gives other {self.effect} than this "
      f"program can make; {remedy}"
    )

  def unknown(self, config: Mapping[str, Any]) -> list[str]:
    """Returns the keys that are not in this table, sorted."""
    known = self.only.keys() | self.read | self.ignored
    return sorted(map(str, config.keys() - known))

  def check_file(self, path: str, config: Mapping[str, Any]) -> None:
    """Checks the content of a file, and logs its unknown keys.

    Raises:
      ValueError: see `check`; the message names the file.
    """
    try:
      self.check(config)
    except ValueError as error:
      raise ValueError(f"{path}: {error}") from None
    self.warn(path, config)

  def warn(self, path: str, config: Mapping[str, Any]) -> None:
    """Logs the keys of a file that are not in this table."""
    if unknown := self.unknown(config):
      _log.warning(
        "%s has unknown keys, which were not read: %s; check that they change "
        "no %s",
        path, ", ".join(unknown), self.effect,
      )  # fmt: skip
