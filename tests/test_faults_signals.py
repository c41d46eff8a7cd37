"""Real processes that are told to stop at any moment.

FAULTS_KILLS says how often training is told (preparing data: a fifth of that),
FAULTS_SEED which moments are drawn.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import time

import pytest

from bert_jax.runtime import signals
from bert_jax.sweeps import running
from tests.support import corpora
from tests.support import fault_runs
from tests.support import host_processes

pytestmark = pytest.mark.slow

straight = fault_runs.straight
TOLD = max(fault_runs.KILLS // 2, 4)


def strike_with(number):
  """A function that tells a process, and those that it started, to stop."""

  def strike(process):
    # Python itself starts for some hundredths of a second before.
    while process.poll() is None and not is_guarded(process):
      time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, number)

  return strike


def is_guarded(process):
  """Whether a process handles SIGTERM, or keeps it back until it does."""
  try:
    with open(f"/proc/{process.pid}/status") as file:
      lines = dict(line.split(":", 1) for line in file)
  except OSError:  # it has ended, or there is no /proc
    return True
  masks = (int(lines.get(key, "0"), 16) for key in ("SigBlk", "SigCgt"))
  return any(mask >> (signal.SIGTERM - 1) & 1 for mask in masks)


def assert_told_once(status, said, allowed):
  assert status in allowed, (status, said)
  assert "Traceback" not in said and "Exception ignored" not in said, said


def test_a_run_that_is_told_to_stop_ends_as_if_never_told(
  tmp_path, prepared, straight
):
  rng = random.Random(fault_runs.SEED)
  killer = fault_runs.Killer(fault_runs.PHASES, fault_runs.RETURNING, rng)
  statuses = []
  while killer.kills.total() < TOLD:
    workdir = tmp_path / f"run-{len(statuses)}"
    status = None
    while status != 0:
      watched = fault_runs.Training(workdir)
      args = fault_runs.train_command(prepared, workdir)
      process = fault_runs.start(args, tmp_path / "said")
      told = killer.kills.total() < TOLD
      number = rng.choice(signals.STOPPING)
      status = killer.watch(
        process, watched.phase, strike_with(number) if told else None
      )
      said = (tmp_path / "said").read_text()
      assert_told_once(status, said, (0, 75, 130))
      statuses.append(status)
      if status == 75:  # saved where it stopped, or by an earlier start
        step = fault_runs.saved_steps(workdir, "checkpoints")[-1]
        assert re.search(rf"(saving|goes on from) step {step}\b", said)
      elif status == 130:
        assert not fault_runs.saved_steps(workdir, "checkpoints")
    assert fault_runs.rows(workdir) == fault_runs.rows(straight)
    found, wanted = (
      fault_runs.read_step(x / "checkpoints" / str(fault_runs.TOTAL))
      for x in (workdir, straight)
    )
    assert found.keys() == wanted.keys()
    assert all(found[k].tobytes() == wanted[k].tobytes() for k in wanted)
    killer.report(f"told to stop ({statuses})")
  assert {75, 130} <= set(statuses)


@pytest.mark.parametrize("phase", ["start-up", "compiling", "mid-step"])
def test_a_second_signal_ends_training_at_once(phase, tmp_path, prepared):
  workdir = tmp_path / "run"
  args = fault_runs.train_command(
    prepared, workdir, "--compile_cache=off", model__num_layers=12
  )
  process = fault_runs.start(args, tmp_path / "said")
  watched = fault_runs.Training(workdir)
  try:
    while watched.phase() != phase:
      assert process.poll() is None
      time.sleep(0.001)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    status = process.wait(60)
    assert time.monotonic() - began < 3
  finally:
    fault_runs.kill(process)
  # It may have saved before the second one came.
  allowed = (75, 130) if phase == "mid-step" else (130,)
  assert_told_once(status, (tmp_path / "said").read_text(), allowed)


def test_training_under_nohup_outlives_its_terminal(tmp_path, prepared):
  args = fault_runs.train_command(
    prepared, tmp_path / "run", train__total_steps=30
  )
  with open(tmp_path / "said", "w") as said:
    process = subprocess.Popen(
      ["nohup", *args],
      cwd=fault_runs.ROOT,
      env=fault_runs.environ(),
      stdout=subprocess.DEVNULL,
      stderr=said,
    )
  watched = fault_runs.Training(tmp_path / "run")
  while watched.phase() != "mid-step" and process.poll() is None:
    time.sleep(0.001)
  process.send_signal(signal.SIGHUP)
  assert process.wait(fault_runs.LIFE_SECS) == 0


def test_training_goes_on_when_nobody_reads_what_it_prints(tmp_path, prepared):
  args = fault_runs.train_command(
    prepared, tmp_path / "run", train__total_steps=30
  )
  process = subprocess.Popen(
    args,
    cwd=fault_runs.ROOT,
    env=fault_runs.environ(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )
  process.stdout.readline()
  process.stdout.close()
  assert process.wait(fault_runs.LIFE_SECS) == 0
  assert fault_runs.saved_steps(tmp_path / "run", "checkpoints") == [30]


def test_predicting_ends_when_nobody_reads_it(tmp_path, finished_run):
  lines = tmp_path / "lines.jsonl"
  lines.write_text('{"text": "sun [MASK] sun"}\n' * 20_000)
  command = [*fault_runs.command("predict", {}), "--config"]
  command = [a for a in command if not a.startswith("--config")]
  done = subprocess.run(
    f"{' '.join(command)} --workdir={finished_run.workdir} --input={lines} "
    "| head -1; echo ${PIPESTATUS[0]}",
    shell=True,
    executable="/bin/bash",
    cwd=fault_runs.ROOT,
    env=fault_runs.environ(),
    capture_output=True,
    text=True,
  )
  assert done.stdout.splitlines()[1] == "141", done
  assert not re.search("Traceback|Error|Exception", done.stderr), done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_training_with_closed_streams_is_as_with_open_ones(
  closed, tmp_path, prepared
):
  args = fault_runs.train_command(
    prepared, tmp_path / "run", train__total_steps=10
  )
  done = subprocess.run(
    f"exec {' '.join(args)} {closed}",
    shell=True,
    cwd=fault_runs.ROOT,
    env=fault_runs.environ(),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert "Traceback" not in done.stderr
  assert fault_runs.saved_steps(tmp_path / "run", "checkpoints") == [10]


# --- preparing data -----------------------------------------------------------


def test_preparation_that_is_told_to_stop_ends_as_if_never_told(tmp_path):
  documents = corpora.make_documents(1200)
  text = corpora.write_text(tmp_path / "text.txt", documents)
  straight = tmp_path / "straight"
  assert fault_runs.run(fault_runs.prepare_command(text, straight))[0] == 0
  rng = random.Random(fault_runs.SEED)
  killer = fault_runs.Killer(
    fault_runs.STAGES, frozenset({"manifest", "tidying"}), rng
  )
  data, status, statuses = tmp_path / "data", None, []
  while status != 0 or killer.kills.total() < max(TOLD // 5, 2):
    if status == 0:
      assert corpora.tree(data) == corpora.tree(straight)
      data.rename(tmp_path / f"data-{len(statuses)}")
    told = killer.kills.total() < max(TOLD // 5, 2)
    process = fault_runs.start(
      fault_runs.prepare_command(text, data), tmp_path / "said"
    )
    status = killer.watch(
      process,
      lambda: fault_runs.stage_of(data),
      strike_with(rng.choice(signals.STOPPING)) if told else None,
    )
    said = (tmp_path / "said").read_text()
    assert_told_once(status, said, (0, 130))
    statuses.append(status)
  assert corpora.tree(data) == corpora.tree(straight)
  killer.report(f"preparation told to stop ({statuses})")


# --- sweeps -------------------------------------------------------------------


def sweep_of(tmp_path, prepared):
  """The command of a sweep of two trials, and the trials."""
  settings = fault_runs.SETTINGS | {"data.dir": str(prepared)}
  path = tmp_path / "sweep.py"
  path.write_text(
    "from bert_jax.sweeps import sweep\n"
    "def get_config():\n"
    f"  settings = {settings!r}\n"
    "  return sweep.make(\n"
    "    sweep.trial('configs/base.py', settings | {'seed': seed})\n"
    "    for seed in (0, 1))\n"
  )
  workdir = tmp_path / "runs"
  command = fault_runs.command("sweep", {}, f"--workdir={workdir}")
  command = [a for a in command if not a.startswith("--config")]
  command += [f"--config={path}", "--num_parallel=2"]
  return command, [workdir / f"seed={seed}" for seed in (0, 1)]


def wait_for_steps(workdirs, process):
  """Until every trial is in its steps."""
  for workdir in workdirs:
    log = workdir / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size):
      assert process.poll() is None
      time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("early", [True, False])
def test_a_sweep_that_is_told_to_stop_has_its_trials_save(
  number, early, tmp_path, prepared, straight
):
  command, workdirs = sweep_of(tmp_path, prepared)
  process = fault_runs.start(command, tmp_path / "said")
  if early:
    while not (tmp_path / "runs" / "sweep.jsonl").exists():
      assert process.poll() is None
      time.sleep(0.01)
  else:
    wait_for_steps(workdirs, process)
  strike_with(number)(process)
  status = process.wait(fault_runs.LIFE_SECS)
  assert_told_once(status, (tmp_path / "said").read_text(), (75,))
  events = [e["event"] for e in running.Journal(str(tmp_path / "runs")).read()]
  assert "failed" not in events and events[-1] == "preempted"
  if not early:
    for workdir in workdirs:
      assert fault_runs.saved_steps(workdir, "checkpoints")
  status, said = fault_runs.run(command)
  assert status == 0, said
  assert fault_runs.rows(workdirs[0]) == fault_runs.rows(straight)


@pytest.mark.parametrize("early", [True, False])
def test_a_sweep_whose_main_process_is_killed_waits_for_its_trials(
  early, tmp_path, prepared, straight
):
  command, workdirs = sweep_of(tmp_path, prepared)
  process = fault_runs.start(command, tmp_path / "said")
  if early:
    while len(running.Journal(str(tmp_path / "runs")).read()) < 2:
      assert process.poll() is None
      time.sleep(0.01)
  else:
    wait_for_steps(workdirs, process)
  process.kill()
  process.wait()
  status, said = fault_runs.run(command)
  assert status == 0, said
  assert "which is already running as process" in said
  events = running.Journal(str(tmp_path / "runs")).read()
  assert "failed" not in [e["event"] for e in events]
  adopted = [e["trial"] for e in events if e.get("adopted")]
  assert adopted if early else sorted(adopted) == ["seed=0", "seed=1"]
  assert fault_runs.rows(workdirs[0]) == fault_runs.rows(straight)


# --- several processes --------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_all_processes_of_a_job_save_one_step_whichever_is_told(
  number, tmp_path, prepared
):
  jobs = host_processes.start(prepared, tmp_path / "run", 2, 4)
  host_processes.wait_for_lines(tmp_path / "run", 20, jobs)
  jobs[1].send_signal(number)
  assert host_processes.finish(jobs) == [75, 75]
  (step,) = {
    int(line.rsplit(" ", 1)[1])
    for job in jobs
    for line in job.said.read_text().splitlines()
    if "saving step" in line
  }
  assert fault_runs.saved_steps(tmp_path / "run", "checkpoints")[-1] == step


# Connects to the others, and then says nothing to them.
SILENT = (
  "-c",
  "import time; from bert_jax import main; from bert_jax.runtime import hosts;"
  "hosts.decide = lambda *_: time.sleep(1000); main.run()",
)


def test_a_process_that_waits_for_another_ends_at_the_first_signal(
  tmp_path, prepared
):
  jobs = host_processes.start(prepared, tmp_path / "run", 2, 2, program=SILENT)
  try:
    while "process 0 of 2" not in jobs[0].said.read_text():
      time.sleep(0.05)
      assert jobs[0].poll() is None
    time.sleep(3)  # it waits for what the other never says
    began = time.monotonic()
    jobs[0].send_signal(signal.SIGTERM)
    status = jobs[0].wait(60)
    assert time.monotonic() - began < 10
    assert_told_once(status, jobs[0].said.read_text(), (130,))
  finally:
    for job in jobs:
      job.kill()
      job.wait()


def test_the_second_signal_ends_a_process_of_several_at_once(
  tmp_path, prepared
):
  """The first has no effect, as the process that would agree stands still."""
  jobs = host_processes.start(prepared, tmp_path / "run", 2, 2)
  try:
    host_processes.wait_for_lines(tmp_path / "run", 3, jobs)
    jobs[0].send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    jobs[1].send_signal(signal.SIGTERM)
    time.sleep(2)
    assert jobs[1].poll() is None
    began = time.monotonic()
    jobs[1].send_signal(signal.SIGTERM)
    assert jobs[1].wait(60) == 130
    assert time.monotonic() - began < 3
  finally:
    for job in jobs:
      job.kill()
      job.wait()
