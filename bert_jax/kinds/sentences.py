"""Vectors of texts that are compared: search, similarity and their scores.

`contrast` learns from queries and passages: the passage of a query must be
nearer to it than the passages of all other queries of the batch. `similarity`
learns from pairs of texts with a score.

Source: van den Oord et al. 2018, arXiv:1807.03748 (InfoNCE); Reimers and
Gurevych 2019, arXiv:1908.10084; Kusupati et al. 2022, arXiv:2205.13147
(Matryoshka sizes).
"""

import copy
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.data import batch_keys
from bert_jax.kinds import kind
from bert_jax.kinds import losses
from bert_jax.kinds import ranking
from bert_jax.kinds import regress
from bert_jax.kinds import task_kind
from bert_jax.models import heads
from bert_jax.models.config import ModelConfig
from bert_jax.tasks import features as task_features
from bert_jax.tasks import own
from bert_jax.tasks import own_rankings
from bert_jax.tasks import spec
from bert_jax.weights import task_heads

SETTINGS = (
  "pooling", "normalize", "contrast_temperature", "matryoshka_sizes",
  "matryoshka_weights",
)  # fmt: skip


class VectorKind(task_kind.TaskKind):
  """The base of kinds whose model gives each text a vector.

  An example has C texts, each a sequence of its own. The loss compares the
  vectors of a whole batch.

  Attributes:
    pooling: "mean" or "cls", how the vector of a text is made.
    normalize: whether texts are compared by the cosine of their vectors, and
      not by the product.
    temperature: what these numbers are divided by in the loss.
    sizes: Matryoshka: the loss is also that of the first so many dimensions.
    size_weights: the weight of the loss of each of these sizes.
  """

  # It has no parameters, and no place in files of weights.
  head = task_heads.TaskHead("vectors", role="token")
  heads = ()
  reads_batch = True
  own_settings = SETTINGS
  pooling = "mean"
  normalize = True
  temperature = 0.05
  sizes: tuple[int, ...] = ()
  size_weights: tuple[float, ...] = ()

  def for_config(self, config: Any) -> "VectorKind":
    """Takes the keys of `SETTINGS`.

    Raises:
      spec.TaskError: the Matryoshka sizes or their weights do not fit.
    """
    found, task = copy.copy(self), config.task
    if task.pooling != "auto":
      found.pooling = task.pooling
    found.normalize = task.normalize
    found.temperature = task.contrast_temperature
    found.sizes = tuple(map(int, task.matryoshka_sizes))
    given = tuple(map(float, task.matryoshka_weights))
    found.size_weights = given or (1.0,) * len(found.sizes)
    width = config.model.hidden_size
    if any(size > width for size in found.sizes):
      raise spec.TaskError(
        f"task.matryoshka_sizes={list(found.sizes)}, but vectors have "
        f"model.hidden_size={width} dimensions; give sizes up to that"
      )
    if len(found.sizes) != len(set(found.sizes)):
      raise spec.TaskError(
        f"task.matryoshka_sizes={list(found.sizes)} has a size twice"
      )
    if len(found.size_weights) != len(found.sizes):
      raise spec.TaskError(
        f"task.matryoshka_weights={list(given)} are {len(given)} weights for "
        f"{len(found.sizes)} sizes in task.matryoshka_sizes; give one for each"
      )
    return found

  @property
  def steps(self) -> tuple[str, ...]:
    """How a vector is made, as in `weights.Pretrained.sentence`."""
    return (self.pooling, *(["normalize"] if self.normalize else []))

  def facts(self, task: spec.Task) -> dict[str, Any]:
    del task
    return {"sentence": list(self.steps)}

  # --- The model and its loss ---

  def make_model(self, config: ModelConfig, num_labels: int = 0) -> nn.Module:
    del num_labels
    return heads.SentenceModel(config, self.pooling)

  def needs(self, path: str, config: ModelConfig) -> bool:
    del config
    return not path.startswith("encoder/pooler/")

  def _vectors(self, outputs: jax.Array, count: int) -> jax.Array:
    """Returns the vectors of the texts of all examples, float32 [M, C, D]."""
    return outputs.reshape(-1, count, outputs.shape[-1]).astype(jnp.float32)

  def loss(self, outputs, batch, options=losses.PLAIN):
    del options
    compared = self._compared(batch)
    total, weight = self._loss_of(outputs, batch, compared)
    if not self.sizes:
      return total, weight
    total = jnp.zeros_like(total)
    for size, factor in zip(self.sizes, self.size_weights, strict=True):
      part, _ = self._loss_of(outputs[..., :size], batch, compared)
      total += factor * part
    return total, weight

  def _compared(self, batch: kind.Batch) -> Any:
    """Returns what of a batch is compared; it is the same for all sizes."""
    raise NotImplementedError

  def _loss_of(
    self, outputs: jax.Array, batch: kind.Batch, compared: Any
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of the losses of vectors [B, S, D], and its weight."""
    raise NotImplementedError

  def _scaled(self, x: jax.Array) -> jax.Array:
    """Returns vectors [..., D] as they are compared."""
    return heads.unit_vectors(x) if self.normalize else x

  # --- Decoding ---

  def decode(self, task, features, outputs, **options):
    """Returns the vectors of the texts of each example, float32 [C, D]."""
    array = np.asarray(outputs, np.float32)
    count = len(features.lengths)
    if array.ndim != 2 or len(array) != count:
      raise spec.TaskError(
        f"task {task.name}: outputs of shape {array.shape}, wanted {count} "
        "vectors"
      )
    task_kind.check_finite(task, array)
    if self.normalize:
      norm = np.linalg.norm(array, axis=1, keepdims=True)
      array = array / np.maximum(norm, 1e-12)
    groups = array.reshape(len(features), features.num_choices, -1)
    return task_kind.without_filling(features, groups)


# The labels of examples that have different numbers of texts.
_SOME_TEXTS = batch_keys.Labels(
  {"label": ("BGK", np.int32), "num_choices": ("BG", np.int32)}
)


class Contrast(VectorKind):
  """Learns to find the passage of a query among those of the batch."""

  name = "contrast"
  labels = batch_keys.Labels({"label": ("BGK", np.int32)})
  scores = ranking.METRICS
  forms = {
    "embed": own.Form(ranking.METRICS, (0, 0), own_rankings.read, columns=())
  }
  num_choices = 2

  def batch_shapes(self, config: Any, num_labels: int = 1) -> batch_keys.Shapes:
    del num_labels
    return super().batch_shapes(config, self.num_choices)

  def _features(self, task, examples, tokenizer, seq_len):
    """Makes a sequence of the query and of each passage of an example.

    The labels are a number for each text, equal for equal texts and -1 where an
    example has fewer passages than others.
    """
    texts = [
      [example.pairs[0][0], *(passage for _, passage in example.pairs)]
      for example in examples
    ]
    counts = np.array([len(one) for one in texts], np.int32)
    most = int(counts.max())
    is_text = np.arange(most) < counts[:, None]
    numbers: dict[str, int] = {}
    label = np.full((len(texts), most), -1, np.int32)
    label[is_text] = [
      numbers.setdefault(text, len(numbers)) for one in texts for text in one
    ]
    return task_features.Features(
      **task_features.grouped_sequences(
        [[(text, None) for text in one] for one in texts], tokenizer, seq_len
      ),
      example=np.arange(len(examples), dtype=np.int32),
      label=label if spec.have_labels(task, examples) else None,
      num_choices=most,
      counts=None if is_text.all() else counts,
      labels=self.labels if is_text.all() else _SOME_TEXTS,
    )

  def _compared(self, batch):
    """Returns [M, M * (C - 1)] bool, the passages that each query meets.

    Not among them are other copies of its right passage, the right passages of
    other examples with the same query, and the query itself: none of these
    would be a wrong answer.
    """
    ids = batch["label"].reshape(-1, batch["label"].shape[-1])  # [M, C]
    counts = batch["weight"].reshape(-1) > 0
    ids = jnp.where(counts[:, None], ids, -1)
    query, positive, passages = ids[:, 0], ids[:, 1], ids[:, 1:].reshape(-1)
    own_place = jnp.arange(len(ids)) * (ids.shape[1] - 1)
    is_own = jnp.arange(len(passages))[None] == own_place[:, None]
    same_query = query[:, None] == query[None]  # [M, M]
    is_positive = positive[:, None] == passages[None]  # [M, P]
    is_right = (same_query.astype(jnp.float32) @ is_positive) > 0
    is_query = query[:, None] == passages[None]
    return is_own | ((passages >= 0)[None] & ~(is_right | is_query))

  def _loss_of(self, outputs, batch, compared):
    ids = batch["label"].reshape(-1, batch["label"].shape[-1])
    vectors = self._scaled(self._vectors(outputs, ids.shape[1]))
    passages = vectors[:, 1:].reshape(-1, vectors.shape[-1])
    scores = jnp.einsum(
      "MD,PD->MP",
      vectors[:, 0],
      passages,
      precision=jax.lax.Precision.HIGHEST,
    )
    scores = jnp.where(
      compared, scores / self.temperature, losses.OUTSIDE_SCORE
    )
    places = jnp.arange(len(ids)) * (ids.shape[1] - 1)
    return losses.cross_entropy(scores, places, batch["weight"].reshape(-1))

  def _score(self, task, predictions, examples):
    queries = [example.pairs[0][0] for example in examples]
    return ranking.retrieval(
      queries,
      [[passage for _, passage in example.pairs] for example in examples],
      np.stack([vectors[0] for vectors in predictions]),
      [vectors[1:] for vectors in predictions],
      task.metrics,
    )

  def row(self, task, prediction):
    query, *passages = prediction
    return {"scores": [float(query @ passage) for passage in passages]}

  def gold(self, task, example):
    return 0  # the first passage


class Similarity(VectorKind):
  """Learns to order pairs of texts by how similar they are (CoSENT).

  With s the given scores and c the cosines, the loss of a batch is
  log(1 + sum over pairs of examples with s_i > s_j of exp((c_j - c_i) / t)).
  """

  name = "similarity"
  labels = batch_keys.Labels({"label": ("BG", np.float32)})
  scores = {
    name: regress.Regress.scores[name] for name in ("spearman", "pearson")
  }
  forms = {
    "similarity": own.Form(scores, (2, 2), own.read_scores, columns=own.PAIR)
  }
  num_choices = 2

  def _features(self, task, examples, tokenizer, seq_len):
    """Makes a sequence of each text of a pair."""
    has_labels = spec.have_labels(task, examples)
    texts = [(x, None) for e in examples for x in (e.text_a, e.text_b)]
    return task_features.Features(
      **task_features.pair_sequences(texts, tokenizer, seq_len),
      example=np.arange(len(examples), dtype=np.int32),
      label=self._label_array(task, examples) if has_labels else None,
      num_choices=2,
      labels=self.labels,
    )

  def _compared(self, batch):
    """Returns [M, M] bool, whether the first is more similar than the second.

    Both must be examples that count.
    """
    label, counts = batch["label"].reshape(-1), batch["weight"].reshape(-1) > 0
    return (label[:, None] > label[None]) & counts[:, None] & counts[None]

  def _loss_of(self, outputs, batch, compared):
    vectors = self._scaled(self._vectors(outputs, 2))
    found = (vectors[:, 0] * vectors[:, 1]).sum(-1) / self.temperature
    differences = found[None] - found[:, None]
    terms = jnp.where(compared, differences, losses.OUTSIDE_SCORE)
    loss = jax.nn.logsumexp(jnp.append(terms.ravel(), 0.0))
    weight = batch["weight"].sum()
    return loss * weight, weight

  def _columns(self, task, predictions, examples):
    return [float(a @ b) for a, b in predictions], [e.label for e in examples]

  def row(self, task, prediction):
    return {"score": float(prediction[0] @ prediction[1])}


CONTRAST = Contrast()
SIMILARITY = Similarity()
