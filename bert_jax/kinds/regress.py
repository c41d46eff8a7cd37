"""Regression: a score of a text or a pair of texts, as in GLUE's STS-B.

The original code has no regression. The head is that of classification with one
output, which is trained with the squared error.
"""

import numpy as np

from bert_jax.data import batch_keys
from bert_jax.kinds import answers
from bert_jax.kinds import losses
from bert_jax.kinds import task_kind
from bert_jax.kinds import windows
from bert_jax.tasks import own


def _correlation(name: str, function: str) -> task_kind.Score:
  """Makes a metric from a function of scipy.stats."""

  def correlate(task, guess, right) -> float:
    from scipy import stats  # slow to import

    if len(set(guess)) == 1 or len(set(right)) == 1:
      return task_kind.undefined(
        task, name, "the scores or the predictions are all the same"
      )
    return getattr(stats, function)(guess, right).statistic

  return correlate


class Regress(windows.TextKind):
  """Gives a text or a pair of texts a score."""

  name = "regress"
  labels = batch_keys.Labels({"label": ("BG", np.float32)})
  scores = {
    "pearson": _correlation("pearson", "pearsonr"),
    "spearman": _correlation("spearman", "spearmanr"),
  }
  decode_settings = ("long_texts",)
  forms = {"regress": own.Form(scores, (1, 2), own.read_scores)}

  def loss(self, outputs, batch, options=losses.PLAIN):
    return losses.squared_error(
      outputs[..., 0], batch["label"], batch["weight"]
    )

  def _decode(self, task, features, outputs, long_texts=windows.CUT, **options):
    return windows.pool(features, outputs, long_texts)[:, 0].tolist()

  def _columns(self, task, predictions, examples):
    return list(predictions), [e.label for e in examples]

  def row(self, task, prediction):
    return {"score": prediction}


REGRESS = Regress()


class Answerer(answers.TaskAnswerer):
  """Gives a text or a pair its score."""

  name = "regress"
  kind = REGRESS
  record_fields = ("text", "text_b")
  pair_rank = 3

  def relevances(self, found, label):
    del label
    return [answer["score"] for answer in found]
