"""Queues jobs in SLURM by submitit (the extra `slurm`).

A job that is taken away, or whose time is up, saves and is queued again. One
that ends with a status that asks for it starts again at once.

Source: submitit 1.5, docs/checkpointing.md and docs/structure.md.
"""

from collections.abc import Mapping, Sequence
import os
import shlex
import signal
import subprocess
import sys
import time
from typing import Any

from bert_jax.launching import jobs
from bert_jax.runtime import files

_POLL_SECS = 0.2
# SLURM sends a signal 90 seconds before the end, because submitit asks for it.
_SAVE_SECS = 80


class FailedError(jobs.LaunchError):
  """The job ended with a status that is final."""

  exit_status = 1


class Training:
  """The function that submitit calls for a job.

  Submitit calls `checkpoint` if the job is preempted.
  """

  def __init__(self, arguments: Sequence[str]):
    """Stores the arguments of the launcher; starts no process yet."""
    self.arguments = list(arguments)
    self._process: subprocess.Popen | None = None

  def __call__(self) -> int:
    """Runs the job to its end; returns the exit status 0.

    Raises:
      FailedError: the job failed.
    """
    status, starts = jobs.RESTART_STATUSES[0], 0
    while status in jobs.RESTART_STATUSES and starts < jobs.MAX_RESTARTS:
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
      raise FailedError(f"status {status} of {self.arguments[-1]}")
    return status

  def checkpoint(self) -> Any:
    """Makes the job save and end; returns a request to queue it again."""
    from submitit import helpers

    if self._process is not None and self._process.poll() is None:
      self._process.send_signal(signal.SIGTERM)
      try:
        self._process.wait(_SAVE_SECS)
      except subprocess.TimeoutExpired:
        self._process.kill()  # its last checkpoint stays intact
    return helpers.DelayedSubmission(Training(self.arguments))


def executor(
  folder: str,
  name: str,
  settings: Mapping[str, Any],
  cluster: str | None = None,
) -> Any:
  """Returns what submits jobs.

  Args:
    folder: where submitit keeps its files and the output of the jobs.
    name: the name of the jobs.
    settings: arguments of submitit's update_parameters, such as
      slurm_partition, timeout_min, nodes, slurm_gres.
    cluster: "local" = run processes on this machine; None = use SLURM.

  Raises:
    jobs.LaunchError: submitit is not installed, or refuses the settings.
  """
  try:
    import submitit
  except ImportError as error:
    raise jobs.LaunchError(
      "--engine=slurm needs submitit: pip install 'bert_jax[slurm]'"
    ) from error
  try:
    made = submitit.AutoExecutor(
      folder=folder,
      cluster=cluster or "slurm",
      slurm_max_num_timeout=jobs.MAX_RESTARTS,
    )
    made.update_parameters(name=name, **settings)
  except (NameError, TypeError, RuntimeError, ValueError) as error:
    raise jobs.LaunchError(f"submitit: {error}") from error
  return made


def _given(job: jobs.Job) -> tuple[str, dict[str, Any]]:
  """Returns the folder of a job, and the settings for submitit."""
  rest = {name: _number(value) for name, value in job.settings.items()}
  folder = str(rest.pop("folder", os.path.join("runs", "slurm", job.name)))
  if "://" in folder:
    raise jobs.LaunchError(
      f"--set=folder={folder}: SLURM writes the output of a job to a folder of "
      "the shared file system; give such a folder"
    )
  return files.absolute(folder), rest


def _number(value: Any) -> Any:
  """Returns the number that a text is, or else the value."""
  text = str(value)
  return int(text) if text.isdecimal() else value


def render(job: jobs.Job) -> str:
  """Returns what is asked of SLURM: the settings, and the command of a task."""
  folder, settings = _given(job)
  lines = [f"{name}: {value}" for name, value in settings.items()]
  return "\n".join(
    [
      f"# submitit, job {job.name}; the output goes to {folder}",
      *lines,
      f"command: {shlex.join(job.command)}",
      "",
    ]
  )


def send(job: jobs.Job) -> str:
  """Queues a job; returns its number. Raises LaunchError."""
  folder, settings = _given(job)
  cluster = settings.pop("cluster", None)
  # Without a cluster, submitit would run the job here unasked.
  if cluster != "local":
    jobs.run(["sinfo", "--version"])
  made = executor(folder, job.name, settings, cluster)
  queued = made.submit(Training(job.arguments))
  return f"queued {job.name} as job {queued.job_id}; its output: {folder}"


def status(job: jobs.Job) -> str:
  """Returns what SLURM knows about the jobs of that name."""
  columns = "--format=JobID,JobName,State,ExitCode,Elapsed,NodeList"
  return jobs.run(["sacct", f"--name={job.name}", columns, "-X"]).rstrip()


def logs(job: jobs.Job) -> list[str]:
  """Returns the command that shows the output of the newest process.

  Raises:
    jobs.LaunchError: no job of that name has written anything.
  """
  folder = _given(job)[0]
  written = files.glob(os.path.join(files.escape_glob(folder), "*_0_log.*"))
  if not written:
    raise jobs.LaunchError(f"{folder} has no output of job {job.name} yet")
  newest = min(written, key=files.age).rpartition(".")[0]
  shown = [path for path in written if path.startswith(f"{newest}.")]
  return ["tail", "-n", "200", *shown]


def stop(job: jobs.Job) -> list[str]:
  """Returns the command that ends a job; SLURM sends SIGTERM first."""
  return ["scancel", f"--name={job.name}"]
