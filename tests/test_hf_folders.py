"""Tests of what a Hugging Face folder says: each key honoured or refused.

The folders are written by hand here. Those with `reference` in their name are
compared with transformers under torch, and are slow.
"""

import dataclasses
import inspect
import json
import logging
import os
import pathlib
import pickle
import random
import string

import numpy as np
import pytest

from bert_jax import weights
from bert_jax.data import prepare
from bert_jax.data import templates
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.data.tokenizers import added_tokens
from bert_jax.data.tokenizers import hf_tokenizer
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import load
from bert_jax.data.tokenizers import wordpiece
from bert_jax.kinds import answers
from bert_jax.models import families
from bert_jax.models import heads
from bert_jax.models import layers
from bert_jax.models import params as param_trees
from bert_jax.models.families import bert
from bert_jax.prediction import predict
from bert_jax.runtime import sharding
from bert_jax.tasks import spec
from bert_jax.training import evaluate
from bert_jax.training import jobs
from bert_jax.training import train
from bert_jax.weights import convert as convert_mode
from configs import base
from configs import convert as convert_config
from configs import pretrain
from tests.support import small_tasks

AddedToken = added_tokens.AddedToken
WORDS = "the acquired walk ##ed e1 ent karl a b [ ] < > / . ##1".split()
PIECES = [*interface.SPECIAL_TOKENS, *WORDS]
V = len(PIECES)
SHARED = pathlib.Path(__file__).parents[1] / ".." / "shared" / "data"
MARKERS = (
  AddedToken("[e1]"),
  AddedToken("<ent>"),
  AddedToken("[E2]", normalized=False, special=True),
  AddedToken("<W>", single_word=True, normalized=False),
)


def tokenizer_of(*added, lower_case=True):
  return wordpiece.WordPieceTokenizer(
    PIECES, lower_case=lower_case, max_input_chars_per_word=100, added=added
  )


def make(kind=None, added=(), without=("nsp",), num_labels=3, **model):
  """Random weights, as large as the vocabulary with its added tokens."""
  tokenizer = tokenizer_of(*added)
  model = {
    "vocab_size": tokenizer.vocab_size, "num_layers": 1, "hidden_size": 8,
    "num_heads": 2, "mlp_dim": 16, "max_len": 16, "type_vocab_size": 2,
    "hidden_act": "gelu_erf", "layer_norm_eps": 1e-12,
  } | model  # fmt: skip
  rng = np.random.default_rng(0)
  outputs = {"regress": 1, "choice": 1, "span": 2}.get(kind, num_labels)
  flat = {
    path: rng.normal(size=shape).astype(np.float32)
    for path, shape in heads.param_shapes(model, outputs).items()
    if not path.startswith(tuple(without)) and (kind or "task" not in path)
  }
  return weights.Pretrained(
    format="bert_jax", model=model, params=param_trees.nest(flat), kind=kind,
    labels=("x", "y", "z") if kind in ("classify", "tag") else (),
    tokenizer=tokenizer, lower_case=True,
  )  # fmt: skip


def write(pretrained, folder, format="huggingface"):
  weights.write(pretrained, folder, format)
  return folder


def change_json(path, **changes):
  value = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps(value | changes))


def predictor(pretrained, **changes):
  config = base.get_config()
  config.predict.update({"batch_tokens": 64} | changes)
  return predict.Predictor(pretrained, config, "MODEL")


# --- where added tokens stand in a text --------------------------------------


@pytest.mark.parametrize(
  ("text", "pieces"),
  [
    ("the [E1] acquired <ent>", "the [e1] acquired <ent>"),
    ("the[e1]<ENT>walked", "the [e1] <ent> walk ##ed"),
    # Matched as written: not in other letters, and before the others.
    ("[E2] [e2]", "[E2] [ [UNK] ]"),
    # One word of its own, or text.
    ("<W> a<W> <W>. <w>", "<W> a < [UNK] > <W> . < [UNK] >"),
    # Controls and accents do not stand in the way of a normalised token.
    ("<e\0nt> [e\u03011]", "<ent> [e1]"),
    # What only looks like one is text.
    ("[e1 <en", "[ e1 < [UNK]"),
    # BERT's own five are text where a text spells them.
    ("[MASK][e1]", "[ [UNK] ] [e1]"),
  ],
)
def test_an_added_token_is_one_token(text, pieces):
  tokenizer = tokenizer_of(*MARKERS)
  assert tokenizer.tokenize(text) == pieces.split()
  ids, starts, ends = tokenizer.encode_with_offsets(text)
  assert ids == tokenizer.encode(text)
  for id, start, end in zip(ids, starts, ends, strict=True):
    if id >= V:
      found = text[start:end].replace("\0", "").replace("\u0301", "")
      assert found.lower() == tokenizer.token(id).lower()


def test_the_leftmost_and_of_these_the_longest_is_taken():
  tokenizer = tokenizer_of(
    *(AddedToken(x) for x in ("<a", "<a>", "a>b", "<a>bc"))
  )
  assert tokenizer.tokenize("<a>b") == ["<a>", "b"]
  assert tokenizer.tokenize("<a>bc<a") == ["<a>bc", "<a"]


def test_an_added_token_that_is_a_piece_keeps_its_id():
  tokenizer = tokenizer_of(AddedToken("karl", normalized=False), MARKERS[0])
  assert tokenizer.vocab_size == V + 1
  karl = PIECES.index("karl")
  assert tokenizer.encode("karla [e1]") == [karl, PIECES.index("a"), V]


def test_a_part_of_a_character_is_no_token():
  """A syllable of Hangul is three letters in normalised text."""
  tokenizer = tokenizer_of(AddedToken("\u1112"), lower_case=True)
  assert tokenizer.encode("\u1112") == [V]
  assert tokenizer.encode("\ud55c") == [tokenizer.unk_id]


def test_characters_of_tokens_stay_right():
  """Spans and tags are cut out of a text by them."""
  rng = random.Random(0)
  marks = ["[E1]", "<ent>", "[E2]", "<W>", "walked", "\u1e09", "\ud55c", "日"]
  for added in (MARKERS, (*MARKERS, AddedToken("<L>", lstrip=True))):
    tokenizer = tokenizer_of(*added)
    for _ in range(300):
      parts = [
        rng.choice([*marks, " ", "\t ", "\0", "\u0301"]) for _ in "x" * 9
      ]
      text = "".join(parts)
      ids, starts, ends = tokenizer.encode_with_offsets(text)
      assert ids == tokenizer.encode(text)
      assert starts == sorted(starts) and ends == sorted(ends)
      for start, end in zip(starts, ends, strict=True):
        assert start < end
        assert text[start:end] == text[start:end].strip()


def test_added_tokens_are_neither_parts_of_words_nor_joined():
  tokenizer = tokenizer_of(AddedToken("##x", normalized=False), *MARKERS)
  assert not tokenizer.continues_word()[V:].any()
  assert tokenizer.continues_word()[PIECES.index("##ed")]
  ids = tokenizer.encode("walked [e1] ##x")
  assert tokenizer.decode(ids) == "walked [e1] ##x"


@pytest.mark.parametrize(
  ("added", "message"),
  [
    ((AddedToken("[MASK]"),), r"\[MASK\].* is a special token"),
    ((MARKERS[0], MARKERS[0]), "occurs twice"),
    ((AddedToken("\ud800"),), "half of a surrogate pair"),
  ],
)
def test_added_tokens_that_cannot_be_are_refused(added, message):
  with pytest.raises(ValueError, match=message):
    tokenizer_of(*added)
  with pytest.raises(ValueError, match="not a space"):
    AddedToken("  ")


# --- they survive ------------------------------------------------------------


def test_a_vocabulary_without_added_tokens_keeps_its_fingerprint(tmp_path):
  """Prepared data names it; this one was computed before there were any."""
  tokenizer = tokenizer_of()
  tokenizer.save(tmp_path)
  saved = json.loads((tmp_path / "tokenizer.json").read_text())
  assert set(saved) == {
    "kind", "lower_case", "max_input_chars_per_word", "fingerprint",
  }  # fmt: skip
  assert tokenizer.fingerprint == FINGERPRINT
  assert tokenizer_of(*MARKERS).fingerprint != FINGERPRINT


FINGERPRINT = "1d500cc53455c7383eeba34b0d0a384130a9992748864abf1a1c814cbab0b06b"


def test_added_tokens_are_saved_and_pickled(tmp_path):
  tokenizer = tokenizer_of(*MARKERS)
  tokenizer.save(tmp_path)
  assert (tmp_path / "vocab.txt").read_text().split() == PIECES
  text = "the [E1] acquired <ent> <W> [E2]"
  for again in (
    load.load_tokenizer(tmp_path),
    pickle.loads(pickle.dumps(tokenizer)),  # noqa: S301
  ):
    assert again.encode(text) == tokenizer.encode(text)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.added == MARKERS
  settings = json.loads((tmp_path / "tokenizer.json").read_text())
  settings["added_tokens"][0]["single_word"] = "no"
  (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
  with pytest.raises(ValueError, match="the added token .*single_word='no'"):
    load.load_tokenizer(tmp_path)


@pytest.mark.parametrize("format", ["huggingface", "flax", "bert_jax"])
def test_added_tokens_come_back_from_every_format_that_has_them(
  tmp_path, format
):
  wanted = make(added=MARKERS)
  got = weights.read(write(wanted, tmp_path / "x", format))
  assert got.tokenizer.fingerprint == wanted.tokenizer.fingerprint
  assert got.model["vocab_size"] == V + len(MARKERS)


def test_the_original_has_no_added_tokens(tmp_path):
  with pytest.raises(weights.WeightsError, match=r"\[e1\], <ent>"):
    write(make(added=MARKERS), tmp_path / "x", "tf1")
  assert not list(tmp_path.iterdir())


def test_a_marker_is_one_token_for_a_model(tmp_path):
  """The case `added`: it used to become `[ e ##1 ]`."""
  got = weights.read(write(make(added=MARKERS), tmp_path / "x"))
  answer = predictor(got, kind="embed", fields=("tokens",))
  (found,) = answer([{"text": "the [E1] acquired <ent>"}])
  assert found["tokens"] == "[CLS] the [e1] acquired <ent> [SEP]".split()
  (found,) = predictor(got, kind="fill-mask", top_k=V + 4)(
    [{"text": "<W>[MASK][e1]"}]
  )
  ids = [row["id"] for row in found["masks"][0]]
  assert sorted(ids) == list(range(V + 4))


def test_data_is_prepared_with_added_tokens(tmp_path):
  """By many processes, each of which reads the vocabulary anew."""
  write(make(added=MARKERS), tmp_path / "x")
  text = tmp_path / "text.txt"
  text.write_text("the [E1] acquired <ent> .\nwalked a [E2] b\n\n" * 40)
  config = base.get_config()
  config.data.seq_len = 16
  config.prepare.update(
    vocab=str(tmp_path / "x"), num_workers=2, unit_bytes=600, held_out_rate=0.0
  )
  data = str(tmp_path / "data")
  prepare.prepare(config, [str(text)], data)
  vocabulary = load.load_tokenizer(os.path.join(data, "vocab"))
  assert vocabulary.added == MARKERS
  counts = records.read_array(
    os.path.join(data, "tokens", "train.counts.npy"), np.int64, 1
  )
  by_name = {name: counts[vocabulary.id(name)] for name in ("[e1]", "<ent>")}
  assert by_name == {"[e1]": 40, "<ent>": 40}
  assert counts[vocabulary.id("[E2]")] == 40
  assert manifests.read_manifest(data)["vocab_size"] == V + len(MARKERS)


@pytest.mark.slow
def test_a_task_is_trained_with_added_tokens(tmp_path):
  """The run has them, and what is written of it for transformers has, too."""
  (tmp_path / "data").mkdir()
  config = small_tasks.make_config(
    tmp_path / "data", "classify", train__num_epochs=1.0
  )
  vocabulary = wordpiece.WordPieceTokenizer(
    small_tasks.VOCAB, added=MARKERS, max_input_chars_per_word=100
  )
  given = make(without=("nsp", "mlm"), vocab_size=vocabulary.vocab_size)
  write(dataclasses.replace(given, tokenizer=vocabulary), tmp_path / "x")
  config.init_from, config.task.vocab = str(tmp_path / "x"), ""
  train.train(config, str(tmp_path / "run"))
  run = weights.read(tmp_path / "run")
  assert run.tokenizer.fingerprint == vocabulary.fingerprint
  again = weights.read(write(run, tmp_path / "y"))
  assert again.tokenizer.fingerprint == vocabulary.fingerprint


# --- the files that name them ------------------------------------------------


def as_dict(token, **more):
  return dataclasses.asdict(token) | more


def added_in(file):
  """Writes MARKERS in one of the ways that folders name them."""
  rows = list(enumerate(MARKERS, V))
  if file == "tokenizer_config.json":
    return {"added_tokens_decoder": {str(i): as_dict(t) for i, t in rows}}
  if file == "tokenizer.json":
    return {"added_tokens": [as_dict(t, id=i) for i, t in rows]}
  if file == "added_tokens.json":
    return {t.content: i for i, t in rows}
  return {"additional_special_tokens": [as_dict(t) for t in MARKERS]}


def template(*names, ones=0):
  """Parts of a sequence as tokenizer.json has them, the last of type 1."""
  types = [0] * (len(names) - ones) + [1] * ones
  return [
    {"Sequence" if n in "AB" else "SpecialToken": {"id": n, "type_id": t}}
    for n, t in zip(names, types, strict=True)
  ]


def whole():
  """A tokenizer.json as transformers writes it for BERT."""
  return {
    "version": "1.0",
    "truncation": {"direction": "Right", "max_length": 8},
    "padding": None,
    "added_tokens": [],
    "normalizer": {
      "type": "BertNormalizer", "clean_text": True, "lowercase": True,
      "handle_chinese_chars": True, "strip_accents": None,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
      "type": "TemplateProcessing",
      "single": template("[CLS]", "A", "[SEP]"),
      "pair": template("[CLS]", "A", "[SEP]", "B", "[SEP]", ones=2),
      "special_tokens": {},
    },
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
      "type": "WordPiece", "unk_token": "[UNK]",
      "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
      "vocab": {piece: i for i, piece in enumerate(PIECES)},
    },
  }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
  """A folder without added tokens, whose word table has room for some."""
  return write(make(vocab_size=V + 8), tmp_path / "folder")


@pytest.mark.parametrize(
  "file",
  ["tokenizer_config.json", "tokenizer.json", "added_tokens.json",
   "special_tokens_map.json"],
)  # fmt: skip
def test_every_file_that_names_added_tokens_is_read(folder, file):
  before = whole() if file == "tokenizer.json" else {}
  change_json(folder / file, **before | added_in(file))
  got = weights.read(folder).tokenizer
  assert [t.content for t in got.added] == [t.content for t in MARKERS]
  assert got.encode("the [E1] [E2]")[-1] == V + 2
  if file in ("tokenizer_config.json", "tokenizer.json"):
    assert got.added == MARKERS


def test_a_special_token_without_an_id_gets_the_next_one(folder):
  change_json(
    folder / "tokenizer_config.json",
    additional_special_tokens=["<x>", "karl", "[MASK]"],
    bos_token="<s>", eos_token="[SEP]", extra_special_tokens={"y": "<y>"},
  )  # fmt: skip
  got = weights.read(folder).tokenizer
  assert got.encode("<s> <x> <y> karl") == [V, V + 1, V + 2, 11]
  assert all(token.special and not token.normalized for token in got.added)


@pytest.mark.parametrize(
  ("files", "message"),
  [
    (
      {"added_tokens.json": {"<x>": V + 1}},
      f"'<x>' has the id {V + 1}, .*should be {V}.* hole",
    ),
    ({"added_tokens.json": {"<x>": 5}}, "the id 5, which is 'the'"),
    ({"added_tokens.json": {"the": V}}, "should be 5"),
    ({"added_tokens.json": {"<x>": "5"}}, "has id '5'; wanted a number"),
    (
      {
        "added_tokens.json": {"<x>": V},
        "tokenizer_config.json": {
          "added_tokens_decoder": {str(V + 1): {"content": "<x>"}}
        },
      },
      f"the id {V}, .*tokenizer_config.json the id {V + 1}",
    ),
    (
      {
        "tokenizer.json": whole()
        | {"added_tokens": [as_dict(MARKERS[3], id=V)]},
        "tokenizer_config.json": {
          "added_tokens_decoder": {
            str(V): as_dict(MARKERS[3], single_word=False)
          }
        },
      },
      r"'<W>' other flags \(single_word, normalized\)",
    ),
  ],
)
def test_files_that_disagree_about_added_tokens_are_refused(
  folder, files, message
):
  for name, content in files.items():
    change_json(folder / name, **content)
  with pytest.raises(weights.WeightsError, match=message):
    weights.read(folder)


def test_a_table_without_rows_for_added_tokens_is_refused(folder):
  tokens = {f"<{i}>": V + i for i in range(9)}
  change_json(folder / "added_tokens.json", **tokens)
  with pytest.raises(weights.WeightsError, match=f"has {V + 9} pieces, but"):
    weights.read(folder)


# --- keys of the tokenizer ---------------------------------------------------

REFUSED = {
  "tokenizer_class": "BertJapaneseTokenizer",
  "auto_map": {"AutoTokenizer": ["x.Y", None]},
  "do_basic_tokenize": False,
  "tokenize_chinese_chars": False,
  "clean_text": False,
  "split_special_tokens": True,
  "wordpieces_prefix": "@@",
  "padding_side": "left",
  "truncation_side": "left",
  "do_word_tokenize": False,
  "do_subword_tokenize": False,
  "word_tokenizer_type": "mecab",
  "subword_tokenizer_type": "character",
  "mecab_kwargs": {"mecab_dic": "ipadic"},
  "sudachi_kwargs": {"x": 1},
  "jumanpp_kwargs": {"x": 1},
  "spm_file": "spiece.model",
  "unk_token": "<unk>",
  "cls_token": {"content": "<s>", "lstrip": False},
  "sep_token": "</s>",
  "pad_token": "<pad>",
  "mask_token": "<mask>",
  "strip_accents": "no",
  "never_split": ["walk"],
  "model_input_names": ["input_ids", "attention_mask"],
  "max_input_chars_per_word": "100",
  "do_lower_case": "yes",
  "additional_special_tokens": "<x>",
  "added_tokens_decoder": [1],
  "model_max_length": "512",
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_changes_tokens_is_refused_by_name(folder, key):
  change_json(folder / "tokenizer_config.json", **{key: REFUSED[key]})
  with pytest.raises(weights.WeightsError, match=key):
    weights.read(folder)
  with pytest.raises(ValueError, match=key):
    load.load_tokenizer(folder)


def test_every_key_with_an_effect_is_refused_in_a_test():
  assert hf_tokenizer.keys_of(templates.WORDPIECE).only.keys() <= REFUSED.keys()


# As transformers 4.57 and sentence-transformers write it, and older versions.
HARMLESS = {
  "tokenizer_class": "BertTokenizerFast",
  "never_split": None,
  "do_basic_tokenize": True,
  "name_or_path": "nreimers/MiniLM-L6-H384-uncased",
  "special_tokens_map_file": "special_tokens_map.json",
  "clean_up_tokenization_spaces": True,
  "model_max_length": 10**30,
  "max_length": 128,
  "stride": 0,
  "padding_side": "right",
  "truncation_side": "right",
  "truncation_strategy": "longest_first",
  "pad_to_multiple_of": None,
  "pad_token_type_id": 0,
  "extra_special_tokens": {},
  "mask_token": {"__type": "AddedToken", "content": "[MASK]", "lstrip": True},
  "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
}


def test_keys_without_effect_are_read_in_silence(folder, caplog):
  want = weights.read(folder)
  change_json(folder / "tokenizer_config.json", **HARMLESS)
  (folder / "tokenizer.json").write_text(json.dumps(whole()))
  caplog.set_level(logging.WARNING)
  got = weights.read(folder)
  assert got.tokenizer.fingerprint == want.tokenizer.fingerprint
  assert not caplog.records


@pytest.mark.parametrize(
  "file", ["tokenizer_config.json", "config.json", "sentence_bert_config.json"]
)
def test_a_key_that_nobody_knows_is_named_once(folder, caplog, file):
  change_json(folder / file, do_sparkle=True)
  weights.read(folder)
  (line,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
  assert "do_sparkle" in line.getMessage() and file in line.getMessage()


def changed(path, value):
  """A tokenizer.json with one value another."""
  content = whole()
  *parents, key = path.split(".")
  node = content
  for name in parents:
    node = node[name]
  node[key] = value
  return content


@pytest.mark.parametrize(
  ("path", "value"),
  [
    ("normalizer", None),
    ("normalizer.type", "NFC"),
    ("normalizer.clean_text", False),
    ("normalizer.handle_chinese_chars", False),
    ("normalizer.strip_accents", False),
    ("normalizer.lowercase", False),
    ("pre_tokenizer", None),
    ("pre_tokenizer.type", "Whitespace"),
    ("post_processor", None),
    ("post_processor.type", "RobertaProcessing"),
    (
      "post_processor.single",
      [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}],
    ),
    ("post_processor.pair", template("[CLS]", "A", "[SEP]", "B", "[SEP]")),
    ("truncation.direction", "Left"),
    ("model.type", "BPE"),
    ("model.unk_token", "<unk>"),
    ("model.continuing_subword_prefix", ""),
    ("model.max_input_chars_per_word", 99),
    ("model.max_input_chars_per_word", "99"),
    ("added_tokens", [5]),
  ],
)
def test_other_rules_in_tokenizer_json_are_refused_by_name(folder, path, value):
  (folder / "tokenizer.json").write_text(json.dumps(changed(path, value)))
  name = path.split(".")[-1]
  with pytest.raises(weights.WeightsError, match=f"tokenizer.json.*{name}|BPE"):
    weights.read(folder)


def test_its_length_of_words_is_taken_where_nothing_else_is_said(folder):
  path = folder / "tokenizer_config.json"
  config = json.loads(path.read_text())
  del config["max_input_chars_per_word"]
  path.write_text(json.dumps(config))
  (folder / "tokenizer.json").write_text(
    json.dumps(changed("model.max_input_chars_per_word", 3))
  )
  got = weights.read(folder).tokenizer
  assert got.tokenize("walk the") == ["[UNK]", "the"]


@pytest.mark.parametrize("file", ["tokenizer_config.json", "tokenizer.json"])
def test_prepare_and_the_model_take_the_same_length_of_words(folder, file):
  """`load_tokenizer`, which prepares data, reads what `weights.read` reads."""
  path = folder / "tokenizer_config.json"
  config = json.loads(path.read_text())
  del config["max_input_chars_per_word"]
  path.write_text(json.dumps(config))
  # Where nothing is said, data that was prepared before keeps its hash.
  assert load.load_tokenizer(folder).max_input_chars_per_word == 200
  if file == path.name:
    path.write_text(json.dumps(config | {"max_input_chars_per_word": 3}))
  else:
    (folder / file).write_text(
      json.dumps(changed("model.max_input_chars_per_word", 3))
    )
  got = load.load_tokenizer(folder)
  assert got.tokenize("walk the") == ["[UNK]", "the"]
  assert got.fingerprint == weights.read(folder).tokenizer.fingerprint
  with pytest.raises(ValueError, match="max_input_chars_per_word=9.*=3"):
    load.load_tokenizer(folder, max_input_chars_per_word=9)


def test_two_vocabularies_that_differ_are_refused(folder):
  vocab = {piece: i for i, piece in enumerate([*PIECES[:-1], "other"])}
  (folder / "tokenizer.json").write_text(
    json.dumps(changed("model.vocab", vocab))
  )
  with pytest.raises(
    weights.WeightsError, match=f"id {V - 1} is '##1' .*other"
  ):
    weights.read(folder)


@pytest.mark.parametrize(
  ("sentences", "tokens", "want"),
  [
    ({"max_seq_length": 7, "do_lower_case": False}, 12, 7),
    ({"max_seq_length": None}, 12, 12),
    ({}, 16, None),  # the model's own
    ({}, 10**30, None),
    ({"max_seq_length": 512}, 12, None),
  ],
)
def test_the_length_that_a_model_is_meant_for_is_read(
  folder, tmp_path, sentences, tokens, want
):
  """That of sentence-transformers before that of the tokenizer."""
  change_json(folder / "sentence_bert_config.json", **sentences)
  change_json(folder / "tokenizer_config.json", model_max_length=tokens)
  got = weights.read(folder)
  assert got.seq_len == want
  for format in families.FORMATS:
    again = write(got, tmp_path / format, format)
    keeps = format in ("tf1", "bert_jax")
    assert weights.read(again).seq_len == (want if keeps else None)
    if not keeps:  # transformers would cut text at a shorter one
      config = json.loads((again / "tokenizer_config.json").read_text())
      assert config["model_max_length"] == got.model["max_len"]


# --- keys of the model -------------------------------------------------------


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("model_type", "t5"),
    ("position_embedding_type", "relative_key_query"),
    ("is_decoder", True),
    ("is_encoder_decoder", True),
    ("add_cross_attention", True),
    ("tie_encoder_decoder", True),
    ("pruned_heads", {"0": [1]}),
    ("quantization_config", {"load_in_8bit": True}),
    ("auto_map", {"AutoModel": "x.Y"}),
    ("adapters", {"x": {}}),
    ("embedding_size", 128),
    ("tokenizer_class", "BertJapaneseTokenizer"),
    ("num_labels", 5),
    ("hidden_act", "quick_gelu"),
    ("hidden_act", "gelu_10"),
  ],
)
def test_a_key_that_changes_numbers_is_refused_by_name(tmp_path, key, value):
  folder = write(make("classify"), tmp_path / "x")
  change_json(folder / "config.json", **{key: value})
  with pytest.raises(weights.WeightsError, match=key):
    weights.read(folder)


def test_what_cannot_be_read_says_what_to_change():
  """No message asks for a value that no file can hold."""
  good = bert.FAMILY.config_of("huggingface", make().model)
  keys = bert.FAMILY.config_keys
  for key, accepted in keys.only.items():
    with pytest.raises(families.ConvertError) as raised:
      bert.FAMILY.model_of("huggingface", good | {key: {"0": [1]}})
    text = str(raised.value)
    assert key in text and "no such key" not in text and "{}" not in text
    # Either a value that can be written, or a remedy.
    assert (accepted[-1] in (None, {})) == (key in keys.remedies)


def test_a_key_that_only_its_absence_makes_right_is_to_be_removed(folder):
  change_json(folder / "tokenizer_config.json", spm_file="x.model")
  with pytest.raises(weights.WeightsError, match="spm_file.*remove the key"):
    weights.read(folder)


@pytest.mark.parametrize(
  ("keys", "want"),
  [
    ({"sbert_ce_default_activation_function": "torch.nn.Sigmoid"}, "Sigmoid"),
    ({"sentence_transformers": {"activation_fn": "torch.nn.Tanh"}}, "Tanh"),
    ({"sentence_transformers": {"version": "4.1.0"}}, ""),
    (
      {
        "sbert_ce_default_activation_function":
          "torch.nn.modules.linear.Identity"
      },
      "",
    ),
  ],
)  # fmt: skip
def test_an_activation_of_outputs_that_is_not_applied_is_said(
  tmp_path, caplog, keys, want
):
  """A cross-encoder gives raw scores here, and sigmoids elsewhere."""
  folder = write(make("regress"), tmp_path / "x")
  change_json(folder / "config.json", **keys)
  caplog.set_level(logging.WARNING)
  weights.read(folder)
  lines = [r.getMessage() for r in caplog.records]
  assert len(lines) == bool(want)
  assert all(want in line and "raw output" in line for line in lines)


def test_keys_of_real_folders_are_known(caplog):
  config = {
    "_name_or_path": "x", "gradient_checkpointing": False, "use_cache": True,
    "transformers_version": "4.8.2", "torch_dtype": "float16",
    "pad_token_id": 9, "finetuning_task": "mrpc", "_num_labels": 2,
    "task_specific_params": {},
    "directionality": "bidi", "pooler_fc_size": 768, "classifier_dropout": 0.3,
    "chunk_size_feed_forward": 4, "output_hidden_states": True,
    "label2id": {}, "pruned_heads": {}, "language": "english",
  }  # fmt: skip
  assert bert.FAMILY.config_keys.unknown(config) == []
  model = make().model
  bert.FAMILY.model_of(
    "huggingface", bert.FAMILY.config_of("huggingface", model) | config
  )


def test_rates_of_training_are_said(folder, caplog):
  """They are keys of a run's config here; whose value is used is logged."""
  change_json(
    folder / "config.json", hidden_dropout_prob=0.3, initializer_range=0.02
  )
  caplog.set_level(logging.INFO)
  weights.read(folder)
  (line,) = [r.getMessage() for r in caplog.records]
  assert "hidden_dropout_prob=0.3" in line
  assert "--config.model.dropout_rate" in line


@pytest.mark.parametrize(
  ("act", "ours"),
  [
    ("gelu", "gelu_erf"), ("gelu_python", "gelu_erf"),
    ("gelu_new", "gelu_tanh"), ("gelu_fast", "gelu_tanh"),
    ("gelu_pytorch_tanh", "gelu_tanh"), ("gelu_accurate", "gelu_tanh"),
    ("swish", "silu"),
  ],
)  # fmt: skip
def test_names_of_one_activation_are_known(folder, act, ours):
  change_json(folder / "config.json", hidden_act=act)
  assert weights.read(folder).model["hidden_act"] == ours


def add_tensors(folder, **tensors):
  safetensors = pytest.importorskip("safetensors.numpy")
  path = folder / "model.safetensors"
  found = safetensors.load_file(path) | {
    name.replace("__", "."): array for name, array in tensors.items()
  }
  safetensors.save_file(found, path, metadata={"format": "pt"})


def test_a_tensor_in_the_encoder_that_is_not_berts_is_refused(folder, caplog):
  name = "bert__encoder__layer__0__attention__self__query__lora_A"
  add_tensors(folder, crf__transitions=np.ones(3, np.float32))
  weights.read(folder)
  assert "crf.transitions" in caplog.text
  add_tensors(folder, **{name: np.ones(3, np.float32)})
  with pytest.raises(weights.WeightsError, match=r"query\.lora_A"):
    weights.read(folder)


def test_an_adapter_beside_the_weights_is_refused(folder):
  (folder / "adapter_config.json").write_text("{}")
  with pytest.raises(weights.WeightsError, match=r"adapter_config\.json"):
    weights.read(folder)


@pytest.mark.parametrize("stored", ["other", "same", "none"])
def test_an_untied_decoder_is_refused_by_name(folder, tmp_path, stored):
  """The head of masked words shares the word table here; embedding goes on."""
  change_json(folder / "config.json", tie_word_embeddings=False)
  name = "cls__predictions__decoder__weight"
  flat = param_trees.flatten(weights.read(folder).params)
  word = flat["encoder/embeddings/word/embedding"]
  if stored != "none":
    add_tensors(folder, **{name: word + (stored == "other")})
  got = weights.read(folder)
  if stored == "same":
    assert "mlm" in got.params and not got.refused
    return
  assert "mlm" not in got.params
  for kind in ("fill-mask", ""):
    with pytest.raises(
      answers.PredictError, match=r"cls\.predictions\.decoder\.weight.*embed"
    ):
      predictor(got, kind=kind)
  (found,) = predictor(got, kind="embed", fields=("mean",))([{"text": "the"}])
  assert len(found["mean"]) == 8


@pytest.mark.parametrize(
  ("problem", "num_labels"), [("regression", 3), ("ranking", 3)]
)
def test_a_problem_that_is_no_kind_here_is_refused_by_name(
  tmp_path, problem, num_labels
):
  given = make("classify", without=("nsp", "mlm"), num_labels=num_labels)
  given = dataclasses.replace(given, labels=())
  folder = write(given, tmp_path / "x")
  change_json(folder / "config.json", problem_type=problem)
  got = weights.read(folder)
  assert got.kind is None
  for kind in ("", "classify", "regress"):
    with pytest.raises(answers.PredictError, match=problem):
      predictor(got, kind=kind)
  predictor(got, kind="embed")
  for changes in ({}, {"kind": "classify"}):
    config = convert_config.get_config("to=bert_jax")
    config.convert.update(changes)
    with pytest.raises(weights.WeightsError, match=f"{problem}.*drop_head"):
      run_convert(config, folder, tmp_path / "y")
  config = convert_config.get_config("to=bert_jax")
  config.convert.drop_head = True
  run_convert(config, folder, tmp_path / "y")
  assert "task" not in weights.read(tmp_path / "y").params


def run_convert(config, source, target):
  return convert_mode.convert(config, str(source), str(target))


# --- a pair and one token type -----------------------------------------------


def test_a_pair_for_a_model_with_one_token_type_is_refused():
  """The case `type1`: the second type was looked up out of range."""
  model = make("classify", type_vocab_size=1)
  first, second = predictor(model, kind="classify")(
    [{"text": "the"}, {"text": "the", "text_b": "walk"}]
  )
  assert "label" in first
  assert "type_vocab_size=1" in second["error"]
  for kind, name in (("span", "answer"), ("choice", "choose")):
    with pytest.raises(
      answers.PredictError, match=f"type_vocab_size=1.*{name}"
    ):
      predictor(make(kind, type_vocab_size=1), kind=name)


def test_a_task_of_pairs_needs_two_token_types(tmp_path):
  config = small_tasks.make_config(
    tmp_path, "pairs", train__num_epochs=1.0, model__type_vocab_size=1
  )
  with pytest.raises(spec.TaskError, match="model.type_vocab_size"):
    train.train(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


# --- weights without the parts that a head does not use ----------------------


@pytest.mark.parametrize("form", ["tag", "span", "classify"])
def test_a_head_needs_only_what_it_uses(tmp_path, form):
  """The case `poolerless`: the same scores without a pooler, or a refusal."""
  config = small_tasks.make_config(tmp_path, form, train__num_epochs=1.0)
  whole = make(
    form, without=("nsp", "mlm"), num_labels=3 if form == "tag" else 2,
    hidden_size=32, num_heads=8, mlp_dim=64, vocab_size=len(small_tasks.VOCAB),
  )  # fmt: skip
  vocabulary = wordpiece.WordPieceTokenizer(small_tasks.VOCAB)
  whole = dataclasses.replace(whole, tokenizer=vocabulary, labels=())
  encoder = {k: v for k, v in whole.params["encoder"].items() if k != "pooler"}
  bare = dataclasses.replace(whole, params=whole.params | {"encoder": encoder})
  config.task.vocab = ""

  def scores(given, name):
    config.init_from = str(write(given, tmp_path / name))
    return evaluate.evaluate(config, str(tmp_path / f"{name}-scores"), None)

  if form == "classify":
    with pytest.raises(ValueError, match="has no encoder/pooler/bias"):
      scores(bare, "bare")
  else:
    assert scores(bare, "bare") == scores(whole, "whole")


# --- transformers ------------------------------------------------------------


@pytest.fixture
def reference():
  """The modules (torch, transformers)."""
  torch = pytest.importorskip("torch")
  return torch, pytest.importorskip("transformers")


def real_vocabulary():
  path = SHARED / "vocab" / "bert-base-uncased" / "vocab.txt"
  if not path.exists():
    pytest.skip(f"{path} is not there")
  return path


def add_many(transformers, tokenizer):
  """Adds tokens with every flag, and some that are pieces already."""
  Token = transformers.AddedToken
  tokenizer.add_tokens(["[E1]", "<ent>", "[/E1]", "ent", "entx"])
  tokenizer.add_special_tokens(
    {"additional_special_tokens": ["[E2]", "<sp>", "[unused5]"]}
  )
  tokenizer.add_tokens(
    [
      Token("<L>", lstrip=True, normalized=False),
      Token("<R>", rstrip=True),
      Token("<W>", single_word=True),
      Token("<V>", single_word=True, normalized=False),
      Token("\u00fcber"),
      Token("Karl", normalized=False),
      Token("日本"),
      Token("a b"),
      Token("<\u00e9>", normalized=False),
    ]
  )
  return tokenizer


def fast_and_ours(transformers, tmp_path, lower_case):
  """The fast tokenizer, and ours of both folders and after a round trip."""
  vocab = real_vocabulary()
  if not lower_case:
    text = vocab.read_text() + "".join(
      f"Walk{a}{b}\n" for a in "ABC" for b in string.ascii_letters
    )
    vocab = tmp_path / "vocab.txt"
    vocab.write_text(text)
  slow = transformers.BertTokenizer(str(vocab), do_lower_case=lower_case)
  add_many(transformers, slow).save_pretrained(tmp_path / "slow")
  fast = transformers.BertTokenizerFast.from_pretrained(tmp_path / "slow")
  fast.save_pretrained(tmp_path / "fast")
  ours = [
    load.load_tokenizer(tmp_path / name, max_input_chars_per_word=100)
    for name in ("slow", "fast")
  ]
  ours[0].save(tmp_path / "ours")
  ours.append(load.load_tokenizer(tmp_path / "ours"))
  model = make(without=("nsp", "mlm"), vocab_size=len(fast))
  write(dataclasses.replace(model, tokenizer=ours[0]), tmp_path / "export")
  again = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
  assert len(again) == len(fast) == ours[0].vocab_size
  return [fast, again], ours


MARKS = (
  "[E1] <ent> [/E1] entx ent [E2] <sp> [unused5] <L> <R> <W> <V> Karl karl 日本"
  " [e1] <r> \u00fcber \u00dcBER uber u\u0308ber <\u00e9> <\u00c9> <e>"
).split() + ["a b", "A  B", "日 本"]
# No capital sigma: its lower case at a word's end is another in that library.
BITS = (
  " \t\n.,-_'aAbZz\u00e9\u00df\u0130\u0131\u03c3\u03c2\u00c59\u00b2\u24b6日本語"
  "\ud55c\uae00\u3131\u0301\u0308\u200b\u200d\ufeff\ufffd\0\x0b\x1c\x85\xa0"
  "\u2028\u3000\u0915\u094d\U0001f642"
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lower_case", [True, False])
def test_ids_equal_those_of_the_reference(reference, tmp_path, lower_case):
  """Of the fast tokenizer, which knows no difference from the slow one here.

  What we export gives the same ids there.
  """
  theirs, ours = fast_and_ours(reference[1], tmp_path, lower_case)
  rng = random.Random(0)
  for _ in range(4000):
    text = "".join(
      rng.choice(MARKS) if rng.random() < 0.45 else rng.choice(BITS)
      for _ in range(rng.randint(1, 9))
    )
    want = [t(text, add_special_tokens=False)["input_ids"] for t in theirs]
    assert want[0] == want[1], text
    for tokenizer in ours:
      assert tokenizer.encode(text) == want[0], text
      assert tokenizer.encode_with_offsets(text)[0] == want[0], text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_corpora_with_markers_have_the_ids_of_the_reference(
  reference, tmp_path
):
  theirs, ours = fast_and_ours(reference[1], tmp_path, True)
  rng = random.Random(1)
  lines = []
  for name in ("novels.txt", "reviews.txt", "sotu.txt"):
    path = SHARED / "corpus" / name
    if not path.exists():
      pytest.skip(f"{path} is not there")
    with open(path, encoding="utf-8") as f:
      lines += [line for _, line in zip(range(4000), f, strict=False)]
  marked = []
  for line in lines:
    words = line.split(" ")
    for _ in range(rng.randrange(4)):
      words.insert(rng.randrange(len(words) + 1), rng.choice(MARKS))
    marked.append(rng.choice((" ", "")).join(words))
  want = theirs[0](marked, add_special_tokens=False)["input_ids"]
  assert ours[0].encode_batch(marked) == want
  assert sum(i >= 30522 for ids in want for i in ids) > 5000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_resized_models_give_the_same_here(reference, tmp_path):
  """The case `added`, as a user makes it; hidden states and ids."""
  torch, transformers = reference
  torch.manual_seed(0)
  tokenizer = transformers.BertTokenizer(str(real_vocabulary()))
  config = transformers.BertConfig(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=32, max_position_embeddings=40, initializer_range=0.5,
  )  # fmt: skip
  model = transformers.BertModel(config).eval()
  tokenizer.add_tokens(["[E1]", "<ent>"])
  model.resize_token_embeddings(len(tokenizer))
  for part in (model, tokenizer):
    part.save_pretrained(tmp_path)
  got = weights.read(tmp_path)
  assert got.model["vocab_size"] == len(tokenizer) == 30524
  record = {"text": "the [E1] acquired <ent>", "text_b": "<ent>[E1]"}
  (found,) = predictor(got, kind="embed", fields=("tokens", "layers"),
                       layers=(-1,), decimals=0)([record])  # fmt: skip
  batch = tokenizer(record["text"], record["text_b"], return_tensors="pt")
  ids = batch["input_ids"][0].tolist()
  # Its own names of added tokens are lower-cased; the ids tell.
  assert found["tokens"] == [got.tokenizer.token(i) for i in ids]
  with torch.no_grad():
    want = model(**batch)[0][0].numpy()
  np.testing.assert_allclose(found["layers"]["-1"], want, atol=2e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_keys_of_the_reference_are_known(reference, tmp_path, caplog):
  """All that its classes write, and all that they read from such files."""
  _, transformers = reference
  for config in (transformers.BertConfig(), transformers.PretrainedConfig()):
    assert not bert.FAMILY.config_keys.unknown(config.to_dict())
  names = set(inspect.signature(transformers.BertConfig).parameters)
  assert not bert.FAMILY.config_keys.unknown(dict.fromkeys(names - {"kwargs"}))
  vocab = tmp_path / "vocab.txt"
  vocab.write_text("\n".join(PIECES) + "\n")
  for name in ("BertTokenizer", "BertTokenizerFast"):
    make_tokenizer = getattr(transformers, name)
    keys = set(inspect.signature(make_tokenizer.__init__).parameters)
    # The vocabulary is an argument, but no key of a file.
    keys -= {"self", "kwargs", "vocab", "merges"}
    hf_tokenizer.check_keys(name, dict.fromkeys(keys))
    tokenizer = make_tokenizer(str(vocab))
    tokenizer.save_pretrained(tmp_path / name)
    hf_tokenizer.read(tmp_path / name)
    hf_tokenizer.check_keys(
      name, {k: None for k in tokenizer.init_kwargs if k != "vocab"}
    )
  assert not caplog.records


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_activations_are_those_of_the_reference(reference):
  """Each is equal to ours of that name, or refused by name."""
  torch, _ = reference
  from transformers import activations

  x = np.linspace(-12, 12, 4001, dtype=np.float32)
  known = bert.FAMILY.activations["huggingface"]
  assert known.keys() <= activations.ACT2CLS.keys()
  for name in activations.ACT2CLS:
    if name not in known:
      config = bert.FAMILY.config_of("huggingface", make().model)
      with pytest.raises(families.ConvertError, match=f"'{name}' is not one"):
        bert.FAMILY.model_of("huggingface", config | {"hidden_act": name})
      continue
    theirs = activations.get_activation(name)(torch.tensor(x)).numpy()
    ours = layers.ACTIVATIONS[known[name]](x)
    np.testing.assert_allclose(ours, theirs, atol=3e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_heads_of_the_reference_without_a_pooler_are_evaluated(
  reference, tmp_path
):
  """The case `poolerless`: BertForQuestionAnswering, saved as it is."""
  torch, transformers = reference
  torch.manual_seed(0)
  config = small_tasks.make_config(tmp_path, "span", train__num_epochs=1.0)
  tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))
  model = transformers.BertForQuestionAnswering(
    transformers.BertConfig(
      vocab_size=len(small_tasks.VOCAB), hidden_size=32, num_hidden_layers=1,
      num_attention_heads=8, intermediate_size=64, max_position_embeddings=16,
      initializer_range=1.0,
    )
  ).eval()  # fmt: skip
  assert model.bert.pooler is None
  for part in (model, tokenizer):
    part.save_pretrained(tmp_path / "hf")
  assert "encoder/pooler/kernel" in weights.read(tmp_path / "hf").missing
  config.init_from, config.task.vocab = str(tmp_path / "hf"), ""
  scores = evaluate.evaluate(config, str(tmp_path / "new"), None)
  losses = []
  for line in small_tasks.lines("span", 40, 1):
    batch = tokenizer(line["text"], line["context"], return_tensors="pt")
    ids = batch["input_ids"][0].tolist()
    # The question has other words than the answer.
    at = torch.tensor([ids.index(tokenizer.vocab[line["label"]])])
    with torch.no_grad():
      out = model(**batch, start_positions=at, end_positions=at)
    losses.append(float(out.loss))
  assert scores["eval/loss"] == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_masked_lm_of_the_reference_is_evaluated(reference, tmp_path):
  """It has no pooler and no head of sentences; the loss is that of torch."""
  torch, transformers = reference
  torch.manual_seed(0)
  vocab = tmp_path / "vocab.txt"
  vocab.write_text("\n".join(PIECES) + "\n")
  transformers.BertTokenizer(str(vocab)).save_pretrained(tmp_path / "hf")
  model = transformers.BertForMaskedLM(
    transformers.BertConfig(
      vocab_size=V, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
      intermediate_size=64, max_position_embeddings=32, initializer_range=0.5,
    )
  ).eval()  # fmt: skip
  model.save_pretrained(tmp_path / "hf")
  rng = random.Random(0)
  words = [word for word in WORDS if word.isalpha()]
  text = tmp_path / "text.txt"
  text.write_text(
    "\n".join(
      " ".join(rng.choices(words, k=7)) + "\n" * rng.choice((1, 2))
      for _ in range(300)
    )
  )
  config = pretrain.get_config()
  config.data.update(
    dir=str(tmp_path / "data"), seq_len=32, batch_size=8, verify="never"
  )
  config.prepare.update(
    vocab=str(tmp_path / "hf"), num_workers=1, held_out_rate=0.3
  )
  prepare.prepare(config, [str(text)], str(tmp_path / "data"))
  config.objective, config.init_from = "mlm", str(tmp_path / "hf")
  config.eval.update(batch_size=8)
  scores = evaluate.evaluate(config, str(tmp_path / "new"), None)
  assert 1 < scores["eval/mlm_loss"] < 100
  # The same batches through torch.
  job, _ = jobs.open_job(config, str(tmp_path / "other"))
  batches = job.evaluator(sharding.make_mesh(-1, 1, 1))._batches
  total = weight = 0.0
  for batch in map(batches.__getitem__, range(len(batches))):
    inputs = [
      torch.tensor(np.asarray(batch[name]), dtype=torch.long)
      for name in ("input_ids", "input_mask", "segment_ids")
    ]
    with torch.no_grad():
      logits = model(*inputs).logits.log_softmax(-1).numpy()
    at = np.asarray(batch["masked_positions"])
    rows = np.arange(len(at))[:, None]
    chosen = logits[rows, at, np.asarray(batch["masked_ids"])]
    total -= (chosen * batch["masked_weights"]).sum()
    weight += batch["masked_weights"].sum()
  assert scores["eval/mlm_loss"] == pytest.approx(total / weight, rel=1e-4)
