"""Prepares a text by the tokenizer of the weights that a training starts from.

`bert-jax train --input=TEXT` does this before it trains, so that a model is
adapted to a text by one command.
"""

from collections.abc import Sequence
import logging
import os
import tempfile
from typing import TYPE_CHECKING

import jax

from bert_jax.data import prepare
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import load
from bert_jax.kinds import table
from bert_jax.models.families.family import PRETRAINING_HEADS
from bert_jax.runtime import errors
from bert_jax.runtime import peers
from bert_jax.runtime import saved_steps
from bert_jax.runtime.settings import Config
from bert_jax.training import session

if TYPE_CHECKING:
  from bert_jax import weights

_log = logging.getLogger(__name__)


class FromTextError(errors.UserError):
  """A text cannot be prepared for this training."""


def prepare_text(
  config: Config, patterns: Sequence[str], workdir: str
) -> Config:
  """Prepares a text, or completes what an earlier call prepared of it.

  The data go to `data.dir`, or to WORKDIR/data if that is not set. Everything
  about the training that can be checked without data is checked first.

  Args:
    config: the whole configuration.
    patterns: the inputs, as for `prepare.prepare`.
    workdir: the folder of the run.

  Returns:
    The config with the folder of the data.

  Raises:
    ValueError: the training is not of pre-training, or cannot start; or the
      text cannot be prepared.
  """
  from bert_jax import weights  # slow to import, and not always needed

  if config.objective == "task":
    raise FromTextError(
      "--input of train is text to pre-train on, and objective=task; give the "
      "files of a task by --config.task.dir or --config.task.files.train"
    )
  if peers.are_several():
    raise FromTextError(
      "a job of several processes prepares no text; run bert-jax prepare with "
      "the same --config and --input in one process, and then train with its "
      "--output as --config.data.dir"
    )
  config = config.copy_and_resolve_references()
  config.data.dir = config.data.dir or os.path.join(workdir, "data")
  own: interface.Tokenizer | None = None
  if saved_steps.exists(workdir, to_resume=True):
    own = load.load_tokenizer(os.path.join(workdir, "vocab"))
  else:
    found = weights.read(config.init_from) if config.init_from else None
    own = found.tokenizer if found else None
    _check(config, found)
    objective = table.get(config.objective).for_config(config)
    for other in objective.other_weights().values():
      own = own or other.tokenizer
  with tempfile.TemporaryDirectory() as folder:
    if own is not None and not config.prepare.vocab:
      own.save(folder)
      config.prepare.vocab = folder
      if own.lower_case is not None:
        config.prepare.lower_case = own.lower_case
    prepare.prepare(config, patterns, config.data.dir)
  config.prepare.vocab = os.path.join(config.data.dir, "vocab")
  return config


def _check(config: Config, found: "weights.Pretrained | None") -> None:
  """Raises ValueError if the training could not start, whatever the text."""
  if found is not None and not config.prepare.vocab and not found.tokenizer:
    raise FromTextError(
      f"init_from={config.init_from} has no vocabulary to prepare text with; "
      "give it by --config.prepare.vocab=vocab.txt"
    )
  heads = table.get(config.objective).heads
  if found is not None and not set(heads) <= set(found.params):
    has = [name for name in PRETRAINING_HEADS if name in found.params]
    if has:
      raise FromTextError(
        f"init_from={config.init_from} has the head {' and '.join(has)}, and "
        f"objective={config.objective} trains {' and '.join(heads)}; set "
        f"--config.objective={'rtd' if has == ['rtd'] else 'mlm'}"
      )
    _log.warning(
      "%s has no head for objective=%s and begins with a fresh one, so that "
      "its scores before training say nothing about the encoder",
      config.init_from,
      config.objective,
    )
  tried = config.copy_and_resolve_references()
  tried.data.dir = None
  if tried.train.num_epochs and not tried.train.total_steps:
    # The number of steps depends on the text.
    tried.train.num_epochs, tried.train.total_steps = 0.0, 1000
  session.open_abstract(tried, jax.devices())
