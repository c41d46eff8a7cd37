"""Tests of tasks/squad.py: decoding, the official scores, the script."""

import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import wordpiece
from bert_jax.tasks import TASKS
from bert_jax.tasks import features
from bert_jax.tasks import read_examples
from bert_jax.tasks import spec
from bert_jax.tasks import squad

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
PIECES = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "bcdef"), "(", ")"]
TOKENIZER = wordpiece.WordPieceTokenizer([*interface.SPECIAL_TOKENS, *PIECES])


def make(*contexts, seq_len=20, stride=3):
  examples = [
    spec.SpanExample(f"q{i}", "z", context, (), True)
    for i, context in enumerate(contexts)
  ]
  made = features.make_features(
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
  (best,) = squad.decode(
    made, logits(made, b=5), logits(made, d=4), has_null=False
  )
  assert (best.text, best.null_odds) == ("Bcd", None)
  assert best.nbest[0].start_logit == 5
  assert best.nbest[0].end_logit == 4
  (wide,) = squad.decode(
    made, logits(made, a=5), logits(made, b=4), has_null=False
  )
  assert wide.text == "A  (B"


def test_spans_outside_the_text_backwards_or_too_long_are_not_allowed():
  _, made = make("a b c d e f")
  (answer,) = squad.decode(
    made, logits(made, z=9, cls=9, e=5, a=4), logits(made, sep=9, a=5, f=4.5),
    has_null=False, max_answer_len=3,
  )  # fmt: skip
  # e..f has 9.5, a..a 9; e..a runs backwards and a..f is too long.
  assert answer.text == "e f"
  (short,) = squad.decode(
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
  (answer,) = squad.decode(made, start, logits(made, f=1), has_null=False)
  assert answer.text == "f"
  assert answer.nbest[0].start_logit == 1


def test_equal_scores_keep_the_order_of_windows_starts_and_ends():
  _, made = make("a b c")
  zero = logits(made)
  (answer,) = squad.decode(made, zero, zero, has_null=False)
  texts = [candidate.text for candidate in answer.nbest]
  assert texts == ["a", "a b", "a b c", "b", "b c", "c"]
  assert [c.probability for c in answer.nbest] == pytest.approx([1 / 6] * 6)


def test_equal_texts_count_once_and_the_best_are_kept():
  _, made = make("a b a")
  start, end = logits(made, a=2), logits(made, a=2, b=1)
  (answer,) = squad.decode(made, start, end, has_null=False, n_best=20)
  texts = [candidate.text for candidate in answer.nbest]
  assert len(texts) == len(set(texts))
  assert texts[0] == "a"
  (short,) = squad.decode(made, start, end, has_null=False, n_best=2)
  assert len(short.nbest) == 2


def test_no_answer_has_the_lowest_score_of_any_window():
  _, made = make("a b c d e f g h i j", seq_len=9, stride=3)
  start, end = logits(made, c=2), logits(made, c=2)
  start[made.offsets[:3]] = [9.0, 3.0, 5.0]
  (answer,) = squad.decode(made, start, end, has_null=True)
  assert answer.null_odds == 3.0 - 4.0
  assert (answer.text, answer.best_text) == ("c", "c")
  (answer,) = squad.decode(made, start, end, has_null=True, null_threshold=-2.0)
  assert (answer.text, answer.best_text) == ("", "c")
  (answer,) = squad.decode(made, start, end, has_null=True, null_threshold=-1.0)
  assert answer.text == "c"  # above the threshold, not at it


def test_no_answer_is_always_among_the_best():
  _, made = make("a b c d e")
  (answer,) = squad.decode(
    made, logits(made, a=5, b=4), logits(made, b=5, c=4), has_null=True,
    n_best=2,
  )  # fmt: skip
  assert [c.text for c in answer.nbest][-1] == ""
  assert len(answer.nbest) == 3
  (answer,) = squad.decode(
    made, logits(made, cls=9), logits(made, cls=9), has_null=True
  )
  assert answer.nbest[0].text == answer.text == ""
  assert answer.null_odds == 18.0


@pytest.mark.parametrize("has_null", [True, False])
def test_an_example_without_any_span_is_answered_by_nothing(has_null):
  _, made = make(" ", "a")
  zero = logits(made, cls=1)
  empty, full = squad.decode(made, zero, zero, has_null=has_null)
  assert (empty.text, empty.best_text) == ("", "")
  assert empty.null_odds == (2.0 if has_null else None)
  assert empty.nbest == (
    squad.Candidate("", 1.0, float(has_null), float(has_null)),
  )
  assert full.best_text == "a"
  # Only ends in the question: no span either, and no crash.
  _, made = make("a b")
  (none,) = squad.decode(
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
  (answer,) = squad.decode(
    made, start, end, has_null=False, n_best=6, max_answer_len=4
  )
  assert [c.text for c in answer.nbest] == reference_texts(
    example, made, start, end, 6, 4
  )


def test_files_have_the_names_and_shapes_of_the_original(tmp_path):
  examples, made = make("a b", "c")
  zero = logits(made, cls=1)
  predictions = squad.decode(made, zero, zero, has_null=True)
  squad.write_files(str(tmp_path / "new"), examples, predictions)
  read = {
    path.name: json.loads(path.read_text())
    for path in (tmp_path / "new").iterdir()
  }
  assert read["predictions.json"] == {"q0": "", "q1": ""}
  assert read["null_odds.json"] == {"q0": 2.0, "q1": 2.0}
  first = read["nbest_predictions.json"]["q0"][0]
  assert set(first) == {"text", "probability", "start_logit", "end_logit"}
  squad.write_files(
    str(tmp_path / "v1"),
    examples,
    squad.decode(made, zero, zero, has_null=False),
  )
  assert {p.name for p in (tmp_path / "v1").iterdir()} == {
    "predictions.json", "nbest_predictions.json"
  }  # fmt: skip


def test_scores_that_are_not_finite_are_null_in_the_files(tmp_path):
  """NaN is not JSON; other programs could not read the file."""
  (example, *_), _ = make("a b", "c")
  odd = squad.Candidate("a", math.nan, math.inf, -math.inf)
  answer = squad.SpanPrediction("a", "a", math.nan, (odd,))
  squad.write_files(str(tmp_path), [example], [answer])

  def read(name):
    text = (tmp_path / name).read_text()
    return json.loads(text, parse_constant=pytest.fail)

  assert read("null_odds.json") == {"q0": None}
  (row,) = read("nbest_predictions.json")["q0"]
  assert row == {
    "text": "a", "probability": None, "start_logit": None, "end_logit": None
  }  # fmt: skip


# --- Scores ---


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("The Cat", "cat"),
    ("a  U.S.  an army.", "us army"),
    ("theory", "theory"),
    ("it's", "its"),
    ("The", ""),
    ("\u00c9t\u00e9 \u2013 x", "\u00e9t\u00e9 \u2013 x"),
  ],
)
def test_answers_are_normalised_as_in_the_official_scripts(text, wanted):
  assert squad.normalize_answer(text) == wanted


def test_f1_by_hand():
  # 2 words shared of 3 and of 4: precision 2/3, recall 1/2.
  assert squad.f1_score(
    "x y z", "the x y v w", empty_equals_empty=True
  ) == pytest.approx(4 / 7)
  assert squad.f1_score("x x", "x", empty_equals_empty=True) == pytest.approx(
    2 / 3
  )
  assert squad.f1_score("the", "", empty_equals_empty=True) == 1.0
  assert squad.f1_score("the", "", empty_equals_empty=False) == 0.0
  assert squad.f1_score("x", "", empty_equals_empty=True) == 0.0
  assert squad.exact_score("the X", "x!") == 1.0


def test_version_1_takes_the_best_gold_and_0_for_a_missing_one(capsys):
  golds = [("a", ["x", "x y"]), ("b", ["v"]), ("c", ["w"])]
  scores = squad.evaluate_v1(golds, {"a": "x y z", "b": "V."})
  assert scores == {
    "exact_match": pytest.approx(100 / 3),
    "f1": pytest.approx(100 * (0.8 + 1) / 3),
  }
  assert capsys.readouterr().err == (
    "Unanswered question c will receive score 0.\n"
  )


GOLDS = [("a", ["x y"]), ("b", ["v"]), ("n", []), ("m", [])]


def test_version_2_by_hand():
  answers = {"a": "x", "b": "v", "n": "", "m": "w"}
  assert squad.evaluate_v2(GOLDS, answers) == {
    "exact": 50.0,
    "f1": pytest.approx(100 * (2 / 3 + 1 + 1) / 4),
    "total": 4,
    "HasAns_exact": 50.0,
    "HasAns_f1": pytest.approx(100 * (2 / 3 + 1) / 2),
    "HasAns_total": 2,
    "NoAns_exact": 50.0,
    "NoAns_f1": 50.0,
    "NoAns_total": 2,
  }
  only = squad.evaluate_v2(GOLDS[:2], answers)
  assert not any(name.startswith("NoAns") for name in only)


def test_version_2_with_odds_of_no_answer_by_hand():
  answers = {"a": "x", "b": "v", "n": "q", "m": "w"}
  odds = {"a": 3.0, "b": -2.0, "n": 1.0, "m": 2.0}
  scores = squad.evaluate_v2(GOLDS, answers, odds, na_prob_thresh=1.5)
  # m and a become "": m is right then, a is not.
  assert scores["exact"] == 50.0
  assert scores["HasAns_exact"] == scores["NoAns_exact"] == 50.0
  # Nothing answered: 2. b answered: 3; n: 2; m: 1; a: 1 or 1 2/3.
  assert scores["best_exact"] == scores["best_f1"] == 75.0
  assert scores["best_exact_thresh"] == scores["best_f1_thresh"] == -2.0
  worst = squad.evaluate_v2(GOLDS, dict.fromkeys("abnm", "q"), odds)
  assert (worst["best_exact"], worst["best_exact_thresh"]) == (50.0, 0.0)


def test_version_2_leaves_a_missing_prediction_out(capsys):
  scores = squad.evaluate_v2(GOLDS, {"a": "x y", "n": ""})
  assert (scores["exact"], scores["total"]) == (100.0, 2)
  assert scores["HasAns_total"] == scores["NoAns_total"] == 1
  assert capsys.readouterr().err.splitlines() == [
    "Missing prediction for b", "Missing prediction for m"
  ]  # fmt: skip
  with pytest.raises(spec.TaskError, match="1 questions lack a probability"):
    squad.evaluate_v2(GOLDS, {"a": "x", "b": "y"}, {"a": 1.0})
  with pytest.raises(spec.TaskError, match="no question has a prediction"):
    squad.evaluate_v2(GOLDS, {"other": "x"})


# --- The script ---


def write(path, value):
  path.write_text(json.dumps(value), encoding="utf-8")
  return str(path)


def data(version, *golds):
  qas = [
    {
      "id": id,
      "question": "?",
      "answers": [{"text": t, "answer_start": 0} for t in texts],
    }
    | ({} if version == "1.1" else {"is_impossible": not texts})
    for id, texts in golds
  ]
  content = {"data": [{"paragraphs": [{"context": "x y v", "qas": qas}]}]}
  return content | {"version": version}


def test_the_script_prints_the_scores_of_the_version_in_the_file(tmp_path):
  v2 = write(tmp_path / "v2.json", data("v2.0", *GOLDS))
  answers = write(tmp_path / "p.json", {"a": "x", "b": "v", "n": "", "m": "w"})
  odds = write(tmp_path / "o.json", {"a": 3, "b": -2.0, "n": 1.0, "m": 2.0})
  command = [sys.executable, "-W", "error", "-m", "bert_jax.tasks.squad"]
  result = subprocess.run(
    [*command, v2, answers, "--na-prob-file", odds, "--na-prob-thresh", "1.5"],
    cwd=ROOT, capture_output=True, text=True, check=True,
  )  # fmt: skip
  printed = json.loads(result.stdout)
  assert list(printed) == [
    "exact", "f1", "total", "HasAns_exact", "HasAns_f1", "HasAns_total",
    "NoAns_exact", "NoAns_f1", "NoAns_total", "best_exact",
    "best_exact_thresh", "best_f1", "best_f1_thresh",
  ]  # fmt: skip
  assert (printed["exact"], result.stderr) == (75.0, "")


def test_the_script_tells_version_1_and_refuses_what_does_not_fit(
  tmp_path, capsys
):
  v1 = write(tmp_path / "v1.json", data("1.1", *GOLDS[:2]))
  answers = write(tmp_path / "p.json", {"a": "x y"})
  assert squad.main([v1, answers]) == 0
  out, err = capsys.readouterr()
  assert json.loads(out) == {"exact_match": 50.0, "f1": 50.0}
  assert err == "Unanswered question b will receive score 0.\n"
  assert squad.main([v1, answers, "--na-prob-file", answers]) == 2
  assert "is for version 2.0" in capsys.readouterr().err
  assert squad.main([answers, answers]) == 2
  assert "is not laid out as SQuAD" in capsys.readouterr().err
  assert squad.main([v1, write(tmp_path / "l.json", ["x"])]) == 2
  assert "wanted a JSON object with the id" in capsys.readouterr().err
  assert squad.main([v1, str(tmp_path / "none.json")]) == 2
  assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("name", "file"),
  [("squad_v1", "small-v1.1-dev.json"), ("squad_v2", "small-v2.0-dev.json")],
)
def test_predicting_the_first_gold_of_real_questions_scores_100(name, file):
  path = DATA / "squad" / file
  if not path.exists():
    pytest.skip(f"no {file} at ../shared/data/squad")
  examples = read_examples(
    TASKS[name], "", "validation", files={"validation": str(path)}
  )
  is_v2, golds = squad.read_golds(str(path))
  assert is_v2 == TASKS[name].has_null
  assert golds == squad.golds_of(examples)
  answers = {id: texts[0] if texts else "" for id, texts in golds}
  if is_v2:
    scores = squad.evaluate_v2(golds, answers)
    assert scores["exact"] == scores["f1"] == scores["NoAns_f1"] == 100.0
  else:
    assert squad.evaluate_v1(golds, answers) == {
      "exact_match": 100.0,
      "f1": 100.0,
    }
