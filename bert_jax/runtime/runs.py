"""The record of a run, run.json: its config, code and packages."""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from typing import Any

from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import settings
from bert_jax.runtime.settings import Config

# How paths in the workdir begin in its run.json. All others are absolute, but
# in records before release 0.3.0: as they were given, relative to some folder.
_HERE = "{workdir}"

_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain",
    "array_record", "tokenizers", "sentencepiece", "numpy", "scipy",
    "scikit-learn", "seqeval", "safetensors",
)  # fmt: skip

# The keys that may differ between the sessions of a resumed run.
_SESSION_KEYS = (
  "argv", "commit", "dirty", "devices", "resumed", "started", "versions",
)  # fmt: skip


class RunError(errors.UserError):
  """A workdir holds no run, a damaged one, or another one."""


def commit() -> tuple[str | None, bool | None]:
  """Returns the git commit of the package, and whether its code differs.

  Only Python files count: records and tables of runs change nothing.
  """
  folder = os.path.dirname(os.path.abspath(__file__))

  def git(*args):
    return subprocess.run(
      ("git", "-C", folder, *args), capture_output=True, text=True, check=True
    ).stdout.strip()

  try:
    git("ls-files", "--error-unmatch", os.path.basename(__file__))
    changed = git(
      "status", "--porcelain", "--untracked-files=no", "--", ":(top)*.py"
    )
    new = git("ls-files", "--others", "--exclude-standard", ":(top)*.py")
    return git("rev-parse", "HEAD"), bool(changed or new)
  except (OSError, subprocess.CalledProcessError):
    return None, None  # no git, or not in a clone of this package


def code_hash() -> str:
  """Returns the SHA-256 of the names and contents of the package's files."""
  folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  digest = hashlib.sha256()
  for parent, folders, names in os.walk(folder):
    folders.sort()
    for name in sorted(n for n in names if n.endswith(".py")):
      path = os.path.join(parent, name)
      line = f"{os.path.relpath(path, folder)} {files.file_hash(path)}\n"
      digest.update(line.encode())
  return digest.hexdigest()


def describe(config: Config, data_hash: str | None, devices: list[Any]) -> dict:
  """Returns the record of a run, as it is written to run.json.

  Args:
    config: the whole configuration.
    data_hash: the hash of the training data; None = the data were not read.
    devices: the devices of the mesh.
  """
  revision, dirty = commit()
  versions = {"python": platform.python_version()}
  for name in _PACKAGES:
    versions[name] = importlib.metadata.version(name)
  kinds = sorted({d.device_kind for d in devices})
  return {
    "config": settings.map_paths(settings.plain(config), settings.absolute),
    "commit": revision,
    "dirty": dirty,
    "argv": ["bert-jax", *sys.argv[1:]],
    "versions": versions,
    "devices": {
      "platform": devices[0].platform,
      "kind": kinds,
      "count": len(devices),
      "processes": len({d.process_index for d in devices}),
    },
    "data_hash": data_hash,
    "seed": config.seed,
    "started": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
  }


def _stored(path: str, workdir: str) -> str:
  """Returns a path as run.json has it: relative to the workdir if in there."""
  inside = files.absolute(workdir) + os.sep
  if not path.startswith(inside):
    return path
  return os.path.join(_HERE, path.removeprefix(inside))


def _loaded(path: str, workdir: str) -> str:
  """Returns the path that `_stored` was given, if the workdir is here now."""
  first, _, rest = path.partition(os.sep)
  return os.path.join(files.absolute(workdir), rest) if first == _HERE else path


def exists(workdir: str) -> bool:
  """Returns whether a workdir holds a run, which may have no saved step yet."""
  return files.exists(os.path.join(workdir, "run.json"))


def read_run(workdir: str) -> dict:
  """Reads workdir/run.json, and adds keys that are newer than the run.

  Paths in its config are absolute, also if the workdir was moved. Those of runs
  before release 0.3.0 are returned as they were given.

  Raises:
    RunError: there is no run.json, or it is damaged.
  """
  path = os.path.join(workdir, "run.json")
  try:
    with files.reading(path, "r") as f:
      run = json.load(f)
    if not isinstance(run.get("config"), dict) or not isinstance(
      run.get("data_hash"), str
    ):
      raise ValueError("it has no config and data_hash")
    if not isinstance(run.get("sessions", []), list):
      raise ValueError("its sessions are not a list")
    # Records of older releases have no sum.
    if (wanted := run.pop("sha256", None)) not in (None, files.json_hash(run)):
      raise ValueError(
        f"its checksum {wanted!r:.20} does not fit its content; put a copy "
        "back, or take the key sha256 out if it was changed on purpose"
      )
  except FileNotFoundError as error:
    raise RunError(
      f"{workdir} holds no run (no run.json); train one with bert-jax train "
      f"--workdir={workdir}"
    ) from error
  except (ValueError, AttributeError, RecursionError, OSError) as error:
    raise RunError(f"{path} is damaged: {error}") from error
  run["config"] = settings.map_paths(
    run["config"], lambda path: _loaded(path, workdir)
  )
  _add_dropout(run["config"])
  for key in settings.KEYS.values():
    group, _, name = key.name.rpartition(".")
    values = run["config"].get(group) if group else run["config"]
    if key.before is not None and isinstance(values, dict):
      values.setdefault(name, key.before)
  return run


def _add_dropout(config: dict[str, Any]) -> None:
  """Adds the dropout of DeBERTa's heads to the config of an older run.

  Before the key model.conv_size, their input always had dropout.
  """
  model = config.get("model")
  if (
    config.get("objective") == "task"
    and isinstance(model, dict)
    and model.get("family") == "deberta-v2"
    and "conv_size" not in model
  ):
    places = model.get("dropout_places", ("embeddings", "attention", "mlp"))
    model["dropout_places"] = [*places, "head_input"]


def write_run(workdir: str, run: dict) -> None:
  """Writes workdir/run.json atomically.

  Absolute paths in the config that lie in the workdir are written relative to
  it, as {workdir}/PATH.

  A resumed run keeps the time of its first start. Under `sessions` it keeps the
  facts of the sessions before this one, oldest first.
  """
  path = os.path.join(workdir, "run.json")
  if exists(workdir):
    before = read_run(workdir)
    session = {k: before.get(k) for k in _SESSION_KEYS}
    run = run | {
      "started": before.get("started"),
      "resumed": datetime.datetime.now(datetime.UTC).isoformat("T"),
      "sessions": [*before.get("sessions", []), session],
    }
    if changes := [*before.get("changes", []), *run.get("changes", [])]:
      run["changes"] = changes
    for key in ("checksums_since", "init_from_source", "sentence"):
      if key in before:
        run[key] = before[key]
  run = run | {
    "config": settings.map_paths(
      run["config"], lambda path: _stored(path, workdir)
    )
  }
  run = files.without_nan(run)  # what is written is what is hashed
  run |= {"sha256": files.json_hash(run)}
  files.write_json(path, run, indent=1, sort_keys=True)
