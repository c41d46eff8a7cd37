"""Starts the launcher in processes that need not import its packages.

Importing takes longer than a tiny training. A server imports everything once,
and a program is a fork of it. The server itself computes nothing, so that it
has no threads and no devices.
"""

import atexit
import contextlib
import ctypes
import functools
import json
import os
import pathlib
import runpy
import select
import signal
import subprocess
import sys
import threading
import time

from tests.support import storage_server

ROOT = pathlib.Path(__file__).parents[2]
_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Forked:
  """A started program; has what tests use of subprocess.Popen."""

  def __init__(self, pid, args, server):
    self.pid, self.args, self._server = pid, args, server

  @property
  def returncode(self):
    return self._server.statuses.get(self.pid)

  def poll(self):
    if self.returncode is None and self._server.process.poll() is not None:
      raise RuntimeError("the server that starts programs has ended")
    return self.returncode

  def wait(self, timeout=None):
    give_up = time.monotonic() + (timeout or 3600)
    while self.poll() is None:
      if time.monotonic() > give_up:
        raise subprocess.TimeoutExpired(self.args, timeout)
      time.sleep(0.005)
    return self.returncode

  def kill(self):
    if self.poll() is None:
      with contextlib.suppress(ProcessLookupError):
        os.kill(self.pid, signal.SIGKILL)


class _Server:
  def __init__(self):
    environ = (
      dict(os.environ)
      | storage_server.FIXED
      | {
        "JAX_PLATFORMS": "cpu",
        # The launcher would start itself again to set it.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
      }
    )
    for name in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS"):
      environ.pop(name, None)
    self.statuses, self._pids = {}, {}
    self._lock, self._number = threading.Lock(), 0
    self.process = subprocess.Popen(
      [sys.executable, "-m", "tests.support.fork_server"],
      cwd=ROOT,
      env=environ | {"PYTHONPATH": str(ROOT)},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    atexit.register(self.process.kill)
    threading.Thread(target=self._listen, daemon=True).start()

  def _listen(self):
    for line in self.process.stdout:
      number, pid, status = json.loads(line)
      if number is not None:
        self._pids[number] = pid
      else:
        self.statuses[pid] = status

  def start(self, args, errors, environ):
    with self._lock:
      self._number += 1
      number = self._number
      request = {
        "number": number, "args": list(map(str, args)), "errors": str(errors),
        "environ": environ,
      }  # fmt: skip
      self.process.stdin.write(json.dumps(request) + "\n")
      self.process.stdin.flush()
    while number not in self._pids:
      assert self.process.poll() is None, "the server has ended"
      time.sleep(0.002)
    return Forked(self._pids[number], args, self)


@functools.cache
def _server():
  return _Server()


def start(args, errors, environ):
  """Starts the launcher in a group of its own.

  Args:
    args: its arguments.
    errors: the file that what it says goes to.
    environ: its environment variables.
  """
  return _server().start(args, errors, environ)


def _serve():
  """Forks until the input ends; then only the forks return, with a request."""
  _import_all()
  waiting = b""
  while True:
    if select.select([0], [], [], 0.01)[0]:
      data = os.read(0, 1 << 16)
      if not data:
        os._exit(0)
      waiting += data
    while b"\n" in waiting:
      line, _, waiting = waiting.partition(b"\n")
      request = json.loads(line)
      pid = os.fork()
      if pid == 0:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
        return request
      with contextlib.suppress(OSError):  # it has done so itself
        os.setpgid(pid, pid)
      print(json.dumps([request["number"], pid, None]), flush=True)
    with contextlib.suppress(ChildProcessError):
      while (found := os.waitpid(-1, os.WNOHANG))[0]:
        status = os.waitstatus_to_exitcode(found[1])
        print(json.dumps([None, found[0], status]), flush=True)


def _import_all():
  import bert_jax.training.train  # noqa: F401

  for name in ("gcsfs", "google.cloud.storage", "tensorboardX.record_writer"):
    with contextlib.suppress(ImportError):
      __import__(name)


def _run(request):
  """Becomes the program of a request."""
  import jax

  with open(request["errors"], "w", encoding="utf-8") as errors:
    os.dup2(errors.fileno(), 2)
  nothing = os.open(os.devnull, os.O_RDWR)
  os.dup2(nothing, 0)
  os.dup2(nothing, 1)
  os.environ.clear()
  os.environ.update(request["environ"])
  os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
  if folder := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  # Of several processes, one compiles for all.
  jax.config.update("jax_share_binary_between_hosts", True)
  sys.argv = ["bert-jax", *request["args"]]
  runpy.run_module("bert_jax.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  _run(_serve())
