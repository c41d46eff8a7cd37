"""Finds, reads, checks and writes weights in any format.

  weights = read("bert-base-uncased")   # Hugging Face, Flax, TF1 or a workdir
  write(weights, "converted", "tf1")

Format       what its folder holds
huggingface  config.json, model.safetensors (or shards and their index), or
             pytorch_model.bin
flax         config.json, flax_model.msgpack
tf1          bert_config.json, bert_model.ckpt.index and .data-*
bert_jax     run.json, checkpoints/STEP/params, vocab/

Nothing in a file is run: of a pickle, only the data is read. Before memory is
allocated, the sizes that a file states are compared with the size of the file.
This is not done for our own checkpoints, which are compressed.
"""

from collections.abc import Callable, Mapping
import dataclasses
import logging
import os
import re
from typing import Any

import numpy as np

from bert_jax.data.tokenizers import interface
from bert_jax.models import adapters
from bert_jax.models import config as model_config
from bert_jax.models import conversion
from bert_jax.models import families
from bert_jax.models import params as param_trees
from bert_jax.models import replaced_tokens
from bert_jax.runtime import files
from bert_jax.runtime import hub
from bert_jax.runtime import runs
from bert_jax.runtime import saved_steps
from bert_jax.weights import hugging_face
from bert_jax.weights import original
from bert_jax.weights import task_heads
from bert_jax.weights import workdir as workdirs
from bert_jax.weights.pretrained import FolderSettings
from bert_jax.weights.pretrained import Pretrained
from bert_jax.weights.pretrained import WeightsError
from bert_jax.weights.pretrained import naming

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Format:
  """The functions that read and write one format.

  Attributes:
    read_settings: file of weights -> the settings in its folder.
    read_tensors: file of weights -> its tensors.
    write: (model, tensors, folder) -> None.
    config_of: model -> its settings; raises ValueError if the format cannot
      hold them.
  """

  read_settings: Callable[[str], FolderSettings]
  read_tensors: Callable[[str], dict[str, np.ndarray]]
  write: Callable[[Pretrained, dict[str, np.ndarray], str], None]
  config_of: Callable[[Pretrained], Any]


_FORMATS = {
  "huggingface": _Format(
    hugging_face.read_settings,
    hugging_face.read_tensors,
    hugging_face.write_safetensors,
    hugging_face.config_of,
  ),
  "flax": _Format(
    hugging_face.read_settings,
    hugging_face.read_msgpack,
    hugging_face.write_msgpack,
    hugging_face.config_of,
  ),
  "tf1": _Format(
    original.read_settings,
    original.read_tensors,
    original.write,
    original.config_of,
  ),
  "bert_jax": _Format(
    workdirs.read_settings,
    workdirs.read_tensors,
    workdirs.write,
    lambda _: None,
  ),
}


# --- which format ------------------------------------------------------------

_WANTED = (
  f"{hugging_face.SAFETENSORS}, {hugging_face.PICKLE}, {hugging_face.MSGPACK}, "
  f"{hugging_face.FAIRSEQ}, {original.CHECKPOINT}.index"
)


def _workdir(path: str) -> str | None:
  """Returns the workdir if a path names one or its run.json, else None."""
  if os.path.basename(path) == "run.json":
    return os.path.dirname(path) or "."
  return path if runs.exists(path) else None


def _find(path: str) -> tuple[str, str]:
  """Returns the format and the file of weights; of a workdir, the step."""
  if files.is_folder(path):
    return _find_in(path)
  if workdir := saved_steps.run_of(path):
    saved_steps.choose(workdir, os.path.basename(path))  # lists the steps
  if path.endswith((".safetensors", hugging_face.SHARDS)):
    return "huggingface", path
  if path.endswith(".msgpack"):
    return "flax", path
  pickles = (*hugging_face.PICKLES, hugging_face.PICKLE_SHARDS)
  if path.endswith(pickles) and files.exists(path):
    return "huggingface", path
  prefix = re.sub(r"\.(index|data-\d+-of-\d+|meta)$", "", path)
  if files.exists(prefix + ".index"):
    return "tf1", prefix
  raise WeightsError(
    f"{path} does not exist, or is not a file of weights; give a folder, or "
    f"one of {_WANTED}, run.json"
  )


def _find_in(folder: str) -> tuple[str, str]:
  """Returns the format and the file of the weights in a folder."""

  def holds(name):
    return files.exists(os.path.join(folder, name))

  if holds("params") and os.path.basename(files.absolute(folder)).isdecimal():
    return "bert_jax", files.absolute(folder)
  for name, format in (
    (hugging_face.SAFETENSORS, "huggingface"),
    (hugging_face.SHARDS, "huggingface"),
    (hugging_face.MSGPACK, "flax"),
  ):
    if holds(name):
      return format, os.path.join(folder, name)
  tables = sorted(
    files.glob(os.path.join(files.escape_glob(folder), "*.index"))
  )
  if len(tables) > 1:
    raise WeightsError(
      f"{folder} holds {len(tables)} checkpoints; give the path of one, such "
      f"as {tables[-1]}"
    )
  if tables:
    return "tf1", tables[0].removesuffix(".index")
  for name in (
    hugging_face.PICKLE,
    hugging_face.PICKLE_SHARDS,
    hugging_face.FAIRSEQ,
  ):
    if holds(name):
      return "huggingface", os.path.join(folder, name)
  names = ", ".join(sorted(files.list_names(folder))[:8]) or "nothing"
  raise WeightsError(
    f"{folder} holds no weights that this program reads ({names}); wanted "
    f"{_WANTED} or run.json"
  )


# --- reading -----------------------------------------------------------------


def read(
  path: str | os.PathLike[str],
  checkpoint: str = "",
  which: str = "evaluated",
) -> Pretrained:
  """Reads a model.

  Args:
    path: a folder, whose content tells the format; a file of weights; a step
      of a workdir (WORKDIR/best/STEP); or the name of a model of the hub, see
      `runtime.hub`.
    checkpoint: the step to read from a workdir, as for `saved_steps.choose`.
    which: the parameters to read from a workdir, see `convert.weights`.

  Returns:
    The model; `Pretrained` says what may be left over or missing.

  Raises:
    WeightsError: the weights do not exist, are damaged, or belong to no known
      family.
    files.FilesError: the file is a FIFO or device.
  """
  path = os.fspath(path)
  if hub.is_name(path):
    try:
      model = hub.fetch(path)
    except hub.HubError as error:
      raise WeightsError(str(error)) from error
    found = read(model.folder, checkpoint)
    return dataclasses.replace(found, source=model.name)
  try:
    if workdir := _workdir(path):
      return saved_steps.read(
        workdir, checkpoint, lambda step: _read("bert_jax", step, which)
      )[1]
    if checkpoint:
      raise WeightsError(
        f"--checkpoint={checkpoint}: {path} is not the workdir of a run; leave "
        "--checkpoint out"
      )
    if files.is_remote(path) and not saved_steps.run_of(path):
      path = _local(path)
    format, file = _find(path)
    if format != families.OWN and which != "evaluated":
      raise WeightsError(
        f"convert.weights={which} chooses weights of a run of this program, "
        f"and {path} is not a run; leave the key out"
      )
    return _read(format, file, which)
  except (saved_steps.StepError, runs.RunError) as error:
    raise WeightsError(str(error)) from error


def _local(path: str) -> str:
  """Returns a local copy of a folder of weights, or of that of a file."""
  try:
    if files.is_folder(path):
      return files.local(path)
    folder = os.path.dirname(path)
    copies = files.local_files(files.entries(folder)[0])
    if not copies:
      raise FileNotFoundError
    return os.path.join(os.path.dirname(copies[0]), os.path.basename(path))
  except FileNotFoundError as error:
    raise WeightsError(f"{path} does not exist") from error


def _read(format: str, file: str, which: str = "evaluated") -> Pretrained:
  """Reads the weights that `_find` found."""
  files.check_readable(file)
  settings = _FORMATS[format].read_settings(file)
  if format == families.OWN:
    tensors = workdirs.read_tensors(file, which)
  else:
    tensors = _FORMATS[format].read_tensors(file)
  return _assembled(format, file, settings, tensors)


def of_run(
  run: Mapping[str, Any],
  params: Mapping[str, Any],
  tokenizer: interface.Tokenizer | None,
) -> Pretrained:
  """Returns the model that a run will hold, with zeros as its parameters.

  Args:
    run: what run.json will have of it.
    params: the tree of parameters of its checkpoints, or their shapes.
    tokenizer: its tokenizer; None if it is not known yet.
  """
  flat = param_trees.flatten(params)  # zeros that are not read take no memory
  tensors = param_trees.unstack(
    {
      path: np.zeros(x.shape, x.dtype)
      for path, x in flat.items()
      if not adapters.is_adapter(path)  # they will be merged
    }
  )
  settings = workdirs.settings_of(run, tokenizer)
  return _assembled(families.OWN, "the run", settings, tensors)


def _assembled(
  format: str,
  file: str,
  settings: FolderSettings,
  tensors: dict[str, np.ndarray],
) -> Pretrained:
  """Returns the model of the tensors and settings in a file of weights."""
  given = settings.pretrained
  only_trained = {}
  if format == families.OWN:
    only_trained = workdirs.take_parts(tensors)
  with naming(file):
    found = conversion.to_ours(
      families.get_family(given.family),
      format,
      tensors,
      given.model,
      tied=settings.tied,
    )
    pretrained = dataclasses.replace(
      given,
      params=param_trees.nest(found.params | only_trained),
      ignored=found.ignored + given.ignored,
      missing=found.missing,
      **_heads_of(settings, found),
    )
    if format == "bert_jax":
      pretrained = _with_own_head(pretrained, settings, tensors)
    pretrained.check()
  for head, why in pretrained.refused.items():
    _log.warning("%s: the head %r cannot be used: %s", file, head, why)
  unused = [n for n in found.ignored if not n.endswith(conversion.BUFFERS)]
  if unused and format in ("huggingface", "flax"):
    _log.warning(
      "%s: this program has no place for the tensors %.1000s and computes the "
      "model without them", file, ", ".join(unused),
    )  # fmt: skip
  return pretrained


def _heads_of(
  settings: FolderSettings, found: conversion.Converted
) -> dict[str, Any]:
  """Returns kind and labels of the task's head, and which heads are refused."""
  refused = {}
  if found.untied:
    refused["mlm"] = (
      f"its decoder {found.untied} is not tied to the word table "
      f"(tie_word_embeddings is {settings.tied}); this program always ties them"
    )
  bias = found.params.get("task/bias")
  labels: tuple[str, ...] = ()
  kind = task_heads.kind_of_roles(found.roles, None)
  if kind is None and bias is not None:
    kind, why = settings.head(bias.size)
    if kind is not None:
      kind = task_heads.kind_of_roles(found.roles, kind)
    if why:
      refused["task"] = why
    # The labels of a head of unknown kind are kept: the user may name its kind.
    head = task_heads.HEADS.get(kind or "")
    if kind is None or (head and head.has_names):
      labels = settings.pretrained.labels
  return {"kind": kind, "labels": labels, "refused": refused}


def _with_own_head(
  pretrained: Pretrained,
  settings: FolderSettings,
  tensors: dict[str, np.ndarray],
) -> Pretrained:
  """Adds the head of a kind of another package, which that kind names."""
  kind, _ = settings.head(0)
  head = task_heads.HEADS.get(kind or "")
  if head is None or head.hf_class:
    return pretrained
  start = f"{task_heads.OWN}/"
  own = {name: x for name, x in tensors.items() if name.startswith(start)}
  return dataclasses.replace(
    pretrained,
    params=pretrained.params | param_trees.nest(own),
    ignored=tuple(name for name in pretrained.ignored if name not in own),
    kind=kind,
    labels=settings.pretrained.labels,
  )


# --- writing -----------------------------------------------------------------


def write(
  pretrained: Pretrained, folder: str | os.PathLike[str], format: str
) -> None:
  """Writes a whole model; after an error, no folder is left behind.

  Args:
    pretrained: the model to write. Its `format`, `ignored` and `missing` are
      not used.
    folder: the folder to create. It may exist if it is empty.
    format: one of `families.FORMATS`.

  Raises:
    WeightsError: the folder is not empty, or the format cannot hold the model.
  """
  folder = os.fspath(folder)
  if format == "bert_jax":
    from bert_jax.runtime import checkpoint as checkpoints  # slow to import

    checkpoints.check_path(folder)
  with naming(folder):
    pretrained = check(pretrained, format)
    tensors = conversion.from_ours(
      families.get_family(pretrained.family),
      format,
      param_trees.flatten(pretrained.params),
      pretrained.model,
      task_heads.role_of(pretrained.kind),
    )
    files.remove_unfinished(folder)
    if not files.is_free(folder):
      raise WeightsError(
        f"{folder} exists and is not an empty folder; give a new one"
      )
    with files.whole_folder(folder) as temporary:
      _FORMATS[format].write(pretrained, tensors, temporary)


def check(pretrained: Pretrained, format: str) -> Pretrained:
  """Checks that a format can hold a model, without a look at its values.

  Args: see `write`.

  Returns:
    The model without the parts that no format holds.

  Raises:
    ValueError: it cannot; the message says why.
  """
  if format not in _FORMATS:
    raise WeightsError(f"format {format!r} is not one of {', '.join(_FORMATS)}")
  given, wanted = set(pretrained.model), set(model_config.MODEL_KEYS)
  if given - {"family", *model_config.EXTRAS} != wanted:
    raise WeightsError(
      f"model has keys {', '.join(sorted(given))}; wanted "
      f"{', '.join(sorted(wanted))}"
    )
  kept = {
    name: part
    for name, part in pretrained.params.items()
    if name not in replaced_tokens.PARTS
  }
  names = families.get_family(pretrained.family).names_in(format)
  if "rtd" in kept and names.of("rtd/kernel") is None:
    del kept["rtd"]
    _log.warning(
      "the head that tells replaced tokens is left out: a %s in the format %s "
      "has no place for it", pretrained.family, format,
    )  # fmt: skip
  pretrained = dataclasses.replace(pretrained, params=kept)
  if "task" in pretrained.params and pretrained.kind is None:
    if why := pretrained.refused.get("task"):
      raise WeightsError(
        f"the head of the model cannot be written: {why}; give "
        "--config.convert.drop_head=True to leave it out"
      )
    raise WeightsError(
      "the model has the head of a task, but does not say its kind; give "
      f"--config.convert.kind, one of {', '.join(task_heads.HEADS)}, or "
      "--config.convert.drop_head=True"
    )
  pretrained.check()
  _FORMATS[format].config_of(pretrained)
  conversion.places_of(
    families.get_family(pretrained.family),
    format,
    param_trees.flatten(pretrained.params),
    pretrained.model,
    task_heads.role_of(pretrained.kind),
  )
  return pretrained
