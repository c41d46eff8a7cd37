"""Reads and writes folders of the original code.

A folder holds bert_config.json and a TensorFlow 1 checkpoint. Settings that the
original has no key for are stored in bert_config.json under the key "bert_jax".
"""

from collections.abc import Mapping
import contextlib
import os
from typing import Any

import numpy as np

from bert_jax.data.tokenizers import hf_tokenizer
from bert_jax.data.tokenizers import interface
from bert_jax.data.tokenizers import load
from bert_jax.models import families
from bert_jax.runtime import files
from bert_jax.weights import hugging_face
from bert_jax.weights import tf_checkpoint
from bert_jax.weights.pretrained import FolderSettings
from bert_jax.weights.pretrained import Pretrained
from bert_jax.weights.pretrained import WeightsError
from bert_jax.weights.pretrained import checked_length
from bert_jax.weights.pretrained import naming

CHECKPOINT = "bert_model.ckpt"
# The entry of a checkpoint by tf.train.Checkpoint.
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_OURS = "bert_jax"  # the key of our own settings in bert_config.json


def _unread(entries: Mapping[str, tf_checkpoint.Entry]) -> tuple[str, ...]:
  """Returns the names of the optimizer's state and of tensors of text."""
  return tuple(
    name
    for name, entry in entries.items()
    if name.endswith(("/adam_m", "/adam_v")) or entry.type == tf_checkpoint.TEXT
  )


def _read_index(prefix: str) -> dict[str, tf_checkpoint.Entry]:
  """Reads which tensors a checkpoint has.

  Raises:
    WeightsError: it is an object checkpoint of TensorFlow 2.
  """
  entries = tf_checkpoint.read_index(prefix)
  if _OBJECT_GRAPH in entries:
    raise WeightsError(
      f"{prefix} is a TensorFlow 2 object checkpoint (it has the entry "
      f"{_OBJECT_GRAPH}, which tf.train.Checkpoint writes); only TensorFlow 1 "
      "checkpoints, with names such as bert/embeddings/word_embeddings, are "
      "read. Give the TensorFlow 1 release of the model, or convert it to a "
      "Hugging Face folder"
    )
  return entries


def read_tensors(prefix: str) -> dict[str, np.ndarray]:
  """Reads the weights of a checkpoint, without the state of its optimizer."""
  entries = _read_index(prefix)
  return tf_checkpoint.read(prefix, entries.keys() - set(_unread(entries)))


def read_settings(prefix: str) -> FolderSettings:
  """Reads bert_config.json and the vocabulary beside a checkpoint."""
  folder = os.path.dirname(prefix)
  path = os.path.join(folder, "bert_config.json")
  if not files.exists(path):
    with contextlib.suppress(tf_checkpoint.BundleError):
      _read_index(prefix)  # an object checkpoint is refused as such
    raise WeightsError(
      f"{path} does not exist; put the bert_config.json that the model was "
      "trained with beside its checkpoint"
    )
  entries = _read_index(prefix)
  with naming(path):
    config = files.read_json(path)
    family = families.family_of(config.get("model_type"), entries)
    family.names_in("tf1")  # refuses a family without this format
    ours = _own_settings(config)
    model = _model_of(family, config, ours)
    labels = tuple(map(str, ours.get("labels", ())))
    seq_len = checked_length(ours)
  tokenizer = _read_tokenizer(folder, ours)
  return FolderSettings(
    pretrained=Pretrained(
      format="tf1",
      family=family.name,
      model=model,
      labels=labels,
      tokenizer=tokenizer,
      lower_case=tokenizer.lower_case if tokenizer else ours.get("lower_case"),
      ignored=_unread(entries),
      seq_len=seq_len,
    ),
    # run_classifier.py has one output a class; other programs use its names.
    head=lambda num_outputs: (
      ours.get("kind", "classify" if num_outputs > 1 else None),
      "",
    ),
  )


def _own_settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the settings that `write` stored under our key.

  Raises:
    ValueError: one of them has the wrong type.
  """
  ours = dict(config.get(_OURS, {}))
  types = {"lower_case": bool, "max_input_chars_per_word": int}
  for key, wanted in types.items():
    if key in ours and type(ours[key]) is not wanted:
      raise ValueError(
        f"{_OURS}.{key} is {ours[key]!r:.100}; wanted {wanted.__name__}"
      )
  return ours


def _model_of(
  family: families.Family, config: Mapping[str, Any], ours: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns sizes and switches; our key tells the two forms of gelu apart."""
  model = family.model_of("tf1", config)
  act = ours.get("hidden_act", model["hidden_act"])
  theirs = family.config_of("tf1", model | {"hidden_act": act})["hidden_act"]
  if theirs != config.get("hidden_act", "gelu"):
    raise ValueError(
      f"hidden_act is {config['hidden_act']!r}, but {_OURS}.hidden_act is "
      f"{act!r}; make them agree"
    )
  return model | {"hidden_act": act}


def _read_tokenizer(
  folder: str, ours: Mapping[str, Any]
) -> interface.Tokenizer | None:
  """Returns the tokenizer beside a checkpoint; None if it has no vocabulary."""
  vocab = os.path.join(folder, "vocab.txt")
  if not files.exists(vocab):
    return None
  with naming(vocab):
    return load.load_tokenizer(
      vocab,
      lower_case=ours.get("lower_case"),
      max_input_chars_per_word=ours.get("max_input_chars_per_word"),
    )


def config_of(pretrained: Pretrained) -> dict[str, Any]:
  """Returns the content of bert_config.json, with our settings under our key.

  Raises:
    ValueError: the original code has no such model, or no such tokenizer.
  """
  tokenizer = hugging_face.own_kind_of_tokenizer(pretrained, "tf1")
  if tokenizer and tokenizer.added:
    names = ", ".join(token.content for token in tokenizer.added)
    raise WeightsError(
      f"the vocabulary has added tokens ({names:.200}), which the original "
      "code would cut into pieces; write huggingface, flax or bert_jax"
    )
  model = pretrained.model
  family = families.get_family(pretrained.family)
  config = family.config_of("tf1", model)
  for key in family.training_keys.keys() & family.written.keys():
    config[key] = family.written[key]
  ours: dict[str, Any] = {"hidden_act": model["hidden_act"]}
  if pretrained.seq_len:
    ours["seq_len"] = pretrained.seq_len
  if pretrained.kind is not None:
    ours |= {"kind": pretrained.kind, "labels": list(pretrained.labels)}
  if tokenizer:
    ours["lower_case"] = tokenizer.lower_case
    ours["max_input_chars_per_word"] = tokenizer.max_input_chars_per_word
  elif pretrained.lower_case is not None:
    ours["lower_case"] = pretrained.lower_case
  return config | {_OURS: ours}


def write(
  pretrained: Pretrained, tensors: dict[str, np.ndarray], folder: str
) -> None:
  """Writes the files of the original code."""
  path = os.path.join(folder, "bert_config.json")
  hf_tokenizer.write_json(path, config_of(pretrained))
  if tokenizer := hugging_face.own_kind_of_tokenizer(pretrained, "tf1"):
    tokenizer.write_vocabulary(os.path.join(folder, "vocab.txt"))
  tf_checkpoint.write(os.path.join(folder, CHECKPOINT), tensors)
