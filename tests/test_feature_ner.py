"""Tests of experiments/feature_ner: a tagger on hidden states."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models import encoder as encoders
from bert_jax.training import jobs
from bert_jax.training import train
from experiments.feature_ner import run as feature_ner
from tests.support import small_tasks


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A config of a task of tags, with weights to start from."""
  folder = tmp_path_factory.mktemp("tags")
  c = small_tasks.make_config(folder, "tag", train__num_epochs=0.2)
  c.model.num_layers = 2
  train.train(c, str(folder / "weights"))
  c.init_from = str(folder / "weights")
  return c


@pytest.fixture
def config(trained):
  return trained.copy_and_resolve_references()


@pytest.mark.parametrize(
  "layers",
  [
    pytest.param(layers, marks=() if layers == (-2, -1) else pytest.mark.slow)
    for layers in ((0,), (-1,), (-2, -1), None)
  ],
)
def test_states_are_those_of_the_first_pieces(config, layers):
  job, pretrained = jobs.open_job(config, "")
  split = job.split("validation")
  params = pretrained.params["encoder"]
  found = feature_ner.word_states(job, params, split, layers)
  assert len(found) == len(split.examples)
  for k in (0, 7, len(found) - 1):
    words = split.examples[k].words
    # Every word of this vocabulary is one piece, between [CLS] and [SEP].
    ids = [job.tokenizer.id(w) for w in words]
    row = jnp.array([[2, *ids, 3]])
    _, _, states = encoders.Encoder(job.model.config).apply(
      {"params": params},
      row,
      jnp.ones_like(row),
      jnp.zeros_like(row),
      return_layers=True,
    )
    chosen = states[1:] if layers is None else [states[i] for i in layers]
    want = np.stack([x[0, 1:-1] for x in chosen], axis=1)
    assert found[k].shape == want.shape
    np.testing.assert_allclose(found[k], want, atol=2e-5)


def test_batches_hold_every_sentence_once():
  rng = np.random.default_rng(0)
  states = [np.full((n, 1, 2), n) for n in rng.integers(1, 20, 23)]
  labels = [np.full(len(x), i) for i, x in enumerate(states)]
  for order in (None, np.random.default_rng(1)):
    seen = []
    for part, x, y, n in feature_ner.batches(states, labels, 4, order):
      assert x.shape[1] % 8 == 0 and len(x) == 4
      for row, i in enumerate(part):
        seen.append(i)
        assert n[row] == len(states[i])
        assert (y[row] >= 0).sum() == n[row]
        np.testing.assert_array_equal(x[row, : n[row]], states[i])
        np.testing.assert_array_equal(y[row, : n[row]], labels[i])
    assert sorted(seen) == list(range(23))


def test_words_behind_the_end_of_a_sentence_change_nothing():
  model = feature_ner.Tagger(4, 3, "weighted", 0.5)
  x = jax.random.normal(jax.random.key(0), (2, 6, 2, 5))
  lengths = jnp.array([4, 6])
  params = model.init(jax.random.key(1), x, lengths, deterministic=True)
  one = model.apply(params, x, lengths, deterministic=True)
  other = model.apply(params, x.at[0, 4:].set(7.0), lengths, deterministic=True)
  np.testing.assert_array_equal(one[0, :4], other[0, :4])
  # Both directions, or later words would not matter to the first.
  changed = model.apply(
    params, x.at[0, 3].set(7.0), lengths, deterministic=True
  )
  assert not np.array_equal(one[0, 0], changed[0, 0])


@pytest.mark.slow
def test_a_tagger_learns_and_is_recorded_once(config):
  recipe = feature_ner.Recipe(
    "last", hidden=16, epochs=12, batch_size=8, learning_rate=1e-2, dropout=0.1
  )
  rows = list(feature_ner.run(config, recipe, (0, 1)))
  assert [row["seed"] for row in rows] == [0, 1]
  for row in rows:
    assert row["metrics"]["eval/entity_f1"] > 0.9
    assert len(row["curve"]) == 12
    assert row["curve"][row["epoch"] - 1] == max(row["curve"])
    json.dumps(row)
  assert rows[0]["curve"] != rows[1]["curve"]
  known = {feature_ner.identity(rows[0])}
  (left,) = feature_ner.run(config, recipe, (0, 1), known)
  assert left["seed"] == 1 and left["curve"] == rows[1]["curve"]


def test_another_kind_of_task_is_refused(tmp_path):
  config = small_tasks.make_config(tmp_path, "classify")
  with pytest.raises(SystemExit, match="give a task of tags"):
    list(feature_ner.run(config, feature_ner.Recipe("last"), (0,)))


def test_the_mean_is_of_one_encoder():
  config = feature_ner.finetune.get_config("task=wnut17,from=a")
  config.task.dir = "data"
  recipe = feature_ner.Recipe("last")

  def row(seed, f1, weights="a", features="last", seq_len=128):
    other = feature_ner.finetune.get_config(f"task=wnut17,from={weights}")
    other.task.dir, other.data.seq_len = "data", seq_len
    return {
      "config": json.loads(other.to_json_best_effort()),
      "recipe": dataclasses.asdict(feature_ner.Recipe(features)),
      "seed": seed,
      "metrics": {"eval/entity_f1": f1},
    }

  rows = [
    row(0, 0.1), row(0, 0.3), row(1, 0.5), row(0, 0.9, weights="b"),
    row(2, 0.9, features="embeddings"), row(3, 0.9, seq_len=64),
  ]  # fmt: skip
  assert feature_ner.summary(rows, config, recipe) == pytest.approx([30, 50])
