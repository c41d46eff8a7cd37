"""Calibration of probabilities, and thresholds that fit a split."""

import numpy as np
import pytest

from bert_jax.kinds import calibration


def made(count=4000, temperature=1.0, seed=0):
  """Probabilities whose logits are too large by a factor, and right labels."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(count, 3)) * 2
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  labels = (p.cumsum(1) > rng.random((count, 1))).argmax(1)
  return calibration.with_temperature(p, 1 / temperature), labels


def test_the_expected_error_by_hand():
  probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.05, 0.95]])
  labels = np.array([0, 1, 1, 0])
  # Bins of 1/15: each prediction is alone. |1-.9| + |0-.8| + |1-.7| + |0-.95|
  found = calibration.expected_error(probabilities, labels)
  assert found == pytest.approx((0.1 + 0.8 + 0.3 + 0.95) / 4)


def test_predictions_of_one_bin_are_compared_with_their_share_that_is_right():
  probabilities = np.tile([[0.75, 0.25]], (8, 1))
  labels = np.array([0, 0, 0, 0, 0, 0, 1, 1])
  assert calibration.expected_error(probabilities, labels) < 1e-12


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_made_predictions_is_found(temperature):
  probabilities, labels = made(temperature=temperature)
  found = calibration.best_temperature(probabilities, labels)
  assert found == pytest.approx(temperature, rel=0.08)
  after = calibration.with_temperature(probabilities, found)
  assert calibration.expected_error(after, labels) < 0.025
  np.testing.assert_allclose(after.sum(1), 1)
  np.testing.assert_array_equal(after.argmax(1), probabilities.argmax(1))


def test_choices_that_an_example_lacks_stay_impossible():
  found = calibration.with_temperature(np.array([[0.7, 0.3, 0.0]]), 2.0)
  assert found[0, 2] == 0 and found.sum() == pytest.approx(1)


def test_the_threshold_with_the_best_f1_by_hand():
  p = np.array([0.9, 0.6, 0.4, 0.2])
  has = np.array([True, False, True, False])
  # F1 of the first 1, 2, 3, 4: 2/3, 2/4, 4/5, 4/6
  assert calibration.best_threshold(p, has) == pytest.approx(0.3)
  assert calibration.best_threshold(p, np.zeros(4, bool)) == 0.5
  assert calibration.best_threshold(p, np.ones(4, bool)) == pytest.approx(0.1)
  # Equal probabilities are on one side.
  assert calibration.best_threshold(
    np.array([0.8, 0.8, 0.1]), np.array([True, False, False])
  ) == pytest.approx(0.45)


def test_few_examples_are_not_described():
  probabilities, labels = made(60)
  assert "task.temperature" in calibration.describe(probabilities, labels)
  assert calibration.describe(probabilities[:49], labels[:49]) == ""
