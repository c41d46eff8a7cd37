"""Sends a job to an engine: `bert-jax launch`.

Whatever can be known to fail is refused before anything is sent: names that
Kubernetes does not accept, slices that do not exist, files that the hosts do
not see, a training that does not fit the memory.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import logging
import math
import os
import re
import shlex
import shutil
from typing import Any

from bert_jax.launching import engines
from bert_jax.launching import jobs
from bert_jax.launching import plans
from bert_jax.runtime import chips
from bert_jax.runtime import config_files
from bert_jax.runtime import files
from bert_jax.runtime import hub
from bert_jax.runtime import settings as config_keys

_log = logging.getLogger(__name__)

AUTO, NONE = "auto", "none"
ACTIONS = ("status", "logs", "stop")
_BUCKET = re.compile(r"gs://([^/,:]*)")


@dataclasses.dataclass(frozen=True)
class Command:
  """The command of `bert-jax` that a job runs, read as the hosts will read it.

  Attributes:
    mode: its mode.
    arguments: its arguments, the mode among them.
    config: its config; None = it has none.
    config_arguments: the arguments --config and --config.KEY among them.
    kept: the paths that it writes, by flag.
    read: the paths that it reads, by flag or key.
    config_files: the names or paths of the configs, those of trials among them.
  """

  mode: str
  arguments: tuple[str, ...]
  config: Any
  config_arguments: tuple[str, ...]
  kept: Mapping[str, str]
  read: Mapping[str, str]
  config_files: tuple[str, ...] = ()


def paths_in(config: Any, owner: str = "") -> dict[str, str]:
  """Returns the paths that a config has, by key.

  Args:
    config: the config.
    owner: whose config it is, such as "trial a"; "" = that of the command.
  """
  flat = config_keys.flatten(config_keys.plain(config))
  names = {key for key, row in config_keys.KEYS.items() if row.is_path}
  whose = f" of {owner}" if owner else ""
  return {
    f"--config.{key}{whose}": flat[key]
    for key in sorted(names & flat.keys())
    if flat[key]
  }


def find_engine(name: str) -> engines.Engine:
  """Returns the engine with a name.

  Raises:
    jobs.LaunchError: no engine has this name.
  """
  if name not in engines.ENGINES:
    known = ", ".join(f"--engine={known}" for known in engines.ENGINES)
    raise jobs.LaunchError(f"launch needs an engine: {known}")
  return engines.ENGINES[name]


def read_settings(
  engine: str, flags: Mapping[str, Any], pairs: Sequence[str]
) -> dict[str, Any]:
  """Returns the settings of an engine.

  Args:
    engine: the name of the engine.
    flags: the values of the flags that were given, of those in jobs.FLAGS.
    pairs: the values of --set, NAME=VALUE.

  Raises:
    jobs.LaunchError: the engine does not take a flag, or a value of --set does
      not have the form NAME=VALUE.
  """
  row, found = find_engine(engine), {}
  for name, value in flags.items():
    if name not in row.flags:
      takers = [n for n, e in engines.ENGINES.items() if name in e.flags]
      raise jobs.LaunchError(
        f"--{name} is for --engine={', '.join(takers)}, not for {engine}"
      )
    found[row.flags[name]] = value
  for pair in pairs:
    name, equals, value = pair.partition("=")
    if not equals or not re.fullmatch(r"[a-z][\w-]*", name):
      raise jobs.LaunchError(f"--set={pair} is not --set=NAME=VALUE")
    for flag, own in row.flags.items():
      if name in (flag, own):
        raise jobs.LaunchError(f"give --{flag}= in place of --set={name}=")
    if name in found:
      raise jobs.LaunchError(f"--set={name}= is given twice")
    found[name] = value
  return found


def act(engine: str, action: str, job: jobs.Job, is_dry: bool = False) -> None:
  """Shows the state of a job, shows its messages, or ends it.

  Args:
    engine: the name of the engine.
    action: one of ACTIONS.
    job: the name of the job, and the settings that say where it is.
    is_dry: whether the commands are only printed.

  Raises:
    jobs.LaunchError: the engine cannot do that, or it failed.
  """
  row = find_engine(engine)
  jobs.check_name(job.name)
  row.check(job.settings)
  if action == "status":
    if is_dry:
      raise jobs.LaunchError("status changes nothing; leave out --dry_run")
    print(row.status(job))
  elif action == "stop":
    commands = row.stop(job)
    if is_dry:
      print("\n".join(map(shlex.join, commands)))
    else:
      jobs.run_all(commands)
  elif row.logs is None:
    raise jobs.LaunchError(
      f"engine {engine} has no logs of its own; where the workdir is a bucket, "
      "bert-jax report --input=WORKDIR draws its curves, and kubectl "
      f"logs -l jobset.sigs.k8s.io/jobset-name={job.name} its messages"
    )
  elif is_dry:
    print(shlex.join(row.logs(job)))
  else:
    jobs.run(row.logs(job), shows=True)


def make_job(
  engine: str,
  name: str,
  command: Command,
  topology: str | None,
  num_slices: int,
  settings: Mapping[str, Any],
) -> jobs.Job:
  """Returns a job, after checking all that can be checked on this machine.

  Args:
    engine: the name of the engine.
    name: the name of the job.
    command: what the job runs.
    topology: the TPU slice, such as v5e:4x4; None = no TPU.
    num_slices: the number of slices.
    settings: from `read_settings`.

  Raises:
    jobs.LaunchError: the job could not run there.
  """
  row = find_engine(engine)
  jobs.check_name(name)
  check_paths(command, row.shares_files)
  trains = command.mode != "prepare"
  if not trains and not row.runs_processors:
    others = [n for n, e in engines.ENGINES.items() if e.runs_processors]
    raise jobs.LaunchError(
      f"{command.mode} computes without a TPU, and engine {engine} has only "
      f"hosts of TPUs; use --engine={' or --engine='.join(others)}"
    )
  if topology and not row.runs_tpus:
    raise jobs.LaunchError(
      f"--topology is for TPU slices; of engine {engine}, --set names the "
      "machines, such as --set=slurm_gres=gpu:4"
    )
  if topology and not trains:
    raise jobs.LaunchError(
      f"{command.mode} computes without a TPU; leave out --topology"
    )
  if row.runs_tpus and trains and not topology:
    raise jobs.LaunchError(
      f"{command.mode} on engine {engine} needs --topology, such as v5e:4x4"
    )
  found = jobs.read_topology(topology, num_slices) if topology else None
  job = jobs.Job(
    name, command.arguments, found, num_slices, settings,
    jobs.local_dir_of(command.config),
  )  # fmt: skip
  if num_slices != 1 and not found:
    raise jobs.LaunchError("--num_slices is the number of slices of --topology")
  if command.mode == "sweep" and job.num_hosts * num_slices > 1:
    raise jobs.LaunchError(
      f"a sweep as one job runs its trials on one host, and {topology} has "
      f"{job.num_hosts}; give a slice of one host, or send each trial as a job "
      f"of its own: bert-jax sweep --engine={engine}"
    )
  if found and command.config is not None and "mesh" in command.config:
    _check_mesh(command.config.mesh, found, num_slices)
  row.render(job)  # raises if a setting is missing or wrong
  return job


def _check_mesh(mesh: Any, topology: chips.Topology, num_slices: int) -> None:
  """Raises LaunchError if a mesh is not one of the devices of some slices.

  Args:
    mesh: the group `mesh` of a config.
    topology: the topology of a slice.
    num_slices: the number of slices.
  """
  per_chip = 2 if topology.chip.name in chips.TWO_DEVICES else 1
  count = topology.num_chips * per_chip * num_slices
  sizes = [mesh.data, mesh.fsdp, mesh.tensor]
  product = math.prod(size for size in sizes if size != -1)
  if count % product or (-1 not in sizes and product != count):
    given = " x ".join(map(str, sizes))
    slices = f"{num_slices} x " if num_slices > 1 else ""
    raise jobs.LaunchError(
      f"the mesh data x fsdp x tensor = {given} does not fit the {count} "
      f"devices of {slices}{topology.name}; set one of mesh.data, mesh.fsdp "
      "and mesh.tensor to -1, which takes all others, or give another "
      "--topology"
    )


def check_paths(command: Command, shares_files: bool) -> None:
  """Checks that the hosts would see the files of a job.

  Args:
    command: what the job runs.
    shares_files: whether the hosts see the folders of this machine.

  Raises:
    jobs.LaunchError: they would not; the message names the path.
  """
  for key, path in {**command.kept, **command.read}.items():
    flag, _, owner = key.partition(" of ")
    named = f"{flag}={path}"
    if owner and owner != path:
      named = f"{owner}: {named}"
    _check_path(flag, path, named, key in command.kept, shares_files)
  for given in command.config_files:
    name = given.partition(":")[0]
    if name.endswith(".py") and not shares_files and _is_own(name):
      raise jobs.LaunchError(
        f"--config={name} is a file of this machine, which the image does not "
        "have; use a shipped config with --config.KEY=VALUE, or put the file "
        "into the folder configs before you build the image, and give its name"
      )


def _check_path(
  flag: str, path: str, named: str, is_kept: bool, shares_files: bool
) -> None:
  """Checks that the hosts would see a file or folder.

  Args:
    flag: the flag or key.
    path: its value.
    named: both, for messages.
    is_kept: whether the job writes it.
    shares_files: whether the hosts see the folders of this machine.

  Raises:
    jobs.LaunchError: they would not.
  """
  is_of_hub = flag.startswith("--config.") and hub.is_name(path)
  # Of a corpus that tensorflow-datasets made, the folder is not in the name.
  if is_of_hub or (shares_files and path.startswith("tfds:")):
    return
  # This machine may lack what reads a bucket; the image has it.
  if files.bucket_paths(path) or (shares_files and os.path.isabs(path)):
    return
  if problem := files.scheme_problem(flag, path):
    raise jobs.LaunchError(problem)
  if shares_files:
    raise jobs.LaunchError(
      f"{named} is a relative path; the hosts may start elsewhere, so give "
      f"{files.absolute(path)}"
    )
  # A glob, or a corpus of tensorflow-datasets, names no file by itself.
  if is_kept or flag == "--input" or files.exists(path):
    raise jobs.LaunchError(
      f"{named} is a path of this machine, which the hosts do not see; give a "
      f"path of a bucket, such as gs://BUCKET/"
      f"{os.path.basename(path.rstrip('/'))}"
      + ("" if is_kept else f", after gcloud storage cp -r {path} there")
    )


def _is_own(name: str) -> bool:
  """Returns whether a config file is not one that images have."""
  known = {files.real(str(one)) for one in config_files.shipped().values()}
  return files.exists(name) and files.real(name) not in known


def check_buckets(paths: Iterable[str]) -> None:
  """Checks that buckets of Google's storage exist and can be read.

  Args:
    paths: the paths of a job, of which those in buckets are looked at.

  Raises:
    jobs.LaunchError: there is no such bucket, or this account has no rights.
  """
  found = {m[1] for path in paths for m in _BUCKET.finditer(path)}
  if not found:
    return
  if not shutil.which("gcloud"):
    _log.info("gcloud is not installed: the buckets are not checked")
    return
  for bucket in sorted(found):
    look = ["gcloud", "storage", "buckets", "describe", f"gs://{bucket}"]
    try:
      jobs.run([*look, "--format=value(name)"])
    except jobs.LaunchError as error:
      raise jobs.LaunchError(
        f"the bucket gs://{bucket} is not there, or this account may not see "
        f"it: {error}; gcloud storage buckets create gs://{bucket} "
        "--location=REGION makes it, in the region of the TPUs; gcloud auth "
        "login says who you are"
      ) from error


def show_plan(command: Command, job: jobs.Job, wanted: str) -> None:
  """Shows the plan of a training, and makes it if it was not made before.

  Args:
    command: what the job runs.
    job: the job.
    wanted: the value of --plan: "auto", "none", or the file of a plan.

  Raises:
    plans.PlanError: the training does not fit, or no plan can be made.
  """
  if command.mode != "train" or job.topology is None:
    if wanted not in (AUTO, NONE):
      raise plans.PlanError("--plan is for a training on TPU slices")
    return
  if wanted == NONE:
    _log.info("no plan was made: whether the training fits is not known")
    return
  where = (job.topology.name, job.num_slices)
  if wanted == AUTO:
    if command.config is None:
      raise plans.PlanError(
        "the plan of a training needs --config; without it give --plan=FILE, "
        "or --plan=none"
      )
    _log.info("looking for the plan; to make one takes minutes")
    # The examples may lie where only the hosts can read them.
    plan, source = plans.find_or_make(
      [a for a in command.config_arguments if not _names_a_bucket(a)],
      command.config,
      *where,
    )
  else:
    plan = plans.read(wanted, *where, command.config)
    source = f"read from {wanted}"
  _log.info("plan, %s:\n%s", source, plans.describe(plan))


def _names_a_bucket(argument: str) -> bool:
  return argument.startswith("--config.") and "://" in argument


def send(
  engine: str, command: Command, job: jobs.Job, plan: str, is_dry: bool
) -> None:
  """Sends a job, or prints exactly what would be sent.

  Args:
    engine: the name of the engine.
    command: what the job runs.
    job: from `make_job`.
    plan: see `show_plan`.
    is_dry: whether nothing is sent.
  """
  row = find_engine(engine)
  show_plan(command, job, plan)
  if is_dry or row.send is None:
    print(row.render(job), end="")
    return
  check_buckets([*command.kept.values(), *command.read.values()])
  print(row.send(job))
  place = [f"--engine={engine}", f"--name={job.name}"]
  keys = {own: flag for flag, own in row.flags.items()}
  for name in ("cluster", "project", "zone", "namespace", "context", "folder"):
    if value := job.settings.get(name):
      flag = f"--{keys[name]}" if name in keys else f"--set={name}"
      place.append(f"{flag}={value}")
  for action in ACTIONS:
    if action != "logs" or row.logs:
      print(f"  bert-jax launch {action} {shlex.join(place)}")
