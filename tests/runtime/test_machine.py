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
