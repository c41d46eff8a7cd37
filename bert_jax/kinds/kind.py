"""The base of all kinds of training: pre-training and the kinds of tasks.

A kind defines its model, the content of its batches, its losses and its
metrics. Losses and metrics are (sum, weight) pairs over the given rows; the
caller adds the sums and divides once.
"""

from collections.abc import Mapping
import types
from typing import Any, ClassVar

from flax import linen as nn
import jax

from bert_jax.data import batch_keys
from bert_jax.models.config import ModelConfig

Batch = dict[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]


class Kind:
  """The base of all kinds; table.py lists them.

  Attributes:
    name: the name in configs and run records.
    inputs: the batch keys that the model takes.
    packed_inputs: the batch keys that the model takes if a batch has them,
      because sequences share rows.
    unused: prefixes of the paths of the parameters that the outputs do not
      depend on; weights may lack them.
    heads: the names of the heads that it trains.
    loss_weights: the factor of a term of the loss; others count once.
    frozen: the names of the parts of the parameters that are not trained.
    reads_batch: whether the loss of a row depends on the other rows of the
      batch, so that a part of the batch has no loss of its own.
  """

  name: ClassVar[str]
  inputs: tuple[str, ...] = ("input_ids", "input_mask", "segment_ids")
  packed_inputs: tuple[str, ...] = ("positions", "sequence_ids")
  unused: tuple[str, ...] = ()
  heads: tuple[str, ...] = ("task",)
  loss_weights: Mapping[str, float] = types.MappingProxyType({})
  frozen: tuple[str, ...] = ()
  reads_batch: bool = False

  def for_config(self, config: Any) -> "Kind":
    """Returns the kind with the settings of a config that it reads.

    Args:
      config: the whole configuration.
    """
    del config
    return self

  def total(self, terms: Mapping[str, Any]) -> Any:
    """Returns the loss: the sum of its terms, each times its factor."""
    factors = self.loss_weights
    return sum(
      term * factors[name] if name in factors else term
      for name, term in terms.items()
    )

  def start(self, params: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the weights to start from, with parts of other origin.

    Args:
      params: those of `init_from`, as in `weights.Pretrained`; None = none.
    """
    return params

  def encoder_of(self, params: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of the encoder that is used after the training.

    Args:
      params: all parameters of the training.
    """
    return params["encoder"]

  def other_weights(self) -> dict[str, Any]:
    """Returns key -> `weights.Pretrained` of models beside `init_from`."""
    return {}

  def make_model(self, config: ModelConfig, num_labels: int = 0) -> nn.Module:
    """Makes the model.

    Args:
      config: the configuration of the model.
      num_labels: the number of labels of the task; pre-training ignores it.
    """
    raise NotImplementedError

  def batch_shapes(self, config: Any, num_labels: int = 1) -> batch_keys.Shapes:
    """Returns the shape and dtype of every key of a training batch.

    Batches of pre-training have one shape, which the config decides. In batches
    of tasks, the number of examples in a row depends on the examples. The
    shapes returned here are those of data.pack=False: each example has its own
    row, with data.seq_len tokens for each sequence.

    Args:
      config: the whole configuration.
      num_labels: K, the number of labels of the task.
    """
    raise NotImplementedError

  def losses(self, outputs: Any, batch: Batch) -> Sums:
    """Returns the terms of the loss, which is the sum of their means.

    Args:
      outputs: the outputs of the model.
      batch: the batch from which they were computed.
    """
    raise NotImplementedError

  def weights(self, batch: Batch) -> dict[str, jax.Array]:
    """Returns the weight of each term of `losses`, without outputs."""
    raise NotImplementedError

  def metrics(self, outputs: Any, batch: Batch) -> Sums:
    """Returns the metrics of a batch for evaluation, with the losses.

    For a task these are only the losses, since the other metrics need decoded
    predictions of a whole split.
    """
    return self.losses(outputs, batch)

  def needs(self, path: str, config: ModelConfig) -> bool:
    """Returns whether the outputs depend on the parameter with this path.

    Args:
      path: the path of the parameter.
      config: the configuration of the model.
    """
    del config
    return not path.startswith(self.unused)

  def arguments(self, batch: Batch) -> dict[str, jax.Array]:
    """Returns the keys of a batch that the model takes, with their values."""
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
      model: a model of this kind.
      params: the parameters of the model.
      batch: the batch.
      output: None, or the result of the model's `hooks.second_use`.
      **kwargs: further arguments of the model.
    """
    inputs: dict[str, Any] = self.arguments(batch)
    variables = {"params": params} | ({"output": output} if output else {})
    return model.apply(variables, **inputs, **kwargs)
