"""Tests of hosts.py and preemption.py: several processes, as one job."""

import functools
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from bert_jax import hosts
from bert_jax import run_log

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
  ("environ", "on_tpu", "wanted"),
  [
    ({}, False, False),
    ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, False, False),
    ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a"}, False, True),
    ({"SLURM_NTASKS": "4"}, False, False),  # an allocation, no step of it
    ({"OMPI_COMM_WORLD_SIZE": "2"}, False, True),
    ({}, True, True),
  ],
)
def test_clusters_that_jax_connects_by_itself(environ, on_tpu, wanted):
  assert hosts.is_cluster(environ, on_tpu) == wanted


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (("localhost:1", None, None), "go together; given: localhost:1, None"),
    ((None, 2, 0), "go together"),
    (("localhost:1", 2, 2), "--process_id=2 is not among 0 to 2 - 1"),
    (("localhost:1", 0, 0), "--process_id=0 is not among"),
  ],
)
def test_what_cannot_be_is_refused(given, message):
  with pytest.raises(hosts.HostsError, match=message):
    hosts.start(*given, on_tpu=False, stops_in_order=True)


def test_one_process_starts_nothing(monkeypatch):
  for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
    monkeypatch.delenv(name, raising=False)
  hosts.start(None, None, None, on_tpu=False, stops_in_order=True)
  assert jax.process_count() == 1
  assert not jax.distributed.is_initialized()


# --- real processes -----------------------------------------------------------

SETTINGS = {
  "model.num_layers": 1,
  "model.hidden_size": 32,
  "model.num_heads": 2,
  "model.mlp_dim": 64,
  "model.vocab_size": 32,
  "model.max_len": 16,
  "data.seq_len": 16,
  "data.batch_size": 16,
  "data.dupe_factor": 4,
  "train.total_steps": 120,
  "train.log_every_steps": 1,
  "eval.every_steps": 50,
  "eval.batch_size": 16,
  "checkpoint.every_steps": 20,
}


def start(
  prepared, workdir, num_processes, num_devices, odd=None, limit=None, **changes
):
  """Starts the processes of a job, with some devices each.

  What they say goes to WORKDIR-NUMBER.txt. The last one has settings of its
  own, `odd`, and may write files of `limit` bytes at most.
  """
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  environ = dict(os.environ) | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
  }
  settings = SETTINGS | {k.replace("__", "."): v for k, v in changes.items()}
  jobs = []
  for i in range(num_processes):
    is_last = i == num_processes - 1
    several = (
      f"--coordinator=127.0.0.1:{port}",
      f"--num_processes={num_processes}",
      f"--process_id={i}",
    )
    with open(f"{workdir}-{i}.txt", "w") as said:
      jobs.append(
        subprocess.Popen(
          [
            sys.executable,
            "-m",
            "bert_jax.main",
            "--mode=train",
            "--config=configs/base.py",
            f"--workdir={workdir}",
            f"--config.data.dir={prepared}",
            *(f"--config.{k}={v}" for k, v in settings.items()),
            *(f"--config.{k}={v}" for k, v in (odd or {}).items() if is_last),
            *(several if num_processes > 1 else ()),
          ],
          preexec_fn=functools.partial(_limit_files, limit)
          if limit and is_last
          else None,
          cwd=ROOT,
          env=environ,
          stdout=subprocess.DEVNULL,
          stderr=said,
        )
      )
    jobs[-1].said = pathlib.Path(said.name)
  return jobs


def _limit_files(size):
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def finish(jobs):
  """Their exit statuses; shows what they said, for where a test fails."""
  try:
    return [job.wait(300) for job in jobs]
  finally:
    for job in jobs:
      job.kill()
      print(f"--- {job.args[-1]}", job.said.read_text()[-2000:], sep="\n")


def wait_for_lines(workdir, count, jobs):
  """Until the log has so many."""
  log = workdir / "metrics.jsonl"
  while not (log.exists() and log.read_text().count("\n") > count):
    time.sleep(0.05)
    assert all(job.poll() is None for job in jobs)


def assert_same_rows(found, wanted, rtol, num_steps=10**9):
  found, wanted = (
    [r for r in run_log.read_metrics(str(x)) if r["step"] <= num_steps]
    for x in (found, wanted)
  )
  assert [r["step"] for r in found] == [r["step"] for r in wanted]
  for a, b in zip(found, wanted, strict=True):
    for key in ("train/loss", "train/mlm_loss", "train/nsp_loss", "eval/loss"):
      if key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=rtol, err_msg=key)


@pytest.mark.slow
def test_several_processes_are_one_and_stop_and_go_on_as_one(
  tmp_path, prepared
):
  alone, several = tmp_path / "alone", tmp_path / "several"
  assert finish(start(prepared, alone, 1, 8)) == [0]
  # Two processes; one of them is told to stop, and both do at the same step.
  jobs = start(prepared, several, 2, 4)
  wait_for_lines(several, 20, jobs)
  jobs[1].send_signal(signal.SIGTERM)
  assert finish(jobs) == [75, 75]
  stopped = run_log.read_metrics(str(several))[-1]["step"]
  assert 20 <= stopped < 120
  assert (several / "checkpoints" / str(stopped)).is_dir()
  copy = tmp_path / "copy"
  shutil.copytree(several, copy)
  assert_same_rows(several, alone, rtol=1e-6, num_steps=12)
  # One process with as many devices goes on.
  assert finish(start(prepared, several, 1, 8)) == [0]
  assert_same_rows(several, alone, rtol=1e-5)
  # So do two, which agree on what is damaged, from the step before.
  saved = sorted(int(p.name) for p in (copy / "checkpoints").iterdir())
  assert saved[-1] == stopped and len(saved) > 1
  for path in (copy / "checkpoints" / str(stopped)).rglob("manifest.*"):
    path.write_bytes(b"")
  assert finish(start(prepared, copy, 2, 4)) == [0, 0]
  assert (copy / "damaged" / str(stopped)).is_dir()
  assert_same_rows(copy, alone, rtol=1e-5)


@pytest.mark.slow
def test_what_is_left_of_a_job_ends_soon_and_goes_on_in_any_shape(
  tmp_path, prepared
):
  """Four processes of two devices, one of them killed; then other shapes."""
  short = dict(train__total_steps=48, checkpoint__every_steps=12)
  short |= dict(eval__every_steps=24)
  alone, four = tmp_path / "alone", tmp_path / "four"
  assert finish(start(prepared, alone, 1, 8, **short)) == [0]
  jobs = start(prepared, four, 4, 2, **short)
  wait_for_lines(four, 14, jobs)
  jobs[2].kill()
  begin = time.monotonic()
  statuses = finish(jobs)
  assert time.monotonic() - begin < hosts.HEARTBEAT_SECS + 30
  assert statuses[2] == -signal.SIGKILL
  assert all(status != 0 for status in statuses)
  for i in (0, 1, 3):
    said = pathlib.Path(f"{four}-{i}.txt").read_text()
    # Ours, or that of jax, where its own watch was faster.
    assert "cannot go on" in said or "another task died" in said
    assert "Fatal Python error" not in said
  assert_same_rows(four, alone, rtol=1e-6, num_steps=12)
  saved = sorted(int(p.name) for p in (four / "checkpoints").glob("[0-9]*"))
  assert saved and saved[-1] in (12, 24, 36)
  for name, shape, changes in (
    ("one_by_eight", (1, 8), {}),
    ("two_by_two", (2, 2), {}),
    ("other_mesh", (1, 8), dict(mesh__fsdp=2, mesh__tensor=2)),
    ("four_by_two", (4, 2), {}),
  ):
    copy = shutil.copytree(four, tmp_path / name)
    assert (
      finish(start(prepared, copy, *shape, **short, **changes))
      == [0] * (shape[0])
    )
    assert_same_rows(copy, alone, rtol=1e-5, num_steps=48)
    assert run_log.read_metrics(str(copy))[-1]["step"] == 48


@pytest.mark.slow
def test_what_one_process_alone_cannot_do_ends_all_soon(tmp_path, prepared):
  begin = time.monotonic()
  odd = {"data.dir": str(tmp_path / "nowhere")}
  jobs = start(prepared, tmp_path / "run", 2, 2, odd=odd)
  statuses = finish(jobs)
  assert statuses[1] == 2 and statuses[0] != 0
  assert time.monotonic() - begin < hosts.HEARTBEAT_SECS + 60
  said = jobs[1].said.read_text()
  assert "nowhere holds no prepared data" in said
  assert "Fatal Python error" not in said + jobs[0].said.read_text()
  assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_a_save_that_fails_on_one_process_ends_all_and_goes_on(
  tmp_path, prepared
):
  """Its files of arrays do not fit; of the first one they do."""
  short = dict(train__total_steps=24, checkpoint__every_steps=12)
  short |= dict(eval__every_steps=0, checkpoint__best_metric="")
  short |= dict(mesh__fsdp=4, mesh__data=1)  # each has parts to write
  alone, run = tmp_path / "alone", tmp_path / "run"
  assert finish(start(prepared, alone, 1, 4, **short)) == [0]
  jobs = start(prepared, run, 2, 2, limit=3000, **short)
  statuses = finish(jobs)
  assert all(status != 0 for status in statuses)
  said = jobs[1].said.read_text()
  assert "no checkpoint can be written" in said or "File too large" in said
  assert finish(start(prepared, run, 2, 2, **short)) == [0, 0]
  assert_same_rows(run, alone, rtol=1e-5)
