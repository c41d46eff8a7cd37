"""Real runs whose data and workdir are in a bucket of a storage server.

They are killed, their server fails, their objects are damaged; they end as a
run in a folder that nothing happened to. FAULTS_KILLS and FAULTS_SEED as in
test_faults.py; half of the kills are made here.
"""

import contextlib
import json
import os
import pathlib
import random
import signal
import tempfile
import threading
import time

import pytest

from bert_jax.runtime import files
from tests.support import corpora
from tests.support import fault_runs
from tests.support import host_processes
from tests.support import storage_server as storage
from tests.support.fault_runs import KILLS
from tests.support.fault_runs import SEED
from tests.support.fault_runs import assert_told
from tests.support.fault_runs import fork as start
from tests.support.fault_runs import kill
from tests.support.fault_runs import prepare_command
from tests.support.fault_runs import run_forked as run

TOTAL, SAVED, KEPT = 60, 20, 2  # steps
# The compiled programs of all runs.
PROGRAMS = pathlib.Path(tempfile.gettempdir()) / f"programs-{os.getpid()}"

pytestmark = [pytest.mark.slow, storage.needs_server]


@pytest.fixture
def served(tmp_path, monkeypatch):
  """A server whose objects are plain files, behind a proxy that may fail."""
  proxy = storage.Proxy(SEED)
  server = storage.Server(tmp_path / "objects", proxy.url).start()
  proxy.start(server)
  for name, value in storage.environment(proxy.url).items():
    monkeypatch.setenv(name, value)
  monkeypatch.setenv("BERT_JAX_CACHE", str(tmp_path / "copies"))
  storage.forget_clients()
  proxy.root = tmp_path / "objects" / storage.BUCKET
  yield proxy
  proxy.stop()
  server.stop()
  storage.forget_clients()
  assert not os.path.exists(fault_runs.ROOT / "gs:")


BUCKET = f"gs://{storage.BUCKET}"


def train_command(data, workdir, *more, **changes):
  settings = {
    "train__total_steps": TOTAL,
    "eval__every_steps": SAVED,
    "checkpoint__every_steps": SAVED,
  }
  return fault_runs.train_command(
    data, workdir, f"--compile_cache={PROGRAMS}", *more, **settings | changes
  )


@pytest.fixture(scope="module")
def straight(tmp_path_factory, prepared):
  """The workdir of a run in a folder, that nothing happened to."""
  workdir = tmp_path_factory.mktemp("straight") / "run"
  status, said = run(train_command(prepared, workdir, checkpoint__keep=1000))
  assert status == 0, said
  return workdir


def upload(folder, target):
  files.upload_folder(str(folder), target)


def fetch(proxy, name, target):
  """Copies a folder of the bucket to the disk, where other checks read it."""
  for path in files.walk(f"{BUCKET}/{name}"):
    inner = path.removeprefix(f"{BUCKET}/{name}/")
    (target / inner).parent.mkdir(parents=True, exist_ok=True)
    (target / inner).write_bytes(files.read_bytes(path))
  return target


def assert_same_run(proxy, straight, tmp_path, name="run"):
  """All that is in the bucket is what the run in a folder had."""
  found = fetch(proxy, name, tmp_path / f"fetched-{name}")
  assert fault_runs.rows(found) == fault_runs.rows(straight)
  for folder in ("checkpoints", "best"):
    for step in (found / folder).iterdir():
      assert (step / "commit_success.txt").exists(), step
  steps = list(range(SAVED, TOTAL + 1, SAVED))
  there = sorted(os.listdir(found / "checkpoints"), key=int)
  assert there == list(map(str, steps[-KEPT:]))
  assert os.listdir(found / "best") == os.listdir(straight / "best")
  fault_runs.assert_sound(found, straight)
  assert not [p for p in found.rglob("*") if "tmp" in p.name]
  assert sorted(os.listdir(found)) == sorted(
    set(os.listdir(straight)) - {".lock"}
  )


def test_a_killed_run_in_a_bucket_ends_as_if_never_killed(
  served, tmp_path, prepared, straight
):
  upload(prepared, f"{BUCKET}/data")
  rng, kills, lives, longest = random.Random(SEED), 0, 0, 0.0
  wanted = max(KILLS // 2, 3)
  args = train_command(f"{BUCKET}/data", f"{BUCKET}/run")
  since = time.monotonic()
  while kills < wanted or not lives or files.exists(f"{BUCKET}/run/run.json"):
    process = start(args, tmp_path / "said")
    began = time.monotonic()
    # The first one is not killed, so that it is known how long one takes.
    is_killed = lives and kills < wanted
    moment = rng.uniform(0, longest) if is_killed else fault_runs.LIFE_SECS
    while process.poll() is None and time.monotonic() - began < moment:
      time.sleep(0.01)
    if process.poll() is None:
      kill(process)
      kills += 1
      print(f"{kills}: {moment:.1f} s of {longest:.1f} s", flush=True)
    said = (tmp_path / "said").read_text()
    assert process.returncode in (0, -signal.SIGKILL), said
    assert "damaged" not in said, said
    assert "waiting for up to" not in said, said  # a lock of this machine
    if process.returncode == 0:
      lives += 1
      longest = longest or time.monotonic() - began
      assert_same_run(served, straight, tmp_path / f"life{lives}")
      files.delete_folder(f"{BUCKET}/run")
    elif not is_killed:
      raise AssertionError("it hangs")
  secs = time.monotonic() - since
  print(f"\n{kills} kills, {lives} runs to the end in {secs:.0f} s")


def test_preparation_in_a_bucket_that_was_killed_ends_as_if_never_killed(
  served, tmp_path
):
  text = corpora.write_text(tmp_path / "text.txt", corpora.make_documents(600))
  # Not forks: preparation starts processes of its own.
  assert fault_runs.run(prepare_command(text, tmp_path / "data"))[0] == 0
  wanted = corpora.tree(tmp_path / "data")
  files.write_bytes(f"{BUCKET}/text.txt", pathlib.Path(text).read_bytes())
  rng, kills = random.Random(SEED), 0
  args = prepare_command(f"{BUCKET}/text.txt", f"{BUCKET}/data")
  status, longest = 1, 25.0
  while kills < max(KILLS // 10, 3) or status != 0:
    process = fault_runs.start(args, tmp_path / "said")
    began = time.monotonic()
    moment = rng.uniform(3, longest) if kills < max(KILLS // 10, 3) else 1e9
    while process.poll() is None and time.monotonic() - began < moment:
      time.sleep(0.01)
    if process.poll() is None:
      kill(process)
      kills += 1
    status = process.wait()
    said = (tmp_path / "said").read_text()
    assert status in (0, -signal.SIGKILL), said
    if status == 0 and kills < max(KILLS // 10, 3):
      files.delete_folder(f"{BUCKET}/data")
  found = fetch(served, "data", tmp_path / "fetched")
  assert corpora.tree(found) == wanted


@contextlib.contextmanager
def in_background(function):
  thread = threading.Thread(target=function, daemon=True)
  thread.start()
  yield
  thread.join(60)


def test_a_server_that_fails_costs_time_and_not_the_run(
  served, tmp_path, prepared, straight
):
  """It is silent for ten seconds, twice, and says 429 and 503 in between."""
  upload(prepared, f"{BUCKET}/data")
  ended = threading.Event()

  def fail():
    while not ended.wait(0.2):
      if files_below(served, "run/checkpoints"):
        break
    for _ in range(2):
      served.is_down = True
      ended.wait(10)
      served.is_down = False
      ended.wait(2)
    served.refuses = 0.1

  served.refuses = 0.05
  with in_background(fail):
    status, said = run(train_command(f"{BUCKET}/data", f"{BUCKET}/run"))
    ended.set()
  served.refuses, served.is_down = 0.0, False
  assert status == 0, said
  print(f"\n{served.count[1]} of {served.count[0]} requests failed")
  assert served.count[1] > 20
  assert_same_run(served, straight, tmp_path)


def files_below(proxy, name):
  return [p for p in (proxy.root / name).rglob("*") if p.is_file()]


def test_a_damaged_step_is_set_aside_and_the_run_ends_the_same(
  served, tmp_path, prepared, straight
):
  upload(prepared, f"{BUCKET}/data")
  args = train_command(f"{BUCKET}/data", f"{BUCKET}/run")
  process = start(args, tmp_path / "said")
  saved = served.root / f"run/checkpoints/{2 * SAVED}/commit_success.txt"
  while not saved.exists():
    time.sleep(0.01)
    # It may have got to its end before this looks again.
    assert not process.poll(), (tmp_path / "said").read_text()
  kill(process)
  steps = sorted(
    int(p.parent.name)
    for p in files_below(served, "run/checkpoints")
    if p.name == "commit_success.txt" and p.parent.name.isdigit()
  )
  arrays = max(
    files_below(served, f"run/checkpoints/{steps[-1]}/params"),
    key=lambda p: p.stat().st_size,
  )
  name = f"{BUCKET}/{arrays.relative_to(served.root)}"
  content = bytearray(files.read_bytes(name))
  content[len(content) // 2] ^= 1
  files.write_bytes(name, bytes(content))
  status, said = run(args)
  assert status == 0, said
  assert f"going on from step {steps[-2]} instead" in said
  assert files.is_folder(f"{BUCKET}/run/damaged/{steps[-1]}/params")
  files.delete_folder(f"{BUCKET}/run/damaged")
  assert_same_run(served, straight, tmp_path)


def test_damaged_data_of_a_bucket_is_named(served, tmp_path, prepared):
  upload(prepared, f"{BUCKET}/data")
  name = f"{BUCKET}/data/tokens/train-00000.array_record"
  content = bytearray(files.read_bytes(name))
  content[len(content) // 2] ^= 1
  files.write_bytes(name, bytes(content))
  status, said = run(train_command(f"{BUCKET}/data", f"{BUCKET}/run"))
  assert status == 2
  assert_told(said, name)
  assert not files.exists(f"{BUCKET}/run/run.json")


def test_a_damaged_local_copy_is_made_again(served, tmp_path, prepared):
  upload(prepared, f"{BUCKET}/data")
  args = train_command(
    f"{BUCKET}/data", f"{BUCKET}/run", train__total_steps=SAVED
  )
  assert run(args)[0] == 0
  copies = (tmp_path / "copies").rglob("tokens/train-00000.array_record")
  copy = next(copies)
  content = bytearray(copy.read_bytes())
  content[len(content) // 2] ^= 1
  copy.write_bytes(bytes(content))
  status, said = run(args)
  assert status == 0, said
  content[len(content) // 2] ^= 1
  assert copy.read_bytes() == bytes(content)


def test_two_jobs_do_not_train_in_one_workdir(served, tmp_path, prepared):
  upload(prepared, f"{BUCKET}/data")
  args = train_command(f"{BUCKET}/data", f"{BUCKET}/run")
  first = start(args, tmp_path / "said")
  while not (served.root / "run" / ".lock").exists():
    time.sleep(0.05)
    assert first.poll() is None, (tmp_path / "said").read_text()
  status, said = run(args)
  assert status == 2
  assert_told(said, f"process {first.pid}")
  assert first.wait(fault_runs.LIFE_SECS) == 0


@pytest.mark.parametrize("num_processes", [2, 4])
def test_several_processes_train_in_one_bucket(
  num_processes, served, tmp_path, prepared
):
  """The run is that in a folder, and one that was killed goes on."""
  upload(prepared, f"{BUCKET}/data")
  changes = {
    "train__total_steps": 60,
    "eval__every_steps": 20,
    "checkpoint__every_steps": 20,
    "checkpoint__best_metric": "",
  }
  devices = 4 // num_processes
  jobs = host_processes.start(
    prepared, tmp_path / "folder", num_processes, devices, **changes
  )
  assert host_processes.finish(jobs) == [0] * num_processes

  def begin():
    return host_processes.start(
      f"{BUCKET}/data", f"{BUCKET}/run", num_processes, devices,
      said=f"{tmp_path}/said", **changes,
    )  # fmt: skip

  jobs = begin()
  while not (served.root / "run/checkpoints/20/commit_success.txt").exists():
    time.sleep(0.05)
    assert all(job.poll() is None for job in jobs), host_processes.finish(jobs)
  jobs[-1].kill()
  assert all(status for status in host_processes.finish(jobs))
  jobs = begin()
  assert host_processes.finish(jobs) == [0] * num_processes
  found = fetch(served, "run", tmp_path / "fetched")
  assert fault_runs.rows(found) == fault_runs.rows(tmp_path / "folder")
  ours = json.loads((found / "checkpoints/60/sums/metadata").read_text())
  step = tmp_path / "folder" / "checkpoints/60/sums/metadata"
  assert ours == json.loads(step.read_text())
