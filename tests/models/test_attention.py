"""Tests of models/attention.py."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from bert_jax.models import dropout
from bert_jax.models import layers
from bert_jax.models.attention import masks
from bert_jax.models.attention import plain

B, N, Q, K, H = 2, 3, 4, 5, 6


def _normal(seed, *shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def _inputs(dtype=jnp.float32):
  query = _normal(0, B, N, Q, H, dtype=dtype)
  key = _normal(1, B, N, K, H, dtype=dtype)
  value = _normal(2, B, N, K, H, dtype=dtype)
  mask = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
  return query, key, value, masks.attention_bias(mask)


def _plain(query, key, value, bias, rng, rate):
  """The equation, to be differentiated by JAX."""
  scores = jnp.einsum("BNQH,BNKH->BNQK", query, key) / np.sqrt(H)
  probs = dropout.dropout(rng, jax.nn.softmax(scores + bias), rate)
  return jnp.einsum("BNQK,BNKH->BNQH", probs, value)


def test_bias_hides_padded_keys_only():
  bias = masks.attention_bias(jnp.array([[1, 1, 0]]))
  assert bias.shape == (1, 1, 1, 3)
  assert bias.ravel().tolist() == [0, 0, -10000]


def test_bias_separates_packed_sequences():
  bias = masks.attention_bias(
    jnp.array([[1, 1, 1, 0]]), jnp.array([[1, 2, 2, 0]])
  )
  visible = np.asarray(bias[0, 0] == 0).astype(int)
  assert visible.tolist() == [
    [1, 0, 0, 0],
    [0, 1, 1, 0],
    [0, 1, 1, 0],
    [0, 0, 0, 0],
  ]


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_attend_and_its_gradient_are_those_of_the_equation(rate):
  query, key, value, bias = _inputs()
  rng = jax.random.key(3)
  want, pull_want = jax.vjp(
    lambda *args: _plain(*args, bias, rng, rate), query, key, value
  )
  got, pull = jax.vjp(
    lambda *args: plain.attend(*args, bias, rng, rate), query, key, value
  )
  np.testing.assert_allclose(got, want, atol=1e-6)
  grad = _normal(4, *want.shape)
  for a, b in zip(pull(grad), pull_want(grad), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6)


def test_gradient_of_attend_against_finite_differences():
  query, key, value, bias = _inputs()
  check_grads(
    lambda *args: plain.attend(*args, bias, jax.random.key(0), 0.2),
    (query, key, value),
    order=1,
    modes=["rev"],
    rtol=2e-2,
  )


def test_hidden_keys_have_no_influence_and_get_no_gradient():
  query, key, value, bias = _inputs()
  other = value.at[1, :, 3:].set(1e3), key.at[1, :, 3:].set(7.0)
  a = plain.attend(query, key, value, bias, None, 0.0)
  b = plain.attend(query, other[1], other[0], bias, None, 0.0)
  np.testing.assert_array_equal(a, b)

  def total(key, value):
    return jnp.sum(plain.attend(query, key, value, bias, None, 0.0) ** 2)

  for grad in jax.grad(total, argnums=(0, 1))(key, value):
    assert np.all(np.asarray(grad[1, :, 3:]) == 0)
    assert np.any(np.asarray(grad[1, :, :3]) != 0)


def test_row_without_visible_keys_is_uniform_where_scores_are_equal():
  query, key, value, _ = _inputs()
  bias = masks.attention_bias(jnp.zeros((B, K), int))
  out = plain.attend(0 * query, key, value, bias, None, 0.0)
  want = jnp.broadcast_to(value.mean(2, keepdims=True), out.shape)
  np.testing.assert_allclose(out, want, atol=1e-6)


def test_bfloat16_stays_close_to_float32():
  want = plain.attend(*_inputs(), None, 0.0)
  query, key, value, bias = _inputs()
  query, key, value = (x.astype(jnp.bfloat16) for x in (query, key, value))
  got = plain.attend(query, key, value, bias, None, 0.0)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.05)


@pytest.mark.parametrize("outputs", [(5,), (3, 2, 4)])
def test_dense_and_its_gradient_are_those_of_the_matmul(outputs):
  x, kernel = _normal(0, 2, 3, 7), _normal(1, 7, *outputs)
  bias = _normal(2, *outputs)

  def plain(x, kernel, bias):
    y = jnp.tensordot(x, kernel, 1)
    return y + jnp.broadcast_to(bias, y.shape)

  want, pull_want = jax.vjp(plain, x, kernel, bias)
  got, pull = jax.vjp(layers.dense, x, kernel, bias)
  np.testing.assert_allclose(got, want, atol=1e-5)
  grad = _normal(3, *want.shape)
  for a, b in zip(pull(grad), pull_want(grad), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_dense_gives_parameters_their_gradient_in_their_own_dtype():
  x = _normal(0, 64, 8, dtype=jnp.bfloat16)
  kernel, bias = _normal(1, 8, 4), _normal(2, 4)
  y, pull = jax.vjp(layers.dense, x, kernel, bias)
  assert y.dtype == jnp.bfloat16
  grads = pull(jnp.ones_like(y))
  assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]
  want = jnp.broadcast_to(x.astype(jnp.float32).sum(0)[:, None], (8, 4))
  np.testing.assert_allclose(grads[1], want, atol=1e-4)
