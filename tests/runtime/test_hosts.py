"""Tests of hosts.py: several processes, as one job."""

import os
import pathlib
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from bert_jax.data import prepare
from bert_jax.runtime import errors
from bert_jax.runtime import hosts
from bert_jax.runtime import locks
from bert_jax.runtime import metrics_log
from bert_jax.runtime import peers
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.training import meeting
from configs import base
from tests.support.host_processes import ROOT
from tests.support.host_processes import assert_told
from tests.support.host_processes import finish
from tests.support.host_processes import start
from tests.support.host_processes import wait_for_lines


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


@pytest.mark.parametrize(
  ("facts", "wanted"),
  [
    ([{"a": 1}, {"a": 1}, {"a": 1}], ""),
    (
      [{"optim.learning_rate": 1e-4}, {"optim.learning_rate": 1e-3}],
      "process 1: optim.learning_rate=0.001, process 0: 0.0001",
    ),
    (
      [{"a": 1, "b": "x"}, {"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
      'process 2: a=2, process 0: 1; process 2: b="y", process 0: "x"',
    ),
    ([{"a": None}, {}], "process 1: a=not set, process 0: null"),
    ([{}, {"a": None}], "process 1: a=null, process 0: not set"),
    # Without git there is no commit, which says nothing.
    ([{"commit": "0a", "dirty": True}, {"commit": None, "dirty": None}], ""),
    (
      [{"commit": "0a"}, {"commit": "0b"}],
      'process 1: commit="0b", process 0: "0a"',
    ),
  ],
)
def test_a_difference_names_the_process_and_both_values(facts, wanted):
  assert hosts.differences(facts) == wanted


def test_of_many_differences_some_are_named():
  found = hosts.differences([{"a": 0}] + [{"a": i} for i in range(1, 1001)])
  assert found.startswith("process 1: a=1, ") and len(found) < 1000
  assert found.endswith("and 990 more")


def test_what_is_compared_is_all_but_what_a_host_may_have_of_its_own(
  monkeypatch, tiny_config
):
  found = {}
  monkeypatch.setattr(peers, "are_several", lambda: True)
  monkeypatch.setattr(hosts, "compare", found.update)
  monkeypatch.setattr(hosts, "check_shared", lambda *_, **__: None)
  config = tiny_config("here")
  meeting.meet("train", config, ["there"], members=[1])
  keys = set(settings.KEYS)
  free = {"data.dir", "data.num_threads", "data.prefetch_batches", "task.dir"}
  free |= {"data.mixture", "probe.dir", "task.vocab", "task.labels_file"}
  free |= {"checkpoint.local_dir"} | {
    k for k in keys if k.startswith("task.files.")
  }
  assert keys - set(found) == free
  assert found["mode"] == "train" and found["members"] == [1]
  assert {"jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"} <= set(
    found
  )
  assert {"code", "commit", "dirty", "number of devices"} <= set(found)


def test_the_code_is_known_by_the_content_of_its_files(monkeypatch, tmp_path):
  folder = shutil.copytree(ROOT / "bert_jax", tmp_path / "bert_jax")
  before = runs.code_hash()
  monkeypatch.setattr(runs, "__file__", str(folder / "runtime" / "runs.py"))
  assert runs.code_hash() == before
  path = folder / "models" / "heads.py"
  path.write_text(path.read_text() + "# changed\n")
  assert runs.code_hash() != before


def test_one_process_agrees_with_itself():
  hosts.compare({"a": 1})
  assert hosts.from_first([True, "x"]) == [True, "x"]


@pytest.mark.parametrize("made", ["", "a", "a/b"])
def test_looking_whether_a_workdir_is_shared_leaves_nothing(made, tmp_path):
  (tmp_path / made).mkdir(parents=True, exist_ok=True)
  before = sorted(tmp_path.rglob("*"))
  workdir = str(tmp_path / "a" / "b")
  with hosts._token(workdir) as name:
    assert hosts._is_seen(workdir, name)
  assert sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_process_left_in_the_workdir_is_removed(tmp_path):
  old, new = tmp_path / f"{hosts._TOKEN}0", tmp_path / f"{hosts._TOKEN}1"
  for path in (old, new):
    path.touch()
  os.utime(old, (0, 0))
  with hosts._token(str(tmp_path)):
    pass
  assert list(tmp_path.iterdir()) == [new]  # perhaps of another job


def test_an_unshared_workdir_is_not_seen(monkeypatch, tmp_path):
  monkeypatch.setattr(hosts, "_SEE_SECS", 0.3)
  with hosts._token(str(tmp_path / "mine")) as name:
    assert not hosts._is_seen(str(tmp_path / "other"), name)


def test_statuses_of_a_job_of_several_are_those_that_are_documented():
  from bert_jax import main

  assert peers.PeerError.exit_status == 69
  assert hosts.DifferError.exit_status == errors.USAGE == 2
  assert "69 another process" in main.__doc__
  assert "| 69 |" in (ROOT / "docs/reference/modes.md").read_text()


# --- real processes -----------------------------------------------------------


def assert_same_rows(found, wanted, rtol, num_steps=10**9):
  found, wanted = (
    [r for r in metrics_log.read_metrics(str(x)) if r["step"] <= num_steps]
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
  stopped = metrics_log.read_metrics(str(several))[-1]["step"]
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
  assert time.monotonic() - begin < peers.HEARTBEAT_SECS + 30
  assert statuses == [69, 69, -signal.SIGKILL, 69]
  for i in (0, 1, 3):
    assert_told(jobs[i], "because process 2 was killed")
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
    assert metrics_log.read_metrics(str(copy))[-1]["step"] == 48


@pytest.mark.slow
def test_what_one_process_alone_cannot_do_ends_all_soon(tmp_path, prepared):
  begin = time.monotonic()
  odd = {"data.dir": str(tmp_path / "nowhere")}
  jobs = start(prepared, tmp_path / "run", 2, 2, odd=odd)
  statuses = finish(jobs)
  assert statuses == [69, 2]
  assert time.monotonic() - begin < peers.HEARTBEAT_SECS + 60
  assert_told(jobs[1], "nowhere holds no prepared data")
  assert_told(jobs[0], "process 1 failed: ", "nowhere holds no prepared data")
  assert not (tmp_path / "run").exists()


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
  assert statuses[1] == 1 and statuses[0] in (1, 69)
  said = jobs[1].said.read_text()
  assert "no checkpoint can be written" in said or "File too large" in said
  assert finish(start(prepared, run, 2, 2, **short)) == [0, 0]
  assert_same_rows(run, alone, rtol=1e-5)


@pytest.fixture(scope="module")
def other_data(tmp_path_factory, prepared):
  """Data of another seed, prepared with the same vocabulary."""
  text = pathlib.Path(prepared).parent / "text.txt"
  folder = tmp_path_factory.mktemp("other")
  (folder / "text.txt").write_text(text.read_text().replace("sun", "moon"))
  config = base.get_config()
  config.data.seq_len, config.data.dupe_factor = 16, 4
  config.prepare.held_out_rate, config.prepare.num_workers = 0.2, 1
  config.prepare.vocab = str(text.parent / "vocab.txt")
  data = str(folder / "data")
  prepare.prepare(config, [str(folder / "text.txt")], data)
  return data


@pytest.mark.slow
@pytest.mark.parametrize(
  ("key", "value", "first"),
  [
    ("optim.learning_rate", "0.001", "0.0001"),
    ("seed", "1", "0"),
    ("eval.every_steps", "7", "50"),
    ("train.log_every_steps", "3", "1"),
    ("checkpoint.every_steps", "9", "20"),
  ],
)
def test_processes_with_other_settings_are_refused_by_all(
  key, value, first, tmp_path, prepared
):
  workdir = tmp_path / "run"
  jobs = start(prepared, workdir, 2, 1, odd={key: value})
  assert finish(jobs) == [2, 2]
  for job in jobs:
    assert_told(job, f"process 1: {key}={value}, process 0: {first}")
  assert not workdir.exists()


@pytest.mark.slow
def test_processes_with_other_data_are_refused_and_with_a_copy_are_not(
  tmp_path, prepared, other_data
):
  workdir = tmp_path / "run"
  jobs = start(prepared, workdir, 2, 1, odd={"data.dir": other_data})
  assert finish(jobs) == [2, 2]
  for job in jobs:
    assert_told(job, "process 1: data.examples=")
  assert not workdir.exists()
  copy = {"data.dir": shutil.copytree(prepared, tmp_path / "copy")}
  jobs = start(prepared, workdir, 2, 1, odd=copy, train__total_steps=2)
  assert finish(jobs) == [0, 0]


@pytest.mark.slow
def test_processes_with_other_code_are_refused_by_all(tmp_path, prepared):
  for name in ("bert_jax", "configs"):
    shutil.copytree(ROOT / name, tmp_path / "copy" / name)
  path = tmp_path / "copy" / "bert_jax" / "losses.py"
  path.write_text(path.read_text() + "# changed\n")
  workdir = tmp_path / "run"
  jobs = start(prepared, workdir, 2, 1, folder=tmp_path / "copy")
  assert finish(jobs) == [2, 2]
  for job in jobs:
    assert_told(job, "process 1: code=")
  assert not workdir.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("mode", "config"),
  [
    ("train", "configs/base.py"),
    ("evaluate", "configs/base.py"),
    ("evaluate", None),
  ],
)
def test_a_workdir_that_is_not_shared_is_refused_by_all(
  mode, config, tmp_path, prepared, finished_run
):
  """Whether it is there already, or is yet to be made."""
  mine, other = tmp_path / "mine", tmp_path / "other"
  if mode == "evaluate":
    shutil.copytree(finished_run.workdir, mine)
  if config and mode == "evaluate":
    shutil.copytree(finished_run.workdir, other)
  before = sorted(tmp_path.rglob("*"))
  jobs = start(
    prepared, mine, 2, 1, other_workdir=other, mode=mode, config=config
  )
  assert finish(jobs) == [2, 2]
  for job in jobs:
    assert_told(job, "process 1 cannot see --workdir=")
  said = {job.said for job in jobs}
  assert [x for x in sorted(tmp_path.rglob("*")) if x not in said] == before


# Starts the launcher, but reads its data late.
LATE = """
import time
from bert_jax import main
from bert_jax.training import jobs
before = jobs.open_job
def open_job(*args):
  time.sleep({secs})
  return before(*args)
jobs.open_job = open_job
main.run()
"""


@pytest.mark.slow
def test_a_process_may_come_later_than_collectives_wait(tmp_path, prepared):
  """Those of CPUs wait for 30 seconds."""
  program = ("-c", LATE.format(secs=70))
  jobs = start(
    prepared, tmp_path / "run", 2, 2, program=program, train__total_steps=4
  )
  assert finish(jobs) == [0, 0]
  assert "waiting for process 1" in jobs[0].said.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named_by_the_other_within_seconds(
  victim, tmp_path, prepared
):
  jobs = start(prepared, tmp_path / "run", 2, 2)
  wait_for_lines(tmp_path / "run", 10, jobs)
  jobs[victim].kill()
  begin = time.monotonic()
  jobs[1 - victim].wait(peers.HEARTBEAT_SECS)
  secs = time.monotonic() - begin
  statuses = finish(jobs)
  print(f"survivor of process {victim} left after {secs:.1f} s")
  assert statuses[1 - victim] == 69
  assert_told(jobs[1 - victim], f"process {victim} was killed", "same command")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_is_named_by_the_other(victim, tmp_path, prepared):
  jobs = start(prepared, tmp_path / "run", 2, 2)
  wait_for_lines(tmp_path / "run", 10, jobs)
  jobs[victim].send_signal(signal.SIGSTOP)
  jobs[1 - victim].wait(peers.HEARTBEAT_SECS + 120)
  jobs[victim].kill()
  assert finish(jobs)[1 - victim] == 69
  assert_told(jobs[1 - victim], f"process {victim} was killed, is stopped")


# Starts the launcher, whose third step does not end, while jax's heartbeats go
# on.
STILL = """
import time
from bert_jax import main
from bert_jax.training import meter
before = meter.Meter.count
def count(self, batch, metrics):
  before(self, batch, metrics)
  if self.bar.tasks[0].completed == 3:
    time.sleep(10000)
meter.Meter.count = count
main.run()
"""


@pytest.mark.slow
def test_a_job_that_stands_still_is_ended_by_the_watchdog(tmp_path, prepared):
  limit = 90.0  # compiling has to fit
  jobs = start(
    prepared, tmp_path / "run", 2, 2, program=("-c", STILL),
    train__max_stall_secs=limit,
  )  # fmt: skip
  assert finish(jobs) == [69, 69]
  for job in jobs:  # whichever of them noticed first
    assert_told(job, "no progress for", "training at step", "max_stall_secs")


# Starts the launcher, where a step fails as no one foresaw.
ODD = """
from bert_jax import main
from bert_jax.training import meter
def count(self, batch, metrics):
  raise KeyError("odd")
meter.Meter.count = count
main.run()
"""


@pytest.mark.slow
def test_a_process_with_an_error_of_its_own_keeps_its_status(
  tmp_path, prepared
):
  jobs = start(prepared, tmp_path / "run", 2, 2, program=("-c", ODD))
  assert finish(jobs) == [69, 1]
  assert "KeyError: 'odd'" in jobs[1].said.read_text()
  assert_told(jobs[0], "process 1 failed: KeyError: 'odd'")


@pytest.mark.slow
def test_a_workdir_in_use_is_refused_by_all_with_the_reason(tmp_path, prepared):
  run = tmp_path / "run"
  run.mkdir()
  with locks.lock(str(run)):
    jobs = start(prepared, run, 2, 1)
    assert finish(jobs) == [2, 2]
  for job in jobs:
    assert_told(job, f"in use by process {os.getpid()}")
