"""Tests of running.py: what is run and what is not, failures, being stopped."""

import fcntl
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from bert_jax.runtime import locks
from bert_jax.runtime import settings
from bert_jax.sweeps import costs
from bert_jax.sweeps import results
from bert_jax.sweeps import running
from bert_jax.sweeps import sweep
from configs import finetune
from tests.support import launching
from tests.support import small_tasks
from tests.support import sweep_trials
from tests.support.sweep_trials import calls
from tests.support.sweep_trials import seeds
from tests.support.sweep_trials import trials_of_tasks

ROOT = sweep_trials.ROOT
launcher = sweep_trials.launcher


launch = launching.launch


def test_every_trial_runs_once_and_failures_stay_visible(tmp_path, launcher):
  trials = seeds(1, 2, 3, 5, 4, workdir=tmp_path)
  with pytest.raises(
    running.FailedError, match="1 of 5 .*seed=5.*retry_failed"
  ):
    running.run(trials, str(tmp_path), 2, launcher=launcher)
  assert sorted(calls(tmp_path)) == [
    1,
    2,
    3,
    3,
    4,
    5,
  ]  # 3 was preempted once
  states = [state for _, state, _ in costs.listing(trials, str(tmp_path), str)]
  assert states == ["done", "done", "done", "failed", "done"]
  assert "it cannot be" in (tmp_path / "seed=5" / "log.txt").read_text()
  # Again: nothing is left to do, and the failure is still one.
  with pytest.raises(running.FailedError, match="seed=5"):
    running.run(trials, str(tmp_path), launcher=launcher)
  assert len(calls(tmp_path)) == 6
  # A trial more, and the failed one if asked to.
  more = seeds(1, 2, 3, 5, 4, 9, workdir=tmp_path)
  with pytest.raises(running.FailedError, match="1 of 6"):
    running.run(more, str(tmp_path), retry_failed=True, launcher=launcher)
  assert calls(tmp_path)[6:] == [5, 9]
  events = running.Journal(str(tmp_path)).read()
  assert [e["event"] for e in events if e["trial"] == "seed=3"] == [
    "started", "preempted", "started", "done",
  ]  # fmt: skip
  assert all(
    secs > 0 for secs in running.Journal(str(tmp_path)).seconds().values()
  )


def start_sweep(tmp_path, launcher, *numbers, num_parallel=1):
  """A process that runs the trials of some seeds."""
  code = (
    "import logging, pathlib, sys; from tests.support import sweep_trials;"
    "from bert_jax.sweeps import running; w = pathlib.Path(sys.argv[1]);"
    "logging.basicConfig(level=logging.INFO, force=True);"
    f"running.run(sweep_trials.seeds(*{numbers}, workdir=w), str(w),"
    f" {num_parallel}, launcher=sys.argv[2:])"
  )
  return subprocess.Popen(
    [sys.executable, "-c", code, str(tmp_path), *launcher],
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


def wait_until_it_waits(process):
  """Until the sweep says that a trial is already running."""
  while "is already running as process" not in (
    line := process.stderr.readline()
  ):
    assert line


def killed_sweep(tmp_path, launcher, *numbers):
  """Starts a sweep whose trials all run, and kills its main process."""
  process = start_sweep(tmp_path, launcher, *numbers, num_parallel=9)
  path = tmp_path / "calls"
  while not path.exists() or len(calls(tmp_path)) < len(numbers):
    time.sleep(0.02)
    assert process.poll() is None
  process.kill()
  process.communicate()


def test_trials_of_a_killed_sweep_are_waited_for(tmp_path, launcher):
  """They have not even locked their workdirs when it is killed."""
  killed_sweep(tmp_path, launcher, 7)
  trials = seeds(7, 1, workdir=tmp_path)
  name = (tmp_path / "seed=7" / ".trial.lock").read_text()
  assert running._holder(trials[0]) == name
  os.kill(locks.pid_of(name), 0)
  assert running._holder(trials[1]) is None
  timer = threading.Timer(1.0, (tmp_path / "go").touch)
  timer.start()
  running.run(trials, str(tmp_path), launcher=launcher)
  assert calls(tmp_path) == [7, 1]  # it was not started again
  assert [t.state() for t in trials] == ["done", "done"]
  journal = running.Journal(str(tmp_path))
  assert [e["event"] for e in journal.read()] == [
    "started", "done", "started", "done",
  ]  # fmt: skip
  # How long the first one ran is not known.
  assert journal.seconds().keys() == {"seed=1"}
  timer.join()


def test_a_trial_that_outlives_its_sweep_and_is_not_done_is_run_again(
  tmp_path, launcher
):
  killed_sweep(tmp_path, launcher, 6)
  trials = seeds(6, workdir=tmp_path)
  timer = threading.Timer(0.5, (tmp_path / "go").touch)
  timer.start()
  running.run(trials, str(tmp_path), launcher=launcher)
  timer.join()
  assert calls(tmp_path) == [6, 6]
  events = [e["event"] for e in running.Journal(str(tmp_path)).read()]
  assert events == ["started", "preempted", "started", "done"]


def test_trials_that_run_already_count_as_parallel_ones(tmp_path, launcher):
  killed_sweep(tmp_path, launcher, 7, 6)
  go = tmp_path / "go"
  process = start_sweep(tmp_path, launcher, 7, 6, 1, num_parallel=2)
  wait_until_it_waits(process)
  time.sleep(1)
  assert sorted(calls(tmp_path)) == [6, 7]
  go.touch()
  process.communicate(timeout=60)
  assert sorted(calls(tmp_path)) == [1, 6, 6, 7]


def test_a_run_by_hand_in_the_workdir_of_a_trial_is_waited_for(
  tmp_path, launcher
):
  (one,) = trials = seeds(1, workdir=tmp_path)
  os.makedirs(one.workdir)
  with locks.lock(one.workdir):
    assert locks.pid_of(running._holder(one)) == os.getpid()
    process = start_sweep(tmp_path, launcher, 1)
    wait_until_it_waits(process)
    time.sleep(1)
    assert process.poll() is None and not (tmp_path / "calls").exists()
  process.communicate(timeout=60)
  assert calls(tmp_path) == [1]
  assert trials[0].is_done()


def test_a_stopped_sweep_stops_the_trials_that_it_waits_for(tmp_path, launcher):
  process = start_sweep(tmp_path, launcher, 8)
  while not (tmp_path / "waits").exists():
    time.sleep(0.02)
    assert process.poll() is None
  process.kill()
  process.communicate()
  process = start_sweep(tmp_path, launcher, 8)
  wait_until_it_waits(process)
  time.sleep(0.5)
  process.send_signal(signal.SIGINT)
  assert "StoppedError" in process.communicate(timeout=60)[1]
  assert calls(tmp_path) == [8]
  last = running.Journal(str(tmp_path)).read()[-1]
  assert last["event"] == "preempted" and last["adopted"]


@pytest.mark.parametrize(
  ("early", "number"),
  [
    (False, signal.SIGTERM),
    (True, signal.SIGTERM),
    (False, signal.SIGINT),
  ],
)
def test_a_sweep_that_is_told_to_stop_tells_its_trials(
  tmp_path, launcher, early, number
):
  process = start_sweep(tmp_path, launcher, 8, 9)
  waits = "calls" if early else "waits"  # has it a handler yet?
  while not (tmp_path / waits).exists():
    time.sleep(0.02)
    assert process.poll() is None
  os.killpg(process.pid, number)  # as machines that go down do
  said = process.communicate(timeout=60)[1]
  assert "StoppedError" in said
  assert calls(tmp_path) == [8]  # 9 was not begun
  last = running.Journal(str(tmp_path)).read()[-1]
  assert last["event"] == "preempted"
  assert last["status"] == (-signal.SIGTERM if early else 75)
  states = [
    state
    for _, state, _ in costs.listing(
      seeds(8, 9, workdir=tmp_path), str(tmp_path), str
    )
  ]
  assert states == ["new" if early else "begun", "new"]


@pytest.mark.parametrize(
  "holder",
  ["1", "", "{pid}", "{pid} elsewhere - -", "{pid} {machine}-other"],
)
def test_a_process_of_another_machine_or_container_is_never_signalled(
  tmp_path, monkeypatch, caplog, holder
):
  """Its number may be that of an unrelated process here."""
  told = []
  monkeypatch.setattr(running.os, "kill", lambda *a: told.append(a))
  pid, machine = locks.process_name(os.getpid()).split(" ", 1)
  (one,) = seeds(1, workdir=tmp_path)
  os.makedirs(one.workdir)
  with locks.lock(one.workdir):
    path = pathlib.Path(one.workdir, ".lock")
    own = running._Adopted((one,), path.read_text())
    own.terminate()
    assert told == [(os.getpid(), signal.SIGTERM)]
    path.write_text(holder.format(pid=pid, machine=machine))
    other = running._Adopted((one,), running._holder(one))
    other.terminate()
  assert len(told) == 1
  assert other.is_out_of_reach and not own.is_out_of_reach
  assert "seed=1" in caplog.text


def test_a_process_of_another_user_raises_nothing(tmp_path, monkeypatch):
  def kill(*_):
    raise PermissionError

  monkeypatch.setattr(running.os, "kill", kill)
  (one,) = seeds(1, workdir=tmp_path)
  os.makedirs(one.workdir)
  with locks.lock(one.workdir):
    adopted = running._Adopted((one,), running._holder(one))
    adopted.terminate()
  assert adopted.is_out_of_reach


@pytest.mark.parametrize("name", [".trial.lock", ".lock"])
def test_a_link_in_the_place_of_a_lock_overwrites_nothing(
  tmp_path, launcher, name
):
  victim = tmp_path / "victim"
  victim.write_text("precious")
  (one,) = seeds(1, workdir=tmp_path)
  os.makedirs(one.workdir)
  pathlib.Path(one.workdir, name).symlink_to(victim)
  with pytest.raises(OSError, match=re.escape(name)):
    running.run([one], str(tmp_path), launcher=launcher)
  assert not (tmp_path / "calls").exists()
  assert victim.read_text() == "precious"
  if name == ".trial.lock":
    with (
      pytest.raises(OSError, match=name),
      locks.claim(running._claim_path(one)),
    ):
      pass
    assert victim.read_text() == "precious"


def test_asking_whether_a_trial_runs_refuses_no_run(tmp_path):
  with open(tmp_path / ".lock", "w") as file:
    fcntl.flock(file, fcntl.LOCK_SH)
    timer = threading.Timer(0.2, fcntl.flock, (file, fcntl.LOCK_UN))
    timer.start()
    with locks.lock(str(tmp_path)):
      assert not timer.is_alive()


def test_a_failure_that_was_done_elsewhere_is_none_any_more(tmp_path, launcher):
  trials = seeds(1, 5, workdir=tmp_path)
  with pytest.raises(running.FailedError):
    running.run(trials, str(tmp_path), launcher=launcher)
  # Not in the sweep any more, and then finished by hand.
  running.run(trials[:1], str(tmp_path), launcher=launcher)
  done = pathlib.Path(trials[0].workdir)
  for name in ("metrics.jsonl", "checkpoints"):
    target = pathlib.Path(trials[1].workdir, name)
    if name == "checkpoints":
      shutil.copytree(done / name, target)
    else:
      shutil.copy(done / name, target)
  running.run(trials, str(tmp_path), launcher=launcher)
  assert calls(tmp_path) == [1, 5]


def test_a_second_sweep_on_a_workdir_is_refused(tmp_path, launcher):
  with locks.lock(str(tmp_path)):
    with pytest.raises(locks.LockedError, match="is in use by process"):
      running.run(
        seeds(1, workdir=tmp_path),
        str(tmp_path),
        launcher=launcher,
      )


def test_how_long_a_trial_ran_is_known_only_where_all_of_it_is(tmp_path):
  (one,) = seeds(1, workdir=tmp_path)
  journal = running.Journal(str(tmp_path))
  journal.write(one, "started")  # and killed with the sweep
  journal.write(one, "started")
  journal.write(one, "done", seconds=10.0)
  assert journal.seconds() == {}
  (two,) = seeds(2, workdir=tmp_path)
  journal.write(two, "started")
  journal.write(two, "preempted", seconds=5.0)
  journal.write(two, "started")
  journal.write(two, "done", seconds=7.0)
  assert journal.seconds() == {"seed=2": 12.0}


def test_only_trials_of_other_seeds_and_rates_are_put_together(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(ROOT)
  trials = trials_of_tasks(tmp_path)
  batches = running.put_together(trials, 3)
  assert sorted(len(batch) for batch in batches) == [1, 1, 3, 3]
  assert sorted(t.name for b in batches for t in b) == sorted(
    t.name for t in trials
  )
  for batch in batches:
    assert len({one.load_config().task.name for one in batch}) == 1
  assert running.put_together(trials, 1) == [(one,) for one in trials]


def test_trials_that_have_begun_go_on_with_those_of_the_same_step(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(ROOT)
  trials = [t for t in trials_of_tasks(tmp_path) if "mrpc" in t.config]
  for one, saved in zip(trials, ((), (10, 20), (), (10,)), strict=True):
    for step in saved:
      os.makedirs(f"{one.workdir}/checkpoints/{step}")
  found = running.put_together(trials, 4)
  assert [[trials.index(one) for one in batch] for batch in found] == [
    [0, 2], [1, 3]
  ]  # fmt: skip
  os.rename(f"{trials[3].workdir}/checkpoints/10", tmp_path / "away")
  os.makedirs(f"{trials[3].workdir}/checkpoints/15")
  assert len(running.put_together(trials, 4)) == 3
  apart = running.put_together(trials, 4, alone={trials[0].name})
  assert [len(batch) for batch in apart] == [1] * 4


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"data.one_row_len": False}, "data.one_row_len=True"),
    ({"objective": "mlm"}, "objective=mlm: only tasks are"),
  ],
)
def test_what_cannot_be_put_together_is_refused(
  tmp_path, monkeypatch, settings, message
):
  monkeypatch.chdir(ROOT)
  trials = trials_of_tasks(tmp_path / "runs", **settings)
  with pytest.raises(sweep.SweepError, match=message):
    running.run(trials, str(tmp_path / "runs"), num_together=2)
  running.put_together(trials, 1)


def test_where_several_fail_together_each_is_tried_alone(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  script = tmp_path / "fake.py"
  script.write_text(
    "import sys\n"
    f"with open({str(tmp_path / 'calls')!r}, 'a') as f:\n"
    "  f.write(f'{sum(a.startswith(\"--member\") for a in sys.argv)} ')\n"
    "sys.exit('no')\n"
  )
  trials = trials_of_tasks(tmp_path / "runs")
  launcher = [sys.executable, str(script)]
  with pytest.raises(running.FailedError, match="8 of 8"):
    running.run(
      trials, str(tmp_path / "runs"), num_together=4, launcher=launcher
    )
  assert calls(tmp_path) == [4, 0, 0, 0, 0] * 2
  events = [
    row["event"] for row in running.Journal(str(tmp_path / "runs")).read()
  ]
  assert events.count("parted") == events.count("failed") == 8


def test_what_failed_together_only_is_tried_alone_by_the_next_sweep(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(ROOT)
  trials = [t for t in trials_of_tasks(tmp_path) if "mrpc" in t.config]
  journal = running.Journal(str(tmp_path))
  for one in trials:
    journal.write(one, "started", together=4)
    journal.write(one, "parted", status=1, seconds=1.0)
  assert not journal.failed()
  journal.write(trials[0], "started", together=1)
  journal.write(trials[0], "preempted", status=75, seconds=1.0)
  journal.write(trials[1], "started", together=1)
  found = running.put_together(trials, 4, alone=journal.parted())
  assert [len(batch) for batch in found] == [1] * 4
  journal.write(trials[1], "done", status=0, seconds=1.0)
  assert journal.parted() == {trials[i].name for i in (0, 2, 3)}


@pytest.mark.slow
def test_trials_in_one_program_are_recorded_one_by_one(
  tmp_path, launch, monkeypatch
):
  monkeypatch.chdir(ROOT)
  data = tmp_path / "data"
  data.mkdir()
  (tmp_path / "study").mkdir()
  flat, plain = (
    settings.flatten(settings.plain(config))
    for config in (
      small_tasks.make_config(data, train__num_epochs=1.0),
      finetune.get_config("task=my-classify"),
    )
  )
  changes = {k: v for k, v in flat.items() if v != plain.get(k)}
  changes |= {"data.one_row_len": True}
  path = tmp_path / "study" / "sweep.py"
  path.write_text(
    "from bert_jax.sweeps import sweep\n"
    "def get_config():\n"
    f"  settings = {changes!r}\n"
    "  return sweep.make(\n"
    "    sweep.trial('configs/finetune.py:task=my-classify',\n"
    "                settings | {'seed': seed})\n"
    "    for seed in range(3))\n"
  )
  command = (
    "--mode=sweep", f"--config={path}", f"--workdir={tmp_path / 'runs'}",
    f"--output={tmp_path / 'study'}", "--num_together=2",
  )  # fmt: skip
  assert launch(*command) == 0
  rows = results.read(str(tmp_path / "study"))
  assert [row["seed"] for row in rows] == [0, 1, 2]
  assert [row["together"] for row in rows] == [2, 2, 1]
  before = (tmp_path / "study" / "results.jsonl").read_text()
  assert launch(*command) == 0
  assert (tmp_path / "study" / "results.jsonl").read_text() == before
