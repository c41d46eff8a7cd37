"""From a config to what is trained: pre-training, or a task."""

from collections.abc import Mapping
import os
from typing import TYPE_CHECKING, Any, Protocol

from flax import linen as nn
import jax

from bert_jax.data import batching
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import load
from bert_jax.kinds import kind
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps
from bert_jax.runtime import settings
from bert_jax.runtime.settings import Config
from bert_jax.training import pretraining

if TYPE_CHECKING:  # imported where they are used: their libraries are slow to
  from bert_jax import weights


class Evaluator(Protocol):
  """Held-out evaluation, ready to be called again and again."""

  def names(self, params: Any) -> list[str]:
    """The keys of what a call returns; needs only the parameters' shapes."""

  def __call__(self, params: Any) -> dict[str, float]:
    """Returns eval/NAME of every metric."""


class Job(Protocol):
  """What the loop needs to know: `Pretraining` or `FineTuning`."""

  config: Config
  model: nn.Module

  @property
  def tokenizer(self) -> interface.Tokenizer:
    """The vocabulary of the data."""

  @property
  def objective(self) -> kind.Kind:
    """What the model is trained on."""

  @property
  def total_steps(self) -> int:
    """Optimizer steps of the training."""

  @property
  def data_hash(self) -> str:
    """The hash that identifies the training data."""

  def read_hashes(self) -> dict[str, str]:
    """Hashes of all data read so far, held-out splits included, by name."""

  @property
  def facts(self) -> dict[str, Any]:
    """What run.json says about the training beside the config."""

  def batches(
    self, mesh: jax.sharding.Mesh, seed: int | None = None
  ) -> batching.TrainBatches:
    """The training batches by step, of this host's rows.

    Args:
      mesh: that they are for.
      seed: of their order; None = that of the config.
    """

  def evaluator(self, mesh: jax.sharding.Mesh) -> Evaluator:
    """The held-out evaluation on a mesh."""

  def write_predictions(
    self, evaluator: Any, params: Any, workdir: str
  ) -> list[str]:
    """Writes predictions that the config asks for; returns their paths."""

  def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Declares a global batch of training without reading any data.

    Pre-training has one shape, which the config decides. How many examples of
    a task share a row depends on the examples; here each has a row of its own,
    as with data.pack=False.
    """

  def mean_row(self) -> tuple[float, float] | None:
    """Returns what a row of training data holds on average.

    Returns:
      Its tokens, and its pairs of tokens that see each other; None where no
      data was prepared that says so.
    """

  def step_flops(
    self,
    batch: Mapping[str, Any],
    attended: float | None = None,
    all_positions: bool = False,
  ) -> int:
    """Counts the model FLOPs of a training step; see models/flops.py.

    Args:
      batch: of this host, or shapes of it.
      attended: pairs of tokens of a row that see each other; None = as in the
        batch, which then must have values.
      all_positions: count the last layer, and attention, at all positions.
    """


def open_job(
  config: Config,
  workdir: str,
  checkpoint: str | None = None,
  is_abstract: bool = False,
) -> "tuple[Job, weights.Pretrained | None]":
  """Opens what a config describes, with weights to start from if it names any.

  The shape of the model is that of the run in the workdir, if there is one, or
  of the weights in `init_from`, or else the config's.

  Args:
    config: the whole configuration.
    workdir: of the run, which need not exist yet.
    checkpoint: the saved step that is to be evaluated, as for
      `saved_steps.choose`; None = the run is to be trained, so that only what
      it can go on from counts as begun.
    is_abstract: nothing of the data is read, for a plan. The job has shapes of
      batches, and no tokenizer, batches or evaluator.

  Returns:
    The job, whose config is the one given with the shape filled in, and the
    weights of `init_from` where the run has not begun.

  Raises:
    ValueError: the config cannot be, or does not fit weights or data.
  """
  for key in ("init_from", "init_random", "task"):
    if key not in config:
      raise ValueError(
        f"the config has no {key}: it is that of an older run; give --config="
        "configs/pretrain.py or whichever it was, with the same settings"
      )
  config = config.copy_and_resolve_references()
  pretrained = None
  begun = bool(workdir) and saved_steps.exists(workdir, checkpoint is None)
  if begun and config.init_from:
    shape = runs.read_run(workdir)["config"]["model"]
    known = [key for key in settings.SHAPE_KEYS if key in shape]
    config.model.update({key: shape[key] for key in known})
  elif config.init_from:
    from bert_jax import weights

    pretrained = weights.read(config.init_from, checkpoint or "")
    config.model.update(pretrained.shape)
  job: Job
  if config.objective == "task":
    from bert_jax.training import finetuning

    vocabulary = None
    if not is_abstract:
      vocabulary = _vocabulary(config, workdir if begun else "", pretrained)
    job = finetuning.FineTuning(config, vocabulary)
  else:
    _check_vocabulary(config, pretrained)
    job = pretraining.Pretraining(config, is_abstract)
  return job, None if config.init_random else pretrained


def _vocabulary(
  config: Config, workdir: str, pretrained: "weights.Pretrained | None"
) -> interface.Tokenizer:
  """Returns the tokenizer of a task.

  A run that is resumed keeps its own. Otherwise it is that of `task.vocab`, or
  of the weights to start from.

  Args:
    config: the whole configuration.
    workdir: the folder of the run; "" = the run has not begun.
    pretrained: the weights to start from, or None.

  Raises:
    ValueError: there is no vocabulary, or two that differ.
  """
  if workdir:
    return load.load_tokenizer(os.path.join(workdir, "vocab"))
  own = config.task.vocab and load.load_tokenizer(config.task.vocab)
  theirs = pretrained.tokenizer if pretrained else None
  if own and theirs and _meaning(own) != _meaning(theirs):
    raise ValueError(
      f"task.vocab={config.task.vocab} is another vocabulary than that of "
      f"{config.init_from}; leave task.vocab out"
    )
  if found := own or theirs:
    return found
  where = config.init_from or "init_from, which is not set,"
  raise ValueError(
    f"there is no vocabulary: {where} holds none; give --config.task.vocab="
    "vocab.txt, or --config.init_from=DIR with weights and vocab.txt"
  )


def _check_vocabulary(
  config: Config, pretrained: "weights.Pretrained | None"
) -> None:
  """Raises ValueError if prepared data has other ids than the weights."""
  if not config.data.dir or pretrained is None or pretrained.tokenizer is None:
    return
  given = batching.load_vocabulary(config.data.dir)
  # Fingerprints would also tell apart how long a word may be, which differs
  # between libraries and leaves the meaning of every id as it is.
  if _meaning(pretrained.tokenizer) != _meaning(given):
    folder = os.path.join(config.init_from, "vocab")
    folder = folder if os.path.isdir(folder) else config.init_from
    raise ValueError(
      f"{config.data.dir} was prepared with another vocabulary than that "
      f"of {config.init_from}; prepare it again with --config.prepare."
      f"vocab={folder}"
    )


def _meaning(tokenizer: interface.Tokenizer) -> tuple:
  """Returns what the ids of a vocabulary stand for, to be compared."""
  pieces = tuple(tokenizer.token(i) for i in range(tokenizer.vocab_size))
  added = getattr(tokenizer, "added", ())
  return getattr(tokenizer, "lower_case", None), pieces, added
