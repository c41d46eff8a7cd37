"""A bidirectional LSTM over the sequences of rows, for the head of a task.

The paper puts one on its left-to-right model at fine-tuning, so that the head
of questions sees both sides.

Source: Hochreiter and Schmidhuber 1997; BERT paper, section 5.1.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models import layers
from bert_jax.models.config import ModelConfig


class Direction(nn.Module):
  """An LSTM that reads each sequence of a row in one direction.

  Attributes:
    config: a `ModelConfig`.
    width: H, the width of its output and of its memory.
    is_backward: whether it begins at the end of a sequence.
  """

  config: ModelConfig
  width: int
  is_backward: bool

  @nn.compact
  def __call__(self, x, sequence_ids):
    """Maps [B, L, D] to [B, L, H]; the state starts as zeros in each sequence.

    Args:
      x: [B, L, D].
      sequence_ids: [B, L] int32, the number of each token's sequence.
    """
    gates = layers.Dense(self.config, 4 * self.width, name="in")(x)
    kernel = layers.kernel(self, (self.width, 4 * self.width))
    kernel = kernel.astype(jnp.float32)
    if self.is_backward:
      gates, sequence_ids = gates[:, ::-1], sequence_ids[:, ::-1]
    starts = jnp.diff(sequence_ids, axis=1, prepend=-1) != 0  # [B, L]

    def step(carry, inputs):
      gate, is_start = inputs
      memory, output = (jnp.where(is_start[:, None], 0.0, c) for c in carry)
      total = gate.astype(jnp.float32) + output @ kernel
      let_in, forget, new, let_out = jnp.split(total, 4, axis=-1)
      memory = jax.nn.sigmoid(forget) * memory
      memory += jax.nn.sigmoid(let_in) * jnp.tanh(new)
      output = jax.nn.sigmoid(let_out) * jnp.tanh(memory)
      return (memory, output), output

    zeros = jnp.zeros((x.shape[0], self.width), jnp.float32)
    over_time = (jnp.moveaxis(gates, 1, 0), starts.T)
    _, found = jax.lax.scan(step, (zeros, zeros), over_time)
    found = jnp.moveaxis(found, 0, 1).astype(x.dtype)  # [L, B, H] -> [B, L, H]
    return found[:, ::-1] if self.is_backward else found


class BiLstm(nn.Module):
  """Both directions side by side, each with half of the width.

  Attributes:
    config: a `ModelConfig`.
  """

  config: ModelConfig

  def setup(self):
    half = self.config.hidden_size // 2
    self.forward = Direction(self.config, half, is_backward=False)
    self.backward = Direction(self.config, half, is_backward=True)

  def __call__(self, x, sequence_ids):
    """Maps [B, L, D] to [B, L, D]; see `Direction`."""
    both = (self.forward, self.backward)
    return jnp.concatenate([one(x, sequence_ids) for one in both], axis=-1)
