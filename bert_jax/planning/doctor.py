"""Checks whether a training would start here, and says what to do if not.

The checks print one line each and change nothing of a run. They write a file in
the workdir, or in the folder above it, and remove it again. Like training, they
note beside the data which files passed verification.
"""

from collections.abc import Callable
import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
import tempfile
from typing import Any

import jax
from packaging import requirements
from rich import console as rich_console
from rich import markup

from bert_jax.planning import memory
from bert_jax.runtime import checkpoint
from bert_jax.runtime import files
from bert_jax.runtime import locks
from bert_jax.runtime import resume
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps
from bert_jax.runtime import sharding
from bert_jax.runtime.chips import GIB
from bert_jax.runtime.settings import Config
from bert_jax.sweeps import costs
from bert_jax.training import checks
from bert_jax.training import jobs
from bert_jax.training import probes
from bert_jax.training import session
from bert_jax.training.job import Evaluator

_CONNECT_SECS = 5.0
_FIRST_WITH_BFLOAT16 = 8.0  # compute capability
_SHOWN_CHARS = 400  # of a message, so that all checks fit on one screen


class _SkippedError(Exception):
  """A check cannot be made; the message says why."""


class _Exam:
  """Makes checks, and prints a line for each.

  Attributes:
    sound: whether no check so far has failed.
  """

  def __init__(self) -> None:
    self.sound = True
    self._console = rich_console.Console(soft_wrap=True, highlight=False)

  def check(self, name: str, look: Callable[[], str]) -> bool:
    """Makes a check and prints its line.

    Args:
      name: the name of the check.
      look: makes the check. It returns a description of what it found, and
        raises an exception if training would fail.

    Returns:
      False if the check has failed.
    """
    word, style, well = "OK", "green", True
    try:
      text = look()
    except _SkippedError as error:
      word, style, text = "--", "dim", f"not checked: {error}"
    except Exception as error:  # training would raise it, too
      word, style, text, well = "BAD", "bold red", _words(error), False
    self.sound &= well
    self._print(word, style, name, text)
    return well

  def note(self, name: str, text: str) -> None:
    """Prints a line about what does not stop a training, but may be wrong."""
    self._print("NOTE", "yellow", name, text)

  def _print(self, word: str, style: str, name: str, text: str) -> None:
    text = markup.escape(text[:_SHOWN_CHARS])
    self._console.print(f"[{style}]{word:4}[/] {name:12} {text}")


def _words(error: Exception) -> str:
  text = " ".join(str(error).split())
  if isinstance(error, ValueError | OSError) and text:
    return text
  return f"{type(error).__name__}: {text}"


def examine(
  config: Config,
  workdir: str,
  coordinator: str | None = None,
  process_id: int | None = None,
  num_processes: int = 1,
  topology: str | None = None,
  plan_arguments: list[str] | None = None,
) -> bool:
  """Checks a training before it is started, and prints the results.

  Args:
    config: the whole configuration.
    workdir: the folder of the run, which need not exist yet.
    coordinator: HOST:PORT of process 0, if there are several processes.
    process_id: the number of this process.
    num_processes: how many processes there will be, each with as many devices
      as this one.
    topology: the TPU slice to plan for, such as "v5e:4x4"; None = train on the
      devices of this machine.
    plan_arguments: the arguments of the launcher that describe the training.

  Returns:
    Whether the training would start.
  """
  exam = _Exam()
  exam.check("versions", _versions)
  exam.check("devices", _devices)
  if coordinator:
    exam.check("coordinator", lambda: _coordinator(coordinator, process_id))
  exam.check("config", lambda: _config(config))
  exam.check("mesh, batch", lambda: _mesh(config, num_processes))
  if num_processes > 1:  # the other checks use the devices of this machine only
    config = config.copy_and_resolve_references()
    config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})
  training = _Opening(config, workdir)
  exam.check("vocabulary", lambda: _vocabulary(training))
  if exam.check("data", lambda: _data(training)):
    for text in training.job[0].remarks():
      exam.note("text", text)
  exam.check("workdir", lambda: _folder(workdir))
  if exam.sound and exam.check("run", lambda: _run(training.run)):
    exam.check("checkpoint", lambda: _checkpoint(training.run))
    if config.get("probe") and config.probe.every_steps:  # older runs lack it
      exam.check("probes", lambda: _probes(training))
    exam.check("disk", lambda: _disk(training.run))
    exam.check("memory", lambda: _memory(training.run, topology is not None))
  if topology:
    exam.check("plan", lambda: _plan(plan_arguments or [], topology))
  print(
    "a training would start" if exam.sound else "a training would not start"
  )
  return exam.sound


def _versions() -> str:
  """Compares the installed packages with the requirements of this package."""
  wrong = []
  for line in importlib.metadata.requires("bert_jax") or []:
    wanted = requirements.Requirement(line)
    if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
      continue
    try:
      found = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
      wrong.append(f"{wanted} is not installed")
      continue
    if not wanted.specifier.contains(found, prereleases=True):
      wrong.append(f"{wanted.name} is {found}; it must be {wanted.specifier}")
  if wrong:
    raise ValueError(f"{'; '.join(wrong)}: run `make setup` or pip install .")
  names = ("jax", "flax", "optax", "orbax-checkpoint")
  versions = (f"{name} {importlib.metadata.version(name)}" for name in names)
  return f"Python {platform.python_version()}, {', '.join(versions)}"


def _devices() -> str:
  devices = jax.devices()
  kinds = sorted({d.device_kind for d in devices})
  text = f"{len(devices)} x {', '.join(kinds)} ({devices[0].platform})"
  return text + _card_text(devices[0])


def _card_text(device: jax.Device) -> str:
  """Returns what is to be known about an NVIDIA GPU; "" for other devices."""
  if device.platform not in ("gpu", "cuda"):
    return ""
  text = ""
  if capability := getattr(device, "compute_capability", ""):
    text += f", compute capability {capability}"
    is_number = re.fullmatch(r"\d+\.\d+", capability)  # AMD's are not
    if is_number and float(capability) < _FIRST_WITH_BFLOAT16:
      text += " (no bfloat16: use model.dtype=float32)"
  if reserved := (device.memory_stats() or {}).get("bytes_limit", 0):
    text += (
      f"; jax reserves {reserved / GIB:.1f} GiB of a card's memory "
      "(XLA_PYTHON_CLIENT_MEM_FRACTION changes the share, which is 0.75)"
    )
  return text


def _coordinator(address: str, process_id: int | None) -> str:
  """Checks that the port is free on process 0, and reachable from others."""
  host, colon, port = address.rpartition(":")
  if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
    raise ValueError(f"--coordinator={address}: give HOST:PORT")
  try:
    socket.getaddrinfo(host, int(port))  # is the host known here?
    if not process_id:
      socket.create_server(("", int(port))).close()
      return f"port {port} is free for the other processes to connect to"
    with socket.create_connection((host, int(port)), _CONNECT_SECS):
      return f"{address} answers"
  except ConnectionRefusedError:
    # The machine answers; process 0 opens the port when it starts.
    return f"{host} answers; no process listens on port {port} yet"
  except OSError as error:
    raise ValueError(
      f"--coordinator={address} cannot be used here: {error}; give the name of "
      "the host of process 0 and a free port, and check that the firewall lets "
      "the other processes connect"
    ) from error


def _config(config: Config) -> str:
  checks.check_settings(config)
  what = config.task.name if config.objective == "task" else config.objective
  return f"{what}, seed {config.seed}"


def _mesh(config: Config, num_processes: int) -> str:
  # The devices of this process stand for those of the others.
  devices = jax.devices() * num_processes if num_processes > 1 else None
  mesh = session.open_mesh(config, devices)
  sharding.check_batch_size(config.eval.batch_size, mesh)
  shape = ", ".join(f"{axis} {n}" for axis, n in mesh.shape.items())
  return f"{shape}; batches of {config.data.batch_size}"


class _Opening:
  """Opens a session as training does, each part once, when a check needs it."""

  def __init__(self, config: Config, workdir: str):
    self.config, self.workdir = config, workdir

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    return session.open_mesh(self.config)

  @functools.cached_property
  def job(self) -> tuple[jobs.Job, Any]:
    """The job, and the weights from which it starts."""
    return jobs.open_job(self.config, self.workdir)

  @functools.cached_property
  def data(self) -> tuple[Any, Evaluator]:
    """The batches of training, and the evaluator."""
    job, _ = self.job
    return job.batches(self.mesh), job.evaluator(self.mesh)

  @functools.cached_property
  def run(self) -> session.Session:
    return session.open_with_data(
      self.workdir, self.mesh, *self.job, *self.data
    )


def _vocabulary(training: _Opening) -> str:
  (job, _), config = training.job, training.config
  model = job.config.model
  return (
    f"{job.tokenizer.vocab_size} pieces, model.vocab_size={model.vocab_size}"
    + (f", weights of {config.init_from}" if config.init_from else "")
  )


def _data(training: _Opening) -> str:
  config, (batches, _) = training.config, training.data
  job = training.job[0]
  shape = " x ".join(map(str, batches[0]["input_ids"].shape))
  text = f"{job.data_hash[:12]}, the first batch is {shape}"
  if config.objective == "task":
    return text
  return f"{text}, checksums verified {config.data.verify} (data.verify)"


def _folder(workdir: str) -> str:
  """Writes, reads and removes a file where the workdir is or will be."""
  checkpoint.check_path(workdir)
  if files.is_remote(workdir):
    files.check_writable(os.path.join(workdir, "doctor"))
    if locks.holder(os.path.join(workdir, ".lock")) is not None:
      with locks.lock(workdir, "--workdir"):
        pass
    return f"{workdir} can be written"
  place = _nearest_folder(workdir)
  try:
    with tempfile.NamedTemporaryFile(dir=place) as file:
      file.write(b"x" * 4096)
      file.flush()
      os.fsync(file.fileno())
  except OSError as error:
    raise ValueError(
      f"{place} cannot be written: {error.strerror}; give another --workdir"
    ) from error
  if files.exists(os.path.join(workdir, ".lock")):
    with locks.lock(workdir, "--workdir"):
      pass
  return f"{place} can be written" + (
    "" if files.exists(workdir) else f"; {workdir} will be created"
  )


def _nearest_folder(path: str) -> str:
  """Returns the folder, or the nearest one above it that exists."""
  place = files.absolute(path)
  while not files.exists(place):
    place = os.path.dirname(place)
  return place


def _run(run: session.Session) -> str:
  if not runs.exists(run.workdir):
    return f"a new run of {run.total_steps} steps"
  started = runs.read_run(run.workdir).get("started")
  other = resume.other_code(run.workdir, run.run)
  return f"resumes the run of {started}" + (f"; {other}" if other else "")


def _probes(training: _Opening) -> str:
  prober = probes.Prober(training.job[0], training.mesh)
  return f"every {prober.every_steps} steps: {', '.join(prober.names)}"


def _checkpoint(run: session.Session) -> str:
  if not saved_steps.exists(run.workdir, to_resume=True):
    raise _SkippedError("the run has no checkpoint yet")
  with (
    jax.set_mesh(run.mesh),
    contextlib.closing(run.checkpoints()) as checkpoints,
  ):
    step, problems = run.find_sound(checkpoints)
  if step is None:
    raise ValueError("; ".join(problems.values()))
  if problems:
    return f"step {step}, sound, but {'; '.join(problems.values())}"
  return f"step {step} of {run.total_steps}, sound"


def _disk(run: session.Session) -> str:
  if files.is_remote(run.workdir):
    raise _SkippedError("a bucket has room")
  settings = run.config.checkpoint
  one = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(run.abstract))
  best = bool(settings.best_metric)
  # While a checkpoint is being written, one more than `keep` is on disk.
  wanted = one * (settings.keep + 1 + 2 * best)
  free = shutil.disk_usage(_nearest_folder(run.workdir)).free
  text = f"{free / GIB:.1f} GiB free; checkpoints take up to {wanted / GIB:.2f}"
  if saved_steps.exists(run.workdir, to_resume=True):
    wanted = 2 * one  # most of the checkpoints are on disk already
  if free < wanted:
    raise ValueError(
      f"{text}: make room, lower checkpoint.keep or give another --workdir"
    )
  return text


def _memory(run: session.Session, planned: bool) -> str:
  """Compiles the step for the devices here, and compares its memory."""
  if planned:
    raise _SkippedError("see the plan below")
  stats = memory.compile_step(run.trace(), run.mesh).memory_analysis()
  if stats is None:
    raise _SkippedError("the compiler does not report the memory")
  wanted = stats.argument_size_in_bytes + stats.temp_size_in_bytes
  wanted += stats.output_size_in_bytes - stats.alias_size_in_bytes
  device = run.mesh.devices.flat[0]
  if device.platform == "cpu":
    # The devices of one machine share its memory.
    wanted *= jax.local_device_count()
    free = _available_memory()
    whose = "this machine has free"
  else:
    free = (device.memory_stats() or {}).get("bytes_limit", 0)
    whose = "a device has"
  text = f"a step needs {wanted / GIB:.2f} GiB, {whose} {free / GIB:.2f}"
  if free and wanted > free:
    raise ValueError(
      f"{text}: lower data.batch_size or raise optim.num_micro_batches"
      + _more_of_a_card(device)
    )
  return text


def _more_of_a_card(device: jax.Device) -> str:
  """Returns how a GPU would give more memory; "" for other devices."""
  if device.platform not in ("gpu", "cuda"):
    return ""
  return (
    ", or let jax reserve more of the card, such as "
    "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92"
  )


def _available_memory() -> int:
  """Returns the free bytes of this machine, including caches; 0 = unknown."""
  try:
    with open("/proc/meminfo", encoding="ascii") as file:
      rows = dict(line.split(":", 1) for line in file)
    return int(rows["MemAvailable"].split()[0]) * 1024
  except (OSError, LookupError, ValueError):
    return 0


def _plan(arguments: list[str], topology: str) -> str:
  """Makes a plan in a new process, in which jax sees the devices of a TPU."""
  if not importlib.util.find_spec("libtpu"):
    raise _SkippedError("the extra `tpu` is not installed (`make tpu`)")
  plan = costs.make_plan(arguments, topology)
  return (
    f"{plan['hbm_bytes_per_device'] / GIB:.2f} of "
    f"{plan['hbm_available_bytes'] / GIB:.2f} GiB per device of {topology}; "
    f"predicted: {plan['predicted_step_secs']:.3f} s per step"
  )
