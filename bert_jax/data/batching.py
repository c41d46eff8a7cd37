"""Batches of pre-training, made from prepared data.

The batch at a step is a pure function of (seed, step), so nothing needs to be
saved and the number of hosts and threads does not matter. An epoch is a pass
over all examples, each in one row; the next epoch may begin in the middle of a
batch. With packing (data.max_sequences > 1) whole rows are permuted: the number
of rows that hold given lengths is the same in every epoch, but the examples of
each length are drawn anew. The masks of an example in an epoch are the same
with and without packing.
"""

from collections.abc import Callable, Iterator
import logging
import os
import threading
from typing import Any, Protocol

import numpy as np

from bert_jax.data import batch_keys
from bert_jax.data import masking
from bert_jax.data import orders
from bert_jax.data import packing
from bert_jax.data.store import indexes
from bert_jax.data.store import manifests
from bert_jax.data.store import records
from bert_jax.data.store import verification
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import load
from bert_jax.runtime import files
from bert_jax.runtime import phases

_log = logging.getLogger(__name__)

Batch = batch_keys.Batch


class Batches(Protocol):
  """A sequence of batches, indexed by the step."""

  def __len__(self) -> int: ...

  def __getitem__(self, step: int, /) -> Batch: ...


class TrainBatches(Batches, Protocol):
  """Training batches that also know the examples in them."""

  def examples(self, step: int, /) -> list[list[int]]:
    """Returns the example numbers of a step, over all hosts, row by row."""
    ...

  @property
  def epoch_steps(self) -> float:
    """The number of steps in which every example comes once."""
    ...


def _row_chooser(
  rows: np.ndarray | Callable[[int], np.ndarray] | None,
) -> Callable[[int], np.ndarray]:
  """Returns a function from B to the rows of this host; None means all."""
  if rows is None:
    return np.arange
  return rows if callable(rows) else lambda size: np.asarray(rows)


class PretrainBatches:
  """Batches of masked examples, indexed by the step: `batches[step]`."""

  def __init__(
    self,
    data: Any,
    split: str,
    *,
    seed: int,
    batch_size: int,
    num_steps: int | None = None,
    max_examples: int = 0,
    rows: np.ndarray | Callable[[int], np.ndarray] | None = None,
  ):
    """Opens prepared data.

    Args:
      data: the `data` group of a config.
      split: one of records.SPLITS.
      seed: the seed of the order and of the masks.
      batch_size: B, the number of rows over all hosts.
      num_steps: the number of batches; None means one epoch, whose last batch
        is padded with rows of weight 0.
      max_examples: the most examples of that epoch; 0 means all. They are the
        same with and without packing.
      rows: the rows of the B that this host makes, or a function that returns
        them for any B; None means all.

    Raises:
      records.DataError: The data is missing, damaged or has other settings.
      ValueError: data.max_sequences is out of range.
    """
    masking.check_max_sequences(data)
    masking.check_ngrams(data)
    if not data.dir:
      raise records.DataError(
        "data.dir is not set; give --config.data.dir=DATA, a folder made by "
        "bert-jax prepare"
      )
    self._data = data
    self._examples = open_examples(data, split)
    self._tokens = indexes.TokenStore(data.dir, split)
    self._tokenizer = load_vocabulary(data.dir)
    total = len(self._examples)
    self._order: Any = orders.Order(total, seed)
    self._seed = seed
    self._batch_size = batch_size
    self._rows_of = _row_chooser(rows)
    # Evaluations have one batch size, and begin with the first row.
    self._sizes = [(0, 2**62, batch_size)]
    self._first = 0
    if num_steps is not None:
      *growing, (first, count, _) = phases.batch_sizes(data)
      self._sizes = [*growing, (first, count, batch_size)]
      self._first = data.first_row
    self._slots = masking.num_slots(
      data.seq_len, data.mask_rate, data.max_predictions
    )
    # A segmenter that marked the words also knows those of the vocabulary.
    self._has_marks = data.whole_word and bool(segmenter_of(data.dir))
    self._continues_word = (
      self._tokenizer.continues_word()
      if data.whole_word and not self._has_marks
      else None
    )
    self._packed = data.max_sequences > 1
    # An evaluation fails if an example is damaged.
    self._may_be_bad = 0 if num_steps is None else data.max_bad_records
    self._bad: dict[int, str] = {}
    self._bad_lock = threading.Lock()  # threads make batches
    if num_steps is None:
      self._limit = min(total, max_examples or total)
      if self._packed:
        self._lay_out_epoch()
      num_steps = -(-self._limit // batch_size)
    else:
      self._limit = self._start(num_steps)
      if self._packed:
        self._order = self._packed_order(split)
    self._num_steps = num_steps

  def _lay_out_epoch(self) -> None:
    """Packs the examples of one epoch in their order."""
    table = self._lay_out(self._order(np.arange(self._limit))[0])
    self._order = lambda places: (table[places], np.zeros_like(places))
    self._limit = len(table)

  def _packed_order(self, split: str) -> orders.PackedOrder:
    """Returns which examples share each row of a training."""
    data = self._data
    index = indexes.LengthIndex(data.dir, records.examples_name(data), split)
    patterns = packing.pack_histogram(
      index.histogram, data.seq_len, data.max_sequences
    )
    return orders.PackedOrder(patterns, index, self._seed)

  def __len__(self) -> int:
    return self._num_steps

  @property
  def num_examples(self) -> int:
    """The number of examples of the split."""
    return len(self._examples)

  @property
  def epoch_steps(self) -> float:
    """The number of steps in which every example comes once."""
    return self._order.num_rows / self._batch_size

  def _lay_out(self, ids: np.ndarray) -> np.ndarray:
    """Packs examples [M] into rows [R, S], where -1 marks an unused slot."""
    special = self._tokenizer.template.counts
    lengths = records.read_lengths(self._examples.read, ids, special)
    slots = self._data.max_sequences
    layout = packing.pack(lengths, self._data.seq_len, slots)
    table = np.full((layout.num_rows, slots), -1, np.int64)
    table[layout.row, layout.slot] = ids
    return table

  def _start(self, step: int) -> int:
    """Returns the place of the first row of a step in the order of all rows."""
    return self._first + sum(
      min(max(step - first, 0), count) * size
      for first, count, size in self._sizes
    )

  def _size(self, step: int) -> int:
    """Returns the number of rows of a step, over all hosts."""
    return self._start(step + 1) - self._start(step)

  def examples(self, step: int) -> list[list[int]]:
    """Returns the example numbers of a step, over all hosts, row by row."""
    places = self.places(step)
    return self.examples_at(places[places < self._limit])

  def examples_at(self, places: np.ndarray) -> list[list[int]]:
    """Returns the example numbers of the rows at positions in the order."""
    ids = self._order(places)[0]
    rows = ids.reshape(len(ids), -1).tolist()
    return [[i for i in row if i >= 0] for row in rows]

  def __getitem__(self, step: int) -> Batch:
    places = self.own_places(step)
    return self._rows_at(places, places < self._limit)

  def places(self, step: int) -> np.ndarray:
    """Returns the positions in the order of the rows of a step."""
    return self._start(step) + np.arange(self._size(step))

  def own_places(self, step: int) -> np.ndarray:
    """Returns the positions of those rows of a step that this host makes."""
    return self._start(step) + self._rows_of(self._size(step))

  def rows_at(self, places: np.ndarray) -> Batch:
    """Returns the batch of the rows at any positions in the order."""
    return self._rows_at(places, np.ones(len(places), bool))

  def _rows_at(self, places: np.ndarray, real: np.ndarray) -> Batch:
    """Makes a batch in which only the rows at real positions count."""
    ids, epochs = self._order(np.where(real, places, 0))
    if self._data.static_masks:
      epochs = np.zeros_like(epochs)
    used = ids >= 0
    used &= real.reshape(-1, *(1,) * (ids.ndim - 1))
    try:
      return self._make_batch(ids, epochs, used)
    except records.DataError:
      if not self._may_be_bad:
        raise
    used &= self._are_good(ids, used)
    if not self._packed:  # another example stands in for a damaged one
      filler = ids[used.argmax()] if used.any() else self._good_example()
      ids = np.where(used, ids, filler)
    return self._make_batch(ids, epochs, used)

  def _make_batch(
    self, ids: np.ndarray, epochs: np.ndarray, used: np.ndarray
  ) -> Batch:
    """Makes a batch in which unused examples have weight 0.

    Args:
      ids: [B] example numbers, or [B, S] for packed rows.
      epochs: [B] the epoch of each row.
      used: bool, in the shape of `ids`; whether the example is used.

    Raises:
      records.DataError: An example in use is damaged.
    """
    if self._packed:
      return self._share_rows(np.where(used, ids, -1), epochs)
    batch = self._make_sequences(ids, epochs)
    weight = used.astype(np.float32)
    batch["masked_weights"] *= weight[:, None]
    batch["weight"] = weight
    return batch

  def _are_good(self, ids: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Returns which used examples can be read; logs and counts the others.

    Raises:
      records.DataError: More than data.max_bad_records are damaged.
    """
    good = np.ones(ids.shape, bool)
    for place in zip(*np.nonzero(used), strict=True):
      one = ids[place][None]
      try:
        self._make_sequences(one, np.zeros(1, np.int64))
      except records.DataError as error:
        good[place] = False
        self._note_bad(int(one[0]), str(error))
    return good

  def _good_example(self) -> int:
    """Returns the first readable example, which fills rows of weight 0."""
    for i in range(len(self._examples)):
      if self._are_good(np.array([i]), np.array([True]))[0]:
        return i
    raise records.DataError(f"{self._data.dir}: all examples are damaged")

  def _note_bad(self, example: int, reason: str) -> None:
    with self._bad_lock:
      if example in self._bad:
        return
      self._bad[example] = reason
      count = len(self._bad)
    if count > self._may_be_bad:
      raise records.DataError(
        f"{reason}; this is damaged example {count}, and data.max_bad_records="
        f"{self._may_be_bad} may be left out; damaged: {sorted(self._bad)}"
      )
    _log.warning("left out example %d, bad one %d: %s", example, count, reason)

  def _make_sequences(self, ids: np.ndarray, epochs: np.ndarray) -> Batch:
    """Makes masked rows of one example each, for examples and epochs [B]."""
    examples = self._examples.read(ids)
    batch, candidates, lengths, marks = self._assemble(examples)
    masked = masking.mask_batch(
      batch["input_ids"],
      candidates,
      lengths,
      ids,
      epochs,
      seed=self._seed,
      slots=self._slots,
      vocab_size=self._tokenizer.vocab_size,
      mask_id=self._tokenizer.mask_id,
      mask_rate=self._data.mask_rate,
      mask_token_rate=self._data.mask_token_rate,
      random_token_rate=self._data.random_token_rate,
      continues_word=self._continues_word,
      word_marks=marks,
      most_words=self._data.mask_ngrams,
    )
    names = ("input_ids", "masked_positions", "masked_ids", "masked_weights")
    return batch | dict(zip(names, masked, strict=True))

  def _share_rows(self, ids: np.ndarray, epochs: np.ndarray) -> Batch:
    """Makes packed rows, each sequence masked as if it had a row of its own.

    Args:
      ids: [B, S] example numbers; -1 marks an unused slot.
      epochs: [B] the epoch of each row.

    Raises:
      records.DataError: A row has too many tokens: the index is damaged.
    """
    used = ids >= 0
    batch = batch_keys.allocate(
      pretraining_shapes(self._data, len(ids)), self._tokenizer.pad_id
    )
    batch["weight"][used] = 1
    if not used.any():
      return batch
    row, slot = np.nonzero(used)  # of each sequence, row by row
    alone = self._make_sequences(ids[used], epochs[row])
    lengths = np.zeros(ids.shape, np.int64)
    lengths[used] = alone["input_mask"].sum(1)
    if lengths.sum(1).max() > self._data.seq_len:
      raise records.DataError(
        f"{self._data.dir}: sequences of {lengths.sum(1).max()} tokens share a "
        f"row of {self._data.seq_len}; the order of the examples by length is "
        "damaged: delete the folder lengths and run bert-jax prepare again"
      )
    start = (np.cumsum(lengths, axis=1) - lengths)[used]
    batch["nsp_label"][used] = alone["nsp_label"]
    real = alone["input_mask"] > 0
    batch_keys.put_sequences(
      batch,
      alone["input_ids"][real],
      alone["segment_ids"][real],
      lengths[used],
      row,
      start,
      slot,
    )

    source = np.nonzero(alone["masked_weights"])
    sequence = source[0]
    before = np.searchsorted(row[sequence], row[sequence])  # in earlier rows
    place = (row[sequence], np.arange(len(sequence)) - before)
    batch["masked_weights"][place] = 1
    batch["masked_ids"][place] = alone["masked_ids"][source]
    batch["masked_positions"][place] = (
      alone["masked_positions"][source] + start[sequence]
    )
    return batch

  def _assemble(
    self, examples
  ) -> tuple[Batch, np.ndarray, np.ndarray, np.ndarray | None]:
    """Makes rows of examples [B] in the form of the tokenizer's template.

    Returns:
      The batch, [B, L] whether a token may be masked, [B] the number of tokens
      of each row, and [B, L] which tokens a segmenter marked as continuing a
      word; None if none did, or if single pieces are masked.
    """
    tokenizer = self._tokenizer
    count, length = len(examples), self._data.seq_len
    a_length, b_length = examples["a_length"], examples["b_length"]
    template = tokenizer.template
    lengths = records.example_lengths(examples, template.counts)
    self._check_examples(examples, lengths)
    spans = (
      np.concatenate([examples["a_start"], examples["b_start"]]),
      np.concatenate([a_length, b_length]).astype(np.int64),
    )
    tokens, offsets = self._tokens.read_spans(*spans)
    # The positions of the parts of rows are [B, 1]; the columns are [1, L].
    columns = np.arange(length)[None, :]
    is_pair = (b_length > 0)[:, None]
    starts = {"A": offsets[:count, None], "B": offsets[count:, None]}
    sizes = {"A": a_length[:, None], "B": b_length[:, None]}
    source = np.zeros((count, length), np.int64)
    text = np.zeros((count, length), bool)
    marks = np.full((count, length), tokenizer.pad_id)
    segment_ids = np.zeros((count, length), np.int32)
    for is_of_form, parts in (
      (~is_pair, template.single),
      (is_pair, template.pair),
    ):
      if not is_of_form.any():
        continue
      at = np.zeros((count, 1), np.int64)  # where the next part begins
      for name, type_id in parts:
        size = sizes.get(name, 1)
        here = is_of_form & (columns >= at) & (columns < at + size)
        if name in starts:
          source = np.where(here, starts[name] + columns - at, source)
          text |= here
        else:
          marks = np.where(here, getattr(tokenizer, f"{name}_id"), marks)
        segment_ids[here] = type_id
        at = at + size
    input_ids = np.where(text, tokens[source], marks).astype(np.int32)
    if input_ids.max() >= tokenizer.vocab_size:
      raise records.DataError(
        f"{self._data.dir} holds token {input_ids.max()}, but its vocabulary "
        f"has {tokenizer.vocab_size}; prepare the data again"
      )
    candidates = text & (input_ids != tokenizer.sep_id)
    batch = {
      "input_ids": input_ids,
      "input_mask": (columns < lengths[:, None]).astype(np.int32),
      "segment_ids": segment_ids,
      "nsp_label": examples["is_random"].astype(np.int32),
    }
    if not self._has_marks:
      return batch, candidates, lengths, None
    word_marks = text & self._tokens.read_word_marks(*spans)[source]
    return batch, candidates, lengths, word_marks

  def _check_examples(self, examples, lengths: np.ndarray) -> None:
    """Raises DataError if examples [B] are damaged.

    Args:
      examples: the examples.
      lengths: [B] the number of tokens of each, special tokens included.
    """
    a_length, b_length = examples["a_length"], examples["b_length"]
    longest = self._data.seq_len
    if lengths.max() > longest or a_length.min() < 1 or b_length.min() < 0:
      raise records.DataError(
        f"{self._data.dir}: an example has {lengths.max()} tokens, more than "
        f"data.seq_len={longest}, or an empty segment; the examples are "
        "damaged, prepare them again"
      )
    if not np.isin(examples["is_random"], (0, 1)).all():
      raise records.DataError(
        f"{self._data.dir}: a next-sentence label is neither 0 nor 1; "
        "the examples are damaged, prepare them again"
      )


def num_masked_slots(data: Any) -> int:
  """Returns P, the masked slots of a row, for the `data` group of a config."""
  slots = masking.num_slots(data.seq_len, data.mask_rate, data.max_predictions)
  if data.max_sequences == 1:
    return slots
  return masking.num_packed_slots(
    data.seq_len, data.max_sequences, data.mask_rate, slots
  )


def pretraining_shapes(data: Any, num_rows: int) -> batch_keys.Shapes:
  """Returns the shape and dtype of each key of a pre-training batch.

  Args:
    data: the `data` group of a config.
    num_rows: B, the number of rows.
  """
  return batch_keys.shapes(
    batch_keys.pretraining(data.max_sequences > 1),
    B=num_rows,
    L=data.seq_len,
    P=num_masked_slots(data),
    S=data.max_sequences,
  )


def open_examples(data: Any, split: str) -> indexes.ExampleStore:
  """Opens the examples that a config's `data` group asks for.

  Raises:
    records.DataError: The examples do not exist, or they or their tokens are
      damaged; the message names the command that makes them.
  """
  name = records.examples_name(data)
  manifests.read_manifest(data.dir)  # its error says how to prepare the data
  folder = os.path.join(data.dir, "examples")
  if not files.exists(os.path.join(folder, name, "manifest.json")):
    found = sorted(files.list_names(folder)) if files.is_folder(folder) else []
    raise records.DataError(
      f"{data.dir} has no examples {name}, only {', '.join(found) or 'none'};"
      " add them with bert-jax prepare, the same --config and no --input"
    )
  manifest = manifests.read_manifest(os.path.join(folder, name))
  tokens = files.file_hash(os.path.join(data.dir, "manifest.json"))
  if manifest["settings"]["tokens"] != tokens:
    raise records.DataError(
      f"{folder}/{name} was made from other tokens than {data.dir}/tokens; "
      "delete it and run bert-jax prepare again"
    )
  verification.verify(
    data.dir, name, split, data.verify, packed=data.max_sequences > 1
  )
  return indexes.ExampleStore(data.dir, name, split)


def segmenter_of(folder: str) -> str:
  """Returns the segmenter that marked the words of prepared data, or ""."""
  return manifests.read_manifest(folder)["settings"].get("segmenter", "")


def load_vocabulary(folder: str) -> interface.Tokenizer:
  """Loads the vocabulary of prepared data and checks it by its manifest."""
  tokenizer = load.load_tokenizer(os.path.join(folder, "vocab"))
  wanted = manifests.read_manifest(folder)["settings"]["vocab"]
  if tokenizer.fingerprint != wanted:
    raise records.DataError(
      f"{folder}/vocab is not the vocabulary that made its tokens "
      f"({tokenizer.fingerprint[:12]}, not {wanted[:12]}); put it back or "
      "prepare the data again"
    )
  return tokenizer


def prefetch(
  batches: Batches,
  start: int,
  *,
  num_threads: int,
  buffer_size: int,
) -> Iterator[Batch]:
  """Yields batches[start], batches[start + 1], ..., which Grain makes ahead.

  Args:
    batches: the batches, indexed by the step.
    start: the first step.
    num_threads: threads that make batches; 0 means the thread of the caller.
    buffer_size: the number of batches kept ready.
  """
  import grain  # slow, and prediction needs none

  steps = grain.MapDataset.range(start, len(batches)).map(batches.__getitem__)
  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=buffer_size
  )
  return iter(steps.to_iter_dataset(options))
