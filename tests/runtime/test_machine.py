"""Tests of machine.py: huge pages where the CPU computes."""

import sys

import pytest

from bert_jax.runtime import machine


def test_huge_pages_are_asked_for_unless_the_user_said_something():
  asked = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
  assert machine.huge_pages({"A": "b"}) == {"A": "b"} | asked
  assert machine.huge_pages(asked) == asked
  own = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
  assert machine.huge_pages(own) == own
  other = {"GLIBC_TUNABLES": "glibc.malloc.check=1"}
  assert machine.huge_pages(other) == {
    "GLIBC_TUNABLES": "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
  }


@pytest.mark.parametrize(
  ("platforms", "restarts"), [("cpu", True), ("tpu", False)]
)
def test_only_computing_on_the_cpu_starts_again_with_huge_pages(
  platforms, restarts, monkeypatch
):
  started = []
  monkeypatch.setattr(machine.os, "execve", lambda *args: started.append(args))
  # They would stay held back here, where no program takes the place of this.
  monkeypatch.setattr(machine.signals, "hold", lambda: None)
  monkeypatch.setattr(machine.platform, "libc_ver", lambda: ("glibc", "2.36"))
  monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: name)
  monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "bert_jax.main"])
  monkeypatch.setenv("JAX_PLATFORMS", platforms)
  monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
  machine.restart_with_huge_pages()
  assert bool(started) == restarts
  for program, arguments, environ in started:
    assert program == sys.executable
    assert arguments == [sys.executable, "-m", "bert_jax.main"]
    assert environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"


def test_libtpu_is_not_asked_on_a_machine_with_a_gpu(monkeypatch):
  found = {"libtpu", "jax_cuda13_plugin"}
  monkeypatch.setattr(
    machine.importlib.util, "find_spec", lambda name: name in found
  )
  monkeypatch.setattr(
    machine.glob, "glob", lambda name: ["x"] * name.startswith("/dev/nvidia")
  )
  # The restore of monkeypatch covers what the function sets.
  monkeypatch.setenv("JAX_PLATFORMS", "")
  monkeypatch.delenv("JAX_PLATFORMS")
  machine.look_for_no_tpu()
  assert machine.os.environ.pop("JAX_PLATFORMS") == "cuda,cpu"
  assert not machine.computes_on_cpu()
  found.remove("jax_cuda13_plugin")  # a card that jax cannot use
  machine.look_for_no_tpu()
  assert machine.os.environ.pop("JAX_PLATFORMS") == "cpu"


@pytest.mark.parametrize(
  ("installed", "device", "wanted"),
  [
    ({"libtpu"}, "0x1234", "cpu"),
    ({"libtpu"}, "0x0063", None),
    (set(), "0x1234", None),
    ({"libtpu", "jax_cuda12_plugin"}, "0x1234", None),
  ],
)
def test_libtpu_is_not_asked_for_a_tpu_that_is_not_there(
  installed, device, wanted, monkeypatch, tmp_path
):
  (tmp_path / "device").write_text(device + "\n")
  monkeypatch.setattr(
    machine.glob,
    "glob",
    lambda name: [str(tmp_path / "device")] * name.startswith("/sys"),
  )
  monkeypatch.setattr(
    machine.importlib.util, "find_spec", lambda name: name in installed
  )
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  machine.look_for_no_tpu()
  assert machine.os.environ.get("JAX_PLATFORMS") == wanted
  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  machine.look_for_no_tpu()
  assert machine.os.environ["JAX_PLATFORMS"] == "tpu"
