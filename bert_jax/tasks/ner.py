"""Named entities in the column format of CoNLL: CoNLL-2003 and WNUT-17.

A line holds a word and its tag, last, with other columns between; a blank line
ends a sentence, a line that begins with -DOCSTART- a document. Where a file
has no such lines, every sentence is a document of its own.

Source: section 5.3; https://aclanthology.org/W03-0419,
  https://aclanthology.org/W17-4418
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from bert_jax.tasks import spec
from bert_jax.tasks import tables

SCHEMES = ("auto", "iob1", "iob2")

_DOCUMENT = "-DOCSTART-"


@dataclasses.dataclass
class _Sentence:
  document: int
  words: list[str]
  tags: list[str]
  lines: list[int]


def to_iob2(
  tags: Sequence[str], scheme: str = "auto", where: Sequence[str] = ()
) -> tuple[str, ...]:
  """Tags of a sentence in the scheme that every entity begins with B-.

  IOB1 writes B- only where an entity follows another of its type. Reading
  IOB2 by that rule changes nothing, so "auto" reads both.

  Args:
    tags: O, B-TYPE or I-TYPE.
    scheme: "auto", "iob1" or "iob2"; the last refuses an I- that continues
      nothing.
    where: "PATH:LINE" of each tag, for errors.

  Raises:
    spec.TaskError: another form of tag, or one the scheme does not allow.

  Example:
    >>> to_iob2(["I-LOC", "I-LOC", "B-LOC", "O", "I-PER"])
    ('B-LOC', 'I-LOC', 'B-LOC', 'O', 'B-PER')
  """
  if scheme not in SCHEMES:
    raise spec.TaskError(f"scheme={scheme!r}; use one of {', '.join(SCHEMES)}")
  result = []
  entity = ""  # type of the entity that the last word belongs to
  for i, tag in enumerate(tags):
    prefix, _, kind = tag.partition("-")
    place = where[i] if where else f"word {i}"
    if tag != "O" and (prefix not in ("B", "I") or not kind):
      raise spec.TaskError(
        f"{place}: tag {tag!r} is not known; wanted O, B-TYPE or I-TYPE"
      )
    if prefix == "I" and kind != entity:
      if scheme == "iob2":
        raise spec.TaskError(
          f"{place}: tag {tag!r} continues no entity, so the file is not IOB2;"
          " write B- where an entity begins"
        )
      tag = f"B-{kind}"
    entity = kind
    result.append(tag)
  return tuple(result)


def tag_labels(tags: Iterable[str]) -> tuple[str, ...]:
  """O, then B- and I- of each type in the order of the alphabet."""
  kinds = sorted({tag[2:] for tag in tags if tag != "O"})
  return ("O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI"))


def make_reader(
  num_columns: int = 0, scheme: str = "auto"
) -> Callable[[spec.Task, str, str], list[spec.TagExample]]:
  """Makes the reader of files in columns.

  Args:
    num_columns: of a line; 0 = as many as the first line has, where a single
      one means words without tags.
    scheme: of the tags, one of SCHEMES.
  """

  def read(task: spec.Task, path: str, split: str) -> list[spec.TagExample]:
    sentences = list(_sentences(path, num_columns))
    if not sentences:
      raise spec.TaskError(f"{path} has no sentences")
    if not tables.read_text(path).endswith("\n"):
      tables.warn_of_cut(path)
    has_documents = any(s.document for s in sentences)
    examples = []
    for number, s in enumerate(sentences):
      labels = None
      if s.tags:
        where = [f"{path}:{line}" for line in s.lines]
        labels = to_iob2(s.tags, scheme, where)
        for label, place in zip(labels, where, strict=True):
          if task.labels:
            spec.label_id(task, label, place)
      elif split not in task.test_splits:
        raise spec.TaskError(
          f"{path}:{s.lines[0]}: a single column, wanted a word and its tag;"
          " only a test split may lack the tags"
        )
      document = s.document if has_documents else number
      examples.append(
        spec.TagExample(str(number), tuple(s.words), labels, document)
      )
    return examples

  return read


def _sentences(path: str, num_columns: int) -> Iterator[_Sentence]:
  """The sentences of a file; document 0 is what precedes the first mark."""
  sentence = _Sentence(0, [], [], [])
  document = 0
  for number, line in enumerate(tables.read_lines(path), 1):
    cells = _cells(line)
    if not cells or cells[0] == _DOCUMENT:
      if sentence.words:
        yield sentence
      document += bool(cells)
      sentence = _Sentence(document, [], [], [])
      continue
    num_columns = num_columns or len(cells)
    if len(cells) != num_columns:
      raise spec.TaskError(
        f"{path}:{number}: {len(cells)} columns, wanted {num_columns}: a word,"
        " its tag last, tabs or spaces between"
      )
    sentence.words.append(cells[0])
    sentence.lines.append(number)
    if num_columns > 1:
      sentence.tags.append(cells[-1])
  if sentence.words:
    yield sentence


def _cells(line: str) -> list[str]:
  """The columns of a line; [] of one that is blank."""
  if not line.strip():
    return []
  if "\t" in line:
    return [cell.strip(" ") for cell in line.rstrip("\t").split("\t")]
  return line.split()


def _record(
  task: spec.Task, split: str, number: int, record: Mapping[str, Any]
) -> spec.TagExample | None:
  """A sentence of TFDS, which keeps no documents; None of one without words."""
  del split
  names = task.tfds_labels or task.labels
  where = f"{task.tfds}, record {number}"
  words = [
    word.decode("utf-8") if isinstance(word, bytes) else str(word)
    for word in tables.field(record, "tokens", where)
  ]
  if not words:
    return None
  tags = [names[int(i)] for i in tables.field(record, "ner", where)]
  return spec.TagExample(
    str(number), tuple(words), to_iob2(tags), document=number
  )


_FACTS: dict[str, Any] = {
  "kind": "tag",
  "text": ("words",),
  "metrics": ("entity_f1", "precision", "recall", "accuracy"),
  "main_metric": "entity_f1",
  "train_split": "train",
  "eval_splits": ("validation", "test"),
  "test_splits": (),
}

ROWS = (
  spec.Task(
    name="conll2003",
    # In the order of TFDS and Hugging Face; the original has no tags.
    labels=("O",)
    + tuple(f"{p}-{k}" for k in ("PER", "ORG", "LOC", "MISC") for p in "BI"),
    source="https://aclanthology.org/W03-0419",
    files={
      "train": ("eng.train", "train.txt"),
      "validation": ("eng.testa", "valid.txt", "dev.txt"),
      "test": ("eng.testb", "test.txt"),
    },
    folders=("conll2003", "conll2003/eng"),
    read=make_reader(4),
    read_record=_record,
    tfds="conll2003/conll2003",
    tfds_splits={"validation": "dev"},
    **_FACTS,
  ),
  spec.Task(
    name="wnut17",
    labels=tag_labels(
      f"B-{kind}"
      for kind in (
        "corporation",
        "creative-work",
        "group",
        "location",
        "person",
        "product",
      )
    ),  # fmt: skip
    source="https://aclanthology.org/W17-4418",
    files={
      "train": ("wnut17train.conll",),
      "validation": ("emerging.dev.conll",),
      "test": ("emerging.test.annotated",),
    },
    folders=("wnut17",),
    read=make_reader(2),
    **_FACTS,
  ),
)
