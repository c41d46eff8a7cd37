"""What a batch holds: every key with its shape and dtype, declared once.

Batches of pre-training, of tasks and of prediction are allocated from these
declarations, and a plan of a training reads its shapes here. A declaration maps
a key to its axes and its dtype. The axes are letters:

  B  rows of the batch            L  tokens of a row
  P  masked slots of a row        S  sequences that share a row
  G  groups of sequences: the C choices of a question, or else one sequence
  K  labels of a task with several labels an example

Keys, the same everywhere:

  input_ids         token ids, some of them replaced by masking
  input_mask        1 = a real token, 0 = padding
  segment_ids       0 = segment A, 1 = segment B
  positions         packed rows: the token's place in its sequence
  sequence_ids      packed rows: the number of the token's sequence in its row,
                    from 1; 0 = padding
  cls_positions     packed rows: where in the row each sequence begins
  masked_positions  places to predict, ascending; the slots of all sequences of
                    a row follow one another
  masked_ids        the tokens that stood there
  masked_weights    1 = the slot is used
  nsp_label         0 = segment B follows segment A, 1 = B is random text
  label             of tasks: a class, the right choice, a number, a tag for
                    each token, or 0 and 1 for each of K labels
  start, end        of spans: where in the row the answer begins and ends
  weight            1 = the row, sequence, group or tag counts; 0 = it is filler
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, TypeAlias

import numpy as np

Batch: TypeAlias = dict[str, np.ndarray]
# Batch key -> letters of its axes, dtype.
Keys: TypeAlias = Mapping[str, tuple[str, Any]]
# Batch key -> shape, dtype.
Shapes: TypeAlias = dict[str, tuple[tuple[int, ...], np.dtype]]

TEXT: Keys = dict.fromkeys(
  ("input_ids", "input_mask", "segment_ids"), ("BL", np.int32)
)
PACKED: Keys = {
  **TEXT,
  **dict.fromkeys(("positions", "sequence_ids"), ("BL", np.int32)),
  "cls_positions": ("BS", np.int32),
}
MASKED: Keys = {
  "masked_positions": ("BP", np.int32),
  "masked_ids": ("BP", np.int32),
  "masked_weights": ("BP", np.float32),
}


def pretraining(is_packed: bool) -> Keys:
  """Returns what a batch of pre-training holds.

  Args:
    is_packed: whether sequences share rows (data.max_sequences > 1).
  """
  axes = "BS" if is_packed else "B"
  return {
    **(PACKED if is_packed else TEXT),
    **MASKED,
    "nsp_label": (axes, np.int32),
    "weight": (axes, np.float32),
  }


@dataclasses.dataclass(frozen=True)
class Labels:
  """Where the labels of a kind of task stand in a batch.

  Attributes:
    keys: the keys of the labels, without "weight".
    are_places: a label is a place in its sequence, which a batch turns into a
      place in the row; the model then scores tokens.
  """

  keys: Keys
  are_places: bool = False

  @property
  def of_tokens(self) -> bool:
    """Whether every token has a label, and not every group."""
    return "L" in next(iter(self.keys.values()))[0]

  @property
  def outputs_of_tokens(self) -> bool:
    """Whether the model's outputs are [B, L, K], not [B, S, K]."""
    return self.of_tokens or self.are_places

  @property
  def weighted(self) -> Keys:
    """The keys of the labels, and the weight of each label."""
    return {**self.keys, "weight": ("BL" if self.of_tokens else "BG", "f4")}


def shapes(keys: Keys, **sizes: int) -> Shapes:
  """Returns the shape and dtype of every key.

  Args:
    keys: what the batch holds.
    **sizes: the size of each axis, by its letter.

  Example:
    >>> shapes({"nsp_label": ("BS", np.int32)}, B=2, S=3)
    {'nsp_label': ((2, 3), dtype('int32'))}
  """
  return {
    name: (tuple(sizes[axis] for axis in axes), np.dtype(dtype))
    for name, (axes, dtype) in keys.items()
  }


def allocate(wanted: Shapes, pad_id: int) -> Batch:
  """Returns a batch of padding.

  Args:
    wanted: what the batch holds, as `shapes` says it.
    pad_id: the token that fills `input_ids`; all else is 0.
  """
  batch = {
    name: np.zeros(shape, dtype) for name, (shape, dtype) in wanted.items()
  }
  batch["input_ids"].fill(pad_id)
  return batch


def put_sequences(
  batch: Batch,
  token_ids: np.ndarray,
  segment_ids: np.ndarray,
  lengths: np.ndarray,
  row: np.ndarray,
  start: np.ndarray,
  slot: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Writes M sequences of T tokens in all into packed rows.

  Args:
    batch: with the keys of `PACKED`, allocated.
    token_ids: [T] tokens, one sequence after another.
    segment_ids: [T] their segments.
    lengths: [M] tokens of each sequence.
    row: [M] the row of each sequence.
    start: [M] its first position in the row.
    slot: [M] how many sequences stand before it in the row.

  Returns:
    The row and the position in the row of every token, both [T].
  """
  first = np.repeat(np.cumsum(lengths) - lengths, lengths)
  positions = np.arange(len(first)) - first
  place = np.repeat(row, lengths), np.repeat(start, lengths) + positions
  batch["input_ids"][place] = token_ids
  batch["input_mask"][place] = 1
  batch["segment_ids"][place] = segment_ids
  batch["positions"][place] = positions
  batch["sequence_ids"][place] = np.repeat(slot + 1, lengths)
  batch["cls_positions"][row, slot] = start
  return place
