"""Starts a job of several processes, and ends it where one of them fails.

Every process runs the same command. On TPU slices, under SLURM and Open MPI
they find each other by themselves; elsewhere each is told where process 0 is,
how many there are and which it is (--coordinator, --num_processes,
--process_id).

What the processes tell each other here goes through the key-value store of
jax's coordination service, in process 0, and not through a compiled program:
that cannot hang where they differ, and works while a device computes.

Where a process fails, it says so in the store and ends with its own status. The
others find that within seconds, each prints one line with the cause and ends
with PeerError.exit_status. A process that was killed says nothing, but the
connection that every process keeps to process 0 then ends, at once. Of one that
is stopped, or whose host is gone, jax hears no heartbeat any more.
"""

import atexit
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import ctypes
import faulthandler
import glob
import importlib.metadata
import itertools
import json
import logging
import os
import re
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from bert_jax.runtime import errors
from bert_jax.runtime import signals
from bert_jax.runtime import watchdog

_log = logging.getLogger(__name__)

# jax ends the whole job where a process is not heard of for this long.
HEARTBEAT_SECS = 60
# How long to wait for all processes to be started, and to end.
_START_SECS = 600
_END_SECS = 120
# How long to wait for a process that is late, because it imports or reads data
# slowly. Collectives wait less: those of CPUs give up after 30 seconds.
LATE_SECS = 1800
_POLL_SECS = 1.0  # between looks at whether another process has failed
_ANSWER_SECS = 3.0  # for all to answer, after one has failed
_SILENT_SECS = 10.0  # without a sign of life: suspicious, if jax gives up
_SEE_SECS = 10.0  # for a new file to be seen on all hosts
_TOKEN = ".shared-"  # names of those files begin so
_SHOWN = 10  # differences
_SHOWN_CHARS = 200  # of a value

# Facts that are not known everywhere: without git, None.
_WHERE_KNOWN = ("commit", "dirty")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

_PREFIX = "bert_jax/"
_MONITORED = f"{_PREFIX}monitor/"
# What the errors of collectives, of barriers and of the coordination service
# say where a connection broke or a process did not come.
_BROKEN = re.compile(
  r"gloo|nccl|connection (closed|reset|refused)|socket closed|broken pipe"
  r"|coordination service|heartbeat|barrier|DEADLINE_EXCEEDED|UNAVAILABLE",
  re.IGNORECASE,
)
# Paths, quoted text and file names in an error: they may hold any word.
_NAMES = re.compile(
  r"""(?<!\w)"[^"\n]*"(?!\w)|(?<!\w)'[^'\n]*'(?!\w)|\S*[/\\]\S*"""
)


class HostsError(errors.UserError):
  """The processes cannot find each other, or do not fit together."""


class DifferError(HostsError):
  """The processes of a job differ; all of them know it and say the same."""


class PeerError(RuntimeError):
  """Another process of the job died, stood still or did not come."""

  exit_status = errors.PEER_LOST


def is_cluster(environ: Mapping[str, str], on_tpu: bool) -> bool:
  """Whether several processes were started that jax can connect by itself.

  Args:
    environ: variables of this process.
    on_tpu: there are TPUs here; whether of a slice of several hosts, jax knows.
  """
  if on_tpu or int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
    return True
  # An allocation of several tasks is no job of several; a step of it is.
  in_step = "SLURM_STEP_NODELIST" in environ
  return in_step and int(environ.get("SLURM_NTASKS", "1")) > 1


def start(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  on_tpu: bool,
  stops_in_order: bool,
) -> None:
  """Connects this process to the others, if there are any.

  To be called before anything else is asked of jax.

  Args:
    coordinator: HOST:PORT of process 0; None = jax looks for it.
    num_processes: how many there are, with `coordinator`.
    process_id: which this is, with `coordinator`.
    on_tpu: see `is_cluster`.
    stops_in_order: the caller asks for SIGTERM after every step; otherwise it
      ends the process as usual.

  Raises:
    HostsError: one of the three is missing or cannot be, or the others did not
      come.
  """
  given = (coordinator, num_processes, process_id)
  if any(x is not None for x in given):
    if any(x is None for x in given):
      raise HostsError(
        "--coordinator=HOST:PORT, --num_processes and --process_id go "
        f"together; given: {coordinator}, {num_processes}, {process_id}"
      )
    if not 0 <= int(process_id or 0) < int(num_processes or 0):
      raise HostsError(
        f"--process_id={process_id} is not among 0 to {num_processes} - 1"
      )
  elif not is_cluster(os.environ, on_tpu):
    return
  import jax

  # Where another process dies, this one says so in a line; a list of all
  # threads below would only hide it.
  faulthandler.disable()
  _catch_aborts()
  jax.config.update("jax_enable_preemption_service", stops_in_order)
  try:
    with signals.keeping_handler():  # jax's would swallow every SIGTERM
      jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=_START_SECS,
        heartbeat_timeout_seconds=HEARTBEAT_SECS,
        shutdown_timeout_seconds=_END_SECS,
      )
  except (RuntimeError, ValueError, OSError) as error:
    reason = (str(error).strip().splitlines() or [repr(error)])[0]
    raise HostsError(_not_met(reason)) from error
  if jax.process_count() > 1:
    _Monitor.begin()
  _log.info(
    "process %d of %d, %d of %d devices",
    jax.process_index(), jax.process_count(),
    jax.local_device_count(), jax.device_count(),
  )  # fmt: skip


def _not_met(reason: str) -> str:
  return (
    f"the processes of this job did not find each other: {reason}; see that "
    "all run, that they reach the coordinator's port, and that each has its "
    "own --process_id. For one process alone give "
    "--coordinator=localhost:12345 --num_processes=1 --process_id=0"
  )


def are_several() -> bool:
  """Whether this process was connected to others."""
  if "jax" not in sys.modules:  # a mode that computes nothing
    return False
  return _service().client is not None and _service().num_processes > 1


def _service() -> Any:
  """The connection to jax's coordination service.

  jax has no public API for the store of keys and values; this is the one place
  that knows where it is (jax 0.10). It has `client` with key_value_set,
  key_value_dir_get and blocking_key_value_get, and `coordinator_address`.
  """
  from jax._src import distributed

  return distributed.global_state


# --- agreeing -----------------------------------------------------------------

_rounds = itertools.count()  # of `decide`; all processes count alike


def decide(value: Any, judge: Callable[[list[Any]], Any]) -> Any:
  """Has process 0 judge what all processes say, and tells it to all.

  All processes have to call this, in the same order. It waits for one that is
  late for LATE_SECS.

  Args:
    value: of this process, as JSON has it.
    judge: a function: the values of all processes -> a verdict, as JSON has it.
      Only process 0 calls it.

  Returns:
    The verdict.

  Raises:
    PeerError: a process did not come.
  """
  if not are_several():
    return judge([value])
  import jax

  store, key = _service().client, f"{_PREFIX}decide/{next(_rounds)}/"
  if jax.process_index() == 0:
    values = [json.loads(json.dumps(value))]
    for i in range(1, jax.process_count()):
      values.append(json.loads(_wait_for(store, f"{key}{i}", i)))
    store.key_value_set(f"{key}verdict", json.dumps(judge(values)))
  else:
    store.key_value_set(f"{key}{jax.process_index()}", json.dumps(value))
  return json.loads(_wait_for(store, f"{key}verdict", 0))


def _wait_for(store: Any, key: str, process: int) -> str:
  """The value of a key that a process sets, which may be late."""
  import jax

  begin, warned = time.monotonic(), False
  while True:
    try:
      # A little at a time, so that signals are handled in between.
      return store.blocking_key_value_get(key, 2000)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise
    secs = time.monotonic() - begin
    watchdog.note(f"waiting for process {process}")
    if secs > LATE_SECS:
      raise PeerError(
        f"process {process} did not come within {LATE_SECS} s; its own output "
        "says what it is doing"
      )
    if secs > 30 and not warned:
      warned = True
      _log.info("waiting for process %d, for %d s at most", process, LATE_SECS)


def from_first(value: Any) -> Any:
  """What process 0 says, as JSON has it, on all processes."""
  return decide(value, lambda values: values[0])


def compare(facts: Mapping[str, Any]) -> None:
  """Checks that all processes of this job run the same.

  Args:
    facts: by name, as JSON has them.

  Raises:
    DifferError: on every process, which process differs from process 0 in what.
  """
  if problem := decide(dict(facts), differences):
    raise DifferError(
      f"the processes of this job differ ({problem}); give all the same command"
      " with the same code and data, and start them again"
    )


def differences(facts: Sequence[Mapping[str, Any]]) -> str:
  """Says in what processes differ from process 0.

  Args:
    facts: of each process, by name.

  Returns:
    Such as "process 1: optim.learning_rate=0.001, process 0: 0.0001", the
    differences apart by semicolons; "" = there are none.
  """
  first, found = facts[0], []
  for i, own in enumerate(facts):
    for name in sorted(own.keys() | first.keys()):
      pair = [
        json.dumps(x[name], sort_keys=True) if name in x else "not set"
        for x in (own, first)
      ]
      if name in _WHERE_KNOWN and "null" in pair:
        continue
      if pair[0] != pair[1]:  # as text, in which NaN equals NaN
        mine, theirs = map(_cut, pair)
        found.append(f"process {i}: {name}={mine}, process 0: {theirs}")
  if len(found) > _SHOWN:
    found[_SHOWN:] = [f"and {len(found) - _SHOWN} more"]
  return "; ".join(found)


def _cut(text: str) -> str:
  return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def facts_of_process() -> dict[str, Any]:
  """What a process must have in common with the others, whatever it runs."""
  import jax

  packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return packages | {
    "number of processes": jax.process_count(),
    "number of devices": jax.local_device_count(),
    "kind of devices": sorted({d.device_kind for d in jax.local_devices()}),
  }


def check_shared(workdir: str, must_write: bool = True) -> None:
  """Checks that all processes see the workdir of process 0.

  Process 0 makes a file with a name that nobody can guess, the others look for
  it; afterwards everything is as before.

  Args:
    workdir: of the run, which need not exist yet.
    must_write: False = where process 0 cannot write there, nothing is checked.

  Raises:
    DifferError: on every process, which one does not see the workdir.
    OSError: on every process, process 0 cannot write there.
  """
  if not are_several():
    return
  import jax

  with contextlib.ExitStack() as stack:
    name, problem = "", ""
    if jax.process_index() == 0:
      try:
        name = stack.enter_context(_token(workdir))
      except OSError as error:
        problem = f"{workdir}: {error.strerror or error}"
    name, problem = from_first([name, problem])
    if problem:
      if must_write:
        raise OSError(f"process 0 cannot write to --workdir: {problem}")
      return
    seen = jax.process_index() == 0 or _is_seen(workdir, name)
    blind = decide(seen, lambda all_: [i for i, x in enumerate(all_) if not x])
  if blind:
    processes = ", ".join(f"process {i}" for i in blind[:_SHOWN])
    raise DifferError(
      f"{processes} cannot see --workdir={workdir} of process 0 (within "
      f"{_SEE_SECS:.0f} s): give a folder on a file system that all hosts share"
    )


@contextlib.contextmanager
def _token(workdir: str) -> Iterator[str]:
  """A context with a new file in a folder; yields its name.

  Folders that had to be made for it are removed afterwards, and so is what a
  process left that was killed meanwhile.
  """
  made, folder = [], os.path.abspath(workdir)
  while not os.path.isdir(folder):
    made.append(folder)
    folder = os.path.dirname(folder)
  name = f"{_TOKEN}{secrets.token_hex(16)}"
  path = os.path.join(os.path.abspath(workdir), name)
  try:
    os.makedirs(workdir, exist_ok=True)
    for old in glob.glob(f"{glob.escape(workdir)}/{_TOKEN}*"):
      with contextlib.suppress(OSError):
        if time.time() - os.path.getmtime(old) > LATE_SECS:
          os.unlink(old)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    yield name
  finally:
    with contextlib.suppress(OSError):
      os.unlink(path)
    for folder in made:
      with contextlib.suppress(OSError):  # others have put files there
        os.rmdir(folder)


def _is_seen(workdir: str, name: str) -> bool:
  """Whether a file can be seen; new ones may take a little over a network."""
  give_up = time.monotonic() + _SEE_SECS
  while True:
    # Listing folders makes NFS look anew, asking for one name does not.
    for folder in (os.path.dirname(os.path.abspath(workdir)), workdir):
      with contextlib.suppress(OSError):
        if name in os.listdir(folder):
          return True
    if time.monotonic() > give_up:
      return False
    time.sleep(0.2)


# --- failing ------------------------------------------------------------------


class _Monitor:
  """Finds out, in threads, whether another process has failed.

  Keys below _MONITORED: `port` is where process 0 waits for the connections of
  the others; `lost/I` says that the one of process I has ended; `beat/I` is a
  sign of life of process I; `silent` names those of whom process 0 has not seen
  one for a while; `trouble/I` says that process I fails and why; `here/I` is
  the answer of process I to one of `lost` or `trouble`.
  """

  current: "_Monitor | None" = None

  def __init__(self) -> None:
    import jax

    service = _service()
    self.store, self.address = service.client, service.coordinator_address
    self.index, self.count = jax.process_index(), jax.process_count()
    # Held by the thread that ends this process, until it has.
    self.is_leaving = threading.Lock()
    self.is_ending = threading.Event()  # in order
    self._contact = time.monotonic()  # with process 0
    self._line: socket.socket | None = None  # to process 0
    self._silent: list[int] = []  # of the other processes
    self._beats: dict[int, tuple[str, float]] = {}
    self._posted_silent: list[int] = []

  @classmethod
  def begin(cls) -> None:
    """Starts the one of this process."""
    cls.current = monitor = cls()
    hold = monitor.listen if monitor.index == 0 else monitor.hold
    looking = threading.Thread(target=monitor.run, name="monitor", daemon=True)
    looking.start()
    threading.Thread(target=hold, name="monitor", daemon=True).start()

    def stop() -> None:
      # jax's own end, which comes after this, takes the store away: nobody may
      # use it then.
      monitor.is_ending.set()
      looking.join(_ANSWER_SECS)

    atexit.register(stop)
    show = sys.excepthook

    def hook(kind: Any, error: BaseException, trace: Any) -> None:
      show(kind, error, trace)
      # In order this process cannot end: the others wait for it.
      if not isinstance(error, KeyboardInterrupt):
        leave(error)

    sys.excepthook = hook

  def run(self) -> None:
    """Looks again and again, until this process ends."""
    for number in itertools.count():
      with contextlib.suppress(Exception):  # process 0 cannot be reached
        if self._look(number):
          break
      if self.is_ending.wait(_POLL_SECS):
        return
    # The main thread may be about to find its own error, or to end well.
    if self.is_ending.wait(_ANSWER_SECS):
      return
    if self.is_leaving.acquire(blocking=False):
      self.say_and_exit(self.verdict("it failed"))

  def _look(self, number: int) -> bool:
    """Gives a sign of life; returns whether another process has failed."""
    self._set(f"beat/{self.index}", str(number))
    rows = self._rows()
    self._contact = time.monotonic()
    if self.index == 0:
      self._watch_beats(rows)
    else:
      self._silent = json.loads(rows.get("silent", "[]"))
    if not any(key.startswith(("trouble/", "lost/")) for key in rows):
      return False
    self._set(f"here/{self.index}", "")
    return True

  def listen(self) -> None:
    """Process 0: holds a connection to every other, until it ends."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    server = socket.create_server(
      ("", 0), family=family, dualstack_ipv6=family == socket.AF_INET6
    )
    secret = secrets.token_hex(16)
    self._set("port", f"{server.getsockname()[1]} {secret}")
    selector = selectors.DefaultSelector()
    selector.register(server, selectors.EVENT_READ)
    atexit.register(self._part, selector)
    callers: dict[Any, _Caller] = {}
    while True:
      for key, _ in selector.select():
        line: Any = key.fileobj
        if line is server:
          try:
            line = server.accept()[0]
            _keep_alive(line)
          except OSError:  # such as too many open files, or it has gone again
            time.sleep(_POLL_SECS)
            continue
          callers[line] = _Caller(secret, self.count)
          selector.register(line, selectors.EVENT_READ)
          continue
        caller = callers[line]
        if caller.hear(_receive(line)):
          continue
        selector.unregister(line)
        _send(line, _BYE)  # that it closes is no failure of this process
        line.close()
        del callers[line]
        is_lost = caller.index is not None and not caller.is_done
        if is_lost and not self.is_ending.is_set():
          with contextlib.suppress(Exception):
            self._set(f"lost/{caller.index}", "")

  def hold(self) -> None:
    """The others: hold a connection to process 0, until it ends."""
    host = self.address.rpartition(":")[0].strip("[]")
    try:
      found = self.store.blocking_key_value_get(
        f"{_MONITORED}port", HEARTBEAT_SECS * 1000
      )
      port, secret = found.split()
      line = socket.create_connection((host, int(port)), HEARTBEAT_SECS)
    except Exception as error:  # jax's, or a firewall
      _log.info(
        "no connection to watch process 0 by (%s); should a process be killed, "
        "the others find out by jax's heartbeats, in %d s",
        str(error)[:200], HEARTBEAT_SECS,
      )  # fmt: skip
      return
    self._line = line
    line.settimeout(None)
    _keep_alive(line)
    atexit.register(_send, line, _BYE)
    _send(line, f"{secret} {self.index}")
    with line:
      said = _receive(line).strip()
    if said != _BYE:
      time.sleep(_POLL_SECS)  # the main thread may know why
      if self.is_leaving.acquire(blocking=False):
        self.say_and_exit(self._of_process_0())

  def _part(self, selector: selectors.BaseSelector) -> None:
    """Tells the others that process 0 ends in order."""
    for key in list(selector.get_map().values()):
      _send(key.fileobj, _BYE)

  def _watch_beats(self, rows: Mapping[str, str]) -> None:
    now = time.monotonic()
    for i in range(1, self.count):
      beat = rows.get(f"beat/{i}", "")
      if self._beats.get(i, (None,))[0] != beat:
        self._beats[i] = (beat, now)
    self._silent = [
      i for i, (_, since) in self._beats.items() if now - since > _SILENT_SECS
    ]
    if self._silent != self._posted_silent:
      self._set("silent", json.dumps(self._silent))
      self._posted_silent = self._silent

  def _set(self, key: str, value: str) -> None:
    self.store.key_value_set(_MONITORED + key, value, allow_overwrite=True)

  def _rows(self) -> dict[str, str]:
    rows = self.store.key_value_dir_get(_MONITORED)
    return {key.removeprefix(_MONITORED): value for key, value in rows}

  def post(self, reason: str, is_own: bool) -> bool:
    """Tells the others that this process fails; returns whether that worked.

    Args:
      reason: for it.
      is_own: False = it comes from another process.
    """
    # In a thread: a process 0 that stands still does not answer.
    text = json.dumps({"reason": reason, "is_own": is_own})
    return _within(2, lambda: self._set(f"trouble/{self.index}", text))

  def verdict(self, reason: str) -> str:
    """Says which process has failed.

    Args:
      reason: what this process knows by itself.
    """
    found: list[dict[str, str]] = []
    if not _within(2, lambda: found.append(self._rows())):
      return self._of_process_0()
    rows = found[0]
    trouble = {
      int(key.removeprefix("trouble/")): json.loads(text)
      for key, text in rows.items()
      if key.startswith("trouble/")
    }
    for i, known in sorted(trouble.items()):
      if known["is_own"] and i != self.index:
        return f"process {i} failed: {known['reason']}"
    answered = {int(key[5:]) for key in rows if key.startswith("here/")}
    answered -= {int(key[5:]) for key in rows if key.startswith("lost/")}
    missing = set(range(self.count)) - answered - set(trouble) - {self.index}
    if missing:
      return _gone(sorted(missing))
    reasons = [known["reason"] for known in trouble.values()] or [reason]
    return f"a connection between the processes broke: {reasons[0]}"

  def _of_process_0(self) -> str:
    return _gone([0])

  def suspect(self) -> str:
    """Says which process is likely to have failed, asking none; or ""."""
    if self.index:
      if time.monotonic() - self._contact > _SILENT_SECS:
        return self._of_process_0()
      host, _, port = self.address.rpartition(":")
      try:
        socket.create_connection((host.strip("[]"), int(port)), 2).close()
      except OSError:
        return self._of_process_0()
    others = [i for i in self._silent if i != self.index]
    return _gone(others) if others else ""

  def say_and_exit(self, cause: str, is_first: bool = False) -> NoReturn:
    """Prints the line of a process that another one ends, and ends it.

    Args:
      cause: what has happened.
      is_first: the others begin only now to find out.
    """
    _say(
      f"process {self.index} of {self.count} stops because {cause}. Restart "
      "this job with the same command, or with another number of processes; it "
      "goes on from its last checkpoint"
    )
    if self._line:  # this one is not to be taken for the one that failed
      _send(self._line, _BYE)
    if is_first:
      _linger(self)
    elif self.index == 0:  # the others still have to read who failed
      time.sleep(_POLL_SECS + 1)
    os._exit(PeerError.exit_status)


def _gone(indices: Sequence[int]) -> str:
  """A sentence about processes that do not answer."""
  names = ", ".join(f"process {i}" for i in indices[:_SHOWN])
  if len(indices) > 1:
    return f"{names} were killed, are stopped or cannot be reached"
  return f"{names} was killed, is stopped or cannot be reached"


_BYE = "bye"  # says a process that ends in order
_MOST_CHARS = 200  # of a message


class _Caller:
  """What process 0 knows of a connection; anybody may open one.

  Attributes:
    index: of the process, once it has greeted with the secret; else None.
    is_done: it has said that it ends in order.
  """

  def __init__(self, secret: str, count: int):
    """Takes the secret of the job and its number of processes."""
    self.index: int | None = None
    self.is_done = False
    self._secret, self._count = secret, count
    self._rest = ""  # of a message that has not ended yet

  def hear(self, text: str) -> bool:
    """Takes what was received; returns whether to go on listening.

    Args:
      text: any part of messages, each of which ends in a newline; "" = the
        connection has ended.
    """
    *messages, self._rest = (self._rest + text).split("\n")
    for message in messages:
      if self.index is None:
        given, _, index = message.partition(" ")
        if given != self._secret or index not in map(str, range(self._count)):
          return False
        self.index = int(index)
      else:
        self.is_done = message == _BYE
        return False
    return bool(text) and len(self._rest) <= _MOST_CHARS


def _send(line: Any, text: str) -> None:
  """Sends a message, if the connection is still there."""
  with contextlib.suppress(OSError):
    line.send(f"{text}\n".encode())


def _receive(line: socket.socket) -> str:
  """What was said, at most a short line; "" = the connection has ended."""
  try:
    return line.recv(100).decode(errors="replace")
  except OSError:
    return ""


def _keep_alive(line: socket.socket) -> None:
  """Keeps a connection from being dropped on its way for saying nothing."""
  line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 30)):
    if hasattr(socket, name):  # Linux
      line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _within(secs: float, act: Callable[[], Any]) -> bool:
  """Does something in a thread; returns whether it was done in that time."""
  done = threading.Event()

  def run() -> None:
    with contextlib.suppress(Exception):
      act()
      done.set()

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  thread.join(secs)
  return done.is_set()


def _catch_aborts() -> None:
  """Has the process end in order where jax's coordination service aborts it.

  jax offers no other way (0.10: a `missed_heartbeat_callback` written in Python
  cannot be called). An abort for another reason stays one. Python's own signal
  handlers run too late for this signal, so it is a handler of the C library.
  """
  kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
  library = ctypes.CDLL(None)
  library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  library.signal.restype = ctypes.c_void_p

  def handle(number: int) -> None:
    monitor = _Monitor.current
    if monitor is None:
      _say(_not_met(f"one ended, or did not come in {_START_SECS} s"))
      os._exit(PeerError.exit_status)
    if not monitor.is_leaving.acquire(blocking=False):
      time.sleep(2 * _ANSWER_SECS)  # another thread is at it
      os._exit(PeerError.exit_status)
    cause = monitor.suspect()
    if monitor.is_ending.is_set():
      cause = cause or "another process did not end in order"
    if cause:
      monitor.say_and_exit(cause)
    library.signal(number, None)  # the default: the abort goes on

  _handlers.append(kind(handle))
  library.signal(signal.SIGABRT, ctypes.cast(_handlers[-1], ctypes.c_void_p))


_handlers: list[Any] = []  # which C calls; they have to live on


def watching(max_secs: float) -> contextlib.AbstractContextManager[Any]:
  """A context in which a job of several ends that makes no progress.

  Args:
    max_secs: the longest time between two calls of watchdog.note; 0 = any.
  """
  if not are_several():
    return contextlib.nullcontext()
  return watchdog.Watchdog(max_secs, _stalled)


@contextlib.contextmanager
def leaving_if_broken() -> Iterator[None]:
  """A context that ends the process at once where another one is gone.

  What is closed outside of it, such as checkpoints that are being written,
  could otherwise wait for that process for minutes.
  """
  try:
    yield
  except Exception as error:
    if are_several() and is_of_peer(error):
      leave(error)
    raise


def _stalled(what: str) -> None:
  """Ends this process, which has stood still."""
  monitor = _Monitor.current
  if monitor is None:
    _say(f"{what}. Restart this job with the same command")
    os._exit(PeerError.exit_status)
  if monitor.is_leaving.acquire(blocking=False):
    monitor.post(what, is_own=True)
    suspect = monitor.suspect()
    more = f" ({suspect})" if suspect else ""
    monitor.say_and_exit(what + more, is_first=True)


def must_leave(error: BaseException) -> bool:
  """Returns whether a job of several must be ended here for an error.

  That is so where this process alone may have met it. Errors of training, such
  as a divergence, are met by all alike, and a bug is to be traced.
  """
  is_ours = isinstance(error, ValueError | OSError | PeerError)
  package = type(error).__module__.partition(".")[0]
  return are_several() and (is_ours or package in ("jax", "jaxlib"))


def leave(error: BaseException, status: int = 1) -> NoReturn:
  """Ends this process of several, without waiting for the others.

  In order it cannot end: the others may be dead, or wait for this one.

  Args:
    error: why.
    status: to exit with, if the error is this process's own; otherwise it is
      PeerError.exit_status.
  """
  reason = " ".join(str(error).split())[:500]
  if not isinstance(error, ValueError | OSError | RuntimeError):
    reason = f"{type(error).__name__}: {reason}"
  monitor = _Monitor.current
  if monitor is None:  # the processes were connected by somebody else
    _say(reason)
    os._exit(status)
  if not monitor.is_leaving.acquire(blocking=False):
    time.sleep(_POLL_SECS + 2 * _ANSWER_SECS)  # another thread is at it
    os._exit(PeerError.exit_status)
  if isinstance(error, DifferError):  # every process knows it
    _say(reason)
    if monitor.index == 0:  # the others still read in its store
      time.sleep(2)
    os._exit(error.exit_status)
  if is_of_peer(error):
    if monitor.post(reason, is_own=False):
      time.sleep(_POLL_SECS + _ANSWER_SECS)
    monitor.say_and_exit(monitor.verdict(reason))
  monitor.post(reason, is_own=True)
  _say(f"process {monitor.index} of {monitor.count} failed: {reason}")
  _linger(monitor)
  os._exit(status)


def _linger(monitor: _Monitor) -> None:
  """Gives the others the time to read in the store of process 0 what it said.

  For them, and for the sake of one line each, process 0 ends last.
  """
  if monitor.index == 0:
    time.sleep(2 * _POLL_SECS + _ANSWER_SECS + 1)


def is_of_peer(error: BaseException) -> bool:
  """Whether an error says that another process is gone, or may be."""
  if isinstance(error, PeerError):
    return True
  cause: BaseException | None = error
  while cause is not None:
    text = _NAMES.sub(" ", str(cause))
    if _may_be_of_jax(type(cause)) and _BROKEN.search(text):
      return True
    hidden = None if cause.__suppress_context__ else cause.__context__
    cause = cause.__cause__ or hidden
  return False


def _may_be_of_jax(kind: type[BaseException]) -> bool:
  """Returns whether jax or Orbax may raise this class for a lost process.

  A collective that breaks may be a plain ValueError, and a barrier a plain
  RuntimeError. Subclasses of other packages, such as a JSON error, and errors
  of the system are never about another process.
  """
  package = kind.__module__.partition(".")[0]
  return kind in (ValueError, RuntimeError) or package in (
    "jax", "jaxlib", "orbax"
  )  # fmt: skip


def _say(text: str) -> None:
  """Prints a line of its own, at once and as one piece."""
  sys.stdout.flush()
  os.write(2, f"bert-jax: {text}\n".encode())
