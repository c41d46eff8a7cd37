"""The keys of batches, with their shapes and dtypes.

Batches of pre-training, of tasks and of prediction are allocated from these
declarations, and the plan of a run takes its shapes from them. A declaration
maps a key to its axes and its dtype. The axes are letters:

  B  rows of the batch            L  tokens of a row
  P  masked slots of a row        S  sequences that share a row
  G  groups of sequences: the C choices of a question, or one sequence
  K  labels of an example of a multi-label task

Every batch uses the same keys:

  input_ids         token ids, some of them replaced by masking
  input_mask        1 = a real token, 0 = padding
  segment_ids       0 = segment A, 1 = segment B
  positions         packed rows: the position of a token in its sequence
  sequence_ids      packed rows: the number of a token's sequence in its row,
                    from 1; 0 = padding
  cls_positions     packed rows: the position in the row where each sequence
                    begins
  masked_positions  positions to predict, ascending; the slots of all sequences
                    of a row follow one another
  masked_ids        the ids at these positions before masking
  masked_weights    1 = the slot is used
  nsp_label         0 = segment B follows segment A, 1 = B is random text
  label             tasks: a class, the right choice, a number, a tag for each
                    token, or 0 or 1 for each of K labels
  num_choices       choices that vary in number: those of a group
  start, end        spans: the positions in the row where the answer begins and
                    ends
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
  """Returns the keys of a batch of pre-training.

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
  """The labels of a kind of task in a batch.

  Attributes:
    keys: the keys of the labels, without "weight".
    are_places: whether a label is a position in its sequence. The batch then
      holds the position in the row, and the model scores tokens.
  """

  keys: Keys
  are_places: bool = False

  @property
  def of_tokens(self) -> bool:
    """Whether every token has a label; otherwise every group has one."""
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
    keys: the keys of the batch.
    **sizes: letter of an axis -> its size.

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
    wanted: the keys of the batch, as `shapes` returns them.
    pad_id: the id that fills `input_ids`; all other values are 0.
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
  """Writes M sequences, which have T tokens together, into packed rows.

  Args:
    batch: the allocated batch, with the keys of `PACKED`.
    token_ids: [T] the ids, one sequence after another.
    segment_ids: [T] the segments.
    lengths: [M] the number of tokens of each sequence.
    row: [M] the row of each sequence.
    start: [M] its first position in the row.
    slot: [M] the number of sequences before it in the row.

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
