"""Tests of the features of every kind of task."""

import dataclasses
import itertools
import pathlib
import time

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import load
from bert_jax.data.tokenizers import wordpiece
from bert_jax.kinds import span
from bert_jax.kinds import table
from bert_jax.kinds import tag
from bert_jax.tasks import TASKS
from bert_jax.tasks import features
from bert_jax.tasks import read_examples
from bert_jax.tasks import spec

DATA = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
WORDS = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmno")]
TOKENIZER = wordpiece.WordPieceTokenizer(
  [*interface.SPECIAL_TOKENS, *WORDS, ".", "(", ")"]
)


def make(name, examples, **options):
  options = {"seq_len": 12} | options
  task = TASKS[name]
  return table.of_task(task).make_features(task, examples, TOKENIZER, **options)


def sequences(made, column=None):
  """Pieces (or a column) of every sequence."""
  if column is None:
    column = [TOKENIZER.token(i) for i in made.token_ids]
  return [
    list(column[a:b]) for a, b in itertools.pairwise(made.offsets.tolist())
  ]


def text_of(made):
  return [" ".join(pieces) for pieces in sequences(made)]


# --- Texts, pairs, choices ---


def test_texts_and_pairs_have_their_special_tokens_segments_and_labels():
  examples = [
    spec.PairExample("x", "a b", "c", 2),
    spec.PairExample("y", "a", "", 0),
    spec.PairExample("z", "", "b", 1),
  ]
  made = make("mnli", examples)
  assert text_of(made) == [
    "[CLS] a b [SEP] c [SEP]",
    "[CLS] a [SEP] [SEP]",
    "[CLS] [SEP] b [SEP]",
  ]
  assert sequences(made, made.segment_ids) == [
    [0, 0, 0, 0, 1, 1],
    [0, 0, 0, 1],
    [0, 0, 1, 1],
  ]
  assert made.label.tolist() == [2, 0, 1]
  assert made.lengths.tolist() == [6, 4, 4]
  assert made.example.tolist() == [0, 1, 2]
  assert (len(made), made.num_choices, made.cut.num_cut) == (3, 1, 0)
  single = make("cola", [spec.PairExample("x", "a b c", None, 1)], seq_len=5)
  assert text_of(single) == ["[CLS] a b c [SEP]"]
  assert single.segment_ids.tolist() == [0] * 5


def test_columns_have_the_types_of_the_batcher():
  made = make("stsb", [spec.PairExample("x", "a", "b", 2.5)])
  assert made.token_ids.dtype == made.example.dtype == np.int32
  assert (made.segment_ids.dtype, made.offsets.dtype) == (np.int8, np.int64)
  assert (made.label.dtype, made.label.tolist()) == (np.float32, [2.5])
  assert make("cola", [spec.PairExample("x", "a", None, 1)]).label.dtype == (
    np.int32
  )


def popped(a, b, room):
  """The original's loop."""
  while a + b > room:
    if a > b:
      a -= 1
    else:
      b -= 1
  return a, b


@hypothesis.given(
  a=st.integers(0, 40), b=st.integers(0, 40), n=st.integers(2, 40)
)
def test_truncation_equals_popping_from_the_longer(a, b, n):
  assert features.truncated_lengths(a, b, n) == popped(a, b, n)


def test_long_texts_are_truncated_and_counted():
  pair = spec.PairExample("x", "a b c d e", "f g h i", 0)
  made = make("mrpc", [pair, spec.PairExample("y", "a", "b", 1)], seq_len=8)
  assert text_of(made)[0] == "[CLS] a b c [SEP] f g [SEP]"
  assert made.cut.num_cut == 1
  made = make("cola", [spec.PairExample("x", "a b c d", None, 0)], seq_len=5)
  assert text_of(made) == ["[CLS] a b c [SEP]"]


def test_choices_lie_one_after_the_other():
  examples = [
    spec.ChoiceExample("x", (("a", "b"), ("a", "c d")), 1),
    spec.ChoiceExample("y", (("e", "f"), ("e", "g")), 0),
  ]
  made = make("swag", examples)
  assert text_of(made) == [
    "[CLS] a [SEP] b [SEP]",
    "[CLS] a [SEP] c d [SEP]",
    "[CLS] e [SEP] f [SEP]",
    "[CLS] e [SEP] g [SEP]",
  ]
  assert (len(made), made.num_choices) == (2, 2)
  assert made.label.tolist() == [1, 0]
  with pytest.raises(
    spec.TaskError, match="example z has 1 choices, .* x has 2"
  ):
    make("swag", [*examples, spec.ChoiceExample("z", (("a", "b"),), 0)])


def test_a_split_without_labels_has_none_and_half_a_split_is_refused():
  bare = spec.PairExample("x", "a", None, None)
  assert make("cola", [bare]).label is None
  with pytest.raises(
    spec.TaskError, match="example x has no label, but others"
  ):
    make("cola", [spec.PairExample("w", "a", None, 1), bare])


def test_impossible_settings_are_refused():
  example = [spec.PairExample("x", "a", None, 1)]
  question = [spec.SpanExample("x", "a", "b", (("b", 0),), False)]
  for match, call in (
    ("no examples", lambda: make("cola", [])),
    ("seq_len=4 leaves no room", lambda: make("cola", example, seq_len=4)),
    ("context='page'; use",
     lambda: make("wnut17", [sentence("a")], context="page")),
    ("doc_stride=0", lambda: make("squad_v1", question, doc_stride=0)),
    ("max_query_len=64 must be from 1 to 8",
     lambda: make("squad_v1", question)),
  ):  # fmt: skip
    with pytest.raises(spec.TaskError, match=match):
      call()


# --- Tags ---


def sentence(text, document=0, labels=None):
  words = tuple(text.split())
  labels = labels.split() if labels else ["O"] * len(words)
  return spec.TagExample("0", words, tuple(labels), document)


def test_the_first_piece_of_a_word_carries_its_label():
  made = make("conll2003", [sentence("ab c \u200b", labels="B-PER I-PER O")])
  assert text_of(made) == ["[CLS] a ##b c [UNK] [SEP]"]
  assert made.label.tolist() == [-1, 1, -1, 2, 0, -1]
  assert made.words.tolist() == [-1, 0, -1, 1, 2, -1]
  assert made.segment_ids.tolist() == [0] * 6


def test_long_sentences_are_cut_between_words():
  made = make("conll2003", [sentence("a bcd e fg hijkl")], seq_len=6)
  assert text_of(made) == [
    "[CLS] a ##b ##c ##d [SEP]".replace("a ##b ##c ##d", "a b ##c ##d"),
    "[CLS] e f ##g [SEP]",
    "[CLS] h ##i ##j ##k [SEP]",
  ]
  assert made.example.tolist() == [0, 0, 0]
  cut = made.cut  # the l of the last word
  assert (cut.num_cut, cut.total, cut.lost_tokens, cut.tokens) == (1, 5, 1, 12)
  assert cut.longest == 7


LETTERS = st.text("abcdefgh", min_size=1, max_size=7)
SENTENCES = st.lists(
  st.lists(st.lists(LETTERS, min_size=1, max_size=9), min_size=2, max_size=4),
  min_size=1,
  max_size=3,
)


@hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
@hypothesis.given(
  documents=SENTENCES,
  seq_len=st.integers(5, 20),
  context=st.sampled_from(tag.CONTEXTS),
)
def test_every_word_is_predicted_once_whatever_the_context(
  documents, seq_len, context
):
  examples = [
    sentence(" ".join(words), document)
    for document, group in enumerate(documents)
    for words in group
  ]
  made = make("conll2003", examples, seq_len=seq_len, context=context)
  owners = np.repeat(made.example, made.lengths)
  found = [
    (owner, word)
    for owner, word in zip(owners.tolist(), made.words.tolist(), strict=True)
    if word >= 0
  ]
  assert sorted(found) == found
  assert found == [
    (i, j) for i, e in enumerate(examples) for j in range(len(e.words))
  ]
  assert made.lengths.max() <= seq_len
  assert ((made.label >= 0) == (made.words >= 0)).all()
  pieces = [TOKENIZER.token(i) for i in made.token_ids]
  for (owner, word), at in zip(
    found, np.nonzero(made.words >= 0)[0], strict=True
  ):
    assert pieces[at] == examples[owner].words[word][0]


def test_document_context_fills_the_length_with_the_neighbours():
  examples = [sentence("a b"), sentence("c"), sentence("d e"), sentence("z", 1)]
  made = make("conll2003", examples, seq_len=6, context="document")
  assert text_of(made) == [
    "[CLS] a b c d [SEP]",
    "[CLS] b c d e [SEP]",
    "[CLS] b c d e [SEP]",
    "[CLS] z [SEP]",
  ]
  assert sequences(made, made.words) == [
    [-1, 0, 1, -1, -1, -1],
    [-1, -1, 0, -1, -1, -1],
    [-1, -1, -1, 0, 1, -1],
    [-1, 0, -1],
  ]
  with pytest.raises(
    spec.TaskError, match="every sentence is its own document"
  ):
    make("conll2003", [examples[0], examples[3]], context="document")


# --- Spans ---


def test_a_short_context_is_one_window():
  example = spec.SpanExample("x", "a b", "c (de) f", (("de", 3),), False)
  made = make("squad_v1", [example], max_query_len=2)
  assert text_of(made) == ["[CLS] a b [SEP] c ( d ##e ) f [SEP]"]
  assert made.segment_ids.tolist() == [0] * 4 + [1] * 7
  assert made.label.tolist() == [[6, 7]]
  assert made.char_starts.tolist() == [-1] * 4 + [0, 2, 3, 4, 5, 7, -1]
  assert made.char_ends.tolist() == [-1] * 4 + [1, 3, 4, 5, 6, 8, -1]
  assert made.is_max_context.tolist() == [False] * 4 + [True] * 6 + [False]
  assert made.contexts == ("c (de) f",)


def test_windows_overlap_and_those_without_the_answer_point_at_cls():
  context = "a b c d e f g h i j"
  example = spec.SpanExample("x", "z z z", context, (("e f", 8),), False)
  made = make("squad_v1", [example], seq_len=11, max_query_len=2, doc_stride=3)
  assert text_of(made) == [
    "[CLS] z z [SEP] a b c d e f [SEP]",
    "[CLS] z z [SEP] d e f g h i [SEP]",
    "[CLS] z z [SEP] g h i j [SEP]",
  ]
  assert made.label.tolist() == [[8, 9], [5, 6], [0, 0]]
  assert made.example.tolist() == [0, 0, 0]
  # e has one token on its poorer side in both of its windows, so the first is
  # the best; h has one too, and its longer window is the best.
  assert [
    "".join("01"[flag] for flag in flags[4:-1])
    for flags in sequences(made, made.is_max_context.tolist())
  ] == ["111110", "001110", "0011"]


def best_window(windows, position):
  """As the original compares them."""
  best, best_score = None, None
  for number, (start, end) in enumerate(windows):
    if start <= position < end:
      score = min(position - start, end - 1 - position) + 0.01 * (end - start)
      if best_score is None or score > best_score:
        best, best_score = number, score
  return best


@hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
@hypothesis.given(
  size=st.integers(1, 60), width=st.integers(1, 20), stride=st.integers(1, 25)
)
def test_every_token_has_one_best_window(size, width, stride):
  windows = list(span.window_spans(size, width, stride))
  assert windows[0][0] == 0
  assert windows[-1][1] == size
  for (a, b), (c, d) in itertools.pairwise(windows):
    assert a < c <= b < d
  assert span._best_windows(windows, size) == [
    best_window(windows, position) for position in range(size)
  ]


def test_the_windows_of_a_long_text_take_memory_by_its_length():
  """All tokens times all windows would be 10 GB."""
  size = 100_000
  windows = list(span.window_spans(size, 16, 8))
  best = span._best_windows(windows, size)
  assert len(best) == size
  assert best[:13] == [0] * 12 + [1]  # 8 .. 11 see more in the first


def test_questions_without_answers_point_at_cls_or_have_no_label():
  example = spec.SpanExample("x", "a", "b c", (), True)
  assert make("squad_v2", [example], max_query_len=1).label.tolist() == [[0, 0]]
  bare = dataclasses.replace(example, is_impossible=False)
  assert make("squad_v2", [bare], max_query_len=1).label is None


def test_an_empty_context_still_has_a_window():
  made = make(
    "squad_v2", [spec.SpanExample("x", "a", " ", (), True)], max_query_len=1
  )
  assert text_of(made) == ["[CLS] a [SEP] [SEP]"]


def test_part_of_a_word_is_answered_by_the_pieces_that_hold_it():
  example = spec.SpanExample("x", "a", "(abc) d", (("b", 2),), False)
  made = make("squad_v1", [example], max_query_len=1)
  (label,) = made.label
  assert sequences(made)[0][label[0] : label[1] + 1] == ["##b"]


# --- Real data ---


@pytest.fixture(scope="module")
def real():
  path = DATA / "vocab" / "bert-base-uncased" / "vocab.txt"
  if not path.exists() or not (DATA / "glue").is_dir():
    pytest.skip("no vocabulary or data at ../shared/data")
  return load.load_tokenizer(path)


def test_the_largest_training_set_takes_seconds(real):
  task = TASKS["sst2"]
  examples = read_examples(task, str(DATA / "glue"), "train")
  start = time.perf_counter()
  made = table.of_task(task).make_features(task, examples, real, seq_len=128)
  assert time.perf_counter() - start < 20  # 0.4 s on an idle machine
  assert len(made) == len(examples)
  assert made.lengths.max() <= 128


def test_labels_of_real_questions_spell_the_answers(real):
  task = TASKS["squad_v1"]
  path = DATA / "squad" / "small-v1.1-train.json"
  examples = read_examples(
    task, "", "train", files={"train": str(path)}, max_examples=2000
  )
  made = table.of_task(task).make_features(task, examples, real, seq_len=384)
  same = answered = 0
  for unit, (start, end) in enumerate(made.label.tolist()):
    if (start, end) != (0, 0):
      answered += 1
      at = made.offsets[unit]
      example = examples[made.example[unit]]
      first, last = made.char_starts[at + start], made.char_ends[at + end]
      text, place = example.answers[0]
      assert first <= place < place + len(text) <= last
      same += example.context[first:last] == text
  assert answered >= 2000
  assert same / answered > 0.99  # "Japan" in "Japanese" has no tokens


def test_choices_that_vary_in_number_are_filled_up_and_left_out():
  few = spec.ChoiceExample("x", (("a", "b"), ("a", "c d")), 1)
  many = spec.ChoiceExample("y", (("e", "f"), ("e", "g"), ("e", "h")), 0)
  made = make("swag", [few, many])
  assert (made.num_choices, made.counts.tolist()) == (3, [2, 3])
  assert made.lengths.tolist() == [5, 6, 0, 5, 5, 5]
  kind = table.TASK_KINDS["choice"]
  outputs = np.array([[1.0], [2.0], [9.0], [0.0], [3.0], [1.0]])
  first, second = kind.decode(TASKS["swag"], made, outputs)
  assert (first.label, second.label) == (1, 1)
  assert len(first.probabilities) == 2 and len(second.probabilities) == 3
  np.testing.assert_allclose(sum(first.probabilities), 1.0)
  batch = {
    "label": np.array([[1, 0]]),
    "weight": np.ones((1, 2), np.float32),
    "num_choices": made.counts[None],
  }
  total, weight = kind.loss(np.array(outputs, np.float32)[None], batch)
  wanted = np.log1p(np.exp(-1.0)) + np.log(1 + np.exp(3.0) + np.exp(1.0))
  np.testing.assert_allclose([total, weight], [wanted, 2.0], rtol=1e-5)


def test_what_is_cut_is_counted_with_its_share():
  long = spec.PairExample("x", "a b c d", None, 0)
  made = make("cola", [long, spec.PairExample("y", "a", None, 1)], seq_len=5)
  cut = made.cut
  assert (cut.num_cut, cut.total, cut.longest) == (1, 2, 6)
  assert (cut.lost_tokens, cut.tokens) == (1, 9)
  assert "data.seq_len, to 8" in cut.advice(max_len=64)
  assert "model.max_len=5" in cut.advice(max_len=5)


def test_a_longer_question_may_need_a_longer_row():
  def advice(longest, max_len):
    cut = features.Cut(
      "questions", 1, 2, 3, 9, longest, "task.max_query_len", 8, 64
    )
    return cut.advice(max_len)

  assert advice(12, 64) == "raise task.max_query_len to 12"
  assert "data.seq_len=64" in advice(60, 128)
  assert "data.seq_len=64 is all" in advice(60, 64)
