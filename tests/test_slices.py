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

TOTAL, SAVED = 24, 8  # steps
SHORT = dict(
  train__total_steps=TOTAL,
  checkpoint__every_steps=SAVED,
  checkpoint__best_metric="",
  eval__every_steps=0,
)


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


def test_two_slices_train_the_same_and_one_goes_on_without_the_other(
  tmp_path, prepared, alone
):
  """Four processes of one device; each two are a slice, and one is lost."""
  both = tmp_path / "both"
  slices = SHORT | {"mesh__num_slices": 2}
  jobs = host_processes.start(prepared, both, 4, 1, **slices)
  host_processes.wait_for_lines(both, SAVED + 2, jobs)
  for job in jobs[2:]:  # the second slice is taken away
    job.kill()
  begin = time.monotonic()
  statuses = host_processes.finish(jobs)
  assert time.monotonic() - begin < peers.HEARTBEAT_SECS + 30
  assert statuses == [69, 69, -signal.SIGKILL, -signal.SIGKILL]
  assert_same(both, alone, 1e-6, num_steps=SAVED)
  copy = shutil.copytree(both, tmp_path / "copy")
  # The slice that is left goes on alone.
  jobs = host_processes.start(prepared, both, 2, 1, **SHORT)
  assert host_processes.finish(jobs) == [0, 0]
  assert_same(both, alone, 1e-5)
  # So do both when the second is back, with a model that each slice cuts up.
  cut = slices | {"mesh__fsdp": 2}
  jobs = host_processes.start(prepared, copy, 4, 1, **cut)
  assert host_processes.finish(jobs) == [0] * 4
  assert_same(copy, alone, 1e-5)
