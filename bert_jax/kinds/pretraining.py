"""Pre-training: masked words, next sentences, replaced tokens, a teacher.

The kinds are "mlm_nsp", "mlm", "mlm_sop", "ltr", "rtd" and "distill". In
prediction, the model of masked words fills in [MASK] ("fill-mask").
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from bert_jax.data import batch_keys
from bert_jax.data import batching
from bert_jax.kinds import answers
from bert_jax.kinds import kind
from bert_jax.kinds import losses
from bert_jax.models import distilled
from bert_jax.models import flops
from bert_jax.models import heads
from bert_jax.models import replaced_tokens
from bert_jax.models.config import ModelConfig
from bert_jax.runtime.settings import make_config

MASK = "[MASK]"


class Mlm(kind.Kind):
  """Masked language modelling alone: the paper's "No NSP" (section 5.1)."""

  name = "mlm"
  inputs = (*kind.Kind.inputs, "masked_positions")
  unused: tuple[str, ...] = ("encoder/pooler/", "nsp/")
  heads: tuple[str, ...] = ("mlm",)
  # The value of data.pairing that it needs; "" = any.
  pairing: str = ""
  # The first part of the names of what is said of the words.
  words = "mlm"

  def make_model(self, config: ModelConfig, num_labels: int = 0) -> nn.Module:
    del num_labels
    return heads.PreTrainingModel(config)

  def batch_shapes(self, config: Any, num_labels: int = 1) -> batch_keys.Shapes:
    del num_labels
    return batching.pretraining_shapes(config.data, config.data.batch_size)

  def step_flops(
    self, model: Any, data: Any, num_rows: int, **options: Any
  ) -> int:
    """Returns the model FLOPs of a training step.

    Args:
      model: the group `model` of a config.
      data: the group `data`.
      num_rows: the rows of the batch.
      **options: `attended` and `all_positions` of models/flops.py.
    """
    return flops.pretrain_step_flops(
      model,
      num_rows,
      data.seq_len,
      batching.num_masked_slots(data),
      num_sequences=data.max_sequences,
      **options,
    )

  def targets(self, batch: kind.Batch) -> tuple[jax.Array, jax.Array]:
    """Returns the words to predict and their weights, each [B, P]."""
    return batch["masked_ids"], batch["masked_weights"]

  def losses(self, outputs: Any, batch: kind.Batch) -> kind.Sums:
    loss = losses.cross_entropy(outputs[0], *self.targets(batch))
    return {f"{self.words}_loss": loss}

  def weights(self, batch: kind.Batch) -> dict[str, jax.Array]:
    return {f"{self.words}_loss": self.targets(batch)[1].sum()}

  def metrics(self, outputs: Any, batch: kind.Batch) -> kind.Sums:
    accuracy = losses.accuracy(outputs[0], *self.targets(batch))
    return self.losses(outputs, batch) | {f"{self.words}_accuracy": accuracy}


class MlmNsp(Mlm):
  """Masked words and the next sentence (BERT paper, section 3.1)."""

  name = "mlm_nsp"
  packed_inputs = (*kind.Kind.packed_inputs, "cls_positions")
  unused = ()
  heads = ("mlm", "nsp")
  pairing = "pairs"
  # The first part of the names of what is said of the second segment.
  segments = "nsp"

  def losses(self, outputs: Any, batch: kind.Batch) -> kind.Sums:
    loss = losses.cross_entropy(*_sentences(outputs, batch))
    return super().losses(outputs, batch) | {f"{self.segments}_loss": loss}

  def weights(self, batch: kind.Batch) -> dict[str, jax.Array]:
    weight = batch["weight"].sum()
    return super().weights(batch) | {f"{self.segments}_loss": weight}

  def metrics(self, outputs: Any, batch: kind.Batch) -> kind.Sums:
    found = losses.accuracy(*_sentences(outputs, batch))
    return super().metrics(outputs, batch) | {
      f"{self.segments}_accuracy": found
    }


class MlmSop(MlmNsp):
  """Masked words, and whether two segments are in their order (ALBERT)."""

  name = "mlm_sop"
  pairing = "ordered_pairs"
  segments = "sop"


class Ltr(Mlm):
  """The next token, from left to right: the paper's "LTR & No NSP".

  Every token but the first of a sequence is predicted from those before it; the
  batch must hold the tokens as they are.

  Source: BERT paper, section 5.1 and table 5.
  """

  name = "ltr"
  inputs = kind.Kind.inputs
  words = "ltr"

  def for_config(self, config: Any) -> "Ltr":
    """Checks that the tokens stay as they are.

    Raises:
      ValueError: masking would change tokens, which are to be predicted.
    """
    data = config.data
    for key in ("mask_token_rate", "random_token_rate"):
      if data[key]:
        raise ValueError(
          f"objective=ltr predicts the next token of unchanged text, but "
          f"data.{key}={data[key]} changes tokens; set data.mask_token_rate=0 "
          "and data.random_token_rate=0 (configs/left_to_right.py does)"
        )
    return self

  def make_model(self, config: ModelConfig, num_labels: int = 0) -> nn.Module:
    if config.attention_pattern != "causal":
      raise ValueError(
        "objective=ltr needs model.attention_pattern=causal, not "
        f"{config.attention_pattern}, by which a token would see the one that "
        "it predicts; with weights to start from, set "
        "init_changes=model.attention_pattern=causal"
      )
    return super().make_model(config, num_labels)

  def arguments(self, batch: kind.Batch) -> dict[str, Any]:
    """Returns the inputs of the model, which predicts at all positions."""
    return {**super().arguments(batch), "masked_positions": None}

  def targets(self, batch: kind.Batch) -> tuple[jax.Array, jax.Array]:
    """Returns for each token the next one, and 1 if it is of its sequence."""
    ids, weights = batch["input_ids"], _tokens(batch)
    is_next = weights[:, 1:] * weights[:, :-1]
    if "sequence_ids" in batch:
      numbers = batch["sequence_ids"]
      is_next = is_next * (numbers[:, 1:] == numbers[:, :-1])
    end = ((0, 0), (0, 1))
    return jnp.pad(ids[:, 1:], end), jnp.pad(is_next, end)

  def step_flops(
    self, model: Any, data: Any, num_rows: int, **options: Any
  ) -> int:
    return flops.pretrain_step_flops(
      model,
      num_rows,
      data.seq_len,
      data.seq_len,
      num_sequences=data.max_sequences,
      **options,
    )


class Rtd(Mlm):
  """Replaced tokens: a generator fills masks, a discriminator finds them."""

  name = "rtd"
  inputs = (*Mlm.inputs, "masked_ids", "masked_weights")
  unused = ()
  heads = ("rtd",)

  def __init__(self, settings: Any = None):
    """Takes the group `generator` of a config; None means its defaults."""
    self._settings = settings or make_config().generator
    self.loss_weights = {"rtd_loss": self._settings.rtd_weight}

  def for_config(self, config: Any) -> "Rtd":
    return Rtd(config.generator)

  def make_model(self, config: ModelConfig, num_labels: int = 0) -> nn.Module:
    del num_labels
    generator = replaced_tokens.generator_config(config, self._settings)
    return replaced_tokens.ReplacedTokensModel(
      config, generator, self._settings.sharing
    )

  def start(self, params: dict[str, Any] | None) -> dict[str, Any] | None:
    """Gives a generator the words of a discriminator that comes without one."""
    is_whole = params is None or "generator" in params
    if self._settings.sharing != "disentangled" or is_whole:
      return params
    assert params is not None
    words = {"word": params["encoder"]["embeddings"]["word"]}
    return params | {"generator": {"encoder": {"embeddings": words}}}

  def encoder_of(self, params: dict[str, Any]) -> dict[str, Any]:
    encoder = params["encoder"]
    if self._settings.sharing != "disentangled":
      return encoder
    parts = (params["generator"]["encoder"], params["residual"])
    tables = [part["embeddings"]["word"]["embedding"] for part in parts]
    word = {"word": {"embedding": tables[0] + tables[1]}}
    return encoder | {"embeddings": encoder["embeddings"] | word}

  def losses(self, outputs: Any, batch: kind.Batch) -> kind.Sums:
    _, scores, is_replaced = outputs
    found = losses.sigmoid_cross_entropy(scores, is_replaced, _tokens(batch))
    return super().losses(outputs, batch) | {"rtd_loss": found}

  def weights(self, batch: kind.Batch) -> dict[str, jax.Array]:
    return super().weights(batch) | {"rtd_loss": _tokens(batch).sum()}

  def metrics(self, outputs: Any, batch: kind.Batch) -> kind.Sums:
    _, scores, is_replaced = outputs
    weights = _tokens(batch)
    right = ((scores > 0) == is_replaced) * weights
    return super().metrics(outputs, batch) | {
      "rtd_accuracy": (right.sum(), weights.sum()),
      "replaced_rate": ((is_replaced * weights).sum(), weights.sum()),
    }

  def step_flops(
    self, model: Any, data: Any, num_rows: int, **options: Any
  ) -> int:
    config = ModelConfig.from_config(model)
    generator = replaced_tokens.generator_config(config, self._settings)
    attended = None if options["all_positions"] else options["attended"]
    near = None if options["all_positions"] else options.get("near")
    own = flops.encoder_flops(
      model, num_rows, data.seq_len, attended=attended, near=near
    )
    head = 2 * num_rows * data.seq_len * model.hidden_size**2
    return 3 * (own + head) + super().step_flops(
      generator, data, num_rows, **options
    )


class Distill(Mlm):
  """A student learns the words and hidden states of a teacher (DistilBERT)."""

  name = "distill"
  unused = ()
  frozen = (distilled.TEACHER,)

  def __init__(self, settings: Any = None):
    """Takes the group `distill` of a config; None means its defaults."""
    self._settings = settings or make_config().distill
    self.loss_weights = {
      "soft_loss": self._settings.soft_weight,
      "mlm_loss": self._settings.mlm_weight,
      "cosine_loss": self._settings.cosine_weight,
    }
    factors = {
      name: self._settings.get(f"{name}_weight", 0.0)  # older runs lack them
      for name in distilled.LAYERWISE
    }
    self._layerwise = tuple(name for name, x in factors.items() if x)
    self.loss_weights |= {f"{k}_loss": factors[k] for k in self._layerwise}

  def for_config(self, config: Any) -> "Distill":
    return Distill(config.distill)

  @functools.cached_property
  def _teacher(self) -> Any:
    """The teacher, as weights.Pretrained."""
    from bert_jax import weights  # slow to import, and not always needed

    if not self._settings.teacher:
      raise ValueError(
        "objective=distill needs a teacher; give --config.distill.teacher=DIR"
      )
    found = weights.read(self._settings.teacher)
    if "mlm" not in found.params:
      raise ValueError(
        f"distill.teacher={self._settings.teacher} has no head for masked "
        "words, which the student learns from; give a model with one"
      )
    return found

  def other_weights(self) -> dict[str, Any]:
    return {"distill.teacher": self._teacher}

  def start(self, params: dict[str, Any] | None) -> dict[str, Any] | None:
    known = self._teacher.params
    teacher = {name: known[name] for name in ("encoder", "mlm")}
    return (params or {}) | {distilled.TEACHER: teacher}

  def _teacher_config(self, config: ModelConfig) -> ModelConfig:
    """Returns the teacher's config, computed as that of the student.

    Raises:
      ValueError: the two cannot be compared.
    """
    dtype = self._settings.teacher_dtype
    teacher = dataclasses.replace(
      config, **self._teacher.shape, dtype=dtype, param_dtype=dtype
    )
    advice = {
      "vocab_size": "give a teacher and data of one vocabulary",
      "hidden_size": "make them equal, or set distill.cosine_weight=0",
    }
    for key in advice:
      needed = key == "vocab_size" or self._settings.cosine_weight
      if needed and getattr(teacher, key) != getattr(config, key):
        raise ValueError(
          f"distill.teacher={self._settings.teacher} has model.{key}="
          f"{getattr(teacher, key)} and the student {getattr(config, key)}, so "
          f"that they cannot be compared; {advice[key]}"
        )
    if "attention" in self._layerwise:
      self._check_attention(config, teacher)
    return teacher

  def _check_attention(self, config: ModelConfig, teacher: ModelConfig) -> None:
    """Raises ValueError if probabilities of attention cannot be compared."""
    if teacher.num_heads != config.num_heads:
      raise ValueError(
        f"distill.attention_weight={self._settings.attention_weight}, but the "
        f"teacher has {teacher.num_heads} heads and the student "
        f"{config.num_heads}; give the student as many, or set it to 0"
      )
    for key, right in (("attention", "plain"), ("scan_layers", False)):
      if getattr(config, key) != right:
        raise ValueError(
          f"distill.attention_weight={self._settings.attention_weight} needs "
          f"the probabilities of attention, which model.{key}="
          f"{getattr(config, key)} does not show; set model.{key}={right}, or "
          "distill.attention_weight=0"
        )

  def make_model(self, config: ModelConfig, num_labels: int = 0) -> nn.Module:
    del num_labels
    return distilled.DistilledModel(
      config,
      self._teacher_config(config),
      self._settings.positions == "masked",
      self._layerwise,
    )

  def apply(self, model, params, batch, output=None, **kwargs):
    if "attention" not in self._layerwise:
      return super().apply(model, params, batch, output, **kwargs)
    outputs, state = super().apply(
      model, params, batch, output, mutable=["maps"], **kwargs
    )
    maps = state["maps"]
    ours = distilled.attention_maps(maps["encoder"], model.config)
    theirs = jax.lax.stop_gradient(
      distilled.attention_maps(
        maps[distilled.TEACHER]["encoder"], model.teacher_config
      )
    )
    chosen = distilled.layer_map(len(ours), len(theirs))
    theirs = theirs[jnp.array(chosen) - 1]
    *first, compared = outputs
    return (*first, compared | {"attention": (ours, theirs)})

  def losses(self, outputs: Any, batch: kind.Batch) -> kind.Sums:
    _, words, their_words, hidden, theirs, *more = outputs
    found = super().losses(outputs, batch)
    found["soft_loss"] = losses.distillation(
      words, their_words, self._compared(batch), self._settings.temperature
    )
    if self._settings.cosine_weight:
      found["cosine_loss"] = losses.cosine_distance(
        hidden, theirs, _tokens(batch)
      )
    for name in self._layerwise:
      compare = (
        losses.attention_divergence
        if name == "attention"
        else losses.squared_distance
      )
      own, other = more[0][name]
      found[f"{name}_loss"] = compare(own, other, _tokens(batch))
    return found

  def weights(self, batch: kind.Batch) -> dict[str, jax.Array]:
    found = super().weights(batch) | {"soft_loss": self._compared(batch).sum()}
    if self._settings.cosine_weight:
      found["cosine_loss"] = _tokens(batch).sum()
    more = {f"{k}_loss": _tokens(batch).sum() for k in self._layerwise}
    return found | more

  def _compared(self, batch: kind.Batch) -> jax.Array:
    """Returns the weight of each position at which words are compared."""
    if self._settings.positions == "masked":
      return batch["masked_weights"]
    return _tokens(batch)

  def step_flops(
    self, model: Any, data: Any, num_rows: int, **options: Any
  ) -> int:
    teacher = self._teacher_config(ModelConfig.from_config(model))
    attended = None if options["all_positions"] else options["attended"]
    found = 0
    slots = batching.num_masked_slots(data)
    if self._settings.positions == "all":
      slots = data.seq_len
    models: tuple[tuple[Any, int], ...] = ((model, 3), (teacher, 1))
    for one, passes in models:
      same = not options["all_positions"] and (
        one.local_radius == model.local_radius
      )
      forward = flops.encoder_flops(
        one,
        num_rows,
        data.seq_len,
        attended=attended,
        near=options.get("near") if same else None,
      )
      width = one.embedding_size or one.hidden_size
      head = one.hidden_size * width + width * one.vocab_size
      found += passes * (forward + 2 * num_rows * slots * head)
    return found


def _tokens(batch: kind.Batch) -> jax.Array:
  """Returns float32 [B, L], 1 for each token of an example that counts."""
  is_token = batch["input_mask"].astype(jnp.float32)
  if batch["weight"].ndim > 1:  # packed rows hold only examples that count
    return is_token
  return is_token * batch["weight"][:, None]


def _sentences(outputs: Any, batch: kind.Batch) -> tuple[jax.Array, ...]:
  """Returns the logits, labels and weights of the next sentence."""
  return outputs[1], batch["nsp_label"], batch["weight"]


def unigram_metrics(
  ids: jax.Array, weights: jax.Array, log_probs: jax.Array
) -> kind.Sums:
  """Returns the metrics of a model that knows only the frequencies of tokens.

  Args:
    ids: [B, P], the tokens to predict.
    weights: [B, P], their weights.
    log_probs: [V], the log-probability of each token of the training text.
  """
  total = weights.sum()
  right = (ids == jnp.argmax(log_probs)) * weights
  return {
    "unigram_loss": (-(log_probs[ids] * weights).sum(), total),
    "most_frequent_token_accuracy": (right.sum(), total),
  }


MLM = Mlm()
MLM_NSP = MlmNsp()
MLM_SOP = MlmSop()
RTD = Rtd()
DISTILL = Distill()
LTR = Ltr()


class FillMask(answers.Answerer):
  """Gives the best tokens for every [MASK]."""

  name = "fill-mask"
  parts = ("mlm",)
  kind = MLM
  levels = {"scores": "mask", "ids": "mask"}
  record_fields = ("text",)
  example = {"text": "Paris is the [MASK] of France."}
  request_options = {"top_k": answers.Count(5, 50)}
  token_outputs = ("logits",)
  transformers_class = "AutoModelForMaskedLM"

  @classmethod
  def program_options(cls, options, pretrained):
    """Returns a top_k that is a power of two: of these there are few."""
    top_k = options.get("top_k")
    size = pretrained.tokenizer.vocab_size if pretrained.tokenizer else 0
    is_whole = isinstance(top_k, int) and not isinstance(top_k, bool)
    if not is_whole or not 1 <= top_k <= size:
      return dict(options)  # the predictor says what is wrong
    return {**options, "top_k": min(1 << (top_k - 1).bit_length(), size)}

  @classmethod
  def narrow(cls, answer, options):
    if (top_k := options.get("top_k")) is None:
      return answer
    return answer | {"masks": [best[:top_k] for best in answer["masks"]]}

  @classmethod
  def serving_options(cls, pretrained, predict):
    most = cls.request_options["top_k"].most
    if pretrained.tokenizer:
      most = min(most, pretrained.tokenizer.vocab_size)
    return [{"top_k": most}]

  def unpacked(self, params, ids, mask, types):
    places = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    variables = {"params": params}
    logits, _ = self._model.apply(variables, ids, mask, types, places)
    return {"logits": logits}  # [B, L, V]

  def __init__(self, context: answers.Context):
    super().__init__(context)
    self._top_k = context.predict.top_k
    if context.model.attention_pattern == "causal":
      raise answers.PredictError(
        "this model reads from left to right (model.attention_pattern=causal) "
        "and does not see what is behind a gap, so that it cannot fill it; use "
        "a model of both sides, or predict.kind=embed"
      )
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
