"""Has the trials of a sweep run by a cluster: SLURM, or GKE's TPU slices.

SLURM through submitit (the extra `slurm`): a job a trial, whose settings are
submitit's. GKE through xpk (the extra `xpk`): a workload a trial. Both start a
trial again that was preempted, by its exit status 75, and one of which another
process was lost, by the status 69.
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
from bert_jax.sweeps import sweep

_log = logging.getLogger(__name__)

_POLL_SECS = 0.2
_SAVE_SECS = 80  # of the 90 that submitit asks SLURM for before the end
_WORKLOAD_CHARS = 40  # of a name, as xpk takes it
_MOST_RESTARTS = 100
# Of xpk workload create 1.16; the others have a default or come from the trial.
_XPK_REQUIRED = ("cluster", "tpu-type", "docker-image")


class Training:
  """A trial as submitit runs it: a call that a preemption may interrupt."""

  def __init__(self, arguments: Sequence[str]):
    """Keeps what is to be run.

    Args:
      arguments: of the launcher.
    """
    self.arguments = list(arguments)
    self._process: subprocess.Popen | None = None

  def __call__(self) -> int:
    """Runs the trial to its end.

    Raises:
      sweep.FailedError: it failed.
    """
    again = (errors.SAVED, errors.PEER_LOST)
    status, starts = errors.SAVED, 0
    while status in again and starts < _MOST_RESTARTS:
      starts += 1
      # Its own group: what SLURM sends the job is for `checkpoint` alone.
      self._process = subprocess.Popen(
        [sys.executable, "-m", "bert_jax.main", *self.arguments],
        start_new_session=True,
      )
      # Not `wait`: `checkpoint`, called by a signal, could not wait then.
      while (ended := self._process.poll()) is None:
        time.sleep(_POLL_SECS)
      status = ended
    if status:
      raise sweep.FailedError(f"status {status} of {self.arguments[-1]}")
    return status

  def checkpoint(self) -> Any:
    """Has the trial save, and tells submitit to queue it again."""
    from submitit import helpers

    if self._process is not None and self._process.poll() is None:
      self._process.send_signal(signal.SIGTERM)
      try:
        self._process.wait(_SAVE_SECS)
      except subprocess.TimeoutExpired:
        self._process.kill()  # its last checkpoint is sound
    return helpers.DelayedSubmission(Training(self.arguments))


def submit(
  trials: Sequence[sweep.Trial],
  workdir: str,
  settings: Mapping[str, Any],
  cluster: str | None = None,
) -> list[Any]:
  """Hands the trials that are not done to SLURM.

  Args:
    trials: of a sweep.
    workdir: of the sweep, seen by all machines; submitit writes to its `slurm`.
    settings: of submitit's update_parameters, such as slurm_partition,
      timeout_min, nodes, slurm_gres.
    cluster: "slurm", or "local" for processes here; None = slurm.

  Returns:
    submitit's jobs.

  Raises:
    sweep.SweepError: submitit is not there, or does not take the settings.
  """
  try:
    import submitit
  except ImportError as error:
    raise sweep.SweepError(
      "--engine=slurm needs submitit: pip install 'bert_jax[slurm]'"
    ) from error
  waiting = [one for one in trials if not one.is_done()]
  folder = os.path.join(workdir, "slurm")
  try:
    executor = submitit.AutoExecutor(
      folder=folder,
      cluster=cluster or "slurm",
      slurm_max_num_timeout=_MOST_RESTARTS,
    )
    executor.update_parameters(name=os.path.basename(workdir), **settings)
  except (NameError, TypeError, RuntimeError, ValueError) as error:
    raise sweep.SweepError(f"submitit: {error}") from error
  journal, jobs = sweep.Journal(workdir), []
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
  """The command that has GKE run a trial on TPU slices.

  Args:
    one: a trial, whose workdir all machines see.
    settings: of `xpk workload create`: cluster, tpu-type, docker-image; also
      project, zone, num-slices, and whichever others it takes.

  Raises:
    sweep.SweepError: one of the first three is missing.
  """
  for name in _XPK_REQUIRED:
    if not settings.get(name):
      raise sweep.SweepError(
        f"--engine=xpk: the sweep names no {name}; give "
        f"sweep.make(..., xpk={{{name!r}: ...}})"
      )
  options = {
    "workload": workload_name(one.name),
    "num-slices": 1,
    "max-restarts": _MOST_RESTARTS,
    "restart-on-exit-codes": f"{errors.SAVED},{errors.PEER_LOST}",
  } | dict(settings)
  return [
    "xpk", "workload", "create",
    *(f"--{name}={value}" for name, value in options.items()),
    f"--command={shlex.join(['bert-jax', *one.arguments()])}",
  ]  # fmt: skip


def workload_name(name: str) -> str:
  """A name of a trial as Kubernetes takes it, different for different ones."""
  digest = hashlib.sha256(name.encode()).hexdigest()[:6]
  plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
  plain = plain[: _WORKLOAD_CHARS - len(digest) - 3].strip("-")
  return f"t-{plain}-{digest}" if plain else f"t-{digest}"


def send(trials: Sequence[sweep.Trial], settings: Mapping[str, Any]) -> None:
  """Hands the trials that are not done to GKE, one workload each.

  Args:
    trials: of a sweep.
    settings: as for `xpk_command`.

  Raises:
    sweep.SweepError: xpk is not there, or refused a workload.
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
    if done.returncode:  # perhaps it was sent before
      refused.append(f"{shlex.join(command)} ended with {done.returncode}")
  if refused:
    raise sweep.SweepError(
      f"xpk refused {len(refused)} workloads, the first: {refused[0]}"
    )
