"""Tests of batching.py."""

import os
import pathlib
import shutil

import numpy as np
import pytest
from scipy import stats

from bert_jax.data import batching
from bert_jax.data import masking
from bert_jax.data import orders
from bert_jax.data import packing
from bert_jax.data import prepare
from bert_jax.data.store import indexes
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.data.tokenizers import load
from tests.support import breadth
from tests.support import corpora
from tests.support.batch_checks import alone
from tests.support.batch_checks import contents
from tests.support.batch_checks import restore
from tests.support.batch_checks import sequences

PAD, CLS, SEP, MASK = 0, 2, 3, 4
KINDS = {
  "pairs": {},
  "full_sentences": dict(data__pairing="full_sentences"),
  "whole_word": dict(data__whole_word=True),
  "static": dict(data__static_masks=True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Prepared data of both kinds, length 32."""
  folder = tmp_path_factory.mktemp("batches")
  text = corpora.write_text(folder / "text.txt", corpora.make_documents(50))
  vocab = corpora.write_vocabulary(folder / "vocab.txt")
  data = str(folder / "data")
  for kind in ("pairs", "full_sentences"):
    config = corpora.make_config(vocab, data__pairing=kind)
    prepare.prepare(config, [text], data)
  return data


@pytest.fixture(scope="module")
def short(tmp_path_factory):
  """The same of short documents, so that sequences share rows."""
  folder = tmp_path_factory.mktemp("short")
  documents = corpora.make_documents(240, seed=5, max_sentences=2)
  text = corpora.write_text(folder / "text.txt", documents)
  vocab = corpora.write_vocabulary(folder / "vocab.txt")
  for kind in ("pairs", "full_sentences"):
    config = corpora.make_config(vocab, data__pairing=kind, data__seq_len=64)
    prepare.prepare(config, [text], str(folder / "data"))
  return str(folder / "data")


@pytest.fixture
def copy(folder, tmp_path):
  """A copy of the data, to be damaged."""
  return pathlib.Path(shutil.copytree(folder, tmp_path / "data"))


@pytest.fixture
def short_copy(short, tmp_path):
  """A copy of the short documents."""
  return pathlib.Path(shutil.copytree(short, tmp_path / "data"))


def settings(folder, **changes):
  config = corpora.make_config("", **changes)
  config.data.dir = str(folder)
  return config.data


def open_batches(folder, split="train", seed=1, batch_size=8, **kwargs):
  data = settings(
    folder, **{k: kwargs.pop(k) for k in list(kwargs) if "__" in k}
  )
  return batching.PretrainBatches(
    data, split, seed=seed, batch_size=batch_size, **kwargs
  )


def assert_same(a, b):
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def reconstruct(folder, data, split):
  """Every example of a split, token by token: (ids, segments, label)."""
  store, _ = corpora.open_split(folder, split)
  result = []
  for example in batching.open_examples(data, split).read(
    np.arange(len(batching.open_examples(data, split)))
  ):
    a_start, b_start, a_length, b_length, is_random = example.tolist()
    a = corpora.span(store, a_start, a_length)
    ids, segments = [CLS, *a, SEP], [0] * (a_length + 2)
    if b_length:
      ids += [*corpora.span(store, b_start, b_length), SEP]
      segments += [1] * (b_length + 1)
    result.append((ids, segments, is_random))
  return result


# -- what a batch holds ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", records.SPLITS)
def test_an_epoch_holds_every_example_once_as_reconstructed(
  folder, kind, split
):
  expected = sorted(
    (tuple(ids), tuple(segments), label)
    for ids, segments, label in reconstruct(
      folder, settings(folder, **KINDS[kind]), split
    )
  )
  batches = open_batches(folder, split, **KINDS[kind])
  assert batches.num_examples == len(expected)
  assert len(batches) == -(-len(expected) // 8)
  found = [r for i in range(len(batches)) for r in contents(batches[i])]
  assert sorted(found) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_types_and_padding(folder, kind):
  batch = open_batches(folder, num_steps=3, **KINDS[kind])[2]
  B, L, P = 8, 32, 5
  shapes = {
    "input_ids": (B, L), "input_mask": (B, L), "segment_ids": (B, L),
    "masked_positions": (B, P), "masked_ids": (B, P), "masked_weights": (B, P),
    "nsp_label": (B,), "weight": (B,),
  }  # fmt: skip
  assert {k: v.shape for k, v in batch.items()} == shapes
  floats = {"masked_weights", "weight"}
  for key, value in batch.items():
    assert value.dtype == (np.float32 if key in floats else np.int32), key
  padding = batch["input_mask"] == 0
  assert (np.diff(batch["input_mask"], axis=1) <= 0).all()
  for key in ("input_ids", "segment_ids"):
    assert not batch[key][padding].any()
  assert (batch["input_ids"][:, 0] == CLS).all()
  last = batch["input_mask"].sum(1) - 1
  assert (batch["input_ids"][np.arange(B), last] == SEP).all()


@pytest.mark.parametrize("most", [1, 4])
def test_batches_have_the_shapes_that_are_declared(short, most):
  changes = dict(data__seq_len=64, data__max_sequences=most)
  batch = open_batches(short, num_steps=2, **changes)[1]
  declared = batching.pretraining_shapes(settings(short, **changes), 8)
  assert {k: (x.shape, x.dtype) for k, x in batch.items()} == declared


@pytest.mark.parametrize("kind", KINDS)
def test_no_special_token_is_predicted_and_the_number_is_right(folder, kind):
  batches = open_batches(folder, num_steps=20, **KINDS[kind])
  rows = 0
  for step in range(20):
    batch = batches[step]
    used = batch["masked_weights"] > 0
    assert not np.isin(batch["masked_ids"][used], [PAD, CLS, SEP]).any()
    lengths = batch["input_mask"].sum(1)
    wanted = masking.num_to_predict(lengths, 0.15, 5)
    if kind == "whole_word":
      assert (used.sum(1) <= wanted).all()
      rows += (used.sum(1) == wanted).sum()
    else:
      np.testing.assert_array_equal(used.sum(1), wanted)
  assert kind != "whole_word" or rows > 0.8 * 160


def test_whole_words_are_chosen_whole(folder):
  batch = open_batches(folder, num_steps=1, data__whole_word=True,
                       batch_size=128)[0]  # fmt: skip
  vocab = load.load_tokenizer(os.path.join(folder, "vocab"))
  ids = restore(batch)
  chosen = np.zeros(ids.shape, bool)
  rows, slots = np.nonzero(batch["masked_weights"])
  chosen[rows, batch["masked_positions"][rows, slots]] = True
  joins = vocab.continues_word()[ids[:, 1:]]
  # A piece that goes on is chosen with the one before, but after [SEP].
  joins &= ids[:, :-1] != SEP
  joins &= ids[:, :-1] != CLS
  assert (chosen[:, 1:] == chosen[:, :-1])[joins].all()
  assert (chosen[:, 1:] & joins).sum() > 50


def test_other_settings_of_masking_are_passed_on(folder):
  batches = open_batches(
    folder, num_steps=10, batch_size=32, data__mask_rate=0.4,
    data__max_predictions=9, data__mask_token_rate=0.0,
    data__random_token_rate=0.0,
  )  # fmt: skip
  for step in range(10):
    batch = batches[step]
    assert batch["masked_ids"].shape == (32, 9)
    lengths = batch["input_mask"].sum(1)
    wanted = np.clip(np.rint(lengths * 0.4), 1, 9)
    np.testing.assert_array_equal(batch["masked_weights"].sum(1), wanted)
    np.testing.assert_array_equal(restore(batch), batch["input_ids"])
    assert not (batch["input_ids"] == MASK).any()


# -- order ---


@pytest.mark.parametrize(
  ("count", "seed"),
  breadth.slow_but(
    [(n, seed) for n in (1, 2, 3, 7, 64, 1000) for seed in (0, 1, 2**40)],
    lambda count, seed: seed == 2**40,
  ),
)
def test_every_epoch_is_a_permutation(count, seed):
  order = orders.Order(count, seed)
  ids, epochs = order(np.arange(3 * count))
  np.testing.assert_array_equal(epochs, np.repeat(np.arange(3), count))
  for epoch in range(3):
    np.testing.assert_array_equal(np.sort(ids[epochs == epoch]),
                                  np.arange(count))  # fmt: skip
  # Any places, asked in any order.
  places = np.random.default_rng(0).integers(0, 3 * count, 50)
  np.testing.assert_array_equal(order(places)[0], ids[places])


def test_epochs_and_seeds_have_unlike_orders():
  found = [orders.Order(1000, seed)(np.arange(2000))[0] for seed in (0, 1)]
  first, second, other = found[0][:1000], found[0][1000:], found[1][:1000]
  pairs = [(first, second), (first, other), (first, np.arange(1000))]
  for a, b in pairs:
    assert (a == b).sum() < 10  # 1 expected
    assert stats.spearmanr(a, b).pvalue > 0.001
  # Neighbours do not stay neighbours.
  assert (np.abs(np.diff(first)) == 1).sum() < 12  # 2 expected


def test_every_example_comes_first_as_often_as_any_other():
  order = orders.Order(20, 3)
  ids, _ = order(np.arange(0, 20 * 600, 20))
  counts = np.bincount(ids, minlength=20)
  assert stats.chisquare(counts).pvalue > 0.001


# -- a function of (seed, step) alone ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_make_the_batch_of_one(folder, kind, hosts):
  whole = open_batches(folder, num_steps=50, **KINDS[kind])
  parts = [
    open_batches(
      folder, num_steps=50, rows=np.arange(8)[i::hosts], **KINDS[kind]
    )
    for i in range(hosts)
  ]
  for step in (0, 7, 49):
    batch = whole[step]
    for i, part in enumerate(parts):
      expected = {k: v[i::hosts] for k, v in batch.items()}
      assert_same(part[step], expected)


def test_hosts_share_the_last_batch_of_an_epoch(folder):
  whole = open_batches(folder, "validation", max_examples=11)
  parts = [
    open_batches(
      folder, "validation", max_examples=11, rows=np.arange(a, a + 4)
    )
    for a in (0, 4)
  ]
  assert {len(whole)} == {len(p) for p in parts} == {2}
  for step in range(2):
    both = [part[step] for part in parts]
    joined = {k: np.concatenate([b[k] for b in both]) for k in both[0]}
    assert_same(joined, whole[step])


@pytest.mark.parametrize("threads, buffer", [(0, 1), (1, 2), (4, 8)])
def test_prefetching_changes_nothing(folder, threads, buffer):
  batches = open_batches(folder, num_steps=12)
  for first in (0, 5):
    found = list(
      batching.prefetch(batches, first, num_threads=threads, buffer_size=buffer)
    )
    assert len(found) == 12 - first
    for step, batch in enumerate(found, first):
      assert_same(batch, batches[step])


def test_a_batch_does_not_depend_on_what_was_read_before(folder):
  one, two = (open_batches(folder, num_steps=40) for _ in range(2))
  for step in range(39, 20, -1):
    one[step]
  assert_same(one[3], two[3])


def test_seeds_give_other_batches(folder):
  one, two = (open_batches(folder, num_steps=4, seed=s)[0] for s in (1, 2))
  assert contents(one) != contents(two)


def masked_rows(folder, batch_size, epochs, **changes):
  """{(epoch, content): [masked ids, positions]} of some epochs."""
  batches = open_batches(folder, batch_size=batch_size, **changes)
  total = batches.num_examples
  batches = open_batches(
    folder, batch_size=batch_size, num_steps=-(-epochs * total // batch_size),
    **changes,
  )  # fmt: skip
  rows = {}
  for step in range(len(batches)):
    batch = batches[step]
    for row, content in enumerate(contents(batch)):
      epoch = (step * batch_size + row) // total
      rows.setdefault((epoch, content), set()).add(
        (batch["input_ids"][row].tobytes(),
         batch["masked_positions"][row].tobytes())
      )  # fmt: skip
  return {key: value for key, value in rows.items() if key[0] < epochs}


def test_masks_do_not_depend_on_the_batch_size(folder):
  assert masked_rows(folder, 8, 2) == masked_rows(folder, 13, 2)


@pytest.mark.parametrize("static", [False, True])
def test_masks_change_with_the_epoch_unless_they_are_static(folder, static):
  rows = masked_rows(folder, 16, 2, data__static_masks=static)
  same = [rows[0, c] == rows[1, c] for epoch, c in rows if not epoch]
  assert len(same) > 50
  assert np.mean(same) == 1 if static else np.mean(same) < 0.1


# -- the last batch of an evaluation ---


@pytest.mark.parametrize("max_examples", [0, 5, 11, 16])
def test_filler_rows_weigh_nothing(folder, max_examples):
  total = open_batches(folder, "validation").num_examples
  assert total > 16 and total % 8
  batches = open_batches(folder, "validation", max_examples=max_examples)
  expected = max_examples or total
  weights = np.concatenate([batches[i]["weight"] for i in range(len(batches))])
  assert len(weights) == -(-expected // 8) * 8
  np.testing.assert_array_equal(weights, np.arange(len(weights)) < expected)
  last = batches[len(batches) - 1]
  filler = last["weight"] == 0
  assert not last["masked_weights"][filler].any()
  assert (last["masked_weights"][~filler].sum(1) > 0).all()
  assert (last["input_mask"].sum(1) > 0).all()  # no row is empty


def test_more_examples_than_there_are_is_all_of_them(folder):
  batches = open_batches(folder, "validation", max_examples=10**6)
  assert sum(batches[i]["weight"].sum() for i in range(len(batches))) == (
    batches.num_examples
  )


# -- rows that sequences share ---


def open_short(short, *args, **kwargs):
  return open_batches(short, *args, data__seq_len=64, **kwargs)


def open_packed(short, *args, most=4, **kwargs):
  return open_short(short, *args, data__max_sequences=most, **kwargs)


def epochs_of(batches, rows, take, epochs=2):
  """What each epoch holds, sorted; `rows` is what an epoch takes of them."""
  found = [[] for _ in range(epochs)]
  for step in range(len(batches)):
    batch = batches[step]
    size = len(batch["input_ids"])
    for row in range(size):
      epoch = (step * size + row) // rows
      if epoch < epochs:
        one = {k: v[row : row + 1] for k, v in batch.items()}
        found[epoch] += take(one)
  return [sorted(epoch) for epoch in found]


def rows_of_epoch(short, most, **changes):
  data = settings(short, data__seq_len=64, **changes)
  index = indexes.LengthIndex(
    data.dir, records.examples_name(data), "train"
  )  # fmt: skip
  patterns = packing.pack_histogram(index.histogram, data.seq_len, most)
  return patterns.num_rows


@pytest.mark.parametrize(
  ("kind", "most"),
  breadth.slow_but(
    [(kind, most) for kind in KINDS for most in (2, 6)],
    lambda kind, most: most == 6 and kind in ("pairs", "whole_word"),
  ),
)
def test_packed_epochs_hold_every_example_once_masked_as_if_alone(
  short, kind, most
):
  total = open_short(short, **KINDS[kind]).num_examples
  rows = rows_of_epoch(short, most, **KINDS[kind])
  packed = open_packed(
    short, most=most, num_steps=-(-2 * rows // 8), **KINDS[kind]
  )
  plain = open_short(short, num_steps=-(-2 * total // 8), **KINDS[kind])
  assert rows < total
  found = epochs_of(packed, rows, sequences)
  assert [len(epoch) for epoch in found] == [total, total]
  assert found == epochs_of(plain, total, alone)


def test_packed_shapes_types_and_padding(short):
  B, L, S = 8, 64, 4
  batch = open_packed(short, num_steps=3)[2]
  P = masking.num_packed_slots(L, S, 0.15, 10)
  wanted = dict.fromkeys(
    ("input_ids", "input_mask", "segment_ids", "positions", "sequence_ids"),
    (B, L),
  )
  wanted |= dict.fromkeys(
    ("masked_positions", "masked_ids", "masked_weights"), (B, P)
  )
  wanted |= dict.fromkeys(("nsp_label", "weight", "cls_positions"), (B, S))
  assert {k: v.shape for k, v in batch.items()} == wanted
  floats = {"masked_weights", "weight"}
  for key, value in batch.items():
    assert value.dtype == (np.float32 if key in floats else np.int32), key
  padding = batch["input_mask"] == 0
  np.testing.assert_array_equal(padding, batch["sequence_ids"] == 0)
  for key in ("input_ids", "segment_ids", "positions"):
    assert not batch[key][padding].any()
  ids = np.take_along_axis(batch["input_ids"], batch["cls_positions"], 1)
  assert (ids[batch["weight"] > 0] == CLS).all()
  used = batch["masked_weights"] > 0
  for places, mine in zip(batch["masked_positions"], used, strict=True):
    assert (np.diff(places[mine]) > 0).all()
    assert not places[~mine].any()


@pytest.mark.parametrize("split", records.SPLITS)
@pytest.mark.parametrize("count", [0, 11, 16])
def test_one_packed_epoch_has_the_examples_of_an_unpacked_one(
  short, split, count
):
  packed = open_packed(short, split, max_examples=count, seed=0)
  plain = open_short(short, split, max_examples=count, seed=0)
  assert len(packed) < len(plain) or count
  found = [x for i in range(len(packed)) for x in sequences(packed[i])]
  wanted = [x for i in range(len(plain)) for x in alone(plain[i])]
  assert len(wanted) == (count or plain.num_examples)
  assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("rate, most", [(0.15, 3), (0.5, 8), (1.0, 10)])
def test_no_mask_of_a_packed_row_is_dropped(short, rate, most):
  batches = open_packed(
    short, most=most, num_steps=40, batch_size=16, data__mask_rate=rate
  )
  fullest = 0
  for step in range(40):
    batch = batches[step]
    lengths = [
      len(ids) for (ids, _, _), _, _ in sequences(batch)
    ]  # fmt: skip
    slots = masking.num_slots(64, rate, 0)
    wanted = masking.num_to_predict(np.array(lengths), rate, slots)
    specials = 3  # that cannot be chosen
    wanted = np.minimum(wanted, np.array(lengths) - specials).sum()
    assert batch["masked_weights"].sum() == wanted
    fullest = max(fullest, batch["masked_weights"].sum(1).max())
  assert fullest <= batch["masked_weights"].shape[1]
  assert fullest > 0.8 * batch["masked_weights"].shape[1] or rate == 1.0


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("steps", [50, None])
def test_hosts_together_make_the_packed_batch_of_one(short, hosts, steps):
  split = "train" if steps else "validation"
  whole = open_packed(short, split, num_steps=steps)
  parts = [
    open_packed(
      short, split, num_steps=steps, rows=np.arange(8)[i::hosts]
    )
    for i in range(hosts)
  ]  # fmt: skip
  for step in (0, len(whole) // 2, len(whole) - 1):
    for i, part in enumerate(parts):
      expected = {k: v[i::hosts] for k, v in whole[step].items()}
      assert_same(part[step], expected)


def test_a_host_with_filler_rows_alone_makes_them(short):
  batches = open_packed(
    short, "validation", max_examples=2, rows=np.arange(4, 8)
  )
  batch = batches[0]
  assert not batch["input_mask"].any() and not batch["weight"].any()
  assert not batch["masked_weights"].any()
  whole = open_packed(short, "validation", max_examples=2)[0]
  assert_same(batch, {k: v[4:] for k, v in whole.items()})


@pytest.mark.parametrize("threads", [0, 4])
def test_packed_batches_do_not_depend_on_threads_or_what_came_before(
  short, threads
):
  one, two = (open_packed(short, num_steps=40) for _ in range(2))
  for step in range(39, 20, -1):
    one[step]
  found = batching.prefetch(one, 33, num_threads=threads, buffer_size=3)
  for step, batch in enumerate(found, 33):
    assert_same(batch, two[step])


def test_packed_rows_are_mixed_anew_in_every_epoch_and_by_every_seed(short):
  rows = rows_of_epoch(short, 4)

  def neighbours(seed, epoch):
    order = open_packed(short, seed=seed, num_steps=1)._order
    ids, epochs = order(np.arange(rows) + epoch * rows)
    assert (epochs == epoch).all()
    shared = [row[row >= 0] for row in ids]
    return {frozenset(row.tolist()) for row in shared if len(row) > 1}

  first, second, other = (neighbours(*x) for x in ((1, 0), (1, 1), (2, 0)))
  assert len(first) > 30
  assert len(first & second) < 0.3 * len(first)
  assert len(first & other) < 0.3 * len(first)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 4096, 5000])
def test_permute_is_a_permutation_for_every_key(size):
  for key in range(4):
    found = orders.permute(
      np.arange(size), np.full(size, size), np.full(size, key, np.uint64)
    )
    np.testing.assert_array_equal(np.sort(found), np.arange(size))


@pytest.mark.parametrize("size", [2, 3, 6, 16, 20])
def test_permute_sends_a_place_everywhere_equally_often(size):
  keys = masking.hash_uniform(7, np.arange(600 * size))
  for place in (0, size - 1):
    places = np.full(len(keys), place)
    found = orders.permute(places, np.full(len(keys), size), keys)
    counts = np.bincount(found, minlength=size)
    assert stats.chisquare(counts).pvalue > 0.001


def test_permute_mixes_many_places():
  size = 200_000_000
  places = np.arange(1_000)
  keys = np.full(1_000, 3, np.uint64)
  found = orders.permute(places, np.full(1_000, size), keys)
  assert len(set(found.tolist())) == 1_000
  assert found.min() >= 0 and found.max() < size
  assert stats.spearmanr(places, found).pvalue > 0.001
  assert stats.kstest(found / size, "uniform").pvalue > 0.001


@pytest.mark.parametrize("most", [0, -1, 22])
def test_a_number_of_sequences_that_cannot_be_is_refused(short, most):
  with pytest.raises(ValueError, match="takes 1 to 21 sequences; use 1 for"):
    open_packed(short, most=most)


def test_examples_without_their_order_by_length_say_how_to_add_it(short_copy):
  target = pathlib.Path(
    records.lengths_folder(str(short_copy), "pairs-64-dupe2-short0.1-seed0")
  )
  shutil.rmtree(target)
  open_short(short_copy, num_steps=1)[0]  # unpacked does without
  with pytest.raises(records.DataError, match="no --input, which adds it"):
    open_packed(short_copy, num_steps=1)


def test_an_order_by_length_of_other_numbers_is_refused(short_copy):
  target = pathlib.Path(
    records.lengths_folder(str(short_copy), "pairs-64-dupe2-short0.1-seed0")
  )
  path = target / "train-00000.npy"
  ids = np.load(path)
  np.save(path, ids[::-1])  # the longest first
  batches = open_packed(short_copy, num_steps=400, batch_size=16)
  with pytest.raises(records.DataError, match="order of the examples by leng"):
    for step in range(400):
      batches[step]
  np.save(path, ids[:-1])
  with pytest.raises(records.DataError, match="as many numbers as there are"):
    open_packed(short_copy, num_steps=1)
  np.save(target / "train.npy", np.load(target / "train.npy") + 1)
  with pytest.raises(records.DataError, match="train.npy is damaged; delete"):
    open_packed(short_copy, num_steps=1)
  with pytest.raises(records.DataError, match="is damaged: its sha256 is"):
    open_packed(short_copy, num_steps=1, data__verify="once")


# -- what is refused ---


def test_no_folder_is_refused(folder):
  data = settings(folder)
  data.dir = None
  with pytest.raises(records.DataError, match="data.dir is not set; give"):
    batching.PretrainBatches(data, "train", seed=0, batch_size=8)


def test_a_folder_without_data_says_how_to_make_it(tmp_path):
  with pytest.raises(records.DataError, match="bert-jax prepare --output="):
    open_batches(tmp_path)


@pytest.mark.parametrize(
  "changes, name",
  [
    (dict(data__seq_len=64), "pairs-64-dupe2-short0.1-seed0"),
    (dict(data__dupe_factor=9), "pairs-32-dupe9-short0.1-seed0"),
  ],
)
def test_examples_that_were_not_made_are_named_beside_those_there(
  folder, changes, name
):
  with pytest.raises(
    records.DataError, match=f"has no examples {name}"
  ) as info:
    open_batches(folder, **changes)
  assert "only full_sentences-32-dupe2-seed0, pairs-32" in str(info.value)
  assert "add them with bert-jax prepare" in str(info.value)


def test_a_changed_vocabulary_is_refused(copy):
  path = copy / "vocab" / "vocab.txt"
  path.write_text(path.read_text().replace("ba\n", "bo\n"))
  with pytest.raises(ValueError, match="vocab.txt is not the vocabulary"):
    open_batches(copy)


def test_a_swapped_vocabulary_is_refused(copy):
  pieces = (copy / "vocab" / "vocab.txt").read_text() + "more\n"
  shutil.rmtree(copy / "vocab")
  (copy / "vocab").mkdir()
  (copy / "vocab" / "vocab.txt").write_text(pieces)
  with pytest.raises(
    records.DataError, match="is not the vocabulary that made"
  ):
    open_batches(copy)


def test_examples_of_other_tokens_are_refused(copy, tmp_path):
  (copy / "manifest.json").unlink()
  shutil.rmtree(copy / "tokens")
  vocab = corpora.write_vocabulary(tmp_path / "vocab.txt")
  text = corpora.write_text(
    tmp_path / "other.txt", corpora.make_documents(40, seed=9)
  )
  config = corpora.make_config(vocab)
  with pytest.raises(records.DataError, match="made with other settings"):
    prepare.prepare(config, [text], str(copy))
  with pytest.raises(records.DataError, match="was made from other tokens"):
    open_batches(copy)


def examples_file(copy, shard=0):
  name = f"pairs-32-dupe2-short0.1-seed0/train-{shard:05d}.array_record"
  return copy / "examples" / name


@pytest.mark.parametrize("where", ["examples", "tokens"])
def test_a_flipped_byte_is_an_error_that_names_the_file(copy, where):
  path = copy / "tokens" / "train-00001.array_record"
  if where == "examples":
    path = examples_file(copy, 1)
  data = bytearray(path.read_bytes())
  data[150] ^= 0x55
  path.write_bytes(bytes(data))
  batches = open_batches(copy, batch_size=64)
  with pytest.raises(records.DataError, match="damaged: ") as info:
    for step in range(len(batches)):
      batches[step]
  assert str(path) in str(info.value)


def test_missing_and_truncated_examples_are_errors_that_name_them(copy):
  path = examples_file(copy, 1)
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 3])
  with pytest.raises(records.DataError, match="is damaged") as info:
    open_batches(copy)
  assert str(path) in str(info.value)
  path.unlink()
  with pytest.raises(records.DataError, match="is missing; run") as info:
    open_batches(copy)
  assert str(path) in str(info.value)


@pytest.mark.parametrize(
  "change",
  [
    dict(a_length=40),
    dict(b_length=40),
    dict(a_length=0),
    dict(b_length=-1),
    dict(a_start=-500),
    dict(b_start=10**9),
    dict(a_length=2**31 - 1),  # 2 more are no int32
    dict(is_random=2),
  ],
)
def test_examples_that_cannot_be_are_refused(copy, change):
  # Well-formed records with wrong numbers.
  path = examples_file(copy)
  data = settings(copy)
  count = manifests.read_manifest(
    str(path.parent)
  )["shards"]["train"][0]["examples"]  # fmt: skip
  examples = batching.open_examples(data, "train").read(np.arange(count)).copy()
  for key, value in change.items():
    examples[key] = value
  with records.RecordWriter(str(path)) as writer:
    writer.write_rows(examples)
  batches = open_batches(copy, batch_size=64)
  with pytest.raises(records.DataError, match="damaged"):
    for step in range(len(batches)):
      batches[step]


def damage_examples(folder, settings, places):
  """Gives some examples of the first shard a length that cannot be."""
  (path,) = folder.glob(
    f"examples/{records.examples_name(settings)}/train-00000.array_record"
  )
  shards = manifests.read_manifest(str(path.parent))["shards"]["train"]
  count = shards[0]["examples"]
  examples = batching.open_examples(settings, "train").read(np.arange(count))
  examples = examples.copy()
  examples["a_length"][list(places)] = 5000
  with records.RecordWriter(str(path)) as writer:
    writer.write_rows(examples)


def test_damaged_examples_are_left_out_up_to_a_number_and_named(copy, caplog):
  clean = open_batches(copy, batch_size=8, num_steps=90)
  wanted = [clean[step] for step in range(90)]
  damage_examples(copy, settings(copy), [3, 5])
  found = open_batches(
    copy, batch_size=8, num_steps=90, data__max_bad_records=2
  )
  batches = [found[step] for step in range(90)]
  num_bad = 0
  for step, (batch, good) in enumerate(zip(batches, wanted, strict=True)):
    bad = np.isin(found.examples(step), (3, 5))[:, 0]
    num_bad += bad.sum()
    np.testing.assert_array_equal(batch["weight"], good["weight"] * ~bad)
    assert not batch["masked_weights"][bad].any()
    for name, value in batch.items():
      np.testing.assert_array_equal(value[~bad], good[name][~bad])
  assert num_bad > 2  # both, and in more than one epoch
  named = [r.getMessage() for r in caplog.records if "left out" in r.message]
  assert len(named) == 2  # each once
  assert all("tokens, more than data.seq_len=32" in x for x in named)
  with pytest.raises(
    records.DataError, match=r"damaged example 2, and .*max_bad_records=1 may"
  ):
    one = open_batches(
      copy, batch_size=8, num_steps=90, data__max_bad_records=1
    )
    for step in range(90):
      one[step]
  # Nothing is left of a batch of one.
  alone = open_batches(
    copy, batch_size=1, num_steps=340, data__max_bad_records=2
  )
  weights = [alone[step]["weight"].item() for step in range(340)]
  assert weights.count(0.0) == 2
  # An evaluation is of all examples or an error.
  whole = open_batches(copy, data__max_bad_records=9)
  with pytest.raises(records.DataError, match="more than data.seq_len"):
    for step in range(len(whole)):
      whole[step]


def test_damaged_records_are_left_out_of_shared_rows(short_copy):
  """Bytes that cannot be read, where nobody looked at the hashes."""
  data = dict(data__seq_len=64, data__max_sequences=4)
  clean = open_batches(short_copy, batch_size=4, num_steps=80, **data)
  wanted = [clean[step] for step in range(80)]
  name = records.examples_name(settings(short_copy, **data))
  path = short_copy / "examples" / name / "train-00000.array_record"
  content = bytearray(path.read_bytes())
  content[150] ^= 0x55
  path.write_bytes(bytes(content))
  found = open_batches(
    short_copy, batch_size=4, num_steps=80, data__max_bad_records=20, **data
  )
  lost = 0
  for step, good in enumerate(wanted):
    batch = found[step]
    ids = found._order(step * 4 + np.arange(4))[0]
    assert (batch["weight"] <= good["weight"]).all()
    lost += int((good["weight"] - batch["weight"]).sum())
    kept = batch["weight"].sum(1) == good["weight"].sum(1)
    for key, value in batch.items():
      np.testing.assert_array_equal(value[kept], good[key][kept])
    for row in np.nonzero(~kept)[0]:  # the others of the row are there
      assert batch["weight"][row].sum() == (ids[row] >= 0).sum() - 1
  assert lost > 0


def test_a_token_that_is_in_no_vocabulary_is_refused(copy):
  path = copy / "tokens" / "train-00000.array_record"
  row = manifests.read_manifest(str(copy))["shards"]["train"][0]
  with records.RecordWriter(str(path)) as writer:
    tokens = np.full((row["records"], records.RECORD_TOKENS), 999, "<u2")
    writer.write_rows(tokens)
  batches = open_batches(copy, batch_size=64)
  with pytest.raises(records.DataError, match="holds token 999, but its voc"):
    for step in range(len(batches)):
      batches[step]


def test_a_split_without_examples_is_refused(folder, tmp_path):
  path = pathlib.Path(folder).parent
  data = str(tmp_path / "data")
  config = corpora.make_config(
    str(path / "vocab.txt"), prepare__held_out_rate=0.0
  )
  prepare.prepare(config, [str(path / "text.txt")], data)
  with pytest.raises(records.DataError, match="no validation examples"):
    open_batches(data, "validation")
