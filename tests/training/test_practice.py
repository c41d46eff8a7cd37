"""Keys of fine-tuning: rates by place, frozen layers, losses, when to stop."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax import tasks
from bert_jax import weights
from bert_jax.kinds import losses
from bert_jax.kinds import span
from bert_jax.kinds import table
from bert_jax.models import params as param_trees
from bert_jax.runtime import metrics_log
from bert_jax.runtime import runs
from bert_jax.tasks import spec
from bert_jax.training import checks
from bert_jax.training import evaluate
from bert_jax.training import finetuning
from bert_jax.training import init_from
from bert_jax.training import optim
from bert_jax.training import train
from configs import base
from tests.support import run_checks
from tests.support import small_tasks

L = 3
PATHS = (
  "encoder/embeddings/word/embedding",
  "encoder/embeddings/norm/scale",
  "encoder/relative/norm/scale",
  *(f"encoder/layer_{i}/mlp/in/kernel" for i in range(L)),
  "encoder/final_norm/scale",
  "encoder/pooler/kernel",
  "task/kernel",
  "task/dense/bias",
)


def places(**changes):
  values = {
    "layer_decay": 1.0, "head_rate": 1.0, "frozen_layers": 0,
    "frozen_embeddings": False, "unfreeze_steps": 0,
  }  # fmt: skip
  return optim.Places(L, types.SimpleNamespace(**values | changes))


def ones():
  return param_trees.nest({path: jnp.ones([2, 2]) for path in PATHS})


def shares(tree):
  """Path -> the one value of an array."""
  flat = param_trees.flatten(tree)
  assert all((x == x.flat[0]).all() for x in map(np.asarray, flat.values()))
  return {path: float(np.asarray(x).flat[0]) for path, x in flat.items()}


def scale(step=0, **changes):
  return shares(places(**changes).scale(ones(), jnp.int32(step)))


def test_rates_fall_from_the_head_to_the_embeddings():
  found = scale(layer_decay=0.5, head_rate=10.0)
  assert found == {
    "encoder/embeddings/word/embedding": 0.0625,
    "encoder/embeddings/norm/scale": 0.0625,
    "encoder/relative/norm/scale": 0.0625,
    "encoder/layer_0/mlp/in/kernel": 0.125,
    "encoder/layer_1/mlp/in/kernel": 0.25,
    "encoder/layer_2/mlp/in/kernel": 0.5,
    "encoder/final_norm/scale": 1.0,
    "encoder/pooler/kernel": 1.0,
    "task/kernel": 10.0,
    "task/dense/bias": 10.0,
  }


def trained(step=0, **changes):
  """The last parts of the paths that are trained, by both functions."""
  some = places(**changes)
  found = [
    {path for path, value in shares(tree).items() if value}
    for tree in (
      some.mask(ones(), jnp.int32(step)), some.scale(ones(), jnp.int32(step)),
    )
  ]  # fmt: skip
  assert found[0] == found[1]
  return {path.removeprefix("encoder/").split("/")[0] for path in found[0]}


def test_frozen_parts_are_not_trained():
  every = {path.removeprefix("encoder/").split("/")[0] for path in PATHS}
  assert trained() == every
  assert trained(frozen_layers=2) == every - {"layer_0", "layer_1"}
  below = {"embeddings", "relative"}
  assert trained(frozen_embeddings=True) == every - below
  assert trained(frozen_layers=L, frozen_embeddings=True) == {
    "final_norm", "pooler", "task",
  }  # fmt: skip


def test_layers_are_unfrozen_one_by_one_from_the_top():
  above = {"final_norm", "pooler", "task"}
  below = {"embeddings", "relative"}
  for step, wanted in (
    (0, above),
    (9, above),
    (10, above | {"layer_2"}),
    (25, above | {"layer_2", "layer_1"}),
    (30, above | {"layer_2", "layer_1", "layer_0"}),
    (40, above | {"layer_2", "layer_1", "layer_0"} | below),
  ):
    assert trained(step, unfreeze_steps=10) == wanted, step
  assert "layer_0" not in trained(40, unfreeze_steps=10, frozen_layers=1)


def test_stacked_layers_have_the_rates_of_separate_ones():
  some = places(layer_decay=0.5, frozen_layers=1, unfreeze_steps=10)
  tree = {"encoder": {"layers": {"mlp": {"kernel": jnp.ones([L, 2, 2])}}}}
  found = some.scale(tree, jnp.int32(20))["encoder"]["layers"]["mlp"]["kernel"]
  assert found[:, 0, 0].tolist() == [0.0, 0.25, 0.5]
  assert (found == found[:, :1, :1]).all()
  assert (some.mask(tree, jnp.int32(10))["encoder"]["layers"]["mlp"]["kernel"]
          [:, 1, 1].tolist() == [0.0, 0.0, 1.0])  # fmt: skip


def test_frozen_layers_keep_their_bits_in_spite_of_weight_decay():
  some = places(frozen_layers=2, frozen_embeddings=True)
  tx = optax.adamw(0.1, weight_decay=0.5)
  params = start = ones()
  state = tx.init(params)
  for step in range(3):
    grads = some.mask(ones(), jnp.int32(step))
    updates, state = tx.update(grads, state, params)
    updates = some.scale(updates, jnp.int32(step))
    params = optax.apply_updates(params, updates)
  for path, value in param_trees.flatten(params).items():
    is_frozen = "embeddings" in path or "relative" in path
    is_frozen |= "layer_0" in path or "layer_1" in path
    same = np.array_equal(value, param_trees.flatten(start)[path])
    assert same == is_frozen, path


def test_more_frozen_layers_than_there_are_is_refused():
  config = types.SimpleNamespace(
    model={"layer_groups": 0, "num_layers": 2},
    optim=places(frozen_layers=3).config,
  )
  config.model = types.SimpleNamespace(
    get=lambda name: 0, num_layers=2
  )  # a ConfigDict
  with pytest.raises(ValueError, match=r"frozen_layers=3, .* 2 layers"):
    optim.places_of(config)
  config.optim = places().config
  assert optim.places_of(config) is None


# --- losses ---


def by_hand(logits, labels, weights, class_weights, smoothing, gamma):
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  total = weight = 0.0
  for row, label, w in zip(p, labels, weights, strict=True):
    own = class_weights[label]
    hard = own * (1 - row[label]) ** gamma * -np.log(row[label])
    soft = sum(c * -np.log(q) for c, q in zip(class_weights, row, strict=True))
    total += w * ((1 - smoothing) * hard + smoothing * soft / len(row))
    weight += w * own
  return total, weight


@pytest.mark.parametrize(
  ("class_weights", "smoothing", "gamma"),
  [
    ((1.0, 1.0, 1.0), 0.1, 0.0),
    ((1.0, 1.0, 1.0), 0.0, 2.0),
    ((0.5, 2.0, 0.0), 0.0, 0.0),
    ((0.5, 2.0, 1.0), 0.2, 1.5),
  ],
)
def test_losses_of_classes_by_hand(class_weights, smoothing, gamma):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(6, 3))
  labels, weights = np.array([0, 1, 2, 1, 0, 2]), np.array([1, 1, 1, 0, 1, 1.0])
  options = losses.Options(lambda: np.array(class_weights), smoothing, gamma)
  found = losses.class_cross_entropy(
    jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights), options
  )
  wanted = by_hand(logits, labels, weights, class_weights, smoothing, gamma)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_plain_options_are_the_plain_loss_to_the_bit():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
  given = (logits, jnp.array([0, 1, 2, 0]), jnp.ones(4))
  assert losses.class_cross_entropy(*given) == losses.cross_entropy(*given)


def test_choices_that_an_example_lacks_get_no_share_of_the_smoothing():
  logits = np.array([[1.0, 0.0, -1e9]])
  options = losses.Options(smoothing=0.1)
  given = (jnp.array([0]), jnp.ones(1), options)
  found = losses.class_cross_entropy(
    jnp.asarray(logits), *given, jnp.array([[True, True, False]])
  )
  wanted = losses.class_cross_entropy(jnp.asarray(logits[:, :2]), *given)
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_gradients_of_focal_loss_are_finite_for_sure_predictions():
  options = losses.Options(gamma=0.5)

  def loss(logits):
    return losses.class_cross_entropy(
      logits, jnp.array([0]), jnp.ones(1), options
    )[0]

  grad = jax.grad(loss)(jnp.array([[200.0, 0.0]]))
  assert np.isfinite(grad).all()


def test_losses_of_several_labels_by_hand():
  x, y = np.array([[0.3, -1.0]]), np.array([[1.0, 0.0]])
  p = 1 / (1 + np.exp(-x))
  options = losses.Options(lambda: np.array([3.0, 5.0]), 0.2, 2.0)
  found = losses.sigmoid_cross_entropy(
    jnp.asarray(x), jnp.asarray(y), jnp.ones([1, 1]), options
  )
  soft = y * 0.8 + 0.1
  each = -(soft * np.log(p) + (1 - soft) * np.log(1 - p))
  each *= np.array([[1 - p[0, 0], p[0, 1]]]) ** 2 * np.array([[3.0, 1.0]])
  np.testing.assert_allclose(found, (each.sum(), 2.0), rtol=1e-5)


def test_balanced_weights():
  kind = table.KINDS["classify"]
  found = kind.balanced_weights(np.array([0, 0, 0, 1, -1]), 3)
  np.testing.assert_allclose(found, [4 / 6, 4 / 2, 0.0])
  many = table.KINDS["multi_label"]
  label = np.array([[1, 0], [1, 0], [0, 0], [1, 1]], np.float32)
  np.testing.assert_allclose(many.balanced_weights(label, 2), [1 / 3, 3.0])


def test_a_question_that_is_drawn_twice_counts_twice(monkeypatch):
  task = tasks.TASKS["squad_v2"]
  # Right; wrong; rightly unanswered.
  examples = [
    spec.SpanExample("a", "?", "x y", (("x", 0),), False),
    spec.SpanExample("b", "?", "x y", (("y", 2),), False),
    spec.SpanExample("n", "?", "x y", (), True),
  ]
  answers = [
    span.SpanPrediction("x", "x", -3.0, ()),
    span.SpanPrediction("x", "x", -1.0, ()),
    span.SpanPrediction("", "x", 2.0, ()),
  ]
  drawn = [0, 0, 0, 1, 2]
  monkeypatch.setattr(
    finetuning.uncertainty,
    "bootstrap",
    lambda score, *_: {k: (v, v) for k, v in score(drawn).items()},
  )
  split = types.SimpleNamespace(task=task, examples=examples)
  job = types.SimpleNamespace(
    config=types.SimpleNamespace(eval={"bootstrap": 1}),
    split=lambda _: split,
    eval_splits=("dev",),
    objective=span.SPAN,
  )
  evaluator = types.SimpleNamespace(predicted={"dev": answers})
  found = finetuning.FineTuning.intervals(job, evaluator)
  assert found["eval/exact_low"] == found["eval/f1_high"] == 100 * 4 / 5
  assert found["eval/HasAns_exact_low"] == 100 * 3 / 4
  assert found["eval/NoAns_exact_low"] == 100
  # Nothing answered: 1; the three right ones: 4.
  assert found["eval/best_exact_low"] == 100 * 4 / 5
  assert not [k for k in found if "total" in k or "thresh" in k]


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.15])
def test_losses_are_those_of_torch(smoothing):
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(1)
  logits, labels = rng.normal(size=(20, 4)), rng.integers(0, 4, 20)
  class_weights = np.array([0.2, 1.0, 3.0, 0.5])
  options = losses.Options(lambda: class_weights, smoothing)
  total, weight = losses.class_cross_entropy(
    jnp.asarray(logits), jnp.asarray(labels), jnp.ones(20), options
  )
  wanted = torch.nn.CrossEntropyLoss(
    weight=torch.tensor(class_weights), label_smoothing=smoothing
  )(torch.tensor(logits), torch.tensor(labels))
  np.testing.assert_allclose(total / weight, float(wanted), rtol=1e-5)


# --- weights to start from ---


def test_top_layers_start_fresh():
  flat = {path: np.ones([2, 2], np.float32) for path in PATHS}
  tree = init_from._without_top(param_trees.nest(flat), 2, "WEIGHTS")
  fresh = [path for path, x in param_trees.flatten(tree).items() if x is None]
  assert fresh == [
    "encoder/layer_1/mlp/in/kernel",
    "encoder/layer_2/mlp/in/kernel",
    "encoder/pooler/kernel",
  ]
  with pytest.raises(ValueError, match=r"reinit_layers=4.* 3 layers"):
    init_from._without_top(param_trees.nest(flat), 4, "WEIGHTS")


@pytest.mark.parametrize(
  ("values", "says"),
  [
    ({"init_moments": True}, "init_moments=True.*no moments"),
    (
      {"init_moments": True, "init_from": "/run", "init_random": True},
      "init_moments=True.*init_random=True",
    ),
    ({"init_layers": 6}, "init_layers=6.*model.num_layers"),
    ({"reinit_layers": 1}, "reinit_layers=1.*init_from"),
    ({"init_changes": ("model.max_len=8",)}, "init_changes.*group model"),
  ],
)
def test_keys_about_weights_need_weights(values, says):
  config = base.get_config()
  config.update(values)
  with pytest.raises(ValueError, match=says):
    checks.check_settings(config)


@pytest.mark.parametrize("members", [(), (2,)])
def test_top_layers_of_a_stack_start_fresh(members):
  kernel = np.arange(12, dtype=np.float32).reshape(L, 2, 2)
  tree = init_from._without_top(
    {"encoder": {"layers": {"kernel": kernel}}}, 1, "WEIGHTS"
  )
  fresh = {
    "encoder": {"layers": {"kernel": jnp.full([*members, L, 2, 2], -1.0)}}
  }
  placed = init_from.place_params(fresh, tree)["encoder"]["layers"]["kernel"]
  wanted = kernel.copy()
  wanted[2] = -1
  np.testing.assert_array_equal(placed, np.broadcast_to(wanted, placed.shape))


# --- whole runs ---


@pytest.fixture
def make_config(tmp_path):
  return functools.partial(small_tasks.make_config, tmp_path)


def _evaluations(workdir):
  rows = metrics_log.read_metrics(workdir)
  return {r["step"]: r["eval/loss"] for r in rows if "eval/loss" in r}


def test_a_run_stops_early_and_its_best_step_is_read(make_config, tmp_path):
  config = make_config(
    train__num_epochs=6.0, train__patience=1, eval__every_epochs=0.5,
    checkpoint__best_metric="eval/loss", task__dev_rate=0.25,
    task__class_weights=("balanced",), task__label_smoothing=0.1,
    optim__layer_decay=0.9, optim__learning_rate=1.0,
  )  # fmt: skip
  config.task.files.validation = ""
  run = str(tmp_path / "run")
  found = train.train(config, run)
  losses_found = _evaluations(run)
  steps = list(losses_found)
  assert steps[0] == 2  # half an epoch of 72 of 96 examples is 2.25 steps
  values = list(losses_found.values())
  assert values[-1] >= min(values[:-1]) and len(values) < 13
  assert all(b < min(values[: i + 1]) for i, b in enumerate(values[1:-1]))
  assert found["eval/loss"] == values[-1]
  assert train.train(config, run) == {}  # is trained already
  best = min(losses_found, key=losses_found.get)
  again = evaluate.evaluate(config, run, None)
  assert again["eval/loss"] == pytest.approx(losses_found[best], rel=1e-5)
  facts = runs.read_run(run)
  assert facts["total_steps"] > steps[-1]


@pytest.mark.parametrize(
  ("form", "key", "value", "says"),
  [
    ("regress", "class_weights", ("balanced",), "kind regress"),
    ("span", "label_smoothing", 0.1, "kind span"),
    ("choice", "class_weights", ("1", "2"), "kind choice"),
    ("classify", "class_weights", ("1", "2", "3"), "2 labels moon, sun"),
    ("classify", "class_weights", ("1", "x"), "2 labels moon, sun"),
    ("classify", "class_weights", ("-1", "1"), "2 labels moon, sun"),
    ("classify", "class_weights", ("balanced,1",), "2 labels moon, sun"),
    ("regress", "temperature", 1.5, "kind regress"),
    ("tag", "temperature", 1.5, "kind tag"),
    ("span", "temperature", 1.5, "kind span"),
  ],
)
def test_losses_that_a_kind_does_not_have_are_refused(
  make_config, form, key, value, says
):
  config = make_config(form, **{f"task__{key}": value})
  with pytest.raises(ValueError, match=f"task.{key}=.*{says}"):
    finetuning.FineTuning(config, None)


@pytest.mark.parametrize(
  ("objective", "name", "value"),
  [
    ("mlm", "task.long_texts", "mean"),
    ("mlm", "task.both_orders", True),
    ("mlm", "task.dev_seed", 3),
    ("mlm", "task.fold", 1),
    ("mlm", "task.class_weights", ("balanced",)),
    ("mlm", "task.temperature", 2.0),
    ("mlm_nsp", "eval.bootstrap", 100),
    ("task", "data.batch_warmup_sizes", (2, 4)),
    ("task", "data.batch_warmup_steps", 3),
    ("task", "data.mixture", ("/more",)),
    ("task", "data.mixture_weights", (1.0, 2.0)),
    ("task", "data.mixture_power", 0.5),
    ("task", "data.first_row", 8),
    ("task", "eval.mask_rate", 0.2),
  ],
)
def test_keys_without_effect_on_an_objective_are_refused(
  objective, name, value
):
  config = base.get_config()
  config.update_from_flattened_dict({"objective": objective, name: value})
  with pytest.raises(ValueError, match=f"{name}=.*objective={objective}"):
    checks.check_settings(config)
  config.objective = "mlm" if objective == "task" else "task"
  checks.check_effects(config)


def test_evaluate_refuses_intervals_of_a_pre_training(tmp_path):
  config = base.get_config()
  config.eval.bootstrap = 10
  with pytest.raises(ValueError, match="eval.bootstrap=10 has no effect"):
    evaluate.evaluate(config, str(tmp_path), None)


@pytest.mark.slow
def test_frozen_and_fresh_layers_of_a_run(make_config, tmp_path):
  first = str(tmp_path / "first")
  train.train(make_config(train__num_epochs=1.0, model__num_layers=3), first)
  config = make_config(
    train__num_epochs=1.0, optim__frozen_layers=1, reinit_layers=1,
    optim__frozen_embeddings=True, optim__unfreeze_steps=2,
  )  # fmt: skip
  config.init_from, config.task.vocab = first, ""
  run = str(tmp_path / "run")
  train.train(config, run)
  before, after = (
    param_trees.flatten(weights.read(x).params) for x in (first, run)
  )
  changed = {p for p in before if not np.array_equal(before[p], after[p])}
  for path in before:
    is_frozen = "embeddings" in path or "layer_0" in path
    assert (path in changed) != is_frozen, path


@pytest.mark.slow
def test_a_collapsed_model_is_named(make_config, tmp_path, caplog):
  config = make_config(train__num_epochs=0.2, optim__learning_rate=0.0)
  train.train(config, str(tmp_path / "run"))
  assert any(
    "all 40 predictions are" in record.message for record in caplog.records
  )


@pytest.mark.slow
def test_stopped_and_resumed_early_stopping_is_bit_equal(make_config, tmp_path):
  config = make_config(
    train__num_epochs=6.0, train__patience=2, eval__every_epochs=0.5,
    checkpoint__every_steps=2, optim__unfreeze_steps=4,
    optim__learning_rate=0.3,
  )  # fmt: skip
  config.checkpoint.best_metric = "eval/loss"
  whole, parts = run_checks.train_whole_and_in_parts(config, tmp_path)
  assert _evaluations(whole) == _evaluations(parts)
  jax.tree.map(
    np.testing.assert_array_equal,
    weights.read(whole).params,
    weights.read(parts).params,
  )


@pytest.mark.slow
def test_long_texts_are_predicted_as_they_are_evaluated(make_config, tmp_path):
  from bert_jax.prediction import predict
  from configs import predict as predict_config

  config = make_config(
    train__num_epochs=1.0, data__seq_len=5, task__long_texts="mean",
    task__doc_stride=2, task__temperature=2.0,
  )  # fmt: skip
  run = str(tmp_path / "run")
  train.train(config, run)
  config.task.predict_splits = ("validation",)
  config.eval.bootstrap = 50
  found = evaluate.evaluate(config, run, None)
  for name in ("accuracy", "macro_f1"):
    low, high = (found[f"eval/{name}_{end}"] for end in ("low", "high"))
    assert low <= found[f"eval/{name}"] <= high and low < high
  path = tmp_path / "run/predictions/my-classify-validation.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  texts = [
    json.loads(line)
    for line in (tmp_path / "validation.jsonl").read_text().splitlines()
  ]
  predictor = predict.Predictor.load(run, predict_config.get_config())
  answers = list(predictor(texts))
  assert len(answers) == len(rows) == 40
  for row, answer in zip(rows, answers, strict=True):
    assert row["label"] == answer["label"] and "truncated" not in answer
    for label, value in row["probabilities"].items():
      assert answer["scores"][label] == pytest.approx(value, abs=1e-5)


@pytest.mark.slow
def test_folds_are_scored_together(make_config, tmp_path):
  from experiments.folds import pool

  runs_of_folds = []
  for fold in range(2):
    config = make_config(
      train__num_epochs=4.0, task__num_folds=2, task__fold=fold
    )
    config.task.files.validation = ""
    runs_of_folds.append(str(tmp_path / f"fold-{fold}"))
    train.train(config, runs_of_folds[-1])
  found = pool.pool(runs_of_folds)
  each = [
    metrics_log.read_metrics(run)[-1]["eval/accuracy"] for run in runs_of_folds
  ]
  assert found["accuracy"] == pytest.approx(np.mean(each), abs=0.02)
  with pytest.raises(ValueError, match="each fold once"):
    pool.pool(runs_of_folds[:1])
