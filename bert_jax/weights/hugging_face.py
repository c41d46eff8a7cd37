"""Reads and writes folders of transformers.

A folder holds config.json, a tokenizer, and weights as safetensors, msgpack or
a file of torch.

Nothing in a file is run. Before memory is allocated, the sizes that a file
states are compared with the size of the file.
"""

from collections.abc import Mapping
import dataclasses
import json
import logging
import os
import re
from typing import Any

from flax import serialization
import numpy as np
import safetensors
import safetensors.numpy

from bert_jax.data.tokenizers import hf_pipeline
from bert_jax.data.tokenizers import hf_tokenizer
from bert_jax.data.tokenizers import load
from bert_jax.models import families
from bert_jax.models import params as param_trees
from bert_jax.models.config import ModelConfig
from bert_jax.models.families import roberta
from bert_jax.models.families.family import PRETRAINING_HEADS
from bert_jax.runtime import files
from bert_jax.weights import task_heads
from bert_jax.weights import torch_file
from bert_jax.weights.pretrained import FolderSettings
from bert_jax.weights.pretrained import Pretrained
from bert_jax.weights.pretrained import WeightsError
from bert_jax.weights.pretrained import check_arrays
from bert_jax.weights.pretrained import naming

_log = logging.getLogger(__name__)

SAFETENSORS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
MSGPACK = "flax_model.msgpack"
PICKLE = "pytorch_model.bin"
PICKLE_SHARDS = "pytorch_model.bin.index.json"
FAIRSEQ = "model.pt"
# Beside the weights of a sentence-transformers model.
_LENGTHS = "sentence_bert_config.json"
# The ends of the names of files that torch.save wrote.
PICKLES = (".bin", ".pt", ".pth", ".pkl")
# The names that transformers invents for labels without names.
_MADE_UP_LABEL = re.compile(r"LABEL_\d+")


# --- reading -----------------------------------------------------------------


def read_tensors(path: str) -> dict[str, np.ndarray]:
  """Reads one file of safetensors or of torch, or all shards of an index.

  A file of torch is a pickle; `torch_file` reads it without running anything.
  """
  if path.endswith(PICKLES):
    with naming(path):
      return torch_file.read_state(path)
  if not path.endswith(".json"):
    with naming(path), safetensors.safe_open(path, "np") as f:
      return {name: f.get_tensor(name) for name in f.keys()}
  suffix = os.path.splitext(path.removesuffix(".index.json"))[1]
  with naming(path):
    places = files.read_json(path).get("weight_map")
  if (
    not isinstance(places, dict)
    or not places
    or not all(isinstance(name, str) for name in places.values())
  ):
    raise WeightsError(
      f"{path} has no weight_map, an object of tensors and their files"
    )
  tensors: dict[str, np.ndarray] = {}
  for name in sorted(set(places.values())):
    if name != os.path.basename(name) or not name.endswith(suffix):
      raise WeightsError(
        f"{path} names {name!r:.100}; a {suffix} file beside it was wanted"
      )
    tensors |= read_tensors(os.path.join(os.path.dirname(path), name))
  if absent := sorted(places.keys() - tensors.keys()):
    raise WeightsError(
      f"{path} names the tensor {absent[0]:.100}, which is in none of its files"
    )
  return tensors


def read_msgpack(path: str) -> dict[str, np.ndarray]:
  """Reads the parameters that a Flax class of transformers saved."""
  with naming(path), files.reading(path) as f:
    tree = serialization.msgpack_restore(f.read())
    if not isinstance(tree, dict):
      raise ValueError("it is not a tree of parameters")
    if set(tree) == {"params"}:
      tree = tree["params"]
    return check_arrays(param_trees.flatten(tree))


def read_settings(file: str) -> FolderSettings:
  """Reads the settings and the tokenizer in the folder of a file of weights."""
  folder = os.path.dirname(file)
  path, config = _config_beside(file)
  with naming(path):
    family = families.family_of(
      config.get("model_type"), auto_map=config.get("auto_map")
    )
    model = family.model_of("huggingface", config)
    labels = _labels_of(config)
    _check_class(folder, family, config)
  family.config_keys.warn(path, config)
  _say_what_differs(family, path, config)
  adapter = os.path.join(folder, "adapter_config.json")
  if files.exists(adapter):
    raise WeightsError(
      f"{adapter} is beside the weights, so transformers would put an adapter "
      "into the model; merge it with transformers (merge_and_unload), or "
      "remove the file"
    )
  with naming(folder):
    spec = family.tokenizer
    if model["type_vocab_size"] > 1:  # the files then decide
      spec = dataclasses.replace(spec, has_types=True)
    tokenizer, seq_len, lower_case = load.read_folder(folder, spec)
  return FolderSettings(
    pretrained=Pretrained(
      format="flax" if file.endswith(".msgpack") else "huggingface",
      family=family.name,
      model=model,
      labels=labels,
      tokenizer=tokenizer,
      lower_case=lower_case,
      # A length that is not shorter than max_len limits nothing.
      seq_len=seq_len if seq_len and seq_len < model["max_len"] else None,
      sentence=_sentence_of(folder),
    ),
    head=lambda num_outputs: task_heads.of_config(
      config, num_outputs, family.hf_class
    ),
    tied=config.get("tie_word_embeddings") is not False,
  )


def _config_beside(file: str) -> tuple[str, dict[str, Any]]:
  """Returns the path and the content of the settings of a file of weights.

  A checkpoint of fairseq holds the arguments of its training, so that it needs
  no config.json.
  """
  path = os.path.join(os.path.dirname(file), "config.json")
  is_transformers = os.path.basename(file) in (PICKLE, PICKLE_SHARDS)
  may_be_fairseqs = file.endswith(PICKLES) and not is_transformers
  if files.exists(path) or not may_be_fairseqs:
    with naming(path):
      return path, files.read_json(path)
  with naming(file):
    content = torch_file.read(file)
    tensors = torch_file.state_of(content, file)
    args = content.get("args")
    newer = content.get("cfg")
    if not args and isinstance(newer, dict):
      args = newer.get("model")
    words = [n for n in tensors if n.endswith(".embed_tokens.weight")]
    if not isinstance(args, dict) or not words:
      raise WeightsError(
        f"{file} has no config.json beside it, and holds no arguments of a "
        "training with fairseq (args, or cfg with model) from which one could "
        "be made; put the config.json of the model there, with model_type and "
        "the sizes of the model"
      )
    rows = tensors[words[0]].shape[0]
    return file, roberta.fairseq_config(args, rows)


def _sentence_of(folder: str) -> tuple[str, ...]:
  """Returns how a sentence-transformers folder makes a sentence's vector.

  Its modules.json lists modules, of which each has a folder with settings. A
  newer folder names the pooling in one key, and an older one has a flag for
  each way.
  """
  path = os.path.join(folder, "modules.json")
  if not files.exists(path):
    return ()
  steps: list[str] = []
  with naming(path):
    with files.reading(path, "r") as f:
      modules = json.load(f)
    is_list = isinstance(modules, list)
    if not is_list or not all(isinstance(m, dict) for m in modules):
      raise ValueError("it is not a list of modules, which are JSON objects")
    for module in modules:
      kind = str(module["type"]).rpartition(".")[2]
      if kind == "Pooling":
        part = os.path.normpath(str(module.get("path", "")))
        if os.path.isabs(part) or part.startswith(os.pardir):
          raise ValueError(f"the path {part!r:.100} is outside of the folder")
        place = os.path.join(folder, part, "config.json")
        with naming(place):
          steps += _poolings(files.read_json(place))
      elif kind == "Normalize":
        steps.append("normalize")
      elif kind != "Transformer":
        steps.append(kind)
  return tuple(steps)


def _poolings(config: Mapping[str, Any]) -> list[str]:
  """Returns the ways of pooling in the settings of a Pooling module."""
  if name := config.get("pooling_mode"):
    return [str(name)]
  names = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
  return [
    names.get(key, key)
    for key, value in config.items()
    if key.startswith("pooling_mode_") and value is True
  ]


def _write_sentence(pretrained: Pretrained, folder: str) -> None:
  """Writes the files that `_sentence_of` reads, if the model has such steps."""
  steps = pretrained.sentence
  if not steps:
    return
  known = {"cls": "cls_token", "mean": "mean_tokens"}
  pooling = [step for step in steps if step != "normalize"]
  if len(pooling) != 1 or pooling[0] not in known:
    _log.warning(
      "no modules.json is written, because this program cannot write the steps "
      "of a sentence's vector: %s", ", ".join(steps),
    )  # fmt: skip
    return
  names = {"Transformer": "", "Pooling": "1_Pooling"}
  if "normalize" in steps:
    names["Normalize"] = "2_Normalize"
  modules = [
    {
      "idx": i, "name": str(i), "path": path,
      "type": f"sentence_transformers.models.{name}",
    }
    for i, (name, path) in enumerate(names.items())
  ]  # fmt: skip
  for path in filter(None, names.values()):
    files.make_folders(os.path.join(folder, path))

  def write(name: str, value: Any) -> None:
    hf_tokenizer.write_json(os.path.join(folder, name), value)

  write("modules.json", modules)
  write(
    f"{names['Pooling']}/config.json",
    {"word_embedding_dimension": pretrained.model["hidden_size"]}
    | {f"pooling_mode_{known[k]}": k == pooling[0] for k in known},
  )
  if "normalize" in steps:
    write(f"{names['Normalize']}/config.json", {})
  seq_len = pretrained.seq_len or pretrained.model["max_len"]
  # The tokenizer lower-cases by itself if the model does.
  write(_LENGTHS, {"max_seq_length": seq_len, "do_lower_case": False})
  is_cosine = "normalize" in steps
  write(
    "config_sentence_transformers.json",
    {
      "model_type": "SentenceTransformer",
      "prompts": {},
      "default_prompt_name": None,
      "similarity_fn_name": "cosine" if is_cosine else "dot",
    },
  )


def _labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the names of the labels by id; () if the file names none.

  Raises:
    ValueError: config.json contradicts itself.
  """
  names = config.get("id2label") or {}
  if not isinstance(names, dict):
    raise ValueError("id2label is not an object of ids and names")
  by_id = {int(i): str(name) for i, name in names.items()}
  if sorted(by_id) != list(range(len(by_id))):
    raise ValueError(f"id2label has ids {sorted(by_id)}; wanted 0, 1, 2, ..")
  for key in ("num_labels", "_num_labels"):
    count = config.get(key)
    if names and count is not None and count != len(by_id):
      raise ValueError(
        f"{key} is {count!r:.60}, but id2label names {len(by_id)} labels; "
        "correct one of them"
      )
  labels = tuple(by_id[i] for i in range(len(by_id)))
  return () if all(map(_MADE_UP_LABEL.fullmatch, labels)) else labels


def _say_what_differs(
  family: families.Family, path: str, config: Mapping[str, Any]
) -> None:
  """Logs settings in config.json that this program does not apply."""
  # The activation of a cross-encoder's outputs, by the newer or older key.
  newer = config.get("sentence_transformers")
  name = newer.get("activation_fn") if isinstance(newer, Mapping) else None
  name = str(name or config.get("sbert_ce_default_activation_function") or "")
  if name.rpartition(".")[2] not in ("", "Identity"):
    _log.warning(
      "%s says that sentence-transformers applies %s to the outputs of the "
      "head. This program does not: a regression gives the raw output (the "
      "logit), a single-label task the softmax, a multi-label task the sigmoid",
      path, name,
    )  # fmt: skip
  for theirs, ours in family.training_keys.items():
    value = config.get(theirs)
    if value not in (None, getattr(ModelConfig, ours)):
      _log.info(
        "%s has %s=%s; training uses --config.model.%s instead",
        path, theirs, value, ours,
      )  # fmt: skip


def _check_class(
  folder: str, family: families.Family, config: Mapping[str, Any]
) -> None:
  """Refuses a config.json with the class of another kind of tokenizer."""
  spec = family.tokenizer
  if not hf_pipeline.is_pipeline(folder, spec):
    keys = hf_tokenizer.keys_of(spec.of_wordpiece())
    keys.check({"tokenizer_class": config.get("tokenizer_class")})


# --- writing -----------------------------------------------------------------


def write_safetensors(
  pretrained: Pretrained, tensors: dict[str, np.ndarray], folder: str
) -> None:
  """Writes a folder as transformers' PyTorch classes write it."""
  _write_settings(pretrained, folder)
  safetensors.numpy.save_file(
    tensors, os.path.join(folder, SAFETENSORS), metadata={"format": "pt"}
  )


def write_msgpack(
  pretrained: Pretrained, tensors: dict[str, np.ndarray], folder: str
) -> None:
  """Writes a folder as transformers' Flax classes write it."""
  _write_settings(pretrained, folder)
  content = serialization.msgpack_serialize(param_trees.nest(tensors))
  files.write_bytes(os.path.join(folder, MSGPACK), content)


# The kinds of tokenizers that a format can hold.
_HELD = {"tf1": ("wordpiece",)}
_HELD_BY_FOLDERS = ("wordpiece", "pipeline")


def own_kind_of_tokenizer(pretrained: Pretrained, format: str) -> Any:
  """Returns the tokenizer of a model; None if the model has no tokenizer.

  Raises:
    WeightsError: the format cannot hold a tokenizer of this kind.
  """
  tokenizer = pretrained.tokenizer
  wanted = _HELD.get(format, _HELD_BY_FOLDERS)
  if tokenizer is None or tokenizer.kind in wanted:
    return tokenizer
  raise WeightsError(
    f"a {tokenizer.kind} vocabulary cannot be written as {format}, which holds "
    f"{' or '.join(wanted)}; set tokenizer to None, or write the format "
    "bert_jax"
  )


def config_of(pretrained: Pretrained) -> dict[str, Any]:
  """Returns the content of config.json.

  Raises:
    ValueError: transformers has no such model, or no such tokenizer.
  """
  tokenizer = own_kind_of_tokenizer(pretrained, "huggingface")
  family = families.get_family(pretrained.family)
  # Some families count positions from that of padding, and write it, too.
  config = {
    "pad_token_id": tokenizer.pad_id if tokenizer else 0,
    **family.written,
    **family.config_of("huggingface", pretrained.shape),
    "architectures": [_architecture(family, pretrained)],
    "torch_dtype": pretrained.dtype_name,
  }
  if head := task_heads.HEADS.get(pretrained.kind or ""):
    if head.has_names or head.problem_type:
      labels = pretrained.labels or [
        f"LABEL_{i}" for i in range(pretrained.num_outputs)
      ]
      config["id2label"] = {str(i): name for i, name in enumerate(labels)}
      config["label2id"] = {name: i for i, name in enumerate(labels)}
    if head.problem_type:
      config["problem_type"] = head.problem_type
  return config


def _write_settings(pretrained: Pretrained, folder: str) -> None:
  """Writes config.json and the tokenizer's files."""
  hf_tokenizer.write_json(
    os.path.join(folder, "config.json"), config_of(pretrained)
  )
  _write_sentence(pretrained, folder)
  if pretrained.tokenizer:
    # Not seq_len: transformers silently truncates text to this length.
    max_len = pretrained.model["max_len"]
    spec = families.get_family(pretrained.family).tokenizer
    load.write_folder(pretrained.tokenizer, folder, spec, max_len)


def _architecture(family: families.Family, pretrained: Pretrained) -> str:
  """Returns the name of the transformers class that has the same heads."""
  if pretrained.kind is not None:
    return family.hf_class + task_heads.HEADS[pretrained.kind].hf_class
  heads = tuple(sorted(set(PRETRAINING_HEADS) & pretrained.params.keys()))
  if heads not in family.pretraining_classes:
    raise WeightsError(
      f"transformers has no {family.hf_class} with the heads {', '.join(heads)}"
    )
  return family.hf_class + family.pretraining_classes[heads]
