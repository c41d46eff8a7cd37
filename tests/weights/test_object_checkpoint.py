"""An object checkpoint of TensorFlow 2 is refused by that name."""

import numpy as np
import pytest

from bert_jax import weights
from bert_jax.weights import tf_checkpoint


def test_an_object_checkpoint_is_refused_by_its_name(tmp_path):
  values = "model/layer/.ATTRIBUTES/VARIABLE_VALUE"
  tf_checkpoint.write(
    str(tmp_path / "bert_model.ckpt"),
    {
      "_CHECKPOINTABLE_OBJECT_GRAPH": np.zeros(3, np.uint8),
      values: np.zeros(2, np.float32),
    },
  )
  for name in ("bert_model.ckpt", ""):
    with pytest.raises(weights.WeightsError, match="TensorFlow 2 object"):
      weights.read(str(tmp_path / name))
