"""Tests of optim.average_decay: the decayed mean of the parameters."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest

from bert_jax import weights
from bert_jax.models import params as param_trees
from bert_jax.runtime import checkpoint
from bert_jax.runtime import settings
from bert_jax.training import evaluate
from bert_jax.training import steps
from bert_jax.training import train
from bert_jax.weights import convert
from tests.support import small_tasks

DECAY = 0.15


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of 6 steps that keeps all of them, and its config."""
  folder = tmp_path_factory.mktemp("average")
  config = small_tasks.make_config(
    folder,
    optim__average_decay=DECAY,
    eval__average=True,
    train__num_epochs=1.0,
    checkpoint__every_steps=1,
    checkpoint__keep=10,
  )
  workdir = str(folder / "run")
  return config, workdir, train.train(config, workdir)


def saved(workdir, step, **options):
  folder = f"{workdir}/checkpoints/{step}"
  return param_trees.flatten(checkpoint.read_params(folder, **options))


def test_the_average_is_that_of_the_parameters_of_all_steps(run):
  _, workdir, _ = run
  wanted = {k: np.zeros(x.shape) for k, x in saved(workdir, 1).items()}
  for count in range(6):
    kept = min(DECAY, count / (count + 10))
    for name, x in saved(workdir, count + 1).items():
      wanted[name] = kept * wanted[name] + (1 - kept) * x.astype(np.float64)
  found = saved(workdir, 6, is_average=True)
  assert found.keys() == wanted.keys()
  for name, x in found.items():
    np.testing.assert_allclose(x, wanted[name], atol=1e-6)
  first = saved(workdir, 1)
  same = saved(workdir, 1, is_average=True)
  assert all(np.array_equal(first[k], same[k]) for k in first)


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(run, tmp_path):
  config, workdir, scores = run
  copy = str(tmp_path / "copy")
  shutil.copytree(workdir, copy)
  for step in (5, 6):
    shutil.rmtree(f"{copy}/checkpoints/{step}")
  assert train.train(config, copy) == scores
  for options in ({}, {"is_average": True}):
    ours, theirs = (saved(x, 6, **options) for x in (copy, workdir))
    assert all(np.array_equal(ours[k], theirs[k]) for k in theirs)


def test_the_average_is_evaluated_and_read_by_choice(run, tmp_path):
  config, workdir, scores = run
  average = saved(workdir, 6, is_average=True)
  last = saved(workdir, 6)
  assert any(not np.array_equal(average[k], last[k]) for k in last)
  for which, wanted in (
    ("evaluated", average), ("average", average), ("last", last)
  ):  # fmt: skip
    found = param_trees.flatten(weights.read(workdir, which=which).params)
    assert all(np.array_equal(found[k], wanted[k]) for k in wanted), which
  again = evaluate.evaluate(config, workdir, str(tmp_path / "a.json"), "newest")
  assert again["eval/loss"] == pytest.approx(scores["eval/loss"], rel=1e-6)
  other = config.copy_and_resolve_references()
  other.eval.average = False
  plain = evaluate.evaluate(other, workdir, str(tmp_path / "b.json"), "newest")
  assert plain["eval/loss"] != again["eval/loss"]
  c = settings.make_config()
  c.convert.to, c.convert.weights = "huggingface", "last"
  convert.convert(c, workdir, str(tmp_path / "last"))
  found = param_trees.flatten(weights.read(tmp_path / "last").params)
  name = "encoder/embeddings/word/embedding"
  assert np.array_equal(found[name], last[name])
  c.convert.average_last = 2
  with pytest.raises(weights.WeightsError, match="give one of them"):
    convert.convert(c, workdir, str(tmp_path / "both"))
  with pytest.raises(weights.WeightsError, match="convert.weights=last"):
    weights.read(tmp_path / "last", which="last")


def test_settings_of_an_average_that_is_not_there(tmp_path):
  config = small_tasks.make_config(
    tmp_path, eval__average=True, train__num_epochs=0.2
  )
  with pytest.raises(ValueError, match="optim.average_decay=0"):
    train.train(config, str(tmp_path / "run"))
  config.eval.average = False
  workdir = str(tmp_path / "run")
  train.train(config, workdir)
  with pytest.raises(weights.WeightsError, match="no average"):
    weights.read(workdir, which="average")
  run = json.loads((tmp_path / "run/run.json").read_text())
  assert run["config"]["optim"]["average_decay"] == 0


def test_the_first_step_forgets_where_the_training_started():
  params = {"x": jax.numpy.ones(2)}
  zeros = {"x": jax.numpy.zeros(2)}
  first = steps._averaged(zeros, params, jax.numpy.int32(0), 0.9)
  np.testing.assert_array_equal(first["x"], [1, 1])
  second = steps._averaged(first, {"x": 3 * params["x"]}, jax.numpy.int32(1), 1)
  np.testing.assert_allclose(second["x"], 1 + 2 * (10 / 11))


def test_bad_steps_at_the_start_leave_an_average_of_the_start_weights():
  def gradients(params, batch, step):
    del step
    return batch, {}, jax.tree.map(lambda x: x * batch, params), {}

  optimizer, schedule = optax.sgd(0.1), lambda _: 0.1
  step = jax.jit(
    steps.make_train_step(
      gradients, optimizer, schedule, skip_bad=True, average_decay=DECAY
    )
  )
  params = {"x": np.float32([0.1, 3e7])}
  state = steps.TrainState(
    np.int32(0), params, optimizer.init(params), steps.Guard.fresh(),
    {"x": np.zeros(2, np.float32)},
  )  # fmt: skip
  found = []
  for loss in (np.nan, np.inf, 1.0, np.nan, 1.0):
    state, _ = step(state, np.float32(loss))
    found.append([x["x"].copy() for x in (state.params, state.average)])
  for now, average in found[:3]:  # the first good step is the whole average
    np.testing.assert_array_equal(average, now)
  np.testing.assert_array_equal(found[1][1], params["x"])
  np.testing.assert_array_equal(found[3], found[2])
  kept = min(DECAY, 1 / 11)
  want = kept * found[3][1].astype(float) + (1 - kept) * found[4][0]
  np.testing.assert_allclose(found[4][1], want, rtol=1e-6)
