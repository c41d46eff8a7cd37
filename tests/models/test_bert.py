"""Tests of models/bert.py."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest
import scipy.special

from bert_jax.models import config as model_config
from bert_jax.models import encoder as encoders
from bert_jax.models import heads
from bert_jax.models import layers
from bert_jax.models import params as param_trees
from bert_jax.runtime import sharding
from configs import base
from tests.models import make_golden
from tests.support import breadth
from tests.support import layer_stacks
from tests.support.bert_shapes import bert_shapes

ACTS = ("gelu_erf", "gelu_tanh")


def _config(**changes):
  config = base.get_config().model
  config.update(
    {
      "vocab_size": 120,
      "hidden_size": 32,
      "num_layers": 2,
      "num_heads": 4,
      "mlp_dim": 64,
      "max_len": 16,
    }
    | changes
  )
  return model_config.ModelConfig.from_config(config)


def _batch(batch_size=3, length=12, num_masked=4):
  batch = make_golden.make_batch(120, batch_size, length, num_masked)
  return {name: jnp.asarray(value) for name, value in batch.items()}


def _inputs(batch):
  return {k: v for k, v in batch.items() if k != "masked_positions"}


@functools.cache
def _params(seed=0):
  """Parameters of the unrolled model, none of them at its initial value."""
  params = _init(_config(), jax.random.key(seed))
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: x + _noise(rng, x.shape, 0.05), params)


def _noise(rng, shape, stddev=1.0):
  return jnp.asarray(rng.normal(0, stddev, shape), jnp.float32)


@functools.partial(
  jax.jit, static_argnames=("config", "deterministic", "return_layers")
)
def _run_encoder(params, config, batch, rngs=None, **kwargs):
  return encoders.Encoder(config).apply(
    {"params": params}, **batch, rngs=rngs, **kwargs
  )


def _encode(batch, params=None, config=None, **kwargs):
  params = _params() if params is None else params
  config = _config() if config is None else config
  return _run_encoder(params["encoder"], config, batch, **kwargs)


@functools.partial(jax.jit, static_argnums=1)
def _logits(params, config, batch):
  return heads.PreTrainingModel(config).apply({"params": params}, **batch)


@functools.partial(jax.jit, static_argnums=0)
def _init(config, rng):
  model = heads.PreTrainingModel(config)
  return model.init(rng, **_batch())["params"]


def _assert_equal_to_reference(config, params, batch, outputs):
  hidden, pooled, layers = _encode(
    _inputs(batch), params, config, return_layers=True
  )
  mlm, nsp = _logits(params, config, batch)
  np.testing.assert_array_equal(hidden, layers[-1])
  close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=0)
  close(layers, outputs["layers"])
  close(pooled, outputs["pooled"])
  close(mlm, outputs["mlm_logits"])
  close(nsp, outputs["nsp_logits"])


# --- against the reference ----------------------------------------------------


@pytest.mark.parametrize(
  ("hidden_act", "scan_layers"),
  breadth.slow_but(
    list(itertools.product(ACTS, [False, True])),
    lambda act, scan_layers: scan_layers == (act == "gelu_tanh"),
  ),
)
def test_golden_outputs_of_the_reference_are_reproduced(
  hidden_act, scan_layers
):
  with np.load(make_golden.PATH) as arrays:
    arrays = dict(arrays)
  params = make_golden.unflatten(arrays, "params")
  batch = make_golden.unflatten(arrays, "batch")
  outputs = make_golden.unflatten(arrays, hidden_act)
  if scan_layers:
    params = layer_stacks.stack_layers(params)
  config = _config(hidden_act=hidden_act, scan_layers=scan_layers)
  _assert_equal_to_reference(config, params, batch, outputs)


def test_the_two_forms_of_gelu_are_told_apart_by_the_golden_outputs():
  with np.load(make_golden.PATH) as arrays:
    erf, tanh = (arrays[f"{act}/layers"] for act in ACTS)
  assert np.abs(erf - tanh).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("hidden_act", ACTS)
@pytest.mark.parametrize(("num_layers", "hidden_size"), [(2, 64), (4, 256)])
def test_reference_is_reproduced(num_layers, hidden_size, hidden_act):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  sizes = make_golden.TINY | {
    "vocab_size": 1000,
    "num_hidden_layers": num_layers,
    "hidden_size": hidden_size,
    "intermediate_size": 4 * hidden_size,
    "max_position_embeddings": 64,
  }
  batch = make_golden.make_batch(1000, 4, 48, 7)
  params, outputs = make_golden.run_reference(sizes, hidden_act, batch, 0.05)
  config = _config(
    vocab_size=1000,
    num_layers=num_layers,
    hidden_size=hidden_size,
    mlp_dim=4 * hidden_size,
    max_len=64,
    hidden_act=hidden_act,
  )
  _assert_equal_to_reference(config, params, batch, outputs)


# --- invariances --------------------------------------------------------------


def test_padding_does_not_change_real_tokens():
  batch = _inputs(_batch(2, 8))
  batch["input_mask"] = jnp.ones_like(batch["input_mask"])
  padded = {k: jnp.pad(v, ((0, 0), (0, 5))) for k, v in batch.items()}
  padded["input_ids"] = padded["input_ids"].at[:, 8:].set(99)
  short, long = _encode(batch), _encode(padded)
  np.testing.assert_allclose(long[0][:, :8], short[0], atol=2e-6)
  np.testing.assert_allclose(long[1], short[1], atol=2e-6)


def test_rows_do_not_see_each_other():
  batch, order = _inputs(_batch()), jnp.array([2, 0, 1])
  hidden, pooled = _encode(batch)
  other = _encode({k: v[order] for k, v in batch.items()})
  np.testing.assert_allclose(other[0], hidden[order], atol=2e-6)
  np.testing.assert_allclose(other[1], pooled[order], atol=2e-6)


def _packed():
  """Returns two rows of real tokens, and one row that holds both and a pad."""
  first = {k: v[:1, :7] for k, v in _inputs(_batch()).items()}
  second = {k: v[:1, 7:12] for k, v in _inputs(_batch()).items()}
  row = {
    key: jnp.pad(
      jnp.concatenate([first[key], second[key]], axis=1), ((0, 0), (0, 2))
    )
    for key in first
  }
  row["positions"] = jnp.array([[*range(7), *range(5), 0, 0]])
  row["sequence_ids"] = jnp.array([[1] * 7 + [2] * 5 + [0, 0]])
  return first, second, row


@pytest.mark.parametrize("scan_layers", [False, True])
def test_packed_sequences_are_encoded_as_they_are_apart(scan_layers):
  first, second, row = _packed()
  config, params = _config(scan_layers=scan_layers), _params()
  if scan_layers:
    params = layer_stacks.stack_layers(params)
  hidden, _ = _encode(row, params, config)
  apart = [_encode(x, params, config)[0] for x in (first, second)]
  np.testing.assert_allclose(
    hidden[:, :12], jnp.concatenate(apart, axis=1), atol=2e-6
  )


def test_logits_of_packed_sequences_are_those_apart():
  first, second, row = _packed()

  def logits(batch, positions):
    batch = batch | {"masked_positions": jnp.array([positions])}
    return _logits(_params(), _config(), batch)[0]

  np.testing.assert_allclose(
    logits(row, [2, 6, 7, 10]),
    jnp.concatenate([logits(first, [2, 6]), logits(second, [0, 3])], axis=1),
    atol=1e-5,
  )


def test_fully_padded_row_is_finite_and_so_is_its_gradient():
  batch = _inputs(_batch())
  batch["input_mask"] = batch["input_mask"].at[1].set(0)
  hidden, pooled = _encode(batch)
  assert np.all(np.isfinite(hidden)) and np.all(np.isfinite(pooled))
  grads = jax.jit(jax.grad(lambda p: _encode(batch, p)[0].sum()))(_params())
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


# --- forms of the same model --------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def _loss_and_gradient(config, params, batch, rng=None):
  return jax.value_and_grad(_loss, 1)(config, params, batch, rng)


def _loss(config, params, batch, rng=None):
  mlm, nsp = heads.PreTrainingModel(config).apply(
    {"params": params},
    **batch,
    deterministic=rng is None,
    rngs=None if rng is None else {"dropout": rng},
  )
  return jax.nn.logsumexp(mlm) + jnp.sum(nsp**2)


def test_stacking_and_unstacking_are_inverse():
  params = _params()
  stacked = layer_stacks.stack_layers(params)
  assert "layer_0" not in stacked["encoder"]
  for leaf in jax.tree.leaves(stacked["encoder"]["layers"]):
    assert leaf.shape[0] == 2
  again = layer_stacks.unstack_layers(stacked)
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_layers_are_stacked_in_the_order_of_their_numbers():
  flat = {f"layer_{i}/bias": np.full(1, i) for i in (10, 2, 0, 1)}
  stacked = param_trees.stack(flat)["layers/bias"]
  assert stacked.ravel().tolist() == [0, 1, 2, 10]


@pytest.mark.slow
@pytest.mark.parametrize("remat", list(encoders.REMATS))
@pytest.mark.parametrize("scan_layers", [False, True])
def test_scan_and_remat_change_neither_loss_nor_gradient(scan_layers, remat):
  batch, params = _batch(), _params()
  want, want_grads = _loss_and_gradient(_config(), params, batch)
  config = _config(scan_layers=scan_layers, remat=remat)
  if scan_layers:
    params = layer_stacks.stack_layers(params)
  got, grads = _loss_and_gradient(config, params, batch)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  if scan_layers:
    grads = layer_stacks.unstack_layers(grads)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=2e-6, rtol=1e-4),
    grads,
    want_grads,
  )


@pytest.mark.parametrize(
  "scan_layers", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_remat_repeats_the_dropout_masks(scan_layers):
  batch, params = _batch(), _params()
  if scan_layers:
    params = layer_stacks.stack_layers(params)
  results = [
    _loss_and_gradient(
      _config(scan_layers=scan_layers, remat=remat),
      params,
      batch,
      jax.random.key(7),
    )
    for remat in ("none", "full")
  ]
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=2e-6, rtol=1e-4),
    *results,
  )


def test_dropout_differs_from_layer_to_layer_when_scanned():
  # Two equal layers, applied to the same vectors, must not drop the same.
  config = _config(
    scan_layers=True, num_layers=6, dropout_rate=0.5, attention_dropout_rate=0.0
  )
  model, batch = encoders.Encoder(config), _inputs(_batch())
  params = jax.jit(model.init)(jax.random.key(0), **batch)["params"]
  zeros = jax.tree.map(jnp.zeros_like, params["layers"])
  zeros["mlp"]["out"]["bias"] += 1.0  # a layer only adds dropout(1)
  zeros["mlp_norm"]["scale"] += 1.0
  _, _, layers = _run_encoder(
    params | {"layers": zeros},
    config,
    batch,
    rngs={"dropout": jax.random.key(1)},
    deterministic=False,
    return_layers=True,
  )
  masks = np.asarray(layers[1:] > 0)
  for i in range(6):
    for j in range(i):
      assert 0.4 < np.mean(masks[i] == masks[j]) < 0.6


def test_only_positions_are_those_of_the_whole():
  batch = _batch()
  hidden, pooled = _encode(_inputs(batch))
  positions = batch["masked_positions"]
  some, same = _encode(_inputs(batch), only_positions=positions)
  want = jnp.take_along_axis(hidden, positions[:, :, None], axis=1)
  np.testing.assert_allclose(some, want, atol=2e-6)
  np.testing.assert_allclose(same, pooled, atol=2e-6)


def test_parameter_tree_is_the_documented_one():
  for scan_layers in (False, True):
    config = _config(
      hidden_size=8,
      num_heads=2,
      mlp_dim=16,
      vocab_size=32,
      max_len=12,
      scan_layers=scan_layers,
    )
    model = heads.PreTrainingModel(config)
    params = jax.eval_shape(model.init, jax.random.key(0), **_batch())
    shapes = jax.tree.map(jnp.shape, params["params"])
    assert shapes == bert_shapes(scan_layers)


@pytest.mark.parametrize(
  "scan_layers", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_sharding_changes_nothing(scan_layers):
  batch, params = _batch(8), _params()
  config = _config(scan_layers=scan_layers)
  if scan_layers:
    params = layer_stacks.stack_layers(params)
  rng = jax.random.key(3)
  want = _loss_and_gradient(config, params, batch, rng)
  mesh = sharding.make_mesh(2, 2, 2)
  place = sharding.state_sharding(params, mesh, base.SHARDING_RULES)
  with jax.set_mesh(mesh):
    got = _loss_and_gradient(
      config,
      jax.device_put(params, place),
      jax.device_put(batch, sharding.batch_sharding(mesh)),
      rng,
    )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=5e-6, rtol=1e-4),
    got,
    want,
  )


# --- pieces -------------------------------------------------------------------


@pytest.mark.parametrize("hidden_act", ACTS)
def test_gelu_is_that_of_jax_and_so_is_its_slope(hidden_act):
  gelu = layers.ACTIVATIONS[hidden_act]
  x = jnp.linspace(-9, 9, 2001)
  plain = functools.partial(jax.nn.gelu, approximate=hidden_act == "gelu_tanh")
  np.testing.assert_allclose(gelu(x), plain(x), atol=2e-6)
  slope = jax.vmap(jax.grad(gelu))(x)
  np.testing.assert_allclose(slope, jax.vmap(jax.grad(plain))(x), atol=1e-5)


def test_gelu_erf_is_x_times_the_normal_distribution():
  x = np.linspace(-6, 6, 101)
  want = x * scipy.special.ndtr(x)
  got = layers.ACTIVATIONS["gelu_erf"](jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(got, want, atol=1e-6)


def _norm_inputs():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(3.0, 2.0, (4, 5, 16)), jnp.float32)
  return x, jnp.asarray(rng.normal(size=(2, 16)), jnp.float32)


def test_layer_norm_by_hand():
  x, (scale, bias) = _norm_inputs()
  wide = np.asarray(x, np.float64)
  want = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
  want = want * np.asarray(scale) + np.asarray(bias)
  got = layers.layer_norm(x, scale, bias, 1e-12)
  np.testing.assert_allclose(got, want, atol=5e-6)


def test_gradient_of_layer_norm_against_finite_differences():
  x, (scale, bias) = _norm_inputs()
  check_grads(
    lambda *args: layers.layer_norm(*args, 1e-12),
    (x, scale, bias),
    order=1,
    modes=["rev"],
    rtol=2e-2,
    atol=2e-2,
  )


def test_layer_norm_of_bfloat16_has_float32_statistics():
  # Around 256, bfloat16 has steps of 2: a mean in bfloat16 would be far off.
  rng = np.random.default_rng(0)
  x = jnp.asarray(256 + 8 * rng.normal(size=(64, 512)), jnp.bfloat16)
  got = layers.layer_norm(x, jnp.ones(512), jnp.zeros(512), 1e-12)
  assert got.dtype == jnp.bfloat16
  want = layers.layer_norm(
    x.astype(jnp.float32), jnp.ones(512), jnp.zeros(512), 1e-12
  )
  # One step of bfloat16, where a tie is rounded the other way.
  np.testing.assert_allclose(
    got.astype(jnp.float32), want, rtol=2**-8, atol=1e-4
  )


def test_bfloat16_model_stays_close_and_its_gradients_are_stored_wide():
  batch, config = _batch(), _config(dtype="bfloat16")
  want = _logits(_params(), _config(), batch)
  got = _logits(_params(), config, batch)
  for a, b in zip(got, want, strict=True):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=0.15)
  _, grads = _loss_and_gradient(config, _params(), batch)
  assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_gradient_of_the_model_against_finite_differences():
  batch = _batch(2, 5, 2)
  config = _config()
  rng = jax.random.key(1)  # the mask is held: dropout is differentiable
  params = _params()
  _, grads = _loss_and_gradient(config, params, batch, rng)
  loss = jax.jit(_loss, static_argnums=0)
  for seed in range(3):
    draw = np.random.default_rng(seed)
    way = jax.tree.map(lambda x, draw=draw: _noise(draw, x.shape), params)

    def moved(step, way=way):
      shifted = jax.tree.map(lambda x, y: x + step * y, params, way)
      return float(loss(config, shifted, batch, rng))

    numeric = (moved(1e-3) - moved(-1e-3)) / 2e-3
    exact = sum(
      np.vdot(g, w)
      for g, w in zip(jax.tree.leaves(grads), jax.tree.leaves(way), strict=True)
    )
    np.testing.assert_allclose(numeric, exact, rtol=2e-2, atol=2e-2)


# --- initialisation -----------------------------------------------------------


@pytest.mark.parametrize("scan_layers", [False, True])
def test_kernels_start_truncated_at_two_sigma_and_not_rescaled(scan_layers):
  config = _config(
    hidden_size=128, mlp_dim=512, vocab_size=2000, scan_layers=scan_layers
  )
  params = _init(config, jax.random.key(0))
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = path[-1].key
    if name in ("kernel", "embedding"):
      assert np.abs(leaf).max() <= 0.04
      if leaf.size > 10_000:
        # The standard deviation of a normal cut at two of them is .8796 of it.
        np.testing.assert_allclose(np.std(leaf), 0.01759, rtol=0.02)
    else:
      assert np.all(np.asarray(leaf) == (1.0 if name == "scale" else 0.0))


def test_layers_start_different_from_each_other():
  params = _init(_config(scan_layers=True), jax.random.key(0))
  kernel = params["encoder"]["layers"]["mlp"]["in"]["kernel"]
  assert abs(np.corrcoef(kernel[0].ravel(), kernel[1].ravel())[0, 1]) < 0.1


# --- errors -------------------------------------------------------------------


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_heads": 5}, r"hidden_size=32 is not divisible .* use num_heads=4"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu' is unknown; choose .*gelu_erf"),
    ({"dtype": "float8"}, "dtype='float8' is unknown; choose one of float32"),
    ({"param_dtype": "int8"}, "param_dtype='int8' is unknown"),
    ({"remat": "some"}, "remat='some' is unknown; choose one of none"),
    ({"attention": "flash"}, "attention='flash' is unknown; choose one of"),
    ({"num_layers": 0}, "num_layers=0 is not a positive integer"),
    ({"dropout_rate": 1.0}, "dropout_rate=1.0 is not a probability below 1"),
    ({"layer_norm_eps": 0.0}, "layer_norm_eps=0.0 is not positive"),
  ],
)
def test_impossible_configs_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    _config(**changes)


def test_missing_and_unknown_keys_are_named():
  config = dict(base.get_config().model)
  del config["num_layers"]
  config["num_layer"] = 2
  with pytest.raises(ValueError, match=r"lacks \['num_layers'\] .*'num_layer'"):
    model_config.ModelConfig.from_config(config)


def test_input_longer_than_the_position_table_is_refused():
  batch = _inputs(make_golden.make_batch(120, 1, 17, 1))
  with pytest.raises(ValueError, match="length 17, but model.max_len=16"):
    _encode(batch)


def test_inputs_of_different_shapes_are_refused():
  batch = _inputs(_batch())
  batch["segment_ids"] = batch["segment_ids"][:, :5]
  with pytest.raises(ValueError, match=r"segment_ids has shape \(3, 5\), but"):
    _encode(batch)


def test_all_layers_of_some_positions_is_refused():
  batch = _batch()
  with pytest.raises(ValueError, match="leave one of them out"):
    _encode(
      _inputs(batch),
      return_layers=True,
      only_positions=batch["masked_positions"],
    )


def test_layer_norm_of_float16_keeps_small_differences_of_large_numbers():
  x = jnp.tile(jnp.asarray([100, 100.0625], jnp.float16), 512)[None]
  got = layers.layer_norm(x, jnp.ones(1024), jnp.zeros(1024), 1e-12)
  np.testing.assert_allclose(got, jnp.tile(jnp.asarray([-1.0, 1.0]), 512)[None])


def test_gradients_of_a_frequent_word_do_not_stop_growing_in_bfloat16():
  table, ids = jnp.ones((3, 4)), jnp.ones((100, 50), jnp.int32)

  def total(table):
    return layers.look_up(table, ids, jnp.bfloat16).astype(jnp.float32).sum()

  grad = jax.grad(total)(table)
  np.testing.assert_array_equal(grad, [[0] * 4, [5000] * 4, [0] * 4])


@pytest.mark.parametrize(
  ("packed", "scan_layers"),
  breadth.slow_but(
    itertools.product((False, True), (False, True)),
    lambda packed, scan_layers: packed and not scan_layers,
  ),
)
def test_fused_attention_trains_as_plain_attention_does(packed, scan_layers):
  shape = {"hidden_size": 128, "max_len": 128, "dropout_rate": 0.1}
  config = _config(**shape, scan_layers=scan_layers)
  batch = _batch(length=128)
  rng = np.random.default_rng(0)
  kwargs = {}
  if packed:
    ids = np.sort(rng.integers(0, 4, (3, 128)))[:, ::-1].copy()
    batch["input_mask"] = jnp.asarray(ids > 0, jnp.int32)
    kwargs["sequence_ids"] = jnp.asarray(ids, jnp.int32)
  params = heads.PreTrainingModel(config).init(jax.random.key(1), **batch)

  @functools.partial(jax.jit, static_argnames="attention")
  def run(params, attention):
    def loss(params):
      model = heads.PreTrainingModel(
        dataclasses.replace(config, attention=attention)
      )
      mlm, nsp = model.apply(
        params,
        **batch,
        **kwargs,
        deterministic=False,
        rngs={"dropout": jax.random.key(2)},
      )
      return jnp.mean(mlm**2) + jnp.mean(nsp**2)

    return jax.value_and_grad(loss)(params)

  wanted, found = run(params, "plain"), run(params, "fused")
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)
