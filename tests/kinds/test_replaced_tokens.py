"""Tests of objective=rtd: a generator, and a discriminator beside it."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import weights
from bert_jax.kinds import losses
from bert_jax.kinds import table
from bert_jax.models import families
from bert_jax.models import heads
from bert_jax.models import params as param_trees
from bert_jax.models import replaced_tokens
from bert_jax.models.config import ModelConfig
from bert_jax.training import train
from configs import base
from configs import electra
from tests.support import breadth
from tests.support import tiny_run

SHARINGS = ("embeddings", "disentangled", "none")
SIZES = {
  "vocab_size": 20, "num_layers": 1, "hidden_size": 16, "num_heads": 4,
  "mlp_dim": 32, "max_len": 8, "embedding_size": 8,
}  # fmt: skip


def make_config(sharing="embeddings", family="electra", **model):
  c = base.get_config()
  base.set_size(c, "small" if family == "electra" else "v3-xsmall", family)
  c.model.update(SIZES | model)
  c.model.dropout_rate = c.model.attention_dropout_rate = 0.0
  c.objective = "rtd"
  c.generator.sharing = sharing
  return c


def make(config):
  objective = table.get("rtd").for_config(config)
  model = objective.make_model(ModelConfig.from_config(config.model))
  return objective, model


BATCH = {
  "input_ids": jnp.array([[2, 4, 8, 4, 3, 0], [2, 9, 4, 3, 0, 0]]),
  "input_mask": jnp.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]),
  "segment_ids": jnp.zeros((2, 6), jnp.int32),
  "masked_positions": jnp.array([[1, 3], [2, 0]]),
  "masked_ids": jnp.array([[7, 11], [12, 0]]),
  "masked_weights": jnp.array([[1.0, 1.0], [1.0, 0.0]]),
  "weight": jnp.ones(2),
}


def init(config):
  objective, model = make(config)
  fresh = jax.jit(lambda rng: model.init(rng, **objective.arguments(BATCH)))
  return objective, model, fresh(jax.random.key(1))["params"]


# Of forms that differ in the tables alone, the default tests run two.
FORMS = breadth.slow_but(SHARINGS, lambda sharing: sharing != "none")


def test_the_generator_has_the_published_sizes():
  for size in ("small", "base", "large"):
    config = electra.get_config(f"size={size}")
    base.set_size(config, size, "electra")
    config.model.vocab_size = 30522
    found = replaced_tokens.generator_config(
      ModelConfig.from_config(config.model), config.generator
    )
    wanted = families.FAMILIES["electra"].presets[f"{size}-generator"]
    got = {key: getattr(found, key) for key in wanted}
    # Embeddings as wide as the discriminator's have no size of their own there.
    assert got == wanted, size


@pytest.mark.parametrize("sharing", SHARINGS)
def test_the_discriminator_has_the_parameters_of_its_family(sharing):
  config = make_config(sharing)
  objective, model = make(config)
  flat = param_trees.flatten(
    jax.eval_shape(
      lambda: model.init(jax.random.key(1), **objective.arguments(BATCH))
    )["params"]
  )
  own = {k for k in flat if not k.startswith(("generator/", "residual/"))}
  model = {"family": "electra", **config.model.to_dict()}
  keys = {"dtype", "param_dtype", "attention", "remat", "scan_layers"}
  shapes = heads.param_shapes(
    {k: v for k, v in model.items() if k not in keys}, 1
  )
  wanted = {k for k in shapes if k.startswith(("encoder/", "rtd/"))}
  assert wanted - own == (
    {replaced_tokens.WORDS} if sharing == "disentangled" else set()
  )
  assert own <= wanted
  tables = [k for k in flat if k.startswith("generator/encoder/embeddings/")]
  shared = {k.split("/")[3] for k in tables}
  assert shared == (
    {"projection"}
    if sharing == "embeddings"
    else {"word", "position", "type", "norm", "projection"}
  )


@pytest.mark.parametrize("sharing", FORMS)
def test_tokens_that_differ_from_the_text_are_replaced(sharing):
  objective, model, params = init(make_config(sharing))
  bias = params["generator"]["mlm"]["bias"].at[11].set(1e6)
  params["generator"]["mlm"]["bias"] = bias  # all samples are token 11
  outputs = objective.apply(model, params, BATCH)
  words, scores, is_replaced = outputs
  assert words.shape == (2, 2, 20) and scores.shape == (2, 6)
  # 7 became 11; 11 became 11, which is right; 12 became 11.
  wanted = [[0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]
  np.testing.assert_array_equal(is_replaced, wanted)
  as_read = BATCH["input_ids"].at[0, 1].set(11).at[0, 3].set(11)
  as_read = as_read.at[1, 2].set(11)
  config = model.config
  alone = heads.DiscriminatorModel(config)
  own = {k: params[k] for k in ("encoder", "rtd")}
  if sharing == "disentangled":
    own["encoder"] = own["encoder"] | {
      "embeddings": own["encoder"]["embeddings"]
      | {"word": params["generator"]["encoder"]["embeddings"]["word"]}
    }
  want = alone.apply(
    {"params": own}, as_read, BATCH["input_mask"], BATCH["segment_ids"]
  )
  np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-6)

  x = np.asarray(scores, np.float64)
  each = np.log1p(np.exp(x)) - x * np.array(wanted)
  mask = np.asarray(BATCH["input_mask"])
  terms = objective.losses(outputs, BATCH)
  np.testing.assert_allclose(terms["rtd_loss"][0], (each * mask).sum(), 1e-5)
  assert terms["rtd_loss"][1] == objective.weights(BATCH)["rtd_loss"] == 9
  means = {k: losses.mean(*v) for k, v in terms.items()}
  np.testing.assert_allclose(
    objective.total(means), means["mlm_loss"] + 50 * means["rtd_loss"], 1e-6
  )
  metrics = objective.metrics(outputs, BATCH)
  assert metrics["replaced_rate"] == (2, 9)
  # Rows that fill a batch up do not count.
  batch = BATCH | {"weight": jnp.array([1.0, 0.0])}
  assert objective.weights(batch)["rtd_loss"] == 5
  assert objective.metrics(outputs, batch)["rtd_accuracy"][1] == 5


@pytest.mark.parametrize(
  "sharing", breadth.slow_but(SHARINGS, lambda one: one == "disentangled")
)
def test_the_loss_of_the_discriminator_trains_only_what_it_may(sharing):
  objective, model, params = init(make_config(sharing))
  hooks = model.hooks

  def loss(flat):
    outputs = objective.apply(model, hooks.for_apply(flat), BATCH)
    return losses.mean(*objective.losses(outputs, BATCH)["rtd_loss"])

  grads = hooks.as_stored(jax.jit(jax.grad(loss))(hooks.for_gradients(params)))
  assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)
  size = {k: abs(v).max() for k, v in param_trees.flatten(grads).items()}
  assert all(v == 0 for k, v in size.items() if k.startswith("generator/"))
  table_of = {"disentangled": replaced_tokens.RESIDUAL}
  assert size[table_of.get(sharing, replaced_tokens.WORDS)] > 0
  assert size["rtd/kernel"] > 0


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_family_without_a_discriminator_is_refused(family):
  config = make_config()
  config.model.family = family
  with pytest.raises(ValueError, match=f"{family}.*electra"):
    make(config)


def tiny_electra(folder, sharing):
  c = tiny_run.tiny_config(folder)
  base.set_size(c, "small", "electra")
  c.model.update(SIZES | {"vocab_size": 32, "max_len": 16})
  c.objective, c.generator.sharing = "rtd", sharing
  c.data.pairing = "pairs"
  c.eval.every_steps, c.checkpoint.best_metric = 0, ""
  c.checkpoint.keep = 4
  return c


@pytest.mark.parametrize(
  "sharing",
  ["embeddings", pytest.param("disentangled", marks=pytest.mark.slow)],
)
def test_a_run_goes_on_and_gives_its_discriminator(prepared, tmp_path, sharing):
  config = tiny_electra(prepared, sharing)
  config.train.total_steps = 4
  workdir = str(tmp_path / "run")
  found = train.train(config, workdir)
  assert {"eval/rtd_loss", "eval/mlm_loss", "eval/loss"} <= found.keys()
  wanted = param_trees.flatten(weights.read(workdir).params)

  # A run that stopped after two steps.
  shutil.rmtree(f"{workdir}/checkpoints/4")
  train.train(config, workdir)
  again = weights.read(workdir)
  got = param_trees.flatten(again.params)
  assert all(np.array_equal(got[k], wanted[k]) for k in wanted)

  weights.write(again, tmp_path / "hf", "huggingface")
  exported = param_trees.flatten(weights.read(tmp_path / "hf").params)
  assert all(np.array_equal(exported[k], got[k]) for k in exported)
  assert {k.split("/")[0] for k in exported} == {"encoder", "rtd"}
  if sharing == "disentangled":
    base_table = got[f"generator/{replaced_tokens.WORDS}"]
    assert (got[replaced_tokens.WORDS] != base_table).any()

  config.init_from, config.init_moments = workdir, True
  config.train.total_steps = 1
  train.train(config, str(tmp_path / "next"))


@pytest.mark.slow
@pytest.mark.parametrize("sharing", SHARINGS)
def test_a_sharded_step_is_that_of_one_device(prepared, tmp_path, sharing):
  found = []
  for name, axes in (("one", {}), ("many", {"fsdp": 2, "tensor": 2})):
    config = tiny_electra(prepared, sharing)
    config.model.dropout_rate = config.model.attention_dropout_rate = 0.0
    config.mesh.update(axes)
    config.generator.width_rate = 0.5  # heads for both halves of "tensor"
    config.train.total_steps = 3
    if name == "many":
      config.optim.num_micro_batches = 2
    workdir = str(tmp_path / name)
    found.append(train.train(config, workdir))
  # Micro-batches draw other samples, so only the scales agree.
  np.testing.assert_allclose(
    found[0]["eval/mlm_loss"], found[1]["eval/mlm_loss"], rtol=0.05
  )
