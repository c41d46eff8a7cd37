"""Writes the log of a run in the format of MLPerf Training.

`train.trackers=mlperf` appends lines such as

  :::MLLOG {"namespace": "", "time_ms": ..., "event_type": "POINT_IN_TIME",
            "key": "seed", "value": 1, "metadata": {...}}

to WORKDIR/mlperf.log, for the benchmark "bert", whose samples stand for epochs.
The clock of the result starts when this log is opened, so that it also counts
the compiling, which the rules let a submission leave out; an evaluation is
logged when its result is known. What the program cannot know comes from the
variables MLPERF_SUBMISSION_ORG, MLPERF_SUBMISSION_PLATFORM,
MLPERF_SUBMISSION_DIVISION ("open" by default) and MLPERF_SUBMISSION_STATUS.

Source: mlcommons/logging, mlperf_logging/mllog and
  compliance_checker/training_5.0.0
"""

from collections.abc import Mapping
import inspect
import json
import os
import time
from typing import Any

from bert_jax.runtime import early_stopping
from bert_jax.runtime import errors
from bert_jax.runtime import files

FILE = "mlperf.log"
METRIC = "eval/mlm_accuracy"  # masked_lm_accuracy of the reference
_POINT, _START, _END = "POINT_IN_TIME", "INTERVAL_START", "INTERVAL_END"


class MlperfError(errors.UserError):
  """A run cannot have a log of MLPerf."""


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the settings that the benchmark "bert" logs, by their keys there.

  Args:
    config: the whole config, as in run.json.
  """
  optim, data, train = config["optim"], config["data"], config["train"]
  warmup = round(optim["warmup_rate"] * train["total_steps"])
  return {
    "seed": config["seed"],
    "global_batch_size": data["batch_size"],
    "gradient_accumulation_steps": optim["num_micro_batches"],
    "train_samples": train["total_steps"] * data["batch_size"],
    "eval_samples": config["eval"]["max_examples"],
    "max_sequence_length": data["seq_len"],
    "opt_name": optim["name"],
    "opt_base_learning_rate": optim["learning_rate"],
    "opt_lamb_epsilon": optim["eps"],
    "opt_lamb_beta_1": optim["b1"],
    "opt_lamb_beta_2": optim["b2"],
    "opt_lamb_weight_decay_rate": optim["weight_decay"],
    "opt_learning_rate_training_steps": train["total_steps"],
    "opt_learning_rate_warmup_steps": warmup,
    "num_warmup_steps": warmup,
    "start_warmup_step": 0,
  }


class Log:
  """The log of one run, which is one session."""

  def __init__(self, workdir: str, config: Mapping[str, Any]):
    """Begins the log, and with it the clock of the result.

    Args:
      workdir: the folder of the run.
      config: the whole config, as in run.json.

    Raises:
      MlperfError: The run has a log already, since MLPerf has no resumed runs.
    """
    self._path = os.path.join(workdir, FILE)
    if files.exists(self._path):
      raise MlperfError(
        f"{self._path} exists: MLPerf times a run in one go, and this one was "
        "resumed; its log is left as it is"
      )
    self._config = config
    self._batch_size = config["data"]["batch_size"]
    every = config["eval"]["every_steps"] or config["train"]["total_steps"]
    self._samples_a_block = every * self._batch_size
    self._in_block = self._is_done = False
    status = os.environ.get("MLPERF_SUBMISSION_STATUS", "research")
    about = {
      "submission_benchmark": "bert",
      "submission_division": _variable("DIVISION", "open"),
      "submission_org": _variable("ORG", "unknown"),
      "submission_platform": _variable("PLATFORM", "unknown"),
      "submission_status": status,
    }
    for key, value in about.items():
      self._write(_POINT, key, value)
    self._write(_POINT, "cache_clear", True)
    self._write(_START, "init_start")
    for key, value in settings_of(config).items():
      self._write(_POINT, key, value)
    self._write(_END, "init_stop")
    self._write(_START, "run_start")
    self._begin_block(0)

  def write(self, step: int, row: Mapping[str, float]) -> None:
    """Logs an evaluation; other metrics have no place in this log."""
    if METRIC not in row or self._is_done:
      return
    samples = step * self._batch_size
    if self._in_block and samples:
      self._write(_END, "block_stop", first_epoch_num=self._first)
      self._in_block = False
    at = {"epoch_num": samples}
    self._write(_START, "eval_start", **at)
    self._write(_POINT, "eval_accuracy", row[METRIC], **at)
    self._write(_END, "eval_stop", **at)
    goal = self._config["train"].get("stop_at", "")
    if goal and early_stopping.is_reached(row, goal):
      self._end("success", samples)
    elif samples:
      self._begin_block(samples)

  def finish(self) -> None:
    """Ends the log of a run that did not reach its goal."""
    if not self._is_done:
      self._end("aborted", self._first)

  def _begin_block(self, samples: int) -> None:
    self._first, self._in_block = samples, True
    self._write(
      _START,
      "block_start",
      first_epoch_num=samples,
      epoch_count=self._samples_a_block,
    )

  def _end(self, status: str, samples: int) -> None:
    self._is_done = True
    self._write(_END, "run_stop", status=status, samples_count=samples)

  def _write(self, event: str, key: str, value: Any = None, **metadata) -> None:
    frame = inspect.currentframe()
    caller = frame.f_back if frame else None
    place = {
      "file": "bert_jax/runtime/mlperf.py",
      "lineno": caller.f_lineno if caller else 0,
    }
    line = {
      "namespace": "",
      "time_ms": int(time.time() * 1000),
      "event_type": event,
      "key": key,
      "value": value,
      "metadata": place | metadata,
    }
    files.append_line(self._path, f":::MLLOG {json.dumps(line)}")


def _variable(name: str, default: str) -> str:
  return os.environ.get(f"MLPERF_SUBMISSION_{name}", default)
