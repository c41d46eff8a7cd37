"""What a run writes down: run.json, metrics.jsonl, TensorBoard, the console."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import secrets
import socket
import struct
import subprocess
import sys
import tempfile
import time
from typing import Any

from bert_jax.runtime import files
from bert_jax.runtime import settings
from bert_jax.runtime.settings import Config

_log = logging.getLogger(__name__)


_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain",
    "array_record", "tokenizers", "sentencepiece", "numpy", "scipy",
    "scikit-learn", "seqeval", "safetensors",
)  # fmt: skip

# What may differ between the sessions of a run that was stopped and went on.
_SESSION_KEYS = (
  "argv", "commit", "dirty", "devices", "resumed", "started", "versions",
)  # fmt: skip


class RunError(ValueError):
  """The workdir does not fit the run."""


def to_json(value: Any, **kwargs: Any) -> str:
  """JSON as other programs read it: a number that is not finite is null.

  Args:
    value: of dicts, lists and what `json.dumps` takes.
    **kwargs: for `json.dumps`.
  """
  return json.dumps(_finite(value), allow_nan=False, **kwargs)


def _finite(value: Any) -> Any:
  """A copy in which None stands for NaN and infinity."""
  if isinstance(value, Mapping):
    return {k: _finite(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(v) for v in value]
  is_odd = isinstance(value, float) and not math.isfinite(value)
  return None if is_odd else value


def commit() -> tuple[str | None, bool | None]:
  """The git commit the package runs from, and whether its code differs.

  Only Python counts: records and tables of earlier runs change nothing.
  """
  folder = os.path.dirname(os.path.abspath(__file__))

  def git(*args):
    return subprocess.run(
      ("git", "-C", folder, *args), capture_output=True, text=True, check=True
    ).stdout.strip()

  try:
    changed = git(
      "status", "--porcelain", "--untracked-files=no", "--", ":(top)*.py"
    )
    new = git("ls-files", "--others", "--exclude-standard", ":(top)*.py")
    return git("rev-parse", "HEAD"), bool(changed or new)
  except (OSError, subprocess.CalledProcessError):
    return None, None  # installed from a package, or no git


def code_hash() -> str:
  """SHA-256 of the package's own Python files, by name."""
  folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  digest = hashlib.sha256()
  for parent, folders, names in os.walk(folder):
    folders.sort()
    for name in sorted(n for n in names if n.endswith(".py")):
      path = os.path.join(parent, name)
      line = f"{os.path.relpath(path, folder)} {file_hash(path)}\n"
      digest.update(line.encode())
  return digest.hexdigest()


def describe(config: Config, data_hash: str | None, devices: list[Any]) -> dict:
  """What makes a run what it is.

  Args:
    config: the whole configuration.
    data_hash: of what it trains on; None = not looked at.
    devices: of the mesh.
  """
  revision, dirty = commit()
  versions = {"python": platform.python_version()}
  for name in _PACKAGES:
    versions[name] = importlib.metadata.version(name)
  kinds = sorted({d.device_kind for d in devices})
  return {
    "config": settings.plain(config),
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


def check_workdir(
  workdir: str, run: dict, free_keys: tuple[str, ...] = ()
) -> None:
  """Refuses to go on in the workdir of another run.

  Args:
    workdir: of the run.
    run: from `describe`, what is asked for.
    free_keys: names of keys that may differ, beside those that a resumed run
      may change.

  Raises:
    RunError: run.json there names another config or other data; says what
      differs.
  """
  path = os.path.join(workdir, "run.json")
  if not os.path.exists(path):
    for name in ("checkpoints", "best"):
      folder = os.path.join(workdir, name)
      if os.path.isdir(folder) and os.listdir(folder):
        raise RunError(
          f"--workdir={workdir} holds {name} but no run.json that says of what "
          "run; give another --workdir, or put its run.json back"
        )
    return
  before = read_run(workdir)
  old, new = (settings.flatten(r["config"]) for r in (before, run))
  differs = [
    f"{k}: {old[k]!r} there, {new.get(k)!r} asked"
    # A key that came later, and does not say what was before, changes nothing.
    for k in sorted(settings.names("weights", "run") & old.keys())
    if old[k] != new.get(k) and k not in free_keys
  ]
  if run["data_hash"] not in (None, before["data_hash"]):
    differs.append(
      f"data: {before['data_hash'][:12]} there, {run['data_hash'][:12]} now"
    )
  if differs:
    raise RunError(
      f"--workdir={workdir} holds another run ({'; '.join(differs)}). Give "
      "another --workdir to start anew, or those values to go on"
    )


def other_code(workdir: str, run: dict) -> str:
  """What differs in the code between a run and who goes on with it, or "".

  Args:
    workdir: of the run.
    run: from `describe`.
  """
  if not os.path.exists(os.path.join(workdir, "run.json")):
    return ""
  before = read_run(workdir)
  pairs = {"commit": (before.get("commit"), run["commit"])}
  old, new = before.get("versions") or {}, run["versions"]
  pairs |= {
    k: (old.get(k), new.get(k)) for k in sorted(old.keys() | new.keys())
  }
  return ", ".join(
    f"{name} {str(a)[:12]} there, {str(b)[:12]} here"
    for name, (a, b) in pairs.items()
    if a != b
  )


def read_run(workdir: str) -> dict:
  """Reads workdir/run.json; its config has the keys that came later.

  Raises:
    RunError: there is none, or it is damaged.
  """
  path = os.path.join(workdir, "run.json")
  try:
    with open(path, encoding="utf-8") as f:
      run = json.load(f)
    if not isinstance(run.get("config"), dict) or not isinstance(
      run.get("data_hash"), str
    ):
      raise ValueError("it has no config and data_hash")
    if not isinstance(run.get("sessions", []), list):
      raise ValueError("its sessions are no list")
    # Records of older releases have no sum.
    if (wanted := run.pop("sha256", None)) not in (None, _digest(run)):
      raise ValueError(
        f"it is not what was written ({wanted!r:.20}); put a copy back, or "
        "take the key sha256 out if it was changed on purpose"
      )
  except FileNotFoundError as error:
    raise RunError(
      f"{workdir} holds no run (no run.json); train one with --mode=train "
      f"--workdir={workdir}"
    ) from error
  except (ValueError, AttributeError, RecursionError, OSError) as error:
    raise RunError(f"{path} is damaged: {error}") from error
  for key in settings.KEYS.values():
    group, _, name = key.name.rpartition(".")
    if key.before is not None and isinstance(run["config"].get(group), dict):
      run["config"][group].setdefault(name, key.before)
  return run


def _digest(run: dict) -> str:
  """SHA-256 of what a record says, however it is laid out."""
  return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def write_run(workdir: str, run: dict) -> None:
  """Writes workdir/run.json in one piece.

  A run that goes on keeps when it first started, and under `sessions` what the
  sessions before this one ran with, oldest first.
  """
  path = os.path.join(workdir, "run.json")
  if os.path.exists(path):
    before = read_run(workdir)
    session = {k: before.get(k) for k in _SESSION_KEYS}
    run = run | {
      "started": before.get("started"),
      "resumed": datetime.datetime.now(datetime.UTC).isoformat("T"),
      "sessions": [*before.get("sessions", []), session],
    }
    if "checksums_since" in before:
      run["checksums_since"] = before["checksums_since"]
  run = _finite(run)  # what is written is what is hashed
  run |= {"sha256": _digest(run)}
  files.write_text(path, to_json(run, indent=1, sort_keys=True) + "\n")


@contextlib.contextmanager
def lock(workdir: str) -> Iterator[None]:
  """A context in which no other process of this machine may have the workdir.

  The lock ends with the process, however that ends.

  Raises:
    RunError: another process has it.
    OSError: nothing can be written there.
  """
  path = os.path.join(workdir, ".lock")
  with files.open_lock(path) as file:
    try:
      files.take_lock(file)
    except BlockingIOError as error:
      holder = files.describe_process(file.read())
      raise RunError(
        f"--workdir={workdir} is in use by {holder}; wait for it, stop it, or "
        "give another --workdir"
      ) from error
    except OSError as error:  # a file system without locks
      _log.warning("%s cannot be locked (%s): start no second job", path, error)
    else:
      with files.naming(path):
        file.truncate(0)
        file.write(files.process_name(os.getpid()))
        file.flush()
    # Better now than after an hour of compiling.
    tempfile.TemporaryFile(dir=workdir).close()
    yield


def file_hash(path: str) -> str:
  """SHA-256 of a file."""
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


class MetricsLog:
  """Appends to metrics.jsonl and TensorBoard: one line a step and kind."""

  def __init__(
    self,
    workdir: str,
    start_step: int,
    tensorboard: bool,
    config: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = (),
  ):
    """Opens the log and drops what was written after `start_step`.

    So a run that was killed and goes on has no step twice and none missing.

    Args:
      workdir: of the run.
      start_step: the step that the run goes on from.
      tensorboard: also write event files, if tensorboardX is installed.
      config: of the run, as in run.json, for TensorBoard's table of runs.
      metrics: that the table is to show.
    """
    path = os.path.join(workdir, "metrics.jsonl")
    self._bad_steps = os.path.join(workdir, "bad_steps.jsonl")
    _keep_until(self._bad_steps, start_step)
    self._last = _keep_until(path, start_step)
    self._file = open(path, "a", encoding="utf-8")
    self._board = None
    if tensorboard:
      folder = os.path.join(workdir, "tensorboard")
      self._board = _Board(folder, start_step + 1)
      if config is not None:
        self._board.write_hparams(config, metrics)

  def has(self, step: int, prefix: str) -> bool:
    """Whether the log had a line of the step that it was opened at.

    Args:
      step: the start step.
      prefix: of a key in the line, such as "eval/".
    """
    return any(
      row["step"] == step and any(key.startswith(prefix) for key in row)
      for row in self._last
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one line; keys such as train/loss."""
    with files.naming(self._file.name):
      self._file.write(to_json({"step": step} | dict(values)) + "\n")
      self._file.flush()
    if self._board:
      self._board.write(step, values)

  def write_bad_step(self, step: int, facts: Mapping[str, Any]) -> None:
    """Writes a line of bad_steps.jsonl, which is there only if there is one."""
    with files.naming(self._bad_steps):
      with open(self._bad_steps, "a", encoding="utf-8") as f:
        f.write(to_json({"step": step} | dict(facts)) + "\n")

  def close(self) -> None:
    """Flushes to disk."""
    with contextlib.ExitStack() as stack:
      if self._board:
        stack.callback(self._board.close)
      stack.enter_context(files.naming(self._file.name))
      stack.callback(self._file.close)
      self._file.flush()
      os.fsync(self._file.fileno())


class _Board:
  """Writes scalars for TensorBoard.

  Not by tensorboardX.SummaryWriter: its thread dies of a full disk, and who
  gives it a scalar then waits for ever.
  """

  def __init__(self, folder: str, first_step: int):
    """Opens a file of its own.

    Args:
      folder: with the files of the sessions before.
      first_step: what they say of it and of later steps does not count.
    """
    from tensorboardX import record_writer  # slow: only where it is used
    from tensorboardX.proto import event_pb2

    self._crc, self._proto = record_writer.masked_crc32c, event_pb2
    os.makedirs(folder, exist_ok=True)
    name = f"{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
    name = f"events.out.tfevents.{name}.{secrets.token_hex(4)}"
    self._file = open(os.path.join(folder, name), "xb")  # follows no link
    self._add(file_version="brain.Event:2")
    log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(step=first_step, session_log=log)

  def _add(self, **fields: Any) -> None:
    event = self._proto.Event(wall_time=time.time(), **fields)
    data = event.SerializeToString()
    header = struct.pack("<Q", len(data))
    for part in (header, data):
      self._file.write(part + struct.pack("<I", self._crc(part)))

  def write_hparams(
    self, config: Mapping[str, Any], metrics: Sequence[str]
  ) -> None:
    """Writes what TensorBoard shows runs by, one beside the other.

    Args:
      config: of the run, as in run.json.
      metrics: names of scalars.
    """
    from tensorboardX import summary

    shown = settings.names("weights", "run")  # what makes a run what it is
    values = {
      k: v
      for k, v in settings.flatten(config).items()
      if k in shown and isinstance(v, bool | int | float | str)
    }
    found = summary.hparams(values, dict.fromkeys(metrics))
    with files.naming(self._file.name):
      for part in found[:2]:  # the third says that the run has ended
        self._add(summary=part)
      self._file.flush()

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes the scalars of a step."""
    found = [{"tag": k, "simple_value": v} for k, v in values.items()]
    with files.naming(self._file.name):
      self._add(step=step, summary={"value": found})
      self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    with files.naming(self._file.name):
      self._file.close()


def _keep_until(path: str, step: int) -> list[dict[str, Any]]:
  """Keeps the lines of metrics.jsonl up to a step; returns those of it."""
  if not os.path.exists(path):
    return []
  kept, last = [], []
  with open(path, "rb") as f:
    for line in f:
      try:
        row = _parse_row(line)
      except (ValueError, RecursionError):
        _log.warning("%s: dropped a broken line: %.80r", path, line)
        continue
      if row["step"] == step:
        last.append(row)
      if row["step"] <= step:
        kept.append(line.rstrip(b"\r\n") + b"\n")  # the last may have no end
  with files.writing(path) as f:
    f.writelines(kept)
  return last


def refuse_converted(workdir: str) -> None:
  """Raises RunError if a workdir holds weights that were never trained here."""
  if "converted_from" in read_run(workdir):
    raise RunError(
      f"{workdir} holds converted weights, not a run; give a new --workdir and "
      f"the weights by --config, as in configs/finetune.py:task=TASK,"
      f"from={workdir}"
    )


def train_secs(rows: Sequence[Mapping[str, Any]]) -> float:
  """Seconds that the steps of a run took, by the speeds it logged.

  Args:
    rows: of metrics.jsonl.
  """
  total, before = 0.0, 0
  for row in rows:
    if row.get("train/steps_per_sec"):
      total += (row["step"] - before) / row["train/steps_per_sec"]
      before = row["step"]
  return total


def read_metrics(workdir: str) -> list[dict]:
  """All lines of workdir/metrics.jsonl; a metric that is null is NaN."""
  path = os.path.join(workdir, "metrics.jsonl")
  rows: list[dict] = []
  try:
    with open(path, "rb") as f:
      for line in f:
        rows.append(_parse_row(line))
  except OSError as error:
    raise RunError(f"{path} cannot be read: {error}") from error
  except (ValueError, RecursionError) as error:
    raise RunError(f"{path}:{len(rows) + 1} cannot be read: {error}") from error
  return rows


def _parse_row(line: bytes) -> dict:
  """A line of metrics.jsonl: an object with the number of its step."""
  row = json.loads(line)
  if not isinstance(row, dict) or type(row.get("step")) is not int:
    raise ValueError("it has no step")
  return {k: math.nan if v is None else v for k, v in row.items()}
