"""Tests of pretraining.py: what packing must not change."""

import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.data import batching
from bert_jax.data import masking
from bert_jax.data import prepare
from bert_jax.kinds import losses
from bert_jax.kinds import table
from bert_jax.models import config as model_config
from bert_jax.models import flops
from bert_jax.runtime import sharding
from bert_jax.training import optim
from bert_jax.training import pretraining
from bert_jax.training import steps
from bert_jax.training import train
from tests.support import batch_checks
from tests.support import breadth
from tests.support import corpora

LENGTH, MOST = 96, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Prepared pairs of short documents."""
  folder = tmp_path_factory.mktemp("short")
  documents = corpora.make_documents(120, seed=5, max_sentences=2)
  text = corpora.write_text(folder / "text.txt", documents)
  vocab = corpora.write_vocabulary(folder / "vocab.txt")
  config = corpora.make_config(
    vocab, data__seq_len=LENGTH, data__short_seq_rate=0.6
  )
  prepare.prepare(config, [text], str(folder / "data"))
  return str(folder / "data")


@pytest.fixture
def config(tiny_config, folder):
  c = tiny_config(folder)
  c.data.seq_len = LENGTH
  c.data.dupe_factor = 2
  c.data.short_seq_rate = 0.6
  c.model.max_len = LENGTH
  c.model.num_layers = 2
  c.model.dropout_rate = c.model.attention_dropout_rate = 0.0
  # Large enough that a token which is seen or not makes a difference.
  c.model.init_stddev = 0.2
  return c


def whole_split(config, max_sequences):
  """All validation examples as one batch."""
  config.data.max_sequences = max_sequences
  batches = batching.PretrainBatches(
    config.data, "validation", seed=0, batch_size=96
  )
  (batch,) = [batches[i] for i in range(len(batches))]
  return batch


def make_model(config):
  objective = table.get(config.objective)
  return objective, objective.make_model(
    model_config.ModelConfig.from_config(config.model)
  )


def init(config, batch):
  objective, model = make_model(config)
  return model.init(jax.random.key(0), **objective.arguments(batch))["params"]


def loss_and_gradients(config, params, batch):
  """(terms of the loss, their weights, gradients)."""
  objective, model = make_model(config)

  def loss(params):
    outputs = objective.apply(model, params, batch, deterministic=True)
    sums = objective.losses(outputs, batch)
    terms = {k: losses.mean(*v) for k, v in sums.items()}
    return sum(terms.values()), (terms, objective.weights(batch))

  grads, (terms, weights) = jax.jit(jax.grad(loss, has_aux=True))(params)
  return terms, weights, grads


@pytest.mark.parametrize(
  ("scan_layers", "objective"),
  breadth.slow_but(
    itertools.product((False, True), ("mlm_nsp", "mlm")),
    lambda scan_layers, objective: scan_layers and objective == "mlm_nsp",
  ),
)
def test_packed_losses_and_gradients_are_those_of_a_sequence_a_row(
  config, objective, scan_layers
):
  config.objective = objective
  config.model.scan_layers = scan_layers
  plain, packed = whole_split(config, 1), whole_split(config, MOST)
  assert packed["weight"].sum() == plain["weight"].sum() > 24
  assert (packed["weight"].sum(1) > 1).sum() > 8  # rows that are shared
  params = init(config, plain)
  want, want_weights, want_grads = loss_and_gradients(config, params, plain)
  got, got_weights, got_grads = loss_and_gradients(config, params, packed)
  assert ("nsp_loss" in want) == (objective == "mlm_nsp")
  for name, value in want.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
    assert got_weights[name] == want_weights[name] > 0
  jax.tree.map_with_path(
    lambda path, a, b: np.testing.assert_allclose(
      a, b, rtol=1e-4, atol=2e-6, err_msg=jax.tree_util.keystr(path)
    ),
    got_grads,
    want_grads,
  )
  assert max(float(abs(x).max()) for x in jax.tree.leaves(want_grads)) > 1e-2


def by_content(batch, packed, values):
  """Content of each sequence, with its masks -> its value of [B, S] or [B]."""
  take = batch_checks.sequences if packed else batch_checks.alone
  keys = list(take(batch))
  used = values[batch["weight"] > 0]
  assert len(keys) == len(used) == len(set(keys))
  return dict(zip(keys, used, strict=True))


def test_every_sequence_has_the_next_sentence_scores_of_its_own_cls(config):
  found = []
  for most in (1, MOST):
    batch = whole_split(config, most)
    params = init(config, whole_split(config, 1))
    objective, model = make_model(config)
    _, scores = objective.apply(model, params, batch, deterministic=True)
    found.append(by_content(batch, most > 1, np.asarray(scores)))
  plain, packed = found
  assert plain.keys() == packed.keys()
  for key, scores in plain.items():
    np.testing.assert_allclose(packed[key], scores, atol=2e-5)
  # They differ from each other, or the above would say nothing.
  assert np.std(np.stack(list(plain.values())), axis=0).min() > 0.05


def test_a_sequence_does_not_see_its_neighbours(config):
  config.data.max_sequences = MOST
  batches = batching.PretrainBatches(
    config.data, "train", seed=1, batch_size=16, num_steps=30
  )
  batch = max(
    (batches[i] for i in range(30)), key=lambda b: b["weight"].sum(1).max()
  )
  params = init(config, batch)
  objective, model = make_model(config)
  run = jax.jit(
    lambda batch: objective.apply(model, params, batch, deterministic=True)
  )
  row = int(np.argmax(batch["weight"].sum(1)))
  assert batch["weight"][row].sum() >= 3
  other = {k: v.copy() for k, v in batch.items()}
  changed = other["sequence_ids"][row] == 2
  other["input_ids"][row, changed] = 9
  other["segment_ids"][row, changed] ^= 1
  (mlm, nsp), (other_mlm, other_nsp) = run(batch), run(other)
  slot_of = np.take_along_axis(
    batch["sequence_ids"][row], batch["masked_positions"][row], 0
  )
  used = batch["masked_weights"][row] > 0
  mine = used & (slot_of == 2)
  difference = np.abs(mlm[row] - other_mlm[row]).max(-1)
  assert difference[used & ~mine].max() < 1e-6
  assert difference[mine].min() > 1e-3
  difference = np.abs(nsp[row] - other_nsp[row]).max(-1)
  slots = np.arange(MOST)
  present = batch["weight"][row] > 0
  assert difference[present & (slots != 1)].max() < 1e-6
  assert difference[1] > 1e-3


@pytest.mark.parametrize("objective", ["mlm_nsp", "mlm"])
@pytest.mark.parametrize("max_examples", [0, 13])
def test_evaluation_is_the_same_packed_or_not(config, objective, max_examples):
  config.objective = objective
  config.eval.max_examples = max_examples
  mesh = sharding.make_mesh(2, 2, 2)
  found = []
  for most in (1, MOST):
    config.data.max_sequences = most
    job = pretraining.Pretraining(config)
    params = init(config, whole_split(config, most))
    config.eval.batch_size = 8
    with jax.set_mesh(mesh):
      evaluator = job.evaluator(mesh)
      found.append(evaluator(params))
      assert evaluator.names(params) == sorted(found[-1])
  plain, packed = found
  assert plain.keys() == packed.keys()
  assert "eval/mlm_loss" in plain
  for name, value in plain.items():
    np.testing.assert_allclose(packed[name], value, rtol=1e-5, err_msg=name)


def test_parameters_are_the_same_packed_or_not(config):
  plain, packed = whole_split(config, 1), whole_split(config, MOST)
  jax.tree.map(
    np.testing.assert_array_equal, init(config, plain), init(config, packed)
  )


def test_all_packed_steps_are_one_program(config):
  config.data.max_sequences = MOST
  batches = batching.PretrainBatches(
    config.data, "train", seed=1, batch_size=4, num_steps=30
  )
  objective, model = make_model(config)
  optimizer, schedule = optim.make_optimizer(config.optim, 30)
  state = steps.init_state(
    model, objective, optimizer, jax.random.key(0),
    jax.tree.map(jnp.asarray, batches[0]),
  )  # fmt: skip
  step = jax.jit(
    steps.make_train_step(
      steps.make_gradients(model, objective, jax.random.key(1)),
      optimizer,
      schedule,
    )
  )
  for i in (0, 13, 29):
    state, metrics = step(state, batches[i])
    assert np.isfinite(metrics["loss"])
  assert step._cache_size() == 1


@pytest.mark.slow
def test_a_packed_run_counts_its_useful_tokens_and_goes_on(config, tmp_path):
  config.data.max_sequences = MOST
  config.data.batch_size = 8
  config.train.total_steps = 4
  workdir = tmp_path / "run"
  whole = train.train(config, str(workdir))
  batches = batching.PretrainBatches(
    config.data, "train", seed=config.seed, batch_size=8, num_steps=4
  )
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  useful, every = "train/useful_tokens_per_sec", "train/tokens_per_sec"
  rates = {r["step"]: r[useful] / r[every] for r in rows if every in r}
  assert sorted(rates) == [2, 3, 4]  # the first step compiles
  for step, rate in rates.items():
    share = batches[step - 1]["input_mask"].mean()
    np.testing.assert_allclose(rate, share, rtol=1e-6)
  # Stopped after two steps and started again: the same numbers.
  again = tmp_path / "again"
  shutil.copytree(workdir, again)
  shutil.rmtree(again / "checkpoints" / "4")
  assert train.train(config, str(again)) == whole


def test_a_number_of_sequences_that_cannot_be_is_refused_at_the_start(config):
  config.data.max_sequences = 0
  with pytest.raises(ValueError, match="data.max_sequences=0; a row of"):
    pretraining.Pretraining(config)


def test_the_floating_point_work_of_a_packed_step_is_that_of_its_sequences(
  config,
):
  config.data.batch_size, config.data.max_sequences = 2, MOST
  job = pretraining.Pretraining(config)
  # Sequences of 3 and 4 tokens in one row, of 5 in the other, then padding.
  ids = np.zeros((2, LENGTH), np.int32)
  ids[0, :7] = [1, 1, 1, 2, 2, 2, 2]
  ids[1, :5] = 1
  slots = batching.num_masked_slots(config.data)
  assert slots > masking.num_slots(LENGTH, config.data.mask_rate, 0)
  assert job.step_flops({"sequence_ids": ids}) == flops.pretrain_step_flops(
    config.model, 2, LENGTH, slots, num_sequences=MOST,
    attended=(9 + 16 + 25) / 2,
  )  # fmt: skip
  config.data.max_sequences = 1
  assert pretraining.Pretraining(config).step_flops(
    {"input_ids": ids}
  ) == flops.pretrain_step_flops(
    config.model, 2, LENGTH, masking.num_slots(LENGTH, 0.15, 0)
  )
