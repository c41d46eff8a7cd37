"""Tests of mixtures.py: rows of several texts in given proportions."""

import shutil

import numpy as np
import pytest

from bert_jax.data import batching
from bert_jax.data import mixtures
from bert_jax.data.store import records
from tests.support import tiny_run


@pytest.fixture(scope="module")
def data(prepared, tmp_path_factory):
  """A `data` group with a mixture of three copies of one folder."""
  folder = tmp_path_factory.mktemp("mixture")
  for name in ("b", "c"):
    shutil.copytree(prepared, folder / name)
  data = tiny_run.tiny_config(prepared).data
  data.mixture = (str(folder / "b"), str(folder / "c"))
  data.mixture_weights = (2.0, 1.0, 1.0)
  return data


def open_mixed(data, seed=0, num_steps=6, **options):
  return mixtures.MixedBatches(
    data, seed=seed, batch_size=data.batch_size, num_steps=num_steps, **options
  )


def test_each_text_has_its_share_and_its_own_order():
  places = np.arange(5 * mixtures.BLOCK)
  rows = (700, 300, 24)
  texts, own = mixtures.choose(places, rows, seed=3)
  for text, count in enumerate(rows):
    here = own[texts == text]
    np.testing.assert_array_equal(here, np.arange(5 * count))
  # A position is known without those before it, and seeds differ.
  some = places[1500:1600]
  again = mixtures.choose(some, rows, seed=3)
  np.testing.assert_array_equal(again, (texts[1500:1600], own[1500:1600]))
  assert (mixtures.choose(places, rows, seed=4)[0] != texts).mean() > 0.3
  # The texts take turns within a block.
  assert abs((texts[:512] == 0).sum() - 350) < 60


def test_weights_are_shares_of_rows(data):
  assert [one.rows for one in mixtures.sources(data)] == [512, 256, 256]
  flat = data.copy_and_resolve_references()
  flat.mixture_weights, flat.mixture_power = (36.0, 1.0, 1.0), 0.5
  assert [one.rows for one in mixtures.sources(flat)] == [768, 128, 128]
  flat.mixture_weights, flat.mixture_power = (), 1.0
  assert sum(one.rows for one in mixtures.sources(flat)) == mixtures.BLOCK
  assert len({one.num_tokens for one in mixtures.sources(flat)}) == 1
  assert mixtures.name_of(data, data.mixture[0]) == "b"


@pytest.mark.parametrize("max_sequences", [1, 2])
def test_rows_are_those_of_their_texts(data, max_sequences):
  data = data.copy_and_resolve_references()
  data.max_sequences = max_sequences
  mixed = open_mixed(data, seed=5)
  alone = batching.PretrainBatches(
    mixtures.of_folder(data, data.dir),
    "train",
    seed=5,
    batch_size=data.batch_size,
    num_steps=6,
  )
  places = np.arange(32, 48)
  texts, own = mixtures.choose(places, (512, 256, 256), 5)
  batch = mixed[2]
  assert set(texts) == {0, 1, 2}
  rows = alone.rows_at(own)  # the texts are copies of each other
  assert batch.keys() == rows.keys()
  for key, value in rows.items():
    np.testing.assert_array_equal(batch[key], value, key)
    assert batch[key].dtype == value.dtype
  first = [0, alone.num_examples, 2 * alone.num_examples]
  want = [
    [first[text] + i for i in row]
    for text, row in zip(texts, alone.examples_at(own), strict=True)
  ]
  assert mixed.examples(2) == want


def test_hosts_make_their_own_rows(data):
  whole, half = (
    open_mixed(data, rows=rows)[3] for rows in (None, np.arange(4, 8))
  )
  for key, value in half.items():
    np.testing.assert_array_equal(whole[key][4:8], value, key)


@pytest.mark.parametrize(
  ("values", "words"),
  [
    ({"mixture_weights": (1.0, 2.0)}, ("2 numbers", "3 folders")),
    ({"mixture_weights": (1.0, 1.0, 0.0)}, ("less than a row", "/c")),
    ({"mixture": ("/nowhere",)}, ("/nowhere", "prepare")),
  ],
)
def test_a_mixture_that_cannot_be_is_refused(data, values, words):
  data = data.copy_and_resolve_references()
  data.update(values)
  if "mixture" in values:
    data.mixture_weights = ()
  with pytest.raises(ValueError) as error:
    mixtures.sources(data)
  assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (lambda m: m["settings"].update(vocab="0" * 64), "another vocabulary"),
    (lambda m: m["totals"]["train"].update(tokens=0), "no text to train on"),
  ],
)
def test_a_text_that_does_not_fit_is_refused(
  data, prepared, tmp_path, change, word
):
  shutil.copytree(prepared, tmp_path / "other")
  path = tmp_path / "other" / "manifest.json"
  manifest = records.read_json(str(path))
  change(manifest)
  records.write_json(str(path), manifest)
  data = data.copy_and_resolve_references()
  data.mixture, data.mixture_weights = (str(tmp_path / "other"),), ()
  with pytest.raises(records.DataError, match=word):
    mixtures.sources(data)
