"""Tests of objective=distill: losses, layers of the student, the teacher."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import weights
from bert_jax.kinds import losses
from bert_jax.kinds import table
from bert_jax.models import distilled
from bert_jax.models import params as param_trees
from bert_jax.models import replaced_tokens
from bert_jax.models.config import ModelConfig
from bert_jax.training import train
from bert_jax.weights import extending
from bert_jax.weights import workdir
from configs import base
from tests.support import small_models
from tests.support import tiny_run


def test_the_losses_by_hand():
  rng = np.random.default_rng(0)
  ours, theirs = rng.normal(size=(2, 2, 3, 5))
  where = np.array([[1, 0, 1], [1, 1, 0]], float)
  temperature = 2.0

  def softmax(x):
    e = np.exp(x / temperature)
    return e / e.sum(-1, keepdims=True)

  p, q = softmax(theirs), softmax(ours)
  want = temperature**2 * ((p * np.log(p / q)).sum(-1) * where).sum()
  got, weight = losses.distillation(
    jnp.array(ours), jnp.array(theirs), jnp.array(where), temperature
  )
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert weight == 4
  cosine = (ours * theirs).sum(-1) / (
    np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
  )
  got, weight = losses.cosine_distance(
    jnp.array(ours), jnp.array(theirs), jnp.array(where)
  )
  np.testing.assert_allclose(got, ((1 - cosine) * where).sum(), rtol=1e-5)
  assert weight == 4


def test_the_layers_are_evenly_spread():
  model = small_models.make(num_layers=12)
  found = extending.with_layers(model, 6)
  assert found.model["num_layers"] == 6
  for new, old in enumerate((0, 2, 4, 7, 9, 11)):
    a, b = (
      param_trees.flatten(m.params["encoder"][f"layer_{i}"])
      for m, i in ((found, new), (model, old))
    )
    assert a.keys() == b.keys() and all(a[k] is b[k] for k in a)
  assert extending.with_layers(model, 1).params["encoder"].keys() == (
    found.params["encoder"].keys() - {f"layer_{i}" for i in range(1, 6)}
  )
  with pytest.raises(weights.WeightsError, match="init_layers=13.*12 layers"):
    extending.with_layers(model, 13)


def make_config(folder):
  c = base.get_config()
  c.objective = "distill"
  c.distill.teacher = str(folder)
  return c


@pytest.mark.parametrize(
  ("model", "changes", "words"),
  [
    ({}, {"vocab_size": 30}, ("vocab_size", "20", "30")),
    ({}, {"hidden_size": 16}, ("hidden_size", "8", "16", "cosine_weight")),
    ({"without": ("mlm",)}, {}, ("head for masked words",)),
  ],
)
def test_a_teacher_that_does_not_fit_is_refused(
  tmp_path, model, changes, words
):
  teacher = small_models.make(**model)
  weights.write(teacher, tmp_path / "teacher", "bert_jax")
  config = make_config(tmp_path / "teacher")
  config.model.update(teacher.shape | changes)
  objective = table.get("distill").for_config(config)
  with pytest.raises(ValueError) as error:
    objective.make_model(ModelConfig.from_config(config.model))
  assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
  "positions", [pytest.param("all", marks=pytest.mark.slow), "masked"]
)
def test_a_student_nears_a_teacher_that_stays(
  prepared, finished_run, tmp_path, positions
):
  """The student begins as its teacher, so that both agree at first."""
  config = tiny_run.tiny_config(prepared)
  config.model.dropout_rate = config.model.attention_dropout_rate = 0.0
  config.objective = "distill"
  config.distill.teacher = config.init_from = finished_run.workdir
  config.distill.positions = positions
  config.init_layers = 1
  config.train.total_steps, config.eval.at_start = 3, True
  config.eval.every_steps = 0
  workdir = str(tmp_path / "run")
  found = train.train(config, workdir)
  with open(f"{workdir}/metrics.jsonl") as f:
    first = json.loads(f.readline())
  assert first["step"] == 0
  assert abs(first["eval/soft_loss"]) < 1e-5
  assert abs(first["eval/cosine_loss"]) < 1e-5
  assert found["eval/cosine_loss"] > 1e-5  # masked words moved the student
  total = 5 * found["eval/soft_loss"] + 2 * found["eval/mlm_loss"]
  assert found["eval/loss"] == pytest.approx(
    total + found["eval/cosine_loss"], rel=1e-5
  )
  # The teacher is in the checkpoint as it was, and no reader meets it.
  from bert_jax.runtime import checkpoint

  saved = checkpoint.read_params(f"{workdir}/checkpoints/3")
  teacher = param_trees.flatten(weights.read(finished_run.workdir).params)
  kept = param_trees.flatten(saved["teacher"])
  assert all(np.array_equal(kept[k], teacher[k]) for k in kept)
  student = weights.read(workdir).params
  assert student.keys() == {"encoder", "mlm"}
  moments = jax.tree.leaves(
    checkpoint.checksums.shapes_of(f"{workdir}/checkpoints/3/rest")
  )
  sizes = sum(np.prod(x.shape) for x in moments)
  own = sum(v.size for v in param_trees.flatten(student).values())
  assert sizes < 2.2 * own


# --- Layer by layer ---


def test_layers_of_a_student_are_spread_over_those_of_the_teacher():
  assert distilled.layer_map(4, 12) == (3, 6, 9, 12)
  assert distilled.layer_map(3, 4) == (1, 3, 4)
  assert distilled.layer_map(2, 2) == (1, 2)


def test_layerwise_losses_by_hand():
  x, y = jnp.zeros((2, 1, 2, 4)), jnp.array([1.0, 2.0])[:, None, None, None]
  found = losses.squared_distance(
    x, jnp.broadcast_to(y, x.shape), jnp.array([[1.0, 0.0]])
  )
  assert tuple(map(float, found)) == (5.0, 1.0)  # 1 + 4 at one token
  ours = jnp.full((1, 1, 1, 2, 2), 0.5)
  theirs = jnp.array([[0.25, 0.75], [1.0, 0.0]])[None, None, None]
  total, count = losses.attention_divergence(
    ours, theirs, jnp.array([[1.0, 1.0]])
  )
  want = 0.25 * np.log(0.5) + 0.75 * np.log(1.5) + np.log(2)
  assert float(count) == 2
  assert float(total) == pytest.approx(want, rel=1e-6)


def layerwise(folder, **changes):
  config = make_config(folder)
  for name in distilled.LAYERWISE:
    config.distill[f"{name}_weight"] = 1.0
  config.distill.cosine_weight = 0.0
  config.distill.update(changes)
  return config


def test_the_maps_of_attention_need_equal_heads_and_a_program_that_shows_them(
  tmp_path,
):
  teacher = small_models.make()
  weights.write(teacher, tmp_path / "teacher", "bert_jax")
  for changes, words in (
    ({"num_heads": 4}, ("2 heads", "student 4")),
    ({"scan_layers": True}, ("model.scan_layers=True",)),
  ):
    config = layerwise(tmp_path / "teacher")
    config.model.update(teacher.shape | changes)
    objective = table.get("distill").for_config(config)
    with pytest.raises(ValueError) as error:
      objective.make_model(ModelConfig.from_config(config.model))
    assert all(word in str(error.value) for word in words)


@pytest.mark.slow
def test_a_narrower_student_learns_projections_that_no_reader_meets(tmp_path):
  teacher = small_models.make()
  weights.write(teacher, tmp_path / "teacher", "bert_jax")
  config = layerwise(tmp_path / "teacher")
  config.model.update(teacher.shape | {"hidden_size": 4, "num_layers": 1})
  config.model.dropout_rate = config.model.attention_dropout_rate = 0.0
  objective = table.get("distill").for_config(config)
  model = objective.make_model(ModelConfig.from_config(config.model))
  rng = np.random.default_rng(0)
  ids = jnp.asarray(rng.integers(5, 9, (2, 6)), jnp.int32)
  batch = {
    "input_ids": ids, "input_mask": jnp.ones_like(ids),
    "segment_ids": jnp.zeros_like(ids),
    "masked_positions": jnp.array([[1], [2]]), "masked_ids": ids[:, :1],
    "masked_weights": jnp.ones((2, 1)), "weight": jnp.ones(2),
  }  # fmt: skip
  params = model.init(jax.random.key(0), **objective.arguments(batch))
  params = params["params"]
  assert params["fits"]["hidden"]["kernel"].shape == (4, 8)
  outputs = objective.apply(model, params, batch)
  assert outputs[5]["hidden"][0].shape == (1, 2, 6, 8)
  assert outputs[5]["attention"][0].shape == (1, 2, 2, 6, 6)
  np.testing.assert_allclose(outputs[5]["attention"][1].sum(-1), 1, rtol=1e-5)
  found = objective.losses(outputs, batch)
  assert found.keys() == objective.weights(batch).keys()
  assert {"hidden_loss", "attention_loss", "embedding_loss"} <= found.keys()
  taken = workdir.take_parts({"fits/hidden/kernel": 1, "encoder/x": 2})
  assert taken == {"fits/hidden/kernel": 1}  # to go on from
  assert "fits" in replaced_tokens.PARTS  # and no other format has it


@pytest.mark.slow
def test_a_student_of_the_same_shape_starts_without_layerwise_losses(
  prepared, finished_run, tmp_path
):
  config = tiny_run.tiny_config(prepared)
  config.model.dropout_rate = config.model.attention_dropout_rate = 0.0
  config.objective = "distill"
  config.distill.update(layerwise(finished_run.workdir).distill)
  config.init_from = finished_run.workdir
  config.train.total_steps, config.eval.at_start = 2, True
  config.eval.every_steps = 0
  workdir_ = str(tmp_path / "run")
  found = train.train(config, workdir_)
  with open(f"{workdir_}/metrics.jsonl") as f:
    first = json.loads(f.readline())
  for name in distilled.LAYERWISE:
    assert abs(first[f"eval/{name}_loss"]) < 1e-5
    assert found[f"eval/{name}_loss"] > 0
  assert weights.read(workdir_).params.keys() == {"encoder", "mlm"}
