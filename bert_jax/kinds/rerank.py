"""Rerankers: a query and a passage are read together and get a score.

Source: Nogueira and Cho 2019, arXiv:1901.04085; Gao, Dai and Callan 2021,
arXiv:2101.08751 (the loss over the candidates of a query).
"""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.kinds import choice
from bert_jax.kinds import losses
from bert_jax.kinds import ranking
from bert_jax.kinds import task_kind
from bert_jax.tasks import own
from bert_jax.tasks import own_rankings
from bert_jax.tasks import spec
from bert_jax.weights import task_heads


class Rerank(task_kind.TaskKind):
  """Scores the passages of a query, the right one highest.

  Attributes:
    rank_loss: "softmax" over the candidates of a query, or "pointwise": each
      pair is right or wrong by itself.
  """

  name = "rerank"
  # Others use the model as one that gives a pair a number.
  head = task_heads.HEADS["regress"]
  scores = ranking.RERANK_METRICS
  forms = {"rerank": own.Form(scores, (0, 0), own_rankings.read, columns=())}
  own_settings = ("rank_loss",)
  num_choices = 2
  counts_choices = True
  rank_loss = "softmax"

  def for_config(self, config: Any) -> "Rerank":
    found = copy.copy(self)
    found.rank_loss = config.task.rank_loss
    return found

  def facts(self, task: spec.Task) -> dict[str, Any]:
    del task
    return {"task": {"kind": self.head.name, "labels": []}}

  def _features(self, task, examples, tokenizer, seq_len):
    """Makes a sequence of the query with each of its passages."""
    few = min(examples, key=lambda example: len(example.pairs))
    if len(few.pairs) < 2:
      raise spec.TaskError(
        f"task {task.name}: the query of example {few.id} has one passage, so "
        "there is nothing to rank; give each query a negative, or more"
      )
    return super()._features(task, examples, tokenizer, seq_len)

  def loss(self, outputs, batch, options=losses.PLAIN):
    if self.rank_loss == "softmax":
      return choice.CHOICE.loss(outputs, batch, options)
    rows, groups = batch["label"].shape
    scores = outputs.reshape(rows, groups, -1).astype(jnp.float32)
    at = jnp.arange(scores.shape[-1])[None, None]  # [1, 1, C]
    exists = jnp.ones(scores.shape, bool)
    if "num_choices" in batch:
      exists = at < batch["num_choices"][..., None]
    is_right = (at == batch["label"][..., None]).astype(jnp.float32)
    each = jnp.where(exists, _binary(scores, is_right), 0.0).sum(-1)
    each /= jnp.maximum(exists.sum(-1), 1)
    weight = batch["weight"].astype(jnp.float32)
    return (each * weight).sum(), weight.sum()

  def _decode(self, task, features, outputs, **options):
    """Returns the score of each passage of each query, float64 [C]."""
    groups = outputs.reshape(len(features), -1)
    return task_kind.without_filling(features, groups)

  def _score(self, task, predictions, examples):
    found: dict[str, dict[str, float]] = {}
    right: dict[str, set[str]] = {}
    for example, scores in zip(examples, predictions, strict=True):
      query = example.pairs[0][0]
      right.setdefault(query, set()).add(example.pairs[example.label][1])
      known = found.setdefault(query, {})
      for (_, passage), score in zip(example.pairs, scores, strict=True):
        known.setdefault(passage, float(score))
    every = []
    for query, known in found.items():
      texts = list(known)
      numbers = [texts.index(text) for text in right[query]]
      every.append(ranking.ranks_of(np.array(list(known.values())), numbers))
    return ranking.mean_scores(every, task.metrics)

  def row(self, task, prediction):
    return {"scores": [float(score) for score in prediction]}


def _binary(scores: jax.Array, is_right: jax.Array) -> jax.Array:
  """Returns -log of the probability of each answer, yes or no."""
  return jax.nn.softplus(scores) - scores * is_right


RERANK = Rerank()
