"""Models in folders: read, written, and laid out as a model wants them.

  model = weights.read("bert-base-uncased")
  weights.write(model, "converted", "tf1")
  params, added, dropped = weights.fit(model.params, wanted)

Who uses weights imports this package, not its modules.
"""

from bert_jax.weights.fitting import fit
from bert_jax.weights.folders import read
from bert_jax.weights.folders import write
from bert_jax.weights.pretrained import SETTINGS
from bert_jax.weights.pretrained import Pretrained
from bert_jax.weights.pretrained import WeightsError

__all__ = [
  "SETTINGS",
  "Pretrained",
  "WeightsError",
  "fit",
  "read",
  "write",
]
