"""Joins the processes of a job, and compares what they are about to run.

Every process runs the same command. On TPU slices, under SLURM and Open MPI
they find each other by themselves. Elsewhere each process needs the address of
process 0, the number of processes and its own number (--coordinator,
--num_processes, --process_id).

The processes talk to each other through the key-value store of jax's
coordination service, which runs in process 0, and not through a compiled
program. The store works while a device computes, and it cannot hang if the
processes run different programs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import importlib.metadata
import itertools
import json
import logging
import os
import secrets
import time
from typing import Any

from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import peers
from bert_jax.runtime import signals
from bert_jax.runtime import watchdog

_log = logging.getLogger(__name__)

# How long to wait until all processes have started, and until all have ended.
_START_SECS = 600
_END_SECS = 120
# How long to wait for a process that is late because it imports or reads data
# slowly. Collectives wait less; those of CPUs give up after 30 seconds.
LATE_SECS = 1800
_SEE_SECS = 10.0  # until a new file must be visible on all hosts
_TOKEN = ".shared-"  # the names of such files begin with this
_SHOWN = 10  # differences that a message lists at most
_SHOWN_CHARS = 200  # characters of a value that a message shows at most

# Facts that may be None because a host does not know them, without git.
_WHERE_KNOWN = ("commit", "dirty")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class HostsError(errors.UserError):
  """The processes cannot find each other, or run different things."""


class DifferError(HostsError):
  """The processes of a job differ; every process raises this error."""

  is_known_to_all = True


def is_cluster(environ: Mapping[str, str], on_tpu: bool) -> bool:
  """Returns whether jax can find the other processes of the job by itself.

  Args:
    environ: the environment variables of this process.
    on_tpu: whether this host has TPUs. Only jax knows whether they belong to a
      slice of several hosts.
  """
  if on_tpu or int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
    return True
  # Several tasks are several processes only within a step of an allocation.
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

  This must be called before anything else that uses jax.

  Args:
    coordinator: HOST:PORT of process 0; None = jax finds it.
    num_processes: the number of processes; given with `coordinator`.
    process_id: the number of this process; given with `coordinator`.
    on_tpu: see `is_cluster`.
    stops_in_order: whether the caller asks after every step if SIGTERM came. If
      not, SIGTERM ends the process as usual.

  Raises:
    HostsError: one of the three values is missing or out of range, or the other
      processes did not come.
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
    raise HostsError(_not_met(errors.first_line(error))) from error
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

_rounds = itertools.count()  # calls of `decide`, equal on all processes


def decide(value: Any, judge: Callable[[list[Any]], Any]) -> Any:
  """Collects a value of every process; all get the verdict of process 0.

  All processes must call this in the same order. A process that is late is
  waited for, up to LATE_SECS.

  Args:
    value: what this process says; any JSON value.
    judge: returns a verdict, any JSON value, for the list of all values. Only
      process 0 calls it.

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
  """Waits for a key that another process sets, and returns its value."""
  import jax

  begin, warned = time.monotonic(), False
  while True:
    try:
      # In short waits, so that signals are handled in between.
      return store.blocking_key_value_get(key, 2000)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise
    secs = time.monotonic() - begin
    watchdog.note(f"waiting for process {process}")
    if secs > LATE_SECS:
      raise peers.PeerError(
        f"process {process} did not come within {LATE_SECS} s; see its output"
      )
    if secs > 30 and not warned:
      warned = True
      _log.info("waiting for process %d, for %d s at most", process, LATE_SECS)


def from_first(value: Any) -> Any:
  """Returns the value of process 0, any JSON value, on all processes."""
  return decide(value, lambda values: values[0])


def compare(facts: Mapping[str, Any]) -> None:
  """Checks that all processes of this job have the same facts.

  Args:
    facts: JSON values by name.

  Raises:
    DifferError: a process differs from process 0. Every process raises it, and
      the message names the process and both values.
  """
  if problem := decide(dict(facts), differences):
    raise DifferError(
      f"the processes of this job differ ({problem}); start them again with the"
      " same command, code and data"
    )


def differences(facts: Sequence[Mapping[str, Any]]) -> str:
  """Lists the facts in which processes differ from process 0.

  Args:
    facts: the facts of each process, by name.

  Returns:
    The differences, such as "process 1: optim.learning_rate=0.001, process 0:
    0.0001", separated by semicolons; "" = there are none.
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
        mine, theirs = (text[:_SHOWN_CHARS] for text in pair)
        found.append(f"process {i}: {name}={mine}, process 0: {theirs}")
  if len(found) > _SHOWN:
    found[_SHOWN:] = [f"and {len(found) - _SHOWN} more"]
  return "; ".join(found)


def facts_of_process() -> dict[str, Any]:
  """Returns the facts of this process that must be equal in every mode."""
  import jax

  packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return packages | {
    "number of processes": jax.process_count(),
    "number of devices": jax.local_device_count(),
    "kind of devices": sorted({d.device_kind for d in jax.local_devices()}),
  }


def check_shared(workdir: str, must_write: bool = True) -> None:
  """Checks that all processes see the workdir of process 0.

  Process 0 creates a file with a random name and the others look for it. The
  file is removed afterwards.

  Args:
    workdir: the folder of the run, which need not exist yet.
    must_write: False = check nothing if process 0 cannot write there.

  Raises:
    DifferError: a process does not see the workdir. Every process raises it.
    OSError: process 0 cannot write there. Every process raises it.
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

  Afterwards the file is removed, and so are folders that had to be created. Old
  files that a killed process left are removed, too.
  """
  made, folder = [], files.absolute(workdir)
  while not files.is_remote(folder) and not files.is_folder(folder):
    made.append(folder)
    folder = os.path.dirname(folder)
  name = f"{_TOKEN}{secrets.token_hex(16)}"
  path = os.path.join(files.absolute(workdir), name)
  try:
    files.make_folders(workdir)
    for old in files.entries(workdir)[0]:
      with contextlib.suppress(OSError):
        is_token = os.path.basename(old).startswith(_TOKEN)
        if is_token and files.age(old) > LATE_SECS:
          files.delete(old)
    files.create(path)
    yield name
  finally:
    with contextlib.suppress(OSError):
      files.delete(path)
    for folder in made:
      with contextlib.suppress(OSError):  # others have put files there
        os.rmdir(folder)


def _is_seen(workdir: str, name: str) -> bool:
  """Returns whether a file is visible, after waiting for a slow network."""
  give_up = time.monotonic() + _SEE_SECS
  while True:
    # NFS looks again if folders are listed, not if one name is asked for.
    folders = [os.path.dirname(files.absolute(workdir)), workdir]
    for folder in folders[files.is_remote(workdir) :]:
      with contextlib.suppress(OSError):
        if name in files.list_names(folder):
          return True
    if time.monotonic() > give_up:
      return False
    time.sleep(0.2)
