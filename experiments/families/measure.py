"""Compares models of transformers with what they become here.

The models are small, of odd sizes, and random. `measure` gives the largest
difference of every output: of hidden states, of the scores of words, and of the
head of each kind of task. Needs torch and transformers.
"""

import dataclasses
import os
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from bert_jax import weights
from bert_jax.kinds import table
from bert_jax.models import config as model_config
from bert_jax.models import encoder
from bert_jax.models import families
from bert_jax.models import heads
from bert_jax.runtime import settings
from bert_jax.runtime import sharding

VOCAB, LENGTH, NUM_LABELS = 67, 40, 5
LENGTHS = (LENGTH, 23, 9)
# Kind of task -> the class of transformers without the name of the family.
CLASSES = {
  "classify": "ForSequenceClassification",
  "tag": "ForTokenClassification",
  "span": "ForQuestionAnswering",
  "choice": "ForMultipleChoice",
}
_SIZES = {
  "vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 4,
  "num_attention_heads": 3, "intermediate_size": 40,
  "max_position_embeddings": 50,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Reference:
  """How a family's small model is made by transformers.

  Attributes:
    config: what its config has beside the sizes.
    kinds: the kinds of tasks whose heads transformers has.
    sizes: the names of the sizes in the config.
    pad: the id of padding.
    family: the name of the family if it is not the name of the row.
  """

  config: dict[str, Any] = dataclasses.field(default_factory=dict)
  kinds: tuple[str, ...] = tuple(CLASSES)
  sizes: dict[str, Any] = dataclasses.field(default_factory=lambda: _SIZES)
  pad: int = 0
  family: str = ""


_DISENTANGLED = {
  "relative_attention": True, "position_buckets": 8, "share_att_key": True,
  "pos_att_type": "p2c|c2p", "norm_rel_ebd": "layer_norm",
  "position_biased_input": False, "max_relative_positions": -1,
}  # fmt: skip
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
REFERENCES = {
  "bert": Reference(),
  "roberta": Reference({"type_vocab_size": 1, "pad_token_id": 1}, pad=1),
  "xlm-roberta": Reference({"type_vocab_size": 1, "pad_token_id": 1}, pad=1),
  "camembert": Reference({"type_vocab_size": 1, "pad_token_id": 1}, pad=1),
  "modernbert": Reference(
    {
      "local_attention": 8,
      "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 700.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
      },
      "classifier_pooling": "mean",
    }
  ),
  "distilbert": Reference(
    sizes={
      "vocab_size": VOCAB, "dim": 24, "n_layers": 4, "n_heads": 3,
      "hidden_dim": 40, "max_position_embeddings": 50,
    }
  ),
  "albert": Reference({"embedding_size": 16, "num_hidden_groups": 2}),
  "electra": Reference({"embedding_size": 16}),
  "mpnet": Reference(pad=1),
  "deberta-v2": Reference(_DISENTANGLED),
  "deberta-v2, convolution": Reference(
    {**_DISENTANGLED, "conv_kernel_size": 3, "conv_groups": 2,
     "conv_act": "gelu"},
    family="deberta-v2",
  ),
  "nomic_bert": Reference(_ROPE, kinds=("classify", "tag")),
  "gte": Reference(
    {**_ROPE, "type_vocab_size": 2}, kinds=("classify", "tag")
  ),
  "eurobert": Reference(_ROPE, kinds=("classify", "tag")),
  "eurobert, shared keys": Reference(
    {**_ROPE, "num_attention_heads": 6, "num_key_value_heads": 2},
    kinds=("classify", "tag"),
    family="eurobert",
  ),
}  # fmt: skip


def family_of(name: str) -> families.Family:
  """Returns the family of a row of `REFERENCES`."""
  return families.FAMILIES[REFERENCES[name].family or name]


def make_batch(pad: int, num_types: int) -> dict[str, np.ndarray]:
  """Returns rows with padding: input_ids, input_mask and segment_ids."""
  rng = np.random.default_rng(0)
  mask = (np.arange(LENGTH) < np.array(LENGTHS)[:, None]).astype(np.int32)
  ids = rng.integers(5, VOCAB, mask.shape) * mask + pad * (1 - mask)
  types = rng.integers(0, max(num_types, 1), mask.shape) * mask
  return {
    "input_ids": ids.astype(np.int32),
    "input_mask": mask,
    "segment_ids": types.astype(np.int32),
  }


def make_reference(name: str, suffix: str, num_labels: int = NUM_LABELS) -> Any:
  """Returns a random model of transformers.

  Args:
    name: a key of `REFERENCES`.
    suffix: the rest of the name of its class, such as "ForMaskedLM".
    num_labels: K.
  """
  import torch
  import transformers

  torch.manual_seed(0)
  row, prefix = REFERENCES[name], family_of(name).hf_class
  config = getattr(transformers, f"{prefix}Config")(
    **{k: v for k, v in row.sizes.items() if k not in row.config},
    **{"pad_token_id": row.pad, "bos_token_id": 2, "eos_token_id": 3},
    **{k: v for k, v in row.config.items() if k != "pad_token_id"},
    num_labels=num_labels,
    attn_implementation="eager",
  )
  model = getattr(transformers, prefix + suffix)(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      noise = torch.randn_like(parameter) * 0.2
      parameter.add_(noise)
  return model


def run_reference(model: Any, batch: dict[str, np.ndarray]) -> dict[str, Any]:
  """Returns the outputs of a model of transformers as numpy arrays."""
  import inspect

  import torch

  known = inspect.signature(model.forward).parameters
  inputs = {
    "input_ids": batch["input_ids"],
    "attention_mask": batch["input_mask"],
  }
  if "token_type_ids" in known:
    inputs["token_type_ids"] = batch["segment_ids"]
  tensors = {k: torch.tensor(v).long() for k, v in inputs.items()}
  if "ForMultipleChoice" in type(model).__name__:
    tensors = {k: v[:, None] for k, v in tensors.items()}
  with torch.no_grad():
    found = model(**tensors)
  return {
    key: value.numpy()
    for key, value in found.items()
    if hasattr(value, "numpy")
  }


def config_of(pretrained: weights.Pretrained, **more: Any) -> Any:
  """Returns the `ModelConfig` of weights, without dropout."""
  return model_config.ModelConfig(
    **pretrained.shape, dropout_rate=0.0, attention_dropout_rate=0.0, **more
  )


def run_ours(
  pretrained: weights.Pretrained, batch: dict[str, np.ndarray], part: str
) -> np.ndarray:
  """Returns one output of our model.

  Args:
    pretrained: the weights.
    batch: the batch; `positions`, `sequence_ids` and `cls_positions` if its
      rows are packed.
    part: "hidden", "mlm", "rtd" or a kind of task.
  """
  config = config_of(pretrained)
  packed = {
    key: batch[key] for key in ("positions", "sequence_ids") if key in batch
  }
  rows = [batch[k] for k in ("input_ids", "input_mask", "segment_ids")]
  params = pretrained.params
  model: Any
  if part == "hidden":
    model = encoder.Encoder(config)
    params = _with_pooler(params, config)["encoder"]
    call = jax.jit(lambda p: model.apply({"params": p}, *rows, **packed)[0])
    return np.asarray(call(params))
  if part == "mlm":
    model = heads.PreTrainingModel(config)
    at = np.tile(np.arange(rows[0].shape[1], dtype=np.int32), (len(rows[0]), 1))
    params = {"nsp": _zeros(config), **params}
    params = _with_pooler(params, config)
    call = jax.jit(lambda p: model.apply({"params": p}, *rows, at, **packed)[0])
    return np.asarray(call(params))
  if part == "rtd":
    model = heads.DiscriminatorModel(config)
    call = jax.jit(lambda p: model.apply({"params": p}, *rows, **packed))
    return np.asarray(call(params))
  kind = table.get(part)
  model = kind.make_model(config, pretrained.num_outputs)
  starts = batch.get("cls_positions", np.zeros((len(rows[0]), 1), np.int32))
  params = _with_pooler(params, config)
  inputs: dict[str, Any] = {**batch, "cls_positions": starts}
  call = jax.jit(lambda p: kind.apply(model, p, inputs))
  return np.asarray(call(params))


def _zeros(config: Any) -> dict[str, np.ndarray]:
  return {
    "kernel": np.zeros((config.hidden_size, 2), np.float32),
    "bias": np.zeros(2, np.float32),
  }


def _with_pooler(params: Any, config: Any) -> Any:
  """Adds a pooler of zeros, which the output does not depend on."""
  if not config.pooler or "pooler" in params["encoder"]:
    return params
  size = config.hidden_size
  pooler = {
    "kernel": np.zeros((size, size), np.float32),
    "bias": np.zeros(size, np.float32),
  }
  return {**params, "encoder": {**params["encoder"], "pooler": pooler}}


def pack(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the second and the third row of a batch in one row."""
  lengths = LENGTHS[1:]
  joined = {
    key: np.concatenate([batch[key][i, :n] for i, n in enumerate(lengths, 1)])[
      None
    ]
    for key in ("input_ids", "input_mask", "segment_ids")
  }
  numbers = np.repeat([1, 2], lengths)[None].astype(np.int32)
  positions = np.concatenate([np.arange(n) for n in lengths])
  return joined | {
    "sequence_ids": numbers,
    "positions": positions[None].astype(np.int32),
    "cls_positions": np.array([[0, lengths[0]]], np.int32),
  }


def measure(name: str, folder: str, parts: tuple[str, ...] = ()) -> Any:
  """Returns the largest differences between transformers and this program.

  Args:
    name: a key of `REFERENCES`.
    folder: an empty folder for files.
    parts: "import", "packed", "export", "mlm", "rtd" and kinds of tasks; () =
      all that the family has.

  Returns:
    Part -> (largest difference, largest value of the reference). That of
    "export" counts tensors whose bytes differ.
  """
  row = REFERENCES[name]
  family = family_of(name)
  every = ("import", "packed", "export", "mlm", *row.kinds)
  every += ("rtd",) if ("rtd",) in family.pretraining_classes else ()
  found: dict[str, tuple[float, float]] = {}
  for part in parts or every:
    if part in ("packed", "export"):
      continue
    model, path, given, batch = _make_part(name, part, folder)
    theirs = _output(model, batch, part)
    got = run_ours(given, batch, "hidden" if part == "import" else part)
    got, theirs = _of_tokens(got, batch, theirs), _of_tokens(theirs, batch)
    found[part] = _difference(got, theirs)
    if part == "import":
      packed = run_ours(given, pack(batch), "hidden")[0]
      found["packed"] = _difference(packed, theirs[LENGTH:])
    out = os.path.join(folder, f"{part}-out")
    weights.write(given, out, "huggingface")
    found["export"] = (
      found.get("export", (0.0, 0.0))[0] + _changed(path, out), 0.0
    )  # fmt: skip
  return found


def errors(name: str, part: str, folder: str) -> tuple[float, float]:
  """Returns the errors of this program and of transformers in float32.

  Args:
    name: a key of `REFERENCES`.
    part: as for `measure`, but neither "packed" nor "export".
    folder: an empty folder for files.

  Returns:
    The largest difference of each from transformers in float64.
  """
  model, _, given, batch = _make_part(name, part, folder)
  theirs = _of_tokens(_output(model, batch, part), batch)
  want = _of_tokens(_output(model.double(), batch, part), batch)
  got = run_ours(given, batch, "hidden" if part == "import" else part)
  got = _of_tokens(got, batch, want)
  return _difference(got, want)[0], _difference(theirs, want)[0]


def _make_part(name: str, part: str, folder: str) -> Any:
  """Returns a model of transformers, its folder, its weights and a batch."""
  suffixes = {"import": "Model", "mlm": "ForMaskedLM", "rtd": "ForPreTraining"}
  width = {"choice": 1, "span": 2}.get(part, NUM_LABELS)
  model = make_reference(name, (suffixes | CLASSES)[part], width)
  path = os.path.join(folder, part)
  model.save_pretrained(path)
  given = weights.read(path)
  pad = REFERENCES[name].pad
  return model, path, given, make_batch(pad, given.shape["type_vocab_size"])


def _output(model: Any, batch: dict[str, np.ndarray], part: str) -> np.ndarray:
  """Returns the output of a model of transformers that a part compares."""
  found = run_reference(model, batch)
  if part == "span":
    return np.stack([found["start_logits"], found["end_logits"]], -1)
  return found["last_hidden_state" if part == "import" else "logits"]


def _of_tokens(
  x: np.ndarray, batch: dict[str, np.ndarray], like: np.ndarray | None = None
) -> np.ndarray:
  """Returns an output in the shape of another one, without padding."""
  real = batch["input_mask"] > 0
  if like is not None and x.shape[:2] != real.shape:
    x = x.reshape(like.shape)
  return x[real] if x.shape[:2] == real.shape else x


def _difference(got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
  return float(np.abs(got - want).max()), float(np.abs(want).max())


def _changed(before: str, after: str) -> int:
  """Returns how many tensors of two folders differ in name or bytes."""
  one, two = (
    safetensors.numpy.load_file(os.path.join(path, "model.safetensors"))
    for path in (before, after)
  )
  names = {key for key in one.keys() ^ two.keys()}
  return len(names) + sum(
    not np.array_equal(one[key], two[key]) for key in one.keys() & two.keys()
  )


def measure_sharded(name: str, folder: str) -> tuple[float, float]:
  """Compares one device with eight that split rows and parameters.

  Args:
    name: a key of `REFERENCES`.
    folder: the folder that `measure` has used.
  """
  pretrained = weights.read(os.path.join(folder, "import"))
  config = config_of(pretrained)
  batch = make_batch(REFERENCES[name].pad, pretrained.shape["type_vocab_size"])
  rows = [
    np.concatenate([batch[k], batch[k][:1]])
    for k in ("input_ids", "input_mask", "segment_ids")
  ]
  params = _with_pooler(pretrained.params, config)
  model = encoder.Encoder(config)

  def run(params, *rows):
    return model.apply({"params": params["encoder"]}, *rows)[0]

  want = jax.jit(run)(params, *rows)
  mesh = sharding.make_mesh(2, 4, 1)
  rules = tuple(  # 67 words and odd tables stay whole
    rule for rule in settings.SHARDING_RULES if "embeddings/" not in rule[0]
  )
  places = sharding.state_sharding(params, mesh, (("embeddings/", ()), *rules))
  with jax.set_mesh(mesh):
    inputs = jax.device_put(
      [np.concatenate([x, x]) for x in rows], sharding.batch_sharding(mesh)
    )
    got = jax.jit(run)(jax.device_put(params, places), *inputs)
  real = rows[1] > 0
  return _difference(np.asarray(got)[: len(real)][real], np.asarray(want)[real])
