"""Every family gives what transformers gives, in and out."""

import json
import os
import pathlib
import subprocess
import sys

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
    assert 0.1 < largest < 20, part
    if difference > TOLERANCE:
      # Both round. Neither the compiler's settings of these tests nor the
      # reference's own rounding may be taken for a difference.
      of = "import" if part == "packed" else part
      ours, reference = errors_of_a_user(name, of, str(tmp_path / "again"))
      assert ours <= max(TOLERANCE, 2 * reference), part


def errors_of_a_user(name, part, folder):
  """`measure.errors` in a process without the flags of the tests."""
  program = (
    "import json, sys; from experiments.families import measure;"
    "print(json.dumps(measure.errors(*sys.argv[1:])))"
  )
  done = subprocess.run(
    [sys.executable, "-c", program, name, part, folder],
    cwd=pathlib.Path(__file__).parents[2],
    env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


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
