"""Runs the trials of a sweep on this machine, some at a time.

What is done is known from the workdirs alone. A trial that still runs, of a
sweep that was killed or by hand, is waited for: each holds a lock on
`.trial.lock` in its workdir for as long as its process lives.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import contextlib
import datetime
import errno
import fcntl
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from typing import IO, Any

from bert_jax.runtime import files
from bert_jax.runtime import run_log
from bert_jax.runtime import signals
from bert_jax.sweeps import sweep

_log = logging.getLogger(__name__)

PREEMPTED = signals.SAVED  # exit status of a training that was told to stop
# How a trial ends that was told to stop, also one that had nothing to save yet.
_STOPPED = (PREEMPTED, signals.INTERRUPTED, *(-n for n in signals.STOPPING))
_MOST_PREEMPTIONS = 100  # of a trial in one sweep
_WAIT_SECS = 0.2


class FailedError(RuntimeError):
  """Some trials failed; the others are done."""

  exit_status = 1


class StoppedError(RuntimeError):
  """The sweep was told to stop; the same command goes on."""

  exit_status = PREEMPTED


class Journal:
  """What happened in a sweep: WORKDIR/sweep.jsonl, a line an event."""

  def __init__(self, workdir: str):
    """Opens the journal of a sweep; it is made with its first event."""
    self._path = os.path.join(workdir, "sweep.jsonl")

  def write(self, one: sweep.Trial, event: str, **facts: Any) -> None:
    """Adds an event of a trial."""
    os.makedirs(os.path.dirname(self._path), exist_ok=True)
    now = datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")
    row = {"time": now, "trial": one.name, "event": event} | facts
    with open(self._path, "a", encoding="utf-8") as f:
      f.write(json.dumps(row) + "\n")

  def read(self) -> list[dict[str, Any]]:
    """All events; a line that a kill cut off is left out."""
    rows = []
    if os.path.exists(self._path):
      with open(self._path, encoding="utf-8") as f:
        for line in f:
          try:
            rows.append(json.loads(line))
          except ValueError:
            continue
    return rows

  def failed(self) -> set[str]:
    """Names of the trials whose last event is a failure."""
    return self._last("failed")

  def parted(self) -> set[str]:
    """Names of those that failed together and have not ended alone."""
    return self._last("parted", ("parted", "done", "failed"))

  def _last(self, event: str, among: Collection[str] = ()) -> set[str]:
    last = {
      row["trial"]: row["event"]
      for row in self.read()
      if not among or row["event"] in among
    }
    return {name for name, found in last.items() if found == event}

  def queued(self) -> dict[str, str]:
    """The job that a trial was last queued as, by the trial's name."""
    rows = (row for row in self.read() if row["event"] == "queued")
    return {row["trial"]: row["job"] for row in rows}

  def seconds(self) -> dict[str, float]:
    """Seconds that each trial ran, over all its sessions, where all is known.

    A sweep that was killed does not know how long its trials had run.
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
  """Runs what is not done, some at a time, on this machine.

  A trial that was preempted goes on at once. One that failed is not tried
  again, unless asked to. A signal that tells the sweep to stop is passed on:
  the trials save and end. Where trials fail that are trained in one program,
  each is tried alone. A trial that runs already is waited for; if it ends
  without being done, it is run again.

  Args:
    trials: from `read_trials`.
    workdir: of the sweep.
    num_parallel: trials at a time.
    retry_failed: also those that failed in an earlier sweep.
    num_together: trials that are trained in one program at most; they differ
      in seed and learning rate only.
    launcher: what is run with the arguments of a trial.

  Raises:
    FailedError: trials failed; names them.
    StoppedError: the sweep was told to stop.
    ValueError: a workdir holds another run.
  """
  sizes = {"num_parallel": num_parallel, "num_together": num_together}
  for flag, size in sizes.items():
    if size < 1:
      raise sweep.SweepError(f"--{flag}={size}; it must be 1 or more")
  journal = Journal(workdir)
  os.makedirs(workdir, exist_ok=True)
  with run_log.lock(workdir):
    left = [t for t in trials if not t.is_done()]
    alive = {t: name for t in left if (name := _holder(t)) is not None}
    failed = set() if retry_failed else journal.failed()
    failed &= {t.name for t in left if t not in alive}
    waiting = [t for t in left if t.name not in failed and t not in alive]
    _log.info(
      "%d trials: %d are done, %d run already, %d failed before, %d to run",
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
      f"{more}; what each said is in its log.txt. Try them again with "
      "--retry_failed"
    )


# Trials that one process trains.
Batch = tuple[sweep.Trial, ...]


def put_together(
  trials: Sequence[sweep.Trial], num_together: int, alone: Collection[str] = ()
) -> list[Batch]:
  """Returns batches of trials, each of which one program can train at once.

  Those that have begun go on with others that have a checkpoint of the same
  step, the newest of which they go on from.

  Args:
    trials: to train.
    num_together: in a program at most.
    alone: names of trials that have a program each.

  Raises:
    sweep.SweepError: one of several cannot be trained with others.
  """
  # (program, steps that all of a group have, its trials)
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
    config = first.load_config()
    if config.objective != "task":
      raise sweep.SweepError(
        f"trial {first.name}: --num_together is for tasks, and its objective "
        f"is {config.objective}"
      )
    if config.data.pack and not config.data.one_row_len:
      raise sweep.SweepError(
        f"trial {first.name}: --num_together needs rows of one length; add "
        '"data.one_row_len": True to the settings of the trials'
      )
  return batches


def _claim_path(one: sweep.Trial) -> str:
  return os.path.join(one.workdir, ".trial.lock")


@contextlib.contextmanager
def _claim(one: sweep.Trial) -> Iterator[IO[str] | None]:
  """Locks a trial; whoever inherits the file keeps the lock until it ends.

  Yields:
    The file, empty, for the name of the process that runs the trial; None
    where it cannot be locked.
  """
  with files.open_lock(_claim_path(one)) as file:
    try:
      files.take_lock(file)
    except OSError:  # a file system without locks, or another has it
      yield None
      return
    file.truncate(0)
    yield file


def _holder(one: sweep.Trial) -> str | None:
  """The process that runs a trial.

  The trial's own lock comes first, as it is there before the process has
  started. A run that was started by hand locks its workdir only.

  Returns:
    A name for `files.pid_of`; "" = it is not known; None = no process does.

  Raises:
    OSError: one of the two lock files is a symbolic link.
  """
  for path in (_claim_path(one), os.path.join(one.workdir, ".lock")):
    try:
      flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
      file = open(os.open(path, flags), encoding="utf-8", errors="replace")
    except OSError as error:
      if error.errno == errno.ELOOP:
        raise
      continue  # no such file, or it is not ours to read
    with file:
      try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
      except BlockingIOError:
        return file.read(1000).strip()
      except OSError:  # a file system without locks
        continue
  return None


class _Adopted:
  """Trials in a process that is no child of this one, as a `Popen`.

  What it exits with is not known. Whether trials are done is seen in their
  workdirs; the others are taken to have been stopped, and run again.

  Attributes:
    returncode: as of a `Popen`.
    is_out_of_reach: whether it was to be stopped and cannot be told so.
  """

  def __init__(self, batch: Batch, holder: str):
    """Sends no signal yet.

    Args:
      batch: the trials.
      holder: from `_holder`.
    """
    self.returncode: int | None = None
    self.is_out_of_reach = False
    self._batch, self._holder = batch, holder

  def poll(self) -> int | None:
    is_free = all(_holder(one) is None for one in self._batch)
    if self.returncode is None and is_free:
      self.returncode = PREEMPTED  # also where a workdir holds another run
      if all(t.is_done() for t in self._batch):
        self.returncode = 0
    return self.returncode

  def wait(self) -> int:
    while (status := self.poll()) is None:
      time.sleep(_WAIT_SECS)
    return status

  def terminate(self) -> None:
    """Tells the process to stop, if it is one of this machine."""
    if self.poll() is not None:
      return
    pid = files.pid_of(self._holder)
    try:
      if pid is None:
        raise PermissionError
      os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
      pass
    except PermissionError:  # or another machine's, another container's
      self.is_out_of_reach = True
      _log.warning(
        "%s runs on: this sweep cannot stop %s; stop it by hand",
        ", ".join(one.name for one in self._batch),
        files.describe_process(self._holder),
      )


class _Pool:
  """Processes that run trials.

  Attributes:
    failed: names of the trials that have.
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
    # Each with the time at which it was started.
    self._running: dict[Batch, tuple[subprocess.Popen | _Adopted, float]] = {}
    self._preemptions: dict[Batch, int] = {}

  def run(
    self, trials: Sequence[sweep.Trial], alive: Mapping[sweep.Trial, str]
  ) -> None:
    """Runs trials, and waits for those that run already.

    Args:
      trials: to run.
      alive: those that run already: the process of each, from `_holder`.

    Raises:
      StoppedError: the sweep was told to stop.
    """
    waiting = self._group(trials)
    self._adopt(alive)
    self._since, self._ended = time.monotonic(), 0
    self._total = len(trials) + len(alive)
    what = "its trials save and end, which is waited for"
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
        "the sweep was told to stop; what its trials had saved is kept, and "
        "the same command goes on"
      )

  def _adopt(self, alive: Mapping[sweep.Trial, str]) -> None:
    """Takes over trials that run already, together those of one process."""
    batches: dict[Any, list[sweep.Trial]] = {}
    for one, holder in alive.items():
      batches.setdefault(holder or one, []).append(one)
      _log.info(
        "waiting  %s, which runs already as %s",
        one.name,
        files.describe_process(holder),
      )
    for batch in map(tuple, batches.values()):
      adopted = _Adopted(batch, alive[batch[0]])
      self._running[batch] = (adopted, time.monotonic())

  def _stop(self) -> list[Batch]:
    """Tells all to stop; returns those whose end could be waited for."""
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
    """What is still to do, and how long it takes at the speed so far."""
    left = self._total - self._ended
    if not left or not self._ended:
      return ""
    secs = (time.monotonic() - self._since) / self._ended * left
    return f"; {left} of {self._total} left, about {secs / 60:.0f} min"

  def _start(self, batch: Batch) -> None:
    first, *others = batch
    for one in batch:
      os.makedirs(one.workdir, exist_ok=True)
      self._journal.write(one, "started", together=len(batch))
      _log.info("started  %s", one.name)
    for one in others:
      with open(_log_path(one), "a") as log:
        log.write(f"trained with {first.name}: see {_log_path(first)}\n")
    arguments = first.arguments()
    if others:
      arguments = [*first.program(), *(one.member() for one in batch)]
    with contextlib.ExitStack() as stack:
      log = stack.enter_context(open(_log_path(first), "a"))
      claims = [stack.enter_context(_claim(one)) for one in batch]
      process = subprocess.Popen(
        [*self._launcher, *arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        # Its own group: what stops the sweep tells the trial to save once.
        start_new_session=True,
        pass_fds=[claim.fileno() for claim in claims if claim],
      )
      for claim in filter(None, claims):
        claim.write(files.process_name(process.pid))
    self._running[batch] = (process, time.monotonic())

  def _finish(self, batch: Batch) -> list[Batch]:
    """Notes how trials ended, each with its share of the time.

    Returns:
      What is to be run next because of that.
    """
    process, since = self._running.pop(batch)
    status = process.returncode
    assert status is not None  # it has ended
    seconds = round((time.monotonic() - since) / len(batch), 1)
    if isinstance(process, _Adopted):
      # How long it ran is not known, nor whether all of its trials ended alike.
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
      with open(_log_path(batch[0]), errors="replace") as f:
        lines = f.read().strip().splitlines()
      _log.warning("  status %d: %s", status, lines[-1] if lines else "")
    if event == "preempted":
      count = self._preemptions[batch] = self._preemptions.get(batch, 0) + 1
      if count <= _MOST_PREEMPTIONS:
        return [batch]
    if status and len(batch) > 1:
      _log.warning("  trying each of them alone")
      return [(one,) for one in batch]
    if status:
      self.failed.add(batch[0].name)
    return []

  def _note(self, one: sweep.Trial, event: str, **facts: Any) -> None:
    self._ended += event in ("done", "failed")
    self._journal.write(one, event, **facts)
    _log.info("%-8s %s%s", event, one.name, self._left())


def _log_path(one: sweep.Trial) -> str:
  return os.path.join(one.workdir, "log.txt")
