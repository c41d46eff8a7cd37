"""Tokenizers that the `tokenizers` package runs: files, ids, forms, learning.

Those with `reference` in their name compare with transformers, and are slow.
"""

import itertools
import json
import os
import pathlib
import pickle
import random
import subprocess
import sys

import pytest
import sentencepiece

from bert_jax.data import batching
from bert_jax.data import prepare
from bert_jax.data import templates
from bert_jax.data.tokenizers import byte_bpe
from bert_jax.data.tokenizers import hf_pipeline
from bert_jax.data.tokenizers import load
from bert_jax.data.tokenizers import pipeline
from bert_jax.data.tokenizers import sentencepiece_file
from bert_jax.data.tokenizers import wordpiece
from bert_jax.kinds import tag
from tests.support import corpora
from tests.support import tokenizer_folders as folders

SHARED = pathlib.Path(__file__).parents[2] / ".." / "shared" / "data"
TEXTS = [" ".join(document) for document in corpora.make_documents(60)]
SENTENCE = "Bado figu. kale mono nupi! Rasetobado se."
LAYOUTS = list(folders.UNIGRAM)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """One folder of each kind."""
  root = tmp_path_factory.mktemp("tokenizers")
  folders.write_bpe(root / "roberta", TEXTS)
  folders.write_modernbert(root / "modernbert", TEXTS)
  for layout in LAYOUTS:
    folders.write_unigram(root / layout, layout, TEXTS)
  write_mpnet(root / "mpnet")
  return root


def write_mpnet(folder):
  folder.mkdir()
  pieces = [*folders.ROBERTA, "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  pieces += [".", ",", "!", *corpora.SYLLABLES]
  pieces += [f"##{s}" for s in corpora.SYLLABLES]
  (folder / "vocab.txt").write_text("\n".join([*pieces, "<mask>"]) + "\n")
  folders.write_json(
    folder / "tokenizer_config.json", {"tokenizer_class": "MPNetTokenizer"}
  )


KINDS = ("roberta", "modernbert", "mpnet", *LAYOUTS)


@pytest.fixture(scope="module")
def tokenizer(root):
  """Name of a folder -> its tokenizer."""
  return {name: load.load_tokenizer(root / name) for name in KINDS}


def copy_of(root, name, target, **config):
  """Copies a folder, with changes to its tokenizer_config.json."""
  target.mkdir(exist_ok=True)
  for file in (root / name).iterdir():
    (target / file.name).write_bytes(file.read_bytes())
  path = target / "tokenizer_config.json"
  folders.write_json(path, json.loads(path.read_text()) | config)
  return target


# --- ids ---------------------------------------------------------------------


def write_tiny(folder, **config):
  """A byte-level BPE of "low" by hand."""
  pieces = ["<s>", "<pad>", "</s>", "<unk>", "l", "o", "w", "e", "r", "\u0120"]
  pieces += ["lo", "low", "\u0120low", "er", "<mask>"]
  folders.write_json(
    folder / "vocab.json", {piece: i for i, piece in enumerate(pieces)}
  )
  merges = ["#version: 0.2", "l o", "lo w", "\u0120 low", "e r"]
  (folder / "merges.txt").write_text("\n".join(merges) + "\n")
  folders.write_json(
    folder / "tokenizer_config.json",
    {"tokenizer_class": "RobertaTokenizer"} | config,
  )


def test_byte_bpe_merges_in_order_and_keeps_the_space_before_a_word(tmp_path):
  write_tiny(tmp_path)
  found = load.load_tokenizer(tmp_path)
  assert found.tokenize("lower low") == ["low", "er", "\u0120low"]
  assert found.encode("lower low") == [11, 13, 12]
  assert found.encode(" low") == [12]
  assert (found.cls_id, found.pad_id, found.sep_id) == (0, 1, 2)
  assert (found.unk_id, found.mask_id) == (3, 14)


@pytest.mark.parametrize("space", [True, False])
def test_add_prefix_space_is_what_the_folder_says(tmp_path, space):
  write_tiny(tmp_path, add_prefix_space=space)
  found = load.load_tokenizer(tmp_path)
  assert found.encode("low") == [12 if space else 11]


def test_words_and_later_sentences_come_after_a_space(tmp_path):
  write_tiny(tmp_path)
  found = load.load_tokenizer(tmp_path)
  assert found.encode_words(["low", "low"]) == [[12], [12]]
  assert found.encode_sentences(["low", "low", " low"]) == [[11], [12], [12]]
  assert found.encode_sentences([]) == []
  assert found.continues_word().nonzero()[0].tolist() == [
    4, 5, 6, 7, 8, 10, 11, 13
  ]  # fmt: skip


def test_the_mask_token_takes_the_space_before_it(tmp_path):
  write_tiny(tmp_path)
  found = load.load_tokenizer(tmp_path)
  assert found.encode_masked("low [MASK] low", "[MASK]") == [11, 14, 12]
  assert found.encode_masked("low<mask>low", "[MASK]") == [11, 14, 11]
  token = {"content": "<mask>", "lstrip": False}
  write_tiny(tmp_path, mask_token=token)
  found = load.load_tokenizer(tmp_path)
  assert found.encode_masked("low [MASK]", "[MASK]") == [11, 9, 14]


def test_pieces_of_sentencepiece_have_the_ids_of_their_families(root):
  """XLM-R and CamemBERT put pieces of their own in front of those of a file."""
  shift = {"xlm_roberta": 1, "camembert": 4, "albert": 0, "deberta_v2": 0}
  for layout, by in shift.items():
    _, file, _ = folders.UNIGRAM[layout]
    processor = sentencepiece.SentencePieceProcessor(
      model_file=str(root / layout / file)
    )
    text = SENTENCE.lower()
    wanted = [i + by for i in processor.encode(text)]
    found = load.load_tokenizer(root / layout)
    assert found.encode(text) == wanted, layout
    assert found.id("<mask>" if by else "[MASK]") == found.mask_id
  found = load.load_tokenizer(root / "camembert")
  assert (found.cls_id, found.sep_id, found.pad_id) == (5, 6, 1)


def test_normalisation_is_that_of_the_family(tokenizer):
  albert, deberta = tokenizer["albert"], tokenizer["deberta_v2"]
  assert albert.encode("B\u00c1DO") == albert.encode("bado")
  assert albert.encode("``bado''") == albert.encode('"bado"')
  assert deberta.encode("bado\n\n se") == deberta.encode("bado se")
  assert deberta.encode("BADO") != deberta.encode("bado")


@pytest.mark.parametrize("name", KINDS)
def test_special_tokens_typed_in_a_text_are_text(tokenizer, name):
  found = tokenizer[name]
  special = found.special_ids - {found.unk_id}
  for token in found.pipeline.special_tokens.values():
    text = f"bado {token} se{token}"
    assert not special.intersection(found.encode(text)), token
    assert found.encode_with_offsets(text)[0] == found.encode(text)


@pytest.mark.parametrize("name", KINDS)
def test_offsets_are_places_without_spaces_that_never_go_back(tokenizer, name):
  found = tokenizer[name]
  rng = random.Random(0)
  bits = [*corpora.SYLLABLES, " ", "  ", "\n", "\u00e9", "e\u0301", "\u5b57"]
  bits += ["\U0001f642", "\ud800", "\ufb01", "``", "."]
  for _ in range(60):
    text = "".join(rng.choices(bits, k=9))
    ids, starts, ends = found.encode_with_offsets(text)
    assert ids == found.encode(text) == found.encode_batch([text])[0]
    assert starts == sorted(starts) and ends == sorted(ends)
    for start, end in zip(starts, ends, strict=True):
      assert text[start:end] == text[start:end].strip()
  ids, starts, ends = found.encode_with_offsets(SENTENCE)
  joined = {i for s, e in zip(starts, ends, strict=True) for i in range(s, e)}
  assert {i for i, c in enumerate(SENTENCE) if c.strip()} <= joined


@pytest.mark.parametrize("name", KINDS)
def test_saved_pickled_and_exported_tokenizers_are_the_same(
  tokenizer, name, tmp_path
):
  found = tokenizer[name]
  found.save(tmp_path / "saved")
  (tmp_path / "hf").mkdir()
  hf_pipeline.write(found, str(tmp_path / "hf"), 512)
  for again in (
    load.load_tokenizer(tmp_path / "saved"),
    load.load_tokenizer(tmp_path / "saved" / "pipeline.json"),
    load.load_tokenizer(tmp_path / "hf"),
    load.load_tokenizer(tmp_path / "hf" / "tokenizer.json"),
    pickle.loads(pickle.dumps(found)),  # noqa: S301
  ):
    assert again.fingerprint == found.fingerprint
    assert again.encode(SENTENCE) == found.encode(SENTENCE)
    assert again.template == found.template
    assert again.encode_masked("bado [MASK]", "[MASK]") == (
      found.encode_masked("bado [MASK]", "[MASK]")
    )


def test_a_saved_tokenizer_that_was_changed_is_refused(tokenizer, tmp_path):
  tokenizer["roberta"].save(tmp_path)
  path = tmp_path / "pipeline.json"
  content = json.loads(path.read_text())
  content["rules"]["pre_tokenizer"]["add_prefix_space"] = True
  folders.write_json(path, content)
  with pytest.raises(ValueError, match="fingerprint"):
    load.load_tokenizer(tmp_path)
  for damage in (b"", b"[]", b"{}", b'{"rules": 1}', path.read_bytes()[:-99]):
    path.write_bytes(damage)
    with pytest.raises(ValueError, match="pipeline.json"):
      load.load_tokenizer(tmp_path)


def test_decoded_text_is_readable(tokenizer):
  for name in ("roberta", "modernbert", "xlm_roberta"):
    found = tokenizer[name]
    ids = [found.cls_id, *found.encode(SENTENCE), found.sep_id, found.pad_id]
    cls, sep = found.token(found.cls_id), found.token(found.sep_id)
    assert found.decode(ids) == f"{cls} {SENTENCE} {sep}"


# --- forms of sequences ------------------------------------------------------


def test_pairs_have_the_form_of_their_family(tokenizer):
  def form(name):
    found = tokenizer[name]
    ids, types = found.template.build(found, [90], [91])
    named = {90: "A", 91: "B"}
    return [named.get(i) or found.token(i) for i in ids], types

  roberta = (["<s>", "A", "</s>", "</s>", "B", "</s>"], [0] * 6)
  for name in ("roberta", "mpnet", "xlm_roberta", "camembert"):
    found = tokenizer[name]
    ids, types = found.template.build(found, [90], [91])
    cls, sep = found.cls_id, found.sep_id
    assert ids == [cls, 90, sep, sep, 91, sep] and types == roberta[1]
  bert = ["[CLS]", "A", "[SEP]", "B", "[SEP]"]
  assert form("albert") == (bert, [0, 0, 0, 1, 1])
  assert form("deberta_v2") == (bert, [0, 0, 0, 1, 1])
  # The model takes no token types, as its tokenizer_config.json says.
  assert form("modernbert") == (bert, [0] * 5)
  assert form("xlnet") == (
    ["A", "<sep>", "B", "<sep>", "<cls>"],
    [0, 0, 1, 1, 2],
  )


@pytest.mark.parametrize(
  ("step", "wanted"),
  [
    ({"type": "BertProcessing"}, [0, 0, 0, 1, 1]),
    (
      {
        "type": "RobertaProcessing",
        "trim_offsets": True,
        "add_prefix_space": False,
      },
      [0] * 6,
    ),
  ],
)
def test_older_post_processors_are_forms_of_sequences(
  root, tmp_path, step, wanted
):
  copy_of(root, "modernbert", tmp_path, model_input_names=None)
  path = tmp_path / "tokenizer.json"
  rules = json.loads(path.read_text())
  ids = {t["content"]: t["id"] for t in rules["added_tokens"]}
  ends = {k: [v, ids[v]] for k, v in (("cls", "[CLS]"), ("sep", "[SEP]"))}
  first = {"type": "ByteLevel", "trim_offsets": False, "use_regex": True}
  both = [first | {"add_prefix_space": True}, step | ends]
  rules["post_processor"] = {"type": "Sequence", "processors": both}
  folders.write_json(path, rules)
  found = load.load_tokenizer(tmp_path)
  assert found.template.build(found, [1], [2])[1] == wanted


# --- what is refused ---------------------------------------------------------

REFUSED = {
  "auto_map": {"AutoTokenizer": ["x.Y", None]},
  "split_special_tokens": True,
  "truncation_side": "left",
  "padding_side": "left",
  "sp_model_kwargs": {"enable_sampling": True},
  "do_lower_case": True,
  "split_by_punct": True,
  "add_eos_token": False,
  "added_tokens_decoder": {"3": {"content": "[CLS]"}},
  "model_max_length": "512",
}


@pytest.mark.parametrize("key", list(REFUSED))
def test_a_key_that_changes_tokens_is_refused_by_name(root, tmp_path, key):
  folder = copy_of(root, "modernbert", tmp_path / "x", **{key: REFUSED[key]})
  with pytest.raises(ValueError, match=r"\[CLS\].*id 3|" + key):
    load.load_tokenizer(folder)


@pytest.mark.parametrize(
  ("part", "value", "message"),
  [
    ("model", {"type": "Morse", "vocab": {}}, "model.type is 'Morse'"),
    ("model", {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}, "BPE"),
    ("model.dropout", 0.1, "model.dropout"),
    ("truncation", {"direction": "Left"}, "truncation.direction"),
    ("pre_tokenizer", {"type": "Morse"}, "PreTokenizer"),
    ("post_processor", {"type": "Morse"}, "tokenizer.json"),
    ("added_tokens", [5], "tokenizer.json"),
  ],
)
def test_rules_that_cannot_be_followed_are_refused_by_name(
  root, tmp_path, part, value, message
):
  copy_of(root, "modernbert", tmp_path)
  path = tmp_path / "tokenizer.json"
  rules = json.loads(path.read_text())
  *parents, key = part.split(".")
  node = rules
  for name in parents:
    node = node[name]
  node[key] = value
  folders.write_json(path, rules)
  with pytest.raises(ValueError, match=message):
    load.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
  ("names", "config", "message"),
  [
    (["vocab.json"], {}, "merges.txt does not exist"),
    (["tokenizer.model"], {"tokenizer_class": "LlamaTokenizer"}, "Llama"),
    (["spiece.model"], {"tokenizer_class": "T5Tokenizer"}, "T5Tokenizer"),
    (["spiece.model"], {}, "not given"),
    (["bpe.codes"], {"tokenizer_class": "PhobertTokenizer"}, "fastBPE"),
    (
      ["sentencepiece.bpe.model"],
      {"tokenizer_class": "XLMRobertaTokenizer"},
      "not a SentencePiece",
    ),
  ],
)
def test_a_vocabulary_that_is_not_known_is_refused_by_name(
  tmp_path, names, config, message
):
  for name in names:
    (tmp_path / name).write_text('{"a": 0}')
  if names == ["vocab.json"]:
    config = {"tokenizer_class": "RobertaTokenizer"}
  folders.write_json(tmp_path / "tokenizer_config.json", config)
  with pytest.raises(ValueError, match=message):
    load.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
  ("merges", "message"),
  [("l o w\n", "line 1"), ("l o\nl q\n", "line 2.*'q'"), ("w e\n", "'we'")],
)
def test_damaged_merges_are_refused_with_their_line(tmp_path, merges, message):
  write_tiny(tmp_path)
  (tmp_path / "merges.txt").write_text(merges)
  with pytest.raises(ValueError, match=message):
    load.load_tokenizer(tmp_path)


def test_settings_of_wordpiece_are_refused_for_other_kinds(root):
  with pytest.raises(ValueError, match="lower_case"):
    load.load_tokenizer(root / "roberta", lower_case=True)


def test_a_damaged_model_file_is_refused_and_nothing_else_happens(root):
  content = (root / "albert" / "spiece.model").read_bytes()
  good = sentencepiece_file.read(content, "x")
  assert good.unk_id == 1 and good.charsmap
  rng = random.Random(0)
  for _ in range(200):
    damaged = bytearray(content[: rng.randrange(len(content))])
    for _ in range(rng.randrange(4)):
      if damaged:
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    try:
      sentencepiece_file.read(bytes(damaged), "x")
    except ValueError as error:
      assert "x is not a SentencePiece" in str(error)
  with pytest.raises(ValueError, match="BPE; wanted unigram"):
    sentencepiece_file.read(
      folders.train_unigram(TEXTS, 60, model_type="bpe"), "x"
    )


# --- added tokens ------------------------------------------------------------


def test_added_tokens_of_all_files_are_found_in_a_text(root, tmp_path):
  folder = copy_of(
    root, "roberta", tmp_path / "x",
    added_tokens_decoder={"400": {"content": "<e>", "special": True}},
    additional_special_tokens=["<f>"],
  )  # fmt: skip
  folders.write_json(folder / "added_tokens.json", {"<g>": 401})
  found = load.load_tokenizer(folder)
  assert found.vocab_size == 403
  assert found.encode("<e><g> <f>")[:2] == [400, 401]
  assert found.encode("<f>") == [402]
  assert not found.continues_word()[400:].any()
  folders.write_json(folder / "added_tokens.json", {"<g>": 405})
  with pytest.raises(ValueError, match="'<g>' has the id 405.*hole"):
    load.load_tokenizer(folder)


def test_added_tokens_of_spaces_are_found(tokenizer):
  found = tokenizer["modernbert"]
  assert found.id("   ") in found.encode("bado   se")
  assert found.id("|||IP|||") in found.encode("bado |||IP||| se")
  # "[MASK]" takes the space before it.
  masked = found.encode_masked("bado [MASK] se", "[MASK]")
  assert masked == [
    *found.encode("bado"), found.mask_id, *found.encode(" se")
  ]  # fmt: skip


# --- words -------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_pieces_that_do_not_begin_a_word_continue_one(tokenizer, name):
  found = tokenizer[name]
  words = ["bado", "figu", "kale"]
  continues = found.continues_word()
  for ids in found.encode_words(words):
    first, *others = continues[ids].tolist()
    assert not first and all(others), name
  assert not continues[sorted(found.special_ids)].any()


def test_rules_without_marks_of_words_refuse_whole_words(root, tmp_path):
  copy_of(root, "modernbert", tmp_path)
  path = tmp_path / "tokenizer.json"
  rules = json.loads(path.read_text())
  rules["pre_tokenizer"] = {"type": "Whitespace"}
  folders.write_json(path, rules)
  with pytest.raises(ValueError, match="whole_word"):
    load.load_tokenizer(tmp_path).continues_word()


# --- learning ----------------------------------------------------------------


@pytest.mark.parametrize("form", list(byte_bpe.FORMS))
def test_a_learned_vocabulary_has_its_size_and_special_tokens(form):
  learned = pipeline.PipelineTokenizer.learn(
    TEXTS, 300, False, special_tokens=form
  )
  assert learned.vocab_size == 300
  special = [learned.token(i) for i in range(5)]
  if form == "bert":
    assert special == corpora.SPECIALS
    assert learned.template == templates.CLS_SEP
  else:
    assert special[:4] == list(folders.ROBERTA)
    assert learned.mask_id == 299 and learned.bos_id == learned.cls_id
    assert learned.template == templates.ROBERTA_FORM
  text = "Bado \u5b57 \U0001f642"
  assert learned.unk_id not in learned.encode(text)
  assert learned.decode(learned.encode(text)) == text
  upper = pipeline.PipelineTokenizer.learn(TEXTS, 300, True)
  assert upper.encode("B\u00c1DO") == upper.encode("bado")


@pytest.mark.parametrize(
  ("size", "message"), [(100, "at least 261"), (9999, "gives only")]
)
def test_a_size_that_the_text_cannot_give_is_refused(size, message):
  with pytest.raises(ValueError, match=message):
    pipeline.PipelineTokenizer.learn(TEXTS[:9], size, False)


@pytest.mark.slow
def test_learning_in_another_process_gives_the_same_bytes():
  code = (
    "import json, sys\n"
    "from bert_jax.data.tokenizers import pipeline\n"
    "texts = json.load(sys.stdin)\n"
    "print(pipeline.PipelineTokenizer.learn(texts, 330, True).fingerprint)"
  )
  here = pipeline.PipelineTokenizer.learn(TEXTS, 330, True).fingerprint
  there = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True,
    cwd=pathlib.Path(__file__).parents[2], input=json.dumps(TEXTS[::-1]),
    env=os.environ | {"PYTHONHASHSEED": "7"},
  )  # fmt: skip
  assert there.stdout.strip() == here


# --- prepared data -----------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Prepared data of a learned vocabulary of RoBERTa's form."""
  folder = tmp_path_factory.mktemp("prepared")
  documents = corpora.make_documents(60, max_sentences=4)
  text = corpora.write_text(folder / "text.txt", documents)
  for pairing in ("pairs", "full_sentences"):
    config = corpora.make_config(
      data__pairing=pairing, data__seq_len=64, prepare__vocab_kind="byte_bpe",
      prepare__vocab_size=330, prepare__lower_case=False,
      prepare__special_tokens="roberta",
    )  # fmt: skip
    prepare.prepare(config, [text] if pairing == "pairs" else [], folder / "d")
  return str(folder / "d")


@pytest.mark.parametrize("pairing", ["pairs", "full_sentences"])
@pytest.mark.parametrize("max_sequences", [1, 4])
def test_rows_have_the_form_of_the_vocabulary(prepared, pairing, max_sequences):
  config = corpora.make_config(
    data__pairing=pairing, data__seq_len=64, data__whole_word=True,
    data__max_sequences=max_sequences,
  )  # fmt: skip
  config.data.dir = prepared
  found = load.load_tokenizer(os.path.join(prepared, "vocab"))
  batches = batching.PretrainBatches(
    config.data, "train", seed=0, batch_size=8, num_steps=2
  )
  batch = batches[0]
  ids = batch["input_ids"].copy()
  rows, slots = batch["masked_weights"].nonzero()
  positions = batch["masked_positions"][rows, slots]
  ids[rows, positions] = batch["masked_ids"][rows, slots]
  assert not batch["segment_ids"].any()
  numbers = batch.get("sequence_ids", batch["input_mask"])
  for row, number in zip(ids, numbers, strict=True):
    for i in range(1, number.max() + 1):
      sequence = row[number == i].tolist()
      assert sequence[0] == found.cls_id and sequence[-1] == found.sep_id
      inner = sequence[1:-1]
      at = [j for j, id in enumerate(inner) if id == found.sep_id]
      # A pair has two separators side by side; one ends a document.
      twins = sum(b == a + 1 for a, b in itertools.pairwise(at))
      assert twins == (pairing == "pairs")
      text = found.decode([j for j in inner if j != found.sep_id])
      assert "  " not in text and not text.startswith("<")


def test_special_tokens_of_another_kind_are_refused(tmp_path):
  text = corpora.write_text(tmp_path / "text.txt", corpora.make_documents(9))
  config = corpora.make_config(prepare__special_tokens="roberta")
  with pytest.raises(ValueError, match="prepare.special_tokens"):
    prepare.prepare(config, [text], str(tmp_path / "d"))


def test_words_of_a_tagger_come_after_a_space(tmp_path):
  write_tiny(tmp_path)
  found = load.load_tokenizer(tmp_path)

  class Example:
    words = ("low", "lower", "low")

  [row], cut = tag._encode_words([Example], found, 8)
  assert row.ids == [12, 12, 13, 12] and row.words == [0, 1, -1, 2]
  assert not cut


# --- folders of any family ---------------------------------------------------


def test_the_files_of_a_folder_decide_whatever_its_family(root):
  for name in ("roberta", "modernbert", "albert"):
    found, _, lower_case = load.read_folder(
      str(root / name), templates.WORDPIECE
    )
    assert isinstance(found, pipeline.PipelineTokenizer) and lower_case is None
    assert found.encode(SENTENCE) == (
      load.load_tokenizer(root / name).encode(SENTENCE)
    )


def test_a_folder_without_a_class_has_that_of_its_family(root, tmp_path):
  folder = copy_of(root, "deberta_v2", tmp_path / "x")
  (folder / "tokenizer_config.json").unlink()
  wanted = load.load_tokenizer(root / "deberta_v2").fingerprint
  found, *_ = load.read_folder(str(folder), templates.DEBERTA_V2)
  assert found.fingerprint == wanted
  folders.write_json(folder / "config.json", {"model_type": "deberta-v2"})
  assert load.load_tokenizer(folder).fingerprint == wanted


def test_wordpiece_of_bert_stays_what_it_was(tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join([*corpora.SPECIALS, "a"]))
  for spec in (templates.WORDPIECE, templates.DISTILBERT):
    found, *_ = load.read_folder(str(tmp_path), spec)
    assert isinstance(found, wordpiece.WordPieceTokenizer)
    types = found.template.build(found, [5], [5])[1]
    assert any(types) == spec.has_types


# --- the reference -----------------------------------------------------------


@pytest.fixture
def reference(monkeypatch):
  """The module transformers, which reads .model files without protobuf 7."""
  module = pytest.importorskip("transformers")
  convert = pytest.importorskip("transformers.convert_slow_tokenizer")
  proto = pytest.importorskip("transformers.utils.sentencepiece_model_pb2_new")
  monkeypatch.setattr(convert, "import_protobuf", lambda *_: proto)
  return module


BITS = (
  " \t\n.,-_'aAbZz\u00e9\u00df\u0130\u0131\u03c3\u03c2\u00c59\u00b2\u24b6日本語"
  "\ud55c\uae00\u3131\u0301\u0308\u200b\u200d\ufeff\ufffd\0\x0b\x1c\x85\xa0"
  "\u2028\u3000\u0915\u094d\U0001f642\ufb01\u2460\uff5e\u00bd``''()"
)


def odd_texts(count):
  """Texts of odd characters, and of any."""
  rng = random.Random(0)
  for _ in range(count):
    yield "".join(rng.choice(BITS) for _ in range(rng.randint(1, 12)))
  ranges = [(32, 0x250), (0x250, 0xD7FF), (0xE000, 0x11000)]
  for _ in range(count):
    yield "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(6))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_ids_of_corpora_and_odd_texts_equal_the_reference(
  reference, root, tmp_path, name
):
  """With and without tokenizer.json, and in what we export."""
  corpus = SHARED / "corpus" / "reviews.txt"
  if not corpus.exists():
    pytest.skip(f"{corpus} is not there")
  lines = corpus.read_text().split("\n")
  folder = tmp_path / "given"
  if name in LAYOUTS:
    folders.write_unigram(folder, name, lines[:2000], 900)
    theirs = getattr(reference, folders.UNIGRAM[name][0])
  elif name == "roberta":
    folders.write_bpe(folder, lines[:2000], 1200)
    theirs = reference.RobertaTokenizer
  elif name == "modernbert":
    folders.write_modernbert(folder, lines[:2000], 1200)
    theirs = reference.PreTrainedTokenizerFast
  else:
    copy_of(root, name, folder)
    theirs = reference.MPNetTokenizer
  theirs = theirs.from_pretrained(folder)
  theirs.save_pretrained(tmp_path / "fast")
  ours = [load.load_tokenizer(folder), load.load_tokenizer(tmp_path / "fast")]
  (tmp_path / "export").mkdir()
  hf_pipeline.write(ours[0], str(tmp_path / "export"), 512)
  again = reference.AutoTokenizer.from_pretrained(tmp_path / "export")
  texts = lines[::3] + list(odd_texts(4000))
  want = theirs(texts, add_special_tokens=False)["input_ids"]
  assert again(texts, add_special_tokens=False)["input_ids"] == want
  for tokenizer in ours:
    assert tokenizer.vocab_size == len(theirs)
    assert tokenizer.encode_batch(texts) == want
    for role in ("pad", "unk", "cls", "sep", "mask"):
      assert getattr(tokenizer, f"{role}_id") == (
        getattr(theirs, f"{role}_token_id")
      )
    pair = theirs("bado se", "kale")
    ids, types = tokenizer.template.build(
      tokenizer, tokenizer.encode("bado se"), tokenizer.encode("kale")
    )
    assert ids == pair["input_ids"]
    if "token_type_ids" in pair:
      assert types == pair["token_type_ids"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_gaps_equal_the_reference(reference, root, tmp_path):
  """Where a file says that the mask token takes the space before it."""
  theirs = reference.PreTrainedTokenizerFast.from_pretrained(
    root / "modernbert"
  )
  ours = load.load_tokenizer(root / "modernbert")
  for text in ("bado [MASK] se", "[MASK]", "a  [MASK][MASK] ,", "x\n[MASK]y"):
    want = theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode_masked(text, "[MASK]") == want
