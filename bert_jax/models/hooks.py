"""How a training step handles the parameters of a model.

A step differentiates, sums gradients over devices and updates; it knows no
model. The property `hooks` of a model says in which form its parameters are
differentiated, and which of them the model uses twice or only in part.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.models import params as param_trees
from bert_jax.models.attention import programs

Tree = Any


def _word_table(params: Tree) -> Any:
  """Returns the word embedding [V, D] of any model with an `Encoder`."""
  return params["encoder"]["embeddings"]["word"]["embedding"]


def _with_word_table(params: Tree, table: Any) -> Tree:
  encoder = params["encoder"]
  embeddings = encoder["embeddings"] | {"word": {"embedding": table}}
  return params | {"encoder": encoder | {"embeddings": embeddings}}


@dataclasses.dataclass(frozen=True)
class EncoderHooks:
  """The hooks of a model with an `Encoder`.

  Attributes:
    model: the module.
    scores_words: whether its outputs are scores of words by the word table, in
      which it also looks up its input.
    is_tied: whether the table of these scores is that of the input.
  """

  model: Any
  scores_words: bool
  is_tied: bool = True

  def for_gradients(self, params: Tree) -> Tree:
    """Returns the parameters in the form in which a loss is differentiated.

    The projections to heads, and from them, are matrices; see
    `params.flatten_heads`.
    """
    program = programs.program_of(self.model.config)
    return param_trees.flatten_heads(params, program.layout == "joined")

  def for_apply(self, params: Tree) -> Tree:
    """Converts parameters from `for_gradients` to the form of the module."""
    config = self.model.config
    return param_trees.unflatten_heads(
      params, config.num_heads, key_heads=config.key_heads
    )

  def as_stored(self, grads: Tree) -> Tree:
    """Converts gradients by `for_gradients` to the form of the parameters."""
    config = self.model.config
    return param_trees.unflatten_heads(
      grads,
      config.num_heads,
      separately=config.dtype != config.param_dtype,
      key_heads=config.key_heads,
    )

  def second_use(self, params: Tree) -> Tree:
    """Returns the parameters that the model uses a second time.

    Given to the module as its "output" variables, they have gradients of their
    own. The gradients of both uses are then summed over the devices once, after
    the last micro-batch.

    Args:
      params: the parameters, or a tree like them, such as their shardings.

    Returns:
      {"word_table": [V, D]}; {} if the model uses every parameter once.
    """
    if not self.scores_words or not self.is_tied:
      return {}
    return {"word_table": _word_table(params)}

  def tie(self, grads: Tree, second: Tree) -> Tree:
    """Adds the gradients of `second_use` to those of the parameters."""
    if not second:
      return grads
    return _with_word_table(grads, _word_table(grads) + second["word_table"])

  def of_words(
    self, params: Tree, input_ids: jax.Array
  ) -> tuple[Any, Tree, jax.Array] | None:
    """Returns the model with a word table for the words of a batch alone.

    The gradient of the small table is the gradient of the same rows of the
    whole table. A word that occurs twice is looked up in one place.

    Args:
      params: the parameters from `for_gradients`.
      input_ids: [B, L] int32.

    Returns:
      The model, and its parameters with a table [B * L, D] that has a row for
      every token; and the rows [B, L] of the tokens in that table. None if all
      rows of the whole table have a gradient, or if the batch looks up so many
      words that this would save nothing.
    """
    model, ids = self.model, input_ids.reshape(-1)
    if self.scores_words or 2 * ids.size > model.config.vocab_size:
      return None
    table = _word_table(params)
    order = jnp.arange(ids.size, dtype=jnp.int32)
    first = jnp.full(len(table), ids.size, jnp.int32).at[ids].min(order)
    config = dataclasses.replace(model.config, vocab_size=ids.size)
    return (
      model.clone(config=config),
      _with_word_table(params, table[ids]),
      first[ids].reshape(input_ids.shape),
    )


class PlainHooks:
  """The hooks of a model whose parameters are differentiated as they are.

  Every parameter counts as used once, and all of it has a gradient.
  """

  def for_gradients(self, params: Tree) -> Tree:
    """See `EncoderHooks`."""
    return params

  def for_apply(self, params: Tree) -> Tree:
    """See `EncoderHooks`."""
    return params

  def as_stored(self, grads: Tree) -> Tree:
    """See `EncoderHooks`."""
    return grads

  def second_use(self, params: Tree) -> Tree:
    """See `EncoderHooks`."""
    del params
    return {}

  def tie(self, grads: Tree, second: Tree) -> Tree:
    """See `EncoderHooks`."""
    del second
    return grads

  def of_words(self, params: Tree, input_ids: jax.Array) -> None:
    """See `EncoderHooks`."""
    del params, input_ids


@dataclasses.dataclass(frozen=True)
class NestedHooks(PlainHooks):
  """The hooks of a model whose parameters hold those of others.

  Every parameter counts as used once: gradients of shared tables are added by
  differentiation.

  Attributes:
    model: the module.
    nested: the name of a part of the parameters -> the config of its encoder.
  """

  model: Any
  nested: Mapping[str, Any]

  def _each(self, name: str, tree: Tree) -> Tree:
    """Applies a function of `EncoderHooks` to each model by its own sizes."""
    own = {k: v for k, v in tree.items() if k not in self.nested}
    found = getattr(EncoderHooks(self.model, scores_words=False), name)(own)
    for part, config in self.nested.items():
      hooks = EncoderHooks(_Sized(config), scores_words=False)
      found = found | {part: getattr(hooks, name)(tree[part])}
    return found

  def for_gradients(self, params: Tree) -> Tree:
    """See `EncoderHooks`."""
    return self._each("for_gradients", params)

  def for_apply(self, params: Tree) -> Tree:
    """See `EncoderHooks`."""
    return self._each("for_apply", params)

  def as_stored(self, grads: Tree) -> Tree:
    """See `EncoderHooks`."""
    return self._each("as_stored", grads)


@dataclasses.dataclass(frozen=True)
class _Sized:
  """Stands for a model where only its config is asked for."""

  config: Any
