"""Tests of tasks/choice.py."""

import json
import pathlib

import pytest

from bert_jax.kinds import answers
from bert_jax.kinds import choice as choice_kind
from bert_jax.kinds import table
from bert_jax.tasks import TASKS
from bert_jax.tasks import choice
from bert_jax.tasks import read_examples
from bert_jax.tasks import spec

DATA = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"


def read(path, name, split, text):
  path.write_text(text, encoding="utf-8")
  return read_examples(TASKS[name], "", split, files={split: str(path)})


SWAG_HEAD = (
  ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,"
  "ending0,ending1,ending2,ending3"
)


def test_swag_joins_the_start_of_the_second_sentence_to_each_ending(tmp_path):
  row = '0,v,1,"A, b. She","A, b.",She,gold,runs.,"sits, then.",x,y'
  wanted = tuple(
    ("A, b.", f"She {end}") for end in ("runs.", "sits, then.", "x", "y")
  )
  (example,) = read(
    tmp_path / "train.csv", "swag", "train", f"{SWAG_HEAD},label\n{row},2\n"
  )
  assert (example.pairs, example.label) == (wanted, 2)
  (example,) = read(
    tmp_path / "test.csv", "swag", "test", f"{SWAG_HEAD}\n{row}\n"
  )
  assert (example.pairs, example.label) == (wanted, None)


def test_hellaswag_splits_context_and_endings(tmp_path):
  rows = [
    {"ind": 4, "ctx_a": "A man.", "ctx_b": "he", "endings": list("abcd")},
    {"ind": 9, "ctx_a": "How to.", "ctx_b": "", "endings": list("efgh")},
  ]
  text = "\n".join(json.dumps(row | {"label": 3}) for row in rows)
  first, second = read(tmp_path / "a.jsonl", "hellaswag", "validation", text)
  assert first == spec.ChoiceExample(
    "4", tuple(("A man.", f"he {x}") for x in "abcd"), 3
  )
  assert second.pairs[0] == ("How to.", "e")
  rows[1]["label"] = ""
  text = "\n".join(json.dumps(row) for row in rows)
  examples = read(tmp_path / "a.jsonl", "hellaswag", "test", text)
  assert [e.label for e in examples] == [None, None]


def test_codah_has_no_header(tmp_path):
  (example,) = read(
    tmp_path / "a.tsv", "codah", "test", 'o\tThe "dog\ta\tb\tc\td\t1\n'
  )
  assert example.pairs == tuple(('The "dog', x) for x in "abcd")
  assert example.label == 1


@pytest.mark.parametrize("label", [1.7, True, "1.0", None])
def test_a_label_that_is_no_whole_number_is_refused(label):
  with pytest.raises(spec.TaskError, match="is not known; the 4 choices are"):
    choice.choice_label(label, 4, "a.jsonl:1")


@pytest.mark.parametrize("label", ["4", "-1", "x", ""])
def test_a_label_that_is_none_of_the_choices_is_refused(tmp_path, label):
  with pytest.raises(
    spec.TaskError, match=rf"a.tsv:1: label '{label}' is not known; the 4 .*3$"
  ):
    read(tmp_path / "a.tsv", "codah", "train", f"o\tp\ta\tb\tc\td\t{label}\n")


def test_real_swag_rows_as_json_lines():
  path = DATA / "swag" / "swag_sample.json"
  if not path.exists():
    pytest.skip("no swag_sample.json at ../shared/data/swag")
  examples = read_examples(
    TASKS["swag"], "", "validation", files={"validation": str(path)}
  )
  assert len(examples) == 10
  assert examples[0].pairs[0][1].startswith("A drum line passes by")
  assert [e.label for e in examples][:2] == [0, 3]


# --- Own files ---


def own(path, *rows, split="train", **facts):
  path.write_text("\n".join([*rows, ""]), encoding="utf-8")
  task = table.make_task(
    "choice", **{"text": ["q", "a", "b", "c"], "label": "y"} | facts
  )
  return read_examples(task, "", split, files={split: str(path)})


def test_choices_have_letters_numbers_or_their_text(tmp_path):
  head = "q,a,b,c,y"
  rows = ["x,1st,2nd,3rd,C", "x,1st,2nd,3rd,0", "x,1st,2nd,3rd,2nd"]
  found = own(tmp_path / "a.csv", head, *rows, "x,1st,2nd,3rd,1.0")
  assert [e.label for e in found] == [2, 0, 1, 1]
  found = own(tmp_path / "a.csv", head, "x,i,j,k,3", first_choice=1)
  assert [e.label for e in found] == [2]
  with pytest.raises(spec.TaskError, match=r"a.csv:2: .*task.first_choice=1"):
    own(tmp_path / "a.csv", head, "x,i,j,k,3")
  with pytest.raises(spec.TaskError, match=r"a.csv:2: label 'E' .*A to C"):
    own(tmp_path / "a.csv", head, "x,i,j,k,E")


def test_choices_may_vary_in_number(tmp_path):
  head = "q,a,b,c,y"
  found = own(tmp_path / "a.csv", head, "x,i,,k,2", "x,i,j,k,0")
  assert found[0] == spec.ChoiceExample("0", (("x", "i"), ("x", "k")), 1)
  with pytest.raises(spec.TaskError, match=r"a.csv:2: .*is empty"):
    own(tmp_path / "a.csv", head, "x,i,,k,1")
  # An answer names a choice by its number, so that none before it is left out.
  with pytest.raises(spec.TaskError, match=r"a.csv:2: choice 1 .*is empty"):
    own(tmp_path / "a.csv", head, "x,i,,k,", split="test")
  (last,) = own(tmp_path / "a.csv", head, "x,i,j,,", split="test")
  assert last.pairs == (("x", "i"), ("x", "j"))
  one = object.__new__(choice_kind.Answerer)
  assert one.join(["x", "i", "j", None])["choices"] == ["i", "j"]
  with pytest.raises(answers.RecordError, match="choice 0"):
    one.join(["x", "", "j", "k"])
  texts = {"text": ["i", "j"], "label": ["1", "2"]}
  rows = [
    {"q": "x", "a": ["i", "j", "k"], "y": "B"},
    {"q": "x", "a": texts, "y": "2"},
    {"q": "x", "a": [{"label": "A", "text": "i"}, {"label": "B", "text": "j"}],
     "y": "A"},
  ]  # fmt: skip
  found = own(tmp_path / "a.jsonl", *map(json.dumps, rows), text=["q", "a"])
  assert [(len(e.pairs), e.label) for e in found] == [(3, 1), (2, 1), (2, 0)]
