"""The names of BERT's parameters in other formats, and how they lie there.

Formats:
  huggingface  state dict of transformers' PyTorch classes: kernels transposed
  flax         parameters of its Flax classes
  tf1          variables of the original
  bert_jax     ours, layers unrolled

A tree of parameters is flat here: path with "/" -> array. Pure numpy; no file
is read. `weights.py` reads and writes them.

Source: google-research/bert modeling.py, run_pretraining.py:240-304,
  run_classifier.py:590-616, run_squad.py:546-567
"""

from collections.abc import Collection, Mapping
import dataclasses
import math
import re
from typing import Any

import ml_dtypes
import numpy as np

from bert_jax.runtime import errors

FORMATS = ("huggingface", "flax", "tf1", "bert_jax")
KINDS = ("classify", "regress", "tag", "span", "choice")
# Parts that a model may come without, each whole or not at all.
POOLER = "encoder/pooler"
OPTIONAL = (POOLER, "mlm", "nsp", "task")

# Ours -> what TensorFlow's scopes are called; the other formats follow these.
_MODULES = {
  "encoder/embeddings/word": "bert/embeddings/word_embeddings",
  "encoder/embeddings/position": "bert/embeddings/position_embeddings",
  "encoder/embeddings/type": "bert/embeddings/token_type_embeddings",
  "encoder/embeddings/norm": "bert/embeddings/LayerNorm",
  POOLER: "bert/pooler/dense",
  "mlm/dense": "cls/predictions/transform/dense",
  "mlm/norm": "cls/predictions/transform/LayerNorm",
  "mlm": "cls/predictions",
  "nsp": "cls/seq_relationship",
}
_LAYER_MODULES = {
  "attention/query": "attention/self/query",
  "attention/key": "attention/self/key",
  "attention/value": "attention/self/value",
  "attention/out": "attention/output/dense",
  "attention_norm": "attention/output/LayerNorm",
  "mlp/in": "intermediate/dense",
  "mlp/out": "output/dense",
  "mlp_norm": "output/LayerNorm",
}
# The head of a task: (that of spans, that of any other kind).
_TASK_MODULES = {
  "huggingface": ("qa_outputs", "classifier"),
  "flax": ("qa_outputs", "classifier"),
  "tf1": ("cls/squad", ""),
}
_LEAVES = {
  "huggingface": {"kernel": "weight", "scale": "weight", "embedding": "weight"},
  "flax": {},
  "tf1": {"scale": "gamma", "embedding": ""},
}
_SEPARATORS = {"huggingface": ".", "flax": "/", "tf1": "/"}
# Both ends of the decoder of masked words, which we tie to the word table.
_DECODERS = {
  "huggingface": ("cls.predictions.decoder.weight", False),
  "flax": ("cls/predictions/decoder/kernel", True),
}
_TIED_BIAS = "cls.predictions.decoder.bias"

_LAYER = re.compile(r"encoder/layer_(\d+)/(.+)/(kernel|bias|scale)")
_THEIR_ENCODER = re.compile(r"bert[./](embeddings|encoder)[./]")
# Tensors of the encoder that hold positions, which are not learned.
BUFFERS = ("position_ids", "token_type_ids")
_THEIR_LAYER = re.compile(r"(bert[./])?encoder[./]layer[._/](\d+)[./]")
_FLOATS = frozenset(
  map(np.dtype, ("float16", "float32", "float64", ml_dtypes.bfloat16))
)

# Sizes and arithmetic: ours -> key of config.json and bert_config.json.
_SIZES = {
  "vocab_size": "vocab_size",
  "num_layers": "num_hidden_layers",
  "hidden_size": "hidden_size",
  "num_heads": "num_attention_heads",
  "mlp_dim": "intermediate_size",
  "max_len": "max_position_embeddings",
  "type_vocab_size": "type_vocab_size",
}
MODEL_KEYS = (*_SIZES, "hidden_act", "layer_norm_eps")
# Name of an activation there -> ours; the first of several is written.
_ACTIVATIONS = {
  "huggingface": {
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
  },
  # Its gelu is the error function before February 2019, tanh since then.
  "tf1": {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "tanh": "tanh"},
}
# Keys of config.json -> the values that are accepted; any other would give
# other numbers. `None` is how these files say that a key is not set. Where no
# other value is accepted, `_REMEDIES` says what can be done.
_ONLY: dict[str, tuple[Any, ...]] = {
  "model_type": ("bert",),
  "position_embedding_type": (None, "absolute"),
  "is_decoder": (None, False),
  "is_encoder_decoder": (None, False),
  "add_cross_attention": (None, False),
  "tie_encoder_decoder": (None, False),
  "pruned_heads": (None, {}),
  "quantization_config": (None, {}),
  "auto_map": (None, {}),
  "adapters": (None, {}),
  "embedding_size": (None,),
}
_REMEDIES = {
  "pruned_heads": (
    "this program reads no BERT with pruned heads. Save the model without "
    "pruning"
  ),
  "quantization_config": (
    "this program reads no quantized weights. Save the model with float weights"
  ),
  "auto_map": (
    "code of the folder's own computes the model, and it is not run here. "
    "Remove the key if the model is a plain BERT"
  ),
  "adapters": (
    "this program reads no adapters. Merge them into the weights, and save the "
    "model without them"
  ),
  "embedding_size": (
    "this program reads no BERT whose embeddings have a size of their own. "
    "Remove the key if the word table is as wide as hidden_size"
  ),
}
# Read by `model_of`, and by weights.py.
_READ = frozenset({*_SIZES.values(), "hidden_act", "layer_norm_eps"}) | {
  "architectures", "problem_type", "id2label", "num_labels", "_num_labels",
  "tie_word_embeddings", "tokenizer_class",
  "sbert_ce_default_activation_function", "sentence_transformers",
}  # fmt: skip
# Of training: here they are keys of the config group `model`.
TRAINING_KEYS = {
  "hidden_dropout_prob": "dropout_rate",
  "attention_probs_dropout_prob": "attention_dropout_rate",
  "classifier_dropout": "dropout_rate",
  "initializer_range": "init_stddev",
}
# They change no number that is computed here: names, files, what a call
# returns, how text is generated, how memory is used.
_WITHOUT_EFFECT = frozenset({
  "_name_or_path", "name_or_path", "transformers_version", "_commit_hash",
  "_attn_implementation", "_attn_implementation_autoset", "attn_implementation",
  "torch_dtype", "dtype", "use_bfloat16", "torchscript", "tf_legacy_loss",
  "return_dict", "use_return_dict", "output_attentions", "output_hidden_states",
  "output_past", "use_cache", "chunk_size_feed_forward",
  "gradient_checkpointing", "finetuning_task", "task_specific_params",
  "label2id", "prefix", "cross_attention_hidden_size", "pad_token_id",
  "bos_token_id", "eos_token_id", "sep_token_id", "decoder_start_token_id",
  "max_length", "min_length", "do_sample", "early_stopping", "num_beams",
  "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
  "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
  "bad_words_ids", "num_return_sequences", "output_scores",
  "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id",
  "remove_invalid_values", "exponential_decay_length_penalty",
  "suppress_tokens", "begin_suppress_tokens", "num_beam_groups",
  "diversity_penalty", "directionality", "pooler_fc_size",
  "pooler_num_attention_heads", "pooler_num_fc_layers",
  "pooler_size_per_head", "pooler_type", "summary_activation",
  "summary_first_dropout", "summary_last_dropout", "summary_proj_to_labels",
  "summary_type", "summary_use_proj", "language", "model_name",
  "bert_jax",
})  # fmt: skip
_TF1_NAMES = {"gelu_erf": "gelu", "gelu_tanh": "gelu"}


class ConvertError(errors.UserError):
  """Names, shapes or settings that do not make a BERT of ours."""


@dataclasses.dataclass(frozen=True)
class Converted:
  """What `to_ours` made of some tensors.

  Attributes:
    params: path -> array, layers unrolled.
    is_span: whether the head of its task is that of spans; None: no head.
    untied: why the head of masked words was left out: the name of a tensor
      that is not the word table, or "" where it was not.
    ignored: names of tensors that have no place here.
    missing: paths of a full encoder that are not there.
  """

  params: dict[str, np.ndarray]
  is_span: bool | None
  untied: str
  ignored: tuple[str, ...]
  missing: tuple[str, ...]


# --- trees -------------------------------------------------------------------


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} -> {"a/b": 1}."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{key}/")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = value
  return tree


def num_layers(flat: Mapping[str, Any]) -> int:
  """How many layers a flat tree has, whether unrolled or scanned."""
  count = 0
  for path, leaf in flat.items():
    if match := _LAYER.fullmatch(path):
      count = max(count, int(match[1]) + 1)
    elif path.startswith("encoder/layers/"):
      count = max(count, leaf.shape[0] if leaf.shape else 0)
  return count


def sizes_of(flat: Mapping[str, Any]) -> dict[str, int]:
  """Sizes, as in the config group `model`, that the shapes of a tree tell."""
  sizes = {"num_layers": num_layers(flat)}
  for end, names in (
    ("embeddings/word/embedding", ("vocab_size", "hidden_size")),
    ("embeddings/position/embedding", ("max_len",)),
    ("embeddings/type/embedding", ("type_vocab_size",)),
    ("attention/query/bias", ("num_heads",)),
    ("mlp/in/kernel", ("mlp_dim",)),
  ):
    path = next((path for path in flat if path.endswith(end)), None)
    if path is not None:
      shape = flat[path].shape
      # Layers may be stacked, so these are counted from the end.
      values = shape[-1:] if end.startswith("mlp") else shape[-2:]
      sizes |= dict(zip(names, values, strict=False))
  return sizes


def stack(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Unrolled layers to the scanned form, as `bert.stack_layers` does it."""
  layers: dict[str, dict[int, np.ndarray]] = {}
  result = {}
  for path, array in flat.items():
    if match := _LAYER.fullmatch(path):
      name = f"encoder/layers/{match[2]}/{match[3]}"
      layers.setdefault(name, {})[int(match[1])] = array
    else:
      result[path] = array
  for name, arrays in layers.items():
    result[name] = np.stack([arrays[i] for i in sorted(arrays)])
  return result


def unstack(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The inverse of `stack`."""
  result = {}
  for path, array in flat.items():
    if path.startswith("encoder/layers/"):
      for i, layer in enumerate(array):
        name = path.removeprefix("encoder/layers/")
        result[f"encoder/layer_{i}/{name}"] = layer
    else:
      result[path] = array
  return result


# --- names and shapes --------------------------------------------------------


def shapes(
  model: Mapping[str, Any], num_labels: int
) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every parameter that a model may have.

  Args:
    model: sizes, as in the config group `model`.
    num_labels: K, of the head of its task.

  Returns:
    Path -> shape, heads and pooler included.
  """
  D, N, F = model["hidden_size"], model["num_heads"], model["mlp_dim"]
  V = model["vocab_size"]
  flat: dict[str, tuple[int, ...]] = {}

  def dense(path, kernel, bias):
    flat[f"{path}/kernel"], flat[f"{path}/bias"] = kernel, bias

  def norm(path):
    flat[f"{path}/scale"] = flat[f"{path}/bias"] = (D,)

  for table, rows in (
    ("word", V),
    ("position", model["max_len"]),
    ("type", model["type_vocab_size"]),
  ):
    flat[f"encoder/embeddings/{table}/embedding"] = (rows, D)
  norm("encoder/embeddings/norm")
  for i in range(model["num_layers"]):
    layer = f"encoder/layer_{i}"
    for part in ("query", "key", "value"):
      dense(f"{layer}/attention/{part}", (D, N, D // N), (N, D // N))
    dense(f"{layer}/attention/out", (N, D // N, D), (D,))
    norm(f"{layer}/attention_norm")
    dense(f"{layer}/mlp/in", (D, F), (F,))
    dense(f"{layer}/mlp/out", (F, D), (D,))
    norm(f"{layer}/mlp_norm")
  dense(POOLER, (D, D), (D,))
  dense("mlm/dense", (D, D), (D,))
  norm("mlm/norm")
  flat["mlm/bias"] = (V,)
  dense("nsp", (D, 2), (2,))
  dense("task", (D, num_labels), (num_labels,))
  return flat


def their_name(format: str, path: str, is_span: bool) -> tuple[str, bool]:
  """Names a parameter in a format.

  Args:
    format: one of `FORMATS`.
    path: of ours.
    is_span: the head of the task is that of spans.

  Returns:
    Its name, and whether it lies transposed there.
  """
  if format == "bert_jax":
    return path, False
  module, leaf = path.rsplit("/", 1)
  is_transposed = format == "huggingface" and leaf == "kernel"
  if match := _LAYER.fullmatch(path):
    joint = "_" if format == "tf1" else "/"
    inner = _LAYER_MODULES[match[2]]
    scope = f"bert/encoder/layer{joint}{match[1]}/{inner}"
  elif module == "task":
    scope = _TASK_MODULES[format][0 if is_span else 1]
  else:
    scope = _MODULES[module]
  leaf = _LEAVES[format].get(leaf, leaf)
  if format == "tf1":
    if scope.endswith("LayerNorm") and leaf == "bias":
      leaf = "beta"
    elif module in ("nsp", "task", "mlm"):
      is_transposed = leaf == "kernel"
      leaf = {"kernel": "output_weights", "bias": "output_bias"}[leaf]
  name = "/".join(filter(None, (scope, leaf)))
  return name.replace("/", _SEPARATORS[format]), is_transposed


def _flat_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape with heads and what is in a head as one axis."""
  if path.endswith("attention/out/kernel"):
    return (math.prod(shape[:-1]), shape[-1])
  if re.search(r"attention/(query|key|value)/kernel$", path):
    return (shape[0], math.prod(shape[1:]))
  return (math.prod(shape),) if path.endswith("/bias") else shape


def _canonical(format: str, name: str) -> str:
  """A name as `their_name` gives it: with its prefix, of today's spelling."""
  if format == "bert_jax":
    return name
  separator = _SEPARATORS[format]
  top = name.split(separator, 1)[0]
  if top in ("embeddings", "encoder", "pooler"):
    name = f"bert{separator}{name}"
  if format == "huggingface":
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
  return name


# --- theirs to ours ----------------------------------------------------------


def _by_canonical_name(format: str, names: Collection[str]) -> dict[str, str]:
  """Canonical name -> the name given."""
  found: dict[str, str] = {}
  for name in names:
    other = found.setdefault(_canonical(format, name), name)
    if other != name:
      raise ConvertError(
        f"{other} and {name} are two names of one parameter; leave one out"
      )
  if format == "huggingface" and _TIED_BIAS in found:
    found.setdefault("cls.predictions.bias", found[_TIED_BIAS])
  return found


def _check_layers(names: Collection[str], layers: int) -> None:
  """Refuses more layers or fewer than the settings say."""
  if layers > len(names):
    raise ConvertError(
      f"the settings have {layers} layers, but there are {len(names)} tensors"
    )
  for name in names:
    match = _THEIR_LAYER.match(name)
    if match and int(match[2]) >= layers:
      raise ConvertError(
        f"{name} is of layer {int(match[2])}, but the settings have {layers} "
        "layers (counted from 0); correct num_hidden_layers"
      )


def _part_of(path: str) -> str:
  """Which of `OPTIONAL` a parameter belongs to, or "encoder"."""
  return next((p for p in OPTIONAL if path.startswith(f"{p}/")), "encoder")


def _untied_name(
  format: str,
  found: Mapping[str, str],
  tensors: Mapping[str, np.ndarray],
  tied: bool,
) -> str:
  """The decoder of masked words where it is not the word table; or ""."""
  name, is_transposed = _DECODERS.get(format, ("", False))
  word = their_name(format, "encoder/embeddings/word/embedding", False)[0]
  pairs = [(name, word, is_transposed)]
  if format == "huggingface":
    pairs.append((_TIED_BIAS, "cls.predictions.bias", False))
  for one, other, is_transposed in pairs:
    if one in found and other in found:
      array = tensors[found[one]]
      array = array.T if is_transposed else array
      if not np.array_equal(array, tensors[found[other]]):
        return one
  has_head = their_name(format, "mlm/bias", False)[0] in found
  return name if has_head and not tied and name not in found else ""


def _check_encoder(format: str, ignored: Collection[str]) -> None:
  """Refuses tensors of the encoder that would change what it computes."""
  if format not in ("huggingface", "flax"):
    return
  for name in ignored:
    match = _THEIR_ENCODER.match(_canonical(format, name))
    if match and not name.endswith(BUFFERS):
      raise ConvertError(
        f"{name} is a part of the encoder that a BERT does not have, so its "
        "outputs would be others here; take it out of the file where the "
        "encoder is meant to be used without it"
      )


def _tied_names(format: str) -> set[str]:
  names = {_DECODERS[format][0]} if format in _DECODERS else set()
  return names | ({_TIED_BIAS} if format == "huggingface" else set())


def _task_head(
  format: str, found: Mapping[str, str], tensors: Mapping[str, np.ndarray]
) -> tuple[bool | None, int]:
  """Whether the head of the task is that of spans, and its K."""
  heads = {}
  for is_span in (True, False):
    bias = their_name(format, "task/bias", is_span)[0]
    if bias in found:
      shape = tensors[found[bias]].shape
      heads[is_span] = shape[0] if shape else 0
  if format == "bert_jax":  # one name for both
    heads.pop(True, None)
  if len(heads) > 1:
    raise ConvertError(
      "it has a head for spans and another one; keep one of them"
    )
  return next(iter(heads.items()), (None, 1))


def _to_ours(
  path: str, name: str, array: np.ndarray, shape: tuple[int, ...], format: str
) -> np.ndarray:
  """Checks one tensor and lays it out as ours."""
  flat = shape if format == "bert_jax" else _flat_shape(path, shape)
  is_transposed = their_name(format, path, False)[1]
  wanted = flat[::-1] if is_transposed else flat
  if array.shape != wanted:
    raise ConvertError(
      f"{name} has shape {list(array.shape)}, but the sizes of the settings "
      f"make it {list(wanted)}; they belong to another model"
    )
  if array.dtype not in _FLOATS:
    raise ConvertError(
      f"{name} is {array.dtype}; weights are "
      f"{', '.join(sorted(d.name for d in _FLOATS))}"
    )
  array = array.T if is_transposed else array
  return np.ascontiguousarray(array).reshape(shape)


def to_ours(
  format: str,
  tensors: Mapping[str, np.ndarray],
  model: Mapping[str, Any],
  *,
  tied: bool = True,
) -> Converted:
  """Converts the tensors of a format to our parameters.

  Args:
    format: one of `FORMATS`.
    tensors: name -> array; names with or without the prefix of the encoder.
    model: sizes, as in the config group `model`.
    tied: whether the settings let the head of masked words share the word
      table. A head that does not is left out: ours always does.

  Returns:
    The parameters, and what was left over.

  Raises:
    ConvertError: a tensor is missing, is there twice, has another shape than
      the sizes make it, or is a part of an encoder that is not here.
  """
  _check_layers(tensors, model["num_layers"])
  found = _by_canonical_name(format, tensors)
  is_span, num_labels = _task_head(format, found, tensors)
  wanted = {
    path: their_name(format, path, bool(is_span))[0]
    for path in shapes(model, num_labels)
  }
  left_out = {
    part
    for part in OPTIONAL
    if not any(n in found for p, n in wanted.items() if _part_of(p) == part)
  }
  used = _tied_names(format)
  untied = _untied_name(format, found, tensors, tied)
  if untied:
    left_out.add("mlm")  # our head of masked words shares the word table
    used = set()
  params = {}
  for path, shape in shapes(model, num_labels).items():
    if _part_of(path) in left_out:
      continue
    name = wanted[path]
    if name not in found:
      raise ConvertError(
        f"there is no {name}, which a BERT of these settings has; the file is "
        "not whole, or of another kind of model"
      )
    given = found[name]
    params[path] = _to_ours(path, given, tensors[given], shape, format)
    used.add(name)
  missing = [f"{POOLER}/kernel", f"{POOLER}/bias"] if POOLER in left_out else []
  ignored = tuple(n for n in tensors if _canonical(format, n) not in used)
  _check_encoder(format, ignored)
  return Converted(
    params=params,
    is_span=is_span,
    untied=untied,
    ignored=ignored,
    missing=tuple(missing),
  )


# --- ours to theirs ----------------------------------------------------------


def check(params: Mapping[str, np.ndarray], model: Mapping[str, Any]) -> None:
  """Checks that a flat tree is a whole BERT of these sizes.

  Raises:
    ConvertError: says which parameter is missing, unknown or misshaped.
  """
  bias = params.get("task/bias")
  num_labels = bias.shape[0] if bias is not None and bias.shape else 1
  to_ours("bert_jax", params, model)
  if unknown := sorted(params.keys() - shapes(model, num_labels).keys()):
    raise ConvertError(f"{', '.join(unknown)} are no parameters of a BERT")


def from_ours(
  format: str,
  params: Mapping[str, np.ndarray],
  model: Mapping[str, Any],
  kind: str | None,
) -> dict[str, np.ndarray]:
  """Converts our parameters to the tensors of a format.

  A bare encoder gets the names of transformers' bare model: no prefix.

  Args:
    format: one of `FORMATS`.
    params: path -> array, layers unrolled.
    model: sizes, as in the config group `model`.
    kind: of the task of its head, one of `KINDS`; None: no head.

  Returns:
    Name -> array.

  Raises:
    ConvertError: as `check`.
  """
  check(params, model)
  is_bare = not any(_part_of(path) in OPTIONAL[1:] for path in params)
  tensors = {}
  for path, array in params.items():
    name, is_transposed = their_name(format, path, kind == "span")
    if format != "bert_jax":
      array = array.reshape(_flat_shape(path, array.shape))
    if is_bare and format in ("huggingface", "flax"):
      name = name.removeprefix(f"bert{_SEPARATORS[format]}")
    tensors[name] = np.ascontiguousarray(array.T if is_transposed else array)
  return tensors


# --- settings ----------------------------------------------------------------


def model_of(format: str, config: Mapping[str, Any]) -> dict[str, Any]:
  """Reads our sizes and arithmetic from config.json or bert_config.json.

  Args:
    format: "huggingface" (also for its Flax classes) or "tf1".
    config: the content of the file.

  Returns:
    A dict of `MODEL_KEYS`.

  Raises:
    ConvertError: a key is missing, or it is no BERT that we have.
  """
  for key, accepted in _ONLY.items():
    if config.get(key, accepted[0]) not in accepted:
      remedy = _REMEDIES.get(
        key, f"this program reads only a BERT with {accepted[-1]!r}"
      )
      raise ConvertError(f"{key} is {config[key]!r:.100}: {remedy}")
  model: dict[str, Any] = {}
  for ours, theirs in _SIZES.items():
    value = config.get(theirs)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise ConvertError(
        f"{theirs} is {value!r}; a size of 1 or more is wanted"
      )
    model[ours] = value
  if model["hidden_size"] % model["num_heads"]:
    raise ConvertError(
      f"hidden_size {model['hidden_size']} cannot be divided into "
      f"{model['num_heads']} heads"
    )
  name = config.get("hidden_act", "gelu")
  known = _ACTIVATIONS[format]
  if not isinstance(name, str) or name not in known:
    raise ConvertError(f"hidden_act {name!r} is not one of {', '.join(known)}")
  model["hidden_act"] = known[name]
  # The original has no such key: it is 1e-12, as it is where HF says nothing.
  eps = config.get("layer_norm_eps", 1e-12)
  if isinstance(eps, bool) or not isinstance(eps, (int, float)) or eps <= 0:
    raise ConvertError(f"layer_norm_eps is {eps!r}; a number above 0 is wanted")
  model["layer_norm_eps"] = float(eps)
  return model


def unknown_keys(config: Mapping[str, Any]) -> list[str]:
  """The keys of a config.json that nothing here knows, sorted."""
  known = _ONLY.keys() | _READ | TRAINING_KEYS.keys() | _WITHOUT_EFFECT
  return sorted(map(str, config.keys() - known))


def output_activation(config: Mapping[str, Any]) -> str:
  """What sentence-transformers puts the outputs of a cross-encoder through.

  Args:
    config: the content of config.json.

  Returns:
    The class of an activation, such as "torch.nn.modules.activation.Sigmoid";
    "" where the file names none, or the identity.
  """
  newer = config.get("sentence_transformers")
  name = newer.get("activation_fn") if isinstance(newer, Mapping) else None
  name = str(name or config.get("sbert_ce_default_activation_function") or "")
  return "" if name.rpartition(".")[2] == "Identity" else name


def config_of(format: str, model: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `model_of`; "tf1" has one name for both forms of gelu."""
  config = {theirs: model[ours] for ours, theirs in _SIZES.items()}
  act = model["hidden_act"]
  names = {ours: name for name, ours in reversed(_ACTIVATIONS[format].items())}
  if format == "tf1":
    names |= _TF1_NAMES
  if act not in names:
    raise ConvertError(
      f"hidden_act {act!r} has no name there; choose one of {', '.join(names)}"
    )
  return config | {
    "hidden_act": names[act],
    "layer_norm_eps": model["layer_norm_eps"],
  }
