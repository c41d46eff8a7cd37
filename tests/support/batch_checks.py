"""What a pre-training batch holds, taken apart."""

import numpy as np


def restore(batch):
  """input_ids before masking."""
  ids = batch["input_ids"].copy()
  rows, slots = np.nonzero(batch["masked_weights"])
  positions = batch["masked_positions"][rows, slots]
  ids[rows, positions] = batch["masked_ids"][rows, slots]
  return ids


def contents(batch):
  """Rows in use as hashable (ids, segments, label), padding cut off."""
  ids = restore(batch)
  return [
    (
      tuple(ids[row, :end].tolist()),
      tuple(batch["segment_ids"][row, :end].tolist()),
      int(batch["nsp_label"][row]),
    )
    for row, end in enumerate(batch["input_mask"].sum(1))
    if batch["weight"][row]
  ]


def sequences(batch):
  """Every sequence of packed rows: as contents() and masked_rows() have it.

  Yields:
    ((ids, segments, label), masked ids, masked (position, id) pairs).
  """
  whole = restore(batch)
  for row, slot in np.argwhere(batch["weight"] > 0).tolist():
    here = np.flatnonzero(batch["sequence_ids"][row] == slot + 1)
    start, end = here[0], here[-1] + 1
    assert len(here) == end - start
    assert batch["cls_positions"][row, slot] == start
    np.testing.assert_array_equal(
      batch["positions"][row, here], np.arange(len(here))
    )
    used = batch["masked_weights"][row] > 0
    places = batch["masked_positions"][row][used]
    ids = batch["masked_ids"][row][used]
    mine = (places >= start) & (places < end)
    yield (
      (
        tuple(whole[row, here].tolist()),
        tuple(batch["segment_ids"][row, here].tolist()),
        int(batch["nsp_label"][row, slot]),
      ),
      tuple(batch["input_ids"][row, here].tolist()),
      tuple(
        zip(
          (places[mine] - start).tolist(), ids[mine].tolist(), strict=True
        )
      ),
    )  # fmt: skip


def alone(batch):
  """The same of rows that hold one sequence each."""
  for row, content in zip(
    np.flatnonzero(batch["weight"]), contents(batch), strict=True
  ):
    used = batch["masked_weights"][row] > 0
    yield (
      content,
      tuple(batch["input_ids"][row, : len(content[0])].tolist()),
      tuple(
        zip(
          batch["masked_positions"][row][used].tolist(),
          batch["masked_ids"][row][used].tolist(),
          strict=True,
        )
      ),
    )
