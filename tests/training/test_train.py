"""Tests of train.py: the loop, what it writes, and going on after a stop."""

import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tensorboardX.proto import event_pb2

from bert_jax.data import batching
from bert_jax.runtime import goodput
from bert_jax.runtime import locks
from bert_jax.runtime import metrics_log
from bert_jax.runtime import preemption
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.training import averages
from bert_jax.training import checks
from bert_jax.training import pretraining
from bert_jax.training import run as run_lib
from bert_jax.training import session
from bert_jax.training import train
from configs import base
from tests.support import breadth
from tests.support import launching
from tests.support.run_checks import assert_same_state
from tests.support.run_checks import read_state
from tests.support.run_checks import rows

ROOT = pathlib.Path(__file__).parents[2]
launch = launching.launch


class Stopped(Exception):  # noqa: N818  (it stands for a kill, not an error)
  pass


def saved_steps(workdir, folder="checkpoints"):
  return sorted(ocp.utils.checkpoint_steps(os.path.join(workdir, folder)))


@pytest.fixture
def stop_after(monkeypatch):
  """A function (step): the next training fails when it asks for more."""

  def arm(step):
    prefetch = batching.prefetch

    def stopping(batches, start, **kwargs):
      for i, batch in enumerate(prefetch(batches, start, **kwargs), start):
        if i == step and len(batches) == 8:  # of the training split
          raise Stopped
        yield batch

    monkeypatch.setattr(batching, "prefetch", stopping)

  yield arm


@pytest.fixture
def poison(monkeypatch):
  """A function (step): the loss of that step becomes NaN."""

  def arm(step):
    prefetch = batching.prefetch

    def poisoned(batches, start, **kwargs):
      for i, batch in enumerate(prefetch(batches, start, **kwargs), start + 1):
        if i == step and len(batches) == 8:
          batch = batch | {"masked_weights": batch["masked_weights"] * np.nan}
        yield batch

    monkeypatch.setattr(batching, "prefetch", poisoned)

  return arm


def test_a_run_leaves_its_record(finished_run):
  run = runs.read_run(finished_run.workdir)
  c = finished_run.config
  assert run["config"] == json.loads(json.dumps(settings.plain(c)))
  assert run["config"]["model"]["hidden_size"] == 32
  assert run["seed"] == c.seed
  assert run["argv"] == ["bert-jax", *sys.argv[1:]]
  assert run["data_hash"] == pretraining.Pretraining(c).data_hash
  assert run["devices"] == {
    "platform": "cpu",
    "kind": ["cpu"],
    "count": 8,
    "processes": 1,
  }
  assert run["versions"]["jax"] == jax.__version__
  assert {"python", "flax", "optax", "orbax-checkpoint", "grain"} <= set(
    run["versions"]
  )
  if runs.commit()[0]:
    assert re.fullmatch("[0-9a-f]{40}", run["commit"])
    assert run["dirty"] in (False, True)
  assert run["started"]


def test_metrics_have_every_step_once_and_the_keys_of_the_contract(
  finished_run,
):
  metrics = metrics_log.read_metrics(finished_run.workdir)
  training = [r for r in metrics if "train/loss" in r]
  evaluations = [r for r in metrics if "eval/loss" in r]
  assert len(training) + len(evaluations) == len(metrics)
  assert [r["step"] for r in training] == list(range(1, 9))
  assert [r["step"] for r in evaluations] == [2, 4, 6, 8]
  for row in training[1:]:  # The first step compiles: it has no speed.
    assert {
      "train/loss",
      "train/mlm_loss",
      "train/nsp_loss",
      "train/grad_norm",
      "train/param_norm",
      "train/learning_rate",
      "train/tokens_per_sec",
    } <= row.keys()
    np.testing.assert_allclose(
      row["train/loss"], row["train/mlm_loss"] + row["train/nsp_loss"], 1e-5
    )
    assert row["train/tokens_per_sec"] >= row["train/useful_tokens_per_sec"]
  for row in evaluations:
    assert {
      "eval/mlm_loss",
      "eval/mlm_accuracy",
      "eval/mlm_perplexity",
      "eval/nsp_loss",
      "eval/nsp_accuracy",
      "eval/most_frequent_token_accuracy",
      "eval/unigram_loss",
    } <= row.keys()
  last = {k: v for k, v in evaluations[-1].items() if k != "step"}
  assert finished_run.result == last


def read_events(folder):
  """Scalars of TensorBoard's files: (step, tag) -> value."""
  found = {}
  for path in pathlib.Path(folder).iterdir():
    data, at = path.read_bytes(), 0
    while at < len(data):  # length, its checksum, an event, its checksum
      (length,) = struct.unpack_from("<Q", data, at)
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
      for value in event.summary.value:
        if value.metadata.plugin_data.plugin_name:
          continue  # of the run, not of a step
        found[event.step, value.tag] = value.simple_value
      at += length + 16
  return found


def test_tensorboard_holds_the_scalars_of_metrics_jsonl(finished_run):
  events = read_events(os.path.join(finished_run.workdir, "tensorboard"))
  want = {
    (row["step"], key): value
    for row in metrics_log.read_metrics(finished_run.workdir)
    for key, value in row.items()
    if key != "step"
  }
  assert events.keys() == want.keys()
  for key, value in want.items():
    np.testing.assert_allclose(events[key], value, rtol=1e-6)


def test_the_newest_checkpoints_and_the_best_are_kept(finished_run):
  assert saved_steps(finished_run.workdir) == [6, 8]  # checkpoint.keep = 2
  losses = {
    r["step"]: r["eval/loss"]
    for r in rows(finished_run.workdir)
    if "eval/loss" in r
  }
  best = min(losses, key=losses.get)
  assert saved_steps(finished_run.workdir, "best") == [best]


def test_a_run_that_stopped_and_goes_on_is_as_if_it_had_not(
  finished_run, tmp_path, stop_after, monkeypatch
):
  workdir, begun = str(tmp_path / "run"), time.monotonic()
  with monkeypatch.context():
    stop_after(5)
    with pytest.raises(Stopped):
      train.train(finished_run.config, workdir)
  monkeypatch.undo()
  passed = time.monotonic() - begun
  assert saved_steps(workdir) == [2, 4]
  assert rows(workdir)[-1]["step"] == 5  # logged, and not saved
  started = runs.read_run(workdir)["started"]
  begun = time.monotonic()
  result = train.train(finished_run.config, workdir)
  passed += time.monotonic() - begun
  spent = goodput.read(workdir)
  assert spent.total == pytest.approx(passed, rel=0.05)
  assert all(spent.secs[part] > 0 for part in ("lost", "saves", "compile"))
  assert spent.chip_hours == pytest.approx(8 * spent.total / 3600)
  logged = [r for r in rows(workdir, timing=True) if "train/loss" in r]
  shares = {k: v for k, v in logged[-1].items() if k.startswith("goodput/")}
  hours = shares.pop("goodput/hours"), shares.pop("goodput/chip_hours")
  assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
  assert 0 < hours[0] <= spent.total / 3600 + 1e-4
  assert result == finished_run.result
  assert_same_state(workdir, finished_run.workdir, 8)
  assert_same_state(workdir, finished_run.workdir, 6)
  assert rows(workdir) == rows(finished_run.workdir)
  for folder in ("checkpoints", "best"):
    assert saved_steps(workdir, folder) == saved_steps(
      finished_run.workdir, folder
    )
  run = runs.read_run(workdir)
  assert run["started"] == started
  assert run["resumed"]


@pytest.mark.parametrize(
  "step", breadth.slow_but([3, 4], lambda step: step == 4)
)
def test_a_run_that_is_told_to_stop_saves_and_goes_on(
  finished_run, tmp_path, monkeypatch, step
):
  """In between saves, and where an evaluation is due, which has to wait."""
  workdir = str(tmp_path / "run")
  config = finished_run.config
  assert config.eval.every_steps == config.checkpoint.every_steps == 2
  prefetch = batching.prefetch

  def interrupted(batches, start, **kwargs):
    for i, batch in enumerate(prefetch(batches, start, **kwargs), start + 1):
      if i == step and len(batches) == 8:
        signal.raise_signal(signal.SIGTERM)
      yield batch

  handler = signal.getsignal(signal.SIGTERM)
  monkeypatch.setattr(batching, "prefetch", interrupted)
  with pytest.raises(
    preemption.PreemptedError, match=f"after step {step} of 8"
  ):
    train.train(config, workdir)
  assert signal.getsignal(signal.SIGTERM) == handler
  assert saved_steps(workdir)[-1] == step
  evaluated = [r["step"] for r in rows(workdir) if "eval/loss" in r]
  assert evaluated == [2]
  monkeypatch.undo()
  assert train.train(config, workdir) == finished_run.result
  assert_same_state(workdir, finished_run.workdir, 8)
  assert rows(workdir) == rows(finished_run.workdir)
  assert saved_steps(workdir, "best") == saved_steps(
    finished_run.workdir, "best"
  )


def test_a_finished_run_whose_last_step_is_damaged_makes_it_again(
  finished_run, tmp_path
):
  workdir = str(tmp_path / "run")
  shutil.copytree(finished_run.workdir, workdir)
  for path in pathlib.Path(workdir, "checkpoints", "8").rglob("manifest.*"):
    path.write_bytes(b"")
  assert train.train(finished_run.config, workdir) == finished_run.result
  assert_same_state(workdir, finished_run.workdir, 8)
  assert rows(workdir) == rows(finished_run.workdir)


def test_one_projection_over_cut_heads_is_refused_before_anything_is_made(
  finished_run, tmp_path
):
  config = finished_run.config.copy_and_resolve_references()
  config.model.attention, config.mesh.tensor = "fused_qkv", 2
  with pytest.raises(ValueError, match="on one device, but mesh.tensor=2"):
    train.train(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_a_second_job_on_a_workdir_is_refused(finished_run):
  with locks.lock(finished_run.workdir):
    with pytest.raises(
      locks.LockedError, match=f"is in use by process {os.getpid()}"
    ):
      train.train(finished_run.config, finished_run.workdir)
  assert train.train(finished_run.config, finished_run.workdir) == {}


@pytest.mark.slow
def test_work_is_saved_before_too_much_of_it_is_at_risk(
  finished_run, tmp_path, stop_after
):
  config = finished_run.config.copy_and_resolve_references()
  config.checkpoint.every_steps = 0
  workdir = str(tmp_path / "run")
  stop_after(5)
  with pytest.raises(Stopped):
    train.train(config, workdir)
  assert saved_steps(workdir) == []
  config.checkpoint.max_lost_secs = 1e-3  # less than a step takes
  with pytest.raises(Stopped):
    train.train(config, workdir)
  assert saved_steps(workdir) == [4, 5]


def test_a_run_goes_on_on_another_mesh(
  finished_run, tmp_path, stop_after, monkeypatch
):
  workdir = str(tmp_path / "run")
  stop_after(6)
  with pytest.raises(Stopped):
    train.train(finished_run.config, workdir)
  monkeypatch.undo()
  config = finished_run.config.copy_and_resolve_references()
  config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
  result = train.train(config, workdir)
  for name, value in finished_run.result.items():
    np.testing.assert_allclose(result[name], value, rtol=1e-3, err_msg=name)
  assert [r["step"] for r in rows(workdir) if "train/loss" in r] == list(
    range(1, 9)
  )
  assert runs.read_run(workdir)["config"]["mesh"]["tensor"] == 2


def test_a_finished_run_started_again_does_nothing(finished_run):
  def files():
    return {
      path: (path.stat().st_mtime_ns, path.stat().st_size)
      for path in pathlib.Path(finished_run.workdir).rglob("*")
      if path.is_file() and path.name != ".lock"
    }

  before = files()
  assert train.train(finished_run.config, finished_run.workdir) == {}
  assert files() == before


def test_nan_names_its_step_and_leaves_the_last_checkpoint(
  finished_run, tmp_path, poison, monkeypatch
):
  """Also where nobody looks at step 7 before step 8 has begun."""
  config = finished_run.config.copy_and_resolve_references()
  config.train.log_every_steps = 8
  workdir = str(tmp_path / "run")
  poison(7)
  with pytest.raises(
    run_lib.DivergedError,
    match=r"train/loss is nan at step 7.*step 6, is sound",
  ):
    train.train(config, workdir)
  assert saved_steps(workdir) == [4, 6]
  assert_same_state(workdir, finished_run.workdir, 6, logs_alike=False)
  assert all(np.isfinite(x).all() for x in read_state(workdir, 6).values())
  monkeypatch.undo()
  assert train.train(config, workdir) == finished_run.result
  assert_same_state(workdir, finished_run.workdir, 8)


def test_a_bad_step_is_skipped_written_down_and_the_same_after_a_kill(
  finished_run, tmp_path, poison, stop_after, monkeypatch
):
  config = finished_run.config.copy_and_resolve_references()
  config.train.on_bad_step = "skip"
  config.train.log_every_steps = 1
  whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
  poison(5)
  train.train(config, whole)
  assert saved_steps(whole)[-1] == 8
  found = rows(whole)
  counts = [
    r["train/skipped_steps"] for r in found if "train/skipped_steps" in r
  ]
  assert counts == [0, 0, 0, 0, 1, 1, 1, 1]
  skipped = next(
    r for r in found if r["step"] == 5 and "train/skipped_steps" in r
  )
  assert "train/loss" not in skipped  # it was no number
  assert json.loads(json.dumps(found, allow_nan=False)) == found
  with open(os.path.join(whole, "bad_steps.jsonl")) as f:
    (bad,) = map(json.loads, f)
  assert bad["step"] == 5 and bad["action"] == "skipped"
  assert bad["loss"] is None and "nan at step 5" in bad["reason"]
  data = config.data
  batches = batching.PretrainBatches(
    data, "train", seed=config.seed, batch_size=16, num_steps=8
  )
  assert bad["examples"] == batches.examples(4)
  assert np.shape(bad["examples"]) == (16, 1)
  # Killed after it was logged but not saved, and done again.
  stop_after(5)
  with pytest.raises(Stopped):
    train.train(config, parts)
  monkeypatch.undo()
  poison(5)
  train.train(config, parts)
  assert_same_state(parts, whole, 8)
  assert rows(parts) == found
  with open(os.path.join(parts, "bad_steps.jsonl")) as f:
    assert json.loads(f.read()) == bad


def losses(workdir):
  return {
    row["step"]: row["train/loss"]
    for row in rows(workdir)
    if "train/loss" in row
  }


@pytest.mark.slow
def test_the_logged_loss_is_the_mean_since_the_last_line_also_after_a_kill(
  finished_run, tmp_path, stop_after, monkeypatch
):
  """Where it is killed, and where it has saved, lie between two lines."""
  config = finished_run.config.copy_and_resolve_references()
  config.train.log_every_steps = 3
  whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
  train.train(config, whole)
  of_steps = losses(finished_run.workdir)
  assert losses(whole) == {
    3: sum(of_steps[i] for i in (1, 2, 3)) / 3,
    6: sum(of_steps[i] for i in (4, 5, 6)) / 3,
    8: sum(of_steps[i] for i in (7, 8)) / 2,
  }
  for row in rows(whole):  # all others are those of the one step
    if "train/loss" in row:
      (other,) = (
        r
        for r in rows(finished_run.workdir)
        if r["step"] == row["step"] and "train/loss" in r
      )
      assert row | {"train/loss": other["train/loss"]} == other
  for step in (5, 7):  # saved are 4, which is after a line, and 6, which is one
    stop_after(step)
    with pytest.raises(Stopped):
      train.train(config, parts)
    monkeypatch.undo()
  assert train.train(config, parts) == finished_run.result
  assert rows(parts) == rows(whole)
  assert_same_state(parts, whole, 8)
  assert_same_state(parts, finished_run.workdir, 8, logs_alike=False)


@pytest.mark.slow
def test_the_logged_loss_leaves_skipped_steps_out(
  finished_run, tmp_path, poison
):
  config = finished_run.config.copy_and_resolve_references()
  config.train.on_bad_step = "skip"
  each, all_ = str(tmp_path / "each"), str(tmp_path / "all")
  poison(5)
  train.train(config, each)
  config.train.log_every_steps = 8
  train.train(config, all_)
  of_steps = losses(each)
  assert sorted(of_steps) == [1, 2, 3, 4, 6, 7, 8]
  assert losses(all_) == {8: sum(of_steps[i] for i in sorted(of_steps)) / 7}


@pytest.mark.parametrize("total", [0.0, 1 / 3, 1e300, 5e-324])
def test_the_sum_of_losses_is_kept_bit_by_bit(total):
  found = averages.MeanLoss.from_bits(averages.MeanLoss(total, 7).bits())
  assert (found.total, found.count) == (total, 7)
  assert found.take() == total / 7
  assert found.take() is None
  assert averages.MeanLoss.from_bits(None) == averages.MeanLoss()


@pytest.mark.slow
def test_a_run_from_before_there_was_a_guard_goes_on(
  finished_run, tmp_path, stop_after, monkeypatch
):
  workdir = str(tmp_path / "run")
  rest_of = session.rest_of

  def without_guard(*args):
    return {
      k: v
      for k, v in rest_of(*args).items()
      if k not in ("guard", "train_loss")
    }

  monkeypatch.setattr(session, "rest_of", without_guard)
  stop_after(5)
  with pytest.raises(Stopped):
    train.train(finished_run.config, workdir)
  monkeypatch.undo()
  assert train.train(finished_run.config, workdir) == finished_run.result
  found, wanted = (
    {k: v for k, v in read_state(w, 8).items() if "guard" not in k[1]}
    for w in (workdir, finished_run.workdir)
  )
  assert len(wanted) > 60 and found.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_array_equal(found[name], value)


@pytest.mark.slow
def test_a_spike_stops_the_run_or_is_skipped_up_to_a_number(
  tmp_path, tiny_config, prepared, monkeypatch
):
  config = tiny_config(prepared)
  config.train.total_steps = 32
  config.optim.learning_rate = 1e-9  # losses go up and down, nothing else
  config.train.spike_factor = 1.0 + 1e-6  # so that any rise is one
  config.eval.every_steps = 0
  monkeypatch.setattr(checks, "check_settings", lambda config: None)
  workdir = str(tmp_path / "run")
  with pytest.raises(
    run_lib.DivergedError, match=r"train/loss is .* more than 1 times the mean"
  ) as error:
    train.train(config, workdir)
  step = int(re.search("at step ([0-9]+)", str(error.value))[1])
  assert step > 20  # too little is known before
  assert max(saved_steps(workdir)) < step
  config.train.on_bad_step = "skip"
  config.train.max_skipped_steps = 0
  with pytest.raises(
    run_lib.DivergedError, match="one more than train.max_skipped_steps=0"
  ):
    train.train(config, workdir)
  config.train.max_skipped_steps = 32
  train.train(config, workdir)
  with open(os.path.join(workdir, "bad_steps.jsonl")) as f:
    lines = [json.loads(line) for line in f]
  assert lines[0]["step"] == step
  last = [r for r in rows(workdir) if "train/skipped_steps" in r][-1]
  assert len(lines) == last["train/skipped_steps"]


@pytest.mark.slow
def test_an_update_that_is_infinite_is_never_saved(
  tmp_path, tiny_config, prepared
):
  """Its own loss and gradient were finite; the parameters it left are not."""
  config = tiny_config(prepared)
  config.optim.name = "adamw"
  config.optim.learning_rate = 3e38  # its square is infinite in float32
  config.optim.warmup_rate = 0.0
  config.train.log_every_steps = 8
  config.eval.every_steps = 0
  config.checkpoint.every_steps = 1
  workdir = str(tmp_path / "run")
  with pytest.raises(
    run_lib.DivergedError,
    match="param_norm is inf at step 1.*no checkpoint",
  ):
    train.train(config, workdir)
  assert saved_steps(workdir) == []


@pytest.mark.slow
def test_a_predictable_text_is_learned(tmp_path, tiny_config, prepared):
  config = tiny_config(prepared)
  config.model.dropout_rate = config.model.attention_dropout_rate = 0.0
  config.optim.b2 = 0.98
  config.train.total_steps = 200
  config.train.log_every_steps = 10
  config.eval.every_steps = 0
  config.checkpoint.every_steps = 0
  config.train.tensorboard = False
  workdir = str(tmp_path / "run")
  result = train.train(config, workdir)
  losses = [r["train/mlm_loss"] for r in rows(workdir) if "train/loss" in r]
  assert losses[-1] < 0.5 * losses[0]
  assert result["eval/mlm_loss"] < 0.5 * result["eval/unigram_loss"]
  assert (
    result["eval/mlm_accuracy"]
    > 2 * result["eval/most_frequent_token_accuracy"]
  )
  assert not os.path.exists(os.path.join(workdir, "tensorboard"))


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("data.batch_size", 20, "use 16 or 24"),
    ("eval.batch_size", 20, "use 16 or 24"),
    ("data.seq_len", 32, "longer than model.max_len=16"),
    ("data.dupe_factor", 5, "has no examples .*dupe5.*bert-jax prepare"),
    ("data.dir", None, "data.dir is not set"),
    ("data.dir", "/nowhere", "/nowhere"),
    ("data.mask_rate", 1.5, "mask_rate=1.5"),
    ("data.num_threads", -1, "data.num_threads=-1"),
    ("data.max_bad_records", -1, "data.max_bad_records=-1"),
    ("train.on_bad_step", "go on", "on_bad_step='go on'"),
    ("train.spike_factor", 0.5, "spike_factor=0.5 makes every other loss"),
    ("model.vocab_size", 16, "set --config.model.vocab_size=21"),
    ("model.num_heads", 5, "num_heads=5"),
    ("objective", "nsp", "objective='nsp'"),
    ("data.pairing", "full_sentences", "set --config.objective=mlm"),
    ("optim.name", "sgd", "optim.name='sgd'"),
    ("optim.num_micro_batches", 3, "8 devices x 3 micro-batches"),
    ("mesh.tensor", 3, "tensor=3"),
    ("mesh.rules", (("encoder", (None,)),), "no sharding rule applies"),
    ("train.total_steps", 0, "train.total_steps=0"),
    ("checkpoint.keep", 0, "checkpoint.keep=0"),
    ("checkpoint.best_mode", "low", "one of min, max"),
    ("checkpoint.best_metric", "eval/f1", "eval/f1.*eval/mlm_loss"),
  ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
  key, value, message, tmp_path, tiny_config, prepared
):
  config = tiny_config(prepared)
  with config.unlocked(), config.ignore_type():
    config.update_from_flattened_dict({key: value})
  workdir = tmp_path / "run"
  with pytest.raises(ValueError, match=message):
    train.train(config, str(workdir))
  assert not workdir.exists()


@pytest.mark.parametrize(
  "pattern",
  [
    "tokens/train-00000.array_record",
    "tokens/validation-00000.boundaries.npy",
    "tokens/train.counts.npy",
    "vocab/vocab.txt",
    "examples/*/train-00000.array_record",
    "examples/*/validation-00000.array_record",
  ],
)
def test_a_flipped_byte_in_the_data_is_found_before_anything_is_made(
  pattern, tmp_path, tiny_config, prepared, launch, capsys
):
  folder = pathlib.Path(shutil.copytree(prepared, tmp_path / "data"))
  path = next(folder.glob(pattern))
  data = bytearray(path.read_bytes())
  data[-3] ^= 1
  path.write_bytes(data)
  keys = settings.flatten(tiny_config(str(folder)).to_dict())
  others = settings.flatten(base.get_config().to_dict())
  status = launch(
    "--mode=train",
    f"--config={ROOT}/configs/base.py",
    f"--workdir={tmp_path}/run",
    *(f"--config.{k}={v}" for k, v in keys.items() if v != others[k]),
  )
  said = capsys.readouterr().err
  assert status == 2, said
  assert str(path) in said
  if "0000" in pattern:  # the vocabulary and the counts are no shards
    assert f"{path} is damaged: its sha256 is" in said
  assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_run_is_left_alone(finished_run):
  config = finished_run.config.copy_and_resolve_references()
  config.optim.learning_rate = 0.5
  config.seed = 7
  path = pathlib.Path(finished_run.workdir, "run.json")
  before = path.read_bytes()
  with pytest.raises(
    runs.RunError,
    match="optim.learning_rate: 0.01 there, 0.5 asked; seed: 0 there, 7 asked",
  ):
    train.train(config, finished_run.workdir)
  assert path.read_bytes() == before


@pytest.mark.slow
def test_a_killed_process_goes_on_as_if_it_had_not_been(
  tmp_path, tiny_config, prepared
):
  """Two processes, one of them killed while it trains and saves."""
  keys = {
    "data.dir": prepared,
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.num_heads": 2,
    "model.mlp_dim": 64,
    "model.vocab_size": 32,
    "model.max_len": 16,
    "data.seq_len": 16,
    "data.batch_size": 16,
    "data.dupe_factor": 4,
    "train.total_steps": 120,
    "train.log_every_steps": 1,
    "eval.every_steps": 30,
    "eval.batch_size": 16,
    "checkpoint.every_steps": 20,
  }

  def start(workdir):
    return subprocess.Popen(
      [
        sys.executable,
        "-m",
        "bert_jax.main",
        "--mode=train",
        "--config=configs/base.py",
        f"--workdir={workdir}",
        *(f"--config.{k}={v}" for k, v in keys.items()),
      ],
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )

  straight, killed = str(tmp_path / "straight"), str(tmp_path / "killed")
  assert start(straight).wait(600) == 0
  begun = time.monotonic()
  log = pathlib.Path(killed, "metrics.jsonl")
  for until in (50, 100):
    process = start(killed)
    while process.poll() is None:
      if log.exists() and len(log.read_text().splitlines()) >= until:
        process.send_signal(signal.SIGKILL)
      time.sleep(0.01)
    assert process.returncode == -signal.SIGKILL
  assert start(killed).wait(600) == 0
  passed = time.monotonic() - begun
  spent = goodput.read(killed)
  # A process also takes time to end, and the last steps before a kill are not
  # written down.
  assert passed - 6 < spent.total < passed
  assert spent.secs["lost"] > 0 and spent.secs["start"] > 3
  assert_same_state(killed, straight, 120)
  assert rows(killed) == rows(straight)
  assert saved_steps(killed) == saved_steps(straight)
  assert saved_steps(killed, "best") == saved_steps(straight, "best")
