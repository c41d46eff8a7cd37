"""Kind of training -> model, loss, metrics. One row a kind.

Losses and metrics are (sum, weight) pairs over the rows given; who calls them
adds the sums and divides once.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax import losses
from bert_jax.models import bert

Batch = dict[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a model is trained on and how it is judged.

  Attributes:
    make_model: config.model (checked) -> module.
    inputs: batch keys that the module takes.
    losses: (outputs, batch) -> the terms of the loss; the total is the sum of
      their means.
    weights: batch -> the weight of each of these terms, without a model.
    metrics: (outputs, batch) -> what evaluation reports, the losses included.
  """

  make_model: Callable[[bert.ModelConfig], nn.Module]
  inputs: tuple[str, ...]
  losses: Callable[[Any, Batch], Sums]
  weights: Callable[[Batch], dict[str, jax.Array]]
  metrics: Callable[[Any, Batch], Sums]

  def apply(self, model: nn.Module, params: Any, batch: Batch, **kwargs) -> Any:
    """Runs the model on a batch."""
    inputs: dict[str, Any] = {k: batch[k] for k in self.inputs}
    for key in ("positions", "sequence_ids"):
      if key in batch:
        inputs[key] = batch[key]
    return model.apply({"params": params}, **inputs, **kwargs)


def _mlm_weights(batch: Batch) -> dict[str, jax.Array]:
  return {"mlm_loss": batch["masked_weights"].sum()}


def _mlm_losses(outputs: Any, batch: Batch) -> Sums:
  mlm_logits, _ = outputs
  return {
    "mlm_loss": losses.cross_entropy(
      mlm_logits, batch["masked_ids"], batch["masked_weights"]
    )
  }


def _mlm_metrics(outputs: Any, batch: Batch) -> Sums:
  mlm_logits, _ = outputs
  return _mlm_losses(outputs, batch) | {
    "mlm_accuracy": losses.accuracy(
      mlm_logits, batch["masked_ids"], batch["masked_weights"]
    )
  }


def _nsp_losses(outputs: Any, batch: Batch) -> Sums:
  _, nsp_logits = outputs
  return {
    "nsp_loss": losses.cross_entropy(
      nsp_logits, batch["nsp_label"], batch["weight"]
    )
  }


def _nsp_metrics(outputs: Any, batch: Batch) -> Sums:
  _, nsp_logits = outputs
  return _nsp_losses(outputs, batch) | {
    "nsp_accuracy": losses.accuracy(
      nsp_logits, batch["nsp_label"], batch["weight"]
    )
  }


_PRETRAIN_INPUTS = (
  "input_ids",
  "input_mask",
  "segment_ids",
  "masked_positions",
)

OBJECTIVES = {
  # Masked language modelling and next sentence prediction (paper, 3.1).
  "mlm_nsp": Objective(
    make_model=bert.PreTrainingModel,
    inputs=_PRETRAIN_INPUTS,
    losses=lambda o, b: _mlm_losses(o, b) | _nsp_losses(o, b),
    weights=lambda b: _mlm_weights(b) | {"nsp_loss": b["weight"].sum()},
    metrics=lambda o, b: _mlm_metrics(o, b) | _nsp_metrics(o, b),
  ),
  # Masked language modelling alone: the paper's "No NSP" (section 5.1).
  "mlm": Objective(
    make_model=bert.PreTrainingModel,
    inputs=_PRETRAIN_INPUTS,
    losses=_mlm_losses,
    weights=_mlm_weights,
    metrics=_mlm_metrics,
  ),
}


def get_objective(name: str) -> Objective:
  """The row of that name.

  Raises:
    ValueError: there is none.
  """
  if name not in OBJECTIVES:
    raise ValueError(
      f"objective={name!r} is not known; use one of {', '.join(OBJECTIVES)}"
    )
  return OBJECTIVES[name]


def unigram_metrics(batch: Batch, log_probs: jax.Array) -> Sums:
  """What a model that only knows how frequent tokens are would score.

  Args:
    batch: with masked_ids and masked_weights [B, P].
    log_probs: [V] of the training text; the most frequent token is its guess.
  """
  ids, weights = batch["masked_ids"], batch["masked_weights"]
  total = weights.sum()
  right = (ids == jnp.argmax(log_probs)) * weights
  return {
    "unigram_loss": (-(log_probs[ids] * weights).sum(), total),
    "most_frequent_token_accuracy": (right.sum(), total),
  }
