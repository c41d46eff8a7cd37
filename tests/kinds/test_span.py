"""Tests of kinds/span.py: answers out of logits, and their files."""

import json
import math
import pathlib

import numpy as np
import pytest

from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import wordpiece
from bert_jax.kinds import span
from bert_jax.tasks import TASKS
from bert_jax.tasks import spec

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
PIECES = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "bcdef"), "(", ")"]
TOKENIZER = wordpiece.WordPieceTokenizer([*interface.SPECIAL_TOKENS, *PIECES])


def make(*contexts, seq_len=20, stride=3):
  examples = [
    spec.SpanExample(f"q{i}", "z", context, (), True)
    for i, context in enumerate(contexts)
  ]
  made = span.SPAN.make_features(
    TASKS["squad_v2"], examples, TOKENIZER, seq_len=seq_len, max_query_len=1,
    doc_stride=stride,
  )  # fmt: skip
  return examples, made


def logits(made, **values):
  """[T] zeros, but for the tokens spelled so, or [CLS], in every window."""
  result = np.zeros(len(made.token_ids))
  for i, token in enumerate(made.token_ids.tolist()):
    piece = TOKENIZER.token(token).strip("[]#").lower()
    result[i] = values.get(piece, 0.0)
  return result


# --- Decoding ---


def test_the_answer_is_cut_from_the_text_by_its_characters():
  _, made = make("A  (Bcd) e")
  (best,) = span.decode(
    made, logits(made, b=5), logits(made, d=4), has_null=False
  )
  assert (best.text, best.null_odds) == ("Bcd", None)
  assert best.nbest[0].start_logit == 5
  assert best.nbest[0].end_logit == 4
  (wide,) = span.decode(
    made, logits(made, a=5), logits(made, b=4), has_null=False
  )
  assert wide.text == "A  (B"


def test_spans_outside_the_text_backwards_or_too_long_are_not_allowed():
  _, made = make("a b c d e f")
  (answer,) = span.decode(
    made, logits(made, z=9, cls=9, e=5, a=4), logits(made, sep=9, a=5, f=4.5),
    has_null=False, max_answer_len=3,
  )  # fmt: skip
  # e..f has 9.5, a..a 9; e..a runs backwards and a..f is too long.
  assert answer.text == "e f"
  (short,) = span.decode(
    made, logits(made, e=5, a=4), logits(made, a=5, f=4.5), has_null=False,
    max_answer_len=1,
  )  # fmt: skip
  assert short.text == "a"


def test_a_start_counts_in_its_best_window_only():
  _, made = make("a b c d e f g h i j", seq_len=10, stride=3)
  assert len(made) == 3
  start = np.zeros(len(made.token_ids))
  # f is best shown by the second window, whatever the first says of it.
  for unit, value in ((0, 9.0), (1, 1.0)):
    row = made.token_ids[made.offsets[unit] : made.offsets[unit + 1]].tolist()
    start[made.offsets[unit] + row.index(TOKENIZER.id("f"))] = value
  (answer,) = span.decode(made, start, logits(made, f=1), has_null=False)
  assert answer.text == "f"
  assert answer.nbest[0].start_logit == 1


def test_equal_scores_keep_the_order_of_windows_starts_and_ends():
  _, made = make("a b c")
  zero = logits(made)
  (answer,) = span.decode(made, zero, zero, has_null=False)
  texts = [candidate.text for candidate in answer.nbest]
  assert texts == ["a", "a b", "a b c", "b", "b c", "c"]
  assert [c.probability for c in answer.nbest] == pytest.approx([1 / 6] * 6)


def test_equal_texts_count_once_and_the_best_are_kept():
  _, made = make("a b a")
  start, end = logits(made, a=2), logits(made, a=2, b=1)
  (answer,) = span.decode(made, start, end, has_null=False, n_best=20)
  texts = [candidate.text for candidate in answer.nbest]
  assert len(texts) == len(set(texts))
  assert texts[0] == "a"
  (short,) = span.decode(made, start, end, has_null=False, n_best=2)
  assert len(short.nbest) == 2


def test_no_answer_has_the_lowest_score_of_any_window():
  _, made = make("a b c d e f g h i j", seq_len=9, stride=3)
  start, end = logits(made, c=2), logits(made, c=2)
  start[made.offsets[:3]] = [9.0, 3.0, 5.0]
  (answer,) = span.decode(made, start, end, has_null=True)
  assert answer.null_odds == 3.0 - 4.0
  assert (answer.text, answer.best_text) == ("c", "c")
  (answer,) = span.decode(made, start, end, has_null=True, null_threshold=-2.0)
  assert (answer.text, answer.best_text) == ("", "c")
  (answer,) = span.decode(made, start, end, has_null=True, null_threshold=-1.0)
  assert answer.text == "c"  # above the threshold, not at it


def test_no_answer_is_always_among_the_best():
  _, made = make("a b c d e")
  (answer,) = span.decode(
    made, logits(made, a=5, b=4), logits(made, b=5, c=4), has_null=True,
    n_best=2,
  )  # fmt: skip
  assert [c.text for c in answer.nbest][-1] == ""
  assert len(answer.nbest) == 3
  (answer,) = span.decode(
    made, logits(made, cls=9), logits(made, cls=9), has_null=True
  )
  assert answer.nbest[0].text == answer.text == ""
  assert answer.null_odds == 18.0


@pytest.mark.parametrize("has_null", [True, False])
def test_an_example_without_any_span_is_answered_by_nothing(has_null):
  _, made = make(" ", "a")
  zero = logits(made, cls=1)
  empty, full = span.decode(made, zero, zero, has_null=has_null)
  assert (empty.text, empty.best_text) == ("", "")
  assert empty.null_odds == (2.0 if has_null else None)
  assert empty.nbest == (
    span.Candidate("", 1.0, float(has_null), float(has_null)),
  )
  assert full.best_text == "a"
  # Only ends in the question: no span either, and no crash.
  _, made = make("a b")
  (none,) = span.decode(
    made, logits(made, z=9, cls=8), logits(made, z=9, cls=8), n_best=2,
    has_null=True,
  )  # fmt: skip
  assert (none.text, none.best_text, none.null_odds) == ("", "", 16.0)


def top(values, count):
  """The original's way to the places of the largest values."""
  ranked = sorted(enumerate(values), key=lambda pair: pair[1], reverse=True)
  return [place for place, _ in ranked[:count]]


def reference_texts(example, made, start, end, n_best, max_len):
  """The original's loops, with our way to cut the text out."""
  found = []
  for unit in range(len(made)):
    at, stop = made.offsets[unit : unit + 2].tolist()
    for i in top(start[at:stop].tolist(), n_best):
      for j in top(end[at:stop].tolist(), n_best):
        if made.char_starts[at + i] < 0 or made.char_starts[at + j] < 0:
          continue
        if not made.is_max_context[at + i] or not i <= j < i + max_len:
          continue
        text = example.context[
          made.char_starts[at + i] : made.char_ends[at + j]
        ]
        found.append((start[at + i] + end[at + j], text))
  found.sort(key=lambda pair: pair[0], reverse=True)
  return list(dict.fromkeys(text for _, text in found))[:n_best]


@pytest.mark.parametrize("seed", range(8))
def test_the_best_answers_equal_the_loops_of_the_original(seed):
  rng = np.random.default_rng(seed)
  context = " ".join(rng.choice(list("abcde"), size=30))
  (example,), made = make(context, seq_len=14, stride=4)
  # Few values, so that many scores are equal.
  start, end = rng.integers(0, 5, size=(2, len(made.token_ids))).astype(float)
  (answer,) = span.decode(
    made, start, end, has_null=False, n_best=6, max_answer_len=4
  )
  assert [c.text for c in answer.nbest] == reference_texts(
    example, made, start, end, 6, 4
  )


def test_files_have_the_names_and_shapes_of_the_original(tmp_path):
  examples, made = make("a b", "c")
  zero = logits(made, cls=1)
  predictions = span.decode(made, zero, zero, has_null=True)
  span.write_files(str(tmp_path / "new"), examples, predictions)
  read = {
    path.name: json.loads(path.read_text())
    for path in (tmp_path / "new").iterdir()
  }
  assert read["predictions.json"] == {"q0": "", "q1": ""}
  assert read["null_odds.json"] == {"q0": 2.0, "q1": 2.0}
  first = read["nbest_predictions.json"]["q0"][0]
  assert set(first) == {"text", "probability", "start_logit", "end_logit"}
  span.write_files(
    str(tmp_path / "v1"),
    examples,
    span.decode(made, zero, zero, has_null=False),
  )
  assert {p.name for p in (tmp_path / "v1").iterdir()} == {
    "predictions.json", "nbest_predictions.json"
  }  # fmt: skip


def test_scores_that_are_not_finite_are_null_in_the_files(tmp_path):
  """NaN is not JSON; other programs could not read the file."""
  (example, *_), _ = make("a b", "c")
  odd = span.Candidate("a", math.nan, math.inf, -math.inf)
  answer = span.SpanPrediction("a", "a", math.nan, (odd,))
  span.write_files(str(tmp_path), [example], [answer])

  def read(name):
    text = (tmp_path / name).read_text()
    return json.loads(text, parse_constant=pytest.fail)

  assert read("null_odds.json") == {"q0": None}
  (row,) = read("nbest_predictions.json")["q0"]
  assert row == {
    "text": "a", "probability": None, "start_logit": None, "end_logit": None
  }  # fmt: skip
