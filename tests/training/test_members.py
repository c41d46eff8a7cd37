"""Tests of members.py: models trained together are those trained alone."""

import dataclasses
import math
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from bert_jax import weights
from bert_jax.runtime import checkpoint
from bert_jax.runtime import metrics_log
from bert_jax.runtime import preemption
from bert_jax.runtime import runs
from bert_jax.runtime import sharding
from bert_jax.training import jobs
from bert_jax.training import members
from bert_jax.training import train
from tests.support import small_tasks
from tests.support.run_checks import depends_on_clock

# The order of sums differs, and Adam's step is as long for tiny gradients:
# parameters drift apart by small parts of a learning rate.
LEARNING_RATE = 3e-4
FORMS = ("regress", "span", "tag", "choice")
TOLERANCE = {"rtol": 1e-3, "atol": LEARNING_RATE / 10}


def _config(folder, form="classify", **changes):
  settings = {
    "data__one_row_len": True,
    "model__dropout_rate": 0.1,
    "model__attention_dropout_rate": 0.1,
    "train__num_epochs": 2.0,
    "train__log_every_steps": 1,
    "eval__every_steps": 6,
    "checkpoint__every_steps": 6,
  }
  return small_tasks.make_config(folder, form, **(settings | changes))


def _member(folder, seed, learning_rate=LEARNING_RATE):
  return members.Member(f"{folder}/{seed}", seed, learning_rate)


def _alone(config, member):
  config = config.copy_and_resolve_references()
  config.seed, config.optim.learning_rate = member.seed, member.learning_rate
  return train.train(config, member.workdir)


def _rows(workdir):
  return [
    {k: v for k, v in row.items() if not depends_on_clock(k)}
    for row in metrics_log.read_metrics(workdir)
  ]


def assert_same_runs(one, other):
  """Two workdirs hold the same run, but for the order of sums."""
  for a, b in zip(_rows(one), _rows(other), strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_allclose(a[key], b[key], **TOLERANCE, err_msg=key)
  got, want = weights.read(one).params, weights.read(other).params
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), got, want
  )


@pytest.mark.parametrize(
  "form",
  ["classify", *(pytest.param(x, marks=pytest.mark.slow) for x in FORMS)],
)
def test_each_is_what_it_is_alone(tmp_path, form):
  config = _config(tmp_path, form)
  together = [
    _member(tmp_path / "together", s, LEARNING_RATE / (s + 1)) for s in (0, 1)
  ]
  found = train.train_together(config, together)
  for member, values in zip(together, found, strict=True):
    lone = _member(tmp_path / "alone", member.seed, member.learning_rate)
    want = _alone(config, lone)
    assert values.keys() == want.keys()
    assert_same_runs(member.workdir, lone.workdir)
    got = runs.read_run(member.workdir)["config"]
    assert got == runs.read_run(lone.workdir)["config"]
  # They are different models, or this proves nothing.
  losses = {_rows(member.workdir)[0]["train/loss"] for member in together}
  assert len(losses) == len(together)


@pytest.mark.slow
@pytest.mark.parametrize(
  "sizes", [(2, 2, 2), pytest.param((1, 8, 1), marks=pytest.mark.slow)]
)
def test_over_devices_too(tmp_path, sizes):
  seed, data, fsdp = sizes
  config = _config(tmp_path, train__num_epochs=1.0)
  config.mesh.update(seed=seed, data=data, fsdp=fsdp)
  together = [_member(tmp_path / "together", s) for s in (0, 1)]
  train.train_together(config, together)
  config.mesh.update(seed=0, data=-1, fsdp=1)
  for member in together:
    lone = _member(tmp_path / "alone", member.seed)
    _alone(config, lone)
    assert_same_runs(member.workdir, lone.workdir)


@pytest.mark.slow
def test_they_start_from_weights(tmp_path):
  config = _config(tmp_path, train__num_epochs=1.0)
  _alone(config, members.Member(f"{tmp_path}/first", 7, LEARNING_RATE))
  config.init_from = f"{tmp_path}/first"
  together = [_member(tmp_path / "together", s) for s in (0, 1)]
  train.train_together(config, together)
  for member in together:
    lone = _member(tmp_path / "alone", member.seed)
    _alone(config, lone)
    assert_same_runs(member.workdir, lone.workdir)


def _stop_at(step, monkeypatch, do):
  """Runs something that is told to stop after a step."""
  with monkeypatch.context() as patch:
    patch.setattr(preemption.Notice, "stops_at", lambda _, now: now == step)
    with pytest.raises(preemption.PreemptedError):
      do()


def _saved(member):
  return sorted(map(int, os.listdir(f"{member.workdir}/checkpoints")))


@pytest.mark.parametrize(
  "next_stop", [8, pytest.param(None, marks=pytest.mark.slow)]
)
def test_what_was_stopped_goes_on_from_the_step_that_all_have(
  tmp_path, monkeypatch, next_stop
):
  config = _config(
    tmp_path,
    train__num_epochs=3.0,
    train__log_every_steps=4,  # so that saves lie between two lines
    checkpoint__keep=3,
  )
  whole, broken = (
    [_member(tmp_path / n, s) for s in (0, 1)] for n in ("whole", "broken")
  )
  train.train_together(config, whole)

  def go_on():
    train.train_together(config, broken)

  _stop_at(13, monkeypatch, go_on)
  assert [_saved(member) for member in broken] == [[6, 12, 13]] * 2
  # One was killed before it had saved what the others have, twice.
  for step in (12, 13):
    shutil.rmtree(f"{broken[1].workdir}/checkpoints/{step}")
  if next_stop:  # before the step that some had reached
    _stop_at(next_stop, monkeypatch, go_on)
    assert [_saved(member) for member in broken] == [[6, next_stop]] * 2
    for member in broken:
      steps = [r["step"] for r in _rows(member.workdir) if "train/loss" in r]
      assert steps == list(range(4, next_stop + 1, 4))
  go_on()
  for one, other in zip(whole, broken, strict=True):
    assert _rows(one.workdir) == _rows(other.workdir)
    got, want = (weights.read(m.workdir).params for m in (one, other))
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.slow
def test_a_damaged_step_of_one_sends_all_back(tmp_path, monkeypatch):
  config = _config(tmp_path, train__num_epochs=4.0, checkpoint__keep=3)
  together = [_member(tmp_path, s) for s in (0, 1)]
  _stop_at(13, monkeypatch, lambda: train.train_together(config, together))
  (path,) = pathlib.Path(together[0].workdir).glob(
    "checkpoints/13/params/manifest.ocdbt"
  )
  path.write_bytes(b"nothing")
  _stop_at(14, monkeypatch, lambda: train.train_together(config, together))
  assert [_saved(member) for member in together] == [[6, 12, 14]] * 2
  assert os.listdir(f"{together[0].workdir}/damaged") == ["13"]


def test_who_has_begun_is_not_sent_back_to_the_start(tmp_path, monkeypatch):
  config = _config(tmp_path)
  together = [_member(tmp_path, s) for s in (0, 1)]
  _stop_at(7, monkeypatch, lambda: _alone(config, together[1]))
  before = _rows(together[1].workdir)
  with pytest.raises(checkpoint.CheckpointError, match=r"/0: none; .*/1: 7\)"):
    train.train_together(config, together)
  assert _saved(together[1]) == [7]
  assert _rows(together[1].workdir) == before


def test_two_saves_are_kept_though_one_is_asked_for(tmp_path):
  config = _config(tmp_path, checkpoint__keep=1)
  together = [_member(tmp_path, s) for s in (0, 1)]
  train.train_together(config, together)
  for member in together:
    assert len(os.listdir(f"{member.workdir}/checkpoints")) == 2


@pytest.mark.slow
def test_runs_that_began_alone_go_on_together(tmp_path, monkeypatch):
  config = _config(tmp_path)
  together = [_member(tmp_path, s) for s in (0, 1)]
  for member in together:
    _stop_at(7, monkeypatch, lambda member=member: _alone(config, member))
  train.train_together(config, together)
  for member in together:
    lone = _member(tmp_path / "alone", member.seed)
    _alone(config, lone)
    assert_same_runs(member.workdir, lone.workdir)


def test_other_seeds_change_neither_length_nor_slots(tmp_path):
  config = _config(tmp_path)
  job, _ = jobs.open_job(config, "")
  mesh = sharding.make_mesh(-1, 1, 1)
  shapes = set()
  for seed in range(6):
    batches = job.batches(mesh, seed)
    for batch in map(batches.__getitem__, range(len(batches))):
      _, row_len = batch["input_ids"].shape
      shapes.add((row_len, batch["cls_positions"].shape[1]))
  assert len(shapes) == 1


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data__one_row_len": False}, "data.one_row_len=True"),
    ({"mesh__seed": 3}, "mesh.seed=3 does not divide 2 models"),
    ({"mesh__seed": -1}, "mesh.seed=-1; it must be 0 or more"),
  ],
)
def test_what_cannot_be_together_is_refused(tmp_path, changes, message):
  config = _config(tmp_path, **changes)
  before = sorted(os.listdir(tmp_path))
  with pytest.raises(ValueError, match=message):
    train.train_together(config, [_member(tmp_path, s) for s in (0, 1)])
  assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
  ("key", "change"),
  [
    ("seed", {"seed": 99999999999999999999}),
    ("optim.learning_rate", {"learning_rate": math.nan}),
    ("optim.learning_rate", {"learning_rate": -1.0}),
  ],
)
def test_a_member_out_of_range_is_refused_before_anything_is_made(
  tmp_path, key, change
):
  config = _config(tmp_path)
  before = sorted(os.listdir(tmp_path))
  wanted = [_member(tmp_path, s) for s in (0, 1)]
  wanted[1] = dataclasses.replace(wanted[1], **change)
  with pytest.raises(members.MembersError, match=rf"/1: {key}="):
    train.train_together(config, wanted)
  assert sorted(os.listdir(tmp_path)) == before


def test_one_workdir_for_two_is_refused(tmp_path):
  config = _config(tmp_path)
  with pytest.raises(members.MembersError, match="one workdir"):
    train.train_together(config, [_member(tmp_path, 0), _member(tmp_path, 0)])


def test_pretraining_is_refused(tmp_path, tiny_config, prepared):
  config = tiny_config(prepared)
  with pytest.raises(ValueError, match="only tasks"):
    train.train_together(config, [_member(tmp_path, s) for s in (0, 1)])
