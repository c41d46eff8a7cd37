"""Questions whose answer is a span of a text (BERT paper, section 4.2).

A long text is read in windows. The answer is the best pair of a first and a
last token over all windows of the text.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from bert_jax.data import batch_keys
from bert_jax.kinds import answers
from bert_jax.kinds import losses
from bert_jax.kinds import task_kind
from bert_jax.runtime import files
from bert_jax.tasks import features as task_features
from bert_jax.tasks import own
from bert_jax.tasks import spec
from bert_jax.tasks import squad
from bert_jax.tasks.features import IGNORED

PREDICTIONS_FILE = "predictions.json"
NBEST_FILE = "nbest_predictions.json"
NULL_ODDS_FILE = "null_odds.json"
_NBEST_FIELDS = ("text", "probability", "start_logit", "end_logit")

# --- Features ---


def window_spans(
  size: int, width: int, stride: int
) -> Iterator[tuple[int, int]]:
  """Yields the range of tokens of each window over a text.

  Args:
    size: the number of tokens of the text; 0 gives one empty window, so that
      every example has a prediction.
    width: the most tokens of a window.
    stride: the number of tokens between the starts of two windows; a window
      starts at the latest at the end of the previous one.

  Example:
    >>> list(window_spans(10, 6, 3))
    [(0, 6), (3, 9), (6, 10)]

  Source: google-research/bert run_squad.py:350-364
  """
  start = 0
  while True:
    end = min(start + width, size)
    yield start, end
    if end == size:
      return
    start += min(end - start, stride)


def _best_windows(windows: Sequence[tuple[int, int]], size: int) -> list[int]:
  """Returns for each token the window with the most context around it.

  The context is the number of tokens on the shorter side. Of equal windows, it
  is the first.
  """
  if len(windows) == 1:
    return [0] * size
  best, top = np.zeros(size, np.int64), np.full(size, -np.inf)
  for number, (start, end) in enumerate(windows):
    at = np.arange(start, end)
    score = np.minimum(at - start, end - 1 - at) + 0.01 * (end - start)
    better = at[score > top[start:end]]
    top[better], best[better] = score[better - start], number
  return best.tolist()


def _answer_tokens(
  example: spec.SpanExample, starts: Sequence[int], ends: Sequence[int]
) -> tuple[int, int] | None:
  """Returns the first and the last token of the first answer, if any."""
  if not example.answers:
    return None
  text, first = example.answers[0]
  # Starts and ends both ascend, so the tokens that share a character with the
  # answer are contiguous.
  begin = int(np.searchsorted(ends, first, side="right"))
  end = int(np.searchsorted(starts, first + len(text), side="left")) - 1
  return (begin, end) if begin <= end else None


def _place(
  answer: tuple[int, int] | None, start: int, end: int, shift: int
) -> tuple[int, int]:
  """Returns the tokens of the answer in a sequence.

  Args:
    answer: the first and the last token of the answer in the text.
    start: the first token of the window.
    end: the token after the last one of the window.
    shift: the number of tokens of the sequence before the window.

  Returns:
    The first and the last token; [CLS] if the answer is not all in the window.
  """
  if answer is None or answer[0] < start or answer[1] >= end:
    return 0, 0
  return answer[0] - start + shift, answer[1] - start + shift


# --- Decoding ---


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
  """One of the best answers.

  Attributes:
    text: the answer; "" if the text does not answer the question.
    probability: the probability among the best answers.
    start_logit: the score of its first token.
    end_logit: the score of its last token.
    place: the range of characters of `text` in the context; -1 if there is no
      answer.
  """

  text: str
  probability: float
  start_logit: float
  end_logit: float
  place: tuple[int, int] = (-1, -1)

  @property
  def score(self) -> float:
    """The score of the span."""
    return self.start_logit + self.end_logit


@dataclasses.dataclass(frozen=True, slots=True)
class SpanPrediction:
  """The answer to a question.

  Attributes:
    text: the answer; "" if the text does not answer the question.
    best_text: the best answer other than ""; "" if no span was allowed.
    null_odds: the score of no answer minus that of the best answer; None if
      every question has an answer.
    nbest: the best answers, best first.
  """

  text: str
  best_text: str
  null_odds: float | None
  nbest: tuple[Candidate, ...]


def decode(
  features: task_features.Features,
  start_logits: np.ndarray,
  end_logits: np.ndarray,
  *,
  has_null: bool,
  n_best: int = 20,
  max_answer_len: int = 30,
  null_threshold: float = 0.0,
) -> list[SpanPrediction]:
  """Finds the best answer to every question in all windows of its text.

  A span is allowed if both ends are tokens of the text, it has at most
  `max_answer_len` tokens, and no other window has more context around its
  start. The score of no answer is the lowest score that any window gives to
  [CLS].

  Differs from BERT: an answer is cut out of the text by the characters of its
  tokens, while the original aligns normalized text and takes whole words if
  that fails. There are no logits of padding, which could be among the best. The
  answer of an example without any allowed span is "", while the original
  answers "empty" or stops (2.0).

  Args:
    features: features of the kind "span".
    start_logits: [T], the score of each token as the start of the answer.
    end_logits: [T], the score of each token as the end of the answer.
    has_null: whether questions may have no answer.
    n_best: the number of starts and of ends of a window that are tried, and the
      number of answers that are kept.
    max_answer_len: the most tokens of an answer.
    null_threshold: the question has no answer if `null_odds` is above this.

  Returns:
    One prediction for each example.

  Source: google-research/bert run_squad.py:741-924
  """
  spans: list[list[Candidate]] = [[] for _ in range(features.num_examples)]
  nulls: list[Candidate | None] = [None] * features.num_examples
  for unit, owner in enumerate(features.example.tolist()):
    at = slice(features.offsets[unit], features.offsets[unit + 1])
    start = np.asarray(start_logits[at], np.float64)
    end = np.asarray(end_logits[at], np.float64)
    cls = Candidate("", 0.0, float(start[0]), float(end[0]))
    lowest = nulls[owner]
    if lowest is None or cls.score < lowest.score:
      nulls[owner] = cls
    context = features.contexts[owner]
    spans[owner] += _window_spans(
      features, at, context, start, end, n_best, max_answer_len
    )
  return [
    _choose(found, null if has_null else None, n_best, null_threshold)
    for found, null in zip(spans, nulls, strict=True)
  ]


def _window_spans(
  features: task_features.Features,
  at: slice,
  context: str,
  start: np.ndarray,
  end: np.ndarray,
  n_best: int,
  max_answer_len: int,
) -> list[Candidate]:
  """Returns the allowed spans of the best starts and ends of a window.

  Their probabilities are 0, since the other windows are not known.
  """
  assert features.char_starts is not None
  assert features.char_ends is not None
  assert features.is_max_context is not None
  char_starts = features.char_starts[at]
  char_ends = features.char_ends[at]
  starts = np.argsort(-start, kind="stable")[:n_best]
  ends = np.argsort(-end, kind="stable")[:n_best]
  length = ends[None, :] - starts[:, None] + 1
  allowed = (length >= 1) & (length <= max_answer_len)
  allowed &= features.is_max_context[at][starts][:, None]
  allowed &= (char_starts[ends] >= 0)[None, :]
  spans = []
  for i, j in zip(*np.nonzero(allowed), strict=True):
    first, last = starts[i], ends[j]
    begin, stop = int(char_starts[first]), int(char_ends[last])
    begin += len(context[begin:stop]) - len(context[begin:stop].lstrip())
    text = context[begin:stop].strip()
    if text:
      place = begin, begin + len(text)
      spans.append(
        Candidate(text, 0.0, float(start[first]), float(end[last]), place)
      )
  return spans


def _choose(
  spans: list[Candidate], null: Candidate | None, n_best: int, threshold: float
) -> SpanPrediction:
  """Returns the prediction for an example.

  Args:
    spans: the spans of all its windows.
    null: no answer, if the question may have none.
    n_best: the number of answers to keep.
    threshold: see `null_threshold` of `decode`.
  """
  nothing = Candidate("", 0.0, 0.0, 0.0)
  ranked = sorted([*spans, *([null] if null else [])], key=lambda s: -s.score)
  seen: dict[str, Candidate] = {}
  for span in ranked:
    if len(seen) == n_best:
      break
    seen.setdefault(span.text, span)
  nbest = list(seen.values())
  if null and null not in nbest:
    nbest.append(null)
  nbest = nbest or [nothing]
  best = answer = next((span for span in nbest if span.text), nothing)
  odds = None
  if null:
    odds = null.score - best.score
    if odds > threshold:
      answer = null
  scores = np.array([span.score for span in nbest])
  weights = np.exp(scores - scores.max())
  probabilities = (weights / weights.sum()).tolist()
  return SpanPrediction(
    text=answer.text,
    best_text=best.text,
    null_odds=odds,
    nbest=tuple(
      dataclasses.replace(span, probability=probability)
      for span, probability in zip(nbest, probabilities, strict=True)
    ),
  )


def write_files(
  folder: str,
  examples: Sequence[spec.SpanExample],
  predictions: Sequence[SpanPrediction],
) -> None:
  """Writes predictions.json, nbest_predictions.json and null_odds.json.

  Names and content are those of the original. The last file is written only if
  questions may have no answer.

  Args:
    folder: the folder to write to, which is made if it is missing.
    examples: the questions.
    predictions: one prediction for each question.

  Source: google-research/bert run_squad.py:914-924
  """
  files.make_folders(folder)
  by_id = {e.id: p for e, p in zip(examples, predictions, strict=True)}
  contents: dict[str, dict[str, Any]] = {
    PREDICTIONS_FILE: {id: p.text for id, p in by_id.items()},
    NBEST_FILE: {
      id: [{name: getattr(c, name) for name in _NBEST_FIELDS} for c in p.nbest]
      for id, p in by_id.items()
    },
    NULL_ODDS_FILE: {
      id: p.null_odds for id, p in by_id.items() if p.null_odds is not None
    },
  }
  for name, content in contents.items():
    if content:
      with files.writing(os.path.join(folder, name), "w") as f:
        f.write(files.to_json(content, indent=4) + "\n")


# --- The kind ---


class Span(task_kind.TaskKind):
  """Finds the two ends of an answer; there is no dropout before the head.

  Sequences are `[CLS] question [SEP] window [SEP]` in BERT's template, with a
  window every `doc_stride` tokens. The answer of a window that does not hold
  the whole answer of the question is [CLS].

  Differs from BERT: the tokens of the answer are found by its characters. The
  original takes the words between spaces and then looks for the tokens of the
  answer in them, which finds the same tokens if it finds any.

  Source: google-research/bert run_squad.py:311-547
  """

  name = "span"
  labels = batch_keys.Labels(
    {"start": ("BG", np.int32), "end": ("BG", np.int32)}, are_places=True
  )
  pooled = False
  forms = {
    "span": own.Form(
      ("f1", "exact"),
      (2, 2),
      own.read_spans,
      columns=("question", "context"),
    )
  }
  feature_settings = ("max_query_len", "doc_stride")
  decode_settings = ("n_best", "max_answer_len", "null_threshold")

  def loss(self, outputs, batch, options=losses.PLAIN):
    return losses.span_cross_entropy(
      outputs,
      batch["sequence_ids"],
      batch["start"],
      batch["end"],
      batch["weight"],
    )

  def _features(
    self, task, examples, tokenizer, seq_len, max_query_len=64, doc_stride=128
  ):
    template = tokenizer.template
    room = seq_len - template.num_special(is_pair=True)
    if doc_stride < 1:
      raise spec.TaskError(f"task.doc_stride={doc_stride} must be at least 1")
    if not 1 <= max_query_len < room:
      raise spec.TaskError(
        f"task.max_query_len={max_query_len} must be from 1 to {room - 1}, to"
        f" leave room for one token of the text in seq_len={seq_len}"
      )
    has_labels = spec.have_labels(task, examples)
    questions = task_features.encode(tokenizer, [e.question for e in examples])
    contexts = {
      text: tokenizer.encode_with_offsets(text)
      for text in dict.fromkeys(e.context for e in examples)
    }
    before, between, after = template.around(is_pair=True)
    tail = [IGNORED] * len(after)
    built, owners, labels = [], [], []
    char_starts: list[int] = []
    char_ends: list[int] = []
    is_best: list[bool] = []
    for owner, example in enumerate(examples):
      query = questions[owner][:max_query_len]
      ids, starts, ends = contexts[example.context]
      windows = list(window_spans(len(ids), room - len(query), doc_stride))
      best = _best_windows(windows, len(ids))
      answer = _answer_tokens(example, starts, ends)
      head = [IGNORED] * (len(before) + len(query) + len(between))
      for number, (start, end) in enumerate(windows):
        built.append(template.build(tokenizer, query, ids[start:end]))
        char_starts += [*head, *starts[start:end], *tail]
        char_ends += [*head, *ends[start:end], *tail]
        shown = [*head, *best[start:end], *tail]
        is_best += [window == number for window in shown]
        owners.append(owner)
        labels.append(_place(answer, start, end, len(head)))
    lengths = [len(question) for question in questions]
    return task_features.Features(
      **task_features.columns_of(built),
      cut=task_features.Cut(
        "questions",
        sum(length > max_query_len for length in lengths),
        len(lengths),
        sum(max(0, length - max_query_len) for length in lengths),
        sum(lengths),
        max(lengths),
        "task.max_query_len",
        max_query_len,
        seq_len,
      ),
      example=np.array(owners, np.int32),
      label=np.array(labels, np.int32) if has_labels else None,
      char_starts=np.array(char_starts, np.int32),
      char_ends=np.array(char_ends, np.int32),
      is_max_context=np.array(is_best, bool),
      contexts=tuple(e.context for e in examples),
      labels=self.labels,
    )

  def _decode(self, task, features, outputs, **options):
    start, end = outputs.T
    return decode(features, start, end, has_null=task.has_null, **options)

  def _score(self, task, predictions, examples):
    """Returns exact and F1 in percent.

    If questions may have no answer, these are all scores of squad.evaluate_v2.
    best_exact and best_f1 are those of the best answers with any threshold.
    """

    def by_id(attribute):
      values = (getattr(p, attribute) for p in predictions)
      return dict(zip((e.id for e in examples), values, strict=True))

    golds, texts = squad.golds_of(examples), by_id("text")
    if not task.has_null:
      result = squad.evaluate_v1(golds, texts)
      return {"exact": result["exact_match"], "f1": result["f1"]}
    odds = by_id("null_odds")
    if None in odds.values():
      return squad.evaluate_v2(golds, texts)
    best = squad.evaluate_v2(golds, by_id("best_text"), odds)
    return squad.evaluate_v2(golds, texts) | {
      name: value for name, value in best.items() if name.startswith("best_")
    }

  def row(self, task, prediction):
    return {
      "answer": prediction.text,
      "best_answer": prediction.best_text,
      "null_odds": prediction.null_odds,
    }

  def gold(self, task, example):
    return [text for text, _ in example.answers]

  def write_predictions(self, task, examples, predictions, stem):
    """Also writes the three files of the original into the folder `stem`."""
    written = super().write_predictions(task, examples, predictions, stem)
    write_files(stem, examples, predictions)
    return [*written, stem]


SPAN = Span()

# --- Prediction ---


class Answerer(answers.TaskAnswerer):
  """Gives the part of a text that answers a question."""

  name = "answer"
  parts = ("task",)
  kind = SPAN
  two_texts = True
  fields = record_fields = ("question", "context")
  example = {"question": "Where is Paris?", "context": "Paris is in France."}

  def parse(self, record: Mapping[str, Any]) -> list[Any]:
    question = answers.text_of(record, "question")
    context = answers.text_of(record, "context")
    return [spec.SpanExample("", question, context, (), False)]

  def size(self, example: Any) -> int:
    return len(example.context)

  def of_transformers(self, found, mask):
    del mask
    return {"logits": (found.start_logits, found.end_logits)}

  def answer(self, example, prediction):
    best = next(c for c in prediction.nbest if c.text == prediction.text)
    return {
      "answer": best.text,
      "start": best.place[0],
      "end": best.place[1],
      "score": best.probability,
    }
