"""A damaged checkpoint gives the right numbers or an error to every reader."""

import functools
import json
import os
import pathlib
import random
import shutil
import types

import jax
import numpy as np
import pytest

from bert_jax import weights
from bert_jax.models import params as param_trees
from bert_jax.runtime import checkpoint
from bert_jax.runtime import checksums
from bert_jax.runtime import runs
from bert_jax.training import evaluate
from bert_jax.training import session
from bert_jax.training import train
from bert_jax.weights import convert
from configs import base
from tests.support import tiny_run

STEP, BEFORE = 2, 1  # the two that the run has kept


# --- who reads ----------------------------------------------------------------


def flat(tree):
  """Arrays of parameters by path, on the host."""
  return param_trees.unstack(
    param_trees.flatten(jax.tree.map(np.asarray, tree))
  )


def read_weights(run, workdir):
  """What predict reads, and training with init_from."""
  del run
  return flat(weights.read(workdir).params)


def read_step(run, workdir):
  """What is read where the folder of a step is given."""
  return read_weights(run, os.path.join(workdir, "checkpoints", str(STEP)))


def read_converted(run, workdir):
  del run
  config, target = base.get_config(), f"{workdir}-converted"
  config.convert.to = "huggingface"
  shutil.rmtree(target, ignore_errors=True)
  convert.convert(config, workdir, target)
  return flat(weights.read(target).params)


def read_evaluated(run, workdir):
  wanted = evaluate.wanted_params(run.job, run.mesh)
  step, params = checkpoint.restore_params(workdir, wanted)
  assert step == STEP
  return flat(params)


def read_resumed(run, workdir):
  """The step before may be gone on from, whose parameters are known, too."""
  saved = checkpoint.Checkpoints(
    workdir, keep=2, best_metric="", best_mode="min"
  )
  try:
    step, state, _ = run.restore(saved)
  finally:
    saved.close()
  assert int(state.step) == step
  if step == BEFORE:
    assert (pathlib.Path(workdir) / "damaged" / str(STEP)).exists()
    raise checkpoint.CheckpointError("set aside")
  return flat(state.params)


READERS = {
  "predict": read_weights,
  "step": read_step,
  "convert": read_converted,
  "evaluate": read_evaluated,
  "resume": read_resumed,
}


# --- what is damaged ----------------------------------------------------------


def flip(path, rng):
  content = bytearray(path.read_bytes())
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(content)


def cut(path, rng):
  path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def delete(path, rng):
  del rng
  path.unlink()


def zero(path, rng):
  """A block that was never written."""
  content = bytearray(path.read_bytes())
  size = min(512, len(content))
  start = rng.randrange(len(content) - size + 1)
  content[start : start + size] = bytes(size)
  path.write_bytes(content)


def swap(path, rng):
  """With another file of the step."""
  others = [p for p in files_of(step_of(path)) if p != path]
  other = rng.choice(others)
  mine, theirs = path.read_bytes(), other.read_bytes()
  path.write_bytes(theirs)
  other.write_bytes(mine)


def replace(path, rng):
  """By what the step before has at that place, or of about that size."""
  folder = step_of(path)
  before = folder.with_name(str(BEFORE)) / path.relative_to(folder)
  if not before.exists():  # data files have names drawn by chance
    own, theirs = (
      sorted(p.iterdir(), key=lambda p: p.stat().st_size)
      for p in (path.parent, before.parent)
    )
    before = theirs[min(own.index(path), len(theirs) - 1)]
  del rng
  path.write_bytes(before.read_bytes())


def step_of(path):
  return next(p for p in path.parents if p.name == str(STEP))


def files_of(folder):
  return sorted(
    p for p in folder.rglob("*") if p.is_file() and p.stat().st_size
  )


DAMAGES = (flip, cut, delete, zero, swap, replace)


def rename(step):
  """The step before, in the place of this one."""
  shutil.rmtree(step)
  step.with_name(str(BEFORE)).rename(step)


def copy(step):
  shutil.rmtree(step)
  shutil.copytree(step.with_name(str(BEFORE)), step)


def mix(*items):
  """Parts of the step before in this one."""

  def damage(step):
    for item in items:
      shutil.rmtree(step / item)
      shutil.copytree(step.with_name(str(BEFORE)) / item, step / item)

  return damage


def remove_sums(step):
  """The checksums, and whatever says that there were any."""
  shutil.rmtree(step / "sums")
  path = step / "_CHECKPOINT_METADATA"
  noted = json.loads(path.read_text())
  del noted["item_handlers"]["sums"]
  path.write_text(json.dumps(noted))


def edit_sums(change):
  def damage(step):
    path = step / "sums" / "metadata"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))

  return damage


def without(name):
  return edit_sums(lambda sums: {k: v for k, v in sums.items() if k != name})


WHOLE = {
  "renamed": rename,
  "copied": copy,
  "parameters of another": mix("params"),
  "checksums of another": mix("sums"),
  "rest and checksums of another": mix("rest", "sums"),
  "parameters and checksums of another": mix("params", "sums"),
  "all parts of another": mix("params", "rest", "sums"),
  "checksums removed": remove_sums,
  "checksums emptied": edit_sums(lambda sums: {}),
  "checksums cut": without("params/encoder/pooler/bias"),
  "step cut": without("rest/step"),
  "checksums are a list": edit_sums(list),
}


# --- the property -------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory, prepared):
  """A run whose arrays are large enough to lie outside of OCDBT's own nodes.

  These have checksums by themselves; files of larger arrays have none.
  """
  config = tiny_run.tiny_config(prepared)
  config.model.hidden_size = 128
  config.train.total_steps = STEP
  config.checkpoint.every_steps = 1
  config.checkpoint.best_metric = ""
  workdir = str(tmp_path_factory.mktemp("trained") / "run")
  train.train(config, workdir)
  return types.SimpleNamespace(config=config, workdir=workdir)


@pytest.fixture(scope="module")
def opened(trained):
  """A session of the run, and the parameters of its last step."""
  run = session.open_session(trained.config, trained.workdir)
  with jax.set_mesh(run.mesh):
    params = read_resumed(run, trained.workdir)
  assert len(params) > 20
  return run, params


@pytest.fixture
def check(trained, opened, tmp_path):
  """A function (damage, reader) -> whether what was read is right."""
  run, wanted = opened

  def check(damage, reader):
    workdir = tmp_path / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    ignored = shutil.ignore_patterns("tensorboard", "best")
    shutil.copytree(trained.workdir, workdir, ignore=ignored)
    damage(workdir / "checkpoints" / str(STEP))
    try:
      with jax.set_mesh(run.mesh):
        found = READERS[reader](run, str(workdir))
    except (checkpoint.CheckpointError, weights.WeightsError) as error:
      text = str(error)
      assert reader == "resume" or f"checkpoints/{STEP}" in text, text
      return False
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
      assert x.tobytes() == found[name].tobytes(), name
    return True

  return check


@pytest.mark.parametrize("reader", READERS)
def test_what_is_not_damaged_is_read(reader, check):
  assert check(lambda step: None, reader)


def read_unchecked(step):
  """The parameters, whatever they are; None where Orbax finds the damage."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checksums, "find_damage", lambda *args: "")
    try:
      return flat(checkpoint.read_params(str(step)))
    except checkpoint.CheckpointError:
      return None


@pytest.fixture(scope="module")
def silent_bit(trained, tmp_path_factory):
  """A function (step) that flips a bit which Orbax reads as another number."""
  source = pathlib.Path(trained.workdir) / "checkpoints" / str(STEP)
  step = tmp_path_factory.mktemp("bits") / str(STEP)
  shutil.copytree(source, step)
  wanted = read_unchecked(step)
  rng = random.Random(0)
  paths = [p for p in files_of(step / "params") if p.parent.name == "d"]
  for _ in range(200):
    path = rng.choice(paths)
    sound = path.read_bytes()
    flip(path, rng)
    damaged, found = path.read_bytes(), read_unchecked(step)
    path.write_bytes(sound)
    if found and any((found[k] != x).any() for k, x in wanted.items()):
      name = path.relative_to(step)
      return lambda step: (step / name).write_bytes(damaged)
  raise AssertionError("Orbax finds them all")


@pytest.mark.parametrize("reader", READERS)
def test_one_bit_that_only_the_checksums_see_is_found_by_every_reader(
  reader, check, silent_bit
):
  assert not check(silent_bit, reader)


@pytest.mark.parametrize("name", WHOLE)
def test_a_step_that_is_not_what_its_name_says_is_found(name, check):
  for reader in ("predict", "evaluate"):
    assert not check(WHOLE[name], reader), reader


@pytest.mark.parametrize(
  "name", ["copied", "parameters of another", "checksums removed"]
)
def test_a_run_does_not_go_on_from_what_is_not_its_step(name, check):
  assert not check(WHOLE[name], "resume")


def test_a_damaged_step_of_a_drawn_kind_is_never_read_as_other_numbers(check):
  rng = random.Random(0)
  read = 0
  for make in DAMAGES:
    for reader in ("predict", "evaluate"):
      read += check(lambda step: make(rng.choice(files_of(step)), rng), reader)  # noqa: B023
  assert read < 2 * len(DAMAGES)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("make", DAMAGES)
def test_no_damage_of_any_file_gives_other_numbers(
  make, reader, check, trained
):
  step = pathlib.Path(trained.workdir) / "checkpoints" / str(STEP)
  paths = [p.relative_to(step) for p in files_of(step)]
  assert len(paths) > 12
  rng = random.Random(f"{make.__name__} {reader}")
  refused = 0
  for path in paths:
    for _ in range(1 if make in (delete, replace) else 2):
      refused += not check(lambda step: make(step / path, rng), reader)  # noqa: B023
  assert refused >= 3


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", WHOLE)
def test_no_step_of_another_name_gives_its_numbers(name, reader, check):
  assert not check(WHOLE[name], reader)


# --- records of other releases ------------------------------------------------


def without_key(workdir, name):
  """Takes a key out of run.json, as it was before there was one."""
  path = workdir / "run.json"
  run = json.loads(path.read_text())
  run.pop(name, None)
  del run["sha256"]
  path.write_text(json.dumps(run))


def test_a_record_that_says_nothing_of_checksums_does_not_switch_them_off(
  check,
):
  """A state with a guard is of a release that wrote checksums."""

  def damage(step):
    without_key(step.parents[1], "checksums_since")
    remove_sums(step)

  for reader in ("predict", "evaluate", "resume"):
    assert not check(damage, reader)


def make_old(step):
  """As a release wrote it that had neither checksums nor a guard."""
  without_key(step.parents[1], "checksums_since")
  remove_sums(step)
  path = step / "rest" / "_METADATA"
  noted = json.loads(path.read_text())
  noted["tree_metadata"] = {
    k: v
    for k, v in noted["tree_metadata"].items()
    if v["key_metadata"][0]["key"] not in ("guard", "train_loss")
  }
  path.write_text(json.dumps(noted))


def test_a_step_of_before_there_were_checksums_is_read(check, caplog):
  caplog.set_level("INFO", "bert_jax")
  checksums._tell_of_old.cache_clear()
  for reader in ("predict", "predict", "evaluate"):
    assert check(make_old, reader)
  assert caplog.text.count("predates checksums") == 1


def test_a_step_that_may_have_had_checksums_is_refused(check):
  """Its record says so, or what would tell is gone."""

  def note(step):
    make_old(step)
    workdir = str(step.parents[1])
    runs.write_run(workdir, runs.read_run(workdir) | {"checksums_since": STEP})

  def lose(step):
    make_old(step)
    (step / "rest" / "_METADATA").unlink()

  assert not check(note, "predict")
  assert not check(lose, "predict")


def test_a_run_goes_on_noting_since_when_it_has_checksums(tmp_path):
  workdir = str(tmp_path)
  runs.write_run(workdir, {"config": {}, "data_hash": ""})
  for start in (4, 6):
    runs.write_run(
      workdir, {"config": {}, "data_hash": "", "checksums_since": start + 1}
    )
    assert runs.read_run(workdir)["checksums_since"] == 5


# --- converted weights --------------------------------------------------------


@pytest.fixture
def converted(trained, tmp_path):
  """A workdir that convert has written, and its parameters."""
  found = weights.read(trained.workdir)
  weights.write(found, tmp_path / "converted", "bert_jax")
  return tmp_path / "converted", flat(found.params)


def assert_read(workdir, wanted):
  found = flat(weights.read(workdir).params)
  assert found.keys() == wanted.keys()
  for name, x in wanted.items():
    assert x.tobytes() == found[name].tobytes(), name


def test_converted_weights_have_checksums_that_cannot_be_switched_off(
  converted,
):
  workdir, wanted = converted
  assert_read(workdir, wanted)
  remove_sums(workdir / "checkpoints" / "0")
  with pytest.raises(weights.WeightsError, match="checkpoints/0 is damaged"):
    weights.read(workdir)


def test_weights_that_an_earlier_release_converted_are_read(converted):
  workdir, wanted = converted
  step = workdir / "checkpoints" / "0"
  remove_sums(step)
  shutil.rmtree(step / "rest")
  noted = json.loads((step / "_CHECKPOINT_METADATA").read_text())
  del noted["item_handlers"]["rest"]
  (step / "_CHECKPOINT_METADATA").write_text(json.dumps(noted))
  without_key(workdir, "checksums_since")
  assert_read(workdir, wanted)


@functools.cache
def numbers(dtype):
  rng = np.random.default_rng(0)
  return rng.integers(0, 99, (3, 70_000)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32"])
def test_the_host_and_the_devices_compute_the_same_checksum(dtype):
  x = np.asarray(jax.numpy.asarray(numbers("float32"), dtype))
  assert checksums.sums(x=x, y=x[:0]) == checksums.sums(
    x=jax.device_put(x), y=jax.device_put(x[:0])
  )
