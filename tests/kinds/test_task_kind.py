"""Tests of the kinds of tasks: decoding of every kind, and every metric."""

import math
import warnings

import numpy as np
import pytest
import sklearn.metrics

from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import wordpiece
from bert_jax.kinds import classify
from bert_jax.kinds import span
from bert_jax.kinds import table
from bert_jax.kinds import tag
from bert_jax.tasks import TASKS
from bert_jax.tasks import features
from bert_jax.tasks import spec

TOKENIZER = wordpiece.WordPieceTokenizer(
  [*interface.SPECIAL_TOKENS, *"abcdefghz", "##b", "##c"]
)


def make(task, examples, **options):
  options = {"seq_len": 16, "max_query_len": 4} | options
  kind = table.of_task(task)
  taken = ("seq_len", *kind.feature_settings)
  options = {k: x for k, x in options.items() if k in taken}
  return kind.make_features(task, examples, TOKENIZER, **options)


def pairs(labels):
  return [
    spec.PairExample(str(i), "a", None, label) for i, label in enumerate(labels)
  ]


def guesses(labels, num_labels=2):
  rows = np.eye(num_labels)[labels].tolist()
  return [
    classify.ClassPrediction(label, tuple(row))
    for label, row in zip(labels, rows, strict=True)
  ]


def decode(task, made, outputs, **options):
  return table.of_task(task).decode(task, made, outputs, **options)


def score(task, predictions, examples):
  return table.of_task(task).score(task, predictions, examples)


# --- Decoding ---


def test_classes_and_choices_have_labels_and_probabilities():
  task = TASKS["mnli"]
  made = make(task, pairs([0, 1]))
  decoded = decode(task, made, np.log([[1.0, 2.0, 1.0], [6.0, 1.0, 3.0]]))
  assert [p.label for p in decoded] == [1, 0]
  assert decoded[0].probabilities == pytest.approx((0.25, 0.5, 0.25))
  task = TASKS["swag"]
  made = make(task, [spec.ChoiceExample("x", (("a", "b"),) * 4, 3)])
  (choice,) = decode(task, made, [[0.0], [800.0], [0.0], [0.0]])
  assert (choice.label, choice.probabilities) == (1, (0.0, 1.0, 0.0, 0.0))


def test_regression_gives_numbers():
  task = TASKS["stsb"]
  made = make(task, pairs([0.5, 1.0]))
  assert decode(task, made, np.array([[2.5], [-1.0]])) == [2.5, -1.0]


@pytest.mark.parametrize("context", tag.CONTEXTS)
def test_tags_of_the_pieces_of_a_long_sentence_are_joined(context):
  task = TASKS["conll2003"]
  rng = np.random.default_rng(0)
  names = np.array(task.labels)
  examples = [
    spec.TagExample(
      str(i),
      tuple(rng.choice(["a", "abc", "dbbbb", "\u200b"], size=n)),
      tuple(names[rng.integers(0, 9, size=n)].tolist()),
      i // 2,
    )
    for i, n in enumerate([3, 11, 1, 20])
  ]
  made = make(task, examples, seq_len=8, context=context)
  assert len(made) > len(examples)
  logits = rng.normal(size=(len(made.token_ids), 9))
  known = made.label != features.IGNORED
  logits[known, made.label[known]] += 100
  decoded = decode(task, made, logits)
  assert decoded == [e.labels for e in examples]
  # What is said of the other pieces does not matter.
  logits[~known] = rng.normal(size=(np.sum(~known), 9)) * 100
  assert decode(task, made, logits) == decoded


def test_spans_are_decoded_by_the_rules_of_the_task():
  example = spec.SpanExample("x", "z", "a b", (("b", 2),), False)
  at = {"squad_v1": "b", "squad_v2": ""}
  for name, text in at.items():
    made = make(TASKS[name], [example])
    start = np.zeros(len(made.token_ids))
    start[0], start[made.label[0, 0]] = 9, 5
    (answer,) = decode(TASKS[name], made, np.stack([start, start], 1))
    assert answer.text == text
    (answer,) = decode(
      TASKS[name], made, np.stack([start, start], 1), **(
        {"null_threshold": 8.5} if TASKS[name].has_null else {}
      ),
    )  # fmt: skip
    assert answer.text == "b"


def test_outputs_of_another_shape_or_not_finite_are_refused():
  task = TASKS["cola"]
  made = make(task, pairs([0, 1]))
  with pytest.raises(spec.TaskError, match=r"shape \(2, 3\), wanted \(2, 2\)"):
    decode(task, made, np.zeros((2, 3)))
  with pytest.raises(spec.TaskError, match="1 of 4 outputs are not finite"):
    decode(task, made, [[0.0, 1.0], [math.nan, 0.0]])


# --- Metrics by hand ---


def test_accuracy_f1_and_matthews_by_hand():
  # Right: 3 positive, 3 negative; guessed: 2 of the 3, and 1 wrongly.
  examples = pairs([1, 1, 1, 0, 0, 0])
  guess = guesses([1, 1, 0, 1, 0, 0])
  assert score(TASKS["mrpc"], guess, examples) == {
    "accuracy": pytest.approx(4 / 6),
    "f1": pytest.approx(2 / 3),
  }
  # (tp tn - fp fn) / sqrt(3 * 3 * 3 * 3) = (2 * 2 - 1 * 1) / 9
  assert score(TASKS["cola"], guess, examples)["matthews"] == (
    pytest.approx(1 / 3)
  )


def test_correlations_by_hand():
  examples = pairs([1.0, 2.0, 3.0, 4.0])
  result = score(TASKS["stsb"], [1.0, 2.0, 3.0, 40.0], examples)
  assert result["spearman"] == pytest.approx(1.0)
  # Covariance 29.5 over sqrt(5 * 1093) of the sums of squares, by hand:
  guess = np.array([1, 2, 3, 40]) - 11.5
  right = np.array([-1.5, -0.5, 0.5, 1.5])
  by_hand = guess @ right / math.sqrt((guess @ guess) * (right @ right))
  assert result["pearson"] == pytest.approx(by_hand)
  flat = score(TASKS["stsb"], [4.0, 3.0, 2.0, 1.0], examples)
  assert flat == {
    "pearson": pytest.approx(-1.0), "spearman": pytest.approx(-1.0)
  }  # fmt: skip


def test_whole_entities_count():
  task = TASKS["wnut17"]
  right = "B-person I-person O B-group O B-location".split()
  guess = "B-person O O B-group B-group I-location".split()
  example = spec.TagExample("0", tuple("abcdef"), tuple(right), 0)
  result = score(task, [tuple(guess)], [example])
  # Guessed: person (too short), group, group (wrong), location (I- begins one).
  assert result == {
    "entity_f1": pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3)),
    "precision": pytest.approx(2 / 4),
    "recall": pytest.approx(2 / 3),
    "accuracy": pytest.approx(3 / 6),
  }


def test_choices_and_macro_f1():
  example = spec.ChoiceExample("x", (("a", "b"),) * 4, 3)
  assert score(TASKS["swag"], guesses([3, 1], 4), [example] * 2) == {
    "accuracy": 0.5
  }
  task = table.make_task("classify", text=["t"], label="y", labels="abc")
  right, guess = [0, 0, 1, 2], [0, 1, 1, 1]
  result = score(task, guesses(guess, 3), pairs(right))
  # F1 of the three: 2/3, 1/2, 0
  assert result["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_questions_are_scored_in_percent():
  def answer(text, best, odds):
    return span.SpanPrediction(text, best, odds, ())

  known = spec.SpanExample("x", "z", "c b", (("c", 0), ("c b", 0)), False)
  none = spec.SpanExample("y", "z", "c b", (), True)
  assert score(TASKS["squad_v1"], [answer("b", "b", None)], [known]) == {
    "exact": 0.0,
    "f1": pytest.approx(200 / 3),
  }
  result = score(
    TASKS["squad_v2"], [answer("", "b", 1.0), answer("", "b", 3.0)],
    [known, none],
  )  # fmt: skip
  assert (result["exact"], result["HasAns_f1"]) == (50.0, 0.0)
  # With the threshold at 1, `b` is the answer to the first.
  assert result["best_f1"] == pytest.approx(50 * (1 + 2 / 3))
  assert result["best_f1_thresh"] == 1.0


# --- What is not defined ---


@pytest.mark.parametrize(
  ("name", "predictions", "examples", "zero", "message"),
  [
    ("cola", guesses([1, 1]), pairs([0, 1]), "matthews", "all the same"),
    ("cola", guesses([0, 1]), pairs([1, 1]), "matthews", "all the same"),
    ("stsb", [2.0, 2.0], pairs([0.0, 1.0]), "pearson", "all the same"),
    ("stsb", [2.0, 2.0], pairs([0.0, 1.0]), "spearman", "all the same"),
    ("stsb", [2.0], pairs([1.0]), "pearson", "all the same"),
    ("mrpc", guesses([0, 0]), pairs([0, 0]), "f1", "no prediction is '1'"),
    (
      "wnut17",
      [("O",)],
      [spec.TagExample("0", ("a",), ("O",), 0)],
      "entity_f1",
      "has an entity",
    ),
  ],
)
def test_an_undefined_metric_is_zero_and_says_so(
  name, predictions, examples, zero, message, caplog
):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    result = score(TASKS[name], predictions, examples)
  assert result[zero] == 0.0
  assert not any(math.isnan(value) for value in result.values())
  assert message in caplog.text
  assert "counts as 0.0" in caplog.text


def test_defined_metrics_do_not_warn(caplog):
  examples, guess = pairs([0, 1, 1]), guesses([0, 1, 0])
  result = score(TASKS["mrpc"], guess, examples)
  assert result["f1"] == sklearn.metrics.f1_score([0, 1, 1], [0, 1, 0])
  assert not caplog.records


def test_nothing_to_score_is_refused():
  bare = pairs([None, None])
  with pytest.raises(spec.TaskError, match="have no labels, .* on validation"):
    score(TASKS["cola"], guesses([0, 1]), bare)
  with pytest.raises(spec.TaskError, match="1 predictions for 2 examples"):
    score(TASKS["cola"], guesses([0]), pairs([0, 1]))
  sentence = spec.TagExample("7", ("a", "b"), ("O", "O"), 0)
  with pytest.raises(spec.TaskError, match="1 tags for the 2 words of .* 7"):
    score(TASKS["wnut17"], [("O",)], [sentence])
