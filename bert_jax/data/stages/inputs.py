"""The text of a preparation, identified by the hash of its content."""

from collections.abc import Mapping, Sequence
from concurrent import futures
import dataclasses
import functools
import hashlib
import json
import os

from bert_jax.data import corpus
from bert_jax.data.store import records
from bert_jax.runtime import files
from bert_jax.runtime import settings


class Inputs:
  """The units of text of a preparation.

  Attributes:
    units: the units that corpus.list_units returned.
    formats: the formats of all units, sorted, as prepare.format names them.
  """

  def __init__(self, prepare: settings.Prepare, patterns: Sequence[str]):
    """Cuts the inputs into units; their content is not read yet.

    Args:
      prepare: the `prepare` group of the config.
      patterns: the inputs, as for corpus.list_units.
    """
    cut = functools.partial(
      corpus.list_units,
      text_format=prepare.format,
      unit_bytes=prepare.unit_bytes,
    )
    self.units = cut(patterns)
    if patterns and prepare.held_out_input:
      held_out = cut(prepare.held_out_input.split(","))
      shared = _files(self.units) & _files(held_out)
      if shared:
        raise corpus.CorpusError(
          f"{min(shared)} is in --input and in prepare.held_out_input; "
          "remove it from one of them"
        )
      self.units += [
        dataclasses.replace(unit, held_out=True) for unit in held_out
      ]
    self.formats = sorted(
      {unit.format or prepare.format for unit in self.units}
    )
    self._hash = functools.cache(
      lambda unit: corpus.hash_unit(unit, prepare.format, prepare.text_key)
    )

  def _hashes(self, numbers: Sequence[int]) -> list[str]:
    """Returns the SHA-256 of units by number; each is read at most once."""
    with futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
      return list(pool.map(self._hash, [self.units[i] for i in numbers]))

  def sha256(self) -> str:
    """Returns one SHA-256 for the content of all units."""
    hashes = self._hashes(range(len(self.units)))
    return hashlib.sha256("".join(hashes).encode()).hexdigest()

  def cuts_hash(self) -> str:
    """Returns the SHA-256 of the names, cuts and sizes, but not the content."""
    text = json.dumps([
        (os.path.basename(u.path), u.start, u.end, u.size)
        + ((u.part_bytes,) if u.part_bytes else ())
        + (("held out",) if u.held_out else ())
        for u in self.units
    ])  # fmt: skip
    return hashlib.sha256(text.encode()).hexdigest()

  def check(self, wanted: Mapping[int, str], folder: str) -> None:
    """Refuses text that changed since it was tokenised.

    Args:
      wanted: number of a unit -> SHA-256 of the text that was tokenised.
      folder: DATA.

    Raises:
      records.DataError: the content of a unit changed; the message names the
        file.
    """
    numbers = [i for i in wanted if i < len(self.units)]
    for i, found in zip(numbers, self._hashes(numbers), strict=True):
      if found != wanted[i]:
        unit = self.units[i]
        raise records.DataError(
          f"{unit.path} is not the text that {folder} was prepared from: its "
          f"sha256 (of the part from {unit.start} on) is {found}, but it was "
          f"{wanted[i]}; put that text back, or give another --output"
        )


def _files(units: Sequence[corpus.Unit]) -> set[str]:
  """Returns the files of units, each by one name."""
  return {files.real(unit.path) for unit in units}
