"""Examples to numbers: what the encoder reads and what decoding needs.

Features are columns: the token ids of all sequences lie one after the other,
without padding. A unit is what gets a prediction of its own: a text or pair, a
group of choices, a window of a long context, a piece of a long sentence.
"""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any

import numpy as np

from bert_jax.data import batch_keys
from bert_jax.data.tokenizers import interface

IGNORED = -1  # a token without a label


@dataclasses.dataclass(frozen=True)
class Features:
  """N units of C sequences each; M = N * C sequences of T tokens in all.

  Attributes:
    token_ids: [T] int32, with [CLS] and [SEP].
    segment_ids: [T] int8, 0 or 1.
    offsets: [M + 1] int64; sequence m is token_ids[offsets[m]:offsets[m + 1]].
    example: [N] int32, which example a unit belongs to.
    label: [N] int32 (classify, choice), [N] float32 (regress), [T] int32 with
      IGNORED (tag), [N, 2] int32, start and end within the sequence (span);
      None = not known.
    num_choices: C.
    num_truncated: sequences that lost tokens to the length.
    words: [T] int32, the word of its example that the token predicts, or
      IGNORED (tag).
    char_starts, char_ends: [T] int32, the characters of the context that the
      token stands for, IGNORED outside the context (span).
    is_max_context: [T] bool, no other window shows the token with more on its
      poorer side (span).
    contexts: the text of each example, which answers are cut from (span).
    labels: where `label` stands in a batch.
  """

  token_ids: np.ndarray
  segment_ids: np.ndarray
  offsets: np.ndarray
  example: np.ndarray
  label: np.ndarray | None
  num_choices: int = 1
  num_truncated: int = 0
  words: np.ndarray | None = None
  char_starts: np.ndarray | None = None
  char_ends: np.ndarray | None = None
  is_max_context: np.ndarray | None = None
  contexts: tuple[str, ...] = ()
  labels: batch_keys.Labels = batch_keys.Labels({"label": ("BG", np.int32)})

  @property
  def lengths(self) -> np.ndarray:
    """[M] tokens of each sequence."""
    return np.diff(self.offsets)

  @property
  def num_examples(self) -> int:
    """Examples that the units are of; each has at least one."""
    return int(self.example[-1]) + 1

  def __len__(self) -> int:
    return len(self.example)


def pair_sequences(
  pairs: Sequence[tuple[str, str | None]],
  tokenizer: interface.Tokenizer,
  seq_len: int,
) -> dict[str, Any]:
  """Makes a sequence of each text or pair of texts.

  Args:
    pairs: M of them; the second text may be None.
    tokenizer: whose template is used.
    seq_len: L; longer sequences are truncated.

  Returns:
    `token_ids`, `segment_ids`, `offsets` and `num_truncated` of `Features`.

  Source: google-research/bert run_classifier.py:377-571
  """
  texts = [text for pair in pairs for text in pair if text is not None]
  ids = iter(encode(tokenizer, texts))
  sequences = [
    build_sequence(
      tokenizer, [next(ids) for text in pair if text is not None], seq_len
    )
    for pair in pairs
  ]
  return columns_of([(ids, types) for ids, types, _ in sequences]) | {
    "num_truncated": sum(is_cut for _, _, is_cut in sequences)
  }


def build_sequence(
  tokenizer: interface.Tokenizer, texts: Sequence[list[int]], seq_len: int
) -> tuple[list[int], list[int], bool]:
  """Puts the ids of one or two texts together.

  Args:
    tokenizer: whose template is used.
    texts: the ids of each text.
    seq_len: L, tokens that the sequence may have.

  Returns:
    Its ids, their token types, and whether it was truncated.
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
  """Returns the columns of sequences that templates have built.

  Args:
    sequences: the ids and the token types of each.
  """
  ids, types = (
    itertools.chain.from_iterable(part) for part in zip(*sequences, strict=True)
  )
  return {
    "token_ids": np.fromiter(ids, np.int32),
    "segment_ids": np.fromiter(types, np.int8),
    "offsets": offsets_of([len(ids) for ids, _ in sequences]),
  }


def truncated_lengths(a: int, b: int, room: int) -> tuple[int, int]:
  """How much two texts keep when tokens are taken off the longer one.

  What popping one token at a time from the longer text, of two equally long
  ones from the second, comes to.

  Args:
    a: tokens of the first text.
    b: tokens of the second.
    room: tokens that both may have together.

  Returns:
    Tokens kept of the first and of the second.

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
  """Ids of many texts; one that comes again, such as a context, once."""
  distinct = list(dict.fromkeys(texts))
  ids = dict(zip(distinct, tokenizer.encode_batch(distinct), strict=True))
  return [ids[text] for text in texts]


def offsets_of(lengths: Sequence[int]) -> np.ndarray:
  """[M] lengths -> [M + 1] int64, where each sequence starts."""
  return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
