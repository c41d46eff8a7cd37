"""Programs that are killed at any moment and started again."""

import collections
import contextlib
import dataclasses
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bert_jax.runtime import metrics_log
from tests.support import fork_server
from tests.support import xla_flags
from tests.support.run_checks import depends_on_clock

ROOT = pathlib.Path(__file__).parents[2]
KILLS = int(os.environ.get("FAULTS_KILLS", "100"))
SEED = int(os.environ.get("FAULTS_SEED", "0"))
POLL_SECS = 0.001
LIFE_SECS = 300  # a process that takes longer hangs


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
    f" {' '.join(xla_flags.QUICK)}",
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


def fork(args, errors):
  """As `start`, without the time to import packages."""
  return fork_server.start(args[3:], errors, environ())


def run_forked(args):
  """As `run`, without the time to import packages."""
  with tempfile.NamedTemporaryFile("r", encoding="utf-8") as said:
    process = fork(args, said.name)
    try:
      return process.wait(LIFE_SECS), pathlib.Path(said.name).read_text()
    finally:
      kill(process)


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
    {k: v for k, v in row.items() if not depends_on_clock(k)}
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
