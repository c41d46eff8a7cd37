"""Checks of a config that need no data."""

from collections.abc import Collection
import os

import jax
import jax.numpy as jnp

from bert_jax.models import adapters
from bert_jax.runtime import early_stopping
from bert_jax.runtime import local_steps
from bert_jax.runtime import settings
from bert_jax.runtime import trackers
from bert_jax.runtime.settings import Config

# Keys that only tasks read, and those that only pre-training reads. A training
# of the other sort refuses another value than the default.
FOR_TASKS = (
  "task.class_weights", "task.label_smoothing", "task.focal_gamma",
  "task.dev_rate", "task.num_folds", "task.fold", "task.dev_seed",
  "task.long_texts", "task.both_orders", "task.temperature", "eval.bootstrap",
  "task.pooling", "task.normalize", "task.contrast_temperature",
  "task.matryoshka_sizes", "task.matryoshka_weights", "task.rank_loss",
  "optim.lora_rank", "optim.lora_alpha", "optim.lora_targets",
  "optim.lora_dropout_rate", "optim.lora_norms",
)  # fmt: skip
FOR_PRETRAINING = (
  "data.mixture", "data.mixture_weights", "data.mixture_power",
  "data.batch_warmup_sizes", "data.batch_warmup_steps", "data.first_row",
  "eval.mask_rate",
)  # fmt: skip


def check_settings(config: Config) -> None:
  """Raises ValueError if a training setting is out of range."""
  settings.check(config)
  trackers.check(config.train.get("trackers", ()))  # older runs lack the key
  for key in ("max_query_len", "doc_stride", "n_best", "max_answer_len"):
    if config.task[key] is None:  # as in configs/predict.py
      raise ValueError(f"task.{key} is not set; training needs a number")
  early_stopping.check(config)
  if config.eval.average and not config.optim.average_decay:
    raise ValueError(
      "eval.average=True, but optim.average_decay=0 keeps no average; set it, "
      "such as to 0.999, or set eval.average=False"
    )
  local_steps.check_settings(config.checkpoint)
  check_effects(config)
  _check_start(config)
  _check_adapters(config)
  if not config.train.num_epochs and config.train.total_steps < 1:
    raise ValueError(  # tasks may count epochs instead
      f"train.total_steps={config.train.total_steps}; it must be 1 or more"
    )
  if config.train.phases:
    raise ValueError(
      f"train.phases={list(config.train.phases)} describes several runs, and "
      "this opens one; use bert-jax train, plan or doctor, or train.train"
    )
  if config.data.mask_token_rate + config.data.random_token_rate > 1:
    raise ValueError(
      f"data.mask_token_rate={config.data.mask_token_rate} and "
      f"data.random_token_rate={config.data.random_token_rate} add up to more "
      "than 1"
    )
  if 0 < config.train.spike_factor <= 1:
    raise ValueError(
      f"train.spike_factor={config.train.spike_factor} makes every other loss "
      "a spike; use 2 or more, or 0 to switch it off"
    )


def check_effects(
  config: Config, scopes: Collection[str] = ("run", "session", "host")
) -> None:
  """Raises ValueError if a key has no effect on the objective of a config.

  Args:
    config: the whole configuration, which may lack keys.
    scopes: only keys of these scopes are checked; see `settings`.
  """
  flat = settings.flatten(config)
  for name in FOR_PRETRAINING if config.objective == "task" else FOR_TASKS:
    key, value = settings.KEYS[name], flat.get(name)
    if isinstance(value, list):
      value = tuple(value)
    if key.scope in scopes and value not in (None, key.default):
      raise ValueError(
        f"{name}={value} has no effect on objective={config.objective}; leave "
        "it out"
      )


def _check_start(config: Config) -> None:
  """Raises ValueError if a key is about weights that the training lacks."""
  if config.reinit_layers and (not config.init_from or config.init_random):
    raise ValueError(
      f"reinit_layers={config.reinit_layers}, but all layers start from random "
      "weights; set init_from, or leave the key out"
    )
  if config.init_moments and (not config.init_from or config.init_random):
    raise ValueError(
      f"init_moments=True with init_from={config.init_from!r} and init_random="
      f"{config.init_random}: there are no moments to start from; give "
      "init_from=RUN or RUN/checkpoints/STEP, or init_moments=False"
    )
  if config.init_layers and not config.init_from:
    raise ValueError(
      f"init_layers={config.init_layers} keeps layers of init_from, which is "
      "not set; set it, or give the depth as model.num_layers and "
      "init_layers=0"
    )
  if config.init_changes and not config.init_from:
    raise ValueError(
      f"init_changes={list(config.init_changes)} changes the model of "
      "init_from, which is not set; set the keys of the group model"
    )


def _check_adapters(config: Config) -> None:
  """Raises ValueError if keys of LoRA do not fit the others."""
  options = adapters.options_of(config.optim)
  if options is None:
    flat = settings.flatten(config)
    for name in FOR_TASKS:
      default = settings.KEYS[name].default
      value = flat.get(name, default)
      if name.startswith("optim.lora_") and value not in (
        default, list(default) if isinstance(default, tuple) else default,
      ):  # fmt: skip
        raise ValueError(
          f"{name}={value} has no effect with optim.lora_rank=0; give a rank, "
          "such as 8, or leave the key out"
        )
    return
  options.check()
  rank = config.optim.lora_rank
  if not config.init_from or config.init_random:
    raise ValueError(
      f"optim.lora_rank={rank} trains adapters of weights that stay as they "
      f"are, but init_from={config.init_from!r} and init_random="
      f"{config.init_random}, so these are random; set init_from, or "
      "optim.lora_rank=0"
    )
  for key, value in (
    ("reinit_layers", config.reinit_layers),
    ("init_moments", config.init_moments),
  ):
    if value:
      raise ValueError(
        f"{key}={value} does not fit optim.lora_rank={rank}, with which the "
        "layers stay as they are and only adapters have moments; leave one of "
        "the two out"
      )


def check_memory(config: Config, mesh: jax.sharding.Mesh) -> None:
  """Checks that the memory of the devices could hold a step at all.

  The least that a step holds, evenly spread over all devices, is the parameters
  with both moments, and the hidden states of a micro-batch in one layer.

  Args:
    config: the whole configuration.
    mesh: the mesh of the devices of this job.

  Raises:
    ValueError: the memory is too small; the message says how large it is.
  """
  available = _memory(mesh)
  if available is None or config.init_from:  # the weights give the shape
    return
  model = config.model
  size = jnp.dtype(model.param_dtype).itemsize
  state = 3 * size * settings.num_parameters(model)
  hidden = 0
  if config.objective != "task":  # the examples of a task share rows
    tokens = config.data.batch_size * config.data.seq_len
    width = jnp.dtype(model.dtype).itemsize * model.hidden_size
    hidden = tokens * width // config.optim.num_micro_batches
  if state + hidden > available:
    raise ValueError(
      f"this training needs {(state + hidden) / 1e9:,.0f} GB or more, and its "
      f"{mesh.devices.size} devices have {available / 1e9:,.0f} GB: parameters "
      f"and moments take {state / 1e9:,.0f} GB, the hidden states of a layer "
      f"{hidden / 1e9:,.0f} GB; lower model.num_layers, model.hidden_size or "
      "data.batch_size, or raise optim.num_micro_batches"
    )


def _memory(mesh: jax.sharding.Mesh) -> int | None:
  """Returns the bytes of all devices of a mesh; None if unknown."""
  device = mesh.local_devices[0]
  if device.platform == "cpu":  # devices of a process share a memory
    processes = len({d.process_index for d in mesh.devices.flat})
    return processes * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  limit = (device.memory_stats() or {}).get("bytes_limit")
  return limit and limit * mesh.devices.size
