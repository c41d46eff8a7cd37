"""Long texts as windows, whose outputs are pooled."""

import numpy as np
import pytest

from bert_jax.data import packing
from bert_jax.data import task_batches
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import wordpiece
from bert_jax.kinds import table
from bert_jax.kinds import windows
from bert_jax.tasks import features as task_features
from bert_jax.tasks import spec

LETTERS = "abcdefghijklmnopqrst"
TOKENIZER = wordpiece.WordPieceTokenizer([*interface.SPECIAL_TOKENS, *LETTERS])
TASK = spec.Task("made", "classify", lambda *_: [], (), labels=("no", "yes"))


def text(count):
  return " ".join(LETTERS[:count])


def spelled(ids):
  return "".join(TOKENIZER.token(i)[:1] for i in ids)  # "[" is a special token


def windows_of(*texts, seq_len=7, stride=3):
  found, is_cut = windows.sequences(
    TOKENIZER, [TOKENIZER.encode(x) for x in texts], seq_len, stride
  )
  return [spelled(ids) for ids, _ in found], is_cut


def test_windows_of_a_text_by_hand():
  assert windows_of(text(5)) == (["[abcde["], False)
  assert windows_of(text(6)) == (["[abcde[", "[def["], False)
  assert windows_of(text(11), stride=4) == (
    ["[abcde[", "[efghi[", "[ijk["], False,
  )  # fmt: skip


def test_no_token_is_left_out_if_the_stride_is_too_long():
  found, _ = windows_of(text(12), stride=100)
  assert found == ["[abcde[", "[fghij[", "[kl["]


def test_the_first_text_of_a_pair_is_in_each_window():
  assert windows_of("t", text(5), seq_len=8, stride=2) == (
    ["[t[abcd[", "[t[cde["], False,
  )  # fmt: skip
  found, is_cut = windows_of(text(9), text(4), seq_len=9, stride=9)
  assert is_cut and found == ["[abc[abc[", "[abc[d["]
  assert windows_of(text(3), text(2), seq_len=8) == (["[abc[ab["], False)


@pytest.fixture
def features():
  examples = [
    spec.PairExample(str(i), text(count), None, i % 2)
    for i, count in enumerate((4, 12, 6))
  ]
  return table.KINDS["classify"].make_features(
    TASK, examples, TOKENIZER, seq_len=7, long_texts="mean", doc_stride=5
  )


def test_windows_have_the_label_of_their_text_and_weigh_as_one(features):
  assert features.example.tolist() == [0, 1, 1, 1, 2, 2]
  assert features.label.tolist() == [0, 1, 1, 1, 0, 0]
  np.testing.assert_allclose(
    features.weights, [1, 1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2]
  )
  rows = task_batches.Rows(features, row_len=16, slots=4, pad_id=0)
  units = np.array([3, 0, 4])
  layout = packing.one_a_row(features.lengths[units])
  batch = rows.fill(units, layout, 3)
  np.testing.assert_allclose(batch["weight"][:, 0], [1 / 3, 1, 1 / 2])
  assert batch["weight"].sum() == pytest.approx(1 / 3 + 1 + 1 / 2)


@pytest.mark.parametrize(
  ("how", "wanted"),
  [("mean", [[1, 0], [3, 2], [2, 8]]), ("max", [[1, 0], [6, 4], [4, 9]])],
)
def test_outputs_are_pooled_by_text(features, how, wanted):
  outputs = np.array([[1, 0], [0, 2], [3, 4], [6, 0], [4, 7], [0, 9.0]])
  np.testing.assert_allclose(windows.pool(features, outputs, how), wanted)
  kind = table.KINDS["classify"]
  found = kind.decode(TASK, features, outputs, long_texts=how)
  assert [p.label for p in found] == np.argmax(wanted, 1).tolist()


def test_cut_texts_are_left_as_they_are():
  examples = [spec.PairExample("0", text(12), None, 0)]
  make = table.KINDS["classify"].make_features
  plain = make(TASK, examples, TOKENIZER, seq_len=7)
  cut = make(
    TASK, examples, TOKENIZER, seq_len=7, long_texts="cut", doc_stride=5
  )
  assert plain.weights is cut.weights is None
  for name in ("token_ids", "offsets", "example", "label"):
    np.testing.assert_array_equal(getattr(plain, name), getattr(cut, name))
  assert isinstance(cut.cut, task_features.Cut)


def test_of_a_long_text_the_first_window_can_be_read_alone():
  examples = [spec.PairExample("0", text(12), None, 0)]
  make = table.KINDS["classify"].make_features
  options = {"seq_len": 7, "doc_stride": 5}
  first = make(TASK, examples, TOKENIZER, long_texts="first", **options)
  every = make(TASK, examples, TOKENIZER, long_texts="mean", **options)
  assert first.example.tolist() == [0] and len(every) == 3
  size = first.offsets[1]
  np.testing.assert_array_equal(first.token_ids, every.token_ids[:size])
  outputs = np.array([[1.0, 2.0]])
  assert windows.pool(first, outputs, "first").tolist() == outputs.tolist()
