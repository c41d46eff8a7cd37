"""How attention knows positions: rotations, or biases of the scores.

To add a way, write its row here and add its name to `config.SWITCHES`.

Shapes: B batch, L length, N heads, H head_dim.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.models import layers
from bert_jax.models.config import ModelConfig
from bert_jax.models.dropout import Dropout


def rotation(
  theta: float, head_dim: int, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the cosines and sines by which positions rotate.

  Args:
    theta: the base of the angles.
    head_dim: H, an even number.
    positions: [B, L] int32.

  Returns:
    Two arrays float32 [B, L, H / 2].

  Source: Su et al. 2021, arXiv:2104.09864, section 3.4.
  """
  turns = 1.0 / theta ** (
    np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
  )
  by_dim = jnp.asarray(turns.astype(np.float32))[None, None]
  angles = positions.astype(jnp.float32)[:, :, None] * by_dim
  return jnp.cos(angles), jnp.sin(angles)


def rotate_halves(x: jax.Array, by: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates dimension i with dimension i + H / 2.

  Args:
    x: [B, L, N, H].
    by: the cosines and sines [B or 1, L, H / 2] of `rotation`.
  """
  cos, sin = (part[:, :, None] for part in by)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  both = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(both, -1).astype(x.dtype)


def rotate_pairs(x: jax.Array, by: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates dimension 2 i with dimension 2 i + 1; see `rotate_halves`."""
  cos, sin = (part[:, :, None] for part in by)
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  first, second = pairs[..., 0], pairs[..., 1]
  both = (first * cos - second * sin, second * cos + first * sin)
  return jnp.stack(both, -1).reshape(x.shape).astype(x.dtype)


def alibi_slopes(num_heads: int) -> np.ndarray:
  """Returns the slope of each head: float32 [N].

  The slopes of a power of two are a geometric series. Other numbers take those
  of the next lower power, then every second slope of the next higher one.

  Example:
    >>> alibi_slopes(2).tolist()
    [0.0625, 0.00390625]

  Source: Press et al. 2022, arXiv:2108.12409, section 3 and its code.
  """
  power = 2 ** math.floor(math.log2(num_heads))
  slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
  more = [2.0 ** (-8.0 * (i + 1) / (2 * power)) for i in range(2 * power)]
  return np.array((slopes + more[0::2])[:num_heads], np.float32)


def _distances(length: int) -> np.ndarray:
  """Returns the position of the key minus that of the query: [L, L]."""
  at = np.arange(length)
  return at[None, :] - at[:, None]


class Alibi(nn.Module):
  """Subtracts the slope of a head times the distance.

  Attributes:
    config: a `ModelConfig`.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, length):
    """Returns the bias float32 [1, N, L, L]."""
    slopes = alibi_slopes(self.config.num_heads)[:, None, None]
    distance = np.abs(_distances(length)).astype(np.float32)
    return jnp.asarray(-slopes * distance[None])[None]


def buckets(
  length: int, num_buckets: int, max_distance: int = 128
) -> np.ndarray:
  """Returns the bucket of the distance from each query to each key.

  Half of the buckets are for keys after the query. In each direction, half of
  the buckets are for one distance each, and the others grow logarithmically.

  Args:
    length: L.
    num_buckets: the number of buckets, an even number.
    max_distance: from this distance on, all share the last bucket.

  Returns:
    int32 [L, L].

  Source: Raffel et al. 2020, arXiv:1910.10683, section 2.1 and its code.
  """
  half = num_buckets // 2
  distance = _distances(length)
  exact = half // 2
  far = np.abs(distance)
  ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
  step = ratio / np.float32(math.log(max_distance / exact))
  large = exact + (step * (half - exact)).astype(np.int32)
  near = np.where(far < exact, far, np.minimum(large, half - 1))
  return (np.where(distance > 0, half, 0) + near).astype(np.int32)


class BucketBias(nn.Module):
  """A learned bias for each head and bucket of distances, for all layers.

  Attributes:
    config: a `ModelConfig`.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, length):
    """Returns the bias float32 [1, N, L, L]."""
    cfg = self.config
    table = self.param(
      "embedding",
      layers.kernel_init(cfg),
      (cfg.relative_buckets, cfg.num_heads),
      layers.storage_dtype(cfg),
    )
    found = buckets(length, cfg.relative_buckets, cfg.relative_distance)
    bias = layers.look_up(table, jnp.asarray(found), jnp.float32)
    return jnp.moveaxis(bias, -1, 0)[None]


def log_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
  """Returns the row of the table of distances for each query and key.

  The distance is the position of the query minus that of the key. Up to half of
  the buckets away, each distance has its own row; beyond, rows are logarithmic.

  Args:
    length: L.
    num_buckets: k, the buckets of each direction.
    max_distance: the distance of the last bucket, plus one.

  Returns:
    int32 [L, L], from 0 to 2 k - 1.

  Source: He et al. 2021, arXiv:2006.03654, section 3.1; microsoft/DeBERTa.
  """
  distance = -_distances(length)
  half = num_buckets // 2
  far = np.maximum(np.abs(distance), half).astype(np.float32)
  ratio = np.log(far / np.float32(half)) / np.float32(
    math.log((max_distance - 1) / half)
  )
  log = (half + np.ceil(ratio * (half - 1))).astype(np.int32)
  bucket = np.where(np.abs(distance) <= half, distance, np.sign(distance) * log)
  last = 2 * num_buckets - 1
  return np.clip(bucket + num_buckets, 0, last).astype(np.int32)


class DistanceTable(nn.Module):
  """A vector for each bucket of distances, for all layers.

  Attributes:
    config: a `ModelConfig`.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, length, deterministic):
    """Returns the vectors [1, 2 k, D], and the row of each pair [1, L, L]."""
    cfg = self.config
    table = self.param(
      "embedding",
      layers.kernel_init(cfg),
      (2 * cfg.relative_buckets, cfg.hidden_size),
      layers.storage_dtype(cfg),
    )
    x = layers.NORMS[cfg.norm](cfg, name="norm")(
      table.astype(layers.compute_dtype(cfg))
    )
    x = Dropout(cfg.dropout_rate, name="dropout")(
      x, deterministic=deterministic
    )
    rows = log_buckets(length, cfg.relative_buckets, cfg.relative_distance)
    return x[None], jnp.asarray(rows)[None]


def relative_scores(query, key, query_table, key_table, rows):
  """Returns the scores of contents and distances, without their scale.

  Args:
    query: [B, N, Q, H].
    key: [B, N, L, H].
    query_table: [1, N, 2 k, H], the projected vectors of distances.
    key_table: [1, N, 2 k, H].
    rows: [B or 1, Q, L] int32, the row of each pair.

  Returns:
    float32 [B, N, Q, L].

  Source: He et al. 2021, arXiv:2006.03654, equation 4.
  """

  def products(x, table):
    return jnp.einsum(
      "bnqh,nkh->bnqk", x, table[0], preferred_element_type=jnp.float32
    )

  shape = (query.shape[0], query.shape[1], *rows.shape[1:])
  at = jnp.broadcast_to(rows[:, None], shape)  # [B, N, Q, L]
  by_query = jnp.take_along_axis(products(query, key_table), at, axis=3)
  by_key = jnp.take_along_axis(
    products(key, query_table), jnp.swapaxes(at, 2, 3), axis=3
  )
  return by_query + jnp.swapaxes(by_key, 2, 3)


def _gather_rows(x, positions):
  """Picks positions of rows that may all be the same: [B or 1, L, ...]."""
  x = jnp.broadcast_to(x, (positions.shape[0], *x.shape[1:]))
  return layers.gather_positions(x, positions)


def of_queries(config, turns, only):
  """Returns the part of `turns` for some of the queries.

  Args:
    config: the config of the model.
    turns: the result of `rotation` or of a table, or None.
    only: [B, Q] int32.
  """
  if turns is None:
    return None
  if row_of(config.attention_positions).table is not None:
    return turns[0], _gather_rows(turns[1], only)
  return tuple(_gather_rows(x, only) for x in turns)


@dataclasses.dataclass(frozen=True)
class Row:
  """One way for attention to know positions.

  Attributes:
    rotate: turns query and key [B, L, N, H] by the result of `rotation`; None:
      they stay as they are.
    bias: a module that adds to the scores; None: nothing is added.
    learns_bias: whether that bias has a gradient.
    table: a module that gives vectors of distances, which query and key attend
      to; None: there are none.
  """

  rotate: Callable[[jax.Array, Any], jax.Array] | None = None
  bias: Callable[[ModelConfig], Any] | None = None
  learns_bias: bool = False
  table: Callable[[ModelConfig], Any] | None = None

  @property
  def needs_scores(self) -> bool:
    """Whether something is added to the scores."""
    return self.bias is not None or self.table is not None


# `model.attention_positions` -> its row.
ROWS = {
  "none": Row(),
  "rope": Row(rotate=rotate_halves),
  "rope_pairs": Row(rotate=rotate_pairs),
  "alibi": Row(bias=Alibi),
  "t5": Row(bias=BucketBias, learns_bias=True),
  "disentangled": Row(table=DistanceTable),
}


def row_of(name: str) -> Row:
  """Returns the row of `model.attention_positions`."""
  return ROWS[name]


def rotations(
  config: ModelConfig, positions: jax.Array | None, length: int
) -> dict[bool, tuple[jax.Array, jax.Array]] | None:
  """Returns the rotations of layers with full and with local attention.

  Args:
    config: the config of the model.
    positions: [B, L] int32; None: 0..L-1 in every row.
    length: L.

  Returns:
    Whether a layer is local -> the cosines and sines; None if the model does
    not rotate.
  """
  if row_of(config.attention_positions).rotate is None:
    return None
  if positions is None:
    positions = jnp.arange(length, dtype=jnp.int32)[None]
  thetas = {False: config.rope_theta}
  if config.attention_pattern == "local":
    thetas[True] = config.local_rope_theta or config.rope_theta
  return {
    is_local: rotation(theta, config.head_dim, positions)
    for is_local, theta in thetas.items()
  }
