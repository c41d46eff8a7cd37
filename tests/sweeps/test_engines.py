"""Tests of engines.py: what clusters are asked to run."""

import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest

from bert_jax.launching import jobs
from bert_jax.launching import slurm
from bert_jax.sweeps import engines
from bert_jax.sweeps import running
from bert_jax.sweeps import sweep
from tests.support import sweep_trials

launcher = sweep_trials.launcher
POPEN = subprocess.Popen
XPK = {
  "cluster": "slices", "tpu-type": "v5litepod-16", "docker-image": "gcr/bert",
  "zone": "us-west4-a", "num-slices": 2,
}  # fmt: skip


@pytest.fixture
def trials(tmp_path):
  config = sweep.make(
    sweep.trial("configs/base.py", {"optim.learning_rate": rate, "seed": seed})
    for rate in (1e-4, 5e-5)
    for seed in (0, 1)
  )
  return sweep.read_trials(config, str(tmp_path / "runs"))


def test_a_workload_of_xpk_starts_again_after_a_preemption(trials):
  command = engines.xpk_command(trials[0], XPK)
  assert command[:3] == ["xpk", "workload", "create"]
  options = dict(part.removeprefix("--").split("=", 1) for part in command[3:])
  assert options.pop("restart-on-exit-codes") == "69,75"
  assert int(options.pop("max-restarts")) > 0
  inner = shlex.split(options.pop("command"))
  assert inner == ["bert-jax", *trials[0].arguments()]
  name = options.pop("workload")
  assert options == {k: str(v) for k, v in XPK.items()}
  assert re.fullmatch("[a-z][-a-z0-9]*[a-z0-9]", name) and len(name) <= 40
  names = {jobs.name_of(one.name) for one in trials}
  names |= {jobs.name_of("x" * 200), jobs.name_of("é=ü")}
  assert len(names) == len(trials) + 2
  assert all(re.fullmatch("[a-z][-a-z0-9]*[a-z0-9]", n) for n in names)
  assert all(len(n) <= 40 for n in names)


@pytest.mark.parametrize("lost", ["cluster", "tpu-type", "docker-image"])
def test_xpk_is_not_asked_without_what_it_needs(trials, lost):
  settings = {k: v for k, v in XPK.items() if k != lost}
  with pytest.raises(sweep.SweepError, match=f"does not set {lost}"):
    engines.xpk_command(trials[0], settings)


def test_what_xpk_refuses_is_said(trials, monkeypatch):
  sent = []

  def run(command, check):
    sent.append(command)
    return subprocess.CompletedProcess(command, len(sent) == 1)

  monkeypatch.setattr(engines.subprocess, "run", run)
  with pytest.raises(
    sweep.SweepError, match="refused 1 workloads; the first: xpk workload"
  ):
    engines.send(trials, XPK)
  assert len(sent) == len(trials)  # one that was sent before stops no other
  monkeypatch.undo()
  monkeypatch.setenv("PATH", "")
  with pytest.raises(sweep.SweepError, match=r"pip install 'bert_jax\[xpk\]'"):
    engines.send(trials, XPK)


GKE = {"topology": "v5e:4x4", "image": "host/image:1", "spot": True}


def test_a_trial_on_gke_is_a_job_of_its_own(trials, monkeypatch):
  monkeypatch.setattr(sweep.Trial, "is_done", lambda one: False)
  trials = [
    dataclasses.replace(one, workdir=f"gs://bucket/runs/{one.name}")
    for one in trials
  ]
  sent, refused = [], jobs.name_of(trials[1].name)

  def send(job):
    sent.append(job)
    if job.name == refused:
      raise jobs.LaunchError("it is there already")
    return "sent"

  monkeypatch.setattr(engines.gke, "send", send)
  with pytest.raises(sweep.SweepError, match="refused 1 jobs; .*already"):
    engines.SENDERS["gke"](trials, "", GKE)
  assert [list(job.arguments) for job in sent] == [
    one.arguments() for one in trials
  ]
  assert len({job.name for job in sent}) == len(trials)
  for job in sent:
    jobs.check_name(job.name)
    assert job.topology.num_hosts == 4 and job.settings["spot"]


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"topology": ""}, "does not set topology"),
    ({"topology": "v5e:3x3"}, "no such slice"),
    ({"image": ""}, "--image="),
    ({"colour": "red"}, "no setting 'colour'"),
  ],
)
def test_nothing_is_sent_to_gke_if_a_setting_is_wrong(
  trials, monkeypatch, change, words
):
  monkeypatch.setattr(engines.gke, "send", pytest.fail)
  with pytest.raises(sweep.SweepError, match=words):
    engines.SENDERS["gke"](trials, "", GKE | change)


def test_an_engine_that_runs_no_trials_is_refused(trials):
  config = sweep.make([sweep.trial("configs/base.py")], gke=GKE)
  assert sweep.engine_settings(config, "gke") == GKE
  with pytest.raises(sweep.SweepError, match="--engine=vm; use one of slurm"):
    sweep.engine_settings(config, "vm")


@pytest.mark.parametrize("engine", ["gke", "xpk"])
def test_what_pods_would_lose_or_lack_is_refused(trials, monkeypatch, engine):
  settings = {
    "gke": {"topology": "v5e:4x4", "image": "host/image:1"}, "xpk": XPK,
  }[engine]  # fmt: skip
  sent = []
  monkeypatch.setattr(engines.gke, "send", sent.append)
  monkeypatch.setattr(
    engines.subprocess,
    "run",
    lambda words, check: (
      sent.append(words) or subprocess.CompletedProcess(words, 0)
    ),
  )
  with pytest.raises(sweep.SweepError, match="trial .*--workdir=.*gs://BUCKET"):
    engines.SENDERS[engine](trials, "", settings)
  assert not sent
  monkeypatch.setattr(sweep.Trial, "is_done", lambda one: False)
  config = sweep.make([sweep.trial("configs/base.py", {"seed": 1})])
  remote = sweep.read_trials(config, "gs://bucket/runs")
  engines.SENDERS[engine](remote, "gs://bucket/runs", settings)
  assert len(sent) == 1
  here = str(sweep_trials.__file__)
  config = sweep.make([sweep.trial("configs/base.py", {"data.dir": here})])
  remote = sweep.read_trials(config, "gs://bucket/runs")
  with pytest.raises(sweep.SweepError, match=r"--config\.data\.dir="):
    engines.SENDERS[engine](remote, "gs://bucket/runs", settings)
  assert len(sent) == 1


def test_a_number_of_slices_that_is_none_is_refused(trials):
  settings = {"topology": "v5e:4x4", "image": "i", "num_slices": "two"}
  with pytest.raises(sweep.SweepError, match="num_slices='two'"):
    engines.gke_job(trials[0], settings)


def fake_launcher(monkeypatch, code):
  """Has trials run a piece of Python, given their workdir."""

  def start(command, **kwargs):
    assert command[1:3] == ["-m", "bert_jax.main"]
    workdir = command[-1].removeprefix("--workdir=")
    return POPEN([sys.executable, "-c", code, workdir], **kwargs)

  monkeypatch.setattr(slurm.subprocess, "Popen", start)


def test_a_trial_goes_on_until_it_is_done_or_fails(
  trials, tmp_path, monkeypatch
):
  path = tmp_path / "count"
  code = (
    f"import sys; f = open({str(path)!r}, 'a'); f.write('x'); f.close();"
    f" sys.exit([75, 69, 0][len(open({str(path)!r}).read()) - 1])"
  )
  fake_launcher(monkeypatch, code)
  assert slurm.Training(trials[0].arguments())() == 0
  assert path.read_text() == "xxx"
  fake_launcher(monkeypatch, "import sys; sys.exit(2)")
  with pytest.raises(slurm.FailedError, match="bert-jax .*train .*status 2"):
    slurm.Training(trials[0].arguments())()


def test_a_preempted_trial_saves_and_is_queued_again(
  trials, tmp_path, monkeypatch
):
  helpers = pytest.importorskip("submitit.helpers")
  path = tmp_path / "saved"
  code = (
    "import signal, sys, time\n"
    f"def save(*_): open({str(path)!r}, 'w').close(); sys.exit(75)\n"
    "signal.signal(signal.SIGTERM, save)\n"
    f"open({str(path)!r} + '.begun', 'w').close()\n"
    "time.sleep(60)"
  )
  fake_launcher(monkeypatch, code)
  training = slurm.Training(trials[0].arguments())
  found = []

  def interrupt(*_):  # where submitit calls it: while the trial is waited for
    begin = time.monotonic()
    found.append(training.checkpoint())
    found.append(time.monotonic() - begin)
    raise InterruptedError

  before = signal.signal(signal.SIGUSR2, interrupt)
  timer = threading.Thread(target=interrupt_when, args=(tmp_path,))
  timer.start()
  try:
    with pytest.raises(InterruptedError):
      training()
  finally:
    signal.signal(signal.SIGUSR2, before)
    timer.join()
  again, secs = found
  assert path.exists() and training._process.returncode == 75
  assert secs < 20
  assert isinstance(again, helpers.DelayedSubmission)
  assert again.function.arguments == training.arguments


def test_a_trial_that_slurm_stops_saves_and_is_not_started_again(
  trials, tmp_path, monkeypatch
):
  path = tmp_path / "saved"
  code = (
    "import signal, sys, time\n"
    f"def save(*_): open({str(path)!r}, 'a').write('x'); sys.exit(75)\n"
    "signal.signal(signal.SIGTERM, save)\n"
    f"open({str(path)!r} + '.begun', 'w').close()\n"
    "time.sleep(60)"
  )
  fake_launcher(monkeypatch, code)
  monkeypatch.setattr(slurm, "_KILL_SECS", 0)
  before = signal.getsignal(signal.SIGTERM)
  timer = threading.Thread(
    target=interrupt_when, args=(tmp_path, signal.SIGTERM)
  )
  timer.start()
  try:
    with pytest.raises(
      slurm.StoppedError, match="bert-jax .*told to stop"
    ) as caught:
      slurm.Training(trials[0].arguments())()
  finally:
    timer.join()
  assert caught.value.exit_status == 75
  assert path.read_text() == "x"
  assert signal.getsignal(signal.SIGTERM) == before


def interrupt_when(folder, number=signal.SIGUSR2):
  while not (folder / "saved.begun").exists():
    time.sleep(0.02)
  os.kill(os.getpid(), number)


@pytest.mark.slow
def test_submitit_runs_real_trials_on_this_machine(
  tmp_path, finished_run, monkeypatch
):
  pytest.importorskip("submitit")
  from tests.support import sweep_folders

  trials, workdir = sweep_folders.make_trials(finished_run, tmp_path)
  monkeypatch.chdir(sweep_folders.ROOT)
  queued = engines.submit(trials, workdir, {"timeout_min": 5}, cluster="local")
  assert len(queued) == 1  # the other is done
  assert queued[0].result() == 0
  assert all(one.is_done() for one in trials)
  assert engines.submit(trials, workdir, {}, cluster="local") == []
  with pytest.raises(sweep.SweepError, match="submitit: .*no_such_thing"):
    engines.submit(trials, workdir, {"no_such_thing": 1}, cluster="local")


def test_commands_are_those_of_what_is_not_done(tmp_path, launcher):
  trials = sweep_trials.seeds(1, 2, workdir=tmp_path)
  running.run(trials[:1], str(tmp_path), launcher=launcher)
  path = tmp_path / "commands.txt"
  assert engines.write_commands(trials, str(path)) == 1
  (line,) = path.read_text().splitlines()
  assert shlex.split(line) == ["bert-jax", *trials[1].arguments()]
