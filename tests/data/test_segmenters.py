"""Whole words of Chinese, which a segmenter marks."""

import os
import sys

import numpy as np
import pytest

from bert_jax.data import batching
from bert_jax.data import prepare
from bert_jax.data import segmenters
from bert_jax.data import summary
from bert_jax.data.stages import inputs
from bert_jax.data.store import indexes
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.data.store import verification
from bert_jax.data.tokenizers import wordpiece
from tests.support import corpora

# We learn language models in Beijing; he likes machine learning.
WORDS = ("我们", "学习", "语言", "语言模型", "北京", "喜欢", "机器")
ALONE = "在他很"
CHARS = sorted(set("".join(WORDS) + ALONE))
PIECES = [*corpora.SPECIALS, "。", "bert", "##s", *CHARS]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
  path = tmp_path_factory.mktemp("words") / "words.txt"
  path.write_text("# made up\n" + "\n".join(WORDS) + "\n", encoding="utf-8")
  return str(path)


def documents(join="", count=40):
  """Documents of sentences of words and characters that are none."""
  rng = np.random.default_rng(0)
  known = [*WORDS, *ALONE, "berts"]
  return [
    [join.join(rng.choice(known, rng.integers(3, 9))) + "。" for _ in range(6)]
    for _ in range(count)
  ]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, words):
  """Segmenter -> data of one text; "dense" has no spaces between words."""
  root = tmp_path_factory.mktemp("zh")
  (root / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
  for name, join, segmenter in (
    ("none", " ", ""), ("words", " ", words), ("spaces", " ", "spaces"),
    ("dense", "", "spaces"),
  ):  # fmt: skip
    text = corpora.write_text(root / f"{name}.txt", documents(join))
    config = corpora.make_config(
      str(root / "vocab.txt"), prepare__segmenter=segmenter
    )
    prepare.prepare(config, [text], str(root / name))
  return root


def marks_of(segmenter, text):
  marker = segmenters.WordMarker(
    segmenter, wordpiece.WordPieceTokenizer(PIECES)
  )
  return marker.encode(text)


def open_batches(folder, **changes):
  changes = {"data__whole_word": True} | changes
  config = corpora.make_config("", **changes)
  config.data.dir = str(folder)
  return batching.PretrainBatches(
    config.data, "train", seed=3, batch_size=16, num_steps=12
  )


def test_the_longest_word_of_a_list_is_taken(words):
  cut = segmenters.load(words).cut
  assert cut("我们在学习语言模型。") == [
    "我们", "在", "学习", "语言模型", "。",
  ]  # fmt: skip
  assert cut("") == []


def test_tokens_that_continue_a_word_are_marked_by_hand(words):
  ids, marks = marks_of(segmenters.load(words), "我们berts在 语言模型 。很")
  assert [PIECES[i] for i in ids] == [
    "我", "们", "bert", "##s", "在", "语", "言", "模", "型", "。", "很",
  ]  # fmt: skip
  assert marks == [
    False, True, False, True, False, False, True, True, True, False, False,
  ]  # fmt: skip


def test_unknown_characters_are_parts_of_words(words):
  spaces = segmenters.load("spaces")
  ids, marks = marks_of(spaces, "我鼠 鼠们")
  assert ids[1] == ids[2] == 1
  assert marks == [False, True, False, True]


def test_a_segmenter_changes_no_id_and_no_example(prepared):
  plain, cut = (corpora.tree(prepared / name) for name in ("none", "words"))
  changed = {name for name in plain if plain[name] != cut[name]}
  assert changed == {"manifest.json"} | {
    name for name in plain if name.endswith("manifest.json")
  }
  assert {os.path.basename(name) for name in cut.keys() - plain.keys()} == {
    f"{split}-{shard:05d}.words.npy"
    for split in records.SPLITS
    for shard in range(10)
    if f"tokens/{split}-{shard:05d}.array_record" in plain
  }


def test_words_of_a_list_and_of_spaces_are_the_same_here(prepared):
  # No two words of the text beside each other make a longer one of the list.
  for name in (
    x for x in os.listdir(prepared / "words/tokens") if "words" in x
  ):
    one, other = (
      np.load(prepared / of / "tokens" / name) for of in ("words", "spaces")
    )
    assert one.any()
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("max_sequences", [1, 3])
def test_words_are_masked_whole(prepared, max_sequences):
  tokenizer = wordpiece.WordPieceTokenizer(PIECES)
  batches = open_batches(
    prepared / "words", data__max_sequences=max_sequences,
    data__mask_token_rate=1.0, data__random_token_rate=0.0,
  )  # fmt: skip
  whole = 0
  for step in range(len(batches)):
    batch = batches[step]
    ids = batch["input_ids"].copy()
    rows, slots = np.nonzero(batch["masked_weights"])
    at = batch["masked_positions"][rows, slots]
    ids[rows, at] = batch["masked_ids"][rows, slots]
    chosen = np.zeros(ids.shape, bool)
    chosen[rows, at] = True
    for row, is_chosen in zip(ids, chosen, strict=True):
      text = "".join(tokenizer.token(i) for i in row)
      assert len(text) >= len(row)
      for i in range(len(row) - 1):
        pair = tokenizer.token(row[i]) + tokenizer.token(row[i + 1])
        # These pairs occur within words alone.
        if pair in ("们我", "喜欢", "北京", "机器", "我们"):
          if pair != "们我":
            assert is_chosen[i] == is_chosen[i + 1]
            whole += is_chosen[i]
  assert whole > 20


def test_masks_are_those_of_single_pieces_without_the_key(prepared):
  one, other = (
    open_batches(prepared / name, data__whole_word=False)[5]
    for name in ("none", "words")
  )
  for key in one:
    np.testing.assert_array_equal(one[key], other[key])


def test_marks_are_read_beside_the_ids(prepared, words):
  folder = str(prepared / "words")
  store = indexes.TokenStore(folder, "train")
  tokenizer = wordpiece.WordPieceTokenizer(PIECES)
  starts, lengths = np.array([0, 700, 250]), np.array([500, 0, 20])
  ids, at = store.read_spans(starts, lengths)
  marks = store.read_word_marks(starts, lengths)
  assert len(ids) == len(marks)
  text = [tokenizer.token(i) for i in ids[at[0] : at[0] + 500]]
  for i, piece in enumerate(text):
    if piece in "们习言模型京欢器":
      assert marks[at[0] + i], (i, piece)
    elif piece in (*"我喜北机在他很。", "[SEP]", "bert"):
      assert not marks[at[0] + i], (i, piece)
  assert (ids[at[2] : at[2] + 20] == ids[at[0] + 250 : at[0] + 270]).all()


def test_whole_words_are_refused_where_nothing_says_them(prepared):
  problems = {
    name: summary.whole_word_problem(str(prepared / name))
    for name in ("none", "words", "spaces", "dense")
  }
  assert problems["words"] == problems["spaces"] == ""
  assert "prepare.segmenter" in problems["none"]
  assert "spaces" in problems["dense"]  # whole sentences are no words


def test_whole_words_are_refused_before_the_text_is_read(prepared, tmp_path):
  config = corpora.make_config(str(prepared / "vocab.txt"))
  config.data.whole_word = True
  config.prepare.held_out_rate = 0.2
  (tmp_path / "zh.txt").write_text("我喜欢机器。\n\n" * 9)
  with pytest.raises(
    ValueError, match=r"\d+ of \d+ characters.*segmenter=jieba"
  ):
    prepare.prepare(config, [str(tmp_path / "zh.txt")], str(tmp_path / "data"))
  assert not (tmp_path / "data").exists()
  prepare._look_for_chinese(["the cat sat on the mat", "我喜"])


def test_all_files_are_looked_at_and_not_the_first_alone(prepared, tmp_path):
  config = corpora.make_config(str(prepared / "vocab.txt"))
  for i in range(50):
    text = "我喜欢机器。" if i < 5 else "The cat sat on the mat."
    (tmp_path / f"{i:02}.txt").write_text(f"{text}\n" * 5000)
  found = inputs.Inputs(config.prepare, [str(tmp_path / "*.txt")])
  sentences = list(prepare._beginnings(config.prepare, found.units))
  assert sum(map(len, sentences)) < 300_000
  prepare._look_for_chinese(sentences)


def test_other_words_are_refused(prepared, words, tmp_path):
  config = corpora.make_config(str(prepared / "vocab.txt"))
  text = str(prepared / "words.txt")
  for name in ("", "spaces"):
    config.prepare.segmenter = name
    with pytest.raises(records.DataError, match="segmenter: 'words"):
      prepare.prepare(config, [text], str(prepared / "words"))
  with pytest.raises(records.DataError, match="segmenter"):  # of no text
    prepare.prepare(config, [], str(prepared / "words"))
  config.prepare.segmenter = words
  before = corpora.tree(prepared / "words")
  prepare.prepare(config, [text], str(prepared / "words"))
  assert corpora.tree(prepared / "words") == before
  manifest = manifests.read_manifest(str(prepared / "words"))
  assert manifest["settings"]["segmenter"].startswith("words ")


def test_damaged_marks_are_found(prepared, tmp_path):
  import shutil

  folder = shutil.copytree(prepared / "words", tmp_path / "data")
  config = corpora.make_config("")
  name = records.examples_name(config.data)
  verification.verify(str(folder), name, "train", "always")
  path = folder / "tokens" / "train-00000.words.npy"
  content = bytearray(path.read_bytes())
  content[-3] ^= 1
  path.write_bytes(bytes(content))
  with pytest.raises(records.DataError, match="words.npy is damaged"):
    verification.verify(str(folder), name, "train", "always")
  path.unlink()
  with pytest.raises(records.DataError, match="words.npy is missing"):
    open_batches(folder)[0]


@pytest.mark.parametrize(
  ("content", "says"),
  [
    (b"", "no word of several"),
    ("我\n".encode(), "no word of several"),
    ("# 我们\n".encode(), "no word of several"),
    ("我们\n北京 100 ns\n".encode(), "line 2.*one word"),
    ("我们\n北京\n".encode("gbk"), "line 1.*UTF-8"),
  ],
)
def test_bad_lists_of_words_are_refused(tmp_path, content, says):
  path = tmp_path / "words.txt"
  path.write_bytes(content)
  with pytest.raises(segmenters.SegmenterError, match=f"words.txt.*{says}"):
    segmenters.load(str(path))


def test_bad_segmenters_are_refused_before_any_work(tmp_path, monkeypatch):
  config = corpora.make_config("", prepare__segmenter="jeiba")
  monkeypatch.setitem(sys.modules, "jieba", None)
  target = tmp_path / "out"
  for name, says in (("jeiba", "jieba, spaces"), ("jieba", r"\[chinese\]")):
    config.prepare.segmenter = name
    with pytest.raises(segmenters.SegmenterError, match=says):
      prepare.prepare(config, [str(tmp_path)], str(target))
  config.prepare.update(segmenter="spaces", vocab_kind="byte_bpe")
  with pytest.raises(ValueError, match="byte-level BPE"):
    prepare.prepare(config, [str(tmp_path)], str(target))
  assert not target.exists()


def test_jieba_marks_words():
  pytest.importorskip("jieba")
  segmenter = segmenters.load("jieba")
  assert segmenter.record.startswith("jieba 0.")
  pieces = [*corpora.SPECIALS, *sorted(set("我来到北京清华大学很高兴。"))]
  marker = segmenters.WordMarker(
    segmenter, wordpiece.WordPieceTokenizer(pieces)
  )
  ids, marks = marker.encode("我来到北京清华大学。")
  words = "".join(
    ("" if mark else " ") + pieces[i]
    for i, mark in zip(ids, marks, strict=True)
  )
  assert words.split() == ["我", "来到", "北京", "清华大学", "。"]
  assert (marker.num_chinese, marker.num_joined) == (9, 5)
  for text in (
    "",
    "  \u3000我们\t x\r\n。",
    "a1 你好!\u200b",
    "\ud83d\ude00好",
  ):
    assert "".join(segmenter.cut(text)) == text
