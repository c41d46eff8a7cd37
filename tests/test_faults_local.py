"""Machines that are lost, of a job with local steps: four real processes.

Each process has a folder for the disk of its machine. The workdir gets only the
last step, so that a run goes on from local steps or from the start.
"""

import json
import random
import re
import shutil
import time

import pytest

from tests.support import fault_runs
from tests.support import host_processes

EVERY, TOTAL, NUM = 3, 60, 4
KILLS = 3

pytestmark = pytest.mark.slow


def start(data, workdir, disks, **changes):
  settings = {
    "train__total_steps": TOTAL,
    "eval__every_steps": 0,
    "checkpoint__every_steps": 10_000,
    "checkpoint__best_metric": "",
  }
  if disks:
    settings["checkpoint__local_every_steps"] = EVERY
  return host_processes.start(
    data, workdir, NUM, 1, **settings | changes,
    each=lambda i: {"checkpoint.local_dir": disks[i]} if disks else {},
  )  # fmt: skip


def lines(workdir):
  return fault_runs.rows(workdir)


def start_step(jobs_said):
  """The step that a session went on from, and whether it was a local one."""
  found = re.search(
    r"going on from step (\d+), which is on the local", jobs_said
  )
  return int(found[1]) if found else 0


def sums(workdir):
  path = workdir / "checkpoints" / str(TOTAL) / "sums" / "metadata"
  return json.loads(path.read_text())


def said_by(workdir, i):
  return (workdir.parent / f"{workdir.name}-{i}.txt").read_text()


def wait_for_step(workdir, step, jobs):
  """Until a step is in the log; returns whether all still run."""
  log = workdir / "metrics.jsonl"
  while all(job.poll() is None for job in jobs):
    if log.exists() and f'{{"step": {step},' in log.read_text():
      return True
    time.sleep(0.01)
  return False


@pytest.mark.parametrize("mesh", ["fsdp", "data"])
def test_losing_machines_costs_a_few_steps_and_changes_no_bit(
  mesh, tmp_path, prepared
):
  """With `fsdp` each has its own part of the state, with `data` all of it."""
  rng = random.Random(fault_runs.SEED)
  changes = {
    "fsdp": {"mesh__fsdp": 4}, "data": {"mesh__spread_optimizer": False}
  }[mesh]  # fmt: skip
  jobs = start(prepared, tmp_path / "straight", None, **changes)
  assert host_processes.finish(jobs) == [0] * NUM

  disks = [tmp_path / f"disk{i}" for i in range(NUM)]
  workdir = tmp_path / "run"
  kills = KILLS if mesh == "fsdp" else 2
  reached, losses = 0, []
  for kill in range(kills + 1):
    jobs = start(prepared, workdir, disks, **changes)
    aim = reached + rng.randrange(3 * EVERY, TOTAL // (KILLS + 1))
    if kill < kills:
      assert wait_for_step(workdir, aim, jobs), host_processes.finish(jobs)
      # Of a state that all have, all machines but one may be lost.
      count = 1 if mesh == "fsdp" else NUM - 1
      lost = rng.sample(range(NUM), count)
      for i in lost:
        jobs[i].kill()
      assert all(host_processes.finish(jobs))
      for i in lost:
        shutil.rmtree(disks[i])
    else:
      assert host_processes.finish(jobs) == [0] * NUM
    began = start_step(said_by(workdir, 0))
    if kill:
      assert reached - 2 * EVERY <= began
      losses.append(reached - began)
    reached = max(row["step"] for row in lines(workdir))
  print(f"\n{mesh}: {kills} losses, steps computed again: {losses}")
  assert lines(workdir) == lines(tmp_path / "straight")
  assert sums(workdir) == sums(tmp_path / "straight")
  for disk in disks:  # the workdir has the last step
    assert not list(disk.rglob("*.shards"))


def test_a_damaged_copy_is_replaced_by_that_of_the_peer(tmp_path, prepared):
  disks = [tmp_path / f"disk{i}" for i in range(NUM)]
  workdir = tmp_path / "run"
  jobs = start(prepared, workdir, disks, mesh__fsdp=4)
  assert wait_for_step(workdir, 4 * EVERY, jobs)
  jobs[2].kill()
  assert all(host_processes.finish(jobs))
  for path in disks[1].rglob("*-1.shards"):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
  reached = max(row["step"] for row in lines(workdir))
  jobs = start(prepared, workdir, disks, mesh__fsdp=4)
  assert wait_for_step(workdir, reached + 1, jobs)
  for job in jobs:
    job.kill()
  host_processes.finish(jobs)
  said = said_by(workdir, 1)
  assert "is damaged" in said and "looking for another local copy" in said
  assert start_step(said_by(workdir, 0)) >= reached - 2 * EVERY


def test_a_disk_that_two_processes_share_is_refused(tmp_path, prepared):
  workdir = tmp_path / "run"
  jobs = start(prepared, workdir, [tmp_path / "disk"] * NUM)
  assert host_processes.finish(jobs) == [2] * NUM
  host_processes.assert_told(
    jobs[0], "checkpoint.local_dir=", "shares it with another process"
  )
  assert not (workdir / "run.json").exists()
