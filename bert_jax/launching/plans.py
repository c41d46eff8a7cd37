"""Finds or makes the plan of a training before it is sent.

A plan takes a minute or more to compile. It is kept in a folder of the user,
under a name that depends on the whole config, the slices and the versions of
the compiler and of this package.
"""

from collections.abc import Mapping, Sequence
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from typing import Any

import bert_jax
from bert_jax.launching import jobs
from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import phases
from bert_jax.runtime import settings
from bert_jax.runtime.chips import GIB

_log = logging.getLogger(__name__)

_SHOWN = 5  # keys that a message names at most
# What a plan does not depend on: how often a run is evaluated and saved, and
# the seed.
_IGNORED = ("eval.", "checkpoint.", "seed")


class PlanError(jobs.LaunchError):
  """No plan can be made, or it is not the plan of this training."""


class DoesNotFitError(PlanError):
  """The training does not fit the memory."""

  exit_status = errors.FAILED


def make(
  config: Sequence[str], topology: str, num_slices: int = 1
) -> dict[str, Any]:
  """Makes a plan in a new process, and returns it.

  Only in a new process can jax be configured for the devices of a TPU slice. Of
  a training in phases there is a plan for each; see `total`.

  Args:
    config: the arguments --config and --config.KEY of the training.
    topology: the slice, such as v5e:4x4.
    num_slices: the number of slices.

  Raises:
    PlanError: the plan failed, or the training does not fit the memory.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "plan.json")
    command = [sys.executable, "-m", "bert_jax.main", "plan", *config]
    command += [f"--topology={topology}", f"--output={path}"]
    if num_slices > 1:
      command.append(f"--num_slices={num_slices}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    paths = sorted(os.path.join(folder, name) for name in os.listdir(folder))
    found = [files.read_json(one) for one in paths if one.endswith(".json")]
    # Plans are also written where a phase does not fit.
    status = 0 if all(plan["fits"] for plan in found) else errors.FAILED
    if not found or done.returncode != status:
      lines = done.stderr.strip().splitlines()
      raise PlanError(lines[-1] if lines else f"status {done.returncode}")
    return check_fits(total(found))


# What adds up over the phases of a training.
_SUMS = ("total_steps", "predicted_hours", "predicted_chip_hours")


def total(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Returns the plan of a training from those of its phases.

  It is that of the phase that needs the most memory, or that does not fit, with
  the steps and hours of all.

  Args:
    found: the plans of the phases.
  """
  worst = max(found, key=lambda p: (not p["fits"], p["hbm_bytes_per_device"]))
  sums = {
    name: sum(plan[name] for plan in found)
    for name in _SUMS
    if all(name in plan for plan in found)
  }
  lost = {name for name in _SUMS if name not in sums}
  kept = {name: value for name, value in worst.items() if name not in lost}
  return kept | sums | {"num_phases": len(found)}


def check_fits(plan: dict[str, Any]) -> dict[str, Any]:
  """Returns a plan; raises DoesNotFitError if it does not fit."""
  if not plan["fits"]:
    used, available = plan["hbm_bytes_per_device"], plan["hbm_available_bytes"]
    raise DoesNotFitError(
      f"the training does not fit the memory of {plan['topology']}: it needs "
      f"{used / GIB:.2f} GiB a device of {available / GIB:.2f}; bert-jax plan "
      "says what takes the memory, and with --search=batch which batch fits"
    )
  return plan


def find_or_make(
  arguments: Sequence[str], config: Any, topology: str, num_slices: int
) -> tuple[dict[str, Any], str]:
  """Returns the plan of a training, and where it comes from.

  Args:
    arguments: the arguments --config and --config.KEY of the training.
    config: the config that they name.
    topology: the slice, such as v5e:4x4.
    num_slices: the number of slices.

  Raises:
    PlanError: as for `make`, or the compiler is not installed.
  """
  if not importlib.util.find_spec("libtpu"):
    raise PlanError(
      "the plan of the training needs libtpu, which is not installed; run pip "
      "install 'bert_jax[tpu]' (700 MB; no TPU is needed), or give --plan=none "
      "to send the job without knowing whether it fits"
    )
  name = f"{_key(config, topology, num_slices)}.json"
  path = os.path.join(folder(), name)
  if files.exists(path):
    return check_fits(files.read_json(path)), f"found in {path}"
  plan = make(arguments, topology, num_slices)
  files.make_folders(folder())
  files.write_json(path, plan, indent=2)
  return plan, f"made now, and kept in {path}"


def folder() -> str:
  """Returns the folder that keeps plans."""
  cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return os.path.join(cache, "bert_jax", "plans")


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the values of a plain config, by key, that a plan depends on."""
  flat = settings.flatten(config)
  return {k: v for k, v in flat.items() if not k.startswith(_IGNORED)}


def _key(config: Any, topology: str, num_slices: int) -> str:
  """Returns a name for the plan of a config on slices."""
  facts = {
    "config": _facts(settings.plain(config)),
    "has_all_phases": True,
    "topology": topology,
    "num_slices": num_slices,
    "version": bert_jax.__version__,
  } | {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
  text = files.to_json(facts, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:20]


def read(
  path: str, topology: str, num_slices: int, config: Any = None
) -> dict[str, Any]:
  """Returns the plan in a file that `bert-jax plan --output` wrote.

  Args:
    path: the file.
    topology: the slice of the job.
    num_slices: the number of its slices.
    config: the config of the training; None = it is not known.

  Raises:
    PlanError: the file holds no plan, or one for other slices, or the training
      does not fit.
  """
  found = phases.read(config, "") if config is not None else []
  stem, ending = os.path.splitext(path)
  rest = [f"{stem}-{phase.name}{ending}" for phase in found[1:]]
  plans = [_read_one(one) for one in (path, *rest)]
  for plan, phase in zip(plans, found, strict=bool(found)):
    _compare(path, plan, settings.plain(phase.planned))
  plan = total(plans)
  given = (plan["topology"], plan["num_slices"])
  if given != (topology, num_slices):
    raise PlanError(
      f"--plan={path} is for {given[1]} x {given[0]}, and the job is for "
      f"{num_slices} x {topology}; give the plan of that, or --plan=auto"
    )
  return check_fits(plan)


def _read_one(path: str) -> dict[str, Any]:
  """Returns the plan of one phase; raises PlanError."""
  try:
    plan = files.read_json(path)
  except FileNotFoundError as error:
    raise PlanError(
      f"there is no plan {path}; bert-jax plan --output writes it, a file for "
      "each phase of the training"
    ) from error
  if not isinstance(plan, dict) or "fits" not in plan:
    raise PlanError(f"--plan={path} is no file of bert-jax plan --output")
  return plan


def _compare(
  path: str, plan: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
  """Warns if a plan is for another config than that of the job."""
  planned, wanted = _facts(plan.get("config", {})), _facts(config)
  differing = [
    f"{key}={planned[key]} (in the job {wanted[key]})"
    for key in sorted(planned.keys() & wanted.keys())
    if planned[key] != wanted[key] and not _is_place(key)
  ]
  if differing:
    _log.warning(
      "--plan=%s is for another config, so that it does not say whether this "
      "one fits: %s",
      path,
      ", ".join(differing[:_SHOWN]),
    )


def _is_place(key: str) -> bool:
  """Returns whether a key is a path, which may be another on the hosts."""
  return key in settings.KEYS and settings.KEYS[key].is_path


def describe(plan: Mapping[str, Any]) -> str:
  """Returns the memory, hours and chip-hours of a plan, in a few lines."""
  used, available = plan["hbm_bytes_per_device"], plan["hbm_available_bytes"]
  num_phases = plan.get("num_phases", 1)
  of_phase = (
    "" if num_phases == 1 else (f", in the largest of {num_phases} phases")
  )
  lines = [
    f"memory: {used / GIB:.2f} of {available / GIB:.2f} GiB a device{of_phase}",
    f"a step: {plan['predicted_step_secs'] * 1e3:,.1f} ms, predicted; "
    f"{plan['predicted_tokens_per_sec']:,.0f} tokens/s",
  ]
  crossing = sum(
    row["bytes_sent"] for row in plan["collectives"] if row["links"] == "DCN"
  )
  if plan["num_slices"] > 1:
    lines.append(f"between slices: {crossing / 1e6:,.1f} MB a device and step")
  if "predicted_hours" in plan:
    lines.append(
      f"{plan['total_steps']:,} steps: {plan['predicted_hours']:,.2f} hours on "
      f"{plan['num_chips']} chips, {plan['predicted_chip_hours']:,.2f} "
      "chip-hours; times the price of a chip-hour that is the cost, without "
      "evaluating, saving, compiling and waiting"
    )
  else:
    lines.append("the number of steps is not known without the examples")
  return "\n".join(lines)
