"""Tests of weights/extending.py: longer rows, more words, other rotations."""

import dataclasses

import numpy as np
import pytest

from bert_jax import weights
from bert_jax.data.tokenizers import wordpiece
from bert_jax.models import families
from bert_jax.models import heads
from bert_jax.models import params as param_trees
from bert_jax.runtime import settings
from bert_jax.weights import extending

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sun", "moon"]


def make(name="bert", **changes):
  """Returns random weights with a head of masked words."""
  model = {
    "vocab_size": len(PIECES), "num_layers": 1, "hidden_size": 4,
    "num_heads": 2, "mlp_dim": 8, "max_len": 6, "type_vocab_size": 2,
    "hidden_act": "gelu_erf", "layer_norm_eps": 1e-5,
    **families.FAMILIES[name].switches, **changes,
  }  # fmt: skip
  rng = np.random.default_rng(0)
  shapes = heads.param_shapes({**model, "family": name}, 1)
  flat = {
    path: rng.normal(size=shape).astype(np.float32)
    for path, shape in shapes.items()
    if path.startswith(("encoder/", "mlm/"))
  }
  return weights.Pretrained(
    format="bert_jax", model=model, params=param_trees.nest(flat), family=name,
    tokenizer=wordpiece.WordPieceTokenizer(PIECES, lower_case=True),
  )  # fmt: skip


def extend(pretrained, **changes):
  config = settings.make_config().convert
  config.update(changes)
  return extending.extend(pretrained, config)


def table(pretrained, path):
  return param_trees.flatten(pretrained.params)[path]


POSITIONS = "encoder/embeddings/position/embedding"
WORDS = "encoder/embeddings/word/embedding"


def test_tiled_positions_repeat_and_keep_those_of_padding():
  given = make("roberta", position_offset=2, type_vocab_size=1)
  got = extend(given, max_len=15)
  old, new = table(given, POSITIONS), table(got, POSITIONS)
  assert new.shape == (17, 4) and got.model["max_len"] == 15
  np.testing.assert_array_equal(new[:8], old)
  np.testing.assert_array_equal(new[8:14], old[2:])
  np.testing.assert_array_equal(new[14:], old[2:5])


def test_interpolated_positions_keep_their_ends_and_lie_between():
  given = make()
  got = extend(given, max_len=11, new_positions="interpolate")
  old, new = table(given, POSITIONS), table(got, POSITIONS)
  np.testing.assert_allclose(new[::2], old, atol=1e-6)
  np.testing.assert_allclose(new[1::2], (old[1:] + old[:-1]) / 2, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "neobert"])
def test_new_words_are_the_mean_of_the_old_ones(name):
  """In a decoder of its own, too; and their bias is 0."""
  changes = {"hidden_act": "silu"} if name == "neobert" else {}
  given = make(name, **changes)
  got = extend(given, vocab_size=10)
  paths = [WORDS] + (["mlm/decoder"] if name == "neobert" else [])
  for path in paths:
    old, new = table(given, path), table(got, path)
    np.testing.assert_array_equal(new[:7], old)
    np.testing.assert_allclose(new[7:], [old.mean(0)] * 3, atol=1e-6)
  assert table(got, "mlm/bias")[7:].tolist() == [0, 0, 0]
  random = table(extend(given, vocab_size=600, new_rows="normal"), WORDS)
  assert 0.018 < random[7:].std() < 0.022


def test_added_tokens_are_read_whole_and_written(tmp_path):
  got = extend(make(), add_tokens=("[E1]", "[/E1]"))
  assert got.model["vocab_size"] == got.tokenizer.vocab_size == 9
  assert got.tokenizer.encode("sun [E1] moon") == [5, 7, 6]
  weights.write(got, tmp_path / "x", "huggingface")
  again = weights.read(tmp_path / "x")
  assert again.tokenizer.encode("[/E1]sun") == [8, 5]
  np.testing.assert_array_equal(table(again, WORDS), table(got, WORDS))


def test_renamed_pieces_keep_their_ids_and_rows(tmp_path):
  given = make()
  old = given.tokenizer.encode("sun moon")
  got = extend(given, rename_tokens=("moon=mars",))
  assert got.tokenizer.encode("sun mars") == old
  assert got.tokenizer.encode("moon") == [given.tokenizer.unk_id]
  np.testing.assert_array_equal(table(got, WORDS), table(given, WORDS))
  weights.write(got, tmp_path / "x", "huggingface")
  assert weights.read(tmp_path / "x").tokenizer.encode("sun mars") == old
  assert extending.describe(given, got) == "moon -> mars"


def test_unused_slots_get_names_by_one_text_as_a_command_line_gives_it():
  slots = ["[unused1]", "[unused2]"]
  given = make(vocab_size=len(PIECES) + 2)
  given = dataclasses.replace(
    given, tokenizer=wordpiece.WordPieceTokenizer([*PIECES, *slots])
  )
  got = extend(given, rename_tokens=("[unused1]=covid,[unused2]=mrna",))
  assert got.tokenizer.encode("Covid sun mRNA") == [7, 5, 8]
  np.testing.assert_array_equal(table(got, WORDS), table(given, WORDS))


@pytest.mark.parametrize(
  ("pair", "message"),
  [
    ("moon", "wanted OLD=NEW"),
    ("mars=x", "no piece 'mars'"),
    ("moon=sun", "'sun' is in the vocabulary"),
    ("[MASK]=x", "special"),
    ("moon=two words", "would never occur.*add_tokens"),
  ],
)
def test_names_that_cannot_be_given_are_refused(pair, message):
  with pytest.raises(weights.WeightsError, match=message):
    extend(make(), rename_tokens=(pair,))


def test_rotations_get_another_base(tmp_path):
  given = make("modernbert", num_layers=4)
  given = dataclasses.replace(given, tokenizer=None)
  got = extend(given, rope_theta=5000.0, max_len=90)
  assert (got.model["rope_theta"], got.model["max_len"]) == (5000.0, 90)
  assert got.model["local_rope_theta"] == given.model["local_rope_theta"]
  weights.write(got, tmp_path / "x", "huggingface")
  assert weights.read(tmp_path / "x").shape == got.shape


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"max_len": 6}, "max_len=6.*6 tokens"),
    ({"vocab_size": 5}, "vocab_size=5.*7 words"),
    ({"rope_theta": 100.0}, "no rotations"),
    ({"add_tokens": ("sun",)}, "add_tokens has sun"),
  ],
)
def test_what_cannot_be_extended_is_refused(changes, message):
  with pytest.raises(weights.WeightsError, match=message):
    extend(make(), **changes)
