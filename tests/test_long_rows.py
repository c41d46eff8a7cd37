"""Rows of thousands of tokens: local layers, training and prediction."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.data import prepare
from bert_jax.models.attention import masks
from bert_jax.models.attention import plain
from bert_jax.models.families import modernbert
from bert_jax.prediction import predict
from bert_jax.runtime import metrics_log
from bert_jax.training import train
from configs import predict as predict_config
from tests.support import corpora

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[1]
LENGTH, RADIUS = 8192, 64


def _window(length):
  """Two packed sequences and some padding."""
  at = np.arange(length)
  ids = np.where(at < length // 3, 1, 2) * (at < length - 100)
  bias = masks.attention_bias((ids > 0).astype(np.int32)[None])
  return masks.Window(masks.Visible(bias, ids[None].astype(np.int32)))


def _gradients(query, key, value, window):
  def total(*inputs):
    context = plain.attend_window(*inputs, window, None, 0.0, RADIUS)
    return jnp.sum(context * context)

  return jax.grad(total, (0, 1, 2))(query, key, value)


def test_time_and_memory_of_a_local_layer_grow_linearly():
  """By the compiled program of the forward and the backward pass."""
  found = {}
  for length in (1024, 2048, 4096, 8192):
    shape = jax.ShapeDtypeStruct((1, 2, length, 32), jnp.float32)
    window = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _window(length)
    )
    compiled = jax.jit(_gradients).lower(*[shape] * 3, window).compile()
    found[length] = np.array(
      [
        compiled.cost_analysis()["flops"],
        compiled.memory_analysis().temp_size_in_bytes,
      ]
    )
  for length, values in found.items():
    times = length / 1024
    assert np.all(values <= 1.1 * times * found[1024]), (length, values)
    assert np.all(values >= 0.7 * times * found[1024]), (length, values)
  # Scores of all pairs alone would take more than all of this.
  assert found[LENGTH][1] < 2 * LENGTH**2 * 4


def test_a_window_on_8192_tokens_is_the_band_by_hand():
  """Outputs at the ends of blocks, of sequences and of the row."""
  rng = np.random.default_rng(0)
  query, key, value = rng.normal(size=(3, 1, 2, LENGTH, 8)).astype(np.float32)
  window = _window(LENGTH)
  got = np.asarray(
    plain.attend_window(query, key, value, window, None, 0.0, RADIUS)
  )
  ids = np.asarray(window.visible.sequence_ids)[0]
  ends = [0, LENGTH // 3 - 1, LENGTH // 3, 63, 64, 127, 128, LENGTH - 101]
  for at in (*ends, *rng.integers(0, LENGTH - 101, 20)):
    near = np.arange(max(at - RADIUS, 0), min(at + RADIUS + 1, LENGTH))
    near = near[ids[near] == ids[at]]
    for head in range(2):
      scores = key[0, head, near] @ query[0, head, at] / np.sqrt(8)
      probs = np.exp(scores - scores.max())
      want = probs @ value[0, head, near] / probs.sum()
      np.testing.assert_allclose(got[0, head, at], want, atol=1e-5)


def test_a_small_modernbert_trains_and_predicts_at_8192(tmp_path):
  """In a process of its own, whose one device computes one row at a time."""
  code = "import sys; from tests import test_long_rows as rows; "
  done = subprocess.run(
    [sys.executable, "-c", code + "rows.train_and_predict(sys.argv[1])",
     str(tmp_path)],
    cwd=ROOT, capture_output=True, text=True, check=False,
    env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]


def train_and_predict(folder):
  """Packed documents in rows of 8,192, one full layer and two local ones."""
  tmp_path = pathlib.Path(folder)
  vocab = corpora.write_vocabulary(tmp_path / "vocab.txt")
  text = corpora.write_text(
    tmp_path / "text.txt", corpora.make_documents(1500, seed=3)
  )
  config = corpora.make_config(
    vocab,
    data__seq_len=LENGTH,
    data__dupe_factor=1,
    data__pairing="full_sentences",
    data__batch_size=1,
    prepare__unit_bytes=10**6,
  )
  config.objective = "mlm"
  config.data.dir = str(tmp_path / "data")
  prepare.prepare(config, [text], config.data.dir)
  family = modernbert.FAMILY
  config.model.update({**family.switches, **family.defaults})
  config.model.update(
    family="modernbert",
    vocab_size=128, num_layers=3, hidden_size=16, num_heads=1, mlp_dim=32,
    max_len=LENGTH, local_radius=RADIUS, init_stddev=0.1,
  )  # fmt: skip
  config.optim.learning_rate, config.optim.warmup_rate = 3e-2, 0.0
  config.train.total_steps, config.train.log_every_steps = 6, 1
  config.eval.batch_size = config.eval.max_examples = 1
  workdir = str(tmp_path / "run")
  scores = train.train(config, workdir)
  rows = metrics_log.read_metrics(workdir)
  losses = [row["train/loss"] for row in rows if "train/loss" in row]
  assert len(losses) == 6 and np.isfinite(losses).all()
  assert losses[-1] < losses[0] - 0.2
  assert np.isfinite(scores["eval/loss"])

  asked = predict_config.get_config("kind=fill-mask")
  model = predict.Predictor.load(workdir, asked)
  words = ["bado", "se", "kale"] * 1300
  words[1700] = words[2900] = "[MASK]"
  texts = [" ".join(words), "bado [MASK] kale"]
  long, short = model({"text": text} for text in texts)
  assert len(long["masks"]) == 2 and "error" not in short
  (alone,) = model([{"text": texts[1]}])
  best = [
    [word["score"] for word in found["masks"][0]] for found in (short, alone)
  ]
  np.testing.assert_allclose(*best, atol=1e-5)
