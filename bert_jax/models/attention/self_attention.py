"""Multi-head self-attention as a module, whichever program computes it."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models import layers
from bert_jax.models.attention import masks
from bert_jax.models.attention import programs
from bert_jax.models.config import ModelConfig


class HeadKernel(nn.Module):
  """The parameters of one projection to heads: kernel [D, N, H], bias [N, H].

  Attributes:
    config: a `ModelConfig`.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self):
    cfg = self.config
    heads = (cfg.num_heads, cfg.head_dim)
    flat = (cfg.hidden_size, cfg.hidden_size)
    kernel = layers.kernel(self, (cfg.hidden_size, *heads), flat)
    return kernel, layers.bias(self, heads)


class SelfAttention(nn.Module):
  """Every position attends to every visible position of its row.

  Attributes:
    config: a `ModelConfig`, whose `attention` names the program.

  Source: Vaswani et al. 2017, section 3.2.
  """

  config: ModelConfig

  def setup(self):
    self.query = HeadKernel(self.config)
    self.key = HeadKernel(self.config)
    self.value = HeadKernel(self.config)
    self.out = layers.Dense(self.config, self.config.hidden_size, heads=True)

  def __call__(self, x, mask, *, deterministic, queries=None):
    """Maps hidden states [B, L, D] to [B, L, D].

    Args:
      x: [B, L, D] hidden states.
      mask: a float32 bias, broadcastable to [B, N, Q, L], which plain attention
        adds to the scores; or `masks.Visible` for the program that the config
        names.
      deterministic: True switches dropout off.
      queries: [B, Q, D], the hidden states of the queries, with a bias as the
        mask; None: all of `x`.

    Returns:
      [B, Q, D], before dropout, residual and LayerNorm.

    Raises:
      ValueError: the program lacks the dropout that the config sets.
    """
    cfg = self.config
    program = programs.program_of(cfg)
    rate = 0.0 if deterministic else cfg.attention_dropout_rate
    rng = self.make_rng("dropout") if rate else None
    if not isinstance(mask, masks.Visible):
      program = programs.PROGRAMS["plain"]
    elif rate:
      programs.check_dropout(cfg)
    if program.layout != "heads":
      return self.out(self._flat(program, x, mask, rng, rate))

    # [B, L, D] -> [B, N, L, H]. There are three matmuls, because on a CPU it
    # takes longer to join their kernels than one matmul saves.
    def project(x, module):
      kernel, bias = module()
      return jnp.swapaxes(layers.dense(x, kernel, bias), 1, 2)

    query = project(x if queries is None else queries, self.query)
    key, value = project(x, self.key), project(x, self.value)
    context = program.attend(query, key, value, mask, rng, rate)
    return self.out(jnp.swapaxes(context, 1, 2))  # [B, N, Q, H] -> [B, Q, D]

  def _flat(self, program, x, mask, rng, rate):
    """Returns the context [B, L, N, H] of a program with flat heads."""
    head_dim = self.config.head_dim
    pairs = []
    for module in (self.query, self.key, self.value):
      kernel, bias = module()
      pairs.append((kernel.reshape(x.shape[-1], -1), bias.reshape(-1)))
    if program.layout == "joined":
      kernels, biases = zip(*pairs, strict=True)
      pairs = [(jnp.concatenate(kernels, 1), jnp.concatenate(biases))]
    qkv = tuple(layers.dense(x, w, jax.lax.stop_gradient(b)) for w, b in pairs)
    biases = tuple(bias for _, bias in pairs)
    context = program.attend(qkv, biases, mask, rng, rate, head_dim)
    return context.reshape(*context.shape[:2], -1, head_dim)
