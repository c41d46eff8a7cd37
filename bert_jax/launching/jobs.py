"""Describes a job that an engine runs: its name, its command, its machines.

An engine (engines.py) is a system that runs jobs on other machines. What must
hold for a job on any engine is checked here, before anything is sent.
"""

from collections.abc import Mapping, Sequence
import concurrent.futures
import dataclasses
import hashlib
import re
import shlex
import subprocess
from typing import Any

from bert_jax.runtime import chips
from bert_jax.runtime import errors

MAX_RESTARTS = 100
# A job that ends with one of these is started again with the same command; any
# other status is final. Kubernetes wants them in ascending order.
RESTART_STATUSES = tuple(sorted((errors.SAVED, errors.PEER_LOST)))
# The longest name of a workload that xpk accepts. JobSet and Kueue make longer
# names of it, which Kubernetes limits to 63 characters.
NAME_CHARS = 40


class LaunchError(errors.UserError):
  """A job cannot be sent, or its engine refused it."""


@dataclasses.dataclass(frozen=True)
class Job:
  """One job: a training, a sweep, or the preparation of data.

  Attributes:
    name: the name by which the engine knows it.
    arguments: the arguments of `bert-jax`, equal on all hosts.
    topology: the TPU slice; None = no TPU.
    num_slices: how many such slices there are.
    settings: the settings of the engine, by the engine's own names.
    local_dir: checkpoint.local_dir of the config; "" = none, or not known.
  """

  name: str
  arguments: tuple[str, ...]
  topology: chips.Topology | None = None
  num_slices: int = 1
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  local_dir: str = ""

  @property
  def command(self) -> tuple[str, ...]:
    """The command that every host runs."""
    return ("bert-jax", *self.arguments)

  @property
  def num_hosts(self) -> int:
    """The number of hosts of a slice; 1 if there is no TPU."""
    return self.topology.num_hosts if self.topology else 1

  @property
  def host_folder(self) -> str:
    """The folder of a host that must outlive a container, or "".

    It is that of checkpoint.local_dir, if that is an absolute path.
    """
    flag = "--config.checkpoint.local_dir="
    flags = [x.removeprefix(flag) for x in self.arguments if x.startswith(flag)]
    folder = self.local_dir or ["", *flags][-1]
    return folder if folder.startswith("/") else ""


def local_dir_of(config: Any) -> str:
  """Returns checkpoint.local_dir of a config, which may be None or lack it."""
  return getattr(getattr(config, "checkpoint", None), "local_dir", None) or ""


def options_of(job: Job, *names: str) -> list[str]:
  """Returns the settings with these names that are given, as options."""
  return [f"--{n}={job.settings[n]}" for n in names if job.settings.get(n)]


def check_name(name: str) -> None:
  """Raises LaunchError for a name that Kubernetes refuses."""
  if len(name) > NAME_CHARS or not re.fullmatch(
    "[a-z]([-a-z0-9]*[a-z0-9])?", name
  ):
    raise LaunchError(
      f"--name={name} is not accepted by Kubernetes; use at most {NAME_CHARS} "
      "lower-case letters, digits and hyphens, beginning with a letter and not "
      f"ending with a hyphen, such as {name_of(name)}"
    )


def name_of(text: str) -> str:
  """Returns a name that Kubernetes accepts, and that differs between texts.

  Example:
    >>> name_of("Run 1")
    't-run-1-2f10fd'
  """
  digest = hashlib.sha256(text.encode()).hexdigest()[:6]
  plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
  plain = plain[: NAME_CHARS - len(digest) - 3].strip("-")
  return f"t-{plain}-{digest}" if plain else f"t-{digest}"


def read_topology(name: str, num_slices: int) -> chips.Topology:
  """Returns the topology of slices that can be had.

  Args:
    name: CHIP:SHAPE or the name of a slice, such as v5e:4x4 or v5litepod-16.
    num_slices: the number of slices.

  Raises:
    LaunchError: the topology is unknown, or there are no such slices.
  """
  try:
    topology = chips.parse_topology(name)
  except ValueError as error:
    raise LaunchError(f"--{error}") from error
  if problem := topology.why_not_offered():
    raise LaunchError(
      f"--topology={name}: there is no such slice in Google Cloud: {problem}"
    )
  if num_slices < 1:
    raise LaunchError(f"--num_slices={num_slices}; it must be 1 or more")
  if num_slices > 1 and topology.num_hosts == 1:
    raise LaunchError(
      f"--num_slices={num_slices}: {topology.name} is a single host, and only "
      "slices of several hosts can be joined; use a larger --topology with "
      "--num_slices=1"
    )
  return topology


def settings_of(
  given: Mapping[str, Any], known: Mapping[str, Any], engine: str
) -> dict[str, Any]:
  """Returns settings with the defaults of those that are not given.

  Args:
    given: values by name.
    known: the default by name; None = the setting is required. A value has the
      type of its default.
    engine: the name of the engine, for messages.

  Raises:
    LaunchError: a name is unknown, a value is wrong, or a required setting is
      missing.
  """
  found = {**known, **check_settings(given, known, engine)}
  if missing := [name for name, value in found.items() if value is None]:
    raise LaunchError(f"engine {engine} needs {shown(missing[0])}")
  return found


def check_settings(
  given: Mapping[str, Any], known: Mapping[str, Any], engine: str
) -> dict[str, Any]:
  """Returns the settings that are given, read; see `settings_of`.

  Raises:
    LaunchError: a name is unknown, or a value is wrong.
  """
  if unknown := sorted(given.keys() - known.keys()):
    raise LaunchError(
      f"engine {engine} has no setting {unknown[0]!r}; its settings are "
      f"{', '.join(sorted(known))}"
    )
  return {n: _read(n, value, known[n]) for n, value in given.items()}


def _read(name: str, value: Any, default: Any) -> Any:
  """Returns a value, which may be text, as what its default is."""
  text = str(value)
  if isinstance(default, bool):
    if text.lower() not in ("true", "false"):
      raise LaunchError(f"{shown(name)}{text} is neither True nor False")
    return text.lower() == "true"
  if isinstance(default, int):
    if not re.fullmatch(r"\d{1,9}", text):
      raise LaunchError(f"{shown(name)}{text} is not a number from 0")
    return int(text)
  if not text:
    raise LaunchError(f"{shown(name)} is empty")
  return text


# The settings that have a flag of their own, whatever the engine calls them.
FLAGS = (
  "image", "cluster", "project", "zone", "queue", "spot", "max_restarts",
)  # fmt: skip


def shown(name: str) -> str:
  """Returns how a user gives a setting, up to its value."""
  return f"--{name}=" if name in FLAGS else f"--set={name}="


def run(
  command: Sequence[str], text: str | None = None, shows: bool = False
) -> str:
  """Runs a program of an engine, and returns its output.

  Args:
    command: the program and its arguments.
    text: what it reads; None = nothing.
    shows: whether the user sees the output while the program runs.

  Raises:
    LaunchError: the program is not installed, or it failed; the message has the
      last lines that it wrote.
  """
  try:
    done = subprocess.run(
      list(command),
      input=text,
      stdin=subprocess.DEVNULL if text is None else None,
      capture_output=not shows,
      text=True,
      check=False,
    )
  except FileNotFoundError as error:
    how = _HOW_TO_INSTALL.get(command[0], "run this on a node of the cluster")
    raise LaunchError(f"{command[0]} is not installed; {how}") from error
  if done.returncode:
    said = _reason(done.stderr or done.stdout or "")
    raise LaunchError(
      f"{shlex.join(command)} ended with status {done.returncode}"
      + (f": {said}" if said else "")
    )
  return done.stdout or ""


def run_all(commands: Sequence[Sequence[str]]) -> None:
  """Runs programs at the same time; the user sees their output.

  Raises:
    LaunchError: one or more failed; the message is that of the first.
  """
  with concurrent.futures.ThreadPoolExecutor(len(commands)) as pool:
    running = [pool.submit(run, words, None, True) for words in commands]
  for one in running:
    one.result()


def _reason(text: str) -> str:
  """Returns the line of an output that says why a program failed."""
  lines = [line.strip() for line in text.strip().splitlines()]
  marked = [x for x in lines if re.match("(?i)error( from|:)", x)]
  return (marked or lines or [""])[-1]


_HOW_TO_INSTALL = {
  "kubectl": "run gcloud components install kubectl, and gcloud container "
  "clusters get-credentials CLUSTER",
  "gcloud": "see cloud.google.com/sdk/docs/install",
  "xpk": "run pip install 'bert_jax[xpk]'",
}
