"""Byte-level BPE: pieces of bytes, merged by frequency.

Every text has ids, because the 256 bytes are pieces. A piece that begins a word
contains the space before it. Bytes are written as printable characters, a space
as U+0120.

Source: GPT-2, Radford et al. 2019, section 2.2; Sennrich et al., arXiv
1508.07909.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import json
import os
from typing import Any

import tokenizers

from bert_jax.data import templates
from bert_jax.data.tokenizers import interface
from bert_jax.runtime import files

VOCABULARY = "vocab.json"
MERGES = "merges.txt"


@dataclasses.dataclass(frozen=True)
class Form:
  """The special tokens of a vocabulary that is learned.

  Attributes:
    first: role -> token, which have the ids 0, 1, 2, ...
    last: role -> token, which have the largest ids.
    others: role -> token, for roles that share a token.
    template: the form of sequences.
    hf_class: the class of transformers that reads such a folder.
  """

  first: Mapping[str, str]
  last: Mapping[str, str]
  others: Mapping[str, str]
  template: templates.Template
  hf_class: str

  @property
  def special_tokens(self) -> dict[str, str]:
    """Role -> token, for all roles."""
    return {**self.first, **self.last, **self.others}


# Value of `prepare.special_tokens` -> the special tokens.
FORMS = {
  "bert": Form(
    first=templates.WORDPIECE.special_tokens,
    last={},
    others={},
    template=templates.CLS_SEP,
    hf_class=templates.MODERNBERT.hf_class,
  ),
  # The ids of fairseq's dictionary.
  "roberta": Form(
    first={"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>"},
    last={"mask": "<mask>"},
    others={"bos": "<s>", "eos": "</s>"},
    template=templates.ROBERTA_FORM,
    hf_class=templates.ROBERTA.hf_class,
  ),
}


def rules_of(
  vocabulary: Mapping[str, int],
  merges: Sequence[tuple[str, str]],
  *,
  add_prefix_space: bool = False,
  lower_case: bool = False,
) -> dict[str, Any]:
  """Returns the rules of a vocabulary, without special and added tokens.

  Args:
    vocabulary: piece -> id.
    merges: the pairs of pieces that are merged, the first one first.
    add_prefix_space: whether a text begins as if a space were before it.
    lower_case: whether text is lower-cased and loses its accents.
  """
  cuts = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
  normalizer = None
  if lower_case:
    kinds = ("NFD", "Lowercase", "StripAccents")
    normalizer = {
      "type": "Sequence",
      "normalizers": [{"type": kind} for kind in kinds],
    }
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": normalizer,
    "pre_tokenizer": {**cuts, "add_prefix_space": add_prefix_space},
    "post_processor": None,
    "decoder": {**cuts, "add_prefix_space": True},
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": None,
      "continuing_subword_prefix": "",
      "end_of_word_suffix": "",
      "fuse_unk": False,
      "byte_fallback": False,
      "ignore_merges": False,
      "vocab": dict(vocabulary),
      "merges": [list(pair) for pair in merges],
    },
  }


def read(
  folder: str, *, add_prefix_space: bool, lower_case: bool = False
) -> dict[str, Any]:
  """Reads vocab.json and merges.txt.

  Args:
    folder: has both files.
    add_prefix_space: as for `rules_of`.
    lower_case: as for `rules_of`.

  Raises:
    ValueError: a file is missing or damaged; the message names the line.
  """
  path = os.path.join(folder, VOCABULARY)
  vocabulary = files.read_json(path)
  ids = vocabulary.values()
  if not vocabulary or sorted(ids, key=str) != sorted(
    range(len(vocabulary)), key=str
  ):
    raise ValueError(f"{path}: the ids of its pieces are not 0, 1, 2, ...")
  return rules_of(
    vocabulary,
    list(_merges(os.path.join(folder, MERGES), vocabulary)),
    add_prefix_space=add_prefix_space,
    lower_case=lower_case,
  )


def _merges(
  path: str, vocabulary: Mapping[str, int]
) -> Iterator[tuple[str, str]]:
  """Yields the pairs in merges.txt, the first of which is merged first."""
  if not files.exists(path):
    raise ValueError(
      f"{path} does not exist; {VOCABULARY} is of no use without the file of "
      "its merges"
    )
  with files.reading(path, "r", newline="\n") as lines:
    for number, line in enumerate(lines, 1):
      line = line.rstrip("\r\n")
      if not line or (number == 1 and line.startswith("#version")):
        continue
      pair = line.split(" ")
      if len(pair) != 2:
        raise ValueError(
          f"{path}, line {number}: {line!r:.60} is not two pieces with a space "
          "between them"
        )
      for piece in (*pair, "".join(pair)):
        if piece not in vocabulary:
          raise ValueError(
            f"{path}, line {number}: {VOCABULARY} lacks the piece {piece!r:.60}"
          )
      yield pair[0], pair[1]


def learn(
  texts: Iterable[str],
  vocab_size: int,
  lower_case: bool,
  form: Form,
  *,
  min_frequency: int = 2,
) -> dict[str, Any]:
  """Learns the rules of a vocabulary; the same text gives the same rules.

  Args:
    texts: lines or documents, read once.
    vocab_size: the number of pieces, special tokens included.
    lower_case: whether text is lower-cased and loses its accents.
    form: the special tokens.
    min_frequency: the least frequency of a pair that is merged.

  Returns:
    The content of a tokenizer.json, without added tokens.

  Raises:
    ValueError: the text cannot give exactly `vocab_size` pieces.
  """
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  first, last = list(form.first.values()), list(form.last.values())
  least = len(first) + len(last) + len(alphabet)
  if vocab_size < least:
    raise ValueError(
      f"vocab_size={vocab_size} cannot hold the {least - len(alphabet)} special"
      f" tokens and 256 bytes; use at least {least}"
    )
  empty = rules_of({}, (), lower_case=lower_case)
  learner = tokenizers.Tokenizer.from_str(json.dumps(empty))
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size - len(last),
    min_frequency=min_frequency,
    special_tokens=first + alphabet,  # numbers them in this order
    show_progress=False,
  )
  clean = (interface.SURROGATE.sub("\ufffd", text) for text in texts)
  learner.train_from_iterator(clean, trainer)
  model = json.loads(learner.to_str())["model"]
  vocabulary = model["vocab"]
  if len(vocabulary) != vocab_size - len(last):
    size = len(vocabulary) + len(last)
    raise ValueError(
      f"vocab_size={vocab_size}, but this text gives only {size} pieces with "
      f"min_frequency={min_frequency}; lower vocab_size to {size} or give more "
      "text"
    )
  for token in last:
    vocabulary[token] = len(vocabulary)
  merges = [tuple(pair) for pair in model["merges"]]
  return rules_of(vocabulary, merges, lower_case=lower_case)
