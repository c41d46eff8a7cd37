"""From a config to its job: pre-training, or a task."""

from collections.abc import Mapping
import logging
import os
from typing import TYPE_CHECKING, Any

from bert_jax.data import batching
from bert_jax.data import summary
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import load
from bert_jax.kinds import table
from bert_jax.runtime import files
from bert_jax.runtime import hub
from bert_jax.runtime import phases
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps
from bert_jax.runtime import settings
from bert_jax.runtime.settings import Config
from bert_jax.training import export
from bert_jax.training import pretraining
from bert_jax.training.job import Job

if TYPE_CHECKING:  # imported where they are used: their libraries are slow to
  from bert_jax import weights

_log = logging.getLogger(__name__)


def open_job(
  config: Config,
  workdir: str,
  checkpoint: str | None = None,
  is_abstract: bool = False,
) -> "tuple[Job, weights.Pretrained | None]":
  """Opens the job of a config, with the weights that it starts from.

  The shape of the model is that of the run in the workdir if there is a run,
  else that of the weights in `init_from`, else that of the config.

  Args:
    config: the whole configuration.
    workdir: the folder of the run, which need not exist yet.
    checkpoint: the saved step to evaluate, as for `saved_steps.choose`. None
      means that the run is to be trained; it then counts as begun only if it
      has a checkpoint to resume from.
    is_abstract: True reads no data, for a plan. The job then has the shapes of
      its batches, but no tokenizer, batches or evaluator.

  Returns:
    The job, whose config has the shape of the model filled in; and the weights
    of `init_from`, or None if there are none or the run has begun.

  Raises:
    ValueError: the config is not valid, or does not fit the weights or the
      data.
  """
  for key in ("init_from", "init_random", "task"):
    if key not in config:
      raise ValueError(
        f"the config has no {key}, because an older version wrote it; give "
        "--config=configs/pretrain.py, or the file of that run, with the same "
        "settings"
      )
  config = config.copy_and_resolve_references()
  if config.init_from and _is_of_hub(config.init_from, workdir):
    config.init_from = hub.address(config.init_from)
  begun = bool(workdir) and saved_steps.exists(workdir, checkpoint is None)
  pretrained = _take_shape(config, workdir, checkpoint, begun)
  _settle_pooling(config, workdir if begun else "", pretrained)
  if config.model.get("vocab_size") is None:
    config.model.vocab_size = _vocab_size(config, workdir if begun else "")
  export.check(config)
  job = _make_job(config, workdir if begun else "", pretrained, is_abstract)
  return job, None if config.init_random else pretrained


def _take_shape(
  config: Config, workdir: str, checkpoint: str | None, begun: bool
) -> "weights.Pretrained | None":
  """Gives a config the shape of the run, or of the weights it starts from.

  Args:
    config: the whole configuration, which is changed.
    workdir: the folder of the run.
    checkpoint: see `open_job`.
    begun: whether there is a run in the workdir.

  Returns:
    The weights of `init_from`; None if there are none or the run has begun.
  """
  if begun and config.init_from:
    shape = runs.read_run(workdir)["config"]["model"]
    known = [key for key in settings.SHAPE_KEYS if key in shape]
    config.model.update(
      {
        key: tuple(shape[key]) if isinstance(shape[key], list) else shape[key]
        for key in known
      }
    )
    if config.train.export == export.SAME:  # the folder may be gone since
      config.train.export = runs.read_run(workdir)["config"]["train"]["export"]
    return None
  if not config.init_from:
    return None
  from bert_jax import weights

  source = _pinned(config.init_from, workdir)
  pretrained = weights.read(source, checkpoint or "")
  if config.init_layers:
    from bert_jax.weights import extending

    pretrained = extending.with_layers(pretrained, config.init_layers)
  config.model.update(pretrained.shape)
  _change_model(config)
  if config.train.export == export.SAME:
    config.train.export = export.format_of(pretrained)
  return pretrained


def _make_job(
  config: Config,
  workdir: str,
  pretrained: "weights.Pretrained | None",
  is_abstract: bool,
) -> Job:
  """Makes the job of a config that has the shape of its model.

  Args:
    config: the whole configuration.
    workdir: the folder of the run; "" if it has not begun.
    pretrained: the weights that it starts from.
    is_abstract: see `open_job`.
  """
  if config.objective == "task":
    from bert_jax.training import finetuning

    vocabulary = None
    if not is_abstract:
      vocabulary = _vocabulary(config, workdir, pretrained)
    return finetuning.FineTuning(config, vocabulary)
  _check_vocabulary(config, pretrained, config.init_from)
  if config.data.whole_word and config.data.dir and not is_abstract:
    _check_whole_words(config.data.dir, bool(workdir))
  job = pretraining.Pretraining(config, is_abstract)
  for key, found in job.objective.other_weights().items():
    group, _, name = key.partition(".")
    _check_vocabulary(config, found, config[group][name])
  return job


# Keys of the group `model` that a training may change in the model that it
# starts from, because no parameter of the encoder depends on them.
CHANGEABLE = (
  "model.rope_theta",
  "model.local_rope_theta",
  "model.local_radius",
  "model.full_every",
  "model.attention_pattern",
  "model.max_len",
  "model.pooling",
  "model.head_lstm_layers",
)


def check_changes(config: Config, changes: Mapping[str, Any]) -> None:
  """Checks what is changed in a model to start from.

  Args:
    config: a config with the shape of that model.
    changes: key -> its new value, as in `phases.changes_of`.

  Raises:
    ValueError: a key cannot be changed, or a parameter depends on it.
  """
  for key, value in changes.items():
    if key not in CHANGEABLE:
      raise ValueError(
        f"{key}={value} would change a model to start from, and parameters "
        f"depend on it; init_changes and phases may change "
        f"{', '.join(CHANGEABLE)}"
      )
    if key == "model.max_len" and config.model.positions == "learned":
      source = config.init_from or "the model"
      raise ValueError(
        f"model.max_len={value} in init_changes or a phase, but the position "
        f"table of {source} has {config.model.max_len} rows; make a longer one "
        f"with bert-jax convert --config.convert.max_len={value}"
      )


def _change_model(config: Config) -> None:
  """Applies `init_changes` to the shape of the weights to start from.

  Raises:
    ValueError: see `check_changes`.
  """
  changes = phases.changes_of(config.init_changes)
  check_changes(config, changes)
  for key, value in changes.items():
    config.model[key.removeprefix("model.")] = value


def _settle_pooling(
  config: Config, workdir: str, pretrained: "weights.Pretrained | None"
) -> None:
  """Puts what task.pooling=auto means into a config of a task.

  Args:
    config: the whole configuration.
    workdir: the folder of a run that has begun, or "".
    pretrained: the weights to start from, or None.
  """
  if config.objective != "task" or config.task.get("pooling") != "auto":
    return
  kind = table.kind_of_name(config.task.name)
  if kind is None or "pooling" not in kind.own_settings:
    return
  if workdir:
    task = runs.read_run(workdir)["config"]["task"]
    config.task.pooling = task.get("pooling", "auto")
    return
  known = pretrained.sentence if pretrained else ()
  found = [step for step in known if step in ("mean", "cls")]
  if len(found) == 1:
    config.task.pooling = found[0]


def _is_of_hub(init_from: str, workdir: str) -> bool:
  """Returns whether the weights to start from are a model of the hub.

  A run that has begun decides it, because a folder may be gone since.

  Args:
    init_from: the weights of the config.
    workdir: the folder of the run, which need not exist.
  """
  if workdir and runs.exists(workdir):
    recorded = runs.read_run(workdir)["config"].get("init_from")
    return recorded == hub.address(init_from)
  return hub.is_name(init_from)


def _pinned(init_from: str, workdir: str) -> str:
  """Returns the weights to start from, at the revision that a run recorded.

  Args:
    init_from: the weights of the config.
    workdir: the folder of the run, which may have no checkpoint yet.
  """
  if workdir and runs.exists(workdir):
    run = runs.read_run(workdir)
    recorded = run.get("init_from_source", "")
    name, _, revision = init_from.partition("@")
    # A branch that the run named, such as NAME@main, may have moved on since.
    is_same = not revision or run["config"].get("init_from") == init_from
    if recorded and hub.address(recorded).startswith(f"{name}@") and is_same:
      return hub.address(recorded)
  return init_from


def _vocab_size(config: Config, workdir: str) -> int:
  """Returns the rows of the word table if the config does not say it.

  Args:
    config: the whole configuration.
    workdir: the folder of the run, which keeps its shape; "" = none has begun.
  """
  if workdir:
    return runs.read_run(workdir)["config"]["model"]["vocab_size"]
  if config.objective != "task" and config.data.dir:
    return summary.model_vocab_size(config.data.dir)
  return settings.VOCAB_SIZE


def _vocabulary(
  config: Config, workdir: str, pretrained: "weights.Pretrained | None"
) -> interface.Tokenizer:
  """Returns the tokenizer of a task.

  A run that is resumed keeps its tokenizer. Otherwise it is that of
  `task.vocab`, or of the weights to start from.

  Args:
    config: the whole configuration.
    workdir: the folder of the run; "" means that the run has not begun.
    pretrained: the weights to start from, or None.

  Raises:
    ValueError: neither has a vocabulary, or the two vocabularies differ.
  """
  if workdir:
    return load.load_tokenizer(os.path.join(workdir, "vocab"))
  own = config.task.vocab and load.load_tokenizer(config.task.vocab)
  theirs = pretrained.tokenizer if pretrained else None
  if own and theirs and own.meaning() != theirs.meaning():
    raise ValueError(
      f"task.vocab={config.task.vocab} differs from the vocabulary of "
      f"{config.init_from}; leave task.vocab out"
    )
  if found := own or theirs:
    return found
  raise ValueError(
    "there is no vocabulary: task.vocab is not set, and init_from="
    f"{config.init_from!r} has none; give --config.task.vocab=vocab.txt, or "
    "--config.init_from=DIR with weights and vocab.txt"
  )


def _check_whole_words(folder: str, begun: bool) -> None:
  """Raises ValueError if whole words of prepared data cannot be masked.

  Args:
    folder: the prepared data.
    begun: whether the run has begun, perhaps with an older version, which did
      not check; it is only warned of.
  """
  problem = summary.whole_word_problem(folder)
  if problem and not begun:
    raise ValueError(problem)
  if problem:
    _log.warning("%s", problem)


def _check_vocabulary(
  config: Config, pretrained: "weights.Pretrained | None", source: str
) -> None:
  """Raises ValueError if prepared data and weights differ in their ids.

  Args:
    config: the whole configuration.
    pretrained: the weights, or None.
    source: where they are from.
  """
  if not config.data.dir or pretrained is None or pretrained.tokenizer is None:
    return
  given = batching.load_vocabulary(config.data.dir)
  # Fingerprints also depend on how long a word may be, which differs between
  # libraries and does not change the meaning of an id.
  if pretrained.tokenizer.meaning() != given.meaning():
    folder = os.path.join(source, "vocab")
    folder = folder if files.is_folder(folder) else source
    raise ValueError(
      f"{config.data.dir} was prepared with another vocabulary than that of "
      f"{source}; prepare it again with --config.prepare.vocab="
      f"{folder}"
    )
