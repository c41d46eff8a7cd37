"""Small models as other programs would have trained them."""

import numpy as np

from bert_jax import weights
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import wordpiece
from bert_jax.models import heads
from bert_jax.models import params as param_trees

MODEL = {
  "vocab_size": 20,
  "num_layers": 2,
  "hidden_size": 8,
  "num_heads": 2,
  "mlp_dim": 16,
  "max_len": 12,
  "type_vocab_size": 2,
  "hidden_act": "gelu_erf",
  "layer_norm_eps": 1e-7,
}
PIECES = [*interface.SPECIAL_TOKENS, "walk", "##ed", "the", "!"]
LABELS = {
  "classify": ("no", "yes", "perhaps"),
  "multi_label": ("a", "b", "c"),
  "tag": ("O", "B", "I"),
}
OUTPUTS = {"regress": 1, "choice": 1, "span": 2}
OUTPUTS |= {kind: len(labels) for kind, labels in LABELS.items()}


def make(kind=None, without=(), dtype=np.float32, **model):
  rng = np.random.default_rng(0)
  model = MODEL | model
  flat = {
    path: rng.normal(size=shape).astype(dtype)
    for path, shape in heads.param_shapes(model, OUTPUTS.get(kind, 1)).items()
    if not path.startswith(tuple(without)) and (kind or "task" not in path)
  }
  return weights.Pretrained(
    format="bert_jax",
    model=model,
    params=param_trees.nest(flat),
    kind=kind,
    labels=LABELS.get(kind, ()),
    tokenizer=wordpiece.WordPieceTokenizer(PIECES, lower_case=True),
    lower_case=True,
  )


def assert_same(got, want):
  got, want = param_trees.flatten(got), param_trees.flatten(want)
  assert got.keys() == want.keys()
  for name, array in want.items():
    assert got[name].dtype == array.dtype, name
    assert got[name].shape == array.shape, name
    assert got[name].tobytes() == array.tobytes(), name
