"""Counts the arithmetic that a model asks for, and what part of a chip it uses.

These are model FLOPs: what the mathematics needs, whatever the program does.
Counted are matrix multiplications, 2 * m * n * k each, among them attention
scores and the weighted sum of values. Left out are the embedding lookup,
softmax, normalisation, activations, dropout, the losses and the optimizer; and
everything that rematerialisation computes a second time, which therefore lowers
the utilisation.

Three choices, each the lower count:

- The last layer is needed only where its output is read: at the masked slots
  and at [CLS]. Its keys and values are needed everywhere. A program that
  computes it everywhere (scanned layers do) is not credited for that. Counts
  that others publish mostly are: `all_positions=True` gives these.
- Tokens of packed sequences attend within their own sequence, so the program's
  other products of queries and keys are not counted where lengths are known.
- Only the masked slots go through the head over the vocabulary.

Padding counts like any other position.
"""

from typing import Protocol

from bert_jax.models.config import FEED_FORWARD_MATRICES
from bert_jax.runtime import chips


class ModelSizes(Protocol):
  """The keys of the model config that are read here."""

  num_layers: int
  hidden_size: int
  mlp_dim: int
  vocab_size: int
  feed_forward: str


def encoder_flops(
  model: ModelSizes,
  batch_size: int,
  seq_len: int,
  *,
  num_outputs: int | None = None,
  num_pooled: int = 1,
  attended: float | None = None,
) -> int:
  """Returns the FLOPs of one forward pass of the encoder with its pooler.

  The number of heads plays no role: N heads of D / N cost as much as one of D.

  Args:
    model: Sizes; `config.model`.
    batch_size: Rows B.
    seq_len: Positions L of a row.
    num_outputs: Positions of a row whose output is read. None: all.
    num_pooled: Sequences of a row that go through the pooler.
    attended: Pairs of query and key positions of a row that see each other: the
      sum of the squares of the lengths of its sequences. None: L * L.

  Example:
    BERT-base has 12 * (4 * 768**2 + 2 * 768 * 3072) = 85e6 weights in its
    layers: a row of 128 takes 2 * 85e6 * 128 = 21.7e9, attention 0.6e9 more:

    >>> import types
    >>> base = types.SimpleNamespace(
    ...   num_layers=12,
    ...   hidden_size=768,
    ...   mlp_dim=3072,
    ...   vocab_size=30522,
    ...   feed_forward="mlp",
    ... )
    >>> f"{encoder_flops(base, batch_size=1, seq_len=128):.3g}"
    '2.23e+10'
  """
  d, f = model.hidden_size, model.mlp_dim
  matrices = FEED_FORWARD_MATRICES[model.feed_forward]
  attended = float(seq_len**2) if attended is None else attended
  outputs = seq_len if num_outputs is None else min(num_outputs, seq_len)

  def layer(queries: int) -> float:
    key_and_value = 2 * 2 * d * d * seq_len
    query_and_out = 2 * 2 * d * d * queries
    # Scores, and the sum of values.
    attention = 2 * 2 * d * attended * queries / seq_len
    mlp = 2 * matrices * d * f * queries
    return key_and_value + query_and_out + attention + mlp

  layers = (model.num_layers - 1) * layer(seq_len) + layer(outputs)
  pooler = num_pooled * 2 * d * d
  return round(batch_size * (layers + pooler))


def mlm_flops(model: ModelSizes, batch_size: int, num_masked: int) -> int:
  """Returns the FLOPs of one forward pass of the masked LM head.

  Args:
    model: Sizes; `config.model`.
    batch_size: Rows B.
    num_masked: Masked slots P of a row, used or not: only these are computed.
  """
  d = model.hidden_size
  return batch_size * num_masked * (2 * d * d + 2 * d * model.vocab_size)


def pretrain_step_flops(
  model: ModelSizes,
  batch_size: int,
  seq_len: int,
  num_masked: int,
  *,
  num_sequences: int = 1,
  attended: float | None = None,
  all_positions: bool = False,
) -> int:
  """Returns the FLOPs of one training step of masked LM and next sentence.

  The backward pass takes two multiplications for every one of the forward pass:
  gradients of the inputs and gradients of the weights.

  Args:
    model: Sizes; `config.model`.
    batch_size: Rows B of the global batch.
    seq_len: Positions L of a row.
    num_masked: Masked slots P of a row.
    num_sequences: Sequences S that a row has room for.
    attended: As for `encoder_flops`.
    all_positions: Count the last layer, and attention, at all positions.
  """
  forward = encoder_flops(
    model,
    batch_size,
    seq_len,
    num_outputs=None if all_positions else num_masked + num_sequences,
    num_pooled=num_sequences,
    attended=None if all_positions else attended,
  )
  forward += mlm_flops(model, batch_size, num_masked)
  # Next sentence, 2 labels.
  forward += batch_size * num_sequences * 2 * model.hidden_size * 2
  return 3 * forward


def task_step_flops(
  model: ModelSizes,
  batch_size: int,
  seq_len: int,
  pooled: bool,
  *,
  num_sequences: int = 1,
  attended: float | None = None,
  all_positions: bool = False,
) -> int:
  """Returns the FLOPs of one training step of a task.

  Args:
    model: Sizes; `config.model`.
    batch_size: Rows B of the global batch.
    seq_len: Positions L of a row.
    pooled: The head reads [CLS] alone, through the pooler; otherwise it reads
      every position. Its own few products are not counted.
    num_sequences: Sequences S that a row has room for.
    attended: As for `encoder_flops`.
    all_positions: Count the last layer, and attention, at all positions.
  """
  return 3 * encoder_flops(
    model,
    batch_size,
    seq_len,
    num_outputs=num_sequences if pooled and not all_positions else None,
    num_pooled=num_sequences if pooled else 0,
    attended=None if all_positions else attended,
  )


def mfu(
  flops_per_step: float, secs: float, num_devices: int, device_kind: str
) -> float | None:
  """Returns model FLOPs utilisation: the part of the peak that was used.

  Args:
    flops_per_step: Model FLOPs of a step of the global batch.
    secs: Seconds that the step took.
    num_devices: jax devices in the mesh.
    device_kind: `jax.devices()[0].device_kind`.

  Returns:
    A number between 0 and 1, or None for a chip that `chips.PEAK_FLOPS` lacks.

  Source: the term is from PaLM, arXiv 2204.02311, appendix B.
  """
  peak = chips.PEAK_FLOPS.get(device_kind)
  if peak is None:
    return None
  return flops_per_step / (secs * num_devices * peak)
