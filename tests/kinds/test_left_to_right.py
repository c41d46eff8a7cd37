"""Tests of objective=ltr: causal attention, the next token, the LSTM."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.kinds import table
from bert_jax.models import families
from bert_jax.models import heads
from bert_jax.models import lstm
from bert_jax.models.attention import masks
from bert_jax.models.attention import programs
from bert_jax.models.config import ModelConfig
from bert_jax.runtime import errors
from bert_jax.training import evaluate
from bert_jax.training import train
from configs import left_to_right
from tests.support import small_tasks
from tests.support import tiny_run

SIZES = {
  "vocab_size": 20, "num_layers": 2, "hidden_size": 16, "num_heads": 2,
  "mlp_dim": 32, "max_len": 8,
}  # fmt: skip


def make_config(**model):
  c = left_to_right.get_config("size=tiny")
  c.model.update(SIZES | model)
  c.model.dropout_rate = c.model.attention_dropout_rate = 0.0
  return c


def make(**model):
  config = make_config(**model)
  objective = table.get("ltr").for_config(config)
  return objective, objective.make_model(ModelConfig.from_config(config.model))


# Two rows: a sequence of five tokens, and one of three.
BATCH = {
  "input_ids": jnp.array([[2, 7, 8, 9, 3, 0, 0, 0], [2, 12, 3, 0, 0, 0, 0, 0]]),
  "input_mask": jnp.array([[1] * 5 + [0] * 3, [1] * 3 + [0] * 5]),
  "segment_ids": jnp.zeros((2, 8), jnp.int32),
  "masked_positions": jnp.array([[1], [1]]),
  "masked_ids": jnp.array([[7], [12]]),
  "masked_weights": jnp.ones((2, 1)),
  "weight": jnp.ones(2),
}
# The same two sequences in one row.
PACKED = {
  "input_ids": jnp.array([[2, 7, 8, 9, 3, 2, 12, 3]]),
  "input_mask": jnp.ones((1, 8), jnp.int32),
  "segment_ids": jnp.zeros((1, 8), jnp.int32),
  "positions": jnp.array([[0, 1, 2, 3, 4, 0, 1, 2]]),
  "sequence_ids": jnp.array([[1, 1, 1, 1, 1, 2, 2, 2]]),
  "masked_positions": jnp.array([[1, 6]]),
  "masked_ids": jnp.array([[7, 12]]),
  "masked_weights": jnp.ones((1, 2)),
  "weight": jnp.ones((1, 2)),
}


@pytest.fixture(scope="module")
def trained():
  """The kind, its model, random parameters, and logits of both batches."""
  objective, model = make()
  params = jax.jit(
    lambda rng: model.init(rng, **objective.arguments(BATCH))["params"]
  )(jax.random.key(0))
  params = jax.tree.map(
    lambda x: 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params
  )
  outputs = [
    jax.jit(lambda params, b=b: objective.apply(model, params, b))(params)
    for b in (BATCH, PACKED)
  ]
  return objective, model, params, outputs


def test_a_mask_by_hand():
  hide = masks.MASKED_SCORE
  bias = masks.see_before(
    jnp.array([[1, 1, 1, 0]]), jnp.array([[1, 2, 2, 0]]), True
  )
  assert bias[0, 0].tolist()[:3] == [
    [0, hide, hide, hide], [hide, 0, hide, hide], [hide, 0, 0, hide]
  ]  # fmt: skip
  before = masks.see_before(
    jnp.array([[1, 1, 1, 0]]), jnp.array([[1, 2, 2, 0]]), False
  )
  some = masks.bias_of_queries(before, jnp.array([[2, 0]]))
  assert some[0, 0].tolist() == [[hide, 0, 0, hide], [0, hide, hide, hide]]


def test_a_token_does_not_see_what_is_behind_it(trained):
  objective, model, params, _ = trained

  @jax.jit  # one program for both, so that bits can be compared
  def run(ids):
    return objective.apply(model, params, {**BATCH, "input_ids": ids})[0][0]

  ids = BATCH["input_ids"]
  logits, changed = run(ids), run(ids.at[0, 3].set(15))
  np.testing.assert_array_equal(logits[:3], changed[:3])
  assert np.abs(logits[3:5] - changed[3:5]).max() > 1e-3


def test_the_loss_is_that_of_the_next_token_by_hand(trained):
  objective, _, _, (outputs, _) = trained
  log_p = np.asarray(jax.nn.log_softmax(outputs[0]))
  wanted = [(0, 0, 7), (0, 1, 8), (0, 2, 9), (0, 3, 3), (1, 0, 12), (1, 1, 3)]
  loss, weight = objective.losses(outputs, BATCH)["ltr_loss"]
  assert weight == len(wanted) == objective.weights(BATCH)["ltr_loss"]
  total = -sum(log_p[place] for place in wanted)
  np.testing.assert_allclose(loss, total, rtol=1e-5)
  right, count = objective.metrics(outputs, BATCH)["ltr_accuracy"]
  best = np.argmax(outputs[0], axis=-1)
  assert (right, count) == (sum(best[r, c] == w for r, c, w in wanted), 6)


def test_packed_sequences_have_the_losses_of_rows_of_their_own(trained):
  objective, _, _, (outputs, packed) = trained
  np.testing.assert_allclose(packed[0][0, :5], outputs[0][0, :5], atol=1e-5)
  np.testing.assert_allclose(packed[0][0, 5:], outputs[0][1, :3], atol=1e-5)
  found = objective.losses(packed, PACKED)["ltr_loss"]
  wanted = objective.losses(outputs, BATCH)["ltr_loss"]
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_examples_that_do_not_count_have_no_weight():
  objective, _ = make()
  batch = {**BATCH, "weight": jnp.array([0.0, 1.0])}
  assert objective.weights(batch)["ltr_loss"] == 2


# --- What cannot be ---


@pytest.mark.parametrize("attention", ["fused", "fused_qkv"])
def test_programs_without_causal_attention_are_refused_by_name(attention):
  config = ModelConfig.from_config(make_config(attention=attention).model)
  with pytest.raises(ValueError, match=f"{attention} .*causal.*plain, splash"):
    programs.check_switches(config)


def test_what_would_show_the_answer_is_refused():
  with pytest.raises(ValueError, match="needs.*causal, not full"):
    make(attention_pattern="full")
  with pytest.raises(ValueError, match="conv_size=3.*causal"):
    make(conv_size=3)
  config = make_config()
  config.data.mask_token_rate = 0.8
  with pytest.raises(ValueError, match="mask_token_rate=0.8"):
    table.get("ltr").for_config(config)


def test_a_head_of_the_first_token_is_refused():
  config = ModelConfig.from_config(make_config(pooling="first").model)
  for role in ("sequence", "choice"):
    with pytest.raises(ValueError, match="pooling=first.*pooling=last"):
      heads.check_role(config, role)
  heads.check_role(config, "span")


@pytest.mark.parametrize("family", ["bert", "modernbert", "eurobert"])
@pytest.mark.parametrize(
  ("key", "value"), [("attention_pattern", "causal"), ("pooling", "last")]
)
def test_no_other_format_holds_such_a_model(family, key, value):
  model = {"hidden_act": "gelu_erf", "layer_norm_eps": 1e-5, key: value}
  with pytest.raises(errors.UserError, match=f"model.{key} is '{value}'"):
    families.get_family(family).config_of("huggingface", model)


# --- Heads ---


def test_the_last_token_of_each_sequence_by_hand():
  ids = jnp.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0]])
  found = heads.last_of_sequences(ids, 2)
  assert found.tolist() == [[1, 4], [2, 0]]


def _lstm_by_hand(x, ids, weights, is_backward):
  """An LSTM in numpy, one token after the other."""
  kernel, bias, again = weights
  order = range(len(x))[::-1] if is_backward else range(len(x))
  out = np.zeros((len(x), len(again)))
  last = None
  for t in order:
    if ids[t] != last:
      memory = state = np.zeros(len(again))
    last = ids[t]
    i, f, g, o = np.split(x[t] @ kernel + bias + state @ again, 4)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g)
    state = out[t] = sigmoid(o) * np.tanh(memory)
  return out


def test_the_lstm_equals_one_by_hand_in_each_sequence():
  config = ModelConfig.from_config(make_config().model)
  x = jax.random.normal(jax.random.key(1), (1, 7, 16))
  ids = jnp.array([[1, 1, 1, 2, 2, 2, 0]])
  module = lstm.BiLstm(config)
  params = module.init(jax.random.key(0), x, ids)["params"]
  params = jax.tree.map(
    lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params
  )
  found = module.apply({"params": params}, x, ids)[0]
  halves = []
  for name, is_backward in (("forward", False), ("backward", True)):
    part = params[name]
    weights = (part["in"]["kernel"], part["in"]["bias"], part["kernel"])
    weights = [np.asarray(w, np.float64) for w in weights]
    halves.append(
      _lstm_by_hand(np.asarray(x[0]), ids[0].tolist(), weights, is_backward)
    )
  np.testing.assert_allclose(found, np.concatenate(halves, 1), atol=1e-5)


def test_a_head_behind_the_lstm_sees_both_sides():
  """The score of the first token depends on the last one only by the LSTM."""
  scores = {}
  for layers in (0, 1):
    config = make_config(head_lstm_layers=layers).model
    model = heads.TaskModel(ModelConfig.from_config(config), 2, False, "span")
    args = [BATCH[k] for k in ("input_ids", "input_mask", "segment_ids")]
    params = jax.eval_shape(model.init, jax.random.key(0), *args)["params"]
    params = jax.tree.map(
      lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params
    )
    changed = [args[0].at[0, 4].set(15), *args[1:]]
    both = (model.apply({"params": params}, *a)[0, 0] for a in (args, changed))
    scores[layers] = np.abs(np.subtract(*both)).max()
  assert scores[0] == 0 < scores[1]


# --- Whole runs ---


@pytest.mark.slow
@pytest.mark.parametrize("layers", [0, 1])
def test_a_run_has_its_perplexity_and_is_fine_tuned(prepared, tmp_path, layers):
  c = tiny_run.tiny_config(prepared)
  own = left_to_right.get_config("size=tiny")
  c.objective = own.objective
  c.model.attention_pattern, c.model.pooling = "causal", "last"
  c.data.mask_token_rate = c.data.random_token_rate = 0.0
  folder = str(tmp_path / "ltr")
  found = train.train(c, folder)
  assert math.isclose(
    found["eval/ltr_perplexity"], math.exp(found["eval/ltr_loss"])
  )
  assert found["eval/ltr_loss"] < found["eval/unigram_loss"] + 1
  again = evaluate.evaluate(c, folder, None)
  assert math.isclose(again["eval/ltr_loss"], found["eval/ltr_loss"])
  task = small_tasks.make_config(tmp_path, "classify")
  task.init_from = folder
  task.task.vocab = ""
  task.init_changes = [f"model.head_lstm_layers={layers}"]
  scores = train.train(task, str(tmp_path / "task"))
  assert 0 <= scores["eval/accuracy"] <= 1
  again = evaluate.evaluate(task, str(tmp_path / "task"), None)
  assert again["eval/accuracy"] == scores["eval/accuracy"]


def test_flops_count_the_lstm():
  from bert_jax.models import flops

  plain, more = (
    flops.task_step_flops(make_config(head_lstm_layers=n).model, 2, 8, "span")
    for n in (0, 1)
  )
  # Gates of x (16 x 32) and of the output (8 x 32), in two directions.
  assert more - plain == 3 * 2 * 8 * 2 * 2 * (16 * 32 + 8 * 32)


@pytest.mark.slow
def test_splash_equals_plain_with_causal_attention():
  from bert_jax.models.attention import plain
  from bert_jax.models.attention import splash

  rng = jax.random.key(0)
  query, key, value = (
    jax.random.normal(k, (1, 2, 256, 64)) for k in jax.random.split(rng, 3)
  )
  ids = jnp.array([[1] * 100 + [2] * 140 + [0] * 16])
  mask = (ids > 0).astype(jnp.int32)
  visible = masks.Visible(masks.attention_bias(mask), ids)
  bias = masks.causal_bias(visible)
  wanted = plain.attend(query, key, value, bias, None, 0.0)
  found = splash.kernel(
    query, key, value, splash.segment_ids(visible), True, is_causal=True
  )
  elsewhere = splash.attend(query, key, value, visible, is_causal=True)
  for one in (found, elsewhere):
    np.testing.assert_allclose(one[:, :, :240], wanted[:, :, :240], atol=2e-5)


def test_splash_takes_the_mask_of_the_pattern():
  config = dataclasses.replace(
    ModelConfig.from_config(make_config().model), attention="splash"
  )
  assert programs.program_of(config).has_causal
  assert not programs.program_of(config).takes_bias
