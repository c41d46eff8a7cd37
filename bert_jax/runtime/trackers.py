"""Sends the metrics of a run to trackers: Weights & Biases, MLflow, MLPerf.

`train.trackers` names rows of `TRACKERS`. A row opens a run of its service and
returns how to log to it. To add a tracker, add a row.

Each tracker works in a thread of its own, so that the training never waits for
a network. If a tracker fails, one warning says so, and the training goes on
without it. WORKDIR/trackers.json keeps the id that each service gave the run,
so that a resumed run is continued there.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib.util
import logging
import os
import queue
import tempfile
import threading
import time
from typing import Any
import uuid

from bert_jax.runtime import errors
from bert_jax.runtime import files
from bert_jax.runtime import mlperf
from bert_jax.runtime import settings

_log = logging.getLogger(__name__)

_PROJECT = "bert_jax"  # the project or experiment, if the user names none
_FILE = "trackers.json"
_MOST_SECS_TO_END = 60.0
_PARAMS_A_CALL = 100  # the limit of MLflow


class TrackersError(errors.UserError):
  """A tracker is not known, or its package is not installed."""


@dataclasses.dataclass(frozen=True)
class Opened:
  """A run of a service.

  Attributes:
    id: the id by which the service knows the run.
    log: (step, metrics) -> None.
    finish: ends the run of the service.
  """

  id: str
  log: Callable[[int, Mapping[str, float]], None]
  finish: Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Tracker:
  """A service that keeps the metrics of runs.

  Attributes:
    package: the name by which Python imports its package; "" = it needs none.
    extra: the extra of bert_jax that installs it.
    open: (workdir, id of an earlier session or "", config) -> its run.
  """

  package: str
  extra: str
  open: Callable[[str, str, Mapping[str, Any]], Opened]


def _open_wandb(workdir: str, run_id: str, config: Mapping[str, Any]) -> Opened:
  """Opens a run of Weights & Biases, whose files go to WORKDIR/wandb.

  Those of a workdir in a bucket go to a temporary folder of this machine.

  Its own variables, such as WANDB_PROJECT and WANDB_MODE=offline, apply.
  """
  import wandb

  run_id = run_id or uuid.uuid4().hex[:12]
  run = wandb.init(
    project=os.environ.get("WANDB_PROJECT", _PROJECT),
    name=_name(workdir),
    id=run_id,
    resume="allow",
    dir=tempfile.mkdtemp() if files.is_remote(workdir) else workdir,
    config=dict(config),
    reinit="create_new",
    settings=wandb.Settings(silent=True, console="off"),
  )
  # A killed run repeats steps, which are not allowed to go back there.
  run.define_metric("*", step_metric="step")
  return Opened(
    run_id, lambda step, row: run.log({"step": step, **row}), run.finish
  )


def _open_mlflow(
  workdir: str, run_id: str, config: Mapping[str, Any]
) -> Opened:
  """Opens a run of MLflow.

  Its own variables, such as MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME,
  apply.
  """
  import mlflow
  from mlflow import entities

  client = mlflow.MlflowClient()
  if run_id:
    client.update_run(run_id, status="RUNNING")
  else:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
    experiment = client.get_experiment_by_name(name)
    number = (
      experiment.experiment_id if experiment else client.create_experiment(name)
    )
    run_id = client.create_run(number, run_name=_name(workdir)).info.run_id
    params = [
      entities.Param(key, str(value))
      for key, value in settings.flatten(config).items()
      if value is not None
    ]
    for first in range(0, len(params), _PARAMS_A_CALL):
      client.log_batch(run_id, params=params[first : first + _PARAMS_A_CALL])

  def log(step, row):
    now = int(time.time() * 1000)
    found = [entities.Metric(k, v, now, step) for k, v in row.items()]
    client.log_batch(run_id, metrics=found)

  return Opened(run_id, log, lambda: client.set_terminated(run_id))


def _open_mlperf(
  workdir: str, run_id: str, config: Mapping[str, Any]
) -> Opened:
  """Begins WORKDIR/mlperf.log; a run that was resumed has none."""
  del run_id
  log = mlperf.Log(workdir, config)
  return Opened(mlperf.FILE, log.write, log.finish)


TRACKERS = {
  "wandb": Tracker("wandb", "wandb", _open_wandb),
  "mlflow": Tracker("mlflow", "mlflow", _open_mlflow),
  "mlperf": Tracker("", "", _open_mlperf),
}


def _name(workdir: str) -> str:
  return os.path.basename(files.absolute(workdir))


def check(names: Sequence[str]) -> None:
  """Raises TrackersError for a tracker that is not known or not installed."""
  for name in names:
    if name not in TRACKERS:
      raise TrackersError(
        f"train.trackers names {name!r}; it may name {', '.join(TRACKERS)}"
      )
    row = TRACKERS[name]
    if row.package and not importlib.util.find_spec(row.package):
      raise TrackersError(
        f"train.trackers names {name}, whose package {row.package} is not "
        f"installed: pip install 'bert_jax[{row.extra}]', or leave the key out"
      )


class Trackers:
  """The trackers of a run."""

  def __init__(
    self, names: Sequence[str], workdir: str, config: Mapping[str, Any]
  ):
    """Begins to open them, and does not wait.

    Args:
      names: rows of `TRACKERS`.
      workdir: the folder of the run, which must exist.
      config: the whole config, as in run.json.
    """
    lock = threading.Lock()
    self._workers = [_Worker(name, workdir, config, lock) for name in names]

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Hands over the metrics of a step; does not wait."""
    for worker in self._workers:
      worker.rows.put((step, dict(values)))

  def close(self) -> None:
    """Sends what is left, for at most a minute."""
    for worker in self._workers:
      worker.rows.put(None)
    until = time.monotonic() + _MOST_SECS_TO_END
    for worker in self._workers:
      worker.join(max(until - time.monotonic(), 0.0))
      if worker.is_alive():
        _log.warning("%s has not taken all metrics; giving up", worker.name)


class _Worker(threading.Thread):
  """Opens a tracker, and logs to it what is put into `rows`."""

  def __init__(
    self,
    name: str,
    workdir: str,
    config: Mapping[str, Any],
    lock: threading.Lock,
  ):
    super().__init__(name=name, daemon=True)
    self.rows: queue.SimpleQueue = queue.SimpleQueue()
    self._workdir, self._config, self._lock = workdir, config, lock
    self.start()

  def run(self) -> None:
    row = ()
    try:
      opened = self._open()
      while (row := self.rows.get()) is not None:
        opened.log(*row)
      opened.finish()
    except Exception as error:
      _log.warning(
        "%s fails, and the run goes on without it: %s",
        self.name, errors.first_line(error),
      )  # fmt: skip
      while row is not None:  # so that memory does not fill up
        row = self.rows.get()

  def _open(self) -> Opened:
    path = os.path.join(self._workdir, _FILE)
    earlier = files.read_json(path, {}).get(self.name, "")
    opened = TRACKERS[self.name].open(self._workdir, earlier, self._config)
    with self._lock:  # two trackers may open at the same time
      known = files.read_json(path, {}) | {self.name: opened.id}
      files.write_json(path, known, indent=1)
    return opened
