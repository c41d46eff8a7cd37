"""Tests of task_batches.py: the same numbers however units share rows."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.data import task_batches
from bert_jax.kinds import losses
from bert_jax.kinds import table
from bert_jax.models.config import ModelConfig
from bert_jax.tasks import features as task_features
from configs import base
from tests.support import breadth

KINDS = ("classify", "regress", "choice", "tag", "span")
SEQ_LEN = 20


def _features(kind, count=13, seed=0):
  """Random features of a kind, of `count` units."""
  rng = np.random.default_rng(seed)
  choices = 3 if kind == "choice" else 1
  lengths = rng.integers(4, SEQ_LEN, count * choices)
  offsets = np.concatenate([[0], np.cumsum(lengths)])
  total = int(offsets[-1])
  label = rng.integers(0, 3, count).astype(np.int32)
  if kind == "regress":
    label = rng.normal(size=count).astype(np.float32)
  if kind == "tag":
    label = rng.integers(-1, 3, total).astype(np.int32)
  if kind == "span":
    ends = rng.integers(0, lengths)
    label = np.stack([ends // 2, ends], 1).astype(np.int32)
  return task_features.Features(
    token_ids=rng.integers(1, 50, total).astype(np.int32),
    segment_ids=rng.integers(0, 2, total).astype(np.int8),
    offsets=offsets,
    example=np.arange(count),
    label=label,
    num_choices=choices,
    labels=table.get(kind).labels,
  )


def _model(kind):
  config = base.get_config().model
  config.update(
    vocab_size=50, num_layers=2, hidden_size=16, num_heads=2, mlp_dim=32,
    max_len=SEQ_LEN, dropout_rate=0.0, attention_dropout_rate=0.0,
    init_stddev=0.5,
  )  # fmt: skip
  objective = table.get(kind)
  model_config = ModelConfig.from_config(config)
  return objective, objective.make_model(model_config, num_labels=3)


def _init(objective, model, batch):
  return model.init(jax.random.key(0), **objective.arguments(batch))["params"]


def _batches(features, pack, **settings):
  return task_batches.TaskBatches(
    features,
    **(
      {"seed": 1, "batch_size": 6, "num_steps": 4, "seq_len": SEQ_LEN}
      | {"pad_id": 0, "pack": pack}
      | settings
    ),
  )


@pytest.mark.parametrize(
  "kind", breadth.slow_but(KINDS, lambda kind: kind in ("choice", "span"))
)
def test_packing_changes_neither_loss_nor_gradient(kind):
  features = _features(kind)
  objective, model = _model(kind)
  packed, plain = _batches(features, True), _batches(features, False)
  assert packed[0]["input_ids"].size < plain[0]["input_ids"].size
  params = _init(objective, model, plain[0])

  def loss(params, batch):
    outputs = objective.apply(model, params, batch)
    return losses.mean(*objective.losses(outputs, batch)["task_loss"])

  gradient = jax.jit(jax.value_and_grad(loss))
  for step in range(2):
    got, got_grad = gradient(params, packed[step])
    want, want_grad = gradient(params, plain[step])
    np.testing.assert_allclose(got, want, rtol=2e-5)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
      got_grad,
      want_grad,
    )


@pytest.mark.parametrize(
  "kind", breadth.slow_but(KINDS, lambda kind: kind in ("choice", "tag"))
)
def test_outputs_of_a_split_do_not_depend_on_the_rows(kind):
  features = _features(kind, count=29)
  objective, model = _model(kind)
  collected = []
  params = None
  for pack, num_rows in ((False, 4), (True, 3), (True, 50)):
    split = task_batches.TaskSplit(
      features, num_rows=num_rows, seq_len=SEQ_LEN, pad_id=0, pack=pack
    )
    if params is None:
      params = _init(objective, model, split[0])
    outputs = [
      jax.jit(lambda p, b: objective.apply(model, p, b))(params, split[i])
      for i in range(len(split))
    ]
    assert {x.shape for x in outputs} == {outputs[0].shape}
    collected.append(split.collect(outputs))
  assert np.ptp(collected[0]) > 0.1
  for other in collected[1:]:
    np.testing.assert_allclose(other, collected[0], atol=2e-5)


def test_every_unit_of_a_split_is_in_one_batch_once():
  features = _features("classify", count=29)
  split = task_batches.TaskSplit(features, num_rows=2, seq_len=20, pad_id=0)
  weights = sum(split[i]["weight"].sum() for i in range(len(split)))
  tokens = sum(split[i]["input_mask"].sum() for i in range(len(split)))
  assert weights == 29
  assert tokens == len(features.token_ids)


def test_an_epoch_shows_every_unit_once():
  features = _features("classify", count=12)
  features.token_ids[features.offsets[:-1]] = np.arange(100, 112)
  batches = _batches(features, True, num_steps=4)
  for epoch in range(2):
    seen = []
    for step in range(2):
      batch = batches[2 * epoch + step]
      ids = np.take_along_axis(batch["input_ids"], batch["cls_positions"], 1)
      seen += ids[batch["weight"] > 0].tolist()
    assert sorted(seen) == list(range(100, 112))


def _shape_costs(batches, attention_len):
  """What the batches of all steps cost, and the shapes they have."""
  shapes = [batches[i]["input_ids"].shape for i in range(len(batches))]
  costs = [b * n * (1 + n / attention_len) for b, n in shapes]
  return sum(costs), set(shapes)


def test_shapes_are_compiled_as_long_as_they_pay():
  features = _features("classify", count=200)
  found = {}
  for price in (1e9, 200.0, 0.0):
    batches = _batches(
      features, True, num_steps=40, shape_price=price, attention_len=50.0
    )
    found[price] = _shape_costs(batches, 50.0)
  assert len(found[1e9][1]) == 1
  assert 1 < len(found[200.0][1]) < len(found[0.0][1])
  # The choice minimises the sum of both, step by step.
  totals = {
    price: [cost + price * len(shapes) for cost, shapes in found.values()]
    for price in found
  }
  for i, price in enumerate(found):
    assert totals[price][i] == min(totals[price])
  # What is spared grows with the steps; the price does not.
  few = _batches(features, True, num_steps=2, shape_price=200.0)
  assert len(_shape_costs(few, 50.0)[1]) == 1


def test_a_batch_unlike_all_that_were_laid_out_has_its_place(monkeypatch):
  monkeypatch.setattr(task_batches, "_SHAPE_SAMPLE", 2)
  rng = np.random.default_rng(0)
  features = _features("classify", count=60)
  batches = _batches(features, True, num_steps=10, shape_price=0.0)
  # The units of the first two steps are short, the others as long as can be.
  early = np.concatenate([batches._units(step) for step in range(2)])
  lengths = np.full(60, SEQ_LEN)
  lengths[early] = 4
  offsets = np.concatenate([[0], np.cumsum(lengths)])
  features = dataclasses.replace(
    features,
    offsets=offsets,
    token_ids=rng.integers(1, 50, offsets[-1]).astype(np.int32),
    segment_ids=np.zeros(offsets[-1], np.int8),
  )
  batches = _batches(features, True, num_steps=10, shape_price=0.0, multiple=2)
  for step in range(10):
    batch = batches[step]
    assert batch["weight"].sum() == 6
    assert batch["input_mask"].sum() == lengths[batches._units(step)].sum()
    assert len(batch["input_ids"]) % 2 == 0
  assert batches[0]["input_ids"].size < batches[2]["input_ids"].size / 2


def test_a_batch_is_a_function_of_seed_and_step():
  features = _features("tag")
  first, second = _batches(features, True), _batches(features, True)
  other = _batches(features, True, seed=2)
  for step in (3, 0, 1):
    for name, value in first[step].items():
      np.testing.assert_array_equal(value, second[step][name])
  assert any(
    (first[0][k] != other[0][k]).any()
    for k in ("input_ids",)
    if first[0][k].shape == other[0][k].shape
  ) or (first[0]["input_ids"].shape != other[0]["input_ids"].shape)


def test_rows_fill_the_devices_and_hosts_share_them():
  features = _features("classify")
  whole = _batches(features, True, multiple=4)
  parts = [
    _batches(
      features, True, multiple=4,
      local_rows=lambda n, i=i: np.arange(n).reshape(2, -1)[i],
    )
    for i in range(2)
  ]  # fmt: skip
  for step in range(4):
    assert len(whole[step]["input_ids"]) % 4 == 0
    for name, value in whole[step].items():
      joined = np.concatenate([part[step][name] for part in parts])
      np.testing.assert_array_equal(joined, value)


@pytest.mark.parametrize("kind", KINDS)
def test_unpacked_batches_have_the_shapes_that_are_declared(kind):
  features = _features(kind)
  batches = task_batches.TaskBatches(
    features,
    seed=0, batch_size=8, num_steps=2, seq_len=SEQ_LEN, pad_id=0, pack=False,
  )  # fmt: skip
  config = base.get_config()
  config.data.update(batch_size=8, seq_len=SEQ_LEN)
  objective = table.get(kind)
  with mock.patch.object(objective, "num_choices", features.num_choices):
    declared = objective.batch_shapes(config)
  assert {k: (x.shape, x.dtype) for k, x in batches[1].items()} == declared


def test_the_places_of_labels_by_hand():
  features = task_features.Features(
    token_ids=np.array([7, 8, 9, 5, 6], np.int32),
    segment_ids=np.array([0, 0, 1, 0, 1], np.int8),
    offsets=np.array([0, 3, 5]),
    example=np.arange(2),
    label=np.array([[1, 2], [0, 1]], np.int32),
    labels=table.TASK_KINDS["span"].labels,
  )
  split = task_batches.TaskSplit(features, num_rows=2, seq_len=8, pad_id=0)
  batch = split[0]
  assert batch["input_ids"].tolist() == [[7, 8, 9, 5, 6, 0, 0, 0], [0] * 8]
  assert batch["segment_ids"][0].tolist() == [0, 0, 1, 0, 1, 0, 0, 0]
  assert batch["positions"][0].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
  assert batch["sequence_ids"][0].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
  assert batch["cls_positions"].tolist() == [[0, 3], [0, 0]]
  assert batch["start"].tolist() == [[1, 3], [0, 0]]
  assert batch["end"].tolist() == [[2, 4], [0, 0]]
  assert batch["weight"].tolist() == [[1, 1], [0, 0]]


def test_span_loss_by_hand():
  # One row: sequence 1 has two tokens, sequence 2 one; all scores are equal.
  batch = {
    "sequence_ids": jnp.array([[1, 1, 2, 0]]),
    "start": jnp.array([[0, 2]]),
    "end": jnp.array([[1, 2]]),
    "weight": jnp.array([[1.0, 1.0]]),
  }
  sum_, weight = table.get("span").losses(jnp.zeros([1, 4, 2]), batch)[
    "task_loss"
  ]
  np.testing.assert_allclose(sum_, np.log(2), rtol=1e-6)
  assert weight == 2
