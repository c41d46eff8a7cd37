"""Tests of checkpoint.py: what is kept, what is best, what is damaged."""

import errno
import json
import logging
import os
import pathlib
import shutil
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from bert_jax.runtime import checkpoint
from bert_jax.runtime import sharding
from bert_jax.training import optim


def open_checkpoints(workdir, keep=2, metric="eval/loss", mode="min"):
  return checkpoint.Checkpoints(
    str(workdir), keep=keep, best_metric=metric, best_mode=mode
  )


def state_at(step):
  params = {"w": jnp.full((8, 4), float(step)), "b": jnp.arange(4.0)}
  return params, {"step": jnp.int32(step), "opt_state": {"mu": params["w"] / 2}}


def abstract(tree):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def save(checkpoints, step, **metrics):
  named = {f"eval/{name}": value for name, value in metrics.items()}
  checkpoints.save(step, *state_at(step), named)


def steps_in(folder):
  return sorted(int(p.name) for p in pathlib.Path(folder).iterdir())


def test_the_newest_are_kept_and_come_back_bit_by_bit(tmp_path):
  checkpoints = open_checkpoints(tmp_path, keep=2)
  assert checkpoints.latest_step() is None
  for step in (1, 2, 3):
    save(checkpoints, step)
  assert checkpoints.latest_step() == 3
  want = state_at(3)
  step, *got = checkpoints.restore_newest(*map(abstract, want))
  assert step == 3
  jax.tree.map(np.testing.assert_array_equal, tuple(got), want)
  checkpoints.close()
  assert steps_in(tmp_path / "checkpoints") == [2, 3]
  assert steps_in(tmp_path / "best") == []


@pytest.mark.parametrize(
  ("mode", "values", "best"),
  [("min", (3.0, 1.0, 2.0), 2), ("max", (3.0, 1.0, 2.0), 1)],
)
def test_a_worse_evaluation_does_not_replace_the_best(
  tmp_path, mode, values, best
):
  checkpoints = open_checkpoints(tmp_path, keep=1, mode=mode)
  for step, value in enumerate(values, 1):
    save(checkpoints, step, loss=value)
  checkpoints.close()
  assert steps_in(tmp_path / "checkpoints") == [3]
  assert steps_in(tmp_path / "best") == [best]
  step, params = checkpoint.restore_params(
    str(tmp_path), abstract(state_at(0)[0]), "best"
  )
  assert step == best
  np.testing.assert_array_equal(params["w"], np.full((8, 4), best))


def test_the_best_is_remembered_when_a_run_goes_on(tmp_path):
  checkpoints = open_checkpoints(tmp_path)
  save(checkpoints, 2, loss=1.0)
  checkpoints.close()
  checkpoints = open_checkpoints(tmp_path)
  save(checkpoints, 4, loss=1.5)
  checkpoints.close()
  assert steps_in(tmp_path / "best") == [2]


def test_a_better_step_before_the_best_is_kept_too(tmp_path):
  """After a kill a run goes on from before the best it had."""
  checkpoints = open_checkpoints(tmp_path)
  params, rest = state_at(6)
  checkpoints.save_if_best(6, params, rest, {"eval/loss": 2.0})
  params, rest = state_at(5)
  checkpoints.save_if_best(5, params, rest, {"eval/loss": 1.0})
  checkpoints.close()
  assert steps_in(tmp_path / "best") == [5]


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
  checkpoints = open_checkpoints(tmp_path)
  for step, loss in enumerate((float("nan"), 1.0, float("nan")), 1):
    save(checkpoints, step, loss=loss)
  checkpoints.close()
  assert steps_in(tmp_path / "best") == [2]


def test_a_step_without_an_evaluation_is_no_candidate(tmp_path):
  checkpoints = open_checkpoints(tmp_path)
  save(checkpoints, 1)
  save(checkpoints, 2, loss=1.0)
  save(checkpoints, 3)
  checkpoints.close()
  assert steps_in(tmp_path / "best") == [2]


def test_no_best_is_kept_where_none_is_asked_for(tmp_path):
  checkpoints = open_checkpoints(tmp_path, metric="")
  save(checkpoints, 1, loss=1.0)
  checkpoints.close()
  assert not (tmp_path / "best").exists()


def test_saving_goes_on_in_the_background(tmp_path, monkeypatch):
  """Saving returns before anything can be finished; close waits for it."""
  allowed, waited = threading.Event(), []
  finalize = ocp.CheckpointManager._finalize_checkpoint

  def slow_finalize(self, *args, **kwargs):
    waited.append(allowed.wait(60))
    return finalize(self, *args, **kwargs)

  monkeypatch.setattr(
    ocp.CheckpointManager, "_finalize_checkpoint", slow_finalize
  )
  checkpoints = open_checkpoints(tmp_path, metric="")
  save(checkpoints, 1)
  assert 1 not in [
    int(p.name)
    for p in (tmp_path / "checkpoints").iterdir()
    if p.name.isdigit()
  ]
  allowed.set()
  checkpoints.close()
  assert waited == [True]
  assert steps_in(tmp_path / "checkpoints") == [1]


def test_what_was_saved_on_one_mesh_is_restored_on_another(tmp_path):
  params, rest = state_at(1)
  old, new = (
    jax.sharding.NamedSharding(sharding.make_mesh(*sizes), spec)
    for sizes, spec in (
      ((8, 1, 1), sharding.P("data", None)),
      ((2, 2, 2), sharding.P("fsdp", "tensor")),
    )
  )
  checkpoints = open_checkpoints(tmp_path)
  checkpoints.save(1, jax.device_put({"w": params["w"]}, old), rest, {})
  wanted = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=new)}
  _, got, _ = checkpoints.restore_newest(wanted, abstract(rest))
  checkpoints.close()
  np.testing.assert_array_equal(got["w"], params["w"])
  assert got["w"].sharding == new
  assert got["w"].addressable_shards[0].data.shape == (4, 2)


def _two_steps(folder):
  checkpoints = open_checkpoints(folder)
  save(checkpoints, 1)
  save(checkpoints, 2)
  checkpoints.close()
  return folder / "checkpoints" / "2"


def _newest(folder):
  checkpoints = open_checkpoints(folder)
  try:
    return checkpoints.restore_newest(*map(abstract, state_at(0)))
  finally:
    checkpoints.close()


def test_frozen_parts_in_the_form_of_an_earlier_version_are_refused(tmp_path):
  """One mark for a part, where now each of its parameters has one."""
  params = {"encoder": {"w": jnp.ones((2, 3))}, "teacher": {"w": jnp.ones(3)}}
  optimizer = optax.adam(0.1)

  def rest_of(labels):
    frozen = optax.set_to_zero()
    tx = optax.partition({"trained": optimizer, "frozen": frozen}, labels)
    return {"step": jnp.int32(2), "opt_state": tx.init(params)}

  old = rest_of(
    lambda p: {k: "frozen" if k == "teacher" else "trained" for k in p}
  )
  tx = optim.freeze(optimizer, lambda path: not path.startswith("teacher/"))
  new = {"step": jnp.int32(2), "opt_state": tx.init(params)}
  for name, rest in (("old", old), ("new", new)):
    checkpoints = open_checkpoints(tmp_path / name)
    checkpoints.save(2, params, rest, {})
    checkpoints.close()
  way_out = "--config.init_from=.*/old/checkpoints/2 and another --workdir"
  checkpoints = open_checkpoints(tmp_path / "old")
  with pytest.raises(checkpoint.CheckpointError, match=way_out):
    checkpoints.restore_newest(abstract(params), abstract(new))
  checkpoints.close()
  folder = str(tmp_path / "old" / "checkpoints" / "2")
  with pytest.raises(checkpoint.CheckpointError, match=way_out):
    checkpoint.read_rest(folder, abstract(new))
  assert steps_in(tmp_path / "old" / "checkpoints") == [2]
  checkpoints = open_checkpoints(tmp_path / "new")
  step, _, rest = checkpoints.restore_newest(abstract(params), abstract(new))
  checkpoints.close()
  assert step == 2
  assert jax.tree.structure(rest) == jax.tree.structure(new)


def test_a_cut_checkpoint_is_set_aside_for_the_one_before(tmp_path, caplog):
  for path in _two_steps(tmp_path).rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  step, *got = _newest(tmp_path)
  assert step == 1
  jax.tree.map(np.testing.assert_array_equal, tuple(got), state_at(1))
  assert "checkpoints/2 cannot be read" in caplog.text
  assert "going on from step 1 instead" in caplog.text
  assert steps_in(tmp_path / "checkpoints") == [1]
  assert steps_in(tmp_path / "damaged") == [2]
  assert _newest(tmp_path)[0] == 1


def test_no_flipped_byte_of_any_file_gets_through(tmp_path):
  """What it does not change, such as a time of day, may pass."""
  step_2 = _two_steps(tmp_path)
  found = []
  files = sorted(p.relative_to(step_2) for p in step_2.rglob("*"))
  files = [p for p in files if (step_2 / p).is_file() and p.name != "_sharding"]
  assert len(files) > 8
  for name in files:
    folder = tmp_path / "copy"
    shutil.copytree(tmp_path / "checkpoints", folder / "checkpoints")
    path = folder / "checkpoints" / "2" / name
    content = bytearray(path.read_bytes())
    if content:
      content[len(content) // 2] ^= 0x10
      path.write_bytes(content)
    step, *got = _newest(folder)
    jax.tree.map(np.testing.assert_array_equal, tuple(got), state_at(step))
    found.append(step)
    shutil.rmtree(folder)
  assert found.count(1) >= 4


@pytest.mark.parametrize("lost", ["sums/metadata", "_CHECKPOINT_METADATA"])
def test_a_step_that_lost_its_sums_is_damaged(tmp_path, lost):
  (_two_steps(tmp_path) / lost).unlink()
  assert _newest(tmp_path)[0] == 1


def test_checkpoints_that_are_all_damaged_are_left_where_they_are(tmp_path):
  _two_steps(tmp_path)
  for path in (tmp_path / "checkpoints").rglob("manifest.ocdbt"):
    path.write_bytes(b"")
  with pytest.raises(checkpoint.CheckpointError, match="no checkpoint.*Put"):
    _newest(tmp_path)
  assert steps_in(tmp_path / "checkpoints") == [1, 2]


def test_parameters_of_other_shapes_are_refused(tmp_path):
  checkpoints = open_checkpoints(tmp_path)
  save(checkpoints, 1)
  checkpoints.close()
  for wanted in (
    {"w": jax.ShapeDtypeStruct((8, 5), jnp.float32)},
    {"v": jax.ShapeDtypeStruct((8, 4), jnp.float32)},
  ):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {k: x.update(sharding=place) for k, x in wanted.items()}
    with pytest.raises(checkpoint.CheckpointError, match="/1 cannot be read"):
      checkpoint.restore_params(str(tmp_path), wanted)


def test_a_folder_without_checkpoints_says_how_to_make_one(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match="bert-jax train"):
    checkpoint.restore_params(str(tmp_path), {})
  assert not list(tmp_path.iterdir())


def test_a_best_metric_that_is_not_evaluated_is_refused():
  def check(name):
    checkpoint.check_settings(
      types.SimpleNamespace(best_metric=name), ["eval/loss"]
    )

  check("eval/loss")
  check("")
  with pytest.raises(ValueError, match="'eval/f1' is not evaluated; use one"):
    check("eval/f1")


@pytest.mark.parametrize(
  "error",
  [
    PermissionError(13, "Permission denied", "x"),
    MemoryError(),
    ValueError("RESOURCE_EXHAUSTED: out of memory"),
    ValueError("UNAVAILABLE: the storage does not answer"),
  ],
)
def test_storage_that_does_not_answer_is_no_damage(
  tmp_path, monkeypatch, error
):
  """Nothing is set aside, so that the next start may read it."""
  _two_steps(tmp_path)
  manager = open_checkpoints(tmp_path)
  wanted = list(map(abstract, state_at(2)))

  def fail(*args, **kwargs):
    raise error

  monkeypatch.setattr(manager._newest.manager, "restore", fail)
  with pytest.raises(type(error)):
    manager.restore_newest(*wanted)
  monkeypatch.undo()
  assert manager.restore_newest(*wanted)[0] == 2
  manager.close()
  assert not (tmp_path / "damaged").exists()


def test_the_best_is_on_disk_before_the_newest_is_begun(tmp_path, monkeypatch):
  """Killed in between, a run would go on behind the best and never save it."""
  finalize = ocp.CheckpointManager._finalize_checkpoint

  def slow_finalize(self, *args, **kwargs):
    time.sleep(0.2)
    return finalize(self, *args, **kwargs)

  monkeypatch.setattr(
    ocp.CheckpointManager, "_finalize_checkpoint", slow_finalize
  )
  checkpoints = open_checkpoints(tmp_path)
  params, rest = state_at(1)
  checkpoints.save_if_best(1, params, rest, {"eval/loss": 1.0})
  save(checkpoints, 2)
  assert steps_in(tmp_path / "best") == [1]
  save(checkpoints, 3, loss=0.5)
  assert 3 in steps_in(tmp_path / "best")
  checkpoints.close()


def test_what_a_killed_run_could_not_remove_is_removed(tmp_path):
  checkpoints = open_checkpoints(tmp_path, keep=4)
  for step in (1, 2, 3, 4):
    save(checkpoints, step, loss=1 / step)
  checkpoints.close()
  half = tmp_path / "best" / "2"
  shutil.copytree(tmp_path / "best" / "4", half)
  shutil.rmtree(half / "metrics")
  checkpoints = open_checkpoints(tmp_path, keep=2)
  found, problems = checkpoints.find_sound(*map(abstract, state_at(0)))
  assert (found[0], problems) == (4, {})
  assert steps_in(tmp_path / "checkpoints") == [1, 2, 3, 4]  # only looked at
  assert checkpoints.restore_newest(*map(abstract, state_at(0)))[0] == 4
  assert steps_in(tmp_path / "checkpoints") == [3, 4]
  assert steps_in(tmp_path / "best") == [4]
  save(checkpoints, 5, loss=0.1)
  checkpoints.close()
  assert steps_in(tmp_path / "checkpoints") == [4, 5]
  assert steps_in(tmp_path / "best") == [5]


def test_a_best_of_a_run_that_begins_anew_is_the_only_one(tmp_path):
  """Killed before it had saved anything else."""
  checkpoints = open_checkpoints(tmp_path)
  params, rest = state_at(2)
  checkpoints.save_if_best(2, params, rest, {"eval/loss": 1.0})
  checkpoints.close()
  shutil.copytree(tmp_path / "best" / "2", tmp_path / "best" / "1")
  shutil.rmtree(tmp_path / "best" / "1" / "metrics")
  checkpoints = open_checkpoints(tmp_path)
  params, rest = state_at(1)
  checkpoints.save_if_best(1, params, rest, {"eval/loss": 2.0})
  checkpoints.close()
  assert steps_in(tmp_path / "best") == [2]


def test_a_save_that_fails_at_once_says_why_and_what_is_left(tmp_path):
  checkpoints = open_checkpoints(tmp_path)
  save(checkpoints, 1)
  checkpoints.check()
  checkpoints.close()
  checkpoints = open_checkpoints(tmp_path)
  (tmp_path / "checkpoints").rename(tmp_path / "saved")
  (tmp_path / "checkpoints").write_text("")  # no folder
  with pytest.raises(
    checkpoint.SaveError,
    match="written to .*checkpoints: Not a directory. "
    "No step is saved there yet; once this",
  ):
    save(checkpoints, 2)
  assert steps_in(tmp_path / "saved") == [1]


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ValueError("RESOURCE_EXHAUSTED: [file='x'] [os_error_code='28']"),
  ],
)
@pytest.mark.parametrize("notice", ["check", "save", "close"])
def test_a_save_that_fails_in_the_background_is_told(
  tmp_path, monkeypatch, error, notice
):
  checkpoints = open_checkpoints(tmp_path, metric="")
  save(checkpoints, 1)
  checkpoints.check()
  checkpoints._newest.manager.wait_until_finished()

  def fail(self, step):
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(ocp.CheckpointManager, "_finalize_checkpoint", fail)
    save(checkpoints, 2)
    checkpoints._newest.manager._finalize_thread.get_not_none()._started.wait()
    while checkpoints._newest.manager.is_saving_in_progress():
      time.sleep(0.01)
  with pytest.raises(
    checkpoint.SaveError, match="No space left on device. The last one there is"
  ):
    {
      "check": checkpoints.check,
      "save": lambda: save(checkpoints, 3),
      "close": checkpoints.close,
    }[notice]()
  checkpoints.close()


def test_stack_traces_of_what_is_raised_are_not_logged(tmp_path, caplog):
  checkpoints = open_checkpoints(tmp_path)
  checkpoints.close()
  absl = logging.getLogger("absl")
  where = {"orbax": ocp.__file__, "other": __file__}
  for name, path in where.items():
    absl.handle(
      absl.makeRecord("absl", logging.ERROR, path, 1, f"by {name}", (), None)
    )
  assert "by other" in caplog.text
  assert "by orbax" not in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"eval/loss": "low"}', "{}"])
def test_metrics_of_the_best_that_cannot_be_read_are_named(tmp_path, text):
  checkpoints = open_checkpoints(tmp_path)
  save(checkpoints, 1, loss=0.5)
  checkpoints.close()
  (tmp_path / "best" / "1" / "metrics" / "metrics").write_text(text)
  with pytest.raises(checkpoint.CheckpointError, match="best/1 are damaged"):
    open_checkpoints(tmp_path)


def test_a_step_that_keeps_the_folder_from_being_opened_is_an_error(tmp_path):
  path = _two_steps(tmp_path) / "_CHECKPOINT_METADATA"
  noted = json.loads(path.read_text()) | {"init_timestamp_nsecs": {}}
  path.write_text(json.dumps(noted))
  with pytest.raises(checkpoint.CheckpointError, match="cannot be opened: Obj"):
    open_checkpoints(tmp_path)
