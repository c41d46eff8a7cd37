"""Tests of evaluate.py: one number, whatever the batch and the mesh."""

import json
import math
import os

import jax
import numpy as np
import pytest

from bert_jax import modes
from bert_jax.data import batching
from bert_jax.data import orders
from bert_jax.data.store import records
from bert_jax.runtime import runs
from bert_jax.runtime import sharding
from bert_jax.training import evaluate
from bert_jax.training import pretraining
from tests.support import launching


def scores(run, output, **changes):
  config = run.config.copy_and_resolve_references()
  config.update_from_flattened_dict(
    {k.replace("__", "."): v for k, v in changes.items()}
  )
  return evaluate.evaluate(config, run.workdir, str(output))


def test_scores_do_not_depend_on_batch_or_mesh(finished_run, tmp_path):
  output = tmp_path / "out.json"
  want = scores(finished_run, output, eval__max_examples=7, eval__batch_size=8)
  assert json.loads(output.read_text()) == {"step": 8} | want
  for data, fsdp, tensor, batch_size in (
    (2, 1, 4, 2),
    (1, 4, 2, 4),
    (8, 1, 1, 16),
  ):
    got = scores(
      finished_run,
      output,
      eval__max_examples=7,
      eval__batch_size=batch_size,
      mesh__data=data,
      mesh__fsdp=fsdp,
      mesh__tensor=tensor,
    )
    assert got.keys() == want.keys()
    for name, value in want.items():
      np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)


def test_scores_are_those_that_training_reported(
  finished_run, tmp_path, capsys
):
  got = scores(finished_run, tmp_path / "out.json")
  for name, value in finished_run.result.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)
  assert "eval/mlm_loss" in capsys.readouterr().out


def test_derived_scores_by_hand(finished_run):
  result = finished_run.result
  np.testing.assert_allclose(
    result["eval/loss"], result["eval/mlm_loss"] + result["eval/nsp_loss"]
  )
  np.testing.assert_allclose(
    result["eval/mlm_perplexity"], math.exp(result["eval/mlm_loss"])
  )


def test_baseline_is_the_frequency_of_the_training_text(finished_run):
  """By hand, from counts and from every masked token of the split."""
  c = finished_run.config
  counts = np.load(f"{c.data.dir}/tokens/train.counts.npy")
  smooth = np.ones(c.model.vocab_size)
  smooth[: len(counts)] += counts
  log_probs = np.log(smooth / smooth.sum())
  np.testing.assert_allclose(
    pretraining.unigram_log_probs(c.data.dir, c.model.vocab_size),
    log_probs,
    rtol=1e-6,
  )
  batches = batching.PretrainBatches(
    c.data, "validation", seed=orders.EVAL_SEED, batch_size=16
  )
  masked = np.concatenate(
    [
      batch["masked_ids"][batch["masked_weights"] > 0]
      for batch in (batches[i] for i in range(len(batches)))
    ]
  )
  result = finished_run.result
  np.testing.assert_allclose(
    result["eval/unigram_loss"], -log_probs[masked].mean(), rtol=1e-5
  )
  np.testing.assert_allclose(
    result["eval/most_frequent_token_accuracy"],
    (masked == counts.argmax()).mean(),
    rtol=1e-5,
  )


def test_names_of_scores_are_known_without_computing(finished_run):
  c = finished_run.config
  mesh = sharding.make_mesh(-1, 1, 1)
  job = pretraining.Pretraining(c)
  model, evaluator = job.model, job.evaluator(mesh)
  row = jax.ShapeDtypeStruct((1, 8), "int32")
  shapes = jax.eval_shape(
    lambda **inputs: model.init(jax.random.key(0), **inputs)["params"],
    **dict.fromkeys(job.objective.inputs, row),
  )
  assert evaluator.names(shapes) == sorted(finished_run.result)


def test_a_step_and_converted_weights_are_refused_before_processes_meet(
  tiny_config, tmp_path, monkeypatch
):
  def meet(*_, **__):
    pytest.fail("the processes were compared first")

  monkeypatch.setattr(evaluate.meeting, "meet", meet)
  config = tiny_config("data")
  run, step = tmp_path / "run", str(tmp_path / "run" / "checkpoints" / "8")
  os.makedirs(step)
  (run / "run.json").write_text("{}")
  with pytest.raises(ValueError, match="--checkpoint=8") as refused:
    evaluate.evaluate(config, step, None)
  values = launching.parse("evaluate", f"--workdir={step}")
  with pytest.raises(ValueError, match="--checkpoint=8") as by_launcher:
    modes._evaluate(values)
  assert str(by_launcher.value) == str(refused.value)
  runs.write_run(
    str(tmp_path), {"config": {}, "data_hash": "0", "converted_from": "x"}
  )
  with pytest.raises(runs.RunError, match="converted weights"):
    evaluate.evaluate(config, str(tmp_path), None)
  values = launching.parse("evaluate", f"--workdir={tmp_path}")
  with pytest.raises(runs.RunError, match="converted weights"):
    modes._evaluate(values)


def test_a_workdir_of_another_config_is_refused(finished_run, tmp_path):
  with pytest.raises(runs.RunError, match="model.num_heads: 4 there, 2"):
    scores(finished_run, tmp_path / "out.json", model__num_heads=2)
  assert not (tmp_path / "out.json").exists()


def test_counts_that_are_gone_are_named(tmp_path):
  with pytest.raises(records.DataError, match="train.counts.npy is missing or"):
    pretraining.unigram_log_probs(str(tmp_path), 8)
