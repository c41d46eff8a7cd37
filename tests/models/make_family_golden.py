"""Writes families.npz: what transformers computes for each family.

  python -m tests.models.make_family_golden

Needs torch and transformers; the test that reads the file does not. The weights
are drawn here and exported, so that the file holds outputs alone.
"""

import pathlib
import tempfile
import zlib

import numpy as np

from bert_jax import weights
from bert_jax.models import families
from bert_jax.models import heads
from bert_jax.models import params as param_trees

PATH = pathlib.Path(__file__).with_name("families.npz")
NUM_LABELS = 3
MODEL = {
  "vocab_size": 29, "num_layers": 3, "hidden_size": 12, "num_heads": 3,
  "mlp_dim": 16, "max_len": 14, "type_vocab_size": 2,
  "hidden_act": "gelu_erf", "layer_norm_eps": 1e-5,
}  # fmt: skip
# What the small model of a family has beside `MODEL` and the switches.
CHANGES = {
  "roberta": {"type_vocab_size": 1, "position_offset": 2},
  "modernbert": {
    "full_every": 2, "local_radius": 2, "rope_theta": 300.0,
    "local_rope_theta": 20.0, "pooling": "mean",
  },
  "distilbert": {"layer_norm_eps": 1e-12},
  "albert": {"embedding_size": 8, "layer_groups": 2},
  "electra": {"embedding_size": 8},
  "mpnet": {},
  "nomic_bert": {},
  "gte": {},
  "eurobert": {"num_kv_heads": 1},
  "deberta-v2": {
    "type_vocab_size": 0, "relative_buckets": 4, "relative_distance": 14,
    "conv_size": 3, "conv_groups": 2, "conv_act": "gelu_tanh",
  },
}  # fmt: skip


def shape_of(name):
  """Returns the keys of the group `model` of a family's small model."""
  switches = families.FAMILIES[name].switches
  return {**MODEL, **switches, **CHANGES[name], "family": name}


def make(name, part):
  """Returns random weights.

  Args:
    name: a key of `CHANGES`.
    part: "mlm" or "classify".
  """
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  head = "mlm/" if part == "mlm" else "task/"
  steps = families.FAMILIES[name].heads["sequence"]
  has_rtd = ("rtd",) in families.FAMILIES[name].pretraining_classes
  flat = {
    path: rng.normal(size=shape).astype(np.float32)
    * (0.3 if len(shape) > 1 else 0.1)
    + (1.0 if path.endswith("scale") else 0.0)
    for path, shape in heads.param_shapes(shape_of(name), NUM_LABELS).items()
    # A head that transformers lacks takes no random numbers.
    if has_rtd or not path.startswith("rtd/")
  }
  kept = {
    path: array.astype(np.float32)
    for path, array in flat.items()
    if path.startswith(("encoder/", head))
    and (
      not path.startswith("encoder/pooler/")
      or (part == "classify" and "pooler" in steps)
    )
  }
  model = {k: v for k, v in shape_of(name).items() if k != "family"}
  return weights.Pretrained(
    format="bert_jax", model=model, params=param_trees.nest(kept), family=name,
    kind="classify" if part == "classify" else None,
    labels=("a", "b", "c") if part == "classify" else (),
  )  # fmt: skip


def make_batch(name):
  """Returns three rows, two of them padded."""
  rng = np.random.default_rng(1)
  mask = (np.arange(12) < np.array([12, 7, 3])[:, None]).astype(np.int32)
  types = max(shape_of(name)["type_vocab_size"], 1)
  pad = shape_of(name).get("position_offset", 0) > 0
  return {
    "input_ids": np.where(
      mask, rng.integers(5, MODEL["vocab_size"], mask.shape), int(pad)
    ).astype(np.int32),
    "input_mask": mask,
    "segment_ids": rng.integers(0, types, mask.shape).astype(np.int32) * mask,
  }


def main():
  import transformers

  from experiments.families import measure

  arrays = {}
  for name in CHANGES:
    batch, prefix = make_batch(name), families.FAMILIES[name].hf_class
    for part, suffix in (
      ("mlm", "ForMaskedLM"), ("classify", "ForSequenceClassification")
    ):  # fmt: skip
      with tempfile.TemporaryDirectory() as folder:
        weights.write(make(name, part), f"{folder}/x", "huggingface")
        model, info = getattr(transformers, prefix + suffix).from_pretrained(
          f"{folder}/x", output_loading_info=True, attn_implementation="eager"
        )
      if any(info.values()):
        raise SystemExit(f"{name}: {info}")
      found = measure.run_reference(model.eval(), batch)
      arrays[f"{name}/{part}"] = found["logits"]
      if part == "mlm":
        base = getattr(model, model.base_model_prefix)
        hidden = measure.run_reference(base, batch)["last_hidden_state"]
        arrays[f"{name}/hidden"] = hidden
  np.savez_compressed(PATH, **arrays)
  print(f"{PATH}: {len(arrays)} arrays, {PATH.stat().st_size} bytes")


if __name__ == "__main__":
  main()
