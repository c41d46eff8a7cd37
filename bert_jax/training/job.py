"""The base of both jobs, `Pretraining` and `FineTuning`, and of evaluators."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from bert_jax.data import batching
from bert_jax.data import packing
from bert_jax.data.tokenizers import interface
from bert_jax.kinds import kind
from bert_jax.models import flops
from bert_jax.models.config import ModelConfig
from bert_jax.runtime import bars
from bert_jax.runtime import sharding
from bert_jax.runtime import watchdog
from bert_jax.runtime.settings import Config


class Job:
  """A model, its objective and its data; the training loop knows no more.

  Attributes:
    config: the whole configuration, with the shape of the model.
    objective: the kind of the training.
    num_labels: the number of labels of the task; 0 for pre-training.
    model: the module.
  """

  def __init__(self, config: Config, objective: Any, num_labels: int = 0):
    """Makes the model.

    Args:
      config: the whole configuration, with the shape of the model.
      objective: the kind of the training.
      num_labels: the number of labels of the task.

    Raises:
      ValueError: a key of the model is out of range, or rows are longer than
        the model allows.
    """
    model_config = ModelConfig.from_config(config.model)
    if config.data.seq_len > model_config.max_len:
      raise ValueError(
        f"data.seq_len={config.data.seq_len} is longer than model.max_len="
        f"{model_config.max_len}; lower the one or raise the other"
      )
    self.config, self.num_labels = config, num_labels
    self.objective: kind.Kind = objective.for_config(config)
    self.model = self.objective.make_model(model_config, num_labels)

  def _check_length(self) -> None:
    """Raises ValueError unless the config gives one length of the training."""
    train = self.config.train
    if bool(train.num_epochs) == bool(train.total_steps):
      raise ValueError(
        f"train.num_epochs={train.num_epochs} and train.total_steps="
        f"{train.total_steps}: give one of them, and 0 for the other"
      )

  @property
  def is_trained(self) -> Callable[[str], bool] | None:
    """The path of a parameter -> whether it is trained; None = all are."""
    parts = self.objective.frozen
    if not parts:
      return None
    return lambda path: path.split("/")[0] not in parts

  @property
  def tokenizer(self) -> interface.Tokenizer:
    """The tokenizer of the data."""
    raise NotImplementedError

  @property
  def total_steps(self) -> int:
    """The number of optimizer steps of the training."""
    return self.config.train.total_steps

  @property
  def data_hash(self) -> str:
    """The hash that identifies the training data."""
    raise NotImplementedError

  @property
  def held_out_hash(self) -> str | None:
    """The data_hash that a run must have for this job to evaluate it.

    None if the run may have been trained on any data.
    """
    return None

  @property
  def facts(self) -> dict[str, Any]:
    """The content of run.json about the training, beside the config."""
    return {}

  def read_hashes(self) -> dict[str, str]:
    """Returns the hashes of all data read so far, by the name of the data."""
    raise NotImplementedError

  def batches(
    self, mesh: jax.sharding.Mesh, seed: int | None = None
  ) -> batching.TrainBatches:
    """Returns this host's rows of the training batches, by step.

    Args:
      mesh: the mesh that the batches are for.
      seed: the seed of their order; None means that of the config.

    Raises:
      ValueError: there is no such data.
    """
    raise NotImplementedError

  def evaluator(
    self, mesh: jax.sharding.Mesh, num_members: int = 0
  ) -> "Evaluator":
    """Returns the held-out evaluation on a mesh.

    Args:
      mesh: the mesh that the parameters live on.
      num_members: the number of models whose parameters are stacked; 0 means
        one model, which is not stacked. Only tasks take several.

    Raises:
      ValueError: the held-out data is missing, or its batch does not fit the
        mesh.
    """
    raise NotImplementedError

  def remarks(self) -> list[str]:
    """Returns what is unusual about the texts read so far, and what to change.

    That is above all the share of the texts that is left out.
    """
    return []

  def intervals(self, evaluator: Any) -> dict[str, float]:
    """Returns eval/NAME_low and eval/NAME_high of the scores of a split.

    Args:
      evaluator: the evaluator of this job, which was called before.
    """
    del evaluator
    return {}

  def explain(self, evaluator: Any, path: str) -> list[str]:
    """Prints and writes what the last evaluation got wrong; returns paths.

    Args:
      evaluator: the evaluator of this job, which was called before.
      path: the file with the scores, beside which files are written.
    """
    del evaluator, path
    return []

  def confusions(self, evaluator: Any) -> dict[str, Any]:
    """Returns the confusion matrix of each split that was evaluated.

    Args:
      evaluator: the evaluator of this job, which was called before.

    Returns:
      Name of the split -> "labels" and "counts", as in confusion.json; {} for a
      job without one label for each answer.
    """
    del evaluator
    return {}

  def write_predictions(
    self, evaluator: Any, params: Any, workdir: str
  ) -> list[str]:
    """Writes the predictions that the config asks for; returns their paths.

    Args:
      evaluator: the evaluator of this job.
      params: the parameters of the model.
      workdir: the folder of the run.
    """
    del evaluator, params, workdir
    return []

  def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a global training batch without reading data.

    The config decides the one shape of pre-training. How many examples of a
    task share a row depends on the examples; here each has a row of its own, as
    with data.pack=False.
    """
    shapes = self.objective.batch_shapes(self.config, self.num_labels)
    return {k: jax.ShapeDtypeStruct(*shape) for k, shape in shapes.items()}

  def mean_row(self) -> tuple[float, float, float] | None:
    """Returns what a row of training data holds on average.

    Returns:
      The number of tokens, the number of pairs of tokens that see each other,
      and how many of them are within `model.local_radius`; None if no prepared
      data tells them.
    """
    return None

  def near_pairs(self, lengths: np.ndarray) -> np.ndarray:
    """Returns the pairs of tokens within `model.local_radius` of each other.

    Args:
      lengths: the lengths of sequences.
    """
    return flops.window_pairs(lengths, self.config.model.local_radius)

  def seen_pairs(
    self,
    batch: Mapping[str, Any],
    attended: float | None,
    near: float | None,
  ) -> dict[str, float | None]:
    """Returns the options `attended` and `near` of `step_flops` for a batch."""
    if attended is not None:
      return {"attended": attended, "near": near}
    ids = batch.get("sequence_ids")
    if self.config.model.attention_pattern == "local":
      near = packing.attended(ids, self.near_pairs)
    return {"attended": packing.attended(ids), "near": near}

  def step_flops(
    self,
    batch: Mapping[str, Any],
    attended: float | None = None,
    all_positions: bool = False,
    near: float | None = None,
  ) -> int:
    """Returns the model FLOPs of a training step; see models/flops.py.

    Args:
      batch: the rows of this host, or their shapes.
      attended: the number of pairs of tokens of a row that see each other; None
        means that of the batch, which then must have values.
      all_positions: whether to count the last layer, and attention, at all
        positions.
      near: how many of the pairs are within the window of local attention; None
        means those of the batch, or of sequences of equal length if `attended`
        is given.
    """
    raise NotImplementedError

  def prefetch(
    self, batches: batching.Batches, start: int
  ) -> Iterator[batching.Batch]:
    """Yields batches from a step on; threads make them ahead of time."""
    data = self.config.data
    return batching.prefetch(
      batches,
      start,
      num_threads=data.num_threads,
      buffer_size=data.prefetch_batches,
    )


class Evaluator:
  """A held-out evaluation, ready to be called again and again.

  Attributes:
    is_off: whether there is no held-out text, so that a call returns {}.
  """

  is_off = False

  def __init__(
    self, job: Job, mesh: jax.sharding.Mesh, step: Callable[..., Any]
  ):
    """Compiles nothing yet.

    Args:
      job: the job to evaluate.
      mesh: the mesh that the parameters live on.
      step: (params, batch, ...) -> a tree of arrays; it is jitted here.

    Raises:
      ValueError: `eval.batch_size` does not fit the mesh.
    """
    sharding.check_batch_size(job.config.eval.batch_size, mesh)
    self._job, self._mesh = job, mesh
    self._place = sharding.batch_sharding(mesh)
    everywhere = jax.sharding.NamedSharding(mesh, sharding.P())
    self._step = jax.jit(step, out_shardings=everywhere)

  def names(self, params: Any) -> list[str]:
    """Returns the keys of what a call returns, without computing it.

    Args:
      params: the parameters, or their shapes.
    """
    raise NotImplementedError

  def __call__(self, params: Any) -> dict[str, float]:
    """Returns the value of every metric, by the key eval/NAME."""
    raise NotImplementedError

  def _run(
    self, split: str, batches: batching.Batches, params: Any, *more: Any
  ) -> Iterator[Any]:
    """Yields what the step returns for each batch, on the host."""
    ready = self._job.prefetch(batches, 0)
    for batch in bars.track(ready, split, len(batches)):
      watchdog.note(f"evaluating {split}")
      device_batch = sharding.put_global_batch(batch, self._place)
      yield jax.device_get(self._step(params, device_batch, *more))


def unstack_models(stacked: Any, num_members: int) -> Iterator[Any]:
  """Yields the part of each model in arrays that are stacked on axis 0.

  Args:
    stacked: a tree of arrays on the host. The parts are copies, so that its
      memory may be used again.
    num_members: the number of models.
  """
  for k in range(num_members):
    yield jax.tree.map(lambda x, k=k: np.array(x[k]), stacked)
