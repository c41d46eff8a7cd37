"""Tests of prepare.py."""

import gzip
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy import stats

from bert_jax.data import corpus
from bert_jax.data import held_out
from bert_jax.data import packing
from bert_jax.data import prepare
from bert_jax.data.stages import vocabulary
from bert_jax.data.store import indexes
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.data.tokenizers import load
from bert_jax.runtime import locks
from tests.support.corpora import SPECIALS
from tests.support.corpora import make_config
from tests.support.corpora import make_documents
from tests.support.corpora import open_split
from tests.support.corpora import span
from tests.support.corpora import tree
from tests.support.corpora import write_text
from tests.support.corpora import write_vocabulary

ROOT = pathlib.Path(__file__).parents[2]
PAIRS = "pairs-32-dupe2-short0.1-seed0"  # the examples of `make_config`
TFDS_WARNING = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")


def identity(path):
  """What changes when a file is written again."""
  return path.stat().st_ino, path.stat().st_mtime_ns


class Inputs:
  """A corpus with a vocabulary, and what becomes of it with one worker."""

  def __init__(self, folder):
    self.folder = folder
    self.documents = make_documents(150)
    self.text = self.write()
    self.vocab = write_vocabulary(folder / "vocab.txt")
    self.data = str(folder / "data")
    prepare.prepare(self.config(), [self.text], self.data)
    prepare.prepare(self.config(data__pairing="full_sentences"), [], self.data)
    self.tree = tree(self.data)

  def write(self):
    return write_text(self.folder / "text.txt", self.documents)

  def config(self, **changes):
    return make_config(self.vocab, **changes)

  def run(self, folder, **changes):
    """The same two preparations into another folder."""
    prepare.prepare(self.config(**changes), [self.text], str(folder))
    changes["data__pairing"] = "full_sentences"
    prepare.prepare(self.config(**changes), [], str(folder))


class Packed(Inputs):
  """The same with two compressed files, and a plain one between them."""

  def write(self):
    folder = self.folder / "in"
    folder.mkdir()
    for name, documents in (
      ("a.txt.gz", self.documents[:60]),
      ("b.txt", self.documents[60:80]),
      ("c.txt.gz", self.documents[80:]),
    ):
      path = folder / name
      write_text(path, documents)
      if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return str(folder)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  return Inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
  return Packed(tmp_path_factory.mktemp("packed"))


def stored_documents(folder, split):
  """Documents of a split as lists of sentences of ids."""
  store, table = open_split(folder, split)
  return [
    [span(store, a, b - a) for a, b in zip(bounds, bounds[1:], strict=False)]
    for bounds in (table.boundaries(i).tolist() for i in range(len(table)))
  ]


def read_examples(folder, config, split):
  name = records.examples_name(config.data)
  store = indexes.ExampleStore(folder, name, split)
  return store.read(np.arange(len(store)))


# -- what is on disk ---


def test_sentences_come_back_from_the_token_store(inputs):
  tokenizer = load.load_tokenizer(inputs.vocab)
  sides = {"train": [], "validation": []}
  for document in inputs.documents:
    held_out = corpus.is_held_out(document, 0.15, 0)
    sides["validation" if held_out else "train"].append(document)
  assert min(map(len, sides.values())) > 5
  for split, documents in sides.items():
    found = stored_documents(inputs.data, split)
    assert found == [[tokenizer.encode(s) for s in d] for d in documents]
  text = tokenizer.decode(found[0][0])
  expected = documents[0][0].lower().replace("qq", "[UNK]")
  assert text.replace(" ", "") == expected.replace(" ", "")


def test_the_manifest_counts_what_is_there(inputs):
  manifest = manifests.read_manifest(inputs.data)
  assert len(manifest["inputs"]) > 5
  with open(inputs.text, "rb") as f:
    text = f.read()
  for row in manifest["inputs"]:
    part = text[row["start"] : row["end"]]
    assert row["sha256"] == hashlib.sha256(part).hexdigest()
  unknown = 1
  for split in records.SPLITS:
    documents = stored_documents(inputs.data, split)
    sentences = sum(documents, [])
    tokens = sum(sentences, [])
    assert manifest["totals"][split] == {
      "documents": len(documents),
      "sentences": len(sentences),
      "tokens": len(tokens),
      "unknown": tokens.count(unknown),
    }
    assert tokens.count(unknown) > 0
    counts = np.bincount(tokens, minlength=manifest["vocab_size"])
    counts[:5] = 0  # special tokens
    path = os.path.join(inputs.data, "tokens", f"{split}.counts.npy")
    np.testing.assert_array_equal(np.load(path), counts)
    for row in manifest["shards"][split]:
      for suffix, value in row["sha256"].items():
        path = records.shard_path("tokens", split, row["shard"], suffix)
        assert inputs.tree[path] == value


def long_tokens(folder, config, split):
  """The tokens of sentences that are longer than a row."""
  limit = config.data.seq_len - (3 if config.data.pairing == "pairs" else 2)
  lengths = [len(s) for d in stored_documents(folder, split) for s in d]
  return sum(n for n in lengths if n > limit)


@pytest.mark.parametrize("kind", ["pairs", "full_sentences"])
def test_the_manifest_of_examples_counts_what_is_there(inputs, kind):
  config = inputs.config(data__pairing=kind)
  name = records.examples_name(config.data)
  manifest = manifests.read_manifest(
    os.path.join(inputs.data, "examples", name)
  )
  specials = 3 if kind == "pairs" else 2
  for split in records.SPLITS:
    examples = read_examples(inputs.data, config, split)
    lengths = examples["a_length"] + examples["b_length"] + specials
    text = manifests.read_manifest(inputs.data)["totals"][split]["tokens"]
    held = examples["a_length"].sum()
    held += examples["b_length"][examples["is_random"] == 0].sum()
    assert manifest["totals"][split] == {
      "examples": len(examples),
      "random_next": examples["is_random"].sum(),
      "tokens": lengths.sum(),
      "cut_tokens": 2 * text - held if kind == "pairs" else 0,
      "long_tokens": long_tokens(inputs.data, config, split),
    }
    assert lengths.max() <= 32
    for row in manifest["shards"][split]:
      folder = f"examples/{name}"
      path = records.shard_path(folder, split, row["shard"], "array_record")
      assert inputs.tree[path] == row["sha256"]


@pytest.mark.parametrize("split", records.SPLITS)
def test_pairs_lie_within_documents_and_random_text_in_another(inputs, split):
  _, table = open_split(inputs.data, split)
  bounds = [table.boundaries(i) for i in range(len(table))]
  starts = np.array([b[0] for b in bounds])
  ends = np.array([b[-1] for b in bounds])
  examples = read_examples(inputs.data, inputs.config(), split)
  where = {}
  for part in "ab":
    start, length = examples[f"{part}_start"], examples[f"{part}_length"]
    where[part] = np.searchsorted(starts, start, "right") - 1
    assert (start + length <= ends[where[part]]).all() and (length > 0).all()
  same = where["a"] == where["b"]
  follows = examples["is_random"] == 0
  assert same[follows].all()
  # All but what ten tries leave: a few in a thousand for this many documents.
  assert same[~follows].mean() < 0.01
  order = examples["a_start"] < examples["b_start"]
  assert order[follows].all()
  assert 0.5 < examples["is_random"].mean() < 0.85
  # Random text comes from every shard of the split.
  if split == "train":
    shards = manifests.read_manifest(inputs.data)["shards"][split]
    edges = np.cumsum([0] + [s["records"] for s in shards]) * 256
    counts, _ = np.histogram(examples["b_start"][~follows], edges)
    assert counts.min() > 0


def test_every_pass_makes_its_own_pairs(inputs):
  examples = read_examples(inputs.data, inputs.config(), "train")
  assert len(np.unique(examples)) > 0.8 * len(examples)


def test_full_sentences_hold_every_token_once_a_pass(inputs):
  config = inputs.config(data__pairing="full_sentences", data__dupe_factor=1)
  prepare.prepare(config, [], inputs.data)
  examples = read_examples(inputs.data, config, "train")
  store, _ = open_split(inputs.data, "train")
  tokens = sum((span(store, e["a_start"], e["a_length"]) for e in examples), [])
  expected = sum(sum(stored_documents(inputs.data, "train"), []), [])
  assert [t for t in tokens if t != 3] == expected
  assert (examples["a_length"] >= 1).all()
  assert examples["a_length"].max() == 30


def shard_names(folder, split):
  rows = manifests.read_manifest(folder)["shards"][split]
  return [records.shard_name(s["shard"]) for s in rows]


def test_a_compressed_file_makes_a_shard_every_so_many_bytes(packed):
  names = shard_names(packed.data, "train")
  assert names == sorted(names)
  parts = [sum(n.startswith(f"{i:05d}") for n in names) for i in range(3)]
  texts = [packed.documents[:60], packed.documents[80:]]
  size = [sum(len("\n".join(d)) + 2 for d in part) for part in texts]
  assert size[0] // 8_000 < parts[0] <= -(-size[0] // 6_000)
  assert parts[1] == 1
  assert size[1] // 8_000 < parts[2] <= -(-size[1] // 6_000)
  assert parts[0] > 1 and parts[2] > 1
  assert names[: parts[0]] == ["00000"] + [
    f"00000-{i:05d}" for i in range(1, parts[0])
  ]


def test_shards_of_a_compressed_file_are_shards_like_any_other(packed):
  """In sentences, counts, hashes and examples."""
  test_sentences_come_back_from_the_token_store(packed)
  manifest = manifests.read_manifest(packed.data)
  assert [row["end"] == -1 for row in manifest["inputs"]] == [True, False, True]
  with gzip.open(os.path.join(packed.text, "c.txt.gz")) as f:
    digest = hashlib.sha256(f.read()).hexdigest()
  assert manifest["inputs"][2]["sha256"] == digest
  listed = set()
  for split in records.SPLITS:
    documents = stored_documents(packed.data, split)
    assert manifest["totals"][split]["documents"] == len(documents)
    for row in manifest["shards"][split]:
      for suffix, value in row["sha256"].items():
        path = records.shard_path("tokens", split, row["shard"], suffix)
        assert packed.tree[path] == value
        listed.add(path)
  stored = {p for p in packed.tree if p.startswith("tokens/")}
  assert stored - listed == {f"tokens/{s}.counts.npy" for s in records.SPLITS}
  for kind in ("pairs", "full_sentences"):
    test_the_manifest_of_examples_counts_what_is_there(packed, kind)
  for split in records.SPLITS:
    test_pairs_lie_within_documents_and_random_text_in_another(packed, split)
  test_full_sentences_hold_every_token_once_a_pass(packed)


# -- the same bytes however it was made ---


@pytest.mark.parametrize(
  "workers", [pytest.param(2, marks=pytest.mark.slow), 3]
)
@pytest.mark.parametrize(
  "kind", ["inputs", pytest.param("packed", marks=pytest.mark.slow)]
)
def test_bytes_do_not_depend_on_the_number_of_workers(
  kind, tmp_path, workers, request
):
  made = request.getfixturevalue(kind)
  made.run(tmp_path, prepare__num_workers=workers)
  assert tree(tmp_path) == made.tree


def start(script, inputs, folder, *args):
  """Starts a process that prepares `folder` with a piece of script before."""
  code = (
    "import os, signal, sys\n"
    "from bert_jax.data import prepare\n"
    "from bert_jax.data.store import records\n"
    "from tests.support import corpora\n"
    "text, vocab, folder, *args = sys.argv[1:]\n"
    f"{script}\n"
    "config = corpora.make_config(vocab, prepare__num_workers=workers)\n"
    "if __name__ == '__main__':\n"
    "  prepare.prepare(config, [text], folder)\n"
  )
  command = [sys.executable, "-c", code, inputs.text, inputs.vocab, folder]
  return subprocess.Popen(
    [*command, *map(str, args)],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )


# Kills the process at the nth call of a function.
KILL = """
workers = 1
module, name, left = sys.modules[args[0]], args[1], int(args[2])
function = getattr(module, name)
def wrapped(*args, **kwargs):
  global left
  left -= 1
  if not left:
    os.kill(os.getpid(), signal.SIGKILL)
  return function(*args, **kwargs)
setattr(module, name, wrapped)
"""


@pytest.mark.parametrize(
  "module, name, calls, stage",
  [
    ("numpy", "save", 15, "tokens"),
    pytest.param(
      "bert_jax.data.stages.examples",
      "_write_rows",
      9,
      "pairs-32-dupe2-short0.1-seed0",
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_killed_run_goes_on_to_the_same_bytes(
  inputs, tmp_path, module, name, calls, stage
):
  folder = str(tmp_path / "data")
  process = start(KILL, inputs, folder, module, name, calls)
  assert process.wait() == -signal.SIGKILL
  finished = tmp_path / "data" / ".progress" / stage
  reports = [p for p in finished.glob("*.json") if p.stem != "settings"]
  assert len(reports) >= 2  # in the middle of that stage
  assert list(tmp_path.rglob("*.tmp"))  # and of a file
  shards = {
    path: identity(path)
    for report in reports
    for path in (tmp_path / "data").rglob(
      f"train-{report.stem[-5:]}.array_record"
    )
  }
  assert len(shards) >= 2
  if stage == "tokens":  # other settings are refused while it waits
    config = inputs.config(prepare__held_out_rate=0.3)
    with pytest.raises(records.DataError, match="held_out_rate: 0.15 there"):
      prepare.prepare(config, [inputs.text], folder)
  inputs.run(folder)
  assert tree(folder) == inputs.tree
  assert {path: identity(path) for path in shards} == shards


def test_a_run_killed_within_a_compressed_file_makes_all_of_it_again(
  packed, tmp_path
):
  folder = str(tmp_path / "data")
  units = [
    sum(records.shard_name(s["shard"]).startswith(f"0000{i}") for s in rows)
    for i in range(3)
    for rows in [
      sum(manifests.read_manifest(packed.data)["shards"].values(), [])
    ]
  ]
  calls = (
    3 * (sum(units) - 1) - 1
  )  # three arrays a shard; within the third file
  process = start(KILL, packed, folder, "numpy", "save", calls)
  assert process.wait() == -signal.SIGKILL
  finished = tmp_path / "data" / ".progress" / "tokens"
  assert {p.stem for p in finished.glob("0*.json")} == {"00000", "00001"}
  tokens = tmp_path / "data" / "tokens"
  kept = {p: identity(p) for p in tokens.glob("train-0000[01]*")}
  again = {p: identity(p) for p in tokens.glob("train-00002*.array_record")}
  assert len(kept) >= 9 and len(again) >= 2
  packed.run(folder)
  assert tree(folder) == packed.tree
  assert {path: identity(path) for path in kept} == kept
  assert all(identity(path) != before for path, before in again.items())


def running(group):
  """Processes of a group that still run (a zombie does not)."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
    except OSError:  # it ended just now
      continue
    if int(of_group) == group and state not in "ZX":
      found.append(path.parent.name)
  return found


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="no /proc")
def test_killed_workers_do_not_stay_and_the_run_goes_on(inputs, tmp_path):
  folder = str(tmp_path / "data")
  process = start("workers = 2", inputs, folder)
  progress = tmp_path / "data" / ".progress" / "tokens"
  while process.poll() is None and len(list(progress.glob("0*.json"))) < 2:
    time.sleep(0.002)
  assert len(running(process.pid)) >= 3  # itself and two workers
  process.kill()
  process.wait()
  deadline = time.monotonic() + 30
  while running(process.pid):
    assert time.monotonic() < deadline, "workers stay behind"
    time.sleep(0.02)
  inputs.run(folder)
  assert tree(folder) == inputs.tree


@pytest.mark.parametrize(
  "pattern",
  [
    "tokens/train-00002.array_record",
    "tokens/train-00003.boundaries.npy",
    "examples/*-32-dupe2-*/train-00001.array_record",
  ],
)
def test_a_deleted_shard_is_made_anew(inputs, tmp_path, pattern):
  folder = shutil.copytree(inputs.data, tmp_path / "data")
  before = tree(folder)
  for path in folder.glob(pattern):
    path.unlink()
  assert tree(folder) != before
  inputs.run(folder)
  assert tree(folder) == before


def test_a_finished_run_is_not_made_again(inputs):
  before = {p: identity(p) for p in pathlib.Path(inputs.data).rglob("*-0*")}
  inputs.run(inputs.data)
  assert {p: identity(p) for p in before} == before


def test_another_length_and_pairing_leave_the_tokens_alone(inputs, tmp_path):
  prepare.prepare(inputs.config(), [inputs.text], str(tmp_path))
  before = {p: identity(p) for p in (tmp_path / "tokens").iterdir()}
  made = tree(tmp_path)
  for changes in (
    dict(data__seq_len=64),
    dict(data__dupe_factor=3),
    dict(data__examples_seed=1),
    dict(data__short_seq_rate=0.5),
    dict(data__pairing="full_sentences"),
  ):
    config = inputs.config(**changes)
    prepare.prepare(config, [], str(tmp_path))
    assert len(read_examples(str(tmp_path), config, "train"))
  assert len(list((tmp_path / "examples").iterdir())) == 6
  assert {p: identity(p) for p in (tmp_path / "tokens").iterdir()} == before
  after = tree(tmp_path)
  assert {path: after[path] for path in made} == made
  assert not (tmp_path / ".progress").exists()


def test_longer_passes_begin_with_the_shorter_ones_pairs(inputs, tmp_path):
  # dupe_factor adds passes; it does not change those before.
  inputs.run(tmp_path, data__dupe_factor=1)
  one = read_examples(
    str(tmp_path), inputs.config(data__dupe_factor=1), "train"
  )
  two = read_examples(inputs.data, inputs.config(), "train")
  assert {tuple(e) for e in one.tolist()} <= {tuple(e) for e in two.tolist()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Beam's own, many
def test_beam_gives_the_same_bytes(inputs, tmp_path):
  pytest.importorskip("apache_beam")
  inputs.run(tmp_path, prepare__runner="beam")
  assert tree(tmp_path) == inputs.tree


MEMORY = """
import re, sys
from bert_jax.data import prepare
from tests.support import corpora
text, vocab, folder, pairing = sys.argv[1:]
config = corpora.make_config(
  vocab, prepare__unit_bytes=500_000, data__pairing=pairing)
prepare.prepare(config, [text], folder)
# Not getrusage, whose peak is that of the parent before exec if that is larger.
with open("/proc/self/status") as f:
  print("PEAK", re.search(r"VmHWM:\\s+(\\d+) kB", f.read())[1])
"""


def peak(text, vocab, folder, kind):
  """Most memory that a process has in use that prepares `folder`, bytes."""
  output = subprocess.check_output(
    [sys.executable, "-c", MEMORY, text, vocab, folder, kind],
    cwd=ROOT,
    text=True,
  )
  return int(output.rpartition("PEAK")[2]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc")
@pytest.mark.parametrize("kind", ["pairs", "full_sentences"])
def test_memory_does_not_grow_with_a_compressed_file(tmp_path, kind):
  vocab = write_vocabulary(tmp_path / "vocab.txt")
  part = "\n".join("\n".join(d) + "\n" for d in make_documents(5_500))
  part, peaks = part.encode() + b"\n", []
  for size in (20e6, 60e6):
    text = tmp_path / f"{size:.0f}.txt.gz"
    with gzip.open(text, "wb", compresslevel=1) as f:
      for _ in range(int(size / len(part))):
        f.write(part)
    peaks.append(peak(text, vocab, tmp_path / f"{size:.0f}", kind))
  assert peaks[1] - peaks[0] < 20e6  # of 40 MB more text


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc")
@pytest.mark.parametrize("kind", ["pairs", "full_sentences"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, kind):
  vocab = write_vocabulary(tmp_path / "vocab.txt")
  part = "\n".join("\n".join(d) + "\n" for d in make_documents(5_500))
  size, peaks = len(part.encode()), []
  for count in (2, 16):
    text = tmp_path / f"{count}.txt"
    with text.open("w") as f:
      for _ in range(count):
        f.write(part + "\n")
    peaks.append(peak(text, vocab, tmp_path / f"{count}", kind))
  assert 14 * size > 20e6
  assert peaks[1] - peaks[0] < 12e6  # of 14 times `size` more text


# -- held-out documents ---


def test_held_out_documents_are_a_share_and_depend_on_their_text_alone():
  documents = [[str(i), "text"] for i in range(4_000)]
  held = [corpus.is_held_out(d, 0.05, 0) for d in documents]
  assert stats.binomtest(sum(held), 4_000, 0.05).pvalue > 0.001
  assert held == [corpus.is_held_out(tuple(d), 0.05, 0) for d in documents]
  more = [corpus.is_held_out(d, 0.2, 0) for d in documents]
  assert all(b for a, b in zip(held, more, strict=True) if a)
  other = [corpus.is_held_out(d, 0.05, 1) for d in documents]
  both = sum(a and b for a, b in zip(held, other, strict=True))
  assert both < 0.2 * sum(held)
  assert not any(corpus.is_held_out(d, 0.0, 0) for d in documents)


def test_no_text_is_on_both_sides_though_it_comes_twice(tmp_path):
  documents = make_documents(80, max_sentences=4)
  documents += documents[::-1]
  text = write_text(tmp_path / "text.txt", documents)
  vocab = write_vocabulary(tmp_path / "vocab.txt")
  data = str(tmp_path / "data")
  prepare.prepare(make_config(vocab, prepare__held_out_rate=0.3), [text], data)
  train, held = (
    {str(d) for d in stored_documents(data, split)} for split in records.SPLITS
  )
  assert train and held and not train & held
  totals = manifests.read_manifest(data)["totals"]
  assert sum(t["documents"] for t in totals.values()) == 160


def test_documents_of_held_out_files_are_evaluated_on_and_not_learned_from(
  tmp_path,
):
  train = write_text(tmp_path / "train.txt", make_documents(40))
  apart = tmp_path / "apart.txt"
  apart.write_text("zebra zebra zebra.\nzebra zebra.\n\nzebra.\nzebra zebra.\n")
  config = make_config(
    prepare__vocab_size=60,
    prepare__held_out_rate=0.0,
    prepare__held_out_input=str(apart),
  )
  data = str(tmp_path / "data")
  prepare.prepare(config, [train], data)
  totals = manifests.read_manifest(data)["totals"]
  documents = {split: totals[split]["documents"] for split in totals}
  assert documents == {"train": 40, "validation": 2}
  assert "z" not in (tmp_path / "data" / "vocab" / "vocab.txt").read_text()
  config.prepare.held_out_input = train
  with pytest.raises(corpus.CorpusError, match="train.txt is in --input and"):
    prepare.prepare(config, [train], str(tmp_path / "other"))
  assert not (tmp_path / "other").exists()


def test_without_held_out_documents_all_are_for_training(inputs, tmp_path):
  config = inputs.config(prepare__held_out_rate=0.0)
  prepare.prepare(config, [inputs.text], str(tmp_path))
  manifest = manifests.read_manifest(str(tmp_path))
  assert manifest["totals"]["train"]["documents"] == len(inputs.documents)
  assert manifest["shards"]["validation"] == []
  with pytest.raises(records.DataError, match="has no validation examples"):
    read_examples(str(tmp_path), config, "validation")


# -- kinds of input and of vocabulary ---


@TFDS_WARNING
@pytest.mark.parametrize(
  "text_format", ["sentences", "paragraphs", "jsonl", "gz", "folder", "tfds"]
)
def test_every_format_gives_the_same_sentences(inputs, tmp_path, text_format):
  documents = [
    # A sentence that seems to end in an abbreviation would not be split.
    [sentence[:-1] + "!" for sentence in document]
    for document in make_documents(20, seed=1)
  ]
  path = tmp_path / "in" / "text.txt"
  path.parent.mkdir()
  pattern, key = str(path), "text"
  if text_format == "paragraphs":
    path.write_text("\n\n\n".join(" ".join(d) for d in documents))
  elif text_format == "jsonl":
    key = "body"
    lines = [json.dumps({"body": " ".join(d)}) + "\n" for d in documents]
    path.write_text("".join(lines))
  elif text_format == "tfds":
    pattern = str(tfds_builder(tmp_path / "in", documents).data_dir)
  else:
    write_text(path, documents[:10])
    second = path.with_name("zz.txt")
    write_text(second, documents[10:])
    pattern = str(path.parent)
    if text_format == "gz":
      for p in (path, second):
        p.with_suffix(".gz").write_bytes(gzip.compress(p.read_bytes()))
        p.unlink()
      pattern += "/*.gz"
    text_format = "sentences"
  config = inputs.config(
    prepare__format=text_format, prepare__text_key=key,
    prepare__held_out_rate=0.0, prepare__unit_bytes=1_000,
  )  # fmt: skip
  data = str(tmp_path / "data")
  prepare.prepare(config, [pattern], data)
  tokenizer = load.load_tokenizer(inputs.vocab)
  expected = [[tokenizer.encode(s) for s in d] for d in documents]
  found = stored_documents(data, "train")
  if text_format == "tfds":  # which shuffles
    expected, found = sorted(expected), sorted(found)
  assert found == expected


def tfds_builder(folder, documents):
  """A small TFDS data set, prepared without TensorFlow."""
  import tensorflow_datasets as tfds

  class Words(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      yield from ((i, {"text": " ".join(d)}) for i, d in enumerate(documents))

  builder = Words(data_dir=folder, file_format="array_record")
  builder.download_and_prepare()
  return builder


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece"])
def test_a_vocabulary_is_learned_and_can_be_given_again(inputs, tmp_path, kind):
  size = {"wordpiece": 90, "sentencepiece": 80}[kind]
  config = make_config(prepare__vocab_kind=kind, prepare__vocab_size=size)
  learned = tmp_path / "learned"
  prepare.prepare(config, [inputs.text], str(learned))
  tokenizer = load.load_tokenizer(learned / "vocab")
  assert (tokenizer.kind, tokenizer.vocab_size) == (kind, size)
  manifest = manifests.read_manifest(str(learned))
  assert manifest["vocab_size"] == size
  (held, *_) = (d for d in inputs.documents if corpus.is_held_out(d, 0.15, 0))
  assert stored_documents(str(learned), "validation")[0] == [
    tokenizer.encode(s) for s in held
  ]
  name = {"wordpiece": "vocab.txt", "sentencepiece": "sentencepiece.model"}
  for i, given in enumerate(
    (learned / "vocab", learned / "vocab" / name[kind])
  ):
    folder = tmp_path / str(i)
    prepare.prepare(make_config(str(given)), [inputs.text], str(folder))
    tokens = {k: v for k, v in tree(learned).items() if "vocab/" not in k}
    again = {k: v for k, v in tree(folder).items() if "vocab/" not in k}
    assert again == tokens


def test_held_out_text_is_not_learned_from(tmp_path):
  documents = make_documents(60)
  secret = [["zzzz zzzz zzzz", str(i)] for i in range(60)]
  secret = [d for d in secret if corpus.is_held_out(d, 0.15, 0)]
  assert secret
  text = write_text(tmp_path / "text.txt", documents + secret)
  config = make_config(prepare__vocab_size=60)
  prepare.prepare(config, [text], str(tmp_path / "data"))
  assert "z" not in (tmp_path / "data" / "vocab" / "vocab.txt").read_text()


def sample(config, patterns):
  """What a vocabulary is learned from, and how many bytes were read for it."""
  read = [0]

  class Counting(corpus.Reading):
    def update(self, data):
      super().update(data)
      read[0] += len(data)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(corpus, "Reading", Counting)
    p = config.prepare
    units = corpus.list_units(patterns, p.format, p.unit_bytes)
    return list(vocabulary.sample_text(config.prepare, units)), read[0]


def test_a_sample_of_plain_text_is_of_evenly_spread_units(inputs):
  config = inputs.config(prepare__vocab_sample_bytes=9_000)
  found, read = sample(config, [inputs.text])
  units = corpus.list_units([inputs.text], "sentences", 6_000)
  stride = -(-sum(u.size for u in units) // 9_000)
  assert 1 < stride < len(units)
  documents = [
    document
    for unit in units[::stride]
    for document in corpus.read_documents(unit, "sentences", "", "")
  ]
  kept = [d for d in documents if not corpus.is_held_out(d, 0.15, 0)]
  assert found == sum(kept, [])[: len(found)]
  assert read <= 9_000 + 6_000


@pytest.mark.parametrize("count", [1, 4, 100])
def test_a_sample_is_of_the_heads_of_all_compressed_files(
  inputs, tmp_path, count
):
  documents = make_documents(1_000, seed=4, max_sentences=4)
  for i in range(count):
    text = "\n".join(
      f"{i} {j}\n" + "\n".join(d) + "\n"
      for j, d in enumerate(documents[i::count])
    )
    (tmp_path / f"{i:03d}.gz").write_bytes(gzip.compress(text.encode()))
  size = sum(len("\n".join(d)) + 8 for d in documents)
  wanted = size // 10
  config = inputs.config(prepare__vocab_sample_bytes=wanted)
  found, read = sample(config, [str(tmp_path)])
  assert 0.7 * wanted < read < 1.4 * wanted
  where = [tuple(map(int, s.split())) for s in found if s[0].isdigit()]
  files = sorted({i for i, _ in where})
  if count < 100:
    assert files == list(range(count))
  else:  # too small to give a tenth each: some of them, from all over
    assert len(files) > 8 and max(np.diff([-10, *files, 110])) < 40
  assert max(j for _, j in where) < 0.2 * 1_000 / count + 2


@pytest.mark.parametrize("packing", ["gz", "txt"])
def test_all_text_is_sampled_where_there_is_little(inputs, tmp_path, packing):
  text = tmp_path / f"a.{packing}"
  write_text(text, inputs.documents)
  if packing == "gz":
    text.write_bytes(gzip.compress(text.read_bytes()))
  found, _ = sample(inputs.config(), [str(text)])
  kept = [d for d in inputs.documents if not corpus.is_held_out(d, 0.15, 0)]
  assert found == sum(kept, [])


@TFDS_WARNING
def test_a_sample_of_tfds_is_of_evenly_spread_units(
  inputs, tmp_path, monkeypatch
):
  monkeypatch.setattr(corpus, "_TFDS_UNIT_RECORDS", 10)
  documents = [[f"Number {i} is {'so ' * 30}here."] for i in range(400)]
  folder = str(tfds_builder(tmp_path, documents).data_dir)
  size = sum(len(d[0]) for d in documents)
  config = inputs.config(
    prepare__format="tfds", prepare__vocab_sample_bytes=size // 4
  )
  found, read = sample(config, [folder])
  read -= len(range(0, 400, 7)) / 400 * size  # for the size of a record
  assert read == pytest.approx(size / 4, rel=0.05)
  order = [
    document[0]
    for unit in corpus.list_units([folder], "tfds", 10)
    for document in corpus.read_documents(unit, "tfds", "text", "en")
  ]
  units = {order.index(sentence) // 10 for sentence in found}
  assert units == set(range(0, 40, 4))


# -- what is refused ---


def refuse(config, patterns, folder, error, match):
  """Checks that nothing below a folder changes where a run is refused."""
  before = tree(folder)
  with pytest.raises(error, match=match) as info:
    prepare.prepare(config, patterns, str(folder))
  assert tree(folder) == before
  return str(info.value)


@pytest.mark.parametrize(
  "changes, match",
  [
    (dict(prepare__held_out_rate=0.2), "held_out_rate: 0.15 there, 0.2 asked"),
    (dict(prepare__held_out_seed=5), "held_out_seed: 0 there, 5 asked"),
    (dict(prepare__format="paragraphs"), "format: 'sentences' there"),
    (dict(prepare__unit_bytes=9_999), "units: "),
    (dict(data__short_seq_rate=0.1 + 1e-12), "short_seq_rate: 0.1 there"),
    (dict(prepare__vocab=""), "fingerprint: "),
  ],
)
def test_other_settings_for_the_same_folder_are_refused(inputs, changes, match):
  config = inputs.config(**changes)
  message = refuse(config, [inputs.text], inputs.data, records.DataError, match)
  assert inputs.data in message and "give another --output" in message


def test_other_text_for_the_same_folder_is_refused(inputs, tmp_path):
  text = write_text(tmp_path / "text.txt", inputs.documents[1:])
  refuse(inputs.config(), [text], inputs.data, records.DataError, "units: ")


def test_another_vocabulary_for_the_same_folder_is_refused(inputs, tmp_path):
  pieces = pathlib.Path(inputs.vocab).read_text() + "extra\n"
  (tmp_path / "vocab.txt").write_text(pieces)
  config = inputs.config(prepare__vocab=str(tmp_path / "vocab.txt"))
  refuse(config, [inputs.text], inputs.data, records.DataError, "fingerprint")


def test_a_second_process_for_the_same_folder_is_refused(inputs):
  with locks.lock(inputs.data):
    refuse(
      inputs.config(), [inputs.text], inputs.data, locks.LockedError,
      "is in use by process",
    )  # fmt: skip
  prepare.prepare(inputs.config(), [inputs.text], inputs.data)


@pytest.mark.parametrize(
  "content, match",
  [
    (b"", "text.txt is empty"),
    (b"\0\1\2", "text.txt holds zero bytes"),
    (None, "text.txt names no file"),
  ],
)
def test_no_folder_is_made_for_a_bad_input(inputs, tmp_path, content, match):
  if content is not None:
    (tmp_path / "text.txt").write_bytes(content)
  text, data = str(tmp_path / "text.txt"), tmp_path / "data"
  refuse(inputs.config(), [text], data, corpus.CorpusError, match)
  assert not data.exists()


@pytest.mark.parametrize(
  "workers", [1, pytest.param(2, marks=pytest.mark.slow)]
)
def test_bad_bytes_in_the_middle_are_named_whoever_reads_them(
  inputs, tmp_path, workers
):
  text = pathlib.Path(inputs.text).read_bytes()
  at = text.index(b"\n", len(text) // 2)
  (tmp_path / "text.txt").write_bytes(text[:at] + b"\xff" + text[at:])
  config = inputs.config(prepare__num_workers=workers)
  with pytest.raises(corpus.CorpusError, match=f"byte {at} is not UTF-8"):
    prepare.prepare(config, [str(tmp_path / "text.txt")], str(tmp_path / "d"))
  assert not (tmp_path / "d" / "manifest.json").exists()


@pytest.mark.parametrize(
  "workers", [1, pytest.param(2, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
  "damage", ["truncated", pytest.param("checksum", marks=pytest.mark.slow)]
)
def test_a_damaged_compressed_file_is_named_and_nothing_of_it_is_finished(
  inputs, tmp_path, workers, damage
):
  (tmp_path / "in").mkdir()
  write_text(tmp_path / "in" / "a.txt", inputs.documents)
  path = tmp_path / "in" / "b.txt.gz"
  write_text(path, make_documents(4_000, seed=2))
  whole = gzip.compress(path.read_bytes())
  data = bytearray(whole)
  if damage == "truncated":
    del data[-len(data) // 3 :]
  else:
    data[-8] ^= 1
  path.write_bytes(data)
  folder = tmp_path / "data"

  def run(folder):
    config = inputs.config(
      prepare__num_workers=workers, prepare__unit_bytes=150_000
    )
    prepare.prepare(config, [str(tmp_path / "in")], str(folder))

  for _ in range(2):  # the second time, what was finished stays so
    with pytest.raises(corpus.CorpusError, match="damaged") as info:
      run(folder)
    assert str(path) in str(info.value)
    assert not (folder / "manifest.json").exists()
    assert not (folder / ".progress" / "tokens" / "00001.json").exists()
    assert len(list(folder.glob("tokens/train-00001*.array_record"))) > 1
  if damage == "checksum":  # the file as it should be has the same size
    path.write_bytes(whole)
    run(folder)
    run(tmp_path / "straight")
    assert tree(folder) == tree(tmp_path / "straight")


@pytest.mark.parametrize(
  "pieces, lower_case, match",
  [
    (SPECIALS[:-1] + ["a", "b"], True, r"lacks \[MASK\]"),
    (SPECIALS + ["Alpha", "Beta"], True, "is cased: .* lower_case=False"),
    (SPECIALS + ["alpha", "beta"], False, "is uncased: .* lower_case=True"),
    (SPECIALS + ["a", "a"], True, "is also on line"),
  ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(
  inputs, tmp_path, pieces, lower_case, match
):
  path = tmp_path / "vocab.txt"
  path.write_text("\n".join(pieces) + "\n")
  config = make_config(str(path), prepare__lower_case=lower_case)
  message = refuse(config, [inputs.text], tmp_path / "data", ValueError, match)
  assert str(path) in message


def test_a_missing_vocabulary_is_refused(inputs, tmp_path):
  config = make_config(str(tmp_path / "none.txt"))
  refuse(
    config, [inputs.text], tmp_path / "data", FileNotFoundError, "none.txt"
  )


def test_pairs_need_two_documents(inputs, tmp_path):
  text = write_text(tmp_path / "text.txt", make_documents(1))
  config = inputs.config(prepare__held_out_rate=0.0)
  with pytest.raises(corpus.CorpusError, match="--input has one document"):
    prepare.prepare(config, [text], str(tmp_path / "data"))
  assert not (tmp_path / "data").exists()  # nothing was tokenised
  config.data.pairing = "full_sentences"
  prepare.prepare(config, [text], str(tmp_path / "data"))
  config.data.pairing = "pairs"
  with pytest.raises(records.DataError, match="has one train document"):
    prepare.prepare(config, [text], str(tmp_path / "data"))
  own = inputs.config(prepare__held_out_rate=0.0, prepare__held_out_input=text)
  with pytest.raises(corpus.CorpusError, match="held_out_input has one doc"):
    prepare.prepare(own, [inputs.text], str(tmp_path / "other"))


def test_sentences_are_held_out_where_documents_are_few(
  inputs, tmp_path, caplog
):
  for name, documents in (
    ("one", [sum(make_documents(60), [])]),
    ("five", make_documents(5, max_sentences=40)),
    ("short", [[s] for s in sum(make_documents(8), [])]),
  ):
    text = write_text(tmp_path / f"{name}.txt", documents)
    data = str(tmp_path / name)
    config = inputs.config(prepare__held_out_rate=1e-9, prepare__unit_bytes=900)
    caplog.clear()
    prepare.prepare(config, [text], data)
    assert "sentences instead" in caplog.text
    tokenizer = load.load_tokenizer(inputs.vocab)
    wanted = [tokenizer.encode(s) for d in documents for s in d]
    found = {s: stored_documents(data, s) for s in records.SPLITS}
    kept = {s: sum(found[s], []) for s in records.SPLITS}
    assert sorted(kept["train"] + kept["validation"]) == sorted(wanted)
    assert len(found["validation"]) >= 2 and len(found["train"]) >= 2
    assert 2 <= len(kept["validation"]) <= max(64, len(wanted) / 4)
    # No document of either split crosses a gap in the text.
    runs = {tuple(map(tuple, d)) for d in sum(found.values(), [])}
    for document in runs:
      assert any(
        tuple(map(tuple, wanted[i : i + len(document)])) == document
        for i in range(len(wanted))
      )
    # The same command goes on with the same division, and says so once.
    before = tree(data)
    prepare.prepare(config, [text], data)
    assert tree(data) == before


def test_enough_documents_are_divided_as_ever(inputs):
  units = corpus.list_units([inputs.text], "sentences", 6_000)
  config = inputs.config()
  assert held_out.choose(units, config.prepare, 2) == units


def test_too_little_text_to_hold_any_out_is_refused_before_it_is_tokenised(
  inputs, tmp_path
):
  text = write_text(tmp_path / "text.txt", [["One.", "Two.", "Three."]])
  with pytest.raises(corpus.CorpusError, match=r"3 sentences.*held_out_rate=0"):
    prepare.prepare(inputs.config(), [text], str(tmp_path / "data"))
  assert not (tmp_path / "data").exists()


def test_text_without_a_token_is_refused(inputs, tmp_path):
  (tmp_path / "text.txt").write_text("\u200b\n\n\u200b\n")  # format marks
  config = inputs.config(prepare__held_out_rate=0.0)
  with pytest.raises(corpus.CorpusError, match="no document with any token"):
    prepare.prepare(config, [str(tmp_path / "text.txt")], str(tmp_path / "d"))


def test_examples_need_tokens_first(inputs, tmp_path):
  data = tmp_path / "data"
  refuse(
    inputs.config(), [], data, records.DataError, "bert-jax prepare --output"
  )
  assert not data.exists()


@pytest.mark.parametrize("suffix", ["boundaries.npy", "documents.npy"])
def test_damaged_tables_are_refused_before_examples_are_made(
  inputs, tmp_path, suffix
):
  tmp_path = shutil.copytree(inputs.data, tmp_path / "data")
  path = tmp_path / "tokens" / f"train-00001.{suffix}"
  data = bytearray(path.read_bytes())
  data[-9] ^= 1
  path.write_bytes(data)
  config = inputs.config(data__seq_len=64)
  message = refuse(config, [], tmp_path, records.DataError, "damaged; delete")
  assert str(path) in message


@pytest.mark.parametrize("name", ["manifest.json", "vocab/settings.json"])
def test_a_damaged_manifest_is_refused_and_kept(inputs, tmp_path, name):
  tmp_path = shutil.copytree(inputs.data, tmp_path / "data")
  (tmp_path / name).write_text('{"version": 1, ')
  message = refuse(
    inputs.config(), [inputs.text], tmp_path, records.DataError, "is damaged"
  )
  assert str(tmp_path / name) in message


@pytest.mark.parametrize(
  "changes, match",
  [
    (dict(prepare__runner="spark"), "prepare.runner='spark'; .*beam"),
    (dict(prepare__vocab_kind="bpe"), "prepare.vocab_kind='bpe'"),
    (dict(prepare__num_workers=-1), "prepare.num_workers=-1"),
    (dict(prepare__unit_bytes=0), "prepare.unit_bytes=0"),
    (dict(prepare__held_out_rate=1.0), "prepare.held_out_rate=1.0"),
    (dict(prepare__format="xml"), "prepare.format='xml'"),
    (dict(data__pairing="single"), "data.pairing='single'"),
    (dict(data__seq_len=4), "data.seq_len=4"),
    (dict(data__dupe_factor=0), "data.dupe_factor=0"),
    (dict(data__short_seq_rate=1.5), "data.short_seq_rate=1.5"),
    (dict(data__max_sequences=0), "data.max_sequences=0"),
  ],
)
def test_settings_that_cannot_be_are_refused(inputs, tmp_path, changes, match):
  config = inputs.config(**changes)
  refuse(config, [inputs.text], tmp_path / "data", ValueError, match)
  assert not (tmp_path / "data").exists()


def test_beam_without_its_extra_says_how_to_get_it(
  inputs, tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  config = inputs.config(prepare__runner="beam")
  with pytest.raises(ValueError, match=r"pip install 'bert_jax\[beam\]'"):
    prepare.prepare(config, [inputs.text], str(tmp_path))


def test_the_report_says_what_was_made_and_what_is_next(inputs, capsys):
  prepare.prepare(inputs.config(), [], inputs.data)
  out = " ".join(capsys.readouterr().out.split())
  totals = manifests.read_manifest(inputs.data)["totals"]
  assert f"train: {totals['train']['documents']} documents" in out
  assert "validation: " in out and "examples of 32" in out
  assert f"--config.data.dir={inputs.data}" in out


def test_the_report_says_what_packing_would_make_of_it(inputs, capsys):
  config = inputs.config(data__max_sequences=4)
  prepare.prepare(config, [], inputs.data)
  out = " ".join(capsys.readouterr().out.split())
  index = indexes.LengthIndex(
    inputs.data, records.examples_name(config.data), "train"
  )
  patterns = packing.pack_histogram(index.histogram, 32, 4)
  share = 100 * patterns.num_tokens / (32 * patterns.num_rows)
  said = f"{share:.1f} % when up to 4 share a row ({patterns.num_rows:,} rows)"
  assert said in out
  prepare.prepare(inputs.config(), [], inputs.data)
  assert "share a row" not in capsys.readouterr().out


# -- the order by length ---


@pytest.mark.parametrize("kind", ["pairs", "full_sentences"])
@pytest.mark.parametrize("split", records.SPLITS)
def test_every_example_is_found_once_under_its_length(inputs, kind, split):
  config = inputs.config(data__pairing=kind)
  examples = read_examples(inputs.data, config, split)
  index = indexes.LengthIndex(
    inputs.data, records.examples_name(config.data), split
  )
  lengths = records.example_lengths(examples)
  specials = np.where(examples["b_length"] > 0, 3, 2)
  np.testing.assert_array_equal(
    lengths, examples["a_length"] + examples["b_length"] + specials
  )
  np.testing.assert_array_equal(
    index.histogram, np.bincount(lengths, minlength=33)
  )
  ranks = np.concatenate([np.arange(count) for count in index.histogram])
  asked = np.repeat(np.arange(33), index.histogram)
  found = index.find(asked, ranks)
  np.testing.assert_array_equal(np.sort(found), np.arange(len(examples)))
  np.testing.assert_array_equal(lengths[found], asked)
  # In any order, and few at a time.
  some = np.random.default_rng(0).integers(0, len(found), 7)
  np.testing.assert_array_equal(
    index.find(asked[some], ranks[some]), found[some]
  )


def _copy_first_data(inputs, data):
  """Copies the data as it was made, without what other tests have added."""
  shutil.copytree(inputs.data, data)
  for path in data.rglob("*"):
    if path.is_file() and str(path.relative_to(data)) not in inputs.tree:
      path.unlink()


def test_data_of_an_older_release_gets_its_order_without_text(inputs, tmp_path):
  """The same bytes, and nothing else is written again."""
  data = tmp_path / "data"
  _copy_first_data(inputs, data)
  for path in data.glob("examples/*/lengths"):
    shutil.rmtree(path)
  kept = {p: identity(p) for p in data.rglob("*") if p.is_file()}
  for kind in ("pairs", "full_sentences"):
    prepare.prepare(inputs.config(data__pairing=kind), [], str(data))
  assert tree(data) == inputs.tree
  assert all(identity(p) == i for p, i in kept.items() if p.name != ".lock")


@pytest.mark.parametrize("name", ["train.npy", "train-00002.npy"])
def test_a_lost_file_of_the_order_is_made_again(inputs, tmp_path, name):
  data = tmp_path / "data"
  _copy_first_data(inputs, data)
  folder = records.examples_name(inputs.config().data)
  os.remove(data / "examples" / folder / "lengths" / name)
  prepare.prepare(inputs.config(), [], str(data))
  assert tree(data) == inputs.tree


def test_an_order_of_other_examples_is_refused(inputs, tmp_path):
  data = tmp_path / "data"
  shutil.copytree(inputs.data, data)
  folder = records.examples_name(inputs.config().data)
  path = data / "examples" / folder / "lengths" / "manifest.json"
  manifest = json.loads(path.read_text())
  path.write_text(json.dumps(manifest | {"examples": "0" * 64}))
  with pytest.raises(records.DataError, match="made from other examples than"):
    prepare.prepare(inputs.config(), [], str(data))
  with pytest.raises(records.DataError, match="made from other examples than"):
    indexes.LengthIndex(str(data), folder, "train")


def test_files_of_others_in_the_folder_are_left_alone(inputs, tmp_path):
  others = [tmp_path / "notes.tmp", tmp_path / "mine" / "draft.1.tmp"]
  for path in others:
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
  prepare.prepare(inputs.config(), [inputs.text], str(tmp_path))
  assert all(path.read_text() == "mine" for path in others)


@pytest.mark.parametrize("gone", [False, True])
def test_what_a_kill_left_of_finished_stages_is_removed(inputs, tmp_path, gone):
  inputs.run(tmp_path)
  names = sorted(p.name for p in tmp_path.iterdir())
  for stage in ["gone"] if gone else ["tokens", PAIRS, f"{PAIRS}.lengths"]:
    path = tmp_path / ".progress" / stage / "00002.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
  (tmp_path / "manifest.json.7.tmp").write_text("{")
  inputs.run(tmp_path)
  assert sorted(p.name for p in tmp_path.iterdir()) == names
  # Nobody takes them for the progress of shards that are made anew.
  (tmp_path / "tokens" / "train-00002.array_record").unlink()
  inputs.run(tmp_path)
  assert tree(tmp_path) == inputs.tree


def test_a_vocabulary_folder_of_others_is_not_overwritten(inputs, tmp_path):
  (tmp_path / "vocab").mkdir()
  (tmp_path / "vocab" / "vocab.txt").write_text("mine")
  with pytest.raises(records.DataError, match="did not make it"):
    prepare.prepare(inputs.config(), [inputs.text], str(tmp_path))
  assert (tmp_path / "vocab" / "vocab.txt").read_text() == "mine"


# -- inputs are known by their content ---


def edit(path):
  """Changes letters of a file, and neither its size nor its times."""
  path = pathlib.Path(path)
  before = path.stat()
  content = path.read_bytes()
  if path.suffix == ".gz":  # the least that changes the text, not the size
    text = bytearray(gzip.decompress(content))
    for i in range(len(text)):
      changed = bytes(text[:i]) + b"%c" % (text[i] ^ 1) + bytes(text[i + 1 :])
      packed = gzip.compress(changed)
      if text[i : i + 1].isalpha() and len(packed) == len(content):
        break
    path.write_bytes(packed)
  else:
    at = len(content) // 2
    swapped = content[at:].replace(b"a", b"o", 1)
    path.write_bytes(content[:at] + swapped)
  assert path.read_bytes() != content
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  assert path.stat().st_size == before.st_size


@pytest.fixture(
  params=["text.txt", pytest.param("text.txt.gz", marks=pytest.mark.slow)]
)
def editable(inputs, tmp_path, request):
  """A corpus in one file that a test may edit."""
  path = tmp_path / request.param
  content = pathlib.Path(inputs.text).read_bytes()
  if path.suffix == ".gz":
    content = gzip.compress(content)
  path.write_bytes(content)
  return path


@pytest.mark.parametrize("learns", [False, True])
def test_an_edited_text_of_the_same_size_is_refused(
  inputs, editable, tmp_path, learns
):
  changes = {"prepare__vocab": ""} if learns else {}
  config = inputs.config(prepare__vocab_size=90, **changes)
  data = tmp_path / "data"
  prepare.prepare(config, [str(editable)], str(data))
  kept, content = tree(data), editable.read_bytes()
  edit(editable)
  match = "sha256: .* there" if learns else "is not the text that .*sha256"
  said = refuse(config, [str(editable)], data, records.DataError, match)
  assert "give another --output" in said
  assert learns or str(editable) in said
  prepare.prepare(config, [], str(data))  # no text is asked for
  editable.write_bytes(content)
  prepare.prepare(config, [str(editable)], str(data))
  assert tree(data) == kept


def test_an_edit_between_a_kill_and_its_resumption_is_refused(
  inputs, editable, tmp_path, monkeypatch
):
  data = tmp_path / "data"
  write_json = records.write_json

  def die(path, value):
    if path.endswith("data/manifest.json"):
      raise KeyboardInterrupt
    write_json(path, value)

  with monkeypatch.context() as patch:
    patch.setattr(records, "write_json", die)
    with pytest.raises(KeyboardInterrupt):
      prepare.prepare(inputs.config(), [str(editable)], str(data))
  content = editable.read_bytes()
  edit(editable)
  refuse(
    inputs.config(), [str(editable)], data, records.DataError,
    "is not the text that .*sha256",
  )  # fmt: skip
  editable.write_bytes(content)
  prepare.prepare(inputs.config(), [str(editable)], str(data))
  straight = tmp_path / "straight"
  prepare.prepare(inputs.config(), [str(editable)], str(straight))
  assert tree(data) == tree(straight)


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_vocabulary_that_an_older_release_learned(
  inputs, tmp_path, is_finished
):
  """Its record says nothing of the content; that of the tokens does."""
  text = write_text(tmp_path / "text.txt", inputs.documents)
  config = make_config(prepare__vocab_size=90)
  data = tmp_path / "data"
  prepare.prepare(config, [text], str(data))
  path = data / "vocab" / "settings.json"
  old = json.loads(path.read_text())
  del old["sha256"]
  path.write_text(json.dumps(old))
  if is_finished:
    kept = tree(data)
    prepare.prepare(config, [text], str(data))
    assert tree(data) == kept
    edit(text)
    refuse(config, [text], data, records.DataError, "is not the text that")
  else:  # it was killed before the tokens were all there
    want = tree(data)
    (data / "manifest.json").unlink()
    refuse(
      config, [text], data, records.DataError,
      "older release .*vocab.*sha256.*delete that folder",
    )  # fmt: skip
    # Other settings are named as such.
    other = make_config(prepare__vocab_size=80)
    refuse(other, [text], data, records.DataError, "vocab_size: 90 there")
    # What the message says to do leads to the data of a straight run.
    shutil.rmtree(data / "vocab")
    prepare.prepare(config, [text], str(data))
    straight = tmp_path / "straight"
    prepare.prepare(config, [text], str(straight))
    assert tree(data) == tree(straight)
    del want["vocab/settings.json"]
    assert want.items() <= tree(data).items()


def test_a_record_without_the_content_of_its_inputs_is_refused(
  inputs, tmp_path
):
  data = shutil.copytree(inputs.data, tmp_path / "data")
  path = data / "manifest.json"
  manifest = json.loads(path.read_text())
  del manifest["inputs"]
  path.write_text(json.dumps(manifest))
  refuse(
    inputs.config(), [inputs.text], data, records.DataError,
    "does not record the content of its inputs",
  )  # fmt: skip


def test_an_input_is_hashed_once_in_a_run_and_only_where_needed(
  inputs, tmp_path, monkeypatch
):
  hashed, hash_unit = [], corpus.hash_unit

  def count(unit, *args):
    hashed.append(unit)
    return hash_unit(unit, *args)

  monkeypatch.setattr(corpus, "hash_unit", count)
  units = corpus.list_units([inputs.text], "sentences", 6_000)
  data = tmp_path / "data"
  prepare.prepare(inputs.config(), [inputs.text], str(data))
  assert not hashed  # tokenising reads, and hashes, all of it
  prepare.prepare(inputs.config(), [inputs.text], str(data))
  assert sorted(u.start for u in hashed) == [u.start for u in units]
  hashed.clear()
  config = make_config(prepare__vocab_size=90)
  prepare.prepare(config, [inputs.text], str(tmp_path / "learned"))
  assert len(hashed) == len(units)
  prepare.prepare(config, [inputs.text], str(tmp_path / "learned"))
  assert len(hashed) == 2 * len(units)


@pytest.mark.parametrize("text_format", ["sentences", "paragraphs", "jsonl"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_hash_of_a_unit_is_that_of_what_reading_it_reads(
  tmp_path, monkeypatch, text_format, suffix
):
  monkeypatch.setattr(corpus, "MAX_LINE_BYTES", 64)
  # A unit then ends within a piece of the last of these lines.
  lines = ["", "x" * 500, " " * 700, "y", "", "", "z" * 190, "the end"]
  lines = (lines + ["x" * 63 + "\u00e9" + " " * 700]) * 9
  if text_format == "jsonl":
    lines = [json.dumps({"text": line, "pad": " " * 80}) for line in lines]
  path = tmp_path / f"text{suffix}"
  content = "\r\n".join(lines).encode()
  path.write_bytes(gzip.compress(content) if suffix else content)
  units = corpus.list_units([str(path)], text_format, 200)
  assert suffix or len(units) > 3
  for unit in units:
    reading = corpus.Reading()
    for _ in corpus.read_documents(unit, text_format, "text", "en", reading):
      pass
    found = corpus.hash_unit(unit, text_format, "text")
    assert found == reading.hexdigest()


@TFDS_WARNING
def test_an_edited_tfds_data_set_is_refused(inputs, tmp_path):
  documents = [[f"Number {i} is so here."] for i in range(100)]
  folder = tfds_builder(tmp_path / "a", documents).data_dir
  edited = [[f"Number {i} is no here."] for i in range(100)]
  other = tfds_builder(tmp_path / "b", edited).data_dir
  config = inputs.config(prepare__format="tfds")
  data = tmp_path / "data"
  prepare.prepare(config, [str(folder)], str(data))
  prepare.prepare(config, [str(folder)], str(data))
  refuse(
    config, [str(other)], data, records.DataError, "is not the text that"
  )  # fmt: skip
