"""What is said of prepared data."""

import itertools

import pytest

from bert_jax.data import prepare
from bert_jax.data import summary
from tests.support import corpora

CHINESE = "".join(map(chr, range(0x4E00, 0x4E20)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Name -> a folder of data with a learned vocabulary."""
  root = tmp_path_factory.mktemp("summary")
  words = itertools.cycle(["low", "lower", "newest", "wider"])

  def line(sentences):
    return [s + "." for s in sentences]

  chinese = [
    line([CHINESE[i : i + 9], CHINESE[2 * i :]]) for i in range(12)
  ] * 4
  latin = [line([" ".join(itertools.islice(words, 5))]) for _ in range(48)]
  for name, documents, size in (("zh", chinese, 38), ("en", latin, 30)):
    text = corpora.write_text(root / f"{name}.txt", documents)
    config = corpora.make_config(
      prepare__vocab_size=size, prepare__held_out_rate=0.0
    )
    prepare.prepare(config, [text], str(root / name))
  given = corpora.make_config(
    str(root / "en" / "vocab"), prepare__held_out_rate=0.2
  )
  prepare.prepare(given, [str(root / "en.txt")], str(root / "given"))
  return root


def test_whole_words_of_single_chinese_characters_are_refused(prepared):
  assert "data.whole_word=False" in summary.whole_word_problem(
    str(prepared / "zh")
  )
  assert summary.whole_word_problem(str(prepared / "en")) == ""


def test_a_learned_vocabulary_is_padded_and_a_given_one_is_not(prepared):
  assert summary.model_vocab_size(str(prepared / "en")) == 128
  assert summary.model_vocab_size(str(prepared / "given")) == 30


def test_data_says_whether_any_text_is_held_out(prepared):
  assert not summary.has_held_out(str(prepared / "zh"))
  assert summary.has_held_out(str(prepared / "given"))


@pytest.mark.parametrize("key", ["alphabet_size", "special_tokens"])
def test_a_key_of_learning_is_refused_with_a_given_vocabulary(prepared, key):
  value = {"alphabet_size": 6000, "special_tokens": "roberta"}[key]
  config = corpora.make_config(
    str(prepared / "en" / "vocab"), **{f"prepare__{key}": value}
  )
  target = prepared / f"refused-{key}"
  with pytest.raises(ValueError, match=f"prepare.{key}=.*prepare.vocab="):
    prepare.prepare(config, [str(prepared / "en.txt")], str(target))


def test_documents_of_one_sentence_are_remarked(prepared):
  config = corpora.make_config()
  (found,) = summary.remarks(config.data, str(prepared / "en"))
  assert "pairing=full_sentences" in found and "(1.0 sentences" in found
  # Two sentences make half of the pairs random.
  assert not [
    text
    for text in summary.remarks(config.data, str(prepared / "zh"))
    if "pairing=full_sentences with --config.objective=mlm, or" in text
  ]
