"""Queues jobs in SLURM by submitit (the extra `slurm`).

A job that is taken away, or whose time is up, saves and is queued again. A
process that ends with a status that asks for it starts again at once. If one
fails, SLURM ends the others, too.

Source: submitit 1.5, docs/checkpointing.md and docs/structure.md; `man srun`,
`man scancel` and `man sacct`.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from bert_jax.launching import jobs
from bert_jax.runtime import errors
from bert_jax.runtime import files

_log = logging.getLogger(__name__)

_POLL_SECS = 0.2
# SLURM sends a signal 90 seconds before the end, because submitit asks for it.
_SAVE_SECS = 80
# After SIGTERM, SLURM kills what it cancels within KillWait (30 seconds unless
# the cluster sets another time). What it preempts it queues again, but only if
# the job is still there.
_KILL_SECS = 300
# Without this option the processes of a job in which one failed would wait for
# that process, and start again and again.
_DEFAULTS: dict[str, Any] = {"slurm_srun_args": ["--kill-on-bad-exit=1"]}


class FailedError(jobs.LaunchError):
  """The job ended with a status that is final."""

  exit_status = errors.FAILED


class StoppedError(jobs.LaunchError):
  """The job was told to stop, and has saved."""

  exit_status = errors.SAVED


def _words(arguments: Sequence[str]) -> list[str]:
  """Returns the command of a process: this Python, which has the packages."""
  return [sys.executable, "-m", "bert_jax.main", *arguments]


class Training:
  """The function that submitit calls for a job.

  Submitit calls `checkpoint` if the job is preempted.
  """

  def __init__(self, arguments: Sequence[str]):
    """Stores the arguments of the launcher; starts no process yet."""
    self.arguments = list(arguments)
    self._process: subprocess.Popen | None = None
    self._is_told_to_stop = False

  def __call__(self) -> int:
    """Runs the job to its end; returns the exit status 0.

    Raises:
      FailedError: the job failed.
      StoppedError: SLURM told the job to stop, and did not kill it.
    """
    with self._hearing_sigterm():
      status = self._run()
      if status in jobs.RESTART_STATUSES and self._is_told_to_stop:
        time.sleep(_KILL_SECS)
        raise StoppedError(
          f"{self._shown()} was told to stop; send it again to go on"
        )
    if status:
      raise FailedError(f"{self._shown()} ended with status {status}")
    return status

  def _shown(self) -> str:
    return shlex.join(["bert-jax", *self.arguments])

  @contextlib.contextmanager
  def _hearing_sigterm(self) -> Iterator[None]:
    """A context in which SIGTERM makes the job save, and start no more.

    Submitit by itself ignores SIGTERM. Depending on the cluster SLURM sends it
    to the training, too; the training takes two at once for one.
    """
    if threading.current_thread() is not threading.main_thread():
      yield  # where Python allows no handler
      return

    def handle(*_: Any) -> None:
      self._is_told_to_stop = True
      if self._process is not None and self._process.poll() is None:
        self._process.send_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, handle)
    try:
      yield
    finally:
      signal.signal(signal.SIGTERM, before)

  def _run(self) -> int:
    """Runs the job, again where it asks for that; returns its last status."""
    status, starts = jobs.RESTART_STATUSES[0], 0
    while (
      status in jobs.RESTART_STATUSES
      and starts < jobs.MAX_RESTARTS
      and not self._is_told_to_stop
    ):
      starts += 1
      # In its own process group, so that signals from SLURM reach only this
      # process, in which they call `checkpoint`.
      self._process = subprocess.Popen(
        _words(self.arguments),
        start_new_session=True,
      )
      # During `wait`, `checkpoint` could not wait for the process, too.
      while (ended := self._process.poll()) is None:
        time.sleep(_POLL_SECS)
      status = ended
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
    made.update_parameters(name=name, **{**_DEFAULTS, **settings})
  except _REFUSALS as error:
    raise jobs.LaunchError(f"submitit: {error}") from error
  return made


# The errors by which submitit refuses settings.
_REFUSALS = (NameError, TypeError, RuntimeError, ValueError, AssertionError)


def check(settings: Mapping[str, Any]) -> None:
  """Checks the settings of a job, as far as that needs no SLURM.

  Raises:
    jobs.LaunchError: submitit refuses a setting.
  """
  try:
    import submitit
  except ImportError:
    _log.info("submitit is not installed: the settings are not checked")
    return
  _, rest = _given(jobs.Job("job", (), settings=settings))
  rest.pop("cluster", None)
  with tempfile.TemporaryDirectory() as folder:
    # The executor for debugging knows the settings of all, and needs no
    # programs of SLURM.
    made = submitit.AutoExecutor(folder=folder, cluster="debug")
    try:
      made.update_parameters(**rest)
    except _REFUSALS as error:
      first = str(error).splitlines()[0]
      raise jobs.LaunchError(f"submitit: {first}") from error


# Settings that submitit wants as lists of words.
_LISTS = {"slurm_srun_args"}


def _given(job: jobs.Job) -> tuple[str, dict[str, Any]]:
  """Returns the folder of a job, and the settings for submitit."""
  rest = {name: _number(value) for name, value in job.settings.items()}
  for name in _LISTS & rest.keys():
    if isinstance(rest[name], str):
      rest[name] = shlex.split(rest[name])
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
  """Returns what is asked of SLURM: the settings, and the command of a task.

  Raises:
    jobs.LaunchError: submitit refuses a setting.
  """
  check(job.settings)
  folder, settings = _given(job)
  settings = {**_DEFAULTS, **settings}
  lines = [f"{name}: {value}" for name, value in settings.items()]
  return "\n".join(
    [
      f"# submitit, job {job.name}; the output goes to {folder}",
      *lines,
      f"command: {shlex.join(_words(job.arguments))}",
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
  """Returns what SLURM knows about the jobs of that name, of a month."""
  columns = "--format=JobID,JobName,State,ExitCode,Elapsed,NodeList"
  look = ["sacct", f"--name={job.name}", "--starttime=now-30days", columns]
  return jobs.run([*look, "-X"]).rstrip()


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


def stop(job: jobs.Job) -> list[list[str]]:
  """Returns the command that ends a job; SLURM sends SIGTERM first.

  For an operator of the cluster the name alone would mean jobs of all users.
  """
  return [["scancel", "--me", f"--name={job.name}"]]
