"""Tests of models/heads.py."""

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.models import config as model_config
from bert_jax.models import heads
from configs import base


def _normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def _config(**changes):
  config = base.get_config().model
  config.update(
    {"vocab_size": 50, "hidden_size": 8, "num_heads": 2, "mlp_dim": 16}
    | changes
  )
  return model_config.ModelConfig.from_config(config)


def test_vocab_logits_and_gradient_are_those_of_the_matmul():
  x, table, bias = _normal(0, 2, 3, 8), _normal(1, 50, 8), _normal(2, 50)

  def plain(x, table, bias):
    y = x @ table.T
    return y + jnp.broadcast_to(bias, y.shape)

  want, pull_want = jax.vjp(plain, x, table, bias)
  got, pull = jax.vjp(heads.vocab_logits, x, table, bias)
  np.testing.assert_allclose(got, want, atol=1e-5)
  grad = _normal(3, *want.shape)
  for a, b in zip(pull(grad), pull_want(grad), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_mlm_head_starts_without_a_preference_of_its_own():
  head = heads.MlmHead(_config())
  hidden, table = _normal(0, 1, 6, 8), _normal(1, 50, 8)
  params = head.init(jax.random.key(2), hidden, table)["params"]
  assert jax.tree.map(jnp.shape, params) == {
    "dense": {"kernel": (8, 8), "bias": (8,)},
    "norm": {"scale": (8,), "bias": (8,)},
    "bias": (50,),
  }
  assert not np.any(np.asarray(params["bias"]))


def test_linear_head_is_one_matmul_and_starts_with_zero_bias():
  head = heads.LinearHead(_config(), 2)
  pooled = _normal(0, 3, 8)
  variables = head.init(jax.random.key(1), pooled)
  kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
  assert kernel.shape == (8, 2)
  assert bias.tolist() == [0, 0]
  logits = head.apply(variables, pooled)
  np.testing.assert_allclose(logits, pooled @ kernel, atol=1e-6)


def test_logits_are_float32_in_a_bfloat16_model():
  cfg = _config(dtype="bfloat16")
  hidden, table = _normal(0, 2, 6, 8).astype(jnp.bfloat16), _normal(1, 50, 8)
  rng = jax.random.key(2)
  mlm, _ = heads.MlmHead(cfg).init_with_output(rng, hidden, table)
  nsp, _ = heads.LinearHead(cfg, 2).init_with_output(rng, hidden[:, 0])
  assert mlm.dtype == nsp.dtype == jnp.float32
