"""Tests of what the benchmarks compare: the same text on both sides."""

import collections
import itertools

import numpy as np
import pytest

from bert_jax import batching
from bert_jax import prepare
from experiments.bench import train as bench_train
from experiments.bench import wikipedia
from tests import test_batching
from tests import test_prepare


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
  """One epoch of the same examples, several to a row and one a row."""
  folder = tmp_path_factory.mktemp("bench")
  documents = test_prepare.make_documents(60, seed=5, max_sentences=2)
  text = test_prepare.write_text(folder / "text.txt", documents)
  vocab = test_prepare.write_vocabulary(folder / "vocab.txt")
  config = test_prepare.make_config(vocab, data__seq_len=64)
  config.data.dir = str(folder / "data")
  prepare.prepare(config, [text], config.data.dir)
  made = []
  for config.data.max_sequences in (4, 1):
    batch = batching.PretrainBatches(
      config.data, "validation", seed=0, batch_size=64
    )[0]
    made.append(batch)
  return made


def rows_of(fields):
  """Rows of the reference as a multiset, whatever their order."""
  names = sorted(fields)
  count = len(fields["input_ids"])
  return collections.Counter(
    tuple(fields[name][i].tobytes() for name in names) for i in range(count)
  )


def test_the_reference_trains_on_the_sequences_of_packed_rows(batches):
  packed, plain = batches
  used = plain["weight"] > 0
  plain = {name: value[used] for name, value in plain.items()}
  assert (packed["weight"].sum(1) > 1).any()
  got, want = bench_train.one_a_row(packed), bench_train.one_a_row(plain)
  want = {name: value.astype(got[name].dtype) for name, value in want.items()}
  assert rows_of(got) == rows_of(want)
  assert (got["labels"] >= 0).sum() == packed["masked_weights"].sum() > 20


def test_labels_of_the_reference_are_the_masked_tokens(batches):
  _, plain = batches
  fields = bench_train.one_a_row(plain)
  whole = np.where(fields["labels"] >= 0, fields["labels"], fields["input_ids"])
  np.testing.assert_array_equal(whole, test_batching.restore(plain))


def test_cut_documents_hold_every_sentence_in_order():
  sentences = [f"{'word ' * (i % 30)}number {i}" for i in range(5_000)]
  first, again, other = (
    list(wikipedia.cut(sentences, seed)) for seed in (0, 0, 1)
  )
  assert list(itertools.chain(*first)) == sentences
  assert first == again != other
  words = [sum(len(x.split()) for x in document) for document in first]
  # Log-normal: the mean is far above the median, and some are very long.
  assert np.median(words) < 0.5 * np.mean(words) < 0.1 * max(words)
