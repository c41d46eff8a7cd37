"""How a sequence is put together from texts and special tokens, as data.

A model was trained on sequences of one form: BERT on `[CLS] A [SEP]` and
`[CLS] A [SEP] B [SEP]` with token types 0 and 1, RoBERTa on `<s> A </s></s> B
</s>` with one type. Every tokenizer has the form of its models as
`tokenizer.template`. Features of tasks and records of prediction are built
from it. Prepared data for pre-training always has BERT's form: its lengths
count these special tokens, and `batching` puts the rows together.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

# The names of texts in a template; all other names are special tokens.
TEXTS = ("A", "B")


@dataclasses.dataclass(frozen=True)
class Template:
  """The parts of a sequence in order.

  A part is (name, token type). The name is "A" or "B" for a text, or the role
  of a special token: "cls" stands for the token with the id `tokenizer.cls_id`.

  Attributes:
    single: the parts of a sequence of one text.
    pair: the parts of a sequence of two texts.

  Example:
    >>> CLS_SEP.build(tokenizer, [7, 8], [9])  # doctest: +SKIP
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
    tokenizer: Any,
    a: Sequence[int],
    b: Sequence[int] | None = None,
  ) -> tuple[list[int], list[int]]:
    """Builds one sequence.

    Args:
      tokenizer: gives the ids of special tokens as `cls_id`, `sep_id`, ...
      a: the ids of the first text, without special tokens.
      b: the ids of the second text; None for a sequence of one text.

    Returns:
      The ids of the whole sequence, and the token type of each.
    """
    ids: list[int] = []
    types: list[int] = []
    for name, type_id in self.parts(b is not None):
      if name in TEXTS:
        part = a if name == "A" else b or ()
      else:
        part = (getattr(tokenizer, f"{name}_id"),)
      ids += part
      types += [type_id] * len(part)
    return ids, types

  def around(self, is_pair: bool) -> tuple[tuple[str, ...], ...]:
    """Returns the roles before A, between A and B, and at the end.

    A sequence of one text has no roles between, which is (). Code that builds
    batches with array operations needs only this and the lengths.

    Example:
      >>> CLS_SEP.around(is_pair=True)
      (('cls',), ('sep',), ('sep',))
    """
    names = [name for name, _ in self.parts(is_pair)]
    start = names.index("A")
    stop = names.index("B") if is_pair else start
    between = tuple(names[start + 1 : stop]) if is_pair else ()
    return tuple(names[:start]), between, tuple(names[stop + 1 :])


# `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`, the form of BERT and of all other
# models with its tokenizer. Source: BERT paper, figure 2.
CLS_SEP = Template(
  single=(("cls", 0), ("A", 0), ("sep", 0)),
  pair=(("cls", 0), ("A", 0), ("sep", 0), ("B", 1), ("sep", 1)),
)


@dataclasses.dataclass(frozen=True)
class TokenizerSpec:
  """The tokenizer of a family of models.

  Attributes:
    kind: the kind of tokenizer, a key of `tokenizers.load.KINDS`.
    special_tokens: role -> the spelling of the special token.
    hf_class: the class of transformers that a folder is written for.
    hf_classes: the classes of transformers that cut text in the same way and
      give a pair of texts the same token types.
  """

  kind: str
  special_tokens: Mapping[str, str]
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
  hf_class="BertTokenizer",
  hf_classes=tuple(
    name + speed
    for name in ("BertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")
    for speed in ("", "Fast")
  )
  + ("PreTrainedTokenizerFast",),
)
