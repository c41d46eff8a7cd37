"""What a model can be trained on: the base of every kind.

A kind of training says what its model is, what its batches hold, what is
minimised and what is reported. Losses and metrics are (sum, weight) pairs over
the rows given; whoever calls them adds the sums and divides once.
"""

from typing import Any, ClassVar

from flax import linen as nn
import jax

from bert_jax.data import batch_keys
from bert_jax.models import params as param_trees
from bert_jax.models.config import ModelConfig

Batch = dict[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]


class Kind:
  """The base of all kinds; table.py lists them.

  Attributes:
    name: as configs and run records spell it.
    inputs: batch keys that the model takes.
    packed_inputs: batch keys that the model takes where a batch has them, which
      is where sequences share rows.
    unused: prefixes of the paths of parameters that the outputs do not depend
      on; weights may come without them.
  """

  name: ClassVar[str]
  inputs: tuple[str, ...] = ("input_ids", "input_mask", "segment_ids")
  packed_inputs: tuple[str, ...] = ("positions", "sequence_ids")
  unused: tuple[str, ...] = ()

  def make_model(self, config: ModelConfig, num_labels: int = 0) -> nn.Module:
    """Makes the model.

    Args:
      config: its shape, checked.
      num_labels: labels of the task; pre-training has none.
    """
    raise NotImplementedError

  def batch_shapes(self, config: Any, num_labels: int = 1) -> batch_keys.Shapes:
    """Returns the shape and dtype of all that a training batch holds.

    Pre-training has one shape, which the config decides. How many examples of a
    task share a row depends on the examples; here each has a row of its own, of
    data.seq_len tokens a sequence, as with data.pack=False.

    Args:
      config: the whole configuration.
      num_labels: K, the labels of the task.
    """
    raise NotImplementedError

  def losses(self, outputs: Any, batch: Batch) -> Sums:
    """Returns the terms of the loss, which is the sum of their means.

    Args:
      outputs: of the model.
      batch: that they were computed from.
    """
    raise NotImplementedError

  def weights(self, batch: Batch) -> dict[str, jax.Array]:
    """Returns the weight of each term of `losses`, without a model."""
    raise NotImplementedError

  def metrics(self, outputs: Any, batch: Batch) -> Sums:
    """Returns what evaluation reports of a batch, the losses included.

    Of a task these are only the losses: the other metrics need decoded
    predictions of a whole split.
    """
    return self.losses(outputs, batch)

  def needs(self, path: str) -> bool:
    """Returns whether the outputs depend on the parameter with this path."""
    return not path.startswith(self.unused)

  def arguments(self, batch: Batch) -> dict[str, jax.Array]:
    """Returns what the model takes of a batch; of packed rows also how."""
    packed = (key for key in self.packed_inputs if key in batch)
    return {key: batch[key] for key in (*self.inputs, *packed)}

  def apply(
    self,
    model: nn.Module,
    params: Any,
    batch: Batch,
    output: Any = None,
    **kwargs,
  ) -> Any:
    """Runs the model on a batch.

    Args:
      model: of this kind.
      params: its parameters.
      batch: with the keys of `arguments`.
      output: None, or from `output_variables`.
      **kwargs: of the model.
    """
    inputs: dict[str, Any] = self.arguments(batch)
    variables = {"params": params} | ({"output": output} if output else {})
    return model.apply(variables, **inputs, **kwargs)

  def output_variables(self, params: Any) -> Any:
    """Returns the word table as it scores words, apart from its look-up.

    Args:
      params: of the model.

    Returns:
      What `apply` takes, so that each use of the table has its own gradient;
      {} if words are not scored.
    """
    if "masked_positions" not in self.inputs:
      return {}
    return {"word_table": param_trees.word_table(params)}
