"""Ids equal to the original's, refusals, and learning that repeats exactly."""

import io
import itertools
import json
import os
import pathlib
import pickle
import subprocess
import sys
import unicodedata

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import sentencepiece
import tokenizers

from bert_jax.data.tokenizers import added_tokens
from bert_jax.data.tokenizers import word_rules
from bert_jax.data.tokenizers import wordpiece
from bert_jax.data.tokenizers.interface import SPECIAL_TOKENS
from bert_jax.data.tokenizers.load import load_tokenizer
from bert_jax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from bert_jax.data.tokenizers.wordpiece import WordPieceTokenizer
from tests.support import breadth
from tests.support import wordpiece_reference
from tests.support.corpora import story

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
NOVELS = DATA / "corpus" / "novels.txt"

# What each character is there for: case (final sigma, dotted I, sharp s, a
# digraph, a titlecase letter, Cherokee, ligature), accents before and after
# decomposition, marks of several classes, ideographs in and around the CJK
# blocks, punctuation that decomposes, symbols, controls and spaces of every
# kind, halves of surrogate pairs, private and unassigned characters.
NASTY = (
  "aAbz09'#-_$+^~[]()!.,;:"
  "ΣςσΟΔİıIßẞǅǄᏣꭰﬁÉéÅå\u212bΩ\u2126\u212a"
  "\u0301\u0308\u0307\u0327\u0345\u0903\u093e\u05b0\u3099\u20dd"
  "一丁鿿㐀䶿\U00020000\U0002a6df\U0002a700\U0002f800豈\ufaff\u3007ぁア한가각ॐ"
  "\u037e\u0387\u1fef\u2018\u201d\u2014\u3002\uff01\uff21\U0001f642"
  "\0\x01\x07\x08\x0b\x0c\x1c\x1d\x1e\x1f\x7f\x80\x85\x9f\xad\u200b\u200d"
  "\u061c\u180e\u2060\ufeff\ufffd\ufffe\U000e0001\U000e0100"
  " \t\n\r\xa0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000"
  "\ud800\udbff\udc00\udfff\ue000\uf8ff\u0378\U0010ffff"
)
FRAGMENTS = (
  *SPECIAL_TOKENS,
  "##",
  "##a",
  "ΟΔΟΣ",
  "ΟΔΟΣ'",
  "\r\n",
  "running",
  "ab" * 32,
  "ab" * 32 + "a",
  "a" * 199,
  "a" * 200,
  "a" * 201,
  "é" * 200,
  "e\u0301" * 200,
  "İ" * 101,
)
CODE_POINTS = st.integers(0, sys.maxunicode).map(chr)
TEXTS = st.one_of(
  st.text(CODE_POINTS, max_size=40),
  st.text(st.sampled_from(NASTY), max_size=40),
  st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), st.sampled_from(NASTY)), max_size=12
  ).map("".join),
)


def small_pieces(lower_case):
  """Characters of the nasty alphabet, alone and within a word, and more."""
  characters: set[str] = set()
  for char in NASTY + "abcdefghijklmnopqrstuvwxyz":
    for form in (char, char.lower(), char.upper()):
      characters.update(form, unicodedata.normalize("NFD", form))
  words = ["walk", "want", "##ed", "##ing", "ab", "##ab", "οδος", "οδο"]
  words += [f"##{char}" for char in characters] + list(characters)
  if not lower_case:
    words += ["Walk", "É", "Café"]
  kept = {
    word
    for word in words
    if word == word.strip()
    and not any("\ud800" <= char <= "\udfff" for char in word)
    and (word == word.lower() or not lower_case)
  }
  return [*SPECIAL_TOKENS, *sorted(kept)]


def tokenizer_of(*words, **settings):
  return WordPieceTokenizer([*SPECIAL_TOKENS, *words], **settings)


def released(name):
  path = DATA / "vocab" / name / "vocab.txt"
  if not path.exists():
    pytest.skip(f"no {name} vocabulary at ../shared/data/vocab")
  return path


@pytest.fixture(
  scope="module",
  params=breadth.slow_but(
    ["small-uncased", "small-cased", "bert-base-uncased", "chinese-cased"]
    + ["bert-base-chinese"],
    lambda name: name in ("small-cased", "bert-base-uncased"),
  ),
)
def pair(request):
  """A tokenizer, and the same text to ids by the reference."""
  name = request.param
  if name.startswith("small"):
    tokenizer = WordPieceTokenizer(small_pieces(name == "small-uncased"))
    assert tokenizer.lower_case == (name == "small-uncased")
    vocabulary = {tokenizer.token(i): i for i in range(tokenizer.vocab_size)}
  else:
    path = released(name.replace("chinese-cased", "bert-base-chinese"))
    # The released Chinese vocabulary is uncased, and refuses to be used as
    # cased; with three capitals in it, it may be used either way.
    pieces = wordpiece.read_pieces(path)
    vocabulary = wordpiece_reference.read_vocabulary(path)
    if name == "chinese-cased":
      for capital in "ABÉ":
        vocabulary[capital] = len(pieces)
        pieces.append(capital)
    lower_case = name != "chinese-cased"
    tokenizer = WordPieceTokenizer(pieces, lower_case=lower_case)
  return tokenizer, lambda text: wordpiece_reference.encode(
    text, vocabulary, tokenizer.lower_case
  )


# --- WordPiece: known answers ---


def test_words_are_lower_cased_stripped_of_accents_and_cut_greedily():
  tokenizer = tokenizer_of("un", "##want", "##ed", ",", "runn", "##ing", "##e")
  text = "UNwant\u00c9d,running"
  assert tokenizer.tokenize(text) == ["un", "##want", "##ed", ",", "runn"] + [
    "##ing"
  ]
  assert tokenizer.encode(text) == [5, 6, 7, 8, 9, 10]
  assert tokenizer.encode_batch([text, "", " un\tun "]) == [
    [5, 6, 7, 8, 9, 10],
    [],
    [5, 5],
  ]


def test_cased_vocabulary_keeps_case_and_accents():
  tokenizer = tokenizer_of("Caf\u00e9", "cafe", "Cafe", "caf\u00e9")
  assert tokenizer.lower_case is False
  assert tokenizer.tokenize("Caf\u00e9 cafe CAFE Cafe\u0301") == [
    "Caf\u00e9",
    "cafe",
    "[UNK]",
    "[UNK]",  # decomposed and composed stay different, as in the original
  ]


def test_one_unknown_character_makes_the_whole_word_unknown():
  tokenizer = tokenizer_of("walk", "##ed")
  assert tokenizer.tokenize("walked walkxed walk") == [
    "walk",
    "##ed",
    "[UNK]",
    "walk",
  ]


@pytest.mark.parametrize("limit", [100, 200])
def test_word_longer_than_the_limit_is_unknown(limit):
  tokenizer = tokenizer_of("a", "##a", max_input_chars_per_word=limit)
  assert tokenizer.encode("a" * limit) == [5] + [6] * (limit - 1)
  assert tokenizer.encode("a" * (limit + 1)) == [tokenizer.unk_id]
  # Accents are gone before characters are counted.
  assert len(tokenizer.encode("a\u0301" * limit)) == limit


def test_special_tokens_typed_in_text_are_plain_words():
  tokenizer = tokenizer_of("[", "]", "mask", "cls", "sep", "pad", "unk")
  typed = tokenizer.encode("[MASK][CLS] [SEP] [PAD] [UNK]")
  assert typed == [5, 7, 6, 5, 8, 6, 5, 9, 6, 5, 10, 6, 5, 11, 6]


def test_controls_join_and_separators_split():
  tokenizer = tokenizer_of("a", "b", "ab", "c")
  for char in "\0\x0b\x0c\x1c\x1d\x1e\x1f\x85\u200b\ufeff\ufffd\xad":
    assert tokenizer.tokenize(f"a{char}b") == ["ab"], ascii(char)
  for char in "\t\n\r \xa0\u2003\u2028\u2029\u3000":
    assert tokenizer.tokenize(f"a{char}b") == ["a", "b"], ascii(char)


def test_ideographs_are_words_of_one_character():
  tokenizer = tokenizer_of("a", "\u4e2d", "\u6587", "\u3042\u3044")
  assert tokenizer.tokenize("a\u4e2d\u6587a\u3042\u3044") == [
    "a",
    "\u4e2d",
    "\u6587",
    "[UNK]",
  ]


def test_half_a_surrogate_pair_is_an_unknown_word():
  tokenizer = tokenizer_of("a", "b", "!")
  assert tokenizer.tokenize("a \ud83d\ude42b! b\udfff") == [
    "a",
    "[UNK]",
    "!",
    "[UNK]",
  ]


def test_final_sigma_follows_python_where_the_rust_normaliser_differs():
  text = "\u039f\u0394\u039f\u03a3"  # capitals, the last one a sigma
  final, medial = "\u03bf\u03b4\u03bf\u03c2", "\u03bf\u03b4\u03bf\u03c3"
  rust = tokenizers.normalizers.BertNormalizer(lowercase=True)
  assert rust.normalize_str(text) == medial
  assert text.lower() == final
  tokenizer = tokenizer_of(final, medial, "'", "a")
  assert tokenizer.tokenize(text) == [final]
  # The token that decides is the one between spaces, before punctuation is
  # set apart: the apostrophe is skipped and a letter follows.
  assert tokenizer.tokenize(text + "'a") == [medial, "'", "a"]


# --- WordPiece: equality with the reference ---


@hypothesis.settings(max_examples=250, deadline=None, derandomize=True)
@hypothesis.given(text=TEXTS)
def test_ids_equal_the_reference_on_any_text(pair, text):
  tokenizer, reference = pair
  wanted = reference(text)
  assert tokenizer.encode(text) == wanted
  assert tokenizer.encode(text) == wanted  # and again from the dictionary


@pytest.mark.parametrize(
  ("lower_case", "stride"),
  breadth.slow_but(
    [(True, 8), (False, 32), (True, 1), (False, 1)],
    lambda lower_case, stride: stride > 1,
  ),
)
def test_every_code_point_gives_the_reference_ids(lower_case, stride):
  # Planes 0 to 3 and the tags: all that is assigned and not private.
  codes = itertools.chain(range(0x32400), range(0xE0000, 0xE0200))
  characters = [chr(code) for code in codes]
  kept = [
    char
    for char in characters
    if char.strip()
    and unicodedata.category(char) != "Cs"
    and (char == char.lower() or not lower_case)
  ]
  pieces = [*SPECIAL_TOKENS, *kept, *("##" + char for char in kept)]
  tokenizer = WordPieceTokenizer(pieces, lower_case=lower_case)
  vocabulary = {piece: i for i, piece in enumerate(pieces)}
  for start in range(0, len(characters), 512 * stride):
    block = characters[start : start + 512]
    text = " ".join(f"a{char}b" for char in block)
    wanted = wordpiece_reference.encode(text, vocabulary, lower_case)
    assert tokenizer.encode(text) == wanted, hex(start)


@pytest.mark.slow
def test_ids_of_novels_equal_the_reference():
  path = released("bert-base-uncased")
  if not NOVELS.exists():
    pytest.skip("no corpus at ../shared/data/corpus/novels.txt")
  vocabulary = wordpiece_reference.read_vocabulary(path)
  tokenizer = load_tokenizer(path)
  with NOVELS.open(encoding="utf-8") as file:
    lines = list(itertools.islice(file, 0, 600_000, 30))
  assert len(lines) == 20_000
  words: dict[str, list[int]] = {}  # the reference is slow: once a word
  for line, ids in zip(lines, tokenizer.encode_batch(lines), strict=True):
    wanted = []
    for word in wordpiece_reference.words_of(line, lower_case=True):
      if word not in words:
        pieces = wordpiece_reference.pieces_of(word, vocabulary, 200)
        words[word] = [vocabulary[piece] for piece in pieces]
      wanted += words[word]
    assert ids == wanted, line


def test_full_dictionaries_give_the_same_ids(monkeypatch):
  texts = [f"walk{i % 7} walked! w{i}" for i in range(50)]
  pieces = ["walk", "##ed", "!", "w", *(f"##{digit}" for digit in range(10))]
  wanted = tokenizer_of(*pieces).encode_batch(texts)
  monkeypatch.setattr(word_rules, "_MAX_CACHED", 3)
  monkeypatch.setattr(word_rules, "_MAX_CACHED_CHARS", 5)
  bounded = tokenizer_of(*pieces)
  assert bounded.encode_batch(texts) == wanted
  assert len(bounded._chunk_ids) == 3
  assert max(map(len, bounded._chunk_ids)) <= 5


# --- Characters of tokens ---


def spelled(tokenizer, text):
  """Pieces beside the characters that they stand for."""
  columns = tokenizer.encode_with_offsets(text)
  return [
    (tokenizer.token(i), text[start:end])
    for i, start, end in zip(*columns, strict=True)
  ]


def test_offsets_give_the_characters_of_the_text_as_it_was():
  tokenizer = tokenizer_of(
    "un", "##want", "##ed", "(", ")", "\u4e2d", "e", "##x"
  )
  assert spelled(tokenizer, " UNwant\u00c9d \u4e2d(zz)") == [
    ("un", "UN"), ("##want", "want"), ("##ed", "\u00c9d"), ("\u4e2d", "\u4e2d"),
    ("(", "("), ("[UNK]", "zz"), (")", ")"),
  ]  # fmt: skip
  # An accent of its own goes with its letter; a dropped control does not.
  assert spelled(tokenizer, "e\u0301x \x0be\0x\x1f") == [
    ("e", "e\u0301"), ("##x", "x"), ("e", "e"), ("##x", "x")
  ]  # fmt: skip
  assert tokenizer.encode_with_offsets(" \x0b ") == ([], [], [])


def test_pieces_of_one_character_share_it():
  tokenizer = tokenizer_of("i", "##x", "\u1100", "##\u1161", "##\u11a8")
  # A dotted capital I becomes two, the second an accent; a syllable three.
  assert spelled(tokenizer, "\u0130x") == [("i", "\u0130"), ("##x", "x")]
  assert spelled(tokenizer, "\uac01") == [
    ("\u1100", "\uac01"), ("##\u1161", "\uac01"), ("##\u11a8", "\uac01")
  ]  # fmt: skip


@hypothesis.settings(max_examples=250, deadline=None, derandomize=True)
@hypothesis.given(text=TEXTS)
def test_ids_with_offsets_equal_the_ids_and_offsets_grow(pair, text):
  tokenizer, _ = pair
  for _ in range(2):  # the second time from the dictionary
    ids, starts, ends = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert starts == sorted(starts)
    assert ends == sorted(ends)
    for start, end in zip(starts, ends, strict=True):
      assert 0 <= start < end <= len(text)
      assert text[start:end] == text[start:end].strip(" \t\n\r")


def test_sentencepiece_offsets_count_characters_without_spaces(model):
  text = "  The \ufb01rst \ud800 w\u00f6rld"
  ids, starts, ends = model.encode_with_offsets(text)
  assert ids == model.encode(text)
  assert starts == sorted(starts)
  assert ends == sorted(ends)
  covered = "".join(text[a:b] for a, b in zip(starts, ends, strict=True))
  assert covered == "".join(text.split())


# --- Pieces and ids ---


def test_ids_and_pieces_are_each_other_s_inverse():
  tokenizer = tokenizer_of("walk", "##ed")
  assert tokenizer.vocab_size == 7
  for i in range(7):
    assert tokenizer.id(tokenizer.token(i)) == i
  specials = ("pad_id", "unk_id", "cls_id", "sep_id", "mask_id")
  for name, piece in zip(specials, SPECIAL_TOKENS, strict=True):
    assert tokenizer.token(getattr(tokenizer, name)) == piece
  assert tokenizer.token(np.int32(5)) == "walk"
  with pytest.raises(ValueError, match=r"'fly' is not a piece .* of 7"):
    tokenizer.id("fly")
  for bad in (-1, 7):
    with pytest.raises(ValueError, match=f"id {bad} .* run from 0 to 6"):
      tokenizer.token(bad)
  with pytest.raises(TypeError, match="a list of texts"):
    tokenizer.encode_batch("walk")


def test_decode_joins_pieces_to_words_and_leaves_padding_out():
  tokenizer = tokenizer_of("walk", "##ed", "!")
  ids = [2, *tokenizer.encode("Walked! walk"), 4, 6, 3, 0, 0]
  assert tokenizer.decode(ids) == "[CLS] walked ! walk [MASK] ##ed [SEP]"
  assert tokenizer.decode(np.array(ids)) == tokenizer.decode(ids)
  assert tokenizer.decode([]) == ""


def test_wordpiece_continues_word_marks_the_pieces_within_words():
  mask = tokenizer_of("walk", "##ed", "#", "##g").continues_word()
  assert mask.dtype == bool
  assert mask.tolist() == [False] * 5 + [False, True, False, True]


# --- Casing ---


def test_casing_is_decided_by_the_vocabulary():
  assert tokenizer_of("walk", "##ed").lower_case is True
  assert tokenizer_of("Walk", "walk").lower_case is False
  digits = [tokenizer_of("1", "\u4e2d", lower_case=x) for x in (True, False)]
  assert [t.lower_case for t in digits] == [True, False]
  # A few capitals among thousands may be used either way.
  words = [
    f"{a}{b}{c}" for a, b, c in itertools.product("abcdefghijkl", repeat=3)
  ]
  assert tokenizer_of(*words, "NASA").lower_case is True
  assert tokenizer_of(*words, "NASA", lower_case=False).lower_case is False
  # What stands in brackets is a name, not text.
  assert tokenizer_of("walk", "[A]", "<S>").lower_case is True


def test_flag_that_contradicts_the_vocabulary_is_refused():
  with pytest.raises(
    ValueError, match=r"cased: 2 pieces .*'Walk', '##X'.* lower_case=False"
  ):
    tokenizer_of("Walk", "walk", "##X", lower_case=True)
  with pytest.raises(
    ValueError, match=r"uncased: none of its 2 .*'walk', '##ed'.*=True"
  ):
    tokenizer_of("walk", "##ed", lower_case=False)


@pytest.mark.parametrize("name", ["bert-base-uncased", "bert-base-chinese"])
def test_released_vocabularies_load_as_their_authors_use_them(name):
  path = released(name)
  tokenizer = load_tokenizer(path)
  lines = path.read_bytes().count(b"\n")
  assert tokenizer.vocab_size == lines
  assert tokenizer.lower_case is True
  ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id)
  assert ids == (0, 100, 101)
  assert (tokenizer.sep_id, tokenizer.mask_id) == (102, 103)
  with pytest.raises(ValueError, match="uncased"):
    load_tokenizer(path, lower_case=False)


# --- Files ---


def write(path, content):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "is empty"),
    ("\n".join(SPECIAL_TOKENS[:4]), r"4 pieces.*lacks \[MASK\]"),
    ("\n".join([*SPECIAL_TOKENS, "a", "b", "a"]), r"line 8: piece 'a'.*line 6"),
    ("\n".join([*SPECIAL_TOKENS, "", "a"]), r"line 6: .*'' is blank"),
    ("\n".join([*SPECIAL_TOKENS, "a", "", ""]), r"line 7: .*'' is blank"),
    ("\n".join([*SPECIAL_TOKENS]).encode("utf-16"), r"line 1: byte 0xff"),
    (b"[PAD]\n[UNK]\nna\xefve\n", r"line 3: byte 0xef is not UTF-8"),
    (b"[PAD]\n\0\1", r"line 2: has a NUL"),
    ("\ufeff" + "\n".join(SPECIAL_TOKENS), r"line 1: has a byte order mark"),
  ],
)
def test_bad_vocabulary_is_refused_with_file_and_line(
  tmp_path, content, message
):
  path = write(tmp_path / "vocab.txt", content)
  with pytest.raises(ValueError, match=message) as error:
    load_tokenizer(path)
  assert str(path) in str(error.value)


def test_vocabulary_lines_are_stripped_and_odd_ones_keep_their_ids(tmp_path):
  odd = ["a\t", "\u2028", "##\u2028", "b\u00a0", "##", "c\x85d"]
  text = "\r\n".join([*SPECIAL_TOKENS, *odd]) + "\r\n"
  tokenizer = load_tokenizer(write(tmp_path / "vocab.txt", text))
  assert tokenizer.vocab_size == 11
  assert [tokenizer.token(i) for i in range(5, 11)] == [
    "a",
    "\u2028",
    "##\u2028",
    "b",
    "##",
    "c\x85d",
  ]
  assert tokenizer.tokenize("a b") == ["a", "b"]
  tokenizer.save(tmp_path / "saved")
  again = load_tokenizer(tmp_path / "saved")
  assert again.fingerprint == tokenizer.fingerprint


def test_settings_survive_saving(tmp_path):
  tokenizer = tokenizer_of(
    "Walk", "##ed", lower_case=False, max_input_chars_per_word=100
  )
  tokenizer.save(tmp_path / "new" / "folder")
  again = load_tokenizer(tmp_path / "new" / "folder")
  assert isinstance(again, WordPieceTokenizer)
  assert again.fingerprint == tokenizer.fingerprint
  assert again.lower_case is False
  assert again.max_input_chars_per_word == 100
  assert again.encode("Walked walk") == tokenizer.encode("Walked walk")
  with pytest.raises(ValueError, match="has lower_case=False"):
    load_tokenizer(tmp_path / "new" / "folder", lower_case=True)


def test_fingerprint_changes_with_whatever_changes_ids():
  words = ["1", "2"]
  fingerprints = {
    tokenizer_of(*words).fingerprint,
    tokenizer_of(*reversed(words)).fingerprint,
    tokenizer_of(*words, lower_case=False).fingerprint,
    tokenizer_of(*words, max_input_chars_per_word=100).fingerprint,
  }
  assert len(fingerprints) == 4
  assert tokenizer_of(*words).fingerprint in fingerprints


def test_vocabulary_changed_after_saving_is_refused(tmp_path):
  tokenizer_of("walk", "##ed").save(tmp_path)
  write(tmp_path / "vocab.txt", "\n".join([*SPECIAL_TOKENS, "##ed", "walk"]))
  with pytest.raises(ValueError, match=r"vocab\.txt is not the vocabulary"):
    load_tokenizer(tmp_path)
  (tmp_path / "tokenizer.json").unlink()
  assert load_tokenizer(tmp_path).id("walk") == 6


def test_directory_without_our_settings_gives_its_vocabulary(tmp_path):
  with pytest.raises(FileNotFoundError, match="does not exist"):
    load_tokenizer(tmp_path / "nowhere")
  with pytest.raises(FileNotFoundError, match=r"holds no vocab\.txt or"):
    load_tokenizer(tmp_path)
  write(tmp_path / "vocab.txt", "\n".join([*SPECIAL_TOKENS, "walk"]))
  # Hugging Face's file of this name is theirs.
  write(tmp_path / "tokenizer.json", json.dumps({"version": "1", "model": {}}))
  assert load_tokenizer(tmp_path).encode("Walk") == [5]
  for bad in ("{", "[]", '{"kind": "wordpiece"}'):
    write(tmp_path / "tokenizer.json", bad)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
      load_tokenizer(tmp_path)
  (tmp_path / "tokenizer.json").unlink()
  write(tmp_path / "sentencepiece.model", b"")
  with pytest.raises(ValueError, match="holds both"):
    load_tokenizer(tmp_path)


def test_pickled_tokenizer_gives_the_same_ids():
  tokenizer = tokenizer_of("walk", "##ed", max_input_chars_per_word=9)
  text = "walked walk " + "walk" * 3
  wanted = tokenizer.encode(text)
  pickled = pickle.dumps(tokenizer)
  again = pickle.loads(pickled)  # noqa: S301
  assert again.encode(text) == wanted
  assert again.fingerprint == tokenizer.fingerprint
  assert len(pickled) < 1000  # the dictionaries stay behind


# --- Learning WordPiece ---


def test_learned_vocabulary_has_the_size_asked_and_specials_first():
  tokenizer = WordPieceTokenizer.learn(story(300), 300, lower_case=True)
  assert tokenizer.vocab_size == 300
  assert [tokenizer.token(i) for i in range(5)] == list(SPECIAL_TOKENS)
  assert tokenizer.pad_id == 0
  known = tokenizer.encode("Walking, caf\u00e9!")
  assert tokenizer.decode(known) == "walking [UNK] cafe [UNK]"
  assert tokenizer.unk_id not in tokenizer.encode(" ".join(story(20)))
  assert (
    WordPieceTokenizer.learn(story(300), 300, lower_case=False).lower_case
    is False
  )


def test_most_frequent_pair_is_merged_first():
  tokenizer = WordPieceTokenizer.learn(["ab " * 5, "ac " * 3, "xb"], 13, True)
  pieces = [tokenizer.token(i) for i in range(5, 13)]
  assert pieces == ["a", "b", "c", "x", "##b", "##c", "ab", "ac"]


def test_order_of_text_does_not_change_the_vocabulary():
  texts = story(300)
  wanted = WordPieceTokenizer.learn(texts, 250, True).fingerprint
  assert (
    WordPieceTokenizer.learn(iter(texts[::-1]), 250, True).fingerprint == wanted
  )
  assert (
    WordPieceTokenizer.learn(["\n".join(texts)], 250, True).fingerprint
    == wanted
  )


_LEARN = """
import sys
sys.path.insert(0, {root!r})
from bert_jax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from bert_jax.data.tokenizers.wordpiece import WordPieceTokenizer
from tests.support.corpora import story
wordpiece = WordPieceTokenizer.learn(story(300), 400, True)
model = SentencePieceTokenizer.learn(
    story(600), 300, input_sentence_size=500)
print(wordpiece.fingerprint, model.fingerprint)
"""


def test_learning_in_another_process_gives_the_same_bytes():
  printed = set()
  for seed, threads in (("1", "1"), ("2", "2"), ("3", "4")):
    env = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
    done = subprocess.run(
      [sys.executable, "-c", _LEARN.format(root=str(ROOT))],
      env=env,
      capture_output=True,
      text=True,
      check=True,
    )
    printed.add(done.stdout)
  assert len(printed) == 1
  assert len(printed.pop().split()) == 2


def test_size_the_text_cannot_give_is_refused():
  with pytest.raises(ValueError, match=r"only 24 pieces .* to 24"):
    WordPieceTokenizer.learn(["low lower lowest"] * 2, 1000, True)
  with pytest.raises(ValueError, match=r"vocab_size=10 .* at least 18"):
    WordPieceTokenizer.learn(["low lower lowest"] * 2, 10, True)
  with pytest.raises(ValueError, match=r"0 distinct words.* not empty"):
    WordPieceTokenizer.learn([" ", ""], 100, True)
  with pytest.raises(ValueError, match="the text to learn from is uncased"):
    WordPieceTokenizer.learn(["low lower lowest"] * 2, 18, False)


def test_rare_characters_and_surrogates_are_left_out_of_the_alphabet():
  texts = ["aab bba " * 3, "ab0", "a\ud800b", "b" * 201 + "q"]
  tokenizer = WordPieceTokenizer.learn(texts, 11, True, limit_alphabet=2)
  pieces = [tokenizer.token(i) for i in range(5, 11)]
  assert pieces[:4] == ["a", "b", "##a", "##b"]
  assert tokenizer.tokenize("ab0") == ["[UNK]"]


# --- SentencePiece ---


@pytest.fixture(scope="module")
def model():
  return SentencePieceTokenizer.learn(story(400), 300)


def train_raw(**settings):
  """A SentencePiece model trained without BERT in mind."""
  content = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(story(200)),
    model_writer=content,
    vocab_size=200,
    minloglevel=2,
    **settings,
  )
  return content.getvalue()


def test_sentencepiece_gives_text_back(model):
  assert [model.token(i) for i in range(5)] == list(SPECIAL_TOKENS)
  ids = (model.pad_id, model.unk_id, model.cls_id, model.sep_id, model.mask_id)
  assert ids == (0, 1, 2, 3, 4)
  assert model.vocab_size == 300
  assert model.lower_case is None
  for text in [*story(20, seed=1), ""]:
    assert model.decode(model.encode(text)) == text
    assert model.encode(text) == [model.id(x) for x in model.tokenize(text)]
  row = [2, *model.encode("walked"), 4, *model.encode("talk"), 3, 0]
  assert model.decode(np.array(row)) == "[CLS] walked [MASK] talk [SEP]"


def test_special_tokens_typed_in_text_are_plain_pieces(model):
  ids = model.encode("walk [MASK] [CLS][SEP] [PAD]")
  assert not {model.pad_id, model.cls_id, model.sep_id, model.mask_id} & {*ids}


def test_sentencepiece_takes_half_a_surrogate_pair(model):
  assert model.encode("walk \ud800") == model.encode("walk \ufffd")


def test_sentencepiece_continues_word_marks_the_pieces_within_words(model):
  mask = model.continues_word()
  assert mask.shape == (300,)
  assert not mask[:5].any()
  words = "walking talked"
  starts = [not mask[i] for i in model.encode(words)]
  assert sum(starts) == 2
  assert starts[0]


def test_sentencepiece_survives_saving_and_pickling(model, tmp_path):
  model.save(tmp_path)
  file = tmp_path / "sentencepiece.model"
  for again in (
    load_tokenizer(tmp_path),
    load_tokenizer(file),
    pickle.loads(pickle.dumps(model)),  # noqa: S301
  ):
    assert isinstance(again, SentencePieceTokenizer)
    assert again.fingerprint == model.fingerprint
    assert again.encode("walked") == model.encode("walked")
  for path in (file, tmp_path):
    with pytest.raises(ValueError, match="its own normalisation"):
      load_tokenizer(path, lower_case=True)


def test_sentencepiece_folds_case_when_asked():
  folded = SentencePieceTokenizer.learn(story(400), 200, lower_case=True)
  assert folded.encode("WALKED") == folded.encode("walked")
  assert folded.unk_id not in folded.encode("WALKED")


def test_sentencepiece_model_without_special_tokens_is_refused(tmp_path):
  path = write(tmp_path / "plain.model", train_raw())
  with pytest.raises(
    ValueError, match=r"plain\.model .*padding.*\[MASK\].*control_symbols"
  ):
    load_tokenizer(path)


def test_sentencepiece_special_token_that_text_can_produce_is_refused():
  raw = train_raw(pad_id=3, user_defined_symbols=["[CLS]", "[SEP]", "[MASK]"])
  with pytest.raises(ValueError, match=r"spells \[CLS\].*control_symbols"):
    SentencePieceTokenizer(raw)


def test_sentencepiece_special_tokens_may_have_other_ids_and_names():
  raw = train_raw(pad_id=3, control_symbols=["[CLS]", "[SEP]", "[MASK]"])
  tokenizer = SentencePieceTokenizer(raw)
  assert tokenizer.token(tokenizer.pad_id) == "<pad>"
  assert tokenizer.unk_id == 0
  # <s> and </s> are there too, and begin no word.
  assert not tokenizer.continues_word()[: tokenizer.mask_id + 1].any()


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_file_that_is_no_sentencepiece_model_is_refused(tmp_path, content):
  path = write(tmp_path / "bad.model", content)
  with pytest.raises(ValueError, match=r"bad\.model is not a SentencePiece"):
    load_tokenizer(path)


def test_sentencepiece_size_the_text_cannot_give_is_refused():
  with pytest.raises(ValueError, match=r"vocab_size=5000.* lower .* to \d+"):
    SentencePieceTokenizer.learn(story(50), 5000)
  with pytest.raises(ValueError, match=r"vocab_size=10 cannot .* at least \d+"):
    SentencePieceTokenizer.learn(story(50), 10)
  with pytest.raises(ValueError, match="no text"):
    SentencePieceTokenizer.learn(["", "\n"], 100)


def test_accents_are_stripped_by_a_setting_of_its_own(tmp_path):
  hindi = "\u0939\u093f\u0902\u0926\u0940"  # of vowel signs, Mn among them
  text = [f"{hindi} Caf\u00e9"] * 4
  learned = {
    strip: WordPieceTokenizer.learn(text, 24, True, strip_accents=strip)
    for strip in (None, False)
  }
  kept = learned[False]
  assert kept.decode(kept.encode(text[0])) == f"{hindi} caf\u00e9"
  plain = learned[None]
  assert plain.decode(plain.encode(text[0])) == "\u0939\u093f\u0926\u0940 cafe"
  for tokenizer, settings in ((kept, {"strip_accents": False}), (plain, {})):
    folder = tmp_path / str(len(settings))
    tokenizer.save(folder)
    saved = json.loads((folder / "tokenizer.json").read_text())
    assert settings.items() <= saved.items()
    assert ("strip_accents" in saved) == bool(settings)
    again = load_tokenizer(folder)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(text[0]) == tokenizer.encode(text[0])
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
    assert copy.encode(text[0]) == tokenizer.encode(text[0])
    ids, starts, ends = tokenizer.encode_with_offsets(text[0])
    assert ids == tokenizer.encode(text[0])
    assert ends[-1] == len(text[0]) and starts[0] == 0
    with pytest.raises(ValueError, match="strip_accents"):
      load_tokenizer(folder, strip_accents=not tokenizer.strip_accents)
  given = load_tokenizer(tmp_path / "1" / "vocab.txt", strip_accents=False)
  assert given.encode(text[0]) == kept.encode(text[0])
  token = added_tokens.AddedToken("<x>", normalized=False, special=False)
  assert kept.with_added([token]).encode(text[0]) == kept.encode(text[0])
  # Hugging Face's files name the setting, too.
  (tmp_path / "hf").mkdir()
  kept.write_vocabulary(tmp_path / "hf" / "vocab.txt")
  (tmp_path / "hf" / "tokenizer_config.json").write_text(
    json.dumps(
      {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "strip_accents": False,
        "max_input_chars_per_word": kept.max_input_chars_per_word,
      }
    )
  )
  assert load_tokenizer(tmp_path / "hf").fingerprint == kept.fingerprint
  # A cased vocabulary may strip accents.
  cased = WordPieceTokenizer.learn(text, 24, False, strip_accents=True)
  assert cased.decode(cased.encode("Caf\u00e9")) == "Cafe"
