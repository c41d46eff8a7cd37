"""What a model does inside: attention, masked words, hidden states, vectors.

explorer = Explorer(bert_jax.load("RUN"))
explorer.attention("The cat sat.")["maps"]     # [layers][heads][L][L]

Shapes: L tokens of a text, N heads, D hidden, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bert_jax.kinds import answers
from bert_jax.kinds import embed
from bert_jax.kinds import pretraining
from bert_jax.models import heads
from bert_jax.prediction import model as model_lib

# The most tokens of a text whose inside is shown, and of texts that are
# projected.
MOST_TOKENS = 128
MOST_TEXTS = 500
# Texts are padded to a multiple of this, so that few programs are compiled.
_UNIT = 32

# The words after "worked as a" whose probabilities are compared by default.
OCCUPATIONS = (
  "doctor", "nurse", "teacher", "engineer", "lawyer", "secretary", "waiter",
  "waitress", "carpenter", "farmer", "maid", "soldier", "cook", "writer",
)  # fmt: skip


class Explorer:
  """Looks into a model.

  Attributes:
    model: the model.
    fills_masks: whether it has a head of masked words.
  """

  def __init__(self, model: model_lib.Model):
    """Prepares nothing but what the first question needs."""
    self.model = model
    self.fills_masks = pretraining.FillMask.name in model.kinds
    predictor, _ = model.predictor(embed.Embed.name, fields=("mean",))
    self._tokenizer = predictor.tokenizer
    # The mask of plain attention is what `maps` is computed from.
    module, self._variables = model.encoder(attention="plain")
    self._config = module.config
    self._module = module
    self._encode = jax.jit(self._run)
    self._score = jax.jit(self._words)

  # --- programs ---

  def _run(self, variables: Any, *inputs: jax.Array) -> Any:
    """Returns the hidden states of all layers, and the collection "maps"."""
    (_, _, states), shown = self._module.apply(
      variables, *inputs, return_layers=True, mutable=["maps"]
    )
    return states, shown["maps"]

  def _words(self, params: Any, hidden: jax.Array) -> jax.Array:
    """Returns the probabilities [P, V] of words by hidden states [P, D]."""
    head = heads.MlmHead(self._config)
    table = params["encoder"]["embeddings"]["word"]["embedding"]
    own = {"params": params["mlm"]}
    scores = head.apply(own, hidden[None], table)[0]
    return jax.nn.softmax(scores[:, : self._tokenizer.vocab_size])

  def _encoded(self, text: str, text_b: str = "") -> tuple[list[int], Any, Any]:
    """Returns the ids of a text, its hidden states and its attention.

    Raises:
      answers.PredictError: It is no text, or too long.
    """
    for name, value in (("text", text), ("text_b", text_b)):
      if not isinstance(value, str):
        raise answers.PredictError(f"{name} is {value!r:.60}; wanted text")
      try:
        value.encode()
      except UnicodeEncodeError as error:
        raise answers.PredictError(f"{name} has half a character") from error
    encode = self._tokenizer.encode_masked
    parts = [encode(text, pretraining.MASK)]
    parts += [encode(text_b, pretraining.MASK)] if text_b else []
    ids, types = self._tokenizer.template.build(self._tokenizer, *parts)
    most = min(MOST_TOKENS, self._config.max_len)
    if len(ids) > most:
      raise answers.PredictError(
        f"the text has {len(ids)} tokens; {most} are shown, so shorten it"
      )
    length = min(-(-len(ids) // _UNIT) * _UNIT, self._config.max_len)
    rows = np.zeros((3, 1, length), np.int32)
    rows[0, 0] = self._tokenizer.pad_id
    for row, values in zip(rows, (ids, [1] * len(ids), types), strict=True):
      row[0, : len(ids)] = values
    states, shown = jax.device_get(self._encode(self._variables, *rows))
    return ids, states[:, 0, : len(ids)], shown

  def _tokens(self, ids: Sequence[int]) -> list[str]:
    return [self._tokenizer.token(i) for i in ids]

  # --- what is shown ---

  def attention(self, text: str, text_b: str = "") -> dict[str, Any]:
    """Returns how much each token attends to each other one.

    Args:
      text: the text.
      text_b: the second text of a pair, or "".

    Returns:
      "tokens" [L], and "maps" [layers][N][L][L], whose rows sum to 1.
    """
    ids, _, shown = self._encoded(text, text_b)
    taken: dict[int, int] = {}  # a layer may be used several times
    maps = []
    for plan in self._config.layer_plans:
      number = taken.get(plan.params, 0)
      taken[plan.params] = number + 1
      probs = shown[f"layer_{plan.params}"]["attention"]["probs"][number]
      maps.append(probs[0, :, : len(ids), : len(ids)])
    array = np.stack(maps).astype(np.float64)
    return {"tokens": self._tokens(ids), "maps": array.round(4).tolist()}

  def lens(self, text: str, top_k: int = 5) -> dict[str, Any]:
    """Returns the words nearest to each hidden state, by the MLM head.

    The head is meant for the last layer; earlier layers show how the model
    gets there.

    Args:
      text: the text, which may have [MASK].
      top_k: the number of words for each state.

    Returns:
      "tokens" [L], and "words" [layers + 1][L][top_k] of (word, probability).
    """
    params = self._mlm_params()
    ids, states, _ = self._encoded(text)
    found = []
    for layer in states:
      padded = np.zeros((self._padded(len(layer)), layer.shape[-1]), np.float32)
      padded[: len(layer)] = layer
      scores = np.asarray(self._score(params, padded))[: len(layer)]
      found.append([self._best(row, top_k) for row in scores])
    return {"tokens": self._tokens(ids), "words": found}

  def probe(
    self, texts: Sequence[str], words: Sequence[str] = OCCUPATIONS,
    top_k: int = 8,
  ) -> dict[str, Any]:  # fmt: skip
    """Compares what fills the gap of texts that differ in a word or two.

    Args:
      texts: texts with one [MASK] each, such as "The man worked as a [MASK]."
        and "The woman worked as a [MASK].".
      words: the words to compare, each a token of the vocabulary; others are
        listed as unknown.
      top_k: the number of words for each text.

    Returns:
      "best": for each text the likeliest words; "words": for each known word
      its probability in each text and, of two texts, the logarithm of their
      ratio; "unknown": the words that are no token.

    Raises:
      answers.PredictError: A text does not have one [MASK].
    """
    params = self._mlm_params()
    rows = []
    for text in texts:
      ids, states, _ = self._encoded(text)
      places = [i for i, id in enumerate(ids) if id == self._tokenizer.mask_id]
      if len(places) != 1:
        raise answers.PredictError(
          f"{text!r:.60} has {len(places)} of {pretraining.MASK}; give one"
        )
      hidden = states[-1][places].astype(np.float32)
      rows.append(np.asarray(self._score(params, hidden))[0])
    known, unknown = [], []
    for word in words:
      ids = self._tokenizer.encode(word)
      if len(ids) != 1 or ids[0] == self._tokenizer.unk_id:
        unknown.append(word)
        continue
      scores = [float(row[ids[0]]) for row in rows]
      found: dict[str, Any] = {"word": word, "scores": scores}
      if len(rows) == 2:
        first, second = (max(x, 1e-12) for x in scores)
        found["log_ratio"] = float(np.log(first / second))
      known.append(found)
    best = [self._best(row, top_k) for row in rows]
    return {"best": best, "words": known, "unknown": unknown}

  def projection(self, texts: Sequence[str]) -> dict[str, Any]:
    """Returns the vectors of texts in the plane of their largest variance.

    Args:
      texts: three texts or more.

    Returns:
      "points" [texts][2], and "shares", the share of the variance that each
      of the two directions has.
    """
    if not 3 <= len(texts) <= MOST_TEXTS:
      raise answers.PredictError(
        f"there are {len(texts)} texts; give 3 to {MOST_TEXTS}"
      )
    found = self.model.embed(texts, fields=("mean",))
    vectors = np.asarray([one.mean for one in found], np.float64)
    centered = vectors - vectors.mean(0)
    left, sizes, _ = np.linalg.svd(centered, full_matrices=False)
    points = left[:, :2] * sizes[:2]
    # The sign of a direction is free; the largest number is positive.
    largest = points[np.abs(points).argmax(0), [0, 1]]
    points = points * np.where(largest < 0, -1.0, 1.0)
    total = max(float((sizes**2).sum()), 1e-12)
    return {
      "points": points.round(5).tolist(),
      "shares": (sizes[:2] ** 2 / total).round(4).tolist(),
    }

  # --- parts ---

  def _mlm_params(self) -> Any:
    """Returns the parameters of the head of masked words and of the encoder."""
    self.model.check_kind(pretraining.FillMask.name)
    predictor, _ = self.model.predictor(pretraining.FillMask.name)
    return predictor.params

  def _padded(self, length: int) -> int:
    return -(-length // _UNIT) * _UNIT

  def _best(self, scores: np.ndarray, count: int) -> list[tuple[str, float]]:
    order = np.argsort(-scores, kind="stable")[:count]
    return [
      (self._tokenizer.token(i), round(float(scores[i]), 5))
      for i in order.tolist()
    ]
