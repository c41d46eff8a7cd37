"""Starts a job of several processes, and ends it where one of them fails.

Every process runs the same command. On TPU slices, under SLURM and Open MPI
they find each other by themselves; elsewhere each is told where process 0 is,
how many there are and which it is (--coordinator, --num_processes,
--process_id).

What the processes tell each other goes through the key-value store of
jax's coordination service, in process 0, and not through a compiled program:
that cannot hang where they differ, and works while a device computes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import glob
import importlib.metadata
import itertools
import json
import logging
import os
import secrets
import time
from typing import Any

from bert_jax.runtime import peers
from bert_jax.runtime import signals
from bert_jax.runtime import watchdog

_log = logging.getLogger(__name__)

# How long to wait for all processes to be started, and to end.
_START_SECS = 600
_END_SECS = 120
# How long to wait for a process that is late, because it imports or reads data
# slowly. Collectives wait less: those of CPUs give up after 30 seconds.
LATE_SECS = 1800
_SEE_SECS = 10.0  # for a new file to be seen on all hosts
_TOKEN = ".shared-"  # names of those files begin so
_SHOWN = 10  # differences
_SHOWN_CHARS = 200  # of a value

# Settings that may differ between the processes of a job: where a host has its
# copy of the data, which is compared by its hash, and what only changes how
# fast a host is. A key that ends in a point stands for its group.
PER_HOST_KEYS = (
  "data.dir", "data.num_threads", "data.prefetch_batches",
  "task.dir", "task.files.", "task.vocab",
)  # fmt: skip
# Facts that are not known everywhere: without git, None.
_WHERE_KNOWN = ("commit", "dirty")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class HostsError(ValueError):
  """The processes cannot find each other, or do not fit together."""


class DifferError(HostsError):
  """The processes of a job differ; all of them know it and say the same."""

  exit_status = 2
  is_known_to_all = True


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

  peers.catch_aborts(_not_met(f"one ended, or did not come in {_START_SECS} s"))
  jax.config.update("jax_enable_preemption_service", stops_in_order)
  try:
    with signals.keeping_handler():  # jax's would swallow every SIGTERM
      jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=_START_SECS,
        heartbeat_timeout_seconds=peers.HEARTBEAT_SECS,
        shutdown_timeout_seconds=_END_SECS,
      )
  except (RuntimeError, ValueError, OSError) as error:
    reason = (str(error).strip().splitlines() or [repr(error)])[0]
    raise HostsError(_not_met(reason)) from error
  if jax.process_count() > 1:
    peers.begin_watch()
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
    peers.PeerError: a process did not come.
  """
  if not peers.are_several():
    return judge([value])
  import jax

  store, key = peers.service().client, f"{peers.PREFIX}decide/{next(_rounds)}/"
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
      raise peers.PeerError(
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
  if not peers.are_several():
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
