"""Reads the schedules that the TPU's compiler writes of Pallas kernels.

A TPU core issues one bundle of operations a cycle. The compiler arranges the
operations of a kernel in bundles, with empty ones where a result is awaited, so
the number of bundles that run is the number of cycles, unless the core waits
for memory. Asked to by `flags`, the compiler writes each kernel's bundles to a
file; this module multiplies them by the runs of the loops that contain them.

The flags are undocumented, and so is the format. What is not understood is left
to the assumptions of costs.py.
"""

from collections.abc import Container
import dataclasses
import glob
import os
import re

# The name of the pass after which nothing but the encoding changes.
_PASS = "packed-bundles-post-ra"
_FILE = re.compile(rf"\d+-(.+)-\d+-{_PASS}\.txt")
_BUNDLE = re.compile(
  r"^\s*(?:0x)?([0-9a-f]+)\s+(?:[A-Z]{2})?\s*:\s*>*\s*\{(.*)"
)
_BRANCH = re.compile(r"\bsbr\.rel (?:\(.*?\) )?target bundleno = (\d+)")
_EXIT_TEST = re.compile(
  r"= scmp\.(ge|gt|eq)\.s32(?:\.totalorder)? (%\w+), (%?\w+) /\* loop exit test"
)
# Empty bundles after a branch run before it takes effect.
_MOST_SLOTS = 8
# A grid's loop runs a few times more often than the grid has steps, because it
# fetches the first block before, and writes the last one after the work.
_MOST_STAGES = 4


def flags(folder: str) -> str:
  """Returns the options of the compiler that make it write schedules.

  They belong into the environment variable LIBTPU_INIT_ARGS before the compiler
  is loaded.

  Args:
    folder: the folder for the files.
  """
  return (
    f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
    f"--xla_jf_dump_llo_pass_label_regex={_PASS}"
  )


def clear(folder: str) -> None:
  """Removes the files of an earlier compilation."""
  for path in glob.glob(os.path.join(glob.escape(folder), "*")):
    if os.path.isfile(path):
      os.remove(path)


def read(folder: str, names: Container[str]) -> dict[str, str]:
  """Returns the text of some schedules, by the name of their instruction.

  Args:
    folder: the folder that `flags` named.
    names: the instructions. Fusions have schedules, too, which may be large.
  """
  found = {}
  for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.txt"))):
    match = _FILE.fullmatch(os.path.basename(path))
    if match and match[1] in names:
      with open(path, encoding="utf-8", errors="replace") as file:
        found[match[1]] = file.read()
  return found


@dataclasses.dataclass(frozen=True)
class _Branch:
  """A jump in a schedule.

  Attributes:
    place: the bundle that holds it.
    end: the last bundle that runs before it takes effect.
    target: the bundle to which it leads.
  """

  place: int
  end: int
  target: int


def cycles(text: str, grid_steps: int) -> float | None:
  """Returns the cycles of one call of a kernel on one core.

  A part of a kernel that runs under a condition counts as if it always ran,
  with one exception: what the loop over the grid skips in its additional runs.

  Args:
    text: the schedule of the kernel.
    grid_steps: the number of steps of the kernel's grid on one core.

  Returns:
    The cycles; None if the text is no schedule, or if it has a loop whose
    number of runs is not found.
  """
  bundles = _bundles(text)
  if not bundles:
    return None
  branches = [
    _Branch(place, _end_of_slots(bundles, place), int(target))
    for place, bundle in enumerate(bundles)
    for target in _BRANCH.findall(bundle)
  ]
  loops = [b for b in branches if b.target <= b.place]
  weights = [1.0] * len(bundles)
  for loop in loops:
    runs = _runs(bundles, loop, loops)
    is_outer = not any(_inside(loop, other) for other in loops)
    if runs is None and not (is_outer and len(_outer(loops)) == 1):
      return None
    runs = grid_steps if runs is None else runs
    shares = [1.0] * len(bundles)
    if is_outer and grid_steps < runs <= grid_steps + _MOST_STAGES:
      for skip in branches:
        if loop.target <= skip.place < skip.target <= loop.place:
          for i in range(skip.end + 1, skip.target):
            shares[i] = grid_steps / runs
    for i in range(loop.target, loop.end + 1):
      weights[i] *= runs * shares[i]
  return sum(weights)


def _bundles(text: str) -> list[str]:
  """Returns the bundles in order; their place is the one that jumps name."""
  bundles: list[str] = []
  for line in text.splitlines():
    match = _BUNDLE.match(line)
    if match and int(match[1], 16) == len(bundles):
      bundles.append(match[2])
    elif bundles:  # a bundle may have several lines
      bundles[-1] += f"\n{line}"
  return bundles


def _end_of_slots(bundles: list[str], place: int) -> int:
  """Returns the last of the empty bundles after a jump."""
  end = place
  while (
    end + 1 < len(bundles)
    and end - place < _MOST_SLOTS
    and bundles[end + 1].startswith("}")
  ):
    end += 1
  return end


def _inside(loop: _Branch, other: _Branch) -> bool:
  """Returns whether a loop lies inside another one."""
  return (
    loop is not other
    and other.target <= loop.target
    and loop.place < other.place
  )


def _outer(loops: list[_Branch]) -> list[_Branch]:
  """Returns the loops that lie inside no other one."""
  return [a for a in loops if not any(_inside(a, b) for b in loops)]


def _runs(
  bundles: list[str], loop: _Branch, loops: list[_Branch]
) -> int | None:
  """Returns how often a loop runs, or None if that is not found.

  The loop counts from one constant to another in constant steps.
  """
  inner = [other for other in loops if _inside(other, loop)]
  own = [
    bundle
    for i, bundle in enumerate(bundles[: loop.end + 1])
    if i >= loop.target and not any(b.target <= i <= b.place for b in inner)
  ]
  body = "\n".join(own)
  tests = _EXIT_TEST.findall(body)
  if len(tests) != 1:
    return None
  how, counter, bound = tests[0]
  step = re.search(
    rf"{re.escape(counter)} = sadd\.s32 (?:(\d+), (%\w+)|(%\w+), (\d+))\b", body
  )
  limit = _constant(bundles, bound)
  if step is None or limit is None:
    return None
  size, before = (
    int(step[1] or step[4]),
    step[2] or step[3],
  )
  phi = re.search(rf"{re.escape(before)} = sphi (%\w+), (%\w+)", body)
  if phi is None or counter not in phi.groups():
    return None
  start = phi[1] if phi[2] == counter else phi[2]
  first = _constant(bundles, start)
  if first is None or size < 1:
    return None
  return max(-(-(limit + (how == "gt") - first) // size), 1)


def _constant(bundles: list[str], name: str) -> int | None:
  """Returns the value of a constant, by itself or by its name."""
  if re.fullmatch(r"\d+", name):
    return int(name)
  set_here = re.compile(rf"{re.escape(name)} = smov (\d+)\b")
  found = {m for bundle in bundles for m in set_here.findall(bundle)}
  return int(found.pop()) if len(found) == 1 else None
