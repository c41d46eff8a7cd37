"""Whether two runs are the same, and what a run wrote."""

import os

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bert_jax.runtime import metrics_log
from bert_jax.training import run as run_lib
from bert_jax.training import train


def read_state(workdir, step):
  """All arrays of a checkpoint, by item and path."""
  found = {}
  for item in ("params", "rest"):
    with ocp.StandardCheckpointer() as reader:
      tree = reader.restore(
        os.path.abspath(os.path.join(workdir, "checkpoints", str(step), item))
      )
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    found |= {
      (item, jax.tree_util.keystr(path)): np.asarray(leaf)
      for path, leaf in leaves
    }
  return found


def assert_same_state(a, b, step, *, logs_alike=True):
  """Runs that log at other steps have another sum of losses not yet logged."""
  a, b = read_state(a, step), read_state(b, step)
  assert a.keys() == b.keys()
  assert len(a) > 60
  for name, x in a.items():
    if not logs_alike and "train_loss" in name[1]:
      continue
    np.testing.assert_array_equal(x, b[name], err_msg=str(name))


def depends_on_clock(key):
  """Whether a metric differs between two runs of the same training."""
  is_speed = "_per_sec" in key or key == "train/mfu"
  return is_speed or key.startswith("goodput/")


def rows(workdir, *, timing=False):
  """metrics.jsonl, without what depends on the clock."""
  return [
    {k: v for k, v in row.items() if timing or not depends_on_clock(k)}
    for row in metrics_log.read_metrics(workdir)
  ]


class StopError(Exception):
  """It stands for a kill."""


def train_until(config, workdir, step):
  """Trains, and stops before the log gets a line of a step or a later one."""
  log = run_lib.Run.log

  def stop(self, at, speed):
    if at >= step:
      raise StopError
    log(self, at, speed)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run_lib.Run, "log", stop)
    with pytest.raises(StopError):
      train.train(config, workdir)


def train_whole_and_in_parts(config, folder, step=8):
  """Trains at once, and again with a stop at a step; returns both workdirs."""
  whole, parts = str(folder / "whole"), str(folder / "parts")
  train.train(config, whole)
  train_until(config, parts, step)
  train.train(config, parts)
  return whole, parts
