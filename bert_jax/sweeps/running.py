"""Runs the trials of a sweep on this machine, several at a time.

Only the content of the workdirs decides which trials are done. A trial may
still be running because its sweep was killed, or because someone started it by
hand. The sweep then waits for it: the process of a trial holds a lock on
`.trial.lock` in the workdir until it ends.
"""

import collections
from collections.abc import Callable, Collection, Mapping, Sequence
import contextlib
import datetime
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import locks
from bert_jax.runtime import settings
from bert_jax.runtime import signals
from bert_jax.sweeps import sweep

_log = logging.getLogger(__name__)

# Exit statuses of a trial that was told to stop, with or without a checkpoint.
_STOPPED = (errors.SAVED, errors.INTERRUPTED, *(-n for n in signals.STOPPING))
_MOST_PREEMPTIONS = 100  # of a trial in one sweep
_WAIT_SECS = 0.2


class FailedError(RuntimeError):
  """Some trials failed; the others are done."""

  exit_status = errors.FAILED


class StoppedError(RuntimeError):
  """The sweep was told to stop; the same command continues it."""

  exit_status = errors.SAVED


class Journal:
  """The events of a sweep: WORKDIR/sweep.jsonl, one line per event."""

  def __init__(self, workdir: str):
    """Opens no file yet; the first event creates it."""
    self._path = os.path.join(workdir, "sweep.jsonl")

  def write(self, one: sweep.Trial, event: str, **facts: Any) -> None:
    """Adds an event of a trial."""
    files.make_folders(os.path.dirname(self._path))
    now = datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")
    row = {"time": now, "trial": one.name, "event": event} | facts
    files.append(self._path, json.dumps(row) + "\n")
    files.sync(self._path)

  def read(self) -> list[dict[str, Any]]:
    """Returns all events, except a line that a kill cut off."""
    rows = []
    if files.exists(self._path):
      with files.reading(self._path, "r") as f:
        for line in f:
          with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows

  def failed(self) -> set[str]:
    """Returns the names of the trials that failed and were not begun again."""
    return self._last("failed")

  def parted(self) -> set[str]:
    """Returns the names of trials that failed together, to be run alone.

    A trial that has been done or has failed alone since then is not included.
    """
    return self._last("parted", ("parted", "done", "failed"))

  def _last(self, event: str, among: Collection[str] = ()) -> set[str]:
    """Returns the names of trials whose last event is the given one.

    Args:
      event: the event.
      among: the events to consider; () = all.
    """
    last = {
      row["trial"]: row["event"]
      for row in self.read()
      if not among or row["event"] in among
    }
    return {name for name, found in last.items() if found == event}

  def queued(self) -> dict[str, str]:
    """Returns the job that each trial was last queued as, by its name."""
    rows = (row for row in self.read() if row["event"] == "queued")
    return {row["trial"]: row["job"] for row in rows}

  def seconds(self) -> dict[str, float]:
    """Returns the seconds that each finished trial ran, over all its sessions.

    A sweep that was killed did not record how long its trials had run; these
    trials are left out.
    """
    events: dict[str, list[dict]] = {}
    for row in self.read():
      events.setdefault(row["trial"], []).append(row)
    found = {}
    for name, rows in events.items():
      ends = [row["seconds"] for row in rows if "seconds" in row]
      starts = [row for row in rows if row["event"] == "started"]
      if rows[-1]["event"] == "done" and len(ends) == len(starts):
        found[name] = sum(ends)
    return found


def run(
  trials: Sequence[sweep.Trial],
  workdir: str,
  num_parallel: int = 1,
  retry_failed: bool = False,
  num_together: int = 1,
  launcher: Sequence[str] = (sys.executable, "-m", "bert_jax.main"),
) -> None:
  """Runs the trials that are not done, on this machine.

  A preempted trial is started again at once. A trial that failed in an earlier
  sweep is not tried again unless `retry_failed` is set. If the sweep gets a
  signal to stop, it passes the signal on, so that the trials save and end. If
  trials that one program trains fail, each of them is tried alone. The sweep
  waits for a trial that is already running, and runs it again if it ends
  without being done.

  Args:
    trials: from `read_trials`.
    workdir: the folder of the sweep.
    num_parallel: how many processes run at a time.
    retry_failed: whether to run trials that failed in an earlier sweep.
    num_together: how many trials one program may train at once; these differ
      in seed and learning rate only.
    launcher: the command that is run with the arguments of a trial.

  Raises:
    FailedError: trials failed; the message names them.
    StoppedError: the sweep was told to stop.
    ValueError: a workdir holds another run.
  """
  sizes = {"num_parallel": num_parallel, "num_together": num_together}
  for flag, size in sizes.items():
    if size < 1:
      raise sweep.SweepError(f"--{flag}={size}; it must be 1 or more")
  journal = Journal(workdir)
  files.make_folders(workdir)
  with locks.lock(workdir, "--workdir"):
    left = [t for t in trials if not t.is_done()]
    alive = {t: name for t in left if (name := _holder(t)) is not None}
    failed = set() if retry_failed else journal.failed()
    failed &= {t.name for t in left if t not in alive}
    waiting = [t for t in left if t.name not in failed and t not in alive]
    _log.info(
      "%d trials: %d done, %d already running, %d failed before, %d to run",
      len(trials), len(trials) - len(left), len(alive), len(failed),
      len(waiting),
    )  # fmt: skip
    group = functools.partial(
      put_together, num_together=num_together, alone=journal.parted()
    )
    pool = _Pool(journal, num_parallel, launcher, group)
    pool.run(waiting, alive)
    failed |= pool.failed
  if failed:
    names = sorted(failed)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    raise FailedError(
      f"{len(names)} of {len(trials)} trials failed: {', '.join(names[:5])}"
      f"{more}; see log.txt in the workdir of each. Try them again with "
      "--retry_failed"
    )


# The trials that one process trains.
Batch = tuple[sweep.Trial, ...]


def put_together(
  trials: Sequence[sweep.Trial], num_together: int, alone: Collection[str] = ()
) -> list[Batch]:
  """Puts trials into batches, each of which one program can train.

  Trials of a batch compile to the same program, that is, they differ only in
  their seed and their learning rate. Trials that were interrupted share a batch
  with others that were, if all have a checkpoint of a common step; they
  continue from the newest such step.

  Args:
    trials: the trials to train.
    num_together: the largest size of a batch.
    alone: the names of trials that must not share a batch.

  Raises:
    sweep.SweepError: a batch has several trials, but models of their config
      cannot be trained together.
  """
  # (the program, the checkpoints that all trials of a group have, its trials)
  groups: list[tuple[tuple[str, ...], set[int], list[sweep.Trial]]] = []
  for one in trials:
    program, saved = one.program(), one.saved_steps()
    for key, steps, group in groups:
      fits = bool(steps & saved) if steps or saved else True
      single = one.name in alone or group[0].name in alone
      if key == program and fits and not single and len(group) < num_together:
        group.append(one)
        steps &= saved
        break
    else:
      groups.append((program, saved, [one]))
  batches = [tuple(group) for _, _, group in groups]
  for first in (batch[0] for batch in batches if len(batch) > 1):
    try:
      settings.check_together(first.load_config())
    except ValueError as error:
      raise sweep.SweepError(
        f"--num_together={num_together}: trial {first.name}: {error}"
      ) from error
  return batches


def _claim_path(one: sweep.Trial) -> str:
  return os.path.join(one.workdir, ".trial.lock")


def _holder(one: sweep.Trial) -> str | None:
  """Returns the process that runs a trial; see `locks.holder`.

  The lock of the trial comes first, because it is taken before the process
  starts. A run that was started by hand locks only its workdir.
  """
  own = locks.holder(_claim_path(one))
  if own is not None:
    return own
  return locks.holder(os.path.join(one.workdir, ".lock"))


class _Adopted:
  """A process that is not a child of this one, with the methods of a `Popen`.

  Its exit status is unknown. The workdirs tell which of its trials are done;
  the others count as stopped and are run again.

  Attributes:
    returncode: 0 once the process has ended, else None.
    is_out_of_reach: whether this process could not tell it to stop.
  """

  def __init__(self, batch: Batch, holder: str):
    """Describes the process.

    Args:
      batch: the trials that the process runs.
      holder: the name of the process, from `_holder`.
    """
    self.returncode: int | None = None
    self.is_out_of_reach = False
    self._batch, self._holder = batch, holder

  def poll(self) -> int | None:
    if all(_holder(one) is None for one in self._batch):
      self.returncode = 0
    return self.returncode

  def wait(self) -> int:
    while (status := self.poll()) is None:
      time.sleep(_WAIT_SECS)
    return status

  def terminate(self) -> None:
    """Tells the process to stop, if it runs on this machine."""
    if self.poll() is not None:
      return
    pid = locks.pid_of(self._holder)
    try:
      if pid is None:
        raise PermissionError
      os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
      pass
    except PermissionError:  # or it belongs to another machine or container
      self.is_out_of_reach = True
      _log.warning(
        "%s keeps running: this sweep cannot stop %s; stop it by hand",
        ", ".join(one.name for one in self._batch),
        locks.describe_process(self._holder),
      )


class _Pool:
  """Runs trials in separate processes, a limited number at a time.

  Attributes:
    failed: the names of the trials that failed.
  """

  def __init__(
    self,
    journal: Journal,
    size: int,
    launcher: Sequence[str],
    group: Callable[[Sequence[sweep.Trial]], list[Batch]],
  ):
    self.failed: set[str] = set()
    self._journal, self._size, self._launcher = journal, size, launcher
    self._group = group
    self._spools: dict[Batch, Any] = {}  # messages of processes, for buckets
    # Each process, and the time at which it was started.
    self._running: dict[Batch, tuple[subprocess.Popen | _Adopted, float]] = {}
    self._preemptions: collections.Counter[Batch] = collections.Counter()

  def run(
    self, trials: Sequence[sweep.Trial], alive: Mapping[sweep.Trial, str]
  ) -> None:
    """Runs trials, and waits for trials that are already running.

    Args:
      trials: the trials to run.
      alive: the trials that are already running, each with its process, from
        `_holder`.

    Raises:
      StoppedError: the sweep was told to stop.
    """
    waiting = self._group(trials)
    self._adopt(alive)
    self._since, self._ended = time.monotonic(), 0
    self._total = len(trials) + len(alive)
    what = "waiting until its trials have saved and ended"
    with signals.Listener(what) as listener:
      listener.listen()
      try:
        while (waiting or self._running) and not listener.given:
          while waiting and len(self._running) < self._size:
            self._start(waiting.pop(0))
          time.sleep(_WAIT_SECS)
          for batch, (process, _) in list(self._running.items()):
            if process.poll() is not None:
              waiting[:0] = self._finish(batch)
      finally:
        stopped = self._stop()
    if listener.given:
      for batch in stopped:
        self._finish(batch)
      raise StoppedError(
        "the sweep was told to stop; the checkpoints of its trials are kept, "
        "and the same command continues the sweep"
      )

  def _adopt(self, alive: Mapping[sweep.Trial, str]) -> None:
    """Takes over the processes of trials that are already running."""
    batches: dict[Any, list[sweep.Trial]] = {}
    for one, holder in alive.items():
      batches.setdefault(holder or one, []).append(one)
      _log.info(
        "waiting  %s, which is already running as %s",
        one.name,
        locks.describe_process(holder),
      )
    for batch in map(tuple, batches.values()):
      adopted = _Adopted(batch, alive[batch[0]])
      self._running[batch] = (adopted, time.monotonic())

  def _stop(self) -> list[Batch]:
    """Tells all processes to stop, and waits for those that it could signal.

    Returns:
      The batches of the processes that have ended.
    """
    for process, _ in self._running.values():
      process.terminate()
    stopped = [
      batch
      for batch, (process, _) in self._running.items()
      if not (isinstance(process, _Adopted) and process.is_out_of_reach)
    ]
    for batch in stopped:
      self._running[batch][0].wait()
    return stopped

  def _left(self) -> str:
    """Describes the trials left to do, and how long they will take."""
    left = self._total - self._ended
    if not left or not self._ended:
      return ""
    secs = (time.monotonic() - self._since) / self._ended * left
    return f"; {left} of {self._total} left, about {secs / 60:.0f} min"

  def _start(self, batch: Batch) -> None:
    """Starts a process that trains a batch."""
    first, *others = batch
    for one in batch:
      files.make_folders(one.workdir)
      self._journal.write(one, "started", together=len(batch))
      _log.info("started  %s", one.name)
    for one in others:
      said = f"trained with {first.name}: see {_log_path(first)}\n"
      files.append(_log_path(one), said)
    arguments = first.arguments()
    if others:
      arguments = [*first.program(), *(one.member() for one in batch)]
    with contextlib.ExitStack() as stack:
      log = stack.enter_context(self._log(batch))
      claims = [
        stack.enter_context(locks.claim(_claim_path(one))) for one in batch
      ]
      process = subprocess.Popen(
        [*self._launcher, *arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        # In its own process group, so that a trial gets one signal only: the
        # one that the sweep passes on.
        start_new_session=True,
        pass_fds=[claim.fileno() for claim in claims if claim],
      )
      for claim in filter(None, claims):
        claim.write(locks.process_name(process.pid))
    self._running[batch] = (process, time.monotonic())

  def _finish(self, batch: Batch) -> list[Batch]:
    """Records how trials ended, each with its share of the time.

    Returns:
      The batches that have to be run as a consequence.
    """
    process, since = self._running.pop(batch)
    if spool := self._spools.pop(batch, None):
      with spool:
        spool.seek(0)
        files.append(_log_path(batch[0]), spool.read())
      files.sync(_log_path(batch[0]))
    status = process.returncode
    assert status is not None  # it has ended
    seconds = round((time.monotonic() - since) / len(batch), 1)
    if isinstance(process, _Adopted):
      # Its running time is unknown, and its trials may have ended differently.
      left = [one for one in batch if not one.is_done()]
      for one in batch:
        self._note(one, "preempted" if one in left else "done", adopted=True)
      return self._group(left)
    event = "failed" if len(batch) == 1 else "parted"
    event = "done" if status == 0 else event
    event = "preempted" if status in _STOPPED else event
    for one in batch:
      self._note(one, event, status=status, seconds=seconds)
    if event in ("failed", "parted"):
      with files.reading(_log_path(batch[0]), "r", errors="replace") as f:
        lines = f.read().strip().splitlines()
      _log.warning("  status %d: %s", status, lines[-1] if lines else "")
    if event == "preempted":
      self._preemptions[batch] += 1
      if self._preemptions[batch] <= _MOST_PREEMPTIONS:
        return [batch]
    if status and len(batch) > 1:
      _log.warning("  trying each of them alone")
      return [(one,) for one in batch]
    if status:
      self.failed.add(batch[0].name)
    return []

  def _log(self, batch: Batch) -> Any:
    """Opens the file that a process writes its messages to.

    A process cannot write to a bucket; its file is uploaded when it has ended.
    """
    path = _log_path(batch[0])
    if not files.is_remote(path):
      return files.opened_log(path)
    self._spools[batch] = tempfile.TemporaryFile("w+", errors="replace")
    return contextlib.nullcontext(self._spools[batch])

  def _note(self, one: sweep.Trial, event: str, **facts: Any) -> None:
    self._ended += event in ("done", "failed")
    self._journal.write(one, event, **facts)
    _log.info("%-8s %s%s", event, one.name, self._left())


def _log_path(one: sweep.Trial) -> str:
  return os.path.join(one.workdir, "log.txt")
