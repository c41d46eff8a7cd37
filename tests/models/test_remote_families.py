"""Families without a class in transformers, against straight-line code.

The references follow the sources that the families name, step by step, in
float64, from tensors under the names of their files.
"""

import math

import numpy as np
import pytest
import safetensors.numpy
import scipy.special

from bert_jax import weights
from bert_jax.models import config as model_config
from bert_jax.models import encoder
from bert_jax.models import families
from bert_jax.models import heads
from bert_jax.models import params as param_trees

SIZES = {
  "vocab_size": 31, "num_layers": 2, "hidden_size": 12, "num_heads": 3,
  "mlp_dim": 16, "max_len": 14, "type_vocab_size": 2,
  "hidden_act": "gelu_erf", "layer_norm_eps": 1e-5,
}  # fmt: skip
LENGTH = 9


def make(name, **changes):
  """Returns random weights with the head of masked words."""
  family = families.FAMILIES[name]
  model = {**SIZES, **family.switches, **changes}
  rng = np.random.default_rng(0)
  shapes = heads.param_shapes({**model, "family": name}, 3)
  flat = {
    path: (rng.normal(size=shape) * 0.4 + path.endswith("scale")).astype(
      np.float32
    )
    for path, shape in shapes.items()
    if path.startswith(("encoder/", "mlm/")) and "pooler" not in path
  }
  return weights.Pretrained(
    format="bert_jax", model=model, params=param_trees.nest(flat), family=name
  )


def check(pretrained, tmp_path, reference):
  """Compares our outputs with those of a reference on the exported file."""
  weights.write(pretrained, tmp_path / "x", "huggingface")
  again = weights.read(tmp_path / "x")
  assert again.shape == pretrained.shape and not again.ignored
  want, flat = map(param_trees.flatten, (pretrained.params, again.params))
  assert want.keys() == flat.keys()
  for path, array in want.items():
    np.testing.assert_array_equal(flat[path], array)
  config = model_config.ModelConfig(
    **again.shape, dropout_rate=0.0, attention_dropout_rate=0.0
  )
  rng = np.random.default_rng(1)
  ids = rng.integers(0, SIZES["vocab_size"], (1, LENGTH)).astype(np.int32)
  types = rng.integers(0, 2, (1, LENGTH)).astype(np.int32)
  params = dict(again.params["encoder"])
  if config.pooler:
    size = config.hidden_size
    params["pooler"] = {
      "kernel": np.zeros((size, size)),
      "bias": np.zeros(size),
    }
  hidden, _ = encoder.Encoder(config).apply(
    {"params": params}, ids, np.ones_like(ids), types
  )
  words = params["embeddings"]["word"]["embedding"]
  scores = heads.MlmHead(config).apply(
    {"params": again.params["mlm"]}, hidden, words
  )
  tensors = {
    name: array.astype(np.float64)
    for name, array in safetensors.numpy.load_file(
      tmp_path / "x" / "model.safetensors"
    ).items()
  }
  states, logits = reference(tensors, ids[0], types[0])
  np.testing.assert_allclose(hidden[0], states, atol=1e-5)
  np.testing.assert_allclose(scores[0], logits, atol=1e-5)


def softmax(x):
  return scipy.special.softmax(x, axis=-1)


def gelu(x):
  return x * scipy.special.ndtr(x)


def rms(x, scale):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale


def layer_norm(x, tensors, name):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
  return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def neobert(tensors, ids, types):
  """chandar-lab/NeoBERT, model.py."""
  del types
  x = tensors["model.encoder.weight"][ids]
  width = 4
  turns = np.exp(
    1j * np.outer(np.arange(LENGTH), 1e4 ** (-np.arange(0, width, 2) / width))
  )

  def rotate(x):  # [L, H], as complex numbers of neighbors
    turned = (x[:, 0::2] + 1j * x[:, 1::2]) * turns
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

  for i in range(2):
    of = f"model.transformer_encoder.{i}."
    y = rms(x, tensors[of + "attention_norm.weight"])
    qkv = (y @ tensors[of + "qkv.weight"].T).reshape(LENGTH, 3, 3 * width)
    contexts = []
    for head in range(3):
      query, key, value = np.split(qkv[:, head], 3, axis=-1)
      scores = rotate(query) @ rotate(key).T / math.sqrt(width)
      contexts.append(softmax(scores) @ value)
    x = x + np.concatenate(contexts, -1) @ tensors[of + "wo.weight"].T
    y = rms(x, tensors[of + "ffn_norm.weight"])
    one, two = np.split(y @ tensors[of + "ffn.w12.weight"].T, 2, axis=-1)
    silu = one / (1 + np.exp(-one))
    x = x + (silu * two) @ tensors[of + "ffn.w3.weight"].T
  x = rms(x, tensors["model.layer_norm.weight"])
  return x, x @ tensors["decoder.weight"].T + tensors["decoder.bias"]


def mosaic(tensors, ids, types):
  """mosaicml/examples, examples/bert/src/bert_layers.py."""
  emb = "bert.embeddings."
  x = tensors[emb + "word_embeddings.weight"][ids]
  x = x + tensors[emb + "token_type_embeddings.weight"][types]
  x = layer_norm(x, tensors, emb + "LayerNorm")
  at = np.arange(LENGTH)
  distance = np.abs(at[:, None] - at[None])
  # Of three heads: the two slopes of two, then the first of those of four.
  slopes = [2.0**-4, 2.0**-8, 2.0**-2]
  for i in range(2):
    of = f"bert.encoder.layer.{i}."
    name = of + "attention.self.Wqkv"
    qkv = x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
    query, key, value = np.split(qkv, 3, axis=-1)
    contexts = []
    for head, slope in enumerate(slopes):
      part = slice(4 * head, 4 * head + 4)
      scores = query[:, part] @ key[:, part].T / 2.0 - slope * distance
      contexts.append(softmax(scores) @ value[:, part])
    name = of + "attention.output.dense"
    y = np.concatenate(contexts, -1) @ tensors[f"{name}.weight"].T
    x = layer_norm(
      x + y + tensors[f"{name}.bias"],
      tensors,
      of + "attention.output.LayerNorm",
    )
    both = x @ tensors[of + "mlp.gated_layers.weight"].T
    one, two = np.split(both, 2, axis=-1)
    y = (gelu(one) * two) @ tensors[of + "mlp.wo.weight"].T
    x = layer_norm(
      x + y + tensors[of + "mlp.wo.bias"], tensors, of + "mlp.layernorm"
    )
  head = "cls.predictions."
  y = x @ tensors[head + "transform.dense.weight"].T
  y = gelu(y + tensors[head + "transform.dense.bias"])
  y = layer_norm(y, tensors, head + "transform.LayerNorm")
  words = tensors[emb + "word_embeddings.weight"]
  return x, y @ words.T + tensors[head + "decoder.bias"]


@pytest.mark.parametrize(
  ("name", "reference", "changes"),
  [
    ("neobert", neobert, {"hidden_act": "silu"}),
    ("mosaic_bert", mosaic, {}),
  ],
)
def test_outputs_are_those_of_straight_line_code(
  tmp_path, name, reference, changes
):
  check(make(name, **changes), tmp_path, reference)
