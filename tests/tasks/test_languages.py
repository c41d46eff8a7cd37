"""Tests of tasks/languages.py and tasks/race.py: hand-made official files."""

import json

import pytest

from bert_jax.configs import finetune
from bert_jax.tasks import TASKS
from bert_jax.tasks import languages
from bert_jax.tasks import read_examples
from bert_jax.tasks import spec


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text, encoding="utf-8")


XNLI = (
  "language\tgold_label\tsentence1_binary_parse\tsentence1\tsentence2\tpairID\n"
)
LINES = "".join(
  f"{language}\t{label}\t\t{language} p\t{language} h\t{number}\n"
  for number, label in enumerate(("neutral", "contradiction"))
  for language in ("en", "de", "zh")
)


@pytest.fixture
def xnli(tmp_path):
  write(tmp_path / "XNLI-1.0" / "xnli.dev.tsv", XNLI + LINES)
  write(tmp_path / "XNLI-1.0" / "xnli.test.tsv", XNLI + LINES)
  write(
    tmp_path / "XNLI-MT-1.0" / "multinli" / "multinli.train.zh.tsv",
    'premise\thypo\tlabel\n"a\tb\tcontradictory\nc\td\tentailment\n',
  )
  write(
    tmp_path / "translate-test" / "test-zh-en-translated.tsv",
    "\u4e00\t\u4e8c\tone\ttwo\tcontradictory\n",
  )
  return str(tmp_path)


def test_xnli_has_fifteen_languages_and_the_labels_of_mnli():
  names = [name for name in TASKS if name.startswith("xnli_")]
  assert len(names) == 15
  assert {TASKS[name].labels for name in names} == {TASKS["mnli"].labels}


def test_translated_training_data_is_read_as_by_the_original(xnli):
  """`contradictory` is a contradiction, and a quote is a character."""
  found = read_examples(TASKS["xnli_zh"], xnli, "train")
  assert found == [
    spec.PairExample("0", '"a', "b", 0),
    spec.PairExample("1", "c", "d", 1),
  ]


def test_a_split_holds_one_language(xnli):
  for task, split, language in (
    ("xnli_zh", "validation", "zh"),
    ("xnli_zh", "test", "zh"),
    ("xnli_en", "test_de", "de"),
    ("xnli_en", "validation_zh", "zh"),
  ):
    found = read_examples(TASKS[task], xnli, split)
    assert [(e.text_a, e.label) for e in found] == [
      (f"{language} p", 2), (f"{language} p", 0)
    ]  # fmt: skip
  with pytest.raises(spec.TaskError, match="no row is in the language 'sw'"):
    read_examples(TASKS["xnli_en"], xnli, "test_sw")
  with pytest.raises(spec.TaskError, match="no split 'translated_de'"):
    read_examples(TASKS["xnli_zh"], xnli, "translated_de")


def test_translated_test_data_has_the_translation(xnli):
  (example,) = read_examples(TASKS["xnli_en"], xnli, "translated_zh")
  assert example == spec.PairExample("0", "one", "two", 0)


def test_pawsx_has_a_folder_for_each_language(tmp_path):
  head = "id\tsentence1\tsentence2\tlabel\n"
  for name in ("de/translated_train.tsv", "de/dev_2k.tsv", "ja/test_2k.tsv"):
    write(tmp_path / "x-final" / name, f"{head}5\t{name}\tb\t1\n")
  task = TASKS["pawsx_de"]
  for split, name in (
    ("train", "de/translated_train.tsv"),
    ("validation", "de/dev_2k.tsv"),
    ("test_ja", "ja/test_2k.tsv"),
  ):
    found = read_examples(task, str(tmp_path), split)
    assert found == [spec.PairExample("5", name, "b", 1)]
  assert TASKS["pawsx_en"].files["train"] == ("en/train.tsv",)
  assert len(languages.PAWS_X) == 7


# --- RACE ---

TEXT = {
  "article": "Ann sat.",
  "questions": ["Who sat?", "Ann _ .", "A __ and _"],
  "options": [["Ann", "Bob", "Cid", "Dan"]] * 3,
  "answers": ["A", "D", "B"],
  "id": "high2.txt",
}


def race(folder, name, **changes):
  write(folder / "RACE" / name, json.dumps(TEXT | changes))


def test_race_reads_all_texts_in_the_order_of_their_numbers(tmp_path):
  for name in ("high/10.txt", "high/2.txt", "middle/1.txt"):
    race(tmp_path, f"test/{name}")
  found = read_examples(TASKS["race"], str(tmp_path), "test")
  assert [e.id for e in found[::3]] == ["high/2/0", "high/10/0", "middle/1/0"]
  first, second, third = found[:3]
  assert first.pairs[1] == ("Ann sat.", "Who sat? Bob")
  assert second.pairs[3] == ("Ann sat.", "Ann Dan .")
  assert third.pairs[0] == ("Ann sat.", "A Ann and _")
  assert [e.label for e in found[:3]] == [0, 3, 1]
  for school, count in (("middle", 3), ("high", 6)):
    part = read_examples(TASKS["race"], str(tmp_path), f"test_{school}")
    assert len(part) == count


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"answers": ["A", "E", "B"]}, "question 2: answer 'E'.*A, B, C, D"),
    ({"answers": ["A"]}, "not lists of one length"),
    ({"options": [[]] * 3}, "question 1: options"),
  ],
)
def test_wrong_texts_are_refused(tmp_path, changes, said):
  race(tmp_path, "dev/high/1.txt", **changes)
  with pytest.raises(spec.TaskError, match=rf"1.txt.*{said}"):
    read_examples(TASKS["race"], str(tmp_path), "validation")


@pytest.mark.parametrize(
  ("task", "recipe"),
  [
    ("xnli_de", (32, 2.0, 5e-5, 128)),
    ("race", (16, 4.0, 1e-5, 512)),
    ("copa", (16, 3.0, 2e-5, 128)),
    ("superglue_rte", (32, 3.0, 3e-5, 128)),
    ("squad_v1", (32, 3.0, 5e-5, 384)),
    ("squad_v2", (48, 2.0, 5e-5, 384)),
    ("my-tag", (32, 3.0, 5e-5, 128)),
  ],
)
def test_a_recipe_is_that_of_the_task_its_benchmark_or_its_kind(task, recipe):
  config = finetune.get_config(f"task={task}")
  assert recipe == (
    config.data.batch_size,
    config.train.num_epochs,
    config.optim.learning_rate,
    config.data.seq_len,
  )
