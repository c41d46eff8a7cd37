"""Tests of the rows of tasks/__init__.py and of finding their files."""

import pathlib

import numpy as np
import pytest

from bert_jax.kinds import table
from bert_jax.tasks import TASKS
from bert_jax.tasks import find_file
from bert_jax.tasks import languages
from bert_jax.tasks import read_examples
from bert_jax.tasks import spec

DATA = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
TFDS_WARNING = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")

NAMES = (
  "cola sst2 mrpc stsb qqp mnli qnli rte wnli ax squad_v1 squad_v2 swag"
  " hellaswag codah conll2003 wnut17 boolq cb copa multirc record"
  " superglue_rte wic wsc axb axg race stsb_similarity"
).split()
NAMES += [f"xnli_{x}" for x in languages.XNLI]
NAMES += [f"pawsx_{x}" for x in languages.PAWS_X]


def test_every_task_has_a_row_under_its_name():
  assert sorted(TASKS) == sorted(NAMES)
  assert all(task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_row_is_complete(task):
  assert set(task.splits) == set(task.files)
  assert all(task.files.values())
  assert set(task.submission) <= set(task.test_splits)
  assert bool(task.submission) == bool(task.submit)
  assert bool(task.tfds) == bool(task.read_record)
  assert task.trained_as in TASKS or task.train_split
  kind = table.of_task(task)
  assert task.main_metric in task.metrics
  if task.kind != "span":
    assert set(task.metrics) <= set(kind.scores)
  assert bool(task.labels) == kind.head.has_names
  assert sorted(task.tfds_labels or task.labels) == sorted(task.labels)


def test_labels_are_in_the_order_of_the_original():
  nli = ("contradiction", "entailment", "neutral")
  assert TASKS["mnli"].labels == TASKS["ax"].labels == nli
  assert TASKS["ax"].trained_as == "mnli"
  assert TASKS["cola"].labels == TASKS["mrpc"].labels == ("0", "1")
  assert TASKS["qnli"].labels == ("entailment", "not_entailment")
  assert TASKS["conll2003"].labels[:3] == ("O", "B-PER", "I-PER")
  assert TASKS["wnut17"].labels[:3] == ("O", "B-corporation", "I-corporation")
  assert len(TASKS["wnut17"].labels) == 13


@pytest.mark.parametrize(
  ("name", "folder", "counts"),
  [
    ("cola", "glue", {"train": 8551, "validation": 1043, "test": 1063}),
    ("sst2", "glue", {"train": 67349, "validation": 872, "test": 1821}),
    ("mrpc", "glue", {"train": 3668, "validation": 408, "test": 1725}),
    ("stsb", "glue", {"train": 5749, "validation": 1500, "test": 1379}),
    ("rte", "glue", {"train": 2490, "validation": 277, "test": 3000}),
    ("codah", "swag", {"train": 1665, "validation": 556, "test": 555}),
    ("wnut17", "ner", {"train": 3394, "validation": 1009, "test": 1287}),
  ],
)
def test_real_files_have_the_published_number_of_examples(name, folder, counts):
  if not (DATA / folder).is_dir():
    pytest.skip(f"no data at ../shared/data/{folder}")
  task = TASKS[name]
  for split, count in counts.items():
    examples = read_examples(task, str(DATA / folder), split)
    assert len(examples) == len({e.id for e in examples}) == count
    assert spec.have_labels(task, examples) == (split not in task.test_splits)


@pytest.mark.parametrize(
  ("name", "file", "count", "impossible"),
  [
    ("squad_v1", "small-v1.1-train.json", 8538, 0),
    ("squad_v1", "small-v1.1-dev.json", 1339, 0),
    ("squad_v2", "small-v2.0-train.json", 9061, 4730),
    ("squad_v2", "small-v2.0-dev.json", 2488, 1215),
  ],
)
def test_real_squad_files_have_every_question(name, file, count, impossible):
  path = DATA / "squad" / file
  if not path.exists():
    pytest.skip(f"no {file} at ../shared/data/squad")
  split = "train" if "train" in file else "validation"
  examples = read_examples(TASKS[name], "", split, files={split: str(path)})
  assert len(examples) == count
  assert sum(e.is_impossible for e in examples) == impossible
  for e in examples:
    for text, start in e.answers:
      assert e.context[start : start + len(text)] == text


# --- Finding files ---


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(text.encode("utf-8"))
  return str(path)


def test_files_are_found_in_the_folder_in_the_benchmarks_own_and_by_path(
  tmp_path,
):
  task = TASKS["rte"]
  inner = write(tmp_path / "RTE" / "dev.tsv", "index\tsentence1\tsentence2\n")
  assert find_file(task, str(tmp_path), "validation") == inner
  outer = write(tmp_path / "dev.tsv", "")
  assert find_file(task, str(tmp_path), "validation") == outer
  mine = write(
    tmp_path / "mine.tsv",
    "index\tsentence1\tsentence2\tlabel\n7\ta\tb\tentailment\n",
  )
  examples = read_examples(
    task, str(tmp_path), "train", files={"train": mine, "test": "nowhere"}
  )
  assert examples == [spec.PairExample("7", "a", "b", 0)]


def test_errors_name_the_split_or_the_places_that_were_tried(tmp_path):
  with pytest.raises(spec.TaskError, match="no split 'dev'; it has train, val"):
    read_examples(TASKS["cola"], str(tmp_path), "dev")
  with pytest.raises(spec.TaskError, match="no folder, and no file for the sp"):
    read_examples(TASKS["cola"], "", "validation")
  with pytest.raises(spec.TaskError, match="no split 'train'; it has test"):
    read_examples(TASKS["ax"], str(tmp_path), "train")
  with pytest.raises(spec.TaskError, match="tried .*dev.tsv, .*CoLA/dev.tsv"):
    read_examples(TASKS["cola"], str(tmp_path), "validation")


def test_max_examples_takes_the_first(tmp_path):
  rows = "".join(f"t{i}\t{i % 2}\n" for i in range(5))
  write(tmp_path / "train.tsv", "sentence\tlabel\n" + rows)
  task, folder = TASKS["sst2"], str(tmp_path)
  texts = [
    e.text_a for e in read_examples(task, folder, "train", max_examples=2)
  ]
  assert texts == ["t0", "t1"]
  assert len(read_examples(task, folder, "train")) == 5
  assert len(read_examples(task, folder, "train", max_examples=9)) == 5


# --- TFDS ---


def prepare(folder, name, features, splits, file_format="array_record"):
  """Prepares a TFDS data set NAME/CONFIG without TensorFlow."""
  import tensorflow_datasets as tfds

  base, _, config = name.partition("/")

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)]

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features(tfds))
      )

    def _split_generators(self, _):
      return {split: enumerate(rows) for split, rows in splits.items()}

    def _generate_examples(self):
      raise NotImplementedError

  Builder.name = base
  builder = Builder(data_dir=folder, file_format=file_format)
  builder.download_and_prepare()
  return str(builder.data_dir)


@TFDS_WARNING
def test_tfds_labels_are_renumbered_to_the_original_order(tmp_path):
  names = ("entailment", "neutral", "contradiction")
  rows = [
    {"premise": f"p{i}", "hypothesis": "h\u00e9", "label": i, "idx": i}
    for i in range(3)
  ]
  folder = prepare(
    tmp_path,
    "glue/mnli",
    lambda tfds: {
      "premise": tfds.features.Text(),
      "hypothesis": tfds.features.Text(),
      "label": tfds.features.ClassLabel(names=names),
      "idx": np.int32,
    },
    {
      "train": rows,
      "test_matched": [{**rows[0], "label": -1}],
    },
  )
  assert folder.endswith("glue/mnli/1.2.0")
  task = TASKS["mnli"]
  for location in (f"tfds:{tmp_path}", f"tfds:{folder}"):
    found = read_examples(task, location, "train")
    labels = {e.text_a: task.labels[e.label] for e in found}
    assert labels == {f"p{i}": names[i] for i in range(3)}
    assert {e.id for e in found} == {"0", "1", "2"}
    assert {e.text_b for e in found} == {"h\u00e9"}
  assert len(read_examples(task, location, "train", max_examples=2)) == 2
  test = read_examples(task, location, "test_matched")
  assert [e.label for e in test] == [None]
  with pytest.raises(
    spec.TaskError, match="no split 'validation_matched'; its"
  ):
    read_examples(task, location, "validation_matched")


@TFDS_WARNING
def test_tfds_questions_have_their_answers(tmp_path, caplog):
  def features(tfds):
    return {
      "id": tfds.features.Text(),
      "title": tfds.features.Text(),
      "context": tfds.features.Text(),
      "question": tfds.features.Text(),
      "answers": tfds.features.Sequence(
        {"text": tfds.features.Text(), "answer_start": np.int32}
      ),
    }

  def row(id, text, start):
    answers = {"text": [text], "answer_start": [start]}
    context = "It was John Smith."
    return {"id": id, "title": "", "context": context, "question": "Who?"} | {
      "answers": answers
    }

  rows = [row("a", "John", 7), row("b", "Jane", 7)]
  prepare(tmp_path, "squad/v1.1", features, {"train": rows, "validation": rows})
  task, location = TASKS["squad_v1"], f"tfds:{tmp_path}"
  (example,) = read_examples(task, location, "train")
  assert (example.id, example.answers) == ("a", (("John", 7),))
  assert "left out 1 of 2 records" in caplog.text
  assert len(read_examples(task, location, "validation")) == 2


@TFDS_WARNING
def test_tfds_sentences_have_words_and_tags(tmp_path):
  names = TASKS["conll2003"].labels
  prepare(
    tmp_path,
    "conll2003/conll2003",
    lambda tfds: {
      "tokens": tfds.features.Sequence(tfds.features.Text()),
      "ner": tfds.features.Sequence(tfds.features.ClassLabel(names=names)),
    },
    {
      "dev": [
        {"tokens": ["EU", "rejects"], "ner": ["B-ORG", "O"]},
        {"tokens": [], "ner": []},
      ]
    },
  )
  (example,) = read_examples(
    TASKS["conll2003"], f"tfds:{tmp_path}", "validation"
  )
  assert example.words == ("EU", "rejects")
  assert example.labels == ("B-ORG", "O")


@TFDS_WARNING
def test_tfds_contexts_have_endings(tmp_path):
  row = {"context": "A man sits.", "endings": ["He eats.", "It flies."]}
  prepare(
    tmp_path,
    "hellaswag",
    lambda tfds: {
      "context": tfds.features.Text(),
      "endings": tfds.features.Sequence(tfds.features.Text()),
      "label": np.int32,
    },
    {"train": [row | {"label": 1}], "test": [row | {"label": -1}]},
  )
  task, location = TASKS["hellaswag"], f"tfds:{tmp_path}"
  (example,) = read_examples(task, location, "train")
  pairs = (("A man sits.", "He eats."), ("A man sits.", "It flies."))
  assert (example.pairs, example.label) == (pairs, 1)
  (example,) = read_examples(task, location, "test")
  assert (example.pairs, example.label) == (pairs, None)


def test_missing_tfds_data_says_at_once_how_to_prepare_it(tmp_path):
  with pytest.raises(
    spec.TaskError,
    match=rf"run tfds build glue/cola --file_format=array_record"
    rf" --data_dir={tmp_path}, with",
  ):
    read_examples(TASKS["cola"], f"tfds:{tmp_path}", "train")
  with pytest.raises(spec.TaskError, match="swag has no TFDS builder"):
    read_examples(TASKS["swag"], f"tfds:{tmp_path}", "train")


@TFDS_WARNING
def test_tfds_data_in_another_format_is_refused(tmp_path):
  folder = prepare(
    tmp_path,
    "glue/sst2",
    lambda tfds: {"sentence": tfds.features.Text(), "label": np.int32},
    {"train": [{"sentence": "a", "label": 1}]},
  )
  info = pathlib.Path(folder, "dataset_info.json")
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(spec.TaskError, match="format tfrecord, which only Tens"):
    read_examples(TASKS["sst2"], f"tfds:{tmp_path}", "train")
