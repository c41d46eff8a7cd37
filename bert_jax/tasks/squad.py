"""SQuAD's official scores.

  python -m bert_jax.tasks.squad DATA.json PREDICTIONS.json
    [--na-prob-file null_odds.json] [--na-prob-thresh 0.0]

prints the scores that the official script of the file's version prints, under
the same keys. All scores are in percent.

Source: https://aclanthology.org/D16-1264, https://aclanthology.org/P18-2124;
  the scripts evaluate-v1.1.py and evaluate-v2.0.py that came with the data
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
import json
import sys
from typing import Any

from bert_jax.tasks import answer_scores
from bert_jax.tasks import qa
from bert_jax.tasks import spec
from bert_jax.tasks import tables

# --- Scores of a file ---

# (id of a question, the answers of people; empty if it has no answer)
Golds = Sequence[tuple[str, Sequence[str]]]


def evaluate_v1(
  golds: Golds, predictions: Mapping[str, str]
) -> dict[str, float]:
  """Scores answers by the rules of version 1.1, in percent.

  A question without a prediction scores 0, and a message on stderr names it.

  Args:
    golds: (id, answers) of every question.
    predictions: id -> answer.

  Returns:
    exact_match and f1.

  Raises:
    spec.TaskError: There is no question, or one has no answer.
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
    exact += max(answer_scores.exact_score(answer, gold) for gold in answers)
    f1 += max(
      answer_scores.f1_score(answer, gold, empty_equals_empty=False)
      for gold in answers
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

  A question without a prediction is left out of all totals, and a message on
  stderr names it. The official script stops with a KeyError when it computes
  the totals of the questions with and without an answer.

  Args:
    golds: (id, answers) of every question; no answers if it has none.
    predictions: id -> answer; "" means no answer.
    na_probs: id -> how likely the question has no answer, on any scale.
    na_prob_thresh: an answer counts as "" if its probability in `na_probs` is
      above this.

  Returns:
    exact, f1, total; the same for the questions with an answer (HasAns_) and
    without one (NoAns_), if there are any; with `na_probs` also best_exact and
    best_f1 and the thresholds that give them (best_exact_thresh,
    best_f1_thresh).

  Raises:
    spec.TaskError: There is no prediction, or one is not in `na_probs`.
  """
  has_answer = {id: bool(answers) for id, answers in golds}
  raw = _raw_scores(golds, predictions)
  if not raw:
    raise spec.TaskError(
      "no question has a prediction; both files must use the same ids"
    )
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
  """Returns id -> (exact, F1) of the questions with a prediction."""
  scores = {}
  for id, answers in golds:
    if id not in predictions:
      _name_missing(f"Missing prediction for {id}")
      continue
    kept = [
      gold for gold in answers if answer_scores.normalize_answer(gold)
    ] or [""]
    answer = predictions[id]
    scores[id] = (
      max(answer_scores.exact_score(answer, gold) for gold in kept),
      max(
        answer_scores.f1_score(answer, gold, empty_equals_empty=True)
        for gold in kept
      ),
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
  """Finds the threshold of `na_probs` that gives the best score.

  At first no question has an answer. The predictions are then added one by one,
  beginning with the question that most likely has an answer.

  Args:
    scores: id -> score of its prediction, 0 to 1.
    predictions: id -> answer; "" means no answer.
    na_probs: id -> how likely the question has no answer.
    has_answer: id -> whether the question has an answer.

  Returns:
    The score in percent, and the threshold. The threshold is 0.0 if it is best
    to answer no question, as in the official script.
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
  """Returns (id, answers) of each example."""
  return [(e.id, [text for text, _ in e.answers]) for e in examples]


def read_golds(path: str) -> tuple[bool, Golds]:
  """Reads the questions of a SQuAD file.

  Returns:
    Whether the file is of version 2.0, and (id, answers) of each question.

  Raises:
    spec.TaskError: The file is truncated or laid out in another way.
  """
  with qa.reading(path) as content:
    questions = [question for _, question in qa.questions_of(content)]
    golds = [(q["id"], [a["text"] for a in q["answers"]]) for q in questions]
    for id, answers in golds:
      if not all(isinstance(text, str) for text in (id, *answers)):
        raise TypeError(f"question {id!r:.60}: the id or an answer is not text")
    version = str(content.get("version", ""))
  is_v2 = version.lstrip("v").startswith("2")
  return is_v2 or any("is_impossible" in q for q in questions), golds


def evaluate_files(
  data: str, predictions: str, na_probs: str = "", na_prob_thresh: float = 1.0
) -> dict[str, float]:
  """Scores a file of predictions by the rules of the data's version.

  Args:
    data: the path of a SQuAD file.
    predictions: the path of a JSON object, id -> answer.
    na_probs: for version 2.0, the path of a JSON object, id -> how likely the
      question has no answer; or "".
    na_prob_thresh: see `evaluate_v2`.

  Raises:
    spec.TaskError: A file cannot be used.
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
    "wanted a JSON object from the id of each question to its answer (a text)"
    " or its probability of no answer (a number)"
  )
  if not isinstance(content, dict):
    raise spec.TaskError(f"{path}: {wanted}")
  for id, value in content.items():
    if not isinstance(value, kind):
      raise spec.TaskError(f"{path}: {id} is {value!r:.60}; {wanted}")
  return content


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the scores of a file of predictions; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m bert_jax.tasks.squad",
    description="Computes SQuAD's official scores, of version 1.1 or 2.0.",
  )
  parser.add_argument("data", help="a SQuAD file with answers")
  parser.add_argument("predictions", help="a JSON object: id -> answer")
  parser.add_argument(
    "--na-prob-file", "-n", default="",
    help="a JSON object: id -> how likely there is no answer (null_odds.json)",
  )  # fmt: skip
  parser.add_argument(
    "--na-prob-thresh", "-t", type=float, default=1.0,
    help="above this, a question counts as unanswered (default 1.0)",
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
