"""Every family gives what transformers gives, in and out."""

import numpy as np
import pytest

from bert_jax import weights
from experiments.families import measure

# In float32. The largest values are below 10.
TOLERANCE = 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(measure.REFERENCES))
def test_outputs_are_those_of_the_reference(tmp_path, name):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  found = measure.measure(name, str(tmp_path))
  changed, _ = found.pop("export")
  assert changed == 0
  assert {"import", "packed", "mlm", "classify", "tag"} <= found.keys()
  for part, (difference, largest) in found.items():
    assert difference <= TOLERANCE, part
    assert 0.1 < largest < 20, part


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(measure.REFERENCES))
def test_settings_that_are_written_have_the_same_effect(tmp_path, name):
  """The reference loads what we write, whole, and gives the same numbers."""
  pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  model = measure.make_reference(name, "ForMaskedLM")
  model.save_pretrained(tmp_path / "theirs")
  given = weights.read(tmp_path / "theirs")
  weights.write(given, tmp_path / "ours", "huggingface")
  again, info = type(model).from_pretrained(
    tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
  )
  assert not any(info.values()), info
  batch = measure.make_batch(
    measure.REFERENCES[name].pad, given.shape["type_vocab_size"]
  )
  want = measure.run_reference(model, batch)["logits"]
  got = measure.run_reference(again.eval(), batch)["logits"]
  np.testing.assert_array_equal(got, want)
  back = weights.read(tmp_path / "ours")
  assert back.shape == given.shape
  family = measure.family_of(name)
  defaults = getattr(transformers, f"{family.hf_class}Config")().to_dict()
  assert not family.config_keys.unknown(defaults)
