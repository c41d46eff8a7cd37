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

from bert_jax.data import batch_keys
from bert_jax.data import batching
from bert_jax.data import task_batches
from bert_jax.kinds import losses
from bert_jax.models import heads
from bert_jax.models import params as param_trees
from bert_jax.models.config import ModelConfig
from bert_jax.tasks import features

Batch = dict[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a model is trained on and how it is judged.

  Attributes:
    make_model: config.model (checked) -> module; of a task also num_labels, K.
    inputs: batch keys that the module takes.
    losses: (outputs, batch) -> the terms of the loss; the total is the sum of
      their means.
    weights: batch -> the weight of each of these terms, without a model.
    metrics: (outputs, batch) -> what evaluation reports, the losses included.
      Of a task only its loss: the rest needs decoded predictions.
    packed_inputs: batch keys that the module takes where a batch has them:
      only where sequences share rows.
    unused: parts of the module's parameters, as prefixes of their paths, that
      its outputs do not depend on: weights may come without them.
    labels: where the labels of a kind of task stand in a batch; None of
      pre-training.
  """

  make_model: Callable[..., nn.Module]
  inputs: tuple[str, ...]
  losses: Callable[[Any, Batch], Sums]
  weights: Callable[[Batch], dict[str, jax.Array]]
  metrics: Callable[[Any, Batch], Sums]
  packed_inputs: tuple[str, ...] = ("positions", "sequence_ids")
  unused: tuple[str, ...] = ()
  labels: batch_keys.Labels | None = None

  def batch_shapes(
    self, config: Any, num_choices: int = 1, num_labels: int = 1
  ) -> batch_keys.Shapes:
    """Returns the shape and dtype of all that a training batch holds.

    Pre-training has one shape, which the config decides. How many examples of a
    task share a row depends on the examples; here each has a row of its own, of
    data.seq_len tokens a sequence, as with data.pack=False.

    Args:
      config: the whole configuration.
      num_choices: C, the choices of a question.
      num_labels: K, the labels of the task.
    """
    data = config.data
    if self.labels is None:
      return batching.pretraining_shapes(data, data.batch_size)
    return task_batches.task_shapes(
      self.labels,
      data.batch_size,
      data.seq_len * num_choices,
      1,
      num_choices,
      num_labels,
    )

  def needs(self, path: str) -> bool:
    """Whether the outputs depend on the parameter with this path."""
    return not path.startswith(self.unused)

  def arguments(self, batch: Batch) -> dict[str, jax.Array]:
    """What the module takes of a batch; of packed rows also how they are."""
    packed = (k for k in self.packed_inputs if k in batch)
    return {k: batch[k] for k in (*self.inputs, *packed)}

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
      model: of this objective.
      params: its parameters.
      batch: with the keys of `arguments`.
      output: None, or from `output_variables`.
      **kwargs: of the model.
    """
    inputs: dict[str, Any] = self.arguments(batch)
    variables = {"params": params} | ({"output": output} if output else {})
    return model.apply(variables, **inputs, **kwargs)

  def output_variables(self, params: Any) -> Any:
    """The word table as it scores words, apart from where words are looked up.

    Args:
      params: of the model.

    Returns:
      What `apply` takes, so that each use of the table has its own gradient;
      {} if words are not scored.
    """
    if "masked_positions" not in self.inputs:
      return {}
    return {"word_table": param_trees.word_table(params)}


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


def _task(
  loss: Callable[[Any, Batch], tuple],
  labels: batch_keys.Labels,
  *,
  pooled: bool,
  num_outputs: int | None = None,
  head_dropout: bool = True,
) -> Objective:
  """The row of a kind of task, whose only term is its loss.

  Args:
    loss: (outputs, batch) -> (sum, weight).
    labels: where the labels stand in a batch.
    pooled: the head reads [CLS] of every sequence, not all tokens.
    num_outputs: of the head; None = the number of labels.
    head_dropout: dropout before the head.
  """

  def make_model(config: ModelConfig, num_labels: int) -> nn.Module:
    return heads.TaskModel(
      config, num_outputs or num_labels, pooled, head_dropout
    )

  inputs: tuple[str, ...] = ("input_ids", "input_mask", "segment_ids")
  return Objective(
    make_model=make_model,
    inputs=(*inputs, "cls_positions") if pooled else inputs,
    losses=lambda o, b: {"task_loss": loss(o, b)},
    weights=lambda b: {"task_loss": b["weight"].sum()},
    metrics=lambda o, b: {"task_loss": loss(o, b)},
    unused=() if pooled else ("encoder/pooler/",),
    labels=labels,
  )


def is_pooled(kind: str) -> bool:
  """Whether the head of a kind of task reads [CLS] alone, not all tokens."""
  return OBJECTIVES[kind].inputs[-1] == "cls_positions"


def choice_scores(outputs: jax.Array, num_groups: int) -> jax.Array:
  """[B, S, 1] scores of sequences -> [B, G, C] of the choices of a question."""
  return outputs.reshape(outputs.shape[0], num_groups, -1)


def _class_loss(outputs: Any, batch: Batch) -> tuple:
  return losses.cross_entropy(outputs, batch["label"], batch["weight"])


def _number_loss(outputs: Any, batch: Batch) -> tuple:
  return losses.squared_error(outputs[..., 0], batch["label"], batch["weight"])


def _choice_loss(outputs: Any, batch: Batch) -> tuple:
  scores = choice_scores(outputs, batch["label"].shape[1])
  return losses.cross_entropy(scores, batch["label"], batch["weight"])


def _span_loss(outputs: Any, batch: Batch) -> tuple:
  return losses.span_cross_entropy(
    outputs,
    batch["sequence_ids"],
    batch["start"],
    batch["end"],
    batch["weight"],
  )


_PRETRAIN_INPUTS = (
  "input_ids",
  "input_mask",
  "segment_ids",
  "masked_positions",
)

OBJECTIVES = {
  # Masked language modelling and next sentence prediction (paper, 3.1).
  "mlm_nsp": Objective(
    make_model=heads.PreTrainingModel,
    inputs=_PRETRAIN_INPUTS,
    losses=lambda o, b: _mlm_losses(o, b) | _nsp_losses(o, b),
    weights=lambda b: _mlm_weights(b) | {"nsp_loss": b["weight"].sum()},
    metrics=lambda o, b: _mlm_metrics(o, b) | _nsp_metrics(o, b),
    packed_inputs=("positions", "sequence_ids", "cls_positions"),
  ),
  # Masked language modelling alone: the paper's "No NSP" (section 5.1).
  "mlm": Objective(
    make_model=heads.PreTrainingModel,
    inputs=_PRETRAIN_INPUTS,
    losses=_mlm_losses,
    weights=_mlm_weights,
    metrics=_mlm_metrics,
    unused=("encoder/pooler/", "nsp/"),
  ),
  # A label of a sentence or a pair (paper, 4.1).
  "classify": _task(_class_loss, features.CLASSES, pooled=True),
  # A number for it; the original has none (GLUE's STS-B).
  "regress": _task(_number_loss, features.NUMBERS, pooled=True, num_outputs=1),
  # One of several endings, each scored by a vector (paper, 4.4).
  "choice": _task(_choice_loss, features.CLASSES, pooled=True, num_outputs=1),
  # A label of every word, read at its first piece (paper, 5.3).
  "tag": _task(_class_loss, features.TAGS, pooled=False),
  # The two ends of an answer (paper, 4.2); without dropout before the head.
  "span": _task(
    _span_loss, features.SPANS, pooled=False, num_outputs=2, head_dropout=False
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
