"""Scores of rankings: recall, MRR and nDCG of the passages of queries.

Source: Järvelin and Kekäläinen 2002 (nDCG, with gains of 0 and 1); Craswell
2009 (MRR).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# Queries that are compared with all passages at a time.
_BLOCK = 256
_CUTOFF = 10


def recall(ranks: np.ndarray, cutoff: int) -> float:
  """Returns the share of the right passages among the first `cutoff`.

  Args:
    ranks: the ranks of all right passages of a query, ascending, from 1.
    cutoff: k.
  """
  return float(np.count_nonzero(ranks <= cutoff) / len(ranks))


def reciprocal_rank(ranks: np.ndarray, cutoff: int) -> float:
  """Returns 1 / the rank of the first right passage; 0 beyond `cutoff`."""
  return float(1 / ranks[0]) if ranks[0] <= cutoff else 0.0


def ndcg(ranks: np.ndarray, cutoff: int) -> float:
  """Returns the discounted gain of a ranking, divided by that of the best.

  Example:
    >>> round(ndcg(np.array([2]), 10), 4)
    0.6309
  """
  gains = 1 / np.log2(ranks[ranks <= cutoff] + 1.0)
  best = 1 / np.log2(np.arange(1, min(len(ranks), cutoff) + 1) + 1.0)
  return float(gains.sum() / best.sum())


# Metric -> (ranks of the right passages) -> score of a query.
_OF_QUERY: Mapping[str, Callable[[np.ndarray], float]] = {
  "ndcg_at_10": lambda ranks: ndcg(ranks, _CUTOFF),
  "mrr_at_10": lambda ranks: reciprocal_rank(ranks, _CUTOFF),
  "recall_at_1": lambda ranks: recall(ranks, 1),
  "recall_at_10": lambda ranks: recall(ranks, _CUTOFF),
  "recall_at_100": lambda ranks: recall(ranks, 100),
}


def _unused(task: Any, guess: Any, right: Any) -> float:
  raise NotImplementedError("scores of rankings need the passages of a query")


METRICS = dict.fromkeys(_OF_QUERY, _unused)
# Candidates of a query are few, so that recall at 100 says nothing.
RERANK_METRICS = {k: v for k, v in METRICS.items() if k != "recall_at_100"}


def ranks_of(scores: np.ndarray, right: Iterable[int]) -> np.ndarray:
  """Returns the ranks of some passages by their scores, ascending, from 1.

  Of equal scores, wrong passages come first, so that a model that scores all
  alike gains nothing.

  Args:
    scores: [P] the score of each passage.
    right: the numbers of the right passages.
  """
  numbers = np.array(sorted(right))
  is_right = np.zeros(len(scores), bool)
  is_right[numbers] = True
  order = np.lexsort((is_right, -scores))
  ranks = np.empty(len(scores), np.int64)
  ranks[order] = np.arange(1, len(scores) + 1)
  return np.sort(ranks[numbers])


def mean_scores(
  every: Sequence[np.ndarray], metrics: Iterable[str]
) -> dict[str, float]:
  """Returns the mean over queries of each metric.

  Args:
    every: for each query the ranks of its right passages.
    metrics: keys of `METRICS`.
  """
  return {
    name: float(np.mean([_OF_QUERY[name](ranks) for ranks in every]))
    for name in metrics
  }


def retrieval(
  queries: Sequence[str],
  passages: Sequence[Sequence[str]],
  query_vectors: np.ndarray,
  passage_vectors: Sequence[np.ndarray],
  metrics: Iterable[str],
) -> dict[str, float]:
  """Returns how well queries find their passages among those of all queries.

  Equal texts are one query or one passage. The first passages of all examples
  with the same query are right.

  Args:
    queries: the query of each example.
    passages: the passages of each example, the right one first.
    query_vectors: [E, D].
    passage_vectors: for each example the vectors of its passages.
    metrics: keys of `METRICS`.
  """
  found: dict[str, np.ndarray] = {}
  right: dict[str, set[str]] = {}
  first: dict[str, int] = {}
  for i, (query, texts) in enumerate(zip(queries, passages, strict=True)):
    first.setdefault(query, i)
    right.setdefault(query, set()).add(texts[0])
    for text, vector in zip(texts, passage_vectors[i], strict=True):
      found.setdefault(text, vector)
  numbers = {text: i for i, text in enumerate(found)}
  corpus = np.stack(list(found.values()))
  every = []
  asked = list(first)
  for start in range(0, len(asked), _BLOCK):
    block = asked[start : start + _BLOCK]
    scores = query_vectors[[first[query] for query in block]] @ corpus.T
    every += [
      ranks_of(row, (numbers[text] for text in right[query]))
      for query, row in zip(block, scores, strict=True)
    ]
  return mean_scores(every, metrics)
