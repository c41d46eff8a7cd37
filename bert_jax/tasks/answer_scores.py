"""Scores of one answer in words: exact match and F1, as SQuAD defines them.

Source: https://aclanthology.org/D16-1264
"""

import collections
import re
import string

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
  """Returns a text without capitals, ASCII punctuation, articles, extra spaces.

  Example:
    >>> normalize_answer("The  U.S. Army!")
    'us army'
  """
  text = text.lower().translate(_PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", text).split())


def exact_score(answer: str, gold: str) -> float:
  """Returns 1 if both answers are the same after normalization, else 0."""
  return float(normalize_answer(answer) == normalize_answer(gold))


def f1_score(answer: str, gold: str, *, empty_equals_empty: bool) -> float:
  """Returns the harmonic mean of the precision and recall of words, 0 to 1.

  Args:
    answer: the predicted answer.
    gold: the answer of a person.
    empty_equals_empty: whether two answers without words are equal. They are in
      version 2.0, where they mean that there is no answer, but not in 1.1.
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
