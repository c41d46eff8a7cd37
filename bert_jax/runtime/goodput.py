"""Where the time of a run goes, over all its sessions.

A `Clock` divides the time of a process among the parts below, so that they
always add up to the time that has passed. A `Ledger` writes these sums to
WORKDIR/goodput.jsonl while the run trains, and `read` adds up all sessions:

  clock = Clock()                  # this session is starting
  ledger = Ledger(workdir, start, num_chips, clock)
  with clock.during("evaluation"):
    ...
  ledger.write(step)
  read(workdir).share("steps")

A killed run goes on from its last save, so what it did after that is done
again: the time of these steps, their evaluations and saves is `lost`. A session
that is killed is counted up to the last line that it wrote.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import json
import logging
import os
import time
from typing import Any

from bert_jax.runtime import files

_log = logging.getLogger(__name__)

_FILE = "goodput.jsonl"

# Name of a part -> what the time was spent on.
PARTS = {
  "steps": "training steps whose result was kept",
  "evaluation": "evaluations, with the compiling of their programs",
  "saves": "saves, as far as the training waits for them",
  "data": "waiting for a batch while the devices had nothing to do",
  "start": "from the start of a process to its first batch: imports, opening "
  "the data, restoring",
  "compile": "the first step of each session, which compiles",
  "lost": "what a killed run had done since the save from which it went on",
  "other": "traces of the profiler",
}
# What is done again if the process is killed before the next save.
_DONE_AGAIN = ("steps", "evaluation", "saves", "data")
# Seconds; a killed session loses the count of its last seconds.
_MOST_SECS_UNWRITTEN = 20.0


class Clock:
  """Divides the time of this process among the parts of a session."""

  def __init__(self, since: float | None = None):
    """Starts with the part "start".

    Args:
      since: when the session began, as `time.monotonic`; None means now.
    """
    self._since = time.monotonic() if since is None else since
    self._part = "start"
    self._secs = {part: 0.0 for part in PARTS if part != "lost"}

  def switch(self, part: str, spent_on: str = "") -> None:
    """Begins another part.

    Args:
      part: the part that begins.
      spent_on: the part that the time since the last switch is added to; "" is
        the part that ends.
    """
    now = time.monotonic()
    self._secs[spent_on or self._part] += now - self._since
    self._part, self._since = part, now

  @contextlib.contextmanager
  def during(self, part: str) -> Iterator[None]:
    """A context whose time belongs to another part."""
    before = self._part
    self.switch(part)
    try:
      yield
    finally:
      self.switch(before)

  def secs(self) -> dict[str, float]:
    """Returns the seconds of every part until now."""
    self.switch(self._part)
    return dict(self._secs)


@dataclasses.dataclass(frozen=True)
class Spent:
  """The time of a run over all its sessions.

  Attributes:
    secs: the seconds of each part.
    chip_hours: the hours of all devices together, that is their number times
      the hours of the sessions.
  """

  secs: Mapping[str, float]
  chip_hours: float

  @property
  def total(self) -> float:
    """The seconds of all sessions together."""
    return sum(self.secs.values())

  def share(self, part: str) -> float:
    """Returns the share of a part in the whole time, from 0 to 1."""
    return self.secs[part] / self.total if self.total > 0 else 0.0

  def metrics(self) -> dict[str, float]:
    """Returns the shares, the hours and the chip-hours for the log.

    A part that took no time is left out.
    """
    row = {
      f"goodput/{part}": round(self.share(part), 4)
      for part, secs in self.secs.items()
      if secs
    }
    row["goodput/hours"] = round(self.total / 3600, 5)
    return row | {"goodput/chip_hours": round(self.chip_hours, 5)}

  def describe(self) -> str:
    """Returns one line: the shares, largest first, and the whole time."""
    secs = sorted(self.secs.items(), key=lambda pair: -pair[1])
    shown = [
      f"{part} {100 * self.share(part):.0f} %"
      for part, _ in secs
      if self.share(part) >= 0.005
    ]
    hours = (
      f"{self.chip_hours:,.2g}"
      if self.chip_hours < 10
      else (f"{self.chip_hours:,.0f}")
    )
    return f"{', '.join(shown)} of {_words(self.total)}; {hours} chip-hours"


def _words(secs: float) -> str:
  for unit, length in (("h", 3600), ("min", 60)):
    if secs >= 2 * length:
      return f"{secs / length:,.1f} {unit}"
  return f"{secs:.0f} s"


class Ledger:
  """Writes the time of a session of a run down, next to earlier sessions."""

  def __init__(
    self,
    workdir: str,
    start: int,
    num_chips: float,
    clock: Clock,
  ):
    """Reads the earlier sessions and begins a new one.

    Args:
      workdir: the folder of the run.
      start: the step that the session goes on from.
      num_chips: the number of devices; where several runs share them, the share
        of this run.
      clock: the clock of the session.
    """
    self._path = os.path.join(workdir, _FILE)
    earlier = _read_rows(self._path)
    self._earlier = _add_up(earlier, start)
    self._facts = {
      "session": 1 + max((row["session"] for row in earlier), default=0),
      "from": start,
      "chips": num_chips,
    }
    self._clock = clock
    self._can_write = True
    self.write(start)
    self.sync()

  def write(self, step: int) -> None:
    """Writes what the session has spent so far.

    If that fails, the run goes on without this record, which a warning says.

    Args:
      step: the number of updates that it has reached.
    """
    self._written = time.monotonic()
    if not self._can_write:
      return
    secs = self._clock.secs()
    rounded = {part: round(spent, 4) for part, spent in secs.items()}
    row = self._facts | {"step": step, "secs": rounded}
    try:
      files.append_line(self._path, files.to_json(row))
    except OSError as error:
      self._can_write = False
      _log.warning("the time of this run is not recorded: %s", error)

  def sync(self) -> None:
    """Waits until all lines can be read by other processes."""
    try:
      files.sync(self._path)
    except OSError as error:
      _log.warning("the time of this run is not recorded yet: %s", error)

  def note(self, step: int) -> None:
    """Writes a line if the last one is old; costs nothing otherwise."""
    if time.monotonic() - self._written > _MOST_SECS_UNWRITTEN:
      self.write(step)

  def spent(self) -> Spent:
    """Returns the time of all sessions until now."""
    secs = self._clock.secs()
    hours = sum(secs.values()) * self._facts["chips"] / 3600
    total = {p: self._earlier.secs[p] + secs.get(p, 0.0) for p in PARTS}
    return Spent(total, self._earlier.chip_hours + hours)


def read(workdir: str) -> Spent | None:
  """Returns the time of a run; None if it has no goodput.jsonl.

  Runs of releases before 0.3.0 have none.
  """
  rows = _read_rows(os.path.join(workdir, _FILE))
  return _add_up(rows, None) if rows else None


def _read_rows(path: str) -> list[dict[str, Any]]:
  """Returns the lines of the file that can be read; [] without a file."""
  rows = []
  try:
    with files.reading(path) as f:
      lines = f.read().splitlines()
  except FileNotFoundError:
    return []
  except OSError as error:
    _log.warning("the time of earlier sessions is unknown: %s", error)
    return []
  for line in lines:
    try:
      rows.append(_checked(json.loads(line)))
    except (ValueError, TypeError, KeyError, RecursionError):
      if line:
        _log.warning("%s: ignored a broken line: %.80r", path, line)
  return rows


def _checked(row: Any) -> dict[str, Any]:
  """Returns a line with numbers of the right types, or raises an error."""
  secs = {p: float(row["secs"].get(p, 0.0)) for p in PARTS if p != "lost"}
  if not all(0 <= spent < 1e12 for spent in secs.values()):
    raise ValueError("seconds are out of range")
  whole = {name: row[name] for name in ("session", "from", "step")}
  if any(type(number) is not int for number in whole.values()):
    raise ValueError("it has no session and step")
  return whole | {"chips": float(row["chips"]), "secs": secs}


def _add_up(rows: list[dict[str, Any]], start: int | None) -> Spent:
  """Adds up sessions; what a later session has done again is lost.

  Args:
    rows: the lines of the file.
    start: the step that another session goes on from; None if there is none.
  """
  total, chip_hours = dict.fromkeys(PARTS, 0.0), 0.0
  sessions: dict[int, list[dict[str, Any]]] = {}
  for row in rows:
    sessions.setdefault(row["session"], []).append(row)
  starts = [own[0]["from"] for own in sessions.values()]
  if start is not None:
    starts.append(start)
  for number, own in enumerate(sessions.values(), 1):
    last = own[-1]["secs"]
    kept = last
    if later := starts[number:]:
      sound = [row["secs"] for row in own if row["step"] <= min(later)]
      kept = sound[-1] if sound else dict.fromkeys(last, 0.0)
    for part, spent in last.items():
      lost = max(spent - kept[part], 0.0) if part in _DONE_AGAIN else 0.0
      total[part] += spent - lost
      total["lost"] += lost
    chip_hours += sum(last.values()) * own[-1]["chips"] / 3600
  return Spent(total, chip_hours)
