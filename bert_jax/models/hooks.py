"""What a model wants a training step to do with its parameters.

A step differentiates, sums gradients over devices and updates; it knows no
model. Each model says by its property `hooks` in which form its parameters are
differentiated, and which of them it uses twice or only in part.
"""

import dataclasses
from typing import Any

import jax

from bert_jax.models import params as param_trees
from bert_jax.models.attention import programs

Tree = Any


@dataclasses.dataclass(frozen=True)
class EncoderHooks:
  """The hooks of a model with an `Encoder`.

  Attributes:
    model: the module.
    scores_words: its outputs are scores of words by the word table, in which
      it also looks its words up.
  """

  model: Any
  scores_words: bool

  def for_gradients(self, params: Tree) -> Tree:
    """Returns the parameters in the form that a loss is differentiated by.

    Projections to heads and from them are matrices, see `flatten_heads`.
    """
    program = programs.program_of(self.model.config)
    return param_trees.flatten_heads(params, program.layout == "joined")

  def for_apply(self, params: Tree) -> Tree:
    """Returns what `for_gradients` made in the form that the module takes."""
    return param_trees.unflatten_heads(params, self.model.config.num_heads)

  def as_stored(self, grads: Tree) -> Tree:
    """Returns gradients of `for_gradients` in the form of the parameters."""
    config = self.model.config
    return param_trees.unflatten_heads(
      grads, config.num_heads, separately=config.dtype != config.param_dtype
    )

  def second_use(self, params: Tree) -> Tree:
    """Returns parameters that the model uses a second time, apart.

    Given to the module as its "output" variables, they have gradients of their
    own. Each of the two is then summed over the devices once, after the last
    micro-batch.

    Args:
      params: the parameters, or a tree like them, as of their shardings.

    Returns:
      {"word_table": [V, D]}; or {} if there are none.
    """
    if not self.scores_words:
      return {}
    return {"word_table": param_trees.word_table(params)}

  def tie(self, grads: Tree, second: Tree) -> Tree:
    """Adds the gradients of `second_use` to those of the parameters."""
    return param_trees.tie_gradients(grads, second)

  def of_words(
    self, params: Tree, input_ids: jax.Array
  ) -> tuple[Any, Tree, jax.Array] | None:
    """Returns the model with those rows of its word table that a batch needs.

    Args:
      params: as from `for_gradients`.
      input_ids: [B, L] int32.

    Returns:
      As `param_trees.only_words`; None where all rows have a gradient, or so
      many words are looked up that nothing would be saved.
    """
    if self.scores_words or 2 * input_ids.size > self.model.config.vocab_size:
      return None
    return param_trees.only_words(self.model, params, input_ids)
