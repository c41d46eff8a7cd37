"""Tests of losses.py."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest
import scipy.special

from bert_jax.kinds import losses


def _example(shape=(3, 5), num_labels=7, dtype=np.float32):
  rng = np.random.default_rng(0)
  logits = (3 * rng.normal(size=(*shape, num_labels))).astype(dtype)
  labels = rng.integers(num_labels, size=shape).astype(np.int32)
  weights = rng.random(shape).astype(np.float32)
  return jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights)


def test_cross_entropy_agrees_with_scipy():
  logits, labels, weights = _example()
  log_probs = scipy.special.log_softmax(np.float64(logits), axis=-1)
  want = 0.0
  for i in np.ndindex(labels.shape):
    want -= float(weights[i]) * log_probs[i][int(labels[i])]
  loss, weight = losses.cross_entropy(logits, labels, weights)
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  np.testing.assert_allclose(weight, np.sum(weights), rtol=1e-6)
  assert loss.dtype == weight.dtype == jnp.float32


def test_equal_logits_cost_the_log_of_the_number_of_labels():
  loss, weight = losses.cross_entropy(
    jnp.zeros([4, 9]), jnp.arange(4), jnp.ones(4)
  )
  np.testing.assert_allclose(loss / weight, np.log(9), rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_gradient_of_cross_entropy_is_that_of_log_softmax(shape):
  logits, labels, weights = _example(shape)

  def plain(logits, weights):
    log_probs = jax.nn.log_softmax(logits)
    one_hot = jax.nn.one_hot(labels, logits.shape[-1])
    return -jnp.sum(jnp.sum(log_probs * one_hot, axis=-1) * weights)

  def ours(logits, weights):
    return losses.cross_entropy(logits, labels, weights)[0]

  want = jax.grad(plain, argnums=(0, 1))(logits, weights)
  got = jax.jit(jax.grad(ours, argnums=(0, 1)))(logits, weights)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_gradient_of_cross_entropy_against_finite_differences():
  logits, labels, weights = _example((4,), num_labels=5)
  check_grads(
    lambda x: losses.cross_entropy(x, labels, weights)[0],
    (logits,),
    order=1,
    modes=["rev"],
    atol=2e-2,
    rtol=2e-2,
  )


def test_bfloat16_logits_are_summed_in_float32():
  logits, labels, weights = _example((4,), num_labels=30_000)
  logits = logits.astype(jnp.bfloat16)
  got, _ = losses.cross_entropy(logits, labels, weights)
  want, _ = losses.cross_entropy(logits.astype(jnp.float32), labels, weights)
  assert got == want
  grad = jax.grad(lambda x: losses.cross_entropy(x, labels, weights)[0])(logits)
  assert grad.dtype == jnp.bfloat16


def test_large_logits_stay_finite():
  logits = jnp.array([[1e4, -1e4, 0.0]])
  for label, want in ((0, 0.0), (1, 2e4)):
    loss, _ = losses.cross_entropy(logits, jnp.array([label]), jnp.ones(1))
    assert loss == want


def test_weight_zero_silences_labels_nan_logits_and_their_gradient():
  logits, _, _ = _example((3,))
  labels = jnp.array([2, -100, 3])
  weights = jnp.array([1.0, 0.0, 0.0])
  poisoned = logits.at[2].set(jnp.nan)

  def loss(logits):
    return losses.cross_entropy(logits, labels, weights)[0]

  alone, _ = losses.cross_entropy(logits[:1], labels[:1], weights[:1])
  np.testing.assert_allclose(loss(poisoned), alone, rtol=1e-6)
  grad = jax.grad(loss)(logits)
  assert np.any(grad[0]) and not np.any(grad[1:])


@pytest.mark.parametrize("label", [-1, 7])
def test_a_label_that_does_not_exist_is_nan_when_it_counts(label):
  logits, _, weights = _example((1,))
  loss, _ = losses.cross_entropy(logits, jnp.array([label]), weights)
  assert np.isnan(loss)


def test_accuracy_counts_weights_of_right_predictions():
  logits = jnp.array([[0.0, 1.0], [2.0, 1.0], [0.0, 1.0], [5.0, 5.0]])
  labels = jnp.array([1, 1, 1, 0])
  correct, weight = losses.accuracy(
    logits, labels, jnp.array([1.0, 1.0, 0.0, 0.5])
  )
  assert (correct, weight) == (1.5, 2.5)


def test_integer_mask_is_a_weight():
  logits, labels, _ = _example((4,))
  mask = jnp.array([1, 0, 1, 1])
  got = losses.cross_entropy(logits, labels, mask)
  want = losses.cross_entropy(logits, labels, mask.astype(jnp.float32))
  assert got == want
  assert losses.accuracy(logits, labels, mask)[1] == 3


def test_shapes_that_do_not_fit_are_refused():
  logits, labels, weights = _example((3, 5))
  for fn in (losses.cross_entropy, losses.accuracy):
    with pytest.raises(ValueError, match=r"labels \(3, 5\) and weights \(3,\)"):
      fn(logits, labels, weights[:, 0])
    with pytest.raises(ValueError, match=r"wanted \[..., K\]"):
      fn(logits, labels[..., None], weights)


def test_mean_of_nothing_is_zero_with_no_gradient():
  assert losses.mean(jnp.float32(6), jnp.float32(4)) == 1.5
  assert losses.mean(jnp.float32(3), jnp.float32(0.5)) == 6
  value, grads = jax.value_and_grad(losses.mean, argnums=(0, 1))(
    jnp.float32(0), jnp.float32(0)
  )
  assert (value, *grads) == (0, 0, 0)
