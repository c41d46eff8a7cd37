"""Tests of every kind: which losses a kind has, and what they divide by."""

import ast
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.kinds import pretraining
from bert_jax.kinds import table
from tests.support import breadth

B, P, V = 4, 3, 7


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  return {
    "masked_ids": jnp.array(rng.integers(0, V, (B, P))),
    "masked_weights": jnp.array([[1.0, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]]),
    "nsp_label": jnp.array([0, 1, 1, 0]),
    "weight": jnp.array([1.0, 1, 1, 0]),
  }


@pytest.fixture
def outputs():
  rng = np.random.default_rng(1)
  return (
    rng.normal(size=(B, P, V)).astype(np.float32),
    rng.normal(size=(B, 2)).astype(np.float32),
  )


def _task_case(name):
  """Outputs and batch of a kind of task: L tokens, G groups of C sequences."""
  rng = np.random.default_rng(2)
  length, groups, choices, labels = 6, 2, 3, 4
  shapes = {
    "classify": (B, groups, labels),
    "multi_label": (B, groups, labels),
    "regress": (B, groups, 1),
    "choice": (B, groups * choices, 1),
    "tag": (B, length, labels),
    "span": (B, length, 2),
    "contrast": (B, groups * choices, 5),
    "similarity": (B, groups * 2, 5),
    "rerank": (B, groups * choices, 1),
  }
  slots = (B, length if name == "tag" else groups)
  batch = {
    "label": rng.integers(0, choices, slots),
    "weight": rng.integers(0, 2, slots).astype(np.float32),
  }
  if name == "multi_label":
    batch["label"] = rng.integers(0, 2, (*slots, labels)).astype(np.float32)
  if name == "contrast":
    batch["label"] = rng.integers(0, 9, (*slots, choices))
  if name == "span":
    start = rng.integers(0, 3, slots) + [0, 3]
    batch |= {
      "sequence_ids": np.tile([1, 1, 1, 2, 2, 2], (B, 1)),
      "start": start,
      "end": np.tile([2, 5], (B, 1)),
    }
  outputs = rng.normal(size=shapes[name]).astype(np.float32)
  return outputs, jax.tree.map(jnp.asarray, batch)


def _two_models_case(name, outputs, batch):
  """Outputs and batch of a kind that runs two models over L tokens."""
  rng = np.random.default_rng(3)
  length, width = 6, 4
  mask = np.arange(length) < np.array([[6], [4], [2], [6]])
  batch = batch | {"input_mask": jnp.asarray(mask, jnp.int32)}

  def draw(*shape):
    return rng.normal(size=(B, *shape)).astype(np.float32)

  if name == "rtd":
    more = (draw(length), rng.integers(0, 2, (B, length)).astype(bool))
  else:
    words = draw(length, V), draw(length, V)
    more = (*words, draw(length, width), draw(length, width))
  return (outputs[0], *more), batch


def _next_token_case():
  """Outputs and batch of a kind that predicts the next of L tokens."""
  rng = np.random.default_rng(4)
  length = 6
  numbers = np.tile([1, 1, 1, 2, 2, 0], (B, 1))
  batch = {
    "input_ids": rng.integers(0, V, (B, length)),
    "input_mask": (numbers > 0).astype(np.int32),
    "weight": np.float32([1, 1, 1, 0]),
    "sequence_ids": numbers,
  }
  outputs = rng.normal(size=(B, length, V)).astype(np.float32)
  return (outputs, None), jax.tree.map(jnp.asarray, batch)


@pytest.fixture
def case(batch, outputs):
  """A function (name of an objective) -> outputs and batch of its kind."""

  def make(name):
    if name in ("rtd", "distill"):
      return _two_models_case(name, outputs, batch)
    if name == "ltr":
      return _next_token_case()
    return (outputs, batch) if name.startswith("mlm") else _task_case(name)

  return make


@functools.cache
def _jit(name, function):
  return jax.jit(getattr(table.get(name), function))


def _log_softmax(x):
  x = np.asarray(x, np.float64)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_losses_are_sums_over_what_counts_and_their_weights(batch, outputs):
  losses = _jit("mlm_nsp", "losses")(outputs, batch)
  mlm = -sum(
    _log_softmax(outputs[0])[b, p, batch["masked_ids"][b, p]]
    for b, p in ((0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1))
  )
  nsp = -sum(_log_softmax(outputs[1])[[0, 1, 2], [0, 1, 1]])
  np.testing.assert_allclose(losses["mlm_loss"], (mlm, 6), rtol=1e-6)
  np.testing.assert_allclose(losses["nsp_loss"], (nsp, 3), rtol=1e-6)


def test_accuracies_count_by_hand(batch, outputs):
  mlm_logits = np.eye(V, dtype=np.float32)[batch["masked_ids"]]
  mlm_logits[0, 0] = np.roll(mlm_logits[0, 0], 1)
  nsp_logits = np.float32([[2, 1], [2, 1], [1, 2], [1, 2]])
  metrics = _jit("mlm_nsp", "metrics")((mlm_logits, nsp_logits), batch)
  assert tuple(map(float, metrics["mlm_accuracy"])) == (5, 6)
  assert tuple(map(float, metrics["nsp_accuracy"])) == (2, 3)


@pytest.mark.parametrize("name", sorted(table.KINDS))
def test_weights_are_those_that_the_losses_report(name, case):
  """What a step divides by is known before the model has run."""
  outputs, batch = case(name)
  objective = table.get(name)
  weights = objective.weights(batch)
  losses = _jit(name, "losses")(outputs, batch)
  assert weights.keys() == losses.keys()
  for term, (_, weight) in losses.items():
    assert float(weights[term]) == float(weight)
  metrics = _jit(name, "metrics")(outputs, batch)
  for term, value in losses.items():
    np.testing.assert_allclose(metrics[term], value, rtol=1e-6)


def test_mlm_alone_looks_at_no_nsp_label(batch, outputs):
  del batch["nsp_label"]
  objective = table.get("mlm")
  losses = jax.eval_shape(objective.losses, outputs, batch)
  assert set(losses) == {"mlm_loss"}
  metrics = jax.eval_shape(objective.metrics, outputs, batch)
  assert set(metrics) == {"mlm_loss", "mlm_accuracy"}


# The loss of a row that depends on the others is that of the whole batch.
OF_ROWS = [name for name, one in table.KINDS.items() if not one.reads_batch]


@pytest.mark.parametrize(
  "name",
  breadth.slow_but(
    sorted(OF_ROWS), lambda name: name not in ("mlm", "span", "choice")
  ),
)
def test_sums_of_parts_are_the_sums_of_the_batch(name, case):
  outputs, batch = case(name)
  objective = table.get(name)
  whole = objective.metrics(outputs, batch)

  def part(rows):
    return objective.metrics(*jax.tree.map(lambda x: x[rows], (outputs, batch)))

  added = jax.tree.map(jnp.add, part(slice(0, 2)), part(slice(2, 4)))
  for metric, pair in whole.items():
    np.testing.assert_allclose(added[metric], pair, rtol=1e-6)


def test_losses_of_tasks_by_hand():
  def loss(name, outputs, **batch):
    batch = {k: jnp.asarray(v) for k, v in batch.items()}
    return _jit(name, "losses")(jnp.asarray(outputs), batch)["task_loss"]

  # Two of three numbers count: (1 - 3)^2 + (2 - 2.5)^2.
  got = loss(
    "regress", [[[1.0], [2.0], [9.0]]],
    label=[[3.0, 2.5, 0.0]], weight=[[1.0, 1.0, 0.0]],
  )  # fmt: skip
  np.testing.assert_allclose(got, (4.25, 2))
  # Scores 0, 0, log 2 of one question: the third choice has half of it.
  got = loss(
    "choice", [[[0.0], [0.0], [np.log(2)]]], label=[[2]], weight=[[1.0]]
  )
  np.testing.assert_allclose(got, (np.log(2), 1), rtol=1e-6)
  got = loss(
    "tag", np.zeros([1, 3, 5]), label=[[4, 0, 0]], weight=[[1.0, 0, 1.0]]
  )
  np.testing.assert_allclose(got, (2 * np.log(5), 2), rtol=1e-6)


def test_unigram_baseline_by_hand():
  log_probs = jnp.log(jnp.array([0.5, 0.3, 0.2]))
  batch = {
    "masked_ids": jnp.array([[0, 2], [1, 0]]),
    "masked_weights": jnp.array([[1.0, 1], [1, 0]]),
  }
  targets = pretraining.MLM.targets(batch)
  sums = pretraining.unigram_metrics(*targets, log_probs)
  want = -np.log(0.5 * 0.2 * 0.3)
  np.testing.assert_allclose(sums["unigram_loss"], (want, 3), rtol=1e-6)
  right = sums["most_frequent_token_accuracy"]
  assert tuple(map(float, right)) == (1, 3)


def test_an_unknown_objective_names_those_there_are():
  with pytest.raises(ValueError, match="objective='nsp'.*mlm_nsp, mlm"):
    table.get("nsp")


def _compared_names(path):
  """The texts that a file compares something with, by their lines."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Compare):
      for part in (node.left, *node.comparators):
        for one in ast.walk(part):
          if isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one.value, f"{path.name}:{node.lineno}"


def test_no_prediction_asks_for_the_name_of_a_kind():
  room = pathlib.Path(table.__file__).parents[1] / "prediction"
  found = [
    (name, line)
    for path in room.rglob("*.py")
    for name, line in _compared_names(path)
    if name in table.ANSWERERS
  ]
  assert not found
