"""Multi-head self-attention as a module, whichever program computes it."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax.models import layers
from bert_jax.models.attention import masks
from bert_jax.models.attention import plain
from bert_jax.models.attention import positions
from bert_jax.models.attention import programs
from bert_jax.models.config import ModelConfig


class HeadKernel(nn.Module):
  """The parameters of one projection to heads: kernel [D, N, H], bias [N, H].

  The bias is None if the model has none here.

  Attributes:
    config: a `ModelConfig`.
    num_heads: N, which is smaller for keys and values that heads share.
  """

  config: ModelConfig
  num_heads: int

  @nn.compact
  def __call__(self):
    cfg = self.config
    heads = (self.num_heads, cfg.head_dim)
    flat = (cfg.hidden_size, self.num_heads * cfg.head_dim)
    kernel = layers.kernel(self, (cfg.hidden_size, *heads), flat)
    return kernel, layers.bias(self, heads) if cfg.attention_bias else None


class SelfAttention(nn.Module):
  """Every position attends to every visible position of its row.

  Attributes:
    config: a `ModelConfig`, whose `attention` names the program.

  Source: Vaswani et al. 2017, section 3.2.
  """

  config: ModelConfig

  def setup(self):
    self.query = HeadKernel(self.config, self.config.num_heads)
    self.key = HeadKernel(self.config, self.config.key_heads)
    self.value = HeadKernel(self.config, self.config.key_heads)
    self.out = layers.Dense(
      self.config,
      self.config.hidden_size,
      heads=True,
      has_bias=self.config.attention_bias,
    )

  def __call__(self, x, mask, *, deterministic, queries=None, turns=None):
    """Maps hidden states [B, L, D] to [B, L, D].

    Args:
      x: [B, L, D] hidden states.
      mask: a float32 bias, broadcastable to [B, N, Q, L], which plain attention
        adds to the scores; or `masks.Visible`, `masks.Window` or `masks.Before`
        for the program that the config names.
      deterministic: True switches dropout off.
      queries: [B, Q, D], the hidden states of the queries, with a bias as the
        mask; None: all of `x`.
      turns: the rotations of the queries and those of the keys, from
        `positions.rotation`, or what a table of distances gives for them; None:
        the model has neither.

    Returns:
      [B, Q, D], before dropout, residual and LayerNorm.

    Raises:
      ValueError: the program lacks the dropout that the config sets.
    """
    cfg = self.config
    program = programs.program_of(cfg)
    rate = 0.0 if deterministic else cfg.attention_dropout_rate
    rng = self.make_rng("dropout") if rate else None
    is_window = isinstance(mask, masks.Window)
    is_before = isinstance(mask, masks.Before)
    if not (is_window or is_before or isinstance(mask, masks.Visible)):
      program = programs.PROGRAMS["plain"]
    elif rate:
      programs.check_dropout(cfg)
    row = positions.row_of(cfg.attention_positions)
    rotate: Any = row.rotate
    if program.layout != "heads":
      return self.out(self._flat(program, x, mask, rng, rate, rotate, turns))

    # [B, L, D] -> [B, N, L, H]. There are three matmuls, because on a CPU it
    # takes longer to join their kernels than one matmul saves.
    def project(x, module, turn=None):
      x = layers.project(x, *module())
      turns = rotate is not None and turn is not None
      x = self._share_heads(rotate(x, turn) if turns else x)
      return jnp.swapaxes(x, 1, 2)

    both: Any = turns or (None, None)
    of_queries, of_keys = both
    query = project(x if queries is None else queries, self.query, of_queries)
    key, value = project(x, self.key, of_keys), project(x, self.value)
    if is_window:
      self._show(query, key, lambda: masks.window_bias(mask, cfg.local_radius))
      attend_window: Any = program.attend_window
      context = attend_window(
        query, key, value, mask, rng, rate, cfg.local_radius
      )
    elif is_before:
      self._show(query, key, lambda: masks.causal_bias(mask.visible))
      attend_causal: Any = program.attend_causal
      context = attend_causal(query, key, value, mask, rng, rate)
    elif row.table is not None:
      # Three kinds of scores are added up, each of variance H.
      relative = positions.relative_scores(
        query,
        key,
        project(of_keys[0], self.query),
        project(of_keys[0], self.key),
        of_queries[1],
      )
      bias = mask + relative * (3 * cfg.head_dim) ** -0.5
      query = query * 3**-0.5
      self._show(query, key, lambda: bias)
      context = plain.attend_biased(query, key, value, bias, rng, rate)
    elif row.learns_bias:
      self._show(query, key, lambda: mask)
      context = plain.attend_biased(query, key, value, mask, rng, rate)
    else:
      self._show(query, key, lambda: mask)
      context = program.attend(query, key, value, mask, rng, rate)
    return self.out(jnp.swapaxes(context, 1, 2))  # [B, N, Q, H] -> [B, Q, D]

  def _show(self, query, key, bias):
    """Keeps the probabilities if the caller asks for the collection "maps".

    Args:
      query: [B, N, Q, H].
      key: [B, N, K, H].
      bias: returns the bias, broadcastable to [B, N, Q, K].
    """
    if self.is_mutable_collection("maps") and not self.is_initializing():
      self.sow("maps", "probs", plain.probabilities(query, key, bias()))

  def _share_heads(self, x):
    """Repeats each head of keys or values for the queries that share it.

    Args:
      x: [B, L, K, H], K heads.

    Returns:
      [B, L, N, H].

    Source: Ainslie et al. 2023, arXiv:2305.13245, section 2.2.
    """
    times = self.config.num_heads // x.shape[2]
    return x if times == 1 else jnp.repeat(x, times, axis=2)

  def _flat(self, program, x, mask, rng, rate, rotate, turns):
    """Returns the context [B, L, N, H] of a program with flat heads."""
    head_dim = self.config.head_dim
    modules = (self.query, self.key, self.value)
    # The program sums the gradients of biases, unless something else is done
    # to query and key after the biases.
    cfg = self.config
    is_shared = cfg.key_heads != cfg.num_heads
    if turns is not None or is_shared or not cfg.attention_bias:
      of_queries, of_keys = turns or (None, None)
      parts, zeros = [], []
      for module, turn in zip(
        modules, (of_queries, of_keys, None), strict=True
      ):
        y = layers.project(x, *module())
        y = self._share_heads(y if turn is None else rotate(y, turn))
        parts.append(y.reshape(*y.shape[:2], -1))
        zeros.append(jnp.zeros(y.shape[2] * head_dim, jnp.float32))
      if program.layout == "joined":
        parts = [jnp.concatenate(parts, -1)]
        zeros = [jnp.concatenate(zeros)]
      context = program.attend(
        tuple(parts), tuple(zeros), mask, rng, rate, head_dim
      )
      return context.reshape(*context.shape[:2], -1, head_dim)
    pairs = []
    for module in modules:
      kernel, bias = module()
      pairs.append((kernel.reshape(x.shape[-1], -1), bias.reshape(-1)))
    if program.layout == "joined":
      kernels, joined = zip(*pairs, strict=True)
      pairs = [(jnp.concatenate(kernels, 1), jnp.concatenate(joined))]
    qkv = tuple(layers.dense(x, w, jax.lax.stop_gradient(b)) for w, b in pairs)
    biases = tuple(bias for _, bias in pairs)
    context = program.attend(qkv, biases, mask, rng, rate, head_dim)
    return context.reshape(*context.shape[:2], -1, head_dim)
