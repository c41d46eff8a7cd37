"""Tests of the encoder's switches beside BERT's."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models import config as model_config
from bert_jax.models import encoder
from bert_jax.models import flops
from bert_jax.models import heads
from bert_jax.models import layers
from bert_jax.models import params as param_trees
from bert_jax.models.attention import masks
from bert_jax.models.attention import plain
from bert_jax.models.attention import positions
from bert_jax.models.attention import programs
from bert_jax.runtime import settings
from configs import base
from configs import pretrain


def make_config(**changes):
  values = {
    "vocab_size": 40, "num_layers": 4, "hidden_size": 8, "num_heads": 2,
    "mlp_dim": 16, "max_len": 64,
  }  # fmt: skip
  config = base.get_config().model
  config.update(values | changes)
  return model_config.ModelConfig.from_config(config)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- Norms ---


def test_rms_norm_divides_by_the_root_mean_square():
  x = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
  got = layers.rms_norm(x, np.array([1.0, 2.0], np.float32), 0.0)
  root = math.sqrt(12.5), math.sqrt(2.0)
  want = [[3 / root[0], 8 / root[0]], [0.0, 4 / root[1]]]
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_product_without_bias_has_the_gradients_of_a_matmul():
  x, kernel, grad = normal(0, 2, 3, 4), normal(1, 4, 5), normal(2, 2, 3, 5)
  got, pull = jax.vjp(layers.multiply, x, kernel)
  want, pull_want = jax.vjp(jnp.matmul, x, kernel)
  np.testing.assert_allclose(got, want, atol=1e-6)
  for a, b in zip(pull(grad), pull_want(grad), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


# --- Positions ---


def test_rotated_scores_depend_on_the_distance_alone():
  query, key = normal(0, 1, 1, 1, 8), normal(1, 1, 1, 1, 8)
  for rotate in (positions.rotate_halves, positions.rotate_pairs):
    scores = []
    for a, b in ((3, 7), (10, 14), (0, 4), (7, 3)):
      turned = [
        np.asarray(
          rotate(x, positions.rotation(100.0, 8, np.array([[at]], np.int32)))
        )
        for x, at in ((query, a), (key, b))
      ]
      scores.append((turned[0] * turned[1]).sum())
    np.testing.assert_allclose(scores[1:3], scores[0], rtol=1e-5)
    assert abs(scores[3] - scores[0]) > 1e-3


def test_a_quarter_turn_by_hand():
  """Dimension 0 of a head of 2 turns by one radian a position."""
  x = np.array([[[[1.0, 0.0]]]], np.float32)
  cos, sin = positions.rotation(10_000.0, 2, np.array([[2]], np.int32))
  assert cos.item() == pytest.approx(math.cos(2.0))
  got = positions.rotate_halves(x, (cos, sin)).ravel()
  np.testing.assert_allclose(got, [math.cos(2.0), math.sin(2.0)], rtol=1e-6)


def test_pairs_are_halves_in_another_order():
  x, by = normal(0, 1, 3, 2, 8), positions.rotation(50.0, 8, np.arange(3)[None])
  order = [0, 2, 4, 6, 1, 3, 5, 7]
  halves = np.asarray(positions.rotate_halves(x[..., order], by))
  pairs = np.asarray(positions.rotate_pairs(x, by))
  np.testing.assert_allclose(pairs[..., order], halves, atol=1e-6)


def test_alibi_slopes_of_powers_of_two_and_of_others():
  want = [2.0**-i for i in range(1, 9)]
  assert positions.alibi_slopes(8).tolist() == want
  more = [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]
  np.testing.assert_allclose(positions.alibi_slopes(12), want + more)


def test_buckets_are_exact_near_and_logarithmic_far():
  found = positions.buckets(300, 32)
  assert found[0, :8].tolist() == [0, 17, 18, 19, 20, 21, 22, 23]
  assert found[:8, 0].tolist() == list(range(8))
  # 8 + 8 log(r / 8) / log(16), for r = 8, 16, 32, 64, and from 128 on the last
  assert found[[8, 16, 32, 64, 127, 128, 299], 0].tolist() == [
    8, 10, 12, 14, 15, 15, 15
  ]  # fmt: skip


# --- Attention ---


def some_window(length, packed):
  mask = np.ones((2, length), np.int32)
  mask[1, length // 2 :] = 0
  ids = np.where(np.arange(length) < length // 3, 1, 2)
  ids = (ids * mask).astype(np.int32) if packed else None
  visible = masks.Visible(masks.attention_bias(mask), ids)
  return masks.Window(visible), mask


@pytest.mark.parametrize(
  ("length", "packed"), [(3, False), (97, False), (130, True)]
)
def test_blocks_see_what_a_band_sees(length, packed):
  """Values and gradients, below and above the length of one block."""
  radius = 4
  window, mask = some_window(length, packed)
  qkv = [normal(i, 2, 2, length, 4) for i in range(3)]
  bias = masks.window_bias(window, radius)
  near = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
  assert np.all(np.asarray(bias)[:, :, near > radius] < -1000)
  real = mask[:, None, :, None].astype(np.float32)
  grad = normal(9, *qkv[0].shape) * real

  @jax.jit
  def both(*qkv):
    got, pull = jax.vjp(
      lambda *x: plain.attend_window(*x, window, None, 0.0, radius), *qkv
    )
    want, pull_want = jax.vjp(
      lambda *x: plain.attend(*x, bias, None, 0.0), *qkv
    )
    return (got, *pull(grad)), (want, *pull_want(grad))

  (got, *grads), (want, *wanted) = both(*qkv)
  np.testing.assert_allclose(got * real, want * real, atol=1e-5)
  for a, b in zip(grads, wanted, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_learned_bias_has_the_gradient_of_the_softmax():
  query, key, value = (normal(i, 2, 3, 5, 4) for i in range(3))
  bias = normal(3, 1, 3, 5, 5)

  def by_hand(query, key, value, bias):
    scores = jnp.einsum("bnqh,bnkh->bnqk", query, key) / 2.0
    probs = jax.nn.softmax(scores + jnp.broadcast_to(bias, scores.shape))
    return jnp.einsum("bnqk,bnkh->bnqh", probs, value)

  def ours(*args):
    return plain.attend_biased(*args, None, 0.0)

  got, pull = jax.vjp(ours, query, key, value, bias)
  want, pull_want = jax.vjp(by_hand, query, key, value, bias)
  np.testing.assert_allclose(got, want, atol=1e-5)
  grad = normal(4, *want.shape)
  for a, b in zip(pull(grad), pull_want(grad), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def random_params(config, **inputs):
  """Returns an encoder, random parameters and a row of 7 tokens."""
  model = encoder.Encoder(config)
  ids = np.arange(7, dtype=np.int32)[None] + 3
  shapes = jax.eval_shape(model.init, jax.random.key(0), ids, ids > 0, ids * 0)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.2, shapes
  )
  return model, params, ids


@pytest.mark.parametrize("attention", ["plain", "fused", "fused_qkv"])
def test_heads_that_share_keys_are_heads_with_copies_of_them(attention):
  """Also through the flat form in which gradients are taken."""
  changes = {
    "hidden_size": 128, "num_heads": 4, "attention_positions": "rope",
    "num_layers": 1, "attention": attention, "attention_dropout_rate": 0.0,
    "max_len": 128,
  }  # fmt: skip
  config = make_config(**changes, num_kv_heads=2)
  model, params, ids = random_params(config)
  ids = np.resize(ids, (1, 128)).astype(np.int32)
  flat = param_trees.flatten(params["params"])
  key = "layer_0/attention/key/kernel"
  assert flat[key].shape == (128, 2, 32)
  copied = {
    path: np.repeat(x, 2, -2) if re.search(r"/(key|value)/", path) else x
    for path, x in flat.items()
  }
  for join in (False, True):
    matrices = param_trees.flatten_heads(params, join)
    back = param_trees.unflatten_heads(matrices, 4, key_heads=2)
    jax.tree.map(np.testing.assert_array_equal, back, params)
  full = encoder.Encoder(make_config(**changes | {"attention": "plain"}))
  rows = (ids, np.ones_like(ids), np.zeros_like(ids))
  got, _ = model.apply(params, *rows)
  want, _ = full.apply({"params": param_trees.nest(copied)}, *rows)
  np.testing.assert_allclose(got, want, atol=2e-5)


def test_a_convolution_sees_its_own_sequence_alone():
  """By hand: three taps in two groups, zeros beyond each sequence's ends."""
  config = make_config(
    conv_size=3, conv_groups=2, conv_act="relu", dropout_rate=0.0
  )
  module = encoder.Convolution(config)
  x, added = normal(0, 1, 6, 8), normal(1, 1, 6, 8)
  ids = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
  kernel, bias = normal(2, 3, 4, 8), normal(3, 8)
  params = {
    "kernel": kernel, "bias": bias,
    "norm": {"scale": np.ones(8), "bias": np.zeros(8)},
  }  # fmt: skip
  got = module.apply({"params": params}, x, added, ids, True)
  for first, last in ((0, 3), (3, 5)):
    part = np.pad(x[0, first:last], ((1, 1), (0, 0)))
    for at in range(last - first):
      near = part[at : at + 3].reshape(3, 2, 4)
      y = np.concatenate(
        [
          np.einsum("kd,kdo->o", near[:, g], kernel[:, :, 4 * g : 4 * g + 4])
          for g in (0, 1)
        ]
      )
      y = added[0, first + at] + np.maximum(y + bias, 0)
      want = (y - y.mean()) / y.std()
      np.testing.assert_allclose(got[0, first + at], want, atol=1e-5)


def test_the_only_layer_computes_some_positions_behind_the_convolution():
  config = make_config(conv_size=3, num_layers=1, dropout_rate=0.0)
  model, params, ids = random_params(config)
  rows = (ids, np.ones_like(ids), np.zeros_like(ids))
  only = np.array([[5, 2]], np.int32)
  want, _ = model.apply(params, *rows)
  got, _ = model.apply(params, *rows, only_positions=only)
  np.testing.assert_allclose(got[0], want[0, only[0]], atol=1e-5)


# --- Plans of layers ---


def test_every_third_layer_is_full_and_the_first_lacks_a_norm():
  config = make_config(
    attention_pattern="local", norm_place="pre", first_norm=False
  )
  assert [p.is_local for p in config.layer_plans] == [False, True, True, False]
  has_norm = [p.has_attention_norm for p in config.layer_plans]
  assert has_norm == [False, True, True, True]


def test_groups_of_consecutive_layers_share_parameters():
  params = [p.params for p in make_config(layer_groups=2).layer_plans]
  assert params == [0, 0, 1, 1]
  assert [p.params for p in make_config().layer_plans] == [0, 1, 2, 3]
  shapes = heads.param_shapes(
    {"family": "albert", **_sizes(), "layer_groups": 2}, 3
  )
  found = {path.split("/")[1] for path in shapes if "/layer_" in path}
  assert found == {"layer_0", "layer_1"}


def test_a_model_without_pooler_has_no_head_that_reads_it():
  model = {"family": "bert", **_sizes(), "pooler": False}
  for role in ("sequence", "token"):
    shapes = heads.param_shapes(model, 3, role)
    assert not any("pooler" in path for path in shapes)
    assert ("task/kernel" in shapes) == (role == "token")
  config = model_config.ModelConfig(**model)
  heads.check_role(config, "token")
  with pytest.raises(ValueError, match="pooler=False.*sequence.*bert"):
    heads.check_role(config, "sequence")


def _sizes():
  return {
    "vocab_size": 40, "num_layers": 4, "hidden_size": 8, "num_heads": 2,
    "mlp_dim": 16, "max_len": 64, "type_vocab_size": 2, "hidden_act": "relu",
    "layer_norm_eps": 1e-5,
  }  # fmt: skip


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"first_norm": False}, "first_norm.*norm_place=pre"),
    ({"layer_groups": 5}, "layer_groups=5.*num_layers=4"),
    ({"scan_layers": True, "layer_groups": 1}, "scan_layers"),
    ({"scan_layers": True, "attention_pattern": "local"}, "scan_layers"),
    ({"relative_buckets": 5}, "relative_buckets=5"),
    ({"dropout_places": ("head",)}, "dropout_places has head"),
    ({"attention_positions": "rope", "num_heads": 8}, "rotates pairs"),
    ({"num_kv_heads": 3, "num_heads": 4}, "num_kv_heads=3.*num_heads=4"),
    ({"conv_size": 2}, "conv_size=2 is even"),
    ({"conv_size": 3, "conv_groups": 3}, "conv_groups=3.*hidden_size=8"),
    ({"conv_size": 3, "scan_layers": True}, "scan_layers.*conv_size"),
    ({"norm": "batch_norm"}, "model.norm='batch_norm'"),
    ({"mlm_head": "bare", "embedding_size": 4}, "embedding_size=4.*=bare"),
    (
      {"attention_positions": "t5", "relative_distance": 8},
      "relative_distance=8.*more than 8",
    ),
  ],
)
def test_switches_that_do_not_fit_each_other_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    make_config(**changes)


@pytest.mark.parametrize(
  ("attention", "changes"),
  [
    ("fused", {"attention_pattern": "local"}),
    ("splash", {"attention_positions": "alibi"}),
    ("cudnn", {"attention_positions": "alibi"}),
    ("fused", {"attention_positions": "t5"}),
  ],
)
def test_a_program_that_lacks_a_switch_is_refused(attention, changes):
  config = make_config(
    attention=attention, attention_dropout_rate=0.0, **changes
  )
  with pytest.raises(
    ValueError, match=rf"model\.attention={attention} .*plain"
  ):
    programs.check(config, 128)


# --- Costs and presets ---


def test_a_local_layer_costs_what_its_window_costs():
  model = settings.make_config().model
  model.update(attention_pattern="local", local_radius=64, num_layers=4)
  full = settings.make_config().model
  full.update(num_layers=4)
  saved = flops.encoder_flops(full, 1, 4096) - flops.encoder_flops(
    model, 1, 4096
  )
  # The 64 tokens at either end see 1 to 64 tokens fewer than 129.
  seen = 4096 * 129 - 2 * sum(range(1, 65))
  assert saved == 2 * 4 * 768 * (4096**2 - seen)
  assert flops.encoder_flops(full, 1, 64) == flops.encoder_flops(model, 1, 64)


def test_shared_keys_and_a_convolution_cost_what_their_kernels_have():
  model = settings.make_config().model
  before = flops.encoder_flops(model, 2, 128)
  size = settings.num_parameters(model)
  model.num_kv_heads = 4
  saved = 12 * 2 * 768 * (768 - 256)
  assert before - flops.encoder_flops(model, 2, 128) == 2 * 128 * 2 * saved
  assert size - settings.num_parameters(model) == saved
  model.update(num_kv_heads=0, conv_size=3, conv_groups=2)
  more = flops.encoder_flops(model, 2, 128) - before
  assert more == 2 * 128 * 2 * (3 * 768 * 384)
  assert settings.num_parameters(model) - size == 3 * 768 * 384


def test_a_preset_sets_family_switches_and_objective():
  config = pretrain.get_config("family=modernbert,size=ettin-17m")
  model = model_config.ModelConfig.from_config(config.model)
  assert (model.family, model.hidden_size) == ("modernbert", 256)
  assert (model.norm_place, model.attention_pattern) == ("pre", "local")
  assert (config.objective, config.data.pairing) == ("mlm", "full_sentences")
  assert pretrain.get_config("family=albert").objective == "mlm_nsp"
  with pytest.raises(ValueError, match="modernbert"):
    pretrain.get_config("family=modernbrt")
  with pytest.raises(ValueError, match="ettin-17m"):
    pretrain.get_config("family=modernbert,size=ettin-17")


@pytest.mark.parametrize(
  ("size", "count"), [("610m", 755_625_600), ("2.1b", 2_403_092_736)]
)
def test_eurobert_has_the_parameters_of_the_released_models(size, count):
  config = pretrain.get_config(f"family=eurobert,size={size}")
  config.model.vocab_size = 128256
  model = model_config.ModelConfig.from_config(config.model)
  shapes = heads.param_shapes(dataclasses.asdict(model), 2)
  sizes = {path: math.prod(shape) for path, shape in shapes.items()}
  own = [n for path, n in sizes.items() if not path.startswith("task/")]
  assert sum(own) == count
