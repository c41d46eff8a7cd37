"""Tests of tasks/ner.py."""

import pytest

from bert_jax.tasks import TASKS
from bert_jax.tasks import ner
from bert_jax.tasks import read_examples
from bert_jax.tasks import spec

CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP I-ORG
rejects VBZ B-VP O
German JJ B-NP I-MISC

Peter NNP B-NP I-PER
Blackburn NNP I-NP I-PER

-DOCSTART- -X- O O

Spain NNP I-NP I-LOC
France NNP I-NP B-LOC"""


def read(tmp_path, name, text, split="train", read=None):
  path = tmp_path / "file.conll"
  path.write_bytes(text.encode("utf-8"))
  if read:
    return read(TASKS[name], str(path), split)
  return read_examples(TASKS[name], "", split, files={split: str(path)})


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_conll_2003_documents_sentences_and_tags(tmp_path, end):
  examples = read(tmp_path, "conll2003", CONLL.replace("\n", end))
  assert [e.words for e in examples] == [
    ("EU", "rejects", "German"),
    ("Peter", "Blackburn"),
    ("Spain", "France"),
  ]
  assert [e.labels for e in examples] == [
    ("B-ORG", "O", "B-MISC"),
    ("B-PER", "I-PER"),
    ("B-LOC", "B-LOC"),
  ]
  assert [e.document for e in examples] == [1, 1, 2]


def test_wnut_has_two_columns_and_no_documents(tmp_path):
  text = "@a\tO\nNew\tB-location\nYork\tI-location\n\t\n\nx\tO"
  examples = read(tmp_path, "wnut17", text)
  assert [e.words for e in examples] == [("@a", "New", "York"), ("x",)]
  assert examples[0].labels == ("O", "B-location", "I-location")
  assert [e.document for e in examples] == [0, 1]


@pytest.mark.parametrize(
  ("tags", "wanted"),
  [
    ("O I-A I-A O", "O B-A I-A O"),
    ("I-A B-A I-A", "B-A B-A I-A"),
    ("I-A I-B I-B B-B", "B-A B-B I-B B-B"),
    ("B-A I-A B-B O I-B", "B-A I-A B-B O B-B"),
    ("B-A-x I-A-x", "B-A-x I-A-x"),
  ],
)
def test_iob1_becomes_iob2_and_iob2_stays(tags, wanted):
  where = [""] * len(tags.split())
  once = ner.to_iob2(tags.split(), where)
  assert once == tuple(wanted.split())
  assert ner.to_iob2(once, where) == once


def test_a_tag_of_another_form_is_refused_by_its_place():
  for bad in ("X", "S-A", "B-", "b-A"):
    with pytest.raises(spec.TaskError, match=f"f:2: tag '{bad}' is not known"):
      ner.to_iob2(["O", bad], ["f:1", "f:2"])


def test_labels_of_own_data_have_both_prefixes():
  assert ner.tag_labels(["B-b", "O", "I-a"]) == (
    "O", "B-a", "I-a", "B-b", "I-b"
  )  # fmt: skip


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("conll2003", "EU NNP I-ORG\n", "file.conll:1: 3 columns, wanted 4"),
    ("wnut17", "a\tO\nb\n", "file.conll:2: 1 columns, wanted 2"),
    ("wnut17", "a\tO\nb\tB-PER\n", "file.conll:2: label 'B-PER' .*B-corpora"),
    ("wnut17", "a\tX\n", "file.conll:1: tag 'X' is not known"),
    ("wnut17", "\n\n", "file.conll is empty"),
    ("conll2003", "-DOCSTART- -X- -X- O\n", "file.conll has no sentences"),
  ],
)
def test_bad_files_are_refused_with_the_line(tmp_path, name, text, message):
  with pytest.raises(spec.TaskError, match=message):
    read(tmp_path, name, text)
