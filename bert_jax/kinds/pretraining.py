"""Pre-training: masked words, with or without the next sentence.

The kinds are "mlm_nsp" and "mlm". In prediction, the same model fills in [MASK]
("fill-mask").
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax.data import batch_keys
from bert_jax.data import batching
from bert_jax.kinds import answers
from bert_jax.kinds import kind
from bert_jax.kinds import losses
from bert_jax.models import heads
from bert_jax.models.config import ModelConfig

MASK = "[MASK]"


class Mlm(kind.Kind):
  """Masked language modelling alone: the paper's "No NSP" (section 5.1)."""

  name = "mlm"
  inputs = (*kind.Kind.inputs, "masked_positions")
  unused: tuple[str, ...] = ("encoder/pooler/", "nsp/")

  def make_model(self, config: ModelConfig, num_labels: int = 0) -> nn.Module:
    del num_labels
    return heads.PreTrainingModel(config)

  def batch_shapes(self, config: Any, num_labels: int = 1) -> batch_keys.Shapes:
    del num_labels
    return batching.pretraining_shapes(config.data, config.data.batch_size)

  def losses(self, outputs: Any, batch: kind.Batch) -> kind.Sums:
    return {"mlm_loss": losses.cross_entropy(*_words(outputs, batch))}

  def weights(self, batch: kind.Batch) -> dict[str, jax.Array]:
    return {"mlm_loss": batch["masked_weights"].sum()}

  def metrics(self, outputs: Any, batch: kind.Batch) -> kind.Sums:
    accuracy = losses.accuracy(*_words(outputs, batch))
    return self.losses(outputs, batch) | {"mlm_accuracy": accuracy}


class MlmNsp(Mlm):
  """Masked words and the next sentence (BERT paper, section 3.1)."""

  name = "mlm_nsp"
  packed_inputs = (*kind.Kind.packed_inputs, "cls_positions")
  unused = ()

  def losses(self, outputs: Any, batch: kind.Batch) -> kind.Sums:
    loss = losses.cross_entropy(*_sentences(outputs, batch))
    return super().losses(outputs, batch) | {"nsp_loss": loss}

  def weights(self, batch: kind.Batch) -> dict[str, jax.Array]:
    return super().weights(batch) | {"nsp_loss": batch["weight"].sum()}

  def metrics(self, outputs: Any, batch: kind.Batch) -> kind.Sums:
    accuracy = losses.accuracy(*_sentences(outputs, batch))
    return super().metrics(outputs, batch) | {"nsp_accuracy": accuracy}


def _words(outputs: Any, batch: kind.Batch) -> tuple[jax.Array, ...]:
  """Returns the logits, labels and weights of masked words."""
  return outputs[0], batch["masked_ids"], batch["masked_weights"]


def _sentences(outputs: Any, batch: kind.Batch) -> tuple[jax.Array, ...]:
  """Returns the logits, labels and weights of the next sentence."""
  return outputs[1], batch["nsp_label"], batch["weight"]


def unigram_metrics(batch: kind.Batch, log_probs: jax.Array) -> kind.Sums:
  """Returns the metrics of a model that knows only the frequencies of tokens.

  Args:
    batch: the batch, with masked_ids and masked_weights [B, P].
    log_probs: [V], the log-probability of each token of the training text.
  """
  ids, weights = batch["masked_ids"], batch["masked_weights"]
  total = weights.sum()
  right = (ids == jnp.argmax(log_probs)) * weights
  return {
    "unigram_loss": (-(log_probs[ids] * weights).sum(), total),
    "most_frequent_token_accuracy": (right.sum(), total),
  }


MLM = Mlm()
MLM_NSP = MlmNsp()


class FillMask(answers.Answerer):
  """Gives the best tokens for every [MASK]."""

  name = "fill-mask"
  parts = ("mlm",)
  kind = MLM
  levels = {"scores": "mask", "ids": "mask"}

  def __init__(self, context: answers.Context):
    super().__init__(context)
    self._top_k = context.predict.top_k
    if self.tokenizer.mask_id < 0:
      raise answers.PredictError(
        "the tokenizer of this model has no mask token, so that it cannot fill "
        "gaps; give a model that was trained with one"
      )
    size = self.tokenizer.vocab_size
    if not 1 <= self._top_k <= size:
      raise answers.PredictError(
        f"predict.top_k={self._top_k}; give 1 to {size}"
      )

  def parse(self, record: Mapping[str, Any]) -> list[Any]:
    tokenizer, longest = self.tokenizer, self.context.seq_len
    text = tokenizer.encode_masked(answers.text_of(record, "text"), MASK)
    if tokenizer.mask_id not in text:
      raise answers.RecordError(
        f"its text has no {MASK}; write {MASK} for each gap"
      )
    ids, types = tokenizer.template.build(tokenizer, text)
    if len(ids) > longest:
      raise answers.RecordError(
        f"its text has {len(ids)} tokens, predict.seq_len is {longest}; shorten"
        " it, or set predict.seq_len, which can be up to "
        f"{self.context.model.max_len}"
      )
    return [answers.EncodedText(ids, types)]

  def step(self, params: Any, batch: dict[str, Any]) -> dict[str, Any]:
    logits, _ = self.kind.apply(self._model, params, batch)
    # The word table may have more rows than the vocabulary has tokens.
    known = jax.nn.softmax(logits[..., : self.tokenizer.vocab_size])
    scores, ids = jax.lax.top_k(known, self._top_k)
    return {"scores": scores, "ids": ids}

  def result(self, example: Any, output: answers.Outputs) -> dict:
    return {
      "masks": [
        [
          {"token": self.tokenizer.token(i), "id": i, "score": score}
          for i, score in zip(ids, scores, strict=True)
        ]
        for ids, scores in zip(
          output["ids"].tolist(), output["scores"].tolist(), strict=True
        )
      ]
    }
