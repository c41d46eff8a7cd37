"""Writes the weights of a finished run in the format of another program."""

import dataclasses
import logging
import os
from typing import TYPE_CHECKING, Any

from bert_jax.kinds import table
from bert_jax.models import families
from bert_jax.runtime import files
from bert_jax.runtime import settings
from bert_jax.runtime.settings import Config
from bert_jax.training.job import Job

if TYPE_CHECKING:
  from bert_jax import weights

_log = logging.getLogger(__name__)

FOLDER = "export"
# Value of train.export: the format of the weights that the run started from.
SAME = "same"


def check(config: Config) -> None:
  """Raises ValueError if the weights of a run could not be exported.

  Args:
    config: the whole configuration, with the shape of the model.
  """
  asked = config.train.export
  if asked == SAME and not config.init_from:
    raise ValueError(
      "train.export=same is the format of init_from, which is not set; give "
      "train.export=huggingface, flax or tf1"
    )
  if asked and asked != SAME:
    families.get_family(config.model.family).names_in(asked)


def check_model(job: Job, params: Any, is_abstract: bool = False) -> None:
  """Raises ValueError if the format of train.export cannot hold the model.

  Args:
    job: the job to train, with the format that is meant by "same".
    params: the shapes of its parameters.
    is_abstract: whether the job has read no data, so that its tokenizer is not
      known.
  """
  if not (asked := job.config.train.export):
    return
  from bert_jax import weights  # slow to import, and not always needed

  run = {"config": settings.plain(job.config), **job.facts}
  try:
    tokenizer = None if is_abstract else job.tokenizer
    found = weights.of_run(run, params, tokenizer)
    weights.check(_trained(job.config, found), asked)
  except ValueError as error:
    raise ValueError(
      f"train.export={asked}: {error}; leave train.export out to train without "
      "it"
    ) from error


def format_of(pretrained: "weights.Pretrained") -> str:
  """Returns the format to export, "" for a run, which is in our format."""
  own = pretrained.format == families.OWN
  return "" if own else pretrained.format


def export(config: Config, workdir: str) -> str:
  """Writes WORKDIR/export, unless it is there or not asked for.

  The step is the one that represents the run, as for `convert`. A head that the
  objective does not train, such as that of next sentences after masked words
  alone, is left out.

  Args:
    config: the whole configuration, with the format that is meant by "same".
    workdir: the folder of the run.

  Returns:
    The folder; "" if nothing was written.
  """
  folder = os.path.join(workdir, FOLDER)
  if not config.train.export or files.is_folder(folder):
    return ""
  from bert_jax import weights  # slow to import, and not always needed

  found = _trained(config, weights.read(workdir))
  weights.write(found, folder, config.train.export)
  _log.info("wrote %s (%s)", folder, config.train.export)
  return folder


def _trained(
  config: Config, pretrained: "weights.Pretrained"
) -> "weights.Pretrained":
  """Returns a model without the heads that its objective does not train."""
  if config.objective == "task":
    return pretrained
  unused = table.get(config.objective).unused
  kept = {k: v for k, v in pretrained.params.items() if f"{k}/" not in unused}
  return dataclasses.replace(pretrained, params=kept)
