"""A family is fine-tuned, evaluated, written out and predicted with."""

import dataclasses

import numpy as np
import pytest

from bert_jax import weights
from bert_jax.data.tokenizers import load
from bert_jax.models import families
from bert_jax.models import heads
from bert_jax.models import params as param_trees
from bert_jax.prediction import predict
from bert_jax.runtime import metrics_log
from bert_jax.training import evaluate
from bert_jax.training import train
from configs import predict as predict_config
from tests.support import small_tasks

FAMILIES = {
  "roberta": {"type_vocab_size": 1, "position_offset": 2},
  "modernbert": {"local_radius": 2, "full_every": 2, "pooling": "mean"},
  "albert": {"embedding_size": 16, "layer_groups": 1},
}
FORMS = ("classify", "regress", "tag", "choice", "span")


def write_weights(folder, name):
  """Writes a random encoder with a head of masked words."""
  (folder / "vocab.txt").write_text("\n".join(small_tasks.VOCAB) + "\n")
  model = {
    "vocab_size": len(small_tasks.VOCAB), "num_layers": 3, "hidden_size": 32,
    "num_heads": 4, "mlp_dim": 64, "max_len": 32, "type_vocab_size": 2,
    "hidden_act": "gelu_erf", "layer_norm_eps": 1e-5,
    **families.FAMILIES[name].switches, **FAMILIES[name],
  }  # fmt: skip
  rng = np.random.default_rng(0)
  flat = {
    path: (rng.normal(size=shape) * 0.1 + path.endswith("scale")).astype(
      np.float32
    )
    for path, shape in heads.param_shapes({**model, "family": name}, 1).items()
    if path.startswith(("encoder/", "mlm/")) and "pooler" not in path
  }
  found = weights.Pretrained(
    format="bert_jax", model=model, params=param_trees.nest(flat), family=name,
    tokenizer=load.load_tokenizer(folder / "vocab.txt"),
  )  # fmt: skip
  weights.write(found, folder / "hf", "huggingface")
  return str(folder / "hf")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_kind_learns_and_comes_back(tmp_path, name, form):
  """Packed rows in training, and the same scores from the exported folder."""
  config = small_tasks.make_config(tmp_path, form, train__num_epochs=6.0)
  config.init_from, config.task.vocab = write_weights(tmp_path, name), ""
  scores = train.train(config, str(tmp_path / "run"))
  rows = metrics_log.read_metrics(str(tmp_path / "run"))
  losses = [row["train/loss"] for row in rows if "train/loss" in row]
  assert scores["eval/loss"] < losses[0]
  again = weights.read(tmp_path / "run")
  assert again.family == name
  weights.write(again, tmp_path / "out", "huggingface")
  back = weights.read(tmp_path / "out")
  flat = param_trees.flatten(again.params)
  for path, array in param_trees.flatten(back.params).items():
    np.testing.assert_array_equal(flat[path], array)
  config.init_from = str(tmp_path / "out")
  there = evaluate.evaluate(config, str(tmp_path / "new"), None)
  assert there["eval/loss"] == pytest.approx(scores["eval/loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_words_and_vectors_do_not_depend_on_their_neighbors(tmp_path, name):
  folder = write_weights(tmp_path, name)
  for kind, fields in (("fill-mask", ""), ("embed", "mean+layers")):
    config = predict_config.get_config(f"kind={kind},fields={fields}")
    config.predict.decimals = 0
    model = predict.Predictor.load(folder, config)
    texts = ["sun [MASK] star", "[MASK]", "moon star sky rain wind [MASK] lake"]
    together = list(model({"text": text} for text in texts))
    for text, got in zip(texts, together, strict=True):
      (alone,) = model([{"text": text}])
      assert "error" not in got
      for one, two in zip(_numbers(got), _numbers(alone), strict=True):
        assert one == pytest.approx(two, abs=2e-5)


def _numbers(value):
  """Yields the numbers in a prediction, in their order."""
  if isinstance(value, dict):
    value = list(value.values())
  if isinstance(value, list):
    for item in value:
      yield from _numbers(item)
  elif isinstance(value, float):
    yield value


def test_a_new_head_begins_with_the_pre_trained_one(tmp_path):
  """ModernBERT's heads share their inner layers by name; RoBERTa's do not."""
  assert families.FAMILIES["modernbert"].shared_head == ("dense", "norm")
  assert families.FAMILIES["roberta"].shared_head == ()
  assert dataclasses.replace(families.FAMILIES["bert"]).shared_head == ()
