"""Jobs of two processes, one of which is killed at any moment.

FAULTS_KILLS and FAULTS_SEED as in test_faults.py; a twentieth of the kills are
made here.
"""

import random
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bert_jax.runtime import peers
from tests.support import fault_runs
from tests.support import host_processes

pytestmark = pytest.mark.slow

KILLS = max(fault_runs.KILLS // 20, 3)
TOTAL, SAVED = 60, 12  # steps
SETTINGS = {
  "train__total_steps": TOTAL,
  "eval__every_steps": 20,
  "checkpoint__every_steps": SAVED,
  "checkpoint__best_metric": "",
}
# A process that was killed is found at once, unless the other one is not yet,
# or no longer, connected to it.
MOST_SECS = peers.HEARTBEAT_SECS + 60


def wait_until_connected(jobs):
  """Until all know each other; before, there is no job yet."""
  while not all("devices" in job.said.read_text() for job in jobs):
    time.sleep(0.02)
    assert all(job.poll() is None for job in jobs), host_processes.finish(jobs)


def read_step(folder):
  """All arrays of a checkpoint of two processes, by item and path."""
  here, found = jax.sharding.SingleDeviceSharding(jax.devices()[0]), {}
  for item in ("params", "rest"):
    with ocp.StandardCheckpointer() as reader:
      saved = reader.metadata(folder / item).item_metadata.tree
      wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), saved
      )
      tree = reader.restore(folder / item, wanted)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      found[item, jax.tree_util.keystr(path)] = np.asarray(leaf)
  return found


def assert_same_run(workdir, straight):
  assert fault_runs.rows(workdir) == fault_runs.rows(straight)
  step = f"checkpoints/{TOTAL}"
  found, wanted = read_step(workdir / step), read_step(straight / step)
  assert found.keys() == wanted.keys() and len(found) > 60
  for name, x in found.items():
    assert x.tobytes() == wanted[name].tobytes(), name


def test_a_job_of_which_a_process_is_killed_ends_as_if_never_killed(
  tmp_path, prepared
):
  """The other one leaves soon, with a status and a line of its own."""
  rng = random.Random(fault_runs.SEED)
  straight = tmp_path / "straight"
  jobs = host_processes.start(prepared, straight, 2, 1, **SETTINGS)
  wait_until_connected(jobs)
  begin = time.monotonic()
  assert host_processes.finish(jobs) == [0, 0]
  whole = time.monotonic() - begin

  kills, number, secs = 0, 0, []
  while kills < KILLS:
    number += 1
    workdir = tmp_path / f"run-{number}"
    is_done = False
    while True:
      jobs = host_processes.start(prepared, workdir, 2, 1, **SETTINGS)
      if kills >= KILLS or is_done:
        assert host_processes.finish(jobs) == [0, 0]
        break
      wait_until_connected(jobs)
      victim = rng.randrange(2)
      time.sleep(rng.uniform(0, 0.9 * whole))
      jobs[victim].kill()
      begin = time.monotonic()
      survivor = jobs[1 - victim]
      survivor.wait(MOST_SECS)
      secs.append(time.monotonic() - begin)
      statuses = host_processes.finish(jobs)
      is_done = TOTAL in fault_runs.saved_steps(workdir, "checkpoints")
      if statuses[victim] != -signal.SIGKILL:
        assert is_done, statuses
        continue  # it had ended just before
      kills += 1
      assert statuses[1 - victim] == 69 or is_done, statuses
      if statuses[1 - victim] == 69:
        host_processes.assert_told(survivor, f"process {victim} was killed")
    assert_same_run(workdir, straight)
  print(f"\n{kills} kills, survivors left after {max(secs):.1f} s at most")
