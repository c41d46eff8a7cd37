"""Prepared data in a bucket: as in a folder, copied once, and checked."""

import logging
import os
import pathlib

import numpy as np
import pytest

from bert_jax.data import batching
from bert_jax.data import prepare
from bert_jax.data.store import records
from bert_jax.data.store import verification
from bert_jax.runtime import buckets
from bert_jax.runtime import files
from configs import base
from tests.support import corpora
from tests.support import tiny_run


@pytest.fixture
def data(bucket, prepared):
  files.upload_folder(prepared, f"{bucket}/data")
  return f"{bucket}/data"


def batches_of(folder, count=3):
  config = tiny_run.tiny_config(folder)
  made = batching.PretrainBatches(
    config.data, "train", seed=0, batch_size=16, num_steps=count
  )
  return [made[i] for i in range(count)]


def assert_same_batches(found, wanted):
  for a, b in zip(found, wanted, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def test_batches_are_those_of_the_folder(data, prepared):
  assert_same_batches(batches_of(data), batches_of(prepared))


def test_a_second_start_copies_nothing(data, monkeypatch):
  batches_of(data)
  files._recent.clear()
  monkeypatch.setattr(buckets, "download", None)  # would fail
  batches_of(data)


@pytest.mark.slow
def test_data_that_do_not_fit_the_disk_are_read_from_the_bucket(
  data, prepared, monkeypatch, caplog
):
  """A record at a time; only the tables, which are small, are copied."""
  made = files.local_files
  shards = []

  def fits_only_tables(paths):
    if any(path.endswith("array_record") for path in paths):
      shards.extend(paths)
      raise files.NoRoomError("too large")
    return made(paths)

  monkeypatch.setattr(files, "local_files", fits_only_tables)
  caplog.set_level(logging.WARNING)
  found = batches_of(data)
  monkeypatch.undo()
  assert_same_batches(found, batches_of(prepared))
  assert shards and "too large" in caplog.text


def flip(content):
  changed = bytearray(content)
  changed[len(changed) // 2] ^= 1
  return bytes(changed)


def verify(folder):
  data = tiny_run.tiny_config(folder).data
  verification.verify(folder, records.examples_name(data), "train", "once")


def test_a_damaged_object_is_named(data):
  name = f"{data}/tokens/train-00000.array_record"
  verify(data)
  files.write_bytes(name, flip(files.read_bytes(name)))
  files._recent.clear()
  with pytest.raises(records.DataError, match=name):
    verify(data)


def test_a_damaged_copy_is_made_again(data):
  name = f"{data}/tokens/train-00000.array_record"
  copy = pathlib.Path(files.local(name))
  content = copy.read_bytes()
  copy.write_bytes(flip(content))
  verify(data)
  assert copy.read_bytes() == content
  assert os.path.exists(
    os.path.join(files.cache_folder(data), ".verified.json")
  )


def test_a_shard_that_is_missing_is_named(data):
  name = f"{data}/tokens/train-00000.array_record"
  files.delete(name)
  with pytest.raises(records.DataError, match=name):
    batches_of(data)


@pytest.mark.parametrize(
  "runner", ["processes", pytest.param("beam", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore")  # of Beam's own, many
def test_prepared_in_a_bucket_from_a_bucket(runner, bucket, tmp_path):
  if runner == "beam":
    pytest.importorskip("apache_beam")
  text = corpora.write_text(tmp_path / "text.txt", corpora.make_documents(60))
  files.write_bytes(f"{bucket}/in/a.txt", pathlib.Path(text).read_bytes())
  config = base.get_config()
  config.data.seq_len = 32
  config.data.dupe_factor = 1
  config.prepare.vocab_size = 100
  config.prepare.num_workers = 1
  config.prepare.held_out_rate = 0.2
  config.prepare.unit_bytes = 4000
  os.rename(text, tmp_path / "a.txt")
  prepare.prepare(config, [str(tmp_path / "a.txt")], str(tmp_path / "data"))
  config.prepare.runner = runner
  config.prepare.num_workers = 1 if runner == "processes" else 2
  prepare.prepare(config, [f"{bucket}/in/*.txt"], f"{bucket}/data")
  prefix = f"{bucket}/data/"
  found = {
    path.removeprefix(prefix): files.read_bytes(path)
    for path in files.walk(f"{bucket}/data")
  }
  wanted = {
    str(path.relative_to(tmp_path / "data")): path.read_bytes()
    for path in (tmp_path / "data").rglob("*")
    if path.is_file() and path.name != ".lock"
  }
  assert found == wanted
  before = {o.path: o.generation for o in buckets.objects(f"{bucket}/data")}
  prepare.prepare(config, [f"{bucket}/in/*.txt"], f"{bucket}/data")
  after = {o.path: o.generation for o in buckets.objects(f"{bucket}/data")}
  assert after == before  # nothing is made again
