"""Tests of models/splash_attention.py: the kernel, as plain operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models import config as model_config
from bert_jax.models import heads
from bert_jax.models.attention import masks
from bert_jax.models.attention import plain
from bert_jax.models.attention import programs
from bert_jax.models.attention import self_attention
from bert_jax.models.attention import splash as splash_attention
from bert_jax.runtime import sharding
from configs import base
from tests.support import breadth

B, N = 2, 4


@functools.cache
def _case(head_dim, length, packed, dtype="float32"):
  """Query, key, value, a gradient of the tokens, and who sees whom."""
  rng = np.random.default_rng(head_dim + length + packed)
  arrays = [
    jnp.asarray(rng.normal(size=(B, N, length, head_dim)), dtype)
    for _ in range(4)
  ]
  # Descending, so that the padding, 0, is last; the second row is all padding
  # but for one token.
  ids = np.sort(rng.integers(0, 4, (B, length)))[:, ::-1].copy()
  ids[1, 1:] = 0
  ids = jnp.asarray(ids if packed else ids > 0, jnp.int32)
  real = ids > 0
  arrays[3] = arrays[3] * real[:, None, :, None].astype(dtype)
  visible = masks.Visible(
    masks.attention_bias(real.astype(jnp.int32)), ids if packed else None
  )
  return arrays, visible, real


def _plain(visible, real, *inputs):
  bias = masks.attention_bias(real.astype(jnp.int32), visible.sequence_ids)
  return plain.attend(*inputs, bias, None, 0.0)


def _kernel(visible, *inputs):
  ids = splash_attention.segment_ids(visible)
  return splash_attention.kernel(*inputs, ids, interpret=True)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
  ("head_dim", "length"),
  breadth.slow_but(
    [(32, 128), (64, 384), (128, 128), (64, 1024)],
    lambda head_dim, length: head_dim == 128 or length == 384,
  ),
)
def test_the_kernel_equals_plain_attention_at_every_token(
  head_dim, length, packed
):
  arrays, visible, real = _case(head_dim, length, packed)
  found, vjp = jax.vjp(functools.partial(_kernel, visible), *arrays[:3])
  wanted, plain_vjp = jax.vjp(
    functools.partial(_plain, visible, real), *arrays[:3]
  )
  tokens = np.broadcast_to(np.asarray(real)[:, None, :, None], found.shape)
  np.testing.assert_allclose(found[tokens], wanted[tokens], atol=5e-6)
  # Nothing reads what padding computes, so no gradient comes from there.
  for got, want in zip(vjp(arrays[3]), plain_vjp(arrays[3]), strict=True):
    np.testing.assert_allclose(got, want, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("length", "radius", "packed"),
  [(640, 64, False), (640, 64, True), (2048, 64, True), (2048, 200, True)],
)
def test_a_window_skips_blocks_and_equals_plain_attention(
  length, radius, packed
):
  """Forward and backward, for blocks that see their neighbors alone."""
  arrays, visible, real = _case(64, length, packed)
  block = splash_attention._block(length, radius)
  assert block == (128 if radius == 64 else 512)
  ids = splash_attention.segment_ids(visible)

  def kernel(*inputs):
    return splash_attention.kernel(*inputs, ids, interpret=True, radius=radius)

  def by_plain(*inputs):
    return plain.attend_window(
      *inputs, masks.Window(visible), None, 0.0, radius
    )

  found, vjp = jax.vjp(kernel, *arrays[:3])
  wanted, plain_vjp = jax.vjp(by_plain, *arrays[:3])
  tokens = np.broadcast_to(np.asarray(real)[:, None, :, None], found.shape)
  np.testing.assert_allclose(found[tokens], wanted[tokens], atol=5e-6)
  for got, want in zip(vjp(arrays[3]), plain_vjp(arrays[3]), strict=True):
    np.testing.assert_allclose(got, want, atol=5e-6)


def test_rows_of_several_blocks_were_among_these():
  assert [splash_attention._block(n) for n in (128, 384, 640, 1024)] == [
    128, 384, 128, 512,
  ]  # fmt: skip


@pytest.mark.parametrize(
  "length", breadth.slow_but([640, 1024], lambda length: length == 1024)
)
def test_bfloat16_gradients_over_blocks_are_as_near_as_plain_ones(length):
  """Rows of five blocks, whose scores are computed twice, and of two."""
  arrays, visible, real = _case(64, length, True, "bfloat16")
  exact = [x.astype(jnp.float32) for x in arrays]

  def gradients(function, arrays):
    return jax.vjp(function, *arrays[:3])[1](arrays[3])

  plain = functools.partial(_plain, visible, real)
  right = gradients(plain, exact)
  wanted = gradients(plain, arrays)
  found = gradients(functools.partial(_kernel, visible), arrays)
  for got, other, exactly in zip(found, wanted, right, strict=True):
    error, usual = (
      jnp.abs(x.astype(jnp.float32) - exactly).mean() for x in (got, other)
    )
    assert 0 < error <= 1.3 * usual


@pytest.mark.parametrize("packed", [False, True])
def test_attend_on_this_machine_equals_the_kernel_padding_included(packed):
  arrays, visible, _ = _case(64, 384, packed)
  found, vjp = jax.vjp(
    lambda *x: splash_attention.attend(*x, visible), *arrays[:3]
  )
  wanted, kernel_vjp = jax.vjp(functools.partial(_kernel, visible), *arrays[:3])
  np.testing.assert_allclose(found, wanted, atol=5e-6)
  grad = jnp.ones_like(found)
  for got, want in zip(vjp(grad), kernel_vjp(grad), strict=True):
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_the_bfloat16_kernel_is_as_near_to_float32_as_plain_attention_is():
  arrays, visible, real = _case(64, 384, True, "bfloat16")
  exact = [x.astype(jnp.float32) for x in arrays]
  right = _plain(visible, real, *exact[:3])
  tokens = np.broadcast_to(np.asarray(real)[:, None, :, None], right.shape)

  def error(x):
    return jnp.abs(x.astype(jnp.float32) - right)[tokens].mean()

  found = _kernel(visible, *arrays[:3])
  assert found.dtype == jnp.bfloat16
  plain = error(_plain(visible, real, *arrays[:3]))
  assert 0 < error(found) <= 1.2 * plain


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 2, 2), (1, 1, 4)])
def test_the_kernel_on_a_mesh_equals_that_on_one_device(sizes):
  arrays, visible, _ = _case(64, 384, True)
  ids = splash_attention.segment_ids(visible)
  mesh = sharding.make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])

  def with_gradients(run):
    out, vjp = jax.vjp(lambda *x: run(*x, ids, interpret=True), *arrays[:3])
    return out, *vjp(arrays[3])

  wanted = with_gradients(splash_attention.kernel)
  with jax.set_mesh(mesh):
    found = jax.jit(lambda: with_gradients(splash_attention._over_mesh))()
  for got, want in zip(found, wanted, strict=True):
    np.testing.assert_allclose(got, want, atol=1e-6)


def _model(attention):
  config = base.get_config().model
  config.update(
    vocab_size=120, hidden_size=128, num_layers=2, num_heads=2, mlp_dim=64,
    max_len=128, attention_dropout_rate=0.0, attention=attention,
  )  # fmt: skip
  return heads.PreTrainingModel(model_config.ModelConfig.from_config(config))


@pytest.mark.slow
def test_a_model_trains_by_the_kernel_as_by_plain_attention(monkeypatch):
  """Of packed rows with padding, hidden dropout among it."""
  rng = np.random.default_rng(0)
  ids = np.sort(rng.integers(0, 4, (3, 128)))[:, ::-1].copy()
  batch = {
    "input_ids": rng.integers(0, 120, (3, 128)),
    "input_mask": ids > 0,
    "segment_ids": rng.integers(0, 2, (3, 128)),
    "sequence_ids": ids,
    "masked_positions": np.arange(0, 60, 6)[None].repeat(3, 0),
  }
  batch = {k: jnp.asarray(x, jnp.int32) for k, x in batch.items()}
  params = _model("plain").init(jax.random.key(1), **batch)

  def run(attention):
    def loss(params):
      mlm, nsp = _model(attention).apply(
        params,
        **batch,
        deterministic=False,
        rngs={"dropout": jax.random.key(2)},
      )
      return jnp.mean(mlm**2) + jnp.mean(nsp**2)

    return jax.jit(jax.value_and_grad(loss))(params)

  wanted, here = run("plain"), run("splash")
  calls = []

  def by_kernel(*args, **options):
    calls.append(args)
    return splash_attention.kernel(*args, **options, interpret=True)

  monkeypatch.setattr(splash_attention, "_for_tpu", lambda: True)
  monkeypatch.setattr(splash_attention, "_over_mesh", by_kernel)
  found = run("splash")
  assert calls, "the kernel was not used"
  for other in (here, found):
    for a, b in zip(
      jax.tree.leaves(other), jax.tree.leaves(wanted), strict=True
    ):
      np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)


def test_dropout_of_probabilities_is_refused_and_says_what_is_given_up():
  config = base.get_config().model
  config.attention = "splash"
  with pytest.raises(
    ValueError, match=r"no dropout of attention.*=0.1; set that to 0.0.*fused"
  ):
    programs.check(model_config.ModelConfig.from_config(config), 128)
  config.attention_dropout_rate = 0.0
  model = model_config.ModelConfig.from_config(config)
  programs.check(model, 128)
  assert programs.program_of(model).row_unit == 128


def test_a_program_without_dropout_does_not_train_silently_without_it():
  config = base.get_config().model
  config.update(attention="splash", hidden_size=64, num_heads=1)
  module = self_attention.SelfAttention(
    model_config.ModelConfig.from_config(config)
  )
  x, mask = jnp.zeros((1, 128, 64)), jnp.zeros((1, 1, 1, 128))
  variables = module.init(jax.random.key(0), x, mask, deterministic=True)
  with pytest.raises(ValueError, match="attention_dropout_rate=0.1; set that"):
    module.apply(
      variables,
      x,
      masks.Visible(mask, None),
      deterministic=False,
      rngs={"dropout": jax.random.key(1)},
    )


@pytest.mark.parametrize(("length", "nearest"), [(96, 128), (2000, 2048)])
def test_rows_that_do_not_fill_registers_are_refused(length, nearest):
  config = base.get_config().model
  config.update(attention="splash", attention_dropout_rate=0.0)
  model = model_config.ModelConfig.from_config(config)
  with pytest.raises(ValueError, match=f"use rows of {nearest} .data.seq_len"):
    programs.check(model, length)
  programs.check(model, nearest)
