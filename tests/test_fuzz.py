"""Damaged input of every reader: what cannot be read is said in plain words.

A reader gets sound files, one of them damaged. It may take them, for a word of
a text may be another; or refuse them, naming the file. It may not end in any
other error, take long, ask for much memory or begin to unpickle.

The slow tests read ten thousand inputs of each reader; FUZZ_INPUTS and
FUZZ_SEED set another number and other inputs.
"""

import ast
import bz2
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import faulthandler
import functools
import gzip
import io
import json
import lzma
import os
import pathlib
import random
import re
import resource
import shutil
import sys
import time
from typing import Any, Protocol

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import safetensors.numpy
import sentencepiece

from bert_jax import tasks
from bert_jax import weights
from bert_jax.data import batching
from bert_jax.data import corpus
from bert_jax.data import prepare
from bert_jax.data import rows
from bert_jax.data import segmenters
from bert_jax.data import summary
from bert_jax.data.stages import examples
from bert_jax.data.stages import stage
from bert_jax.data.store import records
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import load
from bert_jax.data.tokenizers import wordpiece
from bert_jax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from bert_jax.kinds import table
from bert_jax.models import heads
from bert_jax.models import params as param_trees
from bert_jax.prediction import predict
from bert_jax.prediction import records as prediction_records
from bert_jax.prediction import tables
from bert_jax.runtime import checkpoint
from bert_jax.runtime import metrics_log
from bert_jax.runtime import resume
from bert_jax.runtime import runs
from bert_jax.tasks import own
from bert_jax.tasks import spec
from bert_jax.tasks import squad
from bert_jax.tasks import submission
from bert_jax.training import pretraining
from bert_jax.weights import tf_checkpoint
from configs import base
from tests.support import import_graph

PACKAGE = pathlib.Path(__file__).parents[1] / "bert_jax"

MAX_SECS = 5.0  # of the processor, for one input
HANG_SECS = 60.0  # after which a reader that never comes back is ended
MAX_BYTES = 1 << 30  # that one input may ask for

PIECES = [*interface.SPECIAL_TOKENS, *"the cat sat on mat ##s . ?".split()]
MODEL = {
  "vocab_size": len(PIECES) + 1,
  "num_layers": 1,
  "hidden_size": 4,
  "num_heads": 2,
  "mlp_dim": 8,
  "max_len": 12,
  "type_vocab_size": 2,
  "hidden_act": "gelu_erf",
  "layer_norm_eps": 1e-12,
}


@dataclasses.dataclass(frozen=True)
class Reader:
  """A way in for bytes from outside.

  Attributes:
    make: writes sound files into a folder.
    read: reads that folder as the launcher does.
    damaged: pattern of the names of the files that are damaged.
    says: pattern of what a message names that does not name the file.
    examples: inputs in the default suite; few for what takes long.
  """

  make: Callable[[pathlib.Path], None]
  read: Callable[[pathlib.Path], object]
  damaged: str = ".*"
  says: str = "$^"
  examples: int = 25


READERS: dict[str, Reader] = {}


# --- damage ------------------------------------------------------------------

# A program of pickle's that would raise ZeroDivisionError.
PROGRAM = b"cbuiltins\neval\n(V1/0\ntR."
VALUES = (
  b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"1", b"1.5",
  b"9" * 25, b'""', b'"a"', b"[]", b"{}", b"[null]", b'{"a": 1}', b'"\\ud800"',
  b'"\\u0000"', b'"../"', b"[" * 100 + b"]" * 100,
)  # fmt: skip
TOKENS = (
  b"9" * 5000, b'"', b"'", b"[", b"]", b"{", b"}", b",", b":", b"[[[[" * 5000,
  b'{"a":' * 5000, b"[" * 900 + b"]" * 900, b'{"a":' * 900 + b"1" + b"}" * 900,
  b"\\", b"\0", b"\xff", b"\xed\xa0\x80", b"\xc3", b"\xef\xbb\xbf", b"\xff\xfe",
  b"\xe2\x80\xa8", b"\xe2\x80\x9c" * 3000, b"\n", b"\r", b"\t", b" ", b"\n\n",
  b"a" * 70_000, b"/", b"##", b"[PAD]", b"[MASK]", b'"id"', b"O", b"B-PER",
  PROGRAM,
)  # fmt: skip
WHOLE = (b"", b"\n", b" ", b"{}", b"[]", b"0", b"null", PROGRAM, b"PK\3\4")
NUMBERS = tuple(
  value.to_bytes(size, "little")
  for size in (1, 2, 4, 8)
  for value in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1),
                2 ** (8 * size) - 1)
)  # fmt: skip
WORD = re.compile(rb'"(?:[^"\\]|\\.)*"|[-+.\w]+')


class Draws(Protocol):
  """Where the choices of what is damaged come from."""

  def number(self, low: int, high: int) -> int:
    """Returns an integer of low to high, both included."""

  def one_of(self, values: Sequence[Any]) -> Any:
    """Returns one of some values."""

  def content(self, low: int, high: int) -> bytes:
    """Returns low to high arbitrary bytes."""


@dataclasses.dataclass(frozen=True)
class Searched:
  """Choices of hypothesis, which looks for odd ones and shrinks what fails."""

  draw: Callable[[st.SearchStrategy], Any]

  def number(self, low, high):
    return self.draw(st.integers(low, high))

  def one_of(self, values):
    return self.draw(st.sampled_from(values))

  def content(self, low, high):
    return self.draw(st.binary(min_size=low, max_size=high))


@dataclasses.dataclass(frozen=True)
class Seeded:
  """Choices of a generator of random numbers: far quicker for large counts."""

  rng: random.Random

  def number(self, low, high):
    return self.rng.randint(low, high)

  def one_of(self, values):
    return values[self.rng.randrange(len(values))]

  def content(self, low, high):
    return self.rng.randbytes(self.rng.randint(low, high))


def damage(draws: Draws, sound: bytes) -> bytes:
  """Returns sound bytes with some changes, or others altogether."""
  if draws.number(0, 24) == 0:
    if draws.number(0, 1):
      return draws.one_of(WHOLE)
    return draws.content(0, 200)
  data = sound
  for _ in range(draws.one_of((1, 1, 1, 2, 3, 8))):
    data = draws.one_of(CHANGES)(draws, data)
  return data


def _span(draws: Draws, data: bytes) -> tuple[int, int]:
  start = draws.number(0, len(data))
  return start, min(start + draws.number(0, 40), len(data))


def _flip(draws: Draws, data: bytes) -> bytes:
  if not data:
    return data
  at = draws.number(0, len(data) - 1)
  bit = 1 << draws.number(0, 7)
  return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


def _delete(draws: Draws, data: bytes) -> bytes:
  start, end = _span(draws, data)
  return data[:start] + data[end:]


def _repeat(draws: Draws, data: bytes) -> bytes:
  start, end = _span(draws, data)
  return data[:end] + data[start:end] * draws.number(1, 3) + data[end:]


def _move(draws: Draws, data: bytes) -> bytes:
  start, end = _span(draws, data)
  at = draws.number(0, len(data))
  return data[:at] + data[start:end] + data[at:]


def _insert(draws: Draws, data: bytes) -> bytes:
  at = draws.number(0, len(data))
  if draws.number(0, 1):
    return data[:at] + draws.one_of(TOKENS + VALUES) + data[at:]
  return data[:at] + draws.content(1, 9) + data[at:]


def _cut(draws: Draws, data: bytes) -> bytes:
  return data[: draws.number(0, len(data))]


def _number(draws: Draws, data: bytes) -> bytes:
  at = draws.number(0, len(data))
  what = draws.one_of(NUMBERS)
  return data[:at] + what + data[at + len(what) :]


def _word(draws: Draws, data: bytes, others=TOKENS) -> bytes:
  """Puts something else in the place of a word."""
  words = [match.span() for match in WORD.finditer(data[:100_000])]
  if not words:
    return data
  start, end = draws.one_of(words)
  return data[:start] + draws.one_of(others) + data[end:]


def _value(draws: Draws, data: bytes) -> bytes:
  """Puts another value in the place of one, so that JSON stays JSON."""
  return _word(draws, data, VALUES)


CHANGES = (
  _cut, _delete, _flip, _insert, _move, _number, _repeat, _value, _value, _word,
)  # fmt: skip


# --- what must hold ----------------------------------------------------------

_unpickled: list[str] = []


def _watch(event: str, args: tuple) -> None:
  if event == "pickle.find_class":
    _unpickled.append(f"{args[0]}.{args[1]}")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
  """A context whose code may take neither long nor much memory."""
  statm = pathlib.Path("/proc/self/statm")
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  if statm.exists():
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES, hard))
  faulthandler.dump_traceback_later(HANG_SECS, exit=True, file=sys.__stderr__)
  start = time.process_time()
  try:
    yield
    secs = time.process_time() - start
    assert secs < MAX_SECS, f"took {secs:.1f} s"
  finally:
    faulthandler.cancel_dump_traceback_later()
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def causes(error: BaseException | None) -> Iterator[BaseException]:
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def read_or_refuse(reader: Reader, folder: pathlib.Path) -> str:
  """Reads files that may be damaged; returns the message of what was wrong.

  Raises:
    AssertionError: the message is not clear.
    Exception: another error than those that main.py says in one line.
  """
  _unpickled.clear()
  message = ""
  with bounded():
    try:
      reader.read(folder)
    except (ValueError, FileNotFoundError) as error:
      message = str(error)
      assert not isinstance(error, (UnicodeError, json.JSONDecodeError)), error
      is_named = str(folder) in message or re.search(reader.says, message)
      assert is_named, f"names no file: {error!r}"
      assert len(message) < 2000, message
      for cause in causes(error):
        assert not isinstance(cause, MemoryError), repr(cause)
  assert not _unpickled, _unpickled
  return message


def write_all(folder: pathlib.Path, files: dict[str, bytes]) -> None:
  shutil.rmtree(folder, ignore_errors=True)
  for name, data in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def sound_files(reader: Reader, folder: pathlib.Path) -> dict[str, bytes]:
  folder.mkdir()
  reader.make(folder)
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def sound_reader(
  reader: Reader, folder: pathlib.Path
) -> tuple[dict[str, bytes], list[str]]:
  """Returns a reader's sound files, once read, and the names to damage."""
  sound = sound_files(reader, folder)
  names = [name for name in sound if re.fullmatch(reader.damaged, name)]
  assert names
  write_all(folder, sound)
  reader.read(folder)  # also starts threads, which want room of their own
  return sound, names


def fuzz(reader: Reader, tmp_path: pathlib.Path, **options) -> None:
  """Reads so many damaged inputs; `options` are hypothesis' settings."""
  folder = tmp_path / "fuzz"
  sound, names = sound_reader(reader, folder)

  @hypothesis.settings(
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    **options,
  )
  @hypothesis.given(st.data())
  def run(data):
    name = data.draw(st.sampled_from(names))
    damaged = damage(Searched(data.draw), sound[name])
    write_all(folder, sound | {name: damaged})
    read_or_refuse(reader, folder)

  run()


def fuzz_many(
  reader: Reader, tmp_path: pathlib.Path, count: int, seed: int
) -> None:
  """Reads `count` damaged inputs; says which one a failure is about."""
  folder = tmp_path / "fuzz"
  sound, names = sound_reader(reader, folder)
  for i in range(count):
    draws = Seeded(random.Random(f"{seed} {i}"))
    name = draws.one_of(names)
    damaged = damage(draws, sound[name])
    write_all(folder, sound | {name: damaged})
    try:
      read_or_refuse(reader, folder)
    except BaseException as error:
      error.add_note(f"seed {seed}, input {i}: {name} = {damaged[:2000]!r}")
      raise


# --- text --------------------------------------------------------------------

TEXT = (
  "The cat sat. On the mat?\nAnother \u00e9\u4e2d.\n\nA second one, of 2.5"
  " \u201cm\u201d.\n\n\nMr. Cat sat. It's here!\n"
).encode()
JSONL = b"".join(
  json.dumps({"text": text, "id": i}).encode() + b"\n"
  for i, text in enumerate(["The cat. It sat.", "On\n\na mat \u00e9", "\ud83d"])
)


def _corpus_reader(text_format: str, name: str, content: bytes) -> Reader:
  def make(folder):
    (folder / name).write_bytes(content)

  def read(folder):
    _read_corpus(str(folder / name), text_format)

  return Reader(make, read)


def _read_corpus(pattern: str, text_format: str, text_key: str = "text"):
  units = corpus.list_units([pattern], text_format, 40)
  corpus.text_sizes(units, text_format, text_key)
  for unit in units:
    for part in corpus.read_parts(
      unit, text_format, text_key, "en", corpus.Reading()
    ):
      list(part)


CONTENT = [{"text": "The cat. It sat.", "n": 1}, {"text": None, "n": 2}]
CSV = b'text,n\n"The ""cat"",\nit sat",1\nOn a mat \xc3\xa9,2\n'


def _columnar(format: str) -> bytes:
  """A small file of a format of columns."""
  table, sink = pyarrow.Table.from_pylist(CONTENT * 3), io.BytesIO()
  if format == "parquet":
    pyarrow.parquet.write_table(table, sink, row_group_size=2)
    return sink.getvalue()
  new = pyarrow.ipc.new_stream if format == "stream" else pyarrow.ipc.new_file
  with new(sink, table.schema) as writer:
    writer.write_table(table, max_chunksize=2)
  return sink.getvalue()


def _rows_reader(name: str, content: bytes) -> Reader:
  """A file of rows, read as a table and as a corpus."""

  def make(folder):
    (folder / name).write_bytes(content)

  def read(folder):
    for _ in rows.read(str(folder / name), on_broken=lambda _: None):
      pass
    _read_corpus(str(folder / name), "sentences")

  return Reader(make, read, examples=8)


READERS |= {
  f"rows of {name}": _rows_reader(name, content)
  for name, content in {
    "a.csv": CSV,
    "a.tsv": b'text\tn\nThe "cat\tone\nA mat \xc3\xa9\ttwo\n',
    "a.json": json.dumps(CONTENT * 2, indent=1).encode(),
    "a.jsonl": JSONL,
    "a.parquet": _columnar("parquet"),
    "a.arrow": _columnar("stream"),
    "a.feather": _columnar("file"),
    "a.csv.gz": gzip.compress(CSV, mtime=0),
    "a.csv.bz2": bz2.compress(CSV),
    "a.csv.xz": lzma.compress(CSV),
    "a.csv.zst": pyarrow.Codec("zstd").compress(CSV, asbytes=True),
  }.items()
}


READERS |= {
  "sentences": _corpus_reader("sentences", "a.txt", TEXT),
  "paragraphs": _corpus_reader("paragraphs", "a.txt", TEXT),
  "jsonl": _corpus_reader("jsonl", "a.jsonl", JSONL),
  "sentences.gz": _corpus_reader(
    "sentences", "a.txt.gz", gzip.compress(TEXT, mtime=0)
  ),
  "jsonl.gz": _corpus_reader(
    "jsonl", "a.jsonl.gz", gzip.compress(JSONL, mtime=0)
  ),
}


def _make_tfds(folder):
  """Pairs of sentences, prepared without TensorFlow."""
  import tensorflow_datasets as tfds

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = "glue"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="mnli")]

    def _info(self):
      features = {
        "premise": tfds.features.Text(),
        "hypothesis": tfds.features.Text(),
        "label": tfds.features.ClassLabel(
          names=["entailment", "neutral", "contradiction"]
        ),
        "idx": np.int32,
      }
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features)
      )

    def _split_generators(self, _):
      row = {"premise": "the cat", "hypothesis": "\u00e9"}
      rows = [row | {"label": i, "idx": i} for i in range(3)]
      return {"train": enumerate(rows)}

    def _generate_examples(self):
      raise NotImplementedError

  builder = Builder(data_dir=folder, file_format="array_record")
  builder.download_and_prepare()


def _read_tfds_corpus(folder):
  _read_corpus(str(folder / "glue/mnli/1.0.0"), "tfds", "premise")


def _read_tfds_task(folder):
  examples = tasks.read_examples(tasks.TASKS["mnli"], f"tfds:{folder}", "train")
  _features(tasks.TASKS["mnli"], examples)


# --- vocabularies ------------------------------------------------------------


def _use_tokenizer(path):
  """Loads a tokenizer and calls all that needs no more than itself."""
  tokenizer = load.load_tokenizer(path)
  text = "The cats \u00e9\u4e2d sat. [MASK]\u2581 \ud800"
  ids = tokenizer.encode(text)
  assert tokenizer.encode_with_offsets(text)[0] == ids
  tokenizer.decode(ids)
  tokenizer.continues_word()


def _make_vocab(folder):
  (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")


def _make_saved_vocab(folder):
  wordpiece.WordPieceTokenizer(PIECES).save(folder)


@functools.cache
def _sentencepiece(rules: str) -> bytes:
  model = io.BytesIO()
  pad, unk, *control = interface.SPECIAL_TOKENS
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the cat sat on the mat", "cats on mats"] * 20),
    model_writer=model, vocab_size=19, model_type="unigram",
    normalization_rule_name=rules, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1,
    pad_piece=pad, unk_piece=unk, control_symbols=control, minloglevel=2,
  )  # fmt: skip
  return model.getvalue()


def _model_maker(rules: str):
  def make(folder):
    (folder / "m.model").write_bytes(_sentencepiece(rules))

  return make


def _make_saved_model(folder):
  SentencePieceTokenizer(_sentencepiece("identity")).save(folder)


READERS |= {
  "vocab.txt": Reader(
    _make_vocab, lambda folder: _use_tokenizer(folder / "vocab.txt")
  ),
  "saved vocab.txt": Reader(_make_saved_vocab, _use_tokenizer),
  "sentencepiece": Reader(
    _model_maker("identity"), lambda folder: _use_tokenizer(folder / "m.model")
  ),
  "sentencepiece nfkc": Reader(
    _model_maker("nmt_nfkc"), lambda folder: _use_tokenizer(folder / "m.model")
  ),
  "saved sentencepiece": Reader(_make_saved_model, _use_tokenizer),
}


# --- tasks -------------------------------------------------------------------

TOKENIZER = wordpiece.WordPieceTokenizer(PIECES)


def _features(task: spec.Task, examples) -> None:
  kind = table.of_task(task)
  options = {"max_query_len": 4, "doc_stride": 4} if task.kind == "span" else {}
  kind.make_features(task, examples, TOKENIZER, seq_len=16, **options)


def _task_reader(name: str, split: str, file: str, *lines: str) -> Reader:
  content = "\n".join([*lines, ""]).encode()

  def make(folder):
    (folder / file).write_bytes(content)

  def read(folder):
    task = tasks.TASKS[name]
    _features(task, tasks.read_examples(task, str(folder), split))

  return Reader(make, read, says=f"^task {name}: example")


def _own_reader(
  form: str, file: str, columns: str, *lines: str, **options
) -> Reader:
  """Data of one's own: labels are those of the file, as is has_null."""
  *text, label = columns.split()
  content = "\n".join([*lines, ""]).encode()

  def make(folder):
    (folder / file).write_bytes(content)

  def read(folder):
    path = own.find_train(str(folder))
    task = table.make_task(
      form, text=text, label=label, train_path=path, **options
    )
    _features(task, tasks.read_examples(task, str(folder), "train"))

  return Reader(make, read, says="^task own: example")


def _make_parquet_task(folder):
  rows = [{"text": "cat", "label": "yes"}, {"text": "mat", "label": "no"}]
  table = pyarrow.Table.from_pylist(rows * 2)
  pyarrow.parquet.write_table(table, folder / "train.parquet")


def _read_parquet_task(folder):
  path = own.find_train(str(folder))
  task = table.make_task(
    "classify", text=["text"], label="label", train_path=path
  )
  _features(task, tasks.read_examples(task, str(folder), "train"))


def _squad(version: str, **no_answer) -> str:
  answer = {"text": "on the mat", "answer_start": 12}
  question = {"id": "a", "question": "Where?", "answers": [answer]}
  other = {"id": "b", "question": "When?", "answers": [], **no_answer}
  questions = [question, other] if no_answer else [question]
  paragraph = {"context": "The cat sat on the mat.", "qas": questions}
  article = {"title": "", "paragraphs": [paragraph]}
  return json.dumps({"version": version, "data": [article]})


SWAG = (
  "video-id,sent1,sent2,ending0,ending1,ending2,ending3,label",
  'x,The cat,It,"sat, here",mat,on,the,1',
  "y,On,\u00e9,a,b,c,d,0",
)
SWAG_ROW = dict(zip(SWAG[0].split(","), "x a b c d e f".split(), strict=False))
PAIR = ("index\tsentence1\tsentence2\tlabel", "0\tThe cat\tsat\tentailment")
ASKED = ("index\tquestion\tsentence", "0\tWhere?\tOn the mat.")
TASK_READERS = {
  "cola": ("train", "train.tsv", "gj04\t1\t\tThe cat sat.", "x\t0\t*\tCat."),
  "sst2": ("train", "train.tsv", "sentence\tlabel", "the cat\t1", "mat\t0"),
  "mrpc": (
    "train",
    "train.tsv",
    "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "1\t2\t3\tThe cat\tsat",
  ),
  "stsb": (
    "train",
    "train.tsv",
    "index\tsentence1\tsentence2\tscore",
    "0\tthe cat\tsat\t4.5",
    "1\tcat\tmat\t0.000",
  ),
  "qqp": (
    "train",
    "train.tsv",
    "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "0\t1\t2\tcat?\tmat?\t1",
    "broken",
  ),
  "mnli": (
    "validation_matched",
    "dev_matched.tsv",
    "index\tsentence1\tsentence2\tgold_label",
    "0\tThe cat\tsat\tneutral",
  ),
  "rte": ("train", "train.tsv", *PAIR),
  "qnli": ("test", "test.tsv", *ASKED),
  "conll2003": (
    "train",
    "train.txt",
    "-DOCSTART- -X- -X- O",
    "",
    "The DT B-NP O",
    "cat NN I-NP B-PER",
    "",
    "Mat NN B-NP I-LOC",
  ),
  "wnut17": ("train", "wnut17train.conll", "cat\tB-person", "", "mat\tO"),
  "squad_v1": ("train", "train-v1.1.json", _squad("1.1")),
  "squad_v2": (
    "validation",
    "dev-v2.0.json",
    _squad("v2.0", is_impossible=True),
  ),
  "swag": ("train", "train.csv", *SWAG),
  "hellaswag": (
    "train",
    "hellaswag_train.jsonl",
    json.dumps(
      {
        "ind": 4,
        "ctx_a": "The cat.",
        "ctx_b": "it",
        "endings": ["sat", "on", "mat", "the"],
        "label": 2,
      }
    ),
  ),
  "codah": ("train", "train.tsv", "i\tThe cat\tsat\ton\tmat\tthe\t3"),
  "multirc": (
    "train",
    "train.jsonl",
    json.dumps({"idx": 0, "passage": {"text": "The cat sat.", "questions": [
      {"question": "Who?", "idx": 0, "answers": [
        {"text": "cat", "idx": 0, "label": 1}]}]}}),
  ),
  "record": (
    "train",
    "train.jsonl",
    json.dumps({"idx": 0, "passage": {"text": "The cat sat.", "entities": [
      {"start": 4, "end": 6}]}, "qas": [
        {"query": "@placeholder sat", "idx": 0, "answers": [
          {"start": 4, "end": 6, "text": "cat"}]}]}),
  ),
  "wsc": (
    "train",
    "train.jsonl",
    json.dumps({"text": "The cat sat", "idx": 0, "label": True, "target": {
      "span1_index": 1, "span1_text": "cat", "span2_index": 2,
      "span2_text": "sat"}}),
  ),
  "xnli_de": (
    "validation",
    "xnli.dev.tsv",
    "language\tgold_label\tsentence1\tsentence2\tpairID",
    "de\tneutral\tThe cat\tsat\t1",
  ),
}  # fmt: skip
READERS |= {
  name: _task_reader(name, *rest) for name, rest in TASK_READERS.items()
}
READERS |= {
  "swag.jsonl": _task_reader(
    "swag", "train", "train.jsonl", json.dumps(SWAG_ROW | {"label": 1})
  ),
  "own classify.tsv": _own_reader(
    "classify", "train.tsv", "text label", "text\tlabel", "cat\tyes", "a\tno"
  ),
  "own pairs.csv": _own_reader(
    "pairs", "train.csv", "a b label", "a,b,label", '"cat, mat",on,1', "x,y,0"
  ),
  "own regress.jsonl": _own_reader(
    "regress", "train.jsonl", "a y", '{"a": "cat", "y": 1.5}'
  ),
  "own tag.jsonl": _own_reader(
    "tag",
    "train.jsonl",
    "words tags",
    '{"words": ["The", "cat"], "tags": ["O", "B-PER"]}',
    '{"words": "on mat", "tags": "O I-LOC"}',
  ),
  "own tag.conll": _own_reader(
    "tag", "train.conll", "words tags", "The O", "cat B-PER", "", "mat O"
  ),
  "own span.jsonl": _own_reader(
    "span",
    "train.jsonl",
    "question context answer",
    json.dumps(
      {
        "id": "q",
        "question": "Where?",
        "context": "The cat sat on the mat.",
        "answer": "on the mat",
        "answer_start": 12,
      }
    ),
    '{"question": "When?", "context": "The cat.", "answer": ""}',
  ),
  "own span.json": _own_reader(
    "span", "train.json", "question context answer", _squad("1.1")
  ),
  "own choice.jsonl": _own_reader(
    "choice",
    "train.jsonl",
    "a b c label",
    '{"a": "cat", "b": "sat", "c": "mat", "label": "1"}',
  ),
  "own tag bioes.conll": _own_reader(
    "tag",
    "train.conll",
    "words tags",
    "The O",
    "cat S-PER",
    "",
    "mat B-LOC",
    "on I-LOC",
    "the E-LOC",
  ),
  "own tag bilou.jsonl": _own_reader(
    "tag",
    "train.jsonl",
    "words tags",
    '{"words": ["The", "cat"], "tags": ["O", "U-PER"]}',
    '{"words": ["on", "the", "mat"], "tags": ["B-LOC", "I-LOC", "L-LOC"]}',
  ),
  "own tag ints.jsonl": _own_reader(
    "tag",
    "train.jsonl",
    "words tags",
    '{"words": ["The", "cat"], "tags": [0, 1]}',
    '{"words": ["on", "mat"], "tags": [0, 2]}',
    labels=("O", "B-PER", "I-PER"),
  ),
  "own tag plain.conll": _own_reader(
    "tag",
    "train.conll",
    "words tags",
    "# text",
    "The DET",
    "cat NOUN",
    "",
    "\u3000 PUNCT",
    "sat VERB",
  ),
  "own classify.parquet": Reader(
    _make_parquet_task, _read_parquet_task, says="^task own: example"
  ),
  "own tag spans.jsonl": _own_reader(
    "tag",
    "train.jsonl",
    "text spans",
    '{"text": "The cat sat.", "spans": [[4, 7, "PER"]]}',
    '{"text": "mat", "spans": [{"start": 0, "end": 3, "label": "LOC"}]}',
  ),
  "own tag.conllu": _own_reader(
    "tag",
    "train.conllu",
    "form upos",
    "# text = The cat",
    "1\tThe\t_\tDET\t_\t_\t_\t_\t_\t_",
    "2\tcat\t_\tNOUN\t_\t_\t_\t_\t_\t_",
  ),
  "own array.json": _own_reader(
    "classify",
    "train.json",
    "text label",
    '[{"text": "cat", "label": "yes"},',
    ' {"text": "mat", "label": 1.0}]',
  ),
  "own template.csv": _own_reader(
    "classify",
    "train.csv",
    "{a}:{b} label",
    "a;b;label",
    '"cat; mat";on;1',
    "x;y;1.0",
    "x;y;no",
  ),
  "own answers.jsonl": _own_reader(
    "span",
    "train.jsonl",
    "q c a",
    '{"q": "?", "c": "a cat", "a": {"text": ["cat"], "answer_start": [2]}}',
    '{"q": "!", "c": "a mat", "a": ["mat"]}',
  ),
  "own choices.jsonl": _own_reader(
    "choice",
    "train.jsonl",
    "q c label",
    '{"q": "cat", "c": ["sat", "on"], "label": "B"}',
    '{"q": "x", "c": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]},'
    ' "label": "3"}',
  ),
  "tfds text": Reader(_make_tfds, _read_tfds_corpus, examples=10),
  "tfds task": Reader(_make_tfds, _read_tfds_task, examples=10),
}


def _scores_reader(version: str, **no_answer) -> Reader:
  def make(folder):
    (folder / "data.json").write_text(_squad(version, **no_answer))
    (folder / "answers.json").write_text('{"a": "the mat", "b": ""}')
    (folder / "odds.json").write_text('{"a": -3.5, "b": 2}')

  def read(folder):
    squad.evaluate_files(
      str(folder / "data.json"),
      str(folder / "answers.json"),
      str(folder / "odds.json") if no_answer else "",
    )

  return Reader(make, read)


def _make_submission(folder):
  for name in ("CoLA.tsv", "AX.tsv"):
    path = folder / "run" / "predictions" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("index\tprediction\n0\t1\n")


READERS |= {
  "squad scores 1.1": _scores_reader("1.1"),
  "squad scores 2.0": _scores_reader("v2.0", is_impossible=True),
  "submission": Reader(
    _make_submission,
    lambda folder: submission.zip_runs(
      str(folder / "glue.zip"), [str(folder / "run")], partial=True
    ),
  ),
}


# --- weights -----------------------------------------------------------------


def _pretrained(kind: str = "classify") -> weights.Pretrained:
  rng = np.random.default_rng(0)
  labels = {"classify": ("no", "yes"), "tag": ("O", "B-PER")}.get(kind, ())
  count = {"span": 2}.get(kind, len(labels) or 1)
  flat = {
    path: rng.normal(size=shape).astype(np.float32)
    for path, shape in heads.param_shapes(MODEL, count).items()
    if kind or not path.startswith("task")
  }
  return weights.Pretrained(
    format="bert_jax",
    model=MODEL,
    params=param_trees.nest(flat),
    kind=kind or None,
    labels=labels,
    tokenizer=TOKENIZER,
    lower_case=True,
  )


def _weights_reader(format: str, examples: int = 25) -> Reader:
  def make(folder):
    weights.write(_pretrained(), folder, format)

  return Reader(make, weights.read, examples=examples)


def _make_shards(folder):
  """Two files of tensors, and a vocabulary in tokenizer.json alone."""
  weights.write(_pretrained(), folder, "huggingface")
  path = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  path.unlink()
  names = sorted(tensors)
  files = {}
  for i, part in enumerate((names[:20], names[20:])):
    file = f"model-0000{i}-of-00002.safetensors"
    safetensors.numpy.save_file({n: tensors[n] for n in part}, folder / file)
    files |= dict.fromkeys(part, file)
  (folder / "model.safetensors.index.json").write_text(
    json.dumps({"metadata": {}, "weight_map": files})
  )
  (folder / "vocab.txt").unlink()
  (folder / "tokenizer_config.json").unlink()
  vocab = {piece: i for i, piece in enumerate(PIECES)}
  settings = {
    "normalizer": {"type": "BertNormalizer", "lowercase": True},
    "model": {"type": "WordPiece", "vocab": vocab},
  }
  (folder / "tokenizer.json").write_text(json.dumps(settings))


def _read_unchecked(folder):
  """Reads without checking checksums, so that damage gets past them."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tf_checkpoint, "_check_crc", lambda *args: None)
    weights.read(folder)


READERS |= {
  "huggingface": _weights_reader("huggingface"),
  "huggingface settings": dataclasses.replace(
    _weights_reader("huggingface"), damaged=r".*\.(json|txt)"
  ),
  "huggingface shards": Reader(_make_shards, weights.read, examples=10),
  "flax": dataclasses.replace(_weights_reader("flax"), damaged=".*msgpack"),
  "tf1": _weights_reader("tf1"),
  "tf1 without checksums": dataclasses.replace(
    _weights_reader("tf1"), read=_read_unchecked, damaged=".*(index|data).*"
  ),
  "workdir": _weights_reader("bert_jax", examples=8),
}


# --- runs --------------------------------------------------------------------


def _state(step: int):
  params = {"w": jnp.full((4, 2), float(step)), "b": jnp.arange(3.0)}
  return params, {"step": jnp.int32(step), "mu": params["w"] / 2}


def _open_checkpoints(folder):
  return checkpoint.Checkpoints(
    str(folder), keep=2, best_metric="eval/loss", best_mode="min"
  )


def _make_checkpoints(folder):
  checkpoints = _open_checkpoints(folder)
  for step in (1, 2):
    checkpoints.save(step, *_state(step), {"eval/loss": 1.0 / step})
  checkpoints.close()


def _abstract(tree):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def _restore(folder):
  """The newest that is sound; whatever was damaged, what is read was saved."""
  checkpoints = _open_checkpoints(folder)
  try:
    step, *found = checkpoints.restore_newest(*map(_abstract, _state(0)))
  finally:
    checkpoints.close()
  jax.tree.map(np.testing.assert_array_equal, tuple(found), _state(step))
  params = _abstract(_state(0)[0])
  checkpoint.restore_params(str(folder), params, "newest")
  checkpoint.restore_params(str(folder), params, "best")


def _make_run(folder):
  config = base.get_config()
  run = runs.describe(config, "0" * 64, jax.devices())
  runs.write_run(str(folder), run)
  runs.write_run(str(folder), run)


def _read_run(folder):
  config = runs.read_run(str(folder))["config"]
  ml_collections.ConfigDict(config, convert_dict=True)
  run = runs.describe(base.get_config(), "0" * 64, jax.devices())
  resume.check_workdir(str(folder), run)
  runs.write_run(str(folder), run)


def _make_metrics(folder):
  log = metrics_log.MetricsLog(str(folder), 0, tensorboard=False)
  for step in range(4):
    log.write(step, {"train/loss": 1.5, "eval/loss": float("nan")})
  log.close()


def _read_metrics(folder):
  log = metrics_log.MetricsLog(str(folder), 2, tensorboard=False)
  log.has(2, "eval/")
  log.close()
  kept = metrics_log.read_metrics(str(folder))  # what was broken is gone
  assert all(row["step"] <= 2 for row in kept)


READERS |= {
  "checkpoints": Reader(_make_checkpoints, _restore, examples=8),
  "run.json": Reader(_make_run, _read_run),
  "metrics.jsonl": Reader(_make_metrics, _read_metrics),
  "metrics.jsonl alone": Reader(
    _make_metrics, lambda folder: metrics_log.read_metrics(str(folder))
  ),
}


# --- prepared data -----------------------------------------------------------


def _data_config(folder, verify="once", max_sequences=2):
  config = base.get_config()
  config.data.dir = str(folder / "data")
  config.data.seq_len = 16
  config.data.dupe_factor = 1
  config.data.max_sequences = max_sequences
  config.data.verify = verify
  config.prepare.held_out_rate = 0.3
  config.prepare.num_workers = 1
  config.model.update(vocab_size=len(PIECES), max_len=16)
  return config


DOCUMENTS = "\n\n".join(
  f"the cat sat on the mat {'on ' * i}.\ncats {'the ' * i}\n mat ?"
  for i in range(12)
)


def _prepare(folder, config, patterns):
  (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
  config.prepare.vocab = str(folder / "vocab.txt")
  with contextlib.redirect_stdout(None):
    prepare.prepare(config, patterns, config.data.dir)
  (folder / "vocab.txt").unlink()


def _make_data(folder):
  text = folder / "text.txt"
  text.write_text(DOCUMENTS)
  _prepare(folder, _data_config(folder), [str(text)])
  text.unlink()


def _prepare_again(folder):
  """Adds examples of another kind to tokens that are there."""
  config = _data_config(folder)
  config.data.pairing = "full_sentences"
  _prepare(folder, config, [])
  _prepare(folder, _data_config(folder), [])


def _make_half_prepared(folder):
  """What a kill leaves when all was tokenised, and nothing more done."""
  text = folder / "text.txt"
  text.write_text(DOCUMENTS)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stage.shutil, "rmtree", lambda *args, **kwargs: None)
    patch.setattr(examples, "write", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      _prepare(folder, _data_config(folder), [str(text)])
  (folder / "data" / "manifest.json").unlink()


def _go_on_preparing(folder):
  _prepare(folder, _data_config(folder), [str(folder / "text.txt")])


def _batches(folder, verify, max_sequences):
  config = _data_config(folder, verify, max_sequences)
  pretraining.Pretraining(config)
  for split in records.SPLITS:
    batches = batching.PretrainBatches(
      config.data, split, seed=1, batch_size=4, num_steps=3
    )
    batches[0], batches[2]
  pretraining.unigram_log_probs(config.data.dir, config.model.vocab_size)


BAD_EXAMPLE = "the examples are damaged, prepare them again"


def _make_words_data(folder):
  """Data whose Chinese words a list says."""
  config = _data_config(folder)
  words = folder / "words.txt"
  words.write_text("\u4e2d\u6587\n")
  text = folder / "text.txt"
  text.write_text(DOCUMENTS.replace("cats", "\u4e2d\u6587"))
  config.prepare.segmenter = str(words)
  _prepare(folder, config, [str(text)])
  text.unlink()
  words.unlink()


def _whole_words(folder):
  config = _data_config(folder, "never", 2)
  config.data.whole_word = True
  summary.whole_word_problem(config.data.dir)
  batches = batching.PretrainBatches(
    config.data, "train", seed=1, batch_size=4, num_steps=3
  )
  batches[0], batches[2]


READERS |= {
  "list of words": Reader(
    lambda folder: (folder / "words.txt").write_text(
      "# a\ncat\n\u4e2d\u6587\n"
    ),
    lambda folder: segmenters.load(str(folder / "words.txt")).cut("a cat"),
  ),
  "data of words": Reader(
    _make_words_data,
    _whole_words,
    says=BAD_EXAMPLE,
    examples=8,
    damaged=r".*(words\.npy|manifest\.json)",
  ),
  "data": Reader(_make_data, lambda f: _batches(f, "once", 2), examples=8),
  "data unverified": Reader(
    _make_data, lambda f: _batches(f, "never", 1), says=BAD_EXAMPLE, examples=8
  ),
  "data packed unverified": Reader(
    _make_data, lambda f: _batches(f, "never", 2), says=BAD_EXAMPLE, examples=8
  ),
  "manifests": Reader(
    _make_data, lambda f: _batches(f, "never", 2), r".*\.json", examples=8
  ),
  "prepare": Reader(_make_data, _prepare_again, examples=5),
  "prepare after a kill": Reader(
    _make_half_prepared, _go_on_preparing, r"data/\..*json", examples=5
  ),
}


# --- lines to predict --------------------------------------------------------

LINES = {
  "fill-mask": '{"id": 1, "text": "the [MASK] sat"}',
  "embed": '{"id": "a", "text": "the cat", "text_b": "sat"}',
  "classify": '{"id": "a", "text": "the cat", "text_b": null}',
  "answer": '{"question": "where?", "context": "The cat sat on the mat."}',
  "tag": '{"words": ["The", "cat"]}',
  "choose": '{"text": "the cat", "choices": ["sat", "on the mat"]}',
}
KINDS = {"classify": "classify", "answer": "span", "tag": "tag",
         "choose": "choice"}  # fmt: skip


@functools.cache
def _predictor(kind: str) -> predict.Predictor:
  config = base.get_config()
  config.task.max_query_len, config.task.doc_stride = 4, 2
  config.predict.update(kind=kind, batch_tokens=96, top_k=2)
  return predict.Predictor(_pretrained(KINDS.get(kind, "")), config, "MODEL")


def _lines_reader(kind: str) -> Reader:
  def make(folder):
    (folder / "in.jsonl").write_text(f"{LINES[kind]}\n" * 2)

  def read(folder):
    """Good lines get the same answer whatever stands between them."""
    good = LINES[kind].encode() + b"\n"
    content = (folder / "in.jsonl").read_bytes() + b"\n"
    lines = [good, *io.BytesIO(content), good]
    answers = list(_predictor(kind).run(prediction_records.parse_lines(lines)))
    assert len(answers) == sum(bool(line.strip()) for line in lines)
    first, *others, last = answers
    assert "error" not in first and first == last
    for answer in others:
      json.dumps(answer)
      assert answer.get("error") != ""

  return Reader(make, read, examples=10)


READERS |= {f"lines to {kind}": _lines_reader(kind) for kind in LINES}

TABLE = [{"text": "the cat", "n": 1}, {"text": "sat \u00e9", "n": None}]


def _table_content(ending: str) -> bytes:
  if ending == "json":
    return json.dumps(TABLE).encode()
  if ending in ("parquet", "arrow"):
    sink = io.BytesIO()
    content = pyarrow.Table.from_pylist(TABLE)
    if ending == "parquet":
      pyarrow.parquet.write_table(content, sink)
    else:
      with pyarrow.ipc.new_file(sink, content.schema) as writer:
        writer.write_table(content)
    return sink.getvalue()
  separator = {"csv": ",", "tsv": "\t"}[ending]
  lines = (("text", "n"), ("the cat", "1"), ("sat \u00e9", ""))
  return "".join(separator.join(line) + "\n" for line in lines).encode()


def _table_reader(ending: str) -> Reader:
  """A table to classify; its answers are written in the same format."""

  def make(folder):
    (folder / f"in.{ending}").write_bytes(_table_content(ending))

  def read(folder):
    target = folder / f"out.{ending}"
    table_in = tables.Table(str(folder / f"in.{ending}"))
    total = 0
    with tables.writing(table_in, str(target)) as write:
      for answer in _predictor("classify").run(
        table_in.numbered(), are_rows=True
      ):
        json.dumps(answer)
        write(answer)
        total += 1
    if total and ending != "json":
      assert len(list(rows.read(str(target)))) == total

  return Reader(make, read, examples=8)


READERS |= {
  f"table to classify {ending}": _table_reader(ending)
  for ending in ("csv", "tsv", "json", "parquet", "arrow")
}


# --- tests -------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def watch():
  sys.addaudithook(_watch)  # cannot be taken back, and costs next to nothing


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damaged_input_is_read_or_refused_in_plain_words(name, tmp_path):
  reader = READERS[name]
  fuzz(reader, tmp_path, max_examples=reader.examples, derandomize=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_damaged_inputs_are_read_or_refused(name, tmp_path):
  count = int(os.environ.get("FUZZ_INPUTS", 10_000))
  seed = int(os.environ.get("FUZZ_SEED", 0))
  fuzz_many(READERS[name], tmp_path, count, seed)


# --- nothing that is read is run ---------------------------------------------

# What loads objects, and may run code for them.
BANNED_MODULES = {
  "pickle", "_pickle", "cloudpickle", "dill", "joblib",
  "jsonpickle", "marshal", "shelve", "torch", "yaml", "runpy", "code",
}  # fmt: skip
# A parser of pickles, which runs nothing. It has the module pickle as an
# attribute, so that nothing else of it may be used.
PARSER, PARSE = "pickletools", "genops"
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
BANNED_METHODS = {"import_module", "read_pickle", "load_module", "exec_module"}


# What some modules may do, none of them with what it reads.
ALLOWED = {
  "__init__.py": ["importlib.import_module"],  # the names of the Python API
  "launching/gke.py": ["yaml"],  # writes a manifest
  "prediction/onnx_graph.py": ["torch"],  # writes a graph
  "runtime/config_files.py": ["spec.loader.exec_module"],  # shipped configs
}
BANNED_READERS = {
  f"{module}.{name}" for module in ("yaml", "torch")
  for name in ("load", "load_all", "full_load", "unsafe_load", "hub", "jit")
}  # fmt: skip


def ways_to_run(source: str) -> list[str]:
  """What of a module could run code that it has read."""
  found = [
    name
    for name in import_graph.imports_of(source)
    if name.split(".")[0] in BANNED_MODULES
  ]
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.ImportFrom) and node.module == PARSER:
      found.append(f"from {PARSER}")
    if isinstance(node, ast.alias) and node.name == PARSER and node.asname:
      found.append(f"{PARSER} as {node.asname}")
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == PARSER:
      found += [f"{PARSER}.{node.attr}"] * (node.attr != PARSE)
    if not isinstance(node, ast.Call):
      continue
    whole = ast.unparse(node.func)
    if whole in BANNED_READERS:
      found.append(whole)
    if whole in BANNED_CALLS or whole.rpartition(".")[2] in BANNED_METHODS:
      found.append(whole)
    options = {k.arg: ast.unparse(k.value) for k in node.keywords}
    if whole in ("np.load", "numpy.load", "jnp.load"):
      if options.get("allow_pickle") != "False":
        found.append(f"{whole} without allow_pickle=False")
    elif options.get("allow_pickle", "False") != "False":
      found.append(f"{whole} with allow_pickle")
  return found


def test_the_package_has_no_way_to_run_what_it_reads():
  paths = sorted(PACKAGE.rglob("*.py"))
  assert len(paths) > 40
  found = {
    str(p.relative_to(PACKAGE)): ways_to_run(p.read_text(encoding="utf-8"))
    for p in paths
  }
  assert {path: ways for path, ways in found.items() if ways} == ALLOWED


@pytest.mark.parametrize(
  "source",
  [
    "import pickle",
    "from pickle import loads",
    "def f():\n  import dill as d",
    "import yaml.loader",
    "yaml.load(f)",
    "torch.load(f)",
    "import pickletools as parser",
    "from pickletools import pickle",
    "import pickletools\npickletools.pickle.loads(x)",
    "eval(x)",
    "importlib.import_module(x)",
    "np.load(path)",
    "np.load(path, allow_pickle=True)",
    "np.load(path, allow_pickle=flag)",
    "np.lib.format.read_array(f, allow_pickle=True)",
  ],
)
def test_the_checker_finds_a_way_to_run_what_is_read(source):
  assert ways_to_run(source)


def test_the_checker_lets_the_rest_pass():
  source = "import json\nre.compile(x)\nnp.load(p, allow_pickle=False)"
  source += "\nimport pickletools\npickletools.genops(f)"
  assert not ways_to_run(source)
