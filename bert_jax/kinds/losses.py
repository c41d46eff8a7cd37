"""Pure losses and metrics of arrays, each a sum and its weight.

The division happens once, where the global sums are known, since the mean over
devices or micro-batches of their means is not the mean of the batch.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

# The score of a token outside the sequence. It is finite, so that the gradient
# of a slot without a sequence is 0 and not NaN.
OUTSIDE_SCORE = -1e9


@dataclasses.dataclass(frozen=True)
class Options:
  """Changes of the training loss; the defaults leave cross-entropy as it is.

  Attributes:
    class_weights: returns [K] the weight of each label; None = all weigh 1. It
      is called when the loss is traced, because data may decide the weights.
    smoothing: the share of the right answer that is spread over all answers.
    gamma: the exponent of focal loss; 0 = none.
  """

  class_weights: Callable[[], np.ndarray] | None = None
  smoothing: float = 0.0
  gamma: float = 0.0

  @property
  def is_plain(self) -> bool:
    """Whether the loss is the plain one."""
    return not (self.class_weights or self.smoothing or self.gamma)

  def of_labels(self, labels: jax.Array) -> jax.Array:
    """Returns the weight of each label of an array of integers."""
    if self.class_weights is None:
      return jnp.ones(labels.shape, jnp.float32)
    return jnp.asarray(self.class_weights(), jnp.float32)[labels]

  def of_classes(self, logits: jax.Array) -> jax.Array:
    """Returns the weight of each class, in the shape of logits [..., K]."""
    every = self.of_labels(jnp.arange(logits.shape[-1]))
    return jnp.broadcast_to(
      every.reshape((1,) * (logits.ndim - 1) + every.shape), logits.shape
    )


PLAIN = Options()


def class_cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  options: Options = PLAIN,
  is_class: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns the sum of the losses of class labels, and its weight.

  With p the softmax, y the label, w the class weights and e the smoothing, the
  loss is (1 - e) w_y (1 - p_y)^gamma (-log p_y) + e / K sum_k w_k (-log p_k),
  and its weight is w_y.

  Args:
    logits: [..., K].
    labels: [...] integers from 0 to K - 1.
    weights: [...] the weight of each label.
    options: what the loss has beyond `cross_entropy`.
    is_class: [..., K] bool, the classes that there are; None = all.

  Returns:
    Two float32 scalars: the sum of weight * loss (nats), the sum of weights.

  Source: Lin et al., arXiv:1708.02002 (focal loss); Szegedy et al.,
  arXiv:1512.00567, section 7 (smoothing). Class weights and smoothing together
  are as in PyTorch's CrossEntropyLoss.
  """
  if options.is_plain:
    return cross_entropy(logits, labels, weights)
  _check_shapes(logits, labels, weights)
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  chosen = jnp.sum(jnp.where(_is_label(logits, labels), log_p, 0.0), axis=-1)
  own = options.of_labels(labels)
  loss = own * -chosen
  if options.gamma:
    loss *= jnp.maximum(-jnp.expm1(chosen), _LEAST) ** options.gamma
  if options.smoothing:
    exists = jnp.ones(logits.shape, bool) if is_class is None else is_class
    every = -log_p * options.of_classes(logits)
    spread = jnp.sum(jnp.where(exists, every, 0.0), axis=-1)
    spread /= jnp.maximum(exists.sum(axis=-1), 1)
    loss = (1 - options.smoothing) * loss + options.smoothing * spread
  weights = weights.astype(jnp.float32)
  loss = jnp.where(weights == 0, 0.0, loss)
  return jnp.sum(loss * weights), jnp.sum(own * weights)


# The least 1 - p in focal loss, whose gradient for gamma < 1 grows without
# bound towards p = 1.
_LEAST = 1e-6


def cross_entropy(
  logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the weighted sum of -log softmax(logits)[label], and the weight.

  The softmax is taken in float32 whatever the dtype of the logits. No one-hot
  array and no array of log-probabilities is kept, which for a vocabulary of 30k
  words are the largest arrays of a step: the backward pass reads the logits
  again and writes their gradient at once.

  Args:
    logits: [..., K], any float dtype.
    labels: [...] integers from 0 to K - 1. Any other value makes the sum NaN,
      unless its weight is 0.
    weights: [...] the weight of each label.

  Returns:
    Two float32 scalars: the sum of weight * loss (nats), the sum of weights.

  Raises:
    ValueError: The shapes do not match.

  Example:
    >>> loss, weight = cross_entropy(
    ...   jnp.zeros([2, 4]), jnp.array([1, 3]), jnp.array([1.0, 0.0])
    ... )
    >>> round(float(loss), 4), float(weight)
    (1.3863, 1.0)

  Source: google-research/bert run_pretraining.py:270-280.
  """
  _check_shapes(logits, labels, weights)
  weights = weights.astype(jnp.float32)
  loss = _negative_log_likelihood(logits, labels)
  # Multiplication by a weight of 0 would keep a NaN.
  loss = jnp.where(weights == 0, 0.0, loss)
  return jnp.sum(loss * weights), jnp.sum(weights)


def accuracy(
  logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the weighted number of correct predictions, and the weight.

  Args:
    logits: [..., K]; the prediction is the first of the largest.
    labels: [...] integers.
    weights: [...] the weight of each prediction.

  Returns:
    Two float32 scalars: the sum of the weights where the prediction is right,
    and the sum of all weights.

  Raises:
    ValueError: The shapes do not match.
  """
  _check_shapes(logits, labels, weights)
  weights = weights.astype(jnp.float32)
  correct = jnp.argmax(logits, axis=-1) == labels
  return jnp.sum(jnp.where(correct, weights, 0.0)), jnp.sum(weights)


def squared_error(
  predictions: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the weighted sum of (prediction - label)^2, and the weight.

  Args:
    predictions: [...] floats.
    labels: [...] floats.
    weights: [...] the weight of each prediction.

  Raises:
    ValueError: The shapes do not match.
  """
  _check_shapes(predictions[..., None], labels, weights)
  weights = weights.astype(jnp.float32)
  error = predictions.astype(jnp.float32) - labels.astype(jnp.float32)
  return jnp.sum(jnp.square(error) * weights), jnp.sum(weights)


def sigmoid_cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  options: Options = PLAIN,
) -> tuple[jax.Array, jax.Array]:
  """Returns the weighted sum of -log p(label) of binary labels, and the weight.

  A class weight multiplies the losses of the cases that have the label, and
  smoothing moves both values of a label towards 1/2. Neither changes the
  returned weight.

  Args:
    logits: [..., K]; the sigmoid gives the probability of 1.
    labels: [..., K], 0 or 1.
    weights: the weight of each label; broadcasts to [..., K].
    options: what the loss has beyond that.

  Returns:
    Two float32 scalars: the sum of weight * loss (nats), the sum of weights.
  """
  x = logits.astype(jnp.float32)
  if options.smoothing:
    soft = labels * (1 - options.smoothing) + options.smoothing / 2
  else:
    soft = labels
  loss = jax.nn.softplus(x) - x * soft
  if options.gamma:
    is_wrong = jax.nn.sigmoid(jnp.where(labels > 0.5, -x, x))  # 1 - p(label)
    loss *= jnp.maximum(is_wrong, _LEAST) ** options.gamma
  if options.class_weights:
    loss *= jnp.where(labels > 0.5, options.of_classes(x), 1.0)
  weights = jnp.broadcast_to(weights, x.shape).astype(jnp.float32)
  return jnp.sum(loss * weights), jnp.sum(weights)


def span_cross_entropy(
  logits: jax.Array,
  sequence_ids: jax.Array,
  start: jax.Array,
  end: jax.Array,
  weights: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns the weighted sum of the losses of the ends of answers, and weight.

  Each sequence has two softmaxes over its own tokens: one for the first token
  of the answer and one for the last. The loss is the mean of both.

  Differs from BERT: there, the softmax is also over the padding after the
  sequence, which a packed row does not have.

  Args:
    logits: [B, L, 2] the scores of each token as the start and as the end.
    sequence_ids: [B, L] the number of the token's sequence in its row, from 1.
    start: [B, S] the position in the row of the first token of the answer.
    end: [B, S] the position in the row of the last token of the answer.
    weights: [B, S] the weight of each sequence; 0 for a slot without one.

  Returns:
    Two float32 scalars: the sum of weight * loss (nats), the sum of weights.

  Source: google-research/bert run_squad.py:646-660.
  """
  slots = jnp.arange(1, start.shape[1] + 1, dtype=sequence_ids.dtype)
  own = sequence_ids[:, None] == slots[None, :, None]  # [B, S, L]
  total = jnp.zeros((), jnp.float32)
  for side, label in enumerate((start, end)):
    scores = jnp.where(own, logits[:, None, :, side], OUTSIDE_SCORE)
    total += cross_entropy(scores, label, weights)[0] / 2
  return total, jnp.sum(weights.astype(jnp.float32))


def distillation(
  scores: jax.Array, teacher: jax.Array, weights: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
  """Returns the weighted sum of T^2 KL(teacher || scores), and the weight.

  Both softmaxes are of scores / T; T^2 keeps the size of the gradient.

  Args:
    scores: [..., K], of the student.
    teacher: [..., K].
    weights: [...].
    temperature: T.

  Source: arXiv:1503.02531, section 2.
  """
  ours, theirs = (
    jax.nn.log_softmax(x.astype(jnp.float32) / temperature)
    for x in (scores, teacher)
  )
  divergence = jnp.sum(jnp.exp(theirs) * (theirs - ours), -1)
  weights = weights.astype(jnp.float32)
  return temperature**2 * jnp.sum(divergence * weights), jnp.sum(weights)


def cosine_distance(
  x: jax.Array, y: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the weighted sum of 1 - cosine of vectors, and the weight.

  Args:
    x: [..., D].
    y: [..., D].
    weights: [...].
  """
  x, y = x.astype(jnp.float32), y.astype(jnp.float32)
  product = jnp.sum(x * y, -1)
  squares = jnp.sum(x * x, -1) * jnp.sum(y * y, -1)
  weights = weights.astype(jnp.float32)
  distance = 1 - product * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
  return jnp.sum(distance * weights), jnp.sum(weights)


def squared_distance(
  x: jax.Array, y: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the weighted sum over layers of mean squared errors; the weight.

  Args:
    x: [layers, B, L, D].
    y: [layers, B, L, D].
    weights: [B, L].
  """
  error = jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32))
  weights = weights.astype(jnp.float32)
  return jnp.sum(error.mean(-1).sum(0) * weights), jnp.sum(weights)


def attention_divergence(
  maps: jax.Array, teacher: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the weighted sum over layers of KL(teacher || maps); the weight.

  The divergence of the probabilities of each query is averaged over heads.

  Args:
    maps: [layers, B, N, L, L], rows that sum to 1.
    teacher: [layers, B, N, L, L].
    weights: [B, L], of the queries.
  """
  least = 1e-12
  theirs = teacher.astype(jnp.float32)
  ours = jnp.log(jnp.maximum(maps.astype(jnp.float32), least))
  gain = jnp.log(jnp.maximum(theirs, least)) - ours
  divergence = jnp.sum(theirs * gain, -1).mean(2).sum(0)  # [B, L]
  weights = weights.astype(jnp.float32)
  return jnp.sum(divergence * weights), jnp.sum(weights)


def mean(sum_: jax.Array, weight: jax.Array) -> jax.Array:
  """Returns sum / weight, or 0 with a gradient of 0 if the weight is 0.

  A batch in which nothing counts, such as one without masked tokens, then
  changes the parameters only by its other losses and does not make them NaN.
  Reported numbers use `metrics.finish`, for which such a batch is an error.

  Differs from BERT: there, 1e-5 is added to the weight of the masked LM loss
  (run_pretraining.py:279).

  Args:
    sum_: the sum over the global batch.
    weight: its weight, of the same shape; not negative.
  """
  empty = weight == 0
  return jnp.where(empty, 0.0, sum_ / jnp.where(empty, 1.0, weight))


def _check_shapes(
  logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> None:
  if labels.shape != logits.shape[:-1] or weights.shape != labels.shape:
    raise ValueError(
      f"logits {logits.shape}, labels {labels.shape} and weights"
      f" {weights.shape} do not match; wanted [..., K], [...] and [...]"
    )


@jax.custom_vjp
def _negative_log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns [...] float32 of [..., K] and [...]; NaN for an unknown label."""
  return _nll_forward(logits, labels)[0]


def _nll_forward(
  logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  x = logits.astype(jnp.float32)
  log_z = jax.nn.logsumexp(x, axis=-1)
  # A masked sum, unlike a gather, runs in the same pass over the logits and
  # stays local if the vocabulary is sharded over devices.
  chosen = jnp.sum(jnp.where(_is_label(logits, labels), x, 0.0), axis=-1)
  exists = (labels >= 0) & (labels < logits.shape[-1])
  loss = jnp.where(exists, log_z - chosen, jnp.nan)
  return loss, (logits, labels, log_z)


def _nll_backward(
  residuals: tuple[jax.Array, ...], g: jax.Array
) -> tuple[jax.Array, None]:
  logits, labels, log_z = residuals
  probs = jnp.exp(logits.astype(jnp.float32) - log_z[..., None])
  grad = (probs - _is_label(logits, labels)) * g[..., None]
  return grad.astype(logits.dtype), None


def _is_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns [..., K] bool, true at the label; it is fused and never stored."""
  classes = jax.lax.broadcasted_iota(
    labels.dtype, logits.shape, logits.ndim - 1
  )
  return classes == labels[..., None]


_negative_log_likelihood.defvjp(_nll_forward, _nll_backward)
