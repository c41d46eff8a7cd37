"""How far probabilities can be trusted, and what makes them fit held-out data.

Everything here is computed from the predictions of a split with labels, on the
host.
"""

import numpy as np

NUM_BINS = 15
# With fewer examples, a temperature or a threshold says little.
LEAST_EXAMPLES = 50


def expected_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
  """Returns the expected calibration error, from 0 to 1.

  The predictions are put into bins of equal width by the probability of the
  predicted label. The error of a bin is the distance of its mean probability
  from its share of correct predictions; the result is their mean, weighted by
  the number of predictions.

  Args:
    probabilities: [N, K], whose rows add up to 1.
    labels: [N] the right labels.

  Source: Guo et al., arXiv:1706.04599, equation 3, with 15 bins.
  """
  sure = probabilities.max(axis=1)
  right = probabilities.argmax(axis=1) == labels
  bins = np.minimum((sure * NUM_BINS).astype(int), NUM_BINS - 1)
  gaps = np.bincount(bins, weights=right - sure, minlength=NUM_BINS)
  return float(np.abs(gaps).sum() / len(labels))


def with_temperature(
  probabilities: np.ndarray, temperature: float
) -> np.ndarray:
  """Returns the probabilities [N, K] whose logits are divided by a number."""
  # A probability of 0 is that of a choice that an example does not have.
  with np.errstate(divide="ignore"):
    logits = np.log(probabilities) / temperature
  weights = np.exp(logits - logits.max(axis=1, keepdims=True))
  return weights / weights.sum(axis=1, keepdims=True)


def best_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
  """Returns the temperature with the lowest loss, from 0.05 to 20.

  Args:
    probabilities: [N, K], whose rows add up to 1.
    labels: [N] the right labels.

  Source: Guo et al., arXiv:1706.04599, section 4.2.
  """
  from scipy import optimize  # slow to import

  def loss(log_temperature: float) -> float:
    found = with_temperature(probabilities, np.exp(log_temperature))
    chosen = found[np.arange(len(labels)), labels]
    return -float(np.mean(np.log(np.maximum(chosen, 1e-300))))

  limit = np.log(20.0)
  found = optimize.minimize_scalar(
    loss, bounds=(-limit, limit), method="bounded"
  )
  return float(np.exp(found.x))


def best_threshold(probabilities: np.ndarray, has: np.ndarray) -> float:
  """Returns the threshold with the best F1 of a label, from 0 to 1.

  It lies in the middle between two probabilities. Without any example that has
  the label, it is 0.5.

  Args:
    probabilities: [N] the probability of the label.
    has: [N] bool, whether an example has it.
  """
  if not has.any():
    return 0.5
  order = np.argsort(-probabilities, kind="stable")
  sorted_p = probabilities[order]
  hits = np.cumsum(has[order])
  f1 = 2 * hits / (np.arange(1, len(has) + 1) + has.sum())
  # A threshold cannot divide equal probabilities.
  f1[:-1][sorted_p[:-1] == sorted_p[1:]] = -1
  best = int(f1.argmax())
  below = sorted_p[best + 1] if best + 1 < len(has) else 0.0
  return float((sorted_p[best] + below) / 2)


def describe(probabilities: np.ndarray, labels: np.ndarray) -> str:
  """Returns a line about the calibration of a split; "" if it is small.

  Args:
    probabilities: [N, K], whose rows add up to 1.
    labels: [N] the right labels.
  """
  if len(labels) < LEAST_EXAMPLES:
    return ""
  more = best_temperature(probabilities, labels)
  after = expected_error(with_temperature(probabilities, more), labels)
  before = expected_error(probabilities, labels)
  return (
    f"calibration: probabilities are {before:.3f} off (expected calibration "
    "error). The loss here is lowest with task.temperature (1.0 unless set) "
    f"times {more:.3g}, where they are {after:.3f} off"
  )
