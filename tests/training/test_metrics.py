"""Tests of metrics.py."""

import math

import numpy as np
import pytest

from bert_jax.training import metrics


def test_division_happens_once_over_all_batches():
  totals = metrics.add({}, {"loss": (3.0, 1.0)})
  totals = metrics.add(totals, {"loss": (1.0, 9.0)})
  # A mean of means would be (3 + 1/9) / 2.
  assert metrics.finish(totals) == {"loss": 0.4}


def test_add_leaves_its_arguments_alone():
  before = {"loss": (1.0, 1.0)}
  metrics.add(before, {"loss": (1.0, 1.0)})
  assert before == {"loss": (1.0, 1.0)}


def test_a_name_may_come_later():
  totals = metrics.add({"loss": (1.0, 2.0)}, {"accuracy": (3, 4)})
  assert metrics.finish(totals) == {"loss": 0.5, "accuracy": 0.75}


def test_small_batches_are_not_lost_beside_a_large_total():
  totals = {"loss": (2.0**24, 2.0**24)}
  for _ in range(3):
    totals = metrics.add(totals, {"loss": (np.float32(1), np.float32(1))})
  assert totals["loss"] == (2.0**24 + 3, 2.0**24 + 3)  # float32 stays at 2**24.


def test_nothing_counted_is_an_error_and_not_a_score():
  with pytest.raises(ValueError, match="metric 'accuracy' has weight 0"):
    metrics.finish({"accuracy": (0.0, 0.0)})


def test_perplexity():
  assert metrics.perplexity(math.log(7)) == pytest.approx(7)
  assert metrics.perplexity(1e4) == math.inf
  assert math.isnan(metrics.perplexity(math.nan))
