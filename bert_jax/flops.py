"""Counts the arithmetic that a model asks for, and what part of a chip it uses.

These are model FLOPs: what the mathematics needs, whatever the program does.
Counted are matrix multiplications, 2 * m * n * k each, among them attention
scores and the weighted sum of values, over all L * L pairs of positions. Left
out are the embedding lookup, softmax, normalisation, activations, dropout, the
losses and the optimizer; and everything that rematerialisation computes a
second time, which therefore lowers the utilisation.
Padding counts like any other position.
"""

from typing import Protocol


class ModelSizes(Protocol):
  """The keys of the model config that are read here."""

  num_layers: int
  hidden_size: int
  mlp_dim: int
  vocab_size: int


# Dense bfloat16 FLOPs per second of one jax device, by `device_kind`.
# TPU v2, v3 and 7x have two devices a chip: half of the published number. The
# others have one, v4 and v5p by fusing two cores; a v4 or v5p that is set up
# with a device per core has half of what stands here.
# Source: cloud.google.com/tpu/docs, a page per version; NVIDIA data sheets of
# the A100 and the H100 SXM, without sparsity.
PEAK_FLOPS = {
  "TPU v2": 23e12,
  "TPU v3": 61.5e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "TPU7x": 1153.5e12,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA H100 80GB HBM3": 989e12,
}


def encoder_flops(model: ModelSizes, batch_size: int, seq_len: int) -> int:
  """Returns the FLOPs of one forward pass of the encoder with its pooler.

  The number of heads plays no role: N heads of D / N cost as much as one of D.

  Args:
    model: Sizes; `config.model`.
    batch_size: Rows B.
    seq_len: Positions L of a row.

  Example:
    BERT-base has 12 * (4 * 768**2 + 2 * 768 * 3072) = 85e6 weights in its
    layers: a row of 128 takes 2 * 85e6 * 128 = 21.7e9, attention 0.6e9 more:

    >>> import types
    >>> base = types.SimpleNamespace(
    ...   num_layers=12, hidden_size=768, mlp_dim=3072, vocab_size=30522
    ... )
    >>> f"{encoder_flops(base, batch_size=1, seq_len=128):.3g}"
    '2.23e+10'
  """
  d, f = model.hidden_size, model.mlp_dim
  projections = 4 * 2 * d * d  # Query, key, value and output, per position.
  attention = 2 * 2 * seq_len * d  # Scores, and the sum of values.
  mlp = 2 * 2 * d * f
  layers = model.num_layers * seq_len * (projections + attention + mlp)
  pooler = 2 * d * d
  return batch_size * (layers + pooler)


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
  model: ModelSizes, batch_size: int, seq_len: int, num_masked: int
) -> int:
  """Returns the FLOPs of one training step of masked LM and next sentence.

  The backward pass takes two multiplications for every one of the forward pass:
  gradients of the inputs and gradients of the weights.

  Args:
    model: Sizes; `config.model`.
    batch_size: Rows B of the global batch.
    seq_len: Positions L of a row.
    num_masked: Masked slots P of a row.
  """
  forward = encoder_flops(model, batch_size, seq_len)
  forward += mlm_flops(model, batch_size, num_masked)
  forward += batch_size * 2 * model.hidden_size * 2  # Next sentence, 2 labels.
  return 3 * forward


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
    A number between 0 and 1, or None for a chip that is not in `PEAK_FLOPS`.

  Source: the term is from PaLM, arXiv 2204.02311, appendix B.
  """
  peak = PEAK_FLOPS.get(device_kind)
  if peak is None:
    return None
  return flops_per_step / (secs * num_devices * peak)
