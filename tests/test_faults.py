"""Real processes that are killed at any moment, or have nowhere to write.

FAULTS_KILLS says how often training is killed (preparing data: a fifth of
that), FAULTS_SEED which moments are drawn.
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bert_jax.runtime import metrics_log
from tests.data import test_prepare

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
KILLS = int(os.environ.get("FAULTS_KILLS", "100"))
SEED = int(os.environ.get("FAULTS_SEED", "0"))
POLL_SECS = 0.001
LIFE_SECS = 300  # a process that takes longer hangs


# --- processes ----------------------------------------------------------------


def command(mode, settings, *more):
  """What starts the launcher, with settings of the base config."""
  return [
    sys.executable,
    "-m",
    "bert_jax.main",
    f"--mode={mode}",
    "--config=configs/base.py",
    *(f"--config.{k}={v}" for k, v in settings.items()),
    *more,
  ]


def environ():
  found = dict(os.environ) | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2"
    " --xla_backend_optimization_level=0",
  }
  found.pop("JAX_COMPILATION_CACHE_DIR", None)
  return found


def start(args, errors):
  """Starts a process in a group of its own; what it says goes to a file."""
  with open(errors, "w", encoding="utf-8") as file:
    return subprocess.Popen(
      args,
      cwd=ROOT,
      env=environ(),
      stdout=subprocess.DEVNULL,
      stderr=file,
      start_new_session=True,
    )


def run(args):
  """Exit status of a process, and what it said on standard error."""
  done = subprocess.run(
    args,
    cwd=ROOT,
    env=environ(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    timeout=LIFE_SECS,
  )
  return done.returncode, done.stderr


def kill(process):
  """Kills a process and those that it started."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()


@dataclasses.dataclass
class Killer:
  """Kills processes, as often in each phase as is asked for.

  Attributes:
    shares: of the kills, by phase.
    returning: phases that a process comes to more than once.
    rng: what the moments are drawn from.
  """

  shares: dict[str, float]
  returning: frozenset[str]
  rng: random.Random

  def __post_init__(self):
    self.kills = collections.Counter()  # where they fell
    self._aims = collections.Counter()  # where they were to fall
    self._secs = collections.defaultdict(list)  # how long phases took
    self._began = time.monotonic()

  def watch(self, process, phase_of, strike=kill):
    """Kills a process, unless it ends before the moment that was drawn.

    Args:
      process: of a group of its own.
      phase_of: a function () -> what it is at, by the files it has written.
      strike: a function (process) that kills something; None kills nothing.

    Returns:
      Its exit status.
    """
    aim = self._aim() if strike else None
    passes = self.rng.randrange(4) if aim in self.returning else 0
    last, since, moment = "", 0.0, float("inf")
    is_struck = False
    give_up = time.monotonic() + LIFE_SECS
    try:
      while process.poll() is None:
        phase, now = phase_of(), time.monotonic()
        if phase != last:
          self._secs[last].append(now - since)
          last, since = phase, now
          if phase == aim:
            if passes == 0:
              moment = now + self.rng.uniform(0, self._typical(phase))
            passes -= 1
        if now >= moment:
          strike(process)
          is_struck = True
          break
        assert now < give_up, f"hangs, {phase}"
        time.sleep(POLL_SECS)
      status = process.wait(LIFE_SECS)
    finally:
      kill(process)
    if is_struck and status:  # else it had ended just before
      self.kills[phase_of()] += 1
    return status

  def _aim(self):
    aim = min(self.shares, key=lambda p: (self._aims[p] + 0.5) / self.shares[p])
    self._aims[aim] += 1
    return aim

  def _typical(self, phase):
    return statistics.median(self._secs[phase] or [0.1])

  def report(self, title):
    secs = time.monotonic() - self._began
    each = ", ".join(f"{phase} {self.kills[phase]}" for phase in self.shares)
    total = self.kills.total()
    print(f"\n{title}: {total} kills in {secs:.0f} s: {each}", flush=True)


def assert_told(said, cause):
  """The last line says why, and there is no stack of frames before it."""
  *before, last = said.splitlines()
  assert last.startswith("bert-jax: ") and cause in last, said
  assert len(before) < 3, said


# --- training -----------------------------------------------------------------

TOTAL, EVALUATED, SAVED, KEPT = 240, 20, 30, 2  # steps
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
  "train.total_steps": TOTAL,
  "train.log_every_steps": 1,
  "eval.every_steps": EVALUATED,
  "eval.batch_size": 4,
  "checkpoint.every_steps": SAVED,
  "checkpoint.keep": KEPT,
}


def train_command(data, workdir, *more, **changes):
  """The command that trains; changes by `group__key`."""
  settings = SETTINGS | {"data.dir": data}
  settings |= {k.replace("__", "."): v for k, v in changes.items()}
  return command("train", settings, f"--workdir={workdir}", *more)


# Share of the kills in percent. The last evaluation and save are the ending.
PHASES = {
  "start-up": 15,
  "compiling": 20,
  "mid-step": 20,
  "evaluating": 14,
  "saving": 20,
  "removing": 6,
  "ending": 5,
}
RETURNING = frozenset({"mid-step", "evaluating", "saving", "removing"})


class Training:
  """What a training process is at, by what lies in its workdir."""

  def __init__(self, workdir):
    self._workdir = workdir
    self._log = workdir / "metrics.jsonl"
    self._before = self._identity()
    self._start = max(saved_steps(workdir, "checkpoints"), default=0)

  def _identity(self):
    with contextlib.suppress(FileNotFoundError):
      return self._log.stat().st_ino
    return None

  def phase(self):
    if self._identity() == self._before:
      return "start-up"  # the log is a new file when it is opened again
    step, is_evaluated = self._last_line()
    if step == TOTAL:
      return "ending"
    newest, best = (names(self._workdir / f) for f in ("checkpoints", "best"))
    if any("tmp" in name for name in newest + best):
      return "saving"
    if len(newest) > KEPT or len(best) > 1:
      return "removing"
    if step <= self._start:
      return "compiling"
    if step % EVALUATED == 0 and not is_evaluated:
      return "evaluating"
    return "mid-step"

  def _last_line(self):
    """Its step, and whether it is of an evaluation."""
    lines = self._log.read_bytes().split(b"\n")
    line = lines[-2] if len(lines) > 1 else b'{"step": 0,'
    return int(line.partition(b",")[0][9:]), b"eval/" in line


def names(folder):
  with contextlib.suppress(FileNotFoundError):
    return sorted(os.listdir(folder))
  return []


def saved_steps(workdir, folder):
  return sorted(int(n) for n in names(workdir / folder) if n.isdigit())


def read_step(folder):
  """All arrays of a checkpoint, by item and path."""
  found = {}
  for item in ("params", "rest"):
    with ocp.StandardCheckpointer() as reader:
      tree = reader.restore(folder / item)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found |= {
      (item, jax.tree_util.keystr(path)): np.asarray(leaf)
      for path, leaf in leaves
    }
  return found


def assert_sound(workdir, straight):
  """All that is saved is what the run that went straight on had there."""
  for folder in ("checkpoints", "best"):
    for step in saved_steps(workdir, folder):
      where = f"{folder}/{step}"
      found = read_step(workdir / folder / str(step))
      wanted = read_step(straight / "checkpoints" / str(step))
      assert found.keys() == wanted.keys()
      assert len(found) > 60
      for name, x in found.items():
        y = wanted[name]
        assert (x.dtype, x.shape) == (y.dtype, y.shape), f"{where} {name}"
        assert x.tobytes() == y.tobytes(), f"{where} {name}"


def rows(workdir):
  """metrics.jsonl, without what depends on the clock."""
  return [
    {k: v for k, v in row.items() if "_per_sec" not in k and k != "train/mfu"}
    for row in metrics_log.read_metrics(str(workdir))
  ]


def assert_same_run(workdir, straight):
  """It ended as the run that went straight on, and nothing else lies about."""
  assert rows(workdir) == rows(straight)
  steps = list(range(SAVED, TOTAL + 1, SAVED))
  assert names(workdir / "checkpoints") == sorted(map(str, steps[-KEPT:]))
  assert names(workdir / "best") == names(straight / "best")
  assert_sound(workdir, straight)
  assert names(workdir) == names(straight)
  assert not [p for p in workdir.rglob("*") if "tmp" in p.name]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, prepared):
  """The workdir of a run that nothing happened to, with all it saved."""
  workdir = tmp_path_factory.mktemp("straight") / "run"
  changes = {"checkpoint__keep": 1000, "checkpoint__every_steps": 10}
  status, said = run(train_command(prepared, workdir, **changes))
  assert status == 0, said
  steps = [row["step"] for row in rows(workdir) if "train/loss" in row]
  assert steps == list(range(1, TOTAL + 1))
  steps = [row["step"] for row in rows(workdir) if "eval/loss" in row]
  assert steps == list(range(EVALUATED, TOTAL + 1, EVALUATED))
  return workdir


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

# Of short ones only a few kills hit, but there they are the most telling.
STAGES = {
  "vocabulary": 20,
  "tokens": 20,
  "examples": 20,
  "lengths": 15,
  "manifest": 10,
  "tidying": 10,
  "ending": 5,
}


def prepare_command(text, data, **changes):
  settings = {
    "data.seq_len": 32,
    "data.dupe_factor": 2,
    "prepare.vocab_size": 120,
    "prepare.unit_bytes": 20_000,
    "prepare.num_workers": 2,
    "prepare.held_out_rate": 0.15,
  }
  settings |= {k.replace("__", "."): v for k, v in changes.items()}
  return command("prepare", settings, f"--input={text}", f"--output={data}")


def stage_of(data):
  """What preparation is at, by what lies in its folder."""
  manifests = [data / "vocab" / "settings.json", data / "manifest.json"]
  found = sorted(data.glob("examples/*/manifest.json"))
  manifests += found[:1] or [data / "examples"]
  manifests += [manifests[2].parent / "lengths" / "manifest.json"]
  if any(name.endswith(".tmp") for name in names(data)):
    return "manifest"
  progress = names(data / ".progress")
  if "gone" in progress or (manifests[1].exists() and "tokens" in progress):
    return "tidying"
  for stage, path in zip(STAGES, manifests, strict=False):
    if not path.is_file():
      return stage
  return "ending"


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
  documents = test_prepare.make_documents(1200)
  text = test_prepare.write_text(tmp_path / "text.txt", documents)
  straight = tmp_path / "straight"
  assert run(prepare_command(text, straight))[0] == 0
  wanted = test_prepare.tree(straight)
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
    assert test_prepare.tree(data) == wanted
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
  documents = test_prepare.make_documents(600)
  text = test_prepare.write_text(tmp_path / "text.txt", documents)
  status, said = run(prepare_command(text, tmp_path / "straight"))
  assert status == 0, said
  args = prepare_command(text, disk / "data", prepare__num_workers=num_workers)
  for kb in (0, 4, 20, 200, 900, 2000):
    with only(disk, kb=kb):
      assert_stopped(*run(args))
  status, said = run(args)
  assert status == 0, said
  wanted = test_prepare.tree(tmp_path / "straight")
  assert test_prepare.tree(disk / "data") == wanted


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
  before = test_prepare.tree(disk)
  prefix = make_read_only(disk)
  args = train_command(prepared, workdir, f"--compile_cache={programs}")
  status, said = run([*prefix, *args])
  assert status in (1, 2), said
  assert_told(said, str(workdir))
  assert "Read-only file system" in said or "Permission denied" in said
  assert test_prepare.tree(disk) == before
  assert not list(programs.rglob("*-cache"))


@READ_ONLY
def test_data_that_is_read_only_is_refused_before_anything_is_read(
  make_read_only, disk, tmp_path
):
  documents = test_prepare.make_documents(20)
  text = test_prepare.write_text(tmp_path / "text.txt", documents)
  data = disk / "data"
  data.mkdir()
  (data / ".lock").touch()
  prefix = make_read_only(disk)
  status, said = run([*prefix, *prepare_command(text, data)])
  assert status in (1, 2), said
  assert_told(said, str(data))
