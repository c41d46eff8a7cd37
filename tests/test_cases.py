"""Files that people brought, typed as commands; ../shared/cases has them.

The README there says what each is and what its user expects.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.test_tour import small_encoder

ROOT = pathlib.Path(__file__).parents[1]
CASES = ROOT.parent / "shared" / "cases"

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases"),
]
TASK = "finetune:from=enc,epochs=1,batch_size=2,seq_len=64,task=my-"
QUESTIONS = (
  "--config.task.text=question,context",
  "--config.task.label=answer",
  "--config.task.max_query_len=16",
)
MODEL = (
  "--config=pretrain:total_steps=2", "--config.model.num_layers=1",
  "--config.model.hidden_size=16", "--config.model.num_heads=2",
  "--config.model.mlp_dim=32", "--config.train.log_every_steps=1",
  "--config.data.dupe_factor=1", "--config.data.batch_size=8",
)  # fmt: skip


class Shell:
  """Types commands in a folder that has an encoder in enc/."""

  def __init__(self, folder):
    self.folder = folder
    small_encoder(folder / "enc")

  def __call__(self, mode, *flags, status=0):
    """Returns both streams of a command, which must end with a status."""
    done = subprocess.run(
      [sys.executable, "-m", "bert_jax.main", mode, *flags],
      cwd=self.folder,
      env=os.environ | {"PYTHONPATH": str(ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      check=False,
    )
    assert done.returncode == status, done.stdout[-3000:]
    assert "Traceback" not in done.stdout
    return " ".join(done.stdout.split())

  def train(self, kind, case, *flags, status=0):
    folder = f"--config.task.dir={CASES / case}"
    config = f"--config={TASK}{kind}"
    return self("train", "--workdir=run", config, folder, *flags, status=status)

  def predict(self, source, status=0):
    """Returns the answers to the lines or rows of a file."""
    self("predict", "--workdir=run", f"--input={source}",
         "--output=out.jsonl", status=status)  # fmt: skip
    lines = (self.folder / "out.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def shell(tmp_path):
  return Shell(tmp_path)


def columns(text, label):
  return f"--config.task.text={text}", f"--config.task.label={label}"


def test_04_a_test_file_with_minus_one_is_predicted(shell):
  shell.train("classify", "04", *columns("text", "label"))
  shell("evaluate", "--workdir=run", "--config.task.predict_splits=test")
  path = shell.folder / "run/predictions/my-classify-test.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(rows) == 2 and all("gold" not in row for row in rows)
  assert {row["predicted_label"] for row in shell.predict(CASES / "04/test.csv")
          } <= {"pos", "neg"}  # fmt: skip


def test_05_a_long_field_is_read_and_its_cut_is_said(shell):
  said = shell.train("classify", "05", *columns("text", "label"))
  assert "are cut" in said and "data.seq_len=64" in said
  rows = shell.predict(CASES / "05/dev.csv")
  assert max(len(row["text"]) for row in rows) > 131_072
  assert any(row["truncated"] for row in rows)


def test_07_parts_of_speech_are_scored_by_accuracy(shell):
  said = shell.train("tag", "07", *columns("word", "tag"))
  assert "accuracy" in said and "entity_f1" not in said
  (shell.folder / "in.jsonl").write_text('{"text": "The cat sat"}\n')
  (row,) = shell.predict("in.jsonl")
  assert row["words"] == ["The", "cat", "sat"] and "entities" not in row


def test_08_bioes_is_scored_by_entities(shell):
  assert "entity_f1" in shell.train("tag", "08", *columns("word", "tag"))
  (shell.folder / "in.jsonl").write_text('{"text": "Ada in New York"}\n')
  (row,) = shell.predict("in.jsonl")
  assert set(row["labels"]) <= {"O", "B-PER", "I-PER", "B-LOC", "I-LOC"}
  assert "entities" in row


def test_10_numbers_of_tags_need_their_names(shell):
  flags = columns("tokens", "ner_tags")
  said = shell.train("tag", "10", *flags, status=2)
  assert "train.jsonl:1" in said and "task.labels" in said
  names = "--config.task.labels=O,B-PER,I-PER,B-LOC"
  shell.train("tag", "10", *flags, names)
  (shell.folder / "in.jsonl").write_text('{"text": "Ada in Rome"}\n')
  (row,) = shell.predict("in.jsonl")
  assert set(row["labels"]) <= {"O", "B-PER", "I-PER", "B-LOC"}


def test_18_several_answers_are_chosen_by_key(shell):
  said = shell.train("span", "18", *QUESTIONS, status=2)
  assert "train.json" in said and "question a: 3 answers" in said
  assert "task.train_answers=first" in said
  shell.train("span", "18", *QUESTIONS, "--config.task.train_answers=first")
  one = f"--config.task.files.train={CASES / '18/one.json'}"
  said = shell("train", "--workdir=long", f"--config={TASK}span", one,
               f"--config.task.dir={CASES / '18'}", *QUESTIONS[:2],
               status=2)  # fmt: skip
  assert "task.max_query_len=64 must be from 1 to 60" in said


def test_60_predict_says_no_answer_where_evaluate_does(shell):
  shell.train("span", "60", *QUESTIONS)
  shell("evaluate", "--workdir=run",
        "--config.task.predict_splits=validation")  # fmt: skip
  path = shell.folder / "run/predictions/my-span-validation.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  (row,) = shell.predict(CASES / "60/in.jsonl")
  assert row["answer"] == rows[0]["answer"]


def test_76_a_row_without_a_label_is_named(shell):
  flags = columns("text", "label")
  assert "train.csv, line 4" in shell.train("classify", "76", *flags, status=2)
  drop = "--config.task.missing_labels=drop"
  assert "which are left out" in shell.train("classify", "76", *flags, drop)
  assert len(shell.predict(CASES / "76/dev.csv")) == 4


def prepare(shell, file, *flags, status=0):
  return shell("prepare", "--config=pretrain", f"--input={CASES / file}",
               "--output=data", "--config.data.dupe_factor=1",
               "--config.prepare.vocab_size=500", *flags,
               status=status)  # fmt: skip


def train_on(shell, *flags):
  shell("train", "--workdir=run", "--config.data.dir=data", *MODEL, *flags)


@pytest.mark.parametrize(
  ("file", "says"),
  [
    ("12/cr.txt", "held out 64 of 1598 sentences instead"),
    ("12/paras.txt", "--config.prepare.format=paragraphs"),
    ("15/onedoc.txt", "sentences instead"),
    ("15/tweets.txt", "pairing=full_sentences"),
  ],
)
def test_12_15_text_is_read_and_what_is_odd_is_said(shell, file, says):
  assert says in prepare(shell, file)
  train_on(shell)


def test_12_a_line_that_is_all_of_the_text(shell):
  assert "format=paragraphs" in prepare(shell, "12/one.txt", status=2)
  said = prepare(shell, "12/one.txt", "--config.prepare.format=paragraphs")
  assert "sentences instead" in said
  train_on(shell)


def test_14_vowel_signs_are_warned_of_and_kept_by_a_key(shell):
  said = prepare(shell, "14/hi.txt", status=2)  # so little is left of the words
  assert "vowel signs" in said and "prepare.strip_accents=False" in said
  small = "--config.prepare.vocab_size=120"
  said = prepare(shell, "14/hi.txt", "--config.prepare.strip_accents=False",
                 small)  # fmt: skip
  assert "vowel signs" not in said
  train_on(shell)
