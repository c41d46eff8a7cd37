"""SuperGLUE: eight tasks and two diagnostic sets, in JSON lines.

MultiRC and ReCoRD are read as one pair for each answer that a question may
have. The right one of several names of ReCoRD is the most likely one, and a
prediction for MultiRC says of each answer whether it is right.

Differs from the baseline of the benchmark: a word (WiC) or a mention (WSC) is
marked in its text, and the head reads [CLS] alone. The baseline also gives the
head the hidden states of the word.

Source: https://arxiv.org/abs/1905.00537; nyu-mll/jiant-v1-legacy
  jiant/evaluate.py, for the files that the server takes
"""

from collections.abc import Mapping, Sequence
import json
import re
from typing import Any

from bert_jax.tasks import choice
from bert_jax.tasks import glue
from bert_jax.tasks import groups
from bert_jax.tasks import spec
from bert_jax.tasks import tables

# --- Labels and texts ---


def _parse(task: spec.Task, value: Any, where: str) -> int:
  """Returns the id of a label, which JSON may hold as a truth value."""
  text = str(value)
  if isinstance(value, bool):
    text = next(
      (x for x in task.labels if x.lower() == text.lower()),
      str(int(value)),
    )
  return spec.label_id(task, text, where)


def _label(task: spec.Task, row: Any, split: str, where: str) -> int | None:
  value = tables.label_field(task, row, split, where)
  return None if value is None else _parse(task, value, where)


_read_pairs = tables.make_reader(glue.pair_maker(_parse), "idx")


def _whole(value: Any, name: str, where: str, most: int) -> int:
  """Returns a place in a text, which is from 0 to `most`."""
  if isinstance(value, bool) or not isinstance(value, int):
    raise spec.TaskError(f"{where}: {name} is {value!r}; wanted a number")
  if not 0 <= value <= most:
    raise spec.TaskError(
      f"{where}: {name} is {value}; wanted a place in the text, 0 to {most}"
    )
  return value


def _word_in_context(task, split, where, id, row) -> spec.PairExample:
  """Reads a row of WiC; the word is between asterisks in both sentences."""
  texts = []
  for number in (1, 2):
    text = tables.text_field(row, f"sentence{number}", where)
    start, end = (
      _whole(
        tables.field(row, f"{end}{number}", where),
        f"{end}{number}",
        where,
        len(text),
      )
      for end in ("start", "end")
    )
    texts.append(f"{text[:start]}* {text[start:end]} *{text[end:]}")
  first, second = texts
  return spec.PairExample(id, first, second, _label(task, row, split, where))


def _winograd(task, split, where, id, row) -> spec.PairExample:
  """Reads a row of WSC: the text with both mentions marked, and the noun.

  The noun is between asterisks and the pronoun between number signs. Places are
  counted in words.
  """
  words = tables.text_field(row, "text", where).split()
  target = tables.field(row, "target", where)
  if not isinstance(target, Mapping):
    raise spec.TaskError(f"{where}: target is {target!r:.60}; wanted an object")
  marks = []
  for number, mark in ((1, "*"), (2, "#")):
    name = f"span{number}_index"
    text = tables.text_field(target, f"span{number}_text", where)
    start = _whole(
      tables.field(target, name, where), name, where, len(words) - 1
    )
    size = len(text.split())
    marks += [(start, 1, -size, mark), (start + size, 0, size, mark)]
  # From right to left. At the same place, ends come before starts, and a span
  # within another stays within it.
  for place, *_, mark in sorted(marks, reverse=True):
    words.insert(place, mark)
  noun = tables.text_field(target, "span1_text", where)
  label = _label(task, row, split, where)
  return spec.PairExample(id, " ".join(words), noun, label)


_QUESTIONS = {
  "cause": "What was the CAUSE of this?",
  "effect": "What happened as a RESULT?",
}


def _plausible_pairs(task, row, where) -> tuple[tuple[str, str], ...]:
  """Pairs the premise and the question of COPA with each alternative."""
  asked = tables.text_field(row, "question", where)
  if asked not in _QUESTIONS:
    raise spec.TaskError(
      f"{where}: question is {asked!r}; wanted {' or '.join(_QUESTIONS)}"
    )
  premise = tables.text_field(row, "premise", where)
  first = f"{premise} {_QUESTIONS[asked]}"
  return tuple(
    (first, tables.text_field(row, name, where)) for name in task.text[1:]
  )


def _read_winogender(task, path, split) -> list[spec.GroupedExample]:
  """Reads the pairs of Winogender: two rows that follow one another."""
  return [
    spec.GroupedExample(
      e.id, e.text_a, e.text_b, e.label, group=str(number // 2)
    )
    for number, e in enumerate(_read_pairs(task, path, split))
  ]


# --- Questions with many answers ---


def _inner(value: Any, name: str, kind: type, where: str) -> Any:
  """Returns a field of an object inside of a row, of a type."""
  found = value.get(name) if isinstance(value, Mapping) else None
  if not isinstance(found, kind) or isinstance(found, bool):
    wanted = {dict: "an object", list: "a list", str: "text", int: "a number"}
    raise spec.TaskError(
      f"{where}: {name} is {found!r:.60}; wanted {wanted[kind]}"
    )
  return found


_SENTENCE_MARK = re.compile(r"<b>Sentence \d+: </b>")


def _read_multirc(task, path, split) -> list[spec.GroupedExample]:
  """Reads MultiRC: the paragraph, and the question with one of its answers.

  The marks of sentences in a paragraph are left out. The id of an example is
  PASSAGE-QUESTION-ANSWER.
  """
  found = []
  for where, row in tables.iter_rows(path):
    passage = _inner(row, "passage", dict, where)
    text = _inner(passage, "text", str, where)
    text = _SENTENCE_MARK.sub("", text).replace("<br>", " ").strip()
    for question in _inner(passage, "questions", list, where):
      asked = _inner(question, "question", str, where)
      places = (_inner(x, "idx", int, where) for x in (row, question))
      group = "-".join(map(str, places))
      for answer in _inner(question, "answers", list, where):
        candidate = _inner(answer, "text", str, where)
        label = _label(task, answer, split, where)
        found.append(
          spec.GroupedExample(
            f"{group}-{_inner(answer, 'idx', int, where)}",
            text,
            f"{asked} {candidate}",
            label,
            group=group,
          )
        )
  return _checked(found, path)


def _checked(found: list[Any], path: str) -> list[Any]:
  """Returns examples, of which there is at least one, with ids of their own."""
  if not found:
    raise spec.TaskError(f"{path}: no question has an answer to judge")
  ids = [example.id for example in found]
  if len(set(ids)) < len(ids):
    twice = next(id for id in ids if ids.count(id) > 1)
    raise spec.TaskError(f"{path}: the id {twice} is given twice")
  return found


_HIGHLIGHT = re.compile(r"\s*\n@highlight\n")


def _record_text(text: str) -> str:
  """Returns a passage whose highlights are sentences."""

  def between(mark: re.Match[str]) -> str:
    is_ended = text[: mark.start()].endswith((".", "!", "?", '"', "'"))
    return " " if is_ended else ". "

  return _HIGHLIGHT.sub(between, text)


def _mentions(passage: Any, where: str) -> tuple[str, ...]:
  """Returns the different names in a passage; `end` is the last character."""
  text = _inner(passage, "text", str, where)
  names = []
  for entity in _inner(passage, "entities", list, where):
    start, end = (_inner(entity, key, int, where) for key in ("start", "end"))
    if not 0 <= start <= end < len(text):
      raise spec.TaskError(
        f"{where}: an entity is at {start} to {end} of a text of {len(text)}"
        " characters"
      )
    names.append(text[start : end + 1])
  return tuple(dict.fromkeys(names))


def _read_record(task, path, split) -> list[spec.GroupedExample]:
  """Reads ReCoRD: the passage, and the query with a name of the passage in it.

  The id of an example is PASSAGE-QUERY-NAME, where names are numbered.
  """
  found = []
  for where, row in tables.iter_rows(path):
    passage = _inner(row, "passage", dict, where)
    names = _mentions(passage, where)
    text = _record_text(passage["text"])
    for query in _inner(row, "qas", list, where):
      asked = _inner(query, "query", str, where)
      places = (_inner(x, "idx", int, where) for x in (row, query))
      group = "-".join(map(str, places))
      golds: tuple[str, ...] | None = None
      if split not in task.test_splits or "answers" in query:
        golds = tuple(
          _inner(answer, "text", str, where)
          for answer in _inner(query, "answers", list, where)
        )
      found += [
        spec.GroupedExample(
          f"{group}-{number}",
          text,
          asked.replace("@placeholder", name),
          None if golds is None else int(name in golds),
          group=group,
          candidate=name,
          golds=golds or (),
        )
        for number, name in enumerate(names)
      ]
  return _checked(found, path)


# --- Files for the server ---


def _line(**fields: Any) -> str:
  return json.dumps(fields, ensure_ascii=False) + "\n"


def _number(id: str, path: str) -> int:
  if not id.isdecimal():
    raise spec.TaskError(
      f"{path}: the example {id!r} has no number in `idx`, by which the server"
      " knows it"
    )
  return int(id)


def labels_jsonl(
  task: spec.Task, examples: Sequence[Any], predictions: Sequence[Any]
) -> str:
  """Returns a line with `idx` and the label of each example, in their order.

  Args:
    task: a task with a label for each row.
    examples: the examples of a test split.
    predictions: one prediction for each example.
  """
  return "".join(
    _line(
      idx=_number(example.id, task.name),
      label=task.labels[guess.label] if task.labels else guess.label,
    )
    for example, guess in zip(examples, predictions, strict=True)
  )


def multirc_jsonl(
  task: spec.Task, examples: Sequence[Any], predictions: Sequence[Any]
) -> str:
  """Returns a line for each passage of MultiRC, with its questions.

  Args:
    task: the task.
    examples: the examples of a test split.
    predictions: one prediction for each example.
  """
  passages: dict[int, dict[int, list[dict[str, int]]]] = {}
  for example, guess in zip(examples, predictions, strict=True):
    passage, question, answer = map(int, example.id.split("-"))
    label = int(task.labels[guess.label])
    passages.setdefault(passage, {}).setdefault(question, []).append(
      {"idx": answer, "label": label}
    )
  return "".join(
    _line(
      idx=passage,
      passage={
        "questions": [
          {"idx": question, "answers": answers}
          for question, answers in questions.items()
        ]
      },
    )
    for passage, questions in passages.items()
  )


def record_jsonl(
  task: spec.Task, examples: Sequence[Any], predictions: Sequence[Any]
) -> str:
  """Returns a line for each query of ReCoRD, with the most likely name.

  Args:
    task: the task.
    examples: the examples of a test split.
    predictions: one prediction for each example.
  """
  del task
  best = groups.best_candidates(examples, predictions)
  return "".join(
    _line(idx=int(group.split("-")[1]), label=example.candidate)
    for group, example in best.items()
  )


# --- The rows ---


def _row(name: str, folder: str, **others: Any) -> spec.Task:
  """Makes a task, with the facts that most tasks share as defaults.

  Args:
    name: the name of the task.
    folder: the folder of its files, which the server's files are named after.
    **others: the facts that differ from the defaults.
  """
  files = {"train": "train", "validation": "val", "test": "test"}
  defaults: dict[str, Any] = {
    "kind": "classify",
    "metrics": ("accuracy",),
    "label": "label",
    "files": {split: (f"{file}.jsonl",) for split, file in files.items()},
    "read": _read_pairs,
    "folders": (folder, f"SuperGLUE/{folder}"),
    "submission": {"test": f"{folder}.jsonl"},
    "submit": labels_jsonl,
  }
  return spec.Task(name=name, **(defaults | others))


def _diagnostic(name: str, folder: str, **others: Any) -> spec.Task:
  """Makes a diagnostic set, which a model of RTE is tried on.

  Its file has labels: `task.eval_splits` scores it as NAME:test.
  """
  return _row(
    name,
    folder,
    labels=("entailment", "not_entailment"),
    train_split="",
    eval_splits=(),
    files={"test": (f"{folder}.jsonl",)},
    trained_as="superglue_rte",
    **others,
  )


_PAIR = ("premise", "hypothesis")

ROWS: tuple[spec.Task, ...] = (
  # Source: https://aclanthology.org/N19-1300
  _row(
    "boolq", "BoolQ", text=("passage", "question"), labels=("false", "true")
  ),
  # Source: https://ojs.ub.uni-konstanz.de/sub/index.php/sub/article/view/601
  _row(
    "cb",
    "CB",
    text=_PAIR,
    labels=("contradiction", "entailment", "neutral"),
    metrics=("accuracy", "macro_f1"),
  ),
  # Source: https://people.ict.usc.edu/~gordon/publications/AAAI-SPRING11A.PDF
  _row(
    "copa",
    "COPA",
    kind="choice",
    text=("premise", "choice1", "choice2"),
    read=choice.make_reader(_plausible_pairs, "idx"),
  ),
  # f1 is that of all answers (F1a), all_right the exact match of questions.
  # Source: https://aclanthology.org/N18-1023
  _row(
    "multirc",
    "MultiRC",
    labels=("0", "1"),
    metrics=("f1", "all_right"),
    read=_read_multirc,
    submit=multirc_jsonl,
  ),
  # Source: https://arxiv.org/abs/1810.12885
  _row(
    "record",
    "ReCoRD",
    labels=("0", "1"),
    metrics=("best_f1", "best_exact"),
    read=_read_record,
    submit=record_jsonl,
  ),
  _row(
    "superglue_rte",
    "RTE",
    text=_PAIR,
    labels=("entailment", "not_entailment"),
  ),
  # Source: https://aclanthology.org/N19-1128
  _row(
    "wic",
    "WiC",
    labels=("false", "true"),
    read=tables.make_reader(_word_in_context, "idx"),
  ),
  # Source: https://cs.nyu.edu/~davise/papers/WinogradSchemas/WS.html
  _row(
    "wsc",
    "WSC",
    labels=("False", "True"),
    read=tables.make_reader(_winograd, "idx"),
  ),
  _diagnostic(
    "axb",
    "AX-b",
    text=("sentence1", "sentence2"),
    metrics=("matthews", "accuracy"),
  ),
  # same_answer is the gender parity score.
  # Source: https://aclanthology.org/N18-2002
  _diagnostic(
    "axg",
    "AX-g",
    text=_PAIR,
    metrics=("accuracy", "same_answer"),
    read=_read_winogender,
  ),
)
