"""Real processes that are killed at any moment, or have nowhere to write.

FAULTS_KILLS says how often training is killed (preparing data: a fifth of
that), FAULTS_SEED which moments are drawn.
"""

import collections
import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

import pytest

from tests.support import corpora
from tests.support import fault_runs
from tests.support.fault_runs import KILLS
from tests.support.fault_runs import PHASES
from tests.support.fault_runs import RETURNING
from tests.support.fault_runs import SEED
from tests.support.fault_runs import STAGES
from tests.support.fault_runs import Killer
from tests.support.fault_runs import Training
from tests.support.fault_runs import assert_same_run
from tests.support.fault_runs import assert_sound
from tests.support.fault_runs import assert_told
from tests.support.fault_runs import kill
from tests.support.fault_runs import names
from tests.support.fault_runs import prepare_command
from tests.support.fault_runs import run
from tests.support.fault_runs import stage_of
from tests.support.fault_runs import start
from tests.support.fault_runs import train_command

straight = fault_runs.straight

pytestmark = pytest.mark.slow


# --- processes ----------------------------------------------------------------


# --- training -----------------------------------------------------------------


def test_a_killed_run_ends_as_if_never_killed(tmp_path, prepared, straight):
  """To the bit, in its parameters, optimizer state, best and log."""
  killer = Killer(PHASES, RETURNING, random.Random(SEED))

  def live(folder):
    """Starts the command, and kills it while there are kills left."""
    # What was compiled before is read, but not always.
    kept = folder / "programs" if killer.rng.random() < 0.75 else "off"
    args = train_command(
      folder / "data", folder / "run", f"--compile_cache={kept}"
    )
    watched = Training(folder / "run")
    strike = kill if killer.kills.total() < KILLS else None
    process = start(args, folder / "said")
    status = killer.watch(process, watched.phase, strike)
    said = (folder / "said").read_text()
    assert status in (0, -signal.SIGKILL), said
    assert "damaged" not in said, said
    return status

  while killer.kills.total() < KILLS:
    folder = tmp_path / "killed"
    shutil.copytree(prepared, folder / "data")
    while live(folder) != 0:
      pass
    assert_same_run(folder / "run", straight)
    assert names(folder / "data") == names(prepared)
    shutil.rmtree(folder)
    killer.report("training")
  for phase in PHASES:
    assert killer.kills[phase] >= KILLS // 50, phase


# --- preparing data -----------------------------------------------------------


def children(process):
  """Processes of the pool of a process."""
  path = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
  found = []
  with contextlib.suppress(OSError):  # it ended just now, or there is no /proc
    for pid in path.read_text().split():
      if b"spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
        found.append(int(pid))
  return found


def test_preparation_that_was_killed_ends_as_if_never_killed(tmp_path):
  """Be it all of it, or only the process that leads, or a worker."""
  documents = corpora.make_documents(1200)
  text = corpora.write_text(tmp_path / "text.txt", documents)
  straight = tmp_path / "straight"
  assert run(prepare_command(text, straight))[0] == 0
  wanted = corpora.tree(straight)
  assert len(wanted) > 100
  wanted_kills = max(KILLS // 5, 1)
  killer = Killer(
    STAGES, frozenset({"manifest", "tidying"}), random.Random(SEED)
  )
  victims = collections.Counter()

  def strike(process):
    victim = killer.rng.choice(["all", "leader", "worker"])
    workers = children(process)
    if victim == "worker" and workers:
      with contextlib.suppress(ProcessLookupError):
        os.kill(killer.rng.choice(workers), signal.SIGKILL)
    elif victim == "leader":
      process.kill()
    else:
      victim = "all"
      kill(process)
    victims[victim] += 1

  def live(data):
    """Starts the command, and kills it while there are kills left."""
    process = start(prepare_command(text, data), tmp_path / "said")
    status = killer.watch(
      process,
      lambda: stage_of(data),
      strike if killer.kills.total() < wanted_kills else None,
    )
    said = (tmp_path / "said").read_text()
    assert status in (0, 1, -signal.SIGKILL), said
    if status == 1:
      assert_told(said, "a worker process was killed")
    return status

  while killer.kills.total() < wanted_kills:
    data = tmp_path / "data"
    while live(data) != 0:
      pass
    assert corpora.tree(data) == wanted
    assert names(data) == names(straight)  # folders as well
    shutil.rmtree(data)
    killer.report(f"preparing data ({dict(victims)})")


# --- nowhere to write ---------------------------------------------------------

DISK_KB = 16 * 1024


def mount(folder, *options):
  return subprocess.run(
    ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder],
    capture_output=True,
    text=True,
  )


@pytest.fixture
def disk(tmp_path):
  """A small file system of its own."""
  folder = tmp_path / "disk"
  folder.mkdir()
  mounted = mount(folder, f"size={DISK_KB}k")
  if mounted.returncode:
    pytest.skip(f"needs a file system to fill: {mounted.stderr.strip()}")
  yield folder
  subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def only(disk, kb=None, files=0):
  """A context in which there is room for so much, or for so many files."""
  ballast = disk / "ballast"
  if kb is not None:
    free = shutil.disk_usage(disk).free - kb * 1024
    ballast.write_bytes(bytes(free))
  else:
    assert not mount(disk, "remount", f"nr_inodes={files}").returncode
  try:
    yield
  finally:
    ballast.unlink(missing_ok=True)
    assert not mount(disk, "remount", "nr_inodes=0").returncode


def assert_stopped(status, said, cause="No space left on device"):
  assert status == 1, said
  assert_told(said, cause)


@pytest.mark.parametrize(
  "room",
  [*({"kb": kb} for kb in (0, 8, 40, 300, 1200)), {"files": 16}, {"files": 64}],
  ids=str,
)
def test_a_full_disk_stops_a_run_which_goes_on_when_there_is_room(
  room, disk, prepared, straight
):
  """Whatever fills it: the record, the log, a checkpoint or the best."""
  args = train_command(prepared, disk / "run")
  with only(disk, **room):
    began = time.monotonic()
    assert_stopped(*run(args))
    assert time.monotonic() - began < 100  # Orbax waits for itself for 300
  assert_sound(disk / "run", straight)
  status, said = run(args)
  assert status == 0, said
  assert "damaged" not in said
  assert_same_run(disk / "run", straight)


def test_a_log_that_does_not_fit_stops_a_run(disk, prepared, straight):
  changes = {"checkpoint__every_steps": 0, "train__tensorboard": False}
  with only(disk, kb=24):
    told = run(train_command(prepared, disk / "run", **changes))
  assert_stopped(*told, f"No space left on device: '{disk}/run/metrics.jsonl'")
  status, said = run(train_command(prepared, disk / "run"))
  assert status == 0, said
  assert_same_run(disk / "run", straight)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_full_disk_stops_preparation_which_goes_on_when_there_is_room(
  num_workers, disk, tmp_path
):
  documents = corpora.make_documents(600)
  text = corpora.write_text(tmp_path / "text.txt", documents)
  status, said = run(prepare_command(text, tmp_path / "straight"))
  assert status == 0, said
  args = prepare_command(text, disk / "data", prepare__num_workers=num_workers)
  for kb in (0, 4, 20, 200, 900, 2000):
    with only(disk, kb=kb):
      assert_stopped(*run(args))
  status, said = run(args)
  assert status == 0, said
  wanted = corpora.tree(tmp_path / "straight")
  assert corpora.tree(disk / "data") == wanted


def read_only_by_mount(disk):
  subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
  return []


def read_only_by_mode(disk):
  """Returns how a command starts for which the modes of files count."""
  for folder in (disk, *(p for p in disk.rglob("*") if p.is_dir())):
    folder.chmod(0o555)
  if os.getuid():
    return []
  if not shutil.which("setpriv"):
    pytest.skip("nothing is read-only to root, and there is no setpriv")
  return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


READ_ONLY = pytest.mark.parametrize(
  "make_read_only", [read_only_by_mount, read_only_by_mode]
)


@READ_ONLY
@pytest.mark.parametrize("goes_on", [False, True])
def test_a_workdir_that_is_read_only_is_refused_before_anything_is_compiled(
  make_read_only, goes_on, disk, tmp_path, prepared, straight
):
  workdir, programs = disk / "run", tmp_path / "programs"
  if goes_on:
    step = "checkpoints/60"
    shutil.copytree(straight / step, workdir / step)
    for name in ("run.json", "metrics.jsonl", ".lock"):
      shutil.copy(straight / name, workdir / name)
  before = corpora.tree(disk)
  prefix = make_read_only(disk)
  args = train_command(prepared, workdir, f"--compile_cache={programs}")
  status, said = run([*prefix, *args])
  assert status in (1, 2), said
  assert_told(said, str(workdir))
  assert "Read-only file system" in said or "Permission denied" in said
  assert corpora.tree(disk) == before
  assert not list(programs.rglob("*-cache"))


@READ_ONLY
def test_data_that_is_read_only_is_refused_before_anything_is_read(
  make_read_only, disk, tmp_path
):
  documents = corpora.make_documents(20)
  text = corpora.write_text(tmp_path / "text.txt", documents)
  data = disk / "data"
  data.mkdir()
  (data / ".lock").touch()
  prefix = make_read_only(disk)
  status, said = run([*prefix, *prepare_command(text, data)])
  assert status in (1, 2), said
  assert_told(said, str(data))
