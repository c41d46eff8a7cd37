"""Batches for the model, from prepared data and from the features of tasks.

Batch keys, the same everywhere. B rows, L tokens, P masked slots, S sequences
packed into a row, G groups of them (a group is the C choices of a question,
or else one sequence):

  input_ids         [B, L] int32    token ids, some replaced by masking
  input_mask        [B, L] int32    1 = a real token, 0 = padding
  segment_ids       [B, L] int32    0 = segment A, 1 = segment B
  positions         [B, L] int32    packed rows only: place in its sequence
  sequence_ids      [B, L] int32    packed rows only: which sequence of the row
                                    a token belongs to, 0 = padding
  masked_positions  [B, P] int32    places to predict, ascending
  masked_ids        [B, P] int32    what stood there
  masked_weights    [B, P] float32  1 = a slot in use
  nsp_label         [B]    int32    0 = B follows A, 1 = B is random text
  weight            [B]    float32  0 = a filler row of a last batch
  cls_positions     [B, S] int32    tasks: where the sequences of a row begin
  label             [B, G] int32    tasks: class or right choice; [B, L] of tags
                    [B, G] float32  the number of a regression
  start, end        [B, S] int32    spans: ends of the answer, places in the row
  weight            [B, G] float32  tasks: 0 = no such group; [B, L] of tags

The batch at a step is a pure function of (seed, step): nothing needs saving,
and it does not matter how many hosts or threads make it.
"""

from collections.abc import Iterator
import dataclasses
import os
from typing import Any, Protocol

import grain
from grain.experimental import index_shuffle
import numpy as np

from bert_jax import masking
from bert_jax import records
from bert_jax import tokenization

Batch = dict[str, np.ndarray]


class Batches(Protocol):
  """Batches by step."""

  def __len__(self) -> int: ...

  def __getitem__(self, step: int, /) -> Batch: ...


# Evaluation uses one choice of masks and of examples, whatever the run's seed,
# so that numbers of different runs compare.
EVAL_SEED = 0


@dataclasses.dataclass(frozen=True)
class Order:
  """Which example stands in which row, for ever: epochs of permutations.

  Attributes:
    num_examples: of the split.
    seed: of the permutations; every epoch has its own.
  """

  num_examples: int
  seed: int

  def __call__(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The examples at global places [M]: (example ids [M], epochs [M])."""
    epochs, offsets = np.divmod(places, self.num_examples)
    seeds = masking.hash_uniform(self.seed, epochs) >> np.uint64(32)
    ids = [
      index_shuffle(index=i, max_index=self.num_examples - 1, seed=s, rounds=4)
      for i, s in zip(offsets.tolist(), seeds.tolist(), strict=True)
    ]
    return np.array(ids, np.int64), epochs


class PretrainBatches:
  """Batches of masked examples by step: `batches[step]`."""

  def __init__(
    self,
    data: Any,
    split: str,
    *,
    seed: int,
    batch_size: int,
    num_steps: int | None = None,
    max_examples: int = 0,
    rows: np.ndarray | None = None,
  ):
    """Opens prepared data.

    Args:
      data: the `data` group of a config.
      split: one of records.SPLITS.
      seed: of order and masks.
      batch_size: B over all hosts.
      num_steps: how many batches; None = one epoch, the last batch filled up
        with rows of weight 0.
      max_examples: of that epoch, at most; 0 = all.
      rows: which of the B rows this host makes; None = all.

    Raises:
      records.DataError: the data is missing, damaged or of other settings.
    """
    if not data.dir:
      raise records.DataError(
        "data.dir is not set; give --config.data.dir=DATA, a folder made by "
        "--mode=prepare"
      )
    self._data = data
    self._examples = open_examples(data, split)
    self._tokens = records.TokenStore(data.dir, split)
    self._tokenizer = load_vocabulary(data.dir)
    total = len(self._examples)
    self._order = Order(total, seed)
    self._seed = seed
    self._batch_size = batch_size
    self._rows = np.arange(batch_size) if rows is None else rows
    self._slots = masking.num_slots(
      data.seq_len, data.mask_rate, data.max_predictions
    )
    self._continues_word = (
      self._tokenizer.continues_word() if data.whole_word else None
    )
    if num_steps is None:
      self._limit = min(total, max_examples or total)
      num_steps = -(-self._limit // batch_size)
    else:
      self._limit = num_steps * batch_size
    self._num_steps = num_steps

  def __len__(self) -> int:
    return self._num_steps

  @property
  def num_examples(self) -> int:
    """Examples of the split."""
    return len(self._examples)

  def __getitem__(self, step: int) -> Batch:
    places = step * self._batch_size + self._rows
    real = places < self._limit
    ids, epochs = self._order(np.where(real, places, 0))
    if self._data.static_masks:
      epochs = np.zeros_like(epochs)
    examples = self._examples.read(ids)
    batch, candidates, lengths = self._assemble(examples)
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
    )
    weight = real.astype(np.float32)
    batch["input_ids"], batch["masked_positions"], batch["masked_ids"] = masked[
      :3
    ]
    batch["masked_weights"] = masked[3] * weight[:, None]
    batch["weight"] = weight
    return batch

  def _assemble(self, examples) -> tuple[Batch, np.ndarray, np.ndarray]:
    """Makes rows [CLS] A [SEP] B [SEP] of examples [B].

    Returns:
      The batch, which tokens may be masked [B, L], and how many tokens each row
      has [B].
    """
    tokenizer = self._tokenizer
    count, length = len(examples), self._data.seq_len
    a_length, b_length = examples["a_length"], examples["b_length"]
    has_b = b_length > 0
    lengths = a_length + 2 + np.where(has_b, b_length + 1, 0)
    if lengths.max() > length or a_length.min() < 1 or b_length.min() < 0:
      raise records.DataError(
        f"an example has {lengths.max()} tokens, more than data.seq_len="
        f"{length}, or none; the examples are damaged, prepare them again"
      )
    tokens, offsets = self._tokens.read_spans(
      np.concatenate([examples["a_start"], examples["b_start"]]),
      np.concatenate([a_length, b_length]).astype(np.int64),
    )
    # Places of the rows' parts, all [B, 1]; the columns are [1, L].
    columns = np.arange(length)[None, :]
    a_end = a_length[:, None] + 1
    end = lengths[:, None]
    in_a = (columns >= 1) & (columns < a_end)
    in_b = (columns > a_end) & (columns < end - 1)
    source = np.where(
      in_a,
      offsets[:count, None] + columns - 1,
      np.where(in_b, offsets[count:, None] + columns - a_end - 1, 0),
    )
    text = in_a | in_b
    input_ids = np.where(text, tokens[source], tokenizer.pad_id)
    input_ids = input_ids.astype(np.int32)
    if input_ids.max() >= tokenizer.vocab_size:
      raise records.DataError(
        f"{self._data.dir} holds token {input_ids.max()}, but its vocabulary "
        f"has {tokenizer.vocab_size}; prepare the data again"
      )
    input_ids[:, 0] = tokenizer.cls_id
    separators = (columns == a_end) | (columns == end - 1)
    input_ids[separators] = tokenizer.sep_id
    candidates = text & (input_ids != tokenizer.sep_id)
    batch = {
      "input_ids": input_ids,
      "input_mask": (columns < end).astype(np.int32),
      "segment_ids": ((columns > a_end) & (columns < end)).astype(np.int32),
      "nsp_label": examples["is_random"].astype(np.int32),
    }
    return batch, candidates, lengths


def open_examples(data: Any, split: str) -> records.ExampleStore:
  """Opens the examples that a config's `data` group asks for.

  Raises:
    records.DataError: they were not made, or they or their tokens are damaged;
      says with which command they are made.
  """
  name = records.examples_name(data)
  records.read_manifest(data.dir)  # says how to make it where it is missing
  folder = os.path.join(data.dir, "examples")
  if not os.path.exists(os.path.join(folder, name, "manifest.json")):
    found = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    raise records.DataError(
      f"{data.dir} has no examples {name}, only {', '.join(found) or 'none'};"
      " add them with --mode=prepare, the same --config and no --input"
    )
  manifest = records.read_manifest(os.path.join(folder, name))
  tokens = records.file_hash(os.path.join(data.dir, "manifest.json"))
  if manifest["settings"]["tokens"] != tokens:
    raise records.DataError(
      f"{folder}/{name} was made of other tokens than {data.dir}/tokens; "
      "delete it and run --mode=prepare again"
    )
  records.verify(data.dir, name, split, data.verify)
  return records.ExampleStore(data.dir, name, split)


def load_vocabulary(folder: str) -> tokenization.Tokenizer:
  """The vocabulary of prepared data, checked against its manifest."""
  tokenizer = tokenization.load_tokenizer(os.path.join(folder, "vocab"))
  wanted = records.read_manifest(folder)["settings"]["vocab"]
  if tokenizer.fingerprint != wanted:
    raise records.DataError(
      f"{folder}/vocab is not the vocabulary its tokens were made with "
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
  """Yields batches[start], batches[start + 1], ... made ahead by Grain.

  Args:
    batches: by step.
    start: the first step.
    num_threads: that make batches; 0 = the caller's own.
    buffer_size: batches held ready.
  """
  steps = grain.MapDataset.range(start, len(batches)).map(batches.__getitem__)
  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=buffer_size
  )
  return iter(steps.to_iter_dataset(options))
