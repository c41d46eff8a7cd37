"""Reads and writes models in folders, and fits weights into a model.

  model = weights.read("bert-base-uncased")
  weights.write(model, "converted", "tf1")
  params, added, dropped = weights.fit(model.params, wanted)

Code in other packages imports this package, not its modules.
"""

from bert_jax.weights.fitting import fit
from bert_jax.weights.folders import check
from bert_jax.weights.folders import of_run
from bert_jax.weights.folders import read
from bert_jax.weights.folders import write
from bert_jax.weights.pretrained import SETTINGS
from bert_jax.weights.pretrained import Pretrained
from bert_jax.weights.pretrained import WeightsError

__all__ = [
  "SETTINGS",
  "Pretrained",
  "WeightsError",
  "check",
  "fit",
  "of_run",
  "read",
  "write",
]
