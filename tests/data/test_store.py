"""Prepared data on disk: written whole, read back, and damage is named."""

from concurrent import futures
import json
import logging
import os
import pathlib
import shutil

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from bert_jax.data.store import indexes
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.data.store import verification
from bert_jax.runtime import files
from tests.support.full_disk import no_room

SEP = 3
DOCUMENTS = st.lists(
  st.lists(
    st.lists(st.integers(5, 99), min_size=1, max_size=40),
    min_size=1,
    max_size=6,
  ),
  min_size=1,
  max_size=30,
)


def write_store(folder, shards, vocab_size=100):
  """A token store of shards, each a list of documents of sentences of ids."""
  os.makedirs(folder / "tokens", exist_ok=True)
  rows, counts = [], 0
  for i, documents in enumerate(shards):
    where = (str(folder / "tokens"), "train", i)
    with records.TokenWriter(*where, vocab_size, SEP) as writer:
      for document in documents:
        writer.add(document)
    rows.append(writer.row())
    counts = counts + writer.counts
  totals = dict.fromkeys(("documents", "sentences", "tokens", "unknown"), 0)
  manifest = dict(
    version=records.VERSION,
    settings={"vocab": ""},
    vocab_size=vocab_size,
    totals=dict.fromkeys(records.SPLITS, totals),
    shards={"train": rows, "validation": []},
  )
  records.write_json(str(folder / "manifest.json"), manifest)
  return rows, counts


def read_span(store, start, length):
  tokens, offsets = store.read_spans(np.array([start]), np.array([length]))
  return tokens[offsets[0] : offsets[0] + length].tolist()


@settings(max_examples=12, deadline=None)
@given(shards=st.lists(DOCUMENTS, min_size=1, max_size=3))
def test_every_sentence_is_read_back_by_its_boundaries(
  tmp_path_factory, shards
):
  folder = tmp_path_factory.mktemp("store")
  rows, counts = write_store(folder, shards)
  store = indexes.TokenStore(str(folder), "train")
  table = indexes.DocumentTable(str(folder / "tokens"), "train", rows)
  documents = [document for shard in shards for document in shard]
  assert len(table) == len(documents)
  expected = np.zeros(100, int)
  for i, document in enumerate(documents):
    bounds = table.boundaries(i)
    found = [
      read_span(store, a, b - a)
      for a, b in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    assert found == document
    assert read_span(store, bounds[-1], 1) == [SEP]
    for sentence in document:
      expected += np.bincount(sentence, minlength=100)
    expected[SEP] += 1
  np.testing.assert_array_equal(counts, expected)  # padding is not counted
  ends = np.cumsum([len(shard) for shard in shards])
  assert [table.shard(i)[1] for i in range(len(shards))] == ends.tolist()
  assert [table.shard(i)[0] for i in range(len(shards))] == [0, *ends[:-1]]


def test_spans_are_read_in_one_block_in_any_order(tmp_path):
  rng = np.random.default_rng(0)
  document = [
    rng.integers(5, 99, rng.integers(1, 90)).tolist() for _ in range(99)
  ]
  write_store(tmp_path, [[document], [document]])
  store = indexes.TokenStore(str(tmp_path), "train")
  flat = np.array(sum(document, []) + [SEP])
  records_of_shard = -(-len(flat) // records.RECORD_TOKENS)
  base = records_of_shard * records.RECORD_TOKENS
  stream = np.concatenate([flat, np.zeros(base - len(flat), int), flat])
  starts = rng.integers(0, len(stream) - 700, 200)
  lengths = rng.integers(0, 700, 200)
  lengths[::7] = 0
  tokens, offsets = store.read_spans(starts, lengths)
  for start, length, at in zip(starts, lengths, offsets, strict=True):
    np.testing.assert_array_equal(
      tokens[at : at + length], stream[start : start + length]
    )


@pytest.mark.parametrize(
  "vocab_size, dtype", [(30522, "<u2"), (65536, "<u2"), (65537, "<u4")]
)
def test_the_smallest_type_that_holds_every_id(tmp_path, vocab_size, dtype):
  assert records.token_dtype(vocab_size) == np.dtype(dtype)
  write_store(tmp_path, [[[[5, vocab_size - 1]]]], vocab_size)
  store = indexes.TokenStore(str(tmp_path), "train")
  assert read_span(store, 0, 3) == [5, vocab_size - 1, SEP]


def test_same_rows_give_the_same_bytes_and_other_rows_others(tmp_path):
  rows = np.arange(5000, dtype="<u2").reshape(50, 100)
  hashes = []
  for name, change in (("a", 0), ("b", 0), ("c", 1)):
    path = str(tmp_path / name)
    with records.RecordWriter(path) as writer:
      writer.write_rows(rows + change)
      writer.write_rows(rows[:0])
    assert writer.count == 50
    hashes.append(files.file_hash(path))
  assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("kind", ["json", "array", "records", "tokens"])
def test_a_file_appears_whole_or_not_at_all(tmp_path, kind):
  path = str(tmp_path / "file")

  class StopError(Exception):
    pass

  def write(fail):
    if kind == "json":
      records.write_json(path, [1, object() if fail else 2])
    elif kind == "array":
      records.write_array(path, np.array([object()]) if fail else np.ones(1))
    elif kind == "records":
      with records.RecordWriter(path) as writer:
        writer.write_rows(np.zeros((3, 5)))
        if fail:
          raise StopError
    else:
      with records.TokenWriter(str(tmp_path), "train", 0, 10, SEP) as writer:
        writer.add([[1, 2]])
        if fail:
          raise StopError

  before: set[str] = set()
  for _ in range(2):
    with pytest.raises((StopError, TypeError, ValueError)):
      write(fail=True)
    assert set(os.listdir(tmp_path)) == before  # nor is anything left behind
    write(fail=False)
    before = set(os.listdir(tmp_path))
    tables = {"train-00000." + x for x in ("array_record", *records.TABLES)}
    assert before == (tables if kind == "tokens" else {"file"})


def _write_records(path):
  with records.RecordWriter(path) as writer:
    writer.write_rows(np.zeros((1000, 1000)))


@pytest.mark.parametrize(
  "write",
  [
    lambda path: records.write_json(path, list(range(10_000))),
    lambda path: records.write_array(path, np.zeros(10)),
    lambda path: records.write_array(path, np.zeros(1_000_000)),
    _write_records,
  ],
)
def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, write):
  path = tmp_path / "file"
  path.write_text("as it was")
  with no_room(), pytest.raises(OSError, match="File too large") as error:
    write(str(path))
  assert str(path) in str(error.value)
  assert [p.name for p in tmp_path.iterdir()] == ["file"]
  assert path.read_text() == "as it was"


def test_json_is_written_in_one_order(tmp_path):
  one, two = str(tmp_path / "1"), str(tmp_path / "2")
  records.write_json(one, {"b": 1, "a": "\u00e9"})
  records.write_json(two, {"a": "\u00e9", "b": 1})
  with open(one, encoding="utf-8") as a, open(two, encoding="utf-8") as b:
    assert a.read() == b.read() == '{\n "a": "\u00e9",\n "b": 1\n}\n'


# -- bad input ---


@pytest.fixture
def store(tmp_path):
  """A folder with two shards of one record and a half."""
  write_store(tmp_path, [[[[7] * 380]], [[[8] * 380]]])
  return tmp_path


def damage(path, at=None, cut=None):
  data = bytearray(path.read_bytes())
  if at is not None:
    data[at] ^= 0xFF
  path.write_bytes(bytes(data[:cut]))


@pytest.mark.parametrize("shard", [0, 1])
def test_a_flipped_byte_is_an_error_that_names_the_file(store, shard):
  path = store / "tokens" / f"train-{shard:05d}.array_record"
  damage(path, at=200)  # in the first record
  tokens = indexes.TokenStore(str(store), "train")
  other = 2 * (1 - shard)
  assert read_span(tokens, other * 256, 2) == [8 - shard] * 2
  with pytest.raises(records.DataError, match="is damaged: .*delete") as error:
    tokens.read_spans(np.array([other, 2 * shard]) * 256, np.array([5, 5]))
  assert str(path) in str(error.value)


@pytest.mark.parametrize("size", [0, 1000, 65536, -1])
def test_a_truncated_file_is_an_error_that_names_it(store, size):
  path = store / "tokens" / "train-00001.array_record"
  damage(path, cut=size)
  with pytest.raises(records.DataError, match="is damaged") as error:
    indexes.TokenStore(str(store), "train")
  assert str(path) in str(error.value)


def test_a_missing_shard_is_an_error_that_names_it(store):
  path = store / "tokens" / "train-00001.array_record"
  path.unlink()
  with pytest.raises(records.DataError, match="00001.array_record is missing"):
    indexes.TokenStore(str(store), "train")


def test_a_shard_of_other_data_is_refused(store):
  write_store(store / "other", [[[[7] * 5000]]])
  (store / "other" / "tokens" / "train-00000.array_record").rename(
    store / "tokens" / "train-00000.array_record"
  )
  with pytest.raises(
    records.DataError, match="tokens has 22 records, but its manifest says 4"
  ):
    indexes.TokenStore(str(store), "train")


def test_a_record_of_another_size_is_refused(tmp_path):
  path = str(tmp_path / "a")
  with records.RecordWriter(path) as writer:
    writer.write_rows(np.zeros((2, 8), np.uint8))
    writer.write_rows(np.zeros((1, 4), np.uint8))
  opened = records.Records([path], 3)
  with pytest.raises(records.DataError, match="record 2 does not have 8 bytes"):
    opened.read(np.array([0, 2]), np.dtype(np.uint8), 8)


def test_a_span_outside_of_the_tokens_is_refused(store):
  tokens = indexes.TokenStore(str(store), "train")
  for start in (-300, 4 * 256, 10**12):
    with pytest.raises(records.DataError, match="is damaged"):
      tokens.read_spans(np.array([start]), np.array([5]))


@pytest.mark.parametrize("suffix", ["boundaries.npy", "documents.npy"])
@pytest.mark.parametrize("cut", [0, 50, -8, None])
def test_a_damaged_table_is_an_error_that_names_it(store, suffix, cut):
  path = store / "tokens" / f"train-00001.{suffix}"
  if cut is None:
    np.save(path, np.ones((2, 2)))
  else:
    damage(path, cut=cut)
  rows = manifests.read_manifest(str(store))["shards"]["train"]
  with pytest.raises(records.DataError, match="damaged") as error:
    indexes.DocumentTable(str(store / "tokens"), "train", rows)
  assert str(path) in str(error.value)


@pytest.mark.parametrize(
  "header",
  ["-" * 9000, "(" * 90, "{[]: 1}", "1+" * 4000 + "1", "'''", ""]
  + [f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
     for descr, shape in (("'<i8'", "(1" + "0" * 30 + ",)"), ("'i8,,'", "(1,)"),
                          ("('<i8',)", "(1,)"), ("'<i8'", "(True,)"))],
)  # fmt: skip
def test_a_header_that_numpy_chokes_on_is_an_error_that_names_the_file(
  store, header
):
  path = store / "tokens" / "train-00000.documents.npy"
  data = header.ljust(9014).encode() + b"\n"
  path.write_bytes(b"\x93NUMPY\1\0" + len(data).to_bytes(2, "little") + data)
  rows = manifests.read_manifest(str(store))["shards"]["train"]
  with pytest.raises(records.DataError, match="documents.npy is missing or"):
    indexes.DocumentTable(str(store / "tokens"), "train", rows)


def test_a_manifest_of_other_documents_is_an_error_that_names_the_table(store):
  rows = manifests.read_manifest(str(store))["shards"]["train"]
  rows[1] = rows[1] | {"documents": rows[1]["documents"] + 1}
  with pytest.raises(records.DataError, match="00001.documents.npy has"):
    indexes.DocumentTable(str(store / "tokens"), "train", rows)


def test_a_table_with_pickled_objects_is_not_loaded(store):
  path = store / "tokens" / "train-00000.documents.npy"
  np.save(path, np.array([{}]), allow_pickle=True)
  rows = manifests.read_manifest(str(store))["shards"]["train"]
  with pytest.raises(records.DataError, match="documents.npy is missing or"):
    indexes.DocumentTable(str(store / "tokens"), "train", rows)


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "manifest.json is damaged"),
    ('{"version": 1', "manifest.json is damaged"),
    ("[1]", "does not have version 1, which this release"),
    ('{"version": 99}', "does not have version 1, which this release"),
    ("\udcff", "manifest.json is damaged"),
    ("[" * 100_000, "manifest.json is damaged"),
  ],
)
def test_a_damaged_manifest_is_an_error_that_names_it(tmp_path, text, message):
  (tmp_path / "manifest.json").write_bytes(
    text.encode("utf-8", "surrogateescape")
  )
  with pytest.raises(records.DataError, match=message) as error:
    manifests.read_manifest(str(tmp_path))
  assert str(tmp_path) in str(error.value)


def test_a_folder_without_data_says_how_to_make_it(tmp_path):
  with pytest.raises(records.DataError, match="bert-jax prepare --output="):
    manifests.read_manifest(str(tmp_path))
  assert os.listdir(tmp_path) == []


def test_a_changed_manifest_is_read_anew(store):
  path = store / "manifest.json"
  manifest = json.loads(path.read_text())
  for x in ("one", "two"):
    path.write_text(json.dumps(manifest | {"x": x}))
    os.utime(path, ns=(len(x), ord(x[0])))
    assert manifests.read_manifest(str(store))["x"] == x


# -- whether files are as written ---


@pytest.fixture
def data(tmp_path, prepared, tiny_config):
  """A copy of prepared data, with no note of what was found good."""
  folder = pathlib.Path(shutil.copytree(prepared, tmp_path / "data"))
  (folder / ".verified.json").unlink(missing_ok=True)
  return folder


@pytest.fixture
def verify(data, tiny_config, monkeypatch):
  """A function (mode, split) -> names of the files it read."""
  name = records.examples_name(tiny_config().data)
  hashed, file_hash = [], files.file_hash

  def counting(path):
    hashed.append(path)
    return file_hash(path)

  monkeypatch.setattr(files, "file_hash", counting)

  def run(mode="once", split="train"):
    hashed.clear()
    verification.verify(str(data), name, split, mode)
    return sorted(os.path.relpath(path, data) for path in hashed)

  return run


@pytest.mark.parametrize("folder", ["", "examples/*", "examples/*/lengths"])
@pytest.mark.parametrize("value", [None, -1, [], {}, "1"])
def test_a_manifest_with_another_kind_of_value_is_damaged(data, folder, value):
  (path,) = data.glob(f"{folder}/manifest.json".lstrip("/"))
  manifest = json.loads(path.read_text())
  shards = manifest["shards"]
  for changed in (
    manifest | {"shards": value},
    manifest | {"shards": shards | {"train": value or [value]}},
    manifest | {"shards": shards | {"train": [{"shard": value}]}},
    {key: x for key, x in manifest.items() if key != "shards"},
  ):
    path.write_text(json.dumps(changed))
    with pytest.raises(records.DataError, match="manifest.json is damaged: a"):
      manifests.read_manifest(str(path.parent))


def test_packing_also_checks_the_order_by_length(data, tiny_config):
  name = records.examples_name(tiny_config().data)
  path = data / "examples" / name / "lengths" / "train-00000.npy"
  contents = bytearray(path.read_bytes())
  contents[-1] ^= 1
  path.write_bytes(contents)
  verification.verify(str(data), name, "train", "once")
  verification.verify(str(data), name, "validation", "once", packed=True)
  with pytest.raises(records.DataError, match="is damaged: its sha256 is") as e:
    verification.verify(str(data), name, "train", "once", packed=True)
  assert str(path) in str(e.value)


FILES = {
  "tokens": "tokens/train-00000.array_record",
  "boundaries": "tokens/train-00000.boundaries.npy",
  "documents": "tokens/train-00000.documents.npy",
  "examples": "examples/*/train-00000.array_record",
}


def test_every_file_of_a_split_is_read_once(data, verify):
  files = [str(next(data.glob(p)).relative_to(data)) for p in FILES.values()]
  assert verify() == sorted(files)
  assert verify() == []
  others = verify(split="validation")
  assert others == sorted(f.replace("train", "validation") for f in files)
  assert verify() == verify(split="validation") == []  # both are noted
  assert verify("always") == sorted(files)
  assert verify("never") == []


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("at", [0, 0.3, -1])
def test_a_flipped_byte_anywhere_is_found_at_the_start(data, verify, kind, at):
  path = next(data.glob(FILES[kind]))
  sound = files.file_hash(str(path))
  size = path.stat().st_size
  damage(path, at=int(at * size) if at > 0 else at)
  bad = files.file_hash(str(path))
  for _ in range(2):  # it is never noted as good
    with pytest.raises(records.DataError) as error:
      verify()
    assert str(error.value).startswith(
      f"{path} is damaged: its sha256 is {bad}, but the manifest says {sound};"
    )
    assert "bert-jax prepare again" in str(error.value)
  verify("never")


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_changed_after_it_was_found_good_is_read_again(
  data, verify, kind
):
  verify()
  path = next(data.glob(FILES[kind]))
  stat = path.stat()
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
  assert verify() == [str(path.relative_to(data))]
  assert verify() == []
  damage(path, at=100)
  with pytest.raises(records.DataError, match="is damaged: its sha256"):
    verify()
  damage(path, at=100)  # once more: as it was
  damage(path, cut=-1)
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
  with pytest.raises(records.DataError, match="is damaged: its sha256"):
    verify()  # the size alone is another


def test_a_change_that_keeps_size_and_time_is_found(data, verify):
  """As where a damaged copy is put back with the times of the original."""
  verify()
  path = next(data.glob(FILES["tokens"]))
  stat = path.stat()
  damage(path, at=100)
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  with pytest.raises(records.DataError, match="is damaged: its sha256"):
    verify()


def test_files_of_another_manifest_or_place_are_read_again(
  data, verify, tmp_path, tiny_config
):
  verify()
  path = data / "manifest.json"
  manifest = json.loads(path.read_text())
  row = manifest["shards"]["train"][0]["sha256"]
  row["documents.npy"] = "0" * 64
  records.write_json(str(path), manifest)
  with pytest.raises(records.DataError, match="the manifest says 00000000"):
    verify()
  copy = shutil.copytree(
    data, tmp_path / "copy"
  )  # with the note, and its times
  name = records.examples_name(tiny_config().data)
  with pytest.raises(records.DataError, match="copy/tokens/train-00000.doc"):
    verification.verify(str(copy), name, "train", "once")


def test_what_was_good_before_the_damage_is_noted(data, verify):
  path = next(data.glob(FILES["examples"]))  # the last in order
  damage(path, at=100)
  with pytest.raises(records.DataError):
    verify()
  damage(path, at=100)
  assert verify() == [str(path.relative_to(data))]


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_missing_is_named(data, verify, kind):
  path = next(data.glob(FILES[kind]))
  path.unlink()
  with pytest.raises(
    records.DataError, match=f"{path} is missing; run bert-jax"
  ):
    verify()


@pytest.mark.parametrize("split", records.SPLITS)
@pytest.mark.parametrize("how", ["count", "shape", "cut", "gone", "sign"])
def test_damaged_counts_are_found(data, verify, split, how):
  path = data / "tokens" / f"{split}.counts.npy"
  if how == "count":
    damage(path, at=-3)
  elif how == "shape":
    np.save(path, np.load(path)[:-1])
  elif how == "cut":
    damage(path, cut=-1)
  elif how == "sign":  # the sum stays
    counts = np.load(path)
    np.save(
      path, counts + np.eye(len(counts), dtype=int)[5:7].T @ [9**9, -(9**9)]
    )
  else:
    path.unlink()
  with pytest.raises(records.DataError, match="damaged") as error:
    verify()
  assert str(path) in str(error.value)
  verify("never")


@pytest.mark.parametrize("note", ["", "[]", "{", '{"a": 1}', "\udcff"])
def test_a_damaged_note_is_as_none(data, verify, note):
  path = data / ".verified.json"
  path.write_bytes(note.encode("utf-8", "surrogateescape"))
  assert len(verify()) == 4
  assert verify() == []


def test_a_note_that_cannot_be_written_is_done_without(
  data, verify, monkeypatch
):
  def refuse(path, value):
    raise PermissionError(path)

  monkeypatch.setattr(records, "write_json", refuse)
  assert len(verify()) == len(verify()) == 4
  assert not (data / ".verified.json").exists()


def test_a_file_that_cannot_be_read_is_named(data, verify, monkeypatch):
  def broken(path):
    raise OSError(5, "Input/output error")

  monkeypatch.setattr(files, "file_hash", broken)
  with pytest.raises(
    records.DataError, match="array_record cannot be read: .*"
  ):
    verify()
  assert verify("never") == []


def test_a_long_check_says_how_far_it_is(data, verify, monkeypatch, caplog):
  caplog.set_level(logging.INFO, "bert_jax")
  verify()
  assert not caplog.messages
  monkeypatch.setattr(verification, "_REPORT_SECS", -1)
  verify("always")
  assert len(caplog.messages) == 4
  assert "of 0.00 GB" in caplog.messages[-1]
  assert str(data) in caplog.messages[-1]


def test_what_a_killed_check_left_is_removed(data, verify):
  left = data / "..verified.json.0123456789abcdef.tmp"
  left.write_text("{")
  verify()
  assert [p.name for p in data.glob(".*verif*")] == [".verified.json"]


def test_processes_that_check_at_once_leave_a_sound_note(
  data, verify, tiny_config
):
  """Also those of several hosts, which may have the same number."""
  name = records.examples_name(tiny_config().data)

  def check(split):
    verification.verify(str(data), name, split, "always")

  with futures.ThreadPoolExecutor(8) as pool:
    for done in [pool.submit(check, s) for s in records.SPLITS * 20]:
      done.result()
  assert {".verified.json"} == {p.name for p in data.glob(".*")} - {".lock"}
  known = json.loads((data / ".verified.json").read_text())
  assert all(os.path.exists(path) for path in known)
  assert len(known) in (4, 8)  # who writes last wins
