"""Tests of corpus.py."""

import bz2
import csv
import gzip
import hashlib
import json
import lzma
import pathlib
import random
import sys
import time

import pyarrow
import pyarrow.parquet
import pytest

from bert_jax.data import corpus

TFDS_WARNING = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")


def read(patterns, text_format="sentences", unit_bytes=1 << 20, key="text"):
  """All documents of some inputs, whatever the units."""
  patterns = [patterns] if isinstance(patterns, str) else patterns
  return [
    document
    for unit in corpus.list_units(patterns, text_format, unit_bytes)
    for document in corpus.read_documents(unit, text_format, key, "en")
  ]


def write(path, text):
  if isinstance(text, str):
    text = text.encode("utf-8")
  if path.suffix == ".gz":
    text = gzip.compress(text)
  path.write_bytes(text)
  return str(path)


# -- what a document is ---


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_sentences_one_a_line_and_a_blank_line_between_documents(
  tmp_path, name
):
  text = "\n\nA b.\r\n  C d. E.  \n\n \t\n\nF\u00e9.\n\u3000\nLast, no newline"
  assert read(write(tmp_path / name, text)) == [
    ["A b.", "C d. E."],
    ["F\u00e9."],
    ["Last, no newline"],
  ]


def test_paragraphs_are_split_into_sentences_and_end_documents_by_two(tmp_path):
  text = (
    "One is here. Two is\nbroken over lines! It is 3.5 long.\n\nFour.\n"
    "\n\nAnother document.\n\n\n\n"
  )
  assert read(write(tmp_path / "a.txt", text), "paragraphs") == [
    ["One is here.", "Two is broken over lines!", "It is 3.5 long.", "Four."],
    ["Another document."],
  ]


def test_jsonl_is_split_into_sentences_a_document_a_line(tmp_path):
  lines = [
    {"body": "One. Two.\nThree\n\nFour"},
    {"body": " "},
    {"body": "\u20ac"},
  ]
  text = "\n".join(json.dumps(line) for line in lines) + "\n\n"
  assert read(write(tmp_path / "a.jsonl", text), "jsonl", key="body") == [
    ["One.", "Two.", "Three", "Four"],
    ["\u20ac"],
  ]


def test_files_of_records_give_the_same_documents_whatever_their_format(
  tmp_path,
):
  texts = ["One. Two.\nThree", None, "\u20ac \u2028 four.", "Five."] * 60
  content = [{"id": i, "body": text} for i, text in enumerate(texts)]
  lines = "".join(json.dumps(row) + "\n" for row in content).encode()
  table = pyarrow.Table.from_pylist(content)
  pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=50)
  with pyarrow.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
    writer.write_table(table)
  (tmp_path / "a.json").write_text(json.dumps(content))
  (tmp_path / "lines.json").write_bytes(lines)
  (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
  (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(lines))
  (tmp_path / "a.ndjson.bz2").write_bytes(bz2.compress(lines))
  with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as f:
    writer = csv.DictWriter(f, ["id", "body"])
    writer.writeheader()
    writer.writerows(row for row in content if row["body"] is not None)
  wanted = [["One.", "Two.", "Three"], ["\u20ac \u2028 four."], ["Five."]] * 60
  files = sorted(tmp_path.iterdir())
  assert len(files) == 8
  for path in files:
    for unit_bytes in (1, 900, 10**6):
      units = corpus.list_units([str(path)], "sentences", unit_bytes)
      found, reading = [], corpus.Reading()
      for unit in units:
        one = corpus.Reading()
        for part in corpus.read_parts(unit, "sentences", "body", "en", one):
          found += list(part)
        assert corpus.hash_unit(unit, "", "body") == one.hexdigest()
        reading.num_null += one.num_null
      assert found == wanted, path.name
      assert reading.num_null == (0 if path.suffix == ".csv" else 60)
    with pytest.raises(corpus.CorpusError, match=r"'text'.*prepare\.text_key"):
      read(str(path))
  assert len(corpus.list_units([str(tmp_path / "a.parquet")], "", 1)) == 5
  assert len(corpus.list_units([str(tmp_path / "lines.json")], "", 900)) > 5


def test_json_is_not_read_as_plain_text(tmp_path):
  path = write(tmp_path / "a.txt", '{"text": "One."}\n{"text": "Two."}\n')
  for text_format in ("sentences", "paragraphs"):
    with pytest.raises(corpus.CorpusError, match=r"a\.txt:1 .*format=jsonl"):
      read(path, text_format)
  assert read(path, "jsonl") == [["One."], ["Two."]]
  assert read(write(tmp_path / "b.txt", "{ a brace }\n")) == [["{ a brace }"]]


def test_carriage_returns_end_lines_where_no_line_feed_does(tmp_path):
  text = "A b.\rC.\r\rD."
  assert read(write(tmp_path / "a.txt", text)) == [["A b.", "C."], ["D."]]
  assert read(write(tmp_path / "b.gz", text)) == [["A b.", "C."], ["D."]]
  mixed = write(tmp_path / "c.txt", "A\rb.\nC.\n")
  assert read(mixed) == [["A\rb.", "C."]]


def test_hidden_files_of_a_folder_are_left_out_and_named(tmp_path, caplog):
  for name in ("part-0", "_SUCCESS", ".part-0.crc"):
    write(tmp_path / name, "A.\n" if name == "part-0" else "")
  assert read(str(tmp_path)) == [["A."]]
  assert "_SUCCESS" in caplog.text and ".part-0.crc" in caplog.text


def test_half_a_character_in_json_becomes_a_replacement(tmp_path):
  text = r'{"text": "a \ud800 b \ud83d\ude00"}'
  assert read(write(tmp_path / "a.jsonl", text), "jsonl") == [
    ["a \ufffd b \U0001f600"]
  ]


@TFDS_WARNING
def test_prepared_tfds_text(tmp_path):
  builder = tfds_builder(tmp_path)
  folder = str(builder.data_dir)
  documents = read(folder, "tfds")
  assert sorted(documents) == sorted(
    [f"Sentence {i} is here.", "Another \u00e9.", "A paragraph."]
    for i in range(9)
  )
  assert len(read(f"{folder}:test", "tfds", key="title")) == 4
  for pattern, message in (
    (f"{folder}:nope", "no split 'nope'; use one of train, test"),
    ("no_such_set", "'no_such_set' is neither"),
  ):
    with pytest.raises(corpus.CorpusError, match=message):
      read(pattern, "tfds")
  with pytest.raises(
    corpus.CorpusError, match="record 0 has no text under 'body'; it has"
  ):
    read(folder, "tfds", key="body")


@TFDS_WARNING
@pytest.mark.parametrize(
  "key", ["pythonClassName", "python_class_name", "type"]
)
def test_prepared_tfds_data_cannot_name_code_to_import(
  tmp_path, monkeypatch, key
):
  folder = tfds_builder(tmp_path).data_dir
  path = pathlib.Path(folder, "features.json")
  inner = {key: "named_by_data.Feature", "content": {}, "text": {}}
  features = json.loads(path.read_text())
  features["featuresDict"]["features"]["text"] = inner
  path.write_text(json.dumps(inner if key == "type" else features))
  (tmp_path / "named_by_data.py").write_text("")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(corpus.CorpusError, match="'named_by_data.Feature', whic"):
    read(str(folder), "tfds")
  assert "named_by_data" not in sys.modules


def tfds_builder(folder):
  """A small TFDS data set, prepared without TensorFlow."""
  import tensorflow_datasets as tfds

  class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      text = tfds.features.Text()
      features = tfds.features.FeaturesDict({"text": text, "title": text})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
      return {"train": self._some(9), "test": self._some(4)}

    def _generate_examples(self):
      raise NotImplementedError

    def _some(self, count):
      for i in range(count):
        text = f"Sentence {i} is here. Another \u00e9.\n\nA paragraph."
        yield i, {"text": text, "title": f"Title {i}"}

  builder = Tiny(data_dir=folder, file_format="array_record")
  builder.download_and_prepare()
  return builder


# -- units ---


@pytest.mark.parametrize("text_format", ["sentences", "paragraphs", "jsonl"])
def test_units_cover_every_byte_once_and_never_cut_a_document(
  tmp_path, text_format
):
  rng = random.Random(0)
  documents = [
    [
      f"Word{'x' * rng.randrange(60)} \u00e9 {i}."
      for _ in range(rng.randint(1, 6))
    ]
    for i in range(60)
  ]
  if text_format == "jsonl":
    text = "".join(
      json.dumps({"text": "\n".join(d)}, ensure_ascii=False) + "\n"
      for d in documents
    )
  else:
    blank = "\n" if text_format == "sentences" else "\n\n"
    text = "\n" + "".join(
      blank[1:].join(s + "\n" for s in d)
      + blank * rng.choice((1, 1, 2))
      for d in documents
    )  # fmt: skip
  path = write(tmp_path / "a.txt", text)
  if text_format == "paragraphs":
    documents = [[" ".join(d)] for d in documents]
    documents = [
      [s + "." for s in d[0].rstrip(".").split(". ")] for d in documents
    ]
  size = len(text.encode())
  digests = set()
  for unit_bytes in (1, 7, 100, 1000, 10**6):
    units = corpus.list_units([path], text_format, unit_bytes)
    assert [u.start for u in units[1:]] == [u.end for u in units[:-1]]
    assert (units[0].start, units[-1].end) == (0, size)
    assert sum(u.size for u in units) == size
    assert all(u.size > 0 for u in units)
    digest = hashlib.sha256()
    found = [
      document
      for unit in units
      for document in corpus.read_documents(
        unit, text_format, "text", "en", digest
      )
    ]
    assert found == documents
    digests.add(digest.hexdigest())
  assert len(corpus.list_units([path], text_format, 100)) > 10
  assert digests == {hashlib.sha256(text.encode()).hexdigest()}


def test_folders_globs_and_lists_name_each_file_once_in_order(tmp_path):
  names = ["b.txt", "a.txt", "c.md", "odd[1].txt"]
  for name in names:
    write(tmp_path / name, f"{name}\n")
  (tmp_path / "deep").mkdir()
  write(tmp_path / "deep" / "d.txt", "deep\n")
  root = str(tmp_path)

  def found(*patterns):
    return [d[0] for d in read(list(patterns))]

  assert found(root) == ["a.txt", "b.txt", "c.md", "odd[1].txt"]
  assert found(f"{root}/*.md", f"{root}/b.txt", f"{root}/b*") == [
    "b.txt",
    "c.md",
  ]
  assert found(f"{root}/**/d.txt") == ["deep"]
  assert found(f"{root}/*/*.txt") == ["deep"]
  assert found(f"{root}/odd[1].txt") == ["odd[1].txt"]


def test_a_compressed_file_is_one_unit(tmp_path):
  path = write(tmp_path / "a.gz", "A.\n\n" * 100)
  (unit,) = corpus.list_units([path], "sentences", 10)
  assert (unit.start, unit.end) == (0, -1)
  assert len(read(path)) == 100


@pytest.mark.parametrize("text_format", ["sentences", "paragraphs", "jsonl"])
@pytest.mark.parametrize("unit_bytes", [1, 100, 1000, 10**6])
def test_parts_end_with_the_document_that_fills_them(
  tmp_path, text_format, unit_bytes
):
  rng = random.Random(0)
  # One of them is longer than most parts.
  documents = [
    [f"{'x' * rng.randrange(40)}{i} is here."] * rng.choice((1, 2, 3, 40))
    for i in range(50)
  ]
  texts = {
    "sentences": ["\n".join(d) + "\n\n" for d in documents],
    "paragraphs": ["\n\n".join(d) + "\n\n\n" for d in documents],
    "jsonl": [json.dumps({"text": "\n".join(d)}) + "\n" for d in documents],
  }[text_format]
  path = write(tmp_path / "a.gz", "".join(texts))
  (unit,) = corpus.list_units([path], text_format, unit_bytes)
  reading, parts, expected, size = corpus.Reading(), [], [[]], 0
  for part in corpus.read_parts(unit, text_format, "text", "en", reading):
    parts.append(list(part))
  for document, text in zip(documents, texts, strict=True):
    if size >= unit_bytes:
      expected.append([])
      size = 0
    expected[-1].append(document)
    size += len(text)
  assert parts == expected
  assert reading.num_bytes == len("".join(texts))
  whole = hashlib.sha256("".join(texts).encode())
  assert reading.hexdigest() == whole.hexdigest()


def test_a_unit_that_was_cut_to_size_is_one_part(tmp_path):
  path = write(tmp_path / "a.txt", "A.\n\n" * 100)
  for unit in corpus.list_units([path], "sentences", 50):
    parts = corpus.read_parts(unit, "sentences", "", "en", corpus.Reading())
    assert [len(list(part)) for part in parts] == [unit.size // 4]


# -- how much text there is ---


def sizes(path, text_format="sentences", unit_bytes=1 << 20):
  units = corpus.list_units([path], text_format, unit_bytes)
  return corpus.text_sizes(units, text_format, "text")


@pytest.mark.parametrize("members", [1, 5])
def test_the_text_in_a_compressed_file_is_guessed_from_its_head(
  tmp_path, members
):
  rng = random.Random(0)
  text = "".join(f"{rng.random()} sentence.\n" for _ in range(80_000)).encode()
  step = len(text) // members
  path = tmp_path / "a.gz"
  path.write_bytes(
    b"".join(
      gzip.compress(text[i : i + step]) for i in range(0, len(text), step)
    )
  )
  (found,) = sizes(str(path))
  assert found == pytest.approx(len(text), rel=0.02)
  assert path.stat().st_size < 0.6 * len(text)


def test_the_text_in_plain_files_is_their_size(tmp_path):
  path = write(tmp_path / "a.txt", "A b.\n\n" * 1000)
  assert sum(sizes(path, unit_bytes=100)) == 6000


@TFDS_WARNING
def test_the_text_in_tfds_records_is_guessed_from_some(tmp_path):
  builder = tfds_builder(tmp_path)
  (found,) = sizes(str(builder.data_dir), "tfds")
  one = len("Sentence 0 is here. Another \u00e9.\n\nA paragraph.".encode())
  assert found == 9 * one


# -- what could fill the memory ---


@pytest.mark.parametrize("character", ["a", "\u00e9", "\u4e2d", "\U0001f600"])
@pytest.mark.parametrize("ending", ["\n", "", "x"])
def test_long_lines_are_cut_between_characters(
  tmp_path, monkeypatch, character, ending
):
  monkeypatch.setattr(corpus, "MAX_LINE_BYTES", 16)
  for count in range(1, 40):
    path = write(tmp_path / "a.txt", character * count + ending)
    ((*pieces,),) = read(path)
    assert "".join(pieces) == (character * count + ending).strip()
    assert max(len(p.encode()) for p in pieces) <= 16 + 3


def test_long_documents_are_cut(tmp_path, monkeypatch):
  monkeypatch.setattr(corpus, "MAX_DOCUMENT_BYTES", 100)
  path = write(tmp_path / "a.txt", "Nine char\n" * 50)
  documents = read(path)
  assert len(documents) > 3
  assert [s for d in documents for s in d] == ["Nine char"] * 50
  line = json.dumps({"text": "x" * 80})
  text = write(tmp_path / "b.jsonl", f"{line}\n{line}\n")
  assert read(text, "jsonl") == [["x" * 80]] * 2


# -- bad input ---


def test_quotes_that_nobody_closes_do_not_hold_up_the_splitter(tmp_path):
  """As one paragraph these would take the splitter a minute."""
  text = "\u201c" * 100_000 + " word" * 100_000
  start = time.monotonic()
  (document,) = read(write(tmp_path / "a.txt", text), "paragraphs")
  assert time.monotonic() - start < 10
  assert "".join(document).replace(" ", "") == text.replace(" ", "")
  assert all(s.strip("\u201c") in ("", "word") or " " in s for s in document)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize(
  "content, message",
  [
    (b"", "is empty"),
    (b" \n\n", "is empty"),
    (b"\x7fELF\0\0\x01", "holds zero bytes"),
    ("Text.".encode("utf-16"), "holds zero bytes, so it is not UTF-8"),
  ],
)
def test_empty_and_binary_files_are_refused(tmp_path, name, content, message):
  path = write(tmp_path / name, content)
  with pytest.raises(corpus.CorpusError, match=message) as error:
    corpus.list_units([path], "sentences", 100)
  assert path in str(error.value)


@pytest.mark.parametrize("pattern", ["missing.txt", "*.nothing", "folder"])
def test_inputs_that_name_no_file_are_refused(tmp_path, pattern):
  (tmp_path / "folder").mkdir()
  with pytest.raises(corpus.CorpusError, match="names no file") as error:
    corpus.list_units([str(tmp_path / pattern)], "sentences", 100)
  assert pattern in str(error.value)


@pytest.mark.parametrize("unit_bytes", [4, 1000])
def test_bytes_that_are_not_utf8_are_named_by_their_place(tmp_path, unit_bytes):
  text = b"Fine here.\n\nAnd here.\n\nNot \xff here.\n"
  path = write(tmp_path / "latin.txt", text)
  at = text.index(b"\xff")
  with pytest.raises(corpus.CorpusError, match=f"byte {at} is not UTF-8"):
    read(path, unit_bytes=unit_bytes)


def test_a_character_broken_off_at_the_end_is_named(tmp_path):
  path = write(tmp_path / "a.txt", b"abc \xe4\xb8")
  with pytest.raises(corpus.CorpusError, match="a.txt: byte 4 is not UTF-8"):
    read(path)


@pytest.mark.parametrize(
  "line, message",
  [
    ('{"text": "a"', "the line at byte 14: "),
    ('["a"]', "the line at byte 14 has no text under 'text'"),
    ('{"body": "a"}', "has no text under 'text'; name the field with"),
    ('{"text": 3}', "has no text under 'text'"),
    ("[" * 100_000, "the line at byte 14: "),
  ],
)
def test_bad_json_is_named_by_its_place(tmp_path, line, message):
  path = write(tmp_path / "a.jsonl", f'{{"text": "a"}}\n{line}\n')
  with pytest.raises(corpus.CorpusError, match=message) as error:
    read(path, "jsonl")
  assert path in str(error.value)


def test_damaged_compression_is_an_error_that_names_the_file(tmp_path):
  rng = random.Random(0)
  text = "".join(f"{rng.random()} sentence.\n" for _ in range(20_000))
  whole = gzip.compress(text.encode())
  flipped = bytearray(whole)
  flipped[len(whole) // 2] ^= 0xFF
  for name, content, error in (
    ("short.gz", whole[: len(whole) // 2], "short.gz breaks off or is damaged"),
    ("flipped.gz", flipped, "flipped.gz breaks off or is damaged"),
    ("plain.gz", b"this is not gzip", "plain.gz breaks off or is damaged"),
    ("head.gz", whole[:15] + b"\xff" * 100, "head.gz breaks off or is damaged"),
  ):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(corpus.CorpusError, match=error):
      read(str(tmp_path / name))


def test_a_head_that_cannot_be_unpacked_is_an_error_that_names_the_file(
  tmp_path,
):
  rng = random.Random(0)
  text = "".join(f"{rng.random()} sentence.\n" for _ in range(9_000))
  data = bytearray(gzip.compress(text.encode()))
  data[60_000:60_100] = bytes(100)  # behind what list_units looks at
  (tmp_path / "a.gz").write_bytes(data)
  with pytest.raises(corpus.CorpusError, match="a.gz breaks off or is damage"):
    sizes(str(tmp_path / "a.gz"))
