"""Reads and writes workdirs: run.json, vocab/ and checkpoints."""

from collections.abc import Mapping
import dataclasses
import datetime
import os
import sys
from typing import Any

import numpy as np

from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import load
from bert_jax.models import adapters
from bert_jax.models import config as model_config
from bert_jax.models import params as param_trees
from bert_jax.models import replaced_tokens
from bert_jax.runtime import files
from bert_jax.runtime import runs
from bert_jax.runtime import settings
from bert_jax.weights import task_heads
from bert_jax.weights.pretrained import SETTINGS
from bert_jax.weights.pretrained import FolderSettings
from bert_jax.weights.pretrained import Pretrained
from bert_jax.weights.pretrained import check_arrays
from bert_jax.weights.pretrained import checked_length
from bert_jax.weights.pretrained import naming


def read_tensors(step: str, which: str = "evaluated") -> dict[str, np.ndarray]:
  """Reads the parameters of a saved step, with layers unrolled.

  Adapters are merged into the kernels that they belong to.

  Args:
    step: the folder of the step.
    which: "last" for the parameters, "average" for their average, "evaluated"
      for those that the run evaluates.
  """
  from bert_jax.runtime import checkpoint  # slow to import

  with naming(step):
    is_average = which == "average"
    workdir = _workdir_of(step)
    if which == "evaluated" and runs.exists(workdir):
      group = runs.read_run(workdir)["config"].get("eval") or {}
      is_average = bool(group.get("average"))
    tree = checkpoint.read_params(step, is_average=is_average)
    tensors = param_trees.unstack(check_arrays(param_trees.flatten(tree)))
    if not any(map(adapters.is_adapter, tensors)):
      return tensors
    group = runs.read_run(_workdir_of(step))["config"]["optim"]
    return adapters.merge_flat(
      tensors, float(group["lora_alpha"]) / group["lora_rank"]
    )


def _workdir_of(step: str) -> str:
  return os.path.dirname(os.path.dirname(step))


def take_parts(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Takes the parts that only a training with replaced tokens has.

  The word table of a discriminator that adds to the generator's is put in.

  Args:
    tensors: our flat tree, from which the parts are removed.
  """
  parts = tuple(f"{name}/" for name in replaced_tokens.PARTS)
  taken = {k: tensors.pop(k) for k in list(tensors) if k.startswith(parts)}
  if replaced_tokens.RESIDUAL in taken:
    base = taken[f"generator/{replaced_tokens.WORDS}"]
    own = taken[replaced_tokens.RESIDUAL]
    tensors[replaced_tokens.WORDS] = base + own
  kept = tuple(f"{name}/" for name in replaced_tokens.KEPT_PARTS)
  return {k: v for k, v in taken.items() if k.startswith(kept)}


def read_settings(step: str) -> FolderSettings:
  """Reads the settings of the run that a saved step belongs to."""
  workdir = _workdir_of(step)
  with naming(os.path.join(workdir, "run.json")):
    run = runs.read_run(workdir)
    settings_of(run, None)  # refuses what the record lacks
    data = run["config"].get("data") or {}
  tokenizer = None
  for folder in filter(None, (workdir, data.get("dir"))):
    vocab = os.path.join(folder, "vocab")
    if files.is_folder(vocab):
      with naming(vocab):
        tokenizer = load.load_tokenizer(vocab)
      break
  return settings_of(run, tokenizer)


def settings_of(
  run: Mapping[str, Any], tokenizer: interface.Tokenizer | None
) -> FolderSettings:
  """Returns the settings of a run.

  Args:
    run: what run.json has of it.
    tokenizer: its tokenizer, if it has one.
  """
  config = run["config"]
  group = config["model"]
  keys = (*model_config.MODEL_KEYS, *model_config.EXTRAS)
  model = {key: group[key] for key in keys}
  task = run.get("task") or {}
  labels = tuple(map(str, task.get("labels") or ()))
  objective = config.get("objective")
  default = objective if objective in task_heads.HEADS else None
  seq_len = checked_length(config.get("data") or {})
  flat = settings.flatten(config)
  own = {key: flat[key] for key in SETTINGS if key in flat}
  sentence = tuple(map(str, run.get("sentence") or ()))
  return FolderSettings(
    pretrained=Pretrained(
      format="bert_jax",
      family=group["family"],
      model=model,
      labels=labels,
      tokenizer=tokenizer,
      lower_case=tokenizer.lower_case if tokenizer else None,
      seq_len=seq_len,
      settings=own,
      sentence=sentence,
    ),
    head=lambda num_outputs: (task.get("kind", default), ""),
  )


def write(
  pretrained: Pretrained, tensors: dict[str, np.ndarray], folder: str
) -> None:
  """Writes a workdir with one checkpoint, that of step 0."""
  from bert_jax.runtime import checkpoint  # slow to import

  kind = pretrained.kind
  model = model_config.ModelConfig(
    **pretrained.shape, param_dtype=pretrained.dtype_name
  )
  config: dict[str, Any] = {
    "model": dataclasses.asdict(model),
    "data": {"dir": None},
  }
  if pretrained.seq_len:
    config["data"]["seq_len"] = pretrained.seq_len
  for key, value in pretrained.settings.items():
    group, _, name = key.partition(".")
    config.setdefault(group, {})[name] = value
  has_both = {"mlm", "nsp"} <= pretrained.params.keys()
  objective = "task" if kind else "mlm_nsp" if has_both else None
  commit, dirty = runs.commit()
  run = {
    "config": config | {"objective": objective},
    "data_hash": "",  # there are no examples yet
    "task": {"kind": kind, "labels": list(pretrained.labels)} if kind else None,
    "converted_from": pretrained.format,
    "checksums_since": 0,
    "commit": commit,
    "dirty": dirty,
    "argv": ["bert-jax", *sys.argv[1:]],
    "started": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
  }
  if pretrained.sentence:
    run["sentence"] = list(pretrained.sentence)
  if pretrained.tokenizer:
    pretrained.tokenizer.save(os.path.join(folder, "vocab"))
  checkpoint.write_params(folder, param_trees.nest(tensors))
  runs.write_run(folder, run)
