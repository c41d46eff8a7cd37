"""Every family gives the numbers of transformers that families.npz holds."""

import numpy as np
import pytest

from bert_jax.kinds import table
from bert_jax.models import config as model_config
from bert_jax.models import encoder
from bert_jax.models import heads
from bert_jax.models import params as param_trees
from tests.models import make_family_golden as golden


@pytest.fixture(scope="module")
def arrays():
  return dict(np.load(golden.PATH))


def filled(params, config):
  """Returns parameters with zeros for the heads that do not matter."""
  flat = param_trees.flatten(params)
  shapes = heads.param_shapes(golden.shape_of(config.family), golden.NUM_LABELS)
  missing = {
    path: np.zeros(shape, np.float32)
    for path, shape in shapes.items()
    if path not in flat
  }
  return param_trees.nest({**flat, **missing})


@pytest.mark.parametrize("name", sorted(golden.CHANGES))
def test_outputs_are_the_golden_ones(arrays, name):
  """Not compiled as a whole: most operations are common to the families."""
  config = model_config.ModelConfig(
    **golden.shape_of(name), dropout_rate=0.0, attention_dropout_rate=0.0
  )
  batch = golden.make_batch(name)
  rows = [batch[k] for k in ("input_ids", "input_mask", "segment_ids")]
  real = rows[1] > 0
  params = filled(golden.make(name, "mlm").params, config)
  hidden, _ = encoder.Encoder(config).apply(
    {"params": params["encoder"]}, *rows
  )
  np.testing.assert_allclose(
    np.asarray(hidden)[real], arrays[f"{name}/hidden"][real], atol=2e-5
  )
  table_ = params["encoder"]["embeddings"]["word"]["embedding"]
  words = heads.MlmHead(config).apply({"params": params["mlm"]}, hidden, table_)
  np.testing.assert_allclose(
    np.asarray(words)[real], arrays[f"{name}/mlm"][real], atol=2e-5
  )
  kind = table.get("classify")
  params = filled(golden.make(name, "classify").params, config)
  model = kind.make_model(config, golden.NUM_LABELS)
  starts = np.zeros((len(real), 1), np.int32)
  got = kind.apply(model, params, {**batch, "cls_positions": starts})
  np.testing.assert_allclose(
    np.asarray(got)[:, 0], arrays[f"{name}/classify"], atol=2e-5
  )
