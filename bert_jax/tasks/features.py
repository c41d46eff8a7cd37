"""Examples to numbers: what the encoder reads and what decoding needs.

Features are columns: the token ids of all sequences lie one after the other,
without padding. A unit is what gets a prediction of its own: a text or pair, a
group of choices, a window of a long context, a piece of a long sentence.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools
from typing import Any

import numpy as np

from bert_jax.data import batch_keys
from bert_jax.data.tokenizers import interface
from bert_jax.tasks import spec

IGNORED = -1  # a token without a label

CONTEXTS = ("sentence", "document")

CLASSES = batch_keys.Labels({"label": ("BG", np.int32)})
NUMBERS = batch_keys.Labels({"label": ("BG", np.float32)})
TAGS = batch_keys.Labels({"label": ("BL", np.int32)})
SPANS = batch_keys.Labels(
  {"start": ("BG", np.int32), "end": ("BG", np.int32)}, are_places=True
)


@dataclasses.dataclass(frozen=True)
class Features:
  """N units of C sequences each; M = N * C sequences of T tokens in all.

  Attributes:
    token_ids: [T] int32, with [CLS] and [SEP].
    segment_ids: [T] int8, 0 or 1.
    offsets: [M + 1] int64; sequence m is token_ids[offsets[m]:offsets[m + 1]].
    example: [N] int32, which example a unit belongs to.
    label: [N] int32 (classify, choice), [N] float32 (regress), [T] int32 with
      IGNORED (tag), [N, 2] int32, start and end within the sequence (span);
      None = not known.
    num_choices: C.
    num_truncated: sequences that lost tokens to the length.
    words: [T] int32, the word of its example that the token predicts, or
      IGNORED (tag).
    char_starts, char_ends: [T] int32, the characters of the context that the
      token stands for, IGNORED outside the context (span).
    is_max_context: [T] bool, no other window shows the token with more on its
      poorer side (span).
    contexts: the text of each example, which answers are cut from (span).
    labels: where `label` stands in a batch.
  """

  token_ids: np.ndarray
  segment_ids: np.ndarray
  offsets: np.ndarray
  example: np.ndarray
  label: np.ndarray | None
  num_choices: int = 1
  num_truncated: int = 0
  words: np.ndarray | None = None
  char_starts: np.ndarray | None = None
  char_ends: np.ndarray | None = None
  is_max_context: np.ndarray | None = None
  contexts: tuple[str, ...] = ()
  labels: batch_keys.Labels = CLASSES

  @property
  def lengths(self) -> np.ndarray:
    """[M] tokens of each sequence."""
    return np.diff(self.offsets)

  @property
  def num_examples(self) -> int:
    """Examples that the units are of; each has at least one."""
    return int(self.example[-1]) + 1

  def __len__(self) -> int:
    return len(self.example)


def make_features(
  task: spec.Task,
  examples: Sequence[Any],
  tokenizer: interface.Tokenizer,
  *,
  seq_len: int,
  max_query_len: int = 64,
  doc_stride: int = 128,
  context: str = "sentence",
) -> Features:
  """Turns examples into features.

  Args:
    task: decides the kind and the labels.
    examples: of one split.
    tokenizer: its special tokens are used.
    seq_len: L, the longest sequence, with [CLS] and [SEP].
    max_query_len: tokens of a question that are kept (span).
    doc_stride: tokens between the starts of two windows (span).
    context: what surrounds a sentence (tag): nothing, or as much of its
      document as fits, half of it on either side. Only its own words get
      labels and predictions.

  Returns:
    Features in the order of the examples, units of one example together.

  Raises:
    spec.TaskError: no examples, some without a label where others have one,
      or a length that leaves no room for text.

  Source: section 4; google-research/bert run_classifier.py:377-571,
    run_squad.py:311-547
  """
  if not examples:
    raise spec.TaskError(f"task {task.name}: no examples to make features of")
  if seq_len < 5:
    raise spec.TaskError(
      f"seq_len={seq_len} leaves no room for text beside [CLS] and [SEP]; use"
      " 128, or 384 for questions"
    )
  if context not in CONTEXTS:
    raise spec.TaskError(
      f"context={context!r}; use one of {', '.join(CONTEXTS)}"
    )
  options: dict[str, dict[str, Any]] = {
    "tag": {"context": context},
    "span": {"max_query_len": max_query_len, "doc_stride": doc_stride},
  }
  make = _MAKERS[task.kind]
  return make(
    task, examples, tokenizer, seq_len=seq_len, **options.get(task.kind, {})
  )


# --- Texts and pairs ---


def _pair_features(task, examples, tokenizer, *, seq_len) -> Features:
  """[CLS] a [SEP] or [CLS] a [SEP] b [SEP]; classify and regress."""
  sequences = _pair_sequences(
    [e.text_a for e in examples],
    [e.text_b for e in examples],
    tokenizer,
    seq_len,
  )
  dtype = np.float32 if task.kind == "regress" else np.int32
  return Features(
    **sequences,
    example=np.arange(len(examples), dtype=np.int32),
    label=_labels(task, examples, dtype),
    labels=NUMBERS if dtype is np.float32 else CLASSES,
  )


def _choice_features(task, examples, tokenizer, *, seq_len) -> Features:
  """[CLS] a [SEP] b [SEP] for each of the C choices of an example."""
  num_choices = len(examples[0].pairs)
  for example in examples:
    if len(example.pairs) != num_choices:
      raise spec.TaskError(
        f"task {task.name}: example {example.id} has {len(example.pairs)}"
        f" choices, example {examples[0].id} has {num_choices}; the number"
        " must be the same for all"
      )
  pairs = [pair for example in examples for pair in example.pairs]
  first, second = zip(*pairs, strict=True)
  return Features(
    **_pair_sequences(first, second, tokenizer, seq_len),
    example=np.arange(len(examples), dtype=np.int32),
    label=_labels(task, examples, np.int32),
    num_choices=num_choices,
  )


def _labels(task, examples, dtype) -> np.ndarray | None:
  if not spec.have_labels(task, examples):
    return None
  return np.array([example.label for example in examples], dtype)


def _pair_sequences(
  first: Sequence[str],
  second: Sequence[str | None],
  tokenizer: interface.Tokenizer,
  seq_len: int,
) -> dict[str, Any]:
  """The columns of M sequences, long ones truncated."""
  cls, sep = tokenizer.cls_id, tokenizer.sep_id
  ids_a = _encode(tokenizer, first)
  ids_b = iter(_encode(tokenizer, [b for b in second if b is not None]))
  tokens: list[int] = []
  runs: list[int] = []  # lengths of the two segments, in turn
  num_truncated = 0
  for a, text_b in zip(ids_a, second, strict=True):
    if text_b is None:
      num_truncated += len(a) > seq_len - 2
      a = a[: seq_len - 2]
      tokens += [cls, *a, sep]
      runs += [len(a) + 2, 0]
    else:
      b = next(ids_b)
      keep_a, keep_b = truncated_lengths(len(a), len(b), seq_len - 3)
      num_truncated += keep_a + keep_b < len(a) + len(b)
      tokens += [cls, *a[:keep_a], sep, *b[:keep_b], sep]
      runs += [keep_a + 2, keep_b + 1]
  return {
    "token_ids": np.array(tokens, np.int32),
    "segment_ids": _segments(runs),
    "offsets": _offsets(np.add(runs[::2], runs[1::2])),
    "num_truncated": num_truncated,
  }


def truncated_lengths(a: int, b: int, room: int) -> tuple[int, int]:
  """How much two texts keep when tokens are taken off the longer one.

  What popping one token at a time from the longer text, of two equally long
  ones from the second, comes to.

  Args:
    a: tokens of the first text.
    b: tokens of the second.
    room: tokens that both may have together.

  Returns:
    Tokens kept of the first and of the second.

  Example:
    >>> truncated_lengths(9, 2, 5), truncated_lengths(9, 9, 5)
    ((3, 2), (3, 2))

  Source: google-research/bert run_classifier.py:557-571
  """
  if a + b <= room:
    return a, b
  keep_a = min(a, max(room - b, (room + 1) // 2))
  return keep_a, room - keep_a


def _encode(
  tokenizer: interface.Tokenizer, texts: Sequence[str]
) -> list[list[int]]:
  """Ids of many texts; one that comes again, such as a context, once."""
  distinct = list(dict.fromkeys(texts))
  ids = dict(zip(distinct, tokenizer.encode_batch(distinct), strict=True))
  return [ids[text] for text in texts]


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
  """[M] lengths -> [M + 1] int64, where each sequence starts."""
  return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _segments(runs: Sequence[int]) -> np.ndarray:
  """[2 M] lengths of first and second segments, in turn -> [T] int8."""
  return np.repeat(np.tile(np.array([0, 1], np.int8), len(runs) // 2), runs)


# --- Tags ---


@dataclasses.dataclass
class _Sentence:
  """Pieces of a sentence: ids, and for each its word or IGNORED."""

  ids: list[int]
  words: list[int]


def _tag_features(task, examples, tokenizer, *, seq_len, context) -> Features:
  """[CLS] pieces [SEP]; the first piece of a word carries its label.

  The label of a word is predicted once, at its first piece. A word that the
  tokenizer makes nothing of, such as a control character, becomes [UNK], and
  pieces of a word beyond the whole length are dropped.

  Source: section 5.3
  """
  room = seq_len - 2
  sentences, num_truncated = _cut_words(examples, tokenizer, room)
  if context == "document":
    rows = _document_rows(task, examples, sentences, room)
  else:
    rows = _sentence_rows(sentences, room)
  labels = None
  if spec.have_labels(task, examples):
    labels = [
      [spec.label_id(task, x, f"sentence {e.id}") for x in e.labels]
      for e in examples
    ]
  tokens: list[int] = []
  words: list[int] = []
  label: list[int] = []
  lengths: list[int] = []
  owners: list[int] = []
  for owner, row in rows:
    tokens += [tokenizer.cls_id, *row.ids, tokenizer.sep_id]
    words += [IGNORED, *row.words, IGNORED]
    lengths.append(len(row.ids) + 2)
    owners.append(owner)
    if labels is not None:
      known = labels[owner]
      label += [IGNORED]
      label += [IGNORED if w == IGNORED else known[w] for w in row.words]
      label += [IGNORED]
  return Features(
    token_ids=np.array(tokens, np.int32),
    segment_ids=np.zeros(len(tokens), np.int8),
    offsets=_offsets(lengths),
    example=np.array(owners, np.int32),
    label=None if labels is None else np.array(label, np.int32),
    num_truncated=num_truncated,
    words=np.array(words, np.int32),
    labels=TAGS,
  )


def _cut_words(examples, tokenizer, room) -> tuple[list[_Sentence], int]:
  """The pieces of every sentence, and how many words lost some of theirs."""
  words = [word for example in examples for word in example.words]
  pieces = iter(_encode(tokenizer, words))
  sentences = []
  num_truncated = 0
  for example in examples:
    sentence = _Sentence([], [])
    for index, ids in enumerate(itertools.islice(pieces, len(example.words))):
      num_truncated += len(ids) > room
      ids = ids[:room] or [tokenizer.unk_id]
      sentence.ids += ids
      sentence.words += [index] + [IGNORED] * (len(ids) - 1)
    sentences.append(sentence)
  return sentences, num_truncated


def _parts(words: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
  """Cuts a sentence between words into as few parts as fit.

  Args:
    words: for each piece its word, IGNORED for all but the first.
    room: pieces that a part may have.

  Yields:
    The first piece of each part and the one after its last.
  """
  start = 0
  while len(words) - start > room:
    end = start + room
    while words[end] == IGNORED:
      end -= 1
    yield start, end
    start = end
  yield start, len(words)


def _sentence_rows(sentences, room) -> Iterator[tuple[int, _Sentence]]:
  """(example, what the encoder reads) of each part of each sentence."""
  for owner, sentence in enumerate(sentences):
    for start, end in _parts(sentence.words, room):
      yield owner, _Sentence(sentence.ids[start:end], sentence.words[start:end])


def _document_rows(
  task, examples, sentences, room
) -> Iterator[tuple[int, _Sentence]]:
  """The same, with the words around it, none of which is predicted.

  Source: section 5.3, "the maximal document context provided by the data"
  """
  groups = [
    list(group)
    for _, group in itertools.groupby(
      range(len(examples)), key=lambda i: examples[i].document
    )
  ]
  if len(groups) == len(examples) > 1:
    raise spec.TaskError(
      f"task {task.name}: context='document', but every sentence is a document"
      " of its own, as where a file has no -DOCSTART- lines; use"
      " context='sentence'"
    )
  for group in groups:
    ids = [i for owner in group for i in sentences[owner].ids]
    starts = [w != IGNORED for owner in group for w in sentences[owner].words]
    starts.append(True)
    base = 0
    for owner in group:
      words = sentences[owner].words
      for start, end in _parts(words, room):
        left, right = _surround(base + start, base + end, starts, room)
        row = [IGNORED] * (right - left)
        row[base + start - left : base + end - left] = words[start:end]
        yield owner, _Sentence(ids[left:right], row)
      base += len(words)


def _surround(
  start: int, end: int, is_start: Sequence[bool], room: int
) -> tuple[int, int]:
  """Widens a stretch of a document on both sides, by whole words.

  Args:
    start: its first piece.
    end: the piece after its last.
    is_start: for each piece of the document whether it starts a word, with
      True after the last.
    room: pieces that it may have in the end.

  Returns:
    The first piece, and the one after the last.
  """
  size = len(is_start) - 1
  spare = room - (end - start)
  right = min(size, end + max((spare + 1) // 2, spare - start))
  left = max(0, right - room)
  while not is_start[left]:
    left += 1
  while not is_start[right]:
    right -= 1
  return left, right


# --- Spans ---


def _span_features(
  task, examples, tokenizer, *, seq_len, max_query_len, doc_stride
) -> Features:
  """[CLS] question [SEP] window [SEP], a window every `doc_stride` tokens.

  A window that does not hold the whole answer is kept, with [CLS] as its
  answer, as is every window of a question without one.

  Differs from BERT: the answer is where its characters are. The original goes
  through words between spaces and then looks for the pieces of the answer
  within them, which finds the same pieces wherever it finds any.

  Source: google-research/bert run_squad.py:311-547
  """
  if doc_stride < 1:
    raise spec.TaskError(f"doc_stride={doc_stride} must be at least 1")
  if not 1 <= max_query_len <= seq_len - 4:
    raise spec.TaskError(
      f"max_query_len={max_query_len} must be between 1 and"
      f" seq_len - 4 = {seq_len - 4}, which leaves a token of the text"
    )
  columns = _SpanColumns()
  has_labels = spec.have_labels(task, examples)
  questions = _encode(tokenizer, [e.question for e in examples])
  contexts = {
    text: tokenizer.encode_with_offsets(text)
    for text in dict.fromkeys(e.context for e in examples)
  }
  for owner, example in enumerate(examples):
    query = questions[owner][:max_query_len]
    ids, starts, ends = contexts[example.context]
    windows = list(window_spans(len(ids), seq_len - len(query) - 3, doc_stride))
    best = _best_windows(windows, len(ids))
    answer = _answer_tokens(example, starts, ends)
    for number, (start, end) in enumerate(windows):
      head = [tokenizer.cls_id, *query, tokenizer.sep_id]
      columns.tokens += [*head, *ids[start:end], tokenizer.sep_id]
      columns.runs += [len(head), end - start + 1]
      outside = [IGNORED] * len(head)
      columns.starts += [*outside, *starts[start:end], IGNORED]
      columns.ends += [*outside, *ends[start:end], IGNORED]
      columns.is_best += [False] * len(head)
      columns.is_best += [w == number for w in best[start:end]] + [False]
      columns.owners.append(owner)
      columns.labels.append(_place(answer, start, end, len(head)))
  return columns.features(has_labels, tuple(e.context for e in examples))


@dataclasses.dataclass
class _SpanColumns:
  """Columns of span features while they grow."""

  tokens: list[int] = dataclasses.field(default_factory=list)
  runs: list[int] = dataclasses.field(default_factory=list)
  starts: list[int] = dataclasses.field(default_factory=list)
  ends: list[int] = dataclasses.field(default_factory=list)
  is_best: list[bool] = dataclasses.field(default_factory=list)
  owners: list[int] = dataclasses.field(default_factory=list)
  labels: list[tuple[int, int]] = dataclasses.field(default_factory=list)

  def features(self, has_labels: bool, texts: tuple[str, ...]) -> Features:
    owners = np.array(self.owners, np.int32)
    return Features(
      token_ids=np.array(self.tokens, np.int32),
      segment_ids=_segments(self.runs),
      offsets=_offsets(np.add(self.runs[::2], self.runs[1::2])),
      example=owners,
      label=np.array(self.labels, np.int32) if has_labels else None,
      char_starts=np.array(self.starts, np.int32),
      char_ends=np.array(self.ends, np.int32),
      is_max_context=np.array(self.is_best, bool),
      contexts=texts,
      labels=SPANS,
    )


def window_spans(
  size: int, width: int, stride: int
) -> Iterator[tuple[int, int]]:
  """Windows over a text: first token, and the one after the last.

  Args:
    size: tokens of the text; 0 gives one empty window, so that every example
      has a prediction.
    width: tokens that a window may have.
    stride: tokens between the starts of two windows; no window starts after
      the end of the one before.

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
  """For each token the first window that shows most on its poorer side."""
  if len(windows) == 1:
    return [0] * size
  best, top = np.zeros(size, np.int64), np.full(size, -np.inf)
  for number, (start, end) in enumerate(windows):
    at = np.arange(start, end)
    score = np.minimum(at - start, end - 1 - at) + 0.01 * (end - start)
    better = at[score > top[start:end]]  # of equals the first stays
    top[better], best[better] = score[better - start], number
  return best.tolist()


def _answer_tokens(
  example: spec.SpanExample, starts: Sequence[int], ends: Sequence[int]
) -> tuple[int, int] | None:
  """First and last token of the first answer; None = there is none."""
  if not example.answers:
    return None
  text, first = example.answers[0]
  # Starts and ends both grow, so the tokens that share a character with the
  # answer are one run.
  begin = int(np.searchsorted(ends, first, side="right"))
  end = int(np.searchsorted(starts, first + len(text), side="left")) - 1
  return (begin, end) if begin <= end else None


def _place(
  answer: tuple[int, int] | None, start: int, end: int, shift: int
) -> tuple[int, int]:
  """The answer within a sequence; [CLS] where the window lacks some of it."""
  if answer is None or answer[0] < start or answer[1] >= end:
    return 0, 0
  return answer[0] - start + shift, answer[1] - start + shift


_MAKERS: dict[str, Callable[..., Features]] = {
  "classify": _pair_features,
  "regress": _pair_features,
  "choice": _choice_features,
  "tag": _tag_features,
  "span": _span_features,
}
