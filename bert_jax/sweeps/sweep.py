"""Runs many trainings: a grid or a list of trials, each in its own workdir.

A sweep is a config file in plain Python whose get_config returns
`sweep.make(trials)`:

  from bert_jax.sweeps import sweep

  def get_config():
    return sweep.make(
      sweep.trial(
        f"configs/finetune.py:task={task},from=runs/base",
        {"optim.learning_rate": rate, "seed": seed},
      )
      for task in ("mrpc", "rte")
      for rate in (5e-5, 3e-5)
      for seed in range(5)
    )

A trial is named by its seed and by what else differs between the trials. What
is done is known from the workdirs alone, so a sweep goes on where it stopped,
and one that has more seeds or values runs what is new. A trial that still runs,
of a sweep that was killed or by hand, is waited for: each holds a lock on
`.trial.lock` in its workdir for as long as its process lives.
"""

from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Mapping,
  Sequence,
)  # fmt: skip
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import logging
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags
from rich import console
from rich import markup
from rich import table

from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import locks
from bert_jax.runtime import metrics_log
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.runtime import signals

_log = logging.getLogger(__name__)

# How a trial ends that was told to stop, also one that had nothing to save yet.
_STOPPED = (errors.SAVED, errors.INTERRUPTED, *(-n for n in signals.STOPPING))
_MOST_PREEMPTIONS = 100  # of a trial in one sweep
_WAIT_SECS = 0.2
_BATCHES_LOOKED_AT = 20
_NAME_CHARS = 120
# A run may go on with its data elsewhere; of a trial it says which data.
_DATA_KEYS = {
  "data.dir", "task.dir",
  "task.files.train", "task.files.validation", "task.files.test",
}  # fmt: skip


class SweepError(errors.UserError):
  """The sweep cannot be run as it is."""


class FailedError(RuntimeError):
  """Some trials failed; the others are done."""

  exit_status = 1


class StoppedError(RuntimeError):
  """The sweep was told to stop; the same command goes on."""

  exit_status = errors.SAVED


def trial(
  config: str, settings: Mapping[str, Any] | None = None, name: str = ""
) -> dict:
  """A trial of a sweep.

  Args:
    config: as --config takes it, such as "configs/finetune.py:task=mrpc".
    settings: key -> value, as --config.KEY=VALUE takes them.
    name: of its workdir; "" = made of what differs from the other trials.

  Raises:
    SweepError: the name is none of a folder.
  """
  if name and not re.fullmatch(r"[\w=+-][\w=.,+-]*", name):
    raise SweepError(
      f"the name {name!r} of a trial is to be a folder's, of letters, digits "
      "and =.,+-_"
    )
  text = json.dumps(dict(settings or {}))
  return {"config": config, "settings": text, "name": name}


def make(
  trials: Iterable[dict],
  slurm: Mapping[str, Any] | None = None,
  xpk: Mapping[str, Any] | None = None,
) -> ml_collections.ConfigDict:
  """The config of a sweep.

  Args:
    trials: from `trial`.
    slurm: settings of submitit, for --engine=slurm.
    xpk: options of `xpk workload create`, for --engine=xpk.
  """
  config = ml_collections.ConfigDict()
  config.trials = tuple(ml_collections.ConfigDict(t) for t in trials)
  config.engines = json.dumps({"slurm": slurm or {}, "xpk": xpk or {}})
  return config


def engine_settings(config: Any, engine: str) -> dict[str, Any]:
  """The settings of an engine in the config of a sweep."""
  return json.loads(config.engines)[engine]


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
  """One training.

  Attributes:
    name: what differs from the other trials, also its folder's name.
    config: as --config takes it.
    settings: key -> value.
    workdir: of the run.
  """

  name: str
  config: str
  settings: Mapping[str, Any]
  workdir: str

  def arguments(self) -> list[str]:
    """Those of the launcher."""
    return [
      "--mode=train",
      f"--config={self.config}",
      *(f"--config.{k}={_flag(v)}" for k, v in self.settings.items()),
      f"--workdir={self.workdir}",
    ]

  def program(self) -> tuple[str, ...]:
    """The arguments without those that leave steps and their work as is."""
    same = re.compile(r"--(config\.(seed|optim\.learning_rate)|workdir)=")
    return tuple(a for a in self.arguments() if not same.match(a))

  def member(self) -> str:
    """The argument of the launcher that trains it with others."""
    config = self.load_config()
    return (
      f"--member={self.workdir}:seed={config.seed},"
      f"optim.learning_rate={config.optim.learning_rate}"
    )

  def load_config(self) -> ml_collections.ConfigDict:
    """The whole configuration, as the launcher reads it.

    Raises:
      SweepError: there is no such file, key or value.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    argv = ["bert-jax", *self.arguments()[1:-1]]
    before, sys.argv = sys.argv, argv  # ml_collections looks there
    try:
      values(argv)
      settings.check(values.config)  # reads the file, which may raise, too
      return values.config
    except Exception as error:  # a config file may raise anything
      lines = str(error).strip().splitlines() or [repr(error)]
      raise SweepError(f"trial {self.name}: {lines[-1]}") from error
    finally:
      sys.argv = before

  def saved_steps(self) -> set[int]:
    """Steps that there is a checkpoint of."""
    folder = os.path.join(self.workdir, "checkpoints")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return {int(name) for name in names if name.isdigit()}

  def is_done(self) -> bool:
    """Whether the workdir holds this very training, finished."""
    return self.state() == "done"

  def state(self) -> str:
    """How far it is: "new", "begun" or "done".

    Raises:
      SweepError: the workdir holds another run.
    """
    if not os.path.exists(os.path.join(self.workdir, "run.json")):
      return "new"
    run = runs.read_run(self.workdir)
    wanted = settings.flatten(settings.plain(self.load_config()))
    found = settings.flatten(run["config"])
    fixed = {*settings.names("weights", "run"), *_DATA_KEYS}
    # The shape of a model comes from its weights, not from the config, and
    # labels that are not given come from the data.
    if wanted.get("init_from"):
      fixed = {key for key in fixed if not key.startswith("model.")}
    if not wanted.get("task.labels"):
      fixed -= {"task.labels"}
    differs = [
      f"{k}: {found[k]!r} there, {wanted[k]!r} asked"
      for k in sorted(fixed & wanted.keys() & found.keys())
      if found[k] != wanted[k]
    ]
    if differs:
      raise SweepError(
        f"{self.workdir} holds another run than trial {self.name} "
        f"({'; '.join(differs)}); give another --workdir"
      )
    total = run.get("total_steps")
    # The last thing that a training does is to save its last step.
    saved = os.path.join(self.workdir, "checkpoints", str(total))
    if not os.path.isdir(saved):
      return "begun"
    try:
      rows = metrics_log.read_metrics(self.workdir)
    except runs.RunError:  # broken off; training mends it
      return "begun"
    last = [r["step"] for r in rows if any(k.startswith("eval/") for k in r)]
    return "done" if last and last[-1] == total else "begun"


def _flag(value: Any) -> str:
  return str(tuple(value)) if isinstance(value, list) else str(value)


def read_trials(config: Any, workdir: str) -> list[Trial]:
  """The trials of a sweep, checked.

  Args:
    config: from `make`.
    workdir: of the sweep; each trial has a folder in it.

  Raises:
    SweepError: there is none, or two are the same, or a config cannot be read.
  """
  if "trials" not in config or not len(config.trials):
    raise SweepError(
      "the config is no sweep: its get_config must return "
      "bert_jax.sweeps.sweep.make(...) of one trial or more"
    )
  given = [(t.config, json.loads(t.settings)) for t in config.trials]
  facts = [facts_of(config, settings) for config, settings in given]
  for i, one in enumerate(facts):
    if one in facts[:i]:
      raise SweepError(
        f"trials {facts.index(one)} and {i} are the same: {given[i][0]}, "
        f"{given[i][1]}; drop one of them"
      )
  names = [
    t.get("name") or made
    for t, made in zip(config.trials, _names(facts), strict=True)
  ]
  if len(set(names)) < len(names):
    raise SweepError(f"two trials have one name: {', '.join(sorted(names))}")
  trials = [
    Trial(name, config, settings, os.path.join(workdir, name))
    for name, (config, settings) in zip(names, given, strict=True)
  ]
  for checked in trials:
    checked.load_config()
  return trials


def facts_of(config: str, settings: Mapping[str, Any]) -> dict[str, str]:
  """What a trial is made of: arguments of its config, and its settings.

  Example:
    >>> facts_of("configs/finetune.py:task=rte,from=runs/a", {"seed": 1})
    {'config': 'finetune', 'task': 'rte', 'from': 'runs/a', 'seed': '1'}
  """
  path, _, arguments = config.partition(":")
  facts = {"config": os.path.splitext(os.path.basename(path))[0]}
  for pair in filter(None, arguments.split(",")):
    name, _, value = pair.partition("=")
    facts[name] = value
  return facts | {key: _flag(value) for key, value in settings.items()}


def _names(facts: Sequence[Mapping[str, str]]) -> list[str]:
  """Names made of the facts that differ; seeds always, as more may come."""
  keys = list(dict.fromkeys(key for one in facts for key in one))
  differing = [
    k for k in keys if len({one.get(k) for one in facts}) > 1 or k == "seed"
  ]
  labels = {key: key.rpartition(".")[2] for key in differing}
  names = []
  for one in facts:
    parts = []
    for key in differing:
      # The whole key, and the whole path, where the last part is not enough.
      same = [k for k in differing if labels[k] == labels[key]]
      label = labels[key] if len(same) == 1 else key
      values = {other[key] for other in facts if key in other}
      tails = {os.path.basename(v.rstrip("/")) for v in values}
      if key in one:
        value = one[key].rstrip("/")
        short = len(tails) == len(values)
        parts.append(f"{label}={os.path.basename(value) if short else value}")
    name = re.sub(r"[^\w=.,+-]+", "-", ",".join(parts)).strip("-") or "trial"
    names.append(name)
  return [
    name
    if len(name) <= _NAME_CHARS and names.count(name) == 1
    else f"{name[: _NAME_CHARS - 7]}-{_digest(one)}"
    for name, one in zip(names, facts, strict=True)
  ]


def _digest(facts: Mapping[str, str]) -> str:
  text = json.dumps(dict(facts), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:6]


# --- running ------------------------------------------------------------------


class Journal:
  """What happened in a sweep: WORKDIR/sweep.jsonl, a line an event."""

  def __init__(self, workdir: str):
    """Opens the journal of a sweep; it is made with its first event."""
    self._path = os.path.join(workdir, "sweep.jsonl")

  def write(self, one: Trial, event: str, **facts: Any) -> None:
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
  trials: Sequence[Trial],
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
  if num_parallel < 1:
    raise SweepError(f"--num_parallel={num_parallel}; it must be 1 or more")
  if num_together < 1:
    raise SweepError(f"--num_together={num_together}; it must be 1 or more")
  journal = Journal(workdir)
  os.makedirs(workdir, exist_ok=True)
  with locks.lock(workdir, "--workdir"):
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
    with _Pool(journal, num_parallel, launcher, group) as pool:
      pool.adopt(alive)
      pool.run(waiting)
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
Batch = tuple[Trial, ...]


def put_together(
  trials: Sequence[Trial], num_together: int, alone: Collection[str] = ()
) -> list[Batch]:
  """Trials that one program can train at once, some at a time.

  Those that have begun go on with others that have a checkpoint of the same
  step, the newest of which they go on from.

  Args:
    trials: to train.
    num_together: in a program at most.
    alone: names of trials that have a program each.

  Raises:
    SweepError: one of several cannot be trained with others.
  """
  # (program, steps that all of a group have, its trials)
  groups: list[tuple[tuple[str, ...], set[int], list[Trial]]] = []
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
      raise SweepError(
        f"trial {first.name}: --num_together is for tasks, and its objective "
        f"is {config.objective}"
      )
    if config.data.pack and not config.data.one_row_len:
      raise SweepError(
        f"trial {first.name}: --num_together needs rows of one length; add "
        '"data.one_row_len": True to the settings of the trials'
      )
  return batches


def _claim_path(one: Trial) -> str:
  return os.path.join(one.workdir, ".trial.lock")


def _holder(one: Trial) -> str | None:
  """The process that runs a trial, as of `locks.holder`.

  The trial's own lock comes first, as it is there before the process has
  started. A run that was started by hand locks its workdir only.
  """
  own = locks.holder(_claim_path(one))
  if own is not None:
    return own
  return locks.holder(os.path.join(one.workdir, ".lock"))


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
      self.returncode = errors.SAVED  # also where a workdir holds another run
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
    pid = locks.pid_of(self._holder)
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
        locks.describe_process(self._holder),
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
    group: Callable[[Sequence[Trial]], list[Batch]],
  ):
    self.failed: set[str] = set()
    self._journal, self._size, self._launcher = journal, size, launcher
    self._group = group
    self._running: dict[Batch, tuple[subprocess.Popen | _Adopted, float]] = {}
    self._listener = signals.Listener(
      "its trials save and end, which is waited for"
    )

  def __enter__(self) -> "_Pool":
    self._listener.listen()
    return self

  def __exit__(self, *error: Any) -> None:
    with self._listener:
      for batch in self._stop():
        self._running[batch][0].wait()

  def _stop(self) -> list[Batch]:
    """Tells all trials to stop; returns those whose end can be waited for."""
    for process, _ in self._running.values():
      process.terminate()
    return [
      batch
      for batch, (process, _) in self._running.items()
      if not (isinstance(process, _Adopted) and process.is_out_of_reach)
    ]

  def adopt(self, alive: Mapping[Trial, str]) -> None:
    """Takes over trials that run already.

    Args:
      alive: the process of each, from `_holder`.
    """
    batches: dict[Any, list[Trial]] = {}
    for one, holder in alive.items():
      batches.setdefault(holder or one, []).append(one)
    for batch in map(tuple, batches.values()):
      holder = alive[batch[0]]
      self._running[batch] = (_Adopted(batch, holder), time.monotonic())
      for one in batch:
        _log.info(
          "waiting  %s, which runs already as %s",
          one.name,
          locks.describe_process(holder),
        )

  def run(self, trials: Sequence[Trial]) -> None:
    """Runs all of them, and waits for those that run already."""
    waiting = self._group(trials)
    self._since, self._ended = time.monotonic(), 0
    self._total = len(trials) + sum(map(len, self._running))
    preemptions: dict[Batch, int] = {}
    while waiting or self._running:
      if self._listener.given:
        break
      while waiting and len(self._running) < self._size:
        self._start(waiting.pop(0))
      time.sleep(_WAIT_SECS)
      for batch in [b for b, (p, _) in self._running.items() if _ended(p)]:
        adopted = isinstance(self._running[batch][0], _Adopted)
        status = self._finish(batch)
        if adopted:
          waiting[:0] = self._group([t for t in batch if not t.is_done()])
          continue
        if status == errors.SAVED:
          preemptions[batch] = preemptions.get(batch, 0) + 1
          if preemptions[batch] <= _MOST_PREEMPTIONS:
            waiting.insert(0, batch)
            continue
        if status and len(batch) > 1:
          waiting[:0] = [(one,) for one in batch]
        elif status:
          self.failed.add(batch[0].name)
    if self._listener.given:
      stopping = self._stop()
      out_of_reach = set(self._running) - set(stopping)
      for batch in stopping:
        self._running[batch][0].wait()
        self._finish(batch)
      for batch in out_of_reach:
        del self._running[batch]
      raise StoppedError(
        "the sweep was told to stop; what its trials had saved is kept, and "
        "the same command goes on"
      )

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
      claims = [
        stack.enter_context(locks.claim(_claim_path(one))) for one in batch
      ]
      process = subprocess.Popen(
        [*self._launcher, *arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        # Its own group: what stops the sweep tells the trial to save once.
        start_new_session=True,
        pass_fds=[claim.fileno() for claim in claims if claim],
      )
      for claim in filter(None, claims):
        claim.write(locks.process_name(process.pid))
    self._running[batch] = (process, time.monotonic())

  def _finish(self, batch: Batch) -> int:
    """Notes how trials ended, each with its share of the time.

    Returns:
      The exit status.
    """
    process, since = self._running.pop(batch)
    status = process.returncode
    assert status is not None  # it has ended
    event = "failed" if len(batch) == 1 else "parted"
    event = "done" if status == 0 else event
    event = "preempted" if status in _STOPPED else event
    # How long an adopted one ran is not known, nor that all ended alike.
    seconds = round((time.monotonic() - since) / len(batch), 1)
    facts: dict[str, Any] = {"status": status, "seconds": seconds}
    if isinstance(process, _Adopted):
      facts = {"adopted": True}
    for one in batch:
      own = event
      if isinstance(process, _Adopted):
        own = "done" if one.is_done() else "preempted"
      self._ended += own in ("done", "failed")
      self._journal.write(one, own, **facts)
      _log.info("%-8s %s, %.0f s%s", own, one.name, seconds, self._left())
    if event in ("failed", "parted"):
      with open(_log_path(batch[0]), errors="replace") as f:
        lines = f.read().strip().splitlines()
      _log.warning("  status %d: %s", status, lines[-1] if lines else "")
    if event == "parted":
      _log.warning("  trying each of them alone")
    return errors.SAVED if event == "preempted" else status


def _log_path(one: Trial) -> str:
  return os.path.join(one.workdir, "log.txt")


def _ended(process: subprocess.Popen | _Adopted) -> bool:
  return process.poll() is not None


# --- listing ------------------------------------------------------------------


def listing(
  trials: Sequence[Trial],
  workdir: str,
  cost: Callable[[Trial], str],
) -> list[tuple[str, str, str]]:
  """Rows of (name, state, cost) for --dry_run.

  Args:
    trials: from `read_trials`.
    workdir: of the sweep.
    cost: of a trial that is to run.
  """
  failed, secs = Journal(workdir).failed(), Journal(workdir).seconds()
  rows = []
  for one in trials:
    state = one.state()
    if state != "done" and one.name in failed:
      state = "failed"
    if state == "done":
      took = secs.get(one.name)
      text = f"took {took:,.0f} s" if took is not None else ""
    else:
      text = cost(one)
    rows.append((one.name, state, text))
  return rows


def show(rows: Sequence[tuple[str, str, str]]) -> None:
  """Prints a listing as a table."""
  grid = table.Table(box=None, pad_edge=False)
  for heading in ("trial", "state", "cost"):
    grid.add_column(heading, overflow="fold")
  for row in rows:
    grid.add_row(*map(markup.escape, row))
  console.Console(highlight=False).print(grid)
  states = [state for _, state, _ in rows]
  counts = (f"{states.count(s)} {s}" for s in dict.fromkeys(states))
  print(f"{len(rows)} trials: {', '.join(counts)}")


class Costs:
  """What trials are predicted to cost, by their FLOPs.

  Their time is that of the FLOPs as fast as the trials of the sweep that are
  done, or, for a TPU slice, what a plan predicts for a step.
  """

  def __init__(
    self, trials: Sequence[Trial], workdir: str, topology: str | None
  ):
    """Measures the trials that are done.

    Args:
      trials: of the sweep.
      workdir: of the sweep.
      topology: TPU slice to plan for, such as "v5e:4x4", or None.
    """
    self._topology = topology
    self._plans: dict[tuple[str, ...], dict] = {}
    self._flops: dict[tuple[str, ...], tuple[int, float]] = {}
    secs = Journal(workdir).seconds()
    speeds = []
    for one in trials:
      if not topology and one.name in secs and one.is_done():
        speeds.append(self.flops(one)[1] / secs[one.name])
    self._speed = statistics.median(speeds) if speeds else None
    self._num_done = len(speeds)

  def flops(self, one: Trial) -> tuple[int, float]:
    """Steps, and model FLOPs of all of them, of a trial.

    Raises:
      ValueError: its config or its data do not fit.
    """
    from bert_jax.runtime import sharding
    from bert_jax.training import checks
    from bert_jax.training import (
      jobs,  # loads jax, which a sweep itself does without
    )

    key = one.program()
    if key in self._flops:
      return self._flops[key]
    config = one.load_config()
    checks.check_settings(config)
    job, _ = jobs.open_job(config, "")
    m = config.mesh
    batches = job.batches(sharding.make_mesh(m.data, m.fsdp, m.tensor))
    # Of tasks the shapes of batches differ: the first few stand for all.
    count = min(len(batches), _BATCHES_LOOKED_AT)
    mean = statistics.mean(job.step_flops(batches[i]) for i in range(count))
    self._flops[key] = job.total_steps, mean * job.total_steps
    return self._flops[key]

  def __call__(self, one: Trial) -> str:
    """The cost of a trial in words, or why it cannot be told."""
    try:
      if self._topology:
        return self._planned(one)
      num_steps, flops = self.flops(one)
    except ValueError as error:
      return f"unknown: {error}"
    text = f"{num_steps:,} steps, {flops:.2g} model FLOPs"
    if self._speed:
      text += (
        f", about {flops / self._speed / 60:,.1f} min as fast as the "
        f"{self._num_done} done"
      )
    return text

  def _planned(self, one: Trial) -> str:
    key = one.program()
    if key not in self._plans:
      self._plans[key] = make_plan([*key, f"--topology={self._topology}"])
    plan = self._plans[key]
    num_steps = one.load_config().train.total_steps or self.flops(one)[0]
    secs = plan["predicted_step_secs"] * num_steps
    return (
      f"{num_steps:,} steps, predicted {secs / 3600:,.2f} h on "
      f"{self._topology}, {secs * plan['num_devices'] / 3600:,.1f} chip-hours"
    )


def make_plan(arguments: Sequence[str]) -> dict:
  """A plan, made by a process of its own, which sees TPUs where jax looks.

  Args:
    arguments: of the launcher, those of a training and --topology.

  Raises:
    SweepError: it does not fit, or cannot be made.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "plan.json")
    command = [sys.executable, "-m", "bert_jax.main", *arguments]
    done = subprocess.run(
      [*command, "--mode=plan", f"--output={path}"],
      capture_output=True,
      text=True,
      check=False,
    )
    if not os.path.exists(path):
      lines = done.stderr.strip().splitlines()
      raise SweepError(lines[-1] if lines else f"status {done.returncode}")
    with open(path, encoding="utf-8") as file:
      plan = json.load(file)
  if not plan["fits"]:
    raise SweepError("it does not fit the memory; see --mode=plan")
  return plan


def write_commands(trials: Sequence[Trial], path: str) -> int:
  """Writes the commands of what is not done, one a line, for any engine.

  Args:
    trials: from `read_trials`.
    path: of the file.

  Returns:
    How many.
  """
  lines = [
    shlex.join(["bert-jax", *one.arguments()]) + "\n"
    for one in trials
    if not one.is_done()
  ]
  files.write_text(path, "".join(lines))
  return len(lines)
