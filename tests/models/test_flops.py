"""Tests of flops.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models import flops
from bert_jax.runtime import settings

BASE = settings.make_config().model
BASE.vocab_size = settings.VOCAB_SIZE


def test_bert_base_is_two_flops_a_weight_and_token_plus_attention():
  weights = 12 * (4 * 768 * 768 + 2 * 768 * 3072)
  assert weights == 84_934_656
  by_hand = 2 * weights * 512
  by_hand += 12 * 12 * 2 * (2 * 512 * 64 * 512)  # 12 heads of 64, QK and PV.
  by_hand += 2 * 768 * 768  # Pooler, one position.
  assert flops.encoder_flops(BASE, batch_size=1, seq_len=512) == by_hand


def test_pretraining_bert_base_by_hand():
  # 256 x 128 with 20 slots: encoder 22.35e9, MLM 20 * 48.06e6 a row, times 3.
  got = flops.pretrain_step_flops(
    BASE, batch_size=256, seq_len=128, num_masked=20, all_positions=True
  )
  assert got == pytest.approx(3 * 256 * (22.349e9 + 0.9612e9), rel=1e-4)


def test_the_last_layer_is_counted_where_it_is_read():
  everywhere = flops.encoder_flops(BASE, 1, 128)
  some = flops.encoder_flops(BASE, 1, 128, num_outputs=21)
  d, f = 768, 3072
  per_position = 2 * 2 * d * d + 2 * 2 * d * f  # query, output and MLP
  per_position += 2 * 2 * 128 * d  # scores of one query, and its values
  assert everywhere - some == (128 - 21) * per_position


def test_tokens_of_packed_sequences_attend_within_their_own():
  one = flops.encoder_flops(BASE, 1, 512)
  two = flops.encoder_flops(BASE, 1, 512, attended=2 * 256**2)
  assert one - two == 12 * 2 * 2 * 768 * (512**2 - 2 * 256**2)


def test_a_head_on_cls_needs_one_position_of_the_last_layer_and_no_other():
  pooled = flops.task_step_flops(BASE, 4, 128, "sequence")
  tokens = flops.task_step_flops(BASE, 4, 128, "token")
  one = flops.encoder_flops(BASE, 4, 128, num_outputs=1)
  assert pooled == 3 * one
  full = flops.task_step_flops(BASE, 4, 128, "sequence", all_positions=True)
  assert full - tokens == 3 * 4 * 2 * 768 * 768  # the pooler
  packed = flops.task_step_flops(
    BASE, 4, 128, "sequence", num_sequences=3, attended=2 * 40**2 + 48**2
  )
  assert packed < flops.task_step_flops(
    BASE, 4, 128, "sequence", num_sequences=3
  )
  assert packed > 0.9 * pooled


def test_a_table_of_distances_is_projected_once_for_the_whole_batch():
  model = settings.make_config().model
  model.attention_positions = "disentangled"
  one = flops.encoder_flops(model, 1, 128)
  five = flops.encoder_flops(model, 5, 128)
  rows = 2 * model.relative_buckets
  assert 5 * one - five == 4 * 12 * 2 * (2 * rows * 768**2)
  plain = flops.encoder_flops(BASE, 5, 128)
  scores = 5 * 12 * 2 * (2 * rows * 768 * 128)
  assert five - plain == scores + 12 * 2 * (2 * rows * 768**2)


def test_twice_the_batch_is_twice_the_flops():
  one = flops.pretrain_step_flops(BASE, 1, 128, 20)
  assert flops.pretrain_step_flops(BASE, 64, 128, 20) == 64 * one


def test_forward_count_agrees_with_xla():
  """The matrix multiplications of a tiny model, written out and compiled."""
  b, length, n, h, f, v, p, layers = 2, 6, 2, 4, 16, 32, 3, 2
  d = n * h
  model = settings.make_config().model
  model.update(num_layers=layers, hidden_size=d, mlp_dim=f, vocab_size=v)

  def forward(x, wq, wk, wv, wo, w1, w2, pool, dense, table, nsp):
    for _ in range(layers):
      q = jnp.einsum("BLD,DNH->BLNH", x, wq)
      k = jnp.einsum("BLD,DNH->BLNH", x, wk)
      s = jnp.einsum("BQNH,BKNH->BNQK", q, k)
      o = jnp.einsum("BNQK,BKNH->BQNH", s, jnp.einsum("BLD,DNH->BLNH", x, wv))
      x = jnp.einsum("BLNH,NHD->BLD", o, wo)
      x = (x @ w1) @ w2
    return (x[:, :p] @ dense) @ table.T, (x[:, 0] @ pool) @ nsp

  shapes = [(b, length, d), *[(d, n, h)] * 3, (n, h, d), (d, f), (f, d)]
  shapes += [(d, d), (d, d), (v, d), (d, 2)]
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  analysis = jax.jit(forward).lower(*args).compile().cost_analysis()
  got = flops.pretrain_step_flops(model, b, length, p, all_positions=True)
  assert got == 3 * analysis["flops"]


def test_mfu_of_known_and_unknown_chips():
  half = 0.5 * 197e12 * 4 * 2.0
  kind = "TPU v5 lite"
  assert flops.mfu(half, secs=2.0, num_devices=4, device_kind=kind) == 0.5
  assert flops.mfu(half, secs=2.0, num_devices=4, device_kind="cpu") is None


@pytest.mark.parametrize("radius", [1, 3, 64])
def test_pairs_within_a_window_are_counted_one_by_one(radius):
  lengths = np.arange(1, 140)
  wanted = [
    sum(abs(i - j) <= radius for i in range(n) for j in range(n))
    for n in (1, 2, 3, 4, 5, 70, 139)
  ]
  found = flops.window_pairs(lengths, radius)
  assert [found[n - 1] for n in (1, 2, 3, 4, 5, 70, 139)] == wanted


def test_local_layers_count_pairs_in_the_window_and_in_the_sequence():
  model = settings.make_config().model
  model.update(attention_pattern="local", local_radius=8, full_every=3,
               num_layers=3)  # fmt: skip
  lengths, seq_len = (40, 20, 4), 64
  pairs = sum(n**2 for n in lengths)
  near = sum(int(flops.window_pairs(n, 8)) for n in lengths)
  found = flops.encoder_flops(model, 1, seq_len, attended=pairs, near=near)
  full = settings.make_config().model
  full.num_layers = 3
  whole = flops.encoder_flops(full, 1, seq_len, attended=pairs)
  # Layers 1 and 2 are local; each sees fewer pairs of scores and of values.
  assert whole - found == 2 * (2 * 2 * 768) * (pairs - near)
  # Equal sequences need no count of their own.
  equal = {"attended": 4 * 16**2}
  assert flops.encoder_flops(model, 1, seq_len, **equal) == flops.encoder_flops(
    model, 1, seq_len, **equal, near=4 * int(flops.window_pairs(16, 8))
  )
