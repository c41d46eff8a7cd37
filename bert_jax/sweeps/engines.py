"""Submits the trials of a sweep to a cluster: SLURM, or TPU slices of GKE.

Submitit (the extra `slurm`) submits one SLURM job per trial, and xpk (the extra
`xpk`) one GKE workload per trial. Both restart a trial that was preempted (exit
status 75) or that lost one of its processes (69). Other systems can run the
commands that `write_commands` writes.
"""

from collections.abc import Mapping, Sequence
import hashlib
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from typing import Any

from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import peers
from bert_jax.sweeps import running
from bert_jax.sweeps import sweep

_log = logging.getLogger(__name__)

_POLL_SECS = 0.2
# SLURM sends a signal 90 seconds before the end, because submitit asks for it.
_SAVE_SECS = 80
_WORKLOAD_CHARS = 40  # the longest name of a workload that xpk accepts
_MOST_RESTARTS = 100
# Options of `xpk workload create` 1.16 that have no default and that the trial
# does not determine.
_XPK_REQUIRED = ("cluster", "tpu-type", "docker-image")


class Training:
  """The function that submitit calls for a trial.

  Submitit calls `checkpoint` if the job is preempted.
  """

  def __init__(self, arguments: Sequence[str]):
    """Stores the arguments of the launcher; starts no process yet."""
    self.arguments = list(arguments)
    self._process: subprocess.Popen | None = None

  def __call__(self) -> int:
    """Runs the trial to its end; returns the exit status 0.

    Raises:
      running.FailedError: the trial failed.
    """
    again = (errors.SAVED, peers.PeerError.exit_status)
    status, starts = errors.SAVED, 0
    while status in again and starts < _MOST_RESTARTS:
      starts += 1
      # In its own process group, so that signals from SLURM reach only this
      # process, in which they call `checkpoint`.
      self._process = subprocess.Popen(
        [sys.executable, "-m", "bert_jax.main", *self.arguments],
        start_new_session=True,
      )
      # During `wait`, `checkpoint` could not wait for the process, too.
      while (ended := self._process.poll()) is None:
        time.sleep(_POLL_SECS)
      status = ended
    if status:
      raise running.FailedError(f"status {status} of {self.arguments[-1]}")
    return status

  def checkpoint(self) -> Any:
    """Makes the trial save and end; returns a request to queue it again."""
    from submitit import helpers

    if self._process is not None and self._process.poll() is None:
      self._process.send_signal(signal.SIGTERM)
      try:
        self._process.wait(_SAVE_SECS)
      except subprocess.TimeoutExpired:
        self._process.kill()  # its last checkpoint stays intact
    return helpers.DelayedSubmission(Training(self.arguments))


def submit(
  trials: Sequence[sweep.Trial],
  workdir: str,
  settings: Mapping[str, Any],
  cluster: str | None = None,
) -> list[Any]:
  """Submits the trials that are not done to SLURM.

  Args:
    trials: all trials of a sweep.
    workdir: the folder of the sweep, which all machines must see. Submitit
      writes to the folder `slurm` in it.
    settings: arguments of submitit's update_parameters, such as
      slurm_partition, timeout_min, nodes, slurm_gres. `folder` names another
      folder for submitit's files, which a workdir in a bucket needs.
    cluster: "local" = run processes on this machine; None = use SLURM.

  Returns:
    The jobs of submitit.

  Raises:
    sweep.SweepError: submitit is not installed, or refuses the settings.
  """
  try:
    import submitit
  except ImportError as error:
    raise sweep.SweepError(
      "--engine=slurm needs submitit: pip install 'bert_jax[slurm]'"
    ) from error
  settings = dict(settings)
  folder = settings.pop("folder", os.path.join(workdir, "slurm"))
  if files.is_remote(folder):
    raise sweep.SweepError(
      f"--workdir={workdir}: submitit cannot write its files to a bucket; name "
      "a folder that all machines see in the sweep, as slurm={'folder': ...}"
    )
  waiting = [one for one in trials if not one.is_done()]
  try:
    executor = submitit.AutoExecutor(
      folder=folder,
      cluster=cluster or "slurm",
      slurm_max_num_timeout=_MOST_RESTARTS,
    )
    executor.update_parameters(name=os.path.basename(workdir), **settings)
  except (NameError, TypeError, RuntimeError, ValueError) as error:
    raise sweep.SweepError(f"submitit: {error}") from error
  journal, jobs = running.Journal(workdir), []
  kind = submitit.LocalJob if cluster == "local" else submitit.SlurmJob
  queued = journal.queued()
  for one in waiting:
    if one.name in queued:
      before: Any = kind(folder=folder, job_id=queued[one.name])
      if not before.done():
        _log.info("job %s is not done yet: %s", before.job_id, one.name)
        continue
    job = executor.submit(Training(one.arguments()))
    journal.write(one, "queued", job=job.job_id)
    _log.info("job %s: %s", job.job_id, one.name)
    jobs.append(job)
  return jobs


def xpk_command(one: sweep.Trial, settings: Mapping[str, Any]) -> list[str]:
  """Returns the command that makes GKE run a trial on TPU slices.

  Args:
    one: a trial, whose workdir all machines must see.
    settings: options of `xpk workload create`. cluster, tpu-type and
      docker-image are required; others, such as project and zone, are optional.

  Raises:
    sweep.SweepError: a required option is missing.
  """
  for name in _XPK_REQUIRED:
    if not settings.get(name):
      raise sweep.SweepError(
        f"--engine=xpk: the sweep does not set {name}; give "
        f"sweep.make(..., xpk={{{name!r}: ...}})"
      )
  options = {
    "workload": workload_name(one.name),
    "num-slices": 1,
    "max-restarts": _MOST_RESTARTS,
    "restart-on-exit-codes": f"{errors.SAVED},{peers.PeerError.exit_status}",
  } | dict(settings)
  return [
    "xpk", "workload", "create",
    *(f"--{name}={value}" for name, value in options.items()),
    f"--command={shlex.join(['bert-jax', *one.arguments()])}",
  ]  # fmt: skip


def workload_name(name: str) -> str:
  """Returns a name that Kubernetes accepts, and that differs between trials."""
  digest = hashlib.sha256(name.encode()).hexdigest()[:6]
  plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
  plain = plain[: _WORKLOAD_CHARS - len(digest) - 3].strip("-")
  return f"t-{plain}-{digest}" if plain else f"t-{digest}"


def send(trials: Sequence[sweep.Trial], settings: Mapping[str, Any]) -> None:
  """Submits the trials that are not done to GKE, one workload each.

  Args:
    trials: all trials of a sweep.
    settings: as for `xpk_command`.

  Raises:
    sweep.SweepError: xpk is not installed, or refused a workload.
  """
  refused = []
  for one in trials:
    if one.is_done():
      continue
    command = xpk_command(one, settings)
    try:
      done = subprocess.run(command, check=False)
    except FileNotFoundError as error:
      raise sweep.SweepError(
        "--engine=xpk needs xpk: pip install 'bert_jax[xpk]'"
      ) from error
    if done.returncode:  # a workload of that name may exist already
      refused.append(f"{shlex.join(command)} ended with {done.returncode}")
  if refused:
    raise sweep.SweepError(
      f"xpk refused {len(refused)} workloads; the first: {refused[0]}"
    )


def write_commands(trials: Sequence[sweep.Trial], path: str) -> int:
  """Writes the commands of the trials that are not done, one per line.

  Args:
    trials: from `sweep.read_trials`.
    path: the file to write.

  Returns:
    The number of commands.
  """
  lines = [
    shlex.join(["bert-jax", *one.arguments()]) + "\n"
    for one in trials
    if not one.is_done()
  ]
  files.write_text(path, "".join(lines))
  return len(lines)
