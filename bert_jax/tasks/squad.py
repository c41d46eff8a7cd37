"""SQuAD's official scores.

  python -m bert_jax.tasks.squad DATA.json PREDICTIONS.json
    [--na-prob-file null_odds.json] [--na-prob-thresh 0.0]

prints what the official script of the file's version prints, under its keys.
All scores are in percent, as there.

Source: https://aclanthology.org/D16-1264, https://aclanthology.org/P18-2124;
  the scripts evaluate-v1.1.py and evaluate-v2.0.py that came with the data
"""

import argparse
import collections
from collections.abc import Iterable, Mapping, Sequence
import json
import re
import string
import sys
from typing import Any

from bert_jax.tasks import spec
from bert_jax.tasks import tables

# --- Scores of one answer ---

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
  """Lower case, without ASCII punctuation, articles and extra spaces.

  Example:
    >>> normalize_answer("The  U.S. Army!")
    'us army'
  """
  text = text.lower().translate(_PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", text).split())


def exact_score(answer: str, gold: str) -> float:
  """1 where both are the same after normalising, else 0."""
  return float(normalize_answer(answer) == normalize_answer(gold))


def f1_score(answer: str, gold: str, *, empty_equals_empty: bool) -> float:
  """Harmonic mean of precision and recall of words, 0 to 1.

  Args:
    answer: predicted.
    gold: given by a person.
    empty_equals_empty: whether two answers without words agree: they do in
      version 2.0, where that means no answer, and do not in 1.1.
  """
  words = normalize_answer(answer).split()
  gold_words = normalize_answer(gold).split()
  if empty_equals_empty and not (words and gold_words):
    return float(words == gold_words)
  common = collections.Counter(words) & collections.Counter(gold_words)
  shared = sum(common.values())
  if not shared:
    return 0.0
  precision, recall = shared / len(words), shared / len(gold_words)
  return 2 * precision * recall / (precision + recall)


# --- Scores of a file ---

# (question, answers that people gave; none = it has no answer)
Golds = Sequence[tuple[str, Sequence[str]]]


def evaluate_v1(
  golds: Golds, predictions: Mapping[str, str]
) -> dict[str, float]:
  """Scores answers by the rules of version 1.1, in percent.

  A question without a prediction is named on stderr and scores 0.

  Args:
    golds: (id, answers) of every question.
    predictions: id -> answer.

  Returns:
    exact_match and f1.
  """
  exact = f1 = 0.0
  for id, answers in golds:
    if id not in predictions:
      _name_missing(f"Unanswered question {id} will receive score 0.")
      continue
    if not answers:
      raise spec.TaskError(
        f"question {id} has no answer, which version 1.1 does not allow"
      )
    answer = predictions[id]
    exact += max(exact_score(answer, gold) for gold in answers)
    f1 += max(
      f1_score(answer, gold, empty_equals_empty=False) for gold in answers
    )
  if not golds:
    raise spec.TaskError("there are no questions to score")
  return {
    "exact_match": 100.0 * exact / len(golds),
    "f1": 100.0 * f1 / len(golds),
  }


def evaluate_v2(
  golds: Golds,
  predictions: Mapping[str, str],
  na_probs: Mapping[str, float] | None = None,
  na_prob_thresh: float = 1.0,
) -> dict[str, float]:
  """Scores answers by the rules of version 2.0, in percent.

  A question without a prediction is named on stderr and left out of the
  totals. The official script then stops with a KeyError where it comes to the
  questions with and without an answer; here these totals leave it out too.

  Args:
    golds: (id, answers) of every question; none = it has no answer.
    predictions: id -> answer, "" = none.
    na_probs: id -> how likely there is no answer, on any scale.
    na_prob_thresh: above it an answer is taken as "".

  Returns:
    exact, f1, total; the same for questions with an answer (HasAns_) and
    without (NoAns_), where there are any; with `na_probs` also best_exact and
    best_f1 and the thresholds that give them (best_exact_thresh,
    best_f1_thresh).
  """
  has_answer = {id: bool(answers) for id, answers in golds}
  raw = _raw_scores(golds, predictions)
  if not raw:
    raise spec.TaskError("no question has a prediction; are the ids the same?")
  odds = dict.fromkeys(raw, 0.0) if na_probs is None else na_probs
  lost = [id for id in raw if id not in odds]
  if lost:
    raise spec.TaskError(
      f"{len(lost)} questions lack a probability of no answer (first"
      f" {lost[0]}); give one for every prediction"
    )
  scores = {
    id: score
    if odds[id] <= na_prob_thresh
    else (float(not has_answer[id]),) * 2
    for id, score in raw.items()
  }
  result = _averages(scores, "")
  for prefix, wanted in (("HasAns_", True), ("NoAns_", False)):
    group = {i: s for i, s in scores.items() if has_answer[i] == wanted}
    if group:
      result |= _averages(group, prefix)
  if na_probs is not None:
    for column, name in enumerate(("exact", "f1")):
      one = {id: pair[column] for id, pair in raw.items()}
      best, threshold = best_threshold(one, predictions, odds, has_answer)
      result |= {f"best_{name}": best, f"best_{name}_thresh": threshold}
  return result


def _raw_scores(
  golds: Golds, predictions: Mapping[str, str]
) -> dict[str, tuple[float, float]]:
  """The (exact, F1) by id of the questions with a prediction."""
  scores = {}
  for id, answers in golds:
    if id not in predictions:
      _name_missing(f"Missing prediction for {id}")
      continue
    kept = [gold for gold in answers if normalize_answer(gold)] or [""]
    answer = predictions[id]
    scores[id] = (
      max(exact_score(answer, gold) for gold in kept),
      max(f1_score(answer, gold, empty_equals_empty=True) for gold in kept),
    )
  return scores


def _averages(
  scores: Mapping[str, tuple[float, float]], prefix: str
) -> dict[str, float]:
  total = len(scores)
  exact, f1 = (sum(column) for column in zip(*scores.values(), strict=True))
  return {
    f"{prefix}exact": 100.0 * exact / total,
    f"{prefix}f1": 100.0 * f1 / total,
    f"{prefix}total": total,
  }


def best_threshold(
  scores: Mapping[str, float],
  predictions: Mapping[str, str],
  na_probs: Mapping[str, float],
  has_answer: Mapping[str, bool],
) -> tuple[float, float]:
  """The threshold of `na_probs` that gives the best score.

  Starts from no answer to any question and takes the predictions back one by
  one, the least likely to have no answer first.

  Args:
    scores: id -> score of its prediction, 0 to 1.
    predictions: id -> answer, "" = none.
    na_probs: id -> how likely there is no answer.
    has_answer: id -> whether there is one.

  Returns:
    The score in percent, and the threshold; 0.0 where no answer to any
    question is best, as in the official script.
  """
  best = score = float(sum(not known for known in has_answer.values()))
  threshold = 0.0
  for id in sorted(na_probs, key=lambda id: na_probs[id]):
    if id not in scores:
      continue
    if has_answer[id]:
      score += scores[id]
    elif predictions[id]:
      score -= 1
    if score > best:
      best, threshold = score, na_probs[id]
  return 100.0 * best / len(scores), threshold


def _name_missing(message: str) -> None:
  print(message, file=sys.stderr)


def golds_of(examples: Iterable[spec.SpanExample]) -> Golds:
  """(id, answers) of examples."""
  return [(e.id, [text for text, _ in e.answers]) for e in examples]


def read_golds(path: str) -> tuple[bool, Golds]:
  """The questions of a SQuAD file.

  Returns:
    Whether it is of version 2.0, and (id, answers) of each question.

  Raises:
    spec.TaskError: the file is broken off or laid out in another way.
  """
  content = tables.read_json(path)
  try:
    questions = [
      question
      for article in content["data"]
      for paragraph in article["paragraphs"]
      for question in paragraph["qas"]
    ]
    golds = [(q["id"], [a["text"] for a in q["answers"]]) for q in questions]
    for id, answers in golds:
      if not all(isinstance(text, str) for text in (id, *answers)):
        raise TypeError(f"question {id!r:.60}: the id or an answer is no text")
    version = str(content.get("version", ""))
  except (KeyError, TypeError, AttributeError) as error:
    raise spec.TaskError(
      f"{path} is not laid out as SQuAD: {error!r:.300}; wanted data,"
      " paragraphs, qas, id, answers, text"
    ) from error
  is_v2 = version.lstrip("v").startswith("2")
  return is_v2 or any("is_impossible" in q for q in questions), golds


def evaluate_files(
  data: str, predictions: str, na_probs: str = "", na_prob_thresh: float = 1.0
) -> dict[str, float]:
  """Scores a file of predictions by the rules of the data's version.

  Args:
    data: path of a SQuAD file.
    predictions: path of a JSON object, id -> answer.
    na_probs: path of a JSON object, id -> how likely there is no answer; "" =
      none (2.0).
    na_prob_thresh: above it an answer is taken as "" (2.0).
  """
  is_v2, golds = read_golds(data)
  answers = _read_object(predictions, str)
  if na_probs and not is_v2:
    raise spec.TaskError(
      f"--na-prob-file is for version 2.0, but {data} is of version 1.1"
    )
  odds = _read_object(na_probs, (int, float)) if na_probs else None
  try:
    if is_v2:
      return evaluate_v2(golds, answers, odds, na_prob_thresh)
    return evaluate_v1(golds, answers)
  except spec.TaskError as error:
    files = ", ".join(filter(None, (data, predictions, na_probs)))
    raise spec.TaskError(f"{files}: {error}") from error


def _read_object(path: str, kind: Any) -> dict[str, Any]:
  content = tables.read_json(path)
  wanted = (
    "wanted a JSON object with the id of each question and its answer (a text)"
    " or odds (a number)"
  )
  if not isinstance(content, dict):
    raise spec.TaskError(f"{path}: {wanted}")
  for id, value in content.items():
    if not isinstance(value, kind):
      raise spec.TaskError(f"{path}: {id} has {value!r:.60}; {wanted}")
  return content


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the scores of a file of predictions."""
  parser = argparse.ArgumentParser(
    prog="python -m bert_jax.tasks.squad",
    description="SQuAD's official scores, 1.1 or 2.0 as the data says.",
  )
  parser.add_argument("data", help="SQuAD file with answers")
  parser.add_argument("predictions", help="JSON object, id -> answer")
  parser.add_argument(
    "--na-prob-file", "-n", default="",
    help="JSON object, id -> how likely there is no answer (null_odds.json)",
  )  # fmt: skip
  parser.add_argument(
    "--na-prob-thresh", "-t", type=float, default=1.0,
    help='an answer counts as "" above this (default 1.0)',
  )  # fmt: skip
  args = parser.parse_args(argv)
  try:
    scores = evaluate_files(
      args.data, args.predictions, args.na_prob_file, args.na_prob_thresh
    )
  except spec.TaskError as error:
    print(error, file=sys.stderr)
    return 2
  print(json.dumps(scores, indent=2))
  return 0


if __name__ == "__main__":
  sys.exit(main())
