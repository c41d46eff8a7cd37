"""Matrices of 8-bit integers, which take a quarter of the memory.

Each output channel of a matrix has a scale of its own, and zero stays zero:
x is about q * scale with q from -127 to 127. Tables of embeddings have a scale
for each row. Vectors, such as biases and norms, stay as they are.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

# The ends of the names of the two parts of a matrix.
INTEGERS, SCALE = "/int8", "/scale_of_int8"
_MOST = 127


def _axes(path: str, num_dims: int) -> tuple[int, ...] | None:
  """Returns the axes that share a scale; None if the parameter stays as it is.

  Args:
    path: the path of the parameter.
    num_dims: the number of its dimensions.
  """
  name = path.rpartition("/")[2]
  if name in ("embedding", "decoder") and num_dims == 2:
    return (1,)  # [V, D]: a scale for each row
  if name != "kernel" or num_dims < 2:
    return None
  if "attention/out/" in path and num_dims == 3:
    return (0, 1)  # [N, H, D]
  return (0,)  # [D, F], [D, N, H]


def quantize(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns parameters with 8-bit integers in the place of matrices.

  Args:
    params: path -> array, layers unrolled.

  Returns:
    For each matrix PATH/int8 and PATH/scale_of_int8; other parameters as given.
  """
  found: dict[str, np.ndarray] = {}
  for path, array in params.items():
    axes = _axes(path, array.ndim)
    if axes is None:
      found[path] = array
      continue
    wide = array.astype(np.float32)
    scale = np.abs(wide).max(axis=axes, keepdims=True) / _MOST
    safe = np.where(scale == 0, 1.0, scale)
    found[path + INTEGERS] = np.round(wide / safe).astype(np.int8)
    found[path + SCALE] = scale.astype(np.float32)
  return found


def dequantize(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what `quantize` was given, but for rounding; it may be jitted."""
  found = {}
  for path, array in params.items():
    if path.endswith(INTEGERS):
      name = path.removesuffix(INTEGERS)
      found[name] = array.astype(jnp.float32) * params[name + SCALE]
    elif not path.endswith(SCALE):
      found[path] = array
  return found
