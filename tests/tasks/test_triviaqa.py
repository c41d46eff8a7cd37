"""Tests of tasks/triviaqa.py: hand-made files in the official layout."""

import json

import pytest

from bert_jax.tasks import TASKS
from bert_jax.tasks import read_examples
from bert_jax.tasks import spec
from bert_jax.tasks import triviaqa


def make(folder, documents, answers=("Paris", "Lutetia")):
  """A question whose documents have these texts; returns the folder."""
  (folder / "qa").mkdir()
  evidence = folder / "evidence" / "wikipedia"
  evidence.mkdir(parents=True)
  for name, text in documents.items():
    (evidence / name).write_text(text, encoding="utf-8")
  value, *aliases = answers
  question = {
    "Question": "Where?",
    "QuestionId": "tc_1",
    "Answer": {"Value": value, "Aliases": aliases},
    "EntityPages": [{"Filename": name} for name in documents],
  }
  path = folder / "qa" / "wikipedia-train.json"
  path.write_text(json.dumps({"Data": [question]}), encoding="utf-8")
  return str(folder)


def test_a_context_is_the_first_tokens_and_holds_an_answer(tmp_path):
  folder = make(
    tmp_path,
    {
      "a.txt": "He was  in\nlutetia, near Paris then.",
      "late.txt": "one two three four five Paris",
      "part.txt": "Parisian only",
    },
  )
  output = str(tmp_path / "out.json")
  assert triviaqa.convert(folder, output, num_tokens=5) == (1, 3)
  task = TASKS["squad_v1"]
  (example,) = read_examples(task, "", "train", files={"train": output})
  assert example == spec.SpanExample(
    "tc_1--a.txt", "Where?", "He was  in\nlutetia, near",
    (("lutetia", 11),), False,
  )  # fmt: skip


def test_answers_are_whole_words_in_any_case_and_with_any_spaces():
  find = triviaqa.find_answer
  assert find("A New\n York, new york", ["new york"], most=2) == [
    ("New\n York", 2), ("new york", 13)
  ]  # fmt: skip
  assert find("U.S. (U.S.A.)", ["U.S.A."]) == [("U.S.A.", 6)]
  assert find("cats", ["cat"]) == []
  assert find("a", ["", " "]) == []
  # Of two that begin at one place, the longer one.
  assert find("King Arthur", ["King", "King Arthur"]) == [("King Arthur", 0)]


def test_first_tokens_keep_the_text_as_it_is():
  assert triviaqa.first_tokens("  a  b\tc", 2) == "  a  b"
  assert triviaqa.first_tokens("a b", 9) == "a b"
  assert triviaqa.first_tokens("a b", 0) == ""


def test_what_cannot_be_is_refused(tmp_path, capsys):
  with pytest.raises(spec.TaskError, match="wikipedia-train.json is missing"):
    triviaqa.convert(str(tmp_path), str(tmp_path / "out.json"))
  folder = make(tmp_path, {"a.txt": "nothing here"})
  with pytest.raises(spec.TaskError, match="none of 1 documents"):
    triviaqa.convert(folder, str(tmp_path / "out.json"))
  assert not (tmp_path / "out.json").exists()
  (tmp_path / "qa" / "wikipedia-train.json").write_text('{"Data": [{}]}')
  assert triviaqa.main([folder, str(tmp_path / "out.json")]) == 2
  assert "QuestionId" in capsys.readouterr().err
