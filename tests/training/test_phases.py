"""Tests of a training in phases, and of growing batches."""

import json

import jax
import numpy as np
import pytest

from bert_jax import weights
from bert_jax.data import batching
from bert_jax.models import params as param_trees
from bert_jax.runtime import phases
from bert_jax.runtime import settings
from bert_jax.training import session
from bert_jax.training import train
from bert_jax.weights import averaging


def losses_of(workdir):
  with open(f"{workdir}/metrics.jsonl") as f:
    rows = [json.loads(line) for line in f]
  return [row["train/loss"] for row in rows if "train/loss" in row]


@pytest.fixture(scope="module")
def plain(prepared, tmp_path_factory):
  """A run of eight steps with a constant rate; its config and workdir."""
  from tests.support import tiny_run

  c = tiny_run.tiny_config(prepared)
  c.model.dropout_rate = c.model.attention_dropout_rate = 0.0
  c.optim.name, c.optim.schedule = "adamw", "constant"
  c.optim.warmup_rate = 0.0
  c.eval.every_steps = 0
  c.checkpoint.best_metric = ""
  workdir = str(tmp_path_factory.mktemp("phases") / "plain")
  train.train(c, workdir)
  return c, workdir


def test_phases_without_a_difference_are_one_run(plain, tmp_path):
  config, workdir = plain
  config = config.copy_and_resolve_references()
  config.train.phases = ("a train.total_steps=5", "b train.total_steps=3")
  train.train(config, str(tmp_path / "run"))
  first = losses_of(tmp_path / "run" / "phases" / "a")
  assert first + losses_of(tmp_path / "run") == losses_of(workdir)
  got, want = (
    param_trees.flatten(weights.read(path).params)
    for path in (str(tmp_path / "run"), workdir)
  )
  assert all(np.array_equal(got[k], want[k]) for k in want)
  before = losses_of(tmp_path / "run")
  assert train.train(config, str(tmp_path / "run")) == {}
  assert losses_of(tmp_path / "run") == before


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("model.hidden_size=64", "phase b.*model.hidden_size=64.*rope_theta"),
    ("model.max_len=64", "phase b.*position table.*16 rows"),
  ],
)
def test_a_phase_of_another_shape_stops_before_the_first_step(
  plain, tmp_path, change, message
):
  config = plain[0].copy_and_resolve_references()
  config.train.phases = ("a", f"b {change}")
  with pytest.raises(phases.PhaseError, match=message):
    train.train(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_a_phase_that_could_not_start_stops_all_of_them(plain, tmp_path):
  config = plain[0].copy_and_resolve_references()
  config.train.phases = ("a", "b data.seq_len=64")
  with pytest.raises(phases.PhaseError, match="phase b.*max_len=16"):
    train.train(config, str(tmp_path / "run"))
  config.train.phases = ("a", "b data.dupe_factor=3")
  with pytest.raises(phases.PhaseError, match="phase b.*prepare"):
    train.train(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_the_last_phase_is_exported_as_the_first_weights_were(plain, tmp_path):
  config, workdir = plain
  source = str(tmp_path / "hf")
  weights.write(weights.read(workdir), source, "huggingface")
  config = config.copy_and_resolve_references()
  config.train.phases, config.train.export = ("a", "b"), "same"
  for start, wanted in ((source, "huggingface"), (workdir, "")):
    config.init_from = start
    found = train.check_phases(phases.read(config, str(tmp_path / "run")))
    assert [x.config.train.export for x in found] == ["", wanted]
  config.init_from = None
  with pytest.raises(phases.PhaseError, match="train.export=same"):
    train.train(config, str(tmp_path / "run"))


def test_the_model_of_a_run_is_known_before_it_is_trained(plain):
  config, workdir = plain
  opened = session.open_abstract(config, jax.devices())
  run = {"config": settings.plain(opened.config), **opened.job.facts}
  found = weights.of_run(run, opened.abstract.params, None)
  trained = weights.read(workdir)
  assert found.shape == trained.shape
  shapes = [
    {path: (x.shape, x.dtype) for path, x in param_trees.flatten(y).items()}
    for y in (found.params, trained.params)
  ]
  assert shapes[0] == shapes[1]


def test_the_mean_of_the_newest_steps(plain):
  config, workdir = plain
  found = param_trees.flatten(averaging.read(workdir, 2).params)
  each = [
    param_trees.flatten(weights.read(f"{workdir}/checkpoints/{step}").params)
    for step in (6, 8)
  ]
  for path, value in found.items():
    want = (each[0][path].astype(float) + each[1][path].astype(float)) / 2
    np.testing.assert_array_equal(value, want.astype(value.dtype), path)
  with pytest.raises(weights.WeightsError, match="keeps 2 steps"):
    averaging.read(workdir, 3)


@pytest.mark.parametrize("max_sequences", [1, 2])
def test_a_growing_batch_takes_the_rows_in_their_order(prepared, max_sequences):
  from tests.support import tiny_run

  data = tiny_run.tiny_config(prepared).data
  data.max_sequences = max_sequences

  def batches_of(num_steps, **values):
    group = data.copy_and_resolve_references()
    group.update(values)
    return batching.PretrainBatches(
      group, "train", seed=1, batch_size=group.batch_size, num_steps=num_steps
    )

  rows = batches_of(12, batch_size=2)
  grown = batches_of(
    7, batch_size=6, batch_warmup_sizes=(2, 4), batch_warmup_steps=5
  )
  sizes = [len(grown[i]["input_ids"]) for i in range(7)]
  assert sizes == [2, 2, 4, 4, 4, 6, 6]
  every = np.concatenate([grown[i]["input_ids"] for i in range(6)])
  want = np.concatenate([rows[i]["input_ids"] for i in range(11)])
  np.testing.assert_array_equal(every, want)
  assert sum((grown.examples(i) for i in range(6)), []) == sum(
    (rows.examples(i) for i in range(11)), []
  )
  later = batches_of(2, batch_size=2, first_row=6)
  np.testing.assert_array_equal(later[1]["input_ids"], rows[4]["input_ids"])
