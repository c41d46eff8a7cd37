"""Embeddings of texts, which need no head.

Source: BERT paper, section 5.3, for the concatenation of the last layers.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.kinds import answers
from bert_jax.kinds import pretraining
from bert_jax.kinds import windows
from bert_jax.models import encoder
from bert_jax.models import heads
from bert_jax.models.layers import gather_positions
from bert_jax.runtime import settings

FIELDS = ("tokens", "pooled", "mean", "layers", "concat", "sentence")
# The fields with something for each token, which windows of a text share.
_OF_TOKENS = ("tokens", "layers", "concat")

# The steps of modules.json that are known here.
_SENTENCE_STEPS = ("cls", "mean", "normalize")


class Embed(answers.Answerer):
  """Gives the vectors of the tokens and of the whole text."""

  name = "embed"
  parts = ()
  reads_long_texts = True
  long_texts = windows.CUT
  record_fields = ("text", "text_b")
  pair_rank = 1
  token_outputs = ("last_hidden_state",)
  transformers_class = "AutoModel"
  kind = pretraining.MLM  # only the inputs of its encoder are read

  def __init__(self, context: answers.Context):
    predict, depth = context.predict, context.model.num_layers
    # On a command line, a tuple of words is one word with commas.
    words = [word for field in predict.fields for word in field.split(",")]
    has_pooler = "pooler" in context.pretrained.params["encoder"]
    default = settings.KEYS["predict.fields"].default
    if not has_pooler and tuple(predict.fields) == default:
      words.remove("pooled")  # nobody asked for it
    steps = context.pretrained.sentence
    if tuple(predict.fields) == default and set(steps) <= {*_SENTENCE_STEPS}:
      words += ["sentence"] if len({*steps} - {"normalize"}) == 1 else []
    how = self.long_texts = predict.get("long_texts") or windows.CUT
    has_windows = how not in (windows.CUT, windows.FIRST)
    if has_windows and tuple(predict.fields) == default:
      words = [word for word in words if word not in _OF_TOKENS]
    fields = dict.fromkeys(words)
    self._concat_last = predict.concat_last
    self._layers = tuple(predict.layers)
    if self._concat_last:
      fields |= {"concat": None}
    if unknown := fields.keys() - set(FIELDS):
      raise answers.PredictError(
        f"predict.fields has {', '.join(sorted(unknown))}; the fields are "
        f"{', '.join(FIELDS)}"
      )
    if has_windows and (wrong := [x for x in fields if x in _OF_TOKENS]):
      rest = ",".join(x for x in fields if x not in wrong)
      raise answers.PredictError(
        f"predict.long_texts={how} gives one vector for all windows of a text, "
        f"so there is no field {', '.join(wrong)}; give "
        f"--config.predict.fields={rest or 'mean'}, or "
        "--config.predict.long_texts=cut"
      )
    if "concat" in fields and not 1 <= self._concat_last <= depth:
      raise answers.PredictError(
        f"predict.concat_last={self._concat_last}; the model has 1 to {depth} "
        "layers to join"
      )
    if "sentence" in fields:
      self._check_sentence(context)
    if "pooled" in fields and not has_pooler:
      rest = ",".join(name for name in fields if name != "pooled")
      raise answers.PredictError(
        f"{context.name} has no pooler, so it has no field pooled; give "
        f"--config.predict.fields={rest or 'mean'}"
      )
    for layer in self._layers:
      if not -depth - 1 <= layer <= depth:
        raise answers.PredictError(
          f"predict.layers has {layer}; the model has 0 (the embeddings) to "
          f"{depth}, or -1 (the last) to {-depth - 1}"
        )
    self._fields = tuple(fields)
    if "layers" not in fields:
      self._layers = ()
    self.levels = {f"layer {layer}": "token" for layer in self._layers}
    self.levels |= {"concat": "token"}
    self.levels |= dict.fromkeys(("pooled", "mean", "sentence"), "sequence")
    super().__init__(context)

  @classmethod
  def serving_options(cls, pretrained, predict):
    how = predict.get("long_texts") or windows.CUT
    fields = ["pooled"] if "pooler" in pretrained.params["encoder"] else []
    fields += ["mean", "sentence"]
    if how in (windows.CUT, windows.FIRST):
      fields = ["tokens", *fields]
    # Without modules.json, or with steps of others, there is no sentence.
    return [{"fields": tuple(fields)}, {"fields": tuple(fields[:-1])}]

  @property
  def vector(self):
    return next((x for x in ("sentence", "mean") if x in self._fields), "")

  def scoring_records(self, query, documents):
    return [{"text": query}, *({"text": text} for text in documents)]

  def relevances(self, found, label):
    """Returns the cosine of the angle between the query and each document."""
    del label
    vectors = np.stack([x[self.vector] for x in found]).astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.maximum(norms, 1e-12)
    return (vectors[1:] @ vectors[0]).tolist()

  def unpacked(self, params, ids, mask, types):
    variables = {"params": params["encoder"]}
    last, pooled = self._model.apply(variables, ids, mask, types)
    mean = heads.mean_of_sequences(last, mask, 1)[:, 0]  # [B, D]
    found = {"last_hidden_state": last, "mean": mean}
    return found if pooled is None else found | {"pooled": pooled}

  def of_transformers(self, found, mask):
    last = found.last_hidden_state
    weights = mask[..., None].to(last.dtype)
    mean = (last * weights).sum(1) / weights.sum(1).clamp(min=1.0)
    pooled = getattr(found, "pooler_output", None)
    outputs = {"last_hidden_state": last, "mean": mean}
    return outputs if pooled is None else outputs | {"pooled": pooled}

  def _check_sentence(self, context: answers.Context) -> None:
    """Raises PredictError if the folder does not say how to pool sentences."""
    steps = context.pretrained.sentence
    if not steps:
      raise answers.PredictError(
        f"{context.name} has no modules.json, which says how a sentence's "
        "vector is made, so it has no field sentence; give "
        "--config.predict.fields=mean"
      )
    if unknown := [step for step in steps if step not in _SENTENCE_STEPS]:
      raise answers.PredictError(
        f"by modules.json of {context.name} a sentence's vector needs "
        f"{', '.join(unknown)}, which this program does not compute; give "
        "--config.predict.fields=mean"
      )
    poolings = [step for step in steps if step != "normalize"]
    if len(poolings) != 1:
      raise answers.PredictError(
        f"modules.json of {context.name} pools by "
        f"{' and '.join(poolings) or 'nothing'}; a sentence's vector is made "
        "by cls or mean alone. Give --config.predict.fields=mean"
      )

  def make_model(self) -> Any:
    return encoder.Encoder(self.context.model)

  def init_params(self) -> Any:
    row = jnp.zeros((1, 8), jnp.int32)
    params = self._model.init(jax.random.key(0), row, row, row)["params"]
    return {"encoder": params}

  def step(self, params: Any, batch: dict[str, Any]) -> dict[str, Any]:
    variables = {"params": params["encoder"]}
    last, _, layers = self._model.apply(
      variables,
      batch["input_ids"],
      batch["input_mask"],
      batch["segment_ids"],
      positions=batch["positions"],
      sequence_ids=batch["sequence_ids"],
      return_layers=True,
    )
    outputs = {f"layer {layer}": layers[layer] for layer in self._layers}
    if "concat" in self._fields:
      joined = list(layers[-self._concat_last :])
      outputs["concat"] = jnp.concatenate(joined, axis=-1)
    if "pooled" in self._fields:
      first = gather_positions(last, batch["cls_positions"])
      outputs["pooled"] = self._model.apply(variables, first, method="pool")
    if "mean" in self._fields:
      slots = batch["cls_positions"].shape[1]
      outputs["mean"] = heads.mean_of_sequences(
        last, batch["sequence_ids"], slots
      )
    if "sentence" in self._fields:
      outputs["sentence"] = self._sentences(last, batch)
    return {k: value.astype(jnp.float32) for k, value in outputs.items()}

  def _sentences(self, last: jax.Array, batch: dict[str, Any]) -> jax.Array:
    """Returns the vectors [B, S, D] that modules.json asks for."""
    steps = self.context.pretrained.sentence
    pooling = next(step for step in steps if step != "normalize")
    x = heads.sentence_vectors(
      last, pooling, batch["sequence_ids"], batch["cls_positions"]
    )
    return heads.unit_vectors(x) if "normalize" in steps else x

  def results(
    self, window: answers.Window, outputs: Sequence[answers.Outputs]
  ) -> Iterator[dict]:
    if len(outputs) > len(window.examples):  # some texts have several windows
      outputs = self._pooled(window.features, outputs)
    yield from super().results(window, outputs)

  def _pooled(
    self, features: Any, outputs: Sequence[answers.Outputs]
  ) -> list[answers.Outputs]:
    """Returns the vectors of texts from those of their windows."""
    names = [name for name in self._fields if name in outputs[0]]
    texts: list[answers.Outputs] = [{} for _ in range(features.example[-1] + 1)]
    for name in names:
      vectors = np.stack([output[name].reshape(-1) for output in outputs])
      found = windows.pool(features, vectors, self.long_texts)
      if name == "sentence" and "normalize" in self.context.pretrained.sentence:
        norm = np.linalg.norm(found, axis=-1, keepdims=True)
        found = found / np.maximum(norm, 1e-12)
      for text, vector in zip(texts, found, strict=True):
        text[name] = vector
    return texts

  def result(self, example: Any, output: answers.Outputs) -> dict:
    rounded = {k: self._numbers(value) for k, value in output.items()}
    found = {
      "tokens": [self.tokenizer.token(i) for i in example.ids],
      "layers": {str(k): rounded[f"layer {k}"] for k in self._layers},
    } | rounded
    return {name: found[name] for name in self._fields}

  def _numbers(self, array: np.ndarray) -> Any:
    """Returns an output as JSON has it, or as an array of its own."""
    if self.context.as_arrays:
      return np.array(array)  # a part would keep the whole batch in memory
    wide = array.astype(np.float64)
    places = self.context.predict.decimals
    return (wide.round(places) if places else wide).tolist()
