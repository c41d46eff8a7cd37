"""Tests of signals.py and streams.py, in small processes of their own."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from bert_jax.runtime import signals

ROOT = pathlib.Path(__file__).parents[2]

# Runs no bytecode of the main thread for a minute, as a compilation does.
BUSY = "hashlib.pbkdf2_hmac('sha256', b'x', b'x', 10**8)"
PRELUDE = """
import hashlib, os, signal, sys, time
from bert_jax.runtime import signals, streams
signals.hold()  # as the launcher does before it imports the rest
signals.guard()
"""
LISTENS = """
with signals.Listener("saving") as listener:
  listener.listen()
  print("ready", flush=True)
  {}
  while not listener.given:
    time.sleep(0.01)
  time.sleep(0.5)  # the message is another thread's
print("saved", listener.given, flush=True)
sys.exit(75)
"""
INTERRUPTED = """
try:
  print("ready", flush=True)
  {}
  time.sleep(60)
finally:
  signals.end_if_interrupted()
"""

# Under nohup the programs here would ignore SIGHUP, too.
STOPPING = [
  number
  for number in signals.STOPPING
  if signal.getsignal(number) != signal.SIG_IGN
]


def start(code, prelude=PRELUDE, prefix=(), **kwargs):
  """Starts a program, and waits until it is ready."""
  process = subprocess.Popen(
    [*prefix, sys.executable, "-c", prelude + code],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **kwargs,
  )
  assert process.stdout.readline() == "ready\n", process.stderr.read()
  return process


def finish(process):
  """Its exit status, what it printed and what it said."""
  out, said = process.communicate(timeout=120)
  assert "Traceback" not in said and "Exception ignored" not in said, said
  return process.returncode, out, said


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_lets_a_listener_save(number):
  process = start(LISTENS.format(""))
  process.send_signal(number)
  status, out, said = finish(process)
  assert (status, out) == (75, f"saved {number.name}\n")
  assert number.name in said and said.count("\n") == 1


def test_the_second_signal_ends_a_process_that_runs_no_bytecode():
  process = start(LISTENS.format(BUSY))
  process.send_signal(signal.SIGINT)
  said = process.stderr.readline()  # at once, not behind the compilation
  assert "SIGINT" in said
  time.sleep(0.5)  # or it would count as the first one, passed on twice
  began = time.monotonic()
  process.send_signal(signal.SIGINT)
  assert finish(process)[0] == 130
  assert time.monotonic() - began < 3


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_signals_that_follow_each_other_at_once_count_once(number):
  """Of a closing terminal, or of a wrapper that passes Ctrl-C on."""
  assert 0.1 < signals._SAME_INTERRUPT_SECS < 0.5 < signals._SAME_SECS < 2
  process = start(
    "signals._SAME_SECS = signals._SAME_INTERRUPT_SECS = 60\n"  # for slow CPUs
    "with signals.Listener('saving') as listener:\n"
    "  listener.listen()\n"
    "  print('ready', flush=True)\n"
    "  sys.stdin.readline()\n"
    "  print('saved', listener.given, flush=True)\n"
    "sys.exit(75)\n",
    stdin=subprocess.PIPE,
  )
  for _ in range(3):
    process.send_signal(number)
    time.sleep(0.05)
  process.stdin.write("\n")
  process.stdin.flush()
  assert finish(process)[:2] == (75, f"saved {number.name}\n")


# A library in C that takes SIGTERM for itself, as jax does in a job of several.
LIBRARY = """
import ctypes
told = []
kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
theirs = kind(told.append)
with signals.keeping_handler():
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = (ctypes.c_int, kind)
  libc.signal(signal.SIGTERM, theirs)
"""


@pytest.mark.parametrize("number", STOPPING)
def test_a_library_that_takes_sigterm_is_told_of_it_once_we_listen(number):
  listens = LISTENS.replace("listen()", "listen(forwards=True)")
  listens = listens.replace("given, flush", "given, told, flush")
  process = start(LIBRARY + listens.format(""))
  process.send_signal(number)
  status, out, _ = finish(process)
  assert (status, out) == (75, f"saved {number.name} [15]\n")
  process = start(LIBRARY + listens.format(BUSY))
  process.send_signal(number)
  assert number.name in process.stderr.readline()
  time.sleep(1.5)
  process.send_signal(number)
  assert finish(process)[0] == 130
  # Before anybody listens, the signal ends the process.
  process = start(LIBRARY + INTERRUPTED.format(""))
  process.send_signal(number)
  assert finish(process)[0] == 130


def test_the_status_of_an_interrupted_process_can_be_chosen():
  process = start("signals.leaves('as before', 75)\n" + INTERRUPTED.format(""))
  process.send_signal(signal.SIGTERM)
  status, _, said = finish(process)
  assert status == 75 and "as before" in said


@pytest.mark.parametrize("busy", ["", BUSY])
@pytest.mark.parametrize("number", STOPPING)
def test_a_process_with_nothing_to_save_ends_with_130(number, busy):
  process = start(INTERRUPTED.format(busy))
  began = time.monotonic()
  process.send_signal(number)
  status, _, said = finish(process)
  assert status == 130
  assert time.monotonic() - began < 10
  assert f"interrupted ({number.name})" in said and said.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_from_the_start_stays_ignored(number):
  """As `nohup` asks for, and a shell for what it runs in the background."""
  trap = f"trap '' {number.name[3:]}; exec \"$@\""
  process = start(LISTENS.format(""), prefix=("sh", "-c", trap, "sh"))
  process.send_signal(number)
  time.sleep(0.5)
  assert process.poll() is None
  process.send_signal(signal.SIGTERM)
  assert finish(process)[:2] == (75, "saved SIGTERM\n")


def test_once_the_status_is_known_a_signal_changes_nothing():
  process = start(
    "signals.finish()\nprint('ready', flush=True)\ntime.sleep(1)\nsys.exit(7)"
  )
  process.send_signal(signal.SIGINT)
  assert finish(process) == (7, "", "")


def test_signals_that_were_held_arrive_when_they_are_released():
  """Also in the program that is started in place of the first."""
  code = (
    "try:\n"
    "  if len(sys.argv) > 1:\n"
    "    time.sleep(1)\n"
    "    print('held', flush=True)\n"
    "    signals.guard()\n"
    "    time.sleep(60)\n"
    "  print('ready', flush=True)\n"
    "  os.execv(sys.executable, [*sys.orig_argv, 'again'])\n"
    "finally:\n"
    "  signals.end_if_interrupted()\n"
  )
  process = start(code, prelude=PRELUDE.replace("signals.guard()", ""))
  process.send_signal(signal.SIGINT)
  assert finish(process)[:2] == (130, "held\n")


def test_other_listeners_are_told_by_sigterm(monkeypatch):
  """As on several hosts, where jax listens for it."""
  told = []
  before = signal.signal(signal.SIGTERM, lambda *_: told.append(1))
  interrupt = signal.getsignal(signal.SIGINT)
  try:
    with signals.Listener("") as listener:
      listener.listen(forwards=True)
      signal.raise_signal(signal.SIGINT)
      assert told == [1] and listener.given == "SIGINT"
  finally:
    signal.signal(signal.SIGTERM, before)
  assert signal.getsignal(signal.SIGINT) == interrupt


# --- standard streams ---------------------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_number_of_the_next_file(closed, tmp_path):
  code = (
    "import os, sys; from bert_jax.runtime import streams; streams.guard()\n"
    f"file = open({str(tmp_path / 'file')!r}, 'w')\n"
    "print('printed'); print('said', file=sys.stderr)\n"
    "os.write(1, b'raw'); os.write(2, b'raw')\n"
    "sys.exit(file.fileno() < 3)"
  )
  path = tmp_path / "code.py"
  path.write_text(code)
  done = subprocess.run(
    f"exec {sys.executable} {path} {closed}",
    shell=True,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "file").read_text() == ""
  assert done.stdout == (b"" if ">&-" in closed.split() else b"rawprinted\n")


@pytest.mark.parametrize("ends", [False, True])
def test_printing_for_nobody_ends_only_what_is_for_printing(ends):
  context = "streams.ending_with_reader()" if ends else "signals.Listener('')"
  process = start(
    "streams.guard()\nprint('ready', flush=True)\n"
    "sys.stdin.read(1)\n"
    f"try:\n  with {context}:\n"
    "    for _ in range(1000): print('x' * 1000)\n"
    "    sys.stdout.flush()\n"
    "except BrokenPipeError:\n  sys.exit(141)\n",
    stdin=subprocess.PIPE,
  )
  process.stdout.close()
  process.stdin.write("x")
  process.stdin.close()
  assert process.wait(30) == (141 if ends else 0)
  assert process.stderr.read() == ""
  process.stderr.close()
