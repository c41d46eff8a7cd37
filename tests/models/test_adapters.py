"""LoRA's adapters: the arithmetic, where they are, what is trained."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.models import adapters
from bert_jax.models import heads
from bert_jax.models import params as param_trees
from bert_jax.models.config import ModelConfig
from configs import base
from tests.models import make_family_golden
from tests.support import small_models

SIDES = {"query": (8, 2, 4), "attention_out": (2, 4, 8), "mlp_in": (8, 16)}


def a_layer(word, stacked=()):
  """The flat parameters of one kernel with random adapters."""
  rng = np.random.default_rng(0)
  shape = SIDES[word]
  inputs = 2 if word == "attention_out" else 1
  sizes = np.prod(shape[:inputs]), np.prod(shape[inputs:])
  name = "layers" if stacked else "layer_0"
  module = f"encoder/{name}/{adapters.TARGETS[word].module}"
  return module, {
    f"{module}/kernel": rng.normal(size=(*stacked, *shape)),
    f"{module}/lora_a": rng.normal(size=(*stacked, sizes[0], 3)),
    f"{module}/lora_b": rng.normal(size=(*stacked, 3, sizes[1])),
    f"{module}/bias": rng.normal(size=shape[inputs:]),
  }


@pytest.mark.parametrize("word", SIDES)
def test_a_merged_kernel_is_both_ways_added_up(word):
  module, flat = a_layer(word)
  flat = {k: x.astype(np.float32) for k, x in flat.items()}
  merged = adapters.merge_flat(flat, 0.25)
  assert merged.keys() == {f"{module}/kernel", f"{module}/bias"}
  kernel, a, b = (flat[f"{module}/{x}"] for x in ("kernel", "lora_a", "lora_b"))
  x = np.random.default_rng(1).normal(size=(5, len(a))).astype(np.float32)
  flat_kernel, got = (
    k.reshape(len(a), -1) for k in (kernel, merged[f"{module}/kernel"])
  )
  np.testing.assert_allclose(
    x @ got, x @ flat_kernel + 0.25 * (x @ a) @ b, rtol=1e-5, atol=1e-5
  )
  assert merged[f"{module}/kernel"].dtype == np.float32


@pytest.mark.parametrize("word", SIDES)
def test_stacked_layers_are_merged_like_separate_ones(word):
  module, flat = a_layer(word, (4,))
  del flat[f"{module}/bias"]
  together = adapters.merge_flat(flat, 2.0)
  apart = adapters.merge_flat(param_trees.unstack(flat), 2.0)
  stacked = param_trees.stack(apart)
  np.testing.assert_allclose(
    together[f"{module}/kernel"], stacked[f"{module}/kernel"], rtol=1e-6
  )


def inputs_of(config, batch=2):
  rng = np.random.default_rng(0)
  ids = rng.integers(1, config.vocab_size, (batch, 6))
  ones = jnp.ones((batch, 6), jnp.int32)
  return {
    "input_ids": jnp.asarray(ids, jnp.int32),
    "input_mask": ones,
    "segment_ids": ones * 0,
    "cls_positions": jnp.zeros((batch, 1), jnp.int32),
  }


def make(shape, **options):
  """A model with adapters, its parameters with random ones, and inputs."""
  config = ModelConfig(**shape, dropout_rate=0.0, attention_dropout_rate=0.0)
  model = heads.TaskModel(config, 3, True, "sequence")
  adapted = adapters.Adapted(model, adapters.Options(**{"rank": 2} | options))
  given = inputs_of(config)
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(
    lambda: adapted.init(jax.random.key(0), **given)["params"]
  )
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, x.dtype), shapes
  )
  return adapted, params, given


def check_merged(shape):
  adapted, params, given = make(shape, targets=("all",), alpha=3.0)
  apply = jax.jit(functools.partial(adapted.apply, deterministic=True))
  got = apply({"params": params}, **given)
  flat = {k: np.asarray(x) for k, x in param_trees.flatten(params).items()}
  merged = param_trees.nest(adapters.merge_flat(flat, 1.5))
  inner = jax.jit(functools.partial(adapted.inner.apply, deterministic=True))
  want = inner({"params": merged}, **given)
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
  plain = {k: x for k, x in flat.items() if not adapters.is_adapter(k)}
  other = inner({"params": param_trees.nest(plain)}, **given)
  assert np.abs(np.asarray(other) - want).max() > 1e-3


def test_merged_and_unmerged_models_give_the_same_numbers():
  check_merged(small_models.MODEL)


# Families whose layers differ, or share parameters, are not stacked.
UNROLLED = ("modernbert", "albert", "deberta-v2")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("family", "scan"),
  [
    (family, scan)
    for family in make_family_golden.CHANGES
    for scan in (False, True)
    if not scan or family not in UNROLLED
  ],
)
def test_every_family_can_have_adapters(family, scan):
  check_merged(make_family_golden.shape_of(family) | {"scan_layers": scan})


def test_fresh_adapters_change_nothing_and_have_the_right_spread():
  flat = {
    "encoder/layer_0/mlp/in/kernel": jnp.ones((64, 32)),
    "task/kernel": jnp.ones((8, 2)),
  }
  options = adapters.Options(4, targets=("mlp_in",))
  found = param_trees.flatten(
    adapters.add(param_trees.nest(flat), options, jax.random.key(0))
  )
  a = found.pop("encoder/layer_0/mlp/in/lora_a")
  b = found.pop("encoder/layer_0/mlp/in/lora_b")
  assert found.keys() == flat.keys()
  assert a.shape == (64, 4) and b.shape == (4, 32) and not b.any()
  assert 0.9 / 8 < np.abs(a).max() <= 1 / 8  # 1 / sqrt(64)


def test_what_is_trained_beside_adapters():
  some = adapters.Adapted(None, adapters.Options(2))
  norms = adapters.Adapted(None, adapters.Options(2, trains_norms=True))
  for path, is_trained in {
    "encoder/layer_0/attention/query/lora_a": True,
    "encoder/pooler/kernel": True,
    "task/kernel": True,
    "head/own/bias": True,
    "encoder/layer_0/attention/query/kernel": False,
    "encoder/layer_0/attention/query/bias": False,
    "encoder/embeddings/word/embedding": False,
    "encoder/layer_0/mlp_norm/scale": None,
    "encoder/embeddings/norm/bias": None,
    "encoder/final_norm/scale": None,
  }.items():
    assert some.is_trained(path) == bool(is_trained), path
    assert norms.is_trained(path) == (is_trained is not False), path


def test_only_what_is_trained_has_a_gradient():
  adapted, params, given = make(small_models.MODEL)

  def loss(params):
    return adapted.apply({"params": params}, **given, deterministic=True).sum()

  grads = param_trees.flatten(jax.jit(jax.grad(loss))(params))
  changed = {path for path, grad in grads.items() if np.any(grad)}
  wanted = {path for path in grads if adapted.is_trained(path)}
  assert changed == wanted
  assert {p.split("/")[3] for p in wanted if adapters.is_adapter(p)} == {
    "query", "value",
  }  # fmt: skip


def test_dropout_leaves_out_whole_inputs_and_scales_the_others():
  module, flat = a_layer("mlp_in")
  params = param_trees.nest({k: jnp.asarray(x) for k, x in flat.items()})
  some = adapters.Adapted(
    None, adapters.Options(3, alpha=3.0, dropout_rate=0.25)
  )

  def change(rng):
    merged = param_trees.flatten(some.merge(params, rng))
    return np.asarray(merged[f"{module}/kernel"] - flat[f"{module}/kernel"])

  whole = change(None)
  counts = 0
  for seed in range(20):
    share = change(jax.random.key(seed)) / whole
    row = share[:, :1]
    np.testing.assert_allclose(share, np.broadcast_to(row, share.shape),
                               rtol=1e-3, atol=1e-3)  # fmt: skip
    is_kept = row > 0.5
    np.testing.assert_allclose(row[is_kept], 1 / 0.75, rtol=1e-3)
    np.testing.assert_allclose(row[~is_kept], 0.0, atol=1e-3)
    counts += is_kept.sum()
  assert 0.6 < counts / 160 < 0.9  # 0.75 on average


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ({"targets": ("mlp_gate",)}, "mlp_gate.*query, key, value"),
    ({"rank": 9}, "lora_rank=9.*8 x 8"),
  ],
)
def test_adapters_that_do_not_fit_the_model_are_refused(options, says):
  with pytest.raises(ValueError, match=says):
    make(small_models.MODEL, **options)


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ({"targets": ("queries",)}, "queries.*mlp_gate"),
    ({"targets": ()}, "lora_targets=''"),
    ({"dropout_rate": 1.0}, "dropout_rate=1.0"),
  ],
)
def test_options_out_of_range_are_refused(options, says):
  with pytest.raises(ValueError, match=says):
    adapters.Options(2, **options).check()


def test_options_of_a_config():
  config = base.get_config().optim
  assert adapters.options_of(config) is None
  config.lora_rank, config.lora_targets = 4, ("query,mlp_in", "query")
  found = adapters.options_of(config)
  assert found.targets == ("query", "mlp_in") and found.scale == 4.0
  older = types.SimpleNamespace(get=lambda name, default: default)
  assert adapters.options_of(older) is None


def test_kernels_of_low_precision_keep_it():
  precision = "bfloat16"
  _, flat = a_layer("mlp_in")
  low = {k: jnp.asarray(x, precision) for k, x in flat.items()}
  merged = adapters.merge_flat(low, 1.0)
  assert all(str(x.dtype) == precision for x in merged.values())
