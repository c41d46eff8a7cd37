"""Parameters of a model in the scanned form, and back."""

import jax
import jax.numpy as jnp

from bert_jax.models import params as param_trees


def stack_layers(params):
  """A nested tree with the jax arrays of all layers stacked under "layers"."""
  if not isinstance(params, dict):
    return params
  names = [name for name in params if name.startswith("layer_")]
  tree = {k: stack_layers(v) for k, v in params.items() if k not in names}
  if names:
    layers = (params[f"layer_{i}"] for i in range(len(names)))
    tree["layers"] = jax.tree.map(lambda *x: jnp.stack(x), *layers)
  return tree


def unstack_layers(params):
  """The inverse of `stack_layers`."""
  return param_trees.nest(param_trees.unstack(param_trees.flatten(params)))
