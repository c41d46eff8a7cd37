"""How a sequence is put together from texts and special tokens, as data.

A model was trained on sequences of one form: BERT on `[CLS] A [SEP]` and
`[CLS] A [SEP] B [SEP]` with token types 0 and 1, RoBERTa on `<s> A </s></s> B
</s>` with one type. Every tokenizer has the form of its models as
`tokenizer.template`. Features of tasks, records of prediction and rows of
pre-training are built from it.
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

  @property
  def counts(self) -> tuple[int, int]:
    """The special tokens of a sequence of one text, and of one of two."""
    return self.num_special(False), self.num_special(True)

  def without_types(self) -> "Template":
    """Returns the same parts, all of token type 0."""
    single, pair = (
      tuple((name, 0) for name, _ in parts)
      for parts in (self.single, self.pair)
    )
    return Template(single, pair)


# `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`, the form of BERT and of all other
# models with its tokenizer. Source: BERT paper, figure 2.
CLS_SEP = Template(
  single=(("cls", 0), ("A", 0), ("sep", 0)),
  pair=(("cls", 0), ("A", 0), ("sep", 0), ("B", 1), ("sep", 1)),
)


# `<s> A </s>` and `<s> A </s></s> B </s>` with one token type, the form of
# RoBERTa and its kin. Source: fairseq, examples/roberta/README.md.
ROBERTA_FORM = Template(
  single=(("cls", 0), ("A", 0), ("sep", 0)),
  pair=(("cls", 0), ("A", 0), ("sep", 0), ("sep", 0), ("B", 0), ("sep", 0)),
)
# `A <sep> <cls>` and `A <sep> B <sep> <cls>`, where <cls> has a type of its
# own. Source: XLNet, arXiv 1906.08237, section 2.5.
XLNET_FORM = Template(
  single=(("A", 0), ("sep", 0), ("cls", 2)),
  pair=(("A", 0), ("sep", 0), ("B", 1), ("sep", 1), ("cls", 2)),
)


@dataclasses.dataclass(frozen=True)
class TokenizerSpec:
  """The tokenizer of a family of models.

  The files of a folder decide; a spec says what they leave out.

  Attributes:
    kind: the kind of tokenizer, a key of `tokenizers.load.KINDS`.
    special_tokens: role -> the spelling of the special token.
    hf_class: the class of transformers that a folder is written for.
    hf_classes: the classes of transformers that cut text in the same way and
      give a pair of texts the same token types.
    model_types: the values of model_type in config.json whose folders need not
      name the class of their tokenizer.
    template: the form of sequences, if no file of the folder says it.
    layout: how a tokenizer is built from a vocabulary without tokenizer.json, a
      key of `tokenizers.layouts.LAYOUTS`; "" if such folders are not known.
    has_types: whether models take token types; if not, all of them are 0.
    mask_lstrip: whether the mask token takes the spaces before it.
    padding_sides: the sides that a folder may name for padding. This program
      pads at the end, which changes nothing if attention ignores padding.
  """

  kind: str
  special_tokens: Mapping[str, str]
  hf_class: str
  hf_classes: tuple[str, ...]
  model_types: tuple[str, ...] = ()
  template: Template = CLS_SEP
  layout: str = ""
  has_types: bool = True
  mask_lstrip: bool = False
  padding_sides: tuple[str, ...] = ("right",)

  def of_wordpiece(self) -> "TokenizerSpec":
    """Returns this spec if it is of WordPiece, else that of BERT.

    A model of any family may have BERT's tokenizer.
    """
    return self if self.kind == WORDPIECE.kind else WORDPIECE


_BERT_TOKENS = {
  "pad": "[PAD]",
  "unk": "[UNK]",
  "cls": "[CLS]",
  "sep": "[SEP]",
  "mask": "[MASK]",
}
_ROBERTA_TOKENS = {
  "bos": "<s>",
  "eos": "</s>",
  "unk": "<unk>",
  "sep": "</s>",
  "pad": "<pad>",
  "cls": "<s>",
  "mask": "<mask>",
}


def _fast_too(*names: str) -> tuple[str, ...]:
  """Returns the names of classes, and those of their fast variants."""
  return tuple(name + speed for name in names for speed in ("", "Fast"))


WORDPIECE = TokenizerSpec(
  kind="wordpiece",
  special_tokens=_BERT_TOKENS,
  hf_class="BertTokenizer",
  hf_classes=(
    *_fast_too("BertTokenizer", "ElectraTokenizer", "MobileBertTokenizer"),
    "PreTrainedTokenizerFast",
  ),
)
# WordPiece for models without token types.
DISTILBERT = dataclasses.replace(
  WORDPIECE,
  hf_class="DistilBertTokenizer",
  hf_classes=(
    *_fast_too("DistilBertTokenizer", "BertTokenizer"),
    "PreTrainedTokenizerFast",
  ),
  has_types=False,
)
# Byte-level BPE.
ROBERTA = TokenizerSpec(
  kind="pipeline",
  special_tokens=_ROBERTA_TOKENS,
  hf_class="RobertaTokenizer",
  hf_classes=_fast_too("RobertaTokenizer"),
  model_types=("roberta",),
  template=ROBERTA_FORM,
  layout="byte_bpe",
  has_types=False,
  mask_lstrip=True,
)
# Byte-level BPE with BERT's special tokens, always with a tokenizer.json.
MODERNBERT = TokenizerSpec(
  kind="pipeline",
  special_tokens=_BERT_TOKENS,
  hf_class="PreTrainedTokenizerFast",
  hf_classes=("PreTrainedTokenizerFast", "TokenizersBackend"),
  model_types=("modernbert",),
  has_types=False,
  mask_lstrip=True,
)
# The byte-level BPE of Llama 3, always with a tokenizer.json.
EUROBERT = TokenizerSpec(
  kind="pipeline",
  special_tokens={
    "bos": "<|begin_of_text|>",
    "eos": "<|end_of_text|>",
    "pad": "<|end_of_text|>",
    "mask": "<|mask|>",
  },
  hf_class="PreTrainedTokenizerFast",
  hf_classes=("PreTrainedTokenizerFast", "TokenizersBackend"),
  model_types=("eurobert",),
  template=Template(
    single=(("bos", 0), ("A", 0), ("eos", 0)),
    pair=(("bos", 0), ("A", 0), ("eos", 0), ("B", 0), ("eos", 0)),
  ),
  has_types=False,
  mask_lstrip=True,
)
# SentencePiece.
XLM_ROBERTA = dataclasses.replace(
  ROBERTA,
  hf_class="XLMRobertaTokenizer",
  hf_classes=_fast_too("XLMRobertaTokenizer"),
  model_types=("xlm-roberta", "gte"),
  layout="xlm_roberta",
)
CAMEMBERT = dataclasses.replace(
  ROBERTA,
  hf_class="CamembertTokenizer",
  hf_classes=_fast_too("CamembertTokenizer"),
  model_types=("camembert",),
  layout="camembert",
)
ALBERT = TokenizerSpec(
  kind="pipeline",
  special_tokens={
    "bos": "[CLS]",
    "eos": "[SEP]",
    "unk": "<unk>",
    "sep": "[SEP]",
    "pad": "<pad>",
    "cls": "[CLS]",
    "mask": "[MASK]",
  },
  hf_class="AlbertTokenizer",
  hf_classes=_fast_too("AlbertTokenizer"),
  model_types=("albert",),
  layout="albert",
  mask_lstrip=True,
)
DEBERTA_V2 = TokenizerSpec(
  kind="pipeline",
  special_tokens={
    "bos": "[CLS]",
    "eos": "[SEP]",
    "unk": "[UNK]",
    "sep": "[SEP]",
    "pad": "[PAD]",
    "cls": "[CLS]",
    "mask": "[MASK]",
  },
  hf_class="DebertaV2Tokenizer",
  hf_classes=_fast_too("DebertaV2Tokenizer"),
  model_types=("deberta-v2",),
  layout="deberta_v2",
)
XLNET = TokenizerSpec(
  kind="pipeline",
  special_tokens={
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "sep": "<sep>",
    "pad": "<pad>",
    "cls": "<cls>",
    "mask": "<mask>",
  },
  hf_class="XLNetTokenizer",
  hf_classes=_fast_too("XLNetTokenizer"),
  model_types=("xlnet",),
  template=XLNET_FORM,
  layout="xlnet",
  mask_lstrip=True,
  padding_sides=("left", "right"),
)
# BERT's words with the special tokens of RoBERTa.
MPNET = TokenizerSpec(
  kind="pipeline",
  special_tokens=_ROBERTA_TOKENS | {"unk": "[UNK]"},
  hf_class="MPNetTokenizer",
  hf_classes=_fast_too("MPNetTokenizer"),
  model_types=("mpnet",),
  template=ROBERTA_FORM,
  layout="mpnet",
  has_types=False,
  mask_lstrip=True,
)
# The specs of folders that are read without naming a family.
SPECS = (
  WORDPIECE, ROBERTA, MODERNBERT, EUROBERT, XLM_ROBERTA, CAMEMBERT, ALBERT,
  DEBERTA_V2, XLNET, MPNET,
)  # fmt: skip
