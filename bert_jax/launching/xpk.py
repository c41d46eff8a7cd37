"""Runs jobs on TPU slices of GKE by xpk, one workload a job.

Xpk (the extra `xpk`) makes a JobSet much like that of gke.py, and names the
slice, the cluster and the image by its own options. Beside the statuses named
here it always starts a job again after 42 and after 127 to 255.

Source: xpk 1.16, `xpk workload create --help` and commands/workload.py.
"""

from collections.abc import Mapping, Sequence
import shlex
from typing import Any

from bert_jax.launching import jobs

# Options that say where a job is.
_PLACE = ("cluster", "project", "zone", "namespace")
# Options that the job determines: its name, its slices and its command.
_DETERMINED = {
  "workload": "--name", "tpu-type": "--topology", "num-slices": "--num_slices",
  "command": "the command after ' -- '",
}  # fmt: skip
# Options of `xpk workload create` that have no default and that the job does
# not determine.
REQUIRED = ("cluster", "tpu-type", "docker-image")


def create(
  name: str, arguments: Sequence[str], options: Mapping[str, Any]
) -> list[str]:
  """Returns the command that makes GKE run a job on TPU slices.

  Args:
    name: the name of the workload.
    arguments: the arguments of `bert-jax`.
    options: options of `xpk workload create`, among them those of REQUIRED;
      they replace those that are set here.
  """
  given = {
    "workload": name,
    "num-slices": 1,
    "max-restarts": jobs.MAX_RESTARTS,
    "restart-on-exit-codes": ",".join(map(str, jobs.RESTART_STATUSES)),
  } | dict(options)
  return [
    "xpk", "workload", "create",
    *(word for pair in given.items() for word in _option(*pair)),
    f"--command={shlex.join(['bert-jax', *arguments])}",
  ]  # fmt: skip


def _option(name: str, value: Any) -> list[str]:
  """Returns an option as xpk takes it: one that is switched on has no value."""
  text = str(value).lower()
  if text in ("true", "false"):
    return [f"--{name}"] if text == "true" else []
  return [f"--{name}={value}"]


def check(given: Mapping[str, Any]) -> None:
  """Raises LaunchError for settings that do not help to find a job."""
  taken = {*_PLACE, "docker-image", "max-restarts"}  # those of flags among them
  if unknown := sorted(given.keys() - taken):
    raise jobs.LaunchError(
      f"--set={unknown[0]}= does not say where a job is; of xpk, status and "
      "stop take --set=namespace="
    )


def _check_undetermined(given: Mapping[str, Any]) -> None:
  """Raises LaunchError for settings that would replace what was planned."""
  for name in given:
    if flag := _DETERMINED.get(name.replace("_", "-")):
      raise jobs.LaunchError(
        f"--set={name}={given[name]} would contradict what was checked; give "
        f"{flag} instead"
      )


def command(job: jobs.Job) -> list[str]:
  """Returns the command that sends a job.

  Raises:
    jobs.LaunchError: a required setting is missing, or there is no slice.
  """
  if job.topology is None:
    raise jobs.LaunchError(
      "engine xpk runs jobs on TPU slices; give --topology, or use --engine=gke"
    )
  _check_undetermined(job.settings)
  options = {"tpu-type": _tpu_type(job), "num-slices": job.num_slices}
  options |= job.settings
  for name, flag in (("cluster", "--cluster="), ("docker-image", "--image=")):
    if not options.get(name):
      raise jobs.LaunchError(f"engine xpk needs {flag}")
  return create(job.name, job.arguments, options)


def _tpu_type(job: jobs.Job) -> str:
  """Returns xpk's name of a slice, such as "v5litepod-4x4".

  The form with a number of cores leaves open which of several shapes is meant.
  """
  assert job.topology is not None
  return f"{job.topology.chip.slice_name}-{job.topology.sides}"


def render(job: jobs.Job) -> str:
  """Returns the command that sends a job, as text."""
  return shlex.join(command(job)) + "\n"


def send(job: jobs.Job) -> str:
  """Sends a job; xpk's own messages are shown. Raises LaunchError."""
  jobs.run(command(job), shows=True)
  return f"sent {job.name}"


def status(job: jobs.Job) -> str:
  """Returns what xpk knows about a job."""
  read = ["xpk", "workload", "list", *jobs.options_of(job, *_PLACE)]
  return jobs.run([*read, f"--filter-by-job={job.name}"]).rstrip()


def stop(job: jobs.Job) -> list[list[str]]:
  """Returns the command that ends a job."""
  delete = ["xpk", "workload", "delete", *jobs.options_of(job, *_PLACE)]
  return [[*delete, f"--workload={job.name}", "--force"]]
