"""Trees of parameters: nested or flat, layers stacked or not, heads flat."""

from collections.abc import Mapping
import re
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

_HEAD_MODULES = ("query", "key", "value")
_LAYER = re.compile(r"((?:.+/)?)layer_(\d+)/(.+)")
_STACKED = re.compile(r"((?:.+/)?)layers/(.+)")


# --- trees, nested and flat --------------------------------------------------


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns a flat tree: {"a": {"b": 1}} -> {"a/b": 1}."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{key}/")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a nested tree: the inverse of `flatten`."""
  return traverse_util.unflatten_dict(flat, sep="/")


def stack(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Converts a flat tree from one entry for each layer to the scanned form.

  Args:
    flat: path -> array. Paths with "layer_0", "layer_1", ... become one path
      with "layers", whose array has a leading axis [num_layers]. Other paths
      stay as they are.

  Example:
    >>> stack({"layer_0/b": np.ones(2), "layer_1/b": np.ones(2)})[
    ...   "layers/b"
    ... ].shape
    (2, 2)
  """
  layers: dict[str, dict[int, Any]] = {}
  result = {}
  for path, array in flat.items():
    if match := _LAYER.fullmatch(path):
      name = f"{match[1]}layers/{match[3]}"
      layers.setdefault(name, {})[int(match[2])] = array
    else:
      result[path] = array
  for name, arrays in layers.items():
    result[name] = np.stack([arrays[i] for i in sorted(arrays)])
  return result


def unstack(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Converts a flat tree from the scanned form: the inverse of `stack`."""
  result = {}
  for path, array in flat.items():
    if match := _STACKED.fullmatch(path):
      for i in range(array.shape[0]):
        result[f"{match[1]}layer_{i}/{match[2]}"] = array[i]
    else:
      result[path] = array
  return result


def num_layers(flat: Mapping[str, Any]) -> int:
  """Returns how many layers a flat tree has, whether unrolled or scanned."""
  count = 0
  for path, leaf in flat.items():
    if match := _LAYER.fullmatch(path):
      count = max(count, int(match[2]) + 1)
    elif _STACKED.fullmatch(path):
      count = max(count, leaf.shape[0] if leaf.shape else 0)
  return count


# The end of a path -> the sizes that the last axes of the array are; "" = an
# axis that is no size.
_SHOWN = {
  "embeddings/word/embedding": ("vocab_size", "hidden_size"),
  "embeddings/position/embedding": ("max_len", ""),
  "embeddings/type/embedding": ("type_vocab_size", ""),
  "embeddings/projection/kernel": ("embedding_size", "hidden_size"),
  "attention/query/kernel": ("hidden_size", "num_heads", ""),
  "mlp/in/kernel": ("", "mlp_dim"),
}


def sizes_of(
  flat: Mapping[str, Any], position_offset: int = 0
) -> dict[str, int]:
  """Returns the sizes of the group `model` that the shapes of a tree show.

  Args:
    flat: path -> array, layers stacked or not.
    position_offset: the rows of the position table before the first position.
  """
  sizes = {"num_layers": num_layers(flat)}
  for end, names in _SHOWN.items():
    path = next((path for path in flat if path.endswith(end)), None)
    if path is not None:
      shape = flat[path].shape[-len(names) :]
      # A projection, which comes later, has the width of narrow embeddings.
      sizes |= {k: v for k, v in zip(names, shape, strict=True) if k}
  if "max_len" in sizes:
    sizes["max_len"] -= position_offset
  return sizes


# --- heads as matrices -------------------------------------------------------


def _map_attention(fn, params):
  """Applies a function to the parameters of every `SelfAttention` of a tree."""
  if not isinstance(params, Mapping):
    return params
  if "out" in params and ("query" in params or "qkv" in params):
    return fn(params)
  return {name: _map_attention(fn, value) for name, value in params.items()}


def flatten_heads(params, join):
  """Turns the projections to heads, and from them, into matrices.

  A TPU stores [D, N, H] with D innermost. If a gradient has that shape, the
  compiler transposes the long operands of the product instead of the short
  result.

  Args:
    params: the parameters of any model with `SelfAttention`.
    join: whether to join query, key and value into one matrix. `SelfAttention`
      splits it and `SelfAttention._flat` joins it again, so that the compiler
      sees one matrix from the parameters to the product and back.

  Returns:
    The same tree with kernels [..., D, N * H] and biases [..., N * H] in the
    modules "query", "key" and "value", or, with `join`, [..., D, 3 * N * H] and
    [..., 3 * N * H] in "qkv"; and the kernel [..., N * H, D] in "out".
  """

  def merge(x, axis):
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

  def flatten(node):
    out = node["out"] | {
      "kernel": merge(node["out"]["kernel"], node["out"]["kernel"].ndim - 3)
    }
    heads = {
      name: jax.tree.map(lambda x: merge(x, x.ndim - 2), node[name])
      for name in _HEAD_MODULES
    }
    if join:
      parts = heads.values()
      heads = {"qkv": jax.tree.map(lambda *x: jnp.concatenate(x, -1), *parts)}
    return heads | {"out": out}

  return _map_attention(flatten, params)


def unflatten_heads(params, num_heads, separately=False, key_heads=0):
  """The inverse of `flatten_heads`.

  Args:
    params: the parameters from `flatten_heads`, or their gradients.
    num_heads: N.
    separately: whether to keep the compiler from merging this conversion into
      the products, which would undo `flatten_heads`.
    key_heads: the number of heads of keys and values; 0 = N.

  Returns:
    The tree with [..., D, N, H], [..., N, H] and [..., N, H, D].
  """
  counts = dict(
    zip(_HEAD_MODULES, (num_heads, *2 * (key_heads or num_heads,)), strict=True)
  )
  total = sum(counts.values())

  def part(x, axis, count=num_heads):
    return x.reshape(*x.shape[:axis], count, -1, *x.shape[axis + 1 :])

  def split(x):  # [..., 3 * N * H] -> three arrays
    width = x.shape[-1] // total
    first = num_heads * width
    return jnp.split(x, [first, first + counts["key"] * width], -1)

  def unflatten(node):
    if separately:
      node = jax.tree.map(jax.lax.optimization_barrier, node)
    kernel = node["out"]["kernel"]
    out = node["out"] | {"kernel": part(kernel, kernel.ndim - 2)}
    heads = {name: node[name] for name in _HEAD_MODULES if name in node}
    if not heads:
      parts = {key: split(x) for key, x in node["qkv"].items()}
      heads = {
        name: {key: found[i] for key, found in parts.items()}
        for i, name in enumerate(_HEAD_MODULES)
      }
    return {
      name: jax.tree.map(
        lambda x, count=counts[name]: part(x, x.ndim - 1, count), module
      )
      for name, module in heads.items()
    } | {"out": out}

  return _map_attention(unflatten, params)
