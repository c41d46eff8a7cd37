"""Named entities in the column format of CoNLL: CoNLL-2003 and WNUT-17.

Each line holds a word and, in its last column, its tag. A blank line ends a
sentence, and a line that begins with -DOCSTART- starts a document. In a file
without such lines, every sentence is its own document.

Source: section 5.3; https://aclanthology.org/W03-0419,
  https://aclanthology.org/W17-4418
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import itertools
from typing import Any

from bert_jax.tasks import spec
from bert_jax.tasks import tables

_DOCUMENT = "-DOCSTART-"
_WNUT_TYPES = "corporation creative-work group location person product"


def to_iob2(tags: Sequence[str], where: Sequence[str]) -> tuple[str, ...]:
  """Returns the tags of a sentence in IOB2, where every entity begins with B-.

  IOB1 has B- only for an entity that follows another of the same type. The
  rules of IOB1 leave tags in IOB2 as they are, so both can be read.

  Args:
    tags: O, B-TYPE or I-TYPE for each word.
    where: "PATH:LINE" of each tag, for errors.

  Raises:
    spec.TaskError: A tag has another form.

  Example:
    >>> to_iob2(["I-LOC", "I-LOC", "B-LOC", "O"], ["f:1", "f:2", "f:3", "f:4"])
    ('B-LOC', 'I-LOC', 'B-LOC', 'O')
  """
  result = []
  entity = ""  # the type of the entity that the last word belongs to
  for tag, place in zip(tags, where, strict=True):
    prefix, _, kind = tag.partition("-")
    if tag != "O" and (prefix not in ("B", "I") or not kind):
      raise spec.TaskError(
        f"{place}: tag {tag!r} is not known; wanted O, B-TYPE or I-TYPE"
      )
    if prefix == "I" and kind != entity:
      tag = f"B-{kind}"
    entity = kind
    result.append(tag)
  return tuple(result)


def parse_tags(
  task: spec.Task, tags: Sequence[str], where: Sequence[str]
) -> tuple[str, ...]:
  """Returns the tags of a sentence in IOB2; checks that the task has them.

  Args:
    task: the task; without labels, any type of entity is accepted.
    tags: as for `to_iob2`.
    where: as for `to_iob2`.
  """
  labels = to_iob2(tags, where)
  if task.labels:
    for label, place in zip(labels, where, strict=True):
      spec.label_id(task, label, place)
  return labels


def tag_labels(tags: Iterable[str]) -> tuple[str, ...]:
  """Returns O, and B- and I- of each type, which are sorted."""
  kinds = sorted({tag[2:] for tag in tags if tag != "O"})
  return ("O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI"))


def make_reader(
  num_columns: int = 0,
) -> Callable[[spec.Task, str, str], list[spec.TagExample]]:
  """Makes the reader of files in columns.

  Args:
    num_columns: the number of columns; 0 means as many as the first line has,
      where a single one means words without tags.
  """

  def read(task: spec.Task, path: str, split: str) -> list[spec.TagExample]:
    sentences = list(_sentences(path, num_columns))
    if not sentences:
      raise spec.TaskError(f"{path} has no sentences")
    tables.lacks_line_end(path)  # Logs it.
    has_documents = any(document for document, _ in sentences)
    examples = []
    for number, (document, lines) in enumerate(sentences):
      labels = None
      if len(lines[0][1]) > 1:
        tags = [cells[-1] for _, cells in lines]
        labels = parse_tags(task, tags, [where for where, _ in lines])
      elif split not in task.test_splits:
        raise spec.TaskError(
          f"{lines[0][0]}: the line has one column; wanted a word and its tag,"
          " separated by a space or tab. Only a test split may lack the tags"
        )
      words = tuple(cells[0] for _, cells in lines)
      examples.append(
        spec.TagExample(
          str(number), words, labels, document if has_documents else number
        )
      )
    return examples

  return read


def _sentences(
  path: str, num_columns: int
) -> Iterator[tuple[int, list[tuple[str, list[str]]]]]:
  """Yields the sentences of a file.

  Yields:
    The number of the document (0 before the first -DOCSTART-), and for each
    line of the sentence "PATH:LINE" and its columns.
  """
  lines = [
    (f"{path}:{number}", _cells(line))
    for number, line in enumerate(tables.read_lines(path), 1)
  ]
  document = 0
  for is_word, group in itertools.groupby(
    lines, lambda line: line[1][:1] not in ([], [_DOCUMENT])
  ):
    sentence = list(group)
    if not is_word:
      document += sum(bool(cells) for _, cells in sentence)
      continue
    num_columns = num_columns or len(sentence[0][1])
    for where, cells in sentence:
      if len(cells) != num_columns:
        raise spec.TaskError(
          f"{where}: {len(cells)} columns, wanted {num_columns}: a word first"
          " and its tag last, with tabs or spaces between the columns"
        )
    yield document, sentence


def _cells(line: str) -> list[str]:
  """Returns the columns of a line; [] if it is blank."""
  if not line.strip():
    return []
  if "\t" in line:
    return [cell.strip(" ") for cell in line.rstrip("\t").split("\t")]
  return line.split()


def _record(task, split, where, id, record) -> spec.TagExample | None:
  """Reads a sentence of TFDS, which keeps no documents; None if it is empty."""
  words = [
    tables.as_text(word, "tokens", where)
    for word in tables.field(record, "tokens", where)
  ]
  if not words:
    return None
  tags = [task.labels[int(i)] for i in tables.field(record, "ner", where)]
  labels = to_iob2(tags, [where] * len(words))
  return spec.TagExample(id, tuple(words), labels, document=int(id))


_FACTS: dict[str, Any] = {
  "kind": "tag",
  "metrics": ("entity_f1", "precision", "recall", "accuracy"),
  "eval_splits": ("validation", "test"),
  "test_splits": (),
}

ROWS = (
  spec.Task(
    name="conll2003",
    # In the order of TFDS and Hugging Face; the original has no tags.
    labels=("O",)
    + tuple(f"{p}-{k}" for k in ("PER", "ORG", "LOC", "MISC") for p in "BI"),
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
    labels=tag_labels(f"B-{kind}" for kind in _WNUT_TYPES.split()),
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
