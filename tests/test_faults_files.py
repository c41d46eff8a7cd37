"""Real processes that are killed while they write, with SIGKILL.

FAULTS_KILLS says how often, FAULTS_SEED which moments are drawn; see
test_faults.py.
"""

import os
import random
import time

import pytest

from bert_jax import weights
from bert_jax.runtime import files
from tests.support import corpora
from tests.support import fault_runs
from tests.support import small_models

pytestmark = pytest.mark.slow

ROOT = fault_runs.ROOT
KILLS = max(fault_runs.KILLS // 10, 2)
WORDS = 20_000  # lines to predict: some seconds of writing


def temporary(folder):
  """Temporary files and folders anywhere below a folder."""
  return [
    os.path.join(parent, name)
    for parent, folders, names in os.walk(folder)
    for name in (*folders, *names)
    if files.is_temporary(name)
  ]


def kill_while_it_writes(command, folder, rng, secs):
  """Starts a command and kills it some time after it began to write.

  Args:
    command: writes into the folder.
    folder: that is watched.
    rng: what the moment is drawn from.
    secs: the latest moment, seconds after the first temporary file.

  Returns:
    Whether it was killed before it ended, and how many temporary files that
    were there before it are still there.
  """
  before = set(temporary(folder))
  process = fault_runs.start(command, os.path.join(folder, "..", "said"))
  give_up = time.monotonic() + fault_runs.LIFE_SECS
  try:
    while process.poll() is None and not set(temporary(folder)) - before:
      assert time.monotonic() < give_up, "it hangs"
      time.sleep(fault_runs.POLL_SECS)
    time.sleep(rng.uniform(0, secs))
    is_killed = process.poll() is None
    left = before & set(temporary(folder))
  finally:
    fault_runs.kill(process)
  return is_killed, len(left)


def launcher(mode, config, *arguments):
  command = fault_runs.command(mode, {}, *arguments)
  return [
    f"--config={ROOT}/{config}" if a.startswith("--config=") else a
    for a in command
  ]


def test_a_file_is_old_or_new_whenever_its_writer_was_killed(tmp_path):
  """Of --mode=predict; nothing of the killed ones is left in the end."""
  model, out = tmp_path / "model", tmp_path / "out"
  weights.write(small_models.make(), model, "flax")
  lines = tmp_path / "lines.jsonl"
  lines.write_text('{"text": "a [MASK] b"}\n' * WORDS)
  out.mkdir()
  target = out / "target.jsonl"
  (out / "link.jsonl").symlink_to("target.jsonl")
  command = launcher(
    "predict", f"configs/predict.py:from={model}", f"--input={lines}",
    f"--output={out}/link.jsonl",
  )  # fmt: skip
  assert fault_runs.run(command)[0] == 0
  new = target.read_bytes()
  assert new.count(b"\n") == WORDS
  target.write_text("old\n")
  rng, kills = random.Random(fault_runs.SEED), 0
  while kills < KILLS:
    is_killed, left = kill_while_it_writes(command, out, rng, 1.5)
    kills += is_killed
    assert not left, "the one before left something that is still there"
    assert target.read_bytes() in (b"old\n", new)
    if not is_killed:
      target.write_text("old\n")
  assert fault_runs.run(command)[0] == 0
  assert target.read_bytes() == new
  assert sorted(os.listdir(out)) == ["link.jsonl", "target.jsonl"]
  assert (out / "link.jsonl").is_symlink()


@pytest.mark.parametrize("to", ["huggingface", "bert_jax"])
def test_a_folder_is_whole_or_not_there_whenever_its_writer_was_killed(
  tmp_path, to
):
  """Of --mode=convert."""
  model, out = tmp_path / "model", tmp_path / "out"
  weights.write(small_models.make(), model, "flax")
  out.mkdir()
  command = launcher(
    "convert", "configs/convert.py", f"--config.convert.to={to}",
    f"--input={model}", f"--output={out}/folder",
  )  # fmt: skip
  rng, kills = random.Random(fault_runs.SEED), 0
  secs = 0.05 if to == "huggingface" else 1.0
  while kills < KILLS:
    is_killed, left = kill_while_it_writes(command, out, rng, secs)
    kills += is_killed
    assert not left, "the one before left something that is still there"
    if (out / "folder").exists():
      small_models.assert_same(
        weights.read(out / "folder").params, small_models.make().params
      )
      (out / "folder").rename(tmp_path / f"done-{time.monotonic_ns()}")
  assert fault_runs.run(command)[0] == 0
  assert os.listdir(out) == ["folder"]


def test_nothing_temporary_is_left_of_preparations_that_were_killed(tmp_path):
  """And the data is that of a preparation that was not killed."""
  documents = corpora.make_documents(400)
  text = corpora.write_text(tmp_path / "text.txt", documents)
  data, straight = tmp_path / "data", tmp_path / "straight"
  assert fault_runs.run(fault_runs.prepare_command(text, straight))[0] == 0
  command = fault_runs.prepare_command(text, data)
  data.mkdir()
  rng, kills = random.Random(fault_runs.SEED), 0
  for _ in range(5 * KILLS):
    is_killed, left = kill_while_it_writes(command, data, rng, 0.3)
    kills += is_killed
    assert not left, "the one before left something that is still there"
    if kills == KILLS:
      break
  assert kills
  assert fault_runs.run(command)[0] == 0
  assert not temporary(data)
  assert corpora.tree(data) == corpora.tree(straight)
