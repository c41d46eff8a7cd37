"""Tests of tasks/own.py: tasks on a user's own files."""

import json

import pytest

from bert_jax.kinds import table
from bert_jax.tasks import read_examples
from bert_jax.tasks import spec


def write(path, text):
  path.write_text(text, encoding="utf-8")
  return str(path)


def lines(*rows):
  return "".join(json.dumps(row) + "\n" for row in rows)


def test_labels_come_from_the_training_file_sorted(tmp_path):
  train = write(tmp_path / "train.csv", 'text,y\n"a, b",no\nc,yes\nd,maybe\n')
  task = table.make_task("classify", text=["text"], label="y", train_path=train)
  assert task.labels == ("maybe", "no", "yes")
  assert (task.kind, len(task.labels)) == ("classify", 3)
  examples = read_examples(task, str(tmp_path), "train")
  assert examples[0] == spec.PairExample("0", "a, b", None, 1)
  dev = write(tmp_path / "dev.csv", "text,y\na,perhaps\n")
  with pytest.raises(
    spec.TaskError, match="dev.csv:2: label 'perhaps' .*: may"
  ):
    read_examples(task, str(tmp_path), "validation")
  given = table.make_task(
    "classify", text=["text"], label="y", labels=["yes", "no", "maybe"]
  )
  assert read_examples(given, "", "train", files={"train": train})[0].label == 1
  assert dev


def test_numbers_as_labels_are_sorted_by_value(tmp_path):
  train = write(
    tmp_path / "a.jsonl", lines(*({"t": "x", "y": y} for y in (10, 9, 2)))
  )
  task = table.make_task("classify", text=["t"], label="y", train_path=train)
  assert task.labels == ("2", "9", "10")
  examples = read_examples(task, "", "train", files={"train": train})
  assert [e.label for e in examples] == [2, 1, 0]


def test_pairs_and_scores_without_a_header(tmp_path):
  path = write(tmp_path / "a.tsv", 'x\t"y\t0.5\nz\tw\t-1e3\n')
  task = table.make_task(
    "regress", text=["a", "b"], label="s", columns=["a", "b", "s"]
  )
  assert (task.kind, task.labels) == ("regress", ())
  assert read_examples(task, "", "train", files={"train": path}) == [
    spec.PairExample("0", "x", '"y', 0.5),
    spec.PairExample("1", "z", "w", -1000.0),
  ]
  pairs = table.make_task(
    "pairs", text=["b", "a"], label="s", train_path=path,
    columns=["a", "b", "s"],
  )  # fmt: skip
  assert pairs.labels == ("-1e3", "0.5")
  (first, _) = read_examples(pairs, "", "train", files={"train": path})
  assert (first.text_a, first.text_b, first.label) == ('"y', "x", 1)


def test_a_test_split_may_lack_the_label(tmp_path):
  write(tmp_path / "test.tsv", "text\na\n")
  write(tmp_path / "test.csv", "text,y\na,\n")
  write(tmp_path / "dev.tsv", "text\na\n")
  task = table.make_task(
    "classify", text=["text"], label="y", labels=["n", "y"]
  )
  for files in ({}, {"test": str(tmp_path / "test.csv")}):
    (example,) = read_examples(task, str(tmp_path), "test", files=files)
    assert example.label is None
  with pytest.raises(spec.TaskError, match="dev.tsv:2: no column 'y'; .* text"):
    read_examples(task, str(tmp_path), "validation")


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("a.conll", "EU\tI-ORG\nsaid\tO\n\nBonn\tI-LOC\n"),
    (
      "a.jsonl",
      lines(
        {"w": ["EU", "said"], "t": ["B-ORG", "O"]}, {"w": "Bonn", "t": "B-LOC"}
      ),
    ),
    ("a.tsv", "w\tt\nEU said\tB-ORG O\nBonn\tB-LOC\n"),
  ],
)
def test_tags_from_every_format(tmp_path, name, content):
  path = write(tmp_path / name, content)
  task = table.make_task("tag", text=["w"], label="t", train_path=path)
  assert task.labels == ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG")
  first, second = read_examples(task, "", "train", files={"train": path})
  assert (first.words, first.labels) == (("EU", "said"), ("B-ORG", "O"))
  assert (second.words, second.labels) == (("Bonn",), ("B-LOC",))


def test_spans_are_found_by_their_text_or_their_place(tmp_path):
  context = "to be or not to be"
  rows = [
    {"q": "What?", "c": context, "a": "be"},
    {"q": "What?", "c": context, "a": "be", "answer_start": 16, "id": "x"},
    {"q": "Why?", "c": context, "a": ""},
  ]
  path = write(tmp_path / "a.jsonl", lines(*rows))
  task = table.make_task("span", text=["q", "c"], label="a")
  examples = read_examples(task, "", "train", files={"train": path})
  assert [e.answers for e in examples] == [(("be", 3),), (("be", 16),), ()]
  assert [e.is_impossible for e in examples] == [False, False, True]
  assert [e.id for e in examples] == ["0", "x", "2"]
  task = table.make_task("span", text=["q", "c"], label="a", has_null=False)
  with pytest.raises(
    spec.TaskError, match="a.jsonl:3: no answer; set task.has_null"
  ):
    read_examples(task, "", "train", files={"train": path})
  bad = write(tmp_path / "b.jsonl", lines(rows[0] | {"a": "Hamlet"}))
  with pytest.raises(
    spec.TaskError, match="b.jsonl:1: answer 'Hamlet' is not "
  ):
    read_examples(task, "", "train", files={"train": bad})


def test_spans_in_the_layout_of_squad_must_have_their_answer(tmp_path):
  def squad(text):
    answers = [{"text": text, "answer_start": 3}]
    qas = [{"id": "q", "question": "What?", "answers": answers}]
    paragraph = {"context": "to be", "qas": qas}
    return json.dumps({"data": [{"paragraphs": [paragraph]}]})

  task = table.make_task("span", text=["q", "c"], label="a")
  files = {"train": write(tmp_path / "a.json", squad("be"))}
  assert read_examples(task, "", "train", files=files)[0].answers == (
    ("be", 3),
  )
  files = {"train": write(tmp_path / "a.json", squad("bee"))}
  with pytest.raises(
    spec.TaskError, match="question q: answer 'bee' is not in"
  ):
    read_examples(task, "", "train", files=files)


def test_any_number_of_choices(tmp_path):
  path = write(tmp_path / "a.csv", "c,x,y,z,n\nA,1,2,3,2\n")
  task = table.make_task("choice", text=["c", "x", "y", "z"], label="n")
  assert read_examples(task, "", "train", files={"train": path}) == [
    spec.ChoiceExample("0", (("A", "1"), ("A", "2"), ("A", "3")), 2)
  ]


@pytest.mark.parametrize(
  ("form", "text", "message"),
  [
    (
      "guess",
      ["a"],
      "form='guess' .* classify, pairs",
    ),
    ("pairs", ["a"], "task own: 1 text columns .a., wanted 2"),
    ("choice", ["a"], "1 text columns .*, wanted 2 or more"),
    ("regress", ["a", "b", "c"], "3 text columns .*, wanted 1 to 2"),
    ("classify", ["a"], "its labels are not known; give labels, or a train"),
    ("tag", ["a"], "its labels are not known"),
  ],
)
def test_what_is_missing_is_said(form, text, message):
  with pytest.raises(spec.TaskError, match=message):
    table.make_task(form, text=text, label="y")


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"w": ["a"], "t": ["O", "O"]}, "a.jsonl:1: 2 tags for 1 words"),
    ({"w": [], "t": []}, "a.jsonl:1: .* wanted words, as a list"),
    ({"w": ["a"], "t": ["B-new"]}, "a.jsonl:1: label 'B-new' is not known"),
    ({"w": ["a"], "t": [1.5]}, "a.jsonl:1: .* wanted words"),
    (
      {"w": ["a"], "t": [2]},
      "a.jsonl:1: the tag is the number 2, but .* 0 to 1",
    ),
  ],
)
def test_bad_tags_are_refused_with_the_line(tmp_path, row, message):
  path = write(tmp_path / "a.jsonl", lines(row))
  task = table.make_task("tag", text=["w"], label="t", labels=["O", "B-x"])
  with pytest.raises(spec.TaskError, match=message):
    read_examples(task, "", "train", files={"train": path})


def test_an_array_needs_no_line_end(tmp_path, caplog):
  path = write(tmp_path / "a.json", json.dumps([{"t": "x", "y": "no"}] * 2))
  task = table.make_task("classify", text=["t"], label="y", labels=("no", "so"))
  assert len(read_examples(task, "", "train", files={"train": path})) == 2
  assert not caplog.text
