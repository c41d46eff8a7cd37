"""Tests of tasks/qa.py: SQuAD's JSON."""

import dataclasses
import gzip
import json

import pytest

from bert_jax.data import rows
from bert_jax.kinds import table
from bert_jax.tasks import TASKS
from bert_jax.tasks import qa
from bert_jax.tasks import read_examples
from bert_jax.tasks import spec

CONTEXT = "The leader was  John Smith\u00a0(1895-1943)."


def question(id="q", answers=(("John", 16),), **more):
  answers = [{"text": t, "answer_start": s} for t, s in answers]
  return {"id": id, "question": "Who?", "answers": answers, **more}


def squad(*questions, **more):
  paragraph = {"context": CONTEXT, "qas": list(questions)}
  return {"data": [{"title": "x", "paragraphs": [paragraph]}], **more}


def read(tmp_path, name, content, split="train"):
  path = tmp_path / "file.json"
  path.write_text(
    content if isinstance(content, str) else json.dumps(content),
    encoding="utf-8",
  )
  return read_examples(TASKS[name], "", split, files={split: str(path)})


@pytest.mark.parametrize(
  ("text", "start", "wanted"),
  [
    ("John", 16, ("John", 16)),
    ("John Smith", 16, ("John Smith", 16)),
    ("was John", 11, ("was  John", 11)),
    ("1895", 29, ("1895", 28)),  # within the words it is said to be in
    ("1943", 28, ("1943", 33)),
    ("The", 16, None),  # elsewhere
    ("John", -1, ("John", 16)),
    ("John", 999, None),
    ("Jane", 16, None),
    (" ", 3, None),
  ],
)
def test_an_answer_is_found_in_the_words_it_is_said_to_stand_in(
  text, start, wanted
):
  assert qa.locate(text, start, CONTEXT) == wanted


def test_lost_answers_are_left_out_of_training_and_counted(tmp_path, caplog):
  """A hundredth of them; more are refused, wherever the answer is learned."""
  many = [question(f"a{i}") for i in range(99)]
  content = squad(*many, question("b", [("Jane", 16)]))
  examples = read(tmp_path, "squad_v1", content)
  assert examples[0] == spec.SpanExample(
    "a0", "Who?", CONTEXT, (("John", 16),), False
  )
  assert [e.id for e in examples] == [f"a{i}" for i in range(99)]
  assert "1 of 100 questions are not in" in caplog.text
  assert "left out" in caplog.text
  assert "question b: answer 'Jane' is not in its context" in caplog.text
  content = squad(*many[1:], question("b", [("Jane", 16)]))
  with pytest.raises(spec.TaskError, match="question b: .*1 of 99 questions"):
    read(tmp_path, "squad_v1", content)
  caplog.clear()
  found = read(tmp_path, "squad_v1", content, "validation")
  assert found[-1].answers == (("Jane", 16),)
  assert "1 of 99 questions are not in their contexts" in caplog.text
  assert "left out" not in caplog.text


def test_several_answers_are_kept_for_scoring(tmp_path):
  content = squad(question(answers=[("John", 16), ("John Smith", 16)]))
  (example,) = read(tmp_path, "squad_v1", content, "validation")
  assert len(example.answers) == 2
  with pytest.raises(spec.TaskError, match="question q: 2 answers; a training"):
    read(tmp_path, "squad_v1", content)


def test_questions_without_an_answer_belong_to_version_2(tmp_path):
  content = squad(
    question("a", is_impossible=False),
    question("b", [], is_impossible=True, plausible_answers=[]),
  )
  examples = read(tmp_path, "squad_v2", content)
  assert [e.is_impossible for e in examples] == [False, True]
  assert examples[1].answers == ()
  with pytest.raises(
    spec.TaskError, match="question b has no answer.*squad_v2"
  ):
    read(tmp_path, "squad_v1", content)


def test_answers_may_be_missing_where_nothing_is_learned(tmp_path):
  bare = {"id": "q", "question": "Who?"}
  (example,) = read(tmp_path, "squad_v1", squad(bare), "validation")
  assert not example.is_labelled
  with pytest.raises(spec.TaskError, match="question q: 0 answers"):
    read(tmp_path, "squad_v1", squad(bare))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (json.dumps(squad(question()))[:-9], "file.json is truncated"),
    ({"data": [{"title": "x"}]}, "not laid out as SQuAD: KeyError.'paragraphs"),
    ([1], "not laid out as SQuAD"),
    ({"data": []}, "file.json: no questions"),
    (
      {"data": [{"paragraphs": [{"context": 1, "qas": [question()]}]}]},
      "question q: context is 1; wanted text",
    ),
    (squad({"id": "q", "answers": []}), "question q: KeyError.'question'"),
    (
      squad(question(answers=[("Jane", 0)])),
      "question q: answer 'Jane' is not in its context at character 0;",
    ),
    (squad(question("a"), question("a")), "2 questions have the id a;"),
    ("", "file.json is empty"),
  ],
)
def test_bad_files_are_refused(tmp_path, content, message):
  with pytest.raises(spec.TaskError, match=message):
    read(tmp_path, "squad_v1", content)


@pytest.mark.parametrize(
  ("how", "wanted"),
  [
    ("first", [("q", "John")]),
    ("most_frequent", [("q", "John Smith")]),
    ("all", [("q", "John"), ("q#1", "John Smith")]),
  ],
)
def test_a_key_chooses_between_the_answers_to_learn(tmp_path, how, wanted):
  given = [("John", 16), ("John Smith", 16), ("John Smith", 16)]
  path = tmp_path / "file.json"
  path.write_text(json.dumps(squad(question(answers=given))))
  task = dataclasses.replace(TASKS["squad_v1"], train_answers=how)
  found = read_examples(task, "", "train", files={"train": str(path)})
  assert [(e.id, e.answers[0][0]) for e in found] == wanted
  assert all(len(e.answers) == 1 for e in found)


def own_rows(tmp_path, *rows, split="train", **facts):
  path = tmp_path / "a.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  task = table.make_task("span", text=["q", "c"], label="a", **facts)
  return read_examples(task, "", split, files={split: str(path)})


def test_own_answers_are_lists_or_objects(tmp_path, caplog):
  row = {"q": "?", "c": "a cart, an art cart"}
  squads = {"text": ["art", "cart"], "answer_start": [11, 2]}
  found = own_rows(
    tmp_path, row | {"a": ["art", "cart"]}, row | {"a": squads},
    row | {"a": "car"}, row | {"a": []}, train_answers="first",
  )  # fmt: skip
  assert [e.answers for e in found] == [
    (("art", 11),), (("art", 11),), (("car", 2),), ()
  ]  # fmt: skip
  assert found[3].is_impossible
  assert "1 of 4 answers begin or end within a word" in caplog.text
  with pytest.raises(spec.TaskError, match=r"a\.jsonl: question 0: 2 answers"):
    own_rows(tmp_path, row | {"a": squads})
  empty = own_rows(tmp_path, row | {"a": ""}, split="test")
  assert not empty[0].is_labelled


def test_places_of_answers_are_one_for_each_or_refused(tmp_path):
  row = {"q": "?", "c": "a cart, an art cart", "a": ["cart", "art"]}
  found = own_rows(
    tmp_path, row | {"answer_start": "[15, 11]"},
    row | {"a": ["cart"], "answer_start": 15},
    row | {"a": [], "answer_start": -1}, train_answers="first",
  )  # fmt: skip
  assert [e.answers for e in found] == [(("cart", 15),), (("cart", 15),), ()]
  with pytest.raises(spec.TaskError, match=r":1: .*\[15\] for 2 answers"):
    own_rows(tmp_path, row | {"answer_start": [15]})


def test_squads_json_may_be_one_line_longer_than_any_row(tmp_path, monkeypatch):
  path = tmp_path / "a.json"
  answers = [{"text": "be", "answer_start": 3}]
  question = {"id": "1", "question": "?", "answers": answers}
  paragraphs = [{"context": "to be", "qas": [question]}]
  content = {"version": "1.1", "data": [{"paragraphs": paragraphs}]}
  path.write_text(json.dumps(content))
  monkeypatch.setattr(rows, "MAX_BYTES", 64)
  task = table.make_task("span", text=["q", "c"], label="a")
  (example,) = read_examples(task, "", "train", files={"train": str(path)})
  assert example.answers == (("be", 3),)


def test_files_in_a_folder_may_be_compressed(tmp_path):
  rows_of = gzip.compress(b"q\tc\ta\n?\tto be\tbe\n")
  (tmp_path / "train.tsv.gz").write_bytes(rows_of)
  question = {"id": "1", "question": "?", "answers": [{"text": "be"}]}
  question["answers"][0]["answer_start"] = 3
  paragraphs = [{"context": "to be", "qas": [question]}]
  squads = json.dumps({"version": "1.1", "data": [{"paragraphs": paragraphs}]})
  (tmp_path / "dev.json.gz").write_bytes(gzip.compress(squads.encode()))
  task = table.make_task("span", text=["q", "c"], label="a")
  for split in ("train", "validation"):
    (example,) = read_examples(task, str(tmp_path), split)
    assert example.answers == (("be", 3),)
  (tmp_path / "test.json.gz").write_bytes(gzip.compress(squads.encode())[:-9])
  with pytest.raises(spec.TaskError, match=r"test\.json\.gz"):
    read_examples(task, str(tmp_path), "test")


def test_rows_of_questions_may_be_one_array(tmp_path):
  path = tmp_path / "a.json"
  path.write_text(json.dumps([{"q": "?", "c": "to be", "a": "be"}], indent=1))
  task = table.make_task("span", text=["q", "c"], label="a")
  (example,) = read_examples(task, "", "train", files={"train": str(path)})
  assert example.answers == (("be", 3),)
