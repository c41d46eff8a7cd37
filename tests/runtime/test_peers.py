"""Tests of peers.py: which other process failed, and how this one ends."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from bert_jax.runtime import checkpoint
from bert_jax.runtime import hosts
from bert_jax.runtime import peers
from bert_jax.runtime import runs


def _caused(error, cause):
  error.__cause__ = cause
  return error


@pytest.mark.parametrize(
  ("error", "wanted"),
  [
    (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed"), True),
    (jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed"), True),
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), False),
    (peers.PeerError("process 1 did not come"), True),
    (hosts.DifferError("barrier"), False),
    (checkpoint.SaveError("no checkpoint can be written"), False),
    (
      _caused(
        checkpoint.SaveError("no checkpoint can be written"),
        RuntimeError("DEADLINE_EXCEEDED: Barrier timed out"),
      ),
      True,
    ),
    (FileNotFoundError(errno.ENOENT, "none", "/data/gloo/barrier"), False),
    (
      _caused(
        checkpoint.CheckpointError("step 8 is damaged"),
        ValueError('DATA_LOSS: Error reading "/data/heartbeat ecg/run/8/d/0"'),
      ),
      False,
    ),
    (ValueError("NOT_FOUND: file:///data/heartbeat-ecg/run is empty"), False),
    (ValueError("could not convert string to float: 'heartbeat'"), False),
    (json.JSONDecodeError("no barrier", "", 0), False),
    (jax.errors.JaxRuntimeError("INTERNAL: cannot open /runs/nccl/x"), False),
    (runs.RunError("--workdir=/runs/heartbeat is in use"), False),
  ],
)
def test_errors_that_may_come_from_another_process(error, wanted):
  assert peers.is_of_peer(error) == wanted


def test_an_error_that_was_hidden_on_purpose_is_not_a_lost_process():
  try:
    try:
      raise RuntimeError("UNAVAILABLE: Socket closed")
    except RuntimeError:
      raise ValueError("the labels differ") from None
  except ValueError as error:
    assert not peers.is_of_peer(error)


class _Store:
  """The key-value store of a job, as far as it is used to find who failed."""

  def __init__(self, **rows):
    self.rows = rows

  def key_value_dir_get(self, prefix):
    return [(prefix + k, v) for k, v in self.rows.items()]


@pytest.mark.parametrize(
  ("rows", "wanted"),
  [
    (
      {"trouble/1": {"reason": "no data", "is_own": True}, "here/2": ""},
      "process 1 failed: no data",
    ),
    ({"lost/2": "", "here/1": "", "beat/2": "7"}, "process 2 was killed"),
    (
      {"trouble/1": {"reason": "reset", "is_own": False}},
      "process 2 was killed",
    ),
    (
      {"trouble/1": {"reason": "reset", "is_own": False}, "here/2": ""},
      "a connection between the processes broke: reset",
    ),
  ],
)
def test_the_line_of_a_survivor_names_the_process_that_failed(rows, wanted):
  monitor = object.__new__(peers._Monitor)
  monitor.index, monitor.count = 0, 3
  monitor._failed = None
  texts = {
    k: v if isinstance(v, str) else json.dumps(v) for k, v in rows.items()
  }
  monitor.store = _Store(**texts)
  assert monitor.verdict("unknown").startswith(wanted)


class _Job:
  """The processes of a job, as far as they end each other."""

  def __init__(self, monkeypatch):
    self.rows, self.clock, self.ended = {}, 0.0, {}
    monkeypatch.setattr(peers, "_within", lambda secs, act: act() or True)
    monkeypatch.setattr(peers.time, "monotonic", lambda: self.clock)
    monkeypatch.setattr(peers, "_hurry", self)

  def wait(self, secs):
    """Lets time pass, and the process that failed end when its time is up."""
    self.clock += secs
    if self.clock >= self.last and "gone/0" not in self.rows:
      self.rows["gone/0"] = ""
      self.ended[0] = self.clock

  def key_value_dir_get(self, prefix):
    return [(prefix + key, value) for key, value in self.rows.items()]

  def monitor(self, index):
    found = object.__new__(peers._Monitor)
    found.index, found.count, found.store = index, 3, self
    found._failed = None
    return found


@pytest.mark.parametrize("last", [1.0, 6.0, 15.0])
@pytest.mark.parametrize("status", [1, 2, 75])
def test_a_process_that_failed_by_itself_ends_before_the_others(
  monkeypatch, last, status
):
  """Kubernetes goes by the first status that it sees."""
  job = _Job(monkeypatch)
  job.last = last
  trouble = {"reason": "no data", "is_own": True, "status": status}
  job.rows["trouble/0"] = json.dumps(trouble)
  other = job.monitor(1)
  assert other.verdict("x") == "process 0 failed: no data"
  other.outlive()
  if status == 75:  # the job starts again, whoever is first
    assert job.clock == 0
    return
  assert job.ended[0] < job.clock - 2
  assert job.clock < last + 5


def test_a_lost_process_is_not_waited_for(monkeypatch):
  job = _Job(monkeypatch)
  job.last = 1e9
  job.rows["trouble/0"] = json.dumps({"reason": "reset", "is_own": False})
  other = job.monitor(1)
  other.verdict("x")
  other.outlive()
  assert job.clock == 0


def test_the_failing_process_says_when_it_ends(monkeypatch):
  said = []
  monitor = peers._Monitor.__new__(peers._Monitor)
  monitor.index, monitor.count = 0, 2
  monitor._set = lambda key, value: said.append(key)
  monkeypatch.setattr(peers._Monitor, "current", monitor)
  monkeypatch.setattr(peers, "_ending", threading.Lock())
  monkeypatch.setattr(peers._hurry, "wait", lambda secs: said.append(secs))
  monkeypatch.setattr(peers.locks, "leave_buckets", lambda: said.append("left"))

  def leave(status):
    raise SystemExit(status)

  monkeypatch.setattr(peers.os, "_exit", leave)
  with pytest.raises(SystemExit, match="2"):
    peers.leave(runs.RunError("no data"))
  assert said == ["trouble/0", 6.0, "left", "gone/0"]


# Has a thread of C abort the process: while it runs, or while it is finalized.
ABORT = """
import builtins, ctypes, sys, time
from bert_jax.runtime import peers
library = ctypes.CDLL(None)
peers.catch_aborts("the others did not come")
def abort(library=library, ctypes=ctypes):
  thread = ctypes.c_ulong()
  library.pthread_create(ctypes.byref(thread), None, library.abort, None)
  library.sleep(30)
class Last:
  def __del__(self, abort=abort):
    abort()
if sys.argv[1] == "late":
  builtins.last = Last()
else:
  abort()
"""


def _abort(when):
  return subprocess.run(
    [sys.executable, "-c", ABORT, when],
    capture_output=True,
    text=True,
    check=False,
  )


def test_an_abort_of_jax_ends_the_process_with_a_line_and_its_status():
  done = _abort("now")
  assert done.returncode == peers.PeerError.exit_status
  assert done.stderr == "bert-jax: the others did not come\n"


@pytest.mark.slow
def test_an_abort_while_python_is_finalized_stays_an_abort():
  """No thread of C++ is unwound by Python, which would be a crash."""
  assert _abort("late").returncode == -signal.SIGABRT


FAIL = """
import sys, time
from bert_jax.runtime import hosts, peers
address, index, failing = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
hosts.start(address, 2, index, on_tpu=False, stops_in_order=False)
time.sleep(2)
if index == failing:
  peers.leave(ValueError("no data"), 2)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_the_first_status_of_a_job_is_that_of_what_failed(failing):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  jobs = [
    subprocess.Popen(
      [sys.executable, "-c", FAIL, address, str(i), str(failing)],
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  ends, begin = {}, time.monotonic()
  try:
    while len(ends) < 2 and time.monotonic() - begin < 120:
      for i, job in enumerate(jobs):
        if job.poll() is not None:
          ends.setdefault(i, time.monotonic())
      time.sleep(0.05)
  finally:
    for job in jobs:
      job.kill()
  said = [job.communicate()[1] for job in jobs]
  assert [jobs[failing].returncode, jobs[1 - failing].returncode] == [2, 69]
  assert ends[1 - failing] - ends[failing] > 2, said
  assert f"process {failing} failed: no data" in said[1 - failing]
