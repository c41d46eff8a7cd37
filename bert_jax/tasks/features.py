"""Features: examples as the numbers that the encoder and decoding read.

Features are columns: the token ids of all sequences follow one another, without
padding. A unit is the part of an example that gets its own prediction: a text
or pair, a group of choices, a window of a long context, or a part of a long
sentence.
"""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any

import numpy as np

from bert_jax.data import batch_keys
from bert_jax.data.tokenizers import interface

IGNORED = -1  # the label of a token without a label


@dataclasses.dataclass(frozen=True)
class Cut:
  """What truncation left out of the texts of a split.

  Attributes:
    what: the plural of what was cut, such as "texts".
    num_cut: how many were cut.
    total: how many there are.
    lost_tokens: the tokens that were left out.
    tokens: the tokens of all, whether left out or not.
    longest: the most tokens of one, with special tokens.
    limit: the key of the config that set the limit, such as "data.seq_len".
    value: the value of that key.
    seq_len: data.seq_len, if the text must fit in there with something else, so
      that a larger value of `limit` may need a longer row; 0 otherwise.
  """

  what: str
  num_cut: int
  total: int
  lost_tokens: int
  tokens: int
  longest: int
  limit: str
  value: int
  seq_len: int = 0

  def __str__(self) -> str:
    share = self.num_cut / max(1, self.total)
    lost = self.lost_tokens / max(1, self.tokens)
    return (
      f"{self.num_cut:,} of {self.total:,} {self.what} ({share:.1%}) are longer"
      f" than {self.limit}={self.value} and are cut; {lost:.1%} of all tokens"
      f" are lost; the longest has {self.longest:,} tokens"
    )

  def advice(self, max_len: int) -> str:
    """Returns what to change.

    Args:
      max_len: the most tokens that the model takes (model.max_len).
    """
    if self.limit != "data.seq_len":
      if self.longest < self.seq_len // 2:
        return f"raise {self.limit} to {self.longest}"
      return (
        f"raise {self.limit}, and with it data.seq_len={self.seq_len}, so that "
        f"there is room for other text; the model takes up to {max_len} tokens"
        if self.seq_len < max_len
        else f"data.seq_len={self.seq_len} is all that the model takes, and "
        f"must hold other text, too; shorten these {self.what}"
      )
    if self.value >= max_len:
      return (
        f"the model takes no more than model.max_len={max_len} tokens; split"
        " the texts, put what matters first, or use a model that takes more"
      )
    wanted = min(max_len, -(-self.longest // 8) * 8)
    return f"raise data.seq_len, to {wanted} for what the model can take"


@dataclasses.dataclass(frozen=True)
class Features:
  """Features of N units of C sequences; M = N * C sequences of T tokens in all.

  Attributes:
    token_ids: [T] int32, with special tokens.
    segment_ids: [T] int8, 0 or 1.
    offsets: [M + 1] int64; sequence m is token_ids[offsets[m]:offsets[m + 1]].
    example: [N] int32, the index of the example that a unit belongs to.
    label: [N] int32 (classify, choice), [N] float32 (regress), [N, K] float32
      (multi_label), [T] int32 with IGNORED (tag), or [N, 2] int32, the start
      and end within the sequence (span); None if the labels are not known.
    num_choices: C.
    counts: [N] int32, the number of choices of each example, if it varies; the
      sequences of the other choices have no tokens (choice).
    cut: what truncation left out; None if the kind cuts no text.
    words: [T] int32, the index in its example of the word that the token
      predicts, or IGNORED (tag).
    char_starts, char_ends: [T] int32, the range of characters of the context
      that the token stands for; IGNORED outside the context (span).
    is_max_context: [T] bool, whether no other window gives the token more
      context on its shorter side (span).
    contexts: the context of each example, from which answers are cut (span).
    labels: the batch keys of `label`.
    weights: [N] float32, the weight of each unit in the loss; None = 1.
  """

  token_ids: np.ndarray
  segment_ids: np.ndarray
  offsets: np.ndarray
  example: np.ndarray
  label: np.ndarray | None
  num_choices: int = 1
  counts: np.ndarray | None = None
  cut: "Cut | None" = None
  words: np.ndarray | None = None
  char_starts: np.ndarray | None = None
  char_ends: np.ndarray | None = None
  is_max_context: np.ndarray | None = None
  contexts: tuple[str, ...] = ()
  labels: batch_keys.Labels = batch_keys.Labels({"label": ("BG", np.int32)})
  weights: np.ndarray | None = None

  @property
  def lengths(self) -> np.ndarray:
    """[M] the number of tokens of each sequence."""
    return np.diff(self.offsets)

  @property
  def num_examples(self) -> int:
    """The number of examples, each of which has at least one unit."""
    return int(self.example[-1]) + 1

  def __len__(self) -> int:
    return len(self.example)


def pair_sequences(
  pairs: Sequence[tuple[str, str | None]],
  tokenizer: interface.Tokenizer,
  seq_len: int,
) -> dict[str, Any]:
  """Makes one sequence of each text or pair of texts.

  Args:
    pairs: M pairs; the second text may be None.
    tokenizer: the tokenizer, whose template is used.
    seq_len: L; longer sequences are truncated.

  Returns:
    `token_ids`, `segment_ids`, `offsets` and `cut` of `Features`.

  Source: google-research/bert run_classifier.py:377-571
  """
  given = [[text for text in pair if text is not None] for pair in pairs]
  ids = iter(encode(tokenizer, list(itertools.chain.from_iterable(given))))
  encoded = [[next(ids) for _ in texts] for texts in given]
  sequences = [build_sequence(tokenizer, texts, seq_len) for texts in encoded]
  special = tokenizer.template.num_special
  lengths = [
    sum(map(len, texts)) + special(len(texts) > 1) for texts in encoded
  ]
  num_cut = sum(is_cut for _, _, is_cut in sequences)
  return columns_of([(ids, types) for ids, types, _ in sequences]) | {
    "cut": Cut(
      "texts" if max(map(len, given), default=1) < 2 else "pairs of texts",
      num_cut,
      len(sequences),
      sum(max(0, length - seq_len) for length in lengths),
      sum(lengths),
      max(lengths, default=0),
      "data.seq_len",
      seq_len,
    ),
  }


def grouped_sequences(
  groups: Sequence[Sequence[tuple[str, str | None]]],
  tokenizer: interface.Tokenizer,
  seq_len: int,
) -> dict[str, Any]:
  """Makes the sequences of groups of pairs of texts, such as the choices.

  Groups with fewer pairs than the largest one are filled up with sequences
  without tokens.

  Args:
    groups: the pairs of each group.
    tokenizer: as for `pair_sequences`.
    seq_len: L; longer sequences are truncated.

  Returns:
    The columns of `pair_sequences`, with as many sequences for each group.
  """
  columns = pair_sequences(
    list(itertools.chain.from_iterable(groups)), tokenizer, seq_len
  )
  counts = np.array([len(group) for group in groups])
  most = int(counts.max())
  lengths = np.zeros((len(groups), most), np.int64)
  lengths[np.arange(most) < counts[:, None]] = np.diff(columns["offsets"])
  return columns | {"offsets": np.concatenate([[0], np.cumsum(lengths)])}


def build_sequence(
  tokenizer: interface.Tokenizer, texts: Sequence[list[int]], seq_len: int
) -> tuple[list[int], list[int], bool]:
  """Joins one or two texts to a sequence with special tokens.

  Args:
    tokenizer: the tokenizer, whose template is used.
    texts: the token ids of each text.
    seq_len: L, the most tokens that the sequence may have.

  Returns:
    The token ids, their segment ids, and whether a text was truncated.
  """
  is_pair = len(texts) > 1
  room = seq_len - tokenizer.template.num_special(is_pair)
  a, b = texts if is_pair else (texts[0], [])
  keep_a, keep_b = truncated_lengths(len(a), len(b), room)
  ids, types = tokenizer.template.build(
    tokenizer, a[:keep_a], b[:keep_b] if is_pair else None
  )
  return ids, types, keep_a + keep_b < len(a) + len(b)


def columns_of(
  sequences: Sequence[tuple[list[int], list[int]]],
) -> dict[str, Any]:
  """Returns `token_ids`, `segment_ids` and `offsets` of `Features`.

  Args:
    sequences: the token ids and segment ids of each sequence.
  """
  ids, types = (
    itertools.chain.from_iterable(part) for part in zip(*sequences, strict=True)
  )
  lengths = [len(ids) for ids, _ in sequences]
  return {
    "token_ids": np.fromiter(ids, np.int32),
    "segment_ids": np.fromiter(types, np.int8),
    "offsets": np.cumsum([0, *lengths], dtype=np.int64),
  }


def truncated_lengths(a: int, b: int, room: int) -> tuple[int, int]:
  """Returns the lengths of two texts after they are truncated.

  The result is the same as that of removing one token at a time from the longer
  text, or from the second text if both have the same length.

  Args:
    a: the number of tokens of the first text.
    b: the number of tokens of the second text.
    room: the most tokens that both may have together.

  Returns:
    The number of tokens that the first and the second text keep.

  Example:
    >>> truncated_lengths(9, 2, 5), truncated_lengths(9, 9, 5)
    ((3, 2), (3, 2))

  Source: google-research/bert run_classifier.py:557-571
  """
  if a + b <= room:
    return a, b
  keep_a = min(a, max(room - b, (room + 1) // 2))
  return keep_a, room - keep_a


def encode(
  tokenizer: interface.Tokenizer, texts: Sequence[str]
) -> list[list[int]]:
  """Returns the ids of texts, each of which is encoded only once."""
  distinct = list(dict.fromkeys(texts))
  ids = dict(zip(distinct, tokenizer.encode_batch(distinct), strict=True))
  return [ids[text] for text in texts]
