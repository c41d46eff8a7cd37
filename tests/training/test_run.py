"""Tests of run.py: what a run does about bad steps."""

import types

import numpy as np
import pytest

from bert_jax.training import averages
from bert_jax.training import run as run_lib
from configs import base


def test_parameters_that_are_no_numbers_stop_the_run(tmp_path):
  """Though the losses and gradients that led to them were."""
  config = base.get_config()
  run = object.__new__(run_lib.Run)
  run.config, run.workdir, run._written = config, str(tmp_path), None
  run.checkpoints = types.SimpleNamespace(latest_step=lambda: 3)
  run.mean_loss = averages.MeanLoss()
  metrics = {"loss": np.float32(1), "grad_norm": np.float32(2)}
  metrics |= dict.fromkeys(("bad_step", "mean_loss"), np.float32(0))
  run.check([(4, metrics)], 3.0)
  with pytest.raises(
    run_lib.DivergedError, match="param_norm is inf at step 5.*step 3, is sound"
  ):
    run.check([(5, metrics)], np.inf)
