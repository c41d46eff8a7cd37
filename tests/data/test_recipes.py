"""Tests of examples and masks of ALBERT and ModernBERT."""

import random

import numpy as np
import pytest

from bert_jax.data import batching
from bert_jax.data import masking
from bert_jax.data import packing
from bert_jax.data import pairing
from bert_jax.data import prepare
from bert_jax.data.store import manifests
from tests.support import corpora


def pairs_of(boundaries, max_tokens, seed=0, short=0.0):
  rng = random.Random(seed)
  return list(pairing.ordered_pairs(boundaries, max_tokens, short, rng))


def test_ordered_pairs_hold_every_token_once_in_order_or_swapped():
  rng = np.random.default_rng(0)
  labels = []
  for seed in range(200):
    sizes = rng.integers(1, 9, 20)
    boundaries = np.concatenate([[3], 3 + np.cumsum(sizes)]).tolist()
    found = pairs_of(boundaries, 16, seed)
    spans = []
    for a, b, a_length, b_length, is_swapped in found:
      first, second = ((a, a_length), (b, b_length))[:: -1 if is_swapped else 1]
      assert first[0] + first[1] == second[0]  # one follows the other
      assert 2 <= a_length + b_length <= 16 and min(a_length, b_length) > 0
      spans += range(first[0], second[0] + second[1])
      labels.append(is_swapped)
    assert spans == sorted(set(spans))
    # Only a sentence of one token that is left alone is lost.
    assert boundaries[-1] - 3 - len(spans) <= (sizes == 1).sum()
  assert 0.45 < np.mean(labels) < 0.55


def test_a_single_sentence_is_cut_in_its_middle():
  ((a, b, a_length, b_length, is_swapped),) = pairs_of([10, 17], 20)
  assert sorted([(a, a_length), (b, b_length)]) == [(10, 3), (13, 4)]
  assert is_swapped == (a > b)
  assert pairs_of([10, 11], 20) == []
  ((*_, a_length, b_length, _),) = pairs_of([0, 30], 20)
  assert a_length + b_length == 20


WORDS = [[5], [6, 7], [8], [9, 10, 11], [12], [13], [14, 15], [16], [17], [18]]


def masked(most_words, num_rows=400):
  pieces = [piece for word in WORDS for piece in word]
  continues = np.zeros(20, bool)
  continues[[piece for word in WORDS for piece in word[1:]]] = True
  row = [2, *pieces, 3]
  ids = np.array([row] * num_rows)
  candidates = (ids != 2) & (ids != 3)
  masks = masking.mask_batch(
    ids, candidates, np.full(num_rows, len(row)), np.arange(num_rows),
    np.zeros(num_rows, int), seed=1, slots=6, vocab_size=20, mask_id=4,
    mask_rate=0.4, mask_token_rate=1.0, random_token_rate=0.0,
    continues_word=continues, most_words=most_words,
  )  # fmt: skip
  return masks[0] == 4


def test_runs_are_of_whole_words():
  for most_words in (1, 3):
    chosen = masked(most_words)
    at = 1
    for word in WORDS:
      part = chosen[:, at : at + len(word)]
      assert (part.all(1) | ~part.any(1)).all()
      at += len(word)
    assert chosen.sum(1).max() <= 6 and chosen.sum(1).mean() > 5
  # Runs make neighbors more frequent.
  near = [(m[:, :-1] & m[:, 1:]).sum() for m in (masked(1), masked(3))]
  assert near[1] > 1.1 * near[0]


def test_runs_have_their_shares():
  keys = masking.hash_uniform(0, np.arange(20_000))[:, None]
  found = masking._draw_runs(keys, np.arange(1)[None], 3)
  shares = np.bincount(found.ravel(), minlength=4)[1:] / 20_000
  np.testing.assert_allclose(shares, [6 / 11, 3 / 11, 2 / 11], atol=0.012)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("recipes")
  documents = corpora.make_documents(60, seed=5, max_sentences=6)
  text = corpora.write_text(folder / "text.txt", documents)
  vocab = corpora.write_vocabulary(folder / "vocab.txt")
  for kind in ("documents", "ordered_pairs"):
    config = corpora.make_config(
      vocab, data__seq_len=32, data__pairing=kind, data__dupe_factor=2
    )
    prepare.prepare(config, [text], str(folder / "data"))
  return str(folder / "data"), vocab


def batches_of(folder, kind, **values):
  data = corpora.make_config(
    folder[1], data__seq_len=32, data__pairing=kind, data__dupe_factor=2,
    data__dir=folder[0], **values,
  ).data  # fmt: skip
  return batching.PretrainBatches(data, "train", seed=0, batch_size=32)


def test_examples_of_documents_end_where_documents_do(folder):
  batches = batches_of(folder, "documents", data__random_token_rate=0.0)
  ids = np.concatenate([batches[i]["input_ids"] for i in range(len(batches))])
  sep = batches._tokenizer.sep_id
  assert ((ids == sep).sum(1) == 1).all()  # the one at the end of the row
  tokens = manifests.read_manifest(folder[0])["totals"]["train"]["tokens"]
  total = sum(
    int(batches[i]["input_mask"][batches[i]["weight"] > 0].sum())
    for i in range(len(batches))
  )
  assert total - 2 * batches.num_examples == 2 * tokens


def test_ordered_pairs_have_labels_and_two_types(folder):
  batch = batches_of(folder, "ordered_pairs")[0]
  assert set(batch["segment_ids"].ravel()) == {0, 1}
  assert 0 < batch["nsp_label"].sum() < 32


@pytest.mark.parametrize(
  ("seq_len", "max_sequences"),
  [(1024, 16), pytest.param(8192, 64, marks=pytest.mark.slow)],
)
def test_documents_fill_rows(seq_len, max_sequences):
  """Lengths as of web pages: half of them below 500 tokens, a few very long."""
  rng = np.random.default_rng(0)
  documents = np.maximum(rng.lognormal(np.log(500), 1.1, 20_000), 10)
  whole, rest = np.divmod(documents.astype(int), seq_len - 2)
  lengths = np.append(np.full(whole.sum(), seq_len), rest[rest > 0] + 2)
  found = packing.pack_histogram(
    np.bincount(lengths, minlength=seq_len + 1), seq_len, max_sequences
  )
  assert found.num_tokens == lengths.sum()
  assert found.num_tokens / (found.num_rows * seq_len) > 0.99


def test_runs_need_whole_words(folder):
  with pytest.raises(ValueError, match="mask_ngrams=3.*whole_word"):
    batches_of(folder, "documents", data__mask_ngrams=3)
