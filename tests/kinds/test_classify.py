"""Tests of classify.py: what it shows of predictions."""

import dataclasses

from bert_jax import tasks
from bert_jax.kinds import choice
from bert_jax.kinds import classify
from bert_jax.tasks import spec

RTE = tasks.TASKS["rte"]
RIGHT = (0, 0, 1, 1)
# The second is a mistake that is surer than the third.
SHARES = ((0.9, 0.1), (0.2, 0.8), (0.6, 0.4), (0.3, 0.7))


def predictions():
  return [
    classify.ClassPrediction(int(share[1] > share[0]), share)
    for share in SHARES
  ]


def examples():
  return [
    spec.PairExample(f"id{i}", f"text {i}", "other" if i else None, label)
    for i, label in enumerate(RIGHT)
  ]


def test_mistakes_come_with_their_texts_the_surest_first():
  first, second = RTE.labels
  found = classify.CLASSIFY.mistakes(RTE, examples(), predictions())
  assert found == [
    {
      "id": "id1", "text": "text 1", "text_b": "other", "gold": first,
      "predicted": second, "probability": 0.8,
    },
    {
      "id": "id2", "text": "text 2", "text_b": "other", "gold": second,
      "predicted": first, "probability": 0.6,
    },
  ]  # fmt: skip


def test_mistakes_of_choices_name_the_choices():
  example = spec.ChoiceExample("7", (("a", "b"), ("a", "c")), 0)
  (found,) = choice.CHOICE.mistakes(
    tasks.TASKS["codah"], [example], [classify.ClassPrediction(1, (0.3, 0.7))]
  )
  assert found == {
    "id": "7", "text": "a", "choices": ["b", "c"], "gold": 0, "predicted": 1,
    "probability": 0.7,
  }  # fmt: skip


def test_tables_have_the_scores_of_each_label_and_the_confusions():
  text = classify.CLASSIFY.tables(RTE, examples(), predictions())
  rows = [line.split() for line in text.splitlines()]
  first, second = RTE.labels
  # Of two examples each, one is right; two and two are predicted.
  assert [first, "0.500", "0.500", "0.500", "2"] in rows
  assert [second, "0.500", "0.500", "0.500", "2"] in rows
  assert rows[-2:] == [[first, "1", "1"], [second, "1", "1"]]


def test_a_matrix_of_many_labels_is_left_out():
  labels = tuple(f"label{i}" for i in range(40))
  task = dataclasses.replace(RTE, labels=labels)
  text = classify.CLASSIFY.tables(task, examples(), predictions())
  assert len(text.splitlines()) == 41


def test_a_confusion_matrix_has_a_row_for_each_right_label():
  found = classify.CLASSIFY.confusion(RTE, examples(), predictions())
  assert found.tolist() == [[1, 1], [1, 1]]
  guess, right = [0, 2, 2, 2], [0, 1, 1, 2]
  counts = classify.count_pairs(3, guess, right)
  assert counts.tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 1]]
  assert choice.CHOICE.confusion(RTE, [], []) is None
