"""Writes the commands that run a job on TPU VMs, for a person to type.

One slice is a TPU VM. Several slices are joined only by a queued resource. The
hosts run the container image, because the Python of the TPU VMs is older than
the one that this package needs.

Source: docs.cloud.google.com/tpu/docs/managing-tpus-tpu-vm, /queued-resources
and /multislice-introduction; gcloud compute tpus --help.
"""

from collections.abc import Mapping
import shlex
from typing import Any

from bert_jax.launching import jobs
from bert_jax.runtime import chips

# Default by name; None = required.
SETTINGS: dict[str, Any] = {
  "image": None,
  "zone": None,
  "project": "",
  "spot": False,
  "max_restarts": jobs.MAX_RESTARTS,
}


def check(given: Mapping[str, Any]) -> None:
  """Checks settings of which some may be missing; raises LaunchError."""
  jobs.check_settings(given, SETTINGS, "vm")


def commands(job: jobs.Job) -> list[tuple[str, list[str]]]:
  """Returns the commands of a job in their order, each with its purpose.

  Raises:
    jobs.LaunchError: there are no TPU VMs of the chip, or a setting is missing.
  """
  topology = job.topology
  if topology is None:
    raise jobs.LaunchError(
      "engine vm runs jobs on TPU VMs; give --topology, such as v5e:4x4"
    )
  if not topology.chip.vm_version:
    raise jobs.LaunchError(
      f"there are no TPU VMs of {topology.chip.name}, only nodes of GKE; use "
      "--engine=gke or --engine=xpk"
    )
  given = jobs.settings_of(job.settings, SETTINGS, "vm")
  several = job.num_slices > 1
  what = "queued-resources" if several else "tpu-vm"
  nodes = [f"--node-count={job.num_slices}", f"--node-prefix={job.name}"]
  place = _place(job)
  spot = ["--spot"] if given["spot"] else []
  slice_words = [f"--accelerator-type={topology.slice_name}"]
  if topology.shape != _usual_shape(topology):
    chip_type = topology.chip.name.upper()
    slice_words = [f"--type={chip_type}", f"--topology={topology.sides}"]
  create = [
    *_tpus(what, "create", job.name), *slice_words,
    f"--{'runtime-version' if several else 'version'}="
    f"{topology.chip.vm_version}",
    *(nodes if several else []), *spot, *place,
  ]  # fmt: skip
  found = [("make the slice, which costs from now on", create)]
  if several:
    look = _tpus(what, "describe", job.name)
    found.append(
      (
        "wait until it is ACTIVE",
        [*look, *place, "--format=value(state.state)"],
      )
    )
  registry = str(given["image"]).partition("/")[0]
  for name in _nodes(job):
    if registry.endswith("docker.pkg.dev"):
      login = f"sudo gcloud auth configure-docker {registry} --quiet"
      found.append(
        (f"let the hosts of {name} read the image", _ssh(name, place, login))
      )
    found.append(
      (
        f"start the job on all hosts of {name}; it goes on by itself",
        _ssh(name, place, _loop(job, given)),
      )
    )
  remove = _tpus(what, "delete", job.name)
  force = ["--force"] if several else []
  return [
    *found,
    ("watch it", logs(job)),
    ("remove the slice, which costs until then", [*remove, *force, *place]),
  ]


def _usual_shape(topology: Any) -> tuple[int, ...]:
  """Returns the shape that a slice has if only its size is named."""
  try:
    return chips.parse_topology(topology.slice_name).shape
  except ValueError:
    return ()


def _loop(job: jobs.Job, given: dict[str, Any]) -> str:
  """Returns the command of a host, which starts the job again where asked."""
  run = shlex.join(
    ["sudo", "docker", "run", "--rm", "--privileged", "--network=host"]
    + ["--user=0", f"--name={job.name}"]
    + ([f"--volume={x}:{x}"] if (x := job.host_folder) else [])
    + [given["image"], *job.command]
  )
  final = " && ".join(f"[ $status != {s} ]" for s in jobs.RESTART_STATUSES)
  loop = (
    f"for start in $(seq {given['max_restarts'] + 1}); do {run}; status=$?; "
    f"[ -e {job.name}.stop ] && break; {final} && break; done; exit $status"
  )
  return (
    f"rm -f {job.name}.stop; nohup sh -c {shlex.quote(loop)} > {job.name}.log "
    "2>&1 < /dev/null &"
  )


def _tpus(what: str, *words: str) -> list[str]:
  return ["gcloud", "compute", "tpus", what, *words]


def _place(job: jobs.Job) -> list[str]:
  """Returns the options that say where a slice is."""
  return jobs.options_of(job, "zone", "project")


def _ssh(
  name: str, place: list[str], command: str, worker: str = "all"
) -> list[str]:
  """Returns the command that runs another one on hosts of a slice."""
  words = [*_tpus("tpu-vm", "ssh", name), f"--worker={worker}"]
  return [*words, *place, f"--command={command}"]


def render(job: jobs.Job) -> str:
  """Returns the commands of a job as a shell script, with their purposes."""
  lines = []
  for purpose, words in commands(job):
    lines += [f"# {purpose}", shlex.join(words), ""]
  return "\n".join(lines)


def status(job: jobs.Job) -> str:
  """Returns the state of the slice."""
  what = "queued-resources" if job.num_slices > 1 else "tpu-vm"
  look = [*_tpus(what, "describe", job.name), *_place(job)]
  return jobs.run([*look, "--format=value(state)"]).rstrip()


def logs(job: jobs.Job) -> list[str]:
  """Returns the command that shows the messages of the first process."""
  follow = f"tail -n 200 -F {job.name}.log"
  return _ssh(_nodes(job)[0], _place(job), follow, "0")


def stop(job: jobs.Job) -> list[list[str]]:
  """Returns the commands that let the job save and end; the slices stay.

  Each slice has a loop of its own, which would start the job again.
  """
  end = f"touch {job.name}.stop; sudo docker stop --time=300 {job.name}"
  return [_ssh(node, _place(job), end) for node in _nodes(job)]


def _nodes(job: jobs.Job) -> list[str]:
  """Returns the names of the slices."""
  if job.num_slices == 1:
    return [job.name]
  return [f"{job.name}-{i}" for i in range(job.num_slices)]
