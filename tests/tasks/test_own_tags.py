"""Tests of own_tags.py, tag_schemes.py and words.py."""

import json

import hypothesis
from hypothesis import strategies as st
import pytest

from bert_jax.kinds import table
from bert_jax.tasks import ner
from bert_jax.tasks import read_examples
from bert_jax.tasks import spec
from bert_jax.tasks import tag_schemes
from bert_jax.tasks import words


def make(path, **facts):
  facts = {"text": ["t"], "label": "y", "train_path": path} | facts
  return table.make_task("tag", **facts)


def write(path, *lines):
  rows = [x if isinstance(x, str) else json.dumps(x) for x in lines]
  path.write_text("\n".join([*rows, ""]), encoding="utf-8")
  return str(path)


def read(task, path, split="train"):
  return read_examples(task, "", split, files={split: path})


@pytest.mark.parametrize(
  ("tags", "wanted"),
  [
    ("S-A B-A E-A I-A", "B-A B-A I-A B-A"),  # BIOES
    ("U-A B-A I-A L-A O L-B", "B-A B-A I-A I-A O B-B"),  # BILOU
    ("B M E S O", "B I I B O"),  # without types
    ("I I O B", "B I O B"),
  ],
)
def test_every_scheme_becomes_iob2(tags, wanted):
  given = tags.split()
  assert tag_schemes.scheme_of(given, "f") == "chunks"
  assert tag_schemes.to_iob2(given, given) == tuple(wanted.split())


@hypothesis.given(
  st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"]), max_size=8)
)
def test_iob_is_read_as_the_reader_of_conll_reads_it(tags):
  assert tag_schemes.to_iob2(tags, tags) == ner.to_iob2(tags, tags)


@pytest.mark.parametrize(
  ("tags", "wanted"),
  [
    ("DET NOUN", "plain"),
    ("S N V", "plain"),
    ("O B-A", "chunks"),
    ("NOUN B-A", "'B-A' is the tag of a chunk, but 'NOUN' is not"),
    ("b-per i-per O", "'b-per' looks like"),
    ("B_PER O", "'B_PER' looks like"),
  ],
)
def test_the_scheme_is_told_by_the_tags(tags, wanted):
  if wanted in tag_schemes.SCHEMES:
    assert tag_schemes.scheme_of(tags.split(), "f") == wanted
  else:
    with pytest.raises(spec.TaskError, match=f"{wanted}.*tag_scheme=plain"):
      tag_schemes.scheme_of(tags.split(), "f")


def test_parts_of_speech_are_plain_tags(tmp_path):
  path = write(tmp_path / "a.txt", "The\tDET", "cat\tNOUN", "", "B\tNOUN")
  task = make(path)
  assert (task.tag_scheme, task.labels) == ("plain", ("DET", "NOUN"))
  assert task.metrics == ("accuracy", "macro_f1")
  assert read(task, path)[0].labels == ("DET", "NOUN")


def test_a_tag_that_does_not_fit_the_others_is_named_by_its_line(tmp_path):
  path = write(tmp_path / "a.txt", "a\tB-X", "b\tNOUN")
  with pytest.raises(spec.TaskError, match=r"a.txt:2: .*'NOUN' is not"):
    make(path)


def test_bioes_in_a_file_of_columns_with_comments(tmp_path):
  path = write(
    tmp_path / "a.conll", "# id 1 x", "Ada S-P", "# O", "in O", "", "# id = 2",
    "New B-L", "York E-L",
  )  # fmt: skip
  task = make(path)
  assert task.labels == ("O", "B-L", "I-L", "B-P", "I-P")
  first, second = read(task, path)
  assert (first.words, first.labels) == (("Ada", "#", "in"), ("B-P", "O", "O"))
  assert second.labels == ("B-L", "I-L")


def test_numbers_are_tags_of_a_list(tmp_path):
  path = write(tmp_path / "a.jsonl", {"t": ["a", "b"], "y": [1, 2]})
  with pytest.raises(spec.TaskError, match=r"a.jsonl:1: .*task.labels"):
    make(path)
  task = make(path, labels=["O", "S-P", "B-P", "E-P"])
  assert task.labels == ("O", "B-P", "I-P")
  assert read(task, path)[0].labels == ("B-P", "B-P")
  test = write(tmp_path / "b.jsonl", {"t": ["a", "b"], "y": [-1, -1]})
  assert read(task, test, "test")[0].labels is None


def test_wide_spaces_and_empty_texts_are_words(tmp_path, caplog):
  path = write(tmp_path / "a.txt", "\u3000 O", "b B-X", "", "\u3000\tO")
  path = write(tmp_path / "b.txt", "\u3000\tO", "b\tB-X", "", "\tO")
  first, second = read(make(path), path)
  assert (first.words, second.words) == (("\u3000", "b"), ("",))
  assert "line 4: 1 words are empty" in caplog.text
  spaced = write(tmp_path / "c.txt", "\u3000 O", "b B-X")
  assert read(make(spaced), spaced)[0].words == ("\u3000", "b")
  row = write(tmp_path / "d.jsonl", {"t": "a \u3000 b", "y": "O O B-X"})
  assert read(make(row), row)[0].words == ("a", "\u3000", "b")


def test_conllu_has_its_columns_and_skips_ranges(tmp_path):
  row = "_\t_\t_\t_\t_\t_"
  path = write(
    tmp_path / "a.conllu", "# text = vámonos", f"1-2\tvámonos\t_\t_\t{row}",
    f"1\tvamos\tir\tVERB\t{row}", f"2\tnos\t\tPRON\t{row}",
  )  # fmt: skip
  (example,) = read(make(path, label=""), path)
  assert example.words == ("vamos", "nos")
  assert example.labels == ("VERB", "PRON")


SPANS = {"t": "Ada Byron, (Bonn).", "y": [[0, 9, "P"], [12, 16, "L"]]}


def test_spans_become_tags_of_the_words_of_the_text(tmp_path, caplog):
  objects = [{"start": 0, "end": 3, "label": "P"}]
  path = write(
    tmp_path / "a.jsonl", SPANS, {"t": "Ada", "y": objects},
    {"t": "none", "y": []}, {"t": "Bonner", "y": [[0, 4, "L"]]},
  )  # fmt: skip
  task = make(path)
  assert (task.word_split, task.tag_scheme) == ("punctuation", "chunks")
  first, second, third, fourth = read(task, path)
  assert first.words == ("Ada", "Byron", ",", "(", "Bonn", ")", ".")
  assert first.labels == ("B-P", "I-P", "O", "O", "B-L", "O", "O")
  assert second.labels == ("B-P",) and third.labels == ("O",)
  assert fourth.labels == ("B-L",)
  assert "line 4: 1 spans begin or end within a word" in caplog.text


@pytest.mark.parametrize(
  ("spans", "wanted"),
  [
    ([[0, 3, "P"], [2, 9, "P"]], "0 to 3 and 2 to 9 overlap"),
    ([[0, 99, "P"]], "0 to 99 is not within its text of 18"),
    ([[3, 3, "P"]], "3 to 3 is not within"),
    ([[0, "P"]], "is not a span"),
    ([{"start": 0, "end": 3}], "is not a span"),
  ],
)
def test_bad_spans_are_named_by_their_line(tmp_path, spans, wanted):
  path = write(tmp_path / "a.jsonl", SPANS, SPANS | {"y": spans})
  with pytest.raises(spec.TaskError, match=f"a.jsonl:2: .*{wanted}"):
    make(path)


@pytest.mark.parametrize(
  ("split", "wanted"),
  [
    ("spaces", ["(Hi,", "U.S.", "it's", "5.5!", "हिंदी", "東京"]),
    (
      "punctuation",
      ["(", "Hi", ",", "U.S", ".", "it's", "5.5", "!", "हिंदी", "東京"],
    ),
  ],
)
def test_texts_are_split_into_words(split, wanted):
  text = "(Hi, U.S. it's 5.5! हिंदी 東京"
  places = words.places(text, split)
  assert [text[start:end] for start, end in places] == wanted


def test_vowel_signs_stay_with_their_letter():
  assert words.places("हिंदी", "characters") == [(0, 3), (3, 5)]


@hypothesis.given(st.text(max_size=30), st.sampled_from(list(words.SPLITS)))
def test_words_are_all_that_is_not_space(text, split):
  places = words.places(text, split)
  joined = "".join(text[start:end] for start, end in places)
  assert joined == "".join(text.split())
  ends = [0, *(end for _, end in places)]
  assert all(
    end <= start for end, (start, _) in zip(ends, places, strict=False)
  )


def test_the_split_is_told_by_the_words():
  assert words.split_of("EU said , .".split()) == "punctuation"
  assert words.split_of("EU said, no.".split()) == "spaces"
  assert words.split_of("東 京 大 学".split()) == "characters"
