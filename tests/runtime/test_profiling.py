"""Tests of profiling.py: which steps a trace holds, and what is refused."""

import collections
import pathlib

import jax
import pytest

from bert_jax.runtime import profiling
from bert_jax.training import train
from tests.support import launching
from tests.support import xla_flags

launch = launching.launch


def traces(workdir):
  """The traces of a run, as TensorBoard's profiler looks for them."""
  folder = pathlib.Path(workdir, "profile", "plugins", "profile")
  return sorted(folder.glob("*/*.xplane.pb"))


def traced(path):
  """Step numbers annotated in a trace, and its events by name."""
  steps, events = [], collections.defaultdict(list)
  if xla_flags.JAXLIB >= (0, 12):
    pytest.skip("jaxlib 0.12 aborts where the facts of an event are read")
  for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
    for line in plane.lines:
      for event in line.events:
        events[event.name].append((event.start_ns, event.end_ns))
        if event.name == profiling.STEP_NAME:
          steps.append(dict(event.stats)["step_num"])
  return sorted(steps), events


def num_apart(times):
  """How many there are, those within another one not counted."""
  count, latest = 0, 0
  for start, end in sorted(times):
    count += start >= latest
    latest = max(latest, end)
  return count


def test_the_trace_holds_the_steps_asked_for_and_no_others(
  prepared, tiny_config, tmp_path
):
  config = tiny_config(prepared)
  config.train.profile_steps = (3, 4)
  config.eval.every_steps = config.checkpoint.every_steps = 0
  workdir = str(tmp_path / "run")
  train.train(config, workdir)
  (path,) = traces(workdir)
  assert path.parent.name == "steps_3_4"
  steps, events = traced(path)
  assert steps == [3, 4]
  # One call of the step in each, and its last operation is in the trace, too.
  assert num_apart(events["PjitFunction(train_step)"]) == 2
  called = max(end for _, end in events["PjitFunction(train_step)"])
  assert max(end for _, end in events["ThunkExecutor::Execute"]) > called
  # Beyond these steps nothing is traced, whatever they are.
  config.train.profile_steps = (1, 8)
  assert train.train(config, workdir) == {}
  assert traces(workdir) == [path]


def test_what_is_left_of_the_steps_is_traced_by_a_run_that_goes_on(tmp_path):
  step = jax.jit(lambda x: x + 1)
  x = step(0.0)
  profile = profiling.Profile((2, 9), str(tmp_path))
  for number in (5, 6):  # the last of all
    profile.start(number, x)
    x = step(x)
    profile.stop(number, x)
  profile.close()
  (path,) = traces(tmp_path)
  assert path.parent.name == "steps_5_9"
  assert traced(path)[0] == [5, 6]


@pytest.mark.parametrize(
  "steps",
  [(3,), (0, 2), (4, 3), (1, 9), (9, 9), (1.0, 2), ("a", "b"), (1, 2, 3)],
)
def test_steps_that_no_run_has_are_refused(steps):
  with pytest.raises(ValueError, match=r"profile_steps=.*'\(10,15\)'"):
    profiling.check_steps(steps, 8)


@pytest.mark.parametrize("steps", [(), (1, 1), (8, 8), [1, 8]])
def test_steps_that_a_run_has_are_taken(steps):
  profiling.check_steps(steps, 8)


def test_bad_steps_are_refused_before_anything_is_written(
  prepared, launch, tmp_path, capsys
):
  workdir = tmp_path / "run"
  root = pathlib.Path(__file__).parents[2]
  status = launch(
    "--mode=train",
    f"--config={root}/configs/pretrain.py:size=tiny",
    f"--config.data.dir={prepared}",
    "--config.data.seq_len=16",
    "--config.data.dupe_factor=4",
    "--config.data.batch_size=16",
    "--config.train.total_steps=12",
    "--config.train.profile_steps=10,15",
    f"--workdir={workdir}",
  )
  assert status == 2
  assert "from 1 to 12, such as" in launching.message(capsys)
  assert not workdir.exists()
