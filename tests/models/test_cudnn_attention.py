"""Tests of models/attention/cudnn.py, without a GPU.

jax has two implementations of the same function: cuDNN's, which needs a GPU,
and one of plain operations, which gets the same arguments here. That the first
is asked for is seen in the program that jax makes for a GPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models import config as model_config
from bert_jax.models.attention import cudnn
from bert_jax.models.attention import masks
from bert_jax.models.attention import plain
from bert_jax.models.attention import programs
from bert_jax.runtime import sharding
from configs import base
from configs import gpu

B, N, L, H = 3, 2, 48, 16


@functools.cache
def _case(packed, length=L):
  """Query, key, value, a gradient of the tokens, and who sees whom."""
  rng = np.random.default_rng(packed)
  arrays = [
    jnp.asarray(rng.normal(size=(B, N, length, H)), jnp.float32)
    for _ in range(4)
  ]
  ids = np.sort(rng.integers(0, 4, (B, length)))[:, ::-1].copy()
  ids[1, 1:] = 0
  ids[2] = 0  # a row of padding alone
  ids = jnp.asarray(ids if packed else ids > 0, jnp.int32)
  real = ids > 0
  arrays[3] = arrays[3] * real[:, None, :, None]
  visible = masks.Visible(
    masks.attention_bias(real.astype(jnp.int32)), ids if packed else None
  )
  return arrays, visible, real


def _compare(found, wanted, arrays, real):
  """Compares two functions and their gradients, where there are tokens."""
  got, got_vjp = jax.vjp(found, *arrays[:3])
  want, want_vjp = jax.vjp(wanted, *arrays[:3])
  tokens = np.broadcast_to(np.asarray(real)[:, None, :, None], got.shape)
  assert np.isfinite(np.asarray(got)).all()
  np.testing.assert_allclose(got[tokens], want[tokens], atol=5e-6)
  for a, b in zip(got_vjp(arrays[3]), want_vjp(arrays[3]), strict=True):
    np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_what_cudnn_is_asked_for_equals_plain_attention(packed):
  arrays, visible, real = _case(packed)
  bias = masks.attention_bias(real.astype(jnp.int32), visible.sequence_ids)
  _compare(
    lambda *x: cudnn.flash(*x, visible, "xla"),
    lambda *x: plain.attend(*x, bias, None, 0.0),
    arrays,
    real,
  )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(  # one block, and several
  ("length", "radius"), [(48, 5), (160, 5), (160, 33), (160, 40), (104, 51)]
)
def test_local_attention_by_blocks_equals_plain_attention(
  packed, length, radius
):
  arrays, visible, real = _case(packed, length)
  bias = masks.window_bias(masks.Window(visible), radius)
  _compare(
    lambda *x: cudnn.flash_window(*x, visible, radius, "xla"),
    lambda *x: plain.attend(*x, bias, None, 0.0),
    arrays,
    real,
  )


@pytest.mark.parametrize("packed", [False, True])
def test_elsewhere_plain_operations_compute_the_same(packed):
  arrays, visible, real = _case(packed)
  bias = masks.attention_bias(real.astype(jnp.int32), visible.sequence_ids)
  _compare(
    lambda *x: cudnn.attend(*x, visible),
    lambda *x: plain.attend(*x, bias, None, 0.0),
    arrays,
    real,
  )


@pytest.mark.parametrize(
  ("packed", "radius"), [(False, None), (True, None), (True, 5), (True, 33)]
)
def test_the_program_for_a_gpu_calls_cudnn(monkeypatch, packed, radius):
  from jax._src.cudnn import fused_attention_stablehlo as of_jax

  monkeypatch.setattr(of_jax, "check_cudnn_version", lambda: 91_000)
  monkeypatch.setattr(cudnn, "_for_gpu", lambda: True)
  arrays, visible, _ = _case(packed, 112)
  arrays = [x.astype(jnp.bfloat16) for x in arrays]

  def loss(query, key, value):
    if radius is None:
      found = cudnn.attend(query, key, value, visible)
    else:
      window = masks.Window(visible)
      found = cudnn.attend_window(query, key, value, window, radius)
    return jnp.sum(found.astype(jnp.float32))

  text = (
    jax.jit(jax.grad(loss, (0, 1, 2)))
    .trace(*arrays[:3])
    .lower(lowering_platforms=("cuda",))
    .as_text()
  )
  assert "__cudnn$fmha" in text and "Backward" in text
  assert ("Bias" in text) is packed


@pytest.mark.parametrize("packed", [False, True])
def test_devices_share_the_rows_and_the_heads(packed):
  arrays, visible, _ = _case(packed)
  arrays = [x[:2] for x in arrays]
  visible = jax.tree.map(lambda x: x[:2], visible)
  kernel = functools.partial(cudnn.flash, implementation="xla")
  wanted = kernel(*arrays[:3], visible)
  mesh = sharding.make_mesh(2, 1, 2, jax.devices()[:4])
  with jax.set_mesh(mesh):
    found = jax.jit(
      lambda *x: cudnn._over_mesh(kernel, *x, visible),
    )(*arrays[:3])
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_machine_without_cudnn_is_told_so_before_a_compile(monkeypatch):
  monkeypatch.setattr(cudnn, "_for_gpu", lambda: True)
  arrays, visible, _ = _case(False)
  arrays = [x.astype(jnp.bfloat16) for x in arrays]
  with pytest.raises(ValueError, match=r"model\.attention=plain"):
    cudnn.attend(*arrays[:3], visible)


def _config(**changes):
  config = base.get_config()
  config.model.update(
    {
      "attention": "cudnn",
      "dtype": "bfloat16",
      "attention_dropout_rate": 0.0,
      "vocab_size": 100,
    }
    | changes
  )
  return model_config.ModelConfig.from_config(config.model)


@pytest.mark.parametrize(
  ("changes", "length", "key"),
  [
    ({"dtype": "float32"}, 128, r"model\.dtype"),
    ({"attention_dropout_rate": 0.1}, 128, r"attention_dropout_rate"),
    ({"num_heads": 2}, 128, r"model\.num_heads"),
    ({}, 127, r"data\.seq_len"),
    ({"attention_positions": "alibi"}, 128, r"attention_positions"),
  ],
)
def test_what_cudnn_lacks_is_refused_by_name(changes, length, key):
  with pytest.raises(ValueError, match=rf"model\.attention=cudnn .*{key}"):
    programs.check(_config(**changes), length)


def test_what_cudnn_has_is_let_through():
  programs.check(_config(), 512)
  programs.check(
    _config(attention_pattern="local", attention_positions="rope"), 1024
  )


@pytest.mark.parametrize(
  ("size", "seq_len", "rows"), [("base", 128, 512), ("large", 512, 48)]
)
def test_the_recipe_for_gpus_fits_its_attention(size, seq_len, rows):
  config = gpu.get_config(f"size={size},seq_len={seq_len},rows={rows}")
  programs.check(model_config.ModelConfig.from_config(config.model), seq_len)
  assert config.data.batch_size == rows
  many = gpu.get_config(f"size={size},seq_len={seq_len},devices=64")
  assert (many.optim.name, config.optim.name) == ("lamb", "bert_adam")
  paper = gpu.get_config("attention=plain")
  assert paper.model.attention_dropout_rate == 0.1
  with pytest.raises(ValueError, match="attention=other"):
    gpu.get_config("attention=other")
