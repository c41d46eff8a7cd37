"""Tests of optim.py: trajectories against plain numpy, one float at a time."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.runtime import settings
from bert_jax.training import optim
from tests.support.bert_shapes import bert_shapes

NUM_STEPS = 3
SHAPES = {
  "dense": {"kernel": (3, 4), "bias": (4,)},
  "norm": {"scale": (4,), "bias": (4,)},
  "word": {"embedding": (5, 3)},
}
DECAYED = {"dense/kernel", "word/embedding"}


def _config(**changes):
  values = dict(
    name="bert_adam",
    learning_rate=0.1,
    schedule="constant",
    warmup_rate=0.0,
    cooldown_rate=0.0,
    weight_decay=0.3,
    b1=0.9,
    b2=0.99,
    eps=1e-3,
    clip_norm=0.0,
  )
  unknown = set(changes) - set(values)
  assert not unknown, unknown
  return types.SimpleNamespace(**{**values, **changes})


def _random(shapes, seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: scale * rng.normal(size=s).astype(np.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def _flat(tree):
  paths, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(p, simple=True, separator="/"): np.float64(x)
    for p, x in paths
  }


def _run(config, params, grads, total_steps=10):
  tx, _ = optim.make_optimizer(config, total_steps)
  params = jax.tree.map(jnp.asarray, params)
  state = tx.init(params)

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for g in grads:
    params, state = step(params, state, jax.tree.map(jnp.asarray, g))
  return params, state


def _by_hand(config, params, grads, rates):
  """Every optimizer in float64, one entry after the other."""
  params = _flat(params)
  mu = {k: np.zeros_like(p) for k, p in params.items()}
  nu = {k: np.zeros_like(p) for k, p in params.items()}
  for t, (tree, rate) in enumerate(zip(grads, rates, strict=True), start=1):
    grad = _flat(tree)
    norm = math.sqrt(sum(float(x) ** 2 for g in grad.values() for x in g.flat))
    factor = 1.0
    if config.clip_norm and norm > config.clip_norm:
      factor = config.clip_norm / norm
    for key, p in params.items():
      u, squares = np.zeros_like(p), np.zeros_like(p)
      for i in np.ndindex(p.shape):
        g = grad[key][i] * factor
        if config.name == "muon":
          mu[key][i] = config.b1 * mu[key][i] + (1 - config.b1) * g
          nu[key][i] = config.b2 * nu[key][i] + (1 - config.b2) * g**2
          m = config.b1 * mu[key][i] / (1 - config.b1 ** (t + 1))
          m += (1 - config.b1) * g / (1 - config.b1**t)
          v = math.sqrt(nu[key][i] / (1 - config.b2**t))
          u[i] = m if key == "dense/kernel" else m / (v + config.eps)
          continue
        if config.name == "lion":
          mixed = config.b1 * mu[key][i] + (1 - config.b1) * g
          mu[key][i] = config.b2 * mu[key][i] + (1 - config.b2) * g
          u[i] = math.copysign(1, mixed)
          if key in DECAYED:
            u[i] += config.weight_decay * p[i]
          continue
        m = mu[key][i] = config.b1 * mu[key][i] + (1 - config.b1) * g
        v = nu[key][i] = config.b2 * nu[key][i] + (1 - config.b2) * g**2
        if config.name != "bert_adam":
          m = m / (1 - config.b1**t)
          v = v / (1 - config.b2**t)
        squares[i] = g**2 / max(v, config.eps**2)
        u[i] = m / (math.sqrt(v) + config.eps)
        if key in DECAYED:
          u[i] += config.weight_decay * p[i]
      if config.name == "muon":
        if key == "dense/kernel":
          u = 0.2 * math.sqrt(max(p.shape)) * _orthogonal(u, config.eps)
        if key in DECAYED:
          u = u + config.weight_decay * p
      if config.name == "lamb" and key in DECAYED:
        p_norm = math.sqrt(sum(x**2 for x in p.flat))
        u_norm = math.sqrt(sum(x**2 for x in u.flat))
        if p_norm > 0 and u_norm > 0:
          u *= p_norm / u_norm
      if config.name == "stable_adamw":
        u /= max(1.0, math.sqrt(np.mean(squares)))
      params[key] = p - rate * u
  return params


def _orthogonal(x, eps):
  """Five iterations of Newton and Schulz, with the coefficients of Muon."""
  x = x / (np.linalg.norm(x) + eps)
  for _ in range(5):
    square = x @ x.T
    x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
  return x


def _assert_close(got, want, **tolerance):
  got = _flat(got)
  assert got.keys() == want.keys()
  for key in want:
    np.testing.assert_allclose(got[key], want[key], err_msg=key, **tolerance)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_three_steps_by_hand(name, clip_norm):
  config = _config(name=name, clip_norm=clip_norm)
  params = _random(SHAPES, seed=0)
  grads = [_random(SHAPES, seed=i + 1) for i in range(NUM_STEPS)]
  got, _ = _run(config, params, grads)
  want = _by_hand(config, params, grads, [config.learning_rate] * NUM_STEPS)
  _assert_close(got, want, rtol=2e-5, atol=1e-6)


def test_three_steps_by_hand_with_the_warm_up_of_bert():
  config = _config(schedule="bert", warmup_rate=0.2)
  params = _random(SHAPES, seed=0)
  grads = [_random(SHAPES, seed=i + 1) for i in range(NUM_STEPS)]
  got, _ = _run(config, params, grads, total_steps=10)
  want = _by_hand(config, params, grads, [0.0, 0.05, 0.08])
  _assert_close(got, want, rtol=2e-5, atol=1e-6)


def test_first_step_of_bert_adam_is_larger_for_want_of_correction():
  params = {"kernel": jnp.zeros([1])}
  grads = [{"kernel": np.array([5.0], np.float32)}]
  moves = {}
  for name in ("bert_adam", "adamw"):
    config = _config(
      name=name, learning_rate=1.0, b2=0.999, weight_decay=0, eps=1e-9
    )
    moves[name] = -float(_run(config, params, grads)[0]["kernel"][0])
  assert moves["adamw"] == pytest.approx(1, rel=1e-4)
  assert moves["bert_adam"] == pytest.approx(0.1 / 0.001**0.5, rel=1e-4)


def test_learning_rate_zero_at_the_first_step_still_moves_the_moments():
  config = _config(schedule="bert", warmup_rate=0.5)
  params = _random(SHAPES, seed=0)
  got, state = _run(config, params, [_random(SHAPES, seed=1)])
  _assert_close(got, _flat(params), rtol=0)
  mu = next(s.mu for s in state if hasattr(s, "mu"))
  assert all(np.all(m != 0) for m in jax.tree.leaves(mu))


@pytest.mark.parametrize(
  ("name", "want"),
  [
    # Steps 0, 1, 19, 20, 21, 100, 105 of 100, warm-up 20, peak 1.
    ("bert", [0, 0.05, 0.95, 0.8, 0.79, 0, 0]),
    ("linear", [0, 0.05, 0.95, 1, 79 / 80, 0, 0]),
    ("constant", [0, 0.05, 0.95, 1, 1, 1, 1]),
    ("trapezoid", [0, 0.05, 0.95, 1, 1, 0, 0]),
    (
      "cosine",
      [0, 0.05, 0.95, 1, (1 + math.cos(math.pi / 80)) / 2, 0, 0],
    ),
  ],
)
def test_schedule_values(name, want):
  schedule = optim.make_schedule(
    name, 2.0, warmup_steps=20, total_steps=100, cooldown_steps=40
  )
  steps = [0, 1, 19, 20, 21, 100, 105]
  got = [float(schedule(step)) for step in steps]
  np.testing.assert_allclose(got, 2 * np.array(want), atol=1e-6)
  traced = [float(jax.jit(schedule)(jnp.int32(step))) for step in steps]
  np.testing.assert_allclose(traced, got, atol=1e-6)


def test_a_trapezoid_is_flat_and_then_falls_by_the_root_of_the_cool_down():
  schedule = optim.make_schedule("trapezoid", 2.0, 20, 100, cooldown_steps=40)
  got = [float(schedule(step)) for step in (20, 40, 60, 64, 70, 90, 100)]
  shares = [0, 0, 0, 4 / 40, 10 / 40, 30 / 40, 1]
  want = [2 * (1 - math.sqrt(share)) for share in shares]
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_sudden_gradient_moves_stable_adamw_less_than_adamw():
  params = {"kernel": jnp.zeros([3])}
  usual, sudden = np.full(3, 0.01, np.float32), np.full(3, 10.0, np.float32)
  grads = [{"kernel": usual}] * 5 + [{"kernel": sudden}]
  moves = {}
  for name in ("adamw", "stable_adamw"):
    config = _config(name=name, weight_decay=0.0, eps=1e-8, b2=0.999)
    before = _run(config, params, grads[:-1])[0]["kernel"]
    after = _run(config, params, grads)[0]["kernel"]
    moves[name] = float(jnp.abs(after - before)[0])
  # Six corrections of 1: v = 10^2 / 6 or so, so that RMS = sqrt(6).
  assert moves["adamw"] / moves["stable_adamw"] == pytest.approx(6**0.5, 1e-2)


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_no_warm_up_starts_at_the_peak(name):
  schedule = optim.make_schedule(name, 3.0, warmup_steps=0, total_steps=10)
  assert schedule(0) == 3.0


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_warm_up_may_fill_the_run(name):
  schedule = optim.make_schedule(name, 1.0, warmup_steps=4, total_steps=4)
  assert [float(schedule(i)) for i in range(4)] == [0, 0.25, 0.5, 0.75]
  assert np.isfinite(schedule(4))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_decay_leaves_out_norms_and_biases_only(scan_layers):
  mask = _flat(optim.decay_mask(_random(bert_shapes(scan_layers), seed=0)))
  for key, decays in mask.items():
    assert decays == key.endswith(("/kernel", "/embedding")), key
  assert mask["encoder/embeddings/word/embedding"]
  assert not mask["mlm/bias"]
  assert not mask["encoder/embeddings/norm/scale"]


def test_parameters_without_a_gradient_shrink_by_the_decay_alone():
  config = _config(learning_rate=0.5, weight_decay=0.01)
  params = _random(SHAPES, seed=0)
  grads = jax.tree.map(np.zeros_like, params)
  got, _ = _run(config, params, [grads])
  for key, p in _flat(params).items():
    factor = 1 - 0.5 * 0.01 if key in DECAYED else 1
    np.testing.assert_allclose(_flat(got)[key], factor * p, rtol=1e-6)


def _stack(unrolled):
  """layer_0, layer_1 -> layers with a leading axis."""
  encoder = dict(unrolled["encoder"])
  layers = [encoder.pop("layer_0"), encoder.pop("layer_1")]
  encoder["layers"] = jax.tree.map(lambda *x: np.stack(x), *layers)
  return {**unrolled, "encoder": encoder}


def test_muon_brings_each_matrix_close_to_an_orthogonal_one():
  heads = {
    "query": {"kernel": (6, 2, 4), "bias": (2, 4)},
    "out": {"kernel": (2, 4, 6)},
  }
  shapes = {"layer_0": {"attention": heads}, "task": {"kernel": (6, 3)}}
  params = jax.tree.map(np.zeros_like, _random(shapes, seed=0))
  config = _config(name="muon", weight_decay=0.0, learning_rate=1.0, eps=1e-8)
  moved, _ = _run(config, params, [_random(shapes, seed=1)])
  moved = _flat(moved)
  for name in ("query", "out"):
    matrix = moved[f"layer_0/attention/{name}/kernel"]
    matrix = matrix.reshape((6, 8) if name == "query" else (8, 6))
    values = np.linalg.svd(matrix / (0.2 * 8**0.5), compute_uv=False)
    # The iterations leave singular values between about 0.7 and 1.2.
    assert 0.6 < values.min() and values.max() < 1.3
  # What is no matrix of the encoder follows AdamW: steps of about one size.
  for name in ("layer_0/attention/query/bias", "task/kernel"):
    assert np.ptp(np.abs(moved[name])) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_scanned_and_unrolled_layers_train_alike(name):
  config = _config(name=name, clip_norm=1.0)
  params = _random(bert_shapes(False), seed=0)
  # Layers of different size, so that a norm over both would show.
  params["encoder"]["layer_1"] = jax.tree.map(
    lambda x: 10 * x, params["encoder"]["layer_1"]
  )
  grads = [_random(bert_shapes(False), seed=i + 1) for i in range(NUM_STEPS)]
  unrolled, _ = _run(config, params, grads)
  scanned, _ = _run(config, _stack(params), [_stack(g) for g in grads])
  _assert_close(scanned, _flat(_stack(unrolled)), rtol=1e-4, atol=1e-5)


def test_trust_ratio_is_one_where_a_norm_is_zero():
  tx = optim.scale_by_trust_ratio()
  zero, one = jnp.zeros([2, 2]), jnp.ones([2, 2])
  stacked = jnp.stack([zero, 3 * one, one])
  params = {"a": zero, "b": one, "layers": {"kernel": stacked}}
  updates = {"a": one, "b": zero, "layers": {"kernel": jnp.ones([3, 2, 2])}}
  got, _ = tx.update(updates, tx.init(params), params)
  np.testing.assert_array_equal(got["a"], one)
  np.testing.assert_array_equal(got["b"], zero)
  np.testing.assert_allclose(got["layers"]["kernel"][:, 0, 0], [1, 3, 1])


def test_clip_scales_only_what_is_too_long():
  tx = optim.clip_by_global_norm(1.0)
  state = tx.init({})
  long, _ = tx.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, state)
  np.testing.assert_allclose([long["a"][0], long["b"][0]], [0.6, 0.8])
  short = {"a": jnp.array([0.3]), "b": jnp.array([0.4])}
  assert tx.update(short, state)[0] == short
  assert tx.update({"a": jnp.zeros([1])}, state)[0]["a"][0] == 0


def test_clip_does_not_hide_a_gradient_that_is_not_finite():
  tx = optim.clip_by_global_norm(1.0)
  for bad in (jnp.nan, jnp.inf):
    clipped, _ = tx.update({"a": jnp.array([bad, 1.0])}, tx.init({}))
    assert not np.all(np.isfinite(clipped["a"]))


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_bfloat16_parameters_have_float32_moments(name):
  params = {"kernel": jnp.ones([2, 2], jnp.bfloat16)}
  grads = [{"kernel": np.ones([2, 2], jnp.bfloat16)}]
  params, state = _run(_config(name=name), params, grads)
  assert params["kernel"].dtype == jnp.bfloat16
  floats = [
    x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, np.floating)
  ]
  assert floats
  assert {x.dtype for x in floats} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"name": "adam"}, "optim.name='adam' is unknown; use one of"),
    ({"schedule": "poly"}, "optim.schedule='poly' .* linear, cosine"),
    ({"b1": 1.0}, "optim.b1=1.0"),
    ({"b2": 1.0}, "optim.b2=1.0"),
    ({"eps": 0.0}, "optim.eps=0.0; it must be above 0"),
    ({"cooldown_rate": 0.1}, "optim.cooldown_rate=0.1 .*schedule=constant"),
    ({"schedule": "trapezoid"}, "optim.cooldown_rate=0.0 .*=trapezoid"),
    (
      {"schedule": "trapezoid", "cooldown_rate": 0.6, "warmup_rate": 0.5},
      "optim.warmup_rate=0.5 and optim.cooldown_rate=0.6 .*at most 1",
    ),
  ],
)
def test_bad_config_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    optim.make_optimizer(_config(**changes), total_steps=10)


def test_a_change_that_a_run_may_make_keeps_the_state_of_the_optimizer():
  """Else its checkpoints could not be read any more."""
  params = {"kernel": jnp.ones([2, 3]), "bias": jnp.ones([3])}

  def form(**changes):
    config = settings.make_config().optim
    config.update(changes)
    optimizer, _ = optim.make_optimizer(config, total_steps=10)
    return jax.tree.structure(optimizer.init(params))

  names = [n for n, key in settings.KEYS.items() if key.can_change]
  own = {n.partition(".")[2] for n in names if n.startswith("optim.")}
  assert {"learning_rate", "weight_decay"} <= own
  falls = {"schedule": "trapezoid", "cooldown_rate": 0.1}
  assert form(schedule="cosine") == form(**falls) == form()
  for name in own - falls.keys():
    for value in (0.5,) if name == "eps" else (0, 0.5):
      changed = type(settings.make_config().optim[name])(value)
      assert form(**{name: changed}) == form(), name
