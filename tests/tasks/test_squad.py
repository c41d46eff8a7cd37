"""Tests of tasks/squad.py: the official scores, the script."""

import json
import pathlib
import subprocess
import sys

import pytest

from bert_jax.tasks import TASKS
from bert_jax.tasks import answer_scores
from bert_jax.tasks import read_examples
from bert_jax.tasks import spec
from bert_jax.tasks import squad

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


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
  assert answer_scores.normalize_answer(text) == wanted


def test_f1_by_hand():
  # 2 words shared of 3 and of 4: precision 2/3, recall 1/2.
  assert answer_scores.f1_score(
    "x y z", "the x y v w", empty_equals_empty=True
  ) == pytest.approx(4 / 7)
  assert answer_scores.f1_score(
    "x x", "x", empty_equals_empty=True
  ) == pytest.approx(2 / 3)
  assert answer_scores.f1_score("the", "", empty_equals_empty=True) == 1.0
  assert answer_scores.f1_score("the", "", empty_equals_empty=False) == 0.0
  assert answer_scores.f1_score("x", "", empty_equals_empty=True) == 0.0
  assert answer_scores.exact_score("the X", "x!") == 1.0


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
  assert "wanted a JSON object from the id" in capsys.readouterr().err
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
