"""Counts the model FLOPs of a training step, and the utilisation of a chip.

Model FLOPs are the operations that the mathematics needs, whatever the program
does. Matrix multiplications count 2 * m * n * k each, and so do attention
scores and the weighted sum of values. The embedding lookup, softmax,
normalisation, activations, dropout, the losses and the optimizer do not count.
Neither does recomputation (`model.remat`), which therefore lowers the
utilisation.

Of several ways to count, these are the lower ones:

- The last layer counts only where its output is read: at the masked slots and
  at [CLS]. Its keys and values count everywhere. A program that computes the
  layer everywhere, as scanned layers do, gets no credit for that. Published
  counts mostly count it everywhere, as `all_positions=True` does.
- Tokens of packed sequences attend within their own sequence, and those of
  local layers within their window, too. Where the lengths are known, other
  products of queries and keys do not count.
- Only the masked slots go through the head over the vocabulary.

Padding counts like any other position.
"""

from typing import Any

import numpy as np

from bert_jax.models import families
from bert_jax.models.config import DISTANCE_TABLES
from bert_jax.models.config import FEED_FORWARD_MATRICES
from bert_jax.models.families.family import SEQUENCE_ROLES
from bert_jax.runtime import chips
from bert_jax.runtime import settings


def window_pairs(length: Any, radius: int) -> Any:
  """Returns how many pairs of tokens of a sequence are within a window.

  Tokens near the ends of the sequence see fewer than the others.

  Args:
    length: The number of tokens of the sequence, or an array of such.
    radius: The longest distance that is visible.

  Example:
    >>> int(window_pairs(5, 1))
    13
  """
  short = np.minimum(length, radius + 1)  # of so many, all see each other
  return short**2 + (length - short) * (2 * radius + 1)


def encoder_flops(
  model: settings.Model,
  batch_size: int,
  seq_len: int,
  *,
  num_outputs: int | None = None,
  num_pooled: int = 1,
  attended: float | None = None,
  near: float | None = None,
) -> int:
  """Returns the FLOPs of one forward pass of the encoder with its pooler.

  The number of heads does not matter, unless some share their keys and values:
  N heads of width D / N cost as much as one of width D.

  Args:
    model: The group `model` of a config.
    batch_size: The number of rows B.
    seq_len: The length L of a row.
    num_outputs: How many positions of a row have their output read. None: all.
    num_pooled: How many sequences of a row go through the pooler.
    attended: How many pairs of query and key positions of a row see each other:
      the sum of the squares of the lengths of its sequences. None: L * L.
    near: How many of these pairs layers with local attention compute, the sum
      of `window_pairs` of the lengths. None: as if all sequences of the row had
      the same length.

  Example:
    BERT-base has 12 * (4 * 768**2 + 2 * 768 * 3072) = 85e6 weights in its
    layers: a row of 128 takes 2 * 85e6 * 128 = 21.7e9, attention 0.6e9 more:

    >>> base = settings.make_config().model
    >>> f"{encoder_flops(base, batch_size=1, seq_len=128):.3g}"
    '2.23e+10'
  """
  d, f = model.hidden_size, model.mlp_dim
  matrices = FEED_FORWARD_MATRICES[model.feed_forward]
  attended = float(seq_len**2) if attended is None else attended
  outputs = seq_len if num_outputs is None else min(num_outputs, seq_len)
  has_table = model.attention_positions in DISTANCE_TABLES
  num_distances = 2 * model.relative_buckets if has_table else 0
  # The width of the keys of all heads.
  shared = d * (model.num_kv_heads or model.num_heads) // model.num_heads

  def layer(queries: int, seen: float) -> float:
    key_and_value = 2 * 2 * d * shared * seq_len
    query_and_out = 2 * 2 * d * d * queries
    # Scores, and the sum of values.
    attention = 2 * 2 * d * seen * queries / seq_len
    mlp = 2 * matrices * d * f * queries
    # The scores of the vectors of distances.
    distances = 2 * num_distances * d * (queries + seq_len)
    return key_and_value + query_and_out + attention + mlp + distances

  seen = [attended] * model.num_layers
  if model.attention_pattern == "local":
    if near is None:
      length = attended / seq_len  # of the sequences, if they are equal
      near = float(window_pairs(length, model.local_radius)) * seq_len / length
    seen = [
      near if i % model.full_every else attended
      for i in range(model.num_layers)
    ]
  layers = sum(layer(seq_len, pairs) for pairs in seen[:-1])
  layers += layer(outputs, seen[-1])
  pooler = num_pooled * 2 * d * d if model.pooler else 0
  projection = 2 * model.embedding_size * d * seq_len
  conv = 2 * model.conv_size * d * d // model.conv_groups * seq_len
  # The vectors of distances as queries and keys, once for the whole batch.
  tables = model.num_layers * 2 * num_distances * d * (d + shared)
  return round(batch_size * (layers + pooler + projection + conv)) + tables


def pretrain_step_flops(
  model: settings.Model,
  batch_size: int,
  seq_len: int,
  num_masked: int,
  *,
  num_sequences: int = 1,
  attended: float | None = None,
  all_positions: bool = False,
  near: float | None = None,
) -> int:
  """Returns the FLOPs of one training step of masked LM and next sentence.

  The backward pass has two multiplications for each one of the forward pass,
  for the gradients of the inputs and of the weights.

  Args:
    model: The group `model` of a config.
    batch_size: The number of rows B of the global batch.
    seq_len: The length L of a row.
    num_masked: The number of masked slots P of a row.
    num_sequences: The number of sequences S that a row has room for.
    attended: See `encoder_flops`.
    all_positions: Whether to count the last layer, and attention, at all
      positions.
    near: See `encoder_flops`.
  """
  forward = encoder_flops(
    model,
    batch_size,
    seq_len,
    num_outputs=None if all_positions else num_masked + num_sequences,
    num_pooled=num_sequences,
    attended=None if all_positions else attended,
    near=None if all_positions else near,
  )
  d = model.hidden_size
  # Masked LM: every masked slot of a row is computed, whether used or not.
  e = model.embedding_size or d
  dense = 2 * d * e if model.mlm_head == "transform" else 0
  forward += batch_size * num_masked * (dense + 2 * e * model.vocab_size)
  # Next sentence: two labels.
  forward += batch_size * num_sequences * 2 * d * 2 if model.pooler else 0
  return 3 * forward


def task_step_flops(
  model: settings.Model,
  batch_size: int,
  seq_len: int,
  role: str,
  *,
  num_sequences: int = 1,
  attended: float | None = None,
  all_positions: bool = False,
  near: float | None = None,
) -> int:
  """Returns the FLOPs of one training step, forward and backward, of a task.

  The backward pass counts as twice the forward pass. The last product of the
  head, onto its K labels, is left out.

  Args:
    model: The group `model` of a config.
    batch_size: The number of rows B of the global batch.
    seq_len: The length L of a row.
    role: The role of the head, a key of `Family.heads`. The heads of sequences
      read one position of each sequence, unless model.pooling is a mean or
      there is an LSTM, so that the last layer needs only these.
    num_sequences: The number of sequences S packed into a row.
    attended: How many pairs of query and key positions of a row see each other;
      None = L * L. See `encoder_flops`.
    all_positions: Whether to count what a dense program computes: the last
      layer at all positions, and attention to all of them, whatever `attended`.
    near: See `encoder_flops`.
  """
  is_one = role in SEQUENCE_ROLES
  num_lstm = getattr(model, "head_lstm_layers", 0)  # older runs lack it
  reads_one = is_one and model.pooling in ("first", "last") and not num_lstm
  steps = families.get_family(model.family).heads[role]
  forward = encoder_flops(
    model,
    batch_size,
    seq_len,
    num_outputs=num_sequences if reads_one and not all_positions else None,
    num_pooled=num_sequences if "pooler" in steps else 0,
    attended=None if all_positions else attended,
    near=None if all_positions else near,
  )
  # Two directions of width D / 2, each with four gates of x and of its output.
  d = model.hidden_size
  forward += batch_size * seq_len * num_lstm * 2 * (2 * d) * (d + d // 2) * 2
  if "dense" in steps:
    vectors = num_sequences if is_one else seq_len
    forward += batch_size * vectors * 2 * model.hidden_size**2
  return 3 * forward


def mfu(
  flops_per_step: float, secs: float, num_devices: int, device_kind: str
) -> float | None:
  """Returns the model FLOPs utilisation: the share of the peak that was used.

  Args:
    flops_per_step: Model FLOPs of a step of the global batch.
    secs: The seconds that the step took.
    num_devices: The number of jax devices in the mesh.
    device_kind: `jax.devices()[0].device_kind`.

  Returns:
    A number between 0 and 1; None if `chips.PEAK_FLOPS` does not list the chip.

  Source: the term is from PaLM, arXiv 2204.02311, appendix B.
  """
  peak = chips.PEAK_FLOPS.get(device_kind)
  if peak is None:
    return None
  return flops_per_step / (secs * num_devices * peak)
