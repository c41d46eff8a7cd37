"""The range of every number in a config: one table, with the reasons.

Bounds are wide: they refuse what no run can mean, in no time, before anything
is compiled or written. What fits together is checked where it is used.
"""

import math
import numbers
from typing import Any

# Steps, rows and tokens are counted by 32-bit integers on the devices.
_INT32 = 2**31 - 1
# jax.random.key takes a signed 64-bit integer.
_SEED = (-(2**63), 2**63 - 1)
# Tokens of a sequence; attention is quadratic in it.
_LEN = 2**20
# Beyond every vocabulary in use.
_PIECES = 2**24
_NUM_THREADS = 2**12
# A finite number whose square a float32 can still hold.
_FLOAT = 1e18

# Key -> (least, most). Both int: the value is an integer. What is 0 to switch
# something off, and what has a closer bound that depends on other keys, is
# explained in configs/base.py and checked where it is used.
BOUNDS: dict[str, tuple[float, float]] = {
  "seed": _SEED,
  "model.vocab_size": (1, _PIECES),
  "model.num_layers": (1, 10_000),  # ten times the deepest published encoder
  "model.hidden_size": (1, 2**18),
  "model.num_heads": (1, 2**16),
  "model.mlp_dim": (1, 2**20),
  "model.max_len": (1, _LEN),
  "model.type_vocab_size": (1, 2**16),
  "model.dropout_rate": (0.0, 1.0),
  "model.attention_dropout_rate": (0.0, 1.0),
  "model.layer_norm_eps": (0.0, 1.0),
  "model.init_stddev": (0.0, _FLOAT),
  "data.seq_len": (1, _LEN),
  "data.batch_size": (1, _PIECES),
  "data.max_sequences": (1, _LEN),
  "data.dupe_factor": (1, 10**6),
  "data.short_seq_rate": (0.0, 1.0),
  "data.examples_seed": _SEED,
  "data.mask_rate": (0.0, 1.0),
  "data.max_predictions": (0, _LEN),
  "data.mask_token_rate": (0.0, 1.0),
  "data.random_token_rate": (0.0, 1.0),
  "data.prefetch_batches": (1, 10**6),
  "data.num_threads": (0, _NUM_THREADS),
  "data.max_bad_records": (0, _INT32),
  "task.max_train_examples": (0, _INT32),
  "task.max_query_len": (0, _LEN),
  "task.doc_stride": (1, _LEN),
  "task.n_best": (1, _LEN),
  "task.max_answer_len": (1, _LEN),
  "task.null_threshold": (-_FLOAT, _FLOAT),
  "prepare.vocab_size": (1, _PIECES),
  "prepare.vocab_sample_bytes": (1, 2**48),
  "prepare.held_out_rate": (0.0, 1.0),
  "prepare.held_out_seed": _SEED,
  "prepare.unit_bytes": (1, 2**40),
  "prepare.num_workers": (0, _NUM_THREADS),
  "optim.learning_rate": (0.0, _FLOAT),
  "optim.warmup_rate": (0.0, 1.0),
  "optim.cooldown_rate": (0.0, 1.0),
  "optim.weight_decay": (0.0, _FLOAT),
  "optim.b1": (0.0, 1.0),
  "optim.b2": (0.0, 1.0),
  "optim.eps": (0.0, _FLOAT),
  "optim.clip_norm": (0.0, _FLOAT),
  "optim.num_micro_batches": (1, _PIECES),
  "train.total_steps": (0, _INT32),
  "train.num_epochs": (0.0, 1e9),
  "train.log_every_steps": (1, _INT32),
  "train.spike_factor": (0.0, _FLOAT),
  "train.max_skipped_steps": (0, _INT32),
  "train.max_stall_secs": (0.0, 1e9),
  # -1 = all devices that are left; sharding says what fits those here.
  "mesh.data": (-1, _PIECES),
  "mesh.fsdp": (-1, _PIECES),
  "mesh.tensor": (-1, _PIECES),
  "mesh.seed": (0, _PIECES),
  "eval.every_steps": (0, _INT32),
  "eval.batch_size": (1, _PIECES),
  "eval.max_examples": (0, _INT32),
  "checkpoint.every_steps": (0, _INT32),
  "checkpoint.max_lost_secs": (0.0, 1e9),
  "checkpoint.keep": (1, 10**6),
  "predict.seq_len": (0, _LEN),
  "predict.batch_tokens": (1, _INT32),
  "predict.top_k": (1, _PIECES),
  "predict.concat_last": (0, 10_000),
  "predict.decimals": (0, 12),
  "predict.null_threshold": (-_FLOAT, _FLOAT),
}

# Beyond the memory of every machine: 40 TB in float32.
MOST_PARAMETERS = 10**13


def check_value(key: str, value: Any) -> None:
  """Raises ValueError if a number is not what its key may be."""
  least, most = BOUNDS[key]
  whole = isinstance(most, int)
  kind: Any = numbers.Integral if whole else numbers.Real
  if isinstance(value, bool) or not isinstance(value, kind):
    raise ValueError(
      f"{key}={value!r:.60}; it must be {'an integer' if whole else 'a number'}"
    )
  if not isinstance(value, int) and not math.isfinite(value):
    raise ValueError(f"{key}={value}; it must be a finite number")
  if value < least:
    raise ValueError(f"{key}={value!r:.60}; it must be {least} or more")
  if value > most:
    raise ValueError(f"{key}={value!r:.60}; it must be {most} or less")


def check(config: Any) -> None:
  """Checks every number of a config.

  Args:
    config: the whole configuration, also of an older run; a key that is not
      there is not checked.

  Raises:
    ValueError: a number is out of range, or the model or its batches are
      larger than any machine; names the key.
  """
  for key in BOUNDS:
    value = _get(config, key)
    if value is not None:
      check_value(key, value)
  seq_len = _get(config, "data.seq_len") or 1
  for key in ("data.batch_size", "eval.batch_size"):
    rows = _get(config, key) or 1
    if rows * seq_len > _INT32:
      raise ValueError(
        f"{key}={rows} rows of data.seq_len={seq_len} are {rows * seq_len} "
        f"tokens; a step takes {_INT32} or fewer"
      )
  model = _get(config, "model")
  if model and (count := num_parameters(model)) > MOST_PARAMETERS:
    raise ValueError(
      f"the model has {count:.2g} parameters: model.num_layers="
      f"{model['num_layers']}, model.hidden_size={model['hidden_size']}, "
      f"model.mlp_dim={model['mlp_dim']}, model.vocab_size="
      f"{model['vocab_size']}; it may have {MOST_PARAMETERS:.0e}"
    )


def num_parameters(model: Any) -> int:
  """Parameters of an encoder, but for biases and normalisation.

  Args:
    model: the group `model` of a config.
  """
  hidden, mlp = model["hidden_size"], model["mlp_dim"]
  rows = model["vocab_size"] + model["max_len"] + model["type_vocab_size"]
  layer = 4 * hidden * hidden + 2 * hidden * mlp
  return rows * hidden + model["num_layers"] * layer


def _get(config: Any, key: str) -> Any:
  """The value of group.key; None where there is none."""
  value = config
  for name in key.split("."):
    if not hasattr(value, "get"):
      return None
    value = value.get(name)
  return value
