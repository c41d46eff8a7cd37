"""GLUE: nine tasks on texts and pairs of texts, and its diagnostic set.

Labels are in the order of the original code if it has the task, and otherwise
in the order of the numbers in the files. TFDS and Hugging Face number MNLI and
AX as entailment, neutral, contradiction; `tfds_labels` holds that order, and
the outputs of a head that was trained there must be reordered here. All other
tasks agree.

Source: https://aclanthology.org/W18-5446;
  google-research/bert run_classifier.py:208-374
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bert_jax.tasks import labels as label_lib
from bert_jax.tasks import spec
from bert_jax.tasks import submission
from bert_jax.tasks import tables

_COLA_COLUMNS = ("source", "label", "mark", "sentence")
_MAX_SCORE = 5.0

# Possible names of the column that numbers the rows, if a file has one.
_ID_COLUMNS = ("index", "id")


def make_reader(
  no_header: Mapping[str, Sequence[str]] | None = None,
  skip_broken: bool = False,
) -> Callable[[spec.Task, str, str], list[spec.PairExample]]:
  """Makes the reader of a task's TSV files.

  Args:
    no_header: split -> the names of its columns, for files without a header.
    skip_broken: whether rows with a wrong number of columns are left out, as is
      usual for QQP.
  """
  make_example = pair_maker(_parse_checked)

  def read(task: spec.Task, path: str, split: str) -> list[spec.PairExample]:
    names = (no_header or {}).get(split, ())
    rows = tables.read_rows(path, names, skip_broken)
    ids = _ids([row for _, row in rows])
    return [
      make_example(task, split, where, id, row)
      for id, (where, row) in zip(ids, rows, strict=True)
    ]

  return read


def _ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns the ids that a file gives its rows, or else their positions.

  In some copies of SST-2 every row of the test file has the id 0.
  """
  for name in _ID_COLUMNS:
    ids = [row[name] for row in rows if name in row]
    if len(set(ids)) == len(rows):
      return ids
  return [str(number) for number in range(len(rows))]


def pair_maker(
  parse: Callable[[spec.Task, Any, str], Any],
  missing: tuple[Any, ...] = (None, ""),
) -> Callable[..., spec.PairExample]:
  """Makes a function that turns a row into a text or pair with a label.

  Args:
    parse: (task, value of the label's column, "PATH:LINE") -> label.
    missing: the values that stand for a missing label.

  Returns:
    A function (task, split, "PATH:LINE", id, row) -> example.
  """

  def example(task, split, where, id, row):
    texts = tables.text_pair(row, task.text, where)
    label = tables.label_field(task, row, split, where, missing)
    if label is not None:
      label = parse(task, label, where)
    return spec.PairExample(id, *texts, label)

  return example


def parse_label(task: spec.Task, value: Any, where: str) -> int | float:
  """Returns the id of a label, or a score.

  Args:
    task: the task; without labels, it has scores.
    value: a text; JSON may also hold a number or a truth value.
    where: the file and line, for the error.

  Raises:
    spec.TaskError: The label is unknown, or the score is not a finite number.
  """
  if task.labels:
    return spec.label_id(task, str(value), where)
  return label_lib.score(task, value, where)


def _parse_checked(task: spec.Task, value: Any, where: str) -> int | float:
  """Returns the id of a label, or a score that is within the range of STS-B."""
  label = parse_label(task, value, where)
  if not task.labels and not 0 <= label <= _MAX_SCORE:
    raise spec.TaskError(f"{where}: score {label} is not between 0 and 5")
  return label


def _record_reader(*names: str) -> Callable[..., spec.PairExample]:
  """Makes the reader of TFDS records whose texts are in these fields."""

  def read(task, split, where, id, record) -> spec.PairExample:
    texts = tables.text_pair(record, names, where)
    value = tables.field(record, "label", where)
    label: int | float | None = None
    if not task.labels:
      label = float(value) if value >= 0 else None
    elif value >= 0:
      label = task.labels.index((task.tfds_labels or task.labels)[int(value)])
    return spec.PairExample(str(record.get("idx", id)), *texts, label)

  return read


_PAIR = ("sentence1", "sentence2")
_NLI = ("contradiction", "entailment", "neutral")
_TFDS_NLI = ("entailment", "neutral", "contradiction")
_TWO = ("entailment", "not_entailment")


def _row(
  name: str,
  folder: str,
  text: tuple[str, ...] = _PAIR,
  record: tuple[str, ...] = (),
  **others: Any,
) -> spec.Task:
  """Makes a task, with the facts that most tasks of GLUE share as defaults.

  Args:
    name: the name of the task.
    folder: the folder of its files, which the server's files are named after.
    text: the columns of the texts.
    record: the fields of the texts in TFDS, if they differ from `text`.
    **others: the facts that differ from the defaults.
  """
  files = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
  defaults: dict[str, Any] = {
    "kind": "classify",
    "labels": ("0", "1"),
    "metrics": ("accuracy",),
    "label": "label",
    "files": {split: (file,) for split, file in files.items()},
    "read": make_reader(),
    "read_record": _record_reader(*(record or text)),
    "folders": (folder,),
    "tfds": f"glue/{name}",
    "submission": {"test": f"{folder}.tsv"},
    "submit": submission.glue_tsv,
  }
  return spec.Task(name=name, text=text, **(defaults | others))


ROWS = (
  # Source: https://arxiv.org/abs/1805.12471
  _row(
    "cola",
    "CoLA",
    ("sentence",),
    metrics=("matthews", "accuracy"),
    read=make_reader({"train": _COLA_COLUMNS, "validation": _COLA_COLUMNS}),
  ),
  # Source: https://aclanthology.org/D13-1170
  _row("sst2", "SST-2", ("sentence",)),
  # Source: https://aclanthology.org/I05-5002
  _row(
    "mrpc",
    "MRPC",
    ("#1 String", "#2 String"),
    record=_PAIR,
    label="Quality",
    metrics=("accuracy", "f1"),
    main="f1",
    files={
      "train": ("train.tsv", "msr_paraphrase_train.txt"),
      "validation": ("dev.tsv",),
      "test": ("test.tsv", "msr_paraphrase_test.txt"),
    },
  ),
  # Source: https://aclanthology.org/S17-2001
  _row(
    "stsb",
    "STS-B",
    kind="regress",
    label="score",
    labels=(),
    metrics=("pearson", "spearman"),
    main="spearman",
  ),
  # The same data for a model that gives each sentence a vector.
  _row(
    "stsb_similarity",
    "STS-B",
    kind="similarity",
    label="score",
    labels=(),
    metrics=("spearman", "pearson"),
    tfds="glue/stsb",
    submission={},
    submit=None,
  ),
  # Source: https://quoradata.quora.com/First-Quora-Dataset-Release-Question-Pairs
  _row(
    "qqp",
    "QQP",
    ("question1", "question2"),
    label="is_duplicate",
    metrics=("accuracy", "f1"),
    main="f1",
    read=make_reader(skip_broken=True),
  ),
  # Source: https://aclanthology.org/N18-1101
  _row(
    "mnli",
    "MNLI",
    record=("premise", "hypothesis"),
    label="gold_label",
    labels=_NLI,
    tfds_labels=_TFDS_NLI,
    eval_splits=("validation_matched", "validation_mismatched"),
    test_splits=("test_matched", "test_mismatched"),
    files={
      "train": ("train.tsv",),
      "validation_matched": ("dev_matched.tsv",),
      "validation_mismatched": ("dev_mismatched.tsv",),
      "test_matched": ("test_matched.tsv",),
      "test_mismatched": ("test_mismatched.tsv",),
    },
    submission={
      "test_matched": "MNLI-m.tsv",
      "test_mismatched": "MNLI-mm.tsv",
    },
  ),
  _row("qnli", "QNLI", ("question", "sentence"), labels=_TWO),
  _row("rte", "RTE", labels=_TWO),
  _row("wnli", "WNLI"),
  _row(
    "ax",
    "AX",
    record=("premise", "hypothesis"),
    labels=_NLI,
    tfds_labels=_TFDS_NLI,
    metrics=("matthews", "accuracy"),
    train_split="",
    eval_splits=(),
    files={"test": ("diagnostic.tsv", "AX.tsv", "test.tsv")},
    folders=("AX", "diagnostic", "MNLI"),
    trained_as="mnli",
  ),
)
