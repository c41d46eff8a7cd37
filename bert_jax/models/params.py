"""Trees of parameters: layers stacked or apart, heads flat, words untied."""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp

_HEAD_MODULES = ("query", "key", "value")


def word_table(params):
  """Returns the word embedding [V, D] of any model with an `Encoder`."""
  return params["encoder"]["embeddings"]["word"]["embedding"]


def _with_word_table(params, table):
  encoder = params["encoder"]
  embeddings = encoder["embeddings"] | {"word": {"embedding": table}}
  return params | {"encoder": encoder | {"embeddings": embeddings}}


def tie_gradients(grads, output):
  """Adds the gradient of the table that scores words to that of the words.

  Args:
    grads: of the parameters.
    output: {"word_table": [V, D]}, its gradient in the "output" variables of a
      `PreTrainingModel`; or {}.

  Returns:
    The gradient of the parameters when both uses of the table are one.
  """
  if not output:
    return grads
  return _with_word_table(grads, word_table(grads) + output["word_table"])


def only_words(model, params, input_ids):
  """The same model with a word table that has the words of a batch, no others.

  What differentiation by the small table gives is the gradient of these rows
  of the whole one: a word that occurs twice is looked up in one place.

  Args:
    model: a `TaskModel`, whose word table is looked up and nothing else.
    params: of the model.
    input_ids: [B, L] int32.

  Returns:
    The model and its parameters with a table [B * L, D], a row for every token
    of the batch; and the places [B, L] of its words in there.
  """
  ids = input_ids.reshape(-1)
  table = word_table(params)
  order = jnp.arange(ids.size, dtype=jnp.int32)
  first = jnp.full(len(table), ids.size, jnp.int32).at[ids].min(order)
  return (
    model.clone(config=dataclasses.replace(model.config, vocab_size=ids.size)),
    _with_word_table(params, table[ids]),
    first[ids].reshape(input_ids.shape),
  )


def stack_layers(params):
  """Converts parameters from one tree per layer to the scanned form.

  Args:
    params: parameters of any model with an `Encoder` at any depth: a dict with
      keys "layer_0", "layer_1", ... becomes one with "layers", whose leaves
      have a leading axis [num_layers].

  Returns:
    A new tree; leaves outside of the layers are passed on unchanged.

  Example:
    >>> stack_layers(
    ...   {"layer_0": {"b": jnp.ones(2)}, "layer_1": {"b": jnp.ones(2)}}
    ... )["layers"]["b"].shape
    (2, 2)
  """
  if not isinstance(params, dict):
    return params
  names = [name for name in params if name.startswith("layer_")]
  result = {
    name: stack_layers(value)
    for name, value in params.items()
    if name not in names
  }
  if names:
    names.sort(key=lambda name: int(name.removeprefix("layer_")))
    result["layers"] = jax.tree.map(
      lambda *leaves: jnp.stack(leaves), *[params[name] for name in names]
    )
  return result


def unstack_layers(params):
  """Converts parameters from the scanned form to one tree per layer.

  Args:
    params: as `stack_layers` returns them.

  Returns:
    A new tree: the inverse of `stack_layers`.

  Example:
    >>> sorted(unstack_layers({"layers": {"b": jnp.ones((2, 3))}}))
    ['layer_0', 'layer_1']
  """
  if not isinstance(params, dict):
    return params
  result = {
    name: unstack_layers(value)
    for name, value in params.items()
    if name != "layers"
  }
  if "layers" in params:
    stacked = params["layers"]
    for i in range(jax.tree.leaves(stacked)[0].shape[0]):
      result[f"layer_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
  return result


def _map_attention(fn, params):
  """Applies a function to the parameters of every `SelfAttention` of a tree."""
  if not isinstance(params, Mapping):
    return params
  if "out" in params and ("query" in params or "qkv" in params):
    return fn(params)
  return {name: _map_attention(fn, value) for name, value in params.items()}


def flatten_heads(params, join):
  """Turns the projections to heads, and from them, into matrices.

  A TPU stores [D, N, H] with D innermost. Where a gradient has that shape, the
  compiler turns the long operands of the product round, not the short result.

  Args:
    params: of any model with `SelfAttention`.
    join: query, key and value become one matrix, which `SelfAttention` takes
      apart and `SelfAttention._flat` puts together again: the compiler then
      sees one from the parameters to the product, and back.

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


def unflatten_heads(params, num_heads, separately=False):
  """The inverse of `flatten_heads`.

  Args:
    params: from `flatten_heads`, or gradients by these.
    num_heads: N.
    separately: the matrices are computed as such first; the compiler would
      otherwise undo what they are for.

  Returns:
    The tree with [..., D, N, H], [..., N, H] and [..., N, H, D].
  """

  def part(x, axis):
    return x.reshape(*x.shape[:axis], num_heads, -1, *x.shape[axis + 1 :])

  def unflatten(node):
    if separately:
      node = jax.tree.map(jax.lax.optimization_barrier, node)
    kernel = node["out"]["kernel"]
    out = node["out"] | {"kernel": part(kernel, kernel.ndim - 2)}
    heads = {name: node[name] for name in _HEAD_MODULES if name in node}
    if not heads:
      split = jax.tree.map(lambda x: jnp.split(x, 3, -1), node["qkv"])
      heads = {
        name: {key: parts[i] for key, parts in split.items()}
        for i, name in enumerate(_HEAD_MODULES)
      }
    return jax.tree.map(lambda x: part(x, x.ndim - 1), heads) | {"out": out}

  return _map_attention(unflatten, params)
