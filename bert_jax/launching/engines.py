"""The engines: the systems that can run a job on other machines.

An engine is a row. A new one needs a module that describes a job in its terms,
and a row here.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from bert_jax.launching import gke
from bert_jax.launching import jobs
from bert_jax.launching import slurm
from bert_jax.launching import vm
from bert_jax.launching import xpk


@dataclasses.dataclass(frozen=True)
class Engine:
  """A system that runs jobs.

  Attributes:
    flags: the engine's own names of the settings that have a flag, by flag. A
      flag that is not listed is refused.
    render: returns what would be sent, as text; raises LaunchError for a job
      that the engine cannot run.
    send: sends a job, and returns a line about it; None = what `render` returns
      is for a person to type.
    check: raises LaunchError for a setting that is unknown or wrong, of which
      some may be missing.
    status: returns the state of a job.
    logs: returns the command that shows the messages of a job, or None if the
      engine has none.
    stop: returns the commands that end a job, which run at the same time.
    runs_processors: whether it also runs jobs on hosts without a TPU.
    runs_tpus: whether it runs jobs on TPU slices, which a topology names.
    shares_files: whether its hosts see the folders of the machine that sends
      the job; otherwise they see buckets alone.
  """

  flags: Mapping[str, str]
  render: Callable[[jobs.Job], str]
  send: Callable[[jobs.Job], str] | None
  check: Callable[[Mapping[str, Any]], None]
  status: Callable[[jobs.Job], str]
  logs: Callable[[jobs.Job], list[str]] | None
  stop: Callable[[jobs.Job], list[list[str]]]
  runs_processors: bool = False
  runs_tpus: bool = True
  shares_files: bool = False


def _same(*names: str) -> dict[str, str]:
  return {name: name for name in names}


ENGINES: dict[str, Engine] = {
  "gke": Engine(
    _same("image", "queue", "spot", "max_restarts"),
    gke.render, gke.send, gke.check, gke.status, gke.logs, gke.stop,
    runs_processors=True,
  ),
  "xpk": Engine(
    _same("cluster", "project", "zone")
    | {"image": "docker-image", "max_restarts": "max-restarts"},
    xpk.render, xpk.send, xpk.check, xpk.status, None, xpk.stop,
  ),
  "slurm": Engine(
    {}, slurm.render, slurm.send, slurm.check, slurm.status, slurm.logs,
    slurm.stop,
    runs_processors=True, runs_tpus=False, shares_files=True,
  ),
  "vm": Engine(
    _same("image", "project", "zone", "spot", "max_restarts"),
    vm.render, None, vm.check, vm.status, vm.logs, vm.stop,
  ),
}  # fmt: skip
