"""Finds out, without loading jax, whether this machine computes on the CPU.

On the CPU, every step allocates its activations anew. With pages of 4 kB, a
tenth of the processor time of a step of BERT-base is spent on mapping them. So
the launcher then asks the C library for pages of 2 MB.
"""

from collections.abc import Mapping
import contextlib
import glob
import importlib.util
import os
import platform
import sys
import time

from bert_jax.runtime import signals

# The numbers by which TPUs say what they are, from jax/_src/hardware_utils.py.
_TPU_DEVICES = {
  "0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076",
}  # fmt: skip
_CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def has_tpu() -> bool:
  """Returns whether this machine has a TPU and the library that drives it."""
  if not importlib.util.find_spec("libtpu"):
    return False
  if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*"):
    return True
  found = set()
  for path in glob.glob("/sys/bus/pci/devices/*/device"):
    with contextlib.suppress(OSError), open(path, encoding="ascii") as f:
      found.add(f.read().strip())
  return bool(found & _TPU_DEVICES)


def has_nvidia_gpu() -> bool:
  """Returns whether this machine has an NVIDIA GPU and jax's plugin for it."""
  if not any(map(importlib.util.find_spec, _CUDA_PLUGINS)):
    return False
  return bool(glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/dxg"))


def look_for_no_tpu() -> None:
  """Keeps jax from looking for a TPU where libtpu is installed without one.

  Otherwise libtpu looks for one: it waits, and prints errors. A choice of the
  user's in JAX_PLATFORMS is kept.
  """
  if not importlib.util.find_spec("libtpu") or has_tpu():
    return
  if has_nvidia_gpu():
    os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu")
  elif computes_on_cpu():
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def computes_on_cpu() -> bool:
  """Returns whether jax will compute on the CPU."""
  if os.environ.get("JAX_PLATFORMS") == "cpu":
    return True
  plugins = (*_CUDA_PLUGINS, "jax_rocm7_plugin")
  return not has_tpu() and not any(map(importlib.util.find_spec, plugins))


def process_start() -> float | None:
  """Returns when this process began, as `time.monotonic`; None if unknown."""
  try:
    with open("/proc/self/stat", encoding="utf-8") as f:
      # The name, in parentheses, may contain spaces; 22 is the start.
      ticks = int(f.read().rpartition(")")[2].split()[22 - 3])
    age = time.clock_gettime(time.CLOCK_BOOTTIME)
    age -= ticks / os.sysconf("SC_CLK_TCK")
  except (OSError, ValueError, IndexError, AttributeError):  # not Linux
    return None
  return time.monotonic() - max(age, 0.0)


def huge_pages(environ: Mapping[str, str]) -> dict[str, str]:
  """Returns an environment in which the C library asks for pages of 2 MB.

  Args:
    environ: the environment variables. A setting of the user is kept.
  """
  tunables = [t for t in (environ.get("GLIBC_TUNABLES"),) if t]
  if not any("glibc.malloc.hugetlb" in t for t in tunables):
    tunables.append("glibc.malloc.hugetlb=1")
  return dict(environ) | {"GLIBC_TUNABLES": ":".join(tunables)}


def restart_with_huge_pages() -> None:
  """Starts this program again, in its place, where huge pages would help.

  The C library reads the setting only when a process begins. Nothing is done on
  a machine with accelerators, or where the setting is there already.
  """
  environ = huge_pages(os.environ)
  if (
    computes_on_cpu()
    and platform.libc_ver()[0] == "glibc"
    and environ != dict(os.environ)
  ):
    # The new program must get no signal before it can handle it.
    signals.hold()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)
