"""Templates of sequences: texts and special tokens put together."""

import types

from bert_jax.data import templates

ROBERTA = templates.Template(
  single=(("bos", 0), ("A", 0), ("eos", 0)),
  pair=(
    ("bos", 0), ("A", 0), ("eos", 0), ("eos", 0), ("B", 0), ("eos", 0),
  ),
)  # fmt: skip
IDS = {"cls": 1, "sep": 2, "bos": 3, "eos": 4}
TOKENIZER = types.SimpleNamespace(**{f"{k}_id": v for k, v in IDS.items()})


def test_one_text_and_a_pair_of_bert():
  build = templates.CLS_SEP.build
  assert build(TOKENIZER, [7, 8]) == ([1, 7, 8, 2], [0, 0, 0, 0])
  assert build(TOKENIZER, [7], [8, 9]) == (
    [1, 7, 2, 8, 9, 2],
    [0, 0, 0, 1, 1, 1],
  )
  # An empty second text is a text.
  assert build(TOKENIZER, [7], []) == ([1, 7, 2, 2], [0, 0, 0, 1])


def test_another_family_is_another_template():
  ids, token_types = ROBERTA.build(TOKENIZER, [7], [8])
  assert ids == [3, 7, 4, 4, 8, 4]
  assert set(token_types) == {0}


def test_counts_and_places_agree_with_the_sequence():
  for template in (templates.CLS_SEP, ROBERTA):
    for b in (None, [8, 9]):
      is_pair = b is not None
      ids, _ = template.build(TOKENIZER, [7], b)
      num_texts = 1 + len(b or ())
      assert template.num_special(is_pair) == len(ids) - num_texts
      before, between, after = template.around(is_pair)
      by_hand = [*(IDS[r] for r in before), 7, *(IDS[r] for r in between)]
      by_hand += [*(b or ()), *(IDS[r] for r in after)]
      assert ids == by_hand
