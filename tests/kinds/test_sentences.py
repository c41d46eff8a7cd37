"""Tests of kinds/sentences.py, rerank.py and ranking.py."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bert_jax
from bert_jax import weights
from bert_jax.kinds import ranking
from bert_jax.kinds import table
from bert_jax.models.config import ModelConfig
from bert_jax.runtime import runs
from bert_jax.tasks import own_rankings
from bert_jax.tasks import spec
from bert_jax.training import evaluate
from bert_jax.training import jobs
from bert_jax.training import steps
from bert_jax.training import train
from tests.support import small_tasks

WORDS = small_tasks.WORDS


def kind_of(name, **changes):
  found = table.TASK_KINDS[name]
  found = type(found)()
  for key, value in changes.items():
    setattr(found, key, value)
  return found


def loss_of(kind, vectors, label, weight):
  batch = {"label": jnp.asarray(label), "weight": jnp.asarray(weight)}
  total, count = kind.loss(jnp.asarray(vectors, jnp.float32), batch)
  return float(total), float(count)


def unit(degrees):
  angle = np.deg2rad(degrees)
  return [np.cos(angle), np.sin(angle)]


# --- The losses ---


def test_a_query_meets_the_passages_of_the_whole_batch():
  """Two rows of one example each: query and passage, at given angles."""
  vectors = [[unit(0), unit(30)], [unit(90), unit(120)]]
  label = [[[0, 1]], [[2, 3]]]
  kind = kind_of("contrast", temperature=0.5)
  total, weight = loss_of(kind, vectors, label, [[1.0], [1.0]])
  want = 0.0
  for query, angles in ((0, (30, 120)), (90, (120, 30))):
    scores = [np.cos(np.deg2rad(query - x)) / 0.5 for x in angles]
    want += np.log(np.exp(scores).sum()) - scores[0]
  assert weight == 2
  assert total == pytest.approx(want, rel=1e-6)
  # Longer vectors change nothing, unless they are compared by the product.
  longer = np.array(vectors) * 3
  assert loss_of(kind, longer, label, [[1.0], [1.0]])[0] == pytest.approx(
    total, rel=1e-6
  )
  kind.normalize = False
  assert loss_of(kind, longer, label, [[1.0], [1.0]])[0] < total / 2


@pytest.mark.parametrize(
  ("other", "counts"),
  [
    ([2, 3], True),  # another passage
    ([2, 1], False),  # the same passage of another query
    ([0, 3], False),  # a passage of the same query
    ([2, 0], False),  # the query itself
  ],
)
def test_right_answers_of_others_are_not_wrong_ones(other, counts):
  vectors = np.random.default_rng(0).normal(size=(2, 2, 3))
  kind = kind_of("contrast")
  label = [[[0, 1]], [other]]
  # The second example weighs nothing in the sum, but its passage is there.
  batch = {
    "label": jnp.array(label, jnp.int32), "weight": jnp.ones((2, 1))
  }  # fmt: skip
  compared = np.asarray(kind._compared(batch))
  assert compared.shape == (2, 2)
  assert compared[0].tolist() == [True, counts]
  total, _ = loss_of(kind, vectors, label, [[1.0], [1.0]])
  assert np.isfinite(total)


def test_slots_without_an_example_are_no_passages():
  vectors = np.random.default_rng(0).normal(size=(2, 6, 3))
  label = [[[0, 1, 2], [3, 4, -1]], [[5, 6, 7], [0, 0, 0]]]
  kind = kind_of("contrast")
  total, count = loss_of(kind, vectors, label, [[1.0, 1], [1, 0]])
  assert count == 3
  # The number of rows that hold the same three examples does not matter.
  flat = vectors.reshape(1, 12, 3)[:, :9]
  again, _ = loss_of(
    kind, flat, [[[0, 1, 2], [3, 4, -1], [5, 6, 7]]], [[1.0, 1, 1]]
  )
  assert total == pytest.approx(again, rel=1e-6)
  grads = jax.grad(
    lambda x: kind.loss(x, {
      "label": jnp.array(label, jnp.int32),
      "weight": jnp.array([[1.0, 1], [1, 0]]),
    })[0]
  )(jnp.zeros((2, 6, 3)))  # fmt: skip
  assert np.isfinite(grads).all()


def test_matryoshka_is_the_sum_over_sizes():
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(4, 2, 8))
  label = np.arange(8).reshape(4, 1, 2)
  weight = np.ones((4, 1), np.float32)
  plain = kind_of("contrast")
  parts = [loss_of(plain, vectors[..., :n], label, weight)[0] for n in (8, 2)]
  kind = kind_of("contrast", sizes=(8, 2), size_weights=(1.0, 0.5))
  total, count = loss_of(kind, vectors, label, weight)
  assert total == pytest.approx(parts[0] + 0.5 * parts[1], rel=1e-6)
  assert count == 4


def test_similarity_orders_pairs():
  """Scores 1 > 0: the cosine of the first should exceed that of the second."""
  vectors = [[unit(0), unit(60)], [unit(0), unit(90)], [unit(0), unit(10)]]
  kind = kind_of("similarity", temperature=0.5)
  label, weight = [[1.0], [0.0], [5.0]], [[1.0], [1.0], [0.0]]
  total, count = loss_of(kind, vectors, label, weight)
  assert count == 2
  assert total / count == pytest.approx(np.log1p(np.exp(-0.5 / 0.5)), rel=1e-5)


def test_losses_of_a_reranker_by_hand():
  scores = jnp.array([[[0.0], [1.0], [2.0], [9.0]]])
  batch = {
    "label": jnp.array([[0, 0]]), "weight": jnp.array([[1.0, 1.0]]),
    "num_choices": jnp.array([[2, 1]]),
  }  # fmt: skip
  kind = kind_of("rerank")
  total, weight = kind.loss(scores, batch)
  assert (float(total), float(weight)) == pytest.approx((np.log1p(np.e), 2))
  kind.rank_loss = "pointwise"
  total, _ = kind.loss(scores, batch)
  first = (np.log(2) + np.log1p(np.e)) / 2  # right at 0, wrong at 1
  assert float(total) == pytest.approx(first + np.log1p(np.exp(-2.0)))


# --- Scores ---


def test_scores_of_a_ranking_by_hand():
  ranks = ranking.ranks_of(np.array([0.1, 0.9, 0.5, 0.7]), [2, 1])
  assert ranks.tolist() == [1, 3]
  assert ranking.recall(ranks, 1) == 0.5
  assert ranking.reciprocal_rank(ranks, 10) == 1
  best = 1 + 1 / np.log2(3)
  assert ranking.ndcg(ranks, 10) == pytest.approx(1.5 / best)
  # A model that scores all alike gains nothing.
  assert ranking.ranks_of(np.zeros(5), [0]).tolist() == [5]
  assert ranking.ndcg(np.array([11]), 10) == 0


def test_equal_texts_are_one_query_and_one_passage():
  vectors = np.eye(3)
  found = ranking.retrieval(
    ["q", "q", "r"],
    [["a"], ["b"], ["a", "c"]],
    np.stack([vectors[0], vectors[0], vectors[0]]),
    [[vectors[0]], [vectors[1]], [vectors[0], vectors[2]]],
    ("recall_at_1", "mrr_at_10"),
  )
  # Of q, a comes first and b not among equals; of r, a comes first.
  assert found == {"recall_at_1": 0.75, "mrr_at_10": 1.0}


# --- Data ---


def read(tmp_path, rows, **facts):
  path = tmp_path / "train.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  task = table.make_task("embed", **{"text": (), "label": ""} | facts)
  return own_rankings.read(task, str(path), "train")


def test_columns_of_queries_passages_and_negatives(tmp_path):
  rows = [
    {"anchor": "a", "positive": "b", "negative": "c", "negative_2": "d"},
    {"anchor": "e", "positive": "f", "negative": ["g", "f", "g"],
     "negative_2": None},
  ]  # fmt: skip
  found = read(tmp_path, rows)
  assert [e.pairs for e in found] == [
    (("a", "b"), ("a", "c"), ("a", "d")),
    (("e", "f"), ("e", "g")),
  ]
  found = read(tmp_path, rows, text=("query: {anchor}", "positive"))
  assert found[0].pairs == (("query: a", "b"),)


@pytest.mark.parametrize(
  ("row", "text", "message"),
  [
    ({"query": "a"}, (), "query .or anchor. and positive.*found query"),
    ({"query": "a", "positive": " "}, (), "jsonl:1: positive is empty"),
    ({"query": "a", "positive": ["b"]}, (), "positive is a list"),
    ({"query": "a", "positive": "b", "negative": [1]}, (), "list of texts"),
    ({"query": "a", "positive": "b"}, ("query",), "names one column"),
    ({"query": "a", "positive": "b"}, ("query", "x"), "no column 'x'"),
  ],
)
def test_rows_that_cannot_be_used(tmp_path, row, text, message):
  with pytest.raises(spec.TaskError, match=message):
    read(tmp_path, [row], text=text)


# --- Training ---


def rows_of(form, count, seed):
  """The word of a query that counts stands in its passage, too."""
  rng = random.Random(seed)
  for _ in range(count):
    key, other = rng.sample(WORDS, 2)
    noise = [rng.choice(WORDS[:4]) for _ in range(2)]
    first, second = f"{key} {noise[0]}", f"{noise[1]} {key}"
    if form == "similarity":
      is_same = rng.random() < 0.5
      text = second if is_same else f"{noise[1]} {other}"
      yield {"a": first, "b": text, "score": float(is_same)}
    else:
      yield {
        "query": first, "positive": second, "negative": f"{noise[1]} {other}"
      }  # fmt: skip


@pytest.fixture
def make(tmp_path):
  def make(form, **changes):
    config = small_tasks.make_config(tmp_path, "classify")
    config.task.name = f"my-{form}"
    config.task.text, config.task.label = (), ""
    if form == "similarity":
      config.task.text, config.task.label = ("a", "b"), "score"
    for split, count, seed in (("train", 96, 0), ("validation", 40, 1)):
      with open(tmp_path / f"{split}.jsonl", "w") as f:
        f.writelines(
          json.dumps(row) + "\n" for row in rows_of(form, count, seed)
        )
    config.update_from_flattened_dict(
      {k.replace("__", "."): v for k, v in changes.items()}
    )
    return config

  return make


@pytest.mark.parametrize("name", ["embed", "similarity"])
def test_cached_gradients_are_those_of_the_whole_batch(make, name):
  config = make(name, task__matryoshka_sizes=(32, 8), data__pack=False)
  job, _ = jobs.open_job(config, "")
  mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"))
  batch = jax.tree.map(jnp.asarray, job.batches(mesh)[0])
  inputs = {k: v[:1] for k, v in job.objective.arguments(batch).items()}
  params = job.model.init(jax.random.key(0), **inputs)["params"]
  found = []
  for parts in (1, 4):
    gradients = steps.make_gradients(
      job.model, job.objective, jax.random.key(1), parts
    )
    found.append(jax.jit(gradients)(params, batch, 0)[:3])
  (loss, _, want), (cached, _, got) = found
  assert float(loss) == pytest.approx(float(cached), rel=1e-6)
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want))
  assert scale > 1e-3
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * scale), got, want
  )


def test_both_passes_of_cached_gradients_draw_the_same_dropout(make):
  """The loss and its gradient belong to one function of the parameters."""
  config = make("embed", model__dropout_rate=0.3, data__pack=False)
  job, _ = jobs.open_job(config, "")
  mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"))
  batch = jax.tree.map(jnp.asarray, job.batches(mesh)[0])
  inputs = {k: v[:1] for k, v in job.objective.arguments(batch).items()}
  params = job.model.init(jax.random.key(0), **inputs)["params"]
  gradients = jax.jit(
    steps.make_gradients(job.model, job.objective, jax.random.key(1), 4)
  )
  _, _, grads, _ = gradients(params, batch, 0)
  norm = float(jnp.sqrt(sum((x**2).sum() for x in jax.tree.leaves(grads))))
  step = 1e-2 / norm

  def at(sign):
    moved = jax.tree.map(lambda p, g: p + sign * step * g, params, grads)
    return float(gradients(moved, batch, 0)[0])

  slope = (at(1) - at(-1)) / (2 * step)
  assert slope == pytest.approx(norm**2, rel=2e-2)


def test_a_trained_model_finds_passages_and_sentence_transformers_agrees(
  make, tmp_path
):
  workdir = str(tmp_path / "run")
  config = make(
    "embed", train__export="huggingface", optim__num_micro_batches=2
  )
  scores = train.train(config, workdir)
  assert scores["eval/recall_at_1"] > 0.15  # by chance 1 of about 70
  assert 0 < scores["eval/recall_at_1"] <= scores["eval/recall_at_10"] <= 1
  run = runs.read_run(workdir)
  assert run["sentence"] == ["mean", "normalize"]
  assert weights.read(workdir).sentence == ("mean", "normalize")
  again = evaluate.evaluate(config, workdir, None)
  assert again["eval/ndcg_at_10"] == pytest.approx(scores["eval/ndcg_at_10"])
  texts = ["sun moon", "rain", "sky hill lake"]
  ours = [x.sentence for x in bert_jax.load(workdir).embed(
    texts, fields=["sentence"]
  )]  # fmt: skip
  np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, rtol=1e-5)
  exported = str(tmp_path / "run/export")
  read_back = [x.sentence for x in bert_jax.load(exported).embed(texts)]
  np.testing.assert_allclose(read_back, ours, atol=1e-6)
  theirs = pytest.importorskip("sentence_transformers")
  model = theirs.SentenceTransformer(exported, device="cpu")
  assert model.max_seq_length == config.data.seq_len
  np.testing.assert_allclose(model.encode(texts), ours, atol=1e-5)


def test_a_reranker_is_used_as_a_regression(make, tmp_path):
  workdir = str(tmp_path / "run")
  config = make("rerank", train__export="huggingface", train__num_epochs=2.0)
  scores = train.train(config, workdir)
  assert 0.3 < scores["eval/mrr_at_10"] <= 1
  found = weights.read(workdir)
  assert found.kind == "regress"
  pairs = [("sun moon", "rain sun"), ("hill sky", "moon lake")]
  ours = bert_jax.load(workdir).regress(*zip(*pairs, strict=True))
  theirs = pytest.importorskip("sentence_transformers")
  model = theirs.CrossEncoder(str(tmp_path / "run/export"), device="cpu")
  got = model.predict(pairs, activation_fn=lambda x: x)
  np.testing.assert_allclose(got, [x.score for x in ours], atol=1e-5)


@pytest.mark.slow
def test_a_model_of_similarity_is_scored_by_spearman(make, tmp_path):
  config = make("similarity", task__pooling="cls")
  scores = train.train(config, str(tmp_path / "run"))
  assert scores["eval/spearman"] > 0.3
  assert weights.read(str(tmp_path / "run")).sentence == ("cls", "normalize")


@pytest.mark.parametrize(
  ("form", "changes", "message"),
  [
    ("embed", {"task__matryoshka_sizes": (64,)}, "hidden_size=32"),
    ("embed", {"task__matryoshka_sizes": (8, 8)}, "a size twice"),
    ("embed", {"task__matryoshka_weights": (1.0,)}, "1 weights for 0 sizes"),
    ("embed", {"task__rank_loss": "pointwise"}, "rank_loss=pointwise has no"),
    ("rerank", {"task__pooling": "cls"}, "pooling=cls has no effect"),
    ("embed", {"task__label_smoothing": 0.1}, "label_smoothing=0.1 has no"),
    ("similarity", {"task__text": ("a",)}, "1 text columns"),
  ],
)
def test_settings_that_do_not_fit(make, form, changes, message):
  with pytest.raises(ValueError, match=message):
    jobs.open_job(make(form, **changes), "")


def test_a_reranker_needs_candidates(make, tmp_path):
  config = make("rerank")
  (tmp_path / "train.jsonl").write_text('{"query": "sun", "positive": "sky"}\n')
  job, _ = jobs.open_job(config, "")
  with pytest.raises(spec.TaskError, match="nothing to rank"):
    job.split("train")


def test_the_pooling_of_the_weights_is_that_of_the_training(make, tmp_path):
  workdir = str(tmp_path / "first")
  config = make("embed", task__pooling="cls", train__num_epochs=0.2)
  train.train(config, workdir)
  config = make("embed", init_from=workdir)
  job, _ = jobs.open_job(config, "")
  assert job.config.task.pooling == job.objective.pooling == "cls"
  assert isinstance(job.model.config, ModelConfig)
