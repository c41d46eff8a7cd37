"""XNLI and PAWS-X: one task in many languages.

A row is named after the language of its training data, and scores its own
language. The splits of the other languages are there by name, so that any of
three ways to another language is a choice of splits:

* translate-train: `task.name=xnli_de`, trained on translated text;
* zero shot: `task.name=xnli_en` with `task.eval_splits=validation,test_de`;
* translate-test: `task.name=xnli_en` with
  `task.eval_splits=validation,translated_de`, German text that was translated
  to English. XTREME has these files, laid out as its training files.

Source: https://aclanthology.org/D18-1269, https://aclanthology.org/D19-1382;
  google-research/bert run_classifier.py, XnliProcessor; google-research/xtreme
"""

from collections.abc import Callable, Mapping
from typing import Any

from bert_jax.tasks import glue
from bert_jax.tasks import spec
from bert_jax.tasks import tables

XNLI = tuple("ar bg de el en es fr hi ru sw th tr ur vi zh".split())
PAWS_X = tuple("de en es fr ja ko zh".split())


def _language_of(split: str, own: str) -> str:
  """Returns the language of a split: that of its name, or that of the task."""
  return split.partition("_")[2] or own


def _others(languages: tuple[str, ...], own: str, *stems: str) -> list[str]:
  """Returns STEM_LANGUAGE for every stem and every other language."""
  return [f"{stem}_{x}" for stem in stems for x in languages if x != own]


# --- XNLI ---

# The columns of the training files, of XNLI's own, and of XTREME's, which have
# no header.
_TRAIN = ("premise", "hypo", "label")
_XNLI = ("sentence1", "sentence2", "gold_label")
_TRANSLATED = ("source1", "source2", *_TRAIN)


def _parse_nli(task: spec.Task, value: Any, where: str) -> int:
  """Returns the id of a label; translated training files have an adjective."""
  text = "contradiction" if value == "contradictory" else str(value)
  return spec.label_id(task, text, where)


def _xnli_reader(own: str) -> Callable[..., list[spec.PairExample]]:
  """Makes the reader of a task's files.

  The files of XNLI hold all languages; other files hold one.

  Args:
    own: the language of the task.
  """

  def read(task, path, split) -> list[spec.PairExample]:
    language, found = _language_of(split, own), []
    columns = _TRANSLATED if split.startswith("translated") else ()
    for number, (where, row) in enumerate(tables.iter_rows(path, columns)):
      names = _XNLI if "language" in row else _TRAIN
      if row.get("language", language) != language:
        continue
      first, second = (tables.text_field(row, x, where) for x in names[:2])
      label = _parse_nli(task, tables.field(row, names[2], where), where)
      id = str(row.get("pairID", number))
      found.append(spec.PairExample(id, first, second, label))
    if not found:
      raise spec.TaskError(f"{path}: no row is in the language {language!r}")
    return found

  return read


def _xnli_row(own: str) -> spec.Task:
  files: dict[str, tuple[str, ...]] = {
    "train": (f"multinli.train.{own}.tsv", f"multinli/multinli.train.{own}.tsv")
  }
  other = _others(XNLI, own, "validation", "test")
  if own == "en":
    other += _others(XNLI, own, "translated")
  for split in ("validation", "test", *other):
    stem, _, language = split.partition("_")
    if stem == "translated":
      name = f"test-{language}-en-translated.tsv"
      files[split] = (name, f"translate-test/{name}")
    else:
      files[split] = (f"xnli.{'dev' if stem == 'validation' else 'test'}.tsv",)
  return spec.Task(
    name=f"xnli_{own}",
    kind="classify",
    read=_xnli_reader(own),
    metrics=("accuracy",),
    labels=("contradiction", "entailment", "neutral"),
    eval_splits=("validation", "test"),
    test_splits=tuple(other),
    files=files,
    folders=("XNLI-1.0", "XNLI-MT-1.0", "XNLI", "xnli"),
  )


# --- PAWS-X ---

_read_pawsx = tables.make_reader(
  glue.pair_maker(lambda task, value, where: spec.label_id(task, value, where)),
  "id",
)


def _pawsx_row(own: str) -> spec.Task:
  other = _others(PAWS_X, own, "validation", "test")
  names: Mapping[str, str] = {"validation": "dev_2k.tsv", "test": "test_2k.tsv"}
  train = "train.tsv" if own == "en" else "translated_train.tsv"
  files = {"train": (f"{own}/{train}",)} | {
    split: (f"{_language_of(split, own)}/{names[split.partition('_')[0]]}",)
    for split in ("validation", "test", *other)
  }
  return spec.Task(
    name=f"pawsx_{own}",
    kind="classify",
    read=_read_pawsx,
    metrics=("accuracy",),
    text=("sentence1", "sentence2"),
    label="label",
    labels=("0", "1"),
    eval_splits=("validation", "test"),
    test_splits=tuple(other),
    files=files,
    folders=("x-final", "PAWS-X", "pawsx"),
  )


ROWS = (*map(_xnli_row, XNLI), *map(_pawsx_row, PAWS_X))
