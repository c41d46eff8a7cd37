"""Batches of a task: packs features into rows and takes outputs out of them.

A unit of the features is one sequence, or the C sequences of a question with C
choices. A unit never spans two rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np

from bert_jax.data import batch_keys
from bert_jax.data import packing
from bert_jax.data.batch_keys import Batch
from bert_jax.data.orders import EVAL_SEED
from bert_jax.data.orders import Order
from bert_jax.data.tokenizers import interface

# The number of steps whose batches are laid out to choose the shapes of all
# steps, and the row lengths L that are tried, relative to the longest unit.
# Shorter rows leave less of the last row empty, but not every batch fits in.
_SHAPE_SAMPLE = 256
_LENGTH_RATES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5)
# No row longer than this is tried just to leave less of a batch empty.
_LONG_ROW = 1024
# A packed row of `pack_batches` has one slot for this many tokens. If sequences
# are shorter on average, positions of the row stay unused.
_TOKENS_A_SLOT = 8


@dataclasses.dataclass(frozen=True)
class Rows:
  """Puts units of a task's features into the rows of a batch.

  Attributes:
    features: the features of a split.
    row_len: L, the length of a row in tokens.
    slots: G, the most groups that a row may hold.
    pad_id: the id of the padding token.
  """

  features: Any
  row_len: int
  slots: int
  pad_id: int

  def fill(
    self, units: np.ndarray, layout: packing.Layout, num_rows: int
  ) -> Batch:
    """Makes a batch.

    Args:
      units: [N] units of the features, each of C sequences.
      layout: the positions of these units.
      num_rows: B; rows after those of the layout stay empty.
    """
    features = self.features
    lengths, starts, slots, sequence_rows = self._sequences(units, layout)
    source = self.token_places(units, layout)[0]
    label = features.label
    wanted = task_shapes(
      None if label is None else features.labels,
      num_rows,
      self.row_len,
      self.slots,
      features.num_choices,
      1 if label is None else label[:1].size,
    )
    batch = batch_keys.allocate(wanted, self.pad_id)
    tokens = batch_keys.put_sequences(
      batch,
      features.token_ids[source],
      features.segment_ids[source],
      lengths,
      sequence_rows,
      starts,
      slots,
    )
    if label is None:
      return batch
    if features.labels.of_tokens:
      batch["weight"][tokens] = label[source] >= 0
      batch["label"][tokens] = np.maximum(label[source], 0)
      return batch
    groups = (layout.row, layout.slot)
    batch["weight"][groups] = 1
    if features.weights is not None:
      batch["weight"][groups] = features.weights[units]
    if features.labels.are_places:
      for side, name in enumerate(features.labels.keys):
        batch[name][groups] = layout.start + label[units, side]
    else:
      batch["label"][groups] = label[units]
    if features.counts is not None:
      batch["num_choices"][groups] = features.counts[units]
    return batch

  def _sequences(self, units, layout):
    """Returns length, start, slot and row of all sequences [N * C]."""
    count = self.features.num_choices
    ids = (units[:, None] * count + np.arange(count)).ravel()
    lengths = np.diff(self.features.offsets)[ids]
    before = np.cumsum(lengths.reshape(-1, count), axis=1)
    before = np.pad(before[:, :-1], ((0, 0), (1, 0)))
    starts = (layout.start[:, None] + before).ravel()
    # A sequence without tokens may follow the last position of a row.
    starts = np.minimum(starts, self.row_len - 1)
    slots = (layout.slot[:, None] * count + np.arange(count)).ravel()
    return lengths, starts, slots, np.repeat(layout.row, count)

  def token_places(self, units, layout):
    """Returns the positions of the tokens of some units.

    Args:
      units: [N] units of the features.
      layout: the positions of these units.

    Returns:
      For all their tokens [T]: index in the features, row and column.
    """
    lengths = self.unit_lengths[units]
    first = self.features.offsets[units * self.features.num_choices]
    within = np.arange(lengths.sum()) - np.repeat(
      np.cumsum(lengths) - lengths, lengths
    )
    return (
      np.repeat(first, lengths) + within,
      np.repeat(layout.row, lengths),
      np.repeat(layout.start, lengths) + within,
    )

  @functools.cached_property
  def unit_lengths(self) -> np.ndarray:
    """[N] the tokens of every unit of the features, over all its choices."""
    return np.diff(self.features.offsets[:: self.features.num_choices])

  def take(
    self, outputs: np.ndarray, units: np.ndarray, layout: packing.Layout
  ) -> np.ndarray:
    """Selects the outputs of some units from the outputs of a batch.

    Args:
      outputs: [B, S, K] of sequences, or [B, L, K] of tokens.
      units: as for `fill`.
      layout: as for `fill`.

    Returns:
      [N * C, K] of sequences, or [T, K] of tokens, in the order of the units.
    """
    if self.features.labels.outputs_of_tokens:
      _, rows, columns = self.token_places(units, layout)
      return outputs[rows, columns]
    _, _, slots, rows = self._sequences(units, layout)
    return outputs[rows, slots]


def task_shapes(
  labels: batch_keys.Labels | None,
  num_rows: int,
  row_len: int,
  num_groups: int,
  num_choices: int = 1,
  num_labels: int = 1,
) -> batch_keys.Shapes:
  """Returns the shape and dtype of each key of a batch of a task.

  Args:
    labels: the labels of the kind of task; None if they are not known.
    num_rows: B, the number of rows.
    row_len: L, the length of a row.
    num_groups: G, the groups of a row.
    num_choices: C, the sequences of a group.
    num_labels: K, the number of labels of a multi-label task.
  """
  return batch_keys.shapes(
    {**batch_keys.PACKED, **(labels.weighted if labels else {})},
    B=num_rows,
    L=row_len,
    G=num_groups,
    S=num_groups * num_choices,
    K=num_labels,
  )


def longest_row(features: Any, seq_len: int, pack: bool, unit: int) -> int:
  """Returns the row length L that has room for any unit.

  Args:
    features: the features of a split.
    seq_len: the most tokens of a sequence.
    pack: whether units share rows; otherwise L is `seq_len` times C.
    unit: the length of packed rows is a multiple of it.
  """
  count = features.num_choices
  if not pack:
    return seq_len * count
  return _up_to(int(np.diff(features.offsets[::count]).max()), unit)


def _up_to(number: float, multiple: int) -> int:
  """Rounds a number up to a multiple."""
  return -(-int(number) // multiple) * multiple


def _cost(num_rows: float, rows: Rows, attention_len: float) -> float:
  """Returns the cost of computing rows, in positions without attention."""
  return num_rows * rows.row_len * (1 + rows.row_len / attention_len)


class TaskBatches:
  """Training batches of a task, indexed by the step: `batches[step]`.

  The examples of a batch do not depend on how they are laid out in rows.
  """

  def __init__(
    self,
    features: Any,
    *,
    seed: int,
    batch_size: int,
    num_steps: int,
    seq_len: int,
    pad_id: int,
    pack: bool = True,
    one_row_len: bool = False,
    multiple: int = 1,
    length_unit: int = 8,
    attention_len: float = 1000.0,
    shape_price: float = 10_000.0,
    local_rows: Callable[[int], np.ndarray] = np.arange,
  ):
    """Chooses the shapes of the batches.

    Args:
      features: the features of the training split, with labels.
      seed: the seed of the order.
      batch_size: the number of units of a step.
      num_steps: the number of batches.
      seq_len: the most tokens of a sequence.
      pad_id: the id of the padding token.
      pack: whether several units share a row; otherwise each unit has a row of
        `seq_len` tokens for each of its choices.
      one_row_len: whether the rows of all steps, and those of any other seed,
        have the same length and number of slots. The dropout of a row then
        depends on the row alone.
      multiple: the number of rows is a multiple of it (devices, micro-batches).
      length_unit: the length L of packed rows is a multiple of it.
      attention_len: the L at which attention costs as much as the rest of a
        layer; longer rows leave less of a batch empty, but attend over more.
      shape_price: the number of positions that are computed in the time that it
        takes to compile one more shape.
      local_rows: number of rows -> the rows that this host makes.
    """
    self._features = features
    self._order = Order(len(features.example), seed)
    self._batch_size, self._num_steps = batch_size, num_steps
    self._local_rows, self._multiple = local_rows, multiple
    self._pack = pack
    longest = longest_row(features, seq_len, pack, length_unit)
    lengths = [longest]
    if pack:
      rounded = {_up_to(longest * rate, length_unit) for rate in _LENGTH_RATES}
      lengths = sorted(n for n in rounded if n <= max(longest, _LONG_ROW))
    order = self._order
    if one_row_len:  # the choice depends on neither the seed nor the devices
      order = Order(len(features.example), EVAL_SEED)
      lengths = [length for length in lengths if length >= longest]
    sample = [
      self._units(i, order) for i in range(min(num_steps, _SHAPE_SAMPLE))
    ]
    candidates = [
      self._candidate(Rows(features, length, 1, pad_id), sample)
      for length in lengths
    ]
    if one_row_len:
      costs = [_cost(need.sum(), r, attention_len) for r, need in candidates]
      candidates = [candidates[int(np.argmin(costs))]]
    # A shape saves time in all steps, not only in the sampled ones.
    price = shape_price * len(sample) / num_steps
    self._shapes, self._largest = self._choose_shapes(
      candidates, longest, attention_len, price
    )

  def _candidate(
    self, rows: Rows, sample: list[np.ndarray]
  ) -> tuple[Rows, np.ndarray]:
    """Finds out how many rows of a length some batches need.

    Args:
      rows: rows of this length.
      sample: the units of each batch.

    Returns:
      The rows with as many slots as these batches need, and the number of rows
      that each batch needs, inf if one of its units is longer than a row.
    """
    layouts = [self._layout(units, rows, None) for units in sample]
    slots = max((int(x.slot.max()) + 1 for x in layouts if x), default=1)
    need = np.array([x.num_rows if x else np.inf for x in layouts])
    return dataclasses.replace(rows, slots=slots), need

  def _choose_shapes(
    self,
    candidates: list[tuple[Rows, np.ndarray]],
    longest: int,
    attention_len: float,
    price: float,
  ) -> tuple[list[tuple[Rows, int]], Rows]:
    """Chooses the shapes of all batches by those of a sample.

    Args:
      candidates: the row lengths to choose from, as `_candidate` returns them.
      longest: the row length with room for any unit.
      attention_len: as in `__init__`.
      price: the cost of one more shape.

    Returns:
      The shapes as (rows, number of rows), cheapest first; and rows with room
      for any unit, for batches that need more rows than these shapes have.
    """
    shapes: list[tuple[Rows, int]] = []
    costs: list[np.ndarray] = []  # the cost of each batch in each of the shapes
    for rows, need in candidates:
      need = np.ceil(need / self._multiple) * self._multiple
      for num_rows in np.unique(need[np.isfinite(need)]).tolist():
        shapes.append((rows, int(num_rows)))
        cost = _cost(num_rows, rows, attention_len)
        costs.append(np.where(need <= num_rows, cost, np.inf))
    chosen = packing.choose_shapes(np.stack(costs), price)
    by_cost = sorted(chosen, key=lambda i: float(costs[i].min()))
    # Later batches may not fit into rows that all sampled batches fit into.
    largest = [shapes[i][0] for i in chosen] + [rows for rows, _ in shapes]
    largest = [rows for rows in largest if rows.row_len >= longest]
    return [shapes[i] for i in by_cost], largest[0]

  def __len__(self) -> int:
    return self._num_steps

  @property
  def epoch_steps(self) -> float:
    """The number of steps in which every example comes once."""
    return self._order.num_rows / self._batch_size

  def examples(self, step: int) -> list[list[int]]:
    """Returns the example numbers of a step, in one list."""
    units = self._units(step)
    return [self._features.example[units].tolist()]

  def _units(self, step: int, order: Order | None = None) -> np.ndarray:
    """Returns the units [N] of a step, by default in the order of training."""
    places = step * self._batch_size + np.arange(self._batch_size)
    return (order or self._order)(places)[0]

  def _layout(
    self, units: np.ndarray, rows: Rows, max_slots: int | None
  ) -> packing.Layout | None:
    """Lays units out in rows; returns None if one is longer than a row."""
    lengths = rows.unit_lengths[units]
    if not self._pack:
      return packing.one_a_row(lengths)
    if lengths.max() > rows.row_len:
      return None
    return packing.pack(lengths, rows.row_len, max_slots)

  def __getitem__(self, step: int) -> Batch:
    units = self._units(step)
    layouts: dict[int, packing.Layout | None] = {}
    for rows, num_rows in self._shapes:
      if rows.row_len not in layouts:
        layouts[rows.row_len] = self._layout(units, rows, rows.slots)
      layout = layouts[rows.row_len]
      if layout is not None and layout.num_rows <= num_rows:
        break
    else:  # the batch does not fit any of the chosen shapes
      rows = self._largest
      layout = self._layout(units, rows, rows.slots)
      assert layout is not None  # these rows take any unit
      num_rows = _up_to(layout.num_rows, self._multiple)
    batch = rows.fill(units, layout, num_rows)
    mine = self._local_rows(num_rows)
    return {name: value[mine] for name, value in batch.items()}

  def fill_up(self, batch: Batch, num_rows: int) -> Batch:
    """Pads a batch with empty rows to `num_rows` rows."""
    filled = {}
    for name, value in batch.items():
      added = (num_rows - len(value), *value.shape[1:])
      empty = self._largest.pad_id if name == "input_ids" else 0
      filled[name] = np.concatenate([value, np.full(added, empty, value.dtype)])
    return filled


class TaskSplit:
  """A whole split of a task in rows, for evaluation and prediction.

  Every unit is in exactly one batch, and all batches have one shape.

  Attributes:
    rows: puts units into rows and finds the positions of their tokens.
  """

  def __init__(
    self,
    features: Any,
    *,
    num_rows: int,
    seq_len: int,
    pad_id: int,
    pack: bool = True,
    length_unit: int = 8,
    local_rows: Callable[[int], np.ndarray] = np.arange,
  ):
    """Lays the split out in rows.

    Args:
      features: the features of the split, with or without labels.
      num_rows: B, the number of rows of every batch.
      seq_len: the most tokens of a sequence.
      pad_id: the id of the padding token.
      pack: whether several units share a row.
      length_unit: the length L of packed rows is a multiple of it.
      local_rows: number of rows -> the rows that this host makes.
    """
    row_len = longest_row(features, seq_len, pack, length_unit)
    rows = Rows(features, row_len, 1, pad_id)
    if pack:
      layout = packing.pack(rows.unit_lengths, row_len)
    else:
      layout = packing.one_a_row(rows.unit_lengths)
    self.rows = dataclasses.replace(rows, slots=int(layout.slot.max()) + 1)
    self._num_rows, self._local_rows = num_rows, local_rows
    self._layout = layout

  def __len__(self) -> int:
    return -(-self._layout.num_rows // self._num_rows)

  def units(self, step: int) -> tuple[np.ndarray, packing.Layout]:
    """Returns the units [N] of a batch, and their positions in it."""
    return self._layout.part(step * self._num_rows, self._num_rows)

  def __getitem__(self, step: int) -> Batch:
    batch = self.rows.fill(*self.units(step), self._num_rows)
    mine = self._local_rows(self._num_rows)
    return {name: value[mine] for name, value in batch.items()}

  def collect(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
    """Joins the outputs of all batches in the order of the features.

    Args:
      outputs: the outputs of each batch: [B, S, K] of sequences or [B, L, K] of
        tokens.

    Returns:
      [N * C, K] of sequences, or [T, K] of tokens.
    """
    features = self.rows.features
    by_token = features.labels.outputs_of_tokens
    count = len(features.token_ids) if by_token else len(features.offsets) - 1
    result = np.zeros((count, outputs[0].shape[-1]), np.float32)
    for step, part in enumerate(outputs):
      units, layout = self.units(step)
      values = self.rows.take(np.asarray(part), units, layout)
      if by_token:
        places = self.rows.token_places(units, layout)[0]
      else:
        choices = np.arange(features.num_choices)
        places = (units[:, None] * features.num_choices + choices).ravel()
      result[places] = values
    return result


@dataclasses.dataclass(frozen=True)
class PackedBatch:
  """A batch of packed rows, and the positions of its sequences.

  Attributes:
    units: [N] the numbers of the batch's sequences in the features.
    lengths: [N] the tokens of each.
    layout: the positions of the sequences in the batch.
    batch: the input of the model.
    is_mask: [B, L] bool, the positions of mask tokens.
  """

  units: np.ndarray
  lengths: np.ndarray
  layout: packing.Layout
  batch: Batch
  is_mask: np.ndarray

  def split(
    self, outputs: Mapping[str, np.ndarray], levels: Mapping[str, str]
  ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields (number of the sequence, its outputs) for each sequence.

    Args:
      outputs: name -> the outputs of the model, [B, S, ...], [B, L, ...] or
        [B, P, ...].
      levels: name -> what each output belongs to, "sequence", "token" or
        "mask".
    """
    for unit, length, row, start, slot in zip(
      self.units.tolist(),
      self.lengths.tolist(),
      self.layout.row.tolist(),
      self.layout.start.tolist(),
      self.layout.slot.tolist(),
      strict=True,
    ):
      end = start + length
      before = np.count_nonzero(self.is_mask[row, :start])
      inside = np.count_nonzero(self.is_mask[row, start:end])
      places: dict[str, Any] = {
        "sequence": (row, slot),
        "token": (row, slice(start, end)),
        "mask": (row, slice(before, before + inside)),
      }
      yield unit, {k: x[places[levels[k]]] for k, x in outputs.items()}


def pack_batches(
  features: Any,
  row_lengths: Sequence[int],
  batch_tokens: int,
  multiple: int,
  tokenizer: interface.Tokenizer,
  *,
  fills_rows: bool = False,
  mask_rates: Sequence[float] = (),
) -> Iterator[PackedBatch]:
  """Packs sequences into batches, each sequence into the shortest row it fits.

  Batches of one row length have one of a few numbers of rows (`row_counts`), so
  that the model is compiled for few shapes.

  Args:
    features: N sequences without labels, each a unit of its own.
    row_lengths: the lengths L that rows may have, in ascending order.
    batch_tokens: the most tokens of a batch, unless `multiple` asks for more.
    multiple: the number of rows of a batch is a multiple of it.
    tokenizer: the vocabulary, for its padding and mask tokens.
    fills_rows: whether to make several small batches where one batch would have
      more than a quarter of its rows empty.
    mask_rates: P is the first of these shares of L that has room for the mask
      tokens of a row, in ascending order, or else the last of them, and the
      tokens without room are left out. () means that P is a power of two.
  """
  lengths = features.lengths
  shorter = 0
  for row_len in row_lengths:
    units = np.flatnonzero((lengths > shorter) & (lengths <= row_len))
    shorter = row_len
    slots = max(1, row_len // _TOKENS_A_SLOT)
    rows = Rows(features, row_len, slots, tokenizer.pad_id)
    whole = packing.pack(lengths[units], row_len, slots)
    sizes = row_counts(row_len, batch_tokens, multiple)
    first = 0
    while first < whole.num_rows:
      count, num_rows = _next_batch(whole.num_rows - first, sizes, fills_rows)
      inside, layout = whole.part(first, count)
      first += count
      mine = units[inside]
      batch = rows.fill(mine, layout, num_rows)
      is_mask = batch["input_ids"] == tokenizer.mask_id
      batch["masked_positions"] = _masked_positions(is_mask, mask_rates)
      yield PackedBatch(mine, lengths[mine], layout, batch, is_mask)


def row_counts(row_len: int, batch_tokens: int, multiple: int) -> list[int]:
  """Returns the numbers of rows that batches of `pack_batches` may have.

  Args:
    row_len: L, the length of the rows.
    batch_tokens: as for `pack_batches`.
    multiple: as for `pack_batches`.

  Returns:
    The numbers, the largest first. Each is about a quarter of the one before.
  """
  sizes = [max(batch_tokens // row_len // multiple, 1) * multiple]
  while sizes[-1] > multiple:
    sizes.append(max(_up_to(-(-sizes[-1] // 4), multiple), multiple))
  return sizes


def _next_batch(
  left: int, sizes: Sequence[int], fills_rows: bool
) -> tuple[int, int]:
  """Returns the rows that the next batch uses, and the rows that it has.

  Args:
    left: the number of rows that no batch has yet.
    sizes: the numbers of rows that a batch may have, the largest first.
    fills_rows: as for `pack_batches`.
  """
  num_rows = sizes[0]
  for before, size in itertools.pairwise(sizes):
    if before // 4 >= left or (fills_rows and before * 3 > left * 4):
      num_rows = size
  return min(left, num_rows), num_rows


def empty_batch(
  num_rows: int, row_len: int, num_masks: int, pad_id: int
) -> Batch:
  """Returns a batch of `pack_batches` that has no sequences.

  Args:
    num_rows: B, the number of rows.
    row_len: L, the length of the rows.
    num_masks: P, the number of masked positions.
    pad_id: the id of the padding token.
  """
  slots = max(1, row_len // _TOKENS_A_SLOT)
  batch = batch_keys.allocate(
    task_shapes(None, num_rows, row_len, slots), pad_id
  )
  _, dtype = batch_keys.MASKED["masked_positions"]
  batch["masked_positions"] = np.zeros((num_rows, num_masks), dtype)
  return batch


def mask_slots(row_len: int, rates: Sequence[float]) -> list[int]:
  """Returns the numbers P that rows of `pack_batches` have with mask_rates."""
  return [max(1, math.ceil(row_len * rate)) for rate in rates]


def _masked_positions(
  is_mask: np.ndarray, rates: Sequence[float] = ()
) -> np.ndarray:
  """Returns the positions [B, P] of mask tokens [B, L]; see `pack_batches`."""
  counts = is_mask.sum(axis=1)
  most = int(max(counts.max(), 1))
  slots = 1 << (most - 1).bit_length()
  if rates:
    choices = mask_slots(is_mask.shape[1], rates)
    slots = next((size for size in choices if size >= most), choices[-1])
  _, dtype = batch_keys.MASKED["masked_positions"]
  positions = np.zeros((len(is_mask), slots), dtype)
  row, column = np.nonzero(is_mask)
  first = np.cumsum(counts) - counts
  slot = np.arange(len(row)) - first[row]
  fits = slot < slots
  positions[row[fits], slot[fits]] = column[fits]
  return positions
