"""Training examples that are evaluated instead: a part, or one of k folds."""

import collections

import pytest

from bert_jax.tasks import dev_split
from bert_jax.tasks import spec
from configs import base

TASK = spec.Task("made", "classify", lambda *_: [], ("accuracy",))


def pairs(count, labels=(0, 0, 0, 0, 1)):
  return [
    spec.PairExample(str(i), f"text {i}", None, labels[i % len(labels)])
    for i in range(count)
  ]


def config(**changes):
  task = base.get_config().task
  task.update(changes)
  return task


def ids(examples):
  return [example.id for example in examples]


def test_each_part_has_its_share_of_every_label():
  train, dev = dev_split.divide(TASK, pairs(200), config(dev_rate=0.1))
  assert (len(train), len(dev)) == (180, 20)
  assert collections.Counter(e.label for e in dev) == {0: 16, 1: 4}
  assert sorted(ids(train) + ids(dev)) == sorted(ids(pairs(200)))
  assert ids(train) == sorted(ids(train), key=int)  # the order of the file


def test_the_seed_decides_and_the_order_of_the_file_does_not():
  found = [
    set(ids(dev_split.divide(TASK, examples, config(dev_rate=0.2, **seed))[1]))
    for examples, seed in (
      (pairs(100), {}), (pairs(100)[::-1], {}), (pairs(100), {"dev_seed": 1}),
    )
  ]  # fmt: skip
  assert found[0] == found[1] != found[2]


def test_every_example_is_evaluated_by_one_fold():
  folds = [
    dev_split.divide(TASK, pairs(103), config(num_folds=5, fold=fold))
    for fold in range(5)
  ]
  evaluated = [id for _, dev in folds for id in ids(dev)]
  assert sorted(evaluated) == sorted(ids(pairs(103)))
  for train, dev in folds:
    assert len(train) + len(dev) == 103 and 20 <= len(dev) <= 21
    assert 3 <= sum(e.label for e in dev) <= 5


def test_equal_texts_stay_together():
  examples = [
    spec.PairExample(str(i), f"text {i % 10}", None, i % 2) for i in range(60)
  ]
  train, dev = dev_split.divide(TASK, examples, config(dev_rate=0.3))
  assert len(dev) == 18
  assert not {e.text_a for e in train} & {e.text_a for e in dev}


def test_questions_on_one_text_stay_together():
  examples = [
    spec.SpanExample(str(i), f"q {i}", f"context {i // 4}", (("c", 0),), False)
    for i in range(40)
  ]
  train, dev = dev_split.divide(TASK, examples, config(num_folds=5, fold=2))
  assert len(dev) == 8
  assert not {e.context for e in train} & {e.context for e in dev}


@pytest.mark.parametrize(
  ("example", "count"),
  [
    (spec.TagExample("x", ("a",), ("O",), 0), 1),
    (spec.ChoiceExample("x", (("a", "b"), ("a", "c")), 1), 1),
    (spec.PairExample("x", "a", "b", 0.5), 1),
  ],
)
def test_a_part_without_examples_is_refused(example, count):
  with pytest.raises(spec.TaskError, match="no example is left"):
    dev_split.divide(TASK, [example] * count, config(dev_rate=0.5))


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"dev_rate": 0.1, "num_folds": 2}, "give one of them"),
    ({"dev_rate": 1.0}, "below 1"),
    ({"num_folds": 1}, "2 folds"),
    ({"num_folds": 3, "fold": 3}, "from 0 to 2"),
    ({"fold": 1}, "task.fold=1 has no effect"),
    ({"dev_seed": 4}, "task.dev_seed=4 has no effect"),
  ],
)
def test_settings_that_do_not_fit_are_refused(changes, says):
  with pytest.raises(spec.TaskError, match=says):
    dev_split.check(config(**changes))


def test_a_file_to_evaluate_is_refused_beside_a_share_of_the_training_file():
  task = config(dev_rate=0.1)
  task.files.validation = "dev.tsv"
  with pytest.raises(spec.TaskError, match="task.files.validation=dev.tsv"):
    dev_split.check(task)
