"""The log of a run: metrics.jsonl, bad_steps.jsonl and TensorBoard."""

from collections.abc import Mapping, Sequence
import contextlib
import json
import logging
import math
import os
import secrets
import socket
import struct
import time
from typing import Any

from bert_jax.runtime import files
from bert_jax.runtime import runs
from bert_jax.runtime import settings

_log = logging.getLogger(__name__)


class MetricsLog:
  """Appends a line for each kind of metrics of a step, also for TensorBoard."""

  def __init__(
    self,
    workdir: str,
    start_step: int,
    tensorboard: bool,
    config: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = (),
  ):
    """Opens the log and drops the lines after `start_step`.

    A run that was killed and is resumed thus has no step twice.

    Args:
      workdir: the folder of the run.
      start_step: the step from which the run is resumed.
      tensorboard: whether to write event files, too; needs tensorboardX.
      config: the config as in run.json, for TensorBoard's table of runs.
      metrics: the names of the metrics that this table is to show.
    """
    self._workdir = workdir
    path = os.path.join(workdir, "metrics.jsonl")
    self._bad_steps = os.path.join(workdir, "bad_steps.jsonl")
    _keep_until(self._bad_steps, start_step)
    self._last = _keep_until(path, start_step)
    self._file = files.Appended(path)
    self._board = None
    if tensorboard:
      folder = os.path.join(workdir, "tensorboard")
      self._board = _Board(folder, start_step + 1)
      if config is not None:
        self._board.write_hparams(config, metrics)

  def has(self, step: int, prefix: str) -> bool:
    """Returns whether the log had a line of the step that it was opened at.

    Args:
      step: the start step.
      prefix: the first part of a key in the line, such as "eval/".
    """
    return any(
      row["step"] == step and any(key.startswith(prefix) for key in row)
      for row in self._last
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one line.

    Args:
      step: the number of updates.
      values: the metrics, by names such as train/loss.
    """
    row = files.to_json({"step": step} | dict(values)) + "\n"
    self._file.write(row.encode())
    if self._board:
      self._board.write(step, values)

  def write_bad_step(self, step: int, facts: Mapping[str, Any]) -> None:
    """Writes a line to bad_steps.jsonl, and creates the file if need be."""
    row = files.to_json({"step": step} | dict(facts)) + "\n"
    files.append(self._bad_steps, row)

  def sync(self) -> None:
    """Waits until all lines can be read by other processes."""
    self._file.sync()
    files.sync(self._bad_steps)

  def close(self) -> None:
    """Flushes to disk."""
    with contextlib.ExitStack() as stack:
      if self._board:
        stack.callback(self._board.close)
      stack.callback(self._file.close)
      stack.callback(files.sync, self._workdir)
      self._file.sync(to_disk=True)


class _Board:
  """Writes scalars for TensorBoard.

  tensorboardX.SummaryWriter is not used: its thread dies if the disk is full,
  and writing a scalar then blocks forever.
  """

  def __init__(self, folder: str, first_step: int):
    """Creates a new event file.

    Args:
      folder: the folder, which also holds the files of earlier sessions.
      first_step: TensorBoard ignores the values of this step and of later ones
        in those files.
    """
    from tensorboardX import record_writer  # slow: only where it is used
    from tensorboardX.proto import event_pb2

    self._crc, self._proto = record_writer.masked_crc32c, event_pb2
    files.make_folders(folder)
    name = f"{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
    name = f"events.out.tfevents.{name}.{secrets.token_hex(4)}"
    self._file = files.Appended(os.path.join(folder, name), is_new=True)
    self._add(file_version="brain.Event:2")
    log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(step=first_step, session_log=log)

  def _add(self, **fields: Any) -> None:
    event = self._proto.Event(wall_time=time.time(), **fields)
    data = event.SerializeToString()
    header = struct.pack("<Q", len(data))
    self._file.write(
      b"".join(p + struct.pack("<I", self._crc(p)) for p in (header, data))
    )

  def write_hparams(
    self, config: Mapping[str, Any], metrics: Sequence[str]
  ) -> None:
    """Writes the settings by which TensorBoard compares runs.

    These are the keys of the run that have another value than their default.

    Args:
      config: the config of the run, as in run.json.
      metrics: the names of the scalars to compare.
    """
    from tensorboardX import summary

    shown = settings.names("weights", "run")  # the keys that define a run
    values = {
      k: v
      for k, v in settings.flatten(config).items()
      if k in shown
      and isinstance(v, bool | int | float | str)
      and v != settings.KEYS[k].default
    }
    found = summary.hparams(values, dict.fromkeys(metrics))
    for part in found[:2]:  # the third marks the end of the run
      self._add(summary=part)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes the scalars of a step."""
    found = [{"tag": k, "simple_value": v} for k, v in values.items()]
    self._add(step=step, summary={"value": found})

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def _keep_until(path: str, step: int) -> list[dict[str, Any]]:
  """Drops the lines of a file after a step; returns the lines of that step."""
  if not files.exists(path):
    return []
  kept, last = [], []
  with files.reading(path) as f:
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


def train_secs(rows: Sequence[Mapping[str, Any]]) -> float:
  """Returns the seconds that the steps of a run took, from the logged speeds.

  Args:
    rows: the lines of metrics.jsonl.
  """
  total, before = 0.0, 0
  for row in rows:
    if row.get("train/steps_per_sec"):
      total += (row["step"] - before) / row["train/steps_per_sec"]
      before = row["step"]
  return total


def scores_at(rows: Sequence[Mapping[str, Any]], step: int) -> dict[str, float]:
  """Returns the metrics eval/NAME of a step; {} if it was not evaluated.

  Args:
    rows: the lines of metrics.jsonl.
    step: the number of updates.
  """
  return {
    key: value
    for row in rows
    if row["step"] == step
    for key, value in row.items()
    if key.startswith("eval/")
  }


def read_metrics(workdir: str) -> list[dict]:
  """Returns the lines of workdir/metrics.jsonl, with NaN for null.

  A last line that is still being written, without its end, is left out.
  """
  path = os.path.join(workdir, "metrics.jsonl")
  rows: list[dict] = []
  try:
    with files.reading(path) as f:
      for line in f:
        if line.endswith(b"\n"):
          rows.append(_parse_row(line))
  except (OSError, ValueError, RecursionError) as error:
    raise runs.RunError(
      f"{path}, line {len(rows) + 1}, cannot be read: {error}"
    ) from error
  return rows


def _parse_row(line: bytes) -> dict:
  """Reads a line of metrics.jsonl, which must have the number of a step."""
  row = json.loads(line)
  if not isinstance(row, dict) or type(row.get("step")) is not int:
    raise ValueError("it has no step")
  return {k: math.nan if v is None else v for k, v in row.items()}
