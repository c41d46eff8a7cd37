"""How a sequence is put together from texts and special tokens, as data.

A model was trained on sequences of one form: BERT on `[CLS] A [SEP]` and
`[CLS] A [SEP] B [SEP]` with token types 0 and 1, RoBERTa on `<s> A </s></s> B
</s>` with one type. The form belongs to the family of the model; every
tokenizer carries the one it is to be used with, as `tokenizer.template`, and
whatever makes sequences (examples of pre-training, features of tasks, records
of prediction) asks it, so that no other file spells special tokens out.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

# The texts of a template; every other part is the role of a special token.
TEXTS = ("A", "B")


@dataclasses.dataclass(frozen=True)
class Template:
  """The parts of a sequence in order.

  A part is (name, token type). The name is "A" or "B" for a text, or the role
  of a special token: "cls" is the one whose id is `tokenizer.cls_id`.

  Attributes:
    single: the parts of a sequence of one text.
    pair: the parts of a sequence of two texts.

  Example:
    >>> ids = {"cls": 101, "sep": 102}
    >>> CLS_SEP.build(ids, [7, 8], [9])
    ([101, 7, 8, 102, 9, 102], [0, 0, 0, 0, 1, 1])
  """

  single: tuple[tuple[str, int], ...]
  pair: tuple[tuple[str, int], ...]

  def parts(self, is_pair: bool) -> tuple[tuple[str, int], ...]:
    """Returns the parts of a sequence of two texts, or of one."""
    return self.pair if is_pair else self.single

  def num_special(self, is_pair: bool) -> int:
    """Returns how many tokens of a sequence are special tokens."""
    return sum(name not in TEXTS for name, _ in self.parts(is_pair))

  def build(
    self,
    special: Any,
    a: Sequence[int],
    b: Sequence[int] | None = None,
  ) -> tuple[list[int], list[int]]:
    """Puts one sequence together.

    Args:
      special: a tokenizer, whose `cls_id`, `sep_id`, ... are read; or role ->
        id.
      a: ids of the first text, without special tokens.
      b: ids of the second text; None for a single text.

    Returns:
      The ids of the whole sequence, and the token type of each.
    """
    ids: list[int] = []
    types: list[int] = []
    for name, type_id in self.parts(b is not None):
      if name in TEXTS:
        part = a if name == "A" else b or ()
      else:
        part = (special_id(special, name),)
      ids += part
      types += [type_id] * len(part)
    return ids, types

  def around(self, is_pair: bool) -> tuple[tuple[str, ...], ...]:
    """Returns the roles before A, between A and B, and at the end.

    Of a sequence of one text the roles between are (). Batches that are put
    together by array operations need no more than this and the lengths.

    Example:
      >>> CLS_SEP.around(is_pair=True)
      (('cls',), ('sep',), ('sep',))
    """
    names = [name for name, _ in self.parts(is_pair)]
    start = names.index("A")
    stop = names.index("B") if is_pair else start
    between = tuple(names[start + 1 : stop]) if is_pair else ()
    return tuple(names[:start]), between, tuple(names[stop + 1 :])


def special_id(special: Any, role: str) -> int:
  """Returns the id of a special token.

  Args:
    special: a tokenizer, or role -> id.
    role: such as "cls".
  """
  if isinstance(special, Mapping):
    return special[role]
  return getattr(special, f"{role}_id")


# `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`; BERT, and all that has its
# tokenizer. Source: BERT paper, figure 2.
CLS_SEP = Template(
  single=(("cls", 0), ("A", 0), ("sep", 0)),
  pair=(("cls", 0), ("A", 0), ("sep", 0), ("B", 1), ("sep", 1)),
)


@dataclasses.dataclass(frozen=True)
class TokenizerSpec:
  """What a family of models says about its tokenizer.

  Attributes:
    kind: how text is cut, "wordpiece"; a key of `tokenizers.load.KINDS`.
    special_tokens: role -> how the special token is written.
    template: how sequences are put together.
    hf_class: the class of transformers that a folder is written for.
    hf_classes: the classes of transformers that cut text in the same way and
      give a pair of texts the same token types.
  """

  kind: str
  special_tokens: Mapping[str, str]
  template: Template
  hf_class: str
  hf_classes: tuple[str, ...]


WORDPIECE = TokenizerSpec(
  kind="wordpiece",
  special_tokens={
    "pad": "[PAD]",
    "unk": "[UNK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
  },
  template=CLS_SEP,
  hf_class="BertTokenizer",
  hf_classes=tuple(
    name + speed
    for name in ("BertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")
    for speed in ("", "Fast")
  )
  + ("PreTrainedTokenizerFast",),
)
