"""Tests of tasks/superglue.py and of scores of groups: hand-made files."""

import json
import zipfile

import numpy as np
import pytest

from bert_jax.kinds import classify
from bert_jax.kinds import table
from bert_jax.tasks import TASKS
from bert_jax.tasks import groups
from bert_jax.tasks import read_examples
from bert_jax.tasks import spec
from bert_jax.tasks import submission
from bert_jax.tasks import superglue


def write(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  path.write_text("".join(lines), encoding="utf-8")


def read(folder, name, split, *rows):
  """The examples of a file with these rows, in its official place."""
  task = TASKS[name]
  write(folder / task.folders[0] / task.files[split][0], *rows)
  return read_examples(task, str(folder), split)


def guess(label, *probabilities):
  return classify.ClassPrediction(label, probabilities)


ROWS = {
  "boolq": (
    {"passage": "Cats purr.", "question": "do cats purr", "idx": 3},
    ("Cats purr.", "do cats purr"),
    {True: 1, False: 0},
  ),
  "cb": (
    {"premise": "a", "hypothesis": "b", "idx": 3},
    ("a", "b"),
    {"contradiction": 0, "entailment": 1, "neutral": 2},
  ),
  "superglue_rte": (
    {"premise": "a", "hypothesis": "b", "idx": 3},
    ("a", "b"),
    {"entailment": 0, "not_entailment": 1},
  ),
  "wic": (
    {
      "word": "place", "sentence1": "Do you want to come over to my place?",
      "sentence2": "A place.", "start1": 31, "end1": 36, "start2": 2,
      "end2": 7, "idx": 3,
    },
    ("Do you want to come over to my * place *?", "A * place *."),
    {True: 1, False: 0},
  ),
  "wsc": (
    {
      "text": "Mark told Pete Ames many lies, which he believed.",
      "target": {
        "span1_index": 2, "span1_text": "Pete Ames", "span2_index": 7,
        "span2_text": "he",
      },
      "idx": 3,
    },
    ("Mark told * Pete Ames * many lies, which # he # believed.", "Pete Ames"),
    {True: 1, False: 0},
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_read_and_its_prediction_has_the_servers_form(tmp_path, name):
  row, texts, labels = ROWS[name]
  for spelled, label in labels.items():
    (example,) = read(tmp_path, name, "validation", row | {"label": spelled})
    assert example == spec.PairExample("3", *texts, label)
  tested = read(tmp_path, name, "test", row)
  assert [e.label for e in tested] == [None]
  for spelled, label in labels.items():
    text = TASKS[name].submit(TASKS[name], tested, [guess(label)])
    # WSC alone has the labels with a capital letter.
    wanted = str(spelled) if name == "wsc" else str(spelled).lower()
    assert json.loads(text) == {"idx": 3, "label": wanted}


def test_marks_of_a_pronoun_within_the_noun_stay_within(tmp_path):
  row = {
    "text": "The boy and his dog ran.",
    "target": {
      "span1_index": 0, "span1_text": "The boy and his dog",
      "span2_index": 3, "span2_text": "his",
    },
    "idx": 0, "label": True,
  }  # fmt: skip
  (example,) = read(tmp_path, "wsc", "train", row)
  assert example.text_a == "* The boy and # his # dog * ran."


def test_copa_asks_for_the_cause_or_the_effect(tmp_path):
  row = {"premise": "It rained.", "choice1": "a", "choice2": "b", "idx": 0}
  cause, effect = read(
    tmp_path, "copa", "train",
    row | {"question": "cause", "label": 1},
    row | {"question": "effect", "label": 0, "idx": 1},
  )  # fmt: skip
  asked = "It rained. What was the CAUSE of this?"
  assert cause == spec.ChoiceExample("0", ((asked, "a"), (asked, "b")), 1)
  assert effect.pairs[0][0] == "It rained. What happened as a RESULT?"
  assert TASKS["copa"].submit(
    TASKS["copa"], [cause, effect], [guess(1), guess(0)]
  ) == ('{"idx": 0, "label": 1}\n{"idx": 1, "label": 0}\n')


def multirc(number, *labels, keys=("label",)):
  """A passage with two questions, whose answers have these labels."""
  halves = labels[:2], labels[2:]
  return {
    "idx": number,
    "passage": {
      "text": "<b>Sentence 1: </b>A cat.<br><b>Sentence 12: </b>A dog.<br>",
      "questions": [
        {
          "question": f"q{q}?", "idx": 4 + q, "answers": [
            {"text": f"a{a}", "idx": a, **dict.fromkeys(keys, label)}
            for a, label in enumerate(half)
          ],
        }
        for q, half in enumerate(halves)
      ],
    },
  }  # fmt: skip


def test_multirc_scores_all_answers_and_whole_questions(tmp_path):
  task = TASKS["multirc"]
  examples = read(tmp_path, "multirc", "validation", multirc(7, 1, 0, 1, 1, 0))
  assert [e.id for e in examples] == [
    "7-4-0", "7-4-1", "7-5-0", "7-5-1", "7-5-2"
  ]  # fmt: skip
  assert examples[0] == spec.GroupedExample(
    "7-4-0", "A cat. A dog.", "q0? a0", 1, group="7-4"
  )
  guesses = [guess(label) for label in (1, 0, 1, 0, 1)]
  # True positives 2, false positives 1, false negatives 1: F1a 2/3. One of two
  # questions has all answers right.
  assert table.TASK_KINDS["classify"].score(task, guesses, examples) == {
    "f1": pytest.approx(2 / 3), "all_right": 0.5
  }  # fmt: skip
  assert json.loads(task.submit(task, examples, guesses)) == {
    "idx": 7,
    "passage": {
      "questions": [
        {
          "idx": 4,
          "answers": [{"idx": 0, "label": 1}, {"idx": 1, "label": 0}],
        },
        {
          "idx": 5,
          "answers": [
            {"idx": 0, "label": 1},
            {"idx": 1, "label": 0},
            {"idx": 2, "label": 1},
          ],
        },
      ]
    },
  }


TEXT = "Ann Lee met Bob\n@highlight\nThe Lee trip ended.\n@highlight\nNYC won"


def record(**query):
  places = (("Ann Lee", 0), ("Bob", 12), ("Lee", 31), ("NYC", 58))
  for name, start in places:
    assert TEXT[start : start + len(name)] == name
  return {
    "idx": 2,
    "passage": {
      "text": TEXT,
      "entities": [
        {"start": start, "end": start + len(name) - 1}
        for name, start in (*places, places[1])
      ],
    },
    "qas": [{"query": "Then @placeholder left", "idx": 9, **query}],
  }


def test_record_chooses_the_most_likely_name(tmp_path):
  task = TASKS["record"]
  answers = [{"start": 0, "end": 6, "text": "Ann Lee"}]
  examples = read(tmp_path, "record", "validation", record(answers=answers))
  assert [e.candidate for e in examples] == ["Ann Lee", "Bob", "Lee", "NYC"]
  assert [e.label for e in examples] == [1, 0, 0, 0]
  assert examples[0].text_a == "Ann Lee met Bob. The Lee trip ended. NYC won"
  assert examples[2].text_b == "Then Lee left"
  # "Lee" has one of two words of "Ann Lee": precision 1, recall 1/2.
  likely = [guess(0, 1 - p, p) for p in (0.3, 0.1, 0.4, 0.2)]
  assert table.TASK_KINDS["classify"].score(task, likely, examples) == {
    "best_f1": pytest.approx(2 / 3), "best_exact": 0.0
  }  # fmt: skip
  assert task.submit(task, examples, likely) == '{"idx": 9, "label": "Lee"}\n'
  likely[0] = guess(0, 0.55, 0.45)
  assert groups.best_exact(examples, likely) == 1.0
  (first, *_) = read(tmp_path, "record", "test", record())
  assert (first.label, first.golds) == (None, ())


def test_winogender_is_scored_in_pairs(tmp_path):
  task = TASKS["axg"]
  names = ("entailment", "not_entailment", "not_entailment", "not_entailment")
  rows = (
    {"premise": "p", "hypothesis": "h", "label": name, "idx": i}
    for i, name in enumerate(names)
  )
  examples = read(tmp_path, "axg", "test", *rows)
  assert [e.group for e in examples] == ["0", "0", "1", "1"]
  found = table.TASK_KINDS["classify"].score(
    task, [guess(0), guess(1), guess(1), guess(1)], examples
  )
  assert found == {"accuracy": 1.0, "same_answer": 0.5}
  assert task.trained_as == TASKS["axb"].trained_as == "superglue_rte"


@pytest.mark.parametrize(
  ("name", "row", "said"),
  [
    ("wic", ROWS["wic"][0] | {"label": True, "end1": 99}, "end1.*99.*0 to 37"),
    ("wsc", ROWS["wsc"][0] | {"label": True, "target": 3}, "target.*object"),
    ("boolq", ROWS["boolq"][0] | {"label": "maybe"}, "'maybe'.*false, true"),
    ("boolq", ROWS["boolq"][0], "no column 'label'"),
    ("copa", {"premise": "a", "question": "why"}, "cause or effect"),
    ("multirc", {"idx": 0, "passage": {"text": "t"}}, "questions.*list"),
    ("multirc", {"idx": 0, "passage": 3}, "passage.*object"),
    ("record", record(), "answers.*list"),
    (
      "record",
      {"passage": {"text": "t", "entities": [{"start": 0, "end": 9}]}},
      "0 to 9.*1 characters",
    ),
  ],
)  # fmt: skip
def test_wrong_rows_are_refused_with_their_place(tmp_path, name, row, said):
  with pytest.raises(spec.TaskError, match=rf"train.jsonl:1.*{said}"):
    read(tmp_path, name, "train", row)


def test_a_question_twice_is_refused(tmp_path):
  with pytest.raises(spec.TaskError, match="id 7-4-0 is given twice"):
    read(tmp_path, "multirc", "train", multirc(7, 1), multirc(7, 1))


def test_units_are_groups_or_single_examples():
  grouped = [
    spec.GroupedExample(str(i), "t", "u", 0, group=g)
    for i, g in enumerate("abab")
  ]
  single = spec.PairExample("9", "t", "u", 0)
  assert spec.units([*grouped, single]) == [[0, 2], [1, 3], [4]]


def test_the_zip_of_superglue_counts_predictions(tmp_path, monkeypatch):
  folder = tmp_path / "run" / "predictions"
  monkeypatch.setattr(
    submission,
    "BENCHMARKS",
    {
      "superglue": submission.Benchmark(
        "SuperGLUE", {"BoolQ.jsonl": 2, "MultiRC.jsonl": 5}, "advice"
      )
    },
  )
  write(folder / "BoolQ.jsonl", {"idx": 0, "label": "true"})
  write(folder / "MultiRC.jsonl", multirc(7, 1, 0, 1, 1, 0))
  path, runs = str(tmp_path / "a.zip"), [str(tmp_path / "run")]
  with pytest.raises(spec.TaskError, match="BoolQ.jsonl: 1 predictions, want"):
    submission.zip_runs(path, runs, benchmark="superglue")
  write(folder / "BoolQ.jsonl", *({"idx": i, "label": "true"} for i in (0, 1)))
  submission.zip_runs(path, runs, benchmark="superglue")
  with zipfile.ZipFile(path) as archive:
    assert archive.namelist() == ["BoolQ.jsonl", "MultiRC.jsonl"]


def test_the_server_takes_a_file_of_every_task():
  names = {name for row in superglue.ROWS for name in row.submission.values()}
  assert names == set(submission.SUPERGLUE_ROWS)


def test_groups_are_drawn_whole():
  from bert_jax.training import finetuning

  examples = [
    spec.GroupedExample(str(i), "t", "u", i % 2, group="ab"[i // 2])
    for i in range(4)
  ]
  units = spec.units(examples)
  drawn = finetuning._as_new(examples, [units[1], units[1]])
  assert [e.group for e in drawn] == ["0", "0", "1", "1"]
  assert [e.label for e in drawn] == [0, 1, 0, 1]
  assert groups.all_right(drawn, [guess(x) for x in (0, 1, 0, 0)]) == 0.5
  assert np.isclose(groups.same_answer(drawn, [guess(0)] * 4), 1.0)
