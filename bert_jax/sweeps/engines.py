"""Submits the trials of a sweep to a cluster: SLURM, or TPU slices of GKE.

Every trial is a job of its own, which starts again if it was preempted or lost
one of its processes. The engines are those of `bert-jax launch`. Other systems
can run the commands that `write_commands` writes.
"""

from collections.abc import Callable, Mapping, Sequence
import logging
import os
import shlex
import subprocess
from typing import Any

from bert_jax.launching import gke
from bert_jax.launching import jobs
from bert_jax.launching import launch
from bert_jax.launching import slurm
from bert_jax.launching import xpk
from bert_jax.runtime import files
from bert_jax.sweeps import running
from bert_jax.sweeps import sweep

_log = logging.getLogger(__name__)


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
  settings = dict(settings)
  folder = settings.pop("folder", os.path.join(workdir, "slurm"))
  if files.is_remote(folder):
    raise sweep.SweepError(
      f"--workdir={workdir}: submitit cannot write its files to a bucket; name "
      "a folder that all machines see in the sweep, as slurm={'folder': ...}"
    )
  waiting = [one for one in trials if not one.is_done()]
  name = os.path.basename(workdir)
  try:
    executor = slurm.executor(folder, name, settings, cluster)
  except jobs.LaunchError as error:
    raise sweep.SweepError(str(error)) from error
  import submitit

  journal, submitted = running.Journal(workdir), []
  kind = submitit.LocalJob if cluster == "local" else submitit.SlurmJob
  queued = journal.queued()
  for one in waiting:
    if one.name in queued:
      before: Any = kind(folder=folder, job_id=queued[one.name])
      if not before.done():
        _log.info("job %s is not done yet: %s", before.job_id, one.name)
        continue
    job = executor.submit(slurm.Training(one.arguments()))
    journal.write(one, "queued", job=job.job_id)
    _log.info("job %s: %s", job.job_id, one.name)
    submitted.append(job)
  return submitted


def xpk_command(one: sweep.Trial, settings: Mapping[str, Any]) -> list[str]:
  """Returns the command that makes GKE run a trial on TPU slices.

  Args:
    one: a trial, whose workdir all machines must see.
    settings: options of `xpk workload create`. cluster, tpu-type and
      docker-image are required; others, such as project and zone, are optional.

  Raises:
    sweep.SweepError: a required option is missing.
  """
  for name in xpk.REQUIRED:
    if not settings.get(name):
      raise sweep.SweepError(
        f"--engine=xpk: the sweep does not set {name}; give "
        f"sweep.make(..., xpk={{{name!r}: ...}})"
      )
  return xpk.create(jobs.name_of(one.name), one.arguments(), settings)


def send(trials: Sequence[sweep.Trial], settings: Mapping[str, Any]) -> None:
  """Submits the trials that are not done to GKE by xpk, one workload each.

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


def gke_job(one: sweep.Trial, settings: Mapping[str, Any]) -> jobs.Job:
  """Returns the job by which GKE runs a trial on TPU slices.

  Args:
    one: a trial, whose workdir all machines must see.
    settings: topology, num_slices, and settings of launching/gke.py.

  Raises:
    sweep.SweepError: a setting is missing or wrong.
  """
  given = dict(settings)
  topology = str(given.pop("topology", ""))
  if not topology:
    raise sweep.SweepError(
      "--engine=gke: the sweep does not set topology; give sweep.make(..., "
      "gke={'topology': 'v5e:2x4', 'image': ...})"
    )
  num_slices = given.pop("num_slices", 1)
  if not isinstance(num_slices, int):
    raise sweep.SweepError(
      f"--engine=gke: the sweep sets num_slices={num_slices!r}; give a whole "
      "number"
    )
  try:
    job = jobs.Job(
      jobs.name_of(one.name),
      tuple(one.arguments()),
      jobs.read_topology(topology, num_slices),
      num_slices,
      given,
      jobs.local_dir_of(one.load_config()),
    )
    gke.settings(job)
  except jobs.LaunchError as error:
    raise sweep.SweepError(str(error)) from error
  return job


def check_paths(trials: Sequence[sweep.Trial]) -> None:
  """Checks that the pods of a cluster would see the files of all trials.

  Raises:
    sweep.SweepError: they would not; what they write would be lost with them.
  """
  for one in trials:
    config = one.load_config()
    command = launch.Command(
      "train",
      tuple(one.arguments()),
      config,
      (f"--config={one.config}",),
      {"--workdir": one.workdir},
      launch.paths_in(config),
      (one.config,),
    )
    try:
      launch.check_paths(command, shares_files=False)
    except jobs.LaunchError as error:
      raise sweep.SweepError(f"trial {one.name}: {error}") from error


def send_gke(
  trials: Sequence[sweep.Trial], settings: Mapping[str, Any]
) -> None:
  """Submits the trials that are not done to GKE, one JobSet each.

  Args:
    trials: all trials of a sweep.
    settings: as for `gke_job`.

  Raises:
    sweep.SweepError: the cluster refused a job, or its pods would not see the
      files of a trial.
  """
  undone = [one for one in trials if not one.is_done()]
  waiting = [gke_job(one, settings) for one in undone]
  check_paths(undone)
  refused = []
  for job in waiting:
    try:
      _log.info("%s", gke.send(job))
    except jobs.LaunchError as error:  # that job may exist already
      refused.append(f"{job.name}: {error}")
  if refused:
    raise sweep.SweepError(
      f"the cluster refused {len(refused)} jobs; the first: {refused[0]}"
    )


def _send_xpk(
  trials: Sequence[sweep.Trial], workdir: str, settings: Mapping[str, Any]
) -> None:
  """Submits trials by xpk, after checking that pods see their files."""
  del workdir  # the trials know theirs
  check_paths(trials)
  send(trials, settings)


# How to send the trials of a sweep, given its workdir and the settings that it
# has for the engine.
SENDERS: dict[
  str, Callable[[Sequence[sweep.Trial], str, Mapping[str, Any]], Any]
] = {
  "slurm": submit,
  "xpk": _send_xpk,
  "gke": lambda trials, workdir, settings: send_gke(trials, settings),
}


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
