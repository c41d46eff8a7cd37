"""What stands on the encoder: masked words, and linear scores of classes."""

from typing import TYPE_CHECKING

from flax import linen as nn
import jax
import jax.numpy as jnp

if TYPE_CHECKING:  # bert.py imports this file
  from bert_jax.models.bert import ModelConfig


def gather_positions(x, positions):
  """Picks positions of every row: [B, L, D], [B, P] -> [B, P, D]."""
  return jnp.take_along_axis(x, positions[:, :, None], axis=1)


@jax.custom_vjp
def vocab_logits(x, table, bias):
  """Returns float32 `x @ table.T + bias`: a score for every word.

  As in `attention.dense`, the gradient of the table is laid out and stored as
  the table is.

  Args:
    x: [B, P, D].
    table: [V, D].
    bias: [V].

  Returns:
    float32 [B, P, V].
  """
  logits = jax.lax.dot_general(
    x,
    table.astype(x.dtype),
    (((2,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  return logits + bias.astype(jnp.float32)[None, None]


def _vocab_logits_forward(x, table, bias):
  return vocab_logits(x, table, bias), (x, table, bias)


def _vocab_logits_backward(residuals, grad):
  x, table, bias = residuals
  rows, columns = x.reshape(-1, x.shape[-1]), grad.reshape(-1, bias.size)
  grad_bias = jnp.sum(columns, 0, dtype=bias.dtype)
  columns = columns.astype(x.dtype)
  grad_x = jax.lax.dot_general(
    columns, table.astype(x.dtype), (((1,), (0,)), ((), ()))
  )
  grad_table = jax.lax.dot_general(
    columns, rows, (((0,), (0,)), ((), ())), preferred_element_type=table.dtype
  )
  return grad_x.reshape(x.shape), grad_table, grad_bias


vocab_logits.defvjp(_vocab_logits_forward, _vocab_logits_backward)


class MlmHead(nn.Module):
  """Scores every word of the vocabulary at the masked positions.

  Only the masked positions go through the head; with 20 of 128 masked that
  is a sixth of the largest matmul of the model.

  Attributes:
    config: a `ModelConfig`.
  """

  config: "ModelConfig"

  @nn.compact
  def __call__(self, hidden, masked_positions, word_table):
    """Maps hidden states to vocabulary logits.

    Args:
      hidden: [B, L, D] output of the encoder.
      masked_positions: [B, P] int, positions to predict. None: `hidden` has
        these positions only, [B, P, D].
      word_table: [V, D], the word embedding, tied with the output weights.

    Returns:
      float32 [B, P, V].

    Source: google-research/bert run_pretraining.py:240-285.
    """
    cfg = self.config
    x = hidden
    if masked_positions is not None:
      x = gather_positions(x, masked_positions)
    x = cfg.dense(cfg.hidden_size, name="dense")(x)
    x = cfg.layer_norm(name="norm")(cfg.activation(x))
    bias = self.param(
      "bias", nn.initializers.zeros_init(), (cfg.vocab_size,), cfg.storage_dtype
    )
    return vocab_logits(x, word_table, bias)


class LinearHead(nn.Module):
  """Scores of a few classes: next sentence (K = 2), or a task's labels.

  Attributes:
    config: a `ModelConfig`.
    num_outputs: K.
  """

  config: "ModelConfig"
  num_outputs: int

  @nn.compact
  def __call__(self, x):
    """Maps [..., D] to float32 [..., K].

    Source: google-research/bert run_pretraining.py:288-304,
    run_classifier.py:590-616, run_squad.py:575-600.
    """
    cfg = self.config
    kernel = self.param(
      "kernel",
      cfg.kernel_init,
      (cfg.hidden_size, self.num_outputs),
      cfg.storage_dtype,
    )
    bias = self.param(
      "bias",
      nn.initializers.zeros_init(),
      (self.num_outputs,),
      cfg.storage_dtype,
    )
    logits = jax.lax.dot_general(
      x,
      kernel.astype(x.dtype),
      (((x.ndim - 1,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    return logits + _last_axis(bias, logits.ndim)


def _last_axis(vector, ndim):
  return vector.astype(jnp.float32).reshape((1,) * (ndim - 1) + (-1,))
