"""Starts a job of several processes: one a host, or several on one machine.

Every process runs the same command. On TPU slices, under SLURM and Open MPI
they find each other by themselves; elsewhere each is told where process 0 is,
how many there are and which it is (--coordinator, --num_processes,
--process_id).
"""

from collections.abc import Mapping
import faulthandler
import logging
import os
import sys
import time
from typing import NoReturn

_log = logging.getLogger(__name__)

# A process that is not heard of for this long ends the whole job: the others
# would wait for it for ever.
HEARTBEAT_SECS = 60
# How long to wait for all to be there, at the start and at the end.
_START_SECS = 300
_END_SECS = 120
_LEAVE_SECS = 2


class HostsError(ValueError):
  """The processes cannot find each other."""


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

  # Where another process dies, jax ends this one and says so; a list of all
  # threads below would only hide it.
  faulthandler.disable()
  jax.config.update("jax_enable_preemption_service", stops_in_order)
  try:
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
    raise HostsError(
      f"the processes of this job did not find each other: {reason}; see that "
      "all run, that they reach the coordinator's port, and that each has its "
      "own --process_id. For one process alone give "
      "--coordinator=localhost:12345 --num_processes=1 --process_id=0"
    ) from error
  _log.info(
    "process %d of %d, %d of %d devices",
    jax.process_index(), jax.process_count(),
    jax.local_device_count(), jax.device_count(),
  )  # fmt: skip


def are_several() -> bool:
  """Whether this process was connected to others."""
  if "jax" not in sys.modules:  # a mode that computes nothing
    return False
  import jax

  return jax.distributed.is_initialized() and jax.process_count() > 1


def leave(error: Exception, status: int = 1) -> NoReturn:
  """Ends this process of several, without waiting for the others.

  In order it cannot end: the others may be dead, or wait for this one.

  Args:
    error: why.
    status: to exit with.
  """
  import jax

  reason = " ".join(str(error).split())[:500]
  print(
    f"bert-jax: process {jax.process_index()} of {jax.process_count()} cannot "
    f"go on: {reason} -- if a connection broke or nothing was heard of a "
    "process, that one ended: its own output says why. Start all again with "
    "the same command, or with another number of processes: the job goes on "
    "from its last checkpoint",
    file=sys.stderr,
    flush=True,
  )
  sys.stdout.flush()
  # Whoever meets the same says so, too, before the end of this one ends it.
  time.sleep(_LEAVE_SECS)
  os._exit(status)
