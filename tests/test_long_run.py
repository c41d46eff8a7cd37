"""A long run of small steps: nothing grows."""

import os
import pathlib
import re
import time

import pytest

from bert_jax.runtime import metrics_log
from tests.support import host_processes

NUM_STEPS = 20_000


def resident_bytes(pid):
  text = pathlib.Path(f"/proc/{pid}/status").read_text()
  return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) * 1024


def last_step(log):
  lines = log.read_bytes().splitlines()[-1:] if log.exists() else []
  return int(re.search(rb'"step": (\d+)', lines[0])[1]) if lines else 0


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc")
def test_a_long_run_grows_in_nothing(tmp_path, prepared):
  """Memory, open files, threads and what lies in the workdir."""
  workdir = tmp_path / "run"
  (job,) = host_processes.start(
    prepared,
    workdir,
    1,
    1,
    train__total_steps=NUM_STEPS,
    train__log_every_steps=50,
    eval__every_steps=2_000,
    checkpoint__every_steps=400,
  )
  process, log = pathlib.Path(f"/proc/{job.pid}"), workdir / "metrics.jsonl"
  samples = []  # step, bytes, open files, threads
  try:
    while job.poll() is None:
      time.sleep(0.5)
      if not (step := last_step(log)):
        continue
      try:
        files = len(os.listdir(process / "fd"))
        threads = len(os.listdir(process / "task"))
        samples.append((step, resident_bytes(job.pid), files, threads))
      except (FileNotFoundError, TypeError):  # it has just ended
        break
    assert job.wait(60) == 0
  finally:
    job.kill()
  settled = [s for s in samples if s[0] >= NUM_STEPS // 10]
  assert len(settled) > 20
  first, last = settled[: len(settled) // 10], settled[-len(settled) // 10 :]

  def mean(rows, column):
    return sum(row[column] for row in rows) / len(rows)

  for column, name in ((1, "bytes"), (2, "open files"), (3, "threads")):
    print(f"{name}: {mean(first, column):.4g} to {mean(last, column):.4g}")
  assert max(s[1] for s in settled) < 1.05 * mean(first, 1)
  assert mean(last, 2) < mean(first, 2) + 8
  assert mean(last, 3) < mean(first, 3) + 8

  rows = metrics_log.read_metrics(str(workdir))
  assert len(rows) == NUM_STEPS // 50 + NUM_STEPS // 2_000
  assert log.stat().st_size < 600 * len(rows)
  assert {p.name for p in workdir.iterdir()} == {
    ".lock", "best", "checkpoints", "goodput.jsonl", "metrics.jsonl",
    "run.json", "tensorboard", "vocab",
  }  # fmt: skip
  assert len(list((workdir / "checkpoints").iterdir())) == 3
  assert len(list((workdir / "best").iterdir())) == 1
  assert len(list((workdir / "tensorboard").iterdir())) == 1
  # Beside the log lines, the progress bar writes nothing where nobody watches.
  assert pathlib.Path(f"{workdir}-0.txt").stat().st_size < 10_000
