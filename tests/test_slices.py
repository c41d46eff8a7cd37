"""Training on several slices, which are groups of processes on this machine."""

import shutil
import signal
import time

import numpy as np
import pytest

from bert_jax.runtime import metrics_log
from bert_jax.runtime import peers
from tests.support import host_processes

pytestmark = pytest.mark.slow

TOTAL, SAVED = 12, 4  # steps
SHORT = dict(
  train__total_steps=TOTAL,
  checkpoint__every_steps=SAVED,
  checkpoint__best_metric="",
  eval__every_steps=0,
)
CUT = SHORT | {"mesh__num_slices": 2, "mesh__fsdp": 2}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, prepared):
  """The run of one process with all four devices, as one slice."""
  workdir = tmp_path_factory.mktemp("slices") / "alone"
  jobs = host_processes.start(prepared, workdir, 1, 4, **SHORT)
  assert host_processes.finish(jobs) == [0]
  return workdir


def losses(workdir):
  return {
    row["step"]: row["train/loss"]
    for row in metrics_log.read_metrics(str(workdir))
    if "train/loss" in row
  }


def assert_same(workdir, alone, rtol, num_steps=TOTAL):
  found, wanted = losses(workdir), losses(alone)
  for step in range(1, num_steps + 1):
    np.testing.assert_allclose(found[step], wanted[step], rtol, err_msg=step)


@pytest.fixture(scope="module")
def lost(tmp_path_factory, prepared, alone):
  """A run of four processes, each two of them a slice, of which one was lost.

  Each slice cuts its copy of the model up over its devices.
  """
  workdir = tmp_path_factory.mktemp("slices") / "both"
  jobs = host_processes.start(prepared, workdir, 4, 1, **CUT)
  host_processes.wait_for_lines(workdir, SAVED + 2, jobs)
  for job in jobs[2:]:  # the second slice is taken away
    job.kill()
  begin = time.monotonic()
  statuses = host_processes.finish(jobs)
  assert time.monotonic() - begin < peers.HEARTBEAT_SECS + 30
  assert statuses == [69, 69, -signal.SIGKILL, -signal.SIGKILL]
  assert_same(workdir, alone, 1e-6, num_steps=SAVED)
  return workdir


def test_the_slice_that_is_left_goes_on(lost, tmp_path, prepared, alone):
  workdir = shutil.copytree(lost, tmp_path / "one")
  jobs = host_processes.start(prepared, workdir, 2, 1, **SHORT)
  assert host_processes.finish(jobs) == [0, 0]
  assert_same(workdir, alone, 1e-5)


def test_both_slices_go_on_when_the_second_is_back(
  lost, tmp_path, prepared, alone
):
  workdir = shutil.copytree(lost, tmp_path / "both")
  jobs = host_processes.start(prepared, workdir, 4, 1, **CUT)
  assert host_processes.finish(jobs) == [0] * 4
  assert_same(workdir, alone, 1e-5)
